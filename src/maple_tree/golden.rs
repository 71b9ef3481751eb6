// SPDX-License-Identifier: GPL-2.0-only
//! The same random stores given to this tree and to lib/maple_tree.c of 6.12, built outside this repository with an
//! allocator that counts: after every store the kind of the store, nodes taken, nodes given back, `call_rcu` calls and
//! the whole tree (every bound, entry and gap, node for node) were the same. Kept of that are the sums, so that a change
//! of shape does not pass unseen.
//!
//! The same for a cursor: what it finds, its range and its status after each of a long row of walks, finds, nexts, prevs,
//! pauses and resets, with limits of all kinds, over trees of every height.
//!
//! To take the comparison again, `FAULTLINE_MAPLE_OPS=DIR cargo test maple_tree::golden` writes per case what was stored
//! and what came of it, a line each: `F flags`, then `P|G first last entry = kind nodes back calls tree`, hexadecimal up
//! to the entry; P is mas_preallocate() and mas_store_prealloc(), G is mas_store_gfp(), kinds are those of 6.12's
//! store_type, `tree` is [`fingerprint`]; `s first last` sets a cursor, `w` walks, `f|n|m|p|q limit` are find, next,
//! next_range, prev and prev_range, `z` pauses, `r` resets, each `= entry first last status` with 6.12's numbers.

use super::node::{Enode, MapleType, mte_node_type, mte_safe_root, mte_to_node, xa_is_node};
use super::oracle::{MM_MT_FLAGS, boot_rules, entry};
use super::*;
use crate::arch::{Native, Relaxed};
use crate::cpu::{Cpu, splitmix64};
use crate::rcu::rcu_barrier;
use std::fmt::Write;
use std::ptr::null_mut;

/// A hash over all nodes, bounds, entries and gaps of a tree.
pub(super) fn fingerprint(mt: &MapleTree<Native>) -> u64 {
    fn add(h: &mut u64, x: u64) {
        *h = (*h ^ x).wrapping_mul(0x100_0000_01b3);
        *h ^= *h >> 29;
    }
    fn walk(h: &mut u64, enode: Enode, min: u64, max: u64, depth: u64) {
        let (node, kind) = (mte_to_node::<Native>(enode), mte_node_type(enode));
        let end = node.data_end(kind, max);
        add(h, depth * 100 + end as u64);
        for i in 0..=end {
            let last = node.safe_pivot(i, end, max);
            add(h, last);
            let word = node.slot(kind, i).load(Relaxed);
            if kind.is_leaf() {
                add(h, word.addr() as u64);
            } else {
                walk(h, word, node.safe_min(i, min), last, depth + 1);
                if kind == MapleType::Arange64 {
                    add(h, node.gap(i).load(Relaxed));
                }
            }
        }
    }
    let mut h = 0xcbf2_9ce4_8422_2325;
    let root = mt.ma_root.load(Relaxed);
    if xa_is_node(root) {
        walk(&mut h, mte_safe_root(root), 0, u64::MAX, 0);
    } else {
        add(&mut h, root.addr() as u64);
    }
    h
}

/// How stores are drawn.
#[derive(Clone, Copy)]
struct Case {
    flags: u32,
    seed: u64,
    stores: u64,
    /// Keys are multiples of 4096 below this many, and the ends of the key space.
    keys: u64,
    /// Keys a store covers, most of the time less than.
    span: u64,
}

/// What came of a case: nodes taken, given back (most wait for RCU), `call_rcu` calls, stores of each kind in the order
/// of [`KINDS`], and all trees on the way.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    nodes: u64,
    back: u64,
    calls: u64,
    kinds: [u64; 8],
    trees: u64,
}

/// Counters of the kinds, and their numbers in 6.12's `enum store_type`; its two kinds of new root are one here.
const KINDS: [(MapleEvent, u64); 8] = [
    (MapleEvent::NewRoot, 1),
    (MapleEvent::StoreExact, 3),
    (MapleEvent::Spanning, 4),
    (MapleEvent::Split, 5),
    (MapleEvent::Rebalance, 6),
    (MapleEvent::StoreAppend, 7),
    (MapleEvent::StoreNode, 8),
    (MapleEvent::StoreSlot, 9),
];

