// SPDX-License-Identifier: GPL-2.0-only
//! What user mode can see of an address space: the lines of `/proc/PID/smaps` [fs/proc/task_mmu.c, 6.12].
//!
//! custom: a vector, taken under `mmap_lock` for read from first to last, where the file is read a buffer at a time.
//! stub: sizes and resident pages, names.

use super::kconfig::{Kconfig, MmPtr};
use super::mm_types::*;
use super::mmap_lock::{mmap_read_lock, mmap_read_unlock};
use super::syscall::VmaInfo;
use super::vma::{end_of, start_of, vma_next};
use crate::arch::Relaxed;
use crate::arch::arena::PAGE_SHIFT;
use crate::cpu::Cpu;
use crate::init::Kernel;
use crate::maple_tree::MaState;

/// The flags that the `VmFlags` line has letters for.
pub const SMAPS_FLAGS: u64 = VM_READ
    | VM_WRITE
    | VM_EXEC
    | VM_SHARED
    | VM_MAYREAD
    | VM_MAYWRITE
    | VM_MAYEXEC
    | VM_MAYSHARE
    | VM_GROWSDOWN
    | VM_PFNMAP
    | VM_LOCKED
    | VM_IO
    | VM_SEQ_READ
    | VM_RAND_READ
    | VM_DONTCOPY
    | VM_DONTEXPAND
    | VM_LOCKONFAULT
    | VM_ACCOUNT
    | VM_NORESERVE
    | VM_WIPEONFORK
    | VM_DONTDUMP
    | VM_MIXEDMAP
    | VM_HUGEPAGE
    | VM_NOHUGEPAGE
    | VM_MERGEABLE
    | VM_DROPPABLE
    | VM_SEALED;

/// The VMAs of `mm`, in order of their addresses.
pub fn vma_infos<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) -> Vec<VmaInfo> {
    let mut shown = SMAPS_FLAGS;
    if k.rules.maybe_guard_flag {
        shown |= VM_MAYBE_GUARD;
    }
    mmap_read_lock(cpu, &*mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut infos = Vec::with_capacity(mm.map_count.get() as usize);
    while let Some(vma) = vma_next::<K>(cpu, &mut mas) {
        let file = vma.vm_file().load(Relaxed) != 0;
        infos.push(VmaInfo {
            start: start_of::<K>(vma),
            end: end_of::<K>(vma),
            flags: vma.vm_flags().load(Relaxed) & shown,
            file: None,
            offset: if file { vma.vm_pgoff().load(Relaxed) << PAGE_SHIFT } else { 0 },
        });
    }
    mmap_read_unlock(cpu, &*mm);
    infos
}
