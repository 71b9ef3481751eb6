// SPDX-License-Identifier: GPL-2.0-only
//! What waiting for a lock needs of a CPU: queue nodes that other CPUs find by CPU number, and the place of a sleeping
//! rwsem waiter [kernel/locking/mcs_spinlock.h, qspinlock.c, osq_lock.c, rwsem.c, 6.12].
//!
//! Only the layout is here, because the CPU token leads to it; the algorithms are a floor up, in `sync`.
//!
//! custom: the kernel's rwsem waiter lives on the stack; here it is part of the task (a task waits for one rwsem at a
//! time), so that its lines are shared memory like all others. stub: the second half of a queue node, which kernels
//! built with paravirtual spinlocks reserve; only the first of the four nodes is used outside interrupts, so the lines
//! touched are the same.

use super::{PerCpu, Task};
use crate::arch::{Arch, Atomic, Plain};
use std::ptr::null_mut;

/// Nesting levels of a spinlock's slow path: task, softirq, hardirq, NMI.
pub const MAX_NODES: usize = 4;

/// `struct mcs_spinlock`
#[repr(C)]
#[derive(Debug)]
pub struct McsSpinlock<A: Arch> {
    /// Who queued behind.
    pub next: Atomic<A, *mut McsSpinlock<A>>,
    /// 1 once the predecessor has handed over.
    pub locked: Atomic<A, u32>,
    /// In node 0: nodes in use on this CPU.
    pub count: Plain<A, u32>,
}

/// `struct optimistic_spin_node`, on a line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct OptimisticSpinNode<A: Arch> {
    /// Who queued behind.
    pub next: Atomic<A, *mut OptimisticSpinNode<A>>,
    /// Who is ahead.
    pub prev: Atomic<A, *mut OptimisticSpinNode<A>>,
    /// 1 once the lock was handed over.
    pub locked: Atomic<A, u32>,
    /// CPU number + 1.
    pub cpu: Atomic<A, u32>,
}

/// The queue nodes of one CPU: one line for spinlocks, one for optimistic spinning.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct LockNodes<A: Arch> {
    /// `qnodes`
    pub qnodes: [McsSpinlock<A>; MAX_NODES],
    /// `osq_node`
    pub osq_node: OptimisticSpinNode<A>,
}

impl<A: Arch> LockNodes<A> {
    /// Unused nodes.
    pub fn new() -> Self {
        LockNodes {
            qnodes: std::array::from_fn(|_| McsSpinlock {
                next: Atomic::new(null_mut()),
                locked: Atomic::new(0),
                count: Plain::new(0),
            }),
            osq_node: OptimisticSpinNode {
                next: Atomic::new(null_mut()),
                prev: Atomic::new(null_mut()),
                locked: Atomic::new(0),
                cpu: Atomic::new(0),
            },
        }
    }
}
impl<A: Arch> Default for LockNodes<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// Nodes of all CPUs, kernel threads included. Empty in some small tests: locks then do without queues.
pub type AllLockNodes<A> = PerCpu<A, LockNodes<A>>;

/// `struct rwsem_waiter`, on a line of its own within the task.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct RwsemWaiter<A: Arch> {
    /// Next in the queue; null = last.
    pub next: Plain<A, *mut RwsemWaiter<A>>,
    /// Previous in the queue; null = first.
    pub prev: Plain<A, *mut RwsemWaiter<A>>,
    /// Who waits; null once a reader was granted the lock.
    pub task: Atomic<A, *mut Task<A>>,
    /// Waits for reading (1) or writing (0).
    pub for_read: Plain<A, u32>,
    /// Whether this waiter asked for a handoff. Set under the lock, read by its owner without.
    pub handoff_set: Atomic<A, u32>,
    /// When the handoff may be asked for, in jiffies.
    pub timeout: Plain<A, u64>,
}

impl<A: Arch> RwsemWaiter<A> {
    /// Not queued.
    pub fn new() -> Self {
        RwsemWaiter {
            next: Plain::new(null_mut()),
            prev: Plain::new(null_mut()),
            task: Atomic::new(null_mut()),
            for_read: Plain::new(0),
            handoff_set: Atomic::new(0),
            timeout: Plain::new(0),
        }
    }
}
impl<A: Arch> Default for RwsemWaiter<A> {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = {
    use crate::arch::Native;
    use std::mem::{offset_of, size_of};
    assert!(size_of::<McsSpinlock<Native>>() == 16);
    assert!(size_of::<LockNodes<Native>>() == 128);
    assert!(offset_of!(LockNodes<Native>, osq_node) == 64);
    assert!(size_of::<RwsemWaiter<Native>>() == 64);
};
