// SPDX-License-Identifier: GPL-2.0-only
//! The extended quiescent state of a CPU: a counter whose low bit says "RCU must wait for me"
//! [include/linux/context_tracking_state.h, kernel/context_tracking.c, 6.12].
//!
//! custom: one unit is 1, the kernel shares the word with other states. User mode is no extended quiescent state, as
//! without nohz_full.
//!
//! INVARIANT: only the owning CPU adds; the grace-period thread reads.

use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed};

const CT_RCU_WATCHING: u32 = 1;

/// The counter. It starts outside RCU's sight: a CPU that has not come up yet need not be waited for.
#[repr(transparent)]
#[derive(Debug)]
pub struct ContextTracking<A: Arch> {
    state: Atomic<A, u32>,
}

impl<A: Arch> ContextTracking<A> {
    /// Not watched.
    pub fn new() -> Self {
        ContextTracking { state: Atomic::new(0) }
    }

    /// `rcu_is_watching_curr_cpu()`, on the owning CPU.
    #[inline(always)]
    pub fn rcu_is_watching(&self) -> bool {
        self.state.load(Relaxed) & CT_RCU_WATCHING != 0
    }

    /// `ct_kernel_exit_state()`: enters the extended quiescent state.
    #[inline]
    pub fn eqs_enter(&self) {
        // ORDER: full; every access of the readers before comes before the even value that ct_rcu_watching_cpu_acquire()
        // sees, hence before the end of the grace period that credits it.
        let old = self.state.fetch_add(CT_RCU_WATCHING, Full);
        debug_assert!(old & CT_RCU_WATCHING != 0, "entered twice");
    }

    /// `ct_kernel_enter_state()`: leaves it.
    #[inline]
    pub fn eqs_exit(&self) {
        // ORDER: full; store-buffer shape with rcu_seq_start() and the snapshot after it: either the snapshot sees the
        // odd value and waits, or the readers after see everything stored before that grace period began.
        let old = self.state.fetch_add(CT_RCU_WATCHING, Full);
        debug_assert!(old & CT_RCU_WATCHING == 0, "left twice");
    }

    /// `rcu_momentary_eqs()`: a quiescent state of no length.
    #[inline]
    pub fn momentary_eqs(&self) {
        // ORDER: full, both halves of the above at once.
        let old = self.state.fetch_add(2 * CT_RCU_WATCHING, Full);
        debug_assert!(old & CT_RCU_WATCHING != 0, "pulse while idle");
    }

    /// `ct_rcu_watching_cpu_acquire()`, from another CPU.
    #[inline]
    pub fn snapshot(&self) -> u32 {
        // ORDER: acquire; meets eqs_enter(). Against eqs_exit() the full barrier of rcu_seq_start() before it serves.
        self.state.load(Acquire)
    }

    /// `rcu_watching_snap_in_eqs()`
    #[inline(always)]
    pub fn snap_in_eqs(snap: u32) -> bool {
        snap & CT_RCU_WATCHING == 0
    }
}

impl<A: Arch> Default for ContextTracking<A> {
    fn default() -> Self {
        Self::new()
    }
}
