// SPDX-License-Identifier: GPL-2.0-only
//! `percpu_counter`: a count that each CPU keeps a share of, handing it in when the share reaches a batch.
//!
//! Follows lib/percpu_counter.c and include/linux/percpu_counter.h of 6.12, and of mm/percpu.c the little that counters
//! need. An mm's resident pages (`rss_stat`) are four of these.
//!
//! custom: what the kernel keeps in statics (the batch, the per-CPU area) is [`PercpuCounters`], one a kernel. Per-CPU
//! memory is given out in groups of [`GROUP`] cells, zeroed, under one lock; a counter knows its cell by number as the
//! kernel's knows its offset. No interrupt can come between, so that the fast add is a load and a store where the
//! kernel has an exchange without lock prefix: a nanosecond or two cheaper, alike for everybody. stub: the list of all
//! counters, which CPU hotplug walks and which creating and destroying a counter extends under one lock; the variants
//! with a limit.
//!
//! INVARIANT: `count` and all cells together are the true value; a cell is written by its own CPU only, `count` under
//! `lock` only. A cell stays below the batch in size, so that `count` is off by less than batch times CPUs.

use crate::arch::arena::KRef;
use crate::arch::{Arch, Arena, Atomic, Hardware, Plain, Relaxed};
use crate::cpu::{Cpu, Errno, PerCpu};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_unlock};

/// Cells given out together: what an mm needs, 16 bytes a CPU.
pub const GROUP: usize = 4;
/// Groups there are.
pub const GROUPS: usize = 256;

/// `struct percpu_counter`, 40 bytes with CPU hotplug.
#[repr(C)]
#[derive(Debug)]
pub struct PercpuCounter<A: Arch> {
    /// Guards `count`.
    lock: RawSpinLock<A>,
    /// What the CPUs have handed in.
    count: Atomic<A, i64>,
    list: [u64; 2],
    /// The cell in each CPU's area; 0: none.
    counters: Plain<A, u64>,
}

const _: () = {
    use crate::arch::Native;
    use std::mem::{offset_of, size_of};
    type C = PercpuCounter<Native>;
    assert!(size_of::<C>() == 40 && offset_of!(C, count) == 8 && offset_of!(C, counters) == 32);
};

/// One CPU's cells; the first group is nobody's.
#[repr(C)]
pub struct CounterCells<A: Arch>([Atomic<A, i32>; (GROUPS + 1) * GROUP]);

impl<A: Arch> CounterCells<A> {
    fn new() -> Self {
        CounterCells(std::array::from_fn(|_| Atomic::new(0)))
    }
}

/// What all counters of a kernel share.
pub struct PercpuCounters<A: Arch> {
    cells: PerCpu<A, CounterCells<A>>,
    /// `percpu_counter_batch`
    batch: i32,
    /// `num_online_cpus()`
    nr_cpus: u32,
    free: KRef<FreeGroups<A>>,
}

/// Groups to give out.
struct FreeGroups<A: Arch> {
    lock: RawSpinLock<A>,
    group: [Plain<A, u32>; GROUPS],
    n: Plain<A, u32>,
}

impl<A: Arch> FreeGroups<A> {
    fn new() -> Self {
        FreeGroups {
            lock: RawSpinLock::new(),
            group: std::array::from_fn(|i| Plain::new((GROUPS - i) as u32)),
            n: Plain::new(GROUPS as u32),
        }
    }
}

/// `compute_batch_value()`
fn compute_batch_value(nr_cpus: u32) -> i32 {
    (nr_cpus as i32 * 2).max(32)
}

impl<A: Arch> PercpuCounters<A> {
    /// Areas for `total` CPUs, kernel threads included, of which `nr_cpus` are real.
    pub fn new(arena: &Arena, nr_cpus: u32, total: u32, node_of: impl Fn(u32) -> u32) -> Self
    where
        A: Hardware,
    {
        let free = arena.boot_new(0, FreeGroups::new());
        A::label(free.as_ptr().cast(), size_of::<FreeGroups<A>>(), "percpu_counter groups");
        PercpuCounters {
            cells: PerCpu::new(arena, total, node_of, "percpu_counter", |_| CounterCells::new()),
            batch: compute_batch_value(nr_cpus),
            nr_cpus,
            free,
        }
    }

