// SPDX-License-Identifier: GPL-2.0-only
//! What the facade costs in the native world, which must be nothing, and what the port's locks cost beside others.
//!
//! The facade against std by criterion: each pair runs interleaved: while one side is timed, the other runs untimed in
//! between, so that both meet the same machine in the same state (L19 of the lock invariants). The locks against std's,
//! parking_lot's and pthread's, on one CPU and on two at once, as rows (`peers.rs`).
//!
//! Locks of different houses are not the same thing. The port's name their owner, spin on it before they sleep, hand
//! over in order after a while, and keep the kernel's layout; what that costs without contention is the difference seen
//! on one CPU. What the kernel's own steps come to, written out by hand over std's words, is a contender too, `parts`:
//! the port's lock and unlock may take a fifth more instructions than that and no more, which `scripts/instructions
//! --check` holds; its time is only reported. On two CPUs with nothing between lock and unlock, who lets the same CPU
//! take the lock again and again looks best: that is a property of the lock, and no advantage to those who wait.

mod peers;

use criterion::{Criterion, criterion_group};
use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::arch::{Acquire, Atomic, Native, Relaxed, Release, smp_cond_load_relaxed};
use faultline::cpu::Cpu;
use faultline::host::affinity;
use faultline::init::{Kernel, KernelConfig, shutdown, start_kernel};
use faultline::mm::kconfig::Config;
use faultline::mm::mm_types::{MmRef, VM_READ, VM_WRITE, VmaFields, VmaRef};
use faultline::mm::mmap_lock::lock_vma_under_rcu;
use faultline::mm::vma_lock::refcnt::Refcnt;
use faultline::mm::vma_lock::rwsem_separate::RwsemSeparate;
use faultline::mm::vma_lock::{StartRead, VmaLock};
use faultline::mm::{mm_alloc, mmput, vm_mmap};
use faultline::rcu::{rcu_read_lock, rcu_read_unlock};
use faultline::sync::{
    Mutex, RawSpinLock, Refcount, RwSemaphore, Seqcount, down_read, down_write, mutex_lock, mutex_unlock,
    raw_spin_lock, raw_spin_unlock, up_read, up_write,
};
use peers::{Bench, Contender, ROW, Row, clobber, die};
use std::cell::{Cell, UnsafeCell};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Operations timed at once: long beside a clock reading, short beside a change of frequency.
const CHUNK: u64 = 2000;

/// Times `own` for `iters` operations in chunks, running `other` as often in between.
fn interleaved(iters: u64, mut own: impl FnMut(), mut other: impl FnMut()) -> Duration {
    let mut sum = Duration::ZERO;
    let mut left = iters;
    while left > 0 {
        let n = left.min(CHUNK);
        left -= n;
        let t = Instant::now();
        (0..n).for_each(|_| own());
        sum += t.elapsed();
        (0..n).for_each(|_| other());
    }
    sum
}

/// Two benchmarks in a group: `a` and `b`, which do the same.
fn pair(c: &mut Criterion, group: &str, (name_a, mut a): (&str, impl FnMut()), (name_b, mut b): (&str, impl FnMut())) {
    let mut g = c.benchmark_group(group);
    g.bench_function(name_a, |x| x.iter_custom(|n| interleaved(n, &mut a, &mut b)));
    g.bench_function(name_b, |x| x.iter_custom(|n| interleaved(n, &mut b, &mut a)));
    g.finish();
}

/// The same test-and-set lock, once over the facade and once by hand.
fn facade_spinlock(c: &mut Criterion) {
    let (l, n) = (Atomic::<Native, u32>::new(0), Atomic::<Native, u64>::new(0));
    let facade = || {
        let l = black_box(&l);
        while l.cmpxchg(0, 1, Acquire).is_err() {
            smp_cond_load_relaxed(l, |v| v == 0);
        }
        n.store(n.load(Relaxed) + 1, Relaxed);
        l.store(0, Release);
    };
    let (sl, sn) = (AtomicU32::new(0), AtomicU64::new(0));
    let by_hand = || {
        let l = black_box(&sl);
        while l.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while l.load(Ordering::Relaxed) != 0 {
                spin_loop();
            }
        }
        sn.store(sn.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        l.store(0, Ordering::Release);
    };
    pair(c, "facade/spinlock", ("facade", facade), ("std", by_hand));
}

