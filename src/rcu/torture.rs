// SPDX-License-Identifier: GPL-2.0-only
//! Torture tests in the world of real threads, after the situations of kernel/rcu/rcutorture.c (6.12): readers that
//! hold what an updater removes, with ticks in the middle of their sections, over trees of every depth; and the same
//! with deliberate faults, which must be noticed.
//!
//! `FAULTLINE_TORTURE_SECONDS=600 cargo test --release --lib rcu::torture::torture -- --nocapture` is the long one. The
//! others run at HZ 1000 for a few hundred milliseconds each, on as few cores as there are: they show that the protocol
//! holds in many schedules, not in all (that is `model/grace_period.rs`), and nothing about orderings on x86.

use super::*;
use crate::arch::Native;
use crate::arch::arena::KRef;
use crate::cpu::smp::CpuRemote;
use crate::cpu::tick::{TickDevice, exit_to_user_mode, idle_loop, sysvec_apic_timer_interrupt};
use crate::cpu::{AllLockNodes, LockNodes, PerCpu, Task, stat::SLOTS};
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

type A = Native;
type State = KRef<RcuState<A>>;

pub(super) fn config(qs_policy: QsPolicy) -> RcuConfig {
    RcuConfig { hz: 1000, qs_policy, ..RcuConfig::default() }
}

fn now() -> u64 {
    <A as Arch>::now()
}

pub(super) fn token(id: u32, nodes: AllLockNodes<A>, tick: TickDevice, seed: u64) -> Cpu<A> {
    let task: &'static Task<A> = Box::leak(Box::new(Task::new(id)));
    let remote: &'static CpuRemote<A> = Box::leak(Box::new(CpuRemote::new()));
    // SAFETY: leaked, hence alive for ever.
    let (task, remote) = unsafe { (KRef::from_ref(task), KRef::from_ref(remote)) };
    Cpu::new(id, 0, task, remote, nodes, tick, seed)
}

/// What the CPUs of a run counted, summed.
struct Totals([u64; SLOTS]);
impl Totals {
    fn get(&self, c: impl crate::cpu::Counter) -> u64 {
        self.0[c.slot()]
    }
}

/// Runs `body` on each of `n` workers of `rcu`, a shutdown like a real kernel's behind it, and checks the balance.
fn run(rcu: State, n: u32, body: impl Fn(&Cpu<A>, &RcuState<A>) + Sync) -> Totals {
    let (left, over) = (AtomicU32::new(n), AtomicBool::new(false));
    let nodes: AllLockNodes<A> = PerCpu::leak(n + crate::cpu::nr_kthreads(n, rcu.config().nocb), |_| LockNodes::new());
    let sum = Mutex::new([0u64; SLOTS]);
    let add = |cpu: &Cpu<A>| {
        let mut s = sum.lock().unwrap();
        cpu.counters.snapshot().iter().zip(s.iter_mut()).for_each(|(c, s)| *s += c);
    };
    std::thread::scope(|s| {
        s.spawn(|| {
            let cpu = token(n, nodes, TickDevice::off(), 1);
            rcu_gp_kthread(&cpu, &rcu);
            add(&cpu);
        });
        for i in 0..rcu.nocb_threads() {
            let add = &add;
            s.spawn(move || {
                let cpu = token(n + 2 + i, nodes, TickDevice::off(), 1);
                rcu.nocb_thread(&cpu, i);
                add(&cpu);
            });
        }
        for id in 0..n {
            let (body, left, over, add) = (&body, &left, &over, &add);
            s.spawn(move || {
                let cpu = token(id, nodes, rcu.tick_device(8), 7);
                rcu.install_hooks(&cpu);
                body(&cpu, &rcu);
                left.fetch_sub(1, Ordering::AcqRel);
                idle_loop(&cpu, || over.load(Ordering::Acquire));
                rcu.remove_hooks(&cpu);
                add(&cpu);
            });
        }
        while left.load(Ordering::Acquire) != 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let main = token(n + 1, nodes, TickDevice::off(), 1);
        rcu_barrier(&main, &rcu);
        add(&main);
        over.store(true, Ordering::Release);
        rcu.stop();
    });
    assert_eq!(rcu.pending(), 0);
    let t = Totals(sum.into_inner().unwrap());
    assert_eq!(t.get(RcuCounter::CallbacksQueued), t.get(RcuCounter::CallbacksInvoked) + rcu.pending());
    t
}

