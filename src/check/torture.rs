// SPDX-License-Identifier: GPL-2.0-only
//! The protocols on real threads: a writer that takes the one VMA from mm A to mm B and back for as long as it is told, and
//! readers of A at it: half of the time as fast as they can, half with pauses at the named places and everywhere between the
//! writer's steps.
//!
//! What this shows: that the failures of two lives (T3, T4) need no model checker and no special machine. They happen on the
//! one under the test, counted, with the protocols' own code on native words. The pauses only make likely what is possible
//! without: a reader that stops at a named place waits until the writer is at some step of its cycle, drawn at random, or
//! until its patience is over. What is busted must be caught with them; without them it may be; what is not must never be.
//!
//! A reader that got the lock looks twice at what it must have (vma-locks.md 5): I1 the VMA is attached in A, I2 its range
//! has the address, I3 A's writer has not got it too, I4 it is the same life, I5 mm, range, flags and protection stay what
//! they were. B maps it elsewhere half of the time, and a writer that has write-locked it changes its range and
//! flags: behind the attaching, and before it detaches it, as a split or merge does.
//!
//! custom: the ghost words are atomics here, of this file, since a false success must be counted and not end the test.
//!
//! Protocols whose memory waits for a grace period are not run.
//!
//! It cannot tell: what needs stores to be seen out of order (T0 to T2), least of all on x86; and a count of 0 proves
//! nothing by itself.
//!
//! `FAULTLINE_LOCK_SECONDS` is the time for all of it, 8 s where it is not given.

use super::slot::{A, ADDRESS, B, SIZE, Slot};
use crate::arch::native::{NativeCell, NativePlain};
use crate::arch::{Arch, Fence, Native, Prim, Relaxed};
use crate::cpu::Cpu;
use crate::cpu::splitmix64;
use crate::cpu::testing::for_test_set;
use crate::mm::mm_types::VmaFields;
use crate::mm::vma_lock::{Claim, Reuse, SCENARIOS, StartRead, VmaLock, point};
use crate::rcu::rcu_read_lock;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Native words, and pauses at named places.
#[derive(Clone, Copy, Debug)]
struct Chaos;

/// Readers.
const READERS: u32 = 2;
/// The writer's steps in a cycle.
const STEPS: u32 = 14;
/// How long a reader waits for the writer's step.
const PATIENCE: Duration = Duration::from_micros(200);

thread_local! {
    /// This thread's random numbers, and where it sees the writer's step; a reader's.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    static STEP: Cell<Option<&'static AtomicU32>> = const { Cell::new(None) };
}

fn random() -> u64 {
    RANDOM.set(splitmix64(RANDOM.get()));
    RANDOM.get()
}

impl Arch for Chaos {
    const NAME: &'static str = "chaos";
    const RMW_IS_FULL: bool = Native::RMW_IS_FULL;
    type Cell<T: Prim> = NativeCell<T>;
    type PlainCell<T: Prim> = NativePlain<T>;

    fn fence(f: Fence) {
        Native::fence(f);
    }
    fn now() -> u64 {
        Native::now()
    }
    fn cpu_relax() {
        Native::cpu_relax();
    }
    fn wait_changed<T: Prim>(cell: &NativeCell<T>, seen: T) {
        Native::wait_changed(cell, seen);
    }
    fn futex_wait(word: &NativeCell<u32>, seen: u32, deadline: Option<u64>) {
        Native::futex_wait(word, seen, deadline);
    }
    fn futex_wake(word: &NativeCell<u32>) {
        Native::futex_wake(word);
    }
    fn pause_point(name: &'static str) {
        if matches!(name, point::DETACHED | point::VM_MM) && !random().is_multiple_of(4) {
            pause();
        }
    }
}

/// A reader's, where there are any: until the writer is at some step.
fn pause() {
    let Some(step) = STEP.get() else { return };
    let (until, wanted) = (Instant::now() + PATIENCE, random() as u32 % STEPS);
    while step.load(Ordering::Relaxed) != wanted && Instant::now() < until {
        std::thread::yield_now();
    }
}

/// What is true of the VMA, whoever may believe otherwise.
#[derive(Default)]
struct Ghost {
    /// 1 + the mm it is attached in.
    owner: AtomicU32,
    /// 1 + the mm whose section has it write-locked.
    claim: AtomicU32,
    life: AtomicU32,
}

/// What the readers met.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    faults: u64,
    locked: u64,
    /// Locked, and one of the invariants does not hold.
    wrong: u64,
    /// I1: locked, and not attached in A.
    not_attached: u64,
    /// I2: locked, and the range has not the address.
    other_range: u64,
    /// I3: locked, and A's writer has it too.
    write_locked: u64,
    /// I4: locked, and another life meanwhile.
    another_life: u64,
    /// I5: locked, and what the lock protects changed.
    changed: u64,
}

impl std::ops::AddAssign for Met {
    fn add_assign(&mut self, o: Met) {
        self.faults += o.faults;
        self.locked += o.locked;
        self.wrong += o.wrong;
        self.not_attached += o.not_attached;
        self.other_range += o.other_range;
        self.write_locked += o.write_locked;
        self.another_life += o.another_life;
        self.changed += o.changed;
    }
}

