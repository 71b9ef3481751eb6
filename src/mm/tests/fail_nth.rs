// SPDX-License-Identifier: GPL-2.0-only
//! Allocations that fail: each operation again and again, with the first, the second, ... allocation of objects or pages
//! in it refused, until one finishes without meeting the refusal. It may only say `ENOMEM`; the tree, the VMAs and the
//! counts agree afterwards; the same operation then succeeds and leaves what it should; and at the end nothing is left
//! over.
//!
//! The caches are shrunk and the per-CPU pages drained before each attempt, so that an object costs a page.
//!
//! Whether an allocation can be refused at all is a matter of where it is asked for: all objects go through
//! `slab_pre_alloc_hook()`, one by one, in bulk and for prefilled sheaves; all pages, those of slabs and of big sheaves
//! included, through `alloc_pages_node()`; per-CPU cells through `should_fail_alloc_percpu()`. [`SITES`] lists who asks, and
//! who tests it; a file that is missing there, or a test that is gone, fails a test. Not refused: what a kernel allocates while it boots, and
//! what is under `nofail()`.

use super::*;
use crate::cpu::Errno;
use crate::held::{Held, assert_held};
use crate::maple_tree::{
    MT_FLAGS_ALLOC_RANGE, MT_FLAGS_LOCK_EXTERN, MT_FLAGS_USE_RCU, MapleTree, mas_store_gfp, mt_destroy, mt_validate,
};
use crate::mm::file::{FileKind, FileSpec, file_open, fput};
use crate::mm::fork::{dup_mm, try_mm_alloc};
use crate::mm::mm_types::START_BRK;
use crate::mm::mm_types::{VM_DONTCOPY, VM_WRITE};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, MmapArgs, do_mmap};
use crate::mm::{
    madvise, madvise_dontneed, mremap, sys_brk, sys_madvise, sys_mlock, sys_mprotect, sys_mremap, sys_mseal, vm_mmap,
    vm_munmap,
};
use crate::rcu::rcu_barrier;
use crate::slab::{FaultAttr, SlabOptions, drain_all_pages, kmem_cache_shrink};
use std::cell::Cell;

on_every_variant! {
    fn mapping_unwinds = mapping;
    fn mapping_over_others_unwinds = mapping_over;
    fn merging_unwinds = merging;
    fn unmapping_unwinds = unmapping;
    fn the_heap_unwinds = heap;
    fn faulting_unwinds = faulting;
    fn dropping_pages_and_exit_need_no_memory = dropping;
    fn a_new_mm_unwinds = new_mm;
    fn a_new_mm_without_cells_unwinds = no_cells;
    fn forking_unwinds = forking;
    fn faults_in_files_unwind = file_faults;
    fn stores_into_a_tree_unwind = stores;
    fn changing_rights_unwinds = protecting;
    fn advice_unwinds = advising;
    fn locking_and_sealing_unwind = locking;
    fn moving_unwinds = moving;
    fn growing_unwinds = growing;
}

/// Boots with failures possible, runs `f`, checks that nothing is left.
fn with_failures<K: Kconfig<A = Native>>(boot: Boot, f: impl FnOnce(&Cpu<Native>, &Kernel<K>)) {
    let m = machine(1);
    let nth = Some(FaultAttr::NTH);
    let slab = SlabOptions { allocator: boot.slab, failslab: nth, fail_page_alloc: nth, ..SlabOptions::default() };
    let k = start_kernel::<K>(&m, &KernelConfig { slab, ..config(boot) });
    let cpu = k.cpu(0);
    f(&cpu, &k);
    close_the_books(&cpu, &k);
    let n = |e| cpu.counters.get(e);
    assert_eq!(n(VmEvent::Pgalloc), n(VmEvent::Pgfree), "pages left");
}

fn dry<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>) {
    rcu_barrier(cpu, &k.rcu);
    // SAFETY: the only CPU.
    k.slab.for_each_cache(|s| unsafe {
        kmem_cache_shrink(cpu, s);
    });
    rcu_barrier(cpu, &k.rcu);
    drain_all_pages(cpu, &k.pages);
}

