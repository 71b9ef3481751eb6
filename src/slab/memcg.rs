// SPDX-License-Identifier: GPL-2.0-only
//! What memory cgroups do to `SLAB_ACCOUNT` caches, as far as memory is touched [mm/memcontrol.c, mm/slub.c, 6.12:
//! __memcg_slab_post_alloc_hook, __memcg_slab_free_hook], where [`SlabOptions::memcg`] asks for it.
//!
//! dup: the current cgroup looked up, its bytes taken from the CPU's stock, which refills by pages from the CPU's page
//! stock, and that by 64 from a counter that all share; a pointer for each object in an array beside its slab, allocated
//! with the slab's first object; a per-CPU reference; the per-CPU statistics, folded when they exceed a page. The mirror
//! on free, in the callback where a callback frees. custom: there is one cgroup and it has no limit, so the stock is
//! never flushed for another's sake; arrays come from caches of their own, by class. stub: limits, reclaim, the hierarchy,
//! draining of other CPUs' stocks, pages charged.
//!
//! INVARIANT: pages in the shared counter = pages in stocks + (bytes in stocks + bytes of charged objects) / page size.
//!
//! [`SlabOptions::memcg`]: super::SlabOptions::memcg

use super::page_alloc::PageAllocator;
use super::slab_common::{SLAB_NO_SHEAVES, kmalloc_class, kmem_cache_create};
use super::slub::{kmem_cache_alloc, kmem_cache_free};
use super::slub_def::{KmemCache, Slab};
use super::{KmemCacheArgs, SlabState};
use crate::arch::arena::{KRef, PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Arena, Atomic, Full, Hardware, Plain, Relaxed};
use crate::cpu::{Cpu, PerCpu};
use std::ptr::NonNull;

/// Pages that move between the shared counter and a CPU at once.
const MEMCG_CHARGE_BATCH: u32 = 64;

/// `struct memcg_stock_pcp`, with what the hooks touch of the task and of the cgroup's per-CPU parts.
#[repr(C, align(64))]
pub struct MemcgStock<A: Hardware> {
    /// `stock_lock`
    lock: Plain<A, u64>,
    /// `cached_objcg`
    cached: Plain<A, usize>,
    nr_bytes: Plain<A, u32>,
    nr_pages: Plain<A, u32>,
    nr_slab_bytes: Plain<A, i64>,
    /// The task's cgroup.
    current: Plain<A, usize>,
    /// References to the cgroup (`percpu_ref`).
    refs: Plain<A, i64>,
    /// Bytes of objects, folded (`vmstats_percpu`).
    slab_bytes: Plain<A, i64>,
}

/// The one cgroup.
pub struct Memcg<A: Hardware> {
    stock: PerCpu<A, MemcgStock<A>>,
    /// `page_counter`
    usage: KRef<PageCounter<A>>,
}

#[repr(C, align(64))]
struct PageCounter<A: Hardware>(Atomic<A, i64>);

/// What is charged; for tests and reports, while nobody allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemcgUsage {
    /// Bytes charged and not given back: of objects.
    pub bytes: i64,
    /// The same by the statistics.
    pub stat_bytes: i64,
    /// Objects that hold a reference.
    pub refs: i64,
}

impl<A: Hardware> Memcg<A> {
    pub(super) fn new(arena: &Arena, pages: &PageAllocator<A>) -> KRef<Self> {
        let usage = arena.boot_new(0, PageCounter(Atomic::new(0)));
        A::label(usage.as_ptr().cast(), size_of::<PageCounter<A>>(), "page_counter");
        let node = |c| pages.cpu_to_node(c);
        let stock = PerCpu::new(arena, pages.nr_cpu_ids(), node, "memcg_stock", |_| MemcgStock {
            lock: Plain::new(0),
            cached: Plain::new(0),
            nr_bytes: Plain::new(0),
            nr_pages: Plain::new(0),
            nr_slab_bytes: Plain::new(0),
            current: Plain::new(usage.as_ptr() as usize),
            refs: Plain::new(0),
            slab_bytes: Plain::new(0),
        });
        arena.boot_new(0, Memcg { stock, usage })
    }

