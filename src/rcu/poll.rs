// SPDX-License-Identifier: GPL-2.0-only
//! Polled grace periods: a cookie now, "is it over?" later [kernel/rcu/tree.c: get_state_synchronize_rcu and its
//! family, 6.12].
//!
//! `gp_seq_polled` counts what normal and expedited grace periods make together: it starts with the first of a group
//! that overlap and ends with whichever ends first of those that began while it stood where it stands. One word
//! therefore misses some grace periods; [`RcuGpOldstate`] holds both counts and misses none.
//!
//! INVARIANT: `gp_seq_polled` and its snapshots are written under the root's lock.

use super::rcu_seq::{rcu_seq_done_exact, rcu_seq_end, rcu_seq_snap, rcu_seq_start, rcu_seq_state};
use super::tree::{RcuState, raw_spin_lock_rcu_node, raw_spin_unlock_rcu_node, rcu_gp_kthread_wake, rcu_start_this_gp};
use crate::arch::{Arch, Plain, Relaxed, smp_mb};
use crate::cpu::Cpu;

/// `RCU_GET_STATE_COMPLETED`: a cookie whose grace period is over, always.
const RCU_GET_STATE_COMPLETED: u64 = 1;

/// `struct rcu_gp_oldstate`: a cookie for both kinds of grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcuGpOldstate {
    /// Of the normal count.
    pub rgos_norm: u64,
    /// Of the expedited count.
    pub rgos_exp: u64,
}

/// `get_completed_synchronize_rcu()`
pub fn get_completed_synchronize_rcu() -> u64 {
    RCU_GET_STATE_COMPLETED
}

/// `get_completed_synchronize_rcu_full()`
pub fn get_completed_synchronize_rcu_full() -> RcuGpOldstate {
    RcuGpOldstate { rgos_norm: RCU_GET_STATE_COMPLETED, rgos_exp: RCU_GET_STATE_COMPLETED }
}

/// `rcu_poll_gp_seq_start()`: a grace period begins; the root's lock is held.
pub(super) fn rcu_poll_gp_seq_start<A: Arch>(rcu: &RcuState<A>, snap: &Plain<A, u64>) {
    if rcu_seq_state(rcu.gp.gp_seq_polled.load(Relaxed)) == 0 {
        rcu_seq_start(&rcu.gp.gp_seq_polled);
    }
    snap.set(rcu.gp.gp_seq_polled.load(Relaxed));
}

/// `rcu_poll_gp_seq_end()`: the grace period that took `snap` ends; the root's lock is held. If another one ended the
/// count meanwhile, it is left alone: it may stand for one that began later.
pub(super) fn rcu_poll_gp_seq_end<A: Arch>(rcu: &RcuState<A>, snap: &Plain<A, u64>) {
    if snap.get() != 0 && snap.get() == rcu.gp.gp_seq_polled.load(Relaxed) {
        rcu_seq_end(&rcu.gp.gp_seq_polled);
        rcu.gp.gp_seq_polled_snap.set(0);
        rcu.gp.gp_seq_polled_exp_snap.set(0);
    } else {
        snap.set(0);
    }
}

/// `rcu_poll_gp_seq_start_unlocked()`
pub(super) fn rcu_poll_gp_seq_start_unlocked<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, snap: &Plain<A, u64>) {
    raw_spin_lock_rcu_node(cpu, rcu.root());
    rcu_poll_gp_seq_start(rcu, snap);
    raw_spin_unlock_rcu_node(cpu, rcu.root());
}

/// `rcu_poll_gp_seq_end_unlocked()`
pub(super) fn rcu_poll_gp_seq_end_unlocked<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, snap: &Plain<A, u64>) {
    raw_spin_lock_rcu_node(cpu, rcu.root());
    rcu_poll_gp_seq_end(rcu, snap);
    raw_spin_unlock_rcu_node(cpu, rcu.root());
}

