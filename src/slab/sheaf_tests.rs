// SPDX-License-Identifier: GPL-2.0-only
//! The 7.3 allocator against what is known of the kernel's: capacities, exact counters of fixed workloads (slab.md 1.6,
//! 6.2, 7.2), prefilled sheaves, sheaves behind a grace period, nodes.

use super::barn::MAX_FULL_SHEAVES;
use super::sheaf::{SlubPercpuSheaves, calculate_sheaf_capacity};
use super::sheaf_rcu::{flush_all_rcu_sheaves, flush_rcu_sheaf, kfree_rcu_sheaf};
use super::slab_common::{calculate_sizes, calculate_sizes_for};
use super::stat::Waiting;
use super::tests::*;
use super::*;
use crate::arch::Relaxed;
use crate::cpu::testing::for_test_set;
use crate::cpu::{Cpu, Errno};
use crate::rcu::rcu_barrier;
use StatItem as I;

pub(super) const SHEAVES: SlabOptions = SlabOptions { allocator: Allocator::Sheaves, ..EXACT };

/// (main, spare, full in the barn, empty in the barn), each sheaf by the objects in it.
fn sheaves(s: &KmemCache<Native>, cpu: u32) -> (u32, Option<u32>, usize, usize) {
    // SAFETY: a cache with sheaves; nobody is inside.
    let pcs: &SlubPercpuSheaves<Native> = unsafe { s.cpu_slab.of(cpu).sheaves() };
    let (full, empty) = s.barn[0].walk();
    assert_eq!(full.len(), s.barn[0].nr_full.load(Relaxed) as usize);
    assert_eq!(empty.len(), s.barn[0].nr_empty.load(Relaxed) as usize);
    (pcs.main().size(), pcs.spare().map(SlabSheaf::size), full.len(), empty.len())
}

/// Both ways of storing links must give the same counts.
fn exact(f: impl Fn(&Kernel, &Cpu<Native>, &KmemCache<Native>)) {
    for hardened in [false, true] {
        let k = boot(1, 1, 16, SlabOptions { hardened, ..SHEAVES });
        let s = k.cache(vma_args(0));
        assert_eq!((s.size(), s.objects_per_slab(), s.cpu_partial_slabs(), s.min_partial), (192, 21, 0, 5));
        assert_eq!(s.sheaf_capacity(), 60);
        let cpu = Cpu::for_test(0);
        f(&k, &cpu, &s);
        // SAFETY: the only CPU.
        unsafe { kmem_cache_destroy(&cpu, &s).unwrap() };
        assert_eq!((s.live_objects(), s.nr_slabs(), s.slab_pages(), s.nr_sheaves(), k.outstanding()), (0, 0, 0, 0, 0));
    }
}

fn get_n(cpu: &Cpu<Native>, s: &KmemCache<Native>, n: usize) -> Vec<*mut u8> {
    (0..n).map(|_| get(cpu, s)).collect()
}

fn free_all(cpu: &Cpu<Native>, s: &KmemCache<Native>, v: &[*mut u8]) {
    v.iter().for_each(|&p| free(cpu, s, p));
}

#[test]
fn capacities_and_offsets_are_the_kernels() {
    for (size, wanted, capacity) in [
        (40, 0, 60),
        (192, 32, 60),
        (248, 0, 60),
        (256, 0, 28),
        (256, 32, 32),
        (1023, 0, 28),
        (1024, 0, 12),
        (4095, 0, 12),
        (4096, 0, 4),
        (8192, 7, 7),
        (192, 100, 100),
    ] {
        assert_eq!(calculate_sheaf_capacity(size, wanted), capacity, "{size} {wanted}");
    }
    unsafe fn ctor(_: *mut u8) {}
    let args = |flags, freeptr_offset, with_ctor: bool| KmemCacheArgs {
        name: "t",
        size: 64,
        flags,
        freeptr_offset,
        ctor: with_ctor.then_some(ctor as unsafe fn(*mut u8)),
        ..KmemCacheArgs::default()
    };
    let g = |a: KmemCacheArgs| {
        calculate_sizes_for(&a, 4, 64, Allocator::Sheaves).map(|g| (g.size, g.offset, g.cpu_partial_slabs))
    };
    let ts = SLAB_TYPESAFE_BY_RCU;
    assert_eq!(g(args(0, Some(8), true)), Ok((64, 8, 0)));
    assert_eq!(calculate_sizes(&args(0, Some(8), true), 4, 64), Err(Errno::EINVAL));
    assert_eq!(g(args(0, None, true)), Ok((72, 64, 0)));
    assert_eq!(g(args(ts, None, false)), Ok((72, 64, 0)));
    assert_eq!(g(args(ts, Some(16), true)), Ok((64, 16, 0)));
    assert_eq!(g(args(0, Some(8), false)), Err(Errno::EINVAL));
    assert_eq!(
        calculate_sizes_for(&args(SLAB_NO_SHEAVES, None, false), 4, 64, Allocator::Sheaves).unwrap().sheaf_capacity,
        0
    );
}

