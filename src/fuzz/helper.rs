// SPDX-License-Identifier: GPL-2.0-only
//! The helper process: carries calls out on the running kernel. It is this program started again with a hidden argument,
//! so that its address space holds nothing but the program, a stack and two libraries.
//!
//! Each round is a child of its own (a fresh heap and nothing in the window), and each fork of a round one more: the
//! parent waits, the child goes on with the calls. Calls and answers are in memory that all share; one byte through a pipe
//! says that there is something to do, one byte back that it is done. After each call the process looks at its own window
//! through `PROCMAP_QUERY` (or `/proc/self/maps` where that is missing) and answers with a hash.
//!
//! User accesses are read(2) and write(2) from and to memory files, so that a fault is `EFAULT` and no signal.
//!
//! INVARIANT: from the start of the service on nothing is allocated, and no call that could succeed reaches outside the
//! window ([`safe`]): the program's own memory is out of reach whatever it is asked.
//!
//! It cannot tell faults of user mode from faults of the kernel on its behalf: both end in the same code but for the VMA
//! lock.

use super::backend::{
    COUNTED, FILES, Hash, Look, MAX_DEPTH, MAX_PAGES, OFFSETS, PAGE, Setup, Step, WINDOW, byte_word, compared_flags,
    file_byte, line_bits, result_of,
};
use super::wire::{Record, WORDS, decode, encode};
use crate::cpu::Errno;
use crate::mm::Call;
use crate::mm::mm_types::{VM_EXEC, VM_MAYSHARE, VM_READ, VM_SHARED, VM_WRITE};
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
const FILTERS: [Option<&CStr>; COUNTED.len()] = [
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
}

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
    let mut h = Helper { s, fds, sink: sink_map, text: &text, vmas: &vmas };
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
            if first {
                self.set_heap();
                self.crowd();
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
        if libc::WIFSIGNALED(status) {
            self.s.died.store(libc::WTERMSIG(status), Relaxed);
            self.s.over.store(1, Relaxed);
        } else if self.s.exited.load(Relaxed) == 0 {
            self.s.over.store(1, Relaxed);
        }
        0
    }

    /// A process sees its own maps only through files that it opened itself.
    fn open_proc(&mut self, first: bool) {
        for (fd, path) in [(&mut self.fds.maps, c"/proc/self/maps"), (&mut self.fds.smaps, c"/proc/self/smaps")] {
            // SAFETY: the parent's descriptor, and a string that outlives the call.
            unsafe {
                if !first {
                    libc::close(*fd);
                }
                *fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            }
        }
    }

    /// Opens a counter of this process for each tracepoint that is wanted; one that is refused stays 0.
    fn open_counters(&mut self) {
        const PERF_TYPE_TRACEPOINT: u64 = 2;
        const ATTR_SIZE_VER0: u64 = 64;
        const PERF_FLAG_FD_CLOEXEC: u64 = 8;
        const IOC_SET_FILTER: u64 = 0x4008_2406;
        let wanted = self.s.counted.load(Relaxed);
        for (i, fd) in self.fds.counters.iter_mut().enumerate() {
            if *fd >= 0 {
                // SAFETY: the parent's descriptor.
                unsafe { libc::close(*fd) };
                *fd = -1;
            }
            let id = self.s.tracepoints[i].load(Relaxed);
            if wanted >> i & 1 == 0 || id == 0 {
                continue;
            }
            // struct perf_event_attr, its first version: type, size, config, then counting without sampling.
            let mut attr = [0u64; ATTR_SIZE_VER0 as usize / 8];
            attr[0] = PERF_TYPE_TRACEPOINT | ATTR_SIZE_VER0 << 32;
            attr[1] = id;
            // SAFETY: the attribute block is ours and says its size; a new descriptor or -1 comes back.
            *fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, PERF_FLAG_FD_CLOEXEC) }
                as i32;
            if let (true, Some(f)) = (*fd >= 0, FILTERS[i]) {
                // SAFETY: the filter is a string that outlives the call.
                unsafe { libc::syscall(libc::SYS_ioctl, *fd, IOC_SET_FILTER, f.as_ptr()) };
            }
        }
    }

    /// What the counters show.
    fn counts(&self) -> [u64; COUNTED.len()] {
        let mut out = [0; COUNTED.len()];
        if self.s.counted.load(Relaxed) == 0 {
            return out;
        }
        for (v, &fd) in out.iter_mut().zip(&self.fds.counters) {
            if fd >= 0 {
                // SAFETY: a word of ours.
                unsafe { libc::read(fd, std::ptr::from_mut(v).cast(), 8) };
            }
        }
        out
    }

    /// Moves the heap into the window. The way that needs no privilege wants all of `struct prctl_mm_map`.
    fn set_heap(&self) {
        const PR_SET_MM: i32 = 35;
        const PR_SET_MM_MAP: u64 = 14;
        let to = self.s.start_brk.load(Relaxed);
        if to == 0 {
            return;
        }
        let mut map = self.places();
        (map[4], map[5]) = (to, to);
        // SAFETY: the structure is ours; nobody in this process allocates from the heap any more.
        let r = unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP, map.as_ptr(), size_of_val(&map), 0) };
        if r != 0 {
            self.s.died.store(1000 + os_errno(), Relaxed);
        }
    }

    /// Fills this address space far from the window, until only `room` more VMAs fit below the limit.
    fn crowd(&self) {
        let Some(room) = self.s.room.load(Relaxed).checked_sub(1).map(u64::from) else { return };
        let mut count = 0;
        self.read_lines(c"/proc/self/maps", |l| count += u64::from(!l.ends_with(b"[vsyscall]")));
        let mut limit = 0;
        self.read_lines(c"/proc/sys/vm/max_map_count", |l| limit = number(l, 10).unwrap_or(0));
        let n = limit.saturating_sub(room + count);
        if n == 0 || n > CROWD {
            self.s.died.store(1000 + libc::E2BIG, Relaxed);
            return;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a fresh mapping at an address of its own, or an error; nobody uses it.
        let p = unsafe { libc::mmap(CROWD_AT as *mut _, (n * PAGE) as usize, libc::PROT_NONE, flags, -1, 0) };
        if p as u64 != CROWD_AT {
            self.s.died.store(1000 + os_errno(), Relaxed);
            return;
        }
        for i in (1..n).step_by(2) {
            // SAFETY: a page of the mapping above.
            if unsafe { libc::mprotect((CROWD_AT + i * PAGE) as *mut _, PAGE as usize, libc::PROT_READ) } != 0 {
                self.s.died.store(1000 + os_errno(), Relaxed);
                return;
            }
        }
    }

    /// Hands each line of a small file to `f`.
    fn read_lines(&self, path: &CStr, mut f: impl FnMut(&[u8])) {
        // SAFETY: as in `finish_call()`.
        let text = unsafe { &mut *self.text.get() };
        // SAFETY: a string that outlives the call, and a buffer of ours.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let mut fill = 0;
            loop {
                let n = libc::read(fd, text.as_mut_ptr().add(fill).cast(), TEXT - fill);
                if n <= 0 {
                    break;
                }
                fill += n as usize;
            }
            libc::close(fd);
            text[..fill].split(|&b| b == b'\n').filter(|l| !l.is_empty()).for_each(&mut f);
        }
    }

    /// `struct prctl_mm_map` as it is, from `/proc/self/stat`: code, data, heap, stack, arguments, environment; then no
    /// auxiliary vector and no other program.
    fn places(&self) -> [u64; 13] {
        let mut map = [0; 13];
        map[12] = u64::from(u32::MAX) << 32;
        // SAFETY: as in `finish_call()`.
        let text = unsafe { &mut *self.text.get() };
        // SAFETY: a string that outlives the call, and a buffer of ours.
        let n = unsafe {
            let fd = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let n = libc::read(fd, text.as_mut_ptr().cast(), TEXT);
            libc::close(fd);
            n.max(0) as usize
        };
        // The name, in brackets, may hold anything; the third field follows it.
        let after = text[..n].iter().rposition(|&b| b == b')').map_or(0, |p| p + 1);
        // Field of `map`, by field of the file.
        let fields = [(26, 0), (27, 1), (45, 2), (46, 3), (47, 4), (28, 6), (48, 7), (49, 8), (50, 9), (51, 10)];
        for (i, word) in text[after..n].split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty()).enumerate() {
            if let Some((_, to)) = fields.iter().find(|(f, _)| *f == i + 3) {
                map[*to] = number(word, 10).unwrap_or(0);
            }
        }
        map
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

    /// Looks, and writes the answer of the current call.
    fn finish_call(&mut self, result: i64) {
        let s = self.s;
        let at = s.at.load(Relaxed) as usize;
        let i = s.first.load(Relaxed) + at as u64;
        let look = Look { flags_every: s.look[0].load(Relaxed), bytes_every: s.look[1].load(Relaxed) };
        let mut h = Hash::new();
        let n = self.vmas(look.flags(i));
        // SAFETY: this process has one thread, and nobody else holds the buffer now.
        let vmas = unsafe { &(&*self.vmas.get())[..n] };
        let all = compared_flags();
        for (j, v) in vmas.iter().enumerate() {
            h.add(v[0]);
            h.add(v[1]);
            h.add(line_bits(v[2]));
            h.add(self.file_name(vmas, j));
            h.add(v[3]);
            if look.flags(i) {
                h.add(v[2] & all);
            }
        }
        if look.bytes(i) {
            for v in vmas {
                for addr in (v[0]..v[1]).step_by(PAGE as usize) {
                    for o in OFFSETS {
                        h.add(byte_word(self.read(addr + o)));
                    }
                }
            }
        }
        s.steps[at][0].store(result as u64, Relaxed);
        s.steps[at][1].store(h.value(), Relaxed);
        s.at.store(at as u32 + 1, Relaxed);
    }

    /// As [`super::backend::file_name`], by inode.
    fn file_name(&self, vmas: &[WireVma], i: usize) -> u64 {
        let ino = vmas[i][4];
        if ino == 0 {
            return 0;
        }
        if let Some(f) = self.fds.inodes.iter().position(|&n| n == ino) {
            return f as u64 + 1;
        }
        0x100 + vmas[..=i].iter().position(|v| v[4] == ino).unwrap_or(i) as u64
    }

    /// The window for the other side, `VmFlags` included; inodes become numbers of files.
    fn show(&mut self) {
        let n = self.vmas(true);
        // SAFETY: as in `finish_call()`.
        let vmas = unsafe { &(&*self.vmas.get())[..n] };
        for (i, v) in vmas.iter().enumerate() {
            for (to, from) in self.s.vmas[i].iter().zip(v) {
                to.store(*from, Relaxed);
            }
            self.s.vmas[i][4].store(self.file_name(vmas, i), Relaxed);
        }
        self.s.nr_vmas.store(n as u32, Relaxed);
    }

    /// Reads the window's VMAs into the buffer; with `flags` all of `VmFlags`, else the four characters of maps.
    fn vmas(&mut self, flags: bool) -> usize {
        let n = if self.s.query.load(Relaxed) != 0 { self.query() } else { self.parse(self.fds.maps, false) };
        if flags {
            self.parse(self.fds.smaps, true);
        }
        n
    }

    fn query(&mut self) -> usize {
        // SAFETY: as in `finish_call()`.
        let out = unsafe { &mut *self.vmas.get() };
        let end = WINDOW + self.s.pages.load(Relaxed) * PAGE;
        let (mut at, mut n) = (WINDOW, 0);
        while n < MAX_VMAS {
            let Ok(Some(v)) = procmap_query(self.fds.maps, at) else { break };
            if v[0] >= end {
                break;
            }
            at = v[1];
            out[n] = v;
            n += 1;
        }
        n
    }

    /// Reads a text file of `/proc`: maps, or smaps for the flags of VMAs that are known already.
    fn parse(&mut self, fd: i32, smaps: bool) -> usize {
        // SAFETY: as in `finish_call()`.
        let (text, out) = unsafe { (&mut *self.text.get(), &mut *self.vmas.get()) };
        let end = WINDOW + self.s.pages.load(Relaxed) * PAGE;
        // SAFETY: our own descriptor.
        unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
        let (mut n, mut fill, mut inside) = (0, 0, false);
        'file: loop {
            // SAFETY: the rest of the buffer is ours.
            let r = unsafe { libc::read(fd, text.as_mut_ptr().add(fill).cast(), TEXT - fill) };
            if r <= 0 {
                break;
            }
            fill += r as usize;
            let mut from = 0;
            while let Some(len) = text[from..fill].iter().position(|&b| b == b'\n') {
                let line = &text[from..from + len];
                from += len + 1;
                if let Some(v) = parse_line(line) {
                    inside = v[1] > WINDOW && v[0] < end;
                    if v[0] >= end {
                        break 'file;
                    }
                    if inside && !smaps && n < MAX_VMAS {
                        out[n] = v;
                    }
                    n += usize::from(inside && n < MAX_VMAS);
                } else if inside && smaps && line.starts_with(b"VmFlags:") {
                    out[n - 1][2] = parse_flags(line);
                }
            }
            text.copy_within(from..fill, 0);
            fill -= from;
        }
        n
    }

    /// One system call.
    fn call(&self, c: &Call) -> i64 {
        let end = WINDOW + self.s.pages.load(Relaxed) * PAGE;
        if !safe(c, end) {
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
                Call::Read { addr } => return result_of(self.read(addr)),
                Call::Write { addr, value } => {
                    // The file's bytes are their own offsets.
                    libc::syscall(libc::SYS_pread64, self.fds.bytes, addr, 1, u64::from(value)) - 1
                }
                Call::Fork | Call::Exit => 0,
            }
        };
        match (v, c) {
            (-1, _) => -i64::from(os_errno()),
            (-2, Call::Write { .. }) => -i64::from(os_errno()),
            (v, _) => v,
        }
    }

    /// One byte, read as write(2) reads it.
    fn read(&self, addr: u64) -> Result<u64, Errno> {
        // SAFETY: the kernel only reads there, or says EFAULT.
        let n = unsafe { libc::syscall(libc::SYS_pwrite64, self.fds.sink, addr, 1, 0) };
        // SAFETY: the mapping of the sink, which the call above has written.
        if n == 1 { Ok(u64::from(unsafe { self.sink.read_volatile() })) } else { Err(Errno::EFAULT) }
    }
}

