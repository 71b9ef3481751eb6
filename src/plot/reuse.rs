// SPDX-License-Identifier: GPL-2.0-only
//! Object reuse: the share of hand-outs whose object was freed at most so many allocator events of the CPU before.
//!
//! Bins of all samples are added. What was freed on another CPU, or not seen freed, has no distance, so a line may end
//! below one.

use super::Data;
use super::common::{Axes, chart, color, oops, page, shape, si, variants, workloads};
use crate::report::record::{ReuseCache, Sample};
use plotters::prelude::*;

const CACHES: [&str; 2] = ["vm_area_struct", "maple_node"];

/// The cache that serves VMAs goes by its size where they come from kmalloc.
fn cache_of<'a>(s: &'a Sample, name: &str) -> Option<&'a ReuseCache> {
    let kmalloc = || s.reuse.caches.iter().find(|(n, _)| n.starts_with("kmalloc")).map(|(_, c)| c);
    s.reuse.caches.get(name).or_else(|| if name == CACHES[0] { kmalloc() } else { None })
}

/// Distance at the upper edge of a bin, as log2.
fn edge(bin: usize) -> f64 {
    ((1u64 << (bin + 1)) as f64 - 1.0).log2()
}

/// Cumulative share of hand-outs by distance.
fn curve(samples: &[&Sample], cache: &str) -> Option<Vec<(f64, f64)>> {
    let all: Vec<&ReuseCache> =
        samples.iter().filter(|s| s.reuse.lost.is_none_or(|n| n == 0)).filter_map(|s| cache_of(s, cache)).collect();
    let handed: u64 = all.iter().map(|c| c.allocs).sum();
    let len = all.iter().map(|c| c.bins.len()).max().filter(|n| *n > 0)?;
    let mut sum = 0;
    let share = |bin: usize| {
        sum += all.iter().filter_map(|c| c.bins.get(bin)).sum::<u64>();
        (edge(bin), sum as f64 / handed.max(1) as f64)
    };
    Some((0..len).map(share).collect())
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    let mut panels = Vec::new();
    for workload in workloads(b) {
        let here = || data.samples.iter().copied().filter(|s| s.workload == workload && !s.reuse.caches.is_empty());
        let Some(threads) = here().map(|s| s.threads).max() else { continue };
        for cache in CACHES {
            let of = |v: &String| {
                let mine: Vec<&Sample> = here().filter(|s| s.threads == threads && s.variant == *v).collect();
                curve(&mine, cache)
            };
            let lines: Vec<(usize, Vec<(f64, f64)>)> =
                b.variants.iter().enumerate().filter_map(|(i, v)| Some((i, of(v)?))).collect();
            panels.push((workload, threads, cache, lines));
        }
    }
    // A workload that hands nothing out again has no panels.
    let shown: Vec<&str> = panels.iter().filter(|p| !p.3.is_empty()).map(|p| p.0).collect();
    panels.retain(|p| shown.contains(&p.0));
    if panels.is_empty() {
        return Err("no object was seen to come back".into());
    }
    let last = panels.iter().flat_map(|p| &p.3).filter_map(|l| l.1.last()).map(|p| p.0).fold(1.0, f64::max);
    let note = "1: freed by the event before. Freed on another CPU, or not seen freed: in no distance, so a line may end \
                below 1. VMAs of kmalloc are those of its class. At the most threads that were measured; samples added up.";
    page(data, "Object reuse: events from free to next hand-out", note, &variants(b), panels.len(), |areas, _| {
        for ((workload, threads, cache, lines), area) in panels.iter().zip(areas) {
            let title = if lines.is_empty() {
                format!("{workload}, {threads} threads: {cache}, none seen to come back")
            } else {
                format!("{workload}, {threads} threads: {cache}")
            };
            let ticks: Vec<f64> =
                (0..=last.ceil() as i32).step_by(if last > 12.0 { 2 } else { 1 }).map(f64::from).collect();
            let axes = Axes {
                title: &title,
                x: "allocator events of the CPU since the free",
                y: "share of hand-outs",
                ticks: Some(ticks),
                tick: &|t| si(t.exp2()),
                value: &|v| format!("{v:.1}"),
            };
            let mut chart = chart(area, &axes, (-0.3, last.ceil() + 0.3), (0.0, 1.05))?;
            for (nth, (i, points)) in lines.iter().enumerate() {
                // The later the thinner, so that lines that coincide are all seen.
                let width = 2 + 2 * (lines.len() - 1 - nth).min(4) as u32;
                let end = points.last().map(|p| (last.ceil(), p.1));
                // Nothing below the first distance; level after the last.
                let line = std::iter::once((0.0, 0.0)).filter(|_| points[0].1 == 0.0).chain(points.iter().copied());
                chart.draw_series(LineSeries::new(line.chain(end), color(*i).stroke_width(width))).map_err(oops)?;
                let every = 3;
                let mark = |p: &(f64, f64)| EmptyElement::at(*p) + Polygon::new(shape(*i), color(*i).filled());
                let from = (i % every).min(points.len() - 1);
                chart.draw_series(points.iter().skip(from).step_by(every).map(mark)).map_err(oops)?;
            }
        }
        Ok(())
    })
}
