// SPDX-License-Identifier: GPL-2.0-only
//! `mutex`: the sleeping lock with one owner. Of the port only `rcu_barrier()` takes one.
//!
//! Follows kernel/locking/mutex.c and include/linux/mutex_types.h of 6.12, built to spin on the owner, without lock
//! debugging and without PREEMPT_RT.
//!
//! custom: waiters are part of their task, in the place that an rwsem waiter has there (a task waits for one lock at a
//! time); the wait list ends in null pointers; a spinner that should be rescheduled goes on to the queue at once, since
//! there is no other task to run. stub: wait/wound mutexes, interruptible sleeping
//! (of signals there is SIGKILL only), tracepoints. The kernel counts no lock events here.
//!
//! INVARIANT: `owner` is the task that holds the lock, or 0, and three flags that change under `wait_lock` or by the
//! owner: somebody is queued (WAITERS); the first waiter wants the lock given to it and not just opened (HANDOFF); it was
//! given, and the task named in `owner` has only to notice (PICKUP). HANDOFF and PICKUP imply WAITERS. Lock order:
//! `wait_lock` is innermost.

use crate::arch::{Acquire, Arch, Atomic, Relaxed, Release, barrier};
use crate::cpu::qnode::RwsemWaiter;
use crate::cpu::sched::{
    TASK_KILLABLE, TASK_SLEEPING, need_resched, owner_on_cpu, schedule, set_current_state, set_current_state_running,
    signal_pending_state,
};
use crate::cpu::wake_q::{WakeQHead, wake_q_add, wake_up_q};
use crate::cpu::{Cpu, Errno, Task};
use crate::sync::osq_lock::{OptimisticSpinQueue, osq_lock, osq_unlock};
use crate::sync::rwsem::current;
use crate::sync::wait_list::{WaitList, task_at, waiter_at};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_unlock};
use std::ptr::{NonNull, null_mut};

/// Somebody is queued: unlock must wake.
const MUTEX_FLAG_WAITERS: u64 = 1;
/// Unlock must give the lock to the first waiter.
const MUTEX_FLAG_HANDOFF: u64 = 2;
/// It did, and the new owner has yet to notice.
const MUTEX_FLAG_PICKUP: u64 = 4;
const MUTEX_FLAGS: u64 = 7;

/// `struct mutex`, 32 bytes.
#[repr(C)]
#[derive(Debug)]
pub struct Mutex<A: Arch> {
    /// Task address and three flags.
    owner: Atomic<A, u64>,
    wait_lock: RawSpinLock<A>,
    osq: OptimisticSpinQueue<A>,
    wait_list: WaitList<A>,
}

const _: () = {
    use crate::arch::Native;
    use std::mem::{offset_of, size_of};
    type M = Mutex<Native>;
    assert!(size_of::<M>() == 32);
    assert!(offset_of!(M, wait_lock) == 8 && offset_of!(M, osq) == 12 && offset_of!(M, wait_list) == 16);
    assert!(std::mem::align_of::<Task<Native>>() as u64 > MUTEX_FLAGS);
};

impl<A: Arch> Mutex<A> {
    /// Unlocked.
    pub fn new() -> Self {
        Mutex {
            owner: Atomic::new(0),
            wait_lock: RawSpinLock::new(),
            osq: OptimisticSpinQueue::new(),
            wait_list: WaitList::new(),
        }
    }

    /// `mutex_is_locked()`
    pub fn is_locked(&self) -> bool {
        self.owner.load(Relaxed) & !MUTEX_FLAGS != 0
    }
}

impl<A: Arch> Default for Mutex<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `__mutex_trylock_common()`: takes the lock if it is free or was given to this task, else says who has it. With
/// `handoff`, a lock that somebody has is marked to be given to the first waiter, which the caller is.
#[inline]
fn mutex_trylock_common<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>, handoff: bool) -> Result<(), u64> {
    let curr = current(cpu);
    let mut owner = lock.owner.load(Relaxed);
    loop {
        let mut flags = owner & MUTEX_FLAGS;
        let mut task = owner & !MUTEX_FLAGS;
        if task != 0 {
            if flags & MUTEX_FLAG_PICKUP != 0 {
                if task != curr {
                    return Err(task);
                }
                flags &= !MUTEX_FLAG_PICKUP;
            } else if handoff && flags & MUTEX_FLAG_HANDOFF == 0 {
                flags |= MUTEX_FLAG_HANDOFF;
            } else {
                return Err(task);
            }
        } else {
            task = curr;
        }
        // ORDER: acquire; meets the releases of mutex_unlock() and of mutex_handoff().
        if lock.owner.try_cmpxchg(task | flags, &mut owner, Acquire) {
            return if task == curr { Ok(()) } else { Err(task) };
        }
    }
}

