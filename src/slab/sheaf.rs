// SPDX-License-Identifier: GPL-2.0-only
//! Sheaves: arrays of free objects in front of the slabs [struct slab_sheaf, struct slub_percpu_sheaves, alloc_from_pcs,
//! free_to_pcs and what they call in mm/slub.c, 7.3].
//!
//! Each CPU has a main sheaf and perhaps a spare one, each node a barn of full and empty ones (`barn.rs`); objects move
//! between them as pointers, and neither allocation nor free touches the object itself. Only a sheaf that is filled or
//! flushed goes to the slabs (`slub_sheaves.rs`). Remote objects are never put into a sheaf, they go to their slab.
//! Bulk calls and prefilled sheaves are in `sheaf_bulk.rs`, sheaves that wait for a grace period in `sheaf_rcu.rs`.
//!
//! dup: the order in which main, spare, barn and slabs are tried; the layout of the header; what is counted; that a
//! cache without sheaves (`SLAB_NO_SHEAVES`) has a main sheaf of no objects, so that nothing needs to ask. custom: a
//! CPU's first main sheaf is boot memory and is never given back; sheaves come from caches of this module's own, one a
//! kmalloc class, that have no sheaves; a node without memory is not modelled. Nothing interrupts an allocator call
//! (module above), so where the kernel drops its local lock and looks again, the port knows what it will find: the lost
//! races of `__pcs_replace_empty_main()` and `__pcs_install_empty_sheaf()` are assertions. The local lock is taken and
//! given all the same; it costs the kernel's two plain stores, less the preemption count.
//!
//! INVARIANT: `main` is never null; `spare` is null, empty or full, but partly used after a prefilled sheaf came back;
//! objects in a sheaf count as in use in their slab. Only the owning CPU touches its block, and whoever flushes it while
//! it stands still. Cannot tell: what double frees do to a sheaf; 7.3 does not check them either until the sheaf is
//! flushed.

use super::SlabState;
use super::barn::{NodeBarn, Refused};
use super::page_alloc::{NUMA_NO_NODE, PG_SLAB, alloc_pages, boot_slice, free_pages, page_to_nid, virt_to_head_page};
use super::reuse::ReuseCpu;
use super::slab_common::{SLAB_NO_SHEAVES, kmalloc_class, kmem_cache_create};
use super::slub::{kmem_cache_alloc, kmem_cache_free};
use super::slub_bulk::{ObjectArray, build_detached_freelist};
use super::slub_def::{KmemCache, KmemCacheCpu, Slab};
use super::slub_sheaves::{__slab_alloc, __slab_free, refill_objects};
use super::stat::{StatItem, Stats};
use super::{KmemCacheArgs, PageAllocator};
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Arena, Hardware, Native, Plain};
use crate::cpu::{Cpu, PerCpu};
use crate::rcu::{RcuHead, call_rcu};
use std::alloc::Layout;
use std::ptr::{NonNull, from_ref, null_mut};

/// Objects that one turn of flushing a main sheaf, or one batch of remote objects, takes (`PCS_BATCH_MAX`).
pub(super) const PCS_BATCH_MAX: usize = 32;

/// `struct slab_sheaf`, followed by its objects.
#[repr(C)]
pub struct SlabSheaf<A: Hardware> {
    /// Next in the barn; or, with the next word, the `rcu_head`; or the capacity of a prefilled sheaf.
    pub(super) next: Plain<A, *mut SlabSheaf<A>>,
    /// Previous in the barn.
    pub(super) prev: Plain<A, *mut SlabSheaf<A>>,
    pub(super) cache: Plain<A, *mut KmemCache<A>>,
    /// Objects in it.
    pub(super) size: Plain<A, u32>,
    /// Node of the CPU that handed it to RCU.
    pub(super) node: Plain<A, u32>,
    objects: [Plain<A, *mut u8>; 0],
}
/// Bytes of the header.
pub(super) const SHEAF_HEADER: usize = 32;
const _: () = {
    use std::mem::offset_of;
    type S = SlabSheaf<Native>;
    assert!(offset_of!(S, next) == 0 && size_of::<RcuHead<Native>>() == 16 && offset_of!(S, cache) == 16);
    assert!(offset_of!(S, size) == 24 && offset_of!(S, node) == 28);
    assert!(offset_of!(S, objects) == SHEAF_HEADER && size_of::<S>() == SHEAF_HEADER);
};

