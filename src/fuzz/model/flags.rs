// SPDX-License-Identifier: GPL-2.0-only
//! The reference model's calls that change the flags of what is mapped: mprotect, madvise, mlock, mseal.

use super::merge::Mutation;
use super::{Done, LOCK_MASK, MASK, Thread, page_align};
use crate::cpu::Errno;
use crate::mm::madvise::{MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE};
use crate::mm::mm_types::{
    TASK_SIZE, VM_ACCESS_FLAGS, VM_ACCOUNT, VM_DONTCOPY, VM_DONTDUMP, VM_DONTEXPAND, VM_DROPPABLE, VM_GROWSDOWN,
    VM_HUGEPAGE, VM_LOCKED, VM_LOCKONFAULT, VM_MAYSHARE, VM_MERGEABLE, VM_NOHUGEPAGE, VM_NORESERVE, VM_RAND_READ,
    VM_SEALED, VM_SEQ_READ, VM_SHARED, VM_SPECIAL, VM_WIPEONFORK, VM_WRITE,
};

impl Thread<'_> {
    pub(super) fn mprotect(&mut self, start: u64, len: u64, prot: u32) -> Done {
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
    pub(super) fn mprotect_fixup(&mut self, i: usize, start: u64, end: u64, mut flags: u64) -> Result<u64, Errno> {
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

    pub(super) fn madvise(&mut self, start: u64, len_in: u64, advice: i32) -> Done {
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
    pub(super) fn advise(&mut self, i: usize, start: u64, end: u64, advice: i32) -> Result<u64, Errno> {
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
    pub(super) fn advise_pages(&mut self, i: usize, start: u64, end: u64, advice: i32) -> Result<(), Errno> {
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

    pub(super) fn mlock(&mut self, start: u64, len: u64, flags: u32) -> Done {
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
    pub(super) fn lock_range(&mut self, start: u64, len: u64, vm: u64) -> Done {
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

    pub(super) fn mlock_fixup(&mut self, i: usize, start: u64, end: u64, vm: u64) -> Result<u64, Errno> {
        let v = self.p.vmas.list[i];
        let flags = v.flags & !LOCK_MASK | vm;
        if flags == v.flags || v.flags & (VM_SPECIAL | VM_DROPPABLE) != 0 {
            return Ok(end);
        }
        let at = self.p.vmas.modify(i, start, end, flags)?;
        Ok(self.p.vmas.list[at].end)
    }

    pub(super) fn mlockall(&mut self, flags: u32) -> Done {
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

    pub(super) fn mlockall_apply(&mut self, flags: u32) -> Done {
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

    pub(super) fn mseal(&mut self, start: u64, len_in: u64) -> Done {
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
                assert!(!self.broken(Mutation::Panics), "broken on purpose");
                at = to;
                continue;
            }
            let j = self.p.vmas.modify(i, at, to, v.flags | VM_SEALED)?;
            at = self.p.vmas.list[j].end;
        }
        Ok(0)
    }
}

fn known_advice(advice: i32, guards: bool) -> bool {
    matches!(advice, 0..=4 | 8..=24) || guards && matches!(advice, MADV_GUARD_INSTALL | MADV_GUARD_REMOVE)
}
