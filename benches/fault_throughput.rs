// SPDX-License-Identifier: GPL-2.0-only
//! How many faults a second, by protocol and threads? One VMA for all, and short-lived mappings.

mod door;

fn main() {
    door::open("fault_throughput", &["anon_fault", "mmap_churn"]);
}
