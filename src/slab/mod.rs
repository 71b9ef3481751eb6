// SPDX-License-Identifier: GPL-2.0-only
//! Floor 4: pages and slabs.
//!
//! [`page_alloc`] hands out pages by node; [`slub`] cuts them into objects the way Linux 6.12 does, from the structures
//! of [`slub_def`] (per-CPU slabs, CPU partial stacks, node lists), or the way 7.3 does: [`sheaf`] and [`barn`] in front
//! of [`slub_sheaves`]. [`Allocator`] chooses at boot. [`slab_common`] creates, shrinks and destroys caches; [`stat`]
//! counts under the names of CONFIG_SLUB_STATS. Options that a plain kernel does not pay for: [`fault_inject`], [`debug`],
//! [`memcg`].
//!
//! Boot order: [`page_alloc_init`], [`kmem_cache_init`], any number of [`kmem_cache_create`] and other boot memory, then
//! [`memblock_free_all`]. What is static in the kernel lives in [`SlabState`].
//!
//! The allocator calls RCU only through `call_rcu` (one callback per emptied slab of a type-stable cache) and
//! `rcu_barrier`; RCU calls the allocator only from callbacks at quiescent points. So nothing interrupts an allocator
//! call, local locks vanish and the transaction number never mismatches, but its exchange is paid for all the same.
//!
//! Lock order: a node's `list_lock`, then nothing; a barn's lock, then nothing: pages are taken and given back with no
//! lock of this floor held.

pub mod barn;
pub mod debug;
pub mod fault_inject;
#[cfg(test)]
mod held;
mod hooks;
#[cfg(test)]
mod invariants;
mod kvfree_def;
pub mod kvfree_rcu;
#[cfg(test)]
mod kvfree_tests;
pub mod memcg;
#[cfg(test)]
mod model;
pub mod page_alloc;
pub(crate) mod record;
pub mod reuse;
pub mod sheaf;
pub mod sheaf_bulk;
#[cfg(test)]
mod sheaf_invariants;
pub mod sheaf_rcu;
#[cfg(test)]
mod sheaf_tests;
#[cfg(test)]
mod sim_torture;
pub mod slab_common;
pub mod slub;
mod slub_bulk;
pub mod slub_def;
pub mod slub_sheaves;
pub mod stat;
#[cfg(test)]
mod tests;

pub use debug::{BadFree, SlabReport, free_consistency_checks};
pub use fault_inject::{FaultAttr, FaultInjection};
pub use kvfree_rcu::{KvfreeRcu, drain_page_caches, flush_rcu_sheaves, kfree_rcu, kvfree_call_rcu, kvfree_rcu_barrier};
pub use page_alloc::{
    NUMA_NO_NODE, PageAllocator, alloc_page, alloc_pages, alloc_pages_node, build_zonelists, clear_page,
    drain_all_pages, free_page, free_pages, free_unref_folios, memblock_free_all, page_alloc_init,
    page_alloc_init_with,
};
pub use reuse::{REUSE_BINS, Reuse, ReuseCount, reuse_bin};
pub use sheaf::SlabSheaf;
pub use sheaf_bulk::{
    kmem_cache_alloc_from_sheaf, kmem_cache_prefill_sheaf, kmem_cache_refill_sheaf, kmem_cache_return_sheaf,
};
pub use slab_common::{
    __kmem_cache_create_args, KmemCacheArgs, SLAB_ACCOUNT, SLAB_HWCACHE_ALIGN, SLAB_NO_SHEAVES, SLAB_PANIC,
    SLAB_TYPESAFE_BY_RCU, kmalloc_cache_create, kmem_cache_create, kmem_cache_destroy, kmem_cache_shrink,
};
pub use slub::{flush_all_cpus, flush_cpu_slab, kfree, kmem_cache_alloc, kmem_cache_alloc_node, kmem_cache_free};
pub use slub_bulk::{kmem_cache_alloc_bulk, kmem_cache_free_bulk};
pub use slub_def::{KmemCache, Slab};
pub use stat::{SLUB_STATS, StatItem};

use crate::arch::arena::KRef;
use crate::arch::{Arena, Hardware, Native, Plain};
use crate::rcu::RcuState;
use std::ptr::null_mut;

