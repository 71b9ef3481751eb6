// SPDX-License-Identifier: GPL-2.0-only
//! madvise(2), and names of anonymous memory [mm/madvise.c, 6.12; locks, guard regions: 6.18, 7.3].
//!
//! dup: validity and the order of checks, the walk that steps over holes and reports them at the end, which lock each
//! advice takes, advice as flags with splits and merges, zapping (`DONTNEED`), clean entries (`FREE`), populating, guard
//! markers, `ENOMEM` of an allocation as `EAGAIN`.
//! custom: an anonymous name is a number without a reference count; `FREE` has nobody who would take the clean pages,
//! so their bytes stay; a hole in a file (`REMOVE`) is made of its pages in place.
//! stub: read-ahead and swap (`WILLNEED`), ages of pages and reclaim (`COLD`, `PAGEOUT`: entries are looked at, nothing
//! changes), huge pages (`COLLAPSE` never gets one), registering with KSM and khugepaged, memory errors (always
//! `EPERM`), process_madvise(2), DAX, hugetlbfs, userfaultfd.
//!
//! Lock order: `mmap_lock` (or, for the advice that [`MmRules::dontneed_vma_lock`] says, one VMA's read lock in its
//! place), a VMA's lock, the lock of one PTE table.

use super::file::{
    AddressSpace, FileKind, VM_OPS_ANON_SHMEM, filemap_get_folio, fput, get_file, is_shared_maywrite, vm_file_of,
};
use super::folio::folio_put;
use super::gup::faultin_page_range;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::memory::zap_page_range_single;
use super::mm_types::{
    VM_DONTCOPY, VM_DONTDUMP, VM_DROPPABLE, VM_HUGEPAGE, VM_IO, VM_LOCKED, VM_MAYBE_GUARD, VM_MAYSHARE, VM_MERGEABLE,
    VM_NOHUGEPAGE, VM_PFNMAP, VM_RAND_READ, VM_SEQ_READ, VM_SHARED, VM_SPECIAL, VM_WIPEONFORK, VmaFields,
};
use super::mmap_lock::{
    __lock_vma_under_rcu, mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock, vma_end_read,
};
use super::mprotect::vm_flags_reset;
use super::mseal::can_modify_vma_madv;
use super::pagewalk::walk_page_range;
use super::pgtable::{
    PAGE_DIRTY, PAGE_PRESENT, PTE_MARKER_GUARD, PTE_PFN_MASK, pmd_alloc, pte_alloc, pte_lock, pte_table,
};
use super::rmap::__anon_vma_prepare;
use super::rules::MmRules;
use super::vma::{end_of, find_vma, find_vma_prev, start_of, vma_is_anonymous, vma_modify_flags_name};
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Atomic, Full, Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::MaState;
use crate::sync::raw_spin_unlock;

/// No special treatment.
pub const MADV_NORMAL: i32 = 0;
/// Random access: no read-ahead.
pub const MADV_RANDOM: i32 = 1;
/// Access in sequence.
pub const MADV_SEQUENTIAL: i32 = 2;
/// Will be needed.
pub const MADV_WILLNEED: i32 = 3;
/// The pages go at once.
pub const MADV_DONTNEED: i32 = 4;
/// The pages may go.
pub const MADV_FREE: i32 = 8;
/// A hole in the file.
pub const MADV_REMOVE: i32 = 9;
/// Not for children.
pub const MADV_DONTFORK: i32 = 10;
/// For children again.
pub const MADV_DOFORK: i32 = 11;
/// KSM may merge its pages.
pub const MADV_MERGEABLE: i32 = 12;
/// KSM may not.
pub const MADV_UNMERGEABLE: i32 = 13;
/// Huge pages wanted.
pub const MADV_HUGEPAGE: i32 = 14;
/// No huge pages.
pub const MADV_NOHUGEPAGE: i32 = 15;
/// Not part of a core dump.
pub const MADV_DONTDUMP: i32 = 16;
/// Part of it again.
pub const MADV_DODUMP: i32 = 17;
/// Zeros in the child.
pub const MADV_WIPEONFORK: i32 = 18;
/// The bytes again.
pub const MADV_KEEPONFORK: i32 = 19;
/// Pages age at once.
pub const MADV_COLD: i32 = 20;
/// Pages are reclaimed.
pub const MADV_PAGEOUT: i32 = 21;
/// Read faults now.
pub const MADV_POPULATE_READ: i32 = 22;
/// Write faults now.
pub const MADV_POPULATE_WRITE: i32 = 23;
/// As `DONTNEED`, locked memory too.
pub const MADV_DONTNEED_LOCKED: i32 = 24;
/// Huge pages now.
pub const MADV_COLLAPSE: i32 = 25;
/// A page is broken.
pub const MADV_HWPOISON: i32 = 100;
/// A page is going to break.
pub const MADV_SOFT_OFFLINE: i32 = 101;
/// Accesses end in SIGSEGV (6.13 on).
pub const MADV_GUARD_INSTALL: i32 = 102;
/// Accesses are allowed again.
pub const MADV_GUARD_REMOVE: i32 = 103;

