// SPDX-License-Identifier: GPL-2.0-only
//! How VMAs are allocated and freed: the list of all ways, and the choice that a kernel is booted with.
//!
//! A way is one file: which slab cache (or kmalloc class) the objects come from, and whether a free goes to the
//! allocator at once or through RCU. Where the protocol has a separate lock object, it is freed with its VMA, lock
//! first, by the same callback [kernel/fork.c, 6.12].
//!
//! PORT: a kernel is built with one way; here it is chosen at boot ([`VmaState::cache`]), so that the program holds one copy
//! of everything above per protocol and not one per protocol and way. It costs a load from a line that each free reads
//! anyway and a branch that always goes the same way.
//!
//! PORT: the kernel's callback finds the caches in statics; here they are in [`VmaState`], to which each VMA points
//! from `vm_private_data`, a field that anonymous memory does not use.

pub mod kfree_rcu;
pub mod kmalloc_call_rcu;
pub mod kmem_cache_call_rcu;
pub mod typesafe_by_rcu;

use super::mm_types::{VmaFields, VmaLockObject, VmaOf, VmaRef, vm_rcu, vma_of_rcu, vma_state};
use super::vma_lock::{Reuse, VmaLock};
use super::vmstat::{VmEvent, warn_on_once};
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Arena, Hardware, Native, Relaxed};
use crate::cpu::Cpu;
use crate::rcu::{RcuHead, RcuState, call_rcu};
use crate::slab::slab_common::calculate_sizes_for;
use crate::slab::{Allocator, KmemCache, KmemCacheArgs, SlabState, kmem_cache_create, kmem_cache_free};
use std::ptr::NonNull;

/// A way to allocate and free VMAs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmaCache {
    /// [`kmalloc_call_rcu`]
    KmallocCallRcu,
    /// [`kmem_cache_call_rcu`]
    #[default]
    CallRcu,
    /// [`kfree_rcu`]
    KfreeRcu,
    /// [`typesafe_by_rcu`]
    Typesafe,
}

impl VmaCache {
    /// Its line of [`CACHES`].
    pub fn kind(self) -> &'static CacheKind {
        &CACHES[self as usize]
    }
}

/// A line of the list of ways.
#[derive(Clone, Copy, Debug)]
pub struct CacheKind {
    /// The way.
    pub cache: VmaCache,
    /// Slug.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Whether a freed VMA may become another one at once.
    pub typesafe: bool,
    /// Whether its free gives a separate lock object back too.
    pub frees_lock: bool,
    /// The cache of objects of `(size, align)` bytes that hold VMAs.
    pub vm_area_args: fn(usize, usize) -> KmemCacheArgs,
    /// The cache of lock objects of `size` bytes.
    pub vma_lock_args: fn(usize) -> KmemCacheArgs,
}

/// Every way that the question knows, in the order of [`VmaCache`].
pub const CACHES: &[CacheKind] =
    &[kmalloc_call_rcu::KIND, kmem_cache_call_rcu::KIND, kfree_rcu::KIND, typesafe_by_rcu::KIND];

/// Why a protocol that bears `reuse`, with a lock object of its own or not, cannot have a cache; `None`: it can.
pub fn refusal(reuse: Reuse, separate_lock: bool, cache: &CacheKind) -> Option<String> {
    match reuse {
        Reuse::Forbids(why) if cache.typesafe => return Some(why.into()),
        _ => {}
    }
    (separate_lock && !cache.frees_lock).then(|| {
        format!(
            "cache '{}' frees one object, and its VMAs have a lock object besides, which only a callback can free",
            cache.name
        )
    })
}

/// The caches of VMAs and their locks: `vm_area_cachep`, `vma_lock_cachep`.
pub struct VmaState<A: Hardware> {
    /// VMAs.
    pub vm_area_cachep: KRef<KmemCache<A>>,
    /// Lock objects, in protocols that have them.
    pub vma_lock_cachep: Option<KRef<KmemCache<A>>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
    /// How VMAs are freed.
    pub cache: VmaCache,
}

impl<A: Hardware> VmaState<A> {
    /// Whether a freed VMA may become another one at once.
    #[inline(always)]
    pub fn typesafe(&self) -> bool {
        self.cache == VmaCache::Typesafe
    }
}

/// `vma_state_init()`: creates the caches.
///
/// # Panics
/// Where the protocol cannot have the cache.
pub fn vma_state_init<A: Hardware, L: VmaLock>(
    arena: &Arena,
    slab: KRef<SlabState<A>>,
    cache: VmaCache,
) -> KRef<VmaState<A>> {
    let kind = cache.kind();
    if let Some(why) = refusal(L::REUSE, L::SEPARATE_LOCK, kind) {
        panic!("protocol {} cannot have cache {}: {why}", L::NAME, kind.name);
    }
    let (vma, lock) = cache_args::<A, L>(kind);
    let vm_area_cachep = kmem_cache_create(arena, slab, vma);
    let vma_lock_cachep = lock.map(|args| kmem_cache_create(arena, slab, args));
    arena.boot_new(0, VmaState { vm_area_cachep, vma_lock_cachep, rcu: slab.rcu, cache })
}

/// The caches of protocol `L` under `kind`: of VMAs, and of their locks where these are objects of their own.
fn cache_args<A: Hardware, L: VmaLock>(kind: &CacheKind) -> (KmemCacheArgs, Option<KmemCacheArgs>) {
    let mut args = (kind.vm_area_args)(size_of::<VmaOf<A, L>>(), align_of::<VmaOf<A, L>>());
    if kind.typesafe {
        args.ctor = L::vma_ctor::<A>();
        args.freeptr_with_ctor = args.ctor.is_some();
    }
    (args, L::SEPARATE_LOCK.then(|| (kind.vma_lock_args)(size_of::<VmaLockObject<A>>())))
}

