// SPDX-License-Identifier: GPL-2.0-only
//! Pages of a node that a CPU holds ready, and how many that may be [mm/page_alloc.c, 6.12: per_cpu_pages,
//! nr_pcp_alloc, nr_pcp_high, nr_pcp_free, free_unref_page_commit].
//!
//! Lock order: the list's lock, which its CPU only tries and drain_all_pages() takes, then the zone's.

use super::{
    LISTS, PCP_BATCH, PG_NONE, PG_PCP, Page, PageAllocator, PageList, Zone, free_one_page, rmqueue_smallest,
    zone_watermarks,
};
use crate::arch::{Hardware, Plain, Relaxed};
use crate::cpu::Cpu;
use crate::slab::stat::Unpriced;
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_trylock, raw_spin_unlock};
use std::ptr::null_mut;

/// Doublings of a batch, at most (`CONFIG_PCP_BATCH_SCALE_MAX`).
pub(super) const PCP_BATCH_SCALE_MAX: u32 = 5;
/// A CPU's lists together may grow to this fraction of its share of a node (`MIN_PERCPU_PAGELIST_HIGH_FRACTION`).
pub(super) const MIN_PERCPU_PAGELIST_HIGH_FRACTION: u64 = 8;
/// In [`PerCpuPages::flags`]: the last free was of a block of several pages.
pub(super) const PCPF_PREV_FREE_HIGH_ORDER: u32 = 1 << 8;
/// In [`PerCpuPages::flags`]: doublings of the next batch (`alloc_factor`).
pub(super) const ALLOC_FACTOR: u32 = 0xff;

