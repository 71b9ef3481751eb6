// SPDX-License-Identifier: GPL-2.0-only
//! The tree and the cursor: `struct maple_tree` and `struct ma_state` of include/linux/maple_tree.h, 6.12.
//!
//! The cursor's range is inclusive at both ends. Its status says how far `node`, `min`, `max`, `offset` and `end` may
//! be trusted; the rules by which next, prev and find move between statuses are in `walk.rs`.
//!
//! custom: the cursor carries [`MapleState`], which holds what the kernel keeps in statics. stub: the internal
//! spinlock (all trees of the port are locked from outside), the error status (errors are returned).

use super::memory::MapleMemory;
use super::node::{Enode, MapleType};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Arena, Atomic, Hardware, Plain, Relaxed};
use crate::rcu::RcuState;
use crate::slab::{KmemCache, KmemCacheArgs, SLAB_PANIC, SlabState, kmem_cache_create};
use std::ptr::null_mut;

/// `MT_FLAGS_ALLOC_RANGE`: track gaps; inner nodes are arange64.
pub const MT_FLAGS_ALLOC_RANGE: u32 = 0x01;
/// `MT_FLAGS_USE_RCU`: readers look without the lock.
pub const MT_FLAGS_USE_RCU: u32 = 0x02;
/// `MT_FLAGS_LOCK_EXTERN`
pub const MT_FLAGS_LOCK_EXTERN: u32 = 0x300;
const MT_FLAGS_HEIGHT_OFFSET: u32 = 2;
const MT_FLAGS_HEIGHT_MASK: u32 = 0x7c;

crate::counters! {
    /// What writers did, and the nodes it took.
    pub enum MapleEvent in 64..80 => {
        /// One slot replaced.
        StoreExact = "mas_store_exact",
        /// One boundary moved between two slots.
        StoreSlot = "mas_store_slot",
        /// A leaf rewritten.
        StoreNode = "mas_store_node",
        /// A slot or two added at the end of a leaf.
        StoreAppend = "mas_store_append",
        /// A leaf overflowed.
        Split = "mas_split",
        /// A leaf became too small.
        Rebalance = "mas_rebalance",
        /// The range went beyond one leaf.
        Spanning = "mas_spanning",
        /// The tree was replaced, or had no node before.
        NewRoot = "mas_new_root",
        /// Stores whose nodes were not asked for before; they are among those above.
        StoreGfp = "mas_store_gfp",
        /// Nodes taken from the cache.
        NodeAlloc = "maple_node_alloc",
        /// Nodes given back to the cache.
        NodeFree = "maple_node_free",
        /// Nodes replaced or overwritten: handed to RCU, or freed at once outside RCU mode.
        NodeDead = "maple_node_dead",
        /// `call_rcu()` calls for dead nodes; a dead subtree needs one.
        CallRcu = "maple_call_rcu",
    }
}

/// Whose rules writers follow: how many nodes a store asks for, which neighbours it takes in, how it deals slots to new
/// nodes, how far up it goes. Contents do not depend on it; node counts and shapes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapleRules {
    /// 6.12 to 6.15: requests by the tree's height; rebalance and spanning stores rebuild up to the root.
    V6_12,
    /// 6.16 to 6.19: requests by the lowest level with room; a rebalance ends where one node takes one node's place.
    V6_18,
    /// 7.x: as 6.18, and neighbours are shared out evenly where 6.x fills one of them.
    V7_3,
}

impl MapleRules {
    /// All, by the version that they are named after.
    pub const ALL: [(&str, MapleRules); 3] =
        [("6.12", MapleRules::V6_12), ("6.18", MapleRules::V6_18), ("7.3", MapleRules::V7_3)];

    /// Its version.
    pub fn name(self) -> &'static str {
        MapleRules::ALL[self as usize].0
    }
}

