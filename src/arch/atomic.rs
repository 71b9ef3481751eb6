// SPDX-License-Identifier: GPL-2.0-only
//! `Atomic<A, T>`: a shared word that speaks the kernel's memory model.
//!
//! Orderings are types, so a store cannot be given an acquire. There is no `SeqCst` access: [`Full`] means what the
//! kernel's unsuffixed value-returning operations mean (everything before is ordered against everything after), done
//! as fence, operation, fence where the operation alone is weaker (`locking.md` 8.4).
//!
//! Each access knows the line it stands in (`#[track_caller]`), for worlds that tell what happened or leave one order out;
//! where nobody asks, nothing is left of it.

use super::{Arch, Fence, Int, Prim, RawCell};
use std::fmt;
use std::sync::atomic::Ordering;

/// `READ_ONCE`, `WRITE_ONCE`, `_relaxed`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Relaxed;
/// `smp_load_acquire`, `_acquire`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acquire;
/// `smp_store_release`, `_release`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Release;
/// No suffix: ordered against everything before and after.
#[derive(Clone, Copy, Debug, Default)]
pub struct Full;

/// An ordering a load can have.
pub trait LoadOrder {
    /// Its name in std.
    const ORDER: Ordering;
}
/// An ordering a store can have.
pub trait StoreOrder {
    /// Its name in std.
    const ORDER: Ordering;
}
/// An ordering a read-modify-write can have.
pub trait RmwOrder {
    /// Its name in std.
    const ORDER: Ordering;
    /// Whether fences belong around it in worlds where the operation alone is not a full barrier.
    const FULL: bool = false;
}
impl LoadOrder for Relaxed {
    const ORDER: Ordering = Ordering::Relaxed;
}
impl LoadOrder for Acquire {
    const ORDER: Ordering = Ordering::Acquire;
}
impl StoreOrder for Relaxed {
    const ORDER: Ordering = Ordering::Relaxed;
}
impl StoreOrder for Release {
    const ORDER: Ordering = Ordering::Release;
}
impl RmwOrder for Relaxed {
    const ORDER: Ordering = Ordering::Relaxed;
}
impl RmwOrder for Acquire {
    const ORDER: Ordering = Ordering::Acquire;
}
impl RmwOrder for Release {
    const ORDER: Ordering = Ordering::Release;
}
impl RmwOrder for Full {
    const ORDER: Ordering = Ordering::SeqCst;
    const FULL: bool = true;
}

/// A shared word whose accesses race or are marked in the kernel. `repr(transparent)`: in the native world it is the
/// word itself.
#[repr(transparent)]
pub struct Atomic<A: Arch, T: Prim>(A::Cell<T>);

impl<A: Arch, T: Prim> Atomic<A, T> {
    /// A word holding `v`.
    #[inline(always)]
    pub fn new(v: T) -> Self {
        Atomic(A::Cell::<T>::new(v))
    }

    /// The world's own word, for [`Arch`] calls.
    #[inline(always)]
    pub fn raw(&self) -> &A::Cell<T> {
        &self.0
    }

    /// Loads.
    #[inline(always)]
    #[track_caller]
    pub fn load<O: LoadOrder>(&self, _: O) -> T {
        self.0.load(O::ORDER)
    }

    /// Stores.
    #[inline(always)]
    #[track_caller]
    pub fn store<O: StoreOrder>(&self, v: T, _: O) {
        self.0.store(v, O::ORDER)
    }

    /// What stands on either side of a read-modify-write that is to be a full barrier and is not by itself.
    #[inline(always)]
    #[track_caller]
    fn around<O: RmwOrder>() {
        if O::FULL && !A::RMW_IS_FULL {
            A::fence(Fence::Full);
        }
    }

    /// Exchanges (`xchg`).
    #[inline(always)]
    #[track_caller]
    pub fn swap<O: RmwOrder>(&self, v: T, _: O) -> T {
        Self::around::<O>();
        let old = self.0.swap(v, O::ORDER);
        Self::around::<O>();
        old
    }

    /// Compares and exchanges (`cmpxchg`): `Ok(old)` if it stored. A failed one orders nothing (LKMM).
    #[inline(always)]
    #[track_caller]
    pub fn cmpxchg<O: RmwOrder>(&self, old: T, new: T, _: O) -> Result<T, T> {
        Self::around::<O>();
        let old = self.0.compare_exchange(old, new, O::ORDER);
        Self::around::<O>();
        old
    }

    /// `try_cmpxchg`: on failure puts what it saw into `old`. The new value comes first, so that it can be computed
    /// from `old` in the call.
    #[inline(always)]
    #[track_caller]
    pub fn try_cmpxchg<O: RmwOrder>(&self, new: T, old: &mut T, o: O) -> bool {
        match self.cmpxchg(*old, new, o) {
            Ok(_) => true,
            Err(seen) => {
                *old = seen;
                false
            }
        }
    }
}

impl<A: Arch, T: Int> Atomic<A, T> {
    /// Adds; returns the old value.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_add<O: RmwOrder>(&self, v: T, _: O) -> T {
        Self::around::<O>();
        let old = self.0.fetch_add(v, O::ORDER);
        Self::around::<O>();
        old
    }

    /// Subtracts; returns the old value.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_sub<O: RmwOrder>(&self, v: T, _: O) -> T {
        Self::around::<O>();
        let old = self.0.fetch_sub(v, O::ORDER);
        Self::around::<O>();
        old
    }

    /// Bitwise or; returns the old value.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_or<O: RmwOrder>(&self, v: T, _: O) -> T {
        Self::around::<O>();
        let old = self.0.fetch_or(v, O::ORDER);
        Self::around::<O>();
        old
    }

    /// Bitwise and; returns the old value.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_and<O: RmwOrder>(&self, v: T, _: O) -> T {
        Self::around::<O>();
        let old = self.0.fetch_and(v, O::ORDER);
        Self::around::<O>();
        old
    }
}

impl<A: Arch, T: Prim> fmt::Debug for Atomic<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Atomic").finish_non_exhaustive()
    }
}
