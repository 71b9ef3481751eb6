// SPDX-License-Identifier: GPL-2.0-only
//! What has exact times is tested where time is exact: in the simulator. Grace-period lengths and latencies against the
//! table of rcu.md 12, and stalls against the kernel's 21 s, and three times that.
//!
//! A CPU that is busy is one that waits in the simulator without telling RCU. All of it is one interleaving per case and
//! says nothing about orderings.

use super::*;
use crate::arch::arena::KRef;
use crate::arch::sim::{SimConfig, SimMachine};
use crate::arch::{Acquire, Arch, Job, Machine, Relaxed, Release, Sim};
use crate::cpu::tick::{exit_to_user_mode, idle_loop, sysvec_apic_timer_interrupt};
use crate::cpu::{TASK_RUNNING, testing::for_test_set};
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

type A = Sim;
type State = KRef<RcuState<A>>;

pub(super) const S: u64 = 1_000_000_000;
pub(super) const MS: u64 = 1_000_000;

pub(super) fn now() -> u64 {
    <A as Arch>::now()
}

/// Busy until `t`, for all that RCU knows.
pub(super) fn busy_until(t: u64) {
    let word = Atomic::<A, u32>::new(0);
    while now() < t {
        A::futex_wait(word.raw(), 0, Some(t));
    }
}

/// Busy until `t`, coming to a boundary every `every` ns.
fn work_until(cpu: &Cpu<A>, t: u64, every: u64) {
    while now() < t {
        busy_until(now() + every);
        exit_to_user_mode(cpu);
    }
}

/// What a run leaves.
pub(super) struct Ran {
    pub rcu: State,
    /// By CPU, workers first, the grace-period thread last.
    pub counters: Vec<[u64; crate::cpu::stat::SLOTS]>,
    _machine: SimMachine,
}
impl Ran {
    pub fn sum(&self, c: impl crate::cpu::Counter) -> u64 {
        self.counters.iter().map(|v| v[c.slot()]).sum()
    }
}

/// Runs `body` on `n` workers; worker 0 ends the kernel when all are done. `late` ns pass before the grace-period thread
/// comes up.
pub(super) fn run(n: u32, cfg: RcuConfig, late: u64, body: impl Fn(&Cpu<A>, &RcuState<A>) + Sync) -> Ran {
    let m = SimMachine::new(SimConfig { bytes_per_node: 16 << 20, ..SimConfig::nodes(1, n) }).unwrap();
    m.reset();
    let rcu = RcuState::<A>::new(m.arena(), n, |_| 0, &cfg);
    let set = for_test_set::<A>(n + crate::cpu::NR_KTHREADS);
    let (left, over) = (Atomic::<A, u32>::new(n), Atomic::<A, u32>::new(0));
    let counters = Mutex::new(vec![[0; crate::cpu::stat::SLOTS]; n as usize + 1]);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for id in 0..n {
        let (set, body, left, over, counters) = (&set, &body, &left, &over, &counters);
        jobs.push(Job {
            cpu: Some(id),
            f: Box::new(move || {
                let mut cpu = set.cpu(id);
                cpu.tick = rcu.tick_device(1);
                rcu.install_hooks(&cpu);
                body(&cpu, &rcu);
                left.fetch_sub(1, crate::arch::Full);
                if id == 0 {
                    idle_loop(&cpu, || left.load(Acquire) == 0);
                    rcu_barrier(&cpu, &rcu);
                    over.store(1, Release);
                    rcu.stop();
                } else {
                    idle_loop(&cpu, || over.load(Acquire) != 0);
                }
                rcu.remove_hooks(&cpu);
                counters.lock().unwrap()[id as usize] = cpu.counters.snapshot();
            }),
        });
    }
    jobs.push(Job {
        cpu: None,
        f: Box::new(|| {
            busy_until(late);
            let cpu = set.cpu(n);
            rcu_gp_kthread(&cpu, &rcu);
            counters.lock().unwrap()[n as usize] = cpu.counters.snapshot();
        }),
    });
    m.run(jobs);
    assert_eq!(rcu.pending(), 0);
    let counters = counters.into_inner().unwrap();
    let ran = Ran { rcu, counters, _machine: m };
    assert_eq!(ran.sum(RcuCounter::CallbacksQueued), ran.sum(RcuCounter::CallbacksInvoked));
    ran
}

