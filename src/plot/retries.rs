// SPDX-License-Identifier: GPL-2.0-only
//! Faults that ended under mmap_lock, per million, by cause.
//!
//! Misses are not in the stack: after one the fault walks again and ends elsewhere.

use super::Data;
use super::stacked::{self, Panel, Words};
use crate::report::blocks::{CAUSES, RetryRow};

/// Whether a cause is an end of its own: not the sum of others, and not a miss.
fn is_end(name: &str) -> bool {
    name != "vma_lock_abort" && name != "vma_lock_miss"
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    // Where causes were not split, the sum stands for them.
    let split = b
        .retries
        .iter()
        .any(|r| CAUSES.iter().zip(&r.causes).any(|((n, _), v)| n.starts_with("vma_lock_abort_") && v.is_some()));
    let in_stack = |name: &str| if split { is_end(name) } else { name == "vma_lock_retry" || name == "vma_lock_abort" };
    let counted = |i: usize| b.retries.iter().any(|r| r.causes[i].is_some());
    let layers: Vec<usize> = (0..CAUSES.len()).filter(|&i| in_stack(CAUSES[i].0) && counted(i)).collect();
    if layers.is_empty() {
        return Err("the lock path was not counted, or no fault was taken".into());
    }
    let heights = |r: &RetryRow| -> Vec<f64> { layers.iter().map(|&i| r.causes[i].unwrap_or(0.0)).collect() };
    let mut panels: Vec<Panel> = Vec::new();
    for r in &b.retries {
        if panels.last().is_none_or(|p| p.title != r.workload) {
            panels.push(Panel { title: r.workload.clone(), groups: Vec::new() });
        }
        let panel = panels.last_mut().expect("was just pushed");
        if panel.groups.last().is_none_or(|g| g.0 != r.threads) {
            panel.groups.push((r.threads, vec![None; b.variants.len()]));
        }
        if let (Some(g), Some(v)) = (panel.groups.last_mut(), b.variants.iter().position(|v| *v == r.variant)) {
            g.1[v] = Some(heights(r));
        }
    }
    let names: Vec<String> = layers.iter().map(|&i| CAUSES[i].1.to_string()).collect();
    let words = Words {
        title: "Faults retried under mmap_lock, by cause",
        y: "per million faults",
        note: "Mean over samples; misses walk again and are not in the stack.",
    };
    stacked::draw(data, &words, &names, &panels)
}
