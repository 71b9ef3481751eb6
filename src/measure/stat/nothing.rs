// SPDX-License-Identifier: GPL-2.0-only
//! Tests on ranks: they assume nothing about the distribution but that samples are independent.
//!
//! The exact p-values walk the permutation distribution itself, by counting subsets
//! of doubled ranks, so ties need no other path: what is exact without ties stays exact with them.
//!
//! A two-sided p-value is the probability of a statistic at least as far from its mean as the one seen. Without ties
//! this equals twice the smaller tail.

use super::descriptive::median;
use super::dist;

/// Above this many values in all, [`mann_whitney`] takes the normal approximation.
pub const EXACT_MAX: usize = 80;

/// How a p-value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// From the permutation distribution, ties included.
    Exact,
    /// From a normal approximation with tie and continuity correction.
    Normal,
}

/// Result of a test on ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankTest {
    /// U of the second sample, or the sum of positive ranks.
    pub statistic: f64,
    /// Two-sided p-value.
    pub p: f64,
    /// How `p` was found.
    pub method: Method,
}

/// Ranks from 1, ties sharing the mean of theirs.
pub fn midranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&i, &j| x[i].total_cmp(&x[j]));
    let mut ranks = vec![0.0; x.len()];
    for run in order.chunk_by(|&i, &j| x[i] == x[j]) {
        let first = order.partition_point(|&i| x[i] < x[run[0]]);
        for &i in run {
            ranks[i] = first as f64 + (run.len() as f64 + 1.0) / 2.0;
        }
    }
    ranks
}

/// U of the second sample: pairs in which it is the larger, ties counting half.
pub fn u_of_second(a: &[f64], b: &[f64]) -> f64 {
    let pooled = [a, b].concat();
    let sum: f64 = midranks(&pooled)[a.len()..].iter().sum();
    sum - (b.len() * (b.len() + 1)) as f64 / 2.0
}

/// Mann-Whitney's test, two-sided: exact up to [`EXACT_MAX`] values in all, else normal. `None` when a side is empty.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<RankTest> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let (p, method) = if a.len() + b.len() <= EXACT_MAX {
        (mann_whitney_exact(a, b), Method::Exact)
    } else {
        (mann_whitney_normal(a, b, true), Method::Normal)
    };
    Some(RankTest { statistic: u_of_second(a, b), p, method })
}

/// Exact two-sided p-value of Mann-Whitney's test, ties enumerated.
///
/// Work and memory grow as the cube and square of the number of values; see [`EXACT_MAX`].
pub fn mann_whitney_exact(a: &[f64], b: &[f64]) -> f64 {
    let ranks = doubled(&midranks(&[a, b].concat()));
    let (n, total) = (ranks.len(), ranks.iter().sum::<usize>());
    let seen: usize = ranks[a.len()..].iter().sum();
    // The mean of the sum is total * nb / n; comparing multiples of n keeps the distances whole numbers.
    let distance = |s: usize| (s * n).abs_diff(total * b.len());
    tail(&subset_sums(&ranks, b.len()), |s| distance(s) >= distance(seen))
}

/// How many subsets of `size` doubled ranks have each sum.
fn subset_sums(ranks: &[usize], size: usize) -> Vec<f64> {
    let total = ranks.iter().sum::<usize>();
    // ways[k][s]: subsets of k of the ranks seen so far whose sum is s.
    let mut ways = vec![vec![0.0_f64; total + 1]; size + 1];
    ways[0][0] = 1.0;
    for &r in ranks {
        for k in (1..=size).rev() {
            let (below, here) = ways.split_at_mut(k);
            for s in (r..=total).rev() {
                here[0][s] += below[k - 1][s - r];
            }
        }
    }
    ways.swap_remove(size)
}

