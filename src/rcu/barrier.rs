// SPDX-License-Identifier: GPL-2.0-only
//! Waiting for callbacks and for grace periods [kernel/rcu/tree.c: rcu_barrier, synchronize_rcu_normal, 6.12].
//!
//! `rcu_barrier()` asks each CPU that has callbacks to put one more behind them and waits until all of those were
//! called. It starts no grace period.
//!
//! custom: the handler runs at the CPU's next operation boundary or idle turn instead of in an interrupt, and the
//! asker sleeps a jiffy at a time meanwhile, serving requests itself, where the kernel spins. A CPU that is not up
//! cannot be asked: the asker waits for it to come back. While no CPU is up and no grace-period thread runs (boot,
//! small tests), nobody can be a reader, and `rcu_barrier()` calls what is queued at once. `synchronize_rcu()` is 6.12's default, a callback and a
//! completion; its callback lives in `rcu_data`, as one task a CPU can wait for one at a time.

use super::RcuCounter;
use super::RcuHead;
use super::gp_kthread::rcu_gp_cleanup;
use super::poll::{rcu_poll_gp_seq_end_unlocked, rcu_poll_gp_seq_start_unlocked};
use super::rcu_segcblist::RcuCblist;
use super::rcu_seq::{rcu_seq_ctr, rcu_seq_done, rcu_seq_end, rcu_seq_snap, rcu_seq_start, rcu_seq_state};
use super::tree::{RcuState, call_rcu, rcu_call, rcu_gp_in_progress};
use super::tree_init::RcuData;
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Full, Relaxed, Release, smp_mb};
use crate::cpu::smp::CALL_RCU_BARRIER;
use crate::cpu::{Cpu, sched};
use crate::sync::{mutex_lock, mutex_unlock, raw_spin_lock, raw_spin_unlock, rcuwait_wait_event, rcuwait_wake_up};
use std::mem::offset_of;
use std::ptr::NonNull;

/// What `smp_call_function()` runs on the CPU asked.
pub(super) fn rcu_call_function<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, bits: u32) {
    if bits & CALL_RCU_BARRIER != 0 {
        rcu_barrier_handler(cpu, rcu);
    }
}

/// `rcu_barrier_callback()`
///
/// # Safety
/// `head` is the `barrier_head` of an `RcuData`.
unsafe fn rcu_barrier_callback<A: Arch>(_cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the caller's; the data lives as long as the kernel and knows its state.
    let rcu = unsafe {
        let rdp = head.byte_sub(offset_of!(RcuData<A>, barrier_head)).cast::<RcuData<A>>();
        (*head).next.store(head, Relaxed);
        &*(*rdp).state.get()
    };
    rcu_barrier_put(rcu, 1);
}

/// `atomic_sub_and_test()` and `complete()`.
fn rcu_barrier_put<A: Arch>(rcu: &RcuState<A>, n: i32) {
    // ORDER: full; all that callbacks did comes before the count that completes the barrier.
    if rcu.barrier_cpu_count.fetch_sub(n, Full) == n {
        // ORDER: release; meets the acquire in rcu_barrier()'s wait.
        rcu.barrier_done.store(1, Release);
        rcuwait_wake_up(&rcu.barrier_wait);
    }
}

/// `rcu_barrier_entrain()`; `barrier_lock` is held.
fn rcu_barrier_entrain<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    let gseq = rcu.barrier_sequence.load(Relaxed);
    let lseq = rdp.remote.barrier_seq_snap.load(Relaxed);
    if rcu_seq_state(lseq) != 0 || rcu_seq_state(gseq) == 0 || rcu_seq_ctr(lseq) != rcu_seq_ctr(gseq) {
        return;
    }
    rdp.barrier_head.func.store(rcu_barrier_callback::<A> as *const () as usize, Relaxed);
    // SAFETY: lives as long as the kernel; not queued, since the barrier before was over.
    if unsafe { rdp.cblist.entrain((&raw const rdp.barrier_head).cast_mut()) } {
        cpu.count(RcuCounter::CallbacksQueued);
        rcu.barrier_cpu_count.fetch_add(1, Full);
    }
    // ORDER: release; meets the acquire in rcu_barrier(): who sees the number sees the count raised.
    rdp.remote.barrier_seq_snap.store(gseq, Release);
}

