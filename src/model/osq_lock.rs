// SPDX-License-Identifier: GPL-2.0-only
//! The queue of optimistic spinners while some of them leave it (L10): three CPUs, of which those in the middle and at
//! the end may give up at any look at their node, so that neighbours leave at the same time, and the tail while the
//! owner unlocks.
//!
//! Whatever they do, one of them at a time is told that it may spin, nobody waits for ever (the chain is whole), and at
//! the end the tail is 0 and the queue works. Each step of leaving has a twin that does it wrong, in the port's own code;
//! each must be caught.
//!
//! The queue orders nothing (its handover is relaxed on purpose), so that no twin takes an order away from what it
//! protects: there is nothing of the kind.
//!
//! The world is loom's with exchanges in place of stores. loom does not order a store after an exchange of the same word
//! that did not see it, and would let the exchange's CPU miss the store for ever; the exchange in its place sees the
//! newest value, as every word has one order of values on all machines. What it cannot show for that: a release
//! sequence that a plain store breaks.

use super::{Failure, caught, explore};
use crate::arch::loom::{Loom, LoomCell, LoomPlain};
use crate::arch::{Arch, Fence, Int, Prim, RawCell};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::sync::osq_lock::{OptimisticSpinQueue, Twin, osq_lock, osq_lock_twin, osq_unlock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// See the module.
#[derive(Clone, Copy, Debug)]
struct World;

/// Its words.
struct Cell<T: Prim>(LoomCell<T>);

impl<T: Prim> RawCell<T> for Cell<T> {
    fn new(v: T) -> Self {
        Cell(LoomCell::new(v))
    }
    fn load(&self, o: Ordering) -> T {
        self.0.load(o)
    }
    fn store(&self, v: T, o: Ordering) {
        self.0.swap(v, o);
    }
    fn swap(&self, v: T, o: Ordering) -> T {
        self.0.swap(v, o)
    }
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, o)
    }
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_add(v, o)
    }
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_sub(v, o)
    }
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_or(v, o)
    }
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_and(v, o)
    }
}

impl Arch for World {
    const NAME: &'static str = "loom";
    const RMW_IS_FULL: bool = Loom::RMW_IS_FULL;
    type Cell<T: Prim> = Cell<T>;
    type PlainCell<T: Prim> = LoomPlain<T>;
    fn fence(f: Fence) {
        Loom::fence(f);
    }
    fn now() -> u64 {
        Loom::now()
    }
    fn cpu_relax() {
        Loom::cpu_relax();
    }
    fn wait_changed<T: Prim>(c: &Cell<T>, seen: T) {
        Loom::wait_changed(&c.0, seen);
    }
    fn futex_wait(word: &Cell<u32>, seen: u32, deadline: Option<u64>) {
        Loom::futex_wait(&word.0, seen, deadline);
    }
    fn futex_wake(word: &Cell<u32>) {
        Loom::futex_wake(&word.0);
    }
}

/// How often a CPU looks at its node before it gives up; `PATIENT`: it stays.
const PATIENT: u32 = u32::MAX;

/// What became of the CPUs that could give up, over all executions.
#[derive(Default)]
struct Ends {
    got: AtomicU64,
    left: AtomicU64,
}

/// One CPU's turn: in, alone, out; or away. Whether it got in.
fn turn(cpu: &Cpu<World>, q: &OptimisticSpinQueue<World>, inside: &AtomicU32, patience: u32, twin: Twin) -> bool {
    let mut looks = patience;
    let got = osq_lock_twin(
        cpu,
        q,
        || {
            looks = if looks == PATIENT { PATIENT } else { looks - 1 };
            looks == 0
        },
        twin,
    );
    if got {
        // The checker runs one thread at a time, so that std's word sees them in their real order.
        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two spinners");
        ::loom::thread::yield_now();
        assert_eq!(inside.fetch_sub(1, Ordering::Relaxed), 1);
        osq_unlock(cpu, q);
    }
    got
}

/// CPU 0 holds the queue; CPUs 1.. stand in it with so much patience each; CPU 0 unlocks, where `held` not before all
/// have left.
fn storm((patience, held): (&'static [u32], bool), twin: Twin, ends: &Ends) {
    let n = patience.len() as u32 + 1;
    let set = for_test_set::<World>(n);
    let q = Arc::new(OptimisticSpinQueue::<World>::new());
    let inside = Arc::new(AtomicU32::new(0));
    let cpu = set.cpu(0);
    assert!(osq_lock(&cpu, &q));
    inside.store(1, Ordering::Relaxed);
    let others: Vec<_> = (1..n)
        .map(|id| {
            let (set, q, inside) = (set.clone(), q.clone(), inside.clone());
            ::loom::thread::spawn(move || turn(&set.cpu(id), &q, &inside, patience[id as usize - 1], twin))
        })
        .collect();
    let unlock = || {
        assert_eq!(inside.fetch_sub(1, Ordering::Relaxed), 1, "two spinners");
        osq_unlock(&cpu, &q);
    };
    if !held {
        unlock();
    }
    let got: Vec<_> = others.into_iter().map(|t| t.join().expect("a panic ends the model")).collect();
    if held {
        unlock();
    }
    for (got, p) in got.into_iter().zip(patience) {
        assert!(!(got && held), "in beside the owner");
        assert!(got || *p != PATIENT, "sent away, and had time");
        if *p != PATIENT {
            if got { &ends.got } else { &ends.left }.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert!(!q.is_locked(), "the tail is not 0");
    assert!(turn(&cpu, &q, &inside, PATIENT, Twin::None), "a queue that is free took nobody in");
    assert!(!q.is_locked());
}

/// Who stands behind the owner, front to back: the one in the middle leaves, the last, both; the owner stays meanwhile.
const STORMS: [(&[u32], bool); 6] =
    [(&[1], false), (&[1, PATIENT], false), (&[PATIENT, 1], false), (&[1, 1], false), (&[1], true), (&[1, 1], true)];

#[test]
fn a_chain_that_cpus_leave_at_any_moment_stays_whole() {
    for patience in STORMS {
        let ends = Arc::new(Ends::default());
        let e = ends.clone();
        let n = explore(3, move || storm(patience, Twin::None, &e));
        let (got, left) = (ends.got.load(Ordering::Relaxed), ends.left.load(Ordering::Relaxed));
        println!("{patience:?}: {n} executions, {got} got in, {left} left");
        assert!((got > 0) != patience.1 && left > 0, "{patience:?}: the race was never run both ways");
    }
}

#[test]
fn a_step_of_leaving_that_is_wrong_is_caught() {
    for (twin, how) in [
        // The predecessor, which still has it for its successor, hands over to a CPU that has left.
        (Twin::SkipA, Failure::Wrong),
        // The owner, told that it is alone, is not: it waits for a successor, or two are in.
        (Twin::ClearTail, Failure::Hangs),
        // The successor waits at the node of a CPU that has left.
        (Twin::ForgetPrev, Failure::Hangs),
    ] {
        let found = STORMS.iter().any(|&patience| {
            let ends = Ends::default();
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let m = caught("an OSQ step", 2, how, move || storm(patience, twin, &ends));
                println!("{twin:?}, {patience:?}: {}", m.lines().next().unwrap_or(""));
            }))
            .is_ok()
        });
        assert!(found, "{twin:?}: nothing noticed");
    }
}
