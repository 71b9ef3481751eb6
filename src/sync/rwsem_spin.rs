// SPDX-License-Identifier: GPL-2.0-only
//! Optimistic spinning on an rwsem: a writer that waits awake while the owner runs [kernel/locking/rwsem.c:
//! rwsem_optimistic_spin and what it calls, 6.12; 7.3 is the same].
//!
//! One spinner at a time, through the lock's OSQ; it takes the lock past the queue unless a handoff is under way. It gives
//! up when the owner sleeps, when this CPU has something else to do, or when readers have had the lock for as long as
//! readers are worth waiting for; then no other writer spins on the same readers either.
//!
//! INVARIANT: `owner` is believed here and nowhere else: a wrong name costs time, never the lock.

use super::LockEvent;
use super::osq_lock::{osq_lock, osq_unlock};
use super::rwsem::{
    RWSEM_FLAG_HANDOFF, RWSEM_LOCK_MASK, RWSEM_NONSPINNABLE, RWSEM_OWNER_FLAGS_MASK, RWSEM_READER_OWNED,
    RWSEM_READER_SHIFT, RWSEM_WRITER_LOCKED, RwSemaphore, rwsem_set_nonspinnable, rwsem_set_owner,
};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Relaxed, barrier};
use crate::cpu::sched::{need_resched, owner_on_cpu};
use crate::cpu::{Cpu, Task};
use std::ptr::NonNull;

/// `enum owner_state`
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// Nobody is named.
    Null,
    /// A writer, and it is another one than before.
    Writer,
    /// Perhaps readers.
    Reader,
    /// Stop spinning: given up on, or not running.
    Nonspinnable,
}

/// `rwsem_owner_state()`
fn rwsem_owner_state(owner: u64) -> OwnerState {
    if owner & RWSEM_NONSPINNABLE != 0 {
        OwnerState::Nonspinnable
    } else if owner & RWSEM_READER_OWNED != 0 {
        OwnerState::Reader
    } else if owner & !RWSEM_OWNER_FLAGS_MASK != 0 {
        OwnerState::Writer
    } else {
        OwnerState::Null
    }
}

pub(super) fn owner_task<A: Arch>(owner: u64) -> Option<KRef<Task<A>>> {
    let p = std::ptr::with_exposed_provenance_mut::<Task<A>>((owner & !RWSEM_OWNER_FLAGS_MASK) as usize);
    // SAFETY: only addresses of tasks are stored in `owner`, and tasks live as long as the kernel.
    NonNull::new(p).map(|p| unsafe { KRef::new(p) })
}

/// `rwsem_can_spin_on_owner()`
pub(super) fn rwsem_can_spin_on_owner<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    let ok = !need_resched(cpu) && {
        let owner = sem.owner.load(Relaxed);
        // A reader's name may be an old one: not asked whether it runs.
        owner & RWSEM_NONSPINNABLE == 0
            && (owner & RWSEM_READER_OWNED != 0 || owner_task::<A>(owner).is_none_or(|t| owner_on_cpu(&t)))
    };
    if !ok {
        cpu.count(LockEvent::RwsemOptFail);
    }
    ok
}

/// `rwsem_spin_on_owner()`: as long as one and the same running writer has it.
#[inline(never)]
pub(super) fn rwsem_spin_on_owner<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> OwnerState {
    let owner = sem.owner.load(Relaxed);
    let state = rwsem_owner_state(owner);
    if state != OwnerState::Writer {
        return state;
    }
    let Some(task) = owner_task::<A>(owner) else {
        return OwnerState::Null;
    };
    // Two words are watched, so that smp_cond_load_relaxed() does not fit here.
    loop {
        let new = sem.owner.load(Relaxed);
        if new != owner {
            return rwsem_owner_state(new);
        }
        barrier();
        if need_resched(cpu) || !owner_on_cpu(&task) {
            return OwnerState::Nonspinnable;
        }
        A::cpu_relax();
    }
}

/// `rwsem_rspin_threshold()`: until when to spin on readers: 10 us and half a us for each, at most 25 us.
fn rwsem_rspin_threshold<A: Arch>(sem: &RwSemaphore<A>) -> u64 {
    let readers = (sem.count.load(Relaxed) >> RWSEM_READER_SHIFT).clamp(0, 30) as u64;
    A::now() + (20 + readers) * 1000 / 2
}

/// `rwsem_try_write_lock_unqueued()`: past the queue, unless a handoff is under way.
fn rwsem_try_write_lock_unqueued<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    try_write_lock_unqueued(cpu, sem, RWSEM_LOCK_MASK | RWSEM_FLAG_HANDOFF)
}

/// [`rwsem_try_write_lock_unqueued`], with the bits that keep it out as a parameter, so that a model can do with fewer.
#[inline(always)]
pub(super) fn try_write_lock_unqueued<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, keep_out: i64) -> bool {
    let mut count = sem.count.load(Relaxed);
    while count & keep_out == 0 {
        // ORDER: acquire; meets up_read() and up_write().
        if sem.count.try_cmpxchg(count | RWSEM_WRITER_LOCKED, &mut count, Acquire) {
            rwsem_set_owner(cpu, sem);
            cpu.count(LockEvent::RwsemOptLock);
            return true;
        }
    }
    false
}

/// `rwsem_optimistic_spin()`: whether it got the lock.
pub(super) fn rwsem_optimistic_spin<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    let mut taken = false;
    if osq_lock(cpu, &sem.osq) {
        taken = spin(cpu, sem);
        osq_unlock(cpu, &sem.osq);
    }
    if !taken {
        cpu.count(LockEvent::RwsemOptFail);
    }
    taken
}

fn spin<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>) -> bool {
    let mut prev = OwnerState::Null;
    let mut turns = 0_u32;
    let mut threshold = 0;
    loop {
        let state = rwsem_spin_on_owner(cpu, sem);
        if state == OwnerState::Nonspinnable {
            return false;
        }
        if rwsem_try_write_lock_unqueued(cpu, sem) {
            return true;
        }
        if state == OwnerState::Reader {
            if prev != OwnerState::Reader {
                // A new phase of readers has a new limit.
                if sem.owner.load(Relaxed) & RWSEM_NONSPINNABLE != 0 {
                    return false;
                }
                threshold = rwsem_rspin_threshold(sem);
                turns = 0;
            } else {
                // The clock is looked at every 16th turn: looking takes time in which the lock may come free.
                turns = turns.wrapping_add(1);
                if turns & 0xf == 0 && A::now() > threshold {
                    rwsem_set_nonspinnable(sem);
                    cpu.count(LockEvent::RwsemOptNospin);
                    return false;
                }
            }
        }
        if state != OwnerState::Writer && need_resched(cpu) {
            return false;
        }
        prev = state;
        A::cpu_relax();
    }
}
