// SPDX-License-Identifier: GPL-2.0-only
//! The reference model's merge and split rules, on a sorted vector (vma-ops.md 4, 5).
//!
//! custom: everything. No tree, no locks, no objects: a VMA is a record, an anon_vma is a number, a chain is its length.
//! The rules are written down a second time on purpose, so that an error would have to be made twice.

use crate::cpu::Errno;
use crate::fuzz::backend::PAGE;
use crate::mm::MmRules;
use crate::mm::mm_types::{VM_ACCESS_FLAGS, VM_MAYBE_GUARD, VM_SHARED, VM_SPECIAL};

/// A rule of the model that is broken on purpose: tests let the fuzzer find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Ranges merge whatever their flags' ACCOUNT bit.
    MergeIgnoresAccount,
    /// A new range between two that fit joins only the left.
    NoMergeBothSides,
    /// Merging does not look at page offsets.
    MergeIgnoresOffset,
    /// A VMA inherited from a parent merges like any other.
    ForkChildMerges,
    /// Different anon_vmas are no obstacle.
    MergeIgnoresAnonVma,
    /// The first write fault never shares a neighbour's anon_vma.
    NoSharedAnonVma,
    /// The second half of a split keeps the page offset of the first.
    SplitKeepsOffset,
    /// A hole in an mprotect is no error.
    MprotectSkipsHoles,
    /// A hole in a madvise ends it.
    MadviseStopsAtHoles,
    /// A sealed mapping may be unmapped.
    UnmapSealed,
    /// A failed unmapping leaves no splits behind.
    GatherRejoins,
    /// Stacks grow up to their neighbour.
    NoGuardGap,
    /// The heap grows up to its neighbour.
    BrkWithoutGap,
    /// Madvise reports ENOMEM where a split fails.
    MadviseSplitEnomem,
    /// An unfaulted mapping keeps its page offset when it moves.
    MoveKeepsOffset,
    /// A mapping becoming unwritable stays accounted.
    AccountStays,
    /// mlock of inaccessible memory succeeds.
    MlockIgnoresNone,
    /// The child of a fork keeps its locks.
    ForkKeepsLocks,
    /// A child inherits what must not be copied.
    ForkCopiesAll,
    /// DONTNEED works on locked memory.
    DontneedLocked,
    /// The limit of VMAs is one higher.
    LimitOneHigher,
    /// Discarded pages keep their bytes.
    DontneedKeepsBytes,
    /// The model panics at an mseal of a sealed mapping. Not a rule, so not one of [`Mutation::ALL`]: for whoever wants to
    /// see what becomes of a panic.
    Panics,
}

impl Mutation {
    /// All of them.
    pub const ALL: &[Mutation] = &[
        Mutation::MergeIgnoresAccount,
        Mutation::NoMergeBothSides,
        Mutation::MergeIgnoresOffset,
        Mutation::ForkChildMerges,
        Mutation::MergeIgnoresAnonVma,
        Mutation::NoSharedAnonVma,
        Mutation::SplitKeepsOffset,
        Mutation::MprotectSkipsHoles,
        Mutation::MadviseStopsAtHoles,
        Mutation::UnmapSealed,
        Mutation::GatherRejoins,
        Mutation::NoGuardGap,
        Mutation::BrkWithoutGap,
        Mutation::MadviseSplitEnomem,
        Mutation::MoveKeepsOffset,
        Mutation::AccountStays,
        Mutation::MlockIgnoresNone,
        Mutation::ForkKeepsLocks,
        Mutation::ForkCopiesAll,
        Mutation::DontneedLocked,
        Mutation::LimitOneHigher,
        Mutation::DontneedKeepsBytes,
    ];
}

impl Mutation {
    /// The one of that name, as its debug form has it.
    pub fn named(name: &str) -> Option<Mutation> {
        Self::ALL.iter().chain(&[Mutation::Panics]).find(|m| format!("{m:?}").eq_ignore_ascii_case(name)).copied()
    }
}

/// An anon_vma and the length of the chain that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anon {
    /// Which.
    pub id: u32,
    /// Links: more than one once a fork made it.
    pub links: u32,
}

/// A VMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// `VM_*`
    pub flags: u64,
    /// Page offset of the start.
    pub pgoff: u64,
    /// Page number of the start at creation, whatever is mapped (7.3).
    pub anon_pgoff: u64,
    /// File.
    pub file: Option<u32>,
    /// Where its own pages hang; `None` until the first write fault.
    pub anon: Option<Anon>,
}

