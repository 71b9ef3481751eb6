// SPDX-License-Identifier: GPL-2.0-only
//! `mm_struct`, the layouts of `vm_area_struct`, flags and small types [include/linux/mm_types.h, mm.h, 6.12, 6.15 and
//! 7.3; series v5 of 2024-12-06].
//!
//! Placement is half of what is measured: offsets and sizes are those of x86-64 without debugging options and with
//! all optional pointers, and are asserted below for the native world. A field that the port never touches is kept as
//! room. Every field that somebody may look at without its lock is an [`Atomic`], used relaxed.
//!
//! custom: the protocol chooses the layout ([`VmaLock::Vma`]), so a VMA is reached through [`VmaFields`]; the tree
//! sits in `mm_struct` as two words that [`MmStruct::mm_mt`] shows as a [`MapleTree`], so that the model checker,
//! which has no maple tree, still has the real mm. `vm_private_data` holds the pointer to the caches ([`VmaState`],
//! kernel statics). dup: everything else.
//!
//! INVARIANT: in typesafe memory every word of a VMA may be read at any time, by readers that have not yet found out
//! that the object was freed; they trust nothing but `vm_lock_seq` and `vm_refcnt` until then.

use super::rmap::AnonVma;
use super::vma_cache::VmaState;
use super::vma_lock::VmaLock;
use super::vma_lock::refcnt::VMA_LOCK_OFFSET;
use crate::arch::arena::KRef;
use crate::arch::{Arch, Atomic, Hardware, Native, Plain, Relaxed};
use crate::maple_tree::MapleTree;
use crate::rcu::RcuHead;
use crate::sync::{PercpuCounter, RawSpinLock, Rcuwait, Refcount, RwSemaphore, RwsemLook, Seqcount};
use std::mem::{offset_of, size_of};
use std::ptr::null_mut;

/// Readable.
pub const VM_READ: u64 = 0x1;
/// Writable.
pub const VM_WRITE: u64 = 0x2;
/// Executable.
pub const VM_EXEC: u64 = 0x4;
/// Shared.
pub const VM_SHARED: u64 = 0x8;
/// May become readable.
pub const VM_MAYREAD: u64 = 0x10;
/// May become writable.
pub const VM_MAYWRITE: u64 = 0x20;
/// May become executable.
pub const VM_MAYEXEC: u64 = 0x40;
/// May become shared.
pub const VM_MAYSHARE: u64 = 0x80;
/// Grows downwards (a stack).
pub const VM_GROWSDOWN: u64 = 0x100;
/// Raw page frames.
pub const VM_PFNMAP: u64 = 0x400;
/// May hold guard regions (6.18 on).
pub const VM_MAYBE_GUARD: u64 = 0x800;
/// Pages stay resident.
pub const VM_LOCKED: u64 = 0x2000;
/// Device memory.
pub const VM_IO: u64 = 0x4000;
/// Read in sequence.
pub const VM_SEQ_READ: u64 = 0x8000;
/// Read at random.
pub const VM_RAND_READ: u64 = 0x1_0000;
/// Not copied by `fork`.
pub const VM_DONTCOPY: u64 = 0x2_0000;
/// Cannot grow by `mremap`.
pub const VM_DONTEXPAND: u64 = 0x4_0000;
/// Locked as pages come in.
pub const VM_LOCKONFAULT: u64 = 0x8_0000;
/// Counted against the commit limit.
pub const VM_ACCOUNT: u64 = 0x10_0000;
/// Not counted.
pub const VM_NORESERVE: u64 = 0x20_0000;
/// Zeroed in the child of a `fork`.
pub const VM_WIPEONFORK: u64 = 0x200_0000;
/// Not part of a core dump.
pub const VM_DONTDUMP: u64 = 0x400_0000;
/// Both pages and frames.
pub const VM_MIXEDMAP: u64 = 0x1000_0000;
/// Transparent huge pages wanted.
pub const VM_HUGEPAGE: u64 = 0x2000_0000;
/// No transparent huge pages.
pub const VM_NOHUGEPAGE: u64 = 0x4000_0000;
/// KSM may merge its pages.
pub const VM_MERGEABLE: u64 = 0x8000_0000;
/// Pages may be dropped under memory pressure.
pub const VM_DROPPABLE: u64 = 1 << 40;
/// Sealed: may neither move nor change.
pub const VM_SEALED: u64 = 1 << 63;
/// Flags of a VMA that never merges.
pub const VM_SPECIAL: u64 = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP;
/// Flags whose difference does not keep two VMAs apart, and that the merged one keeps, in kernels with guard regions.
pub const VM_STICKY: u64 = VM_MAYBE_GUARD;
/// Flags of a stack.
pub const VM_STACK: u64 = VM_GROWSDOWN;
/// What mlock(2) sets.
pub const VM_LOCKED_MASK: u64 = VM_LOCKED | VM_LOCKONFAULT;
/// `VM_DATA_FLAGS_TSK_EXEC` of a process without the executable-stack quirk: the heap.
pub const VM_DATA_DEFAULT_FLAGS: u64 = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;
/// The three access rights.
pub const VM_ACCESS_FLAGS: u64 = VM_READ | VM_WRITE | VM_EXEC;

/// End of user addresses with four levels of page tables.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Where placement begins, going down: a process without randomisation and with the default stack limit.
pub const MMAP_BASE: u64 = 0x7fff_f7ff_f000;
/// Where placement begins, going up, when nothing fits below: a third of all.
pub const TASK_UNMAPPED_BASE: u64 = (TASK_SIZE / 3 + 4095) & !4095;
/// Lowest address that a mapping may have (`vm.mmap_min_addr` of distributions).
pub const MMAP_MIN_ADDR: u64 = 0x1_0000;
/// `vm.max_map_count`
pub const DEFAULT_MAX_MAP_COUNT: i32 = 65530;
/// Where the heap of a new mm begins.
pub const START_BRK: u64 = 0x5555_5555_9000;