const MASK: u64 = PAGE_SIZE as u64 - 1;
/// Bytes of a huge page.
const HPAGE_PMD_SIZE: u64 = 2 << 20;
/// Attempts to install guards before the system call begins again.
const MAX_MADVISE_GUARD_RETRIES: u32 = 3;

/// How an advice is carried out (`enum madvise_lock_mode`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum LockMode {
    /// `mmap_lock` for write: flags change.
    MmapWrite,
    /// `mmap_lock` for read.
    MmapRead,
    /// The read lock of one VMA, or, where it cannot be had or is not enough, `mmap_lock` for read.
    VmaRead,
}

/// `get_lock_mode()`; 6.12: `madvise_need_mmap_write()`.
fn get_lock_mode(rules: &MmRules, behavior: i32) -> LockMode {
    match behavior {
        MADV_REMOVE | MADV_WILLNEED | MADV_COLD | MADV_PAGEOUT | MADV_POPULATE_READ | MADV_POPULATE_WRITE
        | MADV_COLLAPSE => LockMode::MmapRead,
        MADV_DONTNEED | MADV_DONTNEED_LOCKED | MADV_FREE if rules.dontneed_vma_lock => LockMode::VmaRead,
        MADV_GUARD_INSTALL | MADV_GUARD_REMOVE if rules.guard_vma_lock => LockMode::VmaRead,
        MADV_DONTNEED | MADV_DONTNEED_LOCKED | MADV_FREE | MADV_GUARD_INSTALL | MADV_GUARD_REMOVE => LockMode::MmapRead,
        _ => LockMode::MmapWrite,
    }
}

/// `madvise_behavior_valid()`
fn madvise_behavior_valid(rules: &MmRules, behavior: i32) -> bool {
    match behavior {
        MADV_NORMAL..=MADV_DONTNEED | MADV_FREE..=MADV_COLLAPSE | MADV_HWPOISON | MADV_SOFT_OFFLINE => true,
        MADV_GUARD_INSTALL | MADV_GUARD_REMOVE => rules.guard_regions,
        _ => false,
    }
}

/// What a visit reports beside errors.
enum Visited<K: Kconfig> {
    /// The VMA that now holds the range.
    Vma(VmaPtr<K>),
    /// `mmap_lock` was dropped meanwhile: no VMA seen before may be trusted.
    LockDropped,
}

/// `madvise_update_vma()`: new flags and name for `[start, end)` of `vma`. Under `mmap_lock` for write.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
fn madvise_update_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    prev: Option<VmaPtr<K>>,
    start: u64,
    end: u64,
    new_flags: u64,
    name: u64,
) -> Result<VmaPtr<K>, Errno> {
    if new_flags == vma.vm_flags().load(Relaxed) && name == vma.anon_name().load(Relaxed) {
        return Ok(vma);
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    let vma = vma_modify_flags_name(cpu, k, mm, &mut mas, prev, vma, start, end, new_flags, name)?;
    vm_flags_reset(cpu, k, vma, new_flags);
    // replace_anon_vma_name()
    if vma.vm_file().load(Relaxed) == 0 || vma_is_anon_shmem::<K>(vma) {
        vma.anon_name().store(name, Relaxed);
    }
    Ok(vma)
}

/// `madvise_willneed()`: nothing to read in for anonymous and shared memory; a file's pages are read ahead with
/// `mmap_lock` dropped.
fn madvise_willneed<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
) -> Visited<K> {
    match vm_file_of::<K>(vma) {
        Some(file) if file.f_mapping().kind() == FileKind::Regular => {
            // The VMA, and its reference, may go as soon as the lock is dropped.
            let file = get_file(file);
            mmap_read_unlock(cpu, &*mm);
            fput(cpu, k, file);
            mmap_read_lock(cpu, &*mm);
            Visited::LockDropped
        }
        _ => {
            walk_page_range::<K>(mm, start, end, |table, from, to| {
                let ptl = pte_lock(cpu, table);
                (from..to).step_by(PAGE_SIZE).for_each(|addr| {
                    table.entry(0, addr).load(Relaxed);
                });
                raw_spin_unlock(cpu, &ptl);
            });
            Visited::Vma(vma)
        }
    }
}

