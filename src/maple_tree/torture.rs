// SPDX-License-Identifier: GPL-2.0-only
//! Readers under RCU beside a writer, on real threads with their own ticks and grace periods. The kinds of checks are
//! those of tools/testing/radix-tree/maple.c, 6.12 (its threaded readers), written afresh.
//!
//! Each entry names a record of where it was stored. When the writer has taken the last piece of an entry out of the
//! tree it hands the record to call_rcu(), whose callback poisons it: a reader that still finds the entry after a grace
//! period reads poison. Between fixed entries that stay the writer stores, clears, splits and moves boundaries; a
//! reader must find every fixed entry, with its exact range, walking or stepping in either direction, and anything
//! else only inside what it was stored over. Readers stop for random times at every step, now and then longer than a
//! grace period takes.
//!
//! Cannot tell: anything about orderings that this machine does not have (`model/maple.rs` does that).

use super::oracle::{MM_MT_FLAGS, entry};
use super::*;
use crate::arch::arena::KRef;
use crate::arch::{Arch, Arena, Native};
use crate::cpu::smp::CpuRemote;
use crate::cpu::tick::{TickDevice, exit_to_user_mode, idle_loop};
use crate::cpu::{AllLockNodes, Cpu, LockNodes, PerCpu, Task};
use crate::rcu::{RcuConfig, RcuHead, RcuState, call_rcu, rcu_barrier, rcu_gp_kthread, rcu_read_lock, rcu_read_unlock};
use crate::slab::{Allocator, SlabOptions, kmem_cache_init, page_alloc_init};
use std::collections::{BTreeMap, HashMap};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

type A = Native;

const MAX: u64 = u64::MAX;
const BLOCK: u64 = 256;
const BLOCKS: u64 = 24;
const FIXED: u64 = 8;
/// Looks of readers at least.
const ROUNDS: u64 = 50;
const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

/// Where an entry was stored; poisoned a grace period after it left the tree.
#[repr(C)]
struct Record {
    head: RcuHead<A>,
    first: AtomicU64,
    last: AtomicU64,
}

struct Records(Vec<Record>);
impl Records {
    fn of(&self, e: *mut ()) -> (u64, u64) {
        let r = &self.0[(e.addr() >> 12) - 1];
        // Relaxed on purpose: the tree's own release and acquire must have published them.
        (r.first.load(Ordering::Relaxed), r.last.load(Ordering::Relaxed))
    }
}

unsafe fn poison(_: &Cpu<A>, head: *mut RcuHead<A>) {
    // SAFETY: the head is the first field of a record that outlives the run.
    let r = unsafe { &*head.cast::<Record>() };
    r.first.store(POISON, Ordering::Relaxed);
    r.last.store(POISON, Ordering::Relaxed);
}

fn token(id: u32, nodes: AllLockNodes<A>, tick: TickDevice, seed: u64) -> Cpu<A> {
    let task: &'static Task<A> = Box::leak(Box::new(Task::new(id)));
    let remote: &'static CpuRemote<A> = Box::leak(Box::new(CpuRemote::new()));
    // SAFETY: leaked, hence alive for ever.
    let (task, remote) = unsafe { (KRef::from_ref(task), KRef::from_ref(remote)) };
    Cpu::new(id, 0, task, remote, nodes, tick, seed)
}

/// A pause of a reader: mostly none, now and then long enough for the writer to do hundreds of stores.
fn delay(cpu: &Cpu<A>) {
    match cpu.random() % 256 {
        0 => std::thread::sleep(std::time::Duration::from_micros(cpu.random() % 300)),
        1..4 => std::thread::yield_now(),
        4..32 => (0..cpu.random() % 200).for_each(|_| A::cpu_relax()),
        _ => {}
    }
}

struct Shared {
    state: KRef<MapleState<A>>,
    mt: MapleTree<A>,
    records: Records,
    stop: AtomicBool,
    rounds: AtomicU64,
}

/// The tree's contents as the writer knows them: first key to last key and entry; and the pieces of each entry.
#[derive(Default)]
struct Model {
    map: BTreeMap<u64, (u64, u64)>,
    pieces: HashMap<u64, u64>,
}

impl Model {
    /// Stores; returns the entries that have left.
    fn store(&mut self, a: u64, b: u64, id: Option<u64>) -> Vec<u64> {
        let hit: Vec<_> = self.map.range(..=b).filter(|(_, v)| v.0 >= a).map(|(k, v)| (*k, *v)).collect();
        let mut put = |map: &mut BTreeMap<u64, (u64, u64)>, k, v: (u64, u64)| {
            map.insert(k, v);
            *self.pieces.entry(v.1).or_default() += 1;
        };
        let mut touched = Vec::new();
        for (k, (l, e)) in hit {
            self.map.remove(&k);
            touched.push(e);
            if k < a {
                put(&mut self.map, k, (a - 1, e));
            }
            if l > b {
                put(&mut self.map, b + 1, (l, e));
            }
        }
        if let Some(id) = id {
            put(&mut self.map, a, (b, id));
        }
        touched.retain(|e| {
            let n = self.pieces.get_mut(e).expect("was in the tree");
            *n -= 1;
            *n == 0
        });
        touched
    }
}

