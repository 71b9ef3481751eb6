// SPDX-License-Identifier: GPL-2.0-only
//! mprotect(2): other access rights for a range [mm/mprotect.c, 6.12].
//!
//! dup: the order of checks, the walk that leaves earlier VMAs changed when a later one fails, what becomes accounted and
//! what stops being so, splits and merges, the write lock of the VMA before its flags change, entries rewritten under
//! the lock of their table, which entries become writable again without a fault, populating locked memory that
//! becomes writable.
//! custom: an entry of a mapping without any right stays present and loses its user bit; x86 has another present bit for
//! it. stub: protection keys, security modules, NUMA hints, userfaultfd, TLB
//! flushes.
//!
//! Lock order: `mmap_lock` for write, the VMA's lock, the lock of one PTE table.

use super::filemap::vma_wants_writenotify;
use super::folio::page_anon_exclusive;
use super::gup::populate_vma_page_range;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{
    VM_ACCESS_FLAGS, VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_MAYEXEC, VM_NORESERVE, VM_READ, VM_SHARED,
    VM_WRITE, VmaFields,
};
use super::mmap::{PROT_EXEC, PROT_READ, PROT_WRITE};
use super::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use super::pagewalk::walk_page_range;
use super::pgtable::{PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER, PTE_PFN_MASK, pte_lock};
use super::prctl::{map_deny_write_exec, read_implies_exec};
use super::util::{vm_enough_memory, vm_unacct_memory};
use super::vma::{
    can_modify_vma, end_of, may_expand_vm, start_of, vm_stat_account, vma_find, vma_is_anonymous, vma_modified_flags,
    vma_modify_flags, vma_prev,
};
use super::vma_lock::VmaLock;
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Full, Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::MaState;
use crate::sync::raw_spin_unlock;

/// `PROT_SEM`: allowed, without meaning on x86.
pub const PROT_SEM: u32 = 0x8;
/// `PROT_GROWSDOWN`: from the start of the stack that holds the range.
pub const PROT_GROWSDOWN: u32 = 0x100_0000;
/// `PROT_GROWSUP`: to the end of a stack that grows up.
pub const PROT_GROWSUP: u32 = 0x200_0000;

/// Entries that writing may be given back to without a fault (`MM_CP_TRY_CHANGE_WRITABLE`).
pub const MM_CP_TRY_CHANGE_WRITABLE: u32 = 0x1;

const MASK: u64 = PAGE_SIZE as u64 - 1;

/// `vm_flags_reset()` after `vma_modify_flags()`: the new flags, and what is sticky of those that the VMA has by now.
/// Returns what was set.
///
/// Write-locks the VMA first, so that no fault goes on by the old flags.
pub(super) fn vm_flags_reset<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>, flags: u64) -> u64 {
    K::Lock::vma_start_write(cpu, vma);
    let flags = vma_modified_flags::<K>(k, vma, flags);
    // ORDER: relaxed: readers of the VMA are out until the section ends (E2).
    vma.vm_flags().store(flags, Relaxed);
    flags
}

/// `vm_get_page_prot()` and `vma_set_page_prot()`: the rights of new entries.
fn vma_set_page_prot<K: Kconfig>(vma: VmaPtr<K>) {
    vma.vm_page_prot().store(vma.vm_flags().load(Relaxed) & VM_ACCESS_FLAGS, Relaxed);
}

/// The bits of an entry of `vma` that nothing is known about: never those for writing in private memory, where a write
/// may have to copy.
fn pte_prot<K: Kconfig>(vma: VmaPtr<K>) -> u64 {
    let flags = vma.vm_flags().load(Relaxed);
    let mut prot = PAGE_PRESENT;
    if flags & VM_ACCESS_FLAGS != 0 {
        prot |= PAGE_USER;
    }
    if flags & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE && !vma_wants_writenotify::<K>(vma) {
        prot |= PAGE_RW;
    }
    prot
}

/// `vma_wants_manual_pte_write_upgrade()`: new entries are mapped without the right to write although the VMA has it.
fn vma_wants_manual_pte_write_upgrade<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    let flags = vma.vm_flags().load(Relaxed);
    if flags & VM_SHARED != 0 { vma_wants_writenotify::<K>(vma) } else { flags & VM_WRITE != 0 }
}

