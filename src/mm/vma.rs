// SPDX-License-Identifier: GPL-2.0-only
//! Operations on VMAs: splitting, merging, taking a range out of the address space [mm/vma.c, mm/vma.h, 6.12].
//!
//! dup: which object survives each operation (a partial unmap frees the ORIGINAL), the order of write-locking,
//! changing, storing, detaching and freeing, the side tree of a removal, the downgrade before zapping. The merge rules
//! are 6.12's in every named kernel, 7.3's differ for a VMA whose neighbour is the only faulted one (vma-ops.md 5.1).
//! One cursor goes through each operation, from the first look to the store, as the kernel's iterator does; a store
//! behind it starts where it stands.
//! custom: the page tables of a removed range are freed in one sweep instead of one per VMA; the same tables go.
//! stub: files, policies, userfaultfd, names, accounting limits.
//!
//! INVARIANT: all functions here run under `mmap_lock` for write unless they say otherwise. A VMA is attached (in the
//! protocol's sense) exactly while it is in the main tree, but for the moment in which a section moves it.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::memory::MmuGather;
use super::mm_types::{
    DEFAULT_MAX_MAP_COUNT, TASK_SIZE, VM_GROWSDOWN, VM_SHARED, VM_SPECIAL, VM_WRITE, VmaFields, vma_pages,
};
use super::mmap_lock::{mmap_read_unlock, mmap_write_downgrade, mmap_write_unlock, vma_of_entry};
use super::pgtable::{free_pgd_range, unmap_single_vma};
use super::rmap::{anon_vma_clone, anon_vma_lock_write, anon_vma_unlock_write, unlink_anon_vmas, vma_anon_vma};
use super::vma_init::{vm_area_dup, vm_area_free};
use super::vma_lock::VmaLock;
use super::vmstat::VmEvent;
use crate::arch::Relaxed;
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{
    __mas_set_range, MT_FLAGS_LOCK_EXTERN, MaState, MaStatus, MapleTree, mas_find, mas_next_range, mas_pause,
    mas_preallocate, mas_prev, mas_prev_range, mas_set, mas_set_range, mas_store_gfp, mas_store_prealloc, mt_destroy,
};

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

/// `is_data_mapping()`: writable, private, no stack.
#[inline(always)]
pub(super) fn is_data_mapping(flags: u64) -> bool {
    flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE
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

/// `vma_find()`: the first VMA below `max` at or after a fresh cursor's address; then, each time, the next one.
pub(super) fn vma_find<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, max: u64) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_find(cpu, vmi, max - 1)) }
}

/// `vma_next()`: as [`vma_find`] without a limit.
pub(super) fn vma_next<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_find(cpu, vmi, u64::MAX)) }
}

/// `vma_prev()`: the VMA before the cursor's.
pub(super) fn vma_prev<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>) -> Option<VmaPtr<K>> {
    vma_prev_limit::<K>(cpu, vmi, 0)
}

/// `vma_prev_limit()`: the VMA before the cursor's, if it reaches beyond `min`.
pub(super) fn vma_prev_limit<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, min: u64) -> Option<VmaPtr<K>> {
    // SAFETY: under mmap_lock.
    unsafe { vma_of_entry::<K>(mas_prev(cpu, vmi, min)) }
}

