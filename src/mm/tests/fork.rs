// SPDX-License-Identifier: GPL-2.0-only
//! Fork, copy on write and the end of copies (vma-ops.md 8, 11, 14).

use super::*;
use crate::maple_tree::{MapleEvent, mas_set, mt_validate};
use crate::mm::dup_mm;
use crate::mm::file::vm_file_of;
use crate::mm::folio::{page_anon_exclusive, page_folio};
use crate::mm::kconfig::VmaPtr;
use crate::mm::memory::get_mm_counter_sum;
use crate::mm::mm_types::{MM_ANONPAGES, VM_DONTCOPY, VM_EXEC, VM_LOCKED, VM_LOCKONFAULT, VM_WIPEONFORK};
use crate::mm::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use crate::mm::syscall::{Call, Process, syscall};
use crate::mm::vma::{find_vma, find_vma_prev, vma_lookup, vma_modify_flags};
use crate::mm::{vm_mmap, vm_munmap};

on_every_variant! {
    fn each_sees_its_own_writes = own_writes;
    fn children_of_children = nested;
    fn the_last_one_takes_the_page_over = taken_over;
    fn a_parent_may_end_first = parent_first;
    fn the_row_of_the_table = row;
    fn inherited_neighbours_never_merge = never_merge;
    fn pieces_split_in_the_child_merge_again = split_in_child;
    fn a_forgotten_ancestor_is_taken_over = ancestor;
    fn the_next_ones_anon_vma_comes_before_the_previous_ones = next_first;
    fn what_a_child_does_not_get = not_inherited;
    fn a_lock_ends_in_the_child = unlocked;
    fn the_zero_page_is_nobodys = zero_page;
    fn every_mmap_lock_lies_where_it_was_asked_for = lock_offset;
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64) {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, RW).unwrap();
}

fn fork<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>) -> MmPtr<K> {
    let child = dup_mm(cpu, k, mm).expect("memory for a child");
    check_tree(cpu, k, child);
    check_tree(cpu, k, mm);
    child
}

/// User mode writes a byte.
fn put<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64, value: u8) {
    let mut p = Process::new(mm);
    syscall(cpu, k, &mut p, &Call::Write { addr: BASE + page * P + 17, value }).expect("writable");
}

/// User mode reads it.
fn get<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64) -> u8 {
    let mut p = Process::new(mm);
    syscall(cpu, k, &mut p, &Call::Read { addr: BASE + page * P + 17 }).expect("readable") as u8
}

fn frame<K: Kconfig<A = Native>>(mm: MmPtr<K>, page: u64) -> *mut u8 {
    (pte_lookup::<K>(mm, BASE + page * P) & PTE_PFN_MASK) as *mut u8
}

fn writable<K: Kconfig<A = Native>>(mm: MmPtr<K>, page: u64) -> bool {
    pte_lookup::<K>(mm, BASE + page * P) & PAGE_RW != 0
}

fn vma<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64) -> VmaPtr<K> {
    vma_lookup(cpu, k, mm, BASE + page * P).expect("mapped")
}

/// What a system call that changes flags does in the middle.
fn set_flags<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64, flags: u64) {
    mmap_write_lock(cpu, &*mm);
    let (vma, prev) = find_vma_prev(cpu, k, mm, BASE + p * P);
    let vma = vma.expect("mapped");
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    mas_set(&mut mas, BASE + p * P);
    let prev = if vma.vm_start().load(Relaxed) < BASE + p * P { Some(vma) } else { prev };
    let new = vma.vm_flags().load(Relaxed) & !(RW | VM_EXEC) | flags;
    let vma = vma_modify_flags(cpu, k, mm, &mut mas, prev, vma, BASE + p * P, BASE + (p + n) * P, new).unwrap();
    K::Lock::vma_start_write(cpu, vma);
    vma.vm_flags().store(new, Relaxed);
    mmap_write_unlock(cpu, &*mm);
}