    /// What is charged.
    pub fn usage(&self) -> MemcgUsage {
        let mut u = MemcgUsage { bytes: self.usage.0.load(Relaxed) << PAGE_SHIFT, ..MemcgUsage::default() };
        for s in self.stock.iter() {
            u.bytes -= (i64::from(s.nr_pages.get()) << PAGE_SHIFT) + i64::from(s.nr_bytes.get());
            u.stat_bytes += s.nr_slab_bytes.get() + s.slab_bytes.get();
            u.refs += s.refs.get();
        }
        u
    }

    /// `obj_cgroup_charge()`
    fn charge(&self, s: &MemcgStock<A>, objcg: usize, bytes: u32) {
        s.lock.set(1);
        if s.cached.get() == objcg && s.nr_bytes.get() >= bytes {
            s.nr_bytes.set(s.nr_bytes.get() - bytes);
            s.lock.set(0);
            return;
        }
        s.lock.set(0);
        let pages = bytes.div_ceil(PAGE_SIZE as u32);
        self.charge_pages(s, pages);
        self.refill_obj_stock(s, objcg, (pages << PAGE_SHIFT) - bytes, false);
    }

    /// `obj_cgroup_charge_pages()`, `try_charge_memcg()`
    #[cold]
    #[inline(never)]
    fn charge_pages(&self, s: &MemcgStock<A>, pages: u32) {
        s.lock.set(1);
        if s.nr_pages.get() >= pages {
            s.nr_pages.set(s.nr_pages.get() - pages);
        } else {
            let batch = pages.max(MEMCG_CHARGE_BATCH);
            self.usage.0.fetch_add(i64::from(batch), Full);
            s.nr_pages.set(s.nr_pages.get() + batch - pages);
        }
        s.lock.set(0);
    }

    /// `refill_obj_stock()`
    fn refill_obj_stock(&self, s: &MemcgStock<A>, objcg: usize, bytes: u32, allow_uncharge: bool) {
        s.lock.set(1);
        s.cached.set(objcg);
        let mut have = s.nr_bytes.get() + bytes;
        if allow_uncharge && have > PAGE_SIZE as u32 {
            let pages = have >> PAGE_SHIFT;
            have &= PAGE_SIZE as u32 - 1;
            // refill_stock()
            let all = s.nr_pages.get() + pages;
            if all > MEMCG_CHARGE_BATCH {
                self.usage.0.fetch_sub(i64::from(all), Full);
                s.nr_pages.set(0);
            } else {
                s.nr_pages.set(all);
            }
        }
        s.nr_bytes.set(have);
        s.lock.set(0);
    }

    /// `mod_objcg_state()`
    fn mod_state(&self, s: &MemcgStock<A>, bytes: i64) {
        s.lock.set(1);
        let sum = s.nr_slab_bytes.get() + bytes;
        if sum.abs() > PAGE_SIZE as i64 {
            s.slab_bytes.set(s.slab_bytes.get() + sum);
            s.nr_slab_bytes.set(0);
        } else {
            s.nr_slab_bytes.set(sum);
        }
        s.lock.set(0);
    }
}

/// Bytes charged for an object (`obj_full_size()`).
fn obj_full_size<A: Hardware>(s: &KmemCache<A>) -> u32 {
    s.size() as u32 + 8
}

/// The pointer word of an object.
///
/// # Safety
/// `exts` is the array of `slab` of `s`, in which `object` lies.
unsafe fn ext<'a, A: Hardware>(s: &KmemCache<A>, slab: &Slab<A>, exts: u64, object: usize) -> &'a Plain<A, usize> {
    let i = (object - slab.address()) / s.size();
    // SAFETY: the caller's; the array has a word for each object, accessed as `Plain` only.
    unsafe { &*((exts as usize + 8 * i) as *const Plain<A, usize>) }
}

