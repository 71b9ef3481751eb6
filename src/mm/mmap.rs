// SPDX-License-Identifier: GPL-2.0-only
//! System calls that map, unmap and move the break, and the end of an address space [mm/mmap.c, kernel/fork.c,
//! 6.12].
//!
//! dup: the order of checks (it decides which errno wins), limits, what is charged, the order of events, what is left
//! behind by a failure. stub: huge page pools (`MAP_HUGETLB`), protection keys, randomisation, sealed and append-only
//! files, swap files.

use super::file::{
    FMODE_READ, FMODE_WRITE, File, FileKind, call_mmap, file_word, get_file, is_shared_maywrite, shmem_zero_setup,
};
use super::fork::xa_is_zero;
use super::gup::mm_populate;
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::memory::unmap_single_vma;
use super::mm_types::{
    CAP_IPC_LOCK, MMAP_MIN_ADDR, RLIMIT_DATA, RLIMIT_MEMLOCK, TASK_SIZE, VM_ACCESS_FLAGS, VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS, VM_DONTDUMP, VM_DROPPABLE, VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_LOCKED_MASK, VM_MAYEXEC,
    VM_MAYREAD, VM_MAYSHARE, VM_MAYWRITE, VM_NOHUGEPAGE, VM_NORESERVE, VM_READ, VM_SHARED, VM_SPECIAL, VM_WIPEONFORK,
    VM_WRITE, VmaFields, vma_pages,
};
use super::mmap_lock::{mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock};
use super::mmu_gather::MmuGather;
use super::pgtable::free_pgd_range;
use super::prctl::{map_deny_write_exec, read_implies_exec};
use super::rmap::unlink_anon_vmas;
use super::unmapped_area::{AreaMethod, STACK_GUARD_GAP, get_unmapped_area, vm_start_gap};
use super::util::{OVERCOMMIT_NEVER, vm_enough_memory, vm_unacct_memory};
use super::vma::file::{unlink_file_vma, vma_fput, vma_link_file};
use super::vma::munmap::remove_vma_unreachable;
use super::vma::{
    VmaMerge, VmaMunmap, do_vmi_align_munmap, do_vmi_munmap, end_of, may_expand_vm, mlock_future_ok, start_of,
    vm_stat_account, vma_find, vma_iter_config, vma_iter_next_rewind, vma_iter_prealloc, vma_iter_store_gfp,
    vma_iter_store_new, vma_merge_new_range, vma_next, vma_prev_limit, vma_set_range, vms_abort_munmap_vmas,
    vms_clean_up_area, vms_complete_munmap_vmas, vms_gather_munmap_vmas,
};
use super::vma_init::{vm_area_alloc, vm_area_free};
use super::vma_lock::VmaLock;
use super::vmstat::warn_on_once;
use crate::arch::arena::{KRef, PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_destroy, mas_next_range, mas_set, mt_clear_in_rcu, mt_destroy};

/// `PROT_READ`
pub const PROT_READ: u32 = 1;
/// `PROT_WRITE`
pub const PROT_WRITE: u32 = 2;
/// `PROT_EXEC`
pub const PROT_EXEC: u32 = 4;
/// `MAP_SHARED`
pub const MAP_SHARED: u32 = 0x01;
/// `MAP_PRIVATE`
pub const MAP_PRIVATE: u32 = 0x02;
/// `MAP_SHARED_VALIDATE`: as `MAP_SHARED`, but unknown flags are refused.
pub const MAP_SHARED_VALIDATE: u32 = 0x03;
/// `MAP_DROPPABLE`: private anonymous memory whose pages may be dropped.
pub const MAP_DROPPABLE: u32 = 0x08;
/// The bits of the four above.
pub const MAP_TYPE: u32 = 0x0f;
/// `MAP_FIXED`
pub const MAP_FIXED: u32 = 0x10;
/// `MAP_ANONYMOUS`
pub const MAP_ANONYMOUS: u32 = 0x20;
/// `MAP_32BIT`
pub const MAP_32BIT: u32 = 0x40;
/// `MAP_ABOVE4G`
pub const MAP_ABOVE4G: u32 = 0x80;
/// `MAP_GROWSDOWN`
pub const MAP_GROWSDOWN: u32 = 0x100;
/// `MAP_LOCKED`
pub const MAP_LOCKED: u32 = 0x2000;
/// `MAP_NORESERVE`
pub const MAP_NORESERVE: u32 = 0x4000;
/// `MAP_POPULATE`
pub const MAP_POPULATE: u32 = 0x8000;
/// `MAP_NONBLOCK`
pub const MAP_NONBLOCK: u32 = 0x1_0000;
/// `MAP_STACK`
pub const MAP_STACK: u32 = 0x2_0000;
/// `MAP_HUGETLB`
pub const MAP_HUGETLB: u32 = 0x4_0000;
/// `MAP_FIXED_NOREPLACE`
pub const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
/// `LEGACY_MAP_MASK`: what every file's mapping takes for granted; `MAP_SHARED_VALIDATE` refuses the rest.
const LEGACY_MAP_MASK: u32 = 0x7c07_f9f3;

