// SPDX-License-Identifier: GPL-2.0-only
//! Where nodes come from and where they go [lib/maple_tree.c, 6.12 and 7.3: mas_alloc_nodes, mas_pop_node, mas_destroy,
//! ma_free_rcu, mt_free_rcu, mt_free_walk, mas_mat_destroy, __mt_destroy].
//!
//! A store asks for its worst case before it starts and gives back at once what it did not need. A replaced node is
//! marked dead and, in RCU mode, freed by one `call_rcu` of its own; a subtree whose whole content was overwritten, or
//! a destroyed tree, by one `call_rcu` in all.
//!
//! Where the node cache has sheaves, 7.3's way: more than one node come as a prefilled sheaf, which goes back whole, and
//! a replaced node goes to kfree_rcu(), which puts a sheaf's worth of them behind one grace period.
//!
//! As in the kernel the first node of a request is a single allocation and the others one bulk call, both ways.
//!
//! custom: supplied nodes hang in a chain through their first word (6.12 packs their addresses into the first node;
//! outside RCU mode it also keeps a replaced node for the cursor's next request, which here is freed). stub: the
//! maple_alloc request words.
//!
//! INVARIANT: maple_node_alloc = maple_node_free + live nodes + dead nodes waiting for RCU + supplied nodes. A node is
//! supplied when it was allocated by itself; those of a sheaf are the allocator's until they are popped, and a node given
//! to kfree_rcu() is the allocator's at once.

use super::memory::MapleMemory;
use super::node::{
    Enode, MAPLE_RANGE64_SLOTS, MapleNode, MapleType, is_child, mte_node_type, mte_safe_root, mte_to_node, xa_is_node,
};
use super::state::{MaState, MapleEvent, MapleState, MapleTree};
use crate::arch::arena::KRef;
use crate::arch::{Hardware, Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use crate::rcu::{RcuHead, call_rcu};
use crate::slab::{
    kfree_rcu, kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_alloc_from_sheaf, kmem_cache_free,
    kmem_cache_free_bulk, kmem_cache_prefill_sheaf, kmem_cache_refill_sheaf, kmem_cache_return_sheaf,
};
use std::ptr::{NonNull, null_mut};

/// `MAPLE_ALLOC_SLOTS`: nodes of one bulk request.
const MAPLE_ALLOC_SLOTS: usize = 30;

/// `mas_alloc_nodes()`: supplies the cursor with at least `n` nodes.
///
/// # Errors
/// `ENOMEM`; what was supplied stays.
#[inline]
pub(crate) fn mas_alloc_nodes<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, n: usize) -> Result<(), Errno> {
    if mas.state.node_cache.sheaf_capacity() != 0 && (n > 1 || !mas.sheaf.is_null()) {
        return mas_alloc_sheaf(cpu, mas, n as u32);
    }
    if mas.alloc_count >= n {
        return Ok(());
    }
    if mas.alloc_count == 0 {
        let p = kmem_cache_alloc(cpu, &mas.state.node_cache);
        if p.is_null() {
            return Err(Errno::ENOMEM);
        }
        cpu.count(MapleEvent::NodeAlloc);
        chain(mas, p);
    }
    if mas.alloc_count < n { mas_alloc_bulk(cpu, mas, n) } else { Ok(()) }
}

#[inline(always)]
fn chain<A: Hardware>(mas: &mut MaState<'_, A>, p: *mut u8) {
    MapleNode::<A>::from_object(p).link().store(mas.alloc, Relaxed);
    mas.alloc = p.cast();
    mas.alloc_count += 1;
}

/// The rest of [`mas_alloc_nodes`] of 6.12: all but the first node come in bulk.
#[cold]
fn mas_alloc_bulk<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, n: usize) -> Result<(), Errno> {
    while mas.alloc_count < n {
        let mut nodes = [null_mut(); MAPLE_ALLOC_SLOTS];
        let want = &mut nodes[..(n - mas.alloc_count).min(MAPLE_ALLOC_SLOTS)];
        mt_alloc_bulk(cpu, &mas.state, want)?;
        want.iter().for_each(|&p| chain(mas, p));
    }
    Ok(())
}

/// `mt_alloc_bulk()`: fills `nodes`.
///
/// # Errors
/// `ENOMEM`, with nothing allocated.
pub(super) fn mt_alloc_bulk<A: Hardware>(
    cpu: &Cpu<A>,
    state: &MapleState<A>,
    nodes: &mut [*mut u8],
) -> Result<(), Errno> {
    let n = nodes.len();
    if kmem_cache_alloc_bulk(cpu, &state.node_cache, nodes) != n {
        return Err(Errno::ENOMEM);
    }
    cpu.counters.add(MapleEvent::NodeAlloc, n as u64);
    Ok(())
}

