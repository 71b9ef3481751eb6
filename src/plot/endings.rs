// SPDX-License-Identifier: GPL-2.0-only
//! How faults ended and how often a walk was made again, by thread count: under the VMA's lock, under mmap_lock, and misses,
//! in a panel of their own, because they may be a thousandth of the other.
//!
//! Why a fault ended under mmap_lock is the figure `retries`.

use super::Data;
use super::stacked::{self, Panel, Words};
use crate::report::blocks::{CAUSES, RetryRow};

/// Layers, and the name of the panel that each is in.
const LAYERS: [(&str, &str); 3] = [
    ("under the VMA's lock", "how faults ended"),
    ("under mmap_lock", "how faults ended"),
    ("misses", "walks made again"),
];

/// The value of layer `i`, where it was counted.
fn value(r: &RetryRow, i: usize) -> Option<f64> {
    let miss = || CAUSES.iter().position(|(name, _)| *name == "vma_lock_miss").and_then(|at| r.causes[at]);
    [r.success, r.under_mmap_lock, miss()][i]
}

/// All panels, the two of a workload side by side; one in which nothing happened is left out.
fn panels(rows: &[RetryRow], variants: &[String]) -> Vec<Panel> {
    let mut out = Vec::new();
    for rows in rows.chunk_by(|a, b| a.workload == b.workload) {
        for name in ["how faults ended", "walks made again"] {
            let here = |i: usize| LAYERS[i].1 == name;
            // Every panel has all layers, so that colours mean the same; the other panel's stay flat.
            let bar = |r: &RetryRow| {
                let height = |i| if here(i) { value(r, i).unwrap_or(0.0) } else { 0.0 };
                (0..LAYERS.len()).map(height).collect::<Vec<_>>()
            };
            let counted = rows.iter().filter(|r| (0..LAYERS.len()).any(|i| here(i) && value(r, i).is_some()));
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
    let panels = panels(&b.retries, &b.variants);
    if panels.is_empty() {
        return Err("how faults ended was not counted, or no fault was taken".into());
    }
    let names: Vec<String> = LAYERS.iter().map(|(name, _)| name.to_string()).collect();
    let words = Words {
        title: "How faults ended, and walks made again",
        y: "per million faults",
        note: "Mean over samples. A miss is a VMA that was another one when it was locked: the fault walks again and is \
               counted where it ends.",
    };
    stacked::draw(data, &words, &names, &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_have_a_panel_of_their_own_where_there_are_any() {
        let row = |workload: &str, variant: &str, success: Option<f64>, miss: Option<f64>| RetryRow {
            workload: workload.into(),
            threads: 2,
            variant: variant.into(),
            n: 1,
            success,
            under_mmap_lock: success.map(|s| 1e6 - s),
            causes: CAUSES.iter().map(|(name, _)| if *name == "vma_lock_miss" { miss } else { None }).collect(),
        };
        let rows =
            [row("a", "x", Some(9e5), Some(3.0)), row("a", "y", None, None), row("b", "x", Some(1e6), Some(0.0))];
        let p = panels(&rows, &["x".into(), "y".into()]);
        let titles: Vec<&str> = p.iter().map(|p| p.title.as_str()).collect();
        assert_eq!(titles, ["a: how faults ended", "a: walks made again", "b: how faults ended"]);
        assert_eq!(p[0].groups, [(2, vec![Some(vec![9e5, 1e5, 0.0]), None])], "nothing is known of y");
        assert_eq!(p[1].groups, [(2, vec![Some(vec![0.0, 0.0, 3.0]), None])]);
    }
}
