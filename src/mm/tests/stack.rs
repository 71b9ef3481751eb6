// SPDX-License-Identifier: GPL-2.0-only
//! Stacks that grow, pages faulted in ahead, and the queue of pages on their way out (vma-ops.md 9, 12).

use super::*;
use crate::cpu::Errno;
use crate::mm::FaultError;
use crate::mm::gup::{__mm_populate, faultin_page_range, mm_populate};
use crate::mm::memory::get_mm_counter_sum;
use crate::mm::mm_types::{MM_ANONPAGES, RLIMIT_STACK};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_PRIVATE, MmapArgs, PROT_READ, PROT_WRITE, do_mmap};
use crate::mm::mmap_lock::{mmap_read_lock, mmap_read_unlock};
use crate::mm::mmu_gather::{MAX_GATHER_BATCH, MAX_GATHER_BATCH_COUNT, MmuGather};
use crate::mm::pgtable::alloc_user_page;
use crate::mm::{dup_mm, vm_mmap, vm_munmap};

on_every_variant! {
    fn a_stack_grows_to_the_page_of_the_fault = grows;
    fn a_gap_stays_below_it = gap;
    fn limits_of_a_stack = limits;
    fn populate_writes_what_is_private_and_writable = populate;
    fn a_queue_of_more_pages_than_it_holds = gather;
    fn a_queue_is_full_after_its_nineteenth_page = full_queue;
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, prot: u32, more: u32) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | more;
    let addr = BASE.wrapping_add(p.wrapping_mul(P));
    do_mmap(cpu, k, mm, &MmapArgs { addr, len: n * P, prot, flags, file: None, offset: 0 }).unwrap();
}

fn stack<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>) {
    map(cpu, k, mm, 1000, 2, PROT_READ | PROT_WRITE, MAP_GROWSDOWN);
}

fn fault<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64) -> Result<(), FaultError> {
    do_user_addr_fault(cpu, k, mm, BASE + p * P + 8, true)
}

fn grows<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        stack(cpu, k, mm);
        let count = || (cpu.counters.get(VmEvent::MmapLockWrite), cpu.counters.get(VmEvent::MmapLockDowngrade));
        let before = count();
        assert_eq!(alloc_free(cpu, || fault(cpu, k, mm, 999).unwrap()), (0, 0));
        assert_eq!(count(), (before.0 + 1, before.1 + 1), "grown under the lock for write, which is downgraded");
        assert_eq!(layout(cpu, k, mm), [(999, 1002)]);
        fault(cpu, k, mm, 900).unwrap();
        assert_eq!(layout(cpu, k, mm), [(900, 1002)]);
        let v = crate::mm::vma::find_vma(cpu, k, mm, BASE).unwrap();
        assert_eq!(v.vm_pgoff().load(Relaxed), BASE / P + 900, "the offset goes down with it");
        assert_eq!((mm.stack_vm.get(), mm.total_vm.load(Relaxed)), (102, 102));
        // Above it nothing grows.
        assert_eq!(fault(cpu, k, mm, 1002), Err(FaultError::Maperr));
        // A child's stack grows by itself.
        let child = dup_mm(cpu, k, mm).unwrap();
        fault(cpu, k, child, 890).unwrap();
        assert_eq!((layout(cpu, k, child), layout(cpu, k, mm)), (vec![(890, 1002)], vec![(900, 1002)]));
        mmput(cpu, k, child);
        vm_munmap(cpu, k, mm, BASE + 900 * P, 102 * P).unwrap();
    });
}

fn gap<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        stack(cpu, k, mm);
        map(cpu, k, mm, 500, 1, PROT_READ, 0);
        // 256 pages stay free above what is accessible.
        assert_eq!(fault(cpu, k, mm, 501 + 255), Err(FaultError::Maperr));
        assert_eq!(layout(cpu, k, mm), [(500, 501), (1000, 1002)]);
        fault(cpu, k, mm, 501 + 256).unwrap();
        assert_eq!(layout(cpu, k, mm), [(500, 501), (757, 1002)]);
        // What nobody may access is no obstacle, down to its very end.
        map(cpu, k, mm, 500, 1, 0, 0);
        fault(cpu, k, mm, 501).unwrap();
        assert_eq!(layout(cpu, k, mm), [(500, 501), (501, 1002)], "and it does not merge");
        vm_munmap(cpu, k, mm, BASE + 500 * P, 502 * P).unwrap();
    });
}

