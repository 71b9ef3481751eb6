// SPDX-License-Identifier: GPL-2.0-only
//! Floor 8: every lock protocol through every scenario of the thread, with its own code, and whether it comes out as it
//! declares ([`VmaLock::CLAIMS`]).
//!
//! Two engines. The model checker runs the cases in which stores are seen out of order: every interleaving within a bound
//! on preemptions, and every stale value that the orders allow. The others, in which two address spaces take turns at one
//! object, need only the right moment: [`stepped`] runs them as scripts in which every load returns the newest value, so that
//! what fails there fails on any machine. [`slot`] is the small kernel they run on and says what is real in it;
//! [`scenarios`] is the table. Beside the scenarios, [`whole`] runs everything in the simulator, in interleavings that are
//! drawn.
//!
//! What goes wrong is told step by step ([`log`]). [`audit`] takes the orders of the code away one line at a time, without
//! touching the source, and says which case notices.
//!
//! It cannot tell: more than its bound ([`Bound`]); load buffering and what separate SeqCst accesses are, which the engine does
//! not have (`model/litmus.rs`); anything about the maple tree, the slab allocator and RCU beyond what `slot` says of them
//! and what `whole` happens to meet.

pub mod audit;
#[cfg(test)]
mod broken;
pub mod locks;
pub mod log;
#[cfg(test)]
mod orderings;
pub mod scenarios;
pub mod slot;
pub(crate) mod small_slab;
pub mod stepped;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torture;
pub mod whole;
#[cfg(test)]
mod worked_example;
pub mod world;

use self::log::Step;
use self::scenarios::{Case, Engine, REUSES, audit_cases, cases, shown_by};
use self::slot::Slot;
use self::stepped::Stepped;
use self::world::{Checked, Site};
use crate::arch::{Arch, Sim};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::mm::vma_lock::{Claim, Reuse, SCENARIOS, VmaLock};
use crate::mm::vmstat::VmEvent;
use crate::mm::{Kconfig, Variant, variant};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How far the model checker goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Preemptions of a thread that could have gone on; none: no bound.
    pub preemptions: Option<usize>,
    /// Whether the scripts T3 to T5 go before the model checker as well; T4 and T5 of a protocol that is busted in T3 do not.
    pub scripts: bool,
    /// Runs of the whole port, each another interleaving; a protocol that is to be caught has twenty times as many.
    pub seeds: u64,
    /// The first of them.
    #[serde(default)]
    pub first: u64,
    /// Seconds for each number of preemptions in a case, after which that case ends ([`Unfinished`]); none: to its end.
    #[serde(default)]
    pub seconds: Option<u64>,
}

impl Bound {
    /// The usual one: a minute or two for all.
    pub const USUAL: Bound = Bound { preemptions: Some(3), scripts: false, seeds: 256, first: 0, seconds: None };
    /// For tests.
    pub const QUICK: Bound = Bound { preemptions: Some(2), scripts: false, seeds: 8, first: 0, seconds: None };
    /// `--deep`.
    pub const DEEP: Bound = Bound { preemptions: Some(5), scripts: true, seeds: 5_000, first: 0, seconds: Some(30) };

    /// What it leaves unchecked.
    pub fn leaves(self) -> String {
        let scripts = match self.scripts {
            true => "T6, T8 and T9, and of T4 and T5 where T3 is busted,",
            false => "T3 to T6, T8 and T9",
        };
        let scripts = format!("; of {scripts} all but a script or two");
        let whole = format!("of the whole port all but {} interleavings", self.seeds);
        match self.preemptions {
            Some(n) => format!("executions with more than {n} preemptions{scripts}; {whole}"),
            None => format!("what the engine does not have{scripts}; {whole}"),
        }
    }
}

/// One piece of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Slug of the protocol.
    pub protocol: String,
    /// `T0` to `T9`; `W`: the whole port ([`whole`]); `X` and `L`: the cases of the audit.
    pub scenario: String,
    /// One case of it; none: all.
    #[serde(default)]
    pub case: Option<String>,
    /// How far.
    pub bound: Bound,
    /// A line whose accesses lose their order.
    #[serde(default)]
    pub weaken: Option<Site>,
    /// Whether to say which lines with an order were passed.
    #[serde(default)]
    pub survey: bool,
    /// Whether memory that must wait for a grace period does not: what the grace period is for (tests).
    #[serde(default)]
    pub at_once: bool,
}

