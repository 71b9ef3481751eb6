// SPDX-License-Identifier: GPL-2.0-only
//! `mmap_lock`, the sequence that ends all VMA locks at once, and finding a VMA without `mmap_lock`
//! [include/linux/mmap_lock.h, mm/memory.c, 6.12; the mm check of 6.15; the range walker of 7.3, mm/mmap_lock.c].
//!
//! Lock order: `mmap_lock`, then a VMA's lock, then the anon_vma's lock, then the page table locks.
//!
//! INVARIANT: `mm_lock_seq` is odd exactly while `mmap_lock` is held for write.
//! stub: tracing.

use super::fork::mmdrop;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{MmStruct, VmaFields, VmaOf};
use super::mmap_lock_wait::{count_read_wait, count_write_wait};
use super::vma::vma_next;
use super::vma_lock::refcnt_exclude::RefcntExclude;
use super::vma_lock::{AbortCause, StartRead, VmaLock, VmaLockEvent};
use super::vmstat::{VmEvent, count_abort};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_set, mas_walk};
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::{
    down_read_killable_timed, down_read_timed, down_read_trylock, down_write_timed, downgrade_write, up_read, up_write,
};
use std::ptr::NonNull;

/// `mmap_read_lock()`
#[inline]
pub fn mmap_read_lock<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    cpu.count(VmEvent::MmapLockRead);
    down_read_timed(cpu, &mm.mmap_lock, |ns| count_read_wait(cpu, ns));
}

/// `mmap_read_lock_killable()`
///
/// # Errors
/// `EINTR` at a fatal signal; not held.
pub fn mmap_read_lock_killable<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) -> Result<(), Errno> {
    cpu.count(VmEvent::MmapLockRead);
    down_read_killable_timed(cpu, &mm.mmap_lock, |ns| count_read_wait(cpu, ns))
}

/// `mmap_read_trylock()`
#[inline]
pub fn mmap_read_trylock<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) -> bool {
    let got = down_read_trylock(cpu, &mm.mmap_lock);
    cpu.count(if got { VmEvent::MmapLockRead } else { VmEvent::MmapLockReadFail });
    got
}

/// `mmap_read_unlock()`
#[inline]
pub fn mmap_read_unlock<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    up_read(cpu, &mm.mmap_lock);
}

/// `mmap_write_lock()`
#[inline]
pub fn mmap_write_lock<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    cpu.count(VmEvent::MmapLockWrite);
    down_write_timed(cpu, &mm.mmap_lock, |ns| count_write_wait(cpu, ns));
    // W0. ORDER: relaxed store, then a write barrier: the section's stores come after the odd number.
    mm.mm_lock_seq.write_begin();
}

/// `vma_end_write_all()`: unlocks every VMA that the section locked.
#[inline]
pub fn vma_end_write_all<A: Arch, L: VmaLock>(_cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    // W6. ORDER: a write barrier, then a relaxed store; meets R4 of vma_start_read() (E2): a reader that sees the even
    // number sees all the section's stores.
    mm.mm_lock_seq.write_end();
}

/// `mmap_write_unlock()`
#[inline]
pub fn mmap_write_unlock<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    vma_end_write_all(cpu, mm);
    up_write(cpu, &mm.mmap_lock);
}

/// `mmap_write_downgrade()`
#[inline]
pub fn mmap_write_downgrade<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    cpu.count(VmEvent::MmapLockDowngrade);
    vma_end_write_all(cpu, mm);
    downgrade_write(cpu, &mm.mmap_lock);
}

/// `vma_end_read()`
#[inline(always)]
pub fn vma_end_read<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    K::Lock::vma_end_read(cpu, vma);
}

/// The entry of the tree as a VMA.
///
/// # Safety
/// `entry` came out of the tree of an mm of build `K`, under RCU or `mmap_lock`.
#[inline(always)]
pub(super) unsafe fn vma_of_entry<K: Kconfig>(entry: *mut ()) -> Option<VmaPtr<K>> {
    // SAFETY: the tree holds VMAs only; the caller keeps the object alive.
    NonNull::new(entry.cast::<VmaOf<K::A, K::Lock>>()).map(|p| unsafe { KRef::new(p) })
}

/// `lock_vma_under_rcu()`: the VMA that covers `address`, read-locked; `None` after counting the abort.
///
/// What comes between two walks differs between versions and is the protocol's ([`VmaLock::lookup_again`]).
#[inline]
pub fn lock_vma_under_rcu<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, address: u64) -> Option<VmaPtr<K>> {
    match __lock_vma_under_rcu(cpu, k, mm, address) {
        Ok(vma) => Some(vma),
        Err(cause) => {
            count_abort(cpu, cause);
            None
        }
    }
}