/// `madvise_cold()`, `madvise_pageout()`
fn madvise_cold<K: Kconfig>(cpu: &Cpu<K::A>, mm: MmPtr<K>, vma: VmaPtr<K>, start: u64, end: u64) -> Result<(), Errno> {
    // can_madv_lru_vma()
    if vma.vm_flags().load(Relaxed) & (VM_LOCKED | VM_PFNMAP) != 0 {
        return Err(Errno::EINVAL);
    }
    walk_page_range::<K>(mm, start, end, |table, from, to| {
        let ptl = pte_lock(cpu, table);
        (from..to).step_by(PAGE_SIZE).for_each(|addr| {
            table.entry(0, addr).load(Relaxed);
        });
        raw_spin_unlock(cpu, &ptl);
    });
    Ok(())
}

/// `madvise_free_single_vma()`: pages that nobody writes again may be taken; so they become clean.
fn madvise_free_single_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    if !vma_is_anonymous::<K>(vma) {
        return Err(Errno::EINVAL);
    }
    walk_page_range::<K>(mm, start, end, |table, from, to| {
        // madvise_free_pte_range()
        let ptl = pte_lock(cpu, table);
        for addr in (from..to).step_by(PAGE_SIZE) {
            let pte = table.entry(0, addr);
            let e = pte.load(Relaxed);
            let page = (e & PTE_PFN_MASK) as *mut u8;
            if e & PAGE_PRESENT == 0 || page == k.zero_page.as_ptr() || e & PAGE_DIRTY == 0 {
                continue;
            }
            // clear_young_dirty_ptes()
            // ORDER: full, as the kernel's xchg(); see unmap_single_vma().
            let e = pte.swap(0, Full);
            pte.store(e & !PAGE_DIRTY, Relaxed);
        }
        raw_spin_unlock(cpu, &ptl);
    });
    Ok(())
}

/// `madvise_dontneed_free()`. Under `mmap_lock` for read, or `vma`'s read lock.
fn madvise_dontneed_free<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    behavior: i32,
) -> Result<(), Errno> {
    // madvise_dontneed_free_valid_vma()
    let forbidden = if behavior == MADV_DONTNEED_LOCKED { VM_PFNMAP } else { VM_PFNMAP | VM_LOCKED };
    if vma.vm_flags().load(Relaxed) & forbidden != 0 {
        return Err(Errno::EINVAL);
    }
    if behavior == MADV_FREE {
        return madvise_free_single_vma(cpu, k, mm, vma, start, end);
    }
    zap_page_range_single(cpu, k, mm, vma, start, end - start);
    Ok(())
}

/// `madvise_populate()`: faults every page of `[start, end)` in. `mmap_lock` is held for read, and held again at the end.
///
/// # Errors
/// `ENOMEM` (a hole, memory), `EINVAL` (without the right), `EFAULT` (SIGBUS, SIGSEGV)
fn madvise_populate<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mut start: u64,
    end: u64,
    behavior: i32,
) -> Result<(), Errno> {
    let write = behavior == MADV_POPULATE_WRITE;
    while start < end {
        let mut locked = true;
        let r = faultin_page_range(cpu, k, mm, start, end, write, &mut locked);
        if !locked {
            mmap_read_lock(cpu, &*mm);
        }
        start += r? << PAGE_SHIFT;
    }
    Ok(())
}