impl Vma {
    /// Its pages.
    pub fn pages(&self) -> u64 {
        (self.end - self.start) / PAGE
    }
    /// Whether changes stay private.
    pub fn is_private(&self) -> bool {
        self.flags & VM_SHARED == 0
    }
    /// Private or not, without a file.
    pub fn is_anonymous(&self) -> bool {
        self.file.is_none()
    }
    /// Moves the start by `pages`.
    fn behead(&mut self, pages: i64) {
        self.start = self.start.wrapping_add_signed(pages * PAGE as i64);
        self.pgoff = self.pgoff.wrapping_add_signed(pages);
        self.anon_pgoff = self.anon_pgoff.wrapping_add_signed(pages);
    }
}

/// How a new range came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New {
    /// By mmap(2).
    Plain,
    /// A VMA grows by it.
    Extension,
    /// mremap(2) copies a VMA to it.
    Copy {
        /// The start of a VMA that it must not join.
        keep: Option<u64>,
    },
    /// The heap grows: it joins what is below it only.
    Heap {
        /// The start of a VMA below the heap's beginning, which it does not see.
        foreign: Option<u64>,
    },
}

/// The VMAs of one address space, and the rules that hold for them.
#[derive(Clone, Debug)]
pub struct Vmas {
    /// In order of address.
    pub list: Vec<Vma>,
    /// Rules of the kernel.
    pub rules: MmRules,
    /// `max_map_count`
    pub limit: usize,
    /// What is broken.
    pub mutation: Option<Mutation>,
}

impl Vmas {
    /// Whether `m` is what is broken.
    pub fn broken(&self, m: Mutation) -> bool {
        self.mutation == Some(m)
    }

    /// Number of the first VMA that ends behind `addr`.
    pub fn at_or_after(&self, addr: u64) -> usize {
        self.list.partition_point(|v| v.end <= addr)
    }

    /// Number of the VMA that holds `addr`.
    pub fn at(&self, addr: u64) -> Option<usize> {
        let i = self.at_or_after(addr);
        (i < self.list.len() && self.list[i].start <= addr).then_some(i)
    }

    /// Whether anything overlaps `[start, end)`.
    pub fn any(&self, start: u64, end: u64) -> bool {
        let i = self.at_or_after(start);
        i < self.list.len() && self.list[i].start < end
    }

    fn sticky(&self) -> u64 {
        if self.rules.maybe_guard_flag { VM_MAYBE_GUARD } else { 0 }
    }

    /// Whether `a` and `b`, one behind the other, are the same but for their anon_vmas.
    fn same(&self, a: &Vma, b: &Vma) -> bool {
        let account = if self.broken(Mutation::MergeIgnoresAccount) { crate::mm::mm_types::VM_ACCOUNT } else { 0 };
        let offsets = a.pgoff.wrapping_add(a.pages()) == b.pgoff || self.broken(Mutation::MergeIgnoresOffset);
        let created = !self.rules.anon_pgoff
            || a.file.is_none()
            || !a.is_private()
            || a.anon_pgoff.wrapping_add(a.pages()) == b.anon_pgoff;
        a.end == b.start
            && (a.flags ^ b.flags) & !(self.sticky() | account) == 0
            && a.file == b.file
            && offsets
            && created
    }

    /// Whether the range's anon_vma and the neighbour's may become one. `own` says that the range is a VMA or a copy of one,
    /// and not just an extension.
    fn anon_fits(&self, range: &Vma, neighbour: &Vma, own: bool) -> bool {
        if self.broken(Mutation::MergeIgnoresAnonVma) {
            return true;
        }
        let single = |a: Anon| a.links == 1 || self.broken(Mutation::ForkChildMerges);
        if self.rules.merge_faulted_with_unfaulted {
            return match (range.anon, neighbour.anon) {
                (Some(a), None) => !own || single(a),
                (None, Some(b)) => single(b),
                (a, b) => a.map(|a| a.id) == b.map(|b| b.id),
            };
        }
        match (range.anon, neighbour.anon) {
            (a, Some(b)) if a.is_none() && single(b) => true,
            (a, b) => a.map(|a| a.id) == b.map(|b| b.id),
        }
    }

    /// Which neighbours of the range at place `i` fit: the one before `i`, the one at `next`.
    fn fits(&self, range: &Vma, prev: Option<Vma>, next: Option<Vma>, own: bool) -> (bool, bool) {
        if range.flags & VM_SPECIAL != 0 {
            return (false, false);
        }
        let left = prev.is_some_and(|p| self.same(&p, range) && self.anon_fits(range, &p, own));
        let mut right = next.is_some_and(|n| self.same(range, &n) && self.anon_fits(range, &n, own));
        if left && right {
            let (p, n) = (prev.and_then(|p| p.anon), next.and_then(|n| n.anon));
            let apart = p.is_some() && n.is_some() && p.map(|a| a.id) != n.map(|a| a.id);
            right = !apart && !self.broken(Mutation::NoMergeBothSides) || self.broken(Mutation::MergeIgnoresAnonVma);
        }
        (left, right)
    }