/// `rcu_barrier_handler()`, on the CPU asked.
fn rcu_barrier_handler<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    cpu.count(RcuCounter::BarrierHandlers);
    raw_spin_lock(cpu, &rcu.barrier_lock);
    rcu_barrier_entrain(cpu, rcu, rcu.rda.this(cpu));
    raw_spin_unlock(cpu, &rcu.barrier_lock);
}

/// `rcu_barrier()`: returns when every callback queued before the call was called. From a worker or a kernel thread,
/// at a place where it may sleep.
pub fn rcu_barrier<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    if rcu_scheduler_inactive(rcu) {
        // The counts go on with it: callbacks may ask whether their grace period has passed.
        synchronize_rcu_vacuous(cpu, rcu);
        for rdp in rcu.rda.iter() {
            rcu_call_all(cpu, rdp);
        }
        return;
    }
    let s = rcu_seq_snap(&rcu.barrier_sequence);
    mutex_lock(cpu, &rcu.barrier_mutex);
    if rcu_seq_done(rcu.barrier_sequence.load(Relaxed), s) {
        // ORDER: full; the caller's accesses come after another caller's whole barrier.
        smp_mb::<A>();
        mutex_unlock(cpu, &rcu.barrier_mutex);
        return;
    }
    raw_spin_lock(cpu, &rcu.barrier_lock);
    // ORDER: its full barrier comes before the looks at `len` below; meets add_len().
    rcu_seq_start(&rcu.barrier_sequence);
    let gseq = rcu.barrier_sequence.load(Relaxed);
    rcu.barrier_done.store(0, Relaxed);
    // Two of its own, so that the count cannot reach 0 before all CPUs were asked.
    rcu.barrier_cpu_count.store(2, Relaxed);
    raw_spin_unlock(cpu, &rcu.barrier_lock);

    for rdp in rcu.rda.iter() {
        rcu_barrier_one(cpu, rcu, rdp, gseq);
    }
    rcu_barrier_put(rcu, 2);
    // ORDER: acquire; meets rcu_barrier_put().
    rcuwait_wait_event(cpu, &rcu.barrier_wait, || rcu.barrier_done.load(Acquire) != 0);

    rcu_seq_end(&rcu.barrier_sequence);
    let gseq = rcu.barrier_sequence.load(Relaxed);
    for rdp in rcu.rda.iter() {
        rdp.remote.barrier_seq_snap.store(gseq, Relaxed);
    }
    mutex_unlock(cpu, &rcu.barrier_mutex);
}

/// `rcu_scheduler_active == RCU_SCHEDULER_INACTIVE`: one thread, so that every moment is a grace period. CPUs that
/// sleep are up: their callbacks are theirs to call, even where the grace-period thread has not run yet.
fn rcu_scheduler_inactive<A: Arch>(rcu: &RcuState<A>) -> bool {
    rcu.gp_kthread.load(Acquire).is_null() && rcu.rda.iter().all(|r| r.remote.task.load(Acquire).is_null())
}

/// Calls all that is queued on a CPU that is not up.
fn rcu_call_all<A: Arch>(cpu: &Cpu<A>, rdp: &RcuData<A>) {
    while rdp.cblist.n_cbs() != 0 {
        let mut rcl = RcuCblist::new();
        rdp.cblist.extract_all(&mut rcl);
        // SAFETY: call_rcu()'s contract.
        let n = unsafe { rcu_invoke(cpu, &mut rcl) };
        rdp.cblist.add_len(-n);
        cpu.counters.add(RcuCounter::CallbacksInvoked, n as u64);
    }
}

/// Calls the callbacks of `rcl`; how many.
///
/// # Safety
/// They are alive and were queued by `call_rcu()`.
unsafe fn rcu_invoke<A: Arch>(cpu: &Cpu<A>, rcl: &mut RcuCblist<A>) -> i64 {
    let mut n = 0;
    loop {
        // SAFETY: the caller's.
        let rhp = unsafe { rcl.dequeue() };
        if rhp.is_null() {
            return n;
        }
        n += 1;
        // SAFETY: the caller's.
        unsafe { rcu_call(cpu, rhp) };
    }
}

