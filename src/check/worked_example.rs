// SPDX-License-Identifier: GPL-2.0-only
//! The eleventh protocol of CONTRIBUTING.md, as its author would write it, compiled and checked: one file and one line of the
//! list. It is P6 with the reset where P2 has it, at the free, and under the semaphore there too: so that what a section puts back
//! has its mark still.
// The text from here to the last brace is CONTRIBUTING.md's.
use crate::arch::{Arch, Relaxed};
use crate::cpu::Cpu;
use crate::mm::mm_types::VmaFields;
use crate::mm::vma_lock::rwsem::{Member, Rwsem, Vma};
use crate::mm::vma_lock::{Claim::*, Claims};
use crate::sync::{down_write, up_write};

/// `rwsem_detach_locked_free`: detached is stored under the VMA's own semaphore, and a free resets the sequence under it.
#[derive(Clone, Copy, Debug)]
pub struct DetachLockedFree;

/// The protocol.
pub type RwsemDetachLockedFree = Rwsem<DetachLockedFree>;

impl Member for DetachLockedFree {
    const NAME: &'static str = "rwsem_detach_locked_free";
    const ORIGIN: &'static str = "2024-12-11";
    const ABOUT: &'static str =
        "detached, and at the free the sequence's reset, are stored under the VMA's own semaphore";
    const CLAIMS: Claims = [Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds, Holds];

    fn mark_detached<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        // ORDER: acquire, meets up_read() of vma_end_read(): no reader has V from here on.
        down_write(cpu, &vma.vm_lock);
        vma.detached.store(1, Relaxed);
        // ORDER: release, meets the trylock of vma_start_read(): whoever gets the lock now sees V detached at R5.
        up_write(cpu, &vma.vm_lock);
    }
    fn freed<A: Arch>(cpu: &Cpu<A>, vma: Vma<A, Self>) {
        // ORDER: acquire, meets up_read() of vma_end_read(): a stale reader that looks at the mark is gone.
        down_write(cpu, &vma.vm_lock);
        vma.vm_lock_seq().store(u32::MAX, Relaxed);
        // ORDER: release, meets the trylock of vma_start_read(): who sees the reset sees V detached.
        up_write(cpu, &vma.vm_lock);
    }
}
// The text ends.

use super::{Bound, Request, nothing_yet, show_one};
use crate::mm::vma_lock::{SCENARIOS, VmaLock};
use std::sync::{Arc, Mutex};

/// What its claims say is what is shown: out of a list that has its one line, through the macro that the program uses.
#[test]
fn the_worked_example_is_what_it_claims() {
    for (id, _) in SCENARIOS {
        let request = Request::new(RwsemDetachLockedFree::NAME, id, Bound::QUICK);
        let so_far = Arc::new(Mutex::new(nothing_yet(&request)));
        crate::__for_protocol!((request.protocol.as_str(), show_one(&request, &so_far)) RwsemDetachLockedFree,);
        let s = so_far.lock().expect("nothing panicked with it");
        assert!(s.as_declared(), "{s:?}");
    }
}

#[test]
fn the_guide_shows_the_text_that_is_compiled() {
    let here = include_str!("worked_example.rs");
    let text = here.split("CONTRIBUTING.md's.\n").nth(1).and_then(|t| t.split("// The text ends.").next()).unwrap();
    let guide = include_str!("../../CONTRIBUTING.md");
    assert!(guide.contains(text), "CONTRIBUTING.md and check/worked_example.rs differ");
}