    /// A new range joins its neighbours where it fits: the number of the VMA that it became part of. The range is free.
    /// `how` it came to be decides what it may join.
    pub fn merge_new(&mut self, range: &Vma, how: New) -> Option<usize> {
        let keep = match how {
            New::Copy { keep } => keep,
            New::Heap { foreign } => foreign,
            New::Plain | New::Extension => None,
        };
        let left_only = matches!(how, New::Heap { .. });
        let next_at = self.at_or_after(range.start);
        let known = |v: Vma| (Some(v.start) != keep).then_some(v);
        let prev = next_at.checked_sub(1).map(|i| self.list[i]).and_then(known);
        let next = self.list.get(next_at).copied().filter(|_| !left_only).and_then(known);
        let (left, right) = self.fits(range, prev, next, matches!(how, New::Copy { .. }));
        let gu = self.sticky();
        match (left, right) {
            (false, false) => None,
            (true, both) => {
                let n = self.list[next_at - 1 + usize::from(both)];
                let p = &mut self.list[next_at - 1];
                p.end = range.end;
                p.anon = p.anon.or(range.anon);
                p.flags |= range.flags & gu;
                if both {
                    p.end = n.end;
                    p.anon = p.anon.or(n.anon);
                    p.flags |= n.flags & gu;
                    self.list.remove(next_at);
                }
                Some(next_at - 1)
            }
            (false, true) => {
                let n = &mut self.list[next_at];
                n.behead(-(range.pages() as i64));
                n.anon = n.anon.or(range.anon);
                n.flags |= range.flags & gu;
                Some(next_at)
            }
        }
    }

    /// A range of its own.
    pub fn insert(&mut self, v: Vma) -> usize {
        let i = self.at_or_after(v.start);
        self.list.insert(i, v);
        i
    }

    /// Splits VMA `i` at `addr`.
    pub fn split_unchecked(&mut self, i: usize, addr: u64) {
        let pages = (addr - self.list[i].start) / PAGE;
        let mut upper = self.list[i];
        upper.behead(pages as i64);
        if self.broken(Mutation::SplitKeepsOffset) {
            upper.pgoff -= pages;
        }
        self.list[i].end = addr;
        self.list.insert(i + 1, upper);
    }

    /// The limit as it is looked at.
    pub fn full_at(&self, n: usize) -> bool {
        self.list.len() >= n + usize::from(self.broken(Mutation::LimitOneHigher))
    }

    /// As `split_vma()`, with the limit.
    ///
    /// # Errors
    /// `ENOMEM`
    pub fn split(&mut self, i: usize, addr: u64) -> Result<(), Errno> {
        if self.full_at(self.limit) {
            return Err(Errno::ENOMEM);
        }
        self.split_unchecked(i, addr);
        Ok(())
    }

    /// Part `[start, end)` of VMA `i` gets `flags`: joins what it then equals, or is split off. Returns the number of the
    /// VMA that holds it.
    ///
    /// # Errors
    /// `ENOMEM`; a first split stays.
    pub fn modify(&mut self, i: usize, start: u64, end: u64, flags: u64) -> Result<usize, Errno> {
        let m = self.list[i];
        let (head, tail) = (start == m.start, end == m.end);
        let mut range = m;
        range.end = end;
        range.behead(((start - m.start) / PAGE) as i64);
        range.end = end;
        range.flags = flags;
        let prev = if head { i.checked_sub(1).map(|p| self.list[p]) } else { None };
        let next = if tail { self.list.get(i + 1).copied() } else { None };
        let (left, right) = self.fits(&range, prev, next, true);
        let gu = self.sticky();
        let set = |s: &mut Self, at: usize| {
            let v = &mut s.list[at];
            v.flags = flags | v.flags & gu;
            Ok(at)
        };
        match (left, right) {
            (true, true) => {
                let n = self.list[i + 1];
                let p = &mut self.list[i - 1];
                p.end = n.end;
                p.anon = p.anon.or(m.anon).or(n.anon);
                p.flags |= (m.flags | n.flags) & gu;
                self.list.drain(i..i + 2);
                set(self, i - 1)
            }
            (true, false) => {
                let p = &mut self.list[i - 1];
                p.end = end;
                p.anon = p.anon.or(m.anon);
                p.flags |= m.flags & gu;
                if tail {
                    self.list.remove(i);
                } else {
                    self.list[i].behead(range.pages() as i64);
                }
                set(self, i - 1)
            }
            (false, true) => {
                let n = &mut self.list[i + 1];
                n.behead(-(range.pages() as i64));
                n.anon = n.anon.or(m.anon);
                n.flags |= m.flags & gu;
                if head {
                    self.list.remove(i);
                    return set(self, i);
                }
                self.list[i].end = start;
                set(self, i + 1)
            }
            (false, false) => {
                let mut at = i;
                if !head {
                    self.split(at, start)?;
                    at += 1;
                }
                if !tail {
                    self.split(at, end)?;
                }
                set(self, at)
            }
        }
    }

