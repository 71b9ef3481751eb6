// SPDX-License-Identifier: GPL-2.0-only
//! `kfree_rcu()`: exact counts of small sequences, and objects that readers hold on simulated CPUs while others replace
//! and free them: none changes under a reader, none is lost. An engine that does not wait must fail the same test.

use super::kvfree_def::KVFREE_BULK_MAX_ENTR;
use super::tests::{EXACT, Kernel, boot, get, vma_args};
use super::*;
use crate::arch::sim::{Jitter, SimConfig, SimMachine};
use crate::arch::{Acquire, Arch, Atomic, Full, Job, Machine, Relaxed, Sim};
use crate::cpu::testing::for_test_set;
use crate::cpu::tick::{exit_to_user_mode, idle_loop};
use crate::cpu::workqueue::{flush_on_this_thread, kworker};
use crate::cpu::{Cpu, Errno, splitmix64};
use crate::rcu::{QsPolicy, RcuConfig, RcuHead, rcu_gp_kthread, rcu_read_lock, rcu_read_unlock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

fn stats(k: &Kernel) -> BTreeMap<&'static str, u64> {
    let mut m = BTreeMap::new();
    k.slab.kvfree.for_each_stat(|name, n| {
        m.insert(name.trim_start_matches("kvfree_rcu."), n);
    });
    m
}

fn queue(k: &Kernel, cpu: &Cpu<Native>, s: &KmemCache<Native>, n: usize) {
    for _ in 0..n {
        let p = get(cpu, s);
        // SAFETY: an object of ours; its first two words are the head.
        unsafe { kvfree_call_rcu(cpu, &k.slab, p.cast(), p) };
    }
}

#[test]
fn blocks_hold_507_and_what_finds_none_is_chained() {
    let (k, cpu) = (boot(2, 1, 16, EXACT), Cpu::for_test(0));
    let s = k.cache(vma_args(0));
    queue(&k, &cpu, &s, 3);
    assert_eq!((stats(&k)["chained"], stats(&k)["blocks"]), (3, 0), "no page at hand yet");
    assert!(flush_on_this_thread(&cpu, &k.slab.kvfree.wq));
    queue(&k, &cpu, &s, 2 * KVFREE_BULK_MAX_ENTR + 1);
    assert_eq!((stats(&k)["chained"], stats(&k)["blocks"]), (3, 3));
    // The cache has two of its five pages left; it fills up only when one is missed.
    queue(&k, &cpu, &s, 2 * KVFREE_BULK_MAX_ENTR + KVFREE_BULK_MAX_ENTR);
    assert_eq!(
        (stats(&k)["chained"], stats(&k)["blocks"]),
        (3 + KVFREE_BULK_MAX_ENTR as u64 - (KVFREE_BULK_MAX_ENTR as u64 - 1), 5)
    );
    assert_eq!((s.live_objects(), k.slab.kvfree.pending()), (3 + 1015 + 1521, 3 + 1015 + 1521));
    kvfree_rcu_barrier(&cpu, &k.slab);
    assert_eq!((s.live_objects(), k.slab.kvfree.pending()), (0, 0));
    assert_eq!(stats(&k)["batches"], 1, "one batch takes all");
    assert_eq!(stats(&k)["pending_high_water"], 3 + 1015 + 1521);
    // SAFETY: the only CPU.
    unsafe { kmem_cache_destroy(&cpu, &s).unwrap() };
    assert_eq!(k.outstanding(), 5, "the cache of pages");
    drain_page_caches(&cpu, &k.slab);
    assert_eq!(k.outstanding(), 0);
}

/// What `kfree_rcu()` was given is the cache's until it is freed: in chains, blocks, batches under way and sheaves that are
/// not full. Destroying the cache waits for all of it, and not for what somebody still has.
#[test]
fn destroying_a_cache_waits_for_what_kfree_rcu_was_given() {
    for allocator in [Allocator::Slub, Allocator::Sheaves] {
        for (n, kept) in [(3, false), (KVFREE_BULK_MAX_ENTR + 40, false), (7, true)] {
            let (k, cpu) = (boot(2, 1, 64, SlabOptions { allocator, ..EXACT }), Cpu::for_test(0));
            let s = k.cache(vma_args(0));
            let give = |n| {
                for _ in 0..n {
                    let p = get(&cpu, &s);
                    // SAFETY: an object of ours; its first two words are the head.
                    unsafe { kfree_rcu(&cpu, &s, p.cast(), p) };
                }
            };
            give(n);
            // These in chains and blocks under either allocator.
            queue(&k, &cpu, &s, n);
            flush_on_this_thread(&cpu, &k.slab.kvfree.wq);
            give(n);
            let pending = k.slab.kvfree.pending() as usize;
            println!("{allocator:?}, {n}: {pending} wait in the engine");
            assert!(allocator == Allocator::Sheaves || pending >= n, "{n}: {pending}");
            let still_held = kept.then(|| get(&cpu, &s));
            // SAFETY: the only CPU.
            let destroy = || unsafe { kmem_cache_destroy(&cpu, &s) };
            if let Some(p) = still_held {
                assert_eq!(destroy(), Err(Errno::EBUSY));
                assert_eq!((s.live_objects(), k.slab.kvfree.pending()), (1, 0), "what was given is freed nonetheless");
                super::tests::free(&cpu, &s, p);
            }
            assert_eq!(destroy(), Ok(()), "{allocator:?}, {n}");
            assert_eq!((k.slab.kvfree.pending(), s.live_objects(), s.nr_slabs(), s.nr_sheaves()), (0, 0, 0, 0));
            drain_page_caches(&cpu, &k.slab);
            assert_eq!(k.outstanding(), 0, "{allocator:?}, {n}");
        }
    }
}

