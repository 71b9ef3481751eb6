// SPDX-License-Identifier: GPL-2.0-only
//! Waits that a fatal signal ends: what a waiter that gives up must undo, and whom it must wake.

use super::{Inside, SPAN, eventually, on_cpus_of};
use crate::arch::{Acquire, Atomic, Native, Release};
use crate::cpu::sched::{Wait, fatal_signal_pending, flush_signals, send_sigkill};
use crate::cpu::testing::{CpuSet, for_test_set, for_test_set_waiting};
use crate::cpu::{Cpu, Errno};
use crate::sync::{
    LockEvent, Rcuwait, RwSemaphore, down_read, down_read_killable, down_read_trylock, down_write, down_write_killable,
    down_write_trylock, rcuwait_wait_event, rcuwait_wait_event_killable, rcuwait_wake_up, up_read, up_write,
};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

type S = RwSemaphore<Native>;

/// A token that does not spin.
fn quiet_cpu(set: &CpuSet<Native>, id: u32) -> Cpu<Native> {
    let cpu = set.cpu(id);
    cpu.softirq.ksoftirqd.set(true);
    cpu
}

/// CPU `id` waits killably; returns when it is the last in the queue. It says what came of it and how often it was
/// taken away, and lets go at once of what it got.
fn queue<'s>(
    s: &'s Scope<'s, '_>,
    set: &'s CpuSet<Native>,
    sem: &'s S,
    id: u32,
    read: bool,
    got: &'s AtomicU32,
) -> ScopedJoinHandle<'s, (Result<(), Errno>, u64)> {
    let before = sem.queued().len();
    let h = s.spawn(move || {
        let cpu = quiet_cpu(set, id);
        let r = if read { down_read_killable(&cpu, sem) } else { down_write_killable(&cpu, sem) };
        if r.is_ok() {
            got.fetch_add(1, Ordering::Relaxed);
            if read { up_read(&cpu, sem) } else { up_write(&cpu, sem) }
        }
        let fails = cpu.counters.get(LockEvent::RwsemRlockFail) + cpu.counters.get(LockEvent::RwsemWlockFail);
        (r, fails)
    });
    eventually("queueing", || sem.queued().len() == before + 1);
    assert_eq!(sem.queued().last(), Some(&(id, read)));
    h
}

#[test]
fn a_killed_waiter_leaves_nothing_behind() {
    for read in [true, false] {
        let (set, sem, got) = (for_test_set::<Native>(2), S::new(), AtomicU32::new(0));
        let holder = quiet_cpu(&set, 1);
        down_write(&holder, &sem);
        std::thread::scope(|s| {
            let h = queue(s, &set, &sem, 0, read, &got);
            send_sigkill(set.task_ref(0));
            assert_eq!(h.join().expect("no panic"), (Err(Errno::EINTR), 1));
        });
        assert!(sem.queued().is_empty() && !sem.is_contended(), "it is still queued, or its bit is");
        assert_eq!(sem.holders(), (0, true));
        up_write(&holder, &sem);
        sem.assert_quiet();
    }
}

/// A first waiter may be the only one that was ever woken; when it gives up, the next must be, or nobody is.
#[test]
fn a_killed_first_writer_lets_the_readers_behind_it_in() {
    let (set, sem, got) = (for_test_set::<Native>(4), S::new(), AtomicU32::new(0));
    let holder = quiet_cpu(&set, 3);
    down_read(&holder, &sem);
    std::thread::scope(|s| {
        let first = queue(s, &set, &sem, 0, false, &got);
        let readers = [1, 2].map(|id| queue(s, &set, &sem, id, true, &got));
        send_sigkill(set.task_ref(0));
        assert_eq!(first.join().expect("no panic"), (Err(Errno::EINTR), 1));
        // Nobody unlocks meanwhile: they come in beside the holder.
        eventually("both readers inside", || got.load(Ordering::Relaxed) == 2);
        for h in readers {
            assert_eq!(h.join().expect("no panic"), (Ok(()), 0));
        }
    });
    assert_eq!(sem.holders(), (1, false));
    up_read(&holder, &sem);
    sem.assert_quiet();
}

