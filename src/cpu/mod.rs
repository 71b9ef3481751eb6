// SPDX-License-Identifier: GPL-2.0-only
//! Floor 1: the processor as the port sees it. `Cpu<A>` is the proof of "running here", passed down explicitly.
//!
//! What the kernel keeps in per-CPU variables and reaches by a segment register is either a field of [`Cpu`] (private
//! to the CPU, never priced) or lives in [`percpu::PerCpu`] blocks in the arena (seen by other CPUs). There is one
//! [`Task`] per CPU: threads are pinned and never preempted by another one of the port.
//!
//! custom: no preemption and no interrupts; the tick and softirqs run at the operation boundary,
//! [`tick::exit_to_user_mode`] (rcu.md 14). stub: CPU hotplug, scheduling classes.

pub mod errno;
pub mod percpu;
pub mod qnode;
pub mod sched;
pub mod smp;
pub mod softirq;
pub mod stat;
pub mod testing;
pub mod tick;
pub mod wake_q;
pub mod workqueue;

pub use errno::Errno;
pub use percpu::PerCpu;
pub use qnode::{AllLockNodes, LockNodes};
pub use sched::{TASK_RUNNING, TASK_SLEEPING, Task};
pub use stat::{Counter, Counters};

use crate::arch::arena::KRef;
use crate::arch::{Arch, TickProbe, barrier};
use std::cell::Cell;
use std::marker::PhantomData;

/// Kernel threads that a kernel has at least room for; their CPU numbers follow the workers'.
pub const NR_KTHREADS: u32 = 4;

/// Kernel threads of a kernel of `nr_cpus` CPUs, with all callbacks offloaded or none: two, and then those that wait for
/// grace periods, one for each of `nocb_groups()`, and those that call, one a CPU.
pub const fn nr_kthreads(nr_cpus: u32, nocb: bool) -> u32 {
    let n = if nocb { 2 + nocb_groups(nr_cpus) + nr_cpus } else { NR_KTHREADS };
    if n < NR_KTHREADS { NR_KTHREADS } else { n }
}

/// CPUs of a group whose callbacks one thread waits for: `rcu_nocb_gp_stride`, where it is not given.
pub const fn nocb_gp_stride(nr_cpus: u32) -> u32 {
    nr_cpus / nr_cpus.isqrt()
}

/// Groups there are.
pub const fn nocb_groups(nr_cpus: u32) -> u32 {
    nr_cpus.div_ceil(nocb_gp_stride(nr_cpus))
}

/// What upper floors hang into the processor, as the kernel does with function tables filled at boot. Called a few
/// times a tick at most; nothing timed goes through it.
pub struct Hooks<A: Arch> {
    /// Given back to each function: the RCU state of this kernel.
    pub ctx: *const (),
    /// `rcu_sched_clock_irq(user)`.
    pub sched_clock_irq: unsafe fn(*const (), &Cpu<A>, user: bool),
    /// `rcu_core()`, the RCU softirq; returns whether callbacks are still ready.
    pub rcu_core: unsafe fn(*const (), &Cpu<A>) -> bool,
    /// `rcu_note_context_switch()`, and `rcu_softirq_qs()` of ksoftirqd.
    pub note_context_switch: unsafe fn(*const (), &Cpu<A>),
    /// `rcu_note_context_switch()` and entry of the extended quiescent state, before a sleep.
    pub idle_enter: unsafe fn(*const (), &Cpu<A>),
    /// Leaves the extended quiescent state, after a sleep.
    pub idle_exit: unsafe fn(*const (), &Cpu<A>),
    /// `rcu_needs_cpu()`: callbacks wait here, so a sleeping CPU keeps its tick.
    pub needs_cpu: unsafe fn(*const (), &Cpu<A>) -> bool,
    /// Runs what other CPUs asked this one to run (bits of [`smp`]).
    pub call_function: unsafe fn(*const (), &Cpu<A>, bits: u32),
}
impl<A: Arch> Clone for Hooks<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Arch> Copy for Hooks<A> {}

