// SPDX-License-Identifier: GPL-2.0-only
//! Whether values move with the order in which they were taken.
//!
//! A machine that warms up, or a neighbour that arrives, breaks the independence that every interval here rests on.
//! Nothing repairs that afterwards; the row gets a warning.

use super::dist;

/// Lag-1 autocorrelation above which [`warning`] speaks.
pub const LAG1_LIMIT: f64 = 0.5;

/// Correlation of neighbours in time; NaN below three values or without spread.
pub fn lag1(x: &[f64]) -> f64 {
    if x.len() < 3 {
        return f64::NAN;
    }
    let mean = super::descriptive::amean(x);
    let spread: f64 = x.iter().map(|v| (v - mean).powi(2)).sum();
    x.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / spread
}

/// Kendall's tau-b of `x` against its index, and its two-sided p-value: exact for up to 60 values without ties, else
/// normal with tie correction and continuity. `None` below three values or without spread.
pub fn kendall(x: &[f64]) -> Option<(f64, f64)> {
    let n = x.len();
    if n < 3 {
        return None;
    }
    let mut s = 0_i64;
    for i in 0..n {
        for j in i + 1..n {
            s += i64::from(x[j] > x[i]) - i64::from(x[j] < x[i]);
        }
    }
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let runs: Vec<f64> = sorted.chunk_by(|a, b| a == b).map(|run| run.len() as f64).collect();
    let pairs = (n * (n - 1) / 2) as f64;
    let tied: f64 = runs.iter().map(|t| t * (t - 1.0) / 2.0).sum();
    if tied >= pairs {
        return None;
    }
    let tau = s as f64 / (pairs * (pairs - tied)).sqrt();
    let p = if tied == 0.0 && n <= 60 {
        kendall_exact(n, s)
    } else {
        let nf = n as f64;
        let variance = (nf * (nf - 1.0) * (2.0 * nf + 5.0)
            - runs.iter().map(|t| t * (t - 1.0) * (2.0 * t + 5.0)).sum::<f64>())
            / 18.0;
        let z = (s.abs() as f64 - 1.0).max(0.0) / variance.sqrt();
        dist::normal_two_sided(z)
    };
    Some((tau, p.min(1.0)))
}

/// Share of the permutations of `n` values whose score is at least as far from zero as `s`.
fn kendall_exact(n: usize, s: i64) -> f64 {
    let pairs = n * (n - 1) / 2;
    // share[d]: probability of d discordant pairs; value number k adds 0 to k-1 of them, equally likely.
    let mut share = vec![0.0_f64; pairs + 1];
    share[0] = 1.0;
    for k in 2..=n {
        let old = share.clone();
        for (d, cell) in share.iter_mut().enumerate() {
            *cell = (0..k.min(d + 1)).map(|more| old[d - more]).sum::<f64>() / k as f64;
        }
    }
    let score = |d: usize| (pairs as i64 - 2 * d as i64).abs();
    (0..=pairs).filter(|&d| score(d) >= s.abs()).map(|d| share[d]).sum()
}

/// A sentence when `x`, in the order taken, drifts: neighbours correlate above [`LAG1_LIMIT`], or Kendall's tau is
/// significant at `alpha`.
pub fn warning(x: &[f64], alpha: f64) -> Option<String> {
    let r = lag1(x);
    if r > LAG1_LIMIT {
        return Some(format!("drifts with time: lag-1 autocorrelation {r:.2}"));
    }
    match kendall(x) {
        Some((tau, p)) if p < alpha => Some(format!("drifts with time: Kendall tau {tau:.2}, p={p:.3}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tau_of_known_orders() {
        let (tau, p) = kendall(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("spreads");
        assert_eq!(tau, 1.0);
        assert!((p - 2.0 / 120.0).abs() < 1e-12, "{p}");
        // One neighbour swap in five: 9 concordant, 1 discordant; permutations with at most one inversion: 1 + 4.
        let (tau, p) = kendall(&[2.0, 1.0, 3.0, 4.0, 5.0]).expect("spreads");
        assert!((tau - 0.8).abs() < 1e-12 && (p - 2.0 * 5.0 / 120.0).abs() < 1e-12, "{tau} {p}");
    }

    #[test]
    fn ties_lower_the_divisor_and_constants_have_no_tau() {
        let (tau, _) = kendall(&[1.0, 1.0, 2.0, 2.0]).expect("spreads");
        assert!((tau - 4.0 / 24.0_f64.sqrt()).abs() < 1e-12, "{tau}");
        assert!(kendall(&[4.0; 9]).is_none());
        assert!(kendall(&[1.0, 2.0]).is_none());
    }

    #[test]
    fn a_ramp_warns_and_an_alternation_does_not() {
        let ramp: Vec<f64> = (0..12).map(|i| 500.0 + f64::from(i)).collect();
        assert!(warning(&ramp, 0.05).is_some());
        let zigzag: Vec<f64> = (0..12).map(|i| 500.0 + f64::from(i % 2)).collect();
        assert!(lag1(&zigzag) < -0.8);
        assert_eq!(warning(&zigzag, 0.05), None);
        assert_eq!(warning(&[5.0; 12], 0.05), None);
    }

    #[test]
    fn a_slow_trend_under_noise_is_seen_by_tau() {
        let x = [1.0, 3.0, 0.5, 4.0, 2.0, 5.5, 2.5, 6.0, 4.5, 7.0, 3.5, 8.0];
        assert!(lag1(&x) < LAG1_LIMIT);
        assert!(warning(&x, 0.05).is_some_and(|w| w.contains("tau")));
    }
}
