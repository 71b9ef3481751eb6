// SPDX-License-Identifier: GPL-2.0-only
//! Every per-VMA lock protocol against every scenario, its own code, and the outcome against what it declares
//! (`VmaLock::CLAIMS`), in both directions: what is said to hold must hold in every execution looked at, and what is
//! said to be busted must be caught.
//!
//! [`scenarios`] is the table, [`slot`] the small kernel that it runs on, [`stepped`] the world of the scripts; the other
//! engine is the model checker. It explores two preemptions, which is less than everything: a "holds" of its is a "holds"
//! within that bound.
//!
//! `FAULTLINE_DEEP=1` explores three preemptions, and puts the scripts T3 to T5 before the model checker as well, where they
//! must come out the same: hours.
//!
//! Whether it would notice anything is not taken on trust: protocols that hold run again with one kind of order taken away
//! (`Faulty`), and must then fail.

mod scenarios;
mod slot;
mod stepped;

use self::scenarios::{Case, Engine, cases, doubts};
use self::slot::Slot;
use self::stepped::Stepped;
use super::{Fault, Faulty};
use crate::arch::Arch;
use crate::arch::loom::Loom;
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::mm::vma_lock::refcnt::Refcnt;
use crate::mm::vma_lock::refcnt_exclude::RefcntExclude;
use crate::mm::vma_lock::rwsem_detach_locked::RwsemDetachLockedReset;
use crate::mm::vma_lock::rwsem_separate::RwsemSeparate;
use crate::mm::vma_lock::{Claim, PROTOCOLS, SCENARIOS, VmaLock};
use crate::mm::vmstat::VmEvent;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn deep() -> bool {
    std::env::var_os("FAULTLINE_DEEP").is_some()
}

fn preemptions() -> usize {
    if deep() { 3 } else { 2 }
}

/// What a run of a case showed.
struct Shown {
    /// Executions looked at.
    runs: u64,
    /// How the first that failed did.
    wrong: Option<String>,
}

/// A CPU whose writers, where they must wait, sleep at once: spinning only multiplies interleavings.
fn patient<W: Arch>(cpu: Cpu<W>) -> Cpu<W> {
    cpu.softirq.ksoftirqd.set(true);
    cpu
}

fn quiet<W: Arch>(cpu: &Cpu<W>) {
    assert_eq!(cpu.counters.get(VmEvent::Warn), 0, "a condition that must not be");
}

/// Every interleaving within the bound, in a world of the model checker's.
fn exhaustive<W: Arch, L: VmaLock>(case: &Case<W, L>) -> Shown {
    let runs = Arc::new(AtomicU64::new(0));
    let count = runs.clone();
    let (mms, reader, writer) = (case.mms, case.reader, case.writer);
    let mut b = ::loom::model::Builder::new();
    b.preemption_bound = Some(preemptions());
    b.max_branches = 20_000;
    let explored = catch_unwind(AssertUnwindSafe(|| {
        b.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let set = for_test_set::<W>(2);
            let cpu = patient(set.cpu(0));
            let s: Arc<Box<Slot<W, L>>> = Arc::new(Slot::new(&cpu, mms, |_, _, _| ()));
            let t = {
                let (set, s) = (set.clone(), s.clone());
                ::loom::thread::spawn(move || {
                    let cpu = patient(set.cpu(1));
                    reader(&cpu, &s);
                    quiet(&cpu);
                })
            };
            writer(&cpu, &s);
            t.join().expect("a panic ends the model");
            quiet(&cpu);
        });
    }));
    Shown { runs: runs.load(Ordering::Relaxed), wrong: explored.err().map(text) }
}

/// The one script.
fn stepped<L: VmaLock>(case: &Case<Stepped, L>) -> Shown {
    let set = for_test_set::<Stepped>(2);
    let s = Slot::<Stepped, L>::new(&patient(set.cpu(0)), case.mms, stepped::poison);
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
    Shown { runs: 1, wrong: stepped::run(parts).err() }
}

fn text(e: Box<dyn std::any::Any + Send>) -> String {
    let s = e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_string()));
    s.unwrap_or_default()
}

/// Runs scenario `id` on protocol `L`; a line of the table, and what differs from the claim.
fn judge<L: VmaLock>(id: &str, bad: &mut Vec<String>) {
    let at = SCENARIOS.iter().position(|s| s.0 == id).expect("a scenario");
    let claim = L::CLAIMS[at];
    if claim == Claim::Impossible {
        return println!("{id} {:30} {}", L::NAME, claim.name());
    }
    let t = std::time::Instant::now();
    let mut all = Vec::new();
    let scripts = deep() && matches!(id, "T3" | "T4" | "T5");
    for case in cases::<Loom, L>().iter().filter(|c| c.id == id && (scripts || c.engine == Engine::Exhaustive)) {
        all.push((case.what, exhaustive(case)));
    }
    for case in cases::<Stepped, L>().iter().filter(|c| c.id == id && c.engine == Engine::Stepped) {
        all.push((case.what, stepped(case)));
    }
    assert!(!all.is_empty(), "{id} has no case");
    let runs: u64 = all.iter().map(|(_, s)| s.runs).sum();
    let wrong = all.iter().find_map(|(what, s)| s.wrong.as_ref().map(|w| (*what, w)));
    let shown = if wrong.is_some() { Claim::Busted } else { Claim::Holds };
    let why = wrong.map_or(String::new(), |(what, w)| format!(": {what} {}", w.lines().next().unwrap_or("")));
    let ms = t.elapsed().as_millis();
    println!("{id} {:30} {} ({runs} executions, {ms} ms){why}", L::NAME, shown.name());
    if shown != claim {
        bad.push(format!("{id} {}: declared {}, shown {}{why}", L::NAME, claim.name(), shown.name()));
    }
}

