// SPDX-License-Identifier: GPL-2.0-only
//! Address spaces made, copied and put [kernel/fork.c, 6.12].
//!
//! dup: the order of locks and of what is copied, the child's tree that is one whole copy first and gets its VMAs by
//! exact stores while it is out of RCU mode, what a failure leaves for the end of the child's mm to find (a marker where it
//! stopped). stub: signals that end a fork, cgroups, asynchronous I/O, userfaultfd, KSM and huge page daemons, user-mode
//! exceptions and other things that hang on a kernel's mm.
//!
//! Lock order: the parent's `mmap_lock`, the child's (which nobody else knows), each of the parent's VMAs.

use super::file::{get_file, i_mmap_lock_write, i_mmap_unlock_write, mapping_link, vm_file_of};
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::memory::{copy_page_range, get_mm_counter_sum};
use super::mm_types::{
    MmStruct, NR_MM_COUNTERS, VM_ACCOUNT, VM_DONTCOPY, VM_LOCKED_MASK, VM_NOHUGEPAGE, VM_WIPEONFORK, VmaFields,
    mm_shift, vma_pages,
};
use super::mmap::exit_mmap;
use super::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use super::pgtable::{pgd_alloc, pgd_free};
use super::prctl::mdwe_inherited;
use super::rmap::anon_vma_fork;
use super::util::{vm_enough_memory, vm_unacct_memory};
use super::vma::{end_of, start_of, vm_stat_account, vma_iter_clear_gfp, vma_next};
use super::vma_init::{vm_area_dup, vm_area_free};
use super::vma_lock::VmaLock;
use super::vmstat::warn_on_once;
use crate::arch::arena::KRef;
use crate::arch::{Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{
    __mas_set_range, __mt_dup, MT_FLAGS_ALLOC_RANGE, MT_FLAGS_LOCK_EXTERN, MT_FLAGS_USE_RCU, MaState, MapleTree,
    mas_destroy, mas_set_range, mas_store_gfp, mt_clear_in_rcu, mt_set_in_rcu,
};
use crate::slab::{kmem_cache_alloc, kmem_cache_free};
use crate::sync::{percpu_counter_destroy_many, percpu_counter_init_many};
use std::ptr::{NonNull, without_provenance_mut};

/// `XA_ZERO_ENTRY`: in the tree of an mm whose making failed, the place of the first VMA that is still the parent's.
const XA_ZERO_ENTRY: usize = 257 << 2 | 2;

/// `xa_is_zero()`: not a VMA, but the marker of a fork that failed.
#[inline(always)]
pub(super) fn xa_is_zero<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.as_ptr().addr() == XA_ZERO_ENTRY
}

/// [`try_mm_alloc`] where a kernel starts or a benchmark sets up.
///
/// # Panics
/// When out of memory or of slots for resident counters.
pub fn mm_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> MmPtr<K> {
    try_mm_alloc(cpu, k).expect("memory for an mm_struct")
}

/// `mm_alloc()` and `mm_init()`: an empty address space with one user; `None` when out of memory or of cells for resident
/// counters.
pub fn try_mm_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> Option<MmPtr<K>> {
    let object = NonNull::new(kmem_cache_alloc(cpu, &k.mm_cachep))?;
    // SAFETY: a fresh object of the mm cache, which nobody knows and which has that many bytes more than the structure.
    let mm = unsafe {
        let p = object.add(mm_shift(k.config().mmap_lock_offset)).cast::<MmStruct<K::A, K::Lock>>();
        p.write(MmStruct::new());
        let flags = MT_FLAGS_ALLOC_RANGE | MT_FLAGS_LOCK_EXTERN | MT_FLAGS_USE_RCU;
        MmStruct::mm_mt_slot(p.as_ptr()).write(MapleTree::new(flags));
        KRef::new(p)
    };
    let pgd = pgd_alloc(cpu, k);
    if pgd.is_null() {
        // SAFETY: nobody knows it.
        unsafe { kmem_cache_free(cpu, &k.mm_cachep, object.as_ptr()) };
        return None;
    }
    mm.pgd.set(pgd);
    if k.slab.faults.should_fail_alloc_percpu(cpu)
        || percpu_counter_init_many(cpu, &k.percpu_counters, &mm.rss_stat, 0).is_err()
    {
        pgd_free(cpu, k, mm);
        // SAFETY: nobody knows it.
        unsafe { kmem_cache_free(cpu, &k.mm_cachep, object.as_ptr()) };
        return None;
    }
    Some(mm)
}