/// An element of the pipe test; its count grows at its removal and at every grace period after.
#[repr(C)]
pub(super) struct Element {
    head: RcuHead<A>,
    /// CPU and running number of its last `call_rcu()`.
    queued: AtomicU64,
    pipe_count: AtomicU32,
    mbtest: AtomicU32,
    /// What the object is for, until its first callback overwrites it.
    body: [AtomicU64; 4],
    owner: *const Pipe,
}

const GOOD: u64 = 0x600d_600d_600d_600d;
/// `POISON_FREE`, eight times.
const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

pub(super) struct Pipe {
    rcu: State,
    pub current: AtomicPtr<Element>,
    free: Mutex<Vec<*mut Element>>,
    pub stop: AtomicBool,
    number: AtomicU64,
    /// By CPU, the number of the callback called last.
    called: [AtomicU64; 32],
    /// What readers saw at their ends: 0 current, 1 removed meanwhile, more: a grace period was too short.
    pub seen: [AtomicU64; 12],
    mberrors: AtomicU64,
    /// Readers that found an object overwritten.
    poisoned: AtomicU64,
    /// Polled grace periods that were over inside the reader that took the cookie.
    pub cookie_errors: AtomicU64,
}
// SAFETY: elements are leaked and shared by atomics.
unsafe impl Sync for Pipe {}
// SAFETY: as above.
unsafe impl Send for Pipe {}

const PIPE_LEN: u32 = 10;