    /// `percpu_counter_batch`: at how much a CPU hands its share in.
    #[inline(always)]
    pub fn batch(&self) -> i32 {
        self.batch
    }

    /// Groups given out.
    pub fn in_use(&self) -> u32 {
        GROUPS as u32 - self.free.n.get()
    }
}

impl<A: Arch> PercpuCounter<A> {
    /// A counter that has no cells yet.
    pub fn new() -> Self {
        PercpuCounter { lock: RawSpinLock::new(), count: Atomic::new(0), list: [0; 2], counters: Plain::new(0) }
    }

    #[inline(always)]
    fn cell<'a>(&self, cells: &'a CounterCells<A>) -> &'a Atomic<A, i32> {
        &cells.0[self.counters.get() as usize]
    }
}
impl<A: Arch> Default for PercpuCounter<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `percpu_counter_init_many()`: gives up to [`GROUP`] counters cells of their own and the value `amount`.
///
/// # Errors
/// `ENOMEM`: no group is left.
pub fn percpu_counter_init_many<A: Arch>(
    cpu: &Cpu<A>,
    k: &PercpuCounters<A>,
    fbc: &[PercpuCounter<A>],
    amount: i64,
) -> Result<(), Errno> {
    assert!(fbc.len() <= GROUP, "at most {GROUP} counters at once");
    let f = &*k.free;
    raw_spin_lock(cpu, &f.lock);
    let n = f.n.get();
    let group = if n == 0 {
        None
    } else {
        f.n.set(n - 1);
        Some(f.group[n as usize - 1].get())
    };
    raw_spin_unlock(cpu, &f.lock);
    let first = group.ok_or(Errno::ENOMEM)? as usize * GROUP;
    for area in k.cells.iter() {
        area.0[first..first + GROUP].iter().for_each(|c| c.store(0, Relaxed));
    }
    for (i, c) in fbc.iter().enumerate() {
        c.lock.init();
        c.count.store(amount, Relaxed);
        c.counters.set((first + i) as u64);
    }
    Ok(())
}

/// `percpu_counter_destroy_many()`: takes the cells back from counters that were made together.
pub fn percpu_counter_destroy_many<A: Arch>(cpu: &Cpu<A>, k: &PercpuCounters<A>, fbc: &[PercpuCounter<A>]) {
    let Some(first) = fbc.first().map(|c| c.counters.get()).filter(|c| *c != 0) else { return };
    fbc.iter().for_each(|c| c.counters.set(0));
    let f = &*k.free;
    raw_spin_lock(cpu, &f.lock);
    let n = f.n.get();
    f.group[n as usize].set(first as u32 / GROUP as u32);
    f.n.set(n + 1);
    raw_spin_unlock(cpu, &f.lock);
}

/// `percpu_counter_add_batch()`
#[inline(always)]
pub fn percpu_counter_add_batch<A: Arch>(
    cpu: &Cpu<A>,
    k: &PercpuCounters<A>,
    fbc: &PercpuCounter<A>,
    amount: i64,
    batch: i32,
) {
    let cell = fbc.cell(k.cells.this(cpu));
    let count = i64::from(cell.load(Relaxed)) + amount;
    if count.abs() < i64::from(batch) {
        cell.store(count as i32, Relaxed);
    } else {
        hand_in(cpu, fbc, cell, count);
    }
}

#[cold]
#[inline(never)]
fn hand_in<A: Arch>(cpu: &Cpu<A>, fbc: &PercpuCounter<A>, cell: &Atomic<A, i32>, count: i64) {
    raw_spin_lock(cpu, &fbc.lock);
    fbc.count.store(fbc.count.load(Relaxed) + count, Relaxed);
    cell.store(0, Relaxed);
    raw_spin_unlock(cpu, &fbc.lock);
}

/// `percpu_counter_add()`: with the kernel's batch.
#[inline(always)]
pub fn percpu_counter_add<A: Arch>(cpu: &Cpu<A>, k: &PercpuCounters<A>, fbc: &PercpuCounter<A>, amount: i64) {
    percpu_counter_add_batch(cpu, k, fbc, amount, k.batch);
}

