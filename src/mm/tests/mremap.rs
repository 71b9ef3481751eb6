// SPDX-License-Identifier: GPL-2.0-only
//! mremap: objects allocated and freed, which one survives, errors in both versions' order, bytes that move along, tables
//! that move whole, several VMAs at once, sources that stay, charges and limits (vma-ops.md 6, 14, 15, 18).

use super::*;
use crate::cpu::Errno;
use crate::mm::mm_types::{
    CAP_IPC_LOCK, RLIMIT_AS, RLIMIT_MEMLOCK, TASK_SIZE, VM_ACCOUNT, VM_DONTEXPAND, VM_LOCKED, VM_NORESERVE,
};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED};
use crate::mm::mremap::{MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE};
use crate::mm::util::{accounted_pages, vm_memory_committed};
use crate::mm::{MmRules, MmapArgs, do_mmap, sys_mlock, sys_mremap, vm_mmap, vm_munmap};

on_every_variant! {
    fn mremap_allocates_and_frees_as_the_kernel = golden_rows;
    fn bytes_move_along = contents;
    fn whole_tables_move = tables;
    fn tables_are_realigned_where_nothing_is_below = realign;
    fn mremap_errors_win_in_the_kernels_order = errors;
    fn only_later_kernels_move_several_vmas = multi;
    fn growing_in_place_or_moving = growing;
    fn shrinking_may_go_over_other_vmas = shrinking;
    fn a_source_that_stays = dontunmap;
    fn versions_differ_in_what_stays_behind = dontunmap_versions;
    fn charges_move_along = charges;
    fn locked_memory_moves_and_grows = locked;
    fn the_limits_of_each_version = limits;
    fn shared_memory_can_be_mapped_twice = shared;
    fn a_piece_that_comes_back_merges = out_and_back;
}

const MOVE: u32 = MREMAP_MAYMOVE | MREMAP_FIXED;

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).unwrap();
}

/// mremap in pages above [`BASE`].
fn remap<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    (p, n): (u64, u64),
    to_n: u64,
    flags: u32,
    to: u64,
) -> Result<u64, Errno> {
    sys_mremap(cpu, k, mm, BASE + p * P, n * P, to_n * P, flags, BASE + to * P).map(|a| a.wrapping_sub(BASE) / P)
}

/// Writes the page's number into it.
fn mark<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, pages: impl IntoIterator<Item = u64>) {
    for p in pages {
        write(cpu, k, mm, p);
        bytes::<K>(mm, p).unwrap()[..8].copy_from_slice(&p.to_le_bytes());
    }
}

/// What [`mark`] wrote into the page that is at `p` now.
fn marked<K: Kconfig<A = Native>>(mm: MmPtr<K>, p: u64) -> Option<u64> {
    bytes::<K>(mm, p).map(|b| u64::from_le_bytes(b[..8].try_into().unwrap()))
}

