// SPDX-License-Identifier: GPL-2.0-only
//! Files as far as mappings need them: `struct file`, `struct address_space` with its page cache, shared memory
//! [include/linux/fs.h, fs/file_table.c, mm/shmem.c, mm/memfd.c, mm/vma.c, 6.12].
//!
//! dup: references of VMAs to their file, the count of writable shared mappings, the lock and the set of all mappings of a
//! file, which functions a mapping gets (`vm_ops`). custom: a file and its inode are made together and die together, at
//! once (the kernel puts off the end of a file to the return to user mode, and its inode's to a grace period); the set
//! of mappings is their number, as nobody searches it here. stub: paths, reading and writing, sizes that change, write-back.
//!
//! Lock order: `mmap_lock`; a VMA's lock; `i_mmap_rwsem`; the anon_vma's lock; page table locks; the page cache's lock.

use super::folio::{PG_SWAPBACKED, PG_UPTODATE, folio_put, page_folio};
use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{VM_MAYWRITE, VM_NORESERVE, VM_OPS, VM_SHARED, VmaFields};
use super::util::{vm_enough_memory, vm_unacct_memory};
use super::vmstat::{VmEvent, warn_on_once};
use super::xarray::{Xarray, radix_tree_node_args, xa_destroy, xa_insert, xa_load};
use crate::arch::arena::{KRef, PAGE_SHIFT, PAGE_SIZE, record_page};
use crate::arch::{Arena, Atomic, Full, Hardware, Plain, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::slab::{
    KmemCache, KmemCacheArgs, SLAB_ACCOUNT, SLAB_HWCACHE_ALIGN, SLAB_PANIC, SlabState, alloc_pages, clear_page,
    kmem_cache_alloc, kmem_cache_create, kmem_cache_free,
};
use crate::sync::{RwSemaphore, down_write, up_write};
use std::ptr::NonNull;

/// Open for reading.
pub const FMODE_READ: u32 = 0x1;
/// Open for writing.
pub const FMODE_WRITE: u32 = 0x2;

/// In `vm_ops`: the file wants to hear of the first write to a page (`page_mkwrite`).
pub const VM_OPS_MKWRITE: u64 = 4;
/// In `vm_ops`: shared anonymous memory (`shmem_anon_vm_ops`).
pub const VM_OPS_ANON_SHMEM: u64 = 8;

/// What backs a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FileKind {
    /// A file of a disk file system (`generic_file_vm_ops`).
    Regular = 0,
    /// memfd_create(2), tmpfs (`shmem_vm_ops`).
    Memfd = 1,
    /// What `MAP_SHARED | MAP_ANONYMOUS` makes (`shmem_anon_vm_ops`).
    AnonShmem = 2,
}

/// What [`file_open`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// What backs it.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// `FMODE_READ`, `FMODE_WRITE`
    pub mode: u32,
    /// On a file system mounted `noexec`.
    pub noexec: bool,
    /// Each byte of the file before anybody wrote to it.
    pub fill: u8,
    /// Flags that its driver gives every mapping, which the caller of mmap(2) does not ask for.
    pub mmap_sets: u64,
}

impl FileSpec {
    /// A memfd of `size` bytes, all zero, for reading and writing.
    pub fn memfd(size: u64) -> Self {
        FileSpec { kind: FileKind::Memfd, size, mode: FMODE_READ | FMODE_WRITE, noexec: false, fill: 0, mmap_sets: 0 }
    }
    /// A regular file of `size` bytes `fill`, for reading and writing.
    pub fn regular(size: u64, fill: u8) -> Self {
        FileSpec { kind: FileKind::Regular, fill, ..FileSpec::memfd(size) }
    }
}