const MASK: u64 = PAGE_SIZE as u64 - 1;
/// Flags that memory may always get later.
const MAY: u64 = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;

/// Arguments of mmap(2).
#[derive(Clone, Copy)]
pub struct MmapArgs<A: Hardware> {
    /// Hint, or the address with `MAP_FIXED`.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// `PROT_*`
    pub prot: u32,
    /// `MAP_*`
    pub flags: u32,
    /// File, without which `flags` say `MAP_ANONYMOUS`.
    pub file: Option<KRef<File<A>>>,
    /// Bytes into the file.
    pub offset: u64,
}

/// `exit_mmap()`: zap under `mmap_lock` for read, then everything else under it for write.
pub(super) fn exit_mmap<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>) {
    mmap_read_lock(cpu, &*mm);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, 0, 0);
    let mut tlb = MmuGather::new_fullmm();
    // Behind the marker of a fork that failed stand the parent's VMAs.
    let next = |mas: &mut MaState<'_, K::A>| vma_next::<K>(cpu, mas).filter(|v| !xa_is_zero::<K>(*v));
    let mut vma = next(&mut mas);
    while let Some(v) = vma {
        unmap_single_vma(cpu, k, mm, &mut tlb, v, start_of::<K>(v), end_of::<K>(v));
        vma = next(&mut mas);
    }
    mmap_read_unlock(cpu, &*mm);
    mmap_write_lock(cpu, &*mm);
    mt_clear_in_rcu(mm.mm_mt());
    // free_pgtables()
    mas_set(&mut mas, 0);
    vma = next(&mut mas);
    while let Some(v) = vma {
        K::Lock::vma_start_write(cpu, v);
        unlink_anon_vmas(cpu, k, v);
        unlink_file_vma::<K>(cpu, v);
        vma = next(&mut mas);
    }
    free_pgd_range(cpu, k, mm, &mut tlb, 0, TASK_SIZE, 0, u64::MAX);
    tlb.finish(cpu, k);
    let (mut count, mut nr_accounted) = (0, 0);
    mas_set(&mut mas, 0);
    vma = next(&mut mas);
    while let Some(v) = vma {
        vma = next(&mut mas);
        if K::Lock::DETACH_AT_EXIT {
            K::Lock::vma_mark_detached(cpu, v);
        }
        if v.vm_flags().load(Relaxed) & VM_ACCOUNT != 0 {
            nr_accounted += vma_pages::<K::A, K::Lock>(&v);
        }
        remove_vma_unreachable(cpu, k, v);
        count += 1;
    }
    warn_on_once(cpu, count != mm.map_count.get());
    mm.map_count.set(mm.map_count.get() - count);
    mm.total_vm.store(0, Relaxed);
    vm_unacct_memory(cpu, k, nr_accounted);
    mt_destroy(cpu, k.maple, mm.mm_mt());
    mmap_write_unlock(cpu, &*mm);
}

/// mmap(2): takes and drops `mmap_lock`; faults the pages in where that is asked for [`ksys_mmap_pgoff()`,
/// `vm_mmap_pgoff()`].
///
/// # Errors
/// `EINVAL` (no length, an unknown kind of mapping, unaligned, `MAP_HUGETLB`), `EBADF`, `ENOMEM`, `EOVERFLOW`,
/// `EEXIST`, `EPERM`, `EAGAIN` (more locked memory than allowed), `ENODEV`, `EACCES`, `EOPNOTSUPP`.
pub fn do_mmap<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, args: &MmapArgs<K::A>) -> Result<u64, Errno> {
    K::A::charge(Work::KernelEntry);
    if args.offset & MASK != 0 {
        return Err(Errno::EINVAL);
    }
    if args.flags & MAP_ANONYMOUS == 0 && args.file.is_none() {
        return Err(Errno::EBADF);
    }
    if args.flags & MAP_HUGETLB != 0 {
        return Err(Errno::EINVAL);
    }
    mmap_write_lock(cpu, &*mm);
    let r = __do_mmap(cpu, k, mm, args);
    mmap_write_unlock(cpu, &*mm);
    let (addr, populate) = r?;
    if populate != 0 {
        mm_populate(cpu, k, mm, addr, populate);
    }
    Ok(addr)
}

