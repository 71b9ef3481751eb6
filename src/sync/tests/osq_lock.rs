// SPDX-License-Identifier: GPL-2.0-only
//! L10 of the reference: spinners that leave at any moment, and the queue that stays whole.

use super::{on_cpus, torture};
use crate::arch::{Native, Relaxed};
use crate::sync::osq_lock::{OptimisticSpinQueue, osq_lock, osq_lock_unless, osq_unlock};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[test]
fn a_storm_of_cancellations_leaves_the_queue_whole() {
    let q = OptimisticSpinQueue::<Native>::new();
    let inside = AtomicU32::new(0);
    let (got, left) = (AtomicU64::new(0), AtomicU64::new(0));
    torture::<Native>(4, |cpu| {
        // Patience in turns of the wait loop: 0 leaves as soon as it stands in the queue.
        let mut patience = cpu.random() % 40;
        let ok = osq_lock_unless(cpu, &q, || {
            patience = patience.saturating_sub(1);
            patience == 0
        });
        if !ok {
            left.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The queue orders nothing, so that only an atomic may witness it.
        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two spinners");
        if cpu.random().is_multiple_of(16) {
            std::thread::yield_now();
        }
        inside.fetch_sub(1, Ordering::Relaxed);
        osq_unlock(cpu, &q);
        got.fetch_add(1, Ordering::Relaxed);
    });
    assert!(!q.is_locked(), "the tail is not 0");
    assert!(got.into_inner() > 0 && left.into_inner() > 0, "the test shows nothing");
    // The chain still works.
    on_cpus::<Native>(3, |cpu| {
        for _ in 0..50 {
            assert!(osq_lock(cpu, &q));
            osq_unlock(cpu, &q);
        }
    });
    assert!(!q.is_locked());
}

#[test]
fn a_cpu_with_softirq_work_does_not_stand_in_the_queue() {
    let q = OptimisticSpinQueue::<Native>::new();
    let set = crate::cpu::testing::for_test_set::<Native>(2);
    let (a, b) = (set.cpu(0), set.cpu(1));
    assert!(osq_lock(&a, &q));
    b.softirq.ksoftirqd.set(true);
    assert!(!osq_lock(&b, &q));
    assert!(a.lock_nodes.of(0).osq_node.next.load(Relaxed).is_null(), "it left its name behind");
    osq_unlock(&a, &q);
    assert!(!q.is_locked());
}
