// SPDX-License-Identifier: GPL-2.0-only
//! mremap(2): mappings that grow, shrink and move with their pages [mm/mremap.c, 6.12; several VMAs at once: 6.18].
//!
//! dup: the order of checks in both versions, shrinking with the lock downgraded, growing in place, copying the mapping,
//! moving whole entries of upper tables where both sides are aligned (or can be), else entry by entry under the locks of
//! both tables, the locks of the reverse map while entries move, unmapping the source, leaving it
//! (`MREMAP_DONTUNMAP`), what is charged and counted, and moving everything back when there is no memory for a table.
//! stub: hugetlbfs, userfaultfd, KSM pages that have to be unshared, hooks of drivers, huge pages, soft-dirty bits, the
//! high watermark of address space, TLB flushes.
//!
//! Lock order: `mmap_lock` for write, the source's VMA lock, the copy's; i_mmap, anon_vma; then two locks of one level of
//! page tables, the source's first. Nobody else takes two of them, and `mmap_lock` keeps a second mremap out.

use super::file::{FileKind, vm_file_of};
use super::gup::mm_populate;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{
    TASK_SIZE, VM_ACCOUNT, VM_DONTEXPAND, VM_LOCKED, VM_LOCKED_MASK, VM_MAYSHARE, VM_PFNMAP, VM_SHARED, VmaFields,
};
use super::mmap::{MAP_FIXED, MAP_SHARED};
use super::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use super::pgtable::{
    PAGE_PRESENT, PageTable, SHIFT, pmd_alloc, pte_alloc, pte_lock, pte_table, ptlock_ptr, pud_alloc, table_above,
};
use super::rmap::{anon_vma_lock_write, anon_vma_unlock_write, unlink_anon_vmas, vma_anon_vma};
use super::unmapped_area::{AreaMethod, get_unmapped_area};
use super::util::{vm_acct_memory, vm_enough_memory, vm_unacct_memory};
use super::vma::file::{has_file, i_mmap_lock, i_mmap_unlock};
use super::vma::{
    can_modify_vma, copy_vma, do_vmi_munmap, end_of, may_expand_vm, mlock_future_ok, split_vma, start_of,
    vm_stat_account, vma_find, vma_is_anonymous, vma_lookup, vma_merge_extend, vma_next, vma_prev,
};
use super::vma_lock::VmaLock;
use super::vmstat::warn_on_once;
use crate::arch::arena::{KRef, PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Full, Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::MaState;
use crate::sync::{raw_spin_lock, raw_spin_unlock};

/// The mapping may move.
pub const MREMAP_MAYMOVE: u32 = 1;
/// It moves to the address given, over whatever is there.
pub const MREMAP_FIXED: u32 = 2;
/// The source stays, without its pages.
pub const MREMAP_DONTUNMAP: u32 = 4;

const MASK: u64 = PAGE_SIZE as u64 - 1;
const PMD_SIZE: u64 = 1 << SHIFT[1];
const PUD_SIZE: u64 = 1 << SHIFT[2];

/// The arguments of one call, and what it found out (`struct vma_remap_struct` of 6.18).
#[derive(Clone, Copy)]
struct VmaRemap {
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: u32,
    new_addr: u64,
    /// The mapping is locked and grew: its new part is to be populated.
    locked: bool,
    /// `mmap_lock` was dropped on the way.
    unlocked: bool,
}

impl VmaRemap {
    /// `vrm_implies_new_addr()`
    fn implies_new_addr(&self) -> bool {
        self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0
    }
    /// `vrm_overlaps()`
    fn overlaps(&self) -> bool {
        self.addr.wrapping_add(self.old_len) > self.new_addr && self.new_addr + self.new_len > self.addr
    }
}

/// `take_rmap_locks()`
fn take_rmap_locks<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    if has_file::<K>(vma) {
        i_mmap_lock::<K>(cpu, vma);
    }
    if let Some(av) = vma_anon_vma::<K>(vma) {
        anon_vma_lock_write(cpu, &*av);
    }
}

