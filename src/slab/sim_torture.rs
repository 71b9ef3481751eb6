// SPDX-License-Identifier: GPL-2.0-only
//! Objects that travel between simulated CPUs, in many interleavings: none is handed out twice, none is lost. The same
//! with an exchange on slab records that is not atomic must fail, or the torture tortures nothing: on real threads the
//! window is a few instructions wide and is never hit.

use super::sheaf_rcu::kfree_rcu_sheaf;
use super::tests::{EXACT, free, get, vma_args};
use super::*;
use crate::arch::sim::{Jitter, SimConfig, SimMachine, tear_exchanges};
use crate::arch::{Job, Machine, Sim};
use crate::cpu::splitmix64;
use crate::cpu::testing::{for_test_set, seeds};
use crate::rcu::{RcuConfig, RcuState};
use StatItem as I;
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const CPUS: u32 = 6;

/// What a torture does.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    flags: u32,
    allocator: Allocator,
    cpus: u32,
    /// Steps of each CPU.
    steps: u32,
}

/// Each CPU allocates, frees its own and what others sent it, and flushes now and then; with sheaves also in bulk,
/// prefilled, and behind a grace period (which ends with the run). Panics at what is wrong;
/// whether everything happened that should.
fn torture(m: &SimMachine, plan: Plan) -> bool {
    let Plan { seed, flags, allocator, cpus, steps } = plan;
    let sheaves = allocator == Allocator::Sheaves;
    m.reset();
    m.set_jitter(Some(Jitter { seed, every: 12, max_ns: 2_000, at_names: false }));
    let node_of = |c: u32| m.node_of(c);
    let pages = page_alloc_init::<Sim>(m.arena(), cpus, &node_of);
    let rcu = RcuState::new(m.arena(), cpus, node_of, &RcuConfig::default());
    let slab = kmem_cache_init(m.arena(), pages, rcu, 4, SlabOptions { seed, allocator, ..EXACT });
    // Small sheaves, so that the barns run over and dry.
    let size = if sheaves { 1024 } else { 192 };
    let s = kmem_cache_create(m.arena(), slab, KmemCacheArgs { size, ..vma_args(flags) });
    let set = for_test_set::<Sim>(cpus);
    let owned = Mutex::new(BTreeSet::new());
    let mail: Vec<Mutex<Vec<usize>>> = (0..cpus).map(|_| Mutex::new(Vec::new())).collect();
    let work = |id: u32| {
        let mut cpu = set.cpu(id);
        cpu.node = m.node_of(id);
        let lose = |p: *mut u8| assert!(owned.lock().unwrap().remove(&(p as usize)), "{p:p} is nobody's");
        let take = |p: *mut u8| assert!(owned.lock().unwrap().insert(p as usize), "{p:p} handed out twice");
        let give = |p: *mut u8| {
            lose(p);
            free(&cpu, &s, p);
        };
        let mut mine: Vec<*mut u8> = Vec::new();
        let mut r = splitmix64(seed ^ u64::from(id) << 32);
        for i in 0..steps {
            r = splitmix64(r);
            // Long enough at few objects that slabs run empty and are given up.
            let want = if i / 250 % 2 == 0 { 60 } else { 4 };
            if mine.len() < want && !r.is_multiple_of(4) {
                match r >> 30 & 15 {
                    0 if sheaves => {
                        let mut v = [null_mut(); 17];
                        assert_eq!(kmem_cache_alloc_bulk(&cpu, &s, &mut v), v.len());
                        v.into_iter().for_each(take);
                        mine.extend(v);
                    }
                    1 if sheaves => {
                        let sheaf = kmem_cache_prefill_sheaf(&cpu, &s, 5);
                        for _ in 0..5 {
                            // SAFETY: ours until it goes back.
                            let p = unsafe { kmem_cache_alloc_from_sheaf(&cpu, &s, sheaf) };
                            take(p);
                            mine.push(p);
                        }
                        // SAFETY: as above.
                        unsafe { kmem_cache_return_sheaf(&cpu, &s, sheaf) };
                    }
                    _ => {
                        let p = get(&cpu, &s);
                        take(p);
                        mine.push(p);
                    }
                }
            } else if let Some(n) = mine.len().checked_sub(1) {
                let p = mine.swap_remove((r >> 8) as usize % (n + 1));
                match r >> 40 & 3 {
                    0 if sheaves && r >> 30 & 15 == 0 => {
                        lose(p);
                        // SAFETY: ours, once.
                        if !unsafe { kfree_rcu_sheaf(&cpu, &s, p) } {
                            free(&cpu, &s, p);
                        }
                    }
                    0 if sheaves && r >> 30 & 15 == 1 => {
                        let mut v = mine.split_off(n - n.min(9));
                        v.push(p);
                        v.iter().copied().for_each(lose);
                        // SAFETY: ours, once.
                        unsafe { kmem_cache_free_bulk(&cpu, &s, &mut v) };
                    }
                    0 => give(p),
                    _ => mail[(r >> 44) as usize % mail.len()].lock().unwrap().push(p as usize),
                }
            }
            if i.is_multiple_of(16) {
                let post = std::mem::take(&mut *mail[id as usize].lock().unwrap());
                post.into_iter().for_each(|p| give(p as *mut u8));
            }
            if r >> 50 & 255 == 0 {
                flush_cpu_slab(&cpu, &s);
            }
        }
        mine.into_iter().for_each(give);
    };
    let work = &work;
    m.run((0..cpus).map(|id| Job { cpu: Some(id), f: Box::new(move || work(id)) }).collect());
    let cpu = set.cpu(0);
    mail.iter().flat_map(|v| std::mem::take(&mut *v.lock().unwrap())).for_each(|p| free(&cpu, &s, p as *mut u8));
    assert_eq!(s.live_objects(), 0);
    let n = |i| s.stat_sum(i);
    let mut busy = true;
    if steps < 1500 {
        // Too short to be sure of anything in particular.
    } else if sheaves {
        let often = [I::FreeSlowpath, I::SheafFlush, I::BarnGet, I::BarnPut, I::FreeRcuSheaf, I::SheafObjects];
        // Some of it is rare enough to be missing in one interleaving.
        busy = often.into_iter().all(|i| n(i) > 0) && n(I::FreeSlab) > 0;
    } else {
        assert!(n(I::FreeFrozen) > 100 && n(I::CpuPartialFree) > 20 && n(I::DeactivateRemoteFrees) > 0, "too quiet");
    }
    assert!(steps < 1500 || n(I::CmpxchgDoubleFail) > 0, "no two CPUs met at a slab");
    // SAFETY: the run is over.
    unsafe { kmem_cache_destroy(&cpu, &s).expect("every object is back") };
    assert_eq!((s.nr_slabs(), s.typesafe_pending_slabs(), s.nr_sheaves(), pages.outstanding()), (0, 0, 0, 0));
    busy
}

