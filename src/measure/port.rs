// SPDX-License-Identifier: GPL-2.0-only
//! One sample of the port: boots a kernel on the machine, runs a workload on it, shuts it down, closes the books.
//!
//! Every operation of a worker ends at the boundary to user mode, where ticks are noticed and callbacks run: their time
//! is the workload's, as in the kernel. After its span a worker keeps the load on, then idles with its tick until
//! worker 0 has torn everything down.

use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Full, Hardware, Machine, Relaxed, Release, Work, smp_cond_load_acquire};
use crate::cpu::sched::SchedCounter;
use crate::cpu::softirq::SoftirqCounter;
use crate::cpu::{Cpu, Errno, tick};
use crate::init::{Kernel, KernelConfig, KernelState, LeakReport, run_on_cpus, shutdown, start_kernel};
use crate::maple_tree::MapleEvent;
use crate::measure::outcome::{Moves, Outcome, Over, ReuseSeen, Seated};
use crate::measure::probe::{Probe, Seen};
use crate::measure::run::{Harness, Stop, Tally, drive};
use crate::mm::mm_types::{VM_EXEC, VM_READ, VM_WRITE};
use crate::mm::mmap::{MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE};
use crate::mm::mmap_lock_wait::WaitEvent;
use crate::mm::syscall::{Call, Process, syscall};
use crate::mm::vma_lock::VmaLockEvent;
use crate::mm::vmstat::VmEvent;
use crate::mm::{self, Kconfig, MmPtr};
use crate::rcu::{QsPolicy, RcuCounter, RcuExtCounter, StallReport};
use crate::slab::{FaultAttr, Reuse, SLUB_STATS, alloc_page, free_pages};
use crate::sync::{LockEvent, Saturation};
use crate::trace::Program;
use crate::workload::{Mode, PAGE, Seat, Space, Workload};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex};

/// First address where workloads map: one page table's span into a top-level entry, far below where placement begins.
const WINDOW: u64 = 0x1000_0000_0000;

/// Points of a time series; a sample longer than that many ticks keeps its beginning.
const OVER_MAX: usize = 4096;

/// How traces map.
const MAP: u32 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers.
    pub threads: u32,
    /// One mm or one each.
    pub mode: Mode,
    /// Warm-up, ns.
    pub warm_up_ns: u64,
    /// End of the span.
    pub stop: Stop,
    /// The kernel to boot.
    pub kernel: KernelConfig,
    /// What `trace:FILE` repeats.
    pub program: Option<Arc<Program>>,
}

/// Words that the workers of a sample share.
#[repr(C, align(128))]
struct Line<A: Arch> {
    arrived: Atomic<A, u32>,
    start: Atomic<A, u64>,
    _apart: [u64; 14],
    ended: Atomic<A, u32>,
    left: Atomic<A, u32>,
    setup: Atomic<A, u32>,
    words: [Atomic<A, u64>; 2],
    /// The mm that all share.
    mm: Atomic<A, *mut ()>,
}

impl<A: Arch> Line<A> {
    fn new() -> Self {
        Line {
            arrived: Atomic::new(0),
            start: Atomic::new(0),
            _apart: [0; 14],
            ended: Atomic::new(0),
            left: Atomic::new(0),
            setup: Atomic::new(0),
            words: [Atomic::new(0), Atomic::new(0)],
            mm: Atomic::new(null_mut()),
        }
    }
}

struct PortSpace<'a, K: Kconfig> {
    cpu: &'a Cpu<K::A>,
    k: &'a Kernel<K>,
    mm: MmPtr<K>,
    /// This thread's second address space.
    other: Cell<Option<MmPtr<K>>>,
    clock: Cell<Option<u64>>,
    /// Calls that found no memory and were made again.
    failures: Cell<u64>,
    program: Option<&'a Program>,
}

/// Calls in a row that may find no memory before it is no longer chance.
const RETRIES: u32 = 10_000;

