// SPDX-License-Identifier: GPL-2.0-only
//! mseal(2): mappings that may neither move nor change any more [mm/mseal.c, 6.12].
//!
//! dup: the first pass that looks for holes before anything changes, the second that seals VMA by VMA, which advice a
//! seal forbids. A split that fails in the second pass leaves what is sealed already. stub: protection keys.
//!
//! The flag changes under the VMA's write lock, as everywhere.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::madvise::{
    MADV_DONTFORK, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_GUARD_INSTALL, MADV_REMOVE, MADV_WIPEONFORK,
};
use super::mm_types::{VM_SEALED, VM_SHARED, VM_WRITE, VmaFields};
use super::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use super::mprotect::vm_flags_reset;
use super::vma::{can_modify_vma, end_of, start_of, vma_find, vma_iter_load, vma_modify_flags, vma_prev};
use crate::arch::arena::PAGE_SIZE;
use crate::arch::{Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::MaState;

const MASK: u64 = PAGE_SIZE as u64 - 1;

/// `can_modify_vma_madv()`: a seal forbids the advice that loses bytes, of anonymous memory that could not be written
/// anyway.
pub(super) fn can_modify_vma_madv<K: Kconfig>(vma: VmaPtr<K>, behavior: i32) -> bool {
    // is_madv_discard()
    let discard = matches!(
        behavior,
        MADV_FREE
            | MADV_DONTNEED
            | MADV_DONTNEED_LOCKED
            | MADV_REMOVE
            | MADV_DONTFORK
            | MADV_WIPEONFORK
            | MADV_GUARD_INSTALL
    );
    if !discard || can_modify_vma::<K>(vma) {
        return true;
    }
    // is_ro_anon()
    vma.vm_file().load(Relaxed) != 0 || vma.vm_flags().load(Relaxed) & (VM_SHARED | VM_WRITE) != 0
}

/// `check_mm_seal()`: no part of `[start, end)` is unmapped.
fn check_mm_seal<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, start: u64, end: u64) -> Result<(), Errno> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    let mut nstart = start;
    while let Some(vma) = vma_find::<K>(cpu, &mut mas, end) {
        if start_of::<K>(vma) > nstart {
            break;
        }
        if end_of::<K>(vma) >= end {
            return Ok(());
        }
        nstart = end_of::<K>(vma);
    }
    Err(Errno::ENOMEM)
}

/// `apply_mm_seal()`
///
/// # Errors
/// `ENOMEM`; what was sealed before stays so.
fn apply_mm_seal<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, start: u64, end: u64) -> Result<(), Errno> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    let first = vma_iter_load::<K>(cpu, &mut mas);
    let mut prev = vma_prev::<K>(cpu, &mut mas);
    if first.is_some_and(|f| start > start_of::<K>(f)) {
        prev = first;
    }
    let mut nstart = start;
    while let Some(vma) = vma_find::<K>(cpu, &mut mas, end) {
        let stop = end_of::<K>(vma).min(end);
        // mseal_fixup()
        let oldflags = vma.vm_flags().load(Relaxed);
        prev = if oldflags & VM_SEALED == 0 {
            let newflags = oldflags | VM_SEALED;
            let vma = vma_modify_flags(cpu, k, mm, &mut mas, prev, vma, nstart, stop, newflags)?;
            vm_flags_reset(cpu, k, vma, newflags);
            Some(vma)
        } else {
            Some(vma)
        };
        nstart = mas.last + 1;
    }
    Ok(())
}

/// mseal(2). Takes `mmap_lock` for write.
///
/// # Errors
/// `EINVAL` (flags, unaligned, overflow), `ENOMEM` (a hole: nothing is sealed; a split: what came before is).
pub fn sys_mseal<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len_in: u64,
    flags: u64,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    if flags != 0 || start & MASK != 0 {
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
    mmap_write_lock(cpu, &*mm);
    let r = check_mm_seal(cpu, k, mm, start, end).and_then(|()| apply_mm_seal(cpu, k, mm, start, end));
    mmap_write_unlock(cpu, &*mm);
    r
}