fn golden_rows<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let rows = |f: &dyn Fn()| alloc_free(cpu, f);
        let ok = |from, to_n, flags, to: u64, at: u64| {
            alloc_free(cpu, || assert_eq!(remap(cpu, k, mm, from, to_n, flags, to), Ok(at)))
        };
        map(cpu, k, mm, 0, 10, RW);
        assert_eq!(ok((0, 10), 10, 0, 0, 0), (0, 0), "same size");
        assert_eq!(ok((0, 10), 14, 0, 0, 0), (0, 0), "grow in place");
        map(cpu, k, mm, 16, 4, RW);
        assert_eq!(ok((0, 14), 16, 0, 0, 0), (0, 1), "grow and join the next");
        assert_eq!(layout(cpu, k, mm), [(0, 20)]);
        let before = vma_at(cpu, k, mm, 0).as_ptr();
        assert_eq!(ok((0, 20), 10, 0, 0, 0), (1, 1), "shrink");
        assert_ne!(vma_at(cpu, k, mm, 0).as_ptr(), before, "the original is freed");
        assert_eq!(ok((0, 10), 10, MOVE, 100, 100), (1, 1), "move a whole one");
        mark(cpu, k, mm, [100]);
        assert_eq!(ok((100, 3), 3, MOVE, 200, 200), (2, 1), "move a head");
        assert_eq!(ok((107, 3), 3, MOVE, 300, 300), (2, 1), "move a tail");
        assert_eq!(ok((104, 2), 2, MOVE, 400, 400), (3, 1), "move a middle");
        assert_eq!(layout(cpu, k, mm), [(103, 104), (106, 107), (200, 203), (300, 303), (400, 402)]);
        assert_eq!(ok((400, 2), 2, MOVE, 104, 104), (0, 2), "a middle back, joining both rests");
        assert_eq!(layout(cpu, k, mm), [(103, 107), (200, 203), (300, 303)]);
        assert_eq!(ok((300, 3), 3, MOVE, 107, 107), (0, 1), "a whole one, merging at the destination");
        assert_eq!(rows(&|| vm_munmap(cpu, k, mm, BASE, 1000 * P).unwrap()), (0, 2));
        // Unfaulted ones take the page offset of where they go.
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 50, 2, RW);
        assert_eq!(ok((50, 2), 2, MOVE, 2, 2), (0, 1), "unfaulted, merges");
        assert_eq!(layout(cpu, k, mm), [(0, 4)]);
        assert_eq!(ok((0, 4), 4, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, 60, 60), (1, 0), "the source stays");
        // Over something: what unmapping it costs comes on top.
        map(cpu, k, mm, 100, 10, RW);
        assert_eq!(ok((0, 4), 4, MOVE, 103, 103), (2, 1 + 2), "into the middle of its like: merges both sides");
        assert_eq!(layout(cpu, k, mm), [(60, 64), (100, 110)]);
        map(cpu, k, mm, 0, 4, VM_READ);
        assert_eq!(ok((0, 4), 4, MOVE, 103, 103), (2 + 1, 1 + 1), "into the middle of something else");
    });
}

fn contents<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        // Unaligned to each other, over the ends of tables on both sides.
        map(cpu, k, mm, 500, 600, RW);
        let pages = [500, 511, 512, 700, 1023, 1024, 1099];
        mark(cpu, k, mm, pages);
        do_user_addr_fault(cpu, k, mm, BASE + 600 * P, false).unwrap();
        let rss = crate::mm::memory::get_mm_counter_sum(cpu, k, mm, crate::mm::mm_types::MM_ANONPAGES);
        let faults = cpu.counters.get(VmEvent::Pgfault);
        assert_eq!(remap(cpu, k, mm, (500, 600), 600, MOVE, 5003), Ok(5003));
        for p in pages {
            assert_eq!(marked::<K>(mm, p - 500 + 5003), Some(p));
            assert_eq!(pte_lookup::<K>(mm, BASE + p * P), 0);
        }
        let zero = pte_lookup::<K>(mm, BASE + 5103 * P);
        assert_eq!(zero & (PTE_PFN_MASK | PAGE_RW), k.zero_page.as_ptr() as u64);
        assert_eq!(pte_lookup::<K>(mm, BASE + 5104 * P), 0, "what was empty stays empty");
        assert_eq!(cpu.counters.get(VmEvent::Pgfault), faults);
        assert_eq!(
            crate::mm::memory::get_mm_counter_sum(cpu, k, mm, crate::mm::mm_types::MM_ANONPAGES),
            rss,
            "no page came or went"
        );
        write(cpu, k, mm, 5104);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 1, "the copy has the source's anon_vma");
    });
}

