// SPDX-License-Identifier: GPL-2.0-only
//! What the allocator counts [enum stat_item of mm/slub.c, 6.12 and 7.3].
//!
//! One array per cache and CPU, inside the CPU's block as in the kernel: the counters of the allocation paths and of fast
//! frees share the line of the freelist. The words are the host's own ([`Unpriced`]), so no simulated clock pays for them;
//! natively they cost one plain add an event, in every variant alike. 64 bits; the kernel's are 32 bits wide.
//!
//! As there, whether it counts is decided when the program is built: the feature `slub_stats`, on by default. Without it
//! only what the port itself goes by is kept up ([`StatItem::is_kept`]), the other counters are in no report, and the record
//! says so (kconfig `slub_stats`). Nothing else depends on it. The golden tests of this floor read the counters.
//!
//! The two allocators share some names and have some of their own; [`StatItem::exists_in`] says which, and
//! [`SlabState::for_each_stat`] reports only those. Two shared names change their meaning: with sheaves
//! `alloc_fastpath` and `free_fastpath` are a sheaf's (even one that had to be filled first), and `free_slowpath` counts
//! objects where 6.12 counts calls; frees by a flushed sheaf are in no free counter at all. Do not compare such columns
//! across allocators without saying so.
//!
//! What waits for a grace period has a high water for each cache: objects in sheaves, emptied slabs. Objects that wait as
//! callbacks of their own are in the figure of RCU's list (`rcu_pending_high_water`, all caches together), those of
//! `kfree_rcu()`'s blocks in `kvfree_rcu.pending_high_water`.
//!
//! custom: items from `free_slow_objects` on are ours. Readers may run at any time; figures of different CPUs are then
//! of slightly different moments, and balances hold only while nobody is inside the allocator.

use super::slub_def::{KmemCache, KmemCacheCpu};
use super::{Allocator, SlabState};
use crate::arch::{Hardware, Native, Plain, Relaxed};
use crate::cpu::Cpu;

/// CONFIG_SLUB_STATS
pub const SLUB_STATS: bool = cfg!(feature = "slub_stats");

/// A counter that no world prices.
pub type Unpriced = Plain<Native, u64>;

