// SPDX-License-Identifier: GPL-2.0-only
//! Random sequences of calls on the port and on the models: after each call every counter of every CPU, the slabs and
//! lists of every node and the stacks are compared, and of each object handed out, which slab and which place in it.
//! Now and then the order of the node lists and all freelists too.
//!
//! A slab of the model is bound to the pages where its first object was seen. From then on the two must agree, until
//! the model lets go of the slab; pages that wait for a grace period may not be bound again.

use super::sheaves::Sheaves;
use super::slub::Slub;
use super::*;
use crate::arch::arena::PAGE_SIZE;
use crate::arch::{Native, Relaxed};
use crate::cpu::testing::for_test_set;
use crate::cpu::{Cpu, splitmix64};
use crate::rcu::rcu_barrier;
use crate::slab::sheaf_rcu::kfree_rcu_sheaf;
use crate::slab::tests::{Cache, EXACT, Kernel, boot};
use crate::slab::{
    Allocator, KmemCacheArgs, SLAB_TYPESAFE_BY_RCU, SlabOptions, StatItem, flush_cpu_slab, kmem_cache_alloc,
    kmem_cache_alloc_bulk, kmem_cache_alloc_node, kmem_cache_free, kmem_cache_free_bulk, kmem_cache_shrink,
};
use std::collections::BTreeMap;

/// One experiment.
#[derive(Clone, Copy, Debug)]
struct Case {
    allocator: Allocator,
    geometry: Published,
    nr_cpus: usize,
    nr_nodes: usize,
    typesafe: bool,
    defrag: bool,
    hardened: bool,
    steps: u32,
    seed: u64,
}

/// As published for 4 CPUs: bytes of an object, objects of a slab, slabs of a CPU's stack, objects of a sheaf, empty slabs
/// that a node keeps.
type Published = (usize, u32, usize, usize, usize);
const G40: Published = (40, 102, 3, 60, 5);
const G192: Published = (192, 21, 12, 60, 5);
const G256: Published = (256, 16, 7, 28, 5);
// The other limits of stacks, sheaves and lists.
const G1024: Published = (1024, 16, 3, 12, 5);
const G4096: Published = (4096, 8, 2, 4, 6);

struct Pair {
    case: Case,
    k: Kernel,
    s: Cache,
    cpus: Vec<Cpu<Native>>,
    m: Box<dyn Model>,
    /// By the model's slabs: where the port has them.
    base_of: Vec<Option<usize>>,
    owner: BTreeMap<usize, usize>,
    /// Counters that both know.
    items: Vec<(StatItem, usize)>,
    log: Vec<String>,
}

impl Pair {
    fn new(case: Case) -> Pair {
        let options = SlabOptions { allocator: case.allocator, hardened: case.hardened, ..EXACT };
        let k = boot(case.nr_cpus as u32, case.nr_nodes as u32, 24, options);
        let (size, objects, cpu_partial_slabs, capacity, min_partial) = case.geometry;
        let s = k.cache(KmemCacheArgs {
            name: "twin",
            size,
            flags: if case.typesafe { SLAB_TYPESAFE_BY_RCU } else { 0 },
            freeptr_offset: case.typesafe.then_some(0),
            ..KmemCacheArgs::default()
        });
        // SAFETY: nobody else knows the cache yet. The ratio makes the dice fall always on one side.
        unsafe { (*s.as_ptr()).remote_node_defrag_ratio = if case.defrag { 1024 } else { 0 } };
        let set = for_test_set::<Native>(case.nr_cpus as u32);
        let cpus = (0..case.nr_cpus as u32)
            .map(|c| {
                let mut cpu = set.cpu(c);
                cpu.node = c % case.nr_nodes as u32;
                cpu
            })
            .collect();
        // The tokens use what the set holds.
        std::mem::forget(set);
        let p = Params {
            nr_cpus: case.nr_cpus,
            nr_nodes: case.nr_nodes,
            objects,
            cpu_partial_slabs,
            min_partial,
            capacity,
            typesafe: case.typesafe,
            defrag: case.defrag,
        };
        let m: Box<dyn Model> = match case.allocator {
            Allocator::Slub => Box::new(Slub::new(p)),
            Allocator::Sheaves => Box::new(Sheaves::new(p)),
        };
        let items: Vec<_> =
            StatItem::ALL.iter().filter_map(|&i| Some((i, NAMES.iter().position(|&n| n == i.name())?))).collect();
        assert!(items.len() >= 25, "names have changed");
        Pair { case, k, s, cpus, m, base_of: Vec::new(), owner: BTreeMap::new(), items, log: Vec::new() }
    }