impl Request {
    /// All cases of a scenario as they are.
    pub fn new(protocol: &str, scenario: &str, bound: Bound) -> Request {
        let (protocol, scenario) = (protocol.into(), scenario.into());
        Request { protocol, scenario, case: None, bound, weaken: None, survey: false, at_once: false }
    }
}

/// How a protocol failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// Which case of the scenario; empty where it has one.
    pub case: String,
    /// Which invariant, or that something races.
    pub message: String,
    /// Preemptions that it takes, where the model checker found it; it tried fewer first.
    pub preemptions: Option<usize>,
    /// The execution.
    pub steps: Vec<Step>,
}

/// A case that was not gone through as far as the bound says: its time was over ([`Bound::seconds`]). All executions with fewer
/// preemptions were looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Which case of the scenario; empty where it has one.
    pub case: String,
    /// Preemptions of the executions that it was at.
    pub preemptions: Option<usize>,
    /// Of those, how many were looked at; the ones with fewer preemptions come again among them.
    pub executions: u64,
}

/// What a scenario showed of a protocol.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// Slug of the protocol.
    pub protocol: String,
    /// The scenario.
    pub scenario: String,
    /// What the protocol declares; none where that says nothing of this scenario (`W` only).
    pub declared: Option<Claim>,
    /// What was shown; none where it did not come to that, or ended by something that is no invariant.
    pub shown: Option<Claim>,
    /// Executions looked at; of `W`, runs.
    pub executions: u64,
    /// Time it took, ms.
    pub ms: u64,
    /// How it went wrong.
    pub wrong: Option<Wrong>,
    /// What the bound promised and time did not allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<Unfinished>,
    /// Lines with an order that were passed, and what they do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<(Site, String)>,
}

impl Shown {
    /// Whether the protocol came out as it declares, and where it is busted by what the scenario is about.
    pub fn as_declared(&self) -> bool {
        self.shown.is_some() && self.declared.is_none_or(|d| self.shown == Some(d)) && self.by_what_it_is_about()
    }

    /// Whether the invariant that failed, if any, is one of those that the scenario shows.
    pub fn by_what_it_is_about(&self) -> bool {
        let invariant = |w: &Wrong| w.message.split(':').next().unwrap_or_default().to_string();
        self.wrong.as_ref().is_none_or(|w| shown_by(&self.scenario).contains(&invariant(w).as_str()))
    }
}

/// Accesses of an execution; one that takes more is busted: it is said to wait for ever (I10).
const BRANCHES: usize = 20_000;

/// What a run of a case needs besides the case.
struct Run<'a> {
    request: &'a Request,
    /// What is known so far, for whoever has to tell of a failure that ends the process.
    so_far: &'a Arc<Mutex<Shown>>,
    sites: Arc<Mutex<BTreeMap<Site, String>>>,
}

/// A CPU whose writers, where they must wait, sleep at once: spinning only multiplies interleavings.
fn patient<W: Arch>(cpu: Cpu<W>) -> Cpu<W> {
    cpu.softirq.ksoftirqd.set(true);
    cpu
}

fn quiet<W: Arch>(cpu: &Cpu<W>) {
    assert_eq!(cpu.counters.get(VmEvent::Warn), 0, "I8: something warns");
}

/// What is said of two accesses that nothing orders, to a word that a lock protects.
const RACES: &str = "two accesses that nothing orders";

/// The invariant of slot.rs that a race on a ghost word is about.
fn invariant_of(word: &str) -> &'static str {
    match word {
        "owner" => "I1: attached in another mm, or not at all",
        "claim" => "I3: write-locked or not",
        "generation" => "I4: another life",
        "payload" => "I5: changing",
        "anon_vma" => "I11: what a reader stored",
        _ => "a word that a lock protects",
    }
}

/// Whether a message as people read it is that of an invariant. Whatever else ends an execution says nothing of the protocol:
/// the small kernel is wrong, or something under it.
fn is_violation(message: &str) -> bool {
    message.strip_prefix('I').is_some_and(|s| s.starts_with(|c: char| c.is_ascii_digit())) || message.ends_with(RACES)
}

/// The text of a panic.
pub fn text(e: &(dyn std::any::Any + Send)) -> String {
    let s = e.downcast_ref::<String>().map(String::as_str).or_else(|| e.downcast_ref::<&str>().copied());
    s.unwrap_or("a panic without text").into()
}

/// As people read it.
fn told(s: &str) -> String {
    let s = s.trim();
    // What was to hold is behind what an assertion says of itself.
    let s = s.strip_prefix("assertion").and_then(|a| a.split_once("failed: ")).map_or(s, |(_, what)| what);
    // What the engine says of two accesses to a word that nothing orders.
    if s.starts_with("Causality violation") {
        return RACES.into();
    }
    if s.contains("exceeded maximum number of branches") || s.starts_with("deadlock") {
        return "I10: somebody waits for ever".into();
    }
    s.lines().next().unwrap_or("").into()
}

