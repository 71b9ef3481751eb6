// SPDX-License-Identifier: GPL-2.0-only
//! `rcu_barrier()` under loom: the callback that it puts behind a CPU's others, the count of those callbacks, and what
//! the caller may do when it returns.
//!
//! List, count and completion are the port's own (`rcu/rcu_segcblist.rs`, `rcu/barrier.rs`); around them stand the asker
//! and one CPU, a few lines each, in the order of `rcu_barrier_one()` and `rcu_barrier_entrain()`. The twins do two of
//! the steps the wrong way round.
//!
//! Two barriers that overlap, over one CPU's list: the second is asked for while the first runs, by the CPU that the
//! first waits for, behind whose callback it has queued one more. The first does not do for the second (its twin
//! believes so), while one that begins after a caller asked does for that caller.
//!
//! It cannot tell: that the CPU is asked at all (`smp.rs`), and more CPUs than the one. Nor whether acquire and release of
//! snapshot and completion are needed: the length of the list has full barriers around it, and the checker takes those
//! for an order of everything before and after. `grace_period.rs` takes the length's barriers away.

use super::{Failure, caught, explore};
use crate::arch::{Arch, Atomic, Plain, Relaxed, Release, smp_cond_load_acquire};
use crate::cpu::testing::for_test_set;
use crate::rcu::rcu_segcblist::{RcuCblist, RcuSegcblist};
use crate::rcu::rcu_seq::{rcu_seq_done, rcu_seq_end, rcu_seq_snap, rcu_seq_start};
use crate::rcu::{BarrierCount, RcuHead, rcu_barrier_in_turn};
use crate::sync::Mutex;
use std::sync::Arc;

struct Case<A: Arch> {
    list: RcuSegcblist<A>,
    head: RcuHead<A>,
    barrier_head: RcuHead<A>,
    count: BarrierCount<A>,
    /// `barrier_seq_snap` of the CPU: 1 once it was asked.
    snap: Atomic<A, u64>,
    /// What the first callback writes, and who called `rcu_barrier()` tears down.
    data: Plain<A, u32>,
    /// That it was called. Beside the other: the checker looks for orders of atomics only.
    called: Atomic<A, u32>,
}

/// What a twin does the wrong way round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twin {
    None,
    /// The CPU says that it was asked before its callback is counted.
    SnapFirst,
    /// The barrier's callback goes to the front.
    Front,
}

/// A CPU with one callback queued is asked, calls its batch; the asker then owns what the callback wrote.
fn barrier<A: Arch>(twin: Twin) {
    let set = for_test_set::<A>(2);
    let c = Arc::new(Case::<A> {
        list: RcuSegcblist::new(),
        head: RcuHead::new(),
        barrier_head: RcuHead::new(),
        count: BarrierCount::new(),
        snap: Atomic::new(0),
        data: Plain::new(0),
        called: Atomic::new(0),
    });
    c.list.init();
    let at = |h: &RcuHead<A>| std::ptr::from_ref(h).cast_mut();
    // SAFETY: heads live as long as the list.
    unsafe { c.list.enqueue(at(&c.head)) };
    c.count.begin();
    let worker = {
        let c = c.clone();
        ::loom::thread::spawn(move || {
            let at = |h: &RcuHead<A>| std::ptr::from_ref(h).cast_mut();
            if twin == Twin::SnapFirst {
                c.snap.store(1, Release);
            }
            // `rcu_barrier_entrain()`
            if twin == Twin::Front {
                c.count.get();
                c.count.put(1);
            // SAFETY: as above.
            } else if unsafe { c.list.entrain(at(&c.barrier_head)) } {
                c.count.get();
            }
            c.snap.store(1, Release);
            // `rcu_do_batch()`
            assert!(c.list.accelerate(4));
            c.list.advance(4);
            let mut rcl = RcuCblist::new();
            c.list.extract_done_cbs(&mut rcl);
            let mut n = 0;
            loop {
                // SAFETY: as above.
                let h = unsafe { rcl.dequeue() };
                if h.is_null() {
                    break;
                }
                n += 1;
                if h == at(&c.head) {
                    c.data.set(1);
                    c.called.store(1, Relaxed);
                } else {
                    c.count.put(1);
                }
            }
            c.list.add_len(-n);
        })
    };
    let cpu = set.cpu(0);
    // `rcu_barrier_one()`: the length says whether the CPU must be asked; then it is waited for.
    if c.list.n_cbs() != 0 {
        let _ = smp_cond_load_acquire(&c.snap, |s| s == 1);
    }
    c.count.put(2);
    c.count.wait(&cpu);
    assert_eq!(c.called.load(Relaxed), 1, "the callback was not called");
    assert_eq!(c.data.get(), 1);
    worker.join().expect("a panic ends the model");
}