/// `madvise_remove()`: a hole in the file, with `mmap_lock` dropped meanwhile.
fn madvise_remove<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let flags = vma.vm_flags().load(Relaxed);
    if flags & VM_LOCKED != 0 {
        return Err(Errno::EINVAL);
    }
    let file = vm_file_of::<K>(vma).ok_or(Errno::EINVAL)?;
    if !is_shared_maywrite(flags) {
        return Err(Errno::EACCES);
    }
    let offset = (start - start_of::<K>(vma)) + (vma.vm_pgoff().load(Relaxed) << PAGE_SHIFT);
    let file = get_file(file);
    mmap_read_unlock(cpu, &*mm);
    punch_hole(cpu, k, &file.f_mapping(), offset >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT);
    fput(cpu, k, file);
    mmap_read_lock(cpu, &*mm);
    Ok(())
}

/// `vfs_fallocate()` with `FALLOC_FL_PUNCH_HOLE`: `pages` of a file from number `index` on read as zeros.
///
/// PORT: in place: mappings keep their pages, which the kernel unmaps everywhere and drops from the cache.
fn punch_hole<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mapping: &AddressSpace<K::A>, index: u64, pages: u64) {
    for index in index..index + pages {
        if let Some(page) = filemap_get_folio(mapping, index) {
            // SAFETY: a page that we have a reference to; users reach it through atomics only.
            let words = unsafe { &*page.cast::<[Atomic<K::A, u64>; PAGE_SIZE / 8]>() };
            words.iter().for_each(|w| w.store(0, Relaxed));
            folio_put(cpu, k, page);
        }
    }
}

/// `vma_is_anon_shmem()`
fn vma_is_anon_shmem<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.vm_ops().load(Relaxed) & VM_OPS_ANON_SHMEM != 0
}

/// `madvise_collapse()` as far as it goes without huge pages: who may not have one, and no memory for those who may.
fn madvise_collapse<K: Kconfig>(vma: VmaPtr<K>, start: u64, end: u64) -> Result<(), Errno> {
    // thp_vma_allowable_order()
    let room = (end_of::<K>(vma) & !(HPAGE_PMD_SIZE - 1))
        .checked_sub(HPAGE_PMD_SIZE)
        .is_some_and(|first| first >= start_of::<K>(vma));
    if vma.vm_flags().load(Relaxed) & (VM_NOHUGEPAGE | VM_SPECIAL) != 0
        || !room
        || !vma_is_anonymous::<K>(vma)
        || vma.anon_vma().load(Relaxed).is_null()
    {
        return Err(Errno::EINVAL);
    }
    let hstart = start.next_multiple_of(HPAGE_PMD_SIZE);
    let hend = end & !(HPAGE_PMD_SIZE - 1);
    match hend.cmp(&hstart) {
        // Nothing was tried: nothing failed.
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(Errno::EINVAL),
        std::cmp::Ordering::Greater => Err(Errno::ENOMEM),
    }
}

/// `is_valid_guard_vma()`
fn is_valid_guard_vma<K: Kconfig>(vma: VmaPtr<K>, allow_locked: bool) -> bool {
    let disallowed = if allow_locked { VM_SPECIAL } else { VM_SPECIAL | VM_LOCKED };
    vma.vm_flags().load(Relaxed) & disallowed == 0
}