macro_rules! stat_items {
    ($($(#[$m:meta])* $v:ident = $text:literal),* $(,)?) => {
        /// `enum stat_item`, in the kernel's order, and ours.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum StatItem { $($(#[$m])* $v),* }
        impl StatItem {
            /// All, in order.
            pub const ALL: &'static [StatItem] = &[$(StatItem::$v),*];
            /// Name of the sysfs file.
            pub const fn name(self) -> &'static str {
                match self { $(StatItem::$v => $text),* }
            }
        }
    };
}
stat_items! {
    /// Allocation from the cpu slab.
    AllocFastpath = "alloc_fastpath",
    /// Allocation that had to look further.
    AllocSlowpath = "alloc_slowpath",
    /// Free to the cpu slab, objects.
    FreeFastpath = "free_fastpath",
    /// Free to another slab, calls.
    FreeSlowpath = "free_slowpath",
    /// Free to a slab that some CPU allocates from.
    FreeFrozen = "free_frozen",
    /// Slab moved from a CPU stack to a node list.
    FreeAddPartial = "free_add_partial",
    /// Last object of a slab on a node list freed, and the slab taken off.
    FreeRemovePartial = "free_remove_partial",
    /// Cpu slab from a node list.
    AllocFromPartial = "alloc_from_partial",
    /// Cpu slab from the page allocator.
    AllocSlab = "alloc_slab",
    /// Cpu slab refilled with what others freed to it.
    AllocRefill = "alloc_refill",
    /// Cpu slab given up because it is on another node than wanted.
    AllocNodeMismatch = "alloc_node_mismatch",
    /// Slab given back to the page allocator, perhaps after a grace period.
    FreeSlab = "free_slab",
    /// Cpu slab given up on request.
    CpuslabFlush = "cpuslab_flush",
    /// Deactivated slab was full.
    DeactivateFull = "deactivate_full",
    /// Deactivated or drained slab was empty and discarded.
    DeactivateEmpty = "deactivate_empty",
    /// Deactivated slab went to the head of its node list.
    DeactivateToHead = "deactivate_to_head",
    /// Deactivated slab went to the tail of its node list.
    DeactivateToTail = "deactivate_to_tail",
    /// Deactivated slab held objects freed by others.
    DeactivateRemoteFrees = "deactivate_remote_frees",
    /// Cpu slab used up and forgotten.
    DeactivateBypass = "deactivate_bypass",
    /// Slab of a smaller order than wanted.
    OrderFallback = "order_fallback",
    /// Per-CPU exchanges that failed.
    CmpxchgDoubleCpuFail = "cmpxchg_double_cpu_fail",
    /// Slab record exchanges that failed.
    CmpxchgDoubleFail = "cmpxchg_double_fail",
    /// Cpu slab from the CPU stack.
    CpuPartialAlloc = "cpu_partial_alloc",
    /// Full slab put on the CPU stack by a free.
    CpuPartialFree = "cpu_partial_free",
    /// Slab put on the CPU stack from a node list.
    CpuPartialNode = "cpu_partial_node",
    /// CPU stack moved to node lists.
    CpuPartialDrain = "cpu_partial_drain",
    /// Object put into a CPU's sheaf that waits for a grace period.
    FreeRcuSheaf = "free_rcu_sheaf",
    /// Object that no such sheaf could take.
    FreeRcuSheafFail = "free_rcu_sheaf_fail",
    /// Objects that sheaves gave back to their slabs.
    SheafFlush = "sheaf_flush",
    /// Objects that sheaves were filled with from slabs.
    SheafRefill = "sheaf_refill",
    /// Sheaves made, each CPU's first included.
    SheafAlloc = "sheaf_alloc",
    /// Sheaves freed.
    SheafFree = "sheaf_free",
    /// Full sheaf taken out of a barn.
    BarnGet = "barn_get",
    /// The barn had none.
    BarnGetFail = "barn_get_fail",
    /// Full sheaf put into a barn.
    BarnPut = "barn_put",
    /// The barn had enough.
    BarnPutFail = "barn_put_fail",
    /// Prefilled sheaf that was the CPU's spare.
    SheafPrefillFast = "sheaf_prefill_fast",
    /// Prefilled sheaf from the barn, or a new one.
    SheafPrefillSlow = "sheaf_prefill_slow",
    /// Prefilled sheaf larger than the cache's.
    SheafPrefillOversize = "sheaf_prefill_oversize",
    /// Prefilled sheaf that became the CPU's spare when it came back.
    SheafReturnFast = "sheaf_return_fast",
    /// Prefilled sheaf that went to the barn, or was dissolved.
    SheafReturnSlow = "sheaf_return_slow",
    /// Ours: objects freed by the slow path (a bulk free frees several in one call).
    FreeSlowObjects = "free_slow_objects",
    /// Ours: objects that callers took out of prefilled sheaves, which the kernel does not count.
    SheafObjects = "sheaf_objects",
    /// Ours: objects of sheaves whose grace period is over.
    FreeRcuSheafDone = "free_rcu_sheaf_done",
    /// Ours: allocations that returned null.
    AllocFail = "alloc_fail",
    /// Ours: node list locks taken.
    ListLock = "list_lock",
    /// Ours: of these, those that had to wait.
    ListLockContended = "list_lock_contended",
    /// Ours: time waited so, ns.
    ListLockWait = "list_lock_wait_ns",
    /// Ours: objects of other nodes' slabs that came to a CPU to be handed out.
    RemoteObjects = "remote_objects",
    /// Ours: barn locks taken.
    BarnLock = "barn_lock",
    /// Ours: of these, those that had to wait.
    BarnLockContended = "barn_lock_contended",
    /// Ours: time waited so, ns.
    BarnLockWait = "barn_lock_wait_ns",
    /// Ours: pages taken for slabs.
    PagesTaken = "pages_taken",
    /// Ours: pages of slabs given back.
    PagesGiven = "pages_given",
    /// Ours: emptied slabs handed to `call_rcu`.
    TypesafeQueued = "typesafe_queued",
    /// Ours: of those, freed after their grace period.
    TypesafeFreed = "typesafe_freed",
    /// Ours: constructor calls.
    CtorCalls = "ctor_calls",
}

impl StatItem {
    /// Whether this build keeps the counter: all with CONFIG_SLUB_STATS; without, those from which follows what a cache
    /// holds and what waits for a grace period. They are bumped per slab, per sheaf, or for an object that is put into a
    /// sheaf to wait; none on the way of an ordinary allocation or free.
    pub const fn is_kept(self) -> bool {
        use StatItem as I;
        SLUB_STATS
            || matches!(
                self,
                I::SheafAlloc
                    | I::SheafFree
                    | I::FreeRcuSheaf
                    | I::FreeRcuSheafDone
                    | I::PagesTaken
                    | I::PagesGiven
                    | I::TypesafeQueued
                    | I::TypesafeFreed
            )
    }

    /// Whether `allocator` has this counter.
    pub const fn exists_in(self, allocator: Allocator) -> bool {
        use StatItem as I;
        let slub = matches!(
            self,
            I::FreeFrozen
                | I::AllocFromPartial
                | I::AllocRefill
                | I::CpuslabFlush
                | I::DeactivateFull
                | I::DeactivateEmpty
                | I::DeactivateToHead
                | I::DeactivateToTail
                | I::DeactivateRemoteFrees
                | I::DeactivateBypass
                | I::CmpxchgDoubleCpuFail
                | I::CpuPartialAlloc
                | I::CpuPartialFree
                | I::CpuPartialNode
                | I::CpuPartialDrain
        );
        let from = I::FreeRcuSheaf as usize;
        let sheaves = self as usize >= from && self as usize <= I::SheafReturnSlow as usize
            || matches!(
                self,
                I::SheafObjects | I::FreeRcuSheafDone | I::BarnLock | I::BarnLockContended | I::BarnLockWait
            );
        match allocator {
            Allocator::Slub => !sheaves,
            Allocator::Sheaves => !slub,
        }
    }
}

/// Number of items.
pub const NR_STAT_ITEMS: usize = StatItem::ALL.len();

/// The counters of one cache on one CPU.
#[repr(transparent)]
pub struct Stats([Unpriced; NR_STAT_ITEMS]);

impl Default for Stats {
    fn default() -> Self {
        Stats(std::array::from_fn(|_| Plain::new(0)))
    }
}

impl Stats {
    /// `stat_add()`
    #[inline(always)]
    pub(super) fn add(&self, i: StatItem, n: u64) {
        if !i.is_kept() {
            return;
        }
        let c = &self.0[i as usize];
        c.set(c.get().wrapping_add(n));
    }
    /// Value.
    pub fn get(&self, i: StatItem) -> u64 {
        self.0[i as usize].get()
    }
}

/// What of a cache waits for grace periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Objects in sheaves.
    Objects,
    /// Emptied slabs.
    Slabs,
}

