// SPDX-License-Identifier: GPL-2.0-only
//! Pages by node: per-CPU lists in front of a buddy allocator [mm/page_alloc.c, include/linux/mmzone.h, 6.12].
//!
//! dup: one zone a node; a buddy per order up to [`MAX_PAGE_ORDER`], which puts a block at the tail where its next merge
//! is likely; watermarks, of which only the high one is looked at; per CPU and node a list of each order up to 3, its lock
//! only ever tried, its high mark tuned between two by what is allocated and freed in a row, its batches doubled
//! likewise; other nodes by distance when the wanted one is out; a record of 64 bytes a page ([`Page`]) with the node's
//! number and a type tag; compound heads.
//!
//! custom: the batch is that of a node of 1 GiB or more ([`PCP_BATCH`]) however small the arena, and the marks follow
//! from it and from the arena's size; the count of free pages is exact, where the kernel folds per-CPU differences into
//! it; no migrate types; nothing decays with time. Boot memory reaches the buddy by [`memblock_free_all`]; should nobody call it, the first
//! allocation that finds a node empty does. stub: reclaim, compaction, watermarks, hotplug: an allocation that no node
//! can serve empties all per-CPU lists, tries once more and returns null.
//!
//! INVARIANT: a page is in exactly one place: a buddy list (tag [`PG_BUDDY`] on the block's first page), a per-CPU list
//! ([`PG_PCP`]), or handed out. Lock order: per-CPU list, then node. Between allocation and free the words at 8..48 and
//! 56..64 of the record belong to the owner.

mod pcp;

use self::pcp::{
    PAGE_COUNTS, PageCount, PerCpuPages, free_pcppages_bulk, free_unref_page_commit, rmqueue_pcplist,
    zone_set_pageset_high_and_batch,
};
use super::fault_inject::FaultInjection;
use crate::arch::arena::{
    ARENA_SHIFT, ARENA_SIZE, KRef, NodeRest, PAGE_SHIFT, PAGE_SIZE, RECORD_SIZE, page_record, record_page,
};
use crate::arch::{Arena, Atomic, Hardware, Native, Plain, Relaxed};
use crate::cpu::{Cpu, NR_KTHREADS, PerCpu};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_lock_timed, raw_spin_trylock, raw_spin_unlock};
use std::alloc::Layout;
use std::ptr::{null_mut, slice_from_raw_parts_mut};

/// Largest order of a block.
pub const MAX_PAGE_ORDER: u32 = 10;
/// Largest order that per-CPU lists hold (`PAGE_ALLOC_COSTLY_ORDER`).
pub const PAGE_ALLOC_COSTLY_ORDER: u32 = 3;
/// No wish for a node.
pub const NUMA_NO_NODE: u32 = u32::MAX;
/// Pages that move between a per-CPU list and its node at once, at most.
pub const PCP_BATCH: u32 = 63;
/// `vm.watermark_scale_factor`, of ten thousand.
const WATERMARK_SCALE_FACTOR: u64 = 10;

/// Type tag: handed out, no type.
pub const PG_NONE: u32 = 0;
/// Type tag: first page of a free block.
pub const PG_BUDDY: u32 = 0xf000_0001;
/// Type tag: first page of a run on a per-CPU list.
pub const PG_PCP: u32 = 0xf000_0002;
/// Type tag: first page of a slab.
pub const PG_SLAB: u32 = 0xf000_0004;

const NODES_SHIFT: u32 = 58;
const LISTS: usize = PAGE_ALLOC_COSTLY_ORDER as usize + 1;
const ORDERS: usize = MAX_PAGE_ORDER as usize + 1;

