// SPDX-License-Identifier: GPL-2.0-only
//! Published values, to the digits printed: scipy 1.17 cross-checked with R 4.2.

use super::descriptive::*;
use super::many::{benjamini_hochberg, holm};
use super::mmtests::{self, Better};
use super::normal::{cohen_d, log_welch, paired, t_interval, welch};
use super::nothing::*;

const A: &[f64] = &[498.1, 501.3, 499.7, 500.9, 502.4, 497.8, 500.2, 499.5];
const B: &[f64] = &[507.2, 505.9, 509.1, 506.4, 508.8, 504.7, 507.7, 506.1];
const C: &[f64] = &[507.2, 505.9, 509.1, 250.0, 508.8, 504.7, 507.7, 506.1];
const D: &[f64] = &[500.6, 503.9, 502.2, 503.3, 505.1, 500.1, 502.8, 501.9];
const T1: &[f64] = &[10.0, 12.0, 12.0, 15.0, 18.0];
const T2: &[f64] = &[12.0, 14.0, 15.0, 15.0, 20.0, 22.0, 22.0];
const ALL: [&[f64]; 6] = [A, B, C, D, T1, T2];
const PAIRS: [(&[f64], &[f64]); 4] = [(A, B), (A, C), (A, D), (T1, T2)];

/// `want` as printed: the value must round to it in its last digit.
#[track_caller]
fn printed(got: f64, want: &str) {
    let value: f64 = want.parse().expect("a number");
    let (digits, exponent) = want.split_once('e').unwrap_or((want, "0"));
    let decimals = digits.split_once('.').map_or(0, |(_, d)| d.len() as i32);
    let unit = 10_f64.powi(exponent.parse::<i32>().expect("an exponent") - decimals);
    assert!((got - value).abs() <= 0.5001 * unit, "{got:e} does not print as {want}");
}

#[track_caller]
fn per_sample(f: impl Fn(&[f64]) -> f64, want: [&str; 6]) {
    for (x, want) in ALL.iter().zip(want) {
        printed(f(x), want);
    }
}

#[track_caller]
fn per_pair(f: impl Fn(&[f64], &[f64]) -> f64, want: [&str; 4]) {
    for ((a, b), want) in PAIRS.iter().zip(want) {
        printed(f(a, b), want);
    }
}

#[track_caller]
fn in_order(f: impl Fn(&[f64], &[f64]) -> f64, want: [&str; 3]) {
    for ((a, b), want) in PAIRS.iter().zip(want) {
        printed(f(a, b), want);
    }
}

#[test]
fn means() {
    per_sample(amean, ["499.987500", "506.987500", "474.937500", "502.487500", "13.400000", "17.142857"]);
    per_sample(hmean, ["499.983228", "506.983593", "449.315024", "502.482707", "12.857143", "16.316852"]);
    per_sample(gmean, ["499.985364", "506.985546", "464.169251", "502.485103", "13.120345", "16.723923"]);
    per_sample(median, ["499.95", "506.80", "506.65", "502.50", "12", "15"]);
    printed(gmean(&[1.02, 0.97, 1.10, 1.00]), "1.0213889329");
}

#[test]
fn spreads() {
    per_sample(stddev, ["1.562450", "1.504695", "90.900620", "1.659120", "3.130495", "4.099942"]);
    per_sample(stddev_n, ["1.461538", "1.407513", "85.029744", "1.551964", "2.800000", "3.795809"]);
    per_sample(hstddev, ["1.461589", "1.407238", "135.399189", "1.551868", "2.531764", "3.593888"]);
    per_sample(coeff_var, ["0.312498", "0.296791", "19.139491", "0.330181", "23.361904", "23.916328"]);
    per_sample(hcoeff_var, ["0.292328", "0.277571", "30.134579", "0.308840", "19.691498", "22.025622"]);
    per_sample(mad, ["1.15", "0.90", "1.50", "1.10", "2", "3"]);
    let lkp = [8022.0, 7800.0, 8400.0, 7600.0];
    printed(amean(&lkp), "7955.5");
    printed(stddev_n(&lkp), "296.885");
    assert_eq!((100.0 * stddev_n(&lkp) / amean(&lkp)) as i32, 3);
}

#[test]
fn intervals_of_one_sample() {
    let t = |x: &[f64]| t_interval(x, 0.95).expect("two values or more");
    per_sample(|x| t(x).low, ["498.681259", "505.729543", "398.942680", "501.100441", "9.512977", "13.351043"]);
    per_sample(|x| t(x).high, ["501.293741", "508.245457", "550.932320", "503.874559", "17.287023", "20.934671"]);
    let order = |x: &[f64]| median_interval(x, 0.95).map(|i| (i.low, i.high));
    let want = [Some((497.8, 502.4)), Some((504.7, 509.1)), Some((250.0, 509.1)), Some((500.1, 505.1))];
    assert_eq!([order(A), order(B), order(C), order(D)], want);
    assert_eq!((order(T1), order(T2)), (None, Some((12.0, 22.0))));
    printed(median_interval(A, 0.95).expect("eight values").coverage, ".9922");
    printed(median_interval(T2, 0.95).expect("seven values").coverage, ".9844");
}

