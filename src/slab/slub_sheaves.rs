// SPDX-License-Identifier: GPL-2.0-only
//! The slabs under the sheaves [___slab_alloc, __slab_free, refill_objects and what they call in mm/slub.c, 7.3].
//!
//! No CPU owns a slab: a slab is on its node's list, full and nowhere, or isolated for the moment in which one CPU takes
//! its whole freelist. Single objects are popped under the list_lock only, so the exchange still has no ABA: at the same
//! time there are pushes and take-alls alone.
//!
//! ```text
//! state         on node list  where
//! node partial  yes           the list of the slab's own node, flag SL_PARTIAL set
//! isolated      no            being refilled from, by the CPU that unlinked it
//! full          no            nowhere; freelist empty
//! ```
//! Every slab that stops being full costs its node's lock; 6.12 pays that only when a CPU's stack is drained.
//!
//! custom: as in `slub.rs`. A freelist of a new slab is linked only as far as its objects are not handed out at once.
//! Not verified against 7.3: that an isolated slab which nobody needed any more and which became empty meanwhile is
//! discarded when its node has enough (only a concurrent free leads there), and that putting a surplus back counts no
//! `free_add_partial`.

use super::page_alloc::NUMA_NO_NODE;
use super::record::{Freed, push_chain, take_freelist};
use super::slub::{NewSlab, Of, allocate_slab, count_remote, discard_slab, inc_slabs_node, slab_update_freelist};
use super::slub_def::{KmemCache, KmemCacheNode, Slab, SlabCounters};
use super::stat::StatItem;
use crate::arch::{Hardware, Relaxed};
use crate::cpu::Cpu;
use crate::sync::{raw_spin_trylock, raw_spin_unlock};
use std::cell::Cell;
use std::ptr::null_mut;

/// `___slab_alloc()`: one object from a slab; 0 when out of memory. A wish for a node is first tried strictly, then not.
#[cold]
#[inline(never)]
pub(super) fn __slab_alloc<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32) -> usize {
    s.stat(cpu, StatItem::AllocSlowpath);
    let mut thisnode = node != NUMA_NO_NODE;
    loop {
        let object = get_from_partial(cpu, s, node, thisnode);
        if object != 0 {
            return object;
        }
        if let Some(new) = allocate_slab(cpu, s, node, thisnode) {
            s.stat(cpu, StatItem::AllocSlab);
            let mut object = 0;
            alloc_from_new_slab(cpu, s, new, 1, &mut |o| object = o);
            return object;
        }
        if !thisnode {
            s.stat(cpu, StatItem::AllocFail);
            return 0;
        }
        thisnode = false;
    }
}

/// `get_from_partial()`
fn get_from_partial<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, node: u32, thisnode: bool) -> usize {
    let search = if node == NUMA_NO_NODE { cpu.node } else { node };
    let object = get_from_partial_node(cpu, s, s.get_node(search));
    if object != 0 || thisnode {
        return object;
    }
    // get_from_any_partial()
    if !look_at_other_nodes(cpu, s) {
        return 0;
    }
    for nid in s.state.pages.zonelist(cpu.node) {
        let n = s.get_node(nid);
        if n.nr_partial.load(Relaxed) > s.min_partial {
            let object = get_from_partial_node(cpu, s, n);
            if object != 0 {
                return object;
            }
        }
    }
    0
}

/// Whether remote nodes are asked this time.
fn look_at_other_nodes<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>) -> bool {
    // PORT: the kernel takes the cycle counter, which is not the same in two runs.
    s.remote_node_defrag_ratio != 0 && cpu.random() % 1024 <= s.remote_node_defrag_ratio
}

/// `get_from_partial_node()`: the first object of the first slab.
fn get_from_partial_node<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, n: &KmemCacheNode<A>) -> usize {
    // Racy: a slab missed here costs a new one, a slab imagined costs a lock.
    if n.nr_partial.load(Relaxed) == 0 {
        return 0;
    }
    s.lock_node(cpu, n);
    let p = n.first.get();
    let mut object = 0;
    if !p.is_null() {
        // SAFETY: on the list, whose lock is held.
        let slab = unsafe { &*p };
        loop {
            let (freelist, counters) = (slab.freelist(), slab.counters());
            // SAFETY: first of a listed slab: only the holder of the lock takes objects, frees push before it.
            let next = unsafe { s.get_freepointer_safe(freelist) };
            let new = counters.with_inuse(counters.inuse() + 1);
            if slab_update_freelist(cpu, s, slab, (freelist, counters), (next, new)) {
                object = freelist;
                if next == 0 {
                    n.remove_partial(slab);
                }
                break;
            }
        }
    }
    raw_spin_unlock(cpu, &n.list_lock);
    object
}

