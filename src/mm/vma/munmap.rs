// SPDX-License-Identifier: GPL-2.0-only
//! Taking a range out of the address space [mm/vma.c, 6.12].
//!
//! dup: which object survives (a partial unmap frees the ORIGINAL), splits that stay when the removal fails, the order
//! of write-locking, storing, detaching and freeing, the side tree, the downgrade before zapping, what is counted.
//! custom: the page tables of a removed range are freed in one sweep instead of one per VMA; the same tables go.
//! stub: userfaultfd.

use super::file::{has_file, unlink_file_vma, vma_close, vma_fput};
use super::{
    __split_vma, end_of, is_data_mapping, is_exec_mapping, is_stack_mapping, start_of, vma_find, vma_iter_clear_gfp,
    vma_next, vma_prev,
};
use crate::arch::Relaxed;
use crate::arch::arena::PAGE_SIZE;
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{
    MT_FLAGS_LOCK_EXTERN, MaState, MapleTree, mas_find, mas_prev_range, mas_set, mas_set_range, mas_store_gfp,
    mt_destroy,
};
use crate::mm::kconfig::{Kconfig, MmPtr, VmaPtr};
use crate::mm::memory::unmap_single_vma;
use crate::mm::mm_types::{TASK_SIZE, VM_ACCOUNT, VM_LOCKED, VM_SEALED, VmaFields, vma_pages};
use crate::mm::mmap_lock::{mmap_read_unlock, mmap_write_downgrade, mmap_write_unlock, vma_of_entry};
use crate::mm::mmu_gather::MmuGather;
use crate::mm::pgtable::free_pgd_range;
use crate::mm::rmap::unlink_anon_vmas;
use crate::mm::util::vm_unacct_memory;
use crate::mm::vma_init::{vm_area_free, vm_area_free_unreachable};
use crate::mm::vma_lock::VmaLock;

/// `struct vma_munmap_struct`: a removal on its way.
pub struct VmaMunmap<K: Kconfig> {
    /// First address of the range.
    pub start: u64,
    /// First address behind the range.
    pub end: u64,
    /// VMA before.
    pub prev: Option<VmaPtr<K>>,
    /// VMA behind.
    pub next: Option<VmaPtr<K>>,
    /// VMAs taken out.
    pub vma_count: u64,
    /// Pages of their ranges.
    pub nr_pages: u64,
    /// Those that are locked.
    pub locked_vm: u64,
    /// Those charged against the commit limit.
    pub nr_accounted: u64,
    /// Those that counted as executable.
    pub exec_vm: u64,
    /// Those that counted as stack.
    pub stack_vm: u64,
    /// Those that counted as data.
    pub data_vm: u64,
    /// End of what the page tables of the VMA before may need.
    pub unmap_start: u64,
    /// Beginning of what those of the VMA behind may need.
    pub unmap_end: u64,
    /// First VMA taken out.
    vma: Option<VmaPtr<K>>,
    /// Whether PTEs are still there.
    pub clear_ptes: bool,
    detached: MapleTree<K::A>,
}

impl<K: Kconfig> VmaMunmap<K> {
    /// `init_vma_munmap()`
    pub fn new(start: u64, end: u64) -> Self {
        VmaMunmap {
            start,
            end,
            prev: None,
            next: None,
            vma_count: 0,
            nr_pages: 0,
            locked_vm: 0,
            nr_accounted: 0,
            exec_vm: 0,
            stack_vm: 0,
            data_vm: 0,
            unmap_start: 0,
            unmap_end: u64::MAX,
            vma: None,
            clear_ptes: false,
            detached: MapleTree::new(MT_FLAGS_LOCK_EXTERN),
        }
    }

    /// Runs `f` on each VMA taken out, from index `from` of the side tree on; what comes before is `first`.
    fn for_each(&self, cpu: &Cpu<K::A>, k: &Kernel<K>, first: Option<VmaPtr<K>>, mut f: impl FnMut(VmaPtr<K>)) {
        let from = u64::from(first.is_some());
        let mut mas = MaState::new(&self.detached, k.maple, from, from);
        if let Some(vma) = first {
            f(vma);
        }
        // SAFETY: the side tree holds VMAs that nobody has freed.
        while let Some(vma) = unsafe { vma_of_entry::<K>(mas_find(cpu, &mut mas, u64::MAX)) } {
            f(vma);
        }
    }
}

/// `can_modify_vma()`
#[inline(always)]
pub fn can_modify_vma<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.vm_flags().load(Relaxed) & VM_SEALED == 0
}

