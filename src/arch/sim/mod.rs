// SPDX-License-Identifier: GPL-2.0-only
//! The simulated world: N virtual CPUs of any machine on one OS thread, each with its own clock; caches and NUMA
//! priced; the same run, access by access, every time.
//!
//! Tells: contention, queues on lines, the shape that NUMA gives, and how many lines each struct made travel. Cannot
//! tell: **reordering** - every run is one sequentially consistent interleaving, so of the litmus outcomes only those
//! that interleaving alone explains ever show (never the weak ones of SB, MP, LB, WRC, IRIW), and a missing barrier is
//! invisible; **absolute time** - the price table is not calibrated (`price.rs`); bandwidth, prefetch, store buffers,
//! instruction cost; more than one interleaving per set of inputs ([`Jitter`] and [`Priorities`] make the seed one of them).
//!
//! Every word of the port is a std atomic of its own size, so layouts are the kernel's; every access first goes through
//! `machine.rs`, which finds the running CPU through one thread-local pointer, asks `line.rs` where the line is,
//! charges `price.rs`, and switches to another CPU if its clock is behind. Outside a run accesses are free: a kernel
//! boots before its CPUs start. Memory outside the arena (stacks, heap) counts as private, at a flat price.
//!
//! custom: a spinning CPU sleeps until its line is taken away, a sleep is the scheduler's own (no futex call is
//! charged), read-modify-writes are full barriers as on x86, sub-word accesses and 16-byte exchanges are one access
//! each. `prefetchw` is free and does nothing.

mod coro;
mod line;
mod machine;
mod price;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torn;
mod turns;

pub use line::{Kind, LineCounts, UNLABELLED, UNMAPPED};
pub use machine::{ARENA_AT, RunStats, SimConfig, SimMachine};
pub use price::Price;
#[cfg(test)]
pub use torn::tear_exchanges;
pub use turns::{Jitter, Priorities};

use super::prim::{IntOps, WordOps};
use super::{Arch, Fence, Hardware, Int, Prim, RawCell, RawPlain, Work};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{self, Relaxed};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Sim;

/// A word: the std atomic itself. All accesses are relaxed to the host: one OS thread runs all CPUs of a machine.
#[repr(transparent)]
pub struct SimCell<T: Prim>(T::Std);

/// One access of the running CPU at `p`, if one runs.
#[inline(always)]
fn touch<T>(p: *const T, kind: Kind) {
    let core = machine::running();
    if !core.is_null() {
        // SAFETY: the running machine.
        unsafe { machine::access(core, p as usize, kind) }
    }
}

impl<T: Prim> RawCell<T> for SimCell<T> {
    #[inline(always)]
    fn new(v: T) -> Self {
        SimCell(T::Std::new(v))
    }
    #[inline(always)]
    fn load(&self, _: Ordering) -> T {
        touch(self, Kind::Load);
        self.0.load(Relaxed)
    }
    #[inline(always)]
    fn store(&self, v: T, _: Ordering) {
        touch(self, Kind::Store);
        self.0.store(v, Relaxed)
    }
    #[inline(always)]
    fn swap(&self, v: T, _: Ordering) -> T {
        touch(self, Kind::Rmw);
        self.0.swap(v, Relaxed)
    }
    #[inline(always)]
    fn compare_exchange(&self, old: T, new: T, _: Ordering) -> Result<T, T> {
        touch(self, Kind::Rmw);
        self.0.compare_exchange(old, new, Relaxed)
    }
    #[inline(always)]
    fn fetch_add(&self, v: T, _: Ordering) -> T
    where
        T: Int,
    {
        touch(self, Kind::Rmw);
        self.0.fetch_add(v, Relaxed)
    }
    #[inline(always)]
    fn fetch_sub(&self, v: T, _: Ordering) -> T
    where
        T: Int,
    {
        touch(self, Kind::Rmw);
        self.0.fetch_sub(v, Relaxed)
    }
    #[inline(always)]
    fn fetch_or(&self, v: T, _: Ordering) -> T
    where
        T: Int,
    {
        touch(self, Kind::Rmw);
        self.0.fetch_or(v, Relaxed)
    }
    #[inline(always)]
    fn fetch_and(&self, v: T, _: Ordering) -> T
    where
        T: Int,
    {
        touch(self, Kind::Rmw);
        self.0.fetch_and(v, Relaxed)
    }
}

/// A word that a lock protects: priced as any other.
#[repr(transparent)]
pub struct SimPlain<T: Prim>(T::Std);

impl<T: Prim> RawPlain<T> for SimPlain<T> {
    #[inline(always)]
    fn new(v: T) -> Self {
        SimPlain(T::Std::new(v))
    }
    #[inline(always)]
    fn get(&self) -> T {
        touch(self, Kind::Load);
        self.0.load(Relaxed)
    }
    #[inline(always)]
    fn set(&self, v: T) {
        touch(self, Kind::Store);
        self.0.store(v, Relaxed)
    }
}

impl Sim {
    /// Counts by struct of the machine that runs the caller; `None` outside a run. See [`SimMachine::lines`].
    pub fn lines() -> Option<BTreeMap<&'static str, LineCounts>> {
        machine::lines()
    }

    /// Looks at the machine from outside: what `f` accesses costs nothing, and no other CPU runs meanwhile. It must not wait.
    pub fn frozen<R>(f: impl FnOnce() -> R) -> R {
        machine::frozen(f)
    }

    /// Zeroes them: called by a job where the measured span starts.
    pub fn reset_lines() {
        machine::reset_lines()
    }
}

