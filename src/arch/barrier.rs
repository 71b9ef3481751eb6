// SPDX-License-Identifier: GPL-2.0-only
//! Barriers and conditional loads under their kernel names [include/asm-generic/barrier.h, 6.12].

use super::{Acquire, Arch, Atomic, Fence, Prim, Relaxed};

/// `smp_mb()`: everything before against everything after.
#[inline(always)]
#[track_caller]
pub fn smp_mb<A: Arch>() {
    A::fence(Fence::Full)
}

/// `smp_rmb()`: loads before against loads after (an acquire fence, which also orders later stores).
#[inline(always)]
#[track_caller]
pub fn smp_rmb<A: Arch>() {
    A::fence(Fence::Read)
}

/// `smp_wmb()`: stores before against stores after (a release fence, which also orders earlier loads).
#[inline(always)]
#[track_caller]
pub fn smp_wmb<A: Arch>() {
    A::fence(Fence::Write)
}

/// `barrier()`: keeps the compiler from moving memory accesses across.
#[inline(always)]
pub fn barrier() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst)
}

/// `smp_cond_load_relaxed()`: waits until `cond` holds for the word; returns the value it held for.
#[inline(always)]
#[track_caller]
pub fn smp_cond_load_relaxed<A: Arch, T: Prim>(w: &Atomic<A, T>, mut cond: impl FnMut(T) -> bool) -> T {
    loop {
        let v = w.load(Relaxed);
        if cond(v) {
            return v;
        }
        A::wait_changed(w.raw(), v);
    }
}

/// `smp_cond_load_acquire()`: as [`smp_cond_load_relaxed`], the successful load being an acquire.
// PORT: the kernel spins relaxed and ends on a control dependency plus a fence; Rust has no control dependencies.
#[inline(always)]
#[track_caller]
pub fn smp_cond_load_acquire<A: Arch, T: Prim>(w: &Atomic<A, T>, mut cond: impl FnMut(T) -> bool) -> T {
    loop {
        let v = w.load(Acquire);
        if cond(v) {
            return v;
        }
        A::wait_changed(w.raw(), v);
    }
}
