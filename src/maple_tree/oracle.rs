// SPDX-License-Identifier: GPL-2.0-only
//! The tree against an ordered map of disjoint ranges: random stores, clears, walks, steps and searches for holes, the
//! validator after every store on small trees and now and then on large ones, and every node given back at the end.

use super::*;
use crate::arch::arena::KRef;
use crate::arch::{Arena, Native};
use crate::cpu::Cpu;
use crate::rcu::{RcuConfig, RcuState, rcu_barrier};
use crate::slab::{Allocator, SlabOptions, kmem_cache_init, page_alloc_init};
use std::collections::BTreeMap;
use std::ptr::{null_mut, without_provenance_mut};

/// A kernel as far as the tree needs one.
pub(super) struct Kernel {
    pub state: KRef<MapleState<Native>>,
    _arena: Arena,
}
pub(super) fn boot(nr_cpus: u32) -> Kernel {
    boot_with(nr_cpus, SlabOptions::default())
}
pub(super) fn boot_with(nr_cpus: u32, options: SlabOptions) -> Kernel {
    let arena = Arena::new(1, 64 << 20, None, None).expect("64 MiB");
    let rcu = RcuState::<Native>::new(&arena, nr_cpus, |_| 0, &RcuConfig::default());
    let pages = page_alloc_init(&arena, nr_cpus, &|_| 0);
    let slab = kmem_cache_init(&arena, pages, rcu, nr_cpus, options);
    let state = maple_tree_init(&arena, slab);
    Kernel { state, _arena: arena }
}
pub(super) const MM_MT_FLAGS: u32 = MT_FLAGS_ALLOC_RANGE | MT_FLAGS_LOCK_EXTERN | MT_FLAGS_USE_RCU;

/// An entry: any aligned word.
pub(super) fn entry(n: u64) -> *mut () {
    without_provenance_mut((n as usize + 1) << 12)
}

/// A tree and what it should hold.
pub(super) struct Pair<'a> {
    pub cpu: &'a Cpu<Native>,
    pub k: &'a Kernel,
    pub mt: Box<MapleTree<Native>>,
    pub map: BTreeMap<u64, (u64, *mut ())>,
    next: u64,
}

