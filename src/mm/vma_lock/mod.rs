// SPDX-License-Identifier: GPL-2.0-only
//! Per-VMA lock protocols: the trait, the list of all of them, and what each is declared to do in each scenario.
//!
//! A protocol is one file. It owns the lock fields of the VMA (and may own one in the mm), and nothing else: the tree
//! walk and the fallback to `mmap_lock` are written once in `mmap_lock.rs`. The functions ask for [`Arch`] only, so that
//! the very same code runs natively, simulated, and under the model checker.
//!
//! What all of them share (vma-locks.md 4.0): the writer holds `mmap_lock` for write and makes `mm_lock_seq` odd; a
//! VMA is write-locked while its `vm_lock_seq` equals it; one store, the end of the section, unlocks all VMAs of the
//! mm. Two happens-before edges carry everything. E1: the writer's leaving the VMA's own lock word, to the reader's
//! taking it. E2: the store that ends the section, to the reader's acquire of `mm_lock_seq`. What the writer changes
//! after it has left the lock word reaches a reader through E2 alone.
//!
//! Adding one: write the file, add its line to [`protocols!`](crate::protocols); a test fails if one of the two is
//! missing. Its [`VmaLock::CLAIMS`] are held against runs of its own code (`src/check`).

pub mod refcnt;
pub mod refcnt_exclude;
pub mod rwsem;
pub mod rwsem_always_write;
pub mod rwsem_detach_locked;
pub mod rwsem_detach_wmb;
pub mod rwsem_embedded;
pub mod rwsem_keep_seq;
pub mod rwsem_reset_on_free;
pub mod rwsem_separate;

use super::mm_types::{MmRef, VmaFields, VmaRef};
use super::vma_cache::{CacheKind, Footprint, footprint};
use crate::arch::{Arch, Hardware, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::maple_tree::MaState;
use crate::rcu::rcu_read_unlock;
use crate::slab::Allocator;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// The scenarios (vma-locks.md 5): what happens to the VMA that a reader of mm A found, while it takes the lock.
pub const SCENARIOS: [(&str, &str); 10] = [
    ("T0", "removed and freed, not reused"),
    ("T1", "removed, freed, then another mm's VMA at the same addresses"),
    ("T2", "removed and mapped again at the same address, in one section"),
    ("T3", "another mm's VMA when the lock is taken, and A's again when its mm is looked at"),
    ("T4", "free when the lock is taken, A's again when it is looked whether it is detached; equal sequences"),
    ("T5", "as T3, its last life a copy that fork makes and then moves to a third mm"),
    ("T6", "another mm's VMA when the lock is taken; that mm ends before the reader has let go"),
    ("T7", "written to under the lock by the reader, then write-locked by a writer who looks"),
    ("T8", "in the tree but not yet attached"),
    ("T9", "sections until the sequence wraps"),
];

/// What a protocol is declared to do in a scenario, in memory of the kind that it was proposed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// No invariant is violated in any execution.
    Holds,
    /// Some execution violates one.
    Busted,
    /// It cannot come to that: memory waits for a grace period.
    Impossible,
}

impl Claim {
    /// The word in tables.
    pub fn name(self) -> &'static str {
        match self {
            Claim::Holds => "holds",
            Claim::Busted => "busted",
            Claim::Impossible => "impossible",
        }
    }
}

/// A claim for each of [`SCENARIOS`].
pub type Claims = [Claim; SCENARIOS.len()];

/// What is known about a protocol's correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every scenario holds or is impossible.
    Sound,
    /// Some scenario breaks it.
    Busted,
}

impl Verdict {
    /// The word in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Sound => "sound",
            Verdict::Busted => "busted",
        }
    }

    /// Of all claims together.
    pub const fn of(claims: &Claims) -> Verdict {
        let mut i = 0;
        while i < claims.len() {
            if matches!(claims[i], Claim::Busted) {
                return Verdict::Busted;
            }
            i += 1;
        }
        Verdict::Sound
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
    /// Locked by a writer, or looked so, or is another mm's: use `mmap_lock`.
    Contended(AbortCause),
    /// Removed from its tree meanwhile: look it up again.
    Detached,
}