fn run(rules: MapleRules, case: Case, name: &str) -> Sum {
    let cpu = Cpu::<Native>::for_test(0);
    let k = boot_rules(1, Default::default(), Some(rules));
    let mt = MapleTree::new(case.flags);
    let mut log = std::env::var_os("FAULTLINE_MAPLE_OPS").map(|dir| (dir, format!("F {:x}\n", case.flags)));
    let mut state = case.seed;
    let mut rng = || {
        state = splitmix64(state);
        state
    };
    let mut sum = Sum { nodes: 0, back: 0, calls: 0, kinds: [0; 8], trees: 0 };
    let page = 0x1000;
    for n in 0..case.stores {
        let key = |rng: &mut dyn FnMut() -> u64| match rng() % 128 {
            0 => 0,
            1 => u64::MAX,
            _ => (rng() % case.keys) * page,
        };
        let a = key(&mut rng);
        let pages = match rng() % 64 {
            0 => rng() % case.keys,
            1..6 => rng() % (case.span * 20),
            _ => rng() % case.span,
        };
        let b = match rng() % 64 {
            0 => u64::MAX,
            1 => a,
            _ => a.saturating_add(pages * page + page - 1),
        };
        let e = if rng() % 5 < 2 { null_mut() } else { entry(n) };
        let prealloc = rng() & 1 == 0;
        let get = || [MapleEvent::NodeAlloc, MapleEvent::NodeFree, MapleEvent::CallRcu].map(|e| cpu.counters.get(e));
        let kinds = KINDS.map(|k| cpu.counters.get(k.0));
        let before = get();
        let mut mas = MaState::new(&mt, k.state, a, b);
        if prealloc {
            mas_preallocate(&cpu, &mut mas, e).expect("memory");
            mas_store_prealloc(&cpu, &mut mas, e);
        } else {
            mas_store_gfp(&cpu, &mut mas, e).expect("memory");
        }
        let after = get();
        let d = [0, 1, 2].map(|i| after[i] - before[i]);
        let kind = (0..8).find(|&i| cpu.counters.get(KINDS[i].0) > kinds[i]).expect("a store is of a kind");
        let tree = fingerprint(&mt);
        sum.nodes += d[0];
        sum.back += d[1];
        sum.calls += d[2];
        sum.kinds[kind] += 1;
        sum.trees = splitmix64(sum.trees ^ tree);
        if let Some((_, text)) = &mut log {
            let op = if prealloc { 'P' } else { 'G' };
            let _ = writeln!(
                text,
                "{op} {a:x} {b:x} {:x} = {} {} {} {} {tree:016x}",
                e.addr(),
                KINDS[kind].1,
                d[0],
                d[1],
                d[2]
            );
        }
        if n % 64 == 0 {
            mt_validate(&mt).expect("a tree");
            rcu_barrier(&cpu, &k.state.rcu);
        }
    }
    mt_destroy(&cpu, k.state, &mt);
    rcu_barrier(&cpu, &k.state.rcu);
    assert_eq!(cpu.counters.get(MapleEvent::NodeAlloc), cpu.counters.get(MapleEvent::NodeFree));
    if let Some((dir, text)) = log {
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}-{rules:?}")), text)
            .expect("FAULTLINE_MAPLE_OPS");
    }
    sum
}

const CASES: [(&str, Case); 5] = [
    ("mm-large", Case { flags: MM_MT_FLAGS, seed: 1, stores: 20_000, keys: 1 << 20, span: 3 }),
    ("mm-dense", Case { flags: MM_MT_FLAGS, seed: 2, stores: 20_000, keys: 1 << 10, span: 3 }),
    ("mm-small", Case { flags: MM_MT_FLAGS, seed: 3, stores: 5_000, keys: 24, span: 3 }),
    ("gaps-without-rcu", Case { flags: MT_FLAGS_ALLOC_RANGE, seed: 4, stores: 20_000, keys: 1 << 12, span: 3 }),
    ("neither", Case { flags: MT_FLAGS_LOCK_EXTERN, seed: 5, stores: 20_000, keys: 1 << 14, span: 3 }),
];