    #[track_caller]
    fn fail(&self, what: String) -> ! {
        let tail = &self.log[self.log.len().saturating_sub(12)..];
        panic!("{what}\nafter {} steps of {:?}, the last: {tail:#?}", self.log.len(), self.case);
    }

    /// The port's place for an object of the model.
    fn place(&self, o: Obj) -> *mut u8 {
        (self.base_of[o.0].expect("bound") + o.1 as usize * self.s.size()) as *mut u8
    }

    /// Both handed out an object: is it the same?
    #[track_caller]
    fn same(&mut self, o: Obj, p: *mut u8) {
        let slab_bytes = PAGE_SIZE << self.s.order();
        let base = p as usize & !(slab_bytes - 1);
        self.base_of.resize(self.m.base().slabs.len(), None);
        if self.base_of[o.0].is_none() {
            if let Some(old) = self.owner.insert(base, o.0) {
                let b = self.m.base();
                if !b.slabs[old].dead || b.pending.contains(&old) {
                    self.fail(format!("{p:p} is of slab {old}, not of a new one"));
                }
            }
            self.base_of[o.0] = Some(base);
        }
        if self.place(o) != p {
            self.fail(format!("got {p:p} (slab {:?}), want {o:?} at {:p}", self.owner.get(&base), self.place(o)));
        }
    }

    /// Counters and lengths.
    #[track_caller]
    fn compare(&self) {
        let b = self.m.base();
        for (c, counts) in b.counts.iter().enumerate() {
            for &(i, at) in &self.items {
                let got = self.s.stat_of(c as u32, i);
                if got != counts[at] {
                    self.fail(format!("cpu {c}: {}: {got}, want {}", i.name(), counts[at]));
                }
            }
            if self.case.allocator == Allocator::Sheaves {
                continue;
            }
            // SAFETY: the CPU's own stack; nobody is inside the allocator.
            let stack = unsafe { self.s.cpu_slab.of(c as u32).partial.load(Relaxed).as_ref() }.map_or(0, |s| s.slabs());
            if stack != self.m.stack(c) {
                self.fail(format!("cpu {c}: {stack} slabs on the stack, want {}", self.m.stack(c)));
            }
        }
        for (nid, n) in b.nodes.iter().enumerate() {
            let p = self.s.get_node(nid as u32);
            let got = (p.nr_partial.load(Relaxed), p.nr_slabs.load(Relaxed), p.total_objects.load(Relaxed));
            let want = (n.partial.len() as u64, n.nr_slabs, n.nr_slabs * u64::from(b.p.objects));
            if got != want {
                self.fail(format!("node {nid}: partial, slabs, objects: {got:?}, want {want:?}"));
            }
        }
        let (got, want) = (self.s.typesafe_pending_slabs(), b.pending.len() as u64);
        if got != want {
            self.fail(format!("{got} slabs wait for a grace period, want {want}"));
        }
    }

    /// Order of the node lists, and every freelist.
    #[track_caller]
    fn compare_deep(&self) {
        let b = self.m.base();
        for (nid, n) in b.nodes.iter().enumerate() {
            let mut got = Vec::new();
            let mut p = self.s.get_node(nid as u32).first.get();
            while !p.is_null() {
                // SAFETY: on the list; nobody is inside the allocator.
                let slab = unsafe { &*p };
                got.push(self.owner[&slab.address()]);
                let m = &b.slabs[self.owner[&slab.address()]];
                let mut free = VecDeque::new();
                let mut o = slab.freelist();
                while o != 0 {
                    free.push_back(((o - slab.address()) / self.s.size()) as u32);
                    // SAFETY: on the freelist.
                    o = unsafe { self.s.get_freepointer(o) };
                }
                let state = slab.counters();
                if (&free, state.inuse(), state.frozen()) != (&m.free, m.inuse, m.frozen) {
                    self.fail(format!("slab {:?}: {free:?} {state:?}, want {m:?}", got.last()));
                }
                p = slab.next();
            }
            if n.partial != got {
                self.fail(format!("node {nid}: list {got:?}, want {:?}", n.partial));
            }
        }
    }

    fn alloc(&mut self, c: usize, node: Option<usize>) -> Obj {
        self.log.push(format!("alloc {c} {node:?}"));
        let p = match node {
            None => kmem_cache_alloc(&self.cpus[c], &self.s),
            Some(n) => kmem_cache_alloc_node(&self.cpus[c], &self.s, n as u32),
        };
        let o = self.m.alloc(c, node);
        self.same(o, p);
        o
    }