/// `get_state_synchronize_rcu()`: a cookie; [`poll_state_synchronize_rcu`] says when a grace period after now is over.
/// Starts none. It may miss one that overlaps an expedited one.
pub fn get_state_synchronize_rcu<A: Arch>(rcu: &RcuState<A>) -> u64 {
    // ORDER: full; what the caller unlinked comes before the load of the count. Store-buffer shape with
    // rcu_seq_start() in rcu_gp_init(): readers of a grace period that is over by this cookie saw the unlinking.
    smp_mb::<A>();
    rcu_seq_snap(&rcu.gp.gp_seq_polled)
}

/// `get_state_synchronize_rcu_full()`: as [`get_state_synchronize_rcu`], missing none.
pub fn get_state_synchronize_rcu_full<A: Arch>(rcu: &RcuState<A>) -> RcuGpOldstate {
    // ORDER: as in get_state_synchronize_rcu().
    smp_mb::<A>();
    RcuGpOldstate { rgos_norm: rcu_seq_snap(&rcu.gp.gp_seq), rgos_exp: rcu_seq_snap(&rcu.expedited_sequence) }
}

/// `start_poll_synchronize_rcu_common()`: asks for the grace period.
fn start_poll_synchronize_rcu_common<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    // PORT: a kernel thread of the port has no CPU of its own; it asks at the first leaf.
    let rdp = rcu.rda.of(if cpu.id < rcu.rda.len() { cpu.id } else { 0 });
    let rnp = &*rdp.mynode;
    raw_spin_lock_rcu_node(cpu, rnp);
    let s = rcu_seq_snap(&rcu.gp.gp_seq);
    let own = (rdp.cpu == cpu.id).then_some(rdp);
    let needwake = rcu_start_this_gp(cpu, rcu, rnp, own, s);
    raw_spin_unlock_rcu_node(cpu, rnp);
    if needwake {
        rcu_gp_kthread_wake(cpu, rcu);
    }
}

/// `start_poll_synchronize_rcu()`: a cookie, and the grace period it needs is asked for.
pub fn start_poll_synchronize_rcu<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) -> u64 {
    let s = get_state_synchronize_rcu(rcu);
    start_poll_synchronize_rcu_common(cpu, rcu);
    s
}

/// `start_poll_synchronize_rcu_full()`
pub fn start_poll_synchronize_rcu_full<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) -> RcuGpOldstate {
    let s = get_state_synchronize_rcu_full(rcu);
    start_poll_synchronize_rcu_common(cpu, rcu);
    s
}

/// `poll_state_synchronize_rcu()`: whether a whole grace period lies between the cookie and now. When true, all that
/// a `synchronize_rcu()` between the two would order is ordered.
pub fn poll_state_synchronize_rcu<A: Arch>(rcu: &RcuState<A>, oldstate: u64) -> bool {
    if oldstate == RCU_GET_STATE_COMPLETED || rcu_seq_done_exact(rcu.gp.gp_seq_polled.load(Relaxed), oldstate) {
        // ORDER: full; the end of the grace period (rcu_seq_end() in rcu_gp_cleanup(), after every CPU's report under
        // node locks) comes before what the caller does with the memory.
        smp_mb::<A>();
        return true;
    }
    false
}

/// `poll_state_synchronize_rcu_full()`
pub fn poll_state_synchronize_rcu_full<A: Arch>(rcu: &RcuState<A>, s: &RcuGpOldstate) -> bool {
    // ORDER: full; meets the barrier in rcu_gp_cleanup() after the root's number was stored: whose callback was called
    // after a grace period polls it as over, too.
    smp_mb::<A>();
    // The root's count, not the state's: callbacks are called as soon as their leaf shows the end.
    if s.rgos_norm == RCU_GET_STATE_COMPLETED
        || rcu_seq_done_exact(rcu.root().gp_seq.load(Relaxed), s.rgos_norm)
        || s.rgos_exp == RCU_GET_STATE_COMPLETED
        || rcu_seq_done_exact(rcu.expedited_sequence.load(Relaxed), s.rgos_exp)
    {
        // ORDER: as in poll_state_synchronize_rcu().
        smp_mb::<A>();
        return true;
    }
    false
}

