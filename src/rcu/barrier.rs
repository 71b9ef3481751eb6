// SPDX-License-Identifier: GPL-2.0-only
//! Waiting for callbacks and for grace periods [kernel/rcu/tree.c: rcu_barrier, synchronize_rcu_normal, 6.12].
//!
//! `rcu_barrier()` asks each CPU that has callbacks to put one more behind them and waits until all of those were
//! called. It starts no grace period.
//!
//! custom: the handler runs at the CPU's next operation boundary or idle turn instead of in an interrupt, and the
//! asker sleeps a jiffy at a time meanwhile, serving requests itself, where the kernel spins. A CPU that is not up
//! cannot be asked: the asker waits for it to come back. While no CPU is up and no grace-period thread runs (boot,
//! small tests), nobody can be a reader, and `rcu_barrier()` calls what is queued at once.
//!
//! `synchronize_rcu()` is 6.12's default, a callback and a completion; its callback lives in `rcu_data`, as one task a CPU
//! can wait for one at a time. As options it is 7.3's, a list that the grace-period thread wakes, or expedited. custom:
//! that thread wakes all of the list; the kernel's wakes five and leaves the rest to a worker.

use super::gp_kthread::rcu_gp_cleanup;
use super::poll::start_poll_synchronize_rcu;
use super::poll::{rcu_poll_gp_seq_end_unlocked, rcu_poll_gp_seq_start_unlocked};
use super::rcu_segcblist::RcuCblist;
use super::rcu_seq::{rcu_seq_ctr, rcu_seq_done, rcu_seq_end, rcu_seq_snap, rcu_seq_start, rcu_seq_state};
use super::tree::{RcuState, call_rcu_hurry, rcu_call, rcu_gp_in_progress};
use super::tree_exp::{rcu_exp_handler, synchronize_rcu_expedited};
use super::tree_init::RcuData;
use super::tree_nocb::{rcu_nocb_entrain, rcu_nocb_flush_all};
use super::{RcuCounter, RcuExtCounter, RcuHead};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed, Release, smp_mb};
use crate::cpu::smp::{CALL_RCU_BARRIER, CALL_RCU_EXP};
use crate::cpu::{Cpu, sched};
use crate::sync::{
    Mutex, Rcuwait, mutex_lock, mutex_unlock, raw_spin_lock, raw_spin_unlock, rcuwait_wait_event, rcuwait_wake_up,
};
use std::mem::offset_of;
use std::ptr::{NonNull, null_mut};

/// `synchronize_rcu()` calls that may wait on the list at once (7.3).
const SR_NORMAL_MAX_IN_FLIGHT: u32 = 64;

/// What `smp_call_function()` runs on the CPU asked.
pub(super) fn rcu_call_function<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, bits: u32) {
    if bits & CALL_RCU_EXP != 0 {
        rcu_exp_handler(cpu, rcu);
    }
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
    rcu.barrier.put(1);
}

/// `barrier_cpu_count` and `barrier_completion`: callbacks that a barrier waits for, and its two of its own.
pub(crate) struct BarrierCount<A: Arch> {
    cpu_count: Atomic<A, i32>,
    wait: Rcuwait<A>,
    done: Atomic<A, u32>,
}

impl<A: Arch> BarrierCount<A> {
    pub fn new() -> Self {
        BarrierCount { cpu_count: Atomic::new(0), wait: Rcuwait::new(), done: Atomic::new(0) }
    }

    /// A barrier begins.
    pub fn begin(&self) {
        self.done.store(0, Relaxed);
        // Two of its own, so that the count cannot reach 0 before all CPUs were asked.
        self.cpu_count.store(2, Relaxed);
    }

    /// One callback more.
    pub fn get(&self) {
        self.cpu_count.fetch_add(1, Full);
    }

    /// `atomic_sub_and_test()` and `complete()`.
    pub fn put(&self, n: i32) {
        // ORDER: full; all that callbacks did comes before the count that completes the barrier.
        if self.cpu_count.fetch_sub(n, Full) == n {
            // ORDER: release; meets the acquire in BarrierCount::wait().
            self.done.store(1, Release);
            rcuwait_wake_up(&self.wait);
        }
    }