const SYS_MSEAL: libc::c_long = 462;

/// `struct procmap_query`
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// The VMA that covers `addr`, or the next one; the errno where there is none or the call is missing.
pub fn procmap_query(fd: i32, addr: u64) -> Result<Option<WireVma>, i32> {
    const COVERING_OR_NEXT: u64 = 0x10;
    // _IOWR('f', 17, struct procmap_query)
    const REQUEST: u64 = 3 << 30 | (size_of::<ProcmapQuery>() as u64) << 16 | 0x66 << 8 | 17;
    let mut q = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: COVERING_OR_NEXT,
        query_addr: addr,
        ..ProcmapQuery::default()
    };
    // SAFETY: the structure is ours and says its size.
    if unsafe { libc::syscall(libc::SYS_ioctl, fd, REQUEST, &raw mut q) } != 0 {
        return match os_errno() {
            libc::ENOENT => Ok(None),
            e => Err(e),
        };
    }
    let bit = |b: u64, f: u64| if q.vma_flags & b != 0 { f } else { 0 };
    let flags = bit(1, VM_READ) | bit(2, VM_WRITE) | bit(4, VM_EXEC) | bit(8, VM_SHARED | VM_MAYSHARE);
    Ok(Some([q.vma_start, q.vma_end, flags, q.vma_offset, q.inode]))
}

