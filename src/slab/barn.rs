// SPDX-License-Identifier: GPL-2.0-only
//! A node's store of sheaves [struct node_barn and the barn_ functions of mm/slub.c, 7.3].
//!
//! Two stacks, one of full sheaves and one of empty ones, behind one spinlock. The limits are looked at without the
//! lock: a barn may go over them by as many sheaves as CPUs were past the look, and a CPU may miss a sheaf that was
//! just put there. Single-threaded the full ones never exceed [`MAX_FULL_SHEAVES`]; the empty ones have no limit but
//! when a sheaf retires after a grace period.
//!
//! custom: the stacks end in null instead of being circular; the neighbour's header is written all the same. Lock
//! order: nothing is taken below the barn's lock, and no list_lock is held when it is taken.

use super::sheaf::SlabSheaf;
use super::slub_def::KmemCache;
use super::stat::StatItem;
use crate::arch::{Atomic, Hardware, Native, Plain, Relaxed};
use crate::cpu::Cpu;
use crate::sync::{RawSpinLock, raw_spin_lock_timed, raw_spin_unlock};
use std::ptr::{from_ref, null_mut};

/// Full sheaves a barn takes.
pub const MAX_FULL_SHEAVES: u32 = 10;
/// Empty sheaves a barn takes from RCU.
pub const MAX_EMPTY_SHEAVES: u32 = 10;

/// `struct node_barn`
#[repr(C, align(64))]
pub struct NodeBarn<A: Hardware> {
    lock: RawSpinLock<A>,
    sheaves_full: SheafList<A>,
    sheaves_empty: SheafList<A>,
    /// Lengths; looked at without the lock.
    pub(super) nr_full: Atomic<A, u32>,
    pub(super) nr_empty: Atomic<A, u32>,
}
const _: () = {
    use std::mem::offset_of;
    type B = NodeBarn<Native>;
    assert!(offset_of!(B, sheaves_full) == 8 && offset_of!(B, sheaves_empty) == 24);
    assert!(offset_of!(B, nr_full) == 40 && offset_of!(B, nr_empty) == 44 && size_of::<B>() == 64);
};

/// A stack of sheaves. The barn's lock protects it.
#[repr(C)]
struct SheafList<A: Hardware> {
    first: Plain<A, *mut SlabSheaf<A>>,
    /// The head's second word; unused here.
    _last: Plain<A, *mut SlabSheaf<A>>,
}

impl<A: Hardware> SheafList<A> {
    fn new() -> Self {
        SheafList { first: Plain::new(null_mut()), _last: Plain::new(null_mut()) }
    }

    /// `list_add()`
    fn push(&self, sheaf: &SlabSheaf<A>) {
        let old = self.first.get();
        let p = from_ref(sheaf).cast_mut();
        if !old.is_null() {
            // SAFETY: on this list, whose lock is held.
            unsafe { &*old }.prev.set(p);
        }
        sheaf.next.set(old);
        sheaf.prev.set(null_mut());
        self.first.set(p);
    }

    /// `list_first_entry()`, `list_del()`: null when empty.
    fn pop(&self) -> *mut SlabSheaf<A> {
        let p = self.first.get();
        if !p.is_null() {
            // SAFETY: as above.
            let next = unsafe { &*p }.next.get();
            if !next.is_null() {
                // SAFETY: as above.
                unsafe { &*next }.prev.set(null_mut());
            }
            self.first.set(next);
        }
        p
    }

    /// `list_splice_init()`
    fn take_all(&self) -> *mut SlabSheaf<A> {
        let p = self.first.get();
        self.first.set(null_mut());
        p
    }
}

/// Why a full sheaf was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// `E2BIG`: enough full sheaves.
    TooManyFull,
    /// `ENOMEM`: no empty sheaf to give for it.
    NoEmpty,
}

impl<A: Hardware> NodeBarn<A> {
    pub(super) fn new() -> Self {
        NodeBarn {
            lock: RawSpinLock::new(),
            sheaves_full: SheafList::new(),
            sheaves_empty: SheafList::new(),
            nr_full: Atomic::new(0),
            nr_empty: Atomic::new(0),
        }
    }

    #[inline]
    fn lock(&self, cpu: &Cpu<A>, s: &KmemCache<A>) {
        let waited = raw_spin_lock_timed(cpu, &self.lock);
        s.stat(cpu, StatItem::BarnLock);
        if waited != 0 {
            s.stat(cpu, StatItem::BarnLockContended);
            s.stat_add(cpu, StatItem::BarnLockWait, waited);
        }
    }

    fn unlock(&self, cpu: &Cpu<A>) {
        raw_spin_unlock(cpu, &self.lock);
    }

    fn add(n: &Atomic<A, u32>, by: i32) {
        n.store(n.load(Relaxed).wrapping_add_signed(by), Relaxed);
    }

