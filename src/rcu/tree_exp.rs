// SPDX-License-Identifier: GPL-2.0-only
//! Expedited grace periods: every CPU that RCU watches is asked at once [kernel/rcu/tree_exp.h, 6.12].
//!
//! Who wants one takes a number and climbs the tree; at a node where somebody already waits for that number it waits,
//! too, else it leaves the number for followers. Who gets to the top drives the grace period: masks of all nodes are
//! set, idle CPUs credited, the others asked; each clears its bit, the last of a node climbs, the last of all wakes the
//! driver, which ends the count and wakes those who wait.
//!
//! custom: an interrupt to a CPU is a request word that it serves at its next boundary or idle turn, so an expedited
//! grace period lasts an operation of the slowest CPU, not microseconds. The caller drives its grace period itself, leaf
//! by leaf, as the kernel's does until its workers are up. The four wait queues of each node are one word a CPU that
//! says what it waits for. dup: tasks blocked in readers, boosting, forced ticks of nohz_full, CPUs that come up later:
//! all are there from the start, in the extended quiescent state.
//!
//! Lock order: `exp_mutex` before node locks; `exp_lock`s before none.
//!
//! INVARIANT: `expmask` is written under the node's lock, and a parent's bit is cleared only when the child's mask is 0.
//! Whoever holds `exp_mutex` alone writes `expedited_sequence`.

use super::RcuExtCounter;
use super::barrier::rcu_scheduler_inactive;
use super::context_tracking::ContextTracking;
use super::poll::{rcu_poll_gp_seq_end_unlocked, rcu_poll_gp_seq_start_unlocked};
use super::rcu_seq::{rcu_seq_done, rcu_seq_end, rcu_seq_snap, rcu_seq_start, ulong_cmp_ge, ulong_cmp_lt};
use super::tree::{RcuState, raw_spin_lock_rcu_node, raw_spin_unlock_rcu_node};
use super::tree_init::{RcuData, RcuNode};
use super::tree_stall::{StallKind, report};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Full, Relaxed, Release, smp_mb};
use crate::cpu::smp::CALL_RCU_EXP;
use crate::cpu::{Cpu, sched};
use crate::sync::{mutex_lock, mutex_trylock, mutex_unlock, raw_spin_lock, raw_spin_unlock};
use std::ptr::NonNull;

/// `rcu_exp_gp_seq_start()`
pub(super) fn rcu_exp_gp_seq_start<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    rcu_seq_start(&rcu.expedited_sequence);
    rcu_poll_gp_seq_start_unlocked(cpu, rcu, &rcu.gp.gp_seq_polled_exp_snap);
}

/// `rcu_exp_gp_seq_end()`
pub(super) fn rcu_exp_gp_seq_end<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    rcu_poll_gp_seq_end_unlocked(cpu, rcu, &rcu.gp.gp_seq_polled_exp_snap);
    rcu_seq_end(&rcu.expedited_sequence);
    // ORDER: full; consecutive grace periods follow one another, and the end is seen before any look at who waits;
    // meets the barrier of set_current_state_sleeping() in wait_event().
    smp_mb::<A>();
}

/// `rcu_exp_gp_seq_snap()`
fn rcu_exp_gp_seq_snap<A: Arch>(rcu: &RcuState<A>) -> u64 {
    // ORDER: full; what the caller unlinked comes before the load; meets rcu_seq_start().
    smp_mb::<A>();
    rcu_seq_snap(&rcu.expedited_sequence)
}

/// `sync_exp_work_done()`
fn sync_exp_work_done<A: Arch>(rcu: &RcuState<A>, s: u64) -> bool {
    if rcu_seq_done(rcu.expedited_sequence.load(Relaxed), s) {
        // ORDER: full; the grace period ends before what the caller does with the memory; meets rcu_seq_end().
        smp_mb::<A>();
        return true;
    }
    false
}