/// In `vm_ops`: the mapping has operations, so it is not anonymous.
pub const VM_OPS: u64 = 1;
/// In `vm_ops`: a close hook, so the VMA cannot be one that disappears in a merge.
pub const VM_OPS_CLOSE: u64 = 2;

/// Bytes of data segments (`RLIMIT_DATA`), an index of [`MmStruct::rlim`].
pub const RLIMIT_DATA: usize = 0;
/// Bytes of the stack (`RLIMIT_STACK`).
pub const RLIMIT_STACK: usize = 1;
/// Bytes that may be locked (`RLIMIT_MEMLOCK`).
pub const RLIMIT_MEMLOCK: usize = 2;
/// Bytes of the address space (`RLIMIT_AS`).
pub const RLIMIT_AS: usize = 3;
/// No limit.
pub const RLIM_INFINITY: u64 = u64::MAX;
/// `CAP_IPC_LOCK`: no limit on locked memory. A bit of [`MmStruct::caps`].
pub const CAP_IPC_LOCK: u32 = 1;
/// `CAP_SYS_RAWIO`: mappings below `mmap_min_addr`.
pub const CAP_SYS_RAWIO: u32 = 2;
/// `CAP_SYS_ADMIN`: a little more memory before commits fail.
pub const CAP_SYS_ADMIN: u32 = 4;

/// The protocol's VMA.
pub type VmaOf<A, L> = <L as VmaLock>::Vma<A>;
/// A pointer to it.
pub type VmaRef<A, L> = KRef<VmaOf<A, L>>;
/// A pointer to the protocol's mm.
pub type MmRef<A, L> = KRef<MmStruct<A, L>>;

/// `struct list_head`, 16 bytes. Words are atomic because `list_is_singular()` is asked without the list's lock.
#[repr(C)]
#[derive(Debug)]
pub struct ListHead<A: Arch> {
    /// Next entry, or the head.
    pub next: Atomic<A, *mut ListHead<A>>,
    /// Previous entry, or the head. Untyped, because a structure whose last field points to itself sends the compiler
    /// in circles.
    prev: Atomic<A, *mut ()>,
}

impl<A: Arch> ListHead<A> {
    /// A head that still needs [`ListHead::init`] at its final place.
    pub fn new() -> Self {
        ListHead { next: Atomic::new(null_mut()), prev: Atomic::new(null_mut()) }
    }
    /// `INIT_LIST_HEAD()`
    #[inline(always)]
    pub fn init(&self) {
        let me = std::ptr::from_ref(self).cast_mut();
        self.next.store(me, Relaxed);
        self.set_prev(me);
    }
    /// The previous entry.
    #[inline(always)]
    pub fn prev(&self) -> *mut ListHead<A> {
        self.prev.load(Relaxed).cast()
    }
    /// Sets the previous entry.
    #[inline(always)]
    pub fn set_prev(&self, p: *mut ListHead<A>) {
        self.prev.store(p.cast(), Relaxed);
    }
    /// `list_empty()`
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        std::ptr::eq(self.next.load(Relaxed), self)
    }
    /// `list_is_singular()`
    #[inline(always)]
    pub fn is_singular(&self) -> bool {
        let n = self.next.load(Relaxed);
        !std::ptr::eq(n, self) && n == self.prev()
    }
}
impl<A: Arch> Default for ListHead<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `struct vma_lock` of 6.12: a reader/writer semaphore in an object of its own, 40 bytes.
#[repr(transparent)]
#[derive(Debug)]
pub struct VmaLockObject<A: Arch> {
    /// The lock.
    pub lock: RwSemaphore<A>,
}

/// What a VMA's lock says at one look, for whoever looks from outside; no protocol asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockLook {
    /// A semaphore, and a flag whether the VMA is in no tree.
    Semaphore {
        /// The semaphore.
        sem: RwsemLook,
        /// The flag.
        detached: bool,
    },
    /// `vm_refcnt`
    Count(u32),
}

impl LockLook {
    /// Whether a reader has the VMA, and no writer.
    pub fn is_read_locked(self) -> bool {
        match self {
            LockLook::Semaphore { sem, .. } => sem.readers >= 1 && !sem.writer,
            // A writer that keeps further readers out may be waiting for this one.
            LockLook::Count(n) => n & !VMA_LOCK_OFFSET >= 2,
        }
    }
    /// Whether nobody has the lock or waits for it, of a VMA that is `attached` or not.
    pub fn is_free(self, attached: bool) -> bool {
        match self {
            LockLook::Semaphore { sem, .. } => sem.readers == 0 && !sem.writer && !sem.queued,
            LockLook::Count(n) => n == u32::from(attached),
        }
    }
    /// Whether it says "in a tree".
    pub fn is_attached(self) -> bool {
        match self {
            LockLook::Semaphore { detached, .. } => !detached,
            LockLook::Count(n) => n != 0,
        }
    }
}

