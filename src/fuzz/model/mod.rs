// SPDX-License-Identifier: GPL-2.0-only
//! The reference model: what the calls do, as simple as it can be said, from vma-ops.md alone.
//!
//! custom: everything (a vector of VMAs, a map of pages, a stack of processes); it shares no code with the port but the
//! names of flags and the data types of calls. It knows no locks, no page tables, no objects. Its rules of merging are in
//! [`merge`].
//!
//! stub: placement (a mapping that is to go anywhere is an error: the generator never draws one), overcommit, limits
//! other than the number of VMAs, huge pages, MADV_COLLAPSE.

mod flags;
mod map;
pub mod merge;
mod mremap;
mod pages;

use super::backend::{
    Backend, FILES, Hash, Look, MAX_DEPTH, OFFSETS, PAGE, Setup, Step, Stop, WINDOW, byte_word, file_byte, hash_vmas,
    result_of,
};
use crate::cpu::Errno;
use crate::mm::mm_types::{
    DEFAULT_MAX_MAP_COUNT, VM_DONTCOPY, VM_GROWSDOWN, VM_LOCKED, VM_LOCKONFAULT, VM_MAYBE_GUARD, VM_MAYEXEC,
    VM_MAYREAD, VM_MAYWRITE, VM_WIPEONFORK,
};
use crate::mm::{Call, VmaInfo};
use merge::{Anon, Mutation, Vma, Vmas};
use std::collections::{BTreeMap, BTreeSet};

const MASK: u64 = PAGE - 1;
const MAY: u64 = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;
const LOCK_MASK: u64 = VM_LOCKED | VM_LOCKONFAULT;
/// Bytes below a stack that stay free.
const GAP: u64 = 256 * PAGE;

type Bytes = [u8; OFFSETS.len()];
type Done = Result<u64, Errno>;

/// A file: a memory file, or what is behind a shared anonymous mapping.
#[derive(Clone, Debug)]
struct File {
    pages: u64,
    bytes: BTreeMap<u64, Bytes>,
    /// What a page holds that nobody wrote.
    fresh: Option<usize>,
}

impl File {
    fn get(&self, page: u64) -> Bytes {
        let fresh = self.fresh.map_or([0; OFFSETS.len()], |f| [file_byte(f, page); OFFSETS.len()]);
        self.bytes.get(&page).copied().unwrap_or(fresh)
    }
}

/// One process.
#[derive(Clone, Debug)]
struct Process {
    vmas: Vmas,
    /// Private pages that are there.
    pages: BTreeMap<u64, Bytes>,
    /// Guard regions, by page.
    guards: BTreeSet<u64>,
    start_brk: u64,
    brk: u64,
    /// What every new mapping gets.
    def_flags: u64,
}

/// The model as a backend.
#[derive(Debug, Default)]
pub struct Model {
    /// What is broken on purpose.
    pub mutation: Option<Mutation>,
    world: Option<World>,
}

#[derive(Debug)]
struct World {
    files: Vec<File>,
    processes: Vec<Process>,
    anon_vmas: u32,
}

impl Model {
    /// One with `mutation` broken.
    pub fn broken(mutation: Mutation) -> Self {
        Model { mutation: Some(mutation), world: None }
    }

    /// Carries out one call.
    pub fn call(&mut self, c: &Call) -> Result<u64, Errno> {
        self.world.as_mut().expect("a round has begun").call(c)
    }

    fn look(&mut self, i: u64, look: &Look) -> u64 {
        let w = self.world.as_mut().expect("a round has begun");
        let mut h = Hash::new();
        let maps = w.maps();
        hash_vmas(&mut h, &maps, look.flags(i));
        if look.bytes(i) {
            for v in &maps {
                for addr in (v.start..v.end).step_by(PAGE as usize) {
                    for o in OFFSETS {
                        h.add(byte_word(w.read(addr + o)));
                    }
                }
            }
        }
        h.value()
    }
}

impl Backend for Model {
    fn name(&self) -> String {
        "the model".into()
    }

    fn begin(&mut self, setup: &Setup) -> Result<(), Stop> {
        let limit = setup.room.map_or(DEFAULT_MAX_MAP_COUNT as usize, |r| r as usize);
        let vmas = Vmas { list: Vec::new(), rules: setup.rules, limit, mutation: self.mutation };
        let start_brk = if setup.heap { setup.start_brk() } else { 0 };
        let file = |(i, &pages): (usize, &u64)| File { pages, bytes: BTreeMap::new(), fresh: Some(i) };
        let first =
            Process { vmas, pages: BTreeMap::new(), guards: BTreeSet::new(), start_brk, brk: start_brk, def_flags: 0 };
        self.world =
            Some(World { files: FILES.iter().enumerate().map(file).collect(), processes: vec![first], anon_vmas: 0 });
        Ok(())
    }

    fn run(&mut self, first: u64, calls: &[Call], look: &Look, out: &mut Vec<Step>) -> Result<(), Stop> {
        for (i, c) in calls.iter().enumerate() {
            let result = result_of(self.call(c));
            let hash = self.look(first + i as u64, look);
            out.push(Step { result, hash, ..Step::default() });
        }
        Ok(())
    }