fn sound<A: Arch>() {
    barrier::<A>(Twin::None);
}

#[test]
fn who_called_rcu_barrier_owns_what_callbacks_wrote() {
    println!("rcu_barrier: holds in {} executions", explore(2, sound::<crate::arch::loom::Loom>));
}

#[test]
fn steps_the_wrong_way_round_are_caught() {
    type L = crate::arch::loom::Loom;
    caught("asked before counted", 2, Failure::Wrong, || barrier::<L>(Twin::SnapFirst));
    caught("not behind the others", 2, Failure::Wrong, || barrier::<L>(Twin::Front));
}

/// One CPU's list and two callers.
struct Overlap<A: Arch> {
    list: RcuSegcblist<A>,
    /// The second is queued behind the first barrier's callback.
    heads: [RcuHead<A>; 2],
    barrier_head: RcuHead<A>,
    mutex: Mutex<A>,
    sequence: Atomic<A, u64>,
    count: BarrierCount<A>,
    snap: Atomic<A, u64>,
    /// Of each callback, as in [`Case`].
    data: [Plain<A, u32>; 2],
    called: [Atomic<A, u32>; 2],
}

impl<A: Arch> Overlap<A> {
    /// One callback queued.
    fn new() -> Arc<Self> {
        let c = Arc::new(Overlap::<A> {
            list: RcuSegcblist::new(),
            heads: [0; 2].map(|_| RcuHead::new()),
            barrier_head: RcuHead::new(),
            mutex: Mutex::new(),
            sequence: Atomic::new(0),
            count: BarrierCount::new(),
            snap: Atomic::new(0),
            data: [0; 2].map(|_| Plain::new(0)),
            called: [0; 2].map(|_| Atomic::new(0)),
        });
        c.list.init();
        c.enqueue(0);
        c
    }

    fn at(h: &RcuHead<A>) -> *mut RcuHead<A> {
        std::ptr::from_ref(h).cast_mut()
    }

    fn enqueue(&self, i: usize) {
        // SAFETY: heads live as long as the list, and each is queued once.
        unsafe { self.list.enqueue(Self::at(&self.heads[i])) };
    }

    /// `rcu_barrier_entrain()`, on the list's CPU.
    fn entrain(&self) {
        let gseq = self.sequence.load(Relaxed);
        // SAFETY: as above; the barrier before is over.
        if unsafe { self.list.entrain(Self::at(&self.barrier_head)) } {
            self.count.get();
        }
        self.snap.store(gseq, Release);
    }

    /// `rcu_do_batch()` of what waits for grace period `gp`, on the list's CPU.
    fn batch(&self, gp: u64) {
        self.list.advance(gp);
        let mut rcl = RcuCblist::new();
        self.list.extract_done_cbs(&mut rcl);
        let mut n = 0;
        loop {
            // SAFETY: as above.
            let h = unsafe { rcl.dequeue() };
            if h.is_null() {
                break;
            }
            n += 1;
            match self.heads.iter().position(|x| Self::at(x) == h) {
                Some(i) => {
                    self.data[i].set(1);
                    self.called[i].store(1, Relaxed);
                }
                None => self.count.put(1),
            }
        }
        self.list.add_len(-n);
    }

