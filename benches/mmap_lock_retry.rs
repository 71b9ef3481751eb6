// SPDX-License-Identifier: GPL-2.0-only
//! How often do faults fall back to mmap_lock while writers map and unmap, and what does it cost?

mod door;

fn main() {
    door::open("mmap_lock_retry", &["fault_vs_unmap"]);
}