    fn maps(&mut self) -> Result<Vec<VmaInfo>, Stop> {
        Ok(self.world.as_ref().map_or(Vec::new(), World::maps))
    }

    fn hidden(&mut self) -> Vec<String> {
        let Some(w) = &self.world else { return Vec::new() };
        let line = |v: &Vma| {
            let page = |a: u64| a.wrapping_sub(WINDOW) / PAGE;
            let anon = v.anon.map_or("unfaulted".into(), |a| format!("anon_vma {} by {} links", a.id, a.links));
            format!("{}..{} offset {:#x}, {anon}", page(v.start), page(v.end), v.pgoff)
        };
        w.process().vmas.list.iter().map(line).collect()
    }

    fn end(&mut self) -> Result<(), Stop> {
        self.world = None;
        Ok(())
    }
}

impl World {
    fn process(&self) -> &Process {
        self.processes.last().expect("a process runs")
    }

    fn maps(&self) -> Vec<VmaInfo> {
        let info = |v: &Vma| VmaInfo {
            start: v.start,
            end: v.end,
            flags: v.flags,
            file: v.file,
            offset: if v.file.is_some() { v.pgoff * PAGE } else { 0 },
        };
        self.process().vmas.list.iter().map(info).collect()
    }

    fn call(&mut self, c: &Call) -> Done {
        if let Call::Fork = c {
            return self.fork();
        }
        if let Call::Exit = c {
            if self.processes.len() > 1 {
                self.processes.pop();
            }
            return Ok(0);
        }
        let mut t = self.thread();
        match *c {
            Call::Mmap { addr, len, prot, flags, fd, offset } => t.mmap(addr, len, prot, flags, fd, offset),
            Call::Munmap { addr, len } => t.munmap(addr, len),
            Call::Mprotect { addr, len, prot } => t.mprotect(addr, len, prot),
            Call::Madvise { addr, len, advice } => t.madvise(addr, len, advice),
            Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
                t.mremap(addr, old_len, new_len, flags, new_addr)
            }
            Call::Brk { to } => Ok(t.brk(to)),
            Call::Mlock { addr, len, flags } => t.mlock(addr, len, flags),
            Call::Munlock { addr, len } => t.lock_range(addr, len, 0),
            Call::Mlockall { flags } => t.mlockall(flags),
            Call::Munlockall => t.mlockall_apply(0),
            Call::Mseal { addr, len } => t.mseal(addr, len),
            Call::Read { addr } => t.access(addr, None),
            Call::Write { addr, value } => t.access(addr, Some(value)),
            // Not drawn against the model (`Feature::Mdwe`).
            Call::Personality { .. } | Call::Mdwe { .. } => Err(Errno::ENOSYS),
            Call::Fork | Call::Exit => unreachable!("done above"),
        }
    }

    fn read(&mut self, addr: u64) -> Done {
        self.thread().access(addr, None)
    }

    fn thread(&mut self) -> Thread<'_> {
        let World { processes, files, anon_vmas, .. } = self;
        Thread { p: processes.last_mut().expect("a process runs"), files, anon_vmas }
    }

    fn fork(&mut self) -> Done {
        if self.processes.len() >= MAX_DEPTH {
            return Err(Errno::EAGAIN);
        }
        let World { processes, anon_vmas, .. } = self;
        let parent = processes.last().expect("a process runs");
        let mut child = Process {
            vmas: Vmas { list: Vec::new(), ..parent.vmas.clone() },
            pages: BTreeMap::new(),
            guards: BTreeSet::new(),
            def_flags: parent.def_flags & !LOCK_MASK,
            ..*parent
        };
        let broken = |m| parent.vmas.broken(m);
        for v in &parent.vmas.list {
            if v.flags & VM_DONTCOPY != 0 && !broken(Mutation::ForkCopiesAll) {
                continue;
            }
            let mut new = *v;
            let range = v.start / PAGE..v.end / PAGE;
            if v.flags & VM_WIPEONFORK != 0 {
                new.anon = None;
            } else {
                new.anon = v.anon.map(|a| {
                    *anon_vmas += 1;
                    Anon { id: *anon_vmas, links: a.links + 1 }
                });
                child.pages.extend(parent.pages.range(range.clone()).map(|(p, b)| (*p, *b)));
                if v.anon.is_some() || v.flags & VM_MAYBE_GUARD != 0 {
                    child.guards.extend(parent.guards.range(range));
                }
            }
            if !broken(Mutation::ForkKeepsLocks) {
                new.flags &= !LOCK_MASK;
            }
            child.vmas.list.push(new);
        }
        processes.push(child);
        Ok(0)
    }
}

/// The running process and what all share.
struct Thread<'a> {
    p: &'a mut Process,
    files: &'a mut Vec<File>,
    anon_vmas: &'a mut u32,
}

impl Thread<'_> {
    fn broken(&self, m: Mutation) -> bool {
        self.p.vmas.broken(m)
    }
}

/// `PAGE_ALIGN()`, which wraps.
fn page_align(len: u64) -> u64 {
    len.wrapping_add(MASK) & !MASK
}

/// `vm_start_gap()`
fn start_gap(v: &Vma) -> u64 {
    if v.flags & VM_GROWSDOWN != 0 { v.start.saturating_sub(GAP) } else { v.start }
}
