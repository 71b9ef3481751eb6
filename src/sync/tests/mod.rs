// SPDX-License-Identifier: GPL-2.0-only
//! Locks under real threads, after the kernel's locktorture: holders check that they are alone, briefly most of the
//! time, longer now and then. What these cannot show (orderings on this machine's strong memory) is in `model/`.

mod killable;
mod mutex;
mod osq_lock;
mod qspinlock;
mod rwsem;
mod rwsem_queue;

use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::cpu::testing::{CpuSet, for_test_set};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// How long a torture goes on.
const SPAN: Duration = Duration::from_millis(300);

/// Runs `f` on `n` CPUs of one set, all at once.
fn on_cpus<A: Arch>(n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    on_cpus_of(for_test_set(n), n, f)
}

/// [`on_cpus`] on a set of the caller's.
fn on_cpus_of<A: Arch>(set: CpuSet<A>, n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    std::thread::scope(|s| {
        for id in 0..n {
            let (set, f) = (&set, &f);
            s.spawn(move || f(&set.cpu(id)));
        }
    });
    set
}

/// Runs `f` again and again on `n` CPUs until the span is over.
fn torture<A: Arch>(n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    torture_set(for_test_set(n), n, f)
}

/// [`torture`] on a set of the caller's.
fn torture_set<A: Arch>(set: CpuSet<A>, n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    let end = Instant::now() + SPAN;
    on_cpus_of(set, n, |cpu| {
        while Instant::now() < end {
            for _ in 0..10 {
                f(cpu);
            }
        }
    })
}

/// Sleeps and polls until `cond` holds; fails after a time in which it must.
fn eventually(what: &str, cond: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !cond() {
        assert!(Instant::now() < end, "{what} never happened");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The witness: who is inside. Its words are not the lock's, and std's on purpose.
#[derive(Default)]
struct Inside {
    writer: AtomicBool,
    readers: AtomicI64,
    /// Written by writers only, in two halves that agree outside.
    halves: [AtomicI64; 2],
}

impl Inside {
    fn write<A: Arch>(&self, cpu: &Cpu<A>) {
        assert!(!self.writer.swap(true, Ordering::Relaxed), "two writers");
        assert_eq!(self.readers.load(Ordering::Relaxed), 0, "a writer among readers");
        let v = self.halves[0].load(Ordering::Relaxed);
        assert_eq!(v, self.halves[1].load(Ordering::Relaxed), "a writer saw half of another's work");
        self.halves[0].store(v + 1, Ordering::Relaxed);
        hold(cpu);
        self.halves[1].store(v + 1, Ordering::Relaxed);
        assert!(self.writer.swap(false, Ordering::Relaxed));
    }
    fn read<A: Arch>(&self, cpu: &Cpu<A>) {
        self.readers.fetch_add(1, Ordering::Relaxed);
        assert!(!self.writer.load(Ordering::Relaxed), "a reader beside a writer");
        let v = self.halves[0].load(Ordering::Relaxed);
        hold(cpu);
        assert_eq!(v, self.halves[1].load(Ordering::Relaxed), "a reader saw half of a writer's work");
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }
    fn writes(&self) -> i64 {
        self.halves[0].load(Ordering::Relaxed)
    }
}

/// A short hold, rarely a long one, rarely one that sleeps.
fn hold<A: Arch>(cpu: &Cpu<A>) {
    match cpu.random() % 512 {
        0 => std::thread::sleep(Duration::from_micros(100)),
        1..8 => (0..200).for_each(|_| std::hint::spin_loop()),
        _ => (),
    }
}

/// The facade adds nothing to a word; that it adds no instruction either is measured by `benches/primitives.rs`.
#[test]
fn native_words_are_the_words_themselves() {
    use crate::arch::{Atomic, Native, Plain};
    use crate::sync::{RawSpinLock, Rcuwait, Refcount, RwSemaphore, Seqcount};
    use std::mem::{align_of, size_of};
    use std::sync::atomic::{AtomicU32, AtomicU64};
    fn same<T, U>() -> bool {
        (size_of::<T>(), align_of::<T>()) == (size_of::<U>(), align_of::<U>())
    }
    assert!(same::<Atomic<Native, u32>, AtomicU32>() && same::<Atomic<Native, u64>, AtomicU64>());
    assert!(same::<Plain<Native, u64>, u64>());
    assert!(same::<RawSpinLock<Native>, u32>() && same::<Refcount<Native>, u32>() && same::<Seqcount<Native>, u32>());
    assert!(same::<Rcuwait<Native>, *const ()>());
    assert!(same::<RwSemaphore<Native>, [u64; 5]>());
}
