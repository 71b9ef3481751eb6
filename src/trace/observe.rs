// SPDX-License-Identifier: GPL-2.0-only
//! What a running kernel does where kernels differ, seen by small experiments: a few calls in an empty stretch of addresses,
//! and a look at what is mapped afterwards. Nothing is concluded from a version number: stable updates move these lines.
//!
//! Whoever has a kernel to ask (the fuzzer's helper, a trace's) makes the calls; the experiments and what they mean are here.
//!
//! It cannot tell what no experiment in one process shows: which lock MADV_DONTNEED takes.

use crate::mm::mm_types::VM_MAYBE_GUARD;
use crate::mm::{Call, MmRules, VmaInfo};

const PAGE: u64 = 4096;
const RW: u32 = 3;
/// `MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED`
const MAP: u32 = 0x32;
const MADV_GUARD_INSTALL: i32 = crate::mm::madvise::MADV_GUARD_INSTALL;
/// Pages that the experiments need from their base on.
pub const PAGES: u64 = 32;

/// What came of an experiment: the results, and what is mapped at its end, with all flags.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Value or `-errno` of each call.
    pub results: Vec<i64>,
    /// VMAs from the base on.
    pub maps: Vec<VmaInfo>,
}

/// The calls of the experiments, from `base` on, where nothing is mapped.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// First address.
    pub base: u64,
}

impl At {
    /// Address of a page.
    pub fn page(self, page: u64) -> u64 {
        self.base + page * PAGE
    }
    /// Maps pages with rights.
    pub fn map(self, page: u64, pages: u64, prot: u32) -> Call {
        Call::Mmap { addr: self.page(page), len: pages * PAGE, prot, flags: MAP, fd: None, offset: 0 }
    }
    /// Writes to a page.
    pub fn touch(self, page: u64) -> Call {
        Call::Write { addr: self.page(page), value: 1 }
    }
    /// Moves pages.
    pub fn remap(self, from: u64, to: u64, pages: u64, flags: u32) -> Call {
        let len = pages * PAGE;
        Call::Mremap { addr: self.page(from), old_len: len, new_len: len, flags, new_addr: self.page(to) }
    }
    /// Advises pages.
    pub fn advise(self, page: u64, pages: u64, advice: i32) -> Call {
        Call::Madvise { addr: self.page(page), len: pages * PAGE, advice }
    }
    /// Maps pages of file 0, private.
    pub fn file(self, page: u64, pages: u64, offset: u64) -> Call {
        let (addr, len) = (self.page(page), pages * PAGE);
        Call::Mmap { addr, len, prot: RW, flags: 0x12, fd: Some(0), offset: offset * PAGE }
    }
}

/// Looks: the rules, and a line for each thing seen. `run` makes calls in a fresh address space; `files`: whether it has a
/// file 0.
///
/// # Errors
/// What `run` says.
pub fn rules<E>(
    base: u64,
    files: bool,
    run: &mut dyn FnMut(&[Call]) -> Result<Seen, E>,
    say: &mut dyn FnMut(&str, &str),
) -> Result<MmRules, E> {
    let at = At { base };
    let mut rules = MmRules::V6_12;
    let yes = |b: bool| if b { "yes" } else { "no" };

    // A faulted piece comes to have the flags of the unfaulted one before it.
    let change = Call::Mprotect { addr: at.page(2), len: 2 * PAGE, prot: RW };
    let m = run(&[at.map(0, 2, RW), at.map(2, 2, RW | 4), at.touch(2), change])?.maps;
    rules.merge_faulted_with_unfaulted = m.len() == 1;
    say("a faulted range merges with an unfaulted neighbour", yes(m.len() == 1));

    let m = run(&[at.map(0, 1, RW), at.map(1, 1, 1), at.remap(0, 8, 2, 3)])?.maps;
    rules.mremap_multi_vma = m.first().is_some_and(|v| v.start == at.page(8));
    say("mremap moves several VMAs", yes(rules.mremap_multi_vma));

    let s = run(&[at.map(0, 2, RW), at.remap(0, 2, 2, 7)])?;
    rules.dontunmap_merges_source = s.maps.len() == 1 && s.results[1] >= 0;
    say("DONTUNMAP merges an unfaulted mapping with its copy", yes(rules.dontunmap_merges_source));
    if s.results[1] < 0 {
        say("MREMAP_DONTUNMAP", "missing");
    }
    let m =
        run(&[at.map(4, 2, RW), at.touch(4), at.remap(4, 10, 2, 3), at.remap(10, 20, 2, 7), at.map(8, 2, RW)])?.maps;
    rules.dontunmap_keeps_pgoff = m.iter().any(|v| v.start == at.page(10));
    say("what DONTUNMAP leaves keeps its page offset", yes(rules.dontunmap_keeps_pgoff));

    let flags = MAP | libc::MAP_LOCKED as u32;
    let locked = Call::Mmap { addr: at.page(0), len: 2 * PAGE, prot: RW, flags, fd: None, offset: 0 };
    let s = run(&[locked, at.remap(1, 8, 1, 7)])?;
    // Where nothing may be locked it cannot be seen, and does not matter.
    rules.dontunmap_splits_locked = s.results[0] >= 0 && s.maps.len() != 2;
    say("DONTUNMAP leaves the rest of a locked mapping locked", yes(rules.dontunmap_splits_locked));

    let s = run(&[at.map(0, 4, RW), at.advise(1, 1, MADV_GUARD_INSTALL)])?;
    rules.guard_regions = s.results[1] == 0;
    rules.maybe_guard_flag = s.maps.first().is_some_and(|v| v.flags & VM_MAYBE_GUARD != 0);
    say("guard regions", yes(rules.guard_regions));
    say("VmFlags shows guard regions (gu)", yes(rules.maybe_guard_flag));

    if files {
        // Private file mappings whose file pages are linear, not so the addresses at their creation.
        let m = run(&[at.file(0, 1, 0), at.file(8, 1, 1), at.touch(8), at.remap(8, 1, 1, 3)])?.maps;
        // Where a faulted copy never merges with an unfaulted neighbour this shows nothing, and no such kernel has it.
        rules.anon_pgoff = m.len() == 2 && rules.merge_faulted_with_unfaulted;
        say("private file mappings merge by page number at creation", yes(rules.anon_pgoff));
    }

    // An advice's lock is seen by tracepoints only (`fuzz --objects`); nothing else that is compared depends on it.
    rules.dontneed_vma_lock = rules.mremap_multi_vma;
    rules.guard_vma_lock = false;
    // Only a driver's file shows it, and none is drawn.
    rules.retry_merge = !rules.mremap_multi_vma;
    Ok(rules)
}
