// SPDX-License-Identifier: GPL-2.0-only
//! Floor 4: pages and slabs. Placeholder with the final interface: objects come from the heap.

use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Arena, Hardware};
use crate::cpu::Cpu;
use crate::rcu::RcuState;
use std::alloc::{Layout, alloc, dealloc};

/// The page allocator of a kernel.
pub struct PageAllocator<A: Hardware> {
    _a: std::marker::PhantomData<A>,
}
/// What all caches share: where pages come from, which RCU delays them, for how many CPUs the geometry is.
pub struct SlabState<A: Hardware> {
    /// Pages.
    pub pages: KRef<PageAllocator<A>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
}
/// `SLAB_HWCACHE_ALIGN`
pub const SLAB_HWCACHE_ALIGN: u32 = 1;
/// `SLAB_TYPESAFE_BY_RCU`
pub const SLAB_TYPESAFE_BY_RCU: u32 = 2;
/// `SLAB_PANIC`
pub const SLAB_PANIC: u32 = 4;
/// `SLAB_ACCOUNT`
pub const SLAB_ACCOUNT: u32 = 8;

/// Arguments of `kmem_cache_create()`.
#[derive(Clone, Copy, Debug)]
pub struct KmemCacheArgs {
    /// Name, as in slabinfo; also the simulator's label.
    pub name: &'static str,
    /// Bytes of an object.
    pub size: usize,
    /// Alignment wanted (0 or 8: natural).
    pub align: usize,
    /// `SLAB_*`.
    pub flags: u32,
    /// Custom free-pointer offset.
    pub freeptr_offset: Option<usize>,
    /// Constructor, once per object when a slab is built.
    pub ctor: Option<unsafe fn(*mut u8)>,
}
/// `struct kmem_cache`
pub struct KmemCache<A: Hardware> {
    size: usize,
    align: usize,
    _a: std::marker::PhantomData<A>,
}
/// `mm_init()`: takes what boot left of every node.
pub fn page_alloc_init<A: Hardware>(
    arena: &Arena,
    _nr_cpus: u32,
    _node_of: &dyn Fn(u32) -> u32,
) -> KRef<PageAllocator<A>> {
    arena.boot_new(0, PageAllocator { _a: std::marker::PhantomData })
}
/// `alloc_pages()`: 2^order pages near the CPU's node; null when there are none.
pub fn alloc_pages<A: Hardware>(_cpu: &Cpu<A>, _pa: &PageAllocator<A>, order: u32) -> *mut u8 {
    // SAFETY: nonzero size.
    unsafe { alloc(Layout::from_size_align(PAGE_SIZE << order, PAGE_SIZE).expect("small")) }
}
/// `free_pages()`
///
/// # Safety
/// `p` came from [`alloc_pages`] with `order`.
pub unsafe fn free_pages<A: Hardware>(_cpu: &Cpu<A>, _pa: &PageAllocator<A>, p: *mut u8, order: u32) {
    // SAFETY: the caller's.
    unsafe { dealloc(p, Layout::from_size_align(PAGE_SIZE << order, PAGE_SIZE).expect("small")) }
}
/// `kmem_cache_create()`, at boot.
pub fn kmem_cache_create<A: Hardware>(arena: &Arena, _s: KRef<SlabState<A>>, a: KmemCacheArgs) -> KRef<KmemCache<A>> {
    arena.boot_new(0, KmemCache { size: a.size, align: a.align.max(64), _a: std::marker::PhantomData })
}
/// `kmem_cache_alloc()`: null when out of memory. The object's bytes are arbitrary.
#[inline]
pub fn kmem_cache_alloc<A: Hardware>(_cpu: &Cpu<A>, s: &KmemCache<A>) -> *mut u8 {
    // SAFETY: nonzero size.
    unsafe { alloc(Layout::from_size_align(s.size, s.align).expect("small")) }
}
/// `kmem_cache_free()`
///
/// # Safety
/// `p` is an allocated object of `s` that nobody else will free.
#[inline]
pub unsafe fn kmem_cache_free<A: Hardware>(_cpu: &Cpu<A>, s: &KmemCache<A>, p: *mut u8) {
    // SAFETY: the caller's.
    unsafe { dealloc(p, Layout::from_size_align(s.size, s.align).expect("small")) }
}