fn tables<K: Kconfig<A = Native>>(boot: Boot) {
    const PMD: u64 = 512;
    const PUD: u64 = 512 * 512;
    with_mm::<K>(boot, |cpu, k, mm| {
        // Two whole PMDs and a bit.
        map(cpu, k, mm, PMD, 2 * PMD + 10, RW);
        let pages = [PMD, 2 * PMD - 1, 2 * PMD + 3, 3 * PMD + 9];
        mark(cpu, k, mm, pages);
        let table = |p: u64| {
            let addr = BASE + p * P;
            crate::mm::pgtable::table_above::<K>(mm, 1, addr)
                .and_then(|t| crate::mm::pgtable::pte_table(t, addr))
                .map(|t| t.as_ptr())
        };
        let (first, last) = (table(PMD), table(3 * PMD));
        let bytes_of_tables = mm.pgtables_bytes.load(Relaxed);
        assert_eq!(remap(cpu, k, mm, (PMD, 2 * PMD + 10), 2 * PMD + 10, MOVE, 20 * PMD), Ok(20 * PMD));
        assert_eq!(table(20 * PMD), first, "the table moved");
        assert!(
            first.is_some() && table(22 * PMD) != last && last.is_some(),
            "the last one is not full: its pages moved"
        );
        assert_eq!(table(PMD), None);
        for p in pages {
            assert_eq!(marked::<K>(mm, p + 19 * PMD), Some(p));
        }
        assert_eq!(mm.pgtables_bytes.load(Relaxed), bytes_of_tables, "as many tables as before");
        vm_munmap(cpu, k, mm, BASE, 30 * PMD * P).unwrap();
        // A whole PUD.
        map(cpu, k, mm, PUD, PUD + PMD, RW);
        let pages = [PUD + 5, PUD + 100 * PMD, 2 * PUD - 1, 2 * PUD + 7];
        mark(cpu, k, mm, pages);
        let (first, last) = (table(PUD), table(2 * PUD));
        assert_eq!(remap(cpu, k, mm, (PUD, PUD + PMD), PUD + PMD, MOVE, 6 * PUD), Ok(6 * PUD));
        assert_eq!((table(6 * PUD), table(7 * PUD)), (first, last));
        for p in pages {
            assert_eq!(marked::<K>(mm, p + 5 * PUD), Some(p));
        }
    });
}

fn realign<K: Kconfig<A = Native>>(boot: Boot) {
    const PMD: u64 = 512;
    with_mm::<K>(boot, |cpu, k, mm| {
        let table = |p: u64| {
            let addr = BASE + p * P;
            crate::mm::pgtable::table_above::<K>(mm, 1, addr)
                .and_then(|t| crate::mm::pgtable::pte_table(t, addr))
                .map(|t| t.as_ptr())
        };
        for neighbour in [false, true] {
            // Both begin 100 pages into a PMD; from there to its end is less than a table.
            map(cpu, k, mm, PMD + 100, PMD, RW);
            if neighbour {
                map(cpu, k, mm, PMD + 3, 1, VM_READ);
            }
            mark(cpu, k, mm, [PMD + 100, PMD + 400, 2 * PMD + 50]);
            let first = table(PMD);
            assert_eq!(remap(cpu, k, mm, (PMD + 100, PMD), PMD, MOVE, 9 * PMD + 100), Ok(9 * PMD + 100));
            assert_eq!(table(9 * PMD) == first, !neighbour, "a table moves whole if nothing else is under it");
            for p in [PMD + 100, PMD + 400, 2 * PMD + 50] {
                assert_eq!(marked::<K>(mm, p + 8 * PMD), Some(p));
            }
            vm_munmap(cpu, k, mm, BASE, 20 * PMD * P).unwrap();
        }
    });
}