fn facade_counter(c: &mut Criterion) {
    let (a, s) = (Atomic::<Native, u64>::new(0), AtomicU64::new(0));
    let facade = || {
        black_box(&a).fetch_add(1, Relaxed);
    };
    let by_hand = || {
        black_box(&s).fetch_add(1, Ordering::Relaxed);
    };
    pair(c, "facade/counter", ("facade", facade), ("std", by_hand));
}

/// The port's `refcount_t` against the same checks written over std.
fn facade_refcount(c: &mut Criterion) {
    #[cold]
    #[inline(never)]
    fn saturate(r: &AtomicU32) {
        r.store(0xc000_0000, Ordering::Relaxed);
    }
    let m = machine(&affinity::allowed()[..1]);
    let k = start_kernel::<K<Refcnt>>(&m, &KernelConfig::default());
    let cpu = k.cpu(0);
    let (r, s) = (Refcount::<Native>::new(1), AtomicU32::new(1));
    let port = || {
        let r = black_box(&r);
        r.inc(&cpu);
        black_box(r.dec_and_test(&cpu));
    };
    let by_hand = || {
        let r = black_box(&s);
        let old = r.fetch_add(1, Ordering::Relaxed).cast_signed();
        if old <= 0 || old.wrapping_add(1) < 0 {
            saturate(r);
        }
        let old = r.fetch_sub(1, Ordering::Release).cast_signed();
        let last = old == 1;
        if last {
            std::sync::atomic::fence(Ordering::Acquire);
        } else if old <= 0 {
            saturate(r);
        }
        black_box(last);
    };
    pair(c, "facade/refcount", ("port", port), ("std", by_hand));
}

/// A lock alone on its line, as those that matter are.
#[repr(align(128))]
struct Alone<T>(T);

/// pthread's locks.
struct Pthread {
    rwlock: UnsafeCell<libc::pthread_rwlock_t>,
    mutex: UnsafeCell<libc::pthread_mutex_t>,
}
// SAFETY: made for threads.
unsafe impl Sync for Pthread {}

impl Pthread {
    fn new() -> Self {
        Pthread {
            rwlock: UnsafeCell::new(libc::PTHREAD_RWLOCK_INITIALIZER),
            mutex: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
        }
    }
    fn read(&self) {
        // SAFETY: initialised, and never moved while in use; a pair.
        unsafe {
            libc::pthread_rwlock_rdlock(self.rwlock.get());
            libc::pthread_rwlock_unlock(self.rwlock.get());
        }
    }
    fn write(&self) {
        // SAFETY: as above.
        unsafe {
            libc::pthread_rwlock_wrlock(self.rwlock.get());
            libc::pthread_rwlock_unlock(self.rwlock.get());
        }
    }
    fn exclusive(&self) {
        // SAFETY: as above.
        unsafe {
            libc::pthread_mutex_lock(self.mutex.get());
            libc::pthread_mutex_unlock(self.mutex.get());
        }
    }
}

/// Shape of a read-write semaphore: the count first, the rest when it says no.
struct Count(AtomicI64);

impl Count {
    #[inline(always)]
    fn read(&self) {
        if self.0.fetch_add(256, Ordering::Acquire) < 0 {
            slow();
        }
        if self.0.fetch_sub(256, Ordering::Release) < 0 {
            slow();
        }
    }
    #[inline(always)]
    fn write(&self) {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            slow();
        }
        if self.0.fetch_sub(1, Ordering::Release) < 0 {
            slow();
        }
    }
}

#[cold]
#[inline(never)]
fn slow() {
    black_box(());
}

/// The words of the port's locks, and the steps of the kernel's fast paths on them one by one (locking.md 2.2 and 4): what
/// a lock and its unlock must cost at least.
#[repr(align(64))]
struct Parts {
    count: AtomicI64,
    owner: AtomicU64,
    word: AtomicU32,
    /// The task.
    me: AtomicU64,
    /// `preempt_count`
    preempt: Cell<u32>,
    /// Whether the kernel has 7.3's hung task detector.
    clear_owner: Cell<bool>,
}

