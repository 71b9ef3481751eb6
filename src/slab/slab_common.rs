// SPDX-License-Identifier: GPL-2.0-only
//! Creating, shrinking and destroying caches [mm/slab_common.c; the geometry of mm/slub.c, 6.12 and 7.3].
//!
//! dup: alignment, place of the free pointer, slab order by CPU count, bounds of the partial lists, kmalloc classes,
//! shrinking with its re-sorting, destruction that waits for type-stable slabs. custom: the CPU count of the geometry
//! is a parameter. Caches are never merged: a vm_area_struct of 6.12 may share slabs with strangers of its size in a
//! real kernel. A cache that cannot be created is a mistake of the program, so creation panics (SLAB_PANIC).
//! stub: the other kmalloc families, user-copy windows, debugging.

use super::kvfree_rcu::kvfree_rcu_barrier_on_cache;
use super::page_alloc::{MAX_PAGE_ORDER, PAGE_ALLOC_COSTLY_ORDER, boot_slice};
use super::sheaf::{
    calculate_sheaf_capacity, init_barns, init_percpu_sheaves, own_percpu_sheaves, pcs_destroy, shrink_barns,
};
use super::slub::{dec_slabs_node, discard_slab, flush_all_cpus, free_slab, is_typesafe};
use super::slub_def::{KmemCache, KmemCacheCpu, KmemCacheNode, Slab};
use super::{Allocator, SlabState};
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Arena, Hardware, Plain, Relaxed};
use crate::cpu::{Cpu, Errno, PerCpu, splitmix64};
use crate::rcu::rcu_barrier;
use crate::sync::raw_spin_unlock;
use std::ptr::null_mut;

/// `SLAB_HWCACHE_ALIGN`
pub const SLAB_HWCACHE_ALIGN: u32 = 1;
/// `SLAB_TYPESAFE_BY_RCU`
pub const SLAB_TYPESAFE_BY_RCU: u32 = 2;
/// `SLAB_PANIC`
pub const SLAB_PANIC: u32 = 4;
/// `SLAB_NO_SHEAVES`: 7.3, for caches that sheaves themselves come from.
pub const SLAB_NO_SHEAVES: u32 = 1 << 8;
/// `SLAB_ACCOUNT`: objects are charged where [`SlabOptions::memcg`](super::SlabOptions::memcg) asks for it.
pub const SLAB_ACCOUNT: u32 = 8;

/// Smallest alignment of x86-64 and arm64.
const ARCH_SLAB_MINALIGN: usize = 8;
const MIN_PARTIAL: u64 = 5;
const MAX_PARTIAL: u64 = 10;
/// Free objects up to which shrinking sorts slabs.
const SHRINK_PROMOTE_MAX: usize = 32;

/// Arguments of `kmem_cache_create()`.
#[derive(Clone, Copy, Debug, Default)]
pub struct KmemCacheArgs {
    /// Name, as in slabinfo.
    pub name: &'static str,
    /// What its objects are, for the simulator's counts, where the name does not say it.
    pub label: Option<&'static str>,
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
    /// A 6.12 with patch v5 5/6 of 2024-12-06: `freeptr_offset` counts although there is a constructor, which then must
    /// leave that word alone. Sheaves (7.x) have it always.
    pub freeptr_with_ctor: bool,
    /// Objects of a sheaf asked for; the allocator may make it more (7.x: `kmem_cache_args.sheaf_capacity`).
    pub sheaf_capacity: u32,
}

/// Where everything in a slab lies (`calculate_sizes()`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes from one object to the next.
    pub size: usize,
    /// Offset of the free pointer.
    pub offset: usize,
    /// Order of a slab.
    pub order: u32,
    /// Objects of a slab.
    pub objects: u32,
    /// Order and objects of the smallest slab.
    pub min: (u32, u32),
    /// Bound of a CPU's partial stack, slabs.
    pub cpu_partial_slabs: u32,
    /// Empty slabs a node keeps.
    pub min_partial: u64,
    /// Objects of a sheaf; 0 without sheaves.
    pub sheaf_capacity: u32,
}