/// The second in the queue gives up: nobody else has a reason to move.
#[test]
fn a_killed_second_waiter_wakes_nobody() {
    let (set, sem, got) = (for_test_set::<Native>(4), S::new(), AtomicU32::new(0));
    let holder = quiet_cpu(&set, 3);
    down_read(&holder, &sem);
    std::thread::scope(|s| {
        let first = queue(s, &set, &sem, 0, false, &got);
        let second = queue(s, &set, &sem, 1, false, &got);
        let third = queue(s, &set, &sem, 2, true, &got);
        send_sigkill(set.task_ref(1));
        assert_eq!(second.join().expect("no panic"), (Err(Errno::EINTR), 1));
        sleep(Duration::from_millis(5));
        assert_eq!(got.load(Ordering::Relaxed), 0);
        assert_eq!(sem.queued(), [(0, false), (2, true)]);
        up_read(&holder, &sem);
        assert!(first.join().expect("no panic").0.is_ok() && third.join().expect("no panic").0.is_ok());
    });
    sem.assert_quiet();
}

/// Makes the first waiter ask for a handoff: wakes it, as unlocks would, until its patience is over.
fn until_handoff(set: &CpuSet<Native>, sem: &S, first: u32) {
    eventually("the handoff", || {
        crate::cpu::sched::wake_up_process(set.task_ref(first));
        sem.handoff()
    });
}

#[test]
fn the_handoff_goes_with_the_last_waiter_and_is_left_to_the_next() {
    // Alone: bit and waiter go together.
    let (set, sem, got) = (for_test_set::<Native>(3), S::new(), AtomicU32::new(0));
    let holder = quiet_cpu(&set, 2);
    down_read(&holder, &sem);
    std::thread::scope(|s| {
        let h = queue(s, &set, &sem, 0, false, &got);
        until_handoff(&set, &sem, 0);
        assert!(!down_read_trylock(&holder, &sem), "stolen from a handoff");
        send_sigkill(set.task_ref(0));
        assert!(h.join().expect("no panic").0.is_err());
        assert!(!sem.handoff() && !sem.is_contended());
        assert!(down_read_trylock(&holder, &sem), "the dead waiter still keeps others out");
        up_read(&holder, &sem);
        // With another behind it: the bit stays, and the other gets the lock although it never asked.
        flush_signals(&set.cpu(0));
        let h = queue(s, &set, &sem, 0, false, &got);
        until_handoff(&set, &sem, 0);
        let next = queue(s, &set, &sem, 1, false, &got);
        send_sigkill(set.task_ref(0));
        assert!(h.join().expect("no panic").0.is_err());
        assert!(sem.handoff(), "a handoff that is under way goes to the next");
        assert!(!down_write_trylock(&holder, &sem));
        up_read(&holder, &sem);
        assert_eq!(next.join().expect("no panic").0, Ok(()));
    });
    sem.assert_quiet();
}

#[test]
fn an_uninterruptible_sleeper_does_not_hear_the_signal() {
    let (set, sem) = (for_test_set::<Native>(2), S::new());
    let holder = quiet_cpu(&set, 1);
    down_write(&holder, &sem);
    std::thread::scope(|s| {
        let h = s.spawn(|| {
            let cpu = quiet_cpu(&set, 0);
            down_read(&cpu, &sem);
            up_read(&cpu, &sem);
            cpu.counters.get(LockEvent::RwsemSleepReader)
        });
        eventually("queueing", || sem.queued().len() == 1);
        eventually("sleeping", || set.task(0).on_cpu.load(Acquire) == 0);
        send_sigkill(set.task_ref(0));
        sleep(Duration::from_millis(5));
        assert_eq!(sem.queued(), [(0, true)]);
        up_write(&holder, &sem);
        assert_eq!(h.join().expect("no panic"), 1, "it was woken for the signal");
    });
    assert!(fatal_signal_pending(set.task(0)));
    sem.assert_quiet();
}

