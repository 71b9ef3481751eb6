// SPDX-License-Identifier: GPL-2.0-only
//! What may be said when values (or their logarithms) are normal: intervals and tests by Student's t.
//!
//! A ratio gets its interval on logarithms, because dividing the interval of a difference by the baseline
//! mean would ignore that the baseline itself was measured.

use super::descriptive::{amean, stddev};
use super::dist;

/// A point with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Best guess.
    pub point: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Estimate {
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { point: f(self.point), low: f(self.low), high: f(self.high) }
    }
}

/// Result of a t test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TTest {
    /// Second minus first, with its interval.
    pub difference: Estimate,
    /// Test statistic.
    pub t: f64,
    /// Degrees of freedom.
    pub df: f64,
    /// Two-sided p-value.
    pub p: f64,
}

/// Two-sided quantile: the t that a fraction `confidence` of the distribution does not exceed in size.
pub fn t_quantile(confidence: f64, df: f64) -> Option<f64> {
    let asked = df > 0.0 && df.is_finite() && confidence > 0.0 && confidence < 1.0;
    asked.then(|| dist::t_quantile(1.0 - confidence, df))
}

fn t_test(difference: f64, standard_error: f64, df: f64, confidence: f64) -> Option<TTest> {
    if !(standard_error > 0.0 && df > 0.0) {
        return None;
    }
    let half = t_quantile(confidence, df)? * standard_error;
    let t = difference / standard_error;
    Some(TTest {
        difference: Estimate { point: difference, low: difference - half, high: difference + half },
        t,
        df,
        p: dist::t_two_sided(t, df),
    })
}

/// The mean with its t interval; `None` below two values.
pub fn t_interval(x: &[f64], confidence: f64) -> Option<Estimate> {
    if x.len() < 2 {
        return None;
    }
    let (mean, sem) = (amean(x), stddev(x) / (x.len() as f64).sqrt());
    let half = t_quantile(confidence, x.len() as f64 - 1.0)? * sem;
    Some(Estimate { point: mean, low: mean - half, high: mean + half })
}

/// Welch's test of the difference of means, second minus first, variances not assumed equal. `None` below two values a
/// side or where neither side spreads.
pub fn welch(a: &[f64], b: &[f64], confidence: f64) -> Option<TTest> {
    if a.len() < 2 || b.len() < 2 {
        return None;
    }
    let (na, nb) = (a.len() as f64, b.len() as f64);
    let (va, vb) = (stddev(a).powi(2) / na, stddev(b).powi(2) / nb);
    let df = (va + vb).powi(2) / (va * va / (na - 1.0) + vb * vb / (nb - 1.0));
    t_test(amean(b) - amean(a), (va + vb).sqrt(), df, confidence)
}

/// Ratio of geometric means, second over first, with Welch's interval taken on logarithms. `None` as for [`welch`], or
/// when a value is not positive.
pub fn log_welch(a: &[f64], b: &[f64], confidence: f64) -> Option<Estimate> {
    Some(welch(&logs(a)?, &logs(b)?, confidence)?.difference.map(f64::exp))
}

/// Paired test of `b[i] - a[i]`. `None` where the lengths differ, below two pairs, or where all differences are equal.
pub fn paired(a: &[f64], b: &[f64], confidence: f64) -> Option<TTest> {
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let n = d.len() as f64;
    t_test(amean(&d), stddev(&d) / n.sqrt(), n - 1.0, confidence)
}

/// Geometric mean of `b[i] / a[i]` with the paired t interval of its logarithm. `None` as for [`paired`], or when a
/// value is not positive.
pub fn log_paired(a: &[f64], b: &[f64], confidence: f64) -> Option<Estimate> {
    Some(paired(&logs(a)?, &logs(b)?, confidence)?.difference.map(f64::exp))
}

/// Cohen's d: difference of means in units of the pooled deviation.
pub fn cohen_d(a: &[f64], b: &[f64]) -> f64 {
    let (na, nb) = (a.len() as f64, b.len() as f64);
    let pooled = ((na - 1.0) * stddev(a).powi(2) + (nb - 1.0) * stddev(b).powi(2)) / (na + nb - 2.0);
    (amean(b) - amean(a)) / pooled.sqrt()
}

fn logs(x: &[f64]) -> Option<Vec<f64>> {
    x.iter().map(|&v| (v > 0.0).then(|| v.ln())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spread_and_too_few_values_have_no_test() {
        assert!(welch(&[1.0, 1.0], &[2.0, 2.0], 0.95).is_none());
        assert!(welch(&[1.0], &[2.0, 3.0], 0.95).is_none());
        assert!(paired(&[1.0, 2.0], &[2.0, 3.0], 0.95).is_none());
        assert!(log_welch(&[1.0, 0.0], &[2.0, 3.0], 0.95).is_none());
        assert!(log_paired(&[1.0, 2.0], &[2.0], 0.95).is_none());
        assert!(t_interval(&[1.0], 0.95).is_none());
    }

    #[test]
    fn quantiles_are_the_printed_ones() {
        // Two-sided 95 % points of any printed t table.
        for (df, want) in [(1.0, 12.706205), (2.0, 4.302653), (5.0, 2.570582), (30.0, 2.042272), (1000.0, 1.962339)] {
            let got = t_quantile(0.95, df).expect("df is positive");
            assert!((got - want).abs() < 5e-7, "df {df}: {got} instead of {want}");
        }
    }

    #[test]
    fn pairing_removes_a_shared_drift() {
        let a = [100.0, 110.0, 120.0, 130.0, 140.0];
        let b: Vec<f64> = a.iter().enumerate().map(|(i, v)| v * (1.02 + 0.0001 * i as f64)).collect();
        let (paired, loose) = (log_paired(&a, &b, 0.95).expect("spreads"), log_welch(&a, &b, 0.95).expect("spreads"));
        assert!(paired.low > 1.019 && paired.high < 1.022);
        assert!(loose.low < 1.0 && loose.high > 1.04);
    }
}
