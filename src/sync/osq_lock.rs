// SPDX-License-Identifier: GPL-2.0-only
//! The queue that optimistic spinners stand in, so that one of them at a time looks at the lock they want.
//!
//! Follows kernel/locking/osq_lock.c and include/linux/osq_lock.h of 6.12 (7.3 is the same). One node a CPU: nobody
//! stands in two such queues, and nobody sleeps in one.
//!
//! stub: `vcpu_is_preempted()` is false.
//!
//! INVARIANT: the lock word is the CPU number + 1 of the tail, 0 when nobody is in. The handover is a relaxed store met
//! by a relaxed load: this queue only throttles spinners. Plain data must never be protected by it.

use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed, Release, smp_cond_load_relaxed, smp_rmb, smp_wmb};
use crate::cpu::Cpu;
use crate::cpu::qnode::OptimisticSpinNode;
use crate::cpu::sched::need_resched;
use std::ptr::{from_ref, null_mut};

const OSQ_UNLOCKED_VAL: u32 = 0;

/// `struct optimistic_spin_queue`, 4 bytes.
#[repr(transparent)]
#[derive(Debug)]
pub struct OptimisticSpinQueue<A: Arch> {
    tail: Atomic<A, u32>,
}

impl<A: Arch> OptimisticSpinQueue<A> {
    /// Nobody is in.
    pub fn new() -> Self {
        OptimisticSpinQueue { tail: Atomic::new(OSQ_UNLOCKED_VAL) }
    }

    /// `osq_lock_init()` on memory that may have been a queue before.
    pub fn init(&self) {
        self.tail.store(OSQ_UNLOCKED_VAL, Relaxed);
    }

    /// `osq_is_locked()`
    pub fn is_locked(&self) -> bool {
        self.tail.load(Relaxed) != OSQ_UNLOCKED_VAL
    }
}
impl<A: Arch> Default for OptimisticSpinQueue<A> {
    fn default() -> Self {
        Self::new()
    }
}

fn ptr<A: Arch>(n: &OptimisticSpinNode<A>) -> *mut OptimisticSpinNode<A> {
    from_ref(n).cast_mut()
}

/// # Safety
/// `p` came out of a node's `next` or `prev` and is not null.
unsafe fn node<'a, A: Arch>(p: *mut OptimisticSpinNode<A>) -> &'a OptimisticSpinNode<A> {
    // SAFETY: only nodes are linked, and nodes live as long as the kernel.
    unsafe { &*p }
}

/// `osq_wait_next()`: this CPU leaves; makes its successor certain. `None`: there is none, the tail is `old_cpu` now.
fn osq_wait_next<'a, A: Arch>(
    cpu: &Cpu<A>,
    lock: &OptimisticSpinQueue<A>,
    me: &OptimisticSpinNode<A>,
    old_cpu: u32,
) -> Option<&'a OptimisticSpinNode<A>> {
    let curr = cpu.id + 1;
    loop {
        // ORDER: acquire; as in the kernel, for whoever takes over the place as tail; meets the full exchange in
        // osq_lock().
        if lock.tail.load(Relaxed) == curr && lock.tail.cmpxchg(curr, old_cpu, Acquire).is_ok() {
            return None;
        }
        // Taking `next` out keeps a successor that leaves at the same time in its step A, until it is told who its
        // new predecessor is.
        if !me.next.load(Relaxed).is_null() {
            // ORDER: full; meets the exchange in step A of osq_lock(): one of the two gets the link.
            let next = me.next.swap(null_mut(), Full);
            if !next.is_null() {
                // SAFETY: was in `next`.
                return Some(unsafe { node(next) });
            }
        }
        A::cpu_relax();
    }
}

/// `osq_lock()`: whether this CPU may spin; `false` where it should stop spinning meanwhile.
pub fn osq_lock<A: Arch>(cpu: &Cpu<A>, lock: &OptimisticSpinQueue<A>) -> bool {
    osq_lock_unless(cpu, lock, || need_resched(cpu))
}

/// A step of leaving the queue that is done wrong on purpose, for the model checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twin {
    /// As it should be.
    None,
    /// Without step A: the predecessor may leave at the same time.
    #[cfg(test)]
    SkipA,
    /// Step B frees the lock in place of making the predecessor the tail.
    #[cfg(test)]
    ClearTail,
    /// Step C does not tell the successor who its predecessor is now.
    #[cfg(test)]
    ForgetPrev,
}