#[test]
fn mmtests_rows() {
    let best = |p| move |x: &[f64]| mmtests::best_mean(Better::Higher, x, p);
    per_sample(best(50), ["501.198734", "508.198809", "508.198809", "503.773539", "16.363636", "21.290323"]);
    per_sample(best(95), ["500.296681", "507.311509", "507.067073", "502.824948", "13.846154", "17.357545"]);
    let low = |x: &[f64]| mmtests::interval(Better::Higher, x).0;
    let high = |x: &[f64]| mmtests::interval(Better::Higher, x).1;
    per_sample(low, ["497.118566", "504.225457", "183.937490", "499.441101", "7.894976", "9.272961"]);
    per_sample(high, ["502.847889", "509.741729", "714.692559", "505.524313", "17.819309", "23.360743"]);
    let ratio = |a: &[f64], b: &[f64]| mmtests::signed_ratio(Better::Higher, a, b);
    per_pair(ratio, ["1.244997", "-0.188890", "0.423191", "0.288164"]);
    assert_eq!(PAIRS.map(|(a, b)| mmtests::starred(Better::Higher, a, b)), [true, false, false, false]);
}

#[test]
fn changes() {
    let of = |mean: fn(&[f64]) -> f64| move |a: &[f64], b: &[f64]| Better::Higher.percent(mean(a), mean(b));
    per_pair(of(amean), ["1.400035", "-5.010125", "0.500013", "27.931770"]);
    per_pair(of(hmean), ["1.400120", "-10.133981", "0.499913", "26.908846"]);
    per_pair(of(median), ["1.370137", "1.340134", "0.510051", "25.0"]);
}

#[test]
fn welch_and_its_ratio() {
    let t = |a: &[f64], b: &[f64]| welch(a, b, 0.95).expect("spreads");
    per_pair(|a, b| t(a, b).t, ["9.127393", "-0.779331", "3.102680", "1.792224"]);
    per_pair(|a, b| t(a, b).df, ["13.980186", "7.004136", "13.949847", "9.899338"]);
    per_pair(|a, b| t(a, b).p, ["2.891518e-07", "0.4613008", "0.007818958", "0.1036587"]);
    per_pair(|a, b| t(a, b).difference.low, ["5.354897", "-101.046947", "0.771244", "-0.916781"]);
    per_pair(|a, b| t(a, b).difference.high, ["8.645103", "50.946947", "4.228756", "8.402495"]);
    let ratio = |a: &[f64], b: &[f64]| log_welch(a, b, 0.95).expect("spreads");
    per_pair(|a, b| ratio(a, b).point, ["1.01400078", "0.92836568", "1.00499963", "1.27465576"]);
    per_pair(|a, b| ratio(a, b).low, ["1.01069164", "0.75323662", "1.00154006", "0.93617374"]);
    per_pair(|a, b| ratio(a, b).high, ["1.01732075", "1.14421260", "1.00847114", "1.73551901"]);
    per_pair(cohen_d, ["4.563696", "-0.389665", "1.551340", "1.000117"]);
}

#[test]
fn mann_whitney_and_effects() {
    per_pair(u_of_second, ["64", "56", "55", "27"]);
    let want = ["0.0001554002", "0.01041181", "0.01476301", "0.1426768"];
    per_pair(mann_whitney_exact, want);
    per_pair(|a, b| mann_whitney(a, b).expect("not empty").p, want);
    assert!((mann_whitney_exact(T1, T2) - 113.0 / 792.0).abs() < 1e-14);
    let normal = |continuity| move |a: &[f64], b: &[f64]| mann_whitney_normal(a, b, continuity);
    per_pair(normal(true), ["0.0009391057", "0.0135872731", "0.0181290079", "0.1375038702"]);
    per_pair(normal(false), ["0.0007775304", "0.0117186856", "0.0157143498", "0.1169606827"]);
    per_pair(hodges_lehmann, ["6.85", "6.60", "2.50", "3.0"]);
    let (low, high) = shift_interval(A, D, 0.95).expect("eight a side");
    printed(low, "0.6");
    printed(high, "4.2");
    assert!(shift_interval(&A[..3], &D[..3], 0.95).is_none());
    per_pair(cliffs_delta, ["1.0", "0.75", "0.71875", "0.542857"]);
}

#[test]
fn pairs_in_order() {
    let t = |a: &[f64], b: &[f64]| paired(a, b, 0.95).expect("eight pairs");
    in_order(|a, b| t(a, b).t, ["12.030201", "-0.776291", "54.006172"]);
    in_order(|a, b| t(a, b).p, ["6.251938e-06", "0.4629952", "1.956287e-10"]);
    in_order(|a, b| t(a, b).difference.low, ["5.624099", "-101.353636", "2.390539"]);
    in_order(|a, b| t(a, b).difference.high, ["8.375901", "51.253636", "2.609461"]);
    in_order(|a, b| wilcoxon(a, b).expect("pairs").p, ["0.0078125", "0.1953125", "0.0078125"]);
    assert!(paired(T1, T2, 0.95).is_none() && wilcoxon(T1, T2).is_none());
}

#[test]
fn many_rows() {
    let p = [0.001, 0.008, 0.012, 0.03, 0.04, 0.2];
    for (got, want) in holm(&p).into_iter().zip(["0.006", "0.04", "0.048", "0.09", "0.09", "0.2"]) {
        printed(got, want);
    }
    for (got, want) in benjamini_hochberg(&p).into_iter().zip(["0.006", "0.024", "0.024", "0.045", "0.048", "0.2"]) {
        printed(got, want);
    }
}
