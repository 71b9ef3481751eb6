// SPDX-License-Identifier: GPL-2.0-only
//! `rw_semaphore`: the sleeping reader-writer lock behind `mmap_lock` and, before 6.15, behind each VMA's lock.
//!
//! Follows kernel/locking/rwsem.c and include/linux/rwsem.h of 6.12, without lock debugging and without PREEMPT_RT. 7.3
//! differs by four things, of which `v7.3` runs 6.12's form of all but the last:
//! - its wait list is a ring that the lock knows the first waiter of: 32 bytes in place of 40, so that in an `mm_struct`
//!   what follows `mmap_lock` lies 8 bytes earlier; adding and taking out a waiter touches other waiters alike;
//! - `rwsem_is_contended()` looks whether there is a first waiter; here, and in effect in both, it is the waiters bit;
//! - a reader sets its task's state before it looks for its grant for the first time, which 6.12 does at the head of its
//!   loop: the same order;
//! - with its hung task detector [`rwsem_clear_reader_owned`] comes before each read unlock, an option of the kernel booted.
//!
//! Beside this file: the queue (`wait_list.rs`), optimistic spinning (`rwsem_spin.rs`).
//!
//! custom: waiters are part of their task, not on its stack (and the queue differs: `wait_list.rs`); jiffies are counted in the CPU's tick
//! period, or in 4 ms where it has no tick. stub: interruptible sleeping (of signals there is SIGKILL only), real-time
//! tasks, tracepoints.
//!
//! INVARIANT: count is a sum: 1 while a writer holds, 256 for each reader that holds or is just trying, 2 while somebody
//! is queued, 4 while the first waiter has asked for a handoff. The flags change under `wait_lock` only, and the
//! handoff bit implies the waiters bit; a first waiter that gives up leaves the bit to its successor. Lock order: `wait_lock` is innermost. `owner` is a hint: readers leave their
//! task in it, spinners believe it, nothing else does.
//!
//! Cannot tell: what a sleep costs; a futex stands for it (BIAS.md).

use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed, Release, smp_rmb};
use crate::cpu::qnode::RwsemWaiter;
use crate::cpu::sched::{
    TASK_KILLABLE, TASK_SLEEPING, schedule, set_current_state, set_current_state_running, signal_pending_state,
};
use crate::cpu::wake_q::{WakeQHead, wake_q_add, wake_up_q};
use crate::cpu::{Cpu, Errno, Task};
use crate::sync::osq_lock::OptimisticSpinQueue;
use crate::sync::rwsem_spin::{OwnerState, rwsem_can_spin_on_owner, rwsem_optimistic_spin, rwsem_spin_on_owner};
use crate::sync::wait_list::{WaitList, task_at, waiter_at};
use crate::sync::{LockEvent, RawSpinLock, raw_spin_lock, raw_spin_unlock};
use std::ptr::null_mut;

/// In `owner`: readers hold the lock, or did last.
pub(super) const RWSEM_READER_OWNED: u64 = 1;
/// In `owner`: spinning on these readers has been given up.
pub(super) const RWSEM_NONSPINNABLE: u64 = 2;
pub(super) const RWSEM_OWNER_FLAGS_MASK: u64 = RWSEM_READER_OWNED | RWSEM_NONSPINNABLE;

const RWSEM_UNLOCKED_VALUE: i64 = 0;
pub(super) const RWSEM_WRITER_LOCKED: i64 = 1;
pub(super) const RWSEM_FLAG_WAITERS: i64 = 1 << 1;
pub(super) const RWSEM_FLAG_HANDOFF: i64 = 1 << 2;
const RWSEM_FLAG_READFAIL: i64 = i64::MIN;
pub(super) const RWSEM_READER_SHIFT: u32 = 8;
pub(super) const RWSEM_READER_BIAS: i64 = 1 << RWSEM_READER_SHIFT;
const RWSEM_READER_MASK: i64 = !(RWSEM_READER_BIAS - 1);
const RWSEM_WRITER_MASK: i64 = RWSEM_WRITER_LOCKED;
pub(super) const RWSEM_LOCK_MASK: i64 = RWSEM_WRITER_MASK | RWSEM_READER_MASK;
const RWSEM_READ_FAILED_MASK: i64 = RWSEM_WRITER_MASK | RWSEM_FLAG_WAITERS | RWSEM_FLAG_HANDOFF | RWSEM_FLAG_READFAIL;

