// SPDX-License-Identifier: GPL-2.0-only
//! Faults in mappings of files and of shared memory [mm/memory.c: do_fault and below, mm/filemap.c, mm/shmem.c, 6.12].
//!
//! dup: read, copy and shared faults; 16 pages around a read fault mapped if the cache has them; SIGBUS behind the end of
//! the file; which faults finish under the VMA's lock (all whose page is in the cache, and shared memory's) and which
//! give it up: a page that must be read in ends in RETRY, the first write to a clean shared page in COMPLETED, both with
//! the lock dropped, since the kernel may sleep there. custom: "reading" fills the page from the file's description.
//! stub: the lock of a page, readahead beyond the page, waiting for the disk, dirty throttling, large folios, times of
//! files.
//!
//! INVARIANT: a VMA holds a reference to its file, so the page cache stands still but for pages that come.

use super::file::{
    AddressSpace, File, FileKind, VM_OPS_MKWRITE, filemap_get_folio, filemap_grab_folio, fput, get_file, vm_file_of,
};
use super::folio::{
    PG_UPTODATE, folio_add_file_rmap, folio_add_new_anon_rmap, folio_put, linear_page_index, mm_counter_file,
    page_folio,
};
use super::kconfig::{Kconfig, VmaPtr};
use super::memory::{
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_TRIED, FAULT_FLAG_VMA_LOCK, FAULT_FLAG_WRITE, VM_FAULT_COMPLETED,
    VM_FAULT_MAJOR, VM_FAULT_NOPAGE, VM_FAULT_OOM, VM_FAULT_RETRY, VM_FAULT_SIGBUS, VmFault, add_mm_counter,
    vmf_anon_prepare,
};
use super::mm_types::{MM_ANONPAGES, VM_SHARED, VM_WRITE, VmaFields, vma_pages};
use super::mmap_lock::{mmap_read_unlock, vma_end_read};
use super::pgtable::{
    PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER, PageTable, alloc_user_page, pte_alloc, pte_lock, pte_table,
};
use super::vmstat::VmEvent;
use crate::arch::arena::{KRef, PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Hardware, Relaxed, smp_wmb};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::raw_spin_unlock;

/// Pages that a read fault may map at once.
const FAULT_AROUND_PAGES: u64 = 16;
const PTRS_PER_PTE: u64 = 512;

/// `vma_wants_writenotify()`: entries of a shared mapping are made without the right to write, because the file wants
/// to hear of the first write to a page.
#[inline(always)]
pub fn vma_wants_writenotify<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.vm_flags().load(Relaxed) & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE
        && vma.vm_ops().load(Relaxed) & VM_OPS_MKWRITE != 0
}

/// `mk_pte()` with `vm_page_prot` for a page of a file: writable at once only where a shared mapping is.
fn file_pte<K: Kconfig>(vma: VmaPtr<K>, page: *mut u8) -> u64 {
    let shared = vma.vm_flags().load(Relaxed) & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE;
    let rw = if shared && !vma_wants_writenotify::<K>(vma) { PAGE_RW } else { 0 };
    page as u64 | PAGE_PRESENT | PAGE_USER | rw
}

/// `release_fault_lock()`
fn release_fault_lock<K: Kconfig>(cpu: &Cpu<K::A>, vmf: &VmFault<K>) {
    if vmf.flags & FAULT_FLAG_VMA_LOCK != 0 {
        vma_end_read::<K>(cpu, vmf.vma);
    } else {
        mmap_read_unlock(cpu, &*vmf.mm);
    }
}

/// `maybe_unlock_mmap_for_io()`: before what may sleep, the fault's first try gives its lock up, and the VMA may go: then
/// the file, with a reference.
fn maybe_unlock_mmap_for_io<K: Kconfig>(cpu: &Cpu<K::A>, vmf: &VmFault<K>) -> Option<KRef<File<K::A>>> {
    if vmf.flags & (FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED) != FAULT_FLAG_ALLOW_RETRY {
        return None;
    }
    let fpin = vm_file_of::<K>(vmf.vma).map(get_file);
    release_fault_lock(cpu, vmf);
    fpin
}

/// `do_fault()`
#[cold]
#[inline(never)]
pub(super) fn do_fault<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    pmd: KRef<PageTable<K::A>>,
) -> u32 {
    let Some(file) = vm_file_of::<K>(vmf.vma) else { return VM_FAULT_SIGBUS };
    let mapping = file.f_mapping();
    let pgoff = linear_page_index::<K>(vmf.vma, vmf.address);
    let f = FileFault { vmf, pmd, mapping, pgoff };
    if vmf.flags & FAULT_FLAG_WRITE == 0 {
        do_read_fault(cpu, k, &f)
    } else if vmf.vma.vm_flags().load(Relaxed) & VM_SHARED == 0 {
        do_cow_fault(cpu, k, &f)
    } else {
        do_shared_fault(cpu, k, &f)
    }
}

