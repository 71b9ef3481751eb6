// SPDX-License-Identifier: GPL-2.0-only
//! The native world: std atomics, pinned OS threads, futexes, the processor's own clock.
//!
//! Tells: real time on this machine. Cannot tell: that an ordering is right. Words are `repr(transparent)` over std
//! atomics; a [`super::Plain`] word is a relaxed load or store, which is a plain move on every 64-bit target.
//!
//! custom: no interrupts, so preemption and interrupts are never disabled; a tick is noticed at the operation
//! boundary (`cpu/tick.rs`). Mixed-size accesses of the queued spinlock and the 16-byte exchanges are inline assembly.
//!
//! Under Miri, and with `--cfg race_check` for the thread sanitizer, words that a lock protects are ordinary memory and
//! full-word accesses stand in for the assembly, so that the tool sees both (`scripts/miri`). The 16-byte
//! exchange stays; for the sanitizer there is a fence on either side of it.

use super::prim::{IntOps, WordOps};
use super::{Arch, Arena, Fence, Hardware, Int, Job, Machine, Prim, RawCell, RawPlain, TickProbe, TickSignal, Work};
use crate::host::affinity;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Native;

/// What the processor must have beyond what the compiler assumes of its kind: on x86-64 the 16-byte exchange, which the
/// first ones of that architecture had not.
///
/// # Errors
/// What is missing, in one line.
pub fn check_processor() -> Result<(), String> {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("cmpxchg16b");
    // CASP, or a pair of exclusive accesses: every one has one of them.
    #[cfg(not(target_arch = "x86_64"))]
    let has = true;
    needs_exchange(has)
}

fn needs_exchange(has: bool) -> Result<(), String> {
    if has {
        Ok(())
    } else {
        Err("this processor has no 16-byte exchange (cmpxchg16b, the flag cx16): run it on another".into())
    }
}

/// A word: the std atomic itself.
#[repr(transparent)]
pub struct NativeCell<T: Prim>(T::Std);

impl<T: Prim> RawCell<T> for NativeCell<T> {
    #[inline(always)]
    fn new(v: T) -> Self {
        NativeCell(T::Std::new(v))
    }
    #[inline(always)]
    fn load(&self, o: Ordering) -> T {
        self.0.load(o)
    }
    #[inline(always)]
    fn store(&self, v: T, o: Ordering) {
        self.0.store(v, o)
    }
    #[inline(always)]
    fn swap(&self, v: T, o: Ordering) -> T {
        self.0.swap(v, o)
    }
    #[inline(always)]
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T> {
        self.0.compare_exchange(old, new, o)
    }
    #[inline(always)]
    fn fetch_add(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_add(v, o)
    }
    #[inline(always)]
    fn fetch_sub(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_sub(v, o)
    }
    #[inline(always)]
    fn fetch_or(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_or(v, o)
    }
    #[inline(always)]
    fn fetch_and(&self, v: T, o: Ordering) -> T
    where
        T: Int,
    {
        self.0.fetch_and(v, o)
    }
}

/// A word that a lock protects: a relaxed move.
#[cfg(not(any(miri, race_check)))]
#[repr(transparent)]
pub struct NativePlain<T: Prim>(T::Std);

#[cfg(not(any(miri, race_check)))]
impl<T: Prim> RawPlain<T> for NativePlain<T> {
    #[inline(always)]
    fn new(v: T) -> Self {
        NativePlain(T::Std::new(v))
    }
    #[inline(always)]
    fn get(&self) -> T {
        self.0.load(Ordering::Relaxed)
    }
    #[inline(always)]
    fn set(&self, v: T) {
        self.0.store(v, Ordering::Relaxed)
    }
}

/// A word that a lock protects, for tools that look for races: an ordinary access, which nothing but an order of the
/// program's own keeps from being one.
#[cfg(any(miri, race_check))]
#[repr(transparent)]
pub struct NativePlain<T: Prim>(std::cell::UnsafeCell<T>);

