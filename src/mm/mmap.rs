// SPDX-License-Identifier: GPL-2.0-only
//! System calls on an address space: mmap, munmap, brk, madvise(DONTNEED), and its end [mm/mmap.c, mm/madvise.c, 6.12].
//!
//! Private anonymous memory only. dup: the order of checks (it decides which errno wins), placement from the top down
//! with the THP alignment of large sizes, the order of events. stub: files, shared memory, limits other than
//! `max_map_count`, overcommit, randomisation, populate. Not here yet: mprotect, mremap, mlock.

use super::kconfig::{Kconfig, MmPtr};
use super::memory::MmuGather;
use super::mm_types::{
    MMAP_MIN_ADDR, TASK_SIZE, VM_ACCESS_FLAGS, VM_ACCOUNT, VM_EXEC, VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE, VM_NOHUGEPAGE,
    VM_NORESERVE, VM_READ, VM_SHARED, VM_WRITE, VmaFields,
};
use super::mmap_lock::{mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock};
use super::pgtable::{free_pgd_range, unmap_single_vma};
use super::rmap::unlink_anon_vmas;
use super::vma::{
    VmaMerge, VmaMunmap, do_vmi_align_munmap, do_vmi_munmap, end_of, start_of, vm_stat_account, vma_find,
    vma_iter_config, vma_iter_next_rewind, vma_iter_store_gfp, vma_iter_store_new, vma_merge_new_range, vma_next,
    vma_prev_limit, vma_set_range, vms_abort_munmap_vmas, vms_clean_up_area, vms_complete_munmap_vmas,
    vms_gather_munmap_vmas,
};
use super::vma_init::{vm_area_alloc, vm_area_free, vm_area_free_unreachable};
use super::vma_lock::VmaLock;
use super::vmstat::warn_on_once;
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{
    MaState, mas_empty_area_rev, mas_next_range, mas_preallocate, mas_set, mas_set_range, mt_clear_in_rcu, mt_destroy,
};

/// `PROT_READ`
pub const PROT_READ: u32 = 1;
/// `PROT_WRITE`
pub const PROT_WRITE: u32 = 2;
/// `PROT_EXEC`
pub const PROT_EXEC: u32 = 4;
/// `MAP_PRIVATE`
pub const MAP_PRIVATE: u32 = 0x02;
/// `MAP_FIXED`
pub const MAP_FIXED: u32 = 0x10;
/// `MAP_ANONYMOUS`
pub const MAP_ANONYMOUS: u32 = 0x20;
/// `MAP_NORESERVE`
pub const MAP_NORESERVE: u32 = 0x4000;
/// `MAP_STACK`
pub const MAP_STACK: u32 = 0x2_0000;
/// `MAP_FIXED_NOREPLACE`
pub const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;

const MASK: u64 = PAGE_SIZE as u64 - 1;
const PMD_SIZE: u64 = 2 << 20;
/// `stack_guard_gap`, bytes.
const STACK_GUARD_GAP: u64 = 256 << PAGE_SHIFT;
/// Flags that private anonymous memory may always get later.
const MAY: u64 = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;

/// `exit_mmap()`: zap under `mmap_lock` for read, then everything else under it for write.
pub(super) fn exit_mmap<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    mmap_read_lock(cpu, &*mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut tlb = MmuGather::new_fullmm();
    let mut vma = vma_next::<K>(cpu, &mut mas);
    while let Some(v) = vma {
        unmap_single_vma(cpu, k, mm, &mut tlb, start_of::<K>(v), end_of::<K>(v));
        vma = vma_next::<K>(cpu, &mut mas);
    }
    mmap_read_unlock(cpu, &*mm);
    mmap_write_lock(cpu, &*mm);
    mt_clear_in_rcu(mm.mm_mt());
    // free_pgtables()
    mas_set(&mut mas, 0);
    vma = vma_next::<K>(cpu, &mut mas);
    while let Some(v) = vma {
        K::Lock::vma_start_write(cpu, v);
        unlink_anon_vmas(cpu, k, v);
        vma = vma_next::<K>(cpu, &mut mas);
    }
    free_pgd_range(cpu, k, mm, &mut tlb, 0, TASK_SIZE, 0, u64::MAX);
    tlb.finish(cpu, k);
    let mut count = 0;
    mas_set(&mut mas, 0);
    vma = vma_next::<K>(cpu, &mut mas);
    while let Some(v) = vma {
        vma = vma_next::<K>(cpu, &mut mas);
        if K::Lock::DETACH_AT_EXIT {
            K::Lock::vma_mark_detached(cpu, v);
        }
        vm_area_free_unreachable::<K>(cpu, v);
        count += 1;
    }
    warn_on_once(cpu, count != mm.map_count.get());
    mm.map_count.set(mm.map_count.get() - count);
    mm.total_vm.store(0, Relaxed);
    mt_destroy(cpu, k.maple, mm.mm_mt());
    mmap_write_unlock(cpu, &*mm);
}