/// `struct address_space` and what of its inode mappings look at.
#[repr(C)]
pub struct AddressSpace<A: Hardware> {
    /// Number of the inode; files of one kernel have different ones.
    pub i_ino: Plain<A, u64>,
    /// Bytes of the file.
    pub i_size: Atomic<A, u64>,
    /// Pages by number; as records.
    pub i_pages: Xarray<A>,
    /// Guards the set of mappings.
    pub i_mmap_rwsem: RwSemaphore<A>,
    /// Mappings: VMAs linked by [`mapping_link`].
    pub i_mmap: Plain<A, u64>,
    /// Shared mappings that may become writable.
    pub i_mmap_writable: Atomic<A, i32>,
    kind: Plain<A, u32>,
    fill: Plain<A, u32>,
    mmap_sets: Plain<A, u64>,
    /// Shared memory that is charged page by page, as they come (`VM_NORESERVE`), and not as a whole.
    noreserve: Plain<A, u32>,
}

/// `struct file`
#[repr(C)]
pub struct File<A: Hardware> {
    /// References: descriptors and VMAs.
    pub f_count: Atomic<A, i64>,
    /// `FMODE_*`
    pub f_mode: Plain<A, u32>,
    /// `path_noexec()`
    pub f_noexec: Plain<A, u32>,
    f_mapping: Plain<A, *mut AddressSpace<A>>,
    // The rest of the kernel's 184 bytes.
    _room: [u64; 20],
}
const _: () = assert!(size_of::<File<crate::arch::Native>>() == 184);

impl<A: Hardware> File<A> {
    /// `f_mapping`
    #[inline(always)]
    pub fn f_mapping(&self) -> KRef<AddressSpace<A>> {
        // SAFETY: set by file_open(); lives as long as the file.
        unsafe { KRef::new(NonNull::new_unchecked(self.f_mapping.get())) }
    }
    /// Whether it was opened with all bits of `mode`.
    pub fn has_mode(&self, mode: u32) -> bool {
        self.f_mode.get() & mode == mode
    }
}

impl<A: Hardware> AddressSpace<A> {
    /// What backs the file.
    pub fn kind(&self) -> FileKind {
        match self.kind.get() {
            0 => FileKind::Regular,
            1 => FileKind::Memfd,
            _ => FileKind::AnonShmem,
        }
    }
    /// Pages of shared memory that were charged when it was made (`shmem_acct_size()`).
    pub fn charged_as_a_whole(&self) -> u64 {
        if self.kind() == FileKind::Regular || self.noreserve.get() != 0 { 0 } else { self.max_idx() }
    }
    /// Pages that the file has: the number of the first one behind its end.
    pub fn max_idx(&self) -> u64 {
        self.i_size.load(Relaxed).div_ceil(PAGE_SIZE as u64)
    }
}

/// The caches of files.
pub struct FileState<A: Hardware> {
    /// `struct file`
    pub filp_cachep: KRef<KmemCache<A>>,
    /// Inodes with their address spaces.
    pub inode_cachep: KRef<KmemCache<A>>,
    /// Nodes of page caches.
    pub radix_tree_node_cachep: KRef<KmemCache<A>>,
    next_ino: Atomic<A, u64>,
}

/// `files_init()`, `inode_init()`, `radix_tree_init()`
pub fn files_init<A: Hardware>(arena: &Arena, slab: KRef<SlabState<A>>) -> KRef<FileState<A>> {
    let filp = KmemCacheArgs {
        name: "filp",
        size: size_of::<File<A>>(),
        align: 8,
        flags: SLAB_HWCACHE_ALIGN | SLAB_PANIC | SLAB_ACCOUNT,
        ..KmemCacheArgs::default()
    };
    let inode = KmemCacheArgs {
        name: "inode_cache",
        size: size_of::<AddressSpace<A>>(),
        align: 8,
        flags: SLAB_PANIC | SLAB_ACCOUNT,
        ..KmemCacheArgs::default()
    };
    let filp_cachep = kmem_cache_create(arena, slab, filp);
    let inode_cachep = kmem_cache_create(arena, slab, inode);
    let radix_tree_node_cachep = kmem_cache_create(arena, slab, radix_tree_node_args::<A>());
    arena.boot_new(0, FileState { filp_cachep, inode_cachep, radix_tree_node_cachep, next_ino: Atomic::new(1) })
}

