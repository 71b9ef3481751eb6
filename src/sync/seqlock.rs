// SPDX-License-Identifier: GPL-2.0-only
//! `seqcount_t`: readers that look, compute and look again.
//!
//! Follows include/linux/seqlock.h of 6.12, and 7.3 for `raw_seqcount_try_begin()`.
//!
//! stub: the variants that know their lock and the latch.
//!
//! INVARIANT: odd while a writer is inside; writers are serialised by a lock of the caller's. Everything that a reader
//! may load between begin and retry must be an [`Atomic`]: it races by design.
//!
//! Cannot tell: a reader that slept through exactly 2^31 write sections finds nothing changed.

use crate::arch::{Acquire, Arch, Atomic, Relaxed, smp_cond_load_acquire, smp_rmb, smp_wmb};

/// `seqcount_t`, 4 bytes.
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

    /// `raw_read_seqcount()`: the sequence, odd or even.
    #[inline(always)]
    pub fn raw_read(&self) -> u32 {
        // ORDER: acquire; meets write_end(): what the last writer wrote is seen.
        self.sequence.load(Acquire)
    }

    /// `read_seqcount_begin()`: waits until no writer is inside.
    #[inline(always)]
    pub fn read_begin(&self) -> u32 {
        // ORDER: acquire; as in raw_read().
        smp_cond_load_acquire(&self.sequence, |s| s & 1 == 0)
    }

    /// `raw_seqcount_try_begin()` (7.3): `None` where a writer is inside, for readers that rather take the lock.
    #[inline(always)]
    pub fn try_begin(&self) -> Option<u32> {
        let s = self.raw_read();
        (s & 1 == 0).then_some(s)
    }

    /// `read_seqcount_retry()`: whether what was read since `start` is worthless.
    #[inline(always)]
    pub fn read_retry(&self, start: u32) -> bool {
        // ORDER: read barrier between the reader's loads and the second look; meets the write barrier in
        // write_begin(): a reader that saw something of a writer sees its sequence too.
        smp_rmb::<A>();
        self.sequence.load(Relaxed) != start
    }

    /// `do_raw_write_seqcount_begin()`
    #[inline(always)]
    pub fn write_begin(&self) {
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
        // ORDER: write barrier; meets the read barrier in read_retry().
        smp_wmb::<A>();
    }

    /// `do_raw_write_seqcount_end()`
    #[inline(always)]
    pub fn write_end(&self) {
        // ORDER: write barrier; meets the acquire in raw_read(): the new sequence comes with what it stands for. As in
        // C, not quite a release: nothing here promises that the writer's earlier loads are done.
        smp_wmb::<A>();
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;

    /// L11, and of L15 the count that wraps.
    #[test]
    fn a_reader_notices_any_writer_and_only_a_writer() {
        let s = Seqcount::<Native>::new(u32::MAX - 1);
        let a = s.read_begin();
        assert!(!s.read_retry(a));
        s.write_begin();
        assert!(s.raw_read() & 1 == 1 && s.read_retry(a));
        assert_eq!(s.try_begin(), None);
        s.write_end();
        assert!(s.read_retry(a));
        assert_eq!(s.try_begin(), Some(0));
    }
}
