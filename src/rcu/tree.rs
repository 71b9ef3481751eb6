// SPDX-License-Identifier: GPL-2.0-only
//! The CPU's side of Tree RCU: queueing, the tick, the core, reports up the tree, batches
//! [kernel/rcu/tree.c, tree_plugin.h (PREEMPT_RCU), 6.12].
//!
//! The grace-period thread is in `gp_kthread.rs`, boot in `tree_init.rs`, `rcu_barrier()` in `barrier.rs`. What is
//! left out is listed at the top of `mod.rs`.
//!
//! Lock order: a leaf before the nodes above it (only `rcu_start_this_gp()` holds two); `fqslock`s before node locks;
//! `barrier_lock` before none. Interrupts do not exist, so no lock needs them off.
//!
//! INVARIANT: a parent's `qsmask` bit is cleared only when the child's `qsmask` is 0 for the same `gp_seq`. A
//! callback becomes ready only when a grace period that began after it was queued has ended. Private fields of
//! `RcuData` are touched by their CPU alone.

use super::barrier::BarrierCount;
use super::latency::{Ring, Tracer};
use super::rcu_segcblist::{RCU_DONE_TAIL, RCU_NEXT_READY_TAIL, RcuCblist};
use super::rcu_seq::{
    rcu_seq_completed_gp, rcu_seq_new_gp, rcu_seq_snap, rcu_seq_started, rcu_seq_state, ulong_cmp_ge, ulong_cmp_lt,
};
use super::tree_exp::{rcu_report_exp_cpu_mult, rcu_report_exp_rdp};
use super::tree_init::{RcuData, RcuNode};
use super::tree_nocb::{NocbGp, call_rcu_nocb, rcu_nocb_stop};
use super::tree_stall::{StallState, check_cpu_stall};
use super::{RcuCallback, RcuConfig, RcuCounter, RcuHead};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Plain, Relaxed, Release, smp_mb};
use crate::cpu::tick::TickDevice;
use crate::cpu::{Cpu, Hooks, PerCpu, Task, sched, softirq};
use crate::sync::{Mutex, RawSpinLock, raw_spin_lock, raw_spin_trylock, raw_spin_unlock};
use std::ptr::NonNull;

/// `RCU_GP_FLAG_INIT`: a grace period is wanted.
pub(crate) const RCU_GP_FLAG_INIT: u32 = 1;
/// `RCU_GP_FLAG_FQS`: a scan is wanted, or the root is empty.
pub(crate) const RCU_GP_FLAG_FQS: u32 = 2;
/// `RCU_GP_FLAG_OVLD`: a CPU is in callback overload.
pub(crate) const RCU_GP_FLAG_OVLD: u32 = 4;
const DEFAULT_MAX_RCU_BLIMIT: i64 = 10_000;

/// `rcu_state` and the per-CPU data.
pub struct RcuState<A: Arch> {
    pub(crate) config: RcuConfig,
    /// ns of a jiffy.
    pub(crate) period: u64,
    pub(crate) jiffies_till_first_fqs: u64,
    pub(crate) jiffies_till_next_fqs: u64,
    pub(crate) jiffies_to_sched_qs: u64,
    pub(crate) node: KRef<[RcuNode<A>]>,
    /// How many of the nodes, the last ones, are leaves.
    pub(crate) leaves: usize,
    /// Workers; CPUs above are kernel threads, outside the tree.
    pub(crate) nr_cpus: u32,
    pub(crate) rda: PerCpu<A, RcuData<A>>,
    pub(crate) gp: RcuStateGp<A>,
    /// The count of expedited grace periods.
    pub(crate) expedited_sequence: Atomic<A, u64>,
    /// One expedited grace period at a time.
    pub(crate) exp_mutex: Mutex<A>,
    /// Who drives it, while it sleeps.
    pub(crate) exp_driver: Atomic<A, *mut Task<A>>,
    /// CPUs whose tasks wait in `synchronize_rcu()`, pushed by them, taken by the grace-period thread at a start.
    pub(crate) srs_next: Atomic<A, *mut RcuData<A>>,
    /// Those the running grace period is for; the grace-period thread's.
    pub(crate) srs_wait: Plain<A, *mut RcuData<A>>,
    /// How many there are of both.
    pub(crate) srs_in_flight: Atomic<A, u32>,
    /// The grace-period thread's task, once it runs.
    pub(crate) gp_kthread: Atomic<A, *mut Task<A>>,
    /// The grace-period thread shall end.
    pub(crate) stop: Atomic<A, u32>,
    /// PORT: the kernel's is a mutex; a semaphore held for writing sleeps the same way.
    pub(crate) barrier_mutex: Mutex<A>,
    pub(crate) barrier_lock: RawSpinLock<A>,
    pub(crate) barrier_sequence: Atomic<A, u64>,
    pub(crate) barrier: BarrierCount<A>,
    pub(crate) stall: StallState<A>,
    /// What the threads of offloading sleep on, by group; none where nothing is offloaded.
    pub(crate) nocb_gp: PerCpu<A, NocbGp<A>>,
    /// Lengths of grace periods.
    pub(crate) gp_lengths: Ring,
    /// What follows callbacks, by CPU.
    pub(crate) tracers: PerCpu<A, Tracer>,
    #[cfg(test)]
    pub(crate) bug: std::sync::atomic::AtomicU8,
}

