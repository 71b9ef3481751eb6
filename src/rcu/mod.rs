// SPDX-License-Identifier: GPL-2.0-only
//! Floor 3: Tree RCU, the preemptible flavour [kernel/rcu, include/linux/rcupdate.h, 6.12].
//!
//! Readers count their nesting; each CPU notes quiescent states at its tick and reports them up a tree of nodes under
//! the nodes' locks; a kernel thread starts and ends grace periods; callbacks run on the CPU that queued them, in
//! batches from the tick (rcu.md). How a kernel is put together: [`RcuState::new`] at boot, a
//! [`TickDevice`](crate::cpu::tick::TickDevice) of [`RcuState::tick_device`] in each worker's CPU token,
//! [`RcuState::install_hooks`] first thing on each worker's thread and [`RcuState::remove_hooks`] last, one kernel
//! thread that runs [`rcu_gp_kthread`] until [`RcuState::stop`]; with offloading [`RcuState::nocb_threads`] more. Nothing
//! else.
//!
//! custom: ticks come at operation boundaries (`cpu/tick.rs`), so whether a tick found a quiescent state is decided by
//! [`QsPolicy`]; threads are pinned and never preempted, so no reader is ever queued on a node. The grace-period
//! thread has no `rcu_data`: it notes nothing for "its own" CPU.
//!
//! dup: priority boosting, CPU hotplug with migration of callbacks, nohz_full, strict grace periods, the counter-wrap
//! marks (64-bit counts), `start_poll_synchronize_rcu_expedited()`, `rcu_normal`. `kfree_rcu` batches are the slab's.
//!
//! What changed up to 7.3 and runs in 6.12's form here, in `v7.3` too:
//! - A segment of callbacks is labelled with the number of a normal grace period alone. 7.3's labels are pairs, with the
//!   number of an expedited one: the list is 32 bytes longer (a line more), a label takes a second load and its barriers,
//!   and callbacks are ready as soon as either ends; `rcuog` is woken by either. Without expedited grace periods, of which
//!   the paths here make none, they are ready when they are here.
//! - The grace-period thread of 7.3 reports for the CPU that it runs on when it starts a grace period. Here it has no
//!   `rcu_data`, and where a worker's CPU was its own that worker reports a tick later.
//! - `rcu_seq_snap()` of 7.3 has a full barrier in front of its load, too.
//! - `synchronize_rcu()` of 7.3 queues its caller for the grace-period thread by default; here that is an option, off
//!   (`normal_wake_from_gp`). Nothing that maps, unmaps or faults calls it.
//! - 7.3 cannot be built without preemption on x86: `QsPolicy::UserOnly` is a kernel up to 6.12 only.
//!
//! It cannot tell how grace periods behave on a CPU that the host takes away in the middle of an operation: the port
//! then waits as a kernel waits for a vCPU.

mod barrier;
pub mod context_tracking;
mod gp_kthread;
#[cfg(test)]
mod held;
mod latency;
mod poll;
pub mod rcu_segcblist;
pub mod rcu_seq;
#[cfg(test)]
mod script;
#[cfg(test)]
mod sim_limits;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod sim_torture;
#[cfg(test)]
mod torture;
mod tree;
mod tree_exp;
mod tree_init;
mod tree_nocb;
mod tree_stall;
mod update;

#[cfg(test)]
pub(crate) use barrier::BarrierCount;
#[cfg(test)]
pub(crate) use barrier::rcu_barrier_in_turn;
pub use barrier::{rcu_barrier, synchronize_rcu};
pub use gp_kthread::rcu_gp_kthread;
pub use latency::SAMPLES;
pub use poll::{
    RcuGpOldstate, cond_synchronize_rcu, cond_synchronize_rcu_full, get_completed_synchronize_rcu,
    get_completed_synchronize_rcu_full, get_state_synchronize_rcu, get_state_synchronize_rcu_full,
    poll_state_synchronize_rcu, poll_state_synchronize_rcu_full, start_poll_synchronize_rcu,
    start_poll_synchronize_rcu_full,
};
pub use tree::{RcuState, call_rcu, call_rcu_hurry};
pub use tree_exp::synchronize_rcu_expedited;
pub use tree_stall::{GpState, STALL_CPUS, STALL_REPORTS, StallKind, StallReport, StalledCpu};
pub use update::{rcu_read_lock, rcu_read_lock_held, rcu_read_unlock};

use crate::arch::{Arch, Atomic};
use crate::counters;
use crate::cpu::Cpu;
use crate::cpu::tick::take_tick_sample;
use std::ptr::null_mut;

/// The `next` word of a callback, or the head of a list.
pub type RcuSlot<A> = Atomic<A, *mut RcuHead<A>>;

