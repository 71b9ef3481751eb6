// SPDX-License-Identifier: GPL-2.0-only
//! Wake queues: tasks collected under a lock and woken after it was dropped [include/linux/sched/wake_q.h,
//! kernel/sched/core.c, 6.12].
//!
//! custom: no reference to the task is taken, because a task lives as long as its kernel; the list runs through the
//! tasks themselves, not through nodes inside them.

use super::{Task, sched};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Relaxed, smp_mb};
use std::ptr::{NonNull, null_mut, without_provenance_mut};

/// `struct wake_q_head`: on the stack of whoever wakes.
#[derive(Debug)]
pub struct WakeQHead<A: Arch> {
    first: *mut Task<A>,
    last: *mut Task<A>,
}

/// `WAKE_Q_TAIL`: ends the list, and marks a task as queued.
fn wake_q_tail<A: Arch>() -> *mut Task<A> {
    without_provenance_mut(1)
}

impl<A: Arch> WakeQHead<A> {
    /// `DEFINE_WAKE_Q`
    #[inline(always)]
    pub fn new() -> Self {
        WakeQHead { first: wake_q_tail(), last: null_mut() }
    }

    /// `wake_q_empty()`
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.first == wake_q_tail()
    }
}
impl<A: Arch> Default for WakeQHead<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `wake_q_add()`: queues `t` for waking; nothing if some waker has it queued already.
pub fn wake_q_add<A: Arch>(head: &mut WakeQHead<A>, t: KRef<Task<A>>) {
    // ORDER: full, before a relaxed exchange as in the kernel: if another waker holds `t` in its queue, this waker's
    // condition is visible before that one's wake_up_process() in wake_up_q().
    smp_mb::<A>();
    if t.wake_q.cmpxchg(null_mut(), wake_q_tail(), Relaxed).is_err() {
        return;
    }
    if head.last.is_null() {
        head.first = t.as_ptr();
    } else {
        // SAFETY: a task queued on this head; tasks live as long as the kernel.
        unsafe { &*head.last }.wake_q.store(t.as_ptr(), Relaxed);
    }
    head.last = t.as_ptr();
}

/// `wake_up_q()`: wakes what was collected. Not under the lock it was collected under.
pub fn wake_up_q<A: Arch>(head: &mut WakeQHead<A>) {
    let mut p = head.first;
    while p != wake_q_tail() {
        // SAFETY: only tasks and the end mark are on the list; tasks live as long as the kernel.
        let t = unsafe { KRef::new(NonNull::new_unchecked(p)) };
        p = t.wake_q.load(Relaxed);
        // ORDER: relaxed; wake_up_process() begins with a full barrier, which meets the one in wake_q_add(): a waker
        // that found the task still queued has its condition seen by the task this call wakes.
        t.wake_q.store(null_mut(), Relaxed);
        sched::wake_up_process(t);
    }
    *head = WakeQHead::new();
}
