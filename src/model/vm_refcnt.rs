// SPDX-License-Identifier: GPL-2.0-only
//! Every value that `vm_refcnt` takes, and every step between two of them (L13): a world in which one word is watched.
//!
//! The world is loom's, its words report each write of the watched word, with who made it, before any other thread goes
//! on. The rules are those of `refcnt` (vma-locks.md, locking.md 6), with F bit 30: 0 detached, 1 attached, 1 + n with n
//! readers, F + 1 + n while a writer keeps readers out, F + n while one waits for them to let go of a detached VMA. A
//! reader goes one up from an attached value without F, or one down. The writer's steps are attach, F up, F down, one
//! down (detach). F goes down only from exactly F + 1, or F where it detaches: when no reader is inside.
//!
//! Readers are counted apart, so that the value must also be the sum of who is there. After the VMA was detached and
//! became another's, whoever read-locked it must hold what it looked for; each reason for falling back must occur in
//! some execution, else the cases are too small. Readers and writers that break a rule are caught.
//!
//! It cannot tell more than `vma_lock.rs` about orderings; that file takes those away.

use crate::arch::arena::KRef;
use crate::arch::loom::{Loom, LoomCell, LoomPlain};
use crate::arch::{Acquire, Arch, Fence, Int, Prim, RawCell, Relaxed};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::mm::mm_types::{MmRef, MmStruct, VmAreaStruct615, VmaFields, VmaRef};
use crate::mm::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use crate::mm::vma_lock::refcnt::{Refcnt, VMA_LOCK_OFFSET as F};
use crate::mm::vma_lock::{AbortCause, StartRead, VmaLock};
use crate::mm::vmstat::VmEvent;
use crate::model::{Failure, caught, explore};
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Loom, with one word watched.
#[derive(Clone, Copy, Debug)]
struct Watched;

/// Its words.
struct WatchedCell<T: Prim>(LoomCell<T>);

/// Who writes the watched word, and by which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    Writer,
    Reader,
}

/// What is known of the watched word. loom runs all threads of a model on one thread of the operating system.
struct Watch {
    word: usize,
    value: u32,
    /// References that readers hold, by their own steps.
    readers: u32,
    /// Readers between `vma_start_read()` and `vma_end_read()`.
    inside: u32,
    /// The VMA is attached, by the writer's steps.
    attached: bool,
    /// All values there were.
    seen: BTreeSet<u32>,
}

std::thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
}
::loom::thread_local! {
    static ACTOR: Cell<Actor> = Cell::new(Actor::Writer);
}

/// A write of the word at `at`, which held `old`: what the rules say.
fn note(at: usize, old: u64, new: u64) {
    let actor = WATCH.with_borrow(|w| w.as_ref().is_some_and(|w| w.word == at)).then(|| ACTOR.with(Cell::get));
    let Some(actor) = actor else { return };
    let (old, new) = (old as u32, new as u32);
    WATCH.with_borrow_mut(|w| {
        let w = w.as_mut().expect("looked above");
        assert_eq!(old, w.value, "{actor:?}: a step that nobody reported came before");
        match actor {
            Actor::Reader if new == old + 1 => {
                assert!((1..F).contains(&old), "a reader went in at {old:#x}");
                w.readers += 1;
            }
            Actor::Reader if new + 1 == old => {
                assert!(w.readers > 0, "a reader let go of what none has, at {old:#x}");
                w.readers -= 1;
            }
            Actor::Writer if new == old + F => {
                assert!((1..F).contains(&old), "F raised at {old:#x}");
            }
            Actor::Writer if new + F == old => {
                assert_eq!(old, F + u32::from(w.attached), "F taken back with readers inside");
                assert_eq!((w.readers, w.inside), (0, 0), "readers inside an exclusive section");
            }
            Actor::Writer if old == 0 && new == 1 => w.attached = true,
            // `vma_lock_init()` of an object that is free.
            Actor::Writer if old == 0 && new == 0 => {}
            Actor::Writer if new + 1 == old => {
                assert!(w.attached && old < F, "detached at {old:#x}");
                w.attached = false;
            }
            _ => panic!("{actor:?}: {old:#x} to {new:#x} is no step of the protocol"),
        }
        let count = new & (F - 1);
        assert_eq!(count, u32::from(w.attached) + w.readers, "{new:#x} is not the sum of who is there");
        assert!(new < 2 * F, "{new:#x}");
        w.value = new;
        w.seen.insert(new);
    });
    STEPS.set(STEPS.get() + 1);
}

