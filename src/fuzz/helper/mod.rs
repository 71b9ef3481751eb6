// SPDX-License-Identifier: GPL-2.0-only
//! The helper process: carries calls out on the running kernel. It is this program started again with a hidden argument,
//! so that its address space holds nothing but the program, a stack and two libraries.
//!
//! Each round is a child of its own (a fresh heap and nothing in the window), and each fork of a round one more: the
//! parent waits, the child goes on with the calls. Calls and answers are in memory that all share; one byte through a pipe
//! says that there is something to do, one byte back that it is done. After each call the process looks at its own window
//! through `PROCMAP_QUERY` (or `/proc/self/maps` where that is missing) and answers with a hash.
//!
//! User accesses are read(2) and write(2) from and to memory files, where a fault is `EFAULT`, or loads and stores of this
//! process, whose signals are caught: by the round.
//!
//! INVARIANT: from the start of the service on nothing is allocated, and no call that could succeed reaches outside the
//! window ([`safe`]): the program's own memory is out of reach whatever it is asked.
//!
//! In a round about placement the kernel chooses addresses: there nothing is overwritten ([`safe_everywhere`]), and what
//! was mapped before the round stays.

mod begin;
mod guard;
mod look;
mod proc;
mod touch;

pub use guard::{safe, safe_everywhere};
pub use proc::{parse_line, procmap_query};

use super::backend::{COUNTED, FILES, Look, MAX_DEPTH, MAX_PAGES, PAGE, Resource, Setup, Step, WINDOW, file_byte};
use super::wire::{Record, WORDS, decode, encode};
use crate::mm::Call;
use crate::mm::prctl::READ_IMPLIES_EXEC;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

/// First argument of a program that is to be the helper.
pub const ARGUMENT: &str = "__fuzz-helper";
/// Most calls between two messages.
pub const BATCH: usize = 512;
/// Where an address space is filled up to its limit, and the most VMAs that this may take.
const CROWD_AT: u64 = 0x6800_0000_0000;
const CROWD: u64 = 200_000;
/// Most VMAs that a window can show.
pub const MAX_VMAS: usize = MAX_PAGES as usize + 8;
/// Result of a call that the helper refused to make, because it would leave the window.
pub const REFUSED: i64 = -4000;

/// A VMA as it is sent: start, end, flags, offset, inode.
pub type WireVma = [u64; 5];

/// What both sides see. Written by one side at a time; the pipes order it.
#[repr(C)]
pub struct Shared {
    /// The window's pages.
    pub pages: AtomicU64,
    /// Where the heap is to begin; 0: it stays where it is.
    pub start_brk: AtomicU64,
    /// VMAs that the round may have, plus one; 0: as many as usual.
    pub room: AtomicU32,
    /// Calls of this batch.
    pub n: AtomicU32,
    /// Calls done.
    pub at: AtomicU32,
    /// A limit that is lowered: number of the resource plus one, and pages that are left.
    pub limit: [AtomicU32; 2],
    /// Whether bytes are touched by the processor.
    pub touch: AtomicU32,
    /// A round about placement.
    pub everywhere: AtomicU32,
    /// Number of the first in the round.
    pub first: AtomicU64,
    /// When to look.
    pub look: [AtomicU32; 2],
    /// Whether `PROCMAP_QUERY` is used.
    pub query: AtomicU32,
    /// The round is over: everybody exits.
    pub over: AtomicU32,
    /// The running process ended by [`Call::Exit`].
    pub exited: AtomicU32,
    /// What the process died of: a signal, or an errno with 1000 added.
    pub died: AtomicI32,
    /// Processes of the round.
    pub depth: AtomicU32,
    /// VMAs below.
    pub nr_vmas: AtomicU32,
    /// Numbers of the tracepoints that count [`COUNTED`]; 0: not there.
    pub tracepoints: [AtomicU64; COUNTED.len()],
    /// Which of them are wanted, a bit each.
    pub counted: AtomicU32,
    /// What the calls cost.
    pub counts: [[AtomicU32; COUNTED.len()]; BATCH],
    /// Calls.
    pub calls: [[AtomicU64; WORDS]; BATCH],
    /// Answers.
    pub steps: [[AtomicU64; 2]; BATCH],
    /// The window, where it was asked for.
    pub vmas: [[AtomicU64; 5]; MAX_VMAS],
}

