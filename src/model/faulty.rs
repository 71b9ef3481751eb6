// SPDX-License-Identifier: GPL-2.0-only
//! Loom with one kind of ordering taken away: the port's own code, miscompiled on purpose.

use crate::arch::loom::{Loom, LoomCell, LoomPlain};
use crate::arch::{Arch, Fence, Int, Prim, RawCell};
use std::sync::atomic::Ordering;

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Stores with release are relaxed.
    StoreRelease,
    /// Read-modify-writes with release are relaxed.
    RmwRelease,
    /// Loads with acquire are relaxed.
    LoadAcquire,
    /// Read-modify-writes with acquire are relaxed.
    RmwAcquire,
    /// Full read-modify-writes are acquire and release only.
    RmwFull,
    /// No full fences, those around full read-modify-writes included.
    FullFence,
    /// No read fences.
    ReadFence,
    /// No write fences.
    WriteFence,
}

const ALL: [Fault; 8] = [
    Fault::StoreRelease,
    Fault::RmwRelease,
    Fault::LoadAcquire,
    Fault::RmwAcquire,
    Fault::RmwFull,
    Fault::FullFence,
    Fault::ReadFence,
    Fault::WriteFence,
];

/// The world without `Fault` number `F`.
#[derive(Clone, Copy, Debug)]
pub struct Faulty<const F: usize>;

/// Its words.
pub struct FaultyCell<T: Prim, const F: usize>(LoomCell<T>);

const fn is(f: usize, what: Fault) -> bool {
    ALL[f] as usize == what as usize
}

impl<T: Prim, const F: usize> FaultyCell<T, F> {
    fn rmw(o: Ordering) -> Ordering {
        match o {
            Ordering::Release if is(F, Fault::RmwRelease) => Ordering::Relaxed,
            Ordering::Acquire if is(F, Fault::RmwAcquire) => Ordering::Relaxed,
            o => o,
        }
    }
}

impl<T: Prim, const F: usize> RawCell<T> for FaultyCell<T, F> {
    fn new(v: T) -> Self {
        FaultyCell(LoomCell::new(v))
    }
    fn load(&self, o: Ordering) -> T {
        self.0.load(if is(F, Fault::LoadAcquire) { Ordering::Relaxed } else { o })
    }
    fn store(&self, v: T, o: Ordering) {
        self.0.store(v, if is(F, Fault::StoreRelease) { Ordering::Relaxed } else { o })
    }
    fn swap(&self, v: T, o: Ordering) -> T {
        self.0.swap(v, Self::rmw(o))
    }
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, Self::rmw(o))
    }
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_add(v, Self::rmw(o))
    }
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_sub(v, Self::rmw(o))
    }
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_or(v, Self::rmw(o))
    }
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_and(v, Self::rmw(o))
    }
}

impl<const F: usize> Arch for Faulty<F> {
    const NAME: &'static str = "faulty";
    const RMW_IS_FULL: bool = is(F, Fault::RmwFull);
    type Cell<T: Prim> = FaultyCell<T, F>;
    type PlainCell<T: Prim> = LoomPlain<T>;

    fn fence(f: Fence) {
        let gone = match f {
            Fence::Full => is(F, Fault::FullFence),
            Fence::Read => is(F, Fault::ReadFence),
            Fence::Write => is(F, Fault::WriteFence),
        };
        if !gone {
            Loom::fence(f);
        }
    }
    fn now() -> u64 {
        Loom::now()
    }
    fn cpu_relax() {
        Loom::cpu_relax()
    }
    fn wait_changed<T: Prim>(c: &FaultyCell<T, F>, seen: T) {
        Loom::wait_changed(&c.0, seen)
    }
    fn futex_wait(word: &FaultyCell<u32, F>, seen: u32, deadline: Option<u64>) {
        Loom::futex_wait(&word.0, seen, deadline)
    }
    fn futex_wake(word: &FaultyCell<u32, F>) {
        Loom::futex_wake(&word.0)
    }
}

/// Explores the generic case `$case::<World>` in the world of loom, where it must hold, and in the world without each
/// of the faults listed, where it must fail as said. The case is a function without arguments that sets up one
/// execution.
#[macro_export]
macro_rules! must_catch {
    ($case:ident, $bound:expr, $how:ident: $($fault:ident),+ $(,)?) => { {
        let n = $crate::model::explore($bound, $case::<$crate::arch::loom::Loom>);
        println!("{}: holds in {n} executions", stringify!($case));
        $({
            const F: usize = $crate::model::Fault::$fault as usize;
            let message = $crate::model::caught(
                concat!(stringify!($case), " without ", stringify!($fault)),
                $bound,
                $crate::model::Failure::$how,
                $case::<$crate::model::Faulty<F>>,
            );
            println!("{} without {}: {}", stringify!($case), stringify!($fault), message.lines().next().unwrap_or(""));
        })+
    } };
}
