// SPDX-License-Identifier: GPL-2.0-only
//! Nodes of the tree: layouts, pointer encodings, death. Follows include/linux/maple_tree.h and the head of
//! lib/maple_tree.c, 6.12.
//!
//! ```text
//! leaf64, range64   0 parent | 8 pivot[15] | 128 slot[16]; bytes 248 (end) and 249 overlay slot[15]
//! arange64          0 parent | 8 pivot[9] | 80 slot[10] | 160 gap[10] | 240 end, 241 gap
//! dead              0 itself | 8 rcu_head | 32 kind (upper half) | 48 the tree's MapleState
//! ```
//! Slot `i` covers `pivot[i-1] + 1 ..= pivot[i]`; slot 0 starts at the node's minimum, which, like the maximum, is
//! implied by the path from the root.
//!
//! custom: a node is an address ([`MapleNode`]) whose words are reached one by one as [`Atomic`]s, since readers race
//! with slot stores and with the overlays of a dead node; the two meta bytes are read and written as the word that
//! holds them; the state pointer at 48 of a dead node stands for the kernel's global cache pointer. dup: everything
//! else. stub: dense and copy nodes, 16 and 32 bit parents.
//!
//! INVARIANT: a [`MapleNode`] or enode is only made from a word found in a tree under RCU or the writer's lock, or from
//! a fresh object of the node cache, and is not kept past that protection.

use super::memory::MapleMemory;
use crate::arch::{Acquire, Atomic, Relaxed, smp_rmb, smp_wmb};
use crate::rcu::RcuHead;
use std::marker::PhantomData;
use std::mem::offset_of;

/// `MAPLE_NODE_MASK + 1`: bytes and alignment of a node.
pub const MAPLE_NODE_SIZE: usize = 256;
/// `MAPLE_RANGE64_SLOTS`
pub const MAPLE_RANGE64_SLOTS: usize = 16;
/// `MAPLE_ARANGE64_SLOTS`
pub const MAPLE_ARANGE64_SLOTS: usize = 10;

/// `struct maple_range_64`, for its offsets only.
#[repr(C)]
struct MapleRange64 {
    parent: u64,
    pivot: [u64; MAPLE_RANGE64_SLOTS - 1],
    slot: [u64; MAPLE_RANGE64_SLOTS - 1],
    meta: u64,
}
/// `struct maple_arange_64`, for its offsets only.
#[repr(C)]
struct MapleArange64 {
    parent: u64,
    pivot: [u64; MAPLE_ARANGE64_SLOTS - 1],
    slot: [u64; MAPLE_ARANGE64_SLOTS],
    gap: [u64; MAPLE_ARANGE64_SLOTS],
    meta: u64,
    pad: u64,
}
const _: () = {
    assert!(size_of::<MapleRange64>() == MAPLE_NODE_SIZE && size_of::<MapleArange64>() == MAPLE_NODE_SIZE);
    assert!(offset_of!(MapleRange64, pivot) == 8 && offset_of!(MapleRange64, slot) == 128);
    assert!(offset_of!(MapleRange64, meta) == 248);
    assert!(offset_of!(MapleArange64, pivot) == 8 && offset_of!(MapleArange64, slot) == 80);
    assert!(offset_of!(MapleArange64, gap) == 160 && offset_of!(MapleArange64, meta) == 240);
};

const PARENT: usize = 0;
const PIVOT: usize = 8;
const RCU_HEAD: usize = 8;
const DEAD_KIND: usize = 32;
const DEAD_STATE: usize = 48;

/// `enum maple_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapleType {
    /// `maple_leaf_64`
    Leaf64 = 1,
    /// `maple_range_64`
    Range64 = 2,
    /// `maple_arange_64`
    Arange64 = 3,
}

impl MapleType {
    /// `mt_slots[]`
    #[inline(always)]
    pub const fn slots(self) -> usize {
        if self as u8 == MapleType::Arange64 as u8 { MAPLE_ARANGE64_SLOTS } else { MAPLE_RANGE64_SLOTS }
    }
    /// `mt_pivots[]`
    #[inline(always)]
    pub const fn pivots(self) -> usize {
        self.slots() - 1
    }
    /// `mt_min_slots[]`: the smallest data end of a node that is not the root.
    #[inline(always)]
    pub const fn min_end(self) -> usize {
        if self as u8 == MapleType::Arange64 as u8 { MAPLE_ARANGE64_SLOTS / 2 - 1 } else { MAPLE_RANGE64_SLOTS / 2 - 2 }
    }
    /// `ma_is_leaf()`
    #[inline(always)]
    pub const fn is_leaf(self) -> bool {
        self as u8 == MapleType::Leaf64 as u8
    }
    #[inline(always)]
    const fn slot_offset(self) -> usize {
        if self as u8 == MapleType::Arange64 as u8 {
            offset_of!(MapleArange64, slot)
        } else {
            offset_of!(MapleRange64, slot)
        }
    }
    #[inline(always)]
    const fn meta_offset(self) -> usize {
        if self as u8 == MapleType::Arange64 as u8 {
            offset_of!(MapleArange64, meta)
        } else {
            offset_of!(MapleRange64, meta)
        }
    }
}