/// `__memcg_slab_post_alloc_hook()`
#[inline(never)]
pub(super) fn memcg_slab_post_alloc_hook<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    m: &Memcg<A>,
    slab: &Slab<A>,
    object: usize,
) {
    let stock = m.stock.this(cpu);
    let objcg = stock.current.get();
    let bytes = obj_full_size(s);
    m.charge(stock, objcg, bytes);
    let mut exts = slab.obj_exts.load(Relaxed);
    if exts == 0 {
        exts = alloc_slab_obj_exts(cpu, s, slab);
        if exts == 0 {
            // Not charged then, and at its free there is no word that says so.
            m.refill_obj_stock(stock, objcg, bytes, true);
            return;
        }
    }
    stock.refs.set(stock.refs.get() + 1);
    // SAFETY: the slab's array.
    unsafe { ext(s, slab, exts, object) }.set(objcg);
    m.mod_state(stock, i64::from(bytes));
}

/// `alloc_slab_obj_exts()`: 0 when out of memory.
#[cold]
#[inline(never)]
fn alloc_slab_obj_exts<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) -> u64 {
    let Some(cache) = s.exts_cache else { return 0 };
    let p = kmem_cache_alloc(cpu, &cache);
    if p.is_null() {
        return 0;
    }
    // SAFETY: fresh memory for a word an object.
    unsafe { A::clear(p, 8 * slab.counters().objects() as usize) };
    match slab.obj_exts.cmpxchg(0, p as u64, Full) {
        Ok(_) => p as u64,
        Err(other) => {
            // SAFETY: allocated just now; another CPU was first.
            unsafe { kmem_cache_free(cpu, &cache, p) };
            other
        }
    }
}

/// `__memcg_slab_free_hook()`
#[inline(never)]
pub(super) fn memcg_slab_free_hook<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    m: &Memcg<A>,
    slab: &Slab<A>,
    object: usize,
) {
    let exts = slab.obj_exts.load(Relaxed);
    if exts == 0 {
        return;
    }
    // SAFETY: the slab's array.
    let word = unsafe { ext(s, slab, exts, object) };
    let objcg = word.get();
    if objcg == 0 {
        return;
    }
    word.set(0);
    let (stock, bytes) = (m.stock.this(cpu), obj_full_size(s));
    m.refill_obj_stock(stock, objcg, bytes, true);
    m.mod_state(stock, -i64::from(bytes));
    stock.refs.set(stock.refs.get() - 1);
}

/// `free_slab_obj_exts()`: the array of a slab that goes.
pub(super) fn free_slab_obj_exts<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) {
    let exts = slab.obj_exts.load(Relaxed);
    if let (Some(cache), true) = (s.exts_cache, exts != 0) {
        slab.obj_exts.store(0, Relaxed);
        // SAFETY: allocated from this cache; the slab is empty and nobody's.
        unsafe { kmem_cache_free(cpu, &cache, exts as *mut u8) };
    }
}

/// The cache that arrays of `objects` words come from, made if there is none. At boot.
pub(super) fn ensure_exts_cache<A: Hardware>(
    arena: &Arena,
    state: KRef<SlabState<A>>,
    objects: u32,
) -> Option<KRef<KmemCache<A>>> {
    const NAMES: [(usize, &str); 11] = [
        (8, "obj-exts-8"),
        (16, "obj-exts-16"),
        (32, "obj-exts-32"),
        (64, "obj-exts-64"),
        (96, "obj-exts-96"),
        (128, "obj-exts-128"),
        (192, "obj-exts-192"),
        (256, "obj-exts-256"),
        (512, "obj-exts-512"),
        (1024, "obj-exts-1k"),
        (2048, "obj-exts-2k"),
    ];
    let class = kmalloc_class(8 * objects as usize)?;
    let (size, name) = *NAMES.iter().find(|n| n.0 == class.max(8))?;
    let mut found = None;
    state.for_each_cache(|c| {
        if c.name == name {
            found = NonNull::new(std::ptr::from_ref(c).cast_mut());
        }
    });
    // SAFETY: a cache is boot memory.
    found.map(|p| unsafe { KRef::new(p) }).or_else(|| {
        let (label, align) = (Some("obj_exts"), 1 << size.trailing_zeros());
        let args = KmemCacheArgs { name, label, size, align, flags: SLAB_NO_SHEAVES, ..KmemCacheArgs::default() };
        Some(kmem_cache_create(arena, state, args))
    })
}

#[cfg(test)]
mod tests {
    use super::super::sheaf_rcu::kfree_rcu_sheaf;
    use super::super::tests::*;
    use super::super::*;
    use super::MemcgUsage;
    use crate::cpu::testing::for_test_set;
    use crate::rcu::rcu_barrier;