    /// What `VMA i` gets at its first write fault: a neighbour's anon_vma, or a `fresh` one.
    pub fn prepare_anon(&mut self, i: usize, fresh: &mut u32) {
        if self.list[i].anon.is_some() {
            return;
        }
        let compatible = |a: &Vma, b: &Vma| {
            a.end == b.start
                && a.file == b.file
                && (a.flags ^ b.flags) & !(VM_ACCESS_FLAGS | self.sticky()) == 0
                && a.pgoff.wrapping_add(a.pages()) == b.pgoff
                && !self.broken(Mutation::NoSharedAnonVma)
        };
        let v = &self.list[i];
        let single = |n: &Vma| n.anon.filter(|a| a.links == 1);
        let next = self.list.get(i + 1).filter(|n| compatible(v, n)).and_then(single);
        let prev = i.checked_sub(1).map(|p| &self.list[p]).filter(|p| compatible(p, v)).and_then(single);
        let anon = next.or(prev).unwrap_or_else(|| {
            *fresh += 1;
            Anon { id: *fresh, links: 1 }
        });
        self.list[i].anon = Some(anon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::mm_types::{VM_READ, VM_WRITE};

    fn vmas(rules: MmRules) -> Vmas {
        Vmas { list: Vec::new(), rules, limit: 100, mutation: None }
    }
    fn v(start: u64, end: u64, flags: u64, anon: Option<Anon>) -> Vma {
        Vma { start: start * PAGE, end: end * PAGE, flags, pgoff: start, anon_pgoff: start, file: None, anon }
    }
    fn one(id: u32) -> Option<Anon> {
        Some(Anon { id, links: 1 })
    }

    #[test]
    fn the_hole_between_two_faulted_ones_joins_the_left_only() {
        let mut s = vmas(MmRules::V6_12);
        s.insert(v(0, 1, 3, one(1)));
        s.insert(v(2, 3, 3, one(2)));
        assert_eq!(s.merge_new(&v(1, 2, 3, None), New::Plain), Some(0));
        assert_eq!(s.list.iter().map(|v| v.end / PAGE).collect::<Vec<_>>(), [2, 3]);
        let mut s = vmas(MmRules::V6_12);
        s.insert(v(0, 1, 3, None));
        s.insert(v(2, 3, 3, one(2)));
        assert_eq!(s.merge_new(&v(1, 2, 3, None), New::Plain), Some(0));
        assert_eq!((s.list.len(), s.list[0].anon), (1, one(2)));
    }

    #[test]
    fn a_faulted_middle_joins_an_unfaulted_neighbour_by_rule() {
        for (rules, joined) in [(MmRules::V6_12, false), (MmRules::V6_18, true)] {
            let mut s = vmas(rules);
            s.insert(v(0, 2, VM_READ, None));
            s.insert(v(2, 4, VM_READ | VM_WRITE, one(1)));
            s.modify(1, 2 * PAGE, 4 * PAGE, VM_READ).unwrap();
            assert_eq!(s.list.len() == 1, joined, "{rules:?}");
        }
    }

    #[test]
    fn borders_move_and_middles_split() {
        let mut s = vmas(MmRules::V6_12);
        s.insert(v(0, 2, VM_READ, None));
        s.insert(v(2, 8, VM_WRITE, None));
        assert_eq!(s.modify(1, 2 * PAGE, 4 * PAGE, VM_READ), Ok(0));
        assert_eq!((s.list[0].end / PAGE, s.list[1].pgoff), (4, 4));
        assert_eq!(s.modify(1, 5 * PAGE, 6 * PAGE, VM_READ), Ok(2));
        assert_eq!(s.list.iter().map(|v| v.pgoff).collect::<Vec<_>>(), [0, 4, 5, 6]);
        s.limit = 4;
        assert_eq!(s.modify(0, 0, PAGE, VM_WRITE), Err(Errno::ENOMEM));
    }
}
