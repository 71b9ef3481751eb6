// SPDX-License-Identifier: GPL-2.0-only
//! Map, touch a few pages, unmap: page_fault1's shape with short mappings, every thread in a place of its own.
//!
//! Each thread's place is separated from the next by a hole, so that no mapping merges with another's and each cycle
//! allocates and frees exactly one VMA. One page below them stays mapped, as in a process something always is: without
//! it each unmapping would free, and each first touch build, three levels of page tables instead of one.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// Pages mapped and touched a cycle.
pub const PAGES: u64 = 4;
/// Distance of the threads' places, pages: apart by more than a page table, so that zapping one frees no other's.
const STRIDE: u64 = 1024;

/// See the module.
#[derive(Debug)]
pub struct MmapChurn;

/// One thread's place.
#[derive(Debug)]
pub struct State {
    at: u64,
}

impl Workload for MmapChurn {
    const ABOUT: About = About {
        name: "mmap_churn",
        operation: "one cycle: map 4 pages, write each, unmap",
        why: "will-it-scale page_fault1 and every malloc that goes to mmap: short-lived mappings of many threads",
        shows: "VMA allocation and freeing together with faults; in thread mode also mmap_lock's writers, each of \
                whose sections makes the other threads' faults retry",
        cannot: "lock-word bouncing: each thread faults in a VMA of its own",
        mode: Mode::Thread,
    };
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, _: Seat) -> Result<[u64; 2], Errno> {
        let below = s.map(Some(s.window()), 1)?;
        Ok([below, 0])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], seat: Seat) -> Result<State, Errno> {
        Ok(State { at: shared[0] + (1 + u64::from(seat.index)) * STRIDE * PAGE })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        s.map(Some(st.at), PAGES)?;
        for i in 0..PAGES {
            s.touch(st.at + i * PAGE)?;
        }
        s.unmap(st.at, PAGES)?;
        Ok(Step { operations: 1, faults: PAGES, exhausted: false })
    }

    fn refill<S: Space>(_: &S, _: &mut State) -> Result<(), Errno> {
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], _: Seat) -> Result<(), Errno> {
        s.unmap(shared[0], 1)
    }
}
