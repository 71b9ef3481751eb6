// SPDX-License-Identifier: GPL-2.0-only
//! Page tables: four levels in real pages, entries of 8 bytes, a lock per table [mm/memory.c, mm/pgtable-generic.c,
//! arch/x86/include/asm/pgtable.h, 6.12].
//!
//! dup: levels and spans of x86-64, who installs a missing table under which lock, split locks for the two lower
//! levels, which tables may be freed. custom: an entry holds the arena address of a page or table. stub: huge pages,
//! accessed bits, TLB flushes (a fault of the port has no TLB; BIAS.md), table pages freed through RCU.
//!
//! INVARIANT: a table exists only while some VMA, or one that is being unmapped, overlaps its span; so it may be freed
//! when its whole span lies between the end of the VMA before and the start of the VMA behind.
//! Lock order: `page_table_lock`; the lock of a PMD table; the lock of a PTE table. Never two of them at once, but for
//! mremap, which takes two of one level, the source's first, and fork, which takes the child's PTE table and then the
//! parent's, both under `mmap_lock` for write.

use super::folio::{folio_put, page_folio};
use super::kconfig::{Kconfig, MmPtr};
use super::mmu_gather::MmuGather;
use super::vmstat::VmEvent;
use crate::arch::arena::{KRef, PAGE_SIZE, page_record};
use crate::arch::{Acquire, Arch, Atomic, Full, Hardware, Relaxed, smp_wmb};
use crate::cpu::{Cpu, Errno};
use crate::init::{Kernel, KernelState};
use crate::slab::{alloc_pages, clear_page};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_unlock};
use std::ptr::NonNull;

/// Entry maps something.
pub const PAGE_PRESENT: u64 = 1;
/// Entry may be written through.
pub const PAGE_RW: u64 = 2;
/// User entry.
pub const PAGE_USER: u64 = 4;
/// Written through.
pub const PAGE_DIRTY: u64 = 0x40;
/// A table below (the bits of a kernel's table entries).
const TABLE: u64 = PAGE_PRESENT | PAGE_RW | PAGE_USER | 0x20 | PAGE_DIRTY;
/// Entry without a page, where every access ends in SIGSEGV (`make_pte_marker(PTE_MARKER_GUARD)`): not none, not present.
pub const PTE_MARKER_GUARD: u64 = 1 << 62;
/// Address bits of an entry.
pub const PTE_PFN_MASK: u64 = 0x000f_ffff_ffff_f000;
const PTRS: usize = 512;
/// log2 of the span of an entry, by level: 0 = PTE, 3 = PGD.
pub(super) const SHIFT: [u32; 4] = [12, 21, 30, 39];
/// Levels above the PTE table.
pub(super) const TOP: usize = 3;

/// A table: 512 entries in a page.
#[repr(C, align(4096))]
pub struct PageTable<A: Arch> {
    entries: [Atomic<A, u64>; PTRS],
}

impl<A: Arch> PageTable<A> {
    /// The entry for `addr` at `level`.
    #[inline(always)]
    pub fn entry(&self, level: usize, addr: u64) -> &Atomic<A, u64> {
        &self.entries[(addr >> SHIFT[level]) as usize & (PTRS - 1)]
    }
}

/// Where in the record of a table's page its lock is, as in the kernel's `struct ptdesc`. The page allocator leaves
/// these words to the page's owner.
const PTL_OFFSET: usize = 40;

/// `pte_lockptr()`, `pmd_lockptr()`: the lock of one table.
#[inline(always)]
pub(super) fn ptlock_ptr<A: Hardware>(table: KRef<PageTable<A>>) -> KRef<RawSpinLock<A>> {
    let p = page_record(table.as_ptr() as usize).wrapping_add(PTL_OFFSET).cast::<RawSpinLock<A>>();
    // SAFETY: a word of the record of a page that table_alloc() took, initialised there.
    unsafe { KRef::new(NonNull::new_unchecked(p)) }
}

