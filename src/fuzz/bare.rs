// SPDX-License-Identifier: GPL-2.0-only
//! The running kernel as a backend, in a process that has nothing but the window: what a call takes of the kernel depends
//! then on the calls alone, nodes of the tree included, and can be held against the port call by call.
//!
//! The process is driven by ptrace ([`tracee`](crate::trace::tracee)): of its own it has one page of code, far below the
//! window, and the port begins with the same page (`port.rs`). Everything else is done from here: the counters of
//! tracepoints are opened on the process and read while it is stopped, its maps are looked at through `/proc`, and bytes
//! are read by process_vm_readv(2). So what is counted in a call is the call's alone.
//!
//! stub: rounds at the limit of VMAs (a tree of 65,000 ranges is another experiment).
//!
//! It cannot tell how many nodes were freed: in kernels with kfree_rcu() for them no tracepoint shows it.

use super::backend::{
    Backend, CHAIN_LINKS, COUNTED, FILES, Hash, Limit, Look, MAX_DEPTH, OFFSETS, PAGE, Resource, Setup, Step, Stop,
    WINDOW, byte_word, counts_of, file_byte, hash_vmas, signal_result,
};
use super::helper::{FILTERS, REFUSED, TRACEPOINTS, procmap_query, safe};
use super::kernel::tracepoint;
use super::port::{CODE, OWN};
use crate::cpu::Errno;
use crate::mm::{Call, VmaInfo};
use crate::trace::tracee::{
    LOAD, ROOM, STORE, errno, kill, map_code, os, parse_maps, poke, run, set_start_brk, start_empty, system_call,
};
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A process of the round, stopped.
struct Running {
    pid: libc::pid_t,
    maps: File,
    counters: Counters,
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(self.pid);
    }
}

/// See the module. A tracer is one thread: this one.
pub struct Bare {
    empty: libc::pid_t,
    files: Vec<OwnedFd>,
    inodes: Vec<u64>,
    ids: [u64; COUNTED.len()],
    /// Of the empty process. They also keep the tracepoints switched on: switching them on and off waits for all CPUs.
    anchors: Counters,
    /// Links that the page of code has to the anon_vmas of those that the process of the round descends from, which the
    /// port's does not.
    ancestors: u64,
    /// Processes of the round, the running one last.
    round: Vec<Running>,
    setup: Setup,
    _one_thread: PhantomData<*const ()>,
}

/// Counters of tracepoints of one process, read as a group.
struct Counters {
    fds: Vec<OwnedFd>,
    /// Of [`COUNTED`], by place in the group.
    of: Vec<usize>,
}

impl Counters {
    fn open(pid: libc::pid_t, ids: &[u64; COUNTED.len()], wanted: u16) -> Self {
        const PERF_TYPE_TRACEPOINT: u64 = 2;
        const ATTR_SIZE_VER0: u64 = 64;
        const PERF_FORMAT_GROUP: u64 = 8;
        const PERF_FLAG_FD_CLOEXEC: u64 = 8;
        const IOC_SET_FILTER: u64 = 0x4008_2406;
        let mut c = Counters { fds: Vec::new(), of: Vec::new() };
        for (i, id) in ids.iter().enumerate().filter(|(i, id)| wanted >> i & 1 == 1 && **id != 0) {
            // struct perf_event_attr, its first version: type and size, config, then what is read.
            let mut attr = [0u64; ATTR_SIZE_VER0 as usize / 8];
            (attr[0], attr[1], attr[4]) = (PERF_TYPE_TRACEPOINT | ATTR_SIZE_VER0 << 32, *id, PERF_FORMAT_GROUP);
            let group = c.fds.first().map_or(-1, AsRawFd::as_raw_fd);
            // SAFETY: the attribute block is ours and says its size; a new descriptor or -1 comes back.
            let fd = unsafe {
                libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid, -1, group, PERF_FLAG_FD_CLOEXEC) as i32
            };
            if fd < 0 {
                continue;
            }
            // SAFETY: fresh and ours.
            c.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            c.of.push(i);
            if let Some(f) = FILTERS[i] {
                // SAFETY: the filter is a string that outlives the call.
                unsafe { libc::syscall(libc::SYS_ioctl, fd, IOC_SET_FILTER, f.as_ptr()) };
            }
        }
        c
    }

    fn read(&self) -> [u64; COUNTED.len()] {
        let (mut out, mut words) = ([0; COUNTED.len()], [0u64; COUNTED.len() + 1]);
        if let Some(fd) = self.fds.first() {
            // The number of counters, then their values.
            // SAFETY: a buffer of ours.
            unsafe { libc::read(fd.as_raw_fd(), words.as_mut_ptr().cast(), size_of_val(&words)) };
        }
        self.of.iter().zip(&words[1..]).for_each(|(&i, &v)| out[i] = v);
        out
    }
}

