// SPDX-License-Identifier: GPL-2.0-only
//! Situations of address spaces, of the kinds that tools/testing/vma covers, written afresh; each runs on every kind of
//! protocol, cache and allocator.

mod brk;
mod fail_nth;
mod file;
mod fork;
mod golden;
mod limits;
mod madvise;
mod merge;
mod mlock;
mod mmap;
mod mprotect;
mod mremap;
mod placement;
mod protocols;
mod random;
mod stack;
mod stress;

use super::file::File;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_READ, VM_SHARED, VM_WRITE, VmaFields};
use super::mmap_lock::{mmap_write_lock, mmap_write_unlock};
use super::pgtable::{PAGE_PRESENT, PAGE_RW, PTE_PFN_MASK, pte_lookup};
use super::vma::{vm_stat_account, vma_find, vma_lookup, vma_modified_flags, vma_modify_flags, vma_next, vma_prev};
use super::vma_cache::VmaCache;
use super::vma_lock::VmaLock;
use super::vmstat::VmEvent;
use super::{MmRules, MmapArgs, do_mmap, do_user_addr_fault, mm_alloc, mmput};
use crate::arch::arena::KRef;
use crate::arch::native::{NativeMachine, OsCpu};
use crate::arch::{Native, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::init::{Kernel, KernelConfig, shutdown, start_kernel};
use crate::maple_tree::{MaState, mt_validate};
use crate::slab::Allocator;

/// A page.
pub const P: u64 = 4096;
/// Where tests map: nothing else is near.
pub const BASE: u64 = 0x2000_0000_0000;
/// Readable and writable.
pub const RW: u64 = VM_READ | VM_WRITE;

pub fn machine(cpus: u32) -> NativeMachine {
    let allowed = crate::host::affinity::allowed();
    let cpus: Vec<_> = (0..cpus as usize).map(|i| OsCpu { cpu: allowed[i % allowed.len()], node: 0 }).collect();
    NativeMachine::new(&cpus, 64 << 20, |_, _| 10).unwrap()
}

/// What a test boots beside the protocol: allocator, and how VMAs are freed.
#[derive(Clone, Copy)]
pub struct Boot {
    pub slab: Allocator,
    pub cache: VmaCache,
}

/// A kernel with what `boot` says.
pub fn config(boot: Boot) -> KernelConfig {
    let mut c = KernelConfig { vma_cache: boot.cache, ..KernelConfig::default() };
    c.slab.allocator = boot.slab;
    c
}

/// Shuts a kernel of one CPU down: nothing may be left, nothing may have warned.
pub fn close_the_books<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>) {
    let left = shutdown(cpu, k);
    assert!(left.is_clean(), "{left:?}");
    let n = |e| cpu.counters.get(e);
    assert_eq!(n(VmEvent::Warn), 0, "warnings");
    assert_eq!(n(VmEvent::VmaAlloc), n(VmEvent::VmaFree), "VMAs left");
    assert_eq!(n(VmEvent::VmaAlloc), n(VmEvent::VmaReclaim), "VMAs still with RCU");
    assert_eq!(n(VmEvent::AnonVmaAlloc), n(VmEvent::AnonVmaFree), "anon_vmas left");
    assert_eq!(n(VmEvent::AnonVmaChainAlloc), n(VmEvent::AnonVmaChainFree), "chain links left");
}

/// Runs `f` on a fresh kernel and mm of build `K` on one CPU, then checks that everything balances and nothing is left.
pub fn with_mm<K: Kconfig<A = Native>>(boot: Boot, f: impl FnOnce(&Cpu<Native>, &Kernel<K>, MmPtr<K>)) {
    with_config(&config(boot), f);
}

/// As [`with_mm`], once under the rules of each kernel version.
pub fn with_rules<K: Kconfig<A = Native>>(boot: Boot, f: impl Fn(&Cpu<Native>, &Kernel<K>, MmPtr<K>)) {
    for rules in [MmRules::V6_12, MmRules::V6_18, MmRules::V7_3] {
        with_config(&KernelConfig { rules, ..config(boot) }, |cpu, k, mm| f(cpu, k, mm));
    }
}