/// A line of maps, or the first line of a VMA in smaps.
fn parse_line(line: &[u8]) -> Option<WireVma> {
    let mut words = line.split(|&b| b == b' ').filter(|w| !w.is_empty());
    let (range, rights) = (words.next()?, words.next()?);
    let dash = range.iter().position(|&b| b == b'-')?;
    let (start, end) = (number(&range[..dash], 16)?, number(&range[dash + 1..], 16)?);
    let offset = number(words.next()?, 16)?;
    let _device = words.next()?;
    let inode = number(words.next()?, 10)?;
    let mut flags = 0;
    for (b, f) in
        rights.iter().zip([(b'r', VM_READ), (b'w', VM_WRITE), (b'x', VM_EXEC), (b's', VM_SHARED | VM_MAYSHARE)])
    {
        flags |= if *b == f.0 { f.1 } else { 0 };
    }
    Some([start, end, flags, offset, inode])
}

fn number(digits: &[u8], base: u64) -> Option<u64> {
    let digit = |b: u8| (b as char).to_digit(base as u32).map(u64::from);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, &b| Some(n.wrapping_mul(base) + digit(b)?))
}

/// `VmFlags: rd wr ...` as bits.
fn parse_flags(line: &[u8]) -> u64 {
    let words = line["VmFlags:".len()..].split(|&b| b == b' ');
    words.filter_map(|w| super::backend::SMAPS.iter().find(|(n, _)| n[..] == *w)).fold(0, |f, (_, b)| f | b)
}

