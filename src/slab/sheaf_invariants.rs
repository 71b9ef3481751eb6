// SPDX-License-Identifier: GPL-2.0-only
//! What must hold of the 7.3 allocator whatever the order of calls (slab.md 7.1), by number: 1 no double hand-out,
//! 2 objects lie where they should, 5 the count in use, 6 exclusive states, 7 and 8 lengths of lists and barns,
//! 9 constructor calls, 10 and 13 type-stable pages and the accounting, 12 nodes, 14 destruction of a cache in use.

use super::barn::MAX_FULL_SHEAVES;
use super::sheaf_rcu::{flush_rcu_sheaf, kfree_rcu_sheaf};
use super::sheaf_tests::SHEAVES;
use super::tests::*;
use super::*;
use crate::arch::arena::{PAGE_SHIFT, RECORD_SIZE, page_record};
use crate::arch::{Full, Relaxed};
use crate::cpu::testing::for_test_set;
use crate::cpu::{Cpu, Errno};
use crate::rcu::rcu_barrier;
use crate::slab::page_alloc::PG_SLAB;
use StatItem as I;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::Mutex;

type S = *mut Slab<Native>;

/// What a walk found.
struct Found {
    /// Free objects on the freelists of slabs.
    on_slabs: BTreeSet<usize>,
    /// Objects in sheaves of CPUs and barns.
    in_sheaves: BTreeSet<usize>,
}

/// Walks every list, sheaf and record; nobody is inside the allocator and no sheaf is behind a grace period. `held`:
/// prefilled sheaves. `raced`: whether limits may have been overrun.
fn check(k: &Kernel, s: &KmemCache<Native>, held: &[*mut SlabSheaf<Native>], raced: bool) -> Found {
    let mut in_sheaves = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut take = |p: *mut SlabSheaf<Native>| {
        assert!(seen.insert(p), "a sheaf is in two places");
        // SAFETY: a sheaf; nobody else is here. So below.
        let sheaf = unsafe { &*p };
        assert!(std::ptr::eq(sheaf.cache.get(), s));
        for i in 0..sheaf.size() {
            assert!(in_sheaves.insert(sheaf.get(i)), "an object is in sheaves twice");
        }
        sheaf.size()
    };
    let full = s.sheaf_capacity();
    for c in s.cpu_slab.iter() {
        // SAFETY: as above; a cache with sheaves.
        let pcs = unsafe { c.sheaves() };
        assert!(take(pcs.main.get()) <= full);
        if !pcs.spare.get().is_null() {
            let n = take(pcs.spare.get());
            // 8: partly used only because a prefilled sheaf came back.
            assert!(n == 0 || n == full || s.stat_sum(I::SheafReturnFast) > 0, "a spare of {n}");
        }
        if !pcs.rcu_free.get().is_null() {
            let n = take(pcs.rcu_free.get());
            assert!(n > 0 && n < full, "a waiting sheaf of {n}");
        }
    }
    for b in s.barn.iter() {
        let (fulls, empties) = b.walk();
        assert_eq!((fulls.len(), empties.len()), (b.nr_full.load(Relaxed) as usize, b.nr_empty.load(Relaxed) as usize));
        assert!(raced || s.stat_sum(I::SheafReturnSlow) > 0 || fulls.len() <= MAX_FULL_SHEAVES as usize);
        fulls.into_iter().for_each(|p| assert_eq!(take(p), full));
        empties.into_iter().for_each(|p| assert_eq!(take(p), 0));
    }
    held.iter().for_each(|&p| _ = take(p));
    assert_eq!(seen.len() as u64, s.nr_sheaves(), "sheaves made and not freed");

    let mut listed: BTreeSet<S> = BTreeSet::new();
    for (nid, node) in s.node.iter().enumerate() {
        let (mut p, mut n, mut empty) = (node.first.get(), 0, 0);
        while !p.is_null() {
            assert!(listed.insert(p));
            // SAFETY: as above.
            let slab = unsafe { &*p };
            assert_eq!(slab.nid(), nid as u32);
            n += 1;
            empty += u64::from(slab.counters().inuse() == 0);
            p = slab.next();
        }
        // 7: an empty slab stays only while there are not enough.
        assert_eq!(n, node.nr_partial.load(Relaxed));
        assert!(empty <= s.min_partial, "{empty} empty slabs are kept");
    }
    let (mut on_slabs, mut slabs, mut objects, mut inuse) = (BTreeSet::new(), 0, 0, 0);
    for nid in 0..k.arena.nr_nodes() {
        let (start, end) = k.arena.node_range(nid);
        for r in (page_record(start) as usize..page_record(end - 1) as usize + 1).step_by(RECORD_SIZE) {
            let p = r as S;
            // SAFETY: as above.
            let slab = unsafe { &*p };
            if slab.page_type() != PG_SLAB || !std::ptr::eq(slab.cache(), s) {
                continue;
            }
            let c = slab.counters();
            let (mut free, mut o) = (0, slab.freelist());
            while o != 0 {
                let off = o - slab.address();
                assert!(off % s.size() == 0 && off / s.size() < c.objects() as usize);
                assert!(on_slabs.insert(o) && !in_sheaves.contains(&o), "free twice");
                free += 1;
                // SAFETY: a free object; nobody else is here.
                o = unsafe { s.get_freepointer(o) };
            }
            // 5, 6.
            assert_eq!(c.inuse(), c.objects() - free);
            assert!(!c.frozen());
            assert_eq!(listed.remove(&p), slab.on_node_partial());
            if !slab.on_node_partial() && c.inuse() == 0 {
                assert!(s.typesafe);
                continue;
            }
            assert_eq!(slab.on_node_partial(), free != 0, "a slab is listed when it has free objects");
            slabs += 1;
            objects += u64::from(c.objects());
            inuse += i64::from(c.inuse());
        }
    }
    assert!(listed.is_empty(), "lists name records that are no slabs");
    assert_eq!((slabs, objects), (s.nr_slabs(), s.node.iter().map(|n| n.total_objects.load(Relaxed)).sum::<u64>()));
    // What lies in sheaves counts as in use, and as not live.
    assert_eq!(inuse, s.live_objects() + in_sheaves.len() as i64);
    if s.stat_sum(I::OrderFallback) == 0 {
        assert_eq!(s.slab_pages(), (s.nr_slabs() + s.typesafe_pending_slabs()) << s.order());
    }
    Found { on_slabs, in_sheaves }
}

