// SPDX-License-Identifier: GPL-2.0-only
//! Calls, results and VMAs in words.

use super::backend::{FILES, PAGE, SMAPS, WINDOW};
use super::model::{MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE};
use crate::mm::mm_types::{VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE};
use crate::mm::{Call, VmaInfo};

/// An address as a page of the window, with what is over.
pub fn place(addr: u64) -> String {
    let page = addr.wrapping_sub(WINDOW) / PAGE;
    if addr < WINDOW || page > 4096 {
        return format!("{addr:#x}");
    }
    match addr % PAGE {
        0 => format!("page {page}"),
        over => format!("page {page}+{over}"),
    }
}

fn bytes(len: u64) -> String {
    if len.is_multiple_of(PAGE) && len < 1 << 32 {
        format!("{} page{}", len / PAGE, if len == PAGE { "" } else { "s" })
    } else if len < 1 << 32 {
        format!("{len} bytes")
    } else {
        format!("{len:#x} bytes")
    }
}

fn range(addr: u64, len: u64) -> String {
    format!("{}, {}", place(addr), bytes(len))
}

fn rights(prot: u32) -> String {
    let bit = |b: u32, c: char| if prot & b != 0 { c } else { '-' };
    let mut s: String = [bit(1, 'r'), bit(2, 'w'), bit(4, 'x')].iter().collect();
    if prot & !7 != 0 {
        s += &format!(" and {:#x}", prot & !7);
    }
    s
}

fn named(mut flags: u32, names: &[(u32, &str)]) -> String {
    let mut out = Vec::new();
    for (bit, name) in names {
        if flags & bit == *bit {
            out.push((*name).to_string());
            flags &= !bit;
        }
    }
    if flags != 0 {
        out.push(format!("{flags:#x}"));
    }
    out.join("|")
}

/// The name of an advice.
pub fn advice_name(advice: i32) -> String {
    let known = [
        (libc::MADV_NORMAL, "NORMAL"),
        (libc::MADV_RANDOM, "RANDOM"),
        (libc::MADV_SEQUENTIAL, "SEQUENTIAL"),
        (libc::MADV_WILLNEED, "WILLNEED"),
        (libc::MADV_DONTNEED, "DONTNEED"),
        (libc::MADV_FREE, "FREE"),
        (libc::MADV_REMOVE, "REMOVE"),
        (libc::MADV_DONTFORK, "DONTFORK"),
        (libc::MADV_DOFORK, "DOFORK"),
        (libc::MADV_MERGEABLE, "MERGEABLE"),
        (libc::MADV_UNMERGEABLE, "UNMERGEABLE"),
        (libc::MADV_HUGEPAGE, "HUGEPAGE"),
        (libc::MADV_NOHUGEPAGE, "NOHUGEPAGE"),
        (libc::MADV_DONTDUMP, "DONTDUMP"),
        (libc::MADV_DODUMP, "DODUMP"),
        (libc::MADV_WIPEONFORK, "WIPEONFORK"),
        (libc::MADV_KEEPONFORK, "KEEPONFORK"),
        (libc::MADV_COLD, "COLD"),
        (libc::MADV_PAGEOUT, "PAGEOUT"),
        (libc::MADV_POPULATE_READ, "POPULATE_READ"),
        (libc::MADV_POPULATE_WRITE, "POPULATE_WRITE"),
        (MADV_DONTNEED_LOCKED, "DONTNEED_LOCKED"),
        (MADV_GUARD_INSTALL, "GUARD_INSTALL"),
        (MADV_GUARD_REMOVE, "GUARD_REMOVE"),
    ];
    known.iter().find(|(a, _)| *a == advice).map_or_else(|| advice.to_string(), |(_, n)| (*n).into())
}

