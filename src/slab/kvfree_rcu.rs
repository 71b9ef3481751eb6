// SPDX-License-Identifier: GPL-2.0-only
//! `kfree_rcu()`: objects freed in batches after a grace period [kernel/rcu/tree.c, 6.12; mm/slab_common.c, 7.3].
//!
//! Per CPU, pointers are collected in blocks of one page, 507 each, with the state of the grace periods at the last
//! addition; a monitor, due after a jiffy when a block's worth waits and after five seconds otherwise, frees the blocks
//! whose grace period has passed and hands the rest to one of two batches, which waits for a grace period and is then
//! freed by a kernel thread with bulk calls. Without a block at hand an object is chained through its own head. In 7.3
//! an object first tries its cache's `rcu_free` sheaf and comes here only if that refuses.
//!
//! dup: all of that, the cache of five pages and its refilling, the barrier. custom: the kernel's unbound workers and
//! the timer of the monitor are `cpu/workqueue.rs`; the page-filling work is queued at once instead of by a timer of no
//! length. stub: vmalloc objects, the shrinker and its back-off.
//!
//! INVARIANT: `kvfree_rcu.queued` = `kvfree_rcu.freed` + what waits in blocks, chains and sheaves. All words of a CPU's
//! block but its statistics change under its lock, which is taken with no other held and below which only RCU's are
//! taken.
//!
//! Cannot tell: what the kernel's scheduler makes of a kworker beside fully loaded CPUs; the port's runs where the host
//! puts it, and on a machine without a spare CPU takes its time from some worker, as the kernel's does.

use super::kvfree_def::{
    BulkList, Counter, KVFREE_BULK_MAX_ENTR, KfreeRcuCpu, KfreeRcuCpuWork, KvfreeRcuBulkData, KvfreeStats, load_snap,
    store_snap,
};
use super::page_alloc::{alloc_page, free_page};
use super::sheaf_rcu::{flush_all_rcu_sheaves, flush_rcu_sheaf, flush_rcu_sheaves_on_cache, kfree_rcu_sheaf};
use super::slub::kfree;
use super::slub_bulk::kmem_cache_free_bulk;
use super::slub_def::{KmemCache, virt_to_slab};
use super::stat::Unpriced;
use super::{Allocator, PageAllocator, SlabState};
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Acquire, Arena, Atomic, Full, Hardware, Plain, Relaxed, Release};
use crate::cpu::workqueue::{TimerHook, Work, Workqueue, flush_on_this_thread, queue_work};
use crate::cpu::{Cpu, PerCpu};
use crate::rcu::{
    RcuGpOldstate, RcuHead, RcuState, call_rcu, get_state_synchronize_rcu, get_state_synchronize_rcu_full,
    poll_state_synchronize_rcu, poll_state_synchronize_rcu_full, rcu_barrier, synchronize_rcu,
};
use crate::sync::{RawSpinLock, Rcuwait, raw_spin_lock, raw_spin_unlock, rcuwait_wait_event, rcuwait_wake_up};
use std::mem::offset_of;
use std::ptr::{null_mut, slice_from_raw_parts_mut};

/// `KFREE_DRAIN_JIFFIES`, in seconds.
const KFREE_DRAIN_S: u64 = 5;
/// `rcu_min_cached_objs`
const RCU_MIN_CACHED_OBJS: u32 = 5;
/// The engine of a kernel: `krc` and its queue.
pub struct KvfreeRcu<A: Hardware> {
    krc: PerCpu<A, KfreeRcuCpu<A>>,
    /// `rcu_reclaim_wq`
    pub wq: KRef<Workqueue<A>>,
    pages: KRef<PageAllocator<A>>,
    rcu: KRef<RcuState<A>>,
    flush: Work<A>,
    flushed: Atomic<A, u32>,
    flush_wait: Rcuwait<A>,
    /// The most objects that ever waited, as far as looked.
    pending_max: Unpriced,
    /// The broken twin, for tests to catch: blocks count as ready at once.
    #[cfg(test)]
    early: std::sync::atomic::AtomicBool,
}

fn bulk_free_work<A: Hardware>() -> KfreeRcuCpuWork<A> {
    KfreeRcuCpuWork {
        work: Work::new(kfree_rcu_work::<A>),
        rcu: RcuHead::new(),
        head_free: Atomic::new(null_mut()),
        head_free_gp_snap: [Plain::new(0), Plain::new(0)],
        bulk_head_free: BulkList::new(),
        krcp: Plain::new(null_mut()),
    }
}

