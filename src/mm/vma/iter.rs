// SPDX-License-Identifier: GPL-2.0-only
//! The VMA iterator: a tree cursor that speaks of VMAs [include/linux/mm.h, mm/vma.h, 6.12].
//!
//! dup: what moves the cursor and by how much; one cursor goes through each operation, from the first look to the
//! store, and a store behind it starts where it stands. custom: the cursor is the maple tree's own type.

use crate::arch::Relaxed;
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{
    __mas_set_range, MaState, MaStatus, mas_find, mas_next_range, mas_pause, mas_preallocate, mas_prev, mas_prev_range,
    mas_store_gfp, mas_store_prealloc, mas_walk,
};
use crate::mm::kconfig::{Kconfig, MmPtr, VmaPtr};
use crate::mm::mm_types::VmaFields;
use crate::mm::mmap_lock::vma_of_entry;
use crate::mm::vma_lock::VmaLock;

/// First address.
#[inline(always)]
pub fn start_of<K: Kconfig>(vma: VmaPtr<K>) -> u64 {
    vma.vm_start().load(Relaxed)
}
/// First address behind.
#[inline(always)]
pub fn end_of<K: Kconfig>(vma: VmaPtr<K>) -> u64 {
    vma.vm_end().load(Relaxed)
}

/// `find_vma()`: the first VMA that ends above `addr`. Under `mmap_lock`.
pub fn find_vma<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, addr: u64) -> Option<VmaPtr<K>> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    vma_next::<K>(cpu, &mut mas)
}

/// `vma_lookup()`: the VMA that covers `addr`. Under `mmap_lock`.
pub fn vma_lookup<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, addr: u64) -> Option<VmaPtr<K>> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_walk(cpu, &mut mas)) }
}

/// `find_vma_prev()`: [`find_vma`], and the VMA before that.
pub fn find_vma_prev<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
) -> (Option<VmaPtr<K>>, Option<VmaPtr<K>>) {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    // SAFETY: under mmap_lock.
    let vma = unsafe { vma_of_entry::<K>(mas_walk(cpu, &mut mas)) };
    let prev = vma_prev::<K>(cpu, &mut mas);
    (vma.or_else(|| vma_next::<K>(cpu, &mut mas)), prev)
}

/// `vma_find()`: the first VMA below `max` at or after a fresh cursor's address; then, each time, the next one.
pub(in crate::mm) fn vma_find<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, max: u64) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_find(cpu, vmi, max - 1)) }
}

/// `vma_next()`: as [`vma_find`] without a limit.
pub(in crate::mm) fn vma_next<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_find(cpu, vmi, u64::MAX)) }
}

/// `vma_prev()`: the VMA before the cursor's.
pub(in crate::mm) fn vma_prev<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>) -> Option<VmaPtr<K>> {
    vma_prev_limit::<K>(cpu, vmi, 0)
}

/// `vma_prev_limit()`: the VMA before the cursor's, if it reaches beyond `min`.
pub(in crate::mm) fn vma_prev_limit<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
    min: u64,
) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_prev(cpu, vmi, min)) }
}

/// `vma_iter_next_rewind()`: the VMAs behind and before a hole; leaves the cursor on the hole.
pub(in crate::mm) fn vma_iter_next_rewind<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
) -> (Option<VmaPtr<K>>, Option<VmaPtr<K>>) {
    let next = vma_next::<K>(cpu, vmi);
    let prev = vma_prev::<K>(cpu, vmi);
    if prev.is_some() {
        mas_next_range(cpu, vmi, u64::MAX);
    }
    (next, prev)
}

/// `vma_iter_config()`: the range of the next store; the cursor keeps its place in the tree.
#[inline(always)]
pub(in crate::mm) fn vma_iter_config<K: Kconfig>(vmi: &mut MaState<'_, K::A>, start: u64, end: u64) {
    __mas_set_range(vmi, start, end - 1);
}

/// What `vma_iter_store()` and `vma_iter_store_gfp()` begin with: a cursor that is elsewhere starts again.
#[inline(always)]
fn vma_iter_at<K: Kconfig>(vmi: &mut MaState<'_, K::A>, vma: VmaPtr<K>) {
    let start = start_of::<K>(vma);
    if vmi.status != MaStatus::Start && (vmi.index > start || vmi.last < start) {
        mas_pause(vmi);
    }
    vma_iter_config::<K>(vmi, start, end_of::<K>(vma));
}

/// `vma_iter_store()`: after a preallocation; cannot fail.
pub(in crate::mm) fn vma_iter_store<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, vma: VmaPtr<K>) {
    vma_iter_at::<K>(vmi, vma);
    mas_store_prealloc(cpu, vmi, vma.as_ptr().cast());
}

/// `vma_iter_store_gfp()`
///
/// # Errors
/// `ENOMEM`
pub(in crate::mm) fn vma_iter_store_gfp<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
) -> Result<(), Errno> {
    vma_iter_at::<K>(vmi, vma);
    mas_store_gfp(cpu, vmi, vma.as_ptr().cast())
}

/// `vma_iter_clear_gfp()`
///
/// # Errors
/// `ENOMEM`
pub(in crate::mm) fn vma_iter_clear_gfp<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    vma_iter_config::<K>(vmi, start, end);
    mas_store_gfp(cpu, vmi, std::ptr::null_mut())
}

/// `vma_iter_store_new()`: attaches and stores after a preallocation for the VMA's range.
pub(in crate::mm) fn vma_iter_store_new<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, vma: VmaPtr<K>) {
    // Attached first: the store cannot fail, and a reader that finds the VMA is stopped by vm_lock_seq until the
    // section ends.
    K::Lock::vma_mark_attached(cpu, vma);
    vma_iter_store::<K>(cpu, vmi, vma);
}

/// `vma_iter_prealloc()`: nodes for a store of the configured range.
///
/// # Errors
/// `ENOMEM`
pub(in crate::mm) fn vma_iter_prealloc<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
) -> Result<(), Errno> {
    mas_preallocate(cpu, vmi, vma.as_ptr().cast())
}

/// `vma_iter_next_range()`: the next range, which may be a hole.
pub(in crate::mm) fn vma_iter_next_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_next_range(cpu, vmi, u64::MAX)) }
}

/// `vma_iter_prev_range()`
pub(in crate::mm) fn vma_iter_prev_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_prev_range(cpu, vmi, 0)) }
}

/// `vma_iter_load()`
pub(in crate::mm) fn vma_iter_load<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_walk(cpu, vmi)) }
}
