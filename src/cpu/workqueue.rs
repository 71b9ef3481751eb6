// SPDX-License-Identifier: GPL-2.0-only
//! Work for a kernel thread, at once or after a while [kernel/workqueue.c, an unbound queue; kernel/time/timer.c; 6.12].
//!
//! A work item lies in the structure it works for and is queued at most once at a time; one kworker runs what is
//! queued, in order. The kworker is a kernel thread with a CPU token of its own, on no worker's CPU: where a kernel's
//! unbound worker goes, any CPU, the scheduler decides, and here the host's does.
//!
//! custom: one kworker, so that items of one queue never run at the same time; the kernel has several. A delayed item
//! is a time that its owner keeps ([`TimerHook`]): the owner's tick, or its idle turn, queues it when it is due. stub:
//! bound queues, priorities, cancelling, rescuers.
//!
//! INVARIANT: whoever changes `pending` from 0 to 1 links the item; only the kworker unlinks. Items live as long as
//! the kernel.

use super::sched;
use super::{Cpu, Task};
use crate::arch::arena::KRef;
use crate::arch::{Acquire, Arch, Atomic, Full, Relaxed, Release};
use std::ptr::{NonNull, null_mut};

/// What a work item runs, on the kworker, with its item.
pub type WorkFn<A> = unsafe fn(cpu: &Cpu<A>, work: *mut Work<A>);

/// `struct work_struct`
#[derive(Debug)]
pub struct Work<A: Arch> {
    next: Atomic<A, *mut Work<A>>,
    pending: Atomic<A, u32>,
    /// A [`WorkFn`] as a word.
    func: Atomic<A, usize>,
}

impl<A: Arch> Work<A> {
    /// `INIT_WORK()`
    pub fn new(func: WorkFn<A>) -> Self {
        Work { next: Atomic::new(null_mut()), pending: Atomic::new(0), func: Atomic::new(func as *const () as usize) }
    }

    /// `work_pending()`: queued and not yet begun.
    pub fn pending(&self) -> bool {
        self.pending.load(Relaxed) != 0
    }
}

/// `struct workqueue_struct` and its only worker.
pub struct Workqueue<A: Arch> {
    /// Latest first.
    queued: Atomic<A, *mut Work<A>>,
    kworker: Atomic<A, *mut Task<A>>,
    stop: Atomic<A, u32>,
}

impl<A: Arch> Workqueue<A> {
    /// Nothing queued, no worker.
    pub fn new() -> Self {
        Workqueue { queued: Atomic::new(null_mut()), kworker: Atomic::new(null_mut()), stop: Atomic::new(0) }
    }

    fn wake(&self) {
        // ORDER: acquire; meets the release in kworker(): the task is whole.
        if let Some(t) = NonNull::new(self.kworker.load(Acquire)) {
            // SAFETY: tasks live as long as the kernel.
            sched::wake_up_process(unsafe { KRef::new(t) });
        }
    }

    /// Tells the kworker to end once nothing is queued.
    pub fn stop(&self) {
        // ORDER: release, and the barrier of wake_up_process(); meets the test after set_current_state_sleeping().
        self.stop.store(1, Release);
        self.wake();
    }
}

impl<A: Arch> Default for Workqueue<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `queue_work()`: whether it was not queued yet. What the caller stored before is seen by the item's run, also where
/// it was queued already.
///
/// # Safety
/// `work` lives as long as the kernel.
pub unsafe fn queue_work<A: Arch>(wq: &Workqueue<A>, work: *mut Work<A>) -> bool {
    // SAFETY: the caller's.
    let w = unsafe { &*work };
    // ORDER: full, both ways; meets the exchange in run_queued(): either that run sees what was stored before this
    // call, or this call sees 0 and queues the item again.
    if w.pending.swap(1, Full) != 0 {
        return false;
    }
    let mut first = wq.queued.load(Relaxed);
    loop {
        w.next.store(first, Relaxed);
        // ORDER: full; as release it publishes the link, and it comes before the look at the kworker's state
        // (wake_up_process()), the store-buffer pair of its going to sleep.
        match wq.queued.cmpxchg(first, work, Full) {
            Ok(_) => break,
            Err(now) => first = now,
        }
    }
    wq.wake();
    true
}