/// A zeroed table; `None` when out of memory.
fn table_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> Option<KRef<PageTable<K::A>>> {
    let p = NonNull::new(alloc_zeroed_page(cpu, k, "page table").cast::<PageTable<K::A>>())?;
    // SAFETY: a page of zeros is a table without entries.
    let t = unsafe { KRef::new(p) };
    // SAFETY: as in ptlock_ptr(); nobody else knows the table yet.
    unsafe { ptlock_ptr(t).as_ptr().write(RawSpinLock::new()) };
    Some(t)
}

fn table_free<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, t: KRef<PageTable<K::A>>) {
    // pagetable_free(): the allocation's reference is the only one.
    folio_put(cpu, k, t.as_ptr().cast());
}

/// A page with one reference, `label` to the simulator; null when out of memory. The bytes are arbitrary.
#[inline]
pub fn alloc_user_page<A: Hardware>(cpu: &Cpu<A>, k: &KernelState<A>, label: &'static str) -> *mut u8 {
    let p = alloc_pages(cpu, &k.pages, 0);
    if !p.is_null() {
        A::label(p, PAGE_SIZE, label);
        cpu.count(VmEvent::Pgalloc);
        // post_alloc_hook()
        page_folio::<A>(p).set_page_refcounted();
    }
    p
}

/// As [`alloc_user_page`], all zero.
#[inline]
pub fn alloc_zeroed_page<A: Hardware>(cpu: &Cpu<A>, k: &KernelState<A>, label: &'static str) -> *mut u8 {
    let p = alloc_user_page(cpu, k, label);
    if !p.is_null() {
        // SAFETY: a page nobody else knows.
        unsafe { clear_page::<A>(p) };
    }
    p
}

#[inline(always)]
pub(super) fn table_of<A: Arch>(entry: u64) -> KRef<PageTable<A>> {
    // SAFETY: a present entry of an upper level points to a table, which lives while a VMA overlaps it; callers hold
    // that VMA's lock or mmap_lock.
    unsafe { KRef::new(NonNull::new_unchecked((entry & PTE_PFN_MASK) as *mut PageTable<A>)) }
}

/// The root of `mm`.
#[inline(always)]
pub fn pgd<K: Kconfig>(mm: MmPtr<K>) -> KRef<PageTable<K::A>> {
    // SAFETY: set by mm_init(), freed with the mm.
    unsafe { KRef::new(NonNull::new_unchecked(mm.pgd.get().cast())) }
}

/// `pgd_alloc()`: the root of a new mm; null when out of memory.
pub fn pgd_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> *mut u8 {
    table_alloc(cpu, k).map_or(std::ptr::null_mut(), |t| t.as_ptr().cast())
}

/// `pgd_free()`
pub fn pgd_free<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    table_free(cpu, k, pgd::<K>(mm));
}

/// `p4d_alloc()`, `pud_alloc()` down to the PUD entry of `addr`; and that PUD's table.
///
/// # Errors
/// `ENOMEM`
pub(super) fn pud_alloc<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
) -> Result<KRef<PageTable<K::A>>, Errno> {
    let t = pgd::<K>(mm);
    // ORDER: acquire stands for the address dependency; meets table_install().
    let e = t.entry(TOP, addr).load(Acquire);
    if e & PAGE_PRESENT != 0 { Ok(table_of(e)) } else { upper_alloc(cpu, k, mm, t, TOP, addr) }
}

/// The table with the entry of `addr` at `level` (2: its PUD, 1: its PMD), if that entry is not none.
pub(super) fn table_above<K: Kconfig>(mm: MmPtr<K>, level: usize, addr: u64) -> Option<KRef<PageTable<K::A>>> {
    let mut t = pgd::<K>(mm);
    for above in (level..=TOP).rev() {
        // ORDER: acquire stands for the address dependency; meets table_install().
        let e = t.entry(above, addr).load(Acquire);
        if e & PAGE_PRESENT == 0 {
            return None;
        }
        if above > level {
            t = table_of(e);
        }
    }
    Some(t)
}