/// Makes a file as `spec` says, with one reference. Nothing of it is in memory yet.
///
/// # Errors
/// `ENOMEM`
pub fn file_open<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, spec: &FileSpec) -> Result<KRef<File<K::A>>, Errno> {
    alloc_file(cpu, k, spec, true)
}

fn alloc_file<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    spec: &FileSpec,
    noreserve: bool,
) -> Result<KRef<File<K::A>>, Errno> {
    let st = k.files;
    let inode = NonNull::new(kmem_cache_alloc(cpu, &st.inode_cachep).cast::<AddressSpace<K::A>>());
    let inode = inode.ok_or(Errno::ENOMEM)?;
    let Some(file) = NonNull::new(kmem_cache_alloc(cpu, &st.filp_cachep).cast::<File<K::A>>()) else {
        // SAFETY: just allocated, nobody knows it.
        unsafe { kmem_cache_free(cpu, &st.inode_cachep, inode.as_ptr().cast()) };
        return Err(Errno::ENOMEM);
    };
    // SAFETY: fresh objects of their caches.
    unsafe {
        inode.write(AddressSpace {
            i_ino: Plain::new(st.next_ino.fetch_add(1, Relaxed)),
            i_size: Atomic::new(spec.size),
            i_pages: Xarray::new(),
            i_mmap_rwsem: RwSemaphore::new(),
            i_mmap: Plain::new(0),
            i_mmap_writable: Atomic::new(0),
            kind: Plain::new(spec.kind as u32),
            fill: Plain::new(u32::from(spec.fill)),
            mmap_sets: Plain::new(spec.mmap_sets),
            noreserve: Plain::new(u32::from(noreserve)),
        });
        file.write(File {
            f_count: Atomic::new(1),
            f_mode: Plain::new(spec.mode),
            f_noexec: Plain::new(u32::from(spec.noexec)),
            f_mapping: Plain::new(inode.as_ptr()),
            _room: [0; 20],
        });
        Ok(KRef::new(file))
    }
}

/// `get_file()`
#[inline(always)]
pub fn get_file<A: Hardware>(file: KRef<File<A>>) -> KRef<File<A>> {
    file.f_count.fetch_add(1, Relaxed);
    file
}

/// `fput()`: drops a reference; the last one ends the file, its pages and its inode.
pub fn fput<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, file: KRef<File<K::A>>) {
    // ORDER: full, as atomic_long_dec_and_test(): everybody's use of the file comes before its end.
    if file.f_count.fetch_sub(1, Full) == 1 {
        __fput(cpu, k, file);
    }
}

#[cold]
fn __fput<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, file: KRef<File<K::A>>) {
    let st = k.files;
    let mapping = file.f_mapping();
    warn_on_once(cpu, mapping.i_mmap.get() != 0 || mapping.i_mmap_writable.load(Relaxed) != 0);
    // truncate_inode_pages_final()
    let mut pages = 0;
    xa_destroy(cpu, &st.radix_tree_node_cachep, &mapping.i_pages, |record| {
        folio_put(cpu, k, record_page(record as usize) as *mut u8);
        pages += 1;
    });
    // shmem_unacct_blocks(), shmem_unacct_size()
    let by_page = mapping.kind() != FileKind::Regular && mapping.noreserve.get() != 0;
    let charged = if by_page { pages } else { mapping.charged_as_a_whole() };
    if charged != 0 {
        vm_unacct_memory(cpu, k, charged);
    }
    // SAFETY: the last reference to both.
    unsafe {
        kmem_cache_free(cpu, &st.inode_cachep, mapping.as_ptr().cast());
        kmem_cache_free(cpu, &st.filp_cachep, file.as_ptr().cast());
    }
}