/// Commands, one byte each.
pub const BEGIN: u8 = b'B';
/// Carry out the batch.
pub const RUN: u8 = b'R';
/// Show the window.
pub const MAPS: u8 = b'M';
/// End the round.
pub const END: u8 = b'E';
/// The answer.
pub const DONE: u8 = b'.';

/// Descriptors of the helper.
#[derive(Clone, Copy)]
struct Fds {
    commands: i32,
    answers: i32,
    /// Every byte value once.
    bytes: i32,
    /// Where read bytes go.
    sink: i32,
    files: [i32; FILES.len()],
    inodes: [u64; FILES.len()],
    maps: i32,
    smaps: i32,
    /// Counters of the running process; -1: none.
    counters: [i32; COUNTED.len()],
}

/// What each tracepoint of [`COUNTED`] is filtered by.
pub const FILTERS: [Option<&CStr>; COUNTED.len()] = [
    Some(c"name == \"vm_area_struct\""),
    Some(c"name == \"vm_area_struct\""),
    Some(c"name == \"anon_vma\""),
    Some(c"name == \"anon_vma\""),
    Some(c"name == \"anon_vma_chain\""),
    Some(c"name == \"anon_vma_chain\""),
    Some(c"name == \"maple_node\""),
    None,
    None,
];
/// Where each is found below `events/`.
pub const TRACEPOINTS: [&str; COUNTED.len()] = [
    "kmem/kmem_cache_alloc",
    "kmem/kmem_cache_free",
    "kmem/kmem_cache_alloc",
    "kmem/kmem_cache_free",
    "kmem/kmem_cache_alloc",
    "kmem/kmem_cache_free",
    "kmem/kmem_cache_alloc",
    "maple_tree/ma_write",
    "mmap_lock/mmap_lock_acquire_returned",
];

struct Helper<'a> {
    s: &'a Shared,
    fds: Fds,
    sink: *const u8,
    /// Room for the text of maps and smaps.
    text: &'a UnsafeCell<[u8; TEXT]>,
    vmas: &'a UnsafeCell<[WireVma; MAX_VMAS]>,
    /// What was mapped before the round.
    foreign: [(u64, u64); MAX_FOREIGN],
    nr_foreign: usize,
}

/// Mappings of the program itself.
const MAX_FOREIGN: usize = 128;

const TEXT: usize = 32 << 10;

/// The main function of the helper, if that is what this process was started as.
pub fn main_if_asked() -> Option<i32> {
    let mut args = std::env::args();
    if args.nth(1).as_deref() != Some(ARGUMENT) {
        return None;
    }
    let mut fd = || args.next().and_then(|a| a.parse::<i32>().ok());
    let (Some(shared), Some(commands), Some(answers)) = (fd(), fd(), fd()) else { return Some(2) };
    drop(args);
    Some(serve(shared, commands, answers))
}

fn memfd(name: &CStr) -> i32 {
    // SAFETY: a string that outlives the call; a new descriptor comes back.
    unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) }
}

/// Maps a descriptor, shared.
fn map_shared(fd: i32, len: usize) -> Option<*mut u8> {
    // SAFETY: a fresh mapping where the kernel likes.
    let p =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0) };
    (p != libc::MAP_FAILED).then_some(p.cast())
}

/// Puts the contents that a round begins with into the files.
fn fill(fds: &[i32], scratch: &mut [u8; 4096]) -> bool {
    for (i, &fd) in fds.iter().enumerate() {
        for p in 0..FILES[i] {
            scratch.fill(file_byte(i, p));
            // SAFETY: the buffer is ours.
            let n = unsafe { libc::pwrite(fd, scratch.as_ptr().cast(), PAGE as usize, (p * PAGE) as i64) };
            if n != PAGE as isize {
                return false;
            }
        }
    }
    true
}