/// `__slab_free()`: the chain `head..=tail` of `cnt` objects to their slab. Counts no free: that is the caller's.
///
/// # Safety
/// The objects are allocated, of this slab of `s`, linked in order up to `tail`, and nobody else's.
#[cold]
#[inline(never)]
pub(super) unsafe fn __slab_free<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    slab: &Slab<A>,
    head: usize,
    tail: usize,
    cnt: u32,
) {
    let n: Cell<Option<&KmemCacheNode<A>>> = Cell::new(None);
    let mut on_node_partial = false;
    let again = || {
        if let Some(n) = n.take() {
            raw_spin_unlock(cpu, &n.list_lock);
        }
    };
    let Freed { prior, inuse, .. } = push_chain(&Of(cpu, s, slab), head, cnt, again, |f| {
        // SAFETY: the caller's: nobody else can reach the chain before the exchange.
        unsafe { s.set_freepointer(tail, f.prior) };
        if f.inuse == 0 || f.prior == 0 {
            // It may have to leave the list, or to get on it: the lock comes first, the exchange second.
            let node = s.get_node(slab.nid());
            s.lock_node(cpu, node);
            on_node_partial = slab.on_node_partial();
            n.set(Some(node));
        }
    });
    let was_full = prior == 0;
    let Some(n) = n.get() else { return };
    if !was_full && !on_node_partial {
        // Isolated: whoever took it off the list decides where it goes.
        raw_spin_unlock(cpu, &n.list_lock);
        return;
    }
    if inuse == 0 && n.nr_partial.load(Relaxed) >= s.min_partial {
        if !was_full {
            n.remove_partial(slab);
            s.stat(cpu, StatItem::FreeRemovePartial);
        }
        raw_spin_unlock(cpu, &n.list_lock);
        s.stat(cpu, StatItem::FreeSlab);
        discard_slab(cpu, s, slab);
        return;
    }
    if was_full {
        n.add_partial(slab, true);
        s.stat(cpu, StatItem::FreeAddPartial);
    }
    raw_spin_unlock(cpu, &n.list_lock);
}

/// `refill_objects()`: between `min` and `max` objects to `put`, fewer when out of memory; returns how many. From the
/// local node's list, from remote lists whose lock is free, from new slabs.
#[cold]
#[inline(never)]
pub(super) fn refill_objects<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    min: u32,
    max: u32,
    put: &mut impl FnMut(usize),
) -> u32 {
    let mut got = __refill_objects_node(cpu, s, min, max, s.get_node(cpu.node), true, put);
    if got >= min {
        return got;
    }
    got += __refill_objects_any(cpu, s, min - got, max - got, put);
    while got < min {
        // Near the CPU, whatever its task would prefer.
        let Some(new) = allocate_slab(cpu, s, cpu.node, false) else { break };
        s.stat(cpu, StatItem::AllocSlab);
        got += alloc_from_new_slab(cpu, s, new, max - got, put);
    }
    got
}

/// `__refill_objects_any()`
fn __refill_objects_any<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    min: u32,
    max: u32,
    put: &mut impl FnMut(usize),
) -> u32 {
    if !look_at_other_nodes(cpu, s) {
        return 0;
    }
    let mut got = 0;
    for nid in s.state.pages.zonelist(cpu.node) {
        let n = s.get_node(nid);
        if n.nr_partial.load(Relaxed) > s.min_partial {
            got += __refill_objects_node(cpu, s, min - got, max - got, n, false, put);
            if got >= min {
                break;
            }
        }
    }
    got
}

/// `__refill_objects_node()`. Without `may_wait` a list whose lock is taken is passed by.
fn __refill_objects_node<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    min: u32,
    max: u32,
    n: &KmemCacheNode<A>,
    may_wait: bool,
    put: &mut impl FnMut(usize),
) -> u32 {
    let mut isolated = get_partial_node_bulk(cpu, s, min, max, n, may_wait);
    let mut got = 0;
    while !isolated.is_null() && got < max {
        // SAFETY: off its list: ours until its freelist is taken.
        let slab = unsafe { &*isolated };
        isolated = slab.next();
        let (mut object, mut left) = get_freelist_nofreeze(cpu, s, slab);
        while object != 0 && got < max {
            // SAFETY: on a freelist that this CPU took whole.
            let next = unsafe { s.get_freepointer(object) };
            put(object);
            got += 1;
            left -= 1;
            object = next;
        }
        if object != 0 && !__slab_try_return_freelist(cpu, s, slab, object, left) {
            // Somebody freed to it meanwhile, so it is listed again: as any chain.
            let mut tail = object;
            loop {
                // SAFETY: as above.
                match unsafe { s.get_freepointer(tail) } {
                    0 => break,
                    next => tail = next,
                }
            }
            // SAFETY: the rest of a list that this CPU took whole, `left` objects up to `tail`.
            unsafe { __slab_free(cpu, s, slab, object, tail, left) };
        }
    }
    if !isolated.is_null() {
        put_isolated(cpu, s, n, isolated);
    }
    got
}

