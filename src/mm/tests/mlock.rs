// SPDX-License-Identifier: GPL-2.0-only
//! mlock and mseal: flags, objects, holes, limits, what is populated, what a seal forbids (vma-ops.md 7, 14, 15).

use super::*;
use crate::cpu::Errno;
use crate::mm::madvise::MADV_RANDOM;
use crate::mm::mlock::{MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT};
use crate::mm::mm_types::{
    CAP_IPC_LOCK, RLIMIT_MEMLOCK, TASK_SIZE, VM_IO, VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT, VM_SEALED,
};
use crate::mm::{
    FaultError, sys_madvise, sys_mlock, sys_mlockall, sys_mprotect, sys_mremap, sys_mseal, sys_munlock, sys_munlockall,
    vm_mmap, vm_munmap,
};

on_every_variant! {
    fn mlock_splits_merges_and_populates = mlock;
    fn mlock_errors_win_in_the_kernels_order = mlock_errors;
    fn mlock_holes_and_inaccessible_memory = mlock_holes;
    fn the_limit_counts_what_is_locked_once = memlock_limit;
    fn mlockall_takes_everything_and_what_comes = mlockall;
    fn munmap_gives_locked_pages_back = munmap_unlocks;
    fn mseal_splits_and_looks_for_holes_first = mseal;
    fn a_seal_forbids_what_would_change_it = sealed;
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).unwrap();
}

fn there<K: Kconfig<A = Native>>(mm: MmPtr<K>, pages: std::ops::Range<u64>) -> Vec<u64> {
    pages.filter(|p| pte_lookup::<K>(mm, BASE + p * P) & PAGE_PRESENT != 0).collect()
}

fn mlock<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let locked = |p| flags_at(cpu, k, mm, p) & VM_LOCKED_MASK;
        let lock = |p: u64, n: u64, f| alloc_free(cpu, || sys_mlock(cpu, k, mm, BASE + p * P, n * P, f).unwrap());
        let unlock = |p: u64, n: u64| alloc_free(cpu, || sys_munlock(cpu, k, mm, BASE + p * P, n * P).unwrap());
        map(cpu, k, mm, 0, 10, RW);
        let original = vma_at(cpu, k, mm, 0).as_ptr();
        assert_eq!(lock(4, 2, 0), (2, 0), "middle");
        assert_eq!(vma_at(cpu, k, mm, 4).as_ptr(), original);
        assert_eq!((locked(3), locked(4), mm.locked_vm.get()), (0, VM_LOCKED, 2));
        assert_eq!(there::<K>(mm, 0..10), [4, 5], "populated");
        assert_ne!(pte_lookup::<K>(mm, BASE + 4 * P) & PAGE_RW, 0, "for writing");
        assert_eq!(lock(4, 2, 0), (0, 0), "again");
        assert_eq!(mm.locked_vm.get(), 2);
        assert_eq!(lock(2, 2, 0), (0, 0), "the tail goes to the right one");
        assert_eq!(lock(2, 4, MLOCK_ONFAULT), (0, 0));
        assert_eq!((locked(2), mm.locked_vm.get()), (VM_LOCKED | VM_LOCKONFAULT, 4));
        assert_eq!(lock(6, 4, MLOCK_ONFAULT), (0, 1), "merges one side");
        assert_eq!(there::<K>(mm, 0..10), [2, 3, 4, 5], "on fault: not now");
        assert_eq!(mm.locked_vm.get(), 8);
        assert_eq!(sys_mlock(cpu, k, mm, BASE + 3 * P + 7, 1, 0), Ok(()), "rounded to the page");
        assert_eq!((locked(3), layout(cpu, k, mm)), (VM_LOCKED, vec![(0, 2), (2, 3), (3, 4), (4, 10)]));
        assert_eq!(unlock(0, 10), (0, 2), "all equal again, but in 6.12 none merges with an unfaulted one on its left");
        assert_eq!((locked(0), mm.locked_vm.get(), layout(cpu, k, mm)), (0, 0, vec![(0, 2), (2, 10)]));
        assert_eq!(there::<K>(mm, 0..10), [2, 3, 4, 5], "the pages stay");
        // Special mappings are left out, silently.
        let v = vma_at(cpu, k, mm, 2);
        let flags = v.vm_flags().load(Relaxed);
        v.vm_flags().store(flags | VM_IO, Relaxed);
        assert_eq!(lock(2, 8, 0), (0, 0));
        assert_eq!((locked(2), mm.locked_vm.get(), there::<K>(mm, 0..10).len()), (0, 0, 4));
        v.vm_flags().store(flags, Relaxed);
    });
}

