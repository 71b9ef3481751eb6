// SPDX-License-Identifier: GPL-2.0-only
//! `rcu_barrier()` under loom: the callback that it puts behind a CPU's others, the count of those callbacks, and what
//! the caller may do when it returns.
//!
//! List, count and completion are the port's own (`rcu/rcu_segcblist.rs`, `rcu/barrier.rs`); around them stand the asker
//! and one CPU, a few lines each, in the order of `rcu_barrier_one()` and `rcu_barrier_entrain()`. The twins do two of
//! the steps the wrong way round.
//!
//! It cannot tell: that the CPU is asked at all (`smp.rs`), and overlapping barriers. Nor whether acquire and release of
//! snapshot and completion are needed: the length of the list has full barriers around it, and the checker takes those
//! for an order of everything before and after. `grace_period.rs` takes the length's barriers away.

use super::{Failure, caught, explore};
use crate::arch::{Arch, Atomic, Plain, Relaxed, Release, smp_cond_load_acquire};
use crate::cpu::testing::for_test_set;
use crate::rcu::rcu_segcblist::{RcuCblist, RcuSegcblist};
use crate::rcu::{BarrierCount, RcuHead};
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