/// Walks with guard_install_walk_ops: puts a marker into each empty entry of `[start, end)`, making tables where they
/// are missing. False at the first entry that maps something.
///
/// # Errors
/// `ENOMEM`
fn guard_install_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    end: u64,
) -> Result<bool, Errno> {
    let mut addr = start;
    while addr < end {
        let pmd = pmd_alloc(cpu, k, mm, addr)?;
        let Some(table) = pte_table(pmd, addr) else {
            pte_alloc(cpu, k, mm, pmd, addr)?;
            continue;
        };
        let stop = ((addr & !(HPAGE_PMD_SIZE - 1)) + HPAGE_PMD_SIZE).min(end);
        let ptl = pte_lock(cpu, table);
        let mut empty = true;
        while addr < stop && empty {
            let pte = table.entry(0, addr);
            match pte.load(Relaxed) {
                0 => pte.store(PTE_MARKER_GUARD, Relaxed),
                e => empty = e == PTE_MARKER_GUARD,
            }
            addr += PAGE_SIZE as u64;
        }
        raw_spin_unlock(cpu, &ptl);
        if !empty {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `madvise_guard_install()`: accesses to `[start, end)` end in SIGSEGV, without a VMA of its own. Under `mmap_lock` for
/// read, or `vma`'s read lock if it has an anon_vma.
///
/// # Errors
/// `EINVAL` (special or locked), `ENOMEM`; `EINTR`: faults were faster, the system call is to begin again.
fn madvise_guard_install<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    if !is_valid_guard_vma::<K>(vma, false) {
        return Err(Errno::EINVAL);
    }
    if k.rules.maybe_guard_flag {
        // ORDER: relaxed: who must know it (merges, fork) takes the lock for write first.
        vma.vm_flags().fetch_or(VM_MAYBE_GUARD, Relaxed);
    }
    // Markers are content: a fork must copy the tables.
    if vma.anon_vma().load(Relaxed).is_null() && vma_is_anonymous::<K>(vma) {
        __anon_vma_prepare(cpu, k, mm, vma)?;
    }
    for _ in 0..MAX_MADVISE_GUARD_RETRIES {
        if guard_install_range(cpu, k, mm, start, end)? {
            return Ok(());
        }
        // Markers stay; pages go.
        zap_page_range_single(cpu, k, mm, vma, start, end - start);
    }
    Err(Errno::EINTR)
}

/// `madvise_guard_remove()`
///
/// # Errors
/// `EINVAL` (special)
fn madvise_guard_remove<K: Kconfig>(
    cpu: &Cpu<K::A>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    // Locked memory may have been guarded before it was locked.
    if !is_valid_guard_vma::<K>(vma, true) {
        return Err(Errno::EINVAL);
    }
    walk_page_range::<K>(mm, start, end, |table, from, to| {
        let ptl = pte_lock(cpu, table);
        for addr in (from..to).step_by(PAGE_SIZE) {
            let pte = table.entry(0, addr);
            if pte.load(Relaxed) == PTE_MARKER_GUARD {
                pte.store(0, Relaxed);
            }
        }
        raw_spin_unlock(cpu, &ptl);
    });
    Ok(())
}

/// `madvise_vma_behavior()`: one advice on `[start, end)` of `vma`.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
fn madvise_vma_behavior<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    prev: Option<VmaPtr<K>>,
    start: u64,
    end: u64,
    behavior: i32,
) -> Result<Visited<K>, Errno> {
    if !can_modify_vma_madv::<K>(vma, behavior) {
        return Err(Errno::EPERM);
    }
    let flags = vma.vm_flags().load(Relaxed);
    let new_flags = match behavior {
        MADV_REMOVE => return madvise_remove(cpu, k, mm, vma, start, end).map(|()| Visited::LockDropped),
        MADV_WILLNEED => return Ok(madvise_willneed(cpu, k, mm, vma, start, end)),
        MADV_COLD | MADV_PAGEOUT => return madvise_cold::<K>(cpu, mm, vma, start, end).map(|()| Visited::Vma(vma)),
        MADV_FREE | MADV_DONTNEED | MADV_DONTNEED_LOCKED => {
            return madvise_dontneed_free(cpu, k, mm, vma, start, end, behavior).map(|()| Visited::Vma(vma));
        }
        MADV_COLLAPSE => return madvise_collapse::<K>(vma, start, end).map(|()| Visited::Vma(vma)),
        MADV_GUARD_INSTALL => {
            return madvise_guard_install(cpu, k, mm, vma, start, end).map(|()| Visited::Vma(vma));
        }
        MADV_GUARD_REMOVE => return madvise_guard_remove::<K>(cpu, mm, vma, start, end).map(|()| Visited::Vma(vma)),
        MADV_SEQUENTIAL => flags & !VM_RAND_READ | VM_SEQ_READ,
        MADV_RANDOM => flags & !VM_SEQ_READ | VM_RAND_READ,
        MADV_DONTFORK => flags | VM_DONTCOPY,
        MADV_DOFORK if flags & VM_IO != 0 => return Err(Errno::EINVAL),
        MADV_DOFORK => flags & !VM_DONTCOPY,
        MADV_WIPEONFORK if vma.vm_file().load(Relaxed) != 0 || flags & VM_SHARED != 0 => return Err(Errno::EINVAL),
        MADV_WIPEONFORK => flags | VM_WIPEONFORK,
        MADV_KEEPONFORK if flags & VM_DROPPABLE != 0 => return Err(Errno::EINVAL),
        MADV_KEEPONFORK => flags & !VM_WIPEONFORK,
        MADV_DONTDUMP => flags | VM_DONTDUMP,
        MADV_DODUMP if flags & (VM_SPECIAL | VM_DROPPABLE) != 0 => return Err(Errno::EINVAL),
        MADV_DODUMP => flags & !VM_DONTDUMP,
        // ksm_madvise(), vma_ksm_compatible()
        MADV_MERGEABLE if flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_DROPPABLE) != 0 => flags,
        MADV_MERGEABLE => flags | VM_MERGEABLE,
        MADV_UNMERGEABLE => flags & !VM_MERGEABLE,
        // hugepage_madvise()
        MADV_HUGEPAGE => flags & !VM_NOHUGEPAGE | VM_HUGEPAGE,
        MADV_NOHUGEPAGE => flags & !VM_HUGEPAGE | VM_NOHUGEPAGE,
        // MADV_NORMAL
        _ => flags & !(VM_RAND_READ | VM_SEQ_READ),
    };
    let name = vma.anon_name().load(Relaxed);
    match madvise_update_vma(cpu, k, mm, vma, prev, start, end, new_flags, name) {
        Ok(vma) => Ok(Visited::Vma(vma)),
        Err(e) => Err(try_again(e)),
    }
}

