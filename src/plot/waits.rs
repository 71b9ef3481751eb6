// SPDX-License-Identifier: GPL-2.0-only
//! Time waited for mmap_lock, readers and writers, by thread count.

use super::Data;
use super::stacked::{self, Panel, Words};
use crate::report::blocks::SIDES;

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    if b.waits.is_empty() {
        return Err("nobody waited for mmap_lock, or it was not counted, or no fault was taken".into());
    }
    let mut panels: Vec<Panel> = Vec::new();
    for r in &b.waits {
        if panels.last().is_none_or(|p| p.title != r.workload) {
            panels.push(Panel { title: r.workload.clone(), groups: Vec::new() });
        }
        let panel = panels.last_mut().expect("was just pushed");
        if panel.groups.last().is_none_or(|g| g.0 != r.threads) {
            panel.groups.push((r.threads, vec![None; b.variants.len()]));
        }
        let side = SIDES.iter().position(|s| *s == r.side);
        let bar = b.variants.iter().position(|v| *v == r.variant);
        if let (Some(g), Some(v), Some(side)) = (panel.groups.last_mut(), bar, side) {
            g.1[v].get_or_insert_with(|| vec![0.0; SIDES.len()])[side] = r.us / 1e6;
        }
    }
    let names: Vec<String> = SIDES.map(|s| format!("{s} lock")).into();
    let words = Words {
        title: "Time waited for mmap_lock",
        y: "us per fault",
        note: "All threads' waits together, mean over samples; a lock that was free counts as no wait.",
    };
    stacked::draw(data, &words, &names, &panels)
}