/// `percpu_counter_read()`: what was handed in.
#[inline(always)]
pub fn percpu_counter_read<A: Arch>(fbc: &PercpuCounter<A>) -> i64 {
    fbc.count.load(Relaxed)
}

/// `percpu_counter_read_positive()`: the same, 0 where CPUs that took away were quicker than those that added.
#[inline(always)]
pub fn percpu_counter_read_positive<A: Arch>(fbc: &PercpuCounter<A>) -> i64 {
    percpu_counter_read(fbc).max(0)
}

/// `percpu_counter_sum()`: with every CPU's share; exact once nobody adds.
pub fn percpu_counter_sum<A: Arch>(cpu: &Cpu<A>, k: &PercpuCounters<A>, fbc: &PercpuCounter<A>) -> i64 {
    raw_spin_lock(cpu, &fbc.lock);
    let shares = k.cells.iter().map(|c| i64::from(fbc.cell(c).load(Relaxed))).sum::<i64>();
    let sum = fbc.count.load(Relaxed) + shares;
    raw_spin_unlock(cpu, &fbc.lock);
    sum
}

/// `percpu_counter_compare()`: the count against `rhs`; sums only where what was handed in does not decide.
pub fn percpu_counter_compare<A: Arch>(
    cpu: &Cpu<A>,
    k: &PercpuCounters<A>,
    fbc: &PercpuCounter<A>,
    rhs: i64,
) -> std::cmp::Ordering {
    let count = percpu_counter_read(fbc);
    if (count - rhs).abs() > i64::from(k.batch) * i64::from(k.nr_cpus) {
        return count.cmp(&rhs);
    }
    percpu_counter_sum(cpu, k, fbc).cmp(&rhs)
}

/// `percpu_counter_set()`: nobody may add meanwhile.
pub fn percpu_counter_set<A: Arch>(cpu: &Cpu<A>, k: &PercpuCounters<A>, fbc: &PercpuCounter<A>, amount: i64) {
    raw_spin_lock(cpu, &fbc.lock);
    k.cells.iter().for_each(|c| fbc.cell(c).store(0, Relaxed));
    fbc.count.store(amount, Relaxed);
    raw_spin_unlock(cpu, &fbc.lock);
}

/// `percpu_counter_sync()`: this CPU hands its share in.
pub fn percpu_counter_sync<A: Arch>(cpu: &Cpu<A>, k: &PercpuCounters<A>, fbc: &PercpuCounter<A>) {
    let cell = fbc.cell(k.cells.this(cpu));
    hand_in(cpu, fbc, cell, i64::from(cell.load(Relaxed)));
}

