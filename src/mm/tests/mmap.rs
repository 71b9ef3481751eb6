// SPDX-License-Identifier: GPL-2.0-only
//! Mapping, unmapping, faulting: page contents, errors, placement.

use super::*;
use crate::mm::memory::get_mm_counter_sum;
use crate::mm::mm_types::{MM_ANONPAGES, MMAP_BASE};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use crate::mm::vma_lock::StartRead;
use crate::mm::{FaultError, madvise_dontneed, vm_mmap, vm_munmap};

on_every_variant! {
    fn the_original_object_is_freed_on_a_partial_unmap = original_freed;
    fn pages_are_zero_and_faults_are_idempotent = contents;
    fn a_read_fault_maps_the_zero_page_and_a_write_replaces_it = zero_page;
    fn errors_win_in_the_kernels_order = errors;
    fn placement_goes_down_from_the_base = placement;
    fn the_map_count_limit_holds = limit;
    fn tables_go_when_nothing_overlaps_them = tables;
    fn each_unmap_downgrades_and_each_section_leaves_an_even_number = sections;
    fn sequence_numbers_may_wrap_and_the_writers_hole_is_the_kernels = wrap;
}

fn original_freed<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let at = |p: u64| {
            let mut mas = MaState::new(mm.mm_mt(), k.maple, BASE + p * P, BASE + p * P);
            vma_next::<K>(cpu, &mut mas).unwrap().as_ptr()
        };
        for (gone, rest) in [(0, 9), (9, 0), (5, 0)] {
            vm_mmap(cpu, k, mm, Some(BASE), 10 * P, RW).unwrap();
            let original = at(0);
            vm_munmap(cpu, k, mm, BASE + gone * P, P).unwrap();
            assert_ne!(at(rest), original);
            vm_munmap(cpu, k, mm, BASE, 10 * P).unwrap();
        }
    });
}

fn contents<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(BASE), 16 * P, RW).unwrap();
        for round in 0..3u8 {
            for p in 0..16 {
                assert!(bytes::<K>(mm, p).is_none());
                write(cpu, k, mm, p);
                let b = bytes::<K>(mm, p).unwrap();
                assert!(b.iter().all(|&x| x == 0), "round {round} page {p} is not zero");
                b.fill(0xa0 | round);
                write(cpu, k, mm, p);
                assert_eq!(bytes::<K>(mm, p).unwrap()[77], 0xa0 | round, "a second fault keeps the page");
            }
            assert_eq!(get_mm_counter_sum(cpu, k, mm, MM_ANONPAGES), 16);
            if round == 0 {
                madvise_dontneed(cpu, k, mm, BASE, 16 * P).unwrap();
            } else {
                vm_mmap(cpu, k, mm, Some(BASE), 16 * P, RW).unwrap();
            }
            assert_eq!(get_mm_counter_sum(cpu, k, mm, MM_ANONPAGES), 0);
        }
        assert_eq!(cpu.counters.get(VmEvent::PgfaultRaced), 48);
        assert_eq!(madvise_dontneed(cpu, k, mm, BASE + 8 * P, 16 * P), Err(Errno::ENOMEM));
    });
}

fn zero_page<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(BASE), 2 * P, RW).unwrap();
        do_user_addr_fault(cpu, k, mm, BASE, false).unwrap();
        assert_eq!(bytes::<K>(mm, 0).unwrap().as_ptr(), k.zero_page.as_ptr());
        assert_eq!(get_mm_counter_sum(cpu, k, mm, MM_ANONPAGES), 0);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), 0, "a read prepares nothing");
        write(cpu, k, mm, 0);
        assert_ne!(bytes::<K>(mm, 0).unwrap().as_ptr(), k.zero_page.as_ptr());
        assert_eq!(get_mm_counter_sum(cpu, k, mm, MM_ANONPAGES), 1);
        do_user_addr_fault(cpu, k, mm, BASE + P, false).unwrap();
    });
}

