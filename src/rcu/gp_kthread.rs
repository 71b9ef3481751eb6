// SPDX-License-Identifier: GPL-2.0-only
//! The grace-period thread [kernel/rcu/tree.c: rcu_gp_kthread and what it calls, 6.12].
//!
//! custom: it looks for stalls itself (`tree_stall.rs`). It belongs to no CPU of the workers, so it notes no grace period for "its own" `rcu_data` (the kernel's
//! does, at start and end) and never requests one for callbacks of its own. Sleeps are futex waits that end at jiffy
//! boundaries, one jiffy later than asked, as the timer wheel never fires early. It ends when [`RcuState::stop`] says.
//!
//! dup: hotplug of leaves, kicking of a stalled thread.

use super::RcuCounter;
use super::barrier::{rcu_sr_normal_gp_cleanup, rcu_sr_normal_gp_init};
use super::context_tracking::ContextTracking;
use super::poll::{rcu_poll_gp_seq_end, rcu_poll_gp_seq_start};
use super::rcu_seq::{rcu_seq_end, rcu_seq_endval, rcu_seq_start, ulong_cmp_lt};
use super::tree::{
    RCU_GP_FLAG_FQS, RCU_GP_FLAG_INIT, RCU_GP_FLAG_OVLD, RcuState, check_cb_ovld_locked, raw_spin_lock_rcu_node,
    raw_spin_unlock_rcu_node, rcu_disable_urgency_upon_qs, rcu_gp_in_progress, rcu_report_qs_rnp,
};
use super::tree_init::RcuData;
use super::tree_stall::{GpState, check_cpu_stall, record_gp_stall_check_time};
use crate::arch::{Arch, Relaxed, Release, smp_mb};
use crate::cpu::{Cpu, sched};

/// `swait_event_idle_timeout_exclusive()`, `timeout` in jiffies: returns when `cond` holds, the time is over, or the
/// thread shall end.
fn swait_event<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, timeout: Option<u64>, mut cond: impl FnMut() -> bool) {
    let deadline = timeout.map(|j| (rcu.jiffies() + j + 1) * rcu.period);
    loop {
        sched::set_current_state_sleeping(cpu);
        if cond() || rcu.stop.load(Relaxed) != 0 || deadline.is_some_and(|d| A::now() >= d) {
            break;
        }
        sched::schedule(cpu, deadline);
    }
    sched::set_current_state_running(cpu);
}

/// `rcu_gp_kthread()`: runs grace periods until [`RcuState::stop`]. `cpu` is a token of the thread's own, numbered
/// above the workers', without tick and hooks. Each call takes one [`RcuState::stop`], which may come before it; a
/// grace period that the thread before left unfinished is gone on with.
pub fn rcu_gp_kthread<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    assert!(cpu.id >= rcu.nr_cpus, "the grace-period thread has a number above the workers'");
    // Before the thread is known: nobody may take it for starved.
    rcu.gp_activity(GpState::Idle);
    rcu.gp.gp_req_activity.store(rcu.jiffies(), Relaxed);
    // ORDER: release; meets the acquire loads of who wakes the task.
    rcu.gp_kthread.store(cpu.task.as_ptr(), Release);
    while rcu.stop.load(Relaxed) == 0 {
        if !rcu_gp_in_progress(rcu) {
            rcu.gp_state(GpState::WaitGps);
            swait_event(cpu, rcu, None, || rcu.gp.gp_flags.load(Relaxed) & RCU_GP_FLAG_INIT != 0);
            if !rcu_gp_init(cpu, rcu) {
                continue;
            }
        }
        if rcu_gp_fqs_loop(cpu, rcu) {
            rcu_gp_cleanup(cpu, rcu);
        }
    }
    rcu.stop.store(0, Relaxed);
    rcu.gp_kthread.store(std::ptr::null_mut(), Release);
}

/// `rcu_gp_init()`: whether a grace period was wanted.
pub(super) fn rcu_gp_init<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) -> bool {
    let root = rcu.root();
    rcu.gp_activity(GpState::DoneGps);
    raw_spin_lock_rcu_node(cpu, root);
    if rcu.gp.gp_flags.load(Relaxed) == 0 {
        raw_spin_unlock_rcu_node(cpu, root);
        return false;
    }
    rcu.gp.gp_flags.store(0, Relaxed);
    assert!(!rcu_gp_in_progress(rcu), "one grace period at a time");
    let now = A::now();
    rcu.gp.gp_start_ns.set(now);
    record_gp_stall_check_time(rcu);
    // Before the start: what those who wait unlinked comes before it.
    rcu_sr_normal_gp_init(rcu);
    rcu_seq_start(&rcu.gp.gp_seq);
    // After the other: start_poll_synchronize_rcu() looks at them in the opposite order.
    rcu_poll_gp_seq_start(rcu, &rcu.gp.gp_seq_polled_snap);
    raw_spin_unlock_rcu_node(cpu, root);

    rcu.gp_state(GpState::Onoff);
    for rnp in rcu.leaf_nodes() {
        raw_spin_lock_rcu_node(cpu, rnp);
        if rnp.qsmaskinit.get() != rnp.qsmaskinitnext.get() {
            rnp.qsmaskinit.set(rnp.qsmaskinitnext.get());
        }
        raw_spin_unlock_rcu_node(cpu, rnp);
    }
    rcu.gp_state(GpState::Init);
    // Parents first: a leaf that shows the new number has all its ancestors ready for reports.
    for rnp in rcu.node.iter() {
        raw_spin_lock_rcu_node(cpu, rnp);
        rnp.qsmask.store(rnp.qsmaskinit.get(), Relaxed);
        rnp.gp_seq.store(rcu.gp.gp_seq.load(Relaxed), Relaxed);
        raw_spin_unlock_rcu_node(cpu, rnp);
        rcu.gp_activity(GpState::Init);
    }
    true
}

