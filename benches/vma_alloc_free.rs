// SPDX-License-Identifier: GPL-2.0-only
//! What does allocating and freeing a VMA cost under each free policy? brk1, an mm per CPU.

mod door;

fn main() {
    door::open("vma_alloc_free", &["brk1"]);
}
