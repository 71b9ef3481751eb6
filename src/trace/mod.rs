// SPDX-License-Identifier: GPL-2.0-only
//! Floor 7: what real programs did. Reads the log of an `strace -f`, makes steps of it, and carries them out again.
//!
//! `open` takes a file apart (gzip, xz, zstd), `parse` reads lines, `normalise` makes steps with address spaces and an
//! order. A log says which calls a program made and in which order; it does not say which pages were touched (so
//! nothing of faults and anon_vmas), what was mapped before it began, or how long anything took without strace.

#[deny(unsafe_code)]
pub mod flags;
#[cfg(target_arch = "x86_64")]
pub mod kernel;
#[cfg(not(target_arch = "x86_64"))]
#[deny(unsafe_code)]
#[path = "kernel_none.rs"]
pub mod kernel;
#[deny(unsafe_code)]
pub mod normalise;
#[deny(unsafe_code)]
pub mod observe;
#[deny(unsafe_code)]
pub mod open;
#[deny(unsafe_code)]
pub mod parse;
#[deny(unsafe_code)]
pub mod port;
#[deny(unsafe_code)]
pub mod program;
#[deny(unsafe_code)]
pub mod replay;
#[cfg(target_arch = "x86_64")]
pub mod tracee;

pub use normalise::{Expect, Op, Step, Trace};
pub use parse::{Log, Problem};
pub use program::Program;

use crate::host::fingerprint::fnv_1a;
use std::path::Path;

/// Reads a log and makes a replay of it.
///
/// # Errors
/// One line: the file and why it cannot be read, or what it is if it is no log.
pub fn load(path: &Path) -> Result<(Log, Trace), String> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| format!("{name}: {e}"))?;
    let log = parse::parse(&name, open::open(&bytes));
    if log.events.is_empty() {
        let first = log.problems.first().map_or_else(|| "it is empty".to_string(), ToString::to_string);
        return Err(format!("{name}: no memory call in this file; it should be the log of an strace -f ({first})"));
    }
    let trace = normalise::normalise(&log, fnv_1a(&bytes));
    Ok((log, trace))
}
