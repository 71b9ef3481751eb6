// SPDX-License-Identifier: GPL-2.0-only
//! `faultline run`: measures, and appends a record per sample, each synced before the next one starts.
//!
//! Ctrl-C lets the running sample end, writes its record, and says how to go on; a killed run loses the sample it was
//! taking and nothing else. `--resume` skips the samples that are on file with the same key.

use super::Failure;
use crate::arch::{Arch, Native};
use crate::cpu::sched::Wait;
use crate::host::file::EXAMPLES;
use crate::host::plan::{auto_ladder, plan};
use crate::host::{Host, PinKind};
use crate::init::KernelConfig;
use crate::maple_tree::MapleRules;
use crate::measure::run::Stop;
use crate::mm::mm_types::MMAP_LOCK_OFFSET;
use crate::mm::variant::{self, Variant};
use crate::rcu::QsPolicy;
use crate::report::session::{Request, Session, World};
use crate::report::store::{Appender, read_files};
use crate::slab::FaultAttr;
use crate::trace::{self, Program};
use crate::workload::{self, About, Mode};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Arguments.
#[derive(clap::Args)]
#[command(
    after_help = "Example: faultline run --variant v6.12,v6.15 --workload brk1,anon_fault --threads 1,2 \\\n         \
                        --trials 10 --seconds 0.5 --out a.jsonl\n\
                        Ctrl-C lets the running sample end; the same command with --resume goes on from there."
)]
pub struct Args {
    /// Variants to interleave: named kernels (v6.12, v6.15) or PROTOCOL+CACHE@ALLOCATOR; `main` for those of
    /// the benches, `all` for every one built
    #[arg(long, value_delimiter = ',')]
    variant: Vec<String>,
    /// Workloads; `all` for every one that needs no file (in the kernel world: and can run there); trace:FILE repeats the calls of a strace -f log
    #[arg(long, value_delimiter = ',', required = true)]
    workload: Vec<String>,
    /// thread (one mm), process (an mm per CPU), both, or default (each workload's own)
    #[arg(long, default_value = "default")]
    mode: String,
    /// Worker counts, or auto: a ladder up to the CPUs allowed
    #[arg(long, value_delimiter = ',', default_value = "auto", allow_negative_numbers = true)]
    threads: Vec<String>,
    /// native (pinned threads), sim (virtual CPUs), kernel (the host's own kernel; no variant)
    #[arg(long, default_value = "native")]
    world: String,
    /// this, a name under hosts/ or built in, a host.toml or hwloc XML, synthetic:STRING
    #[arg(long)]
    host: Option<String>,
    /// compact, scatter, per-node, no-smt, or a CPU list such as 0,2,4-7
    #[arg(long, default_value = "compact")]
    pin: String,
    /// Trials: complete blocks of all samples [default: 10; with --quick 6; in sim 1]
    #[arg(long, allow_negative_numbers = true, value_parser = |s: &str| whole::<u32>(s, 1, 10_000))]
    trials: Option<u32>,
    /// Length of a sample, s: real time, in sim virtual time [default: 1; with --quick 0.2; in sim 0.02]
    #[arg(long, allow_negative_numbers = true, value_parser = span)]
    seconds: Option<f64>,
    /// Warm-up of a sample, s [default: 0.2; with --quick 0.1; in sim 0.02]
    #[arg(long, allow_negative_numbers = true, value_parser = span)]
    warm_up: Option<f64>,
    /// Seed of order and randomness
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| whole::<u64>(s, 0, u64::MAX))]
    seed: u64,
    /// Record file to append to
    #[arg(long, default_value = "faultline.jsonl")]
    out: PathBuf,
    /// Skip what the record file holds already
    #[arg(long)]
    resume: bool,
    /// Fewer and shorter samples
    #[arg(long)]
    quick: bool,
    /// Timer frequency of the modelled kernel
    #[arg(long, default_value_t = 250, allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| whole::<u32>(s, 24, 10_000))]
    hz: u32,
    /// When a tick is a quiescent state: user-only, preempt-zero, always; timer: as a timer signal finds it (native)
    #[arg(long, default_value = "preempt-zero")]
    qs_policy: String,
    /// RCU's options: nocb (callbacks called by threads, one a CPU), lazy (with nocb: up to 10 s later), expedited,
    /// normal-wake-from-gp
    #[arg(long, value_delimiter = ',')]
    rcu: Vec<String>,
    /// Charge accounted objects to a memory cgroup, as a kernel with CONFIG_MEMCG does
    #[arg(long)]
    memcg: bool,
    /// Clear objects and pages when they are allocated (init_on_alloc=1)
    #[arg(long)]
    init_on_alloc: bool,
    /// How a worker that sleeps waits: futex (dearer than a kernel's sleep), spin (polls its word: cheaper)
    #[arg(long, default_value = "futex")]
    wait: String,
    /// 7.3's hung task detector: one more locked exchange at each read unlock of an rwsem
    #[arg(long)]
    hung_task_blocker: bool,
    /// Whose rules the maple tree follows: 6.12, 6.18 or 7.3 [default: 7.3 with sheaves, else 6.12]
    #[arg(long, value_name = "VERSION")]
    maple_rules: Option<String>,
    /// Where in its cache line mmap_lock lies: 40 as in 6.12, 56 as from 6.13 to 6.18 (count and owner in two lines), or
    /// another multiple of 8
    #[arg(long, value_name = "BYTES", default_value_t = MMAP_LOCK_OFFSET, allow_negative_numbers = true)]
    #[arg(value_parser = line_offset)]
    mmap_lock_offset: u32,
    /// Refuse allocations of objects on purpose (failslab), by chance: 0.001 or 1/1000, at most 0.5
    #[arg(long, value_name = "P", value_parser = chance)]
    fail_slab: Option<u32>,
    /// Refuse pages on purpose (fail_page_alloc), by chance
    #[arg(long, value_name = "P", value_parser = chance)]
    fail_page: Option<u32>,
    /// Check the allocator's caches, by the kernel's letters of slab_debug=: F, each free (where it is bad the run ends with
    /// a report of the cache and slab). Z, P and U (red zones, poison, tracking) are not built
    #[arg(long, value_name = "LETTERS")]
    slab_debug: Option<String>,
    /// Print each sample's record as it is taken, too
    #[arg(long)]
    json: bool,
}

