// SPDX-License-Identifier: GPL-2.0-only
//! Placeholder for `seqcount_t` [include/linux/seqlock.h].
use crate::arch::{Acquire, Arch, Atomic, Relaxed, smp_rmb, smp_wmb};

/// `seqcount_t`.
#[repr(transparent)]
#[derive(Debug)]
pub struct Seqcount<A: Arch> {
    sequence: Atomic<A, u32>,
}
impl<A: Arch> Seqcount<A> {
    /// Starts at `v`.
    pub fn new(v: u32) -> Self {
        Seqcount { sequence: Atomic::new(v) }
    }
    /// The word, for marked accesses.
    #[inline(always)]
    pub fn word(&self) -> &Atomic<A, u32> {
        &self.sequence
    }
    /// `raw_read_seqcount`: acquire.
    #[inline(always)]
    pub fn raw_read(&self) -> u32 {
        self.sequence.load(Acquire)
    }
    /// `read_seqcount_retry`
    #[inline(always)]
    pub fn read_retry(&self, start: u32) -> bool {
        smp_rmb::<A>();
        self.sequence.load(Relaxed) != start
    }
    /// `do_raw_write_seqcount_begin`
    #[inline(always)]
    pub fn write_begin(&self) {
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
        smp_wmb::<A>();
    }
    /// `do_raw_write_seqcount_end`
    #[inline(always)]
    pub fn write_end(&self) {
        smp_wmb::<A>();
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
    }
}
