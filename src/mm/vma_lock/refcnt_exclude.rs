// SPDX-License-Identifier: GPL-2.0-only
//! `refcnt_exclude` (P8): the count of `refcnt`, with what was found and changed since [include/linux/mmap_lock.h,
//! mm/mmap_lock.c, 7.3].
//!
//! The argument of `refcnt` holds word for word: one word says both "attached" and "read-locked", R3 acts on its newest
//! value, attach releases and R3 acquires, detach waits for every reader. What is new:
//!
//! The mm of a mistaken reader is pinned. R6's first half moves to right behind R3: if the VMA belongs to another mm, that mm
//! is taken a reference to *before* the count goes down. Until then the raised count keeps that mm's writer in detach, so its
//! exit is not over and the mm is alive; afterwards the reference keeps it alive, and the wake-up goes to a live mm (T6).
//! For all others vm_mm is the reader's own mm, which its caller keeps alive.
//! `vma_start_read()` leaves RCU on every failure, because dropping that reference may end an mm, which is too much work for
//! inside RCU. So each retry enters RCU again, and the walk goes back to the address: nodes it stood on may be gone
//! ([`VmaLock::lookup_again`]). The range is looked at outside RCU, which the count makes good.
//! A writer that waits may be killed ([`VmaLock::vma_start_write_killable`]); fork, which is killed with its caller, uses it.
//!
//! Layout: that of `refcnt`: 192 bytes that begin on a line, 42 in two pages; `vm_lock_seq` (40) in the first, `vm_refcnt`
//! (128) at the head of the third. New are two halves of a page offset, in what was room beside each of the two (44, 132). A
//! mistaken reader writes one line more, that of the other mm's `mm_count`, which has it to itself.
//!
//! Cost: as `refcnt`. R6's first half reads `vm_mm` from the line that R2 brought. A retry costs more: RCU is entered again
//! and the walk begins at the root.
//!
//! Counters: those of `refcnt`; `vma_lock_foreign_mm`, readers that pinned another mm; `lock_next_vma` and
//! `lock_next_vma_fallback`, VMAs that a range walker locked without and with `mmap_lock`.
//!
//! PORT: the writer's wait test is an acquire, the kernel's relaxed; see `refcnt`.

use super::{AbortCause, Claim::*, Claims, Reuse, StartRead, VmaLock, VmaLockEvent, covers, point};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Hardware, Relaxed, smp_rmb};
use crate::cpu::{Cpu, Errno};
use crate::maple_tree::{MaState, mas_set};
use crate::mm::mm_types::{MmRef, VmAreaStruct73, VmaFields, VmaRef};
use crate::mm::vmstat::{vm_warn_on_once, warn_on_once};
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::{Rcuwait, rcuwait_wait_event, rcuwait_wait_event_killable, rcuwait_wake_up};
use std::ptr::NonNull;

/// Bit 30: a writer keeps readers out, or the VMA is on the last step to detached.
pub const VM_REFCNT_EXCLUDE_READERS_FLAG: u32 = 1 << 30;
/// Highest count that readers may reach; the flag is above it.
pub const VM_REFCNT_LIMIT: u32 = VM_REFCNT_EXCLUDE_READERS_FLAG - 1;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct RefcntExclude;

type Vma<A> = VmaRef<A, RefcntExclude>;

#[inline(always)]
fn mm_of<A: Arch>(vma: Vma<A>) -> MmRef<A, RefcntExclude> {
    // SAFETY: callers hold a count of V or its mm's mmap_lock, so V is not freed, vm_mm is that of its life, and that mm
    // is alive: see the module.
    // ORDER: relaxed: R3's acquire brought vm_mm of this life; to a writer mmap_lock did.
    unsafe { KRef::new(NonNull::new_unchecked(vma.vm_mm().load(Relaxed))) }
}

/// `__vma_are_readers_excluded()`, of a count that a reader just left: the flag is set and nobody else reads.
#[inline(always)]
fn vma_are_readers_excluded(refcnt: u32) -> bool {
    refcnt & VM_REFCNT_EXCLUDE_READERS_FLAG != 0 && refcnt <= VM_REFCNT_EXCLUDE_READERS_FLAG + 1
}

/// `vma_refcount_put()`
#[inline(always)]
fn vma_refcount_put<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
    // Before the decrement: afterwards V may be freed and become another VMA.
    let mm = mm_of(vma);
    // ORDER: release, meets the acquire of the writer's wait in vma_start_exclude_readers(): the writer sees what this
    // reader did under the lock.
    let old = vma.vm_refcnt.sub_return_old(cpu, 1);
    if old != 1 && vma_are_readers_excluded(old - 1) {
        cpu.count(VmaLockEvent::ReaderWake);
        A::pause_point(point::WAKE);
        // ORDER: rcuwait_wake_up() begins with a full barrier, meets the one in rcuwait_wait_event(): count and slot
        // cannot both be seen old.
        rcuwait_wake_up(&mm.vma_writer_wait);
    }
}

