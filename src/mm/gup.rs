// SPDX-License-Identifier: GPL-2.0-only
//! Faulting pages in on a thread's behalf: mlock, `MAP_POPULATE`, `MADV_POPULATE_*` [mm/gup.c, 6.12].
//!
//! dup: which kind of fault each kind of mapping gets, what ends a populate with which error, a fault that gives
//! `mmap_lock` up and the populate that goes on behind it. custom: there are no pages to hand out, so a page counts as
//! there once its entry allows what was asked. stub: pins, remote address spaces, signals, huge pages.

use super::folio::page_folio;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::memory::{
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_TRIED, FAULT_FLAG_WRITE, VM_FAULT_COMPLETED, VM_FAULT_ERROR, VM_FAULT_OOM,
    VM_FAULT_RETRY, handle_mm_fault, is_cow_mapping,
};
use super::mm_types::{
    VM_ACCESS_FLAGS, VM_IO, VM_LOCKONFAULT, VM_MAYREAD, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, VmaFields,
};
use super::mmap_lock::{mmap_read_lock, mmap_read_unlock};
use super::pgtable::{PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER, PTE_PFN_MASK, pte_lookup};
use super::vma::{end_of, find_vma, start_of, vma_lookup};
use crate::arch::Relaxed;
use crate::arch::arena::PAGE_SHIFT;
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;

/// The pages will be written.
const FOLL_WRITE: u32 = 1;
/// Whatever the rights of the mapping, if it could get them.
const FOLL_FORCE: u32 = 1 << 3;
/// `mmap_lock` may be dropped.
const FOLL_UNLOCKABLE: u32 = 1 << 21;
/// `madvise(MADV_POPULATE_*)`: errors of its own.
const FOLL_MADV_POPULATE: u32 = 1 << 22;

/// `check_vma_flags()`
fn check_vma_flags<K: Kconfig>(vma: VmaPtr<K>, gup_flags: u32) -> Result<(), Errno> {
    let vm_flags = vma.vm_flags().load(Relaxed);
    let refused = if vm_flags & (VM_IO | VM_PFNMAP) != 0 {
        true
    } else if gup_flags & FOLL_WRITE != 0 {
        vm_flags & VM_WRITE == 0 && (gup_flags & FOLL_FORCE == 0 || !is_cow_mapping(vm_flags))
    } else {
        vm_flags & VM_READ == 0 && (gup_flags & FOLL_FORCE == 0 || vm_flags & VM_MAYREAD == 0)
    };
    if refused { Err(Errno::EFAULT) } else { Ok(()) }
}

/// `follow_page_mask()`: whether the page is there as asked. Who asks wants to write to it soon (`FOLL_TOUCH`, which all
/// callers here give): the page counts as dirty then, whatever its entry says.
fn follow_page<K: Kconfig>(mm: MmPtr<K>, addr: u64, gup_flags: u32) -> bool {
    let write = gup_flags & FOLL_WRITE != 0;
    let wanted = PAGE_PRESENT | PAGE_USER | if write { PAGE_RW } else { 0 };
    let pte = pte_lookup::<K>(mm, addr);
    if pte & wanted != wanted {
        return false;
    }
    if write && pte & PAGE_DIRTY == 0 {
        page_folio::<K::A>((pte & PTE_PFN_MASK) as *mut u8).mark_dirty();
    }
    true
}

/// How a fault on somebody's behalf ended.
enum Faultin {
    /// Look again.
    Done,
    /// The lock is dropped.
    Unlocked,
}

/// `faultin_page()`
fn faultin_page<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    addr: u64,
    gup_flags: u32,
    tried: bool,
) -> Result<Faultin, Errno> {
    let mut flags = if gup_flags & FOLL_WRITE != 0 { FAULT_FLAG_WRITE } else { 0 };
    if gup_flags & FOLL_UNLOCKABLE != 0 {
        flags |= FAULT_FLAG_ALLOW_RETRY;
    }
    if tried {
        flags |= FAULT_FLAG_TRIED;
    }
    let ret = handle_mm_fault(cpu, k, mm, vma, addr, flags);
    if ret & (VM_FAULT_COMPLETED | VM_FAULT_RETRY) != 0 {
        return Ok(Faultin::Unlocked);
    }
    // vm_fault_to_errno()
    if ret & VM_FAULT_OOM != 0 {
        Err(Errno::ENOMEM)
    } else if ret & VM_FAULT_ERROR != 0 {
        Err(Errno::EFAULT)
    } else {
        Ok(Faultin::Done)
    }
}

/// `__get_user_pages()`: how many of `nr_pages` from `start` on are there now, at least one unless an error is
/// returned; 0 only where the lock was dropped before the first. `locked` says whether `mmap_lock` is still held.
///
/// # Errors
/// `EFAULT`, `ENOMEM`; with `FOLL_MADV_POPULATE` `ENOMEM` for a hole and `EINVAL` for a mapping without the right.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
fn __get_user_pages<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    nr_pages: u64,
    gup_flags: u32,
    tried: bool,
    locked: &mut bool,
) -> Result<u64, Errno> {
    let mut vma: Option<VmaPtr<K>> = None;
    let mut done = 0;
    let fail = |done: u64, e: Errno| if done != 0 { Ok(done) } else { Err(e) };
    while done < nr_pages {
        let addr = start + (done << PAGE_SHIFT);
        let v = match vma.filter(|v| addr < end_of::<K>(*v)) {
            Some(v) => v,
            None => {
                let populate = gup_flags & FOLL_MADV_POPULATE != 0;
                let Some(v) = vma_lookup(cpu, k, mm, addr) else {
                    return fail(done, if populate { Errno::ENOMEM } else { Errno::EFAULT });
                };
                if let Err(e) = check_vma_flags::<K>(v, gup_flags) {
                    return fail(done, if populate { Errno::EINVAL } else { e });
                }
                vma = Some(v);
                v
            }
        };
        while !follow_page::<K>(mm, addr, gup_flags) {
            match faultin_page(cpu, k, mm, v, addr, gup_flags, tried && done == 0) {
                Ok(Faultin::Done) => {}
                Ok(Faultin::Unlocked) => {
                    *locked = false;
                    return Ok(done);
                }
                Err(e) => return fail(done, e),
            }
        }
        done += 1;
    }
    Ok(done)
}

