// SPDX-License-Identifier: GPL-2.0-only
//! Stall reports: who keeps a grace period from ending [kernel/rcu/tree_stall.h, 6.12].
//!
//! A tick that finds the grace period older than the timeout (21 s) reports: the CPU at fault about itself, or two
//! jiffies later any other about all that still owe a quiescent state. The next report of the same grace period comes
//! after three timeouts and three jiffies. Each says for how long the grace-period thread has done nothing; more than
//! two seconds is called starvation.
//!
//! custom: a report is a record of [`RcuState::stall_reports`] in place of lines on the console, for the harness to put
//! into its warnings. A worker has no interrupts: one that never comes to a boundary does not tick, and where no other
//! CPU ticks either nobody would look. So the grace-period thread looks at each scan, too, four jiffies after the
//! timeout. That a wanted grace period never starts is told as well; the kernel looks for that with `PROVE_RCU` only.
//!
//! dup: stack dumps, suppression, the notifier chain, panic, kicking of the thread, the reset for virtual machines that
//! were stopped.
//!
//! INVARIANT: `jiffies_stall` is taken by cmpxchg, so that one CPU at a time reports; the records are written under
//! `stall.lock` and published by `stall.n`.

use super::RcuCounter;
use super::context_tracking::ContextTracking;
use super::rcu_seq::{rcu_seq_ctr, ulong_cmp_ge, ulong_cmp_lt};
use super::tree::{
    RCU_GP_FLAG_INIT, RcuState, raw_spin_lock_rcu_node, raw_spin_unlock_rcu_node, rcu_force_quiescent_state,
    rcu_gp_in_progress,
};
use super::tree_init::{RcuData, RcuNode};
use crate::arch::{Acquire, Arch, Atomic, Native, Plain, Relaxed, Release, smp_mb, smp_rmb};
use crate::cpu::Cpu;
use crate::sync::{RawSpinLock, raw_spin_trylock, raw_spin_unlock};
use std::fmt;
use std::ptr::NonNull;

/// `RCU_STALL_RAT_DELAY`, jiffies: a head start for the CPU at fault.
const RCU_STALL_RAT_DELAY: u64 = 2;
/// Jiffies that the grace-period thread leaves to the ticks of others.
const GP_KTHREAD_DELAY: u64 = RCU_STALL_RAT_DELAY + 2;
/// Reports kept; later ones replace the oldest.
pub const STALL_REPORTS: usize = 4;
/// CPUs that a report names.
pub const STALL_CPUS: usize = 16;

/// `gp_state`: what the grace-period thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum GpState {
    Idle,
    WaitGps,
    DoneGps,
    Onoff,
    Init,
    WaitFqs,
    DoingFqs,
    Cleanup,
    Cleaned,
}

impl GpState {
    const ALL: [(GpState, &'static str); 9] = [
        (GpState::Idle, "RCU_GP_IDLE"),
        (GpState::WaitGps, "RCU_GP_WAIT_GPS"),
        (GpState::DoneGps, "RCU_GP_DONE_GPS"),
        (GpState::Onoff, "RCU_GP_ONOFF"),
        (GpState::Init, "RCU_GP_INIT"),
        (GpState::WaitFqs, "RCU_GP_WAIT_FQS"),
        (GpState::DoingFqs, "RCU_GP_DOING_FQS"),
        (GpState::Cleanup, "RCU_GP_CLEANUP"),
        (GpState::Cleaned, "RCU_GP_CLEANED"),
    ];
    fn of(i: u64) -> GpState {
        Self::ALL[i as usize % 9].0
    }
}

/// What a report says of one CPU that owes a quiescent state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StalledCpu {
    /// Its number.
    pub cpu: u32,
    /// First and last CPU of its leaf.
    pub leaf: (u32, u32),
    /// Grace periods it does not know of.
    pub gps_behind: u64,
    /// Ticks it has taken in this one, if it knows it.
    pub ticks_this_gp: u64,
    /// The word of its extended quiescent state; odd: RCU waits for it.
    pub watching: u32,
    /// Callbacks queued there.
    pub qlen: u64,
    /// It is idle and the grace-period thread starves: the CPU may not be at fault.
    pub maybe_false: bool,
}

/// Why a report was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallKind {
    /// A CPU found that itself owes a quiescent state.
    SelfDetected,
    /// A CPU found that others do, or that all reported and the grace period does not end.
    Detected,
    /// A grace period is wanted and does not start.
    NotStarted,
    /// The driver of an expedited grace period waits for the CPUs named.
    Expedited,
}