/// The value as a number; pointers are never watched.
fn number<T: Prim>(v: T) -> u64 {
    if std::mem::size_of::<T>() == 4 {
        // SAFETY: a word of four bytes is a plain integer.
        u64::from(unsafe { *(&raw const v).cast::<u32>() })
    } else {
        0
    }
}

impl<T: Prim> WatchedCell<T> {
    fn at(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
    fn watched(&self) -> bool {
        WATCH.with_borrow(|w| w.as_ref().is_some_and(|w| w.word == self.at()))
    }
    fn noted(&self, old: T, new: T) -> T {
        note(self.at(), number(old), number(new));
        old
    }
}

impl<T: Prim> RawCell<T> for WatchedCell<T> {
    fn new(v: T) -> Self {
        WatchedCell(LoomCell::new(v))
    }
    fn load(&self, o: Ordering) -> T {
        self.0.load(o)
    }
    fn store(&self, v: T, o: Ordering) {
        self.0.store(v, o);
        if self.watched() {
            let old = WATCH.with_borrow(|w| w.as_ref().map_or(0, |w| w.value));
            note(self.at(), u64::from(old), number(v));
        }
    }
    fn swap(&self, v: T, o: Ordering) -> T {
        let old = self.0.swap(v, o);
        self.noted(old, v)
    }
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, o).map(|old| self.noted(old, new))
    }
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let old = self.0.fetch_add(v, o);
        note(self.at(), number(old), u64::from((number(old) as u32).wrapping_add(number(v) as u32)));
        old
    }
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let old = self.0.fetch_sub(v, o);
        note(self.at(), number(old), u64::from((number(old) as u32).wrapping_sub(number(v) as u32)));
        old
    }
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let old = self.0.fetch_or(v, o);
        note(self.at(), number(old), number(old) | number(v));
        old
    }
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        let old = self.0.fetch_and(v, o);
        note(self.at(), number(old), number(old) & number(v));
        old
    }
}

impl Arch for Watched {
    const NAME: &'static str = "watched";
    const RMW_IS_FULL: bool = Loom::RMW_IS_FULL;
    type Cell<T: Prim> = WatchedCell<T>;
    type PlainCell<T: Prim> = LoomPlain<T>;
    fn fence(f: Fence) {
        Loom::fence(f);
    }
    fn now() -> u64 {
        Loom::now()
    }
    fn cpu_relax() {
        Loom::cpu_relax();
    }
    fn wait_changed<T: Prim>(c: &WatchedCell<T>, seen: T) {
        Loom::wait_changed(&c.0, seen);
    }
    fn futex_wait(word: &WatchedCell<u32>, seen: u32, deadline: Option<u64>) {
        Loom::futex_wait(&word.0, seen, deadline);
    }
    fn futex_wake(word: &WatchedCell<u32>) {
        Loom::futex_wake(&word.0);
    }
}

const AT: u64 = 0x10_0000;
const ELSEWHERE: u64 = 0x50_0000;
const SIZE: u64 = 0x1000;

struct Shared {
    mm: MmStruct<Watched, Refcnt>,
    other: MmStruct<Watched, Refcnt>,
    vma: VmAreaStruct615<Watched, Refcnt>,
}

type C = Cpu<Watched>;

impl Shared {
    fn mm(&self) -> MmRef<Watched, Refcnt> {
        // SAFETY: the Arc of the model outlives all threads.
        unsafe { KRef::from_ref(&self.mm) }
    }
    fn vma(&self) -> VmaRef<Watched, Refcnt> {
        // SAFETY: as above.
        unsafe { KRef::from_ref(&self.vma) }
    }
    /// A VMA of `mm` at `start`, attached, in a section of its own.
    fn attach(&self, cpu: &C, mm: &MmStruct<Watched, Refcnt>, start: u64) {
        self.vma.vma_init(std::ptr::from_ref(mm).cast_mut(), 0);
        Refcnt::vma_lock_init(self.vma(), true);
        self.vma.vm_start().store(start, Relaxed);
        self.vma.vm_end().store(start + SIZE, Relaxed);
        mmap_write_lock(cpu, mm);
        Refcnt::vma_start_write(cpu, self.vma());
        Refcnt::vma_mark_attached(cpu, self.vma());
        mmap_write_unlock(cpu, mm);
    }
    /// Removes it.
    fn detach(&self, cpu: &C) {
        mmap_write_lock(cpu, &self.mm);
        Refcnt::vma_start_write(cpu, self.vma());
        Refcnt::vma_mark_detached(cpu, self.vma());
        assert!(Refcnt::vma_lock_is_free(self.vma()));
        mmap_write_unlock(cpu, &self.mm);
    }
}

