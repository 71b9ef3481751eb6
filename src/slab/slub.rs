// SPDX-License-Identifier: GPL-2.0-only
//! SLUB: allocating and freeing objects [mm/slub.c, mm/slab.h, 6.12], and where the two allocators part: a cache of the
//! 7.3 allocator goes on in `sheaf.rs`.
//!
//! dup: per-CPU slabs with the (freelist, tid) exchange, slab records with the (freelist, counters) exchange, CPU
//! partial stacks, node lists, freezing, remote frees, NUMA rules with their defect (an allocation without a wish takes
//! a remote slab from the CPU stack unseen), type-stable freeing, bulk calls, hardened and shuffled freelists.
//!
//! custom: nothing interrupts an allocator call (module above), so loops that restart after preemption are straight
//! code; a node refuses foreign visitors by the CPU's own random number in place of the cycle counter. stub: debugging,
//! merging, memcg, KASAN and KFENCE, page reserves, list of full slabs.
//!
//! ```text
//! state         on node list  frozen  where
//! cpu slab      no            yes     one CPU's `slab`; objects on the CPU's freelist count as in use
//! cpu partial   no            no      one CPU's `partial` stack, linked by `next`; the head's `slabs` is the length
//! node partial  yes           no      the list of the slab's own node, flag SL_PARTIAL set
//! full          no            no      nowhere; freelist empty
//! ```
//! INVARIANT: objects minus the length of the slab's freelist = `inuse`. Only pushes and take-all happen to a slab's
//! freelist at the same time, so its exchange has no ABA. The freelist and counters of a record, and the pair of a CPU,
//! are written by 16-byte exchanges and read as two words: a torn pair makes the exchange fail.
//!
//! The link word inside a free object is an atomic for every access, since readers of a type-stable object may look at
//! it long after the free. Cannot tell: the cost of disabling interrupts on the slow path, which 6.12 pays and the port
//! does not.

use super::SLAB_TYPESAFE_BY_RCU;
use super::hooks::{slab_alloc_hooked, slab_free_hooked};
use super::memcg::free_slab_obj_exts;
use super::page_alloc::{
    NUMA_NO_NODE, PG_NONE, PG_SLAB, Page, alloc_pages_node, destroy_compound_page, free_pages, prep_compound_page,
    virt_to_page,
};
use super::record::{Freed, Record, push_chain, take_freelist};
use super::reuse::{reuse_alloc, reuse_free};
use super::sheaf::{pcs_flush_all, slab_alloc_sheaves, slab_free_sheaves};
use super::slub_def::{KmemCache, KmemCacheCpu, KmemCacheNode, Slab, SlabCounters, TID_STEP, virt_to_slab, wrong_slab};
use super::stat::{StatItem, Waiting};
use crate::arch::arena::PAGE_SIZE;
use crate::arch::{Hardware, Relaxed, barrier};
use crate::cpu::Cpu;
use crate::rcu::{RcuHead, call_rcu};
use crate::sync::raw_spin_unlock;
use std::cell::Cell;
use std::ptr::{from_ref, null_mut};

/// `__slab_update_freelist()`, `slab_update_freelist()`: one try to change freelist and counters together.
///
/// ORDER: full. As release it publishes the links that the caller wrote (met by get_freelist(), freeze_slab()); as
/// acquire it lets the taker of a list read links that others wrote (__slab_free(), deactivate_slab()).
#[inline(always)]
pub(super) fn slab_update_freelist<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    slab: &Slab<A>,
    old: (usize, SlabCounters),
    new: (usize, SlabCounters),
) -> bool {
    // SAFETY: an aligned pair inside a record, otherwise read and (unshared) written as two atomics.
    if unsafe { A::cmpxchg_double(slab.pair(), [old.0 as u64, old.1.0], [new.0 as u64, new.1.0]) } {
        return true;
    }
    A::cpu_relax();
    s.stat(cpu, StatItem::CmpxchgDoubleFail);
    false
}

#[inline(always)]
fn node_match<A: Hardware>(slab: &Slab<A>, node: u32) -> bool {
    node == NUMA_NO_NODE || slab.nid() == node
}

