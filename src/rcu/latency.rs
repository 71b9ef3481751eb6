// SPDX-License-Identifier: GPL-2.0-only
//! How long callbacks wait and grace periods last: samples that cost the measured code nothing.
//!
//! custom: no kernel file. Each CPU follows one callback at a time from `call_rcu()` to its call. `call_rcu()` compares
//! the count of callbacks, which it has at hand, with the number of the next one to follow; nothing else is added to
//! it. After one was called the next is drawn from about as many as were queued since the one before: were it the very
//! next one, every sample would start right behind a batch, at the same phase of the tick, and the spread of the
//! distribution would be lost.
//!
//! The words are the host's own, so no simulated clock pays for them; but two ([`Mark`]) lie beside `rcu_data`.
//! Samples beyond [`SAMPLES`] replace the oldest.
//!
//! It cannot tell how long a callback waits that queues itself again and again faster than the next is drawn: each
//! callback counts once, however long it waited.

use super::{RcuCounter, RcuHead};
use crate::arch::{Acquire, Arch, Atomic, Native, Relaxed, Release};
use crate::cpu::{Cpu, splitmix64};

/// A word of the host's: never priced, one writer at a time, read by others at any time. The writer is the CPU, or while a
/// callback is followed the thread that calls it; the callback's queue orders the first before the second, and `Mark::next` the
/// second before the first.
type Unpriced = Atomic<Native, u64>;

/// Samples a ring holds.
pub const SAMPLES: usize = 2048;

/// The most recent [`SAMPLES`] lengths of time.
pub(crate) struct Ring {
    /// How many were ever put in.
    n: Unpriced,
    /// When, in units of [`WHEN_NS`], in the upper half; how long, in units of [`LONG_NS`], in the lower.
    at: [Unpriced; SAMPLES],
}

/// A word holds 52 days of clock, to a millisecond, and 274 s of waiting, to 64 ns.
const WHEN_NS: u64 = 1 << 20;
const LONG_NS: u64 = 64;

impl Ring {
    pub fn new() -> Self {
        Ring { n: Atomic::new(0), at: std::array::from_fn(|_| Atomic::new(0)) }
    }

    /// One that ended at `now`.
    pub fn put(&self, now: u64, ns: u64) {
        // ORDER: relaxed but the last: whoever reads so many has them.
        let n = self.n.load(Relaxed);
        let long = (ns / LONG_NS).min(u64::from(u32::MAX));
        self.at[n as usize % SAMPLES].store((now / WHEN_NS) << 32 | long, Relaxed);
        self.n.store(n + 1, Release);
    }

    /// Appends those that ended in `[from, to)`, taken to whole milliseconds, oldest first.
    pub fn between(&self, from: u64, to: u64, out: &mut Vec<u64>) {
        let n = self.n.load(Acquire) as usize;
        let when = from / WHEN_NS..to / WHEN_NS;
        out.extend(
            (n.saturating_sub(SAMPLES)..n)
                .map(|i| self.at[i % SAMPLES].load(Relaxed))
                .filter(|s| when.contains(&(s >> 32)))
                .map(|s| (s & u64::from(u32::MAX)) * LONG_NS),
        );
    }
}

/// What `call_rcu()` and the batches look at; it lies in `rcu_data`, which they have at hand.
pub(crate) struct Mark {
    /// Number of the callback to follow next, in the CPU's count of queued ones; the largest number while one is
    /// followed.
    pub next: Unpriced,
    /// The one followed, 0: none.
    pub head: Unpriced,
}

impl Mark {
    pub fn new() -> Self {
        Mark { next: Atomic::new(1), head: Atomic::new(0) }
    }
}

/// What follows one callback of a CPU at a time.
pub(crate) struct Tracer {
    /// When it was queued, ns.
    queued_at: Unpriced,
    /// The count when the next one was drawn last.
    drawn_at: Unpriced,
    ring: Ring,
}

impl Tracer {
    pub fn new() -> Self {
        Tracer { queued_at: Atomic::new(0), drawn_at: Atomic::new(0), ring: Ring::new() }
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// A new token counts from 0 again.
    pub fn restart<A: Arch>(&self, cpu: &Cpu<A>, mark: &Mark) {
        let n = cpu.counters.get(RcuCounter::CallbacksQueued);
        // ORDER: relaxed: nothing is followed.
        self.drawn_at.store(n, Relaxed);
        mark.head.store(0, Relaxed);
        mark.next.store(n + 1, Relaxed);
    }

    /// `head` was just queued, and is the one to follow.
    #[cold]
    #[inline(never)]
    pub fn begin<A: Arch>(&self, mark: &Mark, head: *mut RcuHead<A>) {
        // ORDER: acquire, meets the release in end(), which another thread may have run.
        mark.next.load(Acquire);
        // ORDER: relaxed: the queue that `head` is about to go into publishes it.
        mark.next.store(u64::MAX, Relaxed);
        mark.head.store(head as usize as u64, Relaxed);
        self.queued_at.store(A::now(), Relaxed);
    }

    /// The one followed is about to be called; `queued`: the count of callbacks queued on its CPU, where this is it.
    /// Called from elsewhere, no phase of the tick is preferred, and the next to be queued is followed.
    #[cold]
    #[inline(never)]
    pub fn end<A: Arch>(&self, mark: &Mark, queued: Option<u64>) {
        let now = A::now();
        self.ring.put(now, now.saturating_sub(self.queued_at.load(Relaxed)));
        mark.head.store(0, Relaxed);
        let next = queued.map_or(0, |queued| {
            let window = queued.saturating_sub(self.drawn_at.load(Relaxed)) + 1;
            self.drawn_at.store(queued, Relaxed);
            queued + 1 + splitmix64(queued ^ now) % window
        });
        // ORDER: release, meets begin(): the next one is followed when this one is done with.
        mark.next.store(next, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_last_and_knows_when() {
        let r = Box::new(Ring::new());
        let all = |from, to| {
            let mut v = Vec::new();
            r.between(from, to, &mut v);
            v
        };
        assert!(all(0, u64::MAX).is_empty());
        let put = |i: u64| r.put((100 + i) << 20, i * 64 + 63);
        let values = |i: std::ops::Range<u64>| i.map(|i| i * 64).collect::<Vec<_>>();
        (0..10).for_each(put);
        assert_eq!(all(0, u64::MAX), values(0..10));
        assert_eq!(all(103 << 20, 105 << 20), values(3..5));
        (10..SAMPLES as u64 + 5).for_each(put);
        assert_eq!(all(0, u64::MAX), values(5..SAMPLES as u64 + 5));
        r.put(0, u64::MAX);
        assert_eq!(all(0, 1 << 20), [u64::from(u32::MAX) * 64]);
    }
}