fn own_writes<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 8);
        (0..4).for_each(|p| put(cpu, k, mm, p, 10 + p as u8));
        assert!(page_anon_exclusive::<Native>(frame::<K>(mm, 0)));
        let child = fork(cpu, k, mm);
        for p in 0..4 {
            assert_eq!(frame::<K>(mm, p), frame::<K>(child, p), "shared, not copied");
            assert!(!writable::<K>(mm, p) && !writable::<K>(child, p), "read-only on both sides");
            let folio = page_folio::<Native>(frame::<K>(mm, p));
            assert_eq!((folio.mapcount(), folio.ref_count()), (2, 2));
            assert!(!page_anon_exclusive::<Native>(frame::<K>(mm, p)));
        }
        assert_eq!(get_mm_counter_sum(cpu, k, child, MM_ANONPAGES), 4);
        put(cpu, k, child, 0, 90);
        put(cpu, k, mm, 1, 91);
        // Not there at fork: each has its own.
        put(cpu, k, mm, 5, 92);
        put(cpu, k, child, 6, 93);
        let all = |mm| (0..8).map(|p| get(cpu, k, mm, p)).collect::<Vec<_>>();
        assert_eq!(all(mm), [10, 91, 12, 13, 0, 92, 0, 0]);
        assert_eq!(all(child), [90, 11, 12, 13, 0, 0, 93, 0]);
        // The other side of each of the two has its page alone now, but must still ask.
        let reused = cpu.counters.get(VmEvent::Pgreuse);
        let before = frame::<K>(mm, 0);
        put(cpu, k, mm, 0, 94);
        assert_eq!(frame::<K>(mm, 0), before);
        assert_eq!(cpu.counters.get(VmEvent::Pgreuse), reused + 1);
        assert!(page_anon_exclusive::<Native>(before));
        assert_eq!((get(cpu, k, mm, 0), get(cpu, k, child, 0)), (94, 90));
        mmput(cpu, k, child);
        assert_eq!(all(mm), [94, 91, 12, 13, 0, 92, 0, 0]);
    });
}

fn nested<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 6);
        put(cpu, k, mm, 0, 1);
        // Each generation writes one page more and its number into page 0.
        let mut p = Process::new(mm);
        for generation in 1..=4u64 {
            syscall(cpu, k, &mut p, &Call::Fork).unwrap();
            put(cpu, k, p.mm, generation, 1);
            put(cpu, k, p.mm, 0, generation as u8 + 1);
        }
        for generation in (1..=4u64).rev() {
            let seen: Vec<u8> = (0..6).map(|i| get(cpu, k, p.mm, i)).collect();
            let expect: Vec<u8> =
                (0..6).map(|i| if i == 0 { generation as u8 + 1 } else { u8::from(i <= generation) }).collect();
            assert_eq!(seen, expect, "generation {generation}");
            syscall(cpu, k, &mut p, &Call::Exit).unwrap();
        }
        assert_eq!(p.mm.as_ptr(), mm.as_ptr());
        assert_eq!((0..6).map(|i| get(cpu, k, mm, i)).collect::<Vec<_>>(), [1, 0, 0, 0, 0, 0]);
        assert!(syscall(cpu, k, &mut p, &Call::Exit).is_err(), "the first process does not end here");
    });
}

fn taken_over<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 3);
        (0..3).for_each(|p| put(cpu, k, mm, p, 7));
        mmput(cpu, k, fork(cpu, k, mm));
        let n = || (cpu.counters.get(VmEvent::Pgalloc), cpu.counters.get(VmEvent::Pgreuse));
        let before = n();
        let frames: Vec<_> = (0..3).map(|p| frame::<K>(mm, p)).collect();
        (0..3).for_each(|p| put(cpu, k, mm, p, 8));
        assert_eq!(n(), (before.0, before.1 + 3), "nothing copied");
        assert_eq!(frames, (0..3).map(|p| frame::<K>(mm, p)).collect::<Vec<_>>());
        // With two more references copies are made until one is left.
        let (a, b) = (fork(cpu, k, mm), fork(cpu, k, mm));
        let before = n();
        [a, b, mm].iter().for_each(|&mm| put(cpu, k, mm, 0, 9));
        assert_eq!(n(), (before.0 + 2, before.1 + 1));
        mmput(cpu, k, a);
        mmput(cpu, k, b);
    });
}

