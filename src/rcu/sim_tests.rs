// SPDX-License-Identifier: GPL-2.0-only
//! What has exact times is tested where time is exact: in the simulator. Grace-period lengths and latencies against the
//! table of rcu.md 12, and stalls against the kernel's 21 s, and three times that.
//!
//! A CPU that is busy is one that waits in the simulator without telling RCU. All of it is one interleaving per case and
//! says nothing about orderings.

use super::*;
use crate::arch::arena::KRef;
use crate::arch::sim::{Jitter, SimConfig, SimMachine};
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
pub(super) fn work_until(cpu: &Cpu<A>, t: u64, every: u64) {
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
    run_jittered(n, cfg, late, None, body)
}

/// [`run`], in another interleaving.
pub(super) fn run_jittered(
    n: u32,
    cfg: RcuConfig,
    late: u64,
    jitter: Option<Jitter>,
    body: impl Fn(&Cpu<A>, &RcuState<A>) + Sync,
) -> Ran {
    let kernel_threads = crate::cpu::nr_kthreads(n, cfg.nocb);
    let m = SimConfig { bytes_per_node: 16 << 20, kernel_threads, ..SimConfig::nodes(1, n) };
    let m = SimMachine::new(m).unwrap();
    m.reset();
    m.set_jitter(jitter);
    let rcu = RcuState::<A>::new(m.arena(), n, |_| 0, &cfg);
    let set = for_test_set::<A>(n + crate::cpu::nr_kthreads(n, cfg.nocb));
    let (left, over) = (Atomic::<A, u32>::new(n), Atomic::<A, u32>::new(0));
    let counters = Mutex::new(vec![[0; crate::cpu::stat::SLOTS]; (n + 1 + rcu.nocb_threads()) as usize]);
    let counters = &counters;
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for id in 0..n {
        let (set, body, left, over) = (&set, &body, &left, &over);
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
    for i in 0..rcu.nocb_threads() {
        let set = &set;
        jobs.push(Job {
            cpu: None,
            f: Box::new(move || {
                let cpu = set.cpu(n + 2 + i);
                rcu.nocb_thread(&cpu, i);
                counters.lock().unwrap()[(n + 1 + i) as usize] = cpu.counters.snapshot();
            }),
        });
    }
    m.run(jobs);
    assert_eq!(rcu.pending(), 0);
    let counters = std::mem::take(&mut *counters.lock().unwrap());
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
    /// CPU of the call.
    cpu: AtomicU64,
    /// How long the callback takes, ns.
    takes: u64,
}

pub(super) fn timed(takes: u64) -> &'static Timed {
    Box::leak(Box::new(Timed { head: RcuHead::new(), queued: 0.into(), called: 0.into(), cpu: u64::MAX.into(), takes }))
}

/// # Safety
/// `head` is a [`Timed`]'s.
unsafe fn call(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    const { assert!(offset_of!(Timed, head) == 0) };
    // SAFETY: the caller's; leaked.
    let t = unsafe { &*head.cast::<Timed>() };
    t.called.store(now(), Ordering::Relaxed);
    assert_eq!(t.cpu.swap(u64::from(cpu.id), Ordering::Relaxed), u64::MAX, "called twice");
    if t.takes != 0 {
        busy_until(now() + t.takes);
    }
}

pub(super) fn queue(cpu: &Cpu<A>, rcu: &RcuState<A>) -> &'static Timed {
    queue_taking(cpu, rcu, 0)
}

/// [`queue`], of a callback that takes so many ns.
pub(super) fn queue_taking(cpu: &Cpu<A>, rcu: &RcuState<A>, takes: u64) -> &'static Timed {
    let t = timed(takes);
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

