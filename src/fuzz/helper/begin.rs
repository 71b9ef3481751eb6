// SPDX-License-Identifier: GPL-2.0-only
//! How a process of a round gets ready: its files of `/proc`, its counters, the heap, an address space that is nearly
//! full, limits.

use super::proc::number;
use super::{CROWD, CROWD_AT, FILTERS, Helper, TEXT, os_errno};
use crate::fuzz::backend::{COUNTED, PAGE, Resource};
use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;

impl Helper<'_> {
    /// A process sees its own maps only through files that it opened itself.
    pub(super) fn open_proc(&mut self, first: bool) {
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
    pub(super) fn open_counters(&mut self) {
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
    pub(super) fn counts(&self) -> [u64; COUNTED.len()] {
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
    pub(super) fn set_heap(&self) {
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
    pub(super) fn crowd(&self) {
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
    pub(super) fn read_lines(&self, path: &CStr, mut f: impl FnMut(&[u8])) {
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
    pub(super) fn places(&self) -> [u64; 13] {
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

    /// Notes what is mapped before the round.
    pub(super) fn note_foreign(&mut self) {
        let mut n = 0;
        let (mut at, fd) = (0, self.fds.maps);
        while n < self.foreign.len() {
            let Ok(Some(v)) = super::proc::procmap_query(fd, at) else { break };
            self.foreign[n] = (v[0], v[1]);
            at = v[1];
            n += 1;
        }
        self.nr_foreign = n;
    }

    /// Lowers a limit, so far above what the process has that only the round is short of it. It has data, so that a limit
    /// on data is not 0 where that is not what is asked for.
    pub(super) fn lower_limit(&self) {
        let [which, pages] = [0, 1].map(|i| u64::from(self.s.limit[i].load(Relaxed)));
        let Some(of) = which.checked_sub(1).and_then(|w| Resource::ALL.get(w as usize)) else { return };
        let key: &[u8] = if *of == Resource::AddressSpace { b"VmSize:" } else { b"VmData:" };
        let mut kib = 0;
        if *of != Resource::Memlock {
            self.read_lines(c"/proc/self/status", |l| {
                if let Some(rest) = l.strip_prefix(key) {
                    let digits = rest.split(|b| !b.is_ascii_digit()).find(|w| !w.is_empty());
                    kib = digits.and_then(|d| number(d, 10)).unwrap_or(0);
                }
            });
        }
        let resource = match of {
            Resource::AddressSpace => libc::RLIMIT_AS,
            Resource::Data | Resource::DataHard => libc::RLIMIT_DATA,
            Resource::Memlock => libc::RLIMIT_MEMLOCK,
        };
        let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure is ours; limits may be lowered by anybody, and this process ends with the round.
        let ok = unsafe {
            libc::getrlimit(resource, &mut r) == 0 && {
                let lowered = kib * 1024 + pages * PAGE;
                if *of == Resource::DataHard {
                    (r.rlim_cur, r.rlim_max) = (0, lowered);
                } else {
                    r.rlim_cur = lowered;
                }
                libc::setrlimit(resource, &r) == 0
            }
        };
        if !ok || *of == Resource::Memlock && !drop_ipc_lock() {
            self.s.died.store(1000 + os_errno(), Relaxed);
        }
    }
}

/// Gives up `CAP_IPC_LOCK`, which would lift the limit on locked memory.
fn drop_ipc_lock() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; twice.
    let mut sets = [0u32; 6];
    // SAFETY: both structures are ours and as large as the version says.
    unsafe {
        if libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) != 0 {
            return false;
        }
        sets[0] &= !(1 << CAP_IPC_LOCK);
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) == 0
    }
}