/// One CPU, held by the thread that runs on it.
pub struct Cpu<A: Arch> {
    /// `smp_processor_id()`. A kernel thread has a number above those of the workers.
    pub id: u32,
    /// `numa_node_id()`.
    pub node: u32,
    /// `current`.
    pub task: KRef<Task<A>>,
    /// Words of this CPU that others write.
    pub remote: KRef<smp::CpuRemote<A>>,
    /// `current->rcu_read_lock_nesting`, `preempt_count`, and what a tick signal found them to be.
    pub probe: TickProbe,
    /// Lock queue nodes of all CPUs.
    pub lock_nodes: AllLockNodes<A>,
    /// The tick device.
    pub tick: tick::TickDevice,
    /// Pending softirq work of this CPU.
    pub softirq: softirq::SoftirqState,
    /// Event counters with kernel names (locks, RCU, VM events); private, never priced.
    pub counters: Counters,
    /// Function table of the floors above; `None` while booting and in small tests.
    pub hooks: Cell<Option<Hooks<A>>>,
    /// Timers of the floors above.
    pub timers: Cell<Option<workqueue::TimerHook<A>>>,
    /// Each read unlock of an rwsem takes this task's name out of it (`rwsem_clear_reader_owned()`).
    pub clear_reader_owned: Cell<bool>,
    rng: Cell<u64>,
    /// Neither `Send` nor `Sync`: it stands for the running CPU.
    _here: PhantomData<*const ()>,
}

impl<A: Arch> Cpu<A> {
    /// The CPU token of the calling thread. `seed` starts its random sequence.
    pub fn new(
        id: u32,
        node: u32,
        task: KRef<Task<A>>,
        remote: KRef<smp::CpuRemote<A>>,
        lock_nodes: AllLockNodes<A>,
        tick: tick::TickDevice,
        seed: u64,
    ) -> Self {
        Cpu {
            id,
            node,
            task,
            remote,
            probe: TickProbe::default(),
            lock_nodes,
            tick,
            softirq: softirq::SoftirqState::default(),
            counters: Counters::default(),
            hooks: Cell::new(None),
            clear_reader_owned: Cell::new(false),
            timers: Cell::new(None),
            rng: Cell::new(splitmix64(seed ^ u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1),
            _here: PhantomData,
        }
    }

    /// A CPU for tests: no tick, no hooks; its words are leaked. It has no lock queue nodes, so that contended
    /// spinlocks fall back to test-and-set; tests of locks use [`testing::for_test_set`].
    #[cfg(test)]
    pub fn for_test(id: u32) -> Self {
        let task: &'static Task<A> = Box::leak(Box::new(Task::new(id)));
        let remote: &'static smp::CpuRemote<A> = Box::leak(Box::new(smp::CpuRemote::new()));
        // SAFETY: leaked, hence alive for ever.
        let (task, remote) = unsafe { (KRef::from_ref(task), KRef::from_ref(remote)) };
        Cpu::new(id, 0, task, remote, PerCpu::leak(0, |_| LockNodes::new()), tick::TickDevice::off(), 1)
    }

    /// Next number of this CPU's random sequence (xorshift64*, seeded by the plan).
    #[inline(always)]
    pub fn random(&self) -> u64 {
        let mut x = self.rng.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.rng.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// `preempt_disable()`: a tick that falls from here on is no quiescent state. Nothing else depends on it.
    #[inline(always)]
    pub fn preempt_disable(&self) {
        self.probe.preempt_count.inc();
        barrier();
    }

    /// `preempt_enable()`
    #[inline(always)]
    pub fn preempt_enable(&self) {
        barrier();
        self.probe.preempt_count.dec();
    }

    /// Counts one event.
    #[inline(always)]
    pub fn count(&self, c: impl Counter) {
        self.counters.add(c, 1)
    }
}

/// Spreads a seed.
pub fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
