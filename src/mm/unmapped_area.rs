// SPDX-License-Identifier: GPL-2.0-only
//! Where a new mapping goes [mm/mmap.c, arch/x86/kernel/sys_x86_64.c, mm/huge_memory.c, 6.12].
//!
//! dup: hints, the search from the top down and its fall-back from the bottom up, the gap that a stack keeps below
//! itself, large sizes that are aligned for huge pages, the arena of `MAP_32BIT`, the order in which the cursor moves
//! in a search. stub: five-level page tables, randomisation, shadow stacks, the colouring of one family of processors,
//! huge pages of shared memory (`shmem_enabled`: off unless an administrator wants them), so that its method
//! (`shmem_get_unmapped_area()`, 6.12 to 7.x) is the plain search for anonymous shared memory, too.
//!
//! Under `mmap_lock` for write.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{CAP_SYS_RAWIO, MMAP_MIN_ADDR, TASK_SIZE, VM_GROWSDOWN, VmaFields};
use super::mmap::{MAP_32BIT, MAP_ABOVE4G, MAP_FIXED};
use super::vma::{end_of, find_vma, start_of, vma_next, vma_prev};
use crate::arch::Relaxed;
use crate::arch::arena::{PAGE_SHIFT, PAGE_SIZE};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_empty_area, mas_empty_area_rev, mas_reset};

const MASK: u64 = PAGE_SIZE as u64 - 1;
const PMD_SIZE: u64 = 2 << 20;
/// `stack_guard_gap`, bytes: 256 pages unless the command line says otherwise.
pub const STACK_GUARD_GAP: u64 = 256 << PAGE_SHIFT;
/// What `MAP_32BIT` is confined to.
const ARENA_32BIT: (u64, u64) = (0x4000_0000, 0x8000_0000);

/// `vm_start_gap()`: the lowest address that other mappings leave to this one.
#[inline(always)]
pub fn vm_start_gap<K: Kconfig>(vma: VmaPtr<K>) -> u64 {
    let gap = if vma.vm_flags().load(Relaxed) & VM_GROWSDOWN != 0 { STACK_GUARD_GAP } else { 0 };
    start_of::<K>(vma).saturating_sub(gap)
}

/// Who chooses the address of a mapping (`f_op->get_unmapped_area`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaMethod {
    /// Nobody in particular: aligned for huge pages where the size asks for it.
    None,
    /// Shared memory: as any, since its huge pages are off.
    Shmem,
    /// A file system with large folios: always aligned, if at all possible.
    Thp,
}

/// `struct vm_unmapped_area_info`, without what no caller sets on this architecture.
#[derive(Clone, Copy)]
struct UnmappedAreaInfo {
    length: u64,
    low_limit: u64,
    high_limit: u64,
}

/// `unmapped_area_topdown()`: the highest hole that fits.
fn unmapped_area_topdown<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    info: UnmappedAreaInfo,
) -> Result<u64, Errno> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let low_limit = info.low_limit.max(MMAP_MIN_ADDR);
    let mut high_limit = info.high_limit;
    loop {
        // A guard gap may reach below the window.
        if high_limit <= low_limit {
            return Err(Errno::ENOMEM);
        }
        mas_empty_area_rev(&mut mas, low_limit, high_limit - 1, info.length).map_err(|_| Errno::ENOMEM)?;
        let gap_end = mas.last + 1;
        let gap = gap_end - info.length;
        match vma_next::<K>(cpu, &mut mas) {
            Some(next) if next.vm_flags().load(Relaxed) & VM_GROWSDOWN != 0 => {
                if vm_start_gap::<K>(next) >= gap_end {
                    return Ok(gap);
                }
                high_limit = vm_start_gap::<K>(next);
            }
            _ => match vma_prev::<K>(cpu, &mut mas) {
                Some(prev) if end_of::<K>(prev) > gap => high_limit = start_of::<K>(prev),
                _ => return Ok(gap),
            },
        }
        mas_reset(&mut mas);
    }
}

/// `unmapped_area()`: the lowest hole that fits.
fn unmapped_area<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    info: UnmappedAreaInfo,
) -> Result<u64, Errno> {
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut low_limit = info.low_limit.max(MMAP_MIN_ADDR);
    loop {
        if info.high_limit <= low_limit {
            return Err(Errno::ENOMEM);
        }
        mas_empty_area(&mut mas, low_limit, info.high_limit - 1, info.length).map_err(|_| Errno::ENOMEM)?;
        let gap = mas.index;
        match vma_next::<K>(cpu, &mut mas) {
            Some(next) if next.vm_flags().load(Relaxed) & VM_GROWSDOWN != 0 => {
                if vm_start_gap::<K>(next) >= gap + info.length - 1 {
                    return Ok(gap);
                }
                low_limit = end_of::<K>(next);
            }
            _ => match vma_prev::<K>(cpu, &mut mas) {
                Some(prev) if end_of::<K>(prev) > gap => low_limit = end_of::<K>(prev),
                _ => return Ok(gap),
            },
        }
        mas_reset(&mut mas);
    }
}

