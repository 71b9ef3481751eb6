// SPDX-License-Identifier: GPL-2.0-only
//! The reference model: what the calls do, as simple as it can be said, from vma-ops.md alone.
//!
//! custom: everything (a vector of VMAs, a map of pages, a stack of processes); it shares no code with the port but the
//! names of flags and the data types of calls. It knows no locks, no page tables, no objects. Its rules of merging are in
//! [`model_merge`](super::model_merge).
//!
//! stub: placement (a mapping that is to go anywhere is an error: the generator never draws one), overcommit, limits
//! other than the number of VMAs, huge pages, MADV_COLLAPSE.

use super::backend::{
    Backend, FILES, Hash, Look, MAX_DEPTH, OFFSETS, PAGE, Setup, Step, Stop, WINDOW, byte_word, file_byte, hash_vmas,
    result_of,
};
use super::model_merge::{Anon, Mutation, New, Vma, Vmas};
use crate::cpu::Errno;
use crate::mm::mm_types::{
    DEFAULT_MAX_MAP_COUNT, MMAP_MIN_ADDR, TASK_SIZE, VM_ACCESS_FLAGS, VM_ACCOUNT, VM_DONTCOPY, VM_DONTDUMP,
    VM_DONTEXPAND, VM_DROPPABLE, VM_GROWSDOWN, VM_HUGEPAGE, VM_IO, VM_LOCKED, VM_LOCKONFAULT, VM_MAYBE_GUARD,
    VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE, VM_MAYWRITE, VM_MERGEABLE, VM_NOHUGEPAGE, VM_NORESERVE, VM_PFNMAP,
    VM_RAND_READ, VM_READ, VM_SEALED, VM_SEQ_READ, VM_SHARED, VM_SPECIAL, VM_WIPEONFORK, VM_WRITE,
};
use crate::mm::{Call, VmaInfo};
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

    /// A user access: `value` is written, or a byte read.
    fn access(&mut self, addr: u64, value: Option<u8>) -> Done {
        let i = self.p.vmas.at_or_after(addr);
        let Some(v) = self.p.vmas.list.get(i).copied() else { return Err(Errno::EFAULT) };
        if addr < v.start {
            self.grow_stack(i, addr)?;
        }
        let need = if value.is_some() { VM_WRITE } else { VM_ACCESS_FLAGS };
        if v.flags & need == 0 {
            return Err(Errno::EFAULT);
        }
        let which = OFFSETS.iter().position(|&o| o == addr & MASK);
        let page = self.fault(i, addr & !MASK, value.is_some())?;
        let Some(which) = which else { return Ok(0) };
        if let Some(b) = value {
            let v = self.p.vmas.list[i];
            let new = &mut { page };
            new[which] = b;
            if v.is_private() {
                self.p.pages.insert(addr / PAGE, *new);
            } else {
                let f = v.file.expect("shared memory has a file") as usize;
                self.files[f].bytes.insert(v.pgoff + (addr - v.start) / PAGE, *new);
            }
            return Ok(0);
        }
        Ok(page[which].into())
    }

    /// A page that is there afterwards, and its bytes.
    fn fault(&mut self, i: usize, addr: u64, write: bool) -> Result<Bytes, Errno> {
        let page = addr / PAGE;
        if self.p.guards.contains(&page) {
            return Err(Errno::EFAULT);
        }
        let v = self.p.vmas.list[i];
        if v.is_private() {
            if write {
                self.p.vmas.prepare_anon(i, self.anon_vmas);
            }
            if let Some(b) = self.p.pages.get(&page) {
                return Ok(*b);
            }
        }
        let bytes = match v.file {
            None => [0; OFFSETS.len()],
            Some(f) => {
                let at = v.pgoff + (addr - v.start) / PAGE;
                let f = &self.files[f as usize];
                if at >= f.pages {
                    return Err(Errno::EFAULT);
                }
                f.get(at)
            }
        };
        if write && v.is_private() {
            self.p.pages.insert(page, bytes);
        }
        Ok(bytes)
    }

    /// The access was below VMA `i`: a stack grows to hold it.
    fn grow_stack(&mut self, i: usize, addr: u64) -> Result<(), Errno> {
        let addr = addr & !MASK;
        if self.p.vmas.list[i].flags & VM_GROWSDOWN == 0 || addr < MMAP_MIN_ADDR {
            return Err(Errno::EFAULT);
        }
        if let Some(prev) = i.checked_sub(1).map(|p| self.p.vmas.list[p]) {
            let wall = prev.flags & VM_GROWSDOWN == 0 && prev.flags & VM_ACCESS_FLAGS != 0;
            let gap = if self.broken(Mutation::NoGuardGap) { 0 } else { GAP };
            if wall && addr - prev.end < gap {
                return Err(Errno::EFAULT);
            }
        }
        self.p.vmas.prepare_anon(i, self.anon_vmas);
        let v = &mut self.p.vmas.list[i];
        let pages = (v.start - addr) / PAGE;
        if pages > v.pgoff {
            return Err(Errno::EFAULT);
        }
        v.start = addr;
        v.pgoff -= pages;
        v.anon_pgoff = v.anon_pgoff.wrapping_sub(pages);
        Ok(())
    }

    /// `__mm_populate()`
    fn populate(&mut self, start: u64, end: u64, go_on: bool) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let i = self.p.vmas.at_or_after(at);
            let Some(v) = self.p.vmas.list.get(i).copied().filter(|v| v.start < end) else { break };
            let (from, to) = (at.max(v.start), end.min(v.end));
            at = to;
            if v.flags & (VM_IO | VM_PFNMAP) != 0 {
                continue;
            }
            if let Err(e) = self.populate_vma(i, from, to)
                && !go_on
            {
                return Err(e);
            }
        }
        Ok(())
    }

    /// `populate_vma_page_range()`
    fn populate_vma(&mut self, i: usize, start: u64, end: u64) -> Result<(), Errno> {
        let v = self.p.vmas.list[i];
        if v.flags & VM_LOCKONFAULT != 0 {
            return Ok(());
        }
        if v.flags & VM_ACCESS_FLAGS == 0 {
            return if self.broken(Mutation::MlockIgnoresNone) { Ok(()) } else { Err(Errno::EFAULT) };
        }
        let write = v.flags & (VM_WRITE | VM_SHARED) == VM_WRITE;
        for addr in (start..end).step_by(PAGE as usize) {
            self.fault(i, addr, write)?;
        }
        Ok(())
    }

    /// Takes `[start, end)` out of the pages.
    fn zap(&mut self, start: u64, end: u64) {
        let gone: Vec<u64> = self.p.pages.range(start / PAGE..end / PAGE).map(|(p, _)| *p).collect();
        for p in gone {
            self.p.pages.remove(&p);
        }
    }

    /// Splits and takes out what is in `[start, end)`; on error splits stay.
    fn unmap_range(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let s = &mut self.p.vmas;
        let mut i = s.at_or_after(start);
        if i == s.list.len() || s.list[i].start >= end {
            return Ok(());
        }
        let before = if s.broken(Mutation::GatherRejoins) { Some(s.list.clone()) } else { None };
        let sealed = |s: &Vmas, i: usize| s.list[i].flags & VM_SEALED != 0 && !s.broken(Mutation::UnmapSealed);
        if s.list[i].start < start {
            if s.list[i].end > end && s.full_at(s.limit) {
                return Err(Errno::ENOMEM);
            }
            if sealed(s, i) {
                return Err(Errno::EPERM);
            }
            s.split_unchecked(i, start);
            i += 1;
        }
        let first = i;
        while i < s.list.len() && s.list[i].start < end {
            if sealed(s, i) {
                if let Some(b) = before {
                    s.list = b;
                }
                return Err(Errno::EPERM);
            }
            if s.list[i].end > end {
                s.split_unchecked(i, end);
            }
            i += 1;
        }
        s.list.drain(first..i);
        self.zap(start, end);
        let gone: Vec<u64> = self.p.guards.range(start / PAGE..end / PAGE).copied().collect();
        for g in gone {
            self.p.guards.remove(&g);
        }
        Ok(())
    }

    fn munmap(&mut self, start: u64, len: u64) -> Done {
        if start & MASK != 0 || start > TASK_SIZE || len > TASK_SIZE - start {
            return Err(Errno::EINVAL);
        }
        let end = start + page_align(len);
        if end == start {
            return Err(Errno::EINVAL);
        }
        self.unmap_range(start, end).map(|()| 0)
    }

    fn mmap(&mut self, addr: u64, len: u64, prot: u32, flags: u32, fd: Option<u32>, offset: u64) -> Done {
        const SHARED: u32 = 1;
        const PRIVATE: u32 = 2;
        const SHARED_VALIDATE: u32 = 3;
        const DROPPABLE: u32 = 8;
        if offset & MASK != 0 {
            return Err(Errno::EINVAL);
        }
        let mut pgoff = offset / PAGE;
        let anonymous = flags & libc::MAP_ANONYMOUS as u32 != 0;
        let file = if anonymous { None } else { fd };
        if !anonymous && file.is_none_or(|f| f as usize >= FILES.len()) {
            return Err(Errno::EBADF);
        }
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let noreplace = flags & libc::MAP_FIXED_NOREPLACE as u32 != 0;
        let fixed = noreplace || flags & libc::MAP_FIXED as u32 != 0;
        let mut addr = addr;
        if !fixed {
            addr &= !MASK;
            if addr != 0 && addr < MMAP_MIN_ADDR {
                addr = MMAP_MIN_ADDR;
            }
        }
        let len = page_align(len);
        if len == 0 {
            return Err(Errno::ENOMEM);
        }
        if pgoff.checked_add(len / PAGE).is_none() {
            return Err(Errno::EOVERFLOW);
        }
        if self.p.vmas.full_at(self.p.vmas.limit + 1) {
            return Err(Errno::ENOMEM);
        }
        let mut vm = u64::from(prot) & VM_ACCESS_FLAGS | MAY | self.p.def_flags;
        if flags & libc::MAP_GROWSDOWN as u32 != 0 {
            vm |= VM_GROWSDOWN;
        }
        if flags & libc::MAP_LOCKED as u32 != 0 {
            vm |= VM_LOCKED;
        }
        if flags & libc::MAP_STACK as u32 != 0 {
            vm |= VM_NOHUGEPAGE;
        }
        if len > TASK_SIZE {
            return Err(Errno::ENOMEM);
        }
        if fixed {
            if addr > TASK_SIZE - len {
                return Err(Errno::ENOMEM);
            }
            if addr & MASK != 0 {
                return Err(Errno::EINVAL);
            }
            if addr < MMAP_MIN_ADDR {
                return Err(Errno::EPERM);
            }
        } else if !self.hint_is_free(addr, len) {
            return Err(Errno::ENOMEM);
        }
        let end = addr + len;
        if noreplace && self.p.vmas.any(addr, end) {
            return Err(Errno::EEXIST);
        }
        // A file ends at 2^63 - 1 bytes.
        if file.is_some() && pgoff > (i64::MAX as u64 - len) / PAGE {
            return Err(Errno::EOVERFLOW);
        }
        let stack = vm & VM_GROWSDOWN != 0;
        let kind = flags & 0xf;
        match (file, kind) {
            (Some(_), SHARED_VALIDATE) if unknown_flags(flags) => return Err(Errno::EOPNOTSUPP),
            (Some(_), SHARED | SHARED_VALIDATE | PRIVATE) if stack => return Err(Errno::EINVAL),
            (Some(_), SHARED | SHARED_VALIDATE) => vm |= VM_SHARED | VM_MAYSHARE,
            (Some(_), PRIVATE) => {}
            (None, SHARED) if stack => return Err(Errno::EINVAL),
            (None, SHARED) => {
                pgoff = 0;
                vm |= VM_SHARED | VM_MAYSHARE;
            }
            (None, PRIVATE) => pgoff = addr / PAGE,
            (None, DROPPABLE) => {
                if flags & libc::MAP_LOCKED as u32 != 0 || stack {
                    return Err(Errno::EINVAL);
                }
                vm |= VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP;
                pgoff = addr / PAGE;
            }
            _ => return Err(Errno::EINVAL),
        }
        if flags & libc::MAP_NORESERVE as u32 != 0 {
            vm |= VM_NORESERVE;
        }
        self.unmap_range(addr, end)?;
        if vm & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE {
            vm |= VM_ACCOUNT;
        }
        let shared_object = file.is_none() && vm & VM_SHARED != 0;
        let file = if shared_object {
            // An object of its own: it never merges with what is there.
            self.files.push(File { pages: len / PAGE, bytes: BTreeMap::new(), fresh: None });
            Some(self.files.len() as u32 - 1)
        } else {
            file
        };
        let v = Vma { start: addr, end, flags: vm, pgoff, anon_pgoff: addr / PAGE, file, anon: None };
        if self.p.vmas.merge_new(&v, New::Plain).is_none() {
            self.p.vmas.insert(v);
        }
        let populate = libc::MAP_POPULATE as u32;
        let wanted = flags & (populate | libc::MAP_NONBLOCK as u32) == populate;
        if vm & VM_LOCKED != 0 || wanted {
            // A failure is not told.
            let _ = self.populate(addr, end, true);
        }
        Ok(addr)
    }

    /// Whether a hint is taken as it is.
    fn hint_is_free(&self, addr: u64, len: u64) -> bool {
        if addr == 0 || addr > TASK_SIZE - len {
            return false;
        }
        let next = self.p.vmas.list.get(self.p.vmas.at_or_after(addr));
        next.is_none_or(|n| addr + len <= start_gap(n))
    }

    fn mprotect(&mut self, start: u64, len: u64, prot: u32) -> Done {
        const GROWS_DOWN: u32 = 0x0100_0000;
        const GROWS_UP: u32 = 0x0200_0000;
        let grows = prot & (GROWS_DOWN | GROWS_UP);
        let prot = prot & !(GROWS_DOWN | GROWS_UP);
        if grows == GROWS_DOWN | GROWS_UP || start & MASK != 0 {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(0);
        }
        let end = start.wrapping_add(page_align(len));
        if end <= start {
            return Err(Errno::ENOMEM);
        }
        if prot & !0xf != 0 {
            return Err(Errno::EINVAL);
        }
        let i = self.p.vmas.at_or_after(start);
        let Some(v) = self.p.vmas.list.get(i).copied().filter(|v| v.start < end) else { return Err(Errno::ENOMEM) };
        let mut at = start;
        if grows == GROWS_DOWN {
            if v.flags & VM_GROWSDOWN == 0 {
                return Err(Errno::EINVAL);
            }
            at = v.start;
        } else if v.start > start {
            return Err(Errno::ENOMEM);
        } else if grows == GROWS_UP {
            // No mapping of this machine grows upwards.
            return Err(Errno::EINVAL);
        }
        while at < end {
            let i = self.p.vmas.at_or_after(at);
            let Some(v) = self.p.vmas.list.get(i).copied().filter(|v| v.start < end) else {
                return if self.broken(Mutation::MprotectSkipsHoles) { Ok(0) } else { Err(Errno::ENOMEM) };
            };
            if v.start > at {
                if self.broken(Mutation::MprotectSkipsHoles) {
                    at = v.start;
                } else {
                    return Err(Errno::ENOMEM);
                }
            }
            let flags = u64::from(prot) & VM_ACCESS_FLAGS | v.flags & !VM_ACCESS_FLAGS;
            if flags & !(flags >> 4) & VM_ACCESS_FLAGS != 0 {
                return Err(Errno::EACCES);
            }
            at = self.mprotect_fixup(i, at, end.min(v.end), flags)?;
        }
        Ok(0)
    }

    /// Returns where to go on.
    fn mprotect_fixup(&mut self, i: usize, start: u64, end: u64, mut flags: u64) -> Result<u64, Errno> {
        let v = self.p.vmas.list[i];
        if v.flags & VM_SEALED != 0 {
            return Err(Errno::EPERM);
        }
        if flags == v.flags {
            return Ok(end);
        }
        if flags & VM_WRITE != 0 {
            if v.flags & (VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE) == 0 {
                flags |= VM_ACCOUNT;
            }
        } else if v.flags & VM_ACCOUNT != 0
            && v.is_anonymous()
            && v.anon.is_none()
            && !self.broken(Mutation::AccountStays)
        {
            flags &= !VM_ACCOUNT;
        }
        let at = self.p.vmas.modify(i, start, end, flags)?;
        let done = self.p.vmas.list[at].end;
        if v.flags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED && flags & VM_WRITE != 0 {
            let _ = self.populate_vma(at, start, end);
        }
        Ok(done)
    }

    fn madvise(&mut self, start: u64, len_in: u64, advice: i32) -> Done {
        if !known_advice(advice, self.p.vmas.rules.guard_regions) || start & MASK != 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_align(len_in);
        let (end, over) = start.overflowing_add(len);
        if len_in != 0 && len == 0 || over {
            return Err(Errno::EINVAL);
        }
        if end == start {
            return Ok(0);
        }
        if let libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE = advice {
            return self.madvise_populate(start, end, advice == libc::MADV_POPULATE_WRITE);
        }
        let (mut at, mut holes) = (start, false);
        while at < end {
            let i = self.p.vmas.at_or_after(at);
            let Some(v) = self.p.vmas.list.get(i).copied() else { return Err(Errno::ENOMEM) };
            if v.start > at {
                holes = true;
                at = v.start;
                if self.broken(Mutation::MadviseStopsAtHoles) {
                    break;
                }
                if at >= end {
                    break;
                }
            }
            at = self.advise(i, at, end.min(v.end), advice)?;
        }
        if holes { Err(Errno::ENOMEM) } else { Ok(0) }
    }

    /// One VMA's part; returns where to go on.
    fn advise(&mut self, i: usize, start: u64, end: u64, advice: i32) -> Result<u64, Errno> {
        let v = self.p.vmas.list[i];
        let discards = matches!(
            advice,
            libc::MADV_FREE
                | libc::MADV_DONTNEED
                | MADV_DONTNEED_LOCKED
                | libc::MADV_REMOVE
                | libc::MADV_DONTFORK
                | libc::MADV_WIPEONFORK
                | MADV_GUARD_INSTALL
        );
        if v.flags & VM_SEALED != 0 && discards && v.is_anonymous() && v.flags & VM_WRITE == 0 {
            return Err(Errno::EPERM);
        }
        let set = |on: u64, off: u64| v.flags & !off | on;
        let flags = match advice {
            libc::MADV_NORMAL => set(0, VM_RAND_READ | VM_SEQ_READ),
            libc::MADV_RANDOM => set(VM_RAND_READ, VM_SEQ_READ),
            libc::MADV_SEQUENTIAL => set(VM_SEQ_READ, VM_RAND_READ),
            libc::MADV_DONTFORK => set(VM_DONTCOPY, 0),
            libc::MADV_DOFORK if v.flags & VM_SPECIAL & !VM_DONTEXPAND != 0 => return Err(Errno::EINVAL),
            libc::MADV_DOFORK => set(0, VM_DONTCOPY),
            libc::MADV_WIPEONFORK if v.file.is_some() || !v.is_private() => return Err(Errno::EINVAL),
            libc::MADV_WIPEONFORK => set(VM_WIPEONFORK, 0),
            libc::MADV_KEEPONFORK if v.flags & VM_DROPPABLE != 0 => return Err(Errno::EINVAL),
            libc::MADV_KEEPONFORK => set(0, VM_WIPEONFORK),
            libc::MADV_DONTDUMP => set(VM_DONTDUMP, 0),
            libc::MADV_DODUMP if v.flags & (VM_SPECIAL | VM_DROPPABLE) != 0 => return Err(Errno::EINVAL),
            libc::MADV_DODUMP => set(0, VM_DONTDUMP),
            libc::MADV_HUGEPAGE => set(VM_HUGEPAGE, VM_NOHUGEPAGE),
            libc::MADV_NOHUGEPAGE => set(VM_NOHUGEPAGE, VM_HUGEPAGE),
            libc::MADV_MERGEABLE
                if v.flags & (VM_MERGEABLE | VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_DROPPABLE) != 0 =>
            {
                v.flags
            }
            libc::MADV_MERGEABLE => set(VM_MERGEABLE, 0),
            libc::MADV_UNMERGEABLE => set(0, VM_MERGEABLE),
            _ => return self.advise_pages(i, start, end, advice).map(|()| end),
        };
        if flags == v.flags {
            return Ok(end);
        }
        match self.p.vmas.modify(i, start, end, flags) {
            Ok(at) => Ok(self.p.vmas.list[at].end.max(end)),
            Err(_) if self.broken(Mutation::MadviseSplitEnomem) => Err(Errno::ENOMEM),
            Err(_) => Err(Errno::EAGAIN),
        }
    }

    /// Advice that changes pages and no VMA.
    fn advise_pages(&mut self, i: usize, start: u64, end: u64, advice: i32) -> Result<(), Errno> {
        let v = self.p.vmas.list[i];
        let locked = v.flags & VM_LOCKED != 0 && !self.broken(Mutation::DontneedLocked);
        match advice {
            libc::MADV_DONTNEED | libc::MADV_FREE if locked => Err(Errno::EINVAL),
            libc::MADV_FREE if !v.is_anonymous() => Err(Errno::EINVAL),
            // The pages may go, and do not while there is memory.
            libc::MADV_FREE => Ok(()),
            libc::MADV_DONTNEED | MADV_DONTNEED_LOCKED => {
                if !self.broken(Mutation::DontneedKeepsBytes) {
                    self.zap(start, end);
                }
                Ok(())
            }
            libc::MADV_COLD | libc::MADV_PAGEOUT if v.flags & VM_LOCKED != 0 => Err(Errno::EINVAL),
            libc::MADV_COLD | libc::MADV_PAGEOUT | libc::MADV_WILLNEED => Ok(()),
            libc::MADV_REMOVE => self.remove(&v, start, end),
            MADV_GUARD_INSTALL | MADV_GUARD_REMOVE => self.guard(i, start, end, advice == MADV_GUARD_INSTALL),
            _ => Err(Errno::EINVAL),
        }
    }

    fn remove(&mut self, v: &Vma, start: u64, end: u64) -> Result<(), Errno> {
        if v.flags & VM_LOCKED != 0 || v.file.is_none() {
            return Err(Errno::EINVAL);
        }
        if v.is_private() {
            return Err(Errno::EACCES);
        }
        let f = &mut self.files[v.file.expect("looked at above") as usize];
        let first = v.pgoff + (start - v.start) / PAGE;
        for p in first..first + (end - start) / PAGE {
            if p < f.pages {
                f.bytes.insert(p, [0; OFFSETS.len()]);
            }
        }
        Ok(())
    }

    fn guard(&mut self, i: usize, start: u64, end: u64, install: bool) -> Result<(), Errno> {
        let v = &mut self.p.vmas.list[i];
        let forbidden = VM_SPECIAL | if install { VM_LOCKED } else { 0 };
        if v.flags & forbidden != 0 {
            return Err(Errno::EINVAL);
        }
        let range = start / PAGE..end / PAGE;
        if install {
            if self.p.vmas.rules.maybe_guard_flag {
                v.flags |= VM_MAYBE_GUARD;
            }
            // What is in its page table must not get lost at a fork.
            if self.p.vmas.list[i].is_anonymous() {
                self.p.vmas.prepare_anon(i, self.anon_vmas);
            }
            self.zap(start, end);
            self.p.guards.extend(range);
        } else {
            self.p.guards.retain(|g| !range.contains(g));
        }
        Ok(())
    }

    fn madvise_populate(&mut self, start: u64, end: u64, write: bool) -> Done {
        let need = if write { VM_WRITE } else { VM_READ };
        for addr in (start..end).step_by(PAGE as usize) {
            let Some(i) = self.p.vmas.at(addr) else { return Err(Errno::ENOMEM) };
            let v = self.p.vmas.list[i];
            if v.flags & need == 0 || v.flags & (VM_IO | VM_PFNMAP) != 0 {
                return Err(Errno::EINVAL);
            }
            self.fault(i, addr, write)?;
        }
        Ok(0)
    }

    fn brk(&mut self, to: u64) -> u64 {
        let old = self.p.brk;
        if to < self.p.start_brk || to > TASK_SIZE {
            return old;
        }
        let (new_page, old_page) = (page_align(to), page_align(old));
        if new_page == old_page {
            self.p.brk = to;
            return to;
        }
        if to <= old {
            let s = &self.p.vmas;
            let i = s.at_or_after(new_page);
            if i == s.list.len() || s.list[i].start >= old_page || self.unmap_range(new_page, old_page).is_err() {
                return old;
            }
            self.p.brk = to;
            return to;
        }
        let next = self.p.vmas.list.get(self.p.vmas.at_or_after(old_page));
        let room = if self.broken(Mutation::BrkWithoutGap) { 0 } else { PAGE };
        if next.is_some_and(|n| new_page + room > start_gap(n)) {
            return old;
        }
        if self.p.vmas.full_at(self.p.vmas.limit + 1) {
            return old;
        }
        let flags = VM_READ | VM_WRITE | MAY | VM_ACCOUNT | self.p.def_flags;
        let page = old_page / PAGE;
        let v = Vma { start: old_page, end: new_page, flags, pgoff: page, anon_pgoff: page, file: None, anon: None };
        // What is before the start of the heap is not looked at.
        let foreign = self.p.vmas.at_or_after(old_page).checked_sub(1).map(|p| self.p.vmas.list[p]);
        let foreign = foreign.filter(|f| f.end <= self.p.start_brk).map(|f| f.start);
        if self.p.vmas.merge_new(&v, New::Heap { foreign }).is_none() {
            self.p.vmas.insert(v);
        }
        self.p.brk = to;
        if flags & VM_LOCKED != 0 {
            let _ = self.populate(old_page, new_page, true);
        }
        to
    }

    fn mlock(&mut self, start: u64, len: u64, flags: u32) -> Done {
        if flags & !1 != 0 {
            return Err(Errno::EINVAL);
        }
        let vm = VM_LOCKED | if flags & 1 != 0 { VM_LOCKONFAULT } else { 0 };
        self.lock_range(start, len, vm)?;
        let (start, len) = (start & !MASK, page_align(len.wrapping_add(start & MASK)));
        match self.populate(start, start.wrapping_add(len), false) {
            Ok(()) => Ok(0),
            Err(Errno::ENOMEM) => Err(Errno::EAGAIN),
            Err(Errno::EFAULT) => Err(Errno::ENOMEM),
            Err(e) => Err(e),
        }
    }

    /// Sets the two lock flags of a range.
    fn lock_range(&mut self, start: u64, len: u64, vm: u64) -> Done {
        let len = page_align(len.wrapping_add(start & MASK));
        let start = start & !MASK;
        let end = start.wrapping_add(len);
        if end < start {
            return Err(Errno::EINVAL);
        }
        if end == start {
            return Ok(0);
        }
        let mut at = start;
        while at < end {
            let Some(i) = self.p.vmas.at(at) else { return Err(Errno::ENOMEM) };
            let to = end.min(self.p.vmas.list[i].end);
            at = self.mlock_fixup(i, at, to, vm)?;
        }
        Ok(0)
    }

    fn mlock_fixup(&mut self, i: usize, start: u64, end: u64, vm: u64) -> Result<u64, Errno> {
        let v = self.p.vmas.list[i];
        let flags = v.flags & !LOCK_MASK | vm;
        if flags == v.flags || v.flags & (VM_SPECIAL | VM_DROPPABLE) != 0 {
            return Ok(end);
        }
        let at = self.p.vmas.modify(i, start, end, flags)?;
        Ok(self.p.vmas.list[at].end)
    }

    fn mlockall(&mut self, flags: u32) -> Done {
        const CURRENT: u32 = 1;
        const ONFAULT: u32 = 4;
        if flags == 0 || flags & !7 != 0 || flags == ONFAULT {
            return Err(Errno::EINVAL);
        }
        self.mlockall_apply(flags)?;
        if flags & CURRENT != 0 {
            let _ = self.populate(0, TASK_SIZE, true);
        }
        Ok(0)
    }

    fn mlockall_apply(&mut self, flags: u32) -> Done {
        let onfault = if flags & 4 != 0 { VM_LOCKONFAULT } else { 0 };
        self.p.def_flags &= !LOCK_MASK;
        if flags & 2 != 0 {
            self.p.def_flags |= VM_LOCKED | onfault;
            if flags & 1 == 0 {
                return Ok(0);
            }
        }
        let vm = if flags & 1 != 0 { VM_LOCKED | onfault } else { 0 };
        let mut at = 0;
        loop {
            let i = self.p.vmas.at_or_after(at);
            let Some(v) = self.p.vmas.list.get(i).copied() else { return Ok(0) };
            at = self.mlock_fixup(i, v.start, v.end, vm).unwrap_or(v.end);
        }
    }

    fn mseal(&mut self, start: u64, len_in: u64) -> Done {
        let len = page_align(len_in);
        let (end, over) = start.overflowing_add(len);
        if start & MASK != 0 || len_in != 0 && len == 0 || over {
            return Err(Errno::EINVAL);
        }
        let mut at = start;
        while at < end {
            let Some(i) = self.p.vmas.at(at) else { return Err(Errno::ENOMEM) };
            at = self.p.vmas.list[i].end;
        }
        at = start;
        while at < end {
            let i = self.p.vmas.at(at).expect("no hole, as seen above");
            let v = self.p.vmas.list[i];
            let to = end.min(v.end);
            if v.flags & VM_SEALED != 0 {
                at = to;
                continue;
            }
            let j = self.p.vmas.modify(i, at, to, v.flags | VM_SEALED)?;
            at = self.p.vmas.list[j].end;
        }
        Ok(0)
    }

    fn mremap(&mut self, addr: u64, old_len: u64, new_len: u64, flags: u32, new_addr: u64) -> Done {
        const MAYMOVE: u32 = 1;
        const FIXED: u32 = 2;
        const DONTUNMAP: u32 = 4;
        let rules = self.p.vmas.rules;
        // 6.17 rewrote it: what the arguments alone can say comes first.
        let rewritten = rules.mremap_multi_vma;
        let (fixed, dontunmap, maymove) = (flags & FIXED != 0, flags & DONTUNMAP != 0, flags & MAYMOVE != 0);
        if flags & !7 != 0 || addr & MASK != 0 || (fixed || dontunmap) && !maymove {
            return Err(Errno::EINVAL);
        }
        if !rewritten && dontunmap && old_len != new_len {
            return Err(Errno::EINVAL);
        }
        let (old_len, new_len) = (page_align(old_len), page_align(new_len));
        if new_len == 0 || dontunmap && old_len != new_len {
            return Err(Errno::EINVAL);
        }
        let to_new = fixed || dontunmap;
        let new_place = |old_len: u64| {
            let bad = new_len > TASK_SIZE || new_addr > TASK_SIZE - new_len || new_addr & MASK != 0;
            let overlap = addr.wrapping_add(old_len) > new_addr && new_addr.wrapping_add(new_len) > addr;
            to_new && (bad || overlap)
        };
        let count = |s: &Self| s.p.vmas.list.len() + 2 >= s.p.vmas.limit - 3;
        if rewritten {
            if new_len > TASK_SIZE || new_place(old_len) {
                return Err(Errno::EINVAL);
            }
            if rules.mremap_limit_at_entry {
                let more = if dontunmap { 5 } else { 4 };
                if self.p.vmas.list.len() + more > self.p.vmas.limit {
                    return Err(Errno::ENOMEM);
                }
            } else if to_new && count(self) {
                return Err(Errno::ENOMEM);
            }
            if fixed && old_len == new_len {
                return self.move_many(addr, old_len, new_addr, dontunmap);
            }
        }
        let source = |s: &Self| s.p.vmas.at(addr).ok_or(Errno::EFAULT);
        let i = source(self)?;
        if self.p.vmas.list[i].flags & VM_SEALED != 0 {
            return Err(Errno::EPERM);
        }
        if !to_new {
            if old_len == new_len {
                return Ok(addr);
            }
            if old_len > new_len {
                return self.munmap(addr + new_len, old_len - new_len).map(|_| addr);
            }
            self.may_resize(i, addr, old_len, new_len, dontunmap)?;
            return self.grow(i, addr, old_len, new_len);
        }
        if rewritten {
            self.may_resize(i, addr, old_len.min(new_len), new_len, dontunmap)?;
        } else {
            if new_place(old_len) {
                return Err(Errno::EINVAL);
            }
            if count(self) {
                return Err(Errno::ENOMEM);
            }
        }
        self.move_to(addr, old_len, new_len, new_addr, fixed, dontunmap)
    }

    /// The new place is emptied, the source shrunk and moved.
    fn move_to(&mut self, addr: u64, old_len: u64, new_len: u64, new_addr: u64, fixed: bool, keep: bool) -> Done {
        if fixed {
            self.munmap(new_addr, new_len)?;
        }
        let mut old_len = old_len;
        if old_len > new_len {
            self.munmap(addr + new_len, old_len - new_len)?;
            old_len = new_len;
        }
        let i = self.p.vmas.at(addr).ok_or(Errno::EFAULT)?;
        self.may_resize(i, addr, old_len, new_len, keep)?;
        if !fixed && !self.hint_is_free(new_addr, new_len) {
            return Err(Errno::ENOMEM);
        }
        self.move_vma(i, addr, old_len, new_len, new_addr, keep)
    }

    /// `vma_to_resize()`, `check_prep_vma()`
    fn may_resize(&self, i: usize, addr: u64, old_len: u64, new_len: u64, keep: bool) -> Result<(), Errno> {
        let v = &self.p.vmas.list[i];
        if old_len == 0 && v.is_private() && v.flags & VM_MAYSHARE == 0 {
            return Err(Errno::EINVAL);
        }
        let pinned = v.flags & (VM_DONTEXPAND | VM_PFNMAP) != 0;
        if keep && pinned {
            return Err(Errno::EINVAL);
        }
        if old_len > v.end - addr {
            return Err(Errno::EFAULT);
        }
        if old_len != new_len && pinned {
            return Err(Errno::EFAULT);
        }
        Ok(())
    }

    fn grow(&mut self, i: usize, addr: u64, old_len: u64, new_len: u64) -> Done {
        let v = self.p.vmas.list[i];
        let (from, to) = (v.end, addr.saturating_add(new_len));
        // Moving would need a place of the kernel's choice: nobody asks for it.
        if old_len != v.end - addr || to > TASK_SIZE || self.p.vmas.any(from, to) {
            return Err(Errno::ENOMEM);
        }
        let range = Vma {
            start: from,
            end: to,
            pgoff: v.pgoff + v.pages(),
            anon_pgoff: v.anon_pgoff.wrapping_add(v.pages()),
            ..v
        };
        if self.p.vmas.merge_new(&range, New::Extension).is_none() {
            return Err(Errno::ENOMEM);
        }
        if v.flags & VM_LOCKED != 0 {
            let _ = self.populate(from, to, true);
        }
        Ok(addr)
    }

    /// A pure move may take several VMAs and the holes between them.
    fn move_many(&mut self, start: u64, len: u64, new_start: u64, keep: bool) -> Done {
        let end = start + len;
        let (mut at, mut seen) = (start, false);
        while at < end {
            let i = self.p.vmas.at_or_after(at);
            let Some(v) = self.p.vmas.list.get(i).copied().filter(|v| v.start < end) else { break };
            if !seen && v.start > start {
                return Err(Errno::EFAULT);
            }
            let (from, to) = (v.start.max(start), v.end.min(end));
            if v.flags & VM_SEALED != 0 {
                return Err(Errno::EPERM);
            }
            self.may_resize(i, from, to - from, to - from, keep)?;
            self.move_to(from, to - from, to - from, new_start + (from - start), true, keep)?;
            seen = true;
            at = to;
        }
        if seen { Ok(new_start) } else { Err(Errno::EFAULT) }
    }

    fn move_vma(&mut self, i: usize, addr: u64, old_len: u64, new_len: u64, new_addr: u64, keep: bool) -> Done {
        let rules = self.p.vmas.rules;
        if !rules.mremap_limit_at_entry && self.p.vmas.list.len() >= self.p.vmas.limit - 3 {
            return Err(Errno::ENOMEM);
        }
        let mut i = i;
        let end = addr + old_len;
        if keep && rules.dontunmap_splits_locked && self.p.vmas.list[i].flags & VM_LOCKED != 0 {
            if self.p.vmas.list[i].start < addr {
                self.p.vmas.split(i, addr)?;
                i += 1;
            }
            if self.p.vmas.list[i].end > end {
                self.p.vmas.split(i, end)?;
            }
        }
        let v = self.p.vmas.list[i];
        let skip = (addr - v.start) / PAGE;
        let mut new = Vma {
            start: new_addr,
            end: new_addr + new_len,
            pgoff: v.pgoff + skip,
            anon_pgoff: v.anon_pgoff.wrapping_add(skip),
            ..v
        };
        if v.anon.is_none() && !self.broken(Mutation::MoveKeepsOffset) {
            new.anon_pgoff = new_addr / PAGE;
            if v.is_anonymous() {
                new.pgoff = new.anon_pgoff;
            }
        }
        let apart = keep && !rules.dontunmap_merges_source && v.is_anonymous() && v.anon.is_none();
        if self.p.vmas.merge_new(&new, New::Copy { keep: apart.then_some(v.start) }).is_none() {
            self.p.vmas.insert(new);
        }
        self.move_pages(addr, end, new_addr);
        if keep {
            let i = self.p.vmas.at(addr).expect("the source is kept");
            let s = &mut self.p.vmas.list[i];
            s.flags &= !LOCK_MASK;
            if s.start == addr && s.end == end {
                s.anon = None;
                if s.is_anonymous() && !rules.dontunmap_keeps_pgoff {
                    s.pgoff = addr / PAGE;
                    s.anon_pgoff = s.pgoff;
                }
            }
        } else {
            // A failure leaves the source where it is, empty.
            let _ = self.munmap(addr, old_len);
        }
        if v.flags & VM_LOCKED != 0 && new_len > old_len {
            let _ = self.populate(new_addr + old_len, new_addr + new_len, true);
        }
        Ok(new_addr)
    }

    fn move_pages(&mut self, start: u64, end: u64, to: u64) {
        let range = start / PAGE..end / PAGE;
        let place = |p: u64| p - start / PAGE + to / PAGE;
        let pages: Vec<_> = self.p.pages.range(range.clone()).map(|(p, b)| (*p, *b)).collect();
        let guards: Vec<_> = self.p.guards.range(range).copied().collect();
        for (p, _) in &pages {
            self.p.pages.remove(p);
        }
        for g in &guards {
            self.p.guards.remove(g);
        }
        self.p.pages.extend(pages.into_iter().map(|(p, b)| (place(p), b)));
        self.p.guards.extend(guards.into_iter().map(place));
    }
}

