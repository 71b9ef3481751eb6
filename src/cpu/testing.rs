// SPDX-License-Identifier: GPL-2.0-only
//! CPUs without a machine, for model checks and tests, in worlds with and without an arena.

use super::sched::Wait;
use super::{Cpu, LockNodes, PerCpu, Task, smp, tick};
use crate::arch::Arch;
use crate::arch::arena::KRef;
use std::ptr::NonNull;
use std::sync::Arc;

/// What a set of test CPUs shares. Clone it into each thread and make the thread's token there with [`CpuSet::cpu`].
///
/// INVARIANT: tokens and what hangs on them are used only while some clone of the set lives; a closure that owns a
/// clone and makes its token inside keeps that.
pub struct CpuSet<A: Arch>(Arc<Parts<A>>);

struct Parts<A: Arch> {
    tasks: Vec<Box<Task<A>>>,
    remotes: Vec<Box<smp::CpuRemote<A>>>,
    /// Held for the table below.
    _nodes: Vec<Box<LockNodes<A>>>,
    table: Box<[KRef<LockNodes<A>>]>,
}

impl<A: Arch> Clone for CpuSet<A> {
    fn clone(&self) -> Self {
        CpuSet(self.0.clone())
    }
}

impl<A: Arch> CpuSet<A> {
    /// The token of CPU `id`; at most one at a time.
    pub fn cpu(&self, id: u32) -> Cpu<A> {
        let p = &self.0;
        // SAFETY: the invariant of the type.
        let (task, remote, table) = unsafe {
            (
                KRef::from_ref(&*p.tasks[id as usize]),
                KRef::from_ref(&*p.remotes[id as usize]),
                KRef::new(NonNull::from(&*p.table)),
            )
        };
        Cpu::new(id, 0, task, remote, PerCpu::from_table(table), tick::TickDevice::off(), 1)
    }

    /// The task of CPU `id`, for looking at from outside.
    pub fn task(&self, id: u32) -> &Task<A> {
        &self.0.tasks[id as usize]
    }

    /// The same as wakers and killers hold it.
    pub fn task_ref(&self, id: u32) -> KRef<Task<A>> {
        // SAFETY: the invariant of the type.
        unsafe { KRef::from_ref(self.task(id)) }
    }
}

/// Shared parts of `n` test CPUs: no tick, no hooks, sleepers in futexes.
pub fn for_test_set<A: Arch>(n: u32) -> CpuSet<A> {
    for_test_set_waiting(n, Wait::Futex)
}

/// As [`for_test_set`], waiting as said.
pub fn for_test_set_waiting<A: Arch>(n: u32, wait: Wait) -> CpuSet<A> {
    let nodes: Vec<Box<LockNodes<A>>> = (0..n).map(|_| Box::new(LockNodes::new())).collect();
    // SAFETY: the boxes stay in the same `Parts`, hence live as long as the table.
    let table = nodes.iter().map(|b| unsafe { KRef::from_ref(&**b) }).collect();
    CpuSet(Arc::new(Parts {
        tasks: (0..n).map(|i| Box::new(Task::new_waiting(i, wait))).collect(),
        remotes: (0..n).map(|_| Box::new(smp::CpuRemote::new())).collect(),
        _nodes: nodes,
        table,
    }))
}

/// A whole number, 1 or more, that the environment asks for.
///
/// # Panics
/// Where it is anything else: who asks for much must not get little.
#[cfg(test)]
pub(crate) fn asked(name: &str) -> Option<u64> {
    let v = std::env::var(name).ok()?;
    let n = v.parse().ok().filter(|&n| n > 0);
    Some(n.unwrap_or_else(|| panic!("{name}={v}: accepted: a whole number, 1 or more")))
}

/// Seeds of simulated machines: as many as `FAULTLINE_SIM_SEEDS` asks for, from number `FAULTLINE_SIM_FIRST` on; `default` from 1
/// on.
#[cfg(test)]
pub(crate) fn seeds(default: u64) -> std::ops::Range<u64> {
    let first = asked("FAULTLINE_SIM_FIRST").unwrap_or(1);
    first..first + asked("FAULTLINE_SIM_SEEDS").unwrap_or(default)
}
