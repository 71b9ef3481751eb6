// SPDX-License-Identifier: GPL-2.0-only
//! L4, exactly: how long one waits among a crowd of the other kind, in virtual time, where nothing but the lock delays.
//!
//! A waiter may ask for a handoff once a jiffy has passed since it queued, that is before the second tick of its wait;
//! it asks when it looks at the lock next, which is at the latest when the holders of that moment leave. From then on
//! nobody overtakes it.

use crate::arch::sim::{Jitter, SimConfig, SimMachine};
use crate::arch::{Acquire, Arch, Atomic, Job, Machine, Release, Sim};
use crate::cpu::smp::CpuRemote;
use crate::cpu::tick::TickDevice;
use crate::cpu::{Cpu, LockNodes, PerCpu, Task};
use crate::sync::{RwSemaphore, down_read, down_write, up_read, up_write};
use std::sync::atomic::{AtomicU64, Ordering};

const TICK: u64 = 4_000_000;
/// Longest hold, ns.
const HOLD: u64 = 30_000;

/// Lets `ns` pass: waits for a wake-up that never comes.
pub(super) fn work(never: &Atomic<Sim, u32>, ns: u64) {
    Sim::futex_wait(never.raw(), 0, Some(Sim::now() + ns));
}

/// The longest wait of CPU 0 among `n - 1` CPUs that never leave the lock alone, and how often it waited.
fn wait_among_crowd(n: u32, crowd_reads: bool, seed: u64) -> (u64, u64) {
    let m = SimMachine::new(SimConfig { bytes_per_node: 16 << 20, ..SimConfig::nodes(1, n) }).unwrap();
    m.reset();
    m.set_jitter((seed > 0).then_some(Jitter { seed, every: 50, max_ns: 3_000, at_names: false }));
    let a = m.arena();
    let nodes = PerCpu::new(a, n, |_| 0, "lock_nodes", |_| LockNodes::<Sim>::new());
    let sem = a.boot_new(0, RwSemaphore::<Sim>::new());
    let [done, never] = [0; 2].map(|_| a.boot_new(0, Atomic::<Sim, u32>::new(0)));
    let [longest, waits] = [const { AtomicU64::new(0) }; 2];
    let jobs = (0..n)
        .map(|id| {
            let (task, remote) = (a.boot_new(0, Task::new(id)), a.boot_new(0, CpuRemote::new()));
            let (longest, waits) = (&longest, &waits);
            Job {
                cpu: Some(id),
                f: Box::new(move || {
                    let cpu = Cpu::<Sim>::new(id, 0, task, remote, nodes, TickDevice::new(250, 1), seed + 1);
                    if id == 0 {
                        while Sim::now() < 100_000_000 {
                            let t = Sim::now();
                            if crowd_reads {
                                down_write(&cpu, &sem)
                            } else {
                                down_read(&cpu, &sem)
                            }
                            longest.fetch_max(Sim::now() - t, Ordering::Relaxed);
                            waits.fetch_add(1, Ordering::Relaxed);
                            work(&never, 1_000);
                            if crowd_reads {
                                up_write(&cpu, &sem)
                            } else {
                                up_read(&cpu, &sem)
                            }
                            work(&never, cpu.random() % 20_000);
                        }
                        done.store(1, Release);
                    }
                    // ORDER: acquire; meets the release above.
                    while done.load(Acquire) == 0 {
                        if crowd_reads {
                            down_read(&cpu, &sem)
                        } else {
                            down_write(&cpu, &sem)
                        }
                        work(&never, cpu.random() % HOLD);
                        if crowd_reads { up_read(&cpu, &sem) } else { up_write(&cpu, &sem) }
                    }
                }),
            }
        })
        .collect();
    m.run(jobs);
    sem.assert_quiet();
    (longest.into_inner(), waits.into_inner())
}

#[test]
fn one_among_many_waits_two_ticks_and_the_holds_at_most() {
    for crowd_reads in [true, false] {
        for seed in 0..3 {
            let (longest, waits) = wait_among_crowd(6, crowd_reads, seed);
            println!("crowd reads {crowd_reads}, seed {seed}: {waits} waits, {} us at most", longest / 1000);
            // Two ticks; the holds of the moment it asks in, and one each of those that were queued ahead of it; the
            // wake-ups in between.
            let bound = 2 * TICK + 8 * (HOLD + 10_000);
            assert!(longest <= bound, "crowd reads {crowd_reads}, seed {seed}: {longest} ns > {bound} ns");
            assert!(waits > 10);
        }
    }
}