/// `struct page`: 64 bytes of record a page.
#[repr(C, align(64))]
pub struct Page<A: Hardware> {
    /// Node number in the six highest bits; flags of the owner below.
    pub flags: Atomic<A, u64>,
    /// In a tail page of a compound block: its head's record, bit 0 set. Else the owner's.
    pub compound_head: Atomic<A, usize>,
    next: Atomic<A, *mut Page<A>>,
    prev: Atomic<A, *mut Page<A>>,
    _mapping: Atomic<A, u64>,
    /// Order of a free block; else the owner's.
    private: Atomic<A, u64>,
    /// `PG_*`
    pub page_type: Atomic<A, u32>,
    _refcount: Atomic<A, u32>,
    _memcg_data: Atomic<A, u64>,
}
const _: () = {
    assert!(size_of::<Page<Native>>() == RECORD_SIZE);
    assert!(std::mem::offset_of!(Page<Native>, compound_head) == 8);
    assert!(std::mem::offset_of!(Page<Native>, private) == 40);
    assert!(std::mem::offset_of!(Page<Native>, page_type) == 48);
};

/// `virt_to_page()`
#[inline(always)]
pub fn virt_to_page<A: Hardware>(p: *const u8) -> *mut Page<A> {
    page_record(p as usize).cast()
}

/// `compound_head()` of the page that `p` lies in.
///
/// # Safety
/// `p` is arena memory.
#[inline(always)]
pub unsafe fn virt_to_head_page<A: Hardware>(p: *const u8) -> *mut Page<A> {
    let page = virt_to_page::<A>(p);
    // SAFETY: every page of the arena has a record.
    let head = unsafe { &*page }.compound_head.load(Relaxed);
    if head & 1 != 0 { (head - 1) as *mut Page<A> } else { page }
}

/// `page_to_nid()`
#[inline(always)]
pub fn page_to_nid<A: Hardware>(page: &Page<A>) -> u32 {
    (page.flags.load(Relaxed) >> NODES_SHIFT) as u32
}

/// A list through `next` and `prev`.
#[repr(C)]
struct PageList<A: Hardware> {
    first: Plain<A, *mut Page<A>>,
    last: Plain<A, *mut Page<A>>,
}

impl<A: Hardware> PageList<A> {
    fn new() -> Self {
        PageList { first: Plain::new(null_mut()), last: Plain::new(null_mut()) }
    }

    /// # Safety
    /// `page` is on no list; the list's lock is held.
    #[inline(always)]
    unsafe fn push_tail(&self, page: *mut Page<A>) {
        let old = self.last.get();
        // SAFETY: records live as long as the arena.
        unsafe {
            (*page).next.store(null_mut(), Relaxed);
            (*page).prev.store(old, Relaxed);
            if old.is_null() {
                self.first.set(page);
            } else {
                (*old).next.store(page, Relaxed);
            }
        }
        self.last.set(page);
    }

    /// # Safety
    /// `page` is on no list; the list's lock is held.
    #[inline(always)]
    unsafe fn push(&self, page: *mut Page<A>) {
        let old = self.first.get();
        // SAFETY: records live as long as the arena.
        unsafe {
            (*page).next.store(old, Relaxed);
            (*page).prev.store(null_mut(), Relaxed);
            if old.is_null() {
                self.last.set(page);
            } else {
                (*old).prev.store(page, Relaxed);
            }
        }
        self.first.set(page);
    }

    /// # Safety
    /// `page` is on this list; the list's lock is held.
    #[inline(always)]
    unsafe fn del(&self, page: *mut Page<A>) {
        // SAFETY: records live as long as the arena.
        let (next, prev) = unsafe { ((*page).next.load(Relaxed), (*page).prev.load(Relaxed)) };
        if prev.is_null() {
            self.first.set(next);
        } else {
            // SAFETY: as above.
            unsafe { (*prev).next.store(next, Relaxed) };
        }
        if next.is_null() {
            self.last.set(prev);
        } else {
            // SAFETY: as above.
            unsafe { (*next).prev.store(prev, Relaxed) };
        }
    }
}

/// A cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

/// What the zone's lock guards.
#[repr(C)]
struct Buddy<A: Hardware> {
    free_area: [PageList<A>; ORDERS],
    /// `ZONE_BELOW_HIGH`, changed without the lock.
    below_high: Atomic<A, u32>,
    lock: RawSpinLock<A>,
}

