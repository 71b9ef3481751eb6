// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_always_write` (P4, busted): on top of `rwsem_keep_seq`, W1 takes the semaphore each time, also where
//! `vm_lock_seq` says that the section has the VMA already [proposed on 2024-12-10]. `rwsem_always_write_reset` is the
//! same on top of `rwsem_reset_on_free`: the thread does not say which of the two was meant.
//!
//! What it repairs: the semaphore survives the reuse, so everybody meets there. A number that is equal by chance no longer
//! makes a writer skip it (T4 holds).
//!
//! How it breaks. W1 keeps readers out for the moment in which it holds the semaphore; between B's leaving it and B's store of
//! `detached` nothing stops a reader of A, whose mm has another sequence, from taking the lock and finding V attached. B
//! detaches and frees V under that reader, A allocates it and fills in vm_mm and range *before* its own W1, and R6 passes
//! while A waits in W1 (T3, T5). The exit of an mm has the same window: W1 when page tables are freed, `detached` later.
//!
//! With the reset all that `rwsem_reset_on_free` does wrong where stores are seen out of order is back (T0, T1, T2): the
//! semaphore's edge of W1 is older than `detached` however often it is taken before.
//!
//! What it would cost: a second pass through the semaphore for each VMA that an operation locks twice.
//!
//! Layout and counters: the family's ([`rwsem`](super::rwsem)).

use super::rwsem::{Member, Rwsem, Vma};
use super::{Claim::*, Claims};
use crate::arch::{Arch, Relaxed};
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaFields;

/// With the sequence kept; see the module.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysWrite;

/// With the reset left in; see the module.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysWriteReset;

/// The protocol.
pub type RwsemAlwaysWrite = Rwsem<AlwaysWrite>;
/// The protocol with the reset left in.
pub type RwsemAlwaysWriteReset = Rwsem<AlwaysWriteReset>;

impl Member for AlwaysWrite {
    const NAME: &'static str = "rwsem_always_write";
    const ORIGIN: &'static str = "2024-12-10";
    const ABOUT: &'static str = "the sequence survives the free and the writer never skips the semaphore";
    const CLAIMS: Claims = [Holds, Holds, Holds, Busted, Holds, Busted, Holds, Holds, Holds, Holds];
    const EARLY_EXIT: bool = false;
}

impl Member for AlwaysWriteReset {
    const NAME: &'static str = "rwsem_always_write_reset";
    const ORIGIN: &'static str = "2024-12-10";
    const ABOUT: &'static str = "the sequence is reset when freed and the writer never skips the semaphore";
    const CLAIMS: Claims = [Busted, Busted, Busted, Busted, Holds, Busted, Holds, Holds, Holds, Holds];
    const EARLY_EXIT: bool = false;

    #[inline(always)]
    fn freed<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A, Self>) {
        // ORDER: relaxed: the bug of rwsem_reset_on_free.
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }
}
