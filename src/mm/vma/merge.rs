// SPDX-License-Identifier: GPL-2.0-only
//! When neighbours become one VMA, and how [mm/vma.c, mm/vma.h, 6.12; conditions of 6.18 and 7.3 by
//! [`MmRules`]].
//!
//! dup: every condition and their order, which object survives, the boundary that moves without an allocation, the
//! order of locks (the file's, then the anon_vma's), what an attempt without memory leaves. custom: C says "no merge"
//! and "no memory" with a state in the structure, here the result says it. stub: `give_up_on_oom` (userfaultfd only),
//! splitting of huge pages at the border, uprobes.
//!
//! INVARIANT: the survivor's anon_vma covers all pages of the merged range: where only a VMA that disappears or
//! shrinks has one, its chain is cloned first.

use super::file::{
    __remove_shared_vm_struct, __vma_link_file, has_file, i_mmap_lock, i_mmap_unlock, vma_fput,
    vma_interval_tree_insert, vma_interval_tree_remove,
};
use super::{
    end_of, split_vma, start_of, vma_iter_config, vma_iter_load, vma_iter_next_range, vma_iter_next_rewind,
    vma_iter_prealloc, vma_iter_prev_range, vma_iter_store, vma_iter_store_new, vma_prev, vma_set_range,
};
use crate::arch::Relaxed;
use crate::arch::arena::{KRef, PAGE_SHIFT};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_set};
use crate::mm::kconfig::{Kconfig, MmPtr, VmaPtr};
use crate::mm::mm_types::{VM_OPS_CLOSE, VM_SHARED, VM_SPECIAL, VM_STICKY, VmaFields, vma_pages};
use crate::mm::rmap::{
    AnonVma, anon_vma_clone, anon_vma_lock_write, anon_vma_unlock_write, unlink_anon_vmas, vma_anon_vma,
};
use crate::mm::rules::MmRules;
use crate::mm::vma_init::vm_area_free;
use crate::mm::vma_lock::VmaLock;
use crate::mm::vmstat::VmEvent;
use std::ptr::null_mut;

/// `struct vma_merge_struct`: a range that is to become part of the address space, or to get other attributes, and its
/// neighbours.
pub struct VmaMerge<K: Kconfig> {
    /// VMA before the range.
    pub prev: Option<VmaPtr<K>>,
    /// The VMA whose attributes change; none for a new range.
    pub middle: Option<VmaPtr<K>>,
    /// VMA behind the range.
    pub next: Option<VmaPtr<K>>,
    /// The VMA that a new range is a copy of (mremap).
    pub copied_from: Option<VmaPtr<K>>,
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// Flags.
    pub flags: u64,
    /// Page offset of `start`.
    pub pgoff: u64,
    /// Virtual page number of `start` at creation; looked at for private file mappings of 7.3.
    pub anon_pgoff: u64,
    /// File, as a word.
    pub file: u64,
    /// anon_vma of the pages in the range.
    pub anon_vma: *mut AnonVma<K::A>,
    /// Anonymous name, as a word.
    pub name: u64,
    /// Memory policy, as a word.
    pub policy: u64,
    /// userfaultfd context, as a word.
    pub uffd: u64,
    /// Only the VMA before may be extended (brk).
    pub just_expand: bool,
}

impl<K: Kconfig> VmaMerge<K> {
    /// `VMG_STATE()`: a new range between two neighbours, anonymous and never faulted.
    #[inline]
    pub fn new_range(
        prev: Option<VmaPtr<K>>,
        next: Option<VmaPtr<K>>,
        start: u64,
        end: u64,
        flags: u64,
        pgoff: u64,
    ) -> Self {
        VmaMerge {
            prev,
            middle: None,
            next,
            copied_from: None,
            start,
            end,
            flags,
            pgoff,
            anon_pgoff: start >> PAGE_SHIFT,
            file: 0,
            anon_vma: null_mut(),
            name: 0,
            policy: 0,
            uffd: 0,
            just_expand: false,
        }
    }