/// The words of `rcu_state` that change with each grace period, on lines of their own.
#[repr(C, align(64))]
pub(crate) struct RcuStateGp<A: Arch> {
    /// Written by the grace-period thread, under the root's lock.
    pub gp_seq: Atomic<A, u64>,
    /// Under the root's lock; polled without.
    pub gp_flags: Atomic<A, u32>,
    /// For polled grace periods: normal and expedited ones in one count; under the root's lock, as its snapshots.
    pub gp_seq_polled: Atomic<A, u64>,
    /// It, when the running normal grace period began.
    pub gp_seq_polled_snap: Plain<A, u64>,
    /// It, when the running expedited grace period began.
    pub gp_seq_polled_exp_snap: Plain<A, u64>,
    /// jiffies
    pub gp_start: Atomic<A, u64>,
    pub jiffies_resched: Plain<A, u64>,
    /// The grace-period thread's; the stall report reads it.
    pub jiffies_force_qs: Atomic<A, u64>,
    pub n_force_qs: Atomic<A, u64>,
    /// `n_force_qs` at its start.
    pub n_force_qs_gpstart: Atomic<A, u64>,
    /// When to look for a stall.
    pub jiffies_stall: Atomic<A, u64>,
    /// What the grace-period thread is at, a [`GpState`](super::tree_stall::GpState), and when it last did anything.
    pub gp_state: Atomic<A, u32>,
    pub gp_activity: Atomic<A, u64>,
    /// When a grace period was last asked for.
    pub gp_req_activity: Atomic<A, u64>,
    /// The grace-period thread's, as the rest.
    pub cbovld: Plain<A, u8>,
    pub cbovldnext: Plain<A, u8>,
    pub gp_start_ns: Plain<A, u64>,
}

impl<A: Arch> RcuState<A> {
    /// The options this RCU runs with.
    pub fn config(&self) -> &RcuConfig {
        &self.config
    }

    /// A tick of this kernel's HZ for a worker's token; the clock is read each `every`-th boundary.
    pub fn tick_device(&self, every: u32) -> TickDevice {
        TickDevice::new(self.config.hz, every)
    }

    /// `rcutree_report_cpu_starting()`: from now on grace periods wait for `cpu`. Called on the worker's thread
    /// before its first operation; fills `cpu.hooks` and starts its tick.
    pub fn install_hooks(&self, cpu: &Cpu<A>) {
        let rdp = self.rda.this(cpu);
        rdp.remote.call.store(cpu.remote.as_ptr(), Relaxed);
        // ORDER: release; meets rcu_barrier(), which uses `call` once it sees a task.
        rdp.remote.task.store(cpu.task.as_ptr(), Release);
        cpu.hooks.set(Some(Hooks {
            ctx: std::ptr::from_ref(self).cast(),
            sched_clock_irq: hook_sched_clock_irq::<A>,
            rcu_core: hook_rcu_core::<A>,
            note_context_switch: hook_note_context_switch::<A>,
            idle_enter: hook_idle_enter::<A>,
            idle_exit: hook_idle_exit::<A>,
            needs_cpu: hook_needs_cpu::<A>,
            call_function: hook_call_function::<A>,
        }));
        self.tracers.this(cpu).restart(cpu, &rdp.mark);
        if self.config.skew_tick {
            cpu.tick.set_skew(cpu.id, self.nr_cpus);
        }
        cpu.tick.start(A::now());
        rdp.remote.watching.eqs_exit();
    }

    /// `rcutree_report_cpu_dead()`: grace periods no longer wait for `cpu`. Last thing on the worker's thread. What it
    /// has queued stays where it is until the CPU comes back: after `rcu_barrier()` nothing is queued.
    pub fn remove_hooks(&self, cpu: &Cpu<A>) {
        debug_assert_eq!(cpu.probe.rcu_nesting.get(), 0);
        if cpu.hooks.take().is_some() {
            let rdp = self.rda.this(cpu);
            rcu_qs(rdp);
            rdp.remote.watching.eqs_enter();
            rdp.remote.task.store(std::ptr::null_mut(), Release);
            // Asked for an expedited quiescent state and gone before it could serve the request. Whoever sets the bit
            // later sees the extended quiescent state.
            rcu_report_exp_cpu_mult(cpu, self, &rdp.mynode, rdp.grpmask, true);
        }
    }

    /// Tells the grace-period thread to end (`kthread_stop()` without the wait), and those of offloading.
    pub fn stop(&self) {
        // ORDER: release, and the barrier in wake_up_process(); meets the test after set_current_state_sleeping().
        rcu_nocb_stop(self);
        self.stop.store(1, Release);
        if let Some(t) = NonNull::new(self.gp_kthread.load(Acquire)) {
            // SAFETY: the thread's task lives as long as its token, which outlives stop().
            sched::wake_up_process(unsafe { KRef::new(t) });
        }
    }

    /// Callbacks queued and not yet called, over all CPUs; racy while they run.
    pub fn pending(&self) -> u64 {
        self.rda.iter().map(|r| r.cblist.n_cbs().max(0) as u64).sum()
    }

    /// The most callbacks that were queued at once, those being called included: the sum of each CPU's highest.
    pub fn pending_high_water(&self) -> u64 {
        self.rda.iter().map(|r| r.cblist.n_cbs().max(r.qlen_max.get()).max(0) as u64).sum()
    }

