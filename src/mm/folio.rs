// SPDX-License-Identifier: GPL-2.0-only
//! The record of a page of user memory or of a file: flags, how many references, how many entries map it
//! [include/linux/mm_types.h, page_ref.h, page-flags.h, rmap.h, mm/rmap.c, mm/swap.c, 6.12].
//!
//! dup: which of these words a fault, a copy, a fork and a zap write, and with or without a locked instruction: a page
//! that nobody else knows is set up by plain stores. custom: `_mapcount` counts from 0 where the kernel's counts from -1
//! (the word is also the page's type, of which the page allocator here knows 0 as "none"). stub: the LRU and its
//! per-CPU batches (they would hold a reference), memory cgroups, statistics per node, large folios, swap, KSM, pins,
//! the lock of a page that is read in (pages of files enter the cache filled in and stay until the file is gone).
//!
//! INVARIANT: a page is freed by whoever drops its last reference. Each entry that maps it holds one, the page cache
//! holds one, and so does a fault that works on it without the lock of the table.

use super::kconfig::{Kconfig, VmaPtr};
use super::mm_types::{MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, VmaFields};
use super::vmstat::{VmEvent, warn_on_once};
use crate::arch::arena::{KRef, PAGE_SHIFT, page_record};
use crate::arch::{Atomic, Full, Hardware, Native, Relaxed};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::slab::{free_pages, free_unref_folios};
use std::mem::{offset_of, size_of};
use std::ptr::NonNull;

/// The page is somebody's to work on.
pub const PG_LOCKED: u64 = 1;
/// Holds what it should.
pub const PG_UPTODATE: u64 = 1 << 3;
/// Written to since it was last in step with its file.
pub const PG_DIRTY: u64 = 1 << 4;
/// Anonymous, and no other address space maps it.
pub const PG_ANON_EXCLUSIVE: u64 = 1 << 11;
/// Backed by swap and no file: anonymous and shared memory.
pub const PG_SWAPBACKED: u64 = 1 << 17;
/// The flags of a page's owner; the rest is the page allocator's.
const PAGE_FLAGS_CHECK_AT_PREP: u64 = PG_LOCKED | PG_UPTODATE | PG_DIRTY | PG_ANON_EXCLUSIVE | PG_SWAPBACKED;
/// In [`Folio::mapping`]: an anon_vma and no file.
pub const PAGE_MAPPING_ANON: u64 = 1;
/// Pages of a folio batch.
pub(super) const PAGEVEC_SIZE: usize = 31;

/// `struct folio` of one page: the same 64 bytes as the page allocator's record.
#[repr(C, align(64))]
pub struct Folio<A: Hardware> {
    /// `PG_*`; the highest bits are the node's number.
    pub flags: Atomic<A, u64>,
    _lru: [Atomic<A, u64>; 2],
    /// The anon_vma with [`PAGE_MAPPING_ANON`], or the file's address space.
    pub mapping: Atomic<A, u64>,
    /// Page number in the file, or that of the address.
    pub index: Atomic<A, u64>,
    _private: Atomic<A, u64>,
    /// Entries that map it.
    _mapcount: Atomic<A, u32>,
    _refcount: Atomic<A, u32>,
    _memcg_data: Atomic<A, u64>,
}

const _: () = {
    assert!(size_of::<Folio<Native>>() == crate::arch::arena::RECORD_SIZE);
    assert!(offset_of!(Folio<Native>, mapping) == 24 && offset_of!(Folio<Native>, index) == 32);
    assert!(offset_of!(Folio<Native>, _mapcount) == 48 && offset_of!(Folio<Native>, _refcount) == 52);
};

/// `page_folio()`: the record of the page at `page`, arena memory.
#[inline(always)]
pub fn page_folio<A: Hardware>(page: *const u8) -> KRef<Folio<A>> {
    // SAFETY: every page of the arena has a record, which is words only.
    unsafe { KRef::new(NonNull::new_unchecked(page_record(page as usize).cast())) }
}

