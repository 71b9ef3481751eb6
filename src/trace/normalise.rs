// SPDX-License-Identifier: GPL-2.0-only
//! From the events of a log to the steps of a replay: which address space each call belonged to, in which order the
//! calls took effect, and with which arguments they do the same again.
//!
//! *Order*: calls count where they ended, because the caller could use their effect only then. Releases (munmap, a break
//! that goes down, mremap that shrinks or moves) take effect before they end; where a mapping's result overlaps what a
//! still unfinished release of the same address space gives back, that release is moved before it.
//!
//! *Address spaces*: a clone with `CLONE_VM` (threads, vfork) shares its parent's, any other gets a copy: at the clone's
//! end, or before the child's first line where that comes first. An execve begins a new one. Segments, stack, vdso and
//! whatever was mapped before recording began are in no log: such memory is *foreign*. Where a call that succeeded
//! needs it, a private anonymous mapping is put there first, and counted.
//!
//! *Arguments*: a place that the kernel chose is given as a fixed one: `MAP_FIXED_NOREPLACE`, so that a wrong order shows
//! as `EEXIST` instead of eating a mapping; `MREMAP_FIXED` where an mremap moved. A file mapping names its file by path
//! (strace `-y`), or by descriptor, where a mapping at offset 0 that is not fixed begins another file.
//!
//! What it cannot do: shmat and shmdt (the segment's size is in no log), prctl; they are counted with the reason. Huge
//! pages of hugetlb become ordinary memory of the rounded length.

use super::flags::{CLONE_THREAD, CLONE_VM, PR_SET_VMA};
use super::parse::{Fd, Log, Ret, Sys, What};
use crate::mm::Call;
use crate::mm::mmap::{MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE};
use crate::mm::prctl::{READ_IMPLIES_EXEC, mdwe_inherited};
use std::collections::{BTreeMap, HashMap};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

const MAP_FIXED: u32 = 0x10;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_HUGETLB: u32 = 0x4_0000;
const MAP_SYNC: u32 = 0x8_0000;
const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
/// `MAP_HUGE_MASK << MAP_HUGE_SHIFT`
const MAP_HUGE: u32 = 0x3f << 26;
const MREMAP_MAYMOVE: u32 = 1;
const MREMAP_FIXED: u32 = 2;
const MREMAP_DONTUNMAP: u32 = 4;
const MADV_HWPOISON: i32 = 100;
const MADV_SOFT_OFFLINE: i32 = 101;

/// What the log says of a call's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It succeeded with this value.
    Value(u64),
    /// It failed with this error.
    Error(String),
    /// Nobody saw.
    Unknown,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A system call of the trace.
    Call(Call),
    /// The step's address space begins, empty.
    New,
    /// Its break starts here; a kernel's execve sets it.
    BrkStart {
        /// Where.
        at: u64,
    },
    /// A mapping that a later call needs and the log does not have.
    Foreign {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// A copy of the step's address space begins.
    Fork {
        /// The copy.
        child: u32,
    },
    /// The last thread has left the step's address space.
    End,
}

/// One step of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line of the log where the call ended.
    pub line: u64,
    /// us since the log's first time; 0 without times.
    pub time_us: u64,
    /// Thread.
    pub tid: u32,
    /// Address space, an index into [`Trace::spaces`].
    pub mm: u32,
    /// What is done.
    pub op: Op,
    /// What the log says came of it.
    pub expect: Expect,
    /// Taken before its place in the log; see the module.
    pub moved: bool,
}

/// Where an address space comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Born {
    /// An execve.
    Exec,
    /// A copy of another one.
    Fork(u32),
    /// It was there when the recording began.
    Attached,
}

/// One address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// Where from.
    pub born: Born,
    /// Line where it begins.
    pub line: u64,
    /// The thread that began it.
    pub tid: u32,
}

/// A file that is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Its path, or `fd N` and a count.
    pub name: String,
    /// Bytes from its start to the end of the last mapping.
    pub len: u64,
}

/// Calls that are not replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// Why.
    pub why: &'static str,
}

