// SPDX-License-Identifier: GPL-2.0-only
//! Walks over a range of page tables, for callers that look at entries and change them in place [mm/pagewalk.c, 6.12].
//!
//! dup: tables that do not exist are stepped over with their whole span; nothing is held between two tables. custom: the
//! caller gets a whole table at a time and takes its lock itself, as most of the kernel's callbacks for a PMD do. stub:
//! huge pages, callbacks for holes.
//!
//! INVARIANT: tables do not go away under a walk: the caller holds `mmap_lock`, or the lock of the VMA that overlaps
//! the range.

use super::kconfig::{Kconfig, MmPtr};
use super::pgtable::{PAGE_PRESENT, PageTable, SHIFT, TOP, pgd, table_of};
use crate::arch::Acquire;
use crate::arch::arena::KRef;

/// `walk_page_range()`: calls `f(table, from, to)` for each PTE table that `[start, end)` touches, in order of addresses.
pub(super) fn walk_page_range<K: Kconfig>(
    mm: MmPtr<K>,
    start: u64,
    end: u64,
    mut f: impl FnMut(KRef<PageTable<K::A>>, u64, u64),
) {
    let mut addr = start;
    while addr < end {
        let (mut t, mut level) = (pgd::<K>(mm), TOP);
        let missing = loop {
            if level == 0 {
                break None;
            }
            // ORDER: acquire stands for the address dependency; meets table_install().
            let e = t.entry(level, addr).load(Acquire);
            if e & PAGE_PRESENT == 0 {
                break Some(level);
            }
            t = table_of(e);
            level -= 1;
        };
        let span = 1u64 << SHIFT[missing.unwrap_or(1)];
        let stop = ((addr & !(span - 1)) + span).min(end);
        if missing.is_none() {
            f(t, addr, stop);
        }
        addr = stop;
    }
}
