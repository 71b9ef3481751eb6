// SPDX-License-Identifier: GPL-2.0-only
//! Clearing the entries of a range [mm/memory.c, 6.12: zap_pte_range, unmap_single_vma, zap_page_range_single].
//!
//! dup: one table at a time under its lock; the exchange of each entry, unless the whole mm goes; map count and
//! resident count; a queue that is full ends the table's turn. stub: TLB flushes; MADV_DONTNEED of two MiB and more
//! frees the PTE tables that it empties (6.14 on, CONFIG_PT_RECLAIM): that needs tables freed by RCU and walkers that
//! look twice. A dirty page of a file forces a flush before its table's lock is dropped: here that only frees what is
//! queued.

use crate::arch::arena::KRef;
use crate::arch::arena::PAGE_SIZE;
use crate::arch::{Acquire, Full, Relaxed};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::mm::folio::{folio_remove_rmap, mm_counter_file, page_folio};
use crate::mm::kconfig::{Kconfig, MmPtr, VmaPtr};
use crate::mm::memory::{Rss, add_mm_rss_vec};
use crate::mm::mm_types::{MM_ANONPAGES, NR_MM_COUNTERS, VmaFields};
use crate::mm::mmu_gather::MmuGather;
use crate::mm::pgtable::{PAGE_DIRTY, PAGE_PRESENT, PTE_PFN_MASK, PageTable, SHIFT, TOP, pgd, pte_lock, table_of};
use crate::sync::raw_spin_unlock;

/// `unmap_single_vma()`, as `unmap_vmas()` calls it: everything in `[start, end)` of `vma` goes, markers too. Under the
/// VMA's or the mm's lock.
pub fn unmap_single_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    tlb: &mut MmuGather,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
) {
    let start = start.max(vma.vm_start().load(Relaxed));
    let end = end.min(vma.vm_end().load(Relaxed));
    unmap_page_range(cpu, k, mm, tlb, start, end, true);
}

/// `zap_page_range_single()`: the pages in `[addr, addr + len)` of `vma` go; markers of guard regions stay.
pub fn zap_page_range_single<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    addr: u64,
    len: u64,
) {
    let start = addr.max(vma.vm_start().load(Relaxed));
    let end = (addr + len).min(vma.vm_end().load(Relaxed));
    let mut tlb = MmuGather::new();
    unmap_page_range(cpu, k, mm, &mut tlb, start, end, false);
    tlb.finish(cpu, k);
}

/// `unmap_page_range()`, without the markers unless `drop_markers`.
pub(in crate::mm) fn unmap_page_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    tlb: &mut MmuGather,
    start: u64,
    end: u64,
    drop_markers: bool,
) {
    let mut addr = start;
    while addr < end {
        let (mut t, mut level) = (pgd::<K>(mm), TOP);
        // Down to the PTE table, or over the span of the first entry that is none.
        let missing = loop {
            if level == 0 {
                break None;
            }
            // ORDER: acquire stands for the address dependency; meets table_install().
            let e = t.entry(level, addr).load(Acquire);
            if e & PAGE_PRESENT == 0 {
                break Some(level);
            }
            t = table_of(e);
            level -= 1;
        };
        let span = 1u64 << SHIFT[missing.unwrap_or(1)];
        let stop = ((addr & !(span - 1)) + span).min(end);
        while missing.is_none() && addr < stop {
            addr = zap_pte_range(cpu, k, mm, tlb, t, addr, stop, drop_markers);
        }
        addr = stop;
    }
}

/// `zap_pte_range()`: returns where it stopped: at `end`, or behind the entry that filled the queue.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
fn zap_pte_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    tlb: &mut MmuGather,
    table: KRef<PageTable<K::A>>,
    mut addr: u64,
    end: u64,
    drop_markers: bool,
) -> u64 {
    let mut rss: Rss = [0; NR_MM_COUNTERS];
    let (mut force_flush, mut force_break) = (false, false);
    let ptl = pte_lock(cpu, table);
    while addr < end && !force_break {
        let pte = table.entry(0, addr);
        addr += PAGE_SIZE as u64;
        let e = pte.load(Relaxed);
        if e == 0 {
            continue;
        }
        if e & PAGE_PRESENT == 0 {
            if drop_markers {
                pte.store(0, Relaxed);
            }
            continue;
        }
        // ptep_get_and_clear_full()
        let e = if tlb.fullmm {
            pte.store(0, Relaxed);
            e
        } else {
            // ORDER: full, as the kernel's xchg(): the processor that walks the table sets bits in the entry until it
            // is gone. Here nobody does; the price is the kernel's.
            pte.swap(0, Full)
        };
        let page = (e & PTE_PFN_MASK) as *mut u8;
        // vm_normal_page()
        if page == k.zero_page.as_ptr() {
            continue;
        }
        let folio = page_folio::<K::A>(page);
        if folio.test_anon() {
            rss[MM_ANONPAGES] -= 1;
        } else {
            if e & PAGE_DIRTY != 0 {
                folio.mark_dirty();
                force_flush = true;
            }
            rss[mm_counter_file(&*folio)] -= 1;
        }
        folio_remove_rmap(cpu, &*folio);
        if tlb.remove_page(cpu, k, page) {
            force_flush = true;
            force_break = true;
        }
    }
    add_mm_rss_vec(cpu, k, mm, &rss);
    raw_spin_unlock(cpu, &ptl);
    if force_flush {
        tlb.flush(cpu, k);
    }
    addr
}
