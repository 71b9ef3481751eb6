// SPDX-License-Identifier: GPL-2.0-only
//! When neighbours become one, and what anon_vmas have to do with it (vma-ops.md 5).

use super::*;
use crate::mm::file::{FileSpec, file_open, fput};
use crate::mm::mm_types::{VM_ACCOUNT, VM_DONTDUMP, VM_MAYBE_GUARD, VM_NORESERVE};
use crate::mm::mmap::{MAP_FIXED, MAP_PRIVATE};
use crate::mm::util::vm_acct_memory;
use crate::mm::vma::copy_vma;
use crate::mm::{vm_mmap, vm_munmap};

on_every_variant! {
    fn only_equal_flags_merge = flags;
    fn two_faulted_neighbours_do_not_become_one = two_faulted;
    fn a_faulted_one_merges_with_an_unfaulted_one = one_faulted;
    fn a_neighbours_anon_vma_is_shared = shared;
    fn a_survivor_takes_over_the_removed_ones_anon_vma = taken_over;
    fn a_split_clones_the_chain = split_clones;
    fn a_faulted_middle_and_its_unfaulted_neighbours = faulted_middle;
    fn a_survivor_of_three_gets_the_one_anon_vma = one_of_three;
    fn sticky_flags_do_not_keep_apart = sticky;
    fn a_copy_merges_where_it_goes = copies;
    fn the_number_at_creation_counts_for_private_files = anon_pgoff;
    fn words_that_differ_keep_apart = words;
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).unwrap();
}

fn flags<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1, RW);
        map(cpu, k, mm, 1, 1, VM_READ);
        map(cpu, k, mm, 2, 1, RW | VM_NORESERVE);
        map(cpu, k, mm, 3, 1, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 1), (1, 2), (2, 3), (3, 4)]);
        map(cpu, k, mm, 1, 2, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 4)]);
    });
}

fn two_faulted<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1, RW);
        map(cpu, k, mm, 2, 1, RW);
        write(cpu, k, mm, 0);
        write(cpu, k, mm, 2);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 2, "not adjacent: one each");
        map(cpu, k, mm, 1, 1, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 3)], "the hole joins the left one only");
    });
}

fn one_faulted<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
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

fn shared<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
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

fn taken_over<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
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

fn split_clones<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
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

fn dump<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64) {
    modify(cpu, k, mm, (p, n), |f| f ^ VM_DONTDUMP).unwrap();
}

fn faulted_middle<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let newer = k.rules.merge_faulted_with_unfaulted;
        // Left unfaulted, the changed one faulted.
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 2, 2, RW | VM_NORESERVE);
        write(cpu, k, mm, 3);
        let change = |p: u64| modify(cpu, k, mm, (p, 2), |f| f ^ VM_NORESERVE ^ VM_ACCOUNT);
        vm_acct_memory(cpu, k, 2);
        change(2).unwrap();
        assert_eq!(layout(cpu, k, mm).len(), if newer { 1 } else { 2 }, "6.12 looks for one link in an empty chain");
        if newer {
            assert!(!vma_at(cpu, k, mm, 0).anon_vma().load(Relaxed).is_null(), "the survivor took it over");
        }
        // Left faulted, the changed one not.
        map(cpu, k, mm, 10, 2, RW);
        write(cpu, k, mm, 10);
        map(cpu, k, mm, 12, 2, RW | VM_NORESERVE);
        vm_acct_memory(cpu, k, 2);
        change(12).unwrap();
        assert_eq!(layout(cpu, k, mm).last(), Some(&(10, 14)));
    });
}

fn one_of_three<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        // Unfaulted, unfaulted and different, faulted: all three become the left one, with a chain.
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 4, 2, RW);
        write(cpu, k, mm, 4);
        map(cpu, k, mm, 2, 2, RW | VM_EXEC);
        modify(cpu, k, mm, (2, 2), |f| f & !VM_EXEC).unwrap();
        assert_eq!(layout(cpu, k, mm), [(0, 6)]);
        assert!(!vma_at(cpu, k, mm, 0).anon_vma().load(Relaxed).is_null());
        // Two faulted apart: the one between joins the left one, and the right one stays.
        map(cpu, k, mm, 10, 2, RW);
        map(cpu, k, mm, 14, 2, RW);
        write(cpu, k, mm, 10);
        write(cpu, k, mm, 14);
        map(cpu, k, mm, 12, 2, VM_READ);
        modify(cpu, k, mm, (12, 2), |f| f | VM_WRITE | VM_ACCOUNT).unwrap();
        vm_acct_memory(cpu, k, 2);
        assert_eq!(layout(cpu, k, mm)[1..], [(10, 14), (14, 16)]);
        // A border that moves takes the anon_vma along.
        map(cpu, k, mm, 20, 4, RW);
        map(cpu, k, mm, 24, 4, RW | VM_EXEC);
        write(cpu, k, mm, 26);
        modify(cpu, k, mm, (24, 2), |f| f & !VM_EXEC).unwrap();
        let moved = k.rules.merge_faulted_with_unfaulted;
        let want = if moved { vec![(20, 26), (26, 28)] } else { vec![(20, 24), (24, 26), (26, 28)] };
        assert_eq!(layout(cpu, k, mm)[3..], want);
        assert_eq!(!vma_at(cpu, k, mm, 20).anon_vma().load(Relaxed).is_null(), moved);
    });
}

