// SPDX-License-Identifier: GPL-2.0-only
//! Pinning a thread, and reading back where it is.
//!
//! core_affinity is the everyday path; above its limit of 1024 CPU numbers, and for reading masks back, libc with a
//! growing mask (toolbox.md 2). A pin counts only after the kernel's mask was read back.

/// Largest CPU number + 1 that core_affinity can take without aborting the process.
const CORE_AFFINITY_MAX: u32 = 1024;

/// CPUs the calling thread may run on, ascending. After [`pin`] that is one CPU, and threads started later inherit
/// it: take the list once, first thing.
pub fn allowed() -> Vec<u32> {
    let mut words = 16usize;
    loop {
        let mut mask = vec![0u64; words];
        // SAFETY: the buffer is as long as said.
        let r = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, words * 8, mask.as_mut_ptr()) };
        if r > 0 {
            let bits = r as usize * 8;
            return (0..bits as u32).filter(|&c| mask[c as usize / 64] >> (c % 64) & 1 == 1).collect();
        }
        if words > 1 << 16 {
            return Vec::new();
        }
        words *= 2;
    }
}

/// Pins the calling thread to `cpu`, then reads the mask back.
///
/// # Errors
/// A sentence with the operating system's reason, or saying that the mask read back is another one.
pub fn pin(cpu: u32) -> Result<(), String> {
    let through_library =
        cpu < CORE_AFFINITY_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: cpu as usize });
    if !through_library {
        let mut mask = vec![0u64; cpu as usize / 64 + 1];
        mask[cpu as usize / 64] |= 1 << (cpu % 64);
        // SAFETY: the buffer is as long as said.
        let r = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len() * 8, mask.as_ptr()) };
        if r != 0 {
            return Err(format!("CPU {cpu}: sched_setaffinity: {}", std::io::Error::last_os_error()));
        }
    }
    match allowed().as_slice() {
        [c] if *c == cpu => Ok(()),
        other => Err(format!("CPU {cpu}: the mask read back is {other:?}")),
    }
}

/// The CPU the calling thread runs on right now.
pub fn current_cpu() -> u32 {
    // SAFETY: no arguments.
    let r = unsafe { libc::sched_getcpu() };
    u32::try_from(r).unwrap_or(u32::MAX)
}
