// SPDX-License-Identifier: GPL-2.0-only
//! What the benches of the port share: criterion in front, the same session as `faultline run` behind.
//!
//! criterion would measure one variant after the other. Here the first variant that asks for its k-th sample has the
//! whole k-th block measured, all variants in shuffled order (`report::session::Blocks`), and criterion is told the time
//! per operation of that sample, times the iterations it asked for. Its warm-up is one call: every sample warms up by
//! itself. The samples are appended as records; at the end this host's figures are drawn from them.
//!
//! `FAULTLINE_OUT`: directory of the records (default: `faultline` in the target directory).
//! `FAULTLINE_QUICK=1`: 10 short samples in place of 20 of a second.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use faultline::arch::{Arch, Native};
use faultline::host::{Host, PinKind, plan::auto_ladder};
use faultline::init::KernelConfig;
use faultline::measure::run::Stop;
use faultline::mm::variant;
use faultline::report::session::{Blocks, Request, World};
use faultline::workload;
use std::path::PathBuf;
use std::time::Duration;

/// Directory of the records of this build.
pub fn out_dir() -> PathBuf {
    if let Some(d) = std::env::var_os("FAULTLINE_OUT") {
        return d.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target")).join("faultline")
}

/// Runs `workloads` for every main variant and every step of this host's ladder.
pub fn open(question: &str, workloads: &[&str]) {
    let test = std::env::args().any(|a| a == "--test");
    let quick = test || std::env::var_os("FAULTLINE_QUICK").is_some_and(|v| v != "0");
    let _ = Native::now();
    let host = Host::load("this").unwrap_or_else(|e| die(&e.to_string()));
    let cpus = host.topology.allowed.len() as u32;
    let mut samples = if quick { 10 } else { 20 };
    let mut span = if quick { 100_000_000 } else { 1_000_000_000 };
    let mut warm_up_ns = if quick { 50_000_000 } else { 200_000_000 };
    let mut threads = auto_ladder(cpus);
    if test {
        (samples, span, warm_up_ns) = (10, 5_000_000, 2_000_000);
        threads.truncate(1);
    }
    let name = host.id.name.clone();
    let request = Request {
        variants: variant::main(),
        workloads: workloads.iter().map(|w| workload::find(w).unwrap_or_else(|e| die(&e))).collect(),
        modes: vec![],
        threads: threads.clone(),
        world: World::Native,
        host,
        pin: PinKind::Compact,
        trials: samples,
        stop: Stop::After(span),
        warm_up_ns,
        seed: 1,
        kernel: KernelConfig::default(),
        programs: Default::default(),
    };
    let records = out_dir().join(format!("{name}-{}.jsonl", env!("FAULTLINE_COMMIT")));
    let mut blocks = Blocks::new(request, &records).unwrap_or_else(|e| die(&e));
    let mut c = Criterion::default()
        .without_plots()
        .sample_size(samples as usize)
        .warm_up_time(Duration::from_nanos(1))
        // The first variant's samples take a whole block each.
        .measurement_time(Duration::from_nanos(
            (span + warm_up_ns) * u64::from(samples) * 2 * variant::main().len() as u64,
        ))
        .nresamples(10_000)
        .configure_from_args();
    for w in workloads {
        for &t in &threads {
            let mut group = c.benchmark_group(format!("{question}/{w}/{t}"));
            group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
            for (i, v) in variant::main().iter().enumerate() {
                let mut calls = 0u32;
                group.bench_with_input(BenchmarkId::from_parameter(&v.name), &i, |b, &i| {
                    b.iter_custom(|iters| {
                        // The first call is criterion's warm-up.
                        let trial = calls.saturating_sub(1).min(samples - 1);
                        calls += 1;
                        let s = blocks.sample(w, t, i, trial).unwrap_or_else(|e| die(&e));
                        let rate: f64 =
                            s.per_thread.iter().map(|p| p.operations as f64 / p.duration_ns.max(1) as f64).sum();
                        // Never zero: criterion would drop the whole result.
                        Duration::from_nanos(((iters as f64 / rate).round() as u64).max(1))
                    });
                });
            }
            group.finish();
        }
    }
    c.final_summary();
    if !test {
        figures(&records, &name);
    }
}

#[cfg(feature = "plot")]
fn figures(records: &std::path::Path, name: &str) {
    if !records.exists() {
        return;
    }
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plots").join(name);
    let loaded = faultline::report::store::read_files(&[records]).unwrap_or_else(|e| die(&e.to_string()));
    use faultline::plot::Format;
    match faultline::plot::render_all(&loaded.samples, None, &dir, &[Format::Svg, Format::Png]) {
        Ok(done) => eprintln!("{} figures in {}", done.files.len(), dir.display()),
        Err(e) => die(&e),
    }
}

#[cfg(not(feature = "plot"))]
fn figures(_: &std::path::Path, _: &str) {}

fn die(e: &str) -> ! {
    eprintln!("faultline bench: {e}");
    std::process::exit(2)
}