fn errors<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        assert_eq!(vm_mmap(cpu, k, mm, Some(BASE), 0, RW), Err(Errno::EINVAL));
        assert_eq!(vm_mmap(cpu, k, mm, Some(BASE + 1), P, RW), Err(Errno::EINVAL));
        assert_eq!(vm_mmap(cpu, k, mm, Some(P), P, RW), Err(Errno::EPERM));
        assert_eq!(vm_mmap(cpu, k, mm, Some(0x7fff_ffff_f000), P, RW), Err(Errno::ENOMEM));
        assert_eq!(vm_mmap(cpu, k, mm, None, u64::MAX, RW), Err(Errno::ENOMEM));
        assert_eq!(map_args(cpu, k, mm, (0, P), PROT_READ, MAP_PRIVATE, None), Err(Errno::EBADF));
        assert_eq!(vm_munmap(cpu, k, mm, BASE + 1, P), Err(Errno::EINVAL));
        assert_eq!(vm_munmap(cpu, k, mm, BASE, 0), Err(Errno::EINVAL));
        assert_eq!(vm_munmap(cpu, k, mm, BASE, 1 << 50), Err(Errno::EINVAL));
        vm_mmap(cpu, k, mm, Some(BASE), 2 * P, VM_READ).unwrap();
        vm_mmap(cpu, k, mm, Some(BASE + 2 * P), P, 0).unwrap();
        let noreplace = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        assert_eq!(map_args(cpu, k, mm, (BASE + P, P), PROT_READ | PROT_WRITE, noreplace, None), Err(Errno::EEXIST));
        let fault = |p: u64, w| do_user_addr_fault(cpu, k, mm, BASE + p * P, w);
        assert_eq!(fault(0, true), Err(FaultError::Accerr));
        assert_eq!(fault(2, false), Err(FaultError::Accerr));
        assert_eq!(fault(3, false), Err(FaultError::Maperr));
        assert_eq!(cpu.counters.get(VmEvent::VmaLockSuccess), 2, "access errors are successes of the lock");
        assert_eq!(cpu.counters.get(VmEvent::AbortNone), 1);
    });
}

fn placement<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let top = MMAP_BASE;
        assert_eq!(vm_mmap(cpu, k, mm, None, P, RW), Ok(top - P));
        assert_eq!(vm_mmap(cpu, k, mm, None, 3 * P, VM_READ), Ok(top - 4 * P));
        vm_munmap(cpu, k, mm, top - 3 * P, P).unwrap();
        assert_eq!(vm_mmap(cpu, k, mm, None, 2 * P, RW), Ok(top - 6 * P), "too large for the hole");
        assert_eq!(vm_mmap(cpu, k, mm, None, P, RW), Ok(top - 3 * P), "the highest hole that fits");
        let big = vm_mmap(cpu, k, mm, None, 2 << 20, RW).unwrap();
        assert_eq!(big % (2 << 20), 0, "a large size is aligned for huge pages");
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        assert_eq!(map_args(cpu, k, mm, (BASE + 5, P), PROT_READ, flags, None), Ok(BASE), "a hint is rounded down");
        let r = map_args(cpu, k, mm, (BASE, P), PROT_READ, flags, None).unwrap();
        assert!(r > BASE, "a hint that is taken is ignored");
        check_tree(cpu, k, mm);
    });
}

fn limit<K: Kconfig<A = Native>>(boot: Boot) {
    let m = machine(1);
    let k = start_kernel::<K>(&m, &KernelConfig { max_map_count: 4, ..config(boot) });
    let cpu = k.cpu(0);
    let mm = mm_alloc(&cpu, &k);
    for i in 0..5 {
        vm_mmap(&cpu, &k, mm, Some(BASE + 4 * i * P), 3 * P, RW).unwrap();
    }
    assert_eq!(mm.map_count.get(), 5, "may reach the limit plus one");
    assert_eq!(vm_mmap(&cpu, &k, mm, Some(BASE + 80 * P), P, RW), Err(Errno::ENOMEM));
    assert_eq!(vm_munmap(&cpu, &k, mm, BASE + P, P), Err(Errno::ENOMEM), "two splits of one VMA");
    assert_eq!(vm_munmap(&cpu, &k, mm, BASE, P), Ok(()), "one split never fails");
    mmput(&cpu, &k, mm);
    assert!(shutdown(&cpu, &k).is_clean());
    assert_eq!(cpu.counters.get(VmEvent::Warn), 0);
}

