// SPDX-License-Identifier: GPL-2.0-only
//! Many objects at once: bulk calls, and sheaves that a caller holds [kmem_cache_alloc_bulk, kmem_cache_free_bulk,
//! kmem_cache_prefill_sheaf, kmem_cache_refill_sheaf, kmem_cache_alloc_from_sheaf, kmem_cache_return_sheaf of
//! mm/slub.c, 7.3].
//!
//! A prefilled sheaf is a CPU's spare or a sheaf of the barn, taken whole; its holder takes objects out of it without
//! any failure and gives it back, perhaps on another CPU. An oversize sheaf has exactly the capacity asked for and is
//! dissolved when it comes back. Objects in a prefilled sheaf are not allocated until they are taken out.
//!
//! stub: memory reserves (`pfmemalloc`).

use super::barn::{MAX_FULL_SHEAVES, Refused};
use super::hooks::slab_post_alloc_hook;
use super::reuse::reuse_alloc;
use super::sheaf::{
    __kmem_cache_free_bulk, PCS_BATCH_MAX, SlabSheaf, alloc_empty_sheaf, free_empty_sheaf, refill_sheaf,
    sheaf_flush_unused,
};
use super::slub_bulk::ObjectArray;
use super::slub_def::{KmemCache, virt_to_slab};
use super::slub_sheaves::refill_objects;
use super::stat::StatItem;
use crate::arch::{Hardware, Relaxed};
use crate::cpu::{Cpu, Errno};
use std::ptr::{from_ref, null_mut};

/// The 7.3 half of `kmem_cache_alloc_bulk()`.
pub(super) fn alloc_bulk_sheaves<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) -> usize {
    let got = alloc_from_pcs_bulk(cpu, s, p);
    if got < p.len() && !__kmem_cache_alloc_bulk(cpu, s, &mut p[got..]) {
        // Handed out in vain.
        s.stat_add(cpu, StatItem::AllocFail, got as u64);
        // SAFETY: allocated just now.
        unsafe { __kmem_cache_free_bulk(cpu, s, p, got) };
        return 0;
    }
    p.iter().for_each(|&o| reuse_alloc(s.this_cpu(cpu), o as usize));
    p.len()
}

/// `alloc_from_pcs_bulk()`: what the sheaves have, the barn's full ones included; returns how many.
fn alloc_from_pcs_bulk<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) -> usize {
    let mut got = 0;
    while got < p.len() {
        // SAFETY: a cache with percpu sheaves.
        let pcs = unsafe { s.pcs(cpu) };
        if !pcs.trylock() {
            break;
        }
        if pcs.main().size.get() == 0 {
            if s.sheaf_capacity == 0 {
                pcs.unlock();
                break;
            }
            if pcs.spare().is_some_and(|spare| spare.size.get() > 0) {
                pcs.swap_main_and_spare();
            } else {
                let full = s.get_barn(cpu).replace_empty(cpu, s, pcs.main());
                if full.is_null() {
                    // To fill a sheaf only to empty it would be to copy the pointers twice.
                    s.stat(cpu, StatItem::BarnGetFail);
                    pcs.unlock();
                    break;
                }
                s.stat(cpu, StatItem::BarnGet);
                pcs.main.set(full);
            }
        }
        let main = pcs.main();
        let size = main.size.get();
        let batch = (p.len() - got).min(size as usize);
        let left = size - batch as u32;
        for (i, o) in p[got..got + batch].iter_mut().enumerate() {
            *o = main.get(left + i as u32) as *mut u8;
        }
        main.size.set(left);
        pcs.unlock();
        s.stat_add(cpu, StatItem::AllocFastpath, batch as u64);
        got += batch;
    }
    got
}

/// `__kmem_cache_alloc_bulk()`: all of `p` from the slabs, or nothing.
fn __kmem_cache_alloc_bulk<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) -> bool {
    let (want, mut i) = (p.len() as u32, 0);
    let got = refill_objects(cpu, s, want, want, &mut |object| {
        p[i] = object as *mut u8;
        i += 1;
    });
    if got < want {
        // SAFETY: taken from the slabs just now.
        unsafe { __kmem_cache_free_bulk(cpu, s, p, got as usize) };
        return false;
    }
    s.stat_add(cpu, StatItem::AllocSlowpath, u64::from(got));
    true
}

