// SPDX-License-Identifier: GPL-2.0-only
//! The running kernel as a backend: starts the helper process ([`helper`](super::helper)), hands it batches of calls and
//! takes its answers.
//!
//! A helper that dies, hangs or is refused something by the kernel ends the run with one sentence; it never outlives
//! this process (its pipes end, and the kernel kills it with its parent).

use super::backend::{Backend, Look, PAGE, Promise, Setup, Space, Step, Stop};
use super::helper::{
    ARGUMENT, BATCH, BEGIN, DONE, END, MAPS, MAX_VMAS, REFUSED, RUN, Shared, TRACEPOINTS, get_steps, parse_line,
    procmap_query, put_batch, put_setup,
};
use crate::mm::{Call, VmaInfo};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

/// How long a batch may take, ms.
const PATIENCE_MS: i32 = 60_000;

/// The helper and the way to it.
pub struct Kernel {
    child: Child,
    shared: NonNull<Shared>,
    commands: OwnedFd,
    answers: OwnedFd,
    running: bool,
    /// The round is about placement: what is mapped besides it.
    foreign: Option<Space>,
}

fn os(what: &str) -> Stop {
    Stop(format!("{what}: {}", io::Error::last_os_error()))
}

/// Two connected ends: a pipe that can be written to without a signal where nobody reads.
fn pair() -> Result<(OwnedFd, OwnedFd), Stop> {
    let mut fds = [0i32; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) } != 0 {
        return Err(os("a way to the helper process (socketpair)"));
    }
    // SAFETY: two descriptors that nobody else has.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// What this host promises, by `/proc`; where that cannot be read, nothing is taken for granted.
fn promise() -> Promise {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    promise_of(&read("/proc/sys/vm/overcommit_memory"), &read("/proc/meminfo"))
}

