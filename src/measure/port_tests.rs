// SPDX-License-Identifier: GPL-2.0-only
//! The port on simulated machines: the named kernels' protocols (`tests/protocols.rs` has all) with every cache, allocator
//! and workload on 4, 16 and 64 CPUs, in as many interleavings as `FAULTLINE_SIM_SEEDS` asks for: by default one without
//! random delays, and with them one, on the larger machines three. Every balance must hold and nothing may be left; two
//! identical runs are identical.
//!
//! It cannot find a missing barrier: the simulator does not reorder (`arch/sim`).

use super::port::{Plan, sample};
use super::run::Stop;
use crate::arch::Sim;
use crate::arch::sim::{Jitter, SimConfig, SimMachine, UNLABELLED, UNMAPPED};
use crate::cpu::nr_kthreads;
use crate::cpu::sched::Wait;
use crate::cpu::testing::seeds;
use crate::init::KernelConfig;
use crate::measure::outcome::Outcome;
use crate::mm::variant::{self, Variant};
use crate::slab::Allocator;
use crate::slab::FaultAttr;
use crate::workload::{LIST, Mode};
use crate::{with_variant, with_workload};
use std::collections::BTreeSet;
use std::ops::Range;

fn machine(nodes: u32, cpus: u32) -> SimMachine {
    SimMachine::new(SimConfig { bytes_per_node: 256 << 20, ..SimConfig::nodes(nodes, cpus / nodes) }).unwrap()
}

/// One sample in interleaving `seed`.
fn run(m: &SimMachine, v: &Variant, workload: &str, mode: Mode, us: u64, seed: u64) -> Outcome {
    // Many short delays, some that last as long as a slow path, few as long as a tick.
    let (every, max_ns) = [(50, 3_000), (7, 500), (400, 30_000), (3_000, 300_000)][seed as usize % 4];
    m.set_jitter((seed > 0).then_some(Jitter { seed, every, max_ns, at_names: false }));
    // Ten ticks a millisecond, so that grace periods end within a short span.
    let kernel = v.configure(KernelConfig { seed, ..KernelConfig::default().hz(10_000) });
    let threads = m.config().cpus.len() as u32;
    let plan = Plan { threads, mode, warm_up_ns: us * 100, stop: Stop::After(us * 1000), kernel, program: None };
    with_variant!(v, Sim, K => with_workload!(workload, W => sample::<K, W>(m, &plan)))
}

