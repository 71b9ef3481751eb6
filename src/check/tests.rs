// SPDX-License-Identifier: GPL-2.0-only
//! The verdicts of all protocols in all scenarios, two preemptions far, and that the checker would notice: orders taken away
//! one line at a time, and protocols broken on purpose.

use super::scenarios::{cases, doubts};
use super::stepped::Stepped;
use super::*;
use crate::mm::vma_lock::refcnt::Refcnt;
use crate::mm::vma_lock::{PROTOCOLS, Reuse};

fn ask(protocol: &str, scenario: &str) -> Request {
    Request { protocol: protocol.into(), scenario: scenario.into(), bound: Bound::QUICK, weaken: None, survey: false }
}

/// What a request shows, in this process.
fn shown(request: &Request) -> Shown {
    let so_far = Arc::new(Mutex::new(nothing_yet(request)));
    show(request, &so_far);
    let s = so_far.lock().unwrap_or_else(|e| e.into_inner());
    s.clone()
}

fn every_protocol(id: &str) {
    let mut bad = Vec::new();
    for p in PROTOCOLS {
        let s = shown(&ask(p.name, id));
        println!("{id} {:30} {} ({} executions, {} ms)", p.name, s.shown, s.executions, s.ms);
        if let Some(w) = &s.wrong {
            println!("    {} {}", w.case, w.message);
            assert!(w.steps.len() > 3, "it is told how: {:?}", w.steps);
        }
        if !s.as_declared() {
            bad.push(format!("{id} {}: declared {}, shown {} {:?}", p.name, s.declared, s.shown, s.wrong));
        }
    }
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

/// The race of December 2024 as it is told: the reader takes an old `detached` for true, and says what it missed.
#[test]
fn the_race_of_the_thread_is_told_step_by_step() {
    let w = shown(&ask("rwsem_reset_on_free", "T0")).wrong.expect("it is busted");
    w.steps.iter().for_each(|s| println!("{s}"));
    let stale = w.steps.iter().find(|s| s.word == "detached" && s.missed.is_some()).expect("an old value of detached");
    assert_eq!((stale.cpu.as_str(), stale.value.as_str()), ("reader", "= 0"));
    assert!(
        stale.at.starts_with("mm/vma_lock/") && stale.missed.as_deref().unwrap().contains("missed the store of step")
    );
    assert!(w.preemptions.is_some_and(|n| n <= 2), "{w:?}");
}

/// A script tells too, and its last step is the one that shows it.
#[test]
fn there_and_back_is_told_without_an_old_value() {
    let w = shown(&ask("rwsem_keep_seq", "T3")).wrong.expect("it is busted");
    assert!(w.message.starts_with("I1") && w.preemptions.is_none(), "{w:?}");
    assert!(w.steps.iter().all(|s| s.missed.is_none()), "every load returns the newest value");
    let last = w.steps.last().unwrap();
    assert_eq!((last.cpu.as_str(), last.word.as_str()), ("reader", "owner"), "{w:?}");
}

/// The two that must fail are those whose writers skip the lock, and those that a free resets besides.
#[test]
fn what_a_number_that_comes_again_costs() {
    fn one<L: VmaLock>(bad: &mut Vec<String>) {
        let resets = L::NAME.contains("reset");
        let reused = matches!(L::REUSE, Reuse::Tolerates);
        let want = [L::EARLY_EXIT, L::EARLY_EXIT && resets && reused];
        let request = ask(L::NAME, "wrap");
        let so_far = Arc::new(Mutex::new(nothing_yet(&request)));
        let run = Run { request: &request, so_far: &so_far, sites: Arc::default() };
        for (case, want) in doubts::<Stepped, L>().iter().zip(want) {
            let wrong = run.stepped(case).err();
            println!("{} {:30} {}", case.what, L::NAME, wrong.as_deref().unwrap_or("holds"));
            if wrong.is_some() != want {
                bad.push(format!("{}: {}: expected {want}, shown {wrong:?}", L::NAME, case.what));
            }
        }
    }
    let mut bad = Vec::new();
    for p in PROTOCOLS {
        let bad = &mut bad;
        crate::protocols!(__for_protocol(p.name, one(bad)));
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Every scenario has cases, and every protocol claims.
#[test]
fn every_scenario_has_cases() {
    for (id, _) in SCENARIOS {
        assert!(cases::<Checked, Refcnt>().iter().any(|c| c.id == id), "{id}");
    }
}

/// Lines of `protocol`'s runs of `scenario` with an order, in files whose path ends so.
fn lines(protocol: &str, scenario: &str, file: &str) -> Vec<(Site, String)> {
    let s = shown(&Request { survey: true, ..ask(protocol, scenario) });
    assert!(s.wrong.is_none(), "{s:?}");
    s.sites.into_iter().filter(|(site, _)| site.file.ends_with(file)).collect()
}

/// Those that the reference names as required are noticed: R3 and the attach, the put, the wait, R4 and the section's end.
#[test]
fn a_missing_order_is_noticed() {
    let required = [
        ("refcnt", "T2", "sync/refcount.rs", "store release", 1),
        ("refcnt", "T7", "mm/vma_lock/refcnt.rs", "load acquire", 1),
        ("refcnt", "T7", "sync/refcount.rs", "rmw release", 1),
        ("refcnt_exclude", "T7", "mm/vma_lock/refcnt_exclude.rs", "load acquire", 1),
        ("refcnt", "T2", "sync/refcount.rs", "rmw acquire", 1),
        ("rwsem_separate", "T0", "sync/seqlock.rs", "load acquire", 1),
        ("rwsem_separate", "T0", "sync/seqlock.rs", "smp_wmb", 1),
        ("rwsem_separate", "T0", "sync/rwsem.rs", "rmw acquire", 1),
        ("rwsem_separate", "T0", "sync/rwsem.rs", "rmw release", 1),
        ("rwsem_detach_locked_reset", "T1", "sync/rwsem.rs", "rmw release", 1),
    ];
    for (protocol, scenario, file, op, at_least) in required {
        let all: Vec<_> = lines(protocol, scenario, file).into_iter().filter(|l| l.1 == op).collect();
        let noticed = all.iter().filter(|(site, _)| {
            let bound = Bound::USUAL;
            shown(&Request { weaken: Some(site.clone()), bound, ..ask(protocol, scenario) }).wrong.is_some()
        });
        let noticed = noticed.count();
        println!("{scenario} {protocol} {file}: {op}: {noticed} of {} lines noticed", all.len());
        assert!(noticed >= at_least, "{scenario} {protocol} {file}: {op}: {all:?}");
    }
}
