// SPDX-License-Identifier: GPL-2.0-only
//! What the running kernel does where kernels differ, seen by small experiments in the window: a few calls, and a look at
//! what is mapped afterwards. Nothing is concluded from a version number.
//!
//! What an experiment could not show (the call is missing, the configuration hides it) is said in a sentence, and the
//! calls that would need it are not drawn.

use super::backend::{Backend, COUNTED, Look, PAGE, Setup, Stop, WINDOW};
use super::r#gen::ADVICE;
use super::model::{MADV_GUARD_INSTALL, MADV_GUARD_REMOVE};
use crate::mm::mm_types::VM_MAYBE_GUARD;
use crate::mm::{Call, MmRules, VmaInfo};

/// Something that a kernel, a backend or a configuration may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// mprotect(2).
    Mprotect,
    /// madvise(2).
    Madvise,
    /// mremap(2).
    Mremap,
    /// The heap can be put into the window.
    Heap,
    /// Mappings that are filled at once.
    Populate,
    /// mlock(2) without a limit.
    Mlock,
    /// mlockall(2).
    Mlockall,
    /// mseal(2).
    Mseal,
    /// Files and shared memory.
    Files,
    /// Mappings that grow down.
    Stacks,
    /// `MAP_DROPPABLE`.
    Droppable,
    /// Guard regions.
    Guard,
    /// Fork and exit.
    Fork,
    /// Rounds that run at the limit of VMAs.
    Room,
}

impl Feature {
    /// All of them, with their names.
    pub const ALL: &[(Feature, &str)] = &[
        (Feature::Mprotect, "mprotect"),
        (Feature::Madvise, "madvise"),
        (Feature::Mremap, "mremap"),
        (Feature::Heap, "brk"),
        (Feature::Populate, "populate"),
        (Feature::Mlock, "mlock"),
        (Feature::Mlockall, "mlockall"),
        (Feature::Mseal, "mseal"),
        (Feature::Files, "files"),
        (Feature::Stacks, "stacks"),
        (Feature::Droppable, "droppable"),
        (Feature::Guard, "guard"),
        (Feature::Fork, "fork"),
        (Feature::Room, "limit"),
    ];
}

/// What may be drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    has: Vec<Feature>,
    advice: Vec<i32>,
    /// Of a hundred rounds, how many run at the limit of VMAs.
    pub at_limit: u64,
    /// What is counted for each call, bits of [`COUNTED`].
    pub counted: u16,
}

impl Features {
    /// Everything.
    pub fn all() -> Self {
        Features {
            has: Feature::ALL.iter().map(|(f, _)| *f).collect(),
            advice: ADVICE.to_vec(),
            at_limit: 8,
            counted: 0,
        }
    }
    /// Whether `f` may be drawn.
    pub fn has(&self, f: Feature) -> bool {
        self.has.contains(&f)
    }
    /// Without `f`.
    pub fn remove(&mut self, f: Feature) {
        self.has.retain(|h| *h != f);
    }
    /// Without an advice.
    pub fn remove_advice(&mut self, advice: i32) {
        self.advice.retain(|a| *a != advice);
    }
    /// Advice that may be drawn.
    pub fn advice(&self) -> Vec<i32> {
        let guard = self.has(Feature::Guard);
        let mut a = self.advice.clone();
        a.retain(|a| guard || !matches!(*a, MADV_GUARD_INSTALL | MADV_GUARD_REMOVE));
        a
    }
    /// What rules without guard regions leave of it.
    pub fn under(mut self, rules: &MmRules) -> Self {
        if !rules.guard_regions {
            self.remove(Feature::Guard);
        }
        self
    }
}

/// What was seen on the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// The rules that it follows.
    pub rules: MmRules,
    /// What it has.
    pub features: Features,
    /// One line for each thing seen: name, value.
    pub seen: Vec<(String, String)>,
}

const RW: u32 = 3;
const MAP: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u32;
const EINVAL: i64 = -(libc::EINVAL as i64);

fn at(page: u64) -> u64 {
    WINDOW + page * PAGE
}
fn map(page: u64, pages: u64, prot: u32) -> Call {
    Call::Mmap { addr: at(page), len: pages * PAGE, prot, flags: MAP, fd: None, offset: 0 }
}
fn touch(page: u64) -> Call {
    Call::Write { addr: at(page), value: 1 }
}
fn remap(from: u64, to: u64, pages: u64, flags: u32) -> Call {
    Call::Mremap { addr: at(from), old_len: pages * PAGE, new_len: pages * PAGE, flags, new_addr: at(to) }
}
fn advise(page: u64, pages: u64, advice: i32) -> Call {
    Call::Madvise { addr: at(page), len: pages * PAGE, advice }
}

/// Runs `calls` in a fresh window: results, and what is mapped at the end.
fn experiment(b: &mut dyn Backend, setup: &Setup, calls: &[Call]) -> Result<(Vec<i64>, Vec<VmaInfo>), Stop> {
    b.begin(setup)?;
    let mut steps = Vec::new();
    b.run(0, calls, &Look { flags_every: 1000, bytes_every: 1000 }, &mut steps)?;
    let maps = b.maps()?;
    b.end()?;
    Ok((steps.iter().map(|s| s.result).collect(), maps))
}