    fn free(&mut self, c: usize, o: Obj) {
        self.log.push(format!("free {c} {o:?}"));
        // SAFETY: allocated and not freed, says the model.
        unsafe { kmem_cache_free(&self.cpus[c], &self.s, self.place(o)) };
        self.m.free(c, o);
    }

    fn bulk_alloc(&mut self, c: usize, n: usize) -> Vec<Obj> {
        self.log.push(format!("bulk_alloc {c} {n}"));
        let mut v = vec![std::ptr::null_mut(); n];
        assert_eq!(kmem_cache_alloc_bulk(&self.cpus[c], &self.s, &mut v), n);
        let objs = self.m.bulk_alloc(c, n);
        for (&o, p) in objs.iter().zip(v) {
            self.same(o, p);
        }
        objs
    }

    fn bulk_free(&mut self, c: usize, objs: &[Obj]) {
        self.log.push(format!("bulk_free {c} {objs:?}"));
        let mut v: Vec<_> = objs.iter().map(|&o| self.place(o)).collect();
        // SAFETY: as above.
        unsafe { kmem_cache_free_bulk(&self.cpus[c], &self.s, &mut v) };
        self.m.bulk_free(c, objs);
    }

    fn kfree_rcu(&mut self, c: usize, o: Obj) -> bool {
        self.log.push(format!("kfree_rcu {c} {o:?}"));
        // SAFETY: as above.
        let got = unsafe { kfree_rcu_sheaf(&self.cpus[c], &self.s, self.place(o)) };
        let want = self.m.kfree_rcu(c, o);
        if got != want {
            self.fail(format!("taken: {got}, want {want}"));
        }
        got
    }

    fn grace_period(&mut self, c: usize) {
        self.log.push(format!("grace period {c}"));
        rcu_barrier(&self.cpus[c], &self.k.slab.rcu);
        self.m.grace_period();
    }

    fn shrink(&mut self, c: usize) {
        self.log.push(format!("shrink {c}"));
        // SAFETY: one thread.
        unsafe { kmem_cache_shrink(&self.cpus[c], &self.s) };
        self.m.shrink(c);
    }
}

/// The objects a step frees: of one slab where it can, so that chains come out long, or of any.
fn pick(live: &mut Vec<Obj>, n: usize, near: bool, r: u64) -> Vec<Obj> {
    let mut r = r;
    let first = live.len().checked_sub(1).map(|_| live[r as usize % live.len()].0);
    (0..n.min(live.len()))
        .map(|_| {
            r = splitmix64(r);
            let at = live.iter().position(|o| near && !r.is_multiple_of(4) && Some(o.0) == first);
            let at = at.unwrap_or(r as usize % live.len());
            live.swap_remove(at)
        })
        .collect()
}

fn run(case: Case) -> Pair {
    let mut t = Pair::new(case);
    let mut r = case.seed;
    let mut live: Vec<Obj> = Vec::new();
    let (mut queue, mut ready): (Vec<Obj>, Vec<Obj>) = Default::default();
    let objects = case.geometry.1 as usize;
    for step in 0..case.steps {
        r = splitmix64(r);
        let c = (r >> 50) as usize % case.nr_cpus;
        // Tides: many slabs, few, none but a handful of objects.
        let target = match step / 1500 % 5 {
            0 => 40 * objects,
            1 => 2 * objects,
            2 => 25 * objects,
            3 => 30,
            _ => 15 * objects,
        };
        let n = (r >> 8) as usize % 40;
        match r % 32 {
            0 => {
                let objs = t.bulk_alloc(c, n);
                live.extend(objs);
            }
            1 | 2 => {
                let objs = pick(&mut live, n, r % 32 == 1, r >> 16);
                t.bulk_free(c, &objs);
            }
            3 => {
                let o = t.alloc(c, Some(n % case.nr_nodes));
                live.push(o);
            }
            4 if n == 0 => {
                t.log.push(format!("flush {c}"));
                flush_cpu_slab(&t.cpus[c], &t.s);
                t.m.flush(c, c);
            }
            5 if n == 0 && r >> 16 & 7 == 0 => t.shrink(c),
            6 if n == 0 => {
                // What waited frees in order, on the CPU at hand; then the next batch begins to wait.
                for o in std::mem::replace(&mut ready, std::mem::take(&mut queue)) {
                    t.free(c, o);
                    t.compare();
                }
                t.grace_period(c);
            }
            7 | 8 => {
                for o in pick(&mut live, 3, false, r >> 16) {
                    // On one thread a grace period runs the callbacks of all CPUs on the one that asks for it.
                    let sheaves = case.allocator == Allocator::Sheaves && case.nr_cpus == 1 && r >> 12 & 3 != 0;
                    if !(sheaves && t.kfree_rcu(c, o)) {
                        queue.push(o);
                    }
                }
            }
            // Bursts make whole slabs free in the order of their objects.
            9 => {
                let objs = pick(&mut live, n, true, r >> 16);
                for o in objs {
                    t.free(c, o);
                    t.compare();
                }
            }
            x if (x < 22) == (live.len() < target) => {
                for _ in 0..1 + n % 4 {
                    let o = t.alloc(c, None);
                    live.push(o);
                    t.compare();
                }
            }
            _ => {
                for o in pick(&mut live, 1 + n % 4, false, r >> 16) {
                    t.free(c, o);
                    t.compare();
                }
            }
        }
        t.compare();
        if r >> 32 & 63 == 0 {
            t.compare_deep();
        }
    }
    for o in live.into_iter().chain(queue).chain(ready) {
        t.free(0, o);
    }
    // The second finds what the grace period brought back.
    for _ in 0..2 {
        t.shrink(0);
        t.grace_period(0);
        t.compare();
        t.compare_deep();
    }
    assert_eq!((t.s.nr_slabs(), t.s.slab_pages()), (0, 0));
    // What is left are slabs of the caches that sheaves come from.
    assert_eq!(t.k.outstanding(), t.k.slab.slab_pages());
    t
}

