// SPDX-License-Identifier: GPL-2.0-only
//! Writers: which kind of store it is, and the kinds that touch one leaf [lib/maple_tree.c, 6.12: mas_wr_store_type,
//! mas_prealloc_calc, mas_wr_slot_store, mas_wr_node_store, mas_root_expand, mas_new_root, mas_put_in_tree]. What
//! changes more than one leaf is in `rebalance.rs`.
//!
//! One writer at a time; in RCU mode readers look on. In place change only: one slot of a leaf (exact), one boundary
//! between two slots of a leaf (slot store), a child pointer, gaps, and parent words. Everything else fills a new node
//! first, publishes it by one release store, then marks the old one dead.
//!
//! custom: [`mas_store_prealloc`] chooses the kind anew from the range it is given instead of trusting the kind chosen
//! by [`mas_preallocate`]; the widening of a hole reaches `index ..= last` of the cursor only with the store, so a
//! failed allocation leaves the cursor's range alone. dup: the order of tests, the node
//! requests of 6.12 and of 7.3 ([`MapleRules`]).

use super::gap::mas_update_gap;
use super::memory::MapleMemory;
use super::node::{
    Enode, MapleNode, MapleType, Parent, mt_mk_node, mte_mk_root, mte_safe_root, mte_to_node, xa_is_node,
};
use super::rebalance::mas_wr_frame;
use super::state::{MaState, MaStatus, MapleEvent, MapleRules, mas_reset};
use super::walk::{decode, mas_start};
use crate::arch::{Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use std::ptr::null_mut;

/// `enum store_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreType {
    Root,
    NewRoot,
    Exact,
    Append,
    Slot,
    Node,
    Split,
    Rebalance,
    Spanning,
}

/// `struct ma_wr_state`: a store about to happen at the cursor's leaf.
pub(crate) struct WrState {
    pub(crate) kind: StoreType,
    /// Range to store over, holes widened.
    index: u64,
    last: u64,
    /// Slot where the store starts, and its bounds.
    offset: usize,
    r_min: u64,
    r_max: u64,
    /// Slot where it ends, and that slot's last key.
    offset_end: usize,
    end_piv: u64,
    new_end: usize,
    /// Whether the walk began at the root.
    from_root: bool,
}

