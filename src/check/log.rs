// SPDX-License-Identifier: GPL-2.0-only
//! What happened in one execution: every access with its CPU, its line, its word and its value, and what can be read off
//! that afterwards: which loads returned a value that was no longer the newest, and whose store they missed.
//!
//! INVARIANT: steps are in the order in which the world did them, and stores to one word take effect in that order. In the
//! model checker's world a load may return an older one.

use crate::arch::{Fence, Prim};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What an access was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A load.
    Load(Ordering),
    /// A store.
    Store(Ordering),
    /// A read-modify-write that stored.
    Rmw(Ordering),
    /// A compare-and-exchange that did not.
    Failed,
    /// A fence.
    Fence(Fence),
    /// A load that a lock protects.
    Get,
    /// A store that a lock protects.
    Set,
}

impl Op {
    /// The kernel's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Load(Ordering::Acquire) => "load acquire",
            Op::Load(_) => "load",
            Op::Store(Ordering::Release) => "store release",
            Op::Store(_) => "store",
            Op::Rmw(Ordering::Acquire) => "rmw acquire",
            Op::Rmw(Ordering::Release) => "rmw release",
            Op::Rmw(Ordering::SeqCst) => "rmw full",
            Op::Rmw(_) => "rmw",
            Op::Failed => "cmpxchg fails",
            Op::Fence(Fence::Full) => "smp_mb",
            Op::Fence(Fence::Read) => "smp_rmb",
            Op::Fence(Fence::Write) => "smp_wmb",
            Op::Get => "read",
            Op::Set => "write",
        }
    }
    fn reads(self) -> bool {
        matches!(self, Op::Load(_) | Op::Get | Op::Rmw(_) | Op::Failed)
    }
    fn writes(self) -> bool {
        matches!(self, Op::Store(_) | Op::Set | Op::Rmw(_))
    }
}

#[derive(Clone, Copy, Debug)]
struct Access {
    cpu: u32,
    at: &'static Location<'static>,
    op: Op,
    word: usize,
    /// What was read.
    read: u64,
    /// What was written.
    written: u64,
    /// Begun, and not seen to end: it races.
    racing: bool,
}

/// One execution.
#[derive(Debug, Default)]
pub struct Log {
    accesses: Vec<Access>,
    /// Where the setting-up ends.
    begun: usize,
    /// First address, address behind, name.
    names: Vec<(usize, usize, String)>,
}

/// A step as people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number, from 1.
    pub nr: usize,
    /// The CPU: `reader` or `writer`.
    pub cpu: String,
    /// `file:line`, below `src/`.
    pub at: String,
    /// What was done.
    pub op: String,
    /// To which word; empty for a fence.
    pub word: String,
    /// What it read or wrote: `3`, or `3 -> 4`.
    pub value: String,
    /// Of a load that returned an older value: the step whose store it missed, and its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:4} {:7} {:34} {:13} {} {}", self.nr, self.cpu, self.at, self.op, self.word, self.value)?;
        match &self.missed {
            Some(m) => write!(f, "   ({m})"),
            None => Ok(()),
        }
    }
}

thread_local! {
    static LOG: RefCell<Option<Arc<Mutex<Log>>>> = const { RefCell::new(None) };
}

/// The log of this thread, for a thread that is to write into it too.
pub fn current() -> Option<Arc<Mutex<Log>>> {
    LOG.with_borrow(Clone::clone)
}

/// Makes `log` this thread's; none: nothing is written down.
pub fn set_current(log: Option<Arc<Mutex<Log>>>) {
    LOG.set(log);
}

fn with<R>(f: impl FnOnce(&mut Log) -> R) -> Option<R> {
    LOG.with_borrow(|l| l.as_ref().map(|l| f(&mut l.lock().unwrap_or_else(|e| e.into_inner()))))
}

/// A value as a number; pointers as their address.
pub fn number<T: Prim>(v: T) -> u64 {
    let mut bytes = [0u8; 8];
    let n = size_of::<T>();
    assert!(n <= 8);
    // SAFETY: a word is an integer or a thin pointer: `n` bytes, all of them set.
    unsafe { std::ptr::copy_nonoverlapping((&raw const v).cast::<u8>(), bytes.as_mut_ptr(), n) };
    u64::from_le_bytes(bytes)
}

/// A new execution begins.
pub fn begin() {
    with(|l| *l = Log::default());
}

/// What comes before is setting up.
pub fn begun() {
    with(|l| l.begun = l.accesses.len());
}

/// `len` bytes at `p` are called `name`; words that were named before keep their name.
pub fn name(p: *const u8, len: usize, name: impl Into<String>) {
    with(|l| l.names.push((p as usize, p as usize + len, name.into())));
}

/// An access of CPU `cpu`.
pub fn access(cpu: u32, at: &'static Location<'static>, op: Op, word: usize, read: u64, written: u64) {
    with(|l| l.accesses.push(Access { cpu, at, op, word, read, written, racing: false }));
}

/// An access of CPU `cpu` begins, in which the world may find that it races; [`raced`] follows where it does not.
pub fn racing(cpu: u32, at: &'static Location<'static>, op: Op, word: usize) {
    with(|l| l.accesses.push(Access { cpu, at, op, word, read: 0, written: 0, racing: true }));
}

/// The last access of this CPU ended, with this value.
pub fn raced(v: u64) {
    with(|l| {
        let a = l.accesses.last_mut().expect("racing() came before");
        (a.read, a.written, a.racing) = (v, v, false);
    });
}

