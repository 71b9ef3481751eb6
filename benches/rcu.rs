// SPDX-License-Identifier: GPL-2.0-only
//! What does waiting for readers cost? The reader's side, the operation boundary, call_rcu() and kfree_rcu(), the
//! sustained rate of objects that wait for a grace period, and how long one is; beside crossbeam-epoch, seize, haphazard
//! (hazard pointers) and, where it is installed, liburcu in its flavours memb, mb and qsbr ([`urcu`]).
//!
//! The groups on one CPU run on a kernel whose other CPUs and grace-period thread are not up: the fast paths are the
//! same, and what was queued is called between the batches, where no clock runs. The rates and latencies are taken on
//! kernels that run, with ticks. Objects are 256 bytes: the port's from its own allocators, the peers' from mimalloc.
//!
//! It cannot compare like with like in the rates: a grace period of the port is a few ticks long, as a kernel's, so
//! tens of thousands of objects wait; the peers' last microseconds, so theirs come back while they are in the cache.
//! That footprint is the price of readers that cost nothing, and the rows with another HZ show how it goes. liburcu has
//! its callbacks called by another thread, here on the other CPU: with one producer it has two CPUs for the work. It
//! queues without bound, so a producer waits while more than [`MOST_WAITING`] objects of its own have not come back.

mod peers;
mod urcu;

use crossbeam_epoch as epoch;
use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::arch::{Arch, Native};
use faultline::cpu::Cpu;
use faultline::cpu::tick::exit_to_user_mode;
use faultline::host::affinity;
use faultline::init::{Kernel, KernelConfig, run_on_cpus, shutdown, start_kernel};
use faultline::mm::kconfig::Config;
use faultline::mm::vma_lock::refcnt::Refcnt;
use faultline::rcu::{
    RcuHead, call_rcu, rcu_barrier, rcu_read_lock, rcu_read_unlock, synchronize_rcu, synchronize_rcu_expedited,
};
use faultline::slab::{Allocator, kfree, kmem_cache_alloc, kmem_cache_free, kvfree_call_rcu, kvfree_rcu_barrier};
use haphazard::{Domain, HazardPointer};
use mimalloc::MiMalloc;
use peers::{Bench, Contender, Figure, ROW, Row, clobber, die};
use seize::Collector;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use urcu::{Flavours, Liburcu, MB, MEMB, MEMB_INLINED, QSBR, QSBR_INLINED, Registered, UrcuHead, Words, Worker};

type K = Config<Native, Refcnt>;

/// Callbacks of a batch: their heads fit into half of a first-level cache.
const BATCH: usize = 256;
const OBJECT: Layout = Layout::new::<[u64; 32]>();
/// Objects that a thread leaves with liburcu: 64 MiB, so that its worker always has some.
const MOST_WAITING: u64 = 1 << 18;

unsafe extern "C" fn urcu_nothing(_: *mut UrcuHead) {}

const CROSSBEAM: &str = "crossbeam pin";
const HAPHAZARD: &str = "haphazard protect, reset";
/// qsbr is not among them: its reader does nothing at all, and pays at each quiescent state.
const PEERS: &[&str] = &[CROSSBEAM, "seize", HAPHAZARD, MEMB_INLINED, MEMB, MB];

/// Words of a CPU as the shape of a reader and of a queue has them.
#[repr(align(128))]
struct Shape {
    nesting: Cell<u32>,
    special: Cell<u32>,
    seq: Cell<u64>,
    leaf_seq: AtomicU64,
    tail: Cell<*mut [Cell<usize>; 2]>,
    len: Cell<u64>,
    limit: Cell<u64>,
    head: [Cell<usize>; 2],
}

impl Shape {
    fn new() -> Self {
        let c = || Cell::new(0);
        Shape {
            nesting: Cell::new(0),
            special: Cell::new(0),
            seq: Cell::new(4),
            leaf_seq: AtomicU64::new(4),
            tail: Cell::new(null_mut()),
            len: Cell::new(0),
            limit: Cell::new(u64::MAX),
            head: [c(), c()],
        }
    }
    #[inline(always)]
    fn read(&self, special: impl FnOnce()) {
        self.nesting.set(self.nesting.get() + 1);
        clobber();
        let n = self.nesting.get() - 1;
        self.nesting.set(n);
        if n == 0 && self.special.get() != 0 {
            special();
        }
    }
}