/// As [`lock_vma_under_rcu`], for callers that are not a fault: an abort is not counted.
///
/// # Errors
/// Why it gave up.
#[inline(always)]
pub fn __lock_vma_under_rcu<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    address: u64,
) -> Result<VmaPtr<K>, AbortCause> {
    rcu_read_lock(cpu);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, address, address);
    loop {
        // R1. SAFETY: under RCU.
        let Some(vma) = (unsafe { vma_of_entry::<K>(mas_walk(cpu, &mut mas)) }) else {
            rcu_read_unlock(cpu);
            return Err(AbortCause::None);
        };
        match K::Lock::lock_vma_found(cpu, mm, vma, address, |other| mmdrop(cpu, k, other)) {
            StartRead::Detached => {
                cpu.count(VmEvent::VmaLockMiss);
                K::Lock::lookup_again(cpu, &mut mas, address);
            }
            StartRead::Contended(cause) => {
                K::Lock::lookup_done(cpu);
                return Err(cause);
            }
            StartRead::Locked => {
                // R7.
                K::Lock::lookup_done(cpu);
                return Ok(vma);
            }
        }
    }
}

/// `lock_next_vma()`: the first VMA that ends above `from`, read-locked, for a walk over a range; `None` behind the last.
/// Inside RCU, which is left and entered again where the VMA could not be had without `mmap_lock`; `vmi` stands on the VMA
/// then, or behind it.
///
/// 7.3 only, hence for its protocol only.
///
/// # Errors
/// `EINTR` at a fatal signal, `EAGAIN` if the VMA has too many readers.
pub fn lock_next_vma<K: Kconfig<Lock = RefcntExclude>>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vmi: &mut MaState<'_, K::A>,
    from: u64,
) -> Result<Option<VmaPtr<K>>, Errno> {
    loop {
        // mmap_lock_speculate_try_begin(). ORDER: acquire, meets vma_end_write_all(): the walk sees all of the section
        // that ended before.
        let begun = mm.mm_lock_seq.try_begin();
        let Some(vma) = vma_next::<K>(cpu, vmi) else { return Ok(None) };
        match RefcntExclude::vma_start_read(cpu, mm, vma, |other| mmdrop(cpu, k, other)) {
            StartRead::Locked => {}
            StartRead::Detached => {
                // Each time round somebody has taken away what was found, so that this comes to an end.
                rcu_read_lock(cpu);
                mas_set(vmi, from);
                continue;
            }
            StartRead::Contended(_) => return lock_next_vma_under_mmap_lock::<K>(cpu, mm, vmi, from),
        }
        // Locked, so its range is stable. Behind where the walk is: it was another one when it was found.
        // ORDER: relaxed, both; the acquire of vma_start_read() is before them.
        let mut right = from < vma.vm_end().load(Relaxed);
        if right && from < vma.vm_start().load(Relaxed) {
            // A gap. It may be one that this VMA left by shrinking after it was found, and another one may be in it by
            // now; unless nothing changed since before the walk.
            // ORDER: a read barrier before the second look at the sequence, meets the write barrier of mmap_write_lock().
            let changed = begun.is_none_or(|seq| mm.mm_lock_seq.read_retry(seq));
            if changed {
                mas_set(vmi, from);
                right = vma_next::<K>(cpu, vmi).is_some_and(|again| std::ptr::eq(again.as_ptr(), vma.as_ptr()));
            }
        }
        if right {
            cpu.count(VmaLockEvent::NextLocked);
            return Ok(Some(vma));
        }
        rcu_read_unlock(cpu);
        RefcntExclude::vma_end_read(cpu, vma);
        return lock_next_vma_under_mmap_lock::<K>(cpu, mm, vmi, from);
    }
}

/// `lock_next_vma_under_mmap_lock()`, and entering RCU again behind it. Outside RCU.
#[cold]
fn lock_next_vma_under_mmap_lock<K: Kconfig<Lock = RefcntExclude>>(
    cpu: &Cpu<K::A>,
    mm: MmPtr<K>,
    vmi: &mut MaState<'_, K::A>,
    from: u64,
) -> Result<Option<VmaPtr<K>>, Errno> {
    cpu.count(VmaLockEvent::NextFallback);
    let found = mmap_read_lock_killable(cpu, &*mm).and_then(|()| {
        mas_set(vmi, from);
        let vma = vma_next::<K>(cpu, vmi);
        let locked = vma.is_none_or(|v| RefcntExclude::vma_start_read_locked(cpu, v));
        mmap_read_unlock(cpu, &*mm);
        if locked { Ok(vma) } else { Err(Errno::EAGAIN) }
    });
    rcu_read_lock(cpu);
    // Nodes that the cursor stood on may be gone.
    // ORDER: relaxed; the VMA is locked, by a count taken under mmap_lock.
    match found {
        Ok(Some(vma)) => mas_set(vmi, vma.vm_end().load(Relaxed)),
        _ => mas_set(vmi, from),
    }
    found
}
