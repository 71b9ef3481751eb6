// SPDX-License-Identifier: GPL-2.0-only
//! The queued spinlock: one word, a pending bit for the first waiter, an MCS queue of per-CPU nodes for the rest.
//!
//! Follows kernel/locking/qspinlock.c, include/asm-generic/qspinlock.h, arch/x86/include/asm/qspinlock.h and
//! kernel/locking/mcs_spinlock.h of 6.12 (7.3 is the same).
//!
//! ```text
//! 31          18 17  16 15      8 7       0
//! | CPU + 1     | node | pending | locked |
//! ```
//!
//! custom: no prefetch of the successor's node; interrupts do not exist, so the node in use is always the first (tests pretend otherwise). stub: the
//! paravirtual variants: bare metal is modelled, although in a guest without them the kernel replaces all this by
//! test-and-set. 14 bits hold the CPU number.
//!
//! INVARIANT: at most one CPU waits on the word for `locked` alone (the pending one) and one for `locked` and `pending`
//! (the head of the queue); all others wait on their own node. Who queued is served in order; nobody overtakes the
//! queue except by finding the whole word 0. Accesses of 8, 16 and 32 bits meet on the word, which Rust cannot express:
//! they go through [`Arch`], by assembly in `native`, by full-word exchanges under the model checker.

use crate::arch::{
    Acquire, Arch, Atomic, Relaxed, Release, smp_cond_load_acquire, smp_cond_load_relaxed, smp_rmb, smp_wmb,
};
use crate::cpu::Cpu;
use crate::cpu::qnode::{MAX_NODES, McsSpinlock};
use crate::sync::LockEvent;
use std::ptr::null_mut;

const Q_LOCKED_VAL: u32 = 1;
const Q_LOCKED_MASK: u32 = 0xff;
const Q_PENDING_VAL: u32 = 1 << 8;
const Q_PENDING_MASK: u32 = 0xff << 8;
const Q_LOCKED_PENDING_MASK: u32 = Q_LOCKED_MASK | Q_PENDING_MASK;
const Q_TAIL_OFFSET: u32 = 16;
const Q_TAIL_IDX_OFFSET: u32 = 16;
const Q_TAIL_IDX_MASK: u32 = 3 << 16;
const Q_TAIL_CPU_OFFSET: u32 = 18;
const Q_TAIL_MASK: u32 = !0 << Q_TAIL_OFFSET;

/// `_Q_PENDING_LOOPS`: looks at a handover in progress before queueing.
const Q_PENDING_LOOPS: u32 = if cfg!(target_arch = "x86_64") { 1 << 9 } else { 1 };

/// `raw_spinlock_t`, 4 bytes.
#[repr(transparent)]
#[derive(Debug)]
pub struct RawSpinLock<A: Arch> {
    val: Atomic<A, u32>,
}

impl<A: Arch> RawSpinLock<A> {
    /// Unlocked.
    pub fn new() -> Self {
        RawSpinLock { val: Atomic::new(0) }
    }

    /// `raw_spin_lock_init()` on memory that may have been a lock before.
    pub fn init(&self) {
        self.val.store(0, Relaxed);
    }

    /// `queued_spin_is_locked()`: locked, or somebody waits for it.
    pub fn is_locked(&self) -> bool {
        self.val.load(Relaxed) != 0
    }

    /// `queued_spin_is_contended()`: somebody waits for it.
    pub fn is_contended(&self) -> bool {
        self.val.load(Relaxed) & !Q_LOCKED_MASK != 0
    }
}

impl<A: Arch> Default for RawSpinLock<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `raw_spin_lock()`
#[inline(always)]
pub fn raw_spin_lock<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>) {
    cpu.preempt_disable();
    // ORDER: acquire; meets raw_spin_unlock(): what the last holder wrote is seen.
    if let Err(val) = l.val.cmpxchg(0, Q_LOCKED_VAL, Acquire) {
        queued_spin_lock_slowpath(cpu, l, val);
    }
}

/// `raw_spin_lock()` for those who count: the time waited, ns, 0 where the lock was free. The clock is read only where
/// it was not.
#[inline(always)]
pub fn raw_spin_lock_timed<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>) -> u64 {
    cpu.preempt_disable();
    // ORDER: as in raw_spin_lock().
    match l.val.cmpxchg(0, Q_LOCKED_VAL, Acquire) {
        Ok(_) => 0,
        Err(val) => lock_and_time(cpu, l, val),
    }
}

#[cold]
#[inline(never)]
fn lock_and_time<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>, val: u32) -> u64 {
    let begin = A::now();
    queued_spin_lock_slowpath(cpu, l, val);
    A::now().saturating_sub(begin).max(1)
}

/// `raw_spin_trylock()`
#[inline(always)]
pub fn raw_spin_trylock<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>) -> bool {
    cpu.preempt_disable();
    // ORDER: acquire; meets raw_spin_unlock().
    let locked = l.val.load(Relaxed) == 0 && l.val.cmpxchg(0, Q_LOCKED_VAL, Acquire).is_ok();
    if !locked {
        cpu.preempt_enable();
    }
    locked
}

