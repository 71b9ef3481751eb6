// SPDX-License-Identifier: GPL-2.0-only
//! anon_vmas and their chains [mm/rmap.c, 6.12].
//!
//! dup: which objects are allocated when, which locks are taken, the order of publication, find_mergeable_anon_vma(),
//! the tree that forks build (parents, children, the root whose semaphore all share) and what of it a child takes over.
//! stub: the interval tree of an anon_vma is the number of links to it (nobody walks the reverse map here).
//!
//! INVARIANT: a VMA's chain holds its own anon_vma first and the oldest ancestor's last; all of them have one root. A root
//! lives as long as anything below it: each descendant holds a reference.
//! Lock order: `mmap_lock` (read is enough to prepare), the root's semaphore, `page_table_lock`.

use super::kconfig::{Kconfig, MmPtr, VmaPtr};
use super::mm_types::{ListHead, VM_ACCESS_FLAGS, VmaFields, vma_pages};
use super::mmap_lock::vma_of_entry;
use super::vma::sticky_flags;
use super::vmstat::{VmEvent, warn_on_once};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Hardware, Native, Plain, Relaxed, Release};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;
use crate::maple_tree::{MaState, mas_prev, mas_walk};
use crate::slab::{KmemCacheArgs, SLAB_ACCOUNT, SLAB_PANIC, SLAB_TYPESAFE_BY_RCU, kmem_cache_alloc, kmem_cache_free};
use crate::sync::{Refcount, RwSemaphore, down_write, raw_spin_lock, raw_spin_unlock, up_write};
use std::mem::size_of;
use std::ptr::{NonNull, null_mut};

/// `struct anon_vma`, 96 bytes.
#[repr(C)]
pub struct AnonVma<A: Arch> {
    root: Plain<A, *mut AnonVma<A>>,
    /// Guards the links.
    pub rwsem: RwSemaphore<A>,
    refcount: Refcount<A>,
    num_children: Plain<A, u64>,
    num_active_vmas: Plain<A, u64>,
    parent: Plain<A, *mut AnonVma<A>>,
    /// stub: links in the interval tree.
    rb_root: Plain<A, u64>,
    rb_leftmost: u64,
}

/// `struct anon_vma_chain`, 64 bytes: one link of a VMA to an anon_vma.
#[repr(C)]
pub struct AnonVmaChain<A: Arch> {
    vma: Plain<A, usize>,
    anon_vma: Plain<A, *mut AnonVma<A>>,
    same_vma: ListHead<A>,
    rb: [u64; 4],
}

const _: () = {
    assert!(size_of::<AnonVma<Native>>() == 96);
    assert!(size_of::<AnonVmaChain<Native>>() == 64);
};

/// The cache of anon_vmas.
pub fn anon_vma_args<A: Hardware>() -> KmemCacheArgs {
    KmemCacheArgs {
        name: "anon_vma",
        size: size_of::<AnonVma<A>>(),
        align: 8,
        flags: SLAB_TYPESAFE_BY_RCU | SLAB_PANIC | SLAB_ACCOUNT,
        ctor: Some(anon_vma_ctor::<A>),
        ..KmemCacheArgs::default()
    }
}

/// The cache of chain links.
pub fn anon_vma_chain_args<A: Hardware>() -> KmemCacheArgs {
    KmemCacheArgs {
        name: "anon_vma_chain",
        size: size_of::<AnonVmaChain<A>>(),
        align: 8,
        flags: SLAB_PANIC | SLAB_ACCOUNT,
        ..KmemCacheArgs::default()
    }
}

/// `anon_vma_ctor()`: what survives from one life of the object to the next.
///
/// # Safety
/// `p` is a fresh object of the anon_vma cache.
unsafe fn anon_vma_ctor<A: Hardware>(p: *mut u8) {
    // SAFETY: the caller's.
    unsafe {
        p.cast::<AnonVma<A>>().write(AnonVma {
            root: Plain::new(null_mut()),
            rwsem: RwSemaphore::new(),
            refcount: Refcount::new(0),
            num_children: Plain::new(0),
            num_active_vmas: Plain::new(0),
            parent: Plain::new(null_mut()),
            rb_root: Plain::new(0),
            rb_leftmost: 0,
        });
    }
}

