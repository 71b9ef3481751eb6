// SPDX-License-Identifier: GPL-2.0-only
//! mprotect: objects allocated and freed and which one is which (vma-ops.md 14), errors, what counts as charged and when
//! that keeps VMAs apart (5.5), limits (15), and the entries.

use super::*;
use crate::cpu::Errno;
use crate::mm::mm_types::{VM_ACCOUNT, VM_EXEC, VM_LOCKED, VM_MAYWRITE, VM_NORESERVE, VM_SEALED};
use crate::mm::mmap::{MAP_FIXED, MAP_SHARED};
use crate::mm::mprotect::{PROT_GROWSDOWN, PROT_GROWSUP, PROT_SEM};
use crate::mm::pgtable::{PAGE_DIRTY, PAGE_USER};
use crate::mm::vma::vma_lookup;
use crate::mm::{
    FaultError, FileKind, FileSpec, MmapArgs, do_mmap, dup_mm, file_open, fput, sys_mprotect, vm_mmap, vm_munmap,
};

on_every_variant! {
    fn mprotect_allocates_and_frees_as_the_kernel = golden_rows;
    fn mprotect_keeps_the_original_as_the_changed_part = identity;
    fn mprotect_errors_win_in_the_kernels_order = errors;
    fn a_hole_leaves_earlier_vmas_changed = holes;
    fn what_is_charged_keeps_vmas_apart = account;
    fn no_change_does_not_merge_but_a_change_and_back_does = change_and_back;
    fn each_split_counts_against_the_limit = limit;
    fn entries_follow_the_rights = entries;
    fn the_zero_page_is_never_writable = zero_page;
    fn a_thread_stack_splits_in_two_places = thread_stacks;
    fn locked_memory_that_becomes_writable_is_there = locked;
    fn what_a_child_has_too_is_not_writable_without_a_fault = after_fork;
    fn shared_pages_are_writable_once_dirty = shared;
}

const R: u32 = 1;
const RWX: u32 = 7;

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).unwrap();
}

fn protect<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    p: u64,
    n: u64,
    prot: u32,
) -> Result<(), Errno> {
    sys_mprotect(cpu, k, mm, BASE + p * P, n * P, prot)
}

fn golden_rows<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let mp = |p, n, prot| alloc_free(cpu, || protect(cpu, k, mm, p, n, prot).unwrap());
        map(cpu, k, mm, 0, 30, RW);
        assert_eq!(mp(0, 30, R), (0, 0), "whole, no merge");
        assert_eq!(mp(0, 30, 3), (0, 0), "and back");
        assert_eq!(mp(0, 10, R), (1, 0), "head");
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 30)]);
        assert_eq!(mp(20, 10, R), (1, 0), "tail");
        assert_eq!(mp(14, 2, R), (2, 0), "middle");
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 14), (14, 16), (16, 20), (20, 30)]);
        assert_eq!(mp(10, 2, R), (0, 0), "the head goes to the left one");
        assert_eq!(mp(18, 2, R), (0, 0), "the tail goes to the right one");
        assert_eq!(layout(cpu, k, mm), [(0, 12), (12, 14), (14, 16), (16, 18), (18, 30)]);
        assert_eq!(mp(12, 2, R), (0, 2), "whole, merges both sides");
        assert_eq!(mp(16, 2, RWX), (0, 0), "whole, fits nobody");
        assert_eq!(layout(cpu, k, mm), [(0, 16), (16, 18), (18, 30)]);
        assert_eq!(mp(10, 6, RWX), (0, 0), "the tail goes to the right one");
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 18), (18, 30)]);
        assert_eq!(mp(0, 10, 3), (0, 0));
        assert_eq!(mp(10, 8, 3), (0, 1), "whole, merges one side");
        assert_eq!(layout(cpu, k, mm), [(0, 18), (18, 30)]);
        vm_munmap(cpu, k, mm, BASE, 30 * P).unwrap();
        // Neighbours that fit nothing, and five between them that all become equal.
        map(cpu, k, mm, 0, 2, RW | VM_NORESERVE);
        (0..5).for_each(|i| map(cpu, k, mm, 2 + 2 * i, 2, if i % 2 == 0 { RW } else { RW | VM_EXEC }));
        map(cpu, k, mm, 12, 2, RW | VM_NORESERVE);
        assert_eq!(mm.map_count.get(), 7);
        assert_eq!(mp(2, 10, R), (0, 4), "over five that all become equal");
        assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 12), (12, 14)]);
    });
}