/// `raw_spin_unlock()`
#[inline(always)]
pub fn raw_spin_unlock<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>) {
    // ORDER: release of byte 0; meets every acquire of the word that sees the byte clear.
    A::store_low_byte_release(l.val.raw(), 0);
    cpu.preempt_enable();
}

/// `encode_tail()`: CPU + 1, so that no tail differs from CPU 0's first node.
fn encode_tail(cpu: u32, idx: u32) -> u32 {
    debug_assert!(cpu < (1 << 14) - 1);
    ((cpu + 1) << Q_TAIL_CPU_OFFSET) | (idx << Q_TAIL_IDX_OFFSET)
}

/// `decode_tail()`
fn decode_tail<A: Arch>(cpu: &Cpu<A>, tail: u32) -> &McsSpinlock<A> {
    let nr = (tail >> Q_TAIL_CPU_OFFSET) - 1;
    &cpu.lock_nodes.of(nr).qnodes[((tail & Q_TAIL_IDX_MASK) >> Q_TAIL_IDX_OFFSET) as usize]
}

/// `clear_pending()`
fn clear_pending<A: Arch>(l: &RawSpinLock<A>) {
    // PORT: a store of byte 1 in C; this path is too rare for an access of its own.
    l.val.fetch_and(!Q_PENDING_VAL, Relaxed);
}

/// `clear_pending_set_locked()`: `*,1,0 -> *,0,1`
fn clear_pending_set_locked<A: Arch>(l: &RawSpinLock<A>) {
    A::store_low_half(l.val.raw(), Q_LOCKED_VAL as u16);
}

/// `xchg_tail()`: returns the tail found.
fn xchg_tail<A: Arch>(l: &RawSpinLock<A>, tail: u32) -> u32 {
    // ORDER: relaxed: the caller's write barrier orders its node before.
    u32::from(A::xchg_high_half(l.val.raw(), (tail >> Q_TAIL_OFFSET) as u16)) << Q_TAIL_OFFSET
}

/// `set_locked()`: `*,*,0 -> *,0,1`
fn set_locked<A: Arch>(l: &RawSpinLock<A>) {
    // PORT: relaxed in C; a release store is the same move on x86-64.
    A::store_low_byte_release(l.val.raw(), Q_LOCKED_VAL as u8);
}

/// `queued_fetch_set_pending_acquire()`: sets the pending bit; returns the word as it was before, as far as it matters.
fn queued_fetch_set_pending_acquire<A: Arch>(l: &RawSpinLock<A>) -> u32 {
    // ORDER: acquire; meets raw_spin_unlock() where the byte is found clear.
    if cfg!(target_arch = "x86_64") {
        // As the kernel on x86: only the bit is used, so that this is one `lock bts` and no loop of exchanges.
        let pending = l.val.fetch_or(Q_PENDING_VAL, Acquire) & Q_PENDING_VAL;
        // ORDER: acquire too (free there): the byte may have been cleared between the two, and then this load is the
        // one that meets raw_spin_unlock().
        pending | (l.val.load(Acquire) & !Q_PENDING_MASK)
    } else {
        l.val.fetch_or(Q_PENDING_VAL, Acquire)
    }
}

/// `queued_spin_lock_slowpath()`; `val` is what the fast path found.
#[cold]
#[inline(never)]
fn queued_spin_lock_slowpath<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>, mut val: u32) {
    // A pending waiter is just becoming the holder: bounded, so that this CPU gets on whatever others do.
    if val == Q_PENDING_VAL {
        let mut left = Q_PENDING_LOOPS;
        val = smp_cond_load_relaxed(&l.val, |v| {
            let go = v != Q_PENDING_VAL || left == 0;
            left = left.saturating_sub(1);
            go
        });
    }
    if val & !Q_LOCKED_MASK == 0 {
        val = queued_fetch_set_pending_acquire(l);
        if val & !Q_LOCKED_MASK == 0 {
            if val & Q_LOCKED_MASK != 0 {
                // ORDER: acquire; meets raw_spin_unlock(). The store that follows orders nothing itself.
                smp_cond_load_acquire(&l.val, |v| v & Q_LOCKED_MASK == 0);
            }
            clear_pending_set_locked(l);
            cpu.count(LockEvent::LockPending);
            return;
        }
        // Contended after all. If the bit was ours, take it back; meanwhile it may have kept the queue's head from
        // leaving an empty queue, which then waits for the successor that this CPU is going to be.
        if val & Q_PENDING_MASK == 0 {
            clear_pending(l);
        }
    }
    queue(cpu, l);
}

