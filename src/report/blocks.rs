// SPDX-License-Identifier: GPL-2.0-only
//! What stands beside the figures: how faults ended, waits for locks, counters that moved, cache effects.
//!
//! Cache effects counted by a PMU and those of the simulator are different things in different units and never share a
//! table. A figure that was not counted is absent with its reason, never zero.
//!
//! A counter "moved" when its mean changed by more than the floor and either the test says so (Mann-Whitney, adjusted by
//! Benjamini and Hochberg over the block's counters: these are lists to look through, not claims) or, where fewer than
//! four samples leave the test mute, the ranges do not touch.

use crate::measure::stat::descriptive::{amean, range};
use crate::measure::stat::many::benjamini_hochberg;
use crate::measure::stat::nothing::mann_whitney;
use crate::report::compare::Options;
use crate::report::metric::{Metric, is_level, lock_path_faults, scaled};
use crate::report::record::Sample;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Ways in which a fault leaves the lock path: the counter, and the heading of its column.
pub const CAUSES: [(&str, &str); 11] = [
    ("vma_lock_retry", "retry"),
    ("vma_lock_retry_anon_vma", "anon-vma"),
    ("vma_lock_retry_io", "io"),
    ("vma_lock_abort", "abort"),
    ("vma_lock_abort_none", "none"),
    ("vma_lock_abort_seq_early", "seq-early"),
    ("vma_lock_abort_writer", "writer"),
    ("vma_lock_abort_seq_late", "seq-late"),
    ("vma_lock_abort_other_mm", "other-mm"),
    ("vma_lock_abort_range", "range"),
    ("vma_lock_miss", "miss"),
];

/// Whether the counter `name` is one of the parts of `sum`, both of [`CAUSES`].
pub fn is_cause_of(name: &str, sum: &str) -> bool {
    name.strip_prefix(sum).is_some_and(|end| end.starts_with('_'))
}

/// How the faults of one variant ended, in one row.
#[derive(Clone, Debug, Serialize)]
pub struct RetryRow {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Variant.
    pub variant: String,
    /// Samples.
    pub n: usize,
    /// Faults that ended under the VMA's lock, per million; absent where not counted.
    pub success: Option<f64>,
    /// Faults that ended under mmap_lock, per million; absent where not counted.
    pub under_mmap_lock: Option<f64>,
    /// Per million faults, in the order of [`CAUSES`]; absent where not counted.
    pub causes: Vec<Option<f64>>,
}

/// Sides of `mmap_lock`, as its counters name them.
pub const SIDES: [&str; 2] = ["read", "write"];

/// Waits for `mmap_lock` by length: the end of the counter's name, and the heading of the column.
pub const WAIT_BINS: [(&str, &str); 9] = [
    ("lt_1us", "<1us"),
    ("lt_4us", "<4us"),
    ("lt_16us", "<16us"),
    ("lt_64us", "<64us"),
    ("lt_256us", "<256us"),
    ("lt_1ms", "<1ms"),
    ("lt_4ms", "<4ms"),
    ("lt_16ms", "<16ms"),
    ("ge_16ms", "more"),
];

/// Waits of one variant for one side of `mmap_lock`, or of its writers for readers of a VMA.
#[derive(Clone, Debug, Serialize)]
pub struct WaitRow {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Variant.
    pub variant: String,
    /// One of [`SIDES`].
    pub side: &'static str,
    /// Samples.
    pub n: usize,
    /// Times the lock was taken, per million faults.
    pub taken: Option<f64>,
    /// Of these, how many had to wait.
    pub waits: f64,
    /// Time waited, us per million faults.
    pub us: f64,
    /// Waits by length, per million faults, in the order of [`WAIT_BINS`].
    pub bins: Vec<f64>,
}

/// What the writers and readers of VMAs had to do for each other, of one variant, per million faults.
#[derive(Clone, Debug, Serialize)]
pub struct WakeRow {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Variant.
    pub variant: String,
    /// In the order of [`WAKES`]; absent where not counted.
    pub values: Vec<Option<f64>>,
}

