// SPDX-License-Identifier: GPL-2.0-only
//! The reference model's ranges: mmap, munmap and brk.

use super::merge::{Mutation, New, Vma, Vmas};
use super::{Done, File, MASK, MAY, Thread, page_align, start_gap};
use crate::cpu::Errno;
use crate::fuzz::backend::{FILES, PAGE};
use crate::mm::mm_types::{
    MMAP_MIN_ADDR, TASK_SIZE, VM_ACCESS_FLAGS, VM_ACCOUNT, VM_DONTDUMP, VM_DROPPABLE, VM_GROWSDOWN, VM_LOCKED,
    VM_MAYSHARE, VM_NOHUGEPAGE, VM_NORESERVE, VM_READ, VM_SEALED, VM_SHARED, VM_WIPEONFORK, VM_WRITE,
};
use std::collections::BTreeMap;

impl Thread<'_> {
    /// Splits and takes out what is in `[start, end)`; on error splits stay.
    pub(super) fn unmap_range(&mut self, start: u64, end: u64) -> Result<(), Errno> {
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

    pub(super) fn munmap(&mut self, start: u64, len: u64) -> Done {
        if start & MASK != 0 || start > TASK_SIZE || len > TASK_SIZE - start {
            return Err(Errno::EINVAL);
        }
        let end = start + page_align(len);
        if end == start {
            return Err(Errno::EINVAL);
        }
        self.unmap_range(start, end).map(|()| 0)
    }

    pub(super) fn mmap(&mut self, addr: u64, len: u64, prot: u32, flags: u32, fd: Option<u32>, offset: u64) -> Done {
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
    pub(super) fn hint_is_free(&self, addr: u64, len: u64) -> bool {
        if addr == 0 || addr > TASK_SIZE - len {
            return false;
        }
        let next = self.p.vmas.list.get(self.p.vmas.at_or_after(addr));
        next.is_none_or(|n| addr + len <= start_gap(n))
    }

    pub(super) fn brk(&mut self, to: u64) -> u64 {
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
