// SPDX-License-Identifier: GPL-2.0-only
//! Reads what strace writes, line by line, into [`Event`]s in the order of the log.
//!
//! A line is `[TID] [time] name(args) = result`. The TID leads every line with `-f -o`, is `[pid N]` without `-o`, and
//! is missing without `-f` (then it is 0); with `--decode-pids=comm` the program's name follows it. Times are those of
//! `-t`, `-tt`, `-ttt` and `-r`, or none. `-i`, `-n` and `-T` are read over, `-y` gives the paths of descriptors, and
//! `-X` may be raw, abbrev or verbose.
//!
//! A call that another thread's line cut in two (`<unfinished ...>`, `<... name resumed>`) becomes one event where it
//! ended, that knows where it began. INVARIANT: events are in order of [`Event::line`].
//!
//! A line that is none of this is a [`Problem`] and the reading goes on; what a problem's line did to memory is then
//! missing. So is a call at the end of the file without a newline behind it: nobody can tell whether its result is all
//! there, and half an address is an address. Calls that are not memory calls are counted by name.

use super::flags::{self, CLONE, MADV, MAP, MCL, MLOCK, MREMAP, Names, PRCTL, PROT, number};
use crate::mm::Call;
use std::collections::BTreeMap;
use std::io::BufRead;

/// A descriptor, with its path where the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fd {
    /// Number.
    pub fd: i32,
    /// What `-y` printed.
    pub path: Option<String>,
}

/// A call of the log. Addresses and lengths are as printed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the system calls' own arguments")]
pub enum Sys {
    /// A call that a replay can make; pkey_mprotect(2) is an mprotect, since its key does not show in maps. The descriptor
    /// of an mmap stands beside it, as a file has no number yet.
    Memory {
        call: Call,
        fd: Option<Fd>,
    },
    Shmat {
        addr: u64,
    },
    Shmdt {
        addr: u64,
    },
    Prctl {
        option: u64,
    },
    Personality {
        persona: u32,
    },
    /// clone(2), clone3(2), fork(2), vfork(2): the result is the child.
    Clone {
        flags: u64,
    },
    Execve,
    Exit,
    ExitGroup,
}

impl Sys {
    /// The name under which it is counted.
    pub fn name(&self) -> &'static str {
        match self {
            Sys::Memory { call, .. } => call.name(),
            Sys::Shmat { .. } => "shmat",
            Sys::Shmdt { .. } => "shmdt",
            Sys::Prctl { .. } => "prctl",
            Sys::Personality { .. } => "personality",
            Sys::Clone { .. } => "clone",
            Sys::Execve => "execve",
            Sys::Exit => "exit",
            Sys::ExitGroup => "exit_group",
        }
    }
}

impl From<Call> for Sys {
    fn from(call: Call) -> Sys {
        Sys::Memory { call, fd: None }
    }
}

/// What a call gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ret {
    /// It succeeded.
    Value(u64),
    /// It failed, with the error's name.
    Error(String),
    /// `= ?`: the thread never saw a result, or the log ended before it.
    Unknown,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A call.
    Call(Sys, Ret),
    /// `+++ exited with N +++` or `+++ killed by SIG +++`: the thread is gone.
    Ended,
    /// `+++ superseded by execve in pid N +++`: thread N took over this TID by execve.
    Superseded(u32),
}

/// One event, at the line where it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Line, from 1.
    pub line: u64,
    /// Line where a call began: the same, or an earlier one.
    pub begun: u64,
    /// Time of the line where it began, us: since the epoch, since midnight, or since the log's first line, as recorded.
    pub time_us: Option<u64>,
    /// Thread; 0 in a log without TIDs.
    pub tid: u32,
    /// What.
    pub what: What,
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
    /// The line, shortened where it is very long.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.why, self.text)
    }
}

/// Calls that change mappings, or what they hold, and are not ported: what they did is missing in a replay.
pub const MEMORY_CALLS: [&str; 7] = [
    "map_shadow_stack",
    "mbind",
    "old_mmap",
    "process_madvise",
    "process_mrelease",
    "remap_file_pages",
    "set_mempolicy_home_node",
];

