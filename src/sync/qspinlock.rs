// SPDX-License-Identifier: GPL-2.0-only
//! Placeholder: test-and-set.
use crate::arch::{Acquire, Arch, Atomic, Release, smp_cond_load_relaxed};
use crate::cpu::Cpu;

/// `raw_spinlock_t`.
#[repr(transparent)]
#[derive(Debug)]
pub struct RawSpinLock<A: Arch> {
    val: Atomic<A, u32>,
}
impl<A: Arch> RawSpinLock<A> {
    /// Unlocked.
    pub fn new() -> Self {
        RawSpinLock { val: Atomic::new(0) }
    }
}
impl<A: Arch> Default for RawSpinLock<A> {
    fn default() -> Self {
        Self::new()
    }
}
/// Locks.
#[inline(always)]
pub fn raw_spin_lock<A: Arch>(_cpu: &Cpu<A>, l: &RawSpinLock<A>) {
    while l.val.cmpxchg(0, 1, Acquire).is_err() {
        smp_cond_load_relaxed(&l.val, |v| v == 0);
    }
}
/// Locks if free.
#[inline(always)]
pub fn raw_spin_trylock<A: Arch>(_cpu: &Cpu<A>, l: &RawSpinLock<A>) -> bool {
    l.val.cmpxchg(0, 1, Acquire).is_ok()
}
/// Unlocks.
#[inline(always)]
pub fn raw_spin_unlock<A: Arch>(_cpu: &Cpu<A>, l: &RawSpinLock<A>) {
    l.val.store(0, Release);
}
