// SPDX-License-Identifier: GPL-2.0-only
//! Stores that change more than one leaf: split, rebalance, spanning [lib/maple_tree.c, 6.12: mas_split,
//! mas_rebalance, mas_wr_spanning_store, mas_spanning_rebalance, mas_wmb_replace, mas_topiary_replace].
//!
//! One frame for all three. It goes up level by level from the leaves; on each, the slots left of the store, the slots
//! that replace what was written (on the leaves: left remainder, entry, right remainder; above: the nodes just built)
//! and the slots right of it are collected and dealt to one, two or three new nodes. It ends where one new node takes
//! the place of one old node, or where everything has become the root. Only then the top is published, moved children
//! are told their new parent, and what was replaced is released.
//!
//! custom: slots are collected in a table on the stack, for any of the three kinds (6.12 has a big node of about 34
//! slots and three separate walks; 7.3 copies from node to node); the paths to the store's two ends are walked from
//! the root (the kernel climbs by parent words). Node shapes may differ from the kernel's, contents may not.
//!
//! INVARIANT: until mas_put_in_tree() no old node is changed, so readers see the tree before the store; after it they
//! see the tree after it, or a dead node.

use super::gap::{leaf_max_gap, mas_parent_gap, max_gap};
use super::node::{
    Enode, MAPLE_RANGE64_SLOTS, MapleType, Parent, is_child, mt_mk_node, mte_node_type, mte_safe_root, mte_to_node,
};
use super::prealloc::{mas_free, mas_pop_node, mte_destroy_walk};
use super::state::{MaState, MapleTree, mas_reset};
use super::store::{StoreType, mas_new_root, mas_put_in_tree};
use super::walk::{decode, mas_walk};
use crate::arch::{Hardware, Relaxed};
use crate::cpu::Cpu;
use std::ptr::null_mut;

/// Levels a path can have. The flags allow 31; with at least 7 slots a leaf and 5 a node, 16 levels hold more than
/// any memory.
const LEVELS: usize = 16;
/// Slots collected on one level: two nodes, what replaces the written part, and a sibling.
const ITEMS: usize = 3 * MAPLE_RANGE64_SLOTS + 3;

#[derive(Clone, Copy)]
struct Level {
    node: Enode,
    min: u64,
    max: u64,
    offset: usize,
    end: usize,
}

/// The nodes from the root to one leaf.
struct Path {
    level: [Level; LEVELS],
}

impl Path {
    /// The path to the leaf slot that holds `key`, `height` levels long.
    fn walk<A: Hardware>(tree: &MapleTree<A>, key: u64, height: usize) -> Path {
        let none = Level { node: null_mut(), min: 0, max: u64::MAX, offset: 0, end: 0 };
        let mut p = Path { level: [none; LEVELS] };
        p.level[0].node = mte_safe_root(tree.ma_root.load(Relaxed));
        for d in 0..height {
            let l = &mut p.level[d];
            let (node, kind) = decode::<A>(l.node);
            l.end = node.data_end(kind, l.max);
            while l.offset < l.end && node.pivot(l.offset).load(Relaxed) < key {
                l.offset += 1;
            }
            if d + 1 < height {
                p.enter::<A>(d);
            }
        }
        p
    }
    /// Bounds of the slot the path stands on at level `d`.
    fn bounds<A: Hardware>(&self, d: usize) -> (u64, u64) {
        let l = &self.level[d];
        let node = mte_to_node::<A>(l.node);
        (node.safe_min(l.offset, l.min), node.safe_pivot(l.offset, l.end, l.max))
    }
    /// Sets level `d + 1` to the child the path stands on at level `d`.
    fn enter<A: Hardware>(&mut self, d: usize) {
        let (min, max) = self.bounds::<A>(d);
        let l = self.level[d];
        let (node, kind) = decode::<A>(l.node);
        let child = node.slot(kind, l.offset).load(Relaxed);
        let (child_node, child_kind) = decode::<A>(child);
        let end = child_node.data_end(child_kind, max);
        self.level[d + 1] = Level { node: child, min, max, offset: 0, end };
    }
    /// Moves to the next (or previous) node of level `d`, which exists.
    fn step<A: Hardware>(&mut self, d: usize, forward: bool) {
        let mut up = d - 1;
        while self.level[up].offset == if forward { self.level[up].end } else { 0 } {
            up -= 1;
        }
        let l = &mut self.level[up];
        l.offset = if forward { l.offset + 1 } else { l.offset - 1 };
        for k in up..d {
            self.enter::<A>(k);
            if !forward && k + 1 < d {
                self.level[k + 1].offset = self.level[k + 1].end;
            }
        }
    }
}

