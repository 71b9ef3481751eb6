// SPDX-License-Identifier: GPL-2.0-only
//! The fault handler [mm/memory.c, 6.12]: which kind of fault it is, and anonymous memory's.
//!
//! `zap.rs` clears ranges, `copy.rs` copies page tables for a child, `wp.rs` is writes to write-protected pages;
//! mappings of files are in `filemap.rs`.
//!
//! dup: the order of events in do_anonymous_page(); anon_vma preparation under the VMA lock (a read trylock of
//! `mmap_lock`, else RETRY); the shared zero page for read faults; what of a page's record is written, and which of it
//! with a locked instruction. stub: LRU, memory cgroups, swap, huge pages, userfaultfd, accessed bits, TLB flushes.

mod copy;
mod wp;
mod zap;

pub use copy::{copy_page_range, is_cow_mapping};
pub use zap::{unmap_single_vma, zap_page_range_single};

use super::filemap::do_fault;
use super::folio::{PG_UPTODATE, folio_add_new_anon_rmap, folio_put, page_folio};
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{MM_ANONPAGES, NR_MM_COUNTERS, VM_ACCESS_FLAGS, VM_SHARED, VM_WRITE, VmaFields};
use super::mmap_lock::{mmap_read_trylock, mmap_read_unlock, vma_end_read};
use super::pgtable::{
    PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER, PageTable, alloc_zeroed_page, pmd_alloc, pte_alloc, pte_lock,
    pte_table,
};
use super::rmap::__anon_vma_prepare;
use super::vma::vma_is_anonymous;
use super::vmstat::VmEvent;
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Relaxed, smp_wmb};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::sync::{percpu_counter_add, percpu_counter_sum, raw_spin_unlock};
use wp::do_wp_page;

/// The fault is a write.
pub const FAULT_FLAG_WRITE: u32 = 0x1;
/// The handler may drop the lock and ask for another try.
pub const FAULT_FLAG_ALLOW_RETRY: u32 = 0x4;
/// This is another try.
pub const FAULT_FLAG_TRIED: u32 = 0x20;
/// The fault is handled under the VMA's lock, not under `mmap_lock`.
pub const FAULT_FLAG_VMA_LOCK: u32 = 0x1000;
/// Out of memory.
pub const VM_FAULT_OOM: u32 = 0x1;
/// No page behind the address.
pub const VM_FAULT_SIGBUS: u32 = 0x2;
/// The page had to be read in.
pub const VM_FAULT_MAJOR: u32 = 0x4;
/// No access there, whatever the mapping's rights say.
pub const VM_FAULT_SIGSEGV: u32 = 0x40;
/// Nothing is left to map.
pub const VM_FAULT_NOPAGE: u32 = 0x100;
/// Any error.
pub const VM_FAULT_ERROR: u32 = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV;
/// The lock was dropped: try again under `mmap_lock`.
pub const VM_FAULT_RETRY: u32 = 0x400;
/// The lock was dropped and the fault is done.
pub const VM_FAULT_COMPLETED: u32 = 0x4000;

/// `struct vm_fault`
#[derive(Clone, Copy, Debug)]
pub struct VmFault<K: Kconfig> {
    /// Where, in which VMA; nothing may touch it after RETRY or COMPLETED.
    pub vma: VmaPtr<K>,
    /// The mm.
    pub mm: MmPtr<K>,
    /// Page address.
    pub address: u64,
    /// `FAULT_FLAG_*`
    pub flags: u32,
}

/// `handle_mm_fault()`: 0, or `VM_FAULT_*`. Under the VMA's read lock (with [`FAULT_FLAG_VMA_LOCK`]) or `mmap_lock`.
#[inline]
pub fn handle_mm_fault<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    address: u64,
    flags: u32,
) -> u32 {
    let vmf = VmFault { vma, mm, address: address & !(PAGE_SIZE as u64 - 1), flags };
    let Ok(pmd) = pmd_alloc(cpu, k, mm, address) else { return VM_FAULT_OOM };
    handle_pte_fault(cpu, k, &vmf, pmd)
}

#[inline]
fn handle_pte_fault<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vmf: &VmFault<K>, pmd: KRef<PageTable<K::A>>) -> u32 {
    let table = pte_table(pmd, vmf.address);
    // ORDER: relaxed: a look without the lock; what matters is looked at again under it.
    let orig = table.map_or(0, |t| t.entry(0, vmf.address).load(Relaxed));
    let (Some(table), true) = (table, orig != 0) else {
        // do_pte_missing()
        return if vma_is_anonymous::<K>(vmf.vma) {
            do_anonymous_page(cpu, k, vmf, pmd)
        } else {
            do_fault(cpu, k, vmf, pmd)
        };
    };
    if orig & PAGE_PRESENT == 0 {
        // do_swap_page(), handle_pte_marker(): a guard region.
        return VM_FAULT_SIGSEGV;
    }
    let ptl = pte_lock(cpu, table);
    let pte = table.entry(0, vmf.address);
    if pte.load(Relaxed) == orig && vmf.flags & FAULT_FLAG_WRITE != 0 {
        if orig & PAGE_RW == 0 {
            return do_wp_page(cpu, k, vmf, table, ptl, orig);
        }
        // ptep_set_access_flags()
        if orig & PAGE_DIRTY == 0 {
            pte.store(orig | PAGE_DIRTY, Relaxed);
        }
    }
    // Another thread set the entry between the access and here.
    raw_spin_unlock(cpu, &ptl);
    cpu.count(VmEvent::PgfaultRaced);
    0
}

