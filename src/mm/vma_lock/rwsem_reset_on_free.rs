// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_reset_on_free` (P2, busted): typesafe memory for the embedded semaphore, as posted [v5 4/6 of 2024-12-06, with
//! 5/6 for the free pointer].
//!
//! What changed against `rwsem_embedded`: memory is reused at once; readers compare `vm_mm` (R6) and use their own mm's
//! sequence (R2, R4); attaching has a write barrier before the flag, R5 a read barrier behind it; and the free puts
//! `vm_lock_seq` back to its first value, so that the next life begins like a fresh object.
//!
//! How it breaks (raised in review on 2024-12-10, agreed the same day). E2 is the only way by which a removal reaches a
//! reader, and a reader may pass R4 only with E2. The reset makes `vm_lock_seq` differ from `mm_lock_seq` before the
//! section ends:
//! 1. W begins section n, write-locks V (vm_lock_seq = n, semaphore left), marks it detached, frees it: vm_lock_seq is
//!    back to its first value. The section goes on.
//! 2. R, which found V before, takes the semaphore. E1 shows W1 and nothing after it.
//! 3. R4 compares the reset value with n: they differ, R passes, without E2.
//! 4. R5 reads the old `detached`: nothing that R acquired is behind the store of the new one. R6 reads the old mm and range.
//!
//! The answer "there was a release" does not help: that one ends the section, which is not over. Two threads and no reuse are
//! enough (T0), and every reuse is as bad (T1, T2). It takes a machine that shows stores out of order; x86 does not.
//!
//! On any machine: two looks at a VMA that another mm has meanwhile (T3). "Write-locked" is a fact between a VMA and its
//! own mm; a reader of mm A that holds the lock of a VMA of mm B is not seen by B once B is past W1. R reads `detached` while
//! V is attached in B; B removes and frees it; A allocates it again and fills in vm_mm and range, all before its own W1;
//! R6 finds A's mm and the right range, of a VMA that is in no tree. The review did not come to this one. A fork that copies a
//! VMA of A, vm_mm and all, before it moves the copy to the child is another way to the same end (T5).
//!
//! T4 holds: after a reset no number of B's can make A skip the semaphore.
//!
//! Layout and counters: the family's ([`rwsem`](super::rwsem)). Cost: a store at each free, a barrier at each attach and each
//! lookup (neither is an instruction on x86).

use super::rwsem::{Member, Rwsem, Vma};
use super::{Claim::*, Claims};
use crate::arch::{Arch, Relaxed};
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaFields;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct ResetOnFree;

/// The protocol.
pub type RwsemResetOnFree = Rwsem<ResetOnFree>;

impl Member for ResetOnFree {
    const NAME: &'static str = "rwsem_reset_on_free";
    const ORIGIN: &'static str = "v5 4/6";
    const ABOUT: &'static str = "typesafe memory, the sequence reset when freed";
    const CLAIMS: Claims = [Busted, Busted, Busted, Busted, Holds, Busted, Holds, Holds, Holds, Holds];

    #[inline(always)]
    fn freed<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A, Self>) {
        // ORDER: relaxed, as posted, and that is the bug: a reader that sees this store need not see `detached`.
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }
}
