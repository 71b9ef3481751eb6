// SPDX-License-Identifier: GPL-2.0-only
//! Polled grace periods under loom: a cookie, a grace period, a poll, and a reader on a CPU that wakes and sleeps.
//!
//! Sequence words and the extended quiescent state are the port's own; the updater does what `get_state_synchronize_rcu()`
//! and `poll_state_synchronize_rcu()` do, with each of their barriers taken away in a twin. The grace-period thread is
//! reduced to its start, its look at the one CPU, and its end.
//!
//! It cannot tell anything about node locks, through which a busy CPU's report would come.

use crate::arch::loom::Loom;
use crate::arch::{Atomic, Plain, Relaxed, smp_mb};
use crate::model::{Failure, caught, explore};
use crate::rcu::context_tracking::ContextTracking;
use crate::rcu::rcu_seq::{rcu_seq_done_exact, rcu_seq_end, rcu_seq_snap, rcu_seq_snap_of, rcu_seq_start};
use ::loom::sync::Arc;
use ::loom::thread;

/// What a twin leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// The barrier before the cookie's load.
    CookieBarrier,
    /// The barrier after a poll that says yes.
    PollBarrier,
    /// A grace period that began before the cookie counts.
    Earlier,
}

struct Case {
    watching: ContextTracking<Loom>,
    polled: Atomic<Loom, u64>,
    gone: Atomic<Loom, u32>,
    object: Plain<Loom, u32>,
}

fn polled(w: Without) {
    let c = Arc::new(Case {
        watching: ContextTracking::new(),
        polled: Atomic::new(0),
        gone: Atomic::new(0),
        object: Plain::new(7),
    });
    let r = c.clone();
    let reader = thread::spawn(move || {
        r.watching.eqs_exit();
        if r.gone.load(Relaxed) == 0 {
            assert_eq!(r.object.get(), 7, "read after free");
        }
        r.watching.eqs_enter();
    });
    let g = c.clone();
    let gp = thread::spawn(move || {
        rcu_seq_start(&g.polled);
        let snap = g.watching.snapshot();
        if ContextTracking::<Loom>::snap_in_eqs(snap) || g.watching.snapshot() != snap {
            rcu_seq_end(&g.polled);
        }
    });
    c.gone.store(1, Relaxed);
    if w != Without::CookieBarrier {
        smp_mb::<Loom>();
    }
    let cookie = match w {
        Without::CookieBarrier => rcu_seq_snap_of(c.polled.load(Relaxed)),
        Without::Earlier => 4,
        _ => rcu_seq_snap(&c.polled),
    };
    if rcu_seq_done_exact(c.polled.load(Relaxed), cookie) {
        if w != Without::PollBarrier {
            smp_mb::<Loom>();
        }
        c.object.set(0);
    }
    reader.join().unwrap();
    gp.join().unwrap();
}

#[test]
fn a_poll_that_says_yes_comes_after_every_reader() {
    println!("polled: holds in {} executions", explore(2, || polled(Without::Nothing)));
    for (w, preemptions) in [(Without::Earlier, 2), (Without::CookieBarrier, 2), (Without::PollBarrier, 5)] {
        caught(&format!("{w:?}"), preemptions, Failure::Wrong, move || polled(w));
    }
}