crate::counters! {
    /// What the locks of VMAs had to do besides counting up and down.
    pub enum VmaLockEvent in 112..120 => {
        /// Writers that had to wait for a VMA's readers, in `vma_start_write()`.
        WriterWait = "vma_lock_writer_wait",
        /// Writers that had to wait for a VMA's readers when they detached it.
        DetachWait = "vma_lock_detach_wait",
        /// Readers that found a writer waiting when they let go, and woke it.
        ReaderWake = "vma_lock_reader_wake",
        /// Readers that pinned another mm, because they had its VMA by mistake (7.3).
        ForeignMm = "vma_lock_foreign_mm",
        /// VMAs that a range walker locked without `mmap_lock` (7.3).
        NextLocked = "lock_next_vma",
        /// VMAs for which a range walker took `mmap_lock` (7.3).
        NextFallback = "lock_next_vma_fallback",
    }
}

/// Named places between two steps, for worlds that stop there ([`Arch::pause_point`]).
pub mod point {
    /// Reader: R2 passed, R3 not begun.
    pub const LOCK_WORD: &str = "before the lock word";
    /// Reader: R4 passed, R5 not begun; protocols with a flag for detached.
    pub const DETACHED: &str = "before detached";
    /// Reader: has the lock, and looks at `vm_mm` next (`refcnt` and the rwsem family: R6; `refcnt_exclude`: after R3).
    pub const VM_MM: &str = "before vm_mm";
    /// Reader of a counting protocol: has counted down, and wakes the writer next, if it decided to.
    pub const WAKE: &str = "before the wake-up";
    /// Writer of a counting protocol: keeps readers out, and looks whether any is left next.
    pub const WAIT: &str = "before the wait";
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
    /// What it does in each scenario.
    const CLAIMS: Claims;
    /// Whether it is right.
    const VERDICT: Verdict = Verdict::of(&Self::CLAIMS);
    /// What it bears from the allocator.
    const REUSE: Reuse;
    /// Whether a VMA has a second object for its lock.
    const SEPARATE_LOCK: bool = false;
    /// Whether VMAs are marked detached when the whole address space is torn down.
    const DETACH_AT_EXIT: bool;
    /// Whether W1 does nothing where `vm_lock_seq` says that this section has the VMA already. With it a writer that
    /// comes exactly 2^31 sections after the last one takes the old mark for its own and waits for nobody
    /// (vma-locks.md 4, P8 item 8): a doubt that all kernels since 6.4 share, and outside of T9, which is the readers'.
    const EARLY_EXIT: bool = true;
    /// The layout of a VMA.
    type Vma<A: Arch>: VmaFields<A, Self>;
    /// What the mm holds for a writer that waits for a VMA's readers.
    type WriterWait<A: Arch>: Default + Send + Sync;

    /// The constructor of the VMA cache in typesafe memory, for what must survive from one life of an object to the
    /// next. It must not touch the first word, where the free pointer lies.
    fn vma_ctor<A: Hardware>() -> Option<unsafe fn(*mut u8)> {
        None
    }
    /// Sets the lock fields of a VMA that was just allocated or duplicated and that no tree holds. `constructed`: the
    /// memory is typesafe, so that the constructor has run once and stale readers may be at it right now.
    fn vma_lock_init<A: Arch>(vma: VmaRef<A, Self>, constructed: bool);
    /// R2 to R5: tries to read-lock a VMA found in `mm`'s tree under RCU. `mmdrop` drops a reference to another mm.
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: VmaRef<A, Self>,
        mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead;
    /// R6: whether a locked VMA belongs to `mm`; always so where memory does not become another VMA under a reader.
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: VmaRef<A, Self>) -> bool;
    /// Read-locks with `mmap_lock` held for read, which keeps writers away; false if there are too many readers.
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) -> bool;
    /// R8: read-unlocks.
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// W1: write-locks until the section ends.
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// W1, given up at a fatal signal where the kernel can (7.3).
    ///
    /// # Errors
    /// `EINTR`: the VMA is not locked.
    #[inline(always)]
    fn vma_start_write_killable<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) -> Result<(), Errno> {
        Self::vma_start_write(cpu, vma);
        Ok(())
    }
    /// The VMA is about to be (or was) put into its tree.
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// W3: the VMA is being removed from its tree.
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>);
    /// W5: what `vm_area_free()` stores into a VMA before the memory goes its way.
    #[inline(always)]
    fn vma_freed<A: Arch>(_cpu: &Cpu<A>, _vma: VmaRef<A, Self>) {}
    /// What `vm_area_free()` asserts before the memory goes back: that nobody holds the lock, or where a stale reader
    /// may do so for a moment, that the VMA is detached.
    fn vma_lock_is_free<A: Arch>(vma: VmaRef<A, Self>) -> bool;

    /// R2 to R6: read-locks a VMA that a walk for `address` found, and looks whether it is what was looked for. Under
    /// RCU, which [`VmaLock::lookup_again`] or [`VmaLock::lookup_done`] must follow: where RCU is left is the protocol's.
    #[inline(always)]
    fn lock_vma_found<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: VmaRef<A, Self>,
        address: u64,
        mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        match Self::vma_start_read(cpu, mm, vma, mmdrop) {
            StartRead::Locked => {}
            other => return other,
        }
        // R6. From here on V is locked and attached, so its fields are stable; it may be another VMA than the one found
        // (typesafe memory), or have another range (split, merge).
        // ORDER: relaxed: R3's acquire (E1) and R4's (E2) come before.
        let cause = if !Self::vma_is_of(mm, vma) {
            AbortCause::OtherMm
        } else if !covers::<A, Self>(vma, address) {
            AbortCause::Range
        } else {
            return StartRead::Locked;
        };
        Self::vma_end_read(cpu, vma);
        StartRead::Contended(cause)
    }
    /// After a VMA that was found detached: before the next walk. As in 6.12 and 6.15 there is nothing to do: the walk
    /// starts again inside the same RCU section, at the start of the range that was found and not at `address`; where
    /// the new VMA there does not cover `address` the fault aborts.
    #[inline(always)]
    fn lookup_again<A: Hardware>(_cpu: &Cpu<A>, _mas: &mut MaState<'_, A>, _address: u64) {}
    /// R7: after anything else.
    #[inline(always)]
    fn lookup_done<A: Arch>(cpu: &Cpu<A>) {
        rcu_read_unlock(cpu);
    }
}

