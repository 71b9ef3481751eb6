// SPDX-License-Identifier: GPL-2.0-only
//! What does waiting for readers cost? The reader's side, the operation boundary, call_rcu() and kfree_rcu(), the
//! sustained rate of objects that wait for a grace period, and how long one is; beside crossbeam-epoch, seize and,
//! where it is installed, liburcu (the memb flavour, loaded at run time, so its reader is a call and not inlined).
//!
//! The groups on one CPU run on a kernel whose other CPUs and grace-period thread are not up: the fast paths are the
//! same, and what was queued is called between the batches, where no clock runs. The rates and latencies are taken on
//! kernels that run, with ticks. Objects are 256 bytes: the port's from its own allocators, the peers' from mimalloc.
//!
//! It cannot compare like with like in the rates: a grace period of the port is a few ticks long, as a kernel's, so
//! tens of thousands of objects wait; the peers' last microseconds, so theirs come back while they are in the cache.
//! That footprint is the price of readers that cost nothing, and the rows with another HZ show how it goes.

mod peers;

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

type K = Config<Native, Refcnt>;

/// Callbacks of a batch: their heads fit into half of a first-level cache.
const BATCH: usize = 256;
const OBJECT: Layout = Layout::new::<[u64; 32]>();

/// liburcu, if there is one.
struct Liburcu {
    read_lock: unsafe extern "C" fn(),
    read_unlock: unsafe extern "C" fn(),
    call_rcu: unsafe extern "C" fn(*mut UrcuHead, unsafe extern "C" fn(*mut UrcuHead)),
    barrier: unsafe extern "C" fn(),
    synchronize_rcu: unsafe extern "C" fn(),
    register_thread: unsafe extern "C" fn(),
    unregister_thread: unsafe extern "C" fn(),
}

/// Its `struct rcu_head`.
#[repr(C, align(64))]
struct UrcuHead {
    next: *mut UrcuHead,
    func: usize,
}

impl Liburcu {
    fn load() -> Option<Liburcu> {
        // SAFETY: loading the library runs its constructor only.
        let lib = [c"liburcu-memb.so.8", c"liburcu-memb.so"]
            .iter()
            .map(|name| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) })
            .find(|l| !l.is_null())?;
        let find = |name: &std::ffi::CStr| {
            // SAFETY: an open library and a name.
            let f = unsafe { libc::dlsym(lib, name.as_ptr()) };
            (!f.is_null()).then_some(f)
        };
        type F = unsafe extern "C" fn();
        // SAFETY: functions of these signatures, as its header declares them.
        unsafe {
            let plain = |name: &std::ffi::CStr| find(name).map(|f| std::mem::transmute::<*mut libc::c_void, F>(f));
            let call = find(c"urcu_memb_call_rcu")?;
            Some(Liburcu {
                read_lock: plain(c"urcu_memb_read_lock")?,
                read_unlock: plain(c"urcu_memb_read_unlock")?,
                call_rcu: std::mem::transmute::<
                    *mut libc::c_void,
                    unsafe extern "C" fn(*mut UrcuHead, unsafe extern "C" fn(*mut UrcuHead)),
                >(call),
                barrier: plain(c"urcu_memb_barrier")?,
                synchronize_rcu: plain(c"urcu_memb_synchronize_rcu")?,
                register_thread: plain(c"urcu_memb_register_thread")?,
                unregister_thread: plain(c"urcu_memb_unregister_thread")?,
            })
        }
    }
}

unsafe extern "C" fn urcu_nothing(_: *mut UrcuHead) {}

const PEERS: &[&str] = &["crossbeam pin", "seize", "liburcu memb, called"];

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

fn readers(b: &mut Bench, cpu: &Cpu<Native>, urcu: Option<&Liburcu>) {
    let (shape, collector) = (Shape::new(), Collector::new());
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
            c.push(Contender::new("crossbeam pin", move |n| {
                let _g = epoch::pin();
                crossbeam(n);
            }));
            c.push(Contender::new("seize", move |n| {
                let _g = collector.enter();
                seize(n);
            }));
        } else {
            c.push(Contender::new("rcu_read_lock", ours));
            c.push(Contender::new("crossbeam pin", crossbeam));
            c.push(Contender { listed: Some(52.0), ..Contender::new("seize", seize) });
        }
        c[1].listed = listed(35.0, 21.0);
        c.push(Contender { listed: Some(9.0), ..Contender::new("shape: count, special", bare) });
        if let Some(u) = urcu {
            c.push(Contender::new("liburcu memb, called", move |n| {
                // SAFETY: the thread is registered; pairs.
                unsafe {
                    (u.register_thread)();
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
                    (u.unregister_thread)();
                }
            }));
        }
        // 0.45 of the 25 instructions of liburcu's reader when it is inlined.
        let at_most = (!nested).then_some(0.45 * 25.0);
        let rows = [Row { ours: "rcu_read_lock", against: PEERS, target: Some(0.75), at_most, ..ROW }];
        let group = if nested { "rcu/read lock+unlock, nested" } else { "rcu/read lock+unlock, outermost" };
        b.solo(group, 20_000, &mut c, &rows);
    }
}

