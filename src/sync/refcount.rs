// SPDX-License-Identifier: GPL-2.0-only
//! `refcount_t`: a count of references that never comes back from the dead.
//!
//! Follows include/linux/refcount.h and lib/refcount.c of 6.12, and the limited acquire variant of 6.15 to 7.3.
//!
//! custom: a warning is counted by its kind on the CPU that found it ([`Saturation`]) and never printed; a sample with
//! any is an error row. For that the operations take the CPU token, which only their cold ends touch. stub: the
//! variants that take a lock.
//!
//! INVARIANT: read as a signed number, the word is negative only once it is saturated, and then for ever: each operation
//! looks at the OLD value and puts a word that went wrong to [`REFCOUNT_SATURATED`]. Its object is leaked, never freed.
//! The operation and that store are not one step; the value lies in the middle of the negative numbers, so that what
//! others do between the two does not leave them.

use crate::arch::atomic::RmwOrder;
use crate::arch::{Acquire, Arch, Atomic, Relaxed, Release, smp_rmb};
use crate::cpu::Cpu;

/// Where a count that went wrong is put.
pub const REFCOUNT_SATURATED: u32 = 0xc000_0000;
/// `REFCOUNT_MAX`
pub const REFCOUNT_MAX: u32 = i32::MAX as u32;

crate::counters! {
    /// `enum refcount_saturation_type`: what went wrong.
    pub enum Saturation in 24..32 => {
        /// A conditional increment ran over.
        AddNotZeroOvf = "refcount_add_not_zero_ovf",
        /// An increment ran over.
        AddOvf = "refcount_add_ovf",
        /// Increment of a dead object.
        AddUaf = "refcount_add_uaf",
        /// Decrement below zero.
        SubUaf = "refcount_sub_uaf",
        /// A decrement that does not look reached zero.
        DecLeak = "refcount_dec_leak",
    }
}

/// `refcount_t`, 4 bytes.
#[repr(transparent)]
#[derive(Debug)]
pub struct Refcount<A: Arch> {
    refs: Atomic<A, u32>,
}

fn negative(v: u32) -> bool {
    v.cast_signed() < 0
}

impl<A: Arch> Refcount<A> {
    /// With `n` references.
    pub fn new(n: u32) -> Self {
        Refcount { refs: Atomic::new(n) }
    }

    /// The word, for wait loops and for protocols that keep flags in it.
    #[inline(always)]
    pub fn word(&self) -> &Atomic<A, u32> {
        &self.refs
    }

    /// `refcount_read()`
    #[inline(always)]
    pub fn read(&self) -> u32 {
        self.refs.load(Relaxed)
    }

    /// `refcount_set()`
    #[inline(always)]
    pub fn set(&self, n: u32) {
        self.refs.store(n, Relaxed)
    }

    /// `refcount_set_release()`: publishes an object in memory that stale readers may still look at.
    #[inline(always)]
    pub fn set_release(&self, n: u32) {
        // ORDER: release; meets the acquire variants: whoever gets a reference sees who the object is now.
        self.refs.store(n, Release)
    }

    /// `refcount_warn_saturate()`
    #[cold]
    #[inline(never)]
    fn warn_saturate(&self, cpu: &Cpu<A>, kind: Saturation) {
        self.set(REFCOUNT_SATURATED);
        cpu.count(kind);
    }

    /// The common part of the conditional increments: `Ok(old)`, or `Err(old)` where old is 0 or leaves no room for `n`
    /// under `limit`.
    #[inline(always)]
    fn add_not_zero_limited<O: RmwOrder + Copy>(&self, cpu: &Cpu<A>, n: u32, limit: u32, o: O) -> Result<u32, u32> {
        let mut old = self.read();
        loop {
            if old == 0 || n.cast_signed() > limit.wrapping_sub(old).cast_signed() {
                return Err(old);
            }
            if self.refs.try_cmpxchg(old.wrapping_add(n), &mut old, o) {
                break;
            }
        }
        if negative(old) || negative(old.wrapping_add(n)) {
            self.warn_saturate(cpu, Saturation::AddNotZeroOvf);
        }
        Ok(old)
    }