impl<'a, K: Kconfig> PortSpace<'a, K> {
    fn new(cpu: &'a Cpu<K::A>, k: &'a Kernel<K>, mm: MmPtr<K>, plan: &'a Plan) -> Self {
        let program = plan.program.as_deref();
        PortSpace { cpu, k, mm, other: Cell::new(None), clock: Cell::new(None), failures: Cell::new(0), program }
    }

    /// One of the system calls that only traces make.
    #[inline(always)]
    fn call(&self, call: Call) -> Result<(), Errno> {
        K::A::charge(Work::KernelEntry);
        self.made(|| syscall(self.cpu, self.k, &mut Process::new(self.mm), &call).map(drop))
    }

    /// Where allocations are refused on purpose, a call that found no memory is counted and made again, as a program
    /// would; its time counts. Elsewhere the error is the workload's.
    #[inline(always)]
    fn made<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        let r = call();
        self.leave();
        if matches!(r, Err(Errno::ENOMEM)) && self.k.slab.faults.possible() { self.again(call) } else { r }
    }

    #[cold]
    #[inline(never)]
    fn again<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        let mut tries = 0;
        loop {
            self.failures.set(self.failures.get() + 1);
            tries += 1;
            let r = call();
            self.leave();
            if tries == RETRIES || !matches!(r, Err(Errno::ENOMEM)) {
                return r;
            }
        }
    }

    /// Back to user mode.
    #[inline(always)]
    fn leave(&self) {
        if let Some(now) = tick::exit_to_user_mode(self.cpu) {
            self.clock.set(Some(now));
        }
    }
}

impl<K: Kconfig> Space for PortSpace<'_, K> {
    #[inline(always)]
    fn map(&self, at: Option<u64>, pages: u64) -> Result<u64, Errno> {
        K::A::charge(Work::KernelEntry);
        self.made(|| mm::vm_mmap(self.cpu, self.k, self.mm, at, pages * PAGE, VM_READ | VM_WRITE))
    }
    #[inline(always)]
    fn unmap(&self, addr: u64, pages: u64) -> Result<(), Errno> {
        K::A::charge(Work::KernelEntry);
        self.made(|| mm::vm_munmap(self.cpu, self.k, self.mm, addr, pages * PAGE))
    }
    #[inline(always)]
    fn brk(&self, to: u64) -> u64 {
        K::A::charge(Work::KernelEntry);
        let r = mm::sys_brk(self.cpu, self.k, self.mm, to);
        self.leave();
        if r == to || to == 0 || !self.k.slab.faults.possible() {
            return r;
        }
        let moved = self.again(|| match mm::sys_brk(self.cpu, self.k, self.mm, to) {
            r if r == to => Ok(r),
            _ => Err(Errno::ENOMEM),
        });
        moved.unwrap_or(r)
    }
    #[inline(always)]
    fn touch(&self, addr: u64) -> Result<(), Errno> {
        K::A::charge(Work::KernelEntry);
        self.made(|| mm::do_user_addr_fault(self.cpu, self.k, self.mm, addr, true).map_err(Errno::from))
    }
    #[inline(always)]
    fn zap(&self, addr: u64, pages: u64) -> Result<(), Errno> {
        K::A::charge(Work::KernelEntry);
        self.made(|| mm::madvise_dontneed(self.cpu, self.k, self.mm, addr, pages * PAGE))
    }
    #[inline(always)]
    fn map_as(&self, at: u64, pages: u64, prot: u32, noreserve: bool) -> Result<(), Errno> {
        let flags = if noreserve { MAP | MAP_NORESERVE } else { MAP };
        self.call(Call::Mmap { addr: at, len: pages * PAGE, prot, flags, fd: None, offset: 0 })
    }
    #[inline(always)]
    fn protect(&self, addr: u64, pages: u64, prot: u32) -> Result<(), Errno> {
        self.call(Call::Mprotect { addr, len: pages * PAGE, prot })
    }
    #[inline(always)]
    fn advise(&self, addr: u64, pages: u64, advice: i32) -> Result<(), Errno> {
        self.call(Call::Madvise { addr, len: pages * PAGE, advice })
    }
    #[inline(always)]
    fn remap(&self, addr: u64, pages: u64, to: u64, new_pages: u64) -> Result<(), Errno> {
        // MREMAP_MAYMOVE | MREMAP_FIXED, or in place.
        let flags = if to == addr { 0 } else { 3 };
        self.call(Call::Mremap { addr, old_len: pages * PAGE, new_len: new_pages * PAGE, flags, new_addr: to })
    }
    fn in_other<R>(&self, f: impl FnOnce(&Self) -> R) -> Option<R> {
        let mm = self.other.get().or_else(|| mm::try_mm_alloc(self.cpu, self.k))?;
        self.other.set(Some(mm));
        let o = PortSpace {
            cpu: self.cpu,
            k: self.k,
            mm,
            other: Cell::new(None),
            clock: Cell::new(self.clock.take()),
            failures: Cell::new(self.failures.get()),
            program: None,
        };
        let r = f(&o);
        self.clock.set(o.clock.take());
        self.failures.set(o.failures.get());
        Some(r)
    }
    fn end_other(&self) {
        if let Some(mm) = self.other.take() {
            mm::mmput(self.cpu, self.k, mm);
        }
    }
    fn program(&self) -> Option<&Program> {
        self.program
    }
    fn random(&self) -> u64 {
        self.cpu.random()
    }
    fn window(&self) -> u64 {
        WINDOW
    }
}