fn identity<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 30, RW);
        let original = vma_at(cpu, k, mm, 0);
        let is = |p| vma_at(cpu, k, mm, p).as_ptr() == original.as_ptr();
        protect(cpu, k, mm, 0, 20, R).unwrap();
        assert!(is(0) && !is(20), "head");
        protect(cpu, k, mm, 10, 10, RWX).unwrap();
        assert!(is(10) && !is(0), "tail");
        protect(cpu, k, mm, 14, 2, R).unwrap();
        assert!(is(14) && !is(10) && !is(16), "middle");
        // The left one survives both merges.
        let left = vma_at(cpu, k, mm, 10).as_ptr();
        protect(cpu, k, mm, 14, 2, RWX).unwrap();
        assert_eq!(vma_at(cpu, k, mm, 19).as_ptr(), left);
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 20), (20, 30)]);
    });
}

fn errors<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        let mp = |start, len, prot| sys_mprotect(cpu, k, mm, start, len, prot);
        assert_eq!(mp(BASE + 1, P, R), Err(Errno::EINVAL));
        assert_eq!(mp(BASE, P, PROT_GROWSDOWN | PROT_GROWSUP), Err(Errno::EINVAL));
        assert_eq!(mp(BASE + 1, 0, PROT_GROWSDOWN), Err(Errno::EINVAL), "unaligned comes before no length");
        assert_eq!(mp(BASE, 0, 0x80), Ok(()), "no length comes before unknown bits");
        assert_eq!(mp(BASE, u64::MAX, 0x80), Err(Errno::ENOMEM), "rounded to none comes before unknown bits");
        assert_eq!(mp(BASE, u64::MAX - BASE, R), Err(Errno::ENOMEM));
        assert_eq!(mp(BASE, P, 0x80), Err(Errno::EINVAL));
        assert_eq!(mp(BASE - P, 2 * P, R), Err(Errno::ENOMEM), "begins in a hole");
        assert_eq!(mp(BASE + 4 * P, P, R), Err(Errno::ENOMEM), "nothing there");
        assert_eq!(mp(BASE, P, R | PROT_GROWSDOWN), Err(Errno::EINVAL), "no stack");
        assert_eq!(mp(BASE - P, P, R | PROT_GROWSDOWN), Err(Errno::ENOMEM));
        assert_eq!(mp(BASE, P, R | PROT_GROWSUP), Err(Errno::EINVAL));
        assert_eq!(flags_at(cpu, k, mm, 0) & RW, RW, "all of them changed nothing");
        assert_eq!(mp(BASE, P - 1, R | PROT_SEM), Ok(()), "rounded up");
        assert_eq!(layout(cpu, k, mm), [(0, 1), (1, 4)]);
        // What may never become writable, and what is sealed.
        let v = vma_at(cpu, k, mm, 1);
        let flags = v.vm_flags().load(Relaxed);
        v.vm_flags().store(flags & !VM_MAYWRITE, Relaxed);
        assert_eq!(mp(BASE, 2 * P, 3), Err(Errno::EACCES));
        assert_eq!(flags_at(cpu, k, mm, 0) & RW, RW, "the first one is changed by then");
        v.vm_flags().store(flags | VM_SEALED, Relaxed);
        assert_eq!(mp(BASE + P, P, R), Err(Errno::EPERM));
        assert_eq!(mp(BASE + P, P, 3), Err(Errno::EPERM), "even without a change");
        v.vm_flags().store(flags, Relaxed);
    });
}

fn holes<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 3, 2, RW);
        assert_eq!(protect(cpu, k, mm, 1, 3, R), Err(Errno::ENOMEM));
        assert_eq!(layout(cpu, k, mm), [(0, 1), (1, 2), (3, 5)]);
        assert_eq!(flags_at(cpu, k, mm, 1) & RW, VM_READ);
        assert_eq!(flags_at(cpu, k, mm, 3) & RW, RW, "behind the hole nothing happens");
        assert_eq!(protect(cpu, k, mm, 3, 9, R), Err(Errno::ENOMEM), "ends in a hole");
        assert_eq!(flags_at(cpu, k, mm, 3) & RW, VM_READ);
    });
}

