// SPDX-License-Identifier: GPL-2.0-only
//! How long a freed object lies before it is handed out again: the cache effect that needs no PMU.
//!
//! custom: nothing of this is in the kernel; there the same figures come from the tracepoints kmem:kmem_cache_alloc and
//! kmem:kmem_cache_free (`measure/tracepoint.rs`). Per cache and CPU every hand-out and every free is an event with a
//! number. A free writes its CPU and number into the object's word of a side table; the hand-out that finds the word
//! counts the *distance*: events of this cache on this CPU after the free, up to and including the hand-out. 1 is an
//! object that came back with the very next event. What came back on another CPU counts as `remote`, what was not seen
//! freed as `first`. Beside it stands `again`: hand-outs from an object's hand-out to its next, which needs no free to be
//! seen and so can be held against a kernel whose frees have no tracepoint.
//!
//! A free is the moment the allocator gets the object: under call_rcu that is after the grace period. Only a sheaf that
//! kfree_rcu() fills is the allocator's from the first object on, so the grace period lies after that free. A place keeps its
//! history when its slab goes to the page allocator and comes back to the same cache, as it would in the tracepoints; in
//! the hands of another cache it is a new object.
//!
//! The side table is host memory that appears page by page where objects are, outside the simulated lines; no clock pays
//! for it. While nobody looks, the cost is one predicted test of a word that shares the freelist's line.
//!
//! INVARIANT: allocs = first + remote + sum of bins. A CPU's figures are its own; the words of the table are shared, and
//! ordered by the exchanges that carry the object itself. Cannot tell: anything across CPUs but that it was across, and
//! what happened to an object while its CPU was not being watched.

use super::SlabState;
use super::slub_def::{KmemCache, KmemCacheCpu};
use super::stat::Unpriced;
use crate::arch::arena::{ARENA_SIZE, KRef};
use crate::arch::{Atomic, Hardware, Native, Plain, Relaxed};
use crate::cpu::Cpu;
use std::collections::BTreeMap;
use std::io;
use std::ptr::{NonNull, null_mut};

/// Distances `2^k ..= 2^(k+1) - 1` fall into bin `k`.
pub const REUSE_BINS: usize = 36;

/// Objects are told apart by the 16 bytes they begin in.
const GRAIN_SHIFT: u32 = 4;

const TAG_SHIFT: u32 = 48;
const FREE: u64 = 1 << 47;
const CPU_SHIFT: u32 = 36;
const SEQ_MASK: u64 = (1 << CPU_SHIFT) - 1;
/// Most CPUs whose frees can be told apart.
const MAX_CPUS: u32 = 1 << 11;

/// What is known of the object that begins in a grain of the arena: two words tag:16 (cache, from 1), free:1, CPU:11,
/// number:36, of the last event and of the last hand-out (its number among hand-outs).
#[repr(C)]
struct Known {
    event: Atomic<Native, u64>,
    handed: Atomic<Native, u64>,
}

/// The side table, by grain.
struct Table(NonNull<Known>);

const TABLE_BYTES: usize = (ARENA_SIZE >> GRAIN_SHIFT) * size_of::<Known>();

impl Table {
    fn new() -> io::Result<Table> {
        // SAFETY: a fresh mapping that takes memory only where it is written; zeros are valid words.
        let p = unsafe {
            libc::mmap(
                null_mut(),
                TABLE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Table(NonNull::new(p.cast()).expect("a mapping is not at 0")))
    }
}

/// The words of the object that begins at `object`, while the table lives.
fn known_of<'a>(table: NonNull<Known>, object: usize) -> &'a Known {
    // SAFETY: the arena is aligned to its size, so the index is below the table's length.
    unsafe { table.add((object & (ARENA_SIZE - 1)) >> GRAIN_SHIFT).as_ref() }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.0.as_ptr().cast(), TABLE_BYTES) };
    }
}

/// One cache's figures on one CPU.
#[repr(C, align(128))]
pub struct ReuseCpu {
    table: NonNull<Known>,
    tag: u64,
    cpu: u64,
    events: Unpriced,
    allocs: Unpriced,
    remote: Unpriced,
    first: Unpriced,
    distinct: Unpriced,
    bins: [Unpriced; REUSE_BINS],
    again: [Unpriced; REUSE_BINS],
}