struct PortHarness<'a, K: Kconfig>
where
    K::A: Probe,
{
    space: &'a PortSpace<'a, K>,
    line: KRef<Line<K::A>>,
    threads: u32,
    /// Worker 0 looks around at ticks.
    leader: bool,
    start: Cell<u64>,
    over: RefCell<Over>,
    next_look: Cell<u64>,
    probe: RefCell<Option<<K::A as Probe>::State>>,
    moves: RefCell<BTreeMap<String, Moves>>,
    reuse: Option<&'a Reuse<K::A>>,
}

impl<K: Kconfig> Harness for PortHarness<'_, K>
where
    K::A: Probe,
{
    fn start_line(&self) -> u64 {
        let l = &*self.line;
        if l.arrived.fetch_add(1, Full) + 1 == self.threads {
            // Everybody is set up: from now on memory may be refused.
            self.space.k.slab.faults.arm(true);
            // ORDER: release, meets the acquire below: whoever starts sees all that was set up.
            l.start.store(K::A::now().max(1), Release);
        }
        let t = smp_cond_load_acquire(&l.start, |t| t != 0);
        self.start.set(t);
        if let Some(r) = self.reuse {
            r.start(self.space.cpu);
        }
        t
    }
    #[inline(always)]
    fn boundary(&self) -> Option<u64> {
        let now = self.space.clock.take()?;
        if self.leader && now >= self.next_look.get() {
            self.look(now);
        }
        Some(now)
    }
    fn now(&self) -> u64 {
        K::A::now()
    }
    fn cpu_ns(&self) -> u64 {
        K::A::cpu_ns()
    }
    fn softirq_ns(&self) -> u64 {
        self.space.cpu.softirq.time_ns.get()
    }
    fn edge(&self, begins: bool) {
        if let Some(r) = self.reuse.filter(|_| !(begins && K::A::REUSE_IN_SPAN)) {
            r.stop(self.space.cpu);
        }
        if let Some(p) = self.probe.borrow_mut().as_mut() {
            if begins { K::A::begin(p) } else { K::A::end(p) }
        }
        if begins {
            if self.leader {
                K::A::reset_lines();
            }
            return;
        }
        if self.leader {
            *self.moves.borrow_mut() = K::A::lines();
        }
        if self.line.ended.fetch_add(1, Full) + 1 == self.threads {
            self.space.k.slab.faults.arm(false);
        }
    }
    fn all_ended(&self) -> bool {
        self.line.ended.load(Acquire) >= self.threads
    }
}

