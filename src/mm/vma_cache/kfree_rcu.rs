// SPDX-License-Identifier: GPL-2.0-only
//! `kfree_rcu`: a cache of VMAs freed by `kfree_rcu()`: in batches, after a grace period or seconds later, by a kernel
//! thread (6.12) or through the cache's `rcu_free` sheaf (7.x). No kernel frees VMAs so; it separates the cost of one
//! callback a VMA from that of waiting for a grace period.
//!
//! A protocol with a separate lock object cannot have it: its callback frees two objects (slab.md 5).
//!
//! `vma_reclaim` is counted when the object is handed over: no code of mm runs when it is freed.

use super::{VmaCache, vma_reclaimed};
use crate::arch::Hardware;
use crate::cpu::Cpu;
use crate::mm::mm_types::{VmaRef, vm_rcu, vma_state};
use crate::mm::vma_lock::VmaLock;
use crate::mm::vmstat::warn_on_once;
use crate::slab::{KmemCacheArgs, kfree_rcu};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct KfreeRcu;

impl VmaCache for KfreeRcu {
    const NAME: &'static str = "kfree_rcu";
    const ABOUT: &'static str = "a cache of its own, freed in batches by kfree_rcu()";
    const TYPESAFE: bool = false;
    const FREES_LOCK: bool = false;

    fn vm_area_args(size: usize, align: usize) -> KmemCacheArgs {
        super::kmem_cache_call_rcu::CallRcu::vm_area_args(size, align)
    }

    fn vma_lock_args(size: usize) -> KmemCacheArgs {
        // No protocol with a separate lock can have this cache; the name is for completeness.
        super::kmem_cache_call_rcu::CallRcu::vma_lock_args(size)
    }

    #[inline]
    unsafe fn vm_area_free<A: Hardware, L: VmaLock>(cpu: &Cpu<A>, vma: VmaRef<A, L>) {
        warn_on_once(cpu, !L::vma_lock_is_free(vma));
        vma_reclaimed::<A, L>(cpu, vma);
        // SAFETY: the caller's: the VMA is out of the tree; its first two words are the head's.
        unsafe {
            let st = vma_state::<A, L>(vma);
            kfree_rcu(cpu, &st.vm_area_cachep, vm_rcu::<A, L>(vma), vma.as_ptr().cast());
        }
    }
}
