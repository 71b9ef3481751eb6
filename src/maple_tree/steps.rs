// SPDX-License-Identifier: GPL-2.0-only
//! Every state between two writes of a store, as a reader on another CPU could meet it: a world in which each store of
//! a word calls back, whereupon all keys are looked up, and cursors that were placed before the store step on from
//! where they stand, both ways. What they find must be what the tree held before the store or what it holds after it,
//! and lie within what the entry was stored over.
//!
//! Readers run as one piece here and writes are seen in order: what other orders of memory could do is left to the
//! model checker (`model/maple.rs`). Dead nodes are scribbled on at once, as call_rcu() does. A cursor in a leaf whose
//! parent was just replaced starts again until the writer has told the leaf its new parent, as in the kernel; a walk
//! never waits.

use super::memory::MapleMemory;
use super::node::{Enode, MAPLE_NODE_SIZE, MapleNode};
use super::oracle::{MM_MT_FLAGS, entry};
use super::prealloc::set_subtree_dead;
use super::*;
use crate::arch::{Arch, Atomic, Fence, Int, Native, Prim, RawCell, Relaxed};
use crate::cpu::{Cpu, Errno, splitmix64};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

/// Called after each store, once at a time.
type Hook = Box<dyn Fn()>;

std::thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    /// How often the reader at work has started again.
    static AGAIN: Cell<u32> = const { Cell::new(0) };
}

/// What a reader is stopped with that waits for the writer to go on.
struct Waits;

/// Runs a reader; `None` if it would wait for the writer.
fn reader<R>(f: impl FnOnce() -> R) -> Option<R> {
    AGAIN.set(0);
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(r) => Some(r),
        Err(e) if e.is::<Waits>() => None,
        Err(e) => resume_unwind(e),
    }
}

fn stepped() {
    // A reader does not store, so the hook does not meet itself; while it is being set there is none.
    HOOK.with(|h| {
        if let Ok(h) = h.try_borrow()
            && let Some(f) = &*h
        {
            f();
        }
    });
}

/// The native world, with the hook.
#[derive(Clone, Copy, Debug)]
struct Stepped;

/// Its words.
#[repr(transparent)]
struct SteppedCell<T: Prim>(<Native as Arch>::Cell<T>);

impl<T: Prim> RawCell<T> for SteppedCell<T> {
    fn new(v: T) -> Self {
        SteppedCell(RawCell::new(v))
    }
    fn load(&self, o: Ordering) -> T {
        self.0.load(o)
    }
    fn store(&self, v: T, o: Ordering) {
        self.0.store(v, o);
        stepped();
    }
    fn swap(&self, v: T, o: Ordering) -> T {
        self.0.swap(v, o)
    }
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, o)
    }
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_add(v, o)
    }
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_sub(v, o)
    }
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_or(v, o)
    }
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_and(v, o)
    }
}

impl Arch for Stepped {
    const NAME: &'static str = "stepped";
    const RMW_IS_FULL: bool = true;
    type Cell<T: Prim> = SteppedCell<T>;
    type PlainCell<T: Prim> = <Native as Arch>::PlainCell<T>;
    fn fence(f: Fence) {
        Native::fence(f);
    }
    fn now() -> u64 {
        0
    }
    fn cpu_relax() {}
    fn wait_changed<T: Prim>(_: &SteppedCell<T>, _: T) {
        panic!("nobody to wait for");
    }
    fn futex_wait(_: &SteppedCell<u32>, _: u32, _: Option<u64>) {
        panic!("nobody to wait for");
    }
    fn futex_wake(_: &SteppedCell<u32>) {}
}

#[repr(C, align(256))]
struct Node([u64; 32]);

/// Nodes of one run, given back at its end.
struct Pool {
    rules: MapleRules,
    nodes: RefCell<Vec<*mut Node>>,
    freed: Cell<u64>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: each came out of a box, and the tree is gone.
        self.nodes.borrow().iter().for_each(|&p| drop(unsafe { Box::from_raw(p) }));
    }
}

impl MapleMemory for Stepped {
    type State = *const Pool;
    type Sheaf = ();