    /// What the caller of a barrier may rely on.
    fn assert_called(&self, i: usize) {
        assert_eq!(self.called[i].load(Relaxed), 1, "callback {i} was not called");
        assert_eq!(self.data[i].get(), 1);
    }
}

type Done = fn(u64, u64) -> bool;

/// CPU 1 asks; CPU 0 answers, queues one more, calls its batch and asks in its turn, by `done`.
fn overlap<A: Arch>(done: Done) {
    let set = for_test_set::<A>(2);
    let c = Overlap::<A>::new();
    let cpu = set.cpu(1);
    cpu.softirq.ksoftirqd.set(true);
    let s = rcu_seq_snap(&c.sequence);
    let mut other = None;
    rcu_barrier_in_turn(&cpu, &c.mutex, &c.sequence, s, rcu_seq_done, || {
        rcu_seq_start(&c.sequence);
        let gseq = c.sequence.load(Relaxed);
        c.count.begin();
        let (set, c0) = (set.clone(), c.clone());
        other = Some(::loom::thread::spawn(move || {
            let cpu = set.cpu(0);
            // No spinning: the checker would follow each turn of it.
            cpu.softirq.ksoftirqd.set(true);
            c0.entrain();
            assert!(c0.list.accelerate(4));
            c0.enqueue(1);
            c0.batch(4);
            let s = rcu_seq_snap(&c0.sequence);
            rcu_barrier_in_turn(&cpu, &c0.mutex, &c0.sequence, s, done, || {
                rcu_seq_start(&c0.sequence);
                c0.count.begin();
                c0.entrain();
                c0.count.put(2);
                assert!(c0.list.accelerate(8));
                c0.batch(8);
                c0.count.wait(&cpu);
                rcu_seq_end(&c0.sequence);
            });
            c0.assert_called(1);
        }));
        if c.list.n_cbs() != 0 {
            let _ = smp_cond_load_acquire(&c.snap, |s| s == gseq);
        }
        c.count.put(2);
        c.count.wait(&cpu);
        c.assert_called(0);
        rcu_seq_end(&c.sequence);
    });
    c.assert_called(0);
    other.expect("spawned").join().expect("a panic ends the model");
}

/// CPU 0's barrier, while CPU 1 waits with one that it asked for before.
fn shared<A: Arch>() {
    let set = for_test_set::<A>(2);
    let c = Overlap::<A>::new();
    let cpu = set.cpu(0);
    cpu.softirq.ksoftirqd.set(true);
    let mut other = None;
    let s = rcu_seq_snap(&c.sequence);
    rcu_barrier_in_turn(&cpu, &c.mutex, &c.sequence, s, rcu_seq_done, || {
        let (set, c1) = (set.clone(), c.clone());
        other = Some(::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            cpu.softirq.ksoftirqd.set(true);
            rcu_barrier_in_turn(&cpu, &c1.mutex, &c1.sequence, s, rcu_seq_done, || panic!("one too many"));
            c1.assert_called(0);
        }));
        rcu_seq_start(&c.sequence);
        c.count.begin();
        c.entrain();
        c.count.put(2);
        assert!(c.list.accelerate(4));
        c.batch(4);
        c.count.wait(&cpu);
        rcu_seq_end(&c.sequence);
    });
    other.expect("spawned").join().expect("a panic ends the model");
}

#[test]
fn a_barrier_that_runs_already_does_not_do() {
    type L = crate::arch::loom::Loom;
    println!("overlapping: holds in {} executions", explore(2, || overlap::<L>(rcu_seq_done)));
    // As if any barrier that ends while this one waits for its turn would do.
    let any = || overlap::<L>(|cur, s| rcu_seq_done(cur, s.wrapping_sub(4)));
    println!("{}", caught("any barrier will do", 2, Failure::Wrong, any));
}

#[test]
fn a_barrier_that_began_after_the_call_does() {
    println!("shared: holds in {} executions", explore(2, shared::<crate::arch::loom::Loom>));
}
