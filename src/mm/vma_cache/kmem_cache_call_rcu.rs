// SPDX-License-Identifier: GPL-2.0-only
//! `call_rcu`: a cache of VMAs (and one of lock objects), freed after a grace period [kernel/fork.c, 6.12].
//!
//! Neither cache asks for line alignment: with the layout of 6.12 a VMA begins at any 8-byte phase of a line, and two
//! unrelated 40-byte locks share one. That is part of what is compared.

use super::{VmaCache, vm_area_free_rcu};
use crate::arch::Hardware;
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaRef;
use crate::mm::vma_lock::VmaLock;
use crate::slab::{KmemCacheArgs, SLAB_ACCOUNT, SLAB_PANIC};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct CallRcu;

impl VmaCache for CallRcu {
    const NAME: &'static str = "call_rcu";
    const ABOUT: &'static str = "a cache of its own, freed by call_rcu()";
    const TYPESAFE: bool = false;

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

    fn vma_lock_args(size: usize) -> KmemCacheArgs {
        KmemCacheArgs { name: "vma_lock", size, align: 8, flags: SLAB_PANIC | SLAB_ACCOUNT, ..KmemCacheArgs::default() }
    }

    #[inline]
    unsafe fn vm_area_free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
        // SAFETY: the caller's.
        unsafe { vm_area_free_rcu::<A, L>(cpu, vma) }
    }
}