/// As [`with_mm`], booted with `config`.
pub fn with_config<K: Kconfig<A = Native>>(config: &KernelConfig, f: impl FnOnce(&Cpu<Native>, &Kernel<K>, MmPtr<K>)) {
    let m = machine(1);
    let k = start_kernel::<K>(&m, config);
    let cpu = k.cpu(0);
    let mm = mm_alloc(&cpu, &k);
    f(&cpu, &k, mm);
    check_tree(&cpu, &k, mm);
    mmput(&cpu, &k, mm);
    close_the_books(&cpu, &k);
    let n = |e| cpu.counters.get(e);
    assert_eq!(
        n(VmEvent::Pgfault),
        n(VmEvent::VmaLockSuccess) + n(VmEvent::VmaLockRetry) + n(VmEvent::VmaLockAbort),
        "faults"
    );
    assert_eq!(n(VmEvent::VmaLockRetry), n(VmEvent::RetryAnonVma) + n(VmEvent::RetryIo), "causes of retries");
}

/// Runs a generic test on the protocols of the named kernels with every cache and allocator: which VMAs there are does not
/// depend on the protocol (`tests/protocols.rs` has all).
macro_rules! on_every_variant {
    ($($(#[$m:meta])* fn $name:ident = $f:ident;)*) => { $(
        $(#[$m])*
        #[test]
        fn $name() {
            for v in crate::mm::variant::named() {
                let boot = Boot { slab: v.slab, cache: v.vma_cache };
                eprintln!("variant {}", v.name);
                crate::with_variant!(&v, crate::arch::Native, K => $f::<K>(boot));
            }
        }
    )* };
}
pub(crate) use on_every_variant;

/// The VMAs as (start page, end page) relative to [`BASE`], and flags.
pub fn layout<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>) -> Vec<(u64, u64)> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut v = vma_next::<K>(cpu, &mut mas);
    let mut out = Vec::new();
    while let Some(vma) = v {
        out.push((
            vma.vm_start().load(Relaxed).wrapping_sub(BASE) / P,
            vma.vm_end().load(Relaxed).wrapping_sub(BASE) / P,
        ));
        v = vma_next::<K>(cpu, &mut mas);
    }
    out
}

/// Tree, VMAs and `map_count` agree, the tree is sound, no VMA is locked.
pub fn check_tree<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>) {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut v = vma_next::<K>(cpu, &mut mas);
    let (mut n, mut pages, mut last) = (0, 0, 0);
    let (mut exec, mut stack, mut data, mut locked) = (0, 0, 0, 0);
    while let Some(vma) = v {
        let (s, e) = (vma.vm_start().load(Relaxed), vma.vm_end().load(Relaxed));
        assert!(s < e && s >= last, "ranges in order");
        assert_eq!((mas.index, mas.last), (s, e - 1), "the tree's range is the VMA's");
        assert_eq!(vma.vm_mm().load(Relaxed), mm.as_ptr());
        // Of 6.12 only the semaphore can be asked; all others say so in a word of their own.
        assert_eq!(K::Lock::SEPARATE_LOCK, K::Lock::vma_lock_is_free(vma), "attached");
        n += 1;
        pages += (e - s) / P;
        let flags = vma.vm_flags().load(Relaxed);
        if flags & VM_GROWSDOWN != 0 {
            stack += (e - s) / P;
        } else if flags & (VM_EXEC | VM_WRITE) == VM_EXEC {
            exec += (e - s) / P;
        } else if flags & (VM_WRITE | VM_SHARED) == VM_WRITE {
            data += (e - s) / P;
        }
        locked += if flags & VM_LOCKED != 0 { (e - s) / P } else { 0 };
        last = e;
        v = vma_next::<K>(cpu, &mut mas);
    }
    assert_eq!(n, mm.map_count.get());
    let shape = mt_validate(mm.mm_mt()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shape.entries as i64, i64::from(n), "entries of the tree");
    assert_eq!((pages, data), (mm.total_vm.load(Relaxed), mm.data_vm.get()));
    assert_eq!((exec, stack, locked), (mm.exec_vm.get(), mm.stack_vm.get(), mm.locked_vm.get()));
    assert_eq!(mm.mm_lock_seq.word().load(Relaxed) % 2, 0);
}

