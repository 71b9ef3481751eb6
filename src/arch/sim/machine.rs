// SPDX-License-Identifier: GPL-2.0-only
//! The simulated machine: virtual CPUs, their clocks, and the run loop.
//!
//! Every CPU is a coroutine with a clock of its own; the earliest clock runs next, ties go to the lower CPU number. A
//! running CPU goes on until its clock passes that of the earliest other CPU that could run, so most accesses cost no
//! switch. Accesses to lines that the CPU already has go further: up to the shortest time in which a line can travel,
//! since what another CPU asks for in the meantime could not have arrived earlier. An access takes effect when it is
//! issued and is paid for afterwards; the order of issue is one interleaving of all CPUs (sequential consistency), and
//! whatever misses, waits or wakes is issued in the order of the clocks.
//!
//! INVARIANT: nothing a run decides depends on a host address, on host time or on the order of a hash table: lines are
//! named by their distance from the arena's base, memory outside the arena has one flat price, and queues are kept in
//! order of arrival. Tables keyed by host addresses are only ever looked up.
//!
//! INVARIANT: between the check of a word and going to sleep on it no other CPU runs; there is no lost wake-up that a
//! real futex would not have.

use super::coro::{Coro, Handle, Stack, suspend};
use super::line::{Directory, Kind, LineCounts, is_cpu};
use super::price::Price;
use super::turns::{Draws, Earliest, Jitter, Priorities};
use crate::arch::{Arena, Job, Machine, Work};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::Mutex;

/// Where the arena lies if nobody is there yet.
pub const ARENA_AT: usize = 0x2000_0000_0000;
pub(super) const PS_PER_NS: u64 = 1_000;
pub(super) const NEVER: u64 = u64::MAX;

/// What machine to build.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Node of each worker CPU; nodes are numbered from 0 without gaps.
    pub cpus: Vec<u32>,
    /// Distances between nodes, row by row (10 = local).
    pub distance: Vec<u32>,
    /// Memory of each node, bytes.
    pub bytes_per_node: usize,
    /// CPUs beyond the workers, one for each kernel thread that may run (`cpu::nr_kthreads()`); they are on node 0.
    pub kernel_threads: u32,
    /// What accesses cost.
    pub price: Price,
    /// Where the arena should lie; any place where that is taken. Results do not depend on it.
    pub at: usize,
    /// Random delays, for other interleavings than the one that the prices give; `None` for measurements.
    pub jitter: Option<Jitter>,
    /// A CPU whose clock passes this ends the run with a panic: a run that makes no progress. ns.
    pub limit_ns: u64,
}

impl SimConfig {
    /// `nodes` nodes of `cpus_per_node` CPUs, remote nodes at distance 20, 64 MiB each.
    pub fn nodes(nodes: u32, cpus_per_node: u32) -> SimConfig {
        SimConfig {
            cpus: (0..nodes * cpus_per_node).map(|c| c / cpus_per_node).collect(),
            distance: (0..nodes * nodes).map(|i| if i / nodes == i % nodes { 10 } else { 20 }).collect(),
            bytes_per_node: 64 << 20,
            kernel_threads: 8,
            price: Price::default(),
            at: ARENA_AT,
            jitter: None,
            limit_ns: 3_600_000_000_000,
        }
    }
}

/// What the last run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Clock of each CPU that ran, at its end: (CPU, ns).
    pub clocks: Vec<(u32, u64)>,
    /// Accesses.
    pub accesses: u64,
    /// Times a CPU gave way to another or slept.
    pub switches: u64,
    /// Hash over every access of the run: CPU, place, kind, time.
    pub trace: u64,
}

/// What a CPU that does not run waits for.
#[derive(Clone, Copy, Debug)]
enum Waits {
    /// No job, or it has ended.
    Nothing,
    /// Its turn.
    Turn,
    /// A write to the line of this address.
    Line(usize),
    /// A wake-up of this futex word.
    Futex(usize),
}

struct VirtualCpu {
    clock: u64,
    until_delay: u32,
    /// Accesses between further moments of [`Priorities`], the next one last.
    changes: Vec<u32>,
    waits: Waits,
    handle: Handle,
}