/// Which allocator serves the caches; a property of the kernel booted, independent of how VMAs are freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocator {
    /// Per-CPU slabs and partial stacks [mm/slub.c, 6.12].
    #[default]
    Slub,
    /// Per-CPU arrays of objects, barns, no cpu slabs [mm/slub.c, 7.3].
    Sheaves,
}

/// How caches are built; recorded with every result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabOptions {
    /// Which allocator serves the caches.
    pub allocator: Allocator,
    /// CONFIG_SLAB_FREELIST_HARDENED: free pointers are stored mangled, frees are checked.
    pub hardened: bool,
    /// CONFIG_SLAB_FREELIST_RANDOM: new slabs hand out their objects in a random order.
    pub randomized: bool,
    /// CONFIG_INIT_ON_ALLOC_DEFAULT_ON: objects are cleared when allocated, but for type-stable caches and those with
    /// a constructor.
    pub init_on_alloc: bool,
    /// `failslab`: objects that are refused on purpose.
    pub failslab: Option<FaultAttr>,
    /// `fail_page_alloc`: pages that are refused on purpose, those for slabs included.
    pub fail_page_alloc: Option<FaultAttr>,
    /// SLAB_CONSISTENCY_CHECKS: each free is checked ([`debug`]).
    pub debug: bool,
    /// `SLAB_ACCOUNT` caches are charged to a cgroup ([`memcg`]).
    pub memcg: bool,
    /// Bytes of a cache line, for `SLAB_HWCACHE_ALIGN`.
    pub cache_line: usize,
    /// Start of the secrets and permutations.
    pub seed: u64,
}

impl Default for SlabOptions {
    /// As distributions build the kernel.
    fn default() -> Self {
        SlabOptions {
            allocator: Allocator::Slub,
            hardened: true,
            randomized: true,
            init_on_alloc: false,
            failslab: None,
            fail_page_alloc: None,
            debug: false,
            memcg: false,
            cache_line: 64,
            seed: 1,
        }
    }
}

/// What all caches share: where pages come from, which RCU delays them, for how many CPUs the geometry is.
pub struct SlabState<A: Hardware> {
    /// Pages.
    pub pages: KRef<PageAllocator<A>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
    /// `kfree_rcu()`.
    pub kvfree: KRef<KvfreeRcu<A>>,
    /// Which objects are allocated, in a debug kernel.
    pub shadow: Option<KRef<debug::ShadowMap>>,
    /// The cgroup charged, if any.
    pub memcg: Option<KRef<memcg::Memcg<A>>>,
    /// What fails on purpose.
    pub faults: KRef<FaultInjection>,
    /// The modelled number of CPUs, from which slab orders follow.
    pub nr_cpus: u32,
    /// `slab_caches`: latest first. Changed at boot and shutdown only; the host's own word, never priced.
    caches: Plain<Native, *mut KmemCache<A>>,
    /// Where sheaves come from, by size.
    sheaf_caches: [Plain<Native, *mut KmemCache<A>>; sheaf::NR_SHEAF_CLASSES],
    /// How caches are built.
    pub options: SlabOptions,
}

/// `kmem_cache_init()`. `nr_cpus`: the number of CPUs whose geometry is modelled, at least 1; it need not be the
/// number of workers.
pub fn kmem_cache_init<A: Hardware>(
    arena: &Arena,
    pages: KRef<PageAllocator<A>>,
    rcu: KRef<RcuState<A>>,
    nr_cpus: u32,
    options: SlabOptions,
) -> KRef<SlabState<A>> {
    let kvfree = kvfree_rcu::kvfree_rcu_init(arena, pages, rcu);
    let (slab, page) = (options.failslab, options.fail_page_alloc);
    let faults = FaultInjection::new(arena, pages.nr_cpu_ids(), slab, page, options.seed);
    if page.is_some() {
        pages.set_faults(faults);
    }
    arena.boot_new(
        0,
        SlabState {
            pages,
            rcu,
            kvfree,
            faults,
            shadow: options.debug.then(|| debug::ShadowMap::new(arena)),
            memcg: options.memcg.then(|| memcg::Memcg::new(arena, &pages)),
            nr_cpus: nr_cpus.max(1),
            options,
            caches: Plain::new(null_mut()),
            sheaf_caches: std::array::from_fn(|_| Plain::new(null_mut())),
        },
    )
}
