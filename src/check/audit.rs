// SPDX-License-Identifier: GPL-2.0-only
//! Which case notices if one line of the port loses its order: every access stronger than relaxed, and every fence, that the
//! cases pass is made weak, one line at a time, and the cases that pass it run again until one fails.
//!
//! A line that nothing notices is not shown to be useless: the reasons that are known are in [`NOT_SHOWN`].

use super::log::Op;
use super::world::Site;
use super::{Bound, Request, Shown, case_names, locks};
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

const WAKERS: &str = "every waker here has a full barrier before: rcuwait_wake_up() its own, a waker of rwsem that of \
                      wake_q_add(). The kernel has it in try_to_wake_up() for callers that have not";

const OSQ: &str = "who spins is decided by one word; what a spinner finds is ordered by the lock's own. With more spinners than \
                   the case has, it orders the queue: model/osq_lock.rs";

const ATTACH: &str = "the reference asks for more than is needed: whoever finds V attached again has E1 of the W1 that came \
                      before, and E1 carries vm_mm (herd7 agrees: tests/litmus/rwsem_keep_seq.T1+attach-no-wmb, \
                      tests/litmus/rwsem_detach_wmb_reset_after.T1+attach-no-wmb)";

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
    reason("cpu/sched.rs", "smp_mb", 1, WAKERS),
    reason("cpu/sched.rs", "rmw full", 1, WAKERS),
    reason(
        "cpu/wake_q.rs",
        "smp_mb",
        1,
        "it orders for the second of two wakers that queue one task; a waiter of an rwsem is taken off its list, under \
         wait_lock, by one. try_to_wake_up() has a full barrier behind it",
    ),
    reason("mm/vma_lock/refcnt.rs", "smp_rmb", 1, LOADS),
    reason("mm/vma_lock/refcnt_exclude.rs", "smp_rmb", 1, LOADS),
    reason("mm/vma_lock/rwsem.rs", "smp_wmb", 1, ATTACH),
    reason("sync/osq_lock.rs", "rmw full", 1, OSQ),
    reason("sync/osq_lock.rs", "rmw release", 1, OSQ),
    reason(
        "sync/qspinlock.rs",
        "rmw release",
        1,
        "PORT: relaxed in C, a release because that is the same move on x86-64; whoever takes the lock next meets the holder's \
         unlock",
    ),
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
    reason(
        "sync/rwsem.rs",
        "rmw full",
        3,
        "where a reader takes its name out of owner: a hint, nothing relies on it. Where it queues: one word decides who sees \
         whom. Where readers are granted the lock: it takes over what the last writer released, which matters where a third \
         CPU grants (case two waiters), and that takes more preemptions than are looked at",
    ),
];

/// Protocols tried first for a line in one case: a shared line is the same in most. Where none of them notices a line of a
/// protocol's own, all others follow; but in `X` they do not differ in what it is about.
const FIRST: usize = 4;

/// Scenarios that the model checker looks at, `X` the audit's own cases, which have three threads or two writers and are looked
/// at one preemption less far; beside them the locks by themselves ([`locks`]).
pub const SCENARIOS_WITH_ORDER: [&str; 5] = ["T0", "T1", "T2", "T7", "X"];

/// A full read-modify-write passes as its fences first, and as nothing else where it fails.
const FULL: &str = "rmw full";

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
    let request = |protocol: &str, scenario: &str, case: &str| {
        let more_cpus = locks::CASES.iter().any(|c| scenario == locks::ALONE && c.what == case && c.parts.len() > 2);
        // Of locks by themselves there are few executions, and a grant after a downgrade shows at one more.
        let preemptions = bound.preemptions.map(|n| match scenario {
            locks::ALONE if !more_cpus => n + 1,
            locks::ALONE | "X" => n - 1,
            _ => n,
        });
        let all = Request::new(protocol, scenario, Bound { preemptions, ..bound });
        Request { case: Some(case.into()), survey: true, ..all }
    };
    // The cases of the audit hold for whoever holds in T0 to T2.
    let looked_at = |protocol: usize, scenario: &str| match scenario {
        "X" => PROTOCOLS[protocol].claims[..3].iter().all(|c| *c != Claim::Busted),
        scenario => holds(protocol, scenario),
    };
    let mut surveys: Vec<_> = locks::CASES.iter().map(|c| request("", locks::ALONE, c.what)).collect();
    for (i, p) in PROTOCOLS.iter().enumerate().filter(|(_, p)| protocols.iter().any(|n| n == p.name)) {
        for s in SCENARIOS_WITH_ORDER.iter().filter(|s| looked_at(i, s)) {
            surveys.extend(case_names(p.name, s).into_iter().map(|case| request(p.name, s, case)));
        }
    }
    let mut lines: BTreeMap<Site, (String, Vec<(u64, Request)>)> = BTreeMap::new();
    for (r, s) in surveys.iter().zip(run(&surveys)?) {
        if s.wrong.is_some() {
            return Err(format!("{} {}: busted before anything was weakened", r.scenario, r.protocol));
        }
        // The scenarios' own small kernel is not what is audited.
        let port = |site: &Site| !site.file.contains("src/check/");
        for (site, op) in s.sites.into_iter().filter(|(site, _)| port(site)) {
            let weak = Request { weaken: Some(site.clone()), survey: false, ..r.clone() };
            let line = lines.entry(site).or_insert((op.clone(), Vec::new()));
            if op == FULL {
                line.0 = op;
            }
            line.1.push((s.executions, weak));
        }
    }
    let mut rows: Vec<(Row, Vec<Request>)> = Vec::new();
    for (site, (op, mut tries)) in lines {
        tries.sort_by_key(|t| (t.1.scenario != locks::ALONE, t.0));
        let mut of: BTreeMap<(String, Option<String>), usize> = BTreeMap::new();
        let (first, mut others): (Vec<_>, Vec<_>) = tries.into_iter().map(|t| t.1).partition(|r| {
            let n = of.entry((r.scenario.clone(), r.case.clone())).or_default();
            *n += 1;
            *n <= FIRST
        });
        others.retain(|r| r.scenario != "X" && site.file.contains("src/mm/vma_lock/"));
        let tries = first.into_iter().chain(others).rev().collect();
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
            let scenario = format!("{} {}", r.scenario, r.case.unwrap_or_default()).trim().to_string();
            match s.wrong {
                Some(w) => row.caught = Some(Caught { protocol: r.protocol, scenario, message: w.message }),
                None => row.tried.push((r.protocol, scenario)),
            }
        }
    }
    Ok(rows.into_iter().map(|r| r.0).collect())
}
