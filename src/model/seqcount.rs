// SPDX-License-Identifier: GPL-2.0-only
//! `seqcount_t`: no reader that was told all is well has seen half of a write (L11).

use crate::arch::{Arch, Atomic, Relaxed};
use crate::must_catch;
use crate::sync::Seqcount;
use std::sync::Arc;

struct Shared<A: Arch> {
    seq: Seqcount<A>,
    a: Atomic<A, u32>,
    b: Atomic<A, u32>,
}

fn torn<A: Arch>() {
    let s = Arc::new(Shared::<A> { seq: Seqcount::new(0), a: Atomic::new(0), b: Atomic::new(0) });
    let writer = {
        let s = s.clone();
        ::loom::thread::spawn(move || {
            for v in 1..=2 {
                s.seq.write_begin();
                s.a.store(v, Relaxed);
                s.b.store(v, Relaxed);
                s.seq.write_end();
            }
        })
    };
    if let Some(start) = s.seq.try_begin() {
        let (a, b) = (s.a.load(Relaxed), s.b.load(Relaxed));
        if !s.seq.read_retry(start) {
            assert_eq!(a, b, "a torn read went through");
            assert_eq!(a, start / 2, "an old value under a new sequence");
        }
    }
    writer.join().expect("a panic ends the model");
    let start = s.seq.read_begin();
    assert_eq!((start, s.a.load(Relaxed)), (4, 2));
    assert!(!s.seq.read_retry(start));
}

#[test]
fn no_torn_read_goes_through() {
    must_catch!(torn, 3, Wrong: WriteFence, ReadFence, LoadAcquire);
}
