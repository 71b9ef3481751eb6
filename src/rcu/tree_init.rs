// SPDX-License-Identifier: GPL-2.0-only
//! The tree and its boot [kernel/rcu/tree.c: rcu_init_geometry, rcu_init_one, kernel/rcu/tree.h, 6.12].
//!
//! custom: nodes stand at line boundaries as in the kernel; of `rcu_node`, `rcu_data` and `rcu_state` only the fields
//! that the ported parts use exist, in the kernel's order. All CPUs count as possible from the start; one that has not
//! come up (or has left) is in the extended quiescent state.

use super::barrier::BarrierCount;
use super::context_tracking::ContextTracking;
use super::latency::{Mark, Ring, Tracer};
use super::rcu_segcblist::RcuSegcblist;
use super::rcu_seq::RCU_GP_SEQ_START;
use super::tree::{RcuState, RcuStateGp};
use super::tree_nocb::{Nocb, NocbGp};
use super::tree_stall::{GpState, StallState};
use super::{RcuConfig, RcuHead};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Arena, Atomic, Hardware, Native, Plain};
use crate::cpu::smp::CpuRemote;
use crate::cpu::{PerCpu, Task, nocb_gp_stride, nocb_groups, nr_kthreads};
use crate::sync::{Mutex, RawSpinLock};
use std::alloc::Layout;
use std::ptr::{NonNull, null_mut};

/// `RCU_JIFFIES_FQS_DIV`: CPUs for which the scan waits one jiffy longer.
const RCU_JIFFIES_FQS_DIV: u64 = 256;
const RCU_NUM_LVLS_MAX: usize = 4;

/// `struct rcu_node`
#[repr(C, align(64))]
pub(crate) struct RcuNode<A: Arch> {
    pub lock: RawSpinLock<A>,
    /// This node's view of the grace-period number; polled without the lock.
    pub gp_seq: Atomic<A, u64>,
    /// Furthest request seen; under the lock.
    pub gp_seq_needed: Plain<A, u64>,
    /// Children or CPUs still owed; the root's is polled without the lock.
    pub qsmask: Atomic<A, u64>,
    pub qsmaskinit: Plain<A, u64>,
    pub qsmaskinitnext: Plain<A, u64>,
    /// CPUs in callback overload; read without the lock by each `call_rcu()`.
    pub cbovldmask: Atomic<A, u64>,
    /// This node's bit in its parent.
    pub grpmask: u64,
    pub grplo: u32,
    pub grphi: u32,
    pub parent: Option<KRef<RcuNode<A>>>,
    /// Children or CPUs still owed for the running expedited grace period, and all of them.
    pub expmask: Atomic<A, u64>,
    pub expmaskinit: u64,
    /// The funnel of `rcu_force_quiescent_state()`.
    pub fqslock: FqsLock<A>,
    /// The funnel of expedited grace periods.
    pub exp: ExpFunnel<A>,
}

/// Where those who want an expedited grace period meet, on a line of its own.
#[repr(align(64))]
pub(crate) struct ExpFunnel<A: Arch> {
    /// `exp_lock`
    pub lock: RawSpinLock<A>,
    /// `exp_seq_rq`: the furthest that somebody who passed here waits for.
    pub seq_rq: Atomic<A, u64>,
}

/// A spinlock on a line of its own.
#[repr(align(64))]
pub(crate) struct FqsLock<A: Arch>(pub RawSpinLock<A>);