    /// How long callbacks waited between `call_rcu()` and their call, ns: one callback a CPU was followed at a time
    /// ([`SAMPLES`](super::SAMPLES) of the last ones a CPU).
    pub fn cb_latency_ns(&self) -> Vec<u64> {
        self.cb_latency_ns_between(0, u64::MAX)
    }

    /// [`RcuState::cb_latency_ns`] of those called in `[from, to)`, by [`Arch::now`].
    pub fn cb_latency_ns_between(&self, from: u64, to: u64) -> Vec<u64> {
        let mut v = Vec::new();
        self.tracers.iter().for_each(|t| t.ring().between(from, to, &mut v));
        v
    }

    /// Lengths of the last [`SAMPLES`](super::SAMPLES) normal grace periods, ns.
    pub fn gp_length_ns(&self) -> Vec<u64> {
        self.gp_length_ns_between(0, u64::MAX)
    }

    /// [`RcuState::gp_length_ns`] of those that ended in `[from, to)`, by [`Arch::now`].
    pub fn gp_length_ns_between(&self, from: u64, to: u64) -> Vec<u64> {
        let mut v = Vec::new();
        self.gp_lengths.between(from, to, &mut v);
        v
    }

    /// The number of the grace period: two low bits of phase, the rest counts; racy.
    pub fn gp_seq(&self) -> u64 {
        self.gp.gp_seq.load(Relaxed)
    }

    pub(crate) fn root(&self) -> &RcuNode<A> {
        &self.node[0]
    }

    pub(crate) fn leaf_nodes(&self) -> &[RcuNode<A>] {
        &self.node[self.node.len() - self.leaves..]
    }

    /// `jiffies`: the clock in ticks, so that they change where ticks are due.
    pub(crate) fn jiffies(&self) -> u64 {
        A::now() / self.period
    }

    #[cfg(test)]
    pub(crate) fn set_bug(&self, b: super::Bug) {
        self.bug.store(b as u8, std::sync::atomic::Ordering::Relaxed);
    }

    /// The label for what was queued until now.
    fn snap(&self) -> u64 {
        #[cfg(test)]
        if self.has_bug(super::Bug::ShortSnap) && rcu_gp_in_progress(self) {
            return rcu_seq_snap(&self.gp.gp_seq).wrapping_sub(4);
        }
        rcu_seq_snap(&self.gp.gp_seq)
    }

    #[cfg(test)]
    pub(crate) fn has_bug(&self, b: super::Bug) -> bool {
        self.bug.load(std::sync::atomic::Ordering::Relaxed) == b as u8
    }
}

/// `raw_spin_lock_rcu_node()`
#[inline]
pub(crate) fn raw_spin_lock_rcu_node<A: Arch>(cpu: &Cpu<A>, rnp: &RcuNode<A>) {
    raw_spin_lock(cpu, &rnp.lock);
    smp_mb_after_unlock_lock::<A>();
}

pub(super) fn raw_spin_trylock_rcu_node<A: Arch>(cpu: &Cpu<A>, rnp: &RcuNode<A>) -> bool {
    let locked = raw_spin_trylock(cpu, &rnp.lock);
    if locked {
        smp_mb_after_unlock_lock::<A>();
    }
    locked
}

#[inline]
pub(crate) fn raw_spin_unlock_rcu_node<A: Arch>(cpu: &Cpu<A>, rnp: &RcuNode<A>) {
    raw_spin_unlock(cpu, &rnp.lock);
}

/// `smp_mb__after_unlock_lock()`
// ORDER: full, together with the unlock of any node before; chains every CPU's accesses before its report to all
// accesses after the end of the grace period, store-buffer shapes included (rcu.md 13).
// PORT: nothing in the kernel except on powerpc, whose lock is weaker; Rust's acquire says less than the kernel's
// other locks, so every world whose exchange is not a full barrier by itself gets a fence.
#[inline(always)]
fn smp_mb_after_unlock_lock<A: Arch>() {
    if !A::RMW_IS_FULL {
        smp_mb::<A>();
    }
}

/// `rcu_gp_in_progress()`
#[inline(always)]
pub(crate) fn rcu_gp_in_progress<A: Arch>(rcu: &RcuState<A>) -> bool {
    rcu_seq_state(rcu.gp.gp_seq.load(Relaxed)) != 0
}

/// `rcu_qs()`: notes a quiescent state of this CPU for the grace period it knows of; the core reports it.
#[inline]
fn rcu_qs<A: Arch>(rdp: &RcuData<A>) {
    if rdp.cpu_no_qs.get() != 0 {
        rdp.cpu_no_qs.set(0);
    }
}

/// `rcu_note_context_switch()`
fn rcu_note_context_switch<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    debug_assert_eq!(cpu.probe.rcu_nesting.get(), 0, "a reader sleeps");
    rcu_qs(rdp);
    if rdp.cpu_no_qs_exp.get() != 0 {
        rcu_report_exp_rdp(cpu, rcu, rdp);
    }
    // PORT: the pulse is cond_resched()'s in the kernel (rcu_all_qs()); here both happen at the boundary.
    if rdp.remote.rcu_need_heavy_qs.load(Relaxed) != 0 && rdp.remote.watching.rcu_is_watching() {
        cpu.count(RcuCounter::MomentaryEqs);
        rdp.remote.rcu_need_heavy_qs.store(0, Relaxed);
        rdp.remote.watching.momentary_eqs();
    }
}