/// Each of `variants` and every workload on `cpus` CPUs, in an interleaving for each of `seeds` (1: without delays), for `us` of
/// virtual time each. Workloads in which all CPUs fight for one lock take a hundred times as many accesses as the others, so
/// these have `storm_us`.
fn matrix(variants: &[Variant], seeds: Range<u64>, nodes: u32, cpus: u32, us: u64, storm_us: u64) {
    let m = machine(nodes, cpus);
    let asked = std::env::var_os("FAULTLINE_SIM_SEEDS").is_some();
    let mut bad = Vec::new();
    for seed in seeds.map(|n| n - 1) {
        for w in LIST {
            let storm = ["munmap_storm", "fault_vs_unmap"].contains(&w.name);
            let us = if storm { storm_us } else { us };
            // Seeds take turns at the other mode, too.
            let mode = match w.mode {
                _ if seed % 3 < 2 => w.mode,
                Mode::Thread => Mode::Process,
                Mode::Process => Mode::Thread,
            };
            for (i, v) in variants.iter().enumerate() {
                // Unless seeds were asked for, variants take turns at the storms of many CPUs, which take most of the time.
                if storm && !asked && cpus >= 64 && seed > 0 && !(i as u64 + seed).is_multiple_of(3) {
                    continue;
                }
                let t = std::time::Instant::now();
                let o = run(&m, v, w.name, mode, us, seed);
                let n = |c: &str| o.counters.get(c).copied().unwrap_or(0);
                eprintln!(
                    "{cpus:2} {:14} {:7} {:36} seed {seed}: {:4} ms, operations {}, faults {}, retries {}, \
                     callbacks {}, grace periods {}, accesses {}",
                    w.name,
                    mode.name(),
                    v.name,
                    t.elapsed().as_millis(),
                    n("workload_operations"),
                    n("pgfault"),
                    n("vma_lock_retry"),
                    n("rcu_callbacks_invoked"),
                    n("rcu_grace_periods"),
                    m.stats().accesses,
                );
                bad.extend(o.errors.iter().map(|e| format!("{} {} x{cpus} seed {seed}: {e}", v.name, w.name)));
                if seed == 0 && w.name == "brk1" && v.cache != "typesafe" && n("rcu_grace_periods") < 3 {
                    bad.push(format!("{} x{cpus} seed {seed}: no grace periods to speak of", v.name));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn balances_hold_on_4_simulated_cpus() {
    matrix(&variant::named(), seeds(2), 2, 4, 3000, 3000);
}

#[test]
fn balances_hold_on_16_simulated_cpus() {
    matrix(&variant::main(), seeds(4), 2, 16, 1000, 700);
}

#[test]
fn balances_hold_on_64_simulated_cpus() {
    matrix(&variant::main(), seeds(4), 4, 64, 300, 80);
}

/// Callbacks that threads call, one for each of 16 CPUs and one for each of four groups, at once or lazily.
#[test]
fn balances_hold_with_offloaded_callbacks() {
    let cpus = 16;
    let kernel_threads = nr_kthreads(cpus, true);
    assert_eq!(kernel_threads, 2 + 4 + 16);
    let m = SimConfig { bytes_per_node: 256 << 20, kernel_threads, ..SimConfig::nodes(2, cpus / 2) };
    let m = SimMachine::new(m).unwrap();
    for (v, lazy) in [("v6.12", false), ("v6.12", true), ("v7.3", false), ("refcnt+kfree_rcu@slub", false)] {
        let v = variant::parse(v).unwrap();
        for seed in 0..2 {
            m.set_jitter((seed > 0).then_some(Jitter { seed, every: 50, max_ns: 3_000, at_names: false }));
            let mut kernel = v.configure(KernelConfig { seed, ..KernelConfig::default().hz(10_000) });
            (kernel.rcu.nocb, kernel.rcu.lazy) = (true, lazy);
            let stop = Stop::After(1_000_000);
            let plan = Plan { threads: cpus, mode: Mode::Process, warm_up_ns: 100_000, stop, kernel, program: None };
            let o = with_variant!(&v, Sim, K => with_workload!("mmap_churn", W => sample::<K, W>(&m, &plan)));
            assert!(o.errors.is_empty(), "{} lazy {lazy} seed {seed}: {:?}", v.name, o.errors);
            assert!(o.counters["rcu_nocb_wakeups"] > 0 && o.counters["rcu_callbacks_invoked"] > 0, "{}", v.name);
        }
    }
}

/// Allocations refused on purpose are failures of the workload, which goes on: every balance holds, nothing is left.
#[test]
fn a_run_survives_refused_allocations() {
    let m = machine(2, 4);
    for w in LIST {
        for v in ["v6.12", "refcnt+typesafe@sheaves"] {
            let v = variant::parse(v).unwrap();
            m.set_jitter(None);
            let mut kernel = v.configure(KernelConfig { seed: 3, ..KernelConfig::default().hz(10_000) });
            kernel.slab.failslab = Some(FaultAttr::per_million(30_000));
            kernel.slab.fail_page_alloc = Some(FaultAttr::per_million(30_000));
            let plan = Plan {
                threads: 4,
                mode: w.mode,
                warm_up_ns: 100_000,
                stop: Stop::After(1_000_000),
                kernel,
                program: None,
            };
            let o = with_variant!(&v, Sim, K => with_workload!(w.name, W => sample::<K, W>(&m, &plan)));
            assert!(o.errors.is_empty(), "{} {}: {:?}", w.name, v.name, o.errors);
            assert!(o.counters["workload_failures"] > 0, "{} {}", w.name, v.name);
            assert!(o.counters["failslab"] + o.counters["fail_page_alloc"] >= o.counters["workload_failures"]);
        }
    }
}

#[test]
fn two_identical_runs_are_identical() {
    // The second machine lies elsewhere, since the first holds the address, and has had another kernel before.
    let (first, second) = (machine(2, 16), machine(2, 16));
    let v = variant::parse("v6.12").unwrap();
    run(&second, &variant::parse("v6.15").unwrap(), "fault_vs_unmap", Mode::Thread, 100, 0);
    for seed in [0, 3] {
        for (w, mode) in [("brk1", Mode::Process), ("fault_vs_unmap", Mode::Thread)] {
            let of = |m: &SimMachine, seed| {
                let o = run(m, &v, w, mode, 200, seed);
                (format!("{o:?}"), m.stats())
            };
            let a = of(&first, seed);
            assert_eq!(a, of(&second, seed), "on another machine");
            assert_eq!(a, of(&first, seed), "again on the same machine");
            let (other, stats) = of(&first, seed + 4);
            assert!(a.0 != other && a.1.trace != stats.trace, "the seed changes nothing");
        }
    }
}

/// Readers come too late with every protocol; to another mm's VMA only where memory becomes another at once.
#[test]
fn only_typesafe_memory_becomes_another_vma_under_its_readers() {
    let m = machine(1, 4);
    for v in ["v6.12", "v6.15", "v7.3"] {
        let v = variant::parse(v).unwrap();
        let (mut other, mut late) = (0, 0);
        for seed in 0..4 {
            let o = run(&m, &v, "cross_mm_reuse", Mode::Thread, 4000, seed);
            assert!(o.errors.is_empty(), "{} seed {seed}: {:?}", v.name, o.errors);
            assert!(o.counters["workload_operations"] > 0);
            other += o.counters["vma_lock_abort_other_mm"];
            late += o.counters["vma_lock_miss"];
        }
        println!("{}: other mm {other}, miss {late}", v.name);
        assert!(other == 0 || v.cache == "typesafe", "{}: {other} found another mm's", v.name);
        assert!(late > 0, "{}", v.name);
    }
}

#[test]
fn every_line_that_the_port_touches_has_a_name() {
    let m = machine(2, 8);
    for v in variant::named() {
        let mut seen = BTreeSet::new();
        for w in LIST {
            let o = run(&m, &v, w.name, w.mode, 300, 0);
            assert_eq!(o.lines.get(UNLABELLED), None, "{} {}", v.name, w.name);
            assert_eq!(o.lines.get("free page"), None, "{} {}", v.name, w.name);
            // What is no arena memory is the harness's and boot's, never shared.
            let total: u64 = o.lines.values().map(|c| c.accesses).sum();
            assert!(o.lines.get(UNMAPPED).is_none_or(|c| c.accesses < total / 20), "{} {}", v.name, w.name);
            seen.extend(o.lines.into_keys());
        }
        let lock = (v.protocol == "rwsem_separate").then_some("vma_lock");
        for name in [
            "vm_area_struct",
            "mm_struct",
            "maple_node",
            "struct page",
            "page table",
            "rcu_data",
            "rcu_node",
            "kmem_cache_node",
            "per_cpu_pages",
            "zone",
            "anon_vma",
        ]
        .into_iter()
        .chain(lock)
        .chain(
            match v.slab {
                Allocator::Slub => ["kmem_cache_cpu"].as_slice(),
                Allocator::Sheaves => ["slub_percpu_sheaves", "slab_sheaf", "node_barn"].as_slice(),
            }
            .iter()
            .copied(),
        ) {
            assert!(seen.contains(name), "{}: no access to {name}; seen: {seen:?}", v.name);
        }
    }
}

#[test]
fn a_kernel_whose_sleepers_poll_closes_its_books_too() {
    let m = machine(1, 4);
    let slept = |wait: Wait| {
        let kernel = KernelConfig { hung_task_blocker: true, ..KernelConfig::default().hz(10_000).wait(wait) };
        let stop = Stop::After(1_000_000);
        let plan = Plan { threads: 4, mode: Mode::Thread, warm_up_ns: 100_000, stop, kernel, program: None };
        let v = variant::parse("v6.12").unwrap();
        let o = with_variant!(&v, Sim, K => with_workload!("fault_vs_unmap", W => sample::<K, W>(&m, &plan)));
        assert!(o.errors.is_empty(), "{wait:?}: {:?}", o.errors);
        assert_eq!((o.kconfig["wait"].as_str(), o.kconfig["hung_task_blocker"].as_str()), (wait.name(), "true"));
        (o.counters["sched_sleeps"], o.counters["sched_sleep_ns"], o.counters["workload_operations"])
    };
    let (futex, spin) = (slept(Wait::Futex), slept(Wait::Spin));
    println!("sleeps, ns asleep, operations: futex {futex:?}, spin {spin:?}");
    assert!(futex.0 > 0 && spin.0 > 0);
}
