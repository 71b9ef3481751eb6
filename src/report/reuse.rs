// SPDX-License-Identifier: GPL-2.0-only
//! Object reuse in a comparison: per cache how many hand-outs and frees an operation costs, and how far apart the free
//! of an object and its next hand-out lie. Bins of all samples of a cell are added up; distances are not averaged.
//!
//! Where records of the host's kernel stand beside records of the port, both go into one more table: the host is the
//! oracle there. Samples whose tracepoints lost records are left out, and counted.

use crate::report::metric::quantile;
use crate::report::record::{ReuseCache, Sample};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One cache of one variant in one row.
#[derive(Clone, Debug, Serialize)]
pub struct ReuseRow {
    /// World.
    pub world: String,
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Cache.
    pub cache: String,
    /// Variant, in the kernel world the release.
    pub variant: String,
    /// Samples.
    pub n: usize,
    /// Samples left out because records of tracepoints were lost.
    pub lost: usize,
    /// Hand-outs an operation; in the kernel world those of the workload itself.
    pub allocs_per_op: Option<f64>,
    /// Frees an operation, likewise.
    pub frees_per_op: Option<f64>,
    /// Share of all hand-outs at distance 1: the object freed by the event before.
    pub next: Option<f64>,
    /// Median distance.
    pub median: Option<f64>,
    /// Distance below which nine of ten lie.
    pub p90: Option<f64>,
    /// Median of the hand-outs from an object's hand-out to its next.
    pub again: Option<f64>,
    /// Share of hand-outs on another CPU than the free's.
    pub remote: Option<f64>,
    /// Share of hand-outs of objects whose free was not seen.
    pub first: Option<f64>,
    /// Distinct objects a sample, mean.
    pub distinct: Option<f64>,
}

/// Caches that the argument is about; all others are in the machine-readable formats.
pub fn is_headline(cache: &str) -> bool {
    ["vm_area_struct", "vma_lock", "maple_node"].contains(&cache) || cache.starts_with("kmalloc")
}

/// Rows by workload, threads and cache, then by the variants given.
pub fn rows(samples: &[&Sample], variants: &[String]) -> Vec<ReuseRow> {
    type Cell<'a> = (Vec<&'a Sample>, BTreeSet<&'a str>);
    let mut cells: BTreeMap<(&str, u32), Cell> = BTreeMap::new();
    for s in samples.iter().filter(|s| !s.reuse.caches.is_empty()) {
        let cell = cells.entry((&s.workload, s.threads)).or_default();
        cell.0.push(s);
        cell.1.extend(s.reuse.caches.keys().map(String::as_str));
    }
    let mut rows = Vec::new();
    for ((workload, threads), (here, caches)) in cells {
        for cache in caches {
            for variant in variants {
                let mine: Vec<&Sample> = here.iter().copied().filter(|s| s.variant == *variant).collect();
                rows.extend(row(&mine, workload, threads, cache));
            }
        }
    }
    rows
}

fn row(samples: &[&Sample], workload: &str, threads: u32, cache: &str) -> Option<ReuseRow> {
    let first = samples.iter().find(|s| s.reuse.caches.contains_key(cache))?;
    let usable: Vec<&Sample> = samples.iter().copied().filter(|s| s.reuse.lost.is_none_or(|n| n == 0)).collect();
    let all: Vec<&ReuseCache> = usable.iter().filter_map(|s| s.reuse.caches.get(cache)).collect();
    let operations: u64 = usable.iter().map(|s| s.reuse.operations).sum();
    let sum = |f: fn(&ReuseCache) -> u64| all.iter().map(|c| f(c)).sum::<u64>() as f64;
    let per = |n: f64, of: f64| (of > 0.0).then(|| n / of);
    let merged = |f: fn(&ReuseCache) -> &Vec<u64>| {
        let mut bins = vec![0; all.iter().map(|c| f(c).len()).max().unwrap_or(0)];
        all.iter().for_each(|c| bins.iter_mut().zip(f(c)).for_each(|(a, b)| *a += b));
        bins
    };
    let (bins, again) = (merged(|c| &c.bins), merged(|c| &c.again));
    let allocs = sum(|c| c.allocs);
    let own = |f: fn(&ReuseCache) -> u64| per(sum(f), operations as f64);
    Some(ReuseRow {
        world: first.world.clone(),
        workload: workload.into(),
        threads,
        cache: cache.into(),
        variant: first.variant.clone(),
        n: usable.len(),
        lost: samples.len() - usable.len(),
        allocs_per_op: own(|c| c.own.as_ref().map_or(c.allocs, |o| o.allocs)),
        frees_per_op: own(|c| c.own.as_ref().map_or(c.frees, |o| o.frees)),
        next: per(bins.first().copied().unwrap_or(0) as f64, allocs),
        median: quantile(&bins, 0.5),
        p90: quantile(&bins, 0.9),
        again: quantile(&again, 0.5),
        remote: per(sum(|c| c.remote), allocs),
        first: per(sum(|c| c.first), allocs),
        distinct: per(sum(|c| c.distinct), all.len() as f64),
    })
}