/// The file of a word that [`file_word`] made; `None` for 0.
#[inline(always)]
pub fn file_of_word<A: Hardware>(word: u64) -> Option<KRef<File<A>>> {
    // SAFETY: whoever holds the word holds a reference to the file.
    NonNull::new(word as *mut File<A>).map(|p| unsafe { KRef::new(p) })
}

/// A file as the word that `vm_file` holds.
#[inline(always)]
pub fn file_word<A: Hardware>(file: KRef<File<A>>) -> u64 {
    file.as_ptr() as u64
}

/// `vma->vm_file`
#[inline(always)]
pub fn vm_file_of<K: Kconfig>(vma: VmaPtr<K>) -> Option<KRef<File<K::A>>> {
    file_of_word(vma.vm_file().load(Relaxed))
}

/// `call_mmap()`: the file's own part of a new mapping: which functions it gets, and which flags more. `vma` has the file
/// already.
///
/// # Errors
/// None here; a driver's may fail.
pub fn call_mmap<K: Kconfig>(file: KRef<File<K::A>>, vma: VmaPtr<K>) -> Result<(), Errno> {
    let ops = match file.f_mapping().kind() {
        FileKind::Regular => VM_OPS | VM_OPS_MKWRITE,
        FileKind::Memfd => VM_OPS,
        FileKind::AnonShmem => VM_OPS | VM_OPS_ANON_SHMEM,
    };
    vma.vm_ops().store(ops, Relaxed);
    let more = file.f_mapping().mmap_sets.get();
    if more != 0 {
        vma.vm_flags().store(vma.vm_flags().load(Relaxed) | more, Relaxed);
    }
    Ok(())
}

/// `shmem_zero_setup()`: shared anonymous memory gets a file of its own, which the VMA holds.
///
/// # Errors
/// `ENOMEM`
pub fn shmem_zero_setup<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>) -> Result<(), Errno> {
    let size = vma.vm_end().load(Relaxed) - vma.vm_start().load(Relaxed);
    let noreserve = vma.vm_flags().load(Relaxed) & VM_NORESERVE != 0;
    let spec = FileSpec { kind: FileKind::AnonShmem, ..FileSpec::memfd(size) };
    if !noreserve {
        // shmem_acct_size()
        // SAFETY: the caller's mm, whose lock it holds.
        let mm = unsafe { KRef::new(NonNull::new_unchecked(vma.vm_mm().load(Relaxed))) };
        vm_enough_memory(cpu, k, mm, size >> PAGE_SHIFT)?;
    }
    let file = alloc_file(cpu, k, &spec, noreserve).inspect_err(|_| {
        if !noreserve {
            vm_unacct_memory(cpu, k, size >> PAGE_SHIFT);
        }
    })?;
    if let Some(old) = vm_file_of::<K>(vma) {
        fput(cpu, k, old);
    }
    vma.vm_file().store(file_word(file), Relaxed);
    call_mmap::<K>(file, vma)
}

/// `i_mmap_lock_write()`
#[inline]
pub fn i_mmap_lock_write<A: Hardware>(cpu: &Cpu<A>, mapping: &AddressSpace<A>) {
    down_write(cpu, &mapping.i_mmap_rwsem);
}

/// `i_mmap_unlock_write()`
#[inline]
pub fn i_mmap_unlock_write<A: Hardware>(cpu: &Cpu<A>, mapping: &AddressSpace<A>) {
    up_write(cpu, &mapping.i_mmap_rwsem);
}

/// `vma_is_shared_maywrite()` of a VMA's flags.
#[inline(always)]
pub fn is_shared_maywrite(vm_flags: u64) -> bool {
    vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_SHARED | VM_MAYWRITE
}

