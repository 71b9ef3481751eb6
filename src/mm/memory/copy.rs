// SPDX-License-Identifier: GPL-2.0-only
//! Copying page tables for a child [mm/memory.c, 6.12: copy_page_range and below].
//!
//! dup: what is copied and what a fault will bring back; tables of the child made where the parent has some; both
//! tables' locks, the child's first; private writable entries lose the right in both; the page's reference, map count
//! and exclusiveness. stub: pinned pages, swap, huge pages, leaving the locks for a moment every few pages.
//!
//! Lock order: `mmap_lock` of both mms for write, the parent's VMA; the child's table, the parent's table.

use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Acquire, Relaxed, smp_wmb};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::mm::folio::{folio_add_file_rmap, folio_dup_anon_rmap, mm_counter_file, page_folio};
use crate::mm::kconfig::{Kconfig, MmPtr, VmaPtr};
use crate::mm::memory::{Rss, add_mm_rss_vec};
use crate::mm::mm_types::{
    MM_ANONPAGES, NR_MM_COUNTERS, VM_MAYBE_GUARD, VM_MAYWRITE, VM_MIXEDMAP, VM_PFNMAP, VM_SHARED, VmaFields,
};
use crate::mm::pgtable::{
    PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PTE_PFN_MASK, PageTable, SHIFT, TOP, pgd, pte_alloc, pte_lock, table_of,
    upper_alloc,
};
use crate::sync::raw_spin_unlock;

/// `is_cow_mapping()`: private, and may be written.
#[inline(always)]
pub fn is_cow_mapping(vm_flags: u64) -> bool {
    vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
}

/// `vma_needs_copy()`: whether faults of the child could not find again what the entries say.
fn vma_needs_copy<K: Kconfig>(src: VmaPtr<K>) -> bool {
    src.vm_flags().load(Relaxed) & (VM_PFNMAP | VM_MIXEDMAP | VM_MAYBE_GUARD) != 0
        || !src.anon_vma().load(Relaxed).is_null()
}

/// Whose tables are copied to whom.
struct Copy<K: Kconfig> {
    dst_mm: MmPtr<K>,
    /// Private, and may be written: both sides lose the right.
    cow: bool,
    shared: bool,
}

/// `copy_page_range()`: the entries of the parent's `src` for its child's copy of it.
///
/// # Errors
/// `ENOMEM`; what was copied stays, for the end of the child's mm to clear.
pub fn copy_page_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    dst_mm: MmPtr<K>,
    src_mm: MmPtr<K>,
    src: VmaPtr<K>,
) -> Result<(), Errno> {
    if !vma_needs_copy::<K>(src) {
        return Ok(());
    }
    let flags = src.vm_flags().load(Relaxed);
    let c = Copy { dst_mm, cow: is_cow_mapping(flags), shared: flags & VM_SHARED != 0 };
    let (start, end) = (src.vm_start().load(Relaxed), src.vm_end().load(Relaxed));
    let seq = &src_mm.write_protect_seq;
    if c.cow {
        // raw_write_seqcount_begin(): for those who look pages up without locks.
        seq.store(seq.load(Relaxed).wrapping_add(1), Relaxed);
        // ORDER: write barrier: the odd number before entries lose their right; its reader is not ported.
        smp_wmb::<K::A>();
    }
    let r = copy_level(cpu, k, &c, pgd::<K>(dst_mm), pgd::<K>(src_mm), TOP, start, end);
    if c.cow {
        // ORDER: write barrier: as above, at the end.
        smp_wmb::<K::A>();
        seq.store(seq.load(Relaxed).wrapping_add(1), Relaxed);
    }
    r
}

/// `copy_p4d_range()`, `copy_pud_range()`, `copy_pmd_range()`, by `level`.
#[expect(clippy::too_many_arguments, reason = "one recursive function in place of the kernel's four")]
fn copy_level<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    c: &Copy<K>,
    dst: KRef<PageTable<K::A>>,
    src: KRef<PageTable<K::A>>,
    level: usize,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let span = 1u64 << SHIFT[level];
    let mut addr = start;
    while addr < end {
        let stop = ((addr & !(span - 1)) + span).min(end);
        // ORDER: acquire stands for the address dependency; meets table_install().
        let e = src.entry(level, addr).load(Acquire);
        if e & PAGE_PRESENT != 0 {
            // Nobody else fills the child's tables.
            let have = dst.entry(level, addr).load(Relaxed);
            if level > 1 {
                let child = if have & PAGE_PRESENT != 0 {
                    table_of(have)
                } else {
                    upper_alloc(cpu, k, c.dst_mm, dst, level, addr)?
                };
                copy_level(cpu, k, c, child, table_of(e), level - 1, addr, stop)?;
            } else {
                if have & PAGE_PRESENT == 0 {
                    pte_alloc(cpu, k, c.dst_mm, dst, addr)?;
                }
                let child = table_of(dst.entry(level, addr).load(Relaxed));
                copy_pte_range(cpu, k, c, child, table_of(e), addr, stop);
            }
        }
        addr = stop;
    }
    Ok(())
}

/// `copy_pte_range()`
fn copy_pte_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    c: &Copy<K>,
    dst: KRef<PageTable<K::A>>,
    src: KRef<PageTable<K::A>>,
    start: u64,
    end: u64,
) {
    let mut rss: Rss = [0; NR_MM_COUNTERS];
    let dst_ptl = pte_lock(cpu, dst);
    let src_ptl = pte_lock(cpu, src);
    for addr in (start..end).step_by(PAGE_SIZE) {
        let (src_pte, dst_pte) = (src.entry(0, addr), dst.entry(0, addr));
        let mut e = src_pte.load(Relaxed);
        if e == 0 {
            continue;
        }
        if e & PAGE_PRESENT == 0 {
            // copy_pte_marker()
            dst_pte.store(e, Relaxed);
            continue;
        }
        let page = (e & PTE_PFN_MASK) as *mut u8;
        // copy_present_ptes()
        if page != k.zero_page.as_ptr() {
            let folio = page_folio::<K::A>(page);
            folio.get();
            if folio.test_anon() {
                folio_dup_anon_rmap(&*folio);
                rss[MM_ANONPAGES] += 1;
            } else {
                folio_add_file_rmap(&*folio);
                rss[mm_counter_file(&*folio)] += 1;
            }
        }
        // __copy_present_ptes()
        if c.cow && e & PAGE_RW != 0 {
            // Locked: the processor may be setting bits in the entry.
            src_pte.fetch_and(!PAGE_RW, Relaxed);
            e &= !PAGE_RW;
        }
        if c.shared {
            e &= !PAGE_DIRTY;
        }
        dst_pte.store(e, Relaxed);
    }
    raw_spin_unlock(cpu, &src_ptl);
    add_mm_rss_vec(cpu, k, c.dst_mm, &rss);
    raw_spin_unlock(cpu, &dst_ptl);
}