/// Everything given back: nothing is left anywhere.
fn end(cpu: &Cpu<Native>, k: &Kernel, s: &KmemCache<Native>) {
    // SAFETY: nobody else is inside.
    unsafe { kmem_cache_destroy(cpu, s).unwrap() };
    assert_eq!((s.live_objects(), s.nr_slabs(), s.slab_pages(), s.nr_sheaves()), (0, 0, 0, 0));
    assert_eq!((s.typesafe_pending_slabs(), k.outstanding()), (0, 0));
    assert!((0..k.arena.nr_nodes()).all(|n| k.slab.pages.node_outstanding(n) == 0));
}

#[test]
fn random_calls_on_four_cpus_keep_every_invariant() {
    for (hardened, randomized, flags, nodes, size) in [
        (false, false, 0, 1, 192),
        (true, true, 0, 2, 192),
        (true, false, SLAB_TYPESAFE_BY_RCU, 1, 192),
        (true, true, 0, 2, 1024),
        (true, true, SLAB_TYPESAFE_BY_RCU, 4, 1024),
    ] {
        let k = boot(4, nodes, 32, SlabOptions { hardened, randomized, ..SHEAVES });
        let s = k.cache(KmemCacheArgs { size, ..vma_args(flags) });
        let set = for_test_set::<Native>(4);
        let cpus = [0, 1, 2, 3].map(|i| {
            let mut c = set.cpu(i);
            c.node = i % nodes;
            c
        });
        let nid = |p: *mut u8| {
            (0..nodes).find(|&n| {
                let (a, b) = k.arena.node_range(n);
                (a..b).contains(&(p as usize))
            })
        };
        let mut live: Vec<*mut u8> = Vec::new();
        let mut held: Vec<*mut SlabSheaf<Native>> = Vec::new();
        let mut owned = BTreeSet::new();
        for round in 0..25 {
            let target = [10, 700, 60, 1500, 0][round % 5];
            for _ in 0..1500 {
                let r = cpus[0].random();
                let cpu = &cpus[(r >> 40) as usize % 4];
                let mut take = |live: &mut Vec<*mut u8>, p: *mut u8| {
                    assert!(owned.insert(p as usize), "handed out twice");
                    live.push(p);
                };
                match r % 20 {
                    0 => {
                        let mut v = vec![null_mut(); (r >> 8) as usize % 90];
                        assert_eq!(kmem_cache_alloc_bulk(cpu, &s, &mut v), v.len());
                        v.into_iter().for_each(|p| take(&mut live, p));
                    }
                    1 => {
                        let n = ((r >> 8) as usize % 90).min(live.len());
                        let mut v = live.split_off(live.len() - n);
                        v.iter().for_each(|&p| assert!(owned.remove(&(p as usize))));
                        let remote = v.iter().filter(|&&p| nid(p) != Some(cpu.node)).count() as u64;
                        let before = s.stat_of(cpu.id, I::FreeSlowpath);
                        // SAFETY: ours, once.
                        unsafe { kmem_cache_free_bulk(cpu, &s, &mut v) };
                        assert!(s.stat_of(cpu.id, I::FreeSlowpath) - before >= remote);
                    }
                    2 if r >> 8 & 31 == 0 => flush_cpu_slab(cpu, &s),
                    // SAFETY: one thread.
                    3 if r >> 8 & 127 == 0 => drop(unsafe { kmem_cache_shrink(cpu, &s) }),
                    4 if r >> 8 & 63 == 0 => rcu_barrier(cpu, &k.slab.rcu),
                    5 => {
                        let want = (r >> 8) as u32 % nodes;
                        let p = kmem_cache_alloc_node(cpu, &s, want);
                        // There is memory on every node.
                        assert_eq!(nid(p), Some(want));
                        take(&mut live, p);
                    }
                    6 if r >> 8 & 3 == 0 && held.len() < 4 => {
                        held.push(kmem_cache_prefill_sheaf(cpu, &s, 1 + (r >> 16) as u32 % 70));
                    }
                    7 if r >> 8 & 3 == 0 && !held.is_empty() => {
                        let p = held.swap_remove((r >> 16) as usize % held.len());
                        // SAFETY: ours; perhaps prefilled on another CPU.
                        unsafe { kmem_cache_return_sheaf(cpu, &s, p) };
                    }
                    8 if !held.is_empty() => {
                        let i = (r >> 16) as usize % held.len();
                        // SAFETY: ours.
                        unsafe {
                            if r >> 8 & 7 == 0 {
                                kmem_cache_refill_sheaf(cpu, &s, &mut held[i], (r >> 24) as u32 % 80).unwrap();
                            }
                            let had = (*held[i]).size();
                            let p = kmem_cache_alloc_from_sheaf(cpu, &s, held[i]);
                            assert_eq!(p.is_null(), had == 0);
                            if had != 0 {
                                take(&mut live, p);
                            }
                        }
                    }
                    9 | 10 if !live.is_empty() => {
                        let p = live.swap_remove((r >> 8) as usize % live.len());
                        assert!(owned.remove(&(p as usize)));
                        // SAFETY: ours, once.
                        let taken = unsafe { kfree_rcu_sheaf(cpu, &s, p) };
                        assert_eq!(taken, nid(p) == Some(cpu.node));
                        if !taken {
                            free(cpu, &s, p);
                        }
                    }
                    11 if r >> 8 & 63 == 0 => flush_rcu_sheaf(cpu, &s),
                    x if (x < 16) == (live.len() < target) => {
                        let p = get(cpu, &s);
                        assert_eq!(p as usize % 64, 0);
                        take(&mut live, p);
                    }
                    _ if !live.is_empty() => {
                        let p = live.swap_remove((r >> 8) as usize % live.len());
                        assert!(owned.remove(&(p as usize)));
                        let of = |i| s.stat_of(cpu.id, i);
                        let before = (of(I::FreeFastpath), of(I::FreeSlowpath));
                        free(cpu, &s, p);
                        let local = u64::from(nid(p) == Some(cpu.node));
                        // 12: a remote object goes to its slab, past the sheaves.
                        assert_eq!(
                            (of(I::FreeFastpath), of(I::FreeSlowpath)),
                            (before.0 + local, before.1 + 1 - local)
                        );
                    }
                    _ => {}
                }
            }
            assert_eq!(s.live_objects(), live.len() as i64);
            rcu_barrier(&cpus[0], &k.slab.rcu);
            let found = check(&k, &s, &held, false);
            for p in &live {
                assert!(!found.on_slabs.contains(&(*p as usize)) && !found.in_sheaves.contains(&(*p as usize)));
            }
        }
        live.into_iter().for_each(|p| free(&cpus[0], &s, p));
        // SAFETY: ours.
        held.into_iter().for_each(|p| unsafe { kmem_cache_return_sheaf(&cpus[1], &s, p) });
        for i in [
            I::SheafPrefillFast,
            I::SheafPrefillSlow,
            I::SheafPrefillOversize,
            I::SheafReturnFast,
            I::SheafReturnSlow,
            I::BarnGet,
            I::BarnPut,
            I::SheafFlush,
            I::FreeSlab,
            I::SheafFree,
        ] {
            assert!(s.stat_sum(i) > 0, "{} never happened", i.name());
        }
        end(&cpus[2], &k, &s);
    }
}

