// SPDX-License-Identifier: GPL-2.0-only
//! The commit limit: how much memory processes were promised [mm/util.c, mm/mm_init.c, include/linux/mman.h, 6.12].
//!
//! dup: what is charged and when, the three policies, the batch of the counter. custom: `totalram_pages` is a number
//! that the kernel is told, not the arena's size: promises cost nothing, and programs that are replayed promise
//! themselves more than an arena holds. stub: swap, huge page pools, limits in kilobytes.
//!
//! INVARIANT: the counter is the sum of the pages of all VMAs with `VM_ACCOUNT` and of shared anonymous files.

use super::file::{file_word, vm_file_of};
use super::kconfig::{Kconfig, MmPtr};
use super::mm_types::{CAP_SYS_ADMIN, VM_ACCOUNT, VmaFields, vma_pages};
use super::vma::vma_next;
use crate::arch::{Arch, Atomic, Plain, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::MaState;
use crate::sync::{
    PercpuCounter, PercpuCounters, percpu_counter_add_batch, percpu_counter_destroy_many, percpu_counter_init_many,
    percpu_counter_read_positive, percpu_counter_set, percpu_counter_sum,
};
use std::collections::BTreeSet;

/// `OVERCOMMIT_GUESS`: only what could never be is refused.
pub const OVERCOMMIT_GUESS: u32 = 0;
/// `OVERCOMMIT_ALWAYS`: nothing is refused.
pub const OVERCOMMIT_ALWAYS: u32 = 1;
/// `OVERCOMMIT_NEVER`: promises end at a share of memory.
pub const OVERCOMMIT_NEVER: u32 = 2;
/// `totalram_pages()` of a kernel that is not told: 16 GiB.
pub const TOTALRAM_PAGES: u64 = 16 << (30 - 12);
/// `sysctl_overcommit_ratio`, percent.
const OVERCOMMIT_RATIO: u64 = 50;
/// `sysctl_admin_reserve_kbytes` and `sysctl_user_reserve_kbytes` of a machine with that much memory, in pages.
const ADMIN_RESERVE: u64 = 8192 / 4;
const USER_RESERVE: u64 = 131_072 / 4;

/// `vm_committed_as`, alone in its line, and the system controls beside it.
#[repr(C, align(64))]
pub struct VmCommitted<A: Arch> {
    vm_committed_as: [PercpuCounter<A>; 1],
    /// `vm_committed_as_batch`
    batch: Plain<A, i32>,
    _line: [u64; 2],
    /// `vm.overcommit_memory`
    pub overcommit_memory: Atomic<A, u32>,
    /// Pages of memory that the kernel believes in.
    pub totalram_pages: Atomic<A, u64>,
}

impl<A: Arch> VmCommitted<A> {
    /// Without cells.
    pub fn new() -> Self {
        VmCommitted {
            vm_committed_as: [PercpuCounter::new()],
            batch: Plain::new(32),
            _line: [0; 2],
            overcommit_memory: Atomic::new(OVERCOMMIT_GUESS),
            totalram_pages: Atomic::new(TOTALRAM_PAGES),
        }
    }

    /// Cells for the counter.
    ///
    /// # Panics
    /// Without cells, which cannot be at boot.
    pub fn init(&self, cpu: &Cpu<A>, counters: &PercpuCounters<A>, nr_cpus: u32) {
        percpu_counter_init_many(cpu, counters, &self.vm_committed_as, 0).expect("cells at boot");
        self.mm_compute_batch(counters, nr_cpus);
    }

    /// `mm_compute_batch()`: a share of memory, a small one where promises are kept strictly.
    fn mm_compute_batch(&self, counters: &PercpuCounters<A>, nr_cpus: u32) {
        let share = if self.overcommit_memory.load(Relaxed) == OVERCOMMIT_NEVER { 256 } else { 4 };
        let by_memory = self.totalram_pages.load(Relaxed) / u64::from(nr_cpus) / share;
        self.batch.set((by_memory.min(i32::MAX as u64) as i32).max(counters.batch()));
    }

    /// Gives the cells back; what is still charged.
    pub fn end(&self, cpu: &Cpu<A>, counters: &PercpuCounters<A>) -> i64 {
        let left = percpu_counter_sum(cpu, counters, &self.vm_committed_as[0]);
        percpu_counter_destroy_many(cpu, counters, &self.vm_committed_as);
        left
    }
}
impl<A: Arch> Default for VmCommitted<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `vm_acct_memory()`
#[inline(always)]
pub fn vm_acct_memory<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, pages: i64) {
    let c = &*k.vm_committed;
    percpu_counter_add_batch(cpu, &k.percpu_counters, &c.vm_committed_as[0], pages, c.batch.get());
}

