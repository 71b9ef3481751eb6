// SPDX-License-Identifier: GPL-2.0-only
//! `faultline compare`: the table.

use super::Failure;
use crate::report::compare::{Options, compare};
use crate::report::record::Sample;
use crate::report::render::Format;
use crate::report::store::read_files;
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline compare a.jsonl --baseline v6.12 --patched v6.15 --format mmtests")]
pub struct Args {
    /// Record files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The variant all others are held against
    #[arg(long)]
    baseline: String,
    /// Variants to hold against it [default: all others]
    #[arg(long, value_delimiter = ',')]
    patched: Vec<String>,
    /// What is compared: throughput, faults_per_cpu, retries, or a counter's name
    #[arg(long, default_value = "throughput")]
    metric: String,
    /// text, mmtests, markdown, csv, json
    #[arg(long, default_value = "text")]
    format: String,
    /// Short for --format json
    #[arg(long)]
    json: bool,
}

/// The samples of `files`; what had to be passed over goes to stderr, and an empty result is an error.
///
/// # Errors
/// As [`read_files`].
pub fn load(files: &[PathBuf]) -> Result<Vec<Sample>, Failure> {
    let loaded = read_files(files).map_err(Failure::input)?;
    if loaded.samples.is_empty() {
        return Err(Failure::Input(format!("no sample in {}", files[0].display())));
    }
    for w in &loaded.warnings {
        eprintln!("faultline: warning: {w}");
    }
    Ok(loaded.samples)
}

/// Runs the verb.
///
/// # Errors
/// Bad input.
pub fn main(a: &Args) -> Result<(), Failure> {
    let format: Format = if a.json { "json" } else { a.format.as_str() }
        .parse()
        .map_err(|e| Failure::Input(format!("--format {}: {e}", a.format)))?;
    let mut options = Options::new(&a.baseline);
    options.patched.clone_from(&a.patched);
    options.metric = a.metric.parse().map_err(|e| Failure::Input(format!("--metric {}: {e}", a.metric)))?;
    let c = compare(&load(&a.files)?, &options).map_err(Failure::Input)?;
    print!("{}", c.render(format));
    Ok(())
}
