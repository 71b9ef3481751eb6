// SPDX-License-Identifier: GPL-2.0-only
//! The port as a [`Backend`]: one kernel, one worker's token, an mm for each address space of the trace.
//!
//! Every call ends at the boundary to user mode, where ticks are noticed and callbacks run, as a workload's do. Its time is
//! from before the call to behind the boundary.
//!
//! custom: an execve is a new, empty mm; exec's own mappings are in no log. All threads of the trace run on one worker,
//! in the order of the trace: who waits for whom cannot be seen here, only what is allocated, freed and written.

use super::normalise::Trace;
use super::replay::{Backend, Fail, METERS, Meter, Options, Outcome, Touch, replay};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Hardware};
use crate::cpu::stat::SLOTS;
use crate::cpu::{Cpu, Errno, tick};
use crate::init::{Kernel, KernelConfig, run_on_cpus, shutdown, start_kernel};
use crate::maple_tree::MapleEvent;
use crate::mm::syscall::{Process, syscall};
use crate::mm::task_mmu::vma_infos;
use crate::mm::{self, Call, File, FileSpec, Kconfig, MmPtr, VmEvent, VmaInfo};
use crate::rcu::RcuCounter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

/// What to replay, how often, on what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers; each replays the whole trace in address spaces of its own, all at the same time.
    pub threads: u32,
    /// Replays of each worker, one after the other.
    pub repeat: u32,
    /// Pages to write.
    pub touch: Touch,
    /// Whether to keep results and maps.
    pub keep: bool,
    /// The kernel to boot.
    pub kernel: KernelConfig,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Sums over workers and replays; differences are those of the first worker's first replay.
    pub outcome: Outcome,
    /// Counters of all workers and kernel threads.
    pub counters: BTreeMap<String, u64>,
    /// From the first worker's start to the last one's end, ns.
    pub wall_ns: u64,
    /// What was not right: leaks, warnings, books that do not balance.
    pub errors: Vec<String>,
}

struct PortBackend<'a, K: Kconfig> {
    cpu: &'a Cpu<K::A>,
    k: &'a Kernel<K>,
    spaces: HashMap<u32, MmPtr<K>>,
    files: Vec<KRef<File<K::A>>>,
}

impl<'a, K: Kconfig> PortBackend<'a, K> {
    fn new(cpu: &'a Cpu<K::A>, k: &'a Kernel<K>, trace: &Trace) -> Result<Self, String> {
        let mut b = PortBackend { cpu, k, spaces: HashMap::new(), files: Vec::new() };
        for f in &trace.files {
            let file = mm::file_open(cpu, k, &FileSpec::regular(f.len, 0)).map_err(|e| format!("{}: {e}", f.name))?;
            b.files.push(file);
        }
        Ok(b)
    }

    fn close(self) {
        for mm in self.spaces.values() {
            mm::mmput(self.cpu, self.k, *mm);
        }
        for f in self.files {
            mm::fput(self.cpu, self.k, f);
        }
    }

    fn read(&self) -> [u64; METERS.len()] {
        let c = &self.cpu.counters;
        [
            c.get(VmEvent::VmaAlloc),
            c.get(VmEvent::VmaFree),
            c.get(MapleEvent::NodeAlloc),
            c.get(MapleEvent::NodeDead),
            c.get(RcuCounter::CallbacksQueued),
            c.get(VmEvent::VmaLockRetry),
            c.get(VmEvent::VmaLockAbort),
            c.get(VmEvent::Pgfault),
        ]
    }

    /// Carries `f` out and measures it.
    fn metered<T>(&mut self, meter: &mut Meter, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.read();
        let start = K::A::now();
        let r = f(self);
        tick::exit_to_user_mode(self.cpu);
        meter.ns += K::A::now() - start;
        for ((m, a), b) in meter.events.iter_mut().zip(self.read()).zip(before) {
            *m += a - b;
        }
        r
    }

    /// As [`syscall`], with the trace's files.
    #[inline]
    fn perform(&mut self, mm: MmPtr<K>, call: &Call) -> Result<u64, Errno> {
        let mut p = Process::new(mm);
        p.files = std::mem::take(&mut self.files);
        let r = syscall(self.cpu, self.k, &mut p, call);
        self.files = p.files;
        r
    }
}

impl<K: Kconfig> Backend for PortBackend<'_, K> {
    fn new_space(&mut self, mm: u32) -> Result<(), String> {
        let new = mm::fork::try_mm_alloc(self.cpu, self.k).ok_or("out of memory for an mm_struct")?;
        self.spaces.insert(mm, new);
        Ok(())
    }

    fn brk_start(&mut self, mm: u32, at: u64) -> Result<(), String> {
        let mm = self.spaces[&mm];
        mm.start_brk.set(at);
        mm.brk.set(at);
        Ok(())
    }

    fn fork(&mut self, mm: u32, child: u32, meter: &mut Meter) -> Result<(), Fail> {
        let mm = *self.spaces.get(&mm).ok_or(Fail::Unsupported)?;
        let r = self.metered(meter, |b| mm::sys_fork(b.cpu, b.k, mm));
        self.spaces.insert(child, r.map_err(|e| Fail::Errno(e.to_string()))?);
        Ok(())
    }

    fn end(&mut self, mm: u32, meter: &mut Meter) -> Result<(), String> {
        if let Some(mm) = self.spaces.remove(&mm) {
            self.metered(meter, |b| mm::mmput(b.cpu, b.k, mm));
        }
        Ok(())
    }

    fn call(&mut self, mm: u32, call: &Call, meter: &mut Meter) -> Result<u64, Fail> {
        let mm = *self.spaces.get(&mm).ok_or(Fail::Unsupported)?;
        self.metered(meter, |b| b.perform(mm, call)).map_err(|e| match e {
            Errno::ENOSYS => Fail::Unsupported,
            e => Fail::Errno(e.to_string()),
        })
    }

    fn maps(&mut self, mm: u32) -> Result<Vec<VmaInfo>, String> {
        let mm = *self.spaces.get(&mm).ok_or("no such address space")?;
        let mut all = vma_infos(self.cpu, self.k, mm, &self.files);
        for v in &mut all {
            // Shared anonymous memory is no file of the trace.
            v.file = v.file.filter(|f| (*f as usize) < self.files.len());
        }
        Ok(all)
    }

    fn smaps(&mut self, mm: u32) -> Result<Vec<VmaInfo>, String> {
        self.maps(mm)
    }

    fn map_count(&mut self, mm: u32) -> u32 {
        self.spaces.get(&mm).map_or(0, |m| m.map_count.get() as u32)
    }

    fn has(&self, mm: u32) -> bool {
        self.spaces.contains_key(&mm)
    }
}

