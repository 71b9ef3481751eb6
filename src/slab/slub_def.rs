// SPDX-License-Identifier: GPL-2.0-only
//! What SLUB is made of: the block of a CPU, the record of a slab, the list of a node, the cache [mm/slab.h and the
//! structures of mm/slub.c, 6.12; what 7.3 adds is in `sheaf.rs` and `barn.rs`]. Sizes and offsets are the kernel's and asserted; who may change what is said in
//! `slub.rs`.
//!
//! custom: a cache and CPU's block has lines of its own, where the kernel packs the blocks of a CPU's caches together;
//! the counters stand behind it as with CONFIG_SLUB_STATS. Node lists end in null instead of being circular.

use super::SlabState;
use super::barn::NodeBarn;
use super::page_alloc::{PG_SLAB, Page, page_to_nid, virt_to_head_page};
use super::reuse::ReuseCpu;
use super::stat::{HighWater, StatItem, Stats};
use crate::arch::arena::{KRef, RECORD_SIZE, record_page};
use crate::arch::{Atomic, Hardware, Native, Plain, Relaxed};
use crate::cpu::{Cpu, PerCpu};
use crate::rcu::RcuHead;
use crate::sync::{RawSpinLock, raw_spin_lock_timed};
use std::ptr::{from_ref, null_mut};

/// Step of the transaction number: a power of two not below the configured maximum of CPUs (distributions: 8192).
pub const TID_STEP: u64 = 8192;
/// Flag of a record: on its node's list (`PG_workingset`).
const SL_PARTIAL: u64 = 1 << 9;

/// `struct kmem_cache_cpu`
#[repr(C, align(64))]
pub struct KmemCacheCpu<A: Hardware> {
    /// First free object, 0 at the end. With `tid` one 16-byte unit.
    pub(super) freelist: Atomic<A, usize>,
    /// Transaction number.
    pub(super) tid: Atomic<A, u64>,
    /// The slab allocated from.
    pub(super) slab: Atomic<A, *mut Slab<A>>,
    /// Stack of partial slabs.
    pub(super) partial: Atomic<A, *mut Slab<A>>,
    /// Who watches the distances of reuse here; null: nobody. The host's own word, never priced.
    pub(super) reuse: Plain<Native, *mut ReuseCpu>,
    pub(super) stat: Stats,
    pub(super) waiting: HighWater,
}

impl<A: Hardware> KmemCacheCpu<A> {
    pub(super) fn new(cpu: u32) -> Self {
        KmemCacheCpu {
            freelist: Atomic::new(0),
            tid: Atomic::new(u64::from(cpu)),
            slab: Atomic::new(null_mut()),
            partial: Atomic::new(null_mut()),
            reuse: Plain::new(null_mut()),
            stat: Stats::default(),
            waiting: HighWater::default(),
        }
    }

    #[inline(always)]
    pub(super) fn pair(&self) -> *mut u64 {
        from_ref(self).cast_mut().cast()
    }

    /// `next_tid()`, where nothing can compare with the old one.
    #[inline(always)]
    pub(super) fn bump_tid(&self) {
        self.tid.store(self.tid.load(Relaxed).wrapping_add(TID_STEP), Relaxed);
    }

    #[inline(always)]
    pub(super) fn stat(&self, i: StatItem) {
        self.stat.add(i, 1);
    }
}

/// `struct slab`: the record of a slab's first page, seen as a slab.
#[repr(C, align(64))]
pub struct Slab<A: Hardware> {
    pub(super) flags: Atomic<A, u64>,
    pub(super) slab_cache: Atomic<A, *mut KmemCache<A>>,
    /// Node list, or next on a CPU's stack; or, with the next word, the `rcu_head` of a dead slab, which is on no list.
    pub(super) next: Atomic<A, *mut Slab<A>>,
    /// Node list, or the length of the CPU's stack from here on (`slabs`).
    pub(super) prev: Atomic<A, *mut Slab<A>>,
    pub(super) freelist: Atomic<A, usize>,
    pub(super) counters: Atomic<A, u64>,
    pub(super) page_type: Atomic<A, u32>,
    _refcount: Atomic<A, u32>,
    /// Array of a pointer an object, 0: none.
    pub(super) obj_exts: Atomic<A, u64>,
}