/// `wait_event(exp_wq, sync_exp_work_done(s))`
fn wait_event<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, s: u64) {
    let rdp = rcu.rda.this(cpu);
    // ORDER: release, and the full barrier below; meets the look of rcu_exp_wake_all() after the count's end.
    rdp.remote.exp_task.store(cpu.task.as_ptr(), Release);
    loop {
        sched::set_current_state_sleeping(cpu);
        if sync_exp_work_done(rcu, s) {
            break;
        }
        sched::schedule(cpu, None);
    }
    sched::set_current_state_running(cpu);
    rdp.remote.exp_task.store(std::ptr::null_mut(), Relaxed);
}

/// `wake_up_all()` of every node's queue. Waiters for later grace periods look and go back to sleep.
fn rcu_exp_wake_all<A: Arch>(rcu: &RcuState<A>) {
    for rdp in rcu.rda.iter() {
        // ORDER: acquire; meets wait_event().
        if let Some(t) = NonNull::new(rdp.remote.exp_task.load(Acquire)) {
            // SAFETY: tasks live as long as the kernel.
            sched::wake_up_process(unsafe { KRef::new(t) });
        }
    }
}

/// `exp_funnel_lock()`: true when somebody else's grace period did it; else the caller holds `exp_mutex` and the grace
/// period has begun.
fn exp_funnel_lock<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, s: u64) -> bool {
    let leaf = &*rcu.rda.this(cpu).mynode;
    let root = rcu.root();
    let fast = ulong_cmp_lt(leaf.exp.seq_rq.load(Relaxed), s)
        && (std::ptr::eq(leaf, root) || ulong_cmp_lt(root.exp.seq_rq.load(Relaxed), s))
        && mutex_trylock(cpu, &rcu.exp_mutex);
    if !fast {
        let mut next = Some(leaf);
        while let Some(rnp) = next {
            if sync_exp_work_done(rcu, s) {
                return true;
            }
            raw_spin_lock(cpu, &rnp.exp.lock);
            if ulong_cmp_ge(rnp.exp.seq_rq.load(Relaxed), s) {
                raw_spin_unlock(cpu, &rnp.exp.lock);
                cpu.count(RcuExtCounter::ExpFollowers);
                wait_event(cpu, rcu, s);
                return true;
            }
            rnp.exp.seq_rq.store(s, Relaxed);
            raw_spin_unlock(cpu, &rnp.exp.lock);
            next = rnp.parent.as_deref();
        }
        mutex_lock(cpu, &rcu.exp_mutex);
    }
    if sync_exp_work_done(rcu, s) {
        mutex_unlock(cpu, &rcu.exp_mutex);
        return true;
    }
    rcu_exp_gp_seq_start(cpu, rcu);
    false
}

/// `sync_exp_reset_tree()`
pub(super) fn sync_exp_reset_tree<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    for rnp in rcu.node.iter() {
        raw_spin_lock_rcu_node(cpu, rnp);
        debug_assert_eq!(rnp.expmask.load(Relaxed), 0, "an expedited grace period begins with CPUs owing");
        rnp.expmask.store(rnp.expmaskinit, Relaxed);
        raw_spin_unlock_rcu_node(cpu, rnp);
    }
}

/// `__rcu_report_exp_rnp()`: climbs while masks are empty; `rnp`'s lock is held and released.
fn __rcu_report_exp_rnp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rnp: &RcuNode<A>, wake: bool) {
    let mut rnp = rnp;
    loop {
        let done = rnp.expmask.load(Relaxed) == 0;
        let Some(parent) = rnp.parent.as_deref() else {
            raw_spin_unlock_rcu_node(cpu, rnp);
            if done && wake {
                wake_driver(rcu);
            }
            return;
        };
        raw_spin_unlock_rcu_node(cpu, rnp);
        if !done {
            return;
        }
        let mask = rnp.grpmask;
        rnp = parent;
        raw_spin_lock_rcu_node(cpu, rnp);
        debug_assert_ne!(rnp.expmask.load(Relaxed) & mask, 0, "a node reports twice");
        rnp.expmask.store(rnp.expmask.load(Relaxed) & !mask, Relaxed);
    }
}

/// `swake_up_one()` of `expedited_wq`.
fn wake_driver<A: Arch>(rcu: &RcuState<A>) {
    // ORDER: acquire; meets synchronize_rcu_expedited_wait(). The look at the mask there is under the root's lock, which
    // this CPU has just released: the driver sees the mask, or this CPU sees the driver.
    if let Some(t) = NonNull::new(rcu.exp_driver.load(Acquire)) {
        // SAFETY: tasks live as long as the kernel.
        sched::wake_up_process(unsafe { KRef::new(t) });
    }
}

