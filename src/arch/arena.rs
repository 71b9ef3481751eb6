// SPDX-License-Identifier: GPL-2.0-only
//! The machine's memory: one reserved range, aligned to its own size, so that page records are found from an address
//! by arithmetic alone, as with the kernel's vmemmap.
//!
//! ```text
//! base ............ records: 64 bytes a page, for the whole range (only touched parts are backed)
//! base + RECORDS .. node 0: boot memory, then pages | node 1: ... | ...
//! ```
//! Boot memory is what the kernel takes from memblock: never given back, zeroed, on its node. Everything shared that
//! the port touches lives here, so that the simulator sees the same lines in every run. A machine's kernels follow one
//! another on the same arena ([`Arena::reset`]), hence on the same physical memory: both sides of a comparison get it
//! already faulted in.

use std::alloc::Layout;
use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

/// log2 of the arena's size and alignment.
pub const ARENA_SHIFT: u32 = 34;
/// Bytes of address space of an arena.
pub const ARENA_SIZE: usize = 1 << ARENA_SHIFT;
/// log2 of a page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Bytes of the record that stands for a page.
pub const RECORD_SIZE: usize = 64;
const RECORDS: usize = (ARENA_SIZE >> PAGE_SHIFT) * RECORD_SIZE;
const NODE_ALIGN: usize = 2 << 20;

/// The memory of a machine; see the module.
#[derive(Debug)]
pub struct Arena {
    base: usize,
    nodes: Box<[NodeRange]>,
    generation: Cell<u64>,
}

#[derive(Debug)]
struct NodeRange {
    start: usize,
    end: usize,
    brk: Cell<usize>,
}

impl NodeRange {
    fn take_rest(&self) -> (usize, usize) {
        let start = self.brk.get().next_multiple_of(PAGE_SIZE);
        self.brk.set(self.end);
        (start, self.end)
    }
}

/// What boot will leave of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeRest(NonNull<NodeRange>);

impl NodeRest {
    /// Ends boot allocation: where the node starts, where its rest starts, where it ends.
    ///
    /// # Safety
    /// The arena is alive, and no boot allocation runs at the same time.
    pub unsafe fn take(self) -> (usize, usize, usize) {
        // SAFETY: the caller's; the ranges are on the heap and do not move with the arena.
        let n = unsafe { self.0.as_ref() };
        let (start, end) = n.take_rest();
        (n.start, start, end)
    }
}