/// A log, ready to be replayed.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The log's file name.
    pub file: String,
    /// FNV-1a of the file.
    pub hash: u64,
    /// What is done, in this order.
    pub steps: Vec<Step>,
    /// Address spaces; [`Step::mm`] is an index.
    pub spaces: Vec<AddressSpace>,
    /// Files; `fd` of [`Call::Mmap`] is an index.
    pub files: Vec<FileSpec>,
    /// Memory calls of the log by name.
    pub calls: BTreeMap<&'static str, u64>,
    /// Of these, what is not replayed.
    pub left_out: BTreeMap<&'static str, LeftOut>,
    /// Threads seen.
    pub threads: u32,
    /// Releases moved before a mapping.
    pub moved: u64,
    /// Mappings made up because a call needs them.
    pub foreign: u64,
    /// Address spaces that were still in use where the log ends.
    pub open_at_end: u32,
}

/// Ranges of addresses, none overlapping and none touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        let hit: Vec<_> = self.0.range(..end).rev().take_while(|(_, e)| **e > start).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in hit {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, start);
            }
            if e > end {
                self.0.insert(end, e);
            }
        }
    }

    pub(super) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        self.remove(start, end);
        if let Some((s, _)) = self.0.range(..start).next_back().filter(|(_, e)| **e == start) {
            start = *s;
        }
        if let Some(e) = self.0.remove(&end) {
            end = e;
        }
        self.0.insert(start, end);
    }

    /// (first address, first behind) of each, from below.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(s, e)| (*s, *e))
    }

    /// What of a range is not covered.
    fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut at = start;
        let first = self.0.range(..=start).next_back().map_or(start, |(s, _)| *s);
        for (s, e) in self.0.range(first..end) {
            if *s > at {
                out.push((at, *s));
            }
            at = at.max(*e);
        }
        if at < end {
            out.push((at, end));
        }
        out
    }
}

/// What is known of an address space while the log is read.
#[derive(Clone, Debug, Default)]
struct Known {
    ranges: Ranges,
    brk: Option<u64>,
    users: u32,
    /// `PR_MDWE_*`
    mdwe: u32,
}

#[derive(Clone, Copy, Debug)]
struct Task {
    mm: Option<u32>,
    group: u32,
}

fn down(a: u64) -> u64 {
    a & !(PAGE - 1)
}

fn up(a: u64) -> u64 {
    down(a.saturating_add(PAGE - 1))
}

fn end_of(addr: u64, len: u64) -> u64 {
    up(addr.saturating_add(len))
}

/// Makes a replay of a log.
pub fn normalise(log: &Log, hash: u64) -> Trace {
    let mut n = Normaliser {
        log,
        t: Trace { file: log.file.clone(), hash, ..Trace::default() },
        known: Vec::new(),
        tasks: HashMap::new(),
        clones: HashMap::new(),
        done: vec![false; log.events.len()],
        releases: Vec::new(),
        fds: HashMap::new(),
        files: HashMap::new(),
        exits_shown: log.events.iter().any(|e| e.what == What::Ended),
        start: log.events.iter().filter_map(|e| e.time_us).min().unwrap_or(0),
    };
    for (i, e) in log.events.iter().enumerate() {
        if let What::Call(sys, ret) = &e.what {
            match (sys, ret) {
                (Sys::Clone { .. }, Ret::Value(child)) => n.clones.entry(*child as u32).or_default().push(i),
                (Sys::Memory { call: Call::Munmap { .. } | Call::Brk { .. } | Call::Mremap { .. }, .. }, _)
                    if e.begun < e.line =>
                {
                    n.releases.push(i)
                }
                _ => {}
            }
        }
    }
    for i in 0..log.events.len() {
        n.event(i);
    }
    n.finish()
}

struct Normaliser<'a> {
    log: &'a Log,
    t: Trace,
    known: Vec<Known>,
    tasks: HashMap<u32, Task>,
    /// Clones by their child, in order.
    clones: HashMap<u32, Vec<usize>>,
    /// Events that were taken before their turn.
    done: Vec<bool>,
    /// Calls cut in two that may release memory, in the order of their ends.
    releases: Vec<usize>,
    /// The file that a descriptor without a path stands for.
    fds: HashMap<(u32, i32), u32>,
    files: HashMap<String, u32>,
    exits_shown: bool,
    start: u64,
}