/// Readers granted by one waker in one pass.
const MAX_READERS_WAKEUP: i64 = 0x100;

/// `struct rw_semaphore`, 40 bytes.
#[repr(C)]
#[derive(Debug)]
pub struct RwSemaphore<A: Arch> {
    pub(super) count: Atomic<A, i64>,
    /// Task address and two flags.
    pub(super) owner: Atomic<A, u64>,
    pub(super) osq: OptimisticSpinQueue<A>,
    pub(super) wait_lock: RawSpinLock<A>,
    pub(super) wait_list: WaitList<A>,
}

const _: () = {
    use crate::arch::Native;
    use std::mem::{offset_of, size_of};
    type S = RwSemaphore<Native>;
    assert!(size_of::<S>() == 40);
    assert!(offset_of!(S, count) == 0 && offset_of!(S, owner) == 8);
    assert!(offset_of!(S, osq) == 16 && offset_of!(S, wait_lock) == 20);
    assert!(offset_of!(S, wait_list) == 24);
    // The flags of `owner` fit under a task's address.
    assert!(std::mem::align_of::<Task<Native>>() as u64 > RWSEM_OWNER_FLAGS_MASK);
};

/// What a semaphore's count says to whoever looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RwsemLook {
    /// Readers that hold it or are just trying; below 0 if more have let go than had it.
    pub readers: i64,
    /// A writer holds it.
    pub writer: bool,
    /// Somebody is queued.
    pub queued: bool,
}

impl<A: Arch> RwSemaphore<A> {
    /// Unlocked.
    pub fn new() -> Self {
        RwSemaphore {
            count: Atomic::new(RWSEM_UNLOCKED_VALUE),
            owner: Atomic::new(0),
            osq: OptimisticSpinQueue::new(),
            wait_lock: RawSpinLock::new(),
            wait_list: WaitList::new(),
        }
    }

    /// `init_rwsem()` on memory that may have been a lock before.
    pub fn init_rwsem(&self) {
        self.count.store(RWSEM_UNLOCKED_VALUE, Relaxed);
        self.wait_lock.init();
        self.wait_list.init();
        self.owner.store(0, Relaxed);
        self.osq.init();
    }

    /// Its words, for what tells of an execution: name, place, bytes.
    pub fn words(&self) -> [(&'static str, *const u8, usize); 5] {
        fn word<T>(name: &'static str, w: &T) -> (&'static str, *const u8, usize) {
            (name, std::ptr::from_ref(w).cast(), size_of::<T>())
        }
        [
            word("count", &self.count),
            word("owner", &self.owner),
            word("osq", &self.osq),
            word("wait_lock", &self.wait_lock),
            word("wait_list", &self.wait_list),
        ]
    }

    /// Who has it, at one look.
    pub fn look(&self) -> RwsemLook {
        let count = self.count.load(Relaxed);
        RwsemLook {
            readers: count >> RWSEM_READER_SHIFT,
            writer: count & RWSEM_WRITER_MASK != 0,
            queued: count & RWSEM_FLAG_WAITERS != 0,
        }
    }

    /// `rwsem_is_locked()`: held by anybody, or waited for.
    pub fn is_locked(&self) -> bool {
        self.count.load(Relaxed) != RWSEM_UNLOCKED_VALUE
    }

    /// `rwsem_is_write_locked()`
    pub fn is_write_locked(&self) -> bool {
        self.count.load(Relaxed) & RWSEM_WRITER_LOCKED != 0
    }

    /// `rwsem_is_contended()`: somebody is queued.
    // PORT: the kernel looks at the wait list without its lock; the waiters bit says the same.
    pub fn is_contended(&self) -> bool {
        self.count.load(Relaxed) & RWSEM_FLAG_WAITERS != 0
    }
}

impl<A: Arch> Default for RwSemaphore<A> {
    fn default() -> Self {
        Self::new()
    }
}

#[inline(always)]
pub(super) fn current<A: Arch>(cpu: &Cpu<A>) -> u64 {
    cpu.task.as_ptr().expose_provenance() as u64
}

/// `jiffies`, and how many of them a waiter waits before it may ask for a handoff (`RWSEM_WAIT_TIMEOUT`).
fn jiffies<A: Arch>(cpu: &Cpu<A>) -> (u64, u64) {
    let period = if cpu.tick.period == u64::MAX { 4_000_000 } else { cpu.tick.period.max(1) };
    (A::now() / period, 4_000_000_u64.div_ceil(period))
}

/// `rwsem_set_owner()`
#[inline(always)]
pub(super) fn rwsem_set_owner<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    sem.owner.store(current(cpu), Relaxed);
}

