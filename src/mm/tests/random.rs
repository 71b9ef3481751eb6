// SPDX-License-Identifier: GPL-2.0-only
//! Random operations in a tree of some hundred VMAs, compared with a table of one entry a page after each: without
//! faults, VMAs are the longest runs of pages that go on in flags, file and page offset, so whatever a merge or a
//! cursor that goes on where it stands gets wrong shows.

use super::*;
use crate::mm::file::{FileSpec, file_open, file_word, fput};
use crate::mm::mm_types::{
    VM_ACCESS_FLAGS, VM_ACCOUNT, VM_DONTCOPY, VM_DONTDUMP, VM_DROPPABLE, VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE,
    VM_MAYWRITE, VM_NOHUGEPAGE, VM_NORESERVE, VM_RAND_READ, VM_SEQ_READ, VM_WIPEONFORK,
};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_DROPPABLE, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, MAP_STACK};
use crate::mm::{sys_brk, vm_munmap};

on_every_variant! {
    fn the_tree_is_what_a_table_of_pages_says = against_a_table;
}

const PAGES: usize = 700;
const ROUNDS: usize = 5000;

/// A page of the table: what must be equal, or go on, for two pages to be in one VMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Page {
    flags: u64,
    /// File; of anonymous memory 0, of shared anonymous memory a number of its own.
    file: u64,
    pgoff: u64,
}

impl Page {
    fn goes_on(self, next: Page) -> bool {
        self.flags == next.flags && self.file == next.file && self.pgoff + 1 == next.pgoff
    }
}

/// The runs of `table` as (first page, pages, flags, whether there is a file, page offset in it).
fn runs(table: &[Page]) -> Vec<(usize, usize, u64, bool, u64)> {
    let mut out = Vec::new();
    let mut i = 0;
    while i < table.len() {
        let mut n = 1;
        while i + n < table.len() && table[i + n - 1].goes_on(table[i + n]) {
            n += 1;
        }
        if table[i] != Page::default() {
            let p = table[i];
            out.push((i, n, p.flags, p.file != 0, if p.file != 0 { p.pgoff } else { 0 }));
        }
        i += n;
    }
    out
}