/// `__mutex_trylock_fast()`
#[inline(always)]
fn mutex_trylock_fast<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) -> bool {
    // ORDER: acquire; meets the releases of mutex_unlock().
    lock.owner.cmpxchg(0, current(cpu), Acquire).is_ok()
}

/// `mutex_trylock()`
#[inline]
pub fn mutex_trylock<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) -> bool {
    mutex_trylock_common(cpu, lock, false).is_ok()
}

/// `mutex_lock()`
#[inline(always)]
pub fn mutex_lock<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) {
    if !mutex_trylock_fast(cpu, lock) {
        // Nothing ends an uninterruptible sleep but the lock.
        let _ = mutex_lock_slowpath(cpu, lock, TASK_SLEEPING);
    }
}

/// `mutex_lock_killable()`
///
/// # Errors
/// `EINTR`: a fatal signal came first; the lock is not held.
#[inline(always)]
pub fn mutex_lock_killable<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) -> Result<(), Errno> {
    if mutex_trylock_fast(cpu, lock) { Ok(()) } else { mutex_lock_slowpath(cpu, lock, TASK_KILLABLE) }
}

/// `mutex_unlock()`
#[inline(always)]
pub fn mutex_unlock<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) {
    // ORDER: release; meets the acquires of mutex_lock() and mutex_trylock().
    if lock.owner.cmpxchg(current(cpu), 0, Release).is_err() {
        mutex_unlock_slowpath(cpu, lock);
    }
}

/// `mutex_spin_on_owner()`: as long as one and the same running task has it; whether it makes sense to go on.
#[inline(never)]
fn mutex_spin_on_owner<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>, owner: u64) -> bool {
    let p = std::ptr::with_exposed_provenance_mut::<Task<A>>(owner as usize);
    let Some(task) = NonNull::new(p) else { return true };
    let task = task_at(task.as_ptr());
    // Two words are watched, so that smp_cond_load_relaxed() does not fit here.
    while lock.owner.load(Relaxed) & !MUTEX_FLAGS == owner {
        barrier();
        if !owner_on_cpu(&task) || need_resched(cpu) {
            return false;
        }
        A::cpu_relax();
    }
    true
}

/// `mutex_can_spin_on_owner()`
fn mutex_can_spin_on_owner<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) -> bool {
    if need_resched(cpu) {
        return false;
    }
    let owner = lock.owner.load(Relaxed) & !MUTEX_FLAGS;
    let p = std::ptr::with_exposed_provenance_mut::<Task<A>>(owner as usize);
    NonNull::new(p).is_none_or(|p| owner_on_cpu(&task_at(p.as_ptr())))
}

/// `mutex_optimistic_spin()`: whether it got the lock. The first waiter spins beside the queue of spinners.
fn mutex_optimistic_spin<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>, is_waiter: bool) -> bool {
    let may_spin = is_waiter || mutex_can_spin_on_owner(cpu, lock) && osq_lock(cpu, &lock.osq);
    if !may_spin {
        return false;
    }
    let taken = loop {
        let Err(owner) = mutex_trylock_common(cpu, lock, false) else { break true };
        if !mutex_spin_on_owner(cpu, lock, owner) {
            break false;
        }
        A::cpu_relax();
    };
    if !is_waiter {
        osq_unlock(cpu, &lock.osq);
    }
    taken
}

/// `__mutex_add_waiter()`, at the end of the queue; with `wait_lock` held.
fn mutex_add_waiter<'a, A: Arch>(cpu: &'a Cpu<A>, lock: &Mutex<A>) -> &'a RwsemWaiter<A> {
    let w = &cpu.task.waiter;
    w.task.store(cpu.task.as_ptr(), Relaxed);
    let was_empty = lock.wait_list.is_empty();
    lock.wait_list.add_tail(w);
    if was_empty {
        lock.owner.fetch_or(MUTEX_FLAG_WAITERS, Relaxed);
    }
    w
}

/// `__mutex_remove_waiter()`; with `wait_lock` held. The flags go with the last waiter.
fn mutex_remove_waiter<A: Arch>(lock: &Mutex<A>, w: &RwsemWaiter<A>) {
    lock.wait_list.del(w);
    if lock.wait_list.is_empty() {
        lock.owner.fetch_and(!MUTEX_FLAGS, Relaxed);
    }
}