fn account<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let charged = |p| flags_at(cpu, k, mm, p) & VM_ACCOUNT != 0;
        // Unfaulted: read-only again, it is as if it had never been writable.
        map(cpu, k, mm, 0, 2, VM_READ);
        map(cpu, k, mm, 2, 2, RW);
        assert!(!charged(0) && charged(2));
        protect(cpu, k, mm, 2, 2, R).unwrap();
        assert_eq!(layout(cpu, k, mm), [(0, 4)]);
        assert!(!charged(0));
        // Faulted: the charge stays, and with it the border.
        protect(cpu, k, mm, 2, 2, 3).unwrap();
        assert!(charged(2));
        write(cpu, k, mm, 2);
        protect(cpu, k, mm, 2, 2, R).unwrap();
        assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 4)]);
        assert!(!charged(0) && charged(2));
        // Both writable, both charged.
        protect(cpu, k, mm, 0, 4, 3).unwrap();
        assert!(charged(0) && charged(2));
        // Not charged, and never will be.
        map(cpu, k, mm, 10, 2, VM_READ | VM_NORESERVE);
        protect(cpu, k, mm, 10, 2, 3).unwrap();
        assert!(!charged(10));
    });
}

fn change_and_back<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        protect(cpu, k, mm, 2, 2, R).unwrap();
        // A border that is left over: equal on both sides.
        let v = vma_at(cpu, k, mm, 2);
        v.vm_flags().store(flags_at(cpu, k, mm, 0), Relaxed);
        mm.data_vm.set(mm.data_vm.get() + 2);
        crate::mm::util::vm_acct_memory(cpu, k, 2);
        protect(cpu, k, mm, 0, 4, 3).unwrap();
        assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 4)], "nothing changes: nothing merges");
        protect(cpu, k, mm, 0, 4, R).unwrap();
        protect(cpu, k, mm, 0, 4, 3).unwrap();
        assert_eq!(layout(cpu, k, mm), [(0, 4)]);
    });
}

fn limit<K: Kconfig<A = Native>>(boot: Boot) {
    let config = KernelConfig { max_map_count: 4, ..config(boot) };
    with_config::<K>(&config, |cpu, k, mm| {
        map(cpu, k, mm, 0, 10, RW);
        map(cpu, k, mm, 20, 1, RW);
        map(cpu, k, mm, 30, 1, RW);
        // Three: one split is possible, and stays when the second is not.
        assert_eq!(protect(cpu, k, mm, 3, 3, R), Err(Errno::ENOMEM));
        assert_eq!(layout(cpu, k, mm), [(0, 3), (3, 10), (20, 21), (30, 31)]);
        assert_eq!(flags_at(cpu, k, mm, 3) & RW, RW);
        assert_eq!(protect(cpu, k, mm, 3, 3, R), Err(Errno::ENOMEM), "four: none");
        assert_eq!(protect(cpu, k, mm, 3, 7, R), Ok(()), "without a split there is no limit");
    });
}

fn entries<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        // Over three PTE tables, of which the middle one is missing.
        map(cpu, k, mm, 0, 1200, RW);
        for p in [3, 1100] {
            write(cpu, k, mm, p);
            bytes::<K>(mm, p).unwrap()[17] = p as u8;
        }
        let pte = |p: u64| pte_lookup::<K>(mm, BASE + p * P);
        let access = |p, w| do_user_addr_fault(cpu, k, mm, BASE + p * P, w);
        let all = PAGE_PRESENT | PAGE_RW | PAGE_USER | PAGE_DIRTY;
        assert_eq!(pte(3) & all, all);
        let page = pte(3) & PTE_PFN_MASK;
        protect(cpu, k, mm, 0, 1200, R).unwrap();
        assert_eq!(pte(3), page | PAGE_PRESENT | PAGE_USER | PAGE_DIRTY, "the page and its dirt stay");
        assert_eq!(access(3, true), Err(FaultError::Accerr));
        assert_eq!(pte(600), 0);
        protect(cpu, k, mm, 0, 1200, 0).unwrap();
        assert_eq!(pte(1100) & (PAGE_PRESENT | PAGE_USER | PAGE_RW), PAGE_PRESENT, "there, but for nobody");
        assert_eq!(access(1100, false), Err(FaultError::Accerr));
        let faults = cpu.counters.get(VmEvent::Pgfault);
        protect(cpu, k, mm, 0, 1200, 3).unwrap();
        assert_eq!((pte(3) & all, pte(1100) & all), (all, all), "ours alone: writable without a fault");
        assert_eq!(cpu.counters.get(VmEvent::Pgfault), faults);
        assert_eq!((bytes::<K>(mm, 3).unwrap()[17], bytes::<K>(mm, 1100).unwrap()[17]), (3, 1100u64 as u8));
    });
}

fn zero_page<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, VM_READ);
        do_user_addr_fault(cpu, k, mm, BASE, false).unwrap();
        protect(cpu, k, mm, 0, 4, 3).unwrap();
        let pte = pte_lookup::<K>(mm, BASE);
        assert_eq!(pte & PTE_PFN_MASK, k.zero_page.as_ptr() as u64);
        assert_eq!(pte & PAGE_RW, 0);
        write(cpu, k, mm, 0);
        assert_ne!(pte_lookup::<K>(mm, BASE) & PTE_PFN_MASK, k.zero_page.as_ptr() as u64);
    });
}

