// SPDX-License-Identifier: GPL-2.0-only
//! Floor 0: the machine under the port.
//!
//! The port is written once over [`Arch`] and runs in several worlds: [`native`] (pinned OS threads, real time),
//! [`sim`] (virtual CPUs on coroutines, deterministic) and [`loom`] (model checking). No shared word of the
//! port is touched except through [`Atomic`] (raced or marked accesses) and [`Plain`] (words that a lock protects).
//!
//! [`Arch`] is what every world has: words, fences, waiting, time. [`Hardware`] is what a world with real memory has
//! besides: words that are exactly as large as their value, an [`Arena`] of pages, CPUs to run on, the 16-byte
//! exchange. Lock, refcount, seqcount and RCU code asks for `Arch` only and so can be model checked; the slab
//! allocator, the maple tree and page tables live in raw memory and ask for `Hardware`.
//!
//! What each world can and cannot show is said at the top of its file and recorded by `model/litmus.rs`.

pub mod arena;
pub mod atomic;
pub mod barrier;
pub mod cell;
pub mod loom;
pub mod native;
pub mod prim;
pub mod sim;
pub mod tick_signal;

pub use arena::Arena;
pub use atomic::{Acquire, Atomic, Full, Relaxed, Release};
pub use barrier::{barrier, smp_cond_load_acquire, smp_cond_load_relaxed, smp_mb, smp_rmb, smp_wmb};
pub use cell::Plain;
pub use native::Native;
pub use prim::{Int, Prim};
pub use sim::Sim;
pub use tick_signal::{TickProbe, TickSignal};

use std::sync::atomic::Ordering;

/// An atomic word of one world. `order` is always a constant at the call.
pub trait RawCell<T: Prim> {
    /// A word holding `v`.
    fn new(v: T) -> Self;
    /// Loads; `Relaxed` or `Acquire`.
    fn load(&self, order: Ordering) -> T;
    /// Stores; `Relaxed` or `Release`.
    fn store(&self, v: T, order: Ordering);
    /// Exchanges.
    fn swap(&self, v: T, order: Ordering) -> T;
    /// Compares with `old` and stores `new`; a failure orders nothing (LKMM).
    fn compare_exchange(&self, old: T, new: T, order: Ordering) -> Result<T, T>;
    /// Adds, wrapping; returns the old value.
    fn fetch_add(&self, v: T, order: Ordering) -> T
    where
        T: Int;
    /// Subtracts, wrapping; returns the old value.
    fn fetch_sub(&self, v: T, order: Ordering) -> T
    where
        T: Int;
    /// Bitwise or; returns the old value.
    fn fetch_or(&self, v: T, order: Ordering) -> T
    where
        T: Int;
    /// Bitwise and; returns the old value.
    fn fetch_and(&self, v: T, order: Ordering) -> T
    where
        T: Int;
}

/// A word that a lock protects, of one world.
pub trait RawPlain<T: Prim> {
    /// A word holding `v`.
    fn new(v: T) -> Self;
    /// Reads.
    fn get(&self) -> T;
    /// Writes.
    fn set(&self, v: T);
}

/// A full, read or write fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// `smp_mb()`
    Full,
    /// `smp_rmb()`
    Read,
    /// `smp_wmb()`
    Write,
}

/// What every world supplies. Resist a sixteenth item.
pub trait Arch: Sized + Copy + Send + Sync + std::fmt::Debug + 'static {
    /// Slug of the world: `native`, `sim`, `loom`.
    const NAME: &'static str;
    /// Whether a `SeqCst` read-modify-write is by itself a full barrier in the kernel's sense (x86-64: the lock
    /// prefix). Elsewhere [`Full`] puts a fence on either side.
    const RMW_IS_FULL: bool;
    /// An atomic word.
    type Cell<T: Prim>: RawCell<T>;
    /// A word that a lock protects.
    type PlainCell<T: Prim>: RawPlain<T>;

    /// Orders memory accesses.
    fn fence(f: Fence);
    /// Time since some fixed start, ns: real in `native`, the CPU's own virtual clock in `sim`, a step counter
    /// without meaning in `loom`.
    fn now() -> u64;
    /// `cpu_relax()`: one turn of a loop that waits for another CPU.
    fn cpu_relax();
    /// Called after `cell` was seen to hold `seen` and the caller wants something else: returns when it is worth
    /// looking again. `native` pauses (and yields at length), `loom` yields, `sim` puts the CPU to sleep until the line
    /// is taken away.
    fn wait_changed<T: Prim>(cell: &Self::Cell<T>, seen: T);
    /// Sleeps while `word` holds `seen`, until [`Arch::futex_wake`] or until [`Arch::now`] reaches `deadline`.
    /// Returns at once if `word` holds something else. Spurious returns are allowed.
    fn futex_wait(word: &Self::Cell<u32>, seen: u32, deadline: Option<u64>);
    /// Wakes one sleeper on `word`.
    fn futex_wake(word: &Self::Cell<u32>);
    /// A named place between two accesses, where a world made for it may stop its thread. Nothing elsewhere.
    #[inline(always)]
    fn pause_point(_name: &'static str) {}

    /// Stores `v` with release order into the low byte of `word` (the queued spinlock's unlock). Worlds without
    /// mixed-size accesses do it by a full-word exchange.
    #[inline(always)]
    #[track_caller]
    fn store_low_byte_release(word: &Self::Cell<u32>, v: u8) {
        // PORT: LKMM allows the plain byte store; where the world cannot express it, two RMWs on the word stand in.
        if v == 0 {
            word.fetch_and(!0xff, Ordering::Release);
        } else {
            word.fetch_and(!0xff, Ordering::Relaxed);
            word.fetch_or(u32::from(v), Ordering::Release);
        }
    }
    /// Stores `v` into the low half of `word`, relaxed (the queued spinlock's clear-pending-set-locked).
    #[inline(always)]
    fn store_low_half(word: &Self::Cell<u32>, v: u16) {
        let mut old = word.load(Ordering::Relaxed);
        while let Err(cur) = word.compare_exchange(old, (old & 0xffff_0000) | u32::from(v), Ordering::Relaxed) {
            old = cur;
        }
    }
    /// Exchanges the high half of `word`, relaxed; returns the old half (the queued spinlock's tail exchange).
    #[inline(always)]
    fn xchg_high_half(word: &Self::Cell<u32>, v: u16) -> u16 {
        let mut old = word.load(Ordering::Relaxed);
        while let Err(cur) = word.compare_exchange(old, (old & 0xffff) | (u32::from(v) << 16), Ordering::Relaxed) {
            old = cur;
        }
        (old >> 16) as u16
    }
}

