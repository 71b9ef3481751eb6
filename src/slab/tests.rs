// SPDX-License-Identifier: GPL-2.0-only
//! The allocator against what is known of the kernel's: geometry, exact counters of fixed workloads (slab.md 1.7, 6.2,
//! 7.2), and invariants under random sequences and threads.

use super::model::slub::tables::ONE_OBJECT;
use super::slab_common::{calculate_sizes, calculate_sizes_for, kmalloc_class};
use super::*;
use crate::arch::{Arena, Atomic, Relaxed};
use crate::cpu::testing::for_test_set;
use crate::cpu::{Cpu, Errno, NR_KTHREADS};
use crate::rcu::{RcuConfig, RcuState};
use StatItem as I;
use std::collections::BTreeMap;

pub(super) type Cache = KRef<KmemCache<Native>>;

pub(super) struct Kernel {
    pub slab: KRef<SlabState<Native>>,
    pub arena: Box<Arena>,
}

pub(super) const EXACT: SlabOptions = SlabOptions {
    allocator: Allocator::Slub,
    hardened: false,
    randomized: false,
    init_on_alloc: false,
    failslab: None,
    fail_page_alloc: None,
    debug: false,
    memcg: false,
    cache_line: 64,
    seed: 7,
};

pub(super) fn boot(nr_cpus: u32, nodes: u32, mib: usize, options: SlabOptions) -> Kernel {
    let arena = Box::new(Arena::new(nodes, mib << 20, None, None).unwrap());
    let node_of = |c: u32| c % nodes;
    let pages = page_alloc_init(&arena, nr_cpus, &node_of);
    let rcu = RcuState::new(&arena, nr_cpus, node_of, &RcuConfig::default());
    let slab = kmem_cache_init(&arena, pages, rcu, 4, options);
    Kernel { slab, arena }
}

pub(super) fn vma_args(flags: u32) -> KmemCacheArgs {
    KmemCacheArgs {
        name: "vm_area_struct",
        size: 192,
        align: 0,
        flags: flags | SLAB_HWCACHE_ALIGN | SLAB_PANIC | SLAB_ACCOUNT,
        freeptr_offset: (flags & SLAB_TYPESAFE_BY_RCU != 0).then_some(0),
        ..KmemCacheArgs::default()
    }
}

impl Kernel {
    pub fn cache(&self, a: KmemCacheArgs) -> Cache {
        kmem_cache_create(&self.arena, self.slab, a)
    }
    pub fn outstanding(&self) -> u64 {
        self.slab.pages.outstanding()
    }
}

pub(super) fn free<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, p: *mut u8) {
    assert!(!p.is_null());
    // SAFETY: tests free what they allocated, once.
    unsafe { kmem_cache_free(cpu, s, p) }
}

pub(super) fn get<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> *mut u8 {
    let p = kmem_cache_alloc(cpu, s);
    assert!(!p.is_null());
    p
}

/// Sum over the workers' CPUs: those of kernel threads have a first main sheaf, too.
pub(super) fn stat(s: &KmemCache<Native>, i: I) -> u64 {
    s.stat_sum(i) - if i == I::SheafAlloc && s.cpu_sheaves { u64::from(NR_KTHREADS) } else { 0 }
}

/// Compares counters of the kernel: those that are not named must be 0 where `all`, those that the other allocator has in
/// any case.
#[track_caller]
pub(super) fn expect_stats(what: &str, s: &KmemCache<Native>, all: bool, want: &[(I, u64)]) {
    let want: BTreeMap<&str, u64> = want.iter().map(|&(i, v)| (i.name(), v)).collect();
    let mut bad = Vec::new();
    for &i in &I::ALL[..=I::SheafReturnSlow as usize] {
        let got = stat(s, i);
        match want.get(i.name()) {
            Some(&w) if w != got => bad.push(format!("{}: {got}, want {w}", i.name())),
            None if (all || !i.exists_in(s.state.options.allocator)) && got != 0 => {
                bad.push(format!("{}: {got}, want 0", i.name()))
            }
            _ => {}
        }
    }
    assert!(bad.is_empty(), "{what}: {bad:#?}");
}