/// `rcu_gp_fqs_loop()`: until the root is empty; false where the thread shall end before.
fn rcu_gp_fqs_loop<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) -> bool {
    let root = rcu.root();
    let mut first_gp_fqs = true;
    let mut j = rcu.jiffies_till_first_fqs;
    let mut gf = if rcu.gp.cbovld.get() != 0 { RCU_GP_FLAG_OVLD } else { 0 };
    let mut keep = false;
    loop {
        if rcu.gp.cbovld.get() != 0 {
            j = j.div_ceil(3).max(1);
        }
        if !keep || rcu.jiffies() + j < rcu.gp.jiffies_force_qs.load(Relaxed) {
            rcu.gp.jiffies_force_qs.store(rcu.jiffies() + j, Relaxed);
        }
        rcu.gp_state(GpState::WaitFqs);
        // `rcu_gp_fqs_check_wake()`
        swait_event(cpu, rcu, Some(j), || {
            if gf & RCU_GP_FLAG_OVLD != 0 {
                return true;
            }
            gf = rcu.gp.gp_flags.load(Relaxed);
            gf & RCU_GP_FLAG_FQS != 0 || root.qsmask.load(Relaxed) == 0
        });
        rcu.gp_state(GpState::DoingFqs);
        check_cpu_stall(cpu, rcu, None);
        // ORDER: relaxed; rcu_gp_cleanup() takes every node's lock after it, and so meets all reports.
        if root.qsmask.load(Relaxed) == 0 {
            return true;
        }
        if rcu.stop.load(Relaxed) != 0 {
            return false;
        }
        let now = rcu.jiffies();
        if now >= rcu.gp.jiffies_force_qs.load(Relaxed) || gf & (RCU_GP_FLAG_FQS | RCU_GP_FLAG_OVLD) != 0 {
            rcu_gp_fqs(cpu, rcu, first_gp_fqs);
            gf = 0;
            if first_gp_fqs {
                first_gp_fqs = false;
                gf = if rcu.gp.cbovld.get() != 0 { RCU_GP_FLAG_OVLD } else { 0 };
            }
            rcu.gp_activity(GpState::DoingFqs);
            keep = false;
            j = rcu.jiffies_till_next_fqs;
        } else {
            rcu.gp_activity(GpState::DoingFqs);
            keep = true;
            j = rcu.gp.jiffies_force_qs.load(Relaxed).saturating_sub(now).max(1);
            gf = 0;
        }
    }
}

/// `rcu_gp_fqs()`
pub(super) fn rcu_gp_fqs<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, first_time: bool) {
    cpu.count(RcuCounter::FqsScans);
    rcu.gp.n_force_qs.store(rcu.gp.n_force_qs.load(Relaxed) + 1, Relaxed);
    if first_time {
        force_qs_rnp(cpu, rcu, |_, rdp| rcu_watching_snap_save(rcu, rdp));
    } else {
        force_qs_rnp(cpu, rcu, rcu_watching_snap_recheck);
    }
    if rcu.gp.gp_flags.load(Relaxed) & RCU_GP_FLAG_FQS != 0 {
        raw_spin_lock_rcu_node(cpu, rcu.root());
        rcu.gp.gp_flags.store(rcu.gp.gp_flags.load(Relaxed) & !RCU_GP_FLAG_FQS, Relaxed);
        raw_spin_unlock_rcu_node(cpu, rcu.root());
    }
}

/// `force_qs_rnp()`: asks `f` about each CPU that still owes a quiescent state and reports for those it credits.
fn force_qs_rnp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, f: impl Fn(&RcuState<A>, &RcuData<A>) -> bool) {
    rcu.gp.cbovld.set(rcu.gp.cbovldnext.get());
    rcu.gp.cbovldnext.set(0);
    for rnp in rcu.leaf_nodes() {
        let mut mask = 0;
        raw_spin_lock_rcu_node(cpu, rnp);
        if rnp.cbovldmask.load(Relaxed) != 0 {
            rcu.gp.cbovldnext.set(1);
        }
        let owing = rnp.qsmask.load(Relaxed);
        for n in rnp.grplo..=rnp.grphi {
            let rdp = rcu.rda.of(n);
            if owing & rdp.grpmask != 0 && f(rcu, rdp) {
                mask |= rdp.grpmask;
                rcu_disable_urgency_upon_qs(rdp);
                cpu.count(RcuCounter::EqsCredits);
            }
        }
        if mask != 0 {
            rcu_report_qs_rnp(cpu, rcu, mask, rnp, rnp.gp_seq.load(Relaxed));
        } else {
            raw_spin_unlock_rcu_node(cpu, rnp);
        }
    }
}