/// `remove_vma()`: close hook, file, object.
pub(in crate::mm) fn remove_vma<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>) {
    vma_close(cpu, k, vma);
    if has_file::<K>(vma) {
        vma_fput(cpu, k, vma);
    }
    vm_area_free::<K>(cpu, vma);
}

/// `remove_vma()` at exit: nobody can look at the VMA any more.
pub(in crate::mm) fn remove_vma_unreachable<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>) {
    vma_close(cpu, k, vma);
    if has_file::<K>(vma) {
        vma_fput(cpu, k, vma);
    }
    vm_area_free_unreachable::<K>(cpu, vma);
}

/// `reattach_vmas()`: a removal that failed puts its VMAs back.
fn reattach_vmas<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vms: &VmaMunmap<K>) {
    vms.for_each(cpu, k, None, |vma| K::Lock::vma_mark_attached(cpu, vma));
    mt_destroy(cpu, k.maple, &vms.detached);
}

/// `vms_gather_munmap_vmas()`: splits at the edges, write-locks and detaches what is in the range. `first` is the
/// first VMA that overlaps it.
///
/// # Errors
/// `ENOMEM`; `EPERM` where a VMA is sealed. Splits already done stay.
pub fn vms_gather_munmap_vmas<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vms: &mut VmaMunmap<K>,
    first: VmaPtr<K>,
) -> Result<(), Errno> {
    if vms.start > start_of::<K>(first) {
        // The count may pass its limit for a moment, but not stay above it.
        if vms.end < end_of::<K>(first) && mm.map_count.get() >= k.max_map_count {
            return Err(Errno::ENOMEM);
        }
        if !can_modify_vma::<K>(first) {
            return Err(Errno::EPERM);
        }
        __split_vma(cpu, k, mm, mas, first, vms.start, true)?;
    }
    vms.prev = vma_prev::<K>(cpu, mas);
    if let Some(prev) = vms.prev {
        vms.unmap_start = end_of::<K>(prev);
    }
    let mut side = MaState::new(&vms.detached, k.maple, 0, 0);
    let mut result = Ok(());
    while let Some(vma) = vma_find::<K>(cpu, mas, vms.end) {
        if !can_modify_vma::<K>(vma) {
            result = Err(Errno::EPERM);
            break;
        }
        if end_of::<K>(vma) > vms.end
            && let Err(e) = __split_vma(cpu, k, mm, mas, vma, vms.end, false)
        {
            result = Err(e);
            break;
        }
        K::Lock::vma_start_write(cpu, vma);
        mas_set(&mut side, vms.vma_count);
        if let Err(e) = mas_store_gfp(cpu, &mut side, vma.as_ptr().cast()) {
            result = Err(e);
            break;
        }
        vms.vma_count += 1;
        K::Lock::vma_mark_detached(cpu, vma);
        let pages = vma_pages::<K::A, K::Lock>(&vma);
        vms.nr_pages += pages;
        let flags = vma.vm_flags().load(Relaxed);
        if flags & VM_LOCKED != 0 {
            vms.locked_vm += pages;
        }
        if flags & VM_ACCOUNT != 0 {
            vms.nr_accounted += pages;
        }
        if is_exec_mapping(flags) {
            vms.exec_vm += pages;
        } else if is_stack_mapping(flags) {
            vms.stack_vm += pages;
        } else if is_data_mapping(flags) {
            vms.data_vm += pages;
        }
    }
    if result.is_err() {
        reattach_vmas(cpu, k, vms);
        return result;
    }
    vms.next = vma_next::<K>(cpu, mas);
    if let Some(next) = vms.next {
        vms.unmap_end = start_of::<K>(next);
    }
    // Back to where the store that follows begins.
    while mas.index > vms.start {
        mas_prev_range(cpu, mas, 0);
    }
    vms.vma = Some(first);
    vms.clear_ptes = true;
    Ok(())
}

/// `vms_clear_ptes()`: zaps the range and frees its page tables. Under `mmap_lock`, read is enough once the VMAs are
/// detached.
pub fn vms_clear_ptes<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vms: &mut VmaMunmap<K>) {
    if !vms.clear_ptes {
        return;
    }
    let mut tlb = MmuGather::new();
    vms.for_each(cpu, k, vms.vma, |vma| {
        unmap_single_vma(cpu, k, mm, &mut tlb, vma, start_of::<K>(vma), end_of::<K>(vma));
    });
    // free_pgtables()
    vms.for_each(cpu, k, vms.vma, |vma| {
        unlink_anon_vmas(cpu, k, vma);
        unlink_file_vma::<K>(cpu, vma);
    });
    free_pgd_range(cpu, k, mm, &mut tlb, vms.start, vms.end, vms.unmap_start, vms.unmap_end);
    tlb.finish(cpu, k);
    vms.clear_ptes = false;
}

