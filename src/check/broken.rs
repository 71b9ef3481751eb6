// SPDX-License-Identifier: GPL-2.0-only
//! `refcnt` and one of the rwsem family with one line wrong: each must be caught by a scenario, else the scenarios would not
//! notice it in a protocol of somebody else's either. Where one invariant alone can notice, it must be that one. The same two
//! with nothing wrong must pass: else it is not the line that is caught.
//!
//! Orders that are taken away are `audit.rs`'s; these are lines that do something else, or nothing.

use super::*;
use crate::arch::Relaxed;
use crate::arch::arena::KRef;
use crate::mm::mm_types::{MmRef, VmAreaStruct73, VmAreaStruct615, VmaFields, VmaRef};
use crate::mm::vma_lock::refcnt::{Refcnt, VMA_LOCK_OFFSET, VMA_REF_LIMIT};
use crate::mm::vma_lock::refcnt_exclude::{RefcntExclude, VM_REFCNT_LIMIT};
use crate::mm::vma_lock::rwsem::{Member, Rwsem, Vma};
use crate::mm::vma_lock::{AbortCause, Claim::*, Claims, Reuse, StartRead, point};
use crate::rcu::rcu_read_unlock;
use crate::sync::{down_write, down_write_trylock, up_write};

/// What is wrong. The number is `Broken`'s.
const LINES: [&str; 14] = [
    "R4 is left out",
    "R6 does not look at the mm",
    "R6 does not look at the range",
    "W1 waits for nobody",
    "W1 leaves no mark",
    "detach waits for nobody",
    "the last reader wakes nobody",
    "readers get in while a writer keeps them out",
    "a VMA counts as attached from its allocation on",
    "readers take a detached VMA, too",
    "W1 changes the rights before it has waited",
    "readers do not count themselves",
    "a reader that finds another range keeps the lock",
    "a free initialises the count, and does not look at it",
];
/// Nothing.
const NOTHING: usize = LINES.len();

/// `refcnt` with line `B` of [`LINES`] wrong.
#[derive(Clone, Copy, Debug)]
struct Broken<const B: usize>;

fn vma_of<A: Arch, const B: usize>(v: VmaRef<A, Broken<B>>) -> VmaRef<A, Refcnt> {
    // SAFETY: the two differ by a type that only pointers to the mm have in them.
    unsafe { KRef::new(std::ptr::NonNull::new_unchecked(v.as_ptr().cast())) }
}

fn mm_of<A: Arch, const B: usize>(mm: MmRef<A, Broken<B>>) -> MmRef<A, Refcnt> {
    // SAFETY: as above; what waits in the mm is the same.
    unsafe { KRef::new(std::ptr::NonNull::new_unchecked(mm.as_ptr().cast())) }
}

impl<const B: usize> VmaLock for Broken<B> {
    const NAME: &'static str = "broken";
    const ORIGIN: &'static str = "a test";
    const ABOUT: &'static str = "refcnt with a line wrong";
    const CLAIMS: Claims = [Busted; 10];
    const REUSE: Reuse = Reuse::Tolerates;
    const DETACH_AT_EXIT: bool = true;
    type Vma<A: Arch> = VmAreaStruct615<A, Self>;
    type WriterWait<A: Arch> = <Refcnt as VmaLock>::WriterWait<A>;

