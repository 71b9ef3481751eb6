// SPDX-License-Identifier: GPL-2.0-only
//! Calls, results and VMAs in words.

use super::backend::{FILES, PAGE, Resource, Setup, WINDOW, signal_of};
use crate::mm::mm_types::{VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE};
use crate::mm::task_mmu::vm_flags_line;
use crate::mm::{Call, VmaInfo};
use crate::trace::flags::{self, MADV, MAP, MCL, MREMAP};

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

/// The name of an advice.
pub fn advice_name(advice: i32) -> String {
    let found = MADV.iter().find(|(_, v)| *v == advice as u64 && advice >= 0);
    found.map_or_else(|| advice.to_string(), |(n, _)| n["MADV_".len()..].to_string())
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
            let flags = flags::named(u64::from(flags & !(libc::MAP_ANONYMOUS as u32)), MAP);
            format!("mmap {}, {}, {what}, {flags}", range(addr, len), rights(prot))
        }
        Call::Munmap { addr, len } => format!("munmap {}", range(addr, len)),
        Call::Mprotect { addr, len, prot } => format!("mprotect {}, {}", range(addr, len), rights(prot)),
        Call::Madvise { addr, len, advice } => format!("madvise {}, {}", range(addr, len), advice_name(advice)),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let names = flags::named(flags.into(), MREMAP);
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
            format!("mlockall {}", flags::named(flags.into(), MCL))
        }
        Call::Munlockall => "munlockall".into(),
        Call::Mseal { addr, len } => format!("mseal {}", range(addr, len)),
        Call::Read { addr } => format!("read a byte at {}", place(addr)),
        Call::Write { addr, value } => format!("write {value} at {}", place(addr)),
        Call::Personality { read_implies_exec: on } => format!("READ_IMPLIES_EXEC {}", if on { "on" } else { "off" }),
        Call::Mdwe { bits } => format!("PR_SET_MDWE {bits}"),
        Call::Fork => "fork (what follows is the child's)".into(),
        Call::Exit => "exit (what follows is the parent's)".into(),
    }
}

/// The name of an errno, or of the signal that a result stands for.
pub fn errno_name(e: i64) -> String {
    match signal_of(-e) {
        Some((libc::SIGSEGV, 1)) => "SIGSEGV (nothing mapped)".into(),
        Some((libc::SIGSEGV, 2)) => "SIGSEGV (no right)".into(),
        Some((libc::SIGBUS, _)) => "SIGBUS".into(),
        Some((s, code)) => format!("signal {s}, code {code}"),
        None => flags::errno_name(e as i32),
    }
}

/// How a round begins, where that is not the usual way.
pub fn setup(s: &Setup) -> Option<String> {
    let mut out = Vec::new();
    if let Some(n) = s.room {
        out.push(format!("room for {n} VMAs"));
    }
    if let Some(l) = s.limit {
        let name = match l.of {
            Resource::AddressSpace => "RLIMIT_AS",
            Resource::Data => "RLIMIT_DATA",
            Resource::Memlock => "RLIMIT_MEMLOCK",
            Resource::DataHard => "RLIMIT_DATA of 0, whose hard limit",
        };
        out.push(format!("{name} leaves {} pages", l.pages));
    }
    if s.touch {
        out.push("bytes are touched by the processor".into());
    }
    if s.crowd != 0 {
        out.push(format!("{} pages mapped on both sides of the window", s.crowd));
    }
    if s.everywhere {
        out.push("placement, in the helper's whole address space".into());
    }
    (!out.is_empty()).then(|| out.join("; "))
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
    let file = match name {
        0 => String::new(),
        n if n <= FILES.len() as u64 => format!(" file {}", n - 1),
        n => format!(" shared object of VMA {}", n - 0x100),
    };
    let (flags, offset) = (vm_flags_line(v.flags), v.offset / PAGE);
    if v.start < WINDOW || v.start - WINDOW > 4096 * PAGE {
        return format!("{:#x}..{:#x} {line} offset {offset}{file} [{flags}]", v.start, v.end);
    }
    let (from, to) = ((v.start - WINDOW) / PAGE, v.end.wrapping_sub(WINDOW) / PAGE);
    format!("{from:>3}..{to:<3} {line} offset {offset:<3}{file} [{flags}]")
}