/// `vma_iter_next_rewind()`: the VMAs behind and before a hole; leaves the cursor on the hole.
pub(super) fn vma_iter_next_rewind<K: Kconfig>(
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
pub(super) fn vma_iter_config<K: Kconfig>(vmi: &mut MaState<'_, K::A>, start: u64, end: u64) {
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
pub(super) fn vma_iter_store<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, vma: VmaPtr<K>) {
    vma_iter_at::<K>(vmi, vma);
    mas_store_prealloc(cpu, vmi, vma.as_ptr().cast());
}

/// `vma_iter_store_gfp()`
///
/// # Errors
/// `ENOMEM`
pub(super) fn vma_iter_store_gfp<K: Kconfig>(
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
fn vma_iter_clear_gfp<K: Kconfig>(
    cpu: &Cpu<K::A>,
    vmi: &mut MaState<'_, K::A>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    vma_iter_config::<K>(vmi, start, end);
    mas_store_gfp(cpu, vmi, std::ptr::null_mut())
}

/// `vma_iter_store_new()`: attaches and stores after a preallocation for the VMA's range.
pub(super) fn vma_iter_store_new<K: Kconfig>(cpu: &Cpu<K::A>, vmi: &mut MaState<'_, K::A>, vma: VmaPtr<K>) {
    // Attached first: the store cannot fail, and a reader that finds the VMA is stopped by vm_lock_seq until the
    // section ends.
    K::Lock::vma_mark_attached(cpu, vma);
    vma_iter_store::<K>(cpu, vmi, vma);
}

/// `struct vma_merge_struct`: a range that is to become part of the address space, and its neighbours.
pub struct VmaMerge<K: Kconfig> {
    /// VMA before the range.
    pub prev: Option<VmaPtr<K>>,
    /// VMA behind the range.
    pub next: Option<VmaPtr<K>>,
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// Flags.
    pub flags: u64,
    /// Page offset of `start`.
    pub pgoff: u64,
    /// Only the VMA before may be extended (brk).
    pub just_expand: bool,
}

/// `is_mergeable_anon_vma()` with the range's anon_vma null, as it is for every new range.
fn mergeable_anon_vma<K: Kconfig>(neighbour: VmaPtr<K>) -> bool {
    neighbour.anon_vma().load(Relaxed).is_null() || neighbour.anon_vma_chain().is_singular()
}

/// `can_vma_merge_left()`
fn can_vma_merge_left<K: Kconfig>(m: &VmaMerge<K>) -> bool {
    m.prev.is_some_and(|p| {
        end_of::<K>(p) == m.start
            && p.vm_flags().load(Relaxed) == m.flags
            && mergeable_anon_vma::<K>(p)
            && p.vm_pgoff().load(Relaxed) + vma_pages::<K::A, K::Lock>(&p) == m.pgoff
    })
}

/// `can_vma_merge_right()`
fn can_vma_merge_right<K: Kconfig>(m: &VmaMerge<K>, can_merge_left: bool) -> bool {
    let Some(n) = m.next else { return false };
    if start_of::<K>(n) != m.end
        || n.vm_flags().load(Relaxed) != m.flags
        || !mergeable_anon_vma::<K>(n)
        || n.vm_pgoff().load(Relaxed) != m.pgoff + ((m.end - m.start) >> PAGE_SHIFT)
    {
        return false;
    }
    if !can_merge_left {
        return true;
    }
    // Both fit the range; they must also fit each other.
    m.prev.is_some_and(|p| {
        let (a, b) = (p.anon_vma().load(Relaxed), n.anon_vma().load(Relaxed));
        a.is_null() || b.is_null() || a == b
    })
}

/// `vma_merge_new_range()`: extends a neighbour over the range, or both become one. `None`: nothing fits.
///
/// # Errors
/// `ENOMEM`, with nothing changed (`vmg_nomem()`).
pub fn vma_merge_new_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    m: &VmaMerge<K>,
) -> Result<Option<VmaPtr<K>>, Errno> {
    if m.flags & VM_SPECIAL != 0 {
        return Ok(None);
    }
    let left = can_vma_merge_left(m);
    let right = !m.just_expand && can_vma_merge_right(m, left);
    let (mut vma, mut start, mut end, mut pgoff) = (None, m.start, m.end, m.pgoff);
    if let (true, Some(n)) = (right, m.next) {
        end = end_of::<K>(n);
        vma = Some(n);
        pgoff = n.vm_pgoff().load(Relaxed) - ((m.end - m.start) >> PAGE_SHIFT);
    }
    if let (true, Some(p)) = (left, m.prev) {
        start = start_of::<K>(p);
        vma = Some(p);
        pgoff = p.vm_pgoff().load(Relaxed);
        // The store begins at the VMA before, where brk stands already.
        if !m.just_expand {
            vma_prev::<K>(cpu, mas);
        }
    }
    let Some(vma) = vma else { return Ok(None) };
    let remove = if left && right { m.next } else { None };
    vma_expand(cpu, k, mm, mas, vma, start, end, pgoff, remove)?;
    cpu.count(VmEvent::VmaMerge);
    Ok(Some(vma))
}

/// `vma_expand()` and `commit_merge()`: `vma` gets the larger range, `remove` disappears into it.
///
/// # Errors
/// `ENOMEM`, with nothing changed.
#[expect(clippy::too_many_arguments, reason = "the kernel packs them into a structure of the same fields")]
fn vma_expand<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    pgoff: u64,
    remove: Option<VmaPtr<K>>,
) -> Result<(), Errno> {
    K::Lock::vma_start_write(cpu, vma);
    let mut anon_dup = false;
    if let Some(next) = remove {
        K::Lock::vma_start_write(cpu, next);
        // dup_anon_vma(): the survivor takes over pages that hang on the other's anon_vma.
        if vma.anon_vma().load(Relaxed).is_null() && !next.anon_vma().load(Relaxed).is_null() {
            // ORDER: relaxed: both are write-locked, so no fault looks; later ones are ordered by E2.
            vma.anon_vma().store(next.anon_vma().load(Relaxed), Relaxed);
            anon_vma_clone(cpu, k, vma, next)?;
            anon_dup = true;
        }
    }
    vma_iter_config::<K>(mas, start, end);
    if let Err(e) = mas_preallocate(cpu, mas, vma.as_ptr().cast()) {
        if anon_dup {
            unlink_anon_vmas(cpu, k, vma);
        }
        return Err(e);
    }
    // vma_prepare(): rmap walkers must not see a range that changes.
    let anon_vma = vma_anon_vma::<K>(vma);
    if let Some(av) = anon_vma {
        anon_vma_lock_write(cpu, &*av);
    }
    vma_set_range::<K>(vma, start, end, pgoff);
    vma_iter_store::<K>(cpu, mas, vma);
    if let Some(av) = anon_vma {
        anon_vma_unlock_write(cpu, &*av);
    }
    if let Some(next) = remove {
        K::Lock::vma_mark_detached(cpu, next);
        if !next.anon_vma().load(Relaxed).is_null() {
            unlink_anon_vmas(cpu, k, next);
        }
        mm.map_count.set(mm.map_count.get() - 1);
        vm_area_free::<K>(cpu, next);
    }
    Ok(())
}