    /// `VMG_VMA_STATE()`: `[start, end)` with the attributes of `vma`.
    pub fn vma_state(prev: Option<VmaPtr<K>>, vma: VmaPtr<K>, start: u64, end: u64) -> Self {
        // vma_pgoff_offset(); the range may also lie behind the VMA (an extension).
        let pages = start.wrapping_sub(start_of::<K>(vma)) >> PAGE_SHIFT;
        VmaMerge {
            prev,
            middle: Some(vma),
            next: None,
            copied_from: None,
            start,
            end,
            flags: vma.vm_flags().load(Relaxed),
            pgoff: vma.vm_pgoff().load(Relaxed).wrapping_add(pages),
            anon_pgoff: vma.anon_pgoff().load(Relaxed).wrapping_add(pages),
            file: vma.vm_file().load(Relaxed),
            anon_vma: vma.anon_vma().load(Relaxed),
            name: vma.anon_name().load(Relaxed),
            policy: vma.vm_policy().load(Relaxed),
            uffd: vma.userfaultfd_ctx().load(Relaxed),
            just_expand: false,
        }
    }

    #[inline(always)]
    fn pages(&self) -> u64 {
        (self.end - self.start) >> PAGE_SHIFT
    }
}

/// `VM_STICKY` of a kernel: flags whose difference does not keep VMAs apart.
///
/// PORT: `VM_SOFTDIRTY`, the other one, is not configured.
#[inline(always)]
pub fn sticky_flags(rules: &MmRules) -> u64 {
    if rules.maybe_guard_flag { VM_STICKY } else { 0 }
}

/// The flags that a range gets which `vma_modify_flags()` made `vma` of: `new_flags` and the sticky ones that `vma`
/// kept from a merge.
#[inline(always)]
pub fn vma_modified_flags<K: Kconfig>(k: &Kernel<K>, vma: VmaPtr<K>, new_flags: u64) -> u64 {
    new_flags | vma.vm_flags().load(Relaxed) & sticky_flags(&k.rules)
}

/// `is_mergeable_vma()`
#[inline]
fn is_mergeable_vma<K: Kconfig>(k: &Kernel<K>, m: &VmaMerge<K>, n: VmaPtr<K>) -> bool {
    m.policy == n.vm_policy().load(Relaxed)
        && (n.vm_flags().load(Relaxed) ^ m.flags) & !sticky_flags(&k.rules) == 0
        && n.vm_file().load(Relaxed) == m.file
        && n.userfaultfd_ctx().load(Relaxed) == m.uffd
        && n.anon_name().load(Relaxed) == m.name
}

/// Whether a faulted VMA has anon_vmas of a parent process (`vma_is_fork_child()`).
fn vma_is_fork_child<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    !vma.anon_vma().load(Relaxed).is_null() && !vma.anon_vma_chain().is_singular()
}

/// `is_mergeable_anon_vma()`: whether the range may become part of `n` as far as their pages' anon_vmas go. VMAs with
/// more than one link are left alone, so that a child's faults do not meet on an anon_vma of its parent.
#[inline]
fn is_mergeable_anon_vma<K: Kconfig>(k: &Kernel<K>, m: &VmaMerge<K>, n: VmaPtr<K>) -> bool {
    let theirs = n.anon_vma().load(Relaxed);
    if theirs == m.anon_vma {
        return true;
    }
    if !theirs.is_null() && !m.anon_vma.is_null() {
        return false;
    }
    if !k.rules.merge_faulted_with_unfaulted {
        // 6.12 looks at the neighbour's chain only, and an empty one is not singular.
        return n.anon_vma_chain().is_singular();
    }
    if theirs.is_null() {
        !m.middle.is_some_and(vma_is_fork_child::<K>) && !m.copied_from.is_some_and(vma_is_fork_child::<K>)
    } else {
        !vma_is_fork_child::<K>(n)
    }
}

