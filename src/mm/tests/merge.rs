// SPDX-License-Identifier: GPL-2.0-only
//! When neighbours become one, and what anon_vmas have to do with it (vma-ops.md 5).

use super::*;
use crate::mm::mm_types::VM_NORESERVE;
use crate::mm::{sys_brk, vm_mmap, vm_munmap};

on_every_variant! {
    fn the_tree_is_what_a_table_of_pages_says = against_a_table;
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

/// Random maps, unmaps and breaks in a tree of some hundred VMAs, compared with a table of one entry a page after each:
/// without faults, VMAs are the longest runs of equal flags, so whatever a cursor that goes on where it stands gets
/// wrong at the edge of a node shows.
fn against_a_table<K: Kconfig<A = Native>>(slab: Allocator) {
    const PAGES: usize = 700;
    with_mm::<K>(slab, |cpu, k, mm| {
        let mut table = [0u64; PAGES];
        let base_brk = mm.start_brk.get();
        let mut rng = 7u64;
        let mut random = |n: u64| {
            rng = crate::cpu::splitmix64(rng);
            rng % n
        };
        let mut most = 0;
        for round in 0..6000 {
            // Mostly small ranges: many VMAs. Now and then a large one: stores over several nodes.
            let len = if random(64) == 0 { 1 + random(200) } else { 1 + random(3) };
            let at = random(PAGES as u64 - len);
            let flags = [VM_READ, RW, VM_READ | crate::mm::mm_types::VM_EXEC][random(3) as usize];
            match random(8) {
                0..5 => {
                    let r = vm_mmap(cpu, k, mm, Some(BASE + at * P), len * P, flags);
                    assert_eq!(r, Ok(BASE + at * P));
                    table[at as usize..(at + len) as usize].fill(flags);
                }
                5..7 => {
                    vm_munmap(cpu, k, mm, BASE + at * P, len * P).unwrap();
                    table[at as usize..(at + len) as usize].fill(0);
                }
                _ => {
                    let to = base_brk + at * P;
                    assert_eq!(sys_brk(cpu, k, mm, to), to);
                }
            }
            let mut want = Vec::new();
            let mut i = 0;
            while i < PAGES {
                let n = table[i..].iter().take_while(|f| **f == table[i]).count();
                if table[i] != 0 {
                    want.push((BASE + i as u64 * P, BASE + (i + n) as u64 * P, table[i]));
                }
                i += n;
            }
            if mm.brk.get() > base_brk {
                want.push((base_brk, mm.brk.get(), RW));
            }
            let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
            let mut got = Vec::new();
            while let Some(v) = vma_next::<K>(cpu, &mut mas) {
                let access = v.vm_flags().load(Relaxed) & crate::mm::mm_types::VM_ACCESS_FLAGS;
                got.push((v.vm_start().load(Relaxed), v.vm_end().load(Relaxed), access));
            }
            assert_eq!(got, want, "round {round}: {len} pages at {at}");
            most = most.max(got.len());
        }
        assert!(most > 150, "a tree of three levels: {most} VMAs");
    });
}
