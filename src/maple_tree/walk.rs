// SPDX-License-Identifier: GPL-2.0-only
//! Readers: walk, find, next, prev [lib/maple_tree.c, 6.12, functions of the same names].
//!
//! A reader holds the writer's lock (either side) or an RCU read-side section. In each node it loads pivots, picks a
//! slot, loads the slot, and only then asks whether the node is dead; if it is, everything is thrown away and the walk
//! starts again from the root at the key reached. Sideways moves climb by parent words, which are read twice.
//!
//! custom: each pivot is loaded once and the value kept, so that the bounds returned are those the slot was chosen by
//! (the kernel loads some twice). stub: the error status, xarray-internal entries.
//!
//! Cannot tell: that an entry is still in the tree, or, while a slot store is under way, that it covers more than the
//! part of its range it was found in. Users lock what they found and look again.

use super::memory::MapleMemory;
use super::node::{
    Enode, MapleNode, MapleType, Parent, mt_mk_node, mte_node_type, mte_safe_root, mte_to_node, xa_is_node,
};
use super::state::{MaState, MaStatus, MapleState, MapleTree, mas_reset};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Hardware};
use crate::cpu::Cpu;
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use std::ptr::null_mut;

/// The node was found dead: start again from the root.
struct Dead;

/// `mas_start()`: loads the root. Returns the entry of a tree that is a single entry.
#[inline(always)]
pub(crate) fn mas_start<A: MapleMemory>(mas: &mut MaState<'_, A>) -> *mut () {
    if mas.status != MaStatus::Start {
        return null_mut();
    }
    mas.min = 0;
    mas.max = u64::MAX;
    mas.offset = 0;
    loop {
        // ORDER: acquire; meets the release store of the root word in mas_put_in_tree(): the node is seen filled.
        let root = mas.tree.ma_root.load(Acquire);
        if xa_is_node(root) {
            mas.node = mte_safe_root(root);
            mas.status = MaStatus::Active;
            if mte_to_node::<A>(mas.node).is_dead() {
                A::starts_again();
                continue;
            }
            return null_mut();
        }
        mas.node = null_mut();
        if root.is_null() {
            mas.status = MaStatus::None;
            return null_mut();
        }
        mas.status = MaStatus::Root;
        return if mas.index > 0 { null_mut() } else { root };
    }
}

/// `mtree_range_walk()`: down from the current node to the leaf slot of `index`; resets the cursor where a node died.
#[inline(always)]
fn mtree_range_walk<A: MapleMemory>(mas: &mut MaState<'_, A>) -> *mut () {
    let index = mas.index;
    let (mut min, mut max, mut next) = (mas.min, mas.max, mas.node);
    loop {
        let enode = next;
        let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
        let end = node.data_end(kind, max);
        let (node_min, node_max) = (min, max);
        let mut offset = 0;
        while offset < end {
            let p = node.pivot(offset).load(crate::arch::Relaxed);
            if p >= index {
                max = p;
                break;
            }
            min = p.wrapping_add(1);
            offset += 1;
        }
        // ORDER: acquire; meets the release stores of slots in mas_put_in_tree() and the leaf stores: what the word
        // names is seen filled.
        next = node.slot(kind, offset).load(Acquire);
        if node.is_dead() {
            mas_reset(mas);
            return null_mut();
        }
        if kind.is_leaf() {
            mas.node = enode;
            (mas.min, mas.max) = (node_min, node_max);
            (mas.offset, mas.end) = (offset, end);
            (mas.index, mas.last) = (min, max);
            return next;
        }
    }
}

/// `mas_state_walk()`
#[inline(always)]
fn mas_state_walk<A: MapleMemory>(mas: &mut MaState<'_, A>) -> *mut () {
    let entry = mas_start(mas);
    match mas.status {
        MaStatus::None => null_mut(),
        MaStatus::Root => entry,
        _ => mtree_range_walk(mas),
    }
}

/// `mas_walk()`: the entry at `index`, or null; sets `index ..= last` to its range. Readers hold RCU or the lock.
#[inline]
pub fn mas_walk<A: MapleMemory>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>) -> *mut () {
    walk(mas)
}

#[inline(always)]
fn walk<A: MapleMemory>(mas: &mut MaState<'_, A>) -> *mut () {
    // Always from the root, whatever the cursor's status, as in the kernel.
    mas_reset(mas);
    loop {
        let entry = mas_state_walk(mas);
        match mas.status {
            MaStatus::Start => A::starts_again(),
            MaStatus::None => {
                (mas.index, mas.last) = (0, u64::MAX);
                return null_mut();
            }
            MaStatus::Root if mas.index == 0 => {
                mas.last = 0;
                return entry;
            }
            MaStatus::Root => {
                (mas.index, mas.last) = (1, u64::MAX);
                mas.status = MaStatus::None;
                return null_mut();
            }
            _ => return entry,
        }
    }
}

