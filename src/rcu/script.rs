// SPDX-License-Identifier: GPL-2.0-only
//! Torture in one thread: CPUs, readers, ticks, idle periods and the steps of the grace-period thread follow one
//! another in a random order from a seed, so that thousands of grace periods pass in a second and a failure repeats.
//! The invariants of rcu.md 16 are looked at after each step, and each deliberate fault must be noticed.
//!
//! Steps do not overlap, so this shows nothing about orderings and locks; `torture.rs` and `model/` are for those.

use super::gp_kthread::{rcu_gp_cleanup, rcu_gp_fqs, rcu_gp_init};
use super::rcu_seq::rcu_seq_state;
use super::torture::{Element, Pipe, config, token};
use super::tree::{RCU_GP_FLAG_INIT, RcuState};
use super::tree_exp::{rcu_exp_gp_seq_end, rcu_exp_gp_seq_start, sync_exp_reset_tree, sync_rcu_exp_select_node_cpus};
use super::tree_init::RcuNode;
use super::*;
use crate::arch::arena::KRef;
use crate::arch::{Native, Relaxed};
use crate::cpu::tick::TickDevice;
use crate::cpu::{AllLockNodes, LockNodes, PerCpu, splitmix64};
use std::sync::atomic::Ordering;

type A = Native;

struct Script {
    rcu: KRef<RcuState<A>>,
    pipe: &'static Pipe,
    cpus: Vec<Cpu<A>>,
    /// What each CPU's reader holds.
    held: Vec<Option<*mut Element>>,
    idle: Vec<bool>,
    gp: Cpu<A>,
    /// Of the running grace period: whether a scan was made.
    scanned: bool,
    /// Reports and credits at its start.
    reported_before: u64,
    rng: u64,
    /// The grace-period thread does not run.
    stalled: bool,
    /// Grace periods begun and over.
    begun: u64,
    over: u64,
    /// Cookies of polled grace periods, and how many had begun when they were taken.
    cookies: Vec<(u64, RcuGpOldstate, u64, u64)>,
    /// How many of them were over in the end.
    cookies_done: u64,
    /// Expedited grace periods begun and over.
    exp_begun: u64,
    exp_over: u64,
    /// What each CPU's reader took at its start.
    inside: Vec<(u64, RcuGpOldstate)>,
    /// Expedited grace periods are made, too.
    with_exp: bool,
}