/// Threads that allocate by every way there is, free their own and one another's, on `nodes` nodes.
fn torture(flags: u32, threads: u32, nodes: u32, size: usize) {
    let k = boot(threads, nodes, 64, SlabOptions { hardened: true, randomized: true, ..SHEAVES });
    let s = k.cache(KmemCacheArgs { size, ..vma_args(flags) });
    let set = for_test_set::<Native>(threads);
    let mail: Vec<Mutex<Vec<usize>>> = (0..threads).map(|_| Mutex::new(Vec::new())).collect();
    std::thread::scope(|t| {
        for id in 0..threads {
            let (set, mail, slab) = (set.clone(), &mail, &k.slab);
            t.spawn(move || {
                let mut cpu = set.cpu(id);
                cpu.node = id % nodes;
                let take = |p: *mut u8| {
                    assert!(!p.is_null());
                    assert_eq!(stamp(p).swap(u64::from(id) + 1, Full), 0, "{p:p} handed out twice");
                };
                let lose = |p: *mut u8| assert_ne!(stamp(p).swap(0, Full), 0, "{p:p} freed twice");
                let mut mine: Vec<*mut u8> = Vec::new();
                let mut r = u64::from(id) + 1;
                for i in 0..40_000u32 {
                    r = crate::cpu::splitmix64(r);
                    let want = if i / 4000 % 2 == 0 { 400 } else { 20 };
                    if mine.len() < want && r % 4 != 0 {
                        if r >> 8 & 31 == 0 {
                            let mut v = [null_mut(); 40];
                            assert_eq!(kmem_cache_alloc_bulk(&cpu, &s, &mut v), 40);
                            v.into_iter().for_each(take);
                            mine.extend(v);
                        } else if r >> 8 & 31 == 1 {
                            let sheaf = kmem_cache_prefill_sheaf(&cpu, &s, 9);
                            for _ in 0..9 {
                                // SAFETY: ours until it goes back.
                                let p = unsafe { kmem_cache_alloc_from_sheaf(&cpu, &s, sheaf) };
                                take(p);
                                mine.push(p);
                            }
                            // SAFETY: as above.
                            unsafe { kmem_cache_return_sheaf(&cpu, &s, sheaf) };
                        } else {
                            let p = get(&cpu, &s);
                            take(p);
                            mine.push(p);
                        }
                    } else if let Some(n) = mine.len().checked_sub(1) {
                        if r >> 8 & 31 == 0 {
                            let mut v = mine.split_off(n + 1 - n.min(30));
                            v.iter().copied().for_each(lose);
                            // SAFETY: ours, once.
                            unsafe { kmem_cache_free_bulk(&cpu, &s, &mut v) };
                            continue;
                        }
                        let p = mine.swap_remove((r >> 16) as usize % (n + 1));
                        if r >> 40 & 1 == 0 {
                            lose(p);
                            free(&cpu, &s, p);
                        } else {
                            mail[(r >> 44) as usize % mail.len()].lock().unwrap().push(p as usize);
                        }
                    }
                    if i % 64 == 0 {
                        let post = std::mem::take(&mut *mail[id as usize].lock().unwrap());
                        for p in post {
                            lose(p as *mut u8);
                            free(&cpu, &s, p as *mut u8);
                        }
                    }
                    if r >> 50 & 1023 == 0 {
                        flush_cpu_slab(&cpu, &s);
                    }
                }
                for p in mine {
                    lose(p);
                    free(&cpu, &s, p);
                }
                assert!(slab.options.allocator == Allocator::Sheaves);
            });
        }
    });
    let cpu = set.cpu(0);
    for m in &mail {
        for p in std::mem::take(&mut *m.lock().unwrap()) {
            stamp(p as *mut u8).store(0, Relaxed);
            free(&cpu, &s, p as *mut u8);
        }
    }
    assert_eq!(s.live_objects(), 0);
    check(&k, &s, &[], true);
    assert!(s.stat_sum(I::BarnGet) > 0 && s.stat_sum(I::BarnPut) > 0 && s.stat_sum(I::SheafFlush) > 0, "too quiet");
    assert!(s.stat_sum(I::FreeSlowpath) > 0, "no free went past the sheaves");
    end(&cpu, &k, &s);
}

