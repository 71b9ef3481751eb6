// SPDX-License-Identifier: GPL-2.0-only
//! A slab of two objects before the model checker: the port's own exchange loops
//! ([`take_freelist`](crate::slab::record::take_freelist), [`push_chain`](crate::slab::record::push_chain)) on a record that it
//! can hold. Who frees what, and who may take it, is its users' ([`super::slot`], `model/slab_record.rs`).
//!
//! Stand-in: loom has no 16-byte words, so freelist and counters share one word of 8, of which each read takes its half
//! by a load of its own: the halves may not belong together, as in the port. Objects are numbers, and links words beside
//! them, race-checked: reading one that another CPU wrote without order between is an error.

use crate::arch::{Arch, Atomic, Full, Plain, Relaxed};
use crate::slab::record::Record;
use crate::slab::slub_def::SlabCounters;

/// Objects of a slab.
pub(crate) const OBJECTS: usize = 2;

/// See the module.
pub(crate) struct SmallSlab<A: Arch> {
    /// Freelist (object + 1, 0: none) in the upper half, counters in the lower.
    pub(crate) pair: Atomic<A, u64>,
    /// Link word of each object.
    pub(crate) link: [Plain<A, u64>; OBJECTS],
}

/// Both halves in one word.
pub(crate) fn word(p: (usize, SlabCounters)) -> u64 {
    (p.0 as u64) << 32 | p.1.0
}

impl<A: Arch> SmallSlab<A> {
    /// Some CPU's slab, every object in use.
    pub(crate) fn new() -> Self {
        let counters = SlabCounters::new(OBJECTS as u32, OBJECTS as u32, true);
        SmallSlab { pair: Atomic::new(counters.0), link: std::array::from_fn(|_| Plain::new(0)) }
    }
}

impl<A: Arch> Record for SmallSlab<A> {
    fn freelist(&self) -> usize {
        (self.pair.load(Relaxed) >> 32) as usize
    }
    fn counters(&self) -> SlabCounters {
        SlabCounters(self.pair.load(Relaxed) & 0xffff_ffff)
    }
    // The line that is seen, and can be made weak, is the loop's.
    #[track_caller]
    fn update(&self, old: (usize, SlabCounters), new: (usize, SlabCounters)) -> bool {
        self.pair.cmpxchg(word(old), word(new), Full).is_ok()
    }
}
