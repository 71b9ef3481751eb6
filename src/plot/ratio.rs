// SPDX-License-Identifier: GPL-2.0-only
//! Change against the baseline by threads, a panel a workload: ratio of geometric means with its interval, over the
//! band of what counts as noise.

use super::Data;
use super::common::{
    Axes, Entry, bar, chart, color, log2, oops, page, shape, thread_range, thread_ticks, variants, workloads,
};
use crate::report::compare::Row;
use plotters::prelude::*;

const BAND: RGBColor = RGBColor(222, 222, 222);

/// Place, change in percent, and the ends of its interval.
type Point = (f64, f64, f64, f64);

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let (c, b) = (data.comparison, data.block);
    let ratio = |r: &Row, v: &String| r.sides.iter().find(|s| s.variant == *v)?.change.as_ref()?.ratio;
    let names: Vec<&str> = workloads(b)
        .into_iter()
        .filter(|w| b.rows.iter().any(|r| r.workload == *w && b.variants.iter().any(|v| ratio(r, v).is_some())))
        .collect();
    if names.is_empty() {
        return Err(format!(
            "nothing has an interval against the baseline {} (two samples a side at least)",
            c.baseline
        ));
    }
    let mut entries: Vec<Entry> = variants(b).into_iter().skip(1).collect();
    entries.push(Entry { name: "noise".into(), color: BAND, shape: None });
    let title = format!("Change of {} against {}", c.metric, super::common::variants(b)[0].name);
    let note = format!(
        "Points: ratio of geometric means; bars: its {:.0}% interval. Band: the larger of {:.1}% and the baseline against itself.",
        100.0 * c.confidence,
        100.0 * c.floor
    );
    page(data, &title, &note, &entries, names.len(), |areas, _| {
        for (workload, area) in names.iter().zip(areas) {
            let rows: Vec<_> = b.rows.iter().filter(|r| r.workload == *workload).collect();
            let threads: Vec<u32> = rows.iter().map(|r| r.threads).collect();
            let others = b.variants.len().saturating_sub(1).max(1);
            let percent = |r: f64| 100.0 * (r - 1.0);
            let line = |i: usize, v: &String| -> Vec<Point> {
                // Side by side, so that bars of several variants do not hide each other.
                let aside = (i as f64 - (others as f64 + 1.0) / 2.0) * 0.3 / others as f64;
                let point = |r: &&Row| {
                    let e = ratio(r, v)?;
                    Some((log2(r.threads) + aside, percent(e.point), percent(e.low), percent(e.high)))
                };
                rows.iter().filter_map(point).collect()
            };
            let lines: Vec<(usize, Vec<Point>)> =
                b.variants.iter().enumerate().skip(1).map(|(i, v)| (i, line(i, v))).collect();
            let noise = rows.iter().map(|r| 100.0 * r.noise).fold(0.0, f64::max);
            let points = || lines.iter().flat_map(|l| &l.1);
            let high = points().map(|p| p.3).fold(noise, f64::max);
            let low = points().map(|p| p.2).fold(-noise, f64::min);
            let margin = (high - low) * 0.08;
            let y = format!("change of {} (%)", c.metric);
            let axes = Axes {
                title: workload,
                x: "threads",
                y: &y,
                ticks: Some(thread_ticks(&threads)),
                tick: &|t| format!("{:.0}", t.exp2()),
                value: &|v| if v.abs() < 1e-9 { "0".into() } else { format!("{v:+.1}") },
            };
            let x = thread_range(&threads);
            let mut chart = chart(area, &axes, x, (low - margin, high + margin))?;
            let bands = rows.iter().map(|r| {
                let (t, n) = (log2(r.threads), 100.0 * r.noise);
                Rectangle::new([(t - 0.25, -n), (t + 0.25, n)], BAND.filled())
            });
            chart.draw_series(bands).map_err(oops)?;
            chart.draw_series([PathElement::new(vec![(x.0, 0.0), (x.1, 0.0)], BLACK)]).map_err(oops)?;
            for (i, line) in lines {
                let cap = (x.1 - x.0) * 0.008;
                chart.draw_series(line.iter().map(|p| bar(p.0, p.2, p.3, cap, color(i)))).map_err(oops)?;
                let mark = |p: &Point| EmptyElement::at((p.0, p.1)) + Polygon::new(shape(i), color(i).filled());
                chart.draw_series(line.iter().map(mark)).map_err(oops)?;
            }
        }
        Ok(())
    })
}