/// A whole number of `least` to `most`.
pub(super) fn whole<T: FromStr + PartialOrd + Display>(s: &str, least: T, most: T) -> Result<T, String> {
    match s.parse() {
        Ok(v) if v >= least && v <= most => Ok(v),
        _ => Err(format!("accepted: a whole number, {least} to {most}")),
    }
}

/// A word's place in a line of 64 bytes.
fn line_offset(s: &str) -> Result<u32, String> {
    match s.parse() {
        Ok(v) if v < 64 && v % 8 == 0 => Ok(v),
        _ => Err("accepted: a multiple of 8, 0 to 56".into()),
    }
}

/// A chance per million.
fn chance(s: &str) -> Result<u32, String> {
    let value = match s.split_once('/') {
        Some((a, b)) => a.trim().parse::<f64>().ok().zip(b.trim().parse::<f64>().ok()).map(|(a, b)| a / b),
        None => s.parse::<f64>().ok(),
    };
    match value {
        Some(p) if (0.000_001..=0.5).contains(&p) => Ok((p * 1e6).round() as u32),
        _ => Err("accepted: a chance such as 0.001 or 1/1000, 0.000001 to 0.5".into()),
    }
}

/// Whether frees are checked, by the letters of `slab_debug=`, large or small as the kernel takes them.
fn slab_debug(letters: &str) -> Result<bool, Failure> {
    let bad = |why: &str| Err(Failure::Input(format!("--slab-debug {letters}: {why}; accepted: F")));
    let not_built = |c: char| match c.to_ascii_uppercase() {
        'Z' => Some("Z, red zones, is not built"),
        'P' => Some("P, poison, is not built"),
        'U' => Some("U, tracking of users, is not built"),
        _ => None,
    };
    if letters.is_empty() {
        return bad("no letter");
    }
    match letters.chars().find(|c| !c.eq_ignore_ascii_case(&'F')) {
        None => Ok(true),
        Some(c) => bad(not_built(c).unwrap_or(&format!("{c:?} is no letter of slab_debug="))),
    }
}

