// SPDX-License-Identifier: GPL-2.0-only
//! What stores cost in nodes: the side tree of munmap, a run of mappings one above the other, and the stores behind each
//! mm operation on 1,000 isolated mappings (4 pages, then 12 of hole) at random places. Figures beside which "kernel"
//! stands were counted in lib/maple_tree.c built with a counting allocator, 6.12's here, 7.3's as published with them.
//!
//! Nodes are those asked for, the unused among them included, as an allocator without sheaves hands them out.

use super::oracle::{Kernel, MM_MT_FLAGS, Pair, boot_rules, entry};
use super::*;
use crate::arch::Native;
use crate::cpu::{Cpu, splitmix64};
use crate::slab::SlabOptions;
use std::ptr::null_mut;

/// Nodes asked for and dead.
fn nodes_and_dead(cpu: &Cpu<Native>) -> (u64, u64) {
    (cpu.counters.get(MapleEvent::NodeAlloc), cpu.counters.get(MapleEvent::NodeDead))
}

/// Entries at keys 0, 1, 2.., no RCU, no gaps: nodes and dead nodes for that many mappings of one munmap.
#[test]
fn side_tree_of_munmap() {
    // 6.12's own "dead" go back to the cursor, not to RCU: of it there are the nodes.
    let kernel_6_12 =
        [(1, 0, 0), (2, 1, 0), (15, 1, 0), (16, 4, 1), (20, 4, 1), (40, 19, 9), (100, 59, 29), (1000, 861, 338)];
    let kernel_7_3 =
        [(1, 0, 0), (2, 1, 0), (15, 1, 0), (16, 4, 1), (20, 4, 1), (40, 16, 12), (100, 52, 44), (1000, 652, 539)];
    for (rules, want) in [(MapleRules::V6_12, kernel_6_12), (MapleRules::V7_3, kernel_7_3)] {
        for (n, nodes, dead) in want {
            let (cpu, k) = (Cpu::<Native>::for_test(0), boot_rules(1, SlabOptions::default(), Some(rules)));
            let mut p = Pair::new(&cpu, &k, MT_FLAGS_LOCK_EXTERN);
            for i in 0..n {
                p.store(i, i, entry(i), false);
            }
            assert_eq!(nodes_and_dead(&cpu), (nodes, dead), "{n} entries, {rules:?}");
            p.check_all();
            p.validate();
            p.destroy();
        }
    }
}

/// munmap_storm: 4096 mappings of a page with a page between them, each above the last, between others that stay, then
/// all unmapped at once. Nodes asked for and dead, per mapping. A host of 6.18 hands out 2.01 (docs/faithfulness.md).
#[test]
fn a_storm_of_mappings() {
    // Mapping, side tree, all.
    let cases = [
        (MapleRules::V6_12, [(2.91, 1.42), (0.95, 0.34), (3.86, 1.91)]),
        (MapleRules::V6_18, [(1.63, 1.42), (0.44, 0.34), (2.07, 1.91)]),
        (MapleRules::V7_3, [(2.08, 1.76), (0.68, 0.55), (2.77, 2.48)]),
    ];
    for (rules, want) in cases {
        let (cpu, k) = (Cpu::<Native>::for_test(0), boot_rules(1, SlabOptions::default(), Some(rules)));
        let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
        let (page, base, n) = (0x1000, 1 << 32, 4096);
        for i in 0..20 {
            for side in [0, 1 << 46] {
                p.store(side + i * 64 * page, side + (i * 64 + 9) * page - 1, entry(9000 + i), true);
            }
        }
        let at = |p: &Pair<'_>| nodes_and_dead(p.cpu);
        let before = at(&p);
        for i in 0..n {
            p.store(base + 2 * i * page, base + (2 * i + 1) * page - 1, entry(i), true);
        }
        let mapped = at(&p);
        let mut side = Pair::new(&cpu, &k, MT_FLAGS_LOCK_EXTERN);
        for i in 0..n {
            side.store(i, i, entry(i), false);
        }
        let gathered = at(&p);
        p.store(base, base + 2 * n * page - 1, null_mut(), false);
        let done = at(&p);
        for ((a, b), want) in [(before, mapped), (mapped, gathered), (before, done)].into_iter().zip(want) {
            let got = ((b.0 - a.0) as f64 / n as f64, (b.1 - a.1) as f64 / n as f64);
            assert!((got.0 - want.0).abs() < 0.01 && (got.1 - want.1).abs() < 0.01, "{rules:?}: {got:?}, not {want:?}");
        }
        p.validate();
        side.destroy_some();
        p.destroy();
    }
}

/// What 875 turns of a row took: stores that were exact, slot, node, split, rebalance and spanning, nodes asked for,
/// `call_rcu` calls.
type Took = [u64; 8];

