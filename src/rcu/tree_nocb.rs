// SPDX-License-Identifier: GPL-2.0-only
//! Offloaded and lazy callbacks [kernel/rcu/tree_nocb.h, 6.12]: options, off by default.
//!
//! With `nocb` a CPU only queues: onto its list under `nocb_lock`, or, beyond so many a jiffy, onto a bypass list with a
//! lock of its own. For each group of about sqrt(n) of n CPUs (`rcu_nocb_gp_stride`) a thread, `rcuog`, empties their
//! bypasses, asks for grace periods and waits for them; for each CPU another, `rcuo`, calls what is ready, on no worker's
//! CPU, so that what callbacks free is freed remotely. With `lazy` besides, callbacks that
//! nobody is in a hurry for wait on the bypass for up to ten seconds, for `qhimark` of them, or for `rcu_barrier()`.
//!
//! custom: a kernel's `rcuo` runs on whatever CPU the scheduler gives it, and uses that CPU's slabs and pages; here it has
//! a CPU number, and slabs and pages, of its own, so that what it frees reaches others by way of the nodes' lists. What a
//! kernel thread queues, which has no CPU of its own in the kernel, is looked after by the threads of worker `id % n`. The
//! timer of deferred wake-ups is the thread's own sleep: who arms it wakes the thread once, to look at the time. All CPUs
//! are offloaded or none, kernel threads included; an `rcu_barrier()` puts its callback on an offloaded list itself, where
//! the kernel asks the CPU to.
//!
//! dup: offloading at run time, polling threads, deferral of wake-ups while interrupts are off (they never are), the
//! shrinker that flushes lazy callbacks, hurry at boot and at suspend.
//!
//! Lock order: bypass lock before nothing but `nocb_lock` held outside it; `nocb_lock` before node locks; `gp_lock` before
//! none.
//!
//! INVARIANT: while the bypass holds callbacks new ones go to the bypass, or the bypass is emptied first: a CPU's callbacks
//! are called in the order they were queued. While it holds any, `rcuog` has a timer or is awake.

use super::rcu_segcblist::{RCU_NEXT_READY_TAIL, RcuCblist};
use super::rcu_seq::{rcu_seq_done, rcu_seq_state, ulong_cmp_lt};
use super::tree::{
    RcuState, raw_spin_lock_rcu_node, raw_spin_trylock_rcu_node, raw_spin_unlock_rcu_node, rcu_advance_cbs,
    rcu_do_batch, rcu_gp_kthread_wake, rcutree_enqueue,
};
use super::tree_init::RcuData;
use super::{RcuExtCounter, RcuHead, RcuSlot};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Plain, Relaxed, Release, smp_mb};
use crate::cpu::{Cpu, Task, nocb_gp_stride, nocb_groups, sched};
use crate::sync::{RawSpinLock, raw_spin_lock, raw_spin_trylock, raw_spin_unlock};
use std::ptr::{NonNull, null_mut};

/// `LAZY_FLUSH_JIFFIES`, in seconds.
const LAZY_FLUSH_S: u64 = 10;
/// `nocb_nobypass_lim_per_jiffy`, a second: 16 a millisecond.
const NOBYPASS_LIM_S: u64 = 16 * 1000;

/// `RCU_NOCB_WAKE_*`: why the thread shall be woken later.
const RCU_NOCB_WAKE_NOT: u32 = 0;
const RCU_NOCB_WAKE_BYPASS: u32 = 1;
const RCU_NOCB_WAKE_LAZY: u32 = 2;
const RCU_NOCB_WAKE: u32 = 3;
pub(super) const RCU_NOCB_WAKE_FORCE: u32 = 4;

