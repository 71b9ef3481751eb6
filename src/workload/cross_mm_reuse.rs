// SPDX-License-Identifier: GPL-2.0-only
//! VMAs that become others under their readers: writers unmap and map again, at other addresses and in another mm, what
//! readers are about to fault in.
//!
//! Each writer (every second thread) has [`SLOTS`] slots, and each of them a mapping of [`PAGES`] pages that begins at the
//! slot's first page or at [`SHIFT`] pages behind it; readers fault in the pages that are in it either way. A writer's cycle
//! is, in turn:
//! ```text
//! shift   unmap a slot, map it at one of its two places    same address, the range changes
//! swap    unmap two, map them in the same order            the allocator hands out last come first: they change places
//! away    unmap one; in the other mm map, touch, unmap     another mm's VMA, and A's again: A, B, A
//!         it; map it again
//! ```
//! The other mm is the writer's own, on the same CPU, so that its slab hands over the very object; every [`LIVES`] visits
//! it ends, readers that strayed into it or not, and a new one begins. A thread alone is a reader that does a writer's
//! cycle every [`ALONE`] faults.
//!
//! A reader that comes while its slot is unmapped gets a fault that fails (`EFAULT`), which is counted as a fault and not as
//! an operation. On the host that would be a signal, and the other mm a process that takes turns with the writer: there
//! this workload is refused.
//!
//! custom: going over to the other mm costs nothing here, where a kernel switches processes; the same for all variants.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// Pages of a mapping.
pub const PAGES: u64 = 4;
/// Pages by which its second place is behind the first.
pub const SHIFT: u64 = 2;
/// Mappings of a writer.
pub const SLOTS: u64 = 4;
/// Visits to the other mm before it ends.
pub const LIVES: u64 = 64;
/// Faults between two writer's cycles of a thread alone.
pub const ALONE: u64 = 4;
/// Distance of slots, pages: no mapping has a neighbour to merge with.
const STRIDE: u64 = 8;
/// Distance of the writers' places, pages: apart by a page table.
const APART: u64 = 512;

/// See the module.
#[derive(Debug)]
pub struct CrossMmReuse;

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
    window: u64,
    writers: u64,
    /// This writer among the writers.
    own: u64,
    turn: u64,
    visits: u64,
    /// Faults of a thread alone.
    alone: u64,
}

fn writers(threads: u32) -> u64 {
    u64::from(threads / 2).max(1)
}

/// First page of slot `i` of writer `w`.
fn slot(window: u64, w: u64, i: u64) -> u64 {
    window + (w * APART + i * STRIDE) * PAGE
}

fn map<S: Space>(s: &S, at: u64) -> Result<(), Errno> {
    let place = at + (s.random() & 1) * SHIFT * PAGE;
    s.map(Some(place), PAGES).map(drop)
}

fn unmap<S: Space>(s: &S, at: u64) -> Result<(), Errno> {
    s.unmap(at, PAGES + SHIFT)
}

/// A writer's cycle; returns the faults it made.
fn cycle<S: Space>(s: &S, st: &mut State) -> Result<u64, Errno> {
    st.turn += 1;
    let i = s.random() % SLOTS;
    let at = slot(st.window, st.own, i);
    let mut faults = 0;
    unmap(s, at)?;
    match st.turn % 3 {
        0 => {}
        1 => {
            let other = slot(st.window, st.own, (i + 1) % SLOTS);
            unmap(s, other)?;
            map(s, other)?;
        }
        _ => {
            let away = |o: &S| {
                o.map(Some(at), PAGES)?;
                o.touch(at)?;
                o.unmap(at, PAGES)
            };
            // Without memory for another mm there is none this time.
            if let Some(r) = s.in_other(away) {
                r?;
                faults = 1;
                st.visits += 1;
                if st.visits.is_multiple_of(LIVES) {
                    s.end_other();
                }
            }
        }
    }
    map(s, at)?;
    Ok(faults)
}

impl Workload for CrossMmReuse {
    const ABOUT: About = About {
        name: "cross_mm_reuse",
        operation: "one reader's write fault that found its VMA (writers' cycles are not counted)",
        why: "the question of the thread: a reader with a pointer to what was a VMA of its mm; no existing suite reuses \
              them under readers",
        shows: "readers who find another range, another mm's VMA or a detached one, and what it costs to notice; only \
                typesafe memory can make any of it happen",
        cannot: "whether a protocol is right: a false success changes no figure here (faultline check looks for those); \
                 and ordinary programs, which hardly ever fault where they unmap",
        mode: Mode::Thread,
    };
    const NOT_ON_HOST: Option<&'static str> = Some(
        "its readers fault where nothing is mapped, which on a real kernel is a signal, and its writers change between \
         two address spaces on one CPU, which there is a switch of processes and would be all that is measured",
    );
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, seat: Seat) -> Result<[u64; 2], Errno> {
        let below = s.map(Some(s.window()), 1)?;
        let window = below + APART * PAGE;
        let writers = writers(seat.threads);
        for w in 0..writers {
            for i in 0..SLOTS {
                map(s, slot(window, w, i))?;
            }
        }
        Ok([window, writers])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], seat: Seat) -> Result<State, Errno> {
        let [window, writers] = shared;
        let role = match (seat.threads, seat.index % 2) {
            (1, _) => Role::Both,
            (_, 1) => Role::Writer,
            _ => Role::Reader,
        };
        Ok(State { role, window, writers, own: u64::from(seat.index / 2), turn: 0, visits: 0, alone: 0 })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        if st.role == Role::Writer {
            let faults = cycle(s, st)?;
            return Ok(Step { operations: 0, faults, exhausted: false });
        }
        let r = s.random();
        let (w, i, page) = (r % st.writers, (r >> 20) % SLOTS, SHIFT + (r >> 40) % (PAGES - SHIFT));
        let operations = match s.touch(slot(st.window, w, i) + page * PAGE) {
            Ok(()) => 1,
            // Unmapped at the moment.
            Err(Errno::EFAULT) => 0,
            Err(e) => return Err(e),
        };
        let mut faults = 1;
        if st.role == Role::Both {
            st.alone += 1;
            if st.alone.is_multiple_of(ALONE) {
                faults += cycle(s, st)?;
            }
        }
        Ok(Step { operations, faults, exhausted: false })
    }

    fn refill<S: Space>(_: &S, _: &mut State) -> Result<(), Errno> {
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], _: Seat) -> Result<(), Errno> {
        let [window, writers] = shared;
        s.unmap(window - APART * PAGE, 1)?;
        s.unmap(window, writers * APART)
    }
}