/// Runs `op` with allocation n refused, for each n there is. Returns how many attempts were refused an allocation, and
/// how many of these failed.
fn each_allocation<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    prepare: impl Fn(MmPtr<K>),
    op: impl Fn(MmPtr<K>) -> Result<(), Errno>,
    after: impl Fn(MmPtr<K>),
) -> (u32, u32) {
    let (mut refused, mut failed) = (0, 0);
    loop {
        let mm = mm_alloc(cpu, k);
        prepare(mm);
        dry(cpu, k);
        k.slab.faults.set_fail_nth(cpu, refused + 1);
        let r = op(mm);
        let met = k.slab.faults.set_fail_nth(cpu, 0) == 0;
        check_tree(cpu, k, mm);
        if r.is_err() {
            assert_eq!(r, Err(Errno::ENOMEM));
            assert!(met, "no memory, but nothing was refused");
            failed += 1;
            op(mm).expect("nothing is refused any more");
            check_tree(cpu, k, mm);
        }
        after(mm);
        mmput(cpu, k, mm);
        if !met {
            return (refused, failed);
        }
        refused += 1;
    }
}

fn map<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64, n: u64) -> Result<(), Errno> {
    vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, RW).map(drop)
}

fn write<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64) {
    do_user_addr_fault(cpu, k, mm, BASE + p * P, true).unwrap();
}

/// `n` VMAs of two pages, three pages apart: each third page stays free.
fn comb<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, n: u64) {
    (0..n).for_each(|i| map(cpu, k, mm, 3 * i, 2).unwrap());
}

fn mapping<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        // Every fill of the last leaf, so that leaves and their parents split.
        for n in [0, 1, 15, 16, 77] {
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| comb(cpu, k, mm, n),
                |mm| map(cpu, k, mm, 1000, 1),
                |mm| assert_eq!(mm.map_count.get(), n as i32 + 1),
            );
            // The VMA at least. A page for its slab may be asked for again in a smaller order.
            assert!(refused >= 2 && failed >= 1, "{n}: {refused} {failed}");
        }
    });
}

fn mapping_over<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        let (refused, failed) = each_allocation(
            cpu,
            k,
            |mm| {
                comb(cpu, k, mm, 30);
                (0..20).for_each(|i| write(cpu, k, mm, 3 * i));
                vm_mmap(cpu, k, mm, Some(BASE + 100 * P), 9 * P, VM_READ).unwrap();
            },
            // From inside the second to inside the last but one, and other flags than what is there.
            |mm| vm_mmap(cpu, k, mm, Some(BASE + 4 * P), 81 * P, VM_READ).map(drop),
            |mm| {
                let l = layout(cpu, k, mm);
                assert_eq!((l[..3].to_vec(), l.len()), (vec![(0, 2), (3, 4), (4, 85)], 6), "{l:?}");
            },
        );
        // A sheaf of nodes is one allocation, chained nodes are one each.
        assert!(refused >= 8 && failed >= 5, "{refused} {failed}");
    });
}

fn merging<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        // Between two, of which the right one alone has an anon_vma: the survivor must take it over. Without memory for
        // that, a VMA of its own is as good.
        for faulted in [false, true] {
            let (refused, _) = each_allocation(
                cpu,
                k,
                |mm| {
                    comb(cpu, k, mm, 40);
                    if faulted {
                        write(cpu, k, mm, 30);
                    }
                },
                |mm| map(cpu, k, mm, 29, 1),
                |mm| {
                    let pages: u64 = layout(cpu, k, mm).iter().map(|(a, b)| b - a).sum();
                    assert_eq!(pages, 81);
                    assert!((39..=41).contains(&mm.map_count.get()));
                },
            );
            assert!(refused >= 1, "{refused}");
        }
    });
}

fn unmapping<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        for (at, n) in [(1, 1), (4, 40), (0, 3), (2, 115), (0, 120)] {
            let (refused, _) = each_allocation(
                cpu,
                k,
                |mm| {
                    comb(cpu, k, mm, 40);
                    // One VMA of three pages, so that its middle can go.
                    map(cpu, k, mm, 2, 1).unwrap();
                    (0..40).for_each(|i| write(cpu, k, mm, 3 * i));
                },
                |mm| vm_munmap(cpu, k, mm, BASE + at * P, n * P),
                |mm| assert!(layout(cpu, k, mm).iter().all(|&(a, b)| b <= at || a >= at + n)),
            );
            assert!(refused >= 1, "{at} {n}: {refused}");
        }
    });
}