/// What one CPU does.
type PartOn<S> = fn(&Cpu<Checked>, &S);
/// What CPUs share: what must hold of it when they are done.
trait AtRest: 'static {
    /// # Errors
    /// What does not.
    fn at_rest(&self) -> Result<(), String>;
}

impl<W: Arch, L: VmaLock> AtRest for Slot<W, L> {
    fn at_rest(&self) -> Result<(), String> {
        self.quiescent()
    }
}

/// Locks by themselves: each case says by its own last step.
impl AtRest for locks::Alone {
    fn at_rest(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What the CPUs share, made by CPU 0.
type SetUp<S> = Arc<dyn Fn(&Cpu<Checked>) -> Box<S> + Send + Sync>;

impl Run<'_> {
    fn asks_for(&self, case: &str) -> bool {
        self.request.case.as_deref().is_none_or(|c| c == case)
    }

    fn begins(&self, case: &str, preemptions: Option<usize>) {
        let mut s = self.so_far.lock().unwrap_or_else(|e| e.into_inner());
        s.wrong = Some(Wrong { case: case.into(), message: String::new(), preemptions, steps: Vec::new() });
    }

    /// Every interleaving within the bound, with fewer preemptions first. CPU 0 sets up and plays the first part.
    fn exhaustive<S: AtRest>(&self, what: &str, parts: &[PartOn<S>], set_up: SetUp<S>) -> Result<(), String> {
        let last = self.request.bound.preemptions;
        let bounds = (0..last.unwrap_or(3)).map(Some).chain([last]);
        world::weaken(self.request.weaken.clone());
        let before = self.so_far.lock().unwrap_or_else(|e| e.into_inner()).executions;
        let mut result = Ok(());
        for bound in bounds {
            self.begins(what, bound);
            // A bound includes those below it.
            self.so_far.lock().unwrap_or_else(|e| e.into_inner()).executions = before;
            let begun = Instant::now();
            result = self.explore(parts.to_vec(), set_up.clone(), bound);
            if result.is_err() {
                break;
            }
            if self.request.bound.seconds.is_some_and(|s| begun.elapsed().as_secs() >= s) {
                let mut s = self.so_far.lock().unwrap_or_else(|e| e.into_inner());
                let executions = s.executions - before;
                s.unfinished.push(Unfinished { case: what.into(), preemptions: bound, executions });
                break;
            }
        }
        world::weaken(None);
        result
    }

    fn explore<S: AtRest>(&self, parts: Vec<PartOn<S>>, set_up: SetUp<S>, bound: Option<usize>) -> Result<(), String> {
        let so_far = self.so_far.clone();
        let sites = self.request.survey.then(|| self.sites.clone());
        let mut b = ::loom::model::Builder::new();
        b.preemption_bound = bound;
        b.max_branches = BRANCHES;
        b.max_duration = self.request.bound.seconds.map(Duration::from_secs);
        // How often it looks at the time.
        b.checkpoint_interval = 1000;
        catch_unwind(AssertUnwindSafe(|| {
            b.check(move || {
                so_far.lock().unwrap_or_else(|e| e.into_inner()).executions += 1;
                log::begin();
                world::i_am(0);
                let set = for_test_set::<Checked>(parts.len() as u32);
                let cpu = patient(set.cpu(0));
                let s: Arc<Box<S>> = Arc::new(set_up(&cpu));
                let others: Vec<_> = (1..)
                    .zip(&parts[1..])
                    .map(|(id, part)| {
                        let (set, s, part) = (set.clone(), s.clone(), *part);
                        ::loom::thread::spawn(move || {
                            world::i_am(id);
                            let cpu = patient(set.cpu(id));
                            part(&cpu, &s);
                            quiet(&cpu);
                        })
                    })
                    .collect();
                parts[0](&cpu, &s);
                others.into_iter().for_each(|t| t.join().expect("a panic ends the model"));
                quiet(&cpu);
                s.at_rest().unwrap_or_else(|e| panic!("{e}"));
                if let Some(sites) = &sites {
                    let mut sites = sites.lock().expect("one thread");
                    for (at, op) in log::sites().into_iter().filter(|(_, op)| audit::has_order(*op)) {
                        let name = sites.entry(Site::of(at)).or_insert_with(|| op.name().into());
                        // It passes as its fences first.
                        if op == log::Op::Rmw(Ordering::SeqCst) {
                            *name = op.name().into();
                        }
                    }
                }
            });
        }))
        .map_err(|e| text(&*e))
    }

    /// A case of a protocol.
    fn exhaustive_case<L: VmaLock>(&self, c: &Case<Checked, L>) -> Result<(), String> {
        let (mms, at_once) = (c.mms, self.request.at_once);
        let mut parts = vec![c.writer, c.reader];
        parts.extend(c.third);
        self.exhaustive(c.what, &parts, Arc::new(move |cpu| Slot::new(cpu, mms, at_once, |_, _, _| ())))
    }

    /// The one script.
    fn stepped<L: VmaLock>(&self, case: &Case<Stepped, L>) -> Result<(), String> {
        self.begins(case.what, None);
        log::begin();
        let set = for_test_set::<Stepped>(2);
        let s = Slot::<Stepped, L>::new(&patient(set.cpu(0)), case.mms, self.request.at_once, stepped::poison);
        let part = |id: u32, f: scenarios::Part<Stepped, L>| {
            let (set, s) = (&set, &s);
            Box::new(move || {
                let cpu = patient(set.cpu(id));
                f(&cpu, s);
                quiet(&cpu);
            })
        };
        let parts: Vec<stepped::Part<'_>> =
            vec![(case.writer_stops, part(0, case.writer)), (case.reader_stops, part(1, case.reader))];
        let result = stepped::run(parts).and_then(|()| s.quiescent());
        self.so_far.lock().unwrap_or_else(|e| e.into_inner()).executions += 1;
        result
    }

    fn all<L: VmaLock>(&self) -> Result<(), String> {
        let id = self.request.scenario.as_str();
        if id == "X" {
            let of = audit_cases::<Checked, L>();
            return of.iter().filter(|c| self.asks_for(c.what)).try_for_each(|c| self.exhaustive_case(c));
        }
        // Every interleaving of T4 or T5 holds T3's moment, too: whoever is busted there would be busted by it here.
        let by_t3 = SCENARIOS.iter().zip(L::CLAIMS).any(|(s, c)| s.0 == "T3" && c == Claim::Busted);
        let scripts = self.request.bound.scripts && (id == "T3" || matches!(id, "T4" | "T5") && !by_t3);
        // What takes no time comes first.
        let asked = |of: &str, what: &str| of == id && self.asks_for(what);
        for c in cases::<Stepped, L>().iter().filter(|c| asked(c.id, c.what) && c.engine == Engine::Stepped) {
            self.stepped(c)?;
        }
        let exhaustive = |e: Engine| scripts || e == Engine::Exhaustive;
        for c in cases::<Checked, L>().iter().filter(|c| asked(c.id, c.what) && exhaustive(c.engine)) {
            self.exhaustive_case(c)?;
        }
        Ok(())
    }
}

/// What is known before a request is begun.
pub fn nothing_yet(request: &Request) -> Shown {
    Shown {
        protocol: request.protocol.clone(),
        scenario: request.scenario.clone(),
        declared: None,
        shown: None,
        executions: 0,
        ms: 0,
        wrong: None,
        unfinished: Vec::new(),
        sites: Vec::new(),
    }
}

fn show_one<L: VmaLock>(request: &Request, so_far: &Arc<Mutex<Shown>>) {
    let at = SCENARIOS.iter().position(|s| s.0 == request.scenario);
    let declared = at.map_or(Claim::Holds, |at| L::CLAIMS[at]);
    so_far.lock().expect("nobody else yet").declared = Some(declared);
    timed(request, so_far, |run| run.all::<L>());
    let mut s = so_far.lock().unwrap_or_else(|e| e.into_inner());
    // Nobody met another life in it: each waited for the grace period, and the reader's section was over by then.
    if s.shown == Some(Claim::Holds) && matches!(L::REUSE, Reuse::Forbids(_)) && REUSES.contains(&s.scenario.as_str()) {
        s.shown = Some(Claim::Impossible);
    }
}

/// Runs and writes down what came of it.
fn timed(request: &Request, so_far: &Arc<Mutex<Shown>>, f: impl FnOnce(&Run<'_>) -> Result<(), String>) {
    let before = log::current();
    log::set_current(Some(Arc::default()));
    let t = Instant::now();
    let run = Run { request, so_far, sites: Arc::default() };
    let result = f(&run);
    let mut s = so_far.lock().unwrap_or_else(|e| e.into_inner());
    s.ms = t.elapsed().as_millis() as u64;
    s.sites = run.sites.lock().expect("one thread").clone().into_iter().collect();
    match result {
        Ok(()) => {
            s.wrong = None;
            s.shown = Some(Claim::Holds);
        }
        Err(message) => failed(&mut s, message),
    }
    log::set_current(before);
}

/// The locks by themselves.
fn show_locks(request: &Request, so_far: &Arc<Mutex<Shown>>) {
    so_far.lock().expect("nobody else yet").declared = Some(Claim::Holds);
    timed(request, so_far, |run| {
        let asked = locks::CASES.iter().filter(|c| run.asks_for(c.what));
        asked.into_iter().try_for_each(|c| run.exhaustive(c.what, c.parts, Arc::new(|cpu| c.begin(cpu))))
    });
}

/// The cases that the model checker looks at in `scenario` of `protocol`; empty strings for those without a name.
pub fn case_names(protocol: &str, scenario: &str) -> Vec<&'static str> {
    fn of<L: VmaLock>(scenario: &str) -> Vec<&'static str> {
        let cases = if scenario == "X" { audit_cases::<Checked, L>() } else { cases() };
        let asked = cases.iter().filter(|c| c.id == scenario && c.engine == Engine::Exhaustive);
        asked.map(|c| c.what).collect()
    }
    if scenario == locks::ALONE {
        return locks::CASES.iter().map(|c| c.what).collect();
    }
    crate::protocols!(__for_protocol(protocol, of(scenario)))
}

