// SPDX-License-Identifier: GPL-2.0-only
//! A world in which one CPU runs at a time and gives way only at named places ([`Arch::pause_point`]), or where it would
//! sleep or spin: an interleaving is a script and not a matter of luck.
//!
//! Every access is written down ([`log`]). Every load returns the newest value, so that what fails here fails on any
//! machine. A range of memory can be declared freed: whoever touches it afterwards fails (I9). A wait that nobody ends
//! fails too.
//!
//! custom: CPUs are threads of the operating system that hand a baton round, since a coroutine would need its own stack
//! under each test.

use super::log::{self, Op, number};
use crate::arch::native::{NativeCell, NativePlain};
use crate::arch::{Arch, Fence, Int, Prim, RawCell, RawPlain};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Stepped;

/// Times the baton may go round before it counts as waiting for ever.
const MAX_TURNS: u32 = 1000;

#[derive(Default)]
struct State {
    turn: usize,
    done: Vec<bool>,
    turns: u32,
    /// What went wrong first; ends everybody.
    wrong: Option<String>,
    freed: Vec<(usize, usize, &'static str)>,
}

#[derive(Default)]
struct Stage {
    state: Mutex<State>,
    changed: Condvar,
}

struct Seat {
    stage: Arc<Stage>,
    me: usize,
    stops: Cell<&'static [&'static str]>,
}

impl Seat {
    /// Whether it gives way here: at the first of its stops, which is then over unless it is the last.
    fn stops_at(&self, name: &str) -> bool {
        let (next, rest) = match self.stops.get() {
            [last] => (last, self.stops.get()),
            [next, rest @ ..] => (next, rest),
            [] => return false,
        };
        let here = *next == name;
        if here {
            self.stops.set(rest);
        }
        here
    }
}

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

/// What a thread that must not go on panics with; says nothing new.
struct Stopped;

impl Stage {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits for this CPU's turn.
    fn wait(&self, me: usize) {
        let mut s = self.lock();
        while s.turn != me && s.wrong.is_none() {
            s = self.changed.wait(s).unwrap_or_else(|e| e.into_inner());
        }
        if s.wrong.is_some() {
            drop(s);
            std::panic::resume_unwind(Box::new(Stopped));
        }
    }

    /// Hands the baton to the next CPU that is not done; whether there is one.
    ///
    /// # Panics
    /// If it has gone round too often.
    fn hand_on(&self, me: usize) -> bool {
        let mut s = self.lock();
        let n = s.done.len();
        let Some(next) = (1..n).map(|i| (me + i) % n).find(|i| !s.done[*i]) else { return false };
        s.turns += 1;
        if s.turns == MAX_TURNS {
            drop(s);
            panic!("I10: somebody waits for ever");
        }
        s.turn = next;
        self.changed.notify_all();
        true
    }
}

/// Runs `f` with this thread's seat, if it has one.
fn seated<R>(f: impl FnOnce(&Seat) -> R) -> Option<R> {
    SEAT.with_borrow(|s| s.as_ref().map(f))
}

/// Lets the others run until they stop, block or are done.
fn give_way(must: bool) {
    let here = seated(|s| (s.stage.clone(), s.me));
    let Some((stage, me)) = here else { return };
    if stage.hand_on(me) {
        stage.wait(me);
    } else {
        assert!(!must, "I10: waits for somebody who is gone");
    }
}

/// Declares `len` bytes at `p` freed.
pub fn poison(p: *const u8, len: usize, what: &'static str) {
    seated(|s| s.stage.lock().freed.push((p as usize, p as usize + len, what)));
}

fn touch<T>(cell: &T) {
    let at = std::ptr::from_ref(cell) as usize;
    let hit = seated(|s| s.stage.lock().freed.iter().find(|f| (f.0..f.1).contains(&at)).map(|f| f.2)).flatten();
    if let Some(what) = hit {
        panic!("I9: {what} used after its free");
    }
}

/// Where a CPU gives way, in this order and then at the last of them each time, and what it runs.
pub type Part<'a> = (&'static [&'static str], Box<dyn FnOnce() + Send + 'a>);

/// Runs the parts, the first one first, each until it stops, blocks or is done.
///
/// # Errors
/// What went wrong first.
pub fn run(parts: Vec<Part<'_>>) -> Result<(), String> {
    let stage = Arc::new(Stage::default());
    stage.lock().done = vec![false; parts.len()];
    let log = log::current();
    std::thread::scope(|scope| {
        for (me, (stops, f)) in parts.into_iter().enumerate() {
            let (stage, log) = (stage.clone(), log.clone());
            scope.spawn(move || {
                log::set_current(log);
                SEAT.set(Some(Seat { stage: stage.clone(), me, stops: Cell::new(stops) }));
                let r = catch_unwind(AssertUnwindSafe(|| {
                    stage.wait(me);
                    f();
                }));
                SEAT.set(None);
                let mut s = stage.lock();
                s.done[me] = true;
                if let Err(e) = r
                    && !e.is::<Stopped>()
                {
                    let text = e.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| e.downcast_ref::<&str>().map(|t| (*t).to_string()));
                    s.wrong.get_or_insert(text.unwrap_or_default());
                }
                s.turns = 0;
                drop(s);
                stage.hand_on(me);
                stage.changed.notify_all();
            });
        }
    });
    let wrong = stage.lock().wrong.take();
    wrong.map_or(Ok(()), Err)
}