fn tables<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let tables = || mm.pgtables_bytes.load(Relaxed) / P as i64;
        assert_eq!(tables(), 0);
        vm_mmap(cpu, k, mm, Some(BASE), 1024 * P, RW).unwrap();
        write(cpu, k, mm, 0);
        assert_eq!(tables(), 3);
        write(cpu, k, mm, 512);
        assert_eq!(tables(), 4);
        vm_munmap(cpu, k, mm, BASE, 511 * P).unwrap();
        assert_eq!(tables(), 4, "the last page of the first table is still mapped");
        vm_munmap(cpu, k, mm, BASE + 511 * P, P).unwrap();
        assert_eq!(tables(), 3);
        write(cpu, k, mm, 513);
        vm_munmap(cpu, k, mm, BASE + 512 * P, 512 * P).unwrap();
        assert_eq!(tables(), 0);
    });
}

fn sections<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let seq = || mm.mm_lock_seq.word().load(Relaxed);
        vm_mmap(cpu, k, mm, Some(BASE), 4 * P, RW).unwrap();
        assert_eq!(seq(), 2);
        vm_munmap(cpu, k, mm, BASE, P).unwrap();
        assert_eq!(seq(), 4);
        assert_eq!(cpu.counters.get(VmEvent::MmapLockDowngrade), 1);
        vm_munmap(cpu, k, mm, BASE, P).unwrap();
        assert_eq!((seq(), cpu.counters.get(VmEvent::MmapLockDowngrade)), (6, 1), "nothing there: no downgrade");
        write(cpu, k, mm, 1);
        assert_eq!(cpu.counters.get(VmEvent::VmaLockSuccess), 1, "the section's locks are gone");
        assert!(!mm.mmap_lock.is_locked());
    });
}

/// L15 of the lock invariants. A wrap can only make a VMA look locked; but a writer whose section has the very number that
/// the VMA was last marked with takes it for its own and does not wait for readers: 2^31 sections apart, in the kernel
/// as here.
fn wrap<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let seq = mm.mm_lock_seq.word();
        vm_mmap(cpu, k, mm, Some(BASE), 2 * P, RW).unwrap();
        write(cpu, k, mm, 0);
        seq.store(u32::MAX - 5, Relaxed);
        for i in 1..=8 {
            vm_mmap(cpu, k, mm, Some(BASE + 16 * i * P), 2 * P, RW).unwrap();
            write(cpu, k, mm, 16 * i);
            write(cpu, k, mm, 1);
            vm_munmap(cpu, k, mm, BASE + 16 * i * P, 2 * P).unwrap();
        }
        assert!(seq.load(Relaxed) < 64, "wrapped");
        assert_eq!(cpu.counters.get(VmEvent::VmaLockAbort), 0, "nobody looked locked");

        let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
        let vma = vma_next::<K>(cpu, &mut mas).expect("the first mapping");
        assert_eq!(K::Lock::vma_start_read(cpu, mm, vma, |_| unreachable!()), StartRead::Locked);
        if !K::Lock::EARLY_EXIT {
            // This one waits, however old the mark is.
            K::Lock::vma_end_read(cpu, vma);
            return;
        }
        let mark = vma.vm_lock_seq().load(Relaxed);
        assert_eq!(mark % 2, 1, "marked in a section, or never");
        seq.store(mark.wrapping_sub(1), Relaxed);
        mmap_write_lock(cpu, &mm);
        // With a reader inside this would wait for ever, if the mark were not taken for this section's.
        K::Lock::vma_start_write(cpu, vma);
        mmap_write_unlock(cpu, &mm);
        K::Lock::vma_end_read(cpu, vma);
    });
}
