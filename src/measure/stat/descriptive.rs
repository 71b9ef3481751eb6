// SPDX-License-Identifier: GPL-2.0-only
//! Means, spreads, medians and their intervals.
//!
//! Rates at fixed work are averaged by [`hmean`], times by [`amean`] or [`median`], ratios over unlike tests by
//! [`gmean`] and nothing else by it. The deviations named with an `h` belong to the harmonic mean and follow mmtests.

use super::dist::fair_tosses;

/// Factor that turns a median absolute deviation into the standard deviation of a normal sample.
pub const MAD_TO_SIGMA: f64 = 1.4826;

/// Arithmetic mean; NaN of nothing.
pub fn amean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// Harmonic mean; NaN when a value is zero or negative, or of nothing.
pub fn hmean(x: &[f64]) -> f64 {
    if x.iter().any(|&v| v <= 0.0) { f64::NAN } else { x.len() as f64 / x.iter().map(|v| 1.0 / v).sum::<f64>() }
}

/// Geometric mean, for ratios; NaN when a value is zero or negative, or of nothing.
pub fn gmean(x: &[f64]) -> f64 {
    if x.iter().any(|&v| v <= 0.0) { f64::NAN } else { (x.iter().map(|v| v.ln()).sum::<f64>() / x.len() as f64).exp() }
}

/// Standard deviation with divisor n-1; NaN below two values.
pub fn stddev(x: &[f64]) -> f64 {
    if x.len() < 2 { f64::NAN } else { (squares(x) / (x.len() - 1) as f64).sqrt() }
}

/// Standard deviation with divisor n.
pub fn stddev_n(x: &[f64]) -> f64 {
    (squares(x) / x.len() as f64).sqrt()
}

/// Sum of squared distances from the mean, in two passes.
fn squares(x: &[f64]) -> f64 {
    let mean = amean(x);
    x.iter().map(|v| (v - mean).powi(2)).sum()
}

/// Deviation of the harmonic mean as mmtests has it: the spread of the reciprocals, divisor n, scaled back by H^2. NaN
/// below two values.
pub fn hstddev(x: &[f64]) -> f64 {
    if x.len() < 2 {
        return f64::NAN;
    }
    let h = hmean(x);
    let about_h: f64 = x.iter().map(|v| (1.0 / v - 1.0 / h).powi(2)).sum::<f64>() / x.len() as f64;
    h * h * about_h.sqrt()
}

/// [`stddev`] in percent of [`amean`].
pub fn coeff_var(x: &[f64]) -> f64 {
    100.0 * stddev(x) / amean(x)
}

/// [`hstddev`] in percent of [`hmean`].
pub fn hcoeff_var(x: &[f64]) -> f64 {
    100.0 * hstddev(x) / hmean(x)
}

/// The middle value; the mean of the two middle ones of an even count.
pub fn median(x: &[f64]) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Median absolute deviation from the median, not scaled.
pub fn mad(x: &[f64]) -> f64 {
    let m = median(x);
    median(&x.iter().map(|v| (v - m).abs()).collect::<Vec<_>>())
}

/// Indexes of values further than three robust sigma from the median. They are to be shown, never dropped. Empty where
/// the robust sigma is zero (most values equal): no scale, no outlier.
pub fn outliers(x: &[f64]) -> Vec<usize> {
    let (m, sigma) = (median(x), MAD_TO_SIGMA * mad(x));
    if sigma.is_nan() || sigma <= 0.0 {
        return Vec::new();
    }
    (0..x.len()).filter(|&i| (x[i] - m).abs() > 3.0 * sigma).collect()
}

/// An interval and the probability with which such an interval covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OrderInterval {
    /// Lower end, a value of the sample.
    pub low: f64,
    /// Upper end, a value of the sample.
    pub high: f64,
    /// Exact coverage, at least what was asked for.
    pub coverage: f64,
}

/// Confidence interval of the median by order statistics: the narrowest symmetric pair of sample values that covers
/// with at least `confidence`. `None` when even the extremes do not (fewer than 6 values at 95 %).
pub fn median_interval(x: &[f64], confidence: f64) -> Option<OrderInterval> {
    let n = x.len();
    let coverage = |j: usize| 1.0 - 2.0 * fair_tosses(j - 1, n);
    // Coverage shrinks as j grows, so the last j that still covers is the narrowest pair.
    let j = (1..=n / 2).take_while(|&j| coverage(j) >= confidence).last()?;
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(OrderInterval { low: sorted[j - 1], high: sorted[n - j], coverage: coverage(j) })
}

/// Smallest and largest value; NaN of nothing.
pub fn range(x: &[f64]) -> (f64, f64) {
    let fold = |pick: fn(f64, f64) -> f64| x.iter().copied().reduce(pick).unwrap_or(f64::NAN);
    (fold(f64::min), fold(f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_has_no_harmonic_mean() {
        assert!(hmean(&[1.0, 0.0]).is_nan());
        assert!(hmean(&[1.0, -1.0]).is_nan());
        assert!(gmean(&[1.0, 0.0]).is_nan());
    }

    #[test]
    fn nothing_and_one_value_do_not_panic() {
        for x in [&[][..], &[3.0][..]] {
            assert!(stddev(x).is_nan() && hstddev(x).is_nan() && coeff_var(x).is_nan());
            assert!(median_interval(x, 0.95).is_none());
            assert!(outliers(x).is_empty());
        }
        assert!(amean(&[]).is_nan() && hmean(&[]).is_nan() && median(&[]).is_nan());
        assert_eq!((amean(&[3.0]), hmean(&[3.0]), median(&[3.0]), mad(&[3.0])), (3.0, 3.0, 3.0, 0.0));
    }

    #[test]
    fn the_median_interval_needs_six_values() {
        assert!(median_interval(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.95).is_none());
        let six = median_interval(&[6.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0.95).expect("six values suffice");
        assert_eq!((six.low, six.high), (1.0, 6.0));
        assert!((six.coverage - 0.96875).abs() < 1e-12);
    }

    #[test]
    fn the_outlier_is_named_and_equal_values_have_none() {
        assert_eq!(outliers(&[507.2, 505.9, 509.1, 250.0, 508.8, 504.7, 507.7, 506.1]), [3]);
        assert!(outliers(&[1.0, 1.0, 1.0, 9.0]).is_empty());
    }
}
