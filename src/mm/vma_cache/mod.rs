// SPDX-License-Identifier: GPL-2.0-only
//! How VMAs are allocated and freed: the trait, and the list of all ways.
//!
//! A way is one file: which slab cache (or kmalloc class) the objects come from, and whether a free goes to the
//! allocator at once or through RCU. Where the protocol has a separate lock object, it is freed with its VMA, lock
//! first, by the same callback [kernel/fork.c, 6.12].
//!
//! PORT: the kernel's callback finds the caches in statics; here they are in [`VmaState`], to which each VMA points
//! from `vm_private_data`, a field that anonymous memory does not use.

pub mod kfree_rcu;
pub mod kmalloc_call_rcu;
pub mod kmem_cache_call_rcu;
pub mod typesafe_by_rcu;

use super::mm_types::{VmaFields, VmaOf, VmaRef, vm_rcu, vma_of_rcu, vma_state};
use super::vma_lock::VmaLock;
use super::vmstat::{VmEvent, warn_on_once};
use crate::arch::arena::KRef;
use crate::arch::{Arena, Hardware, Relaxed};
use crate::cpu::Cpu;
use crate::rcu::{RcuHead, RcuState, call_rcu};
use crate::slab::{KmemCache, KmemCacheArgs, SlabState, kmem_cache_create, kmem_cache_free};
use std::fmt::Debug;
use std::ptr::NonNull;

/// The caches of VMAs and their locks: `vm_area_cachep`, `vma_lock_cachep`.
pub struct VmaState<A: Hardware> {
    /// VMAs.
    pub vm_area_cachep: KRef<KmemCache<A>>,
    /// Lock objects, in protocols that have them.
    pub vma_lock_cachep: Option<KRef<KmemCache<A>>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
}

/// A way to allocate and free VMAs.
pub trait VmaCache: Sized + Copy + Send + Sync + Debug + 'static {
    /// Slug.
    const NAME: &'static str;
    /// One sentence.
    const ABOUT: &'static str;
    /// Whether a freed VMA may become another one at once.
    const TYPESAFE: bool;
    /// Whether its free gives a separate lock object back too.
    const FREES_LOCK: bool = true;
    /// The cache of objects of `size` bytes, aligned to `align`, that hold VMAs.
    fn vm_area_args(size: usize, align: usize) -> KmemCacheArgs;
    /// The cache of the lock objects.
    fn vma_lock_args(size: usize) -> KmemCacheArgs;

    /// `vm_area_free()`: gives back a VMA that is detached, or that was never attached.
    ///
    /// # Safety
    /// `vma` was allocated by `vm_area_alloc()` or `vm_area_dup()` and nobody else frees it.
    unsafe fn vm_area_free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>);
}

/// `vma_state_init()`: creates the caches.
pub fn vma_state_init<A: Hardware, L: VmaLock, C: VmaCache>(
    arena: &Arena,
    slab: KRef<SlabState<A>>,
) -> KRef<VmaState<A>> {
    let args = C::vm_area_args(size_of::<VmaOf<A, L>>(), align_of::<VmaOf<A, L>>());
    let vm_area_cachep = kmem_cache_create(arena, slab, args);
    let vma_lock_cachep = L::SEPARATE_LOCK.then(|| {
        let args = C::vma_lock_args(size_of::<super::mm_types::VmaLockObject<A>>());
        kmem_cache_create(arena, slab, args)
    });
    arena.boot_new(0, VmaState { vm_area_cachep, vma_lock_cachep, rcu: slab.rcu })
}

/// `__vm_area_free()`: lock object first, then the VMA, to the allocator.
///
/// # Safety
/// As [`VmaCache::vm_area_free`]; besides, no reader can still hold the object, or it tolerates reuse.
#[inline]
pub(super) unsafe fn vm_area_free_now<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
    // SAFETY: the caller's.
    let st = unsafe { vma_state::<A, L>(vma) };
    vma_reclaimed::<A, L>(cpu, vma);
    // SAFETY: both objects were allocated together from these caches and are freed once.
    unsafe {
        if let (Some(slot), Some(cachep)) = (vma.vm_lock(), st.vma_lock_cachep) {
            kmem_cache_free(cpu, &cachep, slot.load(Relaxed).cast());
        }
        kmem_cache_free(cpu, &st.vm_area_cachep, vma.as_ptr().cast());
    }
}

/// The head of `__vm_area_free()`: what hangs on a VMA goes before it.
#[inline(always)]
fn vma_reclaimed<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
    // The two loads are the kernel's (free of the NUMA state and of the name), and touch the line it touches. A name
    // here is a number, which nobody counts.
    warn_on_once(cpu, vma.numab_state().load(Relaxed) != 0);
    vma.anon_name().load(Relaxed);
    cpu.count(VmEvent::VmaReclaim);
}

/// `vm_area_free_rcu_cb()`
///
/// # Safety
/// Called by RCU with the head of a VMA queued by [`vm_area_free_rcu`] of the same types.
unsafe fn vm_area_free_rcu_cb<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the head is the beginning of a VMA that only this callback owns.
    unsafe {
        let vma: VmaRef<A, L> = KRef::new(NonNull::new_unchecked(vma_of_rcu::<A, L>(head)));
        warn_on_once(cpu, !L::vma_lock_is_free(vma));
        vm_area_free_now::<A, L>(cpu, vma);
    }
}

/// `vm_area_free()` of the call_rcu ways: the object waits for a grace period.
///
/// # Safety
/// As [`VmaCache::vm_area_free`].
#[inline]
pub(super) unsafe fn vm_area_free_rcu<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
    // SAFETY: the object is out of the tree, and only the callback will free it.
    unsafe {
        let st = vma_state::<A, L>(vma);
        call_rcu(cpu, &st.rcu, vm_rcu::<A, L>(vma), vm_area_free_rcu_cb::<A, L>);
    }
}

/// A line of the list of ways.
#[derive(Clone, Copy, Debug)]
pub struct CacheKind {
    /// Slug.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Whether a freed VMA may become another one at once.
    pub typesafe: bool,
    /// Whether its free gives a separate lock object back too.
    pub frees_lock: bool,
}

const fn built<C: VmaCache>() -> CacheKind {
    CacheKind { name: C::NAME, about: C::ABOUT, typesafe: C::TYPESAFE, frees_lock: C::FREES_LOCK }
}

/// Every way that the question knows.
pub const CACHES: &[CacheKind] = &[
    built::<kmalloc_call_rcu::KmallocCallRcu>(),
    built::<kmem_cache_call_rcu::CallRcu>(),
    built::<kfree_rcu::KfreeRcu>(),
    built::<typesafe_by_rcu::Typesafe>(),
];
