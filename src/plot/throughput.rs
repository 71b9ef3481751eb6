// SPDX-License-Identifier: GPL-2.0-only
//! Throughput by threads, a panel a workload: harmonic mean with its interval.
//!
//! The interval is Student's on the reciprocals, turned back: that of the harmonic mean itself. It shows the spread
//! between samples of one side; whether two sides differ is the ratio figure's and the table's business.

use super::Data;
use super::common::{
    Axes, bar, chart, color, log2, oops, page, shape, si, thread_range, thread_ticks, variants, workloads,
};
use crate::measure::stat::normal::t_interval;
use plotters::prelude::*;

/// A point of a line: place, value, interval.
type Point = (f64, f64, Option<(f64, f64)>);

/// Interval of the harmonic mean.
fn interval(values: &[f64], confidence: f64) -> Option<(f64, f64)> {
    let inverse: Vec<f64> = values.iter().map(|v| 1.0 / v).collect();
    let i = t_interval(&inverse, confidence)?;
    (i.low > 0.0).then(|| (1.0 / i.high, 1.0 / i.low))
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let (c, b) = (data.comparison, data.block);
    let names: Vec<&str> = workloads(b)
        .into_iter()
        .filter(|w| b.rows.iter().any(|r| r.workload == *w && r.sides.iter().any(|s| s.point.is_finite())))
        .collect();
    if names.is_empty() {
        return Err("no sample has a throughput".into());
    }
    let note = format!("Points: harmonic mean; bars: {:.0}% interval of it (t, on reciprocals).", 100.0 * c.confidence);
    page(data, "Throughput by threads", &note, &variants(b), names.len(), |areas, _| {
        for (workload, area) in names.iter().zip(areas) {
            let rows: Vec<_> = b.rows.iter().filter(|r| r.workload == *workload).collect();
            let threads: Vec<u32> = rows.iter().map(|r| r.threads).collect();
            let line = |v: &String| -> Vec<Point> {
                let side = |r: &&crate::report::compare::Row| {
                    let s = r.sides.iter().find(|s| s.variant == *v).filter(|s| s.point.is_finite())?;
                    Some((log2(r.threads), s.point, interval(&s.values, c.confidence)))
                };
                rows.iter().filter_map(side).collect()
            };
            let lines: Vec<Vec<Point>> = b.variants.iter().map(line).collect();
            let top = lines.iter().flatten().map(|p| p.2.map_or(p.1, |i| i.1)).fold(0.0, f64::max) * 1.08;
            let y = format!("{} ({})", c.metric, c.unit);
            let axes = Axes {
                title: workload,
                x: "threads",
                y: &y,
                ticks: Some(thread_ticks(&threads)),
                tick: &|t| format!("{:.0}", t.exp2()),
                value: &si,
            };
            let x = thread_range(&threads);
            let cap = (x.1 - x.0) * 0.008;
            let mut chart = chart(area, &axes, x, (0.0, top.max(1e-9)))?;
            for (i, line) in lines.iter().enumerate() {
                let points = line.iter().map(|p| (p.0, p.1));
                chart.draw_series(LineSeries::new(points.clone(), color(i).stroke_width(2))).map_err(oops)?;
                let bars = line.iter().filter_map(|p| p.2.map(|(low, high)| bar(p.0, low, high, cap, color(i))));
                chart.draw_series(bars).map_err(oops)?;
                let mark = |p| EmptyElement::at(p) + Polygon::new(shape(i), color(i).filled());
                chart.draw_series(points.map(mark)).map_err(oops)?;
            }
        }
        Ok(())
    })
}
