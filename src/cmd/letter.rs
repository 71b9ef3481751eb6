// SPDX-License-Identifier: GPL-2.0-only
//! `faultline letter`: plain text for a cover letter.

use super::{Failure, compare::load};
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
/// Bad input.
pub fn main(a: &Args) -> Result<(), Failure> {
    let mut options = Options::new(&a.baseline);
    options.patched = vec![a.patched.clone()];
    let text = crate::report::letter::letter(&load(&a.files)?, &options).map_err(Failure::Input)?;
    print!("{text}");
    Ok(())
}