fn mlock_errors<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, RW);
        assert_eq!(sys_mlock(cpu, k, mm, BASE, P, 2), Err(Errno::EINVAL));
        assert_eq!(sys_mlock(cpu, k, mm, BASE, 0, 0), Ok(()), "no length");
        assert_eq!(sys_mlock(cpu, k, mm, 0, 0, 0), Ok(()));
        assert_eq!(sys_munlock(cpu, k, mm, BASE, 0u64.wrapping_sub(P)), Err(Errno::EINVAL), "overflow");
        assert_eq!(sys_mlock(cpu, k, mm, BASE, 0u64.wrapping_sub(P), 0), Err(Errno::ENOMEM), "the limit comes first");
        for flags in [0, 8, MCL_ONFAULT, MCL_CURRENT | 8] {
            assert_eq!(sys_mlockall(cpu, k, mm, flags), Err(Errno::EINVAL), "{flags}");
        }
        mm.rlim[RLIMIT_MEMLOCK].0.set(0);
        assert_eq!(sys_mlock(cpu, k, mm, BASE, 0, 0), Err(Errno::EPERM));
        assert_eq!(sys_mlockall(cpu, k, mm, MCL_CURRENT), Err(Errno::EPERM));
        assert_eq!(sys_munlock(cpu, k, mm, BASE, P), Ok(()), "unlocking needs no right");
        assert_eq!(sys_munlockall(cpu, k, mm), Ok(()));
        mm.caps.set(CAP_IPC_LOCK);
        assert_eq!(sys_mlock(cpu, k, mm, BASE, 4 * P, 0), Ok(()));
    });
}

fn mlock_holes<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let locked = |p| flags_at(cpu, k, mm, p) & VM_LOCKED != 0;
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 3, 2, RW);
        assert_eq!(sys_mlock(cpu, k, mm, BASE + P, 3 * P, 0), Err(Errno::ENOMEM));
        assert!(!locked(0) && locked(1) && !locked(3), "up to the hole");
        assert_eq!(there::<K>(mm, 0..5), [0u64; 0], "nothing is populated after an error");
        assert_eq!(sys_mlock(cpu, k, mm, BASE + 2 * P, P, 0), Err(Errno::ENOMEM), "begins in a hole");
        assert_eq!(sys_mlock(cpu, k, mm, BASE + 4 * P, 2 * P, 0), Err(Errno::ENOMEM), "ends in a hole");
        assert!(locked(4));
        // Memory without any right: an error, but the flag stays, and what comes before is there.
        map(cpu, k, mm, 10, 2, RW);
        map(cpu, k, mm, 12, 2, 0);
        map(cpu, k, mm, 14, 2, RW);
        assert_eq!(sys_mlock(cpu, k, mm, BASE + 10 * P, 6 * P, 0), Err(Errno::ENOMEM));
        assert!(locked(10) && locked(12) && locked(14));
        assert_eq!(there::<K>(mm, 10..16), [10, 11]);
        assert_eq!(mm.locked_vm.get(), 8);
    });
}

fn memlock_limit<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let lock = |p: u64, n: u64| sys_mlock(cpu, k, mm, BASE + p * P, n * P, 0);
        mm.rlim[RLIMIT_MEMLOCK].0.set(4 * P + 100);
        map(cpu, k, mm, 0, 20, RW);
        assert_eq!(lock(0, 5), Err(Errno::ENOMEM));
        assert_eq!(mm.locked_vm.get(), 0);
        assert_eq!(lock(0, 4), Ok(()));
        assert_eq!(lock(1, 3), Ok(()), "locked already");
        assert_eq!(lock(2, 3), Err(Errno::ENOMEM), "one more than there may be");
        assert_eq!(sys_mlockall(cpu, k, mm, MCL_CURRENT), Err(Errno::ENOMEM));
        assert_eq!(sys_mlockall(cpu, k, mm, MCL_FUTURE), Ok(()), "nothing is locked now");
        assert_eq!(vm_mmap(cpu, k, mm, Some(BASE + 30 * P), P, RW), Err(Errno::EAGAIN));
        assert_eq!(sys_munlockall(cpu, k, mm), Ok(()));
        assert_eq!((mm.locked_vm.get(), layout(cpu, k, mm)), (0, vec![(0, 4), (4, 20)]));
        map(cpu, k, mm, 30, 1, RW);
    });
}

fn mlockall<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let locked = |p| flags_at(cpu, k, mm, p) & VM_LOCKED_MASK;
        map(cpu, k, mm, 0, 2, RW);
        map(cpu, k, mm, 2, 2, VM_READ);
        map(cpu, k, mm, 10, 2, 0);
        map(cpu, k, mm, 20, 2, RW);
        sys_mlockall(cpu, k, mm, MCL_CURRENT).unwrap();
        assert_eq!([0, 2, 10, 20].map(locked), [VM_LOCKED; 4]);
        assert_eq!(there::<K>(mm, 0..30), [0, 1, 2, 3, 20, 21], "what cannot be is stepped over");
        assert_eq!((mm.locked_vm.get(), mm.def_flags.get()), (8, 0));
        map(cpu, k, mm, 30, 1, RW);
        assert_eq!(locked(30), 0);
        sys_mlockall(cpu, k, mm, MCL_FUTURE | MCL_ONFAULT).unwrap();
        assert_eq!(mm.def_flags.get(), VM_LOCKED | VM_LOCKONFAULT);
        assert_eq!(locked(0), VM_LOCKED, "what is there is left alone");
        map(cpu, k, mm, 40, 1, RW);
        assert_eq!(locked(40), VM_LOCKED | VM_LOCKONFAULT);
        sys_mlockall(cpu, k, mm, MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT).unwrap();
        assert_eq!([0, 30, 40].map(locked), [VM_LOCKED | VM_LOCKONFAULT; 3]);
        sys_munlockall(cpu, k, mm).unwrap();
        assert_eq!([0, 2, 10, 20, 30, 40].map(locked), [0; 6]);
        assert_eq!((mm.locked_vm.get(), mm.def_flags.get()), (0, 0));
        const { assert!(TASK_SIZE > BASE) };
    });
}

