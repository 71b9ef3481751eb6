// SPDX-License-Identifier: GPL-2.0-only
//! Hardware and software events of one thread, through perf_event_open.
//!
//! A worker opens its own [`PerfGroup`], enables it after the warm-up and disables it before the teardown; the readings
//! of all workers are merged. Hardware events come in two groups, one a question: cache (cycles, instructions,
//! cache-references, cache-misses) and node (node-loads, node-load-misses). A group is on the counters as a whole or not
//! at all, so its figures cover the same time; where both do not fit, the kernel gives them turns and `running` falls
//! below `enabled`. Software events stand alone: as a sibling, task-clock has been seen to read 0.
//!
//! Nothing here fails. What cannot be counted is [`Reading::Absent`] with the reason, never 0. Two traps lie on the way:
//! an open event that never reached a counter reads 0 with `running` 0; and context-switches and cpu-migrations happen
//! in kernel mode, so that with kernel mode excluded, as is usual, they open well and stay 0 for ever. Those two are
//! opened with kernel mode included, and are absent where perf_event_paranoid forbids that.
//!
//! What it cannot tell: `cache-misses` and `node-loads` are what the CPU vendor mapped to these names, and differ
//! between models; compare them on one model only. Loads are counted, compare-and-swap misses mostly are not. On CPUs
//! of several kinds the generic events count on one kind. Values cover the whole life of a group: open one per sample
//! (a reset would set the values back, but not the times).

use perf_event::events::{Cache, CacheId, CacheOp, CacheResult, Hardware, Software};
use perf_event::{Builder, Counter, ReadFormat};
use std::collections::BTreeMap;
use std::io;

/// One event of one thread, or of several merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It was counted.
    Counted {
        /// As counted; not scaled.
        value: u64,
        /// Time between enable and disable, ns.
        enabled: u64,
        /// Part of it on a counter, ns; never 0.
        running: u64,
    },
    /// It was not counted.
    Absent {
        /// Why.
        reason: String,
    },
}

impl Reading {
    fn absent(reason: impl Into<String>) -> Self {
        Reading::Absent { reason: reason.into() }
    }

    /// What the kernel's three numbers mean.
    fn of(value: u64, enabled: u64, running: u64) -> Self {
        match (enabled, running) {
            (0, _) => Self::absent("never enabled"),
            (_, 0) => Self::absent(
                "never scheduled: enabled, but at no time on a counter (counters taken by the NMI watchdog, by \
                 another perf, or too few; or another kind of CPU)",
            ),
            _ => Reading::Counted { value, enabled, running },
        }
    }

    /// The value scaled to the time enabled; `None` if absent. An estimate where [`Reading::multiplexed`].
    pub fn scaled(&self) -> Option<f64> {
        match *self {
            Reading::Counted { value, enabled, running } => Some(value as f64 * (enabled as f64 / running as f64)),
            Reading::Absent { .. } => None,
        }
    }

    /// Whether the event shared its counter with others, so that its value covers a part of the time only.
    pub fn multiplexed(&self) -> bool {
        matches!(*self, Reading::Counted { enabled, running, .. } if running < enabled)
    }
}

/// Which mode of the CPU the hardware events count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// User mode: the port's own code. Names are plain.
    User,
    /// Kernel mode: the host's fault path. Names end in `:k`; perf_event_paranoid 1 or less, or CAP_PERFMON.
    Kernel,
}

/// An event: its name in records and what opens it.
type Event = (&'static str, fn() -> Builder<'static>);

const CACHE_GROUP: &[Event] = &[
    ("cycles", || Builder::new(Hardware::CPU_CYCLES)),
    ("instructions", || Builder::new(Hardware::INSTRUCTIONS)),
    ("cache-references", || Builder::new(Hardware::CACHE_REFERENCES)),
    ("cache-misses", || Builder::new(Hardware::CACHE_MISSES)),
];
const NODE_GROUP: &[Event] =
    &[("node-loads", || node(CacheResult::ACCESS)), ("node-load-misses", || node(CacheResult::MISS))];
const SOFTWARE: &[Event] = &[
    ("task-clock", || Builder::new(Software::TASK_CLOCK)),
    ("page-faults", || Builder::new(Software::PAGE_FAULTS)),
    ("context-switches", || in_kernel_mode(Software::CONTEXT_SWITCHES)),
    ("cpu-migrations", || in_kernel_mode(Software::CPU_MIGRATIONS)),
];

