// SPDX-License-Identifier: GPL-2.0-only
//! How long grace periods last and callbacks wait, by HZ and quiescent-state policy: cumulative shares within the span.
//!
//! One figure for all blocks of a world, mode and host, drawn with the first: the kernels whose times differ stand in
//! blocks of their own. One variant is shown, the first that queues callbacks in every kernel, at the most threads;
//! samples of a cell are averaged quantile by quantile.

use super::Data;
use super::common::{Axes, Entry, chart, color, oops, page, shape, si};
use crate::report::record::{RcuTimes, Sample};
use plotters::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Quantiles of a record: 0, 2.5 .. 100 percent.
const STEPS: usize = 40;

fn kernel(s: &Sample) -> (u32, String) {
    let of = |k: &str| s.kconfig.get(k).cloned();
    (of("hz").and_then(|v| v.parse().ok()).unwrap_or(0), of("qs_policy").unwrap_or_default())
}

fn mean(samples: &[&Sample], pick: fn(&RcuTimes) -> &Vec<u64>) -> Option<Vec<(f64, f64)>> {
    let all: Vec<&Vec<u64>> = samples.iter().map(|s| pick(&s.rcu_times)).filter(|v| v.len() == STEPS + 1).collect();
    if all.is_empty() {
        return None;
    }
    let at = |q: usize| all.iter().map(|v| v[q] as f64 / 1e6).sum::<f64>() / all.len() as f64;
    Some((0..=STEPS).map(|q| (at(q), q as f64 / STEPS as f64)).collect())
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    let same = |s: &&Sample| {
        s.errors.is_empty()
            && (&s.world, &s.mode, &s.host.fingerprint) == (&b.world, &b.mode, &b.host.fingerprint)
            && !s.rcu_times.is_empty()
    };
    let all: Vec<&Sample> = data.all.iter().filter(same).collect();
    let kernels: BTreeSet<(u32, String)> = all.iter().map(|s| kernel(s)).collect();
    let Some(first) = kernels.first() else { return Err("no grace period was followed".into()) };
    let drawn_here = data.samples.iter().any(|s| kernel(s) == *first);
    if !drawn_here {
        return Err("drawn with the first block of this world, mode and host".into());
    }
    let mut panels = Vec::new();
    let workloads: BTreeSet<&str> = all.iter().map(|s| s.workload.as_str()).collect();
    let order: BTreeMap<&str, usize> = data
        .comparison
        .blocks
        .iter()
        .flat_map(|b| &b.variants)
        .rev()
        .enumerate()
        .map(|(i, v)| (v.as_str(), i))
        .collect();
    for workload in workloads {
        let here = || all.iter().copied().filter(|s| s.workload == workload);
        let threads = here().map(|s| s.threads).max().unwrap_or(1);
        let here = || here().filter(|s| s.threads == threads);
        let in_all = |v: &&str| {
            let with: BTreeSet<_> =
                here().filter(|s| s.variant == **v && s.rcu_times.callbacks > 0).map(kernel).collect();
            with.len()
        };
        let names: BTreeSet<&str> = here().map(|s| s.variant.as_str()).collect();
        let Some(variant) = names.into_iter().max_by_key(|v| (in_all(v), order.get(v).copied())) else { continue };
        let of = |k: &(u32, String)| here().filter(|s| s.variant == variant && kernel(s) == *k).collect::<Vec<_>>();
        type Pick = fn(&RcuTimes) -> &Vec<u64>;
        let kinds: [(&str, Pick); 2] =
            [("grace period", |t| &t.grace_period_ns), ("callback, queued to called", |t| &t.callback_ns)];
        for (name, pick) in kinds {
            let lines: Vec<(usize, Vec<(f64, f64)>)> =
                kernels.iter().enumerate().filter_map(|(i, k)| Some((i, mean(&of(k), pick)?))).collect();
            panels.push((format!("{workload}, {threads} threads, {variant}: {name}"), lines));
        }
    }
    let name = |(hz, policy): &(u32, String)| match (hz, policy.as_str()) {
        (0, _) => "HZ not recorded".to_string(),
        (hz, "") => format!("HZ {hz}"),
        (hz, policy) => format!("HZ {hz}, {}", policy.replace(" { permille: ", " ").replace(" }", "\u{2030}")),
    };
    let entries: Vec<Entry> =
        kernels.iter().enumerate().map(|(i, k)| Entry { name: name(k), color: color(i), shape: Some(i) }).collect();
    let note = "Cumulative share within the span; quantiles averaged over samples. Callbacks are followed one at a time \
                on each CPU.";
    // The caption names what all of them have in common.
    let mut block = b.clone();
    block.hidden.retain(|k, _| k != "hz" && k != "qs_policy");
    let data = &Data { block: &block, samples: Vec::new(), ..*data };
    page(data, "Grace periods and callback latency", note, &entries, panels.len(), |areas, _| {
        for ((title, lines), area) in panels.iter().zip(areas) {
            let most = lines.iter().filter_map(|l| l.1.last()).map(|p| p.0).fold(0.0, f64::max);
            let axes =
                Axes { title, x: "ms", y: "share", ticks: None, tick: &|t| si(t), value: &|v| format!("{v:.1}") };
            let mut chart = chart(area, &axes, (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }), (0.0, 1.05))?;
            for (i, points) in lines {
                chart.draw_series(LineSeries::new(points.iter().copied(), color(*i).stroke_width(2))).map_err(oops)?;
                let mark = |p: &(f64, f64)| EmptyElement::at(*p) + Polygon::new(shape(*i), color(*i).filled());
                chart.draw_series(points.iter().skip(4 + i % 8).step_by(8).map(mark)).map_err(oops)?;
            }
        }
        Ok(())
    })
}