/// `drop_rmap_locks()`
fn drop_rmap_locks<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    if let Some(av) = vma_anon_vma::<K>(vma) {
        anon_vma_unlock_write(cpu, &*av);
    }
    if has_file::<K>(vma) {
        i_mmap_unlock::<K>(cpu, vma);
    }
}

/// Where entries move from and to.
struct Move<K: Kconfig> {
    vma: VmaPtr<K>,
    old_addr: u64,
    old_end: u64,
    new_addr: u64,
    /// Whoever walks the reverse map could come to the new place first and miss both.
    need_rmap_locks: bool,
}

/// `move_ptes()`: the entries of `[old_addr, old_addr + extent)`, which lie in one table, as do their new places.
fn move_ptes<K: Kconfig>(
    cpu: &Cpu<K::A>,
    m: &Move<K>,
    old: KRef<PageTable<K::A>>,
    new: KRef<PageTable<K::A>>,
    extent: u64,
) {
    if m.need_rmap_locks {
        take_rmap_locks::<K>(cpu, m.vma);
    }
    let old_ptl = pte_lock(cpu, old);
    let new_ptl = ptlock_ptr(new);
    let nested = new_ptl.as_ptr() != old_ptl.as_ptr();
    if nested {
        raw_spin_lock(cpu, &new_ptl);
    }
    for at in (0..extent).step_by(PAGE_SIZE) {
        let from = old.entry(0, m.old_addr + at);
        if from.load(Relaxed) == 0 {
            continue;
        }
        // ptep_get_and_clear()
        // ORDER: full, as the kernel's xchg(): the processor that walks the table sets bits in the entry until it is
        // gone. Here nobody does; the price is the kernel's.
        let e = from.swap(0, Full);
        // ORDER: relaxed: a fault at the new place takes the lock of this table.
        new.entry(0, m.new_addr + at).store(e, Relaxed);
    }
    if nested {
        raw_spin_unlock(cpu, &new_ptl);
    }
    raw_spin_unlock(cpu, &old_ptl);
    if m.need_rmap_locks {
        drop_rmap_locks::<K>(cpu, m.vma);
    }
}

/// `move_pgt_entry()` for `NORMAL_PMD` (level 1) and `NORMAL_PUD` (level 2): hands a whole table over. False where the
/// new place has a table already.
///
/// Always with the reverse map locked.
fn move_pgt_entry<K: Kconfig>(
    cpu: &Cpu<K::A>,
    mm: MmPtr<K>,
    m: &Move<K>,
    level: usize,
    old: KRef<PageTable<K::A>>,
    new: KRef<PageTable<K::A>>,
) -> bool {
    take_rmap_locks::<K>(cpu, m.vma);
    let (from, to) = (old.entry(level, m.old_addr), new.entry(level, m.new_addr));
    let mut moved = false;
    // Whoever was there took its tables along.
    let none = to.load(Relaxed) & PAGE_PRESENT == 0;
    warn_on_once(cpu, !none);
    if none {
        // PUDs have one lock for all; the entries of two PMD tables have one each.
        let split = level == 1;
        let (old_ptl, new_ptl) = (ptlock_ptr(old), ptlock_ptr(new));
        let nested = split && new_ptl.as_ptr() != old_ptl.as_ptr();
        if split {
            raw_spin_lock(cpu, &old_ptl);
        } else {
            raw_spin_lock(cpu, &mm.page_table_lock);
        }
        if nested {
            raw_spin_lock(cpu, &new_ptl);
        }
        let e = from.load(Relaxed);
        if e & PAGE_PRESENT != 0 {
            from.store(0, Relaxed);
            // ORDER: relaxed: the table was published when it was made, and faults at the new place come after this
            // section (E2, or mmap_lock).
            to.store(e, Relaxed);
            moved = true;
        }
        if nested {
            raw_spin_unlock(cpu, &new_ptl);
        }
        if split {
            raw_spin_unlock(cpu, &old_ptl);
        } else {
            raw_spin_unlock(cpu, &mm.page_table_lock);
        }
    }
    drop_rmap_locks::<K>(cpu, m.vma);
    moved
}