#[test]
fn four_cpus_never_get_the_same_object() {
    torture(0, 4, 1, 192);
}

#[test]
fn four_cpus_of_two_nodes_never_get_the_same_object() {
    torture(0, 4, 2, 1024);
}

#[test]
fn four_cpus_of_two_nodes_never_get_the_same_type_stable_object() {
    torture(SLAB_TYPESAFE_BY_RCU, 4, 2, 1024);
}

#[test]
fn type_stable_objects_keep_their_bytes() {
    let k = boot(1, 1, 4, SHEAVES);
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(SLAB_TYPESAFE_BY_RCU));
    let p: Vec<_> = (0..240).map(|_| get(&cpu, &s)).collect();
    let word = |o: *mut u8, w: usize| o.cast::<u64>().wrapping_add(w);
    for &o in &p {
        for w in 0..24 {
            // SAFETY: our objects.
            unsafe { word(o, w).write(o as u64 + w as u64) };
        }
    }
    p.iter().for_each(|&o| free(&cpu, &s, o));
    // 10: in a sheaf no byte changes.
    for &o in &p {
        for w in 0..24 {
            // SAFETY: the slab still exists, here and below.
            assert_eq!(unsafe { word(o, w).read() }, o as u64 + w as u64);
        }
    }
    // SAFETY: one thread.
    assert!(!unsafe { kmem_cache_shrink(&cpu, &s) });
    assert_eq!((s.nr_slabs(), s.typesafe_pending_slabs(), s.slab_pages()), (0, 12, 12));
    let dead: BTreeSet<usize> = p.iter().map(|&o| o as usize >> PAGE_SHIFT).collect();
    let mut pages = Vec::new();
    while let Some(page) = NonNull::new(alloc_page(&cpu, &k.slab.pages)) {
        assert!(!dead.contains(&(page.as_ptr() as usize >> PAGE_SHIFT)), "handed out under its readers");
        // SAFETY: our page.
        unsafe { clear_page::<Native>(page.as_ptr()) };
        pages.push(page);
    }
    for &o in &p {
        for w in 1..24 {
            // SAFETY: as above.
            assert_eq!(unsafe { word(o, w).read() }, o as u64 + w as u64);
        }
    }
    // SAFETY: ours.
    pages.iter().for_each(|p| unsafe { free_page(&cpu, &k.slab.pages, p.as_ptr()) });
    end(&cpu, &k, &s);
}