#[test]
fn trace_a_alloc_210_free_fifo_flush_shrink() {
    exact(|k, cpu, s| {
        let p = get_n(cpu, s, 210);
        let alloc = [
            (I::AllocFastpath, 210),
            (I::AllocSlab, 12),
            (I::SheafRefill, 240),
            (I::BarnGetFail, 4),
            (I::SheafAlloc, 2),
        ];
        expect_stats("A", s, true, &alloc);
        free_all(cpu, s, &p);
        let mut all = alloc.to_vec();
        all.retain(|a| a.0 != I::SheafAlloc);
        all.extend([(I::FreeFastpath, 210), (I::SheafAlloc, 4), (I::BarnPut, 2)]);
        expect_stats("A then free", s, true, &all);
        assert_eq!((s.nr_slabs(), s.live_objects()), (12, 0));
        assert_eq!(sheaves(s, 0), (60, Some(60), 2, 0));
        flush_cpu_slab(cpu, s);
        assert_eq!(sheaves(s, 0), (0, None, 2, 0));
        // SAFETY: the only CPU.
        assert!(!unsafe { kmem_cache_shrink(cpu, s) });
        assert_eq!((s.nr_slabs(), s.slab_pages()), (0, 0));
        // One cache of sheaves: the main sheaf, which is the second one made.
        let mut sheaf_pages = 0;
        k.slab.for_each_sheaf_cache(|c| sheaf_pages += c.slab_pages());
        assert_eq!(k.outstanding(), sheaf_pages);
    });
}

#[test]
fn trace_b_alloc_420_free_fifo() {
    exact(|_, cpu, s| {
        let p = get_n(cpu, s, 420);
        free_all(cpu, s, &p);
        expect_stats(
            "B",
            s,
            true,
            &[
                (I::AllocFastpath, 420),
                (I::FreeFastpath, 420),
                (I::AllocSlab, 20),
                (I::SheafRefill, 420),
                (I::BarnGetFail, 7),
                (I::BarnPut, 5),
                (I::SheafAlloc, 7),
            ],
        );
        assert_eq!((s.nr_slabs(), sheaves(s, 0)), (20, (60, Some(60), 5, 0)));
    });
}

#[test]
fn trace_c_alloc_and_free_one() {
    exact(|_, cpu, s| {
        for _ in 0..10_000 {
            free(cpu, s, get(cpu, s));
        }
        let want = [
            (I::AllocFastpath, 10_000),
            (I::FreeFastpath, 10_000),
            (I::AllocSlab, 3),
            (I::SheafRefill, 60),
            (I::BarnGetFail, 1),
            (I::SheafAlloc, 2),
        ];
        expect_stats("C", s, true, &want);
    });
}

#[test]
fn trace_d_bursts_of_1024() {
    exact(|_, cpu, s| {
        for _ in 0..100 {
            let p = get_n(cpu, s, 1024);
            free_all(cpu, s, &p);
        }
        expect_stats(
            "D",
            s,
            false,
            &[
                (I::AllocFastpath, 102_400),
                (I::AllocSlowpath, 0),
                (I::FreeFastpath, 102_400),
                (I::FreeSlowpath, 0),
                (I::AllocSlab, 1044),
                (I::SheafRefill, 36_720),
                (I::SheafFlush, 36_000),
                (I::BarnPut, 1000),
                (I::BarnPutFail, 600),
                (I::FreeSlab, 1002),
            ],
        );
        assert_eq!((s.slabs_high_water(), s.nr_slabs()), (52, 42));
    });
}

#[test]
fn trace_e_one_cpu_allocates_another_frees() {
    for hardened in [false, true] {
        let k = boot(2, 1, 16, SlabOptions { hardened, ..SHEAVES });
        let s = k.cache(vma_args(0));
        let set = for_test_set::<Native>(2);
        let (zero, one) = (&set.cpu(0), &set.cpu(1));
        for _ in 0..100 {
            let p = get_n(zero, &s, 210);
            free_all(one, &s, &p);
        }
        expect_stats(
            "E",
            &s,
            false,
            &[
                (I::AllocFastpath, 21_000),
                (I::AllocSlowpath, 0),
                (I::FreeFastpath, 21_000),
                (I::FreeSlowpath, 0),
                (I::AllocSlab, 18),
                (I::SheafRefill, 360),
                (I::BarnPut, 348),
                (I::BarnGet, 344),
                (I::FreeSlab, 0),
            ],
        );
    }
}

#[test]
fn trace_f_more_than_the_barn_takes() {
    exact(|_, cpu, s| {
        let p = get_n(cpu, s, 840);
        free_all(cpu, s, &p);
        expect_stats(
            "F",
            s,
            false,
            &[(I::BarnPut, 10), (I::BarnPutFail, 2), (I::SheafFlush, 120), (I::FreeAddPartial, 6), (I::FreeSlab, 1)],
        );
        assert_eq!((s.nr_slabs(), sheaves(s, 0)), (39, (60, Some(60), 10, 0)));
    });
}

