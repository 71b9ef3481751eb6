// SPDX-License-Identifier: GPL-2.0-only
//! The model checker's world with two additions: each access is written down ([`log`]), and the accesses of one line
//! can be made weaker without touching the source ([`weaken`]): every order of that line is then relaxed, and its fences
//! are gone. What an access of the port is meant to order is so put to the test one by one.

use super::log::{self, Op, number};
use crate::arch::loom::{Loom, LoomCell, LoomPlain};
use crate::arch::{Arch, Fence, Int, Prim, RawCell, RawPlain};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::sync::atomic::Ordering;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Checked;

/// A line of the port with an access in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Site {
    /// Path as the compiler has it.
    pub file: String,
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl Site {
    /// Of a line.
    pub fn of(at: &Location<'_>) -> Site {
        Site { file: at.file().into(), line: at.line(), column: at.column() }
    }
    fn is(&self, at: &Location<'_>) -> bool {
        self.line == at.line() && self.column == at.column() && self.file == at.file()
    }
}

thread_local! {
    static WEAK: RefCell<Option<Site>> = const { RefCell::new(None) };
}
::loom::thread_local! {
    static CPU: Cell<u32> = Cell::new(0);
}

/// Takes all order away from the accesses at `site`, in the models that this thread explores from now on.
pub fn weaken(site: Option<Site>) {
    WEAK.set(site);
}

/// Who this thread of the model is, in the log.
pub fn i_am(cpu: u32) {
    CPU.with(|c| c.set(cpu));
}

fn me() -> u32 {
    CPU.with(Cell::get)
}

fn weak(at: &Location<'_>) -> bool {
    WEAK.with_borrow(|w| w.as_ref().is_some_and(|w| w.is(at)))
}

fn order(at: &Location<'_>, o: Ordering) -> Ordering {
    if weak(at) { Ordering::Relaxed } else { o }
}

/// A word.
pub struct CheckedCell<T: Prim>(LoomCell<T>);

impl<T: Prim> CheckedCell<T> {
    fn note(&self, at: &'static Location<'static>, op: Op, read: T, written: T) {
        log::access(me(), at, op, std::ptr::from_ref(self) as usize, number(read), number(written));
    }
    fn note_rmw(&self, at: &'static Location<'static>, o: Ordering, old: T, new: u64) {
        let new = new & (u64::MAX >> (64 - 8 * size_of::<T>()));
        log::access(me(), at, Op::Rmw(o), std::ptr::from_ref(self) as usize, number(old), new);
    }
}

impl<T: Prim> RawCell<T> for CheckedCell<T> {
    fn new(v: T) -> Self {
        CheckedCell(LoomCell::new(v))
    }
    #[track_caller]
    #[inline(never)]
    fn load(&self, o: Ordering) -> T {
        let at = Location::caller();
        let v = self.0.load(order(at, o));
        self.note(at, Op::Load(o), v, v);
        v
    }
    #[track_caller]
    #[inline(never)]
    fn store(&self, v: T, o: Ordering) {
        let at = Location::caller();
        self.0.store(v, order(at, o));
        self.note(at, Op::Store(o), v, v);
    }
    #[track_caller]
    #[inline(never)]
    fn swap(&self, v: T, o: Ordering) -> T {
        let at = Location::caller();
        let old = self.0.swap(v, order(at, o));
        self.note(at, Op::Rmw(o), old, v);
        old
    }
    #[track_caller]
    #[inline(never)]
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        let at = Location::caller();
        let r = self.0.compare_exchange(old, new, order(at, o));
        match r {
            Ok(v) => self.note(at, Op::Rmw(o), v, new),
            Err(v) => self.note(at, Op::Failed, v, v),
        }
        r
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let at = Location::caller();
        let old = self.0.fetch_add(v, order(at, o));
        self.note_rmw(at, o, old, number(old).wrapping_add(number(v)));
        old
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let at = Location::caller();
        let old = self.0.fetch_sub(v, order(at, o));
        self.note_rmw(at, o, old, number(old).wrapping_sub(number(v)));
        old
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let at = Location::caller();
        let old = self.0.fetch_or(v, order(at, o));
        self.note_rmw(at, o, old, number(old) | number(v));
        old
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let at = Location::caller();
        let old = self.0.fetch_and(v, order(at, o));
        self.note_rmw(at, o, old, number(old) & number(v));
        old
    }
}

/// A race-checked word.
pub struct CheckedPlain<T: Prim>(LoomPlain<T>);

impl<T: Prim> RawPlain<T> for CheckedPlain<T> {
    fn new(v: T) -> Self {
        CheckedPlain(LoomPlain::new(v))
    }
    #[track_caller]
    #[inline(never)]
    fn get(&self) -> T {
        let at = Location::caller();
        // Noted first: if nothing orders it against a write, it is the last that happens.
        let word = std::ptr::from_ref(self) as usize;
        log::racing(me(), at, Op::Get, word);
        let v = self.0.get();
        log::raced(number(v));
        v
    }
    #[track_caller]
    #[inline(never)]
    fn set(&self, v: T) {
        let at = Location::caller();
        let word = std::ptr::from_ref(self) as usize;
        log::racing(me(), at, Op::Set, word);
        self.0.set(v);
        log::raced(number(v));
    }
}

impl Arch for Checked {
    const NAME: &'static str = "checked";
    const RMW_IS_FULL: bool = Loom::RMW_IS_FULL;
    type Cell<T: Prim> = CheckedCell<T>;
    type PlainCell<T: Prim> = CheckedPlain<T>;

    #[track_caller]
    #[inline(never)]
    fn fence(f: Fence) {
        let at = Location::caller();
        if !weak(at) {
            Loom::fence(f);
        }
        log::fence(me(), at, f);
    }
    fn now() -> u64 {
        Loom::now()
    }
    fn cpu_relax() {
        Loom::cpu_relax();
    }
    fn wait_changed<T: Prim>(c: &CheckedCell<T>, seen: T) {
        Loom::wait_changed(&c.0, seen);
    }
    fn futex_wait(word: &CheckedCell<u32>, seen: u32, deadline: Option<u64>) {
        Loom::futex_wait(&word.0, seen, deadline);
    }
    fn futex_wake(word: &CheckedCell<u32>) {
        Loom::futex_wake(&word.0);
    }
}