/// A log as read.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// File name, as given.
    pub file: String,
    /// Lines.
    pub lines: u64,
    /// Events, in order of their lines.
    pub events: Vec<Event>,
    /// Lines that could not be read.
    pub problems: Vec<Problem>,
    /// Calls that are no memory calls, by name.
    pub unknown: BTreeMap<String, u64>,
    /// Memory calls that the port does not know, by name.
    pub not_ported: BTreeMap<String, u64>,
    /// Signals.
    pub signals: u64,
}

/// A call of which only the first half has been read.
struct Open {
    line: u64,
    time_us: Option<u64>,
    name: String,
    text: String,
}

/// What stands before a call.
struct Head<'a> {
    tid: u32,
    time_us: Option<u64>,
    relative: bool,
    rest: &'a str,
}

/// Why a call at the end of the file is not taken.
const CUT: &str = "the last line is cut off (no newline ends it) and left out: record the log anew, or end the line if it \
                   is whole";

/// Reads a log. An error of the file itself (a truncated archive, a directory) ends it and is a problem like the others,
/// behind all that could be read.
pub fn parse(file: &str, mut input: impl BufRead) -> Log {
    let log = Log { file: file.to_string(), ..Log::default() };
    let mut p = Parser { log, open: BTreeMap::new(), clock: 0, cut: false };
    let mut raw = Vec::new();
    loop {
        raw.clear();
        // What came before an error is in `raw`.
        let damage = input.read_until(b'\n', &mut raw).err();
        if raw.is_empty() && damage.is_none() {
            break;
        }
        p.log.lines += 1;
        p.cut = !raw.ends_with(b"\n");
        let text = String::from_utf8_lossy(&raw);
        let text = text.trim_end();
        if let Err(why) = p.line(text) {
            let why = if p.cut && why != CUT { format!("{CUT}: {why}") } else { why };
            p.problem(p.log.lines, why, text);
        }
        if let Some(e) = damage {
            let why = format!("the file cannot be read on from here, copy or record it anew: {e}");
            p.problem(p.log.lines, why, "");
            break;
        }
    }
    p.end()
}

struct Parser {
    log: Log,
    open: BTreeMap<u32, Open>,
    /// Sum of the relative times so far, us.
    clock: u64,
    /// No newline ends the line.
    cut: bool,
}

impl Parser {
    fn problem(&mut self, line: u64, why: String, text: &str) {
        const MOST: usize = 240;
        let mut short: String = text.chars().take(MOST).collect();
        if short.len() < text.len() {
            short.push_str("...");
        }
        self.log.problems.push(Problem { file: self.log.file.clone(), line, why, text: short });
    }

    /// Calls whose second half never came: a program that was killed, or a log that was cut. Nobody knows whether they
    /// took effect.
    fn end(mut self) -> Log {
        for (tid, o) in std::mem::take(&mut self.open) {
            let (line, begun, text) = (self.log.lines, o.line, format!("{}({}", o.name, o.text));
            if let Err(why) = self.lost(line, tid, o) {
                self.problem(begun, why, &text);
            }
        }
        self.log
    }