#[test]
fn out_of_memory_is_null_and_leaks_nothing() {
    for (flags, size) in [(0, 192), (SLAB_TYPESAFE_BY_RCU, 320)] {
        let k = boot(1, 1, 2, SHEAVES);
        let cpu = Cpu::for_test(0);
        let s = k.cache(KmemCacheArgs { name: "t", size, flags, ..KmemCacheArgs::default() });
        let mut v: Vec<_> = std::iter::from_fn(|| NonNull::new(kmem_cache_alloc(&cpu, &s))).collect();
        assert!(v.len() > 500);
        let capacity = s.sheaf_capacity();
        for p in v.split_off(v.len() - 5) {
            free(&cpu, &s, p.as_ptr());
        }
        let live = v.len() as i64;
        let mut bulk = [null_mut(); 9];
        assert_eq!(kmem_cache_alloc_bulk(&cpu, &s, &mut bulk), 0);
        assert!(kmem_cache_prefill_sheaf(&cpu, &s, capacity).is_null());
        assert!(kmem_cache_prefill_sheaf(&cpu, &s, capacity + 1).is_null());
        assert!(kmem_cache_prefill_sheaf(&cpu, &s, 0).is_null());
        assert_eq!(s.live_objects(), live);
        check(&k, &s, &[], false);
        // A sheaf that cannot be topped up keeps what it has.
        for p in v.split_off(v.len() - 4) {
            free(&cpu, &s, p.as_ptr());
        }
        let mut sheaf = kmem_cache_prefill_sheaf(&cpu, &s, 1);
        if !sheaf.is_null() {
            // SAFETY: ours.
            unsafe {
                let had = (*sheaf).size();
                assert_eq!(kmem_cache_refill_sheaf(&cpu, &s, &mut sheaf, capacity), Err(Errno::ENOMEM));
                assert_eq!(kmem_cache_refill_sheaf(&cpu, &s, &mut sheaf, capacity + 9), Err(Errno::ENOMEM));
                assert!((*sheaf).size() >= had);
                kmem_cache_return_sheaf(&cpu, &s, sheaf);
            }
        }
        check(&k, &s, &[], false);
        // Full sheaves cannot be had either: the main one is flushed, or objects wait for nobody.
        v.into_iter().for_each(|p| free(&cpu, &s, p.as_ptr()));
        rcu_barrier(&cpu, &k.slab.rcu);
        check(&k, &s, &[], false);
        end(&cpu, &k, &s);
    }
}