fn serve(shared: i32, commands: i32, answers: i32) -> i32 {
    // SAFETY: plain settings of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // What is locked in a window shall not fail for a low soft limit.
        let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut r) == 0 {
            r.rlim_cur = r.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &r);
        }
    }
    let Some(p) = map_shared(shared, size_of::<Shared>()) else { return 3 };
    // SAFETY: the parent made the file that large and zeroed; all fields are atomics.
    let s = unsafe { &*p.cast::<Shared>() };
    let (bytes, sink) = (memfd(c"bytes"), memfd(c"sink"));
    let mut page = [0u8; 4096];
    for (i, b) in page.iter_mut().enumerate() {
        *b = i as u8;
    }
    // SAFETY: the buffer is ours.
    unsafe {
        libc::pwrite(bytes, page.as_ptr().cast(), 256, 0);
        libc::pwrite(sink, page.as_ptr().cast(), 1, 0);
    }
    let Some(sink_map) = map_shared(sink, PAGE as usize) else { return 3 };
    let text = Box::new(UnsafeCell::new([0u8; TEXT]));
    let vmas = Box::new(UnsafeCell::new([[0u64; 5]; MAX_VMAS]));
    let fds = Fds {
        commands,
        answers,
        bytes,
        sink,
        files: [-1; FILES.len()],
        inodes: [0; FILES.len()],
        maps: -1,
        smaps: -1,
        counters: [-1; COUNTED.len()],
    };
    let foreign = [(0, 0); MAX_FOREIGN];
    let mut h = Helper { s, fds, sink: sink_map, text: &text, vmas: &vmas, foreign, nr_foreign: 0 };
    touch::catch_signals();
    deepen_stack();
    answer(answers);
    loop {
        match command(commands) {
            Some(BEGIN) => {}
            _ => return 0,
        }
        for (fd, inode) in h.fds.files.iter_mut().zip(&mut h.fds.inodes) {
            // SAFETY: a file of the last round, or no descriptor.
            unsafe { libc::close(*fd) };
            *fd = memfd(c"file");
            // SAFETY: plain data, filled by the call.
            let mut st: libc::stat = unsafe { std::mem::zeroed() };
            // SAFETY: the buffer is ours.
            unsafe { libc::fstat(*fd, &mut st) };
            *inode = st.st_ino;
        }
        s.over.store(0, Relaxed);
        s.died.store(0, Relaxed);
        s.depth.store(1, Relaxed);
        if !fill(&h.fds.files, &mut page) {
            s.died.store(1000 + libc::ENOMEM, Relaxed);
            s.over.store(1, Relaxed);
        } else {
            h.child(true);
        }
        answer(answers);
    }
}

/// Lets the stack grow as far as it ever will: later something may lie below it, or a limit be in force.
#[inline(never)]
fn deepen_stack() {
    // Somebody might look at it: else the compiler keeps only the bytes that are written, wherever it likes.
    std::hint::black_box(&mut [0u8; 256 << 10]);
}

fn answer(fd: i32) {
    // SAFETY: one byte of ours; a reader that is gone ends this process by SIGPIPE.
    unsafe { libc::write(fd, [DONE].as_ptr().cast(), 1) };
}

fn command(fd: i32) -> Option<u8> {
    let mut b = 0u8;
    loop {
        // SAFETY: one byte of ours.
        let n = unsafe { libc::read(fd, (&raw mut b).cast(), 1) };
        if n == 1 {
            return Some(b);
        }
        if n == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return None;
        }
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: nothing of this process is to be cleaned up.
    unsafe { libc::_exit(code) }
}

fn os_errno() -> i32 {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() }
}

