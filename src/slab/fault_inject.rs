// SPDX-License-Identifier: GPL-2.0-only
//! Allocations that fail on purpose [lib/fault-inject.c, mm/failslab.c, mm/fail_page_alloc.c, 6.12].
//!
//! dup: the two points and their names (`failslab`, `fail_page_alloc`), the attributes and the order in which they are
//! looked at, `fail_nth` of a task (here: of a CPU), which comes before them. custom: chances are per million; random
//! numbers are of a sequence of their own, numbered over all CPUs, so that the rest of a run draws what it would have
//! drawn; nothing fails before [`FaultInjection::arm`] or `fail_nth`, so that a kernel can boot and a workload can set
//! itself up. All allocations may fail, as with the kernel's ignore-gfp-wait and min-order at 0, but for those
//! under [`FaultInjection::nofail`] (`__GFP_NOFAIL`). Per-CPU memory is a page allocation here: the kernel's percpu allocator
//! asks for pages only where its chunk is full, and each of its callers must bear the answer. stub: filters by task, cache
//! and stack trace; messages.
//!
//! Costs nothing where off: a cache whose allocations may fail has its hooks bit set and leaves the fast path by it; the
//! page allocator looks at one word beside those it reads anyway.

use super::page_alloc::boot_slice;
use crate::arch::arena::KRef;
use crate::arch::{Arena, Atomic, Full, Hardware, Native, Plain, Relaxed};
use crate::cpu::{Cpu, splitmix64};

/// `struct fault_attr`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultAttr {
    /// Chance of each candidate, per million; 0: only `fail_nth`.
    pub probability: u32,
    /// Only each so many'th call is a candidate.
    pub interval: u32,
    /// Failures at most; negative: no limit.
    pub times: i64,
    /// As much must have been allocated before: bytes of objects, or pages.
    pub space: i64,
}

impl FaultAttr {
    /// Nothing fails but by `fail_nth`.
    pub const NTH: FaultAttr = FaultAttr { probability: 0, interval: 1, times: -1, space: 0 };

    /// Each call fails with this chance.
    pub const fn per_million(probability: u32) -> Self {
        FaultAttr { probability, ..Self::NTH }
    }
}

/// One place that can fail, and what it has seen. The words are the host's: a call that is to fail is no part of what
/// is simulated.
struct FaultPoint {
    attr: Option<FaultAttr>,
    seed: u64,
    /// Calls that were candidates (`count`).
    count: Atomic<Native, u64>,
    times: Atomic<Native, i64>,
    space: Atomic<Native, i64>,
    failed: Atomic<Native, u64>,
}

impl FaultPoint {
    fn new(attr: Option<FaultAttr>, seed: u64) -> Self {
        let a = attr.unwrap_or(FaultAttr::NTH);
        FaultPoint {
            attr,
            seed,
            count: Atomic::new(0),
            times: Atomic::new(a.times),
            space: Atomic::new(a.space),
            failed: Atomic::new(0),
        }
    }

    /// `should_fail_ex()`, all but `fail_nth`.
    fn should_fail(&self, size: i64) -> bool {
        let Some(attr) = self.attr.filter(|a| a.probability != 0) else { return false };
        if self.times.load(Relaxed) == 0 {
            return false;
        }
        if self.space.load(Relaxed) > size {
            self.space.fetch_sub(size, Relaxed);
            return false;
        }
        let n = self.count.fetch_add(1, Relaxed) + 1;
        if attr.interval > 1 && !n.is_multiple_of(u64::from(attr.interval)) {
            return false;
        }
        if splitmix64(self.seed ^ n) % 1_000_000 >= u64::from(attr.probability) {
            return false;
        }
        // atomic_dec_not_zero(); a negative count has no end.
        loop {
            let left = self.times.load(Relaxed);
            if left < 0 {
                break;
            }
            if left == 0 {
                return false;
            }
            if self.times.cmpxchg(left, left - 1, Full).is_ok() {
                break;
            }
        }
        true
    }
}

