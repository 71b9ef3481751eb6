// SPDX-License-Identifier: GPL-2.0-only
//! Where RCU meets memory ordering, under loom: the extended quiescent state against the start of a grace period, and
//! the length of a callback list against `rcu_barrier()`.
//!
//! The words and operations are the port's own (`rcu/context_tracking.rs`, `rcu/rcu_seq.rs`, `rcu/rcu_segcblist.rs`);
//! around them stand two threads of a few lines that do what the callers do. Each model has twins with one ordering
//! taken away, and each twin must fail: else the model would prove nothing.
//!
//! And a CPU that is never idle: one that enters a reader again and again, and whose ticks fall into readers as well as
//! between them, against a grace period that can end by its report only. That case alone restates what it models:
//! `note_gp_changes()`, `rcu_check_quiescent_state()` and `rcu_report_qs_rdp()` in a few lines, without the trylock and the second look
//! under the lock. A mistake in `rcu/tree.rs` itself shows in `rcu/script.rs` and the tortures, not here.
//!
//! It cannot tell: anything that needs more threads or load buffering.

use super::{Failure, caught, explore};
use crate::arch::loom::Loom;
use crate::arch::{Acquire, Arch, Atomic, Plain, Relaxed, smp_cond_load_relaxed, smp_mb};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::rcu::RcuHead;
use crate::rcu::context_tracking::ContextTracking;
use crate::rcu::rcu_segcblist::{RcuCblist, RcuSegcblist};
use crate::rcu::rcu_seq::{rcu_seq_end, rcu_seq_start, rcu_seq_state};
use crate::rcu::{rcu_read_lock, rcu_read_lock_held, rcu_read_unlock};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_unlock};
use ::loom::sync::Arc;
use ::loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a twin leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Leaving the extended quiescent state is no barrier.
    ExitBarrier,
    /// Entering it is no barrier.
    EnterBarrier,
    /// The grace period starts without a barrier.
    StartBarrier,
    /// The list's length changes without ordering.
    LenBarrier,
    /// `rcu_barrier()` starts without a barrier.
    BarrierBarrier,
}

fn fails(f: impl Fn() + Sync + Send + 'static) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let r = catch_unwind(AssertUnwindSafe(|| ::loom::model(f))).is_err();
    std::panic::set_hook(hook);
    r
}

struct Eqs {
    watching: ContextTracking<Loom>,
    /// A counter beside, for the twins.
    weak: Atomic<Loom, u32>,
    gp_seq: Atomic<Loom, u64>,
    /// 0: the object can be found.
    gone: Atomic<Loom, u32>,
    /// The object; written when it is freed.
    object: Plain<Loom, u32>,
}

/// An idle CPU wakes, reads the object if it still finds it, and sleeps again; an updater unlinks it, starts a grace
/// period and frees it if the CPU was idle at some moment after.
fn eqs_against_start(w: Without) {
    let m = Arc::new(Eqs {
        watching: ContextTracking::new(),
        weak: Atomic::new(0),
        gp_seq: Atomic::new(0),
        gone: Atomic::new(0),
        object: Plain::new(7),
    });
    let weak = matches!(w, Without::ExitBarrier | Without::EnterBarrier);
    let r = m.clone();
    let reader = thread::spawn(move || {
        match w {
            Without::ExitBarrier => _ = r.weak.fetch_add(1, Relaxed),
            Without::EnterBarrier => _ = r.weak.fetch_add(1, crate::arch::Full),
            _ => r.watching.eqs_exit(),
        }
        if r.gone.load(Relaxed) == 0 {
            assert_eq!(r.object.get(), 7, "read after free");
        }
        match w {
            Without::EnterBarrier => _ = r.weak.fetch_add(1, Relaxed),
            Without::ExitBarrier => _ = r.weak.fetch_add(1, crate::arch::Full),
            _ => r.watching.eqs_enter(),
        }
    });
    m.gone.store(1, Relaxed);
    if w == Without::StartBarrier {
        m.gp_seq.store(1, Relaxed);
    } else {
        rcu_seq_start(&m.gp_seq);
    }
    let look = || if weak { m.weak.load(Acquire) } else { m.watching.snapshot() };
    let snap = look();
    if ContextTracking::<Loom>::snap_in_eqs(snap) || look() != snap {
        m.object.set(0);
    }
    reader.join().unwrap();
}

#[test]
fn an_idle_cpu_is_credited_only_when_its_readers_are_over_or_see_the_update() {
    ::loom::model(|| eqs_against_start(Without::Nothing));
    for w in [Without::ExitBarrier, Without::EnterBarrier, Without::StartBarrier] {
        assert!(fails(move || eqs_against_start(w)), "{w:?} went unnoticed");
    }
}