/// The part of `rcu_data` that offloading needs, on lines of its own.
#[repr(C, align(64))]
pub(crate) struct Nocb<A: Arch> {
    /// `nocb_lock`: the list, of an offloaded CPU.
    pub lock: RawSpinLock<A>,
    /// There is nothing for `rcuo` to call.
    cb_sleep: Atomic<A, u32>,
    /// The CPU's `rcuo`, and that it shall end.
    cb_kthread: Atomic<A, *mut Task<A>>,
    cb_stop: Atomic<A, u32>,
    /// Jiffy in which the list was last advanced while queueing.
    gp_adv_time: Plain<A, u64>,
    /// Jiffy of the last direct enqueue, and how many there were lately.
    nobypass_last: Plain<A, u64>,
    nobypass_count: Plain<A, u64>,
    bypass_lock: RawSpinLock<A>,
    bypass_head: RcuSlot<A>,
    bypass_tail: Plain<A, *mut RcuSlot<A>>,
    bypass_len: Atomic<A, i64>,
    /// How many of them are lazy.
    lazy_len: Atomic<A, i64>,
    /// Jiffy of the oldest of them.
    bypass_first: Atomic<A, u64>,
}

impl<A: Arch> Nocb<A> {
    pub fn new() -> Self {
        Nocb {
            lock: RawSpinLock::new(),
            cb_sleep: Atomic::new(1),
            cb_kthread: Atomic::new(null_mut()),
            cb_stop: Atomic::new(0),
            gp_adv_time: Plain::new(0),
            nobypass_last: Plain::new(0),
            nobypass_count: Plain::new(0),
            bypass_lock: RawSpinLock::new(),
            bypass_head: Atomic::new(null_mut()),
            bypass_tail: Plain::new(null_mut()),
            bypass_len: Atomic::new(0),
            lazy_len: Atomic::new(0),
            bypass_first: Atomic::new(0),
        }
    }

    /// `rcu_cblist_enqueue()` on the bypass; its lock is held.
    ///
    /// # Safety
    /// `rhp` is alive until it is called, and on no list.
    unsafe fn bypass_enqueue(&self, rhp: *mut RcuHead<A>) {
        // SAFETY: the caller's; the tail is a slot of a callback that was queued and not yet called.
        unsafe {
            (*rhp).next.store(null_mut(), Relaxed);
            if self.bypass_head.load(Relaxed).is_null() {
                self.bypass_head.store(rhp, Relaxed);
            } else {
                (*self.bypass_tail.get()).store(rhp, Relaxed);
            }
            self.bypass_tail.set((&raw const (*rhp).next).cast_mut());
        }
        self.bypass_len.store(self.bypass_len.load(Relaxed) + 1, Relaxed);
    }

    /// Takes all of the bypass; its lock is held.
    fn bypass_take(&self) -> RcuCblist<A> {
        let rcl = RcuCblist::from_parts(
            self.bypass_head.load(Relaxed),
            self.bypass_tail.get(),
            self.bypass_len.load(Relaxed),
        );
        self.bypass_head.store(null_mut(), Relaxed);
        self.bypass_len.store(0, Relaxed);
        rcl
    }
}

/// A group's part: what its `rcuog` sleeps on.
#[repr(C, align(64))]
pub(crate) struct NocbGp<A: Arch> {
    /// `nocb_gp_lock`: the two below.
    lock: RawSpinLock<A>,
    defer_wakeup: Atomic<A, u32>,
    /// `nocb_timer`, in jiffies; the largest number: not armed.
    timer: Atomic<A, u64>,
    /// Whether the thread may sleep.
    gp_sleep: Atomic<A, u32>,
    gp_kthread: Atomic<A, *mut Task<A>>,
    /// The thread shall end.
    stop: Atomic<A, u32>,
}

impl<A: Arch> NocbGp<A> {
    pub fn new() -> Self {
        NocbGp {
            lock: RawSpinLock::new(),
            defer_wakeup: Atomic::new(RCU_NOCB_WAKE_NOT),
            timer: Atomic::new(u64::MAX),
            gp_sleep: Atomic::new(1),
            gp_kthread: Atomic::new(null_mut()),
            stop: Atomic::new(0),
        }
    }

    /// Why rcuog shall be woken later, and in which jiffy.
    #[cfg(test)]
    pub fn deferred(&self) -> (u32, u64) {
        (self.defer_wakeup.load(Relaxed), self.timer.load(Relaxed))
    }

