// SPDX-License-Identifier: GPL-2.0-only
//! The whole port before somebody who sees everything: simulated CPUs make random calls in address spaces that hand each
//! other VMAs, readers lock what they find, and each success of theirs is looked at with the machine stopped.
//!
//! What is looked at while a reader has the lock, twice with others running in between: the tree of its mm has this VMA
//! at its address (I6, and I2 with it), and the VMA says that it is this mm's (I1); the section of a writer does not
//! have it (I3); its range, flags and page_prot stay (I5); the allocator does not hand it out again (I4, by the watcher of
//! `slab/reuse.rs`, which keeps its words apart); the lock says that a reader has it (I7). When all calls are done: the lock of every VMA in a tree is free and says that it is in one (I8; of the
//! others a free warns), and every fault was a success, a retry or an abort (I13). At the end: no warning, as many VMAs
//! freed as allocated, and nothing left.
//!
//! The allocator, RCU, the tree, the calls are the real ones, which the small kernel of [`super::slot`] replaces. For it,
//! interleavings are drawn and not enumerated: three of four by random delays, one by priorities ([`Priorities`]). Every one
//! is sequentially consistent, so that what needs stores out of order (T0 to T2) does not show here.
//!
//! A seed repeats its run, access by access.

use super::text;
use crate::arch::sim::{Jitter, Priorities, Sim, SimConfig, SimMachine};
use crate::arch::{Arch, Relaxed};
use crate::cpu::tick::exit_to_user_mode;
use crate::cpu::{Counter, Cpu};
use crate::init::{Kernel, KernelConfig, run_on_cpus, shutdown, start_kernel};
use crate::mm::mm_types::{VM_READ, VM_WRITE, VmaFields};
use crate::mm::mmap_lock::lock_vma_under_rcu;
use crate::mm::mremap::{MREMAP_FIXED, MREMAP_MAYMOVE};
use crate::mm::vma::{find_vma, vma_lookup};
use crate::mm::vma_lock::{Claim, Reuse, SCENARIOS, VmaLock};
use crate::mm::{
    Kconfig, MmPtr, VmEvent, VmaPtr, do_user_addr_fault, dup_mm, mm_alloc, mmput, sys_mprotect, sys_mremap, variant,
    vm_mmap, vm_munmap,
};
use crate::slab;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// How a request calls this instead of a scenario.
pub const WHOLE: &str = "W";
/// Its sentence in the list of scenarios.
pub const ABOUT: &str =
    "the whole port in the simulator, random calls in random interleavings, sequentially consistent";

const CPUS: u32 = 4;
const OPERATIONS: u64 = 200;
const PAGE: u64 = 4096;
const BASE: u64 = 0x2000_0000_0000;
/// Mappings of an mm, pages of one, and pages from one to the next.
const SLOTS: u64 = 2;
const PAGES: u64 = 4;
const STRIDE: u64 = 8;
/// A place beyond them.
const AWAY: u64 = BASE + 64 * PAGE;
const RW: u64 = VM_READ | VM_WRITE;

/// What the protocol is to do here; none where it may do either. T3 needs no more than the right moment, and is met. Of what
/// T6 shows nothing is seen here, where an mm's memory stays readable. The others need old values, which there are none of,
/// or numbers that are equal, which may be met.
pub fn declared<L: VmaLock>() -> Option<Claim> {
    let busted: Vec<_> = SCENARIOS.iter().zip(L::CLAIMS).filter(|c| c.1 == Claim::Busted).map(|c| c.0.0).collect();
    match busted.as_slice() {
        [] | ["T6"] => Some(Claim::Holds),
        ids if ids.contains(&"T3") => Some(Claim::Busted),
        _ => None,
    }
}

/// What one run met.
#[derive(Default)]
struct Met {
    lookups: AtomicU64,
    locked: AtomicU64,
}

/// What all CPUs share.
struct World<'a, K: Kconfig> {
    k: &'a Kernel<K>,
    /// Whose hand-out an object is, for I4.
    lives: slab::Reuse<Sim>,
    mms: [MmPtr<K>; 2],
    met: &'a Met,
}

