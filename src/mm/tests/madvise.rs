// SPDX-License-Identifier: GPL-2.0-only
//! madvise: what each advice does to VMAs and to pages, holes, errors, locks (vma-ops.md 7, 13, 14), guard regions,
//! names.

use super::*;
use crate::cpu::Errno;
use crate::mm::madvise::*;
use crate::mm::mm_types::{
    VM_DONTCOPY, VM_DONTDUMP, VM_DROPPABLE, VM_HUGEPAGE, VM_IO, VM_LOCKED, VM_MAYBE_GUARD, VM_MERGEABLE, VM_NOHUGEPAGE,
    VM_PFNMAP, VM_RAND_READ, VM_SEALED, VM_SEQ_READ, VM_WIPEONFORK,
};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED};
use crate::mm::pgtable::{PAGE_DIRTY, PTE_MARKER_GUARD};
use crate::mm::{FaultError, FileSpec, MmRules, MmapArgs, do_mmap, file_open, fput, vm_mmap, vm_munmap};

on_every_variant! {
    fn each_advice_sets_its_flags = flags;
    fn madvise_allocates_and_frees_as_the_kernel = golden_rows;
    fn holes_are_stepped_over_and_reported = holes;
    fn madvise_errors_win_in_the_kernels_order = errors;
    fn too_many_vmas_is_only_for_now = limit;
    fn dontneed_empties_and_free_cleans = pages;
    fn populate_faults_everything_in = populate;
    fn each_advice_takes_its_lock = locks;
    fn guards_end_in_a_signal = guards;
    fn guards_survive_what_they_should = guards_survive;
    fn a_seal_forbids_to_discard = sealed;
    fn names_keep_vmas_apart = names;
    fn files_are_advised_differently = files;
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).unwrap();
}

fn advise<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    p: u64,
    n: u64,
    advice: i32,
) -> Result<(), Errno> {
    sys_madvise(cpu, k, mm, BASE + p * P, n * P, advice)
}

fn flags<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        let plain = flags_at(cpu, k, mm, 0);
        for (set, flag, clear) in [
            (MADV_RANDOM, VM_RAND_READ, MADV_NORMAL),
            (MADV_SEQUENTIAL, VM_SEQ_READ, MADV_NORMAL),
            (MADV_DONTFORK, VM_DONTCOPY, MADV_DOFORK),
            (MADV_WIPEONFORK, VM_WIPEONFORK, MADV_KEEPONFORK),
            (MADV_DONTDUMP, VM_DONTDUMP, MADV_DODUMP),
            (MADV_MERGEABLE, VM_MERGEABLE, MADV_UNMERGEABLE),
        ] {
            advise(cpu, k, mm, 1, 2, set).unwrap();
            assert_eq!(layout(cpu, k, mm), [(0, 1), (1, 3), (3, 4)], "{set}");
            assert_eq!(flags_at(cpu, k, mm, 1), plain | flag, "{set}");
            advise(cpu, k, mm, 1, 2, set).unwrap();
            advise(cpu, k, mm, 1, 2, clear).unwrap();
            assert_eq!(layout(cpu, k, mm), [(0, 4)], "{clear}");
            assert_eq!(flags_at(cpu, k, mm, 1), plain, "{clear}");
        }
        advise(cpu, k, mm, 0, 4, MADV_SEQUENTIAL).unwrap();
        advise(cpu, k, mm, 0, 4, MADV_RANDOM).unwrap();
        assert_eq!(flags_at(cpu, k, mm, 0), plain | VM_RAND_READ, "one of the two");
        advise(cpu, k, mm, 0, 4, MADV_NORMAL).unwrap();
        advise(cpu, k, mm, 0, 4, MADV_HUGEPAGE).unwrap();
        assert_eq!(flags_at(cpu, k, mm, 0), plain | VM_HUGEPAGE);
        advise(cpu, k, mm, 0, 4, MADV_NOHUGEPAGE).unwrap();
        assert_eq!(flags_at(cpu, k, mm, 0), plain | VM_NOHUGEPAGE);
        for advice in [MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT, MADV_DONTNEED, MADV_FREE] {
            assert_eq!(alloc_free(cpu, || advise(cpu, k, mm, 1, 2, advice).unwrap()), (0, 0));
            assert_eq!(layout(cpu, k, mm), [(0, 4)], "{advice}");
        }
    });
}

