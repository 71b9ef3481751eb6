// SPDX-License-Identifier: GPL-2.0-only
//! What each operation costs: VMAs allocated and freed, which object survives, stores into the tree and its nodes
//! (vma-ops.md 14, maple-tree.md 12).

use super::*;
use crate::maple_tree::{MapleEvent, mt_validate};
use crate::mm::file::{FileSpec, file_open, fput};
use crate::mm::mm_types::{VM_DONTCOPY, VM_DONTDUMP, VM_NORESERVE};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use crate::mm::mremap::{MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE};
use crate::mm::{do_user_addr_fault, dup_mm, mmput, sys_mremap, vm_mmap, vm_munmap};

on_every_variant! {
    fn vmas_of_each_mapping_and_unmapping = mapping;
    fn vmas_of_each_change_of_flags = changing;
    fn vmas_of_shared_mappings = shared;
    fn vmas_of_a_driver_that_changes_flags = driver;
    fn the_changed_part_keeps_its_object = identity;
    fn nodes_of_each_operation = nodes;
}

fn mapping<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let map = |p: u64, n: u64, flags: u64| {
            alloc_free(cpu, || {
                assert_eq!(vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags), Ok(BASE + p * P));
            })
        };
        let unmap = |p: u64, n: u64| alloc_free(cpu, || vm_munmap(cpu, k, mm, BASE + p * P, n * P).unwrap());
        assert_eq!(map(0, 10, RW), (1, 0), "no merge");
        assert_eq!(map(10, 2, RW), (0, 0), "merges left");
        assert_eq!(map(20, 10, RW), (1, 0));
        assert_eq!(map(18, 2, RW), (0, 0), "merges right");
        assert_eq!(map(12, 6, RW), (0, 1), "fills the hole, the right one goes");
        assert_eq!(layout(cpu, k, mm), [(0, 30)]);
        assert_eq!(map(0, 30, VM_READ), (1, 1), "exactly over one, no merge");
        assert_eq!(map(10, 5, RW), (3, 1), "inside one, other flags");
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 15), (15, 30)]);
        assert_eq!(map(0, 30, RW), (1, 3), "over three whole ones");
        let lower = vma_at(cpu, k, mm, 0).as_ptr();
        assert_eq!(map(10, 5, RW), (2, 2), "inside one, mergeable");
        assert_eq!(layout(cpu, k, mm), [(0, 30)]);
        assert_ne!(vma_at(cpu, k, mm, 0).as_ptr(), lower, "the lower rest, a new object, survives");
        assert_eq!(unmap(0, 2), (1, 1), "head");
        assert_eq!(unmap(28, 2), (1, 1), "tail");
        assert_eq!(unmap(10, 5), (2, 1), "middle");
        assert_eq!(layout(cpu, k, mm), [(2, 10), (15, 28)]);
        assert_eq!(map(11, 1, VM_READ), (1, 0));
        assert_eq!(map(13, 1, VM_READ), (1, 0));
        assert_eq!(unmap(5, 15), (2, 4), "from inside one to inside another over two whole ones");
        assert_eq!(layout(cpu, k, mm), [(2, 5), (20, 28)]);
        assert_eq!(unmap(0, 30), (0, 2), "two whole ones");
        assert_eq!(unmap(0, 30), (0, 0), "nothing there");
        assert_eq!(layout(cpu, k, mm), []);
    });
}

