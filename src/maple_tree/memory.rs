// SPDX-License-Identifier: GPL-2.0-only
//! The seam below readers and writers of the tree: how the words of a node are reached, where nodes come from and where
//! they go. Every world with real memory has it through `prealloc.rs`; the model checker, whose words are larger than
//! their values, brings nodes of its own (`model/maple.rs`), so that it runs the same readers and writers.
//!
//! custom: all of it; the kernel has no such seam.

use super::node::{Enode, MAPLE_NODE_SIZE, MapleNode};
use super::prealloc::{mas_alloc_nodes, mas_destroy, mas_free, mas_pop_node, mte_destroy_walk};
use super::state::{MaState, MapleRules, MapleState};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Hardware};
use crate::cpu::{Cpu, Errno};
use crate::slab::SlabSheaf;

/// See the module.
pub trait MapleMemory: Arch {
    /// What a cursor carries: where nodes come from.
    type State: Copy;
    /// What holds many nodes for a cursor.
    type Sheaf;

    /// Whose rules writers follow.
    fn rules(state: Self::State) -> MapleRules;
    /// Word `offset` (bytes) of a node, as a number.
    ///
    /// # Safety
    /// `node` is a node that lives as long as the reference is used; `offset` is a multiple of 8 below 256.
    unsafe fn int<'n>(node: *mut (), offset: usize) -> &'n Atomic<Self, u64>;
    /// The same word, as a pointer.
    ///
    /// # Safety
    /// As [`MapleMemory::int`].
    unsafe fn ptr<'n>(node: *mut (), offset: usize) -> &'n Atomic<Self, *mut ()>;
    /// Zeroes a node.
    ///
    /// # Safety
    /// A node that nobody else knows.
    unsafe fn clear_node(node: *mut ());
    /// Copies `n` words.
    ///
    /// # Safety
    /// Inside two different nodes; nobody else knows `to`, nobody writes `from`.
    unsafe fn copy_words(to: *mut (), to_offset: usize, from: *mut (), from_offset: usize, n: usize);

    /// `mas_alloc_nodes()`
    ///
    /// # Errors
    /// `ENOMEM`
    fn alloc_nodes(cpu: &Cpu<Self>, mas: &mut MaState<'_, Self>, n: usize) -> Result<(), Errno>;
    /// `mas_pop_node()`: a zeroed node.
    #[expect(private_interfaces, reason = "only this module's files call or implement it")]
    fn pop_node(cpu: &Cpu<Self>, mas: &mut MaState<'_, Self>) -> MapleNode<Self>;
    /// `mas_destroy()`: gives what is left back.
    fn give_back(cpu: &Cpu<Self>, mas: &mut MaState<'_, Self>);
    /// `mas_free()`: releases one dead node.
    #[expect(private_interfaces, reason = "only this module's files call or implement it")]
    fn free(cpu: &Cpu<Self>, mas: &MaState<'_, Self>, node: MapleNode<Self>);
    /// `mte_destroy_walk()`: marks a subtree dead and releases it.
    fn destroy_walk(cpu: &Cpu<Self>, mas: &MaState<'_, Self>, enode: Enode);
    /// A reader met a dead node and starts again. The model checker lets others run here; elsewhere nothing.
    #[inline(always)]
    fn starts_again() {}
}

impl<A: Hardware> MapleMemory for A {
    type State = KRef<MapleState<A>>;
    type Sheaf = SlabSheaf<A>;

    #[inline(always)]
    fn rules(state: KRef<MapleState<A>>) -> MapleRules {
        state.rules
    }
    #[inline(always)]
    unsafe fn int<'n>(node: *mut (), offset: usize) -> &'n Atomic<A, u64> {
        // SAFETY: 256 live bytes, only ever accessed through atomics of 8 bytes (or unshared, by clear and copy). A cell
        // of a `Hardware` world is as large as its value.
        unsafe { &*node.byte_add(offset).cast() }
    }
    #[inline(always)]
    unsafe fn ptr<'n>(node: *mut (), offset: usize) -> &'n Atomic<A, *mut ()> {
        // SAFETY: as above.
        unsafe { &*node.byte_add(offset).cast() }
    }
    #[inline(always)]
    unsafe fn clear_node(node: *mut ()) {
        // SAFETY: the caller's.
        unsafe { A::clear(node.cast(), MAPLE_NODE_SIZE) }
    }
    #[inline(always)]
    unsafe fn copy_words(to: *mut (), to_offset: usize, from: *mut (), from_offset: usize, n: usize) {
        // SAFETY: the caller's.
        unsafe { A::copy(to.byte_add(to_offset).cast(), from.byte_add(from_offset).cast(), n * 8) }
    }

    #[inline(always)]
    fn alloc_nodes(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, n: usize) -> Result<(), Errno> {
        mas_alloc_nodes(cpu, mas, n)
    }
    #[expect(private_interfaces, reason = "as in the trait")]
    #[inline(always)]
    fn pop_node(cpu: &Cpu<A>, mas: &mut MaState<'_, A>) -> MapleNode<A> {
        mas_pop_node(cpu, mas)
    }
    #[inline(always)]
    fn give_back(cpu: &Cpu<A>, mas: &mut MaState<'_, A>) {
        mas_destroy(cpu, mas);
    }
    #[expect(private_interfaces, reason = "as in the trait")]
    #[inline(always)]
    fn free(cpu: &Cpu<A>, mas: &MaState<'_, A>, node: MapleNode<A>) {
        mas_free(cpu, mas, node);
    }
    #[inline(always)]
    fn destroy_walk(cpu: &Cpu<A>, mas: &MaState<'_, A>, enode: Enode) {
        mte_destroy_walk(cpu, mas.state, mas.tree.in_rcu(), enode);
    }
}
