// SPDX-License-Identifier: GPL-2.0-only
//! Placeholder for `refcount_t` [include/linux/refcount.h].
use crate::arch::{Acquire, Arch, Atomic, Relaxed, Release, smp_rmb};

/// `refcount_t`.
#[repr(transparent)]
#[derive(Debug)]
pub struct Refcount<A: Arch> {
    refs: Atomic<A, u32>,
}
impl<A: Arch> Refcount<A> {
    /// With `n` references.
    pub fn new(n: u32) -> Self {
        Refcount { refs: Atomic::new(n) }
    }
    /// `refcount_read`
    #[inline(always)]
    pub fn read(&self) -> u32 {
        self.refs.load(Relaxed)
    }
    /// `refcount_set`
    #[inline(always)]
    pub fn set(&self, n: u32) {
        self.refs.store(n, Relaxed)
    }
    /// `refcount_set_release`
    #[inline(always)]
    pub fn set_release(&self, n: u32) {
        self.refs.store(n, Release)
    }
    /// `__refcount_inc_not_zero_limited_acquire`: `Ok(old)`, or `Err(old)` where old is 0 or would exceed `limit`.
    #[inline(always)]
    pub fn inc_not_zero_limited_acquire(&self, limit: u32) -> Result<u32, u32> {
        let mut old = self.refs.load(Relaxed);
        loop {
            if old == 0 || old >= limit {
                return Err(old);
            }
            if self.refs.try_cmpxchg(old + 1, &mut old, Acquire) {
                return Ok(old);
            }
        }
    }
    /// `refcount_add_not_zero` (relaxed): whether it was not zero.
    #[inline(always)]
    pub fn add_not_zero(&self, n: u32) -> bool {
        let mut old = self.refs.load(Relaxed);
        while old != 0 {
            if self.refs.try_cmpxchg(old + n, &mut old, Relaxed) {
                return true;
            }
        }
        false
    }
    /// `__refcount_sub_and_test`: release, acquire if it hit 0; returns the old value.
    #[inline(always)]
    pub fn sub_return_old(&self, n: u32) -> u32 {
        let old = self.refs.fetch_sub(n, Release);
        if old == n {
            smp_rmb::<A>();
        }
        old
    }
    /// The word, for wait loops.
    #[inline(always)]
    pub fn word(&self) -> &Atomic<A, u32> {
        &self.refs
    }
    /// `refcount_inc` (relaxed).
    #[inline(always)]
    pub fn inc(&self) {
        self.refs.fetch_add(1, Relaxed);
    }
    /// `refcount_dec_and_test`
    #[inline(always)]
    pub fn dec_and_test(&self) -> bool {
        self.sub_return_old(1) == 1
    }
}
