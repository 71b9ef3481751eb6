// SPDX-License-Identifier: GPL-2.0-only
//! The queue of a sleeping lock: waiters that are part of their tasks, first come first served.
//!
//! Of kernel/locking/rwsem.c and kernel/locking/mutex.c, 6.12, which both use the kernel's lists. custom: it ends in null
//! pointers, not in its own address, so that a lock can be moved before it is used (same words touched).
//!
//! INVARIANT: changed under the lock's `wait_lock`, and a task is on one queue at a time. Readers outside of it may look
//! at the first one only.

use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Plain, Relaxed};
use crate::cpu::Task;
use crate::cpu::qnode::RwsemWaiter;
use std::ptr::{NonNull, from_ref, null_mut};

/// The queue: first and last waiter, or nulls.
#[repr(C)]
#[derive(Debug)]
pub(super) struct WaitList<A: Arch> {
    /// Written under the lock, like the rest; a mutex waiter looks without it.
    first: Atomic<A, *mut RwsemWaiter<A>>,
    last: Plain<A, *mut RwsemWaiter<A>>,
}

impl<A: Arch> WaitList<A> {
    pub(super) fn new() -> Self {
        WaitList { first: Atomic::new(null_mut()), last: Plain::new(null_mut()) }
    }
    /// Empties a queue that may have been anything before.
    pub(super) fn init(&self) {
        self.first.store(null_mut(), Relaxed);
        self.last.set(null_mut());
    }
    pub(super) fn is_empty(&self) -> bool {
        self.first().is_null()
    }
    /// The first waiter, or null.
    pub(super) fn first(&self) -> *mut RwsemWaiter<A> {
        self.first.load(Relaxed)
    }
    /// The last waiter, or null.
    pub(super) fn last(&self) -> *mut RwsemWaiter<A> {
        self.last.get()
    }
    /// Whether `w`, which is queued, is the first. Without the lock too: those ahead of it only leave.
    pub(super) fn is_first(&self, w: &RwsemWaiter<A>) -> bool {
        std::ptr::eq(self.first(), w)
    }
    pub(super) fn add_tail(&self, w: &RwsemWaiter<A>) {
        let p = from_ref(w).cast_mut();
        let last = self.last.get();
        w.next.set(null_mut());
        w.prev.set(last);
        if last.is_null() {
            self.first.store(p, Relaxed);
        } else {
            // SAFETY: queued.
            unsafe { waiter_at(last) }.next.set(p);
        }
        self.last.set(p);
    }
    pub(super) fn del(&self, w: &RwsemWaiter<A>) {
        let (next, prev) = (w.next.get(), w.prev.get());
        if prev.is_null() {
            self.first.store(next, Relaxed);
        } else {
            // SAFETY: queued.
            unsafe { waiter_at(prev) }.next.set(next);
        }
        if next.is_null() {
            self.last.set(prev);
        } else {
            // SAFETY: queued.
            unsafe { waiter_at(next) }.prev.set(prev);
        }
    }
}

/// # Safety
/// `p` is a waiter on a list whose lock is held, or taken off it under the lock and not yet granted.
pub(super) unsafe fn waiter_at<'a, A: Arch>(p: *mut RwsemWaiter<A>) -> &'a RwsemWaiter<A> {
    // SAFETY: waiters are part of tasks, which live as long as the kernel.
    unsafe { &*p }
}

pub(super) fn task_at<A: Arch>(p: *mut Task<A>) -> KRef<Task<A>> {
    // SAFETY: the pointers in waiters are those of live tasks until they are cleared, and the caller's was not null.
    unsafe { KRef::new(NonNull::new_unchecked(p)) }
}