/// `__rwsem_set_reader_owned()`: keeps the nonspinnable flag.
#[inline(always)]
fn set_reader_owned_by<A: Arch>(sem: &RwSemaphore<A>, task: u64) {
    let keep = sem.owner.load(Relaxed) & RWSEM_NONSPINNABLE;
    sem.owner.store(task | RWSEM_READER_OWNED | keep, Relaxed);
}

/// `rwsem_set_reader_owned()`
#[inline(always)]
fn rwsem_set_reader_owned<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    set_reader_owned_by(sem, current(cpu));
}

/// `rwsem_clear_reader_owned()`: takes this task out of `owner` if it is still named there. 7.3 does so before each
/// read unlock when built with its hung task detector (the default of distributions), 6.12 only with lock debugging.
#[inline(always)]
pub fn rwsem_clear_reader_owned<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    let mut val = sem.owner.load(Relaxed);
    while val & !RWSEM_OWNER_FLAGS_MASK == current(cpu) {
        if sem.owner.try_cmpxchg(val & RWSEM_OWNER_FLAGS_MASK, &mut val, Full) {
            return;
        }
    }
}

/// `rwsem_set_nonspinnable()`: unless readers no longer own it.
pub(super) fn rwsem_set_nonspinnable<A: Arch>(sem: &RwSemaphore<A>) {
    let mut owner = sem.owner.load(Relaxed);
    while owner & RWSEM_READER_OWNED != 0 && owner & RWSEM_NONSPINNABLE == 0 {
        // ORDER: full as in the kernel; nothing relies on it.
        if sem.owner.try_cmpxchg(owner | RWSEM_NONSPINNABLE, &mut owner, Full) {
            return;
        }
    }
}

/// `clear_nonspinnable()`: when no reader is left.
#[inline(always)]
fn clear_nonspinnable<A: Arch>(sem: &RwSemaphore<A>) {
    if sem.owner.load(Relaxed) & RWSEM_NONSPINNABLE != 0 {
        sem.owner.fetch_and(!RWSEM_NONSPINNABLE, Relaxed);
    }
}

/// `rwsem_read_trylock()`: adds the bias in any case; the count it made.
#[inline(always)]
fn rwsem_read_trylock<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> Result<(), i64> {
    // ORDER: acquire; meets the releases of up_write() and downgrade_write().
    let count = sem.count.fetch_add(RWSEM_READER_BIAS, Acquire).wrapping_add(RWSEM_READER_BIAS);
    if count & RWSEM_READ_FAILED_MASK == 0 {
        rwsem_set_reader_owned(cpu, sem);
        return Ok(());
    }
    Err(count)
}

/// `rwsem_write_trylock()`
#[inline(always)]
fn rwsem_write_trylock<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    // ORDER: acquire; meets the releases of up_read() and up_write().
    if sem.count.cmpxchg(RWSEM_UNLOCKED_VALUE, RWSEM_WRITER_LOCKED, Acquire).is_ok() {
        rwsem_set_owner(cpu, sem);
        return true;
    }
    false
}

/// `down_read()`
#[inline(always)]
pub fn down_read<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    if let Err(count) = rwsem_read_trylock(cpu, sem) {
        // Nothing ends an uninterruptible sleep but the lock.
        let _ = rwsem_down_read_slowpath(cpu, sem, count, TASK_SLEEPING);
    }
}