/// `kmem_cache_alloc()`: null when out of memory. The object's bytes are arbitrary.
#[inline(always)]
pub fn kmem_cache_alloc<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> *mut u8 {
    slab_alloc_node(cpu, s, NUMA_NO_NODE)
}

/// `kmem_cache_alloc_node()`: as [`kmem_cache_alloc`], from `node` if it has any memory left.
#[inline]
pub fn kmem_cache_alloc_node<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32) -> *mut u8 {
    slab_alloc_node(cpu, s, node)
}

/// `slab_alloc_node()`. PORT: what the kernel does before and after each allocation is off the way of a cache that has
/// none of it to do.
#[inline(always)]
fn slab_alloc_node<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32) -> *mut u8 {
    if s.alloc_hooks {
        return slab_alloc_hooked(cpu, s, node);
    }
    __slab_alloc_node(cpu, s, node) as *mut u8
}

/// `__slab_alloc_node()`. Which allocator serves a cache never changes, so the branch is predicted; it reads the line of
/// the cache that both halves read anyway.
#[inline(always)]
pub(super) fn __slab_alloc_node<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32) -> usize {
    // Once: the kernel's is an offset to a segment register, here it is three loads and a comparison.
    let c = s.this_cpu(cpu);
    let object = if s.cpu_sheaves { slab_alloc_sheaves(cpu, s, c, node) } else { slab_alloc_cpu_slab(cpu, s, c, node) };
    reuse_alloc(c, object);
    object
}

/// The 6.12 half of `slab_alloc_node()`.
#[inline(always)]
fn slab_alloc_cpu_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, c: &KmemCacheCpu<A>, node: u32) -> usize {
    loop {
        let tid = c.tid.load(Relaxed);
        // The number first: whatever is read below belongs to this transaction or makes the exchange fail.
        barrier();
        let object = c.freelist.load(Relaxed);
        let slab = c.slab.load(Relaxed);
        // SAFETY: a cpu slab's record.
        if object == 0 || slab.is_null() || !node_match(unsafe { &*slab }, node) {
            return ___slab_alloc(cpu, s, node, c);
        }
        // SAFETY: first of this CPU's freelist.
        let next = unsafe { s.get_freepointer(object) };
        // SAFETY: this CPU's own aligned pair.
        if unsafe {
            A::this_cpu_cmpxchg_double(c.pair(), [object as u64, tid], [next as u64, tid.wrapping_add(TID_STEP)])
        } {
            // PORT: not for the end of the list, whose address the kernel prefetches in vain.
            if next != 0 {
                A::prefetchw((next + s.offset) as *const u8);
            }
            c.stat(StatItem::AllocFastpath);
            return object;
        }
        c.stat(StatItem::CmpxchgDoubleCpuFail);
    }
}

/// `___slab_alloc()`: 0 when out of memory.
#[cold]
#[inline(never)]
pub(super) fn ___slab_alloc<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32, c: &KmemCacheCpu<A>) -> usize {
    c.stat(StatItem::AllocSlowpath);

    let slab = c.slab.load(Relaxed);
    if !slab.is_null() {
        // SAFETY: a cpu slab's record.
        let slab = unsafe { &*slab };
        if !node_match(slab, node) {
            c.stat(StatItem::AllocNodeMismatch);
            let freelist = c.freelist.load(Relaxed);
            c.slab.store(null_mut(), Relaxed);
            c.freelist.store(0, Relaxed);
            c.bump_tid();
            deactivate_slab(cpu, s, slab, freelist);
        } else {
            let mut freelist = c.freelist.load(Relaxed);
            if freelist == 0 {
                freelist = get_freelist(cpu, s, slab);
                if freelist != 0 {
                    c.stat(StatItem::AllocRefill);
                }
            }
            if freelist != 0 {
                return load_freelist(s, c, freelist);
            }
            // Full, and nobody's from now on: the next free finds it so.
            c.slab.store(null_mut(), Relaxed);
            c.bump_tid();
            c.stat(StatItem::DeactivateBypass);
        }
    }

    loop {
        let p = c.partial.load(Relaxed);
        if p.is_null() {
            break;
        }
        // SAFETY: on this CPU's stack.
        let slab = unsafe { &*p };
        c.partial.store(slab.next(), Relaxed);
        if node_match(slab, node) {
            c.slab.store(p, Relaxed);
            let freelist = get_freelist(cpu, s, slab);
            assert!(freelist != 0, "a partial slab of {} has no free object", s.name);
            c.stat(StatItem::CpuPartialAlloc);
            return load_freelist(s, c, freelist);
        }
        slab.next.store(null_mut(), Relaxed);
        __put_partials(cpu, s, p);
    }

    let mut thisnode = node != NUMA_NO_NODE;
    let (slab, freelist) = loop {
        let slab = get_partial(cpu, s, node, thisnode);
        if !slab.is_null() {
            // SAFETY: just taken off a node list.
            break (slab, freeze_slab(cpu, s, unsafe { &*slab }));
        }
        let slab = new_slab(cpu, s, node, thisnode);
        if !slab.is_null() {
            c.stat(StatItem::AllocSlab);
            // SAFETY: nobody else knows this slab yet, so plain stores do.
            let sl = unsafe { &*slab };
            let freelist = sl.freelist();
            sl.freelist.store(0, Relaxed);
            let objects = sl.counters().objects();
            sl.counters.store(SlabCounters::new(objects, objects, true).0, Relaxed);
            inc_slabs_node(s, sl.nid(), objects);
            break (slab, freelist);
        }
        if !thisnode {
            c.stat(StatItem::AllocFail);
            return 0;
        }
        thisnode = false;
    };
    debug_assert!(c.slab.load(Relaxed).is_null(), "nothing can have installed a slab meanwhile");
    c.slab.store(slab, Relaxed);
    load_freelist(s, c, freelist)
}