/// The part of `queued_spin_lock_slowpath()` from its label `queue` on.
fn queue<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>) {
    cpu.count(LockEvent::LockSlowpath);
    if cpu.lock_nodes.is_empty() {
        return lock_without_node(cpu, l);
    }
    let nodes = &cpu.lock_nodes.this(cpu).qnodes;
    let idx = nodes[0].count.get();
    nodes[0].count.set(idx + 1);
    if idx as usize >= MAX_NODES {
        lock_without_node(cpu, l);
    } else {
        match idx {
            0 => (),
            1 => cpu.count(LockEvent::LockUseNode2),
            2 => cpu.count(LockEvent::LockUseNode3),
            _ => cpu.count(LockEvent::LockUseNode4),
        }
        lock_with_node(cpu, l, idx, &nodes[idx as usize]);
    }
    nodes[0].count.set(nodes[0].count.get() - 1);
}

/// The kernel's answer to a fifth nesting level: no queue.
fn lock_without_node<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>) {
    cpu.count(LockEvent::LockNoNode);
    while !raw_spin_trylock(cpu, l) {
        smp_cond_load_relaxed(&l.val, |v| v == 0);
    }
}

fn lock_with_node<A: Arch>(cpu: &Cpu<A>, l: &RawSpinLock<A>, idx: u32, node: &McsSpinlock<A>) {
    let tail = encode_tail(cpu.id, idx);
    node.locked.store(0, Relaxed);
    node.next.store(null_mut(), Relaxed);

    // The node's line may have been cold: somebody may have let go meanwhile.
    if raw_spin_trylock(cpu, l) {
        return;
    }
    // ORDER: write barrier: the node is clean before the tail leads others to it; meets their stores to `next` below.
    smp_wmb::<A>();
    let old = xchg_tail(l, tail);
    let mut next = null_mut();
    if old & Q_TAIL_MASK != 0 {
        let prev = decode_tail(cpu, old);
        // PORT: an address dependency in C (the node is found through the exchanged tail). Here a read barrier (free on
        // x86-64): with the owner's write barrier it puts the owner's clearing of `next` before this store.
        smp_rmb::<A>();
        prev.next.store(std::ptr::from_ref(node).cast_mut(), Relaxed);
        // ORDER: acquire; meets the release of `next.locked` below: the lock is passed on inside the queue.
        smp_cond_load_acquire(&node.locked, |v| v != 0);
        next = node.next.load(Relaxed);
    }
    claim(l, tail, node, next);
}

/// The end of `queued_spin_lock_slowpath()`: this CPU's node is the head of the queue. `next` is its successor, if it is
/// known already.
fn claim<A: Arch>(l: &RawSpinLock<A>, tail: u32, node: &McsSpinlock<A>, mut next: *mut McsSpinlock<A>) {
    // ORDER: acquire; meets raw_spin_unlock(). The claim below orders nothing itself.
    let val = smp_cond_load_acquire(&l.val, |v| v & Q_LOCKED_PENDING_MASK == 0);
    if val & Q_TAIL_MASK == tail && l.val.cmpxchg(val, Q_LOCKED_VAL, Relaxed).is_ok() {
        return;
    }
    // Somebody queued behind, or set the pending bit and is about to.
    set_locked(l);
    if next.is_null() {
        next = smp_cond_load_relaxed(&node.next, |n: *mut McsSpinlock<A>| !n.is_null());
    }
    // PORT: an address dependency in C. Here a read barrier (free on x86-64): with the successor's write barrier it
    // puts the successor's clearing of `locked` before the store below.
    smp_rmb::<A>();
    // ORDER: release; meets the successor's acquire of its `locked`.
    // SAFETY: queue nodes live as long as the kernel; only nodes are linked.
    unsafe { &*next }.locked.store(1, Release);
}

#[cfg(test)]
impl<A: Arch> RawSpinLock<A> {
    /// The word.
    pub(crate) fn word(&self) -> &Atomic<A, u32> {
        &self.val
    }

    /// A lock at the moment when `cpu` stands at the head of its queue and the holder has just left. `cpu` goes on with
    /// [`RawSpinLock::claim_as_head`].
    pub(crate) fn with_head(cpu: &Cpu<A>) -> Self {
        RawSpinLock { val: Atomic::new(encode_tail(cpu.id, 0)) }
    }

    /// The rest of a slow path that stands at the head of the queue.
    pub(crate) fn claim_as_head(&self, cpu: &Cpu<A>) {
        claim(self, encode_tail(cpu.id, 0), &cpu.lock_nodes.this(cpu).qnodes[0], null_mut());
    }

    /// A lock that is held and has a pending waiter.
    pub(crate) fn held_and_pending() -> Self {
        RawSpinLock { val: Atomic::new(Q_LOCKED_VAL | Q_PENDING_VAL) }
    }

    /// The rest of the slow path of the pending waiter.
    pub(crate) fn claim_as_pending(&self) {
        smp_cond_load_acquire(&self.val, |v| v & Q_LOCKED_MASK == 0);
        clear_pending_set_locked(self);
    }
}