/// `mmput()`: drops a user; the last one tears the address space down.
pub fn mmput<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    if mm.mm_users.dec_and_test(cpu) {
        exit_mmap(cpu, k, mm);
        mmdrop(cpu, k, mm);
    }
}

/// `mmdrop()`: drops a reference to the structure; the last one frees it.
pub(super) fn mmdrop<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    if mm.mm_count.dec_and_test(cpu) {
        for which in 0..NR_MM_COUNTERS {
            warn_on_once(cpu, get_mm_counter_sum(cpu, k, mm, which) != 0);
        }
        warn_on_once(cpu, mm.pgtables_bytes.load(Relaxed) != 0);
        warn_on_once(cpu, mm.map_count.get() != 0);
        pgd_free(cpu, k, mm);
        percpu_counter_destroy_many(cpu, &k.percpu_counters, &mm.rss_stat);
        // SAFETY: the last reference, and the object that it was made in.
        unsafe {
            let object = mm.as_ptr().cast::<u8>().sub(mm_shift(k.config().mmap_lock_offset));
            kmem_cache_free(cpu, &k.mm_cachep, object);
        }
    }
}

/// fork(2) as far as memory goes.
///
/// # Errors
/// `ENOMEM`; `EINTR` at a fatal signal.
pub fn sys_fork<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, oldmm: MmPtr<K>) -> Result<MmPtr<K>, Errno> {
    K::A::charge(Work::KernelEntry);
    dup_mm(cpu, k, oldmm)
}

/// `dup_mm()`: a copy of `oldmm`, with one user.
///
/// # Errors
/// `ENOMEM`; `EINTR` at a fatal signal.
pub fn dup_mm<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, oldmm: MmPtr<K>) -> Result<MmPtr<K>, Errno> {
    let mm = try_mm_alloc(cpu, k).ok_or(Errno::ENOMEM)?;
    // The kernel copies the whole structure and then sets anew what is the child's own.
    for (to, from) in [
        (&mm.mmap_base, &oldmm.mmap_base),
        (&mm.mmap_legacy_base, &oldmm.mmap_legacy_base),
        (&mm.task_size, &oldmm.task_size),
        (&mm.start_code, &oldmm.start_code),
        (&mm.end_code, &oldmm.end_code),
        (&mm.start_data, &oldmm.start_data),
        (&mm.end_data, &oldmm.end_data),
        (&mm.start_brk, &oldmm.start_brk),
        (&mm.brk, &oldmm.brk),
        (&mm.start_stack, &oldmm.start_stack),
    ] {
        to.set(from.get());
    }
    for (to, from) in mm.rlim.iter().zip(&oldmm.rlim) {
        to.0.set(from.0.get());
        to.1.set(from.1.get());
    }
    mm.caps.set(oldmm.caps.get());
    mm.personality.set(oldmm.personality.get());
    mm.mdwe.set(mdwe_inherited(oldmm.mdwe.get()));
    // VM_INIT_DEF_MASK: locks on future mappings are not inherited.
    mm.def_flags.set(oldmm.def_flags.get() & VM_NOHUGEPAGE);
    match dup_mmap(cpu, k, mm, oldmm) {
        Ok(()) => Ok(mm),
        Err(e) => {
            mmput(cpu, k, mm);
            Err(e)
        }
    }
}

/// `dup_mmap()`: the VMAs of `oldmm` and their pages for `mm`, which is empty.
fn dup_mmap<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, oldmm: MmPtr<K>) -> Result<(), Errno> {
    mmap_write_lock(cpu, &*oldmm);
    // mmap_write_lock_nested(): nobody knows the child yet.
    mmap_write_lock(cpu, &*mm);
    mm.total_vm.store(oldmm.total_vm.load(Relaxed), Relaxed);
    mm.data_vm.set(oldmm.data_vm.get());
    mm.exec_vm.set(oldmm.exec_vm.get());
    mm.stack_vm.set(oldmm.stack_vm.get());
    let mut r = __mt_dup(cpu, k.maple, oldmm.mm_mt(), mm.mm_mt());
    if r.is_ok() {
        mt_clear_in_rcu(mm.mm_mt());
        let mut vmi = MaState::new(mm.mm_mt(), k.maple, 0, 0);
        let stopped = dup_vmas(cpu, k, mm, oldmm, &mut vmi);
        mas_destroy(cpu, &mut vmi);
        match stopped {
            Ok(()) => mt_set_in_rcu(mm.mm_mt()),
            Err((at, e)) => {
                if let Some(vma) = at {
                    // What stands from here on is the parent's: exit_mmap() must not touch it. An exact store out of
                    // RCU mode needs no memory.
                    mas_set_range(&mut vmi, start_of::<K>(vma), end_of::<K>(vma) - 1);
                    let stored = mas_store_gfp(cpu, &mut vmi, without_provenance_mut(XA_ZERO_ENTRY));
                    warn_on_once(cpu, stored.is_err());
                }
                r = Err(e);
            }
        }
    }
    mmap_write_unlock(cpu, &*mm);
    // flush_tlb_mm(): the parent's entries lost their right to write. No TLB here.
    mmap_write_unlock(cpu, &*oldmm);
    r
}