/// `mt_free_bulk()`
///
/// # Safety
/// Nodes of this cache that nobody else knows, or knows any more.
pub(super) unsafe fn mt_free_bulk<A: Hardware>(cpu: &Cpu<A>, state: &MapleState<A>, nodes: &mut [*mut u8]) {
    cpu.counters.add(MapleEvent::NodeFree, nodes.len() as u64);
    // SAFETY: the caller's.
    unsafe { kmem_cache_free_bulk(cpu, &state.node_cache, nodes) }
}

/// `mas_alloc_nodes()` of 7.3 where more than one node is wanted, or a sheaf is held already.
///
/// # Errors
/// `ENOMEM`; what was supplied stays.
fn mas_alloc_sheaf<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, n: u32) -> Result<(), Errno> {
    free_chain(cpu, mas);
    let state = mas.state;
    if !mas.sheaf.is_null() {
        // SAFETY: this cursor's sheaf.
        return unsafe { kmem_cache_refill_sheaf(cpu, &state.node_cache, &mut mas.sheaf, n) };
    }
    mas.sheaf = kmem_cache_prefill_sheaf(cpu, &state.node_cache, n);
    if mas.sheaf.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// `mas_pop_node()`: a zeroed node out of the supply.
///
/// # Panics
/// When the store needs more nodes than its kind's worst case: a bug.
#[inline]
pub(crate) fn mas_pop_node<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>) -> MapleNode<A> {
    let node = if mas.alloc_count > 0 {
        let node = MapleNode::<A>::from_object(mas.alloc.cast());
        mas.alloc = node.link().load(Relaxed);
        mas.alloc_count -= 1;
        node
    } else {
        assert!(!mas.sheaf.is_null(), "BUG: store needs more nodes than were preallocated");
        // SAFETY: this cursor's sheaf.
        let p = unsafe { kmem_cache_alloc_from_sheaf(cpu, &mas.state.node_cache, mas.sheaf) };
        assert!(!p.is_null(), "BUG: store needs more nodes than were preallocated");
        cpu.count(MapleEvent::NodeAlloc);
        MapleNode::<A>::from_object(p)
    };
    node.clear();
    node
}

/// `mas_destroy()`, `mas_empty_nodes()`: gives unused nodes back, a sheaf of them whole.
#[inline]
pub fn mas_destroy<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>) {
    free_chain(cpu, mas);
    if !mas.sheaf.is_null() {
        // SAFETY: this cursor's sheaf, and not any longer.
        unsafe { kmem_cache_return_sheaf(cpu, &mas.state.node_cache, mas.sheaf) };
        mas.sheaf = null_mut();
    }
}

#[inline(always)]
fn free_chain<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>) {
    if mas.alloc_count > 1 {
        free_chain_bulk(cpu, mas);
    }
    if mas.alloc_count == 1 {
        free_node(cpu, &mas.state, MapleNode::from_object(mas.alloc.cast()));
        mas.alloc_count = 0;
    }
    mas.alloc = null_mut();
}

/// All but one node of the supply, in bulk.
#[cold]
fn free_chain_bulk<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>) {
    while mas.alloc_count > 1 {
        let mut nodes = [null_mut(); MAPLE_ALLOC_SLOTS];
        let mut n = 0;
        while n < MAPLE_ALLOC_SLOTS && mas.alloc_count > 1 {
            let node = MapleNode::<A>::from_object(mas.alloc.cast());
            mas.alloc = node.link().load(Relaxed);
            mas.alloc_count -= 1;
            nodes[n] = node.as_ptr();
            n += 1;
        }
        // SAFETY: supplied nodes are their cursor's alone.
        unsafe { mt_free_bulk(cpu, &mas.state, &mut nodes[..n]) }
    }
}

#[inline(always)]
pub(super) fn free_node<A: Hardware>(cpu: &Cpu<A>, state: &MapleState<A>, node: MapleNode<A>) {
    cpu.count(MapleEvent::NodeFree);
    // SAFETY: taken from this cache, out of every tree, and no reader is left (unshared, or after a grace period).
    unsafe { kmem_cache_free(cpu, &state.node_cache, node.as_ptr()) }
}

