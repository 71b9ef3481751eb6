// SPDX-License-Identifier: GPL-2.0-only
//! The memory system calls and user accesses of one thread, as data: what a fuzzer draws, a trace holds and a backend
//! (the port, the host's kernel, a reference model) carries out [include/linux/syscalls.h, 6.12].
//!
//! custom: a kernel has a table of numbers; here one `match` leads from a [`Call`] to the function that the kernel's
//! table names. Arguments are the system call's own, as the C library's wrappers of x86-64 pass them.

/// One system call, or one access from user mode.
///
/// Addresses and lengths are bytes and may be anything, as in user mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// mmap(2). `fd` is an index into the files that the backend was given; `None`: `MAP_ANONYMOUS` or a bad
    /// descriptor, as `flags` say.
    Mmap {
        /// Hint, or the address with `MAP_FIXED`.
        addr: u64,
        /// Bytes.
        len: u64,
        /// `PROT_*`
        prot: u32,
        /// `MAP_*`
        flags: u32,
        /// File.
        fd: Option<u32>,
        /// Bytes into the file.
        offset: u64,
    },
    /// munmap(2)
    Munmap {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// mprotect(2)
    Mprotect {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// `PROT_*`
        prot: u32,
    },
    /// madvise(2)
    Madvise {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// `MADV_*`
        advice: i32,
    },
    /// mremap(2)
    Mremap {
        /// First address.
        addr: u64,
        /// Bytes there.
        old_len: u64,
        /// Bytes wanted.
        new_len: u64,
        /// `MREMAP_*`
        flags: u32,
        /// Where to, with `MREMAP_FIXED` or as a hint with `MREMAP_DONTUNMAP`.
        new_addr: u64,
    },
    /// brk(2) as the system call: gives the break after it.
    Brk {
        /// The break wanted.
        to: u64,
    },
    /// mlock2(2); mlock(2) with `flags` 0.
    Mlock {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// 0 or `MLOCK_ONFAULT`
        flags: u32,
    },
    /// munlock(2)
    Munlock {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// mlockall(2)
    Mlockall {
        /// `MCL_*`
        flags: u32,
    },
    /// munlockall(2)
    Munlockall,
    /// mseal(2)
    Mseal {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// One byte read from user mode: gives the byte.
    Read {
        /// Where.
        addr: u64,
    },
    /// One byte written from user mode.
    Write {
        /// Where.
        addr: u64,
        /// What.
        value: u8,
    },
    /// fork(2): from here on the calls are the child's, until its [`Call::Exit`].
    Fork,
    /// The end of the running process; its parent goes on.
    Exit,
}

/// What user mode can see of one VMA: a line of `/proc/PID/smaps`, and nothing of a kernel's inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VmaInfo {
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// `VM_*` as far as `VmFlags` of smaps shows them.
    pub flags: u64,
    /// Index of the file, where there is one.
    pub file: Option<u32>,
    /// Bytes into the file at `start`; 0 without a file.
    pub offset: u64,
}