impl<K: Kconfig> PortHarness<'_, K>
where
    K::A: Probe,
{
    /// This worker has nothing to do: the others start and end without it.
    fn absent(&self, e: Errno) -> Errno {
        self.start_line();
        self.edge(false);
        e
    }

    #[cold]
    #[inline(never)]
    fn look(&self, now: u64) {
        let mut o = self.over.borrow_mut();
        if o.t_ns.len() < OVER_MAX {
            o.t_ns.push(now.saturating_sub(self.start.get()));
            o.rcu_pending.push(self.space.k.rcu.pending());
            o.slab_pages.push(self.space.k.slab.slab_pages());
        }
        self.next_look.set(now + self.space.cpu.tick.period.min(1_000_000_000));
    }
}

/// What one worker hands back.
struct Part {
    failures: u64,
    tally: Result<Tally, String>,
    seen: Seen,
    over: Over,
    lines: BTreeMap<String, Moves>,
}

/// The words by which the threads of an address space find what `W::setup` made.
type Words = [u64; 2];

/// What of a workload a worker calls. Only these are instantiated for each workload: everything around them once a kernel,
/// so that a build takes minutes and not a quarter of an hour. The one call through a pointer that contains timed code is
/// `drive`, once a sample.
struct Parts<K: Kconfig>
where
    K::A: Probe,
{
    setup: fn(&PortSpace<'_, K>, Seat) -> Result<Words, Errno>,
    drive: fn(&PortHarness<'_, K>, Words, Seat, &Plan) -> Result<Tally, Errno>,
    finish: fn(&PortSpace<'_, K>, Words, Seat) -> Result<(), Errno>,
}

impl<K: Kconfig> Parts<K>
where
    K::A: Probe,
{
    fn of<W: Workload>() -> Self {
        Parts {
            setup: |space, seat| W::setup(space, seat).map(Into::into),
            drive: |h, words, seat, plan| match W::attach(h.space, words.into(), seat) {
                Ok(mut state) => drive::<W, _, _>(h.space, h, &mut state, plan.warm_up_ns, plan.stop),
                Err(e) => Err(h.absent(e)),
            },
            finish: |space, words, seat| W::finish(space, words.into(), seat),
        }
    }
}

/// Runs one sample of `W` on kernel `K`.
pub fn sample<K: Kconfig, W: Workload>(machine: &<K::A as Hardware>::Machine, plan: &Plan) -> Outcome
where
    K::A: Probe,
{
    assert_eq!(plan.threads, machine.nr_cpus(), "the session boots a machine for each number of workers");
    let config = KernelConfig { tick_every: K::A::TICK_EVERY, ..plan.kernel };
    let k = start_kernel::<K>(machine, &config);
    let parts = Parts::<K>::of::<W>();
    sample_on(machine, &k, plan, &config, &|cpu, line, reuse| worker(cpu, &k, line, plan, reuse, &parts))
}

/// What each worker does: its share of the sample, from the mm to the books of its thread.
type Body<'a, A> = &'a (dyn Fn(&Cpu<A>, KRef<Line<A>>, Option<&Reuse<A>>) -> Part + Sync);

fn sample_on<A: Probe>(
    machine: &A::Machine,
    k: &KernelState<A>,
    plan: &Plan,
    config: &KernelConfig,
    body: Body<'_, A>,
) -> Outcome {
    let boot = k.cpu(0);
    // A page of its own for the harness's words: on no line of the kernel's, and on simulated ones.
    let page = alloc_page(&boot, &k.pages);
    A::label(page, PAGE as usize, "harness");
    let line = NonNull::new(page.cast::<Line<A>>()).expect("a page, right after boot");
    // SAFETY: a fresh page, large and aligned enough; freed below, after the last worker.
    let line = unsafe {
        line.as_ptr().write(Line::new());
        KRef::new(line)
    };
    let workers: Vec<Mutex<Option<Part>>> = (0..plan.threads).map(|_| Mutex::new(None)).collect();
    let reuse = Reuse::new(k.slab);
    let counters = run_on_cpus(machine, k, plan.threads, |cpu| {
        let part = body(cpu, line, reuse.as_ref().ok());
        *workers[cpu.id as usize].lock().unwrap_or_else(|e| e.into_inner()) = Some(part);
    });

    let mut out = Outcome { kconfig: describe(config, k), ..Outcome::default() };
    let (mut preempted, mut failures) = (0, 0);
    for (i, p) in workers.into_iter().enumerate() {
        let Some(p) = p.into_inner().unwrap_or_else(|e| e.into_inner()) else {
            out.tallies.push(Err("the worker did not report".into()));
            continue;
        };
        preempted += p.seen.preempted;
        failures += p.failures;
        out.tallies.push(p.tally);
        out.seats.push(Seated {
            cpu: p.seen.cpu.unwrap_or(i as u32),
            node: machine.node_of(i as u32),
            verified: p.seen.cpu.is_some(),
        });
        out.perf.push(p.seen.perf);
        if i == 0 {
            out.over = p.over;
            out.lines = p.lines;
        }
    }
    out.book_preemptions(preempted);
    for (name, slot) in counter_slots() {
        out.counters.insert(name.into(), counters.iter().map(|c| c[slot]).sum());
    }
    k.slab.for_each_stat(|name, n| {
        out.counters.insert(name, n);
    });
    k.slab.kvfree.for_each_stat(|name, n| {
        out.counters.insert(name.into(), n);
    });
    k.pages.for_each_stat(|name, n| {
        out.counters.insert(name.into(), n);
    });
    if k.slab.faults.possible() {
        out.counters.insert("failslab".into(), k.slab.faults.failed_objects());
        out.counters.insert("fail_page_alloc".into(), k.slab.faults.failed_pages());
        out.counters.insert("workload_failures".into(), failures);
    }
    out.counters.insert("rcu_pending".into(), k.rcu.pending());
    out.counters.insert("rcu_pending_high_water".into(), k.rcu.pending_high_water());
    if config.rcu.qs_policy == QsPolicy::Timer && out.counters.get("tick_samples") == Some(&0) {
        out.warnings.push("no timer signal came: ticks were drawn as under preempt-zero".into());
    }
    book_stalls(k.rcu.stalls(), &k.rcu.stall_reports(), &mut out);
    let operations = out.tallies.iter().flatten().map(|t| t.operations_whole_run).sum();
    out.counters.insert("workload_operations".into(), operations);
    out.reuse = reuse_seen(&out, reuse);
    let begin = out.tallies.iter().flatten().map(|t| t.begin).min().unwrap_or(0);
    let end = begin + out.duration_ns();
    out.callback_ns = k.rcu.cb_latency_ns_between(begin, end);
    out.grace_period_ns = k.rcu.gp_length_ns_between(begin, end);
    // SAFETY: our page; every worker has left.
    unsafe { free_pages(&boot, &k.pages, page, 0) };
    book_leaks(&shutdown(&boot, k), &mut out);
    out.errors.extend(balances(&out));
    out.book_failures();
    out
}

/// What the watcher saw, which ends here.
fn reuse_seen<A: Probe>(out: &Outcome, reuse: std::io::Result<Reuse<A>>) -> ReuseSeen {
    let in_span = A::REUSE_IN_SPAN;
    let watched = |t: &Tally| t.operations_warm_up + if in_span { t.operations } else { 0 };
    let mut seen = ReuseSeen {
        over: if in_span { "warm_up_and_span" } else { "warm_up" },
        operations: out.tallies.iter().flatten().map(watched).sum(),
        ..ReuseSeen::default()
    };
    match reuse {
        Ok(r) => seen.caches = r.report().into_iter().map(|(name, c)| (name.to_string(), c)).collect(),
        Err(e) => seen.absent = Some(format!("no address space for the table: {e}")),
    }
    seen
}

/// The kernel configuration in words.
fn describe<A: Hardware>(c: &KernelConfig, k: &KernelState<A>) -> BTreeMap<String, String> {
    let chance = |a: Option<FaultAttr>| a.map_or(0, |a| a.probability).to_string();
    let pairs = [
        ("hz", c.rcu.hz.to_string()),
        ("qs_policy", format!("{:?}", c.rcu.qs_policy)),
        ("rcu_fanout", format!("{}/{}", c.rcu.fanout, c.rcu.fanout_leaf)),
        ("blimit", c.rcu.blimit.to_string()),
        ("qhimark", c.rcu.qhimark.to_string()),
        ("qlowmark", c.rcu.qlowmark.to_string()),
        ("rcu_divisor", c.rcu.rcu_divisor.to_string()),
        ("rcu_expedited", c.rcu.expedited.to_string()),
        ("rcu_normal_wake_from_gp", c.rcu.normal_wake_from_gp.to_string()),
        ("rcu_nocbs", if c.rcu.nocb { "all" } else { "none" }.to_string()),
        ("rcu_lazy", c.rcu.lazy.to_string()),
        ("slab_nr_cpus", k.slab.nr_cpus.to_string()),
        ("slab_freelist_hardened", c.slab.hardened.to_string()),
        ("slab_freelist_random", c.slab.randomized.to_string()),
        ("init_on_alloc", c.slab.init_on_alloc.to_string()),
        ("memcg", c.slab.memcg.to_string()),
        ("slab_debug", if k.slab.shadow.is_some() { "F" } else { "none" }.to_string()),
        ("failslab_per_million", chance(c.slab.failslab)),
        ("fail_page_alloc_per_million", chance(c.slab.fail_page_alloc)),
        ("max_map_count", c.max_map_count.to_string()),
        ("tick_every", c.tick_every.to_string()),
        ("wait", c.wait.name().to_string()),
        ("hung_task_blocker", c.hung_task_blocker.to_string()),
        ("maple_rules", k.maple.rules.name().to_string()),
        ("mmap_lock_offset", c.mmap_lock_offset.to_string()),
        ("slub_stats", SLUB_STATS.to_string()),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
}

/// Every counter of the CPU tokens with its slot: (name, slot).
pub fn counter_slots() -> impl Iterator<Item = (&'static str, usize)> {
    fn of(names: &'static [&'static str], base: usize) -> impl Iterator<Item = (&'static str, usize)> {
        names.iter().enumerate().map(move |(i, n)| (*n, base + i))
    }
    of(LockEvent::NAMES, LockEvent::BASE)
        .chain(of(Saturation::NAMES, Saturation::BASE))
        .chain(of(RcuCounter::NAMES, RcuCounter::BASE))
        .chain(of(RcuExtCounter::NAMES, RcuExtCounter::BASE))
        .chain(of(SoftirqCounter::NAMES, SoftirqCounter::BASE))
        .chain(of(MapleEvent::NAMES, MapleEvent::BASE))
        .chain(of(VmEvent::NAMES, VmEvent::BASE))
        .chain(of(VmaLockEvent::NAMES, VmaLockEvent::BASE))
        .chain(of(SchedCounter::NAMES, SchedCounter::BASE))
        .chain(of(WaitEvent::NAMES, WaitEvent::BASE))
}

/// Stalls are no error of the sample's: a host that takes a CPU away for 21 s makes one. But a reader must know.
fn book_stalls(n: u64, last: &[StallReport], out: &mut Outcome) {
    out.warnings.extend(last.iter().map(|r| r.to_string()));
    if n > last.len() as u64 {
        out.warnings.push(format!("rcu: {} earlier stalls", n - last.len() as u64));
    }
}

fn book_leaks(end: &LeakReport, out: &mut Outcome) {
    for cache in &end.busy {
        out.errors.push(format!("cache {cache}: objects were never freed"));
    }
    if end.pages > 0 {
        out.errors.push(format!("{} pages were never freed", end.pages));
    }
    if end.mms > 0 {
        out.errors.push(format!("{} address spaces were never put", end.mms));
    }
}

/// The books of a kernel that was shut down.
fn balances(out: &Outcome) -> Vec<String> {
    let c = |name: &str| out.counters.get(name).copied().unwrap_or(0);
    let mut bad = Vec::new();
    let mut hold = |what: &str, left: u64, right: u64| {
        if left != right {
            bad.push(format!("{what}: {left} != {right}"));
        }
    };
    hold(
        "pgfault = vma_lock_success + vma_lock_retry + vma_lock_abort",
        c("pgfault"),
        c("vma_lock_success") + c("vma_lock_retry") + c("vma_lock_abort"),
    );
    hold("rcu callbacks queued = invoked", c("rcu_callbacks_queued"), c("rcu_callbacks_invoked"));
    hold("kvfree_rcu.queued = kvfree_rcu.freed", c("kvfree_rcu.queued"), c("kvfree_rcu.freed"));
    hold("vma_alloc = vma_free", c("vma_alloc"), c("vma_free"));
    hold("vma_alloc = vma_reclaim", c("vma_alloc"), c("vma_reclaim"));
    hold("anon_vma_alloc = anon_vma_free", c("anon_vma_alloc"), c("anon_vma_free"));
    hold("anon_vma_chain_alloc = anon_vma_chain_free", c("anon_vma_chain_alloc"), c("anon_vma_chain_free"));
    for sum in ["vma_lock_retry", "vma_lock_abort"] {
        let of = |n: &str| n.strip_prefix(sum).is_some_and(|end| end.starts_with('_'));
        let causes = out.counters.iter().filter(|(n, _)| of(n)).map(|(_, v)| v).sum();
        hold(&format!("{sum} = its causes"), c(sum), causes);
    }
    for side in ["read", "write"] {
        let (taken, bins) = (format!("mmap_lock_{side}"), format!("mmap_lock_{side}_wait_"));
        let waits = out.counters.iter().filter(|(n, _)| n.starts_with(&bins) && !n.ends_with("_ns")).map(|(_, v)| *v);
        let waits: u64 = waits.sum();
        hold(&format!("waits for {taken} beyond the times it was taken"), waits.saturating_sub(c(&taken)), 0);
    }
    hold("conditions that must not happen", c("mm_warn"), 0);
    hold("reference counts that went wrong", Saturation::NAMES.iter().map(|n| c(n)).sum(), 0);
    for (name, r) in &out.reuse.caches {
        let binned = r.first + r.remote + r.bins.iter().sum::<u64>();
        hold(&format!("{name} hand-outs = first + remote + bins"), r.allocs, binned);
    }
    let made: u64 = out.tallies.iter().flatten().map(|t| t.faults_whole_run).sum();
    if out.tallies.iter().all(Result::is_ok) && c("pgfault") < made {
        bad.push(format!("pgfault: {} < {made} faults of the workload", c("pgfault")));
    }
    bad
}

/// What a small dynamically linked program has mapped before it does anything: (address, pages, protection), in the
/// order in which exec and the dynamic linker map it. Without these the tree would be a single node, and every moving
/// break would replace its root. Neighbours differ in protection, so none merge.
const IMAGE: &[(u64, u64, u64)] = &[
    (0x7fff_fffd_e000, 33, VM_READ | VM_WRITE),
    (0x5555_5555_0000, 1, VM_READ),
    (0x5555_5555_1000, 2, VM_READ | VM_EXEC),
    (0x5555_5555_3000, 1, VM_READ),
    (0x5555_5555_4000, 1, VM_READ | VM_WRITE),
    (0x7fff_f7fc_7000, 1, VM_READ),
    (0x7fff_f7fc_8000, 37, VM_READ | VM_EXEC),
    (0x7fff_f7fe_d000, 10, VM_READ),
    (0x7fff_f7ff_b000, 2, VM_READ | VM_WRITE),
    (0x7fff_f7fc_3000, 4, VM_READ | VM_WRITE),
    (0x7fff_f7dc_7000, 38, VM_READ),
    (0x7fff_f7de_d000, 343, VM_READ | VM_EXEC),
    (0x7fff_f7f4_4000, 83, VM_READ),
    (0x7fff_f7f9_8000, 6, VM_READ | VM_WRITE),
    (0x7fff_f7cd_f000, 13, VM_READ),
    (0x7fff_f7ce_c000, 120, VM_READ | VM_EXEC),
    (0x7fff_f7d6_4000, 90, VM_READ),
    (0x7fff_f7dc_0000, 3, VM_READ | VM_WRITE),
    (0x7fff_f7cd_a000, 3, VM_READ | VM_WRITE),
    (0x7fff_f7fb_d000, 2, VM_READ | VM_WRITE),
];

/// Maps [`IMAGE`].
fn process_image<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) -> Result<(), Errno> {
    IMAGE.iter().try_for_each(|&(at, pages, flags)| mm::vm_mmap(cpu, k, mm, Some(at), pages * PAGE, flags).map(drop))
}

fn worker<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    line: KRef<Line<K::A>>,
    plan: &Plan,
    reuse: Option<&Reuse<K::A>>,
    parts: &Parts<K>,
) -> Part
where
    K::A: Probe,
{
    let i = cpu.id;
    let own = plan.mode == Mode::Process;
    let seat = if own { Seat { index: 0, threads: 1 } } else { Seat { index: i, threads: plan.threads } };
    let l = &*line;
    let (mm, shared) = if own || i == 0 {
        let mm = mm::mm_alloc(cpu, k);
        let space = PortSpace::new(cpu, k, mm, plan);
        let shared = process_image(cpu, k, mm).and_then(|()| (parts.setup)(&space, seat));
        if !own {
            l.mm.store(mm.as_ptr().cast(), Relaxed);
            if let Ok(words) = shared {
                l.words[0].store(words[0], Relaxed);
                l.words[1].store(words[1], Relaxed);
            }
            // ORDER: release, meets the acquire of the other workers: they see the mm and the addresses.
            l.setup.store(if shared.is_ok() { 1 } else { 2 }, Release);
        }
        (mm, shared)
    } else {
        let state = smp_cond_load_acquire(&l.setup, |s| s != 0);
        let p = NonNull::new(l.mm.load(Relaxed).cast::<mm::Mm<K>>()).expect("stored before setup");
        let words = [l.words[0].load(Relaxed), l.words[1].load(Relaxed)];
        // SAFETY: worker 0 keeps the mm until every worker has left.
        let mm = unsafe { KRef::new(p) };
        (mm, if state == 1 { Ok(words) } else { Err(Errno::ENOMEM) })
    };
    let space = PortSpace::new(cpu, k, mm, plan);
    let h = PortHarness {
        space: &space,
        line,
        threads: plan.threads,
        leader: i == 0,
        start: Cell::new(0),
        over: RefCell::new(Over {
            t_ns: Vec::with_capacity(OVER_MAX),
            rcu_pending: Vec::with_capacity(OVER_MAX),
            slab_pages: Vec::with_capacity(OVER_MAX),
        }),
        next_look: Cell::new(0),
        probe: RefCell::new(Some(K::A::open())),
        moves: RefCell::default(),
        reuse,
    };
    let mut tally = match shared {
        Ok(words) => (parts.drive)(&h, words, seat, plan),
        Err(e) => Err(h.absent(e)),
    }
    .map_err(|e| e.to_string());
    space.end_other();

    // The last user of an mm tears it down: its owner, or worker 0 when all others have left.
    l.left.fetch_add(1, Full);
    if own || i == 0 {
        if !own {
            tick::idle_loop(cpu, || l.left.load(Acquire) == plan.threads);
        }
        let finished = shared.and_then(|words| (parts.finish)(&space, words, seat));
        if let (Ok(_), Err(e)) = (&tally, finished) {
            tally = Err(format!("finishing: {e}"));
        }
        mm::mmput(cpu, k, mm);
    }
    let seen = h.probe.borrow_mut().take().map(K::A::read).unwrap_or_default();
    Part { failures: space.failures.get(), tally, seen, over: h.over.take(), lines: h.moves.take() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_become_warnings_of_the_sample() {
        let mut out = Outcome::default();
        book_stalls(0, &[], &mut out);
        assert!(out.warnings.is_empty());
        book_stalls(3, &[StallReport::for_test(1), StallReport::for_test(6)], &mut out);
        assert_eq!(out.warnings.len(), 3);
        assert!(out.warnings[1].starts_with("rcu: self-detected stall on CPU 6 (leaf 0-0, "), "{}", out.warnings[1]);
        assert!(out.warnings[2].contains("1 earlier") && out.errors.is_empty());
    }
}