/// Steady traffic on `busy` of `all` CPUs: `burst` callbacks at each of `steps` moments a tick, over `ticks` ticks. Mean
/// length of a grace period, mean latency of all callbacks, and mean of those that the kernel followed, ms.
pub(super) struct Steady {
    pub busy: u32,
    pub all: u32,
    pub ticks: u64,
    pub steps: u64,
    pub burst: u32,
}
pub(super) fn steady(cfg: RcuConfig, s: &Steady) -> ([f64; 3], Ran) {
    let tick = S / u64::from(cfg.hz);
    let (from, end) = (20 * tick, s.ticks * tick);
    let seen = Mutex::new(Vec::new());
    let ran = run(s.all, cfg, 0, |cpu, rcu| {
        if cpu.id >= s.busy {
            return;
        }
        let mut mine = Vec::new();
        while now() < end {
            mine.extend((0..s.burst).map(|_| queue(cpu, rcu)));
            work_until(cpu, now() + tick / s.steps, tick / s.steps);
        }
        seen.lock().unwrap().extend(mine);
    });
    let seen = seen.into_inner().unwrap();
    let inside = |t: &&&Timed| (from..end - s.ticks / 5 * tick).contains(&t.queued.load(Ordering::Relaxed));
    let exact: Vec<u64> = seen.iter().filter(inside).map(|t| t.latency()).collect();
    let ms =
        [mean(&ran.rcu.gp_length_ns_between(from, end)), mean(&exact), mean(&ran.rcu.cb_latency_ns_between(from, end))]
            .map(|x| x / 1e6);
    eprintln!(
        "HZ {}, {:?}, {} of {}: grace period {:.2} ms, latency {:.2} ms, sampled {:.2} ms ({} samples); {} slices of ksoftirqd",
        cfg.hz,
        cfg.qs_policy,
        s.busy,
        s.all,
        ms[0],
        ms[1],
        ms[2],
        ran.rcu.cb_latency_ns().len(),
        ran.sum(crate::cpu::softirq::SoftirqCounter::KsoftirqdSlices),
    );
    assert_eq!(ran.rcu.stalls(), 0);
    (ms, ran)
}

fn near(x: f64, ms: f64, off: f64) -> bool {
    (x / ms - 1.0).abs() < off
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
        // Not a divisor of the tick, so that all phases occur.
        let (ms, _) = steady(cfg, &Steady { busy, all, ticks: 220, steps: 23, burst: 1 });
        let [length, exact, sampled] = ms;
        assert!(near(length, gp, 0.1), "HZ {hz}, {busy} of {all}: grace periods of {length} ms");
        assert!(near(exact, latency, 0.1), "HZ {hz}, {busy} of {all}: latency {exact} ms");
        assert!(near(sampled, exact, 0.1), "HZ {hz}, {busy} of {all}: sampled {sampled} of {exact} ms");
    }
}

/// R13, the rows of rcu.md 12 whose ticks are quiescent states with a chance only.
#[test]
fn r13_where_ticks_are_not_all_quiescent_states() {
    let p = |permille| QsPolicy::PreemptZero { permille };
    for (hz, n, policy, gp, latency) in [
        (250, 8, p(750), 14.0, 29.0),
        (250, 32, p(750), 18.0, 40.0),
        (250, 128, p(750), 22.0, 50.0),
        (1000, 8, p(750), 3.4, 7.4),
        (1000, 32, p(750), 4.4, 9.8),
        (1000, 128, p(750), 5.4, 12.3),
        (250, 8, p(500), 22.0, 47.0),
        (250, 8, QsPolicy::UserOnly { permille: 100 }, 95.0, 200.0),
    ] {
        let cfg = RcuConfig { hz, qs_policy: policy, ..RcuConfig::default() };
        let ticks = if policy == p(750) || policy == p(500) { 400 } else { 4000 };
        let steps = if n > 8 || ticks > 400 { 3 } else { 11 };
        let ([length, exact, _], _) = steady(cfg, &Steady { busy: n, all: n, ticks, steps, burst: 1 });
        assert!(near(length, gp, 0.15), "HZ {hz}, {n}, {policy:?}: grace periods of {length} ms");
        assert!(near(exact, latency, 0.15), "HZ {hz}, {n}, {policy:?}: latency {exact} ms");
    }
}

