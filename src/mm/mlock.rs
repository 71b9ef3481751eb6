// SPDX-License-Identifier: GPL-2.0-only
//! mlock(2) and kin: memory that stays resident [mm/mlock.c, 6.12].
//!
//! dup: rights and limits, which mappings are silently left out, holes, splits and merges, the count of locked pages,
//! the flags of future mappings, populating afterwards with the lock dropped, and how its errors are reported.
//! custom: a page has no count of locks and no list it could leave, so the walk over the entries of a range looks at
//! them under their table's lock and changes nothing. stub: huge, secret and gate mappings; locked shared memory segments.
//!
//! Lock order: `mmap_lock` for write, the VMA's lock, the lock of one PTE table; populating begins again with
//! `mmap_lock` for read.

use super::gup::{__mm_populate, mm_populate};
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{
    CAP_IPC_LOCK, RLIMIT_MEMLOCK, TASK_SIZE, VM_DROPPABLE, VM_IO, VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT,
    VM_SPECIAL, VmaFields,
};
use super::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use super::mprotect::vm_flags_reset;
use super::pagewalk::walk_page_range;
use super::pgtable::pte_lock;
use super::vma::{end_of, start_of, vma_find, vma_iter_load, vma_modify_flags, vma_next, vma_prev};
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::MaState;
use crate::sync::raw_spin_unlock;

/// mlock2(2): pages are locked as they come in.
pub const MLOCK_ONFAULT: u32 = 1;
/// mlockall(2): what is mapped now.
pub const MCL_CURRENT: u32 = 1;
/// mlockall(2): what will be mapped.
pub const MCL_FUTURE: u32 = 2;
/// mlockall(2): pages are locked as they come in.
pub const MCL_ONFAULT: u32 = 4;

const MASK: u64 = PAGE_SIZE as u64 - 1;

/// `can_do_mlock()`
pub fn can_do_mlock<K: Kconfig>(mm: MmPtr<K>) -> bool {
    mm.rlimit(RLIMIT_MEMLOCK) != 0 || mm.capable(CAP_IPC_LOCK)
}

/// `mlock_vma_pages_range()`: the new flags, and a look at each page that is there. Under `mmap_lock` for write.
fn mlock_vma_pages_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    newflags: u64,
) {
    // Special while the pages are looked at, so that whoever finds one of them meanwhile does not count it too.
    let locking = if newflags & VM_LOCKED != 0 { VM_IO } else { 0 };
    let newflags = vm_flags_reset(cpu, k, vma, newflags | locking);
    walk_page_range::<K>(mm, start, end, |table, from, to| {
        // mlock_pte_range()
        let ptl = pte_lock(cpu, table);
        (from..to).step_by(PAGE_SIZE).for_each(|addr| {
            table.entry(0, addr).load(Relaxed);
        });
        raw_spin_unlock(cpu, &ptl);
    });
    if locking != 0 {
        vma.vm_flags().store(newflags & !VM_IO, Relaxed);
    }
}

/// `mlock_fixup()`: `[start, end)` of `vma` gets `newflags`. `prev` is the VMA before it, then the one changed.
///
/// # Errors
/// `ENOMEM`
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
fn mlock_fixup<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    prev: &mut Option<VmaPtr<K>>,
    start: u64,
    end: u64,
    newflags: u64,
) -> Result<(), Errno> {
    let oldflags = vma.vm_flags().load(Relaxed);
    // vma_supports_mlock(): others are never locked and never counted.
    if newflags == oldflags || oldflags & (VM_SPECIAL | VM_DROPPABLE) != 0 {
        *prev = Some(vma);
        return Ok(());
    }
    let r = vma_modify_flags(cpu, k, mm, mas, *prev, vma, start, end, newflags);
    let vma = match r {
        Ok(vma) => vma,
        Err(e) => {
            // PORT: the kernel leaves an error pointer here, which every caller replaces or drops.
            *prev = Some(vma);
            return Err(e);
        }
    };
    *prev = Some(vma);
    let nr_pages = (end - start) >> PAGE_SHIFT;
    match (oldflags & VM_LOCKED != 0, newflags & VM_LOCKED != 0) {
        (_, false) => mm.locked_vm.set(mm.locked_vm.get().wrapping_sub(nr_pages)),
        (false, true) => mm.locked_vm.set(mm.locked_vm.get() + nr_pages),
        (true, true) => {}
    }
    if oldflags & newflags & VM_LOCKED != 0 {
        vm_flags_reset(cpu, k, vma, newflags);
    } else {
        mlock_vma_pages_range(cpu, k, mm, vma, start, end, newflags);
    }
    Ok(())
}

