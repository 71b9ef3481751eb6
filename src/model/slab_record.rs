// SPDX-License-Identifier: GPL-2.0-only
//! Remote frees against the allocating CPU: the port's exchange loops ([`take_freelist`], [`push_chain`]) on a slab of
//! two objects, frozen by CPU 0, while others free into it.
//!
//! The record is the stand-in of `check/small_slab.rs`. What a CPU does with a slab that is its to place is a
//! race-checked word too: two that think so at once are found.
//!
//! Twins that must fail: an exchange without order; an exchange that compares the freelist alone; a CPU that
//! unfreezes an empty slab by a store.

use super::{Failure, caught, explore};
use crate::arch::loom::Loom;
use crate::arch::{Arch, Full, Plain, Relaxed};
use crate::check::small_slab::{OBJECTS, SmallSlab, word};
use crate::slab::record::{Record, push_chain, take_freelist};
use crate::slab::slub_def::SlabCounters;
use std::sync::Arc;

/// How the exchange is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// As the port does.
    Whole,
    /// Only the freelist is compared; the counters are stored.
    FreelistOnly,
    /// Both, without order.
    Relaxed,
}

struct Slab<A: Arch> {
    record: SmallSlab<A>,
    how: How,
    /// Whose the object is: 0 nobody's, else the CPU + 1.
    owner: [Plain<A, u64>; OBJECTS],
    /// Written by whoever has the slab as its own.
    place: Plain<A, u64>,
}

impl<A: Arch> Record for Slab<A> {
    fn freelist(&self) -> usize {
        self.record.freelist()
    }
    fn counters(&self) -> SlabCounters {
        self.record.counters()
    }
    fn update(&self, old: (usize, SlabCounters), new: (usize, SlabCounters)) -> bool {
        let pair = &self.record.pair;
        match self.how {
            How::Whole => self.record.update(old, new),
            How::Relaxed => pair.cmpxchg(word(old), word(new), Relaxed).is_ok(),
            How::FreelistOnly => {
                let now = pair.load(Relaxed);
                now >> 32 == old.0 as u64 && pair.cmpxchg(now, word(new), Full).is_ok()
            }
        }
    }
}

impl<A: Arch> Slab<A> {
    /// CPU 0's slab, all objects allocated by the CPUs `owners`.
    fn new(how: How, owners: [u64; OBJECTS]) -> Arc<Self> {
        Arc::new(Slab { record: SmallSlab::new(), how, owner: owners.map(|o| Plain::new(o + 1)), place: Plain::new(1) })
    }

    /// `__slab_free()` without node lists. Whether the slab is this CPU's to place now.
    fn free(&self, cpu: u64, object: usize) -> bool {
        assert_eq!(self.owner[object].get(), cpu + 1);
        self.owner[object].set(0);
        let freed = push_chain(self, object + 1, 1, || (), |f| self.record.link[object].set(f.prior as u64));
        let mine = !freed.was_frozen && freed.prior == 0;
        if mine {
            self.place.set(cpu + 1);
        }
        mine
    }

    /// `get_freelist()`: objects got, none when the slab was full and is nobody's any more.
    fn refill(&self, cpu: u64) -> Vec<usize> {
        self.place.set(cpu + 1);
        self.take(cpu, take_freelist(self, |list| list != 0).0)
    }

    fn take(&self, cpu: u64, mut list: usize) -> Vec<usize> {
        let mut got = Vec::new();
        while list != 0 {
            let object = list - 1;
            assert_eq!(self.owner[object].get(), 0, "handed out twice");
            self.owner[object].set(cpu + 1);
            list = self.record.link[object].get() as usize;
            got.push(object);
        }
        got
    }

    fn check(&self) {
        let (mut free, mut list) = (0, self.freelist());
        while list != 0 {
            assert_eq!(self.owner[list - 1].get(), 0, "free, and somebody's");
            list = self.record.link[list - 1].get() as usize;
            free += 1;
        }
        let c = self.counters();
        assert_eq!((c.inuse(), c.objects()), (OBJECTS as u32 - free, OBJECTS as u32), "inuse");
    }
}

/// CPUs 1 and 2 free an object each while CPU 0, whose slab it is, asks for more, twice. A CPU that got objects owns the
/// slab, one that got none has given it up.
fn frees_and_refills<A: Arch>(how: How, refill: fn(&Slab<A>) -> Vec<usize>) {
    let slab = Slab::<A>::new(how, [1, 2]);
    let others: Vec<_> = (0..2u64)
        .map(|i| {
            let slab = slab.clone();
            ::loom::thread::spawn(move || {
                // A slab that was given up as full is the first freer's: it freezes it for itself.
                if slab.free(i + 1, i as usize) { slab.refill(i + 1) } else { Vec::new() }
            })
        })
        .collect();
    let mut got = refill(&slab);
    let mut owns = !got.is_empty();
    if owns {
        let more = refill(&slab);
        owns = !more.is_empty();
        got.extend(more);
    }
    let mut owners = u32::from(owns);
    for t in others {
        let more = t.join().expect("a panic ends the model");
        owners += u32::from(!more.is_empty());
        got.extend(more);
    }
    slab.check();
    assert_eq!(got.len() + slab_free(&slab), OBJECTS, "every object is somewhere");
    assert_eq!(u32::from(slab.counters().frozen()), owners, "frozen, and owned by one");
}

fn slab_free<A: Arch>(slab: &Slab<A>) -> usize {
    let c = slab.counters();
    (c.objects() - c.inuse()) as usize
}

fn sound<A: Arch>() {
    frees_and_refills::<A>(How::Whole, |s| s.refill(0));
}

/// Links would be read before they are seen.
fn without_order<A: Arch>() {
    frees_and_refills::<A>(How::Relaxed, |s| s.refill(0));
}

/// An exchange that does not look at the counters.
fn freelist_only<A: Arch>() {
    frees_and_refills::<A>(How::FreelistOnly, |s| s.refill(0));
}

/// A CPU that finds its slab without free objects and gives it up by a store, as if nobody could have freed meanwhile.
fn gives_up_by_a_store<A: Arch>() {
    frees_and_refills::<A>(How::Whole, |s| {
        s.place.set(1);
        if s.freelist() == 0 {
            s.record.pair.store(SlabCounters::new(OBJECTS as u32, OBJECTS as u32, false).0, Relaxed);
            return Vec::new();
        }
        s.refill(0)
    });
}

#[test]
fn each_object_is_got_once_and_the_slab_has_one_owner() {
    println!("holds in {} executions", explore(3, sound::<Loom>));
}

#[test]
fn an_exchange_without_order_is_caught() {
    println!("{}", caught("relaxed", 3, Failure::Wrong, without_order::<Loom>));
}

#[test]
fn comparing_the_freelist_alone_is_caught() {
    let world = freelist_only::<Loom>;
    println!("{}", caught("the freelist alone", 3, Failure::Wrong, world));
}

#[test]
fn giving_a_slab_up_by_a_store_is_caught() {
    let world = gives_up_by_a_store::<Loom>;
    println!("{}", caught("a store", 3, Failure::Wrong, world));
}
