// SPDX-License-Identifier: GPL-2.0-only
//! Objects that travel between simulated CPUs, in many interleavings: none is handed out twice, none is lost. The same
//! with an exchange on slab records that is not atomic must fail, or the torture tortures nothing: on real threads the
//! window is a few instructions wide and is never hit.

use super::tests::{EXACT, free, get, vma_args};
use super::*;
use crate::arch::sim::{Jitter, SimConfig, SimMachine, tear_exchanges};
use crate::arch::{Job, Machine, Sim};
use crate::cpu::splitmix64;
use crate::cpu::testing::for_test_set;
use crate::rcu::{RcuConfig, RcuState};
use StatItem as I;
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const CPUS: u32 = 6;

/// Each CPU allocates, frees its own and what others sent it, and flushes now and then. Panics at what is wrong.
fn torture(m: &SimMachine, seed: u64, flags: u32) {
    m.reset();
    m.set_jitter(Some(Jitter { seed, every: 12, max_ns: 2_000 }));
    let node_of = |c: u32| m.node_of(c);
    let pages = page_alloc_init::<Sim>(m.arena(), CPUS, &node_of);
    let rcu = RcuState::new(m.arena(), CPUS, node_of, &RcuConfig::default());
    let slab = kmem_cache_init(m.arena(), pages, rcu, 4, SlabOptions { seed, ..EXACT });
    let s = kmem_cache_create(m.arena(), slab, vma_args(flags));
    let set = for_test_set::<Sim>(CPUS);
    let owned = Mutex::new(BTreeSet::new());
    let mail: Vec<Mutex<Vec<usize>>> = (0..CPUS).map(|_| Mutex::new(Vec::new())).collect();
    let work = |id: u32| {
        let mut cpu = set.cpu(id);
        cpu.node = m.node_of(id);
        let give = |p: *mut u8| {
            assert!(owned.lock().unwrap().remove(&(p as usize)), "{p:p} is nobody's");
            free(&cpu, &s, p);
        };
        let mut mine: Vec<*mut u8> = Vec::new();
        let mut r = splitmix64(seed ^ u64::from(id) << 32);
        for i in 0..1500u32 {
            r = splitmix64(r);
            // Long enough at few objects that slabs run empty and are given up.
            let want = if i / 250 % 2 == 0 { 60 } else { 4 };
            if mine.len() < want && !r.is_multiple_of(4) {
                let p = get(&cpu, &s);
                assert!(owned.lock().unwrap().insert(p as usize), "{p:p} handed out twice");
                mine.push(p);
            } else if let Some(n) = mine.len().checked_sub(1) {
                let p = mine.swap_remove((r >> 8) as usize % (n + 1));
                if r >> 40 & 3 == 0 {
                    give(p);
                } else {
                    mail[(r >> 44) as usize % mail.len()].lock().unwrap().push(p as usize);
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
    m.run((0..CPUS).map(|id| Job { cpu: Some(id), f: Box::new(move || work(id)) }).collect());
    let cpu = set.cpu(0);
    mail.iter().flat_map(|v| std::mem::take(&mut *v.lock().unwrap())).for_each(|p| free(&cpu, &s, p as *mut u8));
    assert_eq!(s.live_objects(), 0);
    let n = |i| s.stat_sum(i);
    assert!(n(I::FreeFrozen) > 100 && n(I::CpuPartialFree) > 20 && n(I::DeactivateRemoteFrees) > 0, "too quiet");
    assert!(n(I::CmpxchgDoubleFail) > 0, "no two CPUs met at a slab");
    // SAFETY: the run is over.
    unsafe { kmem_cache_destroy(&cpu, &s).expect("every object is back") };
    assert_eq!((s.nr_slabs(), s.typesafe_pending_slabs(), pages.outstanding()), (0, 0, 0));
}

fn machine() -> SimMachine {
    SimMachine::new(SimConfig { bytes_per_node: 8 << 20, limit_ns: 1_000_000_000, ..SimConfig::nodes(2, CPUS / 2) })
        .unwrap()
}

#[test]
fn objects_that_travel_are_never_handed_out_twice_nor_lost() {
    let m = machine();
    for seed in 1..=12 {
        torture(&m, seed, 0);
        torture(&m, seed, SLAB_TYPESAFE_BY_RCU);
    }
}

const TORN_SEED: &str = "FAULTLINE_TORN_SEED";

/// Does something only as the child of the test below.
#[test]
fn torn_child() {
    if let Ok(seed) = std::env::var(TORN_SEED) {
        tear_exchanges();
        torture(&machine(), seed.parse().unwrap(), 0);
    }
}

#[test]
fn an_exchange_that_is_not_atomic_is_caught() {
    // In processes of their own: lists that broke lead anywhere.
    let children: Vec<_> = (1..=4)
        .map(|seed| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "slab::sim_torture::torn_child"])
                .env(TORN_SEED, seed.to_string())
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
        assert!(!status.is_some_and(|s| s.success()), "seed {} ran through", i + 1);
    }
}
