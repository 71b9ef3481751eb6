// SPDX-License-Identifier: GPL-2.0-only
//! The reader's side [include/linux/rcupdate.h, kernel/rcu/tree_plugin.h, 6.12].
//!
//! PREEMPT_RCU: a plain count of nesting in the task, and compiler barriers. dup: `rcu_read_unlock_special()`: nobody
//! preempts a reader of the port. The kernel's are calls, these are inlined (BIAS.md).

use crate::arch::{Arch, barrier};
use crate::cpu::Cpu;

/// `rcu_read_lock()`
#[inline(always)]
pub fn rcu_read_lock<A: Arch>(cpu: &Cpu<A>) {
    cpu.probe.rcu_nesting.inc();
    barrier();
}

/// `rcu_read_unlock()`
#[inline(always)]
pub fn rcu_read_unlock<A: Arch>(cpu: &Cpu<A>) {
    barrier();
    debug_assert_ne!(cpu.probe.rcu_nesting.get(), 0, "rcu_read_unlock() without rcu_read_lock()");
    cpu.probe.rcu_nesting.dec();
}

/// `rcu_read_lock_held()`
#[inline(always)]
pub fn rcu_read_lock_held<A: Arch>(cpu: &Cpu<A>) -> bool {
    cpu.probe.rcu_nesting.get() != 0
}