/// Takes the first of `freelist`; the rest becomes the CPU's.
#[inline(always)]
fn load_freelist<A: Hardware>(s: &KmemCache<A>, c: &KmemCacheCpu<A>, freelist: usize) -> usize {
    // SAFETY: a list that this CPU has just taken whole.
    c.freelist.store(unsafe { s.get_freepointer(freelist) }, Relaxed);
    c.bump_tid();
    freelist
}

/// A slab's record, for the loops of `record.rs`.
pub(super) struct Of<'a, A: Hardware>(pub(super) &'a Cpu<A>, pub(super) &'a KmemCache<A>, pub(super) &'a Slab<A>);

impl<A: Hardware> Record for Of<'_, A> {
    #[inline(always)]
    fn freelist(&self) -> usize {
        self.2.freelist()
    }
    #[inline(always)]
    fn counters(&self) -> SlabCounters {
        self.2.counters()
    }
    #[inline(always)]
    fn update(&self, old: (usize, SlabCounters), new: (usize, SlabCounters)) -> bool {
        slab_update_freelist(self.0, self.1, self.2, old, new)
    }
}

/// `get_freelist()`: takes all free objects of a cpu slab; with none the slab is full and no longer frozen.
fn get_freelist<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) -> usize {
    let (freelist, found) = take_freelist(&Of(cpu, s, slab), |list| list != 0);
    count_remote(cpu, s, slab, found);
    freelist
}

/// `freeze_slab()`: takes all free objects of a slab that was just taken off its node list.
fn freeze_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) -> usize {
    let (freelist, found) = take_freelist(&Of(cpu, s, slab), |_| true);
    debug_assert!(!found.frozen());
    count_remote(cpu, s, slab, found);
    freelist
}

/// Objects of another node's slab are the CPU's to hand out; `found`: the counters before.
#[inline]
pub(super) fn count_remote<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>, found: SlabCounters) {
    if slab.nid() != cpu.node {
        s.stat_add(cpu, StatItem::RemoteObjects, u64::from(found.objects() - found.inuse()));
    }
}

/// `get_partial()`
fn get_partial<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32, thisnode: bool) -> *mut Slab<A> {
    let search = if node == NUMA_NO_NODE { cpu.node } else { node };
    let slab = get_partial_node(cpu, s, s.get_node(search));
    if !slab.is_null() || thisnode {
        return slab;
    }
    get_any_partial(cpu, s)
}

