// SPDX-License-Identifier: GPL-2.0-only
//! will-it-scale's brk1: the break one page up, then one page down; no page is touched. Up makes a new heap VMA, down
//! removes it: one VMA allocated and one freed a pass.
//!
//! In thread mode all threads race on the one break, as will-it-scale's do: most calls then find the break where
//! another thread has put it, and the count says calls, not VMAs.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// See the module.
#[derive(Debug)]
pub struct Brk1;

/// The break before the run.
#[derive(Debug)]
pub struct State {
    base: u64,
}

impl Workload for Brk1 {
    const ABOUT: About = About {
        name: "brk1",
        operation: "one brk call (two a pass: up a page, down a page)",
        why: "the will-it-scale test on which LKP measured the SLAB_TYPESAFE_BY_RCU commit, in process mode",
        shows: "the free policy: each pass allocates and frees exactly one VMA, and in process mode (the default) \
                nothing is shared but the allocator and RCU, so call_rcu against typesafe stands alone",
        cannot: "faults and retries: no page is touched; thread mode measures mmap_lock's writers racing on one break",
        mode: Mode::Process,
    };
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, _: Seat) -> Result<[u64; 2], Errno> {
        let base = s.brk(0).next_multiple_of(PAGE);
        if s.brk(base) != base {
            return Err(Errno::ENOMEM);
        }
        Ok([base, 0])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], _: Seat) -> Result<State, Errno> {
        Ok(State { base: shared[0] })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        // A refused call returns the old break: with one thread that is an error, among racing threads another's
        // position is as good, so only values outside the two are refused.
        let up = s.brk(st.base + PAGE);
        let down = s.brk(st.base);
        if up != st.base + PAGE || down != st.base {
            return Err(Errno::ENOMEM);
        }
        Ok(Step { operations: 2, faults: 0, exhausted: false })
    }

    fn refill<S: Space>(_: &S, _: &mut State) -> Result<(), Errno> {
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], _: Seat) -> Result<(), Errno> {
        s.brk(shared[0]);
        Ok(())
    }
}
