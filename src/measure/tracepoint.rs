// SPDX-License-Identifier: GPL-2.0-only
//! The host's own allocator as it is seen from outside: kmem:kmem_cache_alloc and kmem:kmem_cache_free of one CPU,
//! through perf_event_open(2), filtered by cache name. From the objects' addresses come the same figures that the port
//! takes of itself (`slab/reuse.rs`).
//!
//! Both events write into one buffer, so their order is the CPU's. It is read while the workload runs on another CPU;
//! what does not fit is counted by the kernel and reported. Everything on the CPU is seen, since all share its slabs;
//! the workload's own events are counted apart.
//!
//! Nothing is mounted or changed. Where tracefs cannot be read or the events may not be opened, there is a sentence.
//!
//! It cannot see what has no tracepoint: bulk calls, sheaves that are filled and emptied, objects given to kfree_rcu()
//! that reach the allocator inside a sheaf. So frees of maple nodes may be missing, and their distances with them.

use crate::slab::ReuseCount;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where tracefs is looked for.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const PAGE: usize = 4096;
/// Data pages of the buffer, at best and at least.
const RING_PAGES: (usize, usize) = (8192, 64);

/// The first 64 bytes of `struct perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    config1: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_SAMPLE_TID: u64 = 1 << 1;
const PERF_SAMPLE_RAW: u64 = 1 << 10;
const FLAG_DISABLED: u64 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;
const IOC_SET_OUTPUT: libc::c_ulong = 0x2405;
const IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;
const RECORD_LOST: u32 = 2;
const RECORD_THROTTLE: u32 = 5;
const RECORD_SAMPLE: u32 = 9;
/// Offsets in the first page of the mapping.
const DATA_HEAD: usize = 0x400;
const DATA_TAIL: usize = 0x408;

/// What the format file says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    id: u16,
    ptr: usize,
    name: usize,
}

/// Reads a format file: the event's number, where the object's address and the cache's name are.
fn parse_format(text: &str) -> Option<Format> {
    let id = text.lines().find_map(|l| l.strip_prefix("ID: "))?.trim().parse().ok()?;
    let offset = |declaration: &str| -> Option<usize> {
        let line = text.lines().map(str::trim).find(|l| l.starts_with("field:") && l.contains(declaration))?;
        line.split("offset:").nth(1)?.split(';').next()?.trim().parse().ok()
    };
    Some(Format { id, ptr: offset(" ptr;")?, name: offset("__data_loc char[] name;")? })
}

/// A hand-out or free that the host's kernel made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// A hand-out.
    pub alloc: bool,
    /// Process whose thread ran, or was interrupted.
    pub pid: u32,
    /// The object.
    pub object: u64,
    /// The cache.
    pub cache: &'a str,
}

/// Both events of one CPU, open and switched off.
pub struct Tracer {
    fds: [OwnedFd; 2],
    formats: [Format; 2],
    map: NonNull<u8>,
    pages: usize,
    tail: u64,
    scratch: Vec<u8>,
    /// Records that did not fit, so far.
    pub lost: u64,
}

