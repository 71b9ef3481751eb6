// SPDX-License-Identifier: GPL-2.0-only
//! Floor 9: records and what is read from them.

pub mod record;
pub mod store;
#[cfg(test)]
pub(crate) mod synthetic;