/// A stall, as it was when it was noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StallReport {
    /// Who says so, and why.
    pub kind: StallKind,
    /// On which CPU; a number above the workers': a kernel thread.
    pub detected_by: u32,
    /// Jiffies since the grace period began or, if none did, since it was asked for.
    pub t: u64,
    /// Ticks a second.
    pub hz: u32,
    /// The grace period's number, of its kind.
    pub gp_seq: u64,
    /// Callbacks queued on all CPUs.
    pub totqlen: u64,
    /// CPUs that were up.
    pub ncpus: u32,
    /// Scans in this grace period.
    pub fqs: u64,
    /// CPUs of the root, or nodes below it, still owed (of the kind of grace period that stalls).
    pub root_qsmask: u64,
    /// Jiffies since the grace-period thread did anything.
    pub kthread_idle: u64,
    /// More than two seconds of that.
    pub kthread_starved: bool,
    /// What it was at.
    pub gp_state: GpState,
    /// `gp_flags`
    pub gp_flags: u32,
    /// Its task sleeps.
    pub kthread_sleeps: bool,
    /// Jiffies by which the timeout of its wait is late, if that is more than two seconds.
    pub timer_late: u64,
    /// How many CPUs are at fault.
    pub stalled: u32,
    /// The first of them.
    list: [StalledCpu; STALL_CPUS],
}

impl StallReport {
    /// Those at fault, the first [`STALL_CPUS`].
    pub fn cpus(&self) -> &[StalledCpu] {
        &self.list[..(self.stalled as usize).min(STALL_CPUS)]
    }
}

#[cfg(test)]
impl StallReport {
    /// Of CPU `cpu`, for who handles reports.
    pub(crate) fn for_test(cpu: u32) -> Self {
        let mut list = [StalledCpu::default(); STALL_CPUS];
        list[0].cpu = cpu;
        StallReport {
            kind: StallKind::SelfDetected,
            detected_by: cpu,
            t: 2100,
            hz: 100,
            gp_seq: 5,
            totqlen: 7,
            ncpus: 2,
            fqs: 1,
            root_qsmask: 1,
            kthread_idle: 0,
            kthread_starved: false,
            gp_state: GpState::WaitFqs,
            gp_flags: 0,
            kthread_sleeps: true,
            timer_late: 0,
            stalled: 1,
            list,
        }
    }
}

impl fmt::Display for StallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            StallKind::SelfDetected => write!(f, "rcu: self-detected stall on CPU")?,
            StallKind::Detected => write!(f, "rcu: stalls detected on CPUs")?,
            StallKind::NotStarted => write!(f, "rcu: a wanted grace period does not start")?,
            StallKind::Expedited => write!(f, "rcu: expedited stalls detected on CPUs")?,
        }
        for c in self.cpus() {
            write!(f, " {} (leaf {}-{}, ", c.cpu, c.leaf.0, c.leaf.1)?;
            match c.gps_behind {
                0 => write!(f, "{} ticks this GP", c.ticks_this_gp)?,
                n => write!(f, "{n} GPs behind")?,
            }
            let doubt = if c.maybe_false { ", false positive?" } else { "" };
            write!(f, ", idle={:#x}, q={}{doubt})", c.watching, c.qlen)?;
        }
        if self.stalled as usize > STALL_CPUS {
            write!(f, " and {} more", self.stalled as usize - STALL_CPUS)?;
        }
        if self.kind == StallKind::Detected && self.stalled == 0 {
            write!(f, ": none, all quiescent states seen, root qsmask {:#x}", self.root_qsmask)?;
        }
        write!(
            f,
            "; detected by {}, t={} jiffies ({:.1} s), g={}, q={}, ncpus={}, fqs={}",
            self.detected_by,
            self.t,
            self.t as f64 / f64::from(self.hz),
            self.gp_seq as i64,
            self.totqlen,
            self.ncpus,
            self.fqs
        )?;
        if self.kthread_starved {
            write!(
                f,
                "; grace-period thread starved for {} jiffies, f{:#x} {}{}",
                self.kthread_idle,
                self.gp_flags,
                GpState::ALL[self.gp_state as usize].1,
                if self.kthread_sleeps { " asleep" } else { "" }
            )?;
        }
        if self.timer_late > 0 {
            write!(f, "; its timer is {} jiffies late", self.timer_late)?;
        }
        Ok(())
    }
}

const KINDS: [StallKind; 4] =
    [StallKind::SelfDetected, StallKind::Detected, StallKind::NotStarted, StallKind::Expedited];
const HEAD_WORDS: usize = 16;
const CPU_WORDS: usize = 7;

/// A word of the host's: never priced.
type Unpriced = Plain<Native, u64>;

