// SPDX-License-Identifier: GPL-2.0-only
//! `refcount_t`: the last one out sees everybody's work; who gets a reference sees who the object is (L12).

use crate::arch::{Arch, Atomic, Plain, Relaxed};
use crate::cpu::Cpu;
use crate::cpu::testing::for_test_set;
use crate::must_catch;
use crate::sync::Refcount;
use std::sync::Arc;

/// Two owners; the one that drops the last reference destroys, that is, writes what the other wrote.
fn last_one_out<A: Arch>() {
    struct Object<A: Arch> {
        refs: Refcount<A>,
        data: Plain<A, u32>,
        /// Who was told to free it.
        freed: Atomic<A, u32>,
    }
    let o = Arc::new(Object::<A> { refs: Refcount::new(2), data: Plain::new(0), freed: Atomic::new(0) });
    let set = for_test_set::<A>(2);
    let drop_it = |cpu: &Cpu<A>, o: &Object<A>| {
        if o.refs.dec_and_test(cpu) {
            o.data.set(o.data.get() + 1);
            o.freed.fetch_add(1, Relaxed);
        }
    };
    let other = {
        let (o, set) = (o.clone(), set.clone());
        ::loom::thread::spawn(move || {
            o.data.set(7);
            drop_it(&set.cpu(1), &o);
        })
    };
    drop_it(&set.cpu(0), &o);
    other.join().expect("a panic ends the model");
    assert_eq!((o.freed.load(Relaxed), o.data.get()), (1, 8));
}

/// Type-stable memory: an object is published by its count; a reader that gets a reference must see its identity.
fn published<A: Arch>() {
    struct Object<A: Arch> {
        refs: Refcount<A>,
        identity: Atomic<A, u32>,
    }
    let o = Arc::new(Object::<A> { refs: Refcount::new(0), identity: Atomic::new(1) });
    let other = {
        let o = o.clone();
        ::loom::thread::spawn(move || {
            o.identity.store(2, Relaxed);
            o.refs.set_release(1);
        })
    };
    let set = for_test_set::<A>(1);
    if let Ok(old) = o.refs.inc_not_zero_limited_acquire(&set.cpu(0), 100) {
        assert_eq!((old, o.identity.load(Relaxed)), (1, 2), "a reference to somebody else");
    }
    other.join().expect("a panic ends the model");
}

/// A relaxed increment between publishing and getting continues the release (LKMM and C++ agree).
fn published_and_shared<A: Arch>() {
    type Object<A> = (Refcount<A>, Atomic<A, u32>);
    let o: Arc<Object<A>> = Arc::new((Refcount::new(0), Atomic::new(1)));
    let set = for_test_set::<A>(3);
    let spawn = |id: u32, f: fn(&Cpu<A>, &Object<A>)| {
        let (o, set) = (o.clone(), set.clone());
        ::loom::thread::spawn(move || f(&set.cpu(id), &o))
    };
    let a = spawn(1, |_, o| {
        o.1.store(2, Relaxed);
        o.0.set_release(1);
    });
    let b = spawn(2, |cpu, o| {
        o.0.inc_not_zero(cpu);
    });
    if o.0.inc_not_zero_acquire(&set.cpu(0)) {
        assert_eq!(o.1.load(Relaxed), 2, "a reference to somebody else");
    }
    a.join().expect("a panic ends the model");
    b.join().expect("a panic ends the model");
}

/// A count that reaches 0 is never revived, whatever the order.
fn dead_is_dead<A: Arch>() {
    let set = for_test_set::<A>(2);
    let r = Arc::new(Refcount::<A>::new(1));
    let other = {
        let (r, set) = (r.clone(), set.clone());
        ::loom::thread::spawn(move || r.dec_and_test(&set.cpu(1)))
    };
    let got = r.inc_not_zero(&set.cpu(0));
    let freed = other.join().expect("a panic ends the model");
    assert_eq!(freed, !got, "freed while referenced, or leaked");
    assert_eq!(r.read(), u32::from(got));
}

#[test]
fn the_last_one_out_sees_everything() {
    must_catch!(last_one_out, 3, Wrong: RmwRelease, ReadFence);
}

#[test]
fn a_reference_comes_with_the_identity() {
    must_catch!(published, 3, Wrong: StoreRelease, RmwAcquire);
    must_catch!(published_and_shared, 3, Wrong: StoreRelease, RmwAcquire);
}

#[test]
fn the_dead_stay_dead() {
    super::explore(3, dead_is_dead::<crate::arch::loom::Loom>);
}