impl<A: Hardware> Folio<A> {
    /// `set_page_refcounted()`: the allocation's own reference. Nobody else knows the page.
    #[inline(always)]
    pub fn set_page_refcounted(&self) {
        self._refcount.store(1, Relaxed);
    }
    /// `folio_ref_count()`
    #[inline(always)]
    pub fn ref_count(&self) -> u32 {
        self._refcount.load(Relaxed)
    }
    /// `folio_get()`
    #[inline(always)]
    pub fn get(&self) {
        self._refcount.fetch_add(1, Relaxed);
    }
    /// `folio_try_get()`: false if the page is on its way out.
    #[inline]
    pub fn try_get(&self) -> bool {
        let mut old = self._refcount.load(Relaxed);
        while old != 0 {
            // ORDER: full, as atomic_add_unless(); meets put_testzero(): what the last user wrote is over.
            if self._refcount.try_cmpxchg(old + 1, &mut old, Full) {
                return true;
            }
        }
        false
    }
    /// `put_page_testzero()`: drops a reference; true for the last.
    #[inline(always)]
    pub fn put_testzero(&self) -> bool {
        // ORDER: full, as atomic_dec_and_test(): everybody's use of the page comes before the page's next life.
        self._refcount.fetch_sub(1, Full) == 1
    }
    /// `folio_mapcount()`
    #[inline(always)]
    pub fn mapcount(&self) -> u32 {
        self._mapcount.load(Relaxed)
    }
    /// `folio_test_anon()`
    #[inline(always)]
    pub fn test_anon(&self) -> bool {
        self.mapping.load(Relaxed) & PAGE_MAPPING_ANON != 0
    }
    /// Whether `flag` is set.
    #[inline(always)]
    pub fn test(&self, flag: u64) -> bool {
        self.flags.load(Relaxed) & flag != 0
    }
    /// `__set_bit()`: of a page that nobody else knows.
    #[inline(always)]
    pub fn __set(&self, flag: u64) {
        self.flags.store(self.flags.load(Relaxed) | flag, Relaxed);
    }
    /// `set_bit()`
    #[inline(always)]
    pub fn set(&self, flag: u64) {
        self.flags.fetch_or(flag, Relaxed);
    }
    /// `clear_bit()`
    #[inline(always)]
    pub fn clear(&self, flag: u64) {
        self.flags.fetch_and(!flag, Relaxed);
    }
    /// `folio_trylock()`
    #[inline(always)]
    pub fn trylock(&self) -> bool {
        // ORDER: full, as test_and_set_bit_lock() is on x86; meets unlock().
        self.flags.fetch_or(PG_LOCKED, Full) & PG_LOCKED == 0
    }
    /// `folio_unlock()`
    #[inline(always)]
    pub fn unlock(&self) {
        // ORDER: full (release would do); meets trylock().
        self.flags.fetch_and(!PG_LOCKED, Full);
    }
    /// `folio_mark_dirty()`, as far as the flag goes; true if it was clean.
    #[inline(always)]
    pub fn mark_dirty(&self) -> bool {
        !self.test(PG_DIRTY) && self.flags.fetch_or(PG_DIRTY, Relaxed) & PG_DIRTY == 0
    }
}

/// `PageAnonExclusive()` of the page at `page`: anonymous memory of one address space, which a write may go to as it is.
#[inline(always)]
pub fn page_anon_exclusive<A: Hardware>(page: *const u8) -> bool {
    page_folio::<A>(page).test(PG_ANON_EXCLUSIVE)
}

/// `mm_counter()`: which resident count a page is in.
#[inline(always)]
pub fn mm_counter<A: Hardware>(folio: &Folio<A>) -> usize {
    if folio.test_anon() { MM_ANONPAGES } else { mm_counter_file(folio) }
}

/// `mm_counter_file()`
#[inline(always)]
pub fn mm_counter_file<A: Hardware>(folio: &Folio<A>) -> usize {
    if folio.test(PG_SWAPBACKED) { MM_SHMEMPAGES } else { MM_FILEPAGES }
}

/// `linear_page_index()`
#[inline(always)]
pub fn linear_page_index<K: Kconfig>(vma: VmaPtr<K>, address: u64) -> u64 {
    ((address - vma.vm_start().load(Relaxed)) >> PAGE_SHIFT) + vma.vm_pgoff().load(Relaxed)
}

