// SPDX-License-Identifier: GPL-2.0-only
//! What is particular to a protocol or to a way of freeing (`tests/protocols.rs` runs every combination): what a constructor
//! made survives from one life of an object to the next; writers of 7.3 can be killed; the range walker of 7.3.

use super::*;
use crate::cpu::Errno;
use crate::cpu::sched::{flush_signals, send_sigkill};
use crate::cpu::tick::exit_to_user_mode;
use crate::init::run_on_cpus;
use crate::mm::memory::{
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_VMA_LOCK, FAULT_FLAG_WRITE, VM_FAULT_RETRY, handle_mm_fault,
};
use crate::mm::mm_types::VmaOf;
use crate::mm::mmap_lock::{lock_next_vma, lock_vma_under_rcu, mmap_write_lock, mmap_write_unlock};
use crate::mm::vma_init::{vm_area_alloc, vm_area_dup, vm_area_free};
use crate::mm::vma_lock::refcnt_exclude::RefcntExclude;
use crate::mm::vma_lock::rwsem::{Member, Rwsem};
use crate::mm::vma_lock::rwsem_keep_seq::KeepSeq;
use crate::mm::vma_lock::rwsem_reset_on_free::ResetOnFree;
use crate::mm::vma_lock::{StartRead, VmaLockEvent};
use crate::mm::{Config, sys_fork, vm_mmap, vm_munmap};
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::{down_read_trylock, up_read};

/// A stale reader's lock and, where the protocol keeps it, the sequence survive free, allocation and copy.
#[test]
fn a_constructor_runs_once_a_page_and_nothing_else_touches_the_lock() {
    fn one<M: Member>(kept: bool) {
        let boot = Boot { slab: Allocator::Slub, cache: VmaCache::Typesafe };
        with_mm::<Config<Native, Rwsem<M>>>(boot, |cpu, k, mm| {
            let v = vm_area_alloc(cpu, k, mm).unwrap();
            assert!(v.detached.load(Relaxed) == 1 && v.vm_lock_seq().load(Relaxed) == u32::MAX);
            assert!(v.anon_vma_chain().is_empty() && !v.vm_lock.is_locked());
            assert!(down_read_trylock(cpu, &v.vm_lock));
            v.vm_lock_seq().store(77, Relaxed);
            let at = v.as_ptr();
            vm_area_free::<Config<Native, Rwsem<M>>>(cpu, v);
            let again = vm_area_alloc(cpu, k, mm).unwrap();
            assert_eq!(again.as_ptr(), at, "last in, first out");
            let seq = if kept { 77 } else { u32::MAX };
            assert!(again.vm_lock.is_locked() && again.vm_lock_seq().load(Relaxed) == seq);
            assert!(again.detached.load(Relaxed) == 1 && again.anon_vma_chain().is_empty());
            let copy = vm_area_dup(cpu, k, again).unwrap();
            assert!(!copy.vm_lock.is_locked() && copy.vm_lock_seq().load(Relaxed) == u32::MAX);
            assert_eq!(copy.vm_mm().load(Relaxed), mm.as_ptr(), "a copy says at first that it is its source's");
            up_read(cpu, &again.vm_lock);
            vm_area_free::<Config<Native, Rwsem<M>>>(cpu, copy);
            vm_area_free::<Config<Native, Rwsem<M>>>(cpu, again);
        });
    }
    one::<KeepSeq>(true);
    one::<ResetOnFree>(false);
}

/// Where memory waits for a grace period there is nobody to spare: each allocation begins with a free lock.
#[test]
fn without_typesafe_memory_each_allocation_sets_the_lock() {
    let boot = Boot { slab: Allocator::Slub, cache: VmaCache::CallRcu };
    type K = Config<Native, Rwsem<KeepSeq>>;
    with_mm::<K>(boot, |cpu, k, mm| {
        let v = vm_area_alloc(cpu, k, mm).unwrap();
        v.vm_lock_seq().store(77, Relaxed);
        let at = v.as_ptr();
        vm_area_free::<K>(cpu, v);
        crate::rcu::rcu_barrier(cpu, &k.rcu);
        let again = vm_area_alloc(cpu, k, mm).unwrap();
        assert_eq!(again.as_ptr(), at, "last in, first out");
        assert_eq!(again.vm_lock_seq().load(Relaxed), u32::MAX);
        vm_area_free::<K>(cpu, again);
    });
}