/// `vms_clean_up_area()`: what a new mapping does to the old ones while they are still in the tree.
pub fn vms_clean_up_area<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vms: &mut VmaMunmap<K>) {
    if vms.nr_pages == 0 {
        return;
    }
    vms_clear_ptes(cpu, k, mm, vms);
    vms.for_each(cpu, k, None, |vma| vma_close(cpu, k, vma));
}

/// `vms_complete_munmap_vmas()`: after the tree no longer shows the range. With `unlock` the lock is downgraded before
/// the work on page tables and dropped at the end.
pub fn vms_complete_munmap_vmas<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vms: &mut VmaMunmap<K>,
    unlock: bool,
) {
    mm.map_count.set(mm.map_count.get() - vms.vma_count as i32);
    mm.locked_vm.set(mm.locked_vm.get() - vms.locked_vm);
    if unlock {
        // Ends every VMA write lock: readers may find the neighbours again.
        mmap_write_downgrade(cpu, &*mm);
    }
    if vms.nr_pages == 0 {
        return;
    }
    vms_clear_ptes(cpu, k, mm, vms);
    mm.total_vm.store(mm.total_vm.load(Relaxed) - vms.nr_pages, Relaxed);
    mm.exec_vm.set(mm.exec_vm.get() - vms.exec_vm);
    mm.stack_vm.set(mm.stack_vm.get() - vms.stack_vm);
    mm.data_vm.set(mm.data_vm.get() - vms.data_vm);
    vms.for_each(cpu, k, None, |vma| remove_vma(cpu, k, vma));
    vm_unacct_memory(cpu, k, vms.nr_accounted);
    if unlock {
        mmap_read_unlock(cpu, &*mm);
    }
    mt_destroy(cpu, k.maple, &vms.detached);
}

/// `vms_abort_munmap_vmas()`: a mapping over other VMAs failed: they come back, or, if their PTEs are gone, a hole is
/// left.
pub fn vms_abort_munmap_vmas<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vms: &mut VmaMunmap<K>,
) {
    if vms.vma_count == 0 {
        return;
    }
    if vms.clear_ptes {
        return reattach_vmas(cpu, k, vms);
    }
    mas_set_range(mas, vms.start, vms.end - 1);
    // Cannot be undone any more (__GFP_NOFAIL): without memory for the hole the kernel retries without limit as well.
    k.slab.faults.nofail(cpu, || {
        while mas_store_gfp(cpu, mas, std::ptr::null_mut()).is_err() {
            mas_set_range(mas, vms.start, vms.end - 1);
        }
    });
    vms_complete_munmap_vmas(cpu, k, mm, vms, false);
}

/// `do_vmi_align_munmap()`: with `unlock`, drops `mmap_lock` on success.
///
/// # Errors
/// `ENOMEM`, `EPERM`
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel and the CPU before them")]
pub fn do_vmi_align_munmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    first: VmaPtr<K>,
    start: u64,
    end: u64,
    unlock: bool,
) -> Result<(), Errno> {
    let mut vms = VmaMunmap::new(start, end);
    vms_gather_munmap_vmas(cpu, k, mm, mas, &mut vms, first)?;
    if let Err(e) = vma_iter_clear_gfp::<K>(cpu, mas, start, end) {
        reattach_vmas(cpu, k, &vms);
        return Err(e);
    }
    vms_complete_munmap_vmas(cpu, k, mm, &mut vms, unlock);
    Ok(())
}

/// `do_vmi_munmap()`: with `unlock`, drops `mmap_lock` on success.
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EPERM`
pub fn do_vmi_munmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    start: u64,
    len: u64,
    unlock: bool,
) -> Result<(), Errno> {
    const MASK: u64 = PAGE_SIZE as u64 - 1;
    if start & MASK != 0 || start > TASK_SIZE || len > TASK_SIZE - start {
        return Err(Errno::EINVAL);
    }
    let end = start + ((len + MASK) & !MASK);
    if end == start {
        return Err(Errno::EINVAL);
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, start, start);
    match vma_find::<K>(cpu, &mut mas, end) {
        Some(first) => do_vmi_align_munmap(cpu, k, mm, &mut mas, first, start, end, unlock),
        None => {
            if unlock {
                mmap_write_unlock(cpu, &*mm);
            }
            Ok(())
        }
    }
}