    fn line(&mut self, text: &str) -> Result<(), String> {
        let line = self.log.lines;
        // strace's own messages, when they go to the same place as the log.
        if text.is_empty() || text.starts_with("strace: ") || text.starts_with(MODE) {
            return Ok(());
        }
        if text.starts_with("Process ") && (text.ends_with("attached") || text.ends_with("detached")) {
            return Ok(());
        }
        let Head { tid, time_us, relative, rest } = head(text)?;
        if rest.starts_with(MODE) {
            return Ok(());
        }
        let time_us = match (time_us, relative) {
            (Some(t), true) => {
                self.clock += t;
                Some(self.clock)
            }
            (t, _) => t,
        };
        if rest.starts_with("--- ") {
            self.log.signals += 1;
            return if rest.ends_with(" ---") { Ok(()) } else { Err("a signal's line without its end".into()) };
        }
        if let Some(end) = rest.strip_prefix("+++ ") {
            return self.ended(line, time_us, tid, end);
        }
        if let Some(r) = rest.strip_prefix("<... ") {
            let (name, r) = r.split_once(" resumed>").ok_or("a resumed call without its 'resumed>'")?;
            let o = self.open.remove(&tid).ok_or_else(|| format!("{name} is resumed but was never begun"))?;
            if o.name != name {
                return Err(format!("{name} is resumed, but {} of line {} is unfinished", o.name, o.line));
            }
            // A call can be cut more than once.
            if let Some(more) = unfinished(r) {
                self.open.insert(tid, Open { text: format!("{}{}", o.text, more.0), ..o });
                return Ok(());
            }
            let joined = format!("{}{r}", o.text);
            return self.call(&o.name, &joined, line, o.line, o.time_us, tid);
        }
        let (name, args) = rest.split_once('(').ok_or("neither a call, a signal nor an exit")?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_?".contains(&b)) {
            return Err(format!("'{name}' is no name of a call"));
        }
        if let Some((begin, new_tid)) = unfinished(args) {
            let o = Open { line, time_us, name: name.to_string(), text: begin.to_string() };
            let Some(old) = self.open.insert(new_tid.unwrap_or(tid), o) else { return Ok(()) };
            // A thread's execve goes on under its leader's TID; the leader is killed in whatever it was in.
            return match new_tid {
                Some(leader) => self.lost(line, leader, old),
                None => Err(format!("{name} begins while {} of line {} is unfinished", old.name, old.line)),
            };
        }
        self.call(name, args, line, line, time_us, tid)
    }

    fn ended(&mut self, line: u64, time_us: Option<u64>, tid: u32, end: &str) -> Result<(), String> {
        let end = end.strip_suffix(" +++").ok_or("an exit's line without its end")?;
        let what = match end.strip_prefix("superseded by execve in pid ") {
            Some(n) => What::Superseded(n.trim().parse().map_err(|_| format!("'{n}' is no process"))?),
            None if end.starts_with("exited with ") || end.starts_with("killed by ") => What::Ended,
            None => return Err("neither an exit nor a kill".into()),
        };
        // What a killed thread was in is lost, and so is what a leader was in whose TID another thread's execve takes over; that
        // execve stays open, under its new TID already or (another thread's line came between) still under its own.
        let lost = match what {
            What::Superseded(by) => match self.open.remove(&by) {
                Some(execve) => self.open.insert(tid, execve),
                None => None,
            },
            _ => self.open.remove(&tid),
        };
        let r = lost.map_or(Ok(()), |o| self.lost(line, tid, o));
        self.log.events.push(Event { line, begun: line, time_us, tid, what });
        r
    }

    fn not_ported(&mut self, name: String) {
        let list = if MEMORY_CALLS.contains(&name.as_str()) { &mut self.log.not_ported } else { &mut self.log.unknown };
        *list.entry(name).or_default() += 1;
    }

    /// A call whose thread ended in it.
    fn lost(&mut self, line: u64, tid: u32, o: Open) -> Result<(), String> {
        match call(&o.name, &o.text)? {
            Some(sys) => {
                let what = What::Call(sys, Ret::Unknown);
                self.log.events.push(Event { line, begun: o.line, time_us: o.time_us, tid, what });
            }
            None => self.not_ported(o.name),
        }
        Ok(())
    }

    /// `args` is what follows the opening parenthesis.
    fn call(
        &mut self,
        name: &str,
        args: &str,
        line: u64,
        begun: u64,
        time_us: Option<u64>,
        tid: u32,
    ) -> Result<(), String> {
        if self.cut {
            return Err(CUT.into());
        }
        let (args, rest) = close(args).ok_or("the call has no closing parenthesis")?;
        let result = rest.trim_start().strip_prefix('=').ok_or("the call has no result")?.trim();
        let ret = ret(result)?;
        // A structure that could not be read is not printed.
        let refused = matches!(ret, Ret::Error(_)) && name == "clone3" && !args.contains("flags=");
        let sys = if refused { None } else { call(name, args)? };
        let Some(sys) = sys else {
            self.not_ported(name.to_string());
            return Ok(());
        };
        self.log.events.push(Event { line, begun, time_us, tid, what: What::Call(sys, ret) });
        Ok(())
    }
}

