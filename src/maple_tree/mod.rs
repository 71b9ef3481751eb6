// SPDX-License-Identifier: GPL-2.0-only
//! Floor 5: the range tree [lib/maple_tree.c, include/linux/maple_tree.h, 6.12].
//!
//! A B-tree of 256-byte nodes over all keys `0 ..= u64::MAX`. Each key belongs to one slot, which holds an entry (for
//! the mm: a VMA) or null, a hole. All bounds are inclusive. One writer at a time, under a lock of the caller's;
//! readers hold that lock or an RCU read-side section.
//!
//! `node.rs` layouts and encodings; `state.rs` tree and cursor; `walk.rs` readers; `store.rs` stores within a leaf;
//! `rebalance.rs` stores beyond one; `gap.rs` holes; `prealloc.rs` where nodes come from and go; `validate.rs` what
//! must hold.
//!
//! `dup.rs` copies a tree for fork. In the tests `oracle.rs` holds a tree against an ordered map, `golden.rs` against the
//! kernel's own, `cost.rs` counts nodes.
//!
//! Whose rules writers follow comes with the allocator ([`MapleRules`]): trees have the shape, node for node, that they
//! have in that kernel.
//!
//! stub: dense nodes, the internal lock and its mtree_* calls, erase, insert,
//! bulk insertion, value entries, the retry loop of an allocation under a dropped lock.
//!
//! Lock order: none of its own. Nodes are freed through RCU whatever the caller does with its entries.

mod dup;
mod gap;
mod memory;
mod node;
mod prealloc;
mod rebalance;
mod state;
mod store;
mod validate;
mod walk;

#[cfg(test)]
mod cost;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod test;
#[cfg(test)]
mod torture;

#[cfg(test)]
pub(crate) use node::{Enode, MapleNode, mt_mk_node, mte_mk_root, mte_to_node};

pub use dup::__mt_dup;
pub use gap::{mas_empty_area, mas_empty_area_rev};
pub use memory::MapleMemory;
pub use node::{MAPLE_ARANGE64_SLOTS, MAPLE_NODE_SIZE, MAPLE_RANGE64_SLOTS, MapleType};
pub use prealloc::{mas_destroy, mt_destroy};
pub use state::{
    __mas_set_range, MT_FLAGS_ALLOC_RANGE, MT_FLAGS_LOCK_EXTERN, MT_FLAGS_USE_RCU, MaState, MaStatus, MapleEvent,
    MapleRules, MapleState, MapleTree, maple_tree_init, maple_tree_init_with, mas_pause, mas_reset, mas_set,
    mas_set_range, mt_clear_in_rcu, mt_set_in_rcu,
};
pub use store::{mas_preallocate, mas_store_gfp, mas_store_prealloc};
pub use validate::{TreeShape, mt_validate};
pub use walk::{mas_find, mas_next, mas_next_range, mas_prev, mas_prev_range, mas_walk, mt_find, mtree_load};
