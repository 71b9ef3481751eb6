// SPDX-License-Identifier: GPL-2.0-only
//! Many objects at once [mm/slub.c, 6.12]: allocation off the CPU's freelist without the exchange, frees of one slab's
//! objects with one call.
//!
//! A file of its own because nothing of the fast paths is in it; sheaves have theirs in `sheaf_bulk.rs`. Lock order and
//! invariants are `slub.rs`'s.
//!
//! PORT: plain stores to the CPU's freelist, where the kernel disables interrupts; the transaction number still changes,
//! as there.

use super::hooks::{slab_free_hook, slab_post_alloc_hook, slab_pre_alloc_hook, uncharge};
use super::page_alloc::NUMA_NO_NODE;
use super::reuse::{reuse_alloc, reuse_free};
use super::sheaf_bulk::{alloc_bulk_sheaves, free_to_pcs_bulk};
use super::slub::{___slab_alloc, do_slab_free};
use super::slub_def::{KmemCache, Slab, virt_to_slab, wrong_slab};
use super::stat::StatItem;
use crate::arch::{Hardware, Relaxed};
use crate::cpu::Cpu;
use std::ptr::from_ref;

/// `kmem_cache_alloc_bulk()`: fills `p` and returns its length, or frees what it got and returns 0.
pub fn kmem_cache_alloc_bulk<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) -> usize {
    if s.alloc_hooks && !slab_pre_alloc_hook(cpu, s) {
        return 0;
    }
    let got = if s.cpu_sheaves { alloc_bulk_sheaves(cpu, s, p) } else { alloc_bulk_cpu_slab(cpu, s, p) };
    if s.alloc_hooks {
        p[..got].iter().for_each(|&o| slab_post_alloc_hook(cpu, s, o));
    }
    got
}

/// The 6.12 half of [`kmem_cache_alloc_bulk`].
fn alloc_bulk_cpu_slab<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) -> usize {
    let c = s.this_cpu(cpu);
    for i in 0..p.len() {
        let object = c.freelist.load(Relaxed);
        if object != 0 {
            // SAFETY: first of this CPU's freelist. Plain stores: the kernel disables interrupts here.
            c.freelist.store(unsafe { s.get_freepointer(object) }, Relaxed);
            p[i] = object as *mut u8;
            c.stat(StatItem::AllocFastpath);
            reuse_alloc(c, object);
            continue;
        }
        c.bump_tid();
        p[i] = ___slab_alloc(cpu, s, NUMA_NO_NODE, c) as *mut u8;
        if p[i].is_null() {
            // SAFETY: allocated just now.
            unsafe { kmem_cache_free_bulk(cpu, s, &mut p[..i]) };
            return 0;
        }
        reuse_alloc(c, p[i] as usize);
    }
    c.bump_tid();
    p.len()
}

/// `kmem_cache_free_bulk()`: frees all of `p`, objects of one slab with one call where they lie close in the array,
/// whose order is lost.
///
/// # Safety
/// As [`kmem_cache_free`](super::kmem_cache_free) for each.
pub unsafe fn kmem_cache_free_bulk<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) {
    p.iter().for_each(|&o| reuse_free(s.this_cpu(cpu), o as usize));
    if s.free_hooks {
        for &o in p.iter() {
            slab_free_hook(s, o);
            // SAFETY: the caller's, or checked.
            uncharge(cpu, s, unsafe { &*virt_to_slab::<A>(o) }, o as usize);
        }
    }
    if s.cpu_sheaves {
        // SAFETY: the caller's.
        return unsafe { free_to_pcs_bulk(cpu, s, p) };
    }
    let mut size = p.len();
    while size != 0 {
        // SAFETY: the caller's; then a chain of one slab, linked just now.
        unsafe {
            let df = build_detached_freelist(s, p, size);
            do_slab_free(cpu, s, s.this_cpu(cpu), &*df.slab, df.freelist, df.tail, df.cnt);
            size = df.left;
        }
    }
}

/// An array of objects to be freed: a caller's, or a sheaf's.
pub(super) trait ObjectArray {
    fn at(&self, i: usize) -> usize;
    fn exchange(&mut self, i: usize, j: usize);
}

impl ObjectArray for [*mut u8] {
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        self[i] as usize
    }
    #[inline(always)]
    fn exchange(&mut self, i: usize, j: usize) {
        self.swap(i, j);
    }
}

/// `struct detached_freelist`
pub(super) struct DetachedFreelist<A: Hardware> {
    pub(super) slab: *mut Slab<A>,
    pub(super) freelist: usize,
    pub(super) tail: usize,
    pub(super) cnt: u32,
    /// Objects of the array that are still to be freed: its first ones.
    pub(super) left: usize,
}

/// `build_detached_freelist()`: links the objects of one slab among the last of the first `size` of `p`.
///
/// # Safety
/// As [`kmem_cache_free_bulk`]; `size` is not 0 and not beyond the array.
#[inline(always)]
pub(super) unsafe fn build_detached_freelist<A: Hardware>(
    s: &KmemCache<A>,
    p: &mut (impl ObjectArray + ?Sized),
    size: usize,
) -> DetachedFreelist<A> {
    let mut size = size - 1;
    let tail = p.at(size);
    // SAFETY: the caller's, here and below.
    let slab = unsafe { &*virt_to_slab::<A>(tail as *const u8) };
    if s.hardened && slab.slab_cache.load(Relaxed).cast_const() != from_ref(s) {
        wrong_slab(tail, s.name);
    }
    let (mut head, mut cnt, mut same, mut lookahead) = (tail, 1, size, 3);
    // SAFETY: as above.
    unsafe { s.set_freepointer(tail, 0) };
    while size != 0 {
        size -= 1;
        let object = p.at(size);
        // SAFETY: as above.
        if std::ptr::eq(unsafe { virt_to_slab::<A>(object as *const u8) }, slab) {
            // SAFETY: as above.
            unsafe { s.set_freepointer(object, head) };
            head = object;
            cnt += 1;
            same -= 1;
            if size != same {
                p.exchange(size, same);
            }
            continue;
        }
        lookahead -= 1;
        if lookahead == 0 {
            break;
        }
    }
    DetachedFreelist { slab: from_ref(slab).cast_mut(), freelist: head, tail, cnt, left: same }
}
