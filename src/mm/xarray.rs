// SPDX-License-Identifier: GPL-2.0-only
//! Pages of a file by number [lib/xarray.c, include/linux/xarray.h, 6.12].
//!
//! A tree of nodes of 64 slots whose height follows the largest index; an entry at index 0 alone needs no node. Readers
//! take no lock; a writer holds `xa_lock`.
//!
//! stub: marks, value entries, large folios, removal of single entries: pages leave a cache together, when nobody looks
//! any more. So nodes are freed at once, where the kernel's readers need RCU. custom: a node that is missing is allocated
//! under the lock.

use crate::arch::arena::KRef;
use crate::arch::{Acquire, Atomic, Hardware, Native, Plain, Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use crate::slab::{KmemCache, KmemCacheArgs, SLAB_ACCOUNT, SLAB_PANIC, kmem_cache_alloc, kmem_cache_free};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_unlock};
use std::ptr::{NonNull, null_mut};

/// log2 of the slots of a node.
const XA_CHUNK_SHIFT: u32 = 6;
const XA_CHUNK_SIZE: usize = 1 << XA_CHUNK_SHIFT;
/// In an entry: it is a node.
const NODE: usize = 2;

/// `struct xa_node`, 576 bytes.
#[repr(C)]
struct XaNode<A: Hardware> {
    /// Bits of the index below this node's own.
    shift: Plain<A, u32>,
    count: Plain<A, u32>,
    _parent_array_list: [u64; 4],
    slots: [Atomic<A, *mut ()>; XA_CHUNK_SIZE],
    _marks: [u64; 3],
}
const _: () = assert!(size_of::<XaNode<Native>>() == 576);

/// `struct xarray`
#[repr(C)]
pub struct Xarray<A: Hardware> {
    /// Guards writers against each other.
    pub xa_lock: RawSpinLock<A>,
    xa_head: Atomic<A, *mut ()>,
}

/// The cache of nodes.
pub fn radix_tree_node_args<A: Hardware>() -> KmemCacheArgs {
    KmemCacheArgs {
        name: "radix_tree_node",
        size: size_of::<XaNode<A>>(),
        align: 8,
        flags: SLAB_PANIC | SLAB_ACCOUNT,
        ..KmemCacheArgs::default()
    }
}

fn xa_to_node<A: Hardware>(entry: *mut ()) -> Option<KRef<XaNode<A>>> {
    let p = (entry as usize & NODE != 0).then(|| entry.wrapping_byte_sub(NODE).cast::<XaNode<A>>())?;
    // SAFETY: an entry with the tag is a node that lives as long as its tree.
    NonNull::new(p).map(|p| unsafe { KRef::new(p) })
}

fn xa_mk_node<A: Hardware>(node: KRef<XaNode<A>>) -> *mut () {
    node.as_ptr().cast::<()>().wrapping_byte_add(NODE)
}

impl<A: Hardware> XaNode<A> {
    #[inline(always)]
    fn slot(&self, index: u64) -> &Atomic<A, *mut ()> {
        &self.slots[(index >> self.shift.get()) as usize & (XA_CHUNK_SIZE - 1)]
    }
    /// Whether `index` lies below a node of `shift`.
    fn covers(shift: u32, index: u64) -> bool {
        let bits = shift + XA_CHUNK_SHIFT;
        bits >= u64::BITS || index >> bits == 0
    }
}

fn node_alloc<A: Hardware>(cpu: &Cpu<A>, cache: &KmemCache<A>, shift: u32) -> Result<KRef<XaNode<A>>, Errno> {
    let p = NonNull::new(kmem_cache_alloc(cpu, cache).cast::<XaNode<A>>()).ok_or(Errno::ENOMEM)?;
    // SAFETY: a fresh object of the nodes' cache.
    unsafe {
        p.write(XaNode {
            shift: Plain::new(shift),
            count: Plain::new(0),
            _parent_array_list: [0; 4],
            slots: std::array::from_fn(|_| Atomic::new(null_mut())),
            _marks: [0; 3],
        });
        Ok(KRef::new(p))
    }
}

impl<A: Hardware> Xarray<A> {
    /// An empty array.
    pub fn new() -> Self {
        Xarray { xa_lock: RawSpinLock::new(), xa_head: Atomic::new(null_mut()) }
    }
}
impl<A: Hardware> Default for Xarray<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `xa_load()`: the entry at `index`, or null.
pub fn xa_load<A: Hardware>(xa: &Xarray<A>, index: u64) -> *mut () {
    // ORDER: acquire stands for the address dependency, here and below; meets the release stores of xa_insert().
    let mut entry = xa.xa_head.load(Acquire);
    let mut first = true;
    while let Some(node) = xa_to_node::<A>(entry) {
        if first && !XaNode::<A>::covers(node.shift.get(), index) {
            return null_mut();
        }
        first = false;
        entry = node.slot(index).load(Acquire);
    }
    if first && index != 0 { null_mut() } else { entry }
}

/// `xa_insert()`: puts `entry` at `index`, unless there is one already: then that one is returned.
///
/// # Errors
/// `ENOMEM`; nodes added on the way stay.
pub fn xa_insert<A: Hardware>(
    cpu: &Cpu<A>,
    cache: &KmemCache<A>,
    xa: &Xarray<A>,
    index: u64,
    entry: *mut (),
) -> Result<Option<*mut ()>, Errno> {
    raw_spin_lock(cpu, &xa.xa_lock);
    let r = __xa_insert(cpu, cache, xa, index, entry);
    raw_spin_unlock(cpu, &xa.xa_lock);
    r
}