fn limits<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        stack(cpu, k, mm);
        mm.rlim[RLIMIT_STACK].0.set(100 * P);
        assert_eq!(fault(cpu, k, mm, 901), Err(FaultError::Maperr));
        fault(cpu, k, mm, 902).unwrap();
        assert_eq!(layout(cpu, k, mm), [(902, 1002)]);
        vm_munmap(cpu, k, mm, BASE + 902 * P, 100 * P).unwrap();
        // Nor below the lowest address of all.
        map(cpu, k, mm, 0x1_2000u64.wrapping_sub(BASE) / P, 1, PROT_READ | PROT_WRITE, MAP_GROWSDOWN);
        do_user_addr_fault(cpu, k, mm, 0x1_0000, true).unwrap();
        assert_eq!(do_user_addr_fault(cpu, k, mm, 0xf000, true), Err(FaultError::Maperr));
        vm_munmap(cpu, k, mm, 0x1_0000, 3 * P).unwrap();
    });
}

fn populate<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, PROT_READ | PROT_WRITE, 0);
        map(cpu, k, mm, 4, 2, PROT_READ, 0);
        map(cpu, k, mm, 8, 2, 0, 0);
        map(cpu, k, mm, 10, 2, PROT_READ | PROT_WRITE, 0);
        // Holes do not matter, a mapping without rights does.
        assert_eq!(__mm_populate(cpu, k, mm, BASE, 12 * P, false), Err(Errno::EFAULT));
        let pte = |p| pte_lookup::<K>(mm, BASE + p * P);
        assert!((0..4).all(|p| pte(p) & PAGE_RW != 0));
        assert!((4..6).all(|p| (pte(p) & PTE_PFN_MASK) as *mut u8 == k.zero_page.as_ptr()));
        assert!((8..12).all(|p| pte(p) == 0));
        mm_populate(cpu, k, mm, BASE, 12 * P);
        assert!((8..10).all(|p| pte(p) == 0) && (10..12).all(|p| pte(p) & PAGE_RW != 0));
        // The other way in tells holes and rights apart.
        mmap_read_lock(cpu, &*mm);
        let mut locked = true;
        let mut ask = |from: u64, to: u64, write| {
            let r = faultin_page_range(cpu, k, mm, BASE + from * P, BASE + to * P, write, &mut locked);
            assert!(locked);
            r
        };
        assert_eq!(ask(0, 6, false), Ok(6));
        assert_eq!(ask(0, 6, true), Ok(4));
        assert_eq!(ask(4, 6, true), Err(Errno::EINVAL));
        assert_eq!(ask(6, 8, false), Err(Errno::ENOMEM));
        assert_eq!(ask(8, 9, false), Err(Errno::EINVAL));
        mmap_read_unlock(cpu, &*mm);
    });
}

fn gather<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let n = (7 + MAX_GATHER_BATCH_COUNT * (MAX_GATHER_BATCH - 1) + 1000) as u64;
        assert!(n > 10_000);
        for fork in [false, true] {
            vm_mmap(cpu, k, mm, Some(BASE), n * P, RW).unwrap();
            mm_populate(cpu, k, mm, BASE, n * P);
            assert_eq!(get_mm_counter_sum(cpu, k, mm, MM_ANONPAGES), n as i64);
            let freed = || cpu.counters.get(VmEvent::Pgfree);
            let before = freed();
            let child = fork.then(|| dup_mm(cpu, k, mm).unwrap());
            vm_munmap(cpu, k, mm, BASE, n * P).unwrap();
            assert_eq!(get_mm_counter_sum(cpu, k, mm, MM_ANONPAGES), 0);
            if let Some(child) = child {
                assert!(freed() - before < n / 4, "the child has the pages: only tables went");
                mmput(cpu, k, child);
            }
            assert!(freed() - before >= n);
            assert_eq!(mm.pgtables_bytes.load(Relaxed), 0);
        }
    });
}

fn full_queue<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, _| {
        let freed = || cpu.counters.get(VmEvent::Pgfree);
        let mut tlb = MmuGather::new();
        // The second time the queue's own pages are there already.
        for _ in 0..2 {
            let before = freed();
            let mut n = 1;
            while !tlb.remove_page(cpu, k, alloc_user_page(cpu, k, "test")) {
                n += 1;
            }
            assert_eq!((n, freed() - before), (7 + 19 * 509, 0), "an entry of each stays free");
            tlb.flush(cpu, k);
            assert_eq!(freed() - before, n);
        }
        tlb.finish(cpu, k);
    });
}
