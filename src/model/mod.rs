// SPDX-License-Identifier: GPL-2.0-only
//! At the side: the port's own code under a model checker, every interleaving of two or three CPUs within bounds (L16 of
//! the lock invariants, and what else is small enough).
//!
//! A file here sets up a small case and runs it in the world [`Loom`](crate::arch::loom::Loom). Whether the checker
//! would notice anything is not taken on trust: each case runs again in a [`faulty`] world, the same code with one kind
//! of ordering taken away, and must then fail.
//!
//! Stand-ins, for what loom's cells do not fit: a slab's record and its objects' links (`check/small_slab.rs`), used by
//! [`slab_record`] and by the hand-over case of `check`.
//!
//! Bounds: two preemptions unless a case says otherwise; a second or two a case. [`litmus`] says what the worlds can
//! show at all.

mod faulty;
mod grace_period;
mod litmus;
mod lkmm;
mod maple;
mod mutex;
mod osq_lock;
mod rcu_barrier;
mod rcu_polled;
mod rcuwait;
mod refcount;
mod rwsem;
mod seqcount;
mod slab_record;
mod spinlock;
mod vm_refcnt;

pub use faulty::{Fault, Faulty};

use ::loom::model::Builder;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Preemptions explored, unless a case says otherwise.
pub const PREEMPTIONS: usize = 2;

/// Explores `f` with at most `preemptions` preemptions; fails if any execution does. Returns how many there were.
pub fn explore(preemptions: usize, f: impl Fn() + Send + Sync + 'static) -> u64 {
    let mut b = Builder::new();
    b.preemption_bound = Some(preemptions);
    b.max_branches = 10_000;
    let n = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = n.clone();
    b.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        f();
    });
    n.load(std::sync::atomic::Ordering::Relaxed)
}

/// [`explore`] with the usual bound.
pub fn check(f: impl Fn() + Send + Sync + 'static) -> u64 {
    explore(PREEMPTIONS, f)
}

/// How an execution failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Two accesses of a [`Plain`](crate::arch::Plain) that nothing orders, or an assertion of the case.
    Wrong,
    /// Somebody waits for ever: a lost wake-up.
    Hangs,
}

/// Explores `f`, which must fail in some execution, and as `how`; returns the message.
///
/// # Panics
/// If every execution holds: then the checker, or the case, shows nothing.
pub fn caught(what: &str, preemptions: usize, how: Failure, f: impl Fn() + Send + Sync + 'static) -> String {
    let message = match catch_unwind(AssertUnwindSafe(|| explore(preemptions, f))) {
        Ok(n) => panic!("{what}: {n} executions, and none failed"),
        Err(e) => e
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_string()))
            .unwrap_or_default(),
    };
    let hangs = message.contains("exceeded maximum number of branches") || message.contains("deadlock");
    assert_eq!(hangs, how == Failure::Hangs, "{what}: {message}");
    message
}