fn munmap_unlocks<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 8, RW);
        sys_mlock(cpu, k, mm, BASE, 8 * P, 0).unwrap();
        vm_munmap(cpu, k, mm, BASE + 2 * P, 2 * P).unwrap();
        assert_eq!(mm.locked_vm.get(), 6);
        map(cpu, k, mm, 0, 1, RW);
        assert_eq!(mm.locked_vm.get(), 5);
    });
}

fn mseal<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let seal = |start, len| sys_mseal(cpu, k, mm, start, len, 0);
        let sealed = |p| flags_at(cpu, k, mm, p) & VM_SEALED != 0;
        map(cpu, k, mm, 0, 10, RW);
        map(cpu, k, mm, 12, 2, RW);
        assert_eq!(sys_mseal(cpu, k, mm, BASE, P, 1), Err(Errno::EINVAL));
        assert_eq!(seal(BASE + 1, P), Err(Errno::EINVAL));
        assert_eq!(seal(BASE, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(seal(BASE, 0u64.wrapping_sub(P)), Err(Errno::EINVAL));
        assert_eq!(seal(0, 0), Ok(()));
        assert_eq!(seal(BASE + 8 * P, 5 * P), Err(Errno::ENOMEM), "a hole");
        assert_eq!(seal(BASE - P, 5 * P), Err(Errno::ENOMEM));
        assert_eq!(seal(BASE + 13 * P, 2 * P), Err(Errno::ENOMEM));
        assert_eq!(layout(cpu, k, mm), [(0, 10), (12, 14)], "nothing was sealed");
        assert_eq!(alloc_free(cpu, || seal(BASE + 4 * P, 2 * P).unwrap()), (2, 0), "middle");
        assert!(!sealed(3) && sealed(4) && !sealed(6));
        assert_eq!(alloc_free(cpu, || seal(BASE + 4 * P, 2 * P - 5).unwrap()), (0, 0), "again");
        assert_eq!(alloc_free(cpu, || seal(BASE + 3 * P, 4 * P).unwrap()), (0, 0), "both borders move");
        assert_eq!(layout(cpu, k, mm), [(0, 3), (3, 7), (7, 10), (12, 14)]);
    });
}

fn sealed<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 6, RW);
        map(cpu, k, mm, 10, 4, RW);
        write(cpu, k, mm, 2);
        bytes::<K>(mm, 2).unwrap()[0] = 7;
        sys_mseal(cpu, k, mm, BASE + 2 * P, 2 * P, 0).unwrap();
        let at = |p: u64| BASE + p * P;
        assert_eq!(vm_munmap(cpu, k, mm, at(0), 6 * P), Err(Errno::EPERM));
        assert_eq!(vm_munmap(cpu, k, mm, at(3), P), Err(Errno::EPERM));
        assert_eq!(vm_mmap(cpu, k, mm, Some(at(1)), 2 * P, RW), Err(Errno::EPERM));
        assert_eq!(sys_mprotect(cpu, k, mm, at(2), P, 1), Err(Errno::EPERM));
        assert_eq!(sys_mremap(cpu, k, mm, at(2), 2 * P, P, 0, 0), Err(Errno::EPERM), "shrink");
        assert_eq!(sys_mremap(cpu, k, mm, at(2), 2 * P, 2 * P, 0, 0), Err(Errno::EPERM), "even nothing");
        assert_eq!(sys_mremap(cpu, k, mm, at(10), 2 * P, 2 * P, 3, at(2)), Err(Errno::EPERM), "over it");
        assert_eq!(sys_madvise(cpu, k, mm, at(2), P, MADV_RANDOM), Ok(()), "advice is no change");
        assert_eq!(sys_mlock(cpu, k, mm, at(2), 2 * P, 0), Ok(()));
        assert_eq!(do_user_addr_fault(cpu, k, mm, at(3), true).map_err(|e| e == FaultError::Accerr), Ok(()));
        assert_eq!(bytes::<K>(mm, 2).unwrap()[0], 7);
        assert_eq!(vm_munmap(cpu, k, mm, at(0), 2 * P), Ok(()), "beside it");
    });
}
