// SPDX-License-Identifier: GPL-2.0-only
//! Single situations: cursor statuses, trees without nodes, the ends of the key space, large trees, what each kind of
//! store costs in nodes, readers beside a writer. The kinds of cases are those of lib/test_maple_tree.c and
//! tools/testing/radix-tree/maple.c, 6.12, written afresh.

use super::oracle::{MM_MT_FLAGS, Pair, boot, boot_with, entry};
use super::prealloc::{mas_alloc_nodes, mas_free, mas_pop_node};
use super::*;
use crate::arch::Native;
use crate::cpu::{Cpu, Errno, splitmix64};
use crate::rcu::{rcu_barrier, rcu_read_lock, rcu_read_unlock};
use crate::slab::{Allocator, SlabOptions, StatItem};
use std::ptr::null_mut;

const MAX: u64 = u64::MAX;

/// A break that moves up and down among the mappings of a process: after the leaf has split once there is room.
#[test]
fn an_entry_that_comes_and_goes_does_not_split_a_leaf_each_time() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    for others in 20..40 {
        let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
        for i in 0..others {
            p.store(1000 + i * 100, 1009 + i * 100, entry(i), true);
        }
        let n = || [MapleEvent::Split, MapleEvent::Rebalance, MapleEvent::Spanning].map(|e| cpu.counters.get(e));
        let before: u64 = n().iter().sum();
        for _ in 0..10 {
            p.store(10, 19, entry(99), true);
            p.store(10, 19, null_mut(), true);
        }
        assert!(n().iter().sum::<u64>() - before <= 2, "{others} others: {:?}", n());
    }
}

#[test]
fn next_and_prev_stop_at_limits_and_come_back() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
    for i in 0..100 {
        let e = entry(i);
        p.store(i * 100 + 10, i * 100 + 19, e, true);
    }
    let mut mas = p.mas(0, 0);
    // Past the last entry: overflow; a prev then returns the entry the cursor stands on.
    let mut n = 0;
    while !mas_find(&cpu, &mut mas, MAX).is_null() {
        n += 1;
    }
    assert_eq!((n, mas.status), (100, MaStatus::Active));
    assert_eq!(mas_prev(&cpu, &mut mas, 0), entry(99));
    mas_set(&mut mas, 9915);
    assert_eq!(mas_walk(&cpu, &mut mas), entry(99));
    assert!(mas_next(&cpu, &mut mas, MAX).is_null() && mas.status == MaStatus::Overflow);
    assert_eq!(mas_prev(&cpu, &mut mas, 0), entry(99));
    // A limit that stops, moved: goes on where it stood.
    mas_set(&mut mas, 515);
    assert_eq!(mas_walk(&cpu, &mut mas), entry(5));
    assert!(mas_next(&cpu, &mut mas, 609).is_null() && mas.status == MaStatus::Overflow);
    assert_eq!(mas_next(&cpu, &mut mas, 610), entry(6));
    assert_eq!((mas.index, mas.last), (610, 619));
    // Before the first.
    mas_set(&mut mas, 10);
    assert_eq!(mas_walk(&cpu, &mut mas), entry(0));
    assert!(mas_prev(&cpu, &mut mas, 0).is_null() && mas.status == MaStatus::Underflow);
    assert_eq!(mas_next(&cpu, &mut mas, MAX), entry(0));
    // Range forms stop on holes too.
    mas_set(&mut mas, 15);
    mas_walk(&cpu, &mut mas);
    assert!(mas_next_range(&cpu, &mut mas, MAX).is_null() && (mas.index, mas.last) == (20, 109));
    assert_eq!(mas_next_range(&cpu, &mut mas, MAX), entry(1));
    assert!(mas_prev_range(&cpu, &mut mas, 0).is_null() && (mas.index, mas.last) == (20, 109));
    // After a pause: from `last + 1` on.
    mas_set(&mut mas, 1000);
    assert_eq!(mas_find(&cpu, &mut mas, MAX), entry(10));
    mas_pause(&mut mas);
    assert_eq!(mas_find(&cpu, &mut mas, MAX), entry(11));
    mas_pause(&mut mas);
    assert_eq!(mas_prev(&cpu, &mut mas, 0), entry(10));
    let mut at = 20;
    assert_eq!(mt_find(&cpu, k.state, &p.mt, &mut at, MAX), entry(1));
    assert_eq!(at, 120);
    assert!(mt_find(&cpu, k.state, &p.mt, &mut at, 209).is_null());
    assert_eq!(mtree_load(&cpu, k.state, &p.mt, 215), entry(2));
    p.destroy();
}