/// `struct rcu_head`, 16 bytes inside the object to be freed.
#[repr(C)]
#[derive(Debug)]
pub struct RcuHead<A: Arch> {
    /// Next in the list. Atomic: the words overlay fields that stale readers may still load.
    pub next: RcuSlot<A>,
    /// The callback, an [`RcuCallback`] as a word.
    pub func: Atomic<A, usize>,
}

impl<A: Arch> RcuHead<A> {
    /// Not queued.
    pub fn new() -> Self {
        RcuHead { next: Atomic::new(null_mut()), func: Atomic::new(0) }
    }
}

impl<A: Arch> Default for RcuHead<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// `rcu_callback_t`: called on the CPU that queued `head`, after a grace period.
pub type RcuCallback<A> = unsafe fn(cpu: &Cpu<A>, head: *mut RcuHead<A>);

/// When a tick that comes while an operation runs is a quiescent state (rcu.md 1 and 14). The boundary cannot know
/// where in the operation the tick fell, so it draws, unless a signal looked. Ticks of a sleeping CPU always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QsPolicy {
    /// Non-preemptible kernel without preempt count: only ticks that hit user mode. `permille`: the share of time
    /// spent there.
    UserOnly {
        /// Chance, out of 1000.
        permille: u16,
    },
    /// Preemptible RCU, the distributions' case: ticks that hit no reader and nothing that disables preemption or
    /// softirqs. `permille`: the share of time outside those.
    PreemptZero {
        /// Chance, out of 1000.
        permille: u16,
    },
    /// As [`QsPolicy::PreemptZero`], but not drawn: a real timer signal per worker looks at the counters of readers and
    /// of disabled preemption when the tick falls. Native only; elsewhere, and where the system gives no timer, as
    /// [`QsPolicy::PREEMPT_ZERO`].
    Timer,
    /// Every tick: the optimistic end.
    Always,
}

impl QsPolicy {
    /// A fault loop that is in user mode a tenth of its time (rcu.md 12).
    pub const USER_ONLY: QsPolicy = QsPolicy::UserOnly { permille: 100 };
    /// What [`QsPolicy::Timer`] finds in a page-fault loop (0.68 to 0.76; 0.67 to 0.93 in loops of mmap and brk: BIAS.md).
    /// It is the middle row of rcu.md 12.
    pub const PREEMPT_ZERO: QsPolicy = QsPolicy::PreemptZero { permille: 750 };

    /// Whether this tick is one.
    #[inline]
    pub(crate) fn draw<A: Arch>(self, cpu: &Cpu<A>) -> bool {
        match self {
            QsPolicy::Always => true,
            QsPolicy::Timer => take_tick_sample(cpu).unwrap_or_else(|| QsPolicy::PREEMPT_ZERO.draw(cpu)),
            QsPolicy::UserOnly { permille } | QsPolicy::PreemptZero { permille } => {
                ((cpu.random() >> 32) * 1000) >> 32 < u64::from(permille)
            }
        }
    }
}

/// Boot parameters and build options of RCU; the defaults are a distribution kernel's (rcu.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcuConfig {
    /// Ticks a second (`CONFIG_HZ`).
    pub hz: u32,
    /// `skew_tick=1`: ticks of different CPUs fall at different times.
    pub skew_tick: bool,
    /// What a tick is worth.
    pub qs_policy: QsPolicy,
    /// `CONFIG_RCU_FANOUT`
    pub fanout: u32,
    /// `CONFIG_RCU_FANOUT_LEAF`
    pub fanout_leaf: u32,
    /// Callbacks a pass.
    pub blimit: i64,
    /// Callbacks queued since the last look that make a flood.
    pub qhimark: i64,
    /// Callbacks left at which a flood is over.
    pub qlowmark: i64,
    /// Callbacks queued that make the CPU overloaded.
    pub qovld: i64,
    /// A pass takes at least the ready ones shifted right by this.
    pub rcu_divisor: u32,
    /// Longest pass, ns; clamped to 1 ms..1 s.
    pub rcu_resched_ns: u64,
    /// A grace period of this many seconds is a stall; taken as 3 to 300.
    pub stall_timeout_s: u32,
    /// `rcu_expedited`: [`synchronize_rcu`] makes expedited grace periods.
    pub expedited: bool,
    /// `rcu_normal_wake_from_gp`, off in 6.12 and on in 7.3: [`synchronize_rcu`] queues its caller on a list that the
    /// grace-period thread wakes, in place of a callback.
    pub normal_wake_from_gp: bool,
    /// `rcu_nocbs=all`: callbacks are called by threads, not on the CPU that queued them. [`RcuState::nocb_threads`] more
    /// must run.
    pub nocb: bool,
    /// `CONFIG_RCU_LAZY`: with `nocb`, callbacks of [`call_rcu`] wait up to ten seconds for company.
    pub lazy: bool,
}