/// `mas_wr_store_type()`: walks to where the store of `entry` starts and decides how to do it.
fn mas_wr_store_type<A: MapleMemory>(mas: &mut MaState<'_, A>, entry: *mut ()) -> WrState {
    debug_assert!(mas.index <= mas.last);
    let (index, last) = (mas.index, mas.last);
    let mut wr = WrState {
        kind: StoreType::Root,
        index,
        last,
        offset: 0,
        r_min: 0,
        r_max: u64::MAX,
        offset_end: 0,
        end_piv: 0,
        new_end: 0,
        from_root: true,
    };
    // mas_wr_prealloc_setup(): the position is kept where the whole store lies in it.
    let keep = mas.status == MaStatus::Active
        && !mas.node.is_null()
        && index >= mas.min
        && last <= mas.max
        && (!entry.is_null() || last != mas.max);
    if !keep {
        mas_reset(mas);
    }
    wr.from_root = mas.status == MaStatus::Start;
    mas_start(mas);
    if mas.status != MaStatus::Active {
        return wr;
    }
    let null = entry.is_null();
    let (node, end) = loop {
        let (node, kind) = decode::<A>(mas.node);
        let end = node.data_end(kind, mas.max);
        // mas_wr_node_walk(): from where the cursor stands. PORT: the kernel trusts that this is not past `index`.
        let (mut offset, mut min, mut max) = (0, mas.min, mas.max);
        if mas.offset <= end {
            let at = node.safe_min(mas.offset, mas.min);
            if at <= index {
                (offset, min) = (mas.offset, at);
            }
        }
        while offset < end {
            let p = node.pivot(offset).load(Relaxed);
            if p >= index {
                max = p;
                break;
            }
            min = p + 1;
            offset += 1;
        }
        (mas.offset, mas.end) = (offset, end);
        // mas_is_span_wr()
        let bound = if kind.is_leaf() { mas.max } else { max };
        if last > bound || (last == bound && null && last != u64::MAX) {
            wr.kind = StoreType::Spanning;
            return wr;
        }
        if kind.is_leaf() {
            (wr.offset, wr.r_min, wr.r_max) = (offset, min, max);
            break (node, end);
        }
        mas.node = node.slot(kind, offset).load(Relaxed);
        (mas.min, mas.max) = (min, max);
        mas.offset = 0;
    };
    let slot = |i| node.slot(MapleType::Leaf64, i).load(Relaxed);
    let piv = |i| node.safe_pivot(i, end, mas.max);
    // mas_wr_end_piv()
    wr.offset_end = wr.offset;
    wr.end_piv = wr.r_max;
    while wr.last > wr.end_piv {
        wr.offset_end += 1;
        wr.end_piv = piv(wr.offset_end);
    }
    if null {
        // mas_wr_extend_null(): two holes never touch.
        if slot(wr.offset_end).is_null() {
            wr.last = wr.end_piv;
        } else if wr.last == wr.end_piv && wr.offset_end < end && slot(wr.offset_end + 1).is_null() {
            wr.offset_end += 1;
            wr.end_piv = piv(wr.offset_end);
            wr.last = wr.end_piv;
        }
        if slot(wr.offset).is_null() {
            wr.index = wr.r_min;
        } else if wr.index == wr.r_min && wr.offset > 0 && slot(wr.offset - 1).is_null() {
            wr.offset -= 1;
            wr.r_max = wr.r_min - 1;
            wr.r_min = node.safe_min(wr.offset, mas.min);
            wr.index = wr.r_min;
        }
    }
    if wr.index == wr.r_min && wr.last == wr.r_max {
        wr.kind = StoreType::Exact;
        return wr;
    }
    if wr.index == 0 && wr.last == u64::MAX {
        wr.kind = StoreType::NewRoot;
        return wr;
    }
    let span = wr.offset_end - wr.offset;
    let new_end = end + 2 - span - usize::from(wr.index == wr.r_min) - usize::from(wr.last == wr.end_piv);
    wr.new_end = new_end;
    let in_rcu = mas.tree.in_rcu();
    wr.kind = if new_end < MapleType::Leaf64.min_end() {
        // A root may be small, but is rewritten even where a slot or two would do.
        if node.is_root() { StoreType::Node } else { StoreType::Rebalance }
    } else if new_end >= MapleType::Leaf64.slots() {
        StoreType::Split
    } else if !in_rcu && wr.offset == end {
        StoreType::Append
    } else if new_end == end && (!in_rcu || span == 1) {
        StoreType::Slot
    } else {
        StoreType::Node
    };
    wr
}

/// `mas_prealloc_calc()`: the worst case of nodes, by 6.12's rules or by those of 6.16 and later.
#[inline]
fn mas_prealloc_calc<A: MapleMemory>(mas: &MaState<'_, A>, wr: &WrState, entry: *mut ()) -> usize {
    match wr.kind {
        StoreType::Exact | StoreType::Append | StoreType::Slot => 0,
        StoreType::Node => usize::from(mas.tree.in_rcu()),
        StoreType::NewRoot => 1,
        StoreType::Root => usize::from(!fits_root_word(mas, entry)),
        StoreType::Split | StoreType::Rebalance | StoreType::Spanning => prealloc_levels(mas, wr, entry.is_null()),
    }
}

/// [`mas_prealloc_calc`] of a store that builds nodes on several levels.
#[cold]
fn prealloc_levels<A: MapleMemory>(mas: &MaState<'_, A>, wr: &WrState, null: bool) -> usize {
    let h = mas.tree.height();
    if A::rules(mas.state) == MapleRules::V6_12 {
        return match wr.kind {
            StoreType::Split => 2 * h + 1,
            StoreType::Rebalance => 2 * h - 1,
            _ => 3 * h + 1,
        };
    }
    let (vacant, sufficient) = if wr.from_root { mas_wr_heights(mas, null) } else { (0, 0) };
    match wr.kind {
        StoreType::Split => 2 * (h - vacant) + 1,
        StoreType::Rebalance => 2 * (h - vacant.min(sufficient)) + 1,
        _ => 3 * (h - vacant.min(sufficient)) + 1,
    }
}