/// One slot on its way from old nodes to new ones.
#[derive(Clone, Copy)]
struct Item {
    slot: *mut (),
    last: u64,
    gap: u64,
    /// A node built by this store.
    fresh: bool,
}

struct Items {
    item: [Item; ITEMS],
    n: usize,
}

impl Items {
    fn push(&mut self, slot: *mut (), last: u64, gap: u64, fresh: bool) {
        self.item[self.n] = Item { slot, last, gap, fresh };
        self.n += 1;
    }
    /// Collects slots `from .. to` of a node.
    fn take<A: Hardware>(&mut self, l: &Level, from: usize, to: usize) {
        let (node, kind) = decode::<A>(l.node);
        for i in from..to {
            let gap = if kind == MapleType::Arange64 { node.gap(i).load(Relaxed) } else { 0 };
            self.push(node.slot(kind, i).load(Relaxed), node.safe_pivot(i, l.end, l.max), gap, false);
        }
    }
    /// Puts the slots `from .. to` of a node in front.
    fn take_front<A: Hardware>(&mut self, l: &Level) {
        let n = l.end + 1;
        self.item.copy_within(0..self.n, n);
        let old = std::mem::replace(&mut self.n, 0);
        self.take::<A>(l, 0, n);
        self.n = old + n;
    }
}

/// How many of `n` slots each of the new nodes gets; `null(i)`: slot `i` of a leaf is a hole, which may not end one.
fn deal(n: usize, kind: MapleType, null: impl Fn(usize) -> bool) -> ([usize; 3], usize) {
    let cap = kind.slots();
    // mab_no_null_split(): the cut moves up where it can. Down, the left node would be left with so few slots that
    // taking one entry out again made it too small: a break that moves up and down would split and merge each time.
    let cut = |at: usize| match null(at - 1) {
        false => at,
        true if at < cap && n - at > kind.min_end() => at + 1,
        true => at - 1,
    };
    if n <= cap {
        return ([n, 0, 0], 1);
    }
    if n <= 2 * cap {
        let a = cut(n.div_ceil(2));
        if n - a <= cap {
            return ([a, n - a, 0], 2);
        }
    }
    let third = n.div_ceil(3);
    let a = cut(third);
    let b = cut(2 * third);
    ([a, b - a, n - b], 3)
}

/// Fills a node of the supply; returns its enode and largest gap.
fn build<A: Hardware>(
    cpu: &Cpu<A>,
    mas: &mut MaState<'_, A>,
    kind: MapleType,
    items: &[Item],
    min: u64,
) -> (Enode, u64) {
    let node = mas_pop_node(cpu, mas);
    let enode = mt_mk_node(node, kind);
    let end = items.len() - 1;
    for (i, it) in items.iter().enumerate() {
        node.slot(kind, i).store(it.slot, Relaxed);
        if i < kind.pivots() {
            node.pivot(i).store(it.last, Relaxed);
        }
        if kind == MapleType::Arange64 {
            node.gap(i).store(it.gap, Relaxed);
        }
        if it.fresh {
            mte_to_node::<A>(it.slot).set_parent(node, i);
        }
    }
    let gap = match kind {
        MapleType::Arange64 => {
            let (i, gap) = max_gap(node, end);
            node.set_meta(kind, end, i);
            gap
        }
        _ => {
            if end + 1 < kind.pivots() {
                node.set_meta(kind, end, 0);
            }
            if kind.is_leaf() && mas.tree.is_alloc() { leaf_max_gap(node, min, items[end].last, end) } else { 0 }
        }
    };
    (enode, gap)
}

