// SPDX-License-Identifier: GPL-2.0-only
//! RCU on 16 and 64 simulated CPUs in many interleavings: readers that stay and readers that take ticks, updaters that
//! queue, wait or ask for expedited grace periods, barriers in the middle, under each option.
//!
//! What a reader found must not be freed before it leaves; every callback is called once and none is left; whoever called
//! `rcu_barrier()` finds its own called. Faults put in on purpose must be seen on machines of this size too.
//! `FAULTLINE_SIM_SEEDS` says how many interleavings, four by default.

use super::sim_tests::{Ran, busy_until, now, run_jittered};
use super::*;
use crate::arch::sim::Jitter;
use crate::arch::{Acquire, Full, Relaxed, Sim};
use crate::cpu::splitmix64;
use crate::cpu::testing::seeds;
use crate::cpu::tick::{exit_to_user_mode, sysvec_apic_timer_interrupt};
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

type A = Sim;

const LIVE: u32 = 0x600d;
const FREED: u32 = 0xdead;
const SLOTS: usize = 6;

/// What readers look for.
#[repr(C)]
struct Element {
    head: RcuHead<A>,
    state: Atomic<A, u32>,
    /// Calls of its callback.
    calls: AtomicU64,
    /// Where its callback counts itself.
    called_of_cpu: &'static AtomicU64,
}

/// # Safety
/// `head` is an [`Element`]'s.
unsafe fn free(_: &Cpu<A>, head: *mut RcuHead<A>) {
    const { assert!(offset_of!(Element, head) == 0) };
    // SAFETY: the caller's; leaked.
    let e = unsafe { &*head.cast::<Element>() };
    e.state.store(FREED, Relaxed);
    assert_eq!(e.calls.fetch_add(1, Ordering::Relaxed), 0, "a callback called twice");
    e.called_of_cpu.fetch_add(1, Ordering::Relaxed);
}

fn element(called_of_cpu: &'static AtomicU64) -> *mut Element {
    let (head, state) = (RcuHead::new(), Atomic::new(LIVE));
    Box::into_raw(Box::new(Element { head, state, calls: 0.into(), called_of_cpu }))
}

/// What came of a run.
struct Outcome {
    /// Readers that found something freed.
    torn: u64,
    /// Calls of `synchronize_rcu()`, of its expedited form, of `rcu_barrier()`.
    waits: [u64; 3],
    ran: Ran,
}

