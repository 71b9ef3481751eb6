// SPDX-License-Identifier: GPL-2.0-only
//! What must hold whatever the order of calls (slab.md 7.1), by number: 1 no double hand-out, 2 objects lie where they
//! should, 3 last in first out, 5 the count in use, 6 exclusive states, 7 list lengths, 9 constructor calls, 10 and 13
//! type-stable pages and the accounting, 12 nodes, 14 destruction of a cache in use.

use super::stat::Waiting;
use super::tests::*;
use super::*;
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE, RECORD_SIZE, page_record};
use crate::arch::{Full, Relaxed};
use crate::cpu::testing::for_test_set;
use crate::cpu::{Cpu, Errno};
use crate::rcu::rcu_barrier;
use crate::slab::page_alloc::PG_SLAB;
use StatItem as I;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Barrier, Mutex};

type S = *mut Slab<Native>;

/// Walks every list and every record; nobody is inside the allocator. Returns the free objects of all slabs.
fn check(k: &Kernel, s: &KmemCache<Native>) -> BTreeSet<usize> {
    let mut place: BTreeMap<S, &str> = BTreeMap::new();
    let mut on_cpu: BTreeMap<S, Vec<usize>> = BTreeMap::new();
    let chain = |mut o: usize| {
        let mut v = Vec::new();
        while o != 0 {
            v.push(o);
            assert!(v.len() <= 1 << 15, "a freelist runs in a circle");
            // SAFETY: a free object; nobody else is here.
            o = unsafe { s.get_freepointer(o) };
        }
        v
    };
    for c in s.cpu_slab.iter() {
        let slab = c.slab.load(Relaxed);
        if slab.is_null() {
            assert_eq!(c.freelist.load(Relaxed), 0);
        } else {
            assert_eq!(place.insert(slab, "cpu"), None);
            on_cpu.insert(slab, chain(c.freelist.load(Relaxed)));
        }
        let mut p = c.partial.load(Relaxed);
        // SAFETY: records; nobody else is here. So below.
        let len = if p.is_null() { 0 } else { unsafe { &*p }.slabs() };
        assert!(len <= s.cpu_partial_slabs as usize, "a stack of {len}");
        let mut n = 0;
        while !p.is_null() {
            assert_eq!(place.insert(p, "stack"), None);
            n += 1;
            // SAFETY: as above.
            p = unsafe { &*p }.next();
        }
        assert_eq!(n, len);
    }
    for (nid, node) in s.node.iter().enumerate() {
        let (mut p, mut n) = (node.first.get(), 0);
        while !p.is_null() {
            assert_eq!(place.insert(p, "node"), None);
            // SAFETY: as above.
            let slab = unsafe { &*p };
            assert_eq!(slab.nid(), nid as u32);
            n += 1;
            p = slab.next();
        }
        assert_eq!(n, node.nr_partial.load(Relaxed));
    }
    let (mut all_free, mut slabs, mut objects, mut inuse) = (BTreeSet::new(), 0, 0, 0);
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
            let mut free = chain(slab.freelist());
            // 5: what is not on the slab's own list counts as in use.
            assert_eq!(c.inuse() as usize, c.objects() as usize - free.len());
            let own = on_cpu.remove(&p);
            inuse += c.inuse() as usize - own.as_ref().map_or(0, Vec::len);
            free.extend(own.unwrap_or_default());
            for &o in &free {
                let off = o - slab.address();
                assert!(off % s.size() == 0 && off / s.size() < c.objects() as usize);
            }
            // 6: exactly one state; a slab on no list is full, or waits for its grace period.
            match place.remove(&p) {
                Some("cpu") => assert!(c.frozen() && !slab.on_node_partial()),
                Some("stack") => assert!(!c.frozen() && !slab.on_node_partial() && slab.freelist() != 0),
                Some(_) => assert!(!c.frozen() && slab.on_node_partial() && slab.freelist() != 0),
                None if c.inuse() == 0 => {
                    assert!(s.typesafe && !slab.on_node_partial());
                    continue;
                }
                None => assert!(c.inuse() == c.objects() && !c.frozen() && !slab.on_node_partial()),
            }
            slabs += 1;
            objects += u64::from(c.objects());
            for o in free {
                assert!(all_free.insert(o), "free twice");
            }
        }
    }
    assert!(place.is_empty() && on_cpu.is_empty(), "lists name records that are no slabs: {place:?}");
    assert_eq!(slabs, s.nr_slabs());
    assert_eq!(objects, s.node.iter().map(|n| n.total_objects.load(Relaxed)).sum::<u64>());
    assert_eq!(inuse as i64, s.live_objects());
    // 13: taken = given back + waiting + in use, where all slabs have the same order.
    if s.stat_sum(I::OrderFallback) == 0 {
        assert_eq!(s.slab_pages(), (s.nr_slabs() + s.typesafe_pending_slabs()) << s.order());
    }
    all_free
}