/// `calculate_alignment()`; `line`: bytes of a cache line.
pub fn calculate_alignment(flags: u32, align: usize, size: usize, line: usize) -> usize {
    let mut align = align;
    if flags & SLAB_HWCACHE_ALIGN != 0 {
        let mut r = line;
        while size <= r / 2 {
            r /= 2;
        }
        align = align.max(r);
    }
    align.max(ARCH_SLAB_MINALIGN).next_multiple_of(size_of::<usize>())
}

/// `calculate_order()` for `nr_cpus` present CPUs, at least 1.
pub fn calculate_order(size: usize, nr_cpus: u32) -> u32 {
    let min_objects = 4 * (u32::BITS - nr_cpus.leading_zeros() + 1) as usize;
    let max_objects = order_objects(PAGE_ALLOC_COSTLY_ORDER, size).max(1) as usize;
    let min_order = get_order(min_objects.min(max_objects) * size);
    for fraction in [16, 8, 4, 2] {
        for order in min_order..=PAGE_ALLOC_COSTLY_ORDER {
            let bytes = PAGE_SIZE << order;
            if bytes % size <= bytes / fraction {
                return order;
            }
        }
    }
    get_order(size)
}

/// `get_order()`
fn get_order(bytes: usize) -> u32 {
    bytes.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros()
}

fn order_objects(order: u32, size: usize) -> u32 {
    ((PAGE_SIZE << order) / size) as u32
}

/// `calculate_sizes()`, `set_cpu_partial()` and what `do_kmem_cache_create()` adds, as 6.12 does.
///
/// # Errors
/// `EINVAL` for an object of no or too many bytes, or a custom offset where there is none.
pub fn calculate_sizes(a: &KmemCacheArgs, nr_cpus: u32, line: usize) -> Result<Geometry, Errno> {
    calculate_sizes_for(a, nr_cpus, line, Allocator::Slub)
}

/// As [`calculate_sizes`], for either allocator. 7.3 has sheaves instead of CPU stacks, and allows a custom offset to
/// a cache with a constructor too.
///
/// # Errors
/// As [`calculate_sizes`].
pub fn calculate_sizes_for(
    a: &KmemCacheArgs,
    nr_cpus: u32,
    line: usize,
    allocator: Allocator,
) -> Result<Geometry, Errno> {
    let sheaves = allocator == Allocator::Sheaves;
    let word = size_of::<usize>();
    let typesafe = is_typesafe(a.flags);
    if a.size < word || a.align != 0 && !a.align.is_power_of_two() {
        return Err(Errno::EINVAL);
    }
    if let Some(o) = a.freeptr_offset
        && (!(typesafe || sheaves && a.ctor.is_some()) || o % word != 0 || o + word > a.size)
    {
        return Err(Errno::EINVAL);
    }
    let mut size = a.size.next_multiple_of(word);
    let offset = match a.freeptr_offset {
        // Outside the object: what a freed object holds must stay readable, or constructed.
        _ if a.ctor.is_some() && !sheaves && !a.freeptr_with_ctor => None,
        None if typesafe || a.ctor.is_some() => None,
        Some(o) => Some(o),
        None => Some(a.size / 2 / word * word),
    };
    let offset = offset.unwrap_or_else(|| {
        size += word;
        size - word
    });
    size = size.next_multiple_of(calculate_alignment(a.flags, a.align, a.size, line));
    let order = calculate_order(size, nr_cpus);
    if order > MAX_PAGE_ORDER {
        return Err(Errno::EINVAL);
    }
    let objects = order_objects(order, size);
    let min_order = get_order(size);
    let cpu_partial = match size {
        s if s >= PAGE_SIZE => 6,
        s if s >= 1024 => 24,
        s if s >= 256 => 52,
        _ => 120u32,
    };
    Ok(Geometry {
        size,
        offset,
        order,
        objects,
        min: (min_order, order_objects(min_order, size)),
        cpu_partial_slabs: if sheaves { 0 } else { (2 * cpu_partial).div_ceil(objects) },
        min_partial: u64::from(size.ilog2() / 2).clamp(MIN_PARTIAL, MAX_PARTIAL),
        sheaf_capacity: if sheaves && a.flags & SLAB_NO_SHEAVES == 0 {
            calculate_sheaf_capacity(size, a.sheaf_capacity)
        } else {
            0
        },
    })
}

