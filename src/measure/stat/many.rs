// SPDX-License-Identifier: GPL-2.0-only
//! Corrections for many rows: a table of twenty rows at 5 % is expected to cry wolf once.
//!
//! [`holm`] keeps the chance of a single false claim in the whole table below alpha and is what verdicts use.
//! [`benjamini_hochberg`] bounds the share of false claims among those made and serves lists of counters.

/// Holm's step-down adjusted p-values, in the order given. Valid under any dependence between rows.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let order = ascending(p);
    let mut out = vec![f64::NAN; p.len()];
    let mut floor = 0.0_f64;
    for (i, &at) in order.iter().enumerate() {
        floor = floor.max((p[at] * (order.len() - i) as f64).min(1.0));
        out[at] = floor;
    }
    out
}

/// Benjamini and Hochberg's step-up adjusted p-values, in the order given.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let order = ascending(p);
    let mut out = vec![f64::NAN; p.len()];
    let mut ceiling = 1.0_f64;
    for (i, &at) in order.iter().enumerate().rev() {
        ceiling = ceiling.min(p[at] * order.len() as f64 / (i + 1) as f64);
        out[at] = ceiling;
    }
    out
}

/// Indexes by rising p; NaN (a row without a test) takes part in nothing and stays NaN.
fn ascending(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).filter(|&i| !p[i].is_nan()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_test_counts_for_nothing() {
        let got = holm(&[0.01, f64::NAN, 0.02]);
        assert_eq!((got[0], got[2]), (0.02, 0.02));
        assert!(got[1].is_nan());
        assert_eq!(benjamini_hochberg(&[0.01, f64::NAN, 0.02])[0], 0.02);
    }

    #[test]
    fn order_does_not_matter_and_one_is_the_end() {
        assert_eq!(holm(&[0.9, 0.001, 0.8]), [1.0, 0.003, 1.0]);
        assert_eq!(benjamini_hochberg(&[0.9, 0.8]), [0.9, 0.9]);
        assert!(holm(&[]).is_empty());
    }
}
