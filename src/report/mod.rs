// SPDX-License-Identifier: GPL-2.0-only
//! Floor 9: records and what is read from them.

pub mod blocks;
pub mod compare;
#[cfg(test)]
mod compare_tests;
pub mod letter;
pub mod metric;
pub mod mmtests;
pub mod record;
pub mod render;
pub mod reuse;
pub mod session;
pub mod store;
#[cfg(test)]
pub(crate) mod synthetic;