/// `struct rcu_data`: the private part first, what others write on a line of its own.
#[repr(C, align(64))]
pub(crate) struct RcuData<A: Arch> {
    pub gp_seq: Plain<A, u64>,
    pub gp_seq_needed: Plain<A, u64>,
    pub cpu_no_qs: Plain<A, u8>,
    /// An expedited quiescent state is owed since a reader was in the way.
    pub cpu_no_qs_exp: Plain<A, u8>,
    pub core_needs_qs: Plain<A, u8>,
    pub mynode: KRef<RcuNode<A>>,
    pub grpmask: u64,
    pub ticks_this_gp: Plain<A, u64>,
    pub cblist: RcuSegcblist<A>,
    pub qlen_last_fqs_check: Plain<A, i64>,
    pub n_force_qs_snap: Plain<A, u64>,
    pub blimit: Plain<A, i64>,
    /// Which callback is followed (`latency.rs`).
    pub mark: Mark,
    pub barrier_head: RcuHead<A>,
    /// The callback of a `synchronize_rcu()` of this CPU's task; the kernel has it on the stack.
    pub sync_head: RcuHead<A>,
    pub sync_done: Atomic<A, u32>,
    pub sync_task: Atomic<A, *mut Task<A>>,
    /// The next CPU whose task waits for the same grace period, on `srs_next` or `srs_wait`.
    pub srs_link: Atomic<A, *mut RcuData<A>>,
    /// Back to the state that owns it: a callback is given nothing else.
    pub state: Plain<A, *mut RcuState<A>>,
    pub cpu: u32,
    /// `rcu_rdp_is_offloaded()`
    pub offloaded: bool,
    /// The most callbacks that this CPU had at once. Ours, and priced by no world.
    pub qlen_max: Plain<Native, i64>,
    pub remote: RcuDataRemote<A>,
    pub nocb: Nocb<A>,
}

/// What other CPUs write or read of a CPU.
#[repr(C, align(64))]
pub(crate) struct RcuDataRemote<A: Arch> {
    pub watching: ContextTracking<A>,
    /// The grace-period thread's, under the leaf's lock.
    pub watching_snap: Plain<A, u32>,
    pub rcu_urgent_qs: Atomic<A, u8>,
    pub rcu_need_heavy_qs: Atomic<A, u8>,
    /// The driver's of an expedited grace period.
    pub exp_watching_snap: Plain<A, u32>,
    /// The CPU's task while it waits for somebody else's expedited grace period.
    pub exp_task: Atomic<A, *mut Task<A>>,
    pub barrier_seq_snap: Atomic<A, u64>,
    /// Task and request word of the CPU while it is up.
    pub task: Atomic<A, *mut Task<A>>,
    pub call: Atomic<A, *mut CpuRemote<A>>,
}

/// Shape of the tree: nodes at each level, root first, and CPUs or children of a node there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub levels: Vec<u32>,
    pub spread: Vec<u32>,
}

/// `rcu_init_geometry()` and `rcu_init_levelspread()`, balanced.
pub(crate) fn rcu_init_geometry(nr_cpus: u32, fanout: u32, fanout_leaf: u32) -> Geometry {
    assert!(nr_cpus > 0 && (2..=64).contains(&fanout) && (2..=64).contains(&fanout_leaf), "fan-out outside 2..=64");
    let capacity: Vec<u64> =
        (0..RCU_NUM_LVLS_MAX as u32).map(|i| u64::from(fanout_leaf) * u64::from(fanout).pow(i)).collect();
    let n = capacity
        .iter()
        .position(|&c| u64::from(nr_cpus) <= c)
        .expect("four levels hold the CPUs: fan-outs below the defaults are for tests with few")
        + 1;
    let levels: Vec<u32> = (0..n).map(|i| u64::from(nr_cpus).div_ceil(capacity[n - 1 - i]) as u32).collect();
    let mut spread = vec![0; n];
    let mut below = nr_cpus;
    for i in (0..n).rev() {
        spread[i] = below.div_ceil(levels[i]);
        below = levels[i];
    }
    Geometry { levels, spread }
}

