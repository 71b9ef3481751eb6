// SPDX-License-Identifier: GPL-2.0-only
//! rcuwait: one task waits, anybody wakes it, and what is waited for is a condition of the caller's.
//!
//! Follows include/linux/rcuwait.h and kernel/exit.c of 6.12 (7.3 is the same). 7.3's `vma_writer_wait` is one.
//!
//! custom: no RCU section around the wake-up, because tasks live as long as the kernel. stub: interruptible waits (of signals there is SIGKILL only), timeouts.
//!
//! INVARIANT: at most one waiter at a time, which the caller sees to (for `vma_writer_wait`, mmap_lock held for write).
//! The waiter stores its state and then tests the condition; the waker makes the condition true and then looks for the
//! waiter. A full barrier stands between the two accesses on either side: without either, both may miss the other, and
//! the waiter sleeps for ever.

use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Relaxed, Release, smp_mb, smp_rmb};
use crate::cpu::sched::{TASK_KILLABLE, TASK_SLEEPING, signal_pending_state};
use crate::cpu::{Cpu, Errno, Task, sched};
use std::ptr::{NonNull, null_mut};

/// `struct rcuwait`, 8 bytes.
#[repr(transparent)]
#[derive(Debug)]
pub struct Rcuwait<A: Arch> {
    task: Atomic<A, *mut Task<A>>,
}

impl<A: Arch> Rcuwait<A> {
    /// Nobody waits.
    pub fn new() -> Self {
        Rcuwait { task: Atomic::new(null_mut()) }
    }

    /// `rcuwait_active()`: a hint.
    #[inline(always)]
    pub fn is_active(&self) -> bool {
        !self.task.load(Relaxed).is_null()
    }
}

impl<A: Arch> Default for Rcuwait<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `rcuwait_wait_event()`: sleeps until `cond` holds.
///
/// What `cond` reads must be an acquire load where the caller goes on to read what the condition guards: C has a control
/// dependency there, Rust has none.
pub fn rcuwait_wait_event<A: Arch>(cpu: &Cpu<A>, w: &Rcuwait<A>, cond: impl FnMut() -> bool) {
    // Nothing ends an uninterruptible sleep but the condition.
    let _ = wait_event_state(cpu, w, cond, TASK_SLEEPING);
}

/// `rcuwait_wait_event(..., TASK_KILLABLE)`: as [`rcuwait_wait_event`], given up at a fatal signal.
///
/// # Errors
/// `EINTR`: a fatal signal came before the condition.
pub fn rcuwait_wait_event_killable<A: Arch>(
    cpu: &Cpu<A>,
    w: &Rcuwait<A>,
    cond: impl FnMut() -> bool,
) -> Result<(), Errno> {
    wait_event_state(cpu, w, cond, TASK_KILLABLE)
}

/// `___rcuwait_wait_event()`
#[inline(always)]
fn wait_event_state<A: Arch>(
    cpu: &Cpu<A>,
    w: &Rcuwait<A>,
    mut cond: impl FnMut() -> bool,
    state: u32,
) -> Result<(), Errno> {
    let mut ret = Ok(());
    // ORDER: release (rcu_assign_pointer); meets the load in rcuwait_wake_up().
    w.task.store(cpu.task.as_ptr(), Release);
    loop {
        // ORDER: full barrier (in it) between the stores of task and state and the test of the condition; meets the
        // one in rcuwait_wake_up().
        sched::set_current_state(cpu, state);
        if cond() {
            break;
        }
        if signal_pending_state(state, &cpu.task) {
            ret = Err(Errno::EINTR);
            break;
        }
        sched::schedule(cpu, None);
    }
    finish_rcuwait(cpu, w);
    ret
}

/// `finish_rcuwait()`
fn finish_rcuwait<A: Arch>(cpu: &Cpu<A>, w: &Rcuwait<A>) {
    // ORDER: relaxed: rcu_assign_pointer() of a constant NULL is no release; a waker that still sees the task wakes it for
    // nothing.
    w.task.store(null_mut(), Relaxed);
    sched::set_current_state_running(cpu);
}

/// `rcuwait_wake_up()`: wakes the waiter, if there is one; whether it did. It may be woken for nothing.
pub fn rcuwait_wake_up<A: Arch>(w: &Rcuwait<A>) -> bool {
    // ORDER: full barrier between the caller's making the condition true and the look at the waiter; meets the one in
    // rcuwait_wait_event().
    smp_mb::<A>();
    let Some(t) = NonNull::new(w.task.load(Relaxed)) else {
        return false;
    };
    // PORT: an address dependency in C.
    smp_rmb::<A>();
    // SAFETY: only tasks are stored, and tasks live as long as the kernel.
    sched::wake_up_process(unsafe { KRef::new(t) })
}

#[cfg(test)]
impl<A: Arch> Rcuwait<A> {
    /// The broken twin of [`rcuwait_wake_up`], for the model checker to catch: it looks for the waiter too early.
    pub(crate) fn wake_without_barrier(&self) {
        if let Some(t) = NonNull::new(self.task.load(Relaxed)) {
            // SAFETY: only tasks are stored, and tasks live as long as the kernel.
            sched::wake_up_process(unsafe { KRef::new(t) });
        }
    }
}
