// SPDX-License-Identifier: GPL-2.0-only
//! The model-checking world: every interleaving of 2 to 4 threads, within bounds, with the
//! stale values that relaxed accesses may return.
//!
//! Tells: ordering bugs, lost wake-ups (a sleeper that is never woken runs into the branch limit and fails). Cannot
//! tell: time; load buffering (never generated); anything that lives in raw memory, since words are larger than
//! their value here, so that only [`super::Arch`] exists and not [`super::Hardware`]. Address dependencies are
//! acquires here as in every world. What loom itself generates and what it never does is recorded by
//! `model/litmus.rs`. A full fence is stronger here than in C++: fences synchronise with each other.

use super::prim::{IntOps, WordOps};
use super::{Arch, Fence, Int, Prim, RawCell, RawPlain};
use std::cell::Cell;
use std::sync::atomic::Ordering;

::loom::thread_local! {
    static CLOCK: Cell<u64> = Cell::new(0);
}
// loom runs all threads of a model on one thread of the operating system.
std::thread_local! {
    static STEP: Cell<u64> = const { Cell::new(0) };
}

/// Runs `f`, a whole model, with clocks that advance by `step` ns each time a thread reads its own. Without it time
/// stands still, so that nothing times out.
pub fn with_clock_step<R>(step: u64, f: impl FnOnce() -> R) -> R {
    let old = STEP.replace(step);
    let r = f();
    STEP.set(old);
    r
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Loom;

/// An atomic word of loom.
pub struct LoomCell<T: Prim>(T::Loom);

impl<T: Prim> RawCell<T> for LoomCell<T> {
    fn new(v: T) -> Self {
        LoomCell(T::Loom::new(v))
    }
    fn load(&self, o: Ordering) -> T {
        self.0.load(o)
    }
    fn store(&self, v: T, o: Ordering) {
        self.0.store(v, o)
    }
    fn swap(&self, v: T, o: Ordering) -> T {
        self.0.swap(v, rmw(o))
    }
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, rmw(o))
    }
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_add(v, rmw(o))
    }
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_sub(v, rmw(o))
    }
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_or(v, rmw(o))
    }
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_and(v, rmw(o))
    }
}

/// loom treats a `SeqCst` access as acquire-release; say so, the fences around it carry the rest.
fn rmw(o: Ordering) -> Ordering {
    if o == Ordering::SeqCst { Ordering::AcqRel } else { o }
}

/// A race-checked word.
pub struct LoomPlain<T: Prim>(::loom::cell::Cell<T>);

impl<T: Prim> RawPlain<T> for LoomPlain<T> {
    fn new(v: T) -> Self {
        LoomPlain(::loom::cell::Cell::new(v))
    }
    fn get(&self) -> T {
        self.0.get()
    }
    fn set(&self, v: T) {
        self.0.set(v)
    }
}

impl Arch for Loom {
    const NAME: &'static str = "loom";
    const RMW_IS_FULL: bool = false;
    type Cell<T: Prim> = LoomCell<T>;
    type PlainCell<T: Prim> = LoomPlain<T>;

    fn fence(f: Fence) {
        ::loom::sync::atomic::fence(match f {
            Fence::Full => Ordering::SeqCst,
            Fence::Read => Ordering::Acquire,
            Fence::Write => Ordering::Release,
        })
    }
    fn now() -> u64 {
        match STEP.get() {
            0 => 0,
            step => CLOCK.with(|c| {
                c.set(c.get() + step);
                c.get()
            }),
        }
    }
    fn cpu_relax() {
        ::loom::thread::yield_now()
    }
    fn wait_changed<T: Prim>(_: &LoomCell<T>, _: T) {
        ::loom::thread::yield_now()
    }
    fn futex_wait(word: &LoomCell<u32>, seen: u32, _deadline: Option<u64>) {
        // A sleeper that nobody wakes never sees the word change: the model then exceeds its branch limit and fails,
        // which is how a lost wake-up shows.
        while word.load(Ordering::Relaxed) == seen {
            ::loom::thread::yield_now();
        }
    }
    fn futex_wake(_: &LoomCell<u32>) {}
}