/// A report as words, so that it can be read while the next is written.
struct Slot {
    head: [Unpriced; HEAD_WORDS],
    cpus: [[Unpriced; CPU_WORDS]; STALL_CPUS],
}

/// The last reports.
pub(crate) struct StallState<A: Arch> {
    lock: RawSpinLock<A>,
    /// How many there ever were.
    n: Atomic<A, u64>,
    slots: [Slot; STALL_REPORTS],
    /// A grace period that does not start was told of (`warned`).
    warned: Plain<A, u8>,
}

impl<A: Arch> StallState<A> {
    pub fn new() -> Self {
        let slot = |_| Slot {
            head: std::array::from_fn(|_| Plain::new(0)),
            cpus: std::array::from_fn(|_| std::array::from_fn(|_| Plain::new(0))),
        };
        StallState {
            lock: RawSpinLock::new(),
            n: Atomic::new(0),
            slots: std::array::from_fn(slot),
            warned: Plain::new(0),
        }
    }
}

impl Slot {
    fn put(&self, r: &StallReport) {
        let head = [
            r.kind as u64,
            u64::from(r.detected_by),
            r.t,
            u64::from(r.hz),
            r.gp_seq,
            r.totqlen,
            u64::from(r.ncpus),
            r.fqs,
            r.root_qsmask,
            r.kthread_idle,
            u64::from(r.kthread_starved),
            r.gp_state as u64,
            u64::from(r.gp_flags),
            u64::from(r.kthread_sleeps),
            r.timer_late,
            u64::from(r.stalled),
        ];
        head.iter().zip(&self.head).for_each(|(v, w)| w.set(*v));
        for (c, words) in r.cpus().iter().zip(&self.cpus) {
            let v = [
                u64::from(c.cpu),
                u64::from(c.leaf.0) << 32 | u64::from(c.leaf.1),
                c.gps_behind,
                c.ticks_this_gp,
                u64::from(c.watching),
                c.qlen,
                u64::from(c.maybe_false),
            ];
            v.iter().zip(words).for_each(|(v, w)| w.set(*v));
        }
    }

    fn get(&self) -> StallReport {
        let h: [u64; HEAD_WORDS] = std::array::from_fn(|i| self.head[i].get());
        let cpu = |words: &[Unpriced; CPU_WORDS]| {
            let v: [u64; CPU_WORDS] = std::array::from_fn(|i| words[i].get());
            StalledCpu {
                cpu: v[0] as u32,
                leaf: ((v[1] >> 32) as u32, v[1] as u32),
                gps_behind: v[2],
                ticks_this_gp: v[3],
                watching: v[4] as u32,
                qlen: v[5],
                maybe_false: v[6] != 0,
            }
        };
        StallReport {
            kind: KINDS[h[0] as usize % KINDS.len()],
            detected_by: h[1] as u32,
            t: h[2],
            hz: h[3] as u32,
            gp_seq: h[4],
            totqlen: h[5],
            ncpus: h[6] as u32,
            fqs: h[7],
            root_qsmask: h[8],
            kthread_idle: h[9],
            kthread_starved: h[10] != 0,
            gp_state: GpState::of(h[11]),
            gp_flags: h[12] as u32,
            kthread_sleeps: h[13] != 0,
            timer_late: h[14],
            stalled: h[15] as u32,
            list: std::array::from_fn(|i| cpu(&self.cpus[i])),
        }
    }
}

impl<A: Arch> RcuState<A> {
    /// How many stalls were reported since boot.
    pub fn stalls(&self) -> u64 {
        self.stall.n.load(Acquire)
    }

    /// The last [`STALL_REPORTS`] reports, oldest first. One that is being replaced meanwhile may come out mixed.
    pub fn stall_reports(&self) -> Vec<StallReport> {
        let n = self.stalls() as usize;
        (n.saturating_sub(STALL_REPORTS)..n).map(|i| self.stall.slots[i % STALL_REPORTS].get()).collect()
    }

    /// `rcu_jiffies_till_stall_check()`
    pub(super) fn rcu_jiffies_till_stall_check(&self) -> u64 {
        u64::from(self.config.stall_timeout_s.clamp(3, 300)) * u64::from(self.config.hz)
    }

    /// Notes that the grace-period thread is alive, and at what.
    pub(super) fn gp_activity(&self, state: GpState) {
        self.gp.gp_activity.store(self.jiffies(), Relaxed);
        self.gp_state(state);
    }

    /// Notes what the grace-period thread is at.
    pub(super) fn gp_state(&self, state: GpState) {
        // ORDER: release; the time to look that a wait stores before meets report().
        self.gp.gp_state.store(state as u32, Release);
    }

