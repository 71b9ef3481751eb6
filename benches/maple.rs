// SPDX-License-Identifier: GPL-2.0-only
//! What does the range tree cost? Lookups under RCU, steps, stores, searches for a hole, with 10 to 65,000 ranges of 4
//! pages that lie 4 pages apart, at random places; bytes per range; and the mm's use of it: a mapping made and removed,
//! the other calls in pairs that leave it as it was, fork and exit. Both of the port's trees (6.12's over slub, 7.3's
//! over sheaves) beside std's BTreeMap, which has no readers beside the writer, no holes and no ranges to split: it keeps
//! `first -> (last, entry)` and does the least that the operation needs.
//!
//! "listed" are the instructions of 7.3's own tree, compiled at -O2 over an allocator that is a list. Here nodes come
//! from the port's slab and go back through call_rcu() or kfree_rcu(); the callbacks run between the batches, where no
//! clock runs and nothing is counted.
//!
//! It cannot tell what a reader costs beside a writer, or what misses of the cache cost under load.

#[expect(dead_code, reason = "no two CPUs here")]
mod peers;

use faultline::arch::Native;
use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::cpu::{Cpu, splitmix64};
use faultline::init::{Kernel, KernelConfig, shutdown, start_kernel};
use faultline::maple_tree::{
    MT_FLAGS_ALLOC_RANGE, MT_FLAGS_LOCK_EXTERN, MT_FLAGS_USE_RCU, MaState, MapleTree, mas_empty_area,
    mas_empty_area_rev, mas_find, mas_next, mas_preallocate, mas_set_range, mas_store_gfp, mas_store_prealloc,
    mas_walk, mt_destroy, mt_validate, mtree_load,
};
use faultline::mm::kconfig::Config;
use faultline::mm::madvise::{MADV_DODUMP, MADV_DONTDUMP};
use faultline::mm::mlock::MLOCK_ONFAULT;
use faultline::mm::mm_types::CAP_IPC_LOCK;
use faultline::mm::mremap::{MREMAP_FIXED, MREMAP_MAYMOVE};
use faultline::mm::vma_lock::refcnt::Refcnt;
use faultline::mm::{
    MmPtr, dup_mm, mm_alloc, mmput, sys_brk, sys_madvise, sys_mlock, sys_mprotect, sys_mremap, sys_munlock, vm_mmap,
    vm_munmap,
};
use faultline::rcu::{rcu_barrier, rcu_read_lock, rcu_read_unlock};
use faultline::slab::{Allocator, SlabOptions, kvfree_rcu_barrier};
use peers::{Bench, Contender, ROW, Row};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::ptr::{null_mut, without_provenance_mut};

type K = Config<Native, Refcnt>;

const PAGE: u64 = 4096;
/// Distance of two ranges; the lower half of it is used.
const STRIDE: u64 = 8 * PAGE;
const MM_MT_FLAGS: u32 = MT_FLAGS_ALLOC_RANGE | MT_FLAGS_LOCK_EXTERN | MT_FLAGS_USE_RCU;

fn entry(i: u64) -> *mut () {
    without_provenance_mut((i as usize + 1) << 12)
}

/// A kernel on its own machine.
struct Booted {
    name: &'static str,
    k: Kernel<K>,
    _machine: NativeMachine,
}

impl Booted {
    fn new(name: &'static str, allocator: Allocator, cpu: u32) -> Self {
        let machine = NativeMachine::new(&[OsCpu { cpu, node: 0 }], 512 << 20, |_, _| 10)
            .unwrap_or_else(|e| peers::die(&e.to_string()));
        let slab = SlabOptions { allocator, ..SlabOptions::default() };
        let k = start_kernel::<K>(&machine, &KernelConfig { slab, ..KernelConfig::default() });
        Booted { name, k, _machine: machine }
    }
    /// Runs what waits for grace periods.
    fn settle(&self, cpu: &Cpu<Native>) {
        kvfree_rcu_barrier(cpu, &self.k.slab);
        rcu_barrier(cpu, &self.k.rcu);
    }
}

/// Numbers of ranges in a random order that repeats.
struct Order {
    of: Vec<u32>,
    at: Cell<usize>,
}

impl Order {
    fn new(n: u64, seed: u64) -> Self {
        let mut of: Vec<u32> = (0..n as u32).collect();
        of.sort_by_key(|&i| splitmix64(u64::from(i) ^ splitmix64(seed)));
        Order { of, at: Cell::new(0) }
    }
    #[inline(always)]
    fn next(&self) -> u64 {
        let at = self.at.get();
        self.at.set(if at + 1 == self.of.len() { 0 } else { at + 1 });
        u64::from(self.of[at])
    }
}

