// SPDX-License-Identifier: GPL-2.0-only
//! Event counters: kernel names, one array a CPU, plain adds, never priced and never shared while a run lasts.
//!
//! Each floor declares its events with [`counters!`](crate::counters) in a range of slots of its own; the runner sums
//! the arrays of all CPUs after a sample and reads them by name.

use std::cell::Cell;

/// Slots of the array.
pub const SLOTS: usize = 164;

/// A counter declared by some floor.
pub trait Counter: Copy {
    /// Its slot, unique over all floors.
    fn slot(self) -> usize;
}

/// The counters of one CPU.
#[derive(Debug)]
pub struct Counters([Cell<u64>; SLOTS]);

impl Default for Counters {
    fn default() -> Self {
        Counters([const { Cell::new(0) }; SLOTS])
    }
}

impl Counters {
    /// Adds `n`.
    #[inline(always)]
    pub fn add(&self, c: impl Counter, n: u64) {
        let s = &self.0[c.slot()];
        s.set(s.get() + n);
    }
    /// Value of one.
    pub fn get(&self, c: impl Counter) -> u64 {
        self.0[c.slot()].get()
    }
    /// A copy of all slots.
    pub fn snapshot(&self) -> [u64; SLOTS] {
        std::array::from_fn(|i| self.0[i].get())
    }
}

/// Declares an enum of counters in the slots from `$base` on. Ranges: sync 0..32, rcu 32..64, maple tree 64..80, vm
/// 80..112, workload 112..120, scheduling 120..124, options of rcu 128..144, waits for mmap_lock 144..164. `NAMES`
/// pairs each name with its slot, for the runner.
#[macro_export]
macro_rules! counters {
    ($(#[$m:meta])* $vis:vis enum $name:ident in $range:expr => { $($(#[$vm:meta])* $v:ident = $text:literal),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$vm])* $v),* }
        impl $name {
            /// Every counter's name.
            pub const NAMES: &'static [&'static str] = &[$($text),*];
            /// First slot.
            pub const BASE: usize = ($range).start;
        }
        impl $crate::cpu::Counter for $name {
            #[inline(always)]
            fn slot(self) -> usize {
                const { assert!($name::NAMES.len() <= ($range).end - ($range).start) };
                $name::BASE + self as usize
            }
        }
    };
}