#[test]
fn random_calls_on_two_cpus_keep_every_invariant() {
    for (hardened, randomized, flags, nodes) in
        [(false, false, 0, 1), (true, true, 0, 2), (true, false, SLAB_TYPESAFE_BY_RCU, 1), (true, true, 0, 1)]
    {
        let k = boot(2, nodes, 32, SlabOptions { hardened, randomized, ..EXACT });
        let s = k.cache(vma_args(flags));
        let set = for_test_set::<Native>(2);
        let cpus = [set.cpu(0), set.cpu(1)];
        let mut live: Vec<*mut u8> = Vec::new();
        let mut owned = BTreeSet::new();
        for round in 0..30 {
            let target = [10, 700, 60, 1500, 0][round % 5];
            for _ in 0..1500 {
                let r = cpus[0].random();
                let cpu = &cpus[(r >> 40) as usize % 2];
                match r % 16 {
                    0 => {
                        let n = (r >> 8) as usize % 40;
                        let mut v = vec![std::ptr::null_mut(); n];
                        assert_eq!(kmem_cache_alloc_bulk(cpu, &s, &mut v), n);
                        for p in v {
                            assert!(owned.insert(p as usize), "handed out twice");
                            live.push(p);
                        }
                    }
                    1 => {
                        let n = ((r >> 8) as usize % 40).min(live.len());
                        let mut v = live.split_off(live.len() - n);
                        v.iter().for_each(|&p| assert!(owned.remove(&(p as usize))));
                        // SAFETY: ours, once.
                        unsafe { kmem_cache_free_bulk(cpu, &s, &mut v) };
                    }
                    2 if r >> 8 & 63 == 0 => flush_cpu_slab(cpu, &s),
                    // SAFETY: one thread.
                    3 if r >> 8 & 255 == 0 => drop(unsafe { kmem_cache_shrink(cpu, &s) }),
                    4 if r >> 8 & 255 == 0 => rcu_barrier(cpu, &k.slab.rcu),
                    5 => {
                        let p = kmem_cache_alloc_node(cpu, &s, (r >> 8) as u32 % nodes);
                        assert!(owned.insert(p as usize), "handed out twice");
                        live.push(p);
                    }
                    x if (x < 11) == (live.len() < target) => {
                        let p = get(cpu, &s);
                        assert!(owned.insert(p as usize), "handed out twice");
                        assert_eq!(p as usize % 64, 0);
                        live.push(p);
                    }
                    _ if !live.is_empty() => {
                        let p = live.swap_remove((r >> 8) as usize % live.len());
                        assert!(owned.remove(&(p as usize)));
                        free(cpu, &s, p);
                        // 3: to the cpu slab and back again.
                        let fast = s.stat_of(cpu.id, I::FreeFastpath);
                        free(cpu, &s, get(cpu, &s));
                        if s.stat_of(cpu.id, I::FreeFastpath) == fast + 1 && r & 1 << 60 != 0 {
                            let q = get(cpu, &s);
                            free(cpu, &s, q);
                            assert_eq!(get(cpu, &s), q);
                            free(cpu, &s, q);
                        }
                    }
                    _ => {}
                }
            }
            assert_eq!(s.live_objects(), live.len() as i64);
            let free = check(&k, &s);
            assert!(live.iter().all(|p| !free.contains(&(*p as usize))));
        }
        for p in live {
            free(&cpus[0], &s, p);
        }
        // SAFETY: one thread.
        unsafe {
            assert!(!kmem_cache_shrink(&cpus[0], &s));
            check(&k, &s);
            kmem_cache_destroy(&cpus[0], &s).unwrap();
        }
        assert_eq!((s.slab_pages(), s.typesafe_pending_slabs(), k.outstanding()), (0, 0, 0));
        assert!((0..nodes).all(|n| k.slab.pages.node_outstanding(n) == 0));
        k.slab.for_each_cache(|_| panic!("destroyed, but listed"));
    }
}