fn against_a_table<K: Kconfig<A = Native>>(boot: Boot) {
    with_rules::<K>(boot, |cpu, k, mm| {
        const MAY: u64 = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;
        let files = [0, 1].map(|_| file_open(cpu, k, &FileSpec::memfd(1 << 20)).unwrap());
        let mut table = [Page::default(); PAGES];
        let base_brk = mm.start_brk.get();
        let mut objects = 1 << 60;
        let mut rng = 7u64;
        let mut random = |n: u64| {
            rng = crate::cpu::splitmix64(rng);
            rng % n
        };
        let mut most = 0;
        for round in 0..ROUNDS {
            // Mostly small ranges: many VMAs. Now and then a large one: stores over several nodes.
            let len = if random(64) == 0 { 1 + random(200) } else { 1 + random(3) };
            let at = random(PAGES as u64 - len);
            let range = at as usize..(at + len) as usize;
            let place = (BASE + at * P, len * P);
            let what = random(20);
            match what {
                0..6 => {
                    let prot = [1, 3, 5, 0][random(4) as usize];
                    let (map, vm) = [
                        (MAP_PRIVATE, 0),
                        (MAP_PRIVATE, 0),
                        (MAP_PRIVATE | MAP_NORESERVE, VM_NORESERVE),
                        (MAP_PRIVATE | MAP_STACK, VM_NOHUGEPAGE),
                        (MAP_DROPPABLE, VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP),
                    ][random(5) as usize];
                    let flags = MAP_ANONYMOUS | MAP_FIXED | map;
                    assert_eq!(map_args(cpu, k, mm, place, prot, flags, None), Ok(place.0), "round {round}");
                    let mut flags = u64::from(prot) | MAY | vm;
                    if flags & (VM_WRITE | VM_NORESERVE) == VM_WRITE {
                        flags |= VM_ACCOUNT;
                    }
                    for i in range {
                        table[i] = Page { flags, file: 0, pgoff: place.0 / P - at + i as u64 };
                    }
                }
                6..9 => {
                    let file = files[random(2) as usize];
                    // Offsets that often go on in the neighbour's.
                    let page = (at + [0, 0, 1][random(3) as usize]) % 64;
                    let shared = random(2) == 0;
                    let flags = MAP_FIXED | if shared { MAP_SHARED } else { MAP_PRIVATE };
                    let r = map_args(cpu, k, mm, place, 3, flags, Some((file, page)));
                    assert_eq!(r, Ok(place.0), "round {round}");
                    let flags = RW | MAY | if shared { VM_SHARED | VM_MAYSHARE } else { VM_ACCOUNT };
                    for (n, i) in range.enumerate() {
                        table[i] = Page { flags, file: file_word(file), pgoff: page + n as u64 };
                    }
                }
                9 => {
                    let flags = MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS;
                    assert_eq!(map_args(cpu, k, mm, place, 1, flags, None), Ok(place.0), "round {round}");
                    objects += 1;
                    let flags = VM_READ | MAY | VM_SHARED | VM_MAYSHARE;
                    for (n, i) in range.enumerate() {
                        table[i] = Page { flags, file: objects, pgoff: n as u64 };
                    }
                }
                10..14 => {
                    vm_munmap(cpu, k, mm, place.0, place.1).unwrap();
                    table[range].fill(Page::default());
                }
                14..19 => {
                    let bits =
                        [VM_DONTDUMP, VM_DONTCOPY, VM_WIPEONFORK, VM_RAND_READ, VM_SEQ_READ, VM_WRITE, VM_ACCESS_FLAGS];
                    let bit = bits[random(bits.len() as u64) as usize];
                    let change = |f: u64| if what < 17 { f | bit } else { f & !bit };
                    let r = modify(cpu, k, mm, (at, len), change);
                    let hole = range.clone().find(|i| table[*i] == Page::default());
                    assert_eq!(r.is_err(), hole.is_some(), "round {round}");
                    for page in &mut table[range.start..hole.unwrap_or(range.end)] {
                        page.flags = change(page.flags);
                    }
                }
                _ => {
                    let to = base_brk + at * P;
                    assert_eq!(sys_brk(cpu, k, mm, to), to);
                }
            }
            let mut want = runs(&table);
            let heap = (mm.brk.get() - base_brk) / P;
            if heap > 0 {
                want.push((usize::MAX, heap as usize, RW | MAY | VM_ACCOUNT, false, 0));
            }
            let got: Vec<_> = crate::mm::vma_infos(cpu, k, mm, &files)
                .iter()
                .map(|v| {
                    let first = if v.start == base_brk { usize::MAX } else { ((v.start - BASE) / P) as usize };
                    (first, ((v.end - v.start) / P) as usize, v.flags, v.file.is_some(), v.offset / P)
                })
                .collect();
            assert_eq!(got, want, "round {round}: {len} pages at {at}");
            most = most.max(got.len());
            check_tree(cpu, k, mm);
            if round % 100 == 0 {
                let charged = crate::mm::util::vm_memory_committed(cpu, k);
                assert_eq!(charged, crate::mm::util::accounted_pages(cpu, k, mm) as i64, "round {round}");
            }
        }
        assert!(most > 150, "a tree of three levels: {most} VMAs");
        vm_munmap(cpu, k, mm, BASE, PAGES as u64 * P).unwrap();
        for f in files {
            assert_eq!(f.f_count.load(Relaxed), 1, "references of VMAs");
            assert_eq!(f.f_mapping().i_mmap_writable.load(Relaxed), 0);
            fput(cpu, k, f);
        }
    });
}
