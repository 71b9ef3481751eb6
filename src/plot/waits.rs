// SPDX-License-Identifier: GPL-2.0-only
//! Time waited for mmap_lock, readers and writers, by thread count.

use super::Data;
use super::stacked::{self, Words};
use crate::report::blocks::{SIDES, WaitRow};

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    if b.waits.is_empty() {
        return Err("nobody waited for mmap_lock, or it was not counted, or no fault was taken".into());
    }
    let bar = |r: &WaitRow| SIDES.iter().map(|s| if *s == r.side { r.us } else { 0.0 }).collect();
    let rows = b.waits.iter().map(|r| (r.workload.clone(), r.threads, r.variant.as_str(), bar(r)));
    let names: Vec<String> = SIDES.map(|s| format!("{s} lock")).into();
    let words = Words {
        title: "Time waited for mmap_lock",
        y: "us per million faults",
        note: "All threads' waits together, mean over samples; a lock that was free counts as no wait.",
    };
    stacked::draw(data, &words, &names, &stacked::panels(&b.variants, rows))
}
