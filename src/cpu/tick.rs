// SPDX-License-Identifier: GPL-2.0-only
//! The scheduling-clock tick, where "user mode" is entered, and the idle loop [kernel/time/tick-sched.c,
//! kernel/sched/idle.c, 6.12].
//!
//! custom: no interrupt: a due tick is noticed at the operation boundary, when the clock is looked at (each boundary
//! where that is free, each eighth natively), so it comes up to that many operations late, never inside an operation,
//! and softirqs never lengthen a lock hold (rcu.md 14). Ticks that were missed coalesce, as when interrupts are off.
//! All CPUs' ticks fall on multiples of the period since the clock's start, unless `skew_tick` is set.
//!
//! custom: a sleeping CPU keeps its tick only while RCU needs it, or where it polls instead of sleeping (`sched.rs`);
//! it wakes for its next timer. stub: time keeping, the timer wheel ([`super::workqueue::TimerHook`] stands for it),
//! load accounting.
//!
//! INVARIANT: at a boundary no lock is held and no reader is open. Requests of other CPUs (smp.rs) are served at
//! boundaries and by sleepers.

use super::softirq::{SoftirqCounter, invoke_softirq, run_ksoftirqd};
use super::{Cpu, Hooks, sched};
use crate::arch::tick_signal::{TICK_NONE, TICK_QUIET};
use crate::arch::{Arch, Hardware, Relaxed, TickSignal};
use std::cell::Cell;

/// A CPU's tick.
#[derive(Debug)]
pub struct TickDevice {
    /// Time of the next tick, ns; `u64::MAX` = no tick.
    pub next_tick: Cell<u64>,
    /// Tick period, ns.
    pub period: u64,
    /// Boundaries until the clock is looked at again.
    pub countdown: Cell<u32>,
    /// Ticks are told by a timer signal ([`start_tick_signal`]) and not by the clock.
    pub by_signal: Cell<bool>,
    /// Look at the clock every this many boundaries (1 where reading it is free).
    pub every: u32,
    /// Ticks fall this long after multiples of the period, ns (`skew_tick`).
    pub skew: Cell<u64>,
}

impl TickDevice {
    /// A CPU without a tick.
    pub fn off() -> Self {
        TickDevice {
            next_tick: Cell::new(u64::MAX),
            period: u64::MAX,
            countdown: Cell::new(u32::MAX),
            every: u32::MAX,
            by_signal: Cell::new(false),
            skew: Cell::new(0),
        }
    }

    /// A tick of `hz`, not yet running: [`TickDevice::start`] sets it going. The clock is read each `every`-th
    /// boundary.
    pub fn new(hz: u32, every: u32) -> Self {
        TickDevice { period: 1_000_000_000 / u64::from(hz.max(1)), every: every.max(1), ..TickDevice::off() }
    }

    /// `tick_setup_sched_timer()`: the first tick is the first multiple of the period after `now`, and the skew later.
    pub fn start(&self, now: u64) {
        if self.period != u64::MAX {
            self.next_tick.set((now / self.period + 1) * self.period + self.skew.get());
            self.countdown.set(1);
        }
    }

    /// `skew_tick=1`: this CPU's share of half a period, so that the ticks of `nr_cpus` CPUs do not fall together.
    pub fn set_skew(&self, cpu: u32, nr_cpus: u32) {
        if self.period != u64::MAX {
            self.skew.set(self.period / 2 / u64::from(nr_cpus) * u64::from(cpu));
        }
    }

    /// `hrtimer_forward()`: to the first of its times after `now`.
    fn forward(&self, now: u64) {
        // A signal may be a little early by this clock.
        let k = 1 + now.saturating_sub(self.next_tick.get()) / self.period;
        self.next_tick.set(self.next_tick.get() + k * self.period);
    }
}

/// The operation boundary: return to user mode. Serves requests of other CPUs, runs a due tick and its softirqs.
/// Returns whether the clock was read, and then what it said last.
#[inline(always)]
pub fn exit_to_user_mode<A: Arch>(cpu: &Cpu<A>) -> Option<u64> {
    let c = cpu.tick.countdown.get();
    if c > 1 && cpu.remote.call.load(Relaxed) == 0 {
        cpu.tick.countdown.set(c - 1);
        return None;
    }
    Some(boundary(cpu))
}