fn golden_rows<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let ma = |p, n, advice| alloc_free(cpu, || advise(cpu, k, mm, p, n, advice).unwrap());
        map(cpu, k, mm, 0, 30, RW);
        let original = vma_at(cpu, k, mm, 0).as_ptr();
        assert_eq!(ma(0, 30, MADV_RANDOM), (0, 0), "whole");
        assert_eq!(ma(0, 30, MADV_NORMAL), (0, 0));
        assert_eq!(ma(10, 10, MADV_RANDOM), (2, 0), "middle");
        assert_eq!(vma_at(cpu, k, mm, 10).as_ptr(), original, "the original is the changed part");
        assert_eq!(ma(10, 3, MADV_NORMAL), (0, 0), "the head goes to the left one");
        assert_eq!(ma(18, 2, MADV_NORMAL), (0, 0), "the tail goes to the right one");
        assert_eq!(layout(cpu, k, mm), [(0, 13), (13, 18), (18, 30)]);
        assert_eq!(ma(0, 5, MADV_DONTDUMP), (1, 0), "head");
        assert_eq!(ma(25, 5, MADV_DONTDUMP), (1, 0), "tail");
        assert_eq!(ma(13, 5, MADV_NORMAL), (0, 2), "whole, merges both sides");
        assert_eq!(layout(cpu, k, mm), [(0, 5), (5, 25), (25, 30)]);
        assert_eq!(ma(0, 30, MADV_DONTDUMP), (0, 2));
        assert_eq!(layout(cpu, k, mm), [(0, 30)]);
    });
}

fn holes<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 3, 2, RW);
        for p in [0, 1, 3, 4] {
            write(cpu, k, mm, p);
        }
        assert_eq!(advise(cpu, k, mm, 1, 3, MADV_RANDOM), Err(Errno::ENOMEM));
        assert_eq!(layout(cpu, k, mm), [(0, 1), (1, 2), (3, 4), (4, 5)]);
        assert_ne!(flags_at(cpu, k, mm, 3) & VM_RAND_READ, 0, "behind the hole, too");
        assert_eq!(advise(cpu, k, mm, 0, 9, MADV_NORMAL), Err(Errno::ENOMEM), "ends in a hole");
        assert_eq!(advise(cpu, k, mm, 1, 3, MADV_DONTNEED), Err(Errno::ENOMEM));
        let there = |p| bytes::<K>(mm, p).is_some();
        assert_eq!([0, 1, 3, 4].map(there), [true, false, false, true]);
        assert_eq!(advise(cpu, k, mm, 5, 9, MADV_DONTNEED), Err(Errno::ENOMEM), "nothing there");
        assert_eq!(advise(cpu, k, mm, 2, 1, MADV_DONTNEED), Err(Errno::ENOMEM), "a hole before something");
        assert_eq!(advise(cpu, k, mm, 2, 2, MADV_DONTNEED), Err(Errno::ENOMEM), "begins in a hole");
    });
}