/// `cond_synchronize_rcu()`: waits unless the cookie's grace period is over.
pub fn cond_synchronize_rcu<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, oldstate: u64) {
    if !poll_state_synchronize_rcu(rcu, oldstate) {
        super::synchronize_rcu(cpu, rcu);
    }
}

/// `cond_synchronize_rcu_full()`
pub fn cond_synchronize_rcu_full<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, s: &RcuGpOldstate) {
    if !poll_state_synchronize_rcu_full(rcu, s) {
        super::synchronize_rcu(cpu, rcu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;
    use crate::rcu::{RcuConfig, synchronize_rcu};

    /// Before anybody is up each moment is a grace period, and the polls know.
    #[test]
    fn a_vacuous_grace_period_moves_both_counts() {
        let rcu = RcuState::<Native>::leak(3, &RcuConfig { fanout: 2, fanout_leaf: 2, ..RcuConfig::default() });
        let cpu = Cpu::for_test(0);
        for _ in 0..3 {
            let (s, full) = (get_state_synchronize_rcu(&rcu), get_state_synchronize_rcu_full(&rcu));
            assert!(!poll_state_synchronize_rcu(&rcu, s) && !poll_state_synchronize_rcu_full(&rcu, &full));
            synchronize_rcu(&cpu, &rcu);
            assert!(poll_state_synchronize_rcu(&rcu, s) && poll_state_synchronize_rcu_full(&rcu, &full));
        }
        assert_eq!(rcu.gp_seq() & 3, 0);
        // One that was begun and never ended counts for nothing, and is in nobody's way.
        start_poll_synchronize_rcu(&cpu, &rcu);
        assert!(crate::rcu::gp_kthread::rcu_gp_init(&cpu, &rcu));
        let (s, full) = (get_state_synchronize_rcu(&rcu), get_state_synchronize_rcu_full(&rcu));
        synchronize_rcu(&cpu, &rcu);
        assert!(poll_state_synchronize_rcu(&rcu, s) && poll_state_synchronize_rcu_full(&rcu, &full));
    }

    /// A normal and an expedited grace period that overlap are one for the common count: whichever began it and ends
    /// first ends it, and the other must not end the next.
    #[test]
    fn overlapping_grace_periods_never_end_the_common_count_early() {
        let rcu = RcuState::<Native>::leak(1, &RcuConfig::default());
        let cpu = Cpu::<Native>::for_test(0);
        let (normal, exp) = (&rcu.gp.gp_seq_polled_snap, &rcu.gp.gp_seq_polled_exp_snap);
        rcu_poll_gp_seq_start_unlocked(&cpu, &rcu, normal);
        let a = get_state_synchronize_rcu(&rcu);
        rcu_poll_gp_seq_start_unlocked(&cpu, &rcu, exp);
        rcu_poll_gp_seq_end_unlocked(&cpu, &rcu, normal);
        // The expedited one began after `a`, but the count cannot say so.
        assert!(!poll_state_synchronize_rcu(&rcu, a));
        rcu_poll_gp_seq_start_unlocked(&cpu, &rcu, normal);
        let b = get_state_synchronize_rcu(&rcu);
        // The stale end changes nothing: `b` waits for a grace period that has not begun.
        rcu_poll_gp_seq_end_unlocked(&cpu, &rcu, exp);
        assert!(!poll_state_synchronize_rcu(&rcu, a) && !poll_state_synchronize_rcu(&rcu, b));
        rcu_poll_gp_seq_end_unlocked(&cpu, &rcu, normal);
        assert!(poll_state_synchronize_rcu(&rcu, a) && !poll_state_synchronize_rcu(&rcu, b));
    }
}
