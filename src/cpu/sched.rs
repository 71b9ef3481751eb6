// SPDX-License-Identifier: GPL-2.0-only
//! Tasks, sleeping, waking, and fatal signals [kernel/sched/core.c, kernel/sched/idle.c, kernel/signal.c, 6.12].
//!
//! custom: one task a CPU, so a sleeping task is an idle CPU: it notes a context switch, enters the extended quiescent
//! state, and keeps its tick only while it has callbacks. A kernel is booted with one of two ways to wait ([`Wait`]),
//! because neither is the kernel's: a futex on the task's own word costs two system calls and a wake-up by the host's
//! scheduler more (an upper bound), polling the word like a CPU that idles with `idle=poll` costs no wake-up at all (a
//! lower bound). What the two disagree on is undecided on that machine (locking.md 10, BIAS.md).
//!
//! custom: of signals there is SIGKILL only, sent from any CPU by [`send_sigkill`]; a task never dies of it by itself.
//! Tasks that have no CPU of their own (kernel threads) and a worker past its measured loop always wait by futex.
//!
//! INVARIANT: whoever sleeps stores its state, then tests its condition; whoever wakes makes the condition true, then
//! looks at the state. A full barrier stands between the two on either side.

use super::Cpu;
use super::qnode::RwsemWaiter;
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed, Release};

/// The task runs or is about to look at its condition again.
pub const TASK_RUNNING: u32 = 0;
/// `TASK_UNINTERRUPTIBLE`: the task sleeps or is about to.
pub const TASK_SLEEPING: u32 = 1;
/// In the state: a fatal signal wakes it.
pub const TASK_WAKEKILL: u32 = 2;
/// `TASK_KILLABLE`: sleeps, and a fatal signal wakes it.
pub const TASK_KILLABLE: u32 = TASK_SLEEPING | TASK_WAKEKILL;

/// Looks at the task word between two looks at the clock, while polling.
const POLL_TURNS: u32 = 16;

/// How a task of this kernel waits once it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// On a futex: dearer than a kernel's sleep.
    #[default]
    Futex,
    /// Polling its word, ticks running, as with `idle=poll`: cheaper than a kernel's sleep.
    Spin,
}

