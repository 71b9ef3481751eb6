// SPDX-License-Identifier: GPL-2.0-only
//! Time waited for `mmap_lock`: what lies between the tracepoints `mmap_lock_start_locking` and
//! `mmap_lock_acquire_returned` [include/trace/events/mmap_lock.h, 6.12], where the lock was not free.
//!
//! custom: the kernel counts nothing here; its users add up the tracepoints. A lock that is had at once is not timed, so that
//! the fast path costs what it costs without this file; one that is not costs two looks at the clock more (BIAS.md).
//!
//! Balance: the waits of a side are at most the times it took the lock.

use crate::arch::Arch;
use crate::cpu::Cpu;

crate::counters! {
    /// Waits for `mmap_lock`, by side and length.
    pub enum WaitEvent in 144..164 => {
        /// Time waited for it by readers, ns.
        ReadNs = "mmap_lock_read_wait_ns",
        /// Readers' waits of less than 1 us.
        Read0 = "mmap_lock_read_wait_lt_1us",
        /// Of 1 to 4 us.
        Read1 = "mmap_lock_read_wait_lt_4us",
        /// Of 4 to 16 us.
        Read2 = "mmap_lock_read_wait_lt_16us",
        /// Of 16 to 64 us.
        Read3 = "mmap_lock_read_wait_lt_64us",
        /// Of 64 to 256 us.
        Read4 = "mmap_lock_read_wait_lt_256us",
        /// Of 256 us to 1 ms.
        Read5 = "mmap_lock_read_wait_lt_1ms",
        /// Of 1 to 4 ms.
        Read6 = "mmap_lock_read_wait_lt_4ms",
        /// Of 4 to 16 ms.
        Read7 = "mmap_lock_read_wait_lt_16ms",
        /// Of 16 ms and more.
        Read8 = "mmap_lock_read_wait_ge_16ms",
        /// Time waited for it by writers, ns.
        WriteNs = "mmap_lock_write_wait_ns",
        /// Writers' waits of less than 1 us.
        Write0 = "mmap_lock_write_wait_lt_1us",
        /// Of 1 to 4 us.
        Write1 = "mmap_lock_write_wait_lt_4us",
        /// Of 4 to 16 us.
        Write2 = "mmap_lock_write_wait_lt_16us",
        /// Of 16 to 64 us.
        Write3 = "mmap_lock_write_wait_lt_64us",
        /// Of 64 to 256 us.
        Write4 = "mmap_lock_write_wait_lt_256us",
        /// Of 256 us to 1 ms.
        Write5 = "mmap_lock_write_wait_lt_1ms",
        /// Of 1 to 4 ms.
        Write6 = "mmap_lock_write_wait_lt_4ms",
        /// Of 4 to 16 ms.
        Write7 = "mmap_lock_write_wait_lt_16ms",
        /// Of 16 ms and more.
        Write8 = "mmap_lock_write_wait_ge_16ms",
    }
}

/// Bins of a side; each is four times as wide as the one before it, the last has no end.
pub const BINS: usize = 9;

const READ: [WaitEvent; BINS] = {
    use WaitEvent as W;
    [W::Read0, W::Read1, W::Read2, W::Read3, W::Read4, W::Read5, W::Read6, W::Read7, W::Read8]
};
const WRITE: [WaitEvent; BINS] = {
    use WaitEvent as W;
    [W::Write0, W::Write1, W::Write2, W::Write3, W::Write4, W::Write5, W::Write6, W::Write7, W::Write8]
};

/// The bin of a wait: 0 below 1 us, then by powers of four.
fn bin(ns: u64) -> usize {
    let us = ns / 1000;
    let log4 = us.checked_ilog2().map_or(0, |l| l as usize / 2 + 1);
    log4.min(BINS - 1)
}

/// A reader had to wait so long, ns.
pub(super) fn count_read_wait<A: Arch>(cpu: &Cpu<A>, ns: u64) {
    cpu.counters.add(WaitEvent::ReadNs, ns);
    cpu.count(READ[bin(ns)]);
}

/// A writer had to wait so long, ns.
pub(super) fn count_write_wait<A: Arch>(cpu: &Cpu<A>, ns: u64) {
    cpu.counters.add(WaitEvent::WriteNs, ns);
    cpu.count(WRITE[bin(ns)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_begin_where_their_names_say() {
        let ends = [1, 4, 16, 64, 256, 1000, 4000, 16_000u64];
        // A power of four, which its name rounds to the millisecond.
        for (i, us) in [1u64, 4, 16, 64, 256, 1024, 4096, 16_384].into_iter().enumerate() {
            assert_eq!((bin(us * 1000 - 1), bin(us * 1000)), (i, i + 1), "{us} us");
            assert!(us.abs_diff(ends[i]) * 40 <= us);
        }
        assert_eq!((bin(0), bin(u64::MAX)), (0, BINS - 1));
        let names = |ns: usize| &WaitEvent::NAMES[ns + 1..=ns + BINS];
        assert_eq!((READ[0] as usize, WRITE[0] as usize), (1, 1 + BINS + 1));
        for (r, w) in names(0).iter().zip(names(1 + BINS)) {
            assert_eq!(r.replace("_read_", "_write_"), *w);
        }
    }
}