/// `struct maple_enode *`: node address, kind << 3, and bit 2 which is always set.
pub(crate) type Enode = *mut ();

const ENODE_BIT: usize = 0x04;
const ROOT_NODE: usize = 0x02;
const PARENT_ROOT: usize = 0x01;
const PARENT_RANGE64: usize = 0x06;

/// `mt_mk_node()`
#[inline(always)]
pub(crate) fn mt_mk_node<A: MapleMemory>(node: MapleNode<A>, kind: MapleType) -> Enode {
    node.0.map_addr(|a| a | (kind as usize) << 3 | ENODE_BIT)
}
/// `mte_to_node()`
#[inline(always)]
pub(crate) fn mte_to_node<A: MapleMemory>(enode: Enode) -> MapleNode<A> {
    MapleNode(enode.map_addr(|a| a & !(MAPLE_NODE_SIZE - 1)), PhantomData)
}
/// `mte_node_type()`
#[inline(always)]
pub(crate) fn mte_node_type(enode: Enode) -> MapleType {
    match enode.addr() >> 3 & 0x0f {
        1 => MapleType::Leaf64,
        2 => MapleType::Range64,
        _ => MapleType::Arange64,
    }
}
/// `xa_is_node()`: whether a root word names a node.
#[inline(always)]
pub(crate) fn xa_is_node(root: *mut ()) -> bool {
    root.addr() & 3 == 2 && root.addr() > 4096
}
/// `mte_mk_root()`: the enode as it stands in the root word.
#[inline(always)]
pub(crate) fn mte_mk_root(enode: Enode) -> *mut () {
    enode.map_addr(|a| a | ROOT_NODE)
}
/// `mte_safe_root()`
#[inline(always)]
pub(crate) fn mte_safe_root(root: *mut ()) -> Enode {
    root.map_addr(|a| a & !ROOT_NODE)
}
/// Whether slot `word` of an inner node names a child (it may be empty, or the meta word).
#[inline(always)]
pub(crate) fn is_child(word: *mut ()) -> bool {
    word.addr() > 4096
}

/// The address of a node. See the module for what makes one valid.
pub(crate) struct MapleNode<A: MapleMemory>(*mut (), PhantomData<A>);
impl<A: MapleMemory> Clone for MapleNode<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: MapleMemory> Copy for MapleNode<A> {}
impl<A: MapleMemory> PartialEq for MapleNode<A> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.0.addr() == other.0.addr()
    }
}
impl<A: MapleMemory> std::fmt::Debug for MapleNode<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MapleNode({:p})", self.0)
    }
}

/// What a parent word says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parent<A: MapleMemory> {
    /// The node is the root.
    Root,
    /// The node is dead.
    Dead,
    /// Its parent, and the slot there.
    Node(MapleNode<A>, usize),
}

impl<A: MapleMemory> MapleNode<A> {
    /// A fresh object of the node cache.
    #[inline(always)]
    pub(crate) fn from_object(p: *mut u8) -> Self {
        debug_assert!(
            p.addr().is_multiple_of(MAPLE_NODE_SIZE),
            "the encodings need the low 8 bits of a node's address"
        );
        MapleNode(p.cast(), PhantomData)
    }
    /// The object, to give back to the cache.
    #[inline(always)]
    pub(crate) fn as_ptr(self) -> *mut u8 {
        self.0.cast()
    }

