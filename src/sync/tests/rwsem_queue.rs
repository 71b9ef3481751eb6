// SPDX-License-Identifier: GPL-2.0-only
//! L5 to L7 of the reference: the queue of an rwsem, built waiter by waiter so that every step is known.

use super::eventually;
use crate::arch::{Native, Relaxed};
use crate::cpu::Cpu;
use crate::cpu::testing::{CpuSet, for_test_set};
use crate::sync::{
    LockEvent, RwSemaphore, down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, up_read,
    up_write,
};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::thread::{Scope, sleep};
use std::time::Duration;

/// A lock held by the test, and waiters that hold it, once they have it, until they are told to go.
struct Stage {
    sem: RwSemaphore<Native>,
    set: CpuSet<Native>,
    inside: AtomicU32,
    go: AtomicBool,
    order: Mutex<Vec<u32>>,
    /// Handoffs, sleeps and so on of all waiters that have left.
    events: Mutex<Vec<(LockEvent, u64)>>,
}

impl Stage {
    fn new(cpus: u32) -> Self {
        Stage {
            sem: RwSemaphore::new(),
            set: for_test_set(cpus),
            inside: AtomicU32::new(0),
            go: AtomicBool::new(false),
            order: Mutex::new(Vec::new()),
            events: Mutex::new(Vec::new()),
        }
    }

    /// CPU `id` asks for the lock and does not spin; returns when it is the last in the queue.
    fn queue<'s>(&'s self, s: &'s Scope<'s, '_>, id: u32, read: bool) {
        let before = self.sem.queued().len();
        s.spawn(move || {
            let cpu = self.set.cpu(id);
            cpu.softirq.ksoftirqd.set(true);
            if read {
                down_read(&cpu, &self.sem)
            } else {
                down_write(&cpu, &self.sem)
            }
            self.order.lock().unwrap().push(id);
            self.inside.fetch_add(1, Ordering::Relaxed);
            while !self.go.load(Ordering::Relaxed) {
                sleep(Duration::from_micros(300));
            }
            self.inside.fetch_sub(1, Ordering::Relaxed);
            if read {
                up_read(&cpu, &self.sem)
            } else {
                up_write(&cpu, &self.sem)
            }
            let mut events = self.events.lock().unwrap();
            for e in [LockEvent::RwsemRlock, LockEvent::RwsemWlock, LockEvent::RwsemWlockHandoff] {
                events.push((e, cpu.counters.get(e)));
            }
        });
        eventually("queueing", || self.sem.queued().len() == before + 1);
        assert_eq!(self.sem.queued().last(), Some(&(id, read)));
    }

    fn inside(&self) -> u32 {
        self.inside.load(Ordering::Relaxed)
    }

    fn count_of(&self, e: LockEvent) -> u64 {
        self.events.lock().unwrap().iter().filter(|x| x.0 == e).map(|x| x.1).sum()
    }
}

fn quiet_cpu(set: &CpuSet<Native>, id: u32) -> Cpu<Native> {
    let cpu = set.cpu(id);
    cpu.softirq.ksoftirqd.set(true);
    cpu
}

/// L6.
#[test]
fn all_readers_of_the_queue_are_let_in_together_over_the_heads_of_writers() {
    let st = Stage::new(5);
    let cpu = quiet_cpu(&st.set, 4);
    down_write(&cpu, &st.sem);
    std::thread::scope(|s| {
        for (id, read) in [(0, true), (1, true), (2, false), (3, true)] {
            st.queue(s, id, read);
        }
        up_write(&cpu, &st.sem);
        eventually("three readers inside", || st.inside() == 3);
        assert_eq!(st.sem.holders(), (3, false));
        assert_eq!(st.sem.queued(), [(2, false)], "the writer stays");
        assert_eq!(cpu.counters.get(LockEvent::RwsemWakeReader), 1, "one pass");
        st.go.store(true, Ordering::Relaxed);
    });
    assert_eq!(st.order.lock().unwrap().last(), Some(&2));
    assert_eq!((st.count_of(LockEvent::RwsemRlock), st.count_of(LockEvent::RwsemWlock)), (3, 1));
    st.sem.assert_quiet();
}

/// L3, and between threads that write and read: `rwsem`.
#[test]
fn a_downgrade_lets_the_readers_in_and_keeps_the_writers_out() {
    let st = Stage::new(4);
    let cpu = quiet_cpu(&st.set, 3);
    down_write(&cpu, &st.sem);
    std::thread::scope(|s| {
        st.queue(s, 0, true);
        st.queue(s, 1, false);
        st.queue(s, 2, true);
        downgrade_write(&cpu, &st.sem);
        eventually("two readers inside", || st.inside() == 2);
        assert_eq!(st.sem.holders(), (3, false));
        assert_eq!(st.sem.queued(), [(1, false)]);
        up_read(&cpu, &st.sem);
        st.go.store(true, Ordering::Relaxed);
    });
    assert_eq!(st.order.lock().unwrap().last(), Some(&1));
    st.sem.assert_quiet();
}