/// `mas_rewalk()`: after a death, stands on the slot of `index` again.
#[cold]
#[inline(never)]
fn mas_rewalk<A: MapleMemory>(mas: &mut MaState<'_, A>, index: u64) {
    loop {
        A::starts_again();
        mas_reset(mas);
        (mas.index, mas.last) = (index, index);
        mas_state_walk(mas);
        if mas.status != MaStatus::Start {
            return;
        }
    }
}

/// `mas_ascend()`: to the parent, and its bounds, which may need further climbing.
fn mas_ascend<A: MapleMemory>(mas: &mut MaState<'_, A>) -> Result<(), Dead> {
    let node = mte_to_node::<A>(mas.node);
    let Parent::Node(parent, slot) = node.parent() else {
        return Err(Dead);
    };
    if !node.parent_is(parent, slot) {
        return Err(Dead);
    }
    let kind = mas.tree.inner_kind();
    mas.offset = slot;
    mas.node = mt_mk_node(parent, kind);
    let (mut min, mut max) = (0, u64::MAX);
    let mut set_min = slot == 0;
    if set_min {
        min = mas.min;
    }
    let mut set_max = mas.max == u64::MAX;
    let mut at = parent;
    loop {
        match at.parent() {
            Parent::Dead => return Err(Dead),
            Parent::Root => break,
            Parent::Node(up, slot) => {
                if !set_min && slot != 0 {
                    set_min = true;
                    min = up.pivot(slot - 1).load(crate::arch::Relaxed).wrapping_add(1);
                }
                if !set_max && slot < kind.pivots() {
                    set_max = true;
                    max = up.pivot(slot).load(crate::arch::Relaxed);
                }
                if up.is_dead() {
                    return Err(Dead);
                }
                at = up;
            }
        }
        if set_min && set_max {
            break;
        }
    }
    if mte_to_node::<A>(mas.node).is_dead() {
        return Err(Dead);
    }
    (mas.min, mas.max) = (min, max);
    Ok(())
}

/// `mas_next_node()`: to the first slot of the next leaf, or overflow where `max` or the tree ends.
fn mas_next_node<A: MapleMemory>(mas: &mut MaState<'_, A>, max: u64) -> Result<(), Dead> {
    if mas.max >= max {
        mas.status = MaStatus::Overflow;
        return Ok(());
    }
    let min = mas.max + 1;
    let mut level = 0;
    let (mut node, mut kind, mut end);
    loop {
        if mte_to_node::<A>(mas.node).is_root() {
            mas.status = MaStatus::Overflow;
            return Ok(());
        }
        mas_ascend(mas)?;
        level += 1;
        node = mte_to_node::<A>(mas.node);
        kind = mte_node_type(mas.node);
        end = node.data_end(kind, mas.max);
        if node.is_dead() {
            return Err(Dead);
        }
        if mas.offset != end {
            break;
        }
    }
    mas.offset += 1;
    let mut enode = node.slot(kind, mas.offset).load(Acquire);
    let mut node_max = node.safe_pivot(mas.offset, end, mas.max);
    if node.is_dead() {
        return Err(Dead);
    }
    while level > 1 {
        level -= 1;
        node = mte_to_node::<A>(enode);
        kind = mte_node_type(enode);
        enode = node.slot(kind, 0).load(Acquire);
        node_max = node.pivot(0).load(crate::arch::Relaxed);
        if node.is_dead() {
            return Err(Dead);
        }
    }
    mas.node = enode;
    (mas.min, mas.max) = (min, node_max);
    mas.offset = 0;
    mas.end = mte_to_node::<A>(enode).data_end(mte_node_type(enode), node_max);
    if mte_to_node::<A>(enode).is_dead() { Err(Dead) } else { Ok(()) }
}