/// `round_hint_to_min()`
fn round_hint_to_min(hint: u64) -> u64 {
    let hint = hint & !MASK;
    if hint != 0 { hint.max(MMAP_MIN_ADDR) } else { 0 }
}

/// `do_mmap()`: the address, and how many bytes are to be faulted in.
fn __do_mmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    args: &MmapArgs<K::A>,
) -> Result<(u64, u64), Errno> {
    let MmapArgs { addr, len, mut prot, mut flags, .. } = *args;
    let file = args.file.filter(|_| flags & MAP_ANONYMOUS == 0);
    let mut pgoff = args.offset >> PAGE_SHIFT;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if prot & PROT_READ != 0 && read_implies_exec::<K>(mm) && file.is_none_or(|f| f.f_noexec.get() == 0) {
        prot |= PROT_EXEC;
    }
    if flags & MAP_FIXED_NOREPLACE != 0 {
        flags |= MAP_FIXED;
    }
    let addr = if flags & MAP_FIXED != 0 { addr } else { round_hint_to_min(addr) };
    let len = len.wrapping_add(MASK) & !MASK;
    if len == 0 {
        return Err(Errno::ENOMEM);
    }
    if pgoff.checked_add(len >> PAGE_SHIFT).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    if mm.map_count.get() > k.max_map_count {
        return Err(Errno::ENOMEM);
    }
    // calc_vm_prot_bits(), calc_vm_flag_bits()
    let mut vm_flags = u64::from(prot) & VM_ACCESS_FLAGS | mm.def_flags.get() | MAY;
    for (map, vm) in [(MAP_GROWSDOWN, VM_GROWSDOWN), (MAP_LOCKED, VM_LOCKED), (MAP_STACK, VM_NOHUGEPAGE)] {
        if flags & map != 0 {
            vm_flags |= vm;
        }
    }
    let (method, off) = match file {
        Some(f) if f.f_mapping().kind() == FileKind::Regular => (AreaMethod::Thp, pgoff << PAGE_SHIFT),
        Some(_) => (AreaMethod::Shmem, pgoff << PAGE_SHIFT),
        None if flags & MAP_SHARED != 0 => (AreaMethod::Shmem, 0),
        None => (AreaMethod::None, 0),
    };
    let addr = get_unmapped_area(cpu, k, mm, method, addr, len, off, flags)?;
    if flags & MAP_FIXED_NOREPLACE != 0 {
        // find_vma_intersection()
        let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
        if vma_find::<K>(cpu, &mut mas, addr + len).is_some() {
            return Err(Errno::EEXIST);
        }
    }
    // can_do_mlock()
    if flags & MAP_LOCKED != 0 && mm.rlimit(RLIMIT_MEMLOCK) == 0 && !mm.capable(CAP_IPC_LOCK) {
        return Err(Errno::EPERM);
    }
    if !mlock_future_ok::<K>(mm, vm_flags, len) {
        return Err(Errno::EAGAIN);
    }
    if let Some(file) = file {
        vm_flags = file_vm_flags::<K>(file, prot, flags, vm_flags, len, pgoff)?;
    } else {
        let kind = flags & MAP_TYPE;
        if kind == MAP_SHARED {
            if vm_flags & VM_GROWSDOWN != 0 {
                return Err(Errno::EINVAL);
            }
            pgoff = 0;
            vm_flags |= VM_SHARED | VM_MAYSHARE;
        } else if kind == MAP_PRIVATE || kind == MAP_DROPPABLE {
            pgoff = addr >> PAGE_SHIFT;
            if kind == MAP_DROPPABLE {
                // Neither locked memory nor a stack may vanish.
                if flags & MAP_LOCKED != 0 || vm_flags & VM_GROWSDOWN != 0 {
                    return Err(Errno::EINVAL);
                }
                vm_flags |= VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP;
            }
        } else {
            return Err(Errno::EINVAL);
        }
    }
    if flags & MAP_NORESERVE != 0 && k.vm_committed.overcommit_memory.load(Relaxed) != OVERCOMMIT_NEVER {
        vm_flags |= VM_NORESERVE;
    }
    let addr = mmap_region(cpu, k, mm, file, addr, len, vm_flags, pgoff)?;
    let populate = vm_flags & VM_LOCKED != 0 || flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE;
    Ok((addr, if populate { len } else { 0 }))
}

