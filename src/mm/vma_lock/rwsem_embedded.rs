// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_embedded` (P1): the semaphore moves into the VMA; VMAs are still freed after a grace period [series v5 of
//! 2024-12-06, 1/6 to 3/6].
//!
//! Why it is right: the argument of `rwsem_separate` does not care where the semaphore is. A reader is inside RCU from the
//! walk to R7 and holds the lock afterwards, so V stays the same VMA of the same mm; a writer either waits for the reader
//! or leaves the semaphore before the reader takes it (E1), in which case R4 lets the reader pass only with the end of
//! the section in hand (E2).
//!
//! New beside the place: a VMA is born detached, and the flag is cleared next to the store into the tree. That needs no
//! barrier. Whoever finds V in the tree has, by the tree's own publication, W1 of the section that put it there, hence its
//! odd number in `vm_lock_seq` and an `mm_lock_seq` at least as new; R4 then lets the reader pass only with the end of that
//! section (E2), and the flag was stored inside it.
//!
//! What it costs and saves: one allocation, one free and one dependent load less than `rwsem_separate`; 256 bytes a VMA
//! (32 in two pages) against 184 + 40, and no two locks share a line.
//!
//! Layout and counters: the family's ([`rwsem`](super::rwsem)).

use super::rwsem::{Member, Rwsem};
use super::{Claim::*, Claims, Reuse};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Embedded;

/// The protocol.
pub type RwsemEmbedded = Rwsem<Embedded>;

impl Member for Embedded {
    const NAME: &'static str = "rwsem_embedded";
    const ORIGIN: &'static str = "v5 1-3/6";
    const ABOUT: &'static str = "the same lock inside the VMA, still freed after a grace period";
    const CLAIMS: Claims =
        [Holds, Impossible, Impossible, Impossible, Impossible, Impossible, Impossible, Holds, Holds, Holds];
    const REUSE: Reuse = Reuse::Forbids(
        "its readers never check which mm a VMA belongs to, and its lock is initialised at each allocation",
    );
}