    #[test]
    fn what_is_charged_is_what_is_live() {
        for allocator in [Allocator::Slub, Allocator::Sheaves] {
            for flags in [0, SLAB_TYPESAFE_BY_RCU] {
                let k = boot(2, 1, 16, SlabOptions { allocator, memcg: true, ..SlabOptions::default() });
                let set = for_test_set::<crate::arch::Native>(2);
                let cpus = [set.cpu(0), set.cpu(1)];
                let s = k.cache(vma_args(flags));
                let free_of_charge =
                    k.cache(KmemCacheArgs { name: "maple_node", size: 256, ..KmemCacheArgs::default() });
                let m = k.slab.memcg.expect("asked for");
                let node = get(&cpus[0], &free_of_charge);
                let (mut live, mut r) = (Vec::new(), 5u64);
                for step in 0..40_000u32 {
                    r = crate::cpu::splitmix64(r);
                    let cpu = &cpus[(r >> 8) as usize % 2];
                    if (r % 8 < 5) == (step / 2000 % 2 == 0) {
                        live.push(get(cpu, &s));
                    } else if !live.is_empty() {
                        let p = live.swap_remove((r >> 16) as usize % live.len());
                        // SAFETY: ours, freed once.
                        let late = r >> 40 & 3 == 0 && unsafe { kfree_rcu_sheaf(cpu, &s, p) };
                        if !late {
                            free(cpu, &s, p);
                        }
                    }
                    if step % 500 == 0 {
                        // What waits for a grace period is charged until its callback.
                        rcu_barrier(&cpus[0], &k.slab.rcu);
                        let u = m.usage();
                        let part = u.refs - live.len() as i64;
                        assert!((0..120).contains(&part), "two sheaves part-filled at most: {part}");
                        assert_eq!(u, MemcgUsage { bytes: 200 * u.refs, stat_bytes: 200 * u.refs, refs: u.refs });
                    }
                }
                live.into_iter().for_each(|p| free(&cpus[0], &s, p));
                free(&cpus[0], &free_of_charge, node);
                // SAFETY: one thread; nobody uses them any more.
                unsafe {
                    kmem_cache_destroy(&cpus[0], &s).unwrap();
                    kmem_cache_destroy(&cpus[0], &free_of_charge).unwrap();
                }
                assert_eq!((m.usage(), k.outstanding()), (MemcgUsage::default(), 0));
            }
        }
    }

    #[test]
    fn an_object_whose_array_cannot_be_had_is_not_charged() {
        for allocator in [Allocator::Slub, Allocator::Sheaves] {
            let failslab = Some(FaultAttr::per_million(200_000));
            let fail_page_alloc = Some(FaultAttr::per_million(50_000));
            let k = boot(1, 1, 16, SlabOptions { allocator, memcg: true, failslab, fail_page_alloc, ..EXACT });
            let cpu = crate::cpu::Cpu::for_test(0);
            let s = k.cache(vma_args(0));
            let m = k.slab.memcg.expect("asked for");
            k.slab.faults.arm(true);
            let (mut live, mut refused, mut free_of_charge) = (Vec::new(), 0, 0);
            for step in 0..20_000 {
                if step / 700 % 2 == 0 {
                    let p = kmem_cache_alloc(&cpu, &s);
                    if p.is_null() {
                        refused += 1;
                    } else {
                        live.push(p);
                    }
                } else if let Some(p) = live.pop() {
                    free(&cpu, &s, p);
                }
                let u = m.usage();
                assert_eq!(u, MemcgUsage { bytes: 200 * u.refs, stat_bytes: 200 * u.refs, refs: u.refs });
                free_of_charge = free_of_charge.max(live.len() as i64 - u.refs);
            }
            assert!(refused > 1000 && free_of_charge > 0, "{refused} refused, {free_of_charge} free of charge");
            live.into_iter().for_each(|p| free(&cpu, &s, p));
            // SAFETY: one thread; nobody uses it any more.
            unsafe { kmem_cache_destroy(&cpu, &s).unwrap() };
            assert_eq!((m.usage(), k.outstanding()), (MemcgUsage::default(), 0));
        }
    }
}