/// `get_extent()`: up to the next border of `size` on either side.
fn get_extent<K: Kconfig>(m: &Move<K>, size: u64) -> u64 {
    let room = |addr: u64| size - (addr & (size - 1));
    (m.old_end - m.old_addr).min(room(m.old_addr)).min(room(m.new_addr))
}

/// `can_align_down()`: `addr` is the start of `vma`, and nothing is mapped from the border below it up to there.
fn can_align_down<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vma: VmaPtr<K>, addr: u64) -> bool {
    let start = start_of::<K>(vma);
    if start != addr {
        return false;
    }
    let masked = addr & !(PMD_SIZE - 1);
    // find_vma_intersection()
    let mut mas = MaState::new(mm.mm_mt(), k.maple, masked, masked);
    vma_find::<K>(cpu, &mut mas, start).is_none()
}

/// `move_page_tables()`: hands the pages of `[old_addr, old_addr + len)` of `vma` over to `new_vma` at `new_addr`.
/// Returns how much is done: less than `len` when there was no memory for a table.
///
/// Under `mmap_lock` for write; nobody faults in either VMA.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the kernel, the CPU and the mm before them")]
pub fn move_page_tables<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    old_addr: u64,
    new_vma: VmaPtr<K>,
    new_addr: u64,
    len: u64,
    need_rmap_locks: bool,
) -> u64 {
    if len == 0 {
        return 0;
    }
    let mut m = Move { vma, old_addr, old_end: old_addr + len, new_addr, need_rmap_locks };
    // try_realign_addr(): from the border of a table on, if nothing else is below it on either side.
    let inside = old_addr & (PMD_SIZE - 1);
    if inside != 0
        && len >= PMD_SIZE - inside
        && inside == new_addr & (PMD_SIZE - 1)
        && can_align_down(cpu, k, mm, vma, old_addr)
        && can_align_down(cpu, k, mm, new_vma, new_addr)
    {
        m.old_addr -= inside;
        m.new_addr -= inside;
    }
    while m.old_addr < m.old_end {
        let Some(extent) = move_extent(cpu, k, mm, &m) else { break };
        m.old_addr += extent;
        m.new_addr += extent;
    }
    // A realigned walk that broke off at once stands below where it was to begin.
    m.old_addr.saturating_sub(old_addr)
}

/// One round of `move_page_tables()`: what lies under one entry. Returns the bytes dealt with; `None`: no memory.
fn move_extent<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, m: &Move<K>) -> Option<u64> {
    let extent = get_extent(m, PUD_SIZE);
    let Some(old_pud) = table_above::<K>(mm, 2, m.old_addr) else { return Some(extent) };
    let new_pud = pud_alloc(cpu, k, mm, m.new_addr).ok()?;
    if extent == PUD_SIZE && move_pgt_entry(cpu, mm, m, 2, old_pud, new_pud) {
        return Some(extent);
    }
    let extent = get_extent(m, PMD_SIZE);
    let Some(old_pmd) = table_above::<K>(mm, 1, m.old_addr) else { return Some(extent) };
    let new_pmd = pmd_alloc(cpu, k, mm, m.new_addr).ok()?;
    if extent == PMD_SIZE && move_pgt_entry(cpu, mm, m, 1, old_pmd, new_pmd) {
        return Some(extent);
    }
    let Some(old) = pte_table(old_pmd, m.old_addr) else { return Some(extent) };
    if pte_table(new_pmd, m.new_addr).is_none() {
        pte_alloc(cpu, k, mm, new_pmd, m.new_addr).ok()?;
    }
    let new = pte_table(new_pmd, m.new_addr)?;
    move_ptes(cpu, m, old, new, extent);
    Some(extent)
}