fn errors<K: Kconfig<A = Native>>(boot: Boot) {
    for rules in [MmRules::V6_12, MmRules::V6_18, MmRules::V7_3] {
        with_config::<K>(&KernelConfig { rules, ..config(boot) }, |cpu, k, mm| {
            let later = rules.mremap_multi_vma;
            map(cpu, k, mm, 0, 4, RW);
            map(cpu, k, mm, 4, 2, VM_READ);
            let r = |addr, old, new, flags, to| sys_mremap(cpu, k, mm, addr, old, new, flags, to);
            let (inval, fault) = (Err(Errno::EINVAL), Err(Errno::EFAULT));
            assert_eq!(r(BASE, P, P, 8, 0), inval, "unknown flag");
            assert_eq!(r(BASE, P, P, MREMAP_FIXED, BASE + 9 * P), inval, "fixed without leave to move");
            assert_eq!(r(BASE, P, P, MREMAP_DONTUNMAP, BASE + 9 * P), inval);
            assert_eq!(r(BASE, 2 * P, P, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, 0), inval, "another size");
            let rounded = r(BASE, P, P - 1, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, BASE + 1);
            assert_eq!(rounded, inval, "of equal size or not, this place is none");
            assert_eq!(r(BASE + 1, P, P, 0, 0), inval, "unaligned");
            assert_eq!(r(BASE, P, 0, 0, 0), inval, "no new length");
            assert_eq!(r(BASE, P, u64::MAX, 0, 0), inval, "rounded to none");
            assert_eq!(r(BASE + 20 * P, P, P, 0, 0), fault, "nothing there");
            assert_eq!(r(BASE, P, TASK_SIZE + P, 0, 0), if later { inval } else { Err(Errno::ENOMEM) });
            // With an address: 6.12 looks for the source first, later kernels at the arguments.
            let first = |e| if later { inval } else { e };
            assert_eq!(r(BASE + 20 * P, P, P, MOVE, BASE + 1), first(fault));
            assert_eq!(r(BASE + 20 * P, P, P, MOVE, BASE + 20 * P), first(fault));
            assert_eq!(r(BASE, P, P, MOVE, BASE + 1), inval);
            assert_eq!(r(BASE, P, P, MOVE, TASK_SIZE), inval);
            assert_eq!(r(BASE, P, P, MOVE, u64::MAX - P + 1), inval);
            assert_eq!(r(BASE, 3 * P, 3 * P, MOVE, BASE + 2 * P), inval, "overlap");
            assert_eq!(r(BASE + 2 * P, 3 * P, P, MOVE, BASE + 4 * P), inval, "with the part that goes, too");
            assert_eq!(r(BASE, P, P, MOVE, P), Err(Errno::EPERM), "too low");
            assert_eq!(r(BASE, 0, P, MREMAP_MAYMOVE, 0), inval, "private memory is not mapped twice");
            assert_eq!(r(BASE, 5 * P, 6 * P, MREMAP_MAYMOVE, 0), fault, "beyond the end");
            assert_eq!(r(BASE, u64::MAX - BASE, P, 0, 0), inval, "a tail beyond all addresses");
            assert_eq!(r(BASE, 4 * P, 5 * P, 0, 0), Err(Errno::ENOMEM), "no room, no leave to move");
            assert_eq!(r(BASE, 2 * P, 3 * P, 0, 0), Err(Errno::ENOMEM), "not at the end");
            assert_eq!(r(BASE, 9 * P, 9 * P, 0, 0), Ok(BASE), "the same size is never looked at");
            assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 6)], "all of them changed nothing");
            // Too many VMAs for 6.12: it has cleared the place by then.
            map(cpu, k, mm, 50, 8, RW);
            map(cpu, k, mm, 4, 2, VM_READ);
            let grown = r(BASE, 5 * P, 8 * P, MOVE, BASE + 50 * P);
            assert_eq!(grown, fault);
            assert_eq!(layout(cpu, k, mm).len(), if later { 3 } else { 2 });
            // Mappings that may not grow.
            let v = vma_at(cpu, k, mm, 0);
            let flags = v.vm_flags().load(Relaxed);
            v.vm_flags().store(flags | VM_DONTEXPAND, Relaxed);
            assert_eq!(r(BASE, 4 * P, 6 * P, MREMAP_MAYMOVE, 0), fault);
            assert_eq!(r(BASE, P, P, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, 0), inval);
            v.vm_flags().store(flags | VM_LOCKED, Relaxed);
            mm.locked_vm.set(4);
            mm.rlim[RLIMIT_MEMLOCK].0.set(5 * P);
            assert_eq!(r(BASE, 4 * P, 6 * P, MREMAP_MAYMOVE, 0), Err(Errno::EAGAIN), "locked, and at the limit");
            v.vm_flags().store(flags, Relaxed);
            mm.locked_vm.set(0);
            mm.rlim[RLIMIT_AS].0.set((mm.total_vm.load(Relaxed) + 1) * P);
            assert_eq!(r(BASE, 4 * P, 6 * P, MREMAP_MAYMOVE, 0), Err(Errno::ENOMEM));
            assert_eq!(r(BASE, 2 * P, 2 * P, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, 0), Err(Errno::ENOMEM));
            assert_eq!(
                r(BASE, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 80 * P),
                Ok(BASE + 80 * P),
                "a move is none"
            );
        });
    }
}