/// Looks at the host through `b`.
///
/// # Errors
/// Why it cannot be looked at.
pub fn probe(b: &mut dyn Backend) -> Result<Host, Stop> {
    let setup = Setup { rules: MmRules::V6_12, pages: 32, room: None, heap: false, counted: 0 };
    let mut rules = MmRules::V6_12;
    let mut features = Features::all();
    // Such a round costs a real kernel tens of thousands of mappings.
    features.at_limit = 1;
    let mut seen = Vec::new();
    let mut say = |name: &str, value: &str| seen.push((name.to_string(), value.to_string()));
    let yes = |b: bool| if b { "yes" } else { "no" };
    let mut run = |calls: &[Call]| experiment(b, &setup, calls);

    // A faulted piece comes to have the flags of the unfaulted one before it.
    let change = Call::Mprotect { addr: at(2), len: 2 * PAGE, prot: RW };
    let (_, m) = run(&[map(0, 2, RW), map(2, 2, RW | 4), touch(2), change])?;
    rules.merge_faulted_with_unfaulted = m.len() == 1;
    say("a faulted range merges with an unfaulted neighbour", yes(m.len() == 1));

    let (_, m) = run(&[map(0, 1, RW), map(1, 1, 1), remap(0, 8, 2, 3)])?;
    rules.mremap_multi_vma = m.first().is_some_and(|v| v.start == at(8));
    say("mremap moves several VMAs", yes(rules.mremap_multi_vma));

    let (r, m) = run(&[map(0, 2, RW), remap(0, 2, 2, 7)])?;
    rules.dontunmap_merges_source = m.len() == 1;
    say("DONTUNMAP merges an unfaulted mapping with its copy", yes(m.len() == 1));
    if r[1] < 0 {
        say("MREMAP_DONTUNMAP", "missing");
    }
    let (_, m) = run(&[map(4, 2, RW), touch(4), remap(4, 10, 2, 3), remap(10, 20, 2, 7), map(8, 2, RW)])?;
    rules.dontunmap_keeps_pgoff = m.iter().any(|v| v.start == at(10));
    say("what DONTUNMAP leaves keeps its page offset", yes(rules.dontunmap_keeps_pgoff));

    let locked =
        Call::Mmap { addr: at(0), len: 2 * PAGE, prot: RW, flags: MAP | libc::MAP_LOCKED as u32, fd: None, offset: 0 };
    let (_, m) = run(&[locked, remap(1, 8, 1, 7)])?;
    rules.dontunmap_splits_locked = m.len() != 2;
    say("DONTUNMAP leaves the rest of a locked mapping locked", yes(rules.dontunmap_splits_locked));

    let (r, m) = run(&[map(0, 4, RW), advise(1, 1, MADV_GUARD_INSTALL)])?;
    rules.guard_regions = r[1] == 0;
    rules.maybe_guard_flag = m.first().is_some_and(|v| v.flags & VM_MAYBE_GUARD != 0);
    say("guard regions", yes(rules.guard_regions));
    say("VmFlags shows guard regions (gu)", yes(rules.maybe_guard_flag));
    if !rules.guard_regions {
        features.remove(Feature::Guard);
    }

    // Private file mappings whose file pages are linear, not so the addresses at their creation.
    let file = |page: u64, pages: u64, offset: u64| Call::Mmap {
        addr: at(page),
        len: pages * PAGE,
        prot: RW,
        flags: (libc::MAP_PRIVATE | libc::MAP_FIXED) as u32,
        fd: Some(0),
        offset: offset * PAGE,
    };
    let (_, m) = run(&[file(0, 1, 0), file(8, 1, 1), touch(8), remap(8, 1, 1, 3)])?;
    // Where a faulted copy never merges with an unfaulted neighbour this shows nothing, and no such kernel has the rule.
    rules.anon_pgoff = m.len() == 2 && rules.merge_faulted_with_unfaulted;
    say("private file mappings merge by page number at creation", yes(rules.anon_pgoff));

    // MADV_DONTNEED's lock cannot be seen from one process; nothing that is compared depends on it.
    rules.dontneed_vma_lock = rules.mremap_multi_vma;
    rules.pt_reclaim = false;

    let (r, _) = run(&[map(0, 1, RW), Call::Mseal { addr: at(0), len: PAGE }])?;
    if r[1] != 0 {
        features.remove(Feature::Mseal);
        say("mseal", "missing");
    } else {
        say("mseal", "yes");
    }
    let droppable = Call::Mmap { addr: at(0), len: PAGE, prot: RW, flags: 0x38, fd: None, offset: 0 };
    let (r, _) = run(&[droppable])?;
    say("MAP_DROPPABLE", yes(r[0] > 0));
    if r[0] < 0 {
        features.remove(Feature::Droppable);
    }
    let (r, _) = run(&[map(0, 1, RW), Call::Mlock { addr: at(0), len: PAGE, flags: 0 }, Call::Mlockall { flags: 2 }])?;
    // A limit in force shows at the second: everything that comes later would have to fit.
    if r[1] != 0 || r[2] != 0 {
        features.remove(Feature::Mlock);
        features.remove(Feature::Mlockall);
        say("mlock", "limited for this user (RLIMIT_MEMLOCK, CAP_IPC_LOCK): left out");
    } else if !unlimited_locking() {
        features.remove(Feature::Mlock);
        features.remove(Feature::Mlockall);
        say("mlock", "a limit is in force (RLIMIT_MEMLOCK): left out");
    } else {
        say("mlock", "yes");
    }
    let mut unknown = Vec::new();
    for &a in ADVICE {
        let (r, _) = run(&[map(0, 1, RW), advise(0, 1, a)])?;
        let (s, _) = run(&[
            Call::Mmap { addr: at(0), len: PAGE, prot: RW, flags: 0x11, fd: Some(0), offset: 0 },
            advise(0, 1, a),
        ])?;
        if r[1] == EINVAL && s[1] == EINVAL && !unknown.contains(&a) {
            unknown.push(a);
        }
    }
    for a in &unknown {
        features.remove_advice(*a);
    }
    if !unknown.is_empty() {
        say("advice that is missing", &unknown.iter().map(i32::to_string).collect::<Vec<_>>().join(", "));
    }
    match experiment(b, &Setup { heap: true, ..setup }, &[Call::Brk { to: setup.start_brk() + PAGE }]) {
        Ok((r, _)) if r[0] as u64 == setup.start_brk() + PAGE => say("brk", "yes"),
        Ok(_) => {
            features.remove(Feature::Heap);
            say("brk", "the heap could not be moved into the window: left out");
        }
        Err(e) => {
            features.remove(Feature::Heap);
            b.end()?;
            say("brk", &format!("{e}: left out"));
        }
    }
    match experiment(b, &Setup { room: Some(4), ..setup }, &[map(0, 1, RW)]) {
        Ok(_) => say("limit of VMAs", "yes"),
        Err(e) => {
            features.remove(Feature::Room);
            b.end()?;
            say("limit of VMAs", &format!("{e}: left out"));
        }
    }
    if rules.mremap_multi_vma && features.has(Feature::Room) {
        // Growing in place never looked at the limit before.
        let full: Vec<Call> = (0..4).map(|i| map(2 * i, 1, RW)).collect();
        let grow = Call::Mremap { addr: at(6), old_len: PAGE, new_len: 2 * PAGE, flags: 0, new_addr: 0 };
        let (r, _) = experiment(b, &Setup { room: Some(4), ..setup }, &[&full[..], &[grow]].concat())?;
        rules.mremap_limit_at_entry = r[4] < 0;
    }
    say("every mremap looks at the limit of VMAs", yes(rules.mremap_limit_at_entry));
    Ok(Host { rules, features, seen })
}

