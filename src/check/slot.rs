// SPDX-License-Identifier: GPL-2.0-only
//! The small kernel of the scenarios: one place for a VMA, up to three address spaces, and beside them what is true of the
//! VMA whoever may believe otherwise (the ghost words of vma-locks.md 5), which protocol code never reads.
//!
//! Real: the protocol, its lock word, `mmap_lock`, the sequence, sleeping and waking. Stood in for: the tree walk (a reader
//! has found the VMA before it begins), the allocator (one place, handed out again at once, the free pointer over
//! `vm_start`: the way of a CPU's own freelist, which orders nothing. From CPU to CPU memory goes by a slab's record, with the
//! port's own exchange loops, `small_slab.rs`), RCU's grace period (memory that waits for one is
//! handed out when the reader that found the VMA has left its section, and that reader must have met one life in it; the section
//! in which it lets go of the lock is waited for, too).
//!
//! Nothing here is inlined: with fourteen protocols, two worlds and a dozen cases that took the compiler longer than all the rest.
//!
//! Of the invariants of vma-locks.md 5, a reader that has the lock looks at I1 to I5 and I7, at once and before it lets go; the
//! frees and inits of a life are looked at for I12, the end of an execution for I8 and I10, a poisoned mm is I9
//! (`stepped.rs`), what a reader stored is I11 (T7). I6 needs no look of its own: the tree has one place, `owner` says in whose
//! tree it is, and I1 with I4 say that this was so at both ends of the time between the two looks, in one life. I13 is a sum
//! over faults, each of which is one value of [`Seen`]; the whole port counts them (`whole.rs`).
//!
//! INVARIANT: ghost words are race-checked words. They are written by whoever has the VMA to itself and read by whoever has
//! it read-locked, so that under the model checker a reader and a writer who are not ordered fail even where they do not
//! meet.

use super::log;
use super::small_slab::SmallSlab;
use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Plain, Relaxed, Release, smp_cond_load_acquire, smp_cond_load_relaxed};
use crate::cpu::Cpu;
use crate::mm::mm_types::{MmRef, MmStruct, VM_READ, VmaFields, VmaLockObject, VmaRef};
use crate::mm::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use crate::mm::vma_lock::{AbortCause, Reuse, StartRead, VmaLock};
use crate::rcu::{rcu_read_lock, rcu_read_lock_held};
use crate::slab::record::{push_chain, take_freelist};
use crate::sync::RwSemaphore;

/// Mm A: the reader's.
pub const A: usize = 0;
/// Mm B.
pub const B: usize = 1;
/// Mm C: a child.
pub const C: usize = 2;

/// Where the VMA is mapped, and where the reader faults.
pub const ADDRESS: u64 = 0x10_0000;
/// Bytes of a VMA.
pub const SIZE: u64 = 0x1000;
/// What a free leaves in the first word.
const FREE_POINTER: u64 = 0xffff_8880_dead_0000;

/// The VMA among the objects of the slab, and another, which is free.
const VMA: usize = 0;
const NEIGHBOUR: usize = 1;

/// A named place of the scripts: the other CPU's turn.
pub const TURN: &str = "turn";

/// See the module.
pub struct Slot<W: Arch, L: VmaLock> {
    mms: Vec<MmStruct<W, L>>,
    vma: L::Vma<W>,
    lock: VmaLockObject<W>,
    /// Another VMA of A's, for a fork to copy.
    sibling: L::Vma<W>,
    /// What the VMA's lock protects: odd while stable.
    payload: Plain<W, u32>,
    /// What a reader sets under the lock (`anon_vma`).
    pub anon: Plain<W, u32>,
    /// Lives that the place has had.
    generation: Plain<W, u32>,
    /// 1 + the mm it is attached in, 0 if detached.
    owner: Plain<W, u32>,
    /// 1 + the mm whose section has it write-locked.
    claim: Plain<W, u32>,
    /// Whether the section of an mm has the VMA write-locked; under its mmap_lock.
    has: [Plain<W, u32>; 3],
    /// The slab, if the memory goes from one CPU to another.
    slab: SmallSlab<W>,
    /// Whether memory waits for a grace period before it is handed out again.
    waits: bool,
    /// Whether the reader is inside RCU: with a VMA that it has found, or while it lets go of the lock.
    reading: Atomic<W, u32>,
    /// The word that counts holders.
    holders: *const u8,
    /// Told when an mm is freed.
    freed: fn(*const u8, usize, &'static str),
}

// SAFETY: the pointer is an address to compare with, and the words are each other's.
unsafe impl<W: Arch, L: VmaLock> Send for Slot<W, L> {}
// SAFETY: as above.
unsafe impl<W: Arch, L: VmaLock> Sync for Slot<W, L> {}

/// What a reader saw of a VMA that it has: the life, and I5's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    life: u32,
    range: (u64, u64),
    rights: (u64, u64),
}

