// SPDX-License-Identifier: GPL-2.0-only
//! `faultline compare`: the table.

use super::Failure;
use crate::report::compare::{Options, compare};
use crate::report::metric::Metric;
use crate::report::record::Sample;
use crate::report::render::Format;
use crate::report::store::read_files;
use std::collections::BTreeSet;
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
    /// What is compared: throughput, faults, faults_per_cpu, ns_per_op, retries,
    /// mmap_lock_wait, reuse:CACHE, or counter:NAME (`list events`)
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

/// That `name`, given with `flag`, is among the samples.
///
/// # Errors
/// One line with the variants that are.
pub fn known(flag: &str, name: &str, samples: &[Sample]) -> Result<(), Failure> {
    if samples.iter().any(|s| s.variant == name) {
        return Ok(());
    }
    let have: BTreeSet<&str> = samples.iter().map(|s| s.variant.as_str()).collect();
    let have: Vec<&str> = have.into_iter().collect();
    Err(Failure::Input(format!("{flag} {name}: no sample of it; accepted, as the files hold: {}", have.join(", "))))
}

/// That there is a baseline, and something else to hold against it.
///
/// # Errors
/// One line.
pub fn sides(samples: &[Sample], baseline: &str, patched: &[String]) -> Result<(), Failure> {
    known("--baseline", baseline, samples)?;
    for p in patched {
        known("--patched", p, samples)?;
        if p == baseline {
            return Err(Failure::Input(format!("--patched {p}: it is the baseline; accepted: another variant")));
        }
    }
    Ok(())
}

/// That not all samples are error rows.
///
/// # Errors
/// Exit code 1, with the first error.
pub fn usable(samples: &[Sample]) -> Result<(), Failure> {
    match samples.iter().map(|s| s.errors.first()).collect::<Option<Vec<_>>>().as_deref() {
        Some([first, ..]) => {
            Err(Failure::Check(format!("all {} samples are error rows; the first: {first}", samples.len())))
        }
        _ => Ok(()),
    }
}

/// Runs the verb.
///
/// # Errors
/// Bad input; nothing but error rows (exit code 1, after the table).
pub fn main(a: &Args) -> Result<(), Failure> {
    let format: Format = if a.json { "json" } else { a.format.as_str() }
        .parse()
        .map_err(|e| Failure::Input(format!("--format {}: {e}", a.format)))?;
    let mut options = Options::new(&a.baseline);
    options.patched.clone_from(&a.patched);
    options.metric = a.metric.parse().map_err(|e| Failure::Input(format!("--metric {}: {e}", a.metric)))?;
    let samples = load(&a.files)?;
    sides(&samples, &a.baseline, &a.patched)?;
    if let Metric::Counter(name) = &options.metric
        && !samples.iter().any(|s| s.counters.contains_key(name))
    {
        let have: BTreeSet<&str> = samples.iter().flat_map(|s| s.counters.keys()).map(String::as_str).collect();
        let have: Vec<&str> = have.into_iter().collect();
        return Err(Failure::Input(format!("--metric {}: no sample has it; accepted: {}", a.metric, have.join(", "))));
    }
    let c = compare(&samples, &options).map_err(Failure::Input)?;
    print!("{}", c.render(format));
    usable(&samples)
}