fn node(result: CacheResult) -> Builder<'static> {
    Builder::new(Cache { which: CacheId::NODE, operation: CacheOp::READ, result })
}

fn in_kernel_mode(event: Software) -> Builder<'static> {
    let mut builder = Builder::new(event);
    builder.include_kernel();
    builder
}

/// What a read returns: all members with their identities, and the two times.
fn format() -> ReadFormat {
    ReadFormat::GROUP | ReadFormat::TOTAL_TIME_ENABLED | ReadFormat::TOTAL_TIME_RUNNING | ReadFormat::ID
}

/// Names of all events, hardware first.
pub fn event_names() -> Vec<&'static str> {
    [CACHE_GROUP, NODE_GROUP, SOFTWARE].into_iter().flatten().map(|e| e.0).collect()
}

/// Counters that are enabled and read together; the first is the leader.
struct Group {
    members: Vec<(String, Counter)>,
}

impl Group {
    fn on_leader(&mut self, f: impl FnOnce(&mut Counter) -> io::Result<()>) -> io::Result<()> {
        self.members.first_mut().map_or(Ok(()), |(_, leader)| f(leader))
    }

    fn read(&mut self, into: &mut BTreeMap<String, Reading>) {
        let Some((_, leader)) = self.members.first_mut() else { return };
        let data = leader.read_group();
        for (name, counter) in &self.members {
            let reading = match &data {
                Err(e) => Reading::absent(read_reason(e)),
                Ok(data) => match (data.get(counter), data.time_enabled(), data.time_running()) {
                    (Some(entry), Some(on), Some(run)) => Reading::of(entry.value(), nanoseconds(on), nanoseconds(run)),
                    _ => Reading::absent("the kernel's answer does not hold this event"),
                },
            };
            into.insert(name.clone(), reading);
        }
    }
}

fn nanoseconds(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// The events of the thread that opened it.
pub struct PerfGroup {
    groups: Vec<Group>,
    absent: BTreeMap<String, String>,
}

impl PerfGroup {
    /// Opens the events of the calling thread, user mode for the hardware ones, disabled.
    pub fn open() -> PerfGroup {
        Self::open_ring(Ring::User)
    }

    /// The same with a choice of mode.
    pub fn open_ring(ring: Ring) -> PerfGroup {
        let mut opened = PerfGroup { groups: Vec::new(), absent: BTreeMap::new() };
        let level = paranoid();
        let has_pmu = opened.open_group(CACHE_GROUP, ring, false, &level);
        opened.open_group(NODE_GROUP, ring, has_pmu, &level);
        for (name, builder) in SOFTWARE {
            match builder().read_format(format()).build() {
                Ok(counter) => opened.groups.push(Group { members: vec![((*name).to_string(), counter)] }),
                Err(e) => opened.note(name, open_reason(&e, false, &level)),
            }
        }
        opened
    }

    /// Opens one group; members that cannot be had are noted, and the group is made of the others. Returns whether
    /// this or an earlier hardware event could be had.
    fn open_group(&mut self, events: &[Event], ring: Ring, mut has_pmu: bool, level: &str) -> bool {
        let mut members: Vec<(String, Counter)> = Vec::new();
        for (name, builder) in events {
            let mut builder = builder();
            builder.read_format(format());
            let name = match ring {
                Ring::User => (*name).to_string(),
                Ring::Kernel => {
                    builder.include_kernel().exclude_user(true);
                    format!("{name}:k")
                }
            };
            let opened = match members.first_mut() {
                Some((_, leader)) => builder.build_with_group(leader),
                None => builder.build(),
            };
            match opened {
                Ok(counter) => {
                    has_pmu = true;
                    members.push((name, counter));
                }
                Err(e) => self.note(&name, open_reason(&e, has_pmu, level)),
            }
        }
        self.groups.push(Group { members });
        has_pmu
    }

    fn note(&mut self, name: &str, reason: String) {
        self.absent.insert(name.to_string(), reason);
    }

    /// Starts counting.
    pub fn enable(&mut self) {
        self.each("enable", Counter::enable_group, Counter::enable);
    }

    /// Stops counting.
    pub fn disable(&mut self) {
        self.each("disable", Counter::disable_group, Counter::disable);
    }

    fn each(
        &mut self,
        what: &str,
        group: fn(&mut Counter) -> io::Result<()>,
        single: fn(&mut Counter) -> io::Result<()>,
    ) {
        for g in &mut self.groups {
            let call = if g.members.len() > 1 { group } else { single };
            if let Err(e) = g.on_leader(call) {
                for (name, _) in &g.members {
                    self.absent.insert(name.clone(), format!("{what} failed: {e}"));
                }
            }
        }
    }

    /// What was counted since the group was opened; every event of the list is in the map.
    pub fn read(&mut self) -> BTreeMap<String, Reading> {
        let mut readings = BTreeMap::new();
        for group in &mut self.groups {
            group.read(&mut readings);
        }
        readings.extend(self.absent.iter().map(|(name, reason)| (name.clone(), Reading::absent(reason.as_str()))));
        readings
    }
}

/// Readings as lines of text, for a worker that can only hand back bytes; [`from_lines`] reads them.
pub fn to_lines(readings: &BTreeMap<String, Reading>) -> String {
    let line = |(name, r): (&String, &Reading)| match r {
        Reading::Counted { value, enabled, running } => format!("{name}\t{value} {enabled} {running}\n"),
        Reading::Absent { reason } => format!("{name}\t!{}\n", reason.replace(['\n', '\t'], " ")),
    };
    readings.iter().map(line).collect()
}

/// Reads [`to_lines`]; a line that was cut short is left out.
pub fn from_lines(text: &str) -> BTreeMap<String, Reading> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let reading = |line: &str| {
        let (name, rest) = line.split_once('\t')?;
        if let Some(reason) = rest.strip_prefix('!') {
            return Some((name.to_string(), Reading::absent(reason)));
        }
        let mut n = rest.split(' ').map_while(|n| n.parse().ok());
        let (value, enabled, running) = (n.next()?, n.next()?, n.next()?);
        Some((name.to_string(), Reading::Counted { value, enabled, running }))
    };
    whole.lines().filter_map(reading).collect()
}

