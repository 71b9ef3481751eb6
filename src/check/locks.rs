// SPDX-License-Identifier: GPL-2.0-only
//! The locks by themselves: cases for the audit, of orders that no protocol's scenario passes, or passes only in front of
//! others that hide them. They are the same whatever the protocol, and each is kept small.
//!
//! INVARIANT: what a lock protects here is a race-checked word, or words of a sequence, and nothing else that the case does
//! orders two accesses to it.
//!
//! Cannot tell: what a queue of spinners does (model/osq_lock.rs, model/spinlock.rs), signals (model/rwsem.rs).

use super::log;
use super::world::Checked;
use crate::arch::{Atomic, Plain, Relaxed, smp_cond_load_acquire};
use crate::cpu::Cpu;
use crate::sync::{
    RawSpinLock, Refcount, RwSemaphore, Seqcount, down_read, down_write, downgrade_write, raw_spin_lock,
    raw_spin_unlock, up_read, up_write,
};

/// What the audit calls them.
pub const ALONE: &str = "L";

/// One of each, and what they protect.
pub struct Alone {
    sem: RwSemaphore<Checked>,
    spin: RawSpinLock<Checked>,
    refs: Refcount<Checked>,
    seq: Seqcount<Checked>,
    /// What the sequence protects: both the number of the last section.
    pair: [Atomic<Checked, u32>; 2],
    /// What a lock protects, or the count: one word for each CPU there.
    under: [Plain<Checked, u32>; 2],
}

/// What one CPU does.
type Part = fn(&Cpu<Checked>, &Alone);

/// One case.
pub struct Alike {
    /// Which.
    pub what: &'static str,
    /// What CPU 0 does before there are others.
    set_up: Part,
    /// What each CPU does.
    pub parts: &'static [Part],
}

/// All of them.
pub const CASES: &[Alike] = &[
    // Its queue is not reached.
    case("spinlock", nothing, &[spin, spin]),
    case("a reader behind a writer", nothing, &[write, read]),
    // Held from the start, which leaves a preemption for the reader who sleeps.
    case("downgrade", take, &[downgrade, read]),
    // A writer that is no longer there when the second one, who comes to queue, opens the door for the reader.
    case("two waiters", take, &[write_and_leave, read, write]),
    case("spinning writers", nothing, &[spin_and_write, spin_and_write]),
    // As 7.3 with its hung task detector.
    case("a reader that takes its name out", nothing, &[write, read_by_name]),
    case("read_seqcount_begin", nothing, &[section, look]),
    case("last reference", two_references, &[drop_it::<0>, drop_it::<1>]),
    case("last but one", two_references, &[until_alone, drop_one_of_two]),
    case("published", nothing, &[publish, get_if_there]),
];

const fn case(what: &'static str, set_up: Part, parts: &'static [Part]) -> Alike {
    Alike { what, set_up, parts }
}

impl Alike {
    /// What its CPUs share.
    pub fn begin(&self, cpu: &Cpu<Checked>) -> Box<Alone> {
        let s = Box::new(Alone {
            sem: RwSemaphore::new(),
            spin: RawSpinLock::new(),
            refs: Refcount::new(0),
            seq: Seqcount::new(0),
            pair: [0, 0].map(Atomic::new),
            under: [0, 0].map(Plain::new),
        });
        (self.set_up)(cpu, &s);
        fn word<T>(w: &T, name: impl Into<String>) {
            log::name(std::ptr::from_ref(w).cast(), size_of::<T>(), name);
        }
        for (name, at, len) in s.sem.words() {
            log::name(at, len, format!("sem.{name}"));
        }
        word(&s.spin, "spinlock");
        word(&s.refs, "count");
        word(&s.seq, "sequence");
        word(&s.pair[0], "first");
        word(&s.pair[1], "second");
        word(&s.under, "data");
        log::begun();
        s
    }
}

fn nothing(_: &Cpu<Checked>, _: &Alone) {}

fn change(s: &Alone) {
    s.under[0].set(s.under[0].get() + 1);
}

fn spin(cpu: &Cpu<Checked>, s: &Alone) {
    raw_spin_lock(cpu, &s.spin);
    change(s);
    raw_spin_unlock(cpu, &s.spin);
}

fn take(cpu: &Cpu<Checked>, s: &Alone) {
    down_write(cpu, &s.sem);
}

fn write_and_leave(cpu: &Cpu<Checked>, s: &Alone) {
    change(s);
    up_write(cpu, &s.sem);
}

fn write(cpu: &Cpu<Checked>, s: &Alone) {
    take(cpu, s);
    write_and_leave(cpu, s);
}

/// With nothing else to do, so that it waits awake.
fn spin_and_write(cpu: &Cpu<Checked>, s: &Alone) {
    cpu.softirq.ksoftirqd.set(false);
    write(cpu, s);
}

fn read(cpu: &Cpu<Checked>, s: &Alone) {
    down_read(cpu, &s.sem);
    s.under[0].get();
    up_read(cpu, &s.sem);
}

fn read_by_name(cpu: &Cpu<Checked>, s: &Alone) {
    cpu.clear_reader_owned.set(true);
    read(cpu, s);
}

fn downgrade(cpu: &Cpu<Checked>, s: &Alone) {
    change(s);
    downgrade_write(cpu, &s.sem);
    assert_eq!(s.under[0].get(), 1, "a writer came between");
    up_read(cpu, &s.sem);
}

fn section(_: &Cpu<Checked>, s: &Alone) {
    s.seq.write_begin();
    s.pair.iter().for_each(|w| w.store(1, Relaxed));
    s.seq.write_end();
}

fn look(_: &Cpu<Checked>, s: &Alone) {
    let begun = s.seq.read_begin();
    let seen = [0, 1].map(|i| s.pair[i].load(Relaxed));
    assert!(s.seq.read_retry(begun) || seen == [begun / 2; 2], "a section was seen half done, and not noticed");
}

fn two_references(_: &Cpu<Checked>, s: &Alone) {
    s.refs.set(2);
}

/// Writes what is its own; whoever drops the last reference has all.
fn drop_it<const ME: usize>(cpu: &Cpu<Checked>, s: &Alone) {
    s.under[ME].set(1);
    if s.refs.dec_and_test(cpu) {
        s.under.iter().for_each(|w| w.set(2));
    }
}

fn drop_one_of_two(cpu: &Cpu<Checked>, s: &Alone) {
    change(s);
    s.refs.dec(cpu);
}

/// Waits for the other to drop its reference.
fn until_alone(_: &Cpu<Checked>, s: &Alone) {
    smp_cond_load_acquire(s.refs.word(), |n| n == 1);
    change(s);
}

fn publish(_: &Cpu<Checked>, s: &Alone) {
    change(s);
    s.refs.set_release(1);
}

fn get_if_there(cpu: &Cpu<Checked>, s: &Alone) {
    if s.refs.inc_not_zero_acquire(cpu) {
        change(s);
    }
}