impl Pipe {
    pub fn new(rcu: State) -> &'static Pipe {
        let p: &'static mut Pipe = Box::leak(Box::new(Pipe {
            rcu,
            current: AtomicPtr::new(std::ptr::null_mut()),
            free: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            number: AtomicU64::new(0),
            called: Default::default(),
            seen: Default::default(),
            mberrors: AtomicU64::new(0),
            poisoned: AtomicU64::new(0),
            cookie_errors: AtomicU64::new(0),
        }));
        let owner: *const Pipe = p;
        *p.free.get_mut().unwrap() = (0..100)
            .map(|_| {
                let e = Element {
                    head: RcuHead::new(),
                    queued: 0.into(),
                    pipe_count: 0.into(),
                    mbtest: 1.into(),
                    body: [const { AtomicU64::new(GOOD) }; 4],
                    owner,
                };
                std::ptr::from_mut(Box::leak(Box::new(e)))
            })
            .collect();
        p
    }

    /// # Safety
    /// `head` is an element's.
    unsafe fn age(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
        const { assert!(offset_of!(Element, head) == 0) };
        // SAFETY: the caller's; elements are leaked.
        let (e, pipe) = unsafe { (&*head.cast::<Element>(), &*(*head.cast::<Element>()).owner) };
        // R4: where it was queued, unless offloaded. R5: in order.
        let queued = e.queued.load(Ordering::Relaxed);
        let from = (queued >> 48) as usize;
        assert!(from == cpu.id as usize || pipe.rcu.config().nocb);
        assert!(pipe.called[from].swap(queued, Ordering::Relaxed) < queued);
        e.body.iter().for_each(|w| w.store(POISON, Ordering::Relaxed));
        if e.pipe_count.fetch_add(1, Ordering::Relaxed) + 1 < PIPE_LEN && !pipe.stop.load(Ordering::Relaxed) {
            pipe.queue(cpu, e);
        } else {
            e.mbtest.store(0, Ordering::Relaxed);
            pipe.free.lock().unwrap().push(head.cast());
        }
    }

    fn queue(&self, cpu: &Cpu<A>, e: &Element) {
        let n = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        e.queued.store(u64::from(cpu.id) << 48 | n, Ordering::Relaxed);
        // SAFETY: elements are leaked; this one is unlinked, and on no list.
        unsafe { call_rcu(cpu, &self.rcu, (&raw const e.head).cast_mut(), Pipe::age) };
    }

    pub fn update(&self, cpu: &Cpu<A>) {
        let Some(new) = self.free.lock().unwrap().pop() else { return };
        // SAFETY: elements are leaked.
        unsafe {
            (*new).pipe_count.store(0, Ordering::Relaxed);
            (*new).body.iter().for_each(|w| w.store(GOOD, Ordering::Relaxed));
            (*new).mbtest.store(1, Ordering::Relaxed);
        }
        let old = self.current.swap(new, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: as above; unlinked, and on no list.
            unsafe {
                (*old).pipe_count.fetch_add(1, Ordering::Relaxed);
                self.queue(cpu, &*old);
            }
        }
    }

    fn read(&self, cpu: &Cpu<A>, long: u64) {
        rcu_read_lock(cpu);
        let (s, full) = (get_state_synchronize_rcu(&self.rcu), get_state_synchronize_rcu_full(&self.rcu));
        let e = self.current.load(Ordering::Acquire);
        if !e.is_null() {
            let end = now() + if long > 0 { cpu.random() % long } else { cpu.random() % 2_000 };
            while now() < end {
                // Ticks in the middle of long sections only: short ones would else hide every tick from RCU.
                if long > 0 {
                    rcu_read_lock(cpu);
                    sysvec_apic_timer_interrupt(cpu);
                    rcu_read_unlock(cpu);
                }
                if long > 0 && cpu.random().is_multiple_of(64) {
                    std::thread::yield_now();
                }
            }
            self.judge(e);
        }
        if poll_state_synchronize_rcu(&self.rcu, s) || poll_state_synchronize_rcu_full(&self.rcu, &full) {
            self.cookie_errors.fetch_add(1, Ordering::Relaxed);
        }
        rcu_read_unlock(cpu);
        exit_to_user_mode(cpu);
    }

    /// At the end of a reader that found `e`.
    pub fn judge(&self, e: *mut Element) {
        if e.is_null() {
            return;
        }
        // SAFETY: elements are leaked.
        let e = unsafe { &*e };
        if e.mbtest.load(Ordering::Relaxed) == 0 {
            self.mberrors.fetch_add(1, Ordering::Relaxed);
        }
        if e.body.iter().any(|w| w.load(Ordering::Relaxed) != GOOD) {
            self.poisoned.fetch_add(1, Ordering::Relaxed);
        }
        self.seen[e.pipe_count.load(Ordering::Relaxed) as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn too_short(&self) -> u64 {
        self.seen[2..].iter().map(|s| s.load(Ordering::Relaxed)).sum::<u64>()
            + self.mberrors.load(Ordering::Relaxed)
            + self.poisoned.load(Ordering::Relaxed)
            + self.cookie_errors.load(Ordering::Relaxed)
    }
}

/// Runs the pipe for at most `ms`, or until a reader saw a grace period that was too short; how many did.
fn pipe_test(n: u32, cfg: RcuConfig, bug: Bug, ms: u64) -> (u64, Totals) {
    let rcu = RcuState::leak(n, &cfg);
    rcu.set_bug(bug);
    let pipe = Pipe::new(rcu);
    let end = now() + ms * 1_000_000;
    // A deliberate fault must show on a busy host too: readers stay for several time slices.
    let long = if bug == Bug::None { 8_000_000 } else { 50_000_000 };
    let t = run(rcu, n, |cpu, _| {
        while now() < end && (bug == Bug::None || pipe.too_short() == 0) {
            if cpu.id == 0 && cpu.random() % 4 == 0 {
                pipe.update(cpu);
            }
            if cpu.random() % 4096 == 0 {
                let s = get_state_synchronize_rcu_full(&rcu);
                synchronize_rcu_expedited(cpu, &rcu);
                assert!(poll_state_synchronize_rcu_full(&rcu, &s), "returned before its grace period was over");
            }
            pipe.read(cpu, if cpu.random() % 2048 == 0 { long } else { 0 });
        }
        pipe.stop.store(true, Ordering::Relaxed);
    });
    assert!(pipe.seen[0].load(Ordering::Relaxed) > 0);
    (pipe.too_short(), t)
}

#[test]
fn r1_no_reader_sees_two_grace_periods() {
    for (n, policy) in
        [(1, QsPolicy::Always), (2, QsPolicy::Always), (4, QsPolicy::PREEMPT_ZERO), (3, QsPolicy::USER_ONLY)]
    {
        // Fan-outs of two make trees of one, one, two and two levels.
        let cfg = RcuConfig { fanout: 2, fanout_leaf: 2, ..config(policy) };
        let (bad, t) = pipe_test(n, cfg, Bug::None, 300);
        assert_eq!(bad, 0, "{n} CPUs, {policy:?}");
        assert!(t.get(RcuCounter::GracePeriods) > 2, "{n} CPUs, {policy:?}: {}", t.get(RcuCounter::GracePeriods));
    }
}

/// Which faults show in a moment of any schedule; all of them show in `script.rs`.
#[test]
fn r2_busted_flavours_are_noticed() {
    for bug in [Bug::NoGracePeriod, Bug::QsInReader] {
        let (bad, _) = pipe_test(3, config(QsPolicy::Always), bug, 8_000);
        assert!(bad > 0, "{bug:?} went unnoticed");
    }
}

/// What torture runs for: seconds in all, from the environment, else two.
const TORTURE_SECONDS: &str = "FAULTLINE_TORTURE_SECONDS";

/// A heap object that its callback gives back.
#[repr(C)]
struct Heaped {
    head: RcuHead<A>,
    body: [u64; 2],
}

/// # Safety
/// `head` is a boxed [`Heaped`]'s.
unsafe fn drop_heaped(_: &Cpu<A>, head: *mut RcuHead<A>) {
    const { assert!(offset_of!(Heaped, head) == 0) };
    // SAFETY: the caller's; called once.
    let b = unsafe { Box::from_raw(head.cast::<Heaped>()) };
    assert_eq!(b.body, [GOOD, POISON]);
}

/// One kernel of the torture matrix for `ms`: readers of all lengths, updates, floods, stalls, sleeps, waits of all kinds.
fn torture_one(n: u32, cfg: RcuConfig, ms: u64) {
    let rcu = RcuState::leak(n, &cfg);
    let pipe = Pipe::new(rcu);
    let end = now() + ms * 1_000_000;
    let (reads, floods, waits) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let t = run(rcu, n, |cpu, rcu| {
        let (mut r, mut f, mut w) = (0, 0, 0);
        while now() < end {
            // Every CPU does everything; the first two actions are by far the most frequent.
            match cpu.random() >> 20 & 0xfff {
                0 => pipe.read(cpu, 20_000_000),
                // A reader that the host takes off its CPU.
                1 => {
                    rcu_read_lock(cpu);
                    let e = pipe.current.load(Ordering::Acquire);
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    pipe.judge(e);
                    rcu_read_unlock(cpu);
                }
                2 => {
                    // A flood, past qhimark, with few boundaries.
                    for i in 0..20_000 {
                        let b = Box::new(Heaped { head: RcuHead::new(), body: [GOOD, POISON] });
                        let head = std::ptr::from_mut(Box::leak(b)).cast();
                        // SAFETY: on the heap until its callback.
                        unsafe { call_rcu(cpu, rcu, head, drop_heaped) };
                        if i % 256 == 0 {
                            exit_to_user_mode(cpu);
                        }
                    }
                    f += 1;
                }
                3 => {
                    let until = now() + cpu.random() % 5_000_000;
                    idle_loop(cpu, || now() >= until);
                }
                4 | 5 => {
                    let (s, full) = (get_state_synchronize_rcu(rcu), get_state_synchronize_rcu_full(rcu));
                    let _ = start_poll_synchronize_rcu(cpu, rcu);
                    if cpu.random() % 2 == 0 {
                        synchronize_rcu(cpu, rcu);
                    } else {
                        cond_synchronize_rcu(cpu, rcu, s);
                    }
                    assert!(poll_state_synchronize_rcu_full(rcu, &full), "no grace period while it waited");
                    w += 1;
                }
                6..16 => {
                    let full = get_state_synchronize_rcu_full(rcu);
                    synchronize_rcu_expedited(cpu, rcu);
                    assert!(poll_state_synchronize_rcu_full(rcu, &full), "no grace period while it waited");
                    w += 1;
                }
                16 => {
                    rcu_barrier(cpu, rcu);
                    w += 1;
                }
                17..600 => pipe.update(cpu),
                _ => {
                    pipe.read(cpu, 0);
                    r += 1;
                }
            }
            exit_to_user_mode(cpu);
        }
        pipe.stop.store(true, Ordering::Relaxed);
        reads.fetch_add(r, Ordering::Relaxed);
        floods.fetch_add(f, Ordering::Relaxed);
        waits.fetch_add(w, Ordering::Relaxed);
    });
    let seen: Vec<u64> = pipe.seen.iter().map(|s| s.load(Ordering::Relaxed)).collect();
    eprintln!(
        "{n} CPUs, fan-outs {}/{}, {:?}, expedited {} srs {} nocb {} lazy {}: {} grace periods, {} expedited, {} reads, \
         {} floods, {} waits, {} callbacks, seen {seen:?}",
        cfg.fanout,
        cfg.fanout_leaf,
        cfg.qs_policy,
        cfg.expedited,
        cfg.normal_wake_from_gp,
        cfg.nocb,
        cfg.lazy,
        t.get(RcuCounter::GracePeriods),
        t.get(RcuExtCounter::ExpGracePeriods),
        reads.into_inner(),
        floods.into_inner(),
        waits.into_inner(),
        t.get(RcuCounter::CallbacksInvoked),
    );
    assert_eq!(pipe.too_short(), 0, "{cfg:?}");
    assert!(seen[0] > 0 && t.get(RcuCounter::GracePeriods) > 0, "{cfg:?}");
    // What was removed is back: nothing got lost on the way.
    let left = 100 - usize::from(!pipe.current.load(Ordering::Relaxed).is_null());
    assert_eq!(pipe.free.lock().unwrap().len(), left, "{cfg:?}");
    assert_eq!(rcu.stalls(), 0, "{:?}", rcu.stall_reports());
}

/// R1, R3 to R5, R10 and R11 together over every combination of options, tree shapes and policies, for as long as the
/// environment says.
#[test]
fn torture() {
    let seconds: f64 = std::env::var(TORTURE_SECONDS).ok().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let d = RcuConfig { hz: 1000, ..RcuConfig::default() };
    let flood = |c: RcuConfig| RcuConfig { qhimark: 2_000, qovld: 4_000, ..c };
    let matrix = [
        (2, RcuConfig { qs_policy: QsPolicy::Always, ..d }),
        (3, RcuConfig { fanout: 2, fanout_leaf: 2, ..d }),
        (5, flood(RcuConfig { fanout: 2, fanout_leaf: 2, qs_policy: QsPolicy::USER_ONLY, ..d })),
        (2, flood(RcuConfig { normal_wake_from_gp: true, ..d })),
        (4, RcuConfig { expedited: true, fanout: 2, fanout_leaf: 2, ..d }),
        (2, RcuConfig { nocb: true, ..d }),
        (4, flood(RcuConfig { nocb: true, fanout: 2, fanout_leaf: 2, normal_wake_from_gp: true, ..d })),
        (2, RcuConfig { nocb: true, lazy: true, ..d }),
        (3, flood(RcuConfig { nocb: true, lazy: true, expedited: true, qs_policy: QsPolicy::Always, ..d })),
        (1, RcuConfig { hz: 250, ..d }),
    ];
    let ms = (seconds * 1000.0 / matrix.len() as f64) as u64;
    for (n, cfg) in matrix {
        torture_one(n, cfg, ms);
    }
}

/// R14 in real threads: message passing and store buffering across grace periods of each kind, on whatever this machine
/// reorders. The model checker has the same shapes with broken twins.
#[test]
fn r14_litmus_shapes_across_grace_periods() {
    for (expedited, nocb) in [(false, false), (true, false), (false, true)] {
        let rcu = RcuState::leak(3, &RcuConfig { expedited, nocb, ..config(QsPolicy::Always) });
        // For message passing: the callback writes y after x was written before call_rcu().
        let (x, y, sb) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let (bad, rounds, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        run(rcu, 3, |cpu, rcu| {
            if cpu.id == 0 {
                let end = now() + 250_000_000;
                let mut i = 0;
                while now() < end {
                    i += 1;
                    x.store(i, Ordering::Relaxed);
                    synchronize_rcu(cpu, rcu);
                    // Store buffering: a reader that wrote `sb` and did not see x began before; then it is over.
                    let seen = sb.load(Ordering::Relaxed);
                    if seen & 1 == 1 && seen >> 1 < i {
                        bad.fetch_add(1, Ordering::Relaxed);
                    }
                    y.store(i, Ordering::Relaxed);
                    exit_to_user_mode(cpu);
                }
                rounds.store(i, Ordering::Relaxed);
                over.store(true, Ordering::Release);
                return;
            }
            while !over.load(Ordering::Acquire) {
                rcu_read_lock(cpu);
                // Message passing: who sees y of round i sees x of it.
                let (sy, sx) = (y.load(Ordering::Relaxed), x.load(Ordering::Relaxed));
                if sx < sy {
                    bad.fetch_add(1, Ordering::Relaxed);
                }
                if cpu.id == 1 {
                    // Inside: low bit set, and which x was seen after. Outside: clear.
                    sb.store(sx << 1 | 1, Ordering::Relaxed);
                    std::hint::spin_loop();
                    sb.store(0, Ordering::Relaxed);
                }
                rcu_read_unlock(cpu);
                exit_to_user_mode(cpu);
            }
        });
        let rounds = rounds.into_inner();
        assert!(rounds > 5, "{rounds}");
        assert_eq!(bad.into_inner(), 0, "of {rounds} rounds, expedited {expedited}, nocb {nocb}");
    }
}

/// A callback that counts.
#[repr(C)]
struct Counted {
    head: RcuHead<A>,
    calls: AtomicU32,
    at: AtomicU64,
}

fn counted(n: usize) -> &'static [Counted] {
    let v: Vec<_> = (0..n).map(|_| Counted { head: RcuHead::new(), calls: 0.into(), at: 0.into() }).collect();
    Vec::leak(v)
}

/// # Safety
/// `head` is a [`Counted`]'s.
unsafe fn count(_: &Cpu<A>, head: *mut RcuHead<A>) {
    const { assert!(offset_of!(Counted, head) == 0) };
    // SAFETY: the caller's; leaked.
    let c = unsafe { &*head.cast::<Counted>() };
    c.at.store(now(), Ordering::Relaxed);
    c.calls.fetch_add(1, Ordering::Relaxed);
}

fn queue(cpu: &Cpu<A>, rcu: &RcuState<A>, c: &'static Counted) {
    // SAFETY: leaked, queued once.
    unsafe { call_rcu(cpu, rcu, (&raw const c.head).cast_mut(), count) };
}

#[test]
fn r10_rcu_barrier_waits_for_all_that_was_queued() {
    let rcu = RcuState::leak(3, &config(QsPolicy::Always));
    // A kernel that ran and came to rest runs again.
    run(rcu, 3, |cpu, rcu| counted(200).iter().for_each(|c| queue(cpu, rcu, c)));
    let all = counted(3 * 5 * 40);
    let queued = AtomicU32::new(0);
    let t = run(rcu, 3, |cpu, rcu| {
        for round in 0..5 {
            // Every CPU queues and asks; in odd rounds CPU 2 has nothing of its own.
            let mine = &all[(cpu.id as usize * 5 + round) * 40..][..if round % 2 == 1 && cpu.id == 2 { 0 } else { 40 }];
            for c in mine {
                queue(cpu, rcu, c);
                exit_to_user_mode(cpu);
            }
            queued.fetch_add(mine.len() as u32, Ordering::Release);
            let before = queued.load(Ordering::Acquire);
            rcu_barrier(cpu, rcu);
            let called: u32 = all.iter().map(|c| c.calls.load(Ordering::Relaxed)).sum();
            assert!(called >= before, "round {round}: {called} of {before}");
        }
    });
    assert!(all.iter().all(|c| c.calls.load(Ordering::Relaxed) <= 1));
    assert_eq!(all.iter().map(|c| c.calls.load(Ordering::Relaxed)).sum::<u32>(), 520);
    assert!(t.get(RcuCounter::BarrierHandlers) > 0);
}

#[test]
fn r11_a_flood_lifts_the_limit_and_its_end_restores_it() {
    let cfg = RcuConfig { qhimark: 1_000, qovld: 2_000, ..config(QsPolicy::Always) };
    let rcu = RcuState::leak(1, &cfg);
    let all = counted(200_000);
    let t = run(rcu, 1, |cpu, rcu| {
        let rdp = rcu.rda.this(cpu);
        let mut next = all.iter();
        let end = now() + 5_000_000_000;
        // The first look asks for a grace period; while it runs the next thousand are a flood.
        while (rdp.blimit.get() == 10 || rdp.cblist.n_cbs() < 2_001) && now() < end {
            if let Some(c) = next.next() {
                queue(cpu, rcu, c);
            }
            if cpu.random().is_multiple_of(64) {
                std::thread::yield_now();
            }
        }
        assert_eq!(rdp.blimit.get(), 10_000);
        assert_ne!(rdp.mynode.cbovldmask.load(crate::arch::Relaxed), 0);
        // The overload is told to the grace-period thread, which then asks this CPU to hurry.
        while rdp.cblist.n_cbs() > 100 && now() < end {
            exit_to_user_mode(cpu);
        }
        assert_eq!(rdp.blimit.get(), 10, "{} left", rdp.cblist.n_cbs());
        if let Some(c) = next.next() {
            queue(cpu, rcu, c);
        }
        assert_eq!(rdp.mynode.cbovldmask.load(crate::arch::Relaxed), 0);
    });
    assert!(t.get(RcuCounter::BlimitFloods) > 0);
    assert!(t.get(crate::cpu::softirq::SoftirqCounter::SoftirqRcu) > 0);
}

#[test]
fn r12_a_sleeper_delays_nobody_and_calls_its_own() {
    let rcu = RcuState::leak(2, &config(QsPolicy::Always));
    let all = counted(100);
    let done = AtomicBool::new(false);
    let start = now();
    let t = run(rcu, 2, |cpu, rcu| {
        if cpu.id == 0 {
            for i in 0..5 {
                let s = if i == 0 { start_poll_synchronize_rcu(cpu, rcu) } else { get_state_synchronize_rcu(rcu) };
                let full = get_state_synchronize_rcu_full(rcu);
                assert!(!poll_state_synchronize_rcu(rcu, s) && !poll_state_synchronize_rcu_full(rcu, &full));
                // What synchronize_rcu() waited for is over for the polls as well.
                synchronize_rcu(cpu, rcu);
                assert!(poll_state_synchronize_rcu(rcu, s) && poll_state_synchronize_rcu_full(rcu, &full));
                cond_synchronize_rcu(cpu, rcu, s);
            }
            done.store(true, Ordering::Release);
        } else {
            all.iter().for_each(|c| queue(cpu, rcu, c));
            idle_loop(cpu, || done.load(Ordering::Acquire));
            // Asleep all the time: its own ticks called what it had queued, or do so within a few more.
            idle_loop(cpu, || all.iter().all(|c| c.calls.load(Ordering::Relaxed) == 1));
        }
    });
    assert!(now() - start < 5_000_000_000);
    assert!(t.get(RcuCounter::EqsCredits) > 0, "the sleeper was credited by scans");
}

/// R13, its lower half: on a busy host everything only gets longer. With steady traffic, little enough that ksoftirqd
/// does not help, a grace period is two ticks long, less the start's delay, and a callback waits for a whole one.
#[test]
fn r13_grace_periods_last_two_ticks_and_callbacks_wait_for_a_whole_one() {
    let rcu = RcuState::leak(1, &RcuConfig { qs_policy: QsPolicy::Always, ..RcuConfig::default() });
    let all = counted(1_000);
    let (sum, n, min) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let t = run(rcu, 1, |cpu, rcu| {
        let end = now() + 500_000_000;
        let mut queued = Vec::new();
        for c in all {
            let at = now();
            if at > end {
                break;
            }
            queue(cpu, rcu, c);
            queued.push(at);
            while now() < at + 1_000_000 {
                exit_to_user_mode(cpu);
            }
        }
        for (c, at) in all.iter().zip(&queued).filter(|(c, _)| c.calls.load(Ordering::Relaxed) == 1) {
            let d = c.at.load(Ordering::Relaxed) - at;
            sum.fetch_add(d, Ordering::Relaxed);
            n.fetch_add(1, Ordering::Relaxed);
            min.fetch_min(d, Ordering::Relaxed);
        }
    });
    let mean = sum.into_inner() / n.into_inner().max(1);
    let gp = t.get(RcuCounter::GracePeriodNs) / t.get(RcuCounter::GracePeriods).max(1);
    eprintln!(
        "HZ 250: grace period {} us, latency mean {} us, least {} us",
        gp / 1000,
        mean / 1000,
        min.into_inner() / 1000
    );
    assert!(gp > 7_000_000, "{gp}");
    assert!(mean > 11_000_000, "{mean}");
}