/// `free_to_pcs_bulk()`: the local objects of `p` to the sheaves while they take them, the others to their slabs.
///
/// # Safety
/// As `kmem_cache_free_bulk()`.
pub(super) unsafe fn free_to_pcs_bulk<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &mut [*mut u8]) {
    let mut size = p.len();
    let mut remote = [null_mut(); PCS_BATCH_MAX];
    let mut remote_nr = 0;
    let mut i = 0;
    while i < size {
        // SAFETY: the caller's.
        let slab = unsafe { &*virt_to_slab::<A>(p[i]) };
        if s.hardened && slab.slab_cache.load(Relaxed).cast_const() != from_ref(s) {
            super::slub_def::wrong_slab(p[i] as usize, s.name);
        }
        if slab.nid() == cpu.node {
            i += 1;
            continue;
        }
        remote[remote_nr] = p[i];
        remote_nr += 1;
        size -= 1;
        p[i] = p[size];
        if remote_nr == PCS_BATCH_MAX {
            // SAFETY: the caller's; these are in `p` no more.
            unsafe { free_past_sheaves(cpu, s, &mut remote[..], remote_nr) };
            remote_nr = 0;
        }
    }
    let done = free_to_pcs_batches(cpu, s, &p[..size]);
    // SAFETY: as above.
    unsafe {
        if done < size {
            free_past_sheaves(cpu, s, &mut p[done..size], size - done);
        }
        if remote_nr != 0 {
            free_past_sheaves(cpu, s, &mut remote[..], remote_nr);
        }
    }
}

/// # Safety
/// As [`__kmem_cache_free_bulk`].
unsafe fn free_past_sheaves<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    p: &mut (impl ObjectArray + ?Sized),
    size: usize,
) {
    // SAFETY: the caller's.
    unsafe { __kmem_cache_free_bulk(cpu, s, p, size) };
    s.stat_add(cpu, StatItem::FreeSlowpath, size as u64);
    s.stat_add(cpu, StatItem::FreeSlowObjects, size as u64);
}

/// Local objects to the sheaves until no room can be made without a new sheaf; returns how many.
fn free_to_pcs_batches<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: &[*mut u8]) -> usize {
    let mut done = 0;
    while done < p.len() {
        // SAFETY: a cache with percpu sheaves.
        let pcs = unsafe { s.pcs(cpu) };
        if s.sheaf_capacity == 0 || !pcs.trylock() {
            break;
        }
        if pcs.main().size.get() == s.sheaf_capacity {
            let barn = s.get_barn(cpu);
            let room = match pcs.spare() {
                None => {
                    let empty = barn.get_empty(cpu, s);
                    if !empty.is_null() {
                        pcs.spare.set(pcs.main.get());
                        pcs.main.set(empty);
                    }
                    !empty.is_null()
                }
                Some(spare) if spare.size.get() < s.sheaf_capacity => {
                    pcs.swap_main_and_spare();
                    true
                }
                Some(_) => match barn.replace_full(cpu, s, pcs.main()) {
                    Ok(empty) => {
                        s.stat(cpu, StatItem::BarnPut);
                        pcs.main.set(empty);
                        true
                    }
                    Err(Refused::TooManyFull | Refused::NoEmpty) => {
                        s.stat(cpu, StatItem::BarnPutFail);
                        false
                    }
                },
            };
            if !room {
                pcs.unlock();
                break;
            }
        }
        let main = pcs.main();
        let size = main.size.get();
        let batch = (p.len() - done).min((s.sheaf_capacity - size) as usize);
        for (i, &o) in p[done..done + batch].iter().enumerate() {
            main.set(size + i as u32, o as usize);
        }
        main.size.set(size + batch as u32);
        pcs.unlock();
        s.stat_add(cpu, StatItem::FreeFastpath, batch as u64);
        done += batch;
    }
    done
}

/// `kmem_cache_prefill_sheaf()`: a sheaf with at least `n` objects; null when out of memory, or for none.
///
/// # Panics
/// When the cache has no sheaves ([`KmemCache::sheaf_capacity`] is 0).
pub fn kmem_cache_prefill_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, n: u32) -> *mut SlabSheaf<A> {
    assert!(s.sheaf_capacity != 0, "{} has no sheaves", s.name);
    if n == 0 {
        return null_mut();
    }
    if n > s.sheaf_capacity {
        return prefill_oversize(cpu, s, n);
    }
    // SAFETY: a cache with percpu sheaves.
    let pcs = unsafe { s.pcs(cpu) };
    pcs.relock();
    let mut p = pcs.spare.get();
    if p.is_null() {
        s.stat(cpu, StatItem::SheafPrefillSlow);
        p = s.get_barn(cpu).get_full_or_empty(cpu, s);
        // SAFETY: taken out of the barn: ours alone.
        let full = unsafe { p.as_ref() }.is_some_and(|sheaf| sheaf.size.get() != 0);
        s.stat(cpu, if full { StatItem::BarnGet } else { StatItem::BarnGetFail });
    } else {
        pcs.spare.set(null_mut());
        s.stat(cpu, StatItem::SheafPrefillFast);
    }
    pcs.unlock();
    if p.is_null() {
        p = alloc_empty_sheaf(cpu, s, s.sheaf_capacity);
    }
    // SAFETY: ours alone, or null.
    let Some(sheaf) = (unsafe { p.as_ref() }) else { return null_mut() };
    sheaf.set_capacity(s.sheaf_capacity);
    if sheaf.size.get() < n && !refill_sheaf(cpu, s, sheaf) {
        sheaf_flush_unused(cpu, s, sheaf);
        free_empty_sheaf(cpu, s, sheaf, s.sheaf_capacity);
        return null_mut();
    }
    p
}

