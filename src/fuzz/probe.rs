// SPDX-License-Identifier: GPL-2.0-only
//! What the running kernel does where kernels differ, seen by small experiments in the window: a few calls, and a look at
//! what is mapped afterwards. The rules are seen by [`observe`]; here is what can be drawn.
//!
//! What an experiment could not show (the call is missing, the configuration hides it) is said in a sentence, and the
//! calls that would need it are not drawn.

use super::backend::{
    Backend, COUNTED, Limit, Look, MAX_PAGES, NODES_TAKEN, PAGE, Resource, Setup, Space, Step, Stop, TREE_WRITES,
    WINDOW,
};
use super::r#gen::{ADVICE, Rng};
use super::place::Placing;
use crate::maple_tree::MapleRules;
use crate::mm::madvise::{MADV_GUARD_INSTALL, MADV_GUARD_REMOVE};
use crate::mm::{Call, MmRules, VmaInfo};
use crate::trace::observe::{self, At, Seen};

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
    /// Rounds that run at a limit of memory. Against a kernel only.
    Rlimit,
    /// Rounds whose bytes are touched by the processor. Against a kernel only.
    Touch,
    /// `READ_IMPLIES_EXEC` and `PR_SET_MDWE`. Against a kernel only.
    Mdwe,
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
        (Feature::Rlimit, "rlimit"),
        (Feature::Touch, "touch"),
        (Feature::Mdwe, "mdwe"),
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
    /// Rounds run in a process that has nothing but the window; whose rules its tree follows.
    pub bare: Option<MapleRules>,
    /// Rounds are about placement: where, and what of it.
    pub place: Option<(Space, Placing)>,
}