/// Counters of [`WakeRow`], and the headings of their columns.
pub const WAKES: [(&str, &str); 7] = [
    ("vma_lock_writer_wait", "vma writer waits"),
    ("vma_lock_detach_wait", "detach waits"),
    ("vma_lock_reader_wake", "vma reader wakes"),
    ("rwsem_sleep_reader", "reader sleeps"),
    ("rwsem_sleep_writer", "writer sleeps"),
    ("rwsem_wake_reader", "readers woken"),
    ("rwsem_wake_writer", "writers woken"),
];

/// A counter of several variants in one row, per thousand operations, mean over samples.
#[derive(Clone, Debug, Serialize)]
pub struct CounterRow {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Counter.
    pub name: String,
    /// By the block's variants; absent where not counted.
    pub values: Vec<Option<f64>>,
}

/// An event of several variants in one row, per operation, mean over samples.
#[derive(Clone, Debug, Serialize)]
pub struct PmuRow {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Event.
    pub event: String,
    /// By the block's variants; absent where not counted.
    pub values: Vec<Option<f64>>,
    /// Smallest share of the time that the event was counting.
    pub running_share: f64,
}

/// Line transfers of one struct of several variants in one row, per operation, mean over samples.
#[derive(Clone, Debug, Serialize)]
pub struct LineRow {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Struct.
    pub name: String,
    /// By the block's variants; absent where it has no samples.
    pub values: Vec<Option<Lines>>,
}

/// Transfers per operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lines {
    /// Lines that came from another CPU, near or far.
    pub moved: f64,
    /// Those from another node.
    pub far: f64,
    /// Shared lines taken from the others for a store.
    pub upgrades: f64,
}

type Cells<'a> = BTreeMap<(&'a str, u32), Vec<Vec<&'a Sample>>>;

/// Samples by row, then by variant in the order given.
fn cells<'a>(samples: &[&'a Sample], variants: &[String]) -> Cells<'a> {
    let mut cells = Cells::new();
    for s in samples {
        let Some(at) = variants.iter().position(|v| *v == s.variant) else { continue };
        cells.entry((&s.workload, s.threads)).or_insert_with(|| vec![Vec::new(); variants.len()])[at].push(s);
    }
    cells
}

/// Mean over the samples that have a value.
fn mean_of(samples: &[&Sample], value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = samples.iter().filter_map(|s| value(s)).collect();
    (!values.is_empty()).then(|| amean(&values))
}

/// Retries of every row in which a fault was taken and the lock path counted.
pub fn retries(samples: &[&Sample], variants: &[String]) -> Vec<RetryRow> {
    let mut rows = Vec::new();
    for ((workload, threads), by_variant) in cells(samples, variants) {
        for (variant, mine) in variants.iter().zip(&by_variant) {
            let counted = |s: &Sample| CAUSES.iter().any(|(c, _)| s.counters.contains_key(*c));
            if !mine.iter().any(|s| counted(s) && lock_path_faults(s).is_ok()) {
                continue;
            }
            let of = |name: &str| mean_of(mine, |s| Metric::Counter(name.into()).value(s).ok());
            rows.push(RetryRow {
                workload: workload.into(),
                threads,
                variant: variant.clone(),
                n: mine.len(),
                success: of("vma_lock_success"),
                under_mmap_lock: mean_of(mine, |s| Metric::Retries.value(s).ok()),
                causes: CAUSES.iter().map(|(name, _)| of(name)).collect(),
            });
        }
    }
    rows
}

/// A counter per million faults.
fn per_million(s: &Sample, name: &str) -> Option<f64> {
    Some(*s.counters.get(name)? as f64 * 1e6 / lock_path_faults(s).ok()? as f64)
}