fn writer(cpu: &Cpu<A>, s: &Shared, ops: u64) {
    let mut model = Model::default();
    let mut put = |a: u64, b: u64, id: Option<u64>| {
        let e = id.map_or(null_mut(), entry);
        if let Some(id) = id {
            let r = &s.records.0[id as usize];
            r.first.store(a, Ordering::Relaxed);
            r.last.store(b, Ordering::Relaxed);
        }
        let mut mas = MaState::new(&s.mt, s.state, a, b);
        mas_preallocate(cpu, &mut mas, e).expect("memory");
        mas_store_prealloc(cpu, &mut mas, e);
        for gone in model.store(a, b, id) {
            let head = std::ptr::from_ref(&s.records.0[gone as usize].head).cast_mut();
            // SAFETY: the record has left the tree, once; it outlives the run.
            unsafe { call_rcu(cpu, &s.state.rcu, head, poison) }
        }
    };
    for b in 0..BLOCKS {
        put(b * BLOCK, b * BLOCK + FIXED - 1, Some(b));
    }
    s.rounds.store(1, Ordering::Release);
    for op in 0..ops {
        let (base, id) = (cpu.random() % BLOCKS * BLOCK, BLOCKS + op);
        let (lo, hi) = (base + FIXED, base + BLOCK - 1);
        let a = lo + cpu.random() % (hi - lo);
        let width = match cpu.random() % 64 {
            0 => MAX,
            1..12 => cpu.random() % 64,
            _ => cpu.random() % 3,
        };
        let (a, b) = if width == MAX { (lo, hi) } else { (a, (a + width).min(hi)) };
        let null = cpu.random().is_multiple_of(3);
        put(a, b, (!null).then_some(id));
        if op % 1024 == 0 {
            mt_validate(&s.mt).expect("a tree");
        }
        if op % 8 == 0 {
            exit_to_user_mode(cpu);
        }
        if op % 64 == 0 {
            // Grace periods take milliseconds; and there may be fewer CPUs than threads.
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
    }
    // On a machine that is busy with other things readers and grace periods may be late.
    let poisoned = || s.records.0.iter().any(|r| r.first.load(Ordering::Relaxed) == POISON);
    for _ in 0..20_000 {
        if s.rounds.load(Ordering::Relaxed) > ROUNDS && poisoned() {
            break;
        }
        exit_to_user_mode(cpu);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let live: Vec<u64> = model.map.values().map(|v| v.1).collect();
    assert!(live.iter().all(|&id| s.records.of(entry(id)).0 != POISON), "an entry of the tree was freed");
}

/// One look by a reader: a walk, then steps one way until the tree ends or `most` are done.
fn reader(cpu: &Cpu<A>, s: &Shared) {
    let fixed = |b: u64| (entry(b), b * BLOCK, b * BLOCK + FIXED - 1);
    let check = |mas: &MaState<'_, A>, e: *mut ()| {
        delay(cpu);
        let (a, b) = s.records.of(e);
        assert!(a != POISON && b != POISON, "an entry found a grace period after it had left");
        let (i, l) = (mas.index, mas.last);
        assert!(i >= a && l <= b && i <= l, "torn: {i:#x}..={l:#x} of {a:#x}..={b:#x}");
    };
    rcu_read_lock(cpu);
    let key = cpu.random() % (BLOCKS * BLOCK);
    let mut mas = MaState::new(&s.mt, s.state, key, key);
    let e = mas_walk(cpu, &mut mas);
    assert!((mas.index..=mas.last).contains(&key), "the range found does not hold the key");
    if key % BLOCK < FIXED {
        assert_eq!((e, mas.index, mas.last), fixed(key / BLOCK), "a fixed entry");
    }
    if !e.is_null() {
        check(&mas, e);
    }
    let forward = cpu.random() & 1 == 0;
    let mut block = key / BLOCK;
    let mut at = (mas.index, mas.last);
    let mut at_fixed = false;
    for _ in 0..120 {
        delay(cpu);
        let e = if forward { mas_next(cpu, &mut mas, MAX) } else { mas_prev(cpu, &mut mas, 0) };
        if e.is_null() {
            let last = if forward { block == BLOCKS - 1 } else { block == 0 };
            assert!(last, "stepped from block {block} off the tree, status {:?}", mas.status);
            break;
        }
        check(&mas, e);
        let now = mas.index / BLOCK;
        // A slot store may move the boundary that the reader stands at: the next step then begins inside what the last
        // one returned (as in the kernel, which loads that pivot anew). It never crosses a fixed entry.
        let in_order = if forward { mas.index > at.1 } else { mas.last < at.0 };
        assert!(in_order || now == block, "stepped back from block {block} to {now}");
        at = (mas.index, mas.last);
        let skipped = if forward { now > block + 1 } else { now + 1 < block };
        assert!(!skipped, "from block {block} to {now}");
        if now != block && forward {
            assert_eq!((e, mas.index, mas.last), fixed(now), "entered a block past its fixed entry");
        }
        if now != block && !forward {
            let fixed_seen = at_fixed || block == key / BLOCK && key % BLOCK < FIXED;
            assert!(fixed_seen, "left block {block} downwards without its fixed entry");
        }
        at_fixed = mas.index.is_multiple_of(BLOCK);
        block = now;
    }
    rcu_read_unlock(cpu);
}

fn torture(allocator: Allocator, readers: u32, ops: u64) {
    let workers = readers + 1;
    let arena = Arena::new(1, 256 << 20, None, None).expect("256 MiB");
    let config = RcuConfig { hz: 1000, ..RcuConfig::default() };
    let rcu = RcuState::<A>::new(&arena, workers, |_| 0, &config);
    let pages = page_alloc_init(&arena, workers, &|_| 0);
    let options = SlabOptions { allocator, ..SlabOptions::default() };
    let state = maple_tree_init(&arena, kmem_cache_init(&arena, pages, rcu, workers, options));
    let record = || Record { head: RcuHead::new(), first: AtomicU64::new(0), last: AtomicU64::new(0) };
    let s = Shared {
        state,
        mt: MapleTree::new(MM_MT_FLAGS),
        records: Records((0..ops + BLOCKS).map(|_| record()).collect()),
        stop: AtomicBool::new(false),
        rounds: AtomicU64::new(0),
    };
    let nodes: AllLockNodes<A> = PerCpu::leak(workers + 2, |_| LockNodes::new());
    let (left, over) = (AtomicU32::new(workers), AtomicBool::new(false));
    let poisoned = std::thread::scope(|t| {
        let (s, left, over, rcu) = (&s, &left, &over, &rcu);
        t.spawn(move || rcu_gp_kthread(&token(workers, nodes, TickDevice::off(), 1), rcu));
        let run = move |id: u32, body: &dyn Fn(&Cpu<A>)| {
            let cpu = token(id, nodes, rcu.tick_device(8), u64::from(id) + 7);
            rcu.install_hooks(&cpu);
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&cpu)));
            s.stop.store(true, Ordering::Release);
            left.fetch_sub(1, Ordering::AcqRel);
            idle_loop(&cpu, || over.load(Ordering::Acquire));
            rcu.remove_hooks(&cpu);
            ok.is_ok()
        };
        let mut threads = Vec::new();
        threads.push(t.spawn(move || {
            run(0, &|cpu| {
                writer(cpu, s, ops);
                let n = |e| cpu.counters.get(e);
                let kinds = [
                    MapleEvent::StoreSlot,
                    MapleEvent::StoreExact,
                    MapleEvent::StoreNode,
                    MapleEvent::Split,
                    MapleEvent::Rebalance,
                    MapleEvent::Spanning,
                ];
                assert!(kinds.into_iter().all(|e| n(e) > 0), "a kind of store was not met");
            })
        }));
        for id in 1..workers {
            threads.push(t.spawn(move || {
                run(id, &|cpu| {
                    while s.rounds.load(Ordering::Acquire) == 0 {
                        std::thread::yield_now();
                    }
                    while !s.stop.load(Ordering::Acquire) {
                        reader(cpu, s);
                        s.rounds.fetch_add(1, Ordering::Relaxed);
                        exit_to_user_mode(cpu);
                    }
                })
            }));
        }
        while left.load(Ordering::Acquire) != 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let main = token(workers + 1, nodes, TickDevice::off(), 1);
        let poisoned = s.records.0.iter().filter(|r| r.first.load(Ordering::Relaxed) == POISON).count();
        rcu_barrier(&main, rcu);
        over.store(true, Ordering::Release);
        rcu.stop();
        assert!(threads.into_iter().all(|t| t.join().expect("caught")), "a thread failed");
        poisoned
    });
    let rounds = s.rounds.load(Ordering::Relaxed);
    eprintln!("{rounds} rounds of {readers} readers beside {ops} stores; {poisoned} records poisoned meanwhile");
    assert!(rounds > ROUNDS && poisoned > 0, "{rounds} rounds, {poisoned} poisoned");
}

/// `FAULTLINE_MAPLE_STEPS` stores in place of 30,000.
#[test]
fn readers_beside_a_writer() {
    let ops = std::env::var("FAULTLINE_MAPLE_STEPS").ok().and_then(|v| v.parse().ok()).unwrap_or(30_000u64);
    for allocator in [Allocator::Slub, Allocator::Sheaves] {
        torture(allocator, 2, ops.min(400_000) / 2);
    }
}