/// `__vmf_anon_prepare()`: 0, `VM_FAULT_RETRY` with the VMA lock dropped, or `VM_FAULT_OOM`.
#[inline(always)]
pub(super) fn vmf_anon_prepare<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vmf: &VmFault<K>) -> u32 {
    // ORDER: relaxed: only compared with null; set once while the VMA is attached.
    if !vmf.vma.anon_vma().load(Relaxed).is_null() {
        return 0;
    }
    vmf_anon_prepare_slow(cpu, k, vmf)
}

#[cold]
#[inline(never)]
fn vmf_anon_prepare_slow<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vmf: &VmFault<K>) -> u32 {
    let under_vma_lock = vmf.flags & FAULT_FLAG_VMA_LOCK != 0;
    // The neighbours must stand still: the VMA's lock alone does not keep them.
    if under_vma_lock && !mmap_read_trylock(cpu, &*vmf.mm) {
        vma_end_read::<K>(cpu, vmf.vma);
        cpu.count(VmEvent::RetryAnonVma);
        return VM_FAULT_RETRY;
    }
    let ret = match __anon_vma_prepare(cpu, k, vmf.mm, vmf.vma) {
        Ok(()) => 0,
        Err(_) => VM_FAULT_OOM,
    };
    if under_vma_lock {
        mmap_read_unlock(cpu, &*vmf.mm);
    }
    ret
}

/// `do_anonymous_page()`
#[inline(never)]
fn do_anonymous_page<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vmf: &VmFault<K>, pmd: KRef<PageTable<K::A>>) -> u32 {
    let vm_flags = vmf.vma.vm_flags().load(Relaxed);
    // A shared mapping without functions.
    if vm_flags & VM_SHARED != 0 {
        return VM_FAULT_SIGBUS;
    }
    let table = match pte_table(pmd, vmf.address) {
        Some(t) => t,
        None => {
            if pte_alloc(cpu, k, vmf.mm, pmd, vmf.address).is_err() {
                return VM_FAULT_OOM;
            }
            match pte_table(pmd, vmf.address) {
                Some(t) => t,
                None => return VM_FAULT_OOM,
            }
        }
    };
    if vmf.flags & FAULT_FLAG_WRITE == 0 {
        let ptl = pte_lock(cpu, table);
        let pte = table.entry(0, vmf.address);
        if pte.load(Relaxed) == 0 {
            pte.store(k.zero_page.as_ptr() as u64 | PAGE_PRESENT | PAGE_USER, Relaxed);
        } else {
            cpu.count(VmEvent::PgfaultRaced);
        }
        raw_spin_unlock(cpu, &ptl);
        return 0;
    }
    let ret = vmf_anon_prepare(cpu, k, vmf);
    if ret != 0 {
        return ret;
    }
    let page = alloc_zeroed_page(cpu, k, "anonymous page");
    if page.is_null() {
        return VM_FAULT_OOM;
    }
    let folio = page_folio::<K::A>(page);
    // __folio_mark_uptodate()
    // ORDER: write barrier: the page's zeros before its entry; meets the hardware's walk (in the port, whoever reads
    // the page back).
    smp_wmb::<K::A>();
    folio.__set(PG_UPTODATE);
    let mut entry = page as u64 | PAGE_PRESENT | PAGE_USER;
    if vm_flags & VM_WRITE != 0 {
        entry |= PAGE_RW | PAGE_DIRTY;
    }
    let ptl = pte_lock(cpu, table);
    let pte = table.entry(0, vmf.address);
    if pte.load(Relaxed) != 0 {
        // Another thread was first: not an error, and not a retry.
        raw_spin_unlock(cpu, &ptl);
        folio_put(cpu, k, page);
        cpu.count(VmEvent::PgfaultRaced);
        return 0;
    }
    add_mm_counter(cpu, k, vmf.mm, MM_ANONPAGES, 1);
    folio_add_new_anon_rmap::<K>(&folio, vmf.vma, vmf.address);
    pte.store(entry, Relaxed);
    raw_spin_unlock(cpu, &ptl);
    0
}

/// Changes of the resident counts that one table's turn makes.
pub(super) type Rss = [i64; NR_MM_COUNTERS];

/// `add_mm_rss_vec()`
#[inline]
pub(super) fn add_mm_rss_vec<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, rss: &Rss) {
    for (which, &n) in rss.iter().enumerate() {
        if n != 0 {
            add_mm_counter(cpu, k, mm, which, n);
        }
    }
}

/// `add_mm_counter()`: a CPU-local add until the batch is full.
#[inline]
pub fn add_mm_counter<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, which: usize, n: i64) {
    percpu_counter_add(cpu, &k.percpu_counters, &mm.rss_stat[which], n);
}

/// `percpu_counter_sum()` of one of `rss_stat`: the exact count, once nobody adds.
pub fn get_mm_counter_sum<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, which: usize) -> i64 {
    percpu_counter_sum(cpu, &k.percpu_counters, &mm.rss_stat[which])
}

/// Whether the flags allow the access.
#[inline(always)]
pub fn access_ok(vm_flags: u64, write: bool) -> bool {
    if write { vm_flags & VM_WRITE != 0 } else { vm_flags & VM_ACCESS_FLAGS != 0 }
}