    /// `wait_for_completion()`
    pub fn wait(&self, cpu: &Cpu<A>) {
        // ORDER: acquire; meets BarrierCount::put().
        rcuwait_wait_event(cpu, &self.wait, || self.done.load(Acquire) != 0);
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
    let head = (&raw const rdp.barrier_head).cast_mut();
    if rdp.offloaded {
        // Before it is queued: the thread may call it at once.
        rcu.barrier.get();
    }
    // SAFETY: lives as long as the kernel; not queued, since the barrier before was over.
    let queued =
        unsafe { if rdp.offloaded { rcu_nocb_entrain(cpu, rcu, rdp, head) } else { rdp.cblist.entrain(head) } };
    if queued {
        cpu.count(RcuCounter::CallbacksQueued);
        if !rdp.offloaded {
            rcu.barrier.get();
        }
    } else if rdp.offloaded {
        // Not the last: the asker's two are still there.
        rcu.barrier.put(1);
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
            rcu_call_all(cpu, rcu, rdp);
        }
        return;
    }
    let s = rcu_seq_snap(&rcu.barrier_sequence);
    rcu_barrier_in_turn(cpu, &rcu.barrier_mutex, &rcu.barrier_sequence, s, rcu_seq_done, || {
        raw_spin_lock(cpu, &rcu.barrier_lock);
        // ORDER: its full barrier comes before the looks at `len` below; meets add_len().
        rcu_seq_start(&rcu.barrier_sequence);
        let gseq = rcu.barrier_sequence.load(Relaxed);
        rcu.barrier.begin();
        raw_spin_unlock(cpu, &rcu.barrier_lock);

        for rdp in rcu.rda.iter() {
            rcu_barrier_one(cpu, rcu, rdp, gseq);
        }
        rcu.barrier.put(2);
        rcu.barrier.wait(cpu);

        rcu_seq_end(&rcu.barrier_sequence);
        let gseq = rcu.barrier_sequence.load(Relaxed);
        for rdp in rcu.rda.iter() {
            rdp.remote.barrier_seq_snap.store(gseq, Relaxed);
        }
    });
}

/// The frame of [`rcu_barrier`]: one at a time, and none where another's, begun after `s` was taken, has ended meanwhile.
/// `done` is [`rcu_seq_done`]; a parameter so that a model can take another.
#[inline(always)]
pub(crate) fn rcu_barrier_in_turn<A: Arch>(
    cpu: &Cpu<A>,
    mutex: &Mutex<A>,
    sequence: &Atomic<A, u64>,
    s: u64,
    done: impl Fn(u64, u64) -> bool,
    barrier: impl FnOnce(),
) {
    mutex_lock(cpu, mutex);
    if done(sequence.load(Relaxed), s) {
        // ORDER: full; the caller's accesses come after another caller's whole barrier.
        smp_mb::<A>();
    } else {
        barrier();
    }
    mutex_unlock(cpu, mutex);
}

/// `rcu_scheduler_active == RCU_SCHEDULER_INACTIVE`: one thread, so that every moment is a grace period. CPUs that
/// sleep are up: their callbacks are theirs to call, even where the grace-period thread has not run yet.
pub(super) fn rcu_scheduler_inactive<A: Arch>(rcu: &RcuState<A>) -> bool {
    rcu.gp_kthread.load(Acquire).is_null() && rcu.rda.iter().all(|r| r.remote.task.load(Acquire).is_null())
}

