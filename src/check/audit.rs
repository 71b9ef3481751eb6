// SPDX-License-Identifier: GPL-2.0-only
//! Which case notices if one line of the port loses its order: every access stronger than relaxed, and every fence, that the
//! scenarios pass is made weak, one line at a time, and the scenarios that pass it run again until one fails.
//!
//! A line that nothing notices is not shown to be useless: the reasons that are known are in [`NOT_SHOWN`].

use super::log::Op;
use super::world::Site;
use super::{Bound, Request, Shown};
use crate::arch::Fence;
use crate::mm::vma_lock::{Claim, PROTOCOLS, SCENARIOS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Whether an access orders anything.
pub fn has_order(op: Op) -> bool {
    match op {
        Op::Load(o) | Op::Store(o) | Op::Rmw(o) => o != Ordering::Relaxed,
        Op::Fence(Fence::Full | Fence::Read | Fence::Write) => true,
        Op::Failed | Op::Get | Op::Set => false,
    }
}

/// Who noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caught {
    /// Slug of the protocol.
    pub protocol: String,
    /// The scenario, and its case where it has several.
    pub scenario: String,
    /// What went wrong.
    pub message: String,
}

/// A line with an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Where.
    pub site: Site,
    /// What it does there.
    pub op: String,
    /// Who noticed first.
    pub caught: Option<Caught>,
    /// Runs without it that noticed nothing: protocol, scenario.
    pub tried: Vec<(String, String)>,
}

impl Row {
    /// Why nothing noticed, as far as it is known; not known for more lines of `all` than the reason is good for.
    pub fn reason(&self, all: &[Row]) -> Option<&'static str> {
        let file = |r: &Row| r.site.file.rsplit_once("src/").map_or(r.site.file.clone(), |(_, f)| f.to_string());
        let mine = file(self);
        let known = NOT_SHOWN.iter().find(|r| mine == r.file && self.op == r.op)?;
        let alike = all.iter().filter(|r| r.caught.is_none() && r.op == self.op && file(r) == mine).count();
        (alike <= known.lines).then_some(known.why)
    }
}

/// Why the order of a line is not shown to be needed.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// File below `src/`.
    pub file: &'static str,
    /// What its lines do.
    pub op: &'static str,
    /// How many such lines of the file the reason is good for; one more is not known.
    pub lines: usize,
    /// The reason.
    pub why: &'static str,
}

const fn reason(file: &'static str, op: &'static str, lines: usize, why: &'static str) -> Reason {
    Reason { file, op, lines, why }
}

const LOADS: &str = "it keeps a reader's earlier loads out of the memory's next life. A load that returns a store of the \
                     future is load buffering, which the engine has not; herd7 shows that it is needed \
                     (tests/litmus/refcnt.T2+detach-no-acquire)";

const R5: &str = "whoever finds V attached again has E1 of the W1 that came before, and E1 carries vm_mm (herd7 agrees: \
                  tests/litmus/rwsem_keep_seq.T1+r5-no-rmb, +attach-no-wmb). rwsem_detach_wmb_reset_after, which is busted \
                  even so, needs it";

/// The lines that nothing notices, as far as it is known why.
pub const NOT_SHOWN: &[Reason] = &[
    reason(
        "cpu/sched.rs",
        "store release",
        1,
        "a hint to spinners whether to go on; what they find is ordered by the lock's own word, and writers of the scenarios \
         do not spin",
    ),
    reason(
        "cpu/sched.rs",
        "load acquire",
        2,
        "whoever sleeps here tests again when awake, with an acquire of its own: rwsem on the waiter's task or the count, \
         rcuwait on its condition. The kernel has it in schedule() for callers that do not",
    ),
    reason(
        "cpu/sched.rs",
        "smp_mb",
        2,
        "every waker here has a full barrier before: rcuwait_wake_up() its own, a waker of rwsem that of wake_q_add(). The \
         kernel has it in try_to_wake_up() for callers that have not",
    ),
    reason(
        "cpu/wake_q.rs",
        "smp_mb",
        1,
        "it orders for the second of two wakers that queue one task; a waiter of an rwsem is taken off its list, under \
         wait_lock, by one. try_to_wake_up() has a full barrier behind it",
    ),
    reason("mm/vma_lock/refcnt.rs", "smp_rmb", 1, LOADS),
    reason("mm/vma_lock/refcnt_exclude.rs", "smp_rmb", 1, LOADS),
    reason("sync/refcount.rs", "smp_rmb", 1, LOADS),
    reason("mm/vma_lock/rwsem.rs", "smp_rmb", 1, R5),
    reason("mm/vma_lock/rwsem.rs", "smp_wmb", 1, R5),
    reason(
        "sync/qspinlock.rs",
        "rmw acquire",
        1,
        "the load behind it is an acquire too, and its value is what decides; with that one weak it is noticed",
    ),
    reason(
        "sync/rcuwait.rs",
        "store release",
        1,
        "what it publishes, the task, was there before any of the scenario's CPUs; the full barrier of set_current_state() \
         follows",
    ),
    reason(
        "sync/rcuwait.rs",
        "smp_rmb",
        1,
        "it stands for an address dependency (PORT); nothing behind the pointer is ever new: tasks live as long as the kernel",
    ),
];

