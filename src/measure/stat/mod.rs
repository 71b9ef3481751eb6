// SPDX-License-Identifier: GPL-2.0-only
//! Statistics of small samples: what a table of this tool says is computed here and nowhere else.
//!
//! The incomplete beta and error functions come from the crate `special`; all else is written here. `statrs` would have
//! moments and distributions (but no test on ranks, no Welch, no correction for many rows), and links `approx`, whose
//! licence (Apache-2.0 only) does not go with this program's.
//!
//! The files are sorted by what they assume: [`descriptive`] nothing but numbers, [`nothing`] nothing about the
//! distribution, [`normal`] normal values (or normal logarithms), [`many`] valid p-values, [`drift`] an order in time,
//! [`mmtests`] what that tool does, right or wrong. No function draws random numbers.
//!
//! A function that has no answer (too few values, no spread) says `None` or NaN; none panics on finite input. What
//! cannot be told from numbers is whether the samples are independent: see `docs/statistics.md`.

pub mod descriptive;
pub mod dist;
pub mod drift;
pub mod many;
pub mod mmtests;
pub mod normal;
pub mod nothing;

#[cfg(test)]
mod vectors;