/// What readers met, over all executions.
#[derive(Default)]
struct Met {
    locked: Mutex<u64>,
    causes: Mutex<BTreeSet<String>>,
    seen: Mutex<BTreeSet<u32>>,
}

/// A reader that has found the VMA: locks it, is inside, lets go.
fn read(cpu: &C, s: &Shared, met: &Met) {
    ACTOR.with(|a| a.set(Actor::Reader));
    rcu_read_lock(cpu);
    let got = Refcnt::lock_vma_found(cpu, s.mm(), s.vma(), AT, |_| ());
    rcu_read_unlock(cpu);
    match got {
        StartRead::Locked => {
            WATCH.with_borrow_mut(|w| w.as_mut().expect("watched").inside += 1);
            *met.locked.lock().unwrap() += 1;
            assert!(std::ptr::eq(s.vma.vm_mm().load(Relaxed), &raw const s.mm), "another mm's VMA");
            assert_eq!(s.vma.vm_start().load(Relaxed), AT, "another range");
            WATCH.with_borrow_mut(|w| w.as_mut().expect("watched").inside -= 1);
            Refcnt::vma_end_read(cpu, s.vma());
        }
        StartRead::Contended(cause) => _ = met.causes.lock().unwrap().insert(format!("{cause:?}")),
        StartRead::Detached => _ = met.causes.lock().unwrap().insert("Detached".into()),
    }
}

/// One execution: `readers` of [`read`]'s kind against what the writer does to an attached VMA.
fn execution(readers: u32, met: &Arc<Met>, reader: fn(&C, &Shared, &Met), writer: fn(&C, &Shared)) {
    let set = for_test_set::<Watched>(readers + 1);
    let s = Arc::new(Shared { mm: MmStruct::new(), other: MmStruct::new(), vma: VmAreaStruct615::new() });
    let cpu = set.cpu(0);
    // A writer that must wait sleeps at once: spinning only multiplies interleavings.
    cpu.softirq.ksoftirqd.set(true);
    WATCH.set(Some(Watch {
        word: std::ptr::from_ref(s.vma.vm_refcnt.word().raw()) as usize,
        value: s.vma.vm_refcnt.read(),
        readers: 0,
        inside: 0,
        attached: false,
        seen: BTreeSet::new(),
    }));
    s.attach(&cpu, &s.mm, AT);
    let threads: Vec<_> = (1..=readers)
        .map(|id| {
            let (set, s, met) = (set.clone(), s.clone(), met.clone());
            ::loom::thread::spawn(move || {
                let cpu = set.cpu(id);
                reader(&cpu, &s, &met);
                assert_eq!(cpu.counters.get(VmEvent::Warn), 0);
            })
        })
        .collect();
    writer(&cpu, &s);
    threads.into_iter().for_each(|t| t.join().expect("a panic ends the model"));
    assert_eq!(cpu.counters.get(VmEvent::Warn), 0);
    let w = WATCH.take().expect("watched");
    assert_eq!((w.readers, w.inside), (0, 0));
    assert_eq!(w.value, s.vma.vm_refcnt.read());
    met.seen.lock().unwrap().extend(w.seen);
}

/// Explores; what was met.
fn all(readers: u32, preemptions: usize, writer: fn(&C, &Shared)) -> Arc<Met> {
    let met = Arc::new(Met::default());
    let m = met.clone();
    STEPS.set(0);
    let n = explore(preemptions, move || execution(readers, &m, read, writer));
    println!(
        "{readers} readers: {n} executions, {} steps of the count, {} locked, values {:x?}, fallbacks {:?}",
        STEPS.get(),
        met.locked.lock().unwrap(),
        met.seen.lock().unwrap(),
        met.causes.lock().unwrap()
    );
    met
}