impl Script {
    fn new(n: u32, cfg: RcuConfig, bug: Bug, seed: u64) -> Self {
        let rcu = RcuState::leak(n, &cfg);
        rcu.set_bug(bug);
        let nodes: AllLockNodes<A> = PerCpu::leak(n + 1, |_| LockNodes::new());
        let cpus: Vec<_> = (0..n).map(|i| token(i, nodes, TickDevice::off(), seed)).collect();
        cpus.iter().for_each(|c| rcu.install_hooks(c));
        let n = n as usize;
        let gp = token(n as u32, nodes, TickDevice::off(), seed);
        let pipe = Pipe::new(rcu);
        let (held, idle) = (vec![None; n], vec![false; n]);
        let rng = seed;
        let inside = vec![(get_state_synchronize_rcu(&rcu), get_state_synchronize_rcu_full(&rcu)); n];
        Script {
            rcu,
            pipe,
            cpus,
            held,
            idle,
            gp,
            scanned: false,
            reported_before: 0,
            rng,
            stalled: false,
            begun: 0,
            over: 0,
            cookies: Vec::new(),
            cookies_done: 0,
            exp_begun: 0,
            exp_over: 0,
            inside,
            with_exp: false,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.rng = self.rng.wrapping_add(1);
        (splitmix64(self.rng) % below as u64) as usize
    }

    fn reports(&self) -> u64 {
        let own: u64 = self.cpus.iter().map(|c| c.counters.get(RcuCounter::QsReports)).sum();
        own + self.gp.counters.get(RcuCounter::EqsCredits)
    }

    fn tick(&self, c: usize, user: bool) {
        let cpu = &self.cpus[c];
        let h = cpu.hooks.get().unwrap();
        // SAFETY: the token's own hooks.
        unsafe {
            (h.sched_clock_irq)(h.ctx, cpu, user);
            if cpu.softirq.rcu_raised.replace(false) {
                while (h.rcu_core)(h.ctx, cpu) {}
            }
            if self.held[c].is_none() && !user && cpu.softirq.need_resched.replace(false) {
                (h.note_context_switch)(h.ctx, cpu);
            }
        }
    }

    fn gp_step(&mut self) {
        let rcu = self.rcu;
        if rcu_seq_state(rcu.gp_seq()) == 0 {
            if rcu.gp.gp_flags.load(Relaxed) & RCU_GP_FLAG_INIT != 0 {
                assert!(rcu_gp_init(&self.gp, &rcu));
                self.begun += 1;
                self.scanned = false;
                self.reported_before = self.reports();
            }
        } else if rcu.root().qsmask.load(Relaxed) == 0 {
            // R9: each CPU answered once.
            assert_eq!(self.reports() - self.reported_before, self.cpus.len() as u64);
            rcu_gp_cleanup(&self.gp, &rcu);
            self.over += 1;
        } else if self.random(4) == 0 {
            rcu_gp_fqs(&self.gp, &rcu, !self.scanned);
            self.scanned = true;
        }
    }

    /// A driver of expedited grace periods, as `synchronize_rcu_expedited()` between its sleeps.
    fn exp_step(&mut self) {
        let rcu = self.rcu;
        if rcu_seq_state(rcu.expedited_sequence.load(Relaxed)) == 0 {
            rcu_exp_gp_seq_start(&self.gp, &rcu);
            self.exp_begun += 1;
            sync_exp_reset_tree(&self.gp, &rcu);
            rcu.leaf_nodes().iter().for_each(|rnp| sync_rcu_exp_select_node_cpus(&self.gp, &rcu, rnp));
        } else if rcu.root().expmask.load(Relaxed) == 0 {
            rcu_exp_gp_seq_end(&self.gp, &rcu);
            self.exp_over += 1;
        }
    }

    /// Serves what others ask of `c`, wherever it is: inside a reader, too.
    fn serve(&self, c: usize) {
        let cpu = &self.cpus[c];
        let h = cpu.hooks.get().unwrap();
        let bits = cpu.remote.take();
        if bits != 0 {
            // SAFETY: the token's own hooks.
            unsafe { (h.call_function)(h.ctx, cpu, bits) };
        }
    }

    fn step(&mut self) {
        if self.with_exp && self.random(8) == 0 {
            return self.exp_step();
        }
        let n = self.cpus.len();
        let c = self.random(n);
        let what = self.random(20);
        if what >= 15 {
            if !self.stalled {
                self.gp_step();
            }
            return;
        }
        let cpu = &self.cpus[c];
        let h = cpu.hooks.get().unwrap();
        if self.idle[c] {
            // SAFETY: the token's own hooks, in the order of cpu/tick.rs.
            unsafe {
                (h.idle_exit)(h.ctx, cpu);
                self.serve(c);
                if what < 8 {
                    if (h.needs_cpu)(h.ctx, cpu) {
                        self.tick(c, true);
                    }
                    (h.idle_enter)(h.ctx, cpu);
                } else {
                    self.idle[c] = false;
                }
            }
            return;
        }
        match (what, self.held[c]) {
            (0..4, None) => {
                rcu_read_lock(cpu);
                self.held[c] = Some(self.pipe.current.load(Ordering::Relaxed));
                self.inside[c] = (get_state_synchronize_rcu(&self.rcu), get_state_synchronize_rcu_full(&self.rcu));
            }
            (0..4, Some(e)) => {
                self.pipe.judge(e);
                let (s, full) = &self.inside[c];
                if poll_state_synchronize_rcu(&self.rcu, *s) || poll_state_synchronize_rcu_full(&self.rcu, full) {
                    self.pipe.cookie_errors.fetch_add(1, Ordering::Relaxed);
                }
                rcu_read_unlock(cpu);
                self.held[c] = None;
            }
            (4..7, _) => self.pipe.update(cpu),
            (7, None) => {
                self.idle[c] = true;
                // SAFETY: as above.
                unsafe { (h.idle_enter)(h.ctx, cpu) };
            }
            (8, _) => self.serve(c),
            _ => self.tick(c, false),
        }
    }

    /// Takes a cookie now and then, and looks at all: over exactly when a grace period that began after is.
    fn cookies(&mut self) {
        let rcu = self.rcu;
        if self.cookies.len() < 20 && self.random(16) == 0 {
            let c = self.random(self.cpus.len());
            // Grace periods must come without callbacks, too.
            let s = if self.idle[c] {
                (get_state_synchronize_rcu(&rcu), get_state_synchronize_rcu_full(&rcu))
            } else {
                let cpu = &self.cpus[c];
                (start_poll_synchronize_rcu(cpu, &rcu), start_poll_synchronize_rcu_full(cpu, &rcu))
            };
            self.cookies.push((s.0, s.1, self.begun, self.exp_begun));
        }
        let (over, exp_over, before) = (self.over, self.exp_over, self.cookies.len());
        let exp_begun = self.exp_begun;
        self.cookies.retain(|(s, full, begun, exp)| {
            let want = over > *begun || exp_over > *exp;
            assert_eq!(poll_state_synchronize_rcu_full(&rcu, full), want, "{over} over, {begun} begun");
            // One word misses some where both kinds overlap, and none where they do not.
            let one = poll_state_synchronize_rcu(&rcu, *s);
            assert!(!one || want, "{over} over, {begun} begun");
            assert!(one || !want || exp_begun > 0, "{over} over, {begun} begun");
            !(want && one)
        });
        self.cookies_done += (before - self.cookies.len()) as u64;
        assert!(poll_state_synchronize_rcu(&rcu, get_completed_synchronize_rcu()));
        assert!(poll_state_synchronize_rcu_full(&rcu, &get_completed_synchronize_rcu_full()));
    }

    fn check(&mut self) {
        self.cookies();
        let rcu = self.rcu;
        for rdp in rcu.rda.iter() {
            assert_eq!(rdp.cblist.n_segment_cbs(), rdp.cblist.n_cbs());
        }
        // R9: a bit is missing above only where all are missing below.
        for r in rcu.node.iter() {
            let Some(p) = r.parent.as_ref() else { continue };
            if r.gp_seq.load(Relaxed) == p.gp_seq.load(Relaxed) && p.qsmask.load(Relaxed) & r.grpmask == 0 {
                assert_eq!(r.qsmask.load(Relaxed), 0);
            }
        }
        let root: &RcuNode<A> = rcu.root();
        assert!(root.gp_seq.load(Relaxed) == rcu.gp_seq());
    }

    fn invoked(&self) -> u64 {
        self.cpus.iter().map(|c| c.counters.get(RcuCounter::CallbacksInvoked)).sum()
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
            self.check();
        }
    }
}

