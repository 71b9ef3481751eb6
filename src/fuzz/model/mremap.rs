// SPDX-License-Identifier: GPL-2.0-only
//! The reference model's mremap, in the two orders in which kernels make its checks.

use super::merge::{Mutation, New, Vma};
use super::{Done, LOCK_MASK, MASK, Thread, page_align};
use crate::cpu::Errno;
use crate::fuzz::backend::PAGE;
use crate::mm::mm_types::{TASK_SIZE, VM_DONTEXPAND, VM_LOCKED, VM_MAYSHARE, VM_PFNMAP, VM_SEALED};

impl Thread<'_> {
    pub(super) fn mremap(&mut self, addr: u64, old_len: u64, new_len: u64, flags: u32, new_addr: u64) -> Done {
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
    pub(super) fn move_to(
        &mut self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        new_addr: u64,
        fixed: bool,
        keep: bool,
    ) -> Done {
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
    pub(super) fn may_resize(&self, i: usize, addr: u64, old_len: u64, new_len: u64, keep: bool) -> Result<(), Errno> {
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

    pub(super) fn grow(&mut self, i: usize, addr: u64, old_len: u64, new_len: u64) -> Done {
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
    pub(super) fn move_many(&mut self, start: u64, len: u64, new_start: u64, keep: bool) -> Done {
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

    pub(super) fn move_vma(
        &mut self,
        i: usize,
        addr: u64,
        old_len: u64,
        new_len: u64,
        new_addr: u64,
        keep: bool,
    ) -> Done {
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
}