/// Write-locks it and changes nothing.
fn write_lock(cpu: &C, s: &Shared) {
    mmap_write_lock(cpu, &s.mm);
    Refcnt::vma_start_write(cpu, s.vma());
    mmap_write_unlock(cpu, &s.mm);
}

/// It becomes another VMA of the same mm.
fn moved(cpu: &C, s: &Shared) {
    s.detach(cpu);
    s.attach(cpu, &s.mm, ELSEWHERE);
}

/// It becomes a VMA of another mm at the same address.
fn to_another_mm(cpu: &C, s: &Shared) {
    s.detach(cpu);
    s.attach(cpu, &s.other, AT);
}

#[test]
fn each_value_and_each_step_of_the_count_is_legal() {
    let mut causes = BTreeSet::new();
    let mut values = BTreeSet::new();
    type Writer = fn(&C, &Shared);
    let cases: [(u32, usize, Writer); 4] =
        [(1, 2, write_lock), (1, 2, moved), (1, 2, to_another_mm), (2, 2, Shared::detach_of)];
    for (readers, preemptions, writer) in cases {
        let met = all(readers, preemptions, writer);
        assert!(*met.locked.lock().unwrap() > 0, "no reader ever got the lock");
        causes.extend(met.causes.lock().unwrap().iter().cloned());
        values.extend(met.seen.lock().unwrap().iter().copied());
    }
    // Every value of the table that these cases can reach, and every reason but "no VMA", which the walk has.
    for v in [0, 1, 2, 3, F, F + 1, F + 2] {
        assert!(values.contains(&v), "{v:#x} never occurred");
    }
    for c in [AbortCause::SeqEarly, AbortCause::Writer, AbortCause::SeqLate, AbortCause::OtherMm, AbortCause::Range] {
        assert!(causes.contains(&format!("{c:?}")), "{c:?} never occurred");
    }
    assert!(causes.contains("Detached"), "no reader met a detached VMA");
}

impl Shared {
    /// [`Shared::detach`] as a writer.
    fn detach_of(cpu: &C, s: &Shared) {
        s.detach(cpu);
    }
}

/// A reader that minds no limit: goes in beside a writer.
fn unlimited(cpu: &C, s: &Shared, _: &Met) {
    ACTOR.with(|a| a.set(Actor::Reader));
    if s.vma.vm_refcnt.inc_not_zero_acquire(cpu) {
        Refcnt::vma_end_read(cpu, s.vma());
    }
}

/// A writer that does not wait for readers.
fn impatient(cpu: &C, s: &Shared) {
    mmap_write_lock(cpu, &s.mm);
    assert!(s.vma.vm_refcnt.add_not_zero(cpu, F));
    s.vma.vm_lock_seq().store(s.mm.mm_lock_seq.word().load(Relaxed), Relaxed);
    s.vma.vm_refcnt.sub_return_old(cpu, F);
    mmap_write_unlock(cpu, &s.mm);
}

/// A writer that makes another VMA of it while readers may still hold it.
fn hasty(cpu: &C, s: &Shared) {
    mmap_write_lock(cpu, &s.mm);
    Refcnt::vma_start_write(cpu, s.vma());
    let _ = s.vma.vm_refcnt.dec_and_test(cpu);
    mmap_write_unlock(cpu, &s.mm);
    s.attach(cpu, &s.mm, ELSEWHERE);
    let _ = s.vma.vm_refcnt.word().load(Acquire);
}

#[test]
fn who_breaks_a_rule_is_caught() {
    type Reader = fn(&C, &Shared, &Met);
    type Writer = fn(&C, &Shared);
    let cases: [(&str, Reader, Writer, &str); 3] = [
        ("a reader without a limit", unlimited, write_lock, "a reader went in at 0x4000000"),
        ("a writer that does not wait", read, impatient, "with readers inside"),
        ("a detach that does not wait", read, hasty, "detached at 0x1"),
    ];
    for (what, reader, writer, how) in cases {
        let met = Arc::new(Met::default());
        let message = caught(what, 2, Failure::Wrong, move || execution(1, &met, reader, writer));
        WATCH.set(None);
        assert!(message.contains(how), "{what}: {message}");
    }
}