fn anon_vma_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> Option<KRef<AnonVma<K::A>>> {
    let p = NonNull::new(kmem_cache_alloc(cpu, &k.anon_vma_cachep).cast::<AnonVma<K::A>>())?;
    cpu.count(VmEvent::AnonVmaAlloc);
    // SAFETY: an object that the cache's constructor made; the lock may still be somebody's from its last life.
    let av = unsafe { KRef::new(p) };
    av.refcount.set(1);
    av.num_children.set(0);
    av.num_active_vmas.set(0);
    av.parent.set(p.as_ptr());
    av.root.set(p.as_ptr());
    Some(av)
}

/// `anon_vma_free()`
fn anon_vma_free<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, av: KRef<AnonVma<K::A>>) {
    // Whoever found the anon_vma by a page may still be about to take the lock (6.12's reverse map; nobody here).
    // SAFETY: the root lives as long as any anon_vma under it.
    if unsafe { &(*av.root.get()).rwsem }.is_locked() {
        anon_vma_lock_write(cpu, &av);
        anon_vma_unlock_write(cpu, &av);
    }
    cpu.count(VmEvent::AnonVmaFree);
    // SAFETY: nobody refers to it.
    unsafe { kmem_cache_free(cpu, &k.anon_vma_cachep, av.as_ptr().cast()) };
}

/// `put_anon_vma()`: with its last reference an anon_vma gives up its root's.
fn put_anon_vma<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, av: KRef<AnonVma<K::A>>) {
    if av.refcount.dec_and_test(cpu) {
        let root = av.root.get();
        anon_vma_free(cpu, k, av);
        if root != av.as_ptr() {
            // SAFETY: ours until this reference goes.
            let root: KRef<AnonVma<K::A>> = unsafe { KRef::new(NonNull::new_unchecked(root)) };
            if root.refcount.dec_and_test(cpu) {
                anon_vma_free(cpu, k, root);
            }
        }
    }
}

fn anon_vma_chain_alloc<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>) -> Option<KRef<AnonVmaChain<K::A>>> {
    let p = NonNull::new(kmem_cache_alloc(cpu, &k.anon_vma_chain_cachep).cast::<AnonVmaChain<K::A>>())?;
    cpu.count(VmEvent::AnonVmaChainAlloc);
    // SAFETY: an object of the cache; its fields are words.
    Some(unsafe { KRef::new(p) })
}

fn anon_vma_chain_free<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, avc: KRef<AnonVmaChain<K::A>>) {
    cpu.count(VmEvent::AnonVmaChainFree);
    // SAFETY: unlinked, freed once.
    unsafe { kmem_cache_free(cpu, &k.anon_vma_chain_cachep, avc.as_ptr().cast()) };
}

/// `anon_vma_lock_write()`
#[inline]
pub fn anon_vma_lock_write<A: Arch>(cpu: &Cpu<A>, av: &AnonVma<A>) {
    // SAFETY: the root lives as long as any anon_vma under it.
    down_write(cpu, unsafe { &(*av.root.get()).rwsem });
}

/// `anon_vma_unlock_write()`
#[inline]
pub fn anon_vma_unlock_write<A: Arch>(cpu: &Cpu<A>, av: &AnonVma<A>) {
    // SAFETY: as above.
    up_write(cpu, unsafe { &(*av.root.get()).rwsem });
}

/// The VMA's anon_vma, if it has one.
#[inline]
pub fn vma_anon_vma<K: Kconfig>(vma: VmaPtr<K>) -> Option<KRef<AnonVma<K::A>>> {
    // ORDER: acquire stands for the address dependency; meets the release in __anon_vma_prepare().
    // SAFETY: an anon_vma lives while a VMA is linked to it.
    NonNull::new(vma.anon_vma().load(Acquire)).map(|p| unsafe { KRef::new(p) })
}

