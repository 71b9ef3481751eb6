// SPDX-License-Identifier: GPL-2.0-only
//! RCU callbacks that wait and memory that slabs hold, over time: one sample a variant, at the largest thread count.
//!
//! One trial is shown as it went, not an average: averaging sawteeth of different phase would flatten them.

use super::Data;
use super::common::{Axes, chart, color, oops, page, shape, si, variants, workloads};
use crate::report::record::Sample;
use plotters::prelude::*;

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    let with: Vec<&Sample> = data.samples.iter().copied().filter(|s| s.series.t_ns.len() > 1).collect();
    if with.is_empty() {
        return Err("no sample carries a time series".into());
    }
    let names: Vec<&str> = workloads(b).into_iter().filter(|w| with.iter().any(|s| s.workload == *w)).collect();
    let note = "One trial a variant, the first, at the most threads that were measured; a mark every few points.";
    page(data, "Backlog over time", note, &variants(b), 2 * names.len(), |areas, _| {
        for (workload, pair) in names.iter().zip(areas.chunks(2)) {
            let here = || with.iter().copied().filter(|s| s.workload == *workload);
            let threads = here().map(|s| s.threads).max().unwrap_or(1);
            let first = |v: &String| {
                here().filter(|s| s.threads == threads && s.variant == *v).min_by_key(|s| (s.trial, s.order))
            };
            let chosen: Vec<(usize, &Sample)> =
                b.variants.iter().enumerate().filter_map(|(i, v)| Some((i, first(v)?))).collect();
            let end = chosen.iter().filter_map(|(_, s)| s.series.t_ns.last()).max().copied().unwrap_or(1);
            type Pick = fn(&Sample) -> (&Vec<u64>, f64);
            let kinds: [(&str, &str, Pick); 2] = [
                ("RCU callbacks waiting", "callbacks", |s| (&s.series.rcu_pending, 1.0)),
                ("memory held by slabs", "MiB", |s| (&s.series.slab_pages, 256.0)),
            ];
            for ((name, unit, pick), area) in kinds.into_iter().zip(pair) {
                let values = |s: &Sample| {
                    let (v, unit) = pick(s);
                    v.iter().map(|n| *n as f64 / unit).collect::<Vec<_>>()
                };
                let top = chosen.iter().flat_map(|(_, s)| values(s)).fold(0.0, f64::max);
                let top = if top > 0.0 { top } else { 1.0 };
                let title = format!("{workload}, {threads} threads: {name}");
                let axes = Axes {
                    title: &title,
                    x: "time since start (ms)",
                    y: unit,
                    ticks: None,
                    tick: &|t| si(t),
                    value: &si,
                };
                let mut chart = chart(area, &axes, (0.0, end.max(1) as f64 / 1e6), (0.0, top * 1.08))?;
                for (i, s) in &chosen {
                    let points: Vec<(f64, f64)> =
                        s.series.t_ns.iter().zip(values(s)).map(|(t, v)| (*t as f64 / 1e6, v)).collect();
                    let every = points.len().div_ceil(8);
                    chart
                        .draw_series(LineSeries::new(points.iter().copied(), color(*i).stroke_width(2)))
                        .map_err(oops)?;
                    let mark = |p: &(f64, f64)| EmptyElement::at(*p) + Polygon::new(shape(*i), color(*i).filled());
                    let marks = points.iter().skip(i * every / 4).step_by(every);
                    chart.draw_series(marks.map(mark)).map_err(oops)?;
                }
            }
        }
        Ok(())
    })
}