/// `folio_add_new_anon_rmap()` with `RMAP_EXCLUSIVE`: a page that nobody knows becomes anonymous memory of `vma`.
#[inline(always)]
pub fn folio_add_new_anon_rmap<K: Kconfig>(folio: &Folio<K::A>, vma: VmaPtr<K>, address: u64) {
    folio.__set(PG_SWAPBACKED);
    let anon_vma = vma.anon_vma().load(Relaxed) as u64;
    folio.mapping.store(anon_vma + PAGE_MAPPING_ANON, Relaxed);
    folio.index.store(linear_page_index::<K>(vma, address), Relaxed);
    folio._mapcount.store(1, Relaxed);
    folio.set(PG_ANON_EXCLUSIVE);
}

/// `folio_add_file_rmap_pte()`, `folio_dup_file_rmap_pte()`: one more entry maps a page of a file.
#[inline(always)]
pub fn folio_add_file_rmap<A: Hardware>(folio: &Folio<A>) {
    folio._mapcount.fetch_add(1, Relaxed);
}

/// `folio_try_dup_anon_rmap_pte()`: an entry of the child will map the page too, so it is nobody's alone. Nothing is
/// pinned here, so it cannot fail.
#[inline(always)]
pub fn folio_dup_anon_rmap<A: Hardware>(folio: &Folio<A>) {
    if folio.test(PG_ANON_EXCLUSIVE) {
        folio.clear(PG_ANON_EXCLUSIVE);
    }
    folio._mapcount.fetch_add(1, Relaxed);
}

/// `folio_move_anon_rmap()`: the page is `vma`'s alone from now on.
#[inline(always)]
pub fn folio_move_anon_rmap<K: Kconfig>(folio: &Folio<K::A>, vma: VmaPtr<K>) {
    folio.mapping.store(vma.anon_vma().load(Relaxed) as u64 + PAGE_MAPPING_ANON, Relaxed);
}

/// `folio_remove_rmap_pte()`: an entry less maps the page. The entry is gone already, its reference not yet.
#[inline(always)]
pub fn folio_remove_rmap<A: Hardware>(cpu: &Cpu<A>, folio: &Folio<A>) {
    // ORDER: full, as atomic_add_negative(): whoever sees the count fall sees the entry changed.
    let old = folio._mapcount.fetch_sub(1, Full);
    warn_on_once(cpu, old == 0);
}

/// `free_pages_prepare()`: what the owner leaves in the record of a page without references.
#[inline(always)]
fn free_pages_prepare<A: Hardware>(folio: &Folio<A>) {
    if folio.mapping.load(Relaxed) != 0 {
        folio.mapping.store(0, Relaxed);
    }
    folio.flags.store(folio.flags.load(Relaxed) & !PAGE_FLAGS_CHECK_AT_PREP, Relaxed);
}

/// `folio_put()`: drops a reference to the page at `page`; the last one frees it.
#[inline]
pub(super) fn folio_put<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, page: *mut u8) {
    let folio = page_folio::<K::A>(page);
    if folio.put_testzero() {
        free_pages_prepare(&*folio);
        cpu.count(VmEvent::Pgfree);
        // SAFETY: the last reference to a page that alloc_pages() gave.
        unsafe { free_pages(cpu, &k.pages, page, 0) };
    }
}

/// `free_pages_and_swap_cache()` and `folios_put_refs()`: drops a reference to each page; what nobody holds goes back a
/// folio batch at a time.
pub(super) fn folios_put<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, pages: &mut [*mut u8]) {
    for batch in pages.chunks_mut(PAGEVEC_SIZE) {
        let mut free = 0;
        for i in 0..batch.len() {
            let folio = page_folio::<K::A>(batch[i]);
            if folio.put_testzero() {
                free_pages_prepare(&*folio);
                batch[free] = batch[i];
                free += 1;
            }
        }
        cpu.counters.add(VmEvent::Pgfree, free as u64);
        // SAFETY: the last references to pages that alloc_pages() gave.
        unsafe { free_unref_folios(cpu, &k.pages, &batch[..free]) };
    }
}

/// Whether two words of one page's record are what a page without an owner has; for tests.
pub fn folio_is_free<A: Hardware>(folio: &Folio<A>) -> bool {
    folio.ref_count() == 0 && folio.mapcount() == 0 && folio.flags.load(Relaxed) & PAGE_FLAGS_CHECK_AT_PREP == 0
}