/// Runs all cases; returns how many steps there were, and the counters that never moved.
fn run_all(allocator: Allocator, steps_each: u32) -> (usize, Vec<&'static str>) {
    let mut steps = 0;
    let mut seen = [0; NAMES.len()];
    for (i, geometry) in [G40, G192, G256].into_iter().enumerate() {
        for (j, (nr_cpus, nr_nodes)) in [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)].into_iter().enumerate() {
            for typesafe in [false, true] {
                let t = run(Case {
                    allocator,
                    geometry,
                    nr_cpus,
                    nr_nodes,
                    typesafe,
                    defrag: (i + j + usize::from(typesafe)).is_multiple_of(2),
                    hardened: j % 2 == 0,
                    steps: steps_each,
                    seed: (i * 10 + j) as u64 + 1,
                });
                steps += t.log.len();
                for (at, n) in seen.iter_mut().enumerate() {
                    *n += t.m.base().counts.iter().map(|c| c[at]).sum::<u64>();
                }
            }
        }
    }
    (steps, NAMES.iter().zip(seen).filter(|n| n.1 == 0).map(|n| *n.0).collect())
}

/// Objects of a quarter of a page and of a page: shorter stacks and sheaves, a longer list.
#[test]
fn large_objects_keep_their_limits_too() {
    for allocator in [Allocator::Slub, Allocator::Sheaves] {
        for (i, geometry) in [G1024, G4096].into_iter().enumerate() {
            for (nr_cpus, nr_nodes) in [(1, 1), (4, 2)] {
                let seed = (i * 10 + nr_cpus) as u64;
                let case = Case {
                    allocator,
                    geometry,
                    nr_cpus,
                    nr_nodes,
                    typesafe: i == 1,
                    defrag: true,
                    hardened: false,
                    steps: 7500,
                    seed,
                };
                let t = run(case);
                let n = |c: C| t.m.sum(c);
                let (freed, locked, drained) = (n(C::free_slab), n(C::list_lock), n(C::cpu_partial_drain));
                println!("{allocator:?} {geometry:?}: {freed} slabs given back, {locked} list locks, {drained} drains");
                let quiet = freed < 20 || locked < 100 || allocator == Allocator::Slub && drained < 10;
                assert!(!quiet, "too quiet: {case:?}");
            }
        }
    }
}

/// A comparison of zeros is none: what a kernel counts must have moved.
#[test]
fn slabs_do_what_the_model_does() {
    let (steps, never) = run_all(Allocator::Slub, 13_500);
    assert!(
        never.iter().all(|n| n.contains("sheaf") || n.contains("barn") || *n == "slab_updates"),
        "never: {never:?}"
    );
    assert!(steps > 800_000, "{steps}");
}
/// `kfree_rcu()` on one CPU only.
#[test]
fn sheaves_do_what_the_model_does() {
    let (steps, never) = run_all(Allocator::Sheaves, 6000);
    let gone = |n: &str| {
        ["deactivate", "cpu_partial"].iter().any(|p| n.starts_with(p))
            || ["free_frozen", "alloc_from_partial", "alloc_refill", "cpuslab_flush"].contains(&n)
    };
    assert!(never.iter().all(|n| gone(n)), "never: {never:?}");
    assert!(steps > 300_000, "{steps}");
}