    /// The unlimited conditional increment: the old value, 0 if it failed.
    #[inline(always)]
    fn add_not_zero_with<O: RmwOrder + Copy>(&self, cpu: &Cpu<A>, n: u32, o: O) -> u32 {
        let mut old = self.read();
        while old != 0 && !self.refs.try_cmpxchg(old.wrapping_add(n), &mut old, o) {}
        if negative(old) || negative(old.wrapping_add(n)) {
            self.warn_saturate(cpu, Saturation::AddNotZeroOvf);
        }
        old
    }

    /// `__refcount_inc_not_zero_limited_acquire()`: `Ok(old)`, or `Err(old)` where old is 0 (dead) or has reached
    /// `limit` (full): the caller must tell the two apart.
    #[inline(always)]
    pub fn inc_not_zero_limited_acquire(&self, cpu: &Cpu<A>, limit: u32) -> Result<u32, u32> {
        // ORDER: acquire if it succeeds; meets set_release(): what the object is must be read after it is held.
        self.add_not_zero_limited(cpu, 1, limit, Acquire)
    }

    /// `refcount_add_not_zero()`: whether it was not zero. Relaxed: enough where the memory cannot be reused meanwhile.
    #[inline(always)]
    pub fn add_not_zero(&self, cpu: &Cpu<A>, n: u32) -> bool {
        self.add_not_zero_with(cpu, n, Relaxed) != 0
    }

    /// `refcount_add_not_zero_acquire()`
    #[inline(always)]
    pub fn add_not_zero_acquire(&self, cpu: &Cpu<A>, n: u32) -> bool {
        // ORDER: acquire if it succeeds; meets set_release().
        self.add_not_zero_with(cpu, n, Acquire) != 0
    }

    /// `refcount_inc_not_zero()`
    #[inline(always)]
    pub fn inc_not_zero(&self, cpu: &Cpu<A>) -> bool {
        self.add_not_zero(cpu, 1)
    }

    /// `refcount_inc_not_zero_acquire()`
    #[inline(always)]
    pub fn inc_not_zero_acquire(&self, cpu: &Cpu<A>) -> bool {
        self.add_not_zero_acquire(cpu, 1)
    }

    /// `refcount_add()`
    #[inline(always)]
    pub fn add(&self, cpu: &Cpu<A>, n: u32) {
        let old = self.refs.fetch_add(n, Relaxed);
        if old == 0 {
            self.warn_saturate(cpu, Saturation::AddUaf);
        } else if negative(old) || negative(old.wrapping_add(n)) {
            self.warn_saturate(cpu, Saturation::AddOvf);
        }
    }

    /// `refcount_inc()`: relaxed; the caller has a reference already.
    #[inline(always)]
    pub fn inc(&self, cpu: &Cpu<A>) {
        self.add(cpu, 1);
    }

    /// `__refcount_sub_and_test()`: the old value; the count reached zero where that is `n`.
    #[inline(always)]
    pub fn sub_return_old(&self, cpu: &Cpu<A>, n: u32) -> u32 {
        // ORDER: release; meets the barrier below of whoever drops the last reference: all use comes before the end.
        let old = self.refs.fetch_sub(n, Release);
        if old == n && old.cast_signed() > 0 {
            // ORDER: read barrier; meets the releases of all who dropped a reference before.
            smp_rmb::<A>();
        } else if old == 0 || negative(old) || negative(old.wrapping_sub(n)) {
            self.warn_saturate(cpu, Saturation::SubUaf);
        }
        old
    }

    /// `refcount_sub_and_test()`: whether it reached zero. Never for a saturated count.
    #[inline(always)]
    pub fn sub_and_test(&self, cpu: &Cpu<A>, n: u32) -> bool {
        let old = self.sub_return_old(cpu, n);
        old == n && old.cast_signed() > 0
    }

    /// `refcount_dec_and_test()`
    #[inline(always)]
    pub fn dec_and_test(&self, cpu: &Cpu<A>) -> bool {
        self.sub_and_test(cpu, 1)
    }