/// Return to user mode, with the tick far away, and as a worker of a native run does it.
fn boundaries(b: &mut Bench, machine: &NativeMachine) {
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
        let against = &["shape: compare two numbers"];
        let rows = [
            Row { ours: "exit_to_user_mode", against, target: Some(1.0), ..ROW },
            Row { ours: "the same, clock each 8th", against, ..ROW },
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

fn queues(b: &mut Bench, k: &Kernel<K>, cpu: &Cpu<Native>, urcu: Option<&Liburcu>) {
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
    let mut urcu_heads: Vec<UrcuHead> = (0..BATCH).map(|_| UrcuHead { next: null_mut(), func: 0 }).collect();
    let urcu_heads = urcu_heads.as_mut_ptr();
    if let Some(u) = urcu {
        let run = move |n| {
            // SAFETY: registered; a head is queued again only after the barrier.
            unsafe { (u.register_thread)() };
            for i in 0..n {
                // SAFETY: as above.
                unsafe { (u.call_rcu)(urcu_heads.wrapping_add(i as usize % BATCH), urcu_nothing) };
            }
            // SAFETY: as above.
            unsafe { (u.unregister_thread)() };
        };
        // SAFETY: waits for its own worker.
        let after = move || unsafe { (u.barrier)() };
        c.push(Contender {
            after: Some(Box::new(after)),
            listed: Some(131.0),
            ..Contender::new("liburcu memb, called", run)
        });
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
    let against = &["crossbeam pin, defer", "seize enter, retire", "liburcu memb, called"];
    let rows = [
        Row { ours: "call_rcu", against, target: Some(0.4), instructions: Some(0.5), ..ROW },
        Row { ours: "kfree_rcu", against, ..ROW },
    ];
    b.solo("rcu/queue a callback", BATCH as u64, &mut c, &rows);
    drop(c);
    for p in objects.into_inner() {
        // SAFETY: allocated by `fill`.
        unsafe { kmem_cache_free(cpu, cache, p) };
    }
}

/// Both CPUs read: nothing is shared.
fn readers_on_two(b: &mut Bench, k: &Kernel<K>) {
    let collector = Collector::new();
    let collector = &collector;
    let make = |side: usize| {
        let cpu = k.cpu(side as u32);
        vec![
            Contender::new("rcu_read_lock", move |n| {
                for _ in 0..n {
                    rcu_read_lock(&cpu);
                    clobber();
                    rcu_read_unlock(&cpu);
                    clobber();
                }
            }),
            Contender::new("crossbeam pin", |n| (0..n).for_each(|_| drop(epoch::pin()))),
            Contender::new("seize", move |n| (0..n).for_each(|_| drop(collector.enter()))),
        ]
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

/// The same for a peer on `cpus`.
fn peer_rate(cpus: &[u32], span: Span, op: impl Fn() + Sync) -> f64 {
    let op = &op;
    let sum: f64 = std::thread::scope(|s| {
        let threads: Vec<_> = cpus
            .iter()
            .map(|&cpu| {
                s.spawn(move || {
                    let _ = affinity::pin(cpu);
                    span.rate(op)
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

fn rates(b: &mut Bench) {
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
        let mut ns = vec![Vec::new(); ours.len() + 2];
        let rounds = b.pick(1, 5, 9);
        for _ in 0..rounds {
            for (i, &(_, allocator, hz)) in ours.iter().enumerate() {
                ns[i].push(port_rate(&machine, n as u32, allocator, hz, span));
            }
            ns[ours.len()].push(peer_rate(&cpus, span, || {
                let p = fresh() as usize;
                let g = epoch::pin();
                // SAFETY: nobody else has it; freed once.
                unsafe { g.defer_unchecked(move || MiMalloc.dealloc(p as *mut u8, OBJECT)) };
            }));
            ns[ours.len() + 1].push(peer_rate(&cpus, span, || {
                let p = fresh().cast::<[u64; 32]>();
                let g = collector.enter();
                // SAFETY: as above.
                unsafe { collector.retire(p, |p, _| MiMalloc.dealloc(p.cast(), OBJECT)) };
                drop(g);
            }));
        }
        let names = ours.iter().map(|o| o.0).chain(["crossbeam", "seize"]);
        let figures: Vec<Figure> = names.zip(ns).map(|(name, v)| Figure::median(name, v, rounds)).collect();
        // Rates of 1.6 and 3 times the peer's.
        let (against, target): (&[&str], f64) =
            if n == 1 { (&["crossbeam"], 1.0 / 1.6) } else { (&["crossbeam", "seize"], 1.0 / 3.0) };
        let rows: Vec<Row> = ours.iter().map(|o| Row { ours: o.0, against, target: Some(target), ..ROW }).collect();
        b.report(group, 2, &figures, &rows);
    }
}

type Wait = fn(&Cpu<Native>, &Kernel<K>);

/// How long a grace period keeps its caller, with a reader at work on the other CPU.
fn latencies(b: &mut Bench, urcu: Option<&Liburcu>) {
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
    let peer = |name: &str, reader: &(dyn Fn() + Sync), wait: &dyn Fn()| {
        let done = AtomicBool::new(false);
        let mut ns = Vec::new();
        std::thread::scope(|s| {
            s.spawn(|| {
                let _ = affinity::pin(cpus[1]);
                if let Some(u) = urcu {
                    // SAFETY: once on this thread, undone below.
                    unsafe { (u.register_thread)() };
                }
                while !done.load(Ordering::Relaxed) {
                    reader();
                }
                if let Some(u) = urcu {
                    // SAFETY: as above.
                    unsafe { (u.unregister_thread)() };
                }
            });
            for _ in 0..10 * times {
                let t = Instant::now();
                wait();
                ns.push(t.elapsed().as_nanos() as f64);
            }
            done.store(true, Ordering::Relaxed);
        });
        Figure::median(name, ns, 10 * times)
    };
    // crossbeam has no such call: something is deferred, and waited for.
    figures.push(peer("crossbeam defer, wait", &|| drop(epoch::pin()), &|| {
        let called = std::sync::Arc::new(AtomicBool::new(false));
        let c = called.clone();
        epoch::pin().defer(move || c.store(true, Ordering::Release));
        while !called.load(Ordering::Acquire) {
            epoch::pin().flush();
        }
    }));
    if let Some(u) = urcu {
        // SAFETY: the reader's thread is registered; pairs.
        let reader = || unsafe {
            (u.read_lock)();
            (u.read_unlock)();
        };
        // SAFETY: outside readers.
        figures.push(peer("liburcu memb, called", &reader, &|| unsafe { (u.synchronize_rcu)() }));
    }
    let against = &["crossbeam defer, wait", "liburcu memb, called"];
    let rows: Vec<Row> = waits.iter().map(|w| Row { ours: w.0, against, ..ROW }).collect();
    b.report(group, 2, &figures, &rows);
}

fn machine(cpus: &[u32], bytes: usize) -> NativeMachine {
    let cpus: Vec<OsCpu> = cpus.iter().map(|&cpu| OsCpu { cpu, node: 0 }).collect();
    NativeMachine::new(&cpus, bytes, |_, _| 10).unwrap_or_else(|e| die(&e.to_string()))
}

fn main() {
    let mut b = Bench::open("rcu");
    let urcu = Liburcu::load();
    if urcu.is_none() {
        println!("liburcu: skipped, liburcu-memb.so is not installed (Debian: liburcu8)");
    }
    let urcu = urcu.as_ref();
    // Two CPUs even where there is one: in the groups on one CPU the second never runs.
    let two = [b.cpus[0], *b.cpus.get(1).unwrap_or(&b.cpus[0])];
    {
        let m = machine(&two, 64 << 20);
        boundaries(&mut b, &m);
        let k = start_kernel::<K>(&m, &KernelConfig::default());
        {
            let cpu = k.cpu(0);
            readers(&mut b, &cpu, urcu);
            queues(&mut b, &k, &cpu, urcu);
        }
        readers_on_two(&mut b, &k);
        end(&k);
    }
    rates(&mut b);
    latencies(&mut b, urcu);
    if b.tests {
        println!("rcu: one pass of everything");
    }
}