impl Wait {
    /// All of them, with their slugs.
    pub const ALL: [(&'static str, Wait); 2] = [("futex", Wait::Futex), ("spin", Wait::Spin)];

    /// Slug, as in records.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

crate::counters! {
    /// What waiting came to, whichever way it is done.
    pub enum SchedCounter in 120..124 => {
        /// Times a task slept.
        SchedSleeps = "sched_sleeps",
        /// Time from falling asleep to running again, ns.
        SchedSleepNs = "sched_sleep_ns",
    }
}

/// What the port needs of `task_struct`. 128-aligned: the low bits of a pointer to it are free for flags.
#[repr(C, align(128))]
pub struct Task<A: Arch> {
    /// `__state`: [`TASK_RUNNING`], [`TASK_SLEEPING`] or [`TASK_KILLABLE`]; also the futex word.
    pub state: Atomic<A, u32>,
    /// `on_cpu`: 0 while asleep, so that optimistic spinners stop.
    pub on_cpu: Atomic<A, u32>,
    /// The CPU this task is pinned to.
    pub cpu: u32,
    /// `TIF_POLLING_NRFLAG`: whoever wakes this task need not call the host. Written by the task itself.
    polling: Atomic<A, u32>,
    /// `wake_q.next`: not null while a waker holds this task in its queue.
    pub wake_q: Atomic<A, *mut Task<A>>,
    /// SIGKILL is pending.
    sigkill: Atomic<A, u32>,
    /// Its place in the queue of a sleeping lock.
    pub waiter: RwsemWaiter<A>,
}

impl<A: Arch> Task<A> {
    /// A running task of `cpu`, which sleeps in futexes.
    pub fn new(cpu: u32) -> Self {
        Self::new_waiting(cpu, Wait::Futex)
    }

    /// A running task of `cpu`, which waits as said.
    pub fn new_waiting(cpu: u32, wait: Wait) -> Self {
        Task {
            state: Atomic::new(TASK_RUNNING),
            on_cpu: Atomic::new(1),
            cpu,
            polling: Atomic::new(u32::from(wait == Wait::Spin)),
            wake_q: Atomic::new(std::ptr::null_mut()),
            sigkill: Atomic::new(0),
            waiter: RwsemWaiter::new(),
        }
    }

    /// Whether it waits by polling.
    #[inline(always)]
    pub(super) fn polls(&self) -> bool {
        self.polling.load(Relaxed) != 0
    }

    /// Sets how it waits from its next sleep on, by itself; how it did.
    pub(super) fn set_polling(&self, polls: bool) -> bool {
        let was = self.polls();
        // ORDER: relaxed; ordered before the sleep by the exchange in set_current_state(). A waker that still sees the
        // old value belongs to an earlier sleep: it calls the host for nothing, or does not although nobody is there.
        self.polling.store(u32::from(polls), Relaxed);
        was
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

/// `set_current_state()`: a full barrier between the store and the test that follows.
#[inline(always)]
pub fn set_current_state<A: Arch>(cpu: &Cpu<A>, state: u32) {
    // ORDER: full, meets try_to_wake_up(): either the waker sees the state or this task sees its condition.
    cpu.task.state.swap(state, Full);
}

/// `set_current_state(TASK_UNINTERRUPTIBLE)`
#[inline(always)]
pub fn set_current_state_sleeping<A: Arch>(cpu: &Cpu<A>) {
    set_current_state(cpu, TASK_SLEEPING);
}

/// `__set_current_state(TASK_RUNNING)`.
#[inline(always)]
pub fn set_current_state_running<A: Arch>(cpu: &Cpu<A>) {
    cpu.task.state.store(TASK_RUNNING, Relaxed);
}

/// `fatal_signal_pending()`
#[inline(always)]
pub fn fatal_signal_pending<A: Arch>(t: &Task<A>) -> bool {
    t.sigkill.load(Relaxed) != 0
}

/// `signal_pending_state()`: whether a sleep in `state` is to be given up.
#[inline(always)]
pub fn signal_pending_state<A: Arch>(state: u32, t: &Task<A>) -> bool {
    state & TASK_WAKEKILL != 0 && fatal_signal_pending(t)
}

/// `send_sig(SIGKILL)`: from any CPU; wakes `t` where it sleeps killably, and keeps it from sleeping so.
pub fn send_sigkill<A: Arch>(t: KRef<Task<A>>) {
    // ORDER: relaxed; the full barrier of try_to_wake_up() follows, which meets the one in set_current_state(): either
    // this finds the task asleep or the task finds the signal.
    t.sigkill.store(1, Relaxed);
    try_to_wake_up(t, TASK_WAKEKILL);
}

/// `flush_signals()`: this task has died of its signal, and its CPU goes on with another.
pub fn flush_signals<A: Arch>(cpu: &Cpu<A>) {
    cpu.task.sigkill.store(0, Relaxed);
}

/// `schedule()`, or `schedule_timeout()` where `deadline` (in [`Arch::now`]'s ns) is given: sleeps until woken if the
/// state is still a sleeping one and no signal forbids it. Returns with the state [`TASK_RUNNING`]; spurious returns
/// are allowed, callers test their condition in a loop.
#[cold]
#[inline(never)]
pub fn schedule<A: Arch>(cpu: &Cpu<A>, deadline: Option<u64>) {
    let t = &*cpu.task;
    let state = t.state.load(Relaxed);
    if state == TASK_RUNNING {
        return;
    }
    if signal_pending_state(state, t) {
        set_current_state_running(cpu);
        return;
    }
    super::tick::idle_enter(cpu);
    // ORDER: release; meets rwsem_spin_on_owner(), which then stops spinning on a sleeper.
    t.on_cpu.store(0, Release);
    let asleep = A::now();
    let mut now = asleep;
    loop {
        super::tick::idle_tick(cpu, now);
        // ORDER: acquire; meets the release half of try_to_wake_up(): what the waker stored is visible to the task.
        if t.state.load(Acquire) == TASK_RUNNING || deadline.is_some_and(|d| now >= d) {
            break;
        }
        if t.polls() {
            cpu_idle_poll(t);
        } else {
            A::futex_wait(t.state.raw(), state, super::tick::idle_deadline(cpu, deadline));
        }
        now = A::now();
        // ORDER: acquire, as above.
        if t.state.load(Acquire) == TASK_RUNNING {
            break;
        }
    }
    cpu.count(SchedCounter::SchedSleeps);
    cpu.counters.add(SchedCounter::SchedSleepNs, now.saturating_sub(asleep));
    t.state.store(TASK_RUNNING, Relaxed);
    t.on_cpu.store(1, Relaxed);
    super::tick::idle_exit(cpu);
}

/// `cpu_idle_poll()`, a few turns of it: until the word changes or the clock is worth a look.
// PORT: the word and the clock are two things to watch, so that smp_cond_load_relaxed() does not fit here.
fn cpu_idle_poll<A: Arch>(t: &Task<A>) {
    for _ in 0..POLL_TURNS {
        if t.state.load(Relaxed) == TASK_RUNNING {
            return;
        }
        A::cpu_relax();
    }
}

/// `wake_up_process()`: makes `t` runnable if it sleeps; returns whether this call did.
#[inline]
pub fn wake_up_process<A: Arch>(t: KRef<Task<A>>) -> bool {
    try_to_wake_up(t, TASK_SLEEPING)
}

/// `try_to_wake_up()`: makes `t` runnable if it sleeps in a state that has a bit of `mask`; whether this call did.
#[inline]
fn try_to_wake_up<A: Arch>(t: KRef<Task<A>>, mask: u32) -> bool {
    let mut state = t.state.load(Relaxed);
    if state & mask == 0 {
        // ORDER: full; meets set_current_state(). A task that is just going to sleep stores its state before it tests;
        // see rcuwait for the barrier pair. (The kernel has it in the lock taken here.)
        crate::arch::smp_mb::<A>();
        state = t.state.load(Relaxed);
    }
    while state & mask != 0 {
        // ORDER: full; as above, and what the waker stored before is seen by the woken task's test.
        if t.state.try_cmpxchg(TASK_RUNNING, &mut state, Full) {
            if !t.polls() {
                A::futex_wake(t.state.raw());
            }
            return true;
        }
    }
    false
}