/// What may fail in a kernel.
pub struct FaultInjection {
    failslab: FaultPoint,
    fail_page_alloc: FaultPoint,
    armed: Atomic<Native, u32>,
    /// By CPU: allocations until the one that fails, counted down; 0: off.
    fail_nth: KRef<[Plain<Native, u32>]>,
    /// By CPU: depth of [`FaultInjection::nofail`].
    nofail: KRef<[Plain<Native, u32>]>,
}

impl FaultInjection {
    pub(super) fn new(
        arena: &Arena,
        nr_cpu_ids: u32,
        failslab: Option<FaultAttr>,
        fail_page_alloc: Option<FaultAttr>,
        seed: u64,
    ) -> KRef<Self> {
        let words = || boot_slice(arena, 0, nr_cpu_ids as usize, |_| Plain::new(0));
        arena.boot_new(
            0,
            FaultInjection {
                failslab: FaultPoint::new(failslab, splitmix64(seed ^ 0xfa11)),
                fail_page_alloc: FaultPoint::new(fail_page_alloc, splitmix64(seed ^ 0xfa12)),
                armed: Atomic::new(0),
                fail_nth: words(),
                nofail: words(),
            },
        )
    }

    /// Whether anything can fail on purpose in this kernel.
    pub fn possible(&self) -> bool {
        self.failslab.attr.is_some() || self.fail_page_alloc.attr.is_some()
    }

    /// From now on the attributes hold, or no longer.
    pub fn arm(&self, on: bool) {
        self.armed.store(u32::from(on), Relaxed);
    }

    /// `/proc/self/fail-nth`: the `n`th allocation of `cpu` from now fails, of either kind, and none before it; 0: none.
    /// The value left when it is switched off is not 0 where there were fewer.
    pub fn set_fail_nth<A: Hardware>(&self, cpu: &Cpu<A>, n: u32) -> u32 {
        let word = &self.fail_nth[cpu.id as usize];
        let left = word.get();
        word.set(n);
        left
    }

    /// Objects refused so far.
    pub fn failed_objects(&self) -> u64 {
        self.failslab.failed.load(Relaxed)
    }

    /// Page blocks refused so far.
    pub fn failed_pages(&self) -> u64 {
        self.fail_page_alloc.failed.load(Relaxed)
    }

    /// `should_failslab()`: whether this allocation of an object of `size` bytes is to fail.
    #[cold]
    #[inline(never)]
    pub(super) fn should_failslab<A: Hardware>(&self, cpu: &Cpu<A>, size: usize) -> bool {
        self.should_fail(cpu, &self.failslab, size as i64)
    }

    /// `should_fail_alloc_page()`
    #[cold]
    #[inline(never)]
    pub(super) fn should_fail_alloc_page<A: Hardware>(&self, cpu: &Cpu<A>, order: u32) -> bool {
        self.should_fail(cpu, &self.fail_page_alloc, 1 << order)
    }

    /// Whether this allocation of per-CPU memory is to fail, as one of a page (`pcpu_alloc_pages()`).
    pub fn should_fail_alloc_percpu<A: Hardware>(&self, cpu: &Cpu<A>) -> bool {
        self.should_fail(cpu, &self.fail_page_alloc, 1)
    }

    fn should_fail<A: Hardware>(&self, cpu: &Cpu<A>, point: &FaultPoint, size: i64) -> bool {
        if point.attr.is_none() || self.nofail[cpu.id as usize].get() != 0 {
            return false;
        }
        let nth = &self.fail_nth[cpu.id as usize];
        let fail = match nth.get() {
            0 => self.armed.load(Relaxed) != 0 && point.should_fail(size),
            n => {
                nth.set(n - 1);
                n == 1
            }
        };
        if fail {
            point.failed.fetch_add(1, Relaxed);
        }
        fail
    }

    /// Runs `f`, of whose allocations on this CPU none is made to fail (`__GFP_NOFAIL`). They still fail where memory
    /// is really out.
    pub fn nofail<A: Hardware, R>(&self, cpu: &Cpu<A>, f: impl FnOnce() -> R) -> R {
        let depth = &self.nofail[cpu.id as usize];
        depth.set(depth.get() + 1);
        let r = f();
        depth.set(depth.get() - 1);
        r
    }
}