/// What `do_mmap()` asks of a file that is to be mapped; the flags of the mapping.
fn file_vm_flags<K: Kconfig>(
    file: KRef<File<K::A>>,
    prot: u32,
    flags: u32,
    mut vm_flags: u64,
    len: u64,
    pgoff: u64,
) -> Result<u64, Errno> {
    // file_mmap_ok(): MAX_LFS_FILESIZE
    const MAX: u64 = i64::MAX as u64;
    if len > MAX || pgoff > (MAX - len) >> PAGE_SHIFT {
        return Err(Errno::EOVERFLOW);
    }
    let kind = flags & MAP_TYPE;
    match kind {
        MAP_SHARED | MAP_SHARED_VALIDATE => {
            if kind == MAP_SHARED_VALIDATE && flags & !LEGACY_MAP_MASK != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            let writable = file.has_mode(FMODE_WRITE);
            if prot & PROT_WRITE != 0 && !writable {
                return Err(Errno::EACCES);
            }
            vm_flags |= VM_SHARED | VM_MAYSHARE;
            if !writable {
                vm_flags &= !(VM_MAYWRITE | VM_SHARED);
            }
        }
        MAP_PRIVATE => {}
        _ => return Err(Errno::EINVAL),
    }
    if !file.has_mode(FMODE_READ) {
        return Err(Errno::EACCES);
    }
    if file.f_noexec.get() != 0 {
        if vm_flags & VM_EXEC != 0 {
            return Err(Errno::EPERM);
        }
        vm_flags &= !VM_MAYEXEC;
    }
    if vm_flags & VM_GROWSDOWN != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(vm_flags)
}

/// `accountable_mapping()`: writable private memory counts against the commit limit.
fn accountable_mapping(vm_flags: u64) -> bool {
    vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE
}

/// `mmap_region()`
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
fn mmap_region<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    file: Option<KRef<File<K::A>>>,
    addr: u64,
    len: u64,
    vm_flags: u64,
    pgoff: u64,
) -> Result<u64, Errno> {
    if map_deny_write_exec::<K>(mm, vm_flags, vm_flags) {
        return Err(Errno::EACCES);
    }
    // A mapping through which a file may be written counts as one before it is there, so that the file is not sealed
    // against writing meanwhile.
    let mapping = file.filter(|_| is_shared_maywrite(vm_flags)).map(|f| f.f_mapping());
    if let Some(m) = mapping {
        m.i_mmap_writable.fetch_add(1, Relaxed);
    }
    let r = __mmap_region(cpu, k, mm, file, addr, len, vm_flags, pgoff);
    if let Some(m) = mapping {
        m.i_mmap_writable.fetch_sub(1, Relaxed);
    }
    r
}