impl Parts {
    fn new() -> Self {
        Parts {
            count: AtomicI64::new(0),
            owner: AtomicU64::new(0),
            word: AtomicU32::new(0),
            me: AtomicU64::new(0x1000),
            preempt: Cell::new(0),
            clear_owner: Cell::new(false),
        }
    }

    #[inline(always)]
    fn read(&self) {
        let count = self.count.fetch_add(256, Ordering::Acquire) + 256;
        if count & (i64::MIN | 7) != 0 {
            return slow();
        }
        let keep = self.owner.load(Ordering::Relaxed) & 2;
        self.owner.store(self.me.load(Ordering::Relaxed) | 1 | keep, Ordering::Relaxed);
        clobber();
        if self.clear_owner.get() {
            slow();
        }
        let count = self.count.fetch_sub(256, Ordering::Release) - 256;
        if count & !0xfc == 2 {
            slow();
        }
    }

    #[inline(always)]
    fn write(&self) {
        if self.count.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return slow();
        }
        self.owner.store(self.me.load(Ordering::Relaxed), Ordering::Relaxed);
        clobber();
        self.owner.store(0, Ordering::Relaxed);
        if self.count.fetch_sub(1, Ordering::Release) & 2 != 0 {
            slow();
        }
    }

    #[inline(always)]
    fn spin(&self) {
        self.preempt.set(self.preempt.get() + 1);
        if self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return slow();
        }
        clobber();
        // The lowest byte, as the lock does: the exchange behind it waits for that store, which it need not for one of its
        // own width.
        // SAFETY: the byte lies inside the word.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("mov byte ptr [{p}], 0", p = in(reg) self.word.as_ptr(), options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.word.store(0, Ordering::Release);
        self.preempt.set(self.preempt.get() - 1);
    }

    #[inline(always)]
    fn mutex(&self) {
        let me = self.me.load(Ordering::Relaxed);
        if self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return slow();
        }
        clobber();
        let me = self.me.load(Ordering::Relaxed);
        if self.owner.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            slow();
        }
    }
}

/// A row that holds a lock of the port to its parts (invariant L19): a fifth more instructions at most.
const fn to_parts(ours: &'static str, parts: &'static [&'static str], target: f64) -> Row {
    Row { ours, against: parts, target: Some(target), instructions: Some(1.2), gate: true, ..ROW }
}

/// The locks that a group compares, one of each.
struct Locks {
    rwsem: Alone<RwSemaphore<Native>>,
    spin: Alone<RawSpinLock<Native>>,
    mutex: Alone<Mutex<Native>>,
    std: Alone<std::sync::RwLock<()>>,
    std_mutex: Alone<std::sync::Mutex<()>>,
    parking: Alone<parking_lot::RwLock<()>>,
    parking_mutex: Alone<parking_lot::Mutex<()>>,
    pthread: Alone<Pthread>,
    shape: Alone<Count>,
    seq: Alone<Seqcount<Native>>,
    std_seq: Alone<AtomicU32>,
}

impl Locks {
    fn new() -> Self {
        Locks {
            rwsem: Alone(RwSemaphore::new()),
            spin: Alone(RawSpinLock::new()),
            mutex: Alone(Mutex::new()),
            std: Alone(std::sync::RwLock::new(())),
            std_mutex: Alone(std::sync::Mutex::new(())),
            parking: Alone(parking_lot::RwLock::new(())),
            parking_mutex: Alone(parking_lot::Mutex::new(())),
            pthread: Alone(Pthread::new()),
            shape: Alone(Count(AtomicI64::new(0))),
            seq: Alone(Seqcount::new(0)),
            std_seq: Alone(AtomicU32::new(0)),
        }
    }
}

/// `n` times `$pair`.
macro_rules! times {
    ($listed:expr, $name:expr, $pair:expr) => {
        Contender {
            listed: $listed,
            ..Contender::new($name, move |n| {
                for _ in 0..n {
                    $pair;
                    clobber();
                }
            })
        }
    };
}

/// The ways to lock: for reading, for writing, for one alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
    Exclusive,
}