/// `rcu_report_exp_cpu_mult()`: CPUs of one leaf.
pub(super) fn rcu_report_exp_cpu_mult<A: Arch>(
    cpu: &Cpu<A>,
    rcu: &RcuState<A>,
    rnp: &RcuNode<A>,
    mask: u64,
    wake: bool,
) {
    raw_spin_lock_rcu_node(cpu, rnp);
    let owed = rnp.expmask.load(Relaxed);
    if owed & mask == 0 {
        raw_spin_unlock_rcu_node(cpu, rnp);
        return;
    }
    rnp.expmask.store(owed & !mask, Relaxed);
    __rcu_report_exp_rnp(cpu, rcu, rnp, wake);
}

/// `rcu_report_exp_rdp()`: this CPU, outside readers.
pub(super) fn rcu_report_exp_rdp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    rdp.cpu_no_qs_exp.set(0);
    cpu.count(RcuExtCounter::ExpReports);
    rcu_report_exp_cpu_mult(cpu, rcu, &rdp.mynode, rdp.grpmask, true);
}

/// `rcu_exp_handler()`, on the CPU asked.
pub(super) fn rcu_exp_handler<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let rdp = rcu.rda.this(cpu);
    let depth_zero = cpu.probe.rcu_nesting.get() == 0;
    #[cfg(test)]
    let depth_zero = depth_zero || rcu.has_bug(super::Bug::ExpQsInReader);
    if depth_zero {
        return rcu_report_exp_rdp(cpu, rcu, rdp);
    }
    // Asked in the middle of a reader (no boundary does that): the tick or context switch after it reports.
    // PORT: the kernel's rcu_read_unlock() looks for this; the port's does not, as boundaries lie outside readers.
    raw_spin_lock_rcu_node(cpu, &rdp.mynode);
    if rdp.mynode.expmask.load(Relaxed) & rdp.grpmask != 0 {
        rdp.cpu_no_qs_exp.set(1);
        cpu.softirq.need_resched.set(true);
    }
    raw_spin_unlock_rcu_node(cpu, &rdp.mynode);
}

/// `__sync_rcu_exp_select_node_cpus()`: credits what is idle of the leaf, asks the rest.
pub(super) fn sync_rcu_exp_select_node_cpus<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rnp: &RcuNode<A>) {
    let mut mask_ofl_test = 0;
    raw_spin_lock_rcu_node(cpu, rnp);
    let owed = rnp.expmask.load(Relaxed);
    for n in rnp.grplo..=rnp.grphi {
        let rdp = rcu.rda.of(n);
        if owed & rdp.grpmask == 0 {
            continue;
        }
        // ORDER: acquire in it; meets eqs_enter(): accesses of readers before. Against eqs_exit(): the full barrier of
        // rcu_seq_start(), before, and the node locks since.
        let snap = rdp.remote.watching.snapshot();
        if n == cpu.id || ContextTracking::<A>::snap_in_eqs(snap) {
            mask_ofl_test |= rdp.grpmask;
        } else {
            rdp.remote.exp_watching_snap.set(snap);
        }
        #[cfg(test)]
        if rcu.has_bug(super::Bug::ExpCreditWatched) {
            mask_ofl_test |= rdp.grpmask;
        }
    }
    let mask_ofl_ipi = owed & !mask_ofl_test;
    raw_spin_unlock_rcu_node(cpu, rnp);
    for n in rnp.grplo..=rnp.grphi {
        let rdp = rcu.rda.of(n);
        if mask_ofl_ipi & rdp.grpmask == 0 {
            continue;
        }
        // ORDER: acquire; meets install_hooks().
        let task = NonNull::new(rdp.remote.task.load(Acquire));
        match task {
            Some(task) if rdp.remote.watching.snapshot() == rdp.remote.exp_watching_snap.get() => {
                cpu.count(RcuExtCounter::ExpRequests);
                // SAFETY: task and request word live as long as the kernel.
                unsafe { (*rdp.remote.call.load(Relaxed)).request(CALL_RCU_EXP, KRef::new(task)) };
            }
            // It was idle since. One that leaves reports for itself (remove_hooks()).
            _ => mask_ofl_test |= rdp.grpmask,
        }
    }
    if mask_ofl_test != 0 {
        cpu.counters.add(RcuExtCounter::ExpCredits, u64::from(mask_ofl_test.count_ones()));
        rcu_report_exp_cpu_mult(cpu, rcu, rnp, mask_ofl_test, false);
    }
}