    fn rules(state: *const Pool) -> MapleRules {
        // SAFETY: the pool outlives the tree.
        unsafe { (*state).rules }
    }
    unsafe fn int<'n>(node: *mut (), offset: usize) -> &'n Atomic<Stepped, u64> {
        // SAFETY: the caller's; cells are as large as their values.
        unsafe { &*node.byte_add(offset).cast() }
    }
    unsafe fn ptr<'n>(node: *mut (), offset: usize) -> &'n Atomic<Stepped, *mut ()> {
        // SAFETY: as above.
        unsafe { &*node.byte_add(offset).cast() }
    }
    unsafe fn clear_node(node: *mut ()) {
        // SAFETY: the caller's.
        unsafe { node.cast::<u8>().write_bytes(0, MAPLE_NODE_SIZE) }
    }
    unsafe fn copy_words(to: *mut (), to_offset: usize, from: *mut (), from_offset: usize, n: usize) {
        // SAFETY: the caller's.
        unsafe { to.byte_add(to_offset).cast::<u64>().copy_from(from.byte_add(from_offset).cast(), n) }
    }
    fn alloc_nodes(_: &Cpu<Stepped>, _: &mut MaState<'_, Stepped>, _: usize) -> Result<(), Errno> {
        Ok(())
    }
    fn pop_node(_: &Cpu<Stepped>, mas: &mut MaState<'_, Stepped>) -> MapleNode<Stepped> {
        let p = Box::into_raw(Box::new(Node([0; 32])));
        // SAFETY: the pool outlives the tree.
        unsafe { (*mas.state).nodes.borrow_mut().push(p) };
        MapleNode::from_object(p.cast())
    }
    fn give_back(_: &Cpu<Stepped>, _: &mut MaState<'_, Stepped>) {}
    fn free(_: &Cpu<Stepped>, mas: &MaState<'_, Stepped>, node: MapleNode<Stepped>) {
        assert!(node.is_dead(), "freed alive");
        // The rcu_head, and what the callback needs.
        for i in [0, 1, 3, 5] {
            node.pivot(i).store(0x6b6b_6b6b_6b6b_6b6b, Relaxed);
        }
        // SAFETY: the pool outlives the tree.
        unsafe { (*mas.state).freed.update(|n| n + 1) };
    }
    fn starts_again() {
        if AGAIN.replace(AGAIN.get() + 1) > 20 {
            resume_unwind(Box::new(Waits));
        }
    }
    fn destroy_walk(cpu: &Cpu<Stepped>, mas: &MaState<'_, Stepped>, enode: Enode) {
        let n = set_subtree_dead::<Stepped>(enode);
        Self::free(cpu, mas, super::node::mte_to_node(enode));
        // SAFETY: the pool outlives the tree.
        unsafe { (*mas.state).freed.update(|f| f + n - 1) };
    }
}

type Map = BTreeMap<u64, (u64, *mut ())>;

fn store(map: &mut Map, a: u64, b: u64, e: *mut ()) {
    let hit: Vec<_> = map.range(..=b).filter(|(_, v)| v.0 >= a).map(|(k, v)| (*k, *v)).collect();
    for (k, (l, e)) in hit {
        map.remove(&k);
        if k < a {
            map.insert(k, (a - 1, e));
        }
        if l > b {
            map.insert(b + 1, (l, e));
        }
    }
    if !e.is_null() {
        map.insert(a, (b, e));
    }
}

fn at(map: &Map, key: u64) -> *mut () {
    map.range(..=key).next_back().filter(|(_, v)| v.0 >= key).map_or(null_mut(), |(_, v)| v.1)
}
/// The first entry that reaches beyond `last`.
fn after(map: &Map, last: u64) -> *mut () {
    map.range(..).find(|(_, v)| v.0 > last).map_or(null_mut(), |(_, v)| v.1)
}
/// The last entry that begins before `first`.
fn before(map: &Map, first: u64) -> *mut () {
    map.range(..first).next_back().map_or(null_mut(), |(_, v)| v.1)
}

/// The slot of `key`, hole or not.
fn slot(map: &Map, key: u64) -> (u64, u64) {
    match map.range(..=key).next_back() {
        Some((&k, &(l, _))) if l >= key => (k, l),
        lower => {
            let first = lower.map_or(0, |(_, v)| v.0 + 1);
            (first, map.range(key..).next().map_or(u64::MAX, |(&k, _)| k - 1))
        }
    }
}

fn copy<'t>(m: &MaState<'t, Stepped>) -> MaState<'t, Stepped> {
    let mut c = MaState::new(m.tree, m.state, m.index, m.last);
    (c.node, c.min, c.max, c.offset, c.end, c.status) = (m.node, m.min, m.max, m.offset, m.end, m.status);
    c
}

/// What the readers of one store know.
struct Watch {
    mt: &'static MapleTree<Stepped>,
    pool: *const Pool,
    old: Map,
    new: Map,
    /// By entry: all keys it was ever stored over.
    stored: BTreeMap<usize, (u64, u64)>,
    keys: Vec<u64>,
    cursors: Vec<MaState<'static, Stepped>>,
    steps: Cell<u64>,
    waits: Cell<u64>,
}

