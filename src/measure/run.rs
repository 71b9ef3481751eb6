// SPDX-License-Identifier: GPL-2.0-only
//! The only timed loop. Threads meet at a start line, warm up, are counted over a span, and keep the load on until the
//! last one has ended its span; it is the same loop for the port in every world and for the host's own kernel.
//!
//! Nothing here allocates, prints or locks. The clock is read where the thread returns to user mode, and then only as
//! often as [`Harness::boundary`] says (reading it costs 10 to 20 ns, an operation 100 to 500).

use crate::cpu::Errno;
use crate::workload::{Space, Workload};

/// When a thread's span ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this time, ns.
    After(u64),
    /// After this many operations of this thread (steps, where an operation can be uncounted).
    Operations(u64),
}

/// What the loop needs from the world it runs in.
pub trait Harness {
    /// Waits until every thread has arrived; returns the common start, ns.
    fn start_line(&self) -> u64;
    /// The time at the last return to user mode, if the clock was read there since the last call.
    fn boundary(&self) -> Option<u64>;
    /// The clock, ns.
    fn now(&self) -> u64;
    /// CPU time of this thread, ns.
    fn cpu_ns(&self) -> u64;
    /// Time of this thread in ticks and callbacks, ns.
    fn softirq_ns(&self) -> u64;
    /// This thread's span begins (`true`) or has ended (`false`).
    fn edge(&self, begins: bool);
    /// Whether every thread's span has ended.
    fn all_ended(&self) -> bool;
}

/// What one thread did in its span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations.
    pub operations: u64,
    /// User faults.
    pub faults: u64,
    /// When the span began, ns.
    pub begin: u64,
    /// When it ended, ns.
    pub end: u64,
    /// Time of refills inside the span, ns.
    pub excluded_ns: u64,
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Time in ticks and callbacks, ns.
    pub softirq_ns: u64,
    /// Operations from the start line to the begin of the span.
    pub operations_warm_up: u64,
    /// User faults from the start line to the end of the load, for the balances.
    pub faults_whole_run: u64,
    /// Operations over the same time: what counters are set against.
    pub operations_whole_run: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Span,
    Load,
}

/// Drives one thread; see the module. An error ends this thread's part, and the others still end theirs. Never inlined:
/// `scripts/ablation` counts its instructions by its name.
///
/// # Errors
/// What the workload met.
#[inline(never)]
pub fn drive<W: Workload, S: Space, H: Harness>(
    space: &S,
    h: &H,
    state: &mut W::State,
    warm_up_ns: u64,
    stop: Stop,
) -> Result<Tally, Errno> {
    let start = h.start_line();
    let mut phase = Phase::WarmUp;
    let (mut steps, mut operations, mut faults, mut excluded) = (0u64, 0u64, 0u64, 0u64);
    let (mut t, mut steps0) = (Tally::default(), 0);
    let r = loop {
        let step = match W::step(space, state) {
            Ok(step) => step,
            Err(e) => break Err(e),
        };
        steps += 1;
        operations += step.operations;
        faults += step.faults;
        if step.exhausted {
            let (at, cpu_at) = (h.now(), h.cpu_ns());
            if let Err(e) = refill::<W, S>(space, state) {
                break Err(e);
            }
            if phase == Phase::Span {
                t.cpu_ns += h.cpu_ns() - cpu_at;
                excluded += h.now() - at;
            }
        }
        let Some(now) = h.boundary() else { continue };
        if phase == Phase::WarmUp && now >= start + warm_up_ns {
            phase = Phase::Span;
            h.edge(true);
            // Until the span ends these fields hold what was there when it began.
            t = Tally { operations, faults, begin: now, cpu_ns: h.cpu_ns(), softirq_ns: h.softirq_ns(), ..t };
            t.operations_warm_up = operations;
            steps0 = steps;
            excluded = 0;
        } else if phase == Phase::Span && ended(stop, now - t.begin, steps - steps0) {
            phase = Phase::Load;
            t.operations = operations - t.operations;
            t.faults = faults - t.faults;
            t.end = now;
            t.excluded_ns = excluded;
            t.cpu_ns = h.cpu_ns().saturating_sub(t.cpu_ns);
            t.softirq_ns = h.softirq_ns() - t.softirq_ns;
            h.edge(false);
        } else if phase == Phase::Load && h.all_ended() {
            break Ok(());
        }
    };
    if phase != Phase::Load {
        h.edge(false);
    }
    t.faults_whole_run = faults;
    t.operations_whole_run = operations;
    r.map(|()| t)
}