/// Whether `c` stays in the window that ends at `end`, or fails whatever is mapped.
pub fn safe(c: &Call, end: u64) -> bool {
    const TOP: u64 = 0x7fff_ffff_f000;
    const PROT_GROWSDOWN: u32 = 0x0100_0000;
    let align = |len: u64| len.checked_add(PAGE - 1).map(|l| l & !(PAGE - 1));
    let inside =
        |addr: u64, len: u64| addr >= WINDOW && align(len).and_then(|l| addr.checked_add(l)).is_some_and(|e| e <= end);
    // Behind the window is a hole, so what stops at a hole cannot get further.
    let stops_at_holes = |addr: u64| addr >= WINDOW && addr <= end;
    let beyond = |addr: u64, len: u64| addr > TOP || len > TOP - addr;
    let fixed = |flags: u32| flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u32 != 0;
    match *c {
        // Without a fixed address nothing is overwritten.
        Call::Mmap { addr, len, flags, .. } => {
            inside(addr, len) || beyond(addr, len) || len == 0 || !fixed(flags) && len < 1 << 40
        }
        Call::Munmap { addr, len } => inside(addr, len) || beyond(addr, len),
        Call::Madvise { addr, len, .. } => {
            inside(addr, len) || align(len).is_none() || align(len).is_some_and(|l| addr.checked_add(l).is_none())
        }
        // To grow down it begins at the first mapping of the range, wherever that is.
        Call::Mprotect { addr, len, prot } if prot & PROT_GROWSDOWN != 0 => inside(addr, len),
        Call::Mprotect { addr, .. } | Call::Mseal { addr, .. } => stops_at_holes(addr),
        Call::Mlock { addr, .. } | Call::Munlock { addr, .. } => stops_at_holes(addr),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let place =
                flags & (libc::MREMAP_FIXED as u32 | 4) == 0 || inside(new_addr, new_len) || beyond(new_addr, new_len);
            inside(addr, old_len) && place || new_len == 0 || new_len > TOP && old_len <= end - WINDOW && place
        }
        Call::Brk { to } => to <= end,
        Call::Read { addr } | Call::Write { addr, .. } => (WINDOW..end).contains(&addr),
        Call::Mlockall { .. } | Call::Munlockall | Call::Fork | Call::Exit => true,
    }
}