type Newest = Config<Native, RefcntExclude>;
const NEWEST: Boot = Boot { slab: Allocator::Sheaves, cache: VmaCache::Typesafe };

/// The VMA at page `page`.
fn vma_at(cpu: &Cpu<Native>, k: &Kernel<Newest>, mm: MmPtr<Newest>, page: u64) -> crate::mm::VmaPtr<Newest> {
    let at = BASE + page * P;
    let mut mas = MaState::new(mm.mm_mt(), k.maple, at, at);
    vma_next::<Newest>(cpu, &mut mas).expect("mapped")
}

#[test]
fn a_killed_writer_leaves_the_lock_as_it_was() {
    with_mm::<Newest>(NEWEST, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(BASE), P, RW).unwrap();
        let vma = vma_at(cpu, k, mm, 0);
        rcu_read_lock(cpu);
        assert_eq!(RefcntExclude::lock_vma_found(cpu, mm, vma, BASE, |_| unreachable!()), StartRead::Locked);
        let (count, mark) = (vma.vm_refcnt.read(), vma.vm_lock_seq().load(Relaxed));
        assert_eq!(count, 2);
        mmap_write_lock(cpu, &mm);
        send_sigkill(cpu.task);
        // Without the signal this would wait for the reader, which is this very CPU.
        assert_eq!(RefcntExclude::vma_start_write_killable(cpu, vma), Err(Errno::EINTR));
        assert_eq!((vma.vm_refcnt.read(), vma.vm_lock_seq().load(Relaxed)), (count, mark));
        flush_signals(cpu);
        RefcntExclude::vma_end_read(cpu, vma);
        assert_eq!(RefcntExclude::vma_start_write_killable(cpu, vma), Ok(()));
        assert_eq!(vma.vm_lock_seq().load(Relaxed), mm.mm_lock_seq.word().load(Relaxed));
        // The section has it: nothing to wait for, whatever is pending.
        send_sigkill(cpu.task);
        assert_eq!(RefcntExclude::vma_start_write_killable(cpu, vma), Ok(()));
        flush_signals(cpu);
        mmap_write_unlock(cpu, &mm);
        assert_eq!(cpu.counters.get(VmaLockEvent::WriterWait), 1);
    });
}

/// A fork that waits for a reader of the second of three VMAs goes with its caller, and leaves both mms whole.
#[test]
fn a_fork_that_waits_for_a_reader_can_be_killed() {
    with_mm::<Newest>(NEWEST, |cpu, k, mm| {
        for page in [0, 4, 8] {
            vm_mmap(cpu, k, mm, Some(BASE + page * P), 2 * P, RW).unwrap();
        }
        let vma = vma_at(cpu, k, mm, 4);
        let locked = lock_vma_under_rcu(cpu, k, mm, BASE + 4 * P).expect("nobody writes");
        send_sigkill(cpu.task);
        assert_eq!(sys_fork(cpu, k, mm).err(), Some(Errno::EINTR));
        flush_signals(cpu);
        assert_eq!(vma.vm_refcnt.read(), 2, "the reader has it still");
        RefcntExclude::vma_end_read(cpu, locked);
        let child = sys_fork(cpu, k, mm).expect("nobody is in the way");
        assert_eq!(walk(cpu, k, child, 0), [(0, 2), (4, 6), (8, 10)]);
        mmput(cpu, k, child);
    });
}

/// The one way to ask for `mmap_lock` that needs no file.
#[test]
fn a_first_page_that_finds_mmap_lock_taken_is_retried_for_its_anon_vma() {
    with_mm::<Newest>(NEWEST, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(BASE), P, RW).unwrap();
        mmap_write_lock(cpu, &mm);
        let vma = lock_vma_under_rcu(cpu, k, mm, BASE).expect("no section has locked it");
        let flags = FAULT_FLAG_WRITE | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_VMA_LOCK;
        assert_eq!(handle_mm_fault(cpu, k, mm, vma, BASE, flags), VM_FAULT_RETRY);
        mmap_write_unlock(cpu, &mm);
        assert_eq!((cpu.counters.get(VmEvent::RetryAnonVma), cpu.counters.get(VmEvent::RetryIo)), (1, 0));
        // As do_user_addr_fault().
        cpu.count(VmEvent::Pgfault);
        cpu.count(VmEvent::VmaLockRetry);
    });
}

