// SPDX-License-Identifier: GPL-2.0-only
//! The memory system calls and user accesses of one thread, as data: what a fuzzer draws, a trace holds and a backend
//! (the port, the host's kernel, a reference model) carries out [include/linux/syscalls.h, 6.12].
//!
//! custom: a kernel has a table of numbers; here one `match` leads from a [`Call`] to the function that the kernel's
//! table names. Arguments are the system call's own, as the C library's wrappers of x86-64 pass them.

use super::fault::{FaultError, do_user_addr_fault};
use super::file::File;
use super::fork::{mmput, sys_fork};
use super::kconfig::{Kconfig, MmPtr};
use super::madvise::sys_madvise;
use super::mlock::{sys_mlock, sys_mlockall, sys_munlock, sys_munlockall};
use super::mmap::{MmapArgs, do_mmap, sys_brk, vm_munmap};
use super::mprotect::sys_mprotect;
use super::mremap::sys_mremap;
use super::mseal::sys_mseal;
use super::pgtable::{PTE_PFN_MASK, hardware_walk};
use super::prctl::{prctl_set_mdwe, set_read_implies_exec};
use crate::arch::arena::{KRef, PAGE_SIZE};
use crate::arch::{Atomic, Relaxed};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;

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
    /// personality(2): `READ_IMPLIES_EXEC` on or off; the other bits stay. Gives 0.
    Personality {
        /// On.
        read_implies_exec: bool,
    },
    /// prctl(2) with `PR_SET_MDWE`
    Mdwe {
        /// `PR_MDWE_*`
        bits: u32,
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

impl Call {
    /// The system call's name; of an access "touch".
    pub fn name(&self) -> &'static str {
        match self {
            Call::Mmap { .. } => "mmap",
            Call::Munmap { .. } => "munmap",
            Call::Mprotect { .. } => "mprotect",
            Call::Madvise { .. } => "madvise",
            Call::Mremap { .. } => "mremap",
            Call::Brk { .. } => "brk",
            Call::Mlock { .. } => "mlock",
            Call::Munlock { .. } => "munlock",
            Call::Mlockall { .. } => "mlockall",
            Call::Munlockall => "munlockall",
            Call::Mseal { .. } => "mseal",
            Call::Personality { .. } => "personality",
            Call::Mdwe { .. } => "prctl",
            Call::Read { .. } | Call::Write { .. } => "touch",
            Call::Fork => "fork",
            Call::Exit => "exit",
        }
    }
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
    /// Index of the file, where there is one; of a file that has none (shared anonymous memory) some larger number.
    pub file: Option<u32>,
    /// Bytes into the file at `start`; 0 without a file.
    pub offset: u64,
}

/// What a thread of the port's user mode has: the running process, its parents that wait for its end, and open files.
pub struct Process<K: Kconfig> {
    /// The running process's address space.
    pub mm: MmPtr<K>,
    /// Address spaces of the processes that forked it and wait, the direct parent last.
    pub parents: Vec<MmPtr<K>>,
    /// Open files, by descriptor. Whoever put them there drops them.
    pub files: Vec<KRef<File<K::A>>>,
}

impl<K: Kconfig> Process<K> {
    /// One process without files.
    pub fn new(mm: MmPtr<K>) -> Self {
        Process { mm, parents: Vec::new(), files: Vec::new() }
    }
}

/// Carries `call` out: what the system call returns, or the byte that was read.
///
/// # Errors
/// The call's; of an access, `EFAULT` for what would have been SIGSEGV or SIGBUS; `ENOSYS`.
pub fn syscall<K: Kconfig>(cpu: &Cpu<K::A>, k: &Kernel<K>, p: &mut Process<K>, call: &Call) -> Result<u64, Errno> {
    let mm = p.mm;
    match *call {
        Call::Mmap { addr, len, prot, flags, fd, offset } => {
            let file = fd.and_then(|fd| p.files.get(fd as usize).copied());
            do_mmap(cpu, k, mm, &MmapArgs { addr, len, prot, flags, file, offset })
        }
        Call::Munmap { addr, len } => vm_munmap(cpu, k, mm, addr, len).map(|()| 0),
        Call::Brk { to } => Ok(sys_brk(cpu, k, mm, to)),
        Call::Mprotect { addr, len, prot } => sys_mprotect(cpu, k, mm, addr, len, prot).map(|()| 0),
        Call::Madvise { addr, len, advice } => sys_madvise(cpu, k, mm, addr, len, advice).map(|()| 0),
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            sys_mremap(cpu, k, mm, addr, old_len, new_len, flags, new_addr)
        }
        Call::Mlock { addr, len, flags } => sys_mlock(cpu, k, mm, addr, len, flags).map(|()| 0),
        Call::Munlock { addr, len } => sys_munlock(cpu, k, mm, addr, len).map(|()| 0),
        Call::Mlockall { flags } => sys_mlockall(cpu, k, mm, flags).map(|()| 0),
        Call::Munlockall => sys_munlockall(cpu, k, mm).map(|()| 0),
        Call::Mseal { addr, len } => sys_mseal(cpu, k, mm, addr, len, 0).map(|()| 0),
        Call::Personality { read_implies_exec } => {
            set_read_implies_exec::<K>(mm, read_implies_exec);
            Ok(0)
        }
        Call::Mdwe { bits } => prctl_set_mdwe::<K>(mm, bits).map(|()| 0),
        Call::Read { addr } => Ok(user_access(cpu, k, mm, addr, None)?),
        Call::Write { addr, value } => Ok(user_access(cpu, k, mm, addr, Some(value))?),
        Call::Fork => {
            let child = sys_fork(cpu, k, mm)?;
            p.parents.push(std::mem::replace(&mut p.mm, child));
            Ok(0)
        }
        Call::Exit => {
            // The first process ends where its address space is put.
            let parent = p.parents.pop().ok_or(Errno::EINVAL)?;
            mmput(cpu, k, std::mem::replace(&mut p.mm, parent));
            Ok(0)
        }
    }
}

/// An access from user mode: writes `value`, or reads the byte that is there.
///
/// # Errors
/// The signal that it would have ended in.
pub fn user_access<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    value: Option<u8>,
) -> Result<u64, FaultError> {
    let byte = user_byte(cpu, k, mm, addr, value.is_some())?;
    match value {
        Some(v) => {
            byte.store(v, Relaxed);
            Ok(0)
        }
        None => Ok(byte.load(Relaxed).into()),
    }
}

/// The byte at `addr`, faulted in as the processor would: again until the entry allows the access.
fn user_byte<'k, K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &'k Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    write: bool,
) -> Result<&'k Atomic<K::A, u8>, FaultError> {
    loop {
        if let Some(pte) = hardware_walk::<K>(mm, addr, write) {
            let at = (pte & PTE_PFN_MASK) + addr % PAGE_SIZE as u64;
            // SAFETY: a byte of a page that this process maps and, being the caller, does not unmap meanwhile; arena
            // memory lives as long as the kernel; user memory is reached through atomics only.
            return Ok(unsafe { &*(at as *const Atomic<K::A, u8>) });
        }
        do_user_addr_fault(cpu, k, mm, addr, write)?;
    }
}