/// How a reader's call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Locked, used, unlocked.
    Locked,
    /// Aborted.
    Aborted(AbortCause),
    /// Found detached.
    Missed,
}

impl<W: Arch, L: VmaLock> Slot<W, L> {
    /// With `mms` address spaces, the VMA attached in A's; `freed` is told of an mm that ends. `at_once`: memory waits for no
    /// grace period, whatever the protocol needs.
    #[inline(never)]
    pub fn new(cpu: &Cpu<W>, mms: usize, at_once: bool, freed: fn(*const u8, usize, &'static str)) -> Box<Self> {
        let mut s = Box::new(Slot::<W, L> {
            mms: (0..mms).map(|_| MmStruct::new()).collect(),
            vma: L::Vma::<W>::new(),
            lock: VmaLockObject { lock: RwSemaphore::new() },
            sibling: L::Vma::<W>::new(),
            payload: Plain::new(1),
            anon: Plain::new(0),
            generation: Plain::new(0),
            owner: Plain::new(0),
            claim: Plain::new(0),
            has: std::array::from_fn(|_| Plain::new(0)),
            slab: SmallSlab::new(),
            waits: !at_once && !Self::typesafe(),
            reading: Atomic::new(0),
            holders: std::ptr::null(),
            freed,
        });
        let count = |w: &(String, *const u8, usize)| matches!(&*w.0, "vm_refcnt" | "vm_lock.count").then_some(w.1);
        s.holders = match s.vma.vm_lock() {
            Some(_) => s.lock.lock.words()[0].1,
            None => s.vma.lock_words().iter().find_map(count).expect("a word that counts"),
        };
        s.push(NEIGHBOUR);
        // As from the constructor of a slab page.
        L::vma_lock_init(s.vma(), false);
        L::vma_lock_init(s.sibling(), false);
        s.sibling.vma_init(s.mm(A).as_ptr(), 0);
        s.set_range(s.sibling(), ADDRESS);
        s.begin(cpu, A);
        s.alloc(A);
        s.start_write(cpu, A);
        s.attach(cpu, A);
        s.end(cpu, A);
        // It is inside RCU before the scenario begins: it has found the VMA.
        s.reading.store(1, Relaxed);
        s.name_words();
        log::begun();
        s
    }

    /// What the words are called, in what is told of an execution.
    #[inline(never)]
    fn name_words(&self) {
        fn word<T>(w: &T, name: impl Into<String>) {
            log::name(std::ptr::from_ref(w).cast(), size_of::<T>(), name);
        }
        for (name, w) in [("payload", &self.payload), ("anon_vma", &self.anon), ("generation", &self.generation)] {
            word(w, name);
        }
        word(&self.owner, "owner");
        word(&self.claim, "claim");
        word(&self.reading, "the reader's section");
        word(&self.slab.pair, "freelist and counters");
        word(&self.slab.link[VMA], "link");
        let v = &self.vma;
        word(v.vm_start(), "vm_start");
        word(v.vm_end(), "vm_end");
        word(v.vm_mm(), "vm_mm");
        word(v.vm_lock_seq(), "vm_lock_seq");
        for (name, at, len) in v.lock_words() {
            log::name(at, len, name);
        }
        for (name, at, len) in self.lock.lock.words() {
            log::name(at, len, format!("vm_lock.{name}"));
        }
        for (mm, n) in self.mms.iter().zip(["A", "B", "C"]) {
            log::name(std::ptr::from_ref(mm).cast(), 1, format!("{n}'s mm"));
            word(mm.mm_lock_seq.word(), format!("{n}.mm_lock_seq"));
            word(&mm.vma_writer_wait, format!("{n}.vma_writer_wait"));
            word(&mm.mm_count, format!("{n}.mm_count"));
        }
    }

    /// Address space `m`.
    pub fn mm(&self, m: usize) -> MmRef<W, L> {
        // SAFETY: the slot outlives the threads of its scenario.
        unsafe { KRef::from_ref(&self.mms[m]) }
    }
    /// The VMA.
    pub fn vma(&self) -> VmaRef<W, L> {
        // SAFETY: as above.
        unsafe { KRef::from_ref(&self.vma) }
    }
    fn sibling(&self) -> VmaRef<W, L> {
        // SAFETY: as above.
        unsafe { KRef::from_ref(&self.sibling) }
    }
    #[inline(never)]
    fn set_range(&self, vma: VmaRef<W, L>, start: u64) {
        vma.vm_start().store(start, Relaxed);
        vma.vm_end().store(start + SIZE, Relaxed);
    }
    /// Whether the protocol's memory becomes another VMA at once.
    fn typesafe() -> bool {
        matches!(L::REUSE, Reuse::Tolerates)
    }

    /// `mmap_write_lock()`: W0.
    #[inline(never)]
    pub fn begin(&self, cpu: &Cpu<W>, m: usize) {
        mmap_write_lock(cpu, &self.mms[m]);
    }
    /// `mmap_write_unlock()`: W6.
    #[inline(never)]
    pub fn end(&self, cpu: &Cpu<W>, m: usize) {
        // Not by asking the claim: a place that was freed in this section may be another CPU's by now.
        if self.has[m].get() == 1 {
            self.has[m].set(0);
            self.claim.set(0);
        }
        mmap_write_unlock(cpu, &self.mms[m]);
    }
    /// Makes the next section of `m` number `seq`, odd.
    #[inline(never)]
    pub fn next_section(&self, m: usize, seq: u32) {
        self.mms[m].mm_lock_seq.word().store(seq.wrapping_sub(1), Relaxed);
    }

    /// `synchronize_rcu()`, before memory is handed out that needs it.
    #[inline(never)]
    fn grace_period(&self) {
        if self.waits {
            // ORDER: acquire: what the reader did in its section is over.
            smp_cond_load_acquire(&self.reading, |reading| reading == 0);
        }
    }
    #[inline(never)]
    fn new_life(&self) {
        self.generation.set(self.generation.get() + 1);
        if let Some(slot) = self.vma.vm_lock() {
            slot.store((&raw const self.lock).cast_mut(), Relaxed);
        }
        self.initialises(|| L::vma_lock_init(self.vma(), Self::typesafe()));
    }
    /// `f` may initialise the lock: nobody must have it then.
    #[inline(never)]
    fn initialises(&self, f: impl FnOnce()) {
        let (before, mark) = (self.vma.lock_look(), log::mark());
        f();
        // Of the semaphore's holders an init knows nothing; what comes and goes by exchanges is theirs.
        assert!(
            before.is_free(false) || !log::stored(mark, self.holders),
            "I12: initialised while it is held: {before:?}"
        );
    }
    /// What must be true when everybody is done.
    ///
    /// # Errors
    /// What is not.
    #[inline(never)]
    pub fn quiescent(&self) -> Result<(), String> {
        let (look, attached) = (self.vma.lock_look(), self.owner.get() != 0);
        if !look.is_free(attached) || look.is_attached() != attached {
            let tree = if attached { "in a tree" } else { "in no tree" };
            return Err(format!("I8: everybody is done, the VMA is {tree}, its lock {look:?}"));
        }
        let sections = self.mms.iter().any(|mm| mm.mm_lock_seq.raw_read() % 2 == 1 || mm.mmap_lock.is_locked());
        if sections || self.claim.get() != 0 {
            return Err("I10: everybody is done, and a section has not ended".into());
        }
        Ok(())
    }
    /// `vm_area_alloc()` and `vma_set_range()`.
    #[inline(never)]
    pub fn alloc(&self, m: usize) {
        self.alloc_at(m, ADDRESS);
    }
    /// The same, at `start`.
    #[inline(never)]
    pub fn alloc_at(&self, m: usize, start: u64) {
        self.grace_period();
        self.vma.vma_init(self.mm(m).as_ptr(), 0);
        self.new_life();
        self.set_range(self.vma(), start);
    }
    /// `vm_area_dup()` of A's other VMA: for a moment the copy says it is A's.
    #[inline(never)]
    pub fn dup(&self) {
        self.grace_period();
        self.vma.vm_area_init_from(&self.sibling);
        self.new_life();
    }
    /// What `dup_mmap()` does next: the copy is `m`'s.
    #[inline(never)]
    pub fn rehome(&self, m: usize) {
        self.vma.vm_mm().store(self.mm(m).as_ptr(), Relaxed);
    }
    /// W1, by a writer of `m`.
    #[inline(never)]
    pub fn start_write(&self, cpu: &Cpu<W>, m: usize) {
        self.start_write_and(cpu, m, || ());
    }
    /// W1, and `first` before it is known who has the VMA.
    pub fn start_write_and(&self, cpu: &Cpu<W>, m: usize, first: impl FnOnce()) {
        L::vma_start_write(cpu, self.vma());
        first();
        self.claim.set(m as u32 + 1);
        self.has[m].set(1);
    }
    /// W2: changes what the lock protects; an even value is not meant to be seen.
    #[inline(never)]
    pub fn change(&self) {
        self.vma.vm_flags().store(VM_READ, Relaxed);
        self.vma.vm_page_prot().store(VM_READ, Relaxed);
        self.payload.set(self.payload.get() + 1);
    }
    /// The VMA goes into `m`'s tree.
    #[inline(never)]
    pub fn attach(&self, cpu: &Cpu<W>, m: usize) {
        self.payload.set(self.payload.get() | 1);
        self.owner.set(m as u32 + 1);
        L::vma_mark_attached(cpu, self.vma());
    }
    /// W3.
    #[inline(never)]
    pub fn detach(&self, cpu: &Cpu<W>) {
        L::vma_mark_detached(cpu, self.vma());
        self.owner.set(0);
    }
    /// W5.
    #[inline(never)]
    pub fn free(&self, cpu: &Cpu<W>) {
        assert!(!Self::typesafe() || L::vma_lock_is_free(self.vma()), "I8: freed while attached");
        self.initialises(|| L::vma_freed(cpu, self.vma()));
        if Self::typesafe() {
            self.vma.vm_start().store(FREE_POINTER, Relaxed);
        }
        self.owner.set(0);
        let claim = self.claim.get();
        if claim != 0 {
            self.has[claim as usize - 1].set(0);
            self.claim.set(0);
        }
    }
    fn push(&self, object: usize) {
        push_chain(&self.slab, object + 1, 1, || (), |f| self.slab.link[object].set(f.prior as u64));
    }
    fn take(&self) -> Vec<usize> {
        let mut list = take_freelist(&self.slab, |list| list != 0).0;
        let mut got = Vec::new();
        while list != 0 {
            got.push(list - 1);
            list = self.slab.link[list - 1].get() as usize;
        }
        got
    }
    /// `__slab_free()`: what was freed here goes to the slab that another CPU allocates from.
    #[inline(never)]
    pub fn give_back(&self) {
        self.push(VMA);
    }
    /// `get_freelist()`: this CPU, whose slab it is, wants objects until it has the place that another CPU has freed.
    #[inline(never)]
    pub fn taken_over(&self) {
        let mut got = self.take();
        if !got.contains(&VMA) {
            // ORDER: relaxed: the exchange that takes it orders.
            smp_cond_load_relaxed(&self.slab.pair, |pair| pair >> 32 != 0);
            got = self.take();
        }
        assert_eq!(got[0], VMA, "a slab hands out last come first");
    }
    /// Nobody has found the VMA yet.
    pub fn unfound(&self) {
        self.reading.store(0, Relaxed);
    }
    /// From here on the reader has, and is inside RCU.
    pub fn found(&self) {
        self.reading.store(1, Relaxed);
    }
    /// A section of `m` that removes and frees the VMA.
    #[inline(never)]
    pub fn remove(&self, cpu: &Cpu<W>, m: usize) {
        self.begin(cpu, m);
        self.start_write(cpu, m);
        self.change();
        self.detach(cpu);
        self.free(cpu);
        self.end(cpu, m);
    }
    /// A section of `m` that maps the VMA.
    #[inline(never)]
    pub fn map(&self, cpu: &Cpu<W>, m: usize) {
        self.begin(cpu, m);
        self.alloc(m);
        self.start_write(cpu, m);
        self.attach(cpu, m);
        self.end(cpu, m);
    }
    /// A section of A that moves its other VMA, which nobody finds: words that `mm_lock_seq` alone protects.
    #[inline(never)]
    pub fn move_sibling(&self, cpu: &Cpu<W>) {
        self.begin(cpu, A);
        self.set_range(self.sibling(), ADDRESS + SIZE);
        self.end(cpu, A);
    }
    /// `mmap_lock_speculate_try_begin()`, a look at those words, and `mmap_lock_speculate_retry()`.
    #[inline(never)]
    pub fn speculate(&self) {
        let seq = &self.mms[A].mm_lock_seq;
        let Some(begun) = seq.try_begin() else { return };
        let (start, end) = (self.sibling.vm_start().load(Relaxed), self.sibling.vm_end().load(Relaxed));
        assert!(seq.read_retry(begun) || end == start + SIZE, "I5: a section was seen half done, and not noticed");
    }
    /// `mmdrop()`
    #[inline(never)]
    pub fn mmdrop(&self, cpu: &Cpu<W>, mm: MmRef<W, L>) {
        if mm.mm_count.dec_and_test(cpu) {
            (self.freed)(mm.as_ptr().cast(), size_of::<MmStruct<W, L>>(), "the mm");
        }
    }

    /// R0 to R8 for a fault at [`ADDRESS`] of A: `held` runs with the lock held and the invariants just checked. They are
    /// checked again behind it.
    #[inline(never)]
    pub fn fault(&self, cpu: &Cpu<W>, held: impl FnOnce()) -> Seen {
        rcu_read_lock(cpu);
        let life = self.waits.then(|| self.generation.get());
        let found = L::lock_vma_found(cpu, self.mm(A), self.vma(), ADDRESS, |mm| self.mmdrop(cpu, mm));
        assert!(life.is_none_or(|life| life == self.generation.get()), "I4: another life in a reader's section");
        L::lookup_done(cpu);
        assert!(!rcu_read_lock_held(cpu), "I10: RCU was not left");
        // ORDER: release, meets grace_period().
        self.reading.store(0, Release);
        match found {
            StartRead::Detached => Seen::Missed,
            StartRead::Contended(cause) => Seen::Aborted(cause),
            StartRead::Locked => {
                let first = self.check(None);
                held();
                self.check(Some(first));
                // ORDER: relaxed: the writer that frees the VMA has the lock from this reader, and so sees this or later.
                self.reading.store(1, Relaxed);
                L::vma_end_read(cpu, self.vma());
                // ORDER: release, meets grace_period().
                self.reading.store(0, Release);
                Seen::Locked
            }
        }
    }

    /// What must be true of a VMA that a reader of A has locked; returns what it saw.
    #[inline(never)]
    fn check(&self, first: Option<Look>) -> Look {
        let lock = self.vma.lock_look();
        assert!(lock.is_read_locked(), "I7: read-locked, and the lock says {lock:?}");
        assert!(std::ptr::eq(self.vma.vm_mm().load(Relaxed), self.mm(A).as_ptr()), "I1: another mm's VMA");
        assert_eq!(self.owner.get(), A as u32 + 1, "I1: not attached in A");
        let range = (self.vma.vm_start().load(Relaxed), self.vma.vm_end().load(Relaxed));
        assert_eq!(range, (ADDRESS, ADDRESS + SIZE), "I2: another range");
        assert_ne!(self.claim.get(), A as u32 + 1, "I3: write-locked by A");
        let rights = (self.vma.vm_flags().load(Relaxed), self.vma.vm_page_prot().load(Relaxed));
        let now = Look { life: self.generation.get(), range, rights };
        let first = first.unwrap_or(now);
        assert_eq!(first.life, now.life, "I4: another life");
        assert_eq!(self.payload.get() % 2, 1, "I5: changing");
        assert_eq!(first, now, "I5: range, flags or page_prot change");
        now
    }
}