    /// A grace period ended.
    pub fn gp_ended(&self) {
        wake(&self.gp_kthread);
    }
}

fn wake<A: Arch>(task: &Atomic<A, *mut Task<A>>) {
    // ORDER: acquire; meets the thread's store at its start.
    if let Some(t) = NonNull::new(task.load(Acquire)) {
        // SAFETY: tasks live as long as the kernel.
        sched::wake_up_process(unsafe { KRef::new(t) });
    }
}

/// Tells all threads of offloading to end.
pub(super) fn rcu_nocb_stop<A: Arch>(rcu: &RcuState<A>) {
    // ORDER: release, and the barrier in wake_up_process(); meets the tests before the threads' sleeps.
    for g in rcu.nocb_gp.iter() {
        g.stop.store(1, Release);
        wake(&g.gp_kthread);
    }
    if rcu.config.nocb {
        for rdp in rcu.rda.iter().take(rcu.nr_cpus as usize) {
            rdp.nocb.cb_stop.store(1, Release);
            wake(&rdp.nocb.cb_kthread);
        }
    }
}

/// The worker whose threads look after a CPU's callbacks.
#[inline(always)]
fn served_with(nr_cpus: u32, cpu: u32) -> u32 {
    if cpu < nr_cpus { cpu } else { cpu % nr_cpus }
}

/// A CPU's group: `nocb_gp_rdp` of it, by number.
#[inline(always)]
fn group_of(nr_cpus: u32, cpu: u32) -> u32 {
    served_with(nr_cpus, cpu) / nocb_gp_stride(nr_cpus)
}

fn gp_of<'a, A: Arch>(rcu: &'a RcuState<A>, rdp: &RcuData<A>) -> &'a NocbGp<A> {
    rcu.nocb_gp.of(group_of(rcu.nr_cpus, rdp.cpu))
}

/// `__wake_nocb_gp()`
fn wake_nocb_gp<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, force: bool) {
    let g = gp_of(rcu, rdp);
    raw_spin_lock(cpu, &g.lock);
    if g.defer_wakeup.load(Relaxed) > RCU_NOCB_WAKE_NOT {
        g.defer_wakeup.store(RCU_NOCB_WAKE_NOT, Relaxed);
        g.timer.store(u64::MAX, Relaxed);
    }
    let needwake = force || g.gp_sleep.load(Relaxed) != 0;
    if needwake {
        g.gp_sleep.store(0, Relaxed);
    }
    raw_spin_unlock(cpu, &g.lock);
    if needwake {
        cpu.count(RcuExtCounter::NocbWakeups);
        wake(&g.gp_kthread);
    }
}

/// `wake_nocb_gp_defer()`
fn wake_nocb_gp_defer<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, g: &NocbGp<A>, waketype: u32) {
    let j = rcu.jiffies();
    raw_spin_lock(cpu, &g.lock);
    let defer = g.defer_wakeup.load(Relaxed);
    let before = g.timer.load(Relaxed);
    if waketype == RCU_NOCB_WAKE_LAZY && defer == RCU_NOCB_WAKE_NOT {
        g.timer.store(j + LAZY_FLUSH_S * u64::from(rcu.config.hz), Relaxed);
        g.defer_wakeup.store(waketype, Relaxed);
    } else if waketype == RCU_NOCB_WAKE_BYPASS {
        g.timer.store(j + 2, Relaxed);
        g.defer_wakeup.store(waketype, Relaxed);
    } else {
        if defer < RCU_NOCB_WAKE {
            g.timer.store(j + 1, Relaxed);
        }
        if defer < waketype {
            g.defer_wakeup.store(waketype, Relaxed);
        }
    }
    let earlier = g.timer.load(Relaxed) < before;
    raw_spin_unlock(cpu, &g.lock);
    if earlier && cpu.task.as_ptr() != g.gp_kthread.load(Relaxed) {
        // PORT: mod_timer(); the sleep of the thread is the timer.
        wake(&g.gp_kthread);
    }
}