/// `kmem_cache_create()` with `SLAB_PANIC`, at boot: a cache that the kernel cannot do without.
///
/// # Panics
/// When the arguments are refused (see [`__kmem_cache_create_args`]) or boot memory is out.
pub fn kmem_cache_create<A: Hardware>(arena: &Arena, s: KRef<SlabState<A>>, a: KmemCacheArgs) -> KRef<KmemCache<A>> {
    match __kmem_cache_create_args(arena, s, a) {
        Ok(cache) => cache,
        Err(e) => panic!("cannot create slab cache {}: {e:?} ({a:?})", a.name),
    }
}

/// `__kmem_cache_create_args()`, at boot: as [`kmem_cache_create`], for callers that can do without.
///
/// # Errors
/// `EINVAL` for arguments that [`calculate_sizes`] refuses; nothing was created then.
///
/// # Panics
/// When boot memory is out.
pub fn __kmem_cache_create_args<A: Hardware>(
    arena: &Arena,
    s: KRef<SlabState<A>>,
    a: KmemCacheArgs,
) -> Result<KRef<KmemCache<A>>, Errno> {
    let g = calculate_sizes_for(&a, s.nr_cpus, s.options.cache_line, s.options.allocator)?;
    let cpu_sheaves = s.options.allocator == Allocator::Sheaves;
    if g.sheaf_capacity != 0 {
        SlabState::ensure_sheaf_cache(s, arena, g.sheaf_capacity);
    }
    let mut nth = 0;
    s.for_each_cache(|_| nth += 1);
    let seed = splitmix64(s.options.seed ^ nth << 32);
    let random_seq = (s.options.randomized && g.objects >= 2).then(|| {
        // A Fisher-Yates permutation, made once (cache_random_seq_create()).
        let seq = boot_slice(arena, 0, g.objects as usize, |i| i as u32);
        // SAFETY: boot memory that nobody else knows yet.
        let v = unsafe { &mut *seq.as_ptr() };
        let mut r = seed;
        for i in (1..v.len()).rev() {
            r = splitmix64(r);
            v.swap(i, (r % (i as u64 + 1)) as usize);
        }
        seq
    });
    let pages = s.pages;
    let block = if cpu_sheaves { "slub_percpu_sheaves" } else { "kmem_cache_cpu" };
    let cpu_slab = PerCpu::new(arena, pages.nr_cpu_ids(), |c| pages.cpu_to_node(c), block, KmemCacheCpu::new);
    if cpu_sheaves {
        init_percpu_sheaves(arena, &pages, &cpu_slab, g.sheaf_capacity);
    }
    let node = boot_slice(arena, 0, pages.nr_nodes() as usize, |nid| {
        let n = arena.boot_new(nid as u32, KmemCacheNode::new());
        A::label(n.as_ptr().cast(), size_of::<KmemCacheNode<A>>(), "kmem_cache_node");
        n
    });
    let charged = s.options.memcg && a.flags & SLAB_ACCOUNT != 0;
    let exts_cache = if charged { super::memcg::ensure_exts_cache(arena, s, g.objects) } else { None };
    let init_on_alloc = s.options.init_on_alloc && a.ctor.is_none() && !is_typesafe(a.flags);
    let cache = arena.boot_new(
        0,
        KmemCache {
            cpu_slab,
            offset: g.offset,
            random: splitmix64(seed ^ 0x5a5a),
            sheaf_capacity: g.sheaf_capacity,
            cpu_sheaves,
            hardened: s.options.hardened,
            init_on_alloc,
            alloc_hooks: init_on_alloc || s.options.failslab.is_some() || s.options.debug || exts_cache.is_some(),
            free_hooks: s.options.debug || exts_cache.is_some(),
            exts_cache,
            typesafe: is_typesafe(a.flags),
            size: g.size,
            object_size: a.size,
            cpu_partial_slabs: g.cpu_partial_slabs,
            min_partial: g.min_partial,
            oo: (g.order, g.objects),
            min: g.min,
            remote_node_defrag_ratio: 1000,
            flags: a.flags,
            ctor: a.ctor,
            random_seq,
            name: a.name,
            label: a.label.unwrap_or(a.name),
            node,
            barn: init_barns(arena, pages.nr_nodes(), g.sheaf_capacity),
            state: s,
            list: Plain::new(s.caches.get()),
        },
    );
    if cpu_sheaves {
        own_percpu_sheaves(&cache);
    }
    s.caches.set(cache.as_ptr());
    Ok(cache)
}