fn machine(nodes: u32, cpus: u32) -> SimMachine {
    SimMachine::new(SimConfig {
        bytes_per_node: 8 << 20,
        limit_ns: 1_000_000_000,
        ..SimConfig::nodes(nodes, cpus / nodes)
    })
    .unwrap()
}

#[test]
fn objects_that_travel_are_never_handed_out_twice_nor_lost() {
    let m = machine(2, CPUS);
    for seed in 1..=12 {
        for flags in [0, SLAB_TYPESAFE_BY_RCU] {
            torture(&m, Plan { seed, flags, allocator: Allocator::Slub, cpus: CPUS, steps: 1500 });
        }
    }
}

#[test]
fn objects_in_sheaves_travel_unharmed_too() {
    let m = machine(2, CPUS);
    let mut busy = 0;
    for seed in 1..=8 {
        for flags in [0, SLAB_TYPESAFE_BY_RCU] {
            busy +=
                u32::from(torture(&m, Plan { seed, flags, allocator: Allocator::Sheaves, cpus: CPUS, steps: 1500 }));
        }
    }
    assert!(busy >= 12, "too quiet: something was missing in {} of 16 runs", 16 - busy);
}

/// Every kind of cache on many CPUs: at the end each run finds its objects, slabs, sheaves and pages gone.
fn bear(nodes: u32, cpus: u32, steps: u32) {
    let m = machine(nodes, cpus);
    for seed in seeds(4) {
        for allocator in [Allocator::Slub, Allocator::Sheaves] {
            for flags in [0, SLAB_TYPESAFE_BY_RCU] {
                torture(&m, Plan { seed, flags, allocator, cpus, steps });
            }
        }
    }
}

#[test]
fn both_allocators_bear_4_cpus() {
    bear(1, 4, 1000);
}

#[test]
fn both_allocators_bear_16_cpus() {
    bear(2, 16, 600);
}

#[test]
fn both_allocators_bear_64_cpus() {
    bear(4, 64, 260);
}

const TORN_SEED: &str = "FAULTLINE_TORN_SEED";

/// Does something only as the child of the test below.
#[test]
fn torn_child() {
    if let Ok(seed) = std::env::var(TORN_SEED) {
        tear_exchanges();
        let (seed, allocator) = match seed.strip_prefix("sheaves") {
            Some(seed) => (seed, Allocator::Sheaves),
            None => (seed.as_str(), Allocator::Slub),
        };
        let plan = Plan { seed: seed.parse().unwrap(), flags: 0, allocator, cpus: CPUS, steps: 1500 };
        torture(&machine(2, CPUS), plan);
    }
}

#[test]
fn an_exchange_that_is_not_atomic_is_caught() {
    // In processes of their own: lists that broke lead anywhere.
    let seeds = ["1", "2", "3", "4", "sheaves1", "sheaves2", "sheaves3", "sheaves4"];
    let children: Vec<_> = seeds
        .iter()
        .map(|seed| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "slab::sim_torture::torn_child"])
                .env(TORN_SEED, seed)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    for (i, mut c) in children.into_iter().enumerate() {
        let status = loop {
            match c.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.is_none() {
            // A list that runs in a circle.
            c.kill().unwrap();
            c.wait().unwrap();
        }
        assert!(!status.is_some_and(|s| s.success()), "seed {} ran through", seeds[i]);
    }
}