impl<A: Hardware> SlabSheaf<A> {
    #[inline(always)]
    fn slot(&self, i: u32) -> &Plain<A, *mut u8> {
        // SAFETY: below the capacity, for which the sheaf was allocated; words of it are accessed as `Plain` only.
        unsafe { &*((from_ref(self) as usize + SHEAF_HEADER + 8 * i as usize) as *const Plain<A, *mut u8>) }
    }

    /// The `i`th object.
    #[inline(always)]
    pub(super) fn get(&self, i: u32) -> usize {
        self.slot(i).get() as usize
    }

    #[inline(always)]
    pub(super) fn set(&self, i: u32, object: usize) {
        self.slot(i).set(object as *mut u8);
    }

    /// Takes the last object; there is one.
    #[inline(always)]
    pub(super) fn pop(&self) -> usize {
        let n = self.size.get() - 1;
        let object = self.get(n);
        self.size.set(n);
        object
    }

    /// Appends an object; there is room.
    #[inline(always)]
    pub(super) fn push(&self, object: usize) {
        let n = self.size.get();
        self.set(n, object);
        self.size.set(n + 1);
    }

    pub(super) fn rcu_head(&self) -> *mut RcuHead<A> {
        from_ref(self).cast_mut().cast()
    }

    /// Objects in it.
    pub fn size(&self) -> u32 {
        self.size.get()
    }

    /// Objects that a prefilled sheaf has room for.
    pub(super) fn capacity(&self) -> u32 {
        self.next.get() as usize as u32
    }

    pub(super) fn set_capacity(&self, n: u32) {
        self.next.set(n as usize as *mut SlabSheaf<A>);
    }
}

impl<A: Hardware> ObjectArray for &SlabSheaf<A> {
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        self.get(i as u32)
    }
    #[inline(always)]
    fn exchange(&mut self, i: usize, j: usize) {
        let (a, b) = (self.get(i as u32), self.get(j as u32));
        self.set(i as u32, b);
        self.set(j as u32, a);
    }
}

/// `struct slub_percpu_sheaves`: a CPU's block of a 7.3 cache, in the place of [`KmemCacheCpu`].
#[repr(C, align(64))]
pub struct SlubPercpuSheaves<A: Hardware> {
    /// `local_trylock_t`: whether the CPU is inside.
    lock: Plain<A, u64>,
    pub(super) main: Plain<A, *mut SlabSheaf<A>>,
    pub(super) spare: Plain<A, *mut SlabSheaf<A>>,
    pub(super) rcu_free: Plain<A, *mut SlabSheaf<A>>,
    _reuse: Plain<Native, *mut ReuseCpu>,
    stat: Stats,
}
const _: () = {
    use std::mem::offset_of;
    type P = SlubPercpuSheaves<Native>;
    type C = KmemCacheCpu<Native>;
    assert!(offset_of!(P, main) == 8 && offset_of!(P, spare) == 16 && offset_of!(P, rcu_free) == 24);
    assert!(offset_of!(P, _reuse) == offset_of!(C, reuse) && offset_of!(P, stat) == offset_of!(C, stat));
    assert!(size_of::<P>() == size_of::<C>() && align_of::<P>() == align_of::<C>());
};

impl<A: Hardware> KmemCacheCpu<A> {
    /// The block as the percpu sheaves that it is.
    ///
    /// # Safety
    /// A block of a cache with `cpu_sheaves`.
    #[inline(always)]
    pub(super) unsafe fn sheaves(&self) -> &SlubPercpuSheaves<A> {
        // SAFETY: the same size and alignment, the counters at the same place; the first words are words in either
        // view, and in such a cache nobody uses the other one for them.
        unsafe { &*from_ref(self).cast::<SlubPercpuSheaves<A>>() }
    }
}

impl<A: Hardware> SlubPercpuSheaves<A> {
    /// `local_trylock()`: fails only when this CPU is already inside.
    #[inline(always)]
    pub(super) fn trylock(&self) -> bool {
        if self.lock.get() != 0 {
            return false;
        }
        self.lock.set(1);
        true
    }

    /// `local_lock()` where the CPU cannot be inside already.
    #[inline(always)]
    pub(super) fn relock(&self) {
        debug_assert_eq!(self.lock.get(), 0, "nothing interrupts an allocator call");
        self.lock.set(1);
    }

