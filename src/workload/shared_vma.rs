// SPDX-License-Identifier: GPL-2.0-only
//! All threads in one VMA, and nothing outside of the clock: every thread write-faults a slice of its own page by page and
//! gives it back with madvise(`MADV_DONTNEED`), over and over.
//!
//! What it adds to `anon_fault`, which is PFT's shape: the giving back is timed; slices are small and lie side by side, so
//! that up to 32 threads share a page table and its lock, as the threads of a program that grows one heap do; and pages go
//! back to the CPU's own list while they are warm. The VMA's lock is so taken by faults and, in kernels whose madvise
//! locks the VMA alone (7.3), by madvise too; in 6.12 madvise is one more reader of `mmap_lock`.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// Pages of one thread's slice.
pub const PAGES: u64 = 16;

/// See the module.
#[derive(Debug)]
pub struct SharedVma;

/// One thread's slice.
#[derive(Debug)]
pub struct State {
    base: u64,
    next: u64,
}

impl Workload for SharedVma {
    const ABOUT: About = About {
        name: "shared_vma",
        operation: "one first-touch write fault; every 16th with the madvise that gives the slice of 16 pages back",
        why: "a program whose threads fault in one heap and trim it; the worst case of a lock word in the VMA",
        shows: "one lock word under all threads: faults, and madvise beside them, with page tables shared as well",
        cannot: "the free policy: no VMA is allocated or freed; the lock word alone: page table locks and, where madvise \
                 takes it, mmap_lock are shared too (anon_fault keeps those apart)",
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
        if st.next == PAGES {
            s.zap(st.base, PAGES)?;
            st.next = 0;
        }
        Ok(Step { operations: 1, faults: 1, exhausted: false })
    }

    fn refill<S: Space>(_: &S, _: &mut State) -> Result<(), Errno> {
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], seat: Seat) -> Result<(), Errno> {
        s.unmap(shared[0], PAGES * u64::from(seat.threads))
    }
}