/// Where a fork stopped, and why: the first VMA in the child's tree that is still the parent's, if there is one.
type Stopped<K> = (Option<VmaPtr<K>>, Errno);

/// The loop of `dup_mmap()`: each of the parent's VMAs in the child's tree becomes the child's own.
fn dup_vmas<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    oldmm: MmPtr<K>,
    vmi: &mut MaState<'_, K::A>,
) -> Result<(), Stopped<K>> {
    while let Some(mpnt) = vma_next::<K>(cpu, vmi) {
        // 7.x; before, and where nothing can be killed, vma_start_write().
        K::Lock::vma_start_write_killable(cpu, mpnt).map_err(|e| (Some(mpnt), e))?;
        let flags = mpnt.vm_flags().load(Relaxed);
        let pages = vma_pages::<K::A, K::Lock>(&mpnt);
        if flags & VM_DONTCOPY != 0 {
            vma_iter_clear_gfp::<K>(cpu, vmi, start_of::<K>(mpnt), end_of::<K>(mpnt)).map_err(|e| (Some(mpnt), e))?;
            vm_stat_account::<K>(mm, flags, -(pages as i64));
            continue;
        }
        let charge = if flags & VM_ACCOUNT != 0 { pages } else { 0 };
        if charge != 0 {
            vm_enough_memory(cpu, k, oldmm, charge).map_err(|e| (Some(mpnt), e))?;
        }
        let tmp = match dup_vma(cpu, k, mm, mpnt) {
            Ok(tmp) => tmp,
            Err(e) => {
                if charge != 0 {
                    vm_unacct_memory(cpu, k, charge);
                }
                return Err((Some(mpnt), e));
            }
        };
        // vma_iter_bulk_store(): over the parent's VMA of the same range, so it needs no memory.
        __mas_set_range(vmi, start_of::<K>(tmp), end_of::<K>(tmp) - 1);
        let stored = mas_store_gfp(cpu, vmi, tmp.as_ptr().cast());
        warn_on_once(cpu, stored.is_err());
        // 6.15: attached, as it is in the tree.
        K::Lock::vma_mark_attached(cpu, tmp);
        mm.map_count.set(mm.map_count.get() + 1);
        if let Some(file) = vm_file_of::<K>(tmp) {
            let mapping = get_file(file).f_mapping();
            i_mmap_lock_write(cpu, &*mapping);
            mapping_link(&*mapping, tmp.vm_flags().load(Relaxed));
            i_mmap_unlock_write(cpu, &*mapping);
        }
        if flags & VM_WIPEONFORK == 0
            && let Err(e) = copy_page_range(cpu, k, mm, oldmm, mpnt)
        {
            // This one is the child's already, with what was copied.
            return Err((vma_next::<K>(cpu, vmi), e));
        }
    }
    Ok(())
}

/// A copy of the parent's `mpnt` for the child, linked to its anon_vmas.
///
/// # Errors
/// `ENOMEM`
fn dup_vma<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, mpnt: VmaPtr<K>) -> Result<VmaPtr<K>, Errno> {
    let tmp = vm_area_dup(cpu, k, mpnt).ok_or(Errno::ENOMEM)?;
    tmp.vm_mm().store(mm.as_ptr(), Relaxed);
    let flags = tmp.vm_flags().load(Relaxed);
    if flags & VM_WIPEONFORK != 0 {
        // A clean slate: the first fault prepares it.
        tmp.anon_vma().store(std::ptr::null_mut(), Relaxed);
    } else if let Err(e) = anon_vma_fork(cpu, k, tmp, mpnt) {
        vm_area_free::<K>(cpu, tmp);
        return Err(e);
    }
    // vm_flags_clear(), which write-locks; vma_mark_attached() relies on it.
    K::Lock::vma_start_write(cpu, tmp);
    tmp.vm_flags().store(flags & !VM_LOCKED_MASK, Relaxed);
    Ok(tmp)
}