fn parent_first<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, outer| {
        let mm = mm_alloc(cpu, k);
        map(cpu, k, mm, 0, 4);
        (0..4).for_each(|p| put(cpu, k, mm, p, p as u8 + 1));
        let child = fork(cpu, k, mm);
        mmput(cpu, k, mm);
        assert_eq!((0..4).map(|p| get(cpu, k, child, p)).collect::<Vec<_>>(), [1, 2, 3, 4]);
        put(cpu, k, child, 0, 9);
        let grandchild = fork(cpu, k, child);
        mmput(cpu, k, child);
        assert_eq!(get(cpu, k, grandchild, 0), 9);
        mmput(cpu, k, grandchild);
        map(cpu, k, outer, 0, 1);
    });
}

/// Fork of n VMAs, m of them not to be copied: n - m VMAs; as many nodes as the parent's tree has, and none dies.
fn row<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        for n in [1u64, 2, 7, 40, 200] {
            for m in [0, 1, n / 3] {
                (0..n).for_each(|i| map(cpu, k, mm, 2 * i, 1));
                for i in 0..m {
                    set_flags(cpu, k, mm, 2 * (n - 1 - 3 * i), 1, RW | VM_DONTCOPY);
                }
                let count = |e: VmEvent| cpu.counters.get(e);
                let nodes = || (cpu.counters.get(MapleEvent::NodeAlloc), cpu.counters.get(MapleEvent::NodeFree));
                let (before, vmas) = (nodes(), count(VmEvent::VmaAlloc));
                let parents = mt_validate(mm.mm_mt()).unwrap().nodes as u64;
                let child = fork(cpu, k, mm);
                let after = nodes();
                assert_eq!(count(VmEvent::VmaAlloc) - vmas, n - m, "{n} VMAs, {m} of them not copied");
                assert_eq!(child.map_count.get(), (n - m) as i32);
                assert_eq!(child.total_vm.load(Relaxed), n - m);
                if m == 0 {
                    assert_eq!((after.0 - before.0, after.1 - before.1), (parents, 0), "{n} VMAs");
                }
                let freed = count(VmEvent::VmaFree);
                mmput(cpu, k, child);
                assert_eq!(count(VmEvent::VmaFree) - freed, n - m);
                vm_munmap(cpu, k, mm, BASE, 2 * n * P).unwrap();
            }
        }
    });
}

fn never_merge<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 3);
        put(cpu, k, mm, 0, 1);
        put(cpu, k, mm, 2, 1);
        vm_munmap(cpu, k, mm, BASE + P, P).unwrap();
        let child = fork(cpu, k, mm);
        let anon = |mm, p| vma(cpu, k, mm, p).anon_vma().load(Relaxed);
        assert_eq!(anon(mm, 0), anon(mm, 2), "pieces of one in the parent");
        assert_ne!(anon(child, 0), anon(child, 2), "an anon_vma each in the child");
        map(cpu, k, mm, 1, 1);
        assert_eq!(layout(cpu, k, mm), [(0, 3)]);
        map(cpu, k, child, 1, 1);
        assert_eq!(layout(cpu, k, child), [(0, 1), (1, 2), (2, 3)], "nor do they merge with a new one");
        // Which does not find an anon_vma to share either: their chains are two links.
        let before = cpu.counters.get(VmEvent::AnonVmaAlloc);
        put(cpu, k, child, 1, 5);
        assert_eq!(cpu.counters.get(VmEvent::AnonVmaAlloc), before + 1);
        // Equal flags do not help.
        set_flags(cpu, k, child, 0, 1, VM_READ);
        set_flags(cpu, k, child, 0, 1, RW);
        assert_eq!(layout(cpu, k, child).len(), 3);
        mmput(cpu, k, child);
    });
}

