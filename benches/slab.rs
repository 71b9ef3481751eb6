// SPDX-License-Identifier: GPL-2.0-only
//! What does an object cost? Allocation and free of 256 and 192 bytes by both allocators of the port, beside mimalloc,
//! jemalloc, glibc's malloc, and bare models of the fast paths.
//!
//! The port's objects are those of a kernel that runs: 256 bytes are `maple_node`, 192 bytes `vm_area_struct` of 6.15,
//! with hardened and shuffled freelists and without init_on_alloc, as distributions build it. What the peers leave out
//! and the port pays: the check of the object's slab at each free, event counters, the hook that watches reuse. The
//! peers run through their `GlobalAlloc` calls; none is the program's allocator.

mod peers;

use faultline::arch::arena::KRef;
use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::arch::{Hardware, Native};
use faultline::cpu::Cpu;
use faultline::init::{Kernel, KernelConfig, shutdown, start_kernel};
use faultline::mm::kconfig::Config;
use faultline::mm::vma_lock::refcnt::Refcnt;
use faultline::slab::{Allocator, KmemCache, SlabOptions, kmem_cache_alloc, kmem_cache_free};
use mimalloc::MiMalloc;
use peers::{Bench, Contender, ROW, Row, clobber};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::{black_box, spin_loop};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use tikv_jemallocator::Jemalloc;

/// The kernel that is booted: which lock its VMAs have decides their size.
type K = Config<Native, Refcnt>;

/// Objects that a row of 65536 waiting ones needs at once, and some.
const MOST: usize = 72 * 1024;

/// Somewhere to get objects of one size.
trait Objects {
    fn alloc(&self) -> *mut u8;
    /// # Safety
    /// `p` came from `alloc()` of the same and is freed once.
    unsafe fn free(&self, p: *mut u8);
}

/// A cache of the port, on the CPU of the token.
struct Port<'a> {
    cpu: &'a Cpu<Native>,
    cache: KRef<KmemCache<Native>>,
}

impl Objects for Port<'_> {
    #[inline(always)]
    fn alloc(&self) -> *mut u8 {
        kmem_cache_alloc(self.cpu, &self.cache)
    }
    #[inline(always)]
    unsafe fn free(&self, p: *mut u8) {
        // SAFETY: the caller's.
        unsafe { kmem_cache_free(self.cpu, &self.cache, p) }
    }
}

/// An allocator of user space.
struct Malloc<G>(G, Layout);

impl<G: GlobalAlloc> Objects for Malloc<G> {
    #[inline(always)]
    fn alloc(&self) -> *mut u8 {
        // SAFETY: the size is not 0.
        unsafe { self.0.alloc(self.1) }
    }
    #[inline(always)]
    unsafe fn free(&self, p: *mut u8) {
        // SAFETY: the caller's.
        unsafe { self.0.dealloc(p, self.1) }
    }
}

/// Memory for `n` objects of a shape; never given back.
fn field(size: usize, n: usize) -> impl Iterator<Item = *mut u8> {
    let layout = Layout::from_size_align(size * n, 4096).expect("small");
    // SAFETY: the size is not 0.
    let base = unsafe { System.alloc_zeroed(layout) };
    assert!(!base.is_null(), "memory");
    // SAFETY: inside the block.
    (0..n).map(move |i| unsafe { base.add(i * size) })
}

/// Shape: a list through the objects' first words.
struct ShapeList(Cell<*mut u8>);

impl ShapeList {
    fn new(size: usize) -> Self {
        let s = ShapeList(Cell::new(null_mut()));
        // SAFETY: objects of ours, each once.
        field(size, MOST).for_each(|p| unsafe { s.free(p) });
        s
    }
}

impl Objects for ShapeList {
    #[inline(always)]
    fn alloc(&self) -> *mut u8 {
        let p = self.0.get();
        // SAFETY: the list never runs dry here: MOST is more than anybody holds.
        self.0.set(unsafe { p.cast::<*mut u8>().read() });
        p
    }
    #[inline(always)]
    unsafe fn free(&self, p: *mut u8) {
        // SAFETY: the caller's: an object of 192 bytes or more.
        unsafe { p.cast::<*mut u8>().write(self.0.get()) };
        self.0.set(p);
    }
}