/// What all trees of a kernel share: the node cache and the RCU that delays node frees (the kernel's statics).
pub struct MapleState<A: Hardware> {
    /// Cache "maple_node".
    pub node_cache: KRef<KmemCache<A>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
    /// Whose rules writers follow.
    pub rules: MapleRules,
}
/// `maple_tree_init()`: with the rules of the version that the allocator is of.
pub fn maple_tree_init<A: Hardware>(arena: &Arena, slab: KRef<SlabState<A>>) -> KRef<MapleState<A>> {
    maple_tree_init_with(arena, slab, None)
}
/// [`maple_tree_init`] with rules of the caller's choice.
pub fn maple_tree_init_with<A: Hardware>(
    arena: &Arena,
    slab: KRef<SlabState<A>>,
    rules: Option<MapleRules>,
) -> KRef<MapleState<A>> {
    let node_cache = kmem_cache_create(
        arena,
        slab,
        KmemCacheArgs {
            name: "maple_node",
            size: super::node::MAPLE_NODE_SIZE,
            align: super::node::MAPLE_NODE_SIZE,
            flags: SLAB_PANIC,
            sheaf_capacity: 32,
            ..KmemCacheArgs::default()
        },
    );
    let rules = rules.unwrap_or(match node_cache.sheaf_capacity() {
        0 => MapleRules::V6_12,
        _ => MapleRules::V7_3,
    });
    arena.boot_new(0, MapleState { node_cache, rcu: slab.rcu, rules })
}

/// `struct maple_tree`, 16 bytes.
#[repr(C)]
pub struct MapleTree<A: Arch> {
    ma_lock: Plain<A, u32>,
    // Atomic: readers ask for ALLOC_RANGE while a writer changes the height bits.
    ma_flags: Atomic<A, u32>,
    /// Null, an entry over key 0 alone, or a node; see `node.rs`.
    pub(crate) ma_root: Atomic<A, *mut ()>,
}
const _: () = assert!(size_of::<MapleTree<crate::arch::Native>>() == 16);

impl<A: Arch> MapleTree<A> {
    /// `mt_init_flags()`
    pub fn new(flags: u32) -> Self {
        MapleTree { ma_lock: Plain::new(0), ma_flags: Atomic::new(flags), ma_root: Atomic::new(null_mut()) }
    }
    /// `mtree_empty()`
    pub fn is_empty(&self) -> bool {
        self.ma_root.load(Relaxed).is_null()
    }
    /// `mt_in_rcu()`
    #[inline(always)]
    pub fn in_rcu(&self) -> bool {
        self.ma_flags.load(Relaxed) & MT_FLAGS_USE_RCU != 0
    }
    /// `mt_is_alloc()`: whether gaps are tracked.
    #[inline(always)]
    pub fn is_alloc(&self) -> bool {
        self.ma_flags.load(Relaxed) & MT_FLAGS_ALLOC_RANGE != 0
    }
    /// `mt_height()`: 0 = no node, 1 = one leaf.
    #[inline(always)]
    pub fn height(&self) -> usize {
        ((self.ma_flags.load(Relaxed) & MT_FLAGS_HEIGHT_MASK) >> MT_FLAGS_HEIGHT_OFFSET) as usize
    }
    /// `mt_attr()`: the flags, height aside.
    pub(crate) fn attr(&self) -> u32 {
        self.ma_flags.load(Relaxed) & !MT_FLAGS_HEIGHT_MASK
    }
    pub(crate) fn set_height(&self, h: usize) {
        let f = self.ma_flags.load(Relaxed) & !MT_FLAGS_HEIGHT_MASK;
        self.ma_flags.store(f | (h as u32) << MT_FLAGS_HEIGHT_OFFSET, Relaxed);
    }
    /// The kind of this tree's inner nodes.
    #[inline(always)]
    pub(crate) fn inner_kind(&self) -> MapleType {
        if self.is_alloc() { MapleType::Arange64 } else { MapleType::Range64 }
    }
    /// The address, for the root's parent word.
    pub(crate) fn as_ptr(&self) -> *mut () {
        std::ptr::from_ref(self).cast_mut().cast()
    }
}
/// `mt_clear_in_rcu()`: from now on only the writer looks (exit; a child's tree while fork fills it).
pub fn mt_clear_in_rcu<A: Arch>(mt: &MapleTree<A>) {
    mt.ma_flags.store(mt.ma_flags.load(Relaxed) & !MT_FLAGS_USE_RCU, Relaxed);
}
/// `mt_set_in_rcu()`: readers may look from now on. Before the tree is shared.
pub fn mt_set_in_rcu<A: Arch>(mt: &MapleTree<A>) {
    mt.ma_flags.store(mt.ma_flags.load(Relaxed) | MT_FLAGS_USE_RCU, Relaxed);
}