/// `rcu_nocb_flush_bypass()`: empties the bypass into the list, `rhp` behind it; `nocb_lock` is held. False where there is
/// a callback and nothing to put it behind.
///
/// # Safety
/// `rhp` is null, or as for `call_rcu()`.
unsafe fn rcu_nocb_flush_bypass<A: Arch>(
    cpu: &Cpu<A>,
    rdp: &RcuData<A>,
    rhp: *mut RcuHead<A>,
    j: u64,
    lazy: bool,
) -> bool {
    raw_spin_lock(cpu, &rdp.nocb.bypass_lock);
    // SAFETY: the caller's.
    unsafe { rcu_nocb_do_flush_bypass(cpu, rdp, rhp, j, lazy) }
}

/// `rcu_nocb_do_flush_bypass()`: both locks are held; the bypass lock is released.
///
/// # Safety
/// As for [`rcu_nocb_flush_bypass`].
unsafe fn rcu_nocb_do_flush_bypass<A: Arch>(
    cpu: &Cpu<A>,
    rdp: &RcuData<A>,
    rhp: *mut RcuHead<A>,
    j: u64,
    lazy: bool,
) -> bool {
    let n = &rdp.nocb;
    if !rhp.is_null() && n.bypass_len.load(Relaxed) == 0 {
        raw_spin_unlock(cpu, &n.bypass_lock);
        return false;
    }
    if !rhp.is_null() {
        // Before it is queued, for rcu_barrier().
        rdp.cblist.add_len(1);
    }
    // SAFETY: the caller's.
    unsafe {
        if lazy && !rhp.is_null() {
            n.bypass_enqueue(rhp);
        }
        let mut rcl = n.bypass_take();
        if !lazy && !rhp.is_null() {
            n.bypass_enqueue(rhp);
        }
        n.lazy_len.store(0, Relaxed);
        rdp.cblist.insert_pend_cbs(&mut rcl);
    }
    n.bypass_first.store(j, Relaxed);
    raw_spin_unlock(cpu, &n.bypass_lock);
    true
}

/// The next grace period that anything on the list waits for, if it is over (`rcu_segcblist_nextgp()` and the poll).
fn nextgp_done<A: Arch>(rdp: &RcuData<A>) -> bool {
    rdp.cblist.nextgp().is_some_and(|s| rcu_seq_done(rdp.mynode.gp_seq.load(Relaxed), s))
}

/// `rcu_advance_cbs_nowake()`, at most once a jiffy; `nocb_lock` is held.
fn advance_once_a_jiffy<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, j: u64) {
    if j != rdp.nocb.gp_adv_time.get() && nextgp_done(rdp) {
        let running = || rcu_seq_state(rdp.mynode.gp_seq.load(Relaxed)) != 0;
        if running() && raw_spin_trylock_rcu_node(cpu, &rdp.mynode) {
            // While one runs nobody need be woken for the next, and under the lock it goes on.
            if running() {
                let needwake = rcu_advance_cbs(cpu, rcu, &rdp.mynode, rdp);
                debug_assert!(!needwake, "a grace period runs, so nobody need be woken for the next");
            }
            raw_spin_unlock_rcu_node(cpu, &rdp.mynode);
        }
        rdp.nocb.gp_adv_time.set(j);
    }
}