impl std::fmt::Display for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} faults, {} locked, {} false", self.faults, self.locked, self.wrong)?;
        if self.wrong > 0 {
            write!(
                f,
                ": {} not attached, {} other range, {} write-locked, {} another life, {} changed",
                self.not_attached, self.other_range, self.write_locked, self.another_life, self.changed
            )?;
        }
        Ok(())
    }
}

/// The writer's way through its cycle: with pauses each step is announced, and takes a while.
struct Way<'a> {
    step: Option<&'a AtomicU32>,
    at: u32,
}

impl Way<'_> {
    fn next(&mut self) {
        let Some(step) = self.step else { return };
        self.at = (self.at + 1) % STEPS;
        step.store(self.at, Ordering::Relaxed);
        let r = random();
        if r.is_multiple_of(8) {
            std::thread::yield_now();
        }
        for _ in 0..(r >> 32) % 400 {
            std::hint::spin_loop();
        }
    }
}

/// W2: another range, and other flags and protection.
fn change<L: VmaLock>(s: &Slot<Chaos, L>, start: u64) {
    s.vma().vm_start().store(start, Relaxed);
    s.vma().vm_end().store(start + SIZE, Relaxed);
    s.vma().vm_flags().store(random(), Relaxed);
    s.vma().vm_page_prot().store(random(), Relaxed);
}

/// What the lock of a VMA protects, as far as it never changes under a reader.
fn payload<L: VmaLock>(s: &Slot<Chaos, L>) -> [u64; 5] {
    let v = s.vma();
    [
        v.vm_mm().load(Relaxed).addr() as u64,
        v.vm_start().load(Relaxed),
        v.vm_end().load(Relaxed),
        v.vm_flags().load(Relaxed),
        v.vm_page_prot().load(Relaxed),
    ]
}

/// A life of the VMA in mm `m`, at `start`, up to its attaching; the section goes on.
fn map<L: VmaLock>(cpu: &Cpu<Chaos>, s: &Slot<Chaos, L>, g: &Ghost, way: &mut Way<'_>, m: usize, start: u64) {
    s.begin(cpu, m);
    s.alloc_at(m, start);
    way.next();
    s.start_write(cpu, m);
    g.life.fetch_add(1, Ordering::SeqCst);
    g.claim.store(m as u32 + 1, Ordering::SeqCst);
    change(s, start);
    way.next();
    g.owner.store(m as u32 + 1, Ordering::SeqCst);
    s.attach(cpu, m);
    way.next();
    // As mmap() sets flags and protection behind the store into the tree, and as a call that goes on may move the range.
    change(s, if random().is_multiple_of(4) { ADDRESS + SIZE } else { start });
    way.next();
}

/// The end of that life, in a section that has begun.
fn unmap<L: VmaLock>(cpu: &Cpu<Chaos>, s: &Slot<Chaos, L>, g: &Ghost, way: &mut Way<'_>, m: usize) {
    s.start_write(cpu, m);
    g.claim.store(m as u32 + 1, Ordering::SeqCst);
    change(s, ADDRESS + SIZE);
    way.next();
    s.detach(cpu);
    g.owner.store(0, Ordering::SeqCst);
    s.free(cpu);
    way.next();
}

fn end<L: VmaLock>(cpu: &Cpu<Chaos>, s: &Slot<Chaos, L>, g: &Ghost, m: usize) {
    g.claim.store(0, Ordering::SeqCst);
    s.end(cpu, m);
}

/// A, B, A. `same`: B's section has the number of A's next one.
fn cycle<L: VmaLock>(cpu: &Cpu<Chaos>, s: &Slot<Chaos, L>, g: &Ghost, step: Option<&AtomicU32>, same: bool) {
    let way = &mut Way { step, at: STEPS - 1 };
    s.begin(cpu, A);
    unmap(cpu, s, g, way, A);
    end(cpu, s, g, A);
    s.next_section(B, s.mm(A).mm_lock_seq.raw_read() + if same { 1 } else { 1001 });
    map(cpu, s, g, way, B, ADDRESS + SIZE * (random() % 2));
    unmap(cpu, s, g, way, B);
    end(cpu, s, g, B);
    way.next();
    map(cpu, s, g, way, A, ADDRESS);
    end(cpu, s, g, A);
    way.next();
}

