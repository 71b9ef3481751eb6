// SPDX-License-Identifier: GPL-2.0-only
//! The mutex: exclusion, handover to a waiter that was overtaken, waiters that a signal takes away.

use super::{Inside, SPAN, eventually, on_cpus, on_cpus_of, torture_set};
use crate::arch::Native;
use crate::cpu::sched::{Wait, flush_signals, send_sigkill, wake_up_process};
use crate::cpu::testing::{for_test_set, for_test_set_waiting};
use crate::cpu::{Cpu, Errno};
use crate::sync::{Mutex, mutex_lock, mutex_lock_killable, mutex_trylock, mutex_unlock};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type M = Mutex<Native>;

#[test]
fn holders_are_alone_and_leave_nothing_behind() {
    for (_, wait) in Wait::ALL {
        let (m, inside, n) = (M::new(), Inside::default(), AtomicU64::new(0));
        torture_set(for_test_set_waiting::<Native>(4, wait), 4, |cpu| {
            // Half of them queue at once, half spin first.
            cpu.softirq.ksoftirqd.set(cpu.id & 1 != 0);
            if cpu.random().is_multiple_of(8) {
                if !mutex_trylock(cpu, &m) {
                    return;
                }
            } else {
                mutex_lock(cpu, &m);
            }
            inside.write(cpu);
            m.flags();
            n.fetch_add(1, Ordering::Relaxed);
            mutex_unlock(cpu, &m);
        });
        m.assert_quiet();
        assert_eq!(inside.writes() as u64, n.into_inner());
    }
}

/// A waiter that was woken and found the lock taken again gets it with the next unlock, whoever else wants it.
#[test]
fn a_waiter_that_was_overtaken_is_handed_the_lock() {
    let (set, m) = (for_test_set::<Native>(3), M::new());
    let quiet = |id| {
        let cpu = set.cpu(id);
        cpu.softirq.ksoftirqd.set(true);
        cpu
    };
    let (holder, thief) = (quiet(0), quiet(2));
    let got = AtomicBool::new(false);
    mutex_lock(&holder, &m);
    std::thread::scope(|s| {
        s.spawn(|| {
            let cpu = quiet(1);
            mutex_lock(&cpu, &m);
            got.store(true, Ordering::Relaxed);
            mutex_unlock(&cpu, &m);
        });
        eventually("queueing", || m.waiters() == 1);
        assert_eq!(m.flags(), [true, false, false]);
        // An unlock that the holder itself overtakes comes to the same as a wake-up for nothing.
        eventually("the wish", || {
            wake_up_process(set.task_ref(1));
            m.flags()[1]
        });
        assert!(!got.load(Ordering::Relaxed) && !mutex_trylock(&thief, &m));
        mutex_unlock(&holder, &m);
        assert!(!mutex_trylock(&thief, &m) || got.load(Ordering::Relaxed), "stolen from a handover");
        eventually("the handover", || got.load(Ordering::Relaxed));
    });
    if m.is_locked() {
        mutex_unlock(&thief, &m);
    }
    m.assert_quiet();
}

/// One that spins may starve as long as the holder runs and takes the lock again at once (seconds were seen); so it may
/// in the kernel, until it should be rescheduled. The handover is for those that queue.
#[test]
fn a_waiter_among_greedy_holders_gets_in() {
    let m = M::new();
    let (done, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    on_cpus::<Native>(3, |cpu| {
        cpu.softirq.ksoftirqd.set(cpu.id == 2);
        let end = Instant::now() + SPAN;
        while !done.load(Ordering::Relaxed) && (cpu.id < 2 || Instant::now() < end) {
            let t = Instant::now();
            mutex_lock(cpu, &m);
            if cpu.id == 2 {
                longest.fetch_max(t.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
            super::hold(cpu);
            mutex_unlock(cpu, &m);
        }
        done.store(true, Ordering::Relaxed);
    });
    m.assert_quiet();
    let longest = Duration::from_micros(longest.into_inner());
    println!("at most {longest:?}");
    assert!(longest < Duration::from_secs(2));
}

#[test]
fn a_storm_of_signals_leaves_the_lock_whole() {
    let (m, inside) = (M::new(), Inside::default());
    let [killed, n] = [const { AtomicU64::new(0) }; 2];
    let stop = AtomicBool::new(false);
    let set = for_test_set::<Native>(4);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut x = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                x = x.wrapping_mul(747_796_405).wrapping_add(1);
                send_sigkill(set.task_ref(x >> 30));
                std::thread::yield_now();
            }
        });
        let end = Instant::now() + SPAN;
        let latest = end + Duration::from_secs(10);
        on_cpus_of(set.clone(), 4, |cpu: &Cpu<Native>| {
            cpu.softirq.ksoftirqd.set(cpu.id & 1 != 0);
            while Instant::now() < end || killed.load(Ordering::Relaxed) <= 10 && Instant::now() < latest {
                match mutex_lock_killable(cpu, &m) {
                    Ok(()) => {
                        inside.write(cpu);
                        n.fetch_add(1, Ordering::Relaxed);
                        if cpu.random().is_multiple_of(8) {
                            std::thread::sleep(Duration::from_micros(50));
                        }
                        mutex_unlock(cpu, &m);
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
    m.assert_quiet();
    assert_eq!(inside.writes() as u64, n.into_inner());
    assert!(killed.into_inner() > 10, "hardly anybody was killed while waiting: the test shows nothing");
}