/// What `mas_wr_walk()` notes from 6.16 on: one more than the depth of the lowest inner node with a free slot, and of
/// the lowest that stays large enough with two slots less; the leaf's level, and that at which a store spans, are not
/// looked at. A walk that begins at a leaf, as after a lookup, notes 0 and 0. PORT: found by a second descent, for the
/// stores that ask.
fn mas_wr_heights<A: MapleMemory>(mas: &MaState<'_, A>, null: bool) -> (usize, usize) {
    let (mut vacant, mut sufficient) = (0, 0);
    let mut enode = mte_safe_root(mas.tree.ma_root.load(Relaxed));
    let mut max = u64::MAX;
    for depth in 0.. {
        let (node, kind) = decode::<A>(enode);
        if kind.is_leaf() {
            break;
        }
        let end = node.data_end(kind, max);
        let offset = (0..end).find(|&i| node.pivot(i).load(Relaxed) >= mas.index).unwrap_or(end);
        max = node.safe_pivot(offset, end, max);
        if mas.last > max || (mas.last == max && null && mas.last != u64::MAX) {
            break;
        }
        if end < kind.slots() - 1 {
            vacant = depth + 1;
        }
        if depth == 0 && end > 2 || depth > 0 && end > kind.min_end() + 1 {
            sufficient = depth + 1;
        }
        enode = node.slot(kind, offset).load(Relaxed);
    }
    (vacant, sufficient)
}

/// Whether `entry` over the cursor's range can stand in the root word.
fn fits_root_word<A: MapleMemory>(mas: &MaState<'_, A>, entry: *mut ()) -> bool {
    mas.index == 0 && mas.last == 0 && entry.addr() & 3 != 2
}

/// `mas_preallocate()`: gets the nodes a store of `entry` over `index ..= last` may need.
///
/// # Errors
/// `ENOMEM`
pub fn mas_preallocate<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) -> Result<(), Errno> {
    let wr = mas_wr_store_type(mas, entry);
    let n = mas_prealloc_calc(mas, &wr, entry);
    if wr.kind == StoreType::Spanning {
        mas_reset(mas);
    }
    A::alloc_nodes(cpu, mas, n).inspect_err(|_| {
        A::give_back(cpu, mas);
        mas_reset(mas);
    })
}

/// `mas_store_prealloc()`: stores after [`mas_preallocate`]; cannot fail.
pub fn mas_store_prealloc<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) {
    let wr = mas_wr_store_type(mas, entry);
    mas_wr_store_entry(cpu, mas, &wr, entry);
    A::give_back(cpu, mas);
}

/// `mas_store_gfp()`: stores `entry` (null: a hole) over `index ..= last`, allocating nodes.
///
/// # Errors
/// `ENOMEM`; the tree and the cursor's range are as before.
pub fn mas_store_gfp<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) -> Result<(), Errno> {
    let wr = mas_wr_store_type(mas, entry);
    let n = mas_prealloc_calc(mas, &wr, entry);
    A::alloc_nodes(cpu, mas, n).inspect_err(|_| {
        A::give_back(cpu, mas);
        mas_reset(mas);
    })?;
    cpu.count(MapleEvent::StoreGfp);
    mas_wr_store_entry(cpu, mas, &wr, entry);
    A::give_back(cpu, mas);
    Ok(())
}

/// `mas_wr_store_entry()`
fn mas_wr_store_entry<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, wr: &WrState, entry: *mut ()) {
    match wr.kind {
        StoreType::Root => {
            cpu.count(MapleEvent::NewRoot);
            mas_store_root(cpu, mas, entry);
            mas_reset(mas);
            return;
        }
        StoreType::NewRoot => {
            cpu.count(MapleEvent::NewRoot);
            mas_new_root(cpu, mas, entry);
            return;
        }
        StoreType::Split => {
            cpu.count(MapleEvent::Split);
            mas_wr_frame(cpu, mas, wr.kind, entry);
            return;
        }
        StoreType::Rebalance => {
            cpu.count(MapleEvent::Rebalance);
            mas_wr_frame(cpu, mas, wr.kind, entry);
            return;
        }
        StoreType::Spanning => {
            cpu.count(MapleEvent::Spanning);
            mas_wr_frame(cpu, mas, wr.kind, entry);
            return;
        }
        StoreType::Exact => {
            cpu.count(MapleEvent::StoreExact);
            let slot = mte_to_node::<A>(mas.node).slot(MapleType::Leaf64, wr.offset);
            let was_null = slot.load(Relaxed).is_null();
            // ORDER: release; meets the acquire loads of slots in mtree_range_walk() and its kin: the entry is seen
            // filled.
            slot.store(entry, Release);
            mas.offset = wr.offset;
            if was_null != entry.is_null() {
                mas_update_gap(mas);
            }
        }
        StoreType::Slot => {
            cpu.count(MapleEvent::StoreSlot);
            mas_wr_slot_store(mas, wr, entry);
        }
        StoreType::Node => {
            cpu.count(MapleEvent::StoreNode);
            mas_wr_node_store(cpu, mas, wr, entry);
        }
        StoreType::Append => {
            cpu.count(MapleEvent::StoreAppend);
            mas_wr_append(mas, wr, entry);
        }
    }
    (mas.index, mas.last) = (wr.index, wr.last);
    mas.status = MaStatus::Active;
}

