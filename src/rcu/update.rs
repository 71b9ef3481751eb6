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
    cpu.rcu_nesting.set(cpu.rcu_nesting.get() + 1);
    barrier();
}

/// `rcu_read_unlock()`
#[inline(always)]
pub fn rcu_read_unlock<A: Arch>(cpu: &Cpu<A>) {
    barrier();
    debug_assert_ne!(cpu.rcu_nesting.get(), 0, "rcu_read_unlock() without rcu_read_lock()");
    cpu.rcu_nesting.set(cpu.rcu_nesting.get().wrapping_sub(1));
}

/// `rcu_read_lock_held()`
#[inline(always)]
pub fn rcu_read_lock_held<A: Arch>(cpu: &Cpu<A>) -> bool {
    cpu.rcu_nesting.get() != 0
}