/// `kmalloc_size_index()`: bytes of the class that serves `size`; `None` above 8 KiB, where pages are served directly.
pub fn kmalloc_class(size: usize) -> Option<usize> {
    match size {
        0..=8 => Some(8),
        65..=96 => Some(96),
        129..=192 => Some(192),
        s if s <= 8192 => Some(s.next_power_of_two()),
        _ => None,
    }
}

/// A private cache of one kmalloc class: aligned to the largest power of two that divides it, free pointer in the
/// middle. At boot.
///
/// # Panics
/// When `class` is none.
pub fn kmalloc_cache_create<A: Hardware>(arena: &Arena, s: KRef<SlabState<A>>, class: usize) -> KRef<KmemCache<A>> {
    const NAMES: [(usize, &str); 13] = [
        (8, "kmalloc-8"),
        (16, "kmalloc-16"),
        (32, "kmalloc-32"),
        (64, "kmalloc-64"),
        (96, "kmalloc-96"),
        (128, "kmalloc-128"),
        (192, "kmalloc-192"),
        (256, "kmalloc-256"),
        (512, "kmalloc-512"),
        (1024, "kmalloc-1k"),
        (2048, "kmalloc-2k"),
        (4096, "kmalloc-4k"),
        (8192, "kmalloc-8k"),
    ];
    let name = NAMES.iter().find(|n| n.0 == class).expect("a kmalloc class").1;
    let align = 1 << class.trailing_zeros();
    kmem_cache_create(arena, s, KmemCacheArgs { name, size: class, align, flags: 0, ..KmemCacheArgs::default() })
}

/// `kmem_cache_shrink()`: gives empty slabs back and sorts the node lists, fullest first. Returns whether slabs remain.
///
/// # Safety
/// As [`flush_all_cpus`]. Slabs of a type-stable cache still wait for their grace period afterwards.
pub unsafe fn kmem_cache_shrink<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> bool {
    // SAFETY: the caller's.
    unsafe { flush_all_cpus(cpu, s) };
    let mut remain = false;
    // All of them first: a barn may hold objects of another node.
    shrink_barns(cpu, s);
    for (nid, n) in s.node.iter().enumerate() {
        // Slabs by free objects: lists on the stack, linked through the records as the node list is.
        let mut promote: [*mut Slab<A>; SHRINK_PROMOTE_MAX] = [null_mut(); SHRINK_PROMOTE_MAX];
        let mut discard: *mut Slab<A> = null_mut();
        s.lock_node(cpu, n);
        let mut p = n.first.get();
        while !p.is_null() {
            // SAFETY: on the list, whose lock is held.
            let slab = unsafe { &*p };
            let next = slab.next();
            let counters = slab.counters();
            // Frees go on meanwhile: this is the least there is.
            let free = counters.objects() - counters.inuse();
            assert!(free > 0, "a full slab of {} is on a node list", s.name);
            if free == counters.objects() {
                n.remove_partial(slab);
                dec_slabs_node(s, nid as u32, counters.objects());
                slab.set_next(discard);
                discard = p;
            } else if free as usize <= SHRINK_PROMOTE_MAX {
                n.unlink(slab);
                let bucket = &mut promote[free as usize - 1];
                slab.set_next(*bucket);
                *bucket = p;
            }
            p = next;
        }
        for bucket in promote.into_iter().rev() {
            // Turned over first, so that pushing one by one leaves a bucket in the order it has.
            let mut rev: *mut Slab<A> = null_mut();
            let mut q = bucket;
            while !q.is_null() {
                // SAFETY: unlinked above, lock held.
                let slab = unsafe { &*q };
                let next = slab.next();
                slab.set_next(rev);
                rev = q;
                q = next;
            }
            while !rev.is_null() {
                // SAFETY: as above.
                let slab = unsafe { &*rev };
                rev = slab.next();
                n.link(slab, false);
            }
        }
        raw_spin_unlock(cpu, &n.list_lock);
        while !discard.is_null() {
            // SAFETY: empty and on no list: nobody else's.
            let slab = unsafe { &*discard };
            discard = slab.next();
            free_slab(cpu, s, slab);
        }
        remain |= n.nr_slabs.load(Relaxed) != 0;
    }
    remain
}

