// SPDX-License-Identifier: GPL-2.0-only
//! What is done around an allocation or a free in caches that ask for it: refusing on purpose, clearing
//! [mm/slub.c, 6.12: slab_pre_alloc_hook, slab_post_alloc_hook].
//!
//! custom: the kernel tests for each hook on every call; here one word of the cache says whether there is any, and the
//! caches that benchmarks use by default have none.

use super::slub::__slab_alloc_node;
use super::slub_def::KmemCache;
use crate::arch::Hardware;
use crate::cpu::Cpu;

/// `slab_pre_alloc_hook()`: false: refused.
pub(super) fn slab_pre_alloc_hook<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> bool {
    s.state.options.failslab.is_none() || !s.state.faults.should_failslab(cpu, s.object_size)
}

/// `slab_post_alloc_hook()` of one object.
pub(super) fn slab_post_alloc_hook<A: Hardware>(_cpu: &Cpu<A>, s: &KmemCache<A>, object: *mut u8) {
    if s.init_on_alloc {
        // SAFETY: a fresh object of ours; never in type-stable caches, so nobody else looks at it.
        unsafe { A::clear(object, s.object_size) };
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