fn stop(e: String) -> Stop {
    Stop(format!("the bare process: {e}"))
}

/// What came of a system call: as the kernel returns it, `-errno` where it failed.
fn answer(pid: libc::pid_t, nr: libc::c_long, args: [u64; 6]) -> Result<(i64, Option<libc::pid_t>), Stop> {
    match run(pid, CODE, nr as u64, args) {
        Ok(r) => Ok((r.rax as i64, r.child)),
        Err(Ok(s)) => Err(stop(format!("signal {s} in a system call"))),
        Err(Err(e)) => Err(stop(e)),
    }
}

/// `si_code` of the signal that `pid` is stopped at.
fn signal_code(pid: libc::pid_t) -> i32 {
    // SAFETY: plain data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: a stopped process of ours; the request fills the structure.
    unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, pid, 0, &raw mut info) };
    info.si_code
}

impl Bare {
    /// Starts the empty process.
    ///
    /// # Errors
    /// Why the host has none.
    pub fn start() -> Result<Self, Stop> {
        let (mut files, mut inodes) = (Vec::new(), Vec::new());
        for _ in FILES {
            // SAFETY: a terminated name; a new descriptor comes back.
            let fd = unsafe { libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC) };
            if fd < 0 {
                return Err(Stop(os("memfd_create")));
            }
            // SAFETY: fresh and ours.
            let f = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: plain data.
            let mut st: libc::stat = unsafe { std::mem::zeroed() };
            // SAFETY: our own descriptor and structure.
            unsafe { libc::fstat(fd, &mut st) };
            inodes.push(st.st_ino);
            files.push(f);
        }
        if map_code(CODE).map_err(stop)? {
            return Err(stop(format!("something is mapped at {CODE:#x}")));
        }
        let empty = start_empty(CODE);
        // SAFETY: the page that map_code() made; the child has its own.
        unsafe { libc::munmap(CODE as *mut _, PAGE as usize) };
        let empty = empty.map_err(stop)?;
        let ids = TRACEPOINTS.map(tracepoint);
        let anchors = Counters::open(empty, &ids, u16::MAX);
        let setup = Setup::plain(crate::mm::MmRules::V6_12, 8);
        let round = Vec::new();
        Ok(Bare { empty, files, inodes, ids, anchors, ancestors: 0, round, setup, _one_thread: PhantomData })
    }

    fn now(&self) -> Result<&Running, Stop> {
        self.round.last().ok_or_else(|| Stop("no round is running".into()))
    }

    fn adopt(&mut self, pid: libc::pid_t) -> Result<(), Stop> {
        let path = format!("/proc/{pid}/maps");
        let maps = match File::open(&path) {
            Ok(f) => f,
            Err(e) => {
                kill(pid);
                return Err(Stop(format!("{path}: {e}")));
            }
        };
        let counters = Counters::open(pid, &self.ids, self.setup.counted);
        self.round.push(Running { pid, maps, counters });
        Ok(())
    }

    /// Puts the contents that a round begins with into the files.
    fn fill(&self) -> Result<(), Stop> {
        let mut page = [0u8; PAGE as usize];
        for (i, (fd, pages)) in self.files.iter().zip(FILES).enumerate() {
            // SAFETY: our own descriptors, and a buffer of ours.
            let mut ok = unsafe { libc::ftruncate(fd.as_raw_fd(), 0) == 0 };
            for p in 0..pages {
                page.fill(file_byte(i, p));
                // SAFETY: as above.
                let n = unsafe { libc::pwrite(fd.as_raw_fd(), page.as_ptr().cast(), page.len(), (p * PAGE) as i64) };
                ok &= n == PAGE as isize;
            }
            if !ok {
                return Err(Stop(os("the files of a round")));
            }
        }
        Ok(())
    }

    /// As `lower_limit()` of the helper.
    fn lower_limit(&self, l: Limit) -> Result<(), Stop> {
        let pid = self.now()?.pid;
        if l.of != Resource::Memlock {
            let map = Call::Mmap { addr: OWN, len: PAGE, prot: 3, flags: 0x32, fd: None, offset: 0 };
            let (nr, args) = system_call(&map, |_| -1).expect("mmap is one");
            answer(pid, nr, args)?;
        }
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path).map_err(|e| Stop(format!("{path}: {e}")))?;
        let kib = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        };
        let (resource, has) = match l.of {
            Resource::AddressSpace => (libc::RLIMIT_AS, kib("VmSize:")),
            Resource::Data | Resource::DataHard => (libc::RLIMIT_DATA, kib("VmData:")),
            Resource::Memlock => (libc::RLIMIT_MEMLOCK, 0),
        };
        let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a process of ours and structures of ours.
        let ok = unsafe {
            libc::prlimit(pid, resource, std::ptr::null(), &mut r) == 0 && {
                let lowered = has * 1024 + u64::from(l.pages) * PAGE;
                if l.of == Resource::DataHard {
                    (r.rlim_cur, r.rlim_max) = (0, lowered);
                } else {
                    r.rlim_cur = lowered;
                }
                libc::prlimit(pid, resource, &r, std::ptr::null_mut()) == 0
            }
        };
        if !ok {
            return Err(Stop(os("prlimit")));
        }
        if l.of == Resource::Memlock { drop_ipc_lock(pid) } else { Ok(()) }
    }

    /// The window's VMAs, with `VmFlags` where asked.
    fn window(&self, flags: bool) -> Result<Vec<VmaInfo>, Stop> {
        let p = self.now()?;
        let (mut at, mut out) = (WINDOW, Vec::new());
        while let Ok(Some([start, end, flags, offset, inode])) = procmap_query(p.maps.as_raw_fd(), at) {
            if start >= self.setup.end() {
                break;
            }
            at = end;
            out.push(VmaInfo { start, end, flags, file: self.file(inode), offset });
        }
        if flags {
            let path = format!("/proc/{}/smaps", p.pid);
            let text = std::fs::read_to_string(&path).map_err(|e| Stop(format!("{path}: {e}")))?;
            let seen = parse_maps(&text);
            for v in &mut out {
                v.flags = seen.iter().find(|(s, _)| s.start == v.start).map_or(0, |(s, _)| s.flags);
            }
        }
        Ok(out)
    }

    /// A file's number; shared anonymous objects are numbered by inode behind them.
    fn file(&self, inode: u64) -> Option<u32> {
        match self.inodes.iter().position(|i| *i == inode) {
            _ if inode == 0 => None,
            Some(f) => Some(f as u32),
            None => Some(inode as u32 | 1 << 31),
        }
    }

    /// One call; a fork and an exit move to another process.
    fn call(&mut self, c: &Call) -> Result<i64, Stop> {
        if !safe(c, self.setup.end()) {
            return Ok(REFUSED);
        }
        let pid = self.now()?.pid;
        let fd = |f: u32| self.files.get(f as usize).map_or(-1, AsRawFd::as_raw_fd);
        if let Some((nr, args)) = system_call(c, fd) {
            let r = answer(pid, nr, args)?.0;
            // personality(2) gives what was set before.
            return Ok(if matches!(c, Call::Personality { .. }) { r.min(0) } else { r });
        }
        let access = match *c {
            Call::Write { addr, value } => run(pid, CODE + STORE, 0, [addr, u64::from(value), 0, 0, 0, 0]).map(|_| 0),
            Call::Read { addr } => run(pid, CODE + LOAD, 0, [addr, 0, 0, 0, 0, 0]).map(|r| (r.rax & 0xff) as i64),
            Call::Fork if self.round.len() >= MAX_DEPTH => return Ok(-i64::from(libc::EAGAIN)),
            Call::Fork => {
                let (r, child) = answer(pid, libc::SYS_fork, [0; 6])?;
                return match child {
                    Some(child) => self.adopt(child).map(|()| 0),
                    None => Ok(r),
                };
            }
            _ => {
                if self.round.len() > 1 {
                    self.round.pop();
                }
                return Ok(0);
            }
        };
        match access {
            Ok(v) => Ok(v),
            Err(Ok(signal)) => Ok(signal_result(signal, signal_code(pid))),
            Err(Err(e)) => Err(stop(e)),
        }
    }

    /// A byte as a system call reads it, whatever the process.
    fn peek(&self, v: &VmaInfo, addr: u64) -> Result<Result<u64, Errno>, Stop> {
        let pid = self.now()?.pid;
        if write_only(v.flags) {
            // What only the processor reads: may be written, may not be read.
            return match run(pid, CODE + LOAD, 0, [addr, 0, 0, 0, 0, 0]) {
                Ok(r) => Ok(Ok(r.rax & 0xff)),
                Err(Ok(_)) => Ok(Err(Errno::EFAULT)),
                Err(Err(e)) => Err(stop(e)),
            };
        }
        let mut byte = 0u8;
        let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let there = libc::iovec { iov_base: addr as *mut _, iov_len: 1 };
        // SAFETY: one byte of ours; the other address is only looked at in the other process.
        match unsafe { libc::process_vm_readv(pid, &here, 1, &there, 1, 0) } {
            1 => Ok(Ok(byte.into())),
            _ if errno() == libc::EFAULT => Ok(Err(Errno::EFAULT)),
            _ => Err(Stop(os("process_vm_readv"))),
        }
    }

    fn look(&self, i: u64, look: &Look) -> Result<u64, Stop> {
        let vmas = self.window(look.flags(i))?;
        let mut h = Hash::new();
        hash_vmas(&mut h, &vmas, look.flags(i));
        if look.bytes(i) {
            for v in &vmas {
                for addr in (v.start..v.end).step_by(PAGE as usize) {
                    for o in OFFSETS {
                        h.add(byte_word(self.peek(v, addr + o)?));
                    }
                }
            }
        }
        Ok(h.value())
    }
}