#[cold]
#[inline(never)]
fn rare() {
    black_box(());
}

fn readers(b: &mut Bench, cpu: &Cpu<Native>, urcu: &Flavours) {
    let (shape, collector) = (Shape::new(), Collector::new());
    let mut word = 0u64;
    let pointer = std::sync::atomic::AtomicPtr::new(&raw mut word);
    let pointer = &pointer;
    let (shape, collector) = (black_box(&shape), &collector);
    for nested in [false, true] {
        let ours = move |n| {
            for _ in 0..n {
                rcu_read_lock(cpu);
                clobber();
                rcu_read_unlock(cpu);
                clobber();
            }
        };
        let crossbeam = move |n| {
            for _ in 0..n {
                let g = epoch::pin();
                clobber();
                drop(g);
            }
        };
        let seize = move |n| {
            for _ in 0..n {
                let g = collector.enter();
                clobber();
                drop(g);
            }
        };
        let bare = move |n| {
            for _ in 0..n {
                shape.read(rare);
                clobber();
            }
        };
        let mut c = vec![];
        let listed = |outer: f64, inner: f64| Some(if nested { inner } else { outer });
        if nested {
            c.push(Contender::new("rcu_read_lock", move |n| {
                rcu_read_lock(cpu);
                ours(n);
                rcu_read_unlock(cpu);
            }));
            c.push(Contender::new(CROSSBEAM, move |n| {
                let _g = epoch::pin();
                crossbeam(n);
            }));
            c.push(Contender::new("seize", move |n| {
                let _g = collector.enter();
                seize(n);
            }));
        } else {
            c.push(Contender::new("rcu_read_lock", ours));
            c.push(Contender::new(CROSSBEAM, crossbeam));
            c.push(Contender { listed: Some(52.0), ..Contender::new("seize", seize) });
        }
        c[1].listed = listed(35.0, 21.0);
        c.push(Contender { listed: Some(9.0), ..Contender::new("shape: count, special", bare) });
        if !nested {
            c.push(Contender::new(HAPHAZARD, move |n| protect(pointer, n)));
        }
        if let Some(u) = &urcu.memb {
            let run = move |n| {
                let _r = u.registered();
                read_inlined(&u.words(), nested, n);
            };
            c.push(Contender { listed: listed(25.0, 15.0), ..Contender::new(MEMB_INLINED, run) });
        }
        for (name, u) in urcu.each() {
            c.push(Contender::new(name, move |n| {
                let _r = u.registered();
                // SAFETY: the thread is registered; pairs.
                unsafe {
                    if nested {
                        (u.read_lock)();
                    }
                    for _ in 0..n {
                        (u.read_lock)();
                        (u.read_unlock)();
                    }
                    if nested {
                        (u.read_unlock)();
                    }
                }
            }));
        }
        // 0.45 of the 25 instructions of liburcu's reader when it is inlined.
        let at_most = (!nested).then_some(0.45 * 25.0);
        let why = "an increment, and a decrement with a test for what waits for the end of the section; nested, a reader of \
                   liburcu's is the two stores alone";
        let rows = [Row { ours: "rcu_read_lock", against: PEERS, target: Some(0.75), at_most, why, ..ROW }];
        let group = if nested { "rcu/read lock+unlock, nested" } else { "rcu/read lock+unlock, outermost" };
        b.solo(group, 20_000, &mut c, &rows);
    }
}

/// Readers of liburcu's memb, as a program has them that is compiled against its headers.
fn read_inlined(w: &Words, nested: bool, n: u64) {
    if nested {
        w.read_lock();
    }
    for _ in 0..n {
        w.read_lock();
        clobber();
        w.read_unlock();
        clobber();
    }
    if nested {
        w.read_unlock();
    }
}

/// A reader with a hazard pointer that it keeps.
fn protect(pointer: &std::sync::atomic::AtomicPtr<u64>, n: u64) {
    let mut h = HazardPointer::new();
    for _ in 0..n {
        black_box(h.protect_ptr(pointer));
        clobber();
        h.reset_protection();
        clobber();
    }
}

