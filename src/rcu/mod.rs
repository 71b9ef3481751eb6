// SPDX-License-Identifier: GPL-2.0-only
//! Floor 3: RCU. Placeholder with the final interface: callbacks run at once at `rcu_barrier` only.

use crate::arch::arena::KRef;
use crate::arch::{Arch, Arena, Atomic, Hardware, Plain, Relaxed, barrier};
use crate::cpu::{Cpu, PerCpu};
use std::ptr::null_mut;

/// `struct rcu_head`, 16 bytes inside the object to be freed.
#[repr(C)]
#[derive(Debug)]
pub struct RcuHead<A: Arch> {
    /// Next in the list. Atomic: the words overlay fields that stale readers may still load.
    pub next: Atomic<A, *mut RcuHead<A>>,
    /// The callback, an [`RcuCallback`] as a word.
    pub func: Atomic<A, usize>,
}

/// `rcu_callback_t`: called on the CPU that queued `head`, after a grace period.
pub type RcuCallback<A> = unsafe fn(cpu: &Cpu<A>, head: *mut RcuHead<A>);

/// `rcu_state` and the per-CPU data.
pub struct RcuState<A: Arch> {
    lists: PerCpu<A, (Plain<A, *mut RcuHead<A>>, Plain<A, u64>)>,
}

impl<A: Hardware> RcuState<A> {
    /// `rcu_init()`.
    pub fn new(arena: &Arena, nr_cpus: u32, node_of: impl Fn(u32) -> u32) -> KRef<Self> {
        let lists = PerCpu::new(arena, nr_cpus, node_of, "rcu_data", |_| (Plain::new(null_mut()), Plain::new(0)));
        arena.boot_new(0, RcuState { lists })
    }
}

/// `rcu_read_lock()`
#[inline(always)]
pub fn rcu_read_lock<A: Arch>(cpu: &Cpu<A>) {
    cpu.rcu_nesting.set(cpu.rcu_nesting.get() + 1);
    barrier();
}
/// `rcu_read_unlock()`
#[inline(always)]
pub fn rcu_read_unlock<A: Arch>(cpu: &Cpu<A>) {
    barrier();
    cpu.rcu_nesting.set(cpu.rcu_nesting.get() - 1);
}
/// `call_rcu()`
///
/// # Safety
/// `head` lies in an object that no new reader can find and that nobody frees before the callback.
#[inline]
pub unsafe fn call_rcu<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, head: *mut RcuHead<A>, func: RcuCallback<A>) {
    let (list, n) = rcu.lists.this(cpu);
    // SAFETY: the caller's.
    unsafe {
        (*head).func.store(func as usize, Relaxed);
        (*head).next.store(list.get(), Relaxed);
    }
    list.set(head);
    n.set(n.get() + 1);
}
/// `rcu_barrier()`: placeholder, runs this CPU's callbacks.
pub fn rcu_barrier<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let (list, n) = rcu.lists.this(cpu);
    let mut h = list.get();
    list.set(null_mut());
    n.set(0);
    while !h.is_null() {
        // SAFETY: queued by call_rcu.
        unsafe {
            let next = (*h).next.load(Relaxed);
            let f: RcuCallback<A> = std::mem::transmute((*h).func.load(Relaxed));
            f(cpu, h);
            h = next;
        }
    }
}
