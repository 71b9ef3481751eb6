// SPDX-License-Identifier: GPL-2.0-only
//! The running kernel as a [`Backend`]: each address space of the trace is a process of its own, held by ptrace.
//!
//! A trace uses the whole address space, and a helper program with an image, a stack and a C library would lie in its way.
//! So the helper here is a process in which *everything* has been unmapped but one page, put where the trace never maps
//! anything: a `syscall` instruction, a store, and a breakpoint behind each. Registers say which call to make; the process
//! runs to the breakpoint and its registers are read. Addresses need no relocation, and a fork in the trace is a fork of
//! that process with all that the kernel does for it.
//!
//! Done before everything is unmapped: the process's rseq area is unregistered, since the kernel writes to it whenever it
//! moves the process to another CPU.
//!
//! stub: threads (one process makes all calls of an address space, in the trace's order), exec (a new address space is a
//! fork of the empty process), times (most of a call's time is ptrace's).
//!
//! It cannot tell VMAs that differ only in what smaps does not show, as page offsets of anonymous memory; between two ends
//! of address spaces it looks at maps alone, where `VmFlags` are missing.

use super::normalise::{Op, PAGE, Trace};
use super::observe::{self, Seen};
use super::replay::{Backend, Fail, Meter};
use crate::mm::task_mmu::parse_vm_flags;
use crate::mm::{Call, MmRules, VmaInfo};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

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

/// `syscall; int3`, and 16 bytes on `mov %sil,(%rdi); int3`.
const CODE: [u8; 20] = [
    0x0f, 0x05, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x40, 0x88, 0x37,
    0xcc,
];
const STORE: u64 = 16;
/// Where in the page the argument of prctl stands.
const MM_MAP: u64 = 1024;
/// Free memory around the page, so that it never merges with or stops anything of the trace's.
const MARGIN: u64 = 16 << 20;

/// Where the page can be: far from everything in `trace`.
fn free_places(trace: &Trace) -> impl Iterator<Item = u64> {
    let mut used: Vec<(u64, u64)> = Vec::new();
    for s in &trace.steps {
        let mut put = |a: u64, len: u64| used.push((a, a.saturating_add(len)));
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

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn os(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

/// How a process stopped.
enum Stopped {
    Breakpoint,
    Fork(libc::pid_t),
    Signal(i32),
    Gone,
}

fn wait(pid: libc::pid_t) -> Result<Stopped, String> {
    let mut st = 0;
    loop {
        // SAFETY: our own child, or a child's child that we trace.
        let r = unsafe { libc::waitpid(pid, &mut st, libc::__WALL) };
        if r == pid {
            break;
        }
        if errno() != libc::EINTR {
            return Err(os("waitpid"));
        }
    }
    if !libc::WIFSTOPPED(st) {
        return Ok(Stopped::Gone);
    }
    if st >> 16 == libc::PTRACE_EVENT_FORK {
        let mut child = 0u64;
        // SAFETY: a stopped process of ours; the request writes one word.
        unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut child) };
        return Ok(Stopped::Fork(child as libc::pid_t));
    }
    Ok(if libc::WSTOPSIG(st) == libc::SIGTRAP { Stopped::Breakpoint } else { Stopped::Signal(libc::WSTOPSIG(st)) })
}

/// What one run to a breakpoint gave.
struct Ran {
    rax: u64,
    child: Option<libc::pid_t>,
}

/// Runs `pid` from `rip` to the next breakpoint; `Err(Ok(signal))` where a signal came first.
fn run(pid: libc::pid_t, rip: u64, rax: u64, args: [u64; 6]) -> Result<Ran, Result<i32, String>> {
    let fail = |what: &str| Err(Err(os(what)));
    // SAFETY: plain words.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: a stopped process of ours; the request fills the structure.
    if unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut regs) } != 0 {
        return fail("PTRACE_GETREGS");
    }
    let [rdi, rsi, rdx, r10, r8, r9] = args;
    // With no call pending there is nothing to restart.
    regs = libc::user_regs_struct { rip, rax, rdi, rsi, rdx, r10, r8, r9, orig_rax: u64::MAX, ..regs };
    // SAFETY: as above; it only reads.
    if unsafe { libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &raw const regs) } != 0 {
        return fail("PTRACE_SETREGS");
    }
    let mut child = None;
    loop {
        // SAFETY: a stopped process of ours goes on, without a signal.
        if unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0, 0) } != 0 {
            return fail("PTRACE_CONT");
        }
        match wait(pid).map_err(Err)? {
            Stopped::Fork(c) => {
                // The child begins with a stop of its own.
                match wait(c).map_err(Err)? {
                    Stopped::Gone => return Err(Err("a forked process was killed".into())),
                    _ => child = Some(c),
                }
            }
            Stopped::Breakpoint => break,
            // The process's own doing; anything else (its children, a terminal) is none of its business.
            Stopped::Signal(s @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS)) => {
                return Err(Ok(s));
            }
            Stopped::Signal(_) => {}
            Stopped::Gone => return Err(Err("the helper process was killed".into())),
        }
    }
    // SAFETY: as above.
    if unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut regs) } != 0 {
        return fail("PTRACE_GETREGS");
    }
    Ok(Ran { rax: regs.rax, child })
}

