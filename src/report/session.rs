// SPDX-License-Identifier: GPL-2.0-only
//! One run: a plan, the machines it needs, and a record for every sample, in the plan's order. The command `run` and
//! the benches drive this same code.

use crate::arch::arena::ARENA_SIZE;
use crate::arch::native::{NativeMachine, OsCpu};
use crate::arch::sim::{SimConfig, SimMachine};
use crate::arch::{Native, Sim};
use crate::cpu::{nr_kthreads, splitmix64};
use crate::host::{Host, PinKind, Slot};
use crate::init::KernelConfig;
use crate::measure::outcome::{Outcome, ReuseSeen, Seated};
use crate::measure::plan::{Cell, Config, matrix};
use crate::measure::run::Stop;
use crate::measure::{kernel, perf, port};
use crate::mm::variant::Variant;
use crate::report::record::{
    HostId, LineMoves, OwnEvents, PerThread, PerfCell, Place, RcuTimes, Reuse, ReuseCache, Run, SCHEMA, Sample, Series,
};
use crate::report::store::{Appender, Key};
use crate::slab::ReuseCount;
use crate::trace::Program;
use crate::workload::{About, Mode};
use crate::{with_variant, with_workload};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where a run happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// The port on pinned threads.
    Native,
    /// The port on virtual CPUs.
    Sim,
    /// The host's own kernel.
    Kernel,
}

impl World {
    /// Every world, by slug.
    pub const ALL: [(&'static str, World); 3] =
        [("native", World::Native), ("sim", World::Sim), ("kernel", World::Kernel)];

    /// Slug in commands and records.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, w)| *w == self).map_or("", |(n, _)| n)
    }
}

/// What a run is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Variants to interleave; empty in the kernel world.
    pub variants: Vec<Variant>,
    /// Workloads.
    pub workloads: Vec<&'static About>,
    /// Modes; empty: each workload's own.
    pub modes: Vec<Mode>,
    /// Worker counts.
    pub threads: Vec<u32>,
    /// Where.
    pub world: World,
    /// The host.
    pub host: Host,
    /// Which CPUs, in which order.
    pub pin: PinKind,
    /// Trials.
    pub trials: u32,
    /// End of each thread's span.
    pub stop: Stop,
    /// Warm-up before it, ns.
    pub warm_up_ns: u64,
    /// Seed of order and randomness.
    pub seed: u64,
    /// The kernel to boot (CPU count and seed are set per sample).
    pub kernel: KernelConfig,
    /// The programs of workloads `trace:FILE`, by their names in `workloads`.
    pub programs: BTreeMap<&'static str, Arc<Program>>,
}

/// A machine to boot the port on.
pub enum Machine {
    /// Pinned threads.
    Native(NativeMachine),
    /// Virtual CPUs.
    Sim(Box<SimMachine>),
}

/// A sample of `workload` on the port, built as `variant` says and configured by it: from names to the one monomorphised
/// function.
pub fn sample(machine: &Machine, variant: &Variant, workload: &str, plan: &port::Plan) -> Outcome {
    match machine {
        Machine::Native(m) => {
            with_variant!(variant, Native, K => with_workload!(workload, W => port::sample::<K, W>(m, plan)))
        }
        Machine::Sim(m) => {
            with_variant!(variant, Sim, K => with_workload!(workload, W => port::sample::<K, W>(m, plan)))
        }
    }
}

/// A run under way.
pub struct Session {
    request: Request,
    cells: Vec<Cell>,
    machines: BTreeMap<u32, Machine>,
    id: String,
}

/// Memory a worker may need at most: pages it touches, page tables, and what waits for a grace period (brk1 under
/// call_rcu frees a few objects of 256 bytes every half microsecond for some tens of milliseconds).
const BYTES_PER_WORKER: usize = 192 << 20;
/// The same natively, where the host may keep the grace-period thread off its CPUs for some tenths of a second.
const NATIVE_BYTES_PER_WORKER: usize = 512 << 20;