/// Whether page offsets go on from `before` to `behind`, and where the rules ask for it those at creation as well.
#[inline(always)]
fn linear<K: Kconfig>(k: &Kernel<K>, m: &VmaMerge<K>, before: (u64, u64), pages: u64, behind: (u64, u64)) -> bool {
    before.0.wrapping_add(pages) == behind.0
        && (m.file == 0 || !k.rules.anon_pgoff || m.flags & VM_SHARED != 0 || before.1.wrapping_add(pages) == behind.1)
}

#[inline(always)]
fn pgoffs<K: Kconfig>(v: VmaPtr<K>) -> (u64, u64) {
    (v.vm_pgoff().load(Relaxed), v.anon_pgoff().load(Relaxed))
}

/// `can_vma_merge_left()` and `can_vma_merge_after()`
fn can_vma_merge_left<K: Kconfig>(k: &Kernel<K>, m: &VmaMerge<K>) -> bool {
    m.prev.is_some_and(|p| {
        end_of::<K>(p) == m.start
            && is_mergeable_vma(k, m, p)
            && is_mergeable_anon_vma(k, m, p)
            && linear(k, m, pgoffs::<K>(p), vma_pages::<K::A, K::Lock>(&p), (m.pgoff, m.anon_pgoff))
    })
}

/// `can_vma_merge_right()` and `can_vma_merge_before()`
fn can_vma_merge_right<K: Kconfig>(k: &Kernel<K>, m: &VmaMerge<K>, can_merge_left: bool) -> bool {
    let Some(n) = m.next else { return false };
    if start_of::<K>(n) != m.end
        || !is_mergeable_vma(k, m, n)
        || !is_mergeable_anon_vma(k, m, n)
        || !linear(k, m, (m.pgoff, m.anon_pgoff), m.pages(), pgoffs::<K>(n))
    {
        return false;
    }
    if !can_merge_left {
        return true;
    }
    // Both fit the range; they must also fit each other (are_anon_vmas_compatible()).
    m.prev.is_some_and(|p| {
        let (a, b) = (p.anon_vma().load(Relaxed), n.anon_vma().load(Relaxed));
        a.is_null() || b.is_null() || a == b
    })
}

/// `can_merge_remove_vma()`: a VMA with a close hook cannot disappear without its owner's knowing.
#[inline(always)]
fn can_merge_remove_vma<K: Kconfig>(vma: VmaPtr<K>) -> bool {
    vma.vm_ops().load(Relaxed) & VM_OPS_CLOSE == 0
}

/// `struct vma_prepare`: what is locked while ranges change.
pub(super) struct VmaPrepare<K: Kconfig> {
    vma: VmaPtr<K>,
    adj_next: Option<VmaPtr<K>>,
    file: bool,
    anon_vma: Option<KRef<AnonVma<K::A>>>,
    /// A new VMA that is stored before the locks go.
    pub(super) insert: Option<VmaPtr<K>>,
    remove: Option<VmaPtr<K>>,
    remove2: Option<VmaPtr<K>>,
}

impl<K: Kconfig> VmaPrepare<K> {
    /// `init_vma_prep()`
    #[inline(always)]
    pub(super) fn new(vma: VmaPtr<K>) -> Self {
        VmaPrepare {
            vma,
            adj_next: None,
            file: has_file::<K>(vma),
            anon_vma: vma_anon_vma::<K>(vma),
            insert: None,
            remove: None,
            remove2: None,
        }
    }

    /// `init_multi_vma_prep()`
    #[inline(always)]
    fn multi(
        vma: VmaPtr<K>,
        adj_next: Option<VmaPtr<K>>,
        remove: Option<VmaPtr<K>>,
        remove2: Option<VmaPtr<K>>,
    ) -> Self {
        let mut vp = Self::new(vma);
        vp.anon_vma = vp.anon_vma.or_else(|| adj_next.and_then(vma_anon_vma::<K>));
        VmaPrepare { adj_next, remove, remove2, ..vp }
    }
}