/// `__mmap_region()`
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
fn __mmap_region<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    file: Option<KRef<File<K::A>>>,
    addr: u64,
    len: u64,
    mut vm_flags: u64,
    pgoff: u64,
) -> Result<u64, Errno> {
    let end = addr + len;
    let pglen = len >> PAGE_SHIFT;
    let mut mas = MaState::new(mm.mm_mt(), k.maple, addr, addr);
    let mut vms = VmaMunmap::new(addr, end);
    let (prev, next) = match vma_find::<K>(cpu, &mut mas, end) {
        Some(first) => {
            vms_gather_munmap_vmas(cpu, k, mm, &mut mas, &mut vms, first)?;
            (vms.prev, vms.next)
        }
        None => {
            let (next, prev) = vma_iter_next_rewind::<K>(cpu, &mut mas);
            (prev, next)
        }
    };
    let (mut charged, nr_accounted) = (0, vms.nr_accounted);
    let mut r = Ok(());
    if !may_expand_vm::<K>(mm, vm_flags, pglen - vms.nr_pages) {
        r = Err(Errno::ENOMEM);
    } else if accountable_mapping(vm_flags) {
        charged = pglen - vms.nr_accounted;
        if charged != 0 {
            r = vm_enough_memory(cpu, k, mm, charged);
        }
        if r.is_ok() {
            vms.nr_accounted = 0;
            vm_flags |= VM_ACCOUNT;
        }
    }
    if let Err(e) = r {
        vms_abort_munmap_vmas(cpu, k, mm, &mut mas, &mut vms);
        return Err(e);
    }
    // While the old VMAs are still in the tree.
    vms_clean_up_area(cpu, k, mm, &mut vms);
    let mut merge = VmaMerge::new_range(prev, next, addr, end, vm_flags, pgoff);
    merge.file = file.map_or(0, file_word);
    // Without memory for a merge a VMA of its own is tried, as in the kernel.
    let vma = match vma_merge_new_range(cpu, k, mm, &mut mas, &merge) {
        Ok(Some(vma)) => vma,
        _ => match mmap_new_vma(cpu, k, mm, &mut mas, &merge, file) {
            Ok(vma) => {
                if file.is_some() {
                    vm_flags = vma.vm_flags().load(Relaxed);
                }
                vma
            }
            Err(e) => {
                if charged != 0 {
                    vm_unacct_memory(cpu, k, charged);
                }
                // PORT: the kernel forgets what the old VMAs had been charged, here it goes with them.
                vms.nr_accounted = nr_accounted;
                vms_abort_munmap_vmas(cpu, k, mm, &mut mas, &mut vms);
                return Err(e);
            }
        },
    };
    vms_complete_munmap_vmas(cpu, k, mm, &mut vms, false);
    vm_stat_account::<K>(mm, vm_flags, pglen as i64);
    if vm_flags & VM_LOCKED != 0 {
        locked_vma::<K>(mm, vma, pglen);
    }
    // vma_set_page_prot(): again, whether new or extended.
    vma.vm_page_prot().store(vma.vm_flags().load(Relaxed) & VM_ACCESS_FLAGS, Relaxed);
    Ok(addr)
}

/// A VMA of its own for a new mapping, in the tree; or the neighbour that it went into after all.
fn mmap_new_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    m: &VmaMerge<K>,
    file: Option<KRef<File<K::A>>>,
) -> Result<VmaPtr<K>, Errno> {
    let vma = vm_area_alloc(cpu, k, mm).ok_or(Errno::ENOMEM)?;
    vma_iter_config::<K>(mas, m.start, m.end);
    vma_set_range::<K>(vma, m.start, m.end, m.pgoff);
    vma.vm_flags().store(m.flags, Relaxed);
    vma.vm_page_prot().store(m.flags & VM_ACCESS_FLAGS, Relaxed);
    if let Err(e) = vma_iter_prealloc::<K>(cpu, mas, vma) {
        vm_area_free::<K>(cpu, vma);
        return Err(e);
    }
    if (file.is_some() || m.flags & VM_SHARED != 0)
        && let Err(e) = mmap_file(cpu, k, vma, file)
    {
        mas_destroy(cpu, mas);
        vm_area_free::<K>(cpu, vma);
        return Err(e);
    }
    let flags = vma.vm_flags().load(Relaxed);
    if k.rules.retry_merge && file.is_some() && flags != m.flags && m.prev.is_some() {
        vma_iter_config::<K>(mas, m.start, m.end);
        if let Ok(Some(merged)) = vma_merge_new_range(cpu, k, mm, mas, &VmaMerge { flags, ..*m }) {
            vma_fput(cpu, k, vma);
            vm_area_free::<K>(cpu, vma);
            mas_destroy(cpu, mas);
            return Ok(merged);
        }
        vma_iter_config::<K>(mas, m.start, m.end);
    }
    // The VMA changes after it went into the tree (vm_page_prot, statistics): readers stay out until the end.
    K::Lock::vma_start_write(cpu, vma);
    vma_iter_store_new::<K>(cpu, mas, vma);
    mm.map_count.set(mm.map_count.get() + 1);
    vma_link_file::<K>(cpu, vma);
    Ok(vma)
}