/// R13, so many callbacks that ksoftirqd runs after most ticks: its switches are quiescent states, and its passes note and
/// report grace periods between ticks.
///
/// The chapter's row has one tick a grace period (4 and 1 ms), for ksoftirqd at work in each tick of each CPU. That is the
/// least, not what the rules come to: ksoftirqd runs `rcu_core()` only while callbacks are ready, so that a CPU which was
/// done with its own before the others' reports ended the grace period learns of the next one at its tick, may have
/// nothing ready then, and owes a second; and so does one that finds the leaf's lock taken when it looks (66 and 67 times
/// here). Between one tick and two, then.
#[test]
fn r13_where_ksoftirqd_runs_after_most_ticks() {
    for (hz, burst, least, most) in [(250, 30, 4.0, 6.5), (1000, 12, 1.0, 1.7)] {
        let cfg = RcuConfig { hz, qs_policy: QsPolicy::Always, ..RcuConfig::default() };
        let s = Steady { busy: 8, all: 8, ticks: 100, steps: 23, burst };
        let ([length, exact, _], ran) = steady(cfg, &s);
        let slices = ran.sum(crate::cpu::softirq::SoftirqCounter::KsoftirqdSlices);
        assert!(slices > 8 * 100, "{slices}");
        eprintln!("   leaf found locked {} times", ran.sum(RcuCounter::NoteContended));
        assert!((least..most).contains(&length), "HZ {hz}: grace periods of {length} ms, latency {exact} ms");
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

/// A CPU inside a reader holds an expedited grace period up for as long as the reader lasts and no longer; an idle one
/// is credited; a busy one answers at its boundary. Nobody waits for a tick.
#[test]
fn an_expedited_grace_period_waits_for_readers_and_for_nothing_else() {
    let took = Mutex::new(Vec::new());
    let ran = run(5, RcuConfig { fanout: 2, fanout_leaf: 2, ..RcuConfig::default() }, 0, |cpu, rcu| match cpu.id {
        // Long operations: each 300 us a boundary. CPU 4 sleeps.
        1 => work_until(cpu, 500 * MS, 300_000),
        2 => {
            work_until(cpu, 100 * MS, 20_000);
            rcu_read_lock(cpu);
            let s = get_state_synchronize_rcu_full(rcu);
            busy_until(200 * MS);
            assert!(!poll_state_synchronize_rcu_full(rcu, &s));
            rcu_read_unlock(cpu);
            work_until(cpu, 500 * MS, 20_000);
        }
        0 | 3 => {
            for at in [20, 60, 110, 300] {
                let at = at * MS + u64::from(cpu.id) * 50_000;
                work_until(cpu, at, 20_000);
                let s = get_state_synchronize_rcu_full(rcu);
                let begin = now();
                synchronize_rcu_expedited(cpu, rcu);
                assert!(poll_state_synchronize_rcu_full(rcu, &s));
                took.lock().unwrap().push((at / MS, now() - begin));
            }
        }
        _ => {}
    });
    let took = took.into_inner().unwrap();
    assert_eq!(took.len(), 8);
    for (at, ns) in took {
        if at == 110 {
            assert!((85 * MS..95 * MS).contains(&ns), "across the reader: {ns} ns");
        } else {
            assert!(ns < 700_000, "at {at} ms: {ns} ns");
        }
    }
    let (gps, followers) = (ran.sum(RcuExtCounter::ExpGracePeriods), ran.sum(RcuExtCounter::ExpFollowers));
    assert!((4..=8).contains(&gps), "{gps}");
    assert!(gps + followers >= 4 && ran.sum(RcuExtCounter::ExpCredits) > gps, "{gps} {followers}");
    assert_eq!(ran.sum(RcuExtCounter::ExpRequests), ran.sum(RcuExtCounter::ExpReports));
    assert_eq!(ran.sum(RcuCounter::GracePeriods), 0, "normal grace periods");
    assert_eq!(ran.rcu.expedited_sequence.load(Relaxed), 4 * gps);
}

#[test]
fn an_expedited_grace_period_that_does_not_end_is_reported() {
    let ran = run(3, stall_config(), 0, |cpu, rcu| match cpu.id {
        2 => {
            busy_until(100 * S);
            exit_to_user_mode(cpu);
        }
        0 => {
            busy_until(S);
            synchronize_rcu_expedited(cpu, rcu);
            assert!(now() >= 100 * S);
        }
        _ => {}
    });
    let r = ran.rcu.stall_reports();
    assert_eq!(r.len(), 2, "{r:#?}");
    for (r, s) in r.iter().zip([21.0, 84.0]) {
        assert_eq!((r.kind, r.stalled, r.cpus()[0].cpu), (StallKind::Expedited, 1, 2), "{r}");
        assert!((seconds(r) - s).abs() < 0.2, "{r}");
    }
}

/// `synchronize_rcu()` by its three ways: a callback (6.12), the list of the grace-period thread (7.3), in a hurry.
#[test]
fn synchronize_rcu_takes_the_way_it_is_told() {
    let mut took = Vec::new();
    for (expedited, normal_wake_from_gp) in [(false, false), (false, true), (true, false)] {
        let cfg = RcuConfig { expedited, normal_wake_from_gp, qs_policy: QsPolicy::Always, ..RcuConfig::default() };
        let sum = AtomicU64::new(0);
        let ran = run(4, cfg, 0, |cpu, rcu| {
            if cpu.id == 3 {
                return work_until(cpu, 900 * MS, 50_000);
            }
            for i in 0..10 {
                work_until(cpu, (i * 71 + 3) * MS, 100_000);
                let s = get_state_synchronize_rcu_full(rcu);
                let begin = now();
                synchronize_rcu(cpu, rcu);
                assert!(poll_state_synchronize_rcu_full(rcu, &s));
                sum.fetch_add(now() - begin, Ordering::Relaxed);
            }
        });
        took.push(sum.into_inner() / 30);
        assert_eq!(ran.sum(RcuExtCounter::SrsWakeups), if normal_wake_from_gp { 30 } else { 0 });
        assert_eq!(ran.sum(RcuExtCounter::SrsFallbacks), 0);
        assert_eq!(ran.sum(RcuCounter::CallbacksQueued) >= 30, !expedited && !normal_wake_from_gp);
        assert_eq!(ran.sum(RcuExtCounter::ExpGracePeriods) > 0, expedited);
        assert_eq!(ran.rcu.srs_in_flight.load(Relaxed), 0);
    }
    eprintln!(
        "synchronize_rcu(), us: callback {}, list {}, expedited {}",
        took[0] / 1000,
        took[1] / 1000,
        took[2] / 1000
    );
    assert!(took[2] < took[1] / 10 && took[1] < took[0], "{took:?}");
}

/// Beyond 64 at once the list is full and a callback is queued.
#[test]
fn the_list_of_synchronize_rcu_takes_64() {
    let cfg = RcuConfig { normal_wake_from_gp: true, ..RcuConfig::default() };
    let ran = run(70, cfg, 0, synchronize_rcu);
    assert_eq!((ran.sum(RcuExtCounter::SrsWakeups), ran.sum(RcuExtCounter::SrsFallbacks)), (64, 6));
}

pub(super) fn nocb_config(lazy: bool) -> RcuConfig {
    RcuConfig { nocb: true, lazy, hz: 1000, qs_policy: QsPolicy::Always, ..RcuConfig::default() }
}

/// Offloaded: called by the thread, in the order of the queueing CPU, after a grace period; a flood takes the bypass.
#[test]
fn offloaded_callbacks_are_called_elsewhere_in_order_and_on_time() {
    for (every, n, bypasses) in [(200_000u64, 400, false), (2_000, 6000, true)] {
        let all = Mutex::new(Vec::new());
        let ran = run(3, nocb_config(false), 0, |cpu, rcu| {
            let mut mine = Vec::new();
            if cpu.id < 2 {
                for _ in 0..n {
                    mine.push(queue(cpu, rcu));
                    work_until(cpu, now() + every, every);
                }
            }
            all.lock().unwrap().push((cpu.id, mine));
        });
        for (id, mine) in all.into_inner().unwrap() {
            // Behind three workers, the grace-period thread, a free number and the one rcuog of three CPUs.
            let rcuo = u64::from(6 + id);
            assert!(mine.iter().all(|t| t.cpu.load(Ordering::Relaxed) == rcuo), "CPU {id} has a rcuo of its own");
            assert!(mine.is_sorted_by_key(|t| t.called.load(Ordering::Relaxed)), "out of order");
            let least = mine.iter().map(|t| t.latency()).min().unwrap_or(u64::MAX);
            let most = mine.iter().map(|t| t.latency()).max().unwrap_or(0);
            assert!(least > MS && most < 20 * MS, "{least} to {most} ns, one each {every} ns");
        }
        let bypassed = ran.sum(RcuExtCounter::NocbBypassed);
        // 16 a millisecond go straight to the list.
        assert_eq!(bypassed > n / 2, bypasses, "{bypassed} of {n}");
        assert_eq!(ran.sum(RcuExtCounter::NocbFlushes) > 0, bypasses);
        assert!(!ran.rcu.cb_latency_ns().is_empty());
    }
}

/// One rcuo a CPU: CPUs whose callbacks take long do not wait for each other's. By one thread the last of four CPUs would be
/// done after four times as long.
#[test]
fn offloaded_callbacks_of_several_cpus_are_called_at_once() {
    const TAKES: u64 = 500_000;
    for n in [1, 4, 9] {
        let all = Mutex::new(Vec::new());
        let ran = run(n, nocb_config(false), 0, |cpu, rcu| {
            let mine: Vec<_> = (0..40).map(|_| queue_taking(cpu, rcu, TAKES)).collect();
            work_until(cpu, now() + 100 * MS, 50_000);
            all.lock().unwrap().extend(mine);
        });
        let most = all.into_inner().unwrap().iter().map(|t| t.latency()).max().unwrap_or(u64::MAX);
        assert!((40 * TAKES..60 * TAKES).contains(&most), "{n} CPUs: the last was called after {most} ns");
        // Every second or third CPU leads a group.
        let groups = [(1, 1), (4, 2), (9, 3)].iter().find(|g| g.0 == n).map(|g| g.1);
        assert_eq!(Some(ran.rcu.nocb_threads() - n), groups);
    }
}

/// Lazy: ten seconds, unless somebody is in a hurry.
#[test]
fn lazy_callbacks_wait_for_ten_seconds_for_company_or_for_a_barrier() {
    let ran = run(2, nocb_config(true), 0, |cpu, rcu| {
        if cpu.id != 0 {
            return;
        }
        // Alone.
        let t = queue(cpu, rcu);
        idle_loop(cpu, || t.called.load(Ordering::Relaxed) != 0);
        assert!((10 * S..10 * S + 100 * MS).contains(&t.latency()), "{}", t.latency());
        // Many of them.
        let many: Vec<_> = (0..10_002).map(|_| queue(cpu, rcu)).collect();
        idle_loop(cpu, || many[9_999].called.load(Ordering::Relaxed) != 0);
        assert!(many[9_999].latency() < 200 * MS, "{}", many[9_999].latency());
        // Somebody who waits for a callback: what is lazy goes with it.
        idle_loop(cpu, || many[10_001].called.load(Ordering::Relaxed) != 0);
        let t = queue(cpu, rcu);
        let begin = now();
        synchronize_rcu(cpu, rcu);
        assert!(now() - begin < 100 * MS);
        idle_loop(cpu, || t.called.load(Ordering::Relaxed) != 0);
        assert!(t.latency() < 100 * MS, "{}", t.latency());
        // A barrier.
        let t = queue(cpu, rcu);
        rcu_barrier(cpu, rcu);
        assert!(t.called.load(Ordering::Relaxed) != 0 && t.latency() < 100 * MS);
    });
    assert!(ran.sum(RcuExtCounter::NocbBypassed) > 0);
}

/// What was queued last is called, even when nobody ever comes again, and in a kernel without threads.
#[test]
fn nothing_is_stranded_on_a_bypass() {
    let last = Mutex::new(None);
    let ran = run(2, nocb_config(false), 0, |cpu, rcu| {
        if cpu.id == 1 {
            let many: Vec<_> = (0..200).map(|_| queue(cpu, rcu)).collect();
            let t = *many.last().unwrap();
            idle_loop(cpu, || t.called.load(Ordering::Relaxed) != 0);
            *last.lock().unwrap() = Some(t.latency());
        }
    });
    assert!(last.into_inner().unwrap().unwrap() < 30 * MS);
    assert!((200..203).contains(&ran.rcu.pending_high_water()), "{}", ran.rcu.pending_high_water());
    let rcu = RcuState::<crate::arch::Native>::leak(1, &nocb_config(true));
    let cpu = Cpu::<crate::arch::Native>::for_test(0);
    let heads: &'static [RcuHead<crate::arch::Native>] = Vec::leak((0..40).map(|_| RcuHead::new()).collect());
    for h in heads {
        // SAFETY: leaked, queued once.
        unsafe { call_rcu(&cpu, &rcu, std::ptr::from_ref(h).cast_mut(), |_, _| {}) };
    }
    assert_eq!(rcu.pending(), 40);
    rcu_barrier(&cpu, &rcu);
    assert_eq!(rcu.pending(), 0);
}