    #[inline(always)]
    pub(super) fn unlock(&self) {
        self.lock.set(0);
    }

    /// The main sheaf.
    #[inline(always)]
    pub(super) fn main(&self) -> &SlabSheaf<A> {
        // SAFETY: never null; a sheaf in a CPU's block is nobody else's.
        unsafe { &*self.main.get() }
    }

    /// The spare sheaf.
    #[inline(always)]
    pub(super) fn spare(&self) -> Option<&SlabSheaf<A>> {
        // SAFETY: as above, where not null.
        unsafe { self.spare.get().as_ref() }
    }

    #[inline(always)]
    pub(super) fn swap_main_and_spare(&self) {
        let main = self.main.get();
        self.main.set(self.spare.get());
        self.spare.set(main);
    }
}

impl<A: Hardware> KmemCache<A> {
    /// This CPU's sheaves.
    ///
    /// # Safety
    /// A cache with `cpu_sheaves`.
    #[inline(always)]
    pub(super) unsafe fn pcs(&self, cpu: &Cpu<A>) -> &SlubPercpuSheaves<A> {
        // SAFETY: the caller's.
        unsafe { self.this_cpu(cpu).sheaves() }
    }

    /// `get_barn()`: this CPU's node's.
    #[inline(always)]
    pub(super) fn get_barn(&self, cpu: &Cpu<A>) -> &NodeBarn<A> {
        &self.barn[cpu.node as usize]
    }
}

/// The 7.3 half of `slab_alloc_node()`: 0 when out of memory.
#[inline(always)]
pub(super) fn slab_alloc_sheaves<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, c: &KmemCacheCpu<A>, node: u32) -> usize {
    let object = alloc_from_pcs(cpu, s, c, node);
    if object != 0 { object } else { __slab_alloc(cpu, s, node) }
}

/// `alloc_from_pcs()`: 0 when the slabs have to be asked.
#[inline(always)]
fn alloc_from_pcs<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, c: &KmemCacheCpu<A>, node: u32) -> usize {
    if node != NUMA_NO_NODE && node != cpu.node {
        c.stat(StatItem::AllocNodeMismatch);
        return 0;
    }
    // SAFETY: only called for caches with percpu sheaves.
    let pcs = unsafe { c.sheaves() };
    if !pcs.trylock() {
        return 0;
    }
    let mut main = pcs.main();
    if main.size.get() == 0 {
        if !__pcs_replace_empty_main(cpu, s, pcs) {
            return 0;
        }
        main = pcs.main();
    }
    let n = main.size.get() - 1;
    let object = main.get(n);
    if node != NUMA_NO_NODE && object_nid::<A>(object) != node {
        // A refill took it from another node.
        pcs.unlock();
        c.stat(StatItem::AllocNodeMismatch);
        return 0;
    }
    main.size.set(n);
    pcs.unlock();
    c.stat(StatItem::AllocFastpath);
    object
}

fn object_nid<A: Hardware>(object: usize) -> u32 {
    // SAFETY: objects are arena memory.
    page_to_nid(unsafe { &*virt_to_head_page::<A>(object as *const u8) })
}

/// `__pcs_replace_empty_main()`: with the lock held and the main sheaf empty, finds a main sheaf that is not. Returns
/// false, with the lock given up, when there is none to be had.
#[cold]
#[inline(never)]
fn __pcs_replace_empty_main<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, pcs: &SlubPercpuSheaves<A>) -> bool {
    if s.sheaf_capacity == 0 {
        pcs.unlock();
        return false;
    }
    if pcs.spare().is_some_and(|spare| spare.size.get() > 0) {
        pcs.swap_main_and_spare();
        return true;
    }
    let barn = s.get_barn(cpu);
    let full = barn.replace_empty(cpu, s, pcs.main());
    if !full.is_null() {
        s.stat(cpu, StatItem::BarnGet);
        pcs.main.set(full);
        return true;
    }
    s.stat(cpu, StatItem::BarnGetFail);
    let mut empty = pcs.spare.get();
    if empty.is_null() {
        empty = barn.get_empty(cpu, s);
    } else {
        pcs.spare.set(null_mut());
    }
    pcs.unlock();
    if empty.is_null() {
        empty = alloc_empty_sheaf(cpu, s, s.sheaf_capacity);
        if empty.is_null() {
            return false;
        }
    }
    // SAFETY: ours alone since it was taken or made.
    let full = unsafe { &*empty };
    if !refill_sheaf(cpu, s, full) {
        sheaf_flush_unused(cpu, s, full);
        free_empty_sheaf(cpu, s, full, s.sheaf_capacity);
        return false;
    }
    pcs.relock();
    let main = pcs.main();
    debug_assert_eq!(main.size.get(), 0, "nobody else frees to it");
    if pcs.spare.get().is_null() {
        pcs.spare.set(pcs.main.get());
    } else {
        barn.put_empty(cpu, s, main);
    }
    pcs.main.set(empty);
    true
}

