// SPDX-License-Identifier: GPL-2.0-only
//! The segmented callback list of a CPU [kernel/rcu/rcu_segcblist.c, 6.12].
//!
//! ```text
//! head -> a -> b -> c -> d -> e -> null          DONE       a, b   ready to be called
//!              ^         ^    ^                  WAIT       c, d   wait for gp_seq[1]
//!              tails[0]  |    tails[3]           NEXT_READY -      wait for gp_seq[2]
//!                        tails[1], tails[2]      NEXT       e      no label yet
//! ```
//! `tails[i]` points at the `next` slot of the last callback of segment i (at `head` if all up to i are empty).
//!
//! dup: `disable`, `merge` and the pending half of `extract` serve CPU hotplug only. custom: none. The words are the
//! kernel's, in its order and size (113 bytes used).
//!
//! INVARIANT: everything but `len` is touched by the owning CPU alone (the kernel: with interrupts off). `len` counts
//! list and callbacks taken out by a running batch; `rcu_barrier()` reads it from other CPUs.

use super::{RcuHead, RcuSlot};
use crate::arch::{Arch, Atomic, Full, Plain, Relaxed, smp_mb};
use crate::rcu::rcu_seq::ulong_cmp_lt;
use std::ptr::null_mut;

/// Ready to be called.
pub const RCU_DONE_TAIL: usize = 0;
/// Waits for the label of its segment.
pub const RCU_WAIT_TAIL: usize = 1;
/// Waits for the label of its segment, a later one.
pub const RCU_NEXT_READY_TAIL: usize = 2;
/// Not labelled.
pub const RCU_NEXT_TAIL: usize = 3;
/// How many segments.
pub const RCU_CBLIST_NSEGS: usize = 4;

const SEGCBLIST_ENABLED: u8 = 1;

/// `struct rcu_segcblist`
#[repr(C)]
#[derive(Debug)]
pub struct RcuSegcblist<A: Arch> {
    head: RcuSlot<A>,
    tails: [Plain<A, *mut RcuSlot<A>>; RCU_CBLIST_NSEGS],
    gp_seq: [Plain<A, u64>; RCU_CBLIST_NSEGS],
    /// Atomic: RCU_NOCB_CPU=y, the distribution's case.
    len: Atomic<A, i64>,
    seglen: [Plain<A, i64>; RCU_CBLIST_NSEGS],
    flags: Plain<A, u8>,
}

/// `struct rcu_cblist`: callbacks taken out of a list by a batch; on the stack of its CPU.
#[derive(Debug)]
pub struct RcuCblist<A: Arch> {
    head: *mut RcuHead<A>,
    /// Last slot; null while nothing was ever put in.
    tail: *mut RcuSlot<A>,
    /// How many.
    pub len: i64,
}

impl<A: Arch> RcuCblist<A> {
    /// Empty.
    pub fn new() -> Self {
        RcuCblist { head: null_mut(), tail: null_mut(), len: 0 }
    }

    /// `len` callbacks from `head` to the one whose `next` is `tail`.
    pub(super) fn from_parts(head: *mut RcuHead<A>, tail: *mut RcuSlot<A>, len: i64) -> Self {
        RcuCblist { head, tail, len }
    }

    /// `rcu_cblist_dequeue()`: the oldest, or null.
    ///
    /// # Safety
    /// The callbacks in the list are alive.
    #[inline]
    pub unsafe fn dequeue(&mut self) -> *mut RcuHead<A> {
        let rhp = self.head;
        if !rhp.is_null() {
            self.len -= 1;
            // SAFETY: the caller's.
            self.head = unsafe { (*rhp).next.load(Relaxed) };
        }
        rhp
    }
}

impl<A: Arch> Default for RcuCblist<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// The slot behind a tail pointer.
///
/// # Safety
/// `p` came from `tails`, whose callbacks are alive.
#[inline(always)]
unsafe fn slot<'a, A: Arch>(p: *mut RcuSlot<A>) -> &'a RcuSlot<A> {
    // SAFETY: the caller's.
    unsafe { &*p }
}

impl<A: Arch> RcuSegcblist<A> {
    /// A list that [`RcuSegcblist::init`] must still make usable where it will stay: it points at itself.
    pub fn new() -> Self {
        RcuSegcblist {
            head: Atomic::new(null_mut()),
            tails: std::array::from_fn(|_| Plain::new(null_mut())),
            gp_seq: std::array::from_fn(|_| Plain::new(0)),
            len: Atomic::new(0),
            seglen: std::array::from_fn(|_| Plain::new(0)),
            flags: Plain::new(0),
        }
    }