/// Sums the readings of several threads. An event that one thread could not count has no sum: it is absent, with the
/// number of threads and the first reason.
pub fn merge<'a>(threads: impl IntoIterator<Item = &'a BTreeMap<String, Reading>>) -> BTreeMap<String, Reading> {
    let threads: Vec<_> = threads.into_iter().collect();
    let names: std::collections::BTreeSet<&String> = threads.iter().flat_map(|t| t.keys()).collect();
    names.into_iter().map(|name| (name.clone(), merge_one(name, &threads))).collect()
}

fn merge_one(name: &str, threads: &[&BTreeMap<String, Reading>]) -> Reading {
    let mut sum = (0u64, 0u64, 0u64);
    let mut reasons = Vec::new();
    for thread in threads {
        match thread.get(name) {
            Some(Reading::Counted { value, enabled, running }) => {
                let add = |a: u64, b: &u64| a.saturating_add(*b);
                sum = (add(sum.0, value), add(sum.1, enabled), add(sum.2, running));
            }
            Some(Reading::Absent { reason }) => reasons.push(reason.as_str()),
            None => reasons.push("not opened"),
        }
    }
    match reasons.first() {
        None => Reading::of(sum.0, sum.1, sum.2),
        Some(first) if reasons.len() == threads.len() && reasons.iter().all(|r| r == first) => Reading::absent(*first),
        Some(first) => Reading::absent(format!("on {} of {} threads: {first}", reasons.len(), threads.len())),
    }
}

/// perf_event_paranoid, as text.
fn paranoid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
        .map_or_else(|_| "unreadable".to_string(), |t| t.trim().to_string())
}