fn split_in_child<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4);
        (0..4).for_each(|p| put(cpu, k, mm, p, 1));
        let child = fork(cpu, k, mm);
        set_flags(cpu, k, child, 1, 2, VM_READ);
        assert_eq!(layout(cpu, k, child), [(0, 1), (1, 3), (3, 4)]);
        set_flags(cpu, k, child, 1, 2, RW);
        assert_eq!(layout(cpu, k, child), [(0, 4)]);
        mmput(cpu, k, child);
    });
}

fn ancestor<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1);
        put(cpu, k, mm, 0, 1);
        let n = || (cpu.counters.get(VmEvent::AnonVmaAlloc), cpu.counters.get(VmEvent::AnonVmaChainAlloc));
        let a = fork(cpu, k, mm);
        let b = fork(cpu, k, a);
        assert_eq!(n(), (3, 1 + 2 + 3));
        let of_a = vma(cpu, k, a, 0).anon_vma().load(Relaxed);
        let c = fork(cpu, k, b);
        assert_eq!(n(), (4, 6 + 4), "each of b's ancestors is in use: one more of its own");
        mmput(cpu, k, c);
        mmput(cpu, k, a);
        let before = n();
        let c = fork(cpu, k, b);
        assert_eq!(n(), (before.0, before.1 + 3), "a is gone and has one child: its anon_vma is c's now");
        assert_eq!(vma(cpu, k, c, 0).anon_vma().load(Relaxed), of_a);
        // A line of processes that fork and end keeps a chain of bounded length.
        let mut last = c;
        for _ in 0..20 {
            let next = fork(cpu, k, last);
            mmput(cpu, k, last);
            last = next;
        }
        let (avs, links) = n();
        let next = fork(cpu, k, last);
        assert!(n().0 - avs <= 1 && n().1 - links <= 5, "{:?} after {:?}", n(), (avs, links));
        put(cpu, k, next, 0, 2);
        assert_eq!((get(cpu, k, mm, 0), get(cpu, k, next, 0)), (1, 2));
        [next, last, b].iter().for_each(|&mm| mmput(cpu, k, mm));
    });
}

/// find_mergeable_anon_vma(): whose anon_vma a first write fault shares.
fn next_first<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let anon = |p| vma(cpu, k, mm, p).anon_vma().load(Relaxed);
        let between = |flags| vm_mmap(cpu, k, mm, Some(BASE + P), P, flags).unwrap();
        map(cpu, k, mm, 0, 1);
        map(cpu, k, mm, 2, 1);
        put(cpu, k, mm, 0, 1);
        put(cpu, k, mm, 2, 1);
        between(RW | VM_EXEC);
        assert_eq!(layout(cpu, k, mm).len(), 3);
        assert_eq!(get(cpu, k, mm, 1), 0);
        assert!(anon(1).is_null(), "a read sets nothing");
        put(cpu, k, mm, 1, 1);
        assert_eq!(anon(1), anon(2));
        assert_ne!(anon(1), anon(0));
        // Without a next one, the previous.
        vm_munmap(cpu, k, mm, BASE + P, 2 * P).unwrap();
        between(RW | VM_EXEC);
        put(cpu, k, mm, 1, 1);
        assert_eq!(anon(1), anon(0));
        // Other flags than rights: neither.
        vm_munmap(cpu, k, mm, BASE + P, P).unwrap();
        between(RW | crate::mm::mm_types::VM_NORESERVE);
        put(cpu, k, mm, 1, 1);
        assert_ne!(anon(1), anon(0));
        // In a child every chain has two links: nobody shares.
        vm_munmap(cpu, k, mm, BASE + P, P).unwrap();
        let child = fork(cpu, k, mm);
        vm_mmap(cpu, k, child, Some(BASE + P), P, RW | VM_EXEC).unwrap();
        put(cpu, k, child, 1, 1);
        let anon = |p| vma(cpu, k, child, p).anon_vma().load(Relaxed);
        assert_ne!(anon(1), anon(0));
        mmput(cpu, k, child);
    });
}