    #[inline(always)]
    fn head_slot(&self) -> *mut RcuSlot<A> {
        (&raw const self.head).cast_mut()
    }

    /// `rcu_segcblist_init()`
    pub fn init(&self) {
        self.head.store(null_mut(), Relaxed);
        for i in 0..RCU_CBLIST_NSEGS {
            self.tails[i].set(self.head_slot());
            self.seglen[i].set(0);
        }
        self.len.store(0, Relaxed);
        self.flags.set(SEGCBLIST_ENABLED);
    }

    /// `rcu_segcblist_n_cbs()`; also from other CPUs.
    #[inline(always)]
    pub fn n_cbs(&self) -> i64 {
        self.len.load(Relaxed)
    }

    /// `rcu_segcblist_empty()`
    #[inline(always)]
    pub fn empty(&self) -> bool {
        self.head.load(Relaxed).is_null()
    }

    /// `rcu_segcblist_ready_cbs()`
    #[inline(always)]
    pub fn ready_cbs(&self) -> bool {
        self.head_slot() != self.tails[RCU_DONE_TAIL].get()
    }

    /// `rcu_segcblist_restempty()`: whether all segments after `seg` are empty.
    #[inline(always)]
    pub fn restempty(&self, seg: usize) -> bool {
        // SAFETY: an invariant of the list: tails point at head or at a live callback's next.
        unsafe { slot(self.tails[seg].get()) }.load(Relaxed).is_null()
    }

    /// `rcu_segcblist_segempty()`
    #[inline(always)]
    pub fn segempty(&self, seg: usize) -> bool {
        if seg == RCU_DONE_TAIL { !self.ready_cbs() } else { self.tails[seg - 1].get() == self.tails[seg].get() }
    }

    /// `rcu_segcblist_pend_cbs()`
    #[inline(always)]
    pub fn pend_cbs(&self) -> bool {
        !self.restempty(RCU_DONE_TAIL)
    }

    /// `rcu_segcblist_first_pend_cb()`
    #[inline(always)]
    pub fn first_pend_cb(&self) -> *mut RcuHead<A> {
        // SAFETY: as in restempty().
        unsafe { slot(self.tails[RCU_DONE_TAIL].get()) }.load(Relaxed)
    }

    /// `rcu_segcblist_get_seglen()`
    #[inline(always)]
    pub fn get_seglen(&self, seg: usize) -> i64 {
        self.seglen[seg].get()
    }

    /// `rcu_segcblist_n_segment_cbs()`
    pub fn n_segment_cbs(&self) -> i64 {
        (0..RCU_CBLIST_NSEGS).map(|i| self.seglen[i].get()).sum()
    }

    #[inline(always)]
    fn add_seglen(&self, seg: usize, v: i64) {
        self.seglen[seg].set(self.seglen[seg].get() + v);
    }

    fn move_seglen(&self, from: usize, to: usize) {
        let len = self.seglen[from].get();
        if from != to && len != 0 {
            self.add_seglen(to, len);
            self.seglen[from].set(0);
        }
    }

    /// `rcu_segcblist_add_len()`
    #[inline(always)]
    pub fn add_len(&self, v: i64) {
        // ORDER: full on both sides; meets rcu_barrier(), which skips a CPU whose len it sees as 0. From 0: a
        // call_rcu() that returned before rcu_barrier() began is seen. To 0: the callbacks' effects come before.
        self.len.fetch_add(v, Full);
    }

    /// `rcu_segcblist_enqueue()`
    ///
    /// # Safety
    /// `rhp` is alive until it is called, and on no list.
    #[inline(always)]
    pub unsafe fn enqueue(&self, rhp: *mut RcuHead<A>) {
        self.add_len(1);
        self.add_seglen(RCU_NEXT_TAIL, 1);
        // SAFETY: the caller's, and the list's invariant.
        unsafe {
            (*rhp).next.store(null_mut(), Relaxed);
            slot(self.tails[RCU_NEXT_TAIL].get()).store(rhp, Relaxed);
            self.tails[RCU_NEXT_TAIL].set((&raw const (*rhp).next).cast_mut());
        }
    }