    fn vma_lock_init<A: Arch>(vma: VmaRef<A, Self>, constructed: bool) {
        Refcnt::vma_lock_init(vma_of(vma), constructed);
        if B == 8 {
            vma.vm_refcnt.set(1);
        }
    }
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: VmaRef<A, Self>,
        _: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        match B {
            0 | 7 => {
                let limit = if B == 7 { 2 * VMA_LOCK_OFFSET } else { VMA_REF_LIMIT };
                if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
                    return StartRead::Contended(AbortCause::SeqEarly);
                }
                A::pause_point(point::LOCK_WORD);
                match vma.vm_refcnt.inc_not_zero_limited_acquire(cpu, limit) {
                    Ok(_) => {}
                    Err(0) => return StartRead::Detached,
                    Err(_) => return StartRead::Contended(AbortCause::Writer),
                }
                if B == 7 && vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
                    Refcnt::vma_end_read(cpu, vma_of(vma));
                    return StartRead::Contended(AbortCause::SeqLate);
                }
                A::pause_point(point::VM_MM);
                StartRead::Locked
            }
            11 => match Refcnt::vma_start_read(cpu, mm_of(mm), vma_of(vma), |_| ()) {
                StartRead::Locked => {
                    Refcnt::vma_end_read(cpu, vma_of(vma));
                    StartRead::Locked
                }
                other => other,
            },
            9 => {
                if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
                    return StartRead::Contended(AbortCause::SeqEarly);
                }
                vma.vm_refcnt.word().fetch_add(1, crate::arch::Acquire);
                if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
                    Refcnt::vma_end_read(cpu, vma_of(vma));
                    return StartRead::Contended(AbortCause::SeqLate);
                }
                A::pause_point(point::VM_MM);
                StartRead::Locked
            }
            _ => Refcnt::vma_start_read(cpu, mm_of(mm), vma_of(vma), |_| ()),
        }
    }
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: VmaRef<A, Self>) -> bool {
        B == 1 || Refcnt::vma_is_of(mm_of(mm), vma_of(vma))
    }
    fn lock_vma_found<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: VmaRef<A, Self>,
        address: u64,
        mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        let found = Self::vma_start_read(cpu, mm, vma, mmdrop);
        if found != StartRead::Locked {
            return found;
        }
        let covers = B == 2 || (vma.vm_start().load(Relaxed)..vma.vm_end().load(Relaxed)).contains(&address);
        let cause = match Self::vma_is_of(mm, vma) {
            true if covers => return StartRead::Locked,
            true if B == 12 => return StartRead::Contended(AbortCause::Range),
            true => AbortCause::Range,
            false => AbortCause::OtherMm,
        };
        Self::vma_end_read(cpu, vma);
        StartRead::Contended(cause)
    }
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) -> bool {
        Refcnt::vma_start_read_locked(cpu, vma_of(vma))
    }
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        match B {
            6 => _ = vma.vm_refcnt.sub_return_old(cpu, 1),
            11 => {}
            _ => Refcnt::vma_end_read(cpu, vma_of(vma)),
        }
    }
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        // SAFETY: the writer's own mm.
        let mm = unsafe { &*vma.vm_mm().load(Relaxed) };
        match B {
            3 => vma.vm_lock_seq().store(mm.mm_lock_seq.word().load(Relaxed), Relaxed),
            4 => {
                let before = vma.vm_lock_seq().load(Relaxed);
                Refcnt::vma_start_write(cpu, vma_of(vma));
                vma.vm_lock_seq().store(before, Relaxed);
            }
            10 => {
                vma.vm_page_prot().store(mm.mm_lock_seq.word().load(Relaxed).into(), Relaxed);
                Refcnt::vma_start_write(cpu, vma_of(vma));
            }
            _ => Refcnt::vma_start_write(cpu, vma_of(vma)),
        }
    }
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        match B {
            4 => vma.vm_refcnt.set_release(1),
            8 => {}
            _ => Refcnt::vma_mark_attached(cpu, vma_of(vma)),
        }
    }
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        match B {
            5 | 13 => _ = vma.vm_refcnt.sub_return_old(cpu, 1),
            4 => {
                // With the mark, so that the assertion is content.
                // SAFETY: the writer's own mm.
                let mm = unsafe { &*vma.vm_mm().load(Relaxed) };
                vma.vm_lock_seq().store(mm.mm_lock_seq.word().load(Relaxed), Relaxed);
                Refcnt::vma_mark_detached(cpu, vma_of(vma));
                vma.vm_lock_seq().store(u32::MAX, Relaxed);
            }
            _ => Refcnt::vma_mark_detached(cpu, vma_of(vma)),
        }
    }
    fn vma_freed<A: Arch>(_cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        if B == 13 {
            vma.vm_refcnt.set(0);
        }
    }
    fn vma_lock_is_free<A: Arch>(vma: VmaRef<A, Self>) -> bool {
        matches!(B, 5 | 13) || Refcnt::vma_lock_is_free(vma_of(vma))
    }
}

/// How the detach of a copy of `rwsem_detach_locked_reset` goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detach {
    /// Not at all.
    Right,
    /// It lets go of the semaphore before it stores.
    StoresTooLate,
    /// It only tries the semaphore.
    OnlyTries,
    /// It does not let go of it.
    Keeps,
    /// The attach of a VMA that was put back does not write-lock it.
    NoRelock,
}

fn detach<A: Arch, M: Member>(cpu: &Cpu<A>, vma: Vma<A, M>, how: Detach) {
    let got = match how {
        Detach::OnlyTries => down_write_trylock(cpu, &vma.vm_lock),
        _ => {
            down_write(cpu, &vma.vm_lock);
            true
        }
    };
    if how == Detach::StoresTooLate {
        up_write(cpu, &vma.vm_lock);
    }
    vma.detached.store(1, Relaxed);
    vma.vm_lock_seq().store(u32::MAX, Relaxed);
    if got && matches!(how, Detach::Right | Detach::OnlyTries | Detach::NoRelock) {
        up_write(cpu, &vma.vm_lock);
    }
}