#[cfg(test)]
impl<A: Arch> PercpuCounters<A> {
    /// On the heap and leaked.
    pub(crate) fn leak(nr_cpus: u32) -> Self {
        PercpuCounters {
            cells: PerCpu::leak(nr_cpus, |_| CounterCells::new()),
            batch: compute_batch_value(nr_cpus),
            nr_cpus,
            // SAFETY: leaked, hence alive for ever.
            free: unsafe { KRef::from_ref(Box::leak(Box::new(FreeGroups::new()))) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;
    use crate::cpu::testing::for_test_set;
    use std::cmp::Ordering::{Equal, Greater, Less};

    type C = PercpuCounter<Native>;

    fn counters(k: &PercpuCounters<Native>, cpu: &Cpu<Native>, amount: i64) -> [C; GROUP] {
        let c = std::array::from_fn(|_| C::new());
        percpu_counter_init_many(cpu, k, &c, amount).expect("a group");
        c
    }

    #[test]
    fn the_batch_is_twice_the_cpus_and_at_least_32() {
        assert_eq!([1, 16, 17, 64].map(compute_batch_value), [32, 32, 34, 128]);
    }

    #[test]
    fn a_share_is_handed_in_when_it_reaches_the_batch_and_not_before() {
        let set = for_test_set::<Native>(2);
        let (k, cpu, other) = (PercpuCounters::leak(2), set.cpu(0), set.cpu(1));
        let c = &counters(&k, &cpu, 100)[2];
        (0..31).for_each(|_| percpu_counter_add(&cpu, &k, c, 1));
        assert_eq!((percpu_counter_read(c), percpu_counter_sum(&cpu, &k, c)), (100, 131));
        percpu_counter_add(&cpu, &k, c, 1);
        assert_eq!(percpu_counter_read(c), 132);
        // Downwards too, and with another batch.
        percpu_counter_add(&other, &k, c, -31);
        assert_eq!(percpu_counter_read(c), 132);
        percpu_counter_add(&other, &k, c, -1);
        assert_eq!(percpu_counter_read(c), 100);
        percpu_counter_add_batch(&cpu, &k, c, 4, 5);
        assert_eq!(percpu_counter_read(c), 100);
        percpu_counter_add_batch(&cpu, &k, c, 1, 5);
        assert_eq!(percpu_counter_read(c), 105);
        percpu_counter_add(&other, &k, c, 7);
        percpu_counter_sync(&other, &k, c);
        assert_eq!(percpu_counter_read(c), 112);
        percpu_counter_set(&cpu, &k, c, -3);
        assert_eq!((percpu_counter_sum(&cpu, &k, c), percpu_counter_read_positive(c)), (-3, 0));
    }

    #[test]
    fn a_comparison_sums_only_where_it_must() {
        let set = for_test_set::<Native>(2);
        let (k, cpu, other) = (PercpuCounters::leak(2), set.cpu(0), set.cpu(1));
        let c = &counters(&k, &cpu, 100)[0];
        percpu_counter_add(&cpu, &k, c, 20);
        percpu_counter_add(&other, &k, c, 20);
        let cmp = |rhs| percpu_counter_compare(&cpu, &k, c, rhs);
        assert_eq!([139, 140, 141].map(cmp), [Greater, Equal, Less]);
        // 64 = batch x CPUs away from what was handed in: the shares could still turn it; 65 away they cannot, and a
        // share that no add can make shows that they were not asked.
        c.cell(k.cells.of(1)).store(1000, Relaxed);
        assert_eq!([164, 165].map(cmp), [Greater, Less]);
    }

    #[test]
    fn cells_are_each_counters_own_zeroed_and_come_back() {
        let set = for_test_set::<Native>(1);
        let (k, cpu) = (PercpuCounters::leak(1), set.cpu(0));
        let all: Vec<_> = (0..GROUPS).map(|_| counters(&k, &cpu, 0)).collect();
        for (i, c) in all.iter().flatten().enumerate() {
            percpu_counter_add(&cpu, &k, c, (i % 31) as i64);
        }
        for (i, c) in all.iter().flatten().enumerate() {
            assert_eq!(percpu_counter_sum(&cpu, &k, c), (i % 31) as i64, "counter {i}");
        }
        let one = [C::new()];
        assert_eq!(percpu_counter_init_many(&cpu, &k, &one, 0), Err(Errno::ENOMEM));
        percpu_counter_destroy_many(&cpu, &k, &one);
        assert_eq!(k.in_use(), GROUPS as u32);
        percpu_counter_destroy_many(&cpu, &k, &all[7]);
        assert_eq!(k.in_use(), GROUPS as u32 - 1);
        percpu_counter_init_many(&cpu, &k, &one, 5).expect("the group that came back");
        assert_eq!(percpu_counter_sum(&cpu, &k, &one[0]), 5);
    }

    #[test]
    fn nothing_is_lost_between_the_cpus() {
        let set = for_test_set::<Native>(3);
        let boot = set.cpu(0);
        let k = PercpuCounters::leak(3);
        let c = counters(&k, &boot, 0);
        std::thread::scope(|s| {
            for id in 0..3 {
                let (set, k, c) = (&set, &k, &c[0]);
                s.spawn(move || {
                    let cpu = set.cpu(id);
                    for i in 0..30_000_i64 {
                        percpu_counter_add(&cpu, k, c, i % 7 - 2);
                        if i % 1000 == 0 {
                            percpu_counter_sum(&cpu, k, c);
                        }
                    }
                });
            }
        });
        let one: i64 = (0..30_000).map(|i| i % 7 - 2).sum();
        assert_eq!(percpu_counter_sum(&boot, &k, &c[0]), 3 * one);
        assert!((percpu_counter_read(&c[0]) - 3 * one).abs() < 3 * 32);
    }
}