fn thread_stacks<K: Kconfig<A = Native>>(boot: Boot) {
    use crate::mm::mm_types::VM_NOHUGEPAGE;
    with_mm::<K>(boot, |cpu, k, mm| {
        // A library's way: reserve, then everything but the guard becomes accessible; each stack below the last one.
        let stack = |p: u64| {
            alloc_free(cpu, || {
                map(cpu, k, mm, p, 16, 0);
                protect(cpu, k, mm, p + 1, 15, 3).unwrap();
            })
        };
        assert_eq!(stack(100), (2, 0), "the first");
        assert_eq!(stack(84), (2, 0), "later: the reserve merges with the guard above");
        assert_eq!(layout(cpu, k, mm), [(84, 85), (85, 100), (100, 101), (101, 116)]);
        assert_eq!(flags_at(cpu, k, mm, 85) & VM_NOHUGEPAGE, 0);
        let gone = alloc_free(cpu, || vm_munmap(cpu, k, mm, BASE + 84 * P, 16 * P).unwrap());
        assert_eq!(gone, (0, 2));
    });
}

fn locked<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, VM_READ);
        let v = vma_lookup(cpu, k, mm, BASE).unwrap();
        v.vm_flags().store(v.vm_flags().load(Relaxed) | VM_LOCKED, Relaxed);
        mm.locked_vm.set(4);
        protect(cpu, k, mm, 1, 2, 3).unwrap();
        let writable = |p: u64| pte_lookup::<K>(mm, BASE + p * P) & PAGE_RW != 0;
        assert_eq!([0, 1, 2, 3].map(writable), [false, true, true, false]);
    });
}

fn after_fork<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 2, RW);
        for p in [0, 1] {
            write(cpu, k, mm, p);
            bytes::<K>(mm, p).unwrap()[0] = 5;
        }
        let child = dup_mm(cpu, k, mm).unwrap();
        let writable = |mm, p: u64| pte_lookup::<K>(mm, BASE + p * P) & PAGE_RW != 0;
        for m in [mm, child] {
            protect(cpu, k, m, 0, 2, R).unwrap();
            protect(cpu, k, m, 0, 2, 3).unwrap();
            assert!(!writable(m, 0) && !writable(m, 1));
        }
        write(cpu, k, mm, 0);
        bytes::<K>(mm, 0).unwrap()[0] = 6;
        assert_eq!((bytes::<K>(mm, 0).unwrap()[0], bytes::<K>(child, 0).unwrap()[0]), (6, 5));
        mmput(cpu, k, child);
        // Alone again, but it takes a write fault to find that out.
        protect(cpu, k, mm, 0, 2, R).unwrap();
        protect(cpu, k, mm, 0, 2, 3).unwrap();
        assert!(writable(mm, 0) && !writable(mm, 1));
        write(cpu, k, mm, 1);
        protect(cpu, k, mm, 0, 2, R).unwrap();
        protect(cpu, k, mm, 0, 2, 3).unwrap();
        assert!(writable(mm, 1));
        assert_eq!(bytes::<K>(mm, 1).unwrap()[0], 5);
    });
}

fn shared<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let writable = |p: u64| pte_lookup::<K>(mm, BASE + p * P) & PAGE_RW != 0;
        for (kind, at_once) in [(FileKind::Memfd, true), (FileKind::Regular, false)] {
            let file = file_open(cpu, k, &FileSpec { kind, ..FileSpec::memfd(4 * P) }).unwrap();
            let args = MmapArgs {
                addr: BASE,
                len: 4 * P,
                prot: 3,
                flags: MAP_SHARED | MAP_FIXED,
                file: Some(file),
                offset: 0,
            };
            do_mmap(cpu, k, mm, &args).unwrap();
            write(cpu, k, mm, 1);
            do_user_addr_fault(cpu, k, mm, BASE + 2 * P, false).unwrap();
            protect(cpu, k, mm, 0, 4, R).unwrap();
            assert!(!writable(1) && !writable(2));
            protect(cpu, k, mm, 0, 4, 3).unwrap();
            assert_eq!((writable(1), writable(2)), (true, at_once), "{kind:?}: who wants to hear of first writes does");
            vm_munmap(cpu, k, mm, BASE, 4 * P).unwrap();
            fput(cpu, k, file);
        }
    });
}
