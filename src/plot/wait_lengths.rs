// SPDX-License-Identifier: GPL-2.0-only
//! How long the waits for mmap_lock were, by thread count: a panel a workload and side, a layer a length.
//!
//! Their sum in time is the figure `waits`.

use super::Data;
use super::stacked::{self, Panel, Words};
use crate::report::blocks::{SIDES, WAIT_BINS, WaitRow};

/// All panels; a side that nobody waited on has none.
fn panels(rows: &[WaitRow], variants: &[String]) -> Vec<Panel> {
    let mut out = Vec::new();
    for rows in rows.chunk_by(|a, b| a.workload == b.workload) {
        for side in SIDES {
            let mine = rows.iter().filter(|r| r.side == side && r.waits > 0.0);
            let bars = mine.map(|r| (format!("{}: {side}", r.workload), r.threads, r.variant.as_str(), r.bins.clone()));
            out.extend(stacked::panels(variants, bars));
        }
    }
    out
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    let panels = panels(&b.waits, &b.variants);
    if panels.is_empty() {
        return Err("nobody waited for mmap_lock, or it was not counted, or no fault was taken".into());
    }
    let names: Vec<String> = WAIT_BINS.iter().map(|(_, heading)| heading.to_string()).collect();
    let words = Words {
        title: "Waits for mmap_lock by length",
        y: "waits per million faults",
        note: "Mean over samples; a lock that was free counts as no wait.",
    };
    stacked::draw(data, &words, &names, &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_has_a_panel_with_a_layer_for_each_length() {
        let row = |workload: &str, side: &'static str, at: usize| {
            let bins: Vec<f64> = (0..WAIT_BINS.len()).map(|i| if i == at { 5.0 } else { 0.0 }).collect();
            let (workload, variant) = (workload.into(), "x".into());
            let waits = bins.iter().sum();
            WaitRow { workload, threads: 4, variant, side, n: 1, taken: None, waits, us: 1.0, bins }
        };
        // No length: nobody waited.
        let none = WAIT_BINS.len();
        let rows = [row("a", SIDES[0], 0), row("a", SIDES[1], 8), row("b", SIDES[0], none), row("b", SIDES[1], 2)];
        let p = panels(&rows, &["x".into()]);
        let titles: Vec<String> = p.iter().map(|p| p.title.clone()).collect();
        let title = |w: &str, side: &str| format!("{w}: {side}");
        assert_eq!(titles, [title("a", SIDES[0]), title("a", SIDES[1]), title("b", SIDES[1])]);
        let heights = |p: &Panel| p.groups[0].1[0].clone().expect("measured");
        assert_eq!((heights(&p[0])[0], heights(&p[1])[8], heights(&p[2])[2]), (5.0, 5.0, 5.0));
        assert!(p.iter().all(|p| heights(p).iter().sum::<f64>() == 5.0));
    }
}
