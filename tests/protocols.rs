// SPDX-License-Identifier: GPL-2.0-only
//! Every protocol with every cache and allocator, through the library as the program uses it: each boots, runs, closes its
//! books and leaves nothing; and which VMAs there are depends on none of them.

use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::arch::sim::{Jitter, SimConfig, SimMachine};
use faultline::check::{Bound, Request, nothing_yet, show, whole};
use faultline::fuzz::driver::{Options, Outcome, fuzz};
use faultline::fuzz::model::Model;
use faultline::fuzz::{backend::Look, port, probe::Features};
use faultline::host::affinity;
use faultline::init::KernelConfig;
use faultline::measure::port::Plan;
use faultline::measure::run::Stop;
use faultline::mm::vma_lock::{Claim, PROTOCOLS};
use faultline::mm::{MmRules, variant};
use faultline::report::session::{Machine, sample};
use faultline::workload::{LIST, Mode};
use std::sync::{Arc, Mutex};

fn plan(kernel: KernelConfig, threads: u32, mode: Mode, us: u64) -> Plan {
    Plan { threads, mode, warm_up_ns: us * 100, stop: Stop::After(us * 1000), kernel, program: None }
}

/// Real threads, as many as there are CPUs, up to two. No reader of an mm runs beside its writer in `mmap_churn`, so that
/// those which lock falsely have no occasion.
#[test]
fn every_combination_runs_and_leaves_nothing() {
    let cpus: Vec<_> = affinity::allowed().into_iter().take(2).map(|cpu| OsCpu { cpu, node: 0 }).collect();
    let threads = cpus.len() as u32;
    let machine = Machine::Native(NativeMachine::new(&cpus, 256 << 20, |_, _| 10).unwrap());
    for v in variant::all() {
        for mode in [Mode::Process, Mode::Thread] {
            let kernel = v.configure(KernelConfig::default().hz(1000));
            let o = sample(&machine, &v, "mmap_churn", &plan(kernel, threads, mode, 4000));
            assert_eq!(o.errors, [] as [String; 0], "{} {}", v.name, mode.name());
            assert!(o.counters["workload_operations"] > 0 && o.counters["pgfault"] > 0, "{}", v.name);
        }
    }
}

/// Virtual CPUs with random delays, every workload.
#[test]
fn balances_of_every_protocol_hold_on_4_simulated_cpus() {
    let config = SimConfig { bytes_per_node: 256 << 20, ..SimConfig::nodes(2, 2) };
    let m = SimMachine::new(config).unwrap();
    m.set_jitter(Some(Jitter { seed: 5, every: 50, max_ns: 3_000, at_names: false }));
    let machine = Machine::Sim(Box::new(m));
    let named = variant::named();
    let others: Vec<_> = variant::each_once().into_iter().filter(|v| !named.contains(v)).collect();
    assert_eq!(others.len(), PROTOCOLS.len() - 3, "as each was proposed; the others are tested inside the library");
    for v in &others {
        for w in LIST {
            let kernel = v.configure(KernelConfig { seed: 5, ..KernelConfig::default().hz(10_000) });
            let o = sample(&machine, v, w.name, &plan(kernel, 4, w.mode, 2000));
            assert_eq!(o.errors, [] as [String; 0], "{} {}", v.name, w.name);
        }
    }
}

/// Random calls before somebody who sees everything; protocols that need no more than the right moment to fail must.
#[test]
fn the_whole_port_comes_out_as_declared() {
    let mut caught = 0;
    for p in PROTOCOLS {
        let request = Request::new(p.name, whole::WHOLE, Bound { seeds: 48, ..Bound::QUICK });
        let shown = Arc::new(Mutex::new(nothing_yet(&request)));
        show(&request, &shown);
        let s = shown.lock().unwrap();
        println!("{:30} {:10?} {} runs {:?}", s.protocol, s.shown, s.executions, s.wrong);
        assert!(s.as_declared(), "{s:?}");
        caught += u32::from(s.shown == Some(Claim::Busted));
    }
    assert!(caught >= 7, "{caught} caught");
}

#[test]
fn the_lock_and_the_cache_change_nothing_that_can_be_seen() {
    for (i, v) in variant::all().iter().enumerate() {
        let (rules, seed) = (MmRules::V6_12, 40 + i as u64);
        let mut o = Options {
            ops: 2000,
            seed,
            rules,
            features: Features::all().under(&rules),
            look: Look::USUAL,
            pages: None,
            trail: Arc::default(),
        };
        let mut p = port::start(v).unwrap();
        port::limit(&mut *p, &rules, &mut o.features).unwrap();
        match fuzz(&o, &mut *p, &mut Model::default(), &mut |_| false).unwrap().0 {
            Outcome::Same => {}
            _ => {
                panic!("{}: a difference; faultline fuzz --against model --variant {0} --seed {seed} shows it", v.name)
            }
        }
    }
}