/// The host's kernel and what else ran the same: by workload, threads and cache, the kernel first; nothing where one of
/// the two is missing.
pub fn beside<'a>(blocks: impl Iterator<Item = &'a Vec<ReuseRow>>) -> Vec<ReuseRow> {
    let mut all: Vec<&ReuseRow> = blocks.flatten().collect();
    let key = |r: &ReuseRow| (r.workload.clone(), r.threads, r.cache.clone());
    all.sort_by_key(|r| (key(r), r.world != "kernel"));
    let group = |r: &ReuseRow| all.iter().filter(|o| key(o) == key(r)).map(|o| o.world == "kernel").collect::<Vec<_>>();
    all.iter().filter(|r| group(r).contains(&true) && group(r).contains(&false)).map(|r| (*r).clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::compare::{Options, compare};
    use crate::report::record::OwnEvents;
    use crate::report::render::Format;
    use crate::report::synthetic::matrix;

    fn with_kernel() -> Vec<Sample> {
        let native: Vec<Sample> = matrix("native").into_iter().filter(|s| s.threads == 1).collect();
        let mut kernel: Vec<Sample> = native.iter().filter(|s| s.variant == "v6.12").cloned().collect();
        for s in &mut kernel {
            s.variant = "6.18.0".into();
            s.world = "kernel".into();
            s.reuse.lost = Some(u64::from(s.trial == 0));
            for c in s.reuse.caches.values_mut() {
                c.own = Some(OwnEvents { allocs: c.allocs / 2, frees: 0 });
            }
        }
        [native, kernel].concat()
    }

    #[test]
    fn bins_are_added_and_lost_records_leave_a_sample_out() {
        let samples = with_kernel();
        let of = |variant: &str| {
            let here: Vec<&Sample> = samples.iter().filter(|s| s.variant == variant && s.workload == "brk1").collect();
            rows(&here, &[variant.to_string()]).remove(1)
        };
        let (cold, hot, kernel) = (of("v6.12"), of("v7.3"), of("6.18.0"));
        assert_eq!((cold.cache.as_str(), cold.n, cold.allocs_per_op), ("vm_area_struct", 8, Some(1.0)));
        assert_eq!((hot.next, hot.median, hot.p90), (Some(1.0), Some(1.0), Some(1.0)));
        assert!(cold.next == Some(0.0) && cold.median.is_some_and(|m| (2047.0..4097.0).contains(&m)), "{cold:?}");
        assert_eq!((kernel.n, kernel.lost, kernel.frees_per_op), (7, 1, Some(0.0)));
        assert!(kernel.allocs_per_op.is_some_and(|v| (v - 0.5).abs() < 1e-3), "the workload's own");
    }

    #[test]
    fn every_format_has_the_distances_and_the_host_stands_beside_the_port() {
        let c = compare(&with_kernel(), &Options::new("v6.12")).expect("compares");
        assert!(!c.beside.is_empty() && c.beside[0].world == "kernel" && c.beside[1].world == "native");
        for format in [Format::Text, Format::Markdown, Format::Json, Format::Csv] {
            let text = c.render(format);
            assert!(text.contains("maple_node") && text.contains("6.18.0"), "{format:?}");
        }
        assert!(c.render(Format::Text).contains("The host's kernel beside the port"));
        let c = compare(&matrix("native"), &Options::new("v6.12")).expect("compares");
        assert!(c.beside.is_empty());
    }
}
