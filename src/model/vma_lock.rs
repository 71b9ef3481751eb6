// SPDX-License-Identifier: GPL-2.0-only
//! The per-VMA lock protocols under the model checker: the real `vma_start_read()`, `vma_start_write()`,
//! `vma_mark_attached()`, `vma_mark_detached()`, `mmap_write_lock()` and `lock_vma_found()`, one reader against one
//! writer, every interleaving within two preemptions and every stale value that relaxed loads may return.
//!
//! Stood in for: the tree walk (the reader has found V already, which is where the protocols begin), the allocator
//! (V is recycled in place, as a LIFO cache would), RCU's grace period (an object that waits for one is never reused
//! here). The race-checked word `payload` stands for what the VMA lock protects: the writer writes it write-locked,
//! the reader reads it read-locked.
//!
//! Each protocol has a twin with one order taken away, through the same code; the twin must be caught, else the model
//! shows nothing.

use crate::arch::arena::KRef;
use crate::arch::atomic::{LoadOrder, StoreOrder};
use crate::arch::loom::Loom;
use crate::arch::{Acquire, Plain, Relaxed, Release};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::mm::mm_types::{MmRef, MmStruct, VmAreaStruct612, VmAreaStruct615, VmaFields, VmaLockObject, VmaRef};
use crate::mm::mmap_lock::{lock_vma_found, mmap_write_lock, mmap_write_unlock};
use crate::mm::vma_lock::refcnt::{Refcnt, vma_mark_attached_ordered};
use crate::mm::vma_lock::rwsem_separate::{RwsemSeparate, vma_start_read_ordered};
use crate::mm::vma_lock::{StartRead, VmaLock};
use crate::mm::vmstat::VmEvent;
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::RwSemaphore;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const OLD: u64 = 0x10_0000;
const NEW: u64 = 0x50_0000;
const SIZE: u64 = 0x1000;

struct Shared<L: VmaLock> {
    mm: MmStruct<Loom, L>,
    other: MmStruct<Loom, L>,
    vma: L::Vma<Loom>,
    lock: VmaLockObject<Loom>,
    payload: Plain<Loom, u32>,
}

impl<L: VmaLock> Shared<L> {
    fn mm(&self) -> MmRef<Loom, L> {
        // SAFETY: the Arc of the model outlives both threads.
        unsafe { KRef::from_ref(&self.mm) }
    }
    fn other(&self) -> MmRef<Loom, L> {
        // SAFETY: as above.
        unsafe { KRef::from_ref(&self.other) }
    }
    fn vma(&self) -> VmaRef<Loom, L> {
        // SAFETY: as above.
        unsafe { KRef::from_ref(&self.vma) }
    }
    fn set_up(&self, cpu: &Cpu<Loom>) {
        let vma = self.vma();
        self.init(self.mm(), OLD);
        mmap_write_lock(cpu, &self.mm);
        L::vma_start_write(cpu, vma);
        L::vma_mark_attached(cpu, vma);
        mmap_write_unlock(cpu, &self.mm);
    }
    /// vm_area_alloc() and vma_set_range().
    fn init(&self, mm: MmRef<Loom, L>, start: u64) {
        self.vma.vma_init(mm.as_ptr(), 0);
        if let Some(slot) = self.vma.vm_lock() {
            slot.store((&raw const self.lock).cast_mut(), Relaxed);
        }
        L::vma_lock_init(self.vma());
        self.vma.vm_start().store(start, Relaxed);
        self.vma.vm_end().store(start + SIZE, Relaxed);
    }
}

/// Explores reader against writer; returns how often the reader got the lock, and the number of executions.
fn explore<L: VmaLock>(
    reader: impl Fn(&Cpu<Loom>, &Shared<L>) -> bool + Send + Sync + Copy + 'static,
    writer: impl Fn(&Cpu<Loom>, &Shared<L>) + Send + Sync + Copy + 'static,
) -> (u32, u32) {
    let (locked, runs) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (l2, r2) = (locked.clone(), runs.clone());
    let mut b = loom::model::Builder::new();
    b.preemption_bound = Some(2);
    b.max_branches = 20_000;
    b.check(move || {
        r2.fetch_add(1, Ordering::Relaxed);
        let set = for_test_set::<Loom>(2);
        let s = Arc::new(Shared::<L> {
            mm: MmStruct::new(),
            other: MmStruct::new(),
            vma: L::Vma::<Loom>::new(),
            lock: VmaLockObject { lock: RwSemaphore::new() },
            payload: Plain::new(1),
        });
        let cpu = set.cpu(0);
        // A writer that must wait sleeps at once: spinning only multiplies interleavings.
        cpu.softirq.ksoftirqd.set(true);
        s.set_up(&cpu);
        let t = {
            let (set, s, l2) = (set.clone(), s.clone(), l2.clone());
            loom::thread::spawn(move || {
                let cpu = set.cpu(1);
                if reader(&cpu, &s) {
                    l2.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(cpu.counters.get(VmEvent::Warn), 0);
            })
        };
        writer(&cpu, &s);
        t.join().expect("a panic ends the model");
        assert_eq!(cpu.counters.get(VmEvent::Warn), 0);
    });
    (locked.load(Ordering::Relaxed), runs.load(Ordering::Relaxed))
}

/// Explores and demands that some execution fails.
fn must_fail(what: &str, f: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(f)).is_err(), "{what}: the model noticed nothing");
}