/// The 7.3 half of `slab_free()`.
///
/// # Safety
/// As [`kmem_cache_free`]; `object` lies in `slab` of `s`.
#[inline(always)]
pub(super) unsafe fn slab_free_sheaves<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    c: &KmemCacheCpu<A>,
    slab: &Slab<A>,
    object: usize,
) {
    if slab.nid() == cpu.node && free_to_pcs(cpu, s, c, object) {
        return;
    }
    // SAFETY: the caller's.
    unsafe { __slab_free(cpu, s, slab, object, object, 1) };
    s.stat(cpu, StatItem::FreeSlowpath);
    s.stat(cpu, StatItem::FreeSlowObjects);
}

/// `free_to_pcs()`: whether a sheaf took the object, which is local.
#[inline(always)]
fn free_to_pcs<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, c: &KmemCacheCpu<A>, object: usize) -> bool {
    // SAFETY: only called for caches with percpu sheaves.
    let pcs = unsafe { c.sheaves() };
    if !pcs.trylock() {
        return false;
    }
    let mut main = pcs.main();
    if main.size.get() == s.sheaf_capacity {
        if !__pcs_replace_full_main(cpu, s, pcs) {
            return false;
        }
        main = pcs.main();
    }
    main.push(object);
    pcs.unlock();
    c.stat(StatItem::FreeFastpath);
    true
}

/// `__pcs_replace_full_main()`: with the lock held and the main sheaf full, finds a main sheaf with room. Returns false,
/// with the lock given up, when there is none to be had.
#[cold]
#[inline(never)]
fn __pcs_replace_full_main<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, pcs: &SlubPercpuSheaves<A>) -> bool {
    if s.sheaf_capacity == 0 {
        pcs.unlock();
        return false;
    }
    let barn = s.get_barn(cpu);
    let mut put_fail = false;
    match pcs.spare() {
        None => {
            let empty = barn.get_empty(cpu, s);
            if !empty.is_null() {
                pcs.spare.set(pcs.main.get());
                pcs.main.set(empty);
                return true;
            }
        }
        Some(spare) if spare.size.get() < s.sheaf_capacity => {
            pcs.swap_main_and_spare();
            return true;
        }
        Some(spare) => match barn.replace_full(cpu, s, pcs.main()) {
            Ok(empty) => {
                s.stat(cpu, StatItem::BarnPut);
                pcs.main.set(empty);
                return true;
            }
            Err(Refused::TooManyFull) => {
                s.stat(cpu, StatItem::BarnPutFail);
                pcs.spare.set(null_mut());
                pcs.unlock();
                sheaf_flush_unused(cpu, s, spare);
                pcs.relock();
                __pcs_install_empty_sheaf(cpu, s, pcs, spare);
                return true;
            }
            // With a new sheaf the full one can go to the barn after all.
            Err(Refused::NoEmpty) => put_fail = true,
        },
    }
    pcs.unlock();
    let empty = alloc_empty_sheaf(cpu, s, s.sheaf_capacity);
    if empty.is_null() {
        if put_fail {
            s.stat(cpu, StatItem::BarnPutFail);
        }
        sheaf_flush_main(cpu, s, pcs);
        pcs.relock();
        return true;
    }
    pcs.relock();
    // SAFETY: made just now.
    __pcs_install_empty_sheaf(cpu, s, pcs, unsafe { &*empty });
    true
}

/// `__pcs_install_empty_sheaf()`
fn __pcs_install_empty_sheaf<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    pcs: &SlubPercpuSheaves<A>,
    empty: &SlabSheaf<A>,
) {
    if pcs.spare.get().is_null() {
        pcs.spare.set(pcs.main.get());
    } else {
        debug_assert_eq!(pcs.main().size.get(), s.sheaf_capacity);
        s.get_barn(cpu).put_full(cpu, s, pcs.main());
        s.stat(cpu, StatItem::BarnPut);
    }
    pcs.main.set(from_ref(empty).cast_mut());
}