#[cfg(any(miri, race_check))]
impl<T: Prim> RawPlain<T> for NativePlain<T> {
    fn new(v: T) -> Self {
        NativePlain(std::cell::UnsafeCell::new(v))
    }
    fn get(&self) -> T {
        // SAFETY: the contract of `Plain`: a lock orders all accesses. Here the tool finds out.
        unsafe { *self.0.get() }
    }
    fn set(&self, v: T) {
        // SAFETY: as above.
        unsafe { *self.0.get() = v }
    }
}

/// What fences of the build for the thread sanitizer exchange: it does not know fences. They synchronise with each other
/// more than real ones do, as loom's.
#[cfg(all(race_check, not(miri)))]
static FENCE: AtomicU32 = AtomicU32::new(0);

/// Turns of a wait before the CPU is offered to somebody else: 10 to 40 us by the length of the machine's pause
/// instruction, longer than a queue of a hundred short critical sections.
const TURNS_BEFORE_YIELD: u32 = 1024;

/// `clear_page_erms()`: `rep stosb`, the kernel's way on processors with ERMS; a call there too.
///
/// # Safety
/// `len` bytes at `p` are the caller's.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn clear_page_erms(p: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        std::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") p => _, in("al") 0u8,
                        options(nostack, preserves_flags));
    }
}

/// `system_uses_lse_atomics()`. The kernel patches its code at boot; here it is a load and a branch that is always the same.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn has_lse() -> bool {
    std::arch::is_aarch64_feature_detected!("lse")
}

/// A pair exchanged by one instruction, which wants even/odd register pairs.
#[cfg(target_arch = "aarch64")]
macro_rules! casp {
    ($insn:literal, $pair:expr, $old:expr, $new:expr) => {{
        let (lo, hi): (u64, u64);
        std::arch::asm!(".arch_extension lse", concat!($insn, " x4, x5, x6, x7, [{p}]"), p = in(reg) $pair,
            inout("x4") $old[0] => lo, inout("x5") $old[1] => hi, in("x6") $new[0], in("x7") $new[1],
            options(nostack, preserves_flags));
        lo == $old[0] && hi == $old[1]
    }};
}

/// The same before ARMv8.1: only a store that succeeds says that both words were read at once, and a mismatch means
/// another attempt of the caller's in any case.
#[cfg(target_arch = "aarch64")]
macro_rules! ldxp_stxp {
    ($store:literal, $fence:literal, $pair:expr, $old:expr, $new:expr) => {{
        let differs: u64;
        std::arch::asm!("2:", "ldxp {d}, {t}, [{p}]", "eor {d}, {d}, {o0}", "eor {t}, {t}, {o1}", "orr {d}, {d}, {t}",
            "cbnz {d}, 3f", concat!($store, " {t:w}, {n0}, {n1}, [{p}]"), "cbnz {t:w}, 2b", $fence, "3:",
            p = in(reg) $pair, o0 = in(reg) $old[0], o1 = in(reg) $old[1], n0 = in(reg) $new[0], n1 = in(reg) $new[1],
            d = out(reg) differs, t = out(reg) _, options(nostack, preserves_flags));
        differs == 0
    }};
}

impl Arch for Native {
    const NAME: &'static str = "native";
    // What holds for the instruction does not for the operation in the memory model that Miri goes by: there a SeqCst
    // exchange is no fence, and with it alone rcuwait loses wake-ups.
    const RMW_IS_FULL: bool = cfg!(all(target_arch = "x86_64", not(miri)));
    type Cell<T: Prim> = NativeCell<T>;
    type PlainCell<T: Prim> = NativePlain<T>;

    #[cfg(all(race_check, not(miri)))]
    fn fence(_: Fence) {
        FENCE.fetch_add(1, Ordering::AcqRel);
    }

    #[cfg(any(miri, not(race_check)))]
    #[inline(always)]
    fn fence(f: Fence) {
        std::sync::atomic::fence(match f {
            Fence::Full => Ordering::SeqCst,
            Fence::Read => Ordering::Acquire,
            Fence::Write => Ordering::Release,
        })
    }

    #[inline(always)]
    fn now() -> u64 {
        clock_ns()
    }

    #[inline(always)]
    fn cpu_relax() {
        std::hint::spin_loop()
    }

