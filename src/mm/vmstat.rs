// SPDX-License-Identifier: GPL-2.0-only
//! Events of the mm floor, with the kernel's names where it has them [include/linux/vm_event_item.h, 6.12].
//!
//! Balances: `pgfault` = `vma_lock_success` + `vma_lock_retry` + `vma_lock_abort` (every fault of the port is a user
//! fault); `vma_lock_retry` and `vma_lock_abort` = the sums of their causes; allocations = frees + live objects.

use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::mm::vma_lock::AbortCause;

crate::counters! {
    /// Events of the mm floor.
    pub enum VmEvent in 80..112 => {
        /// Faults finished under the VMA lock, access errors included.
        VmaLockSuccess = "vma_lock_success",
        /// Faults for which no VMA lock was got.
        VmaLockAbort = "vma_lock_abort",
        /// Faults begun under the VMA lock whose handler asked for `mmap_lock`.
        VmaLockRetry = "vma_lock_retry",
        /// Retries: the first page wants an anon_vma, and `mmap_lock` was not to be had.
        RetryAnonVma = "vma_lock_retry_anon_vma",
        /// Retries: the page must be read in, which may sleep.
        RetryIo = "vma_lock_retry_io",
        /// VMAs found detached; any number a fault.
        VmaLockMiss = "vma_lock_miss",
        /// Aborts: no VMA at the address.
        AbortNone = "vma_lock_abort_none",
        /// Aborts: write-locked at the unordered look.
        AbortSeqEarly = "vma_lock_abort_seq_early",
        /// Aborts: a writer had the lock word.
        AbortWriter = "vma_lock_abort_writer",
        /// Aborts: write-locked at the ordered look.
        AbortSeqLate = "vma_lock_abort_seq_late",
        /// Aborts: the object belonged to another mm.
        AbortOtherMm = "vma_lock_abort_other_mm",
        /// Aborts: the VMA no longer covered the address.
        AbortRange = "vma_lock_abort_range",
        /// User faults.
        Pgfault = "pgfault",
        /// Times `mmap_lock` was taken for read.
        MmapLockRead = "mmap_lock_read",
        /// Read trylocks of `mmap_lock` that failed.
        MmapLockReadFail = "mmap_lock_read_trylock_fail",
        /// Times `mmap_lock` was taken for write.
        MmapLockWrite = "mmap_lock_write",
        /// Write locks turned into read locks.
        MmapLockDowngrade = "mmap_lock_downgrade",
        /// VMAs allocated.
        VmaAlloc = "vma_alloc",
        /// VMAs given back: to the allocator, or to RCU.
        VmaFree = "vma_free",
        /// VMAs given back to the allocator.
        VmaReclaim = "vma_reclaim",
        /// User pages and page tables allocated.
        Pgalloc = "pgalloc_normal",
        /// User pages and page tables freed.
        Pgfree = "pgfree",
        /// Faults that found the entry set meanwhile.
        PgfaultRaced = "pgfault_raced",
        /// Faults whose page had to be read in.
        Pgmajfault = "pgmajfault",
        /// Write faults that took a page over as it was.
        Pgreuse = "pgreuse",
        /// anon_vmas allocated.
        AnonVmaAlloc = "anon_vma_alloc",
        /// anon_vmas freed.
        AnonVmaFree = "anon_vma_free",
        /// Chain links allocated.
        AnonVmaChainAlloc = "anon_vma_chain_alloc",
        /// Chain links freed.
        AnonVmaChainFree = "anon_vma_chain_free",
        /// Splits of a VMA.
        VmaSplit = "vma_split",
        /// Merges into a neighbour.
        VmaMerge = "vma_merge",
        /// Conditions that must not happen (`WARN_ON_ONCE`).
        Warn = "mm_warn",
    }
}

/// Counts one abort and its cause.
#[cold]
#[inline(never)]
pub fn count_abort<A: Arch>(cpu: &Cpu<A>, cause: AbortCause) {
    cpu.count(VmEvent::VmaLockAbort);
    cpu.count(match cause {
        AbortCause::None => VmEvent::AbortNone,
        AbortCause::SeqEarly => VmEvent::AbortSeqEarly,
        AbortCause::Writer => VmEvent::AbortWriter,
        AbortCause::SeqLate => VmEvent::AbortSeqLate,
        AbortCause::OtherMm => VmEvent::AbortOtherMm,
        AbortCause::Range => VmEvent::AbortRange,
    });
}

/// `WARN_ON_ONCE()`: counts; tests and runs fail on a count.
#[inline(always)]
pub fn warn_on_once<A: Arch>(cpu: &Cpu<A>, bad: bool) {
    if bad {
        warned(cpu);
    }
}

/// `VM_WARN_ON_ONCE()`, of CONFIG_DEBUG_VM, which kernels that people run do without: looked at where debug assertions are on
/// (tests), and not there in a build that is timed.
#[inline(always)]
pub fn vm_warn_on_once<A: Arch>(cpu: &Cpu<A>, bad: impl FnOnce() -> bool) {
    if cfg!(debug_assertions) {
        warn_on_once(cpu, bad());
    }
}

#[cold]
#[inline(never)]
fn warned<A: Arch>(cpu: &Cpu<A>) {
    cpu.count(VmEvent::Warn);
}