/// Two-sided p-value of Mann-Whitney's test by the normal approximation, corrected for ties.
pub fn mann_whitney_normal(a: &[f64], b: &[f64], continuity: bool) -> f64 {
    let (na, nb) = (a.len() as f64, b.len() as f64);
    let n = na + nb;
    let mut pooled = [a, b].concat();
    pooled.sort_by(f64::total_cmp);
    let ties: f64 = pooled.chunk_by(|x, y| x == y).map(|run| (run.len() as f64).powi(3) - run.len() as f64).sum();
    let sigma = (na * nb / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)))).sqrt();
    let distance = (u_of_second(a, b) - na * nb / 2.0).abs() - if continuity { 0.5 } else { 0.0 };
    if sigma.is_nan() || sigma <= 0.0 || distance <= 0.0 {
        return 1.0;
    }
    dist::normal_two_sided(distance / sigma)
}

/// Smallest two-sided p-value that [`mann_whitney_exact`] can reach without ties: 2 / C(na + nb, nb).
pub fn smallest_p(na: usize, nb: usize) -> f64 {
    (1..=nb).fold(2.0, |p, i| p * i as f64 / (na + i) as f64).min(1.0)
}

/// Shift of the second sample by Hodges and Lehmann: the median of all differences.
pub fn hodges_lehmann(a: &[f64], b: &[f64]) -> f64 {
    median(&a.iter().flat_map(|a| b.iter().map(move |b| b - a)).collect::<Vec<_>>())
}

/// Confidence interval of [`hodges_lehmann`]: the differences left when Mann-Whitney's test at `1 - confidence` has cut
/// off both ends. Exact without ties, conservative with them. `None` when the samples are too small, or above
/// [`EXACT_MAX`].
pub fn shift_interval(a: &[f64], b: &[f64], confidence: f64) -> Option<(f64, f64)> {
    if a.is_empty() || b.is_empty() || a.len() + b.len() > EXACT_MAX {
        return None;
    }
    let untied: Vec<usize> = (1..=a.len() + b.len()).map(|r| 2 * r).collect();
    let sums = subset_sums(&untied, b.len());
    let all: f64 = sums.iter().sum();
    // Sums of doubled ranks are even and start at nb * (nb + 1), where U is zero.
    let below = |u: usize| sums[..=b.len() * (b.len() + 1) + 2 * u].iter().sum::<f64>() / all;
    let cut = (0..a.len() * b.len()).find(|&u| below(u) > (1.0 - confidence) / 2.0)?;
    let mut shifts: Vec<f64> = a.iter().flat_map(|a| b.iter().map(move |b| b - a)).collect();
    shifts.sort_by(f64::total_cmp);
    (cut > 0).then(|| (shifts[cut - 1], shifts[shifts.len() - cut]))
}

/// Cliff's delta: how much more often the second is larger than the first, from -1 to 1.
pub fn cliffs_delta(a: &[f64], b: &[f64]) -> f64 {
    2.0 * u_of_second(a, b) / (a.len() * b.len()) as f64 - 1.0
}

/// Wilcoxon's signed-rank test of `b[i] - a[i]`, exact with ties, zero differences dropped. The statistic is the sum of
/// positive ranks. `None` where the lengths differ or no difference is left.
pub fn wilcoxon(a: &[f64], b: &[f64]) -> Option<RankTest> {
    if a.len() != b.len() {
        return None;
    }
    let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).filter(|&d| d != 0.0).collect();
    if d.is_empty() {
        return None;
    }
    let ranks = doubled(&midranks(&d.iter().map(|d| d.abs()).collect::<Vec<_>>()));
    let total: usize = ranks.iter().sum();
    let seen: usize = ranks.iter().zip(&d).filter(|(_, d)| **d > 0.0).map(|(r, _)| r).sum();
    let mut ways = vec![0.0_f64; total + 1];
    ways[0] = 1.0;
    for &r in &ranks {
        for s in (r..=total).rev() {
            ways[s] += ways[s - r];
        }
    }
    let distance = |s: usize| (2 * s).abs_diff(total);
    let p = tail(&ways, |s| distance(s) >= distance(seen));
    Some(RankTest { statistic: seen as f64 / 2.0, p, method: Method::Exact })
}