/// Writable and not readable.
fn write_only(flags: u64) -> bool {
    use crate::mm::mm_types::{VM_READ, VM_WRITE};
    flags & (VM_READ | VM_WRITE) == VM_WRITE
}

/// Gives up `CAP_IPC_LOCK` in `pid`, which would lift the limit on locked memory.
fn drop_ipc_lock(pid: libc::pid_t) -> Result<(), Stop> {
    const CAP_IPC_LOCK: u32 = 14;
    const VERSION_3: u64 = 0x2008_0522;
    let (header, sets) = (CODE + ROOM, CODE + ROOM + 8);
    // The page of code is not writable for capget(2): the sets are read from /proc.
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|e| Stop(format!("{path}: {e}")))?;
    let set = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
        u64::from_str_radix(line.trim(), 16).unwrap_or(0)
    };
    let [e, p, i] = ["CapEff:", "CapPrm:", "CapInh:"].map(set);
    let e = e & !(1 << CAP_IPC_LOCK);
    let low = |v: u64| v & 0xffff_ffff;
    // Effective, permitted, inheritable: the low halves, then the high ones.
    let words = [low(e) | low(p) << 32, low(i) | (e >> 32) << 32, (p >> 32) | (i >> 32) << 32];
    poke(pid, header, &[VERSION_3, words[0], words[1], words[2]]).map_err(stop)?;
    match answer(pid, libc::SYS_capset, [header, sets, 0, 0, 0, 0])?.0 {
        0 => Ok(()),
        r => Err(stop(format!("capset: {r}"))),
    }
}