#[cold]
#[inline(never)]
fn boundary<A: Arch>(cpu: &Cpu<A>) -> u64 {
    debug_assert_eq!(cpu.probe.rcu_nesting.get(), 0, "an operation ends inside rcu_read_lock()");
    let now = A::now();
    let now = match cpu.hooks.get() {
        Some(h) => {
            serve_requests(cpu, &h);
            let s = &cpu.softirq;
            let due = tick_due(cpu, now);
            if !due && !s.ksoftirqd.get() && !s.need_resched.get() {
                now
            } else {
                if s.ksoftirqd.get() {
                    run_ksoftirqd(cpu, &h);
                }
                if due {
                    tick_and_softirqs(cpu, &h, now, false);
                }
                resched(cpu, &h);
                let end = A::now();
                s.time_ns.set(s.time_ns.get() + (end - now));
                end
            }
        }
        None => now,
    };
    cpu.tick.countdown.set(if cpu.softirq.ksoftirqd.get() { 1 } else { cpu.tick.every });
    now
}

/// Whether a tick fell since the last one was taken.
#[inline(always)]
fn tick_due<A: Arch>(cpu: &Cpu<A>, now: u64) -> bool {
    if cpu.tick.by_signal.get() { cpu.probe.tick.get() != TICK_NONE } else { now >= cpu.tick.next_tick.get() }
}

/// Lets a timer signal say where in an operation each tick falls (rcu.md 14, step 4b); the tick is taken at the boundary
/// after it. `None`, and ticks by the clock, where there is no such signal.
///
/// # Safety
/// The token stays in its place until the result is dropped.
pub unsafe fn start_tick_signal<A: Hardware>(cpu: &Cpu<A>) -> Option<TickSignal> {
    let first = cpu.tick.next_tick.get().saturating_sub(A::now());
    // SAFETY: the caller's.
    let s = unsafe { A::sample_ticks(&raw const cpu.probe, first, cpu.tick.period) };
    cpu.tick.by_signal.set(s.is_some());
    s
}

/// What the last tick signal found, taken: whether no reader was open and preemption not disabled. `None` without one.
pub fn take_tick_sample<A: Arch>(cpu: &Cpu<A>) -> Option<bool> {
    let t = cpu.probe.tick.get();
    if t == TICK_NONE {
        return None;
    }
    cpu.probe.tick.set(TICK_NONE);
    cpu.count(SoftirqCounter::TickSamples);
    if t == TICK_QUIET {
        cpu.count(SoftirqCounter::TickQuiet);
    }
    Some(t == TICK_QUIET)
}

/// `cond_resched()` of a long operation (rcu.md 14: a bulk unmap) at a point where it holds no lock and no reader. It
/// always looks at the clock: operations that are long must not count like short ones.
#[inline]
pub fn cond_resched<A: Arch>(cpu: &Cpu<A>) {
    boundary(cpu);
}

/// The timer interrupt in the middle of an operation, inside a reader too. The port has no interrupts; tests and
/// models that want one call this.
pub fn sysvec_apic_timer_interrupt<A: Arch>(cpu: &Cpu<A>) {
    let now = A::now();
    if let Some(h) = cpu.hooks.get()
        && now >= cpu.tick.next_tick.get()
    {
        tick_and_softirqs(cpu, &h, now, false);
    }
}

/// The tick at `now`, and what it raised. `user`: it found the CPU idle or in user mode.
fn tick_and_softirqs<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>, now: u64, user: bool) {
    cpu.tick.forward(now);
    cpu.count(SoftirqCounter::TimerTicks);
    // SAFETY: the hooks' contract: called on their CPU with their context.
    unsafe { (h.sched_clock_irq)(h.ctx, cpu, user) };
    run_timers(cpu, now);
    invoke_softirq(cpu, h);
}

/// `run_timer_softirq()`; it comes before RCU's softirq.
fn run_timers<A: Arch>(cpu: &Cpu<A>, now: u64) {
    if let Some(t) = cpu.timers.get() {
        // SAFETY: the hook's contract: called on its CPU with its context.
        unsafe { (t.run)(t.ctx, cpu, now) };
    }
}

/// When this CPU's next timer is due.
fn next_timer<A: Arch>(cpu: &Cpu<A>) -> u64 {
    // SAFETY: as above.
    cpu.timers.get().map_or(u64::MAX, |t| unsafe { (t.next)(t.ctx, cpu) })
}

/// `exit_to_user_mode_loop()`, its scheduling part: nothing else is runnable, so the task goes on after the switch.
fn resched<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>) {
    if cpu.softirq.need_resched.replace(false) {
        // SAFETY: as above.
        unsafe { (h.note_context_switch)(h.ctx, cpu) };
    }
}

/// Runs what other CPUs asked for.
pub(super) fn serve_requests<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>) {
    let bits = cpu.remote.take();
    if bits != 0 {
        // SAFETY: as above.
        unsafe { (h.call_function)(h.ctx, cpu, bits) };
    }
}