/// The VMAs of maps, or of smaps with all flags, and their inodes.
fn parse_maps(text: &str) -> Vec<(VmaInfo, u64)> {
    let (mut out, mut counts): (Vec<(VmaInfo, u64)>, bool) = (Vec::new(), false);
    for line in text.lines() {
        if line.starts_with("VmFlags:") {
            if let (Some((v, _)), true) = (out.last_mut(), counts) {
                v.flags = parse_vm_flags(line.as_bytes());
            }
            continue;
        }
        let mut f = line.split_whitespace();
        let Some((range, perms, offset, inode)) = (|| {
            let range = f.next()?.split_once('-')?;
            let perms = f.next()?.as_bytes();
            let offset = u64::from_str_radix(f.next()?, 16).ok()?;
            let inode = f.nth(1)?.parse::<u64>().ok()?;
            Some((range, perms, offset, inode))
        })() else {
            continue;
        };
        let hex = |t: &str| u64::from_str_radix(t, 16).unwrap_or(0);
        let (start, end) = (hex(range.0), hex(range.1));
        // [vsyscall] is no VMA.
        counts = start < 1 << 63 && f.next() != Some("[vsyscall]");
        if !counts {
            continue;
        }
        let mut flags = 0;
        for (c, bit) in [(b'r', 1), (b'w', 2), (b'x', 4), (b's', 0x80)] {
            if perms.contains(&c) {
                flags |= bit;
            }
        }
        out.push((VmaInfo { start, end, flags, file: None, offset }, inode));
    }
    out
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

/// Maps the page of code at `page`; true where that place is taken.
fn map_code(page: u64) -> Result<bool, String> {
    // SAFETY: a mapping at a place where nothing is (NOREPLACE), written within its bounds.
    unsafe {
        let p = libc::mmap(
            page as *mut _,
            PAGE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
        if p == libc::MAP_FAILED {
            return if errno() == libc::EEXIST { Ok(true) } else { Err(os("the helper's page")) };
        }
        p.cast::<[u8; CODE.len()]>().write(CODE);
        libc::mprotect(p, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC);
    }
    Ok(false)
}

/// Forks a process, holds it, and unmaps everything in it but the page of code at `page`.
fn start_empty(page: u64) -> Result<libc::pid_t, String> {
    // SAFETY: the child makes two system calls and stops.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: nothing here allocates or locks.
        unsafe {
            // Inherited by all that are forked from it: nobody waits for them but the tracer.
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                libc::_exit(1);
            }
            libc::raise(libc::SIGSTOP);
            libc::_exit(0);
        }
    }
    if pid < 0 {
        return Err(os("fork"));
    }
    let r = empty_out(pid, page);
    if r.is_err() {
        kill(pid);
    }
    r.map(|()| pid)
}

fn empty_out(pid: libc::pid_t, page: u64) -> Result<(), String> {
    if !matches!(wait(pid)?, Stopped::Signal(libc::SIGSTOP)) {
        return Err("ptrace is not allowed here, and --against kernel needs it".into());
    }
    let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEFORK;
    // SAFETY: a stopped process of ours.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) } != 0 {
        return Err(os("PTRACE_SETOPTIONS"));
    }
    let call = |nr: libc::c_long, args: [u64; 6]| match run(pid, page, nr as u64, args) {
        Ok(r) => Ok(r.rax as i64),
        Err(Ok(s)) => Err(format!("signal {s} while the helper was made")),
        Err(Err(e)) => Err(e),
    };
    // struct ptrace_rseq_configuration: pointer, size, signature, flags.
    let mut rseq = [0u64; 3];
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    // SAFETY: a stopped process of ours; the request writes at most the size given.
    let n = unsafe { libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, pid, size_of_val(&rseq), &raw mut rseq) };
    if n >= 16 && rseq[0] != 0 {
        let (size, signature) = (rseq[1] & 0xffff_ffff, rseq[1] >> 32);
        let r = call(libc::SYS_rseq, [rseq[0], size, 1, signature, 0, 0])?;
        if r != 0 {
            return Err(format!("rseq cannot be unregistered: {}", std::io::Error::from_raw_os_error(-r as i32)));
        }
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| format!("the helper's maps: {e}"))?;
    for (v, _) in parse_maps(&maps) {
        if v.start != page {
            call(libc::SYS_munmap, [v.start, v.end - v.start, 0, 0, 0, 0])?;
        }
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| format!("the helper's maps: {e}"))?;
    match parse_maps(&maps).as_slice() {
        [(v, _)] if v.start == page => Ok(()),
        left => Err(format!("{} mappings of the helper cannot be unmapped", left.len())),
    }
}