impl Normaliser<'_> {
    fn push(&mut self, i: usize, mm: u32, op: Op, expect: Expect, moved: bool) {
        let e = &self.log.events[i];
        let time_us = e.time_us.map_or(0, |t| t.saturating_sub(self.start));
        self.t.steps.push(Step { line: e.line, time_us, tid: e.tid, mm, op, expect, moved });
    }

    fn space(&mut self, i: usize, born: Born, tid: u32) -> u32 {
        let id = self.t.spaces.len() as u32;
        self.t.spaces.push(AddressSpace { born, line: self.log.events[i].line, tid });
        let copy = if let Born::Fork(p) = born { self.known[p as usize].clone() } else { Known::default() };
        self.known.push(Known { users: 1, mdwe: mdwe_inherited(copy.mdwe), ..copy });
        id
    }

    /// The address space of `tid`, which is made up if nothing said where it comes from.
    fn mm(&mut self, i: usize, tid: u32) -> u32 {
        if let Some(mm) = self.tasks[&tid].mm {
            return mm;
        }
        let mm = self.space(i, Born::Attached, tid);
        self.push(i, mm, Op::New, Expect::Unknown, false);
        self.task(tid).mm = Some(mm);
        mm
    }

    fn task(&mut self, tid: u32) -> &mut Task {
        let threads = &mut self.t.threads;
        self.tasks.entry(tid).or_insert_with(|| {
            *threads += 1;
            Task { mm: None, group: tid }
        })
    }

    /// A task stops using its address space.
    fn leave(&mut self, i: usize, tid: u32) {
        let Some(mm) = self.tasks.get_mut(&tid).and_then(|t| t.mm.take()) else { return };
        let k = &mut self.known[mm as usize];
        k.users -= 1;
        if k.users == 0 {
            self.push(i, mm, Op::End, Expect::Unknown, false);
        }
    }

    fn end_task(&mut self, i: usize, tid: u32) {
        self.leave(i, tid);
        self.tasks.remove(&tid);
    }

    /// Ends the other threads of a group where the log will not say so.
    fn end_others(&mut self, i: usize, tid: u32) {
        if self.exits_shown {
            return;
        }
        let group = self.tasks[&tid].group;
        let mut others: Vec<u32> =
            self.tasks.iter().filter(|(t, k)| **t != tid && k.group == group).map(|(t, _)| *t).collect();
        others.sort_unstable();
        for t in others {
            self.end_task(i, t);
        }
    }

    /// The child of a clone begins, at event `at`.
    fn clone_child(&mut self, clone: usize, at: usize) {
        let e = &self.log.events[clone];
        let What::Call(Sys::Clone { flags }, Ret::Value(child)) = &e.what else { return };
        let (parent, child, flags) = (e.tid, *child as u32, *flags);
        self.done[clone] = true;
        *self.t.calls.entry("clone").or_default() += 1;
        // A number that was used before: its end is not in the log.
        self.end_task(at, child);
        self.task(parent);
        let mm = self.mm(at, parent);
        let group = if flags & CLONE_THREAD != 0 { self.tasks[&parent].group } else { child };
        let own = if flags & CLONE_VM != 0 {
            self.known[mm as usize].users += 1;
            mm
        } else {
            let own = self.space(at, Born::Fork(mm), child);
            self.push(at, mm, Op::Fork { child: own }, Expect::Unknown, at < clone);
            own
        };
        *self.task(child) = Task { mm: Some(own), group };
    }

    fn event(&mut self, i: usize) {
        let e = &self.log.events[i];
        let tid = e.tid;
        if self.done[i] {
            return;
        }
        if !self.tasks.contains_key(&tid) {
            // The child's first line can come before the line where its parent's clone ends.
            let begun = |c: &&usize| **c > i && !self.done[**c] && self.log.events[**c].begun < e.line;
            let clone = self.clones.get(&tid).and_then(|c| c.iter().find(begun)).copied();
            match clone {
                Some(c) => self.clone_child(c, i),
                None if e.what == What::Ended => return,
                None => {
                    self.task(tid);
                }
            }
        }
        match &e.what {
            What::Ended => self.end_task(i, tid),
            What::Superseded(by) => {
                // The leader's TID goes on as the thread that called execve.
                let old = self.tasks.remove(by);
                self.leave(i, tid);
                if let Some(old) = old {
                    *self.task(tid) = old;
                }
            }
            What::Call(sys, ret) => self.call(i, tid, sys, ret, false),
        }
    }

    fn leave_out(&mut self, name: &'static str, why: &'static str) {
        let l = self.t.left_out.entry(name).or_default();
        l.count += 1;
        l.why = why;
    }

    fn call(&mut self, i: usize, tid: u32, sys: &Sys, ret: &Ret, moved: bool) {
        if !matches!(sys, Sys::Clone { .. }) {
            *self.t.calls.entry(sys.name()).or_default() += 1;
        }
        match sys {
            Sys::Clone { .. } => match ret {
                Ret::Value(_) => self.clone_child(i, i),
                _ => *self.t.calls.entry("clone").or_default() += 1,
            },
            Sys::Execve => {
                if matches!(ret, Ret::Value(_)) {
                    self.end_others(i, tid);
                    // Of what may be executed, 64-bit programs begin without READ_IMPLIES_EXEC; the rest goes as to a child.
                    let mdwe = self.tasks[&tid].mm.map_or(0, |m| mdwe_inherited(self.known[m as usize].mdwe));
                    self.leave(i, tid);
                    let mm = self.space(i, Born::Exec, tid);
                    self.task(tid).mm = Some(mm);
                    self.push(i, mm, Op::New, Expect::Unknown, false);
                    if mdwe != 0 {
                        self.known[mm as usize].mdwe = mdwe;
                        self.push(i, mm, Op::Call(Call::Mdwe { bits: mdwe }), Expect::Unknown, false);
                    }
                }
            }
            Sys::Exit => self.end_task(i, tid),
            Sys::ExitGroup => {
                self.end_others(i, tid);
                self.end_task(i, tid);
            }
            Sys::Prctl { option } => {
                let why = match *option {
                    PR_SET_VMA => "names of anonymous memory are not replayed",
                    _ => "it changes no mapping that a replay knows of",
                };
                self.leave_out("prctl", why);
            }
            Sys::Personality { persona: u32::MAX } => self.leave_out("personality", "it only asks"),
            Sys::Personality { persona } => {
                if matches!(ret, Ret::Value(_)) {
                    let mm = self.mm(i, tid);
                    // What it gives is the whole personality of before.
                    let call = Call::Personality { read_implies_exec: persona & READ_IMPLIES_EXEC != 0 };
                    self.push(i, mm, Op::Call(call), Expect::Unknown, false);
                }
            }
            Sys::Shmat { .. } => self.leave_out("shmat", "the segment's size is not in a log"),
            Sys::Shmdt { .. } => self.leave_out("shmdt", "the segment's size is not in a log"),
            Sys::Memory { call, fd } => {
                let mm = self.mm(i, tid);
                self.memory(i, mm, call, fd.as_ref(), ret, moved);
            }
        }
    }

    /// Steps for what a call needs that no log has.
    fn need(&mut self, i: usize, mm: u32, start: u64, end: u64) {
        for (s, e) in self.known[mm as usize].ranges.gaps(start, end) {
            self.t.foreign += 1;
            self.push(i, mm, Op::Foreign { addr: s, len: e - s }, Expect::Value(s), false);
            self.known[mm as usize].ranges.insert(s, e);
        }
    }

    /// Moves unfinished releases of `[start, end)` before event `i`, which maps there.
    fn release_before(&mut self, i: usize, mm: u32, start: u64, end: u64) {
        let line = self.log.events[i].line;
        let from = self.releases.partition_point(|r| *r <= i);
        // Those that end later; only they can be unfinished here.
        let open: Vec<usize> = self.releases[from..]
            .iter()
            .copied()
            .filter(|r| !self.done[*r] && self.log.events[*r].begun < line)
            .filter(|r| self.tasks.get(&self.log.events[*r].tid).is_some_and(|t| t.mm == Some(mm)))
            .collect();
        for r in open {
            let e = &self.log.events[r];
            let What::Call(sys, ret) = &e.what else { continue };
            let Sys::Memory { call, .. } = sys else { continue };
            let Some((s, e_)) = self.released(mm, call, ret) else { continue };
            if s < end && e_ > start {
                self.done[r] = true;
                self.t.moved += 1;
                self.call(r, e.tid, sys, ret, true);
            }
        }
    }

    /// What a call gives back.
    fn released(&self, mm: u32, call: &Call, ret: &Ret) -> Option<(u64, u64)> {
        let moved_to = match ret {
            Ret::Error(_) => return None,
            Ret::Value(v) => Some(*v),
            Ret::Unknown => None,
        };
        match *call {
            Call::Munmap { addr, len } => Some((addr, end_of(addr, len))),
            Call::Brk { to } => self.known[mm as usize].brk.filter(|b| to != 0 && to < *b).map(|b| (up(to), up(b))),
            Call::Mremap { addr, old_len, .. } if moved_to.is_some_and(|v| v != addr) => {
                Some((addr, end_of(addr, old_len)))
            }
            Call::Mremap { addr, old_len, new_len, .. } if new_len < old_len => {
                Some((end_of(addr, new_len), end_of(addr, old_len)))
            }
            _ => None,
        }
    }

    fn memory(&mut self, i: usize, mm: u32, logged: &Call, fd: Option<&Fd>, ret: &Ret, moved: bool) {
        let expect = match ret {
            Ret::Value(v) => Expect::Value(*v),
            Ret::Error(e) => Expect::Error(e.clone()),
            Ret::Unknown => Expect::Unknown,
        };
        let good = matches!(ret, Ret::Value(_));
        if *ret == Ret::Unknown && !moved {
            self.leave_out(logged.name(), "the log ends, or its thread, before it says what came of it");
            return;
        }
        let known = mm as usize;
        let call = match *logged {
            Call::Mmap { addr, len, prot, flags, offset, .. } => {
                let mut len = len;
                let mut flags = flags;
                if flags & MAP_HUGETLB != 0 {
                    let shift = if flags & MAP_HUGE == 30 << 26 { 30 } else { 21 };
                    len = len.checked_next_multiple_of(1 << shift).unwrap_or(len);
                }
                flags &= !(MAP_HUGETLB | MAP_HUGE | MAP_SYNC);
                let fd = if flags & MAP_ANONYMOUS != 0 { None } else { fd };
                let file = fd.map(|fd| self.file(i, fd, flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0, offset, len));
                let mut at = addr;
                if let Ret::Value(v) = ret {
                    self.release_before(i, mm, *v, end_of(*v, len));
                    // What it asked to be refused for was granted; the flag that gives its place would be refused.
                    if flags & MAP_TYPE == MAP_SHARED_VALIDATE {
                        flags = flags & !MAP_TYPE | MAP_SHARED;
                    }
                    if flags & MAP_FIXED == 0 {
                        flags |= MAP_FIXED_NOREPLACE;
                    }
                    at = *v;
                    self.known[known].ranges.insert(at, end_of(at, len));
                }
                // A device of zeros is anonymous memory.
                let zero = file.is_some_and(|f| self.t.files[f as usize].name == "/dev/zero") && flags & 3 == 2;
                let (fd, offset) = if zero { (None, 0) } else { (file, offset) };
                Call::Mmap { addr: at, len, prot, flags: if zero { flags | MAP_ANONYMOUS } else { flags }, fd, offset }
            }
            Call::Munmap { addr, len } => {
                if good || moved {
                    self.known[known].ranges.remove(addr, end_of(addr, len));
                }
                Call::Munmap { addr, len }
            }
            Call::Brk { to } => {
                let Ret::Value(now) = *ret else {
                    self.leave_out("brk", "its result is not in the log");
                    return;
                };
                let Some(before) = self.known[known].brk else {
                    // The first one says where the heap is; what lay below it is foreign.
                    self.known[known].brk = Some(now);
                    self.push(i, mm, Op::BrkStart { at: now }, Expect::Value(now), false);
                    return;
                };
                if now > before {
                    self.release_before(i, mm, up(before), up(now));
                    self.known[known].ranges.insert(up(before), up(now));
                } else {
                    self.known[known].ranges.remove(up(now), up(before));
                }
                self.known[known].brk = Some(now);
                Call::Brk { to }
            }
            Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
                let mut flags = flags;
                let mut to = new_addr;
                if let Ret::Value(v) = *ret {
                    self.need(i, mm, addr, end_of(addr, old_len));
                    self.release_before(i, mm, v, end_of(v, new_len));
                    let r = &mut self.known[known].ranges;
                    if v != addr {
                        if flags & MREMAP_DONTUNMAP == 0 {
                            r.remove(addr, end_of(addr, old_len));
                        }
                        flags |= MREMAP_MAYMOVE | MREMAP_FIXED;
                        to = v;
                    } else {
                        r.remove(addr, end_of(addr, old_len));
                        // In place, or not at all.
                        flags &= !(MREMAP_MAYMOVE | MREMAP_FIXED);
                    }
                    r.insert(v, end_of(v, new_len));
                }
                Call::Mremap { addr, old_len, new_len, flags, new_addr: to }
            }
            Call::Mprotect { addr, len, prot } => {
                if good {
                    self.need(i, mm, addr, end_of(addr, len));
                }
                Call::Mprotect { addr, len, prot }
            }
            Call::Madvise { advice: MADV_HWPOISON | MADV_SOFT_OFFLINE, .. } => {
                self.leave_out("madvise", "MADV_HWPOISON and MADV_SOFT_OFFLINE take the machine's own memory away");
                return;
            }
            Call::Madvise { addr, len, advice } => {
                if good {
                    self.need(i, mm, addr, end_of(addr, len));
                }
                Call::Madvise { addr, len, advice }
            }
            Call::Mlock { addr, len, flags } => {
                if good {
                    self.need(i, mm, down(addr), end_of(addr, len));
                }
                Call::Mlock { addr, len, flags }
            }
            Call::Munlock { addr, len } => {
                if good {
                    self.need(i, mm, down(addr), end_of(addr, len));
                }
                Call::Munlock { addr, len }
            }
            Call::Mseal { addr, len } => {
                if good {
                    self.need(i, mm, addr, end_of(addr, len));
                }
                Call::Mseal { addr, len }
            }
            Call::Mlockall { flags } => Call::Mlockall { flags },
            Call::Munlockall => Call::Munlockall,
            Call::Mdwe { bits } => {
                if good {
                    self.known[known].mdwe = bits;
                }
                Call::Mdwe { bits }
            }
            _ => return,
        };
        self.push(i, mm, Op::Call(call), expect, moved);
    }

    /// The file that a mapping names.
    fn file(&mut self, i: usize, fd: &Fd, fixed: bool, offset: u64, len: u64) -> u32 {
        let group = self.tasks.get(&self.log.events[i].tid).map_or(0, |t| t.group);
        let next = self.t.files.len() as u32;
        let id = match &fd.path {
            Some(p) => *self.files.entry(p.clone()).or_insert(next),
            None if offset == 0 && !fixed => {
                self.fds.insert((group, fd.fd), next);
                next
            }
            None => *self.fds.entry((group, fd.fd)).or_insert(next),
        };
        if id == next {
            let name = fd.path.clone().unwrap_or_else(|| format!("fd {} of {group}, {next}", fd.fd));
            self.t.files.push(FileSpec { name, len: 0 });
        }
        let f = &mut self.t.files[id as usize];
        f.len = f.len.max(end_of(offset, len));
        id
    }

    fn finish(mut self) -> Trace {
        let Some(last) = self.log.events.len().checked_sub(1) else { return self.t };
        let mut left: Vec<u32> = self.tasks.keys().copied().collect();
        left.sort_unstable();
        let ends = self.t.steps.len();
        for tid in left {
            self.end_task(last, tid);
        }
        self.t.open_at_end = (self.t.steps.len() - ends) as u32;
        self.t
    }
}

#[cfg(test)]
#[path = "normalise_tests.rs"]
mod tests;
