// SPDX-License-Identifier: GPL-2.0-only
//! `Plain<A, T>`: a word that a lock (or single ownership) protects.
//!
//! In `native` and `sim` it is a relaxed load or store, which compiles to the same plain move and keeps a broken
//! protocol from being undefined behaviour; in `loom` it is a checked cell, where two unordered accesses fail the
//! model. Use it for what the kernel writes plainly under a lock; use [`super::Atomic`] for everything a reader may
//! look at without the lock.

use super::{Arch, Prim, RawPlain};
use std::fmt;

/// A word that a lock protects.
#[repr(transparent)]
pub struct Plain<A: Arch, T: Prim>(A::PlainCell<T>);

impl<A: Arch, T: Prim> Plain<A, T> {
    /// A word holding `v`.
    #[inline(always)]
    pub fn new(v: T) -> Self {
        Plain(A::PlainCell::<T>::new(v))
    }

    /// Reads.
    #[inline(always)]
    #[track_caller]
    pub fn get(&self) -> T {
        self.0.get()
    }

    /// Writes.
    #[inline(always)]
    #[track_caller]
    pub fn set(&self, v: T) {
        self.0.set(v)
    }
}

impl<A: Arch, T: Prim> fmt::Debug for Plain<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plain").finish_non_exhaustive()
    }
}

// SAFETY: the contract of `Plain` is that a lock orders all accesses; in `native` and `sim` they are relaxed atomics,
// in `loom` unordered ones fail the model.
unsafe impl<A: Arch, T: Prim> Sync for Plain<A, T> {}
// SAFETY: a word has no thread affinity.
unsafe impl<A: Arch, T: Prim> Send for Plain<A, T> {}
// SAFETY: every access is atomic in every world; pointer values are just words here.
unsafe impl<A: Arch, T: Prim> Sync for super::Atomic<A, T> {}
// SAFETY: as above.
unsafe impl<A: Arch, T: Prim> Send for super::Atomic<A, T> {}
