// SPDX-License-Identifier: GPL-2.0-only
//! Floor 8: the timed loop, the plan, the worlds' runners, counters and statistics.

pub mod kernel;
pub mod outcome;
pub mod perf;
pub mod plan;
pub mod port;
#[cfg(test)]
mod port_tests;
pub mod probe;
pub mod run;
pub mod stat;
pub mod tracepoint;