/// `vma_prepare()`: rmap walkers must not see a range that changes.
pub(super) fn vma_prepare<K: Kconfig>(cpu: &Cpu<K::A>, vp: &VmaPrepare<K>) {
    if vp.file {
        i_mmap_lock::<K>(cpu, vp.vma);
        if let Some(insert) = vp.insert {
            __vma_link_file::<K>(insert);
        }
    }
    if let Some(av) = vp.anon_vma {
        anon_vma_lock_write(cpu, &*av);
    }
    if vp.file {
        vma_interval_tree_remove::<K>(vp.vma);
        if let Some(next) = vp.adj_next {
            vma_interval_tree_remove::<K>(next);
        }
    }
}

/// `vma_complete()`: unlocks, stores a VMA that a split made, frees those that a merge made superfluous.
pub(super) fn vma_complete<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vp: &VmaPrepare<K>,
) {
    if vp.file {
        if let Some(next) = vp.adj_next {
            vma_interval_tree_insert::<K>(next);
        }
        vma_interval_tree_insert::<K>(vp.vma);
    }
    if let (Some(remove), true) = (vp.remove, vp.file) {
        __remove_shared_vm_struct::<K>(remove);
        if let Some(remove2) = vp.remove2 {
            __remove_shared_vm_struct::<K>(remove2);
        }
    } else if let Some(insert) = vp.insert {
        vma_iter_store_new::<K>(cpu, mas, insert);
        mm.map_count.set(mm.map_count.get() + 1);
    }
    if let Some(av) = vp.anon_vma {
        anon_vma_unlock_write(cpu, &*av);
    }
    if vp.file {
        i_mmap_unlock::<K>(cpu, vp.vma);
    }
    for remove in [vp.remove, vp.remove2].into_iter().flatten() {
        K::Lock::vma_mark_detached(cpu, remove);
        if vp.file {
            vma_fput(cpu, k, remove);
        }
        if !remove.anon_vma().load(Relaxed).is_null() {
            // anon_vma_merge()
            unlink_anon_vmas(cpu, k, remove);
        }
        mm.map_count.set(mm.map_count.get() - 1);
        vm_area_free::<K>(cpu, remove);
    }
}

/// `dup_anon_vma()`: a VMA that takes over pages of another gets its anon_vma, if it has none. True if it did.
///
/// # Errors
/// `ENOMEM`, with nothing changed.
fn dup_anon_vma<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, dst: VmaPtr<K>, src: VmaPtr<K>) -> Result<bool, Errno> {
    let theirs = src.anon_vma().load(Relaxed);
    if theirs.is_null() || !dst.anon_vma().load(Relaxed).is_null() {
        return Ok(false);
    }
    // ORDER: relaxed: `dst` is write-locked, so no fault looks; later ones are ordered by E2.
    dst.anon_vma().store(theirs, Relaxed);
    anon_vma_clone(cpu, k, dst, src)?;
    Ok(true)
}

/// What [`commit_merge`] changes.
struct Commit<K: Kconfig> {
    /// Gets the range below.
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    pgoff: u64,
    /// Neighbour whose start moves by `adj_start` bytes.
    adjust: Option<VmaPtr<K>>,
    adj_start: i64,
    remove: Option<VmaPtr<K>>,
    remove2: Option<VmaPtr<K>>,
    /// Sticky flags of those that disappear or give pages away.
    sticky: u64,
    /// Who gets them.
    sticky_to: VmaPtr<K>,
    /// False only where `vma` shrinks and `adjust` grows downwards.
    expanded: bool,
}