fn contenders<'a>(way: Way, cpu: &'a Cpu<Native>, l: &'a Locks) -> Vec<Contender<'a>> {
    match way {
        Way::Read => vec![
            times!(None, "rwsem", {
                down_read(cpu, &l.rwsem.0);
                clobber();
                up_read(cpu, &l.rwsem.0)
            }),
            times!(Some(20.0), "std", drop(l.std.0.read())),
            times!(Some(20.0), "parking_lot", drop(l.parking.0.read())),
            times!(Some(67.0), "pthread", l.pthread.0.read()),
            times!(Some(9.0), "shape: count", l.shape.0.read()),
        ],
        Way::Write => vec![
            times!(None, "rwsem", {
                down_write(cpu, &l.rwsem.0);
                clobber();
                up_write(cpu, &l.rwsem.0)
            }),
            times!(Some(23.0), "std", drop(l.std.0.write())),
            times!(Some(9.0), "parking_lot", drop(l.parking.0.write())),
            times!(Some(83.0), "pthread", l.pthread.0.write()),
            times!(Some(6.0), "shape: count", l.shape.0.write()),
        ],
        Way::Exclusive => vec![
            times!(None, "raw_spin_lock", {
                raw_spin_lock(cpu, &l.spin.0);
                clobber();
                raw_spin_unlock(cpu, &l.spin.0)
            }),
            times!(None, "mutex", {
                mutex_lock(cpu, &l.mutex.0);
                clobber();
                mutex_unlock(cpu, &l.mutex.0)
            }),
            times!(Some(22.0), "std", drop(l.std_mutex.0.lock())),
            times!(Some(9.0), "parking_lot", drop(l.parking_mutex.0.lock())),
            times!(Some(61.0), "pthread", l.pthread.0.exclusive()),
        ],
    }
}

const PEERS: &[&str] = &["std", "parking_lot", "pthread"];

/// What the port's locks do that the peers' do not.
const OWNER: &str = "as in the kernel the lock names its owner, for those who spin: a store more at each lock, readers' locks included, \
                     and the task is looked up for it";
const HAND_OVER: &str = "waiters spin on the owner and the lock is handed over in order, so it changes CPUs at nearly each turn; who lets \
                         the CPU that has it take it again and again looks best here, at the cost of those who wait";
const CHECKS: &str =
    "the port's reader makes the shape's checks and, as the kernel's, counts its outcome and tells apart why it failed";
const SHARED: &str = "one count that both CPUs write, and around it the checks on the VMA that a plain lock has not";

