// SPDX-License-Identifier: GPL-2.0-only
//! Address spaces made, copied and put [kernel/fork.c, 6.12].
//!
//! stub: cgroups, asynchronous I/O, user-mode exceptions and other things that hang on a kernel's mm.

use super::kconfig::{Kconfig, MmPtr};
use super::mm_types::{MmStruct, NR_MM_COUNTERS};
use super::mmap::exit_mmap;
use super::pgtable::{pgd_alloc, pgd_free};
use super::vmstat::warn_on_once;
use crate::arch::Relaxed;
use crate::arch::arena::KRef;
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::maple_tree::{MT_FLAGS_ALLOC_RANGE, MT_FLAGS_LOCK_EXTERN, MT_FLAGS_USE_RCU, MapleTree};
use crate::slab::{kmem_cache_alloc, kmem_cache_free};
use crate::sync::{percpu_counter_destroy_many, percpu_counter_init_many};
use std::ptr::NonNull;

/// [`try_mm_alloc`] where a kernel starts or a benchmark sets up.
///
/// # Panics
/// When out of memory or of slots for resident counters.
pub fn mm_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> MmPtr<K> {
    try_mm_alloc(cpu, k).expect("memory for an mm_struct")
}

/// `mm_alloc()` and `mm_init()`: an empty address space with one user; `None` when out of memory.
///
/// # Panics
/// When out of slots for resident counters.
pub fn try_mm_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> Option<MmPtr<K>> {
    let p = NonNull::new(kmem_cache_alloc(cpu, &k.mm_cachep).cast::<MmStruct<K::A, K::Lock>>())?;
    // SAFETY: a fresh object of the mm cache, which nobody knows.
    let mm = unsafe {
        p.write(MmStruct::new());
        let flags = MT_FLAGS_ALLOC_RANGE | MT_FLAGS_LOCK_EXTERN | MT_FLAGS_USE_RCU;
        MmStruct::mm_mt_slot(p.as_ptr()).write(MapleTree::new(flags));
        KRef::new(p)
    };
    let pgd = pgd_alloc(cpu, k);
    if pgd.is_null() {
        // SAFETY: nobody knows it.
        unsafe { kmem_cache_free(cpu, &k.mm_cachep, p.as_ptr().cast()) };
        return None;
    }
    mm.pgd.set(pgd);
    percpu_counter_init_many(cpu, &k.percpu_counters, &mm.rss_stat, 0).expect("cells for the resident counters");
    Some(mm)
}

/// `mmput()`: drops a user; the last one tears the address space down.
pub fn mmput<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    if mm.mm_users.dec_and_test(cpu) {
        exit_mmap(cpu, k, mm);
        mmdrop(cpu, k, mm);
    }
}

/// `mmdrop()`
fn mmdrop<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    if mm.mm_count.dec_and_test(cpu) {
        for which in 0..NR_MM_COUNTERS {
            warn_on_once(cpu, super::memory::get_mm_counter_sum(cpu, k, mm, which) != 0);
        }
        warn_on_once(cpu, mm.pgtables_bytes.load(Relaxed) != 0);
        warn_on_once(cpu, mm.map_count.get() != 0);
        pgd_free(cpu, k, mm);
        percpu_counter_destroy_many(cpu, &k.percpu_counters, &mm.rss_stat);
        // SAFETY: the last reference.
        unsafe { kmem_cache_free(cpu, &k.mm_cachep, mm.as_ptr().cast()) };
    }
}