/// `get_partial_node()`: the first slab of the list; up to `cpu_partial_slabs / 2 + 1` more go to this CPU's stack.
fn get_partial_node<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, n: &KmemCacheNode<A>) -> *mut Slab<A> {
    // Racy: a slab missed here costs a new one, a slab imagined costs a lock.
    if n.nr_partial.load(Relaxed) == 0 {
        return null_mut();
    }
    let mut partial: *mut Slab<A> = null_mut();
    let mut extra = 0;
    s.lock_node(cpu, n);
    let mut p = n.first.get();
    while !p.is_null() {
        // SAFETY: on the list, whose lock is held.
        let slab = unsafe { &*p };
        let next = slab.next();
        n.remove_partial(slab);
        if partial.is_null() {
            partial = p;
            s.stat(cpu, StatItem::AllocFromPartial);
            if s.cpu_partial_slabs == 0 {
                break;
            }
        } else {
            put_cpu_partial(cpu, s, slab, false);
            s.stat(cpu, StatItem::CpuPartialNode);
            extra += 1;
            if extra > s.cpu_partial_slabs / 2 {
                break;
            }
        }
        p = next;
    }
    raw_spin_unlock(cpu, &n.list_lock);
    partial
}

/// `get_any_partial()`: from nodes that have more partial slabs than they must keep, nearest first. So a node without
/// partial slabs takes remote ones before it asks for a page of its own.
fn get_any_partial<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> *mut Slab<A> {
    // PORT: the kernel takes the cycle counter, which is not the same in two runs.
    if s.remote_node_defrag_ratio == 0 || cpu.random() % 1024 > s.remote_node_defrag_ratio {
        return null_mut();
    }
    for nid in s.state.pages.zonelist(cpu.node) {
        let n = s.get_node(nid);
        if n.nr_partial.load(Relaxed) > s.min_partial {
            let slab = get_partial_node(cpu, s, n);
            if !slab.is_null() {
                return slab;
            }
        }
    }
    null_mut()
}

/// `inc_slabs_node()`
pub(super) fn inc_slabs_node<A: Hardware>(s: &KmemCache<A>, nid: u32, objects: u32) {
    let n = s.get_node(nid);
    let now = n.nr_slabs.fetch_add(1, Relaxed) + 1;
    n.total_objects.fetch_add(u64::from(objects), Relaxed);
    // Another CPU may be at it too: the higher one stays.
    let mut seen = n.slabs_hw.load(Relaxed);
    while now > seen && !n.slabs_hw.try_cmpxchg(now, &mut seen, Relaxed) {}
}

/// `dec_slabs_node()`
pub(super) fn dec_slabs_node<A: Hardware>(s: &KmemCache<A>, nid: u32, objects: u32) {
    let n = s.get_node(nid);
    n.nr_slabs.fetch_sub(1, Relaxed);
    n.total_objects.fetch_sub(u64::from(objects), Relaxed);
}

/// A slab that nobody else knows yet, and its objects in the order in which they are to be handed out.
pub(super) struct NewSlab<'a, A: Hardware> {
    pub(super) slab: &'a Slab<A>,
    pub(super) objects: u32,
    start: usize,
    pos: usize,
}

impl<A: Hardware> NewSlab<'_, A> {
    /// `next_freelist_entry()`, `setup_object()`: at most `objects` times.
    #[inline(always)]
    pub(super) fn next_object(&mut self, cpu: &Cpu<A>, s: &KmemCache<A>) -> usize {
        let object = match s.random_seq.as_deref().filter(|_| self.objects >= 2) {
            None => {
                self.pos += 1;
                self.start + (self.pos - 1) * s.size
            }
            Some(seq) => loop {
                let i = seq[self.pos];
                self.pos = (self.pos + 1) % seq.len();
                // A slab of a smaller order has fewer objects than the permutation.
                if i < self.objects {
                    break self.start + i as usize * s.size;
                }
            },
        };
        if let Some(ctor) = s.ctor {
            s.stat(cpu, StatItem::CtorCalls);
            // SAFETY: a fresh object of the constructor's cache.
            unsafe { ctor(object as *mut u8) };
        }
        object
    }

    /// Links the next `n` objects, at least one; returns the first.
    pub(super) fn link_objects(&mut self, cpu: &Cpu<A>, s: &KmemCache<A>, n: u32) -> usize {
        let head = self.next_object(cpu, s);
        let mut cur = head;
        for _ in 1..n {
            let next = self.next_object(cpu, s);
            // SAFETY: objects of our fresh slab.
            unsafe { s.set_freepointer(cur, next) };
            cur = next;
        }
        // SAFETY: as above.
        unsafe { s.set_freepointer(cur, 0) };
        head
    }
}

