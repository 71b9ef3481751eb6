// SPDX-License-Identifier: GPL-2.0-only
//! What the protocols with a reader/writer semaphore inside the VMA share [series v5 of 2024-12-06, 1/6 to 4/6].
//!
//! A member of the family is a file with a type that says what varies ([`Member`]): whether memory may be reused, whether
//! W1 may skip the semaphore, how a VMA is marked detached, and what its free stores. Everything else is here, so that
//! two members differ by what their files say and by nothing else. The layout is `VmAreaStructV5`: 256 bytes, the
//! semaphore alone in the last line.
//!
//! Constructor rules. In typesafe memory the semaphore, `detached`, `vm_lock_seq` and the chain's head are set once per
//! slab page, when nobody can know the object; allocating and duplicating leave them alone, because a stale reader may
//! be taking or holding that very semaphore. A freed object is detached, its chain is empty, and its semaphore is free
//! but for stale readers between R3 and R5 (or R6), who let go of it by themselves. Where memory waits for a grace
//! period nobody is left, and the same fields are set at each allocation, as v5 1/6 does.
//!
//! INVARIANT: `detached` is true from the constructor (or allocation) on, false from right after the store into the tree
//! (or before it, where the store cannot fail) until the removal from it.
//!
//! Layout, by line of 64 bytes: in the first what a walk and a fault read (`vm_start` to `vm_flags`, `detached`, `vm_lock_seq`); the
//! semaphore, 40 bytes, in the fourth, so that readers who count themselves in and out take no line from those who only
//! look. Counters: those of the last paragraph; for a reader who gives up, the cause
//! ([`AbortCause`]). Cost: two locked instructions a lookup, one pass through the semaphore for each VMA
//! that a section write-locks first.
//!
//! PORT: the wait of a writer for readers is counted ([`VmaLockEvent::WriterWait`], [`VmaLockEvent::DetachWait`]), for which a
//! contended writer tries the semaphore once more than in C: one failed exchange in front of a sleep.

use super::{AbortCause, Claims, Reuse, StartRead, VmaLock, VmaLockEvent, point};
use crate::arch::arena::KRef;
use crate::arch::{Arch, Hardware, Relaxed, smp_rmb, smp_wmb};
use crate::cpu::Cpu;
use crate::mm::mm_types::{MmRef, VmAreaStructV5, VmaFields, VmaRef};
use crate::mm::vmstat::vm_warn_on_once;
use crate::rcu::{rcu_read_lock, rcu_read_unlock};
use crate::sync::{RwSemaphore, down_read, down_read_trylock, down_write, down_write_trylock, up_read, up_write};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// What a member of the family says of itself. Constants as in [`VmaLock`].
pub trait Member: Copy + Send + Sync + Debug + 'static {
    /// Slug.
    const NAME: &'static str;
    /// Kernel version or message-id.
    const ORIGIN: &'static str;
    /// One sentence.
    const ABOUT: &'static str;
    /// What it does in each scenario.
    const CLAIMS: Claims;
    /// What it bears from the allocator. Where it tolerates reuse, readers compare `vm_mm`, use their own mm's sequence,
    /// and look at `detached` with a barrier behind; attaching has one before.
    const REUSE: Reuse = Reuse::Tolerates;
    /// Whether W1 may skip the semaphore.
    const EARLY_EXIT: bool = true;
    /// In front of the store that attaches, which may be of a VMA that this very section has detached
    /// (`reattach_vmas()`): what it takes for the section to have it write-locked.
    #[inline(always)]
    fn before_attach<A: Arch>(_cpu: &Cpu<A>, _vma: Vma<A, Self>) {}
    /// W3.
    #[inline(always)]
    fn mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        mark_detached_plain(cpu, vma);
    }
    /// W5: what the free stores.
    #[inline(always)]
    fn freed<A: Arch>(_cpu: &Cpu<A>, _vma: Vma<A, Self>) {}
}

/// The protocol of member `M`.
#[derive(Clone, Copy, Debug)]
pub struct Rwsem<M>(PhantomData<M>);

/// A VMA of member `M`.
pub type Vma<A, M> = VmaRef<A, Rwsem<M>>;

