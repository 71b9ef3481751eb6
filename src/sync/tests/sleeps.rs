// SPDX-License-Identifier: GPL-2.0-only
//! L8: no wake-up is lost over many short sleeps, with delays injected around every full barrier, in both ways to wait.
//!
//! `FAULTLINE_SLEEPS` says how many; by default as many as fit into a moment. That a missing barrier would be noticed
//! is shown by the models of rcuwait and of the rwsem, which fail without either of them; a strong machine loses a
//! wake-up too rarely for a test to rely on it.

use super::{SPAN, on_cpus_of};
use crate::arch::{Acquire, Arch, Atomic, Fence, Int, Native, Prim, RawCell, Release};
use crate::cpu::sched::{SchedCounter, Wait};
use crate::cpu::testing::{asked, for_test_set_waiting};
use crate::sync::{
    Rcuwait, RwSemaphore, down_read, down_write, rcuwait_wait_event, rcuwait_wake_up, up_read, up_write,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

std::thread_local! {
    static RNG: Cell<u32> = const { Cell::new(1) };
}

/// Now and then nothing, now and then a while.
fn pause() {
    let x = RNG.get().wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    RNG.set(x);
    match x >> 27 {
        0 => (0..x >> 18 & 0x1ff).for_each(|_| std::hint::spin_loop()),
        1..6 => (0..x >> 22 & 0xf).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

/// Native, with a pause on either side of whatever is a full barrier.
#[derive(Clone, Copy, Debug)]
struct Delayed;

/// Its words.
struct DelayedCell<T: Prim>(<Native as Arch>::Cell<T>);

fn around<R>(o: Ordering, f: impl FnOnce() -> R) -> R {
    if o != Ordering::SeqCst {
        return f();
    }
    pause();
    let r = f();
    pause();
    r
}

impl<T: Prim> RawCell<T> for DelayedCell<T> {
    fn new(v: T) -> Self {
        DelayedCell(RawCell::new(v))
    }
    fn load(&self, o: Ordering) -> T {
        self.0.load(o)
    }
    fn store(&self, v: T, o: Ordering) {
        self.0.store(v, o)
    }
    fn swap(&self, v: T, o: Ordering) -> T {
        around(o, || self.0.swap(v, o))
    }
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        around(o, || self.0.compare_exchange(old, new, o))
    }
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        around(o, || self.0.fetch_add(v, o))
    }
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        around(o, || self.0.fetch_sub(v, o))
    }
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        around(o, || self.0.fetch_or(v, o))
    }
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        around(o, || self.0.fetch_and(v, o))
    }
}

impl Arch for Delayed {
    const NAME: &'static str = "delayed";
    const RMW_IS_FULL: bool = Native::RMW_IS_FULL;
    type Cell<T: Prim> = DelayedCell<T>;
    type PlainCell<T: Prim> = <Native as Arch>::PlainCell<T>;
    fn fence(f: Fence) {
        let o = if f == Fence::Full { Ordering::SeqCst } else { Ordering::Relaxed };
        around(o, || Native::fence(f))
    }
    fn now() -> u64 {
        Native::now()
    }
    fn cpu_relax() {
        Native::cpu_relax()
    }
    fn wait_changed<T: Prim>(c: &DelayedCell<T>, seen: T) {
        Native::wait_changed(&c.0, seen)
    }
    fn futex_wait(w: &DelayedCell<u32>, seen: u32, d: Option<u64>) {
        Native::futex_wait(&w.0, seen, d)
    }
    fn futex_wake(w: &DelayedCell<u32>) {
        Native::futex_wake(&w.0)
    }
}

/// Runs until `enough` sleeps, or without a number as long as a test may last.
fn enough(start: Instant, slept: u64) -> bool {
    match asked("FAULTLINE_SLEEPS") {
        Some(n) => slept >= n,
        None => start.elapsed() >= SPAN && slept > 20 || start.elapsed() >= 30 * SPAN,
    }
}

/// Two CPUs take turns: each waits for the other's word and then sets its own.
#[test]
fn rcuwait_loses_no_wake_up() {
    for (_, wait) in Wait::ALL {
        let waits = [0; 2].map(|_| Rcuwait::<Delayed>::new());
        let turns = [0; 2].map(|_| Atomic::<Delayed, u64>::new(0));
        let slept = AtomicU64::new(0);
        let last = AtomicU64::new(u64::MAX);
        let start = Instant::now();
        on_cpus_of::<Delayed>(for_test_set_waiting(2, wait), 2, |cpu| {
            let (me, other) = (cpu.id as usize, 1 - cpu.id as usize);
            let mut turn = 0;
            let mut seen = 0;
            loop {
                turn += 1;
                if me == 0 && enough(start, slept.load(Ordering::Relaxed)) {
                    last.store(turn, Ordering::Relaxed);
                }
                turns[me].store(turn, Release);
                rcuwait_wake_up(&waits[other]);
                rcuwait_wait_event(cpu, &waits[me], || turns[other].load(Acquire) >= turn);
                let n = cpu.counters.get(SchedCounter::SchedSleeps);
                slept.fetch_add(n - seen, Ordering::Relaxed);
                seen = n;
                // Both take the same last turn: the other may learn of it while it is still in the one before.
                if turn >= last.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        println!("rcuwait, {wait:?}: {} sleeps", slept.load(Ordering::Relaxed));
        assert!(slept.into_inner() > 0, "nobody slept");
    }
}

/// Readers and writers of one lock, which all queue at once and hold it for a moment.
#[test]
fn the_rwsem_loses_no_wake_up() {
    for (_, wait) in Wait::ALL {
        let sem = RwSemaphore::<Delayed>::new();
        let slept = AtomicU64::new(0);
        let start = Instant::now();
        on_cpus_of::<Delayed>(for_test_set_waiting(3, wait), 3, |cpu| {
            cpu.softirq.ksoftirqd.set(true);
            let mut seen = 0;
            while !enough(start, slept.load(Ordering::Relaxed)) {
                if cpu.random().is_multiple_of(3) {
                    down_write(cpu, &sem);
                    pause();
                    up_write(cpu, &sem);
                } else {
                    down_read(cpu, &sem);
                    pause();
                    up_read(cpu, &sem);
                }
                let n = cpu.counters.get(SchedCounter::SchedSleeps);
                slept.fetch_add(n - seen, Ordering::Relaxed);
                seen = n;
            }
        });
        sem.assert_quiet();
        println!("rwsem, {wait:?}: {} sleeps", slept.load(Ordering::Relaxed));
        assert!(slept.into_inner() > 0, "nobody slept");
    }
}