/// `allocate_slab()`, first half: pages and a record, no freelist; `None` when out of memory.
pub(super) fn allocate_slab<'a, A: Hardware>(
    cpu: &Cpu<A>,
    s: &'a KmemCache<A>,
    node: u32,
    thisnode: bool,
) -> Option<NewSlab<'a, A>> {
    let pages = &*s.state.pages;
    let nid = if node == NUMA_NO_NODE { cpu.node } else { node };
    let mut oo = s.oo;
    let mut p = alloc_pages_node(cpu, pages, nid, oo.0, thisnode);
    if p.is_null() {
        oo = s.min;
        p = alloc_pages_node(cpu, pages, nid, oo.0, thisnode);
        if p.is_null() {
            return None;
        }
        s.stat(cpu, StatItem::OrderFallback);
    }
    let (order, objects) = oo;
    A::label(p, PAGE_SIZE << order, s.label);
    s.stat_add(cpu, StatItem::PagesTaken, 1 << order);
    if s.state.options.init_on_alloc {
        // SAFETY: our fresh pages.
        unsafe { A::clear(p, PAGE_SIZE << order) };
    }
    let page = virt_to_page::<A>(p);
    // SAFETY: our fresh block.
    unsafe { prep_compound_page(page, order) };
    // SAFETY: the record of our block's first page, seen as a slab; nobody else knows it.
    let slab = unsafe { &*page.cast::<Slab<A>>() };
    slab.slab_cache.store(from_ref(s).cast_mut(), Relaxed);
    if s.exts_cache.is_some() {
        slab.obj_exts.store(0, Relaxed);
    }
    slab.counters.store(SlabCounters::new(0, objects, false).0, Relaxed);
    // PORT: the position is the CPU's own random number, the kernel's one of its generator's.
    let pos = match &s.random_seq {
        Some(seq) if objects >= 2 => (cpu.random() % seq.len() as u64) as usize,
        _ => 0,
    };
    slab.page_type.store(PG_SLAB, Relaxed);
    Some(NewSlab { slab, objects, start: p as usize, pos })
}

/// `new_slab()`: pages, a record, a linked freelist; null when out of memory.
fn new_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32, thisnode: bool) -> *mut Slab<A> {
    let Some(mut new) = allocate_slab(cpu, s, node, thisnode) else { return null_mut() };
    let head = new.link_objects(cpu, s, new.objects);
    new.slab.freelist.store(head, Relaxed);
    from_ref(new.slab).cast_mut()
}

/// `kmem_cache_free()`
///
/// # Safety
/// `p` is an allocated object of `s` that nobody else will free.
///
/// # Panics
/// When `p` lies in no slab; in a hardened cache also when it lies in another cache's or was freed twice in a row.
#[inline(always)]
pub unsafe fn kmem_cache_free<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: *mut u8) {
    // SAFETY: the caller's: an object is arena memory; a slab with an object in use stays one.
    unsafe {
        if s.free_hooks {
            return slab_free_hooked(cpu, s, p);
        }
        let slab = &*virt_to_slab::<A>(p);
        if s.hardened && slab.slab_cache.load(Relaxed).cast_const() != from_ref(s) {
            wrong_slab(p as usize, s.name);
        }
        slab_free(cpu, s, slab, p as usize);
    }
}

/// `slab_free()`
///
/// # Safety
/// As [`kmem_cache_free`]; `object` lies in `slab` of `s`.
#[inline(always)]
pub(super) unsafe fn slab_free<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>, object: usize) {
    // Once, as in __slab_alloc_node().
    let c = s.this_cpu(cpu);
    reuse_free(c, object);
    // SAFETY: the caller's.
    unsafe {
        if s.cpu_sheaves {
            slab_free_sheaves(cpu, s, c, slab, object);
        } else {
            do_slab_free(cpu, s, c, slab, object, object, 1);
        }
    }
}