impl<'a> Pair<'a> {
    pub fn new(cpu: &'a Cpu<Native>, k: &'a Kernel, flags: u32) -> Self {
        Pair { cpu, k, mt: Box::new(MapleTree::new(flags)), map: BTreeMap::new(), next: 0 }
    }
    pub fn mas(&self, index: u64, last: u64) -> MaState<'_, Native> {
        MaState::new(&self.mt, self.k.state, index, last)
    }
    fn model_store(&mut self, a: u64, b: u64, e: *mut ()) {
        let hit: Vec<_> = self.map.range(..=b).filter(|(_, (l, _))| *l >= a).map(|(k, v)| (*k, *v)).collect();
        for (k, (l, e)) in hit {
            self.map.remove(&k);
            if k < a {
                self.map.insert(k, (a - 1, e));
            }
            if l > b {
                self.map.insert(b + 1, (l, e));
            }
        }
        if !e.is_null() {
            self.map.insert(a, (b, e));
        }
    }
    /// The slot of `key`: bounds and entry.
    pub fn model_slot(&self, key: u64) -> (u64, u64, *mut ()) {
        let lo = self.map.range(..=key).next_back();
        if let Some((&k, &(l, e))) = lo
            && l >= key
        {
            return (k, l, e);
        }
        let start = lo.map_or(0, |(_, &(l, _))| l + 1);
        (start, self.map.range(key..).next().map_or(u64::MAX, |(&k, _)| k - 1), null_mut())
    }
    pub fn fresh(&mut self) -> *mut () {
        self.next += 1;
        entry(self.next)
    }
    /// Stores in both; checks the cursor afterwards.
    pub fn store(&mut self, a: u64, b: u64, e: *mut (), prealloc: bool) {
        let mut mas = MaState::new(&self.mt, self.k.state, a, b);
        if prealloc {
            mas_preallocate(self.cpu, &mut mas, e).expect("memory");
            mas_store_prealloc(self.cpu, &mut mas, e);
        } else {
            mas_store_gfp(self.cpu, &mut mas, e).expect("memory");
        }
        assert_eq!(mas.supplied(), 0);
        let after = (mas.status == MaStatus::Active).then_some((mas.index, mas.last, mas_walk(self.cpu, &mut mas)));
        self.model_store(a, b, e);
        if let Some((i, l, found)) = after {
            // The cursor stands on what was stored, a hole widened.
            assert_eq!((i, l, found), self.model_slot(a), "cursor after store {a:#x}..={b:#x} {e:?}");
        }
    }
    pub fn check_walk(&self, key: u64) {
        let mut mas = self.mas(key, key);
        let e = mas_walk(self.cpu, &mut mas);
        let (a, b, want) = self.model_slot(key);
        assert_eq!(e, want, "walk {key:#x}");
        if self.mt.height() > 0 || want.is_null() {
            assert_eq!((mas.index, mas.last), (a, b), "walk {key:#x}");
        }
    }
    pub fn check_find(&self, key: u64, max: u64) {
        let mut mas = self.mas(key, key);
        let mut at = key;
        for _ in 0..4 {
            let e = mas_find(self.cpu, &mut mas, max);
            let (_, _, here) = self.model_slot(at);
            let want = if here.is_null() {
                self.map.range(at..).next().map(|(&k, &(l, e))| (k, l, e))
            } else {
                Some(self.model_slot(at))
            };
            match want {
                Some((a, b, w)) if a <= max && at <= max => {
                    assert_eq!((e, mas.index, mas.last), (w, a, b), "find from {key:#x} to {max:#x}");
                    if b == u64::MAX {
                        break;
                    }
                    at = b + 1;
                }
                _ => {
                    assert!(e.is_null(), "find from {key:#x} to {max:#x} gave {e:?}");
                    break;
                }
            }
        }
    }
    /// Steps both ways from `key`.
    pub fn check_steps(&self, key: u64, lo: u64, hi: u64, rng: impl Fn() -> u64) {
        let mut mas = self.mas(key, key);
        mas_walk(self.cpu, &mut mas);
        let (mut a, mut b, _) = self.model_slot(key);
        if self.mt.height() == 0 {
            return;
        }
        for _ in 0..6 {
            if rng() & 1 == 0 {
                let e = mas_next(self.cpu, &mut mas, hi);
                let want = if b >= hi { None } else { self.map.range(b + 1..).next().filter(|(k, _)| **k <= hi) };
                match want {
                    Some((&k, &(l, w))) => {
                        assert_eq!((e, mas.index, mas.last), (w, k, l), "next of {b:#x} to {hi:#x}");
                        (a, b) = (k, l);
                    }
                    None => {
                        assert!(e.is_null() && mas.status == MaStatus::Overflow, "next of {b:#x} to {hi:#x}: {e:?}");
                        return;
                    }
                }
            } else {
                let e = mas_prev(self.cpu, &mut mas, lo);
                let want = if a <= lo { None } else { self.map.range(..a).next_back().filter(|(_, v)| v.0 >= lo) };
                match want {
                    Some((&k, &(l, w))) => {
                        assert_eq!((e, mas.index, mas.last), (w, k, l), "prev of {a:#x} to {lo:#x}");
                        (a, b) = (k, l);
                    }
                    None => {
                        assert!(e.is_null() && mas.status == MaStatus::Underflow, "prev of {a:#x} to {lo:#x}: {e:?}");
                        return;
                    }
                }
            }
        }
    }
    /// Holes of the model, clipped to the window.
    fn holes(&self, lo: u64, hi: u64) -> Vec<(u64, u64)> {
        let mut v = Vec::new();
        let mut at = lo;
        let first = self.map.range(..=lo).next_back().map_or(lo, |(&k, _)| k);
        for (&k, &(l, _)) in self.map.range(first..) {
            if l < lo {
                continue;
            }
            if k > hi {
                break;
            }
            if k > at {
                v.push((at, k - 1));
            }
            if l >= hi {
                return v;
            }
            at = at.max(l + 1);
        }
        v.push((at, hi));
        v
    }
    pub fn check_gap(&self, lo: u64, hi: u64, size: u64) {
        let holes = self.holes(lo, hi);
        let fits = |h: &&(u64, u64)| h.1 - h.0 >= size - 1;
        let mut mas = self.mas(0, 0);
        let got = mas_empty_area_rev(&mut mas, lo, hi, size).map(|()| (mas.index, mas.last));
        let want = holes.iter().rev().find(fits).map(|h| (h.1 - (size - 1), h.1));
        assert_eq!(got.ok(), want, "highest hole of {size:#x} in {lo:#x}..={hi:#x}");
        let got = mas_empty_area(&mut mas, lo, hi, size).map(|()| (mas.index, mas.last));
        let want = holes.iter().find(fits).map(|h| (h.0, h.0 + (size - 1)));
        assert_eq!(got.ok(), want, "lowest hole of {size:#x} in {lo:#x}..={hi:#x}");
    }
    pub fn validate(&self) -> TreeShape {
        let shape = mt_validate(&self.mt).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(shape.entries, self.map.len());
        shape
    }
    /// The whole contents, forwards.
    pub fn check_all(&self) {
        let mut mas = self.mas(0, 0);
        for (&k, &(l, e)) in &self.map {
            let got = mas_find(self.cpu, &mut mas, u64::MAX);
            assert_eq!(got, e);
            if self.mt.height() > 0 {
                assert_eq!((mas.index, mas.last), (k, l));
            }
        }
        assert!(
            self.map.last_key_value().is_some_and(|(_, v)| v.0 == u64::MAX)
                || mas_find(self.cpu, &mut mas, u64::MAX).is_null()
        );
    }
    /// Nodes not given back: supplied, live, or waiting for RCU.
    pub fn outstanding(&self) -> u64 {
        self.cpu.counters.get(MapleEvent::NodeAlloc) - self.cpu.counters.get(MapleEvent::NodeFree)
    }
    pub fn destroy(self) {
        mt_destroy(self.cpu, self.k.state, &self.mt);
        rcu_barrier(self.cpu, &self.k.state.rcu);
        assert_eq!(self.outstanding(), 0, "nodes not given back");
        assert_eq!(self.k.state.node_cache.live_objects(), 0, "the allocator counts otherwise");
    }
}