/// `MADV_DONTNEED_LOCKED`
pub const MADV_DONTNEED_LOCKED: i32 = 24;
/// `MADV_GUARD_INSTALL`
pub const MADV_GUARD_INSTALL: i32 = 102;
/// `MADV_GUARD_REMOVE`
pub const MADV_GUARD_REMOVE: i32 = 103;

fn known_advice(advice: i32, guards: bool) -> bool {
    matches!(advice, 0..=4 | 8..=24) || guards && matches!(advice, MADV_GUARD_INSTALL | MADV_GUARD_REMOVE)
}

/// Flags that `MAP_SHARED_VALIDATE` does not know.
fn unknown_flags(flags: u32) -> bool {
    let known = libc::MAP_SHARED_VALIDATE
        | libc::MAP_FIXED
        | libc::MAP_ANONYMOUS
        | libc::MAP_DENYWRITE
        | libc::MAP_EXECUTABLE
        | libc::MAP_GROWSDOWN
        | libc::MAP_LOCKED
        | libc::MAP_NORESERVE
        | libc::MAP_POPULATE
        | libc::MAP_NONBLOCK
        | libc::MAP_STACK
        | libc::MAP_HUGETLB
        | 0x40;
    flags & !(known as u32) != 0
}

/// `PAGE_ALIGN()`, which wraps.
fn page_align(len: u64) -> u64 {
    len.wrapping_add(MASK) & !MASK
}

/// `vm_start_gap()`
fn start_gap(v: &Vma) -> u64 {
    if v.flags & VM_GROWSDOWN != 0 { v.start.saturating_sub(GAP) } else { v.start }
}
