// SPDX-License-Identifier: GPL-2.0-only
//! The verdicts of all protocols in all scenarios, two preemptions far, and that the checker would notice: orders taken away
//! one line at a time, and protocols broken on purpose.

use super::scenarios::{cases, doubts};
use super::stepped::Stepped;
use super::*;
use crate::mm::vma_lock::refcnt::Refcnt;
use crate::mm::vma_lock::{PROTOCOLS, Reuse};

fn ask(protocol: &str, scenario: &str) -> Request {
    Request::new(protocol, scenario, Bound::QUICK)
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
        println!("{id} {:30} {:?} ({} executions, {} ms)", p.name, s.shown, s.executions, s.ms);
        if let Some(w) = &s.wrong {
            println!("    {} {}", w.case, w.message);
            assert!(w.steps.len() > 3, "it is told how: {:?}", w.steps);
            // What these need is a store seen too late, and it is named.
            let named = w.steps.iter().any(|s| s.missed.is_some());
            assert!(named || !matches!(id, "T0" | "T1" | "T2"), "{:?}", w.steps);
            if !s.by_what_it_is_about() {
                bad.push(format!("{id} {}: by {}", p.name, w.message));
            }
        }
        if !s.as_declared() {
            bad.push(format!("{id} {}: declared {:?}, shown {:?} {:?}", p.name, s.declared, s.shown, s.wrong));
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

/// Those that the reference names as required, and what the primitives promise: each line that the case passes is noticed in
/// it, but for as many as [`audit::NOT_SHOWN`] has a reason for.
#[test]
fn a_missing_order_is_noticed() {
    let required = [
        // R3, the attach, R8, W1 and the wait of the counting protocols.
        ("refcnt", "T2", "", "sync/refcount.rs", "store release"),
        ("refcnt", "T2", "", "sync/refcount.rs", "rmw acquire"),
        ("refcnt", "T7", "", "sync/refcount.rs", "rmw release"),
        ("refcnt", "T7", "", "mm/vma_lock/refcnt.rs", "load acquire"),
        ("refcnt_exclude", "T7", "", "mm/vma_lock/refcnt_exclude.rs", "load acquire"),
        // R3, R8, W1 of the others, and the detach under the lock.
        ("rwsem_separate", "T0", "", "sync/rwsem.rs", "rmw acquire"),
        ("rwsem_separate", "T0", "", "sync/rwsem.rs", "rmw release"),
        ("rwsem_detach_locked_reset", "T1", "", "sync/rwsem.rs", "rmw release"),
        // The barrier behind R5, where nothing else does its work, and the free's that it meets.
        ("rwsem_detach_wmb_reset_after", "T0", "", "mm/vma_lock/rwsem.rs", "smp_rmb"),
        ("rwsem_detach_wmb_reset_after", "T0", "", "mm/vma_lock/rwsem_detach_wmb.rs", "smp_wmb"),
        // R4, W6; and W0 with the look again.
        ("rwsem_separate", "T0", "", "sync/seqlock.rs", "load acquire"),
        ("rwsem_separate", "X", "speculation", "sync/seqlock.rs", "smp_wmb"),
        ("rwsem_separate", "X", "speculation", "sync/seqlock.rs", "smp_rmb"),
        // The full barriers of either side of a sleep.
        ("refcnt", "T7", "", "sync/rcuwait.rs", "smp_mb"),
        ("refcnt", "T7", "", "cpu/sched.rs", "rmw full"),
        // The allocator's hand-over: the exchange of the free, a release, and that of the CPU that takes, an acquire.
        ("refcnt_exclude", "X", "hand-over", "slab/record.rs", "rmw full"),
        // The locks by themselves.
        ("", "L", "a reader behind a writer", "sync/rwsem.rs", "rmw acquire"),
        ("", "L", "a reader behind a writer", "sync/rwsem.rs", "smp_rmb"),
        ("", "L", "downgrade", "sync/rwsem.rs", "load acquire"),
        ("", "L", "downgrade", "sync/rwsem.rs", "store release"),
        ("", "L", "spinning writers", "sync/rwsem_spin.rs", "rmw acquire"),
        ("", "L", "spinlock", "sync/qspinlock.rs", "rmw release"),
        ("", "L", "read_seqcount_begin", "sync/seqlock.rs", "load acquire"),
        ("", "L", "last reference", "sync/refcount.rs", "rmw release"),
        ("", "L", "last reference", "sync/refcount.rs", "smp_rmb"),
        ("", "L", "last but one", "sync/refcount.rs", "rmw release"),
        ("", "L", "published", "sync/refcount.rs", "store release"),
        ("", "L", "published", "sync/refcount.rs", "rmw acquire"),
    ];
    let mut bad = Vec::new();
    for (protocol, scenario, case, file, op) in required {
        let of = Request { case: Some(case.into()), ..ask(protocol, scenario) };
        let survey = shown(&Request { survey: true, ..of.clone() });
        assert!(survey.wrong.is_none(), "{survey:?}");
        let all = survey.sites.into_iter().filter(|(site, o)| site.file.ends_with(file) && o == op);
        let (noticed, missed): (Vec<_>, Vec<_>) = all.map(|(site, _)| site).partition(|site| {
            let preemptions = if scenario == "L" { 4 } else { 3 };
            let bound = Bound { preemptions: Some(preemptions), ..Bound::USUAL };
            shown(&Request { weaken: Some(site.clone()), bound, ..of.clone() }).wrong.is_some()
        });
        let excused = audit::NOT_SHOWN.iter().filter(|r| r.file == file && r.op == op).map(|r| r.lines).sum::<usize>();
        let what = format!("{scenario} {case} {protocol} {file}: {op}");
        println!("{what}: {} lines noticed, {} not, {excused} excused", noticed.len(), missed.len());
        if noticed.is_empty() || missed.len() > excused {
            bad.push(format!("{what}: not noticed: {missed:?}"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Where memory waits for a grace period, scenarios of reuse are impossible because it waits: without that readers have
/// another life's VMA.
#[test]
fn what_the_grace_period_is_for() {
    for p in PROTOCOLS.iter().filter(|p| matches!(p.reuse, Reuse::Forbids(_))) {
        let busted = |id: &str| shown(&Request { at_once: true, ..ask(p.name, id) }).shown == Some(Claim::Busted);
        let ids: Vec<_> = REUSES.into_iter().filter(|id| busted(id)).collect();
        // In T3 and T5 vm_mm is B's when the sequences are compared, and B's section has the VMA.
        assert_eq!(ids, ["T1", "T2", "T4", "T6"], "{}", p.name);
    }
}

/// A case whose time is over says how far it came, and one that came to its end says nothing.
#[test]
fn what_time_did_not_allow_is_said() {
    let with = |seconds| shown(&Request::new("refcnt", "T7", Bound { seconds, ..Bound::QUICK }));
    let whole = with(None);
    assert_eq!((whole.shown, whole.unfinished.len()), (Some(Claim::Holds), 0));
    assert_eq!(with(Some(3600)).unfinished, []);
    let cut = with(Some(0));
    assert_eq!(cut.shown, Some(Claim::Holds));
    assert!(!cut.unfinished.is_empty() && cut.executions < whole.executions, "{cut:?}");
    for u in &cut.unfinished {
        assert!(u.preemptions == Some(0) && u.executions > 0, "{u:?}");
    }
}
