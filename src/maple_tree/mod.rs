// SPDX-License-Identifier: GPL-2.0-only
//! Floor 5: the range tree. Placeholder with the final interface: a `BTreeMap` behind the root word, one thread only.

use crate::arch::arena::KRef;
use crate::arch::{Atomic, Hardware, Plain, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::rcu::RcuState;
use crate::slab::{KmemCache, SlabState};
use std::collections::BTreeMap;
use std::ptr::null_mut;

/// `MT_FLAGS_ALLOC_RANGE`
pub const MT_FLAGS_ALLOC_RANGE: u32 = 0x01;
/// `MT_FLAGS_USE_RCU`
pub const MT_FLAGS_USE_RCU: u32 = 0x02;
/// `MT_FLAGS_LOCK_EXTERN`
pub const MT_FLAGS_LOCK_EXTERN: u32 = 0x300;

/// What all trees of a kernel share: the node cache and the RCU that delays node frees (the kernel's statics).
pub struct MapleState<A: Hardware> {
    /// Cache "maple_node".
    pub node_cache: KRef<KmemCache<A>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
}
/// `maple_tree_init()`
pub fn maple_tree_init<A: Hardware>(arena: &crate::arch::Arena, slab: KRef<SlabState<A>>) -> KRef<MapleState<A>> {
    let node_cache = crate::slab::kmem_cache_create(
        arena,
        slab,
        crate::slab::KmemCacheArgs {
            name: "maple_node",
            size: 256,
            align: 256,
            flags: crate::slab::SLAB_PANIC,
            freeptr_offset: None,
            ctor: None,
        },
    );
    arena.boot_new(0, MapleState { node_cache, rcu: slab.rcu })
}

/// `struct maple_tree`, 16 bytes.
#[repr(C)]
pub struct MapleTree<A: Hardware> {
    ma_lock: Plain<A, u32>,
    ma_flags: Plain<A, u32>,
    ma_root: Atomic<A, *mut ()>,
}
type Map = BTreeMap<u64, (u64, *mut ())>;
impl<A: Hardware> MapleTree<A> {
    /// `mt_init_flags()`
    pub fn new(flags: u32) -> Self {
        MapleTree { ma_lock: Plain::new(0), ma_flags: Plain::new(flags), ma_root: Atomic::new(null_mut()) }
    }
    #[expect(clippy::mut_from_ref, reason = "placeholder")]
    fn map(&self) -> &mut Map {
        let mut p = self.ma_root.load(Relaxed).cast::<Map>();
        if p.is_null() {
            p = Box::into_raw(Box::default());
            self.ma_root.store(p.cast(), Relaxed);
        }
        // SAFETY: placeholder, one thread.
        unsafe { &mut *p }
    }
}
/// `struct ma_state`: the cursor. `index ..= last` is the range of interest, after a walk the range found.
pub struct MaState<'t, A: Hardware> {
    tree: &'t MapleTree<A>,
    /// Node supply and RCU.
    pub state: KRef<MapleState<A>>,
    /// First key.
    pub index: u64,
    /// Last key, inclusive.
    pub last: u64,
}
impl<'t, A: Hardware> MaState<'t, A> {
    /// `MA_STATE(mas, tree, first, last)`
    pub fn new(tree: &'t MapleTree<A>, state: KRef<MapleState<A>>, index: u64, last: u64) -> Self {
        MaState { tree, state, index, last }
    }
}
/// `mas_set_range()`: resets the cursor to the start.
pub fn mas_set_range<A: Hardware>(mas: &mut MaState<'_, A>, index: u64, last: u64) {
    mas.index = index;
    mas.last = last;
}
/// `mas_walk()`: the entry at `index`, or null; sets `index ..= last` to its range. Readers hold RCU or the lock.
pub fn mas_walk<A: Hardware>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>) -> *mut () {
    let m = mas.tree.map();
    let lo = m.range(..=mas.index).next_back().map(|(k, v)| (*k, *v));
    if let Some((k, (l, e))) = lo {
        if l >= mas.index {
            mas.index = k;
            mas.last = l;
            return e;
        }
    }
    let start = lo.map_or(0, |(_, (l, _))| l + 1);
    mas.last = m.range(mas.index..).next().map_or(u64::MAX, |(k, _)| k - 1);
    mas.index = start;
    null_mut()
}
/// `mas_find()`: the first entry at or above `index` (first call), then the next one, up to `max`.
pub fn mas_find<A: Hardware>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, max: u64) -> *mut () {
    let m = mas.tree.map();
    if let Some((k, (l, e))) = m.range(..=mas.index).next_back() {
        if *l >= mas.index {
            (mas.index, mas.last) = (*k, *l);
            return *e;
        }
    }
    match m.range(mas.index..).next() {
        Some((k, (l, e))) if *k <= max => {
            (mas.index, mas.last) = (*k, *l);
            *e
        }
        _ => null_mut(),
    }
}
/// `mas_next()`: the next entry after the cursor's position, up to `max`.
pub fn mas_next<A: Hardware>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, max: u64) -> *mut () {
    match mas.tree.map().range(mas.last.saturating_add(1)..).next() {
        Some((k, (l, e))) if *k <= max => {
            (mas.index, mas.last) = (*k, *l);
            *e
        }
        _ => null_mut(),
    }
}
/// `mas_prev()`: the entry before the cursor's position, down to `min`.
pub fn mas_prev<A: Hardware>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, min: u64) -> *mut () {
    match mas.tree.map().range(..mas.index).next_back() {
        Some((k, (l, e))) if *l >= min => {
            (mas.index, mas.last) = (*k, *l);
            *e
        }
        _ => null_mut(),
    }
}
/// `mas_preallocate()`: gets the nodes a store of `entry` over `index ..= last` may need.
///
/// # Errors
/// `ENOMEM`
pub fn mas_preallocate<A: Hardware>(_cpu: &Cpu<A>, _mas: &mut MaState<'_, A>, _entry: *mut ()) -> Result<(), Errno> {
    Ok(())
}
/// `mas_store_prealloc()`: stores after [`mas_preallocate`]; cannot fail.
pub fn mas_store_prealloc<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) {
    let _ = mas_store_gfp(cpu, mas, entry);
}
/// `mas_store_gfp()`: stores `entry` (null: a hole) over `index ..= last`, allocating nodes.
///
/// # Errors
/// `ENOMEM`
pub fn mas_store_gfp<A: Hardware>(_cpu: &Cpu<A>, mas: &mut MaState<'_, A>, entry: *mut ()) -> Result<(), Errno> {
    let m = mas.tree.map();
    let (a, b) = (mas.index, mas.last);
    let hit: Vec<_> = m.range(..=b).filter(|(_, (l, _))| *l >= a).map(|(k, v)| (*k, *v)).collect();
    for (k, (l, e)) in hit {
        m.remove(&k);
        if k < a {
            m.insert(k, (a - 1, e));
        }
        if l > b {
            m.insert(b + 1, (l, e));
        }
    }
    if !entry.is_null() {
        m.insert(a, (b, entry));
    }
    Ok(())
}
/// `mas_destroy()`: gives unused nodes back.
pub fn mas_destroy<A: Hardware>(_cpu: &Cpu<A>, _mas: &mut MaState<'_, A>) {}
/// `mas_empty_area_rev()`: the highest hole of `size` keys within `min ..= max`, as `index ..= last`. Writer's lock.
///
/// # Errors
/// `EBUSY` (no such hole), `EINVAL`.
pub fn mas_empty_area_rev<A: Hardware>(mas: &mut MaState<'_, A>, min: u64, max: u64, size: u64) -> Result<(), Errno> {
    let mut hi = max;
    for (k, (l, _)) in mas.tree.map().range(..=max).rev() {
        if *l < hi && hi - l >= size {
            break;
        }
        if *k == 0 {
            return Err(Errno::EBUSY);
        }
        hi = hi.min(k - 1);
    }
    if hi < min || hi - min + 1 < size {
        return Err(Errno::EBUSY);
    }
    (mas.index, mas.last) = (hi - size + 1, hi);
    Ok(())
}
/// `mt_clear_in_rcu()`: from now on only the writer looks (exit).
pub fn mt_clear_in_rcu<A: Hardware>(_mt: &MapleTree<A>) {}
/// `__mt_destroy()`: frees all nodes, at once outside RCU mode, else after a grace period.
pub fn mt_destroy<A: Hardware>(_cpu: &Cpu<A>, _state: KRef<MapleState<A>>, mt: &MapleTree<A>) {
    mt.map().clear();
}
