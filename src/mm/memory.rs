// SPDX-License-Identifier: GPL-2.0-only
//! The fault handler of anonymous memory, zapping, and freeing page tables [mm/memory.c, mm/mmu_gather.c, 6.12].
//!
//! dup: the order of events in do_anonymous_page(); anon_vma preparation under the VMA lock (a read trylock of
//! `mmap_lock`, else RETRY); the shared zero page for read faults; gathering pages and freeing them in batches.
//! custom: the gather has 8 entries on the stack and one page of 510, not up to 19 pages. stub: LRU, memory cgroups,
//! swap, files, huge pages, TLB flushes.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{MM_ANONPAGES, VM_ACCESS_FLAGS, VM_WRITE, VmaFields};
use super::mmap_lock::{mmap_read_trylock, mmap_read_unlock, vma_end_read};
use super::pgtable::{
    PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER, PTE_PFN_MASK, PageTable, alloc_zeroed_page, pmd_alloc, pte_alloc,
    pte_lock, pte_table,
};
use super::rmap::__anon_vma_prepare;
use super::vmstat::VmEvent;
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Relaxed, smp_wmb};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::slab::{free_pages, free_unref_folios};
use crate::sync::{percpu_counter_add, percpu_counter_sum, raw_spin_unlock};

/// The fault is a write.
pub const FAULT_FLAG_WRITE: u32 = 0x1;
/// The fault is handled under the VMA's lock, not under `mmap_lock`.
pub const FAULT_FLAG_VMA_LOCK: u32 = 0x1000;
/// Out of memory.
pub const VM_FAULT_OOM: u32 = 0x1;
/// No page behind the address.
pub const VM_FAULT_SIGBUS: u32 = 0x2;
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
    if orig & PAGE_PRESENT == 0 {
        return do_anonymous_page(cpu, k, vmf, pmd);
    }
    if vmf.flags & FAULT_FLAG_WRITE != 0 && orig & PAGE_RW == 0 {
        return do_wp_page(cpu, k, vmf, pmd, orig);
    }
    // Another thread set the entry between the access and here. There is nothing to change in it (accessed and dirty
    // bits have no reader here), but the kernel looks under the lock.
    if let Some(t) = table {
        let ptl = pte_lock(cpu, t);
        let _pte = t.entry(0, vmf.address).load(Relaxed);
        raw_spin_unlock(cpu, &ptl);
    }
    cpu.count(VmEvent::PgfaultRaced);
    0
}

/// `__vmf_anon_prepare()`: 0, `VM_FAULT_RETRY` with the VMA lock dropped, or `VM_FAULT_OOM`.
#[inline(always)]
fn vmf_anon_prepare<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vmf: &VmFault<K>) -> u32 {
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
    set_anon_pte(cpu, k, vmf, table, page, 0)
}

/// The write fault on the zero page (`do_wp_page()`, `wp_page_copy()`): a fresh page takes its place.
#[cold]
#[inline(never)]
fn do_wp_page<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    pmd: KRef<PageTable<K::A>>,
    orig: u64,
) -> u32 {
    // Private anonymous memory without forks: a read-only entry is the zero page.
    debug_assert_eq!((orig & PTE_PFN_MASK) as *mut u8, k.zero_page.as_ptr());
    let ret = vmf_anon_prepare(cpu, k, vmf);
    if ret != 0 {
        return ret;
    }
    let page = alloc_zeroed_page(cpu, k, "anonymous page");
    let Some(table) = pte_table(pmd, vmf.address).filter(|_| !page.is_null()) else { return VM_FAULT_OOM };
    set_anon_pte(cpu, k, vmf, table, page, orig)
}

/// Puts `page` where the entry still is `expected`, under the table's lock.
#[inline(always)]
fn set_anon_pte<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    table: KRef<PageTable<K::A>>,
    page: *mut u8,
    expected: u64,
) -> u32 {
    let mut new = page as u64 | PAGE_PRESENT | PAGE_USER;
    if vmf.vma.vm_flags().load(Relaxed) & VM_WRITE != 0 {
        new |= PAGE_RW | PAGE_DIRTY;
    }
    // ORDER: write barrier: the page's zeros before its entry; meets the hardware's walk (in the port, whoever reads
    // the page back).
    smp_wmb::<K::A>();
    let ptl = pte_lock(cpu, table);
    let pte = table.entry(0, vmf.address);
    if pte.load(Relaxed) != expected {
        // Another thread was first: not an error, and not a retry.
        raw_spin_unlock(cpu, &ptl);
        free_page(cpu, k, page);
        cpu.count(VmEvent::PgfaultRaced);
        return 0;
    }
    add_mm_counter(cpu, k, vmf.mm, MM_ANONPAGES, 1);
    pte.store(new, Relaxed);
    raw_spin_unlock(cpu, &ptl);
    0
}