/// Calls all that is queued on a CPU that is not up.
fn rcu_call_all<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    while rdp.cblist.n_cbs() != 0 {
        if rdp.offloaded {
            rcu_nocb_flush_all(cpu, rcu, rdp);
        }
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
        if rdp.offloaded {
            // PORT: the list has a lock, so nobody need be asked.
            cpu.count(RcuCounter::BarrierHandlers);
            rcu_barrier_entrain(cpu, rcu, rdp);
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
unsafe fn wakeme_after_rcu<A: Arch>(_: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the caller's.
    unsafe {
        let rdp = head.byte_sub(offset_of!(RcuData<A>, sync_head)).cast::<RcuData<A>>();
        complete(&*rdp);
    }
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
    debug_assert_eq!(cpu.probe.rcu_nesting.get(), 0, "synchronize_rcu() inside a reader");
    if rcu_scheduler_inactive(rcu) {
        return synchronize_rcu_vacuous(cpu, rcu);
    }
    if rcu.config.expedited {
        return synchronize_rcu_expedited(cpu, rcu);
    }
    assert!(cpu.hooks.get().is_some(), "synchronize_rcu() on a CPU that RCU does not know");
    let rdp = rcu.rda.this(cpu);
    rdp.sync_task.store(cpu.task.as_ptr(), Relaxed);
    rdp.sync_done.store(0, Relaxed);
    if !(rcu.config.normal_wake_from_gp && rcu_sr_normal_add_req(cpu, rcu, rdp)) {
        // SAFETY: lives as long as the kernel; the wait below ends only after it was called.
        unsafe { call_rcu_hurry(cpu, rcu, (&raw const rdp.sync_head).cast_mut(), wakeme_after_rcu::<A>) };
    }
    loop {
        sched::set_current_state_sleeping(cpu);
        // ORDER: acquire; meets complete(): all that the grace period orders comes before what the caller does next.
        if rdp.sync_done.load(Acquire) != 0 {
            break;
        }
        sched::schedule(cpu, None);
    }
    sched::set_current_state_running(cpu);
}

/// `complete()` of the task that waits on `rdp`'s CPU. The task may be gone right after.
fn complete<A: Arch>(rdp: &RcuData<A>) {
    let task = rdp.sync_task.load(Relaxed);
    // ORDER: release; meets synchronize_rcu(). The barrier of wake_up_process() meets set_current_state_sleeping().
    rdp.sync_done.store(1, Release);
    if let Some(t) = NonNull::new(task) {
        // SAFETY: tasks live as long as the kernel.
        sched::wake_up_process(unsafe { KRef::new(t) });
    }
}

/// `rcu_sr_normal_add_req()`, and the request for the grace period; false where the list is full.
fn rcu_sr_normal_add_req<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) -> bool {
    // ORDER: relaxed; a limit, not a lock.
    if rcu.srs_in_flight.fetch_add(1, Relaxed) >= SR_NORMAL_MAX_IN_FLIGHT {
        rcu.srs_in_flight.fetch_sub(1, Relaxed);
        cpu.count(RcuExtCounter::SrsFallbacks);
        return false;
    }
    let me = std::ptr::from_ref(rdp).cast_mut();
    let mut head = rcu.srs_next.load(Relaxed);
    loop {
        rdp.srs_link.store(head, Relaxed);
        // ORDER: full; the link, and what the caller unlinked, before the grace-period thread takes the list.
        match rcu.srs_next.cmpxchg(head, me, Full) {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    start_poll_synchronize_rcu(cpu, rcu);
    true
}

/// `rcu_sr_normal_gp_init()`: the grace period about to start is for those on the list now.
pub(super) fn rcu_sr_normal_gp_init<A: Arch>(rcu: &RcuState<A>) {
    debug_assert!(rcu.srs_wait.get().is_null(), "a grace period ended without waking its waiters");
    if !rcu.srs_next.load(Relaxed).is_null() {
        // ORDER: full; meets rcu_sr_normal_add_req(): the links are whole, and what their callers unlinked comes before
        // rcu_seq_start().
        rcu.srs_wait.set(rcu.srs_next.swap(null_mut(), Full));
    }
}

/// `rcu_sr_normal_gp_cleanup()`: wakes them.
// PORT: the kernel's wakes five and leaves the rest to a worker, so as not to be late for the next grace period; the
// port's wakes all, and its list needs no dummies to tell the worker where to stop.
pub(super) fn rcu_sr_normal_gp_cleanup<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let mut at = rcu.srs_wait.get();
    rcu.srs_wait.set(null_mut());
    while let Some(p) = NonNull::new(at) {
        // SAFETY: data of CPUs live as long as the kernel.
        let rdp = unsafe { p.as_ref() };
        at = rdp.srs_link.load(Relaxed);
        rcu.srs_in_flight.fetch_sub(1, Relaxed);
        cpu.count(RcuExtCounter::SrsWakeups);
        complete(rdp);
    }
}