fn changing<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let fresh = || {
            vm_munmap(cpu, k, mm, BASE, 64 * P).unwrap();
            vm_mmap(cpu, k, mm, Some(BASE), 30 * P, RW).unwrap();
        };
        let set = |p: u64, n: u64| alloc_free(cpu, || modify(cpu, k, mm, (p, n), |f| f | VM_DONTDUMP).unwrap());
        let clear = |p: u64, n: u64| alloc_free(cpu, || modify(cpu, k, mm, (p, n), |f| f & !VM_DONTDUMP).unwrap());
        fresh();
        assert_eq!(set(0, 30), (0, 0), "whole, no merge");
        assert_eq!(clear(0, 30), (0, 0), "whole, no merge");
        assert_eq!(set(0, 10), (1, 0), "head");
        assert_eq!(set(20, 10), (1, 0), "tail");
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 20), (20, 30)]);
        assert_eq!(set(10, 3), (0, 0), "a border moves up");
        assert_eq!(set(17, 3), (0, 0), "a border moves down");
        assert_eq!(layout(cpu, k, mm), [(0, 13), (13, 17), (17, 30)]);
        assert_eq!(set(14, 2), (2, 0), "middle");
        assert_eq!(clear(14, 2), (0, 2), "whole, merges both");
        assert_eq!(set(13, 4), (0, 2), "whole, merges both");
        assert_eq!(layout(cpu, k, mm), [(0, 30)]);
        assert_eq!(clear(10, 20), (1, 0));
        assert_eq!(clear(0, 10), (0, 1), "whole, merges right");
        assert_eq!(set(0, 10), (1, 0));
        assert_eq!(set(10, 20), (0, 1), "whole, merges left");
        check_tree(cpu, k, mm);
        fresh();
        for p in [3, 9, 15, 21] {
            assert_eq!(set(p, 3), (2, 0));
        }
        assert_eq!(layout(cpu, k, mm).len(), 9);
        // Four that have the flags and three between them that get them: each merge joins both sides.
        assert_eq!(set(3, 21), (0, 6), "seven become one");
        assert_eq!(layout(cpu, k, mm), [(0, 3), (3, 24), (24, 30)]);
        // Seven with flags of their own, the neighbours differ.
        for p in 0..7 {
            let flags = if p % 2 == 0 { VM_READ } else { RW | VM_NORESERVE };
            let r = vm_mmap(cpu, k, mm, Some(BASE + (32 + p) * P), P, flags);
            r.unwrap();
        }
        let all = alloc_free(cpu, || modify(cpu, k, mm, (32, 7), |_| 0x70).unwrap());
        assert_eq!(all, (0, 6), "n become one: one merge a step");
        assert_eq!(modify(cpu, k, mm, (28, 8), |f| f | VM_DONTDUMP), Err(Errno::ENOMEM), "a hole");
        assert_eq!(layout(cpu, k, mm), [(0, 3), (3, 24), (24, 28), (28, 30), (32, 39)], "what came before it is done");
    });
}

fn shared<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let map = |p: u64, n: u64| {
            let flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
            alloc_free(cpu, || assert!(map_args(cpu, k, mm, (BASE + p * P, n * P), 3, flags, None).is_ok()))
        };
        assert_eq!(map(0, 10), (1, 0));
        assert_eq!(map(10, 10), (1, 0), "an object of its own: never merges");
        let split = alloc_free(cpu, || modify(cpu, k, mm, (2, 4), |f| f | VM_DONTDUMP).unwrap());
        assert_eq!(split, (2, 0));
        let join = alloc_free(cpu, || modify(cpu, k, mm, (0, 20), |f| f & !VM_DONTDUMP).unwrap());
        assert_eq!(join, (0, 2), "pieces of one object do");
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 20)]);
        let f = file_open(cpu, k, &FileSpec::memfd(64 * P)).unwrap();
        let file = |p: u64, n: u64, flags: u32, page: u64| {
            let at = (BASE + p * P, n * P);
            alloc_free(cpu, || assert!(map_args(cpu, k, mm, at, 3, flags | MAP_FIXED, Some((f, page))).is_ok()))
        };
        assert_eq!(file(30, 2, MAP_SHARED, 0), (1, 0));
        assert_eq!(file(32, 2, MAP_SHARED, 2), (0, 0), "goes on in the file");
        assert_eq!(file(34, 2, MAP_SHARED, 5), (1, 0), "does not");
        assert_eq!(file(36, 2, MAP_PRIVATE, 7), (1, 0), "private beside shared");
        assert_eq!(file(38, 2, MAP_PRIVATE, 9), (0, 0));
        assert_eq!(file(30, 4, MAP_SHARED, 1), (0, 1), "over one, goes on in the next");
        let g = file_open(cpu, k, &FileSpec::memfd(64 * P)).unwrap();
        let r = map_args(cpu, k, mm, (BASE + 40 * P, P), 3, MAP_PRIVATE | MAP_FIXED, Some((g, 11)));
        assert!(r.is_ok());
        assert_eq!(layout(cpu, k, mm)[2..], [(30, 36), (36, 40), (40, 41)], "another file");
        assert_eq!(f.f_count.load(Relaxed), 3, "a reference a VMA");
        fput(cpu, k, f);
        fput(cpu, k, g);
    });
}

