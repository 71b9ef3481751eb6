// SPDX-License-Identifier: GPL-2.0-only
//! The limits of rcu.md 2, 9 and 10, exactly, where time is exact: how many callbacks a pass takes and how long, when
//! ksoftirqd takes over, when a CPU is told to hurry, what callback overload changes, skewed ticks; and that callbacks
//! are called at operation boundaries and by sleepers, never in the middle of an operation (R4).
//!
//! One interleaving per case: it says nothing about orderings.

use super::sim_tests::{MS, S, Steady, busy_until, nocb_config, now, queue, queue_taking, run, steady, work_until};
use super::tree_nocb::RCU_NOCB_WAKE_FORCE;
use super::*;
use crate::arch::{Relaxed, Sim};
use crate::cpu::softirq::SoftirqCounter;
use crate::cpu::tick::{cond_resched, exit_to_user_mode, idle_loop, sysvec_apic_timer_interrupt};
use crate::cpu::{Cpu, TASK_RUNNING};
use crate::sync::{RwSemaphore, down_read, down_write, up_read, up_write};
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type A = Sim;

fn invoked(cpu: &Cpu<A>) -> u64 {
    cpu.counters.get(RcuCounter::CallbacksInvoked)
}

/// Callbacks that each boundary called, from the first that called any, until `n` were.
fn by_boundary(cpu: &Cpu<A>, n: u64) -> Vec<u64> {
    let mut v = Vec::new();
    let (start, mut before) = (invoked(cpu), invoked(cpu));
    while before - start < n {
        busy_until(now() + 50_000);
        exit_to_user_mode(cpu);
        if invoked(cpu) > before || !v.is_empty() {
            v.push(invoked(cpu) - before);
        }
        before = invoked(cpu);
    }
    v
}

/// What ten passes take of `ready` by the rule: at least `blimit`, at least the 128th part.
fn ten_passes(ready: &mut u64, blimit: u64) -> u64 {
    let mut sum = 0;
    for _ in 0..10 {
        let bl = blimit.max(*ready >> 7).min(*ready);
        *ready -= bl;
        sum += bl;
    }
    sum
}

#[test]
fn a_pass_takes_a_128th_and_the_eleventh_is_ksoftirqds() {
    let cfg = RcuConfig { qs_policy: QsPolicy::Always, ..RcuConfig::default() };
    let ran = run(1, cfg, 0, |cpu, rcu| {
        let n = 4000;
        (0..n).for_each(|_| _ = queue(cpu, rcu));
        let got = by_boundary(cpu, n);
        let (mut ready, mut want) = (n, Vec::new());
        while ready > 0 {
            want.push(ten_passes(&mut ready, 10));
        }
        assert_eq!(want[0], 298, "31, 31, 30, 30, 30, 30, 29, 29, 29, 29");
        assert_eq!(got, want, "by tick, then by slices of ksoftirqd");
        assert_eq!(cpu.counters.get(SoftirqCounter::KsoftirqdSlices), want.len() as u64 - 1);
        assert_eq!(cpu.counters.get(SoftirqCounter::TimerTicks), 4, "no tick was waited for after the first batch");
        // A sleeper has nothing better to do: all in one pass.
        let batches = cpu.counters.get(RcuCounter::Batches);
        let all: Vec<_> = (0..n).map(|_| queue(cpu, rcu)).collect();
        idle_loop(cpu, || all.iter().all(|t| t.called.load(Ordering::Relaxed) != 0));
        assert_eq!(cpu.counters.get(RcuCounter::Batches), batches + 1);
        assert_eq!((rcu.pending(), rcu.pending_high_water()), (0, n));
    });
    assert_eq!(ran.sum(SoftirqCounter::KsoftirqdWakeups), ran.sum(SoftirqCounter::KsoftirqdSlices));
}

