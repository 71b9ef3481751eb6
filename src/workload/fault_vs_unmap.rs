// SPDX-License-Identifier: GPL-2.0-only
//! Readers fault in long-lived VMAs while writers map and unmap beside and away from them: the retry workload.
//!
//! ```text
//! | area 0 ........ |hole| area 1 ........ |hole| ... | writers' own places
//!        512 pages   512
//! ```
//! A writer's cycle maps [`BURST`] pages, touches one, and unmaps: every second time at the end of some area, where it
//! merges with the area's VMA and is then cut off it again (the area's VMA is write-locked, and by the kernel's rules
//! freed and replaced by its survivor), else in the writer's own place. Thread 1, 5, 9, ... are writers; a thread alone
//! is a reader that does a writer's cycle every [`ALONE`] faults.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// Pages of a reader's area.
pub const PAGES: u64 = 512;
/// Pages a writer maps.
pub const BURST: u64 = 8;
/// Faults between two writer's cycles of a thread alone.
pub const ALONE: u64 = 16;
const STRIDE: u64 = 2 * PAGES;

/// See the module.
#[derive(Debug)]
pub struct FaultVsUnmap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Reader,
    Writer,
    Both,
}

/// One thread's role and place.
#[derive(Debug)]
pub struct State {
    role: Role,
    /// Window of all areas.
    window: u64,
    areas: u64,
    /// This thread's area, or a writer's own place.
    base: u64,
    next: u64,
    turn: u64,
}

fn role(seat: Seat) -> Role {
    if seat.threads == 1 {
        Role::Both
    } else if seat.index % 4 == 1 {
        Role::Writer
    } else {
        Role::Reader
    }
}

fn area(window: u64, i: u64) -> u64 {
    window + i * STRIDE * PAGE
}

fn cycle<S: Space>(s: &S, st: &mut State) -> Result<u64, Errno> {
    st.turn += 1;
    let at = if st.turn.is_multiple_of(2) {
        // The end of some reader's area: merges with its VMA.
        area(st.window, s.random() % st.areas) + PAGES * PAGE
    } else {
        // Past all areas, one place a thread.
        area(st.window, st.areas) + (st.base - st.window) + PAGES * PAGE * 2
    };
    s.map(Some(at), BURST)?;
    // Another writer may have cut the same place off again meanwhile; that is what munmap races look like.
    let hit = s.touch(at);
    s.unmap(at, BURST)?;
    Ok(u64::from(hit.is_ok()))
}

impl Workload for FaultVsUnmap {
    const ABOUT: About = About {
        name: "fault_vs_unmap",
        operation: "one reader's write fault in a long-lived VMA (writers' cycles are not counted)",
        why: "no existing suite mixes faults with mmap and munmap in one mm; the thread argued about exactly this",
        shows: "retries under mmap_lock and their causes: writers lock, free and replace the VMAs that readers fault in",
        cannot: "the free policy alone: retries depend on the writers' rate, which depends on it; compare retries per \
                 million faults together with the writers' cycles (mmap_lock_write)",
        mode: Mode::Thread,
    };
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, seat: Seat) -> Result<[u64; 2], Errno> {
        let window = s.window();
        for i in 0..u64::from(seat.threads) {
            s.map(Some(area(window, i)), PAGES)?;
        }
        Ok([window, u64::from(seat.threads)])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], seat: Seat) -> Result<State, Errno> {
        let [window, areas] = shared;
        let base = area(window, u64::from(seat.index));
        Ok(State { role: role(seat), window, areas, base, next: 0, turn: 0 })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        if st.role == Role::Writer {
            let faults = cycle(s, st)?;
            return Ok(Step { operations: 0, faults, exhausted: false });
        }
        s.touch(st.base + st.next * PAGE)?;
        st.next += 1;
        let mut faults = 1;
        if st.role == Role::Both && st.next.is_multiple_of(ALONE) {
            faults += cycle(s, st)?;
        }
        Ok(Step { operations: 1, faults, exhausted: st.next == PAGES })
    }

    fn refill<S: Space>(s: &S, st: &mut State) -> Result<(), Errno> {
        s.zap(st.base, PAGES)?;
        st.next = 0;
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], _: Seat) -> Result<(), Errno> {
        let [window, areas] = shared;
        for i in 0..areas {
            s.unmap(area(window, i), PAGES + BURST)?;
        }
        Ok(())
    }
}