fn check(rules: MapleRules, want: [Sum; 5]) {
    for ((name, case), want) in CASES.into_iter().zip(want) {
        assert_eq!(run(rules, case, name), want, "{name}, {rules:?}");
    }
}

const fn sum(nodes: u64, back: u64, calls: u64, kinds: [u64; 8], trees: u64) -> Sum {
    Sum { nodes, back, calls, kinds, trees }
}

#[test]
fn trees_are_those_of_6_12() {
    check(
        MapleRules::V6_12,
        [
            sum(56_403, 25_375, 30_096, [3, 3536, 424, 6405, 37, 0, 9569, 26], 12_964_000_020_550_551_075),
            sum(45_747, 17_774, 27_653, [4, 2975, 949, 4818, 87, 0, 10_165, 1002], 17_436_590_361_623_800_765),
            sum(4_539, 790, 3_744, [18, 942, 123, 145, 66, 0, 3027, 679], 12_746_061_090_095_048_663),
            sum(43_883, 43_866, 0, [1, 3086, 636, 5906, 65, 1301, 8394, 611], 12_391_947_235_689_050_276),
            sum(46_626, 46_599, 0, [1, 2841, 473, 6736, 62, 1278, 8325, 284], 2_876_566_747_063_841_989),
        ],
    );
}

/// The trees are 6.12's; fewer nodes are asked for. (Kinds, nodes used and trees were held against a tree of that age in
/// the same way.)
#[test]
fn trees_by_the_rules_of_6_18() {
    check(
        MapleRules::V6_18,
        [
            sum(35_351, 4_485, 29_934, [3, 3536, 424, 6405, 37, 0, 9569, 26], 12_964_000_020_550_551_075),
            sum(34_099, 6_460, 27_319, [4, 2975, 949, 4818, 87, 0, 10_165, 1002], 17_436_590_361_623_800_765),
            sum(4_671, 922, 3_744, [18, 942, 123, 145, 66, 0, 3027, 679], 12_746_061_090_095_048_663),
            sum(25_676, 25_659, 0, [1, 3086, 636, 5906, 65, 1301, 8394, 611], 12_391_947_235_689_050_276),
            sum(26_051, 26_024, 0, [1, 2841, 473, 6736, 62, 1278, 8325, 284], 2_876_566_747_063_841_989),
        ],
    );
}

/// As they came out; of 7.3 itself there are the counts of `cost.rs`.
#[test]
fn trees_by_the_rules_of_7_3() {
    check(
        MapleRules::V7_3,
        [
            sum(35_933, 4_465, 30_545, [3, 3536, 421, 6699, 37, 0, 9278, 26], 14_677_492_405_077_317_657),
            sum(34_476, 6_269, 27_918, [4, 2974, 931, 5113, 85, 0, 9900, 993], 585_461_265_356_957_814),
            sum(4_617, 884, 3_728, [18, 943, 113, 143, 69, 0, 3034, 680], 342_232_291_659_510_998),
            sum(26_679, 26_663, 0, [1, 3087, 634, 6182, 59, 1213, 8218, 606], 13_341_709_605_242_875_197),
            sum(26_558, 26_532, 0, [1, 2841, 480, 6889, 54, 1219, 8243, 273], 2_087_501_925_734_512_188),
        ],
    );
}