/// `vm_flags_clear()`
fn vm_flags_clear<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>, flags: u64) {
    K::Lock::vma_start_write(cpu, vma);
    vma.vm_flags().store(vma.vm_flags().load(Relaxed) & !flags, Relaxed);
}

/// `vm_flags_set()`
fn vm_flags_set<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>, flags: u64) {
    K::Lock::vma_start_write(cpu, vma);
    vma.vm_flags().store(vma.vm_flags().load(Relaxed) | flags, Relaxed);
}

/// `move_vma()`: a copy of the mapping at `new_addr`, the pages, and the end of the source.
///
/// # Errors
/// `ENOMEM`: everything is where it was, except for splits of locked memory.
fn move_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mut vma: VmaPtr<K>,
    vrm: &mut VmaRemap,
) -> Result<u64, Errno> {
    let VmaRemap { addr: mut old_addr, mut old_len, new_len, new_addr, flags, .. } = *vrm;
    let vm_flags = vma.vm_flags().load(Relaxed);
    let dontunmap = flags & MREMAP_DONTUNMAP != 0;
    // The source may be split in three before it goes: that must not fail when the pages are gone.
    if !k.rules.mremap_limit_at_entry && mm.map_count.get() >= k.max_map_count - 3 {
        return Err(Errno::ENOMEM);
    }
    // What stays unlocked must not be counted with what goes.
    if dontunmap && vm_flags & VM_LOCKED != 0 && k.rules.dontunmap_splits_locked {
        let mut mas = MaState::new(mm.mm_mt(), k.maple, old_addr, old_addr);
        if start_of::<K>(vma) != old_addr {
            split_vma(cpu, k, mm, &mut mas, vma, old_addr, true)?;
        }
        if end_of::<K>(vma) != old_addr + old_len {
            split_vma(cpu, k, mm, &mut mas, vma, old_addr + old_len, false)?;
        }
    }
    let to_account = (if dontunmap { new_len } else { new_len - old_len }) >> PAGE_SHIFT;
    if vm_flags & VM_ACCOUNT != 0 {
        vm_enough_memory(cpu, k, mm, to_account)?;
    }
    // No fault may put a page where the walk was already.
    K::Lock::vma_start_write(cpu, vma);
    let pgoff = vma.vm_pgoff().load(Relaxed) + ((old_addr - start_of::<K>(vma)) >> PAGE_SHIFT);
    let Some((new_vma, need_rmap_locks)) = copy_vma(cpu, k, mm, &mut vma, new_addr, new_len, pgoff, dontunmap) else {
        if vm_flags & VM_ACCOUNT != 0 {
            vm_unacct_memory(cpu, k, to_account);
        }
        return Err(Errno::ENOMEM);
    };
    let moved = move_page_tables(cpu, k, mm, vma, old_addr, new_vma, new_addr, old_len, need_rmap_locks);
    let mut result = Ok(new_addr);
    if moved < old_len {
        // Back again, which needs no memory: the tables are still there. Then the copy goes in place of the source.
        move_page_tables(cpu, k, mm, new_vma, new_addr, vma, old_addr, moved, true);
        vma = new_vma;
        old_len = new_len;
        old_addr = new_addr;
        result = Err(Errno::ENOMEM);
        // PORT: the kernel forgets this one: what a mapping that was to grow was charged for stays charged for good.
        if vm_flags & VM_ACCOUNT != 0 && !dontunmap {
            vm_unacct_memory(cpu, k, to_account);
        }
    }
    // The charge goes along: what is unmapped must not give it back.
    let (mut account_start, mut account_end) = (false, false);
    let (vm_start, vm_end) = (start_of::<K>(vma), end_of::<K>(vma));
    if vm_flags & VM_ACCOUNT != 0 && !dontunmap {
        vm_flags_clear::<K>(cpu, vma, VM_ACCOUNT);
        account_start = vm_start < old_addr;
        account_end = vm_end > old_addr + old_len;
    }
    vm_stat_account::<K>(mm, vma.vm_flags().load(Relaxed), (new_len >> PAGE_SHIFT) as i64);
    if dontunmap && result.is_ok() {
        // vrm_stat_account() of 6.17 and later.
        if vm_flags & VM_LOCKED != 0 && k.rules.dontunmap_counts_locked_twice {
            mm.locked_vm.set(mm.locked_vm.get() + (new_len >> PAGE_SHIFT));
        }
        dontunmap_complete(cpu, k, vma, old_addr, old_len);
        return result;
    }
    if do_vmi_munmap(cpu, k, mm, old_addr, old_len, false).is_err() {
        // Could not be split: it stays, and counts twice.
        if vm_flags & VM_ACCOUNT != 0 && !dontunmap {
            vm_acct_memory(cpu, k, (old_len >> PAGE_SHIFT) as i64);
            // PORT: the kernel does not, and so never gives the charge back.
            let mut mas = MaState::new(mm.mm_mt(), k.maple, vm_start, vm_start);
            while let Some(rest) = vma_find::<K>(cpu, &mut mas, vm_end) {
                vm_flags_set::<K>(cpu, rest, VM_ACCOUNT);
            }
        }
        (account_start, account_end) = (false, false);
    }
    if vm_flags & VM_LOCKED != 0 {
        mm.locked_vm.set(mm.locked_vm.get() + (new_len >> PAGE_SHIFT));
        vrm.locked = true;
    }
    if account_start || account_end {
        let mut mas = MaState::new(mm.mm_mt(), k.maple, old_addr, old_addr);
        if let (true, Some(rest)) = (account_start, vma_prev::<K>(cpu, &mut mas)) {
            vm_flags_set::<K>(cpu, rest, VM_ACCOUNT);
        }
        if let (true, Some(rest)) = (account_end, vma_next::<K>(cpu, &mut mas)) {
            vm_flags_set::<K>(cpu, rest, VM_ACCOUNT);
        }
    }
    result
}