/// Range, flags and page_prot of a locked VMA; or what is wrong with it.
fn look<K: Kconfig<A = Sim>>(
    cpu: &Cpu<Sim>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
    address: u64,
) -> Result<[u64; 4], &'static str> {
    Sim::frozen(|| {
        if vma_lookup(cpu, k, mm, address).map(|v| v.as_ptr()) != Some(vma.as_ptr()) {
            return Err("I1: locked, and the tree has another VMA there, or none");
        }
        if vma.vm_mm().load(Relaxed) != mm.as_ptr() {
            return Err("I1: locked, and another mm's");
        }
        if !vma.lock_look().is_read_locked() {
            return Err("I7: locked, and the lock does not say so");
        }
        let section = mm.mm_lock_seq.raw_read();
        if section & 1 == 1 && vma.vm_lock_seq().load(Relaxed) == section {
            return Err("I3: locked, and write-locked by a section of its mm");
        }
        Ok([vma.vm_start(), vma.vm_end(), vma.vm_flags(), vma.vm_page_prot()].map(|w| w.load(Relaxed)))
    })
}

/// A reader that is watched.
fn lookup<K: Kconfig<A = Sim>>(cpu: &Cpu<Sim>, w: &World<'_, K>, mm: MmPtr<K>, address: u64) {
    w.met.lookups.fetch_add(1, Ordering::Relaxed);
    let Some(vma) = lock_vma_under_rcu::<K>(cpu, w.k, mm, address) else { return };
    w.met.locked.fetch_add(1, Ordering::Relaxed);
    let life = || Sim::frozen(|| w.lives.last_handed(vma.as_ptr() as usize));
    let (first, then) = (look(cpu, w.k, mm, vma, address), life());
    // Long enough for a call of another CPU, now and then for several.
    (0..cpu.random() % 16 * 32).for_each(|_| Sim::cpu_relax());
    match (first, look(cpu, w.k, mm, vma, address)) {
        (Ok(_), Ok(_)) if life() != then => panic!("I4: handed out again while it is locked"),
        (Ok(a), Ok(b)) if a == b => {}
        (Ok(_), Ok(_)) => panic!("I5: its range, flags or page_prot change while it is locked"),
        (Err(e), _) | (_, Err(e)) => panic!("{e}"),
    }
    K::Lock::vma_end_read(cpu, vma);
}

/// With every call done: what the trees hold; how many VMAs.
///
/// # Errors
/// A VMA in a tree whose lock is not free, or says that it is in none.
fn quiescent<K: Kconfig<A = Sim>>(cpu: &Cpu<Sim>, k: &Kernel<K>, mm: MmPtr<K>) -> Result<u64, String> {
    let (mut n, mut at) = (0, 0);
    while let Some(vma) = find_vma(cpu, k, mm, at) {
        let lock = vma.lock_look();
        if !lock.is_free(true) || !lock.is_attached() {
            return Err(format!("I8: every call is done, and the lock of a VMA in a tree is {lock:?}"));
        }
        (n, at) = (n + 1, vma.vm_end().load(Relaxed));
    }
    Ok(n)
}

/// I13: `faults` of the fault path, and `given_up` watched lookups without a lock, which count as aborts besides.
fn balance(faults: u64, given_up: u64, [success, retry, abort]: [u64; 3]) -> Result<(), String> {
    if faults + given_up == success + retry + abort {
        return Ok(());
    }
    Err(format!("I13: {faults} faults and {given_up} lookups given up, but {success} + {retry} + {abort}"))
}

/// First page of a slot.
fn slot(i: u64) -> u64 {
    BASE + i % SLOTS * STRIDE * PAGE
}

/// What a CPU calls; what is answered is the fuzzer's business and not this one's.
struct Caller<'a, K: Kconfig<A = Sim>> {
    cpu: &'a Cpu<Sim>,
    w: &'a World<'a, K>,
    /// An mm of this CPU's own, for lives that end.
    own: Cell<MmPtr<K>>,
}