fn heap<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        for (from, to) in [(0, 1), (0, 5), (3, 9), (9, 4), (9, 0)] {
            let (refused, _) = each_allocation(
                cpu,
                k,
                |mm| {
                    comb(cpu, k, mm, 30);
                    assert_eq!(sys_brk(cpu, k, mm, START_BRK + from * P), START_BRK + from * P);
                    if from > 5 {
                        do_user_addr_fault(cpu, k, mm, START_BRK + 5 * P, true).unwrap();
                    }
                },
                |mm| match sys_brk(cpu, k, mm, START_BRK + to * P) {
                    b if b == START_BRK + to * P => Ok(()),
                    b => {
                        assert_eq!(b, START_BRK + from * P, "refused: the break stays");
                        Err(Errno::ENOMEM)
                    }
                },
                |mm| {
                    let heap = i32::from(to != 0);
                    assert_eq!((mm.brk.get(), mm.map_count.get()), (START_BRK + to * P, 30 + heap));
                },
            );
            // Growing a VMA in place may need no node.
            assert!(refused >= 1 || from == 3, "{from} {to}: {refused}");
        }
    });
}

fn faulting<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        let fault = |mm, p: u64, w| do_user_addr_fault(cpu, k, mm, BASE + p * P, w).map_err(Errno::from);
        for neighbour in [false, true] {
            // Three tables, an anon_vma (unless the neighbour's will do), its link, the page.
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| {
                    map(cpu, k, mm, 0, 10).unwrap();
                    if neighbour {
                        vm_mmap(cpu, k, mm, Some(BASE + 10 * P), P, VM_READ).unwrap();
                        write(cpu, k, mm, 9);
                    }
                },
                |mm| {
                    fault(mm, if neighbour { 600 } else { 3 }, true).or_else(|e| match e {
                        // Nothing is mapped so far out.
                        Errno::EFAULT if neighbour => fault(mm, 3, true),
                        e => Err(e),
                    })
                },
                |mm| assert_ne!(pte_lookup::<K>(mm, BASE + 3 * P) & PAGE_RW, 0),
            );
            assert!(refused >= 1 && failed >= 1, "{refused} {failed}");
            assert!(neighbour || failed >= 6, "{refused} {failed}");
        }
        // A read first, then the write that replaces the page of zeros.
        let (refused, failed) = each_allocation(
            cpu,
            k,
            |mm| {
                map(cpu, k, mm, 0, 10).unwrap();
                fault(mm, 3, false).unwrap();
            },
            |mm| fault(mm, 3, true),
            |mm| assert_ne!(pte_lookup::<K>(mm, BASE + 3 * P) & PAGE_RW, 0),
        );
        assert!(refused >= 3 && failed >= 3, "{refused} {failed}");
        let (refused, failed) = each_allocation(
            cpu,
            k,
            |mm| map(cpu, k, mm, 0, 10).unwrap(),
            |mm| fault(mm, 3, false),
            |mm| assert_eq!(pte_lookup::<K>(mm, BASE + 3 * P) & (PAGE_PRESENT | PAGE_RW), PAGE_PRESENT),
        );
        assert_eq!((refused, failed), (3, 3), "three tables");
        // A page that a child has, too, is copied.
        let child = Cell::new(None);
        let (refused, failed) = each_allocation(
            cpu,
            k,
            |mm| {
                map(cpu, k, mm, 0, 10).unwrap();
                fault(mm, 3, true).unwrap();
                child.set(Some(dup_mm(cpu, k, mm).unwrap()));
            },
            |mm| fault(mm, 3, true),
            |mm| {
                assert_ne!(pte_lookup::<K>(mm, BASE + 3 * P) & PAGE_RW, 0);
                mmput(cpu, k, child.take().unwrap());
            },
        );
        assert_eq!((refused, failed), (1, 1), "the copy");
    });
}

