// SPDX-License-Identifier: GPL-2.0-only
//! Carries the steps of a [`Trace`] out on a [`Backend`], and compares what came of it with the log, or with another
//! backend.
//!
//! Page faults are in no log. The [`Touch`] policy makes some up: after a call that succeeded and made a range writable
//! (mmap, brk, mprotect with `PROT_WRITE`), the thread that called writes one byte in its first page, in all of its pages,
//! or in none.
//!
//! Where a call comes out differently from the log, the replay goes on: what depends on it will differ as well, so the
//! first difference is the one to look at.

use super::normalise::{Expect, Op, PAGE, Step, Trace};
use crate::mm::task_mmu::{smaps_flags, vm_flags_line};
use crate::mm::{Call, VmaInfo};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Which pages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// None: no page is ever there, no VMA is ever faulted.
    None,
    /// The first page of each range that becomes writable.
    First,
    /// Every page of it, at most [`ALL_MOST`].
    All,
}

/// Pages of one range that [`Touch::All`] writes at most: 64 MiB.
pub const ALL_MOST: u64 = 16_384;

impl Touch {
    /// Slug.
    pub fn name(self) -> &'static str {
        match self {
            Touch::None => "none",
            Touch::First => "first",
            Touch::All => "all",
        }
    }
    /// A sentence for reports.
    pub fn policy(self) -> &'static str {
        match self {
            Touch::None => "nothing is touched",
            Touch::First => "the caller writes the first page of each range that becomes writable",
            Touch::All => "the caller writes every page of each range that becomes writable, 16384 at most",
        }
    }
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fail {
    /// With this error.
    Errno(String),
    /// The backend does not know it.
    Unsupported,
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fail::Errno(e) => f.write_str(e),
            Fail::Unsupported => f.write_str("not known here"),
        }
    }
}

/// What is counted of each call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Time, ns, with one reading of the clock in it.
    pub ns: u64,
    /// Events; see [`METERS`].
    pub events: [u64; METERS.len()],
}

/// Events of a [`Meter`], by the names of their counters.
pub const METERS: [&str; 8] = [
    "vma_alloc",
    "vma_free",
    "maple_node_alloc",
    "maple_node_dead",
    "rcu_callbacks_queued",
    "vma_lock_retry",
    "vma_lock_abort",
    "pgfault",
];

impl Meter {
    fn add(&mut self, o: &Meter) {
        self.ns += o.ns;
        for (a, b) in self.events.iter_mut().zip(o.events) {
            *a += b;
        }
    }
}

/// Address spaces in which calls are carried out; they are named by the trace's numbers.
pub trait Backend {
    /// A fresh, empty one.
    ///
    /// # Errors
    /// The replay cannot go on.
    fn new_space(&mut self, mm: u32) -> Result<(), String>;
    /// Its break starts at `at`.
    ///
    /// # Errors
    /// The replay cannot go on.
    fn brk_start(&mut self, mm: u32, at: u64) -> Result<(), String>;
    /// `child` begins as a copy.
    ///
    /// # Errors
    /// The replay cannot go on.
    fn fork(&mut self, mm: u32, child: u32, meter: &mut Meter) -> Result<(), Fail>;
    /// Its last thread is gone.
    ///
    /// # Errors
    /// The replay cannot go on.
    fn end(&mut self, mm: u32, meter: &mut Meter) -> Result<(), String>;
    /// One call.
    ///
    /// # Errors
    /// The call's.
    fn call(&mut self, mm: u32, call: &Call, meter: &mut Meter) -> Result<u64, Fail>;
    /// Its VMAs, from below.
    ///
    /// # Errors
    /// The replay cannot go on.
    fn maps(&mut self, mm: u32) -> Result<Vec<VmaInfo>, String>;
    /// The same with all of `VmFlags`, which some backends are slow to tell.
    ///
    /// # Errors
    /// The replay cannot go on.
    fn smaps(&mut self, mm: u32) -> Result<Vec<VmaInfo>, String>;
    /// How many VMAs it has, where that is cheap to know.
    fn map_count(&mut self, mm: u32) -> u32;
    /// Whether [`Backend::new_space`] made `mm` and it has not ended.
    fn has(&self, mm: u32) -> bool;
}

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Made.
    pub calls: u64,
    /// The log says that they failed.
    pub errors_expected: u64,
    /// They failed here.
    pub errors_got: u64,
    /// The backend does not know them.
    pub unsupported: u64,
    /// What they cost.
    pub meter: Meter,
}

/// A call that came out differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Line of the log.
    pub line: u64,
    /// Thread.
    pub tid: u32,
    /// The call, what was expected and what came.
    pub what: String,
}