macro_rules! member {
    ($t:ident, $how:ident, $init:literal) => {
        /// `rwsem_detach_locked_reset` with a line wrong.
        #[derive(Clone, Copy, Debug)]
        struct $t;
        impl Member for $t {
            const NAME: &'static str = "broken";
            const ORIGIN: &'static str = "a test";
            const ABOUT: &'static str = "rwsem_detach_locked_reset with a line wrong";
            const CLAIMS: Claims = [Busted; 10];
            fn before_attach<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
                if Detach::$how != Detach::NoRelock {
                    Rwsem::<Self>::vma_start_write(cpu, vma);
                }
            }
            fn mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
                detach(cpu, vma, Detach::$how);
            }
            fn freed<A: Arch>(_cpu: &Cpu<A>, vma: Vma<A, Self>) {
                if $init {
                    vma.vm_lock.init_rwsem();
                }
            }
        }
    };
}
member!(NothingWrong, Right, false);
member!(StoresTooLate, StoresTooLate, false);
member!(OnlyTries, OnlyTries, false);
member!(KeepsIt, Keeps, false);
member!(InitAtFree, Right, true);
member!(NoRelock, NoRelock, false);

/// How a scenario fails, if it does.
///
/// # Panics
/// Where it fails by anything that is no invariant.
fn fails<L: VmaLock>(id: &str) -> Option<(String, String)> {
    let s = shown_of::<L>(&Request::new(L::NAME, id, Bound::QUICK));
    assert!(s.shown.is_some(), "{s:?}");
    s.wrong.map(|w| (id.to_string(), w.message))
}

/// The first scenario that fails, and how.
fn noticed<L: VmaLock>() -> Option<(String, String)> {
    // What they are made of is busted in T6 by itself.
    SCENARIOS.iter().filter(|(id, _)| *id != "T6").find_map(|(id, _)| fails::<L>(id))
}

/// `refcnt_exclude` with the two steps of its repair in this order.
#[derive(Clone, Copy, Debug)]
struct Repair<const PUT_FIRST: bool>;

fn vma_of_exclude<A: Arch, const P: bool>(v: VmaRef<A, Repair<P>>) -> VmaRef<A, RefcntExclude> {
    // SAFETY: the two differ by a type that only pointers to the mm have in them.
    unsafe { KRef::new(std::ptr::NonNull::new_unchecked(v.as_ptr().cast())) }
}

fn mm_of_exclude<A: Arch, const P: bool>(mm: MmRef<A, Repair<P>>) -> MmRef<A, RefcntExclude> {
    // SAFETY: as above; what waits in the mm is the same.
    unsafe { KRef::new(std::ptr::NonNull::new_unchecked(mm.as_ptr().cast())) }
}

impl<const P: bool> VmaLock for Repair<P> {
    const NAME: &'static str = "broken";
    const ORIGIN: &'static str = "a test";
    const ABOUT: &'static str = "refcnt_exclude with two lines the other way round";
    const CLAIMS: Claims = [Holds; 10];
    const REUSE: Reuse = Reuse::Tolerates;
    const DETACH_AT_EXIT: bool = true;
    type Vma<A: Arch> = VmAreaStruct73<A, Self>;
    type WriterWait<A: Arch> = <RefcntExclude as VmaLock>::WriterWait<A>;