impl Default for RcuConfig {
    fn default() -> Self {
        RcuConfig {
            hz: 250,
            skew_tick: false,
            qs_policy: QsPolicy::PREEMPT_ZERO,
            fanout: 64,
            fanout_leaf: 16,
            blimit: 10,
            qhimark: 10_000,
            qlowmark: 100,
            qovld: 20_000,
            rcu_divisor: 7,
            rcu_resched_ns: 3_000_000,
            stall_timeout_s: 21,
            expedited: false,
            normal_wake_from_gp: false,
            nocb: false,
            lazy: false,
        }
    }
}

counters! {
    /// Events of RCU. Balance of a kernel: queued = invoked + [`RcuState::pending`]. What the grace-period thread does
    /// is counted on its own CPU token.
    pub enum RcuCounter in 32..56 => {
        /// Callbacks queued, `rcu_barrier()`'s included.
        CallbacksQueued = "rcu_callbacks_queued",
        /// Callbacks called.
        CallbacksInvoked = "rcu_callbacks_invoked",
        /// Batches (`rcu_do_batch()` with something to do).
        Batches = "rcu_batches",
        /// Batches that left callbacks behind.
        BatchesCut = "rcu_batches_cut",
        /// Quiescent states reported to the leaf by the CPU itself.
        QsReports = "rcu_qs_reports",
        /// Times `note_gp_changes()` found the leaf locked.
        NoteContended = "rcu_note_gp_contended",
        /// Grace periods this CPU's requests woke the thread for.
        GpRequests = "rcu_gp_requests",
        /// Floods: `call_rcu()` past `qhimark`.
        BlimitFloods = "rcu_blimit_floods",
        /// Scans that `call_rcu()` asked for.
        FqsRequests = "rcu_fqs_requests",
        /// Times a CPU was told to hurry and passed through the scheduler.
        UrgentQs = "rcu_urgent_qs",
        /// Pulses of the extended quiescent state.
        MomentaryEqs = "rcu_momentary_eqs",
        /// Grace periods over (thread).
        GracePeriods = "rcu_grace_periods",
        /// Sum of their lengths, ns (thread).
        GracePeriodNs = "rcu_grace_period_ns",
        /// Scans for extended quiescent states (thread).
        FqsScans = "rcu_fqs_scans",
        /// CPUs credited by scans (thread).
        EqsCredits = "rcu_eqs_credits",
        /// Stall reports made.
        CpuStalls = "rcu_cpu_stalls",
        /// `rcu_barrier()` handlers run here.
        BarrierHandlers = "rcu_barrier_handlers",
    }
}

counters! {
    /// Events of RCU's options, counted on the CPU that does the work.
    pub enum RcuExtCounter in 128..144 => {
        /// Expedited grace periods driven.
        ExpGracePeriods = "rcu_exp_grace_periods",
        /// Sum of their lengths, ns.
        ExpGracePeriodNs = "rcu_exp_grace_period_ns",
        /// Calls that waited for somebody else's.
        ExpFollowers = "rcu_exp_followers",
        /// CPUs asked by request.
        ExpRequests = "rcu_exp_requests",
        /// CPUs that needed not be asked.
        ExpCredits = "rcu_exp_credits",
        /// Reports of CPUs that were asked.
        ExpReports = "rcu_exp_reports",
        /// `synchronize_rcu()` calls woken by the grace-period thread (thread).
        SrsWakeups = "rcu_srs_wakeups",
        /// `synchronize_rcu()` calls beyond the limit of the list, which queued a callback.
        SrsFallbacks = "rcu_srs_fallbacks",
        /// Callbacks put on a bypass list.
        NocbBypassed = "rcu_nocb_bypassed",
        /// Bypass lists emptied because they were old or long.
        NocbFlushes = "rcu_nocb_flushes",
        /// Wake-ups of rcuog.
        NocbWakeups = "rcu_nocb_wakeups",
    }
}

/// Deliberate faults for the tests that must notice them.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// None.
    None,
    /// Callbacks are called without a grace period.
    NoGracePeriod,
    /// Labels are one grace period short while one runs.
    ShortSnap,
    /// Callbacks become ready when their grace period begins.
    EarlyAdvance,
    /// A tick inside a reader counts as quiescent state.
    QsInReader,
    /// The grace-period thread takes a watched CPU for idle.
    CreditWatched,
    /// An expedited grace period takes a CPU inside a reader for quiescent.
    ExpQsInReader,
    /// An expedited grace period takes a watched CPU for idle.
    ExpCreditWatched,
}

#[cfg(test)]
impl Bug {
    /// All that are faults.
    pub(crate) const ALL: [Bug; 7] = [
        Bug::NoGracePeriod,
        Bug::ShortSnap,
        Bug::EarlyAdvance,
        Bug::QsInReader,
        Bug::CreditWatched,
        Bug::ExpQsInReader,
        Bug::ExpCreditWatched,
    ];
}
