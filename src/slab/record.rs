// SPDX-License-Identifier: GPL-2.0-only
//! The exchange loops on a slab's record: taking its freelist, putting a chain in front of it [mm/slub.c, 6.12 and 7.3:
//! get_freelist, freeze_slab, __slab_free].
//!
//! Apart from where a record lies and what a link is, so that the model checker runs these very loops on a record of its
//! own (it has no 16-byte words). custom: the kernel writes each loop out where it is used.
//!
//! INVARIANT: objects minus the length of the freelist = `inuse`; only pushes and take-all happen at the same time, so
//! an exchange that succeeds saw the list that it replaces.

use super::slub_def::SlabCounters;

/// Freelist and counters of a slab.
pub(crate) trait Record {
    /// First free object, 0: none. Read apart from the counters: the two may not belong together.
    fn freelist(&self) -> usize;
    /// Counters.
    fn counters(&self) -> SlabCounters;
    /// `slab_update_freelist()`: one try to change both together, fully ordered.
    fn update(&self, old: (usize, SlabCounters), new: (usize, SlabCounters)) -> bool;
}

/// Takes all free objects; all count as in use from then on. `frozen`: whether the slab is frozen afterwards, by the
/// list found. Returns the list and the counters found.
#[inline(always)]
pub(crate) fn take_freelist(r: &impl Record, frozen: impl Fn(usize) -> bool) -> (usize, SlabCounters) {
    loop {
        let (freelist, counters) = (r.freelist(), r.counters());
        let new = counters.with_inuse(counters.objects()).with_frozen(frozen(freelist));
        if r.update((freelist, counters), (0, new)) {
            return (freelist, counters);
        }
    }
}

/// What a free found and made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freed {
    /// The freelist before; 0: the slab was full.
    pub(crate) prior: usize,
    /// Whether it was, and is, some CPU's slab.
    pub(crate) was_frozen: bool,
    /// Objects still in use.
    pub(crate) inuse: u32,
}

/// Puts a chain of `cnt` objects that begins with `head` in front of the freelist. Before each try `again` undoes what
/// the one before prepared, and `prepare` links the chain's end to the list as it is and takes what locks there must be.
#[inline(always)]
pub(crate) fn push_chain(
    r: &impl Record,
    head: usize,
    cnt: u32,
    mut again: impl FnMut(),
    mut prepare: impl FnMut(Freed),
) -> Freed {
    loop {
        again();
        let (prior, counters) = (r.freelist(), r.counters());
        let inuse = counters.inuse().wrapping_sub(cnt) & 0xffff;
        let freed = Freed { prior, was_frozen: counters.frozen(), inuse };
        prepare(freed);
        if r.update((prior, counters), (head, counters.with_inuse(inuse))) {
            return freed;
        }
    }
}