impl Waiting {
    /// Counted when the wait begins, and when it is over.
    const fn items(self) -> (StatItem, StatItem) {
        match self {
            Waiting::Objects => (StatItem::FreeRcuSheaf, StatItem::FreeRcuSheafDone),
            Waiting::Slabs => (StatItem::TypesafeQueued, StatItem::TypesafeFreed),
        }
    }
}

/// The most that ever waited at once, of each [`Waiting`], for what one CPU queued.
#[derive(Default)]
pub struct HighWater([Peak; 2]);

struct Peak(Unpriced);
impl Default for Peak {
    fn default() -> Self {
        Peak(Plain::new(0))
    }
}

impl<A: Hardware> KmemCache<A> {
    /// `n` more have waited long enough; in a callback. Only callbacks make it less, so that what waits was never more
    /// than when one begins.
    pub(super) fn waited(&self, cpu: &Cpu<A>, what: Waiting, n: u64) {
        let c = self.this_cpu(cpu);
        let peak = &c.waiting.0[what as usize].0;
        peak.set(peak.get().max(self.waiting_in(c, what)));
        c.stat.add(what.items().1, n);
    }

    /// What waits of what this CPU queued. A callback is called on the CPU that queued it, but for offloaded ones: then
    /// the threads that call them look at all CPUs.
    fn waiting_in(&self, c: &KmemCacheCpu<A>, what: Waiting) -> u64 {
        if self.state.rcu.config().nocb {
            return self.waiting(what);
        }
        let (queued, done) = what.items();
        (c.stat.get(queued).wrapping_sub(c.stat.get(done)) as i64).max(0) as u64
    }

    /// What waits for a grace period.
    pub fn waiting(&self, what: Waiting) -> u64 {
        let (queued, done) = what.items();
        self.stat_sum(queued).wrapping_sub(self.stat_sum(done))
    }

    /// The most that waited at once: the sum of each CPU's highest, or with offloaded callbacks the highest of all.
    pub fn waiting_high_water(&self, what: Waiting) -> u64 {
        let each = self.cpu_slab.iter().map(|c| c.waiting.0[what as usize].0.get().max(self.waiting_in(c, what)));
        if self.state.rcu.config().nocb { each.max().unwrap_or(0) } else { each.sum() }
    }