fn multi<K: Kconfig<A = Native>>(boot: Boot) {
    for rules in [MmRules::V6_12, MmRules::V6_18] {
        with_config::<K>(&KernelConfig { rules, ..config(boot) }, |cpu, k, mm| {
            map(cpu, k, mm, 0, 4, RW);
            map(cpu, k, mm, 4, 2, VM_READ);
            map(cpu, k, mm, 8, 4, RW);
            mark(cpu, k, mm, [0, 3, 8, 9, 11]);
            let r = remap(cpu, k, mm, (2, 8), 8, MOVE, 102);
            if !rules.mremap_multi_vma {
                assert_eq!(r, Err(Errno::EFAULT));
                assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 6), (8, 12)]);
                return;
            }
            assert_eq!(r, Ok(102), "from inside one to inside another, with a hole");
            assert_eq!(layout(cpu, k, mm), [(0, 2), (10, 12), (102, 104), (104, 106), (108, 110)]);
            assert_eq!([103, 108, 109].map(|p| marked::<K>(mm, p)), [3, 8, 9].map(Some));
            assert_eq!((marked::<K>(mm, 0), marked::<K>(mm, 11)), (Some(0), Some(11)));
            assert_eq!(remap(cpu, k, mm, (5, 6), 6, MOVE, 200), Err(Errno::EFAULT), "begins in a hole");
            assert_eq!(remap(cpu, k, mm, (10, 6), 6, MOVE, 200), Ok(200), "may end in one");
            assert_eq!(remap(cpu, k, mm, (102, 9), 10, MREMAP_MAYMOVE, 0), Err(Errno::EFAULT), "growing is for one");
            // What came before the one that fails stays moved.
            crate::mm::sys_mseal(cpu, k, mm, BASE + 104 * P, P, 0).unwrap();
            assert_eq!(remap(cpu, k, mm, (102, 8), 8, MOVE, 302), Err(Errno::EPERM));
            assert_eq!(layout(cpu, k, mm)[..2], [(0, 2), (104, 105)]);
            assert_eq!(marked::<K>(mm, 303), Some(3));
        });
    }
}

fn growing<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        map(cpu, k, mm, 6, 1, VM_READ);
        mark(cpu, k, mm, 0..4);
        let v = vma_at(cpu, k, mm, 0).as_ptr();
        assert_eq!(remap(cpu, k, mm, (1, 3), 5, MREMAP_MAYMOVE, 0), Ok(1), "in place, from inside the VMA");
        assert_eq!((vma_at(cpu, k, mm, 5).as_ptr(), layout(cpu, k, mm)), (v, vec![(0, 6), (6, 7)]));
        let new = sys_mremap(cpu, k, mm, BASE + 2 * P, 4 * P, 9 * P, MREMAP_MAYMOVE, 7).unwrap();
        let at = new.wrapping_sub(BASE) / P;
        assert_eq!(layout(cpu, k, mm), [(0, 2), (6, 7), (at, at + 9)], "no room: the tail moves");
        assert_eq!([at, at + 1].map(|p| marked::<K>(mm, p)), [Some(2), Some(3)]);
        write(cpu, k, mm, at + 8);
        // The head of one: the rest is in the way.
        map(cpu, k, mm, 100, 4, RW);
        assert_eq!(remap(cpu, k, mm, (100, 2), 3, 0, 0), Err(Errno::ENOMEM));
        assert_eq!(remap(cpu, k, mm, (100, 2), 3, MOVE, 200), Ok(200), "and grows while it moves");
        assert_eq!(layout(cpu, k, mm)[2..4], [(102, 104), (200, 203)]);
        assert_eq!(remap(cpu, k, mm, (200, 3), 1, MOVE, 300), Ok(300), "or shrinks");
        assert_eq!(layout(cpu, k, mm)[2..4], [(102, 104), (300, 301)]);
    });
}