/// `kfree()`: the cache is found from the page record.
///
/// # Safety
/// `p` is an allocated object of some cache that nobody else will free.
///
/// # Panics
/// When `p` lies in no slab.
#[inline]
pub unsafe fn kfree<A: Hardware>(cpu: &Cpu<A>, p: *mut u8) {
    // SAFETY: the caller's, as above; the cache outlives its slabs.
    unsafe {
        let slab = &*virt_to_slab::<A>(p);
        let s = &*slab.slab_cache.load(Relaxed);
        if s.free_hooks {
            return slab_free_hooked(cpu, s, p);
        }
        slab_free(cpu, s, slab, p as usize);
    }
}

/// `do_slab_free()`: frees the chain `head..=tail` of `cnt` objects of one slab.
///
/// # Safety
/// The objects are allocated, of this slab of `s`, linked in order up to `tail`, and nobody else's. `c` is this CPU's.
#[inline(always)]
pub(super) unsafe fn do_slab_free<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    c: &KmemCacheCpu<A>,
    slab: &Slab<A>,
    head: usize,
    tail: usize,
    cnt: u32,
) {
    loop {
        let tid = c.tid.load(Relaxed);
        // As in slab_alloc_node().
        barrier();
        if c.slab.load(Relaxed).cast_const() != from_ref(slab) {
            // SAFETY: the caller's.
            return unsafe { __slab_free(cpu, s, slab, head, tail, cnt) };
        }
        let freelist = c.freelist.load(Relaxed);
        // SAFETY: the caller's; then this CPU's own aligned pair.
        unsafe {
            s.set_freepointer(tail, freelist);
            if A::this_cpu_cmpxchg_double(c.pair(), [freelist as u64, tid], [head as u64, tid.wrapping_add(TID_STEP)]) {
                c.stat.add(StatItem::FreeFastpath, u64::from(cnt));
                return;
            }
        }
        c.stat(StatItem::CmpxchgDoubleCpuFail);
    }
}

/// `__slab_free()`: to a slab that is not this CPU's.
#[cold]
#[inline(never)]
unsafe fn __slab_free<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>, head: usize, tail: usize, cnt: u32) {
    s.stat(cpu, StatItem::FreeSlowpath);
    s.stat_add(cpu, StatItem::FreeSlowObjects, u64::from(cnt));
    let n: Cell<Option<&KmemCacheNode<A>>> = Cell::new(None);
    let mut on_node_partial = false;
    let has_cpu_partial = s.cpu_partial_slabs != 0;
    let again = || {
        if let Some(n) = n.take() {
            raw_spin_unlock(cpu, &n.list_lock);
        }
    };
    let Freed { prior, was_frozen, inuse } = push_chain(&Of(cpu, s, slab), head, cnt, again, |f| {
        // SAFETY: the caller's: nobody else can reach the chain before the exchange.
        unsafe { s.set_freepointer(tail, f.prior) };
        if (f.inuse == 0 || f.prior == 0) && !f.was_frozen && (!has_cpu_partial || f.prior != 0) {
            // It may have to leave a list: the lock comes first, the exchange second.
            let node = s.get_node(slab.nid());
            s.lock_node(cpu, node);
            on_node_partial = slab.on_node_partial();
            n.set(Some(node));
        }
    });

    let Some(n) = n.get() else {
        if was_frozen {
            s.stat(cpu, StatItem::FreeFrozen);
        } else if has_cpu_partial && prior == 0 {
            // It was full, hence nowhere, and is now this CPU's to place.
            put_cpu_partial(cpu, s, slab, true);
            s.stat(cpu, StatItem::CpuPartialFree);
        }
        return;
    };
    if prior != 0 && !on_node_partial {
        // On some CPU's stack: even empty it stays there.
        raw_spin_unlock(cpu, &n.list_lock);
        return;
    }
    if inuse == 0 && n.nr_partial.load(Relaxed) >= s.min_partial {
        if prior != 0 {
            n.remove_partial(slab);
            s.stat(cpu, StatItem::FreeRemovePartial);
        }
        raw_spin_unlock(cpu, &n.list_lock);
        s.stat(cpu, StatItem::FreeSlab);
        discard_slab(cpu, s, slab);
        return;
    }
    if !has_cpu_partial && prior == 0 {
        n.add_partial(slab, true);
        s.stat(cpu, StatItem::FreeAddPartial);
    }
    raw_spin_unlock(cpu, &n.list_lock);
}