/// A tree of the port with `n` ranges.
struct Port<'a> {
    cpu: &'a Cpu<Native>,
    b: &'a Booted,
    mt: MapleTree<Native>,
    order: Order,
}

impl<'a> Port<'a> {
    fn new(b: &'a Booted, cpu: &'a Cpu<Native>, n: u64) -> Self {
        let p = Port { cpu, b, mt: MapleTree::new(MM_MT_FLAGS), order: Order::new(n, 7) };
        for i in Order::new(n, 1).of {
            p.store(u64::from(i) * STRIDE, 4 * PAGE, entry(u64::from(i)));
        }
        b.settle(cpu);
        p
    }
    #[inline(always)]
    fn mas(&self, first: u64, last: u64) -> MaState<'_, Native> {
        MaState::new(&self.mt, self.b.k.maple, first, last)
    }
    #[inline(always)]
    fn store(&self, first: u64, len: u64, e: *mut ()) {
        mas_store_gfp(self.cpu, &mut self.mas(first, first + len - 1), e).expect("memory");
    }
}

impl Drop for Port<'_> {
    fn drop(&mut self) {
        mt_destroy(self.cpu, self.b.k.maple, &self.mt);
        self.b.settle(self.cpu);
    }
}

/// The peer.
struct Map {
    map: RefCell<BTreeMap<u64, (u64, u64)>>,
    order: Order,
}

impl Map {
    fn new(n: u64) -> Self {
        let map = Order::new(n, 1).of.into_iter().map(|i| (u64::from(i) * STRIDE, (4 * PAGE, u64::from(i)))).collect();
        Map { map: RefCell::new(map), order: Order::new(n, 7) }
    }
}

const BTREE: &str = "BTreeMap";

fn listed<'a>(c: Contender<'a>, n: Option<f64>) -> Contender<'a> {
    Contender { listed: n, ..c }
}

/// One group: `$port` with `p` and `i` for both trees, `$map` with `m` and `i` for the peer.
macro_rules! group {
    ($bench:ident, $kernels:ident, $tokens:ident, $n:expr, $what:expr, $listed:expr, $share:expr,
     |$p:ident, $i:ident| $port:expr, |$m:ident, $j:ident| $map:expr) => {{
        let name = format!("maple/{}, {} ranges", $what, $n);
        if $bench.wants(&name) {
            let mut c = Vec::new();
            for (b, cpu) in $kernels.iter().zip(&$tokens) {
                let tree = std::rc::Rc::new(Port::new(b, cpu, $n));
                let run = {
                    let $p = tree.clone();
                    move |n: u64| {
                        for _ in 0..n {
                            let $i = $p.order.next();
                            $port;
                        }
                    }
                };
                let mut one = listed(Contender::new(b.name, run), $listed);
                one.after = Some(Box::new(move || tree.b.settle(tree.cpu)));
                c.push(one);
            }
            let $m = Map::new($n);
            c.push(Contender::new(BTREE, move |n: u64| {
                for _ in 0..n {
                    let $j = $m.order.next();
                    $map;
                }
            }));
            let at_most: Option<f64> = Option::<f64>::map($listed, |l| l * $share);
            let rows = [
                Row { ours: "6.12 over slub", against: &[BTREE], at_most, ..ROW },
                Row { ours: "7.3 over sheaves", against: &[BTREE], at_most, ..ROW },
            ];
            let batch = $bench.pick(20, 500, 2000);
            $bench.solo(&name, batch, &mut c, &rows);
        }
    }};
}

