// SPDX-License-Identifier: GPL-2.0-only
//! A process that another one drives by ptrace: everything in it is unmapped but one page of code, a `syscall`
//! instruction, a load and a store, each with a breakpoint behind it. Registers say what to do; the process runs to the
//! breakpoint and its registers are read. Its address space holds what the calls made, and nothing else: not for the
//! addresses, and not for the tree of its VMAs.
//!
//! Done before everything is unmapped: the process's rseq area is unregistered, since the kernel writes to it whenever it
//! moves the process to another CPU.
//!
//! INVARIANT: everything is unmapped by two calls, below the page and above it, so that the tree is left as small as one
//! mapping makes it, whatever was in it before.

use super::normalise::PAGE;
use crate::mm::mm_types::TASK_SIZE;
use crate::mm::prctl::READ_IMPLIES_EXEC;
use crate::mm::task_mmu::parse_vm_flags;
use crate::mm::{Call, VmaInfo};
use std::ptr::null_mut;

/// `syscall; int3`, 16 bytes on `mov %sil,(%rdi); int3`, and 16 bytes on `movzbl (%rdi),%eax; int3`.
const CODE: [u8; 36] = [
    0x0f, 0x05, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x40, 0x88, 0x37,
    0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 0xb6, 0x07, 0xcc,
];
/// Where in the page the store stands: byte `rsi` to address `rdi`.
pub const STORE: u64 = 16;
/// Where the load stands: `rax` is the byte at address `rdi`.
pub const LOAD: u64 = 32;
/// Where data of the caller's can be put ([`poke`]).
pub const ROOM: u64 = 1024;

