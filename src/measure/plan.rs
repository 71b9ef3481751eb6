// SPDX-License-Identifier: GPL-2.0-only
//! The matrix of a run and the order it is measured in.
//!
//! A trial is a complete block: every cell once. Within a trial the configurations (workload x mode x threads) come in
//! shuffled order, and within a configuration the variants do, so that whatever drifts on the machine meets every
//! variant alike and samples of one trial are pairs. The order follows from the recorded seed alone.

use crate::cpu::splitmix64;
use crate::workload::Mode;

/// A workload in a mode on a number of threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Slug.
    pub workload: &'static str,
    /// One mm or one each.
    pub mode: Mode,
    /// Workers.
    pub threads: u32,
}

/// One sample to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Index into the run's variants.
    pub variant: usize,
    /// What runs.
    pub config: Config,
    /// Trial from 0.
    pub trial: u32,
    /// Position in the order.
    pub order: u32,
    /// Seed of the sample: the same for all variants of a configuration and trial.
    pub seed: u64,
}

/// The cells of a run in the order to measure them.
pub fn matrix(variants: usize, configs: &[Config], trials: u32, seed: u64) -> Vec<Cell> {
    let mut rng = Shuffler(seed);
    let mut cells = Vec::new();
    for trial in 0..trials {
        let mut at: Vec<usize> = (0..configs.len()).collect();
        rng.shuffle(&mut at);
        for c in at {
            let mut vs: Vec<usize> = (0..variants).collect();
            rng.shuffle(&mut vs);
            for variant in vs {
                cells.push(Cell {
                    variant,
                    config: configs[c].clone(),
                    trial,
                    order: cells.len() as u32,
                    seed: splitmix64(seed ^ splitmix64(u64::from(trial) << 32 | c as u64)),
                });
            }
        }
    }
    cells
}

struct Shuffler(u64);

impl Shuffler {
    /// Fisher and Yates.
    fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            self.0 = splitmix64(self.0);
            v.swap(i, (self.0 % (i as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs() -> Vec<Config> {
        [1, 2, 4].map(|threads| Config { workload: "brk1", mode: Mode::Process, threads }).to_vec()
    }

    #[test]
    fn every_trial_is_a_complete_block_and_pairs_share_a_seed() {
        let m = matrix(4, &configs(), 5, 7);
        assert_eq!(m.len(), 60);
        for (i, block) in m.chunks(12).enumerate() {
            assert!(block.iter().all(|c| c.trial == i as u32));
            for cfg in configs() {
                let of: Vec<_> = block.iter().filter(|c| c.config == cfg).collect();
                let mut vs: Vec<_> = of.iter().map(|c| c.variant).collect();
                vs.sort_unstable();
                assert_eq!(vs, [0, 1, 2, 3]);
                assert!(of.iter().all(|c| c.seed == of[0].seed));
            }
        }
        let mut seeds: Vec<_> = m.iter().map(|c| c.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 15);
    }

    #[test]
    fn the_order_follows_from_the_seed_and_changes_with_it() {
        assert_eq!(matrix(4, &configs(), 3, 7), matrix(4, &configs(), 3, 7));
        let order = |seed| matrix(4, &configs(), 3, seed).iter().map(|c| c.variant).collect::<Vec<_>>();
        assert_ne!(order(7), order(8));
        let first: Vec<_> = (0..200).map(|s| order(s)[0]).collect();
        for v in 0..4 {
            let n = first.iter().filter(|&&x| x == v).count();
            assert!((25..=75).contains(&n), "variant {v} came first {n} of 200 times");
        }
    }
}