/// `rcu_disable_urgency_upon_qs()`; the leaf's lock is held.
pub(crate) fn rcu_disable_urgency_upon_qs<A: Arch>(rdp: &RcuData<A>) {
    rdp.remote.rcu_urgent_qs.store(0, Relaxed);
    rdp.remote.rcu_need_heavy_qs.store(0, Relaxed);
}

/// `rcu_gp_kthread_wake()`
pub(crate) fn rcu_gp_kthread_wake<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let t = rcu.gp_kthread.load(Acquire);
    if t == cpu.task.as_ptr() || rcu.gp.gp_flags.load(Relaxed) == 0 {
        return;
    }
    if let Some(t) = NonNull::new(t) {
        // SAFETY: tasks live as long as the kernel.
        if sched::wake_up_process(unsafe { KRef::new(t) }) {
            cpu.count(RcuCounter::GpRequests);
        }
    }
}

/// `rcu_start_this_gp()`: asks for the grace period that ends at `gp_seq_req`; the leaf's lock is held. Whether the
/// thread must be woken, after unlocking. `rdp`: the asking CPU's data.
pub(super) fn rcu_start_this_gp<A: Arch>(
    cpu: &Cpu<A>,
    rcu: &RcuState<A>,
    rnp_start: &RcuNode<A>,
    rdp: Option<&RcuData<A>>,
    gp_seq_req: u64,
) -> bool {
    let mut ret = false;
    let mut rnp = rnp_start;
    let is_start = |rnp: &RcuNode<A>| std::ptr::eq(rnp, rnp_start);
    loop {
        if !is_start(rnp) {
            raw_spin_lock_rcu_node(cpu, rnp);
        }
        let seq = rnp.gp_seq.load(Relaxed);
        if ulong_cmp_ge(rnp.gp_seq_needed.get(), gp_seq_req)
            || rcu_seq_started(seq, gp_seq_req)
            || (!is_start(rnp) && rcu_seq_state(seq) != 0)
        {
            break;
        }
        rnp.gp_seq_needed.set(gp_seq_req);
        if rcu_seq_state(seq) != 0 {
            // The cleanup of the running grace period will see the mark.
            break;
        }
        match rnp.parent.as_ref() {
            Some(parent) => {
                if !is_start(rnp) {
                    raw_spin_unlock_rcu_node(cpu, rnp);
                }
                rnp = parent;
            }
            None => {
                if !rcu_gp_in_progress(rcu) {
                    rcu.gp.gp_flags.store(rcu.gp.gp_flags.load(Relaxed) | RCU_GP_FLAG_INIT, Relaxed);
                    rcu.gp.gp_req_activity.store(rcu.jiffies(), Relaxed);
                    ret = !rcu.gp_kthread.load(Relaxed).is_null();
                }
                break;
            }
        }
    }
    if ulong_cmp_lt(gp_seq_req, rnp.gp_seq_needed.get()) {
        rnp_start.gp_seq_needed.set(rnp.gp_seq_needed.get());
        if let Some(rdp) = rdp {
            rdp.gp_seq_needed.set(rnp.gp_seq_needed.get());
        }
    }
    if !is_start(rnp) {
        raw_spin_unlock_rcu_node(cpu, rnp);
    }
    ret
}

/// `rcu_accelerate_cbs()`; the leaf's lock is held.
fn rcu_accelerate_cbs<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rnp: &RcuNode<A>, rdp: &RcuData<A>) -> bool {
    if !rdp.cblist.pend_cbs() {
        return false;
    }
    let gp_seq_req = rcu.snap();
    rdp.cblist.accelerate(gp_seq_req) && rcu_start_this_gp(cpu, rcu, rnp, Some(rdp), gp_seq_req)
}

/// `rcu_accelerate_cbs_unlocked()`
fn rcu_accelerate_cbs_unlocked<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rnp: &RcuNode<A>, rdp: &RcuData<A>) {
    let c = rcu.snap();
    if ulong_cmp_ge(rdp.gp_seq_needed.get(), c) {
        rdp.cblist.accelerate(c);
        return;
    }
    raw_spin_lock_rcu_node(cpu, rnp);
    let needwake = rcu_accelerate_cbs(cpu, rcu, rnp, rdp);
    raw_spin_unlock_rcu_node(cpu, rnp);
    if needwake {
        rcu_gp_kthread_wake(cpu, rcu);
    }
}

/// `rcu_advance_cbs()`; the leaf's lock is held.
pub(super) fn rcu_advance_cbs<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rnp: &RcuNode<A>, rdp: &RcuData<A>) -> bool {
    if !rdp.cblist.pend_cbs() {
        return false;
    }
    let seq = rnp.gp_seq.load(Relaxed);
    #[cfg(test)]
    let seq = if rcu.has_bug(super::Bug::EarlyAdvance) { super::rcu_seq::rcu_seq_endval(seq) } else { seq };
    rdp.cblist.advance(seq);
    rcu_accelerate_cbs(cpu, rcu, rnp, rdp)
}