#[inline]
fn free_page<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, page: *mut u8) {
    cpu.count(VmEvent::Pgfree);
    // SAFETY: a page of ours that no entry maps.
    unsafe { free_pages(cpu, &k.pages, page, 0) };
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

/// `struct mmu_gather`: pages on their way out. They are freed only after the (absent) TLB flush.
pub struct MmuGather {
    local: [*mut u8; 8],
    nr: usize,
    /// The whole mm goes: nobody walks its tables any more.
    pub(super) fullmm: bool,
    /// A page used as an array of page addresses, once `local` is full.
    batch: *mut *mut u8,
    batch_nr: usize,
}

/// Pages of a folio batch.
const PAGEVEC_SIZE: usize = 31;
/// Entries of a page of the gather queue: the kernel's page has a header of two words.
const BATCH: usize = PAGE_SIZE / 8 - 2;

impl MmuGather {
    /// `tlb_gather_mmu()`
    pub fn new() -> Self {
        let local = [std::ptr::null_mut(); 8];
        MmuGather { local, nr: 0, fullmm: false, batch: std::ptr::null_mut(), batch_nr: 0 }
    }

    /// `tlb_gather_mmu_fullmm()`
    pub fn new_fullmm() -> Self {
        MmuGather { fullmm: true, ..Self::new() }
    }

    /// `__tlb_remove_page()`: queues; returns whether the queue is full.
    #[inline]
    pub(super) fn queue<K: Kconfig>(&mut self, cpu: &Cpu<K::A>, k: &Kernel<K>, page: *mut u8) -> bool {
        if self.nr < self.local.len() {
            self.local[self.nr] = page;
            self.nr += 1;
            return false;
        }
        if self.batch.is_null() {
            // The last local entry stays in use; without memory for a page the queue is full right now.
            self.batch = crate::slab::alloc_pages(cpu, &k.pages, 0).cast();
            if self.batch.is_null() {
                // `page` must go somewhere: free the local ones now, as tlb_next_batch() failing forces a flush.
                self.flush(cpu, k);
                self.local[0] = page;
                self.nr = 1;
                return true;
            }
        }
        // SAFETY: batch_nr < BATCH, inside our page.
        unsafe { self.batch.add(self.batch_nr).write(page) };
        self.batch_nr += 1;
        self.batch_nr == BATCH
    }

    /// `tlb_flush_mmu()` when the queue was full.
    pub fn flush_if_full<K: Kconfig>(&mut self, cpu: &Cpu<K::A>, k: &Kernel<K>) {
        if self.batch_nr == BATCH {
            self.flush(cpu, k);
        }
    }

    fn flush<K: Kconfig>(&mut self, cpu: &Cpu<K::A>, k: &Kernel<K>) {
        let free = |pages: &[*mut u8]| {
            cpu.counters.add(VmEvent::Pgfree, pages.len() as u64);
            // free_pages_and_swap_cache() hands them on by folio batches.
            for batch in pages.chunks(PAGEVEC_SIZE) {
                // SAFETY: pages of ours that no entry maps.
                unsafe { free_unref_folios(cpu, &k.pages, batch) };
            }
        };
        free(&self.local[..self.nr]);
        self.nr = 0;
        if self.batch_nr != 0 {
            // SAFETY: written by queue(), and nobody else knows the page they are in.
            free(unsafe { std::slice::from_raw_parts(self.batch, self.batch_nr) });
        }
        self.batch_nr = 0;
    }

    /// `tlb_finish_mmu()`
    pub fn finish<K: Kconfig>(mut self, cpu: &Cpu<K::A>, k: &Kernel<K>) {
        self.flush(cpu, k);
        if !self.batch.is_null() {
            // SAFETY: our own page.
            unsafe { free_pages(cpu, &k.pages, self.batch.cast(), 0) };
        }
    }
}
impl Default for MmuGather {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the flags allow the access.
#[inline(always)]
pub fn access_ok(vm_flags: u64, write: bool) -> bool {
    if write { vm_flags & VM_WRITE != 0 } else { vm_flags & VM_ACCESS_FLAGS != 0 }
}

/// The result of the handler as an error.
pub(super) fn fault_errno(fault: u32) -> Option<Errno> {
    if fault & VM_FAULT_OOM != 0 {
        Some(Errno::ENOMEM)
    } else if fault & VM_FAULT_SIGBUS != 0 {
        Some(Errno::EFAULT)
    } else {
        None
    }
}