/// Adds the sums of `o` to `sum`.
fn add(sum: &mut Outcome, o: Outcome) {
    for (name, k) in o.kinds {
        let s = sum.kinds.entry(name).or_default();
        s.calls += k.calls;
        s.errors_expected += k.errors_expected;
        s.errors_got += k.errors_got;
        s.unsupported += k.unsupported;
        s.meter.ns += k.meter.ns;
        for (a, b) in s.meter.events.iter_mut().zip(k.meter.events) {
            *a += b;
        }
    }
    sum.peak_map_count = sum.peak_map_count.max(o.peak_map_count);
    sum.bad_touches += o.bad_touches;
    if sum.stopped.is_none() {
        sum.stopped = o.stopped;
    }
}

/// Boots a kernel on `machine`, replays `trace` on it as `plan` says, shuts it down and closes the books.
pub fn run<K: Kconfig>(machine: &<K::A as Hardware>::Machine, trace: &Trace, plan: &Plan) -> Replayed {
    let k = start_kernel::<K>(machine, &plan.kernel);
    let boot = k.cpu(0);
    let parts: Vec<Mutex<Option<Outcome>>> = (0..plan.threads).map(|_| Mutex::new(None)).collect();
    let options = Options { touch: plan.touch, keep: plan.keep };
    let start = K::A::now();
    let counters = run_on_cpus(machine, &k, plan.threads, |cpu| {
        let mut sum: Option<Outcome> = None;
        for _ in 0..plan.repeat {
            let o = match PortBackend::new(cpu, &k, trace) {
                Ok(mut b) => {
                    let o = replay(trace, &mut b, options);
                    b.close();
                    o
                }
                Err(e) => Outcome { stopped: Some(e), ..Outcome::default() },
            };
            match &mut sum {
                None => sum = Some(o),
                Some(s) => add(s, o),
            }
        }
        *parts[cpu.id as usize].lock().unwrap_or_else(|e| e.into_inner()) = sum;
    });
    let mut out = Replayed { wall_ns: K::A::now() - start, ..Replayed::default() };
    for (i, p) in parts.into_iter().enumerate() {
        match p.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(o) if i == 0 => out.outcome = o,
            Some(o) => add(&mut out.outcome, o),
            None => out.errors.push(format!("worker {i} did not report")),
        }
    }
    out.counters = named(&counters);
    k.slab.kvfree.for_each_stat(|name, n| {
        out.counters.insert(name.into(), n);
    });
    let left = shutdown(&boot, &k);
    if !left.is_clean() {
        out.errors.push(format!("left behind at the end: {left:?}"));
    }
    out.errors.extend(balances(&out.counters));
    out
}

fn named(counters: &[[u64; SLOTS]]) -> BTreeMap<String, u64> {
    fn of(names: &'static [&'static str], base: usize) -> impl Iterator<Item = (&'static str, usize)> {
        names.iter().enumerate().map(move |(i, n)| (*n, base + i))
    }
    of(VmEvent::NAMES, VmEvent::BASE)
        .chain(of(MapleEvent::NAMES, MapleEvent::BASE))
        .chain(of(RcuCounter::NAMES, RcuCounter::BASE))
        .map(|(name, slot)| (name.to_string(), counters.iter().map(|c| c[slot]).sum()))
        .collect()
}

/// Each VMA that was allocated was freed, each callback that was queued was called, each fault ended one way.
fn balances(counters: &BTreeMap<String, u64>) -> Vec<String> {
    let c = |name: &str| counters.get(name).copied().unwrap_or(0);
    let pairs = [
        ("vma_alloc = vma_free", c("vma_alloc"), c("vma_free")),
        ("vma_alloc = vma_reclaim", c("vma_alloc"), c("vma_reclaim")),
        ("anon_vma_alloc = anon_vma_free", c("anon_vma_alloc"), c("anon_vma_free")),
        ("anon_vma_chain_alloc = anon_vma_chain_free", c("anon_vma_chain_alloc"), c("anon_vma_chain_free")),
        ("rcu callbacks queued = invoked", c("rcu_callbacks_queued"), c("rcu_callbacks_invoked")),
        ("kvfree_rcu.queued = kvfree_rcu.freed", c("kvfree_rcu.queued"), c("kvfree_rcu.freed")),
        (
            "pgfault = vma_lock_success + vma_lock_retry + vma_lock_abort",
            c("pgfault"),
            c("vma_lock_success") + c("vma_lock_retry") + c("vma_lock_abort"),
        ),
        ("vma_lock_retry = its causes", c("vma_lock_retry"), c("vma_lock_retry_anon_vma") + c("vma_lock_retry_io")),
        ("conditions that must not happen", c("mm_warn"), 0),
    ];
    pairs.iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("{what}: {a} != {b}")).collect()
}