/// `__note_gp_changes()`; the leaf's lock is held.
fn __note_gp_changes<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rnp: &RcuNode<A>, rdp: &RcuData<A>) -> bool {
    let (own, new) = (rdp.gp_seq.get(), rnp.gp_seq.load(Relaxed));
    if own == new {
        return false;
    }
    let owed = u8::from(rnp.qsmask.load(Relaxed) & rdp.grpmask != 0);
    let ret;
    if rcu_seq_completed_gp(own, new) {
        ret = !rdp.offloaded && rcu_advance_cbs(cpu, rcu, rnp, rdp);
        rdp.core_needs_qs.set(0);
    } else {
        ret = !rdp.offloaded && rcu_accelerate_cbs(cpu, rcu, rnp, rdp);
        if rdp.core_needs_qs.get() != 0 {
            rdp.core_needs_qs.set(owed);
        }
    }
    if rcu_seq_new_gp(own, new) {
        rdp.cpu_no_qs.set(owed);
        rdp.core_needs_qs.set(owed);
        rdp.ticks_this_gp.set(0);
    }
    rdp.gp_seq.set(new);
    if ulong_cmp_lt(rdp.gp_seq_needed.get(), rnp.gp_seq_needed.get()) {
        rdp.gp_seq_needed.set(rnp.gp_seq_needed.get());
    }
    ret
}

/// `note_gp_changes()`
fn note_gp_changes<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    let rnp = &*rdp.mynode;
    // ORDER: relaxed is enough for a hint: under the lock it is looked at again.
    if rdp.gp_seq.get() == rnp.gp_seq.load(Relaxed) {
        return;
    }
    if !raw_spin_trylock_rcu_node(cpu, rnp) {
        cpu.count(RcuCounter::NoteContended);
        return;
    }
    let needwake = __note_gp_changes(cpu, rcu, rnp, rdp);
    raw_spin_unlock_rcu_node(cpu, rnp);
    if needwake {
        rcu_gp_kthread_wake(cpu, rcu);
    }
}

/// `rcu_report_qs_rsp()`: the root is empty; its lock is held and released.
fn rcu_report_qs_rsp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    debug_assert!(rcu_gp_in_progress(rcu));
    rcu.gp.gp_flags.store(rcu.gp.gp_flags.load(Relaxed) | RCU_GP_FLAG_FQS, Relaxed);
    raw_spin_unlock_rcu_node(cpu, rcu.root());
    rcu_gp_kthread_wake(cpu, rcu);
}

/// `rcu_report_qs_rnp()`: clears `mask` at `rnp` for the grace period `gps` and climbs; `rnp`'s lock is held and
/// released.
pub(crate) fn rcu_report_qs_rnp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, mask: u64, rnp: &RcuNode<A>, gps: u64) {
    let (mut mask, mut rnp) = (mask, rnp);
    let mut child: Option<&RcuNode<A>> = None;
    loop {
        let qsmask = rnp.qsmask.load(Relaxed);
        if (qsmask & mask == 0 && mask != 0) || rnp.gp_seq.load(Relaxed) != gps {
            raw_spin_unlock_rcu_node(cpu, rnp);
            return;
        }
        debug_assert!(child.is_none_or(|c| c.qsmask.load(Relaxed) == 0), "a child reports with bits left");
        rnp.qsmask.store(qsmask & !mask, Relaxed);
        if qsmask & !mask != 0 {
            raw_spin_unlock_rcu_node(cpu, rnp);
            return;
        }
        mask = rnp.grpmask;
        let Some(parent) = rnp.parent.as_ref() else { break };
        raw_spin_unlock_rcu_node(cpu, rnp);
        child = Some(rnp);
        rnp = parent;
        raw_spin_lock_rcu_node(cpu, rnp);
    }
    rcu_report_qs_rsp(cpu, rcu);
}

/// `rcu_report_qs_rdp()`
fn rcu_report_qs_rdp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    let rnp = &*rdp.mynode;
    raw_spin_lock_rcu_node(cpu, rnp);
    let seq = rnp.gp_seq.load(Relaxed);
    if rdp.cpu_no_qs.get() != 0 || rdp.gp_seq.get() != seq {
        // What was noted belongs to a grace period that is over: this CPU owes a new one.
        rdp.cpu_no_qs.set(1);
        raw_spin_unlock_rcu_node(cpu, rnp);
        return;
    }
    rdp.core_needs_qs.set(0);
    if rnp.qsmask.load(Relaxed) & rdp.grpmask == 0 {
        raw_spin_unlock_rcu_node(cpu, rnp);
        return;
    }
    // This grace period cannot end before the report below: all that is queued fits the next one.
    let needwake = !rdp.offloaded && rcu_accelerate_cbs(cpu, rcu, rnp, rdp);
    debug_assert!(!needwake, "a grace period runs, so nobody need be woken for the next");
    rcu_disable_urgency_upon_qs(rdp);
    cpu.count(RcuCounter::QsReports);
    rcu_report_qs_rnp(cpu, rcu, rdp.grpmask, rnp, seq);
}

/// `rcu_check_quiescent_state()`
fn rcu_check_quiescent_state<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    note_gp_changes(cpu, rcu, rdp);
    if rdp.core_needs_qs.get() != 0 && rdp.cpu_no_qs.get() == 0 {
        rcu_report_qs_rdp(cpu, rcu, rdp);
    }
}