fn dropping<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        let fill = |mm: MmPtr<K>| {
            map(cpu, k, mm, 0, 40).unwrap();
            map(cpu, k, mm, 1000, 3).unwrap();
            (0..40).for_each(|p| write(cpu, k, mm, p));
            write(cpu, k, mm, 1001);
        };
        let (refused, failed) = each_allocation(
            cpu,
            k,
            fill,
            |mm| madvise_dontneed(cpu, k, mm, BASE, 40 * P),
            |mm| assert_eq!(pte_lookup::<K>(mm, BASE + 39 * P), 0),
        );
        assert!(refused >= 1 && failed == 0, "the queue's page is a luxury: {refused} {failed}");
        for n in 1.. {
            let mm = mm_alloc(cpu, k);
            fill(mm);
            dry(cpu, k);
            k.slab.faults.set_fail_nth(cpu, n);
            mmput(cpu, k, mm);
            if k.slab.faults.set_fail_nth(cpu, 0) != 0 {
                assert!(n > 1, "exit queues pages too");
                break;
            }
        }
    });
}

fn new_mm<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        let mms = || (k.mm_cachep.live_objects(), k.percpu_counters.in_use());
        let none = mms();
        let mut failed = 0;
        for n in 1.. {
            dry(cpu, k);
            let pages = k.pages.outstanding();
            k.slab.faults.set_fail_nth(cpu, n);
            let mm = try_mm_alloc(cpu, k);
            let met = k.slab.faults.set_fail_nth(cpu, 0) == 0;
            assert!(n != 1 || mm.is_none(), "no mm_struct, no mm");
            assert!(met || mm.is_some(), "no mm, but nothing was refused");
            if let Some(mm) = mm {
                mmput(cpu, k, mm);
            } else {
                failed += 1;
            }
            assert_eq!(mms(), none, "allocation {n}");
            dry(cpu, k);
            // With sheaves, an empty one may have been made on the way, and stays.
            assert!(k.pages.outstanding() == pages || boot.slab == Allocator::Sheaves, "allocation {n}");
            if !met {
                break;
            }
        }
        assert_eq!(failed, 3, "the structure, its top table, its counters' cells; a slab's page is asked for twice");
    });
}

/// Cells that are really out, with nothing refused on purpose: the same way back.
fn no_cells<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        let mms = || (k.mm_cachep.live_objects(), k.percpu_counters.in_use());
        let none = mms();
        let mut taken = Vec::new();
        while let Some(mm) = try_mm_alloc(cpu, k) {
            taken.push(mm);
        }
        assert_eq!(k.percpu_counters.in_use() as usize, crate::sync::percpu_counter::GROUPS);
        assert_eq!(k.mm_cachep.live_objects(), none.0 + taken.len() as i64);
        taken.into_iter().for_each(|mm| mmput(cpu, k, mm));
        assert_eq!(mms(), none);
    });
}

fn forking<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        // VMAs with and without pages of their own, over more than one leaf, with a page table each now and then; one
        // that is not copied, which changes the child's tree for good.
        let n = 12u64;
        let at = |i: u64| if i.is_multiple_of(4) { 600 * (i + 1) } else { 3 * i };
        let (refused, failed) = each_allocation(
            cpu,
            k,
            |mm| {
                (0..n).for_each(|i| map(cpu, k, mm, at(i), 2).unwrap());
                (0..n).filter(|i| !i.is_multiple_of(3)).for_each(|i| write(cpu, k, mm, at(i)));
                let vma = crate::mm::vma::find_vma(cpu, k, mm, BASE + at(5) * P).unwrap();
                vma.vm_flags().fetch_or(VM_DONTCOPY, Relaxed);
            },
            |mm| {
                let child = dup_mm(cpu, k, mm)?;
                check_tree(cpu, k, child);
                assert_eq!(child.map_count.get(), n as i32 - 1);
                mmput(cpu, k, child);
                Ok(())
            },
            |mm| {
                // Nobody else is left: the pages are the parent's again.
                let alloc = cpu.counters.get(VmEvent::Pgalloc);
                (0..n).filter(|i| !i.is_multiple_of(3)).for_each(|i| write(cpu, k, mm, at(i)));
                assert_eq!(cpu.counters.get(VmEvent::Pgalloc), alloc);
            },
        );
        // An mm, its tables and its nodes (those below one node at once), VMAs, what each of them needs in anon_vmas.
        assert!(refused >= 35 && failed >= 35, "{refused} {failed}");
    });
}