fn errors<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        let ma = |start, len, advice| sys_madvise(cpu, k, mm, start, len, advice);
        for unknown in [5, 6, 7, 26, 99, 104, -1, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE] {
            assert_eq!(ma(BASE, 0, unknown), Err(Errno::EINVAL), "{unknown}, even without a length");
        }
        assert_eq!(ma(BASE + 1, 0, MADV_NORMAL), Err(Errno::EINVAL));
        assert_eq!(ma(BASE, u64::MAX, MADV_NORMAL), Err(Errno::EINVAL), "rounded to nothing");
        assert_eq!(ma(BASE, 0u64.wrapping_sub(P), MADV_NORMAL), Err(Errno::EINVAL), "overflow");
        assert_eq!(ma(P, 0, MADV_NORMAL), Ok(()), "nothing asked, nothing looked at");
        assert_eq!(ma(BASE, P, MADV_HWPOISON), Err(Errno::EPERM));
        assert_eq!(ma(BASE, P, MADV_REMOVE), Err(Errno::EINVAL), "no file");
        assert_eq!(ma(BASE, P, MADV_COLLAPSE), Err(Errno::EINVAL), "too small");
        let with = |flags: u64, advice| {
            let v = vma_at(cpu, k, mm, 0);
            let old = v.vm_flags().load(Relaxed);
            v.vm_flags().store(old | flags, Relaxed);
            let r = advise(cpu, k, mm, 0, 4, advice);
            v.vm_flags().store(old, Relaxed);
            r
        };
        for advice in [MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_REMOVE] {
            assert_eq!(with(VM_LOCKED, advice), Err(Errno::EINVAL), "{advice} of locked memory");
        }
        assert_eq!(with(VM_LOCKED, MADV_DONTNEED_LOCKED), Ok(()));
        assert_eq!(with(VM_PFNMAP, MADV_DONTNEED_LOCKED), Err(Errno::EINVAL));
        assert_eq!(with(VM_IO, MADV_DOFORK), Err(Errno::EINVAL));
        assert_eq!(with(VM_DROPPABLE, MADV_KEEPONFORK), Err(Errno::EINVAL));
        assert_eq!(with(VM_DROPPABLE, MADV_DODUMP), Err(Errno::EINVAL));
        assert_eq!(with(VM_IO, MADV_DODUMP), Err(Errno::EINVAL));
        assert_eq!(with(VM_DROPPABLE, MADV_MERGEABLE), Ok(()), "ignored");
        assert_eq!(flags_at(cpu, k, mm, 0) & VM_MERGEABLE, 0);
    });
}

fn limit<K: Kconfig<A = Native>>(boot: Boot) {
    let config = KernelConfig { max_map_count: 3, ..config(boot) };
    with_config::<K>(&config, |cpu, k, mm| {
        map(cpu, k, mm, 0, 10, RW);
        map(cpu, k, mm, 20, 1, RW);
        assert_eq!(advise(cpu, k, mm, 3, 3, MADV_RANDOM), Err(Errno::EAGAIN));
        assert_eq!(layout(cpu, k, mm), [(0, 3), (3, 10), (20, 21)], "the first split stays");
        assert_eq!(advise(cpu, k, mm, 3, 7, MADV_RANDOM), Ok(()));
    });
}

fn pages<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1200, RW);
        for p in [0, 1, 2, 700, 1199] {
            write(cpu, k, mm, p);
            bytes::<K>(mm, p).unwrap()[5] = 9;
        }
        do_user_addr_fault(cpu, k, mm, BASE + 3 * P, false).unwrap();
        let pte = |p: u64| pte_lookup::<K>(mm, BASE + p * P);
        advise(cpu, k, mm, 1, 3, MADV_FREE).unwrap();
        assert_eq!([0, 1, 2].map(|p| pte(p) & PAGE_DIRTY), [PAGE_DIRTY, 0, 0], "clean, so that they may be taken");
        assert_eq!(bytes::<K>(mm, 1).unwrap()[5], 9, "but nobody takes them");
        assert_ne!(pte(1) & PAGE_RW, 0);
        advise(cpu, k, mm, 1, 1100, MADV_DONTNEED).unwrap();
        assert_eq!([pte(1), pte(2), pte(3), pte(700)], [0; 4]);
        assert_eq!((bytes::<K>(mm, 0).unwrap()[5], bytes::<K>(mm, 1199).unwrap()[5]), (9, 9));
        write(cpu, k, mm, 1);
        assert_eq!(bytes::<K>(mm, 1).unwrap()[5], 0);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 1, "the VMA stays faulted");
    });
}

fn populate<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        map(cpu, k, mm, 4, 4, VM_READ);
        map(cpu, k, mm, 10, 2, 0);
        assert_eq!(advise(cpu, k, mm, 2, 3, MADV_POPULATE_WRITE), Err(Errno::EINVAL), "not writable");
        assert!(bytes::<K>(mm, 3).is_some() && bytes::<K>(mm, 1).is_none() && bytes::<K>(mm, 4).is_none());
        assert_eq!(advise(cpu, k, mm, 0, 6, MADV_POPULATE_READ), Ok(()));
        let pte = |p: u64| pte_lookup::<K>(mm, BASE + p * P);
        assert_eq!(pte(0) & PTE_PFN_MASK, k.zero_page.as_ptr() as u64);
        assert_ne!(pte(3) & PTE_PFN_MASK, k.zero_page.as_ptr() as u64, "what is there stays");
        assert!(pte(5) != 0 && pte(6) == 0);
        assert_eq!(advise(cpu, k, mm, 6, 3, MADV_POPULATE_READ), Err(Errno::ENOMEM), "a hole");
        assert!(pte(7) != 0, "up to the hole");
        assert_eq!(advise(cpu, k, mm, 10, 1, MADV_POPULATE_READ), Err(Errno::EINVAL), "without any right");
        assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 8), (10, 12)]);
    });
}

