// SPDX-License-Identifier: GPL-2.0-only
//! `faultline letter`: plain text for a cover letter.

use super::Failure;
use super::compare::{load, sides, usable};
use crate::report::compare::Options;
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline letter a.jsonl --baseline v6.12 --patched v6.15")]
pub struct Args {
    /// Record files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The variant before the change
    #[arg(long)]
    baseline: String,
    /// The variant after it
    #[arg(long)]
    patched: String,
}

/// Runs the verb.
///
/// # Errors
/// Bad input; nothing but error rows (exit code 1, after the text).
pub fn main(a: &Args) -> Result<(), Failure> {
    let mut options = Options::new(&a.baseline);
    options.patched = vec![a.patched.clone()];
    let samples = load(&a.files)?;
    sides(&samples, &a.baseline, &options.patched)?;
    let text = crate::report::letter::letter(&samples, &options).map_err(Failure::Input)?;
    print!("{text}");
    usable(&samples)
}
