// SPDX-License-Identifier: GPL-2.0-only
//! A copy of a whole tree, for fork [lib/maple_tree.c, 6.12 and 7.3: __mt_dup, mas_dup_build, mas_dup_alloc,
//! mas_dup_free].
//!
//! Node for node: 256 bytes are copied, then children and parent words are made to name the copies. The children of a
//! node are allocated together, in one bulk call or out of a sheaf that is kept until the end. The copy's leaves still
//! hold the source's entries; fork replaces each by an exact store, in a tree that is not in RCU mode yet.
//!
//! custom: by recursion, which visits and allocates in the kernel's order.

use super::node::{
    Enode, MAPLE_NODE_SIZE, MAPLE_RANGE64_SLOTS, MapleNode, MapleType, is_child, mt_mk_node, mte_mk_root,
    mte_node_type, mte_safe_root, mte_to_node, xa_is_node,
};
use super::prealloc::{free_node, free_subtree, mas_alloc_nodes, mas_destroy, mas_pop_node, mt_alloc_bulk};
use super::state::{MaState, MapleEvent, MapleState, MapleTree};
use crate::arch::arena::KRef;
use crate::arch::{Hardware, Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use crate::slab::kmem_cache_alloc;
use std::ptr::null_mut;

/// `__mt_dup()`: makes the empty tree `new` a copy of `mt`. The locks of both are held.
///
/// # Errors
/// `EINVAL` where `new` is not empty or the flags differ; `ENOMEM`, with `new` empty.
pub fn __mt_dup<A: Hardware>(
    cpu: &Cpu<A>,
    state: KRef<MapleState<A>>,
    mt: &MapleTree<A>,
    new: &MapleTree<A>,
) -> Result<(), Errno> {
    if !new.is_empty() || mt.attr() != new.attr() {
        return Err(Errno::EINVAL);
    }
    let root = mt.ma_root.load(Relaxed);
    if !xa_is_node(root) {
        // ORDER: release; meets mas_start().
        new.ma_root.store(root, Release);
        return Ok(());
    }
    let p = kmem_cache_alloc(cpu, &state.node_cache);
    if p.is_null() {
        return Err(Errno::ENOMEM);
    }
    cpu.count(MapleEvent::NodeAlloc);
    let node = MapleNode::<A>::from_object(p);
    let from = mte_safe_root(root);
    // The cursor only holds the supply.
    let mut mas = MaState::new(mt, state, 0, 0);
    let done = copy_node(cpu, &mut mas, from, node);
    mas_destroy(cpu, &mut mas);
    if done.is_err() {
        free_node(cpu, &state, node);
        return done;
    }
    node.set_root(new.as_ptr());
    new.set_height(mt.height());
    // ORDER: release; meets mas_start(): the copy is seen filled.
    new.ma_root.store(mte_mk_root(mt_mk_node(node, mte_node_type(from))), Release);
    Ok(())
}

/// `mas_copy_node()` and `mas_dup_alloc()`: makes `node` a copy of the node behind `enode`, with copies of all below.
///
/// # Errors
/// `ENOMEM`; nothing is left allocated but `node`, which names no copy.
fn copy_node<A: Hardware>(
    cpu: &Cpu<A>,
    mas: &mut MaState<'_, A>,
    enode: Enode,
    node: MapleNode<A>,
) -> Result<(), Errno> {
    let (from, kind): (MapleNode<A>, MapleType) = (mte_to_node(enode), mte_node_type(enode));
    // SAFETY: two whole nodes; the source is written under the lock that the caller holds, the copy is unshared.
    unsafe { A::copy(node.as_ptr(), from.as_ptr(), MAPLE_NODE_SIZE) }
    if kind.is_leaf() {
        return Ok(());
    }
    let mut children = [null_mut(); MAPLE_RANGE64_SLOTS];
    let n = (0..kind.slots()).take_while(|&i| is_child(from.slot(kind, i).load(Relaxed))).count();
    let children = &mut children[..n];
    if mas.state.node_cache.sheaf_capacity() == 0 {
        mt_alloc_bulk(cpu, &mas.state, children)?;
    } else {
        mas_alloc_nodes(cpu, mas, n)?;
        for p in children.iter_mut() {
            *p = mas_pop_node(cpu, mas).as_ptr();
        }
    }
    for (i, &p) in children.iter().enumerate() {
        let (source, copy) = (from.slot(kind, i).load(Relaxed), MapleNode::<A>::from_object(p));
        if let Err(e) = copy_node(cpu, mas, source, copy) {
            // Before the failure whole subtrees, from it on single nodes that name none of ours.
            for (j, &p) in children.iter().enumerate() {
                let (copy, below) = (MapleNode::from_object(p), mte_node_type(from.slot(kind, j).load(Relaxed)));
                if j < i {
                    free_subtree(cpu, &mas.state, copy, below);
                } else {
                    free_node(cpu, &mas.state, copy);
                }
            }
            return Err(e);
        }
        copy.set_parent(node, i);
        node.slot(kind, i).store(mt_mk_node(copy, mte_node_type(source)), Relaxed);
    }
    Ok(())
}
