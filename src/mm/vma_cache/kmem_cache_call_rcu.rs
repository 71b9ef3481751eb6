// SPDX-License-Identifier: GPL-2.0-only
//! `call_rcu`: a cache of VMAs (and one of lock objects), freed after a grace period [kernel/fork.c, 6.12].
//!
//! Neither cache asks for line alignment: with the layout of 6.12 a VMA begins at any 8-byte phase of a line, and two
//! unrelated 40-byte locks share one. That is part of what is compared.

use super::{CacheKind, VmaCache};
use crate::slab::{KmemCacheArgs, SLAB_ACCOUNT, SLAB_PANIC};

/// See the module.
pub const KIND: CacheKind = CacheKind {
    cache: VmaCache::CallRcu,
    name: "call_rcu",
    about: "a cache of its own, freed by call_rcu()",
    typesafe: false,
    frees_lock: true,
    vm_area_args,
    vma_lock_args,
};

fn vm_area_args(size: usize, align: usize) -> KmemCacheArgs {
    KmemCacheArgs {
        name: "vm_area_struct",
        size,
        align,
        flags: SLAB_PANIC | SLAB_ACCOUNT,
        sheaf_capacity: 32,
        ..KmemCacheArgs::default()
    }
}

pub(super) fn vma_lock_args(size: usize) -> KmemCacheArgs {
    KmemCacheArgs { name: "vma_lock", size, align: 8, flags: SLAB_PANIC | SLAB_ACCOUNT, ..KmemCacheArgs::default() }
}