#[test]
fn without_memory_for_sheaves_the_main_one_is_flushed() {
    let k = boot(1, 1, 2, SHEAVES);
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(0));
    let v: Vec<_> = (0..300).map(|_| get(&cpu, &s)).collect();
    // Takes what is left, single objects of the sheaf cache included.
    let (mut pages, mut sheaves) = (Vec::new(), Vec::new());
    let mut drain = || {
        pages.extend(std::iter::from_fn(|| NonNull::new(alloc_page(&cpu, &k.slab.pages))));
        k.slab.for_each_sheaf_cache(|c| sheaves.extend(std::iter::from_fn(|| NonNull::new(kmem_cache_alloc(&cpu, c)))));
    };
    drain();
    v.iter().for_each(|&p| free(&cpu, &s, p));
    assert!(s.stat_sum(I::SheafFlush) >= 60 && s.stat_sum(I::BarnPutFail) > 0);
    assert_eq!((s.live_objects(), s.stat_sum(I::FreeFastpath)), (0, 300));
    check(&k, &s, &[], false);
    let v: Vec<_> = (0..150).map(|_| get(&cpu, &s)).collect();
    drain();
    for &p in &v {
        // SAFETY: ours, once. There is the spare sheaf to collect in, and when that has gone, none.
        if !unsafe { kfree_rcu_sheaf(&cpu, &s, p) } {
            free(&cpu, &s, p);
        }
    }
    assert!(s.stat_sum(I::FreeRcuSheafFail) > 0);
    for p in sheaves {
        // SAFETY: ours; a slab object.
        unsafe { kfree(&cpu, p.as_ptr()) };
    }
    // SAFETY: ours.
    pages.iter().for_each(|p| unsafe { free_page(&cpu, &k.slab.pages, p.as_ptr()) });
    end(&cpu, &k, &s);
}

#[test]
fn a_constructor_runs_once_per_object_and_slab() {
    unsafe fn ctor(p: *mut u8) {
        // SAFETY: 64 bytes of a fresh object.
        unsafe { p.cast::<u64>().write(0xc0de) };
    }
    // With a custom offset the object does not grow, and only its word there may change.
    for freeptr_offset in [None, Some(32)] {
        let k =
            boot(1, 1, 8, SlabOptions { allocator: Allocator::Sheaves, init_on_alloc: true, ..SlabOptions::default() });
        let cpu = Cpu::for_test(0);
        let s = k.cache(KmemCacheArgs {
            name: "c",
            size: 64,
            freeptr_offset,
            ctor: Some(ctor),
            ..KmemCacheArgs::default()
        });
        assert_eq!((s.size(), s.freeptr_offset()), if freeptr_offset.is_some() { (64, 32) } else { (72, 64) });
        let z = k.cache(vma_args(0));
        for _ in 0..3 {
            let v: Vec<_> = (0..2000).map(|_| get(&cpu, &s)).collect();
            for p in v {
                // SAFETY: ours.
                assert_eq!(unsafe { p.cast::<u64>().read() }, 0xc0de);
                free(&cpu, &s, p);
            }
        }
        assert!(s.stat_sum(I::FreeSlab) > 0);
        assert_eq!(s.stat_sum(I::CtorCalls), s.stat_sum(I::AllocSlab) * u64::from(s.objects_per_slab()));
        for _ in 0..2 {
            let sheaf = kmem_cache_prefill_sheaf(&cpu, &z, 3);
            let mut bulk = [null_mut(); 2];
            assert_eq!(kmem_cache_alloc_bulk(&cpu, &z, &mut bulk), 2);
            // SAFETY: ours.
            unsafe {
                for p in [bulk[0], bulk[1], get(&cpu, &z), kmem_cache_alloc_from_sheaf(&cpu, &z, sheaf)] {
                    assert!((0..192).all(|i| p.add(i).read() == 0));
                    p.write_bytes(0xff, 192);
                    free(&cpu, &z, p);
                }
                kmem_cache_return_sheaf(&cpu, &z, sheaf);
            }
        }
        // SAFETY: one thread.
        unsafe { kmem_cache_destroy(&cpu, &z).unwrap() };
        end(&cpu, &k, &s);
    }
}

