// SPDX-License-Identifier: GPL-2.0-only
//! Stores that change more than one leaf: split, rebalance, spanning [lib/maple_tree.c, 6.12: mas_split,
//! mas_rebalance, mas_wr_spanning_store, mas_spanning_rebalance, mas_wmb_replace, mas_topiary_replace; 7.3: mas_wr_split,
//! mas_wr_rebalance].
//!
//! One frame for all three. It goes up level by level from the leaves; on each, the slots left of the store, the slots
//! that replace what was written (on the leaves: left remainder, entry, right remainder; above: the nodes just built)
//! and the slots right of it are collected and dealt to one, two or three new nodes. It ends where one new node takes
//! the place of one old node, or where everything has become the root. Only then the top is published, moved children
//! are told their new parent, and what was replaced is released.
//!
//! Which neighbour is taken in, how slots are dealt and where it ends differ between versions ([`MapleRules`]); those
//! are dup, so the trees have the kernel's shape, node for node.
//!
//! custom: slots are collected in a table on the stack, for any of the three kinds (6.12 has a big node of about 34
//! slots and three separate walks; 7.3 copies from node to node); the paths to the store's two ends are walked from
//! the root (the kernel climbs by parent words).
//!
//! INVARIANT: until mas_put_in_tree() no old node is changed, so readers see the tree before the store; after it they
//! see the tree after it, or a dead node.

use super::gap::{leaf_max_gap, mas_parent_gap, max_gap};
use super::memory::MapleMemory;
use super::node::{
    Enode, MAPLE_RANGE64_SLOTS, MapleType, Parent, is_child, mt_mk_node, mte_node_type, mte_safe_root, mte_to_node,
};
use super::state::{MaState, MapleRules, MapleTree, mas_reset};
use super::store::{StoreType, mas_new_root, mas_put_in_tree};
use super::walk::{decode, mas_walk};
use crate::arch::Relaxed;
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
    fn walk<A: MapleMemory>(tree: &MapleTree<A>, key: u64, height: usize) -> Path {
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
    fn bounds<A: MapleMemory>(&self, d: usize) -> (u64, u64) {
        let l = &self.level[d];
        let node = mte_to_node::<A>(l.node);
        (node.safe_min(l.offset, l.min), node.safe_pivot(l.offset, l.end, l.max))
    }
    /// Sets level `d + 1` to the child the path stands on at level `d`.
    fn enter<A: MapleMemory>(&mut self, d: usize) {
        let (min, max) = self.bounds::<A>(d);
        let l = self.level[d];
        let (node, kind) = decode::<A>(l.node);
        let child = node.slot(kind, l.offset).load(Relaxed);
        let (child_node, child_kind) = decode::<A>(child);
        let end = child_node.data_end(child_kind, max);
        self.level[d + 1] = Level { node: child, min, max, offset: 0, end };
    }
    /// Moves to the next (or previous) node of level `d`, which exists.
    fn step<A: MapleMemory>(&mut self, d: usize, forward: bool) {
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
    fn take<A: MapleMemory>(&mut self, l: &Level, from: usize, to: usize) {
        let (node, kind) = decode::<A>(l.node);
        for i in from..to {
            let gap = if kind == MapleType::Arange64 { node.gap(i).load(Relaxed) } else { 0 };
            self.push(node.slot(kind, i).load(Relaxed), node.safe_pivot(i, l.end, l.max), gap, false);
        }
    }
    /// Puts the slots `from .. to` of a node in front.
    fn take_front<A: MapleMemory>(&mut self, l: &Level) {
        let n = l.end + 1;
        self.item.copy_within(0..self.n, n);
        let old = std::mem::replace(&mut self.n, 0);
        self.take::<A>(l, 0, n);
        self.n = old + n;
    }
}

/// How the slots of a level were put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Those of the store's own nodes.
    Own,
    /// With a neighbour's, because there were too few.
    Merged,
    /// With the left neighbour's, to push some there; the same to the right.
    PushLeft,
    PushRight,
}

/// Sizes of the one to three nodes that `n` slots are dealt to; `null(i)`: slot `i` of a leaf is a hole, which may not
/// end a leaf.
fn deal(
    rules: MapleRules,
    n: usize,
    kind: MapleType,
    taken: Taken,
    null: impl Fn(usize) -> bool,
) -> ([usize; 3], usize) {
    let cap = kind.slots();
    if rules == MapleRules::V7_3 {
        // dst_setup() and cp_data_write(): a hole at the end of a node goes to the next one.
        if n <= cap {
            return ([n, 0, 0], 1);
        }
        let even = (n - 1) / 2 + 1;
        if n < 2 * cap || n == 2 * cap && !null(even - 1) {
            let a = even - usize::from(null(even - 1));
            return ([a, n - a, 0], 2);
        }
        let third = n.div_ceil(3) + 1;
        let a = third - usize::from(null(third - 1));
        let b = 2 * third;
        let b = b - usize::from(null(b - 1));
        return ([a, b - a, n - b], 3);
    }
    // mab_no_null_split(): the cut moves up where it can. `b_end` is an index after push-left and splits and a size
    // after push-right, as in the kernel.
    let no_null = |split: usize, b_end: usize| match null(split) {
        false => split,
        true if split < cap - 1 && b_end - split > kind.min_end() => split + 1,
        true => split - 1,
    };
    let two = |split: usize| ([split + 1, n - split - 1, 0], 2);
    match taken {
        // mas_push_data(): the neighbour is filled, but for one slot.
        Taken::PushLeft => two(no_null(cap - 2, n - 1)),
        Taken::PushRight => two(no_null(n - cap, n)),
        _ if n <= cap => ([n, 0, 0], 1),
        _ => {
            // mab_calc_split()
            let b_end = n - 1;
            let split = b_end / 2;
            if b_end < 2 * cap - 1 || b_end == 2 * cap - 1 && !null(split) {
                return two(no_null(split, b_end));
            }
            let third = b_end / 3;
            let (a, b) = (no_null(third, b_end), no_null(2 * third, b_end));
            ([a + 1, b - a, n - b - 1], 3)
        }
    }
}

