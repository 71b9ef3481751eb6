// SPDX-License-Identifier: GPL-2.0-only
//! Stacks that grow [mm/mmap.c: expand_downwards, acct_stack_growth, expand_stack; mm/memory.c: lock_mm_and_find_vma,
//! 6.12].
//!
//! dup: the order of checks, the guard gap, locks and their order; the VMA grows in place and merges with nothing. The
//! fault path drops its read lock, takes `mmap_lock` for write, grows, and downgrades. stub: stacks that grow up, huge
//! page ranges, signals while waiting.
//!
//! Lock order: `mmap_lock` for write, the VMA's lock, the anon_vma's, `page_table_lock`.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{MMAP_MIN_ADDR, RLIMIT_STACK, VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_LOCKED, VmaFields};
use super::mmap_lock::{
    mmap_read_lock, mmap_read_trylock, mmap_read_unlock, mmap_write_downgrade, mmap_write_lock, mmap_write_unlock,
};
use super::rmap::{__anon_vma_prepare, anon_vma_lock_write, anon_vma_unlock_write, vma_anon_vma};
use super::unmapped_area::STACK_GUARD_GAP;
use super::util::vm_enough_memory;
use super::vma::{
    end_of, find_vma, may_expand_vm, mlock_future_ok, start_of, vm_stat_account, vma_iter_config, vma_iter_next_range,
    vma_iter_prealloc, vma_iter_store, vma_prev,
};
use super::vma_lock::VmaLock;
use crate::arch::Relaxed;
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_destroy};
use crate::sync::{raw_spin_lock, raw_spin_unlock};

/// `acct_stack_growth()`: whether a stack may have `size` bytes, `grow` pages more than now.
fn acct_stack_growth<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vm_flags: u64,
    size: u64,
    grow: u64,
) -> Result<(), Errno> {
    if !may_expand_vm::<K>(mm, vm_flags, grow)
        || size > mm.rlimit(RLIMIT_STACK)
        || !mlock_future_ok::<K>(mm, vm_flags, grow << PAGE_SHIFT)
    {
        return Err(Errno::ENOMEM);
    }
    // Last, as it charges.
    vm_enough_memory(cpu, k, mm, grow)
}

/// `expand_downwards()`: `vma` grows down to the page of `address`. Under `mmap_lock` for write.
///
/// # Errors
/// `EFAULT` (no stack), `EPERM` (below the lowest address), `ENOMEM` (too near to what is below, over a limit, no memory).
pub fn expand_downwards<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    address: u64,
) -> Result<(), Errno> {
    let flags = vma.vm_flags().load(Relaxed);
    if flags & VM_GROWSDOWN == 0 {
        return Err(Errno::EFAULT);
    }
    let address = address & !(PAGE_SIZE as u64 - 1);
    if address < MMAP_MIN_ADDR {
        return Err(Errno::EPERM);
    }
    let start = start_of::<K>(vma);
    let mut vmi = MaState::new(mm.mm_mt(), k.maple, start, start);
    let prev = vma_prev::<K>(cpu, &mut vmi);
    if let Some(prev) = prev {
        let prev_flags = prev.vm_flags().load(Relaxed);
        // An address inside the mapping below wraps, to far away: then it is that mapping's own fault.
        if prev_flags & VM_GROWSDOWN == 0
            && prev_flags & VM_ACCESS_FLAGS != 0
            && address.wrapping_sub(end_of::<K>(prev)) < STACK_GUARD_GAP
        {
            return Err(Errno::ENOMEM);
        }
        vma_iter_next_range::<K>(cpu, &mut vmi);
    }
    vma_iter_config::<K>(&mut vmi, address, end_of::<K>(vma));
    vma_iter_prealloc::<K>(cpu, &mut vmi, vma)?;
    if vma.anon_vma().load(Relaxed).is_null()
        && let Err(e) = __anon_vma_prepare(cpu, k, mm, vma)
    {
        mas_destroy(cpu, &mut vmi);
        return Err(e);
    }
    K::Lock::vma_start_write(cpu, vma);
    let anon_vma = vma_anon_vma::<K>(vma).expect("prepared above");
    anon_vma_lock_write(cpu, &anon_vma);
    let mut r = Ok(());
    if address < start {
        let grow = (start - address) >> PAGE_SHIFT;
        let pgoff = vma.vm_pgoff().load(Relaxed);
        r = if grow <= pgoff {
            acct_stack_growth(cpu, k, mm, flags, end_of::<K>(vma) - address, grow)
        } else {
            Err(Errno::ENOMEM)
        };
        if r.is_ok() {
            raw_spin_lock(cpu, &mm.page_table_lock);
            if flags & VM_LOCKED != 0 {
                mm.locked_vm.set(mm.locked_vm.get() + grow);
            }
            vm_stat_account::<K>(mm, flags, grow as i64);
            vma.vm_start().store(address, Relaxed);
            vma.vm_pgoff().store(pgoff - grow, Relaxed);
            vma_iter_store::<K>(cpu, &mut vmi, vma);
            raw_spin_unlock(cpu, &mm.page_table_lock);
        }
    }
    anon_vma_unlock_write(cpu, &anon_vma);
    mas_destroy(cpu, &mut vmi);
    r
}

/// `expand_stack_locked()`
///
/// # Errors
/// As [`expand_downwards`].
pub fn expand_stack_locked<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    address: u64,
) -> Result<(), Errno> {
    expand_downwards(cpu, k, mm, vma, address)
}

/// `lock_mm_and_find_vma()`: the VMA at `addr`, grown if it is a stack above it, with `mmap_lock` held for read; `None`
/// with it dropped.
pub fn lock_mm_and_find_vma<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, addr: u64) -> Option<VmaPtr<K>> {
    if !mmap_read_trylock(cpu, &*mm) {
        mmap_read_lock(cpu, &*mm);
    }
    match find_vma(cpu, k, mm, addr) {
        Some(vma) if start_of::<K>(vma) <= addr => Some(vma),
        Some(vma) if vma.vm_flags().load(Relaxed) & VM_GROWSDOWN != 0 => grow(cpu, k, mm, addr),
        _ => {
            mmap_read_unlock(cpu, &*mm);
            None
        }
    }
}

/// The rest of `lock_mm_and_find_vma()`: with the lock for write instead, everything may be different. 6.12 has no
/// upgrade of a read lock (`mmap_upgrade_trylock()` always fails).
#[cold]
#[inline(never)]
fn grow<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, addr: u64) -> Option<VmaPtr<K>> {
    mmap_read_unlock(cpu, &*mm);
    mmap_write_lock(cpu, &*mm);
    let vma = find_vma(cpu, k, mm, addr).filter(|v| {
        start_of::<K>(*v) <= addr
            || v.vm_flags().load(Relaxed) & VM_GROWSDOWN != 0 && expand_stack_locked(cpu, k, mm, *v, addr).is_ok()
    });
    match vma {
        Some(vma) => {
            mmap_write_downgrade(cpu, &*mm);
            Some(vma)
        }
        None => {
            mmap_write_unlock(cpu, &*mm);
            None
        }
    }
}