impl<K: Kconfig<A = Sim>> Caller<'_, K> {
    fn map(&self, mm: MmPtr<K>, at: u64) {
        let _ = vm_mmap(self.cpu, self.w.k, mm, Some(at), PAGES * PAGE, RW);
    }
    fn unmap(&self, mm: MmPtr<K>, at: u64, pages: u64) {
        let _ = vm_munmap(self.cpu, self.w.k, mm, at, pages * PAGE);
    }
    fn move_to(&self, mm: MmPtr<K>, at: u64, to: u64) {
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        let _ = sys_mremap(self.cpu, self.w.k, mm, at, PAGES * PAGE, PAGES * PAGE, flags, to);
    }
    fn end_own(&self) {
        mmput(self.cpu, self.w.k, self.own.replace(mm_alloc(self.cpu, self.w.k)));
    }

    /// A VMA of `mm` becomes one of `other` and then `mm`'s again: on one CPU, whose slab hands out last come first. How
    /// the life between ends decides how long a writer has the VMA before it takes it out of its tree.
    fn away_and_back(&self, mm: MmPtr<K>, other: MmPtr<K>, at: u64, end: u64) {
        self.unmap(mm, at, PAGES + 2);
        match end % 4 {
            0 => {
                self.map(other, at);
                self.unmap(other, at, PAGES + 2);
            }
            1 => {
                self.map(other, at);
                self.move_to(other, at, AWAY);
                self.unmap(other, AWAY, PAGES);
            }
            _ => {
                self.map(self.own.get(), at);
                self.end_own();
            }
        }
        self.map(mm, at);
    }

    /// One random call, or a few that belong together.
    fn step(&self) {
        let (cpu, k) = (self.cpu, self.w.k);
        let r = cpu.random();
        let (mm, other) = (self.w.mms[(r & 1) as usize], self.w.mms[(r & 1 ^ 1) as usize]);
        let (at, next) = (slot(r >> 8), slot((r >> 8) + 1));
        // Every second CPU mostly reads.
        let reads = (r >> 16).is_multiple_of(8) != cpu.id.is_multiple_of(2);
        if reads {
            return lookup(cpu, self.w, mm, at + (r >> 24) % (PAGES + 2) * PAGE);
        }
        match r >> 32 & 15 {
            0 => {
                let _ = do_user_addr_fault(cpu, k, mm, at + (r >> 24) % PAGES * PAGE, true);
            }
            1 => self.unmap(mm, at, PAGES + 2),
            2 | 3 => self.map(mm, at + (r >> 24 & 1) * 2 * PAGE),
            4 => self.unmap(mm, at + PAGE, 1),
            5 => {
                let pages = if r >> 25 & 1 == 0 { 2 } else { PAGES };
                let _ = sys_mprotect(cpu, k, mm, at, pages * PAGE, (r >> 24 & 1) as u32 * 2 + 1);
            }
            6 => self.move_to(mm, at, next),
            7 => {
                if let Ok(child) = dup_mm(cpu, k, mm) {
                    lookup(cpu, self.w, child, at);
                    self.unmap(child, at, PAGES);
                    self.map(mm, next);
                    mmput(cpu, k, child);
                }
            }
            _ => self.away_and_back(mm, other, at, r >> 40),
        }
    }
}

fn calls<K: Kconfig<A = Sim>>(cpu: &Cpu<Sim>, w: &World<'_, K>) {
    w.lives.start(cpu);
    let c = Caller { cpu, w, own: Cell::new(mm_alloc(cpu, w.k)) };
    for _ in 0..OPERATIONS {
        c.step();
        exit_to_user_mode(cpu);
    }
    mmput(cpu, w.k, c.own.get());
}

/// One run; what it found wrong.
fn storm<K: Kconfig<A = Sim>>(m: &SimMachine, config: &KernelConfig, sum: &Met) -> Result<(), String> {
    let met = &Met::default();
    let run = || {
        let k = start_kernel::<K>(m, config);
        let boot = k.cpu(0);
        let lives = slab::Reuse::new(k.slab).expect("address space");
        let w = World { k: &k, lives, mms: [mm_alloc(&boot, &k), mm_alloc(&boot, &k)], met };
        let all = run_on_cpus(m, &k, CPUS, |cpu| calls(cpu, &w));
        let in_trees: u64 = w.mms.iter().map(|mm| quiescent(&boot, &k, *mm).unwrap_or_else(|e| panic!("{e}"))).sum();
        let n = |e: VmEvent| all.iter().map(|c| c[e.slot()]).sum::<u64>() + boot.counters.get(e);
        assert_eq!(n(VmEvent::VmaAlloc) - n(VmEvent::VmaFree), in_trees, "I8: VMAs that are in no tree and not freed");
        let given_up = met.lookups.load(Ordering::Relaxed) - met.locked.load(Ordering::Relaxed);
        let ends = [VmEvent::VmaLockSuccess, VmEvent::VmaLockRetry, VmEvent::VmaLockAbort].map(n);
        balance(n(VmEvent::Pgfault), given_up, ends).unwrap_or_else(|e| panic!("{e}"));
        w.mms.iter().for_each(|mm| mmput(&boot, &k, *mm));
        drop(w);
        let left = shutdown(&boot, &k);
        assert!(left.is_clean(), "I8: something is left at the end: {left:?}");
        assert_eq!(n(VmEvent::Warn), 0, "I8: something warns");
        assert_eq!(n(VmEvent::VmaAlloc), n(VmEvent::VmaFree), "I8: VMAs allocated and freed");
    };
    let result = catch_unwind(AssertUnwindSafe(run)).map_err(|e| text(&*e));
    sum.lookups.fetch_add(met.lookups.load(Ordering::Relaxed), Ordering::Relaxed);
    sum.locked.fetch_add(met.locked.load(Ordering::Relaxed), Ordering::Relaxed);
    result
}

