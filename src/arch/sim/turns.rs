// SPDX-License-Identifier: GPL-2.0-only
//! Whose turn it is: the earliest clock, and what is drawn at random to make it another one's.
//!
//! A seed is an interleaving: the same numbers are drawn in the same order each time, and nothing else decides.

use super::machine::{NEVER, PS_PER_NS};

/// Delays before random accesses: each seed is another interleaving, the same each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter {
    /// Which interleaving.
    pub seed: u64,
    /// Accesses between two delays, on average.
    pub every: u32,
    /// Longest delay, ns.
    pub max_ns: u64,
    /// Whether every second pass of a named place ([`crate::arch::Arch::pause_point`]) is one of them, too.
    pub at_names: bool,
}

/// Priorities instead of delays (probabilistic concurrency testing, Burckhardt and others, ASPLOS 2010): the CPU with the
/// highest runs until it must wait, and at a few accesses drawn at random the one that runs falls behind all others. A
/// clock that is far behind is what a high priority is here. A failure that needs `changes` such moments among `k` accesses
/// is met with a chance of at least 1 in `CPUs * k^changes`, whatever else the run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priorities {
    /// Which interleaving.
    pub seed: u64,
    /// Moments at which a CPU loses its turn.
    pub changes: u32,
    /// The accesses of a CPU among which these moments are drawn.
    pub within: u32,
    /// Distance of one priority from the next, ns: longer than the run, or CPUs overtake each other.
    pub gap_ns: u64,
}

/// A winner tree over the CPUs' next times: the root is the earliest, the lower CPU on a tie.
pub(super) struct Earliest {
    leaves: usize,
    at: Vec<u64>,
    winner: Vec<u32>,
}

impl Earliest {
    pub(super) fn new(cpus: usize) -> Earliest {
        let leaves = cpus.next_power_of_two().max(2);
        let mut winner = vec![0; 2 * leaves];
        for i in (1..2 * leaves).rev() {
            winner[i] = if i >= leaves { (i - leaves) as u32 } else { winner[2 * i] };
        }
        Earliest { leaves, at: vec![NEVER; leaves], winner }
    }
    #[inline(always)]
    pub(super) fn set(&mut self, cpu: u32, at: u64) {
        self.at[cpu as usize] = at;
        let mut i = (self.leaves + cpu as usize) / 2;
        while i != 0 {
            let (l, r) = (self.winner[2 * i], self.winner[2 * i + 1]);
            self.winner[i] = if self.at[r as usize] < self.at[l as usize] { r } else { l };
            i /= 2;
        }
    }
    #[inline(always)]
    pub(super) fn first(&self) -> (u32, u64) {
        let w = self.winner[1];
        (w, self.at[w as usize])
    }
}

/// What is drawn in a run.
pub(super) struct Draws {
    pub(super) jitter: Option<Jitter>,
    /// Count where there is no jitter.
    pub(super) priorities: Option<Priorities>,
    rng: u64,
}

/// How a CPU begins a run.
pub(super) struct Start {
    /// How far it is behind, ps.
    pub(super) behind: u64,
    /// Its accesses until its first delay.
    pub(super) until_delay: u32,
    /// Accesses between further moments of [`Priorities`], the next one last.
    pub(super) changes: Vec<u32>,
}

impl Draws {
    pub(super) fn new(jitter: Option<Jitter>) -> Draws {
        Draws { jitter, priorities: None, rng: 0 }
    }

    /// Next number below `below` (xorshift64).
    fn draw(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        ((u128::from(self.rng) * u128::from(below)) >> 64) as u64
    }

    /// A delay that is due on one of `cpus` CPUs, ps, and its accesses until the next one.
    pub(super) fn delay(&mut self, cpus: usize, changes: &mut Vec<u32>) -> (u64, u32) {
        if let Some(j) = self.jitter {
            let ps = self.draw(j.max_ns.saturating_mul(PS_PER_NS));
            (ps, 1 + self.draw(2 * u64::from(j.every)) as u32)
        } else if let Some(p) = self.priorities {
            (cpus as u64 * p.gap_ns.saturating_mul(PS_PER_NS), changes.pop().unwrap_or(u32::MAX))
        } else {
            (0, u32::MAX)
        }
    }

    /// The delay at a named place, ps; mostly none.
    pub(super) fn at_name(&mut self) -> u64 {
        match self.jitter.filter(|j| j.at_names) {
            Some(j) if self.draw(2) == 0 => self.draw(j.max_ns.saturating_mul(PS_PER_NS)),
            _ => 0,
        }
    }

    /// Starts the sequence of a run of `cpus` CPUs, the first `workers` of them workers.
    pub(super) fn start(&mut self, cpus: usize, workers: u32) -> Vec<Start> {
        // Spreads the seed; the generator must not start at 0.
        let seed = self.jitter.map(|j| j.seed).or(self.priorities.map(|p| p.seed)).unwrap_or(0);
        self.rng = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
        match (self.jitter, self.priorities) {
            (Some(j), _) => (0..cpus)
                .map(|_| self.draw(2 * u64::from(j.every)) as u32)
                .map(|until_delay| Start { behind: 0, until_delay, changes: Vec::new() })
                .collect(),
            (None, Some(p)) => self.priorities(p, cpus, workers),
            (None, None) => {
                (0..cpus).map(|_| Start { behind: 0, until_delay: u32::MAX, changes: Vec::new() }).collect()
            }
        }
    }

    fn priorities(&mut self, p: Priorities, cpus: usize, workers: u32) -> Vec<Start> {
        let mut rank: Vec<u64> = (0..cpus as u64).collect();
        (1..cpus).for_each(|i| rank.swap(i, self.draw(i as u64 + 1) as usize));
        let mut moments = vec![Vec::new(); cpus];
        for _ in 0..p.changes {
            let cpu = self.draw(u64::from(workers)) as usize;
            moments[cpu].push(self.draw(u64::from(p.within)) as u32);
        }
        let one = |(rank, mut at): (u64, Vec<u32>)| {
            at.sort_unstable();
            let gaps = at.iter().scan(0, |last, &m| Some(m - std::mem::replace(last, m)));
            let mut changes: Vec<u32> = gaps.collect();
            changes.reverse();
            let until_delay = changes.pop().unwrap_or(u32::MAX);
            Start { behind: rank * p.gap_ns.saturating_mul(PS_PER_NS), until_delay, changes }
        };
        rank.into_iter().zip(moments).map(one).collect()
    }
}