/// Work that is not memory traffic of the port's own words, charged where time is virtual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Entry to and exit from the exception or system call handler: the port has none, the kernel does. Charged in
    /// `sim`; free in `native` (BIAS.md says by how much that flatters).
    KernelEntry,
}

/// What a world with real memory and CPUs supplies besides [`Arch`].
pub trait Hardware: Arch {
    /// The machine: its CPUs, nodes and memory.
    type Machine: Machine;

    /// The 16-byte exchange on a slab record, fully ordered (`lock cmpxchg16b`, `CASPAL`).
    ///
    /// # Safety
    /// `pair` points to 16 readable and writable bytes, 16-aligned, otherwise accessed only through [`Atomic`]s.
    unsafe fn cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool;
    /// The 16-byte exchange on per-CPU words, atomic against this CPU only (`cmpxchg16b` without lock prefix); no
    /// ordering.
    ///
    /// # Safety
    /// As [`Hardware::cmpxchg_double`]; and no other CPU may write the pair at the same time.
    unsafe fn this_cpu_cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool;
    /// Hint: `p` will soon be written.
    fn prefetchw(p: *const u8);
    /// Writes zeros over `len` bytes (a page, a node) that no other CPU can see.
    ///
    /// # Safety
    /// `p` is valid for writes of `len` bytes, and unshared.
    unsafe fn clear(p: *mut u8, len: usize);
    /// Copies `len` bytes out of memory that nobody writes into memory that no other CPU can see.
    ///
    /// # Safety
    /// Both ranges are valid, do not overlap, and `dst` is unshared.
    unsafe fn copy(dst: *mut u8, src: *const u8, len: usize);
    /// Charges `work` to this CPU's clock where time is virtual; nothing elsewhere.
    fn charge(work: Work);
    /// Lets a timer signal sample `probe` on the calling worker's thread every `period_ns`, first in `first_ns`, until the
    /// result is dropped. `None` where there is no such thing: virtual time has no signals.
    ///
    /// # Safety
    /// `probe` stays where it is and alive until the result is dropped, which the calling thread does.
    unsafe fn sample_ticks(_probe: *const TickProbe, _first_ns: u64, _period_ns: u64) -> Option<TickSignal> {
        None
    }
    /// Says what lives in `[p, p + len)` from now on, for the simulator's counts per struct. Nothing elsewhere.
    fn label(p: *const u8, len: usize, what: &'static str);
}

/// One thing to run on a machine: a worker pinned to a CPU, or a kernel thread that belongs to none.
pub struct Job<'a> {
    /// The CPU to run on: a worker's index `0..nr_cpus`, or `None` for a kernel thread (housekeeping; anywhere in
    /// `native`, a CPU of its own in `sim`).
    pub cpu: Option<u32>,
    /// What to run.
    pub f: Box<dyn FnOnce() + Send + 'a>,
}

/// CPUs, nodes and memory. A machine outlives the kernels booted on it.
pub trait Machine {
    /// CPUs that workers can run on.
    fn nr_cpus(&self) -> u32;
    /// NUMA nodes (at least one).
    fn nr_nodes(&self) -> u32;
    /// Node of worker CPU `cpu`, below [`Machine::nr_nodes`].
    fn node_of(&self, cpu: u32) -> u32;
    /// Relative distance between nodes, as in the firmware table (10 = local).
    fn distance(&self, from: u32, to: u32) -> u32;
    /// The memory.
    fn arena(&self) -> &Arena;
    /// Forgets the last kernel: its memory, and where time is virtual clocks, caches and labels. Starting a kernel
    /// begins here.
    fn reset(&self) {
        self.arena().reset();
    }
    /// Runs every job to its end, all at once; at most one worker a CPU.
    fn run(&self, jobs: Vec<Job<'_>>);
}