/// `refill_sheaf()`: fills it up; whether that succeeded. What it got it keeps.
pub(super) fn refill_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) -> bool {
    let want = s.sheaf_capacity - sheaf.size.get();
    if want == 0 {
        return true;
    }
    let got = refill_objects(cpu, s, want, want, &mut |object| sheaf.push(object));
    s.stat_add(cpu, StatItem::SheafRefill, u64::from(got));
    got == want
}

/// `sheaf_flush_unused()`: gives the objects of a sheaf that is ours alone back to their slabs.
pub(super) fn sheaf_flush_unused<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) {
    let size = sheaf.size.get();
    if size == 0 {
        return;
    }
    s.stat_add(cpu, StatItem::SheafFlush, u64::from(size));
    // SAFETY: free objects of this cache in nobody else's hands.
    unsafe { __kmem_cache_free_bulk(cpu, s, &mut { sheaf }, size as usize) };
    sheaf.size.set(0);
}

/// `__kmem_cache_free_bulk()`: the first `size` of `p` to their slabs, past the sheaves.
///
/// # Safety
/// Objects of `s` that nobody else will free or hand out.
pub(super) unsafe fn __kmem_cache_free_bulk<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    p: &mut (impl ObjectArray + ?Sized),
    mut size: usize,
) {
    while size != 0 {
        // SAFETY: the caller's; then a chain of one slab, linked just now.
        unsafe {
            let df = build_detached_freelist(s, p, size);
            __slab_free(cpu, s, &*df.slab, df.freelist, df.tail, df.cnt);
            size = df.left;
        }
    }
}

/// `sheaf_flush_main()`: the main sheaf, in batches. Takes the lock for each.
#[cold]
#[inline(never)]
fn sheaf_flush_main<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, pcs: &SlubPercpuSheaves<A>) {
    loop {
        let mut objects = [null_mut(); PCS_BATCH_MAX];
        pcs.relock();
        let main = pcs.main();
        let batch = PCS_BATCH_MAX.min(main.size.get() as usize);
        let left = main.size.get() - batch as u32;
        for (i, o) in objects[..batch].iter_mut().enumerate() {
            *o = main.get(left + i as u32) as *mut u8;
        }
        main.size.set(left);
        pcs.unlock();
        // SAFETY: they were in a sheaf, and are nowhere now.
        unsafe { __kmem_cache_free_bulk(cpu, s, &mut objects[..], batch) };
        s.stat_add(cpu, StatItem::SheafFlush, batch as u64);
        if left == 0 {
            return;
        }
    }
}

/// `pcs_flush_all()`, `__pcs_flush_all_cpu()`
///
/// # Safety
/// `pcs` is the calling CPU's, or its CPU is not inside the allocator.
pub(super) unsafe fn pcs_flush_all<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, pcs: &SlubPercpuSheaves<A>) {
    pcs.relock();
    let (spare, rcu_free) = (pcs.spare.get(), pcs.rcu_free.get());
    pcs.spare.set(null_mut());
    pcs.rcu_free.set(null_mut());
    pcs.unlock();
    // SAFETY: taken out of the block: ours alone.
    if let Some(spare) = unsafe { spare.as_ref() } {
        sheaf_flush_unused(cpu, s, spare);
        free_empty_sheaf(cpu, s, spare, s.sheaf_capacity);
    }
    if !rcu_free.is_null() {
        // SAFETY: as above; the first words of a sheaf in nobody's list are its rcu_head.
        unsafe { call_rcu(cpu, &s.state.rcu, rcu_free.cast(), rcu_free_sheaf_nobarn::<A>) };
    }
    sheaf_flush_main(cpu, s, pcs);
}

/// `rcu_free_sheaf_nobarn()`: the callback of a sheaf whose CPU was flushed: its objects go to their slabs.
///
/// # Safety
/// A callback of a sheaf.
pub(super) unsafe fn rcu_free_sheaf_nobarn<A: Hardware>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the head is the sheaf's first words, and the sheaf is the callback's; caches wait for their callbacks
    // before they go.
    let (sheaf, s) = unsafe {
        let sheaf = &*head.cast::<SlabSheaf<A>>();
        (sheaf, &*sheaf.cache.get())
    };
    super::sheaf_rcu::sheaf_waited(cpu, s, sheaf);
    sheaf_flush_unused(cpu, s, sheaf);
    free_empty_sheaf(cpu, s, sheaf, s.sheaf_capacity);
}