/// `mas_prev_node()`: to the last slot of the previous leaf, or underflow where `min` or the tree begins.
fn mas_prev_node<A: MapleMemory>(mas: &mut MaState<'_, A>, min: u64) -> Result<(), Dead> {
    if mas.min == 0 || mas.min - 1 < min {
        mas.status = MaStatus::Underflow;
        return Ok(());
    }
    let max = mas.min - 1;
    let mut level = 0;
    loop {
        if mte_to_node::<A>(mas.node).is_root() {
            mas.status = MaStatus::Underflow;
            return Ok(());
        }
        mas_ascend(mas)?;
        level += 1;
        if mas.offset != 0 {
            break;
        }
    }
    let (mut node, mut kind) = (mte_to_node::<A>(mas.node), mte_node_type(mas.node));
    let mut offset = mas.offset - 1;
    let mut enode = node.slot(kind, offset).load(Acquire);
    let mut node_min = node.safe_min(offset, mas.min);
    if node.is_dead() {
        return Err(Dead);
    }
    while level > 1 {
        level -= 1;
        node = mte_to_node::<A>(enode);
        kind = mte_node_type(enode);
        offset = node.data_end(kind, max);
        enode = node.slot(kind, offset).load(Acquire);
        node_min = node.safe_min(offset, node_min);
        if node.is_dead() {
            return Err(Dead);
        }
    }
    mas.node = enode;
    (mas.min, mas.max) = (node_min, max);
    mas.end = mte_to_node::<A>(enode).data_end(mte_node_type(enode), max);
    mas.offset = mas.end;
    if mte_to_node::<A>(enode).is_dead() { Err(Dead) } else { Ok(()) }
}

/// `mas_next_slot()`: the next slot up to `max`; skips holes unless `empty`.
fn mas_next_slot<A: MapleMemory>(mas: &mut MaState<'_, A>, max: u64, empty: bool) -> *mut () {
    let mut save_point = mas.last;
    loop {
        match next_slot_once(mas, max, empty) {
            Ok(entry) => return entry,
            Err(Dead) => {
                mas_rewalk(mas, save_point);
                if mas.status != MaStatus::Active {
                    // The tree lost its last node meanwhile.
                    return next_without_nodes(mas, save_point, max);
                }
                save_point = mas.last;
            }
        }
    }
}

fn next_slot_once<A: MapleMemory>(mas: &mut MaState<'_, A>, max: u64, empty: bool) -> Result<*mut (), Dead> {
    let mut node = mte_to_node::<A>(mas.node);
    if node.is_dead() {
        return Err(Dead);
    }
    let mut pivot = node.safe_pivot(mas.offset, mas.end, mas.max);
    if node.is_dead() {
        return Err(Dead);
    }
    if pivot >= max {
        mas.status = MaStatus::Overflow;
        return Ok(null_mut());
    }
    loop {
        if mas.offset < mas.end {
            mas.index = pivot + 1;
            mas.offset += 1;
        } else {
            if mas.last >= max {
                mas.status = MaStatus::Overflow;
                return Ok(null_mut());
            }
            mas_next_node(mas, max)?;
            if mas.status == MaStatus::Overflow {
                return Ok(null_mut());
            }
            node = mte_to_node::<A>(mas.node);
            mas.index = mas.min;
        }
        pivot = node.safe_pivot(mas.offset, mas.end, mas.max);
        mas.last = pivot;
        let entry = node.slot(MapleType::Leaf64, mas.offset).load(Acquire);
        if node.is_dead() {
            return Err(Dead);
        }
        if !entry.is_null() || empty {
            return Ok(entry);
        }
        if mas.last >= max {
            mas.status = MaStatus::Overflow;
            return Ok(null_mut());
        }
    }
}

/// `mas_prev_slot()`: the previous slot down to `min`; skips holes unless `empty`.
fn mas_prev_slot<A: MapleMemory>(mas: &mut MaState<'_, A>, min: u64, empty: bool) -> *mut () {
    let mut save_point = mas.index;
    loop {
        match prev_slot_once(mas, min, empty) {
            Ok(entry) => return entry,
            Err(Dead) => {
                mas_rewalk(mas, save_point);
                if mas.status != MaStatus::Active {
                    return prev_without_nodes(mas, save_point, min);
                }
                save_point = mas.index;
            }
        }
    }
}

fn prev_slot_once<A: MapleMemory>(mas: &mut MaState<'_, A>, min: u64, empty: bool) -> Result<*mut (), Dead> {
    let mut node = mte_to_node::<A>(mas.node);
    if node.is_dead() {
        return Err(Dead);
    }
    let mut start = node.safe_min(mas.offset, mas.min);
    if node.is_dead() {
        return Err(Dead);
    }
    if start <= min {
        mas.status = MaStatus::Underflow;
        return Ok(null_mut());
    }
    loop {
        if mas.offset != 0 {
            mas.offset -= 1;
            mas.last = start - 1;
        } else {
            if mas.index <= min {
                mas.status = MaStatus::Underflow;
                return Ok(null_mut());
            }
            mas_prev_node(mas, min)?;
            if mas.status == MaStatus::Underflow {
                return Ok(null_mut());
            }
            node = mte_to_node::<A>(mas.node);
            mas.last = mas.max;
        }
        start = node.safe_min(mas.offset, mas.min);
        mas.index = start;
        let entry = node.slot(MapleType::Leaf64, mas.offset).load(Acquire);
        if node.is_dead() {
            return Err(Dead);
        }
        if !entry.is_null() || empty {
            return Ok(entry);
        }
        if mas.index <= min {
            mas.status = MaStatus::Underflow;
            return Ok(null_mut());
        }
    }
}

