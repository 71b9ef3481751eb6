// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_detach_locked` (P6): a VMA is marked detached under its own semaphore [proposed on 2024-12-11, never posted]. What
//! becomes of `vm_lock_seq` was left open; of the three ways one is busted:
//! `rwsem_detach_locked` keeps it, `rwsem_detach_locked_reset` puts it back inside the locked region,
//! `rwsem_detach_locked_write` keeps it and W1 never skips the semaphore.
//!
//! Why the idea is right. `down_write()` waits for every reader, also for those of other mms, which W1 of this section did
//! not see or let in again. A reader that takes the lock later has the edge of this `up_write()` and finds V detached (R5). So
//! from R3 to R8 a reader's VMA cannot be detached, hence not freed, hence not become another: R5 and R6 look at one life,
//! and T0 to T3 and T5 hold, also where stores are seen out of order. It must be done on every way out of a tree: merge,
//! munmap, exit. A VMA that was never attached needs nothing.
//!
//! Why keeping the sequence breaks it (T4): see `rwsem_keep_seq`. The reader takes the lock while V is free, so the detach
//! does not wait for it; A's W1 takes B's number for its own, skips the semaphore, and attaches V under that reader. With
//! the reset V's first W1 in its next life always waits, and with W1 always in the semaphore every one does; a reader in between
//! sees V detached, or delays A until it is gone.
//!
//! The reset has a price that the proposal did not see, `reattach_vmas()`: a removal that fails, of which some VMAs are
//! detached already, marks them attached again in the same section. The reset has taken the section's mark from them, and a reader
//! would pass R2 to R5 while the writer, which made the mark in this section, takes the VMA for its own (I3; T2, "put back").
//! So its attach is W1 first: nothing for a VMA that has the mark, the semaphore for one that was put back.
//!
//! One hole is left with the reset: a section whose number is the reset's value, the 2^31st of an mm, skips the
//! semaphore for a fresh VMA. `rwsem_detach_locked_write` has no such hole.
//!
//! The proposal cleared `vm_mm` in the same region. The port does not: R5 turns away before R6 could see it, and what runs
//! between detach and free (unmapping) still wants the mm.
//!
//! Cost: one more pass through the semaphore for each VMA that is removed, and it may sleep; which the author wanted to
//! avoid, and put the flag into the lock word instead (`refcnt`).
//!
//! Layout and counters: the family's ([`rwsem`](super::rwsem)).

use super::rwsem::{Member, Rwsem, Vma, assert_write_locked, down_write_counted};
use super::{Claim::*, Claims, VmaLock, VmaLockEvent};
use crate::arch::{Arch, Relaxed};
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaFields;
use crate::sync::up_write;

/// Sequence kept; see the module.
#[derive(Clone, Copy, Debug)]
pub struct DetachLocked;

/// Sequence reset in the locked region; see the module.
#[derive(Clone, Copy, Debug)]
pub struct DetachLockedReset;

/// Sequence kept, W1 always in the semaphore; see the module.
#[derive(Clone, Copy, Debug)]
pub struct DetachLockedWrite;

/// The protocol, sequence kept.
pub type RwsemDetachLocked = Rwsem<DetachLocked>;
/// The protocol, sequence reset in the locked region.
pub type RwsemDetachLockedReset = Rwsem<DetachLockedReset>;
/// The protocol, sequence kept, W1 always in the semaphore.
pub type RwsemDetachLockedWrite = Rwsem<DetachLockedWrite>;

#[inline(always)]
fn mark_detached_locked<A: Arch, M: Member>(cpu: &Cpu<A>, vma: Vma<A, M>, reset: bool) {
    assert_write_locked(cpu, vma);
    // ORDER: acquire, meets up_read() of vma_end_read(): no reader has V from here on.
    down_write_counted(cpu, &vma.vm_lock, VmaLockEvent::DetachWait);
    // ORDER: both relaxed: a reader sees them through the semaphore.
    vma.detached.store(1, Relaxed);
    if reset {
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }
    // ORDER: release, meets the trylock of vma_start_read(): whoever gets the lock now sees V detached at R5, and with it
    // the reset at R4.
    up_write(cpu, &vma.vm_lock);
}

impl Member for DetachLocked {
    const NAME: &'static str = "rwsem_detach_locked";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str = "detached is stored under the VMA's own semaphore; the sequence survives";
    const CLAIMS: Claims = [Holds, Holds, Holds, Holds, Busted, Holds, Holds, Holds, Holds, Holds];

    #[inline(always)]
    fn mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        mark_detached_locked(cpu, vma, false);
    }
}

impl Member for DetachLockedReset {
    const NAME: &'static str = "rwsem_detach_locked_reset";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str = "detached and the sequence's reset are stored under the VMA's own semaphore";
    const CLAIMS: Claims = [Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds];

    #[inline(always)]
    fn before_attach<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        RwsemDetachLockedReset::vma_start_write(cpu, vma);
    }
    #[inline(always)]
    fn mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        mark_detached_locked(cpu, vma, true);
    }
}

impl Member for DetachLockedWrite {
    const NAME: &'static str = "rwsem_detach_locked_write";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str = "detached is stored under the VMA's own semaphore, which the writer never skips";
    const CLAIMS: Claims = [Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds];
    const EARLY_EXIT: bool = false;

    #[inline(always)]
    fn mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        mark_detached_locked(cpu, vma, false);
    }
}