#[test]
fn trees_without_nodes() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
    let mut mas = MaState::new(&p.mt, k.state, 7, 7);
    assert!(mas_walk(&cpu, &mut mas).is_null() && (mas.index, mas.last) == (0, MAX) && mas.status == MaStatus::None);
    mas_set(&mut mas, 7);
    assert!(mas_find(&cpu, &mut mas, MAX).is_null());
    assert!(mas_next(&cpu, &mut mas, MAX).is_null() && mas_prev(&cpu, &mut mas, 0).is_null());
    assert_eq!(mas_empty_area_rev(&mut mas, 0x1000, 0x8fff, 0x1000), Ok(()));
    assert_eq!((mas.index, mas.last), (0x8000, 0x8fff));
    assert_eq!(mas_empty_area(&mut mas, 0, MAX, MAX), Ok(()));
    assert_eq!(mas_empty_area(&mut mas, 5, 4, 1), Err(Errno::EINVAL));
    assert_eq!(mas_empty_area(&mut mas, 5, 9, 6), Err(Errno::EINVAL));
    // One entry over key 0 alone stands in the root word and takes no node.
    p.store(0, 0, entry(1), true);
    assert_eq!((p.mt.height(), p.outstanding()), (0, 0));
    let mut mas = MaState::new(&p.mt, k.state, 0, 0);
    assert_eq!(mas_walk(&cpu, &mut mas), entry(1));
    assert_eq!(mas.status, MaStatus::Root);
    assert!(mas_next(&cpu, &mut mas, MAX).is_null());
    mas_set(&mut mas, 50);
    assert_eq!(mas_prev(&cpu, &mut mas, 0), entry(1));
    mas_set(&mut mas, 0);
    assert_eq!(mas_find(&cpu, &mut mas, MAX), entry(1));
    assert!(mas_find(&cpu, &mut mas, MAX).is_null());
    assert_eq!(mas_empty_area(&mut mas, 0, MAX, 1), Ok(()));
    assert_eq!(mas.index, 1);
    p.store(5, 9, null_mut(), true);
    p.store(5, 9, entry(2), true);
    p.check_all();
    assert_eq!((p.validate().entries, p.mt.height()), (2, 1));
    p.store(0, MAX, null_mut(), false);
    assert_eq!(p.mt.height(), 0);
    assert!(p.mt.is_empty());
    p.destroy();
}

#[test]
fn both_ends_of_the_key_space() {
    for flags in [MM_MT_FLAGS, MT_FLAGS_ALLOC_RANGE, 0] {
        let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
        let mut p = Pair::new(&cpu, &k, flags);
        p.store(0, MAX, entry(1), true);
        p.check_walk(MAX);
        p.store(MAX, MAX, entry(2), true);
        p.store(0, 0, entry(3), true);
        p.check_all();
        p.store(1, MAX - 1, null_mut(), true);
        p.check_gap(0, MAX, MAX - 1);
        for i in 0..40 {
            p.store(MAX - 2 * i - 1, MAX - 2 * i - 1, entry(10 + i), true);
            p.store(2 * i + 1, 2 * i + 1, entry(90 + i), true);
            p.validate();
        }
        p.check_steps(MAX, 0, MAX, || 1);
        p.check_steps(0, 0, MAX, || 0);
        for i in (0..40).rev() {
            p.store(MAX - 2 * i - 1, MAX - 2 * i, null_mut(), true);
            p.store(0, 2 * i + 1, null_mut(), true);
            p.validate();
            p.check_all();
        }
        p.store(7, MAX, entry(4), true);
        p.store(0, 6, entry(5), true);
        p.check_all();
        p.store(0, MAX, entry(6), true);
        assert_eq!(p.validate().nodes, 1);
        p.destroy();
    }
}

#[test]
fn unused_nodes_go_back() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
    for i in 0..300 {
        p.store(i * 10, i * 10 + 9, entry(i), true);
    }
    let h = p.mt.height();
    let live = p.outstanding();
    let mut mas = p.mas(15, 1999);
    mas_preallocate(&cpu, &mut mas, entry(1)).unwrap();
    assert_eq!(mas.supplied(), 3 * h + 1, "spanning");
    mas_destroy(&cpu, &mut mas);
    // A request kept and then used for something narrower.
    mas_set_range(&mut mas, 15, 1999);
    mas_preallocate(&cpu, &mut mas, null_mut()).unwrap();
    mas_set_range(&mut mas, 20, 29);
    mas_store_prealloc(&cpu, &mut mas, entry(500));
    assert_eq!((mas.supplied(), p.outstanding()), (0, live));
    mas_set_range(&mut mas, 22, 25);
    mas_preallocate(&cpu, &mut mas, entry(1)).unwrap();
    assert!([1, 2 * h + 1].contains(&mas.supplied()), "node or split");
    mas_destroy(&cpu, &mut mas);
    assert_eq!(p.outstanding(), live);
    p.destroy();
}

