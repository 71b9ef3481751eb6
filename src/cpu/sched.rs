// SPDX-License-Identifier: GPL-2.0-only
//! Tasks, sleeping and waking [kernel/sched/core.c, 6.12].
//!
//! custom: one task a CPU, so a sleeping task is an idle CPU: it notes a context switch, enters the extended quiescent
//! state, and keeps its tick only while it has callbacks. A sleep is a futex wait on the task's own word (locking.md
//! 10); an operation that sleeps so costs two system calls more than the kernel's (BIAS.md).

use super::Cpu;
use super::qnode::RwsemWaiter;
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed, Release};

/// The task runs or is about to look at its condition again.
pub const TASK_RUNNING: u32 = 0;
/// The task sleeps or is about to.
pub const TASK_SLEEPING: u32 = 1;

/// What the port needs of `task_struct`. 128-aligned: the low bits of a pointer to it are free for flags.
#[repr(C, align(128))]
pub struct Task<A: Arch> {
    /// `__state`: [`TASK_RUNNING`] or [`TASK_SLEEPING`]; also the futex word.
    pub state: Atomic<A, u32>,
    /// `on_cpu`: 0 while asleep, so that optimistic spinners stop.
    pub on_cpu: Atomic<A, u32>,
    /// The CPU this task is pinned to.
    pub cpu: u32,
    /// `wake_q.next`: not null while a waker holds this task in its queue.
    pub wake_q: Atomic<A, *mut Task<A>>,
    /// Its place in the queue of an rwsem.
    pub waiter: RwsemWaiter<A>,
}

impl<A: Arch> Task<A> {
    /// A running task of `cpu`.
    pub fn new(cpu: u32) -> Self {
        Task {
            state: Atomic::new(TASK_RUNNING),
            on_cpu: Atomic::new(1),
            cpu,
            wake_q: Atomic::new(std::ptr::null_mut()),
            waiter: RwsemWaiter::new(),
        }
    }
}

/// `need_resched()`: whether this CPU should stop spinning. Only pending ksoftirqd work makes it so.
#[inline(always)]
pub fn need_resched<A: Arch>(cpu: &Cpu<A>) -> bool {
    cpu.softirq.ksoftirqd.get()
}

/// `owner_on_cpu()`: whether `t` runs, so that spinning until it is done makes sense.
#[inline(always)]
pub fn owner_on_cpu<A: Arch>(t: &Task<A>) -> bool {
    t.on_cpu.load(Relaxed) != 0
}

/// `set_current_state(TASK_SLEEPING)`: a full barrier between the store and the test that follows.
#[inline(always)]
pub fn set_current_state_sleeping<A: Arch>(cpu: &Cpu<A>) {
    // ORDER: full, meets wake_up_process(): either the waker sees SLEEPING or this task sees its condition.
    cpu.task.state.swap(TASK_SLEEPING, Full);
}

/// `__set_current_state(TASK_RUNNING)`.
#[inline(always)]
pub fn set_current_state_running<A: Arch>(cpu: &Cpu<A>) {
    cpu.task.state.store(TASK_RUNNING, Relaxed);
}

/// `schedule()`, or `schedule_timeout()` where `deadline` (in [`Arch::now`]'s ns) is given: sleeps until woken if the
/// state is still [`TASK_SLEEPING`]. Returns with the state [`TASK_RUNNING`]; spurious returns are allowed, callers
/// test their condition in a loop.
#[cold]
#[inline(never)]
pub fn schedule<A: Arch>(cpu: &Cpu<A>, deadline: Option<u64>) {
    let t = &*cpu.task;
    if t.state.load(Relaxed) == TASK_RUNNING {
        return;
    }
    super::tick::idle_enter(cpu);
    // ORDER: release; meets rwsem_spin_on_owner(), which then stops spinning on a sleeper.
    t.on_cpu.store(0, Release);
    loop {
        let now = A::now();
        super::tick::idle_tick(cpu, now);
        // ORDER: acquire; meets the release half of wake_up_process(): what the waker stored is visible to the task.
        if t.state.load(Acquire) != TASK_SLEEPING || deadline.is_some_and(|d| now >= d) {
            break;
        }
        A::futex_wait(t.state.raw(), TASK_SLEEPING, super::tick::idle_deadline(cpu, deadline));
        if t.state.load(Acquire) != TASK_SLEEPING {
            break;
        }
    }
    t.state.store(TASK_RUNNING, Relaxed);
    t.on_cpu.store(1, Relaxed);
    super::tick::idle_exit(cpu);
}

/// `wake_up_process()`: makes `t` runnable if it sleeps; returns whether this call did.
#[inline]
pub fn wake_up_process<A: Arch>(t: KRef<Task<A>>) -> bool {
    // ORDER: full; meets set_current_state_sleeping(): what the waker stored before is seen by the woken task's test.
    if t.state.load(Relaxed) == TASK_RUNNING {
        // A task that is just going to sleep stored SLEEPING before it tests; see rcuwait for the barrier pair.
        crate::arch::smp_mb::<A>();
        if t.state.load(Relaxed) == TASK_RUNNING {
            return false;
        }
    }
    if t.state.cmpxchg(TASK_SLEEPING, TASK_RUNNING, Full).is_ok() {
        A::futex_wake(t.state.raw());
        return true;
    }
    false
}