/// What came of a replay.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// By kind of call; `fork`, `exit`, `touch` and `foreign` are kinds too.
    pub kinds: BTreeMap<&'static str, Kind>,
    /// Where it came out differently from the log.
    pub differences: Vec<Difference>,
    /// Most VMAs of one address space.
    pub peak_map_count: u32,
    /// Writes that ended in a signal.
    pub bad_touches: u64,
    /// Why the replay ended early.
    pub stopped: Option<String>,
    /// Result of each step, where they are kept.
    pub results: Vec<String>,
    /// Hash of the maps after each step, where they are kept; 0 where the address space is gone.
    pub hashes: Vec<u64>,
    /// Maps with all flags at each end of an address space, where they are kept: (index of the step, maps).
    pub ends: Vec<(usize, Vec<VmaInfo>)>,
}

/// How to replay.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pages to write.
    pub touch: Touch,
    /// Whether to keep results and maps, for a comparison with another backend.
    pub keep: bool,
}

const PROT_WRITE: u32 = 2;
/// `MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE`
const FOREIGN: u32 = 0x10_0022;

/// The mapping that stands for memory that no log has.
pub fn foreign(addr: u64, len: u64) -> Call {
    Call::Mmap { addr, len, prot: 3, flags: FOREIGN, fd: None, offset: 0 }
}

/// The range that `call` made writable.
pub fn made_writable(call: &Call, result: u64, brk_before: Option<u64>) -> Option<(u64, u64)> {
    let up = |a: u64| a.next_multiple_of(PAGE);
    match *call {
        Call::Mmap { len, prot, .. } if prot & PROT_WRITE != 0 => Some((result, up(result + len))),
        Call::Mprotect { addr, len, prot } if prot & PROT_WRITE != 0 && len > 0 => Some((addr, up(addr + len))),
        Call::Brk { .. } => brk_before.map(up).filter(|b| *b < up(result)).map(|b| (b, up(result))),
        _ => None,
    }
}

struct Run<'a, B: Backend> {
    backend: &'a mut B,
    options: Options,
    out: Outcome,
    /// The break of each address space.
    brk: BTreeMap<u32, u64>,
}

/// Replays `trace` once. Address spaces that are open at the trace's end are ended there.
pub fn replay<B: Backend>(trace: &Trace, backend: &mut B, options: Options) -> Outcome {
    let mut r = Run { backend, options, out: Outcome::default(), brk: BTreeMap::new() };
    for (i, step) in trace.steps.iter().enumerate() {
        if let Err(e) = r.step(i, step) {
            r.out.stopped = Some(format!("line {}: {e}", step.line));
            break;
        }
    }
    r.out
}