/// State of the machine; the running CPU reaches it through [`RUN`].
pub(super) struct Core {
    /// The running CPU.
    me: u32,
    /// Its clock, ps.
    clock: u64,
    /// It goes on while `clock < limit`.
    limit: u64,
    /// How far beyond `limit` it may go on what it has, ps.
    lookahead: u64,
    /// Its accesses until its next delay of [`Jitter`].
    until_delay: u32,
    draws: Draws,
    dir: Directory,
    price: Price,
    cpus: Vec<VirtualCpu>,
    next: Earliest,
    /// CPUs asleep on words outside the arena (`wait_changed`), in order of arrival.
    unmapped_waiters: Vec<(usize, u32)>,
    /// Sleepers by futex word, in order of arrival. Looked up, never walked.
    futexes: HashMap<usize, VecDeque<u32>>,
    stacks: Vec<Stack>,
    stats: RunStats,
    run_end: u64,
    limit_ps: u64,
    generation: u64,
}

thread_local! {
    /// The machine that runs on this OS thread; null while none does. It stands for what tells a real processor which
    /// one it is. It is no state of the port: it changes only around a switch of stacks, and a coroutine never leaves
    /// its OS thread.
    static RUN: Cell<*mut Core> = const { Cell::new(std::ptr::null_mut()) };
    /// What `now()` says while no machine runs: the end of the last run, 0 after a reset. ps.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
    /// Labels given while no machine runs (boot), taken over by the next run of the machine they belong to.
    static LABELS: RefCell<Vec<(usize, usize, &'static str)>> = const { RefCell::new(Vec::new()) };
}

/// The running machine, or null.
#[inline(always)]
pub(super) fn running() -> *mut Core {
    RUN.with(Cell::get)
}

/// The running CPU accesses the word at `addr`; the caller does the access itself at once after the return.
///
/// # Safety
/// `core` is what [`running`] returned, not null.
#[inline(never)]
pub(super) unsafe fn access(core: *mut Core, addr: usize, kind: Kind) {
    // SAFETY: the machine outlives the run; references do not live across the hand-over.
    unsafe {
        if !(&mut *core).private_access(addr, kind) {
            if (*core).until_delay == 0 {
                (&mut *core).delay();
            }
            sync_point(core);
            (&mut *core).access(addr, kind);
        }
    }
}

/// Lets the earliest CPU run.
#[cold]
#[inline(never)]
unsafe fn hand_over(core: *mut Core) {
    if std::thread::panicking() {
        // A job that unwinds keeps the CPU: its destructors must not run in the middle of somebody else's panic.
        return;
    }
    // SAFETY: as for access().
    let h = unsafe {
        let c = &mut *core;
        assert!(c.clock <= c.limit_ps, "CPU {} passed the limit of the run\n{}", c.me, c.report());
        c.cpus[c.me as usize].waits = Waits::Turn;
        c.next.set(c.me, c.clock);
        c.leave()
    };
    // SAFETY: the handle is the running CPU's.
    unsafe { suspend(h) }
}

/// Sleeps until another CPU makes this one runnable, or until `deadline` (ps).
unsafe fn block(core: *mut Core, waits: Waits, deadline: u64) {
    assert!(!std::thread::panicking(), "a job sleeps while it unwinds");
    // SAFETY: as for access().
    let h = unsafe {
        let c = &mut *core;
        c.cpus[c.me as usize].waits = waits;
        c.next.set(c.me, deadline);
        c.leave()
    };
    // SAFETY: the handle is the running CPU's.
    unsafe { suspend(h) }
}

/// Puts the CPU to sleep until another one takes the line of `addr` for writing.
///
/// # Safety
/// As [`access`]. The word still holds what the caller saw.
pub(super) unsafe fn wait_changed(core: *mut Core, addr: usize) {
    // SAFETY: as for access().
    unsafe {
        let c = &mut *core;
        match c.dir.offset(addr) {
            Some(off) => c.dir.add_waiter(c.me, off),
            None => c.unmapped_waiters.push((addr, c.me)),
        }
        block(core, Waits::Line(addr), NEVER);
    }
}

/// `futex_wait`; `holds` looks at the word.
///
/// # Safety
/// As [`access`].
pub(super) unsafe fn futex_wait(core: *mut Core, addr: usize, holds: impl Fn() -> bool, deadline: Option<u64>) {
    let deadline = deadline.map_or(NEVER, |ns| ns.saturating_mul(PS_PER_NS));
    // SAFETY: as for access().
    unsafe {
        (*core).clock += (*core).price.sleep;
        access(core, addr, Kind::Load);
        let c = &mut *core;
        if !holds() || c.clock >= deadline {
            return;
        }
        let me = c.me;
        c.futexes.entry(addr).or_default().push_back(me);
        block(core, Waits::Futex(addr), deadline);
        // Woken sleepers were taken off the queue; one whose time has come is still on it.
        let c = &mut *core;
        if let Some(q) = c.futexes.get_mut(&addr) {
            q.retain(|&s| s != me);
            if q.is_empty() {
                c.futexes.remove(&addr);
            }
        }
    }
}

/// `futex_wake`.
///
/// # Safety
/// As [`access`].
pub(super) unsafe fn futex_wake(core: *mut Core, addr: usize) {
    // SAFETY: as for access().
    unsafe {
        sync_point(core);
        let c = &mut *core;
        let Some(sleeper) = c.futexes.get_mut(&addr).and_then(VecDeque::pop_front) else { return };
        c.clock += c.price.wake;
        let at = c.clock + c.price.wake_latency;
        c.wake(sleeper, at);
    }
}

/// Waits for this CPU's turn, before anything that others may see or that reads what they did.
///
/// # Safety
/// As [`access`].
pub(super) unsafe fn sync_point(core: *mut Core) {
    // SAFETY: as for access().
    unsafe {
        if (*core).clock >= (*core).limit {
            hand_over(core);
        }
    }
}

/// `clear` of `len` bytes at `addr`: whole pages at the price of `clear_page`, else a store a line.
///
/// # Safety
/// As [`access`].
pub(super) unsafe fn clear(core: *mut Core, addr: usize, len: usize) {
    const PAGE: usize = crate::arch::arena::PAGE_SIZE;
    // SAFETY: as for access().
    unsafe {
        sync_point(core);
        let c = &mut *core;
        match c.dir.offset(addr) {
            Some(off) if off.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) => {
                c.dir.own_pages(c.me, off, len);
                c.clock += c.price.clear_page * (len / PAGE) as u64;
            }
            _ => range(core, addr, len, Kind::Store),
        }
    }
}

