// SPDX-License-Identifier: GPL-2.0-only
//! The page allocator: every page once, nodes, marks; and exact agreement with a slow model of the buddy, the per-CPU
//! lists and the order of nodes ([`oracle`]).

mod oracle;

use super::pcp::{ALLOC_FACTOR, PCPF_PREV_FREE_HIGH_ORDER};
use super::*;
use crate::cpu::testing::for_test_set;

fn boot(arena: &Arena, nr_cpus: u32) -> (Cpu<Native>, KRef<PageAllocator<Native>>) {
    let cpu = Cpu::for_test(0);
    let pa = page_alloc_init(arena, nr_cpus, &|c| c % arena.nr_nodes());
    memblock_free_all(&cpu, &pa);
    (cpu, pa)
}

#[test]
fn every_page_can_be_had_once_and_comes_back_whole() {
    let arena = Arena::new(1, 4 << 20, None, None).unwrap();
    let (cpu, pa) = boot(&arena, 1);
    let blocks = |z: &Zone<Native>| -> Vec<usize> {
        z.b.0
            .free_area
            .iter()
            .map(|l| {
                let (mut n, mut p) = (0, l.first.get());
                while !p.is_null() {
                    n += 1;
                    // SAFETY: a record.
                    p = unsafe { (*p).next.load(Relaxed) };
                }
                n
            })
            .collect()
    };
    let before = blocks(&pa.zones[0]);
    let mut seen = std::collections::BTreeSet::new();
    let mut got = Vec::new();
    for order in (0..=MAX_PAGE_ORDER).rev().cycle() {
        let p = alloc_pages(&cpu, &pa, order);
        if p.is_null() {
            if order == 0 {
                break;
            }
            continue;
        }
        assert_eq!(p as usize % (PAGE_SIZE << order), 0);
        for i in 0..1 << order {
            assert!(seen.insert(p as usize + i * PAGE_SIZE));
        }
        got.push((p, order));
    }
    assert_eq!(seen.len() as u64, pa.managed());
    assert_eq!(pa.outstanding(), pa.managed());
    for (p, order) in got {
        // SAFETY: allocated above with that order.
        unsafe { free_pages(&cpu, &pa, p, order) };
    }
    assert_eq!(pa.outstanding(), 0);
    drain_all_pages(&cpu, &pa);
    assert_eq!(blocks(&pa.zones[0]), before);
}

#[test]
fn pages_return_to_their_node_and_neighbours_help_out() {
    let arena = Arena::new(3, 2 << 20, None, None).unwrap();
    let (cpu, pa) = boot(&arena, 2);
    build_zonelists(&pa, &|a, b| {
        if a == b { 10 } else { [[0, 30, 20], [30, 0, 40], [20, 40, 0]][a as usize][b as usize] }
    });
    assert_eq!(pa.zonelist(0).collect::<Vec<_>>(), [0, 2, 1]);
    assert_eq!(pa.zonelist(1).collect::<Vec<_>>(), [1, 0, 2]);
    let mut got = Vec::new();
    let mut nodes = Vec::new();
    loop {
        let p = alloc_page(&cpu, &pa);
        if p.is_null() {
            break;
        }
        // SAFETY: a page.
        let nid = page_to_nid(unsafe { &*virt_to_page::<Native>(p) });
        let (s, e) = arena.node_range(nid);
        assert!((s..e).contains(&(p as usize)));
        if nodes.last() != Some(&nid) {
            nodes.push(nid);
        }
        got.push(p);
    }
    assert_eq!(nodes, [0, 2, 1]);
    assert_eq!(alloc_pages_node(&cpu, &pa, 1, 0, true), null_mut());
    let one = for_test_set::<Native>(2);
    let one = one.cpu(1);
    for (i, p) in got.into_iter().enumerate() {
        // SAFETY: allocated above.
        unsafe { free_page(if i % 2 == 0 { &cpu } else { &one }, &pa, p) };
    }
    for n in 0..3 {
        assert_eq!(pa.node_outstanding(n), 0);
    }
}

#[test]
fn a_second_kernel_on_the_same_arena_starts_clean_and_first_use_populates() {
    let arena = Arena::new(1, 2 << 20, None, None).unwrap();
    let (cpu, pa) = boot(&arena, 1);
    let n = pa.managed();
    while !alloc_page(&cpu, &pa).is_null() {}
    arena.reset();
    let pa = page_alloc_init::<Native>(&arena, 1, &|_| 0);
    assert!(!alloc_page(&cpu, &pa).is_null());
    assert_eq!((pa.managed(), pa.outstanding()), (n, 1));
}

#[test]
#[should_panic(expected = "bad page state")]
fn freeing_twice_is_caught() {
    let arena = Arena::new(1, 2 << 20, None, None).unwrap();
    let (cpu, pa) = boot(&arena, 1);
    let p = alloc_page(&cpu, &pa);
    // SAFETY: deliberately wrong the second time; the check comes before any damage.
    unsafe {
        free_page(&cpu, &pa, p);
        free_page(&cpu, &pa, p);
    }
}

#[test]
fn per_cpu_lists_keep_to_their_mark() {
    let arena = Arena::new(1, 8 << 20, None, None).unwrap();
    let (cpu, pa) = boot(&arena, 1);
    let got: Vec<_> = (0..1000).map(|_| alloc_page(&cpu, &pa)).collect();
    // Ascending, as the zone gave them.
    assert!(got.windows(2).take(60).all(|w| w[1] as usize == w[0] as usize + PAGE_SIZE));
    for &p in &got {
        // SAFETY: allocated above.
        unsafe { free_page(&cpu, &pa, p) };
        let pcp = pa.zones[0].pcp.of(0);
        assert!(pcp.count.get() < pcp.high_max.get());
    }
    assert_eq!(pa.outstanding(), 0);
    // Last in, first out.
    assert_eq!(alloc_page(&cpu, &pa), got[999]);
}

#[test]
fn four_cpus_never_share_a_page() {
    let arena = Arena::new(1, 8 << 20, None, None).unwrap();
    let (_, pa) = boot(&arena, 4);
    let set = for_test_set::<Native>(4);
    std::thread::scope(|s| {
        for id in 0..4u32 {
            let (pa, set) = (pa, set.clone());
            s.spawn(move || {
                let cpu = set.cpu(id);
                let mut mine: Vec<(*mut u8, u32)> = Vec::new();
                for _ in 0..20_000 {
                    let r = cpu.random() ^ u64::from(id) << 32;
                    if mine.len() < 80 && r % 2 == 0 {
                        let order = (r >> 8) as u32 % 5;
                        let p = alloc_pages(&cpu, &pa, order);
                        if !p.is_null() {
                            for i in 0..1 << order {
                                // SAFETY: ours until freed.
                                unsafe { p.add(i * PAGE_SIZE).cast::<u32>().write_volatile(id + 1) };
                            }
                            mine.push((p, order));
                        }
                    } else if !mine.is_empty() {
                        let (p, order) = mine.swap_remove((r >> 16) as usize % mine.len());
                        for i in 0..1 << order {
                            // SAFETY: ours until freed.
                            assert_eq!(unsafe { p.add(i * PAGE_SIZE).cast::<u32>().read_volatile() }, id + 1);
                        }
                        // SAFETY: allocated above with that order.
                        unsafe { free_pages(&cpu, &pa, p, order) };
                    }
                }
                for (p, order) in mine {
                    // SAFETY: as above.
                    unsafe { free_pages(&cpu, &pa, p, order) };
                }
            });
        }
    });
    assert_eq!(pa.outstanding(), 0);
}
