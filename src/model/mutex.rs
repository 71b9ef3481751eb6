// SPDX-License-Identifier: GPL-2.0-only
//! The mutex between two CPUs: fast path, queue, sleep, handover; a waiter that a signal takes away.

use super::{Failure, caught, explore};
use crate::arch::loom::Loom;
use crate::arch::{Arch, Plain};
use crate::cpu::Cpu;
use crate::cpu::sched::send_sigkill;
use crate::cpu::testing::for_test_set;
use crate::must_catch;
use crate::sync::{Mutex, mutex_lock, mutex_lock_killable, mutex_unlock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Shared<A: Arch> {
    lock: Mutex<A>,
    /// Race-checked.
    data: Plain<A, u32>,
}

fn add_one<A: Arch>(s: &Shared<A>) {
    s.data.set(s.data.get() + 1);
}

/// What CPU 0 does: `main`, which adds `n`, against CPU 1, which locks killably once. Neither spins unless `spin`.
/// Whether CPU 1 got the lock.
fn against<A: Arch>(
    spin: bool,
    n: u32,
    main: impl FnOnce(&Cpu<A>, &Shared<A>, crate::arch::arena::KRef<crate::cpu::Task<A>>),
) -> bool {
    let set = for_test_set::<A>(2);
    let s = Arc::new(Shared::<A> { lock: Mutex::new(), data: Plain::new(0) });
    let other = {
        let (set, s) = (set.clone(), s.clone());
        ::loom::thread::spawn(move || {
            let cpu = set.cpu(1);
            cpu.softirq.ksoftirqd.set(!spin);
            let got = mutex_lock_killable(&cpu, &s.lock).is_ok();
            if got {
                add_one(&s);
                mutex_unlock(&cpu, &s.lock);
            }
            got
        })
    };
    let cpu = set.cpu(0);
    cpu.softirq.ksoftirqd.set(!spin);
    main(&cpu, &s, set.task_ref(1));
    let got = other.join().expect("a panic ends the model");
    assert_eq!(s.data.get(), n + u32::from(got));
    s.lock.assert_quiet();
    got
}

/// One section each.
fn once<A: Arch>(spin: bool) {
    let got = against::<A>(spin, 1, |cpu, s, _| {
        mutex_lock(cpu, &s.lock);
        add_one(s);
        mutex_unlock(cpu, &s.lock);
    });
    assert!(got);
}

/// CPU 0 takes the lock again at once: CPU 1, woken for nothing, has it handed over.
fn overtaken<A: Arch>(unlock: fn(&Cpu<A>, &Mutex<A>), handovers: &AtomicU64) {
    let got = against::<A>(false, 2, |cpu, s, _| {
        mutex_lock(cpu, &s.lock);
        add_one(s);
        mutex_unlock(cpu, &s.lock);
        mutex_lock(cpu, &s.lock);
        add_one(s);
        // A sleeper runs only when the others wait; now it finds that it was overtaken.
        A::cpu_relax();
        handovers.fetch_add(u64::from(s.lock.flags()[1]), Ordering::Relaxed);
        unlock(cpu, &s.lock);
    });
    assert!(got);
}

#[test]
fn two_cpus_exclude_each_other() {
    fn sleeping<A: Arch>() {
        once::<A>(false);
    }
    fn spinning<A: Arch>() {
        once::<A>(true);
    }
    must_catch!(sleeping, 2, Wrong: RmwRelease, RmwAcquire);
    must_catch!(spinning, 2, Wrong: RmwRelease, RmwAcquire);
}

#[test]
fn the_lock_is_handed_to_a_waiter_that_was_overtaken() {
    let n = Arc::new(AtomicU64::new(0));
    let count = n.clone();
    explore(3, move || overtaken::<Loom>(mutex_unlock, &count));
    assert!(n.load(Ordering::Relaxed) > 0, "nobody was ever overtaken");
    fn case<A: Arch>() {
        overtaken::<A>(mutex_unlock, &AtomicU64::new(0));
    }
    must_catch!(case, 3, Wrong: RmwRelease, RmwAcquire);
}

#[test]
fn an_unlock_that_forgets_to_hand_over_is_caught() {
    let how = "opened, not handed over";
    let broken = || overtaken::<Loom>(|cpu, l| l.unlock_instead_of_handing_over(cpu), &AtomicU64::new(0));
    println!("{how}: {}", caught(how, 3, Failure::Hangs, broken));
}

#[test]
fn a_signal_and_an_unlock_agree_on_who_has_it() {
    let ends = Arc::new([const { AtomicU64::new(0) }; 2]);
    let e = ends.clone();
    explore(2, move || {
        let got = against::<Loom>(false, 1, |cpu, s, task| {
            mutex_lock(cpu, &s.lock);
            add_one(s);
            send_sigkill(task);
            mutex_unlock(cpu, &s.lock);
        });
        e[usize::from(got)].fetch_add(1, Ordering::Relaxed);
    });
    assert!(ends.iter().all(|n| n.load(Ordering::Relaxed) > 0), "the race was never run both ways");
}
