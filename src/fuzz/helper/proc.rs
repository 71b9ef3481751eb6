// SPDX-License-Identifier: GPL-2.0-only
//! What `/proc` says of an address space: `PROCMAP_QUERY`, lines of maps and smaps. Nothing here allocates.

use super::{WireVma, os_errno};
use crate::mm::mm_types::{VM_EXEC, VM_MAYSHARE, VM_READ, VM_SHARED, VM_WRITE};

/// `struct procmap_query`
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// The VMA that covers `addr`, or the next one; the errno where there is none or the call is missing.
pub fn procmap_query(fd: i32, addr: u64) -> Result<Option<WireVma>, i32> {
    const COVERING_OR_NEXT: u64 = 0x10;
    // _IOWR('f', 17, struct procmap_query)
    const REQUEST: u64 = 3 << 30 | (size_of::<ProcmapQuery>() as u64) << 16 | 0x66 << 8 | 17;
    let mut q = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: COVERING_OR_NEXT,
        query_addr: addr,
        ..ProcmapQuery::default()
    };
    // SAFETY: the structure is ours and says its size.
    if unsafe { libc::syscall(libc::SYS_ioctl, fd, REQUEST, &raw mut q) } != 0 {
        return match os_errno() {
            libc::ENOENT => Ok(None),
            e => Err(e),
        };
    }
    let bit = |b: u64, f: u64| if q.vma_flags & b != 0 { f } else { 0 };
    let flags = bit(1, VM_READ) | bit(2, VM_WRITE) | bit(4, VM_EXEC) | bit(8, VM_SHARED | VM_MAYSHARE);
    Ok(Some([q.vma_start, q.vma_end, flags, q.vma_offset, q.inode]))
}

/// A line of maps, or the first line of a VMA in smaps.
pub fn parse_line(line: &[u8]) -> Option<WireVma> {
    let mut words = line.split(|&b| b == b' ').filter(|w| !w.is_empty());
    let (range, rights) = (words.next()?, words.next()?);
    let dash = range.iter().position(|&b| b == b'-')?;
    let (start, end) = (number(&range[..dash], 16)?, number(&range[dash + 1..], 16)?);
    let offset = number(words.next()?, 16)?;
    let _device = words.next()?;
    let inode = number(words.next()?, 10)?;
    let mut flags = 0;
    for (b, f) in
        rights.iter().zip([(b'r', VM_READ), (b'w', VM_WRITE), (b'x', VM_EXEC), (b's', VM_SHARED | VM_MAYSHARE)])
    {
        flags |= if *b == f.0 { f.1 } else { 0 };
    }
    Some([start, end, flags, offset, inode])
}

pub fn number(digits: &[u8], base: u64) -> Option<u64> {
    let digit = |b: u8| (b as char).to_digit(base as u32).map(u64::from);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, &b| Some(n.wrapping_mul(base) + digit(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::backend::{PAGE, WINDOW};
    use crate::mm::task_mmu::parse_vm_flags;

    #[test]
    fn lines_of_maps_and_smaps_are_read() {
        let l = b"600000000000-600000003000 rw-s 00002000 00:01 77                         /memfd:file (deleted)";
        let want = [WINDOW, WINDOW + 3 * PAGE, VM_READ | VM_WRITE | VM_SHARED | VM_MAYSHARE, 0x2000, 77];
        assert_eq!(parse_line(l), Some(want));
        assert_eq!(parse_line(b"Size:                  4 kB"), None);
        assert_eq!(parse_line(b"VmFlags: rd wr"), None);
        assert_eq!(parse_vm_flags(b"VmFlags: rd wr mr sd 1s "), VM_READ | VM_WRITE | crate::mm::mm_types::VM_MAYREAD);
    }
}