/// `put_cpu_partial()`: onto this CPU's stack; with `drain` a full stack first moves to the node lists.
fn put_cpu_partial<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>, drain: bool) {
    let c = s.this_cpu(cpu);
    let mut old = c.partial.load(Relaxed);
    let mut to_put: *mut Slab<A> = null_mut();
    let mut slabs = 0;
    if !old.is_null() {
        // SAFETY: on this CPU's stack.
        let n = unsafe { &*old }.slabs();
        if drain && n >= s.cpu_partial_slabs as usize {
            to_put = old;
            old = null_mut();
        } else {
            slabs = n;
        }
    }
    slab.prev.store((slabs + 1) as *mut Slab<A>, Relaxed);
    slab.next.store(old, Relaxed);
    c.partial.store(from_ref(slab).cast_mut(), Relaxed);
    if !to_put.is_null() {
        __put_partials(cpu, s, to_put);
        c.stat(StatItem::CpuPartialDrain);
    }
}

/// `__put_partials()`: a detached stack to the node lists; empty slabs beyond what a node keeps are discarded.
#[cold]
#[inline(never)]
pub(super) fn __put_partials<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, mut partial: *mut Slab<A>) {
    let mut locked: Option<&KmemCacheNode<A>> = None;
    let mut discard: *mut Slab<A> = null_mut();
    while !partial.is_null() {
        let p = partial;
        // SAFETY: of a detached stack, which is this CPU's alone.
        let slab = unsafe { &*p };
        partial = slab.next();
        let n = s.get_node(slab.nid());
        if !locked.is_some_and(|l| std::ptr::eq(l, n)) {
            if let Some(l) = locked {
                raw_spin_unlock(cpu, &l.list_lock);
            }
            s.lock_node(cpu, n);
            locked = Some(n);
        }
        if slab.counters().inuse() == 0 && n.nr_partial.load(Relaxed) >= s.min_partial {
            slab.next.store(discard, Relaxed);
            discard = p;
        } else {
            n.add_partial(slab, true);
            s.stat(cpu, StatItem::FreeAddPartial);
        }
    }
    if let Some(l) = locked {
        raw_spin_unlock(cpu, &l.list_lock);
    }
    while !discard.is_null() {
        // SAFETY: empty and on no list: nobody else's.
        let slab = unsafe { &*discard };
        discard = slab.next();
        s.stat(cpu, StatItem::DeactivateEmpty);
        discard_slab(cpu, s, slab);
        s.stat(cpu, StatItem::FreeSlab);
    }
}

/// `deactivate_slab()`: a cpu slab gives its objects back and goes where its state says.
#[cold]
#[inline(never)]
fn deactivate_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>, freelist: usize) {
    let n = s.get_node(slab.nid());
    let tail = slab.freelist() != 0;
    if tail {
        s.stat(cpu, StatItem::DeactivateRemoteFrees);
    }
    let (mut free, mut last, mut it) = (0, 0, freelist);
    while it != 0 {
        last = it;
        free += 1;
        // SAFETY: on the freelist of a CPU that gave it up.
        it = unsafe { s.get_freepointer(it) };
    }
    let (head, inuse) = loop {
        let (old, counters) = (slab.freelist(), slab.counters());
        debug_assert!(counters.frozen());
        let mut new = counters.with_frozen(false);
        let mut head = old;
        if last != 0 {
            new = new.with_inuse(counters.inuse() - free);
            // SAFETY: as above.
            unsafe { s.set_freepointer(last, old) };
            head = freelist;
        }
        if slab_update_freelist(cpu, s, slab, (old, counters), (head, new)) {
            break (head, new.inuse());
        }
    };
    if inuse == 0 && n.nr_partial.load(Relaxed) >= s.min_partial {
        s.stat(cpu, StatItem::DeactivateEmpty);
        discard_slab(cpu, s, slab);
        s.stat(cpu, StatItem::FreeSlab);
    } else if head != 0 {
        s.lock_node(cpu, n);
        n.add_partial(slab, tail);
        raw_spin_unlock(cpu, &n.list_lock);
        s.stat(cpu, if tail { StatItem::DeactivateToTail } else { StatItem::DeactivateToHead });
    } else {
        s.stat(cpu, StatItem::DeactivateFull);
    }
}