/// As [`down_read`]; where the lock was not free, `waited` is told how long it took, ns.
#[inline(always)]
pub fn down_read_timed<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, waited: impl FnOnce(u64)) {
    if let Err(count) = rwsem_read_trylock(cpu, sem) {
        let (_, ns) = timed::<A, _>(|| rwsem_down_read_slowpath(cpu, sem, count, TASK_SLEEPING));
        waited(ns);
    }
}

/// As [`down_write`]; where the lock was not free, `waited` is told how long it took, ns.
#[inline(always)]
pub fn down_write_timed<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, waited: impl FnOnce(u64)) {
    if !rwsem_write_trylock(cpu, sem) {
        let (_, ns) = timed::<A, _>(|| rwsem_down_write_slowpath(cpu, sem, TASK_SLEEPING));
        waited(ns);
    }
}

/// What `f` gives, and how long it took, ns.
#[cold]
#[inline(never)]
fn timed<A: Arch, R>(f: impl FnOnce() -> R) -> (R, u64) {
    let begun = A::now();
    (f(), A::now().saturating_sub(begun))
}

/// `down_read_killable()`
///
/// # Errors
/// `EINTR`: a fatal signal came first; the lock is not held.
#[inline(always)]
pub fn down_read_killable<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> Result<(), Errno> {
    match rwsem_read_trylock(cpu, sem) {
        Ok(()) => Ok(()),
        Err(count) => rwsem_down_read_slowpath(cpu, sem, count, TASK_KILLABLE),
    }
}

/// As [`down_read_killable`] and [`down_read_timed`]; `waited` is told of waits in vain too.
///
/// # Errors
/// As [`down_read_killable`].
#[inline(always)]
pub fn down_read_killable_timed<A: Arch>(
    cpu: &Cpu<A>,
    sem: &RwSemaphore<A>,
    waited: impl FnOnce(u64),
) -> Result<(), Errno> {
    let Err(count) = rwsem_read_trylock(cpu, sem) else { return Ok(()) };
    let (r, ns) = timed::<A, _>(|| rwsem_down_read_slowpath(cpu, sem, count, TASK_KILLABLE));
    waited(ns);
    r
}

/// `down_read_trylock()`
#[inline(always)]
pub fn down_read_trylock<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    let mut count = sem.count.load(Relaxed);
    while count & RWSEM_READ_FAILED_MASK == 0 {
        // ORDER: acquire; meets the releases of up_write() and downgrade_write().
        if sem.count.try_cmpxchg(count + RWSEM_READER_BIAS, &mut count, Acquire) {
            rwsem_set_reader_owned(cpu, sem);
            return true;
        }
    }
    false
}

/// `down_write()`
#[inline(always)]
pub fn down_write<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    if !rwsem_write_trylock(cpu, sem) {
        // As in down_read().
        let _ = rwsem_down_write_slowpath(cpu, sem, TASK_SLEEPING);
    }
}

/// `down_write_killable()`
///
/// # Errors
/// `EINTR`: a fatal signal came first; the lock is not held.
#[inline(always)]
pub fn down_write_killable<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> Result<(), Errno> {
    if rwsem_write_trylock(cpu, sem) { Ok(()) } else { rwsem_down_write_slowpath(cpu, sem, TASK_KILLABLE) }
}

/// `down_write_trylock()`
#[inline(always)]
pub fn down_write_trylock<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    rwsem_write_trylock(cpu, sem)
}

/// `up_read()`
#[inline(always)]
pub fn up_read<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    if cpu.clear_reader_owned.get() {
        rwsem_clear_reader_owned(cpu, sem);
    }
    // ORDER: release; meets the acquire of the next writer.
    let count = sem.count.fetch_sub(RWSEM_READER_BIAS, Release).wrapping_sub(RWSEM_READER_BIAS);
    if count & (RWSEM_LOCK_MASK | RWSEM_FLAG_WAITERS) == RWSEM_FLAG_WAITERS {
        up_read_wake(cpu, sem);
    }
}

#[cold]
#[inline(never)]
fn up_read_wake<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    clear_nonspinnable(sem);
    rwsem_wake(cpu, sem, WakeType::Any);
}

