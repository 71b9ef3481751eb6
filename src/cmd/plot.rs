// SPDX-License-Identifier: GPL-2.0-only
//! `faultline plot`: the figures.

use super::Failure;
use super::compare::{known, load, usable};
use crate::plot::{Format, render_all};
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline plot a.jsonl --out figures --format svg,png")]
pub struct Args {
    /// Record files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Directory to write to
    #[arg(long)]
    out: PathBuf,
    /// svg, png
    #[arg(long, value_delimiter = ',', default_value = "svg,png")]
    format: Vec<String>,
    /// The variant that ratios are to [default: v6.12 where it was measured, else the first]
    #[arg(long)]
    baseline: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// Bad input; a directory that cannot be written.
pub fn main(a: &Args) -> Result<(), Failure> {
    let formats: Vec<Format> = a
        .format
        .iter()
        .map(|f| f.parse().map_err(|_| Failure::Input(format!("--format {f}: accepted: svg, png"))))
        .collect::<Result<_, _>>()?;
    let samples = load(&a.files)?;
    if let Some(b) = &a.baseline {
        known("--baseline", b, &samples)?;
    }
    usable(&samples)?;
    let done = render_all(&samples, a.baseline.as_deref(), &a.out, &formats)
        .map_err(|e| Failure::Input(format!("--out {e}")))?;
    for f in done.files {
        println!("{}", f.display());
    }
    for why in done.skipped {
        eprintln!("not drawn: {why}");
    }
    Ok(())
}