/// Shape: the 7.3 fast path. A byte that is taken and let go, an array, two counters.
struct ShapeArray {
    taken: Cell<u8>,
    len: Cell<usize>,
    allocs: Cell<u64>,
    frees: Cell<u64>,
    objects: Vec<Cell<*mut u8>>,
}

impl ShapeArray {
    fn new(size: usize) -> Self {
        let objects: Vec<_> = field(size, MOST).map(Cell::new).collect();
        ShapeArray {
            taken: Cell::new(0),
            len: Cell::new(objects.len()),
            allocs: Cell::new(0),
            frees: Cell::new(0),
            objects,
        }
    }
}

impl Objects for ShapeArray {
    #[inline(always)]
    fn alloc(&self) -> *mut u8 {
        let n = self.len.get();
        if self.taken.replace(1) != 0 || n == 0 {
            return null_mut();
        }
        // What another context of this CPU would see.
        clobber();
        // SAFETY: 0 < n <= objects.len().
        let p = unsafe { self.objects.get_unchecked(n - 1) }.get();
        self.len.set(n - 1);
        self.allocs.set(self.allocs.get() + 1);
        clobber();
        self.taken.set(0);
        p
    }
    #[inline(always)]
    unsafe fn free(&self, p: *mut u8) {
        let n = self.len.get();
        if self.taken.replace(1) != 0 || n == self.objects.len() {
            return;
        }
        clobber();
        // SAFETY: n < objects.len().
        unsafe { self.objects.get_unchecked(n) }.set(p);
        self.len.set(n + 1);
        self.frees.set(self.frees.get() + 1);
        clobber();
        self.taken.set(0);
    }
}

/// Shape: the 6.12 fast path. The 16-byte exchange each way, links mixed with a secret and their address, the object's
/// slab compared with the CPU's.
#[repr(C, align(64))]
struct ShapeExchange {
    pair: [Cell<u64>; 2],
    slab: Cell<usize>,
    secret: Cell<u64>,
    mask: Cell<usize>,
    link: Cell<usize>,
}

impl ShapeExchange {
    fn new(size: usize) -> Self {
        let s = ShapeExchange {
            pair: [Cell::new(0), Cell::new(0)],
            slab: Cell::new(0),
            secret: Cell::new(black_box(0x9e37_79b9_7f4a_7c15)),
            // Everything is of one slab.
            mask: Cell::new(black_box(0)),
            link: Cell::new(black_box(size / 2)),
        };
        // SAFETY: objects of ours, each once.
        field(size, MOST).for_each(|p| unsafe { s.free(p) });
        s
    }
    #[inline(always)]
    fn mixed(&self, at: usize, v: u64) -> u64 {
        v ^ self.secret.get() ^ (at as u64).swap_bytes()
    }
    #[inline(always)]
    fn exchange(&self, old: [u64; 2], new: [u64; 2]) -> bool {
        // SAFETY: an aligned pair of ours on one thread.
        unsafe { Native::this_cpu_cmpxchg_double(self.pair.as_ptr().cast_mut().cast(), old, new) }
    }
}

impl Objects for ShapeExchange {
    #[inline(always)]
    fn alloc(&self) -> *mut u8 {
        loop {
            let (tid, p) = (self.pair[1].get(), self.pair[0].get() as usize);
            if p == 0 {
                return null_mut();
            }
            let at = p + self.link.get();
            // SAFETY: a free object of ours.
            let next = self.mixed(at, unsafe { (at as *const u64).read() });
            if self.exchange([p as u64, tid], [next, tid + 8192]) {
                Native::prefetchw((next as usize + self.link.get()) as *const u8);
                return p as *mut u8;
            }
        }
    }
    #[inline(always)]
    unsafe fn free(&self, p: *mut u8) {
        loop {
            let tid = self.pair[1].get();
            if p as usize & self.mask.get() != self.slab.get() {
                return;
            }
            let head = self.pair[0].get();
            let at = p as usize + self.link.get();
            // SAFETY: the caller's.
            unsafe { (at as *mut u64).write(self.mixed(at, head)) };
            if self.exchange([head, tid], [p as u64, tid + 8192]) {
                return;
            }
        }
    }
}