fn kill(pid: libc::pid_t) {
    // SAFETY: our own child, or a child's child that we trace.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, null_mut(), libc::__WALL);
    }
}

impl Backend for KernelBackend {
    fn new_space(&mut self, mm: u32) -> Result<(), String> {
        let pid = self.forked(self.empty).map_err(|e| format!("a new process: {e}"))?;
        self.spaces.insert(mm, Space { pid, brk: 0, how: BrkHow::Mapped });
        Ok(())
    }

    fn brk_start(&mut self, mm: u32, at: u64) -> Result<(), String> {
        const PR_SET_MM: u64 = 35;
        const PR_SET_MM_MAP: u64 = 14;
        let pid = self.spaces[&mm].pid;
        // struct prctl_mm_map. Unlike the single settings it needs no right; all but the break are places in the page of
        // code, which the kernel only keeps: code, data, break, stack, arguments, environment; no auxv, the same program.
        let p = self.page;
        let map = [p, p + PAGE, p, p + PAGE, at, at, p, p, p, p, p, 0, 0xffff_ffff << 32];
        let there = p + MM_MAP;
        for (i, word) in map.iter().enumerate() {
            // SAFETY: a stopped process of ours; the request writes a word of its page of code.
            let r = unsafe { libc::ptrace(libc::PTRACE_POKEDATA, pid, there + 8 * i as u64, *word) };
            if r != 0 {
                return Err(os("PTRACE_POKEDATA"));
            }
        }
        drop(self.syscall(pid, libc::SYS_prctl, [PR_SET_MM, PR_SET_MM_MAP, there, size_of_val(&map) as u64, 0, 0]));
        let real = self.syscall(pid, libc::SYS_brk, [0; 6]) == Ok(at);
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
        let (nr, args) = match *call {
            Call::Mmap { addr, len, prot, flags, fd, offset } => {
                let fd = fd.map_or(-1, |f| self.files[f as usize].as_raw_fd()) as i64 as u64;
                (libc::SYS_mmap, [addr, len, u64::from(prot), u64::from(flags), fd, offset])
            }
            Call::Munmap { addr, len } => (libc::SYS_munmap, [addr, len, 0, 0, 0, 0]),
            Call::Mprotect { addr, len, prot } => (libc::SYS_mprotect, [addr, len, u64::from(prot), 0, 0, 0]),
            Call::Madvise { addr, len, advice } => (libc::SYS_madvise, [addr, len, advice as u32 as u64, 0, 0, 0]),
            Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
                (libc::SYS_mremap, [addr, old_len, new_len, u64::from(flags), new_addr, 0])
            }
            Call::Brk { to } => {
                let now = match how {
                    BrkHow::Real => self.syscall(pid, libc::SYS_brk, [to, 0, 0, 0, 0, 0])?,
                    BrkHow::Mapped => self.mapped_brk(pid, brk, to),
                };
                if let Some(s) = self.spaces.get_mut(&mm) {
                    s.brk = now;
                }
                return Ok(now);
            }
            Call::Mlock { addr, len, flags: 0 } => (libc::SYS_mlock, [addr, len, 0, 0, 0, 0]),
            Call::Mlock { addr, len, flags } => (libc::SYS_mlock2, [addr, len, u64::from(flags), 0, 0, 0]),
            Call::Munlock { addr, len } => (libc::SYS_munlock, [addr, len, 0, 0, 0, 0]),
            Call::Mlockall { flags } => (libc::SYS_mlockall, [u64::from(flags), 0, 0, 0, 0, 0]),
            Call::Munlockall => (libc::SYS_munlockall, [0; 6]),
            Call::Mseal { addr, len } => (SYS_MSEAL, [addr, len, 0, 0, 0, 0]),
            Call::Write { addr, value } => {
                return match run(pid, self.page + STORE, 0, [addr, u64::from(value), 0, 0, 0, 0]) {
                    Ok(_) => Ok(0),
                    Err(Ok(_)) => Err(Fail::Errno("EFAULT".into())),
                    Err(Err(e)) => Err(Fail::Errno(e)),
                };
            }
            Call::Read { .. } | Call::Fork | Call::Exit => return Err(Fail::Unsupported),
        };
        self.syscall(pid, nr, args)
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

/// mseal(2), which the C library's binding may not have yet.
const SYS_MSEAL: libc::c_long = 462;

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
