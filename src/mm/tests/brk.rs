// SPDX-License-Identifier: GPL-2.0-only
//! The heap (vma-ops.md 9).

use super::*;
use crate::mm::mm_types::START_BRK;
use crate::mm::{sys_brk, vm_mmap};

on_every_variant! {
    fn the_heap_grows_and_shrinks_with_the_expected_objects = objects;
    fn a_foreign_mapping_stops_the_heap = stopped;
}

fn objects<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let brk = |to: u64| alloc_free(cpu, || assert_eq!(sys_brk(cpu, k, mm, to), to));
        assert_eq!(sys_brk(cpu, k, mm, 0), START_BRK, "below the start: reports");
        assert_eq!(brk(START_BRK + 10), (1, 0), "first growth");
        assert_eq!(brk(START_BRK + 20), (0, 0), "same page");
        assert_eq!(brk(START_BRK + 8 * P), (0, 0), "extends");
        do_user_addr_fault(cpu, k, mm, START_BRK + 7 * P, true).unwrap();
        assert_eq!(brk(START_BRK + 9 * P), (0, 0), "extends a faulted one");
        assert_eq!(brk(START_BRK + 4 * P), (1, 1), "shrinks by a part");
        check_tree(cpu, k, mm);
        assert_eq!(brk(START_BRK), (0, 1), "shrinks to nothing");
        assert_eq!(mm.map_count.get(), 0);
        assert_eq!(brk(START_BRK + P), (1, 0));
        assert_eq!(sys_brk(cpu, k, mm, u64::MAX), START_BRK + P);
    });
}

fn stopped<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(START_BRK + 4 * P), P, RW).unwrap();
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + 4 * P), START_BRK, "a page must stay free");
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + 3 * P), START_BRK + 3 * P);
    });
}