/// A word of a test's object that its free pointer does not lie in.
pub(super) fn stamp(p: *mut u8) -> &'static Atomic<Native, u64> {
    // SAFETY: test objects are 192 bytes or more, and live longer than the words are used.
    unsafe { &*p.add(64).cast() }
}

#[test]
fn geometry_by_cpu_count_is_the_kernels() {
    // slab.md 1.7: order, objects, cpu_partial_slabs for 4, 8, 16, 32, 64, 128, 256, 512 CPUs; None = as to the left.
    type Cell = Option<(u32, u32, u32)>;
    const N: Cell = None;
    let table: [(usize, [Cell; 8]); 11] = [
        (40, [Some((0, 102, 3)), N, N, N, N, N, N, N]),
        (64, [Some((0, 64, 4)), N, N, N, N, N, N, N]),
        (160, [Some((0, 25, 10)), N, N, Some((1, 51, 5)), N, N, N, N]),
        (168, [Some((0, 24, 10)), N, N, Some((1, 48, 5)), N, N, N, N]),
        (176, [Some((0, 23, 11)), N, Some((1, 46, 6)), N, N, N, N, N]),
        (184, [Some((0, 22, 11)), N, Some((1, 44, 6)), N, N, N, N, N]),
        (192, [Some((0, 21, 12)), N, Some((1, 42, 6)), N, N, N, N, Some((2, 85, 3))]),
        (200, [Some((0, 20, 12)), N, Some((1, 40, 6)), N, N, N, N, Some((2, 81, 3))]),
        (256, [Some((0, 16, 7)), Some((1, 32, 4)), N, N, N, Some((2, 64, 2)), N, N]),
        (264, [Some((1, 31, 4)), N, N, N, Some((2, 62, 2)), N, N, N]),
        (320, [Some((1, 25, 5)), N, N, Some((2, 51, 3)), N, N, N, N]),
    ];
    let mut wrong = Vec::new();
    for (size, row) in table {
        let mut want = (0, 0, 0);
        for (col, cell) in row.into_iter().enumerate() {
            want = cell.unwrap_or(want);
            let first = 4u32 << col;
            for cpus in [first, 2 * first - 1] {
                let a = KmemCacheArgs { name: "t", size, align: 0, flags: 0, ..KmemCacheArgs::default() };
                let g = calculate_sizes(&a, cpus, 64).unwrap();
                assert_eq!(g.size, size);
                if (g.order, g.objects, g.cpu_partial_slabs) != want {
                    wrong.push((size, cpus, g, want));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The limits by the bytes of an object, at both sides of each border: order, objects, slabs of a CPU's stack, empty slabs
/// that a node keeps, objects of a sheaf; and what is left over behind the last object.
#[test]
fn limits_and_tails_are_the_kernels() {
    let g = |size, cpus, line, flags, allocator| {
        let a = KmemCacheArgs { name: "t", size, flags, ..KmemCacheArgs::default() };
        calculate_sizes_for(&a, cpus, line, allocator).unwrap()
    };
    // Objects that a CPU's stack is for, counted in full slabs twice over: 120, 52 from 256 bytes on, 24 from 1 KiB, 6 from
    // 4 KiB.
    for (size, objects, stack) in
        [(248, 120u32, 15), (256, 52, 7), (1016, 52, 7), (1024, 24, 3), (4088, 24, 6), (4096, 6, 2)]
    {
        let g = g(size, 4, 64, 0, Allocator::Slub);
        assert_eq!(g.cpu_partial_slabs, (2 * objects).div_ceil(g.objects), "{size}");
        assert_eq!(g.cpu_partial_slabs, stack, "{size}");
    }
    // Half the logarithm, 5 at least and 10 at most.
    for (size, kept) in [
        (8, 5),
        (192, 5),
        (4088, 5),
        (4096, 6),
        (16_376, 6),
        (16_384, 7),
        (65_536, 8),
        (1 << 18, 9),
        (1 << 20, 10),
        (1 << 22, 10),
    ] {
        for allocator in [Allocator::Slub, Allocator::Sheaves] {
            assert_eq!(g(size, 4, 64, 0, allocator).min_partial, kept, "{size}");
        }
    }
    for (size, capacity) in [(192, 60), (248, 60), (256, 28), (1016, 28), (1024, 12), (4088, 12), (4096, 4)] {
        let g = g(size, 4, 64, 0, Allocator::Sheaves);
        assert_eq!((g.sheaf_capacity, g.cpu_partial_slabs), (capacity, 0), "{size}");
    }
    // Behind the last object of a slab of one page.
    for (size, tail) in [(160, 96), (176, 48), (184, 48), (192, 64), (256, 0), (40, 16)] {
        let g = g(size, 4, 64, 0, Allocator::Slub);
        assert_eq!((g.order, 4096 - g.objects as usize * g.size), (0, tail), "{size}");
    }
    // Lines of 128 bytes make one size of all VMAs.
    for size in [160, 176, 184, 192] {
        assert_eq!(g(size, 4, 128, SLAB_HWCACHE_ALIGN, Allocator::Slub).size, 256, "{size}");
    }
}

/// Every request of 1 to 8192 bytes, and the caches of the classes, for 4 CPUs and for 64.
#[test]
fn kmalloc_classes_are_the_kernels() {
    /// Order, objects, slabs of a CPU's stack.
    type Shape = (u32, u32, u32);
    const CLASSES: [(usize, [Shape; 2]); 13] = [
        (8, [(0, 512, 1), (0, 512, 1)]),
        (16, [(0, 256, 1), (0, 256, 1)]),
        (32, [(0, 128, 2), (0, 128, 2)]),
        (64, [(0, 64, 4), (0, 64, 4)]),
        (96, [(0, 42, 6), (0, 42, 6)]),
        (128, [(0, 32, 8), (0, 32, 8)]),
        (192, [(0, 21, 12), (1, 42, 6)]),
        (256, [(0, 16, 7), (1, 32, 4)]),
        (512, [(1, 16, 7), (2, 32, 4)]),
        (1024, [(2, 16, 3), (3, 32, 2)]),
        (2048, [(3, 16, 3), (3, 16, 3)]),
        (4096, [(3, 8, 2), (3, 8, 2)]),
        (8192, [(3, 4, 3), (3, 4, 3)]),
    ];
    let mut below = 0;
    for (class, _) in CLASSES {
        for size in below + 1..=class {
            assert_eq!(kmalloc_class(size), Some(class), "{size} bytes");
        }
        below = class;
    }
    assert_eq!((below, kmalloc_class(below + 1)), (8192, None));
    for (i, cpus) in [4, 64].into_iter().enumerate() {
        let cpu = Cpu::for_test(0);
        for (class, want) in CLASSES {
            let align = 1 << class.trailing_zeros();
            let a = KmemCacheArgs { name: "t", size: class, align, ..KmemCacheArgs::default() };
            let g = calculate_sizes(&a, cpus, 64).unwrap();
            assert_eq!((g.size, g.order, g.objects, g.cpu_partial_slabs), (class, want[i].0, want[i].1, want[i].2));
            assert_eq!(g.offset, class / 2 / 8 * 8, "{class}: the free pointer is in the middle");
            let k = boot(2, 1, 8, EXACT);
            let s = kmalloc_cache_create(&k.arena, k.slab, class);
            assert!(s.name.starts_with("kmalloc-") && s.size() == class, "{}", s.name);
            let p: Vec<_> = (0..3).map(|_| get(&cpu, &s)).collect();
            // 96 by 32, 192 by 64, the others by themselves.
            assert!(p.iter().all(|p| (*p as usize).is_multiple_of(align)), "{class}: {p:?}");
            p.into_iter().for_each(|p| free(&cpu, &s, p));
        }
    }
}

#[test]
fn free_pointer_and_alignment_are_the_kernels() {
    unsafe fn ctor(_: *mut u8) {}
    let g = |size, align, flags, freeptr_offset, ctor: bool, line| {
        let ctor = ctor.then_some(ctor_fn as unsafe fn(*mut u8));
        calculate_sizes(
            &KmemCacheArgs { name: "t", size, align, flags, freeptr_offset, ctor, ..KmemCacheArgs::default() },
            4,
            line,
        )
        .map(|g| (g.size, g.offset))
    };
    use ctor as ctor_fn;
    let (hw, ts) = (SLAB_HWCACHE_ALIGN, SLAB_TYPESAFE_BY_RCU);
    assert_eq!(g(184, 0, 0, None, false, 64), Ok((184, 88)));
    assert_eq!(g(176, 8, 0, None, false, 64), Ok((176, 88)));
    assert_eq!(g(160, 0, 0, None, false, 64), Ok((160, 80)));
    assert_eq!(g(40, 0, 0, None, false, 64), Ok((40, 16)));
    assert_eq!(g(256, 256, 0, None, false, 64), Ok((256, 128)));
    assert_eq!(g(192, 0, hw | ts, Some(0), false, 64), Ok((192, 0)));
    assert_eq!(g(192, 0, ts, None, false, 64), Ok((200, 192)));
    assert_eq!(g(192, 0, hw | ts, None, false, 64), Ok((256, 192)));
    assert_eq!(g(256, 0, ts, None, false, 64), Ok((264, 256)));
    assert_eq!(g(256, 0, hw | ts, None, false, 64), Ok((320, 256)));
    assert_eq!(g(176, 0, ts, None, false, 64), Ok((184, 176)));
    assert_eq!(g(160, 0, hw | ts, None, false, 64), Ok((192, 160)));
    assert_eq!(g(40, 0, hw, None, false, 64), Ok((64, 16)));
    assert_eq!(g(24, 0, hw, None, false, 64), Ok((32, 8)));
    assert_eq!(g(184, 0, hw, None, false, 128), Ok((256, 88)));
    assert_eq!(g(192, 64, 0, None, false, 64), Ok((192, 96)));
    assert_eq!(g(64, 0, 0, None, true, 64), Ok((72, 64)));
    assert_eq!(g(192, 0, 0, Some(0), false, 64), Err(Errno::EINVAL));
    assert_eq!(g(192, 0, ts, Some(192), false, 64), Err(Errno::EINVAL));
    assert_eq!(g(192, 0, ts, Some(4), false, 64), Err(Errno::EINVAL));
    let classes = [40, 64, 65, 96, 97, 128, 129, 160, 184, 192, 193, 512, 513, 8192];
    let want = [64, 64, 96, 96, 128, 128, 192, 192, 192, 192, 256, 512, 1024, 8192];
    for (size, class) in classes.into_iter().zip(want) {
        assert_eq!(kmalloc_class(size), Some(class));
    }
    assert_eq!(kmalloc_class(8193), None);
}

#[test]
fn a_cache_that_cannot_be_is_refused_and_leaves_nothing() {
    for allocator in [Allocator::Slub, Allocator::Sheaves] {
        let k = boot(2, 1, 8, SlabOptions { allocator, ..EXACT });
        let count = || {
            let mut n = 0;
            k.slab.for_each_cache(|_| n += 1);
            n
        };
        let before = count();
        for bad in [
            KmemCacheArgs { size: 4, ..vma_args(0) },
            KmemCacheArgs { align: 24, ..vma_args(0) },
            KmemCacheArgs { size: 64 << 20, ..vma_args(0) },
            KmemCacheArgs { freeptr_offset: Some(188), ..vma_args(SLAB_TYPESAFE_BY_RCU) },
            KmemCacheArgs { freeptr_offset: Some(0), ..vma_args(0) },
        ] {
            let got = __kmem_cache_create_args(&k.arena, k.slab, bad).map(|_| ());
            assert_eq!(got, Err(Errno::EINVAL), "{bad:?}");
            assert_eq!(count(), before);
        }
        assert!(__kmem_cache_create_args(&k.arena, k.slab, vma_args(0)).is_ok());
    }
}

/// Both ways of storing links must give the same counts.
fn exact(f: impl Fn(&Kernel, &Cpu<Native>, &KmemCache<Native>)) {
    for hardened in [false, true] {
        let k = boot(2, 1, 16, SlabOptions { hardened, ..EXACT });
        let s = k.cache(vma_args(0));
        assert_eq!((s.size(), s.objects_per_slab(), s.cpu_partial_slabs(), s.min_partial), (192, 21, 12, 5));
        f(&k, &Cpu::for_test(0), &s);
    }
}

#[test]
fn trace_a_alloc_210_free_fifo_flush_shrink() {
    exact(|k, cpu, s| {
        let p: Vec<_> = (0..210).map(|_| get(cpu, s)).collect();
        let alloc = [(I::AllocFastpath, 200), (I::AllocSlowpath, 10), (I::AllocSlab, 10), (I::DeactivateBypass, 9)];
        expect_stats("A", s, true, &alloc);
        for &p in &p {
            free(cpu, s, p);
        }
        let mut all = alloc.to_vec();
        all.extend([(I::FreeFastpath, 21), (I::FreeSlowpath, 189), (I::CpuPartialFree, 9)]);
        expect_stats("A then free", s, true, &all);
        assert_eq!((s.stat_sum(I::ListLock), s.nr_slabs(), s.live_objects()), (9, 10, 0));
        flush_cpu_slab(cpu, s);
        all.extend([(I::CpuslabFlush, 1), (I::DeactivateToHead, 1), (I::FreeAddPartial, 4)]);
        all.extend([(I::DeactivateEmpty, 5), (I::FreeSlab, 5)]);
        expect_stats("A then flush", s, true, &all);
        assert_eq!((s.nr_slabs(), s.node[0].nr_partial.load(Relaxed)), (5, 5));
        // SAFETY: the only CPU.
        assert!(!unsafe { kmem_cache_shrink(cpu, s) });
        expect_stats("A then shrink", s, true, &all);
        assert_eq!((s.nr_slabs(), s.slab_pages(), k.outstanding()), (0, 0, 0));
    });
}

#[test]
fn trace_b_alloc_420_free_fifo() {
    exact(|_, cpu, s| {
        let p: Vec<_> = (0..420).map(|_| get(cpu, s)).collect();
        for &p in &p {
            free(cpu, s, p);
        }
        expect_stats(
            "B",
            s,
            false,
            &[
                (I::AllocSlab, 20),
                (I::FreeSlowpath, 399),
                (I::CpuPartialFree, 19),
                (I::CpuPartialDrain, 1),
                (I::FreeAddPartial, 5),
                (I::DeactivateEmpty, 7),
                (I::FreeSlab, 7),
            ],
        );
        // 13 slabs: 5 on the node, 7 on the stack, 1 cpu slab.
        // SAFETY: this CPU's stack.
        let stack = unsafe { &*s.cpu_slab.of(0).partial.load(Relaxed) }.slabs();
        assert_eq!((s.nr_slabs(), s.node[0].nr_partial.load(Relaxed), stack), (13, 5, 7));
    });
}

#[test]
fn trace_c_alloc_and_free_one() {
    exact(|_, cpu, s| {
        for _ in 0..10_000 {
            free(cpu, s, get(cpu, s));
        }
        let want = [(I::AllocFastpath, 9999), (I::AllocSlowpath, 1), (I::FreeFastpath, 10_000), (I::AllocSlab, 1)];
        expect_stats("C", s, true, &want);
        assert_eq!(s.nr_slabs(), 1);
    });
}

#[test]
fn trace_d_bursts_of_1024() {
    exact(|k, cpu, s| {
        for _ in 0..100 {
            let p: Vec<_> = (0..1024).map(|_| get(cpu, s)).collect();
            for &p in &p {
                free(cpu, s, p);
            }
        }
        expect_stats(
            "D",
            s,
            false,
            &[
                (I::AllocSlab, 3118),
                (I::AllocSlowpath, 4801),
                (I::FreeFastpath, 1600),
                (I::FreeSlowpath, 100_800),
                (I::CpuPartialDrain, 300),
                (I::FreeSlab, 3100),
            ],
        );
        assert_eq!((s.slabs_high_water(), s.nr_slabs(), k.outstanding()), (49, 18, 18));
    });
}

#[test]
fn trace_e_one_cpu_allocates_another_frees() {
    exact(|_, cpu, s| {
        let set = for_test_set::<Native>(2);
        let one = &set.cpu(1);
        for _ in 0..100 {
            let p: Vec<_> = (0..210).map(|_| get(cpu, s)).collect();
            for &p in &p {
                free(one, s, p);
            }
        }
        expect_stats(
            "E",
            s,
            false,
            &[
                (I::AllocSlab, 531),
                (I::FreeSlowpath, 21_000),
                (I::FreeFastpath, 0),
                (I::FreeFrozen, 2100),
                (I::AllocRefill, 99),
                (I::CpuPartialDrain, 74),
                (I::FreeSlab, 518),
            ],
        );
        // SAFETY: CPU 1's stack.
        assert_eq!(unsafe { &*s.cpu_slab.of(1).partial.load(Relaxed) }.slabs(), 12);
    });
}

/// A row of slab.md 6.2.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub hot: u64,
    pub alloc: (u64, u64),
    pub free: (u64, u64),
    /// Objects; with sheaves only, like the next and the locks of barns.
    pub refill: u64,
    pub flush: u64,
    pub list_lock: u64,
    pub barn_lock: u64,
    pub alloc_slab: u64,
    pub hw: u64,
}

/// Workload R(L) of slab.md 6.2. `batch` 0: free at once.
pub(super) fn workload_r(cpu: &Cpu<Native>, s: &KmemCache<Native>, live: usize, batch: usize) -> Row {
    let mut slots: Vec<_> = (0..live).map(|_| get(cpu, s)).collect();
    let base: Vec<u64> = I::ALL.iter().map(|&i| s.stat_sum(i)).collect();
    let mut x: u64 = 88_172_645_463_325_252;
    let (mut hot, mut last) = (0, std::ptr::null_mut());
    let (mut filling, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..100_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let victim = (x >> 11) as usize % live;
        let p = get(cpu, s);
        hot += u64::from(p == last);
        let old = std::mem::replace(&mut slots[victim], p);
        if batch == 0 {
            free(cpu, s, old);
            last = old;
        } else {
            filling.push(old);
            if filling.len() == batch {
                for &p in &waiting {
                    free(cpu, s, p);
                    last = p;
                }
                waiting = std::mem::take(&mut filling);
            }
        }
    }
    let d = |i: I| s.stat_sum(i) - base[i as usize];
    let row = Row {
        hot,
        alloc: (d(I::AllocFastpath), d(I::AllocSlowpath)),
        free: (d(I::FreeFastpath), d(I::FreeSlowpath)),
        refill: d(I::SheafRefill),
        flush: d(I::SheafFlush),
        list_lock: d(I::ListLock),
        barn_lock: d(I::BarnLock),
        alloc_slab: d(I::AllocSlab),
        hw: s.slabs_high_water(),
    };
    for p in slots.into_iter().chain(filling).chain(waiting) {
        free(cpu, s, p);
    }
    row
}

fn expect_row(live: usize, batch: usize, want: Row) {
    exact(|k, cpu, s| {
        assert_eq!(workload_r(cpu, s, live, batch), want);
        // SAFETY: the only CPU.
        unsafe { assert!(!kmem_cache_shrink(cpu, s)) };
        assert_eq!((s.live_objects(), s.nr_slabs(), s.slab_pages(), k.outstanding()), (0, 0, 0, 0));
    });
}

#[test]
fn workload_r_freeing_at_once() {
    let (alloc, free) = ((6991, 93_009), (1996, 98_004));
    expect_row(1000, 0, Row { hot: 91_983, alloc, free, list_lock: 0, alloc_slab: 0, hw: 48, ..Row::default() });
}

/// One live object: the victim is always the other one. The whole row is the model's, too.
#[test]
fn workload_r_of_one_object() {
    for (batch, [hot, fast, slow, free_fast, free_slow, list_lock, alloc_slab, hw]) in ONE_OBJECT {
        let row =
            Row { hot, alloc: (fast, slow), free: (free_fast, free_slow), list_lock, alloc_slab, hw, ..Row::default() };
        expect_row(1, batch, row);
    }
}

#[test]
fn workload_r_in_batches_of_32() {
    let (alloc, free) = ((32_900, 67_100), (1915, 98_053));
    expect_row(1000, 32, Row { hot: 2888, alloc, free, list_lock: 14_085, alloc_slab: 3, hw: 51, ..Row::default() });
}

#[test]
fn workload_r_in_batches_of_256() {
    let (alloc, free) = ((72_931, 27_069), (1419, 98_165));
    expect_row(1000, 256, Row { hot: 388, alloc, free, list_lock: 5051, alloc_slab: 24, hw: 72, ..Row::default() });
}

#[test]
fn workload_r_in_batches_of_1024() {
    let (alloc, free) = ((86_403, 13_597), (691, 97_613));
    expect_row(1000, 1024, Row { hot: 94, alloc, free, list_lock: 2809, alloc_slab: 98, hw: 146, ..Row::default() });
}