/// A store over part of the tree that one leaf cannot take; see the module.
#[cold]
#[inline(never)]
pub(crate) fn mas_wr_frame<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, how: StoreType, entry: *mut ()) {
    let tree = mas.tree;
    let height = tree.height();
    let leaf = height - 1;
    let kind = MapleType::Leaf64;
    let (mut index, mut last) = (mas.index, mas.last);
    let null = entry.is_null();

    // The left end: slots kept, and what remains of the slot in which the store starts.
    let mut l = Path::walk(tree, index, height);
    let left_node = mte_to_node::<A>(l.level[leaf].node);
    let (slot_min, _) = l.bounds::<A>(leaf);
    let mut keep_left = l.level[leaf].offset;
    let left = left_node.slot(kind, keep_left).load(Relaxed);
    let mut left_rest = (index > slot_min).then_some((left, index.wrapping_sub(1)));
    if null && left.is_null() {
        index = slot_min;
        left_rest = None;
    } else if null && index == slot_min && keep_left > 0 && left_node.slot(kind, keep_left - 1).load(Relaxed).is_null()
    {
        keep_left -= 1;
        index = left_node.safe_min(keep_left, l.level[leaf].min);
    }

    // The right end. A hole looks one key further: it must not touch the next one, nor end a leaf.
    let mut r = Path::walk(tree, if null { last.saturating_add(1) } else { last }, height);
    let (slot_min, slot_max) = r.bounds::<A>(leaf);
    let right_offset = r.level[leaf].offset;
    let right = mte_to_node::<A>(r.level[leaf].node).slot(kind, right_offset).load(Relaxed);
    let mut keep_right = right_offset + 1;
    let mut right_rest = None;
    if null && right.is_null() {
        last = slot_max;
    } else if slot_min > last {
        keep_right = right_offset;
    } else if slot_max > last {
        right_rest = Some((right, slot_max));
    }
    (mas.index, mas.last) = (index, last);
    if index == 0 && last == u64::MAX {
        return mas_new_root(cpu, mas, entry);
    }

    let nothing = Item { slot: null_mut(), last: 0, gap: 0, fresh: false };
    let mut items = Items { item: [nothing; ITEMS], n: 0 };
    items.take::<A>(&l.level[leaf], 0, keep_left);
    for (e, last) in left_rest.into_iter().chain([(entry, last)]).chain(right_rest) {
        items.push(e, last, 0, false);
    }
    let end = r.level[leaf].end;
    items.take::<A>(&r.level[leaf], keep_right, end + 1);

    let mut d = leaf;
    let (top, top_gap, new_height) = loop {
        let kind = mte_node_type(l.level[d].node);
        let whole = |l: &Path, r: &Path| l.level[d].min == 0 && r.level[d].max == u64::MAX;
        let sibling = !whole(&l, &r) && take_sibling::<A>(&mut l, &mut r, d, how, &mut items);
        let whole = whole(&l, &r);
        let (sizes, n) = deal(items.n, kind, |i| kind.is_leaf() && items.item[i].slot.is_null());
        let mut built = [nothing; 3];
        let (mut at, mut min) = (0, l.level[d].min);
        for (b, &size) in built.iter_mut().zip(&sizes[..n]) {
            let part = &items.item[at..at + size];
            let last = part[size - 1].last;
            let (slot, gap) = build(cpu, mas, kind, part, min);
            *b = Item { slot, last, gap, fresh: true };
            at += size;
            min = last.wrapping_add(1);
        }
        if whole {
            let (root, h) = match n {
                1 => (built[0].slot, height - d),
                _ => (build(cpu, mas, tree.inner_kind(), &built[..n], 0).0, height - d + 1),
            };
            mte_to_node::<A>(root).set_root(tree.as_ptr());
            break (root, 0, Some(h));
        }
        if n == 1 && !sibling && l.level[d].node == r.level[d].node {
            mte_to_node::<A>(built[0].slot).copy_parent(mte_to_node(l.level[d].node));
            break (built[0].slot, built[0].gap, None);
        }
        d -= 1;
        items.n = 0;
        items.take::<A>(&l.level[d], 0, l.level[d].offset);
        for b in &built[..n] {
            items.push(b.slot, b.last, b.gap, true);
        }
        let (from, end) = (r.level[d].offset + 1, r.level[d].end);
        items.take::<A>(&r.level[d], from, end + 1);
    };

    // The new top takes the place of one node, or of the whole tree.
    let old = if new_height.is_some() { l.level[0] } else { l.level[d] };
    mas_put_in_tree(mas, top);
    if let Some(h) = new_height {
        tree.set_height(h);
    }
    mte_to_node::<A>(old.node).set_dead();
    mas_adopt_children::<A>(top);
    if tree.is_alloc()
        && let Parent::Node(parent, slot) = mte_to_node::<A>(top).parent()
    {
        mas_parent_gap(parent, slot, top_gap);
    }
    mas_topiary(cpu, mas, old.node, old.min, old.max);

    mas_reset(mas);
    mas_walk(cpu, mas);
}

