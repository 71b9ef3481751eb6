// SPDX-License-Identifier: GPL-2.0-only
//! At the side of all floors: the host. Imports std (and the libraries for topology and pinning) only.

pub mod affinity;
