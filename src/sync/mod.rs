// SPDX-License-Identifier: GPL-2.0-only
//! Floor 2: locks and counts, under their kernel names.

pub mod qspinlock;
pub mod rcuwait;
pub mod refcount;
pub mod rwsem;
pub mod seqlock;

pub use qspinlock::{RawSpinLock, raw_spin_lock, raw_spin_trylock, raw_spin_unlock};
pub use rcuwait::{Rcuwait, rcuwait_wait_event, rcuwait_wake_up};
pub use refcount::Refcount;
pub use rwsem::{
    RwSemaphore, down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, up_read, up_write,
};
pub use seqlock::Seqcount;