    #[inline(always)]
    fn int<'n>(self, offset: usize) -> &'n Atomic<A, u64> {
        debug_assert!(offset + 8 <= MAPLE_NODE_SIZE);
        // SAFETY: the invariant of the module: a live node.
        unsafe { A::int(self.0, offset) }
    }
    #[inline(always)]
    fn ptr<'n>(self, offset: usize) -> &'n Atomic<A, *mut ()> {
        debug_assert!(offset + 8 <= MAPLE_NODE_SIZE);
        // SAFETY: the invariant of the module: a live node.
        unsafe { A::ptr(self.0, offset) }
    }
    /// Pivot `i`: relaxed; a slot store may move one while readers look.
    #[inline(always)]
    pub(crate) fn pivot<'n>(self, i: usize) -> &'n Atomic<A, u64> {
        self.int(PIVOT + i * 8)
    }
    /// Slot `i`.
    #[inline(always)]
    pub(crate) fn slot<'n>(self, kind: MapleType, i: usize) -> &'n Atomic<A, *mut ()> {
        self.ptr(kind.slot_offset() + i * 8)
    }
    /// Gap `i` of an arange64 node.
    #[inline(always)]
    pub(crate) fn gap<'n>(self, i: usize) -> &'n Atomic<A, u64> {
        self.int(offset_of!(MapleArange64, gap) + i * 8)
    }
    /// The word of the meta bytes: end in byte 0, gap in byte 1.
    #[inline(always)]
    pub(crate) fn meta<'n>(self, kind: MapleType) -> &'n Atomic<A, u64> {
        self.int(kind.meta_offset())
    }
    /// `ma_set_meta()`
    #[inline(always)]
    pub(crate) fn set_meta(self, kind: MapleType, end: usize, gap: usize) {
        self.meta(kind).store(end as u64 | (gap as u64) << 8, Relaxed);
    }
    /// `ma_meta_gap()`
    #[inline(always)]
    pub(crate) fn meta_gap(self) -> usize {
        (self.meta(MapleType::Arange64).load(Relaxed) >> 8 & 0x0f) as usize
    }
    /// `ma_data_end()`: index of the last used slot of a node whose maximum is `max`.
    #[inline(always)]
    pub(crate) fn data_end(self, kind: MapleType, max: u64) -> usize {
        if kind == MapleType::Arange64 {
            return (self.meta(kind).load(Relaxed) & 0x0f) as usize;
        }
        let last = self.pivot(MAPLE_RANGE64_SLOTS - 2).load(Relaxed);
        if last == 0 {
            (self.meta(kind).load(Relaxed) & 0x0f) as usize
        } else if last == max {
            MAPLE_RANGE64_SLOTS - 2
        } else {
            MAPLE_RANGE64_SLOTS - 1
        }
    }
    /// `mas_safe_pivot()`: largest key of slot `i` in a node whose data end is `end` and maximum is `max`.
    #[inline(always)]
    pub(crate) fn safe_pivot(self, i: usize, end: usize, max: u64) -> u64 {
        if i < end { self.pivot(i).load(Relaxed) } else { max }
    }
    /// `mas_safe_min()`: smallest key of slot `i` in a node whose minimum is `min`.
    #[inline(always)]
    pub(crate) fn safe_min(self, i: usize, min: u64) -> u64 {
        if i == 0 { min } else { self.pivot(i - 1).load(Relaxed).wrapping_add(1) }
    }

    #[inline(always)]
    fn parent_word<'n>(self) -> &'n Atomic<A, *mut ()> {
        self.ptr(PARENT)
    }
    /// `mte_parent()` and `mte_parent_slot()`.
    #[inline(always)]
    pub(crate) fn parent(self) -> Parent<A> {
        // ORDER: acquire; meets the release fence of set_dead() that precedes mas_adopt_children(): a reader that
        // finds the new parent this way sees it filled. PORT: the kernel relies on the address dependency.
        let w = self.parent_word().load(Acquire);
        if w.addr() & PARENT_ROOT != 0 {
            return Parent::Root;
        }
        let p = MapleNode(w.map_addr(|a| a & !(MAPLE_NODE_SIZE - 1)), PhantomData);
        if p == self { Parent::Dead } else { Parent::Node(p, w.addr() >> 3 & 0x1f) }
    }
    /// `mte_set_parent()`
    #[inline(always)]
    pub(crate) fn set_parent(self, parent: MapleNode<A>, slot: usize) {
        self.parent_word().store(parent.0.map_addr(|a| a | slot << 3 | PARENT_RANGE64), Relaxed);
    }
    /// Whether the parent word names `slot` of `parent`.
    #[inline(always)]
    pub(crate) fn parent_is(self, parent: MapleNode<A>, slot: usize) -> bool {
        self.parent_word().load(Relaxed).addr() == parent.0.addr() | slot << 3 | PARENT_RANGE64
    }
    /// Takes over the parent word of `old`.
    #[inline(always)]
    pub(crate) fn copy_parent(self, old: MapleNode<A>) {
        self.parent_word().store(old.parent_word().load(Relaxed), Relaxed);
    }
    /// Makes this the root of the tree at `tree`.
    #[inline(always)]
    pub(crate) fn set_root(self, tree: *mut ()) {
        self.parent_word().store(tree.map_addr(|a| a | PARENT_ROOT), Relaxed);
    }
    /// `ma_is_root()`
    #[inline(always)]
    pub(crate) fn is_root(self) -> bool {
        self.parent_word().load(Relaxed).addr() & PARENT_ROOT != 0
    }
    /// `ma_dead_node()`: to be asked after the words of the node were read and before they are used.
    #[inline(always)]
    pub(crate) fn is_dead(self) -> bool {
        // ORDER: the loads of pivots and slots before this load; meets set_dead(). A reader that loaded what was
        // stored after a node's death (the overlays) finds it dead here.
        smp_rmb::<A>();
        let w = self.parent_word().load(Relaxed);
        w.addr() & !(MAPLE_NODE_SIZE - 1) == self.0.addr()
    }
    /// `mte_set_node_dead()`: no slot names the node any more.
    #[inline(always)]
    pub(crate) fn set_dead(self) {
        self.parent_word().store(self.0, Relaxed);
        // ORDER: death before the overlays and before the new parents of moved children; meets is_dead() and parent().
        smp_wmb::<A>();
    }