/// What a next finds in a tree that a writer has emptied, or shrunk to one entry, under a reader.
#[cold]
fn next_without_nodes<A: MapleMemory>(mas: &mut MaState<'_, A>, from: u64, max: u64) -> *mut () {
    (mas.index, mas.last) = (from.saturating_add(1).min(max), u64::MAX);
    mas.status = MaStatus::Overflow;
    null_mut()
}

/// As [`next_without_nodes`], downwards.
#[cold]
fn prev_without_nodes<A: MapleMemory>(mas: &mut MaState<'_, A>, from: u64, min: u64) -> *mut () {
    (mas.index, mas.last) = (0, from);
    // ORDER: acquire, as in mas_start().
    let root = mas.tree.ma_root.load(Acquire);
    if min == 0 && from > 0 && !root.is_null() && !xa_is_node(root) {
        mas.last = 0;
        mas.status = MaStatus::Root;
        return root;
    }
    mas.status = MaStatus::Underflow;
    null_mut()
}

/// `mas_next_setup()`: `Some(result)` where there is nothing to step over.
fn mas_next_setup<A: MapleMemory>(mas: &mut MaState<'_, A>, max: u64) -> Option<*mut ()> {
    let was_none = mas.status == MaStatus::None;
    if mas.last >= max {
        mas.status = MaStatus::Overflow;
        return Some(null_mut());
    }
    match mas.status {
        MaStatus::Active => return None,
        MaStatus::None | MaStatus::Pause | MaStatus::Start => {
            mas.status = MaStatus::Start;
            walk(mas);
        }
        // Stopped before, but the limit has moved.
        MaStatus::Overflow => recover(mas),
        // The user expects to be one before the position.
        MaStatus::Underflow => {
            mas.status = MaStatus::Active;
            let entry = walk(mas);
            if !entry.is_null() {
                return Some(entry);
            }
        }
        MaStatus::Root => {}
    }
    match mas.status {
        MaStatus::Root => {
            if was_none && mas.index == 0 {
                mas.last = 0;
                return Some(null_mut());
            }
            (mas.index, mas.last) = (1, u64::MAX);
            mas.status = MaStatus::None;
            Some(null_mut())
        }
        MaStatus::None => Some(null_mut()),
        _ => None,
    }
}

/// A stopped cursor becomes active where it stands, or walks again if it has no node.
fn recover<A: MapleMemory>(mas: &mut MaState<'_, A>) {
    mas.status = MaStatus::Active;
    if mas.node.is_null() {
        mas_reset(mas);
        walk(mas);
    }
}

/// `mas_prev_setup()`
fn mas_prev_setup<A: MapleMemory>(mas: &mut MaState<'_, A>, min: u64) -> Option<*mut ()> {
    if mas.index <= min {
        mas.status = MaStatus::Underflow;
        return Some(null_mut());
    }
    match mas.status {
        MaStatus::Active => return None,
        MaStatus::Start | MaStatus::Root => {}
        MaStatus::None | MaStatus::Pause => mas.status = MaStatus::Start,
        // Stopped before, but the limit has moved.
        MaStatus::Underflow => recover(mas),
        // The user expects to be one after the position.
        MaStatus::Overflow => {
            mas.status = MaStatus::Active;
            let entry = walk(mas);
            if !entry.is_null() {
                return Some(entry);
            }
        }
    }
    if mas.status == MaStatus::Start {
        let at = mas.index;
        walk(mas);
        if mas.status == MaStatus::None {
            let root = mas.tree.ma_root.load(Acquire);
            if at > 0 && !root.is_null() && !xa_is_node(root) {
                // The walk went past an entry that is the whole tree.
                (mas.index, mas.last) = (0, 0);
                mas.status = MaStatus::Root;
                return Some(root);
            }
        }
    }
    match mas.status {
        MaStatus::Root => {
            if mas.index == 0 {
                mas.status = MaStatus::None;
                return Some(null_mut());
            }
            (mas.index, mas.last) = (0, 0);
            Some(mas.tree.ma_root.load(Acquire))
        }
        MaStatus::None => Some(null_mut()),
        _ => None,
    }
}

