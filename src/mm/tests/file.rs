// SPDX-License-Identifier: GPL-2.0-only
//! Mappings of files and shared memory: what faults bring, whose writes are seen where, under which lock a fault ends,
//! and that files go with their last mapping.

use super::*;
use crate::mm::FaultError;
use crate::mm::dup_mm;
use crate::mm::file::{File, FileKind, FileSpec, file_open, fput, vm_file_of};
use crate::mm::folio::{PG_DIRTY, page_folio};
use crate::mm::gup::__mm_populate;
use crate::mm::madvise::MADV_POPULATE_WRITE;
use crate::mm::memory::get_mm_counter_sum;
use crate::mm::mm_types::{MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, MmapArgs, PROT_READ, PROT_WRITE, do_mmap};
use crate::mm::pgtable::PAGE_DIRTY;
use crate::mm::syscall::{Call, Process, syscall};
use crate::mm::vma::vma_lookup;
use crate::mm::{madvise_dontneed, sys_madvise, vm_munmap};

type FilePtr = crate::arch::arena::KRef<File<Native>>;

on_every_variant! {
    fn shared_mappings_see_each_others_writes = shared;
    fn private_mappings_keep_theirs = private;
    fn shared_anonymous_memory_is_shared_with_a_child = shared_anonymous;
    fn what_is_written_without_a_fault_is_dirty = dirty;
    fn nothing_lies_behind_the_end_of_a_file = end_of_file;
    fn which_lock_a_fault_ends_under = locks;
    fn a_read_fault_maps_what_is_near_and_in_the_cache = fault_around;
    fn a_file_goes_with_its_last_mapping = references;
    fn populate_reads_shared_pages_and_copies_private_ones = populate;
}

fn map<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    p: u64,
    n: u64,
    file: Option<(FilePtr, u64)>,
    flags: u32,
) {
    let prot = PROT_READ | PROT_WRITE;
    let flags = flags | MAP_FIXED | if file.is_none() { MAP_ANONYMOUS } else { 0 };
    let (file, offset) = file.map_or((None, 0), |(f, page)| (Some(f), page * P));
    do_mmap(cpu, k, mm, &MmapArgs { addr: BASE + p * P, len: n * P, prot, flags, file, offset }).unwrap();
}

fn put<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64, value: u8) {
    let mut p = Process::new(mm);
    syscall(cpu, k, &mut p, &Call::Write { addr: BASE + page * P + 5, value }).expect("writable");
}

fn get<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64) -> u8 {
    let mut p = Process::new(mm);
    syscall(cpu, k, &mut p, &Call::Read { addr: BASE + page * P + 5 }).expect("readable") as u8
}

fn rss<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>) -> [i64; 3] {
    [MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES].map(|c| get_mm_counter_sum(cpu, k, mm, c))
}

fn shared<K: Kconfig<A = Native>>(boot: Boot) {
    for kind in [FileKind::Regular, FileKind::Memfd] {
        with_mm::<K>(boot, |cpu, k, mm| {
            let file = file_open(cpu, k, &FileSpec { kind, ..FileSpec::regular(8 * P, 3) }).unwrap();
            map(cpu, k, mm, 0, 8, Some((file, 0)), MAP_SHARED);
            map(cpu, k, mm, 20, 4, Some((file, 2)), MAP_SHARED);
            assert_eq!(get(cpu, k, mm, 2), 3, "what the file held");
            put(cpu, k, mm, 2, 7);
            assert_eq!((get(cpu, k, mm, 20), get(cpu, k, mm, 21)), (7, 3));
            put(cpu, k, mm, 23, 8);
            assert_eq!(get(cpu, k, mm, 5), 8);
            // A page that was read first and written then.
            assert_eq!(get(cpu, k, mm, 6), 3);
            put(cpu, k, mm, 6, 9);
            assert_eq!(get(cpu, k, mm, 6), 9);
            let child = dup_mm(cpu, k, mm).unwrap();
            put(cpu, k, child, 0, 11);
            assert_eq!(get(cpu, k, mm, 0), 11);
            mmput(cpu, k, child);
            let [f, a, s] = rss(cpu, k, mm);
            assert_eq!((a, if kind == FileKind::Regular { s } else { f }), (0, 0));
            // Pages outlive their entries.
            madvise_dontneed(cpu, k, mm, BASE, 8 * P).unwrap();
            assert_eq!((get(cpu, k, mm, 2), get(cpu, k, mm, 3)), (7, 3));
            vm_munmap(cpu, k, mm, BASE, 8 * P).unwrap();
            map(cpu, k, mm, 0, 8, Some((file, 0)), MAP_SHARED);
            assert_eq!((get(cpu, k, mm, 0), get(cpu, k, mm, 2), get(cpu, k, mm, 6)), (11, 7, 9));
            fput(cpu, k, file);
            vm_munmap(cpu, k, mm, BASE, 30 * P).unwrap();
            assert_eq!(rss(cpu, k, mm), [0; 3]);
        });
    }
}

