// SPDX-License-Identifier: GPL-2.0-only
//! `kfree_rcu`: a cache of VMAs freed by `kfree_rcu()`: in batches, after a grace period or seconds later, by a kernel
//! thread (6.12) or through the cache's `rcu_free` sheaf (7.x). No kernel frees VMAs so; it separates the cost of one
//! callback a VMA from that of waiting for a grace period.
//!
//! A protocol with a separate lock object cannot have it: its callback frees two objects (slab.md 5).
//!
//! `vma_reclaim` is counted when the object is handed over: no code of mm runs when it is freed.

use super::{CacheKind, VmaCache, VmaState, kmem_cache_call_rcu, vma_reclaimed};
use crate::arch::Hardware;
use crate::cpu::Cpu;
use crate::mm::mm_types::{VmaRef, vm_rcu};
use crate::mm::vma_lock::VmaLock;
use crate::mm::vmstat::warn_on_once;
use crate::slab::kfree_rcu;

/// See the module.
pub const KIND: CacheKind = CacheKind {
    cache: VmaCache::KfreeRcu,
    name: "kfree_rcu",
    about: "a cache of its own, freed in batches by kfree_rcu()",
    frees_lock: false,
    ..kmem_cache_call_rcu::KIND
};

/// `vm_area_free()`
///
/// # Safety
/// As [`super::vm_area_free`].
#[inline]
pub(super) unsafe fn free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, st: &VmaState<A>, vma: VmaRef<A, L>) {
    // A stale reader may hold a semaphore for a moment; what a protocol asserts at a free says so.
    warn_on_once(cpu, !L::vma_lock_is_free(vma));
    vma_reclaimed::<A, L>(cpu, vma);
    // SAFETY: the caller's: the VMA is out of the tree; its first two words are the head's.
    unsafe { kfree_rcu(cpu, &st.vm_area_cachep, vm_rcu::<A, L>(vma), vma.as_ptr().cast()) };
}