/// Return to user mode, with the tick far away, and as a worker of a native run does it.
fn boundaries(b: &mut Bench, machine: &NativeMachine, urcu: &Flavours) {
    // A tick a second: none to speak of.
    let k = start_kernel::<K>(machine, &KernelConfig::default().hz(1));
    let shape = Shape::new();
    let shape = black_box(&shape);
    {
        let (quiet, live) = (k.cpu(0), k.cpu(1));
        k.rcu.install_hooks(&live);
        let run = |cpu: &Cpu<Native>, n| {
            for _ in 0..n {
                if exit_to_user_mode(cpu).is_some() {
                    rare();
                }
                clobber();
            }
        };
        let mut c = vec![
            Contender::new("exit_to_user_mode", |n| run(&quiet, n)),
            Contender::new("the same, clock each 8th", |n| run(&live, n)),
            Contender {
                listed: Some(8.0),
                ..Contender::new("shape: compare two numbers", move |n| {
                    for _ in 0..n {
                        if shape.leaf_seq.load(Ordering::Relaxed) != shape.seq.get() {
                            rare();
                        }
                        clobber();
                    }
                })
            },
        ];
        let mut against: &[&str] = &["shape: compare two numbers"];
        if let Some(u) = &urcu.qsbr {
            against = &[QSBR_INLINED];
            let inlined = move |n| {
                let _r = u.registered();
                let w = u.words();
                for _ in 0..n {
                    w.quiescent_state();
                    clobber();
                }
            };
            c.push(Contender { listed: Some(6.0), ..Contender::new(QSBR_INLINED, inlined) });
            let called = move |n| {
                let _r = u.registered();
                // SAFETY: the thread is registered.
                (0..n).for_each(|_| unsafe { (u.quiescent_state)() });
            };
            c.push(Contender { listed: Some(30.0), ..Contender::new(QSBR, called) });
        }
        let why = "a return to user mode counts down to the next look at the clock, which stands for the timer's interrupt, \
                   and asks whether another CPU wants something; each 8th reads the clock. liburcu's is one comparison";
        let rows = [
            Row { ours: "exit_to_user_mode", against, target: Some(1.0), why, ..ROW },
            Row { ours: "the same, clock each 8th", against, why, ..ROW },
        ];
        b.solo("rcu/quiescent state, nothing to do", 20_000, &mut c, &rows);
        drop(c);
        k.rcu.remove_hooks(&live);
    }
    end(&k);
}

fn end(k: &Kernel<K>) {
    let left = shutdown(&k.cpu(0), k);
    assert!(left.is_clean(), "{left:?}");
}

/// A callback's head on a line of its own.
#[repr(C, align(64))]
#[derive(Default)]
struct Head {
    head: RcuHead<Native>,
}

unsafe fn nothing(_: &Cpu<Native>, _: *mut RcuHead<Native>) {}

/// Frees the object whose first words are the head.
///
/// # Safety
/// Queued by [`port_rate`] or [`queues`].
unsafe fn free_object(cpu: &Cpu<Native>, head: *mut RcuHead<Native>) {
    // SAFETY: the caller's: a slab object.
    unsafe { kfree(cpu, head.cast()) }
}