/// `rcu_nocb_try_bypass()`: `Some(was_alldone)` when the caller must enqueue, with `nocb_lock` held.
///
/// # Safety
/// As for `call_rcu()`.
unsafe fn rcu_nocb_try_bypass<A: Arch>(
    cpu: &Cpu<A>,
    rcu: &RcuState<A>,
    rdp: &RcuData<A>,
    rhp: *mut RcuHead<A>,
    lazy: bool,
) -> Option<bool> {
    let n = &rdp.nocb;
    let j = rcu.jiffies();
    let hz = u64::from(rcu.config.hz);
    let ncbs = n.bypass_len.load(Relaxed);
    let bypass_is_lazy = ncbs == n.lazy_len.load(Relaxed);
    // `rcu_scheduler_active`: before the thread is up nobody would empty a bypass.
    if gp_of(rcu, rdp).gp_kthread.load(Relaxed).is_null() {
        raw_spin_lock(cpu, &n.lock);
        // SAFETY: no callback.
        unsafe { rcu_nocb_flush_bypass(cpu, rdp, null_mut(), j, false) };
        return Some(!rdp.cblist.pend_cbs());
    }
    let lim = (NOBYPASS_LIM_S / hz).max(1);
    let last = n.nobypass_count.get();
    let c = if j == n.nobypass_last.get() {
        last + 1
    } else {
        n.nobypass_last.set(j);
        if last < lim { 0 } else { (last - lim).min(lim) }
    };
    n.nobypass_count.set(c);
    if c < lim && !lazy {
        raw_spin_lock(cpu, &n.lock);
        let was_alldone = !rdp.cblist.pend_cbs();
        // SAFETY: no callback.
        unsafe { rcu_nocb_flush_bypass(cpu, rdp, null_mut(), j, false) };
        return Some(was_alldone);
    }
    let first = n.bypass_first.load(Relaxed);
    let old = if bypass_is_lazy { j > first + LAZY_FLUSH_S * hz } else { j != first };
    if (ncbs != 0 && old) || ncbs >= rcu.config.qhimark {
        raw_spin_lock(cpu, &n.lock);
        let was_alldone = !rdp.cblist.pend_cbs();
        // SAFETY: the caller's.
        if !unsafe { rcu_nocb_flush_bypass(cpu, rdp, rhp, j, lazy) } {
            return Some(was_alldone);
        }
        cpu.count(RcuExtCounter::NocbFlushes);
        advance_once_a_jiffy(cpu, rcu, rdp, j);
        __call_rcu_nocb_wake(cpu, rcu, rdp, was_alldone);
        return None;
    }
    raw_spin_lock(cpu, &n.bypass_lock);
    let ncbs = n.bypass_len.load(Relaxed);
    rdp.cblist.add_len(1);
    // SAFETY: the caller's.
    unsafe { n.bypass_enqueue(rhp) };
    cpu.count(RcuExtCounter::NocbBypassed);
    if lazy {
        n.lazy_len.store(n.lazy_len.load(Relaxed) + 1, Relaxed);
    }
    if ncbs == 0 {
        n.bypass_first.store(j, Relaxed);
    }
    raw_spin_unlock(cpu, &n.bypass_lock);
    if ncbs == 0 || (bypass_is_lazy && !lazy) {
        // The thread may sleep without a timer.
        raw_spin_lock(cpu, &n.lock);
        if !rdp.cblist.pend_cbs() {
            __call_rcu_nocb_wake(cpu, rcu, rdp, true);
        } else {
            raw_spin_unlock(cpu, &n.lock);
        }
    }
    None
}

/// `__call_rcu_nocb_wake()`: `nocb_lock` is held and released.
fn __call_rcu_nocb_wake<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, was_alldone: bool) {
    let n = &rdp.nocb;
    let len = rdp.cblist.n_cbs();
    let (bypass_len, lazy_len) = (n.bypass_len.load(Relaxed), n.lazy_len.load(Relaxed));
    if was_alldone {
        rdp.qlen_last_fqs_check.set(len);
        raw_spin_unlock(cpu, &n.lock);
        if lazy_len != 0 && bypass_len == lazy_len {
            wake_nocb_gp_defer(cpu, rcu, gp_of(rcu, rdp), RCU_NOCB_WAKE_LAZY);
        } else {
            wake_nocb_gp(cpu, rcu, rdp, false);
        }
    } else if len > rdp.qlen_last_fqs_check.get() + rcu.config.qhimark {
        rdp.qlen_last_fqs_check.set(len);
        advance_once_a_jiffy(cpu, rcu, rdp, rcu.jiffies());
        // ORDER: full; what was queued before the look at the timer.
        smp_mb::<A>();
        let defer = (n.cb_sleep.load(Relaxed) != 0 || !rdp.cblist.ready_cbs())
            && gp_of(rcu, rdp).timer.load(Relaxed) == u64::MAX;
        raw_spin_unlock(cpu, &n.lock);
        if defer {
            wake_nocb_gp_defer(cpu, rcu, gp_of(rcu, rdp), RCU_NOCB_WAKE_FORCE);
        }
    } else {
        raw_spin_unlock(cpu, &n.lock);
    }
}