/// Why an event could not be opened. `has_pmu`: another hardware event of this thread could.
fn open_reason(e: &io::Error, has_pmu: bool, paranoid: &str) -> String {
    match e.raw_os_error() {
        Some(libc::ENOENT) if has_pmu => "no such event: ENOENT (this CPU model does not map it)".to_string(),
        Some(libc::ENOENT) => "no PMU: ENOENT (the kernel offers no hardware counters, as in most guests)".to_string(),
        Some(libc::ENODEV) => "no PMU: ENODEV".to_string(),
        Some(libc::EOPNOTSUPP) => "not supported by the PMU: EOPNOTSUPP".to_string(),
        Some(code @ (libc::EACCES | libc::EPERM)) => {
            let code = if code == libc::EACCES { "EACCES" } else { "EPERM" };
            format!(
                "forbidden: {code}, perf_event_paranoid is {paranoid} (user mode needs 2 or less, kernel mode 1 or \
                 less, or CAP_PERFMON; a container's seccomp filter forbids it too)"
            )
        }
        Some(libc::EINVAL) => "refused: EINVAL (event or combination that this CPU model does not have)".to_string(),
        Some(libc::ENOSPC) => "no counter left: ENOSPC".to_string(),
        Some(libc::EBUSY) => "counters taken exclusively: EBUSY".to_string(),
        Some(libc::EMFILE | libc::ENFILE) => format!("too many open files: {e} (raise ulimit -n)"),
        Some(libc::ENOSYS) => "no perf_event_open: ENOSYS (kernel without CONFIG_PERF_EVENTS)".to_string(),
        _ => format!("cannot be opened: {e}"),
    }
}

