// SPDX-License-Identifier: GPL-2.0-only
//! Where mappings go (vma-ops.md 10).

use super::*;
use crate::mm::file::{FileSpec, file_open, fput};
use crate::mm::mm_types::{CAP_SYS_RAWIO, MMAP_BASE, MMAP_MIN_ADDR, START_BRK, TASK_SIZE, TASK_UNMAPPED_BASE};
use crate::mm::mmap::*;
use crate::mm::unmapped_area::STACK_GUARD_GAP;
use crate::mm::{sys_brk, vm_munmap};

on_every_variant! {
    fn a_stack_keeps_a_gap_below_itself = guard_gap;
    fn hints_are_taken_or_ignored = hints;
    fn low_addresses_are_found_from_the_bottom = arena_32bit;
    fn what_does_not_fit_below_goes_above = bottom_up;
    fn large_sizes_are_aligned = huge;
    fn a_heap_keeps_away_from_a_stack = heap;
    fn a_search_finds_what_a_list_of_holes_says = search;
}

const ANON: u32 = MAP_PRIVATE | MAP_ANONYMOUS;

fn map<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    pages: u64,
    flags: u32,
) -> Result<u64, Errno> {
    map_args(cpu, k, mm, (addr, pages * P), 3, ANON | flags, None)
}

fn guard_gap<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let stack = map(cpu, k, mm, 0, 1, MAP_GROWSDOWN).unwrap();
        assert_eq!(stack, MMAP_BASE - P, "no gap above anything");
        let below = map(cpu, k, mm, 0, 1, 0).unwrap();
        assert_eq!(below, stack - STACK_GUARD_GAP - P);
        // A hint into the gap is ignored, a fixed address is not.
        assert_eq!(map(cpu, k, mm, stack - 2 * P, 1, 0), Ok(below - P));
        assert_eq!(map(cpu, k, mm, stack - 2 * P, 1, MAP_FIXED), Ok(stack - 2 * P));
        assert_eq!(map(cpu, k, mm, 0, 1, 0), Ok(below - 2 * P), "the gap stays, whatever is in it");
    });
}

fn hints<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let top = |n: u64| Ok(MMAP_BASE - n * P);
        assert_eq!(map(cpu, k, mm, BASE + 0xfff, 2, 0), Ok(BASE), "rounded down");
        assert_eq!(map(cpu, k, mm, 1, 1, 0), top(1), "less than a page is none");
        assert_eq!(map(cpu, k, mm, P, 1, 0), Ok(MMAP_MIN_ADDR), "raised to the lowest");
        assert_eq!(map(cpu, k, mm, BASE - P, 1, 0), Ok(BASE - P));
        assert_eq!(map(cpu, k, mm, BASE - 2 * P, 2, 0), top(3), "the second page is taken");
        assert_eq!(map(cpu, k, mm, BASE + P, 1, 0), top(4));
        assert_eq!(map(cpu, k, mm, BASE + 2 * P, 1, 0), Ok(BASE + 2 * P));
        assert_eq!(map(cpu, k, mm, TASK_SIZE - P, 1, 0), Ok(TASK_SIZE - P));
        assert_eq!(map(cpu, k, mm, TASK_SIZE - P, 2, 0), top(6), "beyond the end");
        assert_eq!(map(cpu, k, mm, u64::MAX - 5, 1, 0), top(7));
        assert_eq!(map(cpu, k, mm, TASK_SIZE - P, 2, MAP_FIXED), Err(Errno::ENOMEM));
        assert_eq!(map(cpu, k, mm, MMAP_MIN_ADDR - P, 1, MAP_FIXED), Err(Errno::EPERM));
        mm.caps.set(CAP_SYS_RAWIO);
        assert_eq!(map(cpu, k, mm, 0, 1, MAP_FIXED), Ok(0));
        assert_eq!(map(cpu, k, mm, BASE + 5, 1, MAP_FIXED), Err(Errno::EINVAL));
        assert_eq!(map(cpu, k, mm, BASE + 2 * P, 1, MAP_FIXED_NOREPLACE), Err(Errno::EEXIST));
        assert_eq!(map(cpu, k, mm, BASE + 3 * P, 1, MAP_FIXED_NOREPLACE), Ok(BASE + 3 * P));
    });
}

fn arena_32bit<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        const LOW: u64 = 0x4000_0000;
        let low = |addr: u64, n: u64| map(cpu, k, mm, addr, n, MAP_32BIT | MAP_NORESERVE);
        assert_eq!(low(0, 2), Ok(LOW));
        assert_eq!(low(0, 2), Ok(LOW + 2 * P));
        vm_munmap(cpu, k, mm, LOW + P, P).unwrap();
        assert_eq!(low(0, 2), Ok(LOW + 4 * P));
        assert_eq!(low(0, 1), Ok(LOW + P), "the lowest hole that fits");
        assert_eq!(low(0x5000_0000, 1), Ok(0x5000_0000), "a hint within reach");
        assert_eq!(low(BASE, 1), Ok(LOW + 6 * P), "one beyond it");
        assert_eq!(low(0, 1 << 18), Err(Errno::ENOMEM), "a gigabyte, of which some is taken");
        // The arena above a stack begins behind it.
        assert_eq!(map(cpu, k, mm, LOW + 16 * P, 1, MAP_GROWSDOWN | MAP_FIXED), Ok(LOW + 16 * P));
        assert_eq!(low(0, 2), Ok(LOW + 17 * P));
        let above = map(cpu, k, mm, 0, 1, MAP_ABOVE4G).unwrap();
        assert_eq!(above, MMAP_BASE - P);
    });
}

