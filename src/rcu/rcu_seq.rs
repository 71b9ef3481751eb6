// SPDX-License-Identifier: GPL-2.0-only
//! Sequence numbers: two low bits of phase, the rest a count [kernel/rcu/rcu.h, 6.12].
//!
//! Phase 0 means idle and any other phase running, so one whole cycle adds 4. Every comparison looks at the signed
//! distance, so that the count may wrap; it starts 300 cycles short of the wrap for that very reason.
//!
//! INVARIANT: a sequence word has one writer at a time (a lock or a single thread sees to it).

use crate::arch::{Arch, Atomic, Relaxed, smp_mb};

const RCU_SEQ_STATE_MASK: u64 = 3;

/// Where a kernel's grace-period count starts.
pub const RCU_GP_SEQ_START: u64 = (300u64 << 2).wrapping_neg();

/// `ULONG_CMP_GE()`: `a` is at or after `b`.
#[inline(always)]
pub fn ulong_cmp_ge(a: u64, b: u64) -> bool {
    a.wrapping_sub(b) <= u64::MAX / 2
}

/// `ULONG_CMP_LT()`: `a` is before `b`.
#[inline(always)]
pub fn ulong_cmp_lt(a: u64, b: u64) -> bool {
    !ulong_cmp_ge(a, b)
}

/// `rcu_seq_ctr()`: the count.
#[inline(always)]
pub fn rcu_seq_ctr(s: u64) -> u64 {
    s >> 2
}

/// `rcu_seq_state()`: the phase; 0 is idle.
#[inline(always)]
pub fn rcu_seq_state(s: u64) -> u64 {
    s & RCU_SEQ_STATE_MASK
}

/// `rcu_seq_start()`
#[inline]
pub fn rcu_seq_start<A: Arch>(s: &Atomic<A, u64>) {
    s.store(s.load(Relaxed).wrapping_add(1), Relaxed);
    // ORDER: full; the running count is visible before anything the cycle does. Meets the barrier in rcu_seq_snap():
    // who labels after this store waits for the next cycle, or its earlier stores are seen by this one.
    smp_mb::<A>();
    debug_assert_eq!(rcu_seq_state(s.load(Relaxed)), 1);
}

/// `rcu_seq_endval()`: the value that ends the cycle `s` lies in.
#[inline(always)]
pub fn rcu_seq_endval(s: u64) -> u64 {
    (s | RCU_SEQ_STATE_MASK).wrapping_add(1)
}

/// `rcu_seq_end()`
#[inline]
pub fn rcu_seq_end<A: Arch>(s: &Atomic<A, u64>) {
    // ORDER: full; all of the cycle comes before the count that says it is over.
    smp_mb::<A>();
    let v = s.load(Relaxed);
    debug_assert_ne!(rcu_seq_state(v), 0);
    s.store(rcu_seq_endval(v), Relaxed);
}

/// `rcu_seq_snap()`: the earliest value that proves a whole cycle after now.
#[inline]
pub fn rcu_seq_snap<A: Arch>(s: &Atomic<A, u64>) -> u64 {
    let v = rcu_seq_snap_of(s.load(Relaxed));
    // ORDER: full; what the caller does with the label must not be seen before the load it rests on; meets
    // rcu_seq_start(). Nothing stands before the load, as in 6.12 (7.3 has a full barrier there): what the label is
    // for was put in order by add_len() when the callback was queued.
    smp_mb::<A>();
    v
}

/// The arithmetic of [`rcu_seq_snap`].
#[inline(always)]
pub fn rcu_seq_snap_of(s: u64) -> u64 {
    s.wrapping_add(2 * RCU_SEQ_STATE_MASK + 1) & !RCU_SEQ_STATE_MASK
}

/// `rcu_seq_started()`: whether the cycle that ends at `s` has begun.
#[inline(always)]
pub fn rcu_seq_started(cur: u64, s: u64) -> bool {
    ulong_cmp_lt(s.wrapping_sub(1) & !RCU_SEQ_STATE_MASK, cur)
}

/// `rcu_seq_done()`: whether the cycle that ends at `s` is over.
#[inline(always)]
pub fn rcu_seq_done(cur: u64, s: u64) -> bool {
    ulong_cmp_ge(cur, s)
}

/// `rcu_seq_done_exact()`: as [`rcu_seq_done`], but a cookie that the count has left far behind is over, too, even
/// where half the range lies between: only one of the next few cycles is not.
#[inline(always)]
pub fn rcu_seq_done_exact(cur: u64, s: u64) -> bool {
    ulong_cmp_ge(cur, s) || ulong_cmp_lt(cur, s.wrapping_sub(3 * RCU_SEQ_STATE_MASK + 1))
}

/// `rcu_seq_completed_gp()`: whether a cycle ended between `old` and `new`.
#[inline(always)]
pub fn rcu_seq_completed_gp(old: u64, new: u64) -> bool {
    ulong_cmp_lt(old, new & !RCU_SEQ_STATE_MASK)
}

/// `rcu_seq_new_gp()`: whether a cycle began between `old` and `new`.
#[inline(always)]
pub fn rcu_seq_new_gp(old: u64, new: u64) -> bool {
    ulong_cmp_lt(old.wrapping_add(RCU_SEQ_STATE_MASK) & !RCU_SEQ_STATE_MASK, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against plain counting far from the wrap, at the wrap and across the sign.
    #[test]
    fn sequence_arithmetic_holds_at_every_distance_from_the_wrap() {
        for base in [0u64, 4000, RCU_GP_SEQ_START, 0u64.wrapping_sub(8), (u64::MAX / 2) & !3, 1 << 63] {
            for n in 0..40u64 {
                let cur = base.wrapping_add(n);
                let idle = n % 4 == 0;
                let cycles_begun = n.div_ceil(4);
                let snap = rcu_seq_snap_of(cur);
                let needed = if idle { n / 4 + 1 } else { n / 4 + 2 };
                assert_eq!(snap, base.wrapping_add(needed * 4), "base {base:x} n {n}");
                assert!(!rcu_seq_done(cur, snap));
                assert!(!rcu_seq_done_exact(cur, snap));
                assert!(
                    rcu_seq_done_exact(snap, snap) && rcu_seq_done_exact(snap.wrapping_add(u64::MAX / 2 + 9), snap)
                );
                assert_eq!(rcu_seq_started(cur, base.wrapping_add(needed * 4)), cycles_begun >= needed);
                assert!(rcu_seq_started(base.wrapping_add(needed * 4 - 3), snap));
                for m in n..40 {
                    let new = base.wrapping_add(m);
                    assert_eq!(rcu_seq_completed_gp(cur, new), m / 4 > n / 4 || (m / 4 * 4 > n), "{n} {m}");
                    assert_eq!(rcu_seq_new_gp(cur, new), m > n.div_ceil(4) * 4, "{n} {m}");
                    assert_eq!(rcu_seq_done(new, snap), m >= needed * 4);
                }
            }
        }
    }
}