/// An object is allocated and freed at once.
#[inline(always)]
fn hot(o: &impl Objects, n: u64) {
    for _ in 0..n {
        let p = black_box(o.alloc());
        // SAFETY: just allocated.
        unsafe { o.free(p) };
        clobber();
    }
}

const BATCH: usize = 1000;

/// 1000 objects are allocated, then freed: the last one first, or in order. An operation is a pair.
#[inline(always)]
fn batches(o: &impl Objects, n: u64, lifo: bool) {
    let mut held = [null_mut(); BATCH];
    for _ in 0..n / BATCH as u64 {
        for p in &mut held {
            *p = o.alloc();
        }
        clobber();
        // SAFETY: each was just allocated and is freed once.
        let free = |&p: &*mut u8| unsafe { o.free(p) };
        if lifo {
            held.iter().rev().for_each(free);
        } else {
            held.iter().for_each(free);
        }
        clobber();
    }
}

/// Objects that wait to be freed, in places drawn at random.
struct Waiting {
    slots: Vec<*mut u8>,
    rng: u64,
}

impl Waiting {
    fn new(k: usize) -> Self {
        Waiting { slots: vec![null_mut(); k], rng: 0x2545_f491_4f6c_dd1d }
    }

    /// Each operation frees one that waits, allocates one and writes its 192 bytes.
    #[inline(always)]
    fn run(&mut self, o: &impl Objects, n: u64) {
        let k = self.slots.len() as u64;
        for i in 0..n {
            self.rng ^= self.rng << 13;
            self.rng ^= self.rng >> 7;
            self.rng ^= self.rng << 17;
            let at = (((self.rng >> 32) * k) >> 32) as usize;
            // SAFETY: below k.
            let slot = unsafe { self.slots.get_unchecked_mut(at) };
            if !slot.is_null() {
                // SAFETY: allocated below, freed once.
                unsafe { o.free(*slot) };
            }
            let p = o.alloc();
            // SAFETY: 192 fresh bytes.
            unsafe { p.cast::<[u64; 24]>().write([i; 24]) };
            *slot = p;
            clobber();
        }
    }

    fn end(&mut self, o: &impl Objects) {
        for p in self.slots.iter_mut().filter(|p| !p.is_null()) {
            // SAFETY: as above.
            unsafe { o.free(std::mem::replace(p, null_mut())) };
        }
    }
}

/// Objects on their way from one CPU to the other.
struct Ring([AtomicPtr<u8>; 1024]);

impl Ring {
    fn new() -> Self {
        Ring(std::array::from_fn(|_| AtomicPtr::new(null_mut())))
    }
    #[inline(always)]
    fn put(&self, i: u64, p: *mut u8) {
        let slot = &self.0[i as usize % self.0.len()];
        while !slot.load(Ordering::Acquire).is_null() {
            spin_loop();
        }
        slot.store(p, Ordering::Release);
    }
    #[inline(always)]
    fn take(&self, i: u64) -> *mut u8 {
        let slot = &self.0[i as usize % self.0.len()];
        loop {
            let p = slot.load(Ordering::Acquire);
            if !p.is_null() {
                slot.store(null_mut(), Ordering::Release);
                return p;
            }
            spin_loop();
        }
    }
}

/// Side 0 allocates `n` objects, side 1 frees them.
fn across<'a, O: Objects + 'a>(name: &str, side: usize, o: O, ring: &'a Ring) -> Contender<'a> {
    let mut i = 0;
    let run = move |n: u64| {
        for _ in 0..n {
            if side == 0 {
                ring.put(i, o.alloc());
            } else {
                // SAFETY: the other side allocated it and handed it over.
                unsafe { o.free(ring.take(i)) };
            }
            i += 1;
        }
    };
    Contender { span: true, ..Contender::new(name, run) }
}

/// A kernel on its own machine.
struct Booted {
    name: &'static str,
    k: Kernel<K>,
    _machine: NativeMachine,
}

impl Booted {
    fn new(name: &'static str, allocator: Allocator, cpus: &[u32]) -> Self {
        let cpus: Vec<OsCpu> = cpus.iter().map(|&cpu| OsCpu { cpu, node: 0 }).collect();
        let machine = NativeMachine::new(&cpus, 160 << 20, |_, _| 10).unwrap_or_else(|e| peers::die(&e.to_string()));
        let slab = SlabOptions { allocator, ..SlabOptions::default() };
        let k = start_kernel::<K>(&machine, &KernelConfig { slab, ..KernelConfig::default() });
        Booted { name, k, _machine: machine }
    }

    fn cache(&self, size: usize) -> KRef<KmemCache<Native>> {
        let c = if size == 256 { self.k.maple.node_cache } else { self.k.vma_state.vm_area_cachep };
        assert_eq!(c.size(), size, "objects of another size");
        c
    }
}

const PEERS: &[&str] = &["mimalloc", "jemalloc", "glibc"];
const EXCHANGE: &str = "shape: 16-byte exchange";

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a power of two")
}