fn shrinking<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        map(cpu, k, mm, 4, 2, VM_READ);
        map(cpu, k, mm, 8, 4, RW);
        mark(cpu, k, mm, [0, 3, 8, 11]);
        let downgrades = cpu.counters.get(VmEvent::MmapLockDowngrade);
        assert_eq!(remap(cpu, k, mm, (1, 9), 1, 0, 0), Ok(1));
        assert_eq!(layout(cpu, k, mm), [(0, 2), (10, 12)]);
        assert_eq!(cpu.counters.get(VmEvent::MmapLockDowngrade), downgrades + 1);
        assert_eq!((marked::<K>(mm, 0), marked::<K>(mm, 3), marked::<K>(mm, 11)), (Some(0), None, Some(11)));
        assert_eq!(remap(cpu, k, mm, (0, 9), 2, 0, 0), Ok(0), "nothing but a hole goes");
    });
}

fn dontunmap<K: Kconfig<A = Native>>(boot: Boot) {
    const STAY: u32 = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 6, RW);
        mark(cpu, k, mm, 0..6);
        let source = vma_at(cpu, k, mm, 0);
        assert_eq!(remap(cpu, k, mm, (0, 6), 6, STAY | MREMAP_FIXED, 100), Ok(100));
        assert_eq!(layout(cpu, k, mm), [(0, 6), (100, 106)]);
        assert_eq!(vma_at(cpu, k, mm, 0).as_ptr(), source.as_ptr());
        assert_eq!((marked::<K>(mm, 0), marked::<K>(mm, 105)), (None, Some(5)));
        assert!(source.anon_vma().load(Relaxed).is_null(), "all of it moved: unfaulted");
        assert_eq!(source.vm_pgoff().load(Relaxed), BASE >> 12);
        write(cpu, k, mm, 0);
        assert_eq!(marked::<K>(mm, 0), Some(0), "an empty page, that is");
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 2);
        // A part of it: still faulted.
        assert_eq!(remap(cpu, k, mm, (102, 2), 2, STAY | MREMAP_FIXED, 200), Ok(200));
        assert_eq!(layout(cpu, k, mm), [(0, 6), (100, 106), (200, 202)], "no split");
        assert!(!vma_at(cpu, k, mm, 102).anon_vma().load(Relaxed).is_null());
        assert_eq!([101, 102, 104, 200].map(|p| marked::<K>(mm, p)), [Some(1), None, Some(4), Some(2)]);
        // As a hint, and where the kernel likes.
        assert_eq!(remap(cpu, k, mm, (200, 2), 2, STAY, 300), Ok(300));
        let r = sys_mremap(cpu, k, mm, BASE + 300 * P, 2 * P, 2 * P, STAY, 0).unwrap();
        assert_eq!(marked::<K>(mm, r.wrapping_sub(BASE) / P), Some(2));
        // Both are charged: counted by with_mm.
        // Locked: the source is split first, and no longer locked.
        map(cpu, k, mm, 400, 6, RW);
        mm.caps.set(CAP_IPC_LOCK);
        sys_mlock(cpu, k, mm, BASE + 400 * P, 6 * P, 0).unwrap();
        assert_eq!(mm.locked_vm.get(), 6);
        let rows = alloc_free(cpu, || {
            remap(cpu, k, mm, (402, 2), 2, STAY | MREMAP_FIXED, 500).unwrap();
        });
        assert_eq!(rows, (3, 0));
        let is_locked = |p| flags_at(cpu, k, mm, p) & VM_LOCKED != 0;
        assert_eq!([400, 402, 404, 500].map(is_locked), [true, false, true, true]);
        assert_eq!(mm.locked_vm.get(), 6, "as many as before");
    });
}

