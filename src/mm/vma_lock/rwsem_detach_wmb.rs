// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_detach_wmb` (P5, busted): the free stores `vm_mm` = NULL, a write barrier, `detached` [proposed on 2024-12-11].
//!
//! The barrier was to pair with the one behind R5: whoever sees V detached sees no mm in it. The review's answer was that
//! the pair says something only about a reader that *does* see V detached, and that one is turned away already; nothing
//! makes a reader see it. So it is, but the thread never said what becomes of the reset of `vm_lock_seq`, and that decides
//! what is left of it:
//! - kept (`rwsem_detach_wmb`): what `rwsem_keep_seq` does holds without the barrier, and the rest fails with it.
//! - reset behind the barrier (`_reset_after`): a reader that passes R4 because of the reset has, by R5's barrier, also the
//!   NULL from before the other barrier. So T0 and T1 hold, by luck: not through R5, as intended, but through R6. If the same mm
//!   takes the object again in the same section (T2), vm_mm is A's once more when R6 looks, and the luck is over.
//! - reset before everything (`_reset_before`): nothing comes with it; fails like `rwsem_reset_on_free`.
//!
//! All three fail T3 and T5: A fills vm_mm in again before R6 looks, whatever was stored between. T4 fails where the
//! sequence is kept, see `rwsem_keep_seq`.
//!
//! PORT: W3 still stores `detached` when a VMA leaves its tree, as 3/6 of the series does; the free stores it again behind
//! the barrier. The proposal was about the free alone.
//!
//! Layout and counters: the family's ([`rwsem`](super::rwsem)). Cost: `vm_mm` and `detached` are stored at each free, on lines that
//! are written anyway.

use super::rwsem::{Member, Rwsem, Vma};
use super::{Claim::*, Claims};
use crate::arch::{Arch, Relaxed, smp_wmb};
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaFields;

/// Sequence kept; see the module.
#[derive(Clone, Copy, Debug)]
pub struct DetachWmb;

/// Sequence reset behind the barrier; see the module.
#[derive(Clone, Copy, Debug)]
pub struct DetachWmbResetAfter;

/// Sequence reset first; see the module.
#[derive(Clone, Copy, Debug)]
pub struct DetachWmbResetBefore;

/// The protocol, sequence kept.
pub type RwsemDetachWmb = Rwsem<DetachWmb>;
/// The protocol, sequence reset behind the barrier.
pub type RwsemDetachWmbResetAfter = Rwsem<DetachWmbResetAfter>;
/// The protocol, sequence reset first.
pub type RwsemDetachWmbResetBefore = Rwsem<DetachWmbResetBefore>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reset {
    Never,
    After,
    Before,
}

#[inline(always)]
fn free<A: Arch, M: Member>(vma: Vma<A, M>, reset: Reset) {
    if reset == Reset::Before {
        // ORDER: relaxed: nothing comes with it.
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }
    // ORDER: relaxed: before the barrier that follows.
    vma.vm_mm().store(std::ptr::null_mut(), Relaxed);
    // ORDER: write barrier, meets the read barrier behind R5 of vma_start_read(): whoever saw one of the stores below at
    // R4 or R5 sees the NULL at R6, or what came after it.
    smp_wmb::<A>();
    if reset == Reset::After {
        // ORDER: relaxed: behind the barrier.
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }
    // ORDER: relaxed: behind the barrier; R5 need not see it all the same.
    vma.detached.store(1, Relaxed);
}

impl Member for DetachWmb {
    const NAME: &'static str = "rwsem_detach_wmb";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str = "a write barrier between clearing the mm and setting detached; the sequence survives";
    const CLAIMS: Claims = [Holds, Holds, Holds, Busted, Busted, Busted, Holds, Holds, Holds, Holds];

    #[inline(always)]
    fn freed<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A, Self>) {
        free(vma, Reset::Never);
    }
}

impl Member for DetachWmbResetAfter {
    const NAME: &'static str = "rwsem_detach_wmb_reset_after";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str = "a write barrier between clearing the mm and setting detached and the sequence";
    const CLAIMS: Claims = [Holds, Holds, Busted, Busted, Holds, Busted, Holds, Holds, Holds, Holds];

    #[inline(always)]
    fn freed<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A, Self>) {
        free(vma, Reset::After);
    }
}

impl Member for DetachWmbResetBefore {
    const NAME: &'static str = "rwsem_detach_wmb_reset_before";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str = "the sequence reset, then a write barrier between clearing the mm and setting detached";
    const CLAIMS: Claims = [Busted, Busted, Busted, Busted, Holds, Busted, Holds, Holds, Holds, Holds];

    #[inline(always)]
    fn freed<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A, Self>) {
        free(vma, Reset::Before);
    }
}
