// SPDX-License-Identifier: GPL-2.0-only
//! What is done around an allocation or a free in caches that ask for it: refusing on purpose, clearing, charging to a
//! cgroup, checking [mm/slub.c, 6.12: slab_pre_alloc_hook, slab_post_alloc_hook, slab_free_hook, memcg_slab_free_hook].
//!
//! custom: the kernel tests for each hook on every call; here one word of the cache says whether there is any, and the
//! caches that benchmarks use by default have none.

use super::debug::{alloc_debug_processing, free_debug_processing};
use super::memcg::{memcg_slab_free_hook, memcg_slab_post_alloc_hook};
use super::slub::{__slab_alloc_node, slab_free};
use super::slub_def::{KmemCache, Slab, virt_to_slab};
use crate::arch::Hardware;
use crate::cpu::Cpu;

/// `slab_pre_alloc_hook()`: false: refused.
pub(super) fn slab_pre_alloc_hook<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> bool {
    s.state.options.failslab.is_none() || !s.state.faults.should_failslab(cpu, s.object_size)
}

/// `slab_post_alloc_hook()` of one object.
pub(super) fn slab_post_alloc_hook<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, object: *mut u8) {
    if let Some(map) = &s.state.shadow {
        alloc_debug_processing(s, map, object);
    }
    if s.init_on_alloc {
        // SAFETY: a fresh object of ours; never in type-stable caches, so nobody else looks at it.
        unsafe { A::clear(object, s.object_size) };
    }
    if let (Some(m), true) = (&s.state.memcg, s.exts_cache.is_some()) {
        // SAFETY: an object lies in a slab.
        memcg_slab_post_alloc_hook(cpu, s, m, unsafe { &*virt_to_slab::<A>(object) }, object as usize);
    }
}

/// `slab_alloc_node()` with all hooks.
#[inline(never)]
pub(super) fn slab_alloc_hooked<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32) -> *mut u8 {
    if !slab_pre_alloc_hook(cpu, s) {
        return std::ptr::null_mut();
    }
    let object = __slab_alloc_node(cpu, s, node) as *mut u8;
    if !object.is_null() {
        slab_post_alloc_hook(cpu, s, object);
    }
    object
}

/// `slab_free_hook()`: what a caller frees, before anything is done with it.
///
/// # Panics
/// In a debug kernel, when it must not be freed.
pub(super) fn slab_free_hook<A: Hardware>(s: &KmemCache<A>, p: *mut u8) {
    if let Some(map) = &s.state.shadow {
        free_debug_processing(s, map, p);
    }
}

/// `memcg_slab_free_hook()`: the object goes back to the allocator now; with `kfree_rcu()` that is in the callback.
pub(super) fn uncharge<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>, object: usize) {
    if let Some(m) = &s.state.memcg {
        memcg_slab_free_hook(cpu, s, m, slab, object);
    }
}

/// `kmem_cache_free()` with all hooks.
///
/// # Safety
/// As `kmem_cache_free()`; in a debug kernel any address will do.
#[inline(never)]
pub(super) unsafe fn slab_free_hooked<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: *mut u8) {
    slab_free_hook(s, p);
    // SAFETY: the caller's, or checked.
    unsafe {
        let slab = &*virt_to_slab::<A>(p);
        uncharge(cpu, s, slab, p as usize);
        slab_free(cpu, s, slab, p as usize);
    }
}
