// SPDX-License-Identifier: GPL-2.0-only
//! Writes to pages that an entry does not allow: copy, or take over what is nobody else's [mm/memory.c, 6.12: do_wp_page
//! and below].
//!
//! dup: who reuses and who copies (an exclusive page, or one with a single reference, is taken over; in a shared mapping
//! never copied), the reference held over the copy, the second look under the lock, the order in which the entry, the
//! new page's counts and the old page's change. stub: swap cache, KSM, LRU references, dirty throttling.

use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Full, Hardware, Relaxed, smp_wmb};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::mm::file::VM_OPS_MKWRITE;
use crate::mm::filemap::{do_page_mkwrite, fault_dirty_shared_page};
use crate::mm::folio::{
    Folio, PG_ANON_EXCLUSIVE, PG_UPTODATE, folio_add_new_anon_rmap, folio_move_anon_rmap, folio_put, folio_remove_rmap,
    mm_counter_file, page_folio,
};
use crate::mm::kconfig::{Kconfig, VmaPtr};
use crate::mm::memory::{VM_FAULT_NOPAGE, VM_FAULT_OOM, VmFault, add_mm_counter, vmf_anon_prepare};
use crate::mm::mm_types::{MM_ANONPAGES, VM_MAYSHARE, VM_SHARED, VM_WRITE, VmaFields};
use crate::mm::pgtable::{
    PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER, PTE_PFN_MASK, PageTable, alloc_user_page, alloc_zeroed_page, pte_lock,
};
use crate::mm::vmstat::VmEvent;
use crate::sync::{RawSpinLock, raw_spin_unlock};

/// `wp_can_reuse_anon_folio()`: nobody else refers to the page. Under the table's lock.
fn wp_can_reuse_anon_folio<K: Kconfig>(folio: &Folio<K::A>, vma: VmaPtr<K>) -> bool {
    if folio.ref_count() != 1 || !folio.trylock() {
        return false;
    }
    let alone = folio.ref_count() == 1;
    if alone {
        folio_move_anon_rmap::<K>(folio, vma);
    }
    folio.unlock();
    alone
}

/// `wp_page_reuse()`: the entry gets its right back. Drops the table's lock.
fn wp_page_reuse<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmf: &VmFault<K>,
    table: KRef<PageTable<K::A>>,
    ptl: KRef<RawSpinLock<K::A>>,
    orig: u64,
) {
    let mut entry = orig | PAGE_DIRTY;
    if vmf.vma.vm_flags().load(Relaxed) & VM_WRITE != 0 {
        entry |= PAGE_RW;
    }
    table.entry(0, vmf.address).store(entry, Relaxed);
    raw_spin_unlock(cpu, &ptl);
    cpu.count(VmEvent::Pgreuse);
}

/// `do_wp_page()`: a write to a page that is mapped without the right to write. With the table's lock held, which it
/// drops.
#[cold]
#[inline(never)]
pub(super) fn do_wp_page<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    table: KRef<PageTable<K::A>>,
    ptl: KRef<RawSpinLock<K::A>>,
    orig: u64,
) -> u32 {
    let page = (orig & PTE_PFN_MASK) as *mut u8;
    // vm_normal_page()
    let page = (page != k.zero_page.as_ptr()).then_some(page);
    if vmf.vma.vm_flags().load(Relaxed) & (VM_SHARED | VM_MAYSHARE) != 0
        && let Some(page) = page
    {
        return wp_page_shared(cpu, k, vmf, table, ptl, orig, page);
    }
    if let Some(page) = page {
        let folio = page_folio::<K::A>(page);
        if folio.test_anon() && (folio.test(PG_ANON_EXCLUSIVE) || wp_can_reuse_anon_folio::<K>(&folio, vmf.vma)) {
            if !folio.test(PG_ANON_EXCLUSIVE) {
                folio.set(PG_ANON_EXCLUSIVE);
            }
            wp_page_reuse(cpu, vmf, table, ptl, orig);
            return 0;
        }
        folio.get();
    }
    raw_spin_unlock(cpu, &ptl);
    wp_page_copy(cpu, k, vmf, table, orig, page)
}

