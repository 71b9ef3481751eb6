// SPDX-License-Identifier: GPL-2.0-only
//! Operations on VMAs: splitting, merging, copying, taking a range out of the address space [mm/vma.c, mm/vma.h,
//! mm/mmap.c, 6.12].
//!
//! Four parts, each a file: [`iter`], [`merge`], [`munmap`] and [`mod@file`]; here are splits, copies and what is counted.
//!
//! dup: which object survives each operation (a partial unmap frees the ORIGINAL, a change of flags keeps it), the
//! order of locks, of changing, storing, detaching and freeing. Where versions differ in what merges,
//! [`MmRules`](crate::mm::MmRules) says it. custom: memory policies, userfaultfd contexts and anonymous names are words
//! that are compared. stub: what hangs on these words, uprobes, huge pages and their split at a border.
//!
//! INVARIANT: all functions here run under `mmap_lock` for write unless they say otherwise. A VMA is attached (in the
//! protocol's sense) exactly while it is in the main tree, but for the moment in which a section moves it.

pub mod file;
pub mod iter;
pub mod merge;
pub mod munmap;

pub use iter::{end_of, find_vma, find_vma_prev, start_of, vma_lookup};
pub(super) use iter::{
    vma_find, vma_iter_clear_gfp, vma_iter_config, vma_iter_load, vma_iter_next_range, vma_iter_next_rewind,
    vma_iter_prealloc, vma_iter_prev_range, vma_iter_store, vma_iter_store_gfp, vma_iter_store_new, vma_next, vma_prev,
    vma_prev_limit,
};
pub use merge::{
    VmaMerge, sticky_flags, vma_merge_existing_range, vma_merge_extend, vma_merge_new_range, vma_modified_flags,
    vma_modify_flags, vma_modify_flags_name,
};
pub use munmap::{
    VmaMunmap, can_modify_vma, do_vmi_align_munmap, do_vmi_munmap, vms_abort_munmap_vmas, vms_clean_up_area,
    vms_complete_munmap_vmas, vms_gather_munmap_vmas,
};

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{
    CAP_IPC_LOCK, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, VM_EXEC, VM_LOCKED, VM_SHARED, VM_STACK, VM_WRITE, VmaFields,
};
use super::rmap::{anon_vma_clone, unlink_anon_vmas};
use super::vma_init::{vm_area_dup, vm_area_free};
use super::vma_lock::VmaLock;
use super::vmstat::VmEvent;
use crate::arch::Relaxed;
use crate::arch::arena::PAGE_SHIFT;
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_destroy};
use file::{has_file, vma_close, vma_fput, vma_get_file, vma_link_file};
use merge::{VmaPrepare, vma_complete, vma_prepare};

/// `is_exec_mapping()`: executable, not writable, no stack.
#[inline(always)]
pub(super) fn is_exec_mapping(flags: u64) -> bool {
    flags & (VM_EXEC | VM_WRITE | VM_STACK) == VM_EXEC
}

/// `is_stack_mapping()`
#[inline(always)]
pub(super) fn is_stack_mapping(flags: u64) -> bool {
    flags & VM_STACK == VM_STACK
}

/// `is_data_mapping()`: writable, private, no stack.
#[inline(always)]
pub(super) fn is_data_mapping(flags: u64) -> bool {
    flags & (VM_WRITE | VM_SHARED | VM_STACK) == VM_WRITE
}

/// `vma_is_anonymous()`: private memory without a file.
#[inline(always)]
pub fn vma_is_anonymous<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.vm_ops().load(Relaxed) == 0
}

/// `may_expand_vm()`: whether `npages` more pages with `flags` are within the limits on address space and data.
#[inline]
pub fn may_expand_vm<K: Kconfig>(mm: MmPtr<K>, flags: u64, npages: u64) -> bool {
    if mm.total_vm.load(Relaxed).saturating_add(npages) > mm.rlimit(RLIMIT_AS) >> PAGE_SHIFT {
        return false;
    }
    if is_data_mapping(flags) {
        let data = mm.data_vm.get().saturating_add(npages);
        if data > mm.rlimit(RLIMIT_DATA) >> PAGE_SHIFT {
            // A tool that sets the soft limit to nothing means "ask me", not "none".
            return mm.rlimit(RLIMIT_DATA) == 0 && data <= mm.rlim[RLIMIT_DATA].1.get() >> PAGE_SHIFT;
        }
    }
    true
}