/// `struct zone`: the free blocks of one node. The three parts are on lines of their own, as in the kernel: what is
/// read only, the lists with their lock, the count of free pages.
#[repr(C, align(128))]
struct Zone<A: Hardware> {
    /// Whether the node's rest was taken over.
    populated: Plain<A, u32>,
    /// `WMARK_HIGH`, pages.
    high_wmark: Plain<A, u64>,
    managed: Plain<A, u64>,
    start: Plain<A, usize>,
    end: Plain<A, usize>,
    pcp: PerCpu<A, PerCpuPages<A>>,
    /// All nodes, this one first, then by distance.
    zonelist: KRef<[Plain<A, u32>]>,
    b: Line<Buddy<A>>,
    /// `NR_FREE_PAGES`: changed under the lock, looked at without.
    free_pages: Line<Atomic<A, u64>>,
}

impl<A: Hardware> Zone<A> {
    fn lock(&self, cpu: &Cpu<A>) {
        let waited = raw_spin_lock_timed(cpu, &self.b.0.lock);
        if waited != 0 {
            let pcp = self.pcp.this(cpu);
            pcp.add(PageCount::LockContended, 1);
            pcp.add(PageCount::LockWait, waited);
        }
    }

    fn unlock(&self, cpu: &Cpu<A>) {
        raw_spin_unlock(cpu, &self.b.0.lock);
    }

    fn nr_free(&self) -> u64 {
        self.free_pages.0.load(Relaxed)
    }
}

/// The page allocator of a kernel.
pub struct PageAllocator<A: Hardware> {
    zones: KRef<[KRef<Zone<A>>]>,
    rest: KRef<[NodeRest]>,
    cpu_to_node: KRef<[u32]>,
    /// Fixed high mark of the per-CPU lists, pages; 0: tuned. Written at boot.
    fixed_high: Plain<A, u32>,
    /// CPUs that work, without the kernel threads.
    nr_cpus: u32,
    /// What fails on purpose, if anything; written at boot. The host's word.
    faults: Plain<Native, *mut FaultInjection>,
}
// SAFETY: a node's rest is taken under its zone's lock; all else is arena memory made of words.
unsafe impl<A: Hardware> Sync for PageAllocator<A> {}
// SAFETY: as above.
unsafe impl<A: Hardware> Send for PageAllocator<A> {}

/// Boot memory for a slice filled by `init`.
pub(super) fn boot_slice<T>(arena: &Arena, node: u32, n: usize, mut init: impl FnMut(usize) -> T) -> KRef<[T]> {
    let p = arena.boot_alloc(node, Layout::array::<T>(n).expect("a small table")).cast::<T>();
    for i in 0..n {
        // SAFETY: fresh boot memory for n elements.
        unsafe { p.as_ptr().add(i).write(init(i)) };
    }
    // SAFETY: filled above; boot memory lives as long as the kernel.
    unsafe { KRef::new(std::ptr::NonNull::new_unchecked(slice_from_raw_parts_mut(p.as_ptr(), n))) }
}

/// Names a table to the simulator.
fn label_slice<A: Hardware, T>(t: KRef<[T]>, what: &'static str) {
    A::label(t.as_ptr().cast::<u8>(), size_of_val(&*t), what);
}

/// `mm_init()`, first half: makes the zones and the per-CPU lists. Pages come with [`memblock_free_all`], after the
/// last piece of boot memory was taken. Nodes are tried in the order of their numbers until [`build_zonelists`].
pub fn page_alloc_init<A: Hardware>(
    arena: &Arena,
    nr_cpus: u32,
    node_of: &dyn Fn(u32) -> u32,
) -> KRef<PageAllocator<A>> {
    page_alloc_init_with(arena, nr_cpus, NR_KTHREADS, node_of)
}