/// `mas_wr_slot_store()`: moves one boundary between two slots of a leaf, in place.
///
/// The pointer first, then the pivot: in between a reader sees the new entry over a part of its range and the old one
/// over the rest, never the old entry where it has not been. The two stores are not ordered against each other by
/// the reader's loads on a weakly ordered machine, as in the kernel: the user's own look at the entry decides.
fn mas_wr_slot_store<A: MapleMemory>(mas: &mut MaState<'_, A>, wr: &WrState, entry: *mut ()) {
    let node = mte_to_node::<A>(mas.node);
    let slot = |i| node.slot(MapleType::Leaf64, i);
    let gap = entry.is_null() || (wr.offset..=wr.offset_end).any(|i| slot(i).load(Relaxed).is_null());
    if wr.offset_end - wr.offset != 1 {
        // Outside RCU mode nobody looks: two boundaries move around the middle one of three slots.
        slot(wr.offset + 1).store(entry, Relaxed);
        node.pivot(wr.offset).store(wr.index - 1, Relaxed);
        node.pivot(wr.offset + 1).store(wr.last, Relaxed);
        mas.offset = wr.offset + 1;
    } else if wr.index == wr.r_min {
        // ORDER: release; as in an exact store.
        slot(wr.offset).store(entry, Release);
        node.pivot(wr.offset).store(wr.last, Relaxed);
        mas.offset = wr.offset;
    } else {
        // ORDER: release; as in an exact store.
        slot(wr.offset + 1).store(entry, Release);
        node.pivot(wr.offset).store(wr.index - 1, Relaxed);
        mas.offset = wr.offset + 1;
    }
    if gap {
        mas_update_gap(mas);
    }
}

/// `mas_wr_append()`: the store lies in the last slot of a leaf that no reader watches; adds one or two slots.
fn mas_wr_append<A: MapleMemory>(mas: &mut MaState<'_, A>, wr: &WrState, entry: *mut ()) {
    let kind = MapleType::Leaf64;
    let node = mte_to_node::<A>(mas.node);
    let end = mas.end;
    let old = node.slot(kind, end).load(Relaxed);
    let (mut at, mut i) = (end, end);
    let mut put = |entry: *mut (), last: u64| {
        node.slot(kind, i).store(entry, Relaxed);
        if i < kind.pivots() {
            node.pivot(i).store(last, Relaxed);
        }
        i += 1;
    };
    if wr.index > wr.r_min {
        put(old, wr.index - 1);
        at += 1;
    }
    put(entry, wr.last);
    if wr.last < wr.end_piv {
        put(old, mas.max);
    }
    debug_assert!(i == wr.new_end + 1);
    if wr.new_end < kind.pivots() {
        node.set_meta(kind, wr.new_end, 0);
    }
    (mas.offset, mas.end) = (at, wr.new_end);
    if old.is_null() || entry.is_null() {
        mas_update_gap(mas);
    }
}