/// How many seeds a busted protocol may take until it is caught, for each that another one is run with.
const PATIENCE: u64 = 20;

/// Runs build `K` with `seeds` seeds from `first` on, or until something is wrong. `begins` is told of each seed.
///
/// # Errors
/// What is wrong; `begins` knows with which seed.
pub fn run<K: Kconfig<A = Sim>>(first: u64, seeds: u64, begins: &mut dyn FnMut(String)) -> Result<(), String> {
    let m = SimMachine::new(SimConfig::nodes(2, CPUS / 2)).map_err(|e| format!("no simulator: {e}"))?;
    let cache = if matches!(K::Lock::REUSE, Reuse::Forbids(_)) { "call_rcu" } else { "typesafe" };
    let busted = declared::<K::Lock>() == Some(Claim::Busted);
    let met = Met::default();
    for seed in first..first + if busted { seeds * PATIENCE } else { seeds } {
        let allocator = ["slub", "sheaves"][(seed / 4 % 2) as usize];
        let v = variant::parse(&format!("{}+{cache}@{allocator}", K::Lock::NAME))?;
        let config = v.configure(KernelConfig { seed, ..KernelConfig::default().hz(10_000) });
        let by_priority = seed % 4 == 3;
        let every = [500, 1000, 3000][(seed / 8 % 3) as usize];
        m.set_jitter((!by_priority).then_some(Jitter { seed, every, max_ns: 60_000, at_names: true }));
        let changes = 2 + (seed / 8 % 4) as u32;
        m.set_priorities(by_priority.then_some(Priorities { seed, changes, within: 60_000, gap_ns: 200_000 }));
        begins(format!("seed {seed}, {} on {allocator}", if by_priority { "priorities" } else { "delays" }));
        storm::<K>(&m, &config, &met)?;
    }
    let (lookups, locked) = (met.lookups.into_inner(), met.locked.into_inner());
    if locked == 0 || locked == lookups {
        return Err(format!("{locked} of {lookups} lookups had the lock: this shows nothing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::kconfig::Config;
    use crate::mm::vma_lock::refcnt::Refcnt;

    /// What is looked at would be noticed: a lock that is not held, one that is never let go of, a fault that is not counted.
    #[test]
    fn the_looks_see_what_is_wrong() {
        type K = Config<Sim, Refcnt>;
        let m = SimMachine::new(SimConfig::nodes(2, CPUS / 2)).unwrap();
        let v = variant::parse("refcnt+typesafe@slub").unwrap();
        let k = start_kernel::<K>(&m, &v.configure(KernelConfig::default()));
        let cpu = k.cpu(0);
        let (mm, at) = (mm_alloc(&cpu, &k), slot(0));
        vm_mmap(&cpu, &k, mm, Some(at), PAGES * PAGE, RW).unwrap();
        let vma = vma_lookup(&cpu, &k, mm, at).unwrap();
        assert_eq!(look(&cpu, &k, mm, vma, at).unwrap_err().split(':').next(), Some("I7"));
        assert_eq!(quiescent(&cpu, &k, mm), Ok(1));
        let locked = lock_vma_under_rcu::<K>(&cpu, &k, mm, at).unwrap();
        assert!(look(&cpu, &k, mm, locked, at).is_ok());
        assert!(quiescent(&cpu, &k, mm).unwrap_err().starts_with("I8"));
        Refcnt::vma_end_read(&cpu, locked);
        assert_eq!(quiescent(&cpu, &k, mm), Ok(1));
        let lives = slab::Reuse::new(k.slab).unwrap();
        lives.start(&cpu);
        let life = || lives.last_handed(vma.as_ptr() as usize);
        let (before, at_rest) = (life(), life());
        assert_eq!(before, at_rest);
        vm_munmap(&cpu, &k, mm, at, PAGES * PAGE).unwrap();
        vm_mmap(&cpu, &k, mm, Some(at), PAGES * PAGE, RW).unwrap();
        let again = vma_lookup(&cpu, &k, mm, at).unwrap();
        assert_eq!(again.as_ptr(), vma.as_ptr(), "last in, first out");
        assert_ne!(life(), before, "another life at the same place");
        drop(lives);
        mmput(&cpu, &k, mm);
        assert!(shutdown(&cpu, &k).is_clean());
        assert_eq!(balance(5, 1, [3, 1, 2]), Ok(()));
        assert!(balance(5, 1, [3, 1, 1]).unwrap_err().starts_with("I13"));
    }
}