const _: () = {
    use std::mem::offset_of;
    type S = Slab<Native>;
    assert!(size_of::<S>() == RECORD_SIZE && size_of::<Page<Native>>() == RECORD_SIZE);
    assert!(offset_of!(S, flags) == 0 && offset_of!(S, slab_cache) == 8);
    assert!(offset_of!(S, next) == 16 && size_of::<RcuHead<Native>>() == 16);
    assert!(offset_of!(S, freelist) == 32 && offset_of!(S, counters) == 40);
    assert!(offset_of!(S, page_type) == 48 && offset_of!(S, obj_exts) == 56);
    assert!(offset_of!(S, page_type) == offset_of!(Page<Native>, page_type));
    assert!(offset_of!(S, slab_cache) == offset_of!(Page<Native>, compound_head));
    type C = KmemCacheCpu<Native>;
    assert!(offset_of!(C, freelist) == 0 && offset_of!(C, tid) == 8 && offset_of!(C, slab) == 16);
    assert!(offset_of!(C, partial) == 24 && offset_of!(C, reuse) == 32 && offset_of!(C, stat) == 40);
    assert!(size_of::<KmemCacheNode<Native>>() == 64);
};

/// The counters word of a record: inuse:16, objects:15, frozen:1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabCounters(pub(crate) u64);

impl SlabCounters {
    pub(crate) fn new(inuse: u32, objects: u32, frozen: bool) -> Self {
        SlabCounters(u64::from(inuse) | u64::from(objects) << 16 | u64::from(frozen) << 31)
    }
    pub(crate) fn inuse(self) -> u32 {
        (self.0 & 0xffff) as u32
    }
    pub(crate) fn objects(self) -> u32 {
        (self.0 >> 16 & 0x7fff) as u32
    }
    pub(crate) fn frozen(self) -> bool {
        self.0 >> 31 & 1 != 0
    }
    pub(crate) fn with_inuse(self, n: u32) -> Self {
        SlabCounters(self.0 & !0xffff | u64::from(n))
    }
    pub(crate) fn with_frozen(self, f: bool) -> Self {
        SlabCounters(self.0 & !(1 << 31) | u64::from(f) << 31)
    }
}

impl<A: Hardware> Slab<A> {
    #[inline(always)]
    pub(super) fn freelist(&self) -> usize {
        self.freelist.load(Relaxed)
    }
    #[inline(always)]
    pub(super) fn counters(&self) -> SlabCounters {
        SlabCounters(self.counters.load(Relaxed))
    }
    #[inline(always)]
    pub(super) fn next(&self) -> *mut Slab<A> {
        self.next.load(Relaxed)
    }
    pub(super) fn set_next(&self, p: *mut Slab<A>) {
        self.next.store(p, Relaxed);
    }
    /// `slabs`: length of the CPU stack from here on.
    #[inline(always)]
    pub(super) fn slabs(&self) -> usize {
        self.prev.load(Relaxed) as usize
    }
    #[inline(always)]
    pub(super) fn on_node_partial(&self) -> bool {
        self.flags.load(Relaxed) & SL_PARTIAL != 0
    }
    #[cfg(test)]
    pub(super) fn page_type(&self) -> u32 {
        self.page_type.load(Relaxed)
    }
    #[cfg(test)]
    pub(super) fn cache(&self) -> *const KmemCache<A> {
        self.slab_cache.load(Relaxed)
    }
    /// `slab_nid()`
    #[inline(always)]
    pub(super) fn nid(&self) -> u32 {
        // SAFETY: both are views of the same record.
        page_to_nid(unsafe { &*from_ref(self).cast::<Page<A>>() })
    }
    /// `slab_address()`
    #[inline(always)]
    pub(super) fn address(&self) -> usize {
        record_page(from_ref(self) as usize)
    }
    #[inline(always)]
    pub(super) fn pair(&self) -> *mut u64 {
        // SAFETY: inside the record.
        unsafe { from_ref(self).cast_mut().cast::<u64>().add(4) }
    }
}

/// `struct kmem_cache_node`
#[repr(C, align(64))]
pub struct KmemCacheNode<A: Hardware> {
    pub(super) list_lock: RawSpinLock<A>,
    /// Length of the list; looked at without the lock.
    pub(super) nr_partial: Atomic<A, u64>,
    pub(super) first: Plain<A, *mut Slab<A>>,
    pub(super) last: Plain<A, *mut Slab<A>>,
    pub(super) nr_slabs: Atomic<A, u64>,
    pub(super) total_objects: Atomic<A, u64>,
    pub(super) slabs_hw: Atomic<Native, u64>,
}

impl<A: Hardware> KmemCacheNode<A> {
    pub(super) fn new() -> Self {
        KmemCacheNode {
            list_lock: RawSpinLock::new(),
            nr_partial: Atomic::new(0),
            first: Plain::new(null_mut()),
            last: Plain::new(null_mut()),
            nr_slabs: Atomic::new(0),
            total_objects: Atomic::new(0),
            slabs_hw: Atomic::new(0),
        }
    }

    /// `add_partial()`. `list_lock` held.
    pub(super) fn add_partial(&self, slab: &Slab<A>, tail: bool) {
        self.nr_partial.store(self.nr_partial.load(Relaxed) + 1, Relaxed);
        self.link(slab, tail);
        slab.flags.fetch_or(SL_PARTIAL, Relaxed);
    }