struct Len {
    list: RcuSegcblist<Loom>,
    weak: Atomic<Loom, i64>,
    heads: [RcuHead<Loom>; 1],
    barrier_sequence: Atomic<Loom, u64>,
    /// What the callback touches, and who called `rcu_barrier()` tears down.
    data: Plain<Loom, u32>,
}

impl Len {
    fn new() -> Arc<Self> {
        let m = Arc::new(Len {
            list: RcuSegcblist::new(),
            weak: Atomic::new(0),
            heads: [RcuHead::new()],
            barrier_sequence: Atomic::new(0),
            data: Plain::new(0),
        });
        m.list.init();
        m
    }
    /// `call_rcu()`
    fn enqueue(&self, w: Without) {
        if w == Without::LenBarrier {
            self.weak.fetch_add(1, Relaxed);
        }
        // SAFETY: the head lives as long as the list.
        unsafe { self.list.enqueue((&raw const self.heads[0]).cast_mut()) };
    }
    fn n_cbs(&self, w: Without) -> i64 {
        if w == Without::LenBarrier { self.weak.load(Relaxed) } else { self.list.n_cbs() }
    }
}

/// A `call_rcu()` that returned before `rcu_barrier()` began is not overlooked: who has queued and finds no barrier
/// begun was there first, so the barrier sees the length.
fn len_against_barrier_queueing(w: Without) {
    let m = Len::new();
    let q = m.clone();
    let queue = thread::spawn(move || {
        if w == Without::LenBarrier {
            q.weak.fetch_add(1, Relaxed);
        } else {
            q.enqueue(w);
        }
        q.barrier_sequence.load(Relaxed) == 0
    });
    if w == Without::BarrierBarrier {
        m.barrier_sequence.store(1, Relaxed);
    } else {
        rcu_seq_start(&m.barrier_sequence);
    }
    let skipped = m.n_cbs(w) == 0;
    let first = queue.join().unwrap();
    assert!(!(first && skipped), "a callback queued before the barrier was overlooked");
}

/// A CPU whose length is 0 has done all its callbacks did.
fn len_against_barrier_invoking(w: Without) {
    let m = Len::new();
    m.enqueue(w);
    assert!(m.list.accelerate(4));
    m.list.advance(4);
    let b = m.clone();
    let batch = thread::spawn(move || {
        let mut rcl = RcuCblist::new();
        b.list.extract_done_cbs(&mut rcl);
        // SAFETY: the head lives as long as the list.
        assert!(!unsafe { rcl.dequeue() }.is_null());
        b.data.set(1);
        if w == Without::LenBarrier {
            b.weak.fetch_add(-1, Relaxed);
        } else {
            b.list.add_len(-1);
        }
    });
    rcu_seq_start(&m.barrier_sequence);
    if m.n_cbs(w) == 0 {
        // rcu_barrier_put()'s
        smp_mb::<Loom>();
        m.data.set(2);
    }
    batch.join().unwrap();
}

#[test]
fn a_barrier_overlooks_no_callback_and_outruns_none() {
    ::loom::model(|| len_against_barrier_queueing(Without::Nothing));
    ::loom::model(|| len_against_barrier_invoking(Without::Nothing));
    for w in [Without::LenBarrier, Without::BarrierBarrier] {
        assert!(fails(move || len_against_barrier_queueing(w)), "queueing: {w:?} went unnoticed");
    }
    assert!(fails(|| len_against_barrier_invoking(Without::LenBarrier)), "invoking: went unnoticed");
}

/// What a busy CPU's twin does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Right,
    /// A tick that falls into a reader is a quiescent state.
    QsInReader,
    /// What was a quiescent state before this grace period began is one for it.
    OldQs,
    /// The report does not take the node's lock.
    Unlocked,
    /// Only an idle CPU reports.
    OnlyIdle,
}

/// A leaf that is the root, with one CPU, and what it guards.
struct Leaf<A: Arch> {
    lock: RawSpinLock<A>,
    /// Under the lock.
    qsmask: Atomic<A, u64>,
    /// Written under the lock, polled without.
    gp_seq: Atomic<A, u64>,
    state_gp_seq: Atomic<A, u64>,
    gone: Atomic<A, u32>,
    /// Written when it is freed.
    object: Plain<A, u32>,
}

/// The busy CPU's `rcu_data`.
struct Data {
    gp_seq: u64,
    no_qs: bool,
    needs_qs: bool,
    reported: bool,
}