/// Too many VMAs or no memory is only for now.
fn try_again(e: Errno) -> Errno {
    if e == Errno::ENOMEM { Errno::EAGAIN } else { e }
}

/// `madvise_walk_vmas()`: `visit(vma, prev, from, to)` on each VMA of `[start, end)`. Under `mmap_lock`.
///
/// # Errors
/// The first of a visit, which ends the walk; `ENOMEM` at the end where a part is not mapped.
fn madvise_walk_vmas<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mut start: u64,
    end: u64,
    mut visit: impl FnMut(VmaPtr<K>, Option<VmaPtr<K>>, u64, u64) -> Result<Visited<K>, Errno>,
) -> Result<(), Errno> {
    let mut unmapped = Ok(());
    let (mut vma, mut prev) = find_vma_prev(cpu, k, mm, start);
    if vma.is_some_and(|v| start > start_of::<K>(v)) {
        prev = vma;
    }
    loop {
        let Some(v) = vma else { return Err(Errno::ENOMEM) };
        if start < start_of::<K>(v) {
            unmapped = Err(Errno::ENOMEM);
            start = start_of::<K>(v);
            if start >= end {
                break;
            }
        }
        let stop = end_of::<K>(v).min(end);
        prev = match visit(v, prev, start, stop)? {
            Visited::Vma(v) => Some(v),
            Visited::LockDropped => None,
        };
        start = prev.map_or(stop, |p| stop.max(end_of::<K>(p)));
        if start >= end {
            break;
        }
        vma = find_vma(cpu, k, mm, start);
    }
    unmapped
}

/// `try_vma_read_lock()`: the VMA of `start`, read-locked, if it holds all of `[start, end)` and its lock is enough.
fn try_vma_read_lock<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    end: u64,
    behavior: i32,
) -> Option<VmaPtr<K>> {
    // PORT: not counted as a fault's abort, so that faults balance.
    let vma = __lock_vma_under_rcu(cpu, k, mm, start).ok()?;
    // is_vma_lock_sufficient(): the neighbours' anon_vmas must stand still for the first one of a VMA.
    let prepares =
        behavior == MADV_GUARD_INSTALL && vma_is_anonymous::<K>(vma) && vma.anon_vma().load(Relaxed).is_null();
    if end > end_of::<K>(vma) || prepares {
        vma_end_read::<K>(cpu, vma);
        return None;
    }
    Some(vma)
}