#[test]
fn a_long_pass_ends_after_3_ms_and_two_of_them_wake_ksoftirqd() {
    // Shortest limit that counts, and the default. A callback takes 50 us; the clock is looked at each 32nd.
    for (limit, want) in [(1, vec![96, 64]), (3_000_000, vec![128])] {
        let cfg = RcuConfig {
            qs_policy: QsPolicy::Always,
            qhimark: 1_000_000,
            qovld: 2_000_000,
            rcu_resched_ns: limit,
            ..RcuConfig::default()
        };
        run(1, cfg, 0, |cpu, rcu| {
            // Enough that a pass may take more than 100, so that it has a limit in time.
            (0..14_000).for_each(|i| _ = queue_taking(cpu, rcu, if i < 160 { 50_000 } else { 0 }));
            let got = by_boundary(cpu, 160);
            assert_eq!(got[..1], want[..1], "limit {limit}: {got:?}");
            assert_eq!(cpu.counters.get(SoftirqCounter::KsoftirqdWakeups).min(1), 1, "limit {limit}");
            assert!(cpu.counters.get(RcuCounter::BatchesCut) > 1);
        });
    }
}

#[test]
fn a_flood_begins_one_past_qhimark_and_ends_at_qlowmark() {
    let cfg = RcuConfig { qs_policy: QsPolicy::Always, qhimark: 1000, qovld: 5000, ..RcuConfig::default() };
    run(1, cfg, 0, |cpu, rcu| {
        let rdp = rcu.rda.this(cpu);
        queue(cpu, rcu);
        while rcu.gp_seq() & 3 == 0 {
            busy_until(now() + 100_000);
            exit_to_user_mode(cpu);
        }
        let asked = cpu.counters.get(RcuCounter::FqsRequests);
        for _ in rdp.cblist.n_cbs()..1000 {
            queue(cpu, rcu);
        }
        assert_eq!((rdp.cblist.n_cbs(), rdp.blimit.get()), (1000, 10));
        queue(cpu, rcu);
        assert_eq!((rdp.cblist.n_cbs(), rdp.blimit.get()), (1001, 10_000));
        assert_eq!(cpu.counters.get(RcuCounter::FqsRequests), asked + 1, "the thread is asked to scan");
        for _ in 0..1000 {
            queue(cpu, rcu);
        }
        assert_eq!(cpu.counters.get(RcuCounter::BlimitFloods), 1);
        queue(cpu, rcu);
        assert_eq!(cpu.counters.get(RcuCounter::BlimitFloods), 2, "the next look is a thousand later");
        // What a pass leaves above qlowmark keeps the limit lifted.
        while rdp.cblist.n_cbs() > 100 {
            assert_eq!(rdp.blimit.get(), 10_000);
            busy_until(now() + 100_000);
            exit_to_user_mode(cpu);
        }
        assert_eq!(rdp.blimit.get(), 10, "{} left", rdp.cblist.n_cbs());
    });
}

/// When the marks of CPU 1 were seen first, ns after the start of the grace period that it holds up; and how long that
/// took. `boundaries`: it comes to one each millisecond. Its ticks are no quiescent states.
fn hold_up(cfg: RcuConfig, callbacks: u32, boundaries: bool) -> (u64, u64, u64, super::sim_tests::Ran) {
    let cfg = RcuConfig { qs_policy: QsPolicy::UserOnly { permille: 0 }, ..cfg };
    let [urgent, heavy] = [const { AtomicU64::new(u64::MAX) }; 2];
    let ran = run(2, cfg, 0, |cpu, rcu| {
        if cpu.id == 0 {
            (0..callbacks).for_each(|_| _ = queue(cpu, rcu));
            return;
        }
        let r = &rcu.rda.this(cpu).remote;
        while now() < 300 * MS {
            busy_until(now() + MS / 4);
            let since = now().saturating_sub(rcu.gp.gp_start_ns.get());
            if r.rcu_urgent_qs.load(Relaxed) != 0 {
                urgent.fetch_min(since, Ordering::Relaxed);
            }
            if r.rcu_need_heavy_qs.load(Relaxed) != 0 {
                heavy.fetch_min(since, Ordering::Relaxed);
            }
            if boundaries {
                exit_to_user_mode(cpu);
            }
        }
        // The long operation looks up at last.
        cond_resched(cpu);
        work_until(cpu, 320 * MS, MS / 4);
    });
    let first = ran.rcu.gp_length_ns()[0];
    (urgent.into_inner(), heavy.into_inner(), first, ran)
}