/// Looks V up for `OLD`; if it gets the lock, reads what the lock protects.
fn read<L: VmaLock>(cpu: &Cpu<Loom>, s: &Shared<L>, start: impl Fn() -> StartRead) -> bool {
    rcu_read_lock(cpu);
    let got = start();
    rcu_read_unlock(cpu);
    if got != StartRead::Locked {
        return false;
    }
    // I1, I2, I5.
    assert!(std::ptr::eq(s.vma.vm_mm().load(Relaxed), &raw const s.mm), "another mm's VMA");
    assert_eq!(s.vma.vm_start().load(Relaxed), OLD, "another range");
    assert_eq!(s.payload.get(), 1, "changed although read-locked");
    assert_eq!(s.vma.vm_start().load(Relaxed), OLD, "changed although read-locked");
    L::vma_end_read(cpu, s.vma());
    true
}

fn read_refcnt(cpu: &Cpu<Loom>, s: &Shared<Refcnt>) -> bool {
    read(cpu, s, || lock_vma_found(cpu, s.mm(), s.vma(), OLD))
}

/// Removes V and makes another VMA of it in the same section, at another address (T2 of vma-locks.md 5).
fn recycle(cpu: &Cpu<Loom>, s: &Shared<Refcnt>, attach: impl StoreOrder) {
    let vma = s.vma();
    mmap_write_lock(cpu, &s.mm);
    Refcnt::vma_start_write(cpu, vma);
    Refcnt::vma_mark_detached(cpu, vma);
    assert!(Refcnt::vma_lock_is_free(vma));
    s.init(s.mm(), NEW);
    Refcnt::vma_start_write(cpu, vma);
    s.payload.set(2);
    vma_mark_attached_ordered(cpu, vma, attach);
    mmap_write_unlock(cpu, &s.mm);
}

#[test]
fn refcnt_reader_against_a_recycled_vma() {
    let (locked, runs) = explore(read_refcnt, |cpu, s| recycle(cpu, s, Release));
    assert!(locked > 0 && locked < runs, "{locked} of {runs}: both outcomes must occur");
}

#[test]
fn refcnt_with_a_relaxed_attach_is_caught() {
    must_fail("relaxed attach", || {
        explore(read_refcnt, |cpu, s| recycle(cpu, s, Relaxed));
    });
}

/// Removes V and gives it to another mm at the same address (T1).
fn to_another_mm(cpu: &Cpu<Loom>, s: &Shared<Refcnt>, attach: impl StoreOrder) {
    let vma = s.vma();
    mmap_write_lock(cpu, &s.mm);
    Refcnt::vma_start_write(cpu, vma);
    Refcnt::vma_mark_detached(cpu, vma);
    mmap_write_unlock(cpu, &s.mm);
    s.init(s.other(), OLD);
    mmap_write_lock(cpu, &s.other);
    Refcnt::vma_start_write(cpu, vma);
    s.payload.set(2);
    vma_mark_attached_ordered(cpu, vma, attach);
    mmap_write_unlock(cpu, &s.other);
}

#[test]
fn refcnt_reader_against_another_mms_vma() {
    let (locked, runs) = explore(read_refcnt, |cpu, s| to_another_mm(cpu, s, Release));
    assert!(locked > 0 && locked < runs, "{locked} of {runs}: both outcomes must occur");
}

/// Removes V; it waits for a grace period and is not reused (T0).
fn remove<L: VmaLock>(cpu: &Cpu<Loom>, s: &Shared<L>) {
    mmap_write_lock(cpu, &s.mm);
    L::vma_start_write(cpu, s.vma());
    s.payload.set(2);
    L::vma_mark_detached(cpu, s.vma());
    mmap_write_unlock(cpu, &s.mm);
}

#[test]
fn refcnt_reader_against_a_removal() {
    let (locked, runs) = explore(read_refcnt, remove);
    assert!(locked > 0 && locked < runs, "{locked} of {runs}: both outcomes must occur");
}

fn read_rwsem(cpu: &Cpu<Loom>, s: &Shared<RwsemSeparate>, r4: impl LoadOrder + Copy) -> bool {
    read(cpu, s, || vma_start_read_ordered(cpu, s.vma(), r4))
}

#[test]
fn rwsem_separate_reader_against_a_removal() {
    let (locked, runs) = explore(|cpu, s| read_rwsem(cpu, s, Acquire), remove);
    assert!(locked > 0 && locked < runs, "{locked} of {runs}: both outcomes must occur");
}

#[test]
fn rwsem_separate_with_a_relaxed_look_at_the_sequence_is_caught() {
    must_fail("relaxed R4", || {
        explore(|cpu, s| read_rwsem(cpu, s, Relaxed), remove);
    });
}

/// The two layouts are what the model runs on.
const _: fn(&Shared<RwsemSeparate>, &Shared<Refcnt>) = |a, b| {
    let _: (&VmAreaStruct612<Loom, RwsemSeparate>, &VmAreaStruct615<Loom, Refcnt>) = (&a.vma, &b.vma);
};