/// A driver whose mappings get a flag that nobody asked for (as secret memory does): what fits the neighbours after it and
/// not before is merged all the same, once it has been allocated (vma-ops.md 14, "6.12 only").
fn driver<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let retry = k.rules.retry_merge;
        assert_eq!(retry, k.rules == MmRules::V6_12);
        let f = file_open(cpu, k, &FileSpec { mmap_sets: VM_DONTDUMP, ..FileSpec::memfd(64 * P) }).unwrap();
        let map = |p: u64, n: u64| {
            let at = (BASE + p * P, n * P);
            let flags = MAP_SHARED | MAP_FIXED;
            alloc_free(cpu, || assert_eq!(map_args(cpu, k, mm, at, 3, flags, Some((f, p))), Ok(BASE + p * P)))
        };
        let (merged, both) = if retry { ((1, 1), (1, 2)) } else { ((1, 0), (1, 0)) };
        assert_eq!(map(10, 2), (1, 0), "nothing beside it");
        assert_eq!(map(8, 2), (1, 0), "nothing before it: no second try");
        assert_eq!(map(12, 2), merged, "fits what is before it");
        assert_eq!(map(16, 2), (1, 0));
        assert_eq!(map(14, 2), both, "fits both sides");
        let want: &[(u64, u64)] =
            if retry { &[(8, 10), (10, 18)] } else { &[(8, 10), (10, 12), (12, 14), (14, 16), (16, 18)] };
        assert_eq!(layout(cpu, k, mm), want);
        assert!((8..18).all(|p| vma_at(cpu, k, mm, p).vm_flags().load(Relaxed) & VM_DONTDUMP != 0));
        assert_eq!(f.f_count.load(Relaxed), 1 + want.len() as i64, "a reference a VMA");
        // Over the middle of what is there: the splits, then the new one, which joins both rests.
        assert_eq!(
            map(11, 4),
            (3, 3),
            "over what is there: the new one and both rests go into one, or three come and three go"
        );
        assert_eq!(layout(cpu, k, mm).len(), if retry { 2 } else { 5 });
        check_tree(cpu, k, mm);
        vm_munmap(cpu, k, mm, BASE, 64 * P).unwrap();
        assert_eq!((f.f_count.load(Relaxed), f.f_mapping().i_mmap_writable.load(Relaxed)), (1, 0));
        fput(cpu, k, f);
    });
}

fn identity<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        let at = |p: u64| vma_at(cpu, k, mm, p).as_ptr();
        let set = |p: u64, n: u64| modify(cpu, k, mm, (p, n), |f| f | VM_DONTDUMP).unwrap();
        for (p, n) in [(0, 10), (20, 10), (10, 10)] {
            vm_mmap(cpu, k, mm, Some(BASE), 30 * P, RW).unwrap();
            let original = at(0);
            set(p, n);
            assert_eq!(at(p), original, "pages {p} to {}", p + n);
            vm_munmap(cpu, k, mm, BASE, 30 * P).unwrap();
        }
        // Merges: the left one stays; without a left one the right one.
        vm_mmap(cpu, k, mm, Some(BASE), 30 * P, RW).unwrap();
        set(0, 10);
        set(20, 10);
        let (left, right) = (at(0), at(20));
        set(10, 4);
        assert_eq!((at(10), at(20)), (left, right));
        set(16, 4);
        assert_eq!((at(10), at(16)), (left, right));
        set(14, 2);
        assert_eq!((at(14), at(29)), (left, left));
        modify(cpu, k, mm, (0, 10), |f| f & !VM_DONTDUMP).unwrap();
        assert_eq!(at(0), left, "the changed part keeps it");
        let right = at(10);
        set(0, 10);
        assert_eq!(at(0), right);
    });
}