/// `up_write()`
#[inline(always)]
pub fn up_write<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    sem.owner.store(0, Relaxed);
    // ORDER: release; meets the acquires of down_read(), down_write() and of waiters.
    let old = sem.count.fetch_sub(RWSEM_WRITER_LOCKED, Release);
    if old & RWSEM_FLAG_WAITERS != 0 {
        rwsem_wake(cpu, sem, WakeType::Any);
    }
}

/// `downgrade_write()`: turns a write lock into a read lock; no writer comes between.
#[inline(always)]
pub fn downgrade_write<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) {
    // ORDER: release; what was written under the write lock is seen by readers that come now. What is read from here
    // on may move up into the write section, which does no harm.
    let old = sem.count.fetch_add(RWSEM_READER_BIAS - RWSEM_WRITER_LOCKED, Release);
    rwsem_set_reader_owned(cpu, sem);
    if old & RWSEM_FLAG_WAITERS != 0 {
        rwsem_wake(cpu, sem, WakeType::ReadOwned);
    }
}

/// `enum rwsem_wake_type`
#[derive(Clone, Copy, PartialEq, Eq)]
enum WakeType {
    /// Whoever is first.
    Any,
    /// Readers only.
    Readers,
    /// Readers only, and the waker holds the lock for reading.
    ReadOwned,
}

/// `rwsem_wake()` and, with [`WakeType::ReadOwned`], `rwsem_downgrade_wake()`.
#[cold]
#[inline(never)]
fn rwsem_wake<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, wake_type: WakeType) {
    let mut wake_q = WakeQHead::new();
    raw_spin_lock(cpu, &sem.wait_lock);
    if !sem.wait_list.is_empty() {
        rwsem_mark_wake(cpu, sem, wake_type, &mut wake_q);
    }
    raw_spin_unlock(cpu, &sem.wait_lock);
    wake_up_q(&mut wake_q);
}

/// `rwsem_mark_wake()`: with `wait_lock` held and somebody queued, collects whom to wake. Readers are granted the lock
/// here and leave the queue; a writer is only woken and has to take it.
fn rwsem_mark_wake<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, wake_type: WakeType, wake_q: &mut WakeQHead<A>) {
    // SAFETY: not empty, lock held.
    let first = unsafe { waiter_at(sem.wait_list.first()) };
    if first.for_read.get() == 0 {
        if wake_type == WakeType::Any {
            // Until it runs, others may steal the lock from it, unless it has asked for a handoff.
            wake_q_add(wake_q, task_at(first.task.load(Relaxed)));
            cpu.count(LockEvent::RwsemWakeWriter);
        }
        return;
    }
    if sem.count.load(Relaxed) < 0 {
        return;
    }
    // A probe: one bias before the queue is walked, so that a writer that slips in is noticed early. It counts for the
    // first reader granted.
    let mut adjustment = 0;
    if wake_type != WakeType::ReadOwned {
        adjustment = RWSEM_READER_BIAS;
        // ORDER: full as in the kernel. What it must do: take over what the last writer released, for the readers
        // that are granted below by a release of `task`.
        let old = sem.count.fetch_add(adjustment, Full);
        if old & RWSEM_WRITER_MASK != 0 {
            let (now, _) = jiffies(cpu);
            if now > first.timeout.get() {
                if old & RWSEM_FLAG_HANDOFF == 0 {
                    adjustment -= RWSEM_FLAG_HANDOFF;
                    cpu.count(LockEvent::RwsemRlockHandoff);
                }
                first.handoff_set.store(1, Relaxed);
            }
            sem.count.fetch_sub(adjustment, Relaxed);
            return;
        }
        // Spinning writers learn early that readers have it now.
        set_reader_owned_by(sem, first.task.load(Relaxed).expose_provenance() as u64);
    }

    // Grants all readers of the queue, over the heads of writers: phases of readers. In two passes, because a granted
    // reader may unlock at once and its bias must be there by then.
    let granted = WaitList::<A>::new();
    let mut woken = 0;
    let mut p = sem.wait_list.first();
    while !p.is_null() && woken < MAX_READERS_WAKEUP {
        // SAFETY: queued, lock held.
        let w = unsafe { waiter_at(p) };
        p = w.next.get();
        if w.for_read.get() != 0 {
            woken += 1;
            sem.wait_list.del(w);
            granted.add_tail(w);
        }
    }
    adjustment = woken * RWSEM_READER_BIAS - adjustment;
    cpu.counters.add(LockEvent::RwsemWakeReader, u64::from(woken != 0));

    let old = sem.count.load(Relaxed);
    if sem.wait_list.is_empty() {
        adjustment -= RWSEM_FLAG_WAITERS;
    }
    // Readers got in, so nobody needs to make writers give up the lock any more.
    if old & RWSEM_FLAG_HANDOFF != 0 {
        adjustment -= RWSEM_FLAG_HANDOFF;
    }
    if adjustment != 0 {
        sem.count.fetch_add(adjustment, Relaxed);
    }

    let mut p = granted.first();
    while !p.is_null() {
        // SAFETY: off the queue, not yet granted.
        let w = unsafe { waiter_at(p) };
        p = w.next.get();
        let task = task_at(w.task.load(Relaxed));
        // ORDER: release; meets the acquire in rwsem_down_read_slowpath(). The waiter is not touched after it: its
        // task may already be waiting for something else.
        w.task.store(null_mut(), Release);
        wake_q_add(wake_q, task);
    }
}

