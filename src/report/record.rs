// SPDX-License-Identifier: GPL-2.0-only
//! The on-disk row: one JSON object a line, appended and synced per sample.
//!
//! `docs/record.md` describes every field. Rows are only ever appended; a reader accepts every schema up to
//! [`SCHEMA`]. What differs between two identical simulated runs (start time, wall time, process id) sits in
//! [`Run`], so that the rest can be compared byte for byte; all maps are ordered for the same reason.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the row layout written by this build.
pub const SCHEMA: u32 = 1;

/// One measured cell: variant x workload x threads x trial in one world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Layout version; see [`SCHEMA`].
    pub schema: u32,
    /// Always `"sample"`.
    pub kind: String,
    /// Name as given to `--variant`: a named kernel (`v6.12`) or `PROTOCOL+CACHE@ALLOCATOR`; in the kernel world the
    /// running kernel's release; imported rows carry the foreign kernel name.
    pub variant: String,
    /// Protocol slug (`rwsem_separate`), absent in the kernel world.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Cache slug (`call_rcu`), absent in the kernel world.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Allocator slug (`slub`), absent in the kernel world.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator: Option<String>,
    /// Workload slug (`brk1`).
    pub workload: String,
    /// `thread` (one mm for all) or `process` (an mm per CPU).
    pub mode: String,
    /// `native`, `sim` or `kernel`.
    pub world: String,
    /// Worker threads = CPUs used.
    pub threads: u32,
    /// Trial number from 0.
    pub trial: u32,
    /// Seed of the run; order and randomness follow from it.
    pub seed: u64,
    /// Position of this sample in the shuffled order of its run, from 0.
    pub order: u32,
    /// Measured span in ns: from the common start to the common stop (virtual time in `sim`).
    pub duration_ns: u64,
    /// Operations of all threads within the span (a workload says what one is).
    pub operations: u64,
    /// User faults of all threads within the span.
    pub faults: u64,
    /// CPU time of all threads within the span, ns: user + system in the kernel world, thread time elsewhere.
    pub cpu_ns: u64,
    /// Per-thread figures, by worker index.
    pub per_thread: Vec<PerThread>,
    /// Counters with kernel names, summed over CPUs, over the whole life of the sample's kernel (boot to
    /// shutdown), so that the balances can be closed.
    pub counters: BTreeMap<String, u64>,
    /// Cache events per question; see [`PerfCell`]. Keys are event names (`cycles`, `cache-misses`).
    pub perf: BTreeMap<String, PerfCell>,
    /// Lines that had to come from another CPU, per struct (`sim` only), within the span.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lines: BTreeMap<String, LineMoves>,
    /// What was seen over time (RCU backlog, slab pages).
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub series: Series,
    /// How long freed objects lay before they were handed out again.
    #[serde(default, skip_serializing_if = "Reuse::is_empty")]
    pub reuse: Reuse,
    /// How long callbacks waited and grace periods lasted, within the span.
    #[serde(default, skip_serializing_if = "RcuTimes::is_empty")]
    pub rcu_times: RcuTimes,
    /// CPU and node of each thread, by worker index.
    pub placement: Vec<Place>,
    /// Fingerprint of the host.
    pub host: HostId,
    /// Kernel configuration modelled (HZ, qs_policy, ...), as text.
    pub kconfig: BTreeMap<String, String>,
    /// Version of this tool.
    pub tool: String,
    /// Git commit of this tool, `unknown` where it was built outside a checkout.
    pub commit: String,
    /// Verdict of the protocol, `sound` or `busted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Balance checks that did not hold; a sample with any is an error row and is never averaged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// What a reader should know (preempted threads, steal, ...).
    #[serde(default)]
    pub warnings: Vec<String>,
    /// All that may change between two identical simulated runs.
    pub run: Run,
}

/// Figures of one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerThread {
    /// Operations in the span.
    pub operations: u64,
    /// User faults in the span.
    pub faults: u64,
    /// This thread's span in ns, without [`PerThread::excluded_ns`].
    pub duration_ns: u64,
    /// Time inside the span spent on resetting the workload, which is not counted, ns.
    pub excluded_ns: u64,
    /// CPU time in the span, ns.
    pub cpu_ns: u64,
    /// Time in RCU callbacks and the tick, ns (inside `duration_ns`).
    pub softirq_ns: u64,
}