/// Walks the whole address space; pages of the VMAs as (first, first behind).
fn walk(cpu: &Cpu<Native>, k: &Kernel<Newest>, mm: MmPtr<Newest>, from: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut from = BASE + from * P;
    rcu_read_lock(cpu);
    let mut vmi = MaState::new(mm.mm_mt(), k.maple, from, from);
    while let Some(vma) = lock_next_vma::<Newest>(cpu, k, mm, &mut vmi, from).expect("nobody is killed") {
        rcu_read_unlock(cpu);
        let vma_of: &VmaOf<Native, RefcntExclude> = &vma;
        assert!(vma_of.vm_refcnt.read() >= 2);
        let range = (vma.vm_start().load(Relaxed), vma.vm_end().load(Relaxed));
        assert!(range.1 > from, "behind the walk");
        out.push((range.0.wrapping_sub(BASE) / P, range.1.wrapping_sub(BASE) / P));
        from = range.1;
        RefcntExclude::vma_end_read(cpu, vma);
        rcu_read_lock(cpu);
        // As a caller that left RCU must.
        crate::maple_tree::mas_set(&mut vmi, from);
    }
    rcu_read_unlock(cpu);
    out
}

#[test]
fn the_range_walker_sees_each_vma_once() {
    with_mm::<Newest>(NEWEST, |cpu, k, mm| {
        for page in [0, 4, 6, 20] {
            vm_mmap(cpu, k, mm, Some(BASE + page * P), 2 * P, if page == 6 { VM_READ } else { RW }).unwrap();
        }
        assert_eq!(walk(cpu, k, mm, 0), [(0, 2), (4, 6), (6, 8), (20, 22)]);
        assert_eq!(walk(cpu, k, mm, 5), [(4, 6), (6, 8), (20, 22)]);
        assert_eq!(walk(cpu, k, mm, 30), []);
        assert_eq!(cpu.counters.get(VmaLockEvent::NextLocked), 7);
        assert_eq!(cpu.counters.get(VmaLockEvent::NextFallback), 0);
        // A mark that happens to be the mm's number looks locked: the walker asks mmap_lock.
        let vma = vma_at(cpu, k, mm, 6);
        vma.vm_lock_seq().store(mm.mm_lock_seq.word().load(Relaxed), Relaxed);
        assert_eq!(walk(cpu, k, mm, 0), [(0, 2), (4, 6), (6, 8), (20, 22)]);
        assert_eq!(cpu.counters.get(VmaLockEvent::NextFallback), 1);
        assert!(!mm.mmap_lock.is_locked());
    });
}

/// One walks while the other maps and unmaps every other VMA: those that stay are seen in each walk, in order.
#[test]
fn the_range_walker_misses_nothing_that_stays() {
    let m = machine(2);
    let k = start_kernel::<Newest>(&m, &config(NEWEST).hz(1000));
    let boot = k.cpu(0);
    let mm = mm_alloc(&boot, &k);
    let stays: Vec<u64> = (0..16).map(|i| 8 * i).collect();
    for page in &stays {
        vm_mmap(&boot, &k, mm, Some(BASE + page * P), 2 * P, RW).unwrap();
    }
    let over = std::sync::atomic::AtomicBool::new(false);
    let all = run_on_cpus(&m, &k, 2, |cpu| {
        if cpu.id == 1 {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let page = 8 * (cpu.random() % 16) + 4;
                vm_mmap(cpu, &k, mm, Some(BASE + page * P), 2 * P, RW).unwrap();
                exit_to_user_mode(cpu);
                vm_munmap(cpu, &k, mm, BASE + page * P, 2 * P).unwrap();
                exit_to_user_mode(cpu);
            }
            return;
        }
        for _ in 0..3000 {
            let seen = walk(cpu, &k, mm, 0);
            assert!(seen.windows(2).all(|w| w[0].1 <= w[1].0), "in order: {seen:?}");
            let kept: Vec<u64> = seen.iter().map(|v| v.0).filter(|p| p % 8 == 0).collect();
            assert_eq!(kept, stays);
            exit_to_user_mode(cpu);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let n = |e: VmaLockEvent| all.iter().map(|c| c[crate::cpu::Counter::slot(e)]).sum::<u64>();
    eprintln!("locked {} fallbacks {}", n(VmaLockEvent::NextLocked), n(VmaLockEvent::NextFallback));
    assert!(n(VmaLockEvent::NextLocked) + n(VmaLockEvent::NextFallback) >= 3000 * 16);
    mmput(&boot, &k, mm);
    assert!(shutdown(&boot, &k).is_clean());
    assert_eq!(boot.counters.get(VmEvent::Warn), 0);
}