fn private<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let file = file_open(cpu, k, &FileSpec::regular(4 * P, 3)).unwrap();
        map(cpu, k, mm, 0, 4, Some((file, 0)), MAP_PRIVATE);
        map(cpu, k, mm, 10, 4, Some((file, 0)), MAP_SHARED);
        // Written first, and read first.
        put(cpu, k, mm, 0, 20);
        assert_eq!(get(cpu, k, mm, 1), 3);
        put(cpu, k, mm, 1, 21);
        assert_eq!((0..4).map(|p| get(cpu, k, mm, p)).collect::<Vec<_>>(), [20, 21, 3, 3]);
        assert_eq!((0..4).map(|p| get(cpu, k, mm, 10 + p)).collect::<Vec<_>>(), [3; 4]);
        assert_eq!(rss(cpu, k, mm), [6, 2, 0]);
        // What was not written yet still is the file's.
        put(cpu, k, mm, 12, 22);
        assert_eq!(get(cpu, k, mm, 2), 22);
        let child = dup_mm(cpu, k, mm).unwrap();
        assert_eq!(rss(cpu, k, child)[1], 2, "copies are inherited");
        put(cpu, k, child, 0, 30);
        put(cpu, k, child, 3, 31);
        assert_eq!((get(cpu, k, mm, 0), get(cpu, k, mm, 3), get(cpu, k, child, 1)), (20, 3, 21));
        mmput(cpu, k, child);
        // Dropped copies are the file's pages again.
        madvise_dontneed(cpu, k, mm, BASE, 4 * P).unwrap();
        assert_eq!((0..4).map(|p| get(cpu, k, mm, p)).collect::<Vec<_>>(), [3, 3, 22, 3]);
        fput(cpu, k, file);
    });
}

fn shared_anonymous<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        map(cpu, k, mm, 0, 4, None, MAP_SHARED);
        map(cpu, k, mm, 4, 4, None, MAP_SHARED);
        assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 8)], "a file each");
        put(cpu, k, mm, 0, 1);
        let child = dup_mm(cpu, k, mm).unwrap();
        assert_eq!(pte_lookup::<K>(child, BASE), 0, "a fault finds it again");
        put(cpu, k, child, 0, 2);
        put(cpu, k, child, 5, 3);
        assert_eq!((get(cpu, k, mm, 0), get(cpu, k, mm, 5), get(cpu, k, mm, 1)), (2, 3, 0));
        mmput(cpu, k, child);
        assert_eq!(rss(cpu, k, mm), [0, 0, 3]);
    });
}

/// A write that takes no fault is seen in the entry, and by the page when the entry goes; populating for writing marks the page
/// itself.
fn dirty<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let dirty = |page: u64| pte_lookup::<K>(mm, BASE + page * P) & PAGE_DIRTY != 0;
        let folio_dirty = |page: u64| {
            page_folio::<Native>((pte_lookup::<K>(mm, BASE + page * P) & PTE_PFN_MASK) as *mut u8).test(PG_DIRTY)
        };
        map(cpu, k, mm, 0, 4, None, MAP_SHARED);
        for page in 0..3 {
            assert_eq!((get(cpu, k, mm, page), dirty(page), folio_dirty(page)), (0, false, false));
        }
        put(cpu, k, mm, 0, 1);
        assert!(dirty(0) && !folio_dirty(0), "nobody but the processor has heard of it");
        sys_madvise(cpu, k, mm, BASE + P, P, MADV_POPULATE_WRITE).unwrap();
        assert!(!dirty(1) && folio_dirty(1));
        // The entries go, the pages stay.
        let page = |p: u64| (pte_lookup::<K>(mm, BASE + p * P) & PTE_PFN_MASK) as *mut u8;
        let pages = [0, 1, 2].map(page);
        madvise_dontneed(cpu, k, mm, BASE, 4 * P).unwrap();
        assert_eq!(pages.map(|p| page_folio::<Native>(p).test(PG_DIRTY)), [true, true, false]);
    });
}