/// Which of [`COUNTED`] can be seen on the host, by calls that certainly change them.
///
/// # Errors
/// Why none can be seen.
pub fn probe_objects(b: &mut dyn Backend) -> Result<u16, Stop> {
    let all = (1 << COUNTED.len()) - 1;
    let setup = Setup { rules: MmRules::V6_12, pages: 32, room: None, heap: false, counted: all };
    b.begin(&setup)?;
    let mut steps = Vec::new();
    let mut calls = vec![map(0, 1, RW), touch(0), Call::Munmap { addr: at(0), len: PAGE }];
    // Enough for a tree to want nodes.
    calls.extend((0..16).map(|i| map(2 * i, 1, RW)));
    b.run(0, &calls, &Look { flags_every: 1000, bytes_every: 1000 }, &mut steps)?;
    b.end()?;
    let n = |step: usize, i: usize| steps[step].counts[i];
    let nodes: u16 = steps.iter().map(|s| s.counts[6]).sum();
    let seen = [
        n(0, 0) == 1,
        n(2, 1) == 1,
        n(1, 2) == 1,
        n(2, 3) == 1,
        n(1, 4) == 1,
        n(2, 5) == 1,
        nodes > 0,
        n(0, 7) > 0,
        n(0, 8) > 0,
    ];
    let mask = seen.iter().enumerate().fold(0, |m, (i, s)| m | u16::from(*s) << i);
    if mask == 0 {
        return Err(Stop(
            "no tracepoint of objects can be counted: tracefs is not readable, or perf events are refused".into(),
        ));
    }
    Ok(mask)
}

/// Whether this user may lock without limit.
fn unlimited_locking() -> bool {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the buffer is ours.
    let infinite = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut r) } == 0 && r.rlim_max == libc::RLIM_INFINITY;
    infinite || has_cap_ipc_lock()
}

/// `CAP_IPC_LOCK`, from the effective set in `/proc/self/status`.
fn has_cap_ipc_lock() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim);
    set.and_then(|s| u64::from_str_radix(s, 16).ok()).is_some_and(|s| s >> CAP_IPC_LOCK & 1 == 1)
}