/// One access a line of `[addr, addr + len)`.
///
/// # Safety
/// As [`access`].
pub(super) unsafe fn range(core: *mut Core, addr: usize, len: usize, kind: Kind) {
    // Outside the arena the number of accesses must not depend on how a host address is aligned.
    // SAFETY: as for access().
    let first = unsafe { (*core).dir.offset(addr) }.map_or(addr, |_| addr & !63);
    for a in (first..addr + len).step_by(64) {
        // SAFETY: as for access().
        unsafe { access(core, a, kind) }
    }
}

/// Names `[addr, addr + len)`, at once or, while no machine runs, at the next run.
pub(super) fn label(addr: usize, len: usize, what: &'static str) {
    let core = running();
    if core.is_null() {
        LABELS.with(|l| l.borrow_mut().push((addr, len, what)));
    } else {
        // SAFETY: the running machine; no reference is held across a hand-over.
        let c = unsafe { &mut *core };
        if let Some(off) = c.dir.offset(addr) {
            c.dir.label(off, len, what);
        }
    }
}

/// Time of the running CPU, else of the last run's end; ns.
#[inline(always)]
pub(super) fn now() -> u64 {
    let core = running();
    // SAFETY: as for label().
    let ps = if core.is_null() { CLOCK.with(Cell::get) } else { unsafe { (*core).clock } };
    ps / PS_PER_NS
}

impl Core {
    /// Does the access if no other CPU can tell when: the CPU has the line, and is not too far ahead.
    #[inline(always)]
    fn private_access(&mut self, addr: usize, kind: Kind) -> bool {
        self.clock < self.limit.saturating_add(self.lookahead) && self.until_delay != 0 && self.held_access(addr, kind)
    }

