// SPDX-License-Identifier: GPL-2.0-only
//! Per-VMA lock protocols: the trait, and the list of all of them.
//!
//! A protocol is one file. It owns the lock fields of the VMA (and may own one in the mm), and nothing else: the tree
//! walk, the range check and the fallback to `mmap_lock` are written once in `mmap_lock.rs`. The functions ask for
//! [`Arch`] only, so that the very same code runs natively, simulated, and under the model checker.
//!
//! What all of them share (vma-locks.md 4.0): the writer holds `mmap_lock` for write and makes `mm_lock_seq` odd; a
//! VMA is write-locked while its `vm_lock_seq` equals it; one store, the end of the section, unlocks all VMAs of the
//! mm. Two happens-before edges carry everything. E1: the writer's leaving the VMA's own lock word, to the reader's
//! taking it. E2: the store that ends the section, to the reader's acquire of `mm_lock_seq`. What the writer changes
//! after it has left the lock word reaches a reader through E2 alone.
//!
//! Adding one: write the file, add its line to [`PROTOCOLS`] and, if it is to be run, to `mm/variant.rs`.

pub mod refcnt;
pub mod rwsem_separate;

use super::mm_types::{MmRef, VmaFields, VmaRef};
use crate::arch::Arch;
use crate::cpu::Cpu;
use std::fmt::Debug;

/// What is known about a protocol's correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every scenario must pass.
    Sound,
    /// The named scenarios must fail.
    Busted(&'static [&'static str]),
}

impl Verdict {
    /// The word in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Sound => "sound",
            Verdict::Busted(_) => "busted",
        }
    }
}

/// Whether a VMA's memory may become another VMA while a stale reader still looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It may (`SLAB_TYPESAFE_BY_RCU`).
    Tolerates,
    /// It must wait for a grace period; the reason.
    Forbids(&'static str),
}

/// Why `lock_vma_under_rcu()` gave up (benchmarks.md 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortCause {
    /// No VMA at the address.
    None,
    /// R2: the unordered look found the VMA write-locked.
    SeqEarly,
    /// R3: the lock word was taken by a writer (or its count is full).
    Writer,
    /// R4: the ordered look found the VMA write-locked.
    SeqLate,
    /// R6: the object belongs to another mm by now.
    OtherMm,
    /// R6: the VMA no longer covers the address.
    Range,
}

/// How [`VmaLock::vma_start_read`] ended: in C a pointer, NULL and `-EAGAIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum StartRead {
    /// The VMA is read-locked and attached to some mm.
    Locked,
    /// Locked by a writer, or looked so: use `mmap_lock`.
    Contended(AbortCause),
    /// Removed from its tree meanwhile: look it up again.
    Detached,
}

/// A per-VMA lock protocol. Method names are the kernel's.
///
/// Contracts: [`VmaLock::vma_start_read`] is called under RCU with a VMA found in `mm`'s tree. The writers' functions
/// are called with the mm's `mmap_lock` held for write and `mm_lock_seq` odd.
pub trait VmaLock: Sized + Copy + Send + Sync + Debug + 'static {
    /// Slug: the mechanism.
    const NAME: &'static str;
    /// Kernel version or message-id.
    const ORIGIN: &'static str;
    /// One sentence.
    const ABOUT: &'static str;
    /// Whether it is right.
    const VERDICT: Verdict;
    /// What it bears from the allocator.
    const REUSE: Reuse;
    /// Whether a VMA has a second object for its lock.
    const SEPARATE_LOCK: bool;
    /// Whether VMAs are marked detached when the whole address space is torn down.
    const DETACH_AT_EXIT: bool;
    /// The layout of a VMA.
    type Vma<A: Arch>: VmaFields<A, Self>;
    /// What the mm holds for a writer that waits for a VMA's readers.
    type WriterWait<A: Arch>: Default + Send + Sync;

    /// Sets the lock fields of a VMA that was just allocated or duplicated and that no tree holds.
    fn vma_lock_init<A: Arch>(vma: VmaRef<A, Self>);
    /// R2 to R5: tries to read-lock a VMA found in `mm`'s tree under RCU.
    fn vma_start_read<A: Arch>(cpu: &Cpu<A>, mm: MmRef<A, Self>, vma: VmaRef<A, Self>) -> StartRead;
    /// R6: whether a locked VMA belongs to `mm`; always so where memory does not become another VMA under a reader.
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: VmaRef<A, Self>) -> bool;
    /// R8: read-unlocks.
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// W1: write-locks until the section ends.
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// The VMA is about to be (or was) put into its tree.
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// W3: the VMA is being removed from its tree.
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// Whether nobody holds the lock, which must be so when the VMA is freed.
    fn vma_lock_is_free<A: Arch>(vma: VmaRef<A, Self>) -> bool;
}

/// A line of the list of protocols.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Slug.
    pub name: &'static str,
    /// Kernel version or message-id.
    pub origin: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Whether it is right; `None` where it is not built.
    pub verdict: Option<Verdict>,
    /// What it bears from the allocator; `None` where it is not built.
    pub reuse: Option<Reuse>,
    /// Whether a VMA has a second object for its lock.
    pub separate_lock: bool,
}

const fn built<L: VmaLock>() -> Protocol {
    Protocol {
        name: L::NAME,
        origin: L::ORIGIN,
        about: L::ABOUT,
        verdict: Some(L::VERDICT),
        reuse: Some(L::REUSE),
        separate_lock: L::SEPARATE_LOCK,
    }
}
const fn planned(name: &'static str, origin: &'static str, about: &'static str) -> Protocol {
    Protocol { name, origin, about, verdict: None, reuse: None, separate_lock: false }
}

/// Every protocol that the question knows, built or not, in the order of their appearance.
pub const PROTOCOLS: &[Protocol] = &[
    built::<rwsem_separate::RwsemSeparate>(),
    planned("rwsem_embedded", "v5 1-3/6", "the same lock inside the VMA, still freed after a grace period"),
    planned("rwsem_reset_on_free", "v5 4/6", "typesafe memory, the sequence reset when freed"),
    planned("rwsem_keep_seq", "2024-12-10", "as posted in v5 but the sequence survives the free"),
    planned("rwsem_always_write", "2024-12-10", "the writer never skips the semaphore"),
    planned("rwsem_detach_wmb", "2024-12-11", "a write barrier between clearing the mm and setting detached"),
    planned("rwsem_detach_locked", "2024-12-11", "detached is stored under the VMA's own semaphore"),
    built::<refcnt::Refcnt>(),
    planned("refcnt_exclude", "7.3", "the count, with the mm of a mistaken reader pinned"),
];

#[cfg(test)]
mod tests {
    /// A file of this directory that the list does not name would be a protocol that nobody checks.
    #[test]
    fn every_file_is_in_the_list() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/mm/vma_lock");
        for f in std::fs::read_dir(dir).unwrap() {
            let name = f.unwrap().file_name().into_string().unwrap();
            let slug = name.trim_end_matches(".rs");
            if slug != "mod" {
                assert!(super::PROTOCOLS.iter().any(|p| p.name == slug && p.verdict.is_some()), "{name}");
            }
        }
    }
}