/// Times (`mmap_lock` for read, for write) taken by `f`.
fn taken(cpu: &Cpu<Native>, f: impl FnOnce()) -> (u64, u64) {
    let n = || (cpu.counters.get(VmEvent::MmapLockRead), cpu.counters.get(VmEvent::MmapLockWrite));
    let before = n();
    f();
    let after = n();
    (after.0 - before.0, after.1 - before.1)
}

fn locks<K: Kconfig<A = Native>>(boot: Boot) {
    for rules in [MmRules::V6_12, MmRules::V6_18, MmRules::V7_3] {
        with_config::<K>(&KernelConfig { rules, ..config(boot) }, |cpu, k, mm| {
            map(cpu, k, mm, 0, 4, RW);
            map(cpu, k, mm, 4, 4, VM_READ);
            write(cpu, k, mm, 0);
            let ma = |p, n, advice| taken(cpu, || advise(cpu, k, mm, p, n, advice).unwrap());
            let vma_lock = rules.dontneed_vma_lock;
            for advice in [MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE] {
                assert_eq!(ma(0, 2, advice), (u64::from(!vma_lock), 0), "{advice}");
                assert_eq!(ma(0, 8, advice), (1, 0), "{advice} over two VMAs");
            }
            for advice in [MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ] {
                assert_eq!(ma(0, 2, advice), (1, 0), "{advice}");
            }
            for advice in [MADV_NORMAL, MADV_RANDOM, MADV_DONTFORK, MADV_HUGEPAGE, MADV_MERGEABLE] {
                assert_eq!(ma(0, 2, advice), (0, 1), "{advice}");
            }
            // The first write to a shared page drops the lock: again for the page, and again for who asked.
            let flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
            map_args(cpu, k, mm, (BASE + 40 * P, P), 3, flags, None).unwrap();
            assert_eq!(ma(40, 1, MADV_POPULATE_WRITE), (3, 0));
            assert_eq!(ma(40, 1, MADV_POPULATE_WRITE), (1, 0));
            if rules.guard_regions {
                // The first anon_vma of a VMA needs neighbours that stand still.
                map(cpu, k, mm, 20, 4, RW);
                assert_eq!(ma(20, 1, MADV_GUARD_INSTALL), (1, 0));
                let mmap_lock = u64::from(!rules.guard_vma_lock);
                assert_eq!(ma(20, 2, MADV_GUARD_INSTALL), (mmap_lock, 0));
                assert_eq!(ma(20, 2, MADV_GUARD_REMOVE), (mmap_lock, 0));
            }
        });
    }
}