/// `sync_rcu_exp_done_unlocked()`
fn sync_rcu_exp_done_unlocked<A: Arch>(cpu: &Cpu<A>, rnp: &RcuNode<A>) -> bool {
    raw_spin_lock_rcu_node(cpu, rnp);
    let done = rnp.expmask.load(Relaxed) == 0;
    raw_spin_unlock_rcu_node(cpu, rnp);
    done
}

/// `synchronize_rcu_expedited_wait()`
fn synchronize_rcu_expedited_wait<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let start = rcu.jiffies();
    let mut stall = start + rcu.rcu_jiffies_till_stall_check();
    // ORDER: release; meets wake_driver().
    rcu.exp_driver.store(cpu.task.as_ptr(), Release);
    loop {
        sched::set_current_state_sleeping(cpu);
        if sync_rcu_exp_done_unlocked(cpu, rcu.root()) {
            break;
        }
        if rcu.jiffies() >= stall {
            sched::set_current_state_running(cpu);
            report(cpu, rcu, StallKind::Expedited, start, None);
            stall = rcu.jiffies() + 3 * rcu.rcu_jiffies_till_stall_check() + 3;
            continue;
        }
        sched::schedule(cpu, Some(stall * rcu.period));
    }
    sched::set_current_state_running(cpu);
    rcu.exp_driver.store(std::ptr::null_mut(), Relaxed);
}

/// `rcu_exp_wait_wake()`
fn rcu_exp_wait_wake<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, s: u64) {
    synchronize_rcu_expedited_wait(cpu, rcu);
    rcu_exp_gp_seq_end(cpu, rcu);
    for rnp in rcu.node.iter() {
        if ulong_cmp_lt(rnp.exp.seq_rq.load(Relaxed), s) {
            raw_spin_lock(cpu, &rnp.exp.lock);
            // Again: whoever came meanwhile waits for more.
            if ulong_cmp_lt(rnp.exp.seq_rq.load(Relaxed), s) {
                rnp.exp.seq_rq.store(s, Relaxed);
            }
            raw_spin_unlock(cpu, &rnp.exp.lock);
        }
    }
    // ORDER: full; all of the above before the wake-ups.
    smp_mb::<A>();
    rcu_exp_wake_all(rcu);
}

/// `synchronize_rcu_expedited()`: as [`synchronize_rcu`](super::synchronize_rcu), in a hurry. On a worker or a kernel
/// thread, outside readers.
pub fn synchronize_rcu_expedited<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    debug_assert_eq!(cpu.probe.rcu_nesting.get(), 0, "synchronize_rcu_expedited() inside a reader");
    if rcu_scheduler_inactive(rcu) {
        rcu_poll_gp_seq_start_unlocked(cpu, rcu, &rcu.gp.gp_seq_polled_exp_snap);
        rcu_poll_gp_seq_end_unlocked(cpu, rcu, &rcu.gp.gp_seq_polled_exp_snap);
        rcu.expedited_sequence.fetch_add(4, Full);
        return;
    }
    let s = rcu_exp_gp_seq_snap(rcu);
    if exp_funnel_lock(cpu, rcu, s) {
        return;
    }
    let begin = A::now();
    sync_exp_reset_tree(cpu, rcu);
    for rnp in rcu.leaf_nodes() {
        sync_rcu_exp_select_node_cpus(cpu, rcu, rnp);
    }
    rcu_exp_wait_wake(cpu, rcu, s);
    cpu.count(RcuExtCounter::ExpGracePeriods);
    cpu.counters.add(RcuExtCounter::ExpGracePeriodNs, A::now() - begin);
    mutex_unlock(cpu, &rcu.exp_mutex);
}
