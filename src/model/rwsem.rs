// SPDX-License-Identifier: GPL-2.0-only
//! The rwsem between two CPUs: with and without spinning, queueing, sleeping, handoff; readers, writers, downgrade.
//!
//! The data is race-checked, so that a lock let through too early shows as a race. A lost wake-up hangs.
//!
//! The handoff: who has found its bit set and comes later, in any of the five ways there are, gets the lock after the
//! waiter that it is for. A spinner, a queued writer and a reader that steal are
//! caught; trylocks that would have no twin.

use super::{Failure, caught, explore};
use crate::arch::loom::{Loom, with_clock_step};
use crate::arch::{Arch, Plain};
use crate::cpu::sched::send_sigkill;
use crate::cpu::testing::for_test_set;
use crate::cpu::{Cpu, Errno};
use crate::must_catch;
use crate::sync::{
    LockEvent, RwSemaphore, down_read, down_read_killable, down_read_trylock, down_write, down_write_killable,
    down_write_trylock, downgrade_write, up_read, up_write,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Shared<A: Arch> {
    sem: RwSemaphore<A>,
    data: Plain<A, u32>,
}

type Part<A> = fn(&Cpu<A>, &Shared<A>);

/// Two CPUs, one part each. Without `spin`, both have softirq work waiting, so that writers queue and sleep at once.
/// Returns how often they slept and how often they asked for a handoff.
fn run<A: Arch>(spin: bool, parts: [Part<A>; 2]) -> [u64; 2] {
    let set = for_test_set::<A>(2);
    let s = Arc::new(Shared::<A> { sem: RwSemaphore::new(), data: Plain::new(0) });
    let play = |id: u32| {
        let (set, s, part) = (set.clone(), s.clone(), parts[id as usize]);
        move || {
            let cpu = set.cpu(id);
            cpu.softirq.ksoftirqd.set(!spin);
            part(&cpu, &s);
            let n = |e| cpu.counters.get(e);
            [
                n(LockEvent::RwsemSleepReader) + n(LockEvent::RwsemSleepWriter),
                n(LockEvent::RwsemRlockHandoff) + n(LockEvent::RwsemWlockHandoff),
            ]
        }
    };
    let other = ::loom::thread::spawn(play(1));
    let (a, b) = (play(0)(), other.join().expect("a panic ends the model"));
    s.sem.assert_quiet();
    [a[0] + b[0], a[1] + b[1]]
}

fn write<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) {
    down_write(cpu, &s.sem);
    s.data.set(s.data.get() + 1);
    up_write(cpu, &s.sem);
}

fn read<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) {
    down_read(cpu, &s.sem);
    s.data.get();
    up_read(cpu, &s.sem);
}

fn read_try<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) {
    if down_read_trylock(cpu, &s.sem) {
        s.data.get();
        up_read(cpu, &s.sem);
    }
}

fn downgrade<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) {
    down_write(cpu, &s.sem);
    let v = s.data.get() + 1;
    s.data.set(v);
    downgrade_write(cpu, &s.sem);
    assert_eq!(s.data.get(), v, "a writer came between");
    up_read(cpu, &s.sem);
}

fn write_write<A: Arch>() {
    run::<A>(false, [write, write]);
}
fn write_read<A: Arch>() {
    run::<A>(false, [write, read]);
}
fn downgrade_read<A: Arch>() {
    run::<A>(false, [downgrade, read]);
}
fn downgrade_write_<A: Arch>() {
    run::<A>(false, [downgrade, write]);
}
fn write_read_try<A: Arch>() {
    run::<A>(false, [write, read_try]);
}
fn spinning_writers<A: Arch>() {
    run::<A>(true, [write, write]);
}

/// How often the CPUs slept and asked for a handoff, in all executions.
fn events(parts: [Part<Loom>; 2]) -> [u64; 2] {
    let sum = Arc::new([const { AtomicU64::new(0) }; 2]);
    let s = sum.clone();
    explore(2, move || {
        let e = run::<Loom>(false, parts);
        (0..2).for_each(|i| _ = s[i].fetch_add(e[i], Ordering::Relaxed));
    });
    [0, 1].map(|i| sum[i].load(Ordering::Relaxed))
}