impl Arch for Sim {
    const NAME: &'static str = "sim";
    const RMW_IS_FULL: bool = true;
    type Cell<T: Prim> = SimCell<T>;
    type PlainCell<T: Prim> = SimPlain<T>;

    #[inline(always)]
    fn fence(f: Fence) {
        let core = machine::running();
        if f == Fence::Full && !core.is_null() {
            // SAFETY: the running machine.
            unsafe { machine::charge(core, |p| p.fence) }
        }
    }

    #[inline(always)]
    fn now() -> u64 {
        machine::now()
    }

    #[inline(always)]
    fn cpu_relax() {
        let core = machine::running();
        if !core.is_null() {
            // SAFETY: the running machine.
            unsafe {
                machine::charge(core, |p| p.relax);
                machine::sync_point(core);
            }
        }
    }

    fn wait_changed<T: Prim>(cell: &SimCell<T>, seen: T) {
        let core = machine::running();
        if !core.is_null() && cell.0.load(Relaxed) == seen {
            // SAFETY: the running machine; the word was just looked at.
            unsafe { machine::wait_changed(core, &raw const *cell as usize) }
        }
    }

    fn futex_wait(word: &SimCell<u32>, seen: u32, deadline: Option<u64>) {
        let core = machine::running();
        if !core.is_null() {
            let addr = &raw const *word as usize;
            // SAFETY: the running machine.
            unsafe { machine::futex_wait(core, addr, || word.0.load(Relaxed) == seen, deadline) }
        }
    }

    fn futex_wake(word: &SimCell<u32>) {
        let core = machine::running();
        if !core.is_null() {
            // SAFETY: the running machine.
            unsafe { machine::futex_wake(core, &raw const *word as usize) }
        }
    }

    #[inline(always)]
    fn pause_point(_: &'static str) {
        let core = machine::running();
        // SAFETY: the running machine; no hand-over here.
        if !core.is_null() && unsafe { (*core).jitters() } {
            // SAFETY: as above.
            unsafe { (*core).named_place() }
        }
    }

    #[inline(always)]
    fn store_low_byte_release(word: &SimCell<u32>, v: u8) {
        touch(word, Kind::Store);
        word.0.store(word.0.load(Relaxed) & !0xff | u32::from(v), Relaxed);
    }

    #[inline(always)]
    fn store_low_half(word: &SimCell<u32>, v: u16) {
        touch(word, Kind::Store);
        word.0.store(word.0.load(Relaxed) & 0xffff_0000 | u32::from(v), Relaxed);
    }

    #[inline(always)]
    fn xchg_high_half(word: &SimCell<u32>, v: u16) -> u16 {
        touch(word, Kind::Rmw);
        let old = word.0.load(Relaxed);
        word.0.store(old & 0xffff | u32::from(v) << 16, Relaxed);
        (old >> 16) as u16
    }
}

/// Compares and stores the pair; no other CPU runs in between.
///
/// # Safety
/// `pair` points to 16 readable and writable, 16-aligned bytes, otherwise accessed through atomics.
#[inline(always)]
unsafe fn exchange_pair(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
    // SAFETY: the caller's.
    let (lo, hi) = unsafe {
        (&*pair.cast::<std::sync::atomic::AtomicU64>(), &*pair.add(1).cast::<std::sync::atomic::AtomicU64>())
    };
    let same = lo.load(Relaxed) == old[0] && hi.load(Relaxed) == old[1];
    if same {
        lo.store(new[0], Relaxed);
        hi.store(new[1], Relaxed);
    }
    same
}

impl Hardware for Sim {
    type Machine = SimMachine;

    #[inline(always)]
    unsafe fn cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
        #[cfg(test)]
        if torn::torn() {
            // SAFETY: the caller's.
            return unsafe { torn::exchange_pair(pair, old, new) };
        }
        touch(pair, Kind::Rmw);
        // SAFETY: the caller's.
        unsafe { exchange_pair(pair, old, new) }
    }

    #[inline(always)]
    unsafe fn this_cpu_cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
        // Not locked: priced as a store.
        touch(pair, Kind::Store);
        // SAFETY: the caller's.
        unsafe { exchange_pair(pair, old, new) }
    }

    #[inline(always)]
    fn prefetchw(_: *const u8) {}

    unsafe fn clear(p: *mut u8, len: usize) {
        let core = machine::running();
        if !core.is_null() {
            // SAFETY: the running machine.
            unsafe { machine::clear(core, p as usize, len) }
        }
        // SAFETY: the caller's.
        unsafe { std::ptr::write_bytes(p, 0, len) }
    }

    unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
        let core = machine::running();
        if !core.is_null() {
            // SAFETY: the running machine.
            unsafe {
                machine::range(core, src as usize, len, Kind::Load);
                machine::range(core, dst as usize, len, Kind::Store);
            }
        }
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(src, dst, len) }
    }

    #[inline(always)]
    fn charge(work: Work) {
        let core = machine::running();
        if !core.is_null() {
            // SAFETY: the running machine.
            unsafe { machine::charge(core, |p| machine::price_of(work, p)) }
        }
    }

    fn label(p: *const u8, len: usize, what: &'static str) {
        machine::label(p as usize, len, what)
    }
}
