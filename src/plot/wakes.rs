// SPDX-License-Identifier: GPL-2.0-only
//! Writers that waited for the readers of a VMA, and wake-ups, by thread count: two panels a workload, because the one
//! may be a thousandth of the other.
//!
//! Sleeps are not drawn: they are in the table of `faultline compare`, and a wake-up ends most of them.

use super::Data;
use super::stacked::{self, Panel, Words};
use crate::report::blocks::{WAKES, WakeRow};

/// Counters of a panel, out of [`WAKES`], and its name.
const PANELS: [(&str, &[&str]); 2] = [
    ("writers wait for readers of a VMA", &["vma_lock_writer_wait", "vma_lock_detach_wait"]),
    ("wake-ups", &["vma_lock_reader_wake", "rwsem_wake_reader", "rwsem_wake_writer"]),
];

/// The value of a counter of [`WAKES`].
fn value(r: &WakeRow, counter: &str) -> Option<f64> {
    let at = WAKES.iter().position(|(name, _)| *name == counter)?;
    r.values[at]
}

/// All panels, the two of a workload side by side; one in which nothing happened is left out.
fn panels(rows: &[WakeRow], variants: &[String]) -> Vec<Panel> {
    let mut out = Vec::new();
    for rows in rows.chunk_by(|a, b| a.workload == b.workload) {
        for (name, counters) in PANELS {
            // Every panel has all layers, so that colours mean the same; the other panel's stay flat.
            let height = |r: &WakeRow, c: &str| if counters.contains(&c) { value(r, c).unwrap_or(0.0) } else { 0.0 };
            let bar = |r: &WakeRow| PANELS.iter().flat_map(|(_, all)| *all).map(|c| height(r, c)).collect::<Vec<_>>();
            let counted = rows.iter().filter(|r| counters.iter().any(|c| value(r, c).is_some()));
            if counted.clone().flat_map(bar).any(|h| h > 0.0) {
                let rows = counted.map(|r| (format!("{}: {name}", r.workload), r.threads, r.variant.as_str(), bar(r)));
                out.extend(stacked::panels(variants, rows));
            }
        }
    }
    out
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    let panels = panels(&b.wakes, &b.variants);
    if panels.is_empty() {
        return Err("no writer waited for a reader and nobody was woken, or it was not counted".into());
    }
    let heading = |c: &&str| WAKES.iter().find(|(name, _)| name == c).map(|(_, heading)| heading.to_string());
    let names: Vec<String> = PANELS.iter().flat_map(|(_, counters)| *counters).filter_map(heading).collect();
    let words = Words {
        title: "Writers that wait for readers of a VMA, and wake-ups",
        y: "per million faults",
        note: "Mean over samples. Readers and writers woken are those of every rwsem: mmap_lock, and the locks of VMAs that \
               are one.",
    };
    stacked::draw(data, &words, &names, &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_has_a_panel_for_what_happened_and_none_for_what_did_not() {
        let row = |workload: &str, variant: &str, values: [Option<f64>; WAKES.len()]| WakeRow {
            workload: workload.into(),
            threads: 2,
            variant: variant.into(),
            values: values.into(),
        };
        let rows = [
            row("brk1", "a", [Some(3.0), Some(1.0), Some(2.0), Some(9.0), Some(9.0), Some(0.0), Some(5.0)]),
            row("brk1", "b", [None; WAKES.len()]),
            row("churn", "a", [Some(0.0), None, None, Some(9.0), Some(9.0), Some(0.0), Some(4.0)]),
        ];
        let p = panels(&rows, &["a".into(), "b".into()]);
        let titles: Vec<&str> = p.iter().map(|p| p.title.as_str()).collect();
        assert_eq!(titles, ["brk1: writers wait for readers of a VMA", "brk1: wake-ups", "churn: wake-ups"]);
        assert_eq!(p[0].groups, [(2, vec![Some(vec![3.0, 1.0, 0.0, 0.0, 0.0]), None])], "nothing is known of b");
        assert_eq!(p[1].groups, [(2, vec![Some(vec![0.0, 0.0, 2.0, 0.0, 5.0]), None])]);
        assert!(PANELS.iter().flat_map(|(_, c)| *c).all(|c| WAKES.iter().any(|(name, _)| name == c)));
    }
}