/// A callback with the times of its life; on the heap, as the simulator prices that flat.
#[repr(C)]
pub(super) struct Timed {
    head: RcuHead<A>,
    queued: AtomicU64,
    pub called: AtomicU64,
}

pub(super) fn timed() -> &'static Timed {
    Box::leak(Box::new(Timed { head: RcuHead::new(), queued: 0.into(), called: 0.into() }))
}

/// # Safety
/// `head` is a [`Timed`]'s.
unsafe fn call(_: &Cpu<A>, head: *mut RcuHead<A>) {
    const { assert!(offset_of!(Timed, head) == 0) };
    // SAFETY: the caller's; leaked.
    unsafe { &*head.cast::<Timed>() }.called.store(now(), Ordering::Relaxed);
}

pub(super) fn queue(cpu: &Cpu<A>, rcu: &RcuState<A>) -> &'static Timed {
    let t = timed();
    t.queued.store(now(), Ordering::Relaxed);
    // SAFETY: leaked, queued once.
    unsafe { call_rcu(cpu, rcu, (&raw const t.head).cast_mut(), call) };
    t
}

impl Timed {
    pub fn latency(&self) -> u64 {
        self.called.load(Ordering::Relaxed) - self.queued.load(Ordering::Relaxed)
    }
}

fn mean(v: &[u64]) -> f64 {
    v.iter().sum::<u64>() as f64 / v.len().max(1) as f64
}

/// R13. Steady traffic, little enough for ksoftirqd to stay asleep; every tick is a quiescent state. Rows of rcu.md 12:
/// HZ, busy CPUs of all, length of a grace period and mean latency in ms. The chapter has 3.0 and 6.6 in the fourth: its
/// model forgot that a timeout of three jiffies ends with the fourth (kernel/time/timer.c: calc_index). The latency is
/// 2.2 to 2.3 grace periods there as here.
#[test]
fn r13_grace_periods_and_latencies_are_the_chapters_within_a_tenth() {
    for (hz, busy, all, gp, latency) in [
        (250, 1, 1, 8.0, 16.0),
        (250, 8, 8, 8.0, 16.0),
        (1000, 8, 8, 2.0, 4.0),
        (1000, 4, 8, 4.0, 9.2),
        (100, 8, 8, 20.0, 40.0),
    ] {
        let cfg = RcuConfig { hz, qs_policy: QsPolicy::Always, ..RcuConfig::default() };
        let tick = S / u64::from(hz);
        let (from, end) = (20 * tick, 220 * tick);
        let seen = Mutex::new(Vec::new());
        let ran = run(all, cfg, 0, |cpu, rcu| {
            if cpu.id >= busy {
                return;
            }
            let mut mine = Vec::new();
            // Not a divisor of the tick, so that all phases occur.
            while now() < end {
                mine.push(queue(cpu, rcu));
                work_until(cpu, now() + tick / 23, tick / 23);
            }
            seen.lock().unwrap().extend(mine);
        });
        let seen = seen.into_inner().unwrap();
        let inside = |t: &&&Timed| (from..end - 10 * tick).contains(&t.queued.load(Ordering::Relaxed));
        let exact: Vec<u64> = seen.iter().filter(inside).map(|t| t.latency()).collect();
        let (exact, sampled) = (mean(&exact), mean(&ran.rcu.cb_latency_ns_between(from, end)));
        let length = mean(&ran.rcu.gp_length_ns_between(from, end));
        eprintln!(
            "HZ {hz}, {busy} of {all}: grace period {:.2} ms, latency {:.2} ms, sampled {:.2} ms ({} samples)",
            length / 1e6,
            exact / 1e6,
            sampled / 1e6,
            ran.rcu.cb_latency_ns().len()
        );
        let near = |x: f64, ms: f64| (x / 1e6 / ms - 1.0).abs() < 0.1;
        assert!(near(length, gp), "HZ {hz}, {busy} of {all}: grace periods of {} ms", length / 1e6);
        assert!(near(exact, latency), "HZ {hz}, {busy} of {all}: latency {} ms", exact / 1e6);
        assert!(
            near(sampled, exact / 1e6),
            "HZ {hz}, {busy} of {all}: sampled {} of {} ms",
            sampled / 1e6,
            exact / 1e6
        );
        assert_eq!(ran.rcu.stalls(), 0);
    }
}