#[test]
fn nodes_are_asked_in_the_kernels_order() {
    let k = boot(2, 2, 8, SHEAVES);
    let set = for_test_set::<Native>(2);
    let (mut zero, mut one) = (set.cpu(0), set.cpu(1));
    (zero.node, one.node) = (0, 1);
    let s = k.cache(vma_args(0));
    let on_zero = |p: *mut u8| {
        let (start, end) = k.arena.node_range(0);
        (start..end).contains(&(p as usize))
    };
    let mut v: Vec<_> = (0..240).map(|_| get(&zero, &s)).collect();
    assert!(v.iter().all(|&p| on_zero(p)));
    // Another node's wish goes past the sheaves.
    let p = kmem_cache_alloc_node(&zero, &s, 1);
    assert!(!on_zero(p));
    assert_eq!((s.stat_of(0, I::AllocNodeMismatch), s.stat_of(0, I::AllocSlowpath)), (1, 1));
    // CPU 1 frees one object in each of seven slabs of node 0: with the one that a refill left over, that is more than
    // the node must keep.
    let mut slabs = BTreeSet::new();
    for _ in 0..7 {
        let i = v.iter().position(|&p| slabs.insert(p as usize >> PAGE_SHIFT)).expect("twelve slabs");
        free(&one, &s, v.swap_remove(i));
    }
    assert_eq!((s.stat_of(1, I::FreeSlowpath), s.stat_of(1, I::FreeFastpath)), (7, 0));
    assert_eq!((s.node[0].nr_partial.load(Relaxed), s.node[1].nr_partial.load(Relaxed)), (8, 1));
    // A refill on CPU 1 empties node 1's list, then takes what the remote one has, then makes new slabs of its own. One
    // time in 43 it does not ask remote nodes.
    let mut w: Vec<_> = Vec::new();
    for _ in 0..4 {
        w.extend((0..60).map(|_| get(&one, &s)));
        if w.iter().any(|&p| on_zero(p)) {
            break;
        }
    }
    assert_eq!(w.iter().filter(|&&p| on_zero(p)).count(), 19);
    assert_eq!(s.node[0].nr_partial.load(Relaxed), 0);
    // In this order; the last one found is the first one handed out.
    let places: Vec<_> = w[w.len() - 60..].iter().rev().map(|&p| on_zero(p)).collect();
    let first = places.iter().position(|z| *z).expect("19 of them");
    assert!(first > 0 && places[first..first + 19].iter().all(|z| *z), "{places:?}");
    v.into_iter().for_each(|p| free(&zero, &s, p));
    w.into_iter().chain([p]).for_each(|p| free(&one, &s, p));
    check(&k, &s, &[], false);
    end(&zero, &k, &s);
}

#[test]
fn slabs_are_listed_and_taken_in_the_kernels_order() {
    let k = boot(2, 2, 8, SHEAVES);
    let set = for_test_set::<Native>(2);
    let (zero, mut one) = (set.cpu(0), set.cpu(1));
    one.node = 1;
    let s = k.cache(vma_args(0));
    let slab_of = |p: *mut u8| p as usize >> PAGE_SHIFT;
    // Twelve slabs, the last of them with twelve free objects and on the list.
    let mut v: Vec<_> = (0..240).map(|_| get(&zero, &s)).collect();
    // SAFETY: a cache with sheaves. With the lock taken objects go to their slabs and come from there.
    let pcs = unsafe { s.cpu_slab.of(0).sheaves() };
    pcs.set_locked(true);
    // SAFETY: the slab on the list.
    let last = unsafe { &*s.node[0].first.get() }.address() >> PAGE_SHIFT;
    let mut full: Vec<usize> = Vec::new();
    for _ in 0..3 {
        let i = v.iter().position(|&p| slab_of(p) != last && !full.contains(&slab_of(p))).expect("eleven slabs");
        full.push(slab_of(v[i]));
        free(&zero, &s, v.swap_remove(i));
    }
    // Listed at the tail, taken from the head, one by one.
    let w: Vec<_> = (0..15).map(|_| get(&zero, &s)).collect();
    let want: Vec<usize> = std::iter::repeat_n(last, 12).chain(full).collect();
    assert_eq!(w.iter().map(|&p| slab_of(p)).collect::<Vec<_>>(), want);
    assert_eq!(s.node[0].nr_partial.load(Relaxed), 0);
    free(&zero, &s, w[0]);
    pcs.set_locked(false);
    // Without memory of its own CPU 1 gets new slabs of node 0; what is left of the last one goes before those listed.
    let pages: Vec<_> =
        std::iter::from_fn(|| NonNull::new(alloc_pages_node(&one, &k.slab.pages, 1, 0, true))).collect();
    let p = get(&one, &s);
    let node = &s.node[0];
    assert_eq!((node.nr_partial.load(Relaxed), s.stat_of(1, I::AllocSlab)), (2, 3));
    // SAFETY: the slabs on the list.
    let (first, second) = unsafe { (&*node.first.get(), &*node.last.get()) };
    assert_eq!((first.counters().inuse(), second.counters().inuse()), (18, 20));
    // SAFETY: ours.
    pages.iter().for_each(|p| unsafe { free_page(&one, &k.slab.pages, p.as_ptr()) });
    free(&one, &s, p);
    v.into_iter().chain(w.into_iter().skip(1)).for_each(|p| free(&zero, &s, p));
    check(&k, &s, &[], false);
    end(&zero, &k, &s);
}