    /// Does the access if the CPU has the line.
    #[inline(always)]
    fn held_access(&mut self, addr: usize, kind: Kind) -> bool {
        let ps = match self.dir.offset(addr) {
            Some(off) => {
                if !self.dir.hit(self.me, off, kind) {
                    return false;
                }
                self.mix(off as u64 | (kind as u64) << 60);
                self.price.hit + self.price.extra(kind)
            }
            None => {
                if kind != Kind::Load && !self.unmapped_waiters.is_empty() {
                    return false;
                }
                self.dir.count_unmapped();
                self.mix((kind as u64) << 60 | 1 << 59);
                self.price.unmapped
            }
        };
        self.stats.accesses += 1;
        self.until_delay = self.until_delay.saturating_sub(1);
        self.clock += ps;
        true
    }

    /// A delay is due: takes it and draws when the next one is.
    #[cold]
    #[inline(never)]
    fn delay(&mut self) {
        let cpus = self.cpus.len();
        let (delay, until) = self.draws.delay(cpus, &mut self.cpus[self.me as usize].changes);
        self.clock += delay;
        self.until_delay = until;
    }

    /// A named place is passed.
    #[cold]
    #[inline(never)]
    pub(super) fn named_place(&mut self) {
        self.clock += self.draws.at_name();
    }

    /// Whether delays are drawn.
    #[inline(always)]
    pub(super) fn jitters(&self) -> bool {
        self.draws.jitter.is_some()
    }

    /// Any access, at this CPU's turn.
    fn access(&mut self, addr: usize, kind: Kind) {
        if self.held_access(addr, kind) {
            return;
        }
        self.stats.accesses += 1;
        self.until_delay = self.until_delay.saturating_sub(1);
        match self.dir.offset(addr) {
            Some(off) => {
                self.mix(off as u64 | (kind as u64) << 60);
                let d = self.dir.access(self.me, self.clock, off, kind);
                self.clock = d.at;
                if is_cpu(d.woken) {
                    self.wake_line(d.woken);
                }
            }
            None => {
                self.mix((kind as u64) << 60 | 1 << 59);
                self.dir.count_unmapped();
                self.clock += self.price.unmapped;
                self.wake_unmapped(addr);
            }
        }
    }

