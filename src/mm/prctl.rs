// SPDX-License-Identifier: GPL-2.0-only
//! What a process says about memory that may be executed [kernel/sys.c: prctl_set_mdwe, kernel/exec_domain.c,
//! include/linux/mman.h: map_deny_write_exec, 6.12].
//!
//! dup: both bits of `PR_SET_MDWE`, that they never change once they are set, what a child inherits; `READ_IMPLIES_EXEC` as
//! far as mmap, mprotect and brk ask for it. custom: the personality is kept with the mm, as limits are. stub: the other
//! bits of a personality; exec, which clears `READ_IMPLIES_EXEC` and treats the bits of `PR_SET_MDWE` as fork does
//! (a trace's replay does it, `trace/normalise.rs`).

use super::kconfig::{Kconfig, MmPtr};
use super::mm_types::{VM_EXEC, VM_WRITE};
use crate::cpu::Errno;

/// `READ_IMPLIES_EXEC`: what may be read may be executed.
pub const READ_IMPLIES_EXEC: u32 = 0x0040_0000;
/// `PR_MDWE_REFUSE_EXEC_GAIN`: nothing is writable and executable, and nothing becomes executable.
pub const PR_MDWE_REFUSE_EXEC_GAIN: u32 = 1;
/// `PR_MDWE_NO_INHERIT`: children begin without.
pub const PR_MDWE_NO_INHERIT: u32 = 2;

/// prctl(2) with `PR_SET_MDWE`.
///
/// # Errors
/// `EINVAL` (unknown bits, the second without the first), `EPERM` (other bits than those that are set)
pub fn prctl_set_mdwe<K: Kconfig>(mm: MmPtr<K>, bits: u32) -> Result<(), Errno> {
    if bits & !(PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT) != 0 || bits == PR_MDWE_NO_INHERIT {
        return Err(Errno::EINVAL);
    }
    let now = mm.mdwe.get();
    if now != 0 && now != bits {
        return Err(Errno::EPERM);
    }
    mm.mdwe.set(bits);
    Ok(())
}

/// personality(2), as far as `READ_IMPLIES_EXEC` goes.
pub fn set_read_implies_exec<K: Kconfig>(mm: MmPtr<K>, on: bool) {
    mm.personality.set(if on { READ_IMPLIES_EXEC } else { 0 });
}

/// `current->personality & READ_IMPLIES_EXEC`
#[inline(always)]
pub fn read_implies_exec<K: Kconfig>(mm: MmPtr<K>) -> bool {
    mm.personality.get() & READ_IMPLIES_EXEC != 0
}

/// What a child has of its parent (`mmf_init_flags()`).
pub fn mdwe_inherited(bits: u32) -> u32 {
    if bits & PR_MDWE_NO_INHERIT != 0 { 0 } else { bits }
}

/// `map_deny_write_exec()`: whether a mapping of flags `old` must not get `new`.
#[inline(always)]
pub fn map_deny_write_exec<K: Kconfig>(mm: MmPtr<K>, old: u64, new: u64) -> bool {
    mm.mdwe.get() != 0 && new & VM_EXEC != 0 && (new & VM_WRITE != 0 || old & VM_EXEC == 0)
}