#[test]
fn the_monitor_comes_after_five_seconds_or_a_jiffy_and_waits_for_a_free_batch() {
    let (k, cpu) = (boot(2, 1, 16, EXACT), Cpu::for_test(0));
    let s = k.cache(vma_args(0));
    let kv = &k.slab.kvfree;
    kv.install_timer(&cpu);
    let t = cpu.timers.get().unwrap();
    // SAFETY: the hook's own context.
    let next = || unsafe { (t.next)(t.ctx, &cpu) };
    // SAFETY: as above.
    let run = |now| unsafe { (t.run)(t.ctx, &cpu, now) };
    assert_eq!(next(), u64::MAX);
    let jiffy = 1_000_000_000 / u64::from(RcuConfig::default().hz);
    let t0 = Native::now();
    queue(&k, &cpu, &s, 1);
    let far = next();
    assert!((t0 + 5_000_000_000 - jiffy..=Native::now() + 5_000_000_000).contains(&far), "five seconds");
    flush_on_this_thread(&cpu, &kv.wq);
    queue(&k, &cpu, &s, KVFREE_BULK_MAX_ENTR - 2);
    assert_eq!(next(), far, "one short of a block's worth");
    queue(&k, &cpu, &s, 1);
    let soon = next();
    assert!(soon <= Native::now() + jiffy, "a jiffy");
    run(soon - 1);
    assert_eq!((next(), stats(&k)["monitors"]), (soon, 0), "not before it is due");
    for round in 1..=3 {
        run(next());
        assert_eq!(next(), u64::MAX, "fired");
        flush_on_this_thread(&cpu, &kv.wq);
        // No grace period passes here: two batches are taken, then what waits has to wait on.
        assert_eq!((stats(&k)["monitors"], stats(&k)["batches"]), (round, round.min(2)));
        assert_eq!(next() == u64::MAX, round <= 2, "the monitor is armed again where both are busy");
        queue(&k, &cpu, &s, 1);
    }
    assert_eq!((stats(&k)["both_batches_busy"], stats(&k)["freed"]), (1, 0));
    kvfree_rcu_barrier(&cpu, &k.slab);
    assert_eq!((s.live_objects(), kv.pending(), next()), (0, 0, u64::MAX));
    // Without a head a page is allocated, never the object's own words used.
    drain_page_caches(&cpu, &k.slab);
    let p = get(&cpu, &s);
    // SAFETY: an object of ours.
    unsafe { kvfree_call_rcu(&cpu, &k.slab, std::ptr::null_mut(), p) };
    assert_eq!((stats(&k)["chained"], kv.pending()), (1, 1));
    kvfree_rcu_barrier(&cpu, &k.slab);
    drain_page_caches(&cpu, &k.slab);
    assert_eq!((s.live_objects(), kv.pending()), (0, 0));
}

/// What readers look at, behind the head.
#[repr(C)]
struct Seen {
    head: RcuHead<Sim>,
    a: Atomic<Sim, u64>,
    b: Atomic<Sim, u64>,
}

const CPUS: u32 = 4;

