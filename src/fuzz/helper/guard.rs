// SPDX-License-Identifier: GPL-2.0-only
//! What the helper does whatever it is asked: nothing that could reach its own memory.

use crate::fuzz::backend::{PAGE, WINDOW};
use crate::mm::Call;

/// Whether `c` stays in the window that ends at `end`, or fails whatever is mapped.
pub fn safe(c: &Call, end: u64) -> bool {
    const TOP: u64 = 0x7fff_ffff_f000;
    const PROT_GROWSDOWN: u32 = 0x0100_0000;
    let align = |len: u64| len.checked_add(PAGE - 1).map(|l| l & !(PAGE - 1));
    let inside =
        |addr: u64, len: u64| addr >= WINDOW && align(len).and_then(|l| addr.checked_add(l)).is_some_and(|e| e <= end);
    // Behind the window is a hole, so what stops at a hole cannot get further.
    let stops_at_holes = |addr: u64| addr >= WINDOW && addr <= end;
    let beyond = |addr: u64, len: u64| addr > TOP || len > TOP - addr;
    let fixed = |flags: u32| flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u32 != 0;
    match *c {
        // Without a fixed address nothing is overwritten.
        Call::Mmap { addr, len, flags, .. } => {
            inside(addr, len) || beyond(addr, len) || len == 0 || !fixed(flags) && len < 1 << 40
        }
        Call::Munmap { addr, len } => inside(addr, len) || beyond(addr, len),
        Call::Madvise { addr, len, .. } => {
            inside(addr, len) || align(len).is_none() || align(len).is_some_and(|l| addr.checked_add(l).is_none())
        }
        // To grow down it begins at the first mapping of the range, wherever that is.
        Call::Mprotect { addr, len, prot } if prot & PROT_GROWSDOWN != 0 => inside(addr, len),
        Call::Mprotect { addr, .. } | Call::Mseal { addr, .. } => stops_at_holes(addr),
        Call::Mlock { addr, .. } | Call::Munlock { addr, .. } => stops_at_holes(addr),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let place =
                flags & (libc::MREMAP_FIXED as u32 | 4) == 0 || inside(new_addr, new_len) || beyond(new_addr, new_len);
            inside(addr, old_len) && place || new_len == 0 || new_len > TOP && old_len <= end - WINDOW && place
        }
        Call::Brk { to } => to <= end,
        Call::Read { addr } | Call::Write { addr, .. } => (WINDOW..end).contains(&addr),
        Call::Mlockall { .. } | Call::Munlockall | Call::Personality { .. } | Call::Mdwe { .. } => true,
        Call::Fork | Call::Exit => true,
    }
}

/// Whether `c`, of a round about placement, leaves alone what was mapped before the round.
pub fn safe_everywhere(c: &Call, foreign: &[(u64, u64)]) -> bool {
    const TOP: u64 = 0x7fff_ffff_f000;
    let own = |addr: u64, len: u64| {
        let end = len.checked_add(PAGE - 1).and_then(|l| addr.checked_add(l)).map(|e| e & !(PAGE - 1));
        end.is_some_and(|e| e <= TOP && foreign.iter().all(|f| f.1 <= addr || e <= f.0))
    };
    match *c {
        Call::Mmap { addr, len, flags, .. } => flags & libc::MAP_FIXED as u32 == 0 || own(addr, len),
        Call::Munmap { addr, len } => own(addr, len),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            own(addr, old_len) && (flags & libc::MREMAP_FIXED as u32 == 0 || own(new_addr, new_len))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_a_round_about_placement_is_left_alone() {
        let foreign = [(0x5555_5555_4000, 0x5555_5555_8000), (0x7fff_f7fc_0000, 0x7fff_f7ff_f000)];
        let map = |addr: u64, flags: u32| Call::Mmap { addr, len: 3 * PAGE, prot: 0, flags, fd: None, offset: 0 };
        let remap = |addr: u64, old_len: u64, flags: u32, new_addr: u64| Call::Mremap {
            addr,
            old_len,
            new_len: old_len,
            flags,
            new_addr,
        };
        let no = [
            map(0x5555_5555_2000, 0x32),
            Call::Munmap { addr: 0x5555_5555_3000, len: PAGE + 1 },
            Call::Munmap { addr: PAGE, len: u64::MAX - PAGE },
            Call::Munmap { addr: 0x7fff_f7ff_0000, len: PAGE },
            remap(0x5555_5555_4000, PAGE, 5, 0),
            remap(PAGE, PAGE, 3, 0x5555_5555_7000),
            Call::Write { addr: 0, value: 0 },
            Call::Brk { to: 0 },
            Call::Mlockall { flags: 1 },
        ];
        for c in no {
            assert!(!safe_everywhere(&c, &foreign), "{c:?}");
        }
        let yes = [
            map(0x5555_5555_2000, 0x10_0022),
            map(0x5555_5555_8000, 0x32),
            map(0, 0x22),
            Call::Munmap { addr: 0x5555_5555_3000, len: PAGE },
            remap(PAGE, PAGE, 1, 0x5555_5555_7000),
        ];
        for c in yes {
            assert!(safe_everywhere(&c, &foreign), "{c:?}");
        }
    }

    #[test]
    fn what_could_leave_the_window_is_refused() {
        let end = WINDOW + 64 * PAGE;
        let no = [
            Call::Munmap { addr: WINDOW, len: 1 << 40 },
            Call::Munmap { addr: 0x5555_5555_4000, len: PAGE },
            Call::Madvise { addr: WINDOW, len: 1 << 46, advice: 4 },
            Call::Mmap { addr: WINDOW, len: 1 << 44, prot: 0, flags: 0x32, fd: None, offset: 0 },
            Call::Mremap { addr: WINDOW, old_len: 1 << 44, new_len: PAGE, flags: 0, new_addr: 0 },
            Call::Mremap { addr: WINDOW, old_len: PAGE, new_len: PAGE, flags: 3, new_addr: 0x5555_5555_4000 },
            Call::Brk { to: end + 1 },
            Call::Write { addr: end, value: 1 },
            Call::Mprotect { addr: 0x7fff_0000_0000, len: 4096, prot: 0 },
            Call::Mprotect { addr: WINDOW, len: 1 << 46, prot: 0x0100_0000 },
        ];
        for c in no {
            assert!(!safe(&c, end), "{c:?}");
        }
        let yes = [
            Call::Munmap { addr: WINDOW, len: 64 * PAGE },
            Call::Munmap { addr: WINDOW, len: u64::MAX },
            Call::Madvise { addr: WINDOW, len: u64::MAX, advice: 4 },
            Call::Mprotect { addr: WINDOW, len: 1 << 46, prot: 0 },
            Call::Mremap { addr: WINDOW, old_len: PAGE, new_len: 0, flags: 0, new_addr: 0 },
        ];
        for c in yes {
            assert!(safe(&c, end), "{c:?}");
        }
    }
}
