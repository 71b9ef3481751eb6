// SPDX-License-Identifier: GPL-2.0-only
//! Floor 6: address spaces, VMAs and their locks, page tables, faults.
//!
//! Lock order, outermost first: `mmap_lock` (fork: the parent's, then the child's); a VMA's own lock; a file's
//! `i_mmap_rwsem`; the anon_vma's semaphore; `page_table_lock` or a page table's lock (fork: the child's, then the
//! parent's); the page cache's lock; the allocator's locks.
//!
//! What is dup (same steps as the kernel's), custom (differs on purpose) or stub is said at the top of each file. The
//! VMA operations follow 6.12 in every named kernel; what differs between kernels is the protocol
//! ([`vma_lock`]), the way VMAs are freed ([`vma_cache`]) and the allocator below.
//!
//! The order of reading: [`fault`] (one page fault from entry to exit), [`mmap_lock`], the oldest and the newest
//! protocol side by side, [`vma`].

pub mod fault;
pub mod file;
pub mod filemap;
pub mod folio;
pub mod fork;
pub mod gup;
pub mod kconfig;
pub mod madvise;
pub mod memory;
pub mod mlock;
pub mod mm_types;
pub mod mmap;
pub mod mmap_lock;
pub mod mmap_lock_wait;
pub mod mmu_gather;
pub mod mprotect;
pub mod mremap;
pub mod mseal;
pub mod pagewalk;
pub mod pgtable;
pub mod prctl;
pub mod rmap;
pub mod rules;
pub mod stack;
pub mod syscall;
pub mod task_mmu;
pub mod unmapped_area;
pub mod util;
pub mod variant;
pub mod vma;
pub mod vma_cache;
pub mod vma_init;
pub mod vma_lock;
pub mod vmstat;
pub mod xarray;

#[cfg(test)]
mod tests;

pub use fault::{FaultError, do_user_addr_fault};
pub use file::{File, FileKind, FileSpec, file_open, fput, get_file};
pub use fork::{dup_mm, mm_alloc, mmput, sys_fork, try_mm_alloc};
pub use kconfig::{Config, Kconfig, Mm, MmPtr, VmaPtr};
pub use madvise::{madvise_dontneed, madvise_set_anon_name, sys_madvise};
pub use mlock::{sys_mlock, sys_mlockall, sys_munlock, sys_munlockall};
pub use mmap::{MmapArgs, do_mmap, sys_brk, vm_mmap, vm_munmap};
pub use mprotect::sys_mprotect;
pub use mremap::sys_mremap;
pub use mseal::sys_mseal;
pub use rules::MmRules;
pub use syscall::{Call, Process, VmaInfo, syscall, user_access};
pub use task_mmu::vma_infos;
pub use variant::Variant;
pub use vmstat::VmEvent;