    // PORT: a kernel's lock holder cannot be driven off its CPU. Here it can be, by the very thread that waits for it: two
    // threads of one CPU would hand a fair lock back and forth at one time slice an acquisition. As a hypervisor does with
    // a guest (pause-loop exiting), a long wait gives the CPU away.
    #[inline]
    fn wait_changed<T: Prim>(cell: &NativeCell<T>, seen: T) {
        for _ in 0..TURNS_BEFORE_YIELD {
            std::hint::spin_loop();
            if cell.load(Ordering::Relaxed) != seen {
                return;
            }
        }
        std::thread::yield_now()
    }

    fn futex_wait(word: &NativeCell<u32>, seen: u32, deadline: Option<u64>) {
        let timeout = match deadline {
            None => None,
            Some(d) => {
                let left = d.saturating_sub(clock_ns());
                if left == 0 {
                    return;
                }
                Some(libc::timespec {
                    tv_sec: (left / 1_000_000_000) as libc::time_t,
                    tv_nsec: (left % 1_000_000_000) as libc::c_long,
                })
            }
        };
        let ts = timeout.as_ref().map_or(std::ptr::null(), |t| t as *const libc::timespec);
        // SAFETY: the word and the timespec outlive the call; every result is a reason to look again.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                (&raw const *word).cast::<u32>(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                seen,
                ts,
            );
        }
    }

    fn futex_wake(word: &NativeCell<u32>) {
        // SAFETY: the word is only an address to the kernel.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                (&raw const *word).cast::<u32>(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                1,
            );
        }
    }

    #[cfg(all(target_arch = "x86_64", not(any(miri, race_check))))]
    #[inline(always)]
    fn store_low_byte_release(word: &NativeCell<u32>, v: u8) {
        // SAFETY: the byte lies inside the word; assembly because Rust's model has no mixed-size atomics. Every x86
        // store is a release.
        unsafe {
            std::arch::asm!("mov byte ptr [{p}], {v}", p = in(reg) &raw const *word, v = in(reg_byte) v,
                            options(nostack, preserves_flags));
        }
    }

    #[cfg(all(target_arch = "x86_64", not(any(miri, race_check))))]
    #[inline(always)]
    fn store_low_half(word: &NativeCell<u32>, v: u16) {
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("mov word ptr [{p}], {v:x}", p = in(reg) &raw const *word, v = in(reg) v,
                            options(nostack, preserves_flags));
        }
    }

    #[cfg(all(target_arch = "x86_64", not(any(miri, race_check))))]
    #[inline(always)]
    fn xchg_high_half(word: &NativeCell<u32>, v: u16) -> u16 {
        let mut v = v;
        // SAFETY: as above; `xchg` with memory is locked.
        unsafe {
            std::arch::asm!("xchg word ptr [{p} + 2], {v:x}", p = in(reg) &raw const *word, v = inout(reg) v,
                            options(nostack, preserves_flags));
        }
        v
    }

    #[cfg(all(target_arch = "aarch64", not(any(miri, race_check))))]
    #[inline(always)]
    fn store_low_byte_release(word: &NativeCell<u32>, v: u8) {
        // SAFETY: the byte lies inside the word; assembly because Rust's model has no mixed-size atomics.
        unsafe {
            std::arch::asm!("stlrb {v:w}, [{p}]", p = in(reg) &raw const *word, v = in(reg) u32::from(v),
                            options(nostack, preserves_flags));
        }
    }
}