/// `wp_page_shared()`: in a shared mapping a write goes to the page itself.
fn wp_page_shared<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    table: KRef<PageTable<K::A>>,
    ptl: KRef<RawSpinLock<K::A>>,
    orig: u64,
    page: *mut u8,
) -> u32 {
    page_folio::<K::A>(page).get();
    if vmf.vma.vm_ops().load(Relaxed) & VM_OPS_MKWRITE != 0 {
        raw_spin_unlock(cpu, &ptl);
        do_page_mkwrite::<K>(page);
        // finish_mkwrite_fault()
        let ptl = pte_lock(cpu, table);
        if table.entry(0, vmf.address).load(Relaxed) != orig {
            raw_spin_unlock(cpu, &ptl);
            folio_put(cpu, k, page);
            cpu.count(VmEvent::PgfaultRaced);
            return VM_FAULT_NOPAGE;
        }
        wp_page_reuse(cpu, vmf, table, ptl, orig);
    } else {
        wp_page_reuse(cpu, vmf, table, ptl, orig);
    }
    let ret = fault_dirty_shared_page(cpu, k, vmf, page);
    folio_put(cpu, k, page);
    ret
}

/// `wp_page_copy()`: a page of the mapping's own takes the place of `old` (with a reference; none: the page of zeros).
fn wp_page_copy<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    table: KRef<PageTable<K::A>>,
    orig: u64,
    old: Option<*mut u8>,
) -> u32 {
    let put_old = || {
        if let Some(old) = old {
            folio_put(cpu, k, old);
        }
    };
    let ret = vmf_anon_prepare(cpu, k, vmf);
    if ret != 0 {
        put_old();
        return ret;
    }
    // folio_prealloc()
    let new = match old {
        None => alloc_zeroed_page(cpu, k, "anonymous page"),
        Some(_) => alloc_user_page(cpu, k, "anonymous page"),
    };
    if new.is_null() {
        put_old();
        return VM_FAULT_OOM;
    }
    if let Some(old) = old {
        // __wp_page_copy_user()
        // SAFETY: two pages, one of them referenced, the other our own. What user mode does to the old one through
        // other mappings meanwhile is user mode's own race.
        unsafe { K::A::copy(new, old, PAGE_SIZE) };
    }
    let folio = page_folio::<K::A>(new);
    // __folio_mark_uptodate()
    // ORDER: write barrier: the page's bytes before its entry; meets the hardware's walk (in the port, whoever reads
    // the page back).
    smp_wmb::<K::A>();
    folio.__set(PG_UPTODATE);
    let ptl = pte_lock(cpu, table);
    let pte = table.entry(0, vmf.address);
    if pte.load(Relaxed) != orig {
        raw_spin_unlock(cpu, &ptl);
        cpu.count(VmEvent::PgfaultRaced);
        folio_put(cpu, k, new);
        put_old();
        return 0;
    }
    match old.map(page_folio_of::<K>) {
        Some(f) if f.test_anon() => {}
        Some(f) => {
            add_mm_counter(cpu, k, vmf.mm, mm_counter_file(&*f), -1);
            add_mm_counter(cpu, k, vmf.mm, MM_ANONPAGES, 1);
        }
        None => add_mm_counter(cpu, k, vmf.mm, MM_ANONPAGES, 1),
    }
    let mut entry = new as u64 | PAGE_PRESENT | PAGE_USER | PAGE_DIRTY;
    if vmf.vma.vm_flags().load(Relaxed) & VM_WRITE != 0 {
        entry |= PAGE_RW;
    }
    // ptep_clear_flush()
    // ORDER: full, as the kernel's xchg(): no processor uses the old entry once the new one stands.
    pte.swap(0, Full);
    folio_add_new_anon_rmap::<K>(&folio, vmf.vma, vmf.address);
    pte.store(entry, Relaxed);
    if let Some(f) = old.map(page_folio_of::<K>) {
        // After the entry: another process that sees the count fall may write to the old page.
        folio_remove_rmap(cpu, &*f);
    }
    raw_spin_unlock(cpu, &ptl);
    if let Some(old) = old {
        // The entry's reference, and the one of this function.
        folio_put(cpu, k, old);
        folio_put(cpu, k, old);
    }
    0
}

fn page_folio_of<K: Kconfig>(page: *mut u8) -> KRef<Folio<K::A>> {
    page_folio::<K::A>(page)
}
