// SPDX-License-Identifier: GPL-2.0-only
//! Placeholder for `rw_semaphore`: a spinning count.
use crate::arch::{Acquire, Arch, Atomic, Relaxed, Release, smp_cond_load_relaxed};
use crate::cpu::Cpu;

/// `struct rw_semaphore`, 40 bytes: count@0 owner@8 osq@16 wait_lock@20 wait_list@24.
#[repr(C)]
#[derive(Debug)]
pub struct RwSemaphore<A: Arch> {
    count: Atomic<A, i64>,
    owner: Atomic<A, u64>,
    osq: Atomic<A, u32>,
    wait_lock: Atomic<A, u32>,
    wait_list: [Atomic<A, u64>; 2],
}
impl<A: Arch> RwSemaphore<A> {
    /// Unlocked.
    pub fn new() -> Self {
        RwSemaphore {
            count: Atomic::new(0),
            owner: Atomic::new(0),
            osq: Atomic::new(0),
            wait_lock: Atomic::new(0),
            wait_list: [Atomic::new(0), Atomic::new(0)],
        }
    }
    /// `rwsem_is_locked`
    pub fn is_locked(&self) -> bool {
        self.count.load(Relaxed) != 0
    }
}
impl<A: Arch> Default for RwSemaphore<A> {
    fn default() -> Self {
        Self::new()
    }
}
/// Read trylock.
#[inline(always)]
pub fn down_read_trylock<A: Arch>(_cpu: &Cpu<A>, s: &RwSemaphore<A>) -> bool {
    let mut c = s.count.load(Relaxed);
    while c & 1 == 0 {
        if s.count.try_cmpxchg(c + 256, &mut c, Acquire) {
            return true;
        }
    }
    false
}
/// Read lock.
#[inline(always)]
pub fn down_read<A: Arch>(cpu: &Cpu<A>, s: &RwSemaphore<A>) {
    while !down_read_trylock(cpu, s) {
        smp_cond_load_relaxed(&s.count, |c| c & 1 == 0);
    }
}
/// Read unlock.
#[inline(always)]
pub fn up_read<A: Arch>(_cpu: &Cpu<A>, s: &RwSemaphore<A>) {
    s.count.fetch_sub(256, Release);
}
/// Write trylock.
#[inline(always)]
pub fn down_write_trylock<A: Arch>(_cpu: &Cpu<A>, s: &RwSemaphore<A>) -> bool {
    s.count.cmpxchg(0, 1, Acquire).is_ok()
}
/// Write lock.
#[inline(always)]
pub fn down_write<A: Arch>(cpu: &Cpu<A>, s: &RwSemaphore<A>) {
    while !down_write_trylock(cpu, s) {
        smp_cond_load_relaxed(&s.count, |c| c == 0);
    }
}
/// Write unlock.
#[inline(always)]
pub fn up_write<A: Arch>(_cpu: &Cpu<A>, s: &RwSemaphore<A>) {
    s.count.fetch_sub(1, Release);
}
/// Write to read.
#[inline(always)]
pub fn downgrade_write<A: Arch>(_cpu: &Cpu<A>, s: &RwSemaphore<A>) {
    s.count.fetch_add(255, Release);
}