/// A second of ticks is this many ns at the HZ of the stall tests.
fn stall_config() -> RcuConfig {
    RcuConfig { hz: 100, qs_policy: QsPolicy::Always, fanout: 2, fanout_leaf: 2, ..RcuConfig::default() }
}

/// Seconds from the grace period's start to a report.
fn seconds(r: &StallReport) -> f64 {
    r.t as f64 / f64::from(r.hz)
}

#[test]
fn a_reader_that_does_not_end_is_reported_by_others_after_21_s_and_every_63_s() {
    let ran = run(4, stall_config(), 0, |cpu, rcu| match cpu.id {
        3 => {
            rcu_read_lock(cpu);
            busy_until(160 * S);
            rcu_read_unlock(cpu);
            exit_to_user_mode(cpu);
        }
        0 => {
            busy_until(S);
            queue(cpu, rcu);
            exit_to_user_mode(cpu);
        }
        _ => {}
    });
    let r = ran.rcu.stall_reports();
    // 21 s, then after 3 * 21 s and 3 jiffies each: 84 and 147. The reader's own tick at its end comes too late.
    assert_eq!(r.len(), 3, "{r:#?}");
    for (r, s) in r.iter().zip([21.0, 84.0, 147.0]) {
        assert!((seconds(r) - s).abs() < 0.2, "{r}");
        assert_eq!((r.kind, r.stalled, r.totqlen), (StallKind::Detected, 1, 1), "{r}");
        let c = r.cpus()[0];
        assert_eq!((c.cpu, c.leaf, c.maybe_false), (3, (2, 3), false));
        assert_eq!(c.watching & 1, 1);
        assert!(!r.kthread_starved && r.kthread_idle < 100 && r.fqs > 100, "{r}");
        assert_eq!(r.root_qsmask, 2, "the second child of the root");
        assert_ne!(r.detected_by, 3);
    }
    assert_eq!(ran.sum(RcuCounter::CpuStalls), 3);
    let line = r[0].to_string();
    assert!(
        line.starts_with("rcu: stalls detected on CPUs 3 (leaf 2-3, ") && line.contains("t=2102 jiffies (21.0 s)"),
        "{line}"
    );
}

/// The same with interrupts: the CPU at fault finds out itself, two jiffies before the others would.
#[test]
fn a_reader_with_ticks_reports_itself() {
    let ran = run(2, stall_config(), 0, |cpu, rcu| {
        if cpu.id == 1 {
            rcu_read_lock(cpu);
            while now() < 30 * S {
                busy_until(now() + 10 * MS);
                sysvec_apic_timer_interrupt(cpu);
            }
            rcu_read_unlock(cpu);
            exit_to_user_mode(cpu);
        } else {
            busy_until(S);
            queue(cpu, rcu);
        }
    });
    let r = ran.rcu.stall_reports();
    assert_eq!(r.len(), 1, "{r:#?}");
    assert_eq!(
        (r[0].kind, r[0].detected_by, r[0].cpus()[0].cpu, r[0].t),
        (StallKind::SelfDetected, 1, 1, 2100),
        "{}",
        r[0]
    );
    let ticks = r[0].cpus()[0].ticks_this_gp;
    assert!((2090..2101).contains(&ticks), "{}", r[0]);
}