    /// `rcu_is_gp_kthread_starving()`, and for how long it has been quiet.
    fn rcu_is_gp_kthread_starving(&self, now: u64) -> (bool, u64) {
        let j = now.saturating_sub(self.gp.gp_activity.load(Relaxed));
        (j > 2 * u64::from(self.config.hz), j)
    }
}

/// `record_gp_stall_check_time()`; the root's lock is held.
pub(super) fn record_gp_stall_check_time<A: Arch>(rcu: &RcuState<A>) {
    let j = rcu.jiffies();
    rcu.gp.gp_start.store(j, Relaxed);
    let j1 = rcu.rcu_jiffies_till_stall_check();
    // ORDER: full; the start before the time to look, and both before the number; check_cpu_stall() looks at them in the
    // opposite order, so that a new start is never judged by an old time.
    smp_mb::<A>();
    rcu.gp.jiffies_stall.store(j + j1, Relaxed);
    rcu.gp.jiffies_resched.set(j + j1 / 2);
    rcu.gp.n_force_qs_gpstart.store(rcu.gp.n_force_qs.load(Relaxed), Relaxed);
}

/// `print_cpu_stall_info()`; the leaf's lock is held.
// PORT: the CPU's private words are read while it may write them, as in the kernel; in the port they are plain words of
// one writer, hence whole.
fn stall_info<A: Arch>(rcu: &RcuState<A>, rnp: &RcuNode<A>, rdp: &RcuData<A>, starved: bool) -> StalledCpu {
    let watching = rdp.remote.watching.snapshot();
    StalledCpu {
        cpu: rdp.cpu,
        leaf: (rnp.grplo, rnp.grphi),
        gps_behind: rcu_seq_ctr(rcu.gp.gp_seq.load(Relaxed).wrapping_sub(rdp.gp_seq.get())),
        ticks_this_gp: rdp.ticks_this_gp.get(),
        watching,
        qlen: rdp.cblist.n_cbs().max(0) as u64,
        maybe_false: starved && ContextTracking::<A>::snap_in_eqs(watching),
    }
}

/// Makes and publishes a report.
pub(super) fn report<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, kind: StallKind, since: u64, me: Option<&RcuData<A>>) {
    let now = rcu.jiffies();
    let hz = u64::from(rcu.config.hz);
    let (kthread_starved, kthread_idle) = rcu.rcu_is_gp_kthread_starving(now);
    let mut list = [StalledCpu::default(); STALL_CPUS];
    let mut stalled = 0;
    for rnp in rcu.leaf_nodes() {
        raw_spin_lock_rcu_node(cpu, rnp);
        for n in rnp.grplo..=rnp.grphi {
            let rdp = rcu.rda.of(n);
            let at_fault = match (kind, me) {
                (StallKind::SelfDetected, Some(me)) => me.cpu == n,
                (StallKind::NotStarted, _) => false,
                (StallKind::Expedited, _) => rnp.expmask.load(Relaxed) & rdp.grpmask != 0,
                _ => rnp.qsmask.load(Relaxed) & rdp.grpmask != 0,
            };
            if at_fault {
                if let Some(c) = list.get_mut(stalled) {
                    *c = stall_info(rcu, rnp, rdp, kthread_starved);
                }
                stalled += 1;
            }
        }
        raw_spin_unlock_rcu_node(cpu, rnp);
    }
    // ORDER: acquire; meets the release in RcuState::gp_state().
    let gp_state = GpState::of(u64::from(rcu.gp.gp_state.load(Acquire)));
    let kthread = NonNull::new(rcu.gp_kthread.load(Acquire));
    // SAFETY: tasks live as long as the kernel.
    let kthread_sleeps = kthread.is_some_and(|t| unsafe { t.as_ref() }.on_cpu.load(Relaxed) == 0);
    let late = now.saturating_sub(rcu.gp.jiffies_force_qs.load(Relaxed));
    let r = StallReport {
        kind,
        detected_by: cpu.id,
        t: now.saturating_sub(since),
        hz: rcu.config.hz,
        gp_seq: match kind {
            StallKind::Expedited => rcu.expedited_sequence.load(Relaxed),
            _ => rcu.gp_seq(),
        },
        totqlen: rcu.pending(),
        ncpus: rcu.rda.iter().filter(|r| r.grpmask != 0 && !r.remote.task.load(Relaxed).is_null()).count() as u32,
        fqs: rcu.gp.n_force_qs.load(Relaxed).wrapping_sub(rcu.gp.n_force_qs_gpstart.load(Relaxed)),
        root_qsmask: match kind {
            StallKind::Expedited => rcu.root().expmask.load(Relaxed),
            _ => rcu.root().qsmask.load(Relaxed),
        },
        kthread_idle,
        kthread_starved,
        gp_state,
        gp_flags: rcu.gp.gp_flags.load(Relaxed),
        kthread_sleeps,
        // `rcu_check_gp_kthread_expired_fqs_timer()`
        timer_late: if gp_state == GpState::WaitFqs && late > 2 * hz && kthread_sleeps { late } else { 0 },
        stalled: stalled as u32,
        list,
    };
    cpu.count(RcuCounter::CpuStalls);
    if raw_spin_trylock(cpu, &rcu.stall.lock) {
        let n = rcu.stall.n.load(Relaxed);
        rcu.stall.slots[n as usize % STALL_REPORTS].put(&r);
        // ORDER: release; meets stalls(): who counts it can read it.
        rcu.stall.n.store(n + 1, Release);
        raw_spin_unlock(cpu, &rcu.stall.lock);
    }
}