/// `populate_vma_page_range()`: pages of `[start, end)` of `vma` that are there now. Under `mmap_lock` for read, or for
/// write where `locked` is `None`: then it stays held.
///
/// # Errors
/// `EFAULT` (no right at all, behind the end of the file), `ENOMEM`.
pub fn populate_vma_page_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    locked: Option<&mut bool>,
) -> Result<u64, Errno> {
    debug_assert!(start >= start_of::<K>(vma) && end <= end_of::<K>(vma));
    let nr_pages = (end - start) >> PAGE_SHIFT;
    let vm_flags = vma.vm_flags().load(Relaxed);
    if vm_flags & VM_LOCKONFAULT != 0 {
        return Ok(nr_pages);
    }
    if vm_flags & VM_ACCESS_FLAGS == 0 {
        return Err(Errno::EFAULT);
    }
    // A private mapping that may be written gets its own pages; a shared one must not become dirty for nothing.
    let mut gup_flags = if vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE { FOLL_WRITE } else { FOLL_FORCE };
    let mut local = true;
    let locked = match locked {
        Some(l) => {
            gup_flags |= FOLL_UNLOCKABLE;
            l
        }
        None => &mut local,
    };
    __get_user_pages(cpu, k, mm, start, nr_pages, gup_flags, false, locked)
}

/// `__mm_populate()`: faults in `[start, start + len)`, whatever of it is mapped. Takes and drops `mmap_lock`.
///
/// # Errors
/// `EFAULT`, `ENOMEM`; none with `ignore_errors`.
pub fn __mm_populate<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    ignore_errors: bool,
) -> Result<(), Errno> {
    let end = start + len;
    let mut nstart = start;
    let mut locked = false;
    let mut vma: Option<VmaPtr<K>> = None;
    let mut result = Ok(());
    while nstart < end {
        // find_vma_intersection()
        if !locked {
            locked = true;
            mmap_read_lock(cpu, &*mm);
            vma = find_vma(cpu, k, mm, nstart);
        } else if let Some(v) = vma.filter(|v| nstart >= end_of::<K>(*v)) {
            vma = find_vma(cpu, k, mm, end_of::<K>(v));
        }
        let Some(v) = vma.filter(|v| start_of::<K>(*v) < end) else { break };
        let nend = end.min(end_of::<K>(v));
        if v.vm_flags().load(Relaxed) & (VM_IO | VM_PFNMAP) != 0 {
            nstart = nend;
            continue;
        }
        nstart = nstart.max(start_of::<K>(v));
        match populate_vma_page_range(cpu, k, mm, v, nstart, nend, Some(&mut locked)) {
            Ok(pages) => nstart += pages << PAGE_SHIFT,
            Err(_) if ignore_errors => nstart = nend,
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    if locked {
        mmap_read_unlock(cpu, &*mm);
    }
    result
}

/// `mm_populate()`: [`__mm_populate`] of a new or locked mapping; nobody hears of errors.
pub fn mm_populate<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, start: u64, len: u64) {
    let _ = __mm_populate(cpu, k, mm, start, len, true);
}

/// `faultin_page_range()`, with `__get_user_pages_locked()`: pages of `[start, end)` that are there now, readable or
/// (`write`) writable, for `MADV_POPULATE_READ` and `_WRITE`. Under `mmap_lock` for read; where a fault dropped it, it is
/// not held at the end either, and `locked` becomes false.
///
/// # Errors
/// `EINVAL` (a mapping without the right), `ENOMEM` (a hole, no memory), `EFAULT` (behind the end of a file, a guard
/// region).
pub fn faultin_page_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    end: u64,
    write: bool,
    locked: &mut bool,
) -> Result<u64, Errno> {
    let gup_flags = FOLL_UNLOCKABLE | FOLL_MADV_POPULATE | if write { FOLL_WRITE } else { 0 };
    let nr_pages = (end - start) >> PAGE_SHIFT;
    let mut done = 0;
    let mut must_unlock = false;
    let result = 'all: loop {
        let at = start + (done << PAGE_SHIFT);
        match __get_user_pages(cpu, k, mm, at, nr_pages - done, gup_flags, false, locked) {
            Ok(n) => done += n,
            Err(e) => break Err(e),
        }
        if *locked || done == nr_pages {
            break Ok(());
        }
        // The fault gave the lock up: once more for this page, until it does not do so again.
        must_unlock = true;
        let at = start + (done << PAGE_SHIFT);
        loop {
            mmap_read_lock(cpu, &*mm);
            *locked = true;
            match __get_user_pages(cpu, k, mm, at, 1, gup_flags, true, locked) {
                Ok(_) if !*locked => {}
                Ok(n) => break done += n,
                Err(e) => break 'all Err(e),
            }
        }
        if done == nr_pages {
            break Ok(());
        }
    };
    if must_unlock && *locked {
        mmap_read_unlock(cpu, &*mm);
        *locked = false;
    }
    if done != 0 { Ok(done) } else { result.map(|()| done) }
}