/// The file of a new VMA: the caller's, or one of its own for shared anonymous memory.
fn mmap_file<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    vma: VmaPtr<K>,
    file: Option<KRef<File<K::A>>>,
) -> Result<(), Errno> {
    vma.anon_pgoff().store(start_of::<K>(vma) >> PAGE_SHIFT, Relaxed);
    let Some(file) = file else { return shmem_zero_setup(cpu, k, vma) };
    vma.vm_file().store(file_word(get_file(file)), Relaxed);
    call_mmap::<K>(file, vma).inspect_err(|_| {
        vma_fput(cpu, k, vma);
        vma.vm_file().store(0, Relaxed);
    })
}

/// New pages of a locked mapping; special ones are not locked.
#[cold]
#[inline(never)]
fn locked_vma<K: Kconfig>(mm: MmPtr<K>, vma: VmaPtr<K>, pages: u64) {
    let flags = vma.vm_flags().load(Relaxed);
    // vma_supports_mlock()
    if flags & VM_SPECIAL != 0 {
        vma.vm_flags().store(flags & !VM_LOCKED_MASK, Relaxed);
    } else {
        mm.locked_vm.set(mm.locked_vm.get() + pages);
    }
}

/// mmap(2) in the form that workloads want: private anonymous memory, `addr` fixed or anywhere, `vm_flags` of
/// [`VM_READ`], [`VM_WRITE`], [`VM_EXEC`] and [`VM_NORESERVE`].
///
/// # Errors
/// As [`do_mmap`].
pub fn vm_mmap<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: Option<u64>,
    len: u64,
    vm_flags: u64,
) -> Result<u64, Errno> {
    const { assert!(PROT_READ as u64 == VM_READ && PROT_WRITE as u64 == VM_WRITE && PROT_EXEC as u64 == VM_EXEC) };
    let mut flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if addr.is_some() {
        flags |= MAP_FIXED;
    }
    if vm_flags & VM_NORESERVE != 0 {
        flags |= MAP_NORESERVE;
    }
    let prot = (vm_flags & VM_ACCESS_FLAGS) as u32;
    do_mmap(cpu, k, mm, &MmapArgs { addr: addr.unwrap_or(0), len, prot, flags, file: None, offset: 0 })
}