/// `kfree_rcu_batch_init()`, at boot.
pub(super) fn kvfree_rcu_init<A: Hardware>(
    arena: &Arena,
    pages: KRef<PageAllocator<A>>,
    rcu: KRef<RcuState<A>>,
) -> KRef<KvfreeRcu<A>> {
    let node_of = |c| pages.cpu_to_node(c);
    let krc = PerCpu::new(arena, pages.nr_cpu_ids(), node_of, "kfree_rcu_cpu", |_| KfreeRcuCpu {
        head: Atomic::new(null_mut()),
        head_gp_snap: Plain::new(0),
        head_count: Atomic::new(0),
        bulk_head: BulkList::new(),
        bulk_count: Atomic::new(0),
        krw_arr: std::array::from_fn(|_| bulk_free_work()),
        lock: RawSpinLock::new(),
        monitor_work: Work::new(kfree_rcu_monitor::<A>),
        monitor_expires: Atomic::new(0),
        monitor_soon: Plain::new(0),
        monitor_cpu: Atomic::new(0),
        page_cache_work: Work::new(fill_page_cache_func::<A>),
        work_in_progress: Atomic::new(0),
        bkvcache: Plain::new(null_mut()),
        nr_bkv_objs: Atomic::new(0),
        state: Plain::new(null_mut()),
        stat: KvfreeStats::default(),
    });
    let wq = arena.boot_new(0, Workqueue::new());
    A::label(wq.as_ptr().cast(), size_of::<Workqueue<A>>(), "workqueue");
    let state = arena.boot_new(
        0,
        KvfreeRcu {
            krc,
            wq,
            pages,
            rcu,
            flush: Work::new(flushed::<A>),
            flushed: Atomic::new(0),
            flush_wait: Rcuwait::new(),
            pending_max: Unpriced::new(0),
            #[cfg(test)]
            early: std::sync::atomic::AtomicBool::new(false),
        },
    );
    for krcp in state.krc.iter() {
        krcp.state.set(state.as_ptr());
        for krwp in &krcp.krw_arr {
            krwp.krcp.set(std::ptr::from_ref(krcp).cast_mut());
        }
    }
    state
}

/// `get_cached_bnode()`; the lock is held.
fn get_cached_bnode<A: Hardware>(krcp: &KfreeRcuCpu<A>) -> *mut KvfreeRcuBulkData<A> {
    let n = krcp.nr_bkv_objs.load(Relaxed);
    if n == 0 {
        return null_mut();
    }
    krcp.nr_bkv_objs.store(n - 1, Relaxed);
    let b = krcp.bkvcache.get();
    // SAFETY: a page of the cache.
    krcp.bkvcache.set(unsafe { (*b).next.get() });
    b
}

/// `put_cached_bnode()`: whether there was room; the lock is held.
///
/// # Safety
/// `b` is a page of this engine on no list.
unsafe fn put_cached_bnode<A: Hardware>(krcp: &KfreeRcuCpu<A>, b: *mut KvfreeRcuBulkData<A>) -> bool {
    let n = krcp.nr_bkv_objs.load(Relaxed);
    if n >= RCU_MIN_CACHED_OBJS {
        return false;
    }
    // SAFETY: the caller's.
    unsafe { (*b).next.set(krcp.bkvcache.get()) };
    krcp.bkvcache.set(b);
    krcp.nr_bkv_objs.store(n + 1, Relaxed);
    true
}

/// `kfree_bulk()`: frees objects of any caches; their order in `p` is lost.
///
/// # Safety
/// As `kfree()` for each.
unsafe fn kfree_bulk<A: Hardware>(cpu: &Cpu<A>, p: &mut [*mut u8]) {
    // SAFETY: the caller's: objects lie in slabs, which name their caches.
    let cache_of = |p: *mut u8| unsafe { (*virt_to_slab::<A>(p)).slab_cache.load(Relaxed) };
    let mut rest = p;
    while let Some(&last) = rest.last() {
        // PORT: the kernel looks the cache up slab by slab; a run of one cache is the same.
        let s: *mut KmemCache<A> = cache_of(last);
        let from = rest.iter().rposition(|&o| cache_of(o) != s).map_or(0, |i| i + 1);
        let (left, run) = rest.split_at_mut(from);
        // SAFETY: the caller's; caches outlive their slabs.
        unsafe { kmem_cache_free_bulk(cpu, &*s, run) };
        rest = left;
    }
}

