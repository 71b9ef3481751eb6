// SPDX-License-Identifier: GPL-2.0-only
//! `kmalloc_call_rcu`: VMAs from the 192-byte kmalloc class (those with a semaphore inside from the 256-byte one), lock
//! objects from the 64-byte one, freed after a grace period. No kernel did this; it separates "a cache of one's own" from
//! "freed through RCU" in the ablation.
//!
//! The classes are private to VMAs: in a kernel they would share slabs with strangers (slab.md 1.8). The free pointer
//! lies in the middle of the object, as in every cache without constructor. They are those of the accounted family, which
//! GFP_KERNEL_ACCOUNT leads to: VMAs are charged to a cgroup whichever way they are allocated.

use super::{CacheKind, VmaCache};
use crate::slab::{KmemCacheArgs, SLAB_ACCOUNT, SLAB_PANIC};

/// See the module.
pub const KIND: CacheKind = CacheKind {
    cache: VmaCache::KmallocCallRcu,
    name: "kmalloc_call_rcu",
    about: "kmalloc-192 or -256, freed by call_rcu()",
    typesafe: false,
    frees_lock: true,
    vm_area_args,
    vma_lock_args,
};

fn vm_area_args(size: usize, align: usize) -> KmemCacheArgs {
    let (name, size) =
        if size <= 192 { ("kmalloc-cg-192", 192) } else { ("kmalloc-cg-256", size.next_multiple_of(256)) };
    KmemCacheArgs {
        name,
        label: Some("vm_area_struct"),
        size,
        align,
        flags: SLAB_PANIC | SLAB_ACCOUNT,
        sheaf_capacity: 32,
        ..KmemCacheArgs::default()
    }
}

fn vma_lock_args(size: usize) -> KmemCacheArgs {
    KmemCacheArgs {
        name: "kmalloc-cg-64",
        label: Some("vma_lock"),
        size: size.next_multiple_of(64),
        align: 64,
        flags: SLAB_PANIC | SLAB_ACCOUNT,
        ..KmemCacheArgs::default()
    }
}