/// `rcu_init_one()`: fills the nodes, breadth first.
///
/// # Safety
/// `nodes` is valid for writes of as many nodes as the geometry has, for the life of the kernel.
unsafe fn rcu_init_one<A: Arch>(nodes: NonNull<RcuNode<A>>, g: &Geometry, nr_cpus: u32) -> KRef<[RcuNode<A>]> {
    let mut first = 0;
    for (i, &n) in g.levels.iter().enumerate() {
        let stride: u32 = g.spread[i..].iter().product();
        for j in 0..n {
            let leaf = i + 1 == g.levels.len();
            let (grplo, grphi) = (j * stride, ((j + 1) * stride - 1).min(nr_cpus - 1));
            let kids =
                if leaf { grphi + 1 - grplo } else { g.spread[i].min(g.levels[i + 1].saturating_sub(j * g.spread[i])) };
            let mask = if kids == 64 { u64::MAX } else { (1 << kids) - 1 };
            let (parent, grpmask) = if i == 0 {
                (None, 0)
            } else {
                let up = g.spread[i - 1];
                let at = first - g.levels[i - 1] as usize + (j / up) as usize;
                // SAFETY: parents come before children and are never moved.
                (Some(unsafe { KRef::new(nodes.add(at)) }), 1 << (j % up))
            };
            let node = RcuNode {
                lock: RawSpinLock::new(),
                gp_seq: Atomic::new(RCU_GP_SEQ_START),
                gp_seq_needed: Plain::new(RCU_GP_SEQ_START),
                qsmask: Atomic::new(0),
                qsmaskinit: Plain::new(mask),
                qsmaskinitnext: Plain::new(mask),
                cbovldmask: Atomic::new(0),
                grpmask,
                grplo,
                grphi,
                parent,
                expmask: Atomic::new(0),
                expmaskinit: mask,
                fqslock: FqsLock(RawSpinLock::new()),
                exp: ExpFunnel { lock: RawSpinLock::new(), seq_rq: Atomic::new(0) },
            };
            // SAFETY: the caller's.
            unsafe { nodes.add(first + j as usize).write(node) };
        }
        first += n as usize;
    }
    // SAFETY: all filled; the caller's.
    unsafe { KRef::new(NonNull::slice_from_raw_parts(nodes, first)) }
}

/// `rcu_boot_init_percpu_data()`
///
/// PORT: a kernel thread that runs on no worker's CPU has data of its own, beside the tree: no bit of any leaf is its, so
/// grace periods never wait for it (it must not read under RCU); what it queues takes its labels from the first leaf.
fn rcu_data<A: Arch>(nodes: KRef<[RcuNode<A>]>, leaves: usize, cpu: u32, cfg: &RcuConfig) -> RcuData<A> {
    let leaves = &nodes[nodes.len() - leaves..];
    let (leaf, grpmask) = match leaves.iter().find(|n| n.grphi >= cpu) {
        Some(leaf) => (leaf, 1 << (cpu - leaf.grplo)),
        None => (&leaves[0], 0),
    };
    RcuData {
        gp_seq: Plain::new(RCU_GP_SEQ_START),
        gp_seq_needed: Plain::new(RCU_GP_SEQ_START),
        cpu_no_qs: Plain::new(1),
        cpu_no_qs_exp: Plain::new(0),
        core_needs_qs: Plain::new(0),
        // SAFETY: nodes live as long as the kernel.
        mynode: unsafe { KRef::from_ref(leaf) },
        grpmask,
        ticks_this_gp: Plain::new(0),
        cblist: RcuSegcblist::new(),
        qlen_last_fqs_check: Plain::new(0),
        n_force_qs_snap: Plain::new(0),
        blimit: Plain::new(cfg.blimit),
        mark: Mark::new(),
        barrier_head: RcuHead::new(),
        sync_head: RcuHead::new(),
        sync_done: Atomic::new(0),
        sync_task: Atomic::new(null_mut()),
        srs_link: Atomic::new(null_mut()),
        state: Plain::new(null_mut()),
        cpu,
        offloaded: cfg.nocb,
        qlen_max: Plain::new(0),
        nocb: Nocb::new(),
        remote: RcuDataRemote {
            watching: ContextTracking::new(),
            watching_snap: Plain::new(0),
            rcu_urgent_qs: Atomic::new(0),
            rcu_need_heavy_qs: Atomic::new(0),
            exp_watching_snap: Plain::new(0),
            exp_task: Atomic::new(null_mut()),
            barrier_seq_snap: Atomic::new(0),
            task: Atomic::new(null_mut()),
            call: Atomic::new(null_mut()),
        },
    }
}