/// `vm_unacct_memory()`
#[inline(always)]
pub fn vm_unacct_memory<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, pages: u64) {
    vm_acct_memory(cpu, k, -(pages as i64));
}

/// `vm_memory_committed()`: pages promised, exactly.
pub fn vm_memory_committed<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> i64 {
    percpu_counter_sum(cpu, &k.percpu_counters, &k.vm_committed.vm_committed_as[0])
}

/// `security_vm_enough_memory_mm()`, `__vm_enough_memory()`: charges `pages`.
///
/// # Errors
/// `ENOMEM`, with nothing charged.
#[inline]
pub fn vm_enough_memory<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, pages: u64) -> Result<(), Errno> {
    vm_acct_memory(cpu, k, pages as i64);
    let c = &*k.vm_committed;
    let enough = match c.overcommit_memory.load(Relaxed) {
        OVERCOMMIT_GUESS => pages <= c.totalram_pages.load(Relaxed),
        OVERCOMMIT_ALWAYS => true,
        _ => strict(k, mm),
    };
    if enough {
        return Ok(());
    }
    vm_unacct_memory(cpu, k, pages);
    Err(Errno::ENOMEM)
}

/// The policy that keeps promises within memory.
#[cold]
#[inline(never)]
fn strict<K: Kconfig>(k: &Kernel<K>, mm: MmPtr<K>) -> bool {
    let c = &*k.vm_committed;
    // vm_commit_limit()
    let mut allowed = (c.totalram_pages.load(Relaxed) * OVERCOMMIT_RATIO / 100) as i64;
    if !mm.capable(CAP_SYS_ADMIN) {
        allowed -= ADMIN_RESERVE as i64;
    }
    allowed -= (mm.total_vm.load(Relaxed) / 32).min(USER_RESERVE) as i64;
    percpu_counter_read_positive(&c.vm_committed_as[0]) < allowed
}

/// `overcommit_policy_handler()`: `vm.overcommit_memory` is set, while nobody maps anything.
pub fn set_overcommit_memory<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, policy: u32) {
    let c = &*k.vm_committed;
    c.overcommit_memory.store(policy, Relaxed);
    c.mm_compute_batch(&k.percpu_counters, k.nr_cpus());
    // sync_overcommit_as() on each CPU: the strict policy compares what was handed in.
    let sum = vm_memory_committed(cpu, k);
    percpu_counter_set(cpu, &k.percpu_counters, &c.vm_committed_as[0], sum);
}

/// Pages that are charged to an mm's VMAs and to the shared memory behind them, for checks: what its end gives back, where
/// no other mm has the same shared memory.
pub fn accounted_pages<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) -> u64 {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut pages = 0;
    let mut files = BTreeSet::new();
    while let Some(vma) = vma_next::<K>(cpu, &mut mas) {
        if vma.vm_flags().load(Relaxed) & VM_ACCOUNT != 0 {
            pages += vma_pages::<K::A, K::Lock>(&vma);
        }
        if let Some(file) = vm_file_of::<K>(vma)
            && files.insert(file_word(file))
        {
            pages += file.f_mapping().charged_as_a_whole();
        }
    }
    pages
}
