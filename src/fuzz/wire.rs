// SPDX-License-Identifier: GPL-2.0-only
//! Calls as fixed-size records, for the helper process and for tokens: the number of the call, then its arguments.

use crate::mm::Call;

/// Words of a call.
pub const WORDS: usize = 7;
/// A call as words.
pub type Record = [u64; WORDS];

/// Names of the calls, by number.
pub const NAMES: [&str; 17] = [
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "mremap",
    "brk",
    "mlock",
    "munlock",
    "mlockall",
    "munlockall",
    "mseal",
    "read",
    "write",
    "fork",
    "exit",
    "personality",
    "mdwe",
];

/// Arguments that each has, by number.
pub const ARGS: [usize; 17] = [6, 2, 3, 3, 5, 1, 3, 2, 1, 0, 2, 1, 2, 0, 0, 1, 1];

/// A call as words.
pub fn encode(c: &Call) -> Record {
    match *c {
        Call::Mmap { addr, len, prot, flags, fd, offset } => {
            [0, addr, len, prot.into(), flags.into(), fd.map_or(u64::MAX, u64::from), offset]
        }
        Call::Munmap { addr, len } => [1, addr, len, 0, 0, 0, 0],
        Call::Mprotect { addr, len, prot } => [2, addr, len, prot.into(), 0, 0, 0],
        Call::Madvise { addr, len, advice } => [3, addr, len, advice as u32 as u64, 0, 0, 0],
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            [4, addr, old_len, new_len, flags.into(), new_addr, 0]
        }
        Call::Brk { to } => [5, to, 0, 0, 0, 0, 0],
        Call::Mlock { addr, len, flags } => [6, addr, len, flags.into(), 0, 0, 0],
        Call::Munlock { addr, len } => [7, addr, len, 0, 0, 0, 0],
        Call::Mlockall { flags } => [8, flags.into(), 0, 0, 0, 0, 0],
        Call::Munlockall => [9, 0, 0, 0, 0, 0, 0],
        Call::Mseal { addr, len } => [10, addr, len, 0, 0, 0, 0],
        Call::Read { addr } => [11, addr, 0, 0, 0, 0, 0],
        Call::Write { addr, value } => [12, addr, value.into(), 0, 0, 0, 0],
        Call::Fork => [13, 0, 0, 0, 0, 0, 0],
        Call::Exit => [14, 0, 0, 0, 0, 0, 0],
        Call::Personality { read_implies_exec } => [15, read_implies_exec.into(), 0, 0, 0, 0, 0],
        Call::Mdwe { bits } => [16, bits.into(), 0, 0, 0, 0, 0],
    }
}

/// The call that words stand for; `None` where they stand for none.
pub fn decode(r: &Record) -> Option<Call> {
    let small = |v: u64| u32::try_from(v).ok();
    Some(match r[0] {
        0 => Call::Mmap {
            addr: r[1],
            len: r[2],
            prot: small(r[3])?,
            flags: small(r[4])?,
            fd: if r[5] == u64::MAX { None } else { Some(small(r[5])?) },
            offset: r[6],
        },
        1 => Call::Munmap { addr: r[1], len: r[2] },
        2 => Call::Mprotect { addr: r[1], len: r[2], prot: small(r[3])? },
        3 => Call::Madvise { addr: r[1], len: r[2], advice: small(r[3])? as i32 },
        4 => Call::Mremap { addr: r[1], old_len: r[2], new_len: r[3], flags: small(r[4])?, new_addr: r[5] },
        5 => Call::Brk { to: r[1] },
        6 => Call::Mlock { addr: r[1], len: r[2], flags: small(r[3])? },
        7 => Call::Munlock { addr: r[1], len: r[2] },
        8 => Call::Mlockall { flags: small(r[1])? },
        9 => Call::Munlockall,
        10 => Call::Mseal { addr: r[1], len: r[2] },
        11 => Call::Read { addr: r[1] },
        12 => Call::Write { addr: r[1], value: u8::try_from(r[2]).ok()? },
        13 => Call::Fork,
        14 => Call::Exit,
        15 => Call::Personality { read_implies_exec: r[1] != 0 },
        16 => Call::Mdwe { bits: small(r[1])? },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_survives_the_wire() {
        let calls = [
            Call::Mmap { addr: 1, len: u64::MAX, prot: 3, flags: 0x22, fd: Some(1), offset: 4096 },
            Call::Mmap { addr: 1, len: 2, prot: 3, flags: 0x22, fd: None, offset: 0 },
            Call::Munmap { addr: 1, len: 2 },
            Call::Mprotect { addr: 1, len: 2, prot: 7 },
            Call::Madvise { addr: 1, len: 2, advice: -1 },
            Call::Mremap { addr: 1, old_len: 2, new_len: 3, flags: 4, new_addr: 5 },
            Call::Brk { to: 9 },
            Call::Mlock { addr: 1, len: 2, flags: 1 },
            Call::Munlock { addr: 1, len: 2 },
            Call::Mlockall { flags: 3 },
            Call::Munlockall,
            Call::Mseal { addr: 1, len: 2 },
            Call::Read { addr: 1 },
            Call::Write { addr: 1, value: 255 },
            Call::Fork,
            Call::Exit,
            Call::Personality { read_implies_exec: true },
            Call::Mdwe { bits: 3 },
        ];
        for c in calls {
            let r = encode(&c);
            assert_eq!(decode(&r), Some(c));
            assert!(r[1 + ARGS[r[0] as usize]..].iter().all(|&w| w == 0), "{c:?}: more words than arguments");
        }
        assert_eq!(decode(&[17, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[12, 0, 256, 0, 0, 0, 0]), None);
    }
}