impl Data {
    /// `rcu_sched_clock_irq()` and `rcu_core()`, as far as they go without callbacks.
    fn tick<A: Arch>(&mut self, cpu: &Cpu<A>, leaf: &Leaf<A>, how: Busy) {
        let qs = match how {
            Busy::QsInReader => true,
            Busy::OnlyIdle => false,
            _ => !rcu_read_lock_held(cpu),
        };
        if qs {
            self.no_qs = false;
        }
        // `note_gp_changes()`
        if leaf.gp_seq.load(Relaxed) != self.gp_seq {
            raw_spin_lock(cpu, &leaf.lock);
            self.gp_seq = leaf.gp_seq.load(Relaxed);
            self.needs_qs = leaf.qsmask.load(Relaxed) != 0;
            if how != Busy::OldQs {
                self.no_qs = self.needs_qs;
            }
            raw_spin_unlock(cpu, &leaf.lock);
        }
        // `rcu_check_quiescent_state()`, `rcu_report_qs_rdp()`
        if self.needs_qs && !self.no_qs {
            self.needs_qs = false;
            if how != Busy::Unlocked {
                raw_spin_lock(cpu, &leaf.lock);
            }
            leaf.qsmask.store(0, Relaxed);
            if how != Busy::Unlocked {
                raw_spin_unlock(cpu, &leaf.lock);
            }
            self.reported = true;
        }
    }
}

/// One reader, so long that two ticks fall into it, and a tick behind it.
fn section<A: Arch>(cpu: &Cpu<A>, leaf: &Leaf<A>, data: &mut Data, how: Busy) {
    rcu_read_lock(cpu);
    let found = leaf.gone.load(Relaxed) == 0;
    data.tick(cpu, leaf, how);
    data.tick(cpu, leaf, how);
    if found {
        assert_eq!(leaf.object.get(), 7, "read after free");
    }
    rcu_read_unlock(cpu);
    data.tick(cpu, leaf, how);
}

/// One CPU reads until it has reported, and once more; another unlinks the object, runs a grace period and frees it.
fn busy<A: Arch>(how: Busy) {
    let set = for_test_set::<A>(2);
    let leaf = Arc::new(Leaf::<A> {
        lock: RawSpinLock::new(),
        qsmask: Atomic::new(0),
        gp_seq: Atomic::new(0),
        state_gp_seq: Atomic::new(0),
        gone: Atomic::new(0),
        object: Plain::new(7),
    });
    let reader = {
        let (set, leaf) = (set.clone(), leaf.clone());
        thread::spawn(move || {
            let cpu = set.cpu(0);
            let mut data = Data { gp_seq: 0, no_qs: false, needs_qs: false, reported: false };
            let mut sections = 0;
            while !data.reported {
                section(&cpu, &leaf, &mut data, how);
                sections += 1;
                A::cpu_relax();
            }
            section(&cpu, &leaf, &mut data, how);
            sections
        })
    };
    let cpu = set.cpu(1);
    leaf.gone.store(1, Relaxed);
    // `rcu_gp_init()`
    rcu_seq_start(&leaf.state_gp_seq);
    raw_spin_lock(&cpu, &leaf.lock);
    leaf.qsmask.store(1, Relaxed);
    leaf.gp_seq.store(leaf.state_gp_seq.load(Relaxed), Relaxed);
    raw_spin_unlock(&cpu, &leaf.lock);
    // `rcu_gp_fqs_loop()` looks at the mask without the lock; what orders is the lock that comes after.
    smp_cond_load_relaxed(&leaf.qsmask, |owed| owed == 0);
    raw_spin_lock(&cpu, &leaf.lock);
    assert_eq!(leaf.qsmask.load(Relaxed), 0);
    raw_spin_unlock(&cpu, &leaf.lock);
    // `rcu_gp_cleanup()`
    rcu_seq_end(&leaf.state_gp_seq);
    assert_eq!(rcu_seq_state(leaf.state_gp_seq.load(Relaxed)), 0);
    leaf.object.set(0);
    assert!(reader.join().unwrap() >= 1);
}

#[test]
fn a_grace_period_ends_beside_a_busy_reader_and_not_before_the_section_it_began_in() {
    println!("busy: holds in {} executions", explore(3, || busy::<Loom>(Busy::Right)));
}

#[test]
fn a_busy_reader_that_reports_wrongly_is_caught() {
    for how in [Busy::QsInReader, Busy::OldQs, Busy::Unlocked] {
        let message = caught("a busy reader", 2, Failure::Wrong, move || busy::<Loom>(how));
        println!("{how:?}: {}", message.lines().next().unwrap_or(""));
    }
    caught("nobody reports for a busy CPU", 2, Failure::Hangs, || busy::<Loom>(Busy::OnlyIdle));
}