fn sticky<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 4, 2, RW);
        let v = vma_at(cpu, k, mm, 4);
        v.vm_flags().store(v.vm_flags().load(Relaxed) | VM_MAYBE_GUARD, Relaxed);
        map(cpu, k, mm, 2, 2, RW);
        if !k.rules.maybe_guard_flag {
            assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 6)]);
            return;
        }
        assert_eq!(layout(cpu, k, mm), [(0, 6)]);
        let guard = |p: u64| vma_at(cpu, k, mm, p).vm_flags().load(Relaxed) & VM_MAYBE_GUARD != 0;
        assert!(guard(0), "the survivor keeps it");
        dump(cpu, k, mm, 2, 2);
        assert!(guard(0) && guard(2) && guard(4), "and its pieces");
        dump(cpu, k, mm, 2, 2);
        assert_eq!(layout(cpu, k, mm), [(0, 6)]);
    });
}

/// `copy_vma()` of pages `[p, p + n)` to page `to`.
fn copy<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    (p, n, to): (u64, u64, u64),
    keep: bool,
) -> (VmaPtr<K>, VmaPtr<K>) {
    mmap_write_lock(cpu, &mm);
    let mut source = vma_at(cpu, k, mm, p);
    K::Lock::vma_start_write(cpu, source);
    let pgoff = source.vm_pgoff().load(Relaxed) + p - (source.vm_start().load(Relaxed) - BASE) / P;
    let (new, _) = copy_vma(cpu, k, mm, &mut source, BASE + to * P, n * P, pgoff, keep).expect("memory and room");
    let flags = new.vm_flags().load(Relaxed);
    vm_stat_account::<K>(mm, flags, n as i64);
    mmap_write_unlock(cpu, &mm);
    (source, new)
}

fn copies<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW | VM_NORESERVE);
        // Unfaulted: the copy has the page offset of its place, so it merges there, with its source as well.
        let (source, new) = copy(cpu, k, mm, (0, 4, 4), false);
        assert_eq!((source.as_ptr(), layout(cpu, k, mm)), (new.as_ptr(), vec![(0, 8)]));
        let (source, new) = copy(cpu, k, mm, (0, 2, 8), true);
        let merged = k.rules.dontunmap_merges_source;
        assert_eq!(source.as_ptr() == new.as_ptr(), merged, "a source that stays");
        vm_munmap(cpu, k, mm, BASE, 16 * P).unwrap();
        // Faulted: it keeps its offset and merges with nobody there, but with what it was cut from.
        map(cpu, k, mm, 0, 4, RW | VM_NORESERVE);
        write(cpu, k, mm, 1);
        map(cpu, k, mm, 20, 2, RW | VM_NORESERVE);
        copy(cpu, k, mm, (0, 2, 22), false);
        assert_eq!(layout(cpu, k, mm), [(0, 4), (20, 22), (22, 24)]);
        vm_munmap(cpu, k, mm, BASE, 2 * P).unwrap();
        let (_, new) = copy(cpu, k, mm, (22, 2, 0), false);
        assert_eq!(layout(cpu, k, mm), [(0, 4), (20, 22), (22, 24)], "back where it came from");
        assert_eq!(new.as_ptr(), vma_at(cpu, k, mm, 3).as_ptr());
    });
}

fn anon_pgoff<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let f = file_open(cpu, k, &FileSpec::memfd(64 * P)).unwrap();
        let map = |p: u64, n: u64, page: u64| {
            let flags = MAP_PRIVATE | MAP_FIXED;
            map_args(cpu, k, mm, (BASE + p * P, n * P), 1, flags, Some((f, page))).unwrap();
        };
        map(0, 4, 0);
        map(4, 2, 4);
        assert_eq!(layout(cpu, k, mm), [(0, 6)], "created side by side");
        dump(cpu, k, mm, 2, 2);
        dump(cpu, k, mm, 2, 2);
        assert_eq!(layout(cpu, k, mm), [(0, 6)]);
        map(20, 2, 6);
        // A VMA that was moved and is faulted brings the number of where it was made.
        let v = vma_at(cpu, k, mm, 20);
        assert_eq!(v.anon_pgoff().load(Relaxed), BASE / P + 20);
        v.anon_pgoff().store(BASE / P + 90, Relaxed);
        map(22, 2, 8);
        let apart = k.rules.anon_pgoff;
        assert_eq!(layout(cpu, k, mm)[1..], if apart { vec![(20, 22), (22, 24)] } else { vec![(20, 24)] });
        fput(cpu, k, f);
    });
}

fn words<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        for which in 0..3 {
            let word = |p: u64| {
                let v = vma_at(cpu, k, mm, p);
                [v.anon_name(), v.vm_policy(), v.userfaultfd_ctx()].map(std::ptr::from_ref)[which]
            };
            map(cpu, k, mm, 0, 2, RW);
            // SAFETY: a word of a VMA that stays.
            unsafe { (*word(0)).store(5, Relaxed) };
            map(cpu, k, mm, 2, 2, RW);
            assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 4)], "word {which}");
            // SAFETY: as above.
            unsafe { (*word(0)).store(0, Relaxed) };
            dump(cpu, k, mm, 0, 2);
            dump(cpu, k, mm, 0, 2);
            assert_eq!(layout(cpu, k, mm), [(0, 4)]);
            vm_munmap(cpu, k, mm, BASE, 4 * P).unwrap();
        }
    });
}