impl Hardware for Native {
    type Machine = NativeMachine;

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
        let ok: u8;
        // The thread sanitizer does not look into assembly.
        #[cfg(race_check)]
        Self::fence(Fence::Full);
        // SAFETY: the caller gives a 16-aligned pair; rbx belongs to the compiler and is swapped in and out. Every operand
        // is in a register named here: `reg` may pick rbx itself, which holds another value while the exchange runs.
        unsafe {
            std::arch::asm!("xchg rsi, rbx", "lock cmpxchg16b [rdi]", "sete r8b", "mov rbx, rsi",
                in("rdi") pair, inout("rsi") new[0] => _, out("r8b") ok,
                in("rcx") new[1], inout("rax") old[0] => _, inout("rdx") old[1] => _, options(nostack));
        }
        #[cfg(race_check)]
        Self::fence(Fence::Full);
        ok != 0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn this_cpu_cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
        let ok: u8;
        // SAFETY: as above; without the lock prefix, as the kernel's per-CPU form: atomic against this CPU only.
        unsafe {
            std::arch::asm!("xchg rsi, rbx", "cmpxchg16b [rdi]", "sete r8b", "mov rbx, rsi",
                in("rdi") pair, inout("rsi") new[0] => _, out("r8b") ok,
                in("rcx") new[1], inout("rax") old[0] => _, inout("rdx") old[1] => _, options(nostack));
        }
        ok != 0
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
        // SAFETY: the caller's.
        unsafe {
            if has_lse() { casp!("caspal", pair, old, new) } else { ldxp_stxp!("stlxp", "dmb ish", pair, old, new) }
        }
    }

    // PORT: the kernel forbids preemption around it, since its thread may be moved between the address and the exchange;
    // ours are pinned.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn this_cpu_cmpxchg_double(pair: *mut u64, old: [u64; 2], new: [u64; 2]) -> bool {
        // SAFETY: the caller's.
        unsafe { if has_lse() { casp!("casp", pair, old, new) } else { ldxp_stxp!("stxp", "", pair, old, new) } }
    }

    #[inline(always)]
    fn prefetchw(p: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults; every x86-64 server of the last decade has the instruction, others run it
        // as a no-op.
        unsafe {
            std::arch::asm!("prefetchw [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a prefetch never faults.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn clear(p: *mut u8, len: usize) {
        #[cfg(target_arch = "x86_64")]
        if len >= super::arena::PAGE_SIZE {
            // SAFETY: the caller's.
            return unsafe { clear_page_erms(p, len) };
        }
        // SAFETY: the caller's.
        unsafe { std::ptr::write_bytes(p, 0, len) }
    }

    #[inline(always)]
    unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(src, dst, len) }
    }

    #[inline(always)]
    fn charge(_: Work) {}

    unsafe fn sample_ticks(probe: *const TickProbe, first_ns: u64, period_ns: u64) -> Option<TickSignal> {
        // SAFETY: the caller's.
        unsafe { TickSignal::start(probe, first_ns, period_ns) }.ok()
    }

    #[inline(always)]
    fn label(_: *const u8, _: usize, _: &'static str) {}
}

/// Nanoseconds from the processor's counter where it is invariant, else from `CLOCK_MONOTONIC`.
#[inline(always)]
fn clock_ns() -> u64 {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    let c = CLOCK.get_or_init(Clock::calibrate);
    c.read()
}

/// The processor's clock, calibrated once against the operating system's over 100 ms (toolbox.md 11).
struct Clock {
    base: u64,
    /// ns per tick, 32.32 fixed point; 0 = no usable counter.
    mult: u64,
    start: Instant,
}

impl Clock {
    fn calibrate() -> Clock {
        let start = Instant::now();
        if counter_is_invariant() {
            let (i0, t0) = (Instant::now(), counter());
            std::thread::sleep(std::time::Duration::from_millis(100));
            let (i1, t1) = (Instant::now(), counter());
            let ns = (i1 - i0).as_nanos() as u64;
            let mult = ((u128::from(ns) << 32) / u128::from(t1 - t0)) as u64;
            return Clock { base: t0, mult, start };
        }
        Clock { base: 0, mult: 0, start }
    }

    #[inline(always)]
    fn read(&self) -> u64 {
        if self.mult != 0 {
            let d = counter().wrapping_sub(self.base);
            return ((u128::from(d) * u128::from(self.mult)) >> 32) as u64;
        }
        self.start.elapsed().as_nanos() as u64
    }
}

/// The processor's counter of time.
#[inline(always)]
fn counter() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(target_arch = "aarch64")]
    {
        let ticks: u64;
        // SAFETY: Linux lets programs read the virtual counter.
        unsafe { std::arch::asm!("mrs {t}, cntvct_el0", t = out(reg) ticks, options(nomem, nostack, preserves_flags)) };
        ticks
    }
}

/// Whether it runs at a constant rate in all states: on x86-64 CPUID 0x80000007, EDX bit 8; on aarch64 always. An
/// interpreter has its own clock.
fn counter_is_invariant() -> bool {
    #[cfg(target_arch = "x86_64")]
    return cfg!(not(miri))
        && std::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0007
        && std::arch::x86_64::__cpuid(0x8000_0007).edx & (1 << 8) != 0;
    #[cfg(target_arch = "aarch64")]
    cfg!(not(miri))
}