impl Watch {
    fn look(&self) {
        self.steps.update(|n| n + 1);
        let cpu = Cpu::<Stepped>::for_test(1);
        let within = |m: &MaState<'_, Stepped>, e: *mut (), what: &str| {
            if let Some(&(a, b)) = self.stored.get(&e.addr()) {
                let (i, l) = (m.index, m.last);
                assert!(i >= a && l <= b, "{what}: {i:#x}..={l:#x} of an entry stored over {a:#x}..={b:#x}");
            }
        };
        for &key in &self.keys {
            let mut m = MaState::new(self.mt, self.pool, key, key);
            let e = reader(|| mas_walk(&cpu, &mut m)).expect("a walk never waits for the writer");
            let (old, new) = (at(&self.old, key), at(&self.new, key));
            assert!(e == old || e == new, "key {key:#x}: {e:?}, before {old:?}, after {new:?}");
            assert!((m.index..=m.last).contains(&key), "key {key:#x}: in {:#x}..={:#x}", m.index, m.last);
            within(&m, e, "walk");
        }
        for c in &self.cursors {
            let (first, last) = (c.index, c.last);
            let mut m = copy(c);
            let Some(e) = reader(|| mas_next(&cpu, &mut m, u64::MAX)) else {
                self.waits.update(|n| n + 1);
                continue;
            };
            let (old, new) = (after(&self.old, last), after(&self.new, last));
            // Out of a dead node it goes on from the slot that now holds the last key it has seen.
            let again = after(&self.new, slot(&self.new, last).1);
            assert!(
                e == old || e == new || e == again,
                "next of {last:#x}: {e:?}, before {old:?}, after {new:?} or {again:?}"
            );
            within(&m, e, "next");
            let mut m = copy(c);
            let Some(e) = reader(|| mas_prev(&cpu, &mut m, 0)) else {
                self.waits.update(|n| n + 1);
                continue;
            };
            let (old, new) = (before(&self.old, first), before(&self.new, first));
            let again = before(&self.new, slot(&self.new, first).0);
            assert!(
                e == old || e == new || e == again,
                "prev of {first:#x}: {e:?}, before {old:?}, after {new:?} or {again:?}"
            );
            within(&m, e, "prev");
        }
    }
}

fn run(rules: MapleRules, seed: u64, stores: u64, keys: u64) -> (u64, Cpu<Stepped>) {
    let cpu = Cpu::<Stepped>::for_test(0);
    let pool: &'static Pool = Box::leak(Box::new(Pool { rules, nodes: RefCell::new(Vec::new()), freed: Cell::new(0) }));
    let mt: &'static MapleTree<Stepped> = Box::leak(Box::new(MapleTree::new(MM_MT_FLAGS)));
    let mut state = splitmix64(seed);
    let mut rng = move || {
        state = splitmix64(state);
        state
    };
    let (mut map, mut stored) = (Map::new(), BTreeMap::new());
    let mut steps = 0;
    for n in 0..stores {
        let a = rng() % keys * 16;
        let width = match rng() % 32 {
            0 => rng() % (keys * 16),
            1..4 => rng() % 400,
            _ => rng() % 48,
        };
        let (mut a, mut b) = (a, a + width);
        if rng() % 4 == 0 {
            // A boundary that moves, or a slot replaced.
            if let Some((&k, &(l, _))) = map.range(a..).next() {
                (a, b) = match rng() % 3 {
                    0 => (k, k + (l - k) / 2),
                    1 => (k + (l - k) / 2, l),
                    _ => (k, l),
                };
            }
        }
        let e = if n > 40 && rng() % 5 < 2 { null_mut() } else { entry(n) };
        let mut new = map.clone();
        store(&mut new, a, b, e);
        if !e.is_null() {
            stored.insert(e.addr(), (a, b));
        }
        let mut points = vec![a, b, a.saturating_sub(1), b + 1, a + (b - a) / 2, 0, u64::MAX, a + 1, b - 1.min(b)];
        for (&k, &(l, _)) in map.range(a.saturating_sub(800)..).take(24) {
            points.extend([k, l, l + 1]);
        }
        let cursors = points
            .iter()
            .step_by(3)
            .map(|&key| {
                let mut m = MaState::new(mt, pool as *const Pool, key, key);
                mas_walk(&cpu, &mut m);
                m
            })
            .filter(|m| m.status == MaStatus::Active)
            .collect();
        let w = std::rc::Rc::new(Watch {
            mt,
            pool,
            old: map,
            new: new.clone(),
            stored: stored.clone(),
            keys: points,
            cursors,
            steps: Cell::new(0),
            waits: Cell::new(0),
        });
        let watch = w.clone();
        HOOK.with(|h| *h.borrow_mut() = Some(Box::new(move || watch.look())));
        let mut mas = MaState::new(mt, pool as *const Pool, a, b);
        mas_store_gfp(&cpu, &mut mas, e).expect("memory");
        HOOK.with(|h| *h.borrow_mut() = None);
        let waited = w.waits.get();
        w.look();
        assert_eq!(w.waits.get(), waited, "a reader waits for nobody");
        steps += w.steps.get();
        map = new;
    }
    (steps, cpu)
}

#[test]
fn every_state_between_two_writes() {
    let mut steps = 0;
    let mut kinds = [0; 6];
    for (seed, rules) in [MapleRules::V6_12, MapleRules::V7_3].into_iter().enumerate() {
        for (i, keys) in [16, 60, 300, 1500].into_iter().enumerate() {
            let (n, cpu) = run(rules, (seed * 8 + i) as u64, 300, keys);
            steps += n;
            let all = [
                MapleEvent::StoreExact,
                MapleEvent::StoreSlot,
                MapleEvent::StoreNode,
                MapleEvent::Split,
                MapleEvent::Rebalance,
                MapleEvent::Spanning,
            ];
            (0..6).for_each(|k| kinds[k] += cpu.counters.get(all[k]));
        }
    }
    eprintln!("{steps} states, kinds {kinds:?}");
    assert!(kinds.into_iter().all(|n| n > 0), "a kind of store was not met: {kinds:?}");
}