/// What a round is asked for, as the shared memory says it.
pub fn put_setup(s: &Shared, setup: &Setup) {
    s.pages.store(setup.pages.into(), Relaxed);
    s.start_brk.store(if setup.heap { setup.start_brk() } else { 0 }, Relaxed);
    s.counted.store(setup.counted.into(), Relaxed);
    s.room.store(setup.room.map_or(0, |r| r + 1), Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_and_smaps_are_read() {
        let l = b"600000000000-600000003000 rw-s 00002000 00:01 77                         /memfd:file (deleted)";
        let want = [WINDOW, WINDOW + 3 * PAGE, VM_READ | VM_WRITE | VM_SHARED | VM_MAYSHARE, 0x2000, 77];
        assert_eq!(parse_line(l), Some(want));
        assert_eq!(parse_line(b"Size:                  4 kB"), None);
        assert_eq!(parse_line(b"VmFlags: rd wr"), None);
        assert_eq!(parse_flags(b"VmFlags: rd wr mr sd 1s "), VM_READ | VM_WRITE | crate::mm::mm_types::VM_MAYREAD);
    }

    #[test]
    fn what_could_leave_the_window_is_refused() {
        let end = WINDOW + 64 * PAGE;
        let no = [
            Call::Munmap { addr: WINDOW, len: 1 << 40 },
            Call::Munmap { addr: 0x5555_5555_4000, len: PAGE },
            Call::Madvise { addr: WINDOW, len: 1 << 46, advice: 4 },
            Call::Mmap { addr: WINDOW, len: 1 << 44, prot: 0, flags: 0x32, fd: None, offset: 0 },
            Call::Mremap { addr: WINDOW, old_len: 1 << 44, new_len: PAGE, flags: 0, new_addr: 0 },
            Call::Mremap { addr: WINDOW, old_len: PAGE, new_len: PAGE, flags: 3, new_addr: 0x5555_5555_4000 },
            Call::Brk { to: end + 1 },
            Call::Write { addr: end, value: 1 },
            Call::Mprotect { addr: 0x7fff_0000_0000, len: 4096, prot: 0 },
            Call::Mprotect { addr: WINDOW, len: 1 << 46, prot: 0x0100_0000 },
        ];
        for c in no {
            assert!(!safe(&c, end), "{c:?}");
        }
        let yes = [
            Call::Munmap { addr: WINDOW, len: 64 * PAGE },
            Call::Munmap { addr: WINDOW, len: u64::MAX },
            Call::Madvise { addr: WINDOW, len: u64::MAX, advice: 4 },
            Call::Mprotect { addr: WINDOW, len: 1 << 46, prot: 0 },
            Call::Mremap { addr: WINDOW, old_len: PAGE, new_len: 0, flags: 0, new_addr: 0 },
        ];
        for c in yes {
            assert!(safe(&c, end), "{c:?}");
        }
    }
}