impl Backend for Bare {
    fn name(&self) -> String {
        "the kernel".into()
    }

    fn begin(&mut self, setup: &Setup) -> Result<(), Stop> {
        self.end()?;
        self.setup = *setup;
        if setup.room.is_some() || setup.everywhere {
            return Err(stop("rounds at the limit of VMAs and about placement are the helper's".into()));
        }
        self.fill()?;
        let before = self.anchors.read();
        let (r, child) = answer(self.empty, libc::SYS_fork, [0; 6])?;
        self.ancestors = (self.anchors.read()[CHAIN_LINKS] - before[CHAIN_LINKS]).saturating_sub(1);
        self.adopt(child.ok_or_else(|| stop(format!("fork: {r}")))?)?;
        let pid = self.now()?.pid;
        if setup.heap && !set_start_brk(pid, CODE, setup.start_brk()).map_err(stop)? {
            return Err(stop("the heap cannot be put into the window".into()));
        }
        for c in setup.crowd() {
            let (nr, args) = system_call(&c, |_| -1).expect("mmap is one");
            let r = answer(pid, nr, args)?.0;
            if r < 0 {
                return Err(stop(format!("the crowd: errno {}", -r)));
            }
        }
        setup.limit.map_or(Ok(()), |l| self.lower_limit(l))
    }

    fn run(&mut self, first: u64, calls: &[Call], look: &Look, out: &mut Vec<Step>) -> Result<(), Stop> {
        for (i, c) in calls.iter().enumerate() {
            // The process that makes the call: a fork's work is the parent's.
            let at = self.round.len().saturating_sub(1);
            let before = self.now()?.counters.read();
            let result = self.call(c)?;
            if result == REFUSED {
                return Err(Stop(format!("a call that would leave the window was refused: {c:?}")));
            }
            // Who has exited has no counters any more.
            let after = self.round.get(at).map_or(before, |p| p.counters.read());
            let mut taken: [u64; COUNTED.len()] = std::array::from_fn(|i| after[i] - before[i]);
            if matches!(c, Call::Fork) {
                // Where they are not counted there is nothing to take off.
                taken[CHAIN_LINKS] = taken[CHAIN_LINKS].saturating_sub(self.ancestors);
            }
            let counts = counts_of(c, taken.map(|n| n as u16));
            out.push(Step { result, hash: self.look(first + i as u64, look)?, counts });
        }
        Ok(())
    }

    fn maps(&mut self) -> Result<Vec<VmaInfo>, Stop> {
        self.window(true)
    }

    fn end(&mut self) -> Result<(), Stop> {
        while self.round.pop().is_some() {}
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.round.clear();
        kill(self.empty);
    }
}