#[test]
fn r1_r9_r15_thousands_of_grace_periods_keep_every_promise() {
    for (n, fanout, leaf, policy) in [
        (1, 64, 16, QsPolicy::Always),
        (4, 64, 16, QsPolicy::PREEMPT_ZERO),
        (5, 2, 2, QsPolicy::Always),
        (9, 3, 2, QsPolicy::USER_ONLY),
        (20, 64, 16, QsPolicy::PREEMPT_ZERO),
    ] {
        let cfg = RcuConfig { fanout, fanout_leaf: leaf, ..config(policy) };
        let mut s = Script::new(n, cfg, Bug::None, 1);
        s.with_exp = n != 4;
        s.run(150_000);
        assert_eq!(s.exp_over > 1000 / u64::from(n), s.with_exp, "{n} CPUs: {} expedited", s.exp_over);
        let gps = s.gp.counters.get(RcuCounter::GracePeriods);
        assert_eq!(s.pipe.too_short(), 0, "{n} CPUs");
        assert!(s.pipe.seen[1].load(Ordering::Relaxed) > 0, "readers never held what was removed");
        assert!(s.cookies_done > 100, "{n} CPUs: {} cookies", s.cookies_done);
        assert!(gps > if n < 9 { 300 } else { 100 }, "{n} CPUs: {gps}");
        assert_eq!(s.rcu.gp_seq() < 1 << 32, gps >= 300, "the count starts 300 before the wrap");
        if n > 1 {
            assert!(s.gp.counters.get(RcuCounter::EqsCredits) > 0);
        }
    }
}

#[test]
fn r2_each_deliberate_fault_is_noticed() {
    for bug in Bug::ALL {
        let found = (1..4).all(|seed| {
            let mut s = Script::new(4, config(QsPolicy::PREEMPT_ZERO), bug, seed);
            s.with_exp = true;
            (0..200).any(|_| {
                (0..500).for_each(|_| s.step());
                s.pipe.too_short() > 0
            })
        });
        assert!(found, "{bug:?} went unnoticed");
    }
}

#[test]
fn r16_nothing_is_called_while_the_thread_stands_still() {
    let mut s = Script::new(3, config(QsPolicy::Always), Bug::None, 5);
    s.run(5_000);
    s.stalled = true;
    s.run(2_000);
    let at = s.invoked();
    s.run(5_000);
    assert_eq!(s.invoked(), at);
    assert!(s.rcu.pending() > 0);
    s.stalled = false;
    s.run(5_000);
    assert!(s.invoked() > at);
    assert_eq!(s.pipe.too_short(), 0);
}