/// `discard_slab()`: an empty slab on no list leaves the cache at once; its pages may have to wait.
pub(super) fn discard_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) {
    dec_slabs_node(s, slab.nid(), slab.counters().objects());
    free_slab(cpu, s, slab);
}

/// `free_slab()`
pub(super) fn free_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) {
    if s.typesafe {
        s.stat(cpu, StatItem::TypesafeQueued);
        let head = (from_ref(slab) as usize + std::mem::offset_of!(Slab<A>, next)) as *mut RcuHead<A>;
        // SAFETY: the list words of a slab that is on no list; no new reader finds its objects, and pages are given
        // back by the callback alone.
        unsafe { call_rcu(cpu, &s.state.rcu, head, rcu_free_slab::<A>) };
    } else {
        __free_slab(cpu, s, slab);
    }
}

/// `rcu_free_slab()`
///
/// # Safety
/// A callback of [`free_slab`].
unsafe fn rcu_free_slab<A: Hardware>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    let slab = (head as usize - std::mem::offset_of!(Slab<A>, next)) as *mut Slab<A>;
    // SAFETY: the head lies in the record of a dead slab, which still names its cache; caches wait for their callbacks
    // before they go.
    let (slab, s) = unsafe { (&*slab, &*(*slab).slab_cache.load(Relaxed)) };
    s.waited(cpu, Waiting::Slabs, 1);
    __free_slab(cpu, s, slab);
}

/// `__free_slab()`: the pages go back.
fn __free_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) {
    let order = if slab.counters().objects() == s.oo.1 { s.oo.0 } else { s.min.0 };
    let p = slab.address() as *mut u8;
    s.stat_add(cpu, StatItem::PagesGiven, 1 << order);
    if s.exts_cache.is_some() {
        free_slab_obj_exts(cpu, s, slab);
    }
    slab.page_type.store(PG_NONE, Relaxed);
    // SAFETY: our block, of which nobody uses anything any more.
    unsafe {
        destroy_compound_page(from_ref(slab).cast_mut().cast::<Page<A>>(), order);
        free_pages(cpu, &s.state.pages, p, order);
    }
}

/// `flush_cpu_slab()` and `__unfreeze_partials` of the calling CPU: its slab and stack go to the node lists.
/// With sheaves `pcs_flush_all()`: the CPU's sheaves go back to their slabs, the one that waits for a grace period after
/// it.
pub fn flush_cpu_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    // SAFETY: the CPU's own.
    unsafe { flush_slab(cpu, s, s.this_cpu(cpu)) }
}

/// `flush_all()`: as [`flush_cpu_slab`] for every CPU.
///
/// # Safety
/// No other CPU is inside the allocator: workers were joined, or stand still.
pub unsafe fn flush_all_cpus<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    // PORT: the kernel makes each CPU do its own; here the others have stopped.
    for c in s.cpu_slab.iter() {
        // SAFETY: the caller's.
        unsafe { flush_slab(cpu, s, c) };
    }
}

/// `flush_slab()` and `put_partials()`
///
/// # Safety
/// `c` is the calling CPU's, or its CPU is not inside the allocator.
unsafe fn flush_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, c: &KmemCacheCpu<A>) {
    if s.cpu_sheaves {
        // SAFETY: the caller's; a cache with sheaves.
        return unsafe { pcs_flush_all(cpu, s, c.sheaves()) };
    }
    let (slab, freelist) = (c.slab.load(Relaxed), c.freelist.load(Relaxed));
    c.slab.store(null_mut(), Relaxed);
    c.freelist.store(0, Relaxed);
    c.bump_tid();
    if !slab.is_null() {
        // SAFETY: a cpu slab's record.
        deactivate_slab(cpu, s, unsafe { &*slab }, freelist);
        s.stat(cpu, StatItem::CpuslabFlush);
    }
    let partial = c.partial.load(Relaxed);
    c.partial.store(null_mut(), Relaxed);
    if !partial.is_null() {
        __put_partials(cpu, s, partial);
    }
}

/// Whether `flags` delay the pages of emptied slabs.
pub(super) const fn is_typesafe(flags: u32) -> bool {
    flags & SLAB_TYPESAFE_BY_RCU != 0
}