/// Stores by kind, and nodes taken and dead, that `f` makes. A slot added at the end of a leaf is a node store here, as
/// in the table.
fn tree_work(cpu: &Cpu<Native>, f: impl FnOnce()) -> [f64; 7] {
    use MapleEvent::*;
    let n = || {
        let c = |e| cpu.counters.get(e) as f64;
        let restructure = c(Split) + c(Rebalance);
        [
            c(StoreExact),
            c(StoreSlot),
            c(StoreNode) + c(StoreAppend),
            restructure,
            c(Spanning),
            c(NodeAlloc),
            c(NodeDead),
        ]
    };
    let before = n();
    f();
    let after = n();
    std::array::from_fn(|i| after[i] - before[i])
}

/// An address space whose VMAs stand alone, and what rows do to it: pages from [`BASE`] on.
struct Lone<'a, K: Kconfig<A = Native>> {
    cpu: &'a Cpu<Native>,
    k: &'a Kernel<K>,
    mm: MmPtr<K>,
}

/// VMAs that stand alone.
const VMAS: u64 = 1000;
/// Where a stack stands, far from all others.
const STACK: u64 = 2 * VMAS * 64;

impl<K: Kconfig<A = Native>> Lone<'_, K> {
    fn map(&self, p: u64, n: u64, flags: u64) {
        assert!(vm_mmap(self.cpu, self.k, self.mm, Some(BASE + p * P), n * P, flags).is_ok());
    }
    fn unmap(&self, p: u64, n: u64) {
        vm_munmap(self.cpu, self.k, self.mm, BASE + p * P, n * P).unwrap();
    }
    fn set(&self, p: u64, n: u64) {
        modify(self.cpu, self.k, self.mm, (p, n), |f| f | VM_DONTDUMP).unwrap();
    }
    fn clear(&self, p: u64, n: u64) {
        modify(self.cpu, self.k, self.mm, (p, n), |f| f & !VM_DONTDUMP).unwrap();
    }
    /// Makes reserved pages readable and writable.
    fn open(&self, p: u64, n: u64) {
        modify(self.cpu, self.k, self.mm, (p, n), |f| f | RW).unwrap();
    }
    fn mremap(&self, from: u64, old: u64, new: u64, flags: u32, to: u64) {
        let to = if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) == 0 { 0 } else { BASE + to * P };
        sys_mremap(self.cpu, self.k, self.mm, BASE + from * P, old * P, new * P, flags, to).unwrap();
    }
    /// `n` VMAs of two pages each, one beside the other, every second with other flags.
    fn row_of(&self, at: u64, n: u64) {
        for i in 0..n {
            self.map(at + 2 * i, 2, if i % 2 == 0 { RW | VM_NORESERVE } else { RW });
        }
    }
    /// `n` VMAs of a page each, one beside the other, every second with other flags.
    fn pages(&self, at: u64, n: u64) {
        for i in 0..n {
            self.map(at + i, 1, if i % 2 == 0 { RW | VM_NORESERVE } else { RW });
        }
    }
    fn stack(&self, at: u64) {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN;
        let range = (BASE + at * P, 4 * P);
        map_args(self.cpu, self.k, self.mm, range, PROT_READ | PROT_WRITE, flags, None).unwrap();
    }
    fn write(&self, p: u64) {
        do_user_addr_fault(self.cpu, self.k, self.mm, BASE + p * P, true).unwrap();
    }
}