/// A worker that comes to no boundary, with nobody beside it who ticks: the grace-period thread looks.
#[test]
fn a_worker_that_comes_to_no_boundary_is_reported_even_when_nobody_ticks() {
    let ran = run(1, stall_config(), 0, |cpu, rcu| {
        busy_until(S);
        queue(cpu, rcu);
        work_until(cpu, now() + 12 * MS, MS);
        busy_until(40 * S);
        exit_to_user_mode(cpu);
    });
    let r = ran.rcu.stall_reports();
    assert_eq!(r.len(), 1, "{r:#?}");
    assert_eq!((r[0].kind, r[0].detected_by, r[0].stalled), (StallKind::Detected, 1, 1), "{}", r[0]);
    assert!((seconds(&r[0]) - 21.0).abs() < 0.2, "{}", r[0]);
}

/// R16: a grace-period thread that starts no grace period, and one that does not end it.
#[test]
fn a_grace_period_thread_that_does_not_run_is_reported_and_nothing_is_called() {
    // The thread's task is known, and sleeps through the request.
    let called = AtomicU64::new(0);
    let ran = run(2, stall_config(), 60 * S, |cpu, rcu| {
        if cpu.id == 0 {
            // As if it had come up, and then stood still: nobody wakes this one.
            let stuck: &'static crate::cpu::Task<A> = Box::leak(Box::new(crate::cpu::Task::new(9)));
            stuck.state.store(TASK_RUNNING, Relaxed);
            rcu.gp_kthread.store(std::ptr::from_ref(stuck).cast_mut(), Release);
            busy_until(S);
            let t = queue(cpu, rcu);
            work_until(cpu, 58 * S, 5 * MS);
            assert_eq!(t.called.load(Ordering::Relaxed), 0, "called without a grace period");
            idle_loop(cpu, || t.called.load(Ordering::Relaxed) != 0);
            called.store(t.called.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    });
    // Once it runs, all is made good in a few ticks.
    assert!(called.into_inner() < 60 * S + 100 * MS);
    let r = ran.rcu.stall_reports();
    assert_eq!(r.len(), 1, "{r:#?}");
    assert_eq!(r[0].kind, StallKind::NotStarted);
    assert!(r[0].kthread_starved && (seconds(&r[0]) - 21.0).abs() < 0.2, "{}", r[0]);
    assert!(r[0].to_string().contains("grace-period thread starved for"), "{}", r[0]);
}

/// R16: a grace-period thread that stands still within a grace period, when all have reported.
#[test]
fn a_grace_period_that_nobody_ends_is_reported_with_all_quiescent_states_seen() {
    let ran = run(2, stall_config(), 60 * S, |cpu, rcu| {
        if cpu.id == 0 {
            let stuck: &'static crate::cpu::Task<A> = Box::leak(Box::new(crate::cpu::Task::new(9)));
            rcu.gp_kthread.store(std::ptr::from_ref(stuck).cast_mut(), Release);
            busy_until(S);
            let t = queue(cpu, rcu);
            work_until(cpu, now() + 30 * MS, MS);
            // The thread gets as far as the start, and no further; CPU 1 is idle, so CPU 1 is owed.
            let gp = for_test_set::<A>(4).cpu(3);
            assert!(super::gp_kthread::rcu_gp_init(&gp, rcu));
            super::gp_kthread::rcu_gp_fqs(&gp, rcu, true);
            work_until(cpu, 58 * S, 5 * MS);
            assert_eq!(t.called.load(Ordering::Relaxed), 0);
        }
    });
    let r = ran.rcu.stall_reports();
    assert_eq!(r.len(), 1, "{r:#?}");
    assert_eq!((r[0].kind, r[0].stalled, r[0].root_qsmask), (StallKind::Detected, 0, 0), "{}", r[0]);
    assert!(r[0].kthread_starved && r[0].to_string().contains("all quiescent states seen"), "{}", r[0]);
}