fn bottom_up<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        mm.mmap_base.set(0x2_0000_0000);
        assert_eq!(map(cpu, k, mm, 0, 4, 0), Ok(0x2_0000_0000 - 4 * P));
        let far = map(cpu, k, mm, 0, 0x3_0000_0000 / P + 1, MAP_NORESERVE).unwrap();
        assert_eq!(far, TASK_UNMAPPED_BASE);
        // Between 4 GiB and the base are less than 4 GiB.
        let above = map(cpu, k, mm, 0, 0x1_0000_0000 / P + 1, MAP_NORESERVE | MAP_ABOVE4G).unwrap();
        assert_eq!(above, TASK_UNMAPPED_BASE + 0x3_0000_0000 + P);
        assert_eq!(map(cpu, k, mm, 0, TASK_SIZE / P, MAP_NORESERVE), Err(Errno::ENOMEM));
        vm_munmap(cpu, k, mm, far, TASK_SIZE - far).unwrap();
        mm.mmap_base.set(MMAP_BASE);
    });
}

fn huge<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        const H: u64 = 2 << 20;
        let top = MMAP_BASE & !(H - 1);
        assert_eq!(map(cpu, k, mm, 0, 1, 0), Ok(MMAP_BASE - P));
        assert_eq!(map(cpu, k, mm, 0, H / P, 0), Ok(top - H), "aligned");
        assert_eq!(map(cpu, k, mm, 0, 2 * H / P, MAP_STACK), Ok(top - 3 * H), "right below");
        assert_eq!(map(cpu, k, mm, 0, 100, 0), Ok(MMAP_BASE - 101 * P), "another size is not");
        vm_munmap(cpu, k, mm, top - 3 * H, 4 * H).unwrap();
        assert_eq!(map(cpu, k, mm, 0, 1, 0), Ok(MMAP_BASE - P));
        let shared = MmapArgs { addr: 0, len: H, prot: 3, flags: MAP_SHARED | MAP_ANONYMOUS, file: None, offset: 0 };
        assert_eq!(do_mmap(cpu, k, mm, &shared), Ok(MMAP_BASE - P - H), "shared memory has no huge pages");
        // A file system with large folios aligns offset and address.
        let f = file_open(cpu, k, &FileSpec::regular(8 * H, 1)).unwrap();
        let file = MmapArgs { flags: MAP_PRIVATE, file: Some(f), offset: 3 * P, len: 2 * H, ..shared };
        let at = do_mmap(cpu, k, mm, &file).unwrap();
        assert_eq!(at % H, 3 * P);
        let small = MmapArgs { len: H - P, offset: 0, ..file };
        let at = do_mmap(cpu, k, mm, &small).unwrap();
        assert_ne!(at % H, 0, "too short for a huge page");
        fput(cpu, k, f);
    });
}

fn heap<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let stack = START_BRK + STACK_GUARD_GAP + 10 * P;
        map(cpu, k, mm, stack, 1, MAP_GROWSDOWN | MAP_FIXED).unwrap();
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + 10 * P), START_BRK, "into the page before the gap");
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + 9 * P), START_BRK + 9 * P);
        assert_eq!(sys_brk(cpu, k, mm, TASK_SIZE + P), START_BRK + 9 * P);
        assert_eq!(sys_brk(cpu, k, mm, u64::MAX), START_BRK + 9 * P);
        assert_eq!(sys_brk(cpu, k, mm, START_BRK - 1), START_BRK + 9 * P);
    });
}

/// Random mappings without an address, some of them stacks, compared with a list of what is mapped.
fn search<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        // Kept apart by alternating rights is not enough: what counts is the list.
        let mut taken: Vec<(u64, u64, bool)> = Vec::new();
        let mut rng = 3u64;
        let mut random = |n: u64| {
            rng = crate::cpu::splitmix64(rng);
            rng % n
        };
        for round in 0..1500 {
            if random(3) == 0 && !taken.is_empty() {
                let (start, end, _) = taken.swap_remove(random(taken.len() as u64) as usize);
                vm_munmap(cpu, k, mm, start, end - start).unwrap();
                continue;
            }
            let pages = 1 + if random(8) == 0 { random(600) } else { random(6) };
            let stack = random(16) == 0;
            let low = random(4) == 0;
            taken.sort_unstable();
            let len = pages * P;
            let gap = |t: &(u64, u64, bool)| if t.2 { t.0 - STACK_GUARD_GAP } else { t.0 };
            // A hole that fits, and then what the mapping behind it keeps below itself.
            let mut at = if low { 0x4000_0000 } else { MMAP_BASE - len };
            loop {
                let overlaps = |t: &&(u64, u64, bool)| t.0 < at + len && t.1 > at;
                let next = taken.iter().find(|t| t.0 >= at + len);
                let hit = if low { taken.iter().find(overlaps) } else { taken.iter().rev().find(overlaps) };
                if let Some(t) = hit {
                    at = if low { t.1 } else { t.0 - len };
                } else if let Some(t) = next.filter(|t| gap(t) < at + len) {
                    at = if low { t.1 } else { gap(t) - len };
                } else {
                    break;
                }
            }
            let want = at;
            let flags = if stack { MAP_GROWSDOWN } else { 0 } | if low { MAP_32BIT } else { 0 };
            let got = map(cpu, k, mm, 0, pages, flags).unwrap();
            assert_eq!(got, want, "round {round}: {pages} pages, stack {stack}, low {low}");
            taken.push((got, got + len, stack));
        }
        check_tree(cpu, k, mm);
    });
}