/// [`page_alloc_init`] of a kernel with more kernel threads.
pub fn page_alloc_init_with<A: Hardware>(
    arena: &Arena,
    nr_cpus: u32,
    nr_kthreads: u32,
    node_of: &dyn Fn(u32) -> u32,
) -> KRef<PageAllocator<A>> {
    let nr_nodes = arena.nr_nodes();
    let nr_cpu_ids = nr_cpus + nr_kthreads;
    let node = |c| if c < nr_cpus { node_of(c) } else { 0 };
    let zones = boot_slice(arena, 0, nr_nodes as usize, |nid| {
        let nid = nid as u32;
        let pcp = PerCpu::new(arena, nr_cpu_ids, node, "per_cpu_pages", |_| PerCpuPages::new());
        let zonelist = boot_slice(arena, nid, nr_nodes as usize, |i| {
            Plain::new(match i as u32 {
                0 => nid,
                i if i <= nid => i - 1,
                i => i,
            })
        });
        label_slice::<A, _>(zonelist, "zonelist");
        let z = arena.boot_new(
            nid,
            Zone {
                populated: Plain::new(0),
                high_wmark: Plain::new(0),
                managed: Plain::new(0),
                start: Plain::new(0),
                end: Plain::new(0),
                pcp,
                zonelist,
                b: Line(Buddy {
                    free_area: std::array::from_fn(|_| PageList::new()),
                    below_high: Atomic::new(0),
                    lock: RawSpinLock::new(),
                }),
                free_pages: Line(Atomic::new(0)),
            },
        );
        A::label(z.as_ptr().cast(), size_of::<Zone<A>>(), "zone");
        z
    });
    let rest = boot_slice(arena, 0, nr_nodes as usize, |nid| arena.rest(nid as u32));
    let cpu_to_node = boot_slice(arena, 0, nr_cpu_ids as usize, |c| node(c as u32));
    let pa = arena.boot_new(
        0,
        PageAllocator { zones, rest, cpu_to_node, fixed_high: Plain::new(0), nr_cpus, faults: Plain::new(null_mut()) },
    );
    A::label(pa.as_ptr().cast(), size_of::<PageAllocator<A>>(), "page_allocator");
    pa
}

/// `build_all_zonelists()`: nearest nodes first, by `distance(from, to)`. At boot.
pub fn build_zonelists<A: Hardware>(pa: &PageAllocator<A>, distance: &dyn Fn(u32, u32) -> u32) {
    for from in 0..pa.nr_nodes() {
        let mut order: Vec<u32> = (0..pa.nr_nodes()).collect();
        order.sort_by_key(|&to| (to != from, distance(from, to), to));
        for (slot, to) in pa.zones[from as usize].zonelist.iter().zip(order) {
            slot.set(to);
        }
    }
}

/// `memblock_free_all()`: ends boot allocation; what is left of every node becomes free pages.
pub fn memblock_free_all<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>) {
    for nid in 0..pa.nr_nodes() {
        populate(cpu, pa, nid);
    }
}

#[cold]
#[inline(never)]
fn populate<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>, nid: u32) {
    let z = &*pa.zones[nid as usize];
    z.lock(cpu);
    let fresh = z.populated.get() == 0;
    if fresh {
        z.populated.set(1);
        // SAFETY: a machine's arena outlives the kernels booted on it, and boot is over once pages are asked for.
        let (node_start, start, end) = unsafe { pa.rest[nid as usize].take() };
        let records = page_record(node_start);
        let bytes = page_record(end) as usize - records as usize;
        A::label(records, bytes, "struct page");
        // SAFETY: the records of this node's pages; no page was handed out yet. An earlier kernel's tags go away.
        unsafe { A::clear(records, bytes) };
        if nid != 0 {
            for r in (records as usize..records as usize + bytes).step_by(RECORD_SIZE) {
                // SAFETY: a record of this node.
                unsafe { (*(r as *mut Page<A>)).flags.store(u64::from(nid) << NODES_SHIFT, Relaxed) };
            }
        }
        z.start.set(start);
        z.end.set(end);
        z.managed.set(((end - start) >> PAGE_SHIFT) as u64);
        let mut at = start;
        while at < end {
            let mut order = MAX_PAGE_ORDER.min((at >> PAGE_SHIFT).trailing_zeros());
            while at + (PAGE_SIZE << order) > end {
                order -= 1;
            }
            // SAFETY: the block lies in the rest of the node and was never handed out.
            unsafe { free_one_page(z, virt_to_page(at as *const u8), order, true) };
            at += PAGE_SIZE << order;
        }
    }
    z.unlock(cpu);
    if fresh {
        zone_set_pageset_high_and_batch(cpu, pa, z, nid);
    }
}