/// Fills a node of the supply; returns its enode and largest gap.
fn build<A: MapleMemory>(
    cpu: &Cpu<A>,
    mas: &mut MaState<'_, A>,
    kind: MapleType,
    items: &[Item],
    min: u64,
) -> (Enode, u64) {
    let node = A::pop_node(cpu, mas);
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
pub(crate) fn mas_wr_frame<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, how: StoreType, entry: *mut ()) {
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

    // The right end is looked for one key further: a hole must not touch the next one, and a spanning store that ends a
    // leaf takes the next leaf in.
    let key = last.saturating_add(1);
    let key = if how == StoreType::Spanning { key } else { key.min(l.level[leaf].max) };
    let mut r = Path::walk(tree, key, height);
    let (_, slot_max) = r.bounds::<A>(leaf);
    let right_offset = r.level[leaf].offset;
    let right = mte_to_node::<A>(r.level[leaf].node).slot(kind, right_offset).load(Relaxed);
    let keep_right = right_offset + 1;
    let mut right_rest = None;
    if null && right.is_null() {
        last = slot_max;
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

    let rules = A::rules(mas.state);
    let mut d = leaf;
    let (top, top_gap, new_height) = loop {
        let kind = mte_node_type(l.level[d].node);
        let whole = |l: &Path, r: &Path| l.level[d].min == 0 && r.level[d].max == u64::MAX;
        let taken = if whole(&l, &r) {
            Taken::Own
        } else {
            take_sibling::<A>(rules, &mut l, &mut r, d, how, d == leaf, &mut items)
        };
        let whole = whole(&l, &r);
        let (sizes, n) = deal(rules, items.n, kind, taken, |i| kind.is_leaf() && items.item[i].slot.is_null());
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
        // 6.12 ends early for a split only; a rebalance or spanning store goes on to the root.
        let converges = how == StoreType::Split || rules != MapleRules::V6_12;
        if converges && n == 1 && taken == Taken::Own && l.level[d].node == r.level[d].node {
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

/// Takes a neighbour's slots too: where a node would be too small, and, to damp splitting, where an overflow fits a
/// neighbour under the same parent.
fn take_sibling<A: MapleMemory>(
    rules: MapleRules,
    l: &mut Path,
    r: &mut Path,
    d: usize,
    how: StoreType,
    leaf: bool,
    items: &mut Items,
) -> Taken {
    let kind = mte_node_type(l.level[d].node);
    let n = items.n;
    let small = n <= kind.min_end();
    let push = match how {
        StoreType::Split => true,
        StoreType::Rebalance => rules == MapleRules::V7_3,
        _ => false,
    };
    let taken = if push && n > kind.slots() {
        let fits = |p: &Path, forward: bool| {
            let mut q = Path { level: p.level };
            q.step::<A>(d, forward);
            let all = n + q.level[d].end + 1;
            match rules {
                // data_fits(): one slot stays free.
                MapleRules::V7_3 => all < 2 * kind.slots(),
                // mas_push_data()
                _ => all < 2 * kind.slots() - usize::from(leaf) - usize::from(l.level[d].max == u64::MAX),
            }
        };
        if l.level[d - 1].offset > 0 && fits(l, false) {
            Taken::PushLeft
        } else if r.level[d - 1].offset < r.level[d - 1].end && fits(r, true) {
            Taken::PushRight
        } else {
            return Taken::Own;
        }
    } else if small || leaf && how == StoreType::Rebalance {
        Taken::Merged
    } else {
        return Taken::Own;
    };
    let forward = match taken {
        Taken::PushLeft => false,
        Taken::PushRight => true,
        // The nearest node of the level: under the lowest ancestor that has one beside it, right before left.
        _ => {
            let near = (0..d).rev().find_map(|up| {
                if r.level[up].offset < r.level[up].end {
                    Some(true)
                } else {
                    (l.level[up].offset > 0).then_some(false)
                }
            });
            match near {
                Some(forward) => forward,
                None => return Taken::Own,
            }
        }
    };
    if forward {
        r.step::<A>(d, true);
        items.take::<A>(&r.level[d], 0, r.level[d].end + 1);
    } else {
        l.step::<A>(d, false);
        items.take_front::<A>(&l.level[d]);
    }
    taken
}

/// `mas_adopt_children()`, down all new nodes: children that moved are told their new parent; a child that already
/// names the node was built by this store.
fn mas_adopt_children<A: MapleMemory>(enode: Enode) {
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
fn mas_topiary<A: MapleMemory>(cpu: &Cpu<A>, mas: &MaState<'_, A>, enode: Enode, min: u64, max: u64) {
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
                A::destroy_walk(cpu, mas, child);
            } else {
                child_node.set_dead();
                mas_topiary(cpu, mas, child, child_min, child_max);
            }
        }
    }
    A::free(cpu, mas, node);
}
