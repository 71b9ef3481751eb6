// SPDX-License-Identifier: GPL-2.0-only
//! Softirq work at interrupt exit [kernel/softirq.c, 6.12].
//!
//! custom: RCU is the only softirq of the port.

use std::cell::Cell;

/// Softirq state of one CPU.
#[derive(Debug, Default)]
pub struct SoftirqState {
    /// `RCU_SOFTIRQ` is raised.
    pub rcu_raised: Cell<bool>,
    /// ksoftirqd has taken over: later boundaries go on without waiting for a tick.
    pub ksoftirqd: Cell<bool>,
    /// Time spent in ticks and softirqs, ns.
    pub time_ns: Cell<u64>,
}
