// SPDX-License-Identifier: GPL-2.0-only
//! What each operation costs: VMAs allocated and freed, which object survives (vma-ops.md 14).

use super::*;
use crate::mm::file::{FileSpec, file_open, fput};
use crate::mm::mm_types::{VM_DONTDUMP, VM_NORESERVE};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED};
use crate::mm::{vm_mmap, vm_munmap};

on_every_variant! {
    fn vmas_of_each_mapping_and_unmapping = mapping;
    fn vmas_of_each_change_of_flags = changing;
    fn vmas_of_shared_mappings = shared;
    fn the_changed_part_keeps_its_object = identity;
}

fn mapping<K: Kconfig<A = Native>>(slab: Allocator) {
    with_rules::<K>(slab, |cpu, k, mm| {
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

fn changing<K: Kconfig<A = Native>>(slab: Allocator) {
    with_rules::<K>(slab, |cpu, k, mm| {
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

fn shared<K: Kconfig<A = Native>>(slab: Allocator) {
    with_rules::<K>(slab, |cpu, k, mm| {
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

fn identity<K: Kconfig<A = Native>>(slab: Allocator) {
    with_rules::<K>(slab, |cpu, k, mm| {
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