/// `call_rcu_nocb()`
///
/// # Safety
/// As for `call_rcu()`.
#[cold]
#[inline(never)]
pub(super) unsafe fn call_rcu_nocb<A: Arch>(
    cpu: &Cpu<A>,
    rcu: &RcuState<A>,
    rdp: &RcuData<A>,
    head: *mut RcuHead<A>,
    lazy: bool,
) {
    // SAFETY: the caller's.
    if let Some(was_alldone) = unsafe { rcu_nocb_try_bypass(cpu, rcu, rdp, head, lazy) } {
        // SAFETY: the caller's; the lock is held.
        unsafe { rcutree_enqueue(rdp, head) };
        __call_rcu_nocb_wake(cpu, rcu, rdp, was_alldone);
    }
}

/// Part of `rcu_barrier_entrain()`: empties the bypass, then queues `head` behind everything; whether it did.
///
/// # Safety
/// As for `call_rcu()`.
pub(super) unsafe fn rcu_nocb_entrain<A: Arch>(
    cpu: &Cpu<A>,
    rcu: &RcuState<A>,
    rdp: &RcuData<A>,
    head: *mut RcuHead<A>,
) -> bool {
    raw_spin_lock(cpu, &rdp.nocb.lock);
    let was_alldone = !rdp.cblist.pend_cbs();
    // SAFETY: no callback, and the caller's.
    let done = unsafe {
        rcu_nocb_flush_bypass(cpu, rdp, null_mut(), rcu.jiffies(), false);
        rdp.cblist.entrain(head)
    };
    let wake = was_alldone && rdp.cblist.pend_cbs();
    raw_spin_unlock(cpu, &rdp.nocb.lock);
    if wake {
        wake_nocb_gp(cpu, rcu, rdp, false);
    }
    done
}

/// Empties the bypass of a CPU while nothing runs.
pub(super) fn rcu_nocb_flush_all<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    // SAFETY: no callback.
    unsafe { rcu_nocb_flush_bypass(cpu, rdp, null_mut(), rcu.jiffies(), false) };
}

/// One look of `rcuog` at a CPU, by `nocb_gp_wait()`.
#[derive(Default)]
struct Look {
    /// A bypass has callbacks that are not lazy; has only lazy ones.
    bypass: bool,
    lazy: bool,
    /// The nearest grace period that anything waits for.
    wait: Option<u64>,
}