    fn vma_lock_init<A: Arch>(vma: VmaRef<A, Self>, constructed: bool) {
        RefcntExclude::vma_lock_init(vma_of_exclude(vma), constructed);
    }
    fn vma_start_read<A: Arch>(
        cpu: &Cpu<A>,
        mm: MmRef<A, Self>,
        vma: VmaRef<A, Self>,
        mmdrop: impl FnOnce(MmRef<A, Self>),
    ) -> StartRead {
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.word().load(Relaxed) {
            rcu_read_unlock(cpu);
            return StartRead::Contended(AbortCause::SeqEarly);
        }
        if let Err(old) = vma.vm_refcnt.inc_not_zero_limited_acquire(cpu, VM_REFCNT_LIMIT) {
            rcu_read_unlock(cpu);
            return if old == 0 { StartRead::Detached } else { StartRead::Contended(AbortCause::Writer) };
        }
        A::pause_point(point::VM_MM);
        if !Self::vma_is_of(mm, vma) {
            // SAFETY: the count keeps that mm, for so long.
            let other = unsafe { KRef::new(std::ptr::NonNull::new_unchecked(vma.vm_mm().load(Relaxed))) };
            rcu_read_unlock(cpu);
            if P {
                Self::vma_end_read(cpu, vma);
                other.mm_count.inc(cpu);
            } else {
                other.mm_count.inc(cpu);
                Self::vma_end_read(cpu, vma);
            }
            mmdrop(other);
            return StartRead::Contended(AbortCause::OtherMm);
        }
        if vma.vm_lock_seq().load(Relaxed) == mm.mm_lock_seq.raw_read() {
            Self::vma_end_read(cpu, vma);
            rcu_read_unlock(cpu);
            return StartRead::Contended(AbortCause::SeqLate);
        }
        rcu_read_unlock(cpu);
        StartRead::Locked
    }
    fn lookup_done<A: Arch>(_cpu: &Cpu<A>) {}
    fn vma_is_of<A: Arch>(mm: MmRef<A, Self>, vma: VmaRef<A, Self>) -> bool {
        RefcntExclude::vma_is_of(mm_of_exclude(mm), vma_of_exclude(vma))
    }
    fn vma_start_read_locked<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) -> bool {
        RefcntExclude::vma_start_read_locked(cpu, vma_of_exclude(vma))
    }
    fn vma_end_read<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        RefcntExclude::vma_end_read(cpu, vma_of_exclude(vma));
    }
    fn vma_start_write<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        RefcntExclude::vma_start_write(cpu, vma_of_exclude(vma));
    }
    fn vma_mark_attached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        RefcntExclude::vma_mark_attached(cpu, vma_of_exclude(vma));
    }
    fn vma_mark_detached<A: Arch>(cpu: &Cpu<A>, vma: VmaRef<A, Self>) {
        RefcntExclude::vma_mark_detached(cpu, vma_of_exclude(vma));
    }
    fn vma_lock_is_free<A: Arch>(vma: VmaRef<A, Self>) -> bool {
        RefcntExclude::vma_lock_is_free(vma_of_exclude(vma))
    }
}

/// The mistaken reader must pin the other mm before it counts down, not behind.
#[test]
fn the_pin_comes_before_the_put() {
    assert_eq!(fails::<Repair<false>>("T6"), None);
    let (_, how) = fails::<Repair<true>>("T6").expect("the mm is gone when it is pinned");
    assert!(how.starts_with("I9"), "{how}");
}

macro_rules! all {
    ($($b:literal)*) => { vec![$((LINES[$b], noticed::<Broken<$b>>())),*] };
}

#[test]
fn a_line_that_is_wrong_is_noticed() {
    let mut rows = all![0 1 2 3 4 5 6 7 8 9 10 11 12 13];
    rows.push(("the detach lets go of the semaphore before it stores", noticed::<Rwsem<StoresTooLate>>()));
    rows.push(("the detach does not wait for the semaphore", noticed::<Rwsem<OnlyTries>>()));
    rows.push((KEEPS, noticed::<Rwsem<KeepsIt>>()));
    rows.push((INIT, noticed::<Rwsem<InitAtFree>>()));
    rows.push((NO_RELOCK, noticed::<Rwsem<NoRelock>>()));
    for (what, how) in &rows {
        println!("{what}: {how:?}");
    }
    let missed: Vec<_> = rows.iter().filter(|r| r.1.is_none()).map(|r| r.0).collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
    for (what, invariant) in BY {
        let (_, how) = rows.iter().find(|r| r.0 == what).expect("a row");
        let (_, message) = how.as_ref().expect("noticed");
        assert!(message.starts_with(invariant), "{what}: by {message}, not by {invariant}");
    }
}

const KEEPS: &str = "the detach keeps the semaphore";
const INIT: &str = "a free initialises the semaphore";
const NO_RELOCK: &str = "a VMA that is put back has lost the section's mark";
/// Lines that one invariant is there for.
const BY: [(&str, &str); 6] = [
    (LINES[10], "I5: range, flags or page_prot"),
    (LINES[11], "I7"),
    (LINES[12], "I8"),
    (LINES[13], "I12"),
    (KEEPS, "I8"),
    (NO_RELOCK, "I3"),
];

/// The very copies that the lines are taken out of.
#[test]
fn where_nothing_is_wrong_nothing_is_noticed() {
    assert_eq!(noticed::<Broken<NOTHING>>(), None);
    assert_eq!(noticed::<Rwsem<NothingWrong>>(), None);
}