fn file_faults<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        for (kind, flags, write) in [
            (FileKind::Regular, MAP_SHARED, false),
            (FileKind::Regular, MAP_PRIVATE, true),
            (FileKind::Memfd, MAP_SHARED, true),
            (FileKind::AnonShmem, MAP_SHARED | MAP_ANONYMOUS, true),
        ] {
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| comb(cpu, k, mm, 20),
                |mm| {
                    let addr = BASE + 1000 * P;
                    if crate::mm::vma::vma_lookup(cpu, k, mm, addr).is_none() {
                        let anonymous = flags & MAP_ANONYMOUS != 0;
                        let spec = FileSpec { kind, ..FileSpec::regular(90 * P, 2) };
                        let file = if anonymous { None } else { Some(file_open(cpu, k, &spec)?) };
                        let flags = flags | MAP_FIXED;
                        let args = MmapArgs { addr, len: 90 * P, prot: 3, flags, file, offset: 0 };
                        let r = do_mmap(cpu, k, mm, &args);
                        if let Some(file) = file {
                            fput(cpu, k, file);
                        }
                        r?;
                    }
                    do_user_addr_fault(cpu, k, mm, addr, write)?;
                    do_user_addr_fault(cpu, k, mm, addr + 70 * P, write)?;
                    Ok(())
                },
                |mm| {
                    assert_ne!(pte_lookup::<K>(mm, BASE + 1070 * P), 0);
                    vm_munmap(cpu, k, mm, BASE + 1000 * P, 90 * P).unwrap();
                },
            );
            // The file, its inode, a VMA; tables; two pages, two nodes for them.
            assert!(refused >= 8 && failed >= 8, "{kind:?}: {refused} {failed}");
        }
    });
}

fn stores<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        let mt = MapleTree::new(MT_FLAGS_ALLOC_RANGE | MT_FLAGS_LOCK_EXTERN | MT_FLAGS_USE_RCU);
        let (mut r, mut refused) = (7u64, 0);
        for i in 0..200u64 {
            r = crate::cpu::splitmix64(r);
            let first = r % 4000;
            let last = first + (r >> 16) % if i % 16 == 0 { 2000 } else { 12 };
            let entry = if r >> 40 & 3 == 0 { std::ptr::null_mut() } else { ((i as usize + 1) << 12) as *mut () };
            if i % 8 == 0 {
                dry(cpu, k);
            }
            for n in 1.. {
                let before = mt_validate(&mt).unwrap();
                let mut mas = MaState::new(&mt, k.maple, first, last);
                k.slab.faults.set_fail_nth(cpu, n);
                let r = mas_store_gfp(cpu, &mut mas, entry);
                let met = k.slab.faults.set_fail_nth(cpu, 0) == 0;
                let now = mt_validate(&mt).unwrap();
                refused += u32::from(met);
                if r.is_ok() {
                    break;
                }
                assert!(met);
                assert_eq!((mas.index, mas.last), (first, last));
                assert_eq!(format!("{before:?}"), format!("{now:?}"), "a failed store changes nothing");
            }
        }
        assert!(refused > 150, "{refused}");
        mt_destroy(cpu, k.maple, &mt);
    });
}

/// What is only for now is `ENOMEM` here.
fn for_now(e: Errno) -> Errno {
    if e == Errno::EAGAIN { Errno::ENOMEM } else { e }
}