fn nocb_gp_look<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>, l: &mut Look) {
    let n = &rdp.nocb;
    let j = rcu.jiffies();
    let hz = u64::from(rcu.config.hz);
    raw_spin_lock(cpu, &n.lock);
    let lens = || (n.bypass_len.load(Relaxed), n.lazy_len.load(Relaxed));
    let (mut bypass_ncbs, mut lazy_ncbs) = lens();
    let first = n.bypass_first.load(Relaxed);
    let age = if lazy_ncbs == bypass_ncbs { LAZY_FLUSH_S * hz } else { 1 };
    if bypass_ncbs != 0 && (j > first + age || bypass_ncbs > 2 * rcu.config.qhimark) {
        if raw_spin_trylock(cpu, &n.bypass_lock) {
            cpu.count(RcuExtCounter::NocbFlushes);
            // SAFETY: no callback.
            unsafe { rcu_nocb_do_flush_bypass(cpu, rdp, null_mut(), j, false) };
        }
        (bypass_ncbs, lazy_ncbs) = lens();
    } else if bypass_ncbs == 0 && rdp.cblist.empty() {
        raw_spin_unlock(cpu, &n.lock);
        return;
    }
    if bypass_ncbs != 0 {
        if bypass_ncbs == lazy_ncbs {
            l.lazy = true;
        } else {
            l.bypass = true;
        }
    }
    let mut needwake_gp = false;
    if !rdp.cblist.restempty(RCU_NEXT_READY_TAIL) || nextgp_done(rdp) {
        raw_spin_lock_rcu_node(cpu, &rdp.mynode);
        needwake_gp = rcu_advance_cbs(cpu, rcu, &rdp.mynode, rdp);
        raw_spin_unlock_rcu_node(cpu, &rdp.mynode);
    }
    if let Some(s) = rdp.cblist.nextgp()
        && l.wait.is_none_or(|w| ulong_cmp_lt(s, w))
    {
        l.wait = Some(s);
    }
    let needwake = rdp.cblist.ready_cbs() && n.cb_sleep.load(Relaxed) != 0;
    if needwake {
        n.cb_sleep.store(0, Relaxed);
    }
    raw_spin_unlock(cpu, &n.lock);
    if needwake {
        wake(&rcu.rda.of(served_with(rcu.nr_cpus, rdp.cpu)).nocb.cb_kthread);
    }
    if needwake_gp {
        rcu_gp_kthread_wake(cpu, rcu);
    }
}

/// `nocb_gp_wait()`, of group `group`.
fn nocb_gp_wait<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, group: u32) {
    let g = rcu.nocb_gp.of(group);
    let mut l = Look::default();
    let mine = rcu.rda.iter().filter(|rdp| group_of(rcu.nr_cpus, rdp.cpu) == group);
    mine.for_each(|rdp| nocb_gp_look(cpu, rcu, rdp, &mut l));
    if l.lazy && !l.bypass {
        wake_nocb_gp_defer(cpu, rcu, g, RCU_NOCB_WAKE_LAZY);
    } else if l.bypass {
        wake_nocb_gp_defer(cpu, rcu, g, RCU_NOCB_WAKE_BYPASS);
    }
    // The group's first CPU is its leader; its leaf shows the end of grace periods.
    let leaf = &rcu.rda.of(group * nocb_gp_stride(rcu.nr_cpus)).mynode;
    loop {
        sched::set_current_state_sleeping(cpu);
        let over = l.wait.is_some_and(|s| rcu_seq_done(leaf.gp_seq.load(Relaxed), s));
        // A timer ends with the jiffy after, as the wheel's do.
        let timer = g.timer.load(Relaxed);
        if over || g.gp_sleep.load(Relaxed) == 0 || g.stop.load(Relaxed) != 0 || rcu.jiffies() > timer {
            break;
        }
        sched::schedule(cpu, (timer != u64::MAX).then(|| (timer + 1) * rcu.period));
    }
    sched::set_current_state_running(cpu);
    raw_spin_lock(cpu, &g.lock);
    if g.defer_wakeup.load(Relaxed) > RCU_NOCB_WAKE_NOT {
        g.defer_wakeup.store(RCU_NOCB_WAKE_NOT, Relaxed);
        g.timer.store(u64::MAX, Relaxed);
    }
    g.gp_sleep.store(1, Relaxed);
    raw_spin_unlock(cpu, &g.lock);
}

/// `rcu_nocb_gp_kthread()`, the rcuog of a group: until [`RcuState::stop`].
fn rcu_nocb_gp_kthread<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, group: u32) {
    let g = rcu.nocb_gp.of(group);
    // ORDER: release; meets wake().
    g.gp_kthread.store(cpu.task.as_ptr(), Release);
    while g.stop.load(Relaxed) == 0 {
        nocb_gp_wait(cpu, rcu, group);
    }
    g.gp_kthread.store(null_mut(), Release);
    g.stop.store(0, Relaxed);
}

