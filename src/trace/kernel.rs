// SPDX-License-Identifier: GPL-2.0-only
//! The running kernel as a [`Backend`]: each address space of the trace is a process of its own, held by ptrace.
//!
//! A trace uses the whole address space, and a helper program with an image, a stack and a C library would lie in its way.
//! So the helper here is a process in which *everything* has been unmapped but one page of code (`tracee.rs`), put where
//! the trace never maps anything. Addresses need no relocation, and a fork in the trace is a fork of that process with all
//! that the kernel does for it.
//!
//! stub: threads (one process makes all calls of an address space, in the trace's order), exec (a new address space is a
//! fork of the empty process), times (most of a call's time is ptrace's).
//!
//! It cannot tell VMAs that differ only in what smaps does not show, as page offsets of anonymous memory; between two ends
//! of address spaces it looks at maps alone, where `VmFlags` are missing.

use super::normalise::{Op, PAGE, Trace};
use super::observe::{self, Seen};
use super::replay::{Backend, Fail, Meter};
use super::tracee::{Ran, STORE, kill, map_code, os, parse_maps, run, set_start_brk, start_empty, system_call};
use crate::mm::{Call, MmRules, VmaInfo};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// How a break is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrkHow {
    /// By brk(2), after prctl(`PR_SET_MM_MAP`) put its start where the trace has it.
    Real,
    /// As mmap and munmap of the same range: the host's kernel does not let the start be set (it is built without
    /// `CONFIG_CHECKPOINT_RESTORE`).
    Mapped,
}

struct Space {
    pid: libc::pid_t,
    brk: u64,
    how: BrkHow,
}

/// See the module. A tracer is one thread: this one.
pub struct KernelBackend {
    spaces: HashMap<u32, Space>,
    /// The empty process that all others are forked from.
    empty: libc::pid_t,
    page: u64,
    files: Vec<OwnedFd>,
    inodes: HashMap<u64, u32>,
    mapped_breaks: u32,
    _one_thread: PhantomData<*const ()>,
}

/// Free memory around the page, so that it never merges with or stops anything of the trace's.
const MARGIN: u64 = 16 << 20;

/// Where the page can be: far from everything in `trace`.
fn free_places(trace: &Trace) -> impl Iterator<Item = u64> {
    let mut used: Vec<(u64, u64)> = Vec::new();
    for s in &trace.steps {
        // What reaches beyond all addresses is refused, and takes no room.
        let mut put = |a: u64, len: u64| {
            if let Some(e) = a.checked_add(len).filter(|e| *e <= 1 << 47) {
                used.push((a, e));
            }
        };
        match &s.op {
            Op::Foreign { addr, len } => put(*addr, *len),
            Op::BrkStart { at } => put(*at, PAGE),
            Op::Call(c) => match *c {
                Call::Mmap { addr, len, .. }
                | Call::Munmap { addr, len }
                | Call::Mprotect { addr, len, .. }
                | Call::Madvise { addr, len, .. } => put(addr, len),
                Call::Mremap { addr, old_len, new_len, new_addr, .. } => {
                    put(addr, old_len.max(new_len));
                    put(new_addr, new_len);
                }
                Call::Brk { to } => put(to, PAGE),
                _ => {}
            },
            _ => {}
        }
    }
    // Below anything that a process maps by itself, between programs and libraries, and elsewhere.
    let candidates = (0..64).map(|i| 0x2000_0000_0000 + i * 0x100_0000_0000);
    candidates.filter(move |&c| used.iter().all(|&(s, e)| e + MARGIN <= c || s >= c + PAGE + MARGIN))
}

impl KernelBackend {
    /// Starts the empty process for the files and addresses of `trace`.
    ///
    /// # Errors
    /// One line: what the host refused.
    pub fn new(trace: &Trace) -> Result<Self, String> {
        let (files, inodes) = open_files(trace)?;
        // Where something of this very process is, another helper that starts just now for one, the next place does.
        let page = free_places(trace)
            .find_map(|p| map_code(p).map(|taken| (!taken).then_some(p)).transpose())
            .ok_or("the trace leaves no room for the helper's page")??;
        let empty = start_empty(page);
        // SAFETY: the page that map_code() made; the child has its own.
        unsafe { libc::munmap(page as *mut _, PAGE as usize) };
        let empty = empty?;
        let spaces = HashMap::new();
        Ok(KernelBackend { spaces, empty, page, files, inodes, mapped_breaks: 0, _one_thread: PhantomData })
    }

