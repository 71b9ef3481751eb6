// SPDX-License-Identifier: GPL-2.0-only
//! The memory calls of a real program, in their order, over and over: each thread runs through the [`Program`] of a
//! recorded trace in a place of its own.
//!
//! A pass begins in an empty place and ends with one munmap of the whole place, whose time is excluded. The calls of all
//! threads of the traced program are made by one thread here: the trace says in which order they came, and nothing of
//! what they waited for.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};
use crate::trace::program::{Act, Beat, NO_TOUCH, Program};

/// Before the file in names: `trace:FILE`.
pub const PREFIX: &str = "trace:";

/// See the module.
#[derive(Debug)]
pub struct TraceLoop;

/// The workload of one recorded program, under a name that says which: the file's name and what is in it.
pub fn about_of(file: &str, hash: u64) -> About {
    let short = file.rsplit('/').next().unwrap_or(file);
    // Lives as long as the run, and there is one for each file that a run names.
    let name: &'static str = Box::leak(format!("{PREFIX}{short}#{hash:016x}").into_boxed_str());
    About { name, ..TraceLoop::ABOUT }
}

/// One thread's place and how far it is.
#[derive(Debug)]
pub struct State {
    base: u64,
    next: usize,
}

impl Workload for TraceLoop {
    const ABOUT: About = About {
        name: "trace",
        operation: "one memory call of a recorded program (trace:FILE), with the write to a page that follows it",
        why: "the mix and the order of calls of a real program: which VMAs split, merge, live short or long",
        shows: "what a variant costs a program's calls, all variants with the same ones; with several threads, the same \
                program several times in one mm",
        cannot: "the program's own pace, faults and waiting (no log has them); fork, exec and exit; files and shared \
                 memory, which are private anonymous here; the break, which is mapped and unmapped; all but the largest \
                 address space of the trace",
        mode: Mode::Thread,
    };
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, _: Seat) -> Result<[u64; 2], Errno> {
        let p = s.program().ok_or(Errno::EINVAL)?;
        Ok([s.window(), p.span])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], seat: Seat) -> Result<State, Errno> {
        Ok(State { base: shared[0] + u64::from(seat.index) * shared[1], next: 0 })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        let p: &Program = s.program().ok_or(Errno::EINVAL)?;
        let Beat { act, touch } = p.beats[st.next];
        let base = st.base;
        match act {
            Act::Map { at, pages, prot, noreserve } => s.map_as(base + at, pages, prot, noreserve)?,
            Act::Unmap { at, pages } => s.unmap(base + at, pages)?,
            Act::Protect { at, pages, prot } => s.protect(base + at, pages, prot)?,
            Act::Advise { at, pages, advice } => s.advise(base + at, pages, advice)?,
            Act::Remap { at, pages, to, new_pages } => s.remap(base + at, pages, base + to, new_pages)?,
        }
        let mut faults = 0;
        if touch != NO_TOUCH {
            s.touch(base + touch)?;
            faults = 1;
        }
        st.next += 1;
        Ok(Step { operations: 1, faults, exhausted: st.next == p.beats.len() })
    }

    fn refill<S: Space>(s: &S, st: &mut State) -> Result<(), Errno> {
        let p = s.program().ok_or(Errno::EINVAL)?;
        st.next = 0;
        s.unmap(st.base, p.span / PAGE)
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], seat: Seat) -> Result<(), Errno> {
        s.unmap(shared[0], u64::from(seat.threads) * shared[1] / PAGE)
    }
}
