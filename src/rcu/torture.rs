// SPDX-License-Identifier: GPL-2.0-only
//! Torture tests in the world of real threads, after the situations of kernel/rcu/rcutorture.c (6.12): readers that
//! hold what an updater removes, with ticks in the middle of their sections, over trees of every depth; and the same
//! with deliberate faults, which must be noticed.
//!
//! They run at HZ 1000 for a few hundred milliseconds each, on as few cores as there are: they show that the protocol
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

fn config(qs_policy: QsPolicy) -> RcuConfig {
    RcuConfig { hz: 1000, qs_policy, ..RcuConfig::default() }
}

fn now() -> u64 {
    <A as Arch>::now()
}

fn token(id: u32, nodes: AllLockNodes<A>, tick: TickDevice, seed: u64) -> Cpu<A> {
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
    let nodes: AllLockNodes<A> = PerCpu::leak(n + 2, |_| LockNodes::new());
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
struct Element {
    head: RcuHead<A>,
    pipe_count: AtomicU32,
    mbtest: AtomicU32,
    owner: *const Pipe,
}

struct Pipe {
    rcu: State,
    current: AtomicPtr<Element>,
    free: Mutex<Vec<*mut Element>>,
    stop: AtomicBool,
    /// What readers saw at their ends: 0 current, 1 removed meanwhile, more: a grace period was too short.
    seen: [AtomicU64; 12],
    mberrors: AtomicU64,
}
// SAFETY: elements are leaked and shared by atomics.
unsafe impl Sync for Pipe {}
// SAFETY: as above.
unsafe impl Send for Pipe {}

const PIPE_LEN: u32 = 10;

impl Pipe {
    fn new(rcu: State) -> &'static Pipe {
        let p: &'static mut Pipe = Box::leak(Box::new(Pipe {
            rcu,
            current: AtomicPtr::new(std::ptr::null_mut()),
            free: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            seen: Default::default(),
            mberrors: AtomicU64::new(0),
        }));
        let owner: *const Pipe = p;
        *p.free.get_mut().unwrap() = (0..100)
            .map(|_| {
                let e = Element { head: RcuHead::new(), pipe_count: 0.into(), mbtest: 1.into(), owner };
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
        if e.pipe_count.fetch_add(1, Ordering::Relaxed) + 1 < PIPE_LEN && !pipe.stop.load(Ordering::Relaxed) {
            // SAFETY: just called, so on no list.
            unsafe { call_rcu(cpu, &pipe.rcu, head, Pipe::age) };
        } else {
            e.mbtest.store(0, Ordering::Relaxed);
            pipe.free.lock().unwrap().push(head.cast());
        }
    }

    fn update(&self, cpu: &Cpu<A>) {
        let Some(new) = self.free.lock().unwrap().pop() else { return };
        // SAFETY: elements are leaked.
        unsafe {
            (*new).pipe_count.store(0, Ordering::Relaxed);
            (*new).mbtest.store(1, Ordering::Relaxed);
        }
        let old = self.current.swap(new, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: as above; unlinked, and on no list.
            unsafe {
                (*old).pipe_count.fetch_add(1, Ordering::Relaxed);
                call_rcu(cpu, &self.rcu, old.cast(), Pipe::age);
            }
        }
    }

    fn read(&self, cpu: &Cpu<A>, long: u64) {
        rcu_read_lock(cpu);
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
                if long > 0 && cpu.random() % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            // SAFETY: elements are leaked.
            let e = unsafe { &*e };
            if e.mbtest.load(Ordering::Relaxed) == 0 {
                self.mberrors.fetch_add(1, Ordering::Relaxed);
            }
            self.seen[e.pipe_count.load(Ordering::Relaxed) as usize].fetch_add(1, Ordering::Relaxed);
        }
        rcu_read_unlock(cpu);
        exit_to_user_mode(cpu);
    }

    fn too_short(&self) -> u64 {
        self.seen[2..].iter().map(|s| s.load(Ordering::Relaxed)).sum::<u64>() + self.mberrors.load(Ordering::Relaxed)
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
        let (bad, t) = pipe_test(n, cfg, Bug::None, 400);
        assert_eq!(bad, 0, "{n} CPUs, {policy:?}");
        assert!(t.get(RcuCounter::GracePeriods) > 2, "{n} CPUs, {policy:?}: {}", t.get(RcuCounter::GracePeriods));
    }
}

#[test]
fn r2_busted_flavours_are_noticed() {
    for (bug, policy) in [
        (Bug::NoGracePeriod, QsPolicy::Always),
        (Bug::QsInReader, QsPolicy::Always),
        (Bug::CreditWatched, QsPolicy::Always),
    ] {
        let (bad, _) = pipe_test(3, config(policy), bug, 8_000);
        assert!(bad > 0, "{bug:?} went unnoticed");
    }
}
