// SPDX-License-Identifier: GPL-2.0-only
//! When neighbours become one, and what anon_vmas have to do with it (vma-ops.md 5).

use super::*;
use crate::mm::mm_types::VM_NORESERVE;
use crate::mm::{vm_mmap, vm_munmap};

on_every_variant! {
    fn only_equal_flags_merge = flags;
    fn two_faulted_neighbours_do_not_become_one = two_faulted;
    fn a_faulted_one_merges_with_an_unfaulted_one = one_faulted;
    fn a_neighbours_anon_vma_is_shared = shared;
    fn a_survivor_takes_over_the_removed_ones_anon_vma = taken_over;
    fn a_split_clones_the_chain = split_clones;
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).unwrap();
}

fn flags<K: Kconfig<A = Native>>(slab: Allocator) {
    with_mm::<K>(slab, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1, RW);
        map(cpu, k, mm, 1, 1, VM_READ);
        map(cpu, k, mm, 2, 1, RW | VM_NORESERVE);
        map(cpu, k, mm, 3, 1, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 1), (1, 2), (2, 3), (3, 4)]);
        map(cpu, k, mm, 1, 2, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 4)]);
    });
}

fn two_faulted<K: Kconfig<A = Native>>(slab: Allocator) {
    with_mm::<K>(slab, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1, RW);
        map(cpu, k, mm, 2, 1, RW);
        write(cpu, k, mm, 0);
        write(cpu, k, mm, 2);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 2, "not adjacent: one each");
        map(cpu, k, mm, 1, 1, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 3)], "the hole joins the left one only");
    });
}

fn one_faulted<K: Kconfig<A = Native>>(slab: Allocator) {
    with_mm::<K>(slab, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1, RW);
        write(cpu, k, mm, 0);
        map(cpu, k, mm, 2, 1, RW);
        map(cpu, k, mm, 1, 1, RW);
        // 6.12 asks the neighbour's own chain to be a single link; an unfaulted neighbour with an unfaulted range is
        // fine, because then neither anon_vma is set.
        assert_eq!(layout(cpu, k, mm), [(0, 3)]);
        write(cpu, k, mm, 2);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 1);
    });
}

fn shared<K: Kconfig<A = Native>>(slab: Allocator) {
    with_mm::<K>(slab, |cpu, k, mm| {
        // Different only in access rights, so that they stay two but may share.
        map(cpu, k, mm, 0, 2, RW | VM_NORESERVE);
        map(cpu, k, mm, 2, 2, RW | VM_NORESERVE | crate::mm::mm_types::VM_EXEC);
        assert_eq!(layout(cpu, k, mm).len(), 2);
        write(cpu, k, mm, 0);
        write(cpu, k, mm, 2);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 1);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaChainAlloc), 2);
        vm_munmap(cpu, k, mm, BASE, 2 * P).unwrap();
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaFree), 0, "the other one still hangs on it");
        vm_munmap(cpu, k, mm, BASE + 2 * P, 2 * P).unwrap();
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaFree), 1);
    });
}

fn taken_over<K: Kconfig<A = Native>>(slab: Allocator) {
    with_mm::<K>(slab, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1, RW);
        map(cpu, k, mm, 2, 1, RW);
        write(cpu, k, mm, 2);
        map(cpu, k, mm, 1, 1, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 3)]);
        let links = cpu.counters.get(VmEvent::AnonVmaChainAlloc);
        assert_eq!(links, 2, "the survivor got a link of its own");
        write(cpu, k, mm, 0);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 1, "and needs no anon_vma of its own");
    });
}

fn split_clones<K: Kconfig<A = Native>>(slab: Allocator) {
    with_mm::<K>(slab, |cpu, k, mm| {
        map(cpu, k, mm, 0, 10, RW);
        write(cpu, k, mm, 0);
        let (a, f) = (cpu.counters.get(VmEvent::AnonVmaChainAlloc), cpu.counters.get(VmEvent::AnonVmaChainFree));
        vm_munmap(cpu, k, mm, BASE + 4 * P, P).unwrap();
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaChainAlloc) - a, 2, "one link a split");
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaChainFree) - f, 1);
        map(cpu, k, mm, 4, 1, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 10)], "both rests have the same anon_vma");
    });
}
