// SPDX-License-Identifier: GPL-2.0-only
//! What user mode can see of an address space: the lines of `/proc/PID/smaps` [fs/proc/task_mmu.c, 6.12].
//!
//! custom: a vector, taken under `mmap_lock` for read from first to last, where the file is read a buffer at a time.
//! stub: sizes and resident pages, names.

use super::file::{File, vm_file_of};
use super::kconfig::{Kconfig, MmPtr};
use super::mm_types::*;
use super::mmap_lock::{mmap_read_lock, mmap_read_unlock};
use super::syscall::VmaInfo;
use super::vma::{end_of, start_of, vma_next};
use crate::arch::Relaxed;
use crate::arch::arena::{KRef, PAGE_SHIFT};
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

/// Added to the inode number of a file that is not among those looked for.
pub const OTHER_FILE: u32 = 1 << 16;

/// The VMAs of `mm`, in order of their addresses. A file is named by its place in `files`, or by [`OTHER_FILE`] and
/// its inode number.
pub fn vma_infos<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, files: &[KRef<File<K::A>>]) -> Vec<VmaInfo> {
    let name = |ino: u64| {
        let known = files.iter().position(|f| f.f_mapping().i_ino.get() == ino);
        known.map_or(OTHER_FILE.wrapping_add(ino as u32), |i| i as u32)
    };
    let mut shown = SMAPS_FLAGS;
    if k.rules.maybe_guard_flag {
        shown |= VM_MAYBE_GUARD;
    }
    mmap_read_lock(cpu, &*mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut infos = Vec::with_capacity(mm.map_count.get() as usize);
    while let Some(vma) = vma_next::<K>(cpu, &mut mas) {
        let file = vm_file_of::<K>(vma).map(|f| f.f_mapping().i_ino.get());
        infos.push(VmaInfo {
            start: start_of::<K>(vma),
            end: end_of::<K>(vma),
            flags: vma.vm_flags().load(Relaxed) & shown,
            file: file.map(name),
            offset: if file.is_some() { vma.vm_pgoff().load(Relaxed) << PAGE_SHIFT } else { 0 },
        });
    }
    mmap_read_unlock(cpu, &*mm);
    infos
}