impl Tracer {
    /// For the objects of `caches` on `cpu`.
    ///
    /// # Errors
    /// Why the host's tracepoints cannot be used.
    pub fn open(cpu: u32, caches: &[&str]) -> Result<Tracer, String> {
        let events = TRACEFS
            .iter()
            .map(|t| Path::new(t).join("events/kmem"))
            .find(|p| p.join("kmem_cache_alloc/format").exists())
            .ok_or("tracefs is not mounted at /sys/kernel/tracing, or not readable for this user")?;
        let format = |name: &str| -> Result<Format, String> {
            let path = events.join(name).join("format");
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            parse_format(&text).ok_or_else(|| format!("{}: has no object address or no cache name", path.display()))
        };
        let formats = [format("kmem_cache_alloc")?, format("kmem_cache_free")?];
        let filter = caches.iter().map(|c| format!("name == \"{c}\"")).collect::<Vec<_>>().join(" || ");
        let filter = std::ffi::CString::new(filter).map_err(|e| e.to_string())?;
        let open = |f: &Format| -> Result<OwnedFd, String> {
            let attr = Attr {
                kind: PERF_TYPE_TRACEPOINT,
                size: size_of::<Attr>() as u32,
                config: u64::from(f.id),
                sample_period: 1,
                sample_type: PERF_SAMPLE_TID | PERF_SAMPLE_RAW,
                flags: FLAG_DISABLED,
                ..Attr::default()
            };
            // SAFETY: the attribute block is ours and says its size; a new descriptor or -1 comes back.
            let fd =
                unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC) };
            if fd < 0 {
                return Err(format!("perf_event_open of a tracepoint: {}", io::Error::last_os_error()));
            }
            // SAFETY: a descriptor that nobody else has.
            let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
            // SAFETY: the filter is a string that outlives the call.
            if unsafe { libc::ioctl(fd.as_raw_fd(), IOC_SET_FILTER, filter.as_ptr()) } != 0 {
                return Err(format!("the filter by cache name: {}", io::Error::last_os_error()));
            }
            Ok(fd)
        };
        let fds = [open(&formats[0])?, open(&formats[1])?];
        let (map, pages) = ring(&fds[0])?;
        let t = Tracer { fds, formats, map, pages, tail: 0, scratch: Vec::new(), lost: 0 };
        // SAFETY: two descriptors of ours.
        if unsafe { libc::ioctl(t.fds[1].as_raw_fd(), IOC_SET_OUTPUT, t.fds[0].as_raw_fd()) } != 0 {
            return Err(format!("one buffer for both events: {}", io::Error::last_os_error()));
        }
        Ok(t)
    }

    /// The switch, which a child process may take with it.
    pub fn switch(&self) -> Switch {
        Switch([self.fds[0].as_raw_fd(), self.fds[1].as_raw_fd()])
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: an aligned word of the mapping's first page, which the kernel writes too.
        unsafe { &*self.map.as_ptr().add(at).cast::<AtomicU64>() }
    }

    /// Hands everything that is in the buffer to `f`, in order.
    pub fn drain(&mut self, mut f: impl FnMut(Event<'_>)) {
        // ORDER: acquire; the kernel wrote the records before the head.
        let head = self.word(DATA_HEAD).load(Ordering::Acquire);
        let (size, data) = (self.pages * PAGE, PAGE);
        let n = (head - self.tail) as usize;
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let from = (self.tail as usize) & (size - 1);
        let before_end = n.min(size - from);
        for (start, len) in [(from, before_end), (0, n - before_end)] {
            // SAFETY: inside the data pages; the kernel does not write what lies between tail and head.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(data + start), len) });
        }
        self.tail = head;
        // ORDER: release; the copy above is over before the kernel may write there again.
        self.word(DATA_TAIL).store(head, Ordering::Release);
        self.lost += walk(&bytes, &self.formats, &mut f);
        self.scratch = bytes;
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.map.as_ptr().cast(), (self.pages + 1) * PAGE) };
    }
}