/// Of this thread.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// What was refused, and why.
pub fn os(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

/// How a process stopped.
pub enum Stopped {
    /// At one of ours.
    Breakpoint,
    /// It has forked.
    Fork(libc::pid_t),
    /// Before this signal.
    Signal(i32),
    /// It is no more.
    Gone,
}

/// Waits until it stops.
///
/// # Errors
/// It is no process of ours.
pub fn wait(pid: libc::pid_t) -> Result<Stopped, String> {
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
pub struct Ran {
    /// Its register of that name.
    pub rax: u64,
    /// The process that it forked.
    pub child: Option<libc::pid_t>,
}

/// Runs `pid` from `rip` to the next breakpoint.
///
/// # Errors
/// `Ok`: the signal that came first. `Err`: why it cannot run.
pub fn run(pid: libc::pid_t, rip: u64, rax: u64, args: [u64; 6]) -> Result<Ran, Result<i32, String>> {
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
pub fn parse_maps(text: &str) -> Vec<(VmaInfo, u64)> {
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

/// Maps the page of code at `page`; true where that place is taken.
///
/// # Errors
/// Why not.
pub fn map_code(page: u64) -> Result<bool, String> {
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

/// Forks a process, holds it, and unmaps everything in it but the page of code at `page`, which must be mapped.
///
/// # Errors
/// Why not.
pub fn start_empty(page: u64) -> Result<libc::pid_t, String> {
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
    for (start, end) in [(0, page), (page + PAGE, TASK_SIZE)] {
        call(libc::SYS_munmap, [start, end - start, 0, 0, 0, 0])?;
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| format!("the helper's maps: {e}"))?;
    match parse_maps(&maps).as_slice() {
        [(v, _)] if v.start == page => Ok(()),
        left => Err(format!("{} mappings of the helper cannot be unmapped", left.len())),
    }
}

/// Kills a process, and waits until it is gone.
pub fn kill(pid: libc::pid_t) {
    // SAFETY: our own child, or a child's child that we trace.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, null_mut(), libc::__WALL);
    }
}

/// Writes words into the page of code of a stopped process.
///
/// # Errors
/// Why it cannot.
pub fn poke(pid: libc::pid_t, to: u64, words: &[u64]) -> Result<(), String> {
    for (i, word) in words.iter().enumerate() {
        // SAFETY: a stopped process of ours; the request writes a word of its page of code.
        if unsafe { libc::ptrace(libc::PTRACE_POKEDATA, pid, to + 8 * i as u64, *word) } != 0 {
            return Err(os("PTRACE_POKEDATA"));
        }
    }
    Ok(())
}

/// Lets a process's heap begin at `at`; false where the host's kernel does not let it be set (it is built without
/// `CONFIG_CHECKPOINT_RESTORE`).
///
/// # Errors
/// Why it cannot be tried.
pub fn set_start_brk(pid: libc::pid_t, page: u64, at: u64) -> Result<bool, String> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    // struct prctl_mm_map. Unlike the single settings it needs no right; all but the break are places in the page of
    // code, which the kernel only keeps: code, data, break, stack, arguments, environment; no auxv, the same program.
    let p = page;
    let map = [p, p + PAGE, p, p + PAGE, at, at, p, p, p, p, p, 0, 0xffff_ffff << 32];
    poke(pid, p + ROOM, &map)?;
    let call = |nr: libc::c_long, args: [u64; 6]| match run(pid, page, nr as u64, args) {
        Ok(r) => Ok(r.rax),
        Err(Ok(s)) => Err(format!("signal {s} while the heap was moved")),
        Err(Err(e)) => Err(e),
    };
    call(libc::SYS_prctl, [PR_SET_MM, PR_SET_MM_MAP, p + ROOM, size_of_val(&map) as u64, 0, 0])?;
    Ok(call(libc::SYS_brk, [0; 6])? == at)
}

/// `PR_SET_MDWE`
const PR_SET_MDWE: u64 = 65;
/// mseal(2), which the C library's binding may not have yet.
const SYS_MSEAL: libc::c_long = 462;

/// The system call that `c` is; `None`: it is an access, a fork or an exit. `fd` gives descriptors of files.
pub fn system_call(c: &Call, fd: impl Fn(u32) -> i32) -> Option<(libc::c_long, [u64; 6])> {
    Some(match *c {
        Call::Mmap { addr, len, prot, flags, fd: file, offset } => {
            let fd = file.map_or(-1, fd) as i64 as u64;
            (libc::SYS_mmap, [addr, len, u64::from(prot), u64::from(flags), fd, offset])
        }
        Call::Munmap { addr, len } => (libc::SYS_munmap, [addr, len, 0, 0, 0, 0]),
        Call::Mprotect { addr, len, prot } => (libc::SYS_mprotect, [addr, len, u64::from(prot), 0, 0, 0]),
        Call::Madvise { addr, len, advice } => (libc::SYS_madvise, [addr, len, advice as u32 as u64, 0, 0, 0]),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            (libc::SYS_mremap, [addr, old_len, new_len, u64::from(flags), new_addr, 0])
        }
        Call::Brk { to } => (libc::SYS_brk, [to, 0, 0, 0, 0, 0]),
        Call::Mlock { addr, len, flags: 0 } => (libc::SYS_mlock, [addr, len, 0, 0, 0, 0]),
        Call::Mlock { addr, len, flags } => (libc::SYS_mlock2, [addr, len, u64::from(flags), 0, 0, 0]),
        Call::Munlock { addr, len } => (libc::SYS_munlock, [addr, len, 0, 0, 0, 0]),
        Call::Mlockall { flags } => (libc::SYS_mlockall, [u64::from(flags), 0, 0, 0, 0, 0]),
        Call::Munlockall => (libc::SYS_munlockall, [0; 6]),
        Call::Mseal { addr, len } => (SYS_MSEAL, [addr, len, 0, 0, 0, 0]),
        // The one bit that is known is all that such a process has of a personality.
        Call::Personality { read_implies_exec } => {
            (libc::SYS_personality, [if read_implies_exec { u64::from(READ_IMPLIES_EXEC) } else { 0 }, 0, 0, 0, 0, 0])
        }
        Call::Mdwe { bits } => (libc::SYS_prctl, [PR_SET_MDWE, u64::from(bits), 0, 0, 0, 0]),
        Call::Read { .. } | Call::Write { .. } | Call::Fork | Call::Exit => return None,
    })
}