/// `commit_merge()`
///
/// # Errors
/// `ENOMEM`, with nothing changed.
fn commit_merge<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    c: &Commit<K>,
) -> Result<(), Errno> {
    match c.adjust {
        Some(adjust) if !c.expanded => {
            vma_iter_config::<K>(mas, start_of::<K>(adjust).wrapping_add_signed(c.adj_start), end_of::<K>(adjust));
        }
        _ => vma_iter_config::<K>(mas, c.start, c.end),
    }
    vma_iter_prealloc::<K>(cpu, mas, c.vma)?;
    let vp = VmaPrepare::multi(c.vma, c.adjust, c.remove, c.remove2);
    vma_prepare(cpu, &vp);
    if vp.file {
        let pages = c.start.wrapping_sub(start_of::<K>(c.vma)) as i64 >> PAGE_SHIFT;
        let anon_pgoff = c.vma.anon_pgoff();
        anon_pgoff.store(anon_pgoff.load(Relaxed).wrapping_add_signed(pages), Relaxed);
    }
    vma_set_range::<K>(c.vma, c.start, c.end, c.pgoff);
    if c.expanded {
        vma_iter_store::<K>(cpu, mas, c.vma);
    }
    if let Some(adjust) = c.adjust {
        vma_move_start::<K>(adjust, c.adj_start);
        if c.adj_start < 0 {
            vma_iter_store::<K>(cpu, mas, adjust);
        }
    }
    if c.sticky != 0 {
        let flags = c.sticky_to.vm_flags();
        flags.store(flags.load(Relaxed) | c.sticky, Relaxed);
    }
    vma_complete(cpu, k, mm, mas, &vp);
    cpu.count(VmEvent::VmaMerge);
    Ok(())
}

/// Moves the start by `by` bytes and the page offsets with it.
fn vma_move_start<K: Kconfig>(vma: VmaPtr<K>, by: i64) {
    let pages = by >> PAGE_SHIFT;
    // ORDER: relaxed: the VMA is write-locked; as in vma_set_range().
    vma.vm_start().store(start_of::<K>(vma).wrapping_add_signed(by), Relaxed);
    vma.vm_pgoff().store(vma.vm_pgoff().load(Relaxed).wrapping_add_signed(pages), Relaxed);
    if has_file::<K>(vma) {
        vma.anon_pgoff().store(vma.anon_pgoff().load(Relaxed).wrapping_add_signed(pages), Relaxed);
    }
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
    if m.flags & VM_SPECIAL != 0 || (m.prev.is_none() && m.next.is_none()) {
        return Ok(None);
    }
    let left = can_vma_merge_left(k, m);
    let mut right = !m.just_expand && can_vma_merge_right(k, m, left);
    let (mut vma, mut start, mut end, mut pgoff) = (None, m.start, m.end, m.pgoff);
    if let (true, Some(n)) = (right, m.next) {
        end = end_of::<K>(n);
        vma = Some(n);
        pgoff = n.vm_pgoff().load(Relaxed).wrapping_sub(m.pages());
    }
    if let (true, Some(p)) = (left, m.prev) {
        start = start_of::<K>(p);
        vma = Some(p);
        pgoff = p.vm_pgoff().load(Relaxed);
        if right && !m.next.is_none_or(can_merge_remove_vma::<K>) {
            right = false;
            end = m.end;
        }
        // The store begins at the VMA before, where brk stands already.
        if !m.just_expand {
            vma_prev::<K>(cpu, mas);
        }
    }
    let Some(vma) = vma else { return Ok(None) };
    let remove = if left && right { m.next } else { None };
    vma_expand(cpu, k, mm, mas, vma, (start, end, pgoff), remove, m)?;
    Ok(Some(vma))
}

/// `vma_expand()`: `vma` gets the larger `range` (start, end, page offset), `remove` disappears into it.
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
    range: (u64, u64, u64),
    remove: Option<VmaPtr<K>>,
    m: &VmaMerge<K>,
) -> Result<(), Errno> {
    K::Lock::vma_start_write(cpu, vma);
    let mut anon_dup = false;
    let mut sticky = m.flags;
    if let Some(next) = remove {
        K::Lock::vma_start_write(cpu, next);
        anon_dup = dup_anon_vma(cpu, k, vma, next)?;
        sticky |= next.vm_flags().load(Relaxed);
    }
    // Only the newer conditions let a faulted copy go into an unfaulted neighbour.
    if let Some(from) = m.copied_from.filter(|_| k.rules.merge_faulted_with_unfaulted) {
        anon_dup |= dup_anon_vma(cpu, k, vma, from)?;
    }
    let (start, end, pgoff) = range;
    let c = Commit {
        vma,
        start,
        end,
        pgoff,
        adjust: None,
        adj_start: 0,
        remove,
        remove2: None,
        sticky: sticky & sticky_flags(&k.rules),
        sticky_to: vma,
        expanded: true,
    };
    commit_merge(cpu, k, mm, mas, &c).inspect_err(|_| {
        if anon_dup {
            unlink_anon_vmas(cpu, k, vma);
        }
    })
}

