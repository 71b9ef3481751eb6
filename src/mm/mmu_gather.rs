// SPDX-License-Identifier: GPL-2.0-only
//! Pages and page tables on their way out [mm/mmu_gather.c, include/asm-generic/tlb.h, 6.12].
//!
//! They are queued while entries are cleared and freed only after the (absent) TLB flush: 8 on the stack, then pages of
//! 510, at most 19 of these, each with its last entry free, so that some 9,700 pages make a forced flush; freed in
//! chunks of at most 512, folio batch by folio batch.
//!
//! dup: sizes, order, what happens without memory for a batch. Page tables go through the same queue, as on bare metal
//! (`native_tlb_remove_table()`). stub: the queue of their own in which tables wait for an RCU grace period (6.12 under a
//! hypervisor with paravirtual flushes, every x86 from 6.14 on); ranges and flushes of the TLB; map counts of
//! dirty pages taken back only after the flush.

use super::folio::folios_put;
use super::kconfig::Kconfig;
use crate::arch::arena::PAGE_SIZE;
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::slab::{alloc_pages, free_pages};
use std::ptr::null_mut;

/// Entries on the stack.
const MMU_GATHER_BUNDLE: usize = 8;
/// Entries of a page of the queue.
pub const MAX_GATHER_BATCH: usize = (PAGE_SIZE - 16) / 8;
/// Pages of the queue.
pub const MAX_GATHER_BATCH_COUNT: usize = 10_000 / MAX_GATHER_BATCH;
/// Pages freed at once, at most.
const MAX_NR_FOLIOS_PER_FREE: usize = 512;

/// `struct mmu_gather_batch`: a page of the queue.
#[repr(C)]
struct Batch {
    next: *mut Batch,
    nr: u32,
    max: u32,
    pages: [*mut u8; MAX_GATHER_BATCH],
}
const _: () = assert!(size_of::<Batch>() == PAGE_SIZE && MAX_GATHER_BATCH == 510 && MAX_GATHER_BATCH_COUNT == 19);

/// `struct mmu_gather`
pub struct MmuGather {
    /// The whole mm goes: nobody walks its tables any more.
    pub(super) fullmm: bool,
    batch_count: usize,
    local_nr: usize,
    local: [*mut u8; MMU_GATHER_BUNDLE],
    first: *mut Batch,
    /// The batch that is being filled; null: `local`.
    active: *mut Batch,
}

impl MmuGather {
    /// `tlb_gather_mmu()`
    #[inline]
    pub fn new() -> Self {
        MmuGather {
            fullmm: false,
            batch_count: 0,
            local_nr: 0,
            local: [null_mut(); MMU_GATHER_BUNDLE],
            first: null_mut(),
            active: null_mut(),
        }
    }

    /// `tlb_gather_mmu_fullmm()`
    pub fn new_fullmm() -> Self {
        MmuGather { fullmm: true, ..Self::new() }
    }

    /// `__tlb_remove_page()`: queues a page with the reference of its entry; true if the queue is full now.
    #[inline]
    pub(super) fn remove_page<K: Kconfig>(&mut self, cpu: &Cpu<K::A>, k: &Kernel<K>, page: *mut u8) -> bool {
        if self.active.is_null() {
            self.local[self.local_nr] = page;
            self.local_nr += 1;
            // One entry stays free: a large folio would take two.
            return self.local_nr >= MMU_GATHER_BUNDLE - 1 && !self.next_batch(cpu, k);
        }
        // SAFETY: a batch of ours, which is not full: it would not be the active one.
        let b = unsafe { &mut *self.active };
        b.pages[b.nr as usize] = page;
        b.nr += 1;
        b.nr >= b.max - 1 && !self.next_batch(cpu, k)
    }

    /// `tlb_next_batch()`
    #[cold]
    #[inline(never)]
    fn next_batch<K: Kconfig>(&mut self, cpu: &Cpu<K::A>, k: &Kernel<K>) -> bool {
        // SAFETY: a batch of ours.
        let next = if self.active.is_null() { self.first } else { unsafe { (*self.active).next } };
        if !next.is_null() {
            self.active = next;
            return true;
        }
        if self.batch_count == MAX_GATHER_BATCH_COUNT {
            return false;
        }
        let batch = alloc_pages(cpu, &k.pages, 0).cast::<Batch>();
        if batch.is_null() {
            return false;
        }
        self.batch_count += 1;
        // SAFETY: a page of our own; the entries are written before they are read.
        unsafe {
            (*batch).next = null_mut();
            (*batch).nr = 0;
            (*batch).max = MAX_GATHER_BATCH as u32;
            if self.active.is_null() {
                self.first = batch;
            } else {
                (*self.active).next = batch;
            }
        }
        self.active = batch;
        true
    }

    /// `tlb_flush_mmu()`: frees what is queued; the pages of the queue stay for what comes.
    pub fn flush<K: Kconfig>(&mut self, cpu: &Cpu<K::A>, k: &Kernel<K>) {
        free_encoded_pages(cpu, k, &mut self.local[..self.local_nr]);
        let mut next = if self.local_nr == 0 { null_mut() } else { self.first };
        self.local_nr = 0;
        while !next.is_null() {
            // SAFETY: a batch of ours.
            let b = unsafe { &mut *next };
            if b.nr == 0 {
                break;
            }
            let nr = b.nr as usize;
            free_encoded_pages(cpu, k, &mut b.pages[..nr]);
            b.nr = 0;
            next = b.next;
        }
        self.active = null_mut();
    }

    /// `tlb_finish_mmu()`
    pub fn finish<K: Kconfig>(mut self, cpu: &Cpu<K::A>, k: &Kernel<K>) {
        self.flush(cpu, k);
        // tlb_batch_list_free()
        let mut batch = self.first;
        while !batch.is_null() {
            // SAFETY: a batch of ours, which nothing refers to any more.
            batch = unsafe {
                let next = (*batch).next;
                free_pages(cpu, &k.pages, batch.cast(), 0);
                next
            };
        }
    }
}
impl Default for MmuGather {
    fn default() -> Self {
        Self::new()
    }
}

/// `__tlb_batch_free_encoded_pages()`
fn free_encoded_pages<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, pages: &mut [*mut u8]) {
    for chunk in pages.chunks_mut(MAX_NR_FOLIOS_PER_FREE) {
        folios_put(cpu, k, chunk);
    }
}