#[test]
fn nodes_come_in_sheaves_and_go_behind_one_grace_period() {
    let cpu = Cpu::<Native>::for_test(0);
    let k = boot_with(1, SlabOptions { allocator: Allocator::Sheaves, ..SlabOptions::default() });
    let cache = k.state.node_cache;
    let stat = |i| cache.stat_sum(i);
    let count = |e| cpu.counters.get(e);
    let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
    for i in 0..300 {
        p.store(i * 10, i * 10 + 9, entry(i), true);
    }
    let h = p.mt.height();
    assert!(h > 1 && cache.sheaf_capacity() == 32);
    // A sheaf more than the store can need, taken and given back whole; none of its nodes is the tree's meanwhile.
    let prefilled = || stat(StatItem::SheafPrefillFast) + stat(StatItem::SheafPrefillSlow);
    let (before, live, nodes) = (prefilled(), cache.live_objects(), count(MapleEvent::NodeAlloc));
    let mut mas = p.mas(15, 1999);
    mas_preallocate(&cpu, &mut mas, entry(1)).unwrap();
    assert!(mas.supplied() > 3 * h && mas.supplied() <= 32);
    // A later, larger wish tops the same sheaf up.
    let had = mas.supplied();
    mas_alloc_nodes(&cpu, &mut mas, 32).unwrap();
    assert!(mas.supplied() == 32 && had <= 32);
    // One larger still gets a sheaf of its own size.
    mas_alloc_nodes(&cpu, &mut mas, 40).unwrap();
    assert_eq!((mas.supplied(), stat(StatItem::SheafPrefillOversize)), (40, 1));
    assert_eq!((prefilled(), cache.live_objects(), count(MapleEvent::NodeAlloc)), (before + 1, live, nodes));
    let node = mas_pop_node(&cpu, &mut mas);
    // SAFETY: a node of 256 bytes that is ours.
    assert!((0..32).all(|i| unsafe { node.as_ptr().cast::<u64>().add(i).read() } == 0));
    assert_eq!((cache.live_objects(), count(MapleEvent::NodeAlloc)), (live + 1, nodes + 1));
    mas_free(&cpu, &mas, node);
    mas_destroy(&cpu, &mut mas);
    assert_eq!((mas.supplied(), cache.live_objects()), (0, live));
    let dead = count(MapleEvent::NodeDead);
    assert_eq!(dead, stat(StatItem::FreeRcuSheaf));
    // One callback for 32 dead nodes.
    assert_eq!((count(MapleEvent::CallRcu), k.state.rcu.pending()), (0, dead / 32));
    assert!(dead >= 32);
    p.check_all();
    p.destroy();
}

/// Isolated ranges in random order: shapes as measured of the kernel (maple-tree.md 1), then all deleted from the
/// right, in order, and at random.
#[test]
fn large_trees_grow_and_shrink() {
    for (n, height, nodes) in [(7, 1, 1..2), (100, 3, 15..22), (1000, 4, 160..195), (20_000, 5, 3200..3800)] {
        for way in 0..3 {
            if n == 20_000 && way > 0 {
                continue;
            }
            let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
            let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
            let order = shuffled(n, way);
            for &i in &order {
                p.store(i * 0x3000 + 0x1000, i * 0x3000 + 0x1fff, entry(i), true);
            }
            let shape = p.validate();
            assert_eq!(shape.height, height);
            assert!(nodes.contains(&shape.nodes), "{n}: {} nodes", shape.nodes);
            p.check_all();
            rcu_barrier(&cpu, &k.state.rcu);
            assert_eq!(p.outstanding(), shape.nodes as u64);
            let order: Vec<u64> = match way {
                0 => shuffled(n, 9),
                1 => (0..n).rev().collect(),
                _ => (0..n).collect(),
            };
            for (j, &i) in order.iter().enumerate() {
                p.store(i * 0x3000 + 0x1000, i * 0x3000 + 0x1fff, null_mut(), j % 2 == 0);
                if n <= 1000 && j % 8 == 0 || j % 2048 == 0 {
                    p.validate();
                }
            }
            assert!(p.mt.is_empty() && p.mt.height() == 0);
            p.destroy();
        }
    }
}

fn shuffled(n: u64, seed: u64) -> Vec<u64> {
    let mut v: Vec<u64> = (0..n).collect();
    v.sort_by_key(|&i| splitmix64(i ^ splitmix64(seed)));
    v
}