/// Waits for `mmap_lock` where any variant had to wait in a row; both sides of all its variants then.
pub fn waits(samples: &[&Sample], variants: &[String]) -> Vec<WaitRow> {
    let mut rows = Vec::new();
    for ((workload, threads), by_variant) in cells(samples, variants) {
        let mut here = Vec::new();
        for (variant, mine) in variants.iter().zip(&by_variant) {
            for side in SIDES {
                let of = |end: &str| mean_of(mine, |s| per_million(s, &format!("mmap_lock_{side}_wait_{end}")));
                let bins: Option<Vec<f64>> = WAIT_BINS.iter().map(|(end, _)| of(end)).collect();
                let (Some(bins), Some(ns)) = (bins, of("ns")) else { continue };
                here.push(WaitRow {
                    workload: workload.into(),
                    threads,
                    variant: variant.clone(),
                    side,
                    n: mine.len(),
                    taken: mean_of(mine, |s| per_million(s, &format!("mmap_lock_{side}"))),
                    waits: bins.iter().sum(),
                    us: ns / 1000.0,
                    bins,
                });
            }
        }
        if here.iter().any(|r| r.waits > 0.0) {
            rows.append(&mut here);
        }
    }
    rows
}

/// [`WAKES`] where any variant counted one in a row.
pub fn wakes(samples: &[&Sample], variants: &[String]) -> Vec<WakeRow> {
    let mut rows = Vec::new();
    for ((workload, threads), by_variant) in cells(samples, variants) {
        let row = |(variant, mine): (&String, &Vec<&Sample>)| WakeRow {
            workload: workload.into(),
            threads,
            variant: variant.clone(),
            values: WAKES.iter().map(|(name, _)| mean_of(mine, |s| per_million(s, name))).collect(),
        };
        let mut here: Vec<WakeRow> = variants.iter().zip(&by_variant).filter(|(_, m)| !m.is_empty()).map(row).collect();
        if here.iter().any(|r| r.values.iter().flatten().any(|v| *v > 0.0)) {
            rows.append(&mut here);
        }
    }
    rows
}

/// Whether a counter belongs to the table of RCU and slab. All others that moved are in the machine-readable formats.
fn is_rcu_or_slab(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["rcu_", "kfree_rcu", "kvfree_rcu", "ksoftirqd_"];
    PREFIXES.iter().any(|p| name.starts_with(p)) || name.contains('.')
}

/// What the free policy is argued with in a mail.
pub fn is_headline(name: &str) -> bool {
    const RCU: [&str; 6] = [
        "rcu_callbacks_queued",
        "rcu_callbacks_invoked",
        "rcu_pending_high_water",
        "rcu_grace_periods",
        "rcu_blimit_floods",
        "ksoftirqd_wakeups",
    ];
    const CACHES: [&str; 3] = ["vm_area_struct", "vma_lock", "maple_node"];
    const ITEMS: [&str; 7] = [
        "alloc_fastpath",
        "alloc_slowpath",
        "free_fastpath",
        "free_slowpath",
        "alloc_slab",
        "list_lock",
        "slabs_high_water",
    ];
    RCU.contains(&name)
        || name
            .split_once('.')
            .is_some_and(|(c, i)| (CACHES.contains(&c) || c.starts_with("kmalloc")) && ITEMS.contains(&i))
}

/// Largest distance of any variant from the baseline, which comes first.
fn largest_change(r: &CounterRow) -> f64 {
    let base = r.values[0].unwrap_or(0.0);
    r.values[1..].iter().flatten().map(|v| (v - base).abs()).fold(0.0, f64::max)
}

/// Largest change first within a row of the main table; levels, which are in another unit, last.
fn sort(rows: &mut [CounterRow]) {
    rows.sort_by(|a, b| {
        let key = |r: &CounterRow| (r.workload.clone(), r.threads, is_level(&r.name));
        key(a).cmp(&key(b)).then(largest_change(b).total_cmp(&largest_change(a))).then(a.name.cmp(&b.name))
    });
}