/// `__setup_per_zone_wmarks()`: the low and the high watermark of a zone of so many pages, one of `nodes` alike.
fn zone_watermarks(managed: u64, nodes: u64) -> (u64, u64) {
    // calculate_min_free_kbytes(): the root of 16 times the memory in KiB.
    let kib = managed * nodes * (PAGE_SIZE as u64 >> 10);
    let min_free_kbytes = (kib * 16).isqrt().clamp(128, 262_144);
    let min = (min_free_kbytes >> (PAGE_SHIFT - 10)) / nodes;
    let step = (min / 4).max(managed * WATERMARK_SCALE_FACTOR / 10_000);
    (min + step, min + 2 * step)
}

/// `find_buddy_page_pfn()`: the free block of `order` beside `page`, if it is one; and where it would be, as an index
/// into the zone's arena.
///
/// # Safety
/// The zone's lock is held; `page` is a record of the zone at a place that a block of `order` can have.
unsafe fn find_buddy_page<A: Hardware>(z: &Zone<A>, page: *mut Page<A>, order: u32) -> Option<*mut Page<A>> {
    let base = page as usize & !(ARENA_SIZE - 1);
    // Records are laid out as pages are, so the buddy's record is found like the buddy's page number.
    let index = (page as usize - base) / RECORD_SIZE;
    let buddy_index = index ^ (1 << order);
    let addr = base + (buddy_index << PAGE_SHIFT);
    if addr < z.start.get() || addr + (PAGE_SIZE << order) > z.end.get() {
        return None;
    }
    let buddy = (base + buddy_index * RECORD_SIZE) as *mut Page<A>;
    // SAFETY: a record of this zone.
    let b = unsafe { &*buddy };
    (b.page_type.load(Relaxed) == PG_BUDDY && b.private.load(Relaxed) == u64::from(order)).then_some(buddy)
}

/// `buddy_merge_likely()`: whether the block next to the pair that `page` is half of is free: then, once the other half
/// is, all three join. Such a block is better handed out last.
///
/// # Safety
/// As [`find_buddy_page`].
unsafe fn buddy_merge_likely<A: Hardware>(z: &Zone<A>, page: *mut Page<A>, order: u32) -> bool {
    if order >= MAX_PAGE_ORDER - 1 {
        return false;
    }
    let base = page as usize & !(ARENA_SIZE - 1);
    let index = ((page as usize - base) / RECORD_SIZE) & !(1 << order);
    // SAFETY: the caller's; the pair's first record is of the arena.
    unsafe { find_buddy_page(z, (base + index * RECORD_SIZE) as *mut Page<A>, order + 1) }.is_some()
}

/// `__free_one_page()`: puts a block back and joins it with its free neighbours.
///
/// # Safety
/// The block is this zone's, nobody uses it; the zone's lock is held.
unsafe fn free_one_page<A: Hardware>(z: &Zone<A>, page: *mut Page<A>, order: u32, to_tail: bool) {
    let (mut page, mut order) = (page, order);
    z.free_pages.0.store(z.nr_free() + (1 << order), Relaxed);
    let free_area = &z.b.0.free_area;
    while order < MAX_PAGE_ORDER {
        // SAFETY: the caller's.
        let Some(buddy) = (unsafe { find_buddy_page(z, page, order) }) else { break };
        // SAFETY: tagged as free at this order, hence on that list.
        unsafe {
            free_area[order as usize].del(buddy);
            (*buddy).page_type.store(PG_NONE, Relaxed);
        }
        page = page.min(buddy);
        order += 1;
    }
    // SAFETY: the block is free and on no list.
    unsafe {
        (*page).page_type.store(PG_BUDDY, Relaxed);
        (*page).private.store(u64::from(order), Relaxed);
        if to_tail || buddy_merge_likely(z, page, order) {
            free_area[order as usize].push_tail(page);
        } else {
            free_area[order as usize].push(page);
        }
    }
}