/// A length of time, s. Below the least one a span would hold a handful of operations.
fn span(s: &str) -> Result<f64, String> {
    match s.parse() {
        Ok(v) if (0.0001..=86_400.0).contains(&v) => Ok(v),
        _ => Err("accepted: seconds, 0.0001 to 86400".into()),
    }
}

/// `names` without repetitions: a cell measured twice in a trial would be no pair.
fn once(names: &[String]) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::new();
    for n in names {
        if !out.contains(&n.as_str()) {
            out.push(n);
        }
    }
    out
}

/// The host to simulate where none is named: the smallest built-in example that has the CPUs.
fn sim_host(threads: &[String]) -> Result<Host, Failure> {
    let most = threads.iter().filter_map(|t| t.parse::<u32>().ok()).max().unwrap_or(0);
    let examples = EXAMPLES.iter().filter_map(|(name, _)| Host::load(name).ok());
    examples.filter(|h| h.id.cpus >= most).min_by_key(|h| h.id.cpus).ok_or_else(|| {
        Failure::Input(format!(
            "--threads {most}: no built-in host has so many CPUs; give one with --host synthetic:STRING"
        ))
    })
}

fn request(a: &Args) -> Result<Request, Failure> {
    let world = World::ALL
        .iter()
        .find(|(n, _)| *n == a.world)
        .map(|(_, w)| *w)
        .ok_or_else(|| Failure::Input(format!("--world {}: accepted: native, sim, kernel", a.world)))?;
    let variants: Vec<Variant> = match (world, a.variant.as_slice()) {
        (World::Kernel, []) => Vec::new(),
        (World::Kernel, v) => {
            return Err(Failure::Input(format!(
                "--variant {}: the kernel world runs the host's own kernel and takes no variant",
                v.join(",")
            )));
        }
        (_, []) => {
            return Err(Failure::Input(format!(
                "--variant is missing; accepted: all, main, {}, PROTOCOL+CACHE@ALLOCATOR (faultline list variants)",
                variant::NAMED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
            )));
        }
        (_, names) if names.iter().any(|n| n == "all") => variant::all(),
        (_, names) if names.iter().any(|n| n == "main") => variant::main(),
        (_, names) => once(names)
            .into_iter()
            .map(|n| variant::parse(n).map_err(|e| Failure::Input(format!("--variant {n}: {e}"))))
            .collect::<Result<_, _>>()?,
    };
    let mut programs = BTreeMap::new();
    let mut workloads: Vec<&'static About> = Vec::new();
    for w in once(&a.workload) {
        if w == "all" {
            let fits = |a: &&About| world != World::Kernel || workload::not_on_host(a.name).is_none();
            workloads.extend(workload::LIST.iter().filter(fits));
        } else if let Some(file) = w.strip_prefix(workload::trace::PREFIX) {
            let of = |e| Failure::Input(format!("--workload {w}: {e}"));
            let (log, trace) = trace::load(Path::new(file)).map_err(of)?;
            if let Some(p) = log.problems.first() {
                eprintln!("faultline: {p} ({} such lines; the rest is used)", log.problems.len());
            }
            let program = Program::new(&trace).map_err(of)?;
            let about: &'static About = Box::leak(Box::new(workload::trace::about_of(file, trace.hash)));
            programs.insert(about.name, Arc::new(program));
            workloads.push(about);
        } else {
            workloads.push(workload::find(w).map_err(|e| Failure::Input(format!("--workload {w}: {e}")))?);
        }
    }
    if world == World::Kernel
        && let Some((name, why)) = workloads.iter().find_map(|w| workload::not_on_host(w.name).map(|why| (w.name, why)))
    {
        return Err(Failure::Input(format!(
            "--workload {name}: not in the kernel world: {why}; say --world native or sim"
        )));
    }
    // `all` beside a name, or a file under two names.
    let mut seen = BTreeSet::new();
    workloads.retain(|w| seen.insert(w.name));
    let modes = match a.mode.as_str() {
        "default" => vec![],
        "thread" => vec![Mode::Thread],
        "process" => vec![Mode::Process],
        "both" => vec![Mode::Thread, Mode::Process],
        m => return Err(Failure::Input(format!("--mode {m}: accepted: default, thread, process, both"))),
    };
    let host = match (&a.host, world) {
        (Some(h), _) => Host::load(h).map_err(|e| Failure::Input(format!("--host {h}: {e}")))?,
        (None, World::Sim) => sim_host(&a.threads)?,
        (None, _) => Host::load("this").map_err(Failure::input)?,
    };
    let cpus = host.topology.allowed.len() as u32;
    let threads = if a.threads == ["auto"] {
        auto_ladder(cpus)
    } else {
        let mut t = a
            .threads
            .iter()
            .map(|t| match t.parse::<u32>() {
                Ok(n) if n >= 1 && n <= cpus => Ok(n),
                _ => Err(Failure::Input(format!(
                    "--threads {t}: accepted: 1 to {cpus} (the CPUs allowed on host {}), or auto",
                    host.id.name
                ))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        t.sort_unstable();
        t.dedup();
        t
    };
    let sim = world == World::Sim;
    let pick = |given: Option<f64>, sim_s: f64, quick_s: f64, full_s: f64| {
        given.unwrap_or(if sim {
            sim_s
        } else if a.quick {
            quick_s
        } else {
            full_s
        })
    };
    let ns = |s: f64| (s * 1e9) as u64;
    let span = ns(pick(a.seconds, 0.02, 0.2, 1.0));
    let warm_up_ns = ns(pick(a.warm_up, 0.02, 0.1, 0.2));
    let trials = a.trials.unwrap_or(if sim {
        1
    } else if a.quick {
        6
    } else {
        10
    });
    let pin: PinKind = a.pin.parse().map_err(|e| Failure::Input(format!("--pin {}: {e}", a.pin)))?;
    // Named here; whether the threads fit on the plan is the session's to say.
    plan(&host.topology, &pin, 1).map_err(|e| Failure::Input(format!("--pin {}: {e}", a.pin)))?;
    let qs_policy = match a.qs_policy.as_str() {
        "user-only" => QsPolicy::USER_ONLY,
        "preempt-zero" => QsPolicy::PREEMPT_ZERO,
        "always" => QsPolicy::Always,
        "timer" if world == World::Native => QsPolicy::Timer,
        "timer" => {
            return Err(Failure::Input(format!(
                "--qs-policy timer: the world {} has no timer signals; only native has",
                a.world
            )));
        }
        q => return Err(Failure::Input(format!("--qs-policy {q}: accepted: user-only, preempt-zero, always, timer"))),
    };
    let wait = Wait::ALL
        .iter()
        .find(|(n, _)| *n == a.wait)
        .map(|(_, w)| *w)
        .ok_or_else(|| Failure::Input(format!("--wait {}: accepted: futex, spin", a.wait)))?;
    let kernel = KernelConfig::default().hz(a.hz).qs_policy(qs_policy).wait(wait);
    let maple_rules = match &a.maple_rules {
        None => None,
        Some(v) => {
            let known = MapleRules::ALL.iter().find(|(name, _)| name == v).map(|(_, rules)| *rules);
            Some(known.ok_or_else(|| Failure::Input(format!("--maple-rules {v}: accepted: 6.12, 6.18, 7.3")))?)
        }
    };
    let mmap_lock_offset = a.mmap_lock_offset;
    let mut kernel = KernelConfig { hung_task_blocker: a.hung_task_blocker, maple_rules, mmap_lock_offset, ..kernel };
    kernel.slab.memcg = a.memcg;
    kernel.slab.init_on_alloc = a.init_on_alloc;
    kernel.slab.debug = a.slab_debug.as_deref().map_or(Ok(false), slab_debug)?;
    for option in once(&a.rcu) {
        match option {
            "nocb" => kernel.rcu.nocb = true,
            "lazy" => kernel.rcu.lazy = true,
            "expedited" => kernel.rcu.expedited = true,
            "normal-wake-from-gp" => kernel.rcu.normal_wake_from_gp = true,
            o => {
                return Err(Failure::Input(format!("--rcu {o}: accepted: nocb, lazy, expedited, normal-wake-from-gp")));
            }
        }
    }
    if kernel.rcu.lazy && !kernel.rcu.nocb {
        return Err(Failure::Input("--rcu lazy: only offloaded callbacks can be lazy; say --rcu nocb,lazy".into()));
    }
    kernel.slab.failslab = a.fail_slab.map(FaultAttr::per_million);
    kernel.slab.fail_page_alloc = a.fail_page.map(FaultAttr::per_million);
    if a.fail_slab.is_some() || a.fail_page.is_some() {
        kernel.slab.seed = a.seed;
    }
    Ok(Request {
        variants,
        workloads,
        modes,
        threads,
        world,
        host,
        pin,
        trials,
        stop: Stop::After(span),
        warm_up_ns,
        seed: a.seed,
        kernel,
        programs,
    })
}

/// Runs the verb.
///
/// # Errors
/// Bad input; a full disk; samples whose balances do not hold (exit code 1, after all were taken); Ctrl-C.
pub fn main(a: &Args) -> Result<(), Failure> {
    let mut session = Session::new(request(a)?).map_err(Failure::Input)?;
    // Calibrates the clock before anything is pinned or timed.
    let _ = Native::now();
    let to_out = |e| Failure::Input(format!("--out {e}"));
    let on_file =
        if a.resume && a.out.exists() { read_files(&[&a.out]).map_err(to_out)?.keys() } else { Default::default() };
    let mut out = Appender::open(&a.out).map_err(to_out)?;
    let todo: Vec<_> = session.cells().iter().filter(|c| !on_file.contains(&session.key(c))).cloned().collect();
    let skipped = session.cells().len() - todo.len();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    // A second handler cannot be set in one process; tests that call this twice keep the first.
    let bar = progress(todo.len() as u64, session.guess_s());
    let shown = bar.clone();
    let _ = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // The file is whole at any moment; only the sample in flight is lost.
            eprintln!("faultline: interrupted twice: the running sample is lost; --resume goes on from there");
            // SAFETY: ends the process; no destructor has anything to save.
            unsafe { libc::_exit(130) };
        }
        shown.println("the running sample ends first; Ctrl-C again drops it");
    });
    let (mut taken, mut errors) = (0usize, Vec::new());
    for cell in &todo {
        bar.set_message(format!(
            "{} {} {} x{}",
            session.variant_name(cell),
            cell.config.workload,
            cell.config.mode.name(),
            cell.config.threads
        ));
        let sample = session.measure(cell);
        out.append(&sample).map_err(to_out)?;
        taken += 1;
        bar.inc(1);
        if a.json {
            println!("{}", serde_json::to_string(&sample).map_err(Failure::input)?);
        }
        if let Some(e) = sample.errors.first() {
            errors.push(format!("{} {} x{}: {e}", sample.variant, sample.workload, sample.threads));
        }
        if stop.load(Ordering::Relaxed) && taken < todo.len() {
            bar.finish_and_clear();
            return Err(Failure::Interrupted(format!(
                "interrupted: {taken} of {} samples are in {}; the same command with --resume goes on from there",
                todo.len(),
                a.out.display()
            )));
        }
    }
    bar.finish_and_clear();
    if std::io::stderr().is_terminal() || !a.json {
        eprintln!(
            "{taken} samples appended to {}{}",
            a.out.display(),
            if skipped > 0 { format!(", {skipped} were there already") } else { String::new() }
        );
    }
    match errors.first() {
        None => Ok(()),
        Some(first) => {
            Err(Failure::Check(format!("{} of {taken} samples are error rows; the first: {first}", errors.len())))
        }
    }
}

/// A bar with the time left on a terminal, nothing in a pipe.
pub fn progress(n: u64, guess_s: f64) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(n), target);
    if let Ok(s) = ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {pos}/{len} ({left} left) {msg}") {
        // Until a sample is done there is only the guess.
        let left = move |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let left = match state.pos() {
                0 => Duration::from_secs_f64((n as f64 * guess_s).min(1e9)).saturating_sub(state.elapsed()),
                _ => state.eta(),
            };
            let _ = write!(to, "{:#}", HumanDuration(left));
        };
        bar.set_style(s.with_key("left", left));
    }
    bar.println(format!("{n} samples, about {:.0} s", n as f64 * guess_s));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