fn rcu_state<A: Arch>(
    nodes: KRef<[RcuNode<A>]>,
    leaves: usize,
    rda: PerCpu<A, RcuData<A>>,
    tracers: PerCpu<A, Tracer>,
    nocb_gp: PerCpu<A, NocbGp<A>>,
    nr_cpus: u32,
    cfg: &RcuConfig,
) -> RcuState<A> {
    let n = u64::from(nr_cpus);
    let hz = u64::from(cfg.hz.max(1));
    let fqs = 1 + u64::from(hz > 250) + u64::from(hz > 500) + n / RCU_JIFFIES_FQS_DIV;
    RcuState {
        config: *cfg,
        period: 1_000_000_000 / hz,
        jiffies_till_first_fqs: fqs,
        jiffies_till_next_fqs: fqs,
        jiffies_to_sched_qs: (3 * fqs).max(hz / 10 + n / RCU_JIFFIES_FQS_DIV),
        node: nodes,
        leaves,
        nr_cpus,
        rda,
        gp: RcuStateGp {
            gp_seq: Atomic::new(RCU_GP_SEQ_START),
            gp_flags: Atomic::new(0),
            gp_seq_polled: Atomic::new(0),
            gp_seq_polled_snap: Plain::new(0),
            gp_seq_polled_exp_snap: Plain::new(0),
            gp_start: Atomic::new(0),
            jiffies_resched: Plain::new(0),
            jiffies_force_qs: Atomic::new(0),
            n_force_qs: Atomic::new(0),
            n_force_qs_gpstart: Atomic::new(0),
            jiffies_stall: Atomic::new(0),
            gp_state: Atomic::new(GpState::Idle as u32),
            gp_activity: Atomic::new(0),
            gp_req_activity: Atomic::new(0),
            cbovld: Plain::new(0),
            cbovldnext: Plain::new(0),
            gp_start_ns: Plain::new(0),
        },
        expedited_sequence: Atomic::new(0),
        exp_mutex: Mutex::new(),
        exp_driver: Atomic::new(null_mut()),
        srs_next: Atomic::new(null_mut()),
        srs_wait: Plain::new(null_mut()),
        srs_in_flight: Atomic::new(0),
        gp_kthread: Atomic::new(null_mut()),
        stop: Atomic::new(0),
        barrier_mutex: Mutex::new(),
        barrier_lock: RawSpinLock::new(),
        barrier_sequence: Atomic::new(0),
        barrier: BarrierCount::new(),
        stall: StallState::new(),
        nocb_gp,
        gp_lengths: Ring::new(),
        tracers,
        #[cfg(test)]
        bug: std::sync::atomic::AtomicU8::new(0),
    }
}

impl<A: Arch> RcuState<A> {
    fn bind(this: KRef<Self>) -> KRef<Self> {
        for rdp in this.rda.iter() {
            rdp.cblist.init();
            rdp.state.set(this.as_ptr());
        }
        this
    }

    /// As [`RcuState::new`] on the heap and leaked, for worlds without an arena.
    #[cfg(test)]
    pub(crate) fn leak(nr_cpus: u32, cfg: &RcuConfig) -> KRef<Self> {
        let g = rcu_init_geometry(nr_cpus, cfg.fanout, cfg.fanout_leaf);
        let v = Vec::<RcuNode<A>>::with_capacity(g.levels.iter().sum::<u32>() as usize);
        let at = NonNull::new(v.leak().as_mut_ptr()).expect("a leaked vector is somewhere");
        // SAFETY: the capacity just leaked.
        let nodes = unsafe { rcu_init_one(at, &g, nr_cpus) };
        let leaves = g.levels[g.levels.len() - 1] as usize;
        let total = nr_cpus + nr_kthreads(nr_cpus, cfg.nocb);
        let rda = PerCpu::leak(total, |cpu| rcu_data(nodes, leaves, cpu, cfg));
        let tracers = PerCpu::leak(total, |_| Tracer::new());
        let groups = PerCpu::leak(if cfg.nocb { nocb_groups(nr_cpus) } else { 0 }, |_| NocbGp::new());
        // SAFETY: leaked.
        Self::bind(unsafe {
            KRef::from_ref(Box::leak(Box::new(rcu_state(nodes, leaves, rda, tracers, groups, nr_cpus, cfg))))
        })
    }
}