/// A fence of CPU `cpu`.
pub fn fence(cpu: u32, at: &'static Location<'static>, f: Fence) {
    access(cpu, at, Op::Fence(f), 0, 0, 0);
}

/// Where the log stands, for [`stored`].
pub fn mark() -> usize {
    with(|l| l.accesses.len()).unwrap_or(0)
}

/// Whether anybody has stored into `word` since `mark`; exchanges do not count.
pub fn stored(mark: usize, word: *const u8) -> bool {
    let plain = |a: &Access| a.word == word as usize && matches!(a.op, Op::Store(_));
    with(|l| l.accesses[mark..].iter().any(plain)).unwrap_or(false)
}

/// Number of accesses since the setting-up.
pub fn len() -> usize {
    with(|l| l.accesses.len() - l.begun).unwrap_or(0)
}

/// Which sites were passed, with what they did there; everything, the setting-up included.
pub fn sites() -> Vec<(&'static Location<'static>, Op)> {
    with(|l| l.accesses.iter().map(|a| (a.at, a.op)).collect()).unwrap_or_default()
}

/// A line below `src/`.
pub fn place(at: &Location<'_>) -> String {
    let file = at.file();
    let file = file.split_once("src/").map_or(file, |(_, f)| f);
    format!("{file}:{}", at.line())
}

fn shown(v: u64) -> String {
    match v {
        0..=99_999 => v.to_string(),
        v if v == u64::from(u32::MAX) => "UINT_MAX".into(),
        v => format!("{v:#x}"),
    }
}

/// The steps of this thread's execution since it was set up, as far as they touch words that have a name.
pub fn steps() -> Vec<Step> {
    with(|l| l.steps()).unwrap_or_default()
}

impl Log {
    fn name_of(&self, word: usize) -> Option<String> {
        let hit = self.names.iter().find(|n| (n.0..n.1).contains(&word))?;
        Some(if word == hit.0 { hit.2.clone() } else { format!("{}+{:#x}", hit.2, word - hit.0) })
    }

    /// An address that has a name of its own reads better as that.
    fn value(&self, v: u64) -> String {
        let named = self.names.iter().find(|n| n.0 as u64 == v && n.2.ends_with(" mm"));
        named.map_or_else(|| shown(v), |n| n.2.clone())
    }

    fn steps(&self) -> Vec<Step> {
        let mut out: Vec<Step> = Vec::new();
        // Of each word the last store: its step, or nothing of the setting-up's, and its value.
        let mut newest: std::collections::HashMap<usize, (Option<usize>, u64)> = std::collections::HashMap::new();
        for (i, a) in self.accesses.iter().enumerate() {
            let before = newest.get(&a.word).copied();
            let fence = matches!(a.op, Op::Fence(_));
            let name = if fence { Some(String::new()) } else { self.name_of(a.word) };
            let nr = out.len() + 1;
            if i >= self.begun
                && let Some(word) = name
            {
                let value = match a.op {
                    _ if a.racing => "races: nothing orders it against the other CPU's accesses".into(),
                    Op::Fence(_) => String::new(),
                    Op::Rmw(_) => format!("{} -> {}", self.value(a.read), self.value(a.written)),
                    op if op.reads() => format!("= {}", self.value(a.read)),
                    _ => format!("<- {}", self.value(a.written)),
                };
                let missed =
                    before.filter(|(_, v)| !a.racing && a.op.reads() && !matches!(a.op, Op::Rmw(_)) && *v != a.read);
                out.push(Step {
                    nr,
                    cpu: if a.cpu == 0 {
                        "writer".into()
                    } else {
                        format!("reader{}", if a.cpu == 1 { "" } else { "2" })
                    },
                    at: place(a.at),
                    op: a.op.name().into(),
                    word,
                    value,
                    missed: missed.map(|(step, v)| {
                        let by = step.map_or("of the setting-up".into(), |s| format!("of step {s}"));
                        format!("an older value: missed the store {by}, {}", self.value(v))
                    }),
                });
            }
            if a.op.writes() {
                let step = (i >= self.begun && out.last().is_some_and(|s| s.nr == nr)).then_some(nr);
                newest.insert(a.word, (step, a.written));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_is_late_names_the_store_it_missed() {
        set_current(Some(Arc::default()));
        begin();
        let at = Location::caller();
        access(0, at, Op::Store(Ordering::Relaxed), 64, 0, 1);
        name(64 as *const u8, 8, "word");
        begun();
        access(0, at, Op::Store(Ordering::Release), 64, 0, 2);
        access(0, at, Op::Store(Ordering::Relaxed), 4096, 0, 9);
        access(1, at, Op::Load(Ordering::Acquire), 64, 1, 0);
        access(1, at, Op::Rmw(Ordering::Relaxed), 64, 2, 3);
        access(1, at, Op::Load(Ordering::Relaxed), 64, 3, 0);
        let s = steps();
        set_current(None);
        assert_eq!(s.len(), 4, "what has no name is not told: {s:?}");
        assert_eq!(s[1].missed.as_deref(), Some("an older value: missed the store of step 1, 2"));
        assert!(s[0].missed.is_none() && s[2].missed.is_none() && s[3].missed.is_none());
        assert_eq!((s[2].value.as_str(), s[1].cpu.as_str()), ("2 -> 3", "reader"));
        assert!(s[0].at.starts_with("check/log.rs:"));
    }
}