/// A fault of A at the VMA.
fn fault<L: VmaLock>(cpu: &Cpu<Chaos>, s: &Slot<Chaos, L>, g: &Ghost, met: &mut Met) {
    met.faults += 1;
    rcu_read_lock(cpu);
    let found = L::lock_vma_found(cpu, s.mm(A), s.vma(), ADDRESS, |mm| s.mmdrop(cpu, mm));
    L::lookup_done(cpu);
    if found != StartRead::Locked {
        // With pauses the writer is slow; it needs the CPU more than another look in vain does.
        if STEP.get().is_some() {
            std::thread::yield_now();
        }
        return;
    }
    met.locked += 1;
    let (life, protected) = (g.life.load(Ordering::SeqCst), payload(s));
    let (mut attached, mut covers, mut alone, mut changed) = (true, true, true, false);
    for _ in 0..2 {
        attached &= g.owner.load(Ordering::SeqCst) == A as u32 + 1;
        alone &= g.claim.load(Ordering::SeqCst) != A as u32 + 1;
        let now = payload(s);
        covers &= (now[1]..now[2]).contains(&ADDRESS);
        changed |= now != protected;
        for _ in 0..random() % 200 {
            std::hint::spin_loop();
        }
        if random().is_multiple_of(4) {
            pause();
        }
    }
    let another_life = g.life.load(Ordering::SeqCst) != life;
    met.wrong += u64::from(!attached || !covers || !alone || changed || another_life);
    met.not_attached += u64::from(!attached);
    met.other_range += u64::from(!covers);
    met.write_locked += u64::from(!alone);
    met.another_life += u64::from(another_life);
    met.changed += u64::from(changed);
    L::vma_end_read(cpu, s.vma());
}

/// Ends the readers.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `L` for `span`.
fn torture<L: VmaLock>(span: Duration, same: bool, pauses: bool, seed: u64) -> Met {
    let set = for_test_set::<Chaos>(1 + READERS);
    let cpu = set.cpu(0);
    let s = Slot::<Chaos, L>::new(&cpu, 2, false, |_, _, _| ());
    let ghost = Ghost::default();
    ghost.owner.store(A as u32 + 1, Ordering::SeqCst);
    // Leaked: the readers' thread-locals want it for ever; four bytes a run.
    let step = pauses.then(|| -> &'static AtomicU32 { Box::leak(Box::default()) });
    let stop = AtomicBool::new(false);
    let mut all = Met::default();
    std::thread::scope(|scope| {
        let (set, s, ghost, stop) = (&set, &s, &ghost, &stop);
        let readers: Vec<_> = (0..READERS)
            .map(|i| {
                scope.spawn(move || {
                    RANDOM.set(splitmix64(seed + 1 + u64::from(i)));
                    STEP.set(step);
                    let cpu = set.cpu(1 + i);
                    let mut met = Met::default();
                    while !stop.load(Ordering::Relaxed) {
                        fault(&cpu, s, ghost, &mut met);
                    }
                    met
                })
            })
            .collect();
        RANDOM.set(splitmix64(seed));
        // Also where the writer panics: the scope waits for the readers.
        let at_end = StopAtEnd(stop);
        let until = Instant::now() + span;
        while Instant::now() < until {
            for _ in 0..16 {
                cycle(&cpu, s, ghost, step, same);
            }
        }
        drop(at_end);
        for r in readers {
            all += r.join().expect("readers count, they do not panic");
        }
    });
    all
}

fn busted<L: VmaLock>(id: &str) -> bool {
    L::CLAIMS[SCENARIOS.iter().position(|s| s.0 == id).expect("a scenario")] == Claim::Busted
}

/// Both ways to number B's sections, without pauses and with; what differs from the claims.
fn judge<L: VmaLock>(span: Duration, bad: &mut Vec<String>) {
    if matches!(L::REUSE, Reuse::Forbids(_)) {
        return println!("{:30} not run: its memory waits for grace periods, which there are none of here", L::NAME);
    }
    for (id, same, pauses) in [("T3", false, false), ("T3", false, true), ("T4", true, false), ("T4", true, true)] {
        let mut met = Met::default();
        // Ten times as long until a reader gets the lock at all and, with pauses, until a busted one is caught: a busy machine
        // makes both rare.
        for round in 0..10 {
            met += torture::<L>(span, same, pauses, round);
            let caught = if same { met.write_locked } else { met.not_attached };
            if met.locked > 0 && (caught > 0 || !busted::<L>(id) || !pauses) {
                break;
            }
        }
        println!("{id} {:30} {:8} {met}", L::NAME, if pauses { "pauses" } else { "natively" });
        let mut hold = |what: &str, n: u64, must: bool, may: bool| {
            if (must && n == 0) || (!may && n > 0) {
                bad.push(format!("{id} {}, pauses {pauses}: {n} {what}: {met:?}", L::NAME));
            }
        };
        let t4 = same && busted::<L>("T4");
        let any = busted::<L>("T3") || t4;
        hold("locked", met.locked, true, true);
        hold("not attached (I1)", met.not_attached, pauses && !same && busted::<L>("T3"), busted::<L>("T3"));
        hold("other range (I2)", met.other_range, false, any);
        hold("write-locked (I3)", met.write_locked, pauses && t4, t4);
        hold("another life (I4)", met.another_life, false, any);
        hold("changed (I5)", met.changed, false, any);
        hold("false successes", met.wrong, false, any);
    }
}

#[test]
fn lives_that_come_again_fool_readers_on_this_machine() {
    let seconds = std::env::var("FAULTLINE_LOCK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8.0);
    let span = Duration::from_secs_f64(seconds / 48.0);
    let mut bad = Vec::new();
    let bad = &mut bad;
    crate::protocols!(__for_each_protocol(judge(span, bad)));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