fn __xa_insert<A: Hardware>(
    cpu: &Cpu<A>,
    cache: &KmemCache<A>,
    xa: &Xarray<A>,
    index: u64,
    entry: *mut (),
) -> Result<Option<*mut ()>, Errno> {
    // xas_expand(): until the root covers the index.
    let mut node = loop {
        let head = xa.xa_head.load(Relaxed);
        let root = xa_to_node::<A>(head);
        match root {
            Some(n) if XaNode::<A>::covers(n.shift.get(), index) => break n,
            None if index == 0 && head.is_null() => {
                // ORDER: release; meets xa_load(): the entry's memory before the entry.
                xa.xa_head.store(entry, Release);
                return Ok(None);
            }
            None if index == 0 => return Ok(Some(head)),
            _ => {}
        }
        let shift = match root {
            Some(n) => n.shift.get() + XA_CHUNK_SHIFT,
            // Nothing below: at once as high as the index asks for.
            None if head.is_null() => {
                (0..).step_by(XA_CHUNK_SHIFT as usize).find(|&s| XaNode::<A>::covers(s, index)).expect("64 bits end")
            }
            None => 0,
        };
        let new = node_alloc(cpu, cache, shift)?;
        if !head.is_null() {
            new.slots[0].store(head, Relaxed);
            new.count.set(1);
        }
        // ORDER: release; meets xa_load(): a node is seen filled.
        xa.xa_head.store(xa_mk_node(new), Release);
    };
    loop {
        let slot = node.slot(index);
        let here = slot.load(Relaxed);
        if node.shift.get() == 0 {
            if !here.is_null() {
                return Ok(Some(here));
            }
            node.count.set(node.count.get() + 1);
            // ORDER: release; meets xa_load(): the entry's memory before the entry.
            slot.store(entry, Release);
            return Ok(None);
        }
        node = match xa_to_node(here) {
            Some(n) => n,
            None => {
                let new = node_alloc(cpu, cache, node.shift.get() - XA_CHUNK_SHIFT)?;
                node.count.set(node.count.get() + 1);
                // ORDER: release; meets xa_load(): a node is seen filled.
                slot.store(xa_mk_node(new), Release);
                new
            }
        };
    }
}

/// `xa_destroy()` after `f` saw each entry, in order of their indices. Nobody else uses the array.
pub fn xa_destroy<A: Hardware>(cpu: &Cpu<A>, cache: &KmemCache<A>, xa: &Xarray<A>, mut f: impl FnMut(*mut ())) {
    let head = xa.xa_head.load(Relaxed);
    xa.xa_head.store(null_mut(), Relaxed);
    destroy(cpu, cache, head, &mut f);
}

fn destroy<A: Hardware>(cpu: &Cpu<A>, cache: &KmemCache<A>, entry: *mut (), f: &mut impl FnMut(*mut ())) {
    match xa_to_node::<A>(entry) {
        Some(node) => {
            for s in &node.slots {
                destroy(cpu, cache, s.load(Relaxed), f);
            }
            // SAFETY: its entries are gone and nobody else uses the array.
            unsafe { kmem_cache_free(cpu, cache, node.as_ptr().cast()) };
        }
        None if !entry.is_null() => f(entry),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::shutdown;
    use crate::mm::tests::{Boot, config, machine};
    use crate::mm::vma_cache::VmaCache;
    use crate::slab::Allocator;
    use std::collections::BTreeMap;

    type K = crate::mm::kconfig::Config<Native, crate::mm::vma_lock::refcnt::Refcnt>;

    #[test]
    fn an_array_is_what_a_map_says() {
        let m = machine(1);
        let k = crate::init::start_kernel::<K>(&m, &config(Boot { slab: Allocator::Slub, cache: VmaCache::Typesafe }));
        let cpu = k.cpu(0);
        let cache = k.files.radix_tree_node_cachep;
        let mut r = 5u64;
        for bits in [0, 3, 6, 7, 12, 13, 30, 64] {
            let xa = Xarray::<Native>::new();
            let mut map = BTreeMap::new();
            for i in 0..300u64 {
                r = crate::cpu::splitmix64(r);
                let index = if bits == 64 { r } else { r & ((1 << bits) - 1) };
                let entry = ((i + 1) << 6) as *mut ();
                let old = xa_insert(&cpu, &cache, &xa, index, entry).unwrap();
                assert_eq!(old, map.get(&index).copied(), "{bits} bits, {index:#x}");
                map.entry(index).or_insert(entry);
                let near = index ^ (r >> 60);
                assert_eq!(xa_load(&xa, near), map.get(&near).copied().unwrap_or(null_mut()));
                assert_eq!(xa_load(&xa, index), map[&index]);
            }
            let mut seen = Vec::new();
            xa_destroy(&cpu, &cache, &xa, |e| seen.push(e));
            assert_eq!(seen, map.values().copied().collect::<Vec<_>>(), "{bits} bits, in order");
            assert!(xa_load(&xa, 0).is_null());
        }
        assert!(shutdown(&cpu, &k).is_clean());
    }
}