#[test]
fn the_cases_sleep() {
    let cases: [[Part<Loom>; 2]; 3] = [[write, write], [write, read], [downgrade, write]];
    for parts in cases {
        let [slept, handoffs] = events(parts);
        assert!(slept > 0, "nobody ever slept");
        assert_eq!(handoffs, 0, "a handoff, although time stands still");
    }
}

#[test]
fn two_writers() {
    must_catch!(write_write, 2, Wrong: RmwRelease, RmwAcquire);
}

#[test]
fn a_writer_and_a_reader() {
    must_catch!(write_read, 2, Wrong: RmwRelease, RmwAcquire);
    must_catch!(write_read_try, 2, Wrong: RmwRelease, RmwAcquire);
}

/// L8 of the queue's sleep: the grant is a store, the sleeper's state another, and either side looks at the other's.
#[test]
fn a_missing_full_barrier_loses_a_readers_wake_up() {
    must_catch!(write_read, 3, Hangs: RmwFull, FullFence);
}

#[test]
fn a_downgrade_lets_readers_in_and_no_writer() {
    must_catch!(downgrade_read, 2, Wrong: RmwRelease);
    must_catch!(downgrade_write_, 2, Wrong: RmwRelease);
}

#[test]
fn spinning_writers_exclude_each_other() {
    must_catch!(spinning_writers, 2, Wrong: RmwRelease, RmwAcquire);
}

/// CPU 0 writes, kills CPU 1 and unlocks, while CPU 1 waits killably for the lock: the grant against the cancellation.
fn kill_against_grant<A: Arch>(wait: fn(&Cpu<A>, &Shared<A>) -> Result<(), Errno>) -> bool {
    let set = for_test_set::<A>(2);
    let s = Arc::new(Shared::<A> { sem: RwSemaphore::new(), data: Plain::new(0) });
    let cpu = set.cpu(0);
    cpu.softirq.ksoftirqd.set(true);
    down_write(&cpu, &s.sem);
    let other = {
        let (set, s) = (set.clone(), s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            cpu.softirq.ksoftirqd.set(true);
            wait(&cpu, &s).is_ok()
        })
    };
    s.data.set(7);
    send_sigkill(set.task_ref(1));
    up_write(&cpu, &s.sem);
    let got = other.join().expect("a panic ends the model");
    s.sem.assert_quiet();
    got
}

fn killable_read<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) -> Result<(), Errno> {
    down_read_killable(cpu, &s.sem)?;
    assert_eq!(s.data.get(), 7);
    up_read(cpu, &s.sem);
    Ok(())
}

fn killable_write<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) -> Result<(), Errno> {
    down_write_killable(cpu, &s.sem)?;
    assert_eq!(s.data.get(), 7);
    s.data.set(8);
    up_write(cpu, &s.sem);
    Ok(())
}

fn careless_read<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>) -> Result<(), Errno> {
    s.sem.down_read_killable_without_second_look(cpu)?;
    up_read(cpu, &s.sem);
    Ok(())
}

#[test]
fn a_cancelled_wait_and_a_grant_agree_on_who_has_the_lock() {
    for wait in [killable_read::<Loom>, killable_write::<Loom>] {
        let ends = Arc::new([const { AtomicU64::new(0) }; 2]);
        let e = ends.clone();
        let n = explore(2, move || _ = e[usize::from(kill_against_grant(wait))].fetch_add(1, Ordering::Relaxed));
        let [killed, got] = [0, 1].map(|i| ends[i].load(Ordering::Relaxed));
        println!("{n} executions: killed in {killed}, granted in {got}");
        assert!(killed > 0 && got > 0, "the race was never run both ways");
    }
    fn read<A: Arch>() {
        kill_against_grant::<A>(killable_read);
    }
    must_catch!(read, 2, Wrong: RmwRelease, RmwAcquire);
}

#[test]
fn a_reader_that_gives_up_without_a_second_look_is_caught() {
    let how = "no second look";
    let message = caught(how, 2, Failure::Wrong, || _ = kill_against_grant::<Loom>(careless_read));
    println!("{how}: {message}");
}

/// Every look at the clock is 20 ms later: whoever waits is out of patience at once.
#[test]
fn impatient_writers_are_handed_the_lock() {
    with_clock_step(20_000_000, || {
        let cases: [[Part<Loom>; 2]; 3] = [[write, write], [downgrade, write], [read, write]];
        for parts in cases {
            let [_, handoffs] = events(parts);
            assert!(handoffs > 0, "nobody asked for the lock");
        }
    });
}

