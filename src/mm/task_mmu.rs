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

/// The letters of the `VmFlags` line and what they stand for (`show_smap_vma_flags()`). Not here: `sd`, where configured;
/// the keys of protection-key hardware; huge TLB pages; userfaultfd.
pub const VM_FLAGS: &[(&[u8; 2], u64)] = &[
    (b"rd", VM_READ),
    (b"wr", VM_WRITE),
    (b"ex", VM_EXEC),
    (b"sh", VM_SHARED),
    (b"mr", VM_MAYREAD),
    (b"mw", VM_MAYWRITE),
    (b"me", VM_MAYEXEC),
    (b"ms", VM_MAYSHARE),
    (b"gd", VM_GROWSDOWN),
    (b"pf", VM_PFNMAP),
    (b"lo", VM_LOCKED),
    (b"lf", VM_LOCKONFAULT),
    (b"io", VM_IO),
    (b"sr", VM_SEQ_READ),
    (b"rr", VM_RAND_READ),
    (b"dc", VM_DONTCOPY),
    (b"de", VM_DONTEXPAND),
    (b"ac", VM_ACCOUNT),
    (b"nr", VM_NORESERVE),
    (b"wf", VM_WIPEONFORK),
    (b"dd", VM_DONTDUMP),
    (b"mm", VM_MIXEDMAP),
    (b"hg", VM_HUGEPAGE),
    (b"nh", VM_NOHUGEPAGE),
    (b"mg", VM_MERGEABLE),
    (b"sl", VM_SEALED),
    (b"dp", VM_DROPPABLE),
    (b"gu", VM_MAYBE_GUARD),
];

/// All flags that have letters.
pub fn smaps_flags() -> u64 {
    VM_FLAGS.iter().fold(0, |m, (_, f)| m | f)
}

/// The flags that the words of a `VmFlags` line stand for; other words are none.
pub fn parse_vm_flags(line: &[u8]) -> u64 {
    let words = line.strip_prefix(b"VmFlags:").unwrap_or(line).split(|&b| b == b' ');
    words.filter_map(|w| VM_FLAGS.iter().find(|(n, _)| n[..] == *w)).fold(0, |f, (_, b)| f | b)
}

/// The words of a `VmFlags` line.
pub fn vm_flags_line(flags: u64) -> String {
    let set = VM_FLAGS.iter().filter(|(_, f)| flags & f != 0);
    set.map(|(n, _)| String::from_utf8_lossy(&n[..]).into_owned()).collect::<Vec<_>>().join(" ")
}

/// Added to the inode number of a file that is not among those looked for.
pub const OTHER_FILE: u32 = 1 << 16;

/// The VMAs of `mm`, in order of their addresses. A file is named by its place in `files`, or by [`OTHER_FILE`] and
/// its inode number.
pub fn vma_infos<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, files: &[KRef<File<K::A>>]) -> Vec<VmaInfo> {
    let name = |ino: u64| {
        let known = files.iter().position(|f| f.f_mapping().i_ino.get() == ino);
        known.map_or(OTHER_FILE.wrapping_add(ino as u32), |i| i as u32)
    };
    let shown = smaps_flags() & if k.rules.maybe_guard_flag { !0 } else { !VM_MAYBE_GUARD };
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