    /// `rcu_segcblist_entrain()`: behind the last callback there is, for `rcu_barrier()`; false if there is none.
    ///
    /// # Safety
    /// As for [`RcuSegcblist::enqueue`].
    pub unsafe fn entrain(&self, rhp: *mut RcuHead<A>) -> bool {
        if self.n_cbs() == 0 {
            return false;
        }
        self.add_len(1);
        // ORDER: full; the count comes before the callback, for rcu_barrier() calls that overlap.
        smp_mb::<A>();
        let mut i = RCU_NEXT_TAIL;
        while i > RCU_DONE_TAIL && self.segempty(i) {
            i -= 1;
        }
        self.add_seglen(i, 1);
        // SAFETY: the caller's, and the list's invariant.
        unsafe {
            (*rhp).next.store(null_mut(), Relaxed);
            slot(self.tails[i].get()).store(rhp, Relaxed);
            for t in &self.tails[i..] {
                t.set((&raw const (*rhp).next).cast_mut());
            }
        }
        true
    }

    /// `rcu_segcblist_extract_done_cbs()`: cuts the ready ones off; `len` stays.
    pub fn extract_done_cbs(&self, rclp: &mut RcuCblist<A>) {
        if !self.ready_cbs() {
            return;
        }
        let done = self.tails[RCU_DONE_TAIL].get();
        debug_assert!(rclp.head.is_null());
        rclp.len = self.seglen[RCU_DONE_TAIL].get();
        rclp.head = self.head.load(Relaxed);
        rclp.tail = done;
        // SAFETY: the list's invariant.
        let done_slot = unsafe { slot(done) };
        self.head.store(done_slot.load(Relaxed), Relaxed);
        done_slot.store(null_mut(), Relaxed);
        for t in self.tails.iter().rev() {
            if t.get() == done {
                t.set(self.head_slot());
            }
        }
        self.seglen[RCU_DONE_TAIL].set(0);
    }

    /// Cuts everything off, ready or not; `len` stays.
    pub fn extract_all(&self, rclp: &mut RcuCblist<A>) {
        let last = self.tails[RCU_NEXT_TAIL].get();
        for (i, t) in self.tails.iter().enumerate() {
            t.set(last);
            self.move_seglen(i, RCU_DONE_TAIL);
        }
        self.extract_done_cbs(rclp);
    }

    /// `rcu_segcblist_insert_done_cbs()`: puts what a batch left back to the front.
    pub fn insert_done_cbs(&self, rclp: &mut RcuCblist<A>) {
        if rclp.head.is_null() {
            return;
        }
        self.add_seglen(RCU_DONE_TAIL, rclp.len);
        // SAFETY: the last callback of the batch's list is still in it, since the list is not empty.
        unsafe { slot(rclp.tail) }.store(self.head.load(Relaxed), Relaxed);
        self.head.store(rclp.head, Relaxed);
        for t in &self.tails {
            if t.get() != self.head_slot() {
                break;
            }
            t.set(rclp.tail);
        }
        *rclp = RcuCblist::new();
    }

    /// `rcu_segcblist_insert_pend_cbs()`: behind everything, unlabelled; `len` has counted them.
    ///
    /// # Safety
    /// As for [`RcuSegcblist::enqueue`], for each.
    pub unsafe fn insert_pend_cbs(&self, rclp: &mut RcuCblist<A>) {
        if rclp.head.is_null() {
            return;
        }
        self.add_seglen(RCU_NEXT_TAIL, rclp.len);
        // SAFETY: the caller's, and the list's invariant.
        unsafe { slot(self.tails[RCU_NEXT_TAIL].get()) }.store(rclp.head, Relaxed);
        self.tails[RCU_NEXT_TAIL].set(rclp.tail);
        *rclp = RcuCblist::new();
    }

    /// `rcu_segcblist_nextgp()`: the label of the first callback that waits.
    pub fn nextgp(&self) -> Option<u64> {
        self.pend_cbs().then(|| self.gp_seq[RCU_WAIT_TAIL].get())
    }