/// [`osq_lock`] with the reason for leaving as a parameter, so that tests can leave at any moment.
#[inline(always)]
pub(crate) fn osq_lock_unless<A: Arch>(
    cpu: &Cpu<A>,
    lock: &OptimisticSpinQueue<A>,
    cancel: impl FnMut() -> bool,
) -> bool {
    osq_lock_twin(cpu, lock, cancel, Twin::None)
}

/// [`osq_lock_unless`] with a step that may be wrong.
#[inline(always)]
pub(crate) fn osq_lock_twin<A: Arch>(
    cpu: &Cpu<A>,
    lock: &OptimisticSpinQueue<A>,
    mut cancel: impl FnMut() -> bool,
    twin: Twin,
) -> bool {
    if cpu.lock_nodes.is_empty() {
        // A CPU of a small test, without nodes: nobody spins.
        return false;
    }
    let me = &cpu.lock_nodes.this(cpu).osq_node;
    let curr = cpu.id + 1;
    me.locked.store(0, Relaxed);
    me.next.store(null_mut(), Relaxed);
    me.cpu.store(curr, Relaxed);

    // ORDER: full; its release side publishes the node above to the successor's exchange, its acquire side meets the
    // release in osq_unlock().
    let old = lock.tail.swap(curr, Full);
    if old == OSQ_UNLOCKED_VAL {
        return true;
    }
    let mut prev = &cpu.lock_nodes.of(old - 1).osq_node;
    me.prev.store(ptr(prev), Relaxed);
    // ORDER: write barrier; meets the full exchange in the predecessor's osq_wait_next(): its step C stores `prev` of
    // this node after this CPU did.
    smp_wmb::<A>();
    prev.next.store(ptr(me), Relaxed);

    // ORDER: relaxed on purpose, see the module.
    let mut cancelled = false;
    smp_cond_load_relaxed(&me.locked, |v| {
        cancelled = v == 0 && cancel();
        v != 0 || cancelled
    });
    if !cancelled {
        return true;
    }

    // Step A: the predecessor certain. Taking this node out of its `next` keeps it from leaving.
    loop {
        #[cfg(test)]
        if twin == Twin::SkipA {
            break;
        }
        // ORDER: full; meets the exchange in osq_unlock() and osq_wait_next().
        if prev.next.load(Relaxed) == ptr(me) && prev.next.cmpxchg(ptr(me), null_mut(), Full).is_ok() {
            break;
        }
        // ORDER: acquire; meets the handover in osq_unlock(), which was quicker.
        if me.locked.load(Acquire) != 0 {
            return true;
        }
        A::cpu_relax();
        // Or the predecessor leaves too, and its step C brings another.
        // SAFETY: `prev` was set above and never becomes null.
        prev = unsafe { node(me.prev.load(Relaxed)) };
        // PORT: an address dependency in C.
        smp_rmb::<A>();
    }
    // Step B: the successor certain, or none.
    let old_cpu = prev.cpu.load(Relaxed);
    #[cfg(test)]
    let old_cpu = if twin == Twin::ClearTail { OSQ_UNLOCKED_VAL } else { old_cpu };
    let Some(next) = osq_wait_next(cpu, lock, me, old_cpu) else {
        return false;
    };
    // Step C: out. The predecessor waits for its `next`, the successor in its step A for its `prev`.
    #[cfg(test)]
    let tell = twin != Twin::ForgetPrev;
    #[cfg(not(test))]
    let tell = twin == Twin::None;
    if tell {
        next.prev.store(ptr(prev), Relaxed);
    }
    prev.next.store(ptr(next), Relaxed);
    false
}

/// `osq_unlock()`: the next one may spin.
pub fn osq_unlock<A: Arch>(cpu: &Cpu<A>, lock: &OptimisticSpinQueue<A>) {
    let curr = cpu.id + 1;
    // ORDER: release; meets the exchange in osq_lock().
    if lock.tail.cmpxchg(curr, OSQ_UNLOCKED_VAL, Release).is_ok() {
        return;
    }
    let me = &cpu.lock_nodes.this(cpu).osq_node;
    // ORDER: full; meets step A of osq_lock().
    let next = me.next.swap(null_mut(), Full);
    let next = if next.is_null() {
        osq_wait_next(cpu, lock, me, OSQ_UNLOCKED_VAL)
    } else {
        // SAFETY: was in `next`.
        Some(unsafe { node(next) })
    };
    if let Some(next) = next {
        next.locked.store(1, Relaxed);
    }
}
