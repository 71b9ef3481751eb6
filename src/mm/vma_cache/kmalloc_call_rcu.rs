// SPDX-License-Identifier: GPL-2.0-only
//! `kmalloc_call_rcu`: VMAs from the 192-byte kmalloc class, lock objects from the 64-byte one, freed after a grace
//! period. No kernel did this; it separates "a cache of one's own" from "freed through RCU" in the ablation.
//!
//! The classes are private to VMAs: in a kernel they would share slabs with strangers (slab.md 1.8). The free pointer
//! lies in the middle of the object, as in every cache without constructor.

use super::{VmaCache, vm_area_free_rcu};
use crate::arch::Hardware;
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaRef;
use crate::mm::vma_lock::VmaLock;
use crate::slab::{KmemCacheArgs, SLAB_PANIC};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct KmallocCallRcu;

impl VmaCache for KmallocCallRcu {
    const NAME: &'static str = "kmalloc_call_rcu";
    const ABOUT: &'static str = "kmalloc-192, freed by call_rcu()";
    const TYPESAFE: bool = false;

    fn vm_area_args(size: usize, align: usize) -> KmemCacheArgs {
        KmemCacheArgs {
            name: "kmalloc-192",
            label: Some("vm_area_struct"),
            size: size.next_multiple_of(192),
            align,
            flags: SLAB_PANIC,
            sheaf_capacity: 32,
            ..KmemCacheArgs::default()
        }
    }

    fn vma_lock_args(size: usize) -> KmemCacheArgs {
        KmemCacheArgs {
            name: "kmalloc-64",
            label: Some("vma_lock"),
            size: size.next_multiple_of(64),
            align: 64,
            flags: SLAB_PANIC,
            ..KmemCacheArgs::default()
        }
    }

    #[inline]
    unsafe fn vm_area_free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
        // SAFETY: the caller's.
        unsafe { vm_area_free_rcu::<A, L>(cpu, vma) }
    }
}
