// SPDX-License-Identifier: GPL-2.0-only
//! Readers of the maple tree beside a writer that moves a boundary, replaces a leaf, splits one, or gives a living leaf
//! a new parent: the port's own walk, next, prev and stores ([`mas_walk`], [`mas_store_gfp`] and what they call).
//!
//! Stand-in: nodes. Loom's words are larger than their values, so a node is a box of words, each reached by the offset
//! it has in the real one; nodes come out of a box and are never given back, but a dead one is scribbled on where its
//! rcu_head would lie. Trees track no gaps, so all nodes are of one layout.
//!
//! An entry names a record of where it was stored, written before the store. A reader must find an entry whose record
//! it can read, and, but for a boundary that is just moving, one that covers the key: before and after a slot store the
//! pivot a reader sees may be older or younger than the pointer, in the kernel too, and it is the user's own look at
//! the entry that decides. (That the pointer is written first is what `maple_tree/steps.rs` holds, where writes are
//! seen in order.)
//!
//! Twins that must fail: stores without release, fences left out (each where the case depends on it), a node published
//! before it is filled, a node that is not marked dead. Loads without acquire do not fail, and need not: the read barrier
//! of the test for death follows each of them, and orders as much.

use super::{Failure, caught, explore};
use crate::arch::loom::Loom;
use crate::arch::{Arch, Atomic, Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use crate::maple_tree::{
    Enode, MT_FLAGS_USE_RCU, MaState, MapleMemory, MapleNode, MapleRules, MapleTree, MapleType, mas_next, mas_prev,
    mas_store_gfp, mas_walk, mt_mk_node, mte_mk_root,
};
use crate::model::Faulty;
use crate::must_catch;
use std::cell::Cell;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::Arc;

/// The words of a node, by offset: numbers at 8 to 120 and 248, pointers at 0 and 128 to 248.
#[repr(align(256))]
pub struct Node<A: Arch> {
    int: [Atomic<A, u64>; 16],
    ptr: [Atomic<A, *mut ()>; 17],
}

/// Nodes of one execution.
pub struct Pool<A: Arch> {
    nodes: Vec<Box<Node<A>>>,
    next: Cell<usize>,
}

impl<A: Arch> Pool<A> {
    fn new(n: usize) -> Self {
        let node = || {
            Box::new(Node {
                int: std::array::from_fn(|_| Atomic::new(0)),
                ptr: std::array::from_fn(|_| Atomic::new(null_mut())),
            })
        };
        Pool { nodes: (0..n).map(|_| node()).collect(), next: Cell::new(0) }
    }
    fn pop(&self) -> *mut () {
        let i = self.next.replace(self.next.get() + 1);
        std::ptr::from_ref(&*self.nodes[i]).cast_mut().cast()
    }
}

/// What a dead node is overwritten with.
const SCRIBBLE: u64 = 0x6b6b_6b6b;

macro_rules! model_memory {
    ($($generic:tt)*) => {
        type State = *const Pool<Self>;
        type Sheaf = ();
        fn rules(_: Self::State) -> MapleRules {
            MapleRules::V7_3
        }
        unsafe fn int<'n>(node: *mut (), offset: usize) -> &'n Atomic<Self, u64> {
            assert!(!node.is_null(), "followed a null");
            // SAFETY: the caller's: a node of a pool.
            let node = unsafe { &*node.cast::<Node<Self>>() };
            &node.int[if offset == 248 { 0 } else { offset / 8 }]
        }
        unsafe fn ptr<'n>(node: *mut (), offset: usize) -> &'n Atomic<Self, *mut ()> {
            assert!(!node.is_null(), "followed a null");
            // SAFETY: as above.
            let node = unsafe { &*node.cast::<Node<Self>>() };
            &node.ptr[if offset == 0 { 0 } else { (offset - 120) / 8 }]
        }
        unsafe fn clear_node(_: *mut ()) {}
        unsafe fn copy_words(to: *mut (), to_offset: usize, from: *mut (), from_offset: usize, n: usize) {
            for i in (0..n * 8).step_by(8) {
                // SAFETY: the caller's.
                unsafe {
                    if to_offset + i < 128 {
                        Self::int(to, to_offset + i).store(Self::int(from, from_offset + i).load(Relaxed), Relaxed);
                    } else {
                        Self::ptr(to, to_offset + i).store(Self::ptr(from, from_offset + i).load(Relaxed), Relaxed);
                    }
                }
            }
        }
        fn alloc_nodes(_: &Cpu<Self>, _: &mut MaState<'_, Self>, _: usize) -> Result<(), Errno> {
            Ok(())
        }
        #[expect(private_interfaces, reason = "as in the trait")]
        fn pop_node(_: &Cpu<Self>, mas: &mut MaState<'_, Self>) -> MapleNode<Self> {
            // SAFETY: the pool outlives the execution; only the writer pops.
            MapleNode::from_object(unsafe { (*mas.state).pop() }.cast())
        }
        fn give_back(_: &Cpu<Self>, _: &mut MaState<'_, Self>) {}
        #[expect(private_interfaces, reason = "as in the trait")]
        fn free(_: &Cpu<Self>, _: &MaState<'_, Self>, node: MapleNode<Self>) {
            scribble(node);
        }
        fn destroy_walk(_: &Cpu<Self>, _: &MaState<'_, Self>, _: Enode) {
            unreachable!("no store here covers a subtree");
        }
        fn starts_again() {
            Self::cpu_relax();
        }
    };
}

impl MapleMemory for Loom {
    model_memory!();
}
impl<const F: usize> MapleMemory for Faulty<F> {
    model_memory!();
}

/// What call_rcu() does to a dead node.
fn scribble<A: MapleMemory>(node: MapleNode<A>) {
    node.pivot(0).store(SCRIBBLE, Relaxed);
    node.pivot(1).store(SCRIBBLE, Relaxed);
}

/// A tree and the records of its entries.
struct World<A: Arch> {
    tree: MapleTree<A>,
    pool: Pool<A>,
    records: Vec<[Atomic<A, u64>; 2]>,
}
// SAFETY: only the writer uses the pool; all else is atomic words.
unsafe impl<A: Arch> Send for World<A> {}
// SAFETY: as above.
unsafe impl<A: Arch> Sync for World<A> {}

fn entry(id: u64) -> *mut () {
    without_provenance_mut((id as usize + 1) << 12)
}

impl<A: MapleMemory<State = *const Pool<A>>> World<A> {
    /// Leaves of so many slots of 10 keys each, entry `i` over `10 i ..`, the last one to the end of the key space; a
    /// parent if there are several. Nothing is watched yet.
    fn new(leaves: &[usize], spare_nodes: usize) -> Arc<Self> {
        let records = leaves.iter().sum::<usize>() + 1;
        let w = World {
            tree: MapleTree::new(MT_FLAGS_USE_RCU),
            pool: Pool::new(leaves.len() + 1 + spare_nodes),
            records: (0..records).map(|_| [Atomic::new(0), Atomic::new(0)]).collect(),
        };
        let fill = |kind, slots: &[(*mut (), u64)]| {
            let node = MapleNode::<A>::from_object(w.pool.pop().cast());
            for (i, &(word, last)) in slots.iter().enumerate() {
                node.slot(kind, i).store(word, Relaxed);
                if i < kind.pivots() {
                    node.pivot(i).store(last, Relaxed);
                }
            }
            if slots.len() < kind.pivots() {
                node.set_meta(kind, slots.len() - 1, 0);
            }
            node
        };
        let mut id = 0;
        let end = records as u64 - 1;
        let mut children = Vec::new();
        for &n in leaves {
            let mut slots = Vec::new();
            for _ in 0..n {
                let last = if id + 1 == end { u64::MAX } else { id * 10 + 9 };
                w.record(id, id * 10, last);
                slots.push((entry(id), last));
                id += 1;
            }
            let node = fill(MapleType::Leaf64, &slots);
            children.push((mt_mk_node(node, MapleType::Leaf64), slots[n - 1].1, node));
        }
        let (root, node, height) = if children.len() == 1 {
            (children[0].0, children[0].2, 1)
        } else {
            let kind = MapleType::Range64;
            let node = fill(kind, &children.iter().map(|c| (c.0, c.1)).collect::<Vec<_>>());
            children.iter().enumerate().for_each(|(i, c)| c.2.set_parent(node, i));
            (mt_mk_node(node, kind), node, 2)
        };
        node.set_root(w.tree.as_ptr());
        // The tree moves into the Arc: its address is only compared with bit 0, never followed.
        w.tree.set_height(height);
        w.tree.ma_root.store(mte_mk_root(root), Release);
        Arc::new(w)
    }
    fn record(&self, id: u64, first: u64, last: u64) {
        let r = &self.records[id as usize];
        r[0].store(first, Relaxed);
        r[1].store(last, Relaxed);
    }
    fn mas(&self, first: u64, last: u64) -> MaState<'_, A> {
        MaState::new(&self.tree, &raw const self.pool, first, last)
    }
    /// Stores a new entry.
    fn store(&self, first: u64, last: u64) {
        let id = self.records.len() as u64 - 1;
        self.record(id, first, last);
        mas_store_gfp(&Cpu::for_test(0), &mut self.mas(first, last), entry(id)).expect("nodes enough");
    }
    /// What the entry's record says.
    fn stored(&self, e: *mut ()) -> (u64, u64) {
        let r = &self.records[(e.addr() >> 12) - 1];
        (r[0].load(Relaxed), r[1].load(Relaxed))
    }
    /// Looks `key` up; the entry's record must be there, and hold the range found.
    fn look(&self, key: u64) {
        let mut mas = self.mas(key, key);
        let e = mas_walk(&Cpu::for_test(1), &mut mas);
        self.held(&mas, e, key);
    }
    fn held(&self, mas: &MaState<'_, A>, e: *mut (), key: u64) {
        assert!(!e.is_null(), "{key}: nothing");
        let (first, last) = self.stored(e);
        assert!((first..=last).contains(&key), "{key}: {e:?} stored over {first}..={last}");
        assert!(mas.index >= first && mas.last <= last, "{key}: torn");
    }
}

fn two<A: MapleMemory<State = *const Pool<A>>>(
    w: Arc<World<A>>,
    writer: impl FnOnce(&World<A>) + 'static,
    reader: impl FnOnce(&World<A>) + 'static,
) {
    let other = w.clone();
    let t = ::loom::thread::spawn(move || reader(&other));
    writer(&w);
    t.join().expect("the reader");
}

/// 20..=29 and 30..=39 become 20..=34 and 35..=39 in place. Found is what lies there before or after, with its record.
fn walk_beside_slot_store<A: MapleMemory<State = *const Pool<A>>>() {
    let w = World::<A>::new(&[8], 0);
    two(
        w,
        |w| w.store(20, 34),
        |w| {
            let mut mas = w.mas(32, 32);
            let e = mas_walk(&Cpu::for_test(1), &mut mas);
            assert!((mas.index..=mas.last).contains(&32));
            let (first, last) = w.stored(e);
            // The old neighbour may be found through the new pivot: its record says that it does not hold the key.
            assert!([(20, 29), (30, 39), (20, 34)].contains(&(first, last)), "{first}..={last}");
        },
    );
}

/// A leaf that is the root gives way to one with two slots more.
fn walk_beside_node_store<A: MapleMemory<State = *const Pool<A>>>() {
    two(World::<A>::new(&[8], 1), |w| w.store(22, 24), |w| w.look(27));
}

/// A full leaf under a parent splits; the parent is replaced too.
fn walk_beside_split<A: MapleMemory<State = *const Pool<A>>>() {
    two(World::<A>::new(&[16, 15], 3), |w| w.store(22, 24), |w| w.look(27));
}

/// The same, beside a reader that stands in the leaf that stays and climbs out of it by its parent word.
fn prev_beside_new_parent<A: MapleMemory<State = *const Pool<A>>>() {
    two(
        World::<A>::new(&[16, 15], 3),
        |w| w.store(152, 154),
        |w| {
            let cpu = Cpu::for_test(1);
            let mut mas = w.mas(165, 165);
            let e = mas_walk(&cpu, &mut mas);
            w.held(&mas, e, 165);
            let e = mas_prev(&cpu, &mut mas, 0);
            w.held(&mas, e, 159);
        },
    );
}

/// A leaf is replaced under a reader that stands in it and goes on to the next.
fn next_beside_node_store<A: MapleMemory<State = *const Pool<A>>>() {
    two(
        World::<A>::new(&[8, 8], 1),
        |w| w.store(62, 64),
        |w| {
            let cpu = Cpu::for_test(1);
            let mut mas = w.mas(75, 75);
            let e = mas_walk(&cpu, &mut mas);
            w.held(&mas, e, 75);
            let e = mas_next(&cpu, &mut mas, u64::MAX);
            w.held(&mas, e, 80);
        },
    );
}

#[test]
fn slot_store() {
    must_catch!(walk_beside_slot_store, 2, Wrong: StoreRelease);
}
#[test]
fn node_store() {
    must_catch!(walk_beside_node_store, 2, Wrong: StoreRelease, ReadFence, WriteFence);
    must_catch!(next_beside_node_store, 2, Wrong: StoreRelease);
}
#[test]
fn split() {
    must_catch!(walk_beside_split, 2, Wrong: StoreRelease, ReadFence);
    must_catch!(prev_beside_new_parent, 2, Wrong: WriteFence);
}

/// How a leaf may be replaced wrongly.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twin {
    Right,
    PublishedBeforeFilled,
    NotMarkedDead,
}