#[test]
fn a_cpu_is_told_to_hurry_after_100_ms_and_harder_after_200() {
    for hz in [250, 1000] {
        let cfg = RcuConfig { hz, ..RcuConfig::default() };
        // From the first scan past the limit on; scans come each `next` jiffies and one.
        let scan = if hz == 250 { 2 * 4 * MS } else { 4 * MS } + MS / 2;
        let jiffy = S / u64::from(hz);
        let (urgent, heavy, gp, ran) = hold_up(cfg, 1, false);
        eprintln!("HZ {hz}: urgent after {urgent} ns, heavy after {heavy} ns, grace period of {gp} ns");
        assert!((100 * MS..100 * MS + jiffy + scan).contains(&urgent), "{urgent}");
        assert!((200 * MS..200 * MS + jiffy + scan).contains(&heavy), "{heavy}");
        assert!((285 * MS..300 * MS + 3 * scan).contains(&gp), "{gp}");
        assert_eq!((ran.sum(RcuCounter::UrgentQs), ran.sum(RcuCounter::MomentaryEqs)), (1, 1));
        // One that comes to boundaries passes through the scheduler at its first tick after the mark.
        let (_, heavy, gp, ran) = hold_up(cfg, 1, true);
        assert_eq!(heavy, u64::MAX, "never told harder");
        assert!((100 * MS..100 * MS + 4 * jiffy + scan).contains(&gp), "{gp}");
        assert!(ran.sum(RcuCounter::UrgentQs) > 0);
        assert_eq!(ran.sum(RcuCounter::MomentaryEqs), 0);
    }
}

#[test]
fn overload_thirds_the_wait_for_scans_and_marks_at_once() {
    let cfg = RcuConfig { hz: 1000, qhimark: 100_000, qovld: 500, ..RcuConfig::default() };
    let (_, heavy, gp, ran) = hold_up(cfg, 499, false);
    let calm = gp as f64 / ran.sum(RcuCounter::FqsScans) as f64 / MS as f64;
    assert!(heavy > 200 * MS);
    let (urgent, heavy, gp, ran) = hold_up(cfg, 510, false);
    let hurried = gp as f64 / ran.sum(RcuCounter::FqsScans) as f64 / MS as f64;
    eprintln!("a scan each {calm:.2} ms, in overload each {hurried:.2} ms; marks after {urgent} ns");
    // Three jiffies and the one that a timer takes more, against one and that one.
    assert!((3.8..4.3).contains(&calm), "{calm}");
    assert!((1.9..2.2).contains(&hurried), "{hurried}");
    assert_eq!(urgent, heavy);
    assert!(heavy < 15 * MS, "{heavy}");
}

#[test]
fn skewed_ticks_are_spread_over_half_a_period_and_change_no_latency() {
    let cfg = RcuConfig { skew_tick: true, qs_policy: QsPolicy::Always, ..RcuConfig::default() };
    let at = Mutex::new(Vec::new());
    run(4, cfg, 0, |cpu, _| {
        let period = cpu.tick.period;
        work_until(cpu, 50 * MS, 100_000);
        // Also after a sleep without ticks.
        idle_loop(cpu, || now() > 70 * MS);
        work_until(cpu, 90 * MS, 100_000);
        at.lock().unwrap().push((cpu.id, cpu.tick.next_tick.get() % period));
    });
    let mut at = at.into_inner().unwrap();
    at.sort_unstable();
    assert_eq!(at, [(0, 0), (1, MS / 2), (2, MS), (3, 3 * MS / 2)]);
    let s = Steady { busy: 8, all: 8, ticks: 220, steps: 23, burst: 1 };
    let ([_, together, _], _) = steady(RcuConfig { skew_tick: false, ..cfg }, &s);
    let ([_, apart, _], _) = steady(cfg, &s);
    assert!((apart / together - 1.0).abs() < 0.15, "{apart} against {together} ms");
}

#[test]
fn offloaded_callbacks_past_qhimark_wake_their_thread_by_force() {
    let cfg = RcuConfig { qhimark: 200, qovld: 1_000_000, ..nocb_config(false) };
    let seen = AtomicBool::new(false);
    run(2, cfg, 0, |cpu, rcu| {
        if cpu.id == 1 {
            // Holds the grace period up, so that callbacks pile up.
            rcu_read_lock(cpu);
            busy_until(60 * MS);
            rcu_read_unlock(cpu);
            return exit_to_user_mode(cpu).map_or((), |_| ());
        }
        // Slowly enough that none takes the bypass: 16 a jiffy go straight to the list.
        while now() < 50 * MS {
            let t = queue(cpu, rcu);
            let n = rcu.rda.this(cpu).cblist.n_cbs();
            let (why, when) = rcu.nocb_gp.of(0).deferred();
            if why == RCU_NOCB_WAKE_FORCE {
                assert!(n > 200, "{n} queued");
                assert!(when <= rcu.jiffies() + 1, "in the next jiffy");
                seen.store(true, Ordering::Relaxed);
                // Served.
                busy_until(now() + 3 * MS);
                assert_ne!(rcu.nocb_gp.of(0).deferred().0, RCU_NOCB_WAKE_FORCE);
                let _ = t;
            }
            work_until(cpu, now() + 80_000, 80_000);
        }
    });
    assert!(seen.into_inner(), "never by force");
}