/// A CPU a worker may be pinned to, as the operating system numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OsCpu {
    /// CPU number.
    pub cpu: u32,
    /// Its node, as the operating system numbers it.
    pub node: u32,
}

type Task = Box<dyn FnOnce() + Send + 'static>;

/// A pool of pinned threads and an arena bound to their nodes.
pub struct NativeMachine {
    cpus: Vec<OsCpu>,
    nodes: Vec<u32>,
    distance: Vec<u32>,
    arena: Arena,
    workers: Vec<mpsc::Sender<Task>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    running: Mutex<()>,
    pinned: Vec<Result<(), String>>,
}

impl NativeMachine {
    /// Starts one pinned thread per entry of `cpus`, worker `i` on `cpus[i]`. `distance(from, to)` is asked for each
    /// pair of the nodes that occur.
    ///
    /// # Errors
    /// From reserving the arena or starting threads. A refused pin is not an error: see [`NativeMachine::pinned`].
    pub fn new(cpus: &[OsCpu], bytes_per_node: usize, distance: impl Fn(u32, u32) -> u32) -> io::Result<Self> {
        let mut nodes: Vec<u32> = cpus.iter().map(|c| c.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let arena = Arena::new(nodes.len() as u32, bytes_per_node, None, Some(&nodes))?;
        arena.prefault();
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        let mut pinned = Vec::new();
        for (i, c) in cpus.iter().enumerate() {
            let (tx, rx) = mpsc::channel::<Task>();
            let (ptx, prx) = mpsc::channel();
            let cpu = c.cpu;
            threads.push(std::thread::Builder::new().name(format!("cpu{i}")).spawn(move || {
                let _ = ptx.send(affinity::pin(cpu));
                while let Ok(f) = rx.recv() {
                    f();
                }
            })?);
            workers.push(tx);
            pinned.push(prx.recv().unwrap_or_else(|_| Err("thread ended".into())));
        }
        let n = nodes.len();
        let distance = (0..n * n).map(|i| distance(nodes[i / n], nodes[i % n])).collect();
        Ok(NativeMachine {
            cpus: cpus.to_vec(),
            nodes,
            distance,
            arena,
            workers,
            threads,
            running: Mutex::new(()),
            pinned,
        })
    }

    /// Per worker: whether it could be pinned, else why not.
    pub fn pinned(&self) -> &[Result<(), String>] {
        &self.pinned
    }

    /// The operating system's CPU and node of each worker.
    pub fn os_cpus(&self) -> &[OsCpu] {
        &self.cpus
    }
}

impl Machine for NativeMachine {
    fn nr_cpus(&self) -> u32 {
        self.cpus.len() as u32
    }
    fn nr_nodes(&self) -> u32 {
        self.nodes.len() as u32
    }
    fn node_of(&self, cpu: u32) -> u32 {
        let node = self.cpus[cpu as usize].node;
        self.nodes.iter().position(|&n| n == node).unwrap_or(0) as u32
    }
    fn distance(&self, from: u32, to: u32) -> u32 {
        self.distance[from as usize * self.nodes.len() + to as usize]
    }
    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn run(&self, jobs: Vec<Job<'_>>) {
        let _one_at_a_time = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let left = AtomicU32::new(jobs.len() as u32);
        let caller = std::thread::current();
        let done = || {
            // ORDER: release, with the acquire below: what a job did is visible to the caller of run().
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                caller.unpark();
            }
        };
        std::thread::scope(|s| {
            for j in jobs {
                let done = &done;
                let f = j.f;
                match j.cpu {
                    Some(cpu) => {
                        let t: Box<dyn FnOnce() + Send + '_> = Box::new(move || {
                            f();
                            done();
                        });
                        // SAFETY: run() does not return before `left` is 0, so what the job borrows outlives it.
                        let t: Task = unsafe { std::mem::transmute(t) };
                        self.workers[cpu as usize].send(t).expect("a pool thread lives as long as its machine");
                    }
                    None => {
                        s.spawn(move || {
                            f();
                            done();
                        });
                    }
                }
            }
            while left.load(Ordering::Acquire) != 0 {
                std::thread::park();
            }
        });
    }
}