/// What a request shows of `L`, in this process.
#[cfg(test)]
fn shown_of<L: VmaLock>(request: &Request) -> Shown {
    let so_far = Arc::new(Mutex::new(nothing_yet(request)));
    show_one::<L>(request, &so_far);
    let s = so_far.lock().unwrap_or_else(|e| e.into_inner());
    s.clone()
}

/// Completes what is known when an execution failed; on the thread that it failed on, or on that of [`show`].
pub fn failed(s: &mut Shown, message: String) {
    let message = told(&message);
    s.shown = is_violation(&message).then_some(Claim::Busted);
    if let Some(w) = &mut s.wrong {
        w.steps = log::steps();
        w.message = match w.steps.last() {
            Some(last) if message == RACES => format!("{}: {RACES}", invariant_of(&last.word)),
            _ => message,
        };
    }
}

/// Calls a function for the protocol of the list that has this name.
#[macro_export]
#[doc(hidden)]
macro_rules! __for_protocol {
    (($name:expr, $f:ident $args:tt) $($L:ty,)*) => {
        match $name {
            $(name if name == <$L as $crate::mm::vma_lock::VmaLock>::NAME => $f::<$L> $args,)*
            name => panic!("no protocol is named '{name}'"),
        }
    };
}

/// Calls a function for each protocol of the list.
#[macro_export]
#[doc(hidden)]
macro_rules! __for_each_protocol {
    (($f:ident $args:tt) $($L:ty,)*) => { $( $f::<$L> $args; )* };
}

