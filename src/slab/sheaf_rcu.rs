// SPDX-License-Identifier: GPL-2.0-only
//! Sheaves that wait for a grace period [__kfree_rcu_sheaf, rcu_free_sheaf, flush_all_rcu_sheaves of mm/slub.c, 7.3].
//!
//! A CPU collects the objects that kfree_rcu() is to free in its `rcu_free` sheaf; when that is full, one `call_rcu()`
//! serves all of them, and after the grace period the sheaf goes to the barn as a full one, whose objects are handed out
//! without having seen their slab. There is no timer: a sheaf that does not fill up waits until somebody flushes it.
//!
//! Only local objects go this way; for the others, and when no sheaf can be had, kfree_rcu() batches as it always did.

use super::barn::{MAX_EMPTY_SHEAVES, MAX_FULL_SHEAVES};
use super::hooks::{slab_free_hook, uncharge};
use super::reuse::reuse_free;
use super::sheaf::{
    SlabSheaf, SlubPercpuSheaves, alloc_empty_sheaf, free_empty_sheaf, rcu_free_sheaf_nobarn, sheaf_flush_unused,
};
use super::slub_def::{KmemCache, virt_to_slab};
use super::stat::{StatItem, Waiting};
use crate::arch::{Hardware, Relaxed};
use crate::cpu::Cpu;
use crate::rcu::{RcuHead, call_rcu};
use std::ptr::null_mut;

/// The 7.3 half of `kvfree_call_rcu()`: whether the object was put into a sheaf, to be freed after a grace period.
/// False: it is still the caller's. Caches without sheaves take none.
///
/// # Safety
/// As `kmem_cache_free()` in a grace period's time; no new reader finds the object.
#[inline]
pub unsafe fn kfree_rcu_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: *mut u8) -> bool {
    // SAFETY: the caller's.
    s.sheaf_capacity != 0 && unsafe { &*virt_to_slab::<A>(p) }.nid() == cpu.node && __kfree_rcu_sheaf(cpu, s, p)
}

/// `__kfree_rcu_sheaf()`: as [`kfree_rcu_sheaf`], for an object that is local, of a cache with sheaves.
pub fn __kfree_rcu_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: *mut u8) -> bool {
    // SAFETY: a cache with percpu sheaves.
    let pcs = unsafe { s.pcs(cpu) };
    if !pcs.trylock() {
        s.stat(cpu, StatItem::FreeRcuSheafFail);
        return false;
    }
    if pcs.rcu_free.get().is_null() && !get_rcu_free(cpu, s, pcs) {
        s.stat(cpu, StatItem::FreeRcuSheafFail);
        return false;
    }
    reuse_free(s.this_cpu(cpu), p as usize);
    if s.free_hooks {
        slab_free_hook(s, p);
    }
    // SAFETY: a sheaf in a CPU's block is nobody else's.
    let sheaf = unsafe { &*pcs.rcu_free.get() };
    sheaf.push(p as usize);
    if sheaf.size.get() == s.sheaf_capacity {
        pcs.rcu_free.set(null_mut());
        sheaf.node.set(cpu.node);
        // Before the unlock: a flush that waits for callbacks must not miss it.
        // SAFETY: the sheaf is in nobody's list, so its first words are its rcu_head; only the callback has it now.
        unsafe { call_rcu(cpu, &s.state.rcu, sheaf.rcu_head(), rcu_free_sheaf::<A>) };
    }
    pcs.unlock();
    s.stat(cpu, StatItem::FreeRcuSheaf);
    true
}

/// Finds an empty sheaf to collect in; false, with the lock given up, when there is none to be had.
#[cold]
#[inline(never)]
fn get_rcu_free<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, pcs: &SlubPercpuSheaves<A>) -> bool {
    if pcs.spare().is_some_and(|spare| spare.size.get() == 0) {
        pcs.rcu_free.set(pcs.spare.get());
        pcs.spare.set(null_mut());
        return true;
    }
    let mut empty = s.get_barn(cpu).get_empty(cpu, s);
    if empty.is_null() {
        pcs.unlock();
        empty = alloc_empty_sheaf(cpu, s, s.sheaf_capacity);
        if empty.is_null() {
            return false;
        }
        pcs.relock();
        debug_assert!(pcs.rcu_free.get().is_null(), "nothing interrupts an allocator call");
    }
    pcs.rcu_free.set(empty);
    true
}