/// `kvfree_rcu_bulk()`: frees a block's objects and puts the page away.
///
/// # Safety
/// `b` is a block on no list whose grace period has passed.
unsafe fn kvfree_rcu_bulk<A: Hardware>(
    cpu: &Cpu<A>,
    st: &KvfreeRcu<A>,
    krcp: &KfreeRcuCpu<A>,
    b: *mut KvfreeRcuBulkData<A>,
) {
    // SAFETY: the caller's.
    let block = unsafe { &*b };
    assert!(st.passed(&load_snap(&block.gp_snap)), "a block before its grace period");
    let n = block.nr_records.get() as usize;
    // SAFETY: the words are plain in every world that has raw memory, and this block is ours alone.
    let records = unsafe { &mut *slice_from_raw_parts_mut((&raw const block.records).cast_mut().cast::<*mut u8>(), n) };
    st.note_pending();
    // SAFETY: kvfree_call_rcu()'s contract; the grace period is over.
    unsafe { kfree_bulk(cpu, records) };
    st.krc.this(cpu).stat.freed.add(n as u64);
    raw_spin_lock(cpu, &krcp.lock);
    // SAFETY: the caller's.
    let kept = unsafe { put_cached_bnode(krcp, b) };
    raw_spin_unlock(cpu, &krcp.lock);
    if !kept {
        // SAFETY: a page of ours.
        unsafe { free_page(cpu, &st.pages, b.cast()) };
    }
}

/// `kvfree_rcu_list()`
///
/// # Safety
/// A chain of objects whose grace period has passed.
unsafe fn kvfree_rcu_list<A: Hardware>(cpu: &Cpu<A>, st: &KvfreeRcu<A>, mut head: *mut RcuHead<A>) {
    st.note_pending();
    while !head.is_null() {
        // SAFETY: the caller's; the object's address stands in the word of the function.
        unsafe {
            let next = (*head).next.load(Relaxed);
            let object = (*head).func.load(Relaxed) as *mut u8;
            kfree(cpu, object);
            head = next;
        }
        st.krc.this(cpu).stat.freed.add(1);
    }
}

/// `kfree_rcu_work()`: on the kworker, after a batch's grace period.
///
/// # Safety
/// The work of a [`KfreeRcuCpuWork`].
unsafe fn kfree_rcu_work<A: Hardware>(cpu: &Cpu<A>, work: *mut Work<A>) {
    // SAFETY: the caller's; blocks of CPUs live as long as the kernel.
    let (krwp, krcp, st) = unsafe {
        let krwp = &*work.byte_sub(offset_of!(KfreeRcuCpuWork<A>, work)).cast::<KfreeRcuCpuWork<A>>();
        let krcp = &*krwp.krcp.get();
        (krwp, krcp, &*krcp.state.get())
    };
    raw_spin_lock(cpu, &krcp.lock);
    let mut b = krwp.bulk_head_free.take();
    let head = krwp.head_free.load(Relaxed);
    krwp.head_free.store(null_mut(), Relaxed);
    let snap = load_snap(&krwp.head_free_gp_snap);
    raw_spin_unlock(cpu, &krcp.lock);
    while !b.is_null() {
        // SAFETY: a block of a list that is ours.
        unsafe {
            let next = (*b).next.get();
            kvfree_rcu_bulk(cpu, st, krcp, b);
            b = next;
        }
    }
    if !head.is_null() {
        assert!(st.passed(&snap), "a chain before its grace period");
        // SAFETY: a chain that is ours.
        unsafe { kvfree_rcu_list(cpu, st, head) };
    }
}

/// `need_offload_krc()`: whether anything waits that is in no batch.
fn need_offload_krc<A: Hardware>(krcp: &KfreeRcuCpu<A>) -> bool {
    !krcp.bulk_head.is_empty() || !krcp.head.load(Relaxed).is_null()
}

