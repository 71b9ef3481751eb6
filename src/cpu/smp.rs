// SPDX-License-Identifier: GPL-2.0-only
//! Asking another CPU to do something [kernel/smp.c, 6.12].
//!
//! custom: an interprocessor interrupt is a bit in the target's word, served at its next operation boundary or idle
//! turn; the cost of a real one is not charged (only `rcu_barrier` and expedited grace periods send any).

use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Full, Relaxed};
use crate::cpu::{Task, sched};

/// Request bit: `rcu_barrier_handler()`.
pub const CALL_RCU_BARRIER: u32 = 1;
/// Request bit: `rcu_exp_handler()`.
pub const CALL_RCU_EXP: u32 = 2;

/// Words of a CPU that other CPUs write, on lines of their own.
#[repr(C, align(128))]
pub struct CpuRemote<A: Arch> {
    /// Requested functions, one bit each.
    pub call: Atomic<A, u32>,
}

impl<A: Arch> CpuRemote<A> {
    /// Nothing requested.
    pub fn new() -> Self {
        CpuRemote { call: Atomic::new(0) }
    }

    /// `smp_call_function_single()`: sets `bit` and wakes the CPU's task if it sleeps.
    pub fn request(&self, bit: u32, task: KRef<Task<A>>) {
        // ORDER: full; store-buffer shape with schedule(): a task going to sleep (full barrier in
        // set_current_state_sleeping()) sees the bit, or wake_up_process() sees it sleeping.
        self.call.fetch_or(bit, Full);
        sched::wake_up_process(task);
    }

    /// Takes all requests; 0 if there were none.
    #[inline(always)]
    pub fn take(&self) -> u32 {
        // ORDER: full; what the requester stored before asking is visible to the function.
        if self.call.load(Relaxed) == 0 { 0 } else { self.call.swap(0, Full) }
    }
}

impl<A: Arch> Default for CpuRemote<A> {
    fn default() -> Self {
        Self::new()
    }
}