/// A step of a cursor, to a limit.
type Step = fn(&Cpu<Native>, &mut MaState<'_, Native>, u64) -> *mut ();

/// Random steps of a cursor over a tree of `entries` ranges; returns a hash of all that it showed.
fn cursor(entries: u64, seed: u64, name: &str) -> u64 {
    let cpu = Cpu::<Native>::for_test(0);
    let k = boot_rules(1, Default::default(), Some(MapleRules::V6_12));
    let mt = MapleTree::new(MM_MT_FLAGS);
    let mut log = std::env::var_os("FAULTLINE_MAPLE_OPS").map(|dir| (dir, format!("F {:x}\n", MM_MT_FLAGS)));
    let mut state = splitmix64(seed);
    let mut rng = || {
        state = splitmix64(state);
        state
    };
    // Some ranges touch, some do not; the first covers key 0 alone, and one the last key in every other tree.
    for i in 0..entries {
        let (a, b) = match i {
            0 => (0, 0),
            1 if seed.is_multiple_of(2) => (u64::MAX - 3, u64::MAX),
            _ => (i * 16 + (i % 3), i * 16 + 15),
        };
        let mut mas = MaState::new(&mt, k.state, a, b);
        mas_store_gfp(&cpu, &mut mas, entry(i)).expect("memory");
        if let Some((_, text)) = &mut log {
            let _ = writeln!(text, "G {a:x} {b:x} {:x}", entry(i).addr());
        }
    }
    let top = entries * 16 + 40;
    let limit = |rng: &mut dyn FnMut() -> u64| match rng() % 8 {
        0 => 0,
        1 | 2 => u64::MAX,
        3 => u64::MAX - 1,
        4 => 1,
        _ => rng() % top,
    };
    let mut h = 0;
    let mut mas = MaState::new(&mt, k.state, 0, 0);
    let mut fresh = true;
    for _ in 0..3000 {
        // A cursor without a node that stopped at a limit is stepped no further: the kernel would follow a null.
        let stuck = mas.node.is_null() && matches!(mas.status, MaStatus::Overflow | MaStatus::Underflow);
        let (mut found, mut arg) = (null_mut(), String::new());
        let op = if fresh || stuck { 0 } else { 1 + rng() % 24 };
        let at = |rng: &mut dyn FnMut() -> u64, mas: &MaState<'_, Native>| {
            let l = match rng() % 3 {
                0 => mas.last,
                1 => mas.index,
                _ => limit(rng),
            };
            (l, format!(" {l:x}"))
        };
        fresh = false;
        let op = match op {
            0 | 1 => {
                let a = match rng() % 8 {
                    0 => 0,
                    1 => u64::MAX,
                    _ => rng() % top,
                };
                mas_set_range(&mut mas, a, a);
                arg = format!(" {a:x} {a:x}");
                's'
            }
            2 | 3 => {
                found = mas_walk(&cpu, &mut mas);
                'w'
            }
            4 => {
                mas_pause(&mut mas);
                'z'
            }
            5 => {
                mas_reset(&mut mas);
                'r'
            }
            n => {
                let (l, text) = at(&mut rng, &mas);
                arg = text;
                let (letter, f): (char, Step) = match n {
                    6..10 => ('f', mas_find),
                    10..15 => ('n', mas_next),
                    15..18 => ('m', mas_next_range),
                    18..22 => ('p', mas_prev),
                    _ => ('q', mas_prev_range),
                };
                found = f(&cpu, &mut mas, l);
                letter
            }
        };
        let status = match mas.status {
            MaStatus::Active => 0,
            MaStatus::Start => 1,
            MaStatus::Root => 2,
            MaStatus::None => 3,
            MaStatus::Pause => 4,
            MaStatus::Overflow => 5,
            MaStatus::Underflow => 6,
        };
        for x in [found.addr() as u64, mas.index, mas.last, status] {
            h = splitmix64(h ^ x);
        }
        if let Some((_, text)) = &mut log {
            let _ = writeln!(text, "{op}{arg} = {:x} {:x} {:x} {status}", found.addr(), mas.index, mas.last);
        }
    }
    mt_destroy(&cpu, k.state, &mt);
    rcu_barrier(&cpu, &k.state.rcu);
    if let Some((dir, text)) = log {
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}-{entries}-{seed}")), text)
            .expect("FAULTLINE_MAPLE_OPS");
    }
    h
}

#[test]
fn cursors_are_those_of_6_12() {
    let mut h = 0;
    for entries in [0, 1, 2, 3, 9, 40, 300] {
        for seed in 0..4 {
            h = splitmix64(h ^ cursor(entries, seed, "cursor"));
        }
    }
    assert_eq!(h, 4_147_386_071_502_180_414);
}