/// Counters that moved between the baseline and any other variant, largest change first: those of RCU and slab, then the
/// rest but the lock path's, which have a table of their own.
pub fn counters(samples: &[&Sample], variants: &[String], options: &Options) -> (Vec<CounterRow>, Vec<CounterRow>) {
    if variants.first() != Some(&options.baseline) {
        return (Vec::new(), Vec::new());
    }
    struct Candidate {
        row: CounterRow,
        /// Per other variant: change beyond the floor, test, too few for it but apart.
        pairs: Vec<(bool, f64, bool)>,
    }
    let mut found = Vec::new();
    for ((workload, threads), by_variant) in cells(samples, variants) {
        let names: BTreeSet<&String> = by_variant.iter().flatten().flat_map(|s| s.counters.keys()).collect();
        for name in names.into_iter().filter(|n| !n.starts_with("vma_lock_") || n.contains('.')) {
            let metric = Metric::Counter(name.clone());
            let values: Vec<Vec<f64>> =
                by_variant.iter().map(|mine| mine.iter().filter_map(|s| metric.value(s).ok()).collect()).collect();
            let base = &values[0];
            let pairs = values[1..].iter().map(|new| moved(base, new, options.floor)).collect();
            let mean = |v: &Vec<f64>| (!v.is_empty()).then(|| amean(v));
            let row = CounterRow {
                workload: workload.into(),
                threads,
                name: name.clone(),
                values: values.iter().map(mean).collect(),
            };
            found.push(Candidate { row, pairs });
        }
    }
    let p: Vec<f64> = found.iter().flat_map(|c| c.pairs.iter().map(|(_, p, _)| *p)).collect();
    let mut adjusted = benjamini_hochberg(&p).into_iter();
    let mut out = (Vec::new(), Vec::new());
    for c in found {
        let mut keep = false;
        for (beyond, _, apart) in &c.pairs {
            let p = adjusted.next().unwrap_or(f64::NAN);
            keep |= *beyond && (p < options.alpha || *apart);
        }
        match (keep, is_rcu_or_slab(&c.row.name)) {
            (true, true) => out.0.push(c.row),
            (true, false) => out.1.push(c.row),
            (false, _) => {}
        }
    }
    sort(&mut out.0);
    sort(&mut out.1);
    out
}

fn moved(base: &[f64], new: &[f64], floor: f64) -> (bool, f64, bool) {
    let Some(test) = mann_whitney(base, new) else { return (false, f64::NAN, false) };
    let (a, b) = (amean(base), amean(new));
    let beyond = (b - a).abs() > floor * a.abs();
    let (low, high) = (range(base), range(new));
    let apart = base.len().min(new.len()) < 4 && (low.1 < high.0 || high.1 < low.0);
    (beyond, test.p, apart)
}

/// Events counted by hardware or kernel, per operation; and the reasons of those that were not.
pub fn pmu(samples: &[&Sample], variants: &[String]) -> (Vec<PmuRow>, Vec<String>) {
    use crate::report::record::PerfCell;
    let mut rows = Vec::new();
    let mut absent: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for s in samples {
        for (event, cell) in &s.perf {
            if let Err(why) = scaled(cell) {
                absent.entry(why).or_default().insert(event);
            }
        }
    }
    for ((workload, threads), by_variant) in cells(samples, variants) {
        let events: BTreeSet<&String> = by_variant.iter().flatten().flat_map(|s| s.perf.keys()).collect();
        for event in events {
            let per_op =
                |s: &Sample| Some(scaled(s.perf.get(event)?).ok()? / s.operations as f64).filter(|v| v.is_finite());
            let values: Vec<Option<f64>> = by_variant.iter().map(|mine| mean_of(mine, per_op)).collect();
            if values.iter().all(Option::is_none) {
                continue;
            }
            let share = |s: &&Sample| match s.perf.get(event) {
                Some(PerfCell::Counted { enabled, running, .. }) => *running as f64 / *enabled as f64,
                _ => f64::INFINITY,
            };
            let running_share = by_variant.iter().flatten().map(share).fold(f64::INFINITY, f64::min);
            rows.push(PmuRow { workload: workload.into(), threads, event: event.clone(), values, running_share });
        }
    }
    let sentence = |(why, events): (String, BTreeSet<&str>)| {
        format!("{}: {why}", events.into_iter().collect::<Vec<_>>().join(", "))
    };
    (rows, absent.into_iter().map(sentence).collect())
}