/// The end of `move_vma()` with `MREMAP_DONTUNMAP` (`dontunmap_complete()` of 6.18): the source is neither locked any
/// more nor, if all of it moved, faulted.
fn dontunmap_complete<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>, old_addr: u64, old_len: u64) {
    vm_flags_clear::<K>(cpu, vma, VM_LOCKED_MASK);
    if start_of::<K>(vma) == old_addr && end_of::<K>(vma) == old_addr + old_len {
        unlink_anon_vmas(cpu, k, vma);
        if !k.rules.dontunmap_keeps_pgoff && vma_is_anonymous::<K>(vma) && !has_file::<K>(vma) {
            vma.vm_pgoff().store(old_addr >> PAGE_SHIFT, Relaxed);
        }
    }
}

/// `vma_to_resize()`; 6.18: `check_prep_vma()`, after the seal. `old_len` is what will be there when it moves.
fn check_resize<K: Kconfig>(
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: u32,
) -> Result<(), Errno> {
    let vm_flags = vma.vm_flags().load(Relaxed);
    // A second mapping of the same pages makes sense for shared memory only.
    if old_len == 0 && vm_flags & (VM_SHARED | VM_MAYSHARE) == 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MREMAP_DONTUNMAP != 0 && vm_flags & (VM_DONTEXPAND | VM_PFNMAP) != 0 {
        return Err(Errno::EINVAL);
    }
    if old_len > end_of::<K>(vma) - addr {
        return Err(Errno::EFAULT);
    }
    if new_len == old_len {
        return Ok(());
    }
    let pgoff = ((addr - start_of::<K>(vma)) >> PAGE_SHIFT).wrapping_add(vma.vm_pgoff().load(Relaxed));
    if pgoff.checked_add(new_len >> PAGE_SHIFT).is_none() {
        return Err(Errno::EINVAL);
    }
    if vm_flags & (VM_DONTEXPAND | VM_PFNMAP) != 0 {
        return Err(Errno::EFAULT);
    }
    if !mlock_future_ok::<K>(mm, vm_flags, new_len - old_len) {
        return Err(Errno::EAGAIN);
    }
    if !may_expand_vm::<K>(mm, vm_flags, (new_len - old_len) >> PAGE_SHIFT) {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

/// Where the mapping may go: `vrm_set_new_addr()` of 6.18.
fn set_new_addr<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    vrm: &mut VmaRemap,
) -> Result<(), Errno> {
    let hint = if vrm.implies_new_addr() { vrm.new_addr } else { 0 };
    let mut map_flags = if vrm.flags & MREMAP_FIXED != 0 { MAP_FIXED } else { 0 };
    if vma.vm_flags().load(Relaxed) & VM_MAYSHARE != 0 {
        map_flags |= MAP_SHARED;
    }
    let pgoff = vma.vm_pgoff().load(Relaxed) + ((vrm.addr - start_of::<K>(vma)) >> PAGE_SHIFT);
    let (method, off) = match vm_file_of::<K>(vma) {
        Some(f) if f.f_mapping().kind() == FileKind::Regular => (AreaMethod::Thp, pgoff << PAGE_SHIFT),
        Some(_) => (AreaMethod::Shmem, pgoff << PAGE_SHIFT),
        None => (AreaMethod::None, 0),
    };
    vrm.new_addr = get_unmapped_area(cpu, k, mm, method, hint, vrm.new_len, off, map_flags)?;
    Ok(())
}

/// `mremap_to()`: moves to `new_addr`, over what is there (`MREMAP_FIXED`), or anywhere (`MREMAP_DONTUNMAP`).
fn mremap_to<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    vrm: &mut VmaRemap,
) -> Result<u64, Errno> {
    let early = k.rules.mremap_multi_vma;
    if early {
        // check_prep_vma(): before anything is unmapped.
        check_resize::<K>(mm, vma, vrm.addr, vrm.old_len.min(vrm.new_len), vrm.new_len, vrm.flags)?;
    } else {
        if vrm.new_addr & MASK != 0 || vrm.new_len > TASK_SIZE || vrm.new_addr > TASK_SIZE - vrm.new_len {
            return Err(Errno::EINVAL);
        }
        if vrm.overlaps() {
            return Err(Errno::EINVAL);
        }
        check_map_count_to(k, mm)?;
    }
    if vrm.flags & MREMAP_FIXED != 0 {
        do_vmi_munmap(cpu, k, mm, vrm.new_addr, vrm.new_len, false)?;
    }
    if vrm.old_len > vrm.new_len {
        do_vmi_munmap(cpu, k, mm, vrm.addr + vrm.new_len, vrm.old_len - vrm.new_len, false)?;
        vrm.old_len = vrm.new_len;
    }
    // Both may have split the source or freed the object that it was.
    let vma = vma_lookup(cpu, k, mm, vrm.addr).ok_or(Errno::EFAULT)?;
    if !early {
        check_resize::<K>(mm, vma, vrm.addr, vrm.old_len, vrm.new_len, vrm.flags)?;
    }
    if vrm.flags & MREMAP_DONTUNMAP != 0
        && !may_expand_vm::<K>(mm, vma.vm_flags().load(Relaxed), vrm.old_len >> PAGE_SHIFT)
    {
        return Err(Errno::ENOMEM);
    }
    set_new_addr(cpu, k, mm, vma, vrm)?;
    move_vma(cpu, k, mm, vma, vrm)
}