/// Before a sleep: ksoftirqd gets the CPU first, then it is idle.
pub(super) fn idle_enter<A: Arch>(cpu: &Cpu<A>) {
    if let Some(h) = cpu.hooks.get() {
        idle_ksoftirqd(cpu, &h);
        cpu.softirq.need_resched.set(false);
        cpu.softirq.idle.set(true);
        // SAFETY: as above.
        unsafe { (h.idle_enter)(h.ctx, cpu) };
    }
}

/// After a sleep.
pub(super) fn idle_exit<A: Arch>(cpu: &Cpu<A>) {
    if let Some(h) = cpu.hooks.get() {
        // SAFETY: as above.
        unsafe { (h.idle_exit)(h.ctx, cpu) };
        cpu.softirq.idle.set(false);
        // One that fell into the sleep is no sample of what runs.
        cpu.probe.tick.set(TICK_NONE);
        serve_requests(cpu, &h);
        // SAFETY: as above.
        if cpu.tick.next_tick.get() != u64::MAX && !cpu.task.polls() && !unsafe { (h.needs_cpu)(h.ctx, cpu) } {
            // `tick_nohz_idle_exit()`: ticks while it was stopped did not happen.
            let now = A::now();
            if now >= cpu.tick.next_tick.get() {
                cpu.tick.forward(now);
            }
        }
        cpu.tick.countdown.set(1);
    }
}

/// Until when a sleeping CPU may sleep.
pub(super) fn idle_deadline<A: Arch>(cpu: &Cpu<A>, deadline: Option<u64>) -> Option<u64> {
    let timer = next_timer(cpu);
    let deadline = if timer == u64::MAX { deadline } else { Some(deadline.map_or(timer, |d| d.min(timer))) };
    if let Some(h) = cpu.hooks.get()
        // SAFETY: as above.
        && unsafe { (h.needs_cpu)(h.ctx, cpu) }
    {
        let tick = cpu.tick.next_tick.get();
        return Some(deadline.map_or(tick, |d| d.min(tick)));
    }
    deadline
}

/// A turn of the idle loop: requests of other CPUs, and the tick if it was kept and is due.
pub(super) fn idle_tick<A: Arch>(cpu: &Cpu<A>, now: u64) {
    let Some(h) = cpu.hooks.get() else { return };
    // SAFETY: as above.
    let due = now >= cpu.tick.next_tick.get() && (cpu.task.polls() || unsafe { (h.needs_cpu)(h.ctx, cpu) });
    let timer = next_timer(cpu) <= now;
    if !due && !timer && cpu.remote.call.load(Relaxed) == 0 {
        return;
    }
    // SAFETY: as above. An interrupt makes RCU watch the CPU again while it lasts.
    unsafe { (h.idle_exit)(h.ctx, cpu) };
    serve_requests(cpu, &h);
    if timer && !due {
        run_timers(cpu, now);
    }
    if due {
        tick_and_softirqs(cpu, &h, now, true);
        idle_ksoftirqd(cpu, &h);
        let s = &cpu.softirq;
        s.time_ns.set(s.time_ns.get() + (A::now() - now));
    }
    // SAFETY: as above.
    unsafe { (h.idle_enter)(h.ctx, cpu) };
}

/// ksoftirqd on a CPU that has nothing else to run: to the end, as an ordinary task.
fn idle_ksoftirqd<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>) {
    let idle = cpu.softirq.idle.replace(false);
    while cpu.softirq.ksoftirqd.get() {
        run_ksoftirqd(cpu, h);
    }
    cpu.softirq.idle.set(idle);
}

/// What a worker does after its measured loop: it sleeps as an idle CPU (extended quiescent state, ticks while it has
/// callbacks, requests served) until `until` holds, which is looked at once a tick period and at every wake-up of its
/// task. A worker that has callbacks must stay here until `rcu_barrier()` of the shutdown is over. Nothing is measured
/// here, so that it sleeps in a futex in every kernel: the grace-period thread may need the CPU.
pub fn idle_loop<A: Arch>(cpu: &Cpu<A>, until: impl Fn() -> bool) {
    let poll = if cpu.tick.period == u64::MAX { 1_000_000 } else { cpu.tick.period };
    let polls = cpu.task.set_polling(false);
    loop {
        sched::set_current_state_sleeping(cpu);
        if until() {
            break;
        }
        sched::schedule(cpu, Some((A::now() / poll + 1) * poll));
    }
    sched::set_current_state_running(cpu);
    cpu.task.set_polling(polls);
}