/// `__rmqueue_smallest()`: takes a block, splitting a larger one if need be; null when there is none. The zone's lock
/// is held.
fn rmqueue_smallest<A: Hardware>(z: &Zone<A>, order: u32) -> *mut Page<A> {
    for have in order..=MAX_PAGE_ORDER {
        let page = z.b.0.free_area[have as usize].first.get();
        if page.is_null() {
            continue;
        }
        // SAFETY: on that list; the upper halves belong to the block and are on no list.
        unsafe {
            z.b.0.free_area[have as usize].del(page);
            (*page).page_type.store(PG_NONE, Relaxed);
            for half in (order..have).rev() {
                let upper = page.add(1 << half);
                (*upper).page_type.store(PG_BUDDY, Relaxed);
                (*upper).private.store(u64::from(half), Relaxed);
                z.b.0.free_area[half as usize].push(upper);
            }
        }
        z.free_pages.0.store(z.nr_free() - (1 << order), Relaxed);
        return page;
    }
    null_mut()
}

/// `drain_all_pages()`: every per-CPU list back to its zone.
pub fn drain_all_pages<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>) {
    for z in pa.zones.iter() {
        for pcp in z.pcp.iter() {
            raw_spin_lock(cpu, &pcp.lock);
            if pcp.count.get() != 0 {
                free_pcppages_bulk(cpu, z, pcp, pcp.count.get(), 0);
            }
            raw_spin_unlock(cpu, &pcp.lock);
        }
    }
}

#[inline]
fn rmqueue<A: Hardware>(cpu: &Cpu<A>, z: &Zone<A>, order: u32) -> *mut Page<A> {
    if order <= PAGE_ALLOC_COSTLY_ORDER {
        let page = rmqueue_pcplist(cpu, z, order);
        if !page.is_null() {
            return page;
        }
    }
    z.lock(cpu);
    let page = rmqueue_smallest(z, order);
    z.unlock(cpu);
    z.pcp.this(cpu).add(PageCount::ZoneLocked, 1);
    page
}

/// Of `get_page_from_freelist()`: notes that the zone has no more free pages than its high watermark, so that the
/// per-CPU lists shrink.
#[inline(always)]
fn watch_high_wmark<A: Hardware>(z: &Zone<A>) {
    if z.b.0.below_high.load(Relaxed) == 0 && z.nr_free() <= z.high_wmark.get() {
        z.b.0.below_high.store(1, Relaxed);
    }
}

/// `alloc_pages()`: 2^order pages near the CPU's node, naturally aligned; null when there are none. The bytes are
/// arbitrary.
#[inline]
pub fn alloc_pages<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>, order: u32) -> *mut u8 {
    alloc_pages_node(cpu, pa, cpu.node, order, false)
}

/// `__alloc_pages_node()`: as [`alloc_pages`] near `nid`, or (`thisnode`, for `__GFP_THISNODE`) from there alone.
#[inline]
pub fn alloc_pages_node<A: Hardware>(
    cpu: &Cpu<A>,
    pa: &PageAllocator<A>,
    nid: u32,
    order: u32,
    thisnode: bool,
) -> *mut u8 {
    let faults = pa.faults.get();
    // SAFETY: boot memory.
    if !faults.is_null() && unsafe { &*faults }.should_fail_alloc_page(cpu, order) {
        return null_mut();
    }
    let z = &*pa.zones[nid as usize];
    watch_high_wmark(z);
    let page = rmqueue(cpu, z, order);
    if page.is_null() {
        return alloc_pages_slowpath(cpu, pa, nid, order, thisnode);
    }
    record_page(page as usize) as *mut u8
}

