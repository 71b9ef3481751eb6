// SPDX-License-Identifier: GPL-2.0-only
//! `refcnt` (P7): one count says both "attached" and "read-locked" [include/linux/mm.h, mm/memory.c, 6.15 as merged;
//! series v10 12/18, 16/18, 17/18].
//!
//! `vm_refcnt`: 0 detached, readers cannot raise it; 1 attached; 1 + r with r readers; plus bit 30 while a writer
//! keeps readers out. A semaphore is not needed: readers never wait, and `mmap_lock` admits one writer per mm, whose
//! sleep slot (`vma_writer_wait`) is in the mm.
//!
//! Why it is right, also in memory that becomes another VMA at once. R3 is a read-modify-write, so it acts on the
//! newest value: 0 is final until an attach, whose release carries every field to R3's acquire. Detach takes the count
//! to 0 and waits for all readers, those of another mm included, so an object that R holds cannot be freed, and what R
//! reads of it (`vm_mm`, range, flags) belongs to one incarnation. A reader whose mm is not V's compares V's sequence
//! with the wrong counter; the result means nothing and harms nothing, because `vm_mm` is compared afterwards. For a
//! reader of V's own mm, R4 is P0's: after the writer left (E1) only the end of the section (E2) lets it pass.
//!
//! Layout: 192 bytes that begin on a line, 42 in two pages. `vm_lock_seq` (40) is in the first line beside the range and
//! `vm_mm`, so that R2 turns away from a locked VMA without the line that readers write. `vm_refcnt` (128) begins the third;
//! behind it are the words of a file's mapping, which an anonymous fault does not touch. `vma_writer_wait` (224) is in the
//! mm's line of `mm_lock_seq` (232), which every fault reads.
//!
//! Cost: a reader writes one line, twice (R3, a load and an exchange; R8, a decrement), and needs no RCU section to let go,
//! because it does not touch V after its decrement. W1 is two more operations on the count, a removal one; both wait where a
//! reader is in. Allocating and freeing touch one object, and no callback follows.
//!
//! Counters: `vma_lock_writer_wait` and `vma_lock_detach_wait`, writers that found readers at their first look, in W1 and
//! at a removal; `vma_lock_reader_wake`, readers that let go under a writer's bit and went to wake it, asleep or not.
//!
//! PORT: the writer's wait test is an acquire. The kernel's is relaxed: its control dependency orders later stores
//! only, so by the letter the writer could miss plain stores that readers made under the lock (T7's word; `anon_vma` has a
//! lock of its own besides).
//!
//! Left as merged, and busted by it (T6; found in July 2025, repaired in `refcnt_exclude`): a mistaken reader of another
//! mm wakes that mm's writer after its decrement, through an mm that may be gone by then. No VMA is locked falsely, so the
//! question of T0 to T5 is not touched; but memory is used after its free. The writer of mm B keeps readers out (OFFSET + 2:
//! attached, and the mistaken reader), the reader counts down (OFFSET + 1) and decides to wake, the writer's first look is
//! content, it never sleeps, unmaps, and B ends. In this port an mm's memory stays readable, so that natively all that comes of
//! it is a look at a stale word.

use super::{AbortCause, Claim::*, Claims, Reuse, StartRead, VmaLock, VmaLockEvent, point};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Relaxed, smp_rmb};
use crate::cpu::Cpu;
use crate::mm::mm_types::{MmRef, MmStruct, VmAreaStruct615, VmaFields, VmaRef};
use crate::mm::vmstat::{vm_warn_on_once, warn_on_once};
use crate::sync::{Rcuwait, rcuwait_wait_event, rcuwait_wake_up};
use std::ptr::NonNull;

/// Added to the count while a writer excludes readers.
pub const VMA_LOCK_OFFSET: u32 = 0x4000_0000;
/// Highest count that readers may reach; a set bit 30 is above it by itself.
pub const VMA_REF_LIMIT: u32 = VMA_LOCK_OFFSET - 1;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Refcnt;

type Vma<A> = VmaRef<A, Refcnt>;