/// Where a mapping of `len` may go (`__get_unmapped_area()`, `thp_get_unmapped_area()`).
fn get_unmapped_area<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    hint: u64,
    len: u64,
    fixed: bool,
) -> Result<u64, Errno> {
    if len > TASK_SIZE {
        return Err(Errno::ENOMEM);
    }
    if fixed {
        if hint > TASK_SIZE - len {
            return Err(Errno::ENOMEM);
        }
        return if hint & MASK != 0 {
            Err(Errno::EINVAL)
        } else if hint < MMAP_MIN_ADDR {
            Err(Errno::EPERM)
        } else {
            Ok(hint)
        };
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    if hint != 0 {
        let addr = hint & !MASK;
        // find_vma_prev()
        mas_set(&mut mas, addr);
        if addr <= TASK_SIZE - len && vma_next::<K>(cpu, &mut mas).is_none_or(|v| start_of::<K>(v) >= addr + len) {
            return Ok(addr);
        }
    }
    let mut search = |len: u64| -> Option<u64> {
        mas_set_range(&mut mas, 0, 0);
        mas_empty_area_rev(&mut mas, MMAP_MIN_ADDR, mm.mmap_base.get() - 1, len).ok()?;
        Some(mas.last + 1 - len)
    };
    if hint == 0
        && len.is_multiple_of(PMD_SIZE)
        && let Some(r) = search(len + PMD_SIZE)
    {
        return Ok(if r.is_multiple_of(PMD_SIZE) { r + PMD_SIZE } else { r.next_multiple_of(PMD_SIZE) });
    }
    search(len).ok_or(Errno::ENOMEM)
}

/// mmap(2) of private anonymous memory: takes and drops `mmap_lock`. `prot` and `flags` are Linux's.
///
/// # Errors
/// `EINVAL` (no length, not private and anonymous, unaligned), `ENOMEM`, `EEXIST`, `EPERM`.
pub fn do_mmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    prot: u32,
    flags: u32,
) -> Result<u64, Errno> {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    let r = __do_mmap(cpu, k, mm, addr, len, prot, flags);
    mmap_write_unlock(cpu, &*mm);
    r
}

fn __do_mmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    prot: u32,
    flags: u32,
) -> Result<u64, Errno> {
    if len == 0 || flags & MAP_ANONYMOUS == 0 || flags & MAP_PRIVATE == 0 {
        return Err(Errno::EINVAL);
    }
    let fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
    let addr = if fixed || addr == 0 { addr } else { (addr & !MASK).max(MMAP_MIN_ADDR) };
    let len = len.checked_add(MASK).ok_or(Errno::ENOMEM)? & !MASK;
    if mm.map_count.get() > k.max_map_count {
        return Err(Errno::ENOMEM);
    }
    let mut vm_flags = u64::from(prot) & VM_ACCESS_FLAGS | MAY;
    if flags & MAP_STACK != 0 {
        vm_flags |= VM_NOHUGEPAGE;
    }
    let addr = get_unmapped_area(cpu, k, mm, addr, len, fixed)?;
    if flags & MAP_FIXED_NOREPLACE != 0 {
        let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
        if vma_find::<K>(cpu, &mut mas, addr + len).is_some() {
            return Err(Errno::EEXIST);
        }
    }
    if flags & MAP_NORESERVE != 0 {
        vm_flags |= VM_NORESERVE;
    }
    mmap_region(cpu, k, mm, addr, len, vm_flags)
}

