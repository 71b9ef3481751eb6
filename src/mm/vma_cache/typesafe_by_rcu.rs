// SPDX-License-Identifier: GPL-2.0-only
//! `typesafe`: a cache whose objects are reused at once and whose pages wait for a grace period [kernel/fork.c, 6.15;
//! v10 17/18].
//!
//! The free pointer lies over `vm_start` (offset 0), so that the object does not grow and a stale reader, which trusts
//! no range before it has proved the VMA attached, never takes it for an address it believes.

use super::{VmaCache, vm_area_free_now};
use crate::arch::Hardware;
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaRef;
use crate::mm::vma_lock::VmaLock;
use crate::mm::vmstat::warn_on_once;
use crate::slab::{KmemCacheArgs, SLAB_ACCOUNT, SLAB_HWCACHE_ALIGN, SLAB_PANIC, SLAB_TYPESAFE_BY_RCU};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Typesafe;

impl VmaCache for Typesafe {
    const NAME: &'static str = "typesafe";
    const ABOUT: &'static str = "SLAB_TYPESAFE_BY_RCU: an object is reused at once, its page waits";
    const TYPESAFE: bool = true;

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

    fn vma_lock_args(size: usize) -> KmemCacheArgs {
        // No protocol with a separate lock tolerates this cache; the name is for completeness.
        super::kmem_cache_call_rcu::CallRcu::vma_lock_args(size)
    }

    #[inline]
    unsafe fn vm_area_free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
        warn_on_once(cpu, !L::vma_lock_is_free(vma));
        // SAFETY: the caller's; the protocol tolerates reuse.
        unsafe { vm_area_free_now::<A, L>(cpu, vma) }
    }
}