/// A hardware or software event of one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerfCell {
    /// Counted, already summed over threads; `value` is raw, scale by `enabled / running`.
    Counted {
        /// Raw sum.
        value: u64,
        /// Time enabled, ns.
        enabled: u64,
        /// Time counting, ns.
        running: u64,
    },
    /// Not counted, and why (`no PMU: ENOENT`).
    Absent {
        /// The reason.
        reason: String,
    },
}

/// Line transfers of one struct in the simulator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LineMoves {
    /// Accesses.
    pub accesses: u64,
    /// Lines that came from another CPU's cache (modified or shared there), same node.
    pub moved_near: u64,
    /// The same from a CPU of another node.
    pub moved_far: u64,
    /// Upgrades: a line held shared had to be taken from the others before a store.
    pub upgrades: u64,
    /// First touches and lines no cache held.
    pub memory: u64,
}

/// Time series, all vectors of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Time since the common start, ns.
    pub t_ns: Vec<u64>,
    /// RCU callbacks queued and not yet invoked, all CPUs.
    pub rcu_pending: Vec<u64>,
    /// Pages held by slabs, all caches.
    pub slab_pages: Vec<u64>,
}

impl Series {
    /// Whether nothing was sampled.
    pub fn is_empty(&self) -> bool {
        self.t_ns.is_empty()
    }
}

/// Distributions as quantiles from 0 to 100 percent in steps of 2.5, the smallest value first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RcuTimes {
    /// From `call_rcu()` to the callback's call, ns.
    pub callback_ns: Vec<u64>,
    /// Callbacks that were followed.
    pub callbacks: u64,
    /// Length of grace periods, ns.
    pub grace_period_ns: Vec<u64>,
    /// Grace periods that ended in the span.
    pub grace_periods: u64,
}

impl RcuTimes {
    /// Whether nothing was followed.
    pub fn is_empty(&self) -> bool {
        self.callbacks == 0 && self.grace_periods == 0
    }
}

/// Object reuse, per cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reuse {
    /// When it was watched: `warm_up`, `warm_up_and_span`, or in a `run_of_its_own`.
    #[serde(default)]
    pub over: String,
    /// Operations of all threads in that time.
    #[serde(default)]
    pub operations: u64,
    /// By cache name.
    #[serde(default)]
    pub caches: BTreeMap<String, ReuseCache>,
    /// Records of the host's tracepoints that were lost; absent where the port counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Why nothing was watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
}

impl Reuse {
    /// Whether nothing is known, not even why.
    pub fn is_empty(&self) -> bool {
        self.over.is_empty() && self.caches.is_empty() && self.absent.is_none()
    }
}

/// Hand-outs and frees of one cache, and what lay between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReuseCache {
    /// Hand-outs on the watched CPUs.
    pub allocs: u64,
    /// Frees on the watched CPUs; under call_rcu those of callbacks.
    pub frees: u64,
    /// Hand-outs by distance: bin k counts distances `2^k ..= 2^(k+1) - 1`, in events of the cache on the CPU from the
    /// free to the hand-out, which counts.
    pub bins: Vec<u64>,
    /// Hand-outs by the number of hand-outs of the cache on this CPU since the object's last there; the same bins.
    #[serde(default)]
    pub again: Vec<u64>,
    /// Hand-outs on another CPU than the free's.
    pub remote: u64,
    /// Hand-outs of objects whose free was not seen.
    pub first: u64,
    /// Distinct objects.
    pub distinct: u64,
    /// Of the events those of the workload's own threads, where others share the CPU (kernel world).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnEvents>,
}

/// Events of the workload's own threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnEvents {
    /// Hand-outs.
    pub allocs: u64,
    /// Frees.
    pub frees: u64,
}

/// Where one worker ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// CPU number of the operating system (of the host file in `sim`).
    pub cpu: u32,
    /// NUMA node of that CPU.
    pub node: u32,
    /// Whether the placement was read back and held to the end.
    pub verified: bool,
}

/// What tells hosts apart; stable fields only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostId {
    /// Name: of the host file, or the host name.
    pub name: String,
    /// CPU model as the operating system prints it.
    pub cpu_model: String,
    /// Online CPUs.
    pub cpus: u32,
    /// NUMA nodes.
    pub nodes: u32,
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// Hash over model and topology, hex.
    pub fingerprint: String,
    /// Whether the CPU says it runs under a hypervisor.
    pub virtualised: bool,
}

/// All that may change between two identical simulated runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Start, ms since the epoch.
    pub started_ms: u64,
    /// Wall time of the sample, ns, boot and shutdown included.
    pub wall_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Identifier of the run this sample belongs to (same for all its samples).
    pub id: String,
    /// Load average and steal around the sample, and other notes of the moment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}