/// Sees to it that `rdp`'s CPU has a callback for this barrier, or needs none.
fn rcu_barrier_one<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, gseq: u64) {
    let mut asked = false;
    // ORDER: acquire; meets rcu_barrier_entrain().
    while rdp.remote.barrier_seq_snap.load(Acquire) != gseq {
        raw_spin_lock(cpu, &rcu.barrier_lock);
        if rdp.cblist.n_cbs() == 0 {
            rdp.remote.barrier_seq_snap.store(gseq, Relaxed);
            raw_spin_unlock(cpu, &rcu.barrier_lock);
            return;
        }
        raw_spin_unlock(cpu, &rcu.barrier_lock);
        if rdp.cpu == cpu.id {
            rcu_barrier_handler(cpu, rcu);
            continue;
        }
        // ORDER: acquire; meets install_hooks().
        if !asked && let Some(task) = NonNull::new(rdp.remote.task.load(Acquire)) {
            // SAFETY: task and request word live as long as the kernel.
            unsafe { (*rdp.remote.call.load(Relaxed)).request(CALL_RCU_BARRIER, KRef::new(task)) };
            asked = true;
        }
        sched::set_current_state_sleeping(cpu);
        sched::schedule(cpu, Some((rcu.jiffies() + 1) * rcu.period));
    }
}

/// The callback of `synchronize_rcu()` (`wakeme_after_rcu()`).
///
/// # Safety
/// `head` is the `sync_head` of this CPU's data.
unsafe fn wakeme_after_rcu<A: Arch>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the caller's.
    unsafe {
        let rdp = head.byte_sub(offset_of!(RcuData<A>, sync_head)).cast::<RcuData<A>>();
        (*rdp).sync_done.set(1);
    }
    sched::wake_up_process(cpu.task);
}

/// `synchronize_rcu()` where each moment is a grace period: only the counts move on.
fn synchronize_rcu_vacuous<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    if rcu_gp_in_progress(rcu) {
        // PORT: left unfinished by a thread that was stopped; nobody is up, so nobody owes. In the kernel nothing has
        // started one so early.
        rcu.node.iter().for_each(|rnp| rnp.qsmask.store(0, Relaxed));
        rcu_gp_cleanup(cpu, rcu);
    }
    rcu_poll_gp_seq_start_unlocked(cpu, rcu, &rcu.gp.gp_seq_polled_snap);
    rcu_poll_gp_seq_end_unlocked(cpu, rcu, &rcu.gp.gp_seq_polled_snap);
    rcu_seq_start(&rcu.gp.gp_seq);
    rcu_seq_end(&rcu.gp.gp_seq);
    for rnp in rcu.node.iter() {
        rnp.gp_seq.store(rcu.gp.gp_seq.load(Relaxed), Relaxed);
        rnp.gp_seq_needed.set(rcu.gp.gp_seq.load(Relaxed));
    }
}

/// `synchronize_rcu()`: returns when every reader that runs now has ended. On a worker, outside readers.
pub fn synchronize_rcu<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    debug_assert_eq!(cpu.rcu_nesting.get(), 0, "synchronize_rcu() inside a reader");
    if rcu_scheduler_inactive(rcu) {
        return synchronize_rcu_vacuous(cpu, rcu);
    }
    assert!(cpu.hooks.get().is_some(), "synchronize_rcu() on a CPU that RCU does not know");
    let rdp = rcu.rda.this(cpu);
    rdp.sync_done.set(0);
    // SAFETY: lives as long as the kernel; the wait below ends only after it was called.
    unsafe { call_rcu(cpu, rcu, (&raw const rdp.sync_head).cast_mut(), wakeme_after_rcu::<A>) };
    loop {
        sched::set_current_state_sleeping(cpu);
        if rdp.sync_done.get() != 0 {
            break;
        }
        sched::schedule(cpu, None);
    }
    sched::set_current_state_running(cpu);
}