/// Calls a function for each protocol of the list.
#[macro_export]
#[doc(hidden)]
macro_rules! __for_each_protocol {
    (($f:ident $args:tt) $($L:ty,)*) => { $( $f::<$L> $args; )* };
}

fn every_protocol(id: &str) {
    let mut bad = Vec::new();
    let bad = &mut bad;
    crate::protocols!(__for_each_protocol(judge(id, bad)));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

macro_rules! one_test_each {
    ($($name:ident = $id:literal;)*) => { $(
        #[test]
        fn $name() {
            every_protocol($id);
        }
    )* };
}

one_test_each! {
    t0_removed = "T0";
    t1_another_mms = "T1";
    t2_mapped_again = "T2";
    t3_there_and_back = "T3";
    t4_equal_sequences = "T4";
    t5_copied_by_fork = "T5";
    t6_the_mm_ends = "T6";
    t7_writers_see_what_readers_did = "T7";
    t8_not_yet_attached = "T8";
    t9_the_sequence_wraps = "T9";
}

/// The two that must fail are those whose writers skip the lock, and those that a free resets besides.
#[test]
fn what_a_number_that_comes_again_costs() {
    fn one<L: VmaLock>(bad: &mut Vec<String>) {
        let resets = L::NAME.contains("reset");
        let reused = matches!(L::REUSE, crate::mm::vma_lock::Reuse::Tolerates);
        let want = [L::EARLY_EXIT, L::EARLY_EXIT && resets && reused];
        for (case, want) in doubts::<Stepped, L>().iter().zip(want) {
            let shown = stepped(case).wrong;
            println!("{} {:30} {}", case.what, L::NAME, shown.as_deref().unwrap_or("holds"));
            if shown.is_some() != want {
                bad.push(format!("{}: {}: expected {want}, shown {shown:?}", L::NAME, case.what));
            }
        }
    }
    let mut bad = Vec::new();
    let bad = &mut bad;
    crate::protocols!(__for_each_protocol(one(bad)));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Scenario `id` on `L` without one kind of order must fail.
fn caught<L: VmaLock, const F: usize>(id: &str, fault: Fault) {
    let cases = cases::<Faulty<F>, L>();
    let case = cases.iter().find(|c| c.id == id).expect("a scenario");
    assert_eq!(case.engine, Engine::Exhaustive);
    let shown = exhaustive(case);
    println!("{id} {} without {fault:?}: {} executions, {:?}", L::NAME, shown.runs, shown.wrong);
    assert!(shown.wrong.is_some(), "{id} {} without {fault:?}: nothing was noticed", L::NAME);
}

macro_rules! must_be_caught {
    ($($L:ty, $id:literal, $fault:ident;)*) => {
        $( caught::<$L, { Fault::$fault as usize }>($id, Fault::$fault); )*
    };
}

#[test]
fn a_missing_order_is_noticed() {
    must_be_caught! {
        // R4 against the section's end (E2), from either side.
        RwsemSeparate, "T0", LoadAcquire;
        RwsemSeparate, "T0", WriteFence;
        // R3 against the writer's leaving (E1), from either side.
        RwsemSeparate, "T0", RmwAcquire;
        RwsemSeparate, "T0", RmwRelease;
        // Attach against R3.
        Refcnt, "T2", StoreRelease;
        RefcntExclude, "T2", StoreRelease;
        // The reader's put against the writer's wait.
        Refcnt, "T7", LoadAcquire;
        RefcntExclude, "T7", LoadAcquire;
        Refcnt, "T7", RmwRelease;
        // The locked detach against the reader's taking the lock.
        RwsemDetachLockedReset, "T1", RmwRelease;
    }
}

/// The table that the tests above stand for.
#[test]
fn every_scenario_has_cases_and_every_protocol_claims() {
    for (id, _) in SCENARIOS {
        assert!(cases::<Loom, Refcnt>().iter().any(|c| c.id == id), "{id}");
    }
    for p in PROTOCOLS {
        let claims: Vec<_> = p.claims.iter().map(|c| c.name()).collect();
        println!("{:30} {}", p.name, claims.join(" "));
    }
}
