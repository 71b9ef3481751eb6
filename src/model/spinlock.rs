// SPDX-License-Identifier: GPL-2.0-only
//! The queued spinlock, two CPUs at a time: fast path, pending bit, head of the queue, handover inside the queue.
//!
//! Three or four spinning CPUs make loom explore their spinning against each other without end; so a case starts in the
//! middle, with one CPU playing two parts one after the other, through the port's own functions. Real crowds are in
//! `sync/tests/`.
//!
//! Not caught: the barriers that keep a node's clearing before its linking. They order stores to one word, and loom
//! takes stores in the order it executes them.

use super::explore;
use crate::arch::loom::Loom;
use crate::arch::{Arch, Plain};
use crate::cpu::Cpu;
use crate::cpu::testing::{CpuSet, for_test_set};
use crate::must_catch;
use crate::sync::{LockEvent, RawSpinLock, raw_spin_lock, raw_spin_trylock, raw_spin_unlock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Shared<A: Arch> {
    lock: RawSpinLock<A>,
    /// Race-checked.
    data: Plain<A, u32>,
}

fn add_one<A: Arch>(s: &Shared<A>) {
    s.data.set(s.data.get() + 1);
}

/// CPU 1 locks and adds one while CPU 0 does `main`, which adds `n`. Returns how often CPU 1 took the pending bit and
/// how often the queue.
fn against<A: Arch>(
    set: CpuSet<A>,
    cpu: &Cpu<A>,
    lock: RawSpinLock<A>,
    n: u32,
    main: impl FnOnce(&Cpu<A>, &Shared<A>),
) -> [u64; 2] {
    let s = Arc::new(Shared { lock, data: Plain::new(0) });
    let other = {
        let (set, s) = (set, s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            raw_spin_lock(&cpu, &s.lock);
            add_one(&s);
            raw_spin_unlock(&cpu, &s.lock);
            [LockEvent::LockPending, LockEvent::LockSlowpath].map(|e| cpu.counters.get(e))
        })
    };
    main(cpu, &s);
    let paths = other.join().expect("a panic ends the model");
    assert!(s.data.get() == n + 1 && !s.lock.is_locked());
    paths
}

/// Both come from nowhere.
fn meet<A: Arch>() -> [u64; 2] {
    let set = for_test_set::<A>(2);
    against(set.clone(), &set.cpu(0), RawSpinLock::new(), 1, |cpu, s| {
        raw_spin_lock(cpu, &s.lock);
        add_one(s);
        raw_spin_unlock(cpu, &s.lock);
    })
}

/// CPU 0 holds, and is the pending waiter too: CPU 1 becomes the head of the queue.
fn behind_pending<A: Arch>() -> [u64; 2] {
    let set = for_test_set::<A>(2);
    against(set.clone(), &set.cpu(0), RawSpinLock::held_and_pending(), 2, |cpu, s| {
        add_one(s);
        raw_spin_unlock(cpu, &s.lock);
        s.lock.claim_as_pending();
        add_one(s);
        raw_spin_unlock(cpu, &s.lock);
    })
}

/// CPU 0 is the head of the queue: CPU 1 becomes its successor, or not.
fn behind_head<A: Arch>() -> [u64; 2] {
    let set = for_test_set::<A>(2);
    let cpu = set.cpu(0);
    let lock = RawSpinLock::with_head(&cpu);
    against(set.clone(), &cpu, lock, 1, |cpu, s| {
        s.lock.claim_as_head(cpu);
        add_one(s);
        raw_spin_unlock(cpu, &s.lock);
    })
}

/// Against a trylock.
fn trylock<A: Arch>() {
    let set = for_test_set::<A>(2);
    let cpu = set.cpu(0);
    let s = Arc::new(Shared::<A> { lock: RawSpinLock::new(), data: Plain::new(0) });
    let other = {
        let (set, s) = (set.clone(), s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            raw_spin_lock(&cpu, &s.lock);
            add_one(&s);
            raw_spin_unlock(&cpu, &s.lock);
        })
    };
    if raw_spin_trylock(&cpu, &s.lock) {
        add_one(&s);
        raw_spin_unlock(&cpu, &s.lock);
    }
    other.join().expect("a panic ends the model");
}

/// How often CPU 1 took the pending bit and the queue, in all executions.
fn paths(case: fn() -> [u64; 2]) -> [u64; 2] {
    let sum = Arc::new([const { AtomicU64::new(0) }; 2]);
    let s = sum.clone();
    explore(3, move || {
        let p = case();
        (0..2).for_each(|i| _ = s[i].fetch_add(p[i], Ordering::Relaxed));
    });
    [0, 1].map(|i| sum[i].load(Ordering::Relaxed))
}

#[test]
fn the_cases_reach_the_paths_they_are_for() {
    assert!(paths(meet::<Loom>)[0] > 0, "the pending bit was never used");
    assert!(paths(behind_pending::<Loom>)[1] > 0, "nobody waited at the head of the queue");
    assert!(paths(behind_head::<Loom>)[1] > 0, "nobody waited in the queue");
}

#[test]
fn two_cpus_exclude_each_other() {
    fn case<A: Arch>() {
        meet::<A>();
    }
    // The unlock's release, the acquire of the fast path, that of the wait for the byte.
    must_catch!(case, 3, Wrong: RmwRelease, RmwAcquire, LoadAcquire);
    must_catch!(trylock, 3, Wrong: RmwRelease, RmwAcquire);
}

#[test]
fn the_head_of_the_queue_waits_for_holder_and_pending() {
    fn case<A: Arch>() {
        behind_pending::<A>();
    }
    must_catch!(case, 3, Wrong: RmwRelease, LoadAcquire);
}

#[test]
fn the_lock_is_handed_over_inside_the_queue() {
    fn case<A: Arch>() {
        behind_head::<A>();
    }
    // A release that is missing at unlock is made up for by the handover, and the other way round, but each CPU 1 sees
    // only one of them.
    must_catch!(case, 3, Wrong: RmwRelease, LoadAcquire);
}