impl Helper<'_> {
    /// Forks; the child serves until it or the round ends, the parent waits. Returns 0 or an errno.
    fn child(&mut self, first: bool) -> i32 {
        self.s.exited.store(0, Relaxed);
        // SAFETY: this process has one thread; the child only makes system calls.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            let e = os_errno();
            if first {
                self.s.died.store(1000 + e, Relaxed);
                self.s.over.store(1, Relaxed);
            }
            return e;
        }
        if pid == 0 {
            // SAFETY: plain setting of this process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            self.open_proc(first);
            self.open_counters();
            self.own_pages();
            if first {
                self.set_heap();
                self.crowd();
                if self.s.everywhere.load(Relaxed) != 0 {
                    self.note_foreign();
                }
                self.lower_limit();
                answer(self.fds.answers);
            } else {
                // The fork itself, seen from the child.
                self.finish_call(0);
            }
            self.work(!first)
        }
        let mut status = 0;
        loop {
            // SAFETY: our own child.
            let r = unsafe { libc::waitpid(pid, &mut status, 0) };
            if r == pid || os_errno() != libc::EINTR {
                break;
            }
        }
        self.own_pages();
        if libc::WIFSIGNALED(status) {
            self.s.died.store(libc::WTERMSIG(status), Relaxed);
            self.s.over.store(1, Relaxed);
        } else if self.s.exited.load(Relaxed) == 0 {
            self.s.over.store(1, Relaxed);
        }
        0
    }

    /// After a fork, where calls are counted: makes the pages that a signal needs this process's own (its stack, where
    /// the frame goes, and the thread's area of restartable sequences, which the kernel updates). Else the kernel's own
    /// write there would be a fault of kernel mode, which takes mmap_lock and would be counted as a call's.
    fn own_pages(&self) {
        if self.s.counted.load(Relaxed) != 0 {
            deepen_stack();
            touch::signal();
        }
    }

    /// Serves until the process ends. `continued`: in the middle of a batch.
    fn work(&mut self, continued: bool) -> ! {
        if continued {
            self.batch();
        }
        loop {
            match command(self.fds.commands) {
                Some(RUN) => self.batch(),
                Some(MAPS) => {
                    self.show();
                    answer(self.fds.answers);
                }
                _ => {
                    self.s.over.store(1, Relaxed);
                    exit(0)
                }
            }
        }
    }

    /// Carries out what is left of the batch.
    fn batch(&mut self) {
        let s = self.s;
        loop {
            let at = s.at.load(Relaxed) as usize;
            if at >= s.n.load(Relaxed) as usize {
                break;
            }
            let r: Record = std::array::from_fn(|i| s.calls[at][i].load(Relaxed));
            match decode(&r) {
                Some(Call::Fork) if s.depth.load(Relaxed) as usize >= MAX_DEPTH => {
                    self.finish_call(-i64::from(libc::EAGAIN));
                }
                Some(Call::Fork) => {
                    s.depth.fetch_add(1, Relaxed);
                    match self.child(false) {
                        0 if s.over.load(Relaxed) != 0 => exit(0),
                        // The child's exit is seen from here: this process runs again.
                        0 => {
                            s.depth.fetch_sub(1, Relaxed);
                            self.finish_call(0);
                        }
                        e => {
                            s.depth.fetch_sub(1, Relaxed);
                            self.finish_call(-i64::from(e));
                        }
                    }
                }
                Some(Call::Exit) if s.depth.load(Relaxed) > 1 => {
                    s.exited.store(1, Relaxed);
                    exit(0)
                }
                Some(Call::Exit) => self.finish_call(0),
                Some(c) => {
                    let before = self.counts();
                    let result = self.call(&c);
                    let after = self.counts();
                    self.finish_call(result);
                    for (i, to) in s.counts[at].iter().enumerate() {
                        to.store((after[i] - before[i]) as u32, Relaxed);
                    }
                }
                None => self.finish_call(REFUSED),
            }
        }
        answer(self.fds.answers);
    }

    /// One system call.
    fn call(&self, c: &Call) -> i64 {
        let end = WINDOW + self.s.pages.load(Relaxed) * PAGE;
        let safe = match self.s.everywhere.load(Relaxed) {
            0 => safe(c, end),
            _ => safe_everywhere(c, &self.foreign[..self.nr_foreign]),
        };
        if !safe {
            return REFUSED;
        }
        let r = encode(c);
        // SAFETY: `safe()`: what succeeds stays inside the window, where only calls put anything.
        let v = unsafe {
            match *c {
                Call::Mmap { addr, len, prot, flags, fd, offset } => {
                    let fd = fd.and_then(|f| self.fds.files.get(f as usize)).copied().unwrap_or(-1);
                    libc::syscall(libc::SYS_mmap, addr, len, u64::from(prot), u64::from(flags), fd, offset)
                }
                Call::Munmap { .. } => libc::syscall(libc::SYS_munmap, r[1], r[2]),
                Call::Mprotect { .. } => libc::syscall(libc::SYS_mprotect, r[1], r[2], r[3]),
                Call::Madvise { advice, .. } => libc::syscall(libc::SYS_madvise, r[1], r[2], advice),
                Call::Mremap { .. } => libc::syscall(libc::SYS_mremap, r[1], r[2], r[3], r[4], r[5]),
                Call::Brk { to } => libc::syscall(libc::SYS_brk, to),
                Call::Mlock { flags: 0, .. } => libc::syscall(libc::SYS_mlock, r[1], r[2]),
                Call::Mlock { .. } => libc::syscall(libc::SYS_mlock2, r[1], r[2], r[3]),
                Call::Munlock { .. } => libc::syscall(libc::SYS_munlock, r[1], r[2]),
                Call::Mlockall { flags } => libc::syscall(libc::SYS_mlockall, flags),
                Call::Munlockall => libc::syscall(libc::SYS_munlockall),
                Call::Mseal { .. } => libc::syscall(SYS_MSEAL, r[1], r[2], 0),
                Call::Read { addr } => return self.access(addr, None),
                Call::Write { addr, value } => return self.access(addr, Some(value)),
                Call::Personality { read_implies_exec } => {
                    let others = libc::personality(0xffff_ffff) as u32 & !READ_IMPLIES_EXEC;
                    libc::personality((others | if read_implies_exec { READ_IMPLIES_EXEC } else { 0 }).into());
                    0
                }
                Call::Mdwe { bits } => libc::syscall(libc::SYS_prctl, PR_SET_MDWE, u64::from(bits), 0, 0, 0),
                Call::Fork | Call::Exit => 0,
            }
        };
        if v == -1 { -i64::from(os_errno()) } else { v }
    }
}