/// How a CPU comes again after it let go of the lock, told whether it had found the handoff bit set.
type Comer<A> = fn(&Cpu<A>, &Shared<A>, bool);

/// CPU 0 has the lock for reading when CPU 1, which has no patience, asks for it. CPU 0 looks for the handoff bit, lets
/// go and comes again. Whether it had found the bit set.
fn handoff<A: Arch>(spin: bool, comer: Comer<A>) -> bool {
    let set = for_test_set::<A>(2);
    let s = Arc::new(Shared::<A> { sem: RwSemaphore::new(), data: Plain::new(0) });
    let cpu = set.cpu(0);
    cpu.softirq.ksoftirqd.set(!spin);
    down_read(&cpu, &s.sem);
    let other = {
        let (set, s) = (set.clone(), s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            cpu.softirq.ksoftirqd.set(true);
            write(&cpu, &s);
        })
    };
    let handed = s.sem.handoff();
    up_read(&cpu, &s.sem);
    comer(&cpu, &s, handed);
    other.join().expect("a panic ends the model");
    s.sem.assert_quiet();
    handed
}

/// With the lock held: whose turn it was.
fn in_turn<A: Arch>(s: &Shared<A>, handed: bool) {
    assert!(!handed || s.data.get() == 1, "somebody came before the waiter that the lock was handed to");
}

fn later_writer<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>, handed: bool) {
    down_write(cpu, &s.sem);
    in_turn(s, handed);
    s.data.set(s.data.get() + 1);
    up_write(cpu, &s.sem);
}

fn later_reader<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>, handed: bool) {
    down_read(cpu, &s.sem);
    in_turn(s, handed);
    up_read(cpu, &s.sem);
}

fn later_tries<A: Arch>(cpu: &Cpu<A>, s: &Shared<A>, handed: bool) {
    if down_write_trylock(cpu, &s.sem) {
        in_turn(s, handed);
        up_write(cpu, &s.sem);
    }
    if down_read_trylock(cpu, &s.sem) {
        in_turn(s, handed);
        up_read(cpu, &s.sem);
    }
}

#[test]
fn a_handoff_is_kept_from_all_who_come_later() {
    with_clock_step(20_000_000, || {
        let cases: [(&str, bool, Comer<Loom>); 5] = [
            ("a writer that spins", true, later_writer),
            ("a writer that queues", false, later_writer),
            ("a reader that would spin", true, later_reader),
            ("a reader that queues", false, later_reader),
            ("who only tries", false, later_tries),
        ];
        for (who, spin, comer) in cases {
            let seen = Arc::new(AtomicU64::new(0));
            let n = seen.clone();
            let all = explore(2, move || _ = n.fetch_add(u64::from(handoff(spin, comer)), Ordering::Relaxed));
            let seen = seen.load(Ordering::Relaxed);
            println!("{who}: holds in {all} executions, in {seen} of them behind a handoff");
            assert!(seen > 0, "{who} never met a handoff");
        }
    });
}

#[test]
fn who_steals_past_a_handoff_is_caught() {
    fn spins(cpu: &Cpu<Loom>, s: &Shared<Loom>, handed: bool) {
        s.sem.down_write_spinning_past_handoff(cpu);
        in_turn(s, handed);
        up_write(cpu, &s.sem);
    }
    fn queues(cpu: &Cpu<Loom>, s: &Shared<Loom>, handed: bool) {
        s.sem.down_write_queued_past_handoff(cpu);
        in_turn(s, handed);
        up_write(cpu, &s.sem);
    }
    fn reads(cpu: &Cpu<Loom>, s: &Shared<Loom>, handed: bool) {
        s.sem.down_read_past_handoff();
        in_turn(s, handed);
        up_read(cpu, &s.sem);
    }
    with_clock_step(20_000_000, || {
        let twins: [(&str, Comer<Loom>); 3] =
            [("a spinner steals", spins), ("a queued writer steals", queues), ("a reader steals", reads)];
        for (how, comer) in twins {
            let message = caught(how, 2, Failure::Wrong, move || _ = handoff(true, comer));
            assert!(message.contains("before the waiter"), "{how}: {message}");
        }
    });
}