/// What one VMA takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Footprint {
    /// Bytes of its objects, from one to the next in a slab: the lock's too where it is an object of its own.
    pub objects: usize,
    /// Bytes of full slabs over their objects: what is left at a slab's end counts too.
    pub slab: f64,
}

/// What a VMA of protocol `L` takes in a kernel of `nr_cpus` CPUs with cache lines of 64 bytes.
pub fn footprint<L: VmaLock>(kind: &CacheKind, allocator: Allocator, nr_cpus: u32) -> Footprint {
    let (vma, lock) = cache_args::<Native, L>(kind);
    let mut sum = Footprint { objects: 0, slab: 0.0 };
    for args in [Some(vma), lock].into_iter().flatten() {
        let g = calculate_sizes_for(&args, nr_cpus, 64, allocator).expect("what a kernel boots with");
        sum.objects += g.size;
        sum.slab += (PAGE_SIZE << g.order) as f64 / f64::from(g.objects);
    }
    sum
}

/// `vm_area_free()`: gives back a VMA that is detached, or that was never attached.
///
/// # Safety
/// `vma` was allocated by `vm_area_alloc()` or `vm_area_dup()` and nobody else frees it.
#[inline]
pub(super) unsafe fn vm_area_free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
    // SAFETY: the caller's.
    let st = unsafe { vma_state::<A, L>(vma) };
    L::vma_freed(cpu, vma);
    // SAFETY: the caller's; vma_state_init() refused what the protocol cannot bear.
    unsafe {
        match st.cache {
            VmaCache::Typesafe => typesafe_by_rcu::free::<A, L>(cpu, &st, vma),
            VmaCache::CallRcu | VmaCache::KmallocCallRcu => vm_area_free_rcu::<A, L>(cpu, &st, vma),
            VmaCache::KfreeRcu => kfree_rcu::free::<A, L>(cpu, &st, vma),
        }
    }
}

/// `__vm_area_free()`: lock object first, then the VMA, to the allocator.
///
/// # Safety
/// As [`vm_area_free`]; besides, no reader can still hold the object, or it tolerates reuse.
#[inline]
pub(super) unsafe fn vm_area_free_now<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, st: &VmaState<A>, vma: VmaRef<A, L>) {
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
        vm_area_free_now::<A, L>(cpu, &vma_state::<A, L>(vma), vma);
    }
}

/// `vm_area_free()` of the call_rcu ways: the object waits for a grace period.
///
/// # Safety
/// As [`vm_area_free`].
#[inline]
unsafe fn vm_area_free_rcu<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, st: &VmaState<A>, vma: VmaRef<A, L>) {
    // SAFETY: the object is out of the tree, and only the callback will free it.
    unsafe { call_rcu(cpu, &st.rcu, vm_rcu::<A, L>(vma), vm_area_free_rcu_cb::<A, L>) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::vma_lock::{refcnt::Refcnt, rwsem_keep_seq::RwsemKeepSeq, rwsem_separate::RwsemSeparate};
    use crate::slab::SLAB_ACCOUNT;

    #[test]
    fn each_way_stands_in_its_place() {
        for (i, c) in CACHES.iter().enumerate() {
            assert_eq!(c.cache as usize, i, "{}", c.name);
            assert_eq!(c.cache.kind().name, c.name);
        }
    }

    #[test]
    fn each_way_is_charged_alike() {
        for c in CACHES {
            for a in [(c.vm_area_args)(192, 64), (c.vma_lock_args)(40)] {
                assert_ne!(a.flags & SLAB_ACCOUNT, 0, "{}: {}", c.name, a.name);
            }
        }
    }

    /// Sizes of slabs, as the chapter gives them: 51 or 46 VMAs of 6.12 in two pages (44 with every option), 42 of 6.15,
    /// 32 of the series that moved the semaphore in. The free pointer lies inside, with a constructor too.
    #[test]
    fn objects_of_a_slab() {
        let g = |args: KmemCacheArgs| {
            let g = calculate_sizes_for(&args, 2, 64, Allocator::Slub).unwrap();
            (g.size, g.offset, 8192 / g.size)
        };
        let (call_rcu, typesafe) = (&kmem_cache_call_rcu::KIND, &typesafe_by_rcu::KIND);
        let (vma, lock) = cache_args::<Native, RwsemSeparate>(call_rcu);
        assert_eq!((g(vma).0, g(vma).2, g(lock.unwrap()).0), (184, 44, 40));
        let (vma, lock) = cache_args::<Native, Refcnt>(typesafe);
        assert!(lock.is_none() && vma.ctor.is_none());
        assert_eq!(g(vma), (192, 0, 42));
        let (vma, _) = cache_args::<Native, RwsemKeepSeq>(typesafe);
        assert!(vma.ctor.is_some());
        assert_eq!(g(vma), (256, 0, 32));
        // Slabs of 4 KiB: 22 VMAs, 102 locks; 21 VMAs.
        let old = footprint::<RwsemSeparate>(call_rcu, Allocator::Slub, 2);
        assert_eq!(old, Footprint { objects: 224, slab: 4096.0 / 22.0 + 4096.0 / 102.0 });
        let new = footprint::<Refcnt>(typesafe, Allocator::Sheaves, 2);
        assert_eq!(new, Footprint { objects: 192, slab: 4096.0 / 21.0 });
        let kmalloc = |size| (kmalloc_call_rcu::KIND.vm_area_args)(size, 64);
        assert_eq!((kmalloc(184).name, kmalloc(184).size), ("kmalloc-cg-192", 192));
        assert_eq!((kmalloc(256).name, kmalloc(256).size), ("kmalloc-cg-256", 256));
    }
}