/// The fields of a VMA that every layout has.
pub trait VmaFields<A: Arch, L: VmaLock>: Sized + Send + Sync + 'static {
    /// First address.
    fn vm_start(&self) -> &Atomic<A, u64>;
    /// First address behind.
    fn vm_end(&self) -> &Atomic<A, u64>;
    /// The address space. Unstable readers may load it.
    fn vm_mm(&self) -> &Atomic<A, *mut MmStruct<A, L>>;
    /// Protection bits of new entries.
    fn vm_page_prot(&self) -> &Atomic<A, u64>;
    /// `VM_*`
    fn vm_flags(&self) -> &Atomic<A, u64>;
    /// Value of `mm_lock_seq` in the section that last write-locked this VMA.
    fn vm_lock_seq(&self) -> &Atomic<A, u32>;
    /// Links to the anon_vmas.
    fn anon_vma_chain(&self) -> &ListHead<A>;
    /// The anon_vma of new pages; null until the first write fault.
    fn anon_vma(&self) -> &Atomic<A, *mut AnonVma<A>>;
    /// Offset in pages; for private anonymous memory the page number of the start at creation.
    fn vm_pgoff(&self) -> &Atomic<A, u64>;
    /// PORT: the caches ([`VmaState`]) as a word.
    fn vm_private_data(&self) -> &Atomic<A, usize>;
    /// Which hooks the mapping has: bits of [`VM_OPS`] and kin; 0 for anonymous memory.
    fn vm_ops(&self) -> &Atomic<A, u64>;
    /// The file as a word; 0 without one.
    fn vm_file(&self) -> &Atomic<A, u64>;
    /// The memory policy as a word; 0 is the default one.
    fn vm_policy(&self) -> &Atomic<A, u64>;
    /// The userfaultfd context as a word; 0 without one.
    fn userfaultfd_ctx(&self) -> &Atomic<A, u64>;
    /// PORT: where 7.3 has a field of its own, the virtual page number of the start at creation; kept for VMAs with a
    /// file only, in the room of `swap_readahead_info`, which nothing here uses, so that no offset moves.
    fn anon_pgoff(&self) -> &Atomic<A, u64>;
    /// The four words of a file mapping's place among all mappings of that file (`shared.rb`, `rb_subtree_last`).
    fn shared(&self) -> &[Atomic<A, u64>; 4];
    /// NUMA balancing state; always 0 here, loaded where the kernel frees it.
    fn numab_state(&self) -> &Atomic<A, u64>;
    /// Anonymous name as a word; 0 without one.
    fn anon_name(&self) -> &Atomic<A, u64>;
    /// The separate lock object's slot, in layouts that have one.
    #[inline(always)]
    fn vm_lock(&self) -> Option<&Atomic<A, *mut VmaLockObject<A>>> {
        None
    }

    /// The words that say whether it is locked or detached, for what tells of an execution: name, place, bytes.
    fn lock_words(&self) -> Vec<(String, *const u8, usize)>;
    /// What they say.
    fn lock_look(&self) -> LockLook;

    /// A detached VMA outside any memory of the kernel, for model checks.
    fn new() -> Self;
    /// The stores of `vma_init()`: zero everything, then `mm`, the caches and an empty chain. Field by field: stale
    /// readers may be doing atomic operations on the object. What the protocol owns is set by
    /// [`VmaLock::vma_lock_init`].
    fn vma_init(&self, mm: *mut MmStruct<A, L>, state: usize);
    /// The copies of `vm_area_dup()`: all data, with an empty chain; nothing of the protocol's.
    fn vm_area_init_from(&self, orig: &Self);
}

fn word<T>(name: &str, w: &T) -> (String, *const u8, usize) {
    (name.into(), std::ptr::from_ref(w).cast(), size_of::<T>())
}

/// Number of pages of a VMA.
#[inline(always)]
pub fn vma_pages<A: Arch, L: VmaLock>(vma: &VmaOf<A, L>) -> u64 {
    (vma.vm_end().load(Relaxed) - vma.vm_start().load(Relaxed)) >> 12
}

/// The RCU head that overlays `vm_start` and `vm_end` once the VMA is unreachable.
#[inline(always)]
pub fn vm_rcu<A: Hardware, L: VmaLock>(vma: VmaRef<A, L>) -> *mut RcuHead<A> {
    std::ptr::from_ref(vma.vm_start()).cast_mut().cast()
}

/// The VMA whose RCU head is at `head`.
#[inline(always)]
pub fn vma_of_rcu<A: Hardware, L: VmaLock>(head: *mut RcuHead<A>) -> *mut VmaOf<A, L> {
    head.cast()
}

