// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_keep_seq` (P3, busted): `rwsem_reset_on_free` without the reset: `vm_lock_seq` survives the free [proposed on
//! 2024-12-10].
//!
//! What it repairs: until the section that removed V is over, `vm_lock_seq` says so, and afterwards only E2 lets a reader
//! pass. If another mm takes the object meanwhile and write-locks it, the number changes under `down_write()`, so that
//! a reader that passes has the semaphore's edge from *that* writer, and sees the other vm_mm. One reuse is harmless
//! (T0, T1, T2 hold, also where stores are seen out of order).
//!
//! How it breaks. The objection of 2024-12-10 was that whoever reuses the object can overwrite the number anyway. Two reuses
//! make that real (T3, T5: see `rwsem_reset_on_free`): A, B, A again. Every load in that run returns the newest value.
//!
//! And the number means nothing across mms (T4). V is write-locked in B's section 5 and freed; A's next section is 5,
//! too; small odd numbers are what young processes have. A allocates V, W1 finds the 5 and takes V for locked already: it
//! skips the semaphore, which a stale reader took while V was free. A attaches V; R5 sees it attached, R6 sees A's mm and the
//! right range, and R owns a VMA that A's writer believes to have for itself. For the same reason an assertion that a
//! VMA is write-locked may pass for one that nobody locked.
//!
//! Layout and counters: the family's ([`rwsem`](super::rwsem)). Cost: a free stores one word less than `rwsem_reset_on_free`'s.

use super::rwsem::{Member, Rwsem};
use super::{Claim::*, Claims};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct KeepSeq;

/// The protocol.
pub type RwsemKeepSeq = Rwsem<KeepSeq>;

impl Member for KeepSeq {
    const NAME: &'static str = "rwsem_keep_seq";
    const ORIGIN: &'static str = "2024-12-10";
    const ABOUT: &'static str = "as posted in v5 but the sequence survives the free";
    const CLAIMS: Claims = [Holds, Holds, Holds, Busted, Busted, Busted, Holds, Holds, Holds, Holds];
}