/// `can_change_pte_writable()`: a write fault would do nothing but set the bit.
fn can_change_pte_writable<K: Kconfig>(k: &Kernel<K>, vma: VmaPtr<K>, pte: u64) -> bool {
    if vma.vm_flags().load(Relaxed) & VM_SHARED != 0 {
        // A clean page may have to tell its file first.
        return pte & PAGE_DIRTY != 0;
    }
    let page = (pte & PTE_PFN_MASK) as *mut u8;
    page != k.zero_page.as_ptr() && page_anon_exclusive::<K::A>(page)
}

/// `change_protection()`: gives the entries of `[start, end)` the rights of `vm_page_prot`. Returns how many it looked
/// at. Under `mmap_lock` for write, with `vma` write-locked.
pub fn change_protection<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    cp_flags: u32,
) -> u64 {
    let newprot = pte_prot::<K>(vma);
    let mut pages = 0;
    walk_page_range::<K>(mm, start, end, |table, from, to| {
        // change_pte_range()
        let ptl = pte_lock(cpu, table);
        for addr in (from..to).step_by(PAGE_SIZE) {
            let pte = table.entry(0, addr);
            // Markers have no rights: they stay as they are.
            if pte.load(Relaxed) & PAGE_PRESENT == 0 {
                continue;
            }
            // ptep_modify_prot_start()
            // ORDER: full, as the kernel's xchg(): the processor sets bits in the entry until it is gone. Here nobody
            // does; the price is the kernel's.
            let old = pte.swap(0, Full);
            let mut new = old & (PTE_PFN_MASK | PAGE_DIRTY) | newprot;
            if cp_flags & MM_CP_TRY_CHANGE_WRITABLE != 0
                && new & PAGE_RW == 0
                && can_change_pte_writable::<K>(k, vma, new)
            {
                new |= PAGE_RW;
            }
            pte.store(new, Relaxed);
            pages += 1;
        }
        raw_spin_unlock(cpu, &ptl);
    });
    pages
}

/// `mprotect_fixup()`: `[start, end)` of `vma` gets `newflags`. `pprev` is the VMA before it, then the one changed.
///
/// # Errors
/// `EPERM` (sealed), `ENOMEM`
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
pub fn mprotect_fixup<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    pprev: &mut Option<VmaPtr<K>>,
    start: u64,
    end: u64,
    mut newflags: u64,
) -> Result<(), Errno> {
    let oldflags = vma.vm_flags().load(Relaxed);
    let nrpages = (end - start) >> PAGE_SHIFT;
    if !can_modify_vma::<K>(vma) {
        return Err(Errno::EPERM);
    }
    if newflags == oldflags {
        *pprev = Some(vma);
        return Ok(());
    }
    // Private memory that becomes writable raises the commit. Made read-only again it stays charged, unless it was
    // never written.
    let mut charged = 0;
    if newflags & VM_WRITE != 0 {
        if !may_expand_vm::<K>(mm, newflags, nrpages) && may_expand_vm::<K>(mm, oldflags, nrpages) {
            return Err(Errno::ENOMEM);
        }
        if oldflags & (VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE) == 0 {
            vm_enough_memory(cpu, k, mm, nrpages)?;
            charged = nrpages;
            newflags |= VM_ACCOUNT;
        }
    } else if oldflags & VM_ACCOUNT != 0 && vma_is_anonymous::<K>(vma) && vma.anon_vma().load(Relaxed).is_null() {
        newflags &= !VM_ACCOUNT;
    }
    let vma = match vma_modify_flags(cpu, k, mm, mas, *pprev, vma, start, end, newflags) {
        Ok(vma) => vma,
        Err(e) => {
            vm_unacct_memory(cpu, k, charged);
            return Err(e);
        }
    };
    *pprev = Some(vma);
    vm_flags_reset(cpu, k, vma, newflags);
    let cp_flags = if vma_wants_manual_pte_write_upgrade::<K>(vma) { MM_CP_TRY_CHANGE_WRITABLE } else { 0 };
    vma_set_page_prot::<K>(vma);
    change_protection(cpu, k, mm, vma, start, end, cp_flags);
    if oldflags & VM_ACCOUNT != 0 && newflags & VM_ACCOUNT == 0 {
        vm_unacct_memory(cpu, k, nrpages);
    }
    // Locked private memory that becomes writable is copied now, not at the first write. Errors change nothing.
    if oldflags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED && newflags & VM_WRITE != 0 {
        let _ = populate_vma_page_range(cpu, k, mm, vma, start, end, None);
    }
    vm_stat_account::<K>(mm, oldflags, -(nrpages as i64));
    vm_stat_account::<K>(mm, newflags, nrpages as i64);
    Ok(())
}