/// Runs what is queued, oldest first; whether there was anything.
fn run_queued<A: Arch>(cpu: &Cpu<A>, wq: &Workqueue<A>) -> bool {
    if wq.queued.load(Relaxed).is_null() {
        return false;
    }
    // ORDER: full; as acquire it meets the pushes' release.
    let mut p = wq.queued.swap(null_mut(), Full);
    let mut oldest: *mut Work<A> = null_mut();
    while let Some(w) = NonNull::new(p) {
        // SAFETY: items live as long as the kernel; a taken list is the kworker's.
        let w = unsafe { w.as_ref() };
        let next = w.next.load(Relaxed);
        w.next.store(oldest, Relaxed);
        oldest = p;
        p = next;
    }
    while let Some(at) = NonNull::new(oldest) {
        // SAFETY: as above.
        let w = unsafe { at.as_ref() };
        // From the next line on the item may be queued, and linked, again.
        oldest = w.next.load(Relaxed);
        // ORDER: full; the item counts as not queued before its function looks at what it works for
        // (set_work_pool_and_clear_pending()); meets queue_work().
        w.pending.swap(0, Full);
        // SAFETY: the word was made from a WorkFn in Work::new().
        let f = unsafe {
            std::mem::transmute::<*const (), WorkFn<A>>(std::ptr::with_exposed_provenance(w.func.load(Relaxed)))
        };
        // SAFETY: the contract of WorkFn.
        unsafe { f(cpu, at.as_ptr()) };
    }
    true
}

/// Runs what is queued on the calling thread, where no kworker does (boot, small tests); whether that was so.
pub fn flush_on_this_thread<A: Arch>(cpu: &Cpu<A>, wq: &Workqueue<A>) -> bool {
    // ORDER: acquire; meets kworker()'s end: what it did is seen.
    let alone = wq.kworker.load(Acquire).is_null();
    if alone {
        while run_queued(cpu, wq) {}
    }
    alone
}

/// `worker_thread()`: runs work until [`Workqueue::stop`].
pub fn kworker<A: Arch>(cpu: &Cpu<A>, wq: &Workqueue<A>) {
    // ORDER: release; meets wake().
    wq.kworker.store(cpu.task.as_ptr(), Release);
    loop {
        sched::set_current_state_sleeping(cpu);
        if !wq.queued.load(Relaxed).is_null() {
            sched::set_current_state_running(cpu);
            run_queued(cpu, wq);
        } else if wq.stop.load(Relaxed) != 0 {
            break;
        } else {
            sched::schedule(cpu, None);
        }
    }
    sched::set_current_state_running(cpu);
    wq.kworker.store(null_mut(), Release);
    wq.stop.store(0, Relaxed);
}

/// The timers of a CPU: what upper floors want run at a tick, after RCU has had its look. Called at ticks and idle turns
/// only.
pub struct TimerHook<A: Arch> {
    /// Given back to both functions.
    pub ctx: *const (),
    /// When the CPU's next timer is due, in [`Arch::now`]'s ns; `u64::MAX`: never.
    pub next: unsafe fn(*const (), &Cpu<A>) -> u64,
    /// Runs what is due at `now`.
    pub run: unsafe fn(*const (), &Cpu<A>, now: u64),
}

impl<A: Arch> Clone for TimerHook<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Arch> Copy for TimerHook<A> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Native, Plain};
    use crate::cpu::testing::for_test_set;

    #[repr(C)]
    struct Item {
        work: Work<Native>,
        runs: Plain<Native, u64>,
        wanted: Atomic<Native, u64>,
        seen: Plain<Native, u64>,
    }

    unsafe fn note(_: &Cpu<Native>, work: *mut Work<Native>) {
        // SAFETY: the item starts with its work.
        let item = unsafe { &*work.cast::<Item>() };
        item.runs.set(item.runs.get() + 1);
        item.seen.set(item.wanted.load(Relaxed));
    }

    #[test]
    fn what_was_stored_before_queueing_is_seen_by_a_run_after_it() {
        const ROUNDS: u64 = 20_000;
        let set = for_test_set::<Native>(3);
        let wq = Workqueue::<Native>::new();
        let items: Vec<Item> = (0..2)
            .map(|_| Item { work: Work::new(note), runs: Plain::new(0), wanted: Atomic::new(0), seen: Plain::new(0) })
            .collect();
        std::thread::scope(|s| {
            let (wq, items) = (&wq, &items);
            let kw = set.clone();
            let worker = s.spawn(move || kworker(&kw.cpu(2), wq));
            let queuers: Vec<_> = (0..2usize)
                .map(|i| {
                    s.spawn(move || {
                        let item = &items[i];
                        for n in 1..=ROUNDS {
                            item.wanted.store(n, Relaxed);
                            // SAFETY: the items outlive the scope.
                            unsafe { queue_work(wq, (&raw const item.work).cast_mut()) };
                        }
                    })
                })
                .collect();
            for q in queuers {
                q.join().unwrap();
            }
            wq.stop();
            worker.join().unwrap();
        });
        for i in &items {
            assert!((1..=ROUNDS).contains(&i.runs.get()));
            assert_eq!(i.seen.get(), ROUNDS, "the last run saw the last store");
            assert!(!i.work.pending());
        }
    }
}