fn end_of_file<K: Kconfig<A = Native>>(boot: Boot) {
    for kind in [FileKind::Regular, FileKind::Memfd] {
        with_mm::<K>(boot, |cpu, k, mm| {
            let file = file_open(cpu, k, &FileSpec { kind, ..FileSpec::regular(2 * P + 100, 9) }).unwrap();
            map(cpu, k, mm, 0, 5, Some((file, 0)), MAP_SHARED);
            map(cpu, k, mm, 10, 5, Some((file, 0)), MAP_PRIVATE);
            for base in [0, 10] {
                let byte = |at| {
                    let mut p = Process::new(mm);
                    syscall(cpu, k, &mut p, &Call::Read { addr: BASE + base * P + at })
                };
                assert_eq!(
                    (byte(2 * P + 99), byte(2 * P + 100)),
                    (Ok(9), Ok(0)),
                    "the last page is filled up with zeros"
                );
                for write in [false, true] {
                    let r = do_user_addr_fault(cpu, k, mm, BASE + (base + 3) * P, write);
                    assert_eq!(r, Err(FaultError::Sigbus));
                }
            }
            let alloc = cpu.counters.get(VmEvent::Pgalloc);
            assert!(do_user_addr_fault(cpu, k, mm, BASE + 13 * P, true).is_err());
            assert_eq!(cpu.counters.get(VmEvent::Pgalloc) - alloc, 1, "the page for the copy, which goes again");
            fput(cpu, k, file);
        });
    }
}

/// Per fault: finished under the VMA's lock, or begun under it and finished under `mmap_lock`.
fn locks<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let regular = file_open(cpu, k, &FileSpec::regular(64 * P, 1)).unwrap();
        let memfd = file_open(cpu, k, &FileSpec::memfd(64 * P)).unwrap();
        map(cpu, k, mm, 0, 64, Some((regular, 0)), MAP_SHARED);
        map(cpu, k, mm, 100, 64, Some((memfd, 0)), MAP_SHARED);
        let ends = |page: u64, write| {
            let n =
                || [VmEvent::VmaLockSuccess, VmEvent::VmaLockRetry, VmEvent::VmaLockAbort].map(|e| cpu.counters.get(e));
            let before = n();
            do_user_addr_fault(cpu, k, mm, BASE + page * P, write).unwrap();
            let after = n();
            (after[0] - before[0], after[1] - before[1], after[2] - before[2])
        };
        assert_eq!(ends(0, false), (0, 1, 0), "the page must be read in, which may sleep");
        assert_eq!(cpu.counters.get(VmEvent::Pgmajfault), 1);
        madvise_dontneed(cpu, k, mm, BASE, 64 * P).unwrap();
        assert_eq!(ends(0, false), (1, 0, 0), "now it is there");
        assert_eq!(ends(0, true), (1, 0, 0), "written: completed with the lock dropped");
        assert_eq!(ends(40, true), (0, 1, 0));
        assert_eq!(ends(100, false), (1, 0, 0), "shared memory is not read in");
        assert_eq!(ends(101, true), (1, 0, 0));
        assert_eq!(cpu.counters.get(VmEvent::Pgmajfault), 2);
        assert_eq!(cpu.counters.get(VmEvent::RetryIo), 2);
        for file in [regular, memfd] {
            fput(cpu, k, file);
        }
    });
}