/// Takes a neighbour's slots too where a node would be too small, or, to damp splitting, where the overflow fits a
/// neighbour under the same parent with a slot to spare.
fn take_sibling<A: Hardware>(l: &mut Path, r: &mut Path, d: usize, how: StoreType, items: &mut Items) -> bool {
    let kind = mte_node_type(l.level[d].node);
    let spanning = how == StoreType::Spanning;
    let room_left = l.level[d - 1].offset > 0;
    let room_right = r.level[d - 1].offset < r.level[d - 1].end;
    let forward = if items.n <= kind.min_end() {
        // A spanning store takes the next node of the level even from under another parent.
        if spanning { r.level[d].max != u64::MAX } else { room_right }
    } else if items.n > kind.slots() && !spanning {
        let fits = |p: &Path, forward: bool| {
            let mut q = Path { level: p.level };
            q.step::<A>(d, forward);
            items.n + q.level[d].end + 1 < 2 * kind.slots()
        };
        if room_left && fits(l, false) {
            false
        } else if room_right && fits(r, true) {
            true
        } else {
            return false;
        }
    } else {
        return false;
    };
    if forward {
        r.step::<A>(d, true);
        items.take::<A>(&r.level[d], 0, r.level[d].end + 1);
    } else {
        l.step::<A>(d, false);
        items.take_front::<A>(&l.level[d]);
    }
    true
}

/// `mas_adopt_children()`, down all new nodes: children that moved are told their new parent; a child that already
/// names the node was built by this store.
fn mas_adopt_children<A: Hardware>(enode: Enode) {
    let (node, kind) = decode::<A>(enode);
    if kind.is_leaf() {
        return;
    }
    for i in 0..kind.slots() {
        let child = node.slot(kind, i).load(Relaxed);
        if !is_child(child) {
            return;
        }
        let child_node = mte_to_node::<A>(child);
        if child_node.parent_is(node, i) {
            mas_adopt_children::<A>(child);
        } else {
            child_node.set_parent(node, i);
        }
    }
}

/// `mas_topiary_replace()`, second half: releases a replaced node and those below it. A child that still names it as
/// its parent was not taken over: if the store covers it wholly it is a dead subtree, else one replaced node.
fn mas_topiary<A: Hardware>(cpu: &Cpu<A>, mas: &MaState<'_, A>, enode: Enode, min: u64, max: u64) {
    let (node, kind) = decode::<A>(enode);
    if !kind.is_leaf() {
        let end = node.data_end(kind, max);
        for i in 0..=end {
            let child = node.slot(kind, i).load(Relaxed);
            let child_node = mte_to_node::<A>(child);
            if !child_node.parent_is(node, i) {
                continue;
            }
            let (child_min, child_max) = (node.safe_min(i, min), node.safe_pivot(i, end, max));
            if child_min >= mas.index && child_max <= mas.last {
                mte_destroy_walk(cpu, mas.state, mas.tree.in_rcu(), child);
            } else {
                child_node.set_dead();
                mas_topiary(cpu, mas, child, child_min, child_max);
            }
        }
    }
    mas_free(cpu, mas, node);
}
