// SPDX-License-Identifier: GPL-2.0-only
//! What tests and models ask of an rwsem and do to it: its invariants, its queue, states that nobody built up, and twins
//! that are broken on purpose.

use super::rwsem::{
    RWSEM_FLAG_HANDOFF, RWSEM_FLAG_WAITERS, RWSEM_LOCK_MASK, RWSEM_NONSPINNABLE, RWSEM_READER_BIAS, RWSEM_READER_SHIFT,
    RWSEM_WRITER_LOCKED, RwSemaphore, prepare_waiter, try_write_lock, wait_to_be_given,
};
use super::rwsem_spin::{owner_task, try_write_lock_unqueued};
use super::{raw_spin_lock, raw_spin_unlock};
use crate::arch::{Acquire, Arch, Relaxed};
use crate::cpu::sched::TASK_KILLABLE;
use crate::cpu::{Cpu, Errno};
use std::ptr::NonNull;

impl<A: Arch> RwSemaphore<A> {
    /// How many hold it for reading, and whether one holds it for writing.
    pub(crate) fn holders(&self) -> (i64, bool) {
        let c = self.count.load(Relaxed);
        (c >> RWSEM_READER_SHIFT, c & RWSEM_WRITER_LOCKED != 0)
    }

    /// L1: what must be so after all have left.
    pub(crate) fn assert_quiet(&self) {
        assert_eq!(self.count.load(Relaxed), 0, "count");
        assert!(self.wait_list.is_empty() && self.wait_list.last().is_null(), "somebody is queued");
        assert_eq!(self.owner.load(Relaxed) & RWSEM_NONSPINNABLE, 0, "nonspinnable");
        assert!(!self.osq.is_locked(), "somebody spins");
        assert!(!self.wait_lock.is_locked(), "wait_lock");
    }

    /// L5, exactly, under `wait_lock`: the waiters bit says whether somebody is queued, a handoff is one of the first
    /// waiter's, and who asked for it is none but the first.
    pub(crate) fn assert_flags(&self, cpu: &Cpu<A>) -> bool {
        raw_spin_lock(cpu, &self.wait_lock);
        let c = self.count.load(Relaxed);
        let asked: Vec<bool> = self.waiters().map(|w| w.2).collect();
        raw_spin_unlock(cpu, &self.wait_lock);
        assert_eq!(c & RWSEM_FLAG_WAITERS != 0, !asked.is_empty(), "{c:#x}: the waiters bit and the queue");
        let handoff = c & RWSEM_FLAG_HANDOFF != 0;
        assert!(!handoff || !asked.is_empty(), "{c:#x}: a handoff to nobody");
        assert!(asked.iter().skip(1).all(|a| !a), "{asked:?}: one behind the first has asked for the handoff");
        assert!(handoff || !asked.first().is_some_and(|a| *a), "{c:#x}: asked for, and the bit is gone");
        handoff
    }

    /// The state of a lock that nobody has built up: `readers`, `writer`, waiters bit, handoff bit.
    pub(crate) fn in_state(readers: i64, [writer, waiters, handoff]: [bool; 3]) -> Self {
        let s = Self::new();
        s.count.store(
            (readers * RWSEM_READER_BIAS)
                | (i64::from(writer) * RWSEM_WRITER_LOCKED)
                | (i64::from(waiters) * RWSEM_FLAG_WAITERS)
                | (i64::from(handoff) * RWSEM_FLAG_HANDOFF),
            Relaxed,
        );
        s
    }

    /// The CPU of the task named in `owner`.
    pub(crate) fn owner_cpu(&self) -> Option<u32> {
        owner_task::<A>(self.owner.load(Relaxed)).map(|t| t.cpu)
    }

    /// CPU and kind (reading?) of each waiter, in the order of the queue. Takes no lock: for queues that stand still,
    /// or to poll until they do.
    pub(crate) fn queued(&self) -> Vec<(u32, bool)> {
        self.waiters().map(|w| (w.0, w.1)).collect()
    }

    /// Which waiters have asked for a handoff.
    pub(crate) fn queued_handoffs(&self) -> Vec<bool> {
        self.waiters().map(|w| w.2).collect()
    }

    /// Whether a handoff is under way; L5 in passing.
    pub(crate) fn handoff(&self) -> bool {
        let c = self.count.load(Relaxed);
        assert!(c & RWSEM_FLAG_HANDOFF == 0 || c & RWSEM_FLAG_WAITERS != 0, "a handoff to nobody");
        c & RWSEM_FLAG_HANDOFF != 0
    }

    fn waiters(&self) -> impl Iterator<Item = (u32, bool, bool)> {
        let mut p = self.wait_list.first();
        std::iter::from_fn(move || {
            let w = NonNull::new(p)?;
            // SAFETY: waiters are part of tasks, which outlive the lock in tests.
            let w = unsafe { w.as_ref() };
            p = w.next.get();
            let task = NonNull::new(w.task.load(Relaxed))?;
            // SAFETY: as above.
            let cpu = unsafe { task.as_ref() }.cpu;
            Some((cpu, w.for_read.get() != 0, w.handoff_set.load(Relaxed) != 0))
        })
    }

    /// The broken twin of a queued reader's killable sleep: at a signal it takes for granted that it was not granted
    /// the lock meanwhile. For a lock that a writer holds.
    pub(crate) fn down_read_killable_without_second_look(&self, cpu: &Cpu<A>) -> Result<(), Errno> {
        self.queue_reader(cpu);
        wait_to_be_given(cpu, self, &cpu.task.waiter, TASK_KILLABLE, |_| true)
    }

    /// The broken twin of a spinning writer: the handoff bit does not keep it out.
    pub(crate) fn down_write_spinning_past_handoff(&self, cpu: &Cpu<A>) {
        while !try_write_lock_unqueued(cpu, self, RWSEM_LOCK_MASK) {
            A::cpu_relax();
        }
    }

    /// The broken twin of a queued writer: a handoff to the one before it does not keep it back.
    pub(crate) fn down_write_queued_past_handoff(&self, cpu: &Cpu<A>) {
        let w = prepare_waiter(cpu, 0);
        raw_spin_lock(cpu, &self.wait_lock);
        if self.wait_list.is_empty() {
            self.count.fetch_or(RWSEM_FLAG_WAITERS, Relaxed);
        }
        self.wait_list.add_tail(w);
        while !try_write_lock(cpu, self, w, false) {
            raw_spin_unlock(cpu, &self.wait_lock);
            A::cpu_relax();
            raw_spin_lock(cpu, &self.wait_lock);
        }
        raw_spin_unlock(cpu, &self.wait_lock);
    }

    /// The broken twin of a reader: it steals whenever there is no writer.
    pub(crate) fn down_read_past_handoff(&self) {
        let mut count = self.count.load(Relaxed);
        loop {
            if count & RWSEM_WRITER_LOCKED != 0 {
                A::cpu_relax();
                count = self.count.load(Relaxed);
            } else if self.count.try_cmpxchg(count + RWSEM_READER_BIAS, &mut count, Acquire) {
                return;
            }
        }
    }

    /// Puts a reader of `cpu` into the queue as the slow path does, without sleeping.
    pub(crate) fn queue_reader(&self, cpu: &Cpu<A>) {
        let w = prepare_waiter(cpu, 1);
        raw_spin_lock(cpu, &self.wait_lock);
        if self.wait_list.is_empty() {
            self.count.fetch_or(RWSEM_FLAG_WAITERS, Relaxed);
        }
        self.wait_list.add_tail(w);
        raw_spin_unlock(cpu, &self.wait_lock);
    }
}