/// Calls one callback.
///
/// # Safety
/// `rhp` is alive and was queued by [`call_rcu`], which stored `func` from an [`RcuCallback`].
#[inline(always)]
pub(super) unsafe fn rcu_call<A: Arch>(cpu: &Cpu<A>, rhp: *mut RcuHead<A>) {
    // SAFETY: the caller's.
    unsafe {
        let func = (*rhp).func.load(Relaxed);
        (*rhp).func.store(0, Relaxed);
        let func = std::ptr::with_exposed_provenance::<()>(func);
        let func = std::mem::transmute::<*const (), RcuCallback<A>>(func);
        func(cpu, rhp);
    }
}

/// `rcu_do_batch()`: calls ready callbacks of `rdp`'s CPU; of this CPU in softirq context and within the limits, of an
/// offloaded one in a thread, all of them.
pub(super) fn rcu_do_batch<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    let cfg = &rcu.config;
    let offloaded = rdp.offloaded;
    if offloaded {
        raw_spin_lock(cpu, &rdp.nocb.lock);
    }
    let pending = rdp.cblist.get_seglen(RCU_DONE_TAIL);
    let bl = rdp.blimit.get().max(pending >> cfg.rcu_divisor);
    let tlimit = (bl > 100).then(|| A::now() + cfg.rcu_resched_ns.clamp(1_000_000, 1_000_000_000));
    let mut rcl = RcuCblist::new();
    rdp.cblist.extract_done_cbs(&mut rcl);
    if offloaded {
        rdp.qlen_last_fqs_check.set(rdp.cblist.n_cbs());
        raw_spin_unlock(cpu, &rdp.nocb.lock);
    }
    let mut count = 0;
    loop {
        // SAFETY: call_rcu()'s contract: what is queued lives until it is called.
        let rhp = unsafe { rcl.dequeue() };
        if rhp.is_null() {
            break;
        }
        count += 1;
        // ORDER: relaxed: of the one that is followed the queue has brought all.
        if rhp as usize as u64 == rdp.mark.head.load(Relaxed) {
            rcu.tracers
                .of(rdp.cpu)
                .end::<A>(&rdp.mark, (!offloaded).then(|| cpu.counters.get(RcuCounter::CallbacksQueued)));
        }
        // SAFETY: as above.
        unsafe { rcu_call(cpu, rhp) };
        if offloaded {
            continue;
        }
        if count >= bl && (cpu.softirq.need_resched.get() || !cpu.softirq.idle.get()) {
            break;
        }
        if let Some(t) = tlimit
            && count & 31 == 0
            && A::now() >= t
        {
            break;
        }
    }
    cpu.count(RcuCounter::Batches);
    cpu.counters.add(RcuCounter::CallbacksInvoked, count as u64);
    if rcl.len != 0 {
        cpu.count(RcuCounter::BatchesCut);
    }
    if offloaded {
        raw_spin_lock(cpu, &rdp.nocb.lock);
    }
    rdp.cblist.insert_done_cbs(&mut rcl);
    rdp.cblist.add_len(-count);

    let left = rdp.cblist.n_cbs();
    // Only batches make the list shorter: it was never longer than now, before the subtraction.
    rdp.qlen_max.set(rdp.qlen_max.get().max(left + count));
    if rdp.blimit.get() >= DEFAULT_MAX_RCU_BLIMIT && left <= cfg.qlowmark {
        rdp.blimit.set(cfg.blimit);
    }
    if left == 0 && rdp.qlen_last_fqs_check.get() != 0 {
        rdp.qlen_last_fqs_check.set(0);
        rdp.n_force_qs_snap.set(rcu.gp.n_force_qs.load(Relaxed));
    } else if left < rdp.qlen_last_fqs_check.get() - cfg.qhimark {
        rdp.qlen_last_fqs_check.set(left);
    }
    debug_assert!(offloaded || (left == 0) == rdp.cblist.empty());
    debug_assert!(offloaded || left == rdp.cblist.n_segment_cbs());
    if offloaded {
        raw_spin_unlock(cpu, &rdp.nocb.lock);
    }
}

/// `rcu_core()`, the softirq; whether callbacks are still ready.
fn rcu_core<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) -> bool {
    let rdp = rcu.rda.this(cpu);
    rcu_check_quiescent_state(cpu, rcu, rdp);
    if rdp.offloaded {
        return false;
    }
    if !rcu_gp_in_progress(rcu) && !rdp.cblist.restempty(RCU_NEXT_READY_TAIL) {
        rcu_accelerate_cbs_unlocked(cpu, rcu, &rdp.mynode, rdp);
    }
    #[cfg(test)]
    if rcu.has_bug(super::Bug::NoGracePeriod) {
        rdp.cblist.accelerate(rcu.gp_seq());
        rdp.cblist.advance(rcu.gp_seq());
    }
    if rdp.cblist.ready_cbs() {
        rcu_do_batch(cpu, rcu, rdp);
        return rdp.cblist.ready_cbs();
    }
    false
}

/// `rcu_pending()`: whether the core has something to do, cheapest test first.
fn rcu_pending<A: Arch>(rcu: &RcuState<A>, rdp: &RcuData<A>) -> bool {
    let gp_in_progress = rcu_gp_in_progress(rcu);
    (rdp.core_needs_qs.get() != 0 && rdp.cpu_no_qs.get() == 0 && gp_in_progress)
        || (!rdp.offloaded
            && (rdp.cblist.ready_cbs() || (!gp_in_progress && !rdp.cblist.restempty(RCU_NEXT_READY_TAIL))))
        // ORDER: relaxed; a hint, looked at again under the lock.
        || rdp.mynode.gp_seq.load(Relaxed) != rdp.gp_seq.get()
}

