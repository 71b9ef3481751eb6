// SPDX-License-Identifier: GPL-2.0-only
//! `typesafe`: a cache whose objects are reused at once and whose pages wait for a grace period [kernel/fork.c, 6.15;
//! v10 17/18; v5 4/6 and 5/6 for protocols with a constructor].
//!
//! The free pointer lies over `vm_start` (offset 0), so that the object does not grow and a stale reader, which trusts
//! no range before it has proved the VMA attached, never takes it for an address it believes. A constructor leaves that
//! word alone.

use super::{CacheKind, VmaCache, VmaState, kmem_cache_call_rcu, vm_area_free_now};
use crate::arch::Hardware;
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaRef;
use crate::mm::vma_lock::VmaLock;
use crate::mm::vmstat::warn_on_once;
use crate::slab::{KmemCacheArgs, SLAB_ACCOUNT, SLAB_HWCACHE_ALIGN, SLAB_PANIC, SLAB_TYPESAFE_BY_RCU};

/// See the module.
pub const KIND: CacheKind = CacheKind {
    cache: VmaCache::Typesafe,
    name: "typesafe",
    about: "SLAB_TYPESAFE_BY_RCU: an object is reused at once, its page waits",
    typesafe: true,
    frees_lock: true,
    vm_area_args,
    // No protocol with a separate lock tolerates this cache; the name is for completeness.
    vma_lock_args: kmem_cache_call_rcu::vma_lock_args,
};

fn vm_area_args(size: usize, align: usize) -> KmemCacheArgs {
    KmemCacheArgs {
        name: "vm_area_struct",
        size,
        align,
        flags: SLAB_HWCACHE_ALIGN | SLAB_PANIC | SLAB_TYPESAFE_BY_RCU | SLAB_ACCOUNT,
        freeptr_offset: Some(0),
        sheaf_capacity: 32,
        ..KmemCacheArgs::default()
    }
}

/// `vm_area_free()`
///
/// # Safety
/// As [`super::vm_area_free`]; the protocol tolerates reuse.
#[inline]
pub(super) unsafe fn free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, st: &VmaState<A>, vma: VmaRef<A, L>) {
    warn_on_once(cpu, !L::vma_lock_is_free(vma));
    // SAFETY: the caller's.
    unsafe { vm_area_free_now::<A, L>(cpu, st, vma) }
}