/// munmap(2): takes `mmap_lock` for write, downgrades it before zapping, drops it.
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EPERM`
pub fn vm_munmap<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, addr: u64, len: u64) -> Result<(), Errno> {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    let r = do_vmi_munmap(cpu, k, mm, addr, len, true);
    if r.is_err() {
        mmap_write_unlock(cpu, &*mm);
    }
    r
}

/// brk(2): the break after it, moved or not.
pub fn sys_brk<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, brk: u64) -> u64 {
    K::A::charge(Work::KernelEntry);
    mmap_write_lock(cpu, &*mm);
    let origbrk = mm.brk.get();
    match do_brk(cpu, k, mm, brk) {
        Some(Brk::Unlocked) => brk,
        Some(Brk::Moved { populate }) => {
            mmap_write_unlock(cpu, &*mm);
            if let Some((from, len)) = populate {
                mm_populate(cpu, k, mm, from, len);
            }
            brk
        }
        None => {
            mm.brk.set(origbrk);
            mmap_write_unlock(cpu, &*mm);
            origbrk
        }
    }
}

/// How a break moved.
enum Brk {
    /// `mmap_lock` is still held; what to fault in.
    Moved { populate: Option<(u64, u64)> },
    /// `mmap_lock` was dropped by the removal.
    Unlocked,
}

/// brk(2) under `mmap_lock`; `None`: it stays where it was.
fn do_brk<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, mm: MmPtr<K>, brk: u64) -> Option<Brk> {
    let start_brk = mm.start_brk.get();
    if brk < start_brk {
        return None;
    }
    // check_data_rlimit()
    let limit = mm.rlimit(RLIMIT_DATA);
    let data = (brk - start_brk).wrapping_add(mm.end_data.get() - mm.start_data.get());
    if limit < super::mm_types::RLIM_INFINITY && data > limit {
        return None;
    }
    let newbrk = brk.wrapping_add(MASK) & !MASK;
    let oldbrk = (mm.brk.get() + MASK) & !MASK;
    if oldbrk == newbrk {
        mm.brk.set(brk);
        return Some(Brk::Moved { populate: None });
    }
    let mut mas = MaState::new(mm.mm_mt(), k.maple, newbrk, newbrk);
    if brk <= mm.brk.get() {
        let vma = vma_find::<K>(cpu, &mut mas, oldbrk)?;
        if start_of::<K>(vma) >= oldbrk {
            return None;
        }
        // Before the lock is dropped, which the removal does.
        mm.brk.set(brk);
        return do_vmi_align_munmap(cpu, k, mm, &mut mas, vma, newbrk, oldbrk, true).ok().map(|()| Brk::Unlocked);
    }
    let len = newbrk.checked_sub(oldbrk)?;
    check_brk_limits(cpu, k, mm, oldbrk, len).ok()?;
    mas_set(&mut mas, oldbrk);
    // A page must stay free below whatever comes next, and the gap below it if it is a stack.
    let next = vma_find::<K>(cpu, &mut mas, newbrk + PAGE_SIZE as u64 + STACK_GUARD_GAP);
    if next.is_some_and(|n| newbrk + PAGE_SIZE as u64 > vm_start_gap::<K>(n)) {
        return None;
    }
    let prev = vma_prev_limit::<K>(cpu, &mut mas, start_brk);
    do_brk_flags(cpu, k, mm, &mut mas, prev, oldbrk, len).ok()?;
    mm.brk.set(brk);
    Some(Brk::Moved { populate: (mm.def_flags.get() & VM_LOCKED != 0).then_some((oldbrk, len)) })
}

/// `check_brk_limits()`
fn check_brk_limits<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    get_unmapped_area(cpu, k, mm, AreaMethod::None, addr, len, 0, MAP_FIXED)?;
    if mlock_future_ok::<K>(mm, mm.def_flags.get(), len) { Ok(()) } else { Err(Errno::EAGAIN) }
}

/// `do_brk_flags()`: extends `prev` if it ends there and fits, else maps a new VMA.
fn do_brk_flags<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    prev: Option<VmaPtr<K>>,
    addr: u64,
    len: u64,
) -> Result<(), Errno> {
    // VM_DATA_FLAGS_TSK_EXEC
    let exec = if read_implies_exec::<K>(mm) { VM_EXEC } else { 0 };
    let flags = VM_DATA_DEFAULT_FLAGS | exec | VM_ACCOUNT | mm.def_flags.get();
    let pages = len >> PAGE_SHIFT;
    if !may_expand_vm::<K>(mm, flags, pages) || mm.map_count.get() > k.max_map_count {
        return Err(Errno::ENOMEM);
    }
    vm_enough_memory(cpu, k, mm, pages)?;
    brk_vma(cpu, k, mm, mas, prev, addr, len, flags).inspect_err(|_| vm_unacct_memory(cpu, k, pages))?;
    mm.total_vm.store(mm.total_vm.load(Relaxed) + pages, Relaxed);
    mm.data_vm.set(mm.data_vm.get() + pages);
    if flags & VM_LOCKED != 0 {
        mm.locked_vm.set(mm.locked_vm.get() + pages);
    }
    Ok(())
}

/// The VMA of a heap that grows.
#[expect(clippy::too_many_arguments, reason = "the kernel's, with the mm, the kernel and the CPU before them")]
fn brk_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mas: &mut MaState<'_, K::A>,
    prev: Option<VmaPtr<K>>,
    addr: u64,
    len: u64,
    flags: u64,
) -> Result<(), Errno> {
    let pgoff = addr >> PAGE_SHIFT;
    if prev.is_some_and(|p| end_of::<K>(p) == addr) {
        let mut merge = VmaMerge::new_range(prev, None, addr, addr + len, flags, pgoff);
        merge.just_expand = true;
        if vma_merge_new_range(cpu, k, mm, mas, &merge)?.is_some() {
            return Ok(());
        }
    }
    if prev.is_some() {
        mas_next_range(cpu, mas, u64::MAX);
    }
    let vma = vm_area_alloc(cpu, k, mm).ok_or(Errno::ENOMEM)?;
    vma_set_range::<K>(vma, addr, addr + len, pgoff);
    vma.vm_flags().store(flags, Relaxed);
    vma.vm_page_prot().store(flags & VM_ACCESS_FLAGS, Relaxed);
    K::Lock::vma_start_write(cpu, vma);
    // This store can fail, so the VMA is attached after it. A reader that finds it before is stopped by vm_lock_seq,
    // or at worst finds it detached and looks again.
    if let Err(e) = vma_iter_store_gfp::<K>(cpu, mas, vma) {
        vm_area_free::<K>(cpu, vma);
        return Err(e);
    }
    K::Lock::vma_mark_attached(cpu, vma);
    mm.map_count.set(mm.map_count.get() + 1);
    Ok(())
}
