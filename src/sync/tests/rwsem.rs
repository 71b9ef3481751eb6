// SPDX-License-Identifier: GPL-2.0-only
//! L1 to L4 of the reference: exclusion, the state at the end, a sequential oracle, downgrading, starvation.

use super::{Inside, SPAN, hold, on_cpus, torture_set};
use crate::arch::Native;
use crate::cpu::sched::Wait;
use crate::cpu::testing::{for_test_set, for_test_set_waiting};
use crate::sync::{
    RwSemaphore, down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, up_read, up_write,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type S = RwSemaphore<Native>;

#[test]
fn readers_and_writers_exclude_each_other_and_leave_nothing_behind() {
    for (_, wait) in Wait::ALL {
        exclusion(wait);
    }
}

fn exclusion(wait: Wait) {
    let s = S::new();
    let inside = Inside::default();
    let writes = AtomicU64::new(0);
    let set = torture_set::<Native>(for_test_set_waiting(4, wait), 4, |cpu| {
        match cpu.random() % 16 {
            0..8 => {
                down_read(cpu, &s);
                inside.read(cpu);
                up_read(cpu, &s);
            }
            8 => {
                if down_read_trylock(cpu, &s) {
                    inside.read(cpu);
                    up_read(cpu, &s);
                }
            }
            9 => {
                if down_write_trylock(cpu, &s) {
                    inside.write(cpu);
                    writes.fetch_add(1, Ordering::Relaxed);
                    up_write(cpu, &s);
                }
            }
            10..12 => {
                down_write(cpu, &s);
                inside.write(cpu);
                let mine = inside.writes();
                writes.fetch_add(1, Ordering::Relaxed);
                downgrade_write(cpu, &s);
                assert_eq!(inside.writes(), mine, "a writer came between");
                inside.read(cpu);
                assert_eq!(inside.writes(), mine, "a writer came between");
                up_read(cpu, &s);
            }
            _ => {
                down_write(cpu, &s);
                inside.write(cpu);
                writes.fetch_add(1, Ordering::Relaxed);
                up_write(cpu, &s);
            }
        }
        if cpu.random().is_multiple_of(64) {
            std::thread::yield_now();
        }
    });
    assert_eq!(inside.writes() as u64, writes.into_inner());
    s.assert_quiet();
    assert!(
        (0..4).all(|i| set.task(i).wake_q.load(crate::arch::Relaxed).is_null()),
        "a task is still queued to be woken"
    );
}

/// One thread, random operations that cannot block, against what the bits must be.
#[test]
fn the_count_is_the_sum_of_its_holders() {
    let s = S::new();
    let cpu = for_test_set::<Native>(1);
    let cpu = cpu.cpu(0);
    let (mut readers, mut writer) = (0_i64, false);
    for _ in 0..20_000 {
        match cpu.random() % 6 {
            0 => assert_eq!(down_read_trylock(&cpu, &s), !writer, "{readers} readers"),
            1 => assert_eq!(down_write_trylock(&cpu, &s), !writer && readers == 0, "{readers} readers"),
            2 if !writer => down_read(&cpu, &s),
            3 if !writer && readers == 0 => down_write(&cpu, &s),
            4 if writer => downgrade_write(&cpu, &s),
            5 if writer => up_write(&cpu, &s),
            5 if readers > 0 => up_read(&cpu, &s),
            _ => continue,
        }
        // Read back what happened: the bits are the truth to be checked, the oracle follows by its own rules.
        let (r, w) = s.holders();
        let legal = match (readers, writer) {
            (0, false) => [(0, false), (1, false), (0, true)].contains(&(r, w)),
            (n, false) => r >= n - 1 && r <= n + 1 && !w,
            (_, true) => [(0, true), (1, false), (0, false)].contains(&(r, w)),
        };
        assert!(legal, "from {readers} readers, writer {writer} to {r}, {w}");
        (readers, writer) = (r, w);
        if readers > 100 {
            (0..readers).for_each(|_| up_read(&cpu, &s));
            readers = 0;
        }
        assert_eq!(s.is_locked(), readers > 0 || writer);
        assert_eq!(s.is_write_locked(), writer);
    }
    (0..readers).for_each(|_| up_read(&cpu, &s));
    if writer {
        up_write(&cpu, &s);
    }
    s.assert_quiet();
}

/// 7.3's hung task detector wants no name of a reader that has left; without it the name stays, as a hint.
#[test]
fn a_reader_takes_its_name_out_where_the_kernel_is_built_so() {
    let set = for_test_set::<Native>(2);
    let (cpu, other) = (set.cpu(0), set.cpu(1));
    for clears in [false, true] {
        let s = S::new();
        cpu.clear_reader_owned.set(clears);
        down_read(&cpu, &s);
        assert_eq!(s.owner_cpu(), Some(0));
        up_read(&cpu, &s);
        assert_eq!(s.owner_cpu(), if clears { None } else { Some(0) });
        // Another reader's name is not this one's to take.
        down_read(&cpu, &s);
        down_read(&other, &s);
        up_read(&cpu, &s);
        assert_eq!(s.owner_cpu(), Some(1));
        up_read(&other, &s);
        s.assert_quiet();
    }
}

/// A crowd that never leaves the lock alone, and one of the other kind: how long that one waits at most.
fn wait_among_crowd(crowd_reads: bool) -> Duration {
    let s = S::new();
    let done = AtomicBool::new(false);
    let longest = AtomicU64::new(0);
    on_cpus::<Native>(3, |cpu| {
        if cpu.id < 2 {
            while !done.load(Ordering::Relaxed) {
                if crowd_reads {
                    down_read(cpu, &s);
                    hold(cpu);
                    up_read(cpu, &s);
                } else {
                    down_write(cpu, &s);
                    hold(cpu);
                    up_write(cpu, &s);
                }
            }
            return;
        }
        let end = Instant::now() + SPAN;
        while Instant::now() < end {
            let t = Instant::now();
            if crowd_reads {
                down_write(cpu, &s);
                longest.fetch_max(t.elapsed().as_micros() as u64, Ordering::Relaxed);
                up_write(cpu, &s);
            } else {
                down_read(cpu, &s);
                longest.fetch_max(t.elapsed().as_micros() as u64, Ordering::Relaxed);
                up_read(cpu, &s);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    s.assert_quiet();
    Duration::from_micros(longest.into_inner())
}

// The kernel's bound is two ticks and a hold. A machine with fewer processors than threads adds its own scheduler's
// delays, which the slack is for; without handoff the wait is as long as the test.
#[test]
fn a_writer_gets_in_among_readers() {
    assert!(wait_among_crowd(true) < Duration::from_secs(2));
}

#[test]
fn a_reader_gets_in_among_writers() {
    assert!(wait_among_crowd(false) < Duration::from_secs(2));
}