#[cold]
#[inline(never)]
fn alloc_pages_slowpath<A: Hardware>(
    cpu: &Cpu<A>,
    pa: &PageAllocator<A>,
    nid: u32,
    order: u32,
    thisnode: bool,
) -> *mut u8 {
    if order > MAX_PAGE_ORDER {
        return null_mut();
    }
    let zonelist = &pa.zones[nid as usize].zonelist;
    let zonelist = if thisnode { &zonelist[..1] } else { &zonelist[..] };
    for drained in [false, true] {
        if drained {
            drain_all_pages(cpu, pa);
        }
        for n in zonelist {
            let z = &*pa.zones[n.get() as usize];
            if z.populated.get() == 0 {
                populate(cpu, pa, n.get());
            }
            let page = rmqueue(cpu, z, order);
            if !page.is_null() {
                return record_page(page as usize) as *mut u8;
            }
        }
    }
    null_mut()
}

/// `free_unref_folios()`: frees single pages, the CPU's lists locked once for all that are of one node.
///
/// # Safety
/// As [`free_pages`] with order 0, for each.
pub unsafe fn free_unref_folios<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>, pages: &[*mut u8]) {
    let mut held: Option<(&Zone<A>, &PerCpuPages<A>)> = None;
    for &p in pages {
        let page = virt_to_page::<A>(p);
        // SAFETY: every page has a record.
        let pg = unsafe { &*page };
        assert_eq!(pg.page_type.load(Relaxed), PG_NONE, "bad page state: {p:p} freed");
        A::label(p, PAGE_SIZE, "free page");
        let z = &*pa.zones[page_to_nid(pg) as usize];
        if held.is_none_or(|(h, _)| !std::ptr::eq(h, z)) {
            if let Some((_, pcp)) = held.take() {
                raw_spin_unlock(cpu, &pcp.lock);
            }
            let pcp = z.pcp.this(cpu);
            if raw_spin_trylock(cpu, &pcp.lock) {
                held = Some((z, pcp));
            }
        }
        // SAFETY: the caller's; under the list's lock, or the zone's.
        unsafe {
            match held {
                Some((z, pcp)) => free_unref_page_commit(cpu, z, pcp, page, 0),
                None => {
                    z.lock(cpu);
                    free_one_page(z, page, 0, false);
                    z.unlock(cpu);
                    z.pcp.this(cpu).add(PageCount::ZoneLocked, 1);
                }
            }
        }
    }
    if let Some((_, pcp)) = held {
        raw_spin_unlock(cpu, &pcp.lock);
    }
}

/// `free_pages()`
///
/// # Safety
/// `p` came from [`alloc_pages`] with `order`, and nobody uses it.
///
/// # Panics
/// When the page is free already or still a slab.
#[inline]
pub unsafe fn free_pages<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>, p: *mut u8, order: u32) {
    let page = virt_to_page::<A>(p);
    // SAFETY: every page has a record.
    let pg = unsafe { &*page };
    assert_eq!(pg.page_type.load(Relaxed), PG_NONE, "bad page state: {p:p} freed at order {order}");
    A::label(p, PAGE_SIZE << order, "free page");
    let z = &*pa.zones[page_to_nid(pg) as usize];
    if order <= PAGE_ALLOC_COSTLY_ORDER {
        let pcp = z.pcp.this(cpu);
        if raw_spin_trylock(cpu, &pcp.lock) {
            // SAFETY: on no list; under the list's lock.
            unsafe { free_unref_page_commit(cpu, z, pcp, page, order) };
            raw_spin_unlock(cpu, &pcp.lock);
            return;
        }
    }
    z.lock(cpu);
    // SAFETY: the caller's.
    unsafe { free_one_page(z, page, order, false) };
    z.unlock(cpu);
    z.pcp.this(cpu).add(PageCount::ZoneLocked, 1);
}

/// `alloc_page()`
#[inline]
pub fn alloc_page<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>) -> *mut u8 {
    alloc_pages(cpu, pa, 0)
}

