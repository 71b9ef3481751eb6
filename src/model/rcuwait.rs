// SPDX-License-Identifier: GPL-2.0-only
//! rcuwait: no wake-up is lost, and either missing barrier loses one.

use super::{Failure, caught};
use crate::arch::{Acquire, Arch, Atomic, Release};
use crate::cpu::Errno;
use crate::cpu::sched::{Wait, send_sigkill};
use crate::cpu::testing::{CpuSet, for_test_set, for_test_set_waiting};
use crate::must_catch;
use crate::sync::{Rcuwait, rcuwait_wait_event, rcuwait_wait_event_killable, rcuwait_wake_up};
use std::sync::Arc;

struct Shared<A: Arch> {
    wait: Rcuwait<A>,
    condition: Atomic<A, u32>,
}

fn wait_and_wake<A: Arch>(wake: fn(&Rcuwait<A>)) {
    wait_and_wake_on(for_test_set::<A>(2), wake);
}

fn wait_and_wake_on<A: Arch>(set: CpuSet<A>, wake: fn(&Rcuwait<A>)) {
    let s = Arc::new(Shared::<A> { wait: Rcuwait::new(), condition: Atomic::new(0) });
    let waiter = {
        let (set, s) = (set.clone(), s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            rcuwait_wait_event(&cpu, &s.wait, || s.condition.load(Acquire) != 0);
        })
    };
    s.condition.store(1, Release);
    wake(&s.wait);
    waiter.join().expect("a panic ends the model");
    assert!(!s.wait.is_active());
}

fn sound<A: Arch>() {
    wait_and_wake::<A>(|w| {
        rcuwait_wake_up(w);
    });
}

/// The same, the waiter polling its word.
fn polled<A: Arch>() {
    wait_and_wake_on::<A>(for_test_set_waiting(2, Wait::Spin), |w| {
        rcuwait_wake_up(w);
    });
}

/// Nobody wakes; a signal ends the wait.
fn killed<A: Arch>() {
    let set = for_test_set::<A>(2);
    let s = Arc::new(Shared::<A> { wait: Rcuwait::new(), condition: Atomic::new(0) });
    let waiter = {
        let (set, s) = (set.clone(), s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            rcuwait_wait_event_killable(&cpu, &s.wait, || s.condition.load(Acquire) != 0)
        })
    };
    send_sigkill(set.task_ref(1));
    assert_eq!(waiter.join().expect("a panic ends the model"), Err(Errno::EINTR));
    assert!(!s.wait.is_active());
}

/// The wake-up without its barrier.
fn without_the_wakers_barrier<A: Arch>() {
    wait_and_wake::<A>(|w| w.wake_without_barrier());
}

#[test]
fn no_wake_up_is_lost() {
    // RmwFull takes the barrier of the waiter's side, FullFence both.
    must_catch!(sound, 3, Hangs: RmwFull, FullFence);
}

#[test]
fn nor_by_a_waiter_that_polls() {
    must_catch!(polled, 3, Hangs: RmwFull, FullFence);
}

#[test]
fn a_signal_is_not_lost_either() {
    must_catch!(killed, 3, Hangs: RmwFull, FullFence);
}

#[test]
fn a_waker_without_its_barrier_loses_one() {
    let how = "the waker's barrier";
    println!("{}", caught(how, 3, Failure::Hangs, without_the_wakers_barrier::<crate::arch::loom::Loom>));
}