fn dontunmap_versions<K: Kconfig<A = Native>>(boot: Boot) {
    const STAY: u32 = MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED;
    for rules in [MmRules::V6_12, MmRules::V6_18, MmRules::V7_3] {
        with_config::<K>(&KernelConfig { rules, ..config(boot) }, |cpu, k, mm| {
            // Unfaulted, to the place beside it.
            map(cpu, k, mm, 0, 4, RW);
            assert_eq!(remap(cpu, k, mm, (0, 4), 4, STAY, 4), Ok(4));
            let merged = rules.dontunmap_merges_source;
            assert_eq!(layout(cpu, k, mm), if merged { vec![(0, 8)] } else { vec![(0, 4), (4, 8)] });
            // Faulted elsewhere and moved, so that its page offset is not its address; then left behind.
            map(cpu, k, mm, 20, 4, RW);
            mark(cpu, k, mm, [20]);
            assert_eq!(remap(cpu, k, mm, (20, 4), 4, MOVE, 30), Ok(30));
            assert_eq!(remap(cpu, k, mm, (30, 4), 4, STAY, 40), Ok(40));
            let v = vma_at(cpu, k, mm, 30);
            let odd = v.vm_pgoff().load(Relaxed) != (BASE >> 12) + 30;
            assert_eq!(odd, rules.dontunmap_keeps_pgoff);
            map(cpu, k, mm, 34, 2, RW);
            assert_eq!(layout(cpu, k, mm).contains(&(30, 36)), !odd, "an odd offset merges with nothing");
        });
    }
}

fn charges<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let check = || {
            let (accounted, committed) = (accounted_pages(cpu, k, mm), vm_memory_committed(cpu, k));
            assert_eq!(accounted as i64, committed);
            accounted
        };
        map(cpu, k, mm, 0, 10, RW);
        mark(cpu, k, mm, 0..10);
        assert_eq!(check(), 10);
        remap(cpu, k, mm, (4, 2), 2, MOVE, 100).unwrap();
        assert_eq!(check(), 10);
        for p in [0, 6, 100] {
            assert_ne!(flags_at(cpu, k, mm, p) & VM_ACCOUNT, 0, "both rests and what moved: {p}");
        }
        remap(cpu, k, mm, (100, 2), 5, MREMAP_MAYMOVE, 0).unwrap();
        assert_eq!(check(), 13, "grew in place");
        remap(cpu, k, mm, (0, 2), 6, MOVE, 200).unwrap();
        assert_eq!(check(), 17, "grew and moved");
        remap(cpu, k, mm, (200, 6), 1, MOVE, 300).unwrap();
        assert_eq!(check(), 12, "shrank and moved");
        remap(cpu, k, mm, (300, 1), 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0).unwrap();
        assert_eq!(check(), 13, "both count");
        map(cpu, k, mm, 400, 4, RW | VM_NORESERVE);
        remap(cpu, k, mm, (400, 4), 8, MOVE, 500).unwrap();
        assert_eq!(check(), 13, "not charged, not charged");
    });
}

fn locked<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        sys_mlock(cpu, k, mm, BASE, 4 * P, 0).unwrap();
        let there = |r: std::ops::Range<u64>| r.filter(|p| bytes::<K>(mm, *p).is_some()).count();
        assert_eq!(remap(cpu, k, mm, (0, 4), 6, 0, 0), Ok(0));
        assert_eq!((mm.locked_vm.get(), there(0..6)), (6, 6), "what came is there");
        assert_eq!(remap(cpu, k, mm, (0, 6), 9, MOVE, 50), Ok(50));
        assert_eq!((mm.locked_vm.get(), there(0..9), there(50..59)), (9, 0, 9));
        assert_eq!(remap(cpu, k, mm, (50, 9), 3, 0, 0), Ok(50));
        assert_eq!(mm.locked_vm.get(), 3);
        assert_eq!(remap(cpu, k, mm, (51, 1), 1, MOVE, 80), Ok(80));
        assert_eq!((mm.locked_vm.get(), layout(cpu, k, mm)), (3, vec![(50, 51), (52, 53), (80, 81)]));
    });
}