const fn reused<M: Member>() -> bool {
    matches!(M::REUSE, Reuse::Tolerates)
}

#[inline(always)]
fn mm_of<A: Arch, M: Member>(vma: Vma<A, M>) -> MmRef<A, Rwsem<M>> {
    // SAFETY: called by the writer that has V (vm_mm is its own mm, which is alive), or by a reader where vm_mm never
    // changes while V can be found.
    // ORDER: relaxed: for the writer by mmap_lock, for that reader by the walk that found V, an acquire.
    unsafe { KRef::new(NonNull::new_unchecked(vma.vm_mm().load(Relaxed))) }
}

/// `down_write()` that counts as `wait` where it had to wait.
#[inline(always)]
pub(super) fn down_write_counted<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, wait: VmaLockEvent) {
    // ORDER: acquire: for whom, callers say.
    if !down_write_trylock(cpu, sem) {
        down_write_contended(cpu, sem, wait);
    }
}

#[cold]
#[inline(never)]
fn down_write_contended<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, wait: VmaLockEvent) {
    cpu.count(wait);
    // ORDER: acquire, as the trylock's.
    down_write(cpu, sem);
}

/// `vma_assert_write_locked()`
#[inline(always)]
pub(super) fn assert_write_locked<A: Arch, M: Member>(cpu: &Cpu<A>, vma: Vma<A, M>) {
    // ORDER: relaxed: as W1 of vma_start_write().
    vm_warn_on_once(cpu, || vma.vm_lock_seq().load(Relaxed) != mm_of(vma).mm_lock_seq.word().load(Relaxed));
}

/// W3 as posted: a flag, and nothing that keeps readers of other mms away.
#[inline(always)]
pub(super) fn mark_detached_plain<A: Arch, M: Member>(cpu: &Cpu<A>, vma: Vma<A, M>) {
    assert_write_locked(cpu, vma);
    // ORDER: relaxed: reaches a reader of this mm by E2, and no other.
    vma.detached.store(1, Relaxed);
}

/// What the constructor sets, and where memory is not typesafe each allocation.
fn construct<A: Arch, M: Member>(vma: &VmAreaStructV5<A, Rwsem<M>>) {
    // ORDER: relaxed: nobody knows the object yet; the store into the tree publishes it.
    vma.detached.store(1, Relaxed);
    vma.vm_lock_seq().store(u32::MAX, Relaxed);
    vma.vm_lock.init_rwsem();
    vma.anon_vma_chain().init();
}

/// `vm_area_ctor()`
///
/// # Safety
/// `p` is a fresh object of the cache of VMAs of member `M`.
unsafe fn vm_area_ctor<A: Hardware, M: Member>(p: *mut u8) {
    // SAFETY: the caller's; all fields are words that any bytes fit, and the free pointer's is left alone.
    construct::<A, M>(unsafe { &*p.cast::<VmAreaStructV5<A, Rwsem<M>>>() });
}

impl<M: Member> VmaLock for Rwsem<M> {
    const NAME: &'static str = M::NAME;
    const ORIGIN: &'static str = M::ORIGIN;
    const ABOUT: &'static str = M::ABOUT;
    const CLAIMS: Claims = M::CLAIMS;
    const REUSE: Reuse = M::REUSE;
    // v5 4/6 marks every VMA detached before it is freed, at exit without taking any lock for it.
    const DETACH_AT_EXIT: bool = reused::<M>();
    const EARLY_EXIT: bool = M::EARLY_EXIT;
    type Vma<A: Arch> = VmAreaStructV5<A, Self>;
    type WriterWait<A: Arch> = ();

    fn vma_ctor<A: Hardware>() -> Option<unsafe fn(*mut u8)> {
        Some(vm_area_ctor::<A, M>)
    }

    #[inline(always)]
    fn vma_lock_init<A: Arch>(vma: Vma<A, M>, constructed: bool) {
        if !constructed {
            construct::<A, M>(&vma);
        }
    }