/// `free_page()`
///
/// # Safety
/// As [`free_pages`] with order 0.
#[inline]
pub unsafe fn free_page<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>, p: *mut u8) {
    // SAFETY: the caller's.
    unsafe { free_pages(cpu, pa, p, 0) }
}

/// `clear_page()`
///
/// # Safety
/// `p` is a page that no other CPU can see.
#[inline(always)]
pub unsafe fn clear_page<A: Hardware>(p: *mut u8) {
    // SAFETY: the caller's.
    unsafe { A::clear(p, PAGE_SIZE) };
}

/// `prep_compound_page()`: makes the tail pages' records point to the head's.
///
/// # Safety
/// The block was just allocated with `order`.
pub(super) unsafe fn prep_compound_page<A: Hardware>(head: *mut Page<A>, order: u32) {
    for i in 1..1usize << order {
        // SAFETY: records of the block.
        unsafe { (*head.add(i)).compound_head.store(head as usize | 1, Relaxed) };
    }
}

/// Undoes [`prep_compound_page`], before the block is freed.
///
/// # Safety
/// The block is a compound of `order` that is about to be freed.
pub(super) unsafe fn destroy_compound_page<A: Hardware>(head: *mut Page<A>, order: u32) {
    for i in 0..1usize << order {
        // SAFETY: records of the block.
        unsafe { (*head.add(i)).compound_head.store(0, Relaxed) };
    }
}

impl<A: Hardware> PageAllocator<A> {
    /// CPU numbers that have per-CPU blocks: the workers' and [`NR_KTHREADS`] more.
    pub fn nr_cpu_ids(&self) -> u32 {
        self.cpu_to_node.len() as u32
    }

    /// `cpu_to_node()`; kernel threads count as node 0's.
    pub fn cpu_to_node(&self, cpu: u32) -> u32 {
        self.cpu_to_node[cpu as usize]
    }

    /// NUMA nodes.
    pub fn nr_nodes(&self) -> u32 {
        self.zones.len() as u32
    }

    /// Nodes from `nid` outwards, itself first.
    pub fn zonelist(&self, nid: u32) -> impl Iterator<Item = u32> + '_ {
        self.zones[nid as usize].zonelist.iter().map(|n| n.get())
    }

    /// Lets allocations fail as `faults` says. At boot.
    pub(super) fn set_faults(&self, faults: KRef<FaultInjection>) {
        self.faults.set(faults.as_ptr());
    }

    /// Fixes the high mark of the per-CPU lists, pages (sysctl `percpu_pagelist_high_fraction`). At boot, before
    /// [`memblock_free_all`].
    pub fn set_pageset_high(&self, pages: u32) {
        self.fixed_high.set(pages.max(4 * PCP_BATCH));
    }

    /// Calls `f` with each counter of the page allocator and its sum.
    pub fn for_each_stat(&self, mut f: impl FnMut(&'static str, u64)) {
        for (i, name) in PAGE_COUNTS.iter().enumerate() {
            f(name, self.zones.iter().flat_map(|z| z.pcp.iter()).map(|p| p.stat[i].get()).sum());
        }
    }

    /// Pages handed out and not given back. Exact while nobody allocates; 0 after a clean shutdown.
    pub fn outstanding(&self) -> u64 {
        (0..self.nr_nodes()).map(|n| self.node_outstanding(n)).sum()
    }

    /// As [`PageAllocator::outstanding`], of one node's memory.
    pub fn node_outstanding(&self, nid: u32) -> u64 {
        let z = &self.zones[nid as usize];
        let pcp: u64 = z.pcp.iter().map(|p| u64::from(p.count.get())).sum();
        z.managed.get() - z.nr_free() - pcp
    }

    /// Pages there are, of all nodes; 0 before [`memblock_free_all`].
    pub fn managed(&self) -> u64 {
        self.zones.iter().map(|z| z.managed.get()).sum()
    }
}

const _: () = assert!(ARENA_SHIFT > PAGE_SHIFT + MAX_PAGE_ORDER);

#[cfg(test)]
mod tests;