#[test]
fn ranges_over_many_leaves() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    for flags in [MM_MT_FLAGS, MT_FLAGS_ALLOC_RANGE, 0] {
        for width in [3, 16, 17, 40, 150, 700, 1500] {
            let mut p = Pair::new(&cpu, &k, flags);
            for i in 0..1600 {
                p.store(i * 16, i * 16 + 15, entry(i), true);
            }
            let base = width % 90;
            p.store(base * 16 + 3, (base + width) * 16 + 7, entry(9999), true);
            p.validate();
            p.check_all();
            p.store(base * 16, (base + width) * 16 + 15, null_mut(), true);
            p.validate();
            p.check_all();
            p.destroy();
        }
    }
}

#[test]
fn a_copy_has_as_many_nodes_and_lives_alone() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    for n in [0, 1, 5, 30, 500, 3000] {
        let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
        for i in 0..n {
            p.store(i * 0x2000, i * 0x2000 + 0xfff, entry(i), true);
        }
        let shape = p.validate();
        let before = cpu.counters.get(MapleEvent::NodeAlloc);
        let mut q = Pair::new(&cpu, &k, MM_MT_FLAGS);
        __mt_dup(&cpu, k.state, &p.mt, &q.mt).unwrap();
        assert_eq!(cpu.counters.get(MapleEvent::NodeAlloc) - before, shape.nodes as u64);
        mt_clear_in_rcu(&q.mt);
        q.map = p.map.clone();
        assert_eq!(q.validate(), shape);
        q.check_all();
        if n > 0 {
            assert_eq!(__mt_dup(&cpu, k.state, &p.mt, &q.mt), Err(Errno::EINVAL));
        }
        // Fork: each entry replaced takes no node.
        let before = cpu.counters.get(MapleEvent::NodeAlloc);
        for i in 0..n {
            q.store(i * 0x2000, i * 0x2000 + 0xfff, entry(i + 10_000), true);
        }
        assert!(cpu.counters.get(MapleEvent::NodeAlloc) == before || n == 1);
        mt_set_in_rcu(&q.mt);
        q.validate();
        q.check_all();
        p.check_all();
        mt_clear_in_rcu(&q.mt);
        let calls = cpu.counters.get(MapleEvent::CallRcu);
        mt_destroy(&cpu, k.state, &q.mt);
        assert_eq!(cpu.counters.get(MapleEvent::CallRcu), calls, "outside RCU mode nodes are freed at once");
        p.check_all();
        p.destroy();
    }
}

/// A reader holds its position while a writer replaces the nodes under it, then goes on (one thread, no luck needed).
#[test]
fn a_reader_survives_every_kind_of_store_under_it() {
    let (cpu, k) = (Cpu::<Native>::for_test(0), boot(1));
    let changes: [(&str, u64, u64, bool); 9] = [
        ("exact", 1000, 1009, false),
        ("split", 1002, 1004, false),
        ("node", 1000, 1019, false),
        ("clear", 1000, 1009, true),
        ("spanning, ahead", 1005, 1600, false),
        ("spanning, behind", 300, 995, true),
        ("spanning, all around", 200, 2500, true),
        ("everything", 0, MAX, true),
        ("everything, one entry", 0, MAX, false),
    ];
    for forward in [true, false] {
        for (what, a, b, null) in changes {
            let mut p = Pair::new(&cpu, &k, MM_MT_FLAGS);
            for i in 0..400 {
                p.store(i * 10, i * 10 + 9, entry(i), true);
            }
            rcu_read_lock(&cpu);
            // The tree outlives the pair's borrow: one thread plays both parts.
            let mt: *const MapleTree<Native> = &*p.mt;
            // SAFETY: `p` is destroyed at the end of this turn.
            let mut mas = MaState::new(unsafe { &*mt }, k.state, 1005, 1005);
            assert_eq!(mas_walk(&cpu, &mut mas), entry(100));
            p.store(a, b, if null { null_mut() } else { entry(7777) }, true);
            let (mut index, mut last) = (1000, 1009);
            loop {
                let e = if forward { mas_next(&cpu, &mut mas, MAX) } else { mas_prev(&cpu, &mut mas, 0) };
                // It goes on from the slot that now holds the last (first) key it has seen.
                let want = if forward {
                    p.model_slot(last).1.checked_add(1).and_then(|from| p.map.range(from..).next())
                } else {
                    p.map.range(..p.model_slot(index).0).next_back()
                };
                let Some((&k, &(l, w))) = want else {
                    assert!(e.is_null(), "{what}: {e:?}");
                    break;
                };
                assert_eq!(e, w, "{what}, forward {forward}, from {index}..={last}");
                if p.mt.height() > 0 {
                    assert!(mas.last == l || !forward, "{what}");
                    assert!(mas.index == k || forward, "{what}");
                }
                (index, last) = (mas.index, mas.last);
                if forward && last == MAX || !forward && index == 0 {
                    break;
                }
            }
            rcu_read_unlock(&cpu);
            p.validate();
            p.destroy();
        }
    }
}