#[cold]
#[inline(never)]
fn prefill_oversize<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, n: u32) -> *mut SlabSheaf<A> {
    s.stat(cpu, StatItem::SheafPrefillOversize);
    let p = alloc_empty_sheaf(cpu, s, n);
    // SAFETY: made just now, or null.
    let Some(sheaf) = (unsafe { p.as_ref() }) else { return null_mut() };
    sheaf.set_capacity(n);
    if !fill_oversize(cpu, s, sheaf) {
        free_empty_sheaf(cpu, s, sheaf, n);
        return null_mut();
    }
    p
}

/// Fills an oversize sheaf, or changes nothing.
fn fill_oversize<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: &SlabSheaf<A>) -> bool {
    let had = sheaf.size.get();
    let want = sheaf.capacity() - had;
    if refill_objects(cpu, s, want, want, &mut |object| sheaf.push(object)) == want {
        return true;
    }
    while sheaf.size.get() > had {
        let object = sheaf.pop() as *mut u8;
        // SAFETY: taken from the slabs just now.
        unsafe { __kmem_cache_free_bulk(cpu, s, &mut [object][..], 1) };
    }
    false
}

/// `kmem_cache_refill_sheaf()`: tops a prefilled sheaf up to at least `n` objects; it may be exchanged for another.
///
/// # Errors
/// `ENOMEM`; what it had it keeps.
///
/// # Safety
/// `sheaf` is a prefilled sheaf of `s` that the caller holds.
pub unsafe fn kmem_cache_refill_sheaf<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    sheaf: &mut *mut SlabSheaf<A>,
    n: u32,
) -> Result<(), Errno> {
    // SAFETY: the caller's.
    let old = unsafe { &**sheaf };
    if old.size.get() >= n {
        return Ok(());
    }
    if old.capacity() >= n {
        let filled =
            if old.capacity() == s.sheaf_capacity { refill_sheaf(cpu, s, old) } else { fill_oversize(cpu, s, old) };
        return if filled { Ok(()) } else { Err(Errno::ENOMEM) };
    }
    let new = kmem_cache_prefill_sheaf(cpu, s, n);
    if new.is_null() {
        return Err(Errno::ENOMEM);
    }
    // SAFETY: the caller's.
    unsafe { kmem_cache_return_sheaf(cpu, s, *sheaf) };
    *sheaf = new;
    Ok(())
}

/// `kmem_cache_alloc_from_sheaf()`: an object; null when the sheaf is empty.
///
/// # Safety
/// As [`kmem_cache_refill_sheaf`].
#[inline]
pub unsafe fn kmem_cache_alloc_from_sheaf<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    sheaf: *mut SlabSheaf<A>,
) -> *mut u8 {
    // SAFETY: the caller's.
    let sheaf = unsafe { &*sheaf };
    if sheaf.size.get() == 0 {
        return null_mut();
    }
    let object = sheaf.pop() as *mut u8;
    s.stat(cpu, StatItem::SheafObjects);
    reuse_alloc(s.this_cpu(cpu), object as usize);
    if s.alloc_hooks {
        slab_post_alloc_hook(cpu, s, object);
    }
    object
}

/// `kmem_cache_return_sheaf()`: gives a prefilled sheaf back, with what is still in it.
///
/// # Safety
/// As [`kmem_cache_refill_sheaf`]; the caller holds it no more.
pub unsafe fn kmem_cache_return_sheaf<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, sheaf: *mut SlabSheaf<A>) {
    let p = sheaf;
    // SAFETY: the caller's.
    let sheaf = unsafe { &*p };
    let capacity = sheaf.capacity();
    if capacity != s.sheaf_capacity {
        sheaf_flush_unused(cpu, s, sheaf);
        free_empty_sheaf(cpu, s, sheaf, capacity);
        return;
    }
    // SAFETY: a cache with percpu sheaves.
    let pcs = unsafe { s.pcs(cpu) };
    pcs.relock();
    if pcs.spare.get().is_null() {
        pcs.spare.set(p);
        s.stat(cpu, StatItem::SheafReturnFast);
        pcs.unlock();
        return;
    }
    pcs.unlock();
    s.stat(cpu, StatItem::SheafReturnSlow);
    let barn = s.get_barn(cpu);
    if barn.nr_full.load(Relaxed) >= MAX_FULL_SHEAVES || !refill_sheaf(cpu, s, sheaf) {
        sheaf_flush_unused(cpu, s, sheaf);
        free_empty_sheaf(cpu, s, sheaf, capacity);
        return;
    }
    barn.put_full(cpu, s, sheaf);
    s.stat(cpu, StatItem::BarnPut);
}