/// Slabs that were taken off the list in vain, because those before them held more than it had seemed.
#[cold]
#[inline(never)]
fn put_isolated<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, n: &KmemCacheNode<A>, mut isolated: *mut Slab<A>) {
    let mut discard: *mut Slab<A> = null_mut();
    s.lock_node(cpu, n);
    while !isolated.is_null() {
        let p = isolated;
        // SAFETY: ours, as in __refill_objects_node().
        let slab = unsafe { &*p };
        isolated = slab.next();
        if slab.counters().inuse() == 0 && n.nr_partial.load(Relaxed) >= s.min_partial {
            slab.set_next(discard);
            discard = p;
        } else {
            n.add_partial(slab, true);
        }
    }
    raw_spin_unlock(cpu, &n.list_lock);
    while !discard.is_null() {
        // SAFETY: empty and on no list: nobody else's.
        let slab = unsafe { &*discard };
        discard = slab.next();
        s.stat(cpu, StatItem::FreeSlab);
        discard_slab(cpu, s, slab);
    }
}

/// `get_partial_node_bulk()`: takes slabs off the list until they have `max` free objects, or `min` and the next one
/// would exceed `max`. Returns them chained by `next`, in the order of the
/// list.
fn get_partial_node_bulk<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    min: u32,
    max: u32,
    n: &KmemCacheNode<A>,
    may_wait: bool,
) -> *mut Slab<A> {
    // Racy: as in get_from_partial_node().
    if n.nr_partial.load(Relaxed) == 0 {
        return null_mut();
    }
    if may_wait {
        s.lock_node(cpu, n);
    } else {
        if !raw_spin_trylock(cpu, &n.list_lock) {
            return null_mut();
        }
        s.stat(cpu, StatItem::ListLock);
    }
    let (mut isolated, mut last): (*mut Slab<A>, *mut Slab<A>) = (null_mut(), null_mut());
    let mut total = 0;
    let mut p = n.first.get();
    while !p.is_null() {
        // SAFETY: on the list, whose lock is held.
        let slab = unsafe { &*p };
        let next = slab.next();
        // Frees go on meanwhile: this is the least there is.
        let counters = slab.counters();
        let free = counters.objects() - counters.inuse();
        if total >= min && total + free > max {
            break;
        }
        n.remove_partial(slab);
        slab.set_next(null_mut());
        if last.is_null() {
            isolated = p;
        } else {
            // SAFETY: taken off just now: ours.
            unsafe { &*last }.set_next(p);
        }
        last = p;
        total += free;
        if total >= max {
            break;
        }
        p = next;
    }
    raw_spin_unlock(cpu, &n.list_lock);
    isolated
}

/// `get_freelist_nofreeze()`: takes all free objects of an isolated slab, which is full then; returns the first and how
/// many there are.
fn get_freelist_nofreeze<A: Hardware>(cpu: &Cpu<A>, s: &KmemCache<A>, slab: &Slab<A>) -> (usize, u32) {
    let (freelist, found) = take_freelist(&Of(cpu, s, slab), |_| false);
    debug_assert!(!found.frozen());
    count_remote(cpu, s, slab, found);
    (freelist, found.objects() - found.inuse())
}

/// `__slab_try_return_freelist()`: gives `cnt` linked objects from `head` on back to a slab that was just emptied, and
/// lists it; false, with nothing done, when somebody freed to it meanwhile. Needs no walk to the end of the chain.
fn __slab_try_return_freelist<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    slab: &Slab<A>,
    head: usize,
    cnt: u32,
) -> bool {
    let n = s.get_node(slab.nid());
    // Before the exchange, as in __slab_free(): a free that comes next must find the slab listed.
    s.lock_node(cpu, n);
    let counters = slab.counters();
    let returned = slab.freelist() == 0
        && slab_update_freelist(
            cpu,
            s,
            slab,
            (0, counters),
            (head, counters.with_inuse(counters.inuse().wrapping_sub(cnt) & 0xffff)),
        );
    if returned {
        n.add_partial(slab, true);
    }
    raw_spin_unlock(cpu, &n.list_lock);
    returned
}

/// `alloc_from_new_slab()`: up to `count` objects of a new slab to `put`, in the order in which the slab is built; what
/// is left is linked, and the slab goes to the head of its node's list. Returns how many.
fn alloc_from_new_slab<A: Hardware>(
    cpu: &Cpu<A>,
    s: &KmemCache<A>,
    mut new: NewSlab<'_, A>,
    count: u32,
    put: &mut impl FnMut(usize),
) -> u32 {
    let objects = new.objects;
    let take = count.min(objects);
    for _ in 0..take {
        put(new.next_object(cpu, s));
    }
    let slab = new.slab;
    let rest = if take < objects { new.link_objects(cpu, s, objects - take) } else { 0 };
    // Nobody else knows this slab yet, so plain stores do; the list_lock, or whoever hands the objects on, publishes.
    slab.freelist.store(rest, Relaxed);
    slab.counters.store(SlabCounters::new(take, objects, false).0, Relaxed);
    let n = s.get_node(slab.nid());
    if rest != 0 {
        s.lock_node(cpu, n);
        n.add_partial(slab, false);
        raw_spin_unlock(cpu, &n.list_lock);
    }
    inc_slabs_node(s, slab.nid(), objects);
    take
}