    #[inline(always)]
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: Vma<A, M>,
        _mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        // V may be another mm's by now, whose mm may be gone: v5 4/6 compares with the caller's.
        let mm = if reused::<M>() { mm } else { mm_of(vma) };
        // R2. ORDER: both relaxed: a hint, wrong either way it costs a fallback or a trylock.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
            return StartRead::Contended(AbortCause::SeqEarly);
        }
        A::pause_point(point::LOCK_WORD);
        // R3. ORDER: the trylock's acquire meets up_write() of vma_start_write() (E1), and of a locked detach.
        if !down_read_trylock(cpu, &vma.vm_lock) {
            return StartRead::Contended(AbortCause::Writer);
        }
        // R4. ORDER: acquire on mm_lock_seq, meets vma_end_write_all() (E2): whoever sees the section ended sees all it
        // did. vm_lock_seq is relaxed: stable under the read lock against this mm's writers; what a free stores into it
        // is not, and a reader may see that without seeing anything else.
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
            // ORDER: release, meets down_write() of a writer that waits, as vma_end_read().
            up_read(cpu, &vma.vm_lock);
            return StartRead::Contended(AbortCause::SeqLate);
        }
        A::pause_point(point::DETACHED);
        // R5. ORDER: relaxed, by E2; in typesafe memory a read barrier behind it, meets the write barrier of
        // vma_mark_attached(): whoever sees V attached sees vm_mm and range of that life, or of a later one.
        let detached = vma.detached.load(Relaxed) != 0;
        if reused::<M>() {
            smp_rmb::<A>();
        }
        if detached {
            Self::vma_end_read(cpu, vma);
            return StartRead::Detached;
        }
        A::pause_point(point::VM_MM);
        StartRead::Locked
    }

    #[inline(always)]
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: Vma<A, M>) -> bool {
        // ORDER: relaxed: by E2, or R5's barrier.
        !reused::<M>() || std::ptr::eq(vma.vm_mm().load(Relaxed), mm.as_ptr())
    }

    #[inline(always)]
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, M>) -> bool {
        // ORDER: acquire, meets up_write() of vma_start_write(). No writer of this mm is about; one of another cannot
        // have V, which is attached here.
        down_read(cpu, &vma.vm_lock);
        true
    }

    #[inline(always)]
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, M>) {
        // Once the count drops, a writer may detach and free V: RCU keeps its memory while up_read() touches it.
        rcu_read_lock(cpu);
        // ORDER: release, meets down_write() of vma_start_write().
        up_read(cpu, &vma.vm_lock);
        rcu_read_unlock(cpu);
    }

    #[inline(always)]
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, M>) {
        // W1. ORDER: relaxed: both words are written under mmap_lock only, which the caller holds for write.
        let seq = mm_of(vma).mm_lock_seq.word().load(Relaxed);
        if M::EARLY_EXIT && vma.vm_lock_seq().load(Relaxed) == seq {
            return;
        }
        // ORDER: acquire, meets up_read() of vma_end_read(): what readers did under the lock is seen.
        down_write_counted(cpu, &vma.vm_lock, VmaLockEvent::WriterWait);
        // ORDER: relaxed: R2 may see it at any time; R4 sees it through the semaphore.
        vma.vm_lock_seq().store(seq, Relaxed);
        // ORDER: release, meets the trylock of vma_start_read() (E1).
        up_write(cpu, &vma.vm_lock);
    }

    #[inline(always)]
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, M>) {
        M::before_attach(cpu, vma);
        if reused::<M>() {
            // ORDER: write barrier, meets the read barrier behind R5: vm_mm and range come before the flag.
            smp_wmb::<A>();
        }
        // ORDER: relaxed: reaches a reader of this mm by E2.
        vma.detached.store(0, Relaxed);
    }

    #[inline(always)]
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, M>) {
        M::mark_detached(cpu, vma);
    }

    #[inline(always)]
    fn vma_freed<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, M>) {
        M::freed(cpu, vma);
    }

    fn vma_lock_is_free<A: Arch>(vma: Vma<A, M>) -> bool {
        // Not the semaphore: a stale reader may have it for a moment.
        // ORDER: relaxed: the store was this writer's, or came before the object was its.
        vma.detached.load(Relaxed) != 0
    }
}