/// `n` CPUs until `ms` of virtual time are over.
fn torture(n: u32, cfg: RcuConfig, seed: u64, bug: Bug, ms: u64) -> Outcome {
    let slots: [Atomic<A, *mut Element>; SLOTS] = std::array::from_fn(|_| Atomic::new(null_mut()));
    let called: Vec<&'static AtomicU64> = (0..n).map(|_| &*Box::leak(Box::new(AtomicU64::new(0)))).collect();
    let [torn, queued] = [const { AtomicU64::new(0) }; 2];
    let waits = [const { AtomicU64::new(0) }; 3];
    let jitter = Jitter { seed, every: 30, max_ns: 5_000, at_names: false };
    let ran = run_jittered(n, cfg, 0, Some(jitter), |cpu, rcu| {
        if cpu.id == 0 {
            rcu.set_bug(bug);
        }
        let mine = called[cpu.id as usize];
        let (mut given, end) = (0, now() + ms * 1_000_000);
        while now() < end {
            // A CPU's own numbers are the same in every run.
            let r = splitmix64(cpu.random() ^ seed);
            let slot = &slots[(r >> 8) as usize % SLOTS];
            match r >> 16 & 31 {
                0..4 => {
                    let old = slot.swap(element(mine), Full);
                    if !old.is_null() {
                        // SAFETY: leaked elements; out of its slot, so queued once. The callback counts for who queued it.
                        unsafe {
                            (*old).called_of_cpu = mine;
                            call_rcu(cpu, rcu, (&raw const (*old).head).cast_mut(), free);
                        }
                        given += 1;
                        queued.fetch_add(1, Ordering::Relaxed);
                    }
                }
                4 if r >> 24 & 7 == 0 => {
                    let old = slot.swap(element(mine), Full);
                    let expedited = r >> 28 & 1 == 1;
                    if expedited {
                        synchronize_rcu_expedited(cpu, rcu);
                    } else {
                        synchronize_rcu(cpu, rcu);
                    }
                    waits[usize::from(expedited)].fetch_add(1, Ordering::Relaxed);
                    if !old.is_null() {
                        // SAFETY: leaked.
                        unsafe { (*old).state.store(FREED, Relaxed) };
                    }
                }
                5 if r >> 24 & 15 == 0 => {
                    rcu_barrier(cpu, rcu);
                    waits[2].fetch_add(1, Ordering::Relaxed);
                    assert_eq!(mine.load(Ordering::Relaxed), given, "CPU {}: rcu_barrier() returned too early", cpu.id);
                }
                _ => {
                    rcu_read_lock(cpu);
                    // ORDER: acquire; meets the updater's exchange.
                    let e = slot.load(Acquire);
                    let look = || {
                        // SAFETY: leaked.
                        if !e.is_null() && unsafe { (*e).state.load(Relaxed) } != LIVE {
                            torn.fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    look();
                    // Rarely for longer than a tick, with ticks inside; for a fault that is to show, for several.
                    let long = if bug == Bug::None { 6_000_000 } else { 24_000_000 };
                    let stay = if r >> 32 & 63 == 0 { long } else { r >> 40 & 0x3fff };
                    for _ in 0..8 {
                        busy_until(now() + stay / 8);
                        if bug != Bug::None || r >> 56 & 3 == 0 {
                            sysvec_apic_timer_interrupt(cpu);
                        }
                        look();
                    }
                    rcu_read_unlock(cpu);
                }
            }
            busy_until(now() + (r >> 44 & 0x7fff));
            exit_to_user_mode(cpu);
        }
    });
    assert_eq!(ran.rcu.pending(), 0);
    let invoked: u64 = called.iter().map(|c| c.load(Ordering::Relaxed)).sum();
    assert_eq!(invoked, queued.into_inner(), "callbacks lost");
    Outcome { torn: torn.into_inner(), waits: waits.map(AtomicU64::into_inner), ran }
}

/// The kernel's geometry, and one of several levels.
fn configs() -> Vec<(&'static str, RcuConfig)> {
    let base = RcuConfig { hz: 1000, ..RcuConfig::default() };
    let deep = RcuConfig { fanout: 4, fanout_leaf: 4, qs_policy: QsPolicy::Always, ..base };
    vec![
        ("as booted", base),
        ("deep tree", deep),
        ("expedited, woken by the thread", RcuConfig { expedited: true, normal_wake_from_gp: true, ..deep }),
        ("offloaded", RcuConfig { nocb: true, ..base }),
        ("offloaded and lazy", RcuConfig { nocb: true, lazy: true, ..deep }),
    ]
}

fn bear(n: u32, ms: u64) {
    let mut waits = [0; 3];
    for seed in seeds(4) {
        for (what, cfg) in configs() {
            let o = torture(n, cfg, seed, Bug::None, ms);
            let (gps, calls) = (o.ran.sum(RcuCounter::GracePeriods), o.ran.sum(RcuCounter::CallbacksInvoked));
            println!("{n} CPUs, seed {seed}, {what}: {gps} grace periods, {calls} callbacks");
            assert_eq!(o.torn, 0, "{n} CPUs, seed {seed}, {what}: freed under a reader");
            assert!(gps >= 3 && calls > 100, "{n} CPUs, seed {seed}, {what}: too quiet: {gps}, {calls}");
            assert_eq!(o.ran.rcu.stalls(), 0);
            waits.iter_mut().zip(o.waits).for_each(|(all, n)| *all += n);
        }
    }
    assert!(waits.iter().all(|n| *n > 0), "too quiet: normal, expedited, barriers: {waits:?}");
}

#[test]
fn rcu_holds_on_16_simulated_cpus() {
    bear(16, 60);
}

#[test]
fn rcu_holds_on_64_simulated_cpus() {
    bear(64, 20);
}

#[test]
fn rcu_that_is_busted_is_noticed_on_many_simulated_cpus() {
    let base = RcuConfig { hz: 1000, fanout: 4, fanout_leaf: 4, qs_policy: QsPolicy::Always, ..RcuConfig::default() };
    for n in [16, 64] {
        // Which show in a moment of any interleaving; all of them show in `script.rs`.
        for bug in [Bug::NoGracePeriod, Bug::QsInReader] {
            let torn: u64 = (1..=3).map(|seed| torture(n, base, seed, bug, 100).torn).sum();
            assert!(torn > 0, "{n} CPUs: {bug:?} went unnoticed");
        }
    }
}