    /// `refcount_dec()`: must not reach zero.
    #[inline(always)]
    pub fn dec(&self, cpu: &Cpu<A>) {
        // ORDER: release, as for every decrement.
        if self.refs.fetch_sub(1, Release).cast_signed() <= 1 {
            self.warn_saturate(cpu, Saturation::DecLeak);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;

    type R = Refcount<Native>;

    fn cpu() -> Cpu<Native> {
        Cpu::for_test(0)
    }

    /// L12, first part.
    #[test]
    fn a_dead_count_stays_dead_to_conditional_increments() {
        let cpu = cpu();
        let r = R::new(0);
        assert!(!r.inc_not_zero(&cpu) && !r.inc_not_zero_acquire(&cpu) && !r.add_not_zero(&cpu, 5));
        assert_eq!(r.inc_not_zero_limited_acquire(&cpu, 100), Err(0));
        assert_eq!(r.read(), 0);
    }

    #[test]
    fn the_limited_increment_tells_dead_from_full() {
        let cpu = cpu();
        let r = R::new(1);
        assert_eq!(r.inc_not_zero_limited_acquire(&cpu, 3), Ok(1));
        assert_eq!(r.inc_not_zero_limited_acquire(&cpu, 3), Ok(2));
        assert_eq!(r.inc_not_zero_limited_acquire(&cpu, 3), Err(3));
        assert_eq!(r.read(), 3);
        // The flag of a writer, bit 30, makes any value full.
        r.set((1 << 30) + 1);
        assert_eq!(r.inc_not_zero_limited_acquire(&cpu, (1 << 30) - 2), Err((1 << 30) + 1));
        assert_eq!(R::new(0).inc_not_zero_limited_acquire(&cpu, 3), Err(0));
    }

    #[test]
    fn each_misuse_saturates_warns_and_never_frees() {
        type Case = (u32, Saturation, fn(&R, &Cpu<Native>));
        let cases: [Case; 7] = [
            (0, Saturation::AddUaf, |r, cpu| r.inc(cpu)),
            (REFCOUNT_MAX, Saturation::AddOvf, |r, cpu| r.inc(cpu)),
            (REFCOUNT_MAX - 2, Saturation::AddOvf, |r, cpu| r.add(cpu, 3)),
            (REFCOUNT_MAX, Saturation::AddNotZeroOvf, |r, cpu| assert!(r.inc_not_zero(cpu))),
            (0, Saturation::SubUaf, |r, cpu| assert!(!r.dec_and_test(cpu))),
            (1, Saturation::SubUaf, |r, cpu| assert!(!r.sub_and_test(cpu, 2))),
            (1, Saturation::DecLeak, |r, cpu| r.dec(cpu)),
        ];
        for (start, kind, misuse) in cases {
            let r = R::new(start);
            let cpu = cpu();
            misuse(&r, &cpu);
            assert_eq!(r.read(), REFCOUNT_SATURATED, "{start:#x} {kind:?}");
            assert_eq!(cpu.counters.get(kind), 1, "{start:#x} {kind:?}");
            // Whatever follows, it stays there and nobody is told to free.
            r.inc(&cpu);
            assert!(r.inc_not_zero(&cpu));
            assert!(!r.dec_and_test(&cpu) && !r.sub_and_test(&cpu, REFCOUNT_SATURATED));
            assert_eq!(r.read(), REFCOUNT_SATURATED, "{start:#x} {kind:?}");
        }
    }

    #[test]
    fn the_largest_count_that_is_legal_does_not_warn() {
        let cpu = cpu();
        let r = R::new(REFCOUNT_MAX - 1);
        r.inc(&cpu);
        assert_eq!(r.read(), REFCOUNT_MAX);
        assert_eq!(r.sub_return_old(&cpu, REFCOUNT_MAX - 1), REFCOUNT_MAX);
        assert!(r.dec_and_test(&cpu));
        assert_eq!(r.read(), 0);
    }
}
