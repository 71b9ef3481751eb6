// SPDX-License-Identifier: GPL-2.0-only
//! Records for tests: of realistic shape, from a seed, measured by nobody.

use super::record::{
    HostId, LineMoves, PerThread, PerfCell, Place, RcuTimes, Reuse, ReuseCache, Run, SCHEMA, Sample, Series,
};
use crate::mm::mmap_lock_wait::WaitEvent;
use std::collections::BTreeMap;

/// A sample whose throughput is `rate` operations per second over one second.
pub fn sample(variant: &str, workload: &str, threads: u32, trial: u32, rate: f64) -> Sample {
    let operations = rate.round() as u64;
    let each = operations / u64::from(threads);
    let thread = |i: u32| PerThread {
        operations: each + if i == 0 { operations % u64::from(threads) } else { 0 },
        faults: each,
        duration_ns: 1_000_000_000,
        excluded_ns: 0,
        cpu_ns: 990_000_000,
        softirq_ns: 5_000_000,
    };
    let faults = each * u64::from(threads);
    let reuse = if variant.contains("typesafe") { 0 } else { operations };
    let contended = if threads > 1 { faults / 2000 } else { 0 };
    let waits = WaitEvent::NAMES.iter().map(|n| match n {
        n if n.ends_with("_ns") => (n.to_string(), contended * 9_000),
        n if n.ends_with("lt_4us") => (n.to_string(), contended / 4),
        n if n.ends_with("lt_16us") => (n.to_string(), contended - contended / 4),
        n => (n.to_string(), 0),
    });
    let counters = [
        ("mmap_lock_read", faults / 900),
        ("mmap_lock_write", faults / 500),
        ("vma_lock_writer_wait", contended / 8),
        ("vma_lock_detach_wait", contended / 32),
        ("rwsem_wake_reader", contended / 3),
        ("rwsem_wake_writer", contended / 5),
        ("vma_lock_success", faults - faults / 1000),
        ("vma_lock_abort", faults / 1000 - faults / 4000),
        ("vma_lock_retry", faults / 4000),
        ("vma_lock_retry_anon_vma", faults / 4000 - faults / 16000),
        ("vma_lock_retry_io", faults / 16000),
        ("vma_lock_miss", faults / 9000),
        ("vma_lock_abort_none", faults / 8000),
        ("vma_lock_abort_writer", faults / 1000 - faults / 4000 - faults / 8000),
        ("rcu_callbacks_queued", reuse),
        ("alloc_fastpath", operations * 9 / 10),
        ("alloc_slowpath", operations / 10),
    ];
    Sample {
        schema: SCHEMA,
        kind: "sample".into(),
        variant: variant.into(),
        protocol: Some("refcnt".into()),
        cache: Some("typesafe".into()),
        allocator: Some("slub".into()),
        workload: workload.into(),
        mode: "thread".into(),
        world: "native".into(),
        threads,
        trial,
        seed: 1,
        order: trial,
        duration_ns: 1_000_000_000,
        operations,
        faults,
        cpu_ns: 990_000_000 * u64::from(threads),
        per_thread: (0..threads).map(thread).collect(),
        counters: counters.map(|(k, v)| (k.to_string(), v)).into_iter().chain(waits).collect(),
        perf: BTreeMap::from([("cycles".into(), PerfCell::Absent { reason: "no PMU: ENOENT".into() })]),
        lines: BTreeMap::new(),
        series: Series::default(),
        reuse: Default::default(),
        rcu_times: Default::default(),
        placement: (0..threads).map(|cpu| Place { cpu, node: 0, verified: true }).collect(),
        host: HostId {
            name: "testbox".into(),
            cpu_model: "Imaginary 9000".into(),
            cpus: 16,
            nodes: 1,
            kernel: "6.18.0".into(),
            fingerprint: "feedc0de".into(),
            virtualised: false,
        },
        kconfig: BTreeMap::from([("hz".into(), "250".into())]),
        tool: "0.1.0".into(),
        commit: "0123456789ab".into(),
        verdict: Some("sound".into()),
        errors: vec![],
        warnings: vec![],
        run: Run { id: "run-1".into(), pid: 1, ..Run::default() },
    }
}