impl<B: Backend> Run<'_, B> {
    fn step(&mut self, i: usize, s: &Step) -> Result<(), String> {
        let result = match &s.op {
            Op::New => self.backend.new_space(s.mm).map(|()| String::new())?,
            Op::BrkStart { at } => {
                self.brk.insert(s.mm, *at);
                self.backend.brk_start(s.mm, *at).map(|()| String::new())?
            }
            Op::Fork { child } => self.fork(s, *child)?,
            Op::End => {
                if self.options.keep && self.backend.has(s.mm) {
                    let maps = self.backend.smaps(s.mm)?;
                    self.out.ends.push((i, maps));
                }
                let mut m = Meter::default();
                if self.backend.has(s.mm) {
                    self.backend.end(s.mm, &mut m)?;
                }
                let k = self.out.kinds.entry("exit").or_default();
                k.calls += 1;
                k.meter.add(&m);
                String::new()
            }
            Op::Foreign { addr, len } => self.call(s, "foreign", &foreign(*addr, *len))?,
            Op::Call(c) => self.call(s, c.name(), c)?,
        };
        if self.options.keep {
            self.out.results.push(result);
            let hash = if self.backend.has(s.mm) { hash_of(&self.backend.maps(s.mm)?) } else { 0 };
            self.out.hashes.push(hash);
        }
        Ok(())
    }

    fn differs(&mut self, s: &Step, what: String) {
        self.out.differences.push(Difference { line: s.line, tid: s.tid, what });
    }

    fn fork(&mut self, s: &Step, child: u32) -> Result<String, String> {
        let mut m = Meter::default();
        let r = self.backend.fork(s.mm, child, &mut m);
        let k = self.out.kinds.entry("fork").or_default();
        k.calls += 1;
        k.meter.add(&m);
        if let Some(b) = self.brk.get(&s.mm) {
            self.brk.insert(child, *b);
        }
        let Err(e) = r else { return Ok(String::new()) };
        if e == Fail::Unsupported {
            k.unsupported += 1;
        } else {
            k.errors_got += 1;
            self.differs(s, format!("fork: the log says it succeeded, here {e}"));
        }
        // The child's calls need some address space.
        self.backend.new_space(child)?;
        Ok(e.to_string())
    }

    fn call(&mut self, s: &Step, kind: &'static str, call: &Call) -> Result<String, String> {
        let mut m = Meter::default();
        let r = self.backend.call(s.mm, call, &mut m);
        let k = self.out.kinds.entry(kind).or_default();
        k.calls += 1;
        k.meter.add(&m);
        k.errors_expected += u64::from(matches!(s.expect, Expect::Error(_)));
        match &r {
            Err(Fail::Unsupported) => k.unsupported += 1,
            Err(Fail::Errno(_)) => k.errors_got += 1,
            Ok(_) => {}
        }
        let said = match &s.expect {
            Expect::Value(v) => Some(format!("{v:#x}")),
            Expect::Error(e) => Some(e.clone()),
            Expect::Unknown => None,
        };
        let came = match &r {
            Ok(v) => format!("{v:#x}"),
            Err(e) => e.to_string(),
        };
        if let Some(said) = said.filter(|said| *said != came && r != Err(Fail::Unsupported)) {
            self.differs(s, format!("{}: the log says {said}, here {came}", describe(call)));
        }
        if let (Ok(v), Call::Mmap { len, .. }, Expect::Error(_)) = (&r, call, &s.expect) {
            // It must not stay: later calls of the log know nothing of it.
            let undo = Call::Munmap { addr: *v, len: *len };
            drop(self.backend.call(s.mm, &undo, &mut Meter::default()));
        } else if let Ok(v) = r {
            let before = self.brk.get(&s.mm).copied();
            if matches!(call, Call::Brk { .. }) {
                self.brk.insert(s.mm, v);
            }
            if let Some((start, end)) = made_writable(call, v, before) {
                self.touch(s, start, end)?;
            }
        }
        self.out.peak_map_count = self.out.peak_map_count.max(self.backend.map_count(s.mm));
        Ok(came)
    }

    fn touch(&mut self, s: &Step, start: u64, end: u64) -> Result<(), String> {
        let most = match self.options.touch {
            Touch::None => return Ok(()),
            Touch::First => 1,
            Touch::All => ALL_MOST,
        };
        let pages = ((end - start) / PAGE).min(most);
        let mut m = Meter::default();
        let mut bad = 0;
        for i in 0..pages {
            match self.backend.call(s.mm, &Call::Write { addr: start + i * PAGE, value: 1 }, &mut m) {
                Ok(_) => {}
                Err(_) => bad += 1,
            }
        }
        let k = self.out.kinds.entry("touch").or_default();
        k.calls += pages;
        k.errors_got += bad;
        k.meter.add(&m);
        self.out.bad_touches += bad;
        Ok(())
    }
}

/// A call in a few words.
pub fn describe(call: &Call) -> String {
    match *call {
        Call::Mmap { addr, len, prot, flags, fd, offset } => {
            let file = fd.map_or("anonymous".to_string(), |f| format!("file {f} at {offset:#x}"));
            format!("mmap({addr:#x}, {len:#x}, prot {prot:#x}, flags {flags:#x}, {file})")
        }
        Call::Munmap { addr, len } => format!("munmap({addr:#x}, {len:#x})"),
        Call::Mprotect { addr, len, prot } => format!("mprotect({addr:#x}, {len:#x}, {prot:#x})"),
        Call::Madvise { addr, len, advice } => format!("madvise({addr:#x}, {len:#x}, {advice})"),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            format!("mremap({addr:#x}, {old_len:#x}, {new_len:#x}, flags {flags:#x}, {new_addr:#x})")
        }
        Call::Brk { to } => format!("brk({to:#x})"),
        Call::Mlock { addr, len, flags } => format!("mlock2({addr:#x}, {len:#x}, {flags:#x})"),
        Call::Munlock { addr, len } => format!("munlock({addr:#x}, {len:#x})"),
        Call::Mlockall { flags } => format!("mlockall({flags:#x})"),
        Call::Munlockall => "munlockall()".into(),
        Call::Mseal { addr, len } => format!("mseal({addr:#x}, {len:#x})"),
        Call::Read { addr } => format!("a read at {addr:#x}"),
        Call::Write { addr, .. } => format!("a write at {addr:#x}"),
        Call::Personality { read_implies_exec: on } => {
            format!("personality(READ_IMPLIES_EXEC {})", if on { "on" } else { "off" })
        }
        Call::Mdwe { bits } => format!("prctl(PR_SET_MDWE, {bits:#x})"),
        Call::Fork => "fork()".into(),
        Call::Exit => "exit()".into(),
    }
}