/// `__split_vma()`: a new VMA takes `[start, addr)` (`new_below`) or `[addr, end)`; the original keeps the rest, and
/// the cursor stands on it.
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
        new.vm_pgoff().store(vma.vm_pgoff().load(Relaxed) + offset, Relaxed);
    }
    vma_iter_config::<K>(mas, start_of::<K>(new), end_of::<K>(new));
    if let Err(e) = mas_preallocate(cpu, mas, new.as_ptr().cast()) {
        vm_area_free::<K>(cpu, new);
        return Err(e);
    }
    if let Err(e) = anon_vma_clone(cpu, k, new, vma) {
        crate::maple_tree::mas_destroy(cpu, mas);
        vm_area_free::<K>(cpu, new);
        return Err(e);
    }
    K::Lock::vma_start_write(cpu, vma);
    K::Lock::vma_start_write(cpu, new);
    let anon_vma = vma_anon_vma::<K>(vma);
    if let Some(av) = anon_vma {
        anon_vma_lock_write(cpu, &*av);
    }
    if new_below {
        vma.vm_start().store(addr, Relaxed);
        vma.vm_pgoff().store(vma.vm_pgoff().load(Relaxed) + offset, Relaxed);
    } else {
        vma.vm_end().store(addr, Relaxed);
    }
    vma_iter_store_new::<K>(cpu, mas, new);
    mm.map_count.set(mm.map_count.get() + 1);
    if let Some(av) = anon_vma {
        anon_vma_unlock_write(cpu, &*av);
    }
    cpu.count(VmEvent::VmaSplit);
    // Back to what is left of the original.
    if new_below {
        vma_next::<K>(cpu, mas);
    } else {
        vma_prev::<K>(cpu, mas);
    }
    Ok(())
}

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
    /// Those that counted as data.
    pub data_vm: u64,
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
            data_vm: 0,
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

/// `reattach_vmas()`: a removal that failed puts its VMAs back.
fn reattach_vmas<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vms: &VmaMunmap<K>) {
    vms.for_each(cpu, k, None, |vma| K::Lock::vma_mark_attached(cpu, vma));
    mt_destroy(cpu, k.maple, &vms.detached);
}

/// `vms_gather_munmap_vmas()`: splits at the edges, write-locks and detaches what is in the range. `first` is the
/// first VMA that overlaps it.
///
/// # Errors
/// `ENOMEM`; splits already done stay.
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
        __split_vma(cpu, k, mm, mas, first, vms.start, true)?;
    }
    vms.prev = vma_prev::<K>(cpu, mas);
    let mut side = MaState::new(&vms.detached, k.maple, 0, 0);
    let mut result = Ok(());
    while let Some(vma) = vma_find::<K>(cpu, mas, vms.end) {
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
        if is_data_mapping(vma.vm_flags().load(Relaxed)) {
            vms.data_vm += pages;
        }
    }
    if result.is_err() {
        reattach_vmas(cpu, k, vms);
        return result;
    }
    vms.next = vma_next::<K>(cpu, mas);
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
    vms.for_each(cpu, k, vms.vma, |vma| unmap_single_vma(cpu, k, mm, &mut tlb, start_of::<K>(vma), end_of::<K>(vma)));
    // free_pgtables()
    vms.for_each(cpu, k, vms.vma, |vma| unlink_anon_vmas(cpu, k, vma));
    let floor = vms.prev.map_or(0, end_of::<K>);
    let ceiling = vms.next.map_or(u64::MAX, start_of::<K>);
    free_pgd_range(cpu, k, mm, &mut tlb, vms.start, vms.end, floor, ceiling);
    tlb.finish(cpu, k);
    vms.clear_ptes = false;
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
    if unlock {
        // Ends every VMA write lock: readers may find the neighbours again.
        mmap_write_downgrade(cpu, &*mm);
    }
    if vms.nr_pages == 0 {
        return;
    }
    vms_clear_ptes(cpu, k, mm, vms);
    mm.total_vm.store(mm.total_vm.load(Relaxed) - vms.nr_pages, Relaxed);
    mm.data_vm.set(mm.data_vm.get() - vms.data_vm);
    vms.for_each(cpu, k, None, |vma| vm_area_free::<K>(cpu, vma));
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
/// `ENOMEM`
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
/// `EINVAL`, `ENOMEM`
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

const _: () = assert!(DEFAULT_MAX_MAP_COUNT == 65530);