/// A call in words.
pub fn call(c: &Call) -> String {
    match *c {
        Call::Mmap { addr, len, prot, flags, fd, offset } => {
            let what = match fd {
                Some(f) => {
                    format!("file {f} from {}", place(WINDOW.wrapping_add(offset)).replacen("page", "its page", 1))
                }
                None if flags & libc::MAP_ANONYMOUS as u32 != 0 => "anonymous".into(),
                None => "a bad descriptor".into(),
            };
            let flags = named(
                flags & !(libc::MAP_ANONYMOUS as u32),
                &[
                    (libc::MAP_SHARED_VALIDATE as u32, "SHARED_VALIDATE"),
                    (libc::MAP_SHARED as u32, "SHARED"),
                    (libc::MAP_PRIVATE as u32, "PRIVATE"),
                    (8, "DROPPABLE"),
                    (libc::MAP_FIXED as u32, "FIXED"),
                    (libc::MAP_FIXED_NOREPLACE as u32, "FIXED_NOREPLACE"),
                    (libc::MAP_GROWSDOWN as u32, "GROWSDOWN"),
                    (libc::MAP_NORESERVE as u32, "NORESERVE"),
                    (libc::MAP_LOCKED as u32, "LOCKED"),
                    (libc::MAP_POPULATE as u32, "POPULATE"),
                    (libc::MAP_STACK as u32, "STACK"),
                ],
            );
            format!("mmap {}, {}, {what}, {flags}", range(addr, len), rights(prot))
        }
        Call::Munmap { addr, len } => format!("munmap {}", range(addr, len)),
        Call::Mprotect { addr, len, prot } => format!("mprotect {}, {}", range(addr, len), rights(prot)),
        Call::Madvise { addr, len, advice } => format!("madvise {}, {}", range(addr, len), advice_name(advice)),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let names = named(flags, &[(1, "MAYMOVE"), (2, "FIXED"), (4, "DONTUNMAP")]);
            let to = if flags & 6 != 0 { format!(" to {}", place(new_addr)) } else { String::new() };
            let names = if names.is_empty() { "no flags".into() } else { names };
            format!("mremap {}: {}{to}, {names}", range(addr, old_len), bytes(new_len))
        }
        Call::Brk { to } => format!("brk {}", place(to)),
        Call::Mlock { addr, len, flags } => {
            let how = match flags {
                0 => String::new(),
                1 => ", ONFAULT".into(),
                f => format!(", {f:#x}"),
            };
            format!("mlock {}{how}", range(addr, len))
        }
        Call::Munlock { addr, len } => format!("munlock {}", range(addr, len)),
        Call::Mlockall { flags } => {
            format!("mlockall {}", named(flags, &[(1, "CURRENT"), (2, "FUTURE"), (4, "ONFAULT")]))
        }
        Call::Munlockall => "munlockall".into(),
        Call::Mseal { addr, len } => format!("mseal {}", range(addr, len)),
        Call::Read { addr } => format!("read a byte at {}", place(addr)),
        Call::Write { addr, value } => format!("write {value} at {}", place(addr)),
        Call::Fork => "fork (what follows is the child's)".into(),
        Call::Exit => "exit (what follows is the parent's)".into(),
    }
}

/// The name of an errno.
pub fn errno_name(e: i64) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::EINTR, "EINTR"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENODEV, "ENODEV"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::EOVERFLOW, "EOVERFLOW"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    ];
    known.iter().find(|(n, _)| i64::from(*n) == e).map_or_else(|| format!("errno {e}"), |(_, n)| (*n).into())
}

/// A result in words.
pub fn result(c: &Call, r: i64) -> String {
    match (r, c) {
        (super::port::PANICKED, _) => "a panic".into(),
        (r, _) if r < 0 => errno_name(-r),
        (r, Call::Mmap { .. } | Call::Mremap { .. } | Call::Brk { .. }) => place(r as u64),
        (r, Call::Read { .. }) => format!("byte {r}"),
        (0, _) => "done".into(),
        (r, _) => format!("{r:#x}"),
    }
}

/// A VMA in words.
pub fn vma(v: &VmaInfo, name: u64) -> String {
    let bit = |b: u64, c: char| if v.flags & b != 0 { c } else { '-' };
    let shared = if v.flags & VM_MAYSHARE != 0 { 's' } else { 'p' };
    let line: String = [bit(VM_READ, 'r'), bit(VM_WRITE, 'w'), bit(VM_EXEC, 'x'), shared].iter().collect();
    let codes: Vec<_> = SMAPS
        .iter()
        .filter(|(_, f)| v.flags & f != 0)
        .map(|(n, _)| String::from_utf8_lossy(&n[..]).into_owned())
        .collect();
    let file = match name {
        0 => String::new(),
        n if n <= FILES.len() as u64 => format!(" file {}", n - 1),
        n => format!(" shared object of VMA {}", n - 0x100),
    };
    let (from, to) = (v.start.wrapping_sub(WINDOW) / PAGE, v.end.wrapping_sub(WINDOW) / PAGE);
    format!("{from:>3}..{to:<3} {line} offset {:<3}{file} [{}]", v.offset / PAGE, codes.join(" "))
}
