// SPDX-License-Identifier: GPL-2.0-only
//! The tree against an ordered map of disjoint ranges: random stores, clears, walks, steps and searches for holes, the
//! validator after every operation, and every node given back at the end.

use super::golden::fingerprint;
use super::*;
use crate::arch::arena::KRef;
use crate::arch::{Arena, Native};
use crate::cpu::testing::asked;
use crate::cpu::{Cpu, splitmix64};
use crate::rcu::{RcuConfig, RcuState, rcu_barrier};
use crate::slab::{Allocator, FaultAttr, SlabOptions, SlabState, kmem_cache_init, kvfree_rcu_barrier, page_alloc_init};
use std::collections::BTreeMap;
use std::ptr::{null_mut, without_provenance_mut};

/// A kernel as far as the tree needs one.
pub(super) struct Kernel {
    pub state: KRef<MapleState<Native>>,
    pub slab: KRef<SlabState<Native>>,
    _arena: Arena,
}
pub(super) fn boot(nr_cpus: u32) -> Kernel {
    boot_with(nr_cpus, SlabOptions::default())
}
pub(super) fn boot_with(nr_cpus: u32, options: SlabOptions) -> Kernel {
    boot_rules(nr_cpus, options, None)
}
pub(super) fn boot_rules(nr_cpus: u32, options: SlabOptions, rules: Option<MapleRules>) -> Kernel {
    let arena = Arena::new(1, 64 << 20, None, None).expect("64 MiB");
    let rcu = RcuState::<Native>::new(&arena, nr_cpus, |_| 0, &RcuConfig::default());
    let pages = page_alloc_init(&arena, nr_cpus, &|_| 0);
    let slab = kmem_cache_init(&arena, pages, rcu, nr_cpus, options);
    let state = maple_tree_init_with(&arena, slab, rules);
    Kernel { state, slab, _arena: arena }
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
    /// Stores while the allocator refuses its first request, then its second, and so on until the store needs no more:
    /// each refused store leaves tree and cursor as they were, and nothing allocated. Returns how many were refused.
    pub fn store_refused(&mut self, a: u64, b: u64, e: *mut (), prealloc: bool) -> u64 {
        let faults = self.k.slab.faults;
        for n in 1.. {
            let (before, live) = (fingerprint(&self.mt), self.outstanding());
            let mut mas = MaState::new(&self.mt, self.k.state, a, b);
            faults.set_fail_nth(self.cpu, n);
            let r =
                if prealloc { mas_preallocate(self.cpu, &mut mas, e) } else { mas_store_gfp(self.cpu, &mut mas, e) };
            faults.set_fail_nth(self.cpu, 0);
            if r.is_ok() {
                if prealloc {
                    mas_store_prealloc(self.cpu, &mut mas, e);
                }
                self.model_store(a, b, e);
                return u64::from(n) - 1;
            }
            assert_eq!((mas.index, mas.last, mas.supplied()), (a, b, 0), "a refused store");
            assert_eq!((fingerprint(&self.mt), self.outstanding()), (before, live), "a refused store");
        }
        unreachable!()
    }
    /// Copies the tree, with refused requests, and stores into the copy: the source does not notice.
    pub fn check_dup(&self, rng: impl Fn() -> u64) -> u64 {
        let (before, live) = (fingerprint(&self.mt), self.outstanding());
        let copy = MapleTree::new(self.mt.attr());
        let faults = self.k.slab.faults;
        let mut refused = 0;
        for n in 1.. {
            faults.set_fail_nth(self.cpu, n);
            let r = __mt_dup(self.cpu, self.k.state, &self.mt, &copy);
            faults.set_fail_nth(self.cpu, 0);
            if r.is_ok() {
                break;
            }
            refused += 1;
            assert!(copy.is_empty() && self.outstanding() == live, "a refused copy");
        }
        assert_eq!((fingerprint(&copy), fingerprint(&self.mt)), (before, before), "copy and source");
        assert_eq!(mt_validate(&copy).expect("the copy"), mt_validate(&self.mt).expect("the source"));
        mt_clear_in_rcu(&copy);
        for _ in 0..8 {
            let a = rng() >> (rng() % 60);
            let mut mas = MaState::new(&copy, self.k.state, a, a.saturating_add(rng() % 0x8000));
            let e = if rng() & 1 == 0 { null_mut() } else { entry(rng() % 1000) };
            mas_store_gfp(self.cpu, &mut mas, e).expect("memory");
            mt_validate(&copy).expect("the copy after a store");
        }
        mt_destroy(self.cpu, self.k.state, &copy);
        assert_eq!(fingerprint(&self.mt), before, "the source after stores into the copy");
        refused
    }
    /// Empties the tree by `mt_destroy()`.
    pub fn empty(&mut self) {
        mt_destroy(self.cpu, self.k.state, &self.mt);
        self.map.clear();
        assert_eq!(self.validate(), TreeShape::default());
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
    /// Frees the tree's nodes; others of the kernel may live on.
    pub fn destroy_some(self) {
        mt_destroy(self.cpu, self.k.state, &self.mt);
    }
    pub fn destroy(self) {
        mt_destroy(self.cpu, self.k.state, &self.mt);
        // Where there was no memory for a sheaf, kfree_rcu() took another way.
        kvfree_rcu_barrier(self.cpu, &self.k.slab);
        rcu_barrier(self.cpu, &self.k.state.rcu);
        assert_eq!(self.outstanding(), 0, "nodes not given back");
        assert_eq!(self.k.state.node_cache.live_objects(), 0, "the allocator counts otherwise");
    }
}

/// How a run of random operations is drawn.
#[derive(Clone, Copy, Debug)]
struct Mix {
    flags: u32,
    allocator: Allocator,
    rules: Option<MapleRules>,
    seed: u64,
    ops: u64,
    /// Keys are multiples of `stride` below `keys * stride`, some moved up by less than a stride, and the ends of the
    /// key space.
    keys: u64,
    stride: u64,
    /// Strides a store covers, most of the time less.
    span: u64,
}

/// Kinds of operations and of stores that were met; 0 of one kind would show that the run tests less than it says.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    refused: u64,
    copies: u64,
    emptied: u64,
    kept: u64,
    height: usize,
}