#[inline(always)]
fn mm_of<A: Arch>(vma: Vma<A>) -> KRef<MmStruct<A, Refcnt>> {
    // SAFETY: callers hold a count of V or its mm's mmap_lock, so V is not freed and vm_mm is that of its incarnation;
    // for the mm itself see the module.
    // ORDER: relaxed: R3's acquire brought vm_mm of this incarnation; to a writer mmap_lock did.
    unsafe { KRef::new(NonNull::new_unchecked(vma.vm_mm().load(Relaxed))) }
}

/// `is_vma_writer_only()`: bit 30 is set and no reader is left.
#[inline(always)]
fn is_vma_writer_only(refcnt: u32) -> bool {
    refcnt & VMA_LOCK_OFFSET != 0 && refcnt <= VMA_LOCK_OFFSET + 1
}

/// `vma_refcount_put()`
#[inline(always)]
fn vma_refcount_put<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
    // Before the decrement: afterwards V may be freed and become another VMA.
    let mm = mm_of(vma);
    // ORDER: release, meets the acquire of the writer's wait in vma_enter_locked(): the writer sees what this reader
    // did under the lock.
    let old = vma.vm_refcnt.sub_return_old(cpu, 1);
    if old != 1 && is_vma_writer_only(old - 1) {
        cpu.count(VmaLockEvent::ReaderWake);
        A::pause_point(point::WAKE);
        // ORDER: rcuwait_wake_up() begins with a full barrier, meets the one in rcuwait_wait_event(): count and slot
        // cannot both be seen old.
        rcuwait_wake_up(&mm.vma_writer_wait);
    }
}

/// `__vma_enter_locked()`: excludes readers and waits for those there are. False if V is detached already.
#[inline(never)]
fn vma_enter_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>, detaching: bool) -> bool {
    let target = if detaching { VMA_LOCK_OFFSET } else { VMA_LOCK_OFFSET + 1 };
    // ORDER: relaxed: bit 30 only keeps readers out; the wait below is what orders.
    if !vma.vm_refcnt.add_not_zero(cpu, VMA_LOCK_OFFSET) {
        if detaching {
            // ORDER: with the look that found 0 an acquire, meets the release of the reader that left last, between
            // our decrement and here: what it loaded comes before the object's next life. PORT: a control dependency
            // in C, which Rust does not know.
            smp_rmb::<A>();
        }
        return false;
    }
    A::pause_point(point::WAIT);
    let mut waited = false;
    // ORDER: acquire, meets the release in vma_refcount_put(): what readers did under the lock is seen. See PORT above.
    // The wait has a full barrier between its slot and this look, meets the one in rcuwait_wake_up().
    rcuwait_wait_event(cpu, &mm_of(vma).vma_writer_wait, || {
        let alone = vma.vm_refcnt.word().load(Acquire) == target;
        waited |= !alone;
        alone
    });
    if waited {
        cpu.count(if detaching { VmaLockEvent::DetachWait } else { VmaLockEvent::WriterWait });
    }
    true
}

/// `__vma_exit_locked()`: lets readers in again; returns whether the count hit 0.
#[inline(always)]
fn vma_exit_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) -> bool {
    // ORDER: release, meets the acquire in vma_start_read() (E1).
    vma.vm_refcnt.sub_return_old(cpu, VMA_LOCK_OFFSET) == VMA_LOCK_OFFSET
}

/// `vma_assert_write_locked()`
#[inline(always)]
fn vma_assert_write_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
    // ORDER: both relaxed: as W1.
    vm_warn_on_once(cpu, || vma.vm_lock_seq().load(Relaxed) != mm_of(vma).mm_lock_seq.word().load(Relaxed));
}

impl VmaLock for Refcnt {
    const NAME: &'static str = "refcnt";
    const ORIGIN: &'static str = "v6.15";
    const ABOUT: &'static str = "one count for attached and read-locked; detach waits for every reader";
    const CLAIMS: Claims = [Holds, Holds, Holds, Holds, Holds, Holds, Busted, Holds, Holds, Holds];
    const REUSE: Reuse = Reuse::Tolerates;
    const DETACH_AT_EXIT: bool = true;
    type Vma<A: Arch> = VmAreaStruct615<A, Self>;
    type WriterWait<A: Arch> = Rcuwait<A>;