/// `__vma_start_exclude_readers()`: sets the flag and waits until the readers are gone. `Ok(false)`: V is detached, and
/// nobody can read it.
///
/// # Errors
/// `EINTR` where `killable` and a fatal signal came first; the flag is gone again.
#[inline(never)]
fn vma_start_exclude_readers<A: Arch>(
    cpu: &Cpu<A>,
    vma: Vma<A>,
    detaching: bool,
    killable: bool,
) -> Result<bool, Errno> {
    let target = VM_REFCNT_EXCLUDE_READERS_FLAG + u32::from(!detaching);
    // ORDER: relaxed: the flag only keeps readers out; the wait below is what orders.
    if !vma.vm_refcnt.add_not_zero(cpu, VM_REFCNT_EXCLUDE_READERS_FLAG) {
        if detaching {
            // ORDER: with the look that found 0 an acquire, meets the release of the reader that left last, between our
            // decrement and here. PORT: a control dependency in C, which Rust does not know.
            smp_rmb::<A>();
        }
        return Ok(false);
    }
    A::pause_point(point::WAIT);
    let mut waited = false;
    let alone = || {
        // ORDER: acquire, meets the release in vma_refcount_put(): what readers did under the lock is seen.
        let alone = vma.vm_refcnt.word().load(Acquire) == target;
        waited |= !alone;
        alone
    };
    let mm = mm_of(vma);
    // ORDER: a full barrier between the slot and the look, meets the one in rcuwait_wake_up() of vma_refcount_put().
    let r = if killable {
        rcuwait_wait_event_killable(cpu, &mm.vma_writer_wait, alone)
    } else {
        rcuwait_wait_event(cpu, &mm.vma_writer_wait, alone);
        Ok(())
    };
    if waited {
        cpu.count(if detaching { VmaLockEvent::DetachWait } else { VmaLockEvent::WriterWait });
    }
    if let Err(e) = r {
        let detached = vma_end_exclude_readers(cpu, vma);
        warn_on_once(cpu, detached);
        return Err(e);
    }
    Ok(true)
}

/// `__vma_end_exclude_readers()`: lets readers in again; whether the count hit 0.
#[inline(always)]
fn vma_end_exclude_readers<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) -> bool {
    // ORDER: release, meets the acquire in vma_start_read() (E1).
    vma.vm_refcnt.sub_return_old(cpu, VM_REFCNT_EXCLUDE_READERS_FLAG) == VM_REFCNT_EXCLUDE_READERS_FLAG
}

/// `__vma_exclude_readers_for_detach()`: a reader is between R3 and R4, or one of another mm has not yet noticed.
#[cold]
#[inline(never)]
fn vma_exclude_readers_for_detach<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
    // Not killable, so it cannot fail; where it finds nobody the last reader was quicker.
    if vma_start_exclude_readers(cpu, vma, true, false) == Ok(true) {
        let detached = vma_end_exclude_readers(cpu, vma);
        warn_on_once(cpu, !detached);
    }
}

/// `__vma_start_write()`
#[inline(always)]
fn start_write<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>, seq: u32, killable: bool) -> Result<(), Errno> {
    let locked = vma_start_exclude_readers(cpu, vma, false, killable)?;
    // ORDER: relaxed: R2 may see it at any time; R4 sees it through the count.
    vma.vm_lock_seq().store(seq, Relaxed);
    if locked {
        let detached = vma_end_exclude_readers(cpu, vma);
        warn_on_once(cpu, detached);
    }
    Ok(())
}

/// The section's number, unless the section has the VMA already.
#[inline(always)]
fn seq_to_lock<A: Arch>(vma: Vma<A>) -> Option<u32> {
    // W1. ORDER: relaxed: both words are written under mmap_lock only, which the caller holds for write.
    let seq = mm_of(vma).mm_lock_seq.word().load(Relaxed);
    (vma.vm_lock_seq().load(Relaxed) != seq).then_some(seq)
}

/// `vma_assert_write_locked()`
#[inline(always)]
fn vma_assert_write_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
    // ORDER: both relaxed: as W1 in seq_to_lock().
    vm_warn_on_once(cpu, || vma.vm_lock_seq().load(Relaxed) != mm_of(vma).mm_lock_seq.word().load(Relaxed));
}

/// The end of `vma_start_read()` for a VMA of another mm.
#[cold]
#[inline(never)]
fn put_of_another_mm<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>, mmdrop: impl FnOnce(MmRef<A, RefcntExclude>)) -> StartRead {
    let other = mm_of(vma);
    // The last reference may be ours: not inside RCU.
    rcu_read_unlock(cpu);
    cpu.count(VmaLockEvent::ForeignMm);
    // mmgrab(): before the count goes down, which is all that keeps that mm alive. ORDER: relaxed: the count goes down
    // with a release behind it, and whoever drops the mm's own reference has waited for that.
    other.mm_count.inc(cpu);
    vma_refcount_put(cpu, vma);
    mmdrop(other);
    StartRead::Contended(AbortCause::OtherMm)
}

