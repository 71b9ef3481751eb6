// SPDX-License-Identifier: GPL-2.0-only
//! The reference model's pages: user accesses, faults, populating, and what discards, moves or guards pages.
//!
//! custom: a page is a few bytes in a table; a fault is a look-up. What a fault changes of a VMA (its anon_vma, the start
//! of a stack) is in [`merge`](super::merge) and here.

use super::merge::{Mutation, Vma};
use super::{Bytes, Done, GAP, MASK, Thread};
use crate::cpu::Errno;
use crate::fuzz::backend::{OFFSETS, PAGE};
use crate::mm::mm_types::{
    MMAP_MIN_ADDR, VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_IO, VM_LOCKED, VM_LOCKONFAULT, VM_MAYBE_GUARD, VM_PFNMAP, VM_READ,
    VM_SHARED, VM_SPECIAL, VM_WRITE,
};

impl Thread<'_> {
    /// A user access: `value` is written, or a byte read.
    pub(super) fn access(&mut self, addr: u64, value: Option<u8>) -> Done {
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
    pub(super) fn fault(&mut self, i: usize, addr: u64, write: bool) -> Result<Bytes, Errno> {
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
    pub(super) fn grow_stack(&mut self, i: usize, addr: u64) -> Result<(), Errno> {
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
    pub(super) fn populate(&mut self, start: u64, end: u64, go_on: bool) -> Result<(), Errno> {
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
    pub(super) fn populate_vma(&mut self, i: usize, start: u64, end: u64) -> Result<(), Errno> {
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
    pub(super) fn zap(&mut self, start: u64, end: u64) {
        let gone: Vec<u64> = self.p.pages.range(start / PAGE..end / PAGE).map(|(p, _)| *p).collect();
        for p in gone {
            self.p.pages.remove(&p);
        }
    }

    pub(super) fn remove(&mut self, v: &Vma, start: u64, end: u64) -> Result<(), Errno> {
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

    pub(super) fn guard(&mut self, i: usize, start: u64, end: u64, install: bool) -> Result<(), Errno> {
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

    pub(super) fn madvise_populate(&mut self, start: u64, end: u64, write: bool) -> Done {
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

    pub(super) fn move_pages(&mut self, start: u64, end: u64, to: u64) {
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