/// [`walk_beside_node_store`] with a writer made of the port's steps, in this or another order.
fn replace(twin: Twin) {
    let w = World::<Loom>::new(&[8], 1);
    two(
        w,
        move |w| {
            let kind = MapleType::Leaf64;
            let mut mas = w.mas(20, 29);
            mas_walk(&Cpu::for_test(0), &mut mas);
            let old = crate::maple_tree::mte_to_node::<Loom>(mas.node);
            w.record(8, 20, 29);
            let new = MapleNode::<Loom>::from_object(w.pool.pop().cast());
            let publish = || w.tree.ma_root.store(mte_mk_root(mt_mk_node(new, kind)), Release);
            if twin == Twin::PublishedBeforeFilled {
                publish();
            }
            new.copy_leaf(0, old, 0, 8);
            new.slot(kind, 2).store(entry(8), Relaxed);
            new.set_meta(kind, 7, 0);
            new.copy_parent(old);
            if twin != Twin::PublishedBeforeFilled {
                publish();
            }
            if twin != Twin::NotMarkedDead {
                old.set_dead();
            }
            scribble(old);
        },
        |w| w.look(27),
    );
}

#[test]
fn replaced_wrongly() {
    explore(2, || replace(Twin::Right));
    for (what, twin) in [("published early", Twin::PublishedBeforeFilled), ("not marked dead", Twin::NotMarkedDead)] {
        println!("{what}: {}", caught(what, 2, Failure::Wrong, move || replace(twin)));
    }
}
