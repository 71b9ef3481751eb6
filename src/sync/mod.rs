// SPDX-License-Identifier: GPL-2.0-only
//! Floor 2: locks and counts, under their kernel names.
//!
//! Words, layouts, orderings and who waits where are the kernel's. Spinning is real spinning; sleeping is
//! `cpu::sched`. What went off the fast paths is counted under the kernel's lock event names, [`LockEvent`].

mod lock_events;
pub mod mutex;
pub mod osq_lock;
pub mod percpu_counter;
pub mod qspinlock;
pub mod rcuwait;
pub mod refcount;
pub mod rwsem;
#[cfg(test)]
mod rwsem_probe;
mod rwsem_spin;
pub mod seqlock;
#[cfg(test)]
mod tests;
mod wait_list;

pub use lock_events::LockEvent;
pub use mutex::{Mutex, mutex_lock, mutex_lock_killable, mutex_trylock, mutex_unlock};
pub use percpu_counter::{
    PercpuCounter, PercpuCounters, percpu_counter_add, percpu_counter_add_batch, percpu_counter_destroy_many,
    percpu_counter_init_many, percpu_counter_read_positive, percpu_counter_set, percpu_counter_sum,
};
pub use qspinlock::{RawSpinLock, raw_spin_lock, raw_spin_lock_timed, raw_spin_trylock, raw_spin_unlock};
pub use rcuwait::{Rcuwait, rcuwait_wait_event, rcuwait_wait_event_killable, rcuwait_wake_up};
pub use refcount::{Refcount, Saturation};
pub use rwsem::{
    RwSemaphore, RwsemLook, down_read, down_read_killable, down_read_killable_timed, down_read_timed,
    down_read_trylock, down_write, down_write_killable, down_write_timed, down_write_trylock, downgrade_write,
    rwsem_clear_reader_owned, up_read, up_write,
};
pub use seqlock::Seqcount;