fn protecting<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        // One in two places, one at both ends of a run, all of them.
        for (at, n) in [(31, 1), (1, 64), (0, 90)] {
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| {
                    (0..30).for_each(|i| map(cpu, k, mm, 3 * i, 3).unwrap());
                    // A border in each: different, then equal but for what is about to change.
                    (0..30).step_by(2).for_each(|i| {
                        sys_mprotect(cpu, k, mm, BASE + 3 * i * P, 3 * P, 7).unwrap();
                    });
                    (0..30).for_each(|i| write(cpu, k, mm, 3 * i));
                },
                |mm| sys_mprotect(cpu, k, mm, BASE + at * P, n * P, 1),
                |mm| {
                    for p in 0..90 {
                        let inside = (at..at + n).contains(&p);
                        assert_eq!(flags_at(cpu, k, mm, p) & VM_WRITE == 0, inside, "{at} {n} {p}");
                    }
                    assert_eq!(pte_lookup::<K>(mm, BASE + 33 * P) & PAGE_RW == 0, (at..at + n).contains(&33));
                },
            );
            assert!(refused >= 1 && failed >= u32::from(n < 90), "{at} {n}: {refused} {failed}");
        }
    });
}

fn advising<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        for advice in [madvise::MADV_DONTFORK, madvise::MADV_POPULATE_WRITE, madvise::MADV_FREE] {
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| {
                    comb(cpu, k, mm, 20);
                    map(cpu, k, mm, 100, 20).unwrap();
                    write(cpu, k, mm, 105);
                },
                |mm| sys_madvise(cpu, k, mm, BASE + 103 * P, 10 * P, advice).map_err(for_now),
                |mm| {
                    assert_eq!(bytes::<K>(mm, 112).is_some(), advice == madvise::MADV_POPULATE_WRITE);
                    assert_eq!(mm.map_count.get(), if advice == madvise::MADV_DONTFORK { 23 } else { 21 });
                },
            );
            // A populate that has done something tries again.
            let none = advice == madvise::MADV_FREE;
            assert_eq!((refused >= 2, failed >= 1), (!none, !none), "{advice}: {refused} {failed}");
        }
    });
}

fn locking<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        for seal in [false, true] {
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| {
                    comb(cpu, k, mm, 20);
                    map(cpu, k, mm, 100, 20).unwrap();
                },
                |mm| {
                    if seal {
                        sys_mseal(cpu, k, mm, BASE + 103 * P, 10 * P, 0)
                    } else {
                        sys_mlock(cpu, k, mm, BASE + 103 * P, 10 * P, 0).map_err(for_now)
                    }
                },
                |mm| {
                    assert_eq!(mm.locked_vm.get(), if seal { 0 } else { 10 });
                    assert_eq!((103..113).filter(|p| bytes::<K>(mm, *p).is_some()).count(), if seal { 0 } else { 10 });
                    assert_eq!(mm.map_count.get(), 23);
                },
            );
            assert!(refused >= 2 && failed >= 2, "{refused} {failed}");
        }
    });
}

fn moving<K: Kconfig<A = Native>>(boot: Boot) {
    const FIXED: u32 = mremap::MREMAP_MAYMOVE | mremap::MREMAP_FIXED;
    const PAGES: [u64; 4] = [400, 511, 600, 1100];
    with_failures::<K>(boot, |cpu, k| {
        // Entry by entry, by whole tables, with the source staying, growing on the way, over something.
        for (at, n, to_n, to, flags) in [
            (300, 900, 900, 70_000, FIXED),
            (300, 900, 900, 300 + 512 * 600, FIXED),
            (0, 1300, 1300, 512 * 600, FIXED),
            (300, 900, 900, 70_000, FIXED | mremap::MREMAP_DONTUNMAP),
            (300, 900, 1000, 70_000, FIXED),
            (300, 900, 900, 1500, FIXED),
        ] {
            let there = |mm: MmPtr<K>, base: u64| PAGES.map(|p| bytes::<K>(mm, base + p).map(|b| b[3]));
            let want = PAGES.map(|p| Some(p as u8));
            let (refused, failed) = each_allocation(
                cpu,
                k,
                |mm| {
                    map(cpu, k, mm, 0, 1300).unwrap();
                    for p in PAGES {
                        write(cpu, k, mm, p);
                        bytes::<K>(mm, p).unwrap()[3] = p as u8;
                    }
                    vm_mmap(cpu, k, mm, Some(BASE + 2000 * P), 20 * P, VM_READ).unwrap();
                },
                |mm| {
                    let r = sys_mremap(cpu, k, mm, BASE + at * P, n * P, to_n * P, flags, BASE + to * P);
                    if r.is_err() {
                        assert_eq!(there(mm, 0), want, "everything is where it was");
                    }
                    r.map(drop)
                },
                |mm| assert_eq!(there(mm, to - at), want, "{at} {n} {to_n} {to} {flags}"),
            );
            assert!(refused >= 3 && failed >= 3, "{at} {n} {to}: {refused} {failed}");
        }
    });
}