/// The buffer, as large as this user may have it.
fn ring(fd: &OwnedFd) -> Result<(NonNull<u8>, usize), String> {
    let mut pages = RING_PAGES.0;
    loop {
        // SAFETY: a fresh mapping of the event's buffer.
        let p = unsafe {
            libc::mmap(
                null_mut(),
                (pages + 1) * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if p != libc::MAP_FAILED {
            return Ok((NonNull::new(p.cast()).expect("a mapping is not at 0"), pages));
        }
        let e = io::Error::last_os_error();
        if pages <= RING_PAGES.1 {
            return Err(format!("a buffer for the tracepoints: {e}"));
        }
        pages /= 2;
    }
}

/// Switches both events.
#[derive(Clone, Copy, Debug)]
pub struct Switch([RawFd; 2]);

impl Switch {
    /// On or off.
    pub fn set(self, on: bool) {
        for fd in self.0 {
            // SAFETY: no memory is involved; a wrong descriptor is an error without effect.
            unsafe { libc::ioctl(fd, if on { IOC_ENABLE } else { IOC_DISABLE }, 0) };
        }
    }
}

/// Goes through records; returns how many were lost.
fn walk(bytes: &[u8], formats: &[Format; 2], f: &mut impl FnMut(Event<'_>)) -> u64 {
    let u16_at = |b: &[u8], at: usize| b.get(at..at + 2).map(|x| u16::from_ne_bytes([x[0], x[1]]));
    let u32_at = |b: &[u8], at: usize| b.get(at..at + 4).map(|x| u32::from_ne_bytes([x[0], x[1], x[2], x[3]]));
    let u64_at =
        |b: &[u8], at: usize| b.get(at..at + 8).map(|x| u64::from_ne_bytes(x.try_into().expect("eight bytes")));
    let (mut at, mut lost) = (0, 0);
    while let (Some(kind), Some(size)) = (u32_at(bytes, at), u16_at(bytes, at + 6)) {
        let end = at + usize::from(size).max(8);
        let Some(r) = bytes.get(at..end) else { break };
        at = end;
        match kind {
            RECORD_LOST => lost += u64_at(r, 16).unwrap_or(1),
            RECORD_THROTTLE => lost += 1,
            RECORD_SAMPLE => {
                // header:8, pid:4, tid:4, length:4, then the event as its format file describes it.
                let event = || {
                    let (pid, raw) = (u32_at(r, 8)?, r.get(20..)?);
                    let id = u16_at(raw, 0)?;
                    let which = formats.iter().position(|f| f.id == id)?;
                    let f = &formats[which];
                    let place = u32_at(raw, f.name)?;
                    let (start, len) = ((place & 0xffff) as usize, (place >> 16) as usize);
                    let name = raw.get(start..start + len)?.split(|&b| b == 0).next()?;
                    let (object, cache) = (u64_at(raw, f.ptr)?, std::str::from_utf8(name).ok()?);
                    Some(Event { alloc: which == 0, pid, object, cache })
                };
                match event() {
                    Some(e) => f(e),
                    None => lost += 1,
                }
            }
            _ => {}
        }
    }
    lost
}

/// The distances, from events in order.
#[derive(Debug, Default)]
pub struct Walk {
    caches: BTreeMap<String, Seen>,
    /// Whose events are counted apart.
    pub own_pid: u32,
}

/// What is known of an object.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Number of the event that freed it; nothing while it is out.
    freed: Option<u64>,
    /// Number of its last hand-out among hand-outs.
    handed: Option<u64>,
}

#[derive(Debug, Default)]
struct Seen {
    count: ReuseCount,
    own: (u64, u64),
    objects: HashMap<u64, Known>,
}

impl Walk {
    /// The next event.
    pub fn push(&mut self, e: Event<'_>) {
        if !self.caches.contains_key(e.cache) {
            self.caches.insert(e.cache.to_string(), Seen::default());
        }
        let s = self.caches.get_mut(e.cache).expect("inserted above");
        let c = &mut s.count;
        let own = u64::from(e.pid == self.own_pid);
        let now = c.allocs + c.frees + 1;
        c.distinct += u64::from(!s.objects.contains_key(&e.object));
        let known = s.objects.entry(e.object).or_default();
        if !e.alloc {
            known.freed = Some(now);
            c.frees += 1;
            s.own.1 += own;
            return;
        }
        c.allocs += 1;
        s.own.0 += own;
        if let Some(before) = known.handed.replace(c.allocs) {
            c.add_again(c.allocs - before);
        }
        match known.freed.take() {
            Some(freed) => c.add(now - freed),
            None => c.first += 1,
        }
    }

    /// All figures, and those of the own process (hand-outs, frees).
    pub fn finish(self) -> (BTreeMap<String, ReuseCount>, BTreeMap<String, (u64, u64)>) {
        let own = self.caches.iter().map(|(n, s)| (n.clone(), s.own)).collect();
        (self.caches.into_iter().map(|(n, s)| (n, s.count)).collect(), own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: kmem_cache_free\nID: 656\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\n\
                          \n\tfield:unsigned long call_site;\toffset:8;\tsize:8;\tsigned:0;\n\tfield:const void * ptr;\t\
                          offset:16;\tsize:8;\n\tfield:__data_loc char[] name;\toffset:24;\tsize:4;\tsigned:0;\n";

    #[test]
    fn a_format_file_says_where_things_are() {
        assert_eq!(parse_format(FORMAT), Some(Format { id: 656, ptr: 16, name: 24 }));
        assert_eq!(parse_format(&FORMAT.replace("char[] name", "int node")), None, "kernels before 6.1 have no name");
    }

    fn record(id: u16, pid: u32, object: u64, cache: &str) -> Vec<u8> {
        let mut raw = vec![0u8; 28];
        raw[..2].copy_from_slice(&id.to_ne_bytes());
        raw[16..24].copy_from_slice(&object.to_ne_bytes());
        raw[24..28].copy_from_slice(&(28 | (cache.len() as u32 + 1) << 16).to_ne_bytes());
        raw.extend(cache.bytes().chain([0]));
        raw.resize(raw.len().next_multiple_of(8) + 4, 0);
        let mut r = Vec::new();
        r.extend(RECORD_SAMPLE.to_ne_bytes());
        r.extend(0u16.to_ne_bytes());
        r.extend((20 + raw.len() as u16).to_ne_bytes());
        r.extend([pid, pid, raw.len() as u32].iter().flat_map(|v| v.to_ne_bytes()));
        r.extend(raw);
        r
    }

    #[test]
    fn records_become_events_and_losses_are_counted() {
        let formats = [Format { id: 659, ptr: 16, name: 24 }, Format { id: 656, ptr: 16, name: 24 }];
        let mut bytes = [record(659, 7, 0xabc0, "vm_area_struct"), record(656, 8, 0xabc0, "maple_node")].concat();
        bytes.extend(RECORD_LOST.to_ne_bytes());
        bytes.extend([0u16, 24].iter().flat_map(|v| v.to_ne_bytes()));
        bytes.extend([1u64, 17].iter().flat_map(|v| v.to_ne_bytes()));
        // An event of which nothing is known is as good as lost.
        bytes.extend(record(1, 7, 0, "x"));
        let mut seen = Vec::new();
        let lost = walk(&bytes, &formats, &mut |e| seen.push((e.alloc, e.pid, e.object, e.cache.to_string())));
        assert_eq!(lost, 18);
        let want = [(true, 7, 0xabc0, "vm_area_struct".to_string()), (false, 8, 0xabc0, "maple_node".to_string())];
        assert_eq!(seen, want);
    }

    #[test]
    fn distances_count_events_of_the_cache() {
        let mut w = Walk { own_pid: 7, ..Walk::default() };
        let mut push = |alloc, pid, object, cache| w.push(Event { alloc, pid, object, cache });
        push(true, 7, 1, "a");
        push(false, 7, 1, "a");
        push(true, 7, 9, "b");
        push(true, 7, 1, "a");
        push(false, 8, 2, "a");
        push(false, 7, 1, "a");
        push(true, 8, 2, "a");
        let (caches, own) = w.finish();
        let a = &caches["a"];
        assert_eq!((a.allocs, a.frees, a.first, a.distinct, &a.bins[..]), (3, 3, 1, 2, &[1, 1][..]));
        assert!(a.balances());
        assert_eq!(a.again, [1], "object 1, handed out twice in a row");
        assert_eq!((own["a"], own["b"]), ((2, 2), (1, 0)));
    }
}