/// What of a VMA the maps of a process show: range, rights, private or shared, file and offset. Shared anonymous memory
/// is a file of the kernel's own in maps, which has no number in a trace.
fn shown(v: &VmaInfo) -> (u64, u64, u64, Option<u32>, u64) {
    // VM_READ, VM_WRITE, VM_EXEC; VM_MAYSHARE is the letter `s`.
    (v.start, v.end, v.flags & 0x87, v.file, v.offset)
}

fn hash_of(maps: &[VmaInfo]) -> u64 {
    let mut h = DefaultHasher::new();
    maps.iter().for_each(|v| shown(v).hash(&mut h));
    h.finish()
}

/// What of a VMA smaps shows.
fn shown_whole(v: &VmaInfo) -> (u64, u64, u64, Option<u32>, u64) {
    (v.start, v.end, v.flags & smaps_flags(), v.file, v.offset)
}

/// A VMA as a line of maps, with the words of its `VmFlags`.
pub fn line_of(v: &VmaInfo) -> String {
    let bit = |b: u64, c: char| if v.flags & b != 0 { c } else { '-' };
    let (r, w, x) = (bit(1, 'r'), bit(2, 'w'), bit(4, 'x'));
    let s = if v.flags & 0x80 != 0 { 's' } else { 'p' };
    let file = v.file.map_or(String::new(), |f| format!(" file {f} at {:#x}", v.offset));
    format!("{:x}-{:x} {r}{w}{x}{s}{file} {{{}}}", v.start, v.end, vm_flags_line(v.flags))
}

/// Lines that only one of two smaps has: (the first's, the second's).
pub fn maps_differ(a: &[VmaInfo], b: &[VmaInfo]) -> Option<(Vec<String>, Vec<String>)> {
    let only = |x: &[VmaInfo], y: &[VmaInfo]| -> Vec<String> {
        x.iter().filter(|v| !y.iter().any(|w| shown_whole(w) == shown_whole(v))).map(line_of).collect()
    };
    let d = (only(a, b), only(b, a));
    (!d.0.is_empty() || !d.1.is_empty()).then_some(d)
}

/// How two replays of one trace compare.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Steps after which both maps were looked at.
    pub steps: usize,
    /// Ends of address spaces at which the maps were compared line by line.
    pub ends: usize,
    /// Results that differ, the first few: the line and both.
    pub results: Vec<String>,
    /// How many results differ.
    pub results_differ: u64,
    /// Maps that differ at an end, in words.
    pub maps: Vec<String>,
    /// The first step after which an address space looked different.
    pub first: Option<String>,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn agrees(&self) -> bool {
        self.results_differ == 0 && self.maps.is_empty() && self.first.is_none()
    }
}

/// Most differences that are spelt out.
const SPELT: usize = 20;

/// Compares two replays that kept their results.
pub fn compare(trace: &Trace, names: [&str; 2], a: &Outcome, b: &Outcome) -> Comparison {
    let mut c = Comparison { steps: a.hashes.len().min(b.hashes.len()), ..Comparison::default() };
    let [an, bn] = names;
    let word = |s: &Step| match &s.op {
        Op::Call(call) => describe(call),
        op => format!("{op:?}"),
    };
    for i in 0..c.steps {
        let s = &trace.steps[i];
        if a.results[i] != b.results[i] {
            c.results_differ += 1;
            if c.results.len() < SPELT {
                let (x, y) = (&a.results[i], &b.results[i]);
                c.results.push(format!("{}:{}: {}: {an} {x}, {bn} {y}", trace.file, s.line, word(s)));
            }
        }
        if c.first.is_none() && a.hashes[i] != b.hashes[i] {
            c.first = Some(format!("{}:{}: after {} the maps differ", trace.file, s.line, word(s)));
        }
    }
    for ((i, x), (j, y)) in a.ends.iter().zip(&b.ends) {
        debug_assert_eq!(i, j, "both replayed the same steps");
        c.ends += 1;
        let Some((ax, by)) = maps_differ(x, y) else { continue };
        let s = &trace.steps[*i];
        c.maps.push(format!(
            "{}:{}: address space {} (thread {}) at its end: {an} alone has [{}], {bn} alone has [{}]",
            trace.file,
            s.line,
            s.mm,
            s.tid,
            ax.join(", "),
            by.join(", ")
        ));
    }
    c
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