/// `need_wait_for_krwp_work()`: whether a batch is in use.
fn need_wait_for_krwp_work<A: Hardware>(krwp: &KfreeRcuCpuWork<A>) -> bool {
    !krwp.bulk_head_free.is_empty() || !krwp.head_free.load(Relaxed).is_null()
}

/// `__schedule_delayed_monitor_work()`; the lock is held.
fn __schedule_delayed_monitor_work<A: Hardware>(cpu: &Cpu<A>, st: &KvfreeRcu<A>, krcp: &KfreeRcuCpu<A>) {
    let count = krcp.head_count.load(Relaxed) + krcp.bulk_count.load(Relaxed);
    let hz = u64::from(st.rcu.config().hz);
    let delay = if count as usize >= KVFREE_BULK_MAX_ENTR { 1 } else { KFREE_DRAIN_S * hz };
    if krcp.monitor_work.pending() {
        return;
    }
    // PORT: the kernel compares times; here the clock costs more than a load of `jiffies`, so it is read only to arm.
    if krcp.monitor_expires.load(Relaxed) != 0 && (delay > 1 || krcp.monitor_soon.get() != 0) {
        return;
    }
    krcp.monitor_soon.set(u8::from(delay == 1));
    let when = st.rcu.jiffies() + delay;
    krcp.monitor_cpu.store(cpu.id, Relaxed);
    krcp.monitor_expires.store(when, Relaxed);
}

/// `kvfree_rcu_drain_ready()`: frees what has waited long enough without a batch.
fn kvfree_rcu_drain_ready<A: Hardware>(cpu: &Cpu<A>, st: &KvfreeRcu<A>, krcp: &KfreeRcuCpu<A>) {
    let mut ready: *mut KvfreeRcuBulkData<A> = null_mut();
    let mut head_ready = null_mut();
    raw_spin_lock(cpu, &krcp.lock);
    while !krcp.bulk_head.is_empty() {
        let b = krcp.bulk_head.last.get();
        // SAFETY: a member of the list, whose lock is held.
        unsafe {
            if !st.passed(&load_snap(&(*b).gp_snap)) {
                break;
            }
            krcp.bulk_count.fetch_sub((*b).nr_records.get() as u32, Relaxed);
            krcp.bulk_head.del_last();
            (*b).next.set(ready);
        }
        ready = b;
    }
    let head = krcp.head.load(Relaxed);
    if !head.is_null() && poll_state_synchronize_rcu(&st.rcu, krcp.head_gp_snap.get()) {
        head_ready = head;
        krcp.head_count.store(0, Relaxed);
        krcp.head.store(null_mut(), Relaxed);
    }
    raw_spin_unlock(cpu, &krcp.lock);
    while !ready.is_null() {
        let b = ready;
        // SAFETY: taken off the list above.
        unsafe {
            ready = (*b).next.get();
            kvfree_rcu_bulk(cpu, st, krcp, b);
        }
    }
    // SAFETY: as above; an empty chain is none.
    unsafe { kvfree_rcu_list(cpu, st, head_ready) };
}

/// `kvfree_rcu_queue_batch()`: hands what waits to a free batch; whether it did.
fn kvfree_rcu_queue_batch<A: Hardware>(cpu: &Cpu<A>, st: &KvfreeRcu<A>, krcp: &KfreeRcuCpu<A>) -> bool {
    let mut queued = false;
    raw_spin_lock(cpu, &krcp.lock);
    for krwp in &krcp.krw_arr {
        if need_wait_for_krwp_work(krwp) {
            continue;
        }
        if need_offload_krc(krcp) {
            krcp.bulk_count.store(0, Relaxed);
            krwp.bulk_head_free.last.set(krcp.bulk_head.last.get());
            krwp.bulk_head_free.first.store(krcp.bulk_head.take(), Relaxed);
            krwp.head_free.store(krcp.head.load(Relaxed), Relaxed);
            store_snap(&krwp.head_free_gp_snap, get_state_synchronize_rcu_full(&st.rcu));
            krcp.head_count.store(0, Relaxed);
            krcp.head.store(null_mut(), Relaxed);
            st.krc.this(cpu).stat.batches.add(1);
            // queue_rcu_work(). A batch that just ran has emptied its lists first: its head is not queued.
            // SAFETY: lives as long as the kernel.
            unsafe { call_rcu(cpu, &st.rcu, (&raw const krwp.rcu).cast_mut(), rcu_work_rcufn::<A>) };
            queued = true;
            break;
        }
    }
    raw_spin_unlock(cpu, &krcp.lock);
    queued
}