/// Runs readers and writers; returns how many readers saw an object change under them.
fn torture(seed: u64, allocator: Allocator, early: bool) -> u64 {
    let m = SimMachine::new(SimConfig {
        bytes_per_node: 16 << 20,
        limit_ns: 10_000_000_000,
        ..SimConfig::nodes(2, CPUS / 2)
    })
    .unwrap();
    m.reset();
    m.set_jitter(Some(Jitter { seed, every: 40, max_ns: 40_000, at_names: false }));
    let node_of = |c: u32| if c < CPUS { m.node_of(c) } else { 0 };
    let pages = page_alloc_init::<Sim>(m.arena(), CPUS, &node_of);
    let rcu = RcuState::new(
        m.arena(),
        CPUS,
        node_of,
        &RcuConfig { hz: 10_000, qs_policy: QsPolicy::Always, ..RcuConfig::default() },
    );
    let slab = kmem_cache_init(m.arena(), pages, rcu, 4, SlabOptions { seed, allocator, ..EXACT });
    slab.kvfree.set_early(early);
    let s = kmem_cache_create(m.arena(), slab, vma_args(0));
    let set = for_test_set::<Sim>(CPUS + 2);
    let slots: Vec<Atomic<Sim, *mut Seen>> = (0..8).map(|_| Atomic::new(null_mut())).collect();
    let (changed, readers) = (AtomicU64::new(0), AtomicU32::new(2));
    let (left, over) = (AtomicU32::new(CPUS), AtomicU32::new(0));
    let worker = |id: u32| {
        let mut cpu = set.cpu(id);
        cpu.node = node_of(id);
        cpu.tick = rcu.tick_device(1);
        rcu.install_hooks(&cpu);
        slab.kvfree.install_timer(&cpu);
        let mut r = splitmix64(seed ^ u64::from(id) << 32);
        let give = |p: *mut Seen| {
            if !p.is_null() {
                // SAFETY: out of every slot.
                unsafe { kvfree_call_rcu(&cpu, &slab, p.cast(), p.cast()) };
            }
        };
        // Two CPUs read and write; the others write for as long, so that a reader that stays outlasts many frees.
        let reads = id < 2;
        let mut done = 0;
        while if reads { done < 3000 } else { readers.load(Ordering::Relaxed) > 0 } {
            done += 1;
            r = splitmix64(r);
            let slot = &slots[(r >> 8) as usize % slots.len()];
            if !reads || r.is_multiple_of(2) {
                let p = get(&cpu, &s).cast::<Seen>();
                // SAFETY: a fresh object; its words are atomics for every access.
                let o = unsafe { &*p };
                o.a.store(r, Relaxed);
                o.b.store(!r, Relaxed);
                give(slot.swap(p, Full));
            } else {
                rcu_read_lock(&cpu);
                let p = slot.load(Acquire);
                if !p.is_null() {
                    // SAFETY: found under RCU.
                    let o = unsafe { &*p };
                    let first = o.a.load(Relaxed);
                    let end = Sim::now() + if r >> 20 & 255 == 0 { 8_000_000 } else { r >> 30 & 255 };
                    while Sim::now() < end {
                        Sim::cpu_relax();
                    }
                    if o.a.load(Relaxed) != first || o.b.load(Relaxed) != !first {
                        changed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                rcu_read_unlock(&cpu);
            }
            exit_to_user_mode(&cpu);
        }
        readers.fetch_sub(u32::from(reads), Ordering::Relaxed);
        flush_rcu_sheaves(&cpu, &slab);
        left.fetch_sub(1, Ordering::Relaxed);
        if id == 0 {
            idle_loop(&cpu, || left.load(Ordering::Relaxed) == 0);
            slots.iter().for_each(|s| give(s.swap(null_mut(), Full)));
            kvfree_rcu_barrier(&cpu, &slab);
            over.store(1, Ordering::Relaxed);
            slab.kvfree.wq.stop();
            rcu.stop();
        } else {
            idle_loop(&cpu, || over.load(Ordering::Relaxed) != 0);
        }
        rcu.remove_hooks(&cpu);
    };
    let (worker, set) = (&worker, &set);
    let mut jobs: Vec<Job<'_>> = (0..CPUS).map(|id| Job { cpu: Some(id), f: Box::new(move || worker(id)) }).collect();
    jobs.push(Job { cpu: None, f: Box::new(move || rcu_gp_kthread(&set.cpu(CPUS), &rcu)) });
    jobs.push(Job {
        cpu: None,
        f: Box::new(move || {
            let mut cpu = set.cpu(CPUS + 1);
            cpu.tick = rcu.tick_device(1);
            rcu.install_hooks(&cpu);
            slab.kvfree.install_timer(&cpu);
            kworker(&cpu, &slab.kvfree.wq);
            rcu.remove_hooks(&cpu);
        }),
    });
    m.run(jobs);
    let cpu = set.cpu(0);
    assert_eq!((s.live_objects(), slab.kvfree.pending()), (0, 0));
    drain_page_caches(&cpu, &slab);
    // SAFETY: the run is over.
    unsafe { kmem_cache_destroy(&cpu, &s).expect("every object is back") };
    assert_eq!((s.nr_slabs(), pages.outstanding()), (0, 0));
    let mut batches = 0;
    slab.kvfree.for_each_stat(|name, n| batches += if name == "kvfree_rcu.batches" { n } else { 0 });
    assert!(batches > 2 || allocator == Allocator::Sheaves, "too quiet: {batches} batches");
    changed.load(Ordering::Relaxed)
}

#[test]
fn no_object_changes_under_a_reader() {
    for seed in 1..=2 {
        for allocator in [Allocator::Slub, Allocator::Sheaves] {
            assert_eq!(torture(seed, allocator, false), 0, "{allocator:?} seed {seed}");
        }
    }
}

#[test]
fn an_engine_that_does_not_wait_is_caught() {
    assert!((1..=6).any(|seed| torture(seed, Allocator::Slub, true) > 0));
}