/// `p4d_alloc()`, `pud_alloc()`, `pmd_alloc()` down to the PMD entry of `addr`; and that PMD's table.
///
/// # Errors
/// `ENOMEM`
#[inline]
pub fn pmd_alloc<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
) -> Result<KRef<PageTable<K::A>>, Errno> {
    let mut t = pgd::<K>(mm);
    for level in [3, 2] {
        // ORDER: acquire stands for the address dependency; meets table_install().
        let e = t.entry(level, addr).load(Acquire);
        t = if e & PAGE_PRESENT != 0 { table_of(e) } else { upper_alloc(cpu, k, mm, t, level, addr)? };
    }
    Ok(t)
}

/// `__pud_alloc()`, `__pmd_alloc()`: under `page_table_lock`.
#[cold]
#[inline(never)]
pub(super) fn upper_alloc<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    t: KRef<PageTable<K::A>>,
    level: usize,
    addr: u64,
) -> Result<KRef<PageTable<K::A>>, Errno> {
    let new = table_alloc(cpu, k).ok_or(Errno::ENOMEM)?;
    raw_spin_lock(cpu, &mm.page_table_lock);
    let won = table_install::<K>(mm, t.entry(level, addr), new);
    raw_spin_unlock(cpu, &mm.page_table_lock);
    if !won {
        table_free(cpu, k, new);
    }
    // ORDER: acquire stands for the address dependency; meets table_install() of whoever won.
    Ok(table_of(t.entry(level, addr).load(Acquire)))
}

/// `__pte_alloc()` and `pmd_install()`: a PTE table for `addr` under the lock of the PMD's table.
///
/// # Errors
/// `ENOMEM`
#[cold]
#[inline(never)]
pub fn pte_alloc<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    pmd: KRef<PageTable<K::A>>,
    addr: u64,
) -> Result<(), Errno> {
    let new = table_alloc(cpu, k).ok_or(Errno::ENOMEM)?;
    let ptl = ptlock_ptr(pmd);
    raw_spin_lock(cpu, &ptl);
    let won = table_install::<K>(mm, pmd.entry(1, addr), new);
    raw_spin_unlock(cpu, &ptl);
    if !won {
        table_free(cpu, k, new);
    }
    Ok(())
}

/// Publishes `new` if the entry is still none; false if another CPU was first.
fn table_install<K: Kconfig>(mm: MmPtr<K>, entry: &Atomic<K::A, u64>, new: KRef<PageTable<K::A>>) -> bool {
    if entry.load(Relaxed) & PAGE_PRESENT != 0 {
        return false;
    }
    mm.pgtables_bytes.fetch_add(PAGE_SIZE as i64, Relaxed);
    // ORDER: write barrier, meets the acquire loads of whoever walks down: zeros before the pointer.
    smp_wmb::<K::A>();
    entry.store(new.as_ptr() as u64 | TABLE, Relaxed);
    true
}

/// The PTE table under a PMD entry, if there is one.
#[inline(always)]
pub fn pte_table<A: Arch>(pmd: KRef<PageTable<A>>, addr: u64) -> Option<KRef<PageTable<A>>> {
    // ORDER: acquire stands for the address dependency; meets table_install().
    let e = pmd.entry(1, addr).load(Acquire);
    (e & PAGE_PRESENT != 0).then(|| table_of(e))
}

/// `pte_offset_map_lock()`: the entry of `addr` and the lock of its table, taken.
#[inline(always)]
pub fn pte_lock<A: Hardware>(cpu: &Cpu<A>, table: KRef<PageTable<A>>) -> KRef<RawSpinLock<A>> {
    let ptl = ptlock_ptr(table);
    raw_spin_lock(cpu, &ptl);
    ptl
}