/// `rcu_work_rcufn()`
///
/// # Safety
/// The head of a [`KfreeRcuCpuWork`].
unsafe fn rcu_work_rcufn<A: Hardware>(_cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the caller's; all live as long as the kernel.
    unsafe {
        let krwp = head.byte_sub(offset_of!(KfreeRcuCpuWork<A>, rcu)).cast::<KfreeRcuCpuWork<A>>();
        let st = &*(*(*krwp).krcp.get()).state.get();
        queue_work(&st.wq, (&raw const (*krwp).work).cast_mut());
    }
}

/// `kfree_rcu_monitor()`, on the kworker.
///
/// # Safety
/// The monitor's work of a [`KfreeRcuCpu`].
unsafe fn kfree_rcu_monitor<A: Hardware>(cpu: &Cpu<A>, work: *mut Work<A>) {
    // SAFETY: the caller's.
    let (krcp, st) = unsafe {
        let krcp = &*work.byte_sub(offset_of!(KfreeRcuCpu<A>, monitor_work)).cast::<KfreeRcuCpu<A>>();
        (krcp, &*krcp.state.get())
    };
    st.krc.this(cpu).stat.monitors.add(1);
    kvfree_rcu_drain_ready(cpu, st, krcp);
    if !kvfree_rcu_queue_batch(cpu, st, krcp) && need_offload_krc(krcp) {
        st.krc.this(cpu).stat.busy.add(1);
    }
    // Both batches are in use, or more came meanwhile: try again later.
    if need_offload_krc(krcp) {
        raw_spin_lock(cpu, &krcp.lock);
        __schedule_delayed_monitor_work(cpu, st, krcp);
        raw_spin_unlock(cpu, &krcp.lock);
    }
}

/// `fill_page_cache_func()`, on the kworker.
///
/// # Safety
/// The page work of a [`KfreeRcuCpu`].
unsafe fn fill_page_cache_func<A: Hardware>(cpu: &Cpu<A>, work: *mut Work<A>) {
    // SAFETY: the caller's.
    let (krcp, st) = unsafe {
        let krcp = &*work.byte_sub(offset_of!(KfreeRcuCpu<A>, page_cache_work)).cast::<KfreeRcuCpu<A>>();
        (krcp, &*krcp.state.get())
    };
    for _ in krcp.nr_bkv_objs.load(Relaxed)..RCU_MIN_CACHED_OBJS {
        let p = alloc_page(cpu, &st.pages);
        if p.is_null() {
            break;
        }
        A::label(p, PAGE_SIZE, "kvfree_rcu_bulk_data");
        raw_spin_lock(cpu, &krcp.lock);
        // SAFETY: a fresh page.
        let pushed = unsafe { put_cached_bnode(krcp, p.cast()) };
        raw_spin_unlock(cpu, &krcp.lock);
        if !pushed {
            // SAFETY: as above.
            unsafe { free_page(cpu, &st.pages, p) };
            break;
        }
    }
    krcp.work_in_progress.store(0, Relaxed);
}

/// `run_page_cache_worker()`; the lock is held.
fn run_page_cache_worker<A: Hardware>(st: &KvfreeRcu<A>, krcp: &KfreeRcuCpu<A>) {
    // ORDER: full, as atomic_xchg() is; only one filling at a time.
    if krcp.work_in_progress.swap(1, Full) == 0 {
        // SAFETY: lives as long as the kernel.
        unsafe { queue_work(&st.wq, (&raw const krcp.page_cache_work).cast_mut()) };
    }
}

