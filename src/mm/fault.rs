// SPDX-License-Identifier: GPL-2.0-only
//! A page fault of user mode, from entry to exit [arch/x86/mm/fault.c:do_user_addr_fault, 6.12].
//!
//! The steps are numbered as in vma-locks.md 3. The caller is user mode: it has no page at `addr` (or may not write
//! it), and after the fault it passes the operation boundary, `cpu::tick::exit_to_user_mode()`.
//!
//! stub: signals (no killable waits), instruction fetches, protection keys, kernel-mode faults.
//! BIAS: exception entry and exit are charged in simulated time only.

use super::kconfig::{Kconfig, MmPtr};
use super::memory::{
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_TRIED, FAULT_FLAG_VMA_LOCK, FAULT_FLAG_WRITE, VM_FAULT_COMPLETED,
    VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_FAULT_RETRY, VM_FAULT_SIGBUS, access_ok, handle_mm_fault,
};
use super::mm_types::VmaFields;
use super::mmap_lock::{lock_vma_under_rcu, mmap_read_unlock, vma_end_read};
use super::stack::lock_mm_and_find_vma;
use super::vmstat::VmEvent;
use crate::arch::{Hardware, Relaxed, Work};
use crate::cpu::{Cpu, Errno};
use crate::init::Kernel;

/// The signal a fault would have ended in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// SIGSEGV, nothing mapped (`SEGV_MAPERR`).
    Maperr,
    /// SIGSEGV, mapped without the right (`SEGV_ACCERR`).
    Accerr,
    /// SIGBUS.
    Sigbus,
    /// The out-of-memory killer.
    Oom,
}

impl std::fmt::Display for FaultError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FaultError::Maperr => "nothing is mapped there",
            FaultError::Accerr => "mapped, but without the right",
            FaultError::Sigbus => "no page behind the address",
            FaultError::Oom => "out of memory",
        })
    }
}
impl std::error::Error for FaultError {}

impl From<FaultError> for Errno {
    fn from(e: FaultError) -> Errno {
        if e == FaultError::Oom { Errno::ENOMEM } else { Errno::EFAULT }
    }
}

/// `do_user_addr_fault()`: user mode read or wrote `addr`.
///
/// # Errors
/// The signal that would have been sent.
#[inline]
pub fn do_user_addr_fault<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    write: bool,
) -> Result<(), FaultError> {
    K::A::charge(Work::KernelEntry);
    cpu.count(VmEvent::Pgfault);
    // 1.
    let flags = FAULT_FLAG_ALLOW_RETRY | if write { FAULT_FLAG_WRITE } else { 0 };
    // 3.
    if let Some(vma) = lock_vma_under_rcu(cpu, k, mm, addr) {
        // 4. ORDER: relaxed: the VMA is read-locked.
        if !access_ok(vma.vm_flags().load(Relaxed), write) {
            vma_end_read::<K>(cpu, vma);
            cpu.count(VmEvent::VmaLockSuccess);
            return Err(FaultError::Accerr);
        }
        // 5.
        let fault = handle_mm_fault(cpu, k, mm, vma, addr, flags | FAULT_FLAG_VMA_LOCK);
        // 6.
        if fault & (VM_FAULT_RETRY | VM_FAULT_COMPLETED) == 0 {
            vma_end_read::<K>(cpu, vma);
        }
        // 7.
        if fault & VM_FAULT_RETRY == 0 {
            cpu.count(VmEvent::VmaLockSuccess);
            return done(fault);
        }
        // 8.
        cpu.count(VmEvent::VmaLockRetry);
        // If the page was read in meanwhile, the next try must not give the lock up again.
        let tried = if fault & VM_FAULT_MAJOR != 0 { FAULT_FLAG_TRIED } else { 0 };
        return under_mmap_lock(cpu, k, mm, addr, write, flags | tried);
    }
    under_mmap_lock(cpu, k, mm, addr, write, flags)
}

/// Steps 9 to 13.
#[cold]
#[inline(never)]
fn under_mmap_lock<K: Kconfig>(
    cpu: &Cpu<K::A>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    addr: u64,
    write: bool,
    mut flags: u32,
) -> Result<(), FaultError> {
    loop {
        // 9.
        let Some(vma) = lock_mm_and_find_vma(cpu, k, mm, addr) else { return Err(FaultError::Maperr) };
        // 10.
        if !access_ok(vma.vm_flags().load(Relaxed), write) {
            mmap_read_unlock(cpu, &*mm);
            return Err(FaultError::Accerr);
        }
        // 11.
        let fault = handle_mm_fault(cpu, k, mm, vma, addr, flags);
        // 12.
        if fault & VM_FAULT_COMPLETED != 0 {
            return Ok(());
        }
        if fault & VM_FAULT_RETRY != 0 {
            flags |= FAULT_FLAG_TRIED;
            continue;
        }
        mmap_read_unlock(cpu, &*mm);
        // 13.
        return done(fault);
    }
}

fn done(fault: u32) -> Result<(), FaultError> {
    // mm_fault_error()
    if fault & VM_FAULT_ERROR == 0 {
        Ok(())
    } else if fault & VM_FAULT_OOM != 0 {
        Err(FaultError::Oom)
    } else if fault & VM_FAULT_SIGBUS != 0 {
        Err(FaultError::Sigbus)
    } else {
        Err(FaultError::Maperr)
    }
}