/// Whether a move to a given place will have room for its splits: it must not fail after the place was cleared.
fn check_map_count_to<K: Kconfig>(k: &Kernel<K>, mm: MmPtr<K>) -> Result<(), Errno> {
    if !k.rules.mremap_limit_at_entry && mm.map_count.get() + 2 >= k.max_map_count - 3 {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

/// `vma_expandable()`: the room behind `vma` is free and may be mapped.
fn vma_expandable<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vma: VmaPtr<K>, delta: u64) -> bool {
    let (start, at) = (start_of::<K>(vma), end_of::<K>(vma));
    let Some(end) = at.checked_add(delta) else { return false };
    let mut mas = MaState::new(mm.mm_mt(), k.maple, at, at);
    vma_find::<K>(cpu, &mut mas, end).is_none()
        && get_unmapped_area(cpu, k, mm, AreaMethod::None, start, end - start, 0, MAP_FIXED).is_ok()
}

/// The growing part of mremap(2) (`expand_vma()` of 6.18): in place where that fits, else by moving.
fn expand_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    vrm: &mut VmaRemap,
) -> Result<u64, Errno> {
    check_resize::<K>(mm, vma, vrm.addr, vrm.old_len, vrm.new_len, vrm.flags)?;
    let delta = vrm.new_len - vrm.old_len;
    if vrm.old_len == end_of::<K>(vma) - vrm.addr && vma_expandable(cpu, k, mm, vma, delta) {
        let pages = delta >> PAGE_SHIFT;
        let end = end_of::<K>(vma);
        let mut mas = MaState::new(mm.mm_mt(), k.maple, end, end);
        let accounted = vma.vm_flags().load(Relaxed) & VM_ACCOUNT != 0;
        if accounted {
            vm_enough_memory(cpu, k, mm, pages)?;
        }
        let Ok(Some(vma)) = vma_merge_extend(cpu, k, mm, &mut mas, vma, delta) else {
            if accounted {
                vm_unacct_memory(cpu, k, pages);
            }
            return Err(Errno::ENOMEM);
        };
        let vm_flags = vma.vm_flags().load(Relaxed);
        vm_stat_account::<K>(mm, vm_flags, pages as i64);
        if vm_flags & VM_LOCKED != 0 {
            mm.locked_vm.set(mm.locked_vm.get() + pages);
            vrm.locked = true;
            vrm.new_addr = vrm.addr;
        }
        return Ok(vrm.addr);
    }
    if vrm.flags & MREMAP_MAYMOVE == 0 {
        return Err(Errno::ENOMEM);
    }
    set_new_addr(cpu, k, mm, vma, vrm)?;
    move_vma(cpu, k, mm, vma, vrm)
}