/// `anon_vma_chain_assign()` and `anon_vma_interval_tree_insert()`, under the anon_vma's lock.
fn anon_vma_link<K: Kconfig>(vma: VmaPtr<K>, avc: KRef<AnonVmaChain<K::A>>, av: KRef<AnonVma<K::A>>) {
    anon_vma_chain_assign::<K>(vma, avc, av);
    av.rb_root.set(av.rb_root.get() + 1);
}

/// `anon_vma_chain_assign()`
fn anon_vma_chain_assign<K: Kconfig>(vma: VmaPtr<K>, avc: KRef<AnonVmaChain<K::A>>, av: KRef<AnonVma<K::A>>) {
    avc.vma.set(vma.as_ptr() as usize);
    avc.anon_vma.set(av.as_ptr());
    let head = vma.anon_vma_chain();
    let (hp, np) = (std::ptr::from_ref(head).cast_mut(), std::ptr::from_ref(&avc.same_vma).cast_mut());
    let first = head.next.load(Relaxed);
    avc.same_vma.next.store(first, Relaxed);
    avc.same_vma.set_prev(hp);
    // SAFETY: list entries are alive while linked.
    unsafe { (*first).set_prev(np) };
    head.next.store(np, Relaxed);
}

fn list_del<A: Arch>(e: &ListHead<A>) {
    let (n, p) = (e.next.load(Relaxed), e.prev());
    // SAFETY: neighbours of a linked entry are alive.
    unsafe {
        (*n).set_prev(p);
        (*p).next.store(n, Relaxed);
    }
}

fn avc_of<A: Arch>(e: *mut ListHead<A>) -> KRef<AnonVmaChain<A>> {
    let p = e.wrapping_byte_sub(std::mem::offset_of!(AnonVmaChain<A>, same_vma));
    // SAFETY: every entry of a VMA's chain is the `same_vma` of a link.
    unsafe { KRef::new(NonNull::new_unchecked(p.cast())) }
}

/// `anon_vma_compatible()`: whether `b`, right behind `a`, could share its anon_vma.
fn anon_vma_compatible<K: Kconfig>(k: &Kernel<K>, a: VmaPtr<K>, b: VmaPtr<K>) -> bool {
    let may_differ = VM_ACCESS_FLAGS | sticky_flags(&k.rules);
    a.vm_end().load(Relaxed) == b.vm_start().load(Relaxed)
        && a.vm_policy().load(Relaxed) == b.vm_policy().load(Relaxed)
        && a.vm_file().load(Relaxed) == b.vm_file().load(Relaxed)
        && (a.vm_flags().load(Relaxed) ^ b.vm_flags().load(Relaxed)) & !may_differ == 0
        && b.vm_pgoff().load(Relaxed) == a.vm_pgoff().load(Relaxed) + vma_pages::<K::A, K::Lock>(&a)
}

/// `reusable_anon_vma()`
fn reusable_anon_vma<K: Kconfig>(
    k: &Kernel<K>,
    old: VmaPtr<K>,
    a: VmaPtr<K>,
    b: VmaPtr<K>,
) -> Option<KRef<AnonVma<K::A>>> {
    // Another thread may be linking it right now: then it is becoming a singleton, which is what is asked.
    if anon_vma_compatible(k, a, b)
        && let Some(av) = vma_anon_vma::<K>(old)
        && old.anon_vma_chain().is_singular()
    {
        return Some(av);
    }
    None
}

/// `find_mergeable_anon_vma()`: a neighbour's anon_vma that `vma` may share, so that the two can merge later.
/// Under `mmap_lock`.
fn find_mergeable_anon_vma<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
) -> Option<KRef<AnonVma<K::A>>> {
    let end = vma.vm_end().load(Relaxed);
    let mut mas = MaState::new(mm.mm_mt(), k.maple, end, end);
    // SAFETY: under mmap_lock.
    unsafe {
        if let Some(next) = vma_of_entry::<K>(mas_walk(cpu, &mut mas))
            && let Some(av) = reusable_anon_vma(k, next, vma, next)
        {
            return Some(av);
        }
        // Back over vma itself to what lies before it.
        mas_prev(cpu, &mut mas, 0);
        vma_of_entry::<K>(mas_prev(cpu, &mut mas, 0)).and_then(|prev| reusable_anon_vma(k, prev, prev, vma))
    }
}