/// What is done at one place.
type Op<K> = fn(&Lone<'_, K>, u64);
/// Stores that were exact, slot, node, split or rebalance, spanning; nodes taken, nodes dead. NAN: not held to.
type Work = [f64; 7];
const N: f64 = f64::NAN;

/// Name; before, measured, after, on the VMA at pages at + 16 to at + 28; its work by the rules of 6.12 and of 7.3.
struct Row<K: Kconfig<A = Native>>(&'static str, Op<K>, Op<K>, Op<K>, [Work; 2]);

/// By both rules.
fn same(w: Work) -> [Work; 2] {
    [w; 2]
}

/// By 6.12's rules and by 7.3's, as it came out: 6.12 rebuilds up to the root where a store spans leaves, and more are dead
/// (maple_tree/cost.rs has both).
fn came(v6_12: Work, v7_3: Work) -> [Work; 2] {
    [v6_12, v7_3]
}

/// The table of maple-tree.md 12 is 7.3's, which asks for fewer nodes in advance where a store goes beyond a leaf (1.3 nodes
/// dead there where 1.4 stands here: which stores span depends on what was stored before). Its field of VMAs is another one
/// for the rows behind "between two adjacent ones". Its figures are near (7.3; nodes that were asked for and given back again
/// included: tail 3.7 and 2.4 dead, a middle part moved 3.7 and 3.2, shrunk 2.4 and 2.1), but for rows of adjacent VMAs,
/// whose leaves are fuller there (20 unmapped: 14 and 4.7; 40: 26 and 18, held to by 6.12's rules only).
#[rustfmt::skip]
fn rows<K: Kconfig<A = Native>>() -> [Row<K>; 33] {
    [
        Row("mmap, alone",
            |t, at| t.unmap(at + 16, 12), |t, at| t.map(at + 16, 12, RW), |_, _| {},
            same([0., 0., 1., 0., 0., 1., 1.])),
        Row("mmap below, extends downwards",
            |_, _| {}, |t, at| t.map(at + 14, 2, RW), |t, at| t.unmap(at + 14, 2),
            same([0., 1., 0., 0., 0., 0., 0.])),
        Row("mmap above, extends upwards",
            |_, _| {}, |t, at| t.map(at + 28, 2, RW), |t, at| t.unmap(at + 28, 2),
            came([0., 0.84, 0., N, 0.16, N, 1.0], [0., 0.84, 0., N, 0.16, N, 0.5])),
        Row("mmap fills a hole",
            |_, _| {}, |t, at| t.map(at + 28, 52, RW), |t, at| t.unmap(at + 28, 52),
            came([0., 0., 0.88, N, 0.12, N, 1.7], [0., 0., 0.88, N, 0.12, N, 1.4])),
        Row("munmap, whole",
            |_, _| {}, |t, at| t.unmap(at + 16, 12), |t, at| t.map(at + 16, 12, RW),
            came([0., 0., 0.88, N, 0.12, N, 1.8], [0., 0., 0.88, N, 0.12, N, 1.4])),
        Row("munmap, middle",
            |_, _| {}, |t, at| t.unmap(at + 20, 4), |t, at| t.map(at + 20, 4, RW),
            same([1., 0., 2., 0., 0., 2., 2.])),
        Row("MAP_FIXED over one, no merge",
            |_, _| {}, |t, at| t.map(at + 16, 12, VM_READ), |t, at| t.map(at + 16, 12, RW),
            same([1., 0., 0., 0., 0., 0., 0.])),
        Row("MAP_FIXED in the middle, other flags",
            |_, _| {}, |t, at| t.map(at + 20, 4, RW | VM_NORESERVE), |t, at| t.map(at + 20, 4, RW),
            same([1., 0., 2., 0., 0., 2., 2.])),
        Row("MAP_FIXED in the middle, same flags",
            |_, _| {}, |t, at| t.map(at + 20, 4, RW), |_, _| {},
            same([0., 0., 3., 0., 0., 3., 3.])),
        Row("flags, middle",
            |_, _| {}, |t, at| t.set(at + 20, 4), |t, at| t.clear(at + 20, 4),
            same([0., 0., 2., 0., 0., 2., 2.])),
        Row("flags, middle, undone",
            |t, at| t.set(at + 20, 4), |t, at| t.clear(at + 20, 4), |_, _| {},
            same([0., 0., 1., 0., 0., 1., 1.])),
        Row("flags, head",
            |_, _| {}, |t, at| t.set(at + 16, 4), |t, at| t.clear(at + 16, 4),
            same([0., 0., 1., 0., 0., 1., 1.])),
        Row("flags, a border that moves",
            |t, at| t.set(at + 16, 4), |t, at| t.set(at + 20, 4), |t, at| t.clear(at + 16, 8),
            same([0., 1., 0., 0., 0., 0., 0.])),
        Row("flags, whole",
            |_, _| {}, |t, at| t.set(at + 16, 12), |t, at| t.clear(at + 16, 12),
            same([0., 0., 0., 0., 0., 0., 0.])),
        Row("munmap, between two adjacent ones",
            |t, at| t.row_of(at + 28, 2), |t, at| t.unmap(at + 28, 2), |t, at| t.unmap(at + 28, 4),
            same([1., 0., 0., 0., 0., N, N])),
        Row("munmap, head",
            |_, _| {}, |t, at| t.unmap(at + 16, 4), |t, at| t.map(at + 16, 4, RW),
            came([0., 0., 2., 0., 0., 2., 2.], [0., 0., 1.96, 0.03, 0.01, 2.07, 2.07])),
        Row("munmap, tail",
            |_, _| {}, |t, at| t.unmap(at + 24, 4), |t, at| t.map(at + 24, 4, RW),
            came([0., 0., 1.83, 0.01, 0.17, 4.05, 2.70], [0., 0., 1.84, 0.03, 0.13, 2.36, 2.36])),
        Row("munmap, over 2 adjacent ones",
            |t, at| t.row_of(at + 32, 2), |t, at| t.unmap(at + 32, 4), |_, _| {},
            came([0., 0., 0.84, 0.06, 0.11, 3.62, 2.65], [0., 0., 0.93, 0.00, 0.07, 2.14, 2.14])),
        Row("munmap, over 5 adjacent ones",
            |t, at| t.row_of(at + 32, 5), |t, at| t.unmap(at + 32, 10), |_, _| {},
            came([0., 0., 3.70, 0.13, 0.17, 4.86, 3.21], [0., 0., 3.79, 0.02, 0.19, 2.41, 2.43])),
        Row("munmap, over 20 adjacent ones",
            |t, at| t.row_of(at + 32, 20), |t, at| t.unmap(at + 32, 40), |_, _| {},
            came([0., 0., 17., 1., 1., 17., 9.73], [0., 0., 17., 1., 1., 6.36, 7.62])),
        Row("MAP_FIXED over 5 adjacent ones",
            |t, at| t.row_of(at + 32, 5), |t, at| t.map(at + 32, 10, VM_READ), |t, at| t.unmap(at + 32, 10),
            came([0., 0., 3.73, 0.09, 0.19, 4.76, 3.09], [0., 0., 3.80, 0.03, 0.17, 2.36, 2.39])),
        Row("MAP_FIXED over 20 adjacent ones",
            |t, at| t.row_of(at + 32, 20), |t, at| t.map(at + 32, 40, VM_READ), |t, at| t.unmap(at + 32, 40),
            came([0., 0., 17., 1., 1., 17., 9.62], [0., 0., 17., 1., 1., 6.43, 7.51])),
        Row("mremap, moved whole",
            |_, _| {}, |t, at| t.mremap(at + 16, 12, 12, MREMAP_MAYMOVE | MREMAP_FIXED, at + 40), |t, at| t.mremap(at + 40, 12, 12, MREMAP_MAYMOVE | MREMAP_FIXED, at + 16),
            came([0., 0., 1.72, 0.09, 0.19, 5.04, 2.97], [0., 0., 1.59, 0.22, 0.18, 2.84, 2.85])),
        Row("mremap, a middle part moved",
            |_, _| {}, |t, at| t.mremap(at + 20, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, at + 40), |t, at| { t.unmap(at + 40, 4); t.map(at + 20, 4, RW); },
            came([1., 0., 2.59, 0.41, 0., 6.25, 3.72], [1., 0., 2.64, 0.36, 0., 3.73, 3.72])),
        Row("mremap, DONTUNMAP",
            |_, _| {}, |t, at| { t.mremap(at + 16, 12, 12, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, at + 40); }, |t, at| t.unmap(at + 40, 12),
            came([0., 0., 0.95, 0.05, 0., 1.43, 1.11], [0., 0., 0.94, 0.06, 0., 1.13, 1.12])),
        Row("mremap, grown in place",
            |_, _| {}, |t, at| t.mremap(at + 16, 12, 16, 0, 0), |t, at| t.unmap(at + 28, 4),
            came([0., 0.82, 0., 0., 0.18, 2.30, 0.92], [0., 0.79, 0., 0., 0.21, 0.70, 0.71])),
        Row("mremap, shrunk",
            |_, _| {}, |t, at| t.mremap(at + 16, 12, 8, 0, 0), |t, at| t.map(at + 24, 4, RW),
            came([0., 0., 1.85, 0., 0.15, 3.76, 2.61], [0., 0., 1.82, 0.01, 0.17, 2.42, 2.42])),
        Row("a stack grows by a page",
            |t, _| t.stack(STACK), |t, _| t.write(STACK - 1), |t, _| t.unmap(STACK - 1, 5),
            same([0., 1., 0., 0., 0., 0., 0.])),
        Row("a thread's stack reserved, and opened but for its guard",
            |_, _| {}, |t, at| { t.map(at + 34, 12, VM_NORESERVE); t.open(at + 35, 11); }, |t, at| t.unmap(at + 34, 12),
            came([0., 0., 1.75, 0.25, 0., 4.00, 2.46], [0., 0., 1.72, 0.28, 0., 2.55, 2.55])),
        Row("a thread's stack unmapped",
            |t, at| { t.map(at + 34, 12, VM_NORESERVE); t.open(at + 35, 11); }, |t, at| t.unmap(at + 34, 12), |_, _| {},
            came([0., 0., 0.92, 0.03, 0.04, 2.72, 2.31], [0., 0., 0.96, 0.01, 0.03, 2.07, 2.08])),
        Row("an arena grows into what it has reserved",
            |t, at| { t.map(at + 34, 12, VM_NORESERVE); t.open(at + 34, 4); }, |t, at| t.open(at + 38, 2), |t, at| t.unmap(at + 34, 12),
            came([0., 0.97, 0., 0., 0.03, 0.43, 0.17], [0., 0.99, 0., 0., 0.01, 0.04, 0.04])),
        Row("munmap, over 40 adjacent ones",
            |t, at| t.pages(at + 32, 40), |t, at| t.unmap(at + 32, 40), |_, _| {},
            came([0., 0., 34., 4., 1., 32., 20.2], [0., 0., N, N, N, N, N])),
        Row("MAP_FIXED over 40 adjacent ones",
            |t, at| t.pages(at + 32, 40), |t, at| t.map(at + 32, 40, VM_READ), |t, at| t.unmap(at + 32, 40),
            came([0., 0., 34., 4., 1., 32., 20.2], [0., 0., N, N, N, N, N])),
    ]
}

/// Per operation, over many places among VMAs that stand alone. Rows without a fraction hold at each single place, but where a
/// leaf was full or ended; averages within what another sequence of places moves them.
fn nodes<K: Kconfig<A = Native>>(boot: Boot) {
    const ROUNDS: usize = 300;
    with_mm::<K>(boot, |cpu, k, mm| {
        let mut seed = 11u64;
        let mut random = |n: u64| {
            seed = crate::cpu::splitmix64(seed);
            seed % n
        };
        // A VMA of 12 pages every 64 pages, in random order, as a process that lives long has them.
        let mut order: Vec<u64> = (0..VMAS).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random(i as u64 + 1) as usize);
        }
        let t = Lone { cpu, k, mm };
        for i in order {
            t.map(i * 64 + 16, 12, RW);
        }
        let version = usize::from(boot.slab != Allocator::Slub);
        let mut wrong = Vec::new();
        for Row(name, before, measured, after, want) in rows::<K>() {
            let want = want[version];
            let exact = want.iter().all(|w| w.fract() == 0.);
            let (mut sum, mut full) = ([0.; 7], 0);
            for _ in 0..ROUNDS {
                // Not the first or the last, which have other neighbours in their leaves.
                let at = (1 + random(VMAS - 2)) * 64;
                before(&t, at);
                let work = tree_work(cpu, || measured(&t, at));
                after(&t, at);
                if exact && work[3] + work[4] != 0. {
                    full += 1;
                    let stores = work[1..5].iter().sum::<f64>();
                    assert_eq!(stores, want[1] + want[2], "{name}: another kind of store at the end of a leaf");
                } else if exact {
                    assert_eq!(work, want, "{name}");
                }
                sum.iter_mut().zip(work).for_each(|(s, w)| *s += w / ROUNDS as f64);
            }
            eprintln!("{name:40} {sum:5.2?}");
            assert!(full < ROUNDS / 5, "{name}: {full} times");
            let off = |(got, want): (f64, f64)| !want.is_nan() && (got - want).abs() > 0.15;
            if !exact && sum.into_iter().zip(want).any(off) {
                wrong.push(format!("{name}: {sum:.2?}, should be {want:.2?}"));
            }
            assert_eq!(mm.map_count.get(), VMAS as i32, "{name}");
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        // An exit frees the tree as it stands: no store, no node taken, none that waits for readers.
        let child = dup_mm(cpu, k, mm).expect("memory");
        let waiting = || cpu.counters.get(MapleEvent::CallRcu);
        let before = waiting();
        let at_exit = tree_work(cpu, || mmput(cpu, k, child));
        assert_eq!(at_exit[..6], [0.; 6], "exit");
        assert!(at_exit[6] > 0., "its nodes are dead all the same");
        assert_eq!(waiting(), before, "and freed at once");
        // A fork takes as many nodes as the parent has; a VMA that is not to be copied is cleared out of the copy, which no
        // reader sees yet.
        let fork = || {
            let mut child = None;
            let work = tree_work(cpu, || child = Some(dup_mm(cpu, k, mm).expect("memory")));
            mmput(cpu, k, child.expect("made above"));
            work
        };
        let nodes = mt_validate(mm.mm_mt()).expect("a tree").nodes as f64;
        let plain = fork();
        assert!(version != 0 || (plain[5], plain[6]) == (nodes, 0.), "fork: {plain:?} of {nodes} nodes");
        let every = VMAS / 10;
        for i in 0..every {
            modify(cpu, k, mm, (i * 640 + 16, 12), |f| f | VM_DONTCOPY).unwrap();
        }
        let work = fork();
        let per = [5, 6].map(|i| (work[i] - plain[i]) / every as f64);
        eprintln!("{:40} {per:5.2?}", "fork, a VMA that is not to be copied");
        // By 6.12's rules.
        let off = per.iter().zip([2.12, 1.00]).any(|(p, w)| (p - w).abs() > 0.05);
        assert!(version != 0 || !off, "not to be copied: {per:?}");
    });
}