    /// Adds to the run's trace: what, and by whom and when.
    #[inline(always)]
    fn mix(&mut self, what: u64) {
        let h = self.stats.trace.rotate_left(23) ^ what ^ u64::from(self.me) << 40;
        self.stats.trace = (h ^ self.clock.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    #[cold]
    #[inline(never)]
    fn wake_line(&mut self, mut cpu: u16) {
        while is_cpu(cpu) {
            let next = self.dir.next_waiter(cpu);
            self.wake(u32::from(cpu), self.clock);
            cpu = next;
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_unmapped(&mut self, addr: usize) {
        let mut i = 0;
        while i < self.unmapped_waiters.len() {
            if self.unmapped_waiters[i].0 == addr {
                let (_, cpu) = self.unmapped_waiters.remove(i);
                self.wake(cpu, self.clock);
            } else {
                i += 1;
            }
        }
    }

    /// Makes a sleeping CPU runnable, not before `at`.
    fn wake(&mut self, cpu: u32, at: u64) {
        let v = &mut self.cpus[cpu as usize];
        v.clock = v.clock.max(at);
        v.waits = Waits::Turn;
        let at = v.clock;
        self.next.set(cpu, at);
        self.limit = self.limit.min(at.saturating_add(u64::from(self.me < cpu)));
    }

    /// The running CPU stops; returns its way back.
    fn leave(&mut self) -> Handle {
        self.stats.switches += 1;
        let v = &mut self.cpus[self.me as usize];
        v.clock = self.clock;
        v.until_delay = self.until_delay;
        v.handle
    }

    /// The next CPU starts; `false` if nobody can.
    fn enter(&mut self) -> bool {
        let (cpu, at) = self.next.first();
        if at == NEVER {
            return false;
        }
        self.next.set(cpu, NEVER);
        let (other, other_at) = self.next.first();
        self.me = cpu;
        let v = &mut self.cpus[cpu as usize];
        v.waits = Waits::Turn;
        self.clock = v.clock.max(at);
        self.until_delay = v.until_delay;
        self.limit = other_at.saturating_add(u64::from(cpu < other));
        true
    }

    /// What each CPU does, for a human.
    fn report(&self) -> String {
        let mut s = String::new();
        for (cpu, v) in self.cpus.iter().enumerate() {
            let place = |addr| match self.dir.offset(addr) {
                Some(off) => format!("arena+{off:#x} ({})", self.dir.name(off)),
                None => "a word outside the arena".to_string(),
            };
            let what = match v.waits {
                Waits::Nothing => continue,
                Waits::Turn => "could run".to_string(),
                Waits::Line(a) => format!("spins on {}", place(a)),
                Waits::Futex(a) => format!("sleeps on {}", place(a)),
            };
            let _ = writeln!(s, "  CPU {cpu} at {} ns: {what}", v.clock / PS_PER_NS);
        }
        s
    }
}

/// See the module.
pub struct SimMachine {
    arena: Arena,
    cfg: SimConfig,
    /// INVARIANT: used through [`RUN`] by the jobs of a run, which all share one OS thread, or under `running`.
    core: UnsafeCell<Core>,
    running: Mutex<()>,
}

// SAFETY: `core` is reached by one OS thread at a time, see its invariant; its raw handles are used by a run only.
unsafe impl Sync for SimMachine {}
// SAFETY: as above; between runs nothing in it belongs to a thread.
unsafe impl Send for SimMachine {}

impl SimMachine {
    /// Builds the machine.
    ///
    /// # Errors
    /// From reserving the arena; `InvalidInput` for a configuration that is none.
    pub fn new(cfg: SimConfig) -> io::Result<SimMachine> {
        let invalid = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let nodes = cfg.distance.len().isqrt();
        if nodes == 0 || nodes * nodes != cfg.distance.len() {
            return invalid("the distances are not a square");
        }
        if cfg.cpus.is_empty() || cfg.cpus.iter().any(|&n| n as usize >= nodes) {
            return invalid("a CPU's node has no distances");
        }
        if cfg.cpus.len() + cfg.kernel_threads as usize >= u16::MAX as usize {
            return invalid("too many CPUs");
        }
        if cfg.price.hit == 0 || cfg.price.unmapped == 0 || cfg.price.relax == 0 {
            return invalid("an access that takes no time lets a loop wait for ever");
        }
        let arena = Arena::new(nodes as u32, cfg.bytes_per_node, Some(cfg.at), None)?;
        let mut cpu_node = cfg.cpus.clone();
        cpu_node.resize(cfg.cpus.len() + cfg.kernel_threads as usize, 0);
        let dir = Directory::new(&arena, &cpu_node, &cfg.distance, &cfg.price);
        let idle = || VirtualCpu {
            clock: 0,
            until_delay: 0,
            changes: Vec::new(),
            waits: Waits::Nothing,
            handle: std::ptr::null(),
        };
        let core = Core {
            me: 0,
            clock: 0,
            limit: 0,
            lookahead: dir.shortest_move(),
            until_delay: 0,
            draws: Draws::new(cfg.jitter),
            dir,
            price: cfg.price.clone(),
            cpus: cpu_node.iter().map(|_| idle()).collect(),
            next: Earliest::new(cpu_node.len()),
            unmapped_waiters: Vec::new(),
            futexes: HashMap::new(),
            stacks: Vec::new(),
            stats: RunStats::default(),
            run_end: 0,
            limit_ps: cfg.limit_ns.saturating_mul(PS_PER_NS),
            generation: arena.generation(),
        };
        CLOCK.with(|c| c.set(0));
        let (start, end) = (arena.base(), arena.base() + crate::arch::arena::ARENA_SIZE);
        // Of an earlier machine at the same place.
        LABELS.with(|l| l.borrow_mut().retain(|&(a, _, _)| a < start || a >= end));
        Ok(SimMachine { arena, cfg, core: UnsafeCell::new(core), running: Mutex::new(()) })
    }

    fn with<R>(&self, f: impl FnOnce(&mut Core) -> R) -> R {
        if running() == self.core.get() {
            // SAFETY: called by a job of this machine's run, which alone runs; `f` does not switch.
            return f(unsafe { &mut *self.core.get() });
        }
        let _nobody_runs = self.running.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: no run is on its way.
        f(unsafe { &mut *self.core.get() })
    }

    /// What happened to the lines of each struct since the start, or since [`SimMachine::reset_lines`].
    pub fn lines(&self) -> BTreeMap<&'static str, LineCounts> {
        self.with(|c| c.dir.counts())
    }

    /// Zeroes the counts of [`SimMachine::lines`]; a job may call it where the measured span starts.
    pub fn reset_lines(&self) {
        self.with(|c| c.dir.reset_counts())
    }

    /// Says that `what` labels pages full of objects of `size` bytes (a slab cache and its object size, padding
    /// included), so that [`SimMachine::fields`] can tell their words apart. Outlives a reset.
    pub fn layout(&self, what: &'static str, size: usize) {
        self.with(|c| c.dir.layout(what, size))
    }

    /// Misses of the objects labelled `what`, by the offset (bytes) of the word whose access missed; `accesses` counts
    /// misses only. Empty without a [`SimMachine::layout`].
    pub fn fields(&self, what: &str) -> BTreeMap<usize, LineCounts> {
        self.with(|c| c.dir.fields(what))
    }

    /// What the last run did.
    pub fn stats(&self) -> RunStats {
        self.with(|c| c.stats.clone())
    }

    /// Other delays from the next run on: another interleaving on the same machine.
    pub fn set_jitter(&self, jitter: Option<Jitter>) {
        self.with(|c| c.draws.jitter = jitter)
    }

    /// Priorities from the next run on; they count where there is no [`Jitter`].
    pub fn set_priorities(&self, priorities: Option<Priorities>) {
        self.with(|c| c.draws.priorities = priorities)
    }

    /// What the machine was built from.
    pub fn config(&self) -> &SimConfig {
        &self.cfg
    }
}

impl Core {
    /// Forgets what earlier kernels did to lines and labels.
    fn forget(&mut self, generation: u64) {
        self.dir.reset();
        self.generation = generation;
    }

    /// Takes over the labels given while nobody ran.
    fn take_labels(&mut self) {
        LABELS.with(|l| {
            l.borrow_mut().retain(|&(addr, len, what)| match self.dir.offset(addr) {
                Some(off) => {
                    self.dir.label(off, len, what);
                    false
                }
                None => true,
            });
        });
    }
}

/// Clears [`RUN`] however the run ends.
struct Running;
impl Drop for Running {
    fn drop(&mut self) {
        RUN.with(|r| r.set(std::ptr::null_mut()));
    }
}

impl Machine for SimMachine {
    fn nr_cpus(&self) -> u32 {
        self.cfg.cpus.len() as u32
    }
    fn nr_nodes(&self) -> u32 {
        self.cfg.distance.len().isqrt() as u32
    }
    fn node_of(&self, cpu: u32) -> u32 {
        self.cfg.cpus[cpu as usize]
    }
    fn distance(&self, from: u32, to: u32) -> u32 {
        self.cfg.distance[(from * self.nr_nodes() + to) as usize]
    }
    fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Besides the memory: virtual time starts at 0 again, all caches are empty, labels and counts are gone.
    fn reset(&self) {
        self.arena.reset();
        self.with(|c| {
            c.forget(self.arena.generation());
            c.run_end = 0;
        });
        CLOCK.with(|c| c.set(0));
        let start = self.arena.base();
        LABELS.with(|l| l.borrow_mut().retain(|&(a, _, _)| a.wrapping_sub(start) >= crate::arch::arena::ARENA_SIZE));
    }

    /// Runs all jobs on the calling thread. Time goes on where the last run ended.
    ///
    /// # Panics
    /// With a job's own panic; when all CPUs wait for one another; when a clock passes the limit. The other jobs are
    /// abandoned then, their stacks leaked.
    fn run(&self, jobs: Vec<Job<'_>>) {
        assert!(running().is_null(), "a job must not start a machine");
        let _one_at_a_time = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let core = self.core.get();
        let mut coros: Vec<Option<Coro>> = Vec::new();
        // SAFETY: the lock is held and no job runs yet.
        unsafe {
            let c = &mut *core;
            if c.generation != self.arena.generation() {
                c.forget(self.arena.generation());
            }
            c.take_labels();
            c.stats = RunStats::default();
            let starts = c.draws.start(c.cpus.len(), self.nr_cpus());
            let behind: Vec<u64> = starts.iter().map(|s| s.behind).collect();
            for (cpu, s) in c.cpus.iter_mut().zip(starts) {
                (cpu.until_delay, cpu.changes) = (s.until_delay, s.changes);
            }
            coros.resize_with(c.cpus.len(), || None);
            let mut kthread = self.nr_cpus();
            for j in jobs {
                let cpu = j.cpu.unwrap_or_else(|| {
                    kthread += 1;
                    kthread - 1
                });
                assert!(j.cpu.is_none_or(|n| n < self.nr_cpus()), "no such CPU");
                assert!((cpu as usize) < coros.len(), "more kernel threads than SimConfig::kernel_threads");
                assert!(coros[cpu as usize].is_none(), "two workers on CPU {cpu}");
                let stack = c.stacks.pop().unwrap_or_else(Stack::new);
                let started = move |h| {
                    let c = &mut *core;
                    c.cpus[cpu as usize].handle = h;
                };
                coros[cpu as usize] = Some(Coro::new(stack, started, j.f));
                let start = c.run_end + behind[cpu as usize];
                c.cpus[cpu as usize].clock = start;
                c.cpus[cpu as usize].waits = Waits::Turn;
                c.next.set(cpu, start);
            }
        }
        let ended = RUN.with(|r| {
            r.set(core);
            let _running = Running;
            run_loop(core, &mut coros)
        });
        // SAFETY: no job runs any more.
        let c = unsafe { &mut *core };
        CLOCK.with(|clock| clock.set(c.run_end));
        if let Err(failed) = ended {
            let report = c.report();
            for cpu in 0..c.cpus.len() {
                c.cpus[cpu].waits = Waits::Nothing;
                c.next.set(cpu as u32, NEVER);
            }
            c.unmapped_waiters.clear();
            c.futexes.clear();
            c.dir.reset();
            match failed {
                Some(payload) => std::panic::resume_unwind(payload),
                None => panic!("deadlock: no CPU can run\n{report}"),
            }
        }
        c.stats.clocks.sort_unstable();
    }
}

/// Runs the earliest CPU until none is left. An error is a job's panic, or `None` if no CPU can run.
fn run_loop(core: *mut Core, coros: &mut [Option<Coro>]) -> Result<(), Option<Box<dyn std::any::Any + Send>>> {
    let mut left = coros.iter().filter(|c| c.is_some()).count();
    while left != 0 {
        // SAFETY: no job runs between two resumes; references end before the next one.
        let cpu = unsafe {
            if !(*core).enter() {
                return Err(None);
            }
            (*core).me
        };
        let slot = &mut coros[cpu as usize];
        let Some(ended) = slot.as_mut().expect("only CPUs with a job are ever runnable").resume() else { continue };
        left -= 1;
        // SAFETY: as above.
        let c = unsafe { &mut *core };
        let done = slot.take().expect("it just ran");
        c.stacks.push(done.into_stack());
        c.cpus[cpu as usize].waits = Waits::Nothing;
        c.cpus[cpu as usize].clock = c.clock;
        c.run_end = c.run_end.max(c.clock);
        c.stats.clocks.push((cpu, c.clock / PS_PER_NS));
        ended.map_err(Some)?;
    }
    Ok(())
}

impl std::fmt::Debug for SimMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimMachine").field("cfg", &self.cfg).finish_non_exhaustive()
    }
}

/// Charges ps picked from the table.
///
/// # Safety
/// As [`access`].
#[inline(always)]
pub(super) unsafe fn charge(core: *mut Core, what: impl FnOnce(&Price) -> u64) {
    // SAFETY: as for access(); no hand-over here.
    unsafe { (*core).clock += what(&(*core).price) }
}

/// What [`Work`] costs.
pub(super) fn price_of(work: Work, p: &Price) -> u64 {
    match work {
        Work::KernelEntry => p.kernel_entry,
    }
}

/// Counts by struct of the running machine; `None` while none runs.
pub(super) fn lines() -> Option<BTreeMap<&'static str, LineCounts>> {
    let core = running();
    // SAFETY: as for label().
    if core.is_null() { None } else { Some(unsafe { (*core).dir.counts() }) }
}

/// Stops the machine for `f`.
pub(super) fn frozen<R>(f: impl FnOnce() -> R) -> R {
    struct Goes(*mut Core);
    impl Drop for Goes {
        fn drop(&mut self) {
            RUN.set(self.0);
        }
    }
    let _goes_on = Goes(RUN.replace(std::ptr::null_mut()));
    f()
}

/// Zeroes the counts of the running machine.
pub(super) fn reset_lines() {
    let core = running();
    if !core.is_null() {
        // SAFETY: as for label().
        unsafe { (*core).dir.reset_counts() }
    }
}