    /// The `rcu_head` of a dead node.
    #[inline(always)]
    pub(crate) fn rcu_head(self) -> *mut RcuHead<A> {
        self.as_ptr().wrapping_add(RCU_HEAD).cast()
    }
    /// The dead node whose `rcu_head` is `head`.
    #[inline(always)]
    pub(crate) fn from_rcu_head(head: *mut RcuHead<A>) -> Self {
        MapleNode(head.cast::<u8>().wrapping_sub(RCU_HEAD).cast(), PhantomData)
    }
    /// What the callback of a dead node needs: its kind (for a subtree) and the state.
    pub(crate) fn set_dead_info(self, kind: MapleType, state: *mut ()) {
        self.int(DEAD_KIND).store((kind as u64) << 32, Relaxed);
        self.ptr(DEAD_STATE).store(state, Relaxed);
    }
    /// What [`MapleNode::set_dead_info`] wrote.
    pub(crate) fn dead_info(self) -> (MapleType, *mut ()) {
        let kind = match self.int(DEAD_KIND).load(Relaxed) >> 32 {
            1 => MapleType::Leaf64,
            2 => MapleType::Range64,
            _ => MapleType::Arange64,
        };
        (kind, self.ptr(DEAD_STATE).load(Relaxed))
    }
    /// The link of an unshared node in a chain of supplied nodes.
    #[inline(always)]
    pub(crate) fn link<'n>(self) -> &'n Atomic<A, *mut ()> {
        self.ptr(PARENT)
    }
    /// Zeroes an unshared node.
    #[inline(always)]
    pub(crate) fn clear(self) {
        // SAFETY: a node that only this CPU knows.
        unsafe { A::clear_node(self.0) }
    }
    /// Makes this node equal to `from`.
    ///
    /// # Safety
    /// Nobody reads this node, nobody writes `from`.
    #[inline(always)]
    pub(crate) unsafe fn copy_from(self, from: MapleNode<A>) {
        // SAFETY: the caller's; two different nodes.
        unsafe { A::copy_words(self.0, 0, from.0, 0, MAPLE_NODE_SIZE / 8) }
    }
    /// Copies `n` pivots and `n` slots from `from_i` of `from` to `to_i` of this unshared leaf.
    #[inline(always)]
    pub(crate) fn copy_leaf(self, to_i: usize, from: MapleNode<A>, from_i: usize, n: usize) {
        let kind = MapleType::Leaf64;
        let np = n.min(kind.pivots() - from_i.min(kind.pivots())).min(kind.pivots() - to_i.min(kind.pivots()));
        // SAFETY: inside two different nodes; the source is written by the lock's holder alone, which is the caller.
        unsafe {
            A::copy_words(self.0, PIVOT + to_i * 8, from.0, PIVOT + from_i * 8, np);
            A::copy_words(self.0, kind.slot_offset() + to_i * 8, from.0, kind.slot_offset() + from_i * 8, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;

    #[test]
    fn encodings_are_the_kernels() {
        #[repr(align(256))]
        struct Raw([u64; 32]);
        let mut a = Raw([0; 32]);
        let mut b = Raw([0; 32]);
        let n = MapleNode::<Native>::from_object((&raw mut a.0).cast());
        let p = MapleNode::<Native>::from_object((&raw mut b.0).cast());
        assert_eq!(mt_mk_node(n, MapleType::Leaf64).addr(), n.0.addr() | 0x0c);
        assert_eq!(mt_mk_node(n, MapleType::Range64).addr(), n.0.addr() | 0x14);
        let e = mt_mk_node(n, MapleType::Arange64);
        assert_eq!(e.addr(), n.0.addr() | 0x1c);
        assert!(xa_is_node(mte_mk_root(e)) && mte_safe_root(mte_mk_root(e)) == e && mte_to_node::<Native>(e) == n);
        n.set_parent(p, 9);
        assert!(matches!(n.parent(), Parent::Node(q, 9) if q == p) && n.parent_is(p, 9) && !n.is_dead());
        n.set_root((&raw mut b.0).cast());
        assert!(n.is_root() && !n.is_dead());
        n.set_dead();
        assert!(n.is_dead() && matches!(n.parent(), Parent::Dead));
        assert_eq!(MapleNode::<Native>::from_rcu_head(n.rcu_head()), n);
    }
}