impl ReuseCpu {
    fn new(table: &Table, tag: usize, cpu: u32) -> Self {
        let zero = || Plain::new(0);
        ReuseCpu {
            table: table.0,
            tag: tag as u64,
            cpu: u64::from(cpu),
            events: zero(),
            allocs: zero(),
            remote: zero(),
            first: zero(),
            distinct: zero(),
            bins: std::array::from_fn(|_| zero()),
            again: std::array::from_fn(|_| zero()),
        }
    }

    fn known(&self, object: usize) -> &Known {
        known_of(self.table, object)
    }

    /// A word about number `n` of this CPU.
    fn mark(&self, n: u64) -> u64 {
        self.tag << TAG_SHIFT | self.cpu << CPU_SHIFT | n & SEQ_MASK
    }

    /// How long ago that was, if it was of this cache on this CPU; `n` is the number now.
    fn since(&self, word: u64, n: u64) -> Option<u64> {
        ((word ^ self.mark(0)) & !(SEQ_MASK | FREE) == 0).then(|| n.wrapping_sub(word) & SEQ_MASK)
    }

    #[cold]
    #[inline(never)]
    fn alloc(&self, object: usize) {
        bump(&self.events);
        bump(&self.allocs);
        let (now, nth) = (self.events.get(), self.allocs.get());
        // ORDER: relaxed; the words of an object change hands with it, see free().
        let k = self.known(object);
        let (event, handed) = (k.event.load(Relaxed), k.handed.load(Relaxed));
        k.event.store(self.mark(now), Relaxed);
        k.handed.store(self.mark(nth), Relaxed);
        if let Some(n) = self.since(handed, nth) {
            bump(&self.again[reuse_bin(n)]);
        }
        let ours = event >> TAG_SHIFT == self.tag;
        if !ours {
            bump(&self.distinct);
        }
        match self.since(event, now) {
            _ if !ours || event & FREE == 0 => bump(&self.first),
            Some(n) => bump(&self.bins[reuse_bin(n)]),
            None => bump(&self.remote),
        }
    }

    #[cold]
    #[inline(never)]
    fn free(&self, object: usize) {
        bump(&self.events);
        let k = self.known(object);
        if k.event.load(Relaxed) >> TAG_SHIFT != self.tag {
            bump(&self.distinct);
        }
        // ORDER: relaxed; who hands the object out next got it through an exchange that the free, which comes after
        // this, made on the slab, the freelist or under a lock.
        k.event.store(self.mark(self.events.get()) | FREE, Relaxed);
    }
}

fn bump(c: &Unpriced) {
    c.set(c.get() + 1);
}

/// Bin of a distance, which is at least 1.
pub fn reuse_bin(distance: u64) -> usize {
    (distance.max(1).ilog2() as usize).min(REUSE_BINS - 1)
}

/// An object was handed out by this CPU; null is none. Before anybody else can have it.
#[inline(always)]
pub(super) fn reuse_alloc<A: Hardware>(c: &KmemCacheCpu<A>, object: usize) {
    let r = c.reuse.get();
    if !r.is_null() && object != 0 {
        // SAFETY: set by [`Reuse::start`] on this CPU; a [`Reuse`] clears it before it goes.
        unsafe { &*r }.alloc(object);
    }
}

/// The allocator gets an object back on this CPU. Before anybody else can have it.
#[inline(always)]
pub(super) fn reuse_free<A: Hardware>(c: &KmemCacheCpu<A>, object: usize) {
    let r = c.reuse.get();
    if !r.is_null() {
        // SAFETY: as in [`reuse_alloc`].
        unsafe { &*r }.free(object);
    }
}

/// What was seen of one cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReuseCount {
    /// Hand-outs.
    pub allocs: u64,
    /// Frees.
    pub frees: u64,
    /// Hand-outs by distance, see [`reuse_bin`]; no zeros at the end.
    pub bins: Vec<u64>,
    /// Hand-outs by the number of hand-outs of the cache on this CPU since the object's last there, in the same bins.
    pub again: Vec<u64>,
    /// Hand-outs on another CPU than the free's.
    pub remote: u64,
    /// Hand-outs of objects whose free was not seen.
    pub first: u64,
    /// Distinct objects handed out or freed.
    pub distinct: u64,
}

impl ReuseCount {
    /// Whether every hand-out is in one bin.
    pub fn balances(&self) -> bool {
        self.allocs == self.first + self.remote + self.bins.iter().sum::<u64>()
    }

    /// Books a hand-out at `distance`.
    pub fn add(&mut self, distance: u64) {
        add(&mut self.bins, distance);
    }

    /// Books a hand-out `handouts` after the object's last.
    pub fn add_again(&mut self, handouts: u64) {
        add(&mut self.again, handouts);
    }
}