/// What a pair of the port's does that the peers and shapes do not.
const PAIR: &str = "finds this CPU's block twice, where a kernel has a segment register, and the object's slab through its page's \
                    record; checks that the slab is of this cache, asks whether there are hooks or somebody watches reuse, and \
                    counts events. An allocator of one program's, or a bare model, does little of it";
const SLOW_FREES: &str = "as in the kernel only the objects of the slab that this CPU allocates from come back by the fast path; each \
                          other one is an exchange of 16 bytes on its slab's record, and slabs go to the CPU's stack and to the \
                          node's list under its lock";
const SHEAVES: &str = "a sheaf is shorter than the batch: what does not fit goes to and comes from the barn and the slabs, an exchange \
                       on a slab's record each";
const COLD: &str = "what a pair does more (the checks, the counters), and 6.12's frees to a slab that is not this CPU's: an exchange of \
                    16 bytes each";
const REMOTE: &str = "6.12's frees to another CPU's slab are exchanges on a record that both write; sheaves hand whole arrays over, \
                      through a lock. mimalloc appends to the owner's list";

/// Instructions of jemalloc, mimalloc and glibc as listed.
type Listed = [Option<f64>; 3];

/// `$run!(name, objects, instructions listed)` for the port's allocators and all peers: who takes part in a group.
macro_rules! everybody {
    ($c:ident, $kernels:expr, $cpus:expr, $size:expr, $listed:expr, |$o:ident| $run:expr) => {
        for (b, cpu) in $kernels.iter().zip($cpus) {
            let $o = Port { cpu, cache: b.cache($size) };
            $c.push(Contender::new(b.name, $run));
        }
        let [j, m, g]: Listed = $listed;
        {
            let $o = Malloc(MiMalloc, layout($size));
            $c.push(Contender { listed: m, ..Contender::new("mimalloc", $run) });
        }
        {
            let $o = Malloc(Jemalloc, layout($size));
            $c.push(Contender { listed: j, ..Contender::new("jemalloc", $run) });
        }
        {
            let $o = Malloc(System, layout($size));
            $c.push(Contender { listed: g, ..Contender::new("glibc", $run) });
        }
    };
}

