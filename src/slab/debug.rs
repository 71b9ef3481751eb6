// SPDX-License-Identifier: GPL-2.0-only
//! Consistency checks of a free [mm/slub.c, 6.12: free_consistency_checks, check_object, print_tracking's neighbours], in
//! caches of a kernel booted with [`SlabOptions::debug`].
//!
//! dup: what is checked, in which order, and what a report holds: cache, slab, objects, inuse, freelist, the object's
//! place and the offset in it. custom: whether an object is allocated is a bit of a shadow map, a bit for each 8 bytes of
//! arena, flipped atomically when it is handed out and when it is freed; so a second free is found wherever the object
//! is by then: anywhere in its slab, on another CPU, in a sheaf. The kernel walks the freelist instead, and gives such
//! caches neither cpu slabs nor sheaves; here all paths stay as they are. The kernel reports, leaks the object and goes
//! on; here a bad free ends the run ([`free_consistency_checks`] returns the report to those who ask first). stub: red
//! zones, poison, tracking of callers.
//!
//! [`SlabOptions::debug`]: super::SlabOptions::debug

use super::page_alloc::{PG_SLAB, boot_slice, virt_to_head_page};
use super::slub_def::{KmemCache, Slab};
use crate::arch::arena::KRef;
use crate::arch::{Arena, Atomic, Full, Hardware, Native, Relaxed};
use std::fmt;

/// Bytes that a bit of the map stands for.
const GRAIN: usize = 8;

/// One node's part of the map.
struct NodeMap {
    start: usize,
    end: usize,
    bits: KRef<[Atomic<Native, u64>]>,
}

/// Which objects are allocated.
pub struct ShadowMap {
    nodes: KRef<[NodeMap]>,
}

impl ShadowMap {
    pub(super) fn new(arena: &Arena) -> KRef<Self> {
        let nodes = boot_slice(arena, 0, arena.nr_nodes() as usize, |nid| {
            let (start, end) = arena.node_range(nid as u32);
            let bits = boot_slice(arena, nid as u32, (end - start).div_ceil(GRAIN * 64), |_| Atomic::new(0));
            NodeMap { start, end, bits }
        });
        arena.boot_new(0, ShadowMap { nodes })
    }

    /// The word and bit of an address; `None` outside the arena.
    fn bit(&self, p: usize) -> Option<(&Atomic<Native, u64>, u64)> {
        let n = self.nodes.iter().find(|n| (n.start..n.end).contains(&p))?;
        let i = (p - n.start) / GRAIN;
        Some((&n.bits[i / 64], 1 << (i % 64)))
    }

    /// Notes that `p` is handed out; whether it was not already.
    pub(super) fn set(&self, p: usize) -> bool {
        self.bit(p).is_some_and(|(w, b)| w.fetch_or(b, Full) & b == 0)
    }

    /// Notes that `p` is freed; whether it was allocated.
    pub(super) fn clear(&self, p: usize) -> bool {
        self.bit(p).is_some_and(|(w, b)| w.fetch_and(!b, Full) & b != 0)
    }

    fn is_set(&self, p: usize) -> bool {
        self.bit(p).is_some_and(|(w, b)| w.load(Relaxed) & b != 0)
    }
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFree {
    /// No memory of this kernel's.
    Foreign,
    /// In a page that is no slab's.
    NotASlab,
    /// Of another cache.
    WrongCache,
    /// Not where an object begins.
    InvalidPointer,
    /// Free already.
    AlreadyFree,
}

/// A slab as the report shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabView {
    /// Its cache.
    pub cache: &'static str,
    /// First address.
    pub address: usize,
    /// Objects.
    pub objects: u32,
    /// Of these, in use; those on a CPU's freelist or in a sheaf included.
    pub inuse: u32,
    /// First free object, 0: none.
    pub freelist: usize,
    /// Whether some CPU allocates from it.
    pub frozen: bool,
    /// Bytes from one object to the next.
    pub size: usize,
}