fn queues(b: &mut Bench, k: &Kernel<K>, cpu: &Cpu<Native>, urcu: &Flavours) {
    let other = *b.cpus.get(1).unwrap_or(&b.cpus[0]);
    let worker = urcu.memb.as_ref().map(|u| (u, u.worker(other)));
    let collector = Collector::new();
    let collector = &collector;
    let mut heads: Vec<Head> = (0..BATCH).map(|_| Head::default()).collect();
    let heads = heads.as_mut_ptr();
    let at = move |i: u64| heads.wrapping_add(i as usize % BATCH);
    // kfree_rcu() wants objects of a slab.
    let cache = &k.maple.node_cache;
    let objects = RefCell::new(vec![null_mut::<u8>(); BATCH]);
    let mut c = vec![];
    c.push(Contender {
        after: Some(Box::new(|| rcu_barrier(cpu, &k.rcu))),
        ..Contender::new("call_rcu", move |n| {
            for i in 0..n {
                // SAFETY: called before the head is queued again: `after` follows each batch.
                unsafe { call_rcu(cpu, &k.rcu, &raw mut (*at(i)).head, nothing) };
                clobber();
            }
        })
    });
    let fill = || objects.borrow_mut().iter_mut().for_each(|p| *p = kmem_cache_alloc(cpu, cache));
    fill();
    // Gets the engine's pages into its cache.
    let again = || {
        kvfree_rcu_barrier(cpu, &k.slab);
        fill();
    };
    let kfree_rcu = |n| {
        for &p in objects.borrow().iter().take(n as usize) {
            // SAFETY: allocated by `fill` and handed over once.
            unsafe { kvfree_call_rcu(cpu, &k.slab, p.cast(), p) };
            clobber();
        }
    };
    c.push(Contender { after: Some(Box::new(again)), ..Contender::new("kfree_rcu", kfree_rcu) });
    c.push(Contender {
        listed: Some(86.0),
        ..Contender::new("crossbeam pin, defer", move |n| {
            for i in 0..n {
                let g = epoch::pin();
                let p = at(i) as usize;
                // SAFETY: touches nothing.
                unsafe { g.defer_unchecked(move || _ = black_box(p)) };
            }
        })
    });
    c.push(Contender::new("seize enter, retire", move |n| {
        for i in 0..n {
            let g = collector.enter();
            // SAFETY: nothing happens to the head.
            unsafe { collector.retire(at(i), |p, _| _ = black_box(p)) };
            drop(g);
        }
    }));
    let mut cells: Vec<[u64; 8]> = vec![[0; 8]; BATCH];
    let cells = cells.as_mut_ptr();
    let reclaim = || {
        Domain::global().eager_reclaim();
    };
    c.push(Contender {
        after: Some(Box::new(reclaim)),
        ..Contender::new(HAPHAZARD_RETIRE, move |n| {
            for i in 0..n {
                // SAFETY: nothing happens to the cell when it is reclaimed.
                unsafe { Domain::global().retire_ptr::<_, Left>(cells.wrapping_add(i as usize % BATCH)) };
            }
        })
    });
    let mut urcu_heads: Vec<UrcuHead> = (0..BATCH).map(|_| UrcuHead::default()).collect();
    let urcu_heads = urcu_heads.as_mut_ptr();
    let enqueue = move |u: &Liburcu, n| {
        let _r = u.registered();
        for i in 0..n {
            // SAFETY: registered; a head is queued again only after the barrier.
            unsafe { (u.call_rcu)(urcu_heads.wrapping_add(i as usize % BATCH), urcu_nothing) };
        }
    };
    // SAFETY: waits for liburcu's own threads.
    let barrier = |u: &Liburcu| unsafe { (u.barrier)() };
    for (name, u) in urcu.each() {
        let listed = [(MEMB, 131.0), (QSBR, 62.0)].iter().find(|l| l.0 == name).map(|l| l.1);
        let after: Option<Box<dyn FnMut()>> = Some(Box::new(move || barrier(u)));
        c.push(Contender { after, listed, ..Contender::new(name, move |n| enqueue(u, n)) });
    }
    if let Some((u, worker)) = &worker {
        let run = move |n| {
            worker.of_this_thread(true);
            enqueue(u, n);
            worker.of_this_thread(false);
        };
        let after: Option<Box<dyn FnMut()>> = Some(Box::new(move || barrier(u)));
        c.push(Contender { after, listed: Some(116.0), ..Contender::new(MEMB_OWN, run) });
    }
    let shape = Shape::new();
    let shape = black_box(&shape);
    c.push(Contender {
        listed: Some(18.0),
        ..Contender::new("shape: append", move |n| {
            shape.tail.set((&raw const shape.head).cast_mut());
            for i in 0..n {
                let h: *mut [Cell<usize>; 2] = at(i).cast();
                // SAFETY: the first two words of a head of ours; the queue is never walked.
                unsafe {
                    (*h)[1].set(rare as *const () as usize);
                    (*h)[0].set(0);
                    (*shape.tail.replace(h))[0].set(h as usize);
                }
                shape.len.set(shape.len.get() + 1);
                if shape.len.get() > shape.limit.get() {
                    rare();
                }
                clobber();
            }
        })
    });
    let against = &["crossbeam pin, defer", "seize enter, retire", HAPHAZARD_RETIRE, MEMB, MB, QSBR, MEMB_OWN];
    let why = "as the kernel's it appends to a segmented list, looks whether callbacks are overloaded, offloaded or more than \
               qhimark, and is counted; a peer's is an append to a list or a bag of its own";
    let rows = [
        Row { ours: "call_rcu", against, target: Some(0.4), instructions: Some(0.5), why, ..ROW },
        Row { ours: "kfree_rcu", against, ..ROW },
    ];
    b.solo("rcu/queue a callback", BATCH as u64, &mut c, &rows);
    drop(c);
    for p in objects.into_inner() {
        // SAFETY: allocated by `fill`.
        unsafe { kmem_cache_free(cpu, cache, p) };
    }
}