fn promise_of(policy: &str, meminfo: &str) -> Promise {
    let kib = |key: &str| {
        let rest = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    match (policy.trim(), kib("MemTotal:"), kib("SwapTotal:")) {
        ("0", Some(memory), Some(swap)) => Promise::Pages((memory + swap) * 1024 / PAGE),
        ("1", ..) => Promise::Always,
        _ => Promise::Shared,
    }
}

impl Kernel {
    /// Starts the helper: this program again.
    ///
    /// # Errors
    /// Why the host cannot be held against.
    pub fn start() -> Result<Self, Stop> {
        let exe = std::env::current_exe().map_err(|e| Stop(format!("the path of this program: {e}")))?;
        Self::start_program(exe)
    }

    /// Starts `exe` as the helper.
    ///
    /// # Errors
    /// As [`Kernel::start`].
    pub fn start_program(exe: PathBuf) -> Result<Self, Stop> {
        // SAFETY: a string that outlives the call; a new descriptor comes back.
        let fd = unsafe { libc::memfd_create(c"faultline-fuzz".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(os("shared memory for the helper process (memfd_create)"));
        }
        // SAFETY: a descriptor that nobody else has.
        let memory = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: our own descriptor.
        if unsafe { libc::ftruncate(fd, size_of::<Shared>() as i64) } != 0 {
            return Err(os("shared memory for the helper process (ftruncate)"));
        }
        // SAFETY: a fresh mapping where the kernel likes.
        let p = unsafe {
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), rw, libc::MAP_SHARED, fd, 0)
        };
        let shared = NonNull::new(p.cast::<Shared>()).filter(|_| p != libc::MAP_FAILED);
        let shared = shared.ok_or_else(|| os("shared memory for the helper process (mmap)"))?;
        let (command_in, commands) = pair()?;
        let (answers, answer_out) = pair()?;
        let inherited = [memory.as_raw_fd(), command_in.as_raw_fd(), answer_out.as_raw_fd()];
        let mut cmd = Command::new(&exe);
        cmd.arg(ARGUMENT).args(inherited.map(|f| f.to_string()));
        cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
        // SAFETY: between fork and exec only personality and fcntl are called, which are allowed there.
        unsafe {
            cmd.pre_exec(move || {
                // The same addresses in each run, and in MAP_32BIT's arena at all. Refused in some containers: see
                // `space()`.
                let now = libc::personality(0xffff_ffff);
                libc::personality(now as libc::c_ulong | libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                for fd in inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = cmd.spawn().map_err(|e| Stop(format!("the helper process ({}): {e}", exe.display())))?;
        let mut k = Kernel { child, shared, commands, answers, running: false, foreign: None };
        // Their other ends are the helper's alone: its end is seen here.
        drop((command_in, answer_out, memory));
        k.wait()?;
        k.s().query.store(u32::from(query_works()), Relaxed);
        for (to, path) in k.s().tracepoints.iter().zip(TRACEPOINTS) {
            to.store(tracepoint(path), Relaxed);
        }
        Ok(k)
    }

    fn s(&self) -> &Shared {
        // SAFETY: mapped until this is dropped; all fields are atomics.
        unsafe { self.shared.as_ref() }
    }

    fn send(&mut self, command: u8) -> Result<(), Stop> {
        // SAFETY: one byte of ours.
        let n = unsafe { libc::send(self.commands.as_raw_fd(), [command].as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
        if n == 1 { self.wait() } else { Err(self.dead()) }
    }

    /// Waits for the answer.
    fn wait(&mut self) -> Result<(), Stop> {
        let mut p = libc::pollfd { fd: self.answers.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        loop {
            // SAFETY: one entry of ours.
            let r = unsafe { libc::poll(&mut p, 1, PATIENCE_MS) };
            if r == 0 {
                return Err(Stop(format!("the helper process gave no answer for {} s", PATIENCE_MS / 1000)));
            }
            if r < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            let mut b = 0u8;
            // SAFETY: one byte of ours.
            let n = unsafe { libc::read(self.answers.as_raw_fd(), (&raw mut b).cast(), 1) };
            if n == 1 && b == DONE {
                return Ok(());
            }
            if n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(self.dead());
        }
    }

    fn dead(&mut self) -> Stop {
        match self.child.wait() {
            Ok(s) => Stop(format!("the helper process is gone ({s})")),
            Err(e) => Stop(format!("the helper process is gone ({e})")),
        }
    }

    /// What became of a process of the round that is not there any more.
    fn check(&self) -> Result<(), Stop> {
        let d = self.s().died.load(Relaxed);
        match d {
            0 => Ok(()),
            d if d >= 1000 => {
                let e = io::Error::from_raw_os_error(d - 1000);
                Err(Stop(format!("the helper process could not begin a round: {e}")))
            }
            d => {
                let at = self.s().at.load(Relaxed);
                Err(Stop(format!("a process of the round died of signal {d} in call {at} of its batch")))
            }
        }
    }
}

/// The number of a tracepoint; 0: not there, or not readable for this user.
pub fn tracepoint(path: &str) -> u64 {
    let tracefs = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let id = |t: &&str| std::fs::read_to_string(format!("{t}/events/{path}/id")).ok()?.trim().parse().ok();
    tracefs.iter().find_map(id).unwrap_or(0)
}

/// Whether the host has `PROCMAP_QUERY`.
fn query_works() -> bool {
    std::fs::File::open("/proc/self/maps").is_ok_and(|f| procmap_query(f.as_raw_fd(), 0).is_ok())
}

impl Backend for Kernel {
    fn name(&self) -> String {
        "the kernel".into()
    }

    fn begin(&mut self, setup: &Setup) -> Result<(), Stop> {
        if self.running {
            self.end()?;
        }
        self.foreign = if setup.everywhere { self.space()? } else { None };
        put_setup(self.s(), setup);
        self.send(BEGIN)?;
        self.running = self.s().over.load(Relaxed) == 0;
        let r = self.check();
        if r.is_err() {
            self.s().died.store(0, Relaxed);
            self.end()?;
        }
        r
    }

    fn run(&mut self, first: u64, calls: &[Call], look: &Look, out: &mut Vec<Step>) -> Result<(), Stop> {
        let mut first = first;
        for batch in calls.chunks(BATCH) {
            put_batch(self.s(), first, batch, look);
            let from = out.len();
            self.send(RUN)?;
            get_steps(self.s(), out);
            if self.s().over.load(Relaxed) != 0 {
                self.running = false;
            }
            self.check()?;
            if let Some(i) = out[from..].iter().position(|s| s.result == REFUSED) {
                return Err(Stop(format!("the helper refused a call that would leave the window: {:?}", batch[i])));
            }
            if out.len() - from != batch.len() {
                return Err(Stop("the helper process ended the round early".into()));
            }
            first += batch.len() as u64;
        }
        Ok(())
    }

    fn maps(&mut self) -> Result<Vec<VmaInfo>, Stop> {
        if !self.running {
            return Err(Stop("no round is running".into()));
        }
        self.send(MAPS)?;
        self.check()?;
        let n = (self.s().nr_vmas.load(Relaxed) as usize).min(MAX_VMAS);
        let info = |w: &[std::sync::atomic::AtomicU64; 5]| {
            let v = |i: usize| w[i].load(Relaxed);
            let file = v(4).checked_sub(1).map(|f| f as u32);
            VmaInfo { start: v(0), end: v(1), flags: v(2), file, offset: v(3) }
        };
        let foreign = |v: &VmaInfo| self.foreign.as_ref().is_some_and(|f| f.is_foreign(v.start, v.end));
        Ok(self.s().vmas[..n].iter().map(info).filter(|v| !foreign(v)).collect())
    }

    fn space(&mut self) -> Result<Option<Space>, Stop> {
        let id = self.child.id();
        let read = |file: &str| {
            let path = format!("/proc/{id}/{file}");
            std::fs::read_to_string(&path).map_err(|e| Stop(format!("{path}: {e}")))
        };
        // The rounds' processes are forks of this one.
        let maps = read("maps")?;
        let (mut mapped, mut mmap_base) = (Vec::new(), 0);
        for line in maps.lines() {
            let Some([start, end, ..]) = parse_line(line.as_bytes()) else { continue };
            let named = |n: &str| line.ends_with(n);
            if named("[vsyscall]") {
                continue;
            }
            mapped.push((start, end, named("[stack]")));
            if !named("[stack]") && !named("[vdso]") && !named("[vvar]") && !named("[vvar_vclock]") {
                mmap_base = end;
            }
        }
        let flags = u64::from_str_radix(read("personality")?.trim(), 16).unwrap_or(0);
        let randomised = flags & libc::ADDR_NO_RANDOMIZE as u64 == 0;
        Ok(Some(Space { mapped, mmap_base, randomised, promise: promise() }))
    }

    fn end(&mut self) -> Result<(), Stop> {
        if self.running {
            self.running = false;
            self.send(END)?;
            self.check()?;
        }
        Ok(())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // Our own child, by its number; its children die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.shared.as_ptr().cast(), size_of::<Shared>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_read_from_proc() {
        let meminfo = "MemTotal:       24683656 kB\nMemFree: 1 kB\nSwapTotal:           8 kB\n";
        assert_eq!(promise_of("0\n", meminfo), Promise::Pages(6_170_916));
        assert_eq!(promise_of("1\n", ""), Promise::Always);
        for (policy, meminfo) in [("2\n", meminfo), ("0\n", "MemTotal: 7 kB\n"), ("", meminfo)] {
            assert_eq!(promise_of(policy, meminfo), Promise::Shared, "{policy} {meminfo}");
        }
    }
}