/// Report of a bad free (`slab_err()`, `object_err()`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabReport {
    /// What is wrong.
    pub what: BadFree,
    /// Cache that the object was said to be of.
    pub cache: &'static str,
    /// The address freed.
    pub object: usize,
    /// The slab it lies in, if any.
    pub slab: Option<SlabView>,
}

impl fmt::Display for SlabReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            BadFree::Foreign => "freed address is no memory of the kernel",
            BadFree::NotASlab => "freed object is in no slab",
            BadFree::WrongCache => "freed object is of another cache",
            BadFree::InvalidPointer => "freed address is not the start of an object",
            BadFree::AlreadyFree => "object already free",
        };
        writeln!(f, "kernel BUG: {}: {what}", self.cache)?;
        let Some(s) = self.slab else { return write!(f, "Object {:#x}", self.object) };
        writeln!(
            f,
            "Slab {:#x} of {} objects={} used={} fp={:#x} frozen={}",
            s.address, s.cache, s.objects, s.inuse, s.freelist, s.frozen
        )?;
        let at = self.object.wrapping_sub(s.address);
        write!(f, "Object {:#x} @offset={at} (object {}, {} bytes into it)", self.object, at / s.size, at % s.size)
    }
}

/// `free_consistency_checks()`: whether `p` is an object of `s` that may be freed. Looks only; any address will do.
///
/// # Errors
/// The report.
///
/// # Panics
/// When the kernel was not booted with `debug`.
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "only the record of a page of the arena is read")]
pub fn free_consistency_checks<A: Hardware>(s: &KmemCache<A>, p: *const u8) -> Result<(), SlabReport> {
    let map = s.state.shadow.as_ref().expect("booted with debug");
    let report = |what, slab| Err(SlabReport { what, cache: s.name, object: p as usize, slab });
    if map.bit(p as usize).is_none() {
        return report(BadFree::Foreign, None);
    }
    // SAFETY: arena memory.
    let head = unsafe { virt_to_head_page::<A>(p) };
    // SAFETY: every page of the arena has a record; a slab is a view of one.
    let slab = unsafe { &*head.cast::<Slab<A>>() };
    if slab.page_type.load(Relaxed) != PG_SLAB {
        return report(BadFree::NotASlab, None);
    }
    // SAFETY: the record of a slab names its cache, which is boot memory.
    let of = unsafe { &*slab.slab_cache.load(Relaxed) };
    let c = slab.counters();
    let view = Some(SlabView {
        cache: of.name,
        address: slab.address(),
        objects: c.objects(),
        inuse: c.inuse(),
        freelist: slab.freelist(),
        frozen: c.frozen(),
        size: of.size(),
    });
    if !std::ptr::eq(of, s) {
        return report(BadFree::WrongCache, view);
    }
    let at = p as usize - slab.address();
    if !at.is_multiple_of(s.size()) || at / s.size() >= c.objects() as usize {
        return report(BadFree::InvalidPointer, view);
    }
    if !map.is_set(p as usize) {
        return report(BadFree::AlreadyFree, view);
    }
    Ok(())
}

/// Checks a free and notes it.
///
/// # Panics
/// With the report, when it must not be.
#[cold]
#[inline(never)]
pub(super) fn free_debug_processing<A: Hardware>(s: &KmemCache<A>, map: &ShadowMap, p: *const u8) {
    let mut checked = free_consistency_checks(s, p);
    // Two CPUs may have looked at once: one of them finds the bit gone.
    if checked.is_ok() && !map.clear(p as usize) {
        checked = free_consistency_checks(s, p);
    }
    if let Err(report) = checked {
        panic!("{report}");
    }
}

