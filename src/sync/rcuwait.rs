// SPDX-License-Identifier: GPL-2.0-only
//! Placeholder for rcuwait [include/linux/rcuwait.h, kernel/exit.c].
use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Relaxed, Release, smp_mb};
use crate::cpu::{Cpu, Task, sched};
use std::ptr::{NonNull, null_mut};

/// `struct rcuwait`: at most one waiter.
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
}
impl<A: Arch> Default for Rcuwait<A> {
    fn default() -> Self {
        Self::new()
    }
}
/// `rcuwait_wait_event()`: sleeps until `cond`.
pub fn rcuwait_wait_event<A: Arch>(cpu: &Cpu<A>, w: &Rcuwait<A>, mut cond: impl FnMut() -> bool) {
    w.task.store(cpu.task.as_ptr(), Release);
    loop {
        sched::set_current_state_sleeping(cpu);
        if cond() {
            break;
        }
        sched::schedule(cpu, None);
    }
    sched::set_current_state_running(cpu);
    w.task.store(null_mut(), Release);
}
/// `rcuwait_wake_up()`
pub fn rcuwait_wake_up<A: Arch>(w: &Rcuwait<A>) {
    smp_mb::<A>();
    if let Some(t) = NonNull::new(w.task.load(Relaxed)) {
        // SAFETY: tasks live as long as the kernel.
        sched::wake_up_process(unsafe { KRef::new(t) });
    }
}
