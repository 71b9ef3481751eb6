// SPDX-License-Identifier: GPL-2.0-only
//! The three distributions that the tests need, over the incomplete beta and error functions of the crate `special`.
//!
//! `statrs` has them ready-made, but links `approx`, which is Apache-2.0 only and may not be part of this program.

use special::{Beta, Error};
use std::f64::consts::SQRT_2;

/// Probability that Student's t with `df` degrees exceeds `t` in size, on either side.
pub fn t_two_sided(t: f64, df: f64) -> f64 {
    // The tail itself, not one minus the rest: small values keep their digits.
    (df / (df + t * t)).inc_beta(df / 2.0, 0.5, (df / 2.0).ln_beta(0.5))
}

/// The t that Student's t with `df` degrees exceeds in size with probability `p`, 0 < p < 1: by halving.
pub fn t_quantile(p: f64, df: f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    while t_two_sided(high, df) > p {
        high *= 2.0;
    }
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return middle;
        }
        if t_two_sided(middle, df) > p { low = middle } else { high = middle }
    }
}

/// Probability that a standard normal value exceeds `z` in size, on either side.
pub fn normal_two_sided(z: f64) -> f64 {
    (z.abs() / SQRT_2).compl_error()
}

/// The z that a standard normal value exceeds in size with probability `p`.
pub fn normal_quantile(p: f64) -> f64 {
    SQRT_2 * (1.0 - p).inv_error()
}

/// Probability of at most `k` heads in `n` fair tosses.
pub fn fair_tosses(k: usize, n: usize) -> f64 {
    let mut one = 0.5_f64.powi(n as i32);
    let mut sum = one;
    for i in 0..k.min(n) {
        one *= (n - i) as f64 / (i + 1) as f64;
        sum += one;
    }
    sum.min(1.0)
}