/// `rcu_free_sheaf()`: the callback of a full sheaf.
///
/// # Safety
/// A callback of `__kfree_rcu_sheaf()`.
pub(crate) unsafe fn rcu_free_sheaf<A: Hardware>(cpu: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the head is the sheaf's first words, and the sheaf is the callback's; caches wait for their callbacks
    // before they go.
    let (sheaf, s) = unsafe {
        let sheaf = &*head.cast::<SlabSheaf<A>>();
        (sheaf, &*sheaf.cache.get())
    };
    sheaf_waited(cpu, s, sheaf);
    let barn = &*s.barn[sheaf.node.get() as usize];
    // Limits without the lock: a few too many do no harm.
    if barn.nr_full.load(Relaxed) < MAX_FULL_SHEAVES {
        s.stat(cpu, StatItem::BarnPut);
        barn.put_full(cpu, s, sheaf);
        return;
    }
    s.stat(cpu, StatItem::BarnPutFail);
    sheaf_flush_unused(cpu, s, sheaf);
    if barn.nr_empty.load(Relaxed) < MAX_EMPTY_SHEAVES {
        barn.put_empty(cpu, s, sheaf);
        return;
    }
    free_empty_sheaf(cpu, s, sheaf, s.sheaf_capacity);
}

/// Of `rcu_free_sheaf_prepare()`: the grace period is over, the objects are nobody's from now on.
pub(super) fn sheaf_waited<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) {
    s.waited(cpu, Waiting::Objects, u64::from(sheaf.size()));
    uncharge_sheaf(cpu, s, sheaf);
}

fn uncharge_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) {
    if s.free_hooks {
        for i in 0..sheaf.size() {
            let object = sheaf.get(i);
            // SAFETY: objects of this cache's slabs.
            uncharge(cpu, s, unsafe { &*virt_to_slab::<A>(object as *const u8) }, object);
        }
    }
}

/// `flush_rcu_sheaf()`: this CPU's part-filled sheaf starts its grace period.
pub fn flush_rcu_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    if s.sheaf_capacity != 0 {
        // SAFETY: a cache with percpu sheaves.
        flush_rcu_sheaf_of(cpu, s, unsafe { s.pcs(cpu) });
    }
}

/// `flush_all_rcu_sheaves()`, without the wait for the callbacks: every CPU's part-filled sheaf of every cache starts
/// its grace period.
///
/// # Safety
/// No other CPU is inside the allocator. (The kernel makes each CPU do its own: where others run, each calls
/// [`flush_rcu_sheaf`].)
pub unsafe fn flush_all_rcu_sheaves<A: Hardware>(cpu: &Cpu<A>, slab: &super::SlabState<A>) {
    slab.for_each_cache(|s| {
        if s.sheaf_capacity != 0 {
            // SAFETY: the caller's.
            unsafe { flush_rcu_sheaves_on_cache(cpu, s) };
        }
    });
}

/// `flush_rcu_sheaves_on_cache()`: of one cache, which has sheaves.
///
/// # Safety
/// As [`flush_all_rcu_sheaves`].
pub(super) unsafe fn flush_rcu_sheaves_on_cache<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) {
    for c in s.cpu_slab.iter() {
        // SAFETY: a cache with percpu sheaves; its CPUs stand still.
        flush_rcu_sheaf_of(cpu, s, unsafe { c.sheaves() });
    }
}

fn flush_rcu_sheaf_of<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, pcs: &SlubPercpuSheaves<A>) {
    pcs.relock();
    let rcu_free = pcs.rcu_free.get();
    pcs.rcu_free.set(null_mut());
    pcs.unlock();
    if !rcu_free.is_null() {
        // SAFETY: taken out of the block: ours alone, and in nobody's list.
        unsafe { call_rcu(cpu, &s.state.rcu, rcu_free.cast(), rcu_free_sheaf_nobarn::<A>) };
    }
}