/// A fault, and where in which file it is.
struct FileFault<'a, K: Kconfig> {
    vmf: &'a VmFault<K>,
    pmd: KRef<PageTable<K::A>>,
    mapping: KRef<AddressSpace<K::A>>,
    pgoff: u64,
}

/// `__do_fault()` with `filemap_fault()` or `shmem_fault()`: the page, with a reference.
///
/// # Errors
/// `VM_FAULT_*`; after RETRY the lock is dropped.
fn __do_fault<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, f: &FileFault<'_, K>) -> Result<*mut u8, u32> {
    if f.pgoff >= f.mapping.max_idx() {
        return Err(VM_FAULT_SIGBUS);
    }
    if let Some(page) = filemap_get_folio(&*f.mapping, f.pgoff) {
        return Ok(page);
    }
    if f.mapping.kind() != FileKind::Regular {
        // shmem_get_folio_gfp()
        return filemap_grab_folio(cpu, k, f.vmf.mm, f.mapping, f.pgoff).map_err(|_| VM_FAULT_OOM);
    }
    cpu.count(VmEvent::Pgmajfault);
    // do_sync_mmap_readahead()
    let fpin = maybe_unlock_mmap_for_io(cpu, f.vmf);
    let page = filemap_grab_folio(cpu, k, f.vmf.mm, f.mapping, f.pgoff);
    let Some(file) = fpin else { return page.map_err(|_| VM_FAULT_OOM) };
    // Without the lock nobody knows whether the mapping still is what it was.
    if let Ok(page) = page {
        folio_put(cpu, k, page);
    }
    fput(cpu, k, file);
    if f.vmf.flags & FAULT_FLAG_VMA_LOCK != 0 {
        cpu.count(VmEvent::RetryIo);
    }
    Err(VM_FAULT_MAJOR | VM_FAULT_RETRY)
}

/// `pte_alloc()`: the PTE table of the fault's address.
fn table_for<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, f: &FileFault<'_, K>) -> Option<KRef<PageTable<K::A>>> {
    if pte_table(f.pmd, f.vmf.address).is_none() {
        pte_alloc(cpu, k, f.vmf.mm, f.pmd, f.vmf.address).ok()?;
    }
    pte_table(f.pmd, f.vmf.address)
}

/// `do_fault_around()` with `filemap_map_pages()`: `VM_FAULT_NOPAGE` if the page of the fault itself was mapped.
fn do_fault_around<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, f: &FileFault<'_, K>) -> u32 {
    let vma = f.vmf.vma;
    let pte_off = (f.vmf.address >> PAGE_SHIFT) & (PTRS_PER_PTE - 1);
    let vma_off = f.pgoff - vma.vm_pgoff().load(Relaxed);
    let from = (pte_off & !(FAULT_AROUND_PAGES - 1)).max(pte_off - pte_off.min(vma_off));
    let to = (from + FAULT_AROUND_PAGES).min(PTRS_PER_PTE).min(pte_off + vma_pages::<K::A, K::Lock>(&vma) - vma_off);
    let Some(table) = table_for(cpu, k, f) else { return VM_FAULT_OOM };
    let end = (f.pgoff + to - pte_off).min(f.mapping.max_idx());
    let mut ret = 0;
    let mut rss = 0;
    let mut held = None;
    let mut counter = 0;
    rcu_read_lock(cpu);
    for pgoff in f.pgoff + from - pte_off..end {
        // next_uptodate_folio(); the table is locked once there is something to map.
        let Some(page) = filemap_get_folio(&*f.mapping, pgoff) else { continue };
        let _ptl = held.get_or_insert_with(|| pte_lock(cpu, table));
        let addr = f.vmf.address.wrapping_add(pgoff.wrapping_sub(f.pgoff) << PAGE_SHIFT);
        let pte = table.entry(0, addr);
        if pte.load(Relaxed) != 0 {
            folio_put(cpu, k, page);
            continue;
        }
        // The reference goes to the entry.
        let folio = page_folio::<K::A>(page);
        folio_add_file_rmap(&*folio);
        pte.store(file_pte::<K>(vma, page), Relaxed);
        counter = mm_counter_file(&*folio);
        rss += 1;
        if addr == f.vmf.address {
            ret = VM_FAULT_NOPAGE;
        }
    }
    if let Some(ptl) = held {
        if rss != 0 {
            add_mm_counter(cpu, k, f.vmf.mm, counter, rss);
        }
        raw_spin_unlock(cpu, &ptl);
    }
    rcu_read_unlock(cpu);
    ret
}