const HAPHAZARD_RETIRE: &str = "haphazard retire";
const MEMB_OWN: &str = "liburcu memb, own worker";

/// Something that stays where it is when it is reclaimed.
struct Left(*mut [u64; 8]);

impl std::ops::Deref for Left {
    type Target = [u64; 8];
    fn deref(&self) -> &[u64; 8] {
        // SAFETY: of [`queues`], alive all the time.
        unsafe { &*self.0 }
    }
}

// SAFETY: a pointer and back.
unsafe impl haphazard::raw::Pointer<[u64; 8]> for Left {
    fn into_raw(self) -> *mut [u64; 8] {
        self.0
    }
    unsafe fn from_raw(p: *mut [u64; 8]) -> Self {
        Left(p)
    }
}

/// An object of mimalloc's.
struct Fresh(*mut [u64; 32]);

impl std::ops::Deref for Fresh {
    type Target = [u64; 32];
    fn deref(&self) -> &[u64; 32] {
        // SAFETY: allocated by [`fresh`], freed by the drop below.
        unsafe { &*self.0 }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(self.0.cast(), OBJECT) };
    }
}

// SAFETY: a pointer and back; whoever has the pointer does not drop.
unsafe impl haphazard::raw::Pointer<[u64; 32]> for Fresh {
    fn into_raw(self) -> *mut [u64; 32] {
        std::mem::ManuallyDrop::new(self).0
    }
    unsafe fn from_raw(p: *mut [u64; 32]) -> Self {
        Fresh(p)
    }
}

/// Both CPUs read: nothing is shared.
fn readers_on_two(b: &mut Bench, k: &Kernel<K>, urcu: &Flavours) {
    let collector = Collector::new();
    let collector = &collector;
    let mut word = 0u64;
    let pointer = std::sync::atomic::AtomicPtr::new(&raw mut word);
    let pointer = &pointer;
    let make = |side: usize| {
        let cpu = k.cpu(side as u32);
        let mut c = vec![
            Contender::new("rcu_read_lock", move |n| {
                for _ in 0..n {
                    rcu_read_lock(&cpu);
                    clobber();
                    rcu_read_unlock(&cpu);
                    clobber();
                }
            }),
            Contender::new(CROSSBEAM, |n| (0..n).for_each(|_| drop(epoch::pin()))),
            Contender::new("seize", move |n| (0..n).for_each(|_| drop(collector.enter()))),
            Contender::new(HAPHAZARD, move |n| protect(pointer, n)),
        ];
        if let Some(u) = &urcu.memb {
            c.push(Contender::new(MEMB_INLINED, move |n| {
                let _r = u.registered();
                read_inlined(&u.words(), false, n);
            }));
        }
        c
    };
    b.duo("rcu/read lock+unlock, both CPUs", 200_000, make, &[Row { ours: "rcu_read_lock", against: PEERS, ..ROW }]);
}

/// How long a rate is taken, after how long a run-up.
#[derive(Clone, Copy)]
struct Span {
    run_up: Duration,
    window: Duration,
}

impl Span {
    /// Runs `op` and says how often a second it ran.
    fn rate(self, mut op: impl FnMut()) -> f64 {
        let mut run = |d: Duration| {
            let t = Instant::now();
            let mut n = 0u64;
            while t.elapsed() < d {
                (0..256).for_each(|_| op());
                n += 256;
            }
            n as f64 / t.elapsed().as_secs_f64()
        };
        run(self.run_up);
        run(self.window)
    }
}