/// `enum maple_status`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaStatus {
    /// `ma_active`: the position is valid.
    Active,
    /// `ma_start`: the next operation walks from the root.
    Start,
    /// `ma_root`: the tree is one entry over key 0.
    Root,
    /// `ma_none`: the tree is empty, or there is nothing here.
    None,
    /// `ma_pause`: the lock was dropped; goes on after `last`.
    Pause,
    /// `ma_overflow`: stopped at the upper limit; stands one past the position.
    Overflow,
    /// `ma_underflow`: stopped at the lower limit; stands one before the position.
    Underflow,
}

/// `struct ma_state`: the cursor. `index ..= last` is the range of interest, after a walk the range found.
pub struct MaState<'t, A: MapleMemory> {
    pub(crate) tree: &'t MapleTree<A>,
    /// Node supply and RCU.
    pub state: A::State,
    /// First key.
    pub index: u64,
    /// Last key, inclusive.
    pub last: u64,
    pub(crate) node: Enode,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) offset: usize,
    pub(crate) end: usize,
    /// How far the position can be trusted.
    pub status: MaStatus,
    /// Chain of supplied nodes.
    pub(crate) alloc: *mut (),
    pub(crate) alloc_count: usize,
    /// Prefilled sheaf of nodes, where the node cache has sheaves.
    pub(crate) sheaf: *mut A::Sheaf,
}
impl<'t, A: MapleMemory> MaState<'t, A> {
    /// `MA_STATE(mas, tree, first, last)`
    #[inline(always)]
    pub fn new(tree: &'t MapleTree<A>, state: A::State, index: u64, last: u64) -> Self {
        MaState {
            tree,
            state,
            index,
            last,
            node: null_mut(),
            min: 0,
            max: u64::MAX,
            offset: 0,
            end: 0,
            status: MaStatus::Start,
            alloc: null_mut(),
            alloc_count: 0,
            sheaf: null_mut(),
        }
    }
    /// The tree.
    pub fn tree(&self) -> &'t MapleTree<A> {
        self.tree
    }
}
impl<A: Hardware> MaState<'_, A> {
    /// Nodes held for the next store.
    pub fn supplied(&self) -> usize {
        // SAFETY: a prefilled sheaf is its cursor's until that gives it back.
        self.alloc_count + unsafe { self.sheaf.as_ref() }.map_or(0, |s| s.size() as usize)
    }
}
/// `mas_reset()`
#[inline(always)]
pub fn mas_reset<A: MapleMemory>(mas: &mut MaState<'_, A>) {
    mas.status = MaStatus::Start;
    mas.node = null_mut();
}
/// `mas_pause()`: the caller is about to drop the lock.
#[inline(always)]
pub fn mas_pause<A: MapleMemory>(mas: &mut MaState<'_, A>) {
    mas.status = MaStatus::Pause;
    mas.node = null_mut();
}
/// `mas_set_range()`: resets the cursor to the start.
#[inline(always)]
pub fn mas_set_range<A: MapleMemory>(mas: &mut MaState<'_, A>, index: u64, last: u64) {
    mas_reset(mas);
    (mas.index, mas.last) = (index, last);
}
/// `mas_set()`
#[inline(always)]
pub fn mas_set<A: MapleMemory>(mas: &mut MaState<'_, A>, index: u64) {
    mas_set_range(mas, index, index);
}
/// `__mas_set_range()`: changes the range and keeps the position, which must still contain `index`.
#[inline(always)]
pub fn __mas_set_range<A: MapleMemory>(mas: &mut MaState<'_, A>, index: u64, last: u64) {
    (mas.index, mas.last) = (index, last);
}
