// SPDX-License-Identifier: GPL-2.0-only
//! Statistics of small samples: what a table of this tool says is computed here and nowhere else.
//!
//! Distributions (Student t, normal, binomial) and moments come from `statrs`. Written here, because that crate (0.18)
//! has none of it: tests on ranks (Mann-Whitney, Wilcoxon) with exact p-values, Hodges-Lehmann, Cliff's delta, Welch's
//! test, intervals by order statistics, corrections for many rows, and mmtests' own rules.
//!
//! The files are sorted by what they assume: [`descriptive`] nothing but numbers, [`nothing`] nothing about the
//! distribution, [`normal`] normal values (or normal logarithms), [`many`] valid p-values, [`drift`] an order in time,
//! [`mmtests`] what that tool does, right or wrong. No function draws random numbers.
//!
//! A function that has no answer (too few values, no spread) says `None` or NaN; none panics on finite input. What
//! cannot be told from numbers is whether the samples are independent: see `docs/statistics.md`.

pub mod descriptive;
pub mod drift;
pub mod many;
pub mod mmtests;
pub mod normal;
pub mod nothing;

#[cfg(test)]
mod vectors;