fn torture(flags: u32, threads: u32) {
    let k = boot(threads, 1, 64, SlabOptions { hardened: true, randomized: true, ..EXACT });
    let s = k.cache(vma_args(flags));
    let set = for_test_set::<Native>(threads);
    let mail: Vec<Mutex<Vec<usize>>> = (0..threads).map(|_| Mutex::new(Vec::new())).collect();
    let all_here = Barrier::new(threads as usize);
    std::thread::scope(|t| {
        for id in 0..threads {
            let (set, mail, all_here) = (set.clone(), &mail, &all_here);
            t.spawn(move || {
                let cpu = set.cpu(id);
                all_here.wait();
                let take = |p: *mut u8| {
                    assert!(!p.is_null());
                    assert_eq!(stamp(p).swap(u64::from(id) + 1, Full), 0, "{p:p} handed out twice");
                };
                let give = |p: *mut u8| {
                    assert_ne!(stamp(p).swap(0, Full), 0, "{p:p} freed twice");
                    free(&cpu, &s, p);
                };
                let mut mine: Vec<*mut u8> = Vec::new();
                let mut r = u64::from(id) + 1;
                for i in 0..60_000u32 {
                    r = crate::cpu::splitmix64(r);
                    let want = if i / 4000 % 2 == 0 { 300 } else { 20 };
                    if mine.len() < want && r % 4 != 0 {
                        let p = get(&cpu, &s);
                        take(p);
                        mine.push(p);
                    } else if let Some(n) = mine.len().checked_sub(1) {
                        let p = mine.swap_remove((r >> 8) as usize % (n + 1));
                        if r >> 40 & 1 == 0 {
                            give(p);
                        } else {
                            let to = (r >> 44) as usize % mail.len();
                            mail[to].lock().unwrap().push(p as usize);
                        }
                    }
                    if i % 64 == 0 {
                        // On a busy machine one would be through before the next begins.
                        std::thread::yield_now();
                        let post = std::mem::take(&mut *mail[id as usize].lock().unwrap());
                        post.into_iter().for_each(|p| give(p as *mut u8));
                    }
                    if r >> 50 & 4095 == 0 {
                        flush_cpu_slab(&cpu, &s);
                    }
                }
                mine.into_iter().for_each(give);
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
    check(&k, &s);
    assert!(s.stat_sum(I::FreeFrozen) > 0 && s.stat_sum(I::CpuPartialDrain) > 0, "a torture that tortured nothing");
    // SAFETY: the threads ended.
    unsafe { kmem_cache_destroy(&cpu, &s).unwrap() };
    assert_eq!((s.nr_slabs(), s.typesafe_pending_slabs(), k.outstanding()), (0, 0, 0));
}

#[test]
fn two_cpus_never_get_the_same_object() {
    torture(0, 2);
}

#[test]
fn four_cpus_never_get_the_same_object() {
    torture(0, 4);
}

#[test]
fn four_cpus_never_get_the_same_type_stable_object() {
    torture(SLAB_TYPESAFE_BY_RCU, 4);
}

#[test]
fn type_stable_pages_stay_until_the_grace_period_is_over() {
    let k = boot(1, 1, 4, EXACT);
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(SLAB_TYPESAFE_BY_RCU));
    assert_eq!(s.freeptr_offset(), 0);
    let p: Vec<_> = (0..210).map(|_| get(&cpu, &s)).collect();
    for &o in &p {
        for w in 0..24 {
            // SAFETY: our objects.
            unsafe { o.cast::<u64>().add(w).write(o as u64 + w as u64) };
        }
    }
    for &o in &p {
        free(&cpu, &s, o);
    }
    // SAFETY: one thread.
    assert!(!unsafe { kmem_cache_shrink(&cpu, &s) });
    // 13: gone from the cache at once, from memory later.
    assert_eq!((s.nr_slabs(), s.typesafe_pending_slabs(), s.slab_pages(), k.outstanding()), (0, 10, 10, 10));
    assert_eq!((k.slab.slab_pages(), k.slab.typesafe_pending_slabs()), (10, 10));
    assert_eq!(k.slab.rcu.pending(), 10);
    let dead: BTreeSet<usize> = p.iter().map(|&o| o as usize >> PAGE_SHIFT).collect();
    let mut pages = Vec::new();
    loop {
        let page = alloc_page(&cpu, &k.slab.pages);
        if page.is_null() {
            break;
        }
        assert!(!dead.contains(&(page as usize >> PAGE_SHIFT)), "handed out under its readers");
        // SAFETY: our page.
        unsafe { clear_page::<Native>(page) };
        pages.push(page);
    }
    // 10: only the free pointer's word has changed.
    for &o in &p {
        for w in 1..24 {
            // SAFETY: the slab still exists.
            assert_eq!(unsafe { o.cast::<u64>().add(w).read() }, o as u64 + w as u64);
        }
    }
    rcu_barrier(&cpu, &k.slab.rcu);
    assert_eq!((s.typesafe_pending_slabs(), s.slab_pages(), k.outstanding()), (0, 0, pages.len() as u64));
    assert_eq!(s.waiting_high_water(Waiting::Slabs), 10);
    let back: BTreeSet<usize> = (0..10).map(|_| alloc_page(&cpu, &k.slab.pages) as usize >> PAGE_SHIFT).collect();
    assert_eq!(back, dead);
}

#[test]
fn out_of_memory_is_null_and_leaks_nothing() {
    for (flags, size, align) in [(0, 192, 0), (SLAB_TYPESAFE_BY_RCU, 320, 0)] {
        let k = boot(1, 1, 2, EXACT);
        let cpu = Cpu::for_test(0);
        let s = k.cache(KmemCacheArgs { name: "t", size, align, flags, ..KmemCacheArgs::default() });
        let mut v = Vec::new();
        loop {
            let p = kmem_cache_alloc(&cpu, &s);
            if p.is_null() {
                break;
            }
            v.push(p);
        }
        assert!(v.len() > 1000);
        // No page is left over, whichever order was wanted; a failed bulk gives back what it got.
        assert!(alloc_page(&cpu, &k.slab.pages).is_null());
        assert_eq!(s.stat_sum(I::OrderFallback) > 0, s.order() > 0 && k.slab.pages.managed() % 2 == 1);
        for p in v.split_off(v.len() - 5) {
            free(&cpu, &s, p);
        }
        let mut bulk = [std::ptr::null_mut(); 9];
        assert_eq!(kmem_cache_alloc_bulk(&cpu, &s, &mut bulk), 0);
        assert_eq!(s.live_objects(), v.len() as i64);
        check(&k, &s);
        for p in v {
            free(&cpu, &s, p);
        }
        // SAFETY: one thread.
        unsafe { kmem_cache_destroy(&cpu, &s).unwrap() };
        assert_eq!((s.live_objects(), k.outstanding()), (0, 0));
    }
}

#[test]
fn objects_in_tail_pages_find_their_slab_and_kfree_their_cache() {
    let k = boot(1, 1, 8, SlabOptions::default());
    let cpu = Cpu::for_test(0);
    let s = k.cache(KmemCacheArgs { name: "big", size: 320, align: 0, flags: 0, ..KmemCacheArgs::default() });
    let m = kmalloc_cache_create(&k.arena, k.slab, 192);
    assert_eq!((s.order(), m.order(), m.objects_per_slab(), m.freeptr_offset(), m.size()), (1, 0, 21, 96, 192));
    let v: Vec<_> = (0..100).map(|_| (get(&cpu, &s), get(&cpu, &m))).collect();
    assert!(v.iter().any(|(p, _)| *p as usize & PAGE_SIZE != 0));
    for (p, q) in v {
        // SAFETY: ours, once.
        unsafe {
            kfree(&cpu, p);
            kfree(&cpu, q);
        }
    }
    assert_eq!((s.live_objects(), m.live_objects()), (0, 0));
    let mut names = Vec::new();
    k.slab.for_each_cache(|c| names.push(c.name));
    assert_eq!(names, ["kmalloc-192", "big"]);
    let mut n = 0;
    k.slab.for_each_stat(|name, v| n += u64::from(name == "big.alloc_fastpath") * v);
    assert_eq!(n + s.stat_sum(I::AllocSlowpath), 100);
    // SAFETY: one thread.
    unsafe {
        kmem_cache_destroy(&cpu, &s).unwrap();
        kmem_cache_destroy(&cpu, &m).unwrap();
    }
    assert_eq!(k.outstanding(), 0);
}

#[test]
fn a_constructor_runs_once_per_object_and_slab() {
    unsafe fn ctor(p: *mut u8) {
        // SAFETY: 64 bytes of a fresh object.
        unsafe { p.cast::<u64>().write(0xc0de) };
    }
    let k = boot(1, 1, 8, SlabOptions { init_on_alloc: true, ..SlabOptions::default() });
    let cpu = Cpu::for_test(0);
    let s = k.cache(KmemCacheArgs {
        name: "c",
        size: 64,
        align: 0,
        flags: 0,
        ctor: Some(ctor),
        ..KmemCacheArgs::default()
    });
    let z = k.cache(vma_args(0));
    for _ in 0..3 {
        let v: Vec<_> = (0..500).map(|_| get(&cpu, &s)).collect();
        for p in v {
            // SAFETY: ours.
            assert_eq!(unsafe { p.cast::<u64>().read() }, 0xc0de);
            free(&cpu, &s, p);
        }
    }
    assert_eq!(s.stat_sum(I::CtorCalls), s.stat_sum(I::AllocSlab) * u64::from(s.objects_per_slab()));
    for _ in 0..2 {
        let p = get(&cpu, &z);
        // SAFETY: ours.
        unsafe {
            assert!((0..192).all(|i| p.add(i).read() == 0));
            p.write_bytes(0xff, 192);
        }
        free(&cpu, &z, p);
    }
}

#[test]
fn a_remote_slab_on_a_cpu_stack_is_used_without_a_look() {
    // slab.md 2.9: the defect that 6.12 has and the port keeps.
    let k = boot(2, 2, 8, EXACT);
    let set = for_test_set::<Native>(2);
    let (mut zero, mut one) = (set.cpu(0), set.cpu(1));
    (zero.node, one.node) = (0, 1);
    let s = k.cache(vma_args(0));
    let (start, end) = k.arena.node_range(0);
    let v: Vec<_> = (0..42).map(|_| get(&zero, &s)).collect();
    assert!(v.iter().all(|p| (start..end).contains(&(*p as usize))));
    // CPU 1 frees one of a full slab of node 0: the slab is its to place, and its next cpu slab.
    free(&one, &s, v[0]);
    assert_eq!(get(&one, &s), v[0]);
    assert_eq!(s.stat_of(1, I::CpuPartialAlloc), 1);
    // With a wish it looks: the slab is full now, a new one comes from node 1.
    let p = kmem_cache_alloc_node(&one, &s, 1);
    assert!(!(start..end).contains(&(p as usize)));
    assert_eq!(s.stat_of(1, I::AllocNodeMismatch), 1);
    let q = kmem_cache_alloc_node(&one, &s, 0);
    assert!((start..end).contains(&(q as usize)));
    v.into_iter().chain([p, q]).for_each(|p| free(&zero, &s, p));
    check(&k, &s);
    // SAFETY: one thread.
    unsafe { kmem_cache_destroy(&zero, &s).unwrap() };
    assert_eq!((k.slab.pages.node_outstanding(0), k.slab.pages.node_outstanding(1)), (0, 0));
}

#[test]
fn a_cache_with_live_objects_is_not_destroyed() {
    let k = boot(1, 1, 4, SlabOptions::default());
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(0));
    let p = get(&cpu, &s);
    // SAFETY: one thread.
    unsafe {
        assert_eq!(kmem_cache_destroy(&cpu, &s), Err(Errno::EBUSY));
        free(&cpu, &s, p);
        assert_eq!(kmem_cache_destroy(&cpu, &s), Ok(()));
    }
}

#[test]
fn shrinking_sorts_the_fullest_first() {
    let k = boot(1, 1, 8, EXACT);
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(0));
    let v: Vec<_> = (0..21 * 6).map(|_| get(&cpu, &s)).collect();
    for (slab, n) in [5, 1, 21, 9, 1, 3].into_iter().enumerate() {
        v[slab * 21..slab * 21 + n].iter().for_each(|&p| free(&cpu, &s, p));
    }
    // SAFETY: one thread.
    assert!(unsafe { kmem_cache_shrink(&cpu, &s) });
    let mut free = Vec::new();
    let mut p = s.node[0].first.get();
    while !p.is_null() {
        // SAFETY: on the list.
        let slab = unsafe { &*p };
        free.push(slab.counters().objects() - slab.counters().inuse());
        p = slab.next();
    }
    assert_eq!(free, [1, 1, 3, 5, 9]);
    assert_eq!(s.nr_slabs(), 5);
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_in_a_row_is_caught_when_hardened() {
    let k = boot(1, 1, 4, SlabOptions::default());
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(0));
    let p = get(&cpu, &s);
    free(&cpu, &s, p);
    free(&cpu, &s, p);
}

#[test]
#[should_panic(expected = "is no object of vma_lock")]
fn freeing_to_the_wrong_cache_is_caught_when_hardened() {
    let k = boot(1, 1, 4, SlabOptions::default());
    let cpu = Cpu::for_test(0);
    let s = k.cache(vma_args(0));
    let other = k.cache(KmemCacheArgs { name: "vma_lock", size: 40, flags: 0, ..vma_args(0) });
    free(&cpu, &other, get(&cpu, &s));
}