    #[inline(always)]
    fn vma_lock_init<A: Arch>(vma: Vma<A>, _constructed: bool) {
        // ORDER: relaxed: the count of a free object is 0 already, or the page is fresh and nobody knows the object.
        vma.vm_refcnt.set(0);
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
    }

    #[inline(always)]
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: Vma<A>,
        _mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        // R2. ORDER: both relaxed: a hint; V may not even be mm's any more.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
            return StartRead::Contended(AbortCause::SeqEarly);
        }
        A::pause_point(point::LOCK_WORD);
        // R3. ORDER: acquire, meets the release of vma_mark_attached() and of vma_exit_locked() (E1).
        match vma.vm_refcnt.inc_not_zero_limited_acquire(cpu, VMA_REF_LIMIT) {
            Ok(_) => {}
            Err(0) => return StartRead::Detached,
            Err(_) => return StartRead::Contended(AbortCause::Writer),
        }
        // R4. ORDER: acquire on mm_lock_seq, meets vma_end_write_all() (E2). vm_lock_seq is relaxed: stable now.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
            vma_refcount_put(cpu, vma);
            return StartRead::Contended(AbortCause::SeqLate);
        }
        A::pause_point(point::VM_MM);
        StartRead::Locked
    }

    #[inline(always)]
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: Vma<A>) -> bool {
        // ORDER: relaxed: R3's acquire brought the fields of this incarnation.
        std::ptr::eq(vma.vm_mm().load(Relaxed), mm.as_ptr())
    }

    #[inline(always)]
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) -> bool {
        // ORDER: acquire, as R3. V is attached and no writer is about, so that only too many readers can be in the way.
        vma.vm_refcnt.inc_not_zero_limited_acquire(cpu, VMA_REF_LIMIT).is_ok()
    }

    #[inline(always)]
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        vma_refcount_put(cpu, vma);
    }

    #[inline(always)]
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        // W1. ORDER: relaxed: both words are written under mmap_lock only, which the caller holds for write.
        let seq = mm_of(vma).mm_lock_seq.word().load(Relaxed);
        if vma.vm_lock_seq().load(Relaxed) == seq {
            return;
        }
        let locked = vma_enter_locked(cpu, vma, false);
        // ORDER: relaxed: R2 may see it at any time; R4 sees it through the count.
        vma.vm_lock_seq().store(seq, Relaxed);
        if locked {
            let detached = vma_exit_locked(cpu, vma);
            warn_on_once(cpu, detached);
        }
    }

    #[inline(always)]
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        vma_assert_write_locked(cpu, vma);
        // ORDER: relaxed: no reader can raise a count of 0.
        warn_on_once(cpu, vma.vm_refcnt.read() != 0);
        // ORDER: release, meets R3 of vma_start_read(): whoever sees the count sees every field of this incarnation.
        vma.vm_refcnt.set_release(1);
    }

    #[inline(always)]
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A>) {
        vma_assert_write_locked(cpu, vma);
        // ORDER: relaxed: only that it is not 0 matters, which is this writer's doing.
        warn_on_once(cpu, vma.vm_refcnt.read() == 0);
        // ORDER: release (acquire at 0): pairs with readers' puts, so that a free object has no reader.
        if !vma.vm_refcnt.dec_and_test(cpu) {
            // A reader between R3 and R4, or one of another mm, holds it for a moment.
            if vma_enter_locked(cpu, vma, true) {
                let detached = vma_exit_locked(cpu, vma);
                warn_on_once(cpu, !detached);
            }
        }
    }

    fn vma_lock_is_free<A: Arch>(vma: Vma<A>) -> bool {
        // ORDER: relaxed: never attached, or detached by this writer, who saw the last reader leave; 0 is final.
        vma.vm_refcnt.read() == 0
    }
}