/// `arch_get_unmapped_area()`: from the bottom up.
fn arch_get_unmapped_area<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<u64, Errno> {
    if flags & MAP_FIXED != 0 {
        return Ok(addr);
    }
    // find_start_end()
    let (begin, end) = if flags & MAP_32BIT != 0 { ARENA_32BIT } else { (mm.mmap_legacy_base.get(), TASK_SIZE) };
    if len > end {
        return Err(Errno::ENOMEM);
    }
    if addr != 0 {
        let addr = addr.wrapping_add(MASK) & !MASK;
        if end - len >= addr && find_vma(cpu, k, mm, addr).is_none_or(|v| addr + len <= vm_start_gap::<K>(v)) {
            return Ok(addr);
        }
    }
    unmapped_area(cpu, k, mm, UnmappedAreaInfo { length: len, low_limit: begin, high_limit: end })
}

/// `arch_get_unmapped_area_topdown()`
fn arch_get_unmapped_area_topdown<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<u64, Errno> {
    if len > TASK_SIZE {
        return Err(Errno::ENOMEM);
    }
    if flags & MAP_FIXED != 0 {
        return Ok(addr);
    }
    if flags & MAP_32BIT == 0 {
        if addr != 0 {
            let addr = addr & !MASK;
            // mmap_address_hint_valid(); what lies below is not looked at.
            if addr <= TASK_SIZE - len && find_vma(cpu, k, mm, addr).is_none_or(|v| addr + len <= vm_start_gap::<K>(v))
            {
                return Ok(addr);
            }
        }
        let low_limit = if flags & MAP_ABOVE4G != 0 { 1 << 32 } else { PAGE_SIZE as u64 };
        let info = UnmappedAreaInfo { length: len, low_limit, high_limit: mm.mmap_base.get() };
        if let Ok(addr) = unmapped_area_topdown(cpu, k, mm, info) {
            return Ok(addr);
        }
    }
    bottom_up(cpu, k, mm, addr, len, flags)
}

/// Where nothing fits below the base, or must be low.
#[cold]
#[inline(never)]
fn bottom_up<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<u64, Errno> {
    arch_get_unmapped_area(cpu, k, mm, addr, len, flags)
}

/// `mm_get_unmapped_area_vmflags()`
#[inline]
fn mm_get_unmapped_area<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<u64, Errno> {
    // PORT: MMF_TOPDOWN is always set; a process with an unlimited stack, which has it cleared, is not modelled.
    arch_get_unmapped_area_topdown(cpu, k, mm, addr, len, flags)
}

/// `__thp_get_unmapped_area()`: room for one huge page more, and in it the address at which file offset and address
/// agree within a huge page.
fn thp_get_unmapped_area<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
    off: u64,
    flags: u32,
) -> Option<u64> {
    let off_end = off.checked_add(len)?;
    let off_align = off.checked_next_multiple_of(PMD_SIZE)?;
    if off_end <= off_align || off_end - off_align < PMD_SIZE {
        return None;
    }
    let len_pad = len.checked_add(PMD_SIZE)?;
    off.checked_add(len_pad)?;
    let ret = mm_get_unmapped_area(cpu, k, mm, addr, len_pad, flags).ok()?;
    if ret == addr {
        return Some(addr);
    }
    let off_sub = off.wrapping_sub(ret) & (PMD_SIZE - 1);
    Some(if off_sub == 0 { ret + PMD_SIZE } else { ret + off_sub })
}

/// `__get_unmapped_area()`: the address of a mapping of `len` bytes (a multiple of a page, not 0), which is `addr` with
/// `MAP_FIXED`. `off`: bytes into the file, 0 without one.
///
/// # Errors
/// `ENOMEM`: no room, or beyond the end of user addresses; `EINVAL`: not at a page; `EPERM`: below the lowest address.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
pub fn get_unmapped_area<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    method: AreaMethod,
    addr: u64,
    len: u64,
    off: u64,
    flags: u32,
) -> Result<u64, Errno> {
    if len > TASK_SIZE {
        return Err(Errno::ENOMEM);
    }
    let thp = match method {
        AreaMethod::None => addr == 0 && len.is_multiple_of(PMD_SIZE),
        AreaMethod::Shmem => false,
        AreaMethod::Thp => true,
    };
    let aligned = if thp { thp_get_unmapped_area(cpu, k, mm, addr, len, off, flags).filter(|a| *a != 0) } else { None };
    let addr = match aligned {
        Some(a) => a,
        None => mm_get_unmapped_area(cpu, k, mm, addr, len, flags)?,
    };
    if addr > TASK_SIZE - len {
        return Err(Errno::ENOMEM);
    }
    if addr & MASK != 0 {
        return Err(Errno::EINVAL);
    }
    // security_mmap_addr()
    if addr < MMAP_MIN_ADDR && !mm.capable(CAP_SYS_RAWIO) {
        return Err(Errno::EPERM);
    }
    Ok(addr)
}