/// Whether the VMA's range has `address` in it; of a VMA that is locked.
#[inline(always)]
fn covers<A: Arch, L: VmaLock>(vma: VmaRef<A, L>, address: u64) -> bool {
    // ORDER: relaxed: the lock's own edges (E1, E2, or the count's acquire) brought the range.
    address >= vma.vm_start().load(Relaxed) && address < vma.vm_end().load(Relaxed)
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
    /// What it does in each scenario.
    pub claims: Claims,
    /// Whether it is right.
    pub verdict: Verdict,
    /// What it bears from the allocator.
    pub reuse: Reuse,
    /// Whether a VMA has a second object for its lock.
    pub separate_lock: bool,
    /// What a VMA takes, by cache, allocator and number of CPUs.
    pub footprint: fn(&CacheKind, Allocator, u32) -> Footprint,
}

const fn line<L: VmaLock>() -> Protocol {
    Protocol {
        name: L::NAME,
        origin: L::ORIGIN,
        about: L::ABOUT,
        claims: L::CLAIMS,
        verdict: L::VERDICT,
        reuse: L::REUSE,
        separate_lock: L::SEPARATE_LOCK,
        footprint: footprint::<L>,
    }
}

/// The list of protocols, in the order of their appearance, a line each. `protocols!(name args)` calls the macro
/// `name!` of this crate with `args` and then the types.
#[macro_export]
macro_rules! protocols {
    ($name:ident $args:tt) => {
        $crate::$name! { $args
            $crate::mm::vma_lock::rwsem_separate::RwsemSeparate,
            $crate::mm::vma_lock::rwsem_embedded::RwsemEmbedded,
            $crate::mm::vma_lock::rwsem_reset_on_free::RwsemResetOnFree,
            $crate::mm::vma_lock::rwsem_keep_seq::RwsemKeepSeq,
            $crate::mm::vma_lock::rwsem_always_write::RwsemAlwaysWrite,
            $crate::mm::vma_lock::rwsem_always_write::RwsemAlwaysWriteReset,
            $crate::mm::vma_lock::rwsem_detach_wmb::RwsemDetachWmb,
            $crate::mm::vma_lock::rwsem_detach_wmb::RwsemDetachWmbResetAfter,
            $crate::mm::vma_lock::rwsem_detach_wmb::RwsemDetachWmbResetBefore,
            $crate::mm::vma_lock::rwsem_detach_locked::RwsemDetachLocked,
            $crate::mm::vma_lock::rwsem_detach_locked::RwsemDetachLockedReset,
            $crate::mm::vma_lock::rwsem_detach_locked::RwsemDetachLockedWrite,
            $crate::mm::vma_lock::refcnt::Refcnt,
            $crate::mm::vma_lock::refcnt_exclude::RefcntExclude,
        }
    };
}