/// `check_cpu_stall()`: at the tick of the CPU `rdp`, or for the grace-period thread with `None`.
pub(super) fn check_cpu_stall<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: Option<&RcuData<A>>) {
    if !rcu_gp_in_progress(rcu) {
        return rcu_check_gp_start_stall(cpu, rcu);
    }
    let j = rcu.jiffies();
    let gs1 = rcu.gp.gp_seq.load(Relaxed);
    // ORDER: read, three times; number, time to look, start, number again, opposite to record_gp_stall_check_time().
    smp_rmb::<A>();
    let js = rcu.gp.jiffies_stall.load(Relaxed);
    smp_rmb::<A>();
    let gps = rcu.gp.gp_start.load(Relaxed);
    smp_rmb::<A>();
    if gs1 != rcu.gp.gp_seq.load(Relaxed) || ulong_cmp_lt(j, js) || ulong_cmp_ge(gps, js) {
        return;
    }
    stalled(cpu, rcu, rdp, j, js, gps);
}

#[cold]
#[inline(never)]
fn stalled<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>, rdp: Option<&RcuData<A>>, j: u64, js: u64, gps: u64) {
    let own = rdp.is_some_and(|r| r.mynode.qsmask.load(Relaxed) & r.grpmask != 0);
    let delay = if rdp.is_some() { RCU_STALL_RAT_DELAY } else { GP_KTHREAD_DELAY };
    let jn = rcu.jiffies().wrapping_add(u64::MAX / 2);
    if !own && ulong_cmp_lt(j, js + delay) {
        return;
    }
    // ORDER: full; one reports, and the others see the time moved before anything of the report.
    if rcu.gp.jiffies_stall.cmpxchg(js, jn, crate::arch::Full).is_err() {
        return;
    }
    report(cpu, rcu, if own { StallKind::SelfDetected } else { StallKind::Detected }, gps, rdp);
    if rcu.gp.jiffies_stall.load(Relaxed) == jn {
        rcu.gp.jiffies_stall.store(rcu.jiffies() + 3 * rcu.rcu_jiffies_till_stall_check() + 3, Relaxed);
    }
    match rdp {
        Some(_) if own => cpu.softirq.need_resched.set(true),
        Some(rdp) => rcu_force_quiescent_state(cpu, rcu, rdp),
        None => {}
    }
}

/// `rcu_check_gp_start_stall()`, once a boot.
// PORT: the kernel looks in the core, which does not run on a CPU that has labelled all it queued; here the tick does.
fn rcu_check_gp_start_stall<A: Arch>(cpu: &Cpu<A>, rcu: &RcuState<A>) {
    let root = rcu.root();
    if rcu_gp_in_progress(rcu)
        || rcu.gp.gp_flags.load(Relaxed) & RCU_GP_FLAG_INIT == 0
        || rcu.gp_kthread.load(Acquire).is_null()
    {
        return;
    }
    let (j, d) = (rcu.jiffies(), rcu.rcu_jiffies_till_stall_check());
    let since = rcu.gp.gp_req_activity.load(Relaxed);
    if j.saturating_sub(since) < d
        || j.saturating_sub(rcu.gp.gp_activity.load(Relaxed)) < d
        || rcu.stall.warned.get() != 0
    {
        return;
    }
    raw_spin_lock_rcu_node(cpu, root);
    let first = !rcu_gp_in_progress(rcu) && rcu.stall.warned.get() == 0;
    if first {
        rcu.stall.warned.set(1);
    }
    raw_spin_unlock_rcu_node(cpu, root);
    if first {
        report(cpu, rcu, StallKind::NotStarted, since, None);
    }
}