/// Lines moved per operation by struct, most moved first within a row.
pub fn lines(samples: &[&Sample], variants: &[String]) -> Vec<LineRow> {
    let mut rows = Vec::new();
    for ((workload, threads), by_variant) in cells(samples, variants) {
        let names: BTreeSet<&String> = by_variant.iter().flatten().flat_map(|s| s.lines.keys()).collect();
        let mut here: Vec<LineRow> = names
            .into_iter()
            .map(|name| LineRow {
                workload: workload.into(),
                threads,
                name: name.clone(),
                values: by_variant.iter().map(|mine| per_operation(mine, name)).collect(),
            })
            .collect();
        let most = |r: &LineRow| r.values.iter().flatten().map(|l| l.moved).fold(0.0, f64::max);
        here.sort_by(|a, b| most(b).total_cmp(&most(a)).then_with(|| a.name.cmp(&b.name)));
        rows.extend(here);
    }
    rows
}

/// Transfers of the struct `name` per operation, mean over samples; a struct that a sample does not name moved nothing.
pub fn per_operation(samples: &[&Sample], name: &str) -> Option<Lines> {
    let of = |pick: fn(&crate::report::record::LineMoves) -> u64| {
        mean_of(samples, |s| {
            let moves = s.lines.get(name).map_or(0, pick);
            (!s.lines.is_empty() && s.operations > 0).then(|| moves as f64 / s.operations as f64)
        })
    };
    Some(Lines { moved: of(|m| m.moved_near + m.moved_far)?, far: of(|m| m.moved_far)?, upgrades: of(|m| m.upgrades)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::port::counter_slots;
    use crate::report::synthetic::sample;

    #[test]
    fn the_port_counts_what_the_tables_ask_for() {
        let counted: BTreeSet<&str> = counter_slots().map(|(name, _)| name).collect();
        for (name, _) in CAUSES.iter().chain(&WAKES) {
            assert!(counted.contains(name), "{name}");
        }
        for side in SIDES {
            assert!(counted.contains(format!("mmap_lock_{side}").as_str()));
            for end in WAIT_BINS.iter().map(|b| b.0).chain(["ns"]) {
                assert!(counted.contains(format!("mmap_lock_{side}_wait_{end}").as_str()), "{end}");
            }
        }
    }

    #[test]
    fn waits_are_per_million_faults_and_absent_where_nobody_waited() {
        let [one, two] = [1, 2].map(|threads| sample("a", "brk1", threads, 0, 4_000_000.0));
        let rows = waits(&[&one, &two], &["a".into(), "b".into()]);
        assert_eq!(rows.len(), 2, "one thread waits for nobody, and nothing is known of b");
        assert!(rows.iter().map(|r| r.side).eq(SIDES) && rows.iter().all(|r| r.threads == 2 && r.n == 1));
        let faults = lock_path_faults(&two).expect("it has some") as f64 / 1e6;
        for r in &rows {
            assert!((r.waits - 2000.0 / faults).abs() < 1e-9 && (r.us - 18_000.0 / faults).abs() < 1e-9, "{r:?}");
            assert_eq!(r.bins.iter().filter(|n| **n > 0.0).count(), 2);
        }
        let woken = wakes(&[&one, &two], &["a".into()]);
        assert_eq!((woken.len(), woken[0].threads), (1, 2));
        assert!(woken[0].values[1].is_some() && woken[0].values[2].is_none(), "what was not counted is not zero");
    }

    #[test]
    fn ends_of_faults_add_up_to_a_million() {
        let s = sample("a", "brk1", 2, 0, 4_000_000.0);
        let r = &retries(&[&s], &["a".into()])[0];
        let (success, ended) = (r.success.expect("is counted"), r.under_mmap_lock.expect("is counted"));
        assert!(success > 900_000.0 && ended > 0.0 && (success + ended - 1e6).abs() < 1e-6, "{r:?}");
        for sum in ["vma_lock_retry", "vma_lock_abort"] {
            let of = |is: &dyn Fn(&str) -> bool| -> f64 {
                CAUSES.iter().zip(&r.causes).filter(|((n, _), _)| is(n)).filter_map(|(_, v)| *v).sum()
            };
            let (whole, parts) = (of(&|n| n == sum), of(&|n| is_cause_of(n, sum)));
            assert!(whole > 0.0 && (whole - parts).abs() < 1e-6, "{sum}: {whole} {parts}");
        }
        assert!(!is_cause_of("vma_lock_retry", "vma_lock_retry") && !is_cause_of("vma_lock_miss", "vma_lock_retry"));
    }
}