/// `rwsem_cond_wake_waiter()`: with `wait_lock` held, unless a writer holds the lock.
fn rwsem_cond_wake_waiter<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, count: i64, wake_q: &mut WakeQHead<A>) {
    if count & RWSEM_WRITER_MASK != 0 {
        return;
    }
    let wake_type = if count & RWSEM_READER_MASK != 0 {
        WakeType::Readers
    } else {
        clear_nonspinnable(sem);
        WakeType::Any
    };
    rwsem_mark_wake(cpu, sem, wake_type, wake_q);
}

/// This task's waiter, ready for queueing.
pub(super) fn prepare_waiter<A: Arch>(cpu: &Cpu<A>, for_read: u32) -> &RwsemWaiter<A> {
    let w = &cpu.task.waiter;
    w.task.store(cpu.task.as_ptr(), Relaxed);
    w.for_read.set(for_read);
    let (now, wait) = jiffies(cpu);
    w.timeout.set(now + wait);
    w.handoff_set.store(0, Relaxed);
    w
}

/// `rwsem_del_waiter()`: with `wait_lock` held; whether somebody is still queued. The handoff goes with the last waiter
/// only: where others are left it is theirs, whoever asked for it.
fn rwsem_del_waiter<A: Arch>(sem: &RwSemaphore<A>, waiter: &RwsemWaiter<A>) -> bool {
    sem.wait_list.del(waiter);
    if !sem.wait_list.is_empty() {
        return true;
    }
    sem.count.fetch_and(!(RWSEM_FLAG_HANDOFF | RWSEM_FLAG_WAITERS), Relaxed);
    false
}

/// `rwsem_del_wake_waiter()`: with `wait_lock` held, which it drops: a waiter gives up. Where it was the first it may
/// have been woken for an unlock that nobody else was told of, so the next ones are woken.
fn rwsem_del_wake_waiter<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, waiter: &RwsemWaiter<A>) {
    let mut wake_q = WakeQHead::new();
    let first = sem.wait_list.is_first(waiter);
    if rwsem_del_waiter(sem, waiter) && first {
        rwsem_mark_wake(cpu, sem, WakeType::Any, &mut wake_q);
    }
    raw_spin_unlock(cpu, &sem.wait_lock);
    wake_up_q(&mut wake_q);
}