/// How strace says that a process is of another word size.
const MODE: &str = "[ Process PID=";

/// The text before a mark of an unfinished call or of one that strace let go of, and the TID under which it goes on where that changes.
fn unfinished(text: &str) -> Option<(&str, Option<u32>)> {
    if let Some(t) = text.strip_suffix("<unfinished ...>").or_else(|| text.strip_suffix("<detached ...>")) {
        return Some((t.trim_end(), None));
    }
    let (t, pid) = text.strip_suffix(" ...>")?.rsplit_once("<pid changed to ")?;
    Some((t.trim_end(), Some(pid.parse().ok()?)))
}

/// Takes TID and time off a line.
fn head(text: &str) -> Result<Head<'_>, String> {
    let (mut tid, mut time_us, mut relative) = (0, None, false);
    let mut rest = text;
    if let Some(r) = rest.strip_prefix("[pid ") {
        let (pid, r) = r.split_once(']').ok_or("a [pid without its bracket")?;
        let pid = pid.split('<').next().unwrap_or(pid).trim();
        tid = pid.parse().map_err(|_| format!("'{pid}' is no process"))?;
        rest = r.trim_start();
    } else if rest.starts_with(|c: char| c.is_ascii_digit()) {
        let n = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = &rest[n..];
        if after.starts_with(' ') || after.starts_with('<') {
            tid = rest[..n].parse().map_err(|_| format!("'{}' is no process", &rest[..n]))?;
            rest = match after.strip_prefix('<') {
                // The program's name may hold anything; the column ends with '>' and a blank.
                Some(comm) => comm.split_once("> ").ok_or("a program's name without its end")?.1.trim_start(),
                None => after.trim_start(),
            };
        }
    }
    let trimmed = rest.trim_start();
    let word = trimmed.split(' ').next().unwrap_or("");
    if word.starts_with(|c: char| c.is_ascii_digit()) && word.contains(['.', ':']) {
        let t = time(word).ok_or_else(|| format!("'{word}' is no time"))?;
        // Seconds since the epoch have ten digits; seconds since the last line do not.
        relative = !word.contains(':') && t < 100_000_000_000_000;
        time_us = Some(t);
        rest = trimmed[word.len()..].trim_start();
        // -r beside another time.
        if rest.starts_with("(+") {
            rest = rest.split_once(')').ok_or("a relative time without its end")?.1.trim_start();
        }
    } else {
        rest = trimmed;
    }
    // -n: the call's number; -i: the instruction pointer.
    while let Some(r) = rest.strip_prefix('[').filter(|_| !rest.starts_with(MODE)) {
        rest = r.split_once(']').ok_or("a bracket without its end")?.1.trim_start();
    }
    Ok(Head { tid, time_us, relative, rest })
}

/// us
fn time(word: &str) -> Option<u64> {
    let (whole, fraction) = word.split_once('.').unwrap_or((word, ""));
    let mut seconds = 0u64;
    for part in whole.split(':') {
        seconds = seconds.checked_mul(60)?.checked_add(part.parse().ok()?)?;
    }
    let mut us = 0;
    for i in 0..6 {
        let digit = fraction.as_bytes().get(i).map_or(Some(0), |b| (*b as char).to_digit(10))?;
        us = us * 10 + u64::from(digit);
    }
    seconds.checked_mul(1_000_000)?.checked_add(us)
}

/// Behind the path of a descriptor whose file is no more, memfds among them (strace 5.19 and later).
const DELETED: &str = "(deleted)";

/// Whether what stands before a '<' is a descriptor.
fn is_descriptor(before: &str) -> bool {
    before.ends_with(|c: char| c.is_ascii_digit()) || before.ends_with("AT_FDCWD")
}