// SAFETY: boot allocation (`brk`) happens on one thread while a kernel starts, before its CPUs run.
unsafe impl Sync for Arena {}
// SAFETY: the arena is plain memory.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves an arena of `bytes_per_node` usable bytes on each of `nodes` nodes. `at`: a fixed address (the
    /// simulator's); `os_nodes`: the operating system's node behind each, to bind to.
    ///
    /// # Errors
    /// The operating system's, from `mmap`; `InvalidInput` where the nodes do not fit.
    pub fn new(nodes: u32, bytes_per_node: usize, at: Option<usize>, os_nodes: Option<&[u32]>) -> io::Result<Arena> {
        let share = (ARENA_SIZE - RECORDS) / nodes.max(1) as usize / NODE_ALIGN * NODE_ALIGN;
        let bytes = bytes_per_node.next_multiple_of(NODE_ALIGN);
        if nodes == 0 || bytes > share {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{nodes} nodes of {bytes_per_node} bytes do not fit an arena of {ARENA_SIZE} bytes"),
            ));
        }
        let base = reserve(at)?;
        let mut v = Vec::new();
        for n in 0..nodes as usize {
            let start = base + RECORDS + n * share;
            let rec = base + ((start - base) >> PAGE_SHIFT) * RECORD_SIZE;
            let rec_end = base + ((start + bytes - base) >> PAGE_SHIFT) * RECORD_SIZE;
            for (s, e) in [(start, start + bytes), (rec & !(PAGE_SIZE - 1), rec_end.next_multiple_of(PAGE_SIZE))] {
                make_usable(s, e - s)?;
                if let Some(os) = os_nodes {
                    bind(s, e - s, os[n]);
                }
            }
            v.push(NodeRange { start, end: start + bytes, brk: Cell::new(start) });
        }
        Ok(Arena { base, nodes: v.into(), generation: Cell::new(0) })
    }

    /// Where the arena begins.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Forgets everything allocated: the next kernel starts on the same memory.
    pub fn reset(&self) {
        for n in &self.nodes {
            n.brk.set(n.start);
        }
        self.generation.set(self.generation.get() + 1);
    }

    /// How often the arena was reset.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Takes zeroed boot memory from `node`, at least line-aligned. Only while a kernel starts, on its own thread.
    ///
    /// # Panics
    /// When the node is full (a machine too small for its kernel).
    pub fn boot_alloc(&self, node: u32, layout: Layout) -> NonNull<u8> {
        let n = &self.nodes[node as usize];
        let at = n.brk.get().next_multiple_of(layout.align().max(64));
        let end = at + layout.size().next_multiple_of(64);
        assert!(end <= n.end, "boot memory of node {node} is full");
        n.brk.set(end);
        // SAFETY: [at, end) is mapped, inside the node's range, and handed out once since the last reset.
        unsafe {
            std::ptr::write_bytes(at as *mut u8, 0, end - at);
            NonNull::new_unchecked(at as *mut u8)
        }
    }

    /// Puts `v` into boot memory of `node`. It is never dropped: kernel objects own no heap memory.
    pub fn boot_new<T>(&self, node: u32, v: T) -> KRef<T> {
        let p = self.boot_alloc(node, Layout::new::<T>()).cast::<T>();
        // SAFETY: fresh, aligned, large enough.
        unsafe { p.as_ptr().write(v) };
        KRef(p)
    }

    /// Ends boot allocation on `node` and returns the page-aligned range left for the page allocator.
    pub fn take_rest(&self, node: u32) -> (usize, usize) {
        self.nodes[node as usize].take_rest()
    }

    /// As [`Arena::take_rest`] for later: keeps its meaning when the arena's owner moves.
    pub fn rest(&self, node: u32) -> NodeRest {
        NodeRest(NonNull::from(&self.nodes[node as usize]))
    }

    /// Nodes there are.
    pub fn nr_nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// First and last address of `node`, boot memory included.
    pub fn node_range(&self, node: u32) -> (usize, usize) {
        let n = &self.nodes[node as usize];
        (n.start, n.end)
    }

    /// Touches every page, so that no host fault falls into a measured span.
    pub fn prefault(&self) {
        for n in &self.nodes {
            for a in (n.start..n.end).step_by(PAGE_SIZE) {
                // SAFETY: mapped; only called before a kernel starts.
                unsafe { (a as *mut u8).write_volatile(0) };
            }
        }
    }
}

/// The record of the page that `addr` lies in; `addr` must be arena memory.
#[inline(always)]
pub fn page_record(addr: usize) -> *mut u8 {
    let base = addr & !(ARENA_SIZE - 1);
    (base + ((addr & (ARENA_SIZE - 1)) >> PAGE_SHIFT) * RECORD_SIZE) as *mut u8
}

/// The page whose record is at `record`.
#[inline(always)]
pub fn record_page(record: usize) -> usize {
    let base = record & !(ARENA_SIZE - 1);
    base + (((record - base) / RECORD_SIZE) << PAGE_SHIFT)
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the range is ours.
        unsafe { libc::munmap(self.base as *mut libc::c_void, ARENA_SIZE) };
    }
}

fn reserve(at: Option<usize>) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if let Some(at) = at {
        // SAFETY: NOREPLACE never takes somebody's mapping.
        let p = unsafe {
            libc::mmap(at as *mut libc::c_void, ARENA_SIZE, libc::PROT_NONE, flags | libc::MAP_FIXED_NOREPLACE, -1, 0)
        };
        if p as usize == at {
            return Ok(at);
        }
        if p != libc::MAP_FAILED {
            // SAFETY: an older kernel took the address as a hint; ours to give back.
            unsafe { libc::munmap(p, ARENA_SIZE) };
        }
        // Taken by another machine of this process: any place does, what matters is relative to the base.
    }
    // SAFETY: a fresh mapping.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), 2 * ARENA_SIZE, libc::PROT_NONE, flags, -1, 0) };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let p = p as usize;
    let base = p.next_multiple_of(ARENA_SIZE);
    // SAFETY: trims the mapping just made.
    unsafe {
        if base > p {
            libc::munmap(p as *mut libc::c_void, base - p);
        }
        libc::munmap((base + ARENA_SIZE) as *mut libc::c_void, p + ARENA_SIZE - base);
    }
    Ok(base)
}