/// `add_ptr_to_bulk_krc_lock()`, whose lock the caller took: whether `ptr` found a place in a block.
#[inline]
fn add_ptr_to_bulk<A: Hardware>(
    cpu: &Cpu<A>,
    st: &KvfreeRcu<A>,
    krcp: &KfreeRcuCpu<A>,
    ptr: *mut u8,
    can_alloc: bool,
) -> bool {
    let mut b = krcp.bulk_head.first.load(Relaxed);
    // SAFETY: a member of the list, whose lock is held.
    if b.is_null() || unsafe { (*b).nr_records.get() } as usize == KVFREE_BULK_MAX_ENTR {
        b = get_cached_bnode(krcp);
        if b.is_null() && can_alloc {
            raw_spin_unlock(cpu, &krcp.lock);
            b = alloc_page(cpu, &st.pages).cast();
            raw_spin_lock(cpu, &krcp.lock);
        }
        if b.is_null() {
            return false;
        }
        krcp.stat.blocks.add(1);
        // SAFETY: a page of ours on no list.
        unsafe {
            (*b).nr_records.set(0);
            krcp.bulk_head.add(b);
        }
    }
    // SAFETY: first of the list, not full.
    let block = unsafe { &*b };
    let n = block.nr_records.get() + 1;
    block.nr_records.set(n);
    block.records[n as usize - 1].set(ptr);
    store_snap(&block.gp_snap, get_state_synchronize_rcu_full(&st.rcu));
    krcp.bulk_count.fetch_add(1, Relaxed);
    true
}

/// `kvfree_call_rcu()`: frees `ptr` after a grace period; `head` lies in it. Without a head
/// (`kvfree_rcu_mightsleep()`) the caller may have to wait for the grace period itself.
///
/// # Safety
/// `ptr` is an allocated object that no new reader can find and that nobody else frees; `head` is null or lies in it, and
/// may be overwritten. With a null head the caller may sleep.
#[inline]
pub unsafe fn kvfree_call_rcu<A: Hardware>(cpu: &Cpu<A>, slab: &SlabState<A>, head: *mut RcuHead<A>, ptr: *mut u8) {
    if slab.options.allocator == Allocator::Sheaves {
        // SAFETY: the caller's: the object lies in a slab, whose cache outlives it.
        let taken = unsafe { kfree_rcu_sheaf(cpu, &*(*virt_to_slab::<A>(ptr)).slab_cache.load(Relaxed), ptr) };
        if taken {
            return;
        }
    }
    let st = &*slab.kvfree;
    let krcp = st.krc.this(cpu);
    krcp.stat.queued.add(1);
    raw_spin_lock(cpu, &krcp.lock);
    let mut success = add_ptr_to_bulk(cpu, st, krcp, ptr, head.is_null());
    if !success {
        run_page_cache_worker(st, krcp);
        if !head.is_null() {
            krcp.stat.chained.add(1);
            // SAFETY: the caller's.
            unsafe {
                (*head).func.store(ptr as usize, Relaxed);
                (*head).next.store(krcp.head.load(Relaxed), Relaxed);
            }
            krcp.head.store(head, Relaxed);
            krcp.head_count.fetch_add(1, Relaxed);
            krcp.head_gp_snap.set(get_state_synchronize_rcu(&st.rcu));
            success = true;
        }
    }
    if success {
        __schedule_delayed_monitor_work(cpu, st, krcp);
    }
    raw_spin_unlock(cpu, &krcp.lock);
    if !success {
        synchronize_rcu(cpu, &st.rcu);
        // SAFETY: the caller's; the grace period is over.
        unsafe { kfree(cpu, ptr) };
        krcp.stat.freed.add(1);
    }
}

/// `kfree_rcu()`: as [`kvfree_call_rcu`], for an object of `s`.
///
/// # Safety
/// As [`kvfree_call_rcu`], with a head.
#[inline]
pub unsafe fn kfree_rcu<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, head: *mut RcuHead<A>, p: *mut u8) {
    // SAFETY: the caller's.
    unsafe { kvfree_call_rcu(cpu, &s.state, head, p) }
}

/// When the monitor's timer of this CPU is due. A kernel thread looks after all that kernel threads armed.
///
/// # Safety
/// `ctx` is the engine.
unsafe fn timer_next<A: Hardware>(ctx: *const (), cpu: &Cpu<A>) -> u64 {
    // SAFETY: the caller's.
    let st = unsafe { &*ctx.cast::<KvfreeRcu<A>>() };
    let mut next = u64::MAX;
    st.for_each_timer(cpu, |_, expires| next = next.min(expires * st.rcu.period));
    next
}