/// `mas_wr_node_store()`: a leaf with the change made takes the place of the old one.
fn mas_wr_node_store<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, wr: &WrState, entry: *mut ()) {
    let kind = MapleType::Leaf64;
    let old = mte_to_node::<A>(mas.node);
    let end = mas.end;
    let in_rcu = mas.tree.in_rcu();
    let mut scratch = Scratch([0; 32]);
    let new = if in_rcu { A::pop_node(cpu, mas) } else { MapleNode::from_object((&raw mut scratch.0).cast()) };
    let mut to = wr.offset;
    new.copy_leaf(0, old, 0, to);
    let mut put = |entry: *mut (), last: u64| {
        new.slot(kind, to).store(entry, Relaxed);
        if to < kind.pivots() {
            new.pivot(to).store(last, Relaxed);
        }
        to += 1;
    };
    if wr.index > wr.r_min {
        put(old.slot(kind, wr.offset).load(Relaxed), wr.index - 1);
    }
    put(entry, wr.last);
    let from = if wr.last < wr.end_piv { wr.offset_end } else { wr.offset_end + 1 };
    if from <= end {
        new.copy_leaf(to, old, from, end + 1 - from);
    }
    let new_end = wr.new_end;
    debug_assert!(to + (end + 1).saturating_sub(from) == new_end + 1);
    if new_end < kind.pivots() {
        new.pivot(new_end).store(mas.max, Relaxed);
    }
    if new_end < kind.pivots() - 1 {
        new.set_meta(kind, new_end, 0);
    }
    new.copy_parent(old);
    mas.offset = wr.offset + usize::from(wr.index > wr.r_min);
    mas.end = new_end;
    if in_rcu {
        mas.node = mt_mk_node(new, kind);
        mas_put_in_tree(mas, mas.node);
        old.set_dead();
        A::free(cpu, mas, old);
    } else {
        // Nobody else looks: the leaf is rewritten where it is.
        // SAFETY: two whole nodes; nobody reads the old one (no RCU mode), the new one is on our stack.
        unsafe { old.copy_from(new) }
    }
    mas_update_gap(mas);
}

#[repr(C, align(256))]
struct Scratch([u64; 32]);

/// `mas_put_in_tree()`: publishes `enode`, whose parent word is already set, where that word says.
pub(crate) fn mas_put_in_tree<A: MapleMemory>(mas: &MaState<'_, A>, enode: Enode) {
    match mte_to_node::<A>(enode).parent() {
        Parent::Node(parent, slot) => {
            // ORDER: release; meets the acquire loads of slots in mtree_range_walk(): the new node is seen filled.
            parent.slot(mas.tree.inner_kind(), slot).store(enode, Release);
        }
        _ => {
            // ORDER: release; meets mas_start().
            mas.tree.ma_root.store(mte_mk_root(enode), Release);
        }
    }
}

/// Makes a fresh leaf the whole tree. `items` cover all keys: entry and last key of each.
fn root_leaf<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, items: &[(*mut (), u64)]) {
    let kind = MapleType::Leaf64;
    let node = A::pop_node(cpu, mas);
    for (i, &(entry, last)) in items.iter().enumerate() {
        node.slot(kind, i).store(entry, Relaxed);
        node.pivot(i).store(last, Relaxed);
    }
    node.set_meta(kind, items.len() - 1, 0);
    node.set_root(mas.tree.as_ptr());
    mas_put_in_tree(mas, mt_mk_node(node, kind));
    mas.tree.set_height(1);
}

/// `mas_store_root()` and `mas_root_expand()`: the tree is empty or one entry over key 0.
fn mas_store_root<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) {
    let old = mas.tree.ma_root.load(Relaxed);
    debug_assert!(!xa_is_node(old));
    let (index, last) = (mas.index, mas.last);
    if entry.is_null() {
        if index == 0 {
            // ORDER: release as everywhere on the root word; nothing new is published.
            mas.tree.ma_root.store(null_mut(), Release);
        }
        return;
    }
    if fits_root_word(mas, entry) {
        // ORDER: release; meets mas_start(): the entry is seen filled.
        mas.tree.ma_root.store(entry, Release);
        return;
    }
    let mut items = [(null_mut(), 0); 4];
    let mut n = 0;
    let mut put = |e: *mut (), last: u64| {
        items[n] = (e, last);
        n += 1;
    };
    if index > 0 && !old.is_null() {
        put(old, 0);
        if index > 1 {
            put(null_mut(), index - 1);
        }
    } else if index > 0 {
        put(null_mut(), index - 1);
    }
    put(entry, last);
    if last < u64::MAX {
        put(null_mut(), u64::MAX);
    }
    root_leaf(cpu, mas, &items[..n]);
}

/// `mas_new_root()`: a store over all keys.
pub(crate) fn mas_new_root<A: MapleMemory>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) {
    let old = mas.tree.ma_root.load(Relaxed);
    if entry.is_null() {
        // ORDER: release as everywhere on the root word; nothing new is published.
        mas.tree.ma_root.store(null_mut(), Release);
        mas.tree.set_height(0);
    } else {
        root_leaf(cpu, mas, &[(entry, u64::MAX)]);
    }
    A::destroy_walk(cpu, mas, mte_safe_root(old));
    mas_reset(mas);
    (mas.index, mas.last) = (0, u64::MAX);
}