/// `vma_merge_existing_range()`: part of `m.middle` gets other attributes, by which it may fit its neighbours. The
/// cursor stands in `m.middle`; `m.next` is found here.
///
/// | the range is | fits | result |
/// |---|---|---|
/// | the whole VMA | both | left one extended over all, two freed |
/// | the whole VMA | one | that one extended, the VMA freed |
/// | its head | left | the border moves up |
/// | its tail | right | the border moves down |
///
/// # Errors
/// `ENOMEM`, with nothing changed.
pub fn vma_merge_existing_range<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    m: &mut VmaMerge<K>,
) -> Result<Option<VmaPtr<K>>, Errno> {
    let Some(vma) = m.middle else { return Ok(None) };
    let left_side = m.start == start_of::<K>(vma);
    let right_side = m.end == end_of::<K>(vma);
    if m.flags & VM_SPECIAL != 0 || (!left_side && !right_side) {
        return Ok(None);
    }
    let merge_left = left_side && can_vma_merge_left(k, m);
    let mut merge_right = false;
    if right_side {
        m.next = vma_iter_next_range::<K>(cpu, mas);
        vma_iter_prev_range::<K>(cpu, mas);
        merge_right = can_vma_merge_right(k, m, merge_left);
    }
    if merge_left {
        // The store begins there.
        vma_prev::<K>(cpu, mas);
    } else if !merge_right {
        return Ok(None);
    }
    // The range is the whole VMA: a merge deletes it.
    let delete_vma = left_side && right_side;
    if delete_vma && !can_merge_remove_vma::<K>(vma) {
        return Ok(None);
    }
    if merge_left && merge_right && !m.next.is_none_or(can_merge_remove_vma::<K>) {
        merge_right = false;
    }
    let (prev, next) = (m.prev.filter(|_| merge_left), m.next.filter(|_| merge_right));
    K::Lock::vma_start_write(cpu, vma);
    for v in [prev, next].into_iter().flatten() {
        K::Lock::vma_start_write(cpu, v);
    }
    let mut c = Commit {
        vma,
        start: m.start,
        end: m.end,
        pgoff: m.pgoff,
        adjust: None,
        adj_start: 0,
        remove: if delete_vma { Some(vma) } else { None },
        remove2: None,
        sticky: m.flags | vma.vm_flags().load(Relaxed),
        sticky_to: vma,
        expanded: true,
    };
    // The survivor, and the VMA whose anon_vma it may need.
    let (survivor, src) = match (prev, next) {
        (Some(prev), Some(next)) => {
            c.vma = prev;
            c.start = start_of::<K>(prev);
            c.end = end_of::<K>(next);
            c.pgoff = prev.vm_pgoff().load(Relaxed);
            c.remove2 = Some(next);
            c.sticky |= next.vm_flags().load(Relaxed);
            (prev, if next.anon_vma().load(Relaxed).is_null() { vma } else { next })
        }
        (Some(prev), None) => {
            c.vma = prev;
            c.start = start_of::<K>(prev);
            c.pgoff = prev.vm_pgoff().load(Relaxed);
            if !delete_vma {
                c.adjust = Some(vma);
                c.adj_start = (m.end - start_of::<K>(vma)) as i64;
            }
            (prev, vma)
        }
        (None, Some(next)) => {
            if delete_vma {
                c.vma = next;
                c.end = end_of::<K>(next);
                c.pgoff = next.vm_pgoff().load(Relaxed).wrapping_sub(m.pages());
            } else {
                // The one case in which the survivor is not the VMA that gets a range here, but the one adjusted.
                c.start = start_of::<K>(vma);
                c.end = m.start;
                c.pgoff = vma.vm_pgoff().load(Relaxed);
                c.adjust = Some(next);
                c.adj_start = -((end_of::<K>(vma) - m.start) as i64);
                c.expanded = false;
            }
            (next, vma)
        }
        (None, None) => return Ok(None),
    };
    c.sticky &= sticky_flags(&k.rules);
    c.sticky_to = survivor;
    let r = dup_anon_vma(cpu, k, survivor, src).and_then(|anon_dup| {
        commit_merge(cpu, k, mm, mas, &c).inspect_err(|_| {
            if anon_dup {
                unlink_anon_vmas(cpu, k, survivor);
            }
        })
    });
    if let Err(e) = r {
        mas_set(mas, m.start);
        vma_iter_load::<K>(cpu, mas);
        return Err(e);
    }
    Ok(Some(survivor))
}

