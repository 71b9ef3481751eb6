// SPDX-License-Identifier: GPL-2.0-only
//! What one sample gave, whatever the world: the harness's own form, from which floor 9 makes a record.

use crate::measure::perf::Reading;
use crate::measure::run::Tally;
use crate::slab::ReuseCount;
use std::collections::BTreeMap;

/// Where one worker ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seated {
    /// CPU of the operating system or of the host file.
    pub cpu: u32,
    /// Its node.
    pub node: u32,
    /// Pinned, read back, and still there at the end.
    pub verified: bool,
}

/// What was seen over time; vectors of one length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Over {
    /// Time since the common start, ns.
    pub t_ns: Vec<u64>,
    /// RCU callbacks queued and not invoked.
    pub rcu_pending: Vec<u64>,
    /// Pages held by slabs.
    pub slab_pages: Vec<u64>,
}

/// Transfers of cache lines of one struct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Accesses.
    pub accesses: u64,
    /// From another CPU of the node.
    pub moved_near: u64,
    /// From a CPU of another node.
    pub moved_far: u64,
    /// Shared lines taken from the others before a store.
    pub upgrades: u64,
    /// From no cache.
    pub memory: u64,
}

/// How long freed objects lay before they were handed out again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReuseSeen {
    /// `warm_up`, `warm_up_and_span`, or `run_of_its_own`.
    pub over: &'static str,
    /// Operations in that time.
    pub operations: u64,
    /// By cache: every event of the CPUs.
    pub caches: BTreeMap<String, ReuseCount>,
    /// Tracepoints only.
    pub traced: Option<Traced>,
    /// Why nothing was seen.
    pub absent: Option<String>,
}

/// What the host's tracepoints add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// Records that did not fit into the buffer.
    pub lost: u64,
    /// By cache: hand-outs and frees of the workload's own threads, interrupts that hit them included.
    pub own: BTreeMap<String, (u64, u64)>,
}

/// What one sample gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// By worker; an error where its workload failed.
    pub tallies: Vec<Result<Tally, String>>,
    /// By worker.
    pub seats: Vec<Seated>,
    /// Counters with kernel names, all CPUs, boot to shutdown.
    pub counters: BTreeMap<String, u64>,
    /// By worker: events of its span.
    pub perf: Vec<BTreeMap<String, Reading>>,
    /// Line transfers per struct in the span (simulator only).
    pub lines: BTreeMap<String, Moves>,
    /// Over time.
    pub over: Over,
    /// Distances of reuse.
    pub reuse: ReuseSeen,
    /// From `call_rcu()` to the call, of callbacks that were followed and called in the span, ns.
    pub callback_ns: Vec<u64>,
    /// Length of grace periods that ended in the span, ns.
    pub grace_period_ns: Vec<u64>,
    /// The kernel configuration.
    pub kconfig: BTreeMap<String, String>,
    /// Balances that did not hold.
    pub errors: Vec<String>,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

impl Outcome {
    /// Time from the first thread's begin to the last one's end, ns.
    pub fn duration_ns(&self) -> u64 {
        let ok = || self.tallies.iter().flatten();
        let begin = ok().map(|t| t.begin).min().unwrap_or(0);
        ok().map(|t| t.end).max().unwrap_or(0).saturating_sub(begin)
    }

    /// Books that threads were taken off their CPUs: a spinning neighbour or the grace-period thread had to wait, which
    /// no kernel's would.
    pub fn book_preemptions(&mut self, n: u64) {
        self.counters.insert("involuntary_context_switches".into(), n);
        if n > 0 {
            self.warnings.push("workers were preempted in their span (involuntary_context_switches)".into());
        }
    }

    /// Books the failures of workers as errors.
    pub fn book_failures(&mut self) {
        for (i, t) in self.tallies.iter().enumerate() {
            if let Err(e) = t {
                self.errors.push(format!("worker {i}: {e}"));
            }
        }
    }
}