const PAGE: u64 = 0x1000;

/// A tree of 1,000 mappings of 4 pages every 16, or, where `adjacent`, of three of 4 pages beside one another.
fn thousand<'a>(cpu: &'a Cpu<Native>, k: &'a Kernel, adjacent: bool) -> Pair<'a> {
    let mut p = Pair::new(cpu, k, MM_MT_FLAGS);
    for i in shuffled(1000) {
        for part in 0..if adjacent { 3 } else { 1 } {
            let at = (i * 16 + part * 4) * PAGE;
            p.store(at, at + 4 * PAGE - 1, entry(i * 4 + part), true);
        }
    }
    p
}

fn shuffled(n: u64) -> Vec<u64> {
    let mut v: Vec<u64> = (0..n).collect();
    v.sort_by_key(|&i| splitmix64(i ^ 0x5eed));
    v
}

type Turn = fn(&mut Pair<'_>, u64);

/// `op` and at once `undo` at 875 of the places, in random order; twice, and the second time counts, so that leaves that
/// had to split have room. Returns what each took.
fn cost(rules: MapleRules, adjacent: bool, op: Turn, undo: Turn) -> [Took; 2] {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot_rules(1, SlabOptions::default(), Some(rules)));
    let mut p = thousand(&cpu, &k, adjacent);
    let at = || {
        [
            MapleEvent::StoreExact,
            MapleEvent::StoreSlot,
            MapleEvent::StoreNode,
            MapleEvent::Split,
            MapleEvent::Rebalance,
            MapleEvent::Spanning,
            MapleEvent::NodeAlloc,
            MapleEvent::CallRcu,
        ]
        .map(|e| cpu.counters.get(e))
    };
    let mut took = [[0; 8]; 2];
    for round in 0..2 {
        for i in shuffled(1000).into_iter().filter(|i| i % 8 != 7) {
            for (turn, sum) in [op, undo].into_iter().zip(&mut took) {
                let before = at();
                turn(&mut p, i * 16 * PAGE);
                let after = at();
                if round == 1 {
                    (0..8).for_each(|j| sum[j] += after[j] - before[j]);
                }
            }
        }
    }
    p.validate();
    p.destroy();
    took
}

fn put(p: &mut Pair<'_>, from: u64, pages: u64, e: u64) {
    p.store(from, from + pages * PAGE - 1, entry(e), true);
}
fn clear(p: &mut Pair<'_>, from: u64, pages: u64) {
    p.store(from, from + pages * PAGE - 1, null_mut(), false);
}

/// A row: what is done and undone, on which tree, and what each takes in 6.12 (counted in the kernel's own tree) and by
/// the rules of 7.3 (as they came out).
struct Row {
    name: &'static str,
    adjacent: bool,
    turns: [Turn; 2],
    v6_12: [Took; 2],
    v7_3: [Took; 2],
}

