// SPDX-License-Identifier: GPL-2.0-only
//! What a worker reads about itself besides its operations: CPU time, preemptions, PMU events, placement. A world
//! without operating-system threads has none of it.

use crate::arch::{Arch, Hardware, Native, Sim};
use crate::host::affinity;
use crate::measure::kernel::{rusage, thread_cpu_ns};
use crate::measure::outcome::Moves;
use crate::measure::perf::{PerfGroup, Reading};
use std::collections::BTreeMap;

/// What a worker saw of itself.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// PMU and software events of the span.
    pub perf: BTreeMap<String, Reading>,
    /// Involuntary context switches in the span.
    pub preempted: u64,
    /// The CPU at the end of the span, where the world has real ones.
    pub cpu: Option<u32>,
}

/// A world's probe, opened by the worker itself.
pub trait Probe: Hardware {
    /// The clock is looked at each so-many-th return to user mode.
    const TICK_EVERY: u32;
    /// Whether the distances of reuse may be watched in the span too: where looking takes no time.
    const REUSE_IN_SPAN: bool;
    /// Its state.
    type State;
    /// Opens it, before the start line.
    fn open() -> Self::State;
    /// The span begins.
    fn begin(state: &mut Self::State);
    /// The span has ended.
    fn end(state: &mut Self::State);
    /// What was seen.
    fn read(state: Self::State) -> Seen;
    /// CPU time of the calling worker, ns.
    fn cpu_ns() -> u64;
    /// Line transfers per struct since [`Probe::reset_lines`]; nothing in a world that does not count them.
    fn lines() -> BTreeMap<String, Moves> {
        BTreeMap::new()
    }
    /// The span begins for the line counts.
    fn reset_lines() {}
}

/// The probe of a real thread.
pub struct ThreadProbe {
    group: PerfGroup,
    preempted: u64,
    cpu: Option<u32>,
}

impl Probe for Native {
    // Reading the time-stamp counter costs 10 to 20 ns, an operation 100 to 500.
    const TICK_EVERY: u32 = 8;
    const REUSE_IN_SPAN: bool = false;
    type State = ThreadProbe;

    fn open() -> ThreadProbe {
        ThreadProbe { group: PerfGroup::open(), preempted: 0, cpu: None }
    }
    fn begin(p: &mut ThreadProbe) {
        p.preempted = rusage().1;
        p.group.enable();
    }
    fn end(p: &mut ThreadProbe) {
        p.group.disable();
        p.preempted = rusage().1 - p.preempted;
        p.cpu = Some(affinity::current_cpu());
    }
    fn read(mut p: ThreadProbe) -> Seen {
        Seen { perf: p.group.read(), preempted: p.preempted, cpu: p.cpu }
    }
    fn cpu_ns() -> u64 {
        thread_cpu_ns()
    }
}

impl Probe for Sim {
    const TICK_EVERY: u32 = 1;
    const REUSE_IN_SPAN: bool = true;
    type State = ();

    fn open() {}
    fn begin((): &mut ()) {}
    fn end((): &mut ()) {}
    fn read((): ()) -> Seen {
        Seen::default()
    }
    fn cpu_ns() -> u64 {
        // A virtual CPU runs one thread and is never taken away: its clock is its CPU time.
        Sim::now()
    }
    fn lines() -> BTreeMap<String, Moves> {
        let counts = Sim::lines().unwrap_or_default();
        counts
            .into_iter()
            .map(|(label, c)| {
                let m = Moves {
                    accesses: c.accesses,
                    moved_near: c.moved_near,
                    moved_far: c.moved_far,
                    upgrades: c.upgrades,
                    memory: c.memory,
                };
                (label.to_string(), m)
            })
            .collect()
    }
    fn reset_lines() {
        Sim::reset_lines()
    }
}