/// `barn_shrink()`: every barn's sheaves back to the slabs.
pub(super) fn shrink_barns<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    for barn in s.barn.iter() {
        let (full, empty) = barn.take_all(cpu, s);
        for mut p in [full, empty] {
            while !p.is_null() {
                // SAFETY: taken out of the barn: ours alone.
                let sheaf = unsafe { &*p };
                p = sheaf.next.get();
                sheaf_flush_unused(cpu, s, sheaf);
                free_empty_sheaf(cpu, s, sheaf, s.sheaf_capacity);
            }
        }
    }
}

const fn sheaf_bytes(capacity: u32) -> usize {
    SHEAF_HEADER + 8 * capacity as usize
}

/// `alloc_empty_sheaf()`: null when out of memory.
pub(super) fn alloc_empty_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, capacity: u32) -> *mut SlabSheaf<A> {
    let bytes = sheaf_bytes(capacity);
    let p = match s.state.sheaf_cache(bytes) {
        Some(c) => kmem_cache_alloc(cpu, &c),
        None => alloc_pages(cpu, &s.state.pages, page_order(bytes)),
    };
    if p.is_null() {
        return null_mut();
    }
    // SAFETY: fresh memory of at least so many bytes, ours alone.
    let sheaf = unsafe {
        A::clear(p, bytes);
        &*p.cast::<SlabSheaf<A>>()
    };
    sheaf.cache.set(from_ref(s).cast_mut());
    s.stat(cpu, StatItem::SheafAlloc);
    p.cast()
}

/// `free_empty_sheaf()`; `capacity` is what it was made for.
pub(super) fn free_empty_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>, capacity: u32) {
    debug_assert_eq!(sheaf.size.get(), 0);
    s.stat(cpu, StatItem::SheafFree);
    let p = from_ref(sheaf).cast_mut().cast::<u8>();
    let bytes = sheaf_bytes(capacity);
    match s.state.sheaf_cache(bytes) {
        // A CPU's first main sheaf is boot memory, whose pages have no type, and stays unused from now on.
        // SAFETY: every page of the arena has a record.
        Some(_) if unsafe { &*virt_to_head_page::<A>(p) }.page_type.load(crate::arch::Relaxed) != PG_SLAB => {}
        // SAFETY: allocated from this cache, and nobody's any more.
        Some(c) => unsafe { kmem_cache_free(cpu, &c, p) },
        // SAFETY: allocated from the pages.
        None => unsafe { free_pages(cpu, &s.state.pages, p, page_order(bytes)) },
    }
}

fn page_order(bytes: usize) -> u32 {
    bytes.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros()
}

/// Smallest and largest class of the caches that sheaves come from, as powers of two.
const SHEAF_CLASSES: std::ops::RangeInclusive<u32> = 6..=13;
/// How many classes that is.
pub(super) const NR_SHEAF_CLASSES: usize = 8;

impl<A: Hardware> SlabState<A> {
    /// The cache that sheaves of `bytes` come from. `None`: they are whole pages.
    fn sheaf_cache(&self, bytes: usize) -> Option<KRef<KmemCache<A>>> {
        let class = bytes.next_power_of_two().trailing_zeros().max(*SHEAF_CLASSES.start());
        let p = self.sheaf_caches.get((class - SHEAF_CLASSES.start()) as usize)?;
        // SAFETY: a cache is boot memory.
        Some(unsafe { KRef::new(NonNull::new(p.get())?) })
    }

    /// Makes that cache where it is missing. At boot.
    pub(super) fn ensure_sheaf_cache(this: KRef<Self>, arena: &Arena, capacity: u32) {
        const NAMES: [&str; NR_SHEAF_CLASSES] =
            ["sheaf-64", "sheaf-128", "sheaf-256", "sheaf-512", "sheaf-1k", "sheaf-2k", "sheaf-4k", "sheaf-8k"];
        let bytes = sheaf_bytes(capacity);
        let class = bytes.next_power_of_two().trailing_zeros().max(*SHEAF_CLASSES.start());
        let i = (class - SHEAF_CLASSES.start()) as usize;
        if i >= NR_SHEAF_CLASSES || !this.sheaf_caches[i].get().is_null() {
            return;
        }
        let size = kmalloc_class(1 << class).expect("a kmalloc class");
        let args = KmemCacheArgs {
            name: NAMES[i],
            label: Some("slab_sheaf"),
            size,
            align: size,
            flags: SLAB_NO_SHEAVES,
            ..KmemCacheArgs::default()
        };
        this.sheaf_caches[i].set(kmem_cache_create(arena, this, args).as_ptr());
    }