/// `finish_fault()`: maps `page`, whose reference goes to the entry; `cow`: it is the mapping's own copy.
fn finish_fault<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    f: &FileFault<'_, K>,
    page: *mut u8,
    cow: bool,
) -> Result<(), u32> {
    let Some(table) = table_for(cpu, k, f) else { return Err(VM_FAULT_OOM) };
    let vma = f.vmf.vma;
    let ptl = pte_lock(cpu, table);
    let pte = table.entry(0, f.vmf.address);
    if pte.load(Relaxed) != 0 {
        raw_spin_unlock(cpu, &ptl);
        cpu.count(VmEvent::PgfaultRaced);
        return Err(VM_FAULT_NOPAGE);
    }
    // set_pte_range()
    let folio = page_folio::<K::A>(page);
    let mut entry = file_pte::<K>(vma, page);
    if f.vmf.flags & FAULT_FLAG_WRITE != 0 {
        entry |= PAGE_DIRTY;
        if vma.vm_flags().load(Relaxed) & VM_WRITE != 0 {
            entry |= PAGE_RW;
        }
    }
    let counter = if cow {
        folio_add_new_anon_rmap::<K>(&folio, vma, f.vmf.address);
        MM_ANONPAGES
    } else {
        folio_add_file_rmap(&*folio);
        mm_counter_file(&*folio)
    };
    pte.store(entry, Relaxed);
    add_mm_counter(cpu, k, f.vmf.mm, counter, 1);
    raw_spin_unlock(cpu, &ptl);
    Ok(())
}

/// `do_read_fault()`
fn do_read_fault<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, f: &FileFault<'_, K>) -> u32 {
    let ret = do_fault_around(cpu, k, f);
    if ret != 0 {
        return ret;
    }
    let page = match __do_fault(cpu, k, f) {
        Ok(page) => page,
        Err(ret) => return ret,
    };
    match finish_fault(cpu, k, f, page, false) {
        Ok(()) => 0,
        Err(ret) => {
            folio_put(cpu, k, page);
            ret
        }
    }
}

/// `do_cow_fault()`: a private mapping gets a copy of its own at the first write.
fn do_cow_fault<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, f: &FileFault<'_, K>) -> u32 {
    let ret = vmf_anon_prepare(cpu, k, f.vmf);
    if ret != 0 {
        return ret;
    }
    let copy = alloc_user_page(cpu, k, "anonymous page");
    if copy.is_null() {
        return VM_FAULT_OOM;
    }
    let page = match __do_fault(cpu, k, f) {
        Ok(page) => page,
        Err(ret) => {
            folio_put(cpu, k, copy);
            return ret;
        }
    };
    // SAFETY: two pages, one of them referenced, the other our own. What user mode does to the file's page through shared
    // mappings meanwhile is user mode's own race.
    unsafe { K::A::copy(copy, page, PAGE_SIZE) };
    // __folio_mark_uptodate()
    // ORDER: write barrier: the page's bytes before its entry; as in do_anonymous_page().
    smp_wmb::<K::A>();
    page_folio::<K::A>(copy).__set(PG_UPTODATE);
    let r = finish_fault(cpu, k, f, copy, true);
    folio_put(cpu, k, page);
    match r {
        Ok(()) => 0,
        Err(ret) => {
            folio_put(cpu, k, copy);
            ret
        }
    }
}

/// `do_shared_fault()`: a write to a shared mapping goes to the file's page.
fn do_shared_fault<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, f: &FileFault<'_, K>) -> u32 {
    let page = match __do_fault(cpu, k, f) {
        Ok(page) => page,
        Err(ret) => return ret,
    };
    if f.vmf.vma.vm_ops().load(Relaxed) & VM_OPS_MKWRITE != 0 {
        do_page_mkwrite::<K>(page);
    }
    match finish_fault(cpu, k, f, page, false) {
        Ok(()) => fault_dirty_shared_page(cpu, k, f.vmf, page),
        Err(ret) => {
            folio_put(cpu, k, page);
            ret
        }
    }
}

/// `do_page_mkwrite()` with `filemap_page_mkwrite()`: the file hears that a page is about to be written.
pub(super) fn do_page_mkwrite<K: Kconfig>(page: *mut u8) {
    page_folio::<K::A>(page).mark_dirty();
}

/// `fault_dirty_shared_page()`: after a write fault in a shared mapping. Where the page became dirty, or the file wants
/// to hear of it, writers may be slowed down: the lock goes first, and the fault ends COMPLETED.
pub(super) fn fault_dirty_shared_page<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vmf: &VmFault<K>,
    page: *mut u8,
) -> u32 {
    let mkwrite = vmf.vma.vm_ops().load(Relaxed) & VM_OPS_MKWRITE != 0;
    let dirtied = page_folio::<K::A>(page).mark_dirty();
    if !dirtied && !mkwrite {
        return 0;
    }
    match maybe_unlock_mmap_for_io(cpu, vmf) {
        Some(file) => {
            fput(cpu, k, file);
            VM_FAULT_COMPLETED
        }
        None => 0,
    }
}