/// `__anon_vma_prepare()`: gives `vma` an anon_vma. Under `mmap_lock`, read is enough.
///
/// # Errors
/// `ENOMEM`
#[cold]
#[inline(never)]
pub fn __anon_vma_prepare<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    vma: VmaPtr<K>,
) -> Result<(), Errno> {
    let Some(avc) = anon_vma_chain_alloc(cpu, k) else { return Err(Errno::ENOMEM) };
    let (av, allocated) = match find_mergeable_anon_vma(cpu, k, mm, vma) {
        Some(av) => (av, false),
        None => match anon_vma_alloc(cpu, k) {
            Some(av) => {
                // A root is its own parent.
                av.num_children.set(av.num_children.get() + 1);
                (av, true)
            }
            None => {
                anon_vma_chain_free(cpu, k, avc);
                return Err(Errno::ENOMEM);
            }
        },
    };
    anon_vma_lock_write(cpu, &av);
    raw_spin_lock(cpu, &mm.page_table_lock);
    let set = vma.anon_vma().load(Relaxed).is_null();
    if set {
        // ORDER: release, meets vma_anon_vma(): the anon_vma's fields come before the pointer.
        vma.anon_vma().store(av.as_ptr(), Release);
        anon_vma_link::<K>(vma, avc, av);
        av.num_active_vmas.set(av.num_active_vmas.get() + 1);
    }
    raw_spin_unlock(cpu, &mm.page_table_lock);
    anon_vma_unlock_write(cpu, &av);
    if !set {
        // Another thread was first.
        if allocated {
            put_anon_vma(cpu, k, av);
        }
        anon_vma_chain_free(cpu, k, avc);
    }
    Ok(())
}

/// `anon_vma_clone()`: links `dst` to all that `src` is linked to. `dst` has the same anon_vma already, or (fork) none:
/// then it may get one of the chain's.
///
/// # Errors
/// `ENOMEM`, with `dst` unlinked.
pub fn anon_vma_clone<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, dst: VmaPtr<K>, src: VmaPtr<K>) -> Result<(), Errno> {
    let head = std::ptr::from_ref(src.anon_vma_chain()).cast_mut();
    let mut root = None;
    let mut e = src.anon_vma_chain().prev();
    while e != head {
        let pavc = avc_of(e);
        let Some(avc) = anon_vma_chain_alloc(cpu, k) else {
            unlock_anon_vma_root(cpu, root);
            dst.anon_vma().store(null_mut(), Relaxed);
            unlink_anon_vmas(cpu, k, dst);
            return Err(Errno::ENOMEM);
        };
        // SAFETY: alive while linked.
        let av = unsafe { KRef::new(NonNull::new_unchecked(pavc.anon_vma.get())) };
        root = lock_anon_vma_root(cpu, root, av);
        anon_vma_link::<K>(dst, avc, av);
        // A fork takes over an ancestor that no VMA uses any more and that has no more than one child, so that a process
        // that forks and ends in a long line does not make the chain longer and longer. A root has itself for a child.
        if dst.anon_vma().load(Relaxed).is_null()
            && !src.anon_vma().load(Relaxed).is_null()
            && av.num_children.get() < 2
            && av.num_active_vmas.get() == 0
        {
            dst.anon_vma().store(av.as_ptr(), Relaxed);
        }
        e = pavc.same_vma.prev();
    }
    if let Some(av) = vma_anon_vma::<K>(dst) {
        av.num_active_vmas.set(av.num_active_vmas.get() + 1);
    }
    unlock_anon_vma_root(cpu, root);
    Ok(())
}

