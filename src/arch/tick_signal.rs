// SPDX-License-Identifier: GPL-2.0-only
//! A real timer signal per worker, at HZ, in the native world: it says where in an operation a tick fell.
//!
//! custom: the kernel's tick is an interrupt and looks at the preempt count itself; the port's tick is taken at the next
//! operation boundary. Between the two stands a [`TickProbe`]: the signal's handler looks at the worker's counters of
//! readers and of disabled preemption and leaves one word, which the boundary takes.
//!
//! The signal is sent to the worker's own thread (`SIGEV_THREAD_ID`), so handler and worker never run at once; the words
//! they share are atomics all the same, relaxed, for the compiler's sake. The handler calls nothing.
//!
//! It cannot tell: a host that takes the CPU away delays the signal; several that fell meanwhile count as one. A worker
//! asleep in a futex is woken by each signal and goes back to sleep.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// No tick since the last look.
pub const TICK_NONE: u32 = 0;
/// One, inside a reader or with preemption disabled.
pub const TICK_BUSY: u32 = 1;
/// One, outside.
pub const TICK_QUIET: u32 = 2;

/// A word of one thread that its signal handler reads: plain moves, which the compiler leaves where they stand.
#[derive(Debug, Default)]
pub struct Depth(AtomicU32);

impl Depth {
    /// Its value.
    #[inline(always)]
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }
    /// Sets it.
    #[inline(always)]
    pub fn set(&self, v: u32) {
        self.0.store(v, Relaxed)
    }
    /// One deeper.
    #[inline(always)]
    pub fn inc(&self) {
        self.set(self.get().wrapping_add(1))
    }
    /// One less deep.
    #[inline(always)]
    pub fn dec(&self) {
        self.set(self.get().wrapping_sub(1))
    }
}

/// What handler and worker share.
#[derive(Debug, Default)]
pub struct TickProbe {
    /// `rcu_read_lock_nesting`
    pub rcu_nesting: Depth,
    /// `preempt_count`, softirqs included.
    pub preempt_count: Depth,
    /// [`TICK_NONE`], [`TICK_BUSY`] or [`TICK_QUIET`].
    pub tick: Depth,
}

impl TickProbe {
    /// What the handler does.
    fn sample(&self) {
        let busy = self.rcu_nesting.get() | self.preempt_count.get() != 0;
        self.tick.set(if busy { TICK_BUSY } else { TICK_QUIET });
    }
}

/// A running timer of the calling thread; it stops when dropped, on the same thread.
#[derive(Debug)]
pub struct TickSignal {
    timer: libc::timer_t,
}

fn signal_number() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; the value is the pointer of start(), whose referent outlives the timer.
    unsafe {
        if (*info).si_code == libc::SI_TIMER
            && let Some(p) = (*info).si_value().sival_ptr.cast::<TickProbe>().as_ref()
        {
            p.sample();
        }
    }
}

/// Installs the handler, once a process.
fn install() -> Result<(), i32> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    *DONE.get_or_init(|| {
        // SAFETY: a zeroed sigaction is a valid one; the handler is async-signal-safe: it touches three words.
        let r = unsafe {
            let mut sa: libc::sigaction = zeroed();
            sa.sa_sigaction = handler as *const () as usize;
            sa.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigemptyset(&raw mut sa.sa_mask);
            libc::sigaction(signal_number(), &raw const sa, std::ptr::null_mut())
        };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    })
}

impl TickSignal {
    /// Samples `probe` on the calling thread every `period_ns`, the first time `first_ns` from now.
    ///
    /// # Errors
    /// Where the system gives no timer.
    ///
    /// # Safety
    /// `probe` stays where it is and alive until the result is dropped, which the calling thread does.
    pub unsafe fn start(probe: *const TickProbe, first_ns: u64, period_ns: u64) -> io::Result<TickSignal> {
        install().map_err(io::Error::from_raw_os_error)?;
        let spec = |ns: u64| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: plain structs, filled before use; the pointer is only carried.
        unsafe {
            let mut ev: libc::sigevent = zeroed();
            ev.sigev_notify = libc::SIGEV_THREAD_ID;
            ev.sigev_signo = signal_number();
            ev.sigev_value = libc::sigval { sival_ptr: probe.cast_mut().cast() };
            ev.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as libc::c_int;
            let mut timer = MaybeUninit::<libc::timer_t>::uninit();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut ev, timer.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let signal = TickSignal { timer: timer.assume_init() };
            let its = libc::itimerspec { it_value: spec(first_ns.max(1)), it_interval: spec(period_ns) };
            if libc::timer_settime(signal.timer, 0, &raw const its, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(signal)
        }
    }
}

impl Drop for TickSignal {
    fn drop(&mut self) {
        // SAFETY: our timer. A signal of it that is pending for this thread is delivered before the call returns, or was
        // thrown away with the timer; none comes later.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_signal_says_what_the_counters_said() {
        let p = Box::new(TickProbe::default());
        // SAFETY: dropped below, before the probe.
        let s = unsafe { TickSignal::start(&raw const *p, 1_000_000, 1_000_000).unwrap() };
        let next = || {
            let end = Instant::now() + Duration::from_secs(5);
            loop {
                let t = p.tick.get();
                p.tick.set(TICK_NONE);
                if t != TICK_NONE {
                    // A signal between the two above was lost; the next one comes.
                    return t;
                }
                assert!(Instant::now() < end, "no signal in five seconds");
                std::hint::spin_loop();
            }
        };
        assert_eq!((next(), next()), (TICK_QUIET, TICK_QUIET));
        p.rcu_nesting.set(1);
        next();
        assert_eq!(next(), TICK_BUSY);
        p.rcu_nesting.set(0);
        p.preempt_count.set(2);
        next();
        assert_eq!(next(), TICK_BUSY);
        drop(s);
        p.tick.set(TICK_NONE);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(p.tick.get(), TICK_NONE, "a signal after the timer's end");
    }
}