fn guards<K: Kconfig<A = Native>>(boot: Boot) {
    with_config::<K>(&KernelConfig { rules: MmRules::V6_18, ..config(boot) }, |cpu, k, mm| {
        map(cpu, k, mm, 0, 600, RW);
        let access = |p, w| do_user_addr_fault(cpu, k, mm, BASE + p * P, w);
        for p in [2, 3, 520] {
            write(cpu, k, mm, p);
        }
        let count = alloc_free(cpu, || advise(cpu, k, mm, 3, 520, MADV_GUARD_INSTALL).unwrap());
        assert_eq!(count, (0, 0));
        assert_eq!(layout(cpu, k, mm), [(0, 600)], "no split");
        assert_ne!(flags_at(cpu, k, mm, 0) & VM_MAYBE_GUARD, 0);
        for p in [3, 4, 511, 512, 522] {
            assert_eq!(pte_lookup::<K>(mm, BASE + p * P), PTE_MARKER_GUARD, "{p}");
            assert_eq!(access(p, false), Err(FaultError::Maperr), "{p}");
            assert_eq!(access(p, true), Err(FaultError::Maperr), "{p}");
        }
        assert_eq!((access(2, true), access(523, true)), (Ok(()), Ok(())));
        assert_eq!(advise(cpu, k, mm, 0, 10, MADV_POPULATE_WRITE), Err(Errno::EFAULT));
        assert_eq!(advise(cpu, k, mm, 3, 2, MADV_GUARD_REMOVE), Ok(()));
        assert_eq!((access(3, true), access(4, false)), (Ok(()), Ok(())));
        assert_eq!(bytes::<K>(mm, 3).unwrap()[0], 0, "the page is gone");
        assert_eq!(access(5, false), Err(FaultError::Maperr));
        assert_eq!(advise(cpu, k, mm, 0, 600, MADV_GUARD_REMOVE), Ok(()));
        assert_eq!(access(5, true), Ok(()));
        assert_ne!(flags_at(cpu, k, mm, 0) & VM_MAYBE_GUARD, 0, "the flag stays");
        let v = vma_at(cpu, k, mm, 0);
        let flags = v.vm_flags().load(Relaxed);
        v.vm_flags().store(flags | VM_LOCKED, Relaxed);
        assert_eq!(advise(cpu, k, mm, 0, 1, MADV_GUARD_INSTALL), Err(Errno::EINVAL));
        assert_eq!(advise(cpu, k, mm, 0, 1, MADV_GUARD_REMOVE), Ok(()));
        v.vm_flags().store(flags, Relaxed);
    });
}

fn guards_survive<K: Kconfig<A = Native>>(boot: Boot) {
    with_config::<K>(&KernelConfig { rules: MmRules::V6_18, ..config(boot) }, |cpu, k, mm| {
        map(cpu, k, mm, 0, 8, RW);
        let access = |p| do_user_addr_fault(cpu, k, mm, BASE + p * P, true);
        write(cpu, k, mm, 1);
        advise(cpu, k, mm, 2, 2, MADV_GUARD_INSTALL).unwrap();
        advise(cpu, k, mm, 0, 8, MADV_DONTNEED).unwrap();
        assert_eq!(access(2), Err(FaultError::Maperr), "markers stay when pages go");
        advise(cpu, k, mm, 0, 8, MADV_FREE).unwrap();
        crate::mm::sys_mprotect(cpu, k, mm, BASE, 8 * P, 1).unwrap();
        crate::mm::sys_mprotect(cpu, k, mm, BASE, 8 * P, 3).unwrap();
        assert_eq!(access(3), Err(FaultError::Maperr));
        // Sticky: a border between a VMA that may have guards and one that cannot is none.
        advise(cpu, k, mm, 4, 4, MADV_DONTDUMP).unwrap();
        vm_munmap(cpu, k, mm, BASE + 4 * P, 4 * P).unwrap();
        map(cpu, k, mm, 4, 4, RW);
        assert_eq!(layout(cpu, k, mm), [(0, 8)]);
        assert_eq!(access(3), Err(FaultError::Maperr));
        // Unmapped, they are gone for good: the table may stay for a neighbour.
        vm_munmap(cpu, k, mm, BASE + P, 3 * P).unwrap();
        map(cpu, k, mm, 1, 3, RW);
        assert_eq!(access(2), Ok(()));
        // So they are under a new mapping.
        advise(cpu, k, mm, 2, 2, MADV_GUARD_INSTALL).unwrap();
        map(cpu, k, mm, 2, 2, RW);
        assert_eq!(access(2), Ok(()));
    });
}

fn sealed<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let seal = |p, on: bool| {
            let v = vma_at(cpu, k, mm, p);
            let f = v.vm_flags().load(Relaxed);
            v.vm_flags().store(if on { f | VM_SEALED } else { f & !VM_SEALED }, Relaxed);
        };
        map(cpu, k, mm, 0, 2, VM_READ);
        map(cpu, k, mm, 4, 2, RW);
        seal(0, true);
        seal(4, true);
        for advice in [MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_DONTFORK, MADV_WIPEONFORK, MADV_REMOVE] {
            assert_eq!(advise(cpu, k, mm, 0, 2, advice), Err(Errno::EPERM), "{advice} of what cannot be written");
        }
        assert_eq!(advise(cpu, k, mm, 4, 2, MADV_DONTNEED), Ok(()), "what can be written can be emptied");
        assert_eq!(advise(cpu, k, mm, 0, 2, MADV_RANDOM), Ok(()));
        seal(0, false);
        seal(4, false);
    });
}