/// `rcu_sched_clock_irq()`: the tick.
fn rcu_sched_clock_irq<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, user: bool) {
    let rdp = rcu.rda.this(cpu);
    rdp.ticks_this_gp.set(rdp.ticks_this_gp.get() + 1);
    // ORDER: acquire; meets the release in rcu_watching_snap_recheck(): who sees urgent sees heavy, stored before.
    if rdp.remote.rcu_urgent_qs.load(Acquire) != 0 {
        if !user {
            cpu.count(RcuCounter::UrgentQs);
            cpu.softirq.need_resched.set(true);
        }
        rdp.remote.rcu_urgent_qs.store(0, Relaxed);
    }
    rcu_flavor_sched_clock_irq(cpu, rcu, rdp, user);
    check_cpu_stall(cpu, rcu, Some(rdp));
    if rcu_pending(rcu, rdp) {
        softirq::raise_softirq(cpu);
    }
}

/// `rcu_flavor_sched_clock_irq()`: whether this tick is a quiescent state.
fn rcu_flavor_sched_clock_irq<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, user: bool) {
    let depth_zero = cpu.probe.rcu_nesting.get() == 0;
    #[cfg(test)]
    let depth_zero = depth_zero || rcu.has_bug(super::Bug::QsInReader);
    if depth_zero && (user || rcu.config.qs_policy.draw(cpu)) {
        rcu_qs(rdp);
        if rdp.cpu_no_qs_exp.get() != 0 {
            rcu_report_exp_rdp(cpu, rcu, rdp);
        }
    }
}

/// `check_cb_ovld_locked()`; the leaf's lock is held.
pub(crate) fn check_cb_ovld_locked<A: Arch>(rcu: &RcuState<A>, rdp: &RcuData<A>, rnp: &RcuNode<A>) {
    let mask = rnp.cbovldmask.load(Relaxed);
    let ovld = rdp.cblist.n_cbs() >= rcu.config.qovld;
    rnp.cbovldmask.store(if ovld { mask | rdp.grpmask } else { mask & !rdp.grpmask }, Relaxed);
}

/// `check_cb_ovld()`
#[inline(always)]
fn check_cb_ovld<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    let rnp = &*rdp.mynode;
    if (rdp.cblist.n_cbs() >= rcu.config.qovld) != (rnp.cbovldmask.load(Relaxed) & rdp.grpmask != 0) {
        check_cb_ovld_flip(cpu, rcu, rdp, rnp);
    }
}

#[cold]
#[inline(never)]
fn check_cb_ovld_flip<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, rnp: &RcuNode<A>) {
    raw_spin_lock_rcu_node(cpu, rnp);
    check_cb_ovld_locked(rcu, rdp, rnp);
    raw_spin_unlock_rcu_node(cpu, rnp);
}

/// `rcu_force_quiescent_state()`
pub(super) fn rcu_force_quiescent_state<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    if !rcu_gp_in_progress(rcu) {
        return;
    }
    let mut below: Option<&RcuNode<A>> = None;
    let mut next = Some(&*rdp.mynode);
    while let Some(rnp) = next {
        let beaten = rcu.gp.gp_flags.load(Relaxed) & RCU_GP_FLAG_FQS != 0 || !raw_spin_trylock(cpu, &rnp.fqslock.0);
        if let Some(b) = below {
            raw_spin_unlock(cpu, &b.fqslock.0);
        }
        if beaten {
            return;
        }
        below = Some(rnp);
        next = rnp.parent.as_deref();
    }
    let root = rcu.root();
    raw_spin_lock_rcu_node(cpu, root);
    raw_spin_unlock(cpu, &root.fqslock.0);
    let flags = rcu.gp.gp_flags.load(Relaxed);
    if flags & RCU_GP_FLAG_FQS != 0 {
        raw_spin_unlock_rcu_node(cpu, root);
        return;
    }
    rcu.gp.gp_flags.store(flags | RCU_GP_FLAG_FQS, Relaxed);
    raw_spin_unlock_rcu_node(cpu, root);
    cpu.count(RcuCounter::FqsRequests);
    rcu_gp_kthread_wake(cpu, rcu);
}

/// `call_rcu()`
///
/// # Safety
/// `head` lies in an object that no new reader can find and that nobody frees before the callback.
#[inline]
pub unsafe fn call_rcu<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, head: *mut RcuHead<A>, func: RcuCallback<A>) {
    // SAFETY: the caller's.
    unsafe { __call_rcu_common(cpu, rcu, head, func, true) }
}

/// `call_rcu_hurry()`: as [`call_rcu`], for who waits for the callback: it is never lazy.
///
/// # Safety
/// As for [`call_rcu`].
#[inline]
pub unsafe fn call_rcu_hurry<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, head: *mut RcuHead<A>, func: RcuCallback<A>) {
    // SAFETY: the caller's.
    unsafe { __call_rcu_common(cpu, rcu, head, func, false) }
}