#[test]
fn trace_g_kfree_rcu_in_bursts() {
    exact(|k, cpu, s| {
        for _ in 0..100 {
            for p in get_n(cpu, s, 1200) {
                // SAFETY: ours, once.
                assert!(unsafe { kfree_rcu_sheaf(cpu, s, p) });
            }
            rcu_barrier(cpu, &k.slab.rcu);
        }
        expect_stats(
            "G",
            s,
            false,
            &[
                (I::FreeRcuSheaf, 120_000),
                (I::FreeRcuSheafFail, 0),
                (I::BarnPut, 1000),
                (I::BarnPutFail, 1000),
                (I::SheafFlush, 60_000),
                (I::AllocSlab, 2632),
                (I::FreeSlab, 2600),
                (I::SheafAlloc, 21),
            ],
        );
        assert_eq!(s.barn[0].nr_empty.load(Relaxed), 10);
    });
}

fn expect_row(live: usize, batch: usize, want: Row) {
    exact(|_, cpu, s| assert_eq!(workload_r(cpu, s, live, batch), want));
}

#[test]
fn workload_r_freeing_at_once() {
    let (alloc, free) = ((100_000, 0), (100_000, 0));
    expect_row(1000, 0, Row { hot: 99_999, alloc, free, hw: 49, ..Row::default() });
}

#[test]
fn workload_r_in_batches_of_256() {
    let (alloc, free) = ((100_000, 0), (99_584, 0));
    // The table gives neither refills nor flushes of this row.
    exact(|_, cpu, s| {
        let r = workload_r(cpu, s, 1000, 256);
        assert_eq!((r.hot, r.alloc, r.free), (389, alloc, free));
        assert_eq!((r.list_lock, r.barn_lock, r.alloc_slab, r.hw), (16, 3110, 26, 75));
    });
}

#[test]
fn workload_r_in_batches_of_1024() {
    let (alloc, free) = ((100_000, 0), (98_304, 0));
    expect_row(
        1000,
        1024,
        Row {
            hot: 96,
            alloc,
            free,
            refill: 36_240,
            flush: 34_560,
            list_lock: 13_506,
            barn_lock: 1920,
            alloc_slab: 97,
            hw: 146,
        },
    );
}

#[test]
fn workload_r_of_one_object_is_all_hot() {
    exact(|_, cpu, s| {
        let r = workload_r(cpu, s, 1, 0);
        assert_eq!((r.hot, r.alloc, r.free), (99_999, (100_000, 0), (100_000, 0)));
    });
}

#[test]
fn barns_and_limits() {
    exact(|k, cpu, s| {
        // 3: last in, first out, while the main sheaf has room.
        let p = get_n(cpu, s, 10);
        free(cpu, s, p[3]);
        assert_eq!(get(cpu, s), p[3]);
        free_all(cpu, s, &p);
        // 8: never more full ones than that.
        for n in [100, 900, 2000] {
            let p = get_n(cpu, s, n);
            for &o in &p {
                free(cpu, s, o);
                assert!(s.barn[0].nr_full.load(Relaxed) <= MAX_FULL_SHEAVES);
            }
        }
        // An interrupt inside the allocator would find the lock taken: straight to the slabs.
        // SAFETY: a cache with sheaves.
        let pcs = unsafe { s.cpu_slab.of(0).sheaves() };
        let p = get(cpu, s);
        pcs.set_locked(true);
        let slow = (stat(s, I::AllocSlowpath), stat(s, I::FreeSlowpath));
        let q = get(cpu, s);
        free(cpu, s, q);
        // SAFETY: ours; it stays ours.
        assert!(!unsafe { kfree_rcu_sheaf(cpu, s, p) });
        let mut bulk = [null_mut(); 5];
        assert_eq!(kmem_cache_alloc_bulk(cpu, s, &mut bulk), 5);
        // SAFETY: ours, once.
        unsafe { kmem_cache_free_bulk(cpu, s, &mut bulk) };
        assert_eq!((stat(s, I::AllocSlowpath), stat(s, I::FreeSlowpath)), (slow.0 + 6, slow.1 + 6));
        assert_eq!(stat(s, I::FreeRcuSheafFail), 1);
        pcs.set_locked(false);
        free(cpu, s, p);
        assert_eq!(s.live_objects(), 0);
        // A part-filled sheaf waits for a flush, however long.
        let p = get_n(cpu, s, 7);
        for &o in &p {
            // SAFETY: ours, once.
            assert!(unsafe { kfree_rcu_sheaf(cpu, s, o) });
        }
        assert_eq!((s.live_objects(), k.slab.rcu.pending()), (0, 0));
        let flushed = stat(s, I::SheafFlush);
        // SAFETY: the only CPU.
        unsafe { flush_all_rcu_sheaves(cpu, &k.slab) };
        assert_eq!((k.slab.rcu.pending(), stat(s, I::SheafFlush)), (1, flushed));
        rcu_barrier(cpu, &k.slab.rcu);
        assert_eq!(stat(s, I::SheafFlush), flushed + 7);
        assert_eq!((s.waiting(Waiting::Objects), s.waiting_high_water(Waiting::Objects)), (0, 7));
        flush_rcu_sheaf(cpu, s);
        assert_eq!(k.slab.rcu.pending(), 0);
    });
}