/// `mlock_future_ok()`: whether `bytes` more with `flags` are within the limit on locked memory.
#[inline]
pub fn mlock_future_ok<K: Kconfig>(mm: MmPtr<K>, flags: u64, bytes: u64) -> bool {
    flags & VM_LOCKED == 0
        || mm.capable(CAP_IPC_LOCK)
        || (bytes >> PAGE_SHIFT).saturating_add(mm.locked_vm.get()) <= mm.rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT
}

/// `vm_stat_account()`: `npages` (possibly fewer than none) pages with `flags` came.
#[inline]
pub fn vm_stat_account<K: Kconfig>(mm: MmPtr<K>, flags: u64, npages: i64) {
    mm.total_vm.store(mm.total_vm.load(Relaxed).wrapping_add_signed(npages), Relaxed);
    let counter = if is_exec_mapping(flags) {
        &mm.exec_vm
    } else if is_stack_mapping(flags) {
        &mm.stack_vm
    } else if is_data_mapping(flags) {
        &mm.data_vm
    } else {
        return;
    };
    counter.set(counter.get().wrapping_add_signed(npages));
}

/// `vma_set_range()`
///
/// Before the VMA is attached, or write-locked.
pub fn vma_set_range<K: Kconfig>(vma: VmaPtr<K>, start: u64, end: u64, pgoff: u64) {
    // ORDER: relaxed: reach a reader by the attach's release (E1) or by the section's end (E2).
    vma.vm_start().store(start, Relaxed);
    vma.vm_end().store(end, Relaxed);
    vma.vm_pgoff().store(pgoff, Relaxed);
}

/// Moves a VMA's page offsets to those of an address `pages` further in.
fn vma_advance_pgoff<K: Kconfig>(vma: VmaPtr<K>, pages: u64) {
    vma.vm_pgoff().store(vma.vm_pgoff().load(Relaxed).wrapping_add(pages), Relaxed);
    if has_file::<K>(vma) {
        vma.anon_pgoff().store(vma.anon_pgoff().load(Relaxed).wrapping_add(pages), Relaxed);
    }
}

/// `__split_vma()`: a new VMA takes `[start, addr)` (`new_below`) or `[addr, end)`; the original keeps the rest, and
/// the cursor stands on it. Without the check of [`split_vma`].
///
/// # Errors
/// `ENOMEM`, with nothing changed.
pub fn __split_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    addr: u64,
    new_below: bool,
) -> Result<(), Errno> {
    let new = vm_area_dup(cpu, k, vma).ok_or(Errno::ENOMEM)?;
    let offset = (addr - start_of::<K>(vma)) >> PAGE_SHIFT;
    if new_below {
        new.vm_end().store(addr, Relaxed);
    } else {
        new.vm_start().store(addr, Relaxed);
        vma_advance_pgoff::<K>(new, offset);
    }
    vma_iter_config::<K>(mas, start_of::<K>(new), end_of::<K>(new));
    if let Err(e) = vma_iter_prealloc::<K>(cpu, mas, new) {
        vm_area_free::<K>(cpu, new);
        return Err(e);
    }
    if let Err(e) = anon_vma_clone(cpu, k, new, vma) {
        mas_destroy(cpu, mas);
        vm_area_free::<K>(cpu, new);
        return Err(e);
    }
    if has_file::<K>(new) {
        vma_get_file(cpu, k, new);
    }
    K::Lock::vma_start_write(cpu, vma);
    K::Lock::vma_start_write(cpu, new);
    let mut vp = VmaPrepare::new(vma);
    vp.insert = Some(new);
    vma_prepare(cpu, &vp);
    if new_below {
        vma.vm_start().store(addr, Relaxed);
        vma_advance_pgoff::<K>(vma, offset);
    } else {
        vma.vm_end().store(addr, Relaxed);
    }
    vma_complete(cpu, k, mm, mas, &vp);
    cpu.count(VmEvent::VmaSplit);
    // Back to what is left of the original.
    if new_below {
        vma_next::<K>(cpu, mas);
    } else {
        vma_prev::<K>(cpu, mas);
    }
    Ok(())
}