    /// How many breaks were moved by mmap and munmap, because their start could not be set.
    pub fn mapped_breaks(&self) -> u32 {
        self.mapped_breaks
    }

    fn syscall(&self, pid: libc::pid_t, nr: libc::c_long, args: [u64; 6]) -> Result<u64, Fail> {
        match run(pid, self.page, nr as u64, args) {
            Ok(r) if r.rax > -4096i64 as u64 => {
                Err(Fail::Errno(super::flags::errno_name((r.rax as i64).wrapping_neg() as i32)))
            }
            Ok(r) => Ok(r.rax),
            Err(Ok(s)) => Err(Fail::Errno(format!("signal {s}"))),
            Err(Err(e)) => Err(Fail::Errno(e)),
        }
    }

    fn forked(&self, pid: libc::pid_t) -> Result<libc::pid_t, Fail> {
        match run(pid, self.page, libc::SYS_fork as u64, [0; 6]) {
            Ok(Ran { child: Some(c), .. }) => Ok(c),
            Ok(r) => Err(Fail::Errno(super::flags::errno_name((r.rax as i64).wrapping_neg() as i32))),
            Err(Ok(s)) => Err(Fail::Errno(format!("signal {s}"))),
            Err(Err(e)) => Err(Fail::Errno(e)),
        }
    }
}

/// A memory file for each file of the trace, and their inodes.
fn open_files(trace: &Trace) -> Result<(Vec<OwnedFd>, HashMap<u64, u32>), String> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a valid structure.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    let (mut files, mut inodes) = (Vec::new(), HashMap::new());
    for (i, f) in trace.files.iter().enumerate() {
        // SAFETY: a terminated name.
        let fd = unsafe { libc::memfd_create(c"trace".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            let n = trace.files.len();
            return Err(format!("{}; the trace maps {n} files, so ulimit -n must be larger", os("memfd_create")));
        }
        // SAFETY: fresh and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain words; our descriptor.
        let mut st: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: our descriptor and structure.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), f.len as i64) | libc::fstat(fd.as_raw_fd(), &mut st) } != 0 {
            return Err(os(&format!("a memory file of {} bytes for {}", f.len, f.name)));
        }
        inodes.insert(st.st_ino, i as u32);
        files.push(fd);
    }
    Ok((files, inodes))
}

impl Backend for KernelBackend {
    fn new_space(&mut self, mm: u32) -> Result<(), String> {
        let pid = self.forked(self.empty).map_err(|e| format!("a new process: {e}"))?;
        self.spaces.insert(mm, Space { pid, brk: 0, how: BrkHow::Mapped });
        Ok(())
    }

    fn brk_start(&mut self, mm: u32, at: u64) -> Result<(), String> {
        let real = set_start_brk(self.spaces[&mm].pid, self.page, at)?;
        self.mapped_breaks += u32::from(!real);
        let s = self.spaces.get_mut(&mm).expect("looked up above");
        s.brk = at;
        s.how = if real { BrkHow::Real } else { BrkHow::Mapped };
        Ok(())
    }

    fn fork(&mut self, mm: u32, child: u32, _: &mut Meter) -> Result<(), Fail> {
        let s = &self.spaces[&mm];
        let pid = self.forked(s.pid)?;
        let copy = Space { pid, ..*s };
        self.spaces.insert(child, copy);
        Ok(())
    }

    fn end(&mut self, mm: u32, _: &mut Meter) -> Result<(), String> {
        if let Some(s) = self.spaces.remove(&mm) {
            kill(s.pid);
        }
        Ok(())
    }