/// Protocols tried for a line in one scenario, at most: a shared line is the same in all.
const TRIES: usize = 4;

/// Scenarios that the model checker looks at, `X` the audit's own cases, which have three threads or two writers and are looked
/// at one preemption less far.
pub const SCENARIOS_WITH_ORDER: [&str; 5] = ["T0", "T1", "T2", "T7", "X"];

/// Whether `protocol` declares that it holds in `scenario`.
fn holds(protocol: usize, scenario: &str) -> bool {
    let at = SCENARIOS.iter().position(|s| s.0 == scenario);
    at.is_none_or(|at| PROTOCOLS[protocol].claims[at] == Claim::Holds)
}

/// Does pieces of work, in any order and at the same time if it can; the results in the order of the requests.
pub type Work<'a> = &'a mut dyn FnMut(&[Request]) -> Result<Vec<Shown>, String>;

/// Audits the lines that `protocols` pass. `found` is told how many lines there are, and how many are left after each
/// round.
///
/// # Errors
/// A piece of work that could not be done, or a scenario that fails with nothing taken away.
pub fn audit(
    protocols: &[String],
    bound: Bound,
    run: Work<'_>,
    found: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Row>, String> {
    let request = |protocol: &str, scenario: &str| Request {
        protocol: protocol.into(),
        scenario: scenario.into(),
        bound: match bound.preemptions {
            Some(n) if scenario == "X" => Bound { preemptions: Some(n - 1), ..bound },
            _ => bound,
        },
        weaken: None,
        survey: true,
    };
    let mut surveys = Vec::new();
    for (i, p) in PROTOCOLS.iter().enumerate().filter(|(_, p)| protocols.iter().any(|n| n == p.name)) {
        surveys.extend(SCENARIOS_WITH_ORDER.iter().filter(|s| holds(i, s)).map(|s| request(p.name, s)));
    }
    // The cases of the audit hold for whoever holds in T0 to T2.
    let broken = |r: &Request| {
        let at = PROTOCOLS.iter().position(|p| p.name == r.protocol).expect("it is from the list");
        r.scenario == "X"
            && ["T0", "T1", "T2"]
                .iter()
                .any(|s| PROTOCOLS[at].claims[s[1..].parse::<usize>().expect("a digit")] == Claim::Busted)
    };
    surveys.retain(|r| !broken(r));
    let mut lines: BTreeMap<Site, (String, Vec<(u64, Request)>)> = BTreeMap::new();
    for (r, s) in surveys.iter().zip(run(&surveys)?) {
        if s.wrong.is_some() {
            return Err(format!("{} {}: {} before anything was weakened", r.scenario, r.protocol, s.shown));
        }
        // The scenarios' own small kernel is not what is audited.
        for (site, op) in s.sites.into_iter().filter(|(site, _)| !site.file.contains("src/check/")) {
            let weak = Request { weaken: Some(site.clone()), survey: false, ..r.clone() };
            lines.entry(site).or_insert((op, Vec::new())).1.push((s.executions, weak));
        }
    }
    let mut rows: Vec<(Row, Vec<Request>)> = Vec::new();
    for (site, (op, mut tries)) in lines {
        tries.sort_by_key(|t| t.0);
        let mut of: BTreeMap<String, usize> = BTreeMap::new();
        let tries = tries.into_iter().map(|t| t.1).filter(|r| {
            let n = of.entry(r.scenario.clone()).or_default();
            *n += 1;
            *n <= TRIES
        });
        let mut tries: Vec<_> = tries.collect();
        tries.reverse();
        rows.push((Row { site, op, caught: None, tried: Vec::new() }, tries));
    }
    let all = rows.len();
    loop {
        let mut round: Vec<(usize, Request)> = Vec::new();
        for (i, (row, tries)) in rows.iter_mut().enumerate() {
            if row.caught.is_none()
                && let Some(r) = tries.pop()
            {
                round.push((i, r));
            }
        }
        found(all, rows.iter().filter(|r| r.0.caught.is_none()).count());
        if round.is_empty() {
            break;
        }
        let requests: Vec<_> = round.iter().map(|r| r.1.clone()).collect();
        for ((i, r), s) in round.into_iter().zip(run(&requests)?) {
            let row = &mut rows[i].0;
            match s.wrong {
                Some(w) => {
                    let scenario = format!("{} {}", r.scenario, w.case).trim().to_string();
                    row.caught = Some(Caught { protocol: r.protocol, scenario, message: w.message });
                }
                None => row.tried.push((r.protocol, r.scenario)),
            }
        }
    }
    Ok(rows.into_iter().map(|r| r.0).collect())
}