/// Everybody takes the lock in every way while one more thread sends signals without end. Whoever is killed is at once
/// somebody else.
#[test]
fn a_storm_of_signals_leaves_the_lock_whole() {
    for (_, wait) in Wait::ALL {
        let sem = S::new();
        let inside = Inside::default();
        let [killed, writes, handoffs] = [const { AtomicU64::new(0) }; 3];
        let stop = AtomicBool::new(false);
        let set = for_test_set_waiting::<Native>(5, wait);
        std::thread::scope(|s| {
            s.spawn(|| {
                let cpu = set.cpu(4);
                let mut n = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_mul(747_796_405).wrapping_add(1);
                    send_sigkill(set.task_ref(n >> 30));
                    handoffs.fetch_add(u64::from(sem.assert_flags(&cpu)), Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
            let end = Instant::now() + SPAN;
            let latest = end + Duration::from_secs(10);
            on_cpus_of(set.clone(), 4, |cpu| {
                // Half of them queue at once, half spin first.
                cpu.softirq.ksoftirqd.set(cpu.id & 1 != 0);
                while Instant::now() < end || killed.load(Ordering::Relaxed) <= 10 && Instant::now() < latest {
                    let r = match cpu.random() % 8 {
                        0..3 => down_read_killable(cpu, &sem).map(|()| true),
                        3..6 => down_write_killable(cpu, &sem).map(|()| false),
                        6 => {
                            down_read(cpu, &sem);
                            Ok(true)
                        }
                        _ => {
                            down_write(cpu, &sem);
                            Ok(false)
                        }
                    };
                    match r {
                        Ok(true) => {
                            inside.read(cpu);
                            up_read(cpu, &sem);
                        }
                        Ok(false) => {
                            inside.write(cpu);
                            writes.fetch_add(1, Ordering::Relaxed);
                            // Asleep with the lock, so that the others do queue.
                            if cpu.random().is_multiple_of(8) {
                                sleep(Duration::from_micros(50));
                            }
                            up_write(cpu, &sem);
                        }
                        Err(e) => {
                            assert_eq!(e, Errno::EINTR);
                            killed.fetch_add(1, Ordering::Relaxed);
                            flush_signals(cpu);
                        }
                    }
                }
            });
            stop.store(true, Ordering::Relaxed);
        });
        sem.assert_quiet();
        assert!(!sem.handoff());
        assert_eq!(inside.writes() as u64, writes.into_inner());
        println!("{wait:?}: {killed:?} killed, a handoff under way at {handoffs:?} looks");
        assert!(killed.into_inner() > 10, "{wait:?}: hardly anybody was killed while waiting: the test shows nothing");
    }
}

#[test]
fn rcuwait_ends_at_the_condition_or_at_the_signal() {
    for (_, wait) in Wait::ALL {
        let set = for_test_set_waiting::<Native>(1, wait);
        let (w, cond) = (Rcuwait::<Native>::new(), Atomic::<Native, u32>::new(0));
        let waiter = |killable: bool| {
            let cpu = set.cpu(0);
            // ORDER: acquire; meets the release below.
            let done = || cond.load(Acquire) != 0;
            if killable {
                rcuwait_wait_event_killable(&cpu, &w, done)
            } else {
                rcuwait_wait_event(&cpu, &w, done);
                Ok(())
            }
        };
        std::thread::scope(|s| {
            let h = s.spawn(|| waiter(true));
            eventually("waiting", || w.is_active());
            send_sigkill(set.task_ref(0));
            assert_eq!(h.join().expect("no panic"), Err(Errno::EINTR));
            assert!(!w.is_active());
            // A signal that is there already: it does not even fall asleep.
            assert_eq!(waiter(true), Err(Errno::EINTR));
            // One that is deaf to it.
            let h = s.spawn(|| waiter(false));
            eventually("waiting", || w.is_active());
            sleep(Duration::from_millis(2));
            assert!(!h.is_finished());
            cond.store(1, Release);
            rcuwait_wake_up(&w);
            assert_eq!(h.join().expect("no panic"), Ok(()));
            // The condition comes before the signal.
            assert_eq!(waiter(true), Ok(()));
        });
    }
}