fn locks(b: &mut Bench, k: &Kernel<K<Refcnt>>, cpu: &Cpu<Native>) {
    let one = black_box(Box::new(Locks::new()));
    let ways: [(Way, &str, &[&'static str]); 3] = [
        (Way::Read, "read", &["rwsem"]),
        (Way::Write, "write", &["rwsem"]),
        (Way::Exclusive, "exclusive", &["raw_spin_lock", "mutex"]),
    ];
    let parts = &*black_box(Box::new(Parts::new()));
    for (way, name, ours) in ways {
        let mut list = contenders(way, cpu, &one);
        let mut rows: Vec<Row> =
            ours.iter().map(|ours| Row { ours, against: PEERS, target: Some(1.0), why: OWNER, ..ROW }).collect();
        match way {
            Way::Read => list.push(times!(None, "parts", parts.read())),
            Way::Write => list.push(times!(None, "parts", parts.write())),
            Way::Exclusive => {
                list.push(times!(None, "parts: spin lock", parts.spin()));
                list.push(times!(None, "parts: mutex", parts.mutex()));
                rows.push(to_parts("raw_spin_lock", &["parts: spin lock"], 1.2));
                rows.push(to_parts("mutex", &["parts: mutex"], 1.2));
            }
        }
        if way != Way::Exclusive {
            rows.push(to_parts("rwsem", &["parts"], 1.2));
        }
        b.solo(&format!("lock/{name}, free"), 5000, &mut list, &rows);
    }
    for (way, name, ours) in ways {
        // For writing the aim is one of the peers.
        let (against, target): (&[&str], f64) = if way == Way::Read { (PEERS, 1.0) } else { (&["parking_lot"], 1.2) };
        let make = |side: usize| {
            let cpu: &'static Cpu<Native> = Box::leak(Box::new(k.cpu(side as u32)));
            contenders(way, cpu, &one)
        };
        let row = |&ours: &&'static str| Row { ours, against, target: Some(target), why: HAND_OVER, ..ROW };
        let rows: Vec<Row> = ours.iter().map(row).collect();
        b.duo(&format!("lock/{name}, one lock, both CPUs"), 20_000, make, &rows);
    }
}

/// The word of a sequence counter read twice.
#[inline(always)]
fn seq_read(s: &AtomicU32) -> bool {
    let start = loop {
        let v = s.load(Ordering::Acquire);
        if v & 1 == 0 {
            break v;
        }
        spin_loop();
    };
    clobber();
    fence(Ordering::Acquire);
    s.load(Ordering::Relaxed) == start
}

#[inline(always)]
fn seq_read_port(s: &Seqcount<Native>) -> bool {
    let start = s.read_begin();
    clobber();
    !s.read_retry(start)
}

fn seqcounts(b: &mut Bench) {
    let l = black_box(Box::new(Locks::new()));
    let (ours, by_hand) = (&l.seq.0, &l.std_seq.0);
    let rows = [to_parts("seqcount", &["by hand"], 1.0)];
    let readers = move || {
        vec![
            times!(None, "seqcount", black_box(seq_read_port(ours))),
            times!(None, "by hand", black_box(seq_read(by_hand))),
        ]
    };
    b.solo("lock/sequence, read", 20_000, &mut readers(), &rows);
    let mut writers = vec![
        times!(None, "seqcount", {
            ours.write_begin();
            clobber();
            ours.write_end()
        }),
        times!(None, "by hand", {
            by_hand.store(by_hand.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            fence(Ordering::Release);
            clobber();
            by_hand.store(by_hand.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release)
        }),
    ];
    b.solo("lock/sequence, write", 20_000, &mut writers, &rows);
    b.duo("lock/sequence, read, both CPUs", 200_000, |_| readers(), &rows);
}

type K<L> = Config<Native, L>;

/// An address space of protocol `L` and two of its VMAs, whose locks are on different lines.
struct Space<L: VmaLock> {
    k: Kernel<K<L>>,
    mm: MmRef<Native, L>,
    vmas: [(VmaRef<Native, L>, u64); 2],
    _machine: NativeMachine,
}

fn machine(cpus: &[u32]) -> NativeMachine {
    let cpus: Vec<OsCpu> = cpus.iter().map(|&cpu| OsCpu { cpu, node: 0 }).collect();
    NativeMachine::new(&cpus, 16 << 20, |_, _| 10).unwrap_or_else(|e| die(&e.to_string()))
}

impl<L: VmaLock> Space<L> {
    fn new(cpus: &[u32]) -> Self {
        let m = machine(cpus);
        let k = start_kernel::<K<L>>(&m, &KernelConfig::default());
        let cpu = k.cpu(0);
        let mm = mm_alloc(&cpu, &k);
        let found: Vec<(VmaRef<Native, L>, u64)> = (1..=64u64)
            .map(|i| {
                let at = vm_mmap(&cpu, &k, mm, Some(i << 20), 4 << 12, VM_READ | VM_WRITE).expect("free addresses");
                let vma = lock_vma_under_rcu(&cpu, &k, mm, at).expect("just mapped");
                L::vma_end_read(&cpu, vma);
                (vma, at)
            })
            .collect();
        let line = |v: &VmaRef<Native, L>| v.vm_lock().map_or(v.as_ptr() as usize, |l| l.load(Relaxed) as usize) / 64;
        let other =
            found.iter().find(|(v, _)| line(v).abs_diff(line(&found[0].0)) > 2).expect("64 are not on one line");
        Space { mm, vmas: [found[0], *other], k, _machine: m }
    }

    /// The token of a side's CPU, for the rest of the run.
    fn token(&self, side: usize) -> &'static Cpu<Native> {
        Box::leak(Box::new(self.k.cpu(side as u32)))
    }

    fn end(self) {
        let cpu = self.k.cpu(0);
        mmput(&cpu, &self.k, self.mm);
        let left = shutdown(&cpu, &self.k);
        assert!(left.is_clean(), "{}: {left:?}", L::NAME);
    }

    /// Locks and unlocks VMA `i`, as a fault does once it has found it.
    fn pairs<'a>(&'a self, cpu: &'a Cpu<Native>, i: usize) -> impl FnMut(u64) + 'a {
        let ((vma, at), mm) = (self.vmas[i], self.mm);
        move |n| {
            rcu_read_lock(cpu);
            for _ in 0..n {
                if L::lock_vma_found(cpu, mm, vma, at, |_| ()) == StartRead::Locked {
                    L::vma_end_read(cpu, vma);
                } else {
                    slow();
                }
                clobber();
            }
            rcu_read_unlock(cpu);
        }
    }
}

impl<L: VmaLock> Space<L> {
    /// Finds a VMA as a fault does, locks it and unlocks it.
    fn lookups<'a>(&'a self, cpu: &'a Cpu<Native>) -> impl FnMut(u64) + 'a {
        let (at, mm) = (self.vmas[0].1, self.mm);
        move |n| {
            for _ in 0..n {
                match lock_vma_under_rcu(cpu, &self.k, mm, at) {
                    Some(vma) => L::vma_end_read(cpu, vma),
                    None => slow(),
                }
                clobber();
            }
        }
    }
}

/// Shape of a VMA's lock: every check that a reader of 7.3 makes, and nothing behind.
#[repr(C, align(64))]
struct ShapeVma {
    start: AtomicU64,
    end: AtomicU64,
    mm: AtomicU64,
    seq: AtomicU32,
    apart: [u32; 9],
    refcnt: AtomicU32,
}

#[repr(align(64))]
struct ShapeMm {
    seq: AtomicU32,
}

#[inline(always)]
fn shape_pair(mm: &ShapeMm, v: &ShapeVma, at: u64) {
    if v.seq.load(Ordering::Relaxed) == mm.seq.load(Ordering::Relaxed) {
        return slow();
    }
    let mut old = v.refcnt.load(Ordering::Relaxed);
    loop {
        if old == 0 || old >= 0x3fff_ffff {
            return slow();
        }
        match v.refcnt.compare_exchange_weak(old, old + 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => old = now,
        }
    }
    let mine = v.seq.load(Ordering::Relaxed) != mm.seq.load(Ordering::Acquire)
        && v.mm.load(Ordering::Relaxed) == std::ptr::from_ref(mm) as u64
        && v.start.load(Ordering::Relaxed) <= at
        && at < v.end.load(Ordering::Relaxed);
    if !mine {
        slow();
    }
    let old = v.refcnt.fetch_sub(1, Ordering::Release);
    if old == 1 || old & 0x4000_0000 != 0 {
        slow();
    }
}

fn vma_locks(b: &mut Bench, cpus: &[u32]) {
    let (new, old) = (Space::<Refcnt>::new(cpus), Space::<RwsemSeparate>::new(cpus));
    let mm = Box::new(ShapeMm { seq: AtomicU32::new(2) });
    let shape = [4096u64, 8192].map(|start| {
        Box::new(ShapeVma {
            start: AtomicU64::new(start),
            end: AtomicU64::new(start + 4096),
            mm: AtomicU64::new(std::ptr::from_ref(&*mm) as u64),
            seq: AtomicU32::new(0),
            apart: [0; 9],
            refcnt: AtomicU32::new(1),
        })
    });
    assert_eq!(shape[0].apart, shape[1].apart);
    let (mm, shape) = (black_box(&*mm), black_box(&shape));
    let (other, new_ref, old_ref) = (&Locks::new(), &new, &old);
    {
        let (a, c) = (new_ref.k.cpu(0), old_ref.k.cpu(0));
        let bare = Count(AtomicI64::new(0));
        let bare = &bare;
        let mut list = vec![
            Contender::new("refcnt 6.15", new_ref.pairs(&a, 0)),
            Contender::new("rwsem_separate 6.12", old_ref.pairs(&c, 0)),
            times!(Some(35.0), "shape: all checks", shape_pair(mm, &shape[0], 4096)),
            times!(Some(10.0), "shape: count", bare.read()),
        ];
        let against = &["shape: all checks"];
        let rows = [
            Row { ours: "refcnt 6.15", against, target: Some(1.1), why: CHECKS, ..ROW },
            Row { ours: "rwsem_separate 6.12", against, target: Some(1.1), why: CHECKS, ..ROW },
        ];
        b.solo("lock/per-VMA read", 5000, &mut list, &rows);
    }
    let same = |side: usize| {
        vec![
            Contender::new("refcnt 6.15", new_ref.pairs(new_ref.token(side), 0)),
            Contender::new("rwsem_separate 6.12", old_ref.pairs(old_ref.token(side), 0)),
            times!(None, "shape: all checks", shape_pair(mm, &shape[0], 4096)),
            times!(None, "std", drop(other.std.0.read())),
            times!(None, "parking_lot", drop(other.parking.0.read())),
            times!(None, "pthread", other.pthread.0.read()),
        ]
    };
    let rows = ["refcnt 6.15", "rwsem_separate 6.12"].map(|ours| Row {
        ours,
        against: PEERS,
        target: Some(1.0),
        why: SHARED,
        ..ROW
    });
    b.duo("lock/per-VMA read, one VMA, both CPUs", 20_000, same, &rows);
    let apart = |side: usize| {
        let (n, o) = (new_ref.token(side), old_ref.token(side));
        vec![
            Contender::new("refcnt 6.15", new_ref.pairs(n, side)),
            Contender { idle_side: true, ..Contender::new("refcnt, other CPU idle", new_ref.pairs(n, side)) },
            Contender::new("rwsem_separate 6.12", old_ref.pairs(o, side)),
            Contender { idle_side: true, ..Contender::new("rwsem_separate, other CPU idle", old_ref.pairs(o, side)) },
        ]
    };
    let rows = [
        Row { ours: "refcnt 6.15", against: &["refcnt, other CPU idle"], target: Some(1.05), ..ROW },
        Row { ours: "rwsem_separate 6.12", against: &["rwsem_separate, other CPU idle"], target: Some(1.05), ..ROW },
    ];
    b.duo("lock/per-VMA read, two VMAs, both CPUs", 50_000, apart, &rows);
    new.end();
    old.end();
}

fn one_lookup<L: VmaLock>(cpus: &[u32], list: &mut Vec<Contender<'static>>, rows: &mut Vec<Row>) {
    let s: &'static Space<L> = Box::leak(Box::new(Space::new(cpus)));
    list.push(Contender::new(L::NAME, s.lookups(s.token(0))));
    rows.push(Row { ours: L::NAME, ..ROW });
}

fn lookup_alone<L: VmaLock>(b: &mut Bench, cpus: &[u32]) {
    let s = Space::<L>::new(cpus);
    let cpu = s.k.cpu(0);
    b.solo(LOOKUP, 5000, &mut [Contender::new(L::NAME, s.lookups(&cpu))], &[Row { ours: L::NAME, ..ROW }]);
    s.end();
}

const LOOKUP: &str = "lock/lock_vma_under_rcu and vma_end_read";

/// lock_vma_under_rcu() and vma_end_read() of every protocol, in a tree of 64 VMAs: one CPU, nobody else about. No target:
/// a table for docs/ablation.md.
fn every_lookup(b: &mut Bench, cpus: &[u32]) {
    if b.counts {
        // One after the other: valgrind has no room for the address space of so many machines.
        faultline::protocols!(__for_each_protocol(lookup_alone(b, cpus)));
        return;
    }
    let (mut list, mut rows) = (Vec::new(), Vec::new());
    let (all, each) = (&mut list, &mut rows);
    faultline::protocols!(__for_each_protocol(one_lookup(cpus, all, each)));
    b.solo(LOOKUP, 5000, &mut list, &rows);
}

criterion_group! {
    name = facade;
    config = Criterion::default().without_plots();
    targets = facade_spinlock, facade_counter, facade_refcount
}

fn main() {
    let mut b = Bench::open("primitives");
    // Two CPUs even where there is one: then the second never runs.
    let two = [b.cpus[0], *b.cpus.get(1).unwrap_or(&b.cpus[0])];
    {
        let m = machine(&two);
        let k = start_kernel::<K<Refcnt>>(&m, &KernelConfig::default());
        let cpu = k.cpu(0);
        locks(&mut b, &k, &cpu);
        assert!(shutdown(&cpu, &k).is_clean());
    }
    seqcounts(&mut b);
    vma_locks(&mut b, &two);
    every_lookup(&mut b, &two);
    // criterion reads the arguments too, and knows none of those that ask for a table.
    if !b.counts && !b.writes() {
        facade();
        Criterion::default().configure_from_args().final_summary();
    }
    if b.tests {
        println!("primitives: one pass of everything");
    }
}
