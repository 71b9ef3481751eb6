// SPDX-License-Identifier: GPL-2.0-only
//! What a VMA owes to its file: a reference, its place among all mappings of the file, the hooks of `vm_ops`
//! [mm/vma.c, mm/internal.h, 6.12].
//!
//! This is the one place of the VMA operations where a file is more than a word that is compared.

use crate::arch::Relaxed;
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::mm::file::{
    fput, get_file, i_mmap_lock_write, i_mmap_unlock_write, mapping_link, mapping_unlink, vm_file_of,
};
use crate::mm::kconfig::{Kconfig, VmaPtr};
use crate::mm::mm_types::{VM_OPS_CLOSE, VmaFields};

/// Whether the VMA maps a file.
#[inline(always)]
pub(in crate::mm) fn has_file<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.vm_file().load(Relaxed) != 0
}

/// `get_file()` and the open hook of a duplicate.
#[inline(always)]
pub(in crate::mm) fn vma_get_file<K: Kconfig>(_cpu: &Cpu<K::A>, _k: &Kernel<K>, vma: VmaPtr<K>) {
    if let Some(file) = vm_file_of::<K>(vma) {
        get_file(file);
    }
}

/// `fput()` of the VMA's file.
#[inline(always)]
pub(in crate::mm) fn vma_fput<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>) {
    if let Some(file) = vm_file_of::<K>(vma) {
        fput(cpu, k, file);
    }
}

/// `i_mmap_lock_write()` of the VMA's file.
#[inline(always)]
pub(in crate::mm) fn i_mmap_lock<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    if let Some(file) = vm_file_of::<K>(vma) {
        i_mmap_lock_write(cpu, &*file.f_mapping());
    }
}

/// `i_mmap_unlock_write()`
#[inline(always)]
pub(in crate::mm) fn i_mmap_unlock<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    if let Some(file) = vm_file_of::<K>(vma) {
        i_mmap_unlock_write(cpu, &*file.f_mapping());
    }
}

/// `__vma_link_file()`, under the lock.
#[inline(always)]
pub(in crate::mm) fn __vma_link_file<K: Kconfig>(vma: VmaPtr<K>) {
    if let Some(file) = vm_file_of::<K>(vma) {
        mapping_link(&*file.f_mapping(), vma.vm_flags().load(Relaxed));
    }
}

/// `__remove_shared_vm_struct()`, under the lock.
#[inline(always)]
pub(in crate::mm) fn __remove_shared_vm_struct<K: Kconfig>(vma: VmaPtr<K>) {
    if let Some(file) = vm_file_of::<K>(vma) {
        mapping_unlink(&*file.f_mapping(), vma.vm_flags().load(Relaxed));
    }
}

/// `vma_interval_tree_remove()` before the VMA's range changes, under the lock. stub: the set of mappings is a number
/// here, which a range that changes does not change.
#[inline(always)]
pub(in crate::mm) fn vma_interval_tree_remove<K: Kconfig>(_vma: VmaPtr<K>) {}

/// `vma_interval_tree_insert()` after it changed, under the lock.
#[inline(always)]
pub(in crate::mm) fn vma_interval_tree_insert<K: Kconfig>(_vma: VmaPtr<K>) {}

/// `vma_link_file()`
pub(in crate::mm) fn vma_link_file<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    if has_file::<K>(vma) {
        i_mmap_lock::<K>(cpu, vma);
        __vma_link_file::<K>(vma);
        i_mmap_unlock::<K>(cpu, vma);
    }
}

/// `unlink_file_vma()`
pub(in crate::mm) fn unlink_file_vma<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    if has_file::<K>(vma) {
        i_mmap_lock::<K>(cpu, vma);
        __remove_shared_vm_struct::<K>(vma);
        i_mmap_unlock::<K>(cpu, vma);
    }
}

/// `vma_close()`: the close hook, once; afterwards the VMA has none.
#[inline(always)]
pub(in crate::mm) fn vma_close<K: Kconfig>(_cpu: &Cpu<K::A>, _k: &Kernel<K>, vma: VmaPtr<K>) {
    let ops = vma.vm_ops().load(Relaxed);
    if ops & VM_OPS_CLOSE != 0 {
        vma.vm_ops().store(ops & !VM_OPS_CLOSE, Relaxed);
    }
}