impl VmaLock for RefcntExclude {
    const NAME: &'static str = "refcnt_exclude";
    const ORIGIN: &'static str = "v7.3";
    const ABOUT: &'static str =
        "the count of 6.15, with the mm of a mistaken reader pinned and waits that can be killed";
    const CLAIMS: Claims = [Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds];
    const REUSE: Reuse = Reuse::Tolerates;
    const DETACH_AT_EXIT: bool = true;
    type Vma<A: Arch> = VmAreaStruct73<A, Self>;
    type WriterWait<A: Arch> = Rcuwait<A>;

    #[inline(always)]
    fn vma_lock_init<A: Arch>(vma: Vma<A>, _constructed: bool) {
        // ORDER: relaxed: the count of a free object is 0 already, or the page is fresh and nobody knows the object.
        vma.vm_refcnt.set(0);
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }

    /// Leaves RCU unless it returns [`StartRead::Locked`].
    #[inline(always)]
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: Vma<A>,
        mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        // R2. ORDER: both relaxed: a hint; V may not even be mm's any more.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
            rcu_read_unlock(cpu);
            return StartRead::Contended(AbortCause::SeqEarly);
        }
        A::pause_point(point::LOCK_WORD);
        // R3. ORDER: acquire, meets the release of vma_mark_attached() and of vma_end_exclude_readers() (E1).
        if let Err(old) = vma.vm_refcnt.inc_not_zero_limited_acquire(cpu, VM_REFCNT_LIMIT) {
            rcu_read_unlock(cpu);
            return if old == 0 { StartRead::Detached } else { StartRead::Contended(AbortCause::Writer) };
        }
        A::pause_point(point::VM_MM);
        // R6, first half. ORDER: relaxed: R3's acquire brought the fields of this life.
        if !Self::vma_is_of(mm, vma) {
            return put_of_another_mm(cpu, vma, mmdrop);
        }
        // R4. ORDER: acquire on mm_lock_seq, meets vma_end_write_all() (E2). vm_lock_seq is relaxed: stable now.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
            vma_refcount_put(cpu, vma);
            rcu_read_unlock(cpu);
            return StartRead::Contended(AbortCause::SeqLate);
        }
        StartRead::Locked
    }

    #[inline(always)]
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: Vma<A>) -> bool {
        // ORDER: relaxed: R3's acquire brought the fields of this life.
        std::ptr::eq(vma.vm_mm().load(Relaxed), mm.as_ptr())
    }

    #[inline(always)]
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) -> bool {
        // ORDER: acquire, as R3. V is attached and no writer is about, so that only too many readers can be in the way.
        vma.vm_refcnt.inc_not_zero_limited_acquire(cpu, VM_REFCNT_LIMIT).is_ok()
    }

    #[inline(always)]
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        vma_refcount_put(cpu, vma);
    }

    #[inline(always)]
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        if let Some(seq) = seq_to_lock(vma) {
            let r = start_write(cpu, vma, seq, false);
            warn_on_once(cpu, r.is_err());
        }
    }

    #[inline(always)]
    fn vma_start_write_killable<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) -> Result<(), Errno> {
        match seq_to_lock(vma) {
            Some(seq) => start_write(cpu, vma, seq, true),
            None => Ok(()),
        }
    }

    #[inline(always)]
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        vma_assert_write_locked(cpu, vma);
        // ORDER: relaxed: no reader can raise a count of 0.
        warn_on_once(cpu, vma.vm_refcnt.read() != 0);
        // ORDER: release, meets R3 of vma_start_read(): whoever sees the count sees every field of this life.
        vma.vm_refcnt.set_release(1);
    }

    #[inline(always)]
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        vma_assert_write_locked(cpu, vma);
        // ORDER: relaxed: only that it is not 0 matters, which is this writer's doing.
        warn_on_once(cpu, vma.vm_refcnt.read() == 0);
        // ORDER: release (acquire at 0): pairs with readers' puts, so that a free object has no reader.
        if !vma.vm_refcnt.dec_and_test(cpu) {
            vma_exclude_readers_for_detach(cpu, vma);
        }
    }

    fn vma_lock_is_free<A: Arch>(vma: Vma<A>) -> bool {
        // ORDER: relaxed: never attached, or detached by this writer, who saw the last reader leave; 0 is final.
        vma.vm_refcnt.read() == 0
    }

    /// Leaves RCU whatever comes out.
    #[inline(always)]
    fn lock_vma_found<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: Vma<A>,
        address: u64,
        mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        match Self::vma_start_read(cpu, mm, vma, mmdrop) {
            StartRead::Locked => {}
            other => return other,
        }
        // R7. The count keeps V from here on.
        rcu_read_unlock(cpu);
        // R6, second half. ORDER: relaxed, as the first.
        if covers::<A, Self>(vma, address) {
            return StartRead::Locked;
        }
        vma_refcount_put(cpu, vma);
        StartRead::Contended(AbortCause::Range)
    }

    #[inline(always)]
    fn lookup_again<A: Hardware>(cpu: &Cpu<A>, mas: &mut MaState<'_, A>, address: u64) {
        rcu_read_lock(cpu);
        mas_set(mas, address);
    }

    #[inline(always)]
    fn lookup_done<A: Arch>(_cpu: &Cpu<A>) {}
}