fn growing<K: Kconfig<A = Native>>(boot: Boot) {
    with_failures::<K>(boot, |cpu, k| {
        // Into a hole, and up to a neighbour whose anon_vma the survivor must take over.
        for (to_n, faulted) in [(3, false), (3, true), (2, false)] {
            each_allocation(
                cpu,
                k,
                |mm| {
                    comb(cpu, k, mm, 30);
                    if faulted {
                        write(cpu, k, mm, 33);
                    }
                },
                |mm| sys_mremap(cpu, k, mm, BASE + 30 * P, 2 * P, to_n * P, 0, 0).map(drop),
                |mm| {
                    let pages: u64 = layout(cpu, k, mm).iter().map(|(a, b)| b - a).sum();
                    assert_eq!(pages, 60 + to_n - 2);
                },
            );
        }
    });
}

/// Files that allocate and in which tests they are refused.
const SITES: [Held; 18] = [
    ("maple_tree/dup.rs", &["mm::tests::fail_nth::forking_unwinds"]),
    (
        "maple_tree/prealloc.rs",
        &[
            "mm::tests::fail_nth::stores_into_a_tree_unwind",
            "mm::tests::fail_nth::mapping_unwinds",
            "mm::tests::fail_nth::unmapping_unwinds",
        ],
    ),
    ("mm/file.rs", &["mm::tests::fail_nth::faults_in_files_unwind"]),
    ("mm/filemap.rs", &["mm::tests::fail_nth::faults_in_files_unwind"]),
    (
        "mm/fork.rs",
        &[
            "mm::tests::fail_nth::a_new_mm_unwinds",
            "mm::tests::fail_nth::a_new_mm_without_cells_unwinds",
            "mm::tests::fail_nth::forking_unwinds",
        ],
    ),
    ("mm/memory.rs", &["mm::tests::fail_nth::faulting_unwinds"]),
    // Over the page of zeros, over one that a child shares.
    ("mm/memory/wp.rs", &["mm::tests::fail_nth::faulting_unwinds"]),
    // A luxury.
    ("mm/mmu_gather.rs", &["mm::tests::fail_nth::dropping_pages_and_exit_need_no_memory"]),
    (
        "mm/pgtable.rs",
        &[
            "mm::tests::fail_nth::faulting_unwinds",
            "mm::tests::fail_nth::a_new_mm_unwinds",
            "mm::tests::fail_nth::moving_unwinds",
            "mm::tests::fail_nth::forking_unwinds",
        ],
    ),
    (
        "mm/rmap.rs",
        &[
            "mm::tests::fail_nth::faulting_unwinds",
            "mm::tests::fail_nth::forking_unwinds",
            "mm::tests::fail_nth::growing_unwinds",
        ],
    ),
    (
        "mm/vma_init.rs",
        &[
            "mm::tests::fail_nth::mapping_unwinds",
            "mm::tests::fail_nth::mapping_over_others_unwinds",
            "mm::tests::fail_nth::unmapping_unwinds",
            "mm::tests::fail_nth::forking_unwinds",
        ],
    ),
    ("mm/xarray.rs", &["mm::tests::fail_nth::faults_in_files_unwind"]),
    // A luxury: objects are chained instead. Kernels with kfree_rcu.
    (
        "slab/kvfree_rcu.rs",
        &["mm::tests::fail_nth::stores_into_a_tree_unwind", "mm::tests::fail_nth::unmapping_unwinds"],
    ),
    // A luxury: the object is not charged.
    ("slab/memcg.rs", &["slab::memcg::tests::an_object_whose_array_cannot_be_had_is_not_charged"]),
    // The callers' own, passed on.
    ("slab/page_alloc.rs", &["slab::invariants::out_of_memory_is_null_and_leaks_nothing"]),
    // Every operation under `@sheaves`: without a sheaf, straight to the slabs.
    (
        "slab/sheaf.rs",
        &[
            "mm::tests::fail_nth::mapping_unwinds",
            "slab::sheaf_invariants::without_memory_for_sheaves_the_main_one_is_flushed",
        ],
    ),
    ("slab/sheaf_bulk.rs", &["mm::tests::fail_nth::stores_into_a_tree_unwind"]),
    // Every operation: a new slab, first of its order, then of the least.
    (
        "slab/slub.rs",
        &["mm::tests::fail_nth::mapping_unwinds", "slab::invariants::out_of_memory_is_null_and_leaks_nothing"],
    ),
];