/// `rwsem_down_read_slowpath()`; `count` is what the fast path made of it, this reader's bias included.
#[cold]
#[inline(never)]
fn rwsem_down_read_slowpath<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, count: i64, state: u32) -> Result<(), Errno> {
    if count < 0 {
        // WARN_ON_ONCE in C: more readers than bits.
        rwsem_set_nonspinnable(sem);
    }
    let rcnt = count >> RWSEM_READER_SHIFT;
    let mut wake_q = WakeQHead::new();

    // A stream of readers does not steal from a sleeping writer: no stealing while readers seem to hold the lock.
    let readers_have_it =
        sem.owner.load(Relaxed) & RWSEM_READER_OWNED != 0 && rcnt > 1 && count & RWSEM_WRITER_LOCKED == 0;
    if !readers_have_it && count & (RWSEM_WRITER_LOCKED | RWSEM_FLAG_HANDOFF) == 0 {
        rwsem_set_reader_owned(cpu, sem);
        cpu.count(LockEvent::RwsemRlockSteal);
        // The first reader opens the door for those that are queued.
        if rcnt == 1 && count & RWSEM_FLAG_WAITERS != 0 {
            rwsem_wake(cpu, sem, WakeType::ReadOwned);
        }
        return Ok(());
    }

    let mut adjustment = -RWSEM_READER_BIAS;
    let w = prepare_waiter(cpu, 1);
    raw_spin_lock(cpu, &sem.wait_lock);
    if sem.wait_list.is_empty() {
        // This reader's bias is in the count still: without writer and queue, it holds the lock.
        if sem.count.load(Relaxed) & RWSEM_WRITER_MASK == 0 {
            // ORDER: read barrier (smp_acquire__after_ctrl_dep); with the load above meets up_write().
            smp_rmb::<A>();
            raw_spin_unlock(cpu, &sem.wait_lock);
            rwsem_set_reader_owned(cpu, sem);
            cpu.count(LockEvent::RwsemRlockFast);
            return Ok(());
        }
        adjustment += RWSEM_FLAG_WAITERS;
    }
    sem.wait_list.add_tail(w);
    // ORDER: full as in the kernel: the queue is seen by an unlock that sees the waiters bit (it takes wait_lock), and
    // this sees an unlock that did not see the bit.
    let count = sem.count.fetch_add(adjustment, Full).wrapping_add(adjustment);
    rwsem_cond_wake_waiter(cpu, sem, count, &mut wake_q);
    raw_spin_unlock(cpu, &sem.wait_lock);
    wake_up_q(&mut wake_q);

    wait_to_be_given(cpu, sem, w, state, |w| !w.task.load(Relaxed).is_null())
}

/// The sleep of [`rwsem_down_read_slowpath`], with the second look of a reader that gives up as a parameter, so that a
/// model can do without.
#[inline(always)]
pub(super) fn wait_to_be_given<A: Arch>(
    cpu: &Cpu<A>,
    sem: &RwSemaphore<A>,
    w: &RwsemWaiter<A>,
    state: u32,
    still_queued: impl Fn(&RwsemWaiter<A>) -> bool,
) -> Result<(), Errno> {
    loop {
        set_current_state(cpu, state);
        // ORDER: acquire; meets the release in rwsem_mark_wake(), which granted the lock.
        if w.task.load(Acquire).is_null() {
            break;
        }
        if signal_pending_state(state, &cpu.task) {
            raw_spin_lock(cpu, &sem.wait_lock);
            if still_queued(w) {
                rwsem_del_wake_waiter(cpu, sem, w);
                set_current_state_running(cpu);
                cpu.count(LockEvent::RwsemRlockFail);
                return Err(Errno::EINTR);
            }
            // Granted meanwhile: the lock is held, signal or not. ORDER: wait_lock orders this after the grant.
            raw_spin_unlock(cpu, &sem.wait_lock);
            break;
        }
        schedule(cpu, None);
        cpu.count(LockEvent::RwsemSleepReader);
    }
    set_current_state_running(cpu);
    cpu.count(LockEvent::RwsemRlock);
    Ok(())
}

/// `rwsem_try_write_lock()`: with `wait_lock` held, for a queued writer. On success it has left the queue.
fn rwsem_try_write_lock<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, waiter: &RwsemWaiter<A>) -> bool {
    try_write_lock(cpu, sem, waiter, true)
}

