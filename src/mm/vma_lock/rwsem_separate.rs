// SPDX-License-Identifier: GPL-2.0-only
//! `rwsem_separate` (P0): a reader/writer semaphore in an object of its own; the VMA is freed after a grace period
//! [include/linux/mm.h, kernel/fork.c, 6.12].
//!
//! Why it is right. Let W remove V and R have found V in the tree before.
//! Identity: V and its lock object are freed by `call_rcu()`, and R is inside RCU from the walk to the end of
//! `vma_start_read()`, afterwards R's read lock makes W wait in W1 before V can be removed. So V never becomes
//! another VMA under R, and `vm_mm` never changes.
//! Exclusion: if R takes the semaphore before W's `down_write()`, W waits for R. If after, R's acquire meets W's
//! `up_write()` (E1), so R sees `vm_lock_seq` = n (W's odd number) and, since that store came after the section began,
//! `mm_lock_seq` >= n. R passes R4 only if it reads something else than n, and the next value is n + 1, stored with
//! release order at the section's end (E2). Hence R sees all that W did in the section: `detached`, new ranges. It then
//! finds V detached (R5), or stable and no longer write-locked.
//! The unordered look (R2) decides nothing: wrong either way it costs a fallback or a trylock.
//!
//! Layout: 184 bytes and an object of 40 for the semaphore, each packed in its cache without regard for lines.
//! `vm_lock_seq` and the pointer to the semaphore are side by side (44, 48), behind the range and `vm_mm`.
//!
//! Cost: two allocations and two frees per VMA and one RCU callback; memory waits for a grace period; R3 touches a
//! second object, which shares its line with its neighbours' locks. A fault writes that line twice (R3, R8), and nothing
//! of the VMA.
//!
//! Counters: `vma_lock_writer_wait`, a writer that found the semaphore taken in W1. Nothing of the lock is counted when
//! it is free.
//!
//! PORT: 6.12 reads the mm's sequence through `vm_mm`; so do we. R5 belongs to `lock_vma_under_rcu()` there; it is here
//! because the enum of three wants it; the order of accesses is the same.

use super::rwsem::down_write_counted;
use super::{AbortCause, Claim::*, Claims, Reuse, StartRead, VmaLock, VmaLockEvent, point};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Relaxed};
use crate::cpu::Cpu;
use crate::mm::mm_types::{MmRef, MmStruct, VmAreaStruct612, VmaFields, VmaLockObject, VmaRef};
use crate::mm::vmstat::vm_warn_on_once;
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::{down_read, down_read_trylock, up_read, up_write};
use std::ptr::NonNull;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct RwsemSeparate;

type Vma<A> = VmaRef<A, RwsemSeparate>;

/// The lock object, by a dependent load.
#[inline(always)]
fn vm_lock<A: Arch>(vma: Vma<A>) -> KRef<VmaLockObject<A>> {
    // ORDER: relaxed. The pointer was stored before V was published in the tree; the walk that found V is an acquire.
    let p = vma.vm_lock.load(Relaxed);
    // SAFETY: set by vma_lock_alloc() before anybody could find V; freed with V, after a grace period, and callers are
    // inside RCU or hold the lock or mmap_lock.
    unsafe { KRef::new(NonNull::new_unchecked(p)) }
}

#[inline(always)]
fn mm_of<A: Arch>(vma: Vma<A>) -> KRef<MmStruct<A, RwsemSeparate>> {
    // SAFETY: vm_mm is set at allocation and never changes while V can be found; a reader's or writer's mm is alive.
    // ORDER: relaxed: stored before V was published in the tree; the walk that found V is an acquire.
    unsafe { KRef::new(NonNull::new_unchecked(vma.vm_mm().load(Relaxed))) }
}

impl VmaLock for RwsemSeparate {
    const NAME: &'static str = "rwsem_separate";
    const ORIGIN: &'static str = "v6.12";
    const ABOUT: &'static str = "a reader/writer semaphore in a second object; freed after a grace period";
    const CLAIMS: Claims =
        [Holds, Impossible, Impossible, Impossible, Impossible, Impossible, Impossible, Holds, Holds, Holds];
    const REUSE: Reuse = Reuse::Forbids(
        "its readers never check which mm a VMA belongs to, and the lock object is initialised at each allocation",
    );
    const SEPARATE_LOCK: bool = true;
    const DETACH_AT_EXIT: bool = false;
    type Vma<A: Arch> = VmAreaStruct612<A, Self>;
    type WriterWait<A: Arch> = ();