    fn call(&mut self, mm: u32, call: &Call, _: &mut Meter) -> Result<u64, Fail> {
        let s = self.spaces.get(&mm).ok_or(Fail::Unsupported)?;
        let (pid, brk, how) = (s.pid, s.brk, s.how);
        match *call {
            Call::Brk { to } => {
                let now = match how {
                    BrkHow::Real => self.syscall(pid, libc::SYS_brk, [to, 0, 0, 0, 0, 0])?,
                    BrkHow::Mapped => self.mapped_brk(pid, brk, to),
                };
                if let Some(s) = self.spaces.get_mut(&mm) {
                    s.brk = now;
                }
                Ok(now)
            }
            Call::Write { addr, value } => match run(pid, self.page + STORE, 0, [addr, u64::from(value), 0, 0, 0, 0]) {
                Ok(_) => Ok(0),
                Err(Ok(_)) => Err(Fail::Errno("EFAULT".into())),
                Err(Err(e)) => Err(Fail::Errno(e)),
            },
            _ => {
                let fd = |f: u32| self.files[f as usize].as_raw_fd();
                let (nr, args) = system_call(call, fd).ok_or(Fail::Unsupported)?;
                self.syscall(pid, nr, args)
            }
        }
    }

    fn maps(&mut self, mm: u32) -> Result<Vec<VmaInfo>, String> {
        self.read_maps(mm, "maps")
    }

    fn smaps(&mut self, mm: u32) -> Result<Vec<VmaInfo>, String> {
        self.read_maps(mm, "smaps")
    }

    fn map_count(&mut self, _: u32) -> u32 {
        0
    }

    fn has(&self, mm: u32) -> bool {
        self.spaces.contains_key(&mm)
    }
}

impl KernelBackend {
    fn read_maps(&self, mm: u32, file: &str) -> Result<Vec<VmaInfo>, String> {
        let pid = self.spaces.get(&mm).ok_or("no such address space")?.pid;
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|e| format!("{file}: {e}"))?;
        let of = |(v, inode): (VmaInfo, u64)| {
            let file = self.inodes.get(&inode).copied();
            (v.start != self.page).then_some(VmaInfo { file, ..v })
        };
        Ok(parse_maps(&text).into_iter().filter_map(of).collect())
    }

    /// A break that is moved without brk(2): the VMA has the same flags as a heap's.
    fn mapped_brk(&self, pid: libc::pid_t, from: u64, to: u64) -> u64 {
        let up = |a: u64| a.next_multiple_of(PAGE);
        let (old, new) = (up(from), up(to));
        let r = if to == 0 {
            return from;
        } else if new > old {
            self.syscall(pid, libc::SYS_mmap, [old, new - old, 3, 0x10_0022, u64::MAX, 0])
        } else if new < old {
            self.syscall(pid, libc::SYS_munmap, [new, old - new, 0, 0, 0, 0])
        } else {
            Ok(0)
        };
        if r.is_ok() { to } else { from }
    }
}

/// The rules that the running kernel is seen to follow, as far as a trace's maps can depend on them.
///
/// # Errors
/// The helper cannot go on.
pub fn observed_rules(b: &mut KernelBackend) -> Result<MmRules, String> {
    const SPACE: u32 = u32::MAX;
    // Far from the page of code, and in a process of its own.
    let base = b.page + (1 << 30);
    let mut see = |calls: &[Call]| -> Result<Seen, String> {
        b.new_space(SPACE)?;
        // Which error it is, no experiment asks.
        let result = |r: Result<u64, Fail>| r.map_or(-1, |v| v as i64);
        let results = calls.iter().map(|c| result(b.call(SPACE, c, &mut Meter::default()))).collect();
        let maps = b.smaps(SPACE)?;
        b.end(SPACE, &mut Meter::default())?;
        Ok(Seen { results, maps })
    };
    observe::rules(base, false, &mut see, &mut |_, _| {})
}

impl Drop for KernelBackend {
    fn drop(&mut self) {
        for s in self.spaces.values() {
            kill(s.pid);
        }
        kill(self.empty);
    }
}