/// The whole port under this protocol.
fn show_whole<K: Kconfig<A = Sim>>(request: &Request, so_far: &Arc<Mutex<Shown>>) {
    let known = || so_far.lock().unwrap_or_else(|e| e.into_inner());
    known().declared = whole::declared::<K::Lock>();
    let t = Instant::now();
    let result = whole::run::<K>(request.bound.first, request.bound.seeds, &mut |case| {
        let mut s = known();
        s.executions += 1;
        s.wrong = Some(Wrong { case, message: String::new(), preemptions: None, steps: Vec::new() });
    });
    let mut s = known();
    s.ms = t.elapsed().as_millis() as u64;
    match result {
        Ok(()) => {
            s.wrong = None;
            s.shown = Some(Claim::Holds);
        }
        Err(message) => failed(&mut s, message),
    }
}

/// Does a piece of work; `so_far` has at each moment what is known, for a process that ends where something fails.
///
/// # Panics
/// Where no protocol has the name; inside the library's tests also for the whole port under one that no named kernel has.
pub fn show(request: &Request, so_far: &Arc<Mutex<Shown>>) {
    if request.scenario == whole::WHOLE {
        let of = |v: &Variant| v.protocol == request.protocol;
        let v = variant::all().into_iter().find(of).expect("a protocol of the list");
        return crate::with_variant!(&v, Sim, K => show_whole::<K>(request, so_far));
    }
    if request.scenario == locks::ALONE {
        return show_locks(request, so_far);
    }
    crate::protocols!(__for_protocol(request.protocol.as_str(), show_one(request, so_far)));
}