/// A downgrade in front of a writer wakes nobody: readers only, and the first is none.
#[test]
fn a_downgrade_in_front_of_a_writer_wakes_nobody() {
    let st = Stage::new(3);
    let cpu = quiet_cpu(&st.set, 2);
    down_write(&cpu, &st.sem);
    std::thread::scope(|s| {
        st.queue(s, 0, false);
        st.queue(s, 1, true);
        downgrade_write(&cpu, &st.sem);
        sleep(Duration::from_millis(5));
        assert_eq!((st.inside(), st.sem.queued().len()), (0, 2));
        assert!(!down_read_trylock(&cpu, &st.sem), "the fast path goes past the queue");
        st.go.store(true, Ordering::Relaxed);
        up_read(&cpu, &st.sem);
    });
    st.sem.assert_quiet();
}

/// L7: the ways past the queue, in every state of the bits.
#[test]
fn the_fast_path_needs_an_empty_queue_and_stealing_needs_no_writer_and_no_handoff() {
    let set = for_test_set::<Native>(1);
    let cpu = set.cpu(0);
    for bits in 0..8 {
        let flags @ [writer, waiters, handoff] = [0, 1, 2].map(|b| bits >> b & 1 != 0);
        for readers in [0, 1, 3] {
            let what = format!("{readers} readers, writer {writer}, waiters {waiters}, handoff {handoff}");
            let s = RwSemaphore::<Native>::in_state(readers, flags);
            assert_eq!(down_read_trylock(&cpu, &s), bits == 0, "{what}");
            let s = RwSemaphore::<Native>::in_state(readers, flags);
            assert_eq!(down_write_trylock(&cpu, &s), bits == 0 && readers == 0, "{what}");
            // down_read() where it cannot block: fast, or stolen past the queue.
            if writer || handoff {
                continue;
            }
            let s = RwSemaphore::<Native>::in_state(readers, flags);
            let stolen = cpu.counters.get(LockEvent::RwsemRlockSteal);
            down_read(&cpu, &s);
            assert_eq!(s.holders(), (readers + 1, false), "{what}");
            assert_eq!(cpu.counters.get(LockEvent::RwsemRlockSteal) - stolen, u64::from(waiters), "{what}");
        }
    }
}

/// 300 waiting readers, 256 in a pass. Their waiters are queued by hand: 300 threads would show nothing more.
#[test]
fn one_pass_lets_in_256_readers() {
    let set = for_test_set::<Native>(301);
    let cpus: Vec<_> = (0..301).map(|i| set.cpu(i)).collect();
    let sem = RwSemaphore::<Native>::new();
    let (waker, readers) = cpus.split_last().unwrap();
    down_write(waker, &sem);
    for c in readers {
        sem.queue_reader(c);
    }
    up_write(waker, &sem);
    assert_eq!(sem.holders(), (256, false));
    assert_eq!(sem.queued().len(), 44);
    let granted = |c: &Cpu<Native>| c.task.waiter.task.load(Relaxed).is_null();
    assert!(readers[..256].iter().all(granted) && !readers[256..].iter().any(granted), "in the order of the queue");
    // The rest comes with the next wake-up: the last of the first batch leaves.
    for c in &readers[..256] {
        up_read(c, &sem);
    }
    assert_eq!(sem.holders(), (44, false));
    for c in &readers[256..] {
        up_read(c, &sem);
    }
    sem.assert_quiet();
}

/// A writer that has waited too long asks for the handoff: nobody steals from then on, and it gets the lock next.
#[test]
fn an_impatient_writer_is_handed_the_lock() {
    let st = Stage::new(3);
    let (reader, late) = (quiet_cpu(&st.set, 1), quiet_cpu(&st.set, 2));
    down_read(&reader, &st.sem);
    std::thread::scope(|s| {
        st.queue(s, 0, false);
        assert!(!st.sem.handoff());
        // It looks again only when woken, so wake it, as an unlock in between would, until two ticks are over.
        let ticks = AtomicI64::new(0);
        eventually("the handoff", || {
            crate::cpu::sched::wake_up_process(st.set.task_ref(0));
            ticks.fetch_add(1, Ordering::Relaxed);
            st.sem.handoff()
        });
        assert_eq!(st.sem.queued_handoffs(), [true], "the first waiter, and the bit");
        assert!(!down_read_trylock(&late, &st.sem));
        assert_eq!(st.sem.holders(), (1, false));
        st.go.store(true, Ordering::Relaxed);
        up_read(&reader, &st.sem);
    });
    assert_eq!(st.count_of(LockEvent::RwsemWlockHandoff), 1);
    assert!(!st.sem.handoff());
    st.sem.assert_quiet();
}
