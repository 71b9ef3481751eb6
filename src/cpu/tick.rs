// SPDX-License-Identifier: GPL-2.0-only
//! The scheduling-clock tick, and where "user mode" is entered [kernel/time/tick-sched.c, 6.12].
//!
//! custom: no interrupt: a due tick is noticed at the operation boundary (rcu.md 14).

use super::Cpu;
use crate::arch::Arch;
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
    /// Look at the clock every this many boundaries (1 where reading it is free).
    pub every: u32,
}

impl TickDevice {
    /// A CPU without a tick.
    pub fn off() -> Self {
        TickDevice { next_tick: Cell::new(u64::MAX), period: u64::MAX, countdown: Cell::new(u32::MAX), every: u32::MAX }
    }
}

/// The operation boundary: return to user mode. Serves requests of other CPUs, runs a due tick and its softirqs.
/// Returns whether the clock was read, and then what it said.
#[inline(always)]
pub fn exit_to_user_mode<A: Arch>(cpu: &Cpu<A>) -> Option<u64> {
    let c = cpu.tick.countdown.get();
    if c > 1 {
        cpu.tick.countdown.set(c - 1);
        return None;
    }
    Some(boundary(cpu))
}

#[cold]
#[inline(never)]
fn boundary<A: Arch>(cpu: &Cpu<A>) -> u64 {
    cpu.tick.countdown.set(cpu.tick.every);
    A::now()
}

/// Before a sleep.
pub fn idle_enter<A: Arch>(_cpu: &Cpu<A>) {}
/// After a sleep.
pub fn idle_exit<A: Arch>(_cpu: &Cpu<A>) {}
/// Until when a sleeping CPU may sleep.
pub fn idle_deadline<A: Arch>(_cpu: &Cpu<A>, deadline: Option<u64>) -> Option<u64> {
    deadline
}
/// A turn of the idle loop.
pub fn idle_tick<A: Arch>(_cpu: &Cpu<A>, _now: u64) {}