    /// `remove_partial()`. `list_lock` held.
    pub(super) fn remove_partial(&self, slab: &Slab<A>) {
        self.unlink(slab);
        slab.flags.fetch_and(!SL_PARTIAL, Relaxed);
        self.nr_partial.store(self.nr_partial.load(Relaxed) - 1, Relaxed);
    }

    pub(super) fn link(&self, slab: &Slab<A>, tail: bool) {
        let p = from_ref(slab).cast_mut();
        let (prev, next) = if tail { (self.last.get(), null_mut()) } else { (null_mut(), self.first.get()) };
        slab.prev.store(prev, Relaxed);
        slab.next.store(next, Relaxed);
        if prev.is_null() {
            self.first.set(p);
        } else {
            // SAFETY: on this list, whose lock is held.
            unsafe { (*prev).next.store(p, Relaxed) };
        }
        if next.is_null() {
            self.last.set(p);
        } else {
            // SAFETY: as above.
            unsafe { (*next).prev.store(p, Relaxed) };
        }
    }

    pub(super) fn unlink(&self, slab: &Slab<A>) {
        let (prev, next) = (slab.prev.load(Relaxed), slab.next.load(Relaxed));
        if prev.is_null() {
            self.first.set(next);
        } else {
            // SAFETY: on this list, whose lock is held.
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

/// `struct kmem_cache`. Everything but the statistics is constant after creation. The first line holds what every
/// allocation and free reads.
#[repr(C, align(64))]
pub struct KmemCache<A: Hardware> {
    pub(super) cpu_slab: PerCpu<A, KmemCacheCpu<A>>,
    /// Offset of the link word in a free object.
    pub(super) offset: usize,
    /// Secret of hardened links.
    pub(super) random: u64,
    /// Objects of a sheaf; 0: none (`SLAB_NO_SHEAVES`), or the 6.12 allocator.
    pub(super) sheaf_capacity: u32,
    /// Whether the blocks of `cpu_slab` are percpu sheaves (7.3) and not cpu slabs (6.12).
    pub(super) cpu_sheaves: bool,
    pub(super) hardened: bool,
    pub(super) init_on_alloc: bool,
    /// Whether allocations take the way of `hooks.rs`.
    pub(super) alloc_hooks: bool,
    /// Whether frees do.
    pub(super) free_hooks: bool,
    pub(super) typesafe: bool,
    /// Bytes from one object to the next.
    pub(super) size: usize,
    /// Bytes of an object as asked for.
    pub(super) object_size: usize,
    pub(super) cpu_partial_slabs: u32,
    pub(super) min_partial: u64,
    /// Order and objects of a slab.
    pub(super) oo: (u32, u32),
    /// The same of the smallest slab, for want of better.
    pub(super) min: (u32, u32),
    pub(super) remote_node_defrag_ratio: u64,
    pub(super) flags: u32,
    pub(super) ctor: Option<unsafe fn(*mut u8)>,
    pub(super) random_seq: Option<KRef<[u32]>>,
    pub(super) node: KRef<[KRef<KmemCacheNode<A>>]>,
    /// Each node's barn; empty in a cache without sheaves.
    pub(super) barn: KRef<[KRef<NodeBarn<A>>]>,
    /// Where the arrays of its objects' cgroups come from, if it is charged.
    pub(super) exts_cache: Option<KRef<KmemCache<A>>>,
    pub(super) state: KRef<SlabState<A>>,
    /// Next in `slab_caches`.
    pub(super) list: Plain<Native, *mut KmemCache<A>>,
    /// Name.
    pub name: &'static str,
    /// What its objects are, for the simulator's counts.
    pub(super) label: &'static str,
}
const _: () = {
    use std::mem::offset_of;
    // One line: telling the allocators apart costs a branch and no miss.
    assert!(offset_of!(KmemCache<Native>, typesafe) < 64 && align_of::<KmemCache<Native>>() == 64);
};

impl<A: Hardware> KmemCache<A> {
    /// Bytes from one object to the next.
    pub fn size(&self) -> usize {
        self.size
    }
    /// Objects of a slab.
    pub fn objects_per_slab(&self) -> u32 {
        self.oo.1
    }
    /// Order of a slab.
    pub fn order(&self) -> u32 {
        self.oo.0
    }
    /// Bound of a CPU's partial stack, slabs.
    pub fn cpu_partial_slabs(&self) -> u32 {
        self.cpu_partial_slabs
    }
    /// Offset of the word inside a free object that the allocator uses.
    pub fn freeptr_offset(&self) -> usize {
        self.offset
    }
    /// Objects of a sheaf; 0 where there are no sheaves.
    pub fn sheaf_capacity(&self) -> u32 {
        self.sheaf_capacity
    }
    /// `SLAB_*` flags.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    #[inline(always)]
    pub(super) fn this_cpu(&self, cpu: &Cpu<A>) -> &KmemCacheCpu<A> {
        self.cpu_slab.this(cpu)
    }
    #[inline(always)]
    pub(super) fn stat(&self, cpu: &Cpu<A>, i: StatItem) {
        self.this_cpu(cpu).stat(i);
    }
    #[inline(always)]
    pub(super) fn stat_add(&self, cpu: &Cpu<A>, i: StatItem, n: u64) {
        self.this_cpu(cpu).stat.add(i, n);
    }
    #[inline(always)]
    pub(super) fn get_node(&self, nid: u32) -> &KmemCacheNode<A> {
        &self.node[nid as usize]
    }
    #[inline]
    pub(super) fn lock_node(&self, cpu: &Cpu<A>, n: &KmemCacheNode<A>) {
        let waited = raw_spin_lock_timed(cpu, &n.list_lock);
        self.stat(cpu, StatItem::ListLock);
        if waited != 0 {
            self.stat(cpu, StatItem::ListLockContended);
            self.stat_add(cpu, StatItem::ListLockWait, waited);
        }
    }

    /// The link word of a free object.
    ///
    /// # Safety
    /// `object` is an object of this cache.
    #[inline(always)]
    pub(super) unsafe fn link_word(&self, object: usize) -> &Atomic<A, u64> {
        // SAFETY: the caller's; the word is 8-aligned and inside the slab. Never accessed but as an atomic.
        unsafe { &*((object + self.offset) as *const Atomic<A, u64>) }
    }

    /// `freelist_ptr_encode()` and `freelist_ptr_decode()`.
    #[inline(always)]
    pub(super) fn mangle(&self, v: u64, at: usize) -> u64 {
        if self.hardened { v ^ self.random ^ (at as u64).swap_bytes() } else { v }
    }

    /// `get_freepointer()`
    ///
    /// # Safety
    /// `object` is a free object of this cache that only the caller can take.
    #[inline(always)]
    pub(super) unsafe fn get_freepointer(&self, object: usize) -> usize {
        // SAFETY: the caller's.
        let v = unsafe { self.link_word(object) }.load(Relaxed);
        self.mangle(v, object + self.offset) as usize
    }

    /// `get_freepointer_safe()`: the link of an object that frees of other CPUs push others before meanwhile. What it says
    /// counts only where the exchange on the slab's record then succeeds.
    ///
    /// PORT: where the kernel looks at its CPU's freelist the link is nobody else's here; the name is for scripts/tsan.supp.
    ///
    /// # Safety
    /// `object` was the first free object of a slab of this cache, whose memory stays.
    #[inline(always)]
    pub(super) unsafe fn get_freepointer_safe(&self, object: usize) -> usize {
        // SAFETY: the caller's: a word of the slab's memory, read as an atomic.
        unsafe { self.get_freepointer(object) }
    }

    /// `set_freepointer()`
    ///
    /// # Safety
    /// `object` is a free object of this cache that only the caller can reach.
    ///
    /// # Panics
    /// When a hardened cache would link an object to itself: it was freed twice in a row.
    #[inline(always)]
    pub(super) unsafe fn set_freepointer(&self, object: usize, next: usize) {
        if self.hardened && object == next {
            double_free(object, self.name);
        }
        // SAFETY: the caller's.
        // ORDER: relaxed; the exchange that publishes the object orders it before (slab record: full; CPU freelist:
        // same CPU).
        unsafe { self.link_word(object) }.store(self.mangle(next as u64, object + self.offset), Relaxed);
    }
}

#[cold]
#[inline(never)]
pub(super) fn double_free(object: usize, name: &str) -> ! {
    panic!("kernel BUG: object {object:#x} of {name} freed twice");
}

#[cold]
#[inline(never)]
pub(super) fn wrong_slab(p: usize, name: &str) -> ! {
    panic!("kernel BUG: {p:#x} is no object of {name}");
}

/// `virt_to_slab()`: the record of the slab that `p` lies in, through the head link of a tail page.
///
/// # Safety
/// `p` is arena memory.
///
/// # Panics
/// When it lies in no slab.
#[inline(always)]
pub unsafe fn virt_to_slab<A: Hardware>(p: *const u8) -> *mut Slab<A> {
    // SAFETY: the caller's; a slab is a view of a page record.
    let slab = unsafe { virt_to_head_page::<A>(p) }.cast::<Slab<A>>();
    // SAFETY: a record.
    if unsafe { &*slab }.page_type.load(Relaxed) != PG_SLAB {
        wrong_slab(p as usize, "any cache");
    }
    slab
}