/// `kmem_cache_destroy()`: gives everything back and forgets the cache. Objects that were handed to `kfree_rcu()` are waited
/// for (from 6.12 on), not those of a caller's own `call_rcu()`; for a type-stable cache also the pages of all emptied
/// slabs.
///
/// # Errors
/// `EBUSY` when objects are live: the cache stays, and leaks.
///
/// # Safety
/// As [`flush_all_cpus`]; after `Ok` nobody uses the cache. RCU works (its kernel thread runs), or nothing is pending.
pub unsafe fn kmem_cache_destroy<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> Result<(), Errno> {
    // SAFETY: the caller's.
    unsafe {
        kvfree_rcu_barrier_on_cache(cpu, s);
        flush_all_cpus(cpu, s);
    }
    if s.sheaf_capacity != 0 {
        // Sheaves behind a grace period name the cache.
        rcu_barrier(cpu, &s.state.rcu);
    }
    shrink_barns(cpu, s);
    for n in s.node.iter() {
        let mut discard: *mut Slab<A> = null_mut();
        s.lock_node(cpu, n);
        let mut p = n.first.get();
        while !p.is_null() {
            // SAFETY: on the list, whose lock is held.
            let slab = unsafe { &*p };
            let next = slab.next();
            if slab.counters().inuse() == 0 {
                n.remove_partial(slab);
                slab.set_next(discard);
                discard = p;
            }
            p = next;
        }
        raw_spin_unlock(cpu, &n.list_lock);
        while !discard.is_null() {
            // SAFETY: empty and on no list: nobody else's.
            let slab = unsafe { &*discard };
            discard = slab.next();
            discard_slab(cpu, s, slab);
        }
        if n.nr_partial.load(Relaxed) != 0 || n.nr_slabs.load(Relaxed) != 0 {
            return Err(Errno::EBUSY);
        }
    }
    if s.typesafe {
        rcu_barrier(cpu, &s.state.rcu);
    }
    if s.sheaf_capacity != 0 {
        pcs_destroy(cpu, s);
        // PORT: empty slabs of a kmalloc cache stay in the kernel; here they would look like a leak.
        // SAFETY: the caller's; no state of these caches is a CPU's.
        s.state.for_each_sheaf_cache(|c| _ = unsafe { kmem_cache_shrink(cpu, c) });
    }
    if let Some(c) = s.exts_cache {
        // PORT: as for the sheaves' caches above. Arrays of a type-stable cache's slabs are back by now.
        // SAFETY: the caller's.
        unsafe { kmem_cache_shrink(cpu, &c) };
    }
    let mut at = &s.state.caches;
    while !at.get().is_null() && at.get().cast_const() != std::ptr::from_ref(s) {
        // SAFETY: caches on the list are boot memory.
        at = unsafe { &(*at.get()).list };
    }
    if !at.get().is_null() {
        at.set(s.list.get());
    }
    Ok(())
}