#[test]
fn a_wish_for_the_own_node_refuses_a_remote_object_in_the_sheaf() {
    let k = boot(2, 2, 8, SHEAVES);
    let set = for_test_set::<Native>(2);
    let (zero, mut one) = (set.cpu(0), set.cpu(1));
    one.node = 1;
    let s = k.cache(vma_args(0));
    let p = get(&zero, &s);
    let q = get(&one, &s);
    // As a refill from a remote node leaves it.
    // SAFETY: a cache with sheaves; the object is ours to put there.
    let main = unsafe { s.cpu_slab.of(1).sheaves() }.main();
    free(&zero, &s, p);
    // SAFETY: as above.
    assert_eq!(unsafe { s.cpu_slab.of(0).sheaves() }.main().pop(), p as usize);
    let local = main.pop();
    main.push(p as usize);
    let mismatch = s.stat_of(1, I::AllocNodeMismatch);
    let r = kmem_cache_alloc_node(&one, &s, 1);
    let (start, end_of) = k.arena.node_range(1);
    assert!((start..end_of).contains(&(r as usize)));
    assert_eq!((s.stat_of(1, I::AllocNodeMismatch), s.stat_of(1, I::AllocSlowpath)), (mismatch + 1, 1));
    // Without a wish it is handed out unseen.
    assert_eq!(get(&one, &s), p);
    main.push(local);
    for o in [p, q, r] {
        free(&one, &s, o);
    }
    end(&zero, &k, &s);
}

#[test]
fn a_cache_with_live_objects_is_not_destroyed() {
    let k = boot(2, 1, 4, SHEAVES);
    let set = for_test_set::<Native>(2);
    let (cpu, other) = (set.cpu(0), set.cpu(1));
    let s = k.cache(vma_args(SLAB_TYPESAFE_BY_RCU));
    let p = get(&other, &s);
    // SAFETY: one thread.
    unsafe {
        assert_eq!(kmem_cache_destroy(&cpu, &s), Err(Errno::EBUSY));
        // 14: it goes on.
        free(&cpu, &s, p);
        free(&other, &s, get(&other, &s));
    }
    end(&cpu, &k, &s);
}

#[test]
fn counters_are_those_of_the_allocator_in_use() {
    let names = |options| {
        let k = boot(1, 1, 4, options);
        k.cache(vma_args(0));
        let mut v = BTreeMap::new();
        k.slab.for_each_stat(|name, n| _ = v.insert(name, n));
        v
    };
    let (slub, sheaves) = (names(EXACT), names(SHEAVES));
    for (name, in_slub, in_sheaves) in [
        ("alloc_fastpath", true, true),
        ("cmpxchg_double_fail", true, true),
        ("list_lock", true, true),
        ("cpu_partial_drain", true, false),
        ("free_frozen", true, false),
        ("alloc_from_partial", true, false),
        ("free_rcu_sheaf", false, true),
        ("sheaf_return_slow", false, true),
        ("barn_lock", false, true),
    ] {
        let key = format!("vm_area_struct.{name}");
        assert_eq!((slub.contains_key(&key), sheaves.contains_key(&key)), (in_slub, in_sheaves), "{name}");
    }
    assert!(sheaves.contains_key("sheaf-512.alloc_slab") && !slub.contains_key("sheaf-512.alloc_slab"));
}