fn add(bins: &mut Vec<u64>, n: u64) {
    let bin = reuse_bin(n);
    if bins.len() <= bin {
        bins.resize(bin + 1, 0);
    }
    bins[bin] += 1;
}

/// Watches the caches of one kernel.
pub struct Reuse<A: Hardware> {
    slab: KRef<SlabState<A>>,
    blocks: Vec<(KRef<KmemCache<A>>, Vec<ReuseCpu>)>,
    table: Table,
}

// SAFETY: the blocks and the table are words; a CPU writes its own blocks.
unsafe impl<A: Hardware> Sync for Reuse<A> {}
// SAFETY: as above.
unsafe impl<A: Hardware> Send for Reuse<A> {}

impl<A: Hardware> Reuse<A> {
    /// For the caches that exist now. Nothing is watched before [`Reuse::start`].
    ///
    /// # Errors
    /// The address space for the table was refused.
    pub fn new(slab: KRef<SlabState<A>>) -> io::Result<Reuse<A>> {
        let table = Table::new()?;
        let mut blocks = Vec::new();
        slab.for_each_cache(|s| {
            let cpus = s.cpu_slab.len().min(MAX_CPUS);
            let tag = blocks.len() + 1;
            // SAFETY: caches are boot memory.
            let s = unsafe { KRef::from_ref(s) };
            blocks.push((s, (0..cpus).map(|cpu| ReuseCpu::new(&table, tag, cpu)).collect()));
        });
        Ok(Reuse { slab, blocks, table })
    }

    /// From now on the events of the calling CPU count.
    pub fn start(&self, cpu: &Cpu<A>) {
        self.set(cpu.id, |r| std::ptr::from_ref(r).cast_mut());
    }

    /// From now on they do not.
    pub fn stop(&self, cpu: &Cpu<A>) {
        self.set(cpu.id, |_| null_mut());
    }

    fn set(&self, cpu: u32, f: impl Fn(&ReuseCpu) -> *mut ReuseCpu) {
        for (s, blocks) in &self.blocks {
            if let Some(r) = blocks.get(cpu as usize) {
                s.cpu_slab.of(cpu).reuse.set(f(r));
            }
        }
    }

    /// What names an object's last hand-out that was seen: another value after each. For checks, outside of every line that the
    /// kernel has.
    pub fn last_handed(&self, object: usize) -> u64 {
        known_of(self.table.0, object).handed.load(Relaxed)
    }

    /// What was seen, by cache; caches without events are left out. Exact once every CPU was stopped.
    pub fn report(&self) -> BTreeMap<&'static str, ReuseCount> {
        let mut out = BTreeMap::new();
        for (s, blocks) in &self.blocks {
            let sum = |f: fn(&ReuseCpu) -> &Unpriced| blocks.iter().map(|r| f(r).get()).sum::<u64>();
            let events = sum(|r| &r.events);
            if events == 0 {
                continue;
            }
            let bins = |of: fn(&ReuseCpu) -> &[Unpriced; REUSE_BINS]| {
                let all = (0..REUSE_BINS).map(|i| blocks.iter().map(|r| of(r)[i].get()).sum::<u64>());
                let mut v: Vec<u64> = all.collect();
                v.truncate(v.iter().rposition(|&n| n != 0).map_or(0, |i| i + 1));
                v
            };
            let allocs = sum(|r| &r.allocs);
            let count = ReuseCount {
                allocs,
                frees: events - allocs,
                bins: bins(|r| &r.bins),
                again: bins(|r| &r.again),
                remote: sum(|r| &r.remote),
                first: sum(|r| &r.first),
                distinct: sum(|r| &r.distinct),
            };
            out.insert(s.name, count);
        }
        out
    }
}