    /// `barn_get_empty_sheaf()`: null when there is none.
    pub(super) fn get_empty(&self, cpu: &Cpu<A>, s: &KmemCache<A>) -> *mut SlabSheaf<A> {
        if self.nr_empty.load(Relaxed) == 0 {
            return null_mut();
        }
        self.lock(cpu, s);
        let empty = self.sheaves_empty.pop();
        if !empty.is_null() {
            Self::add(&self.nr_empty, -1);
        }
        self.unlock(cpu);
        empty
    }

    /// `barn_put_empty_sheaf()`: beyond any limit.
    pub(super) fn put_empty(&self, cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) {
        self.lock(cpu, s);
        self.sheaves_empty.push(sheaf);
        Self::add(&self.nr_empty, 1);
        self.unlock(cpu);
    }

    /// `barn_put_full_sheaf()`: beyond any limit.
    pub(super) fn put_full(&self, cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) {
        self.lock(cpu, s);
        self.sheaves_full.push(sheaf);
        Self::add(&self.nr_full, 1);
        self.unlock(cpu);
    }

    /// `barn_get_full_or_empty_sheaf()`: null when there is neither.
    pub(super) fn get_full_or_empty(&self, cpu: &Cpu<A>, s: &KmemCache<A>) -> *mut SlabSheaf<A> {
        if self.nr_full.load(Relaxed) == 0 && self.nr_empty.load(Relaxed) == 0 {
            return null_mut();
        }
        self.lock(cpu, s);
        let mut sheaf = self.sheaves_full.pop();
        if !sheaf.is_null() {
            Self::add(&self.nr_full, -1);
        } else {
            sheaf = self.sheaves_empty.pop();
            if !sheaf.is_null() {
                Self::add(&self.nr_empty, -1);
            }
        }
        self.unlock(cpu);
        sheaf
    }

    /// `barn_replace_empty_sheaf()`: a full sheaf for `empty`, or null and `empty` stays the caller's.
    pub(super) fn replace_empty(&self, cpu: &Cpu<A>, s: &KmemCache<A>, empty: &SlabSheaf<A>) -> *mut SlabSheaf<A> {
        if self.nr_full.load(Relaxed) == 0 {
            return null_mut();
        }
        self.lock(cpu, s);
        let full = self.sheaves_full.pop();
        if !full.is_null() {
            Self::add(&self.nr_full, -1);
            self.sheaves_empty.push(empty);
            Self::add(&self.nr_empty, 1);
        }
        self.unlock(cpu);
        full
    }

    /// `barn_replace_full_sheaf()`: an empty sheaf for `full`, or `full` stays the caller's.
    pub(super) fn replace_full(
        &self,
        cpu: &Cpu<A>,
        s: &KmemCache<A>,
        full: &SlabSheaf<A>,
    ) -> Result<*mut SlabSheaf<A>, Refused> {
        if self.nr_full.load(Relaxed) >= MAX_FULL_SHEAVES {
            return Err(Refused::TooManyFull);
        }
        if self.nr_empty.load(Relaxed) == 0 {
            return Err(Refused::NoEmpty);
        }
        self.lock(cpu, s);
        let empty = self.sheaves_empty.pop();
        if !empty.is_null() {
            Self::add(&self.nr_empty, -1);
            self.sheaves_full.push(full);
            Self::add(&self.nr_full, 1);
        }
        self.unlock(cpu);
        if empty.is_null() { Err(Refused::NoEmpty) } else { Ok(empty) }
    }

    /// `barn_shrink()`, first half: takes all sheaves out, chained by `next`: (full, empty).
    pub(super) fn take_all(&self, cpu: &Cpu<A>, s: &KmemCache<A>) -> (*mut SlabSheaf<A>, *mut SlabSheaf<A>) {
        self.lock(cpu, s);
        let lists = (self.sheaves_full.take_all(), self.sheaves_empty.take_all());
        self.nr_full.store(0, Relaxed);
        self.nr_empty.store(0, Relaxed);
        self.unlock(cpu);
        lists
    }

    /// The sheaves, full ones and empty ones, first to last. Nobody is inside the allocator.
    #[cfg(test)]
    pub(super) fn walk(&self) -> (Vec<*mut SlabSheaf<A>>, Vec<*mut SlabSheaf<A>>) {
        let list = |l: &SheafList<A>| {
            let (mut v, mut p, mut prev) = (Vec::new(), l.first.get(), null_mut());
            while !p.is_null() {
                // SAFETY: on the list.
                let sheaf = unsafe { &*p };
                assert_eq!(sheaf.prev.get(), prev, "a barn's list is broken");
                v.push(p);
                (prev, p) = (p, sheaf.next.get());
            }
            v
        };
        (list(&self.sheaves_full), list(&self.sheaves_empty))
    }
}