fn main() {
    let mut b = Bench::open("slab");
    // Two CPUs even where there is one: then the second never runs.
    let two = [b.cpus[0], *b.cpus.get(1).unwrap_or(&b.cpus[0])];
    let kernels =
        [("slub 6.12", Allocator::Slub), ("sheaves 7.3", Allocator::Sheaves)].map(|(n, a)| Booted::new(n, a, &two));
    let tokens: Vec<Cpu<Native>> = kernels.iter().map(|b| b.k.cpu(0)).collect();

    for size in [256, 192] {
        let (list, array, exchange) = (&ShapeList::new(size), &ShapeArray::new(size), &ShapeExchange::new(size));
        let mut c = Vec::new();
        let listed = if size == 256 { [Some(75.0), Some(64.0), Some(138.0)] } else { [None; 3] };
        everybody!(c, kernels, &tokens, size, listed, |o| move |n| hot(&o, n));
        c.push(Contender { listed: Some(8.0), ..Contender::new("shape: list", move |n| hot(list, n)) });
        c.push(Contender { listed: Some(30.0), ..Contender::new("shape: array", move |n| hot(array, n)) });
        c.push(Contender { listed: Some(42.0), ..Contender::new(EXCHANGE, move |n| hot(exchange, n)) });
        let rows = [
            Row { ours: "slub 6.12", against: &[EXCHANGE], target: Some(1.1), at_most: Some(60.0), why: PAIR, ..ROW },
            Row { ours: "sheaves 7.3", against: PEERS, target: Some(0.65), instructions: Some(0.6), why: PAIR, ..ROW },
        ];
        b.solo(&format!("slab/hot pair, {size} B"), 2000, &mut c, &rows);
    }

    for (lifo, order) in [(true, "last first"), (false, "in order")] {
        let (list, array) = (&ShapeList::new(256), &ShapeArray::new(256));
        let mut c = Vec::new();
        let listed = if lifo { [Some(310.0), Some(85.0), Some(350.0)] } else { [None; 3] };
        everybody!(c, kernels, &tokens, 256, listed, |o| move |n| batches(&o, n, lifo));
        c.push(Contender { listed: Some(15.0), ..Contender::new("shape: list", move |n| batches(list, n, lifo)) });
        c.push(Contender { listed: Some(37.0), ..Contender::new("shape: array", move |n| batches(array, n, lifo)) });
        let rows = [
            Row { ours: "slub 6.12", against: PEERS, target: Some(2.2), why: SLOW_FREES, ..ROW },
            Row { ours: "sheaves 7.3", against: PEERS, target: Some(0.9), why: SHEAVES, ..ROW },
        ];
        b.solo(&format!("slab/1000 and 1000, {order}"), 10 * BATCH as u64, &mut c, &rows);
    }

    for waiting in [1usize, 512, 8192, 65536] {
        // Long enough to meet one's own objects again after somebody else's turn.
        let batch = (4 * waiting as u64).clamp(2000, 40_000);
        let mut c = Vec::new();
        everybody!(c, kernels, &tokens, 192, [None; 3], |o| {
            // Whoever takes part frees what still waits when his turn is over: see below.
            let mut w = Held { o, w: Waiting::new(waiting) };
            move |n| w.run(n)
        });
        let (list, array) = (ShapeList::new(192), ShapeArray::new(192));
        let (mut l, mut a) = (Held { o: list, w: Waiting::new(waiting) }, Held { o: array, w: Waiting::new(waiting) });
        c.push(Contender::new("shape: list", move |n| l.run(n)));
        c.push(Contender::new("shape: array", move |n| a.run(n)));
        let rows =
            ["slub 6.12", "sheaves 7.3"].map(|ours| Row { ours, against: PEERS, target: Some(0.7), why: COLD, ..ROW });
        b.solo(&format!("slab/init, {waiting} waiting"), batch, &mut c, &rows);
    }

    let rings: [Ring; 5] = std::array::from_fn(|_| Ring::new());
    // The tokens of CPU 0 above are idle while the two threads run theirs.
    let make = |side: usize| {
        let mut c = Vec::new();
        for (b, ring) in kernels.iter().zip(&rings[3..]) {
            let cpu: &'static Cpu<Native> = Box::leak(Box::new(b.k.cpu(side as u32)));
            c.push(across(b.name, side, Port { cpu, cache: b.cache(256) }, ring));
        }
        c.push(across("mimalloc", side, Malloc(MiMalloc, layout(256)), &rings[0]));
        c.push(across("jemalloc", side, Malloc(Jemalloc, layout(256)), &rings[1]));
        c.push(across("glibc", side, Malloc(System, layout(256)), &rings[2]));
        c
    };
    let rows =
        ["slub 6.12", "sheaves 7.3"].map(|ours| Row { ours, against: PEERS, target: Some(1.0), why: REMOTE, ..ROW });
    b.duo("slab/allocate here, free there", 20_000, make, &rows);

    for (b, cpu) in kernels.iter().zip(&tokens) {
        let left = shutdown(cpu, &b.k);
        assert!(left.is_clean(), "{}: {left:?}", b.name);
    }
}

/// Waiting objects, which go back to where they came from.
struct Held<O: Objects> {
    o: O,
    w: Waiting,
}

impl<O: Objects> Held<O> {
    #[inline(always)]
    fn run(&mut self, n: u64) {
        self.w.run(&self.o, n);
    }
}

impl<O: Objects> Drop for Held<O> {
    fn drop(&mut self) {
        self.w.end(&self.o);
    }
}