/// The timers of this CPU at `now`.
///
/// # Safety
/// `ctx` is the engine.
unsafe fn timer_run<A: Hardware>(ctx: *const (), cpu: &Cpu<A>, now: u64) {
    // SAFETY: the caller's.
    let st = unsafe { &*ctx.cast::<KvfreeRcu<A>>() };
    st.for_each_timer(cpu, |krcp, expires| {
        if expires * st.rcu.period > now {
            return;
        }
        raw_spin_lock(cpu, &krcp.lock);
        let due = krcp.monitor_expires.load(Relaxed);
        if due != 0 && due * st.rcu.period <= now {
            krcp.monitor_expires.store(0, Relaxed);
            // SAFETY: lives as long as the kernel.
            unsafe { queue_work(&st.wq, (&raw const krcp.monitor_work).cast_mut()) };
        }
        raw_spin_unlock(cpu, &krcp.lock);
    });
}

/// The work behind all others: who waits for the queue goes on.
///
/// # Safety
/// The `flush` work of an engine.
unsafe fn flushed<A: Hardware>(_cpu: &Cpu<A>, work: *mut Work<A>) {
    // SAFETY: the caller's.
    let st = unsafe { &*work.byte_sub(offset_of!(KvfreeRcu<A>, flush)).cast::<KvfreeRcu<A>>() };
    // ORDER: release; meets the acquire in flush_workqueue(): all that the works before did.
    st.flushed.store(1, Release);
    rcuwait_wake_up(&st.flush_wait);
}

impl<A: Hardware> KvfreeRcu<A> {
    /// Whether the grace period behind `snap` has passed.
    fn passed(&self, snap: &RcuGpOldstate) -> bool {
        #[cfg(test)]
        if self.early.load(std::sync::atomic::Ordering::Relaxed) {
            return true;
        }
        poll_state_synchronize_rcu_full(&self.rcu, snap)
    }

    #[cfg(test)]
    pub(super) fn set_early(&self, on: bool) {
        self.early.store(on, std::sync::atomic::Ordering::Relaxed);
    }

    fn for_each_timer(&self, cpu: &Cpu<A>, mut f: impl FnMut(&KfreeRcuCpu<A>, u64)) {
        let mut one = |krcp: &KfreeRcuCpu<A>| {
            let expires = krcp.monitor_expires.load(Relaxed);
            if expires != 0 && krcp.monitor_cpu.load(Relaxed) == cpu.id {
                f(krcp, expires);
            }
        };
        if cpu.id < self.rcu.nr_cpus {
            one(self.krc.this(cpu));
        } else {
            self.krc.iter().for_each(one);
        }
    }

    /// Lets `cpu` look after its monitor's timer. With RCU's hooks, on every worker and on the kworker.
    pub fn install_timer(&self, cpu: &Cpu<A>) {
        let ctx = std::ptr::from_ref(self).cast();
        cpu.timers.set(Some(TimerHook { ctx, next: timer_next::<A>, run: timer_run::<A> }));
    }

    /// `flush_workqueue()`: what was queued before the call has run. One caller at a time.
    fn flush_workqueue(&self, cpu: &Cpu<A>) {
        if flush_on_this_thread(cpu, &self.wq) {
            return;
        }
        self.flushed.store(0, Relaxed);
        // SAFETY: lives as long as the kernel.
        unsafe { queue_work(&self.wq, (&raw const self.flush).cast_mut()) };
        // ORDER: acquire; meets flushed().
        rcuwait_wait_event(cpu, &self.flush_wait, || self.flushed.load(Acquire) != 0);
    }

    /// Objects handed over and not yet freed; exact while nobody is inside.
    pub fn pending(&self) -> u64 {
        let sum = |f: fn(&KvfreeStats) -> &Counter| -> u64 { self.krc.iter().map(|k| f(&k.stat).0.get()).sum() };
        sum(|s| &s.queued).wrapping_sub(sum(|s| &s.freed))
    }

    /// Only the kworker makes it less, so it was never more than when a block's turn to be freed comes.
    fn note_pending(&self) {
        self.pending_max.set(self.pending_max.get().max(self.pending()));
    }

    /// The most objects that waited at once.
    pub fn pending_high_water(&self) -> u64 {
        self.pending_max.get().max(self.pending())
    }

