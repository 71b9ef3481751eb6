// SPDX-License-Identifier: GPL-2.0-only
//! Allocating, duplicating and freeing VMAs [kernel/fork.c, 6.12; mm/vma_init.c, 7.3].
//!
//! dup: the order of allocations and stores. custom: fields are stored one by one, since in typesafe memory a stale
//! reader may be doing atomic operations on the object; the lock's are the protocol's ([`VmaLock::vma_lock_init`]), and
//! where there is a constructor neither allocation nor copy touches them. stub: cgroup accounting, NUMA policy, anonymous names.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{VmaFields, VmaLockObject, VmaOf, VmaRef, vma_state};
use super::vma_cache::{self, VmaState, vm_area_free_now};
use super::vma_lock::VmaLock;
use super::vmstat::VmEvent;
use crate::arch::arena::KRef;
use crate::arch::{Hardware, Relaxed};
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::slab::{kmem_cache_alloc, kmem_cache_free};
use crate::sync::RwSemaphore;
use std::ptr::NonNull;

/// `vma_lock_alloc()`: the separate lock object, where the protocol has one; false when out of memory.
#[inline]
fn vma_lock_alloc<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, st: &VmaState<A>, vma: VmaRef<A, L>) -> bool {
    if let (Some(slot), Some(cachep)) = (vma.vm_lock(), st.vma_lock_cachep) {
        let p = kmem_cache_alloc(cpu, &cachep).cast::<VmaLockObject<A>>();
        if p.is_null() {
            return false;
        }
        // SAFETY: a fresh object of that size; nobody knows it, as it waited for a grace period since its last life.
        unsafe { p.write(VmaLockObject { lock: RwSemaphore::new() }) };
        slot.store(p, Relaxed);
    }
    L::vma_lock_init(vma, st.typesafe());
    true
}

fn vm_area_object<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> Option<VmaPtr<K>> {
    let p = kmem_cache_alloc(cpu, &k.vma_state.vm_area_cachep).cast::<VmaOf<K::A, K::Lock>>();
    // SAFETY: an object of the VMA cache: large enough, aligned, and all its fields are words that any bytes fit.
    NonNull::new(p).map(|p| unsafe { KRef::new(p) })
}

/// `vm_area_alloc()`: a detached VMA of `mm` without a range; `None` when out of memory.
pub fn vm_area_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) -> Option<VmaPtr<K>> {
    let vma = vm_area_object(cpu, k)?;
    vma.vma_init(mm.as_ptr(), k.vma_state.as_ptr() as usize);
    finish(cpu, k, vma)
}

/// `vm_area_dup()`: a detached copy of `orig` with an empty chain; `None` when out of memory.
pub fn vm_area_dup<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, orig: VmaPtr<K>) -> Option<VmaPtr<K>> {
    let vma = vm_area_object(cpu, k)?;
    vma.vm_area_init_from(&orig);
    finish(cpu, k, vma)
}

fn finish<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>) -> Option<VmaPtr<K>> {
    if !vma_lock_alloc::<K::A, K::Lock>(cpu, &k.vma_state, vma) {
        // SAFETY: just allocated, not published.
        unsafe { kmem_cache_free(cpu, &k.vma_state.vm_area_cachep, vma.as_ptr().cast()) };
        return None;
    }
    cpu.count(VmEvent::VmaAlloc);
    Some(vma)
}

/// `vm_area_free()`: as the kernel was booted, at once or after a grace period.
pub fn vm_area_free<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    cpu.count(VmEvent::VmaFree);
    // SAFETY: callers free a VMA once, after detaching it or before attaching it.
    unsafe { vma_cache::vm_area_free::<K::A, K::Lock>(cpu, vma) }
}

/// `__vm_area_free()`: without waiting, at exit, when no reader can be left.
pub fn vm_area_free_unreachable<K: Kconfig>(cpu: &Cpu<K::A>, vma: VmaPtr<K>) {
    // SAFETY: it was allocated by this kernel.
    let st = unsafe { vma_state::<K::A, K::Lock>(vma) };
    if st.typesafe() {
        return vm_area_free::<K>(cpu, vma);
    }
    cpu.count(VmEvent::VmaFree);
    // SAFETY: the last user of the mm is gone: nobody looks VMAs up in it.
    unsafe { vm_area_free_now::<K::A, K::Lock>(cpu, &st, vma) }
}