fn me() -> u32 {
    seated(|s| s.me as u32).unwrap_or(0)
}

/// A word.
#[repr(transparent)]
pub struct SteppedCell<T: Prim>(NativeCell<T>);

impl<T: Prim> SteppedCell<T> {
    fn note(&self, at: &'static Location<'static>, op: Op, read: T) {
        log::access(
            me(),
            at,
            op,
            std::ptr::from_ref(self) as usize,
            number(read),
            number(self.0.load(Ordering::Relaxed)),
        );
    }
}

impl<T: Prim> RawCell<T> for SteppedCell<T> {
    fn new(v: T) -> Self {
        SteppedCell(NativeCell::new(v))
    }
    #[track_caller]
    #[inline(never)]
    fn load(&self, o: Ordering) -> T {
        touch(self);
        let v = self.0.load(o);
        self.note(Location::caller(), Op::Load(o), v);
        v
    }
    #[track_caller]
    #[inline(never)]
    fn store(&self, v: T, o: Ordering) {
        touch(self);
        self.0.store(v, o);
        self.note(Location::caller(), Op::Store(o), v);
    }
    #[track_caller]
    #[inline(never)]
    fn swap(&self, v: T, o: Ordering) -> T {
        touch(self);
        let old = self.0.swap(v, o);
        self.note(Location::caller(), Op::Rmw(o), old);
        old
    }
    #[track_caller]
    #[inline(never)]
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        touch(self);
        let r = self.0.compare_exchange(old, new, o);
        self.note(Location::caller(), if r.is_ok() { Op::Rmw(o) } else { Op::Failed }, r.unwrap_or_else(|v| v));
        r
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        touch(self);
        let old = self.0.fetch_add(v, o);
        self.note(Location::caller(), Op::Rmw(o), old);
        old
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        touch(self);
        let old = self.0.fetch_sub(v, o);
        self.note(Location::caller(), Op::Rmw(o), old);
        old
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        touch(self);
        let old = self.0.fetch_or(v, o);
        self.note(Location::caller(), Op::Rmw(o), old);
        old
    }
    #[track_caller]
    #[inline(never)]
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        touch(self);
        let old = self.0.fetch_and(v, o);
        self.note(Location::caller(), Op::Rmw(o), old);
        old
    }
}

/// A word that a lock protects.
#[repr(transparent)]
pub struct SteppedPlain<T: Prim>(NativePlain<T>);

impl<T: Prim> RawPlain<T> for SteppedPlain<T> {
    fn new(v: T) -> Self {
        SteppedPlain(NativePlain::new(v))
    }
    #[track_caller]
    #[inline(never)]
    fn get(&self) -> T {
        touch(self);
        let v = self.0.get();
        log::access(me(), Location::caller(), Op::Get, std::ptr::from_ref(self) as usize, number(v), 0);
        v
    }
    #[track_caller]
    #[inline(never)]
    fn set(&self, v: T) {
        touch(self);
        self.0.set(v);
        log::access(me(), Location::caller(), Op::Set, std::ptr::from_ref(self) as usize, 0, number(v));
    }
}

impl Arch for Stepped {
    const NAME: &'static str = "stepped";
    const RMW_IS_FULL: bool = true;
    type Cell<T: Prim> = SteppedCell<T>;
    type PlainCell<T: Prim> = SteppedPlain<T>;

    fn fence(_: Fence) {}
    fn now() -> u64 {
        0
    }
    fn cpu_relax() {
        give_way(true);
    }
    fn wait_changed<T: Prim>(_: &SteppedCell<T>, _: T) {
        give_way(true);
    }
    fn futex_wait(word: &SteppedCell<u32>, seen: u32, _deadline: Option<u64>) {
        while word.load(Ordering::Relaxed) == seen {
            give_way(true);
        }
    }
    fn futex_wake(_: &SteppedCell<u32>) {}
    fn pause_point(name: &'static str) {
        if seated(|s| s.stops_at(name)) == Some(true) {
            give_way(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Atomic, Relaxed};

    const HERE: &[&str] = &["here"];

    #[test]
    fn the_script_decides_who_is_next() {
        let word = Atomic::<Stepped, u32>::new(0);
        let word = &word;
        let first = move || {
            word.store(1, Relaxed);
            Stepped::pause_point("here");
            assert_eq!(word.load(Relaxed), 2);
        };
        let second = move || {
            assert_eq!(word.load(Relaxed), 1);
            Stepped::pause_point("elsewhere");
            word.store(2, Relaxed);
        };
        assert_eq!(run(vec![(HERE, Box::new(first)), (HERE, Box::new(second))]), Ok(()));
    }

    #[test]
    fn what_must_not_be_is_said() {
        let word = Box::new(Atomic::<Stepped, u32>::new(0));
        let w = &*word;
        let free = move || poison(std::ptr::from_ref(w).cast(), 4, "the word");
        let wrong = run(vec![(&[], Box::new(free)), (&[], Box::new(move || assert_eq!(w.load(Relaxed), 0)))]);
        assert!(wrong.unwrap_err().contains("the word used after its free"));
        let alone = run(vec![(&[], Box::new(move || Stepped::futex_wait(w.raw(), 0, None)))]);
        assert!(alone.unwrap_err().contains("I10"));
        let wait = move || Stepped::futex_wait(w.raw(), 0, None);
        let both = run(vec![(&[], Box::new(wait)), (&[], Box::new(wait))]);
        assert!(both.unwrap_err().contains("waits for ever"));
    }
}