/// `anon_vma_fork()`: links the child's `vma` to all that its parent's `pvma` is linked to, and to an anon_vma of its
/// own, where its new pages go.
///
/// # Errors
/// `ENOMEM`, with `vma` unlinked.
pub fn anon_vma_fork<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>, pvma: VmaPtr<K>) -> Result<(), Errno> {
    // Nothing of its own in the parent: nothing to find here.
    let Some(parent) = vma_anon_vma::<K>(pvma) else { return Ok(()) };
    vma.anon_vma().store(null_mut(), Relaxed);
    anon_vma_clone(cpu, k, vma, pvma)?;
    if !vma.anon_vma().load(Relaxed).is_null() {
        return Ok(());
    }
    let Some(av) = anon_vma_alloc(cpu, k) else {
        unlink_anon_vmas(cpu, k, vma);
        return Err(Errno::ENOMEM);
    };
    av.num_active_vmas.set(1);
    let Some(avc) = anon_vma_chain_alloc(cpu, k) else {
        put_anon_vma(cpu, k, av);
        unlink_anon_vmas(cpu, k, vma);
        return Err(Errno::ENOMEM);
    };
    let root = parent.root.get();
    av.root.set(root);
    av.parent.set(parent.as_ptr());
    // SAFETY: alive through the parent's chain.
    unsafe { (*root).refcount.inc(cpu) };
    vma.anon_vma().store(av.as_ptr(), Relaxed);
    anon_vma_chain_assign::<K>(vma, avc, av);
    anon_vma_lock_write(cpu, &av);
    av.rb_root.set(av.rb_root.get() + 1);
    parent.num_children.set(parent.num_children.get() + 1);
    anon_vma_unlock_write(cpu, &av);
    Ok(())
}

/// `lock_anon_vma_root()`: the lock is held over a whole chain. All of a chain have one root, so it is taken once.
#[inline]
fn lock_anon_vma_root<A: Arch>(
    cpu: &Cpu<A>,
    held: Option<KRef<AnonVma<A>>>,
    av: KRef<AnonVma<A>>,
) -> Option<KRef<AnonVma<A>>> {
    match held {
        Some(h) if h.root.get() == av.root.get() => held,
        _ => {
            unlock_anon_vma_root(cpu, held);
            anon_vma_lock_write(cpu, &av);
            Some(av)
        }
    }
}

/// `unlock_anon_vma_root()`
#[inline]
fn unlock_anon_vma_root<A: Arch>(cpu: &Cpu<A>, held: Option<KRef<AnonVma<A>>>) {
    if let Some(h) = held {
        anon_vma_unlock_write(cpu, &h);
    }
}

/// `unlink_anon_vmas()`: takes `vma` off all its anon_vmas; frees those that nobody else is linked to.
pub fn unlink_anon_vmas<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, vma: VmaPtr<K>) {
    let head = vma.anon_vma_chain();
    let end = std::ptr::from_ref(head).cast_mut();
    let mut root = None;
    let mut e = head.next.load(Relaxed);
    while e != end {
        let avc = avc_of(e);
        e = avc.same_vma.next.load(Relaxed);
        // SAFETY: alive while linked.
        let av = unsafe { KRef::new(NonNull::new_unchecked(avc.anon_vma.get())) };
        root = lock_anon_vma_root(cpu, root, av);
        av.rb_root.set(av.rb_root.get() - 1);
        // An anon_vma that nobody is linked to stays on the list: it is freed without the lock, which may be in it.
        if av.rb_root.get() == 0 {
            // SAFETY: a parent lives as long as its children: they are older in the same chains.
            let parent = unsafe { &*av.parent.get() };
            parent.num_children.set(parent.num_children.get() - 1);
        } else {
            list_del(&avc.same_vma);
            anon_vma_chain_free(cpu, k, avc);
        }
    }
    if let Some(av) = vma_anon_vma::<K>(vma) {
        av.num_active_vmas.set(av.num_active_vmas.get() - 1);
        // ORDER: relaxed: the VMA is out of the tree, or (an expansion that failed) write-locked.
        vma.anon_vma().store(null_mut(), Relaxed);
    }
    unlock_anon_vma_root(cpu, root);
    while !head.is_empty() {
        let avc = avc_of(head.next.load(Relaxed));
        // SAFETY: its last link is this one.
        let av = unsafe { KRef::new(NonNull::new_unchecked(avc.anon_vma.get())) };
        warn_on_once(cpu, av.num_children.get() != 0 || av.num_active_vmas.get() != 0);
        put_anon_vma(cpu, k, av);
        list_del(&avc.same_vma);
        anon_vma_chain_free(cpu, k, avc);
    }
}