    /// `rcu_segcblist_advance()`: what waited for `seq` or earlier becomes ready.
    pub fn advance(&self, seq: u64) {
        if self.restempty(RCU_DONE_TAIL) {
            return;
        }
        let mut i = RCU_WAIT_TAIL;
        while i < RCU_NEXT_TAIL && !ulong_cmp_lt(seq, self.gp_seq[i].get()) {
            self.tails[RCU_DONE_TAIL].set(self.tails[i].get());
            self.move_seglen(i, RCU_DONE_TAIL);
            i += 1;
        }
        if i == RCU_WAIT_TAIL {
            return;
        }
        // Tails of the segments just emptied lie behind DONE's now.
        for t in &self.tails[RCU_WAIT_TAIL..i] {
            t.set(self.tails[RCU_DONE_TAIL].get());
        }
        let mut j = RCU_WAIT_TAIL;
        while i < RCU_NEXT_TAIL && self.tails[j].get() != self.tails[RCU_NEXT_TAIL].get() {
            self.tails[j].set(self.tails[i].get());
            self.move_seglen(i, j);
            self.gp_seq[j].set(self.gp_seq[i].get());
            i += 1;
            j += 1;
        }
    }

    /// `rcu_segcblist_accelerate()`: labels what has no label, or a later one, with `seq`; whether anything waits for
    /// `seq` now.
    pub fn accelerate(&self, seq: u64) -> bool {
        if self.restempty(RCU_DONE_TAIL) {
            return false;
        }
        let mut i = RCU_NEXT_READY_TAIL;
        while i > RCU_DONE_TAIL && (self.segempty(i) || !ulong_cmp_lt(self.gp_seq[i].get(), seq)) {
            i -= 1;
        }
        if self.restempty(i) || i + 1 >= RCU_NEXT_TAIL {
            return false;
        }
        i += 1;
        for j in i + 1..=RCU_NEXT_TAIL {
            self.move_seglen(j, i);
        }
        for k in i..RCU_NEXT_TAIL {
            self.tails[k].set(self.tails[RCU_NEXT_TAIL].get());
            self.gp_seq[k].set(seq);
        }
        true
    }
}