/// `mas_free()`: releases one node that was replaced and is marked dead.
#[inline]
pub(crate) fn mas_free<A: Hardware>(cpu: &Cpu<A>, mas: &MaState<'_, A>, node: MapleNode<A>) {
    cpu.count(MapleEvent::NodeDead);
    if mas.state.node_cache.sheaf_capacity() != 0 {
        // 7.3: ma_free_rcu() is kfree_rcu(), in RCU mode or not. The allocator counts as its owner from now on.
        cpu.count(MapleEvent::NodeFree);
        // SAFETY: no slot names the node any more, and nobody else frees it; its first words are a dead node's to lose.
        unsafe { kfree_rcu(cpu, &mas.state.node_cache, node.rcu_head(), node.as_ptr()) }
    } else if mas.tree.in_rcu() {
        cpu.count(MapleEvent::CallRcu);
        node.set_dead_info(MapleType::Leaf64, mas.state.as_ptr().cast());
        // SAFETY: no slot names the node any more, and only this callback frees it.
        unsafe { call_rcu(cpu, &mas.state.rcu, node.rcu_head(), mt_free_rcu) }
    } else {
        free_node(cpu, &mas.state, node);
    }
}

/// State behind a dead node.
fn dead_state<A: Hardware>(p: *mut ()) -> KRef<MapleState<A>> {
    let p = NonNull::new(p.cast::<MapleState<A>>()).expect("set_dead_info() stored it");
    // SAFETY: it was a KRef of this kernel, and callbacks run while the kernel lives.
    unsafe { KRef::new(p) }
}

/// `mt_free_rcu()`: the callback of one dead node.
unsafe fn mt_free_rcu<A: Hardware>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    let node = MapleNode::<A>::from_rcu_head(head);
    free_node(cpu, &dead_state(node.dead_info().1), node);
}

/// `mt_free_walk()`: the callback of a dead subtree.
unsafe fn mt_free_walk<A: Hardware>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    let node = MapleNode::<A>::from_rcu_head(head);
    let (kind, state) = node.dead_info();
    free_subtree(cpu, &dead_state(state), node, kind);
}

/// Frees `node` and all below it, the children of a node with one call; nobody looks any more. Slots are intact in a
/// dead node, pivots are not.
pub(super) fn free_subtree<A: Hardware>(cpu: &Cpu<A>, state: &MapleState<A>, node: MapleNode<A>, kind: MapleType) {
    free_children(cpu, state, node, kind);
    free_node(cpu, state, node);
}

fn free_children<A: Hardware>(cpu: &Cpu<A>, state: &MapleState<A>, node: MapleNode<A>, kind: MapleType) {
    if kind.is_leaf() {
        return;
    }
    let mut nodes = [null_mut(); MAPLE_RANGE64_SLOTS];
    let mut n = 0;
    for i in 0..kind.slots() {
        let child = node.slot(kind, i).load(Relaxed);
        if !is_child(child) {
            break;
        }
        let child_node = mte_to_node::<A>(child);
        free_children(cpu, state, child_node, mte_node_type(child));
        nodes[n] = child_node.as_ptr();
        n += 1;
    }
    // SAFETY: children of a node that nobody looks at any more, their own children freed.
    unsafe { mt_free_bulk(cpu, state, &mut nodes[..n]) }
}

/// Marks `enode` and all below it dead; returns how many nodes that were.
pub(super) fn set_subtree_dead<A: MapleMemory>(enode: Enode) -> u64 {
    let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
    node.set_dead();
    let mut n = 1;
    if !kind.is_leaf() {
        for i in 0..kind.slots() {
            let child = node.slot(kind, i).load(Relaxed);
            if !is_child(child) {
                break;
            }
            n += set_subtree_dead::<A>(child);
        }
    }
    n
}

/// `mte_destroy_walk()`: releases a subtree whose whole content was overwritten.
#[cold]
#[inline(never)]
pub(crate) fn mte_destroy_walk<A: Hardware>(cpu: &Cpu<A>, state: KRef<MapleState<A>>, in_rcu: bool, enode: Enode) {
    let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
    let n = set_subtree_dead::<A>(enode);
    cpu.counters.add(MapleEvent::NodeDead, n);
    if in_rcu {
        cpu.count(MapleEvent::CallRcu);
        node.set_dead_info(kind, state.as_ptr().cast());
        // SAFETY: no slot outside the subtree names a node of it; only this callback frees them.
        unsafe { call_rcu(cpu, &state.rcu, node.rcu_head(), mt_free_walk) }
    } else {
        free_subtree(cpu, &state, node, kind);
    }
}

/// `__mt_destroy()`: frees all nodes, at once outside RCU mode, else after a grace period. Entries are the caller's.
pub fn mt_destroy<A: Hardware>(cpu: &Cpu<A>, state: KRef<MapleState<A>>, mt: &MapleTree<A>) {
    let root = mt.ma_root.load(Relaxed);
    // ORDER: release as everywhere on the root word; nothing new is published.
    mt.ma_root.store(null_mut(), Release);
    if xa_is_node(root) {
        mte_destroy_walk(cpu, state, mt.in_rcu(), mte_safe_root(root));
    }
    mt.set_height(0);
}