impl Drop for NativeMachine {
    fn drop(&mut self) {
        self.workers.clear();
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

impl std::fmt::Debug for NativeMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeMachine").field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::kernel::thread_cpu_ns;

    #[test]
    fn sixteen_byte_exchange_stores_only_on_a_match() {
        #[repr(align(16))]
        struct Pair([u64; 2]);
        let mut p = Pair([1, 2]);
        // SAFETY: our own aligned pair.
        unsafe {
            assert!(!Native::cmpxchg_double(p.0.as_mut_ptr(), [1, 3], [9, 9]));
            assert!(Native::cmpxchg_double(p.0.as_mut_ptr(), [1, 2], [3, 4]));
            assert!(!Native::this_cpu_cmpxchg_double(p.0.as_mut_ptr(), [1, 2], [9, 9]));
            assert!(Native::this_cpu_cmpxchg_double(p.0.as_mut_ptr(), [3, 4], [5, 6]));
        }
        assert_eq!(p.0, [5, 6]);
    }

    #[test]
    fn sub_word_accesses_touch_their_part_only() {
        let w = NativeCell::<u32>::new(0xaabb_ccdd);
        Native::store_low_byte_release(&w, 0);
        assert_eq!(w.load(Ordering::Relaxed), 0xaabb_cc00);
        Native::store_low_half(&w, 1);
        assert_eq!(w.load(Ordering::Relaxed), 0xaabb_0001);
        assert_eq!(Native::xchg_high_half(&w, 0x1234), 0xaabb);
        assert_eq!(w.load(Ordering::Relaxed), 0x1234_0001);
    }

    #[test]
    fn two_threads_of_one_cpu_do_not_wait_for_each_other_by_time_slices() {
        const TURNS: u32 = 1000;
        let (cpu, w) = (affinity::current_cpu(), NativeCell::<u32>::new(0));
        let side = |mine: u32| {
            affinity::pin(cpu).unwrap();
            for turn in 0..TURNS {
                loop {
                    match w.load(Ordering::Acquire) {
                        seen if seen != 2 * turn + mine => Native::wait_changed(&w, seen),
                        _ => break,
                    }
                }
                w.store(2 * turn + mine + 1, Ordering::Release);
            }
            thread_cpu_ns()
        };
        let spent = std::thread::scope(|s| {
            let sides = [s.spawn(|| side(0)), s.spawn(|| side(1))];
            sides.map(|t| t.join().unwrap()).iter().sum::<u64>()
        });
        // The shortest slice of a Linux scheduler is 0.7 ms; a wait that yields costs some tens of microseconds.
        assert!(spent < u64::from(TURNS) * 400_000, "{spent} ns for {TURNS} turns");
    }

    #[test]
    fn a_processor_without_the_exchange_is_named_in_one_line() {
        let e = needs_exchange(false).unwrap_err();
        assert!(e.contains("cx16") && !e.contains('\n'), "{e}");
        assert_eq!(needs_exchange(true), Ok(()));
        assert_eq!(check_processor(), Ok(()), "these tests run the exchange");
    }

    #[test]
    fn jobs_run_on_their_cpu_and_end_before_run_returns() {
        let allowed = affinity::allowed();
        let cpus: Vec<OsCpu> = allowed.iter().map(|&cpu| OsCpu { cpu, node: 0 }).collect();
        let m = NativeMachine::new(&cpus, 2 << 20, |_, _| 10).unwrap();
        let hits: Vec<AtomicU32> = cpus.iter().map(|_| AtomicU32::new(u32::MAX)).collect();
        for _ in 0..3 {
            let jobs = (0..m.nr_cpus())
                .map(|i| Job {
                    cpu: Some(i),
                    f: Box::new({
                        let h = &hits[i as usize];
                        move || h.store(affinity::current_cpu(), Ordering::Relaxed)
                    }),
                })
                .collect();
            m.run(jobs);
        }
        for (h, c) in hits.iter().zip(&cpus) {
            assert_eq!(h.load(Ordering::Relaxed), c.cpu);
        }
    }
}