impl<A: Arch> Default for RcuSegcblist<A> {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(std::mem::size_of::<RcuSegcblist<crate::arch::Native>>() == 120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;
    use crate::rcu::rcu_seq::rcu_seq_snap_of;
    use proptest::prelude::*;

    type Head = RcuHead<Native>;

    /// The list as a reader of the chapter would write it: vectors, and labels beside them.
    #[derive(Default)]
    struct Naive {
        seg: [Vec<usize>; 4],
        label: [u64; 4],
        batch: Vec<usize>,
    }
    impl Naive {
        fn advance(&mut self, seq: u64) {
            let mut moved = 0;
            while moved < 2 && !ulong_cmp_lt(seq, self.label[1 + moved]) {
                moved += 1;
            }
            if self.seg[1..].iter().all(Vec::is_empty) || moved == 0 {
                return;
            }
            for i in 1..=moved {
                let s = std::mem::take(&mut self.seg[i]);
                self.seg[0].extend(s);
            }
            if moved == 1 && !(self.seg[2].is_empty() && self.seg[3].is_empty()) {
                self.seg[1] = std::mem::take(&mut self.seg[2]);
                self.label[1] = self.label[2];
            }
        }
        fn accelerate(&mut self, s: u64) -> bool {
            let i = (1..=2).rev().find(|&i| !self.seg[i].is_empty() && ulong_cmp_lt(self.label[i], s)).unwrap_or(0);
            if i == 2 || self.seg[i + 1..].iter().all(Vec::is_empty) {
                return false;
            }
            for k in i + 2..4 {
                let v = std::mem::take(&mut self.seg[k]);
                self.seg[i + 1].extend(v);
            }
            for l in &mut self.label[i + 1..3] {
                *l = s;
            }
            true
        }
        fn entrain(&mut self, x: usize) -> bool {
            if self.seg.iter().all(Vec::is_empty) && self.batch.is_empty() {
                return false;
            }
            let i = (0..4).rev().find(|&i| !self.seg[i].is_empty()).unwrap_or(0);
            self.seg[i].push(x);
            true
        }
    }

    /// Segments as indices into `heads`, by walking from tail to tail.
    fn segments(l: &RcuSegcblist<Native>, heads: &[Head]) -> [Vec<usize>; 4] {
        let mut at = l.head.load(Relaxed);
        let mut from = l.head_slot();
        std::array::from_fn(|i| {
            let mut v = Vec::new();
            while from != l.tails[i].get() {
                assert!(!at.is_null(), "tail {i} is not in the list");
                v.push((at as usize - heads.as_ptr() as usize) / size_of::<Head>());
                // SAFETY: heads live as long as the test.
                unsafe {
                    from = (&raw const (*at).next).cast_mut();
                    at = (*at).next.load(Relaxed);
                }
            }
            v
        })
    }

    #[derive(Clone, Debug)]
    enum Op {
        Enqueue,
        Entrain,
        Gp(u8),
        Advance,
        Accelerate,
        Extract,
        Run(u8),
        Insert,
    }
    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Enqueue),
            1 => Just(Op::Entrain),
            3 => (1u8..9).prop_map(Op::Gp),
            2 => Just(Op::Advance),
            3 => Just(Op::Accelerate),
            1 => Just(Op::Extract),
            2 => (0u8..4).prop_map(Op::Run),
            1 => Just(Op::Insert),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
        /// R5 to R8: order, lengths and labels, against vectors.
        #[test]
        fn the_list_equals_vectors_over_random_operations(ops in prop::collection::vec(op(), 1..120)) {
            let heads: Vec<Head> = (0..ops.len()).map(|_| RcuHead::new()).collect();
            let l = Box::new(RcuSegcblist::<Native>::new());
            l.init();
            let mut n = Naive::default();
            let mut rcl = RcuCblist::new();
            let mut next = 0;
            let mut seq = 0u64.wrapping_sub(40);
            let mut out = Vec::new();
            let mut label_of = vec![None; heads.len()];
            for o in ops {
                match o {
                    // SAFETY: heads outlive the list and are queued once.
                    Op::Enqueue => unsafe {
                        l.enqueue((&raw const heads[next]).cast_mut());
                        n.seg[3].push(next);
                        next += 1;
                    },
                    // SAFETY: as above.
                    Op::Entrain => unsafe {
                        let did = l.entrain((&raw const heads[next]).cast_mut());
                        prop_assert_eq!(did, n.entrain(next));
                        if did { label_of[next] = Some(seq); }
                        next += usize::from(did);
                    },
                    Op::Gp(k) => seq = seq.wrapping_add(u64::from(k)),
                    Op::Advance => {
                        n.advance(seq);
                        l.advance(seq);
                    }
                    Op::Accelerate => {
                        let s = rcu_seq_snap_of(seq);
                        prop_assert_eq!(l.accelerate(s), n.accelerate(s));
                    }
                    Op::Extract => if rcl.head.is_null() {
                        l.extract_done_cbs(&mut rcl);
                        n.batch = std::mem::take(&mut n.seg[0]);
                    },
                    Op::Run(k) => for _ in 0..k {
                        // SAFETY: as above.
                        let h = unsafe { rcl.dequeue() };
                        if h.is_null() { break; }
                        let i = (h as usize - heads.as_ptr() as usize) / size_of::<Head>();
                        prop_assert_eq!(i, n.batch.remove(0));
                        out.push(i);
                        l.add_len(-1);
                    },
                    Op::Insert => {
                        l.insert_done_cbs(&mut rcl);
                        let old = std::mem::take(&mut n.seg[0]);
                        n.seg[0] = std::mem::take(&mut n.batch);
                        n.seg[0].extend(old);
                    }
                }
                let segs = segments(&l, &heads);
                prop_assert_eq!(&segs, &n.seg);
                for (i, s) in segs.iter().enumerate() {
                    prop_assert_eq!(l.get_seglen(i), s.len() as i64);
                    prop_assert_eq!(l.segempty(i), s.is_empty());
                }
                // R6
                prop_assert_eq!(l.n_segment_cbs() + rcl.len, l.n_cbs());
                prop_assert_eq!(l.empty(), l.n_segment_cbs() == 0);
                // R7
                if !segs[1].is_empty() && !segs[2].is_empty() {
                    prop_assert!(!ulong_cmp_lt(l.gp_seq[2].get(), l.gp_seq[1].get()));
                }
                for (s, seg) in segs.iter().enumerate() {
                    for &i in seg {
                        match s {
                            1 | 2 => label_of[i] = Some(l.gp_seq[s].get()),
                            0 => prop_assert!(label_of[i].is_some_and(|x| !ulong_cmp_lt(seq, x)), "{} is early", i),
                            _ => {}
                        }
                    }
                }
            }
            // R5
            prop_assert!(out.windows(2).all(|w| w[0] < w[1]), "{:?}", out);
        }
    }
}