/// Numbers that look like noise and repeat: the middle of three splitmix64 uniforms, roughly bell-shaped, in -1..1.
pub struct Noise(pub u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 += 1;
        (crate::cpu::splitmix64(self.0) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// The next one.
    pub fn draw(&mut self) -> f64 {
        (self.uniform() + self.uniform() + self.uniform()) / 3.0
    }
}

/// Objects that come back at once, or after thousands of events.
fn reuse(operations: u64, v: usize) -> Reuse {
    let cold = v == 0;
    let bins = |cold: bool| if cold { [vec![0; 11], vec![operations / 2; 2]].concat() } else { vec![operations] };
    let cache = |cold| ReuseCache {
        allocs: operations,
        frees: operations,
        bins: bins(cold),
        again: bins(cold),
        distinct: if cold { 3000 } else { 2 },
        ..ReuseCache::default()
    };
    Reuse {
        over: "warm_up".into(),
        operations,
        caches: [("vm_area_struct", cache(cold)), ("maple_node", cache(true))].map(|(n, c)| (n.to_string(), c)).into(),
        ..Reuse::default()
    }
}

/// Four variants x four workloads x six thread counts x eight trials in the world given.
pub fn matrix(world: &str) -> Vec<Sample> {
    let variants = [("v6.12", 1.0), ("v6.15", 1.06), ("v7.3", 1.15), ("rwsem_reset_on_free+typesafe@slub", 1.2)];
    let workloads = [("anon_fault", 900e3), ("mmap_churn", 230e3), ("brk1", 550e3), ("fault_vs_unmap", 120e3)];
    let mut noise = Noise(7);
    let mut out = Vec::new();
    for (workload, rate) in workloads {
        for threads in [1_u32, 2, 4, 8, 12, 16] {
            for (v, (variant, gain)) in variants.iter().enumerate() {
                for trial in 0..8 {
                    let t = f64::from(threads);
                    let scale = if workload == "mmap_churn" { t.powf(-0.3) } else { t.powf(0.8) };
                    let gain = 1.0 + (gain - 1.0) * (t / 16.0);
                    let mut s =
                        sample(variant, workload, threads, trial, rate * scale * gain * (1.0 + 0.01 * noise.draw()));
                    s.world = world.into();
                    if v == 3 {
                        s.verdict = Some("busted".into());
                    }
                    for (k, share) in [
                        ("vma_lock_abort_seq_early", 5e-3),
                        ("vma_lock_abort_range", 1e-4),
                        ("vma_lock_abort_other_mm", 3e-5),
                    ] {
                        let n = s.faults as f64 * share * t / 16.0 * (1.0 + 0.1 * noise.draw()) / (v + 1) as f64;
                        s.counters.insert(k.into(), n as u64);
                    }
                    let aborts =
                        s.counters.iter().filter(|(k, _)| k.starts_with("vma_lock_abort_")).map(|(_, n)| n).sum();
                    s.counters.insert("vma_lock_abort".into(), aborts);
                    let n = 40;
                    let backlog = |i: u64| if v == 1 || v == 2 { 0 } else { (i % 10) * 900 * u64::from(threads) };
                    s.series = Series {
                        t_ns: (0..n).map(|i| i * 25_000_000).collect(),
                        rcu_pending: (0..n).map(backlog).collect(),
                        slab_pages: (0..n).map(|i| 64 * u64::from(threads) + backlog(i) / 16).collect(),
                    };
                    s.reuse = reuse(s.operations, v);
                    let late = |scale: u64| (0..=40).map(|q| (4_000_000 + q * 300_000) * scale).collect();
                    s.rcu_times = RcuTimes {
                        callbacks: if v == 0 || v == 3 { 1000 } else { 0 },
                        callback_ns: if v == 0 || v == 3 { late(2) } else { vec![] },
                        grace_periods: 50,
                        grace_period_ns: late(1),
                    };
                    if world == "sim" {
                        s.lines =
                            [("vm_area_struct", 3.1), ("mm_struct", 1.4), ("maple_node", 2.2), ("kmem_cache_cpu", 0.2)]
                                .iter()
                                .map(|(name, per_op)| {
                                    let n = (s.operations as f64 * per_op * (t - 1.0) / 16.0 / (1.0 + 0.2 * v as f64))
                                        as u64;
                                    let m = LineMoves {
                                        accesses: s.operations * 30,
                                        moved_near: n,
                                        moved_far: n / 5,
                                        upgrades: n / 3,
                                        memory: s.operations / 100,
                                    };
                                    (name.to_string(), m)
                                })
                                .collect();
                    }
                    out.push(s);
                }
            }
        }
    }
    out
}