    /// Calls `f` with every cache that sheaves come from.
    pub(super) fn for_each_sheaf_cache(&self, mut f: impl FnMut(&KmemCache<A>)) {
        for c in &self.sheaf_caches {
            if !c.get().is_null() {
                // SAFETY: boot memory.
                f(unsafe { &*c.get() });
            }
        }
    }
}

/// `init_percpu_sheaves()`: makes each CPU's block a block of sheaves, with a main sheaf in boot memory of its node.
pub(super) fn init_percpu_sheaves<A: Hardware>(
    arena: &Arena,
    pages: &PageAllocator<A>,
    cpu_slab: &PerCpu<A, KmemCacheCpu<A>>,
    capacity: u32,
) {
    let layout = Layout::from_size_align(sheaf_bytes(capacity), 64).expect("small");
    for (cpu, c) in cpu_slab.iter().enumerate() {
        let p = arena.boot_alloc(pages.cpu_to_node(cpu as u32), layout);
        A::label(p.as_ptr(), layout.size(), "slab_sheaf");
        // SAFETY: boot memory is zeroed, which is an empty sheaf; this block becomes percpu sheaves.
        let pcs = unsafe { c.sheaves() };
        pcs.lock.set(0);
        pcs.main.set(p.as_ptr().cast());
        pcs.spare.set(null_mut());
        pcs.rcu_free.set(null_mut());
        if capacity != 0 {
            c.stat(StatItem::SheafAlloc);
        }
    }
}

/// Names the cache in the sheaves of [`init_percpu_sheaves`].
pub(super) fn own_percpu_sheaves<A: Hardware>(s: &KmemCache<A>) {
    for c in s.cpu_slab.iter() {
        // SAFETY: boot; the cache has percpu sheaves.
        unsafe { c.sheaves() }.main().cache.set(from_ref(s).cast_mut());
    }
}

/// `init_barn()`: one a node, or none where there are no sheaves.
pub(super) fn init_barns<A: Hardware>(arena: &Arena, nodes: u32, capacity: u32) -> KRef<[KRef<NodeBarn<A>>]> {
    boot_slice(arena, 0, if capacity == 0 { 0 } else { nodes as usize }, |nid| {
        let b = arena.boot_new(nid as u32, NodeBarn::new());
        A::label(b.as_ptr().cast(), size_of::<NodeBarn<A>>(), "node_barn");
        b
    })
}

/// `pcs_destroy()`: the last of a cache that is empty: its CPUs' main sheaves.
pub(super) fn pcs_destroy<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    for c in s.cpu_slab.iter() {
        // SAFETY: a cache with percpu sheaves that nobody uses any more.
        let pcs = unsafe { c.sheaves() };
        debug_assert!(pcs.spare.get().is_null() && pcs.rcu_free.get().is_null());
        free_empty_sheaf(cpu, s, pcs.main(), s.sheaf_capacity);
        pcs.main.set(null_mut());
    }
}

/// `calculate_sheaf_capacity()`: at least `wanted`, as many as fill the kmalloc class that the base for objects of
/// `size` bytes needs.
pub(super) fn calculate_sheaf_capacity(size: usize, wanted: u32) -> u32 {
    let base = match size {
        s if s >= PAGE_SIZE => 4,
        s if s >= 1024 => 12,
        s if s >= 256 => 26,
        _ => 60,
    };
    let class = kmalloc_class(sheaf_bytes(base)).expect("small");
    wanted.max(((class - SHEAF_HEADER) / 8) as u32)
}

#[cfg(test)]
impl<A: Hardware> SlubPercpuSheaves<A> {
    /// Leaves the lock taken, as an interrupt would find it.
    pub(super) fn set_locked(&self, locked: bool) {
        self.lock.set(u64::from(locked));
    }
}