/// Walks over text outside of strings, comments and decorations; `f` gets each character's place and the depth of
/// brackets before it, and says whether to stop there.
fn scan(text: &str, mut f: impl FnMut(usize, u8, u32) -> bool) -> Option<usize> {
    let b = text.as_bytes();
    let (mut i, mut depth) = (0, 0u32);
    while i < b.len() {
        match b[i] {
            b'"' => {
                i += 1;
                while i < b.len() && b[i] != b'"' {
                    i += if b[i] == b'\\' { 2 } else { 1 };
                }
            }
            b'/' if b.get(i + 1) == Some(&b'*') => {
                i += text[i..].find("*/")? + 1;
            }
            b'<' if is_descriptor(&text[..i]) && b.get(i + 1) != Some(&b'<') => {
                // A descriptor's path; its end is a '>' before the argument's end, or before the word for a deleted file.
                let mut j = i + 1;
                let ends = |j: usize| {
                    matches!(b.get(j + 1), None | Some(b',' | b')' | b' ' | b']'))
                        || b[j + 1..].starts_with(DELETED.as_bytes())
                };
                while j < b.len() && !(b[j] == b'>' && ends(j)) {
                    j += 1;
                }
                i = j;
            }
            c => {
                if f(i, c, depth) {
                    return Some(i);
                }
                match c {
                    b'(' | b'[' | b'{' => depth += 1,
                    b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
        i += 1;
    }
    None
}

/// Arguments up to the closing parenthesis, and what is behind it.
fn close(text: &str) -> Option<(&str, &str)> {
    let at = scan(text, |_, c, depth| c == b')' && depth == 0)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Arguments.
fn split(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut from = 0;
    scan(text, |i, c, depth| {
        if c == b',' && depth == 0 {
            out.push(text[from..i].trim());
            from = i + 1;
        }
        false
    });
    let last = text[from..].trim();
    if !last.is_empty() || !out.is_empty() {
        out.push(last);
    }
    out
}

fn ret(text: &str) -> Result<Ret, String> {
    let word = text.split([' ', '<']).next().unwrap_or("");
    match word {
        "?" => Ok(Ret::Unknown),
        "-1" => {
            let name = text[2..].trim_start().split([' ', '(']).next().unwrap_or("");
            if name.starts_with('E') {
                return Ok(Ret::Error(name.to_string()));
            }
            // strace knew no name: `-1 (errno 4242)`.
            let n = text.split_once("errno ").and_then(|(_, n)| n.trim_end_matches(')').trim().parse().ok());
            n.map(|n| Ret::Error(flags::errno_name(n))).ok_or_else(|| format!("'{text}' names no error"))
        }
        _ => {
            // --pidns-translation: the child's number in the log follows the one that its parent saw.
            let outside = text.split_once("/* ").and_then(|(_, c)| c.split_once(" in strace's PID NS"));
            let word = outside.map_or(word, |(n, _)| n);
            number(word).map(Ret::Value).ok_or_else(|| format!("'{text}' is no result"))
        }
    }
}

struct Args<'a> {
    name: &'a str,
    list: Vec<&'a str>,
}

impl Args<'_> {
    fn text(&self, i: usize) -> Result<&str, String> {
        self.list.get(i).copied().ok_or_else(|| format!("{} lacks argument {}", self.name, i + 1))
    }
    fn number(&self, i: usize) -> Result<u64, String> {
        let t = self.text(i)?;
        number(t).ok_or_else(|| format!("argument {} of {}: '{t}' is no number", i + 1, self.name))
    }
    fn flags(&self, i: usize, names: Names) -> Result<u32, String> {
        let of = |e| format!("argument {} of {}: {e}", i + 1, self.name);
        let v = flags::flags(self.text(i)?, names).map_err(of)?;
        // An int that was printed as a long keeps its low half, as in the kernel.
        Ok(v as u32)
    }
    fn fd(&self, i: usize) -> Result<Option<Fd>, String> {
        let t = self.text(i)?;
        let (n, path) = match t.split_once('<') {
            Some((n, p)) => {
                let p = p.strip_suffix(DELETED).unwrap_or(p);
                (n, Some(p.strip_suffix('>').ok_or_else(|| format!("'{t}' is no descriptor"))?))
            }
            None => (t, None),
        };
        let fd = number(n).ok_or_else(|| format!("'{t}' is no descriptor"))? as i32;
        Ok((fd >= 0).then(|| Fd { fd, path: path.map(str::to_string) }))
    }
}

/// The call, `None` where it is no memory call.
fn call(name: &str, args: &str) -> Result<Option<Sys>, String> {
    let a = Args { name, list: split(args) };
    let sys = match name {
        "mmap" | "mmap2" => {
            let (addr, len, offset) = (a.number(0)?, a.number(1)?, a.number(5)?);
            let (prot, flags) = (a.flags(2, PROT)?, a.flags(3, MAP)?);
            Sys::Memory { call: Call::Mmap { addr, len, prot, flags, fd: None, offset }, fd: a.fd(4)? }
        }
        "munmap" => Call::Munmap { addr: a.number(0)?, len: a.number(1)? }.into(),
        "mprotect" | "pkey_mprotect" => {
            Call::Mprotect { addr: a.number(0)?, len: a.number(1)?, prot: a.flags(2, PROT)? }.into()
        }
        "madvise" => Call::Madvise { addr: a.number(0)?, len: a.number(1)?, advice: a.flags(2, MADV)? as i32 }.into(),
        "mremap" => {
            let flags = a.flags(3, MREMAP)?;
            // The fifth argument is printed only where the flags use it.
            let new_addr = if a.list.len() > 4 { a.number(4)? } else { 0 };
            Call::Mremap { addr: a.number(0)?, old_len: a.number(1)?, new_len: a.number(2)?, flags, new_addr }.into()
        }
        "brk" => Call::Brk { to: a.number(0)? }.into(),
        "mlock" => Call::Mlock { addr: a.number(0)?, len: a.number(1)?, flags: 0 }.into(),
        "mlock2" => Call::Mlock { addr: a.number(0)?, len: a.number(1)?, flags: a.flags(2, MLOCK)? }.into(),
        "munlock" => Call::Munlock { addr: a.number(0)?, len: a.number(1)? }.into(),
        "mlockall" => Call::Mlockall { flags: a.flags(0, MCL)? }.into(),
        "munlockall" => Call::Munlockall.into(),
        "mseal" => Call::Mseal { addr: a.number(0)?, len: a.number(1)? }.into(),
        "shmat" => Sys::Shmat { addr: a.number(1)? },
        "shmdt" => Sys::Shmdt { addr: a.number(0)? },
        "prctl" => {
            let t = a.text(0)?;
            // The names of prctl's options are many; those that are not about memory need no number.
            match flags::flags(t, PRCTL).unwrap_or(u64::MAX) {
                flags::PR_SET_MDWE => Call::Mdwe { bits: a.flags(1, flags::MDWE)? }.into(),
                option => Sys::Prctl { option },
            }
        }
        "personality" => Sys::Personality { persona: a.flags(0, flags::PERSONALITY)? },
        "clone" | "clone3" => {
            let (_, f) = args.split_once("flags=").ok_or_else(|| format!("{name} lacks its flags"))?;
            let f = f.split([',', '}', ')']).next().unwrap_or(f);
            let known: Vec<_> = f.split('|').filter(|p| !p.trim().starts_with("SIG")).collect();
            Sys::Clone { flags: if known.is_empty() { 0 } else { flags::flags(&known.join("|"), CLONE)? } }
        }
        "fork" => Sys::Clone { flags: 0 },
        "vfork" => Sys::Clone { flags: flags::CLONE_VM },
        "execve" | "execveat" => Sys::Execve,
        "exit" => Sys::Exit,
        "exit_group" => Sys::ExitGroup,
        _ => return Ok(None),
    };
    Ok(Some(sys))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