/// Notes that an object is handed out.
///
/// # Panics
/// When it is allocated already.
#[cold]
#[inline(never)]
pub(super) fn alloc_debug_processing<A: Hardware>(s: &KmemCache<A>, map: &ShadowMap, p: *const u8) {
    assert!(map.set(p as usize), "kernel BUG: {}: object {p:p} is handed out twice", s.name);
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;
    use super::super::*;
    use super::*;
    use crate::cpu::Cpu;

    fn kernel(allocator: Allocator) -> Kernel {
        boot(1, 1, 8, SlabOptions { allocator, debug: true, ..SlabOptions::default() })
    }

    #[test]
    fn each_bad_free_has_its_report() {
        for allocator in [Allocator::Slub, Allocator::Sheaves] {
            let k = kernel(allocator);
            let cpu = Cpu::for_test(0);
            let s = k.cache(vma_args(0));
            let other = k.cache(KmemCacheArgs { name: "vma_lock", size: 40, flags: 0, ..vma_args(0) });
            let (a, b) = (get(&cpu, &s), get(&cpu, &s));
            assert_eq!(free_consistency_checks(&s, a), Ok(()));
            let what = |s: &KmemCache<_>, p: *const u8| free_consistency_checks(s, p).map_err(|r| r.what);
            let local = 0u64;
            assert_eq!(what(&s, (&raw const local).cast()), Err(BadFree::Foreign));
            let page = alloc_page(&cpu, &k.slab.pages);
            assert_eq!(what(&s, page), Err(BadFree::NotASlab));
            // SAFETY: inside the object, then our page.
            unsafe {
                assert_eq!(what(&s, a.add(8)), Err(BadFree::InvalidPointer));
                free_page(&cpu, &k.slab.pages, page);
            }
            assert_eq!(what(&other, a), Err(BadFree::WrongCache));
            free(&cpu, &s, a);
            let report = free_consistency_checks(&s, a).unwrap_err();
            assert_eq!(report.what, BadFree::AlreadyFree);
            let text = report.to_string();
            let slab = a as usize & !4095;
            for part in [
                "vm_area_struct: object already free".into(),
                format!("Slab {slab:#x} of vm_area_struct objects=21 used="),
                "fp=0x".into(),
                format!(
                    "Object {a:p} @offset={} (object {}, 0 bytes into it)",
                    a as usize - slab,
                    (a as usize - slab) / 192
                ),
            ] as [String; 4]
            {
                assert!(text.contains(&part), "{part}: {text}");
            }
            free(&cpu, &s, b);
            // A whole life again, bulk calls included.
            let mut v = [std::ptr::null_mut(); 30];
            assert_eq!(kmem_cache_alloc_bulk(&cpu, &s, &mut v), 30);
            // SAFETY: allocated just now, freed once; then nobody uses the cache.
            unsafe {
                kmem_cache_free_bulk(&cpu, &s, &mut v);
                kmem_cache_destroy(&cpu, &s).unwrap();
            }
        }
    }

    /// Freed, something else freed, freed again: the hardened check does not see this.
    fn again(allocator: Allocator) {
        let k = kernel(allocator);
        let cpu = Cpu::for_test(0);
        let s = k.cache(vma_args(0));
        let (a, b) = (get(&cpu, &s), get(&cpu, &s));
        free(&cpu, &s, a);
        free(&cpu, &s, b);
        free(&cpu, &s, a);
    }

    #[test]
    #[should_panic(expected = "kernel BUG: vm_area_struct: object already free")]
    fn a_late_second_free_is_caught() {
        again(Allocator::Slub);
    }

    #[test]
    #[should_panic(expected = "kernel BUG: vm_area_struct: object already free")]
    fn a_late_second_free_into_a_sheaf_is_caught() {
        again(Allocator::Sheaves);
    }

    #[test]
    #[should_panic(expected = "not the start of an object")]
    fn a_free_inside_an_object_is_caught() {
        let k = kernel(Allocator::Slub);
        let cpu = Cpu::for_test(0);
        let s = k.cache(vma_args(0));
        // SAFETY: inside the object; refused before anything is done.
        free(&cpu, &s, unsafe { get(&cpu, &s).add(16) });
    }

    #[test]
    #[should_panic(expected = "freed address is no memory of the kernel")]
    fn a_free_of_foreign_memory_is_caught() {
        let k = kernel(Allocator::Slub);
        let mut local = [0u64; 24];
        free(&Cpu::for_test(0), &k.cache(vma_args(0)), local.as_mut_ptr().cast());
    }
}