/// [`rwsem_try_write_lock`], with the respect for another's handoff as a parameter, so that a model can do without.
#[inline(always)]
pub(super) fn try_write_lock<A: Arch>(
    cpu: &Cpu<A>,
    sem: &RwSemaphore<A>,
    waiter: &RwsemWaiter<A>,
    respects: bool,
) -> bool {
    // SAFETY: at least `waiter` is queued, lock held.
    let first = unsafe { waiter_at(sem.wait_list.first()) };
    let mut count = sem.count.load(Relaxed);
    loop {
        let has_handoff = count & RWSEM_FLAG_HANDOFF != 0;
        if respects && has_handoff && first.handoff_set.load(Relaxed) != 0 && !std::ptr::eq(waiter, first) {
            return false;
        }
        let mut new = count;
        if count & RWSEM_LOCK_MASK != 0 {
            if has_handoff || jiffies(cpu).0 <= waiter.timeout.get() {
                return false;
            }
            new |= RWSEM_FLAG_HANDOFF;
        } else {
            new |= RWSEM_WRITER_LOCKED;
            new &= !RWSEM_FLAG_HANDOFF;
            if std::ptr::eq(sem.wait_list.first(), sem.wait_list.last()) {
                new &= !RWSEM_FLAG_WAITERS;
            }
        }
        // ORDER: acquire; meets up_read() and up_write().
        if !sem.count.try_cmpxchg(new, &mut count, Acquire) {
            continue;
        }
        if new & RWSEM_FLAG_HANDOFF != 0 {
            // Whoever was patient no longer, it is the first waiter that the lock is handed to.
            first.handoff_set.store(1, Relaxed);
            cpu.count(LockEvent::RwsemWlockHandoff);
            return false;
        }
        sem.wait_list.del(waiter);
        rwsem_set_owner(cpu, sem);
        return true;
    }
}

/// `rwsem_down_write_slowpath()`
#[cold]
#[inline(never)]
fn rwsem_down_write_slowpath<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, state: u32) -> Result<(), Errno> {
    if rwsem_can_spin_on_owner(cpu, sem) && rwsem_optimistic_spin(cpu, sem) {
        return Ok(());
    }
    let mut wake_q = WakeQHead::new();
    let w = prepare_waiter(cpu, 0);
    raw_spin_lock(cpu, &sem.wait_lock);
    let was_empty = sem.wait_list.is_empty();
    sem.wait_list.add_tail(w);
    if was_empty {
        sem.count.fetch_or(RWSEM_FLAG_WAITERS, Relaxed);
    } else {
        rwsem_cond_wake_waiter(cpu, sem, sem.count.load(Relaxed), &mut wake_q);
        if !wake_q.is_empty() {
            raw_spin_unlock(cpu, &sem.wait_lock);
            wake_up_q(&mut wake_q);
            raw_spin_lock(cpu, &sem.wait_lock);
        }
    }

    // ORDER: full (in it); between this store and the look at the count in rwsem_try_write_lock(). An unlock that is
    // missed there sees the waiters bit and wakes this task.
    set_current_state(cpu, state);
    while !rwsem_try_write_lock(cpu, sem, w) {
        raw_spin_unlock(cpu, &sem.wait_lock);
        if signal_pending_state(state, &cpu.task) {
            set_current_state_running(cpu);
            raw_spin_lock(cpu, &sem.wait_lock);
            rwsem_del_wake_waiter(cpu, sem, w);
            cpu.count(LockEvent::RwsemWlockFail);
            return Err(Errno::EINTR);
        }
        // With a handoff under way, a writer that is about to unlock is worth a moment of spinning.
        if w.handoff_set.load(Relaxed) == 0 || rwsem_spin_on_owner(cpu, sem) != OwnerState::Null {
            schedule(cpu, None);
            cpu.count(LockEvent::RwsemSleepWriter);
            set_current_state(cpu, state);
        } else {
            // PORT: no pause in C. A writer between clearing `owner` and leaving the count is waited for here, by going
            // round through wait_lock; worlds that schedule CPUs themselves must be told that this is waiting.
            A::cpu_relax();
        }
        raw_spin_lock(cpu, &sem.wait_lock);
    }
    set_current_state_running(cpu);
    raw_spin_unlock(cpu, &sem.wait_lock);
    cpu.count(LockEvent::RwsemWlock);
    Ok(())
}