/// `split_vma()`: [`__split_vma`] within `max_map_count`.
///
/// # Errors
/// `ENOMEM`, with nothing changed.
pub fn split_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    addr: u64,
    new_below: bool,
) -> Result<(), Errno> {
    if mm.map_count.get() >= k.max_map_count {
        return Err(Errno::ENOMEM);
    }
    __split_vma(cpu, k, mm, mas, vma, addr, new_below)
}

/// `vma_link()`: puts a VMA that has its range into the tree.
///
/// # Errors
/// `ENOMEM`, with nothing changed.
fn vma_link<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vma: VmaPtr<K>) -> Result<(), Errno> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    vma_iter_config::<K>(&mut mas, start_of::<K>(vma), end_of::<K>(vma));
    vma_iter_prealloc::<K>(cpu, &mut mas, vma)?;
    K::Lock::vma_start_write(cpu, vma);
    vma_iter_store_new::<K>(cpu, &mut mas, vma);
    vma_link_file::<K>(cpu, vma);
    mm.map_count.set(mm.map_count.get() + 1);
    Ok(())
}

/// `copy_vma()`: a mapping of `len` bytes at `addr` (a hole) with the attributes of `vma`, for pages that mremap is
/// about to move there: merged into a neighbour if that fits, else a VMA of its own. Gives it, and whether the move
/// needs the rmap locks. `pgoff` is the page offset of the first byte; an unfaulted anonymous source takes that of the
/// new place instead. `keep_source`: the source stays (`MREMAP_DONTUNMAP`), so the copy is not merged into it unless
/// the kernel's rules say so; where it was, `vma` becomes the merged one.
///
/// `None`: out of memory, or the place is taken.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
pub fn copy_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: &mut VmaPtr<K>,
    addr: u64,
    len: u64,
    mut pgoff: u64,
    keep_source: bool,
) -> Option<(VmaPtr<K>, bool)> {
    let source = *vma;
    let unfaulted = source.anon_vma().load(Relaxed).is_null();
    let mut m = VmaMerge::vma_state(None, source, addr, addr + len);
    let anon_source = unfaulted && vma_is_anonymous::<K>(source);
    if anon_source {
        pgoff = addr >> PAGE_SHIFT;
    }
    let source_pages = pgoff.wrapping_sub(source.vm_pgoff().load(Relaxed));
    m.anon_pgoff =
        if unfaulted { addr >> PAGE_SHIFT } else { source.anon_pgoff().load(Relaxed).wrapping_add(source_pages) };
    m.middle = None;
    m.copied_from = Some(source);
    m.pgoff = pgoff;
    let (at, prev) = find_vma_prev(cpu, k, mm, addr);
    if at.is_some_and(|v| start_of::<K>(v) < addr + len) {
        return None;
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    m.prev = prev;
    m.next = vma_iter_next_rewind::<K>(cpu, &mut mas).0;
    if anon_source && keep_source && !k.rules.dontunmap_merges_source {
        m.prev = m.prev.filter(|p: &VmaPtr<K>| p.as_ptr() != source.as_ptr());
        m.next = m.next.filter(|n: &VmaPtr<K>| n.as_ptr() != source.as_ptr());
    }
    let source_start = start_of::<K>(source);
    if let Ok(Some(new)) = vma_merge_new_range(cpu, k, mm, &mut mas, &m) {
        if (start_of::<K>(new)..end_of::<K>(new)).contains(&source_start) {
            *vma = new;
        }
        let locks = new.vm_pgoff().load(Relaxed) <= vma.vm_pgoff().load(Relaxed);
        return Some((new, locks));
    }
    let new = vm_area_dup(cpu, k, source)?;
    vma_set_range::<K>(new, addr, addr + len, pgoff);
    new.anon_pgoff().store(m.anon_pgoff, Relaxed);
    if anon_vma_clone(cpu, k, new, source).is_err() {
        vm_area_free::<K>(cpu, new);
        return None;
    }
    let file = has_file::<K>(new);
    if file {
        vma_get_file(cpu, k, new);
    }
    if vma_link(cpu, k, mm, new).is_err() {
        vma_close(cpu, k, new);
        if file {
            vma_fput(cpu, k, new);
        }
        unlink_anon_vmas(cpu, k, new);
        vm_area_free::<K>(cpu, new);
        return None;
    }
    Some((new, false))
}