impl<A: Hardware> RcuState<A> {
    /// `rcu_init()`: for workers `0..nr_cpus`, and [`nr_kthreads`] kernel threads with numbers above theirs; `node_of`
    /// says on which node a worker's data goes.
    ///
    /// # Panics
    /// Where the fan-outs are not in 2..=64 or four levels do not hold the CPUs.
    pub fn new(arena: &Arena, nr_cpus: u32, node_of: impl Fn(u32) -> u32, cfg: &RcuConfig) -> KRef<Self> {
        let g = rcu_init_geometry(nr_cpus, cfg.fanout, cfg.fanout_leaf);
        let n = g.levels.iter().sum::<u32>() as usize;
        let layout = Layout::array::<RcuNode<A>>(n).expect("few nodes");
        let at = arena.boot_alloc(0, layout).cast::<RcuNode<A>>();
        A::label(at.as_ptr().cast(), layout.size(), "rcu_node");
        // SAFETY: fresh boot memory of n nodes.
        let nodes = unsafe { rcu_init_one(at, &g, nr_cpus) };
        let leaves = g.levels[g.levels.len() - 1] as usize;
        let node_of = |cpu| if cpu < nr_cpus { node_of(cpu) } else { 0 };
        let total = nr_cpus + nr_kthreads(nr_cpus, cfg.nocb);
        let rda = PerCpu::new(arena, total, node_of, "rcu_data", |cpu| rcu_data(nodes, leaves, cpu, cfg));
        let tracers = PerCpu::new(arena, total, node_of, "rcu_tracer", |_| Tracer::new());
        let stride = nocb_gp_stride(nr_cpus);
        let groups = if cfg.nocb { nocb_groups(nr_cpus) } else { 0 };
        let groups = PerCpu::new(arena, groups, |g| node_of(g * stride), "rcu_nocb_gp", |_| NocbGp::new());
        let rcu = arena.boot_new(0, rcu_state(nodes, leaves, rda, tracers, groups, nr_cpus, cfg));
        A::label(rcu.as_ptr().cast(), size_of::<Self>(), "rcu_state");
        Self::bind(rcu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;

    #[test]
    fn geometry_is_the_chapters() {
        let g = |n| rcu_init_geometry(n, 64, 16);
        for n in [1, 2, 16] {
            assert_eq!(g(n), Geometry { levels: vec![1], spread: vec![n] });
        }
        assert_eq!(g(17).levels, [1, 2]);
        assert_eq!(g(20).spread, [2, 10]);
        assert_eq!(g(24).spread, [2, 12]);
        assert_eq!(g(64).spread, [4, 16]);
        assert_eq!(g(1024).levels, [1, 64]);
        assert_eq!(g(1025).levels, [1, 2, 65]);
        assert_eq!(rcu_init_geometry(8, 2, 2).levels, [1, 2, 4]);
    }

    #[test]
    fn every_cpu_has_one_bit_on_the_way_to_the_root() {
        for (n, fanout, leaf) in [(1, 64, 16), (5, 2, 2), (7, 3, 2), (24, 64, 16), (200, 64, 16), (130, 8, 4)] {
            let cfg = RcuConfig { fanout, fanout_leaf: leaf, ..RcuConfig::default() };
            let rcu = RcuState::<Native>::leak(n, &cfg);
            let mut seen = vec![0u64; rcu.node.len()];
            let index = |r: &RcuNode<Native>| {
                (std::ptr::from_ref(r) as usize - std::ptr::from_ref(&rcu.node[0]) as usize)
                    / size_of::<RcuNode<Native>>()
            };
            for rdp in rcu.rda.iter().take(n as usize) {
                let mut node = rdp.mynode;
                assert!((node.grplo..=node.grphi).contains(&rdp.cpu));
                assert_eq!(seen[index(&node)] & rdp.grpmask, 0);
                seen[index(&node)] |= rdp.grpmask;
                while let Some(p) = node.parent {
                    assert!((p.grplo..=p.grphi).contains(&rdp.cpu));
                    seen[index(&p)] |= node.grpmask;
                    node = p;
                }
                assert_eq!(index(&node), 0);
            }
            for (i, r) in rcu.node.iter().enumerate() {
                assert_eq!(r.qsmaskinit.get(), seen[i], "{n} CPUs, node {i}");
            }
        }
    }
}