/// `__vma_link_file()`: a mapping of `vm_flags` joins the set. Under `i_mmap_rwsem` for write.
#[inline]
pub fn mapping_link<A: Hardware>(mapping: &AddressSpace<A>, vm_flags: u64) {
    if is_shared_maywrite(vm_flags) {
        mapping.i_mmap_writable.fetch_add(1, Relaxed);
    }
    mapping.i_mmap.set(mapping.i_mmap.get() + 1);
}

/// `__remove_shared_vm_struct()`: a mapping of `vm_flags` leaves the set. Under `i_mmap_rwsem` for write.
#[inline]
pub fn mapping_unlink<A: Hardware>(mapping: &AddressSpace<A>, vm_flags: u64) {
    if is_shared_maywrite(vm_flags) {
        mapping.i_mmap_writable.fetch_sub(1, Relaxed);
    }
    mapping.i_mmap.set(mapping.i_mmap.get() - 1);
}

/// `filemap_get_folio()`: the page of number `index`, with a reference; `None` if it is not in memory.
pub fn filemap_get_folio<A: Hardware>(mapping: &AddressSpace<A>, index: u64) -> Option<*mut u8> {
    // Pages stay until the file goes, and the caller's VMA holds the file: no RCU, and no second look.
    let record = xa_load(&mapping.i_pages, index);
    if record.is_null() {
        return None;
    }
    let page = record_page(record as usize) as *mut u8;
    page_folio::<A>(page).try_get().then_some(page)
}

/// `__filemap_get_folio()` with `FGP_CREAT`, and the read that fills the page: the page of number `index`, with a
/// reference. A page of shared memory may be charged, by the rules for `mm`.
///
/// # Errors
/// `ENOMEM`
pub fn filemap_grab_folio<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    mapping: KRef<AddressSpace<K::A>>,
    index: u64,
) -> Result<*mut u8, Errno> {
    // shmem_acct_blocks()
    let charge = u64::from(mapping.kind() != FileKind::Regular && mapping.noreserve.get() != 0);
    let uncharge = || {
        if charge != 0 {
            vm_unacct_memory(cpu, k, charge);
        }
    };
    loop {
        if let Some(page) = filemap_get_folio(&*mapping, index) {
            return Ok(page);
        }
        if charge != 0 {
            vm_enough_memory(cpu, k, mm, charge)?;
        }
        let page = alloc_pages(cpu, &k.pages, 0);
        if page.is_null() {
            uncharge();
            return Err(Errno::ENOMEM);
        }
        cpu.count(VmEvent::Pgalloc);
        K::A::label(page, PAGE_SIZE, "page cache");
        fill::<K>(&mapping, page, index);
        let folio = page_folio::<K::A>(page);
        folio.set_page_refcounted();
        folio.__set(PG_UPTODATE | if mapping.kind() == FileKind::Regular { 0 } else { PG_SWAPBACKED });
        folio.mapping.store(mapping.as_ptr() as u64, Relaxed);
        folio.index.store(index, Relaxed);
        // The cache's reference, before others can find the page.
        folio.get();
        let record = folio.as_ptr().cast();
        match xa_insert(cpu, &k.files.radix_tree_node_cachep, &mapping.i_pages, index, record) {
            Ok(None) => return Ok(page),
            other => {
                // Another thread was first, or no memory for the way there.
                folio_put(cpu, k, page);
                folio_put(cpu, k, page);
                uncharge();
                other?;
            }
        }
    }
}

/// What a read from the disk would bring: [`FileSpec::fill`], zeros behind the end of the file.
fn fill<K: Kconfig>(mapping: &AddressSpace<K::A>, page: *mut u8, index: u64) {
    // SAFETY: a page that nobody else knows.
    unsafe { clear_page::<K::A>(page) };
    let fill = mapping.fill.get() as u8;
    if fill != 0 {
        let inside = mapping.i_size.load(Relaxed).saturating_sub(index << PAGE_SHIFT).min(PAGE_SIZE as u64);
        // SAFETY: as above; no more than the page.
        unsafe { page.write_bytes(fill, inside as usize) };
    }
}
