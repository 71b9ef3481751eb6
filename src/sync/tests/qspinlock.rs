// SPDX-License-Identifier: GPL-2.0-only
//! L9 of the reference: mutual exclusion, order of the queue, at most one pending, nesting, the word at the end.

use super::{Inside, eventually, on_cpus, torture};
use crate::arch::{Native, RawCell, Relaxed};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::sync::{LockEvent, RawSpinLock, raw_spin_lock, raw_spin_trylock, raw_spin_unlock};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

type L = RawSpinLock<Native>;

fn word(l: &L) -> u32 {
    l.word().load(Relaxed)
}

#[test]
fn holders_are_alone_whichever_way_they_got_in() {
    let l = L::new();
    let inside = Inside::default();
    let pending = AtomicU32::new(0);
    let n = AtomicU64::new(0);
    torture::<Native>(3, |cpu| {
        if cpu.random().is_multiple_of(8) {
            if !raw_spin_trylock(cpu, &l) {
                return;
            }
        } else {
            raw_spin_lock(cpu, &l);
        }
        inside.write(cpu);
        let w = word(&l);
        assert_eq!(w & 0xff, 1, "{w:#x}: held, but the byte is not 1");
        assert!(w >> 8 & 0xff <= 1, "{w:#x}: more than a pending bit");
        pending.fetch_or(w & 0x100, Ordering::Relaxed);
        raw_spin_unlock(cpu, &l);
        n.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(word(&l), 0);
    assert_eq!(inside.writes() as u64, n.load(Ordering::Relaxed));
    assert_ne!(pending.load(Ordering::Relaxed), 0, "nobody ever waited: the test shows nothing");
}

#[test]
fn the_queue_is_served_in_its_order() {
    const N: u32 = 5;
    let l = L::new();
    let set = for_test_set::<Native>(N + 1);
    let order = Mutex::new(Vec::new());
    let holder = set.cpu(N);
    raw_spin_lock(&holder, &l);
    std::thread::scope(|s| {
        for id in 0..N {
            let (set, l, order) = (&set, &l, &order);
            s.spawn(move || {
                let cpu = set.cpu(id);
                raw_spin_lock(&cpu, l);
                order.lock().unwrap().push((id, cpu.counters.get(LockEvent::LockPending)));
                raw_spin_unlock(&cpu, l);
            });
            // The first takes the pending bit, the others the tail, one after the other.
            eventually("queueing", || {
                let w = word(l);
                if id == 0 { w == 0x101 } else { w >> 18 == id + 1 && w & 0xffff == 0x101 }
            });
        }
        raw_spin_unlock(&holder, &l);
    });
    let order = order.into_inner().unwrap();
    assert_eq!(order, [(0, 1), (1, 0), (2, 0), (3, 0), (4, 0)], "who, and whether by the pending bit");
    assert_eq!(word(&l), 0);
    assert!((0..N).all(|i| set.cpu(0).lock_nodes.of(i).qnodes[0].count.get() == 0), "a node was not given back");
}

/// Without interrupts only the first node is ever in use; here others are taken by hand, as if interrupted `depth`
/// times in the slow path.
fn nested(cpu: &Cpu<Native>, depth: u32, f: impl FnOnce()) {
    let count = &cpu.lock_nodes.this(cpu).qnodes[0].count;
    count.set(count.get() + depth);
    f();
    count.set(count.get() - depth);
}

#[test]
fn every_nesting_level_queues_and_the_fifth_does_without() {
    let l = L::new();
    let inside = Inside::default();
    let seen = [const { AtomicU64::new(0) }; 5];
    let events = [
        LockEvent::LockSlowpath,
        LockEvent::LockUseNode2,
        LockEvent::LockUseNode3,
        LockEvent::LockUseNode4,
        LockEvent::LockNoNode,
    ];
    // Enough waiters at once for a queue; rounds, because with two processors a queue needs luck.
    for _ in 0..40 {
        on_cpus::<Native>(4, |cpu| {
            for _ in 0..10 {
                nested(cpu, (cpu.random() % 5) as u32, || {
                    raw_spin_lock(cpu, &l);
                    inside.write(cpu);
                    if cpu.random().is_multiple_of(4) {
                        std::thread::yield_now();
                    }
                    raw_spin_unlock(cpu, &l);
                });
            }
            for (s, e) in seen.iter().zip(events) {
                s.fetch_add(cpu.counters.get(e), Ordering::Relaxed);
            }
        });
        if seen.iter().all(|s| s.load(Ordering::Relaxed) > 0) {
            break;
        }
    }
    for (s, e) in seen.iter().zip(events) {
        assert!(s.load(Ordering::Relaxed) > 0, "{e:?} never happened");
    }
    assert_eq!(word(&l), 0);
}

#[test]
fn cpus_without_nodes_still_exclude_each_other() {
    let l = L::new();
    let inside = Inside::default();
    std::thread::scope(|s| {
        for id in 0..3 {
            let (l, inside) = (&l, &inside);
            s.spawn(move || {
                let cpu = Cpu::<Native>::for_test(id);
                for _ in 0..500 {
                    raw_spin_lock(&cpu, l);
                    inside.write(&cpu);
                    raw_spin_unlock(&cpu, l);
                }
            });
        }
    });
    assert_eq!(inside.writes(), 1500);
    assert_eq!(word(&l), 0);
}

/// The full-word stand-ins that the model checker and the interpreter use, on real threads.
#[test]
fn full_word_accesses_lock_as_well_as_the_mixed_sizes() {
    use crate::arch::{Arch, Fence};
    #[derive(Clone, Copy, Debug)]
    struct FullWord;
    impl Arch for FullWord {
        const NAME: &'static str = "native";
        const RMW_IS_FULL: bool = Native::RMW_IS_FULL;
        type Cell<T: crate::arch::Prim> = <Native as Arch>::Cell<T>;
        type PlainCell<T: crate::arch::Prim> = <Native as Arch>::PlainCell<T>;
        fn fence(f: Fence) {
            Native::fence(f)
        }
        fn now() -> u64 {
            Native::now()
        }
        fn cpu_relax() {
            Native::cpu_relax()
        }
        fn wait_changed<T: crate::arch::Prim>(c: &Self::Cell<T>, seen: T) {
            Native::wait_changed(c, seen)
        }
        fn futex_wait(w: &Self::Cell<u32>, seen: u32, d: Option<u64>) {
            Native::futex_wait(w, seen, d)
        }
        fn futex_wake(w: &Self::Cell<u32>) {
            Native::futex_wake(w)
        }
    }
    let w = <<Native as Arch>::Cell<u32>>::new(0xaabb_ccdd);
    FullWord::store_low_byte_release(&w, 0);
    FullWord::store_low_half(&w, 0x0102);
    assert_eq!(FullWord::xchg_high_half(&w, 0x1234), 0xaabb);
    assert_eq!(w.load(Ordering::Relaxed), 0x1234_0102);

    let l = RawSpinLock::<FullWord>::new();
    let inside = Inside::default();
    let n = AtomicU64::new(0);
    torture::<FullWord>(3, |cpu| {
        raw_spin_lock(cpu, &l);
        inside.write(cpu);
        raw_spin_unlock(cpu, &l);
        n.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(inside.writes() as u64, n.into_inner());
    assert!(!l.is_locked());
}