/// Calls of each that allocate.
const CALLS_OF: [(&str, usize); 19] = [
    ("maple_tree/dup.rs", 1),
    ("maple_tree/prealloc.rs", 4),
    ("mm/file.rs", 3),
    ("mm/filemap.rs", 1),
    ("mm/fork.rs", 2),
    ("mm/memory.rs", 1),
    ("mm/memory/wp.rs", 2),
    ("mm/mmu_gather.rs", 1),
    ("mm/pgtable.rs", 3),
    ("mm/rmap.rs", 2),
    // Not refused: at boot.
    ("mm/util.rs", 1),
    ("mm/vma_init.rs", 2),
    ("mm/xarray.rs", 1),
    ("slab/kvfree_rcu.rs", 2),
    ("slab/memcg.rs", 1),
    ("slab/page_alloc.rs", 2),
    ("slab/sheaf.rs", 2),
    ("slab/sheaf_bulk.rs", 1),
    ("slab/slub.rs", 2),
];

#[test]
fn every_allocation_site_is_known() {
    const CALLS: [&str; 11] = [
        "kmem_cache_alloc(",
        "kmem_cache_alloc_node(",
        "kmem_cache_alloc_bulk(",
        "kmem_cache_prefill_sheaf(",
        "kmem_cache_refill_sheaf(",
        "alloc_page(",
        "alloc_user_page(",
        "alloc_zeroed_page(",
        "alloc_pages(",
        "alloc_pages_node(",
        "percpu_counter_init_many(",
    ];
    fn files(dir: &std::path::Path, out: &mut Vec<std::path::PathBuf>) {
        for e in std::fs::read_dir(dir).unwrap() {
            let p = e.unwrap().path();
            if p.is_dir() { files(&p, out) } else { out.push(p) }
        }
    }
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    ["mm", "maple_tree", "slab", "sync", "rcu"].iter().for_each(|d| files(&src.join(d), &mut all));
    let mut found: Vec<(String, usize)> = Vec::new();
    for f in all {
        let name = f.strip_prefix(&src).unwrap().to_str().unwrap().to_string();
        if ["test", "model", "torture", "invariants", "oracle", "golden"].iter().any(|t| name.contains(t)) {
            continue;
        }
        let text = std::fs::read_to_string(&f).unwrap();
        // Tests at the foot of a file are no sites; nor are definitions and comments.
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
        let code = text.lines().map(str::trim_start).filter(|l| !l.starts_with("//") && !l.contains("fn "));
        // A longer name ends with a shorter one.
        let called = |l: &str, c: &str| {
            l.match_indices(c).filter(|(i, _)| !l[..*i].ends_with(|b: char| b == '_' || b.is_alphanumeric())).count()
        };
        let n: usize = code.map(|l| CALLS.iter().map(|c| called(l, c)).sum::<usize>()).sum();
        if n > 0 {
            found.push((name, n));
        }
    }
    found.sort();
    let known: Vec<_> = CALLS_OF.iter().map(|(f, n)| (f.to_string(), *n)).collect();
    assert_eq!(found, known, "a site that nobody has thought of, or one that is gone");
    assert_held(&SITES, found.into_iter().map(|(f, _)| f).filter(|f| f != "mm/util.rs"));
}