/// `mas_find_setup()`
fn mas_find_setup<A: MapleMemory>(mas: &mut MaState<'_, A>, max: u64) -> Option<*mut ()> {
    match mas.status {
        MaStatus::Active => return if mas.last < max { None } else { Some(null_mut()) },
        MaStatus::Start | MaStatus::Root => {}
        MaStatus::Pause | MaStatus::None => {
            if mas.last >= max {
                return Some(null_mut());
            }
            if mas.status == MaStatus::Pause {
                mas.last += 1;
            }
            mas.index = mas.last;
            mas.status = MaStatus::Start;
        }
        MaStatus::Underflow => {
            if mas.index >= max {
                mas.status = MaStatus::Overflow;
                return Some(null_mut());
            }
            mas.status = MaStatus::Active;
            let entry = walk(mas);
            if !entry.is_null() {
                return Some(entry);
            }
        }
        MaStatus::Overflow => {
            if mas.last >= max {
                return Some(null_mut());
            }
            mas.status = MaStatus::Active;
            let entry = walk(mas);
            if !entry.is_null() {
                return Some(entry);
            }
        }
    }
    if mas.status == MaStatus::Start {
        if mas.index > max {
            return Some(null_mut());
        }
        let entry = walk(mas);
        if !entry.is_null() {
            return Some(entry);
        }
    }
    match mas.status {
        MaStatus::Root => {
            mas.status = MaStatus::None;
            (mas.index, mas.last) = (1, u64::MAX);
            Some(null_mut())
        }
        MaStatus::None => Some(null_mut()),
        _ if mas.index == max => Some(null_mut()),
        _ => None,
    }
}

/// `mas_find()`: the first entry at or above `index` (first call), then the next one, up to `max`.
pub fn mas_find<A: MapleMemory>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, max: u64) -> *mut () {
    if let Some(entry) = mas_find_setup(mas, max) {
        return entry;
    }
    let entry = mas_next_slot(mas, max, false);
    if !mas.node.is_null() {
        mas.status = MaStatus::Active;
    }
    entry
}
/// `mas_next()`: the next entry after the cursor's position, up to `max`; then overflow.
pub fn mas_next<A: MapleMemory>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, max: u64) -> *mut () {
    mas_next_setup(mas, max).unwrap_or_else(|| mas_next_slot(mas, max, false))
}
/// `mas_next_range()`: the next slot, hole or not, up to `max`.
pub fn mas_next_range<A: MapleMemory>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, max: u64) -> *mut () {
    mas_next_setup(mas, max).unwrap_or_else(|| mas_next_slot(mas, max, true))
}
/// `mas_prev()`: the entry before the cursor's position, down to `min`; then underflow.
pub fn mas_prev<A: MapleMemory>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, min: u64) -> *mut () {
    mas_prev_setup(mas, min).unwrap_or_else(|| mas_prev_slot(mas, min, false))
}
/// `mas_prev_range()`: the previous slot, hole or not, down to `min`.
pub fn mas_prev_range<A: MapleMemory>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, min: u64) -> *mut () {
    mas_prev_setup(mas, min).unwrap_or_else(|| mas_prev_slot(mas, min, true))
}

/// `mt_find()`: the first entry from `index` up to `max`, under its own RCU section; moves `index` past it.
pub fn mt_find<A: Hardware>(
    cpu: &Cpu<A>,
    state: KRef<MapleState<A>>,
    mt: &MapleTree<A>,
    index: &mut u64,
    max: u64,
) -> *mut () {
    if *index > max {
        return null_mut();
    }
    let mut mas = MaState::new(mt, state, *index, *index);
    rcu_read_lock(cpu);
    let entry = mas_find(cpu, &mut mas, max);
    rcu_read_unlock(cpu);
    if !entry.is_null() {
        *index = mas.last.wrapping_add(1);
    }
    entry
}

/// `mtree_load()`: the entry at `index`, under its own RCU section.
pub fn mtree_load<A: Hardware>(cpu: &Cpu<A>, state: KRef<MapleState<A>>, mt: &MapleTree<A>, index: u64) -> *mut () {
    let mut mas = MaState::new(mt, state, index, index);
    rcu_read_lock(cpu);
    let entry = walk(&mut mas);
    rcu_read_unlock(cpu);
    entry
}

/// The node and kind behind an enode.
#[inline(always)]
pub(crate) fn decode<A: MapleMemory>(enode: Enode) -> (MapleNode<A>, MapleType) {
    (mte_to_node(enode), mte_node_type(enode))
}