impl Features {
    /// Everything that the model knows.
    pub fn all() -> Self {
        let all = Feature::ALL.iter().map(|(f, _)| *f);
        Features {
            has: all.filter(|f| !matches!(f, Feature::Rlimit | Feature::Touch | Feature::Mdwe)).collect(),
            advice: ADVICE.to_vec(),
            at_limit: 8,
            counted: 0,
            bare: None,
            place: None,
        }
    }
    /// Whether `f` may be drawn.
    pub fn has(&self, f: Feature) -> bool {
        self.has.contains(&f)
    }
    /// With `f`.
    pub fn add(&mut self, f: Feature) {
        self.remove(f);
        self.has.push(f);
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
const EINVAL: i64 = -(libc::EINVAL as i64);
/// Where [`COUNTED`] has acquisitions of `mmap_lock`.
const MMAP_LOCK: usize = 8;
/// The calls of the experiments.
const AT: At = At { base: WINDOW };

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
    let setup = Setup::plain(MmRules::V6_12, observe::PAGES as u32);
    let mut features = Features::all();
    // Such a round costs a real kernel tens of thousands of mappings.
    features.at_limit = 1;
    let mut seen = Vec::new();
    let mut say = |name: &str, value: &str| seen.push((name.to_string(), value.to_string()));
    let yes = |b: bool| if b { "yes" } else { "no" };
    let mut run = |calls: &[Call]| experiment(b, &setup, calls);
    let mut see = |calls: &[Call]| run(calls).map(|(results, maps)| Seen { results, maps });
    let mut rules = observe::rules(WINDOW, true, &mut see, &mut say)?;
    if !rules.guard_regions {
        features.remove(Feature::Guard);
    }

    let (r, _) = run(&[AT.map(0, 1, RW), Call::Mseal { addr: AT.page(0), len: PAGE }])?;
    if r[1] != 0 {
        features.remove(Feature::Mseal);
        say("mseal", "missing");
    } else {
        say("mseal", "yes");
    }
    let droppable = Call::Mmap { addr: AT.page(0), len: PAGE, prot: RW, flags: 0x38, fd: None, offset: 0 };
    let (r, _) = run(&[droppable])?;
    say("MAP_DROPPABLE", yes(r[0] > 0));
    if r[0] < 0 {
        features.remove(Feature::Droppable);
    }
    let (r, _) =
        run(&[AT.map(0, 1, RW), Call::Mlock { addr: AT.page(0), len: PAGE, flags: 0 }, Call::Mlockall { flags: 2 }])?;
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
        let (r, _) = run(&[AT.map(0, 1, RW), AT.advise(0, 1, a)])?;
        let (s, _) = run(&[
            Call::Mmap { addr: AT.page(0), len: PAGE, prot: RW, flags: 0x11, fd: Some(0), offset: 0 },
            AT.advise(0, 1, a),
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
    match experiment(b, &Setup { room: Some(4), ..setup }, &[AT.map(0, 1, RW)]) {
        Ok(_) => say("limit of VMAs", "yes"),
        Err(e) => {
            features.remove(Feature::Room);
            b.end()?;
            say("limit of VMAs", &format!("{e}: left out"));
        }
    }
    if rules.mremap_multi_vma && features.has(Feature::Room) {
        // Growing in place never looked at the limit before.
        let full: Vec<Call> = (0..4).map(|i| AT.map(2 * i, 1, RW)).collect();
        let grow = Call::Mremap { addr: AT.page(6), old_len: PAGE, new_len: 2 * PAGE, flags: 0, new_addr: 0 };
        let (r, _) = experiment(b, &Setup { room: Some(4), ..setup }, &[&full[..], &[grow]].concat())?;
        rules.mremap_limit_at_entry = r[4] < 0;
    }
    features.add(Feature::Rlimit);
    let short = Setup { limit: Some(Limit { of: Resource::Memlock, pages: 2 }), ..setup };
    let lock = |page: u64| Call::Mmap {
        addr: AT.page(page),
        len: PAGE,
        prot: RW,
        flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_LOCKED) as u32,
        fd: None,
        offset: 0,
    };
    let (r, _) = experiment(b, &short, &[lock(0), AT.remap(0, 8, 1, 7), lock(16)])?;
    rules.dontunmap_counts_locked_twice = r[0] > 0 && r[1] > 0 && r[2] < 0;
    say("DONTUNMAP counts locked pages twice", yes(rules.dontunmap_counts_locked_twice));
    if cfg!(target_arch = "x86_64") {
        features.add(Feature::Touch);
    }
    let (r, _) = experiment(b, &setup, &[Call::Mdwe { bits: 1 }])?;
    say("PR_SET_MDWE", yes(r[0] == 0));
    if r[0] == 0 {
        features.add(Feature::Mdwe);
    }
    say("every mremap looks at the limit of VMAs", yes(rules.mremap_limit_at_entry));
    Ok(Host { rules, features, seen })
}

/// How the host places what may be of huge pages; `at` is where its processes begin.
///
/// # Errors
/// Why it cannot be looked at.
pub fn probe_placement(b: &mut dyn Backend, seen: &mut Vec<(String, String)>) -> Result<(Space, Placing), Stop> {
    let space = b.space()?.ok_or_else(|| Stop("only a running kernel has an address space to place in".into()))?;
    if space.mapped.is_empty() || space.mmap_base == 0 {
        return Err(Stop("the helper's own maps cannot be read".into()));
    }
    let setup = super::place::setup(MmRules::V6_12);
    // A page first, so that an aligned address is no accident.
    let two = |flags: u32| {
        let map = |len: u64, flags: u32| Call::Mmap { addr: 0, len, prot: 1, flags, fd: None, offset: 0 };
        [map(PAGE, 0x22), map(4 << 20, flags)]
    };
    let aligned = |r: &[i64]| r[1] > 0 && r[1] % (2 << 20) == 0;
    let (private, _) = experiment(b, &setup, &two(0x22))?;
    let (shared, _) = experiment(b, &setup, &two(0x21))?;
    let with = Placing { huge: aligned(&private), shared: !aligned(&shared) };
    let yes = |b: bool| if b { "yes" } else { "no" };
    let mut say = |name: &str, value: String| seen.push((name.to_string(), value));
    say("mappings of whole huge pages are aligned", yes(with.huge).into());
    say("shared ones too", if with.shared { "no".into() } else { "yes: left out".into() });
    let fixed = if space.randomised { "no: MAP_32BIT and full address spaces are left out" } else { "yes" };
    say("addresses are the same in each run", fixed.into());
    say("the search begins at", format!("{:#x}, with {} mappings of the program", space.mmap_base, space.mapped.len()));
    Ok((space, with))
}

/// Which of [`COUNTED`] can be seen on the host, by calls that certainly change them; and which lock an advice takes, where
/// that is one of them.
///
/// # Errors
/// Why none can be seen.
pub fn probe_objects(b: &mut dyn Backend, rules: &mut MmRules) -> Result<u16, Stop> {
    let all = (1 << COUNTED.len()) - 1;
    let setup = Setup { counted: all, touch: true, ..Setup::plain(MmRules::V6_12, 32) };
    b.begin(&setup)?;
    let mut steps = Vec::new();
    let mut calls = vec![AT.map(0, 1, RW), AT.touch(0), Call::Munmap { addr: AT.page(0), len: PAGE }];
    // Enough for a tree to want nodes.
    calls.extend((0..16).map(|i| AT.map(2 * i, 1, RW)));
    // A VMA with an anon_vma: of one without, a guard takes mmap_lock in any case.
    let advice = calls.len() + 1;
    calls.extend([AT.touch(0), AT.advise(0, 1, libc::MADV_DONTNEED), AT.advise(0, 1, MADV_GUARD_INSTALL)]);
    b.run(0, &calls, &Look { flags_every: 1000, bytes_every: 1000 }, &mut steps)?;
    b.end()?;
    let n = |step: usize, i: usize| steps[step].counts[i];
    if n(0, MMAP_LOCK) > 0 {
        rules.dontneed_vma_lock = n(advice, MMAP_LOCK) == 0;
        rules.guard_vma_lock = rules.guard_regions && n(advice + 1, MMAP_LOCK) == 0;
    }
    let nodes: u16 = steps.iter().map(|s| s.counts[NODES_TAKEN]).sum();
    let seen = [
        n(0, 0) == 1,
        n(2, 1) == 1,
        n(1, 2) == 1,
        n(2, 3) == 1,
        n(1, 4) == 1,
        n(2, 5) == 1,
        nodes > 0,
        n(0, 7) > 0,
        n(0, MMAP_LOCK) > 0,
    ];
    let mask = seen.iter().enumerate().fold(0, |m, (i, s)| m | u16::from(*s) << i);
    if mask == 0 {
        return Err(Stop(
            "no tracepoint of objects can be counted: tracefs is not readable, or perf events are refused".into(),
        ));
    }
    Ok(mask)
}

/// Calls of [`probe_tree`]'s experiment.
pub const TREE_CALLS: usize = 520;

/// Calls that tell the rules of trees apart: ranges one above the other until leaves overflow, then holes of all sizes.
fn tree_calls() -> Vec<Call> {
    let mut rng = Rng::new(18);
    let mut calls: Vec<Call> = (0..120).map(|i| AT.map(2 * i, 1, RW)).collect();
    while calls.len() < TREE_CALLS {
        let (page, pages) = (rng.below(240), 1 + rng.below(12));
        calls.push(match rng.below(3) {
            0 => Call::Munmap { addr: AT.page(page), len: pages * PAGE },
            1 => AT.map(page, pages, 1),
            _ => AT.map(page, 1, RW),
        });
    }
    calls
}

/// In how many calls of an experiment the port's tree, by each set of rules, takes other nodes or is written otherwise than
/// the tree of `b`, which has nothing but the window.
///
/// # Errors
/// Where a side cannot go on.
pub fn probe_tree(port: &mut dyn Backend, b: &mut dyn Backend, counted: u16) -> Result<Vec<(MapleRules, usize)>, Stop> {
    let calls = tree_calls();
    let run = |b: &mut dyn Backend, rules: MapleRules| -> Result<Vec<Step>, Stop> {
        let mut steps = Vec::new();
        b.begin(&Setup { counted, bare: Some(rules), crowd: 300, ..Setup::plain(MmRules::V6_12, MAX_PAGES) })?;
        b.run(0, &calls, &Look { flags_every: 1000, bytes_every: 1000 }, &mut steps)?;
        b.end()?;
        Ok(steps)
    };
    let theirs = run(b, MapleRules::V6_12)?;
    let mut out = Vec::new();
    for rules in [MapleRules::V6_12, MapleRules::V6_18, MapleRules::V7_3] {
        let mine = run(port, rules)?;
        let tree = |s: &Step| [s.counts[NODES_TAKEN], s.counts[TREE_WRITES]];
        out.push((rules, mine.iter().zip(&theirs).filter(|(a, b)| tree(a) != tree(b)).count()));
    }
    Ok(out)
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