/// The table with the entry of `addr`, found without locks.
fn pte_offset<K: Kconfig>(mm: MmPtr<K>, addr: u64) -> Option<KRef<PageTable<K::A>>> {
    let mut t = pgd::<K>(mm);
    for level in [3, 2, 1] {
        // ORDER: acquire stands for the address dependency; meets table_install().
        let e = t.entry(level, addr).load(Acquire);
        if e & PAGE_PRESENT == 0 {
            return None;
        }
        t = table_of(e);
    }
    Some(t)
}

/// The entry of `addr` without locks, for tests and for reading pages back; 0 = none.
pub fn pte_lookup<K: Kconfig>(mm: MmPtr<K>, addr: u64) -> u64 {
    pte_offset::<K>(mm, addr).map_or(0, |t| t.entry(0, addr).load(Relaxed))
}

/// What a processor does at an access to `addr`: looks whether the entry allows it, and says in the entry that the page is
/// written to, both at once. The entry, where it does.
pub fn hardware_walk<K: Kconfig>(mm: MmPtr<K>, addr: u64, write: bool) -> Option<u64> {
    let t = pte_offset::<K>(mm, addr)?;
    let at = t.entry(0, addr);
    let (wanted, sets) = match write {
        true => (PAGE_PRESENT | PAGE_USER | PAGE_RW, PAGE_DIRTY),
        false => (PAGE_PRESENT | PAGE_USER, 0),
    };
    let mut pte = at.load(Relaxed);
    while pte & wanted == wanted {
        if pte & sets == sets {
            return Some(pte);
        }
        // PORT: the processor's own exchange, which is a locked one and fails where the entry is another by now.
        if at.try_cmpxchg(pte | sets, &mut pte, Full) {
            return Some(pte | sets);
        }
    }
    None
}

/// `free_pgd_range()`: queues the tables under `[start, end)` whose whole span lies in `[floor, ceiling)`.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
pub fn free_pgd_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    tlb: &mut MmuGather,
    start: u64,
    end: u64,
    floor: u64,
    ceiling: u64,
) {
    // Most ranges share their first and last PTE table with a neighbour: nothing to do, seen from here.
    let pmd = 1u64 << SHIFT[1];
    let mut first = start & !(pmd - 1);
    if first < floor {
        first += pmd;
    }
    let end = if end > ceiling & !(pmd - 1) { end.saturating_sub(pmd) } else { end };
    if first < end {
        free_level(cpu, k, mm, tlb, pgd::<K>(mm), TOP, first, end, floor, ceiling);
    }
}

#[expect(clippy::too_many_arguments, reason = "one recursive function in place of the kernel's four")]
fn free_level<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    tlb: &mut MmuGather,
    t: KRef<PageTable<K::A>>,
    level: usize,
    start: u64,
    end: u64,
    floor: u64,
    ceiling: u64,
) {
    let span = 1u64 << SHIFT[level];
    let mut base = start & !(span - 1);
    while base < end {
        let entry = t.entry(level, base);
        // ORDER: acquire stands for the address dependency; meets table_install().
        let e = entry.load(Acquire);
        if e & PAGE_PRESENT != 0 {
            let child = table_of(e);
            if level > 1 {
                free_level(cpu, k, mm, tlb, child, level - 1, start.max(base), end.min(base + span), floor, ceiling);
            }
            if base >= floor && base + span <= ceiling {
                // No VMA overlaps the span: nobody walks here. The table's page goes with the queued ones, after the
                // (absent) flush.
                entry.store(0, Relaxed);
                if tlb.remove_page(cpu, k, child.as_ptr().cast()) {
                    tlb.flush(cpu, k);
                }
                mm.pgtables_bytes.fetch_sub(PAGE_SIZE as i64, Relaxed);
            }
        }
        base += span;
    }
}

/// Size of a table, for labels.
pub const fn table_size<A: Hardware>() -> usize {
    size_of::<PageTable<A>>()
}
