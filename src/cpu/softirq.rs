// SPDX-License-Identifier: GPL-2.0-only
//! Softirq work at interrupt exit, and ksoftirqd [kernel/softirq.c, 6.12].
//!
//! custom: RCU is the only softirq of the port. ksoftirqd is no thread of its own: once it is awake, every operation
//! boundary runs one slice of at most ten passes for it, counted as two context switches, until the work is done
//! (rcu.md 14); the kernel's scheduler would hand out slices of milliseconds instead.

use super::{Cpu, Hooks};
use crate::arch::Arch;
use crate::counters;
use std::cell::Cell;

/// `MAX_SOFTIRQ_RESTART`
const MAX_SOFTIRQ_RESTART: u32 = 10;
/// `MAX_SOFTIRQ_TIME`, before it is rounded up to jiffies.
const MAX_SOFTIRQ_TIME_NS: u64 = 2_000_000;

counters! {
    /// Events of the tick and of softirqs.
    pub enum SoftirqCounter in 56..64 => {
        /// Ticks taken (lost ticks that coalesced count once).
        TimerTicks = "timer_ticks",
        /// Passes of the RCU softirq.
        SoftirqRcu = "softirq_rcu",
        /// Times the work was too long for interrupt exit.
        KsoftirqdWakeups = "ksoftirqd_wakeups",
        /// Slices run for ksoftirqd.
        KsoftirqdSlices = "ksoftirqd_slices",
        /// Ticks whose place in the operation a signal sampled.
        TickSamples = "tick_samples",
        /// Those of them that fell outside readers, with preemption enabled.
        TickQuiet = "tick_samples_quiet",
    }
}

/// Softirq state of one CPU.
#[derive(Debug, Default)]
pub struct SoftirqState {
    /// `RCU_SOFTIRQ` is raised.
    pub rcu_raised: Cell<bool>,
    /// ksoftirqd has taken over: later boundaries go on without waiting for a tick.
    pub ksoftirqd: Cell<bool>,
    /// Time spent in ticks and softirqs, ns.
    pub time_ns: Cell<u64>,
    /// `need_resched()`: someone wants this CPU to pass through the scheduler.
    pub need_resched: Cell<bool>,
    /// `is_idle_task(current)`: the CPU's task sleeps.
    pub idle: Cell<bool>,
}

/// `raise_softirq(RCU_SOFTIRQ)`
#[inline]
pub fn raise_softirq<A: Arch>(cpu: &Cpu<A>) {
    cpu.softirq.rcu_raised.set(true);
}

/// `invoke_softirq()`, at the exit of an interrupt.
pub(super) fn invoke_softirq<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>) {
    if cpu.softirq.rcu_raised.get() {
        handle_softirqs(cpu, h, false);
    }
}

/// `run_ksoftirqd()`: one slice, with the context switches to it and back.
pub(super) fn run_ksoftirqd<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>) {
    cpu.count(SoftirqCounter::KsoftirqdSlices);
    // SAFETY: the hooks' contract: called on their CPU with their context.
    unsafe { (h.note_context_switch)(h.ctx, cpu) };
    cpu.softirq.ksoftirqd.set(false);
    if cpu.softirq.rcu_raised.get() {
        handle_softirqs(cpu, h, true);
    }
    // SAFETY: as above.
    unsafe { (h.note_context_switch)(h.ctx, cpu) };
}

/// `handle_softirqs()`
fn handle_softirqs<A: Arch>(cpu: &Cpu<A>, h: &Hooks<A>, ksirqd: bool) {
    let s = &cpu.softirq;
    let period = cpu.tick.period;
    let end = (A::now() / period).wrapping_add(MAX_SOFTIRQ_TIME_NS.div_ceil(period));
    let mut max_restart = MAX_SOFTIRQ_RESTART;
    // `__local_bh_disable_ip()`
    cpu.preempt_disable();
    loop {
        s.rcu_raised.set(false);
        cpu.count(SoftirqCounter::SoftirqRcu);
        // SAFETY: the hooks' contract: called on their CPU with their context.
        if unsafe { (h.rcu_core)(h.ctx, cpu) } {
            s.rcu_raised.set(true);
        }
        if ksirqd {
            // SAFETY: as above. `rcu_softirq_qs()`
            unsafe { (h.note_context_switch)(h.ctx, cpu) };
        }
        if !s.rcu_raised.get() {
            break;
        }
        max_restart -= 1;
        if A::now() / period >= end || s.need_resched.get() || max_restart == 0 {
            if !s.ksoftirqd.replace(true) {
                cpu.count(SoftirqCounter::KsoftirqdWakeups);
            }
            break;
        }
    }
    cpu.preempt_enable();
}