const SYS_MSEAL: libc::c_long = 462;
/// `PR_SET_MDWE`
pub const PR_SET_MDWE: u64 = 65;

/// What a round is asked for, as the shared memory says it.
pub fn put_setup(s: &Shared, setup: &Setup) {
    s.pages.store(setup.pages.into(), Relaxed);
    s.start_brk.store(if setup.heap { setup.start_brk() } else { 0 }, Relaxed);
    s.counted.store(setup.counted.into(), Relaxed);
    s.room.store(setup.room.map_or(0, |r| r + 1), Relaxed);
    let number = |of: Resource| Resource::ALL.iter().position(|r| *r == of).map_or(0, |i| i as u32 + 1);
    s.limit[0].store(setup.limit.map_or(0, |l| number(l.of)), Relaxed);
    s.limit[1].store(setup.limit.map_or(0, |l| l.pages), Relaxed);
    s.touch.store(setup.touch.into(), Relaxed);
    s.everywhere.store(setup.everywhere.into(), Relaxed);
}

/// Puts a batch into the shared memory.
pub fn put_batch(s: &Shared, first: u64, calls: &[Call], look: &Look) {
    for (to, c) in s.calls.iter().zip(calls) {
        for (w, v) in to.iter().zip(encode(c)) {
            w.store(v, Relaxed);
        }
    }
    s.look[0].store(look.flags_every, Relaxed);
    s.look[1].store(look.bytes_every, Relaxed);
    for c in s.counts.iter().flatten() {
        c.store(0, Relaxed);
    }
    s.first.store(first, Relaxed);
    s.at.store(0, Relaxed);
    s.n.store(calls.len() as u32, Relaxed);
}

/// Answers so far.
pub fn get_steps(s: &Shared, out: &mut Vec<Step>) {
    let n = (s.at.load(Relaxed) as usize).min(BATCH);
    out.extend((0..n).map(|i| Step {
        result: s.steps[i][0].load(Relaxed) as i64,
        hash: s.steps[i][1].load(Relaxed),
        counts: std::array::from_fn(|j| s.counts[i][j].load(Relaxed) as u16),
    }));
}