fn fuzz(mix: Mix) -> Met {
    let cpu = Cpu::<Native>::for_test(0);
    let nth = Some(FaultAttr::NTH);
    let options = SlabOptions { allocator: mix.allocator, failslab: nth, ..SlabOptions::default() };
    let k = boot_rules(1, options, mix.rules);
    let mut p = Pair::new(&cpu, &k, mix.flags);
    let state = std::cell::Cell::new(splitmix64(mix.seed));
    let rng = || {
        state.set(splitmix64(state.get()));
        state.get()
    };
    let Mix { keys, stride, span, .. } = mix;
    let key = || match rng() % 64 {
        0 => 0,
        1 => u64::MAX,
        2 => 1,
        _ => (rng() % keys).saturating_mul(stride).saturating_add(if rng() % 4 == 0 { rng() % stride } else { 0 }),
    };
    let mut met = Met::default();
    for op in 0..mix.ops {
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
            6..9 => p.store(a, b, null_mut(), rng() & 1 == 0),
            9 => {
                let e = if rng() & 1 == 0 { p.fresh() } else { null_mut() };
                match rng() % 16 {
                    0..4 => met.refused += p.store_refused(a, b, e, rng() & 1 == 0),
                    // Asked for a wide store, used for a narrow one; or not at all.
                    4..8 => {
                        let mut mas = p.mas(a, b);
                        mas_preallocate(&cpu, &mut mas, e).expect("memory");
                        mas_destroy(&cpu, &mut mas);
                        assert_eq!(mas.supplied(), 0);
                        met.kept += 1;
                    }
                    _ => p.store(a, b, e, true),
                }
            }
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
                if p.map.len() < 200 || op % 64 == 0 {
                    p.check_gap(0, u64::MAX, size);
                }
            }
            _ => match rng() % 4096 {
                0..16 => {
                    met.copies += 1;
                    met.refused += p.check_dup(rng);
                }
                16 => {
                    met.emptied += 1;
                    p.empty();
                }
                17 => p.store(0, u64::MAX, null_mut(), rng() & 1 == 0),
                _ => {}
            },
        }
        met.height = met.height.max(p.validate().height);
        if op % 4096 == 0 {
            p.check_all();
            if mix.flags & MT_FLAGS_USE_RCU != 0 {
                rcu_barrier(&cpu, &k.state.rcu);
            }
            let live = p.validate().nodes as u64;
            assert_eq!(p.outstanding(), live, "nodes allocated and not in the tree");
        }
    }
    p.check_all();
    p.validate();
    p.destroy();
    met
}

/// `FAULTLINE_MAPLE_STEPS=5000000`: that many in all, in place of some 300,000.
#[test]
fn random_operations() {
    let steps = asked("FAULTLINE_MAPLE_STEPS").unwrap_or(300_000);
    let mixes: [(u32, u64, u64, u64, u64); 7] = [
        // flags, share of 100, keys, stride, span
        (MM_MT_FLAGS, 14, 40, 0x1000, 4),
        (MM_MT_FLAGS, 26, 1 << 20, 0x1000, 3),
        (MM_MT_FLAGS, 20, 1 << 9, 0x1000, 6),
        (MT_FLAGS_LOCK_EXTERN, 10, 40, 0x1000, 4),
        (MT_FLAGS_LOCK_EXTERN, 10, 1 << 16, 0x1000, 3),
        (MT_FLAGS_ALLOC_RANGE, 10, 12, 1, 3),
        (MT_FLAGS_ALLOC_RANGE, 10, 1 << 12, 0x10, 3),
    ];
    let versions = [(Allocator::Slub, None), (Allocator::Sheaves, None), (Allocator::Sheaves, Some(MapleRules::V6_18))];
    let mut sum = Met::default();
    for (m, (flags, share, keys, stride, span)) in mixes.into_iter().enumerate() {
        for (v, (allocator, rules)) in versions.into_iter().enumerate() {
            let ops = steps * share / 300;
            // Long runs are cut, so that trees grow from nothing often.
            let runs = ops.div_ceil(60_000);
            for r in 0..runs {
                let seed = (m * 8 + v) as u64 + r * 1000;
                let mix = Mix { flags, allocator, rules, seed, ops: ops / runs, keys, stride, span };
                let met = fuzz(mix);
                sum.refused += met.refused;
                sum.copies += met.copies;
                sum.emptied += met.emptied;
                sum.kept += met.kept;
                sum.height = sum.height.max(met.height);
            }
        }
    }
    eprintln!("{steps} operations: {sum:?}");
    assert!(sum.refused > 100 && sum.copies > 10 && sum.emptied > 0 && sum.kept > 100 && sum.height >= 4, "{sum:?}");
}