/// `__call_rcu_common()`
///
/// # Safety
/// As for [`call_rcu`].
#[inline(always)]
unsafe fn __call_rcu_common<A: Arch>(
    cpu: &Cpu<A>,
    rcu: &RcuState<A>,
    head: *mut RcuHead<A>,
    func: RcuCallback<A>,
    lazy: bool,
) {
    let rdp = rcu.rda.this(cpu);
    // SAFETY: the caller's.
    unsafe {
        (*head).func.store(func as *const () as usize, Relaxed);
        (*head).next.store(std::ptr::null_mut(), Relaxed);
    }
    check_cb_ovld(cpu, rcu, rdp);
    cpu.count(RcuCounter::CallbacksQueued);
    // ORDER: relaxed: begin() looks again.
    if cpu.counters.get(RcuCounter::CallbacksQueued) >= rdp.mark.next.load(Relaxed) {
        rcu.tracers.this(cpu).begin::<A>(&rdp.mark, head);
    }
    if rdp.offloaded {
        // SAFETY: the caller's.
        return unsafe { call_rcu_nocb(cpu, rcu, rdp, head, lazy && rcu.config.lazy) };
    }
    // SAFETY: the caller's.
    unsafe { rcutree_enqueue(rdp, head) };
    debug_assert!(cpu.hooks.get().is_none() || rdp.remote.watching.rcu_is_watching(), "call_rcu() on an idle CPU");
    if rdp.cblist.n_cbs() > rdp.qlen_last_fqs_check.get() + rcu.config.qhimark {
        call_rcu_flood(cpu, rcu, rdp, head);
    }
}

/// `rcutree_enqueue()`
///
/// # Safety
/// As for [`call_rcu`].
#[inline(always)]
pub(super) unsafe fn rcutree_enqueue<A: Arch>(rdp: &RcuData<A>, head: *mut RcuHead<A>) {
    // SAFETY: the caller's.
    unsafe { rdp.cblist.enqueue(head) };
}

/// The end of `call_rcu_core()`: too many callbacks since the last look.
#[cold]
#[inline(never)]
fn call_rcu_flood<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, head: *mut RcuHead<A>) {
    note_gp_changes(cpu, rcu, rdp);
    if !rcu_gp_in_progress(rcu) {
        rcu_accelerate_cbs_unlocked(cpu, rcu, &rdp.mynode, rdp);
        return;
    }
    cpu.count(RcuCounter::BlimitFloods);
    rdp.blimit.set(DEFAULT_MAX_RCU_BLIMIT);
    if rcu.gp.n_force_qs.load(Relaxed) == rdp.n_force_qs_snap.get() && rdp.cblist.first_pend_cb() != head {
        rcu_force_quiescent_state(cpu, rcu, rdp);
    }
    rdp.n_force_qs_snap.set(rcu.gp.n_force_qs.load(Relaxed));
    rdp.qlen_last_fqs_check.set(rdp.cblist.n_cbs());
}

/// The state behind a hook's context.
///
/// # Safety
/// `ctx` was put into a [`Hooks`] by [`RcuState::install_hooks`].
unsafe fn state<'a, A: Arch>(ctx: *const ()) -> &'a RcuState<A> {
    // SAFETY: the caller's; the state lives as long as the kernel.
    unsafe { &*ctx.cast::<RcuState<A>>() }
}

/// # Safety
/// As for [`state`]; so for all hooks.
unsafe fn hook_sched_clock_irq<A: Arch>(ctx: *const (), cpu: &Cpu<A>, user: bool) {
    // SAFETY: the caller's.
    rcu_sched_clock_irq(cpu, unsafe { state(ctx) }, user);
}
/// # Safety
/// As above.
unsafe fn hook_rcu_core<A: Arch>(ctx: *const (), cpu: &Cpu<A>) -> bool {
    // SAFETY: the caller's.
    rcu_core(cpu, unsafe { state(ctx) })
}
/// # Safety
/// As above.
unsafe fn hook_note_context_switch<A: Arch>(ctx: *const (), cpu: &Cpu<A>) {
    // SAFETY: the caller's.
    let rcu = unsafe { state::<A>(ctx) };
    rcu_note_context_switch(cpu, rcu, rcu.rda.this(cpu));
}
/// # Safety
/// As above.
unsafe fn hook_idle_enter<A: Arch>(ctx: *const (), cpu: &Cpu<A>) {
    // SAFETY: the caller's.
    let rcu = unsafe { state::<A>(ctx) };
    let rdp = rcu.rda.this(cpu);
    rcu_note_context_switch(cpu, rcu, rdp);
    rdp.remote.watching.eqs_enter();
}
/// # Safety
/// As above.
unsafe fn hook_idle_exit<A: Arch>(ctx: *const (), cpu: &Cpu<A>) {
    // SAFETY: the caller's.
    unsafe { state::<A>(ctx) }.rda.this(cpu).remote.watching.eqs_exit();
}
/// # Safety
/// As above.
unsafe fn hook_needs_cpu<A: Arch>(ctx: *const (), cpu: &Cpu<A>) -> bool {
    // SAFETY: the caller's.
    let rdp = unsafe { state::<A>(ctx) }.rda.this(cpu);
    !rdp.offloaded && !rdp.cblist.empty()
}
/// # Safety
/// As above.
unsafe fn hook_call_function<A: Arch>(ctx: *const (), cpu: &Cpu<A>, bits: u32) {
    // SAFETY: the caller's.
    super::barrier::rcu_call_function(cpu, unsafe { state(ctx) }, bits);
}
