// SPDX-License-Identifier: GPL-2.0-only
//! Accesses to single bytes of the window: by system calls, which fail with EFAULT, or by the processor, which ends in a
//! signal.
//!
//! INVARIANT: the handler lets the program go on only behind the one instruction that may fault; a fault anywhere else is
//! the program's own and kills it.
//!
//! custom: where the processor is not x86-64, only system calls.

use super::{Helper, os_errno};
use crate::cpu::Errno;
use crate::fuzz::backend::result_of;
use std::sync::atomic::Ordering::Relaxed;

impl Helper<'_> {
    /// One byte, read as write(2) reads it.
    pub(super) fn read(&self, addr: u64) -> Result<u64, Errno> {
        // SAFETY: the kernel only reads there, or says EFAULT.
        let n = unsafe { libc::syscall(libc::SYS_pwrite64, self.fds.sink, addr, 1, 0) };
        // SAFETY: the mapping of the sink, which the call above has written.
        if n == 1 { Ok(u64::from(unsafe { self.sink.read_volatile() })) } else { Err(Errno::EFAULT) }
    }

    /// An access to a byte: `value` is written, or it is read. The result as a backend gives it.
    pub(super) fn access(&self, addr: u64, value: Option<u8>) -> i64 {
        if self.s.touch.load(Relaxed) != 0 {
            return user::access(addr, value);
        }
        let Some(v) = value else { return result_of(self.read(addr)) };
        // The file's bytes are their own offsets.
        // SAFETY: a byte of the window, as `safe()` has seen; the kernel says EFAULT where nothing can be written.
        let n = unsafe { libc::syscall(libc::SYS_pread64, self.fds.bytes, addr, 1, u64::from(v)) };
        if n == 1 { 0 } else { -i64::from(os_errno()) }
    }
}

/// Makes signals of [`Helper::access`] results instead of ends.
pub fn catch_signals() {
    user::catch();
}

/// Ends one access in a signal: of address 0, where nobody maps anything.
pub fn signal() {
    user::access(0, None);
}

#[cfg(target_arch = "x86_64")]
mod user {
    use crate::fuzz::backend::signal_result;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

    // A handler has no argument of ours: the one place for what it must know. One thread.
    /// The instruction that may fault.
    static AT: AtomicU64 = AtomicU64::new(0);
    /// Where to go on if it does.
    static BEHIND: AtomicU64 = AtomicU64::new(0);
    /// What came of it; 0: nothing.
    static SIGNAL: AtomicI64 = AtomicI64::new(0);

    extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel hands both to a handler that was asked for with SA_SIGINFO; they live until it returns.
        let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
        let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        if *rip as u64 == AT.load(Relaxed) {
            SIGNAL.store(signal_result(signal, info.si_code), Relaxed);
            *rip = BEHIND.load(Relaxed) as i64;
        } else {
            // SAFETY: the usual action, which ends the program when the instruction runs again.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }

    pub fn catch() {
        // SAFETY: plain data, then a handler of the form that SA_SIGINFO wants.
        unsafe {
            let mut a: libc::sigaction = std::mem::zeroed();
            let f: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handler;
            a.sa_sigaction = f as usize;
            a.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGSEGV, &a, std::ptr::null_mut());
            libc::sigaction(libc::SIGBUS, &a, std::ptr::null_mut());
        }
    }

    pub fn access(addr: u64, value: Option<u8>) -> i64 {
        let mut byte = value.unwrap_or(0);
        let write = value.is_some();
        // SAFETY: one load or one store of a byte where no object of this program is (the window's, or 0); a fault goes on
        // behind it. Both places are noted before.
        unsafe {
            if write {
                std::arch::asm!(
                    "lea {t}, [rip + 2f]", "mov [{at}], {t}", "lea {t}, [rip + 3f]", "mov [{behind}], {t}",
                    "2:", "mov byte ptr [{addr}], {byte}", "3:",
                    t = out(reg) _, at = in(reg) AT.as_ptr(), behind = in(reg) BEHIND.as_ptr(), addr = in(reg) addr,
                    byte = in(reg_byte) byte, options(nostack)
                );
            } else {
                std::arch::asm!(
                    "lea {t}, [rip + 2f]", "mov [{at}], {t}", "lea {t}, [rip + 3f]", "mov [{behind}], {t}",
                    "2:", "mov {byte}, byte ptr [{addr}]", "3:",
                    t = out(reg) _, at = in(reg) AT.as_ptr(), behind = in(reg) BEHIND.as_ptr(), addr = in(reg) addr,
                    byte = inout(reg_byte) byte, options(nostack)
                );
            }
        }
        match SIGNAL.swap(0, Relaxed) {
            0 if write => 0,
            0 => byte.into(),
            s => s,
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod user {
    pub fn catch() {}
    pub fn access(_: u64, _: Option<u8>) -> i64 {
        -i64::from(libc::ENOSYS)
    }
}