/// Midranks are multiples of one half; doubled they index a table.
fn doubled(ranks: &[f64]) -> Vec<usize> {
    ranks.iter().map(|r| (2.0 * r) as usize).collect()
}

/// Share of the weight that satisfies `far`.
fn tail(ways: &[f64], far: impl Fn(usize) -> bool) -> f64 {
    let all: f64 = ways.iter().sum();
    (0..ways.len()).filter(|&s| far(s)).map(|s| ways[s]).sum::<f64>() / all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks all subsets one by one: slow, and with nothing in common with the counting above but the ranks.
    fn brute(a: &[f64], b: &[f64]) -> f64 {
        let ranks = midranks(&[a, b].concat());
        let mean = ranks.iter().sum::<f64>() * b.len() as f64 / ranks.len() as f64;
        let sum = |mask: u32| (0..ranks.len()).filter(|i| mask >> i & 1 == 1).map(|i| ranks[i]).sum::<f64>();
        let seen = ranks[a.len()..].iter().sum::<f64>();
        let masks = (0..1_u32 << ranks.len()).filter(|m| m.count_ones() as usize == b.len());
        let far = |m: &u32| (sum(*m) - mean).abs() >= (seen - mean).abs() - 1e-9;
        masks.clone().filter(far).count() as f64 / masks.count() as f64
    }

    #[test]
    fn the_count_agrees_with_walking_all_subsets() {
        let cases: [(&[f64], &[f64]); 6] = [
            (&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0, 7.0]),
            (&[1.0, 5.0, 3.0, 8.0], &[4.0, 2.0, 6.0]),
            (&[1.0, 1.0, 2.0, 2.0], &[2.0, 3.0, 3.0, 3.0, 1.0]),
            (&[7.0, 7.0, 7.0], &[7.0, 7.0]),
            (&[9.0], &[1.0, 2.0, 2.0, 2.0, 3.0, 3.0]),
            (&[10.0, 12.0, 12.0, 15.0, 18.0], &[12.0, 14.0, 15.0, 15.0, 20.0, 22.0, 22.0]),
        ];
        for (a, b) in cases {
            assert!((mann_whitney_exact(a, b) - brute(a, b)).abs() < 1e-12, "{a:?} {b:?}");
            assert!((mann_whitney_exact(a, b) - mann_whitney_exact(b, a)).abs() < 1e-12, "not symmetric: {a:?} {b:?}");
        }
    }

    #[test]
    fn smallest_p_is_what_the_exact_test_gives_at_full_separation() {
        for (n, want) in [(3, 0.1), (4, 0.0285714), (5, 0.0079365), (6, 0.0021645)] {
            let a: Vec<f64> = (0..n).map(f64::from).collect();
            let b: Vec<f64> = (n..2 * n).map(f64::from).collect();
            assert!((smallest_p(n as usize, n as usize) - want).abs() < 5e-8);
            assert!((mann_whitney_exact(&a, &b) - want).abs() < 5e-8);
        }
    }

    #[test]
    fn large_samples_take_the_normal_path_and_agree_with_the_exact_one() {
        let a: Vec<f64> = (0..40).map(f64::from).collect();
        let b: Vec<f64> = (0..40).map(|i| f64::from(i) + 6.5).collect();
        let exact = mann_whitney(&a, &b).expect("both sides hold values");
        assert_eq!(exact.method, Method::Exact);
        assert!((exact.p - mann_whitney_normal(&a, &b, true)).abs() < 0.003);
        let more: Vec<f64> = (0..41).map(f64::from).collect();
        assert_eq!(mann_whitney(&more, &b).map(|t| t.method), Some(Method::Normal));
    }

    #[test]
    fn equal_samples_are_not_told_apart() {
        let same = [5.0; 8];
        assert_eq!(mann_whitney_exact(&same, &same), 1.0);
        assert_eq!(mann_whitney_normal(&same, &same, true), 1.0);
        assert_eq!(cliffs_delta(&same, &same), 0.0);
        assert!(wilcoxon(&same, &same).is_none());
        assert!(mann_whitney(&same, &[]).is_none());
    }
}