/// mprotect(2): `prot` of `PROT_*`. Takes `mmap_lock` for write.
///
/// # Errors `EINVAL` (unaligned, unknown bits, both directions), `ENOMEM` (a hole, the end of addresses, limits,
/// memory), `EACCES` (the mapping may never have the right, or by `PR_SET_MDWE` not now), `EPERM` (sealed). VMAs before
/// the one that fails stay changed.
pub fn sys_mprotect<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    prot: u32,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    do_mprotect_pkey(cpu, k, mm, start, len, prot)
}

/// `do_mprotect_pkey()` without a key.
fn do_mprotect_pkey<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    prot: u32,
) -> Result<(), Errno> {
    let grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
    let prot = prot & !(PROT_GROWSDOWN | PROT_GROWSUP);
    if grows == PROT_GROWSDOWN | PROT_GROWSUP || start & MASK != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(());
    }
    let end = start.wrapping_add(len.wrapping_add(MASK) & !MASK);
    if end <= start {
        return Err(Errno::ENOMEM);
    }
    // arch_validate_prot()
    if prot & !(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM) != 0 {
        return Err(Errno::EINVAL);
    }
    mmap_write_lock(cpu, &*mm);
    let r = mprotect_range(cpu, k, mm, start, end, u64::from(prot) & VM_ACCESS_FLAGS, grows);
    mmap_write_unlock(cpu, &*mm);
    r
}

/// The part of `do_mprotect_pkey()` under `mmap_lock`.
fn mprotect_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mut start: u64,
    end: u64,
    prot: u64,
    grows: u32,
) -> Result<(), Errno> {
    let rier = prot & VM_READ != 0 && read_implies_exec::<K>(mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    let first = vma_find::<K>(cpu, &mut mas, end).ok_or(Errno::ENOMEM)?;
    if grows & PROT_GROWSDOWN != 0 {
        start = start_of::<K>(first);
        if first.vm_flags().load(Relaxed) & VM_GROWSDOWN == 0 {
            return Err(Errno::EINVAL);
        }
    } else if start_of::<K>(first) > start {
        return Err(Errno::ENOMEM);
    } else if grows & PROT_GROWSUP != 0 {
        // No stack grows up on x86.
        return Err(Errno::EINVAL);
    }
    let mut prev = vma_prev::<K>(cpu, &mut mas);
    if start > start_of::<K>(first) {
        prev = Some(first);
    }
    let (mut nstart, mut tmp) = (start, start_of::<K>(first));
    while let Some(vma) = vma_find::<K>(cpu, &mut mas, end) {
        if start_of::<K>(vma) != tmp {
            return Err(Errno::ENOMEM);
        }
        let oldflags = vma.vm_flags().load(Relaxed);
        let implied = if rier && oldflags & VM_MAYEXEC != 0 { VM_EXEC } else { 0 };
        let newflags = oldflags & !VM_ACCESS_FLAGS | prot | implied;
        // VM_MAY* are four bits above the rights that they allow.
        if newflags & !(newflags >> 4) & VM_ACCESS_FLAGS != 0 {
            return Err(Errno::EACCES);
        }
        if map_deny_write_exec::<K>(mm, oldflags, newflags) {
            return Err(Errno::EACCES);
        }
        let stop = end_of::<K>(vma).min(end);
        mprotect_fixup(cpu, k, mm, &mut mas, vma, &mut prev, nstart, stop, newflags)?;
        // vma_iter_end(): a merge may have taken the cursor further.
        tmp = mas.last + 1;
        nstart = tmp;
    }
    if tmp < end { Err(Errno::ENOMEM) } else { Ok(()) }
}