impl Session {
    /// Checks the request against the host.
    ///
    /// # Errors
    /// One line: the argument, its value, what is accepted.
    pub fn new(request: Request) -> Result<Session, String> {
        let most = request.threads.iter().copied().max().unwrap_or(0);
        if request.workloads.is_empty() || request.threads.is_empty() || request.trials == 0 {
            return Err("nothing to measure: workloads, threads and trials must each have one at least".into());
        }
        crate::host::plan::plan(&request.host.topology, &request.pin, most as usize)
            .map_err(|e| format!("--threads {most}: {e}"))?;
        if request.world != World::Sim && !request.host.is_this {
            return Err(format!(
                "--host {}: the {} world runs on this machine only; use --host this, or --world sim",
                request.host.id.name,
                request.world.name()
            ));
        }
        if request.world == World::Kernel && most as usize > kernel::MAX_WORKERS {
            return Err(format!("--threads {most}: the kernel world takes at most {}", kernel::MAX_WORKERS));
        }
        let mut configs = Vec::new();
        for w in &request.workloads {
            let own = [w.mode];
            let modes = if request.modes.is_empty() { &own[..] } else { &request.modes[..] };
            for &mode in modes {
                for &threads in &request.threads {
                    configs.push(Config { workload: w.name, mode, threads });
                }
            }
        }
        let variants = if request.world == World::Kernel { 1 } else { request.variants.len() };
        let cells = matrix(variants, &configs, request.trials, request.seed);
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let id = format!("{:016x}", splitmix64(started ^ u64::from(std::process::id())));
        Ok(Session { request, cells, machines: BTreeMap::new(), id })
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The samples to take, in order.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Name of the variant of a cell, as records carry it.
    pub fn variant_name(&self, cell: &Cell) -> String {
        match self.request.world {
            World::Kernel => self.request.host.id.kernel.clone(),
            _ => self.request.variants[cell.variant].name.clone(),
        }
    }

    /// The key under which a cell's sample is on file.
    pub fn key(&self, cell: &Cell) -> Key {
        Key {
            variant: self.variant_name(cell),
            workload: cell.config.workload.into(),
            mode: cell.config.mode.name().into(),
            world: self.request.world.name().into(),
            threads: cell.config.threads,
            trial: cell.trial,
            seed: self.request.seed,
            host: self.request.host.id.fingerprint.clone(),
        }
    }

    /// About how long a sample takes, s: for estimates before the first is done.
    pub fn guess_s(&self) -> f64 {
        let span = match self.request.stop {
            Stop::After(ns) => ns,
            Stop::Operations(_) => 1_000_000_000,
        };
        (span + self.request.warm_up_ns) as f64 / 1e9 + 0.1
    }

    /// Takes one sample. What goes wrong inside is an error row, not an error.
    pub fn measure(&mut self, cell: &Cell) -> Sample {
        let wall = Instant::now();
        let started_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let env0 = moment();
        let outcome = self.outcome(cell);
        let mut env = env0;
        env.extend(moment().into_iter().map(|(k, v)| (k + "_after", v)));
        let run = Run {
            started_ms,
            wall_ns: wall.elapsed().as_nanos() as u64,
            pid: std::process::id(),
            id: self.id.clone(),
            env,
        };
        self.sample(cell, outcome, run)
    }

    fn slots(&self, threads: u32) -> Result<Vec<Slot>, String> {
        crate::host::plan::plan(&self.request.host.topology, &self.request.pin, threads as usize)
            .map_err(|e| e.to_string())
    }

    fn outcome(&mut self, cell: &Cell) -> Outcome {
        let r = match self.request.world {
            World::Kernel => self.kernel(cell),
            _ => self.port(cell),
        };
        r.unwrap_or_else(|e| Outcome { errors: vec![e], ..Outcome::default() })
    }

    fn kernel(&self, cell: &Cell) -> Result<Outcome, String> {
        let slots = self.slots(cell.config.threads)?;
        let cpus: Vec<u32> = slots.iter().map(|s| s.cpu).collect();
        let (warm, stop) = (self.request.warm_up_ns, self.request.stop);
        let program = self.request.programs.get(cell.config.workload).map(|p| &**p);
        let s = with_workload!(cell.config.workload, W => {
            kernel::sample::<W>(&cpus, cell.config.mode, warm, stop, cell.seed, program)
        })
        .map_err(|e| format!("kernel world: {e}"))?;
        let mut out = Outcome { errors: kernel::balances(&s), ..Outcome::default() };
        out.book_preemptions(s.preempted.iter().sum());
        for (slot, (cpu, verified)) in slots.iter().zip(&s.placement) {
            out.seats.push(Seated { cpu: *cpu, node: slot.node, verified: *verified });
        }
        out.counters.insert("minor_faults".into(), s.minor_faults.iter().sum());
        out.kconfig = running_kernel();
        out.reuse = match &cpus[..] {
            [cpu] => with_workload!(cell.config.workload, W => kernel::traced::<W>(*cpu, warm, cell.seed, program)),
            _ => ReuseSeen { absent: Some("taken with one worker only".into()), ..ReuseSeen::default() },
        };
        if let Some(lost) = out.reuse.traced.as_ref().map(|t| t.lost).filter(|n| *n > 0) {
            out.warnings
                .push(format!("{lost} records of the tracepoints were lost: counts and distances of reuse are wrong"));
        }
        out.tallies = s.tallies;
        out.perf = s.perf;
        out.book_failures();
        Ok(out)
    }

    fn port(&mut self, cell: &Cell) -> Result<Outcome, String> {
        let threads = cell.config.threads;
        if !self.machines.contains_key(&threads) {
            let m = self.boot_machine(threads)?;
            self.machines.insert(threads, m);
        }
        let mut kernel = self.request.kernel;
        kernel.seed = cell.seed;
        kernel.slab.seed = cell.seed;
        let variant = &self.request.variants[cell.variant];
        kernel = variant.configure(kernel);
        // Slab orders follow the CPUs of the machine, not the workers of a sample.
        kernel.geometry_cpus = self.request.host.id.cpus;
        let plan = port::Plan {
            threads,
            mode: cell.config.mode,
            warm_up_ns: self.request.warm_up_ns,
            stop: self.request.stop,
            kernel,
            program: self.request.programs.get(cell.config.workload).cloned(),
        };
        let mut out = sample(&self.machines[&threads], variant, cell.config.workload, &plan);
        let slots = self.slots(threads)?;
        for (i, (seat, slot)) in out.seats.iter_mut().zip(&slots).enumerate() {
            match &self.machines[&threads] {
                Machine::Native(m) => {
                    let held = seat.verified && seat.cpu == slot.cpu;
                    if let Err(e) = &m.pinned()[i] {
                        out.errors.push(format!("worker {i} is not pinned: {e}"));
                    } else if !held {
                        out.errors.push(format!("worker {i} left CPU {} for CPU {}", slot.cpu, seat.cpu));
                    }
                    *seat = Seated { cpu: seat.cpu, node: slot.node, verified: held && m.pinned()[i].is_ok() };
                }
                Machine::Sim(_) => *seat = Seated { cpu: slot.cpu, node: slot.node, verified: true },
            }
        }
        Ok(out)
    }

    fn boot_machine(&self, threads: u32) -> Result<Machine, String> {
        let slots = self.slots(threads)?;
        let topo = &self.request.host.topology;
        let mut nodes: Vec<u32> = slots.iter().map(|s| s.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let row = |n: u32| topo.nodes.iter().position(|x| x.id == n).unwrap_or(0);
        let distance = |a: u32, b: u32| topo.distance.rows[row(a)][row(b)];
        let most = nodes.iter().map(|n| slots.iter().filter(|s| s.node == *n).count()).max().unwrap_or(1);
        let share = (ARENA_SIZE / 2) / nodes.len();
        let native = self.request.world == World::Native;
        let each = if native { NATIVE_BYTES_PER_WORKER } else { BYTES_PER_WORKER };
        let bytes = (each * most + (64 << 20)).min(share);
        match self.request.world {
            World::Native => {
                let bytes = bytes.min(available_memory() / 2 / nodes.len());
                let cpus: Vec<OsCpu> = slots.iter().map(|s| OsCpu { cpu: s.cpu, node: s.node }).collect();
                NativeMachine::new(&cpus, bytes, distance)
                    .map(Machine::Native)
                    .map_err(|e| format!("the machine's memory or threads: {e}"))
            }
            _ => {
                let dense = |n: u32| nodes.iter().position(|x| *x == n).unwrap_or(0) as u32;
                let mut cfg = SimConfig::nodes(nodes.len() as u32, 1);
                cfg.cpus = slots.iter().map(|s| dense(s.node)).collect();
                cfg.distance = nodes
                    .iter()
                    .flat_map(|a| nodes.iter().map(move |b| (*a, *b)))
                    .map(|(a, b)| distance(a, b))
                    .collect();
                cfg.bytes_per_node = bytes;
                cfg.kernel_threads =
                    nr_kthreads(slots.len() as u32, self.request.kernel.rcu.nocb).max(cfg.kernel_threads);
                SimMachine::new(cfg)
                    .map(|m| Machine::Sim(Box::new(m)))
                    .map_err(|e| format!("the simulated machine: {e}"))
            }
        }
    }

    fn sample(&self, cell: &Cell, mut out: Outcome, run: Run) -> Sample {
        let variant = (self.request.world != World::Kernel).then(|| &self.request.variants[cell.variant]);
        let ok = || out.tallies.iter().flatten();
        let per_thread: Vec<PerThread> = out
            .tallies
            .iter()
            .map(|t| t.as_ref().copied().unwrap_or_default())
            .map(|t| PerThread {
                operations: t.operations,
                faults: t.faults,
                duration_ns: (t.end - t.begin).saturating_sub(t.excluded_ns),
                excluded_ns: t.excluded_ns,
                cpu_ns: t.cpu_ns,
                softirq_ns: t.softirq_ns,
            })
            .collect();
        let mut perf: BTreeMap<String, PerfCell> = BTreeMap::new();
        for (name, r) in perf::merge(&out.perf) {
            perf.insert(name, cell_of(r));
        }
        if out.perf.iter().all(BTreeMap::is_empty) {
            let reason = match self.request.world {
                World::Sim => "simulated: no PMU exists",
                World::Native | World::Kernel => "not opened",
            };
            perf.insert("cycles".into(), PerfCell::Absent { reason: reason.into() });
        }
        if out.seats.iter().any(|s| !s.verified) {
            out.warnings.push("placement could not be verified".into());
        }
        out.warnings.extend(self.request.host.warnings.iter().cloned());
        out.warnings.extend(self.request.programs.get(cell.config.workload).map(|p| p.about()));
        out.kconfig.insert("pin".into(), self.request.pin.to_string());
        out.kconfig.insert("rustc".into(), env!("FAULTLINE_RUSTC").into());
        let id = &self.request.host.id;
        Sample {
            schema: SCHEMA,
            kind: "sample".into(),
            variant: self.variant_name(cell),
            protocol: variant.map(|v| v.protocol.to_string()),
            cache: variant.map(|v| v.cache.to_string()),
            allocator: variant.map(|v| v.allocator.to_string()),
            workload: cell.config.workload.into(),
            mode: cell.config.mode.name().into(),
            world: self.request.world.name().into(),
            threads: cell.config.threads,
            trial: cell.trial,
            seed: self.request.seed,
            order: cell.order,
            duration_ns: out.duration_ns(),
            operations: ok().map(|t| t.operations).sum(),
            faults: ok().map(|t| t.faults).sum(),
            cpu_ns: ok().map(|t| t.cpu_ns).sum(),
            per_thread,
            counters: out.counters,
            perf,
            lines: out
                .lines
                .into_iter()
                .map(|(k, m)| {
                    let moves = LineMoves {
                        accesses: m.accesses,
                        moved_near: m.moved_near,
                        moved_far: m.moved_far,
                        upgrades: m.upgrades,
                        memory: m.memory,
                    };
                    (k, moves)
                })
                .collect(),
            series: Series { t_ns: out.over.t_ns, rcu_pending: out.over.rcu_pending, slab_pages: out.over.slab_pages },
            reuse: reuse_of(out.reuse),
            rcu_times: RcuTimes {
                callbacks: out.callback_ns.len() as u64,
                callback_ns: quantiles(out.callback_ns),
                grace_periods: out.grace_period_ns.len() as u64,
                grace_period_ns: quantiles(out.grace_period_ns),
            },
            placement: out.seats.iter().map(|s| Place { cpu: s.cpu, node: s.node, verified: s.verified }).collect(),
            host: HostId {
                name: id.name.clone(),
                cpu_model: id.cpu_model.clone(),
                cpus: id.cpus,
                nodes: id.nodes,
                kernel: id.kernel.clone(),
                fingerprint: id.fingerprint.clone(),
                virtualised: id.virtualised,
            },
            kconfig: out.kconfig,
            tool: env!("CARGO_PKG_VERSION").into(),
            commit: env!("FAULTLINE_COMMIT").into(),
            verdict: variant.map(|v| v.verdict.name().to_string()),
            errors: out.errors,
            warnings: out.warnings,
            run,
        }
    }
}

/// Order statistics at 0, 2.5 .. 100 percent; nothing of nothing.
fn quantiles(mut v: Vec<u64>) -> Vec<u64> {
    v.sort_unstable();
    let Some(last) = v.len().checked_sub(1) else { return Vec::new() };
    (0..=40).map(|q| v[(q * last + 20) / 40]).collect()
}

fn reuse_of(seen: ReuseSeen) -> Reuse {
    let lost = seen.traced.as_ref().map(|t| t.lost);
    let traced = seen.traced.unwrap_or_default();
    let own = |name: &str| traced.own.get(name).map(|&(allocs, frees)| OwnEvents { allocs, frees });
    let cache = |name: &str, c: ReuseCount| ReuseCache {
        allocs: c.allocs,
        frees: c.frees,
        bins: c.bins,
        again: c.again,
        remote: c.remote,
        first: c.first,
        distinct: c.distinct,
        own: own(name),
    };
    Reuse {
        over: seen.over.into(),
        operations: seen.operations,
        caches: seen.caches.into_iter().map(|(name, c)| (name.clone(), cache(&name, c))).collect(),
        lost,
        absent: seen.absent,
    }
}

fn cell_of(r: perf::Reading) -> PerfCell {
    match r {
        perf::Reading::Counted { value, enabled, running } => PerfCell::Counted { value, enabled, running },
        perf::Reading::Absent { reason } => PerfCell::Absent { reason },
    }
}

/// Samples taken block by block, for callers that ask for one variant after the other: whoever first asks for a
/// configuration's k-th trial has the whole block measured, every variant once in the plan's shuffled order; the
/// others are handed their sample of the same block.
pub struct Blocks {
    session: Session,
    out: Appender,
    taken: BTreeMap<(usize, u32, u32), Sample>,
}

impl Blocks {
    /// A run whose samples are appended to `out`.
    ///
    /// # Errors
    /// As [`Session::new`] and [`Appender::open`].
    pub fn new(request: Request, out: &Path) -> Result<Blocks, String> {
        let session = Session::new(request)?;
        let out = Appender::open(out).map_err(|e| e.to_string())?;
        Ok(Blocks { session, out, taken: BTreeMap::new() })
    }

    /// The run.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The sample of `variant` in the block of `workload` x `threads` and `trial`.
    ///
    /// # Errors
    /// A disk that does not take the record; a cell that is not in the plan; an error row.
    pub fn sample(&mut self, workload: &str, threads: u32, variant: usize, trial: u32) -> Result<&Sample, String> {
        let index = crate::workload::LIST.iter().position(|w| w.name == workload).unwrap_or(usize::MAX);
        let block: Vec<Cell> = self
            .session
            .cells()
            .iter()
            .filter(|c| c.config.workload == workload && c.config.threads == threads && c.trial == trial)
            .cloned()
            .collect();
        for cell in block {
            // The key is unique: the benches use one mode a workload.
            let key = (index * 64 + cell.variant, threads, trial);
            if !self.taken.contains_key(&key) {
                let s = self.session.measure(&cell);
                self.out.append(&s).map_err(|e| e.to_string())?;
                self.taken.insert(key, s);
            }
        }
        let s = self
            .taken
            .get(&(index * 64 + variant, threads, trial))
            .ok_or_else(|| format!("{workload} x{threads}, trial {trial} is not in the plan"))?;
        match s.errors.first() {
            None => Ok(s),
            Some(e) => Err(format!("{} {workload} x{threads}: {e}", s.variant)),
        }
    }
}

/// Bytes that can be had without swapping.
fn available_memory() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<usize>().ok());
    kib.map_or(1 << 30, |k| k * 1024)
}

/// What the running kernel tells about the question.
fn running_kernel() -> BTreeMap<String, String> {
    let mut m = BTreeMap::new();
    let mut put = |k: &str, path: &str| {
        if let Ok(t) = std::fs::read_to_string(path) {
            m.insert(k.to_string(), t.trim().to_string());
        }
    };
    put("vm_area_struct.destroy_by_rcu", "/sys/kernel/slab/vm_area_struct/destroy_by_rcu");
    put("vm_area_struct.object_size", "/sys/kernel/slab/vm_area_struct/object_size");
    put("transparent_hugepage", "/sys/kernel/mm/transparent_hugepage/enabled");
    put("cmdline", "/proc/cmdline");
    m
}

/// Load and steal at this moment.
fn moment() -> BTreeMap<String, String> {
    let mut m = BTreeMap::new();
    if let Ok(t) = std::fs::read_to_string("/proc/loadavg") {
        m.insert("loadavg".into(), t.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    }
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(steal) = stat.lines().next().and_then(|l| l.split_whitespace().nth(8)) {
        m.insert("steal_ticks".into(), steal.into());
    }
    m
}
