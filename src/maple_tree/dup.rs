// SPDX-License-Identifier: GPL-2.0-only
//! A copy of a whole tree, for fork [lib/maple_tree.c, 6.12: __mt_dup, mas_dup_build, mas_dup_free].
//!
//! Node for node: 256 bytes are copied, then children and parent words are made to name the copies. The copy's leaves
//! still hold the source's entries; fork replaces each by an exact store, in a tree that is not in RCU mode yet.
//!
//! custom: by recursion; the children of a node are allocated one by one (the kernel: one bulk request).

use super::node::{
    Enode, MAPLE_NODE_SIZE, MapleNode, MapleType, is_child, mt_mk_node, mte_mk_root, mte_node_type, mte_safe_root,
    mte_to_node, xa_is_node,
};
use super::prealloc::free_subtree;
use super::state::{MapleEvent, MapleState, MapleTree};
use crate::arch::{Hardware, Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use crate::slab::kmem_cache_alloc;
use std::ptr::null_mut;

/// `__mt_dup()`: makes the empty tree `new` a copy of `mt`. The locks of both are held.
///
/// # Errors
/// `EINVAL` where `new` is not empty or the flags differ (height and RCU mode aside); `ENOMEM`, with `new` empty.
pub fn __mt_dup<A: Hardware>(
    cpu: &Cpu<A>,
    state: &MapleState<A>,
    mt: &MapleTree<A>,
    new: &MapleTree<A>,
) -> Result<(), Errno> {
    if !new.is_empty() || mt.is_alloc() != new.is_alloc() {
        return Err(Errno::EINVAL);
    }
    let root = mt.ma_root.load(Relaxed);
    if !xa_is_node(root) {
        // ORDER: release; meets mas_start().
        new.ma_root.store(root, Release);
        return Ok(());
    }
    let copy = copy_node(cpu, state, mte_safe_root(root)).ok_or(Errno::ENOMEM)?;
    mte_to_node::<A>(copy).set_root(new.as_ptr());
    new.set_height(mt.height());
    // ORDER: release; meets mas_start(): the copy is seen filled.
    new.ma_root.store(mte_mk_root(copy), Release);
    Ok(())
}

/// Copies a node and all below it; `None`, with nothing left allocated, where memory ran out.
fn copy_node<A: Hardware>(cpu: &Cpu<A>, state: &MapleState<A>, enode: Enode) -> Option<Enode> {
    let (from, kind): (MapleNode<A>, MapleType) = (mte_to_node(enode), mte_node_type(enode));
    let p = kmem_cache_alloc(cpu, &state.node_cache);
    if p.is_null() {
        return None;
    }
    cpu.count(MapleEvent::NodeAlloc);
    let node = MapleNode::<A>::from_object(p);
    // SAFETY: two whole nodes; the source is written under the lock that the caller holds, the copy is unshared.
    unsafe { A::copy(node.as_ptr(), from.as_ptr(), MAPLE_NODE_SIZE) }
    if !kind.is_leaf() {
        for i in 0..kind.slots() {
            let child = from.slot(kind, i).load(Relaxed);
            if !is_child(child) {
                break;
            }
            let Some(copy) = copy_node(cpu, state, child) else {
                // The slots from here on name the source's nodes; those before it are ours to free.
                node.slot(kind, i).store(null_mut(), Relaxed);
                free_subtree(cpu, state, node, kind);
                return None;
            };
            mte_to_node::<A>(copy).set_parent(node, i);
            node.slot(kind, i).store(copy, Relaxed);
        }
    }
    Some(mt_mk_node(node, kind))
}