fn fault_around<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let file = file_open(cpu, k, &FileSpec::memfd(64 * P)).unwrap();
        map(cpu, k, mm, 0, 64, Some((file, 0)), MAP_SHARED);
        let there = || (0..64).filter(|p| pte_lookup::<K>(mm, BASE + p * P) != 0).collect::<Vec<u64>>();
        for p in [3, 15, 16, 17, 31, 32] {
            put(cpu, k, mm, p, p as u8);
        }
        madvise_dontneed(cpu, k, mm, BASE, 64 * P).unwrap();
        assert!(there().is_empty());
        assert_eq!(get(cpu, k, mm, 17), 17);
        assert_eq!(there(), [16, 17, 31], "of 16 pages around it, those in the cache");
        assert_eq!(rss(cpu, k, mm), [0, 0, 3]);
        // Where the fault's own page is not there, its neighbours are mapped all the same.
        assert_eq!(get(cpu, k, mm, 1), 0);
        assert_eq!(there(), [1, 3, 15, 16, 17, 31]);
        // Not across the mapping's edges.
        vm_munmap(cpu, k, mm, BASE, 64 * P).unwrap();
        map(cpu, k, mm, 16, 2, Some((file, 16)), MAP_SHARED);
        assert_eq!(get(cpu, k, mm, 16), 16);
        assert_eq!(there(), [16, 17]);
        fput(cpu, k, file);
    });
}

fn references<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let file = file_open(cpu, k, &FileSpec::memfd(16 * P)).unwrap();
        let mapping = file.f_mapping();
        let counts = || (file.f_count.load(Relaxed), mapping.i_mmap.get(), mapping.i_mmap_writable.load(Relaxed));
        map(cpu, k, mm, 0, 8, Some((file, 0)), MAP_SHARED);
        assert_eq!(counts(), (2, 1, 1));
        // Merged, split, private, inherited.
        map(cpu, k, mm, 8, 4, Some((file, 8)), MAP_SHARED);
        assert_eq!((layout(cpu, k, mm), counts()), (vec![(0, 12)], (2, 1, 1)));
        vm_munmap(cpu, k, mm, BASE + 4 * P, P).unwrap();
        assert_eq!(counts(), (3, 2, 2));
        map(cpu, k, mm, 20, 4, Some((file, 0)), MAP_PRIVATE);
        assert_eq!(counts(), (4, 3, 2));
        let child = dup_mm(cpu, k, mm).unwrap();
        assert_eq!(counts(), (7, 6, 4));
        mmput(cpu, k, child);
        assert_eq!(counts(), (4, 3, 2));
        put(cpu, k, mm, 0, 1);
        put(cpu, k, mm, 20, 2);
        let freed = cpu.counters.get(VmEvent::Pgfree);
        fput(cpu, k, file);
        assert_eq!(get(cpu, k, mm, 0), 1);
        let file_of = vm_file_of::<K>(vma_lookup(cpu, k, mm, BASE).unwrap()).unwrap();
        assert_eq!(file_of.as_ptr(), file.as_ptr());
        vm_munmap(cpu, k, mm, BASE, 30 * P).unwrap();
        // Page 0 of the file, the copy of it, and tables.
        assert!(cpu.counters.get(VmEvent::Pgfree) - freed >= 2);
    });
}

fn populate<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let file = file_open(cpu, k, &FileSpec::regular(8 * P, 4)).unwrap();
        map(cpu, k, mm, 0, 8, Some((file, 0)), MAP_SHARED);
        map(cpu, k, mm, 20, 8, Some((file, 0)), MAP_PRIVATE);
        __mm_populate(cpu, k, mm, BASE, 30 * P, false).unwrap();
        assert_eq!(rss(cpu, k, mm), [8, 8, 0]);
        assert!((0..8).all(|p| pte_lookup::<K>(mm, BASE + p * P) & PAGE_RW == 0), "not dirtied for nothing");
        assert!((20..28).all(|p| pte_lookup::<K>(mm, BASE + p * P) & PAGE_RW != 0));
        assert_eq!((get(cpu, k, mm, 0), get(cpu, k, mm, 27)), (4, 4));
        // Behind the end of the file.
        map(cpu, k, mm, 40, 4, Some((file, 6)), MAP_SHARED);
        assert_eq!(__mm_populate(cpu, k, mm, BASE + 40 * P, 4 * P, false), Err(crate::cpu::Errno::EFAULT));
        fput(cpu, k, file);
    });
}