impl<A: Hardware> Drop for Reuse<A> {
    /// The CPUs of the kernel must stand still, or have been stopped by themselves.
    fn drop(&mut self) {
        let _ = self.slab;
        for (s, blocks) in &self.blocks {
            for cpu in 0..blocks.len() as u32 {
                let c = s.cpu_slab.of(cpu);
                if !c.reuse.get().is_null() {
                    c.reuse.set(null_mut());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{EXACT, Kernel, boot, free, get, vma_args};
    use super::super::{kmem_cache_alloc_bulk, kmem_cache_free_bulk};
    use super::*;
    use crate::cpu::testing::for_test_set;
    use crate::slab::{Allocator, SLAB_TYPESAFE_BY_RCU, SlabOptions};
    use std::collections::HashMap;

    fn watched(f: impl Fn(&Kernel, &Reuse<Native>, &KmemCache<Native>)) -> ReuseCount {
        watched_on(Allocator::Slub, f)
    }

    fn watched_on(allocator: Allocator, f: impl Fn(&Kernel, &Reuse<Native>, &KmemCache<Native>)) -> ReuseCount {
        let k = boot(2, 1, 64, SlabOptions { allocator, ..EXACT });
        let s = k.cache(vma_args(SLAB_TYPESAFE_BY_RCU));
        let reuse = Reuse::new(k.slab).unwrap();
        f(&k, &reuse, &s);
        let seen = reuse.report().remove("vm_area_struct").unwrap_or_default();
        assert!(seen.balances(), "{seen:?}");
        seen
    }

    #[test]
    fn ping_pong_is_the_next_event() {
        let cpus = for_test_set::<Native>(1);
        let cpu = &cpus.cpu(0);
        let c = watched(|_, reuse, s| {
            reuse.start(cpu);
            (0..100).for_each(|_| free(cpu, s, get(cpu, s)));
        });
        let want = ReuseCount {
            allocs: 100,
            frees: 100,
            bins: vec![99],
            again: vec![99],
            first: 1,
            distinct: 1,
            ..ReuseCount::default()
        };
        assert_eq!(c, want);
    }

    #[test]
    fn a_stack_of_two_slabs_comes_back_in_odd_distances() {
        let cpus = for_test_set::<Native>(1);
        let cpu = &cpus.cpu(0);
        // Two slabs of 21, freed in order of allocation: the second is the CPU's, the first waits on its stack, so the
        // 42 objects come back last in, first out. Between the free of object i from the end and its hand-out lie i
        // frees and i hand-outs.
        let c = watched(|_, reuse, s| {
            reuse.start(cpu);
            for _ in 0..2 {
                let p: Vec<_> = (0..42).map(|_| get(cpu, s)).collect();
                p.iter().for_each(|&p| free(cpu, s, p));
            }
        });
        let mut want = ReuseCount { allocs: 84, frees: 84, first: 42, distinct: 42, ..ReuseCount::default() };
        (0..42).for_each(|i| {
            want.add(2 * i + 1);
            // Handed out as number 42 - i of the first round and i + 1 of the second.
            want.add_again(2 * i + 1);
        });
        assert_eq!(c, want);
    }

    #[test]
    fn a_free_on_another_cpu_has_no_distance() {
        let cpus = for_test_set::<Native>(2);
        let (zero, one) = (&cpus.cpu(0), &cpus.cpu(1));
        let c = watched(|_, reuse, s| {
            reuse.start(zero);
            reuse.start(one);
            let p: Vec<_> = (0..21).map(|_| get(zero, s)).collect();
            p.iter().for_each(|&p| free(one, s, p));
            for _ in 0..21 {
                get(zero, s);
            }
        });
        let mut want =
            ReuseCount { allocs: 42, frees: 21, remote: 21, first: 21, distinct: 21, ..ReuseCount::default() };
        // In the order that CPU 1's frees left: last in, first out.
        (0..21).for_each(|i| want.add_again(2 * i + 1));
        assert_eq!(c, want);
    }

    #[test]
    fn nothing_counts_before_the_start_and_after_the_stop() {
        let cpus = for_test_set::<Native>(1);
        let cpu = &cpus.cpu(0);
        let c = watched(|_, reuse, s| {
            let before = get(cpu, s);
            reuse.start(cpu);
            free(cpu, s, before);
            let p = get(cpu, s);
            reuse.stop(cpu);
            free(cpu, s, p);
            let p = get(cpu, s);
            reuse.start(cpu);
            free(cpu, s, p);
        });
        assert_eq!(c, ReuseCount { allocs: 1, frees: 2, bins: vec![1], distinct: 1, ..ReuseCount::default() });
    }

    #[test]
    fn bulk_calls_count_each_object_and_a_dropped_watcher_leaves_nothing_behind() {
        let k = boot(1, 1, 64, EXACT);
        let (s, other) = (k.cache(vma_args(0)), k.cache(super::super::KmemCacheArgs { name: "other", ..vma_args(0) }));
        let cpus = for_test_set::<Native>(1);
        let cpu = &cpus.cpu(0);
        {
            let reuse = Reuse::new(k.slab).unwrap();
            reuse.start(cpu);
            let mut p = [null_mut(); 21];
            for _ in 0..2 {
                assert_eq!(kmem_cache_alloc_bulk(cpu, &s, &mut p), 21);
                // SAFETY: allocated just now.
                unsafe { kmem_cache_free_bulk(cpu, &s, &mut p) };
            }
            free(cpu, &other, get(cpu, &other));
            let seen = reuse.report();
            let c = &seen["vm_area_struct"];
            assert_eq!((c.allocs, c.frees, c.first, c.distinct, c.remote), (42, 42, 21, 21, 0));
            assert!(c.balances());
            assert_eq!(seen["other"].distinct, 1);
        }
        free(cpu, &s, get(cpu, &s));
        assert!(s.cpu_slab.of(0).reuse.get().is_null());
    }

    #[test]
    fn bins_are_powers_of_two() {
        assert_eq!([1, 2, 3, 4, 7, 8, 1 << 35, u64::MAX].map(reuse_bin), [0, 1, 1, 2, 2, 3, 35, 35]);
    }

    /// Workload R(1000) of slab.md 6.2 under the watcher, and a map beside it that says what is right.
    fn workload_r(allocator: Allocator, batch: usize) -> (ReuseCount, u64) {
        let cpus = for_test_set::<Native>(1);
        let cpu = &cpus.cpu(0);
        let hot = std::cell::Cell::new(0);
        let model = std::cell::RefCell::new(ReuseCount::default());
        let seen = watched_on(allocator, |_, reuse, s| {
            let mut slots: Vec<_> = (0..1000).map(|_| get(cpu, s)).collect();
            reuse.start(cpu);
            let mut x: u64 = 88_172_645_463_325_252;
            let (mut filling, mut waiting) = (Vec::new(), Vec::new());
            let mut handed = HashMap::new();
            let (mut freed, mut n) = (HashMap::new(), 0u64);
            let known = std::cell::RefCell::new(std::collections::HashSet::new());
            let mut last = null_mut();
            let mut m = model.borrow_mut();
            let give = |p: *mut u8, n: &mut u64, m: &mut ReuseCount, freed: &mut HashMap<_, _>| {
                *n += 1;
                m.frees += 1;
                m.distinct += u64::from(known.borrow_mut().insert(p));
                freed.insert(p, *n);
                free(cpu, s, p);
                p
            };
            for _ in 0..100_000 {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let p = get(cpu, s);
                n += 1;
                m.allocs += 1;
                m.distinct += u64::from(known.borrow_mut().insert(p));
                if let Some(before) = handed.insert(p, m.allocs) {
                    let nth = m.allocs;
                    m.add_again(nth - before);
                }
                match freed.remove(&p) {
                    Some(at) => m.add(n - at),
                    None => m.first += 1,
                }
                hot.set(hot.get() + u64::from(p == last));
                let old = std::mem::replace(&mut slots[(x >> 11) as usize % 1000], p);
                if batch == 0 {
                    last = give(old, &mut n, &mut m, &mut freed);
                    continue;
                }
                filling.push(old);
                if filling.len() == batch {
                    for p in std::mem::replace(&mut waiting, std::mem::take(&mut filling)) {
                        last = give(p, &mut n, &mut m, &mut freed);
                    }
                }
            }
        });
        assert_eq!(seen, model.into_inner(), "batch {batch}");
        (seen, hot.get())
    }

    #[test]
    fn hot_objects_of_workload_r_are_those_at_distance_one() {
        let (c, hot) = workload_r(Allocator::Slub, 0);
        assert_eq!(hot, 91_983);
        assert_eq!(c.bins[0], hot, "what comes back hot is at distance 1");
        let beyond = |c: &ReuseCount, d: usize| c.bins.iter().skip(d).sum::<u64>() as f64 / c.allocs as f64;
        assert!(beyond(&c, 5) < 0.09, "{c:?}");
        let (c, hot) = workload_r(Allocator::Sheaves, 0);
        assert_eq!((hot, c.bins[0]), (99_999, 99_999), "a sheaf is a stack");
        for (batch, hot_there) in [(32, 2888), (256, 388), (1024, 94)] {
            let (c, hot) = workload_r(Allocator::Slub, batch);
            assert_eq!(hot, hot_there);
            // The object freed last may also come out after others of its batch.
            assert!(c.bins[0] <= hot, "{c:?}");
            let bin = batch.ilog2() as usize;
            assert!(beyond(&c, bin - 1) > 0.6, "half a batch away or more: {c:?}");
        }
    }
}