/// `remap_move()` of 6.17: a pure move of all VMAs in the range, with the holes between them kept. Returns the address of
/// the first.
///
/// # Errors
/// As for one VMA; those before it stay moved. `EFAULT`: the range begins in a hole.
fn remap_move<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vrm: &mut VmaRemap) -> Result<u64, Errno> {
    let (start, end) = (vrm.addr, vrm.addr.wrapping_add(vrm.old_len));
    if end <= start {
        return Err(Errno::EFAULT);
    }
    let mut target = vrm.new_addr;
    let mut at = start;
    let mut result = Err(Errno::EFAULT);
    loop {
        // vma_iter_invalidate(): each move changes the tree on both sides.
        let mut mas = MaState::new(mm.mm_mt(), k.maple, at, at);
        let Some(vma) = vma_find::<K>(cpu, &mut mas, end) else { return result };
        let first = result.is_err();
        let (vm_start, vm_end) = (start_of::<K>(vma), end_of::<K>(vma));
        if first && start < vm_start {
            return Err(Errno::EFAULT);
        }
        vrm.addr = vm_start.max(start);
        vrm.old_len = vm_end.min(end) - vrm.addr;
        vrm.new_len = vrm.old_len;
        vrm.new_addr = if first { target } else { target + (vm_start - at) };
        at = vm_end;
        if !can_modify_vma::<K>(vma) {
            return Err(Errno::EPERM);
        }
        let moved = mremap_to(cpu, k, mm, vma, vrm)?;
        target = moved + vrm.new_len;
        if first {
            result = Ok(moved);
        }
    }
}