fn not_inherited<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        (0..3).for_each(|i| map(cpu, k, mm, 2 * i, 1));
        (0..3).for_each(|i| put(cpu, k, mm, 2 * i, 1));
        set_flags(cpu, k, mm, 0, 1, RW | VM_WIPEONFORK);
        set_flags(cpu, k, mm, 2, 1, RW | VM_DONTCOPY);
        let child = fork(cpu, k, mm);
        assert_eq!(layout(cpu, k, child), [(0, 1), (4, 5)]);
        assert!(vma(cpu, k, child, 0).anon_vma().load(Relaxed).is_null());
        assert!(vma(cpu, k, child, 0).vm_flags().load(Relaxed) & VM_WIPEONFORK != 0, "wiped again in its children");
        assert_eq!((get(cpu, k, child, 0), get(cpu, k, child, 4)), (0, 1));
        assert!(find_vma(cpu, k, child, BASE + 2 * P).is_some_and(|v| v.vm_start().load(Relaxed) == BASE + 4 * P));
        assert!(vm_file_of::<K>(vma(cpu, k, child, 0)).is_none());
        assert_eq!(get(cpu, k, mm, 0), 1);
        mmput(cpu, k, child);
    });
}

fn unlocked<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 1);
        set_flags(cpu, k, mm, 0, 1, RW | VM_LOCKED | VM_LOCKONFAULT);
        mm.locked_vm.set(1);
        let child = fork(cpu, k, mm);
        assert_eq!(vma(cpu, k, child, 0).vm_flags().load(Relaxed) & (VM_LOCKED | VM_LOCKONFAULT), 0);
        assert_eq!((child.locked_vm.get(), mm.locked_vm.get()), (0, 1));
        mmput(cpu, k, child);
        set_flags(cpu, k, mm, 0, 1, RW);
        vma(cpu, k, mm, 0).vm_flags().fetch_and(!(VM_LOCKED | VM_LOCKONFAULT), Relaxed);
        mm.locked_vm.set(0);
    });
}

fn zero_page<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4);
        assert_eq!(get(cpu, k, mm, 0), 0);
        put(cpu, k, mm, 1, 1);
        let child = fork(cpu, k, mm);
        assert_eq!(frame::<K>(child, 0), k.zero_page.as_ptr());
        assert_eq!(get_mm_counter_sum(cpu, k, child, MM_ANONPAGES), 1);
        put(cpu, k, child, 0, 3);
        assert_eq!((get(cpu, k, mm, 0), get(cpu, k, child, 0)), (0, 3));
        mmput(cpu, k, child);
        // Nothing of its own: the child faults for itself.
        vm_munmap(cpu, k, mm, BASE, 4 * P).unwrap();
        map(cpu, k, mm, 0, 4);
        assert_eq!(get(cpu, k, mm, 0), 0);
        let child = fork(cpu, k, mm);
        assert_eq!(pte_lookup::<K>(child, BASE), 0);
        mmput(cpu, k, child);
    });
}

/// Parents and children, in memory that a child before them had; the books are closed at each offset.
fn lock_offset<K: Kconfig<A = Native>>(boot: Boot) {
    for offset in (0..64).step_by(8) {
        let config = KernelConfig { mmap_lock_offset: offset, ..config(boot) };
        with_config::<K>(&config, |cpu, k, mm| {
            map(cpu, k, mm, 0, 4);
            put(cpu, k, mm, 1, 7);
            let of = |mm: MmPtr<K>| (&raw const mm.mmap_lock).addr() % 64;
            for _ in 0..3 {
                let child = fork(cpu, k, mm);
                assert_eq!((of(mm), of(child), get(cpu, k, child, 1)), (offset as usize, offset as usize, 7));
                let line = |mm: MmPtr<K>| (&raw const mm.mm_count).addr() / 64;
                let mt = (&raw const *mm.mm_mt()).addr() / 64;
                assert!(line(mm) != mt && line(mm) != line(child), "mm_count is alone in its line");
                mmput(cpu, k, child);
            }
        });
    }
}
