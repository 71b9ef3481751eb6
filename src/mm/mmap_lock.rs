// SPDX-License-Identifier: GPL-2.0-only
//! `mmap_lock`, the sequence that ends all VMA locks at once, and finding a VMA without `mmap_lock`
//! [include/linux/mmap_lock.h, mm/memory.c, 6.12; the mm check of 6.15].
//!
//! Lock order: `mmap_lock`, then a VMA's lock, then the anon_vma's lock, then the page table locks.
//!
//! INVARIANT: `mm_lock_seq` is odd exactly while `mmap_lock` is held for write.
//! stub: tracing, killable waits (the port has no signals).

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{MmRef, VmaFields, VmaOf, VmaRef};
use super::vma_lock::{AbortCause, StartRead, VmaLock};
use super::vmstat::{VmEvent, count_abort};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Relaxed};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_walk};
use crate::mm::mm_types::MmStruct;
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::{down_read, down_read_trylock, down_write, downgrade_write, up_read, up_write};
use std::ptr::NonNull;

/// `mmap_read_lock()`
#[inline]
pub fn mmap_read_lock<A: Arch, L: VmaLock>(cpu: &Cpu<A>, mm: &MmStruct<A, L>) {
    cpu.count(VmEvent::MmapLockRead);
    down_read(cpu, &mm.mmap_lock);
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
    down_write(cpu, &mm.mmap_lock);
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

/// R2 to R6: read-locks a VMA that a walk for `address` found, and looks whether it is what was looked for. Under RCU.
#[inline(always)]
pub fn lock_vma_found<A: Arch, L: VmaLock>(
    cpu: &Cpu<A>,
    mm: MmRef<A, L>,
    vma: VmaRef<A, L>,
    address: u64,
) -> StartRead {
    match L::vma_start_read(cpu, mm, vma) {
        StartRead::Locked => {}
        other => return other,
    }
    // R6. From here on V is locked and attached, so its fields are stable; it may be another VMA than the one found
    // (typesafe memory), or have another range (split, merge).
    // ORDER: relaxed: R3's acquire (E1) and R4's (E2) come before.
    let cause = if !L::vma_is_of(mm, vma) {
        AbortCause::OtherMm
    } else if address < vma.vm_start().load(Relaxed) || address >= vma.vm_end().load(Relaxed) {
        AbortCause::Range
    } else {
        return StartRead::Locked;
    };
    L::vma_end_read(cpu, vma);
    StartRead::Contended(cause)
}

/// `lock_vma_under_rcu()`: the VMA that covers `address`, read-locked; `None` after counting the abort.
///
/// PORT: none in the order of steps. As in 6.12 and 6.15 a detached VMA makes the walk start again inside the same
/// RCU section, at the start of the range that was found and not at `address` (7.3 goes back to `address`); where the
/// new VMA there does not cover `address` the fault aborts.
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
    let cause = loop {
        // R1. SAFETY: under RCU.
        let Some(vma) = (unsafe { vma_of_entry::<K>(mas_walk(cpu, &mut mas)) }) else {
            break AbortCause::None;
        };
        match lock_vma_found(cpu, mm, vma, address) {
            StartRead::Detached => {
                cpu.count(VmEvent::VmaLockMiss);
                continue;
            }
            StartRead::Contended(cause) => break cause,
            StartRead::Locked => {}
        }
        // R7.
        rcu_read_unlock(cpu);
        return Ok(vma);
    };
    rcu_read_unlock(cpu);
    Err(cause)
}
