// SPDX-License-Identifier: GPL-2.0-only
//! PFT's shape: one region mapped before the start, cut into a part a thread; every thread write-faults its own part
//! page by page.
//!
//! custom: PFT runs once over MemTotal/5; here a part is [`PAGES`] pages, and a thread that has used up its part drops
//! the pages (madvise DONTNEED, under mmap_lock for read, as in 6.12) with its clock stopped, so that a sample can be
//! given a length. The share of time so excluded is in each record.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// Pages of one thread's part: 512 = one page table.
pub const PAGES: u64 = 512;

/// See the module.
#[derive(Debug)]
pub struct AnonFault;

/// One thread's part.
#[derive(Debug)]
pub struct State {
    base: u64,
    next: u64,
}

impl Workload for AnonFault {
    const ABOUT: About = About {
        name: "anon_fault",
        operation: "one first-touch write fault on an anonymous page",
        why: "PFT, the page fault test of mmtests, whose table the per-VMA lock and typesafe series were argued with",
        shows: "bouncing of the VMA's lock word and of mm_lock_seq: all threads fault inside one VMA",
        cannot: "the free policy: it never allocates or frees a VMA in the timed part, so call_rcu and typesafe must \
                 come out equal here; differences are lock and layout",
        mode: Mode::Thread,
    };
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, seat: Seat) -> Result<[u64; 2], Errno> {
        let base = s.map(Some(s.window()), PAGES * u64::from(seat.threads))?;
        Ok([base, 0])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], seat: Seat) -> Result<State, Errno> {
        Ok(State { base: shared[0] + u64::from(seat.index) * PAGES * PAGE, next: 0 })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        s.touch(st.base + st.next * PAGE)?;
        st.next += 1;
        Ok(Step { operations: 1, faults: 1, exhausted: st.next == PAGES })
    }

    fn refill<S: Space>(s: &S, st: &mut State) -> Result<(), Errno> {
        s.zap(st.base, PAGES)?;
        st.next = 0;
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], seat: Seat) -> Result<(), Errno> {
        s.unmap(shared[0], PAGES * u64::from(seat.threads))
    }
}