    #[inline(always)]
    fn vma_lock_init<A: Arch>(vma: Vma<A>, _constructed: bool) {
        // ORDER: relaxed: nobody knows the object yet; the store into the tree publishes it.
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }

    #[inline(always)]
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        _mm: MmRef<A, Self>,
        vma: Vma<A>,
        _mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        let mm = mm_of(vma);
        // R2. ORDER: both relaxed: a hint, see the module.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
            return StartRead::Contended(AbortCause::SeqEarly);
        }
        A::pause_point(point::LOCK_WORD);
        // R3. ORDER: the trylock's acquire meets up_write() of vma_start_write() (E1).
        let sem = vm_lock(vma);
        if !down_read_trylock(cpu, &sem.lock) {
            return StartRead::Contended(AbortCause::Writer);
        }
        // R4. ORDER: acquire on mm_lock_seq, meets the release in vma_end_write_all() (E2): whoever sees the section
        // ended sees all it did. vm_lock_seq is stable under the read lock.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
            // ORDER: release, meets down_write() of a writer that waits, as vma_end_read().
            up_read(cpu, &sem.lock);
            return StartRead::Contended(AbortCause::SeqLate);
        }
        A::pause_point(point::DETACHED);
        // R5. ORDER: relaxed, by E2.
        if vma.detached.load(Relaxed) != 0 {
            Self::vma_end_read(cpu, vma);
            return StartRead::Detached;
        }
        A::pause_point(point::VM_MM);
        StartRead::Locked
    }

    #[inline(always)]
    fn vma_is_of<A: Arch>(_mm: MmRef<A, Self>, _vma: Vma<A>) -> bool {
        true
    }

    #[inline(always)]
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) -> bool {
        // ORDER: acquire, meets up_write() of vma_start_write(). No helper of that name in 6.12; its users do this.
        down_read(cpu, &vm_lock(vma).lock);
        true
    }

    #[inline(always)]
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        // Once the count drops, a writer may detach and free V: RCU keeps the semaphore while up_read() touches it.
        rcu_read_lock(cpu);
        // ORDER: release, meets down_write() of vma_start_write().
        up_read(cpu, &vm_lock(vma).lock);
        rcu_read_unlock(cpu);
    }

    #[inline(always)]
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        // W1. ORDER: relaxed: both words are written under mmap_lock only, which the caller holds for write.
        let seq = mm_of(vma).mm_lock_seq.word().load(Relaxed);
        if vma.vm_lock_seq().load(Relaxed) == seq {
            return;
        }
        let sem = vm_lock(vma);
        // ORDER: acquire, meets up_read() of vma_end_read(): what readers did under the lock is seen.
        down_write_counted(cpu, &sem.lock, VmaLockEvent::WriterWait);
        // ORDER: relaxed: R2 may see it at any time; R4 sees it through the semaphore.
        vma.vm_lock_seq().store(seq, Relaxed);
        // ORDER: release, meets the trylock of vma_start_read() (E1).
        up_write(cpu, &sem.lock);
    }

    #[inline(always)]
    fn vma_mark_attached<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A>) {
        // Born attached: only a removal that failed has something to undo.
        // ORDER: relaxed: reaches a reader by E2.
        vma.detached.store(0, Relaxed);
    }

    #[inline(always)]
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        // vma_assert_write_locked(). ORDER: relaxed: as W1 of vma_start_write().
        vm_warn_on_once(cpu, || vma.vm_lock_seq().load(Relaxed) != mm_of(vma).mm_lock_seq.word().load(Relaxed));
        // ORDER: relaxed: reaches a reader by E2.
        vma.detached.store(1, Relaxed);
    }

    fn vma_lock_is_free<A: Arch>(vma: Vma<A>) -> bool {
        // ORDER: relaxed: no reader can find V any more, and each that did is out of its section.
        !vm_lock(vma).lock.is_locked()
    }
}