/// `mmap_region()`
fn mmap_region<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    mut vm_flags: u64,
) -> Result<u64, Errno> {
    let end = addr + len;
    let pgoff = addr >> PAGE_SHIFT;
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    let mut vms = VmaMunmap::new(addr, end);
    let (prev, next) = match vma_find::<K>(cpu, &mut mas, end) {
        Some(first) => {
            vms_gather_munmap_vmas(cpu, k, mm, &mut mas, &mut vms, first)?;
            (vms.prev, vms.next)
        }
        None => {
            let (next, prev) = vma_iter_next_rewind::<K>(cpu, &mut mas);
            (prev, next)
        }
    };
    // accountable_mapping(): writable private memory counts against the commit limit.
    if vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE {
        vm_flags |= VM_ACCOUNT;
    }
    // vms_clean_up_area(): while the old VMAs are still in the tree.
    vms_clean_up_area(cpu, k, mm, &mut vms);
    let merge = VmaMerge::new_range(prev, next, addr, end, vm_flags, pgoff);
    // Without memory for a merge a VMA of its own is tried, as in the kernel.
    if !matches!(vma_merge_new_range(cpu, k, mm, &mut mas, &merge), Ok(Some(_))) {
        let Some(vma) = vm_area_alloc(cpu, k, mm) else {
            vms_abort_munmap_vmas(cpu, k, mm, &mut mas, &mut vms);
            return Err(Errno::ENOMEM);
        };
        vma_set_range::<K>(vma, addr, end, pgoff);
        vma.vm_flags().store(vm_flags, Relaxed);
        vma.vm_page_prot().store(vm_flags & VM_ACCESS_FLAGS, Relaxed);
        vma_iter_config::<K>(&mut mas, addr, end);
        if let Err(e) = mas_preallocate(cpu, &mut mas, vma.as_ptr().cast()) {
            vm_area_free::<K>(cpu, vma);
            vms_abort_munmap_vmas(cpu, k, mm, &mut mas, &mut vms);
            return Err(e);
        }
        // The VMA changes after it went into the tree (vm_page_prot, statistics): readers stay out until the end.
        K::Lock::vma_start_write(cpu, vma);
        vma_iter_store_new::<K>(cpu, &mut mas, vma);
        mm.map_count.set(mm.map_count.get() + 1);
    }
    vms_complete_munmap_vmas(cpu, k, mm, &mut vms, false);
    vm_stat_account::<K>(mm, vm_flags, (len >> PAGE_SHIFT) as i64);
    Ok(addr)
}

/// mmap(2) in the form that workloads want: `addr` fixed or anywhere, `vm_flags` of [`VM_READ`], [`VM_WRITE`],
/// [`VM_EXEC`] and [`VM_NORESERVE`].
///
/// # Errors
/// As [`do_mmap`].
pub fn vm_mmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: Option<u64>,
    len: u64,
    vm_flags: u64,
) -> Result<u64, Errno> {
    const { assert!(PROT_READ as u64 == VM_READ && PROT_WRITE as u64 == VM_WRITE && PROT_EXEC as u64 == VM_EXEC) };
    let mut flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if addr.is_some() {
        flags |= MAP_FIXED;
    }
    if vm_flags & VM_NORESERVE != 0 {
        flags |= MAP_NORESERVE;
    }
    do_mmap(cpu, k, mm, addr.unwrap_or(0), len, (vm_flags & VM_ACCESS_FLAGS) as u32, flags)
}

/// munmap(2): takes `mmap_lock` for write, downgrades it before zapping, drops it.
///
/// # Errors
/// `EINVAL`, `ENOMEM`
pub fn vm_munmap<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, addr: u64, len: u64) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    let r = do_vmi_munmap(cpu, k, mm, addr, len, true);
    if r.is_err() {
        mmap_write_unlock(cpu, &*mm);
    }
    r
}