/// ns per object over all of `n` workers: allocate 256 bytes, clear them, queue them to be freed, return to user mode.
fn port_rate(machine: &NativeMachine, n: u32, allocator: Allocator, hz: u32, span: Span) -> f64 {
    let mut config = KernelConfig::default().hz(hz);
    config.slab.allocator = allocator;
    let k = start_kernel::<K>(machine, &config);
    let rates = Mutex::new(Vec::new());
    run_on_cpus(machine, &k, n, |cpu| {
        let cache = &k.maple.node_cache;
        let rate = span.rate(|| {
            let mut p = kmem_cache_alloc(cpu, cache);
            while p.is_null() {
                // All memory waits for a grace period.
                exit_to_user_mode(cpu);
                p = kmem_cache_alloc(cpu, cache);
            }
            // SAFETY: a fresh object of 256 bytes; its callback frees it.
            unsafe {
                p.write_bytes(0, OBJECT.size());
                call_rcu(cpu, &k.rcu, p.cast(), free_object);
            }
            exit_to_user_mode(cpu);
        });
        rates.lock().expect("no worker panics").push(rate);
    });
    end(&k);
    1e9 / rates.into_inner().expect("no worker panics").iter().sum::<f64>()
}

/// The same for a peer on `cpus`; `make` is called on each thread.
fn peer_rate<F: FnMut()>(cpus: &[u32], span: Span, make: impl Fn(usize) -> F + Sync) -> f64 {
    let make = &make;
    let sum: f64 = std::thread::scope(|s| {
        let threads: Vec<_> = cpus
            .iter()
            .enumerate()
            .map(|(i, &cpu)| {
                s.spawn(move || {
                    let _ = affinity::pin(cpu);
                    span.rate(make(i))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).sum()
    });
    1e9 / sum
}

fn fresh() -> *mut u8 {
    // SAFETY: the size is not 0; 256 fresh bytes.
    unsafe {
        let p = MiMalloc.alloc(OBJECT);
        p.write_bytes(0, OBJECT.size());
        p
    }
}

/// An object on its way through liburcu: how many of its thread came back stands behind the head.
#[repr(C)]
struct Queued {
    head: UrcuHead,
    back: *const AtomicU64,
}

unsafe extern "C" fn urcu_free(head: *mut UrcuHead) {
    // SAFETY: queued by `urcu_rate`, whose counters outlive the barrier at its end; 256 bytes of mimalloc's.
    unsafe {
        (*(*head.cast::<Queued>()).back).fetch_add(1, Ordering::Relaxed);
        MiMalloc.dealloc(head.cast(), OBJECT);
    }
}

/// Who queues to liburcu. First it leaves the readers: the worker that is freed behind it may wait for a grace period.
struct Producer<'a> {
    _registered: Registered<'a>,
    _worker: Worker<'a>,
}

/// The same for liburcu: each thread with a worker of its own on the next CPU. What is queued counts: up to `MOST_WAITING` a
/// thread are not back when the span ends, which is in liburcu's favour.
fn urcu_rate(u: &Liburcu, cpus: &[u32], workers: &[u32], span: Span) -> f64 {
    let back: Vec<AtomicU64> = cpus.iter().map(|_| AtomicU64::new(0)).collect();
    let rate = peer_rate(cpus, span, |i| {
        let worker = u.worker(workers[(i + 1) % workers.len()]);
        worker.of_this_thread(true);
        let (producer, words) = (Producer { _registered: u.registered(), _worker: worker }, u.words());
        let (back, mut queued) = (&back[i], 0u64);
        move || {
            let _ = &producer;
            let p = fresh().cast::<Queued>();
            // SAFETY: fresh and large enough; freed by its callback.
            unsafe {
                (&raw mut (*p).back).write(back);
                (u.call_rcu)(p.cast(), urcu_free);
            }
            queued += 1;
            words.quiescent_state();
            while queued % 256 == 0 && queued - back.load(Ordering::Relaxed) > MOST_WAITING {
                std::thread::yield_now();
                words.quiescent_state();
            }
        }
    });
    // SAFETY: nobody queues any more.
    unsafe { (u.barrier)() };
    rate
}

fn rates(b: &mut Bench, urcu: &Flavours) {
    for n in 1..=b.cpus.len().min(2) {
        let group = if n == 1 { "rcu/alloc, clear, defer, 1 thread" } else { "rcu/alloc, clear, defer, 2 threads" };
        if b.counts || !b.wants(group) {
            continue;
        }
        let cpus: Vec<u32> = b.cpus[..n].to_vec();
        let machine = machine(&cpus, 512 << 20);
        let ms = Duration::from_millis;
        let span = Span { run_up: b.pick(ms(2), ms(50), ms(300)), window: b.pick(ms(5), ms(80), ms(500)) };
        let collector = Collector::new();
        let ours = [
            ("slub, HZ 250", Allocator::Slub, 250),
            ("slub, HZ 1000", Allocator::Slub, 1000),
            ("sheaves, HZ 250", Allocator::Sheaves, 250),
            ("sheaves, HZ 1000", Allocator::Sheaves, 1000),
        ];
        let peers = ["crossbeam", "seize", "haphazard"];
        let flavours: Vec<_> = urcu.each().collect();
        let mut ns = vec![Vec::new(); ours.len() + peers.len() + flavours.len()];
        let rounds = b.pick(1, 5, 9);
        for _ in 0..rounds {
            for (i, &(_, allocator, hz)) in ours.iter().enumerate() {
                ns[i].push(port_rate(&machine, n as u32, allocator, hz, span));
            }
            let rates = &mut ns[ours.len()..];
            rates[0].push(peer_rate(&cpus, span, |_| {
                || {
                    let p = fresh() as usize;
                    let g = epoch::pin();
                    // SAFETY: nobody else has it; freed once.
                    unsafe { g.defer_unchecked(move || MiMalloc.dealloc(p as *mut u8, OBJECT)) };
                }
            }));
            rates[1].push(peer_rate(&cpus, span, |_| {
                || {
                    let p = fresh().cast::<[u64; 32]>();
                    let g = collector.enter();
                    // SAFETY: as above.
                    unsafe { collector.retire(p, |p, _| MiMalloc.dealloc(p.cast(), OBJECT)) };
                    drop(g);
                }
            }));
            rates[2].push(peer_rate(&cpus, span, |_| {
                || {
                    // SAFETY: as above.
                    unsafe { Domain::global().retire_ptr::<_, Fresh>(fresh().cast()) };
                }
            }));
            for (ns, (_, u)) in rates[peers.len()..].iter_mut().zip(&flavours) {
                ns.push(urcu_rate(u, &cpus, &b.cpus[..b.cpus.len().min(2)], span));
            }
        }
        let names = ours.iter().map(|o| o.0).chain(peers).chain(flavours.iter().map(|f| f.0));
        let figures: Vec<Figure> = names.zip(ns).map(|(name, v)| Figure::median(name, v, rounds)).collect();
        // Rates of 1.6 and 3 times the peer's.
        let (against, target): (&[&str], f64) = if n == 1 {
            (&["crossbeam"], 1.0 / 1.6)
        } else {
            (&["crossbeam", "seize", "haphazard", MEMB, MB, QSBR], 1.0 / 3.0)
        };
        let why = "a grace period takes a few ticks, so tens of thousands of objects wait and come back from further away \
                   than the caches reach; the peers' last microseconds";
        let row = |o: &(&'static str, Allocator, u32)| Row { ours: o.0, against, target: Some(target), why, ..ROW };
        let rows: Vec<Row> = ours.iter().map(row).collect();
        b.report(group, 2, &figures, &rows);
    }
}

type Wait = fn(&Cpu<Native>, &Kernel<K>);

/// `times` times `wait`, ns each, while a thread on `cpu` reads; `make` is called there.
fn beside_reader<F: FnMut()>(cpu: u32, times: usize, make: impl Fn() -> F + Sync, wait: impl Fn()) -> Vec<f64> {
    let (up, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut ns = Vec::with_capacity(times);
    std::thread::scope(|s| {
        s.spawn(|| {
            let _ = affinity::pin(cpu);
            let mut reader = make();
            reader();
            up.store(true, Ordering::Release);
            while !done.load(Ordering::Relaxed) {
                reader();
            }
        });
        // Without a reader there would be nobody to wait for.
        while !up.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        for _ in 0..times {
            let t = Instant::now();
            wait();
            ns.push(t.elapsed().as_nanos() as f64);
        }
        done.store(true, Ordering::Relaxed);
    });
    ns
}

/// How long a grace period keeps its caller, with a reader at work on the other CPU.
fn latencies(b: &mut Bench, urcu: &Flavours) {
    let group = "rcu/synchronize, reader beside it";
    if b.counts || !b.wants(group) || b.cpus.len() < 2 {
        return;
    }
    let cpus: Vec<u32> = b.cpus[..2].to_vec();
    let machine = machine(&cpus, 64 << 20);
    let times = b.pick(2, 10, 100);
    let mut figures = Vec::new();
    let waits: [(&str, u32, Wait); 3] = [
        ("synchronize_rcu, HZ 250", 250, |cpu, k| synchronize_rcu(cpu, &k.rcu)),
        ("synchronize_rcu, HZ 1000", 1000, |cpu, k| synchronize_rcu(cpu, &k.rcu)),
        ("expedited, HZ 250", 250, |cpu, k| synchronize_rcu_expedited(cpu, &k.rcu)),
    ];
    for (name, hz, wait) in waits {
        let k = start_kernel::<K>(&machine, &KernelConfig::default().hz(hz));
        let (done, ns) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        run_on_cpus(&machine, &k, 2, |cpu| {
            if cpu.id != 0 {
                while !done.load(Ordering::Relaxed) {
                    rcu_read_lock(cpu);
                    clobber();
                    rcu_read_unlock(cpu);
                    exit_to_user_mode(cpu);
                }
                return;
            }
            for _ in 0..times {
                let t = Native::now();
                wait(cpu, &k);
                ns.lock().expect("one user").push((Native::now() - t) as f64);
                exit_to_user_mode(cpu);
            }
            done.store(true, Ordering::Relaxed);
        });
        end(&k);
        figures.push(Figure::median(name, ns.into_inner().expect("one user"), times));
    }
    // crossbeam has no such call: something is deferred, and waited for.
    let defer_and_wait = || {
        let called = std::sync::Arc::new(AtomicBool::new(false));
        let c = called.clone();
        epoch::pin().defer(move || c.store(true, Ordering::Release));
        while !called.load(Ordering::Acquire) {
            epoch::pin().flush();
        }
    };
    let crossbeam = beside_reader(cpus[1], 10 * times, || || drop(epoch::pin()), defer_and_wait);
    figures.push(Figure::median("crossbeam defer, wait", crossbeam, 10 * times));
    for (name, u) in urcu.each() {
        let reader = || {
            let registered = u.registered();
            move || {
                let _ = &registered;
                // SAFETY: the reader's thread is registered; pairs. Of the two only qsbr has a quiescent state.
                unsafe {
                    (u.read_lock)();
                    (u.read_unlock)();
                    (u.quiescent_state)();
                }
            }
        };
        // SAFETY: outside readers.
        let ns = beside_reader(cpus[1], 10 * times, reader, || unsafe { (u.synchronize_rcu)() });
        figures.push(Figure::median(name, ns, 10 * times));
    }
    let against = &["crossbeam defer, wait", MEMB, MB, QSBR];
    let rows: Vec<Row> = waits.iter().map(|w| Row { ours: w.0, against, ..ROW }).collect();
    b.report(group, 2, &figures, &rows);
}

fn machine(cpus: &[u32], bytes: usize) -> NativeMachine {
    let cpus: Vec<OsCpu> = cpus.iter().map(|&cpu| OsCpu { cpu, node: 0 }).collect();
    NativeMachine::new(&cpus, bytes, |_, _| 10).unwrap_or_else(|e| die(&e.to_string()))
}

fn main() {
    let mut b = Bench::open("rcu");
    // Two CPUs even where there is one: in the groups on one CPU the second never runs.
    let two = [b.cpus[0], *b.cpus.get(1).unwrap_or(&b.cpus[0])];
    let urcu = &Flavours::load(two[1]);
    for (name, u) in [("memb", &urcu.memb), ("mb", &urcu.mb), ("qsbr", &urcu.qsbr)] {
        if u.is_none() {
            println!("liburcu: no rows of {name}, liburcu-{name}.so.8 is not installed (Debian: liburcu8)");
        }
    }
    {
        let m = machine(&two, 64 << 20);
        boundaries(&mut b, &m, urcu);
        let k = start_kernel::<K>(&m, &KernelConfig::default());
        {
            let cpu = k.cpu(0);
            readers(&mut b, &cpu, urcu);
            queues(&mut b, &k, &cpu, urcu);
        }
        readers_on_two(&mut b, &k, urcu);
        end(&k);
    }
    rates(&mut b, urcu);
    latencies(&mut b, urcu);
    if b.tests {
        println!("rcu: one pass of everything");
    }
}