macro_rules! vma_layout {
    ($(#[$m:meta])* $name:ident { $($body:tt)* } common { $($extra:tt)* } own { $($own:tt)* } new { $($init:tt)* }) => {
        $(#[$m])*
        pub struct $name<A: Arch, L: VmaLock> { $($body)* }

        impl<A: Arch, L: VmaLock<Vma<A> = $name<A, L>>> VmaFields<A, L> for $name<A, L> {
            #[inline(always)]
            fn vm_start(&self) -> &Atomic<A, u64> { &self.vm_start }
            #[inline(always)]
            fn vm_end(&self) -> &Atomic<A, u64> { &self.vm_end }
            #[inline(always)]
            fn vm_mm(&self) -> &Atomic<A, *mut MmStruct<A, L>> { &self.vm_mm }
            #[inline(always)]
            fn vm_page_prot(&self) -> &Atomic<A, u64> { &self.vm_page_prot }
            #[inline(always)]
            fn vm_flags(&self) -> &Atomic<A, u64> { &self.vm_flags }
            #[inline(always)]
            fn vm_lock_seq(&self) -> &Atomic<A, u32> { &self.vm_lock_seq }
            #[inline(always)]
            fn anon_vma_chain(&self) -> &ListHead<A> { &self.anon_vma_chain }
            #[inline(always)]
            fn anon_vma(&self) -> &Atomic<A, *mut AnonVma<A>> { &self.anon_vma }
            #[inline(always)]
            fn vm_pgoff(&self) -> &Atomic<A, u64> { &self.vm_pgoff }
            #[inline(always)]
            fn vm_private_data(&self) -> &Atomic<A, usize> { &self.vm_private_data }
            #[inline(always)]
            fn vm_ops(&self) -> &Atomic<A, u64> { &self.vm_ops }
            #[inline(always)]
            fn vm_file(&self) -> &Atomic<A, u64> { &self.vm_file }
            #[inline(always)]
            fn vm_policy(&self) -> &Atomic<A, u64> { &self.vm_policy }
            #[inline(always)]
            fn userfaultfd_ctx(&self) -> &Atomic<A, u64> { &self.userfaultfd_ctx }
            #[inline(always)]
            fn anon_pgoff(&self) -> &Atomic<A, u64> { &self.swap_readahead_info }
            #[inline(always)]
            fn shared(&self) -> &[Atomic<A, u64>; 4] { &self.shared }
            #[inline(always)]
            fn numab_state(&self) -> &Atomic<A, u64> { &self.numab_state }
            #[inline(always)]
            fn anon_name(&self) -> &Atomic<A, u64> { &self.anon_name }
            $($extra)*

            fn new() -> Self {
                $name {
                    vm_start: Atomic::new(0),
                    vm_end: Atomic::new(0),
                    vm_mm: Atomic::new(null_mut()),
                    vm_page_prot: Atomic::new(0),
                    vm_flags: Atomic::new(0),
                    vm_lock_seq: Atomic::new(u32::MAX),
                    anon_vma_chain: ListHead::new(),
                    anon_vma: Atomic::new(null_mut()),
                    vm_ops: Atomic::new(0),
                    vm_pgoff: Atomic::new(0),
                    vm_file: Atomic::new(0),
                    vm_private_data: Atomic::new(0),
                    anon_name: Atomic::new(0),
                    swap_readahead_info: Atomic::new(0),
                    vm_policy: Atomic::new(0),
                    numab_state: Atomic::new(0),
                    userfaultfd_ctx: Atomic::new(0),
                    $($init)*
                }
            }
            #[inline]
            fn vma_init(&self, mm: *mut MmStruct<A, L>, state: usize) {
                self.vm_start.store(0, Relaxed);
                self.vm_end.store(0, Relaxed);
                self.vm_mm.store(mm, Relaxed);
                self.vm_page_prot.store(0, Relaxed);
                self.vm_flags.store(0, Relaxed);
                self.anon_vma.store(null_mut(), Relaxed);
                self.vm_ops.store(0, Relaxed);
                self.vm_pgoff.store(0, Relaxed);
                self.vm_file.store(0, Relaxed);
                self.vm_private_data.store(state, Relaxed);
                self.anon_name.store(0, Relaxed);
                self.swap_readahead_info.store(0, Relaxed);
                self.vm_policy.store(0, Relaxed);
                self.numab_state.store(0, Relaxed);
                self.userfaultfd_ctx.store(0, Relaxed);
                self.shared.iter().for_each(|w| w.store(0, Relaxed));
                self.init_own();
            }
            #[inline]
            fn vm_area_init_from(&self, orig: &Self) {
                self.vm_mm.store(orig.vm_mm.load(Relaxed), Relaxed);
                self.vm_ops.store(orig.vm_ops.load(Relaxed), Relaxed);
                self.vm_start.store(orig.vm_start.load(Relaxed), Relaxed);
                self.vm_end.store(orig.vm_end.load(Relaxed), Relaxed);
                self.anon_vma.store(orig.anon_vma.load(Relaxed), Relaxed);
                self.vm_pgoff.store(orig.vm_pgoff.load(Relaxed), Relaxed);
                self.vm_file.store(orig.vm_file.load(Relaxed), Relaxed);
                self.vm_private_data.store(orig.vm_private_data.load(Relaxed), Relaxed);
                self.vm_flags.store(orig.vm_flags.load(Relaxed), Relaxed);
                self.vm_page_prot.store(orig.vm_page_prot.load(Relaxed), Relaxed);
                self.anon_name.store(orig.anon_name.load(Relaxed), Relaxed);
                self.swap_readahead_info.store(orig.swap_readahead_info.load(Relaxed), Relaxed);
                self.vm_policy.store(orig.vm_policy.load(Relaxed), Relaxed);
                self.numab_state.store(0, Relaxed);
                self.userfaultfd_ctx.store(orig.userfaultfd_ctx.load(Relaxed), Relaxed);
                self.shared.iter().zip(&orig.shared).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
                self.init_own();
            }
        }
        impl<A: Arch, L: VmaLock> $name<A, L> { $($own)* }
    };
}

vma_layout! {
    /// `struct vm_area_struct` of 6.12: 184 bytes without alignment, so that VMAs begin at any 8-byte phase of a
    /// line, and the lock behind a pointer.
    #[repr(C)]
    VmAreaStruct612 {
        vm_start: Atomic<A, u64>,
        vm_end: Atomic<A, u64>,
        vm_mm: Atomic<A, *mut MmStruct<A, L>>,
        vm_page_prot: Atomic<A, u64>,
        vm_flags: Atomic<A, u64>,
        /// Isolated from the tree. Unstable readers may load it.
        pub detached: Atomic<A, u8>,
        vm_lock_seq: Atomic<A, u32>,
        /// The lock object. Unstable readers may load it.
        pub vm_lock: Atomic<A, *mut VmaLockObject<A>>,
        shared: [Atomic<A, u64>; 4],
        anon_vma_chain: ListHead<A>,
        anon_vma: Atomic<A, *mut AnonVma<A>>,
        vm_ops: Atomic<A, u64>,
        vm_pgoff: Atomic<A, u64>,
        vm_file: Atomic<A, u64>,
        vm_private_data: Atomic<A, usize>,
        anon_name: Atomic<A, u64>,
        swap_readahead_info: Atomic<A, u64>,
        vm_policy: Atomic<A, u64>,
        numab_state: Atomic<A, u64>,
        userfaultfd_ctx: Atomic<A, u64>,
    }
    common {
        #[inline(always)]
        fn vm_lock(&self) -> Option<&Atomic<A, *mut VmaLockObject<A>>> {
            Some(&self.vm_lock)
        }
        fn lock_words(&self) -> Vec<(String, *const u8, usize)> {
            vec![word("detached", &self.detached), word("vm_lock", &self.vm_lock)]
        }
        fn lock_look(&self) -> LockLook {
            let lock = self.vm_lock.load(Relaxed);
            // SAFETY: set before anybody could find the VMA, and freed with it.
            let sem = unsafe { &(*lock).lock };
            LockLook::Semaphore { sem: sem.look(), detached: self.detached.load(Relaxed) != 0 }
        }
    }
    own {
        /// A VMA counts as attached from its allocation on.
        #[inline(always)]
        fn init_own(&self) {
            self.anon_vma_chain.init();
            self.detached.store(0, Relaxed);
        }
    }
    new {
        detached: Atomic::new(0),
        vm_lock: Atomic::new(null_mut()),
        shared: std::array::from_fn(|_| Atomic::new(0)),
    }
}

vma_layout! {
    /// `struct vm_area_struct` of 6.15: 192 bytes on line boundaries; what the lookup reads is in the first line, what
    /// readers write is in the third.
    #[repr(C, align(64))]
    VmAreaStruct615 {
        vm_start: Atomic<A, u64>,
        vm_end: Atomic<A, u64>,
        vm_mm: Atomic<A, *mut MmStruct<A, L>>,
        vm_page_prot: Atomic<A, u64>,
        vm_flags: Atomic<A, u64>,
        vm_lock_seq: Atomic<A, u32>,
        anon_vma_chain: ListHead<A>,
        anon_vma: Atomic<A, *mut AnonVma<A>>,
        vm_ops: Atomic<A, u64>,
        vm_pgoff: Atomic<A, u64>,
        vm_file: Atomic<A, u64>,
        vm_private_data: Atomic<A, usize>,
        swap_readahead_info: Atomic<A, u64>,
        vm_policy: Atomic<A, u64>,
        numab_state: Atomic<A, u64>,
        /// 0 detached, 1 attached, 1 + r with r readers; bit 30 while a writer keeps readers out.
        pub vm_refcnt: Refcount<A>,
        shared: [Atomic<A, u64>; 4],
        anon_name: Atomic<A, u64>,
        userfaultfd_ctx: Atomic<A, u64>,
    }
    common {
        fn lock_words(&self) -> Vec<(String, *const u8, usize)> {
            vec![word("vm_refcnt", &self.vm_refcnt)]
        }
        fn lock_look(&self) -> LockLook {
            LockLook::Count(self.vm_refcnt.read())
        }
    }
    own {
        /// `vm_refcnt` is 0 in every free object: INVARIANT of the cache, kept by `vma_mark_detached()`.
        #[inline(always)]
        fn init_own(&self) {
            self.anon_vma_chain.init();
        }
    }
    new {
        vm_refcnt: Refcount::new(0),
        shared: std::array::from_fn(|_| Atomic::new(0)),
    }
}

vma_layout! {
    /// `struct vm_area_struct` of series v5 (2024-12-06): the lock of 6.12 moved in, alone in the fourth line; 256 bytes.
    #[repr(C, align(64))]
    VmAreaStructV5 {
        vm_start: Atomic<A, u64>,
        vm_end: Atomic<A, u64>,
        vm_mm: Atomic<A, *mut MmStruct<A, L>>,
        vm_page_prot: Atomic<A, u64>,
        vm_flags: Atomic<A, u64>,
        /// In no tree. Unstable readers may load it.
        pub detached: Atomic<A, u8>,
        vm_lock_seq: Atomic<A, u32>,
        shared: [Atomic<A, u64>; 4],
        anon_vma_chain: ListHead<A>,
        anon_vma: Atomic<A, *mut AnonVma<A>>,
        vm_ops: Atomic<A, u64>,
        vm_pgoff: Atomic<A, u64>,
        vm_file: Atomic<A, u64>,
        vm_private_data: Atomic<A, usize>,
        anon_name: Atomic<A, u64>,
        swap_readahead_info: Atomic<A, u64>,
        vm_policy: Atomic<A, u64>,
        numab_state: Atomic<A, u64>,
        userfaultfd_ctx: Atomic<A, u64>,
        _line: [u64; 2],
        /// The lock. In typesafe memory stale readers may take it.
        pub vm_lock: RwSemaphore<A>,
    }
    common {
        fn lock_words(&self) -> Vec<(String, *const u8, usize)> {
            let mut words = vec![word("detached", &self.detached)];
            words.extend(self.vm_lock.words().map(|(name, at, len)| (format!("vm_lock.{name}"), at, len)));
            words
        }
        fn lock_look(&self) -> LockLook {
            LockLook::Semaphore { sem: self.vm_lock.look(), detached: self.detached.load(Relaxed) != 0 }
        }
    }
    own {
        /// `detached`, the lock, its sequence and the chain's head are the constructor's, or `vma_lock_init()`'s.
        #[inline(always)]
        fn init_own(&self) {}
    }
    new {
        detached: Atomic::new(1),
        shared: std::array::from_fn(|_| Atomic::new(0)),
        _line: [0; 2],
        vm_lock: RwSemaphore::new(),
    }
}

vma_layout! {
    /// `struct vm_area_struct` of 7.3: that of 6.15 with the two halves of the page offset at creation and the page
    /// frames' context, which the port keeps as room; 192 bytes.
    #[repr(C, align(64))]
    VmAreaStruct73 {
        vm_start: Atomic<A, u64>,
        vm_end: Atomic<A, u64>,
        vm_mm: Atomic<A, *mut MmStruct<A, L>>,
        vm_page_prot: Atomic<A, u64>,
        vm_flags: Atomic<A, u64>,
        vm_lock_seq: Atomic<A, u32>,
        anon_pgoff_lo: u32,
        anon_vma_chain: ListHead<A>,
        anon_vma: Atomic<A, *mut AnonVma<A>>,
        vm_ops: Atomic<A, u64>,
        vm_pgoff: Atomic<A, u64>,
        vm_file: Atomic<A, u64>,
        vm_private_data: Atomic<A, usize>,
        swap_readahead_info: Atomic<A, u64>,
        vm_policy: Atomic<A, u64>,
        numab_state: Atomic<A, u64>,
        /// 0 detached, 1 attached, 1 + r with r readers; bit 30 while readers are kept out.
        pub vm_refcnt: Refcount<A>,
        anon_pgoff_hi: u32,
        shared: [Atomic<A, u64>; 4],
        anon_name: Atomic<A, u64>,
        userfaultfd_ctx: Atomic<A, u64>,
        pfnmap_track_ctx: u64,
    }
    common {
        fn lock_words(&self) -> Vec<(String, *const u8, usize)> {
            vec![word("vm_refcnt", &self.vm_refcnt)]
        }
        fn lock_look(&self) -> LockLook {
            LockLook::Count(self.vm_refcnt.read())
        }
    }
    own {
        /// As in 6.15.
        #[inline(always)]
        fn init_own(&self) {
            self.anon_vma_chain.init();
        }
    }
    new {
        anon_pgoff_lo: 0,
        vm_refcnt: Refcount::new(0),
        anon_pgoff_hi: 0,
        shared: std::array::from_fn(|_| Atomic::new(0)),
        pfnmap_track_ctx: 0,
    }
}

/// Per-mm counts of resident pages.
pub const NR_MM_COUNTERS: usize = 4;
/// Index of pages of files.
pub const MM_FILEPAGES: usize = 0;
/// Index of anonymous pages.
pub const MM_ANONPAGES: usize = 1;
/// Index of pages of shared memory.
pub const MM_SHMEMPAGES: usize = 3;

/// Where in its line `mmap_lock` lies in [`MmStruct`], bytes: 6.12's place, by its fields on x86-64 without lock debugging.
pub const MMAP_LOCK_OFFSET: u32 = 40;

/// How far into its memory an `mm_struct` begins, so that `mmap_lock` lies `offset` bytes behind the beginning of a line.
/// `offset` is a multiple of 8 below 64.
pub const fn mm_shift(offset: u32) -> usize {
    (offset as usize).wrapping_sub(MMAP_LOCK_OFFSET as usize) % 64
}

/// `struct mm_struct`, as far as the port needs it, with the kernel's neighbourhood of the hot fields.
///
/// Which line holds `count` and which `owner` of `mmap_lock`, and with which of them the fields around share it, is the
/// kernel configuration's doing: 40 bytes into a line in 6.12, 56 from 6.13 to 6.18 (three more words of `mm_cid`), where
/// the two fall into different lines, and by the fields alone 24 in 7.2 and later (`mm_cid` has lines of its own). So it is an
/// option of the run ([`mm_shift`]): the memory of an mm begins on a line, the structure at a distance of up to 56 bytes
/// behind that. PORT: a kernel would put the distance between two fields; here what lies before `mmap_lock` moves
/// with it, and `mm_count` stays alone in its line all the same.
#[repr(C)]
pub struct MmStruct<A: Arch, L: VmaLock> {
    /// References to the structure; all users together hold one. Alone in its line.
    pub mm_count: Refcount<A>,
    _line: [u32; 15],
    mm_mt: [Atomic<A, u64>; 2],
    /// Where placement begins, going down.
    pub mmap_base: Plain<A, u64>,
    /// Where placement begins, going up.
    pub mmap_legacy_base: Plain<A, u64>,
    _compat_bases: [u64; 2],
    /// End of user addresses.
    pub task_size: Plain<A, u64>,
    /// The root page table.
    pub pgd: Plain<A, *mut u8>,
    _membarrier_state: u32,
    /// Users of the address space; at 0 `exit_mmap()` runs.
    pub mm_users: Refcount<A>,
    _cid: [u64; 2],
    /// Bytes of page tables.
    pub pgtables_bytes: Atomic<A, i64>,
    /// VMAs in the tree; under `mmap_lock` for write.
    pub map_count: Plain<A, i32>,
    /// Upper page tables, and the publication of `anon_vma`.
    pub page_table_lock: RawSpinLock<A>,
    /// The lock of the address space.
    pub mmap_lock: RwSemaphore<A>,
    _mmlist: [u64; 2],
    /// The thread that waits for the readers of one of this mm's VMAs, in protocols that have it.
    pub vma_writer_wait: L::WriterWait<A>,
    /// Odd while `mmap_lock` is held for write.
    pub mm_lock_seq: Seqcount<A>,
    _hiwater: [u64; 2],
    /// Pages mapped.
    pub total_vm: Atomic<A, u64>,
    /// Pages of locked mappings.
    pub locked_vm: Plain<A, u64>,
    _pinned_vm: u64,
    /// Pages of writable private mappings that are no stack.
    pub data_vm: Plain<A, u64>,
    /// Pages of executable mappings that are neither writable nor stacks.
    pub exec_vm: Plain<A, u64>,
    /// Pages of stacks.
    pub stack_vm: Plain<A, u64>,
    /// Flags of every new mapping (`mlockall(MCL_FUTURE)`).
    pub def_flags: Plain<A, u64>,
    /// Odd while a fork copies page tables.
    pub write_protect_seq: Atomic<A, u32>,
    _arg_lock: u32,
    /// Beginning of the program's code.
    pub start_code: Plain<A, u64>,
    /// End of the code.
    pub end_code: Plain<A, u64>,
    /// Beginning of the program's data; counts against `RLIMIT_DATA` in brk.
    pub start_data: Plain<A, u64>,
    /// End of the data.
    pub end_data: Plain<A, u64>,
    /// Beginning of the heap.
    pub start_brk: Plain<A, u64>,
    /// End of the heap.
    pub brk: Plain<A, u64>,
    /// Where the first stack began.
    pub start_stack: Plain<A, u64>,
    _args: [u64; 6],
    /// Resident pages.
    pub rss_stat: [PercpuCounter<A>; NR_MM_COUNTERS],
    /// PORT: the limits of the thread group in bytes, soft and hard, which the kernel keeps in `signal_struct`.
    pub rlim: [(Plain<A, u64>, Plain<A, u64>); 4],
    /// PORT: the capabilities of the calling task that this floor asks for, bits of [`CAP_IPC_LOCK`] and kin.
    pub caps: Plain<A, u32>,
    /// PORT: of the calling task's personality the bit `READ_IMPLIES_EXEC`.
    pub personality: Plain<A, u32>,
    /// PORT: `MMF_HAS_MDWE` and its companion of the kernel's `flags`, as prctl(2) has them.
    pub mdwe: Plain<A, u32>,
}

impl<A: Arch, L: VmaLock> MmStruct<A, L> {
    /// An mm without a tree and without page tables, `mmap_lock` free, `mm_lock_seq` 0.
    pub fn new() -> Self {
        MmStruct {
            mm_count: Refcount::new(1),
            _line: [0; 15],
            mm_mt: [Atomic::new(0), Atomic::new(0)],
            mmap_base: Plain::new(MMAP_BASE),
            mmap_legacy_base: Plain::new(TASK_UNMAPPED_BASE),
            _compat_bases: [0; 2],
            task_size: Plain::new(TASK_SIZE),
            pgd: Plain::new(null_mut()),
            _membarrier_state: 0,
            mm_users: Refcount::new(1),
            _cid: [0; 2],
            pgtables_bytes: Atomic::new(0),
            map_count: Plain::new(0),
            page_table_lock: RawSpinLock::new(),
            mmap_lock: RwSemaphore::new(),
            _mmlist: [0; 2],
            vma_writer_wait: L::WriterWait::<A>::default(),
            mm_lock_seq: Seqcount::new(0),
            _hiwater: [0; 2],
            total_vm: Atomic::new(0),
            locked_vm: Plain::new(0),
            _pinned_vm: 0,
            data_vm: Plain::new(0),
            exec_vm: Plain::new(0),
            stack_vm: Plain::new(0),
            def_flags: Plain::new(0),
            write_protect_seq: Atomic::new(0),
            _arg_lock: 0,
            start_code: Plain::new(0),
            end_code: Plain::new(0),
            start_data: Plain::new(0),
            end_data: Plain::new(0),
            start_brk: Plain::new(START_BRK),
            brk: Plain::new(START_BRK),
            start_stack: Plain::new(0),
            _args: [0; 6],
            rss_stat: std::array::from_fn(|_| PercpuCounter::new()),
            rlim: [RLIM_INFINITY, 8 << 20, 8 << 20, RLIM_INFINITY]
                .map(|soft| (Plain::new(soft), Plain::new(RLIM_INFINITY))),
            caps: Plain::new(0),
            personality: Plain::new(0),
            mdwe: Plain::new(0),
        }
    }

    /// `rlimit()`: a soft limit in bytes.
    #[inline(always)]
    pub fn rlimit(&self, which: usize) -> u64 {
        self.rlim[which].0.get()
    }
    /// `capable()`
    #[inline(always)]
    pub fn capable(&self, cap: u32) -> bool {
        self.caps.get() & cap != 0
    }

    /// The tree of VMAs, indexed by address.
    #[inline(always)]
    pub fn mm_mt(&self) -> &MapleTree<A>
    where
        A: Hardware,
    {
        const { assert!(size_of::<MapleTree<A>>() == 16) };
        // SAFETY: `mm_init()` wrote a tree into the two words, which are cells and never used as what they are declared.
        unsafe { &*(&raw const self.mm_mt).cast::<MapleTree<A>>() }
    }

    /// Where `mm_init()` puts the tree.
    pub(super) fn mm_mt_slot(this: *mut Self) -> *mut MapleTree<A>
    where
        A: Hardware,
    {
        // SAFETY: only an address is computed.
        unsafe { (&raw mut (*this).mm_mt).cast() }
    }
}
impl<A: Arch, L: VmaLock> Default for MmStruct<A, L> {
    fn default() -> Self {
        Self::new()
    }
}

/// The caches a VMA came from.
///
/// # Safety
/// `vma` was made by `vm_area_alloc()` or `vm_area_dup()` of a kernel with this `A`.
#[inline(always)]
pub unsafe fn vma_state<A: Hardware, L: VmaLock>(vma: VmaRef<A, L>) -> KRef<VmaState<A>> {
    let p = vma.vm_private_data().load(Relaxed) as *mut VmaState<A>;
    // SAFETY: set when the VMA was allocated; the caches live as long as the kernel.
    unsafe { KRef::new(std::ptr::NonNull::new_unchecked(p)) }
}

type P0 = super::vma_lock::rwsem_separate::RwsemSeparate;
type P7 = super::vma_lock::refcnt::Refcnt;
type Vma612 = VmAreaStruct612<Native, P0>;
type Vma615 = VmAreaStruct615<Native, P7>;
type Mm612 = MmStruct<Native, P0>;
type Mm615 = MmStruct<Native, P7>;

const _: () = {
    assert!(size_of::<Vma612>() == 184 && align_of::<Vma612>() == 8);
    assert!(offset_of!(Vma612, vm_mm) == 16 && offset_of!(Vma612, vm_flags) == 32);
    assert!(offset_of!(Vma612, detached) == 40 && offset_of!(Vma612, vm_lock_seq) == 44);
    assert!(offset_of!(Vma612, vm_lock) == 48 && offset_of!(Vma612, shared) == 56);
    assert!(offset_of!(Vma612, anon_vma_chain) == 88 && offset_of!(Vma612, anon_vma) == 104);
    assert!(offset_of!(Vma612, vm_pgoff) == 120 && offset_of!(Vma612, vm_private_data) == 136);
    assert!(offset_of!(Vma612, anon_name) == 144 && offset_of!(Vma612, numab_state) == 168);
    assert!(offset_of!(Vma612, userfaultfd_ctx) == 176);
    assert!(size_of::<VmaLockObject<Native>>() == 40);

    assert!(size_of::<Vma615>() == 192 && align_of::<Vma615>() == 64);
    assert!(offset_of!(Vma615, vm_start) == 0 && offset_of!(Vma615, vm_end) == 8);
    assert!(offset_of!(Vma615, vm_mm) == 16 && offset_of!(Vma615, vm_flags) == 32);
    assert!(offset_of!(Vma615, vm_lock_seq) == 40 && offset_of!(Vma615, anon_vma_chain) == 48);
    assert!(offset_of!(Vma615, anon_vma) == 64 && offset_of!(Vma615, vm_pgoff) == 80);
    assert!(offset_of!(Vma615, vm_private_data) == 96 && offset_of!(Vma615, numab_state) == 120);
    assert!(offset_of!(Vma615, vm_refcnt) == 128 && offset_of!(Vma615, shared) == 136);
    assert!(offset_of!(Vma615, anon_name) == 168 && offset_of!(Vma615, userfaultfd_ctx) == 176);

    assert!(offset_of!(Mm612, mm_count) == 0 && offset_of!(Mm612, mm_mt) == 64);
    assert!(offset_of!(Mm612, pgd) == 120 && offset_of!(Mm612, mm_users) == 132);
    assert!(offset_of!(Mm612, pgtables_bytes) == 152 && offset_of!(Mm612, map_count) == 160);
    assert!(offset_of!(Mm612, page_table_lock) == 164 && offset_of!(Mm612, mmap_lock) == 168);
    assert!(168 % 64 == MMAP_LOCK_OFFSET && align_of::<Mm612>() == 8);
    assert!(offset_of!(Mm612, mm_lock_seq) == 224 && offset_of!(Mm612, total_vm) == 248);
    assert!(offset_of!(Mm612, data_vm) == 272 && offset_of!(Mm612, def_flags) == 296);
    assert!(offset_of!(Mm612, start_brk) == 344 && offset_of!(Mm612, brk) == 352);
    assert!(offset_of!(Mm615, vma_writer_wait) == 224 && offset_of!(Mm615, mm_lock_seq) == 232);
    assert!(size_of::<Rcuwait<Native>>() == 8);
};

type VmaV5 = VmAreaStructV5<Native, super::vma_lock::rwsem_embedded::RwsemEmbedded>;
type Vma73 = VmAreaStruct73<Native, super::vma_lock::refcnt_exclude::RefcntExclude>;

const _: () = {
    assert!(size_of::<VmaV5>() == 256 && align_of::<VmaV5>() == 64);
    assert!(offset_of!(VmaV5, vm_start) == 0 && offset_of!(VmaV5, vm_end) == 8);
    assert!(offset_of!(VmaV5, vm_mm) == 16 && offset_of!(VmaV5, vm_flags) == 32);
    assert!(offset_of!(VmaV5, detached) == 40 && offset_of!(VmaV5, vm_lock_seq) == 44);
    assert!(offset_of!(VmaV5, shared) == 48 && offset_of!(VmaV5, anon_vma_chain) == 80);
    assert!(offset_of!(VmaV5, anon_vma) == 96 && offset_of!(VmaV5, vm_ops) == 104);
    assert!(offset_of!(VmaV5, vm_pgoff) == 112 && offset_of!(VmaV5, vm_private_data) == 128);
    assert!(offset_of!(VmaV5, anon_name) == 136 && offset_of!(VmaV5, swap_readahead_info) == 144);
    assert!(offset_of!(VmaV5, numab_state) == 160 && offset_of!(VmaV5, userfaultfd_ctx) == 168);
    // Alone in its line.
    assert!(offset_of!(VmaV5, vm_lock) == 192);

    assert!(size_of::<Vma73>() == 192 && align_of::<Vma73>() == 64);
    assert!(offset_of!(Vma73, vm_start) == 0 && offset_of!(Vma73, vm_end) == 8);
    assert!(offset_of!(Vma73, vm_mm) == 16 && offset_of!(Vma73, vm_flags) == 32);
    // What R2 reads is in the first line, the count in the third.
    assert!(offset_of!(Vma73, vm_lock_seq) == 40 && offset_of!(Vma73, vm_refcnt) == 128);
    assert!(offset_of!(Vma73, anon_pgoff_lo) == 44 && offset_of!(Vma73, anon_pgoff_hi) == 132);
    assert!(offset_of!(Vma73, anon_vma_chain) == 48 && offset_of!(Vma73, anon_vma) == 64);
    assert!(offset_of!(Vma73, vm_private_data) == 96 && offset_of!(Vma73, numab_state) == 120);
    assert!(offset_of!(Vma73, shared) == 136 && offset_of!(Vma73, anon_name) == 168);
    assert!(offset_of!(Vma73, userfaultfd_ctx) == 176 && offset_of!(Vma73, pfnmap_track_ctx) == 184);
};