    /// Sum over all CPUs.
    pub fn stat_sum(&self, i: StatItem) -> u64 {
        self.cpu_slab.iter().map(|c| c.stat.get(i)).sum()
    }

    /// Value on one CPU.
    pub fn stat_of(&self, cpu: u32, i: StatItem) -> u64 {
        self.cpu_slab.of(cpu).stat.get(i)
    }

    /// Objects allocated and not freed. What lies in a sheaf is not allocated, and neither is what waits in one for a
    /// grace period; with 6.12's allocator an object is live until its callback frees it. Means nothing where the build
    /// does not count ([`SLUB_STATS`]).
    pub fn live_objects(&self) -> i64 {
        let (mut up, mut down) = (0u64, 0u64);
        for c in self.cpu_slab.iter() {
            let get = |i| c.stat.get(i);
            up += get(StatItem::AllocFastpath) + get(StatItem::AllocSlowpath) + get(StatItem::SheafObjects);
            down += get(StatItem::AllocFail) + get(StatItem::FreeFastpath) + get(StatItem::FreeSlowObjects);
            down += get(StatItem::FreeRcuSheaf);
        }
        up.wrapping_sub(down) as i64
    }

    /// Sheaves made and not freed, those that callers hold and those behind a grace period included.
    pub fn nr_sheaves(&self) -> u64 {
        self.stat_sum(StatItem::SheafAlloc).wrapping_sub(self.stat_sum(StatItem::SheafFree))
    }

    /// Slabs in use: neither given back nor waiting for a grace period.
    pub fn nr_slabs(&self) -> u64 {
        self.node.iter().map(|n| n.nr_slabs.load(Relaxed)).sum()
    }

    /// Highest number of slabs in use at once; with several nodes the sum of each node's highest.
    pub fn slabs_high_water(&self) -> u64 {
        self.node.iter().map(|n| n.slabs_hw.load(Relaxed)).sum()
    }

    /// Pages held, those that wait for a grace period included.
    pub fn slab_pages(&self) -> u64 {
        self.stat_sum(StatItem::PagesTaken).wrapping_sub(self.stat_sum(StatItem::PagesGiven))
    }

    /// Emptied slabs whose pages wait for a grace period.
    pub fn typesafe_pending_slabs(&self) -> u64 {
        self.waiting(Waiting::Slabs)
    }
}

impl<A: Hardware> SlabState<A> {
    /// Calls `f` with every cache, latest first.
    pub fn for_each_cache(&self, mut f: impl FnMut(&KmemCache<A>)) {
        let mut p = self.caches.get();
        while !p.is_null() {
            // SAFETY: caches on the list are boot memory.
            let s = unsafe { &*p };
            f(s);
            p = s.list.get();
        }
    }

    /// Calls `f` with `cache.item` and its sum, for every cache and every item that the build keeps and the allocator in use has, and with
    /// the figures derived from them.
    pub fn for_each_stat(&self, mut f: impl FnMut(String, u64)) {
        self.for_each_cache(|s| {
            for &i in StatItem::ALL.iter().filter(|i| i.is_kept() && i.exists_in(self.options.allocator)) {
                f(format!("{}.{}", s.name, i.name()), s.stat_sum(i));
            }
            if SLUB_STATS {
                f(format!("{}.live_objects", s.name), s.live_objects() as u64);
            }
            f(format!("{}.nr_slabs", s.name), s.nr_slabs());
            f(format!("{}.slabs_high_water", s.name), s.slabs_high_water());
            f(format!("{}.slab_pages", s.name), s.slab_pages());
            f(format!("{}.typesafe_pending_slabs", s.name), s.typesafe_pending_slabs());
            if s.typesafe {
                f(format!("{}.typesafe_pending_high_water", s.name), s.waiting_high_water(Waiting::Slabs));
            }
            if s.sheaf_capacity != 0 {
                f(format!("{}.rcu_sheaf_pending_high_water", s.name), s.waiting_high_water(Waiting::Objects));
            }
        });
    }

    /// Pages held by all caches: a cheap sum of unpriced words, exact while nobody is inside the allocator.
    pub fn slab_pages(&self) -> u64 {
        let mut n = 0;
        self.for_each_cache(|s| n += s.slab_pages());
        n
    }

    /// Emptied slabs of all caches whose pages wait for a grace period.
    pub fn typesafe_pending_slabs(&self) -> u64 {
        let mut n = 0;
        self.for_each_cache(|s| n += s.typesafe_pending_slabs());
        n
    }
}