/// A function of its own, so that who counts instructions by function (`scripts/ablation`) can leave out what time leaves out.
#[cold]
#[inline(never)]
fn refill<W: Workload, S: Space>(space: &S, state: &mut W::State) -> Result<(), Errno> {
    W::refill(space, state)
}

fn ended(stop: Stop, ns: u64, steps: u64) -> bool {
    match stop {
        Stop::After(span) => ns >= span,
        Stop::Operations(n) => steps >= n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Program;
    use crate::workload::{Seat, anon_fault::AnonFault};
    use std::cell::Cell;

    /// A space that costs 10 ns a fault and 1000 ns a refill, on a clock of its own.
    struct Fake {
        now: Cell<u64>,
        edges: Cell<u32>,
        fail_at: u64,
    }
    impl Space for Fake {
        fn map(&self, at: Option<u64>, _: u64) -> Result<u64, Errno> {
            Ok(at.unwrap_or(0))
        }
        fn unmap(&self, _: u64, _: u64) -> Result<(), Errno> {
            Ok(())
        }
        fn brk(&self, to: u64) -> u64 {
            to
        }
        fn touch(&self, _: u64) -> Result<(), Errno> {
            self.now.set(self.now.get() + 10);
            if self.now.get() >= self.fail_at { Err(Errno::EFAULT) } else { Ok(()) }
        }
        fn zap(&self, _: u64, _: u64) -> Result<(), Errno> {
            self.now.set(self.now.get() + 1000);
            Ok(())
        }
        fn map_as(&self, _: u64, _: u64, _: u32, _: bool) -> Result<(), Errno> {
            Ok(())
        }
        fn protect(&self, _: u64, _: u64, _: u32) -> Result<(), Errno> {
            Ok(())
        }
        fn advise(&self, _: u64, _: u64, _: i32) -> Result<(), Errno> {
            Ok(())
        }
        fn remap(&self, _: u64, _: u64, _: u64, _: u64) -> Result<(), Errno> {
            Ok(())
        }
        fn in_other<R>(&self, _: impl FnOnce(&Self) -> R) -> Option<R> {
            None
        }
        fn end_other(&self) {}
        fn program(&self) -> Option<&Program> {
            None
        }
        fn random(&self) -> u64 {
            4
        }
        fn window(&self) -> u64 {
            1 << 40
        }
    }
    impl Harness for Fake {
        fn start_line(&self) -> u64 {
            self.now.get()
        }
        fn boundary(&self) -> Option<u64> {
            Some(self.now.get())
        }
        fn now(&self) -> u64 {
            self.now.get()
        }
        fn cpu_ns(&self) -> u64 {
            self.now.get()
        }
        fn softirq_ns(&self) -> u64 {
            0
        }
        fn edge(&self, _: bool) {
            self.edges.set(self.edges.get() + 1);
        }
        fn all_ended(&self) -> bool {
            true
        }
    }

    #[test]
    fn the_span_excludes_warm_up_and_refills() {
        let f = Fake { now: Cell::new(5), edges: Cell::new(0), fail_at: u64::MAX };
        let shared = AnonFault::setup(&f, Seat { index: 0, threads: 1 }).unwrap();
        let mut st = AnonFault::attach(&f, shared, Seat { index: 0, threads: 1 }).unwrap();
        let t = drive::<AnonFault, _, _>(&f, &f, &mut st, 1000, Stop::After(100_000)).unwrap();
        let timed = t.end - t.begin - t.excluded_ns;
        assert!(t.excluded_ns >= 10_000, "refills happened: {t:?}");
        assert_eq!(timed / 10, t.operations, "10 ns an operation, refills aside: {t:?}");
        assert_eq!(t.cpu_ns, timed);
        assert_eq!(t.faults, t.operations);
        assert!(t.operations_warm_up >= 90 && t.operations_whole_run >= t.operations + t.operations_warm_up, "{t:?}");
        assert!(t.faults_whole_run > t.faults + 90);
        assert_eq!(f.edges.get(), 2);
    }

    #[test]
    fn a_failing_thread_still_ends_its_span_for_the_others() {
        let f = Fake { now: Cell::new(0), edges: Cell::new(0), fail_at: 2000 };
        let mut st = AnonFault::attach(&f, [0, 0], Seat { index: 0, threads: 1 }).unwrap();
        let r = drive::<AnonFault, _, _>(&f, &f, &mut st, 1000, Stop::Operations(1_000_000));
        assert_eq!(r, Err(Errno::EFAULT));
        assert_eq!(f.edges.get(), 2);
    }
}