/// `__mutex_lock_common()`
#[cold]
#[inline(never)]
fn mutex_lock_slowpath<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>, state: u32) -> Result<(), Errno> {
    if mutex_trylock(cpu, lock) || mutex_optimistic_spin(cpu, lock, false) {
        return Ok(());
    }
    raw_spin_lock(cpu, &lock.wait_lock);
    if mutex_trylock(cpu, lock) {
        raw_spin_unlock(cpu, &lock.wait_lock);
        return Ok(());
    }
    let w = mutex_add_waiter(cpu, lock);
    // ORDER: full (in it); between the WAITERS flag with this store and the look at the owner that follows. An unlock that
    // is missed there sees the flag and wakes this task.
    set_current_state(cpu, state);
    let r = loop {
        // Under wait_lock no unlock can be giving the lock away.
        if mutex_trylock(cpu, lock) {
            break Ok(());
        }
        if signal_pending_state(state, &cpu.task) {
            break Err(Errno::EINTR);
        }
        raw_spin_unlock(cpu, &lock.wait_lock);
        schedule(cpu, None);
        // PORT: read without wait_lock as in C; this waiter is queued, so whether it is the first cannot become untrue.
        let first = lock.wait_list.is_first(w);
        // ORDER: full (in it); as above.
        set_current_state(cpu, state);
        let got = mutex_trylock_common(cpu, lock, first).is_ok() || first && mutex_optimistic_spin(cpu, lock, true);
        raw_spin_lock(cpu, &lock.wait_lock);
        if got {
            break Ok(());
        }
    };
    set_current_state_running(cpu);
    mutex_remove_waiter(lock, w);
    raw_spin_unlock(cpu, &lock.wait_lock);
    r
}

/// `__mutex_handoff()`: gives the lock up, to `task` if that is not 0. With `wait_lock` held.
fn mutex_handoff<A: Arch>(lock: &Mutex<A>, task: u64) {
    let mut owner = lock.owner.load(Relaxed);
    loop {
        let pickup = if task == 0 { 0 } else { MUTEX_FLAG_PICKUP };
        // ORDER: release; meets the acquire of the new owner in mutex_trylock_common().
        if lock.owner.try_cmpxchg(owner & MUTEX_FLAG_WAITERS | task | pickup, &mut owner, Release) {
            return;
        }
    }
}

/// `__mutex_unlock_slowpath()`
#[cold]
#[inline(never)]
fn mutex_unlock_slowpath<A: Arch>(cpu: &Cpu<A>, lock: &Mutex<A>) {
    // Opened before wait_lock is taken, so that others can go on; not where it is to be handed over.
    let mut owner = lock.owner.load(Relaxed);
    while owner & MUTEX_FLAG_HANDOFF == 0 {
        // ORDER: release; as in mutex_unlock().
        if lock.owner.try_cmpxchg(owner & MUTEX_FLAGS, &mut owner, Release) {
            if owner & MUTEX_FLAG_WAITERS != 0 {
                break;
            }
            return;
        }
    }
    let mut wake_q = WakeQHead::new();
    let mut next = null_mut();
    raw_spin_lock(cpu, &lock.wait_lock);
    if !lock.wait_list.is_empty() {
        // SAFETY: queued, lock held.
        next = unsafe { waiter_at(lock.wait_list.first()) }.task.load(Relaxed);
        wake_q_add(&mut wake_q, task_at(next));
    }
    if owner & MUTEX_FLAG_HANDOFF != 0 {
        mutex_handoff(lock, next.expose_provenance() as u64);
    }
    raw_spin_unlock(cpu, &lock.wait_lock);
    wake_up_q(&mut wake_q);
}

#[cfg(test)]
impl<A: Arch> Mutex<A> {
    /// What must be so after all have left.
    pub(crate) fn assert_quiet(&self) {
        assert_eq!(self.owner.load(Relaxed), 0, "owner");
        assert!(self.wait_list.is_empty(), "somebody is queued");
        assert!(!self.osq.is_locked(), "somebody spins");
        assert!(!self.wait_lock.is_locked(), "wait_lock");
    }

    /// Whether (somebody is queued, the first wants it handed over, it was handed over).
    pub(crate) fn flags(&self) -> [bool; 3] {
        let o = self.owner.load(Relaxed);
        let f = [MUTEX_FLAG_WAITERS, MUTEX_FLAG_HANDOFF, MUTEX_FLAG_PICKUP].map(|f| o & f != 0);
        assert!(f[0] || !f[1] && !f[2], "a handover to nobody");
        f
    }

    /// The broken twin of [`mutex_unlock`]: where a handover was asked for it opens the lock, and whoever comes first
    /// gets it; nobody is woken, because the lock is supposed to be the first waiter's.
    pub(crate) fn unlock_instead_of_handing_over(&self, cpu: &Cpu<A>) {
        if self.owner.load(Relaxed) & MUTEX_FLAG_HANDOFF == 0 {
            return mutex_unlock(cpu, self);
        }
        raw_spin_lock(cpu, &self.wait_lock);
        mutex_handoff(self, 0);
        raw_spin_unlock(cpu, &self.wait_lock);
    }

    /// How many are queued. Takes no lock: for queues that stand still, or to poll until they do.
    pub(crate) fn waiters(&self) -> usize {
        let mut n = 0;
        let mut p = self.wait_list.first();
        while let Some(w) = NonNull::new(p) {
            n += 1;
            // SAFETY: waiters are part of tasks, which outlive the lock in tests.
            p = unsafe { w.as_ref() }.next.get();
        }
        n
    }
}
