// SPDX-License-Identifier: GPL-2.0-only
//! Pinning a thread, and reading back where it is.
//!
//! core_affinity is the everyday path; it aborts the process on CPU numbers from 1024 on and loses the error number,
//! so larger numbers, wider masks and failures go through libc with a growing mask. A pin counts only after the
//! kernel's mask was read back.
//!
//! What [`verify`] cannot tell: whether the thread was elsewhere in between. A mask of one CPU that never changed
//! excludes it; a mask that someone widened and narrowed again does not show (the perf event cpu-migrations does).

use super::cpulist;

/// Largest CPU number + 1 that core_affinity can take without aborting the process.
const CORE_AFFINITY_MAX: u32 = 1024;
/// A mask of this many words ends the search for the kernel's mask size (4 million CPUs).
const MAX_WORDS: usize = 1 << 16;

/// CPUs the calling thread may run on, ascending. After [`pin`] that is one CPU, and threads started later inherit
/// it: take the list once, first thing.
pub fn allowed() -> Vec<u32> {
    let mut words = 16usize;
    while words <= MAX_WORDS {
        let mut mask = vec![0u64; words];
        // SAFETY: the buffer is as long as said.
        let r = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, words * 8, mask.as_mut_ptr()) };
        if r > 0 {
            let bits = (r as usize).min(words * 8) * 8;
            return (0..bits as u32).filter(|&c| mask[c as usize / 64] >> (c % 64) & 1 == 1).collect();
        }
        words *= 2;
    }
    Vec::new()
}

/// Pins the calling thread to `cpu`, then reads the mask back.
///
/// # Errors
/// A sentence with the operating system's reason, or saying that the mask read back is another one.
pub fn pin(cpu: u32) -> Result<(), String> {
    let through_library =
        cpu < CORE_AFFINITY_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: cpu as usize });
    if !through_library {
        set_mask(&[cpu]).map_err(|e| format!("CPU {cpu}: {e}"))?;
    }
    match allowed().as_slice() {
        [c] if *c == cpu => Ok(()),
        other => Err(format!("CPU {cpu}: the mask read back is {}", cpulist::format(other))),
    }
}

/// Lets the calling thread run on `cpus`: whole cores, a node, or what [`allowed`] said before a pin.
///
/// # Errors
/// The operating system's reason; an empty list is EINVAL, as in the kernel.
pub fn set_mask(cpus: &[u32]) -> Result<(), String> {
    let words = cpus.iter().max().map_or(1, |&c| c as usize / 64 + 1);
    if words > MAX_WORDS {
        return Err(format!("CPU numbers up to {} are possible", MAX_WORDS * 64 - 1));
    }
    let mut mask = vec![0u64; words];
    for &c in cpus {
        mask[c as usize / 64] |= 1 << (c % 64);
    }
    // SAFETY: the buffer is as long as said; the kernel ignores bits beyond its own mask.
    let r = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len() * 8, mask.as_ptr()) };
    match r {
        0 => Ok(()),
        _ => Err(format!("sched_setaffinity: {}", std::io::Error::last_os_error())),
    }
}

/// The CPU the calling thread runs on right now; `u32::MAX` if the kernel does not say.
pub fn current_cpu() -> u32 {
    // SAFETY: no arguments.
    let r = unsafe { libc::sched_getcpu() };
    u32::try_from(r).unwrap_or(u32::MAX)
}

/// Whether the calling thread is still pinned to `cpu` and runs there. Call it after the measured span, in the
/// worker.
///
/// # Errors
/// A sentence saying what was found instead.
pub fn verify(cpu: u32) -> Result<(), String> {
    match allowed().as_slice() {
        [c] if *c == cpu => {}
        other => return Err(format!("placement: the mask is {} instead of {cpu}", cpulist::format(other))),
    }
    match current_cpu() {
        c if c == cpu => Ok(()),
        u32::MAX => Err(format!("placement: pinned to {cpu}, but the running CPU cannot be read")),
        c => Err(format!("placement: runs on CPU {c} instead of {cpu}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Affinity belongs to a thread: each test takes its own.
    fn on_a_thread(f: impl FnOnce() + Send + 'static) {
        std::thread::spawn(f).join().expect("the thread's assertions hold");
    }

    #[test]
    fn a_pin_is_read_back_and_verified() {
        on_a_thread(|| {
            let before = allowed();
            assert!(!before.is_empty());
            for &cpu in &before {
                pin(cpu).unwrap();
                assert_eq!(allowed(), [cpu]);
                assert_eq!(current_cpu(), cpu);
                verify(cpu).unwrap();
            }
            set_mask(&before).unwrap();
            assert_eq!(allowed(), before);
        });
    }

    #[test]
    fn lost_placement_is_noticed() {
        on_a_thread(|| {
            let before = allowed();
            let cpu = before[0];
            pin(cpu).unwrap();
            assert!(verify(cpu + 1).unwrap_err().contains("instead of"));
            if before.len() > 1 {
                set_mask(&before).unwrap();
                let e = verify(cpu).unwrap_err();
                assert!(e.contains(&cpulist::format(&before)), "{e}");
            }
        });
    }

    #[test]
    fn absent_cpus_are_an_error_below_and_above_1024() {
        on_a_thread(|| {
            let before = allowed();
            let absent = |from: u32| (from..).find(|c| !before.contains(c)).expect("numbers do not end");
            // From 1024 on, core_affinity would abort the process.
            for cpu in [absent(1000), absent(1024), absent(5000), 4_194_303] {
                let e = pin(cpu).unwrap_err();
                assert!(e.contains(&format!("CPU {cpu}")) && e.contains("sched_setaffinity"), "{e}");
            }
            assert!(pin(u32::MAX).is_err());
            assert!(set_mask(&[]).is_err());
            assert_eq!(allowed(), before, "a failed pin changes nothing");
        });
    }

    #[test]
    fn masks_longer_than_1024_bits_are_taken() {
        on_a_thread(|| {
            let before = allowed();
            let mut wide = before.clone();
            wide.push(3000);
            // The kernel drops what it does not have.
            set_mask(&wide).unwrap();
            assert_eq!(allowed(), before);
        });
    }

    #[test]
    fn threads_inherit_the_pin() {
        on_a_thread(|| {
            let cpu = allowed()[0];
            pin(cpu).unwrap();
            let inner = std::thread::spawn(allowed).join().expect("it only reads");
            assert_eq!(inner, [cpu]);
        });
    }
}