/// Random operations over `keys` keys (spread out by `stride`, so that bounds and holes vary); about `fill` entries.
fn fuzz(flags: u32, seed: u64, ops: u64, keys: u64, stride: u64, span: u64) {
    for allocator in [Allocator::Slub, Allocator::Sheaves] {
        fuzz_on(allocator, flags, seed, ops, keys, stride, span);
    }
}

fn fuzz_on(allocator: Allocator, flags: u32, seed: u64, ops: u64, keys: u64, stride: u64, span: u64) {
    let cpu = Cpu::<Native>::for_test(0);
    let k = boot_with(1, SlabOptions { allocator, ..SlabOptions::default() });
    let mut p = Pair::new(&cpu, &k, flags);
    let state = std::cell::Cell::new(seed);
    let rng = || {
        state.set(crate::cpu::splitmix64(state.get()));
        state.get()
    };
    let key = || match rng() % 64 {
        0 => 0,
        1 => u64::MAX,
        2 => 1,
        _ => (rng() % keys).saturating_mul(stride).saturating_add(if rng() % 4 == 0 { rng() % stride } else { 0 }),
    };
    let mut high = 0;
    for op in 0..ops {
        let a = key();
        let b = match rng() % 128 {
            0 => u64::MAX,
            1 => key().max(a),
            2..20 => a,
            20..30 => a.saturating_add((rng() % (span * 40)).saturating_mul(stride)),
            _ => a.saturating_add((rng() % span).saturating_mul(stride)).saturating_add(stride - 1),
        };
        match rng() % 16 {
            0..6 => {
                let e = p.fresh();
                p.store(a, b, e, rng() & 1 == 0);
            }
            6..10 => p.store(a, b, null_mut(), rng() & 1 == 0),
            10 => {
                // What the mm does most: move a boundary, replace exactly, fill a hole.
                let (x, y, e) = p.model_slot(a);
                let new = p.fresh();
                match rng() % 3 {
                    0 => p.store(x, y, new, true),
                    1 if !e.is_null() => p.store(x, a, new, true),
                    _ if y < u64::MAX => p.store(a, y, new, true),
                    _ => {}
                }
            }
            11 => p.check_walk(a),
            12 => p.check_find(a, if rng() & 1 == 0 { u64::MAX } else { b }),
            13 => {
                let (lo, hi) = if rng() & 1 == 0 { (0, u64::MAX) } else { (a.saturating_sub(b - a), b) };
                p.check_steps(a, lo, hi, rng);
            }
            14 => {
                let size = 1 + rng() % (stride * 4);
                if b - a >= size - 1 {
                    p.check_gap(a, b, size);
                }
                p.check_gap(0, u64::MAX, size);
            }
            _ => {
                let shape = if p.map.len() < 40 || op % 64 == 0 { p.validate() } else { TreeShape::default() };
                high = high.max(shape.height);
            }
        }
        if p.map.len() < 40 {
            let shape = p.validate();
            high = high.max(shape.height);
        }
        if op % 4096 == 0 {
            p.check_all();
            if flags & MT_FLAGS_USE_RCU != 0 {
                rcu_barrier(&cpu, &k.state.rcu);
            }
            let live = p.validate().nodes as u64;
            assert_eq!(p.outstanding(), live, "nodes allocated and not in the tree");
        }
    }
    p.check_all();
    eprintln!("seed {seed}: {} entries, height up to {high}, {:?}", p.map.len(), p.validate());
    let counters = cpu.counters.snapshot();
    let all: Vec<_> = MapleEvent::NAMES.iter().zip(&counters[MapleEvent::BASE..]).collect();
    eprintln!("{all:?}");
    p.destroy();
}

#[test]
fn small_trees() {
    for seed in 0..12 {
        fuzz(MM_MT_FLAGS, seed, 2_000, 40, 0x1000, 4);
        fuzz(MT_FLAGS_LOCK_EXTERN, seed, 2_000, 40, 0x1000, 4);
        fuzz(MT_FLAGS_ALLOC_RANGE, seed, 1_000, 12, 1, 3);
    }
}

#[test]
fn large_trees_in_rcu_mode() {
    fuzz(MM_MT_FLAGS, 1, 60_000, 1 << 20, 0x1000, 3);
    fuzz(MM_MT_FLAGS, 2, 30_000, 1 << 12, 0x1000, 8);
}

#[test]
fn large_trees_without_rcu() {
    fuzz(MT_FLAGS_ALLOC_RANGE, 3, 30_000, 1 << 14, 0x10, 3);
    fuzz(MT_FLAGS_LOCK_EXTERN, 4, 40_000, 1 << 20, 0x1000, 3);
}