    /// Calls `f` with the name and the sum over all CPUs of each counter, and with what waits.
    pub fn for_each_stat(&self, mut f: impl FnMut(&'static str, u64)) {
        type Get = fn(&KvfreeStats) -> &Counter;
        let all: [(&str, Get); 7] = [
            ("kvfree_rcu.queued", |s| &s.queued),
            ("kvfree_rcu.freed", |s| &s.freed),
            ("kvfree_rcu.chained", |s| &s.chained),
            ("kvfree_rcu.blocks", |s| &s.blocks),
            ("kvfree_rcu.monitors", |s| &s.monitors),
            ("kvfree_rcu.batches", |s| &s.batches),
            ("kvfree_rcu.both_batches_busy", |s| &s.busy),
        ];
        for (name, get) in all {
            f(name, self.krc.iter().map(|k| get(&k.stat).0.get()).sum());
        }
        f("kvfree_rcu.pending_high_water", self.pending_high_water());
    }
}

/// `flush_rcu_sheaf()` of each cache: what this CPU collects starts its grace period. Each worker at its end, before
/// somebody calls [`kvfree_rcu_barrier`].
pub fn flush_rcu_sheaves<A: Hardware>(cpu: &Cpu<A>, slab: &SlabState<A>) {
    slab.for_each_cache(|s| flush_rcu_sheaf(cpu, s));
}

/// `kvfree_rcu_barrier()`: returns when every object handed over before the call was freed. Where `rcu_barrier()` may
/// be called; one caller at a time.
///
/// PORT: the kernel has every CPU flush its sheaves first. Here the caller's are flushed, and those of the others only
/// where none of them is up; a worker flushes its own with [`flush_rcu_sheaves`].
pub fn kvfree_rcu_barrier<A: Hardware>(cpu: &Cpu<A>, slab: &SlabState<A>) {
    if cpu.hooks.get().is_some() {
        flush_rcu_sheaves(cpu, slab);
    } else {
        // SAFETY: a CPU without hooks is alone: boot, shutdown, small tests.
        unsafe { flush_all_rcu_sheaves(cpu, slab) };
    }
    __kvfree_rcu_barrier(cpu, slab);
}

/// `kvfree_rcu_barrier_on_cache()` of 7.x, and what 6.12 does in its place: of one cache, whose sheaves alone are flushed;
/// batches are waited for whosever objects they hold. The callers are those of `kmem_cache_destroy()`.
///
/// # Safety
/// As [`flush_all_cpus`](super::flush_all_cpus).
pub(super) unsafe fn kvfree_rcu_barrier_on_cache<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    if s.sheaf_capacity != 0 {
        // SAFETY: the caller's.
        unsafe { flush_rcu_sheaves_on_cache(cpu, s) };
        rcu_barrier(cpu, &s.state.rcu);
    }
    __kvfree_rcu_barrier(cpu, &s.state);
}

/// `__kvfree_rcu_barrier()`: the batches.
fn __kvfree_rcu_barrier<A: Hardware>(cpu: &Cpu<A>, slab: &SlabState<A>) {
    let st = &*slab.kvfree;
    loop {
        for krcp in st.krc.iter() {
            raw_spin_lock(cpu, &krcp.lock);
            // cancel_delayed_work_sync(), its first half; a monitor that runs is waited for below.
            krcp.monitor_expires.store(0, Relaxed);
            raw_spin_unlock(cpu, &krcp.lock);
            if need_offload_krc(krcp) {
                kvfree_rcu_queue_batch(cpu, st, krcp);
            }
        }
        // flush_rcu_work(): the callbacks that queue the works, then the works.
        rcu_barrier(cpu, &st.rcu);
        st.flush_workqueue(cpu);
        if st.krc.iter().all(|k| !need_offload_krc(k) && !k.krw_arr.iter().any(need_wait_for_krwp_work)) {
            return;
        }
    }
}

/// `drain_page_cache()` of every CPU: gives the cached pages back. At shutdown, after the barrier.
pub fn drain_page_caches<A: Hardware>(cpu: &Cpu<A>, slab: &SlabState<A>) {
    let st = &*slab.kvfree;
    for krcp in st.krc.iter() {
        raw_spin_lock(cpu, &krcp.lock);
        let mut b = krcp.bkvcache.get();
        krcp.bkvcache.set(null_mut());
        krcp.nr_bkv_objs.store(0, Relaxed);
        raw_spin_unlock(cpu, &krcp.lock);
        while !b.is_null() {
            // SAFETY: pages of the cache, ours since we took the list.
            unsafe {
                let next = (*b).next.get();
                free_page(cpu, &st.pages, b.cast());
                b = next;
            }
        }
    }
}