/// `nocb_cb_wait()`, its part after the sleep: one batch of one CPU.
fn nocb_cb<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: &RcuData<A>) {
    rcu_do_batch(cpu, rcu, rdp);
    let mut needwake_gp = false;
    raw_spin_lock(cpu, &rdp.nocb.lock);
    if nextgp_done(rdp) && raw_spin_trylock_rcu_node(cpu, &rdp.mynode) {
        needwake_gp = rcu_advance_cbs(cpu, rcu, &rdp.mynode, rdp);
        raw_spin_unlock_rcu_node(cpu, &rdp.mynode);
    }
    rdp.nocb.cb_sleep.store(u32::from(!rdp.cblist.ready_cbs()), Relaxed);
    raw_spin_unlock(cpu, &rdp.nocb.lock);
    if needwake_gp {
        rcu_gp_kthread_wake(cpu, rcu);
    }
}

/// `rcu_nocb_cb_kthread()`, the rcuo of a worker: calls what is ready of it, and of the kernel threads that it looks after,
/// a batch of each in turn, until [`RcuState::stop`].
fn rcu_nocb_cb_kthread<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, worker: u32) {
    let n = &rcu.rda.of(worker).nocb;
    let mine = || rcu.rda.iter().filter(|rdp| served_with(rcu.nr_cpus, rdp.cpu) == worker);
    // ORDER: release; meets wake().
    n.cb_kthread.store(cpu.task.as_ptr(), Release);
    loop {
        let mut any = false;
        for rdp in mine() {
            if rdp.nocb.cb_sleep.load(Relaxed) == 0 {
                any = true;
                nocb_cb(cpu, rcu, rdp);
            }
        }
        if any {
            continue;
        }
        sched::set_current_state_sleeping(cpu);
        if n.cb_stop.load(Relaxed) != 0 {
            break;
        }
        if mine().all(|r| r.nocb.cb_sleep.load(Relaxed) != 0) {
            sched::schedule(cpu, None);
        }
        sched::set_current_state_running(cpu);
    }
    sched::set_current_state_running(cpu);
    n.cb_kthread.store(null_mut(), Release);
    n.cb_stop.store(0, Relaxed);
}

impl<A: Arch> RcuState<A> {
    /// Threads that offloading needs (`rcu_spawn_cpu_nocb_kthread()` for each CPU); 0 where nothing is offloaded.
    pub fn nocb_threads(&self) -> u32 {
        if self.config.nocb { nocb_groups(self.nr_cpus) + self.nr_cpus } else { 0 }
    }

    /// Body of the `nth` of them, on a kernel thread's token of its own: the rcuogs, then the rcuos.
    pub fn nocb_thread(&self, cpu: &Cpu<A>, nth: u32) {
        match nth.checked_sub(nocb_groups(self.nr_cpus)) {
            None => rcu_nocb_gp_kthread(cpu, self, nth),
            Some(worker) => rcu_nocb_cb_kthread(cpu, self, worker),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rcu_organize_nocb_kthreads()`: leaders by number of CPUs.
    #[test]
    fn groups_are_the_kernels() {
        for (n, leaders) in [
            (1, &[0][..]),
            (2, &[0]),
            (3, &[0]),
            (4, &[0, 2]),
            (6, &[0, 3]),
            (7, &[0, 3, 6]),
            (8, &[0, 4]),
            (16, &[0, 4, 8, 12]),
            (24, &[0, 6, 12, 18]),
            (64, &[0, 8, 16, 24, 32, 40, 48, 56]),
        ] {
            let stride = nocb_gp_stride(n);
            let got: Vec<u32> = (0..nocb_groups(n)).map(|g| g * stride).collect();
            assert_eq!(got, leaders, "{n} CPUs");
            // Each CPU is of the last leader at or before it; a kernel thread of some worker's group.
            for cpu in 0..n {
                assert_eq!(leaders[group_of(n, cpu) as usize], *leaders.iter().rfind(|l| **l <= cpu).unwrap());
            }
            assert!((n..3 * n).all(|t| group_of(n, t) < nocb_groups(n) && served_with(n, t) < n));
        }
    }
}
