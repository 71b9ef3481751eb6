// SPDX-License-Identifier: GPL-2.0-only
//! For tests that must notice it: the 16-byte exchange done as loads and stores one after the other.

use super::{Kind, touch};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

thread_local! {
    static TORN: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread's machines tear exchanges.
pub(super) fn torn() -> bool {
    TORN.get()
}

/// From now on other CPUs of this thread's machines can come between the halves of an exchange of slab records.
pub fn tear_exchanges() {
    TORN.set(true);
}

/// What [`super::exchange_pair`] is not.
///
/// # Safety
/// As for [`super::exchange_pair`].
pub(super) unsafe fn exchange_pair(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
    // SAFETY: the caller's.
    let words = unsafe { [&*pair.cast::<AtomicU64>(), &*pair.add(1).cast::<AtomicU64>()] };
    for (w, old) in words.iter().zip(old) {
        touch(*w, Kind::Load);
        if w.load(Relaxed) != old {
            return false;
        }
    }
    for (w, new) in words.iter().zip(new) {
        touch(*w, Kind::Store);
        w.store(new, Relaxed);
    }
    true
}