fn main() {
    let mut bench = Bench::open("maple");
    bench.sizes = true;
    let first = bench.cpus[0];
    let kernels = [("6.12 over slub", Allocator::Slub), ("7.3 over sheaves", Allocator::Sheaves)]
        .map(|(n, a)| Booted::new(n, a, first));
    let tokens: Vec<Cpu<Native>> = kernels.iter().map(|b| b.k.cpu(0)).collect();

    // Ranges, then what 7.3's own tree takes: walk, load, an entry stepped over, store or erase, find and store, split
    // or join, replace; instructions.
    let sizes: [(u64, [f64; 7]); 5] = [
        (10, [236.0, 170.0, 181.0, 1022.0, 1350.0, 877.0, 448.0]),
        (100, [309.0, 230.0, 169.0, 1388.0, 1830.0, 1048.0, 584.0]),
        (1_000, [378.0, 290.0, 171.0, 1651.0, 2017.0, 1214.0, 708.0]),
        (10_000, [440.0, 338.0, 171.0, 1810.0, 2377.0, 1339.0, 841.0]),
        (65_000, [504.0, 394.0, 171.0, 2104.0, 2633.0, 1601.0, 964.0]),
    ];
    for (n, [walk, load, step, store, find, split, replace]) in sizes {
        group!(
            bench,
            kernels,
            tokens,
            n,
            "walk under RCU",
            Some(walk),
            0.75,
            |p, i| {
                rcu_read_lock(p.cpu);
                let at = i * STRIDE + PAGE;
                black_box(mas_walk(p.cpu, &mut p.mas(at, at)));
                rcu_read_unlock(p.cpu);
            },
            |m, i| {
                let at = i * STRIDE + PAGE;
                black_box(m.map.borrow().range(..=at).next_back().filter(|(f, v)| **f + v.0 > at));
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "load",
            Some(load),
            0.9,
            |p, i| {
                black_box(mtree_load(p.cpu, p.b.k.maple, &p.mt, i * STRIDE + PAGE));
            },
            |m, i| {
                let at = i * STRIDE + PAGE;
                black_box(m.map.borrow().range(..=at).next_back().filter(|(f, v)| **f + v.0 > at));
            }
        );
        // Eight entries a turn: figures are per turn, so eight times those listed.
        group!(
            bench,
            kernels,
            tokens,
            n,
            "find and 7 steps",
            Some(8.0 * step),
            0.6,
            |p, i| {
                rcu_read_lock(p.cpu);
                let mut mas = p.mas(i * STRIDE, i * STRIDE);
                black_box(mas_find(p.cpu, &mut mas, u64::MAX));
                for _ in 0..7 {
                    black_box(mas_next(p.cpu, &mut mas, u64::MAX));
                }
                rcu_read_unlock(p.cpu);
            },
            |m, i| {
                m.map.borrow().range(i * STRIDE..).take(8).for_each(|e| {
                    black_box(e);
                });
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "erase and store",
            Some(2.0 * store),
            0.9,
            |p, i| {
                p.store(i * STRIDE, 4 * PAGE, null_mut());
                p.store(i * STRIDE, 4 * PAGE, entry(i));
            },
            |m, i| {
                let mut map = m.map.borrow_mut();
                black_box(map.remove(&(i * STRIDE)));
                map.insert(i * STRIDE, (4 * PAGE, i));
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "find, preallocate, store; and erase",
            Some(find + store),
            0.85,
            |p, i| {
                let at = i * STRIDE + 5 * PAGE;
                let mut mas = p.mas(at, at);
                black_box(mas_walk(p.cpu, &mut mas));
                mas_set_range(&mut mas, at, at + PAGE - 1);
                mas_preallocate(p.cpu, &mut mas, entry(i)).expect("memory");
                mas_store_prealloc(p.cpu, &mut mas, entry(i));
                p.store(at, PAGE, null_mut());
            },
            |m, i| {
                let at = i * STRIDE + 5 * PAGE;
                let mut map = m.map.borrow_mut();
                black_box(map.range(..=at).next_back());
                map.insert(at, (PAGE, i));
                map.remove(&at);
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "split and join",
            Some(2.0 * split),
            0.9,
            |p, i| {
                p.store(i * STRIDE, 2 * PAGE, entry(i + 100_000));
                p.store(i * STRIDE, 4 * PAGE, entry(i));
            },
            |m, i| {
                let mut map = m.map.borrow_mut();
                if let Some(v) = map.get_mut(&(i * STRIDE)) {
                    *v = (2 * PAGE, i);
                }
                map.insert(i * STRIDE + 2 * PAGE, (2 * PAGE, i));
                map.remove(&(i * STRIDE + 2 * PAGE));
                map.insert(i * STRIDE, (4 * PAGE, i));
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "replace",
            Some(replace),
            0.9,
            |p, i| {
                p.store(i * STRIDE, 4 * PAGE, entry(i));
            },
            |m, i| {
                m.map.borrow_mut().insert(i * STRIDE, (4 * PAGE, i));
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "hole, top down",
            None,
            1.0,
            |p, i| {
                let mut mas = p.mas(0, 0);
                black_box(mas_empty_area_rev(&mut mas, PAGE, (i + 1) * STRIDE, 2 * PAGE).is_ok());
            },
            |m, i| {
                let mut end = (i + 1) * STRIDE;
                for (f, v) in m.map.borrow().range(..end).rev() {
                    if end - (f + v.0) >= 2 * PAGE {
                        break;
                    }
                    end = *f;
                }
                black_box(end);
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "hole, from a hint",
            None,
            1.0,
            |p, i| {
                let mut mas = p.mas(0, 0);
                black_box(mas_empty_area(&mut mas, i * STRIDE, u64::MAX >> 1, 2 * PAGE).is_ok());
            },
            |m, i| {
                let mut begin = i * STRIDE;
                for (f, v) in m.map.borrow().range(begin..) {
                    if f - begin >= 2 * PAGE {
                        break;
                    }
                    begin = f + v.0;
                }
                black_box(begin);
            }
        );
        group!(
            bench,
            kernels,
            tokens,
            n,
            "hole, bottom up",
            None,
            1.0,
            |p, _i| {
                let mut mas = p.mas(0, 0);
                black_box(mas_empty_area(&mut mas, PAGE, u64::MAX >> 1, 2 * PAGE).is_ok());
            },
            |m, _j| {
                let mut begin = PAGE;
                for (f, v) in m.map.borrow().iter() {
                    if *f >= begin + 2 * PAGE {
                        break;
                    }
                    begin = f + v.0;
                }
                black_box(begin);
            }
        );
        if !bench.counts {
            for (b, cpu) in kernels.iter().zip(&tokens) {
                let p = Port::new(b, cpu, n);
                let gaps = mt_validate(&p.mt).expect("a tree").nodes;
                // The holes filled: every range beside the next.
                for i in 0..n {
                    p.store(i * STRIDE + 4 * PAGE, 4 * PAGE, entry(i + 100_000));
                }
                let adjacent = mt_validate(&p.mt).expect("a tree").nodes;
                println!(
                    "maple/bytes per range, {n} ranges, {}: {:.1} with holes, {:.1} without",
                    b.name,
                    (gaps * 256) as f64 / n as f64,
                    (adjacent * 256) as f64 / (2 * n) as f64
                );
            }
        }
    }
    mm(&mut bench, &kernels, &tokens);

    for (b, cpu) in kernels.iter().zip(&tokens) {
        let left = shutdown(cpu, &b.k);
        assert!(left.is_clean(), "{}: {left:?}", b.name);
    }
}

/// An address space with `n` mappings of 4 pages, 4 pages apart.
fn space(b: &Booted, cpu: &Cpu<Native>, n: u64) -> (MmPtr<K>, u64) {
    let mm = mm_alloc(cpu, &b.k);
    let base = 1 << 32;
    for i in Order::new(n, 1).of {
        vm_mmap(cpu, &b.k, mm, Some(base + u64::from(i) * STRIDE), 4 * PAGE, 3).expect("memory");
    }
    b.settle(cpu);
    (mm, base)
}

/// One turn at the address of a mapping of 4 pages.
type Turn = fn(&Cpu<Native>, &Kernel<K>, MmPtr<K>, u64);

/// A place that no mapping of [`space`] reaches.
const ASIDE: u64 = 1 << 44;

/// Pairs of calls that leave the address space as it was; nothing in it is touched.
const CALLS: [(&str, Turn); 9] = [
    ("brk up and down", |cpu, k, mm, _| {
        let heap = mm.brk.get();
        sys_brk(cpu, k, mm, heap + PAGE);
        sys_brk(cpu, k, mm, heap);
    }),
    ("mprotect, splits and merges", |cpu, k, mm, at| {
        sys_mprotect(cpu, k, mm, at + PAGE, PAGE, 1).expect("memory");
        sys_mprotect(cpu, k, mm, at + PAGE, PAGE, 3).expect("memory");
    }),
    ("mprotect, whole", |cpu, k, mm, at| {
        sys_mprotect(cpu, k, mm, at, 4 * PAGE, 1).expect("memory");
        sys_mprotect(cpu, k, mm, at, 4 * PAGE, 3).expect("memory");
    }),
    ("madvise, splits and merges", |cpu, k, mm, at| {
        sys_madvise(cpu, k, mm, at + PAGE, PAGE, MADV_DONTDUMP).expect("memory");
        sys_madvise(cpu, k, mm, at + PAGE, PAGE, MADV_DODUMP).expect("memory");
    }),
    ("mlock2 and munlock, split and merge", |cpu, k, mm, at| {
        sys_mlock(cpu, k, mm, at + PAGE, PAGE, MLOCK_ONFAULT).expect("memory");
        sys_munlock(cpu, k, mm, at + PAGE, PAGE).expect("memory");
    }),
    ("mremap, grows and shrinks", |cpu, k, mm, at| {
        sys_mremap(cpu, k, mm, at, 4 * PAGE, 5 * PAGE, 0, 0).expect("memory");
        sys_mremap(cpu, k, mm, at, 5 * PAGE, 4 * PAGE, 0, 0).expect("memory");
    }),
    ("mremap, moves away and back", |cpu, k, mm, at| {
        let how = MREMAP_MAYMOVE | MREMAP_FIXED;
        sys_mremap(cpu, k, mm, at, 4 * PAGE, 4 * PAGE, how, ASIDE).expect("memory");
        sys_mremap(cpu, k, mm, ASIDE, 4 * PAGE, 4 * PAGE, how, at).expect("memory");
    }),
    ("MAP_FIXED over a whole one, twice", |cpu, k, mm, at| {
        vm_mmap(cpu, k, mm, Some(at), 4 * PAGE, 1).expect("memory");
        vm_mmap(cpu, k, mm, Some(at), 4 * PAGE, 3).expect("memory");
    }),
    ("MAP_FIXED over the middle, twice", |cpu, k, mm, at| {
        vm_mmap(cpu, k, mm, Some(at + PAGE), PAGE, 1).expect("memory");
        vm_mmap(cpu, k, mm, Some(at + PAGE), PAGE, 3).expect("memory");
    }),
];

/// One row for each tree: `prepare` is told of an address space of `n` mappings and gives what to do a turn.
fn mm_row<'a, F: FnMut() + 'a>(
    bench: &mut Bench,
    kernels: &'a [Booted; 2],
    tokens: &'a [Cpu<Native>],
    (call, n, batch): (&str, u64, u64),
    listed_at: Option<f64>,
    prepare: impl Fn(&'a Booted, &'a Cpu<Native>, MmPtr<K>, u64) -> F,
) {
    let group = format!("maple/{call}, {n} mappings");
    if !bench.wants(&group) {
        return;
    }
    let spaces: Vec<_> = kernels.iter().zip(tokens).map(|(b, cpu)| (b, cpu, space(b, cpu, n))).collect();
    let mut c = Vec::new();
    for &(b, cpu, (mm, base)) in &spaces {
        let mut turn = prepare(b, cpu, mm, base);
        let mut one = Contender::new(b.name, move |turns| (0..turns).for_each(|_| turn()));
        one.after = Some(Box::new(move || b.settle(cpu)));
        c.push(listed(one, listed_at));
    }
    // What 7.3's VMA code takes with its locks stubbed, and a tenth for the locks.
    let at_most = listed_at.map(|l| 1.1 * l);
    let rows =
        ["6.12 over slub", "7.3 over sheaves"].map(|ours| Row { ours, against: &["6.12 over slub"], at_most, ..ROW });
    bench.solo(&group, batch, &mut c, &rows);
    drop(c);
    for (b, cpu, (mm, _)) in spaces {
        mmput(cpu, &b.k, mm);
        b.settle(cpu);
    }
}

fn mm(bench: &mut Bench, kernels: &[Booted; 2], tokens: &[Cpu<Native>]) {
    let batch = bench.pick(10, 300, 1000);
    for (n, listed_pair) in [(10, 2.0 * 2213.0), (100, 2.0 * 2353.0), (1_000, 2.0 * 2430.0), (10_000, 2.0 * 2195.0)] {
        let row = ("mmap and munmap", n, batch);
        mm_row(bench, kernels, tokens, row, Some(listed_pair), |b, cpu, mm, base| {
            let order = Order::new(n, 7);
            move || {
                let at = base + order.next() * STRIDE + 5 * PAGE;
                vm_mmap(cpu, &b.k, mm, Some(at), PAGE, 3).expect("memory");
                vm_munmap(cpu, &b.k, mm, at, PAGE).expect("memory");
            }
        });
    }
    for (name, call) in CALLS {
        let listed = (name == "mprotect, splits and merges").then_some(2.0 * 2985.0);
        mm_row(bench, kernels, tokens, (name, 1_000, batch), listed, |b, cpu, mm, base| {
            mm.caps.set(CAP_IPC_LOCK);
            let heap = mm.brk.get() + PAGE;
            assert_eq!(sys_brk(cpu, &b.k, mm, heap), heap, "a heap to grow");
            let order = Order::new(1_000, 7);
            move || call(cpu, &b.k, mm, base + order.next() * STRIDE)
        });
    }
    let few = bench.pick(1, 3, 10);
    for n in [100, 1_000, 10_000] {
        mm_row(bench, kernels, tokens, ("fork and exit", n, few), None, |b, cpu, mm, _| {
            move || {
                let child = dup_mm(cpu, &b.k, mm).expect("memory");
                mmput(cpu, &b.k, child);
            }
        });
    }
}