fn names<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let name = |p, n, name| madvise_set_anon_name(cpu, k, mm, BASE + p * P, n * P, name);
        map(cpu, k, mm, 0, 6, RW);
        assert_eq!(alloc_free(cpu, || name(2, 2, 7).unwrap()), (2, 0));
        assert_eq!(layout(cpu, k, mm), [(0, 2), (2, 4), (4, 6)]);
        assert_eq!(alloc_free(cpu, || name(2, 2, 7).unwrap()), (0, 0));
        assert_eq!(alloc_free(cpu, || name(4, 2, 7).unwrap()), (0, 1), "the same name");
        assert_eq!(alloc_free(cpu, || name(4, 2, 8).unwrap()), (1, 0), "another name");
        assert_eq!(alloc_free(cpu, || name(0, 6, 0).unwrap()), (0, 2));
        assert_eq!(layout(cpu, k, mm), [(0, 6)]);
        assert_eq!(name(4, 4, 7), Err(Errno::ENOMEM));
        assert_eq!(vma_at(cpu, k, mm, 5).anon_name().load(Relaxed), 7);
        assert_eq!(madvise_set_anon_name(cpu, k, mm, BASE + 1, P, 7), Err(Errno::EINVAL));
    });
}

fn files<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let file = file_open(cpu, k, &FileSpec::regular(8 * P, 7)).unwrap();
        let args = |at: u64, prot, flags| MmapArgs {
            addr: BASE + at * P,
            len: 4 * P,
            prot,
            flags: flags | MAP_FIXED,
            file: Some(file),
            offset: 4 * P,
        };
        do_mmap(cpu, k, mm, &args(0, 3, MAP_SHARED)).unwrap();
        do_mmap(cpu, k, mm, &args(10, 3, MAP_PRIVATE)).unwrap();
        for p in [0, 1, 3, 11] {
            write(cpu, k, mm, p);
            bytes::<K>(mm, p).unwrap()[5] = 9;
        }
        let byte = |p: u64| bytes::<K>(mm, p).unwrap()[5];
        // A private page of a private mapping is lost; what is shared comes back.
        advise(cpu, k, mm, 0, 4, MADV_DONTNEED).unwrap();
        advise(cpu, k, mm, 10, 4, MADV_DONTNEED).unwrap();
        for p in [1, 11] {
            do_user_addr_fault(cpu, k, mm, BASE + p * P, false).unwrap();
        }
        assert_eq!((byte(1), byte(11)), (9, 9), "the file's page, which the other mapping wrote");
        assert_eq!(advise(cpu, k, mm, 10, 4, MADV_REMOVE), Err(Errno::EACCES), "not shared");
        assert_eq!(advise(cpu, k, mm, 1, 1, MADV_REMOVE), Ok(()));
        for p in [0, 3] {
            do_user_addr_fault(cpu, k, mm, BASE + p * P, false).unwrap();
        }
        assert_eq!([0, 1, 3].map(byte), [9, 0, 9], "a hole of one page");
        assert_eq!(advise(cpu, k, mm, 0, 4, MADV_FREE), Err(Errno::EINVAL), "anonymous memory only");
        assert_eq!(advise(cpu, k, mm, 0, 4, MADV_WIPEONFORK), Err(Errno::EINVAL));
        assert_eq!(madvise_set_anon_name(cpu, k, mm, BASE, P, 1), Err(Errno::EBADF));
        assert_eq!(advise(cpu, k, mm, 0, 4, MADV_MERGEABLE), Ok(()));
        assert_eq!(flags_at(cpu, k, mm, 0) & VM_MERGEABLE, 0, "shared: ignored");
        assert_eq!(taken(cpu, || advise(cpu, k, mm, 0, 4, MADV_WILLNEED).unwrap()), (2, 0), "dropped and taken again");
        assert_eq!(taken(cpu, || advise(cpu, k, mm, 0, 4, MADV_REMOVE).unwrap()), (2, 0));
        fput(cpu, k, file);
    });
}
