// SPDX-License-Identifier: GPL-2.0-only
//! Thousands of VMAs made one by one and freed by a single munmap: frees come in a burst, all from one system call.
//!
//! Pages and holes alternate, so that no mapping merges with its neighbour. Every other mapping is written once. Each
//! thread has a place of its own in tables of its own. Mappings that stay bound all of them, above more than a leaf of the
//! tree holds, as libraries and a stack do in a program: at the tree's very end, where the port's worlds would have the last
//! place and a program has none, a mapping takes more nodes (2.62 instead of 2.25 by the rules of 6.18).
//!
//! A pass is cut into steps of `CHUNK` mappings, and a last step unmaps; a thread can so end its span between chunks,
//! at most a chunk or one munmap late. Operations count when they are mapped, so a span is fair to a pass more or less
//! of unmapping: a percent in a second.

use super::{About, Errno, Mode, PAGE, Seat, Space, Step, Workload};

/// VMAs of a storm.
pub const VMAS: u64 = 4096;
/// The same for all threads of an address space together: half of what `vm.max_map_count` allows by default.
const VMAS_ALL: u64 = 32_768;
/// VMAs mapped a step.
const CHUNK: u64 = 64;
/// Distance of two mappings, pages.
const APART: u64 = 2;
/// Distance of the threads' places, pages.
const STRIDE: u64 = 2 * VMAS * APART;
/// Mappings above.
const ABOVE: u64 = 24;

/// See the module.
#[derive(Debug)]
pub struct MunmapStorm;

/// One thread's place.
#[derive(Debug)]
pub struct State {
    at: u64,
    vmas: u64,
    mapped: u64,
}

impl Workload for MunmapStorm {
    const ABOUT: About = About {
        name: "munmap_storm",
        operation: "one VMA: map 1 page (every other one is written), to be unmapped with up to 4095 others by one munmap",
        why: "process exit, a JIT or a collector letting go of its arenas: what LKP and rcutorture call a callback flood",
        shows: "bursts of frees: callback backlog, memory held until the grace period is over, and what the callbacks \
                do to the slabs when they come all at once",
        cannot: "steady-state hot reuse (brk1, mmap_churn do): between a free and the next allocation of the object \
                 lie thousands of others here, whoever frees",
        mode: Mode::Thread,
    };
    type Shared = [u64; 2];
    type State = State;

    fn setup<S: Space>(s: &S, seat: Seat) -> Result<[u64; 2], Errno> {
        let below = s.map(Some(s.window()), 1)?;
        let above = below + (1 + u64::from(seat.threads)) * STRIDE * PAGE;
        for i in 0..ABOVE {
            s.map(Some(above + i * APART * PAGE), 1)?;
        }
        Ok([below, 0])
    }

    fn attach<S: Space>(_: &S, shared: [u64; 2], seat: Seat) -> Result<State, Errno> {
        let vmas = (VMAS_ALL / u64::from(seat.threads) / CHUNK * CHUNK).clamp(CHUNK, VMAS);
        Ok(State { at: shared[0] + (1 + u64::from(seat.index)) * STRIDE * PAGE, vmas, mapped: 0 })
    }

    #[inline(always)]
    fn step<S: Space>(s: &S, st: &mut State) -> Result<Step, Errno> {
        if st.mapped == st.vmas {
            st.mapped = 0;
            s.unmap(st.at, st.vmas * APART)?;
            return Ok(Step::default());
        }
        for i in st.mapped..st.mapped + CHUNK {
            let addr = st.at + i * APART * PAGE;
            s.map(Some(addr), 1)?;
            if i % 2 == 0 {
                s.touch(addr)?;
            }
        }
        st.mapped += CHUNK;
        Ok(Step { operations: CHUNK, faults: CHUNK / 2, exhausted: false })
    }

    fn refill<S: Space>(_: &S, _: &mut State) -> Result<(), Errno> {
        Ok(())
    }

    fn finish<S: Space>(s: &S, shared: [u64; 2], seat: Seat) -> Result<(), Errno> {
        s.unmap(shared[0], (1 + u64::from(seat.threads)) * STRIDE + ABOVE * APART)
    }
}