/// `apply_vma_lock_flags()`: under `mmap_lock` for write.
///
/// # Errors
/// `EINVAL` (overflow), `ENOMEM` (a hole, a split): earlier VMAs stay changed.
fn apply_vma_lock_flags<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    flags: u64,
) -> Result<(), Errno> {
    let end = start.wrapping_add(len);
    if end < start {
        return Err(Errno::EINVAL);
    }
    if end == start {
        return Ok(());
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    let first = vma_iter_load::<K>(cpu, &mut mas).ok_or(Errno::ENOMEM)?;
    let mut prev = vma_prev::<K>(cpu, &mut mas);
    if start > start_of::<K>(first) {
        prev = Some(first);
    }
    let (mut nstart, mut tmp) = (start, start_of::<K>(first));
    while let Some(vma) = vma_find::<K>(cpu, &mut mas, end) {
        if start_of::<K>(vma) != tmp {
            return Err(Errno::ENOMEM);
        }
        let newflags = vma.vm_flags().load(Relaxed) & !VM_LOCKED_MASK | flags;
        let stop = end_of::<K>(vma).min(end);
        mlock_fixup(cpu, k, mm, &mut mas, vma, &mut prev, nstart, stop, newflags)?;
        tmp = mas.last + 1;
        nstart = tmp;
    }
    if tmp < end { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// `count_mm_mlocked_page_nr()`: pages of `[start, start + len)` that count as locked already.
fn count_mm_mlocked_page_nr<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, start: u64, len: u64) -> u64 {
    let end = start.saturating_add(len);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    let mut bytes = 0;
    while let Some(vma) = vma_find::<K>(cpu, &mut mas, end) {
        if vma.vm_flags().load(Relaxed) & VM_LOCKED != 0 {
            bytes += end_of::<K>(vma).min(end) - start_of::<K>(vma).max(start);
        }
        if end < end_of::<K>(vma) {
            break;
        }
    }
    bytes >> PAGE_SHIFT
}

/// `do_mlock()`
fn do_mlock<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    flags: u64,
) -> Result<(), Errno> {
    if !can_do_mlock::<K>(mm) {
        return Err(Errno::EPERM);
    }
    let len = len.wrapping_add(start & MASK).wrapping_add(MASK) & !MASK;
    let start = start & !MASK;
    let lock_limit = mm.rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
    let may = mm.capable(CAP_IPC_LOCK);
    mmap_write_lock(cpu, &*mm);
    let mut locked = (len >> PAGE_SHIFT) + mm.locked_vm.get();
    if locked > lock_limit && !may {
        locked -= count_mm_mlocked_page_nr(cpu, k, mm, start, len);
    }
    let r = if locked <= lock_limit || may {
        apply_vma_lock_flags(cpu, k, mm, start, len, flags)
    } else {
        Err(Errno::ENOMEM)
    };
    mmap_write_unlock(cpu, &*mm);
    r?;
    // __mlock_posix_error_return()
    __mm_populate(cpu, k, mm, start, len, false).map_err(|e| match e {
        Errno::EFAULT => Errno::ENOMEM,
        Errno::ENOMEM => Errno::EAGAIN,
        e => e,
    })
}

/// mlock2(2); mlock(2) with `flags` 0.
///
/// # Errors
/// `EINVAL` (flags, overflow), `EPERM` (a limit of 0), `ENOMEM` (the limit, a hole, a split, memory that cannot be
/// accessed), `EAGAIN` (no page). VMAs before the failure stay locked.
pub fn sys_mlock<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    flags: u32,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    if flags & !MLOCK_ONFAULT != 0 {
        return Err(Errno::EINVAL);
    }
    let on_fault = if flags & MLOCK_ONFAULT != 0 { VM_LOCKONFAULT } else { 0 };
    do_mlock(cpu, k, mm, start, len, VM_LOCKED | on_fault)
}

/// munlock(2)
///
/// # Errors
/// `EINVAL` (overflow), `ENOMEM` (a hole, a split).
pub fn sys_munlock<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    let len = len.wrapping_add(start & MASK).wrapping_add(MASK) & !MASK;
    mmap_write_lock(cpu, &*mm);
    let r = apply_vma_lock_flags(cpu, k, mm, start & !MASK, len, 0);
    mmap_write_unlock(cpu, &*mm);
    r
}

/// `apply_mlockall_flags()`: flags of future mappings, and of all there are. What cannot be split or merged for want of
/// memory is left as it is. Under `mmap_lock` for write.
fn apply_mlockall_flags<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, flags: u32) {
    let on_fault = if flags & MCL_ONFAULT != 0 { VM_LOCKONFAULT } else { 0 };
    let mut def_flags = mm.def_flags.get() & !VM_LOCKED_MASK;
    if flags & MCL_FUTURE != 0 {
        def_flags |= VM_LOCKED | on_fault;
    }
    mm.def_flags.set(def_flags);
    if flags & (MCL_FUTURE | MCL_CURRENT) == MCL_FUTURE {
        return;
    }
    let to_add = if flags & MCL_CURRENT != 0 { VM_LOCKED | on_fault } else { 0 };
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut prev = None;
    while let Some(vma) = vma_next::<K>(cpu, &mut mas) {
        let newflags = vma.vm_flags().load(Relaxed) & !VM_LOCKED_MASK | to_add;
        let (start, end) = (start_of::<K>(vma), end_of::<K>(vma));
        let _ = mlock_fixup(cpu, k, mm, &mut mas, vma, &mut prev, start, end, newflags);
    }
}

/// mlockall(2)
///
/// # Errors
/// `EINVAL` (flags), `EPERM` (a limit of 0), `ENOMEM` (the limit).
pub fn sys_mlockall<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, flags: u32) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    if flags == 0 || flags & !(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0 || flags == MCL_ONFAULT {
        return Err(Errno::EINVAL);
    }
    if !can_do_mlock::<K>(mm) {
        return Err(Errno::EPERM);
    }
    let lock_limit = mm.rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
    mmap_write_lock(cpu, &*mm);
    let fits = flags & MCL_CURRENT == 0 || mm.total_vm.load(Relaxed) <= lock_limit || mm.capable(CAP_IPC_LOCK);
    if fits {
        apply_mlockall_flags(cpu, k, mm, flags);
    }
    mmap_write_unlock(cpu, &*mm);
    if !fits {
        return Err(Errno::ENOMEM);
    }
    if flags & MCL_CURRENT != 0 {
        mm_populate(cpu, k, mm, 0, TASK_SIZE);
    }
    Ok(())
}

/// munlockall(2)
///
/// # Errors
/// None.
pub fn sys_munlockall<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    apply_mlockall_flags(cpu, k, mm, 0);
    mmap_write_unlock(cpu, &*mm);
    Ok(())
}