fn read_reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "never scheduled: the kernel took it off its counter for good".to_string(),
        _ => format!("cannot be read: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(value: u64, enabled: u64, running: u64) -> Reading {
        Reading::Counted { value, enabled, running }
    }

    #[test]
    fn lines_carry_counts_and_reasons_and_survive_a_cut() {
        let mut m = BTreeMap::new();
        m.insert("cycles:k".to_string(), counted(12, 30, 15));
        m.insert("instructions:k".to_string(), Reading::absent("no PMU:\tENOENT\n"));
        let text = to_lines(&m);
        let back = from_lines(&text);
        assert_eq!(back["cycles:k"], counted(12, 30, 15));
        assert_eq!(back["instructions:k"], Reading::absent("no PMU: ENOENT "));
        assert_eq!(from_lines(&text[..text.len() - 1]).len(), 1, "a line without its end is no line");
        assert!(from_lines("cycles:k\t1 2\n").is_empty());
    }

    /// Maps, touches and unmaps base pages.
    fn touch(pages: usize) {
        let page = 4096;
        // SAFETY: a fresh private mapping of our own, written within its bounds and then unmapped.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let at = libc::mmap(std::ptr::null_mut(), pages * page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            libc::madvise(at, pages * page, libc::MADV_NOHUGEPAGE);
            for i in 0..pages {
                at.cast::<u8>().add(i * page).write_volatile(1);
            }
            libc::munmap(at, pages * page);
        }
    }

    #[test]
    fn every_event_is_counted_or_says_why_not() {
        for ring in [Ring::User, Ring::Kernel] {
            let mut group = PerfGroup::open_ring(ring);
            group.enable();
            touch(512);
            group.disable();
            let readings = group.read();
            assert_eq!(readings.len(), event_names().len(), "{readings:?}");
            for (name, reading) in &readings {
                println!("{name}: {reading:?}");
                match reading {
                    Reading::Counted { value, enabled, running } => {
                        assert!(*running > 0 && *enabled >= *running, "{name}: {reading:?}");
                        if name.starts_with("cycles") || name.starts_with("instructions") {
                            assert!(*value > 0, "{name}");
                        }
                    }
                    Reading::Absent { reason } => {
                        let known =
                            ["no ", "forbidden", "refused", "not supported", "never scheduled", "counters taken"];
                        assert!(known.iter().any(|k| reason.starts_with(k)), "{name}: {reason}");
                    }
                }
            }
        }
    }

    #[test]
    fn software_events_count_what_happened() {
        let mut group = PerfGroup::open();
        touch(64);
        group.enable();
        touch(300);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        group.disable();
        touch(64);
        let readings = group.read();
        let value = |name: &str| match &readings[name] {
            Reading::Counted { value, .. } => Some(*value),
            Reading::Absent { reason } => {
                assert!(
                    reason.starts_with("forbidden") || reason.starts_with("no perf_event_open"),
                    "{name}: {reason}"
                );
                println!("skipped {name}: {reason}");
                None
            }
        };
        assert!(value("page-faults").is_none_or(|v| (300..360).contains(&v)), "{readings:?}");
        // The trap of the module text: with kernel mode excluded these stay 0.
        assert!(value("context-switches").is_none_or(|v| v >= 5), "{readings:?}");
        assert!(value("task-clock").is_none_or(|v| v > 0), "{readings:?}");
    }

    /// Where there is no PMU, this is what runs the group code.
    #[test]
    fn members_of_a_group_cover_the_same_time() {
        let events: &[Event] = &[
            ("cycles", || Builder::new(Hardware::CPU_CYCLES)),
            ("faults", || Builder::new(Software::PAGE_FAULTS)),
            ("minor", || Builder::new(Software::PAGE_FAULTS_MIN)),
        ];
        let mut opened = PerfGroup { groups: Vec::new(), absent: BTreeMap::new() };
        opened.open_group(events, Ring::User, false, "2");
        opened.enable();
        touch(100);
        opened.disable();
        let readings = opened.read();
        assert_eq!(readings.len(), 3);
        match (&readings["faults"], &readings["minor"]) {
            (
                Reading::Counted { value: all, enabled: a, running: r },
                Reading::Counted { value: minor, enabled: b, running: s },
            ) => {
                assert!(*all >= 100 && all == minor, "{readings:?}");
                assert_eq!((a, r), (b, s));
            }
            other => println!("skipped: {other:?}"),
        }
    }

    #[test]
    fn a_group_that_was_not_enabled_has_no_zeros() {
        let readings = PerfGroup::open().read();
        assert!(readings.values().all(|r| matches!(r, Reading::Absent { .. })), "{readings:?}");
    }

    #[test]
    fn zero_time_on_a_counter_is_not_a_zero_count() {
        assert_eq!(Reading::of(0, 10, 5), counted(0, 10, 5));
        let Reading::Absent { reason } = Reading::of(0, 10, 0) else { panic!("a zero that was never counted") };
        assert!(reason.starts_with("never scheduled"));
        assert!(matches!(Reading::of(0, 0, 0), Reading::Absent { .. }));
        assert_eq!(counted(10, 100, 25).scaled(), Some(40.0));
        assert!(counted(10, 100, 25).multiplexed() && !counted(10, 100, 100).multiplexed());
    }

    #[test]
    fn a_thread_without_the_event_leaves_no_sum() {
        let thread = |r: Reading| BTreeMap::from([("cycles".to_string(), r)]);
        let a = thread(counted(1, 10, 10));
        let b = thread(counted(2, 30, 20));
        let c = thread(Reading::absent("no PMU: ENOENT"));
        let one = |maps: &[&BTreeMap<String, Reading>]| merge(maps.iter().copied()).remove("cycles").unwrap();
        assert_eq!(one(&[&a, &b]), counted(3, 40, 30));
        assert_eq!(one(&[&c, &c]), Reading::absent("no PMU: ENOENT"));
        assert_eq!(one(&[&a, &c, &b]), Reading::absent("on 1 of 3 threads: no PMU: ENOENT"));
        assert_eq!(one(&[&a, &BTreeMap::new()]), Reading::absent("on 1 of 2 threads: not opened"));
        assert!(merge([]).is_empty());
        assert_eq!(one(&[&thread(counted(u64::MAX, 1, 1)), &a]), counted(u64::MAX, 11, 11));
    }

    #[test]
    fn reasons_name_the_error_and_the_level() {
        let reason = |code, has_pmu| open_reason(&io::Error::from_raw_os_error(code), has_pmu, "3");
        assert!(reason(libc::ENOENT, false).starts_with("no PMU: ENOENT"));
        assert!(reason(libc::ENOENT, true).starts_with("no such event: ENOENT"));
        assert!(reason(libc::EACCES, false).starts_with("forbidden: EACCES, perf_event_paranoid is 3"));
        assert!(reason(libc::EPERM, false).contains("EPERM"));
        assert!(reason(libc::EINVAL, true).contains("EINVAL"));
        assert!(reason(libc::ENOSYS, false).contains("ENOSYS"));
        assert!(reason(libc::EXDEV, false).starts_with("cannot be opened: "));
    }

    #[test]
    fn counters_belong_to_the_thread_that_opened_them() {
        let mut group = PerfGroup::open();
        group.enable();
        std::thread::spawn(|| touch(2000)).join().expect("it only touches memory");
        group.disable();
        if let Reading::Counted { value, .. } = group.read()["page-faults"] {
            assert!(value < 500, "{value}");
        }
    }
}