fn make_usable(at: usize, len: usize) -> io::Result<()> {
    // SAFETY: inside our reservation.
    let r = unsafe { libc::mprotect(at as *mut libc::c_void, len, libc::PROT_READ | libc::PROT_WRITE) };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; the kernel's linear map and page records use huge mappings too (slab.md 8.4). A refusal only
    // costs TLB misses.
    unsafe { libc::madvise(at as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
    Ok(())
}

/// Binds a range to a node of the operating system. A refusal (no NUMA, forbidden node) leaves first touch to decide;
/// placement is read back and recorded by the runner.
fn bind(at: usize, len: usize, os_node: u32) {
    const MPOL_BIND: libc::c_int = 2;
    let mut mask = vec![0u64; os_node as usize / 64 + 1];
    mask[os_node as usize / 64] |= 1 << (os_node % 64);
    // SAFETY: the mask outlives the call; the range is ours.
    unsafe {
        libc::syscall(
            libc::SYS_mbind,
            at,
            len,
            MPOL_BIND,
            mask.as_ptr(),
            mask.len() as libc::c_ulong * 64 + 1,
            0 as libc::c_uint,
        );
    }
}

/// A reference into the running kernel's memory: boot memory or an object of a slab cache.
///
/// INVARIANT: what it points at stays a `T` until the kernel it belongs to is shut down; nobody keeps one longer. It
/// is `Copy` because the kernel's own pointers are.
pub struct KRef<T: ?Sized>(NonNull<T>);

impl<T: ?Sized> KRef<T> {
    /// Wraps a pointer.
    ///
    /// # Safety
    /// The invariant of the type.
    #[inline(always)]
    pub unsafe fn new(p: NonNull<T>) -> Self {
        KRef(p)
    }

    /// Wraps a reference whose referent outlives the kernel.
    ///
    /// # Safety
    /// The invariant of the type.
    #[inline(always)]
    pub unsafe fn from_ref(r: &T) -> Self {
        KRef(NonNull::from(r))
    }

    /// The address.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut T {
        self.0.as_ptr()
    }
}
impl<T: ?Sized> Clone for KRef<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: ?Sized> Copy for KRef<T> {}
impl<T: ?Sized> Deref for KRef<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the invariant of the type.
        unsafe { self.0.as_ref() }
    }
}
impl<T: ?Sized> std::fmt::Debug for KRef<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KRef({:p})", self.0)
    }
}
// SAFETY: a shared reference to something `Sync`.
unsafe impl<T: ?Sized + Sync> Send for KRef<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for KRef<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_pages_are_inverse_and_boot_memory_is_zeroed_again() {
        let a = Arena::new(2, 4 << 20, None, None).unwrap();
        let p = a.boot_alloc(1, Layout::new::<[u64; 100]>());
        assert_eq!(p.as_ptr() as usize % 64, 0);
        let (s, e) = a.node_range(1);
        assert!((s..e).contains(&(p.as_ptr() as usize)));
        let r = page_record(p.as_ptr() as usize + 8);
        assert_eq!(record_page(r as usize), p.as_ptr() as usize & !(PAGE_SIZE - 1));
        // SAFETY: our own boot memory.
        unsafe { p.as_ptr().write(7) };
        a.reset();
        let q = a.boot_alloc(1, Layout::new::<u64>());
        assert_eq!(p, q);
        // SAFETY: our own boot memory.
        assert_eq!(unsafe { q.as_ptr().read() }, 0);
        assert!(Arena::new(0, 4096, None, None).is_err());
        assert!(Arena::new(4, ARENA_SIZE, None, None).is_err());
    }
}