/// brk(2): the break after it, moved or not.
pub fn sys_brk<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, brk: u64) -> u64 {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    let origbrk = mm.brk.get();
    if brk < mm.start_brk.get() || brk > TASK_SIZE {
        mmap_write_unlock(cpu, &*mm);
        return origbrk;
    }
    let newbrk = (brk + MASK) & !MASK;
    let oldbrk = (origbrk + MASK) & !MASK;
    if oldbrk == newbrk {
        mm.brk.set(brk);
        mmap_write_unlock(cpu, &*mm);
        return brk;
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, newbrk, newbrk);
    if brk <= origbrk {
        if let Some(v) = vma_find::<K>(cpu, &mut mas, oldbrk) {
            // Before the lock is dropped, which the removal does.
            mm.brk.set(brk);
            if do_vmi_align_munmap(cpu, k, mm, &mut mas, v, newbrk, oldbrk, true).is_ok() {
                return brk;
            }
            mm.brk.set(origbrk);
        }
        mmap_write_unlock(cpu, &*mm);
        return origbrk;
    }
    mas_set(&mut mas, oldbrk);
    // A page must stay free below whatever comes next, and the gap below it if it is a stack.
    let next = vma_find::<K>(cpu, &mut mas, newbrk + PAGE_SIZE as u64 + STACK_GUARD_GAP);
    if next.is_some_and(|n| newbrk + PAGE_SIZE as u64 > start_of::<K>(n)) {
        mmap_write_unlock(cpu, &*mm);
        return origbrk;
    }
    let prev = vma_prev_limit::<K>(cpu, &mut mas, mm.start_brk.get());
    let r = do_brk_flags(cpu, k, mm, &mut mas, prev, oldbrk, newbrk - oldbrk);
    let now = if r.is_ok() { brk } else { origbrk };
    mm.brk.set(now);
    mmap_write_unlock(cpu, &*mm);
    now
}

/// `do_brk_flags()`: extends `prev` if it ends there and fits, else maps a new VMA.
fn do_brk_flags<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    prev: Option<super::kconfig::VmaPtr<K>>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    let flags = VM_READ | VM_WRITE | MAY | VM_ACCOUNT;
    if mm.map_count.get() > k.max_map_count {
        return Err(Errno::ENOMEM);
    }
    let pgoff = addr >> PAGE_SHIFT;
    let expanded = prev.is_some_and(|p| end_of::<K>(p) == addr) && {
        let mut merge = VmaMerge::new_range(prev, None, addr, addr + len, flags, pgoff);
        merge.just_expand = true;
        vma_merge_new_range(cpu, k, mm, mas, &merge)?.is_some()
    };
    if !expanded {
        if prev.is_some() {
            mas_next_range(cpu, mas, u64::MAX);
        }
        let vma = vm_area_alloc(cpu, k, mm).ok_or(Errno::ENOMEM)?;
        vma_set_range::<K>(vma, addr, addr + len, pgoff);
        vma.vm_flags().store(flags, Relaxed);
        vma.vm_page_prot().store(flags & VM_ACCESS_FLAGS, Relaxed);
        K::Lock::vma_start_write(cpu, vma);
        // This store can fail, so the VMA is attached after it. A reader that finds it before is
        // stopped by vm_lock_seq, or at worst finds it detached and looks again.
        if let Err(e) = vma_iter_store_gfp::<K>(cpu, mas, vma) {
            vm_area_free::<K>(cpu, vma);
            return Err(e);
        }
        K::Lock::vma_mark_attached(cpu, vma);
        mm.map_count.set(mm.map_count.get() + 1);
    }
    mm.total_vm.store(mm.total_vm.load(Relaxed) + (len >> PAGE_SHIFT), Relaxed);
    mm.data_vm.set(mm.data_vm.get() + (len >> PAGE_SHIFT));
    Ok(())
}

/// madvise(2) with `MADV_DONTNEED`: the pages go, the VMAs stay, faulted ones stay faulted. Under `mmap_lock` for read,
/// as in 6.12.
///
/// # Errors
/// `EINVAL`; `ENOMEM` where a part is not mapped (the rest is done).
pub fn madvise_dontneed<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    let len = len.checked_add(MASK).ok_or(Errno::EINVAL)? & !MASK;
    let end = addr.checked_add(len).ok_or(Errno::EINVAL)?;
    if addr & MASK != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(());
    }
    mmap_read_lock(cpu, &*mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    let mut vma = vma_next::<K>(cpu, &mut mas);
    let mut at = addr;
    let mut holes = false;
    let mut tlb = MmuGather::new();
    while let Some(v) = vma.filter(|v| start_of::<K>(*v) < end) {
        holes |= start_of::<K>(v) > at;
        let (s, e) = (start_of::<K>(v).max(addr), end_of::<K>(v).min(end));
        unmap_single_vma(cpu, k, mm, &mut tlb, s, e);
        at = e;
        if at >= end {
            break;
        }
        vma = vma_next::<K>(cpu, &mut mas);
    }
    tlb.finish(cpu, k);
    mmap_read_unlock(cpu, &*mm);
    if holes || at < end { Err(Errno::ENOMEM) } else { Ok(()) }
}