/// The part of mremap(2) under `mmap_lock` for write.
fn mremap_locked<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, vrm: &mut VmaRemap) -> Result<u64, Errno> {
    if k.rules.mremap_limit_at_entry {
        let most = if vrm.flags & MREMAP_DONTUNMAP != 0 { 5 } else { 4 };
        if mm.map_count.get() + most > k.max_map_count {
            return Err(Errno::ENOMEM);
        }
    }
    // vrm_move_only()
    if k.rules.mremap_multi_vma && vrm.flags & MREMAP_FIXED != 0 && vrm.old_len == vrm.new_len {
        return remap_move(cpu, k, mm, vrm);
    }
    let vma = vma_lookup(cpu, k, mm, vrm.addr).ok_or(Errno::EFAULT)?;
    if !can_modify_vma::<K>(vma) {
        return Err(Errno::EPERM);
    }
    if vrm.implies_new_addr() {
        return mremap_to(cpu, k, mm, vma, vrm);
    }
    match vrm.old_len.cmp(&vrm.new_len) {
        std::cmp::Ordering::Equal => Ok(vrm.addr),
        std::cmp::Ordering::Greater => {
            // May go over other VMAs, and drops the lock.
            do_vmi_munmap(cpu, k, mm, vrm.addr.wrapping_add(vrm.new_len), vrm.old_len - vrm.new_len, true)?;
            vrm.unlocked = true;
            Ok(vrm.addr)
        }
        std::cmp::Ordering::Less => expand_vma(cpu, k, mm, vma, vrm),
    }
}

/// mremap(2): `flags` of `MREMAP_*`. Gives the address of the mapping.
///
/// # Errors
/// `EINVAL` (flags, unaligned, no new length, overlap, private memory without an old length), `EFAULT` (nothing there,
/// more than one VMA), `EPERM` (sealed, too low), `EAGAIN` (the limit on locked memory), `ENOMEM` (no room, no memory,
/// too many VMAs, limits).
#[expect(clippy::too_many_arguments, reason = "the system call's, with the kernel, the CPU and the mm before them")]
pub fn sys_mremap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: u32,
    new_addr: u64,
) -> Result<u64, Errno> {
    K::A::charge(Work::KernelEntry);
    let round = |len: u64| len.wrapping_add(MASK) & !MASK;
    let mut vrm = VmaRemap {
        addr,
        old_len: round(old_len),
        new_len: round(new_len),
        flags,
        new_addr,
        locked: false,
        unlocked: false,
    };
    let multi = k.rules.mremap_multi_vma;
    if flags & !(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP) != 0
        || vrm.implies_new_addr() && flags & MREMAP_MAYMOVE == 0
        || addr & MASK != 0
        || vrm.new_len == 0
    {
        return Err(Errno::EINVAL);
    }
    // 6.12 compares what was asked for, later kernels what it was rounded to.
    let same_len = if multi { vrm.old_len == vrm.new_len } else { old_len == new_len };
    if flags & MREMAP_DONTUNMAP != 0 && !same_len {
        return Err(Errno::EINVAL);
    }
    if multi {
        // check_mremap_params()
        if vrm.new_len > TASK_SIZE {
            return Err(Errno::EINVAL);
        }
        if vrm.implies_new_addr() {
            if new_addr > TASK_SIZE - vrm.new_len || new_addr & MASK != 0 || vrm.overlaps() {
                return Err(Errno::EINVAL);
            }
            check_map_count_to(k, mm)?;
        }
    }
    mmap_write_lock(cpu, &*mm);
    let r = mremap_locked(cpu, k, mm, &mut vrm);
    if !vrm.unlocked {
        mmap_write_unlock(cpu, &*mm);
    }
    if r.is_ok() && vrm.locked && vrm.new_len > vrm.old_len {
        mm_populate(cpu, k, mm, vrm.new_addr + vrm.old_len, vrm.new_len - vrm.old_len);
    }
    r
}