/// A call whose result is looked at.
type Asked<'a, K> = &'a dyn Fn(&Cpu<Native>, &Kernel<K>, MmPtr<K>) -> Result<u64, Errno>;

fn limits<K: Kconfig<A = Native>>(boot: Boot) {
    const MAX: i32 = 12;
    for rules in [MmRules::V6_12, MmRules::V6_18, MmRules::V7_3] {
        // What each call says with `count` VMAs.
        let with = |count: u64, call: Asked<'_, K>| {
            let mut r = Ok(0);
            with_config::<K>(&KernelConfig { rules, max_map_count: MAX, ..config(boot) }, |cpu, k, mm| {
                map(cpu, k, mm, 0, 3, RW);
                (1..count).for_each(|i| map(cpu, k, mm, 10 * i, 1, RW));
                assert_eq!(mm.map_count.get() as u64, count);
                r = call(cpu, k, mm);
            });
            r.is_ok()
        };
        let at_entry = rules.mremap_limit_at_entry;
        let last = |call: Asked<'_, K>| (4..=MAX as u64).filter(|&c| with(c, call)).max();
        let max = MAX as u64;
        // In place, the same size, smaller: only 7.3 looks.
        let never = Some(if at_entry { max - 4 } else { max });
        assert_eq!(last(&|cpu, k, mm| remap(cpu, k, mm, (0, 3), 5, 0, 0)), never);
        assert_eq!(last(&|cpu, k, mm| remap(cpu, k, mm, (0, 3), 3, 0, 0)), never);
        assert_eq!(last(&|cpu, k, mm| remap(cpu, k, mm, (0, 3), 1, 0, 0)), never);
        let moved = Some(max - 4);
        assert_eq!(last(&|cpu, k, mm| remap(cpu, k, mm, (0, 2), 4, MREMAP_MAYMOVE, 0)), moved);
        let to = Some(if at_entry { max - 4 } else { max - 6 });
        assert_eq!(last(&|cpu, k, mm| remap(cpu, k, mm, (0, 2), 2, MOVE, 1000)), to);
        let stay = Some(if at_entry { max - 5 } else { max - 6 });
        let dontunmap = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
        assert_eq!(last(&|cpu, k, mm| remap(cpu, k, mm, (0, 2), 2, dontunmap, 1000)), stay);
    }
}

fn shared<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
        do_mmap(cpu, k, mm, &MmapArgs { addr: BASE, len: 4 * P, prot: 3, flags, file: None, offset: 0 }).unwrap();
        mark(cpu, k, mm, [1]);
        assert_eq!(remap(cpu, k, mm, (0, 0), 4, MOVE, 100), Ok(100), "no old length: mapped twice");
        assert_eq!(layout(cpu, k, mm), [(0, 4), (100, 104)]);
        write(cpu, k, mm, 101);
        assert_eq!((marked::<K>(mm, 1), marked::<K>(mm, 101)), (Some(1), Some(1)), "the same page");
        assert_eq!(remap(cpu, k, mm, (100, 4), 4, MOVE, 200), Ok(200));
        assert_eq!(marked::<K>(mm, 201), Some(1));
        assert_eq!(remap(cpu, k, mm, (2, 2), 2, MOVE, 202), Ok(202), "over its like, and it merges");
        assert_eq!(layout(cpu, k, mm), [(0, 2), (200, 204)]);
    });
}

fn out_and_back<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 9, RW);
        mark(cpu, k, mm, 0..9);
        remap(cpu, k, mm, (3, 3), 3, MOVE, 50).unwrap();
        map(cpu, k, mm, 53, 3, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 3), (6, 9), (50, 53), (53, 56)], "its offset is that of where it was");
        remap(cpu, k, mm, (50, 3), 3, MOVE, 3).unwrap();
        assert_eq!(layout(cpu, k, mm), [(0, 9), (53, 56)]);
        (0..9).for_each(|p| assert_eq!(marked::<K>(mm, p), Some(p)));
    });
}