/// `vma_modify()`: the VMA that is exactly the range, or a larger one that the range merged into; the caller gives it
/// its attributes.
///
/// # Errors
/// `ENOMEM`; a first split stays where the second one fails.
fn vma_modify<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    m: &mut VmaMerge<K>,
) -> Result<VmaPtr<K>, Errno> {
    let (start, end) = (m.start, m.end);
    if let Some(merged) = vma_merge_existing_range(cpu, k, mm, mas, m)? {
        return Ok(merged);
    }
    if start_of::<K>(vma) < start {
        split_vma(cpu, k, mm, mas, vma, start, true)?;
    }
    if end_of::<K>(vma) > end {
        split_vma(cpu, k, mm, mas, vma, end, false)?;
    }
    Ok(vma)
}

/// `vma_modify_flags()`: makes `[start, end)` of `vma` a VMA that may get `new_flags`, merged where it then fits. The
/// cursor stands in `vma`; `prev` is the VMA before the range, which is `vma` itself where the range begins inside.
/// The caller stores [`vma_modified_flags`].
///
/// # Errors
/// `ENOMEM`; a first split stays where the second one fails.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
pub fn vma_modify_flags<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    prev: Option<VmaPtr<K>>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    new_flags: u64,
) -> Result<VmaPtr<K>, Errno> {
    let mut m = VmaMerge { flags: new_flags, ..VmaMerge::vma_state(prev, vma, start, end) };
    vma_modify(cpu, k, mm, mas, vma, &mut m)
}

/// `vma_modify_flags_name()`: as [`vma_modify_flags`], with another anonymous name (a word; 0 for none).
///
/// # Errors
/// As [`vma_modify_flags`].
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
pub fn vma_modify_flags_name<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    prev: Option<VmaPtr<K>>,
    vma: VmaPtr<K>,
    start: u64,
    end: u64,
    new_flags: u64,
    new_name: u64,
) -> Result<VmaPtr<K>, Errno> {
    let mut m = VmaMerge { flags: new_flags, name: new_name, ..VmaMerge::vma_state(prev, vma, start, end) };
    vma_modify(cpu, k, mm, mas, vma, &mut m)
}

/// `vma_merge_extend()`: `vma` gets `delta` more bytes at its end, where a hole is, and merges with what is behind if
/// that fits. `None`: it cannot be extended (special mappings).
///
/// # Errors
/// `ENOMEM`, with nothing changed.
pub fn vma_merge_extend<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    vma: VmaPtr<K>,
    delta: u64,
) -> Result<Option<VmaPtr<K>>, Errno> {
    let end = end_of::<K>(vma);
    let mut m = VmaMerge::vma_state(Some(vma), vma, end, end + delta);
    m.next = vma_iter_next_rewind::<K>(cpu, mas).0;
    m.middle = None;
    vma_merge_new_range(cpu, k, mm, mas, &m)
}