/// Counted of 7.3's own tree by others, for 1,000 mappings at random places, nodes asked for and dead: isolated 1.0 and
/// 1.0 (here 1.00 and 1.00); expanded down 0 and 0 (0, 0); expanded up 1.7 and 0.5 (1.61, 0.56), spanning in 0.16 of the
/// cases (0.17); a hole filled 2.2 and 1.3 (2.37, 1.47), spanning 0.12 (0.20); one unmapped 2.1 and 1.3 (2.40, 1.49);
/// split at the head 1.0 to 1.1 and 1.0 (1.02, 1.02), twice 2.0 and 2.0 (2.03, 2.02), merged again 1.0 and 1.0 (1.01,
/// 1.00); exact 0 and 0. What spans depends on where the leaves end, and so on what was stored before.
const ROWS: [Row; 10] = [
    Row {
        name: "isolated / unmapped",
        adjacent: false,
        turns: [|p, a| put(p, a + 8 * PAGE, 1, 9), |p, a| clear(p, a + 8 * PAGE, 1)],
        v6_12: [[0, 0, 875, 0, 0, 0, 875, 875], [0, 0, 875, 0, 0, 0, 875, 875]],
        v7_3: [[0, 0, 875, 0, 0, 0, 875, 875], [0, 0, 875, 0, 0, 0, 875, 875]],
    },
    Row {
        name: "expanded down / head unmapped",
        adjacent: false,
        turns: [
            |p, a| put(p, a + 15 * PAGE, 5, 9),
            |p, a| {
                put(p, a + 16 * PAGE, 4, 9);
                clear(p, a + 15 * PAGE, 1);
            },
        ],
        v6_12: [[0, 875, 0, 0, 0, 0, 0, 0], [0, 0, 1750, 0, 0, 0, 1750, 1750]],
        v7_3: [[0, 875, 0, 0, 0, 0, 0, 0], [0, 0, 1739, 10, 0, 1, 1783, 1772]],
    },
    Row {
        name: "expanded up / tail unmapped",
        adjacent: false,
        turns: [
            |p, a| put(p, a, 5, 9),
            |p, a| {
                put(p, a, 4, 9);
                clear(p, a + 4 * PAGE, 1);
            },
        ],
        v6_12: [[0, 710, 0, 0, 0, 165, 2145, 845], [0, 0, 1635, 4, 0, 111, 3114, 2213]],
        v7_3: [[0, 726, 0, 0, 0, 149, 1409, 491], [0, 0, 1631, 5, 0, 114, 2666, 2004]],
    },
    Row {
        name: "hole filled / middle unmapped",
        adjacent: false,
        turns: [
            |p, a| put(p, a, 20, 9),
            |p, a| {
                put(p, a, 4, 8);
                put(p, a + 16 * PAGE, 4, 7);
                clear(p, a + 4 * PAGE, 12);
            },
        ],
        v6_12: [[0, 0, 644, 0, 9, 222, 3593, 1821], [875, 0, 1746, 4, 0, 0, 1782, 1754]],
        v7_3: [[0, 0, 692, 0, 4, 179, 2077, 1285], [875, 0, 1749, 1, 0, 0, 1752, 1752]],
    },
    Row {
        name: "one unmapped / mapped again",
        adjacent: false,
        turns: [|p, a| clear(p, a, 4), |p, a| put(p, a, 4, 8)],
        v6_12: [[0, 0, 644, 0, 9, 222, 3593, 1821], [0, 0, 871, 4, 0, 0, 907, 879]],
        v7_3: [[0, 0, 680, 0, 15, 180, 2101, 1307], [0, 0, 865, 10, 0, 0, 897, 888]],
    },
    Row {
        name: "exactly over one",
        adjacent: false,
        turns: [|p, a| put(p, a, 4, 9), |p, a| put(p, a, 4, 8)],
        v6_12: [[875, 0, 0, 0, 0, 0, 0, 0], [875, 0, 0, 0, 0, 0, 0, 0]],
        v7_3: [[875, 0, 0, 0, 0, 0, 0, 0], [875, 0, 0, 0, 0, 0, 0, 0]],
    },
    Row {
        name: "split at the head / merged",
        adjacent: false,
        turns: [|p, a| put(p, a, 2, 9), |p, a| put(p, a, 4, 8)],
        v6_12: [[0, 0, 875, 0, 0, 0, 875, 875], [0, 0, 875, 0, 0, 0, 875, 875]],
        v7_3: [[0, 0, 867, 8, 0, 0, 891, 891], [0, 0, 874, 0, 0, 1, 884, 877]],
    },
    Row {
        name: "split twice / merged",
        adjacent: false,
        turns: [
            |p, a| {
                put(p, a, 1, 9);
                put(p, a + 3 * PAGE, 1, 8);
            },
            |p, a| put(p, a, 4, 8),
        ],
        v6_12: [[0, 0, 1750, 0, 0, 0, 1750, 1750], [0, 0, 875, 0, 0, 0, 875, 875]],
        v7_3: [[0, 0, 1741, 9, 0, 0, 1772, 1768], [0, 0, 874, 0, 0, 1, 884, 877]],
    },
    Row {
        name: "boundary moved",
        adjacent: true,
        turns: [|p, a| put(p, a, 6, 9), |p, a| put(p, a + 4 * PAGE, 4, 8)],
        v6_12: [[0, 790, 0, 0, 0, 85, 1105, 434], [0, 811, 0, 0, 0, 64, 832, 323]],
        v7_3: [[0, 850, 0, 0, 0, 25, 181, 79], [0, 855, 0, 0, 0, 20, 143, 62]],
    },
    Row {
        name: "whole between two",
        adjacent: true,
        turns: [|p, a| clear(p, a + 4 * PAGE, 4), |p, a| put(p, a + 4 * PAGE, 4, 8)],
        v6_12: [[874, 0, 0, 0, 0, 1, 13, 5], [875, 0, 0, 0, 0, 0, 0, 0]],
        v7_3: [[874, 0, 0, 0, 0, 1, 7, 3], [875, 0, 0, 0, 0, 0, 0, 0]],
    },
];

#[test]
fn what_operations_cost() {
    for r in ROWS {
        for (rules, want) in [(MapleRules::V6_12, r.v6_12), (MapleRules::V7_3, r.v7_3)] {
            assert_eq!(cost(rules, r.adjacent, r.turns[0], r.turns[1]), want, "{}, {rules:?}", r.name);
        }
    }
}