/// A callback that looks where it is called.
#[repr(C)]
struct Placed {
    head: RcuHead<A>,
    place: &'static Place,
    from: u32,
}

/// By CPU, whether it is at a boundary; and what callbacks found.
#[derive(Default)]
struct Place {
    boundary: [AtomicBool; 8],
    ok: AtomicU64,
    inside: AtomicU64,
    in_reader: AtomicU64,
    elsewhere: AtomicU64,
}

/// # Safety
/// `head` is a [`Placed`]'s.
unsafe fn look(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    const { assert!(offset_of!(Placed, head) == 0) };
    // SAFETY: the caller's; leaked.
    let p = unsafe { &*head.cast::<Placed>() };
    let asleep = cpu.task.state.load(Relaxed) != TASK_RUNNING;
    let at = if cpu.id != p.from {
        &p.place.elsewhere
    } else if cpu.probe.rcu_nesting.get() != 0 {
        &p.place.in_reader
    } else if !asleep && !p.place.boundary[cpu.id as usize].load(Ordering::Relaxed) {
        &p.place.inside
    } else {
        &p.place.ok
    };
    at.fetch_add(1, Ordering::Relaxed);
}

/// Four CPUs that do everything: operations with readers and locks, sleeps in them, long ones with a pause, idling.
/// `interrupts`: as no CPU of the port does, ticks also fall into operations.
fn operations(interrupts: bool) -> &'static Place {
    let place: &'static Place = Box::leak(Box::default());
    let cfg = RcuConfig { hz: 1000, qs_policy: QsPolicy::PREEMPT_ZERO, ..RcuConfig::default() };
    let sem = RwSemaphore::<A>::new();
    run(4, cfg, 0, |cpu, rcu| {
        let at_boundary = |f: &dyn Fn()| {
            let b = &place.boundary[cpu.id as usize];
            b.store(true, Ordering::Relaxed);
            f();
            b.store(false, Ordering::Relaxed);
        };
        while now() < 400 * MS {
            let work = 1_000 + cpu.random() % 60_000;
            match cpu.random() % 64 {
                0 => at_boundary(&|| idle_loop(cpu, || now() % (5 * MS) < 300_000)),
                1..16 => {
                    down_write(cpu, &sem);
                    busy_until(now() + work);
                    up_write(cpu, &sem);
                }
                16..32 => {
                    down_read(cpu, &sem);
                    busy_until(now() + work);
                    up_read(cpu, &sem);
                }
                32 => at_boundary(&|| synchronize_rcu(cpu, rcu)),
                _ => {
                    rcu_read_lock(cpu);
                    busy_until(now() + work);
                    if interrupts {
                        sysvec_apic_timer_interrupt(cpu);
                    }
                    rcu_read_unlock(cpu);
                }
            }
            for _ in 0..cpu.random() % 8 {
                let p: &'static Placed = Box::leak(Box::new(Placed { head: RcuHead::new(), place, from: cpu.id }));
                // SAFETY: leaked, queued once.
                unsafe { call_rcu(cpu, rcu, (&raw const p.head).cast_mut(), look) };
            }
            at_boundary(&|| {
                exit_to_user_mode(cpu);
            });
        }
        place.boundary[cpu.id as usize].store(true, Ordering::Relaxed);
    });
    place
}

#[test]
fn r4_callbacks_are_called_at_boundaries_and_by_sleepers_only() {
    let n = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let p = operations(false);
    assert_eq!((n(&p.inside), n(&p.in_reader), n(&p.elsewhere)), (0, 0, 0), "{} at boundaries", n(&p.ok));
    assert!(n(&p.ok) > 10_000, "{}", n(&p.ok));
    // The test sees it where it is otherwise.
    assert!(n(&operations(true).in_reader) > 0);
}