/// [`PROTOCOLS`] out of [`protocols!`](crate::protocols).
#[doc(hidden)]
#[macro_export]
macro_rules! __protocol_lines {
    (() $($L:ty,)*) => { &[$($crate::mm::vma_lock::line::<$L>()),*] };
}

/// Every protocol that the question knows, in the order of their appearance.
pub const PROTOCOLS: &[Protocol] = crate::protocols!(__protocol_lines());

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this directory that the list does not name would be a protocol that nobody checks.
    #[test]
    fn every_file_is_in_the_list() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/mm/vma_lock");
        for f in std::fs::read_dir(dir).unwrap() {
            let name = f.unwrap().file_name().into_string().unwrap();
            let slug = name.trim_end_matches(".rs");
            // `rwsem` is what its family shares.
            if slug != "mod" && slug != "rwsem" {
                assert!(PROTOCOLS.iter().any(|p| p.name == slug), "{name}");
            }
        }
    }

    /// Lines of `text` that touch an atomic, or a lock or barrier made of one, without an `ORDER:` in the lines just above;
    /// a comment speaks for its own function. And how many such lines there are.
    fn accesses_without_order(text: &str) -> (Vec<usize>, usize) {
        const ACCESS: [&str; 14] = [
            ".load(",
            ".store(",
            ".raw_read()",
            ".vm_refcnt.",
            ".mm_count.",
            "smp_rmb::",
            "smp_wmb::",
            "smp_mb::",
            "rcuwait_",
            "up_read(",
            "up_write(",
            "down_read",
            "down_write",
            "_counted(",
        ];
        const LINES: usize = 5;
        let (mut bad, mut n, mut order) = (Vec::new(), 0, None);
        for (i, line) in text.lines().enumerate().take_while(|(_, line)| *line != "#[cfg(test)]") {
            let (code, comment) = line.split_once("//").unwrap_or((line, ""));
            if comment.contains("ORDER:") {
                order = Some(i);
            }
            let names = ["use ", "pub use "].iter().any(|u| code.starts_with(u));
            if code.contains("fn ") {
                order = None;
            } else if !names && ACCESS.iter().any(|a| code.contains(a)) {
                n += 1;
                if order.is_none_or(|o| i - o > LINES) {
                    bad.push(i + 1);
                }
            }
        }
        (bad, n)
    }

    #[test]
    fn every_access_says_what_orders_it() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/mm/vma_lock");
        let (mut bad, mut n) = (Vec::new(), 0);
        for f in std::fs::read_dir(dir).unwrap() {
            let f = f.unwrap();
            let (lines, here) = accesses_without_order(&std::fs::read_to_string(f.path()).unwrap());
            bad.extend(lines.iter().map(|l| format!("{}:{l}", f.file_name().display())));
            n += here;
        }
        assert!(bad.is_empty(), "no ORDER: within five lines before: {bad:#?}");
        assert!(n > 80, "only {n} accesses were recognised");
        let far = "// ORDER: relaxed\n\n\n\n\n\na.load(Relaxed)\n";
        assert_eq!(accesses_without_order(far), (vec![7], 1));
        let other = "// ORDER: relaxed\na.load(Relaxed);\n}\nfn f() {\na.store(1, Relaxed); // a.load(Relaxed)\n";
        assert_eq!(accesses_without_order(other), (vec![5], 2));
    }

    /// A claim says "impossible" where no memory is reused under a reader, and nowhere else.
    #[test]
    fn claims_fit_what_the_protocol_bears() {
        for p in PROTOCOLS {
            for (claim, (id, _)) in p.claims.iter().zip(SCENARIOS) {
                let reuse = matches!(id, "T1" | "T2" | "T3" | "T4" | "T5" | "T6");
                let forbids = matches!(p.reuse, Reuse::Forbids(_));
                assert_eq!(*claim == Claim::Impossible, reuse && forbids, "{} {id}", p.name);
            }
        }
        let of = |n: &str| PROTOCOLS.iter().find(|p| p.name == n).unwrap().verdict;
        assert_eq!((of("rwsem_separate"), of("rwsem_keep_seq")), (Verdict::Sound, Verdict::Busted));
        assert_eq!(of("refcnt_exclude"), Verdict::Sound);
    }
}