/// `do_madvise()`
///
/// # Errors
/// As [`sys_madvise`].
pub fn do_madvise<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len_in: u64,
    behavior: i32,
) -> Result<(), Errno> {
    if !madvise_behavior_valid(&k.rules, behavior) || start & MASK != 0 {
        return Err(Errno::EINVAL);
    }
    let len = len_in.wrapping_add(MASK) & !MASK;
    let end = start.wrapping_add(len);
    if len_in != 0 && len == 0 || end < start {
        return Err(Errno::EINVAL);
    }
    if end == start {
        return Ok(());
    }
    if matches!(behavior, MADV_HWPOISON | MADV_SOFT_OFFLINE) {
        return Err(Errno::EPERM);
    }
    loop {
        let r = madvise_locked(cpu, k, mm, start, end, behavior);
        // restart_syscall()
        if r != Err(Errno::EINTR) {
            return r;
        }
    }
}

/// `madvise_lock()`, `madvise_do_behavior()`, `madvise_unlock()`
fn madvise_locked<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    end: u64,
    behavior: i32,
) -> Result<(), Errno> {
    let visit = |vma, prev, from, to| madvise_vma_behavior(cpu, k, mm, vma, prev, from, to, behavior);
    let mode = get_lock_mode(&k.rules, behavior);
    match mode {
        LockMode::VmaRead => {
            if let Some(vma) = try_vma_read_lock(cpu, k, mm, start, end, behavior) {
                let r = visit(vma, None, start, end).map(drop);
                vma_end_read::<K>(cpu, vma);
                return r;
            }
            mmap_read_lock(cpu, &*mm);
        }
        LockMode::MmapRead => mmap_read_lock(cpu, &*mm),
        LockMode::MmapWrite => mmap_write_lock(cpu, &*mm),
    }
    let r = match behavior {
        MADV_POPULATE_READ | MADV_POPULATE_WRITE => madvise_populate(cpu, k, mm, start, end, behavior),
        _ => madvise_walk_vmas(cpu, k, mm, start, end, visit),
    };
    if mode == LockMode::MmapWrite {
        mmap_write_unlock(cpu, &*mm);
    } else {
        mmap_read_unlock(cpu, &*mm);
    }
    r
}

/// madvise(2): `advice` of `MADV_*`.
///
/// # Errors
/// `EINVAL` (unaligned, overflow, unknown, not for this mapping), `ENOMEM` where a part is not mapped (the rest is done),
/// `EAGAIN` (memory, or too many VMAs, for a split), `EPERM` (sealed and not writable), `EACCES`, `EFAULT`.
pub fn sys_madvise<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    advice: i32,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    do_madvise(cpu, k, mm, start, len, advice)
}

/// madvise(2) with `MADV_DONTNEED`: the pages go, the VMAs stay, faulted ones stay faulted.
///
/// # Errors
/// As [`sys_madvise`].
pub fn madvise_dontneed<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    sys_madvise(cpu, k, mm, addr, len, MADV_DONTNEED)
}

/// `madvise_set_anon_name()`, with `mmap_lock` around it as prctl(2) with `PR_SET_VMA_ANON_NAME` has: names anonymous
/// memory; `name` is the name's number, 0 takes the name away.
///
/// # Errors
/// `EINVAL` (unaligned, overflow), `EBADF` (a file), `ENOMEM` where a part is not mapped, `EAGAIN`.
pub fn madvise_set_anon_name<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len_in: u64,
    name: u64,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    let len = len_in.wrapping_add(MASK) & !MASK;
    let end = start.wrapping_add(len);
    let r = if start & MASK != 0 || len_in != 0 && len == 0 || end < start {
        Err(Errno::EINVAL)
    } else if end == start {
        Ok(())
    } else {
        madvise_walk_vmas(cpu, k, mm, start, end, |vma, prev, from, to| {
            // madvise_vma_anon_name()
            if vma.vm_file().load(Relaxed) != 0 && !vma_is_anon_shmem::<K>(vma) {
                return Err(Errno::EBADF);
            }
            let flags = vma.vm_flags().load(Relaxed);
            madvise_update_vma(cpu, k, mm, vma, prev, from, to, flags, name).map(Visited::Vma).map_err(try_again)
        })
    };
    mmap_write_unlock(cpu, &*mm);
    r
}
