// SPDX-License-Identifier: GPL-2.0-only
//! The arithmetic of mmtests' comparison tables, for the layout that reviewers know by heart.
//!
//! Follows the rules of that tool with its R helper present. Its star is not a test of significance: it asks whether
//! intervals of 1.96 standard *deviations* overlap, so more runs never help. Verdicts of this tool do not use it.

use super::descriptive::{amean, hmean, hstddev, stddev};
use super::dist;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Rates: more is better; harmonic forms.
    Higher,
    /// Times and counts: less is better; arithmetic forms.
    Lower,
}

impl Better {
    /// The mean that mmtests prints.
    pub fn mean(self, x: &[f64]) -> f64 {
        match self {
            Self::Higher => hmean(x),
            Self::Lower => amean(x),
        }
    }

    /// The deviation that goes with [`Better::mean`].
    pub fn deviation(self, x: &[f64]) -> f64 {
        match self {
            Self::Higher => hstddev(x),
            Self::Lower => stddev(x),
        }
    }

    /// Percent change, positive when better. The special cases around zero are mmtests'.
    pub fn percent(self, base: f64, new: f64) -> f64 {
        match self {
            Self::Higher if base == new || new == 0.0 => 0.0,
            Self::Lower if base == new => 0.0,
            Self::Higher if base == 0.0 => 100.0,
            Self::Lower if base == 0.0 => -99.0,
            Self::Lower if new == 0.0 => 100.0,
            Self::Higher => 100.0 * new / base - 100.0,
            Self::Lower => 100.0 - 100.0 * new / base,
        }
    }
}

/// Half width of the interval: the normal 97.5 % point times the deviation (not the standard error).
pub fn half_width(deviation: f64) -> f64 {
    dist::normal_quantile(0.05) * deviation
}

/// The interval around the mean of one side.
pub fn interval(better: Better, x: &[f64]) -> (f64, f64) {
    let (mean, half) = (better.mean(x), half_width(better.deviation(x)));
    (mean - half, mean + half)
}

/// Change in units of the summed half widths, positive for a rise. NaN where a side has one value.
pub fn signed_ratio(better: Better, base: &[f64], new: &[f64]) -> f64 {
    (better.mean(new) - better.mean(base)) / (half_width(better.deviation(base)) + half_width(better.deviation(new)))
}

/// Whether the mean row gets stars. Sides of one value never do; nor do two sides without spread, where the original
/// would star any difference.
pub fn starred(better: Better, base: &[f64], new: &[f64]) -> bool {
    let ratio = signed_ratio(better, base, new);
    ratio.is_finite() && ratio.abs() > 1.0
}

/// Mean over the best `percent` of the values, at least one.
pub fn best_mean(better: Better, x: &[f64], percent: u32) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    if better == Better::Higher {
        sorted.reverse();
    }
    let keep = (x.len() * percent as usize / 100).max(1);
    better.mean(&sorted[..keep.min(sorted.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_follows_the_special_cases() {
        use Better::{Higher, Lower};
        assert_eq!((Higher.percent(5.0, 5.0), Higher.percent(5.0, 0.0), Higher.percent(0.0, 5.0)), (0.0, 0.0, 100.0));
        assert_eq!((Lower.percent(5.0, 5.0), Lower.percent(5.0, 0.0), Lower.percent(0.0, 5.0)), (0.0, 100.0, -99.0));
        assert_eq!((Higher.percent(100.0, 110.0).round(), Lower.percent(100.0, 110.0).round()), (10.0, -10.0));
    }

    #[test]
    fn one_run_and_constant_runs_get_no_star() {
        assert!(!starred(Better::Higher, &[1.0], &[2.0]));
        assert!(!starred(Better::Higher, &[1.0, 1.0], &[2.0, 2.0]));
        assert!(starred(Better::Lower, &[1.0, 1.1], &[2.0, 2.1]));
    }

    #[test]
    fn more_runs_never_help_a_star() {
        let few = ([99.0, 101.0], [101.0, 103.0]);
        let many = (few.0.repeat(500), few.1.repeat(500));
        assert!(!starred(Better::Higher, &few.0, &few.1) && !starred(Better::Higher, &many.0, &many.1));
    }
}