macro_rules! page_counts {
    ($($(#[$m:meta])* $v:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy)]
        pub(super) enum PageCount { $($(#[$m])* $v),* }
        pub(super) const PAGE_COUNTS: &[&str] = &[$($text),*];
    };
}
page_counts! {
    /// Batches from a zone to a CPU's list.
    Refill = "pcp_refill",
    /// Pages of them.
    RefillPages = "pcp_refill_pages",
    /// Batches from a CPU's lists to the zone (those of `mm_page_pcpu_drain`).
    Drain = "pcp_drain",
    /// Pages of them.
    DrainPages = "pcp_drain_pages",
    /// Blocks past the lists: too large, or the list's lock was taken.
    ZoneLocked = "page_zone_locked",
    /// Acquisitions of a zone's lock that had to wait.
    LockContended = "zone_lock_contended",
    /// Time waited so, ns.
    LockWait = "zone_lock_wait_ns",
}

/// `struct per_cpu_pages`: pages of one node that one CPU holds ready. The marks and the batch are written at boot.
#[repr(C)]
pub(super) struct PerCpuPages<A: Hardware> {
    pub(super) lock: RawSpinLock<A>,
    /// Pages on all lists.
    pub(super) count: Plain<A, u32>,
    /// Pages go back from here on; between the two that follow.
    pub(super) high: Plain<A, u32>,
    pub(super) high_min: Plain<A, u32>,
    pub(super) high_max: Plain<A, u32>,
    pub(super) batch: Plain<A, u32>,
    /// `alloc_factor` and flags.
    pub(super) flags: Plain<A, u32>,
    /// Pages freed in a row, about.
    pub(super) free_count: Plain<A, u32>,
    pub(super) lists: [PageList<A>; LISTS],
    pub(super) stat: [Unpriced; PAGE_COUNTS.len()],
}

impl<A: Hardware> PerCpuPages<A> {
    pub(super) fn new() -> Self {
        PerCpuPages {
            lock: RawSpinLock::new(),
            count: Plain::new(0),
            high: Plain::new(0),
            high_min: Plain::new(0),
            high_max: Plain::new(0),
            batch: Plain::new(1),
            flags: Plain::new(0),
            free_count: Plain::new(0),
            lists: std::array::from_fn(|_| PageList::new()),
            stat: std::array::from_fn(|_| Plain::new(0)),
        }
    }

    pub(super) fn add(&self, c: PageCount, n: u64) {
        let w = &self.stat[c as usize];
        w.set(w.get() + n);
    }
}

/// `zone_set_pageset_high_and_batch()`
pub(super) fn zone_set_pageset_high_and_batch<A: Hardware>(cpu: &Cpu<A>, pa: &PageAllocator<A>, z: &Zone<A>, nid: u32) {
    let (low, high) = zone_watermarks(z.managed.get(), u64::from(pa.nr_nodes()));
    z.high_wmark.set(high);
    let local = pa.cpu_to_node.iter().take(pa.nr_cpus as usize).filter(|&&n| n == nid).count();
    // A node without CPUs: all of them share it.
    let split = if local == 0 { u64::from(pa.nr_cpus.max(1)) } else { local as u64 };
    let least = PCP_BATCH * 4;
    let share = |pages: u64| u32::try_from(pages / split).unwrap_or(u32::MAX).max(least);
    let (high_min, high_max) = match pa.fixed_high.get() {
        0 => (share(low), share(z.managed.get() / MIN_PERCPU_PAGELIST_HIGH_FRACTION)),
        n => (n, n),
    };
    for pcp in z.pcp.iter() {
        raw_spin_lock(cpu, &pcp.lock);
        pcp.high_min.set(high_min);
        pcp.high_max.set(high_max.max(high_min));
        pcp.high.set(high_min);
        pcp.batch.set(PCP_BATCH);
        raw_spin_unlock(cpu, &pcp.lock);
    }
}

/// `rmqueue_pcplist()`: from this CPU's list, refilled in a batch. Null also when the list's lock is taken.
#[inline]
pub(super) fn rmqueue_pcplist<A: Hardware>(cpu: &Cpu<A>, z: &Zone<A>, order: u32) -> *mut Page<A> {
    let pcp = z.pcp.this(cpu);
    if !raw_spin_trylock(cpu, &pcp.lock) {
        return null_mut();
    }
    // Frees come in batches only as long as nothing is allocated between.
    pcp.free_count.set(pcp.free_count.get() >> 1);
    let list = &pcp.lists[order as usize];
    if list.first.get().is_null() {
        rmqueue_bulk(cpu, z, pcp, order);
    }
    let page = list.first.get();
    if !page.is_null() {
        // SAFETY: on that list, under its lock.
        unsafe {
            list.del(page);
            (*page).page_type.store(PG_NONE, Relaxed);
        }
        pcp.count.set(pcp.count.get() - (1 << order));
    }
    raw_spin_unlock(cpu, &pcp.lock);
    page
}

/// `nr_pcp_alloc()`: blocks of `order` to take at once. Single pages are taken in doubling batches while none is freed,
/// and the high mark rises with them, unless the zone is short.
pub(super) fn nr_pcp_alloc<A: Hardware>(z: &Zone<A>, pcp: &PerCpuPages<A>, order: u32) -> u32 {
    let (base, mut high) = (pcp.batch.get(), pcp.high.get());
    if high < base {
        return 1;
    }
    let (flags, high_max) = (pcp.flags.get(), pcp.high_max.get());
    let factor = flags & ALLOC_FACTOR;
    let mut batch = if order == 0 { base << factor } else { base };
    if pcp.high_min.get() != high_max && z.b.0.below_high.load(Relaxed) == 0 {
        high = (high + batch).min(high_max);
        pcp.high.set(high);
    }
    if order == 0 {
        let most = high.saturating_sub(pcp.count.get() + base).max(base);
        if batch <= most && factor < PCP_BATCH_SCALE_MAX {
            pcp.flags.set(flags + 1);
        }
        batch = batch.min(most);
    }
    if batch > 1 { (batch >> order).max(2) } else { batch }
}

#[cold]
#[inline(never)]
pub(super) fn rmqueue_bulk<A: Hardware>(cpu: &Cpu<A>, z: &Zone<A>, pcp: &PerCpuPages<A>, order: u32) {
    let list = &pcp.lists[order as usize];
    let batch = nr_pcp_alloc(z, pcp, order);
    let before = pcp.count.get();
    z.lock(cpu);
    // In the order in which the zone gave them, so that a run of pages is handed out ascending.
    let mut last: *mut Page<A> = null_mut();
    for _ in 0..batch {
        let page = rmqueue_smallest(z, order);
        if page.is_null() {
            break;
        }
        // SAFETY: just taken, on no list; the pcp lock is held.
        unsafe {
            (*page).page_type.store(PG_PCP, Relaxed);
            (*page).next.store(null_mut(), Relaxed);
            (*page).prev.store(last, Relaxed);
            if last.is_null() {
                list.first.set(page);
            } else {
                (*last).next.store(page, Relaxed);
            }
        }
        last = page;
        pcp.count.set(pcp.count.get() + (1 << order));
    }
    list.last.set(last);
    z.unlock(cpu);
    pcp.add(PageCount::Refill, 1);
    pcp.add(PageCount::RefillPages, u64::from(pcp.count.get() - before));
}

/// `free_pcppages_bulk()`: gives `count` pages back, the coldest of each list first. The list's lock is held.
#[cold]
#[inline(never)]
pub(super) fn free_pcppages_bulk<A: Hardware>(
    cpu: &Cpu<A>,
    z: &Zone<A>,
    pcp: &PerCpuPages<A>,
    count: u32,
    first_order: u32,
) {
    let before = pcp.count.get();
    let stop = before.saturating_sub(count);
    z.lock(cpu);
    let mut order = first_order;
    while pcp.count.get() > stop {
        let list = &pcp.lists[order as usize];
        let page = list.last.get();
        if page.is_null() {
            order = (order + 1) % LISTS as u32;
            continue;
        }
        // SAFETY: on that list, under its lock; then free, under the zone's.
        unsafe {
            list.del(page);
            free_one_page(z, page, order, false);
        }
        // The last block may be larger than what was left to do.
        pcp.count.set(pcp.count.get() - (1 << order));
    }
    z.unlock(cpu);
    pcp.add(PageCount::Drain, 1);
    pcp.add(PageCount::DrainPages, u64::from(before - pcp.count.get()));
}

/// `free_unref_page_commit()`: onto the CPU's list, and a batch of them on to the zone when there are too many.
///
/// # Safety
/// `page` is free and on no list; the list's lock is held.
#[inline(always)]
pub(super) unsafe fn free_unref_page_commit<A: Hardware>(
    cpu: &Cpu<A>,
    z: &Zone<A>,
    pcp: &PerCpuPages<A>,
    page: *mut Page<A>,
    order: u32,
) {
    // SAFETY: every page has a record; the caller's.
    unsafe {
        (*page).page_type.store(PG_PCP, Relaxed);
        pcp.lists[order as usize].push(page);
    }
    let count = pcp.count.get() + (1 << order);
    pcp.count.set(count);
    let flags = pcp.flags.get();
    // Allocations come in doubling batches only as long as nothing is freed between.
    let was_high_order = flags & PCPF_PREV_FREE_HIGH_ORDER != 0;
    let factor = (flags & ALLOC_FACTOR) >> 1;
    pcp.flags.set(factor | if order == 0 { 0 } else { PCPF_PREV_FREE_HIGH_ORDER });
    let (batch, freed) = (pcp.batch.get(), pcp.free_count.get());
    // A CPU that frees blocks of several pages in a row gives most of what it has back. PORT: the CPU's share of the
    // cache is taken to be over three batches (PCPF_FREE_HIGH_BATCH), as where a core has 1 MiB.
    let free_high = order != 0 && freed >= batch && was_high_order && count >= batch;
    if freed < batch << PCP_BATCH_SCALE_MAX {
        pcp.free_count.set(freed + (1 << order));
    }
    if free_high || count >= pcp.high.get() || z.b.0.below_high.load(Relaxed) != 0 {
        free_unref_page_high(cpu, z, pcp, order, free_high);
    }
}

/// `nr_pcp_high()`, `nr_pcp_free()`: the rest of [`free_unref_page_commit`] where there may be too many pages.
#[cold]
#[inline(never)]
pub(super) fn free_unref_page_high<A: Hardware>(
    cpu: &Cpu<A>,
    z: &Zone<A>,
    pcp: &PerCpuPages<A>,
    order: u32,
    free_high: bool,
) {
    let (batch, count, freed) = (pcp.batch.get(), pcp.count.get(), pcp.free_count.get());
    let (mut high, high_min, high_max) = (pcp.high.get(), pcp.high_min.get(), pcp.high_max.get());
    let below_high = z.b.0.below_high.load(Relaxed) != 0;
    if high == 0 {
        // Not set up yet: nothing is kept.
    } else if free_high {
        pcp.high.set(high.saturating_sub(batch << PCP_BATCH_SCALE_MAX).max(high_min));
        high = 0;
    } else if high_min == high_max {
    } else if below_high {
        pcp.high.set(high.saturating_sub(freed.max(batch)).max(high_min));
        high = count.max(high_min);
    } else if count >= high {
        // Room for all that is freed in a row.
        pcp.high.set(high.max((freed + batch).clamp(high_min, high_max)));
    }
    if count < high {
        return;
    }
    let n = if free_high {
        count.min(batch << PCP_BATCH_SCALE_MAX)
    } else if high < batch {
        1
    } else {
        freed.clamp(batch, high - batch)
    };
    free_pcppages_bulk(cpu, z, pcp, n, order);
    if below_high && z.nr_free() > z.high_wmark.get() {
        z.b.0.below_high.store(0, Relaxed);
    }
}