/// mmap(2) with everything said.
pub fn map_args<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    (addr, len): (u64, u64),
    prot: u32,
    flags: u32,
    file: Option<(KRef<File<Native>>, u64)>,
) -> Result<u64, Errno> {
    let (file, page) = file.map_or((None, 0), |(f, page)| (Some(f), page));
    do_mmap(cpu, k, mm, &MmapArgs { addr, len, prot, flags, file, offset: page * P })
}

/// Gives each VMA in `[page, page + n)` above [`BASE`] the flags that `f` makes of its own, as mprotect(2) and its kin
/// do: VMAs that would not change are passed over, a hole ends it.
///
/// # Errors
/// `ENOMEM`: a hole, or a split without memory or room.
pub fn modify<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    (page, n): (u64, u64),
    f: impl Fn(u64) -> u64,
) -> Result<(), Errno> {
    let (mut at, end) = (BASE + page * P, BASE + (page + n) * P);
    mmap_write_lock(cpu, &mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, at, at);
    let mut r = Ok(());
    let mut vma = vma_find::<K>(cpu, &mut mas, end);
    let mut prev = vma_prev::<K>(cpu, &mut mas);
    if let Some(v) = vma.filter(|v| v.vm_start().load(Relaxed) < at) {
        prev = Some(v);
    }
    vma = vma_find::<K>(cpu, &mut mas, end);
    while at < end {
        let Some(v) = vma.filter(|v| v.vm_start().load(Relaxed) <= at) else {
            r = Err(Errno::ENOMEM);
            break;
        };
        let stop = v.vm_end().load(Relaxed).min(end);
        let old = v.vm_flags().load(Relaxed);
        let new = f(old);
        if new == old {
            prev = Some(v);
        } else {
            match vma_modify_flags(cpu, k, mm, &mut mas, prev, v, at, stop, new) {
                Ok(v) => {
                    K::Lock::vma_start_write(cpu, v);
                    v.vm_flags().store(vma_modified_flags(k, v, new), Relaxed);
                    prev = Some(v);
                    let pages = (stop - at) as i64 / P as i64;
                    vm_stat_account::<K>(mm, old, -pages);
                    vm_stat_account::<K>(mm, new, pages);
                }
                Err(e) => {
                    r = Err(e);
                    break;
                }
            }
        }
        at = mas.last + 1;
        vma = vma_find::<K>(cpu, &mut mas, end);
    }
    mmap_write_unlock(cpu, &mm);
    r
}

/// The VMA at page `page` above [`BASE`].
pub fn vma_at<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64) -> VmaPtr<K> {
    vma_lookup(cpu, k, mm, BASE + page * P).expect("a VMA there")
}

/// The flags of the VMA of page `page` above [`BASE`].
pub fn flags_at<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64) -> u64 {
    vma_at(cpu, k, mm, page).vm_flags().load(Relaxed)
}

/// Allocations and frees of VMAs that `f` makes.
pub fn alloc_free(cpu: &Cpu<Native>, f: impl FnOnce()) -> (u64, u64) {
    let n = || (cpu.counters.get(VmEvent::VmaAlloc), cpu.counters.get(VmEvent::VmaFree));
    let before = n();
    f();
    let after = n();
    (after.0 - before.0, after.1 - before.1)
}

/// Write fault on page `page` above [`BASE`].
pub fn write<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, page: u64) {
    do_user_addr_fault(cpu, k, mm, BASE + page * P, true).unwrap();
    // As the processor would: a fault that another thread's read fault overtook leaves the zero page.
    while pte_lookup::<K>(mm, BASE + page * P) & PAGE_RW == 0 {
        do_user_addr_fault(cpu, k, mm, BASE + page * P, true).unwrap();
    }
}

/// The memory of page `page` above [`BASE`], if it is there.
pub fn bytes<K: Kconfig<A = Native>>(mm: MmPtr<K>, page: u64) -> Option<&'static mut [u8]> {
    let pte = pte_lookup::<K>(mm, BASE + page * P);
    // SAFETY: a page of this mm; tests look at it while it is mapped.
    (pte & PAGE_PRESENT != 0)
        .then(|| unsafe { std::slice::from_raw_parts_mut((pte & PTE_PFN_MASK) as *mut u8, P as usize) })
}