/// `rcu_watching_snap_save()`: whether the CPU is in the extended quiescent state now.
fn rcu_watching_snap_save<A: Arch>(rcu: &RcuState<A>, rdp: &RcuData<A>) -> bool {
    // ORDER: the full barriers of rcu_seq_start() and of each node's lock since come before this load; meets
    // eqs_exit().
    let snap = rdp.remote.watching.snapshot();
    rdp.remote.watching_snap.set(snap);
    #[cfg(test)]
    if rcu.has_bug(super::Bug::CreditWatched) {
        return true;
    }
    let _ = rcu;
    ContextTracking::<A>::snap_in_eqs(snap)
}

/// `rcu_watching_snap_recheck()`: whether it was there since; ages it if not.
fn rcu_watching_snap_recheck<A: Arch>(rcu: &RcuState<A>, rdp: &RcuData<A>) -> bool {
    let r = &rdp.remote;
    if r.watching_snap.get() != r.watching.snapshot() {
        return true;
    }
    let (now, start) = (rcu.jiffies(), rcu.gp.gp_start.load(Relaxed));
    let jtsq = rcu.jiffies_to_sched_qs;
    if r.rcu_need_heavy_qs.load(Relaxed) == 0
        && (now > start + jtsq * 2 || now > rcu.gp.jiffies_resched.get() || rcu.gp.cbovld.get() != 0)
    {
        r.rcu_need_heavy_qs.store(1, Relaxed);
        // ORDER: release; heavy before urgent, for rcu_sched_clock_irq().
        r.rcu_urgent_qs.store(1, Release);
    } else if now > start + jtsq {
        r.rcu_urgent_qs.store(1, Relaxed);
    }
    false
}

/// `rcu_gp_cleanup()`
pub(super) fn rcu_gp_cleanup<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let root = rcu.root();
    rcu.gp_activity(GpState::Cleanup);
    raw_spin_lock_rcu_node(cpu, root);
    rcu_poll_gp_seq_end(rcu, &rcu.gp.gp_seq_polled_snap);
    raw_spin_unlock_rcu_node(cpu, root);
    let new_gp_seq = rcu_seq_endval(rcu.gp.gp_seq.load(Relaxed));
    let mut needgp = false;
    for rnp in rcu.node.iter() {
        raw_spin_lock_rcu_node(cpu, rnp);
        debug_assert_eq!(rnp.qsmask.load(Relaxed), 0, "a grace period ends with CPUs owing");
        // ORDER: relaxed under the lock; a CPU that advances its callbacks by this number takes the lock after.
        rnp.gp_seq.store(new_gp_seq, Relaxed);
        if rnp.parent.is_none() {
            // ORDER: full; meets the barrier at the start of poll_state_synchronize_rcu_full().
            smp_mb::<A>();
        }
        // `rcu_future_gp_cleanup()`
        if ulong_cmp_lt(new_gp_seq, rnp.gp_seq_needed.get()) {
            needgp = true;
        } else {
            rnp.gp_seq_needed.set(new_gp_seq);
        }
        let ovld = rnp.cbovldmask.load(Relaxed);
        for n in rnp.grplo..=rnp.grphi {
            if ovld == 0 {
                break;
            }
            let rdp = rcu.rda.of(n);
            if ovld & rdp.grpmask != 0 {
                check_cb_ovld_locked(rcu, rdp, rnp);
            }
        }
        raw_spin_unlock_rcu_node(cpu, rnp);
        rcu.gp_activity(GpState::Cleanup);
    }
    cpu.count(RcuCounter::GracePeriods);
    let now = A::now();
    let length = now - rcu.gp.gp_start_ns.get();
    cpu.counters.add(RcuCounter::GracePeriodNs, length);
    rcu.gp_lengths.put(now, length);
    raw_spin_lock_rcu_node(cpu, root);
    rcu_seq_end(&rcu.gp.gp_seq);
    if needgp || ulong_cmp_lt(root.gp_seq.load(Relaxed), root.gp_seq_needed.get()) {
        rcu.gp.gp_flags.store(RCU_GP_FLAG_INIT, Relaxed);
        rcu.gp.gp_req_activity.store(rcu.jiffies(), Relaxed);
    } else {
        rcu.gp.gp_flags.store(rcu.gp.gp_flags.load(Relaxed) & RCU_GP_FLAG_INIT, Relaxed);
    }
    raw_spin_unlock_rcu_node(cpu, root);
    // `rcu_nocb_gp_cleanup()`; all leaves show the end.
    rcu.nocb_gp.iter().for_each(|g| g.gp_ended());
    // `rcu_sr_normal_gp_cleanup()`, after the end is told.
    rcu_sr_normal_gp_cleanup(cpu, rcu);
    rcu.gp_state(GpState::Cleaned);
}
