// SPDX-License-Identifier: GPL-2.0-only
//! What the facade costs in the native world, which must be nothing, and what the port's locks cost beside std's.
//!
//! Each pair runs interleaved: while one side is timed, the other runs untimed in between, so that both meet the same
//! machine in the same state. Uncontended, one thread, everything cached: this is instructions, not scaling.

use criterion::{Criterion, criterion_group, criterion_main};
use faultline::arch::arena::KRef;
use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::arch::{Acquire, Atomic, Machine, Native, Relaxed, Release, smp_cond_load_relaxed};
use faultline::cpu::{Cpu, LockNodes, PerCpu, Task, smp, tick};
use faultline::host::affinity;
use faultline::sync::{
    RawSpinLock, Refcount, RwSemaphore, down_read, down_write, mutex_lock, mutex_unlock, raw_spin_lock,
    raw_spin_unlock, up_read, up_write,
};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

/// Operations timed at once: long beside a clock reading, short beside a change of frequency.
const CHUNK: u64 = 2000;

/// Times `own` for `iters` operations in chunks, running `other` as often in between.
fn interleaved(iters: u64, mut own: impl FnMut(), mut other: impl FnMut()) -> Duration {
    let mut sum = Duration::ZERO;
    let mut left = iters;
    while left > 0 {
        let n = left.min(CHUNK);
        left -= n;
        let t = Instant::now();
        (0..n).for_each(|_| own());
        sum += t.elapsed();
        (0..n).for_each(|_| other());
    }
    sum
}

/// Two benchmarks in a group: `a` and `b`, which do the same.
fn pair(c: &mut Criterion, group: &str, (name_a, mut a): (&str, impl FnMut()), (name_b, mut b): (&str, impl FnMut())) {
    let mut g = c.benchmark_group(group);
    g.bench_function(name_a, |x| x.iter_custom(|n| interleaved(n, &mut a, &mut b)));
    g.bench_function(name_b, |x| x.iter_custom(|n| interleaved(n, &mut b, &mut a)));
    g.finish();
}

/// The same test-and-set lock, once over the facade and once by hand.
fn facade_spinlock(c: &mut Criterion) {
    let (l, n) = (Atomic::<Native, u32>::new(0), Atomic::<Native, u64>::new(0));
    let facade = || {
        let l = black_box(&l);
        while l.cmpxchg(0, 1, Acquire).is_err() {
            smp_cond_load_relaxed(l, |v| v == 0);
        }
        n.store(n.load(Relaxed) + 1, Relaxed);
        l.store(0, Release);
    };
    let (sl, sn) = (AtomicU32::new(0), AtomicU64::new(0));
    let by_hand = || {
        let l = black_box(&sl);
        while l.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while l.load(Ordering::Relaxed) != 0 {
                spin_loop();
            }
        }
        sn.store(sn.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        l.store(0, Ordering::Release);
    };
    pair(c, "facade/spinlock", ("facade", facade), ("std", by_hand));
}

fn facade_counter(c: &mut Criterion) {
    let (a, s) = (Atomic::<Native, u64>::new(0), AtomicU64::new(0));
    let facade = || {
        black_box(&a).fetch_add(1, Relaxed);
    };
    let by_hand = || {
        black_box(&s).fetch_add(1, Ordering::Relaxed);
    };
    pair(c, "facade/counter", ("facade", facade), ("std", by_hand));
}

/// The port's `refcount_t` against the same checks written over std.
fn facade_refcount(c: &mut Criterion) {
    #[cold]
    #[inline(never)]
    fn saturate(r: &AtomicU32) {
        r.store(0xc000_0000, Ordering::Relaxed);
    }
    let m = machine();
    let cpu = boot_cpu(&m);
    let (r, s) = (Refcount::<Native>::new(1), AtomicU32::new(1));
    let port = || {
        let r = black_box(&r);
        r.inc(&cpu);
        black_box(r.dec_and_test(&cpu));
    };
    let by_hand = || {
        let r = black_box(&s);
        let old = r.fetch_add(1, Ordering::Relaxed).cast_signed();
        if old <= 0 || old.wrapping_add(1) < 0 {
            saturate(r);
        }
        let old = r.fetch_sub(1, Ordering::Release).cast_signed();
        let last = old == 1;
        if last {
            std::sync::atomic::fence(Ordering::Acquire);
        } else if old <= 0 {
            saturate(r);
        }
        black_box(last);
    };
    pair(c, "facade/refcount", ("port", port), ("std", by_hand));
}

/// The first CPU allowed, to which this thread is pinned.
fn machine() -> NativeMachine {
    let os = affinity::allowed().first().copied().unwrap_or(0);
    let _ = affinity::pin(os);
    NativeMachine::new(&[OsCpu { cpu: os, node: 0 }], 2 << 20, |_, _| 10).expect("2 MiB of memory")
}

/// A token as boot makes it. The machine outlives it.
fn boot_cpu(m: &NativeMachine) -> Cpu<Native> {
    let a = m.arena();
    let nodes = PerCpu::new(a, 1, |_| 0, "lock_nodes", |_| LockNodes::new());
    let task: KRef<Task<Native>> = a.boot_new(0, Task::new(0));
    Cpu::new(0, 0, task, a.boot_new(0, smp::CpuRemote::new()), nodes, tick::TickDevice::off(), 1)
}

/// The port's locks beside std's. They are not the same thing: std's do not name their owner, count nothing, and wait in
/// other ways. Uncontended, the difference is what those properties cost.
fn port_locks(c: &mut Criterion) {
    let m = machine();
    let cpu = boot_cpu(&m);
    let l = m.arena().boot_new(0, RawSpinLock::<Native>::new());
    let s = m.arena().boot_new(0, RwSemaphore::<Native>::new());
    let mx = m.arena().boot_new(0, faultline::sync::Mutex::<Native>::new());
    let (mutex, rwlock) = (Mutex::new(()), RwLock::new(()));

    let port = || {
        raw_spin_lock(&cpu, black_box(&*l));
        raw_spin_unlock(&cpu, black_box(&*l));
    };
    let std_ = || drop(black_box(&mutex).lock());
    pair(c, "lock/exclusive", ("raw_spin_lock", port), ("std Mutex", std_));

    let port = || {
        mutex_lock(&cpu, black_box(&*mx));
        mutex_unlock(&cpu, black_box(&*mx));
    };
    let std_ = || drop(black_box(&mutex).lock());
    pair(c, "lock/sleeping", ("mutex_lock", port), ("std Mutex", std_));

    let port = || {
        down_read(&cpu, black_box(&*s));
        up_read(&cpu, black_box(&*s));
    };
    let std_ = || drop(black_box(&rwlock).read());
    pair(c, "lock/read", ("down_read", port), ("std RwLock", std_));

    let port = || {
        down_write(&cpu, black_box(&*s));
        up_write(&cpu, black_box(&*s));
    };
    let std_ = || drop(black_box(&rwlock).write());
    pair(c, "lock/write", ("down_write", port), ("std RwLock", std_));
}

criterion_group! {
    name = primitives;
    config = Criterion::default().without_plots();
    targets = facade_spinlock, facade_counter, facade_refcount, port_locks
}
criterion_main!(primitives);
