// SPDX-License-Identifier: GPL-2.0-only
//! `faultline trace`: replays the memory calls of real programs, as `strace -f` wrote them down, on variants of the port,
//! and beside them on the running kernel.
//!
//! Exit code 1: the port's books did not balance; with `--against kernel` the maps or a result differ; with `--strict` a
//! call came out differently from the log. Exit code 2: a file that is no log; with `--strict` a line that cannot be read.

use super::Failure;
use crate::arch::Native;
use crate::arch::native::{NativeMachine, OsCpu};
use crate::host::affinity;
use crate::init::KernelConfig;
use crate::mm::MmRules;
use crate::mm::variant::{self, Variant};
use crate::trace::kernel::{KernelBackend, observed_rules};
use crate::trace::normalise::Born;
use crate::trace::port::{self, Plan, Replayed};
use crate::trace::replay::{Comparison, METERS, Options, Outcome, Touch, compare, replay};
use crate::trace::{Log, Trace, load, open};
use crate::with_variant;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments.
#[derive(clap::Args)]
#[command(
    after_help = "Example: strace -f -y -ttt -X raw -o python.log -e trace=%memory,%process python3 x.py\n         \
                        faultline trace python.log --variant v6.12,v6.15 --against kernel"
)]
pub struct Args {
    /// Logs of strace -f, plain or compressed with gzip, xz or zstd
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Variants to replay on: named kernels (v6.12, v6.15) or PROTOCOL+CACHE@ALLOCATOR; `main` for those of the benches,
    /// `all` for every one built
    #[arg(long, value_delimiter = ',', default_value = "v6.12,v6.15")]
    variant: Vec<String>,
    /// Replay on the running kernel too, and compare results and maps after every call
    #[arg(long, value_name = "WHAT", value_parser = ["kernel"])]
    against: Option<String>,
    /// Pages that are written after a range became writable, since no log has page faults: none, first, all
    #[arg(long, default_value = "first", value_parser = ["none", "first", "all"])]
    touch: String,
    /// Workers that replay the trace at the same time, each in address spaces of its own
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    threads: u32,
    /// Replays of each worker
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// A line that cannot be read, or a call that comes out differently from the log, is an error
    #[arg(long)]
    strict: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Differences that are spelt out.
const SPELT: usize = 20;
/// Memory a worker may use.
const BYTES_PER_WORKER: usize = 768 << 20;

fn variants(names: &[String]) -> Result<Vec<Variant>, Failure> {
    if names.iter().any(|n| n == "all") {
        return Ok(variant::all());
    }
    if names.iter().any(|n| n == "main") {
        return Ok(variant::main());
    }
    let parse = |n: &String| variant::parse(n).map_err(|e| Failure::Input(format!("--variant {n}: {e}")));
    let mut all: Vec<Variant> = Vec::new();
    for n in names {
        let v = parse(n)?;
        if !all.contains(&v) {
            all.push(v);
        }
    }
    Ok(all)
}

/// One file's results.
struct Report {
    log: Log,
    trace: Trace,
    compression: &'static str,
    touch: Touch,
    runs: Vec<(Variant, Replayed)>,
    kernel: Option<Kernel>,
}

/// The running kernel's side.
struct Kernel {
    release: String,
    outcome: Outcome,
    mapped_breaks: u32,
    comparisons: Vec<Comparison>,
}

/// Runs the verb.
///
/// # Errors
/// See the module.
pub fn main(a: &Args) -> Result<(), Failure> {
    let variants = variants(&a.variant)?;
    let cpus = affinity::allowed();
    if a.threads == 0 || a.threads as usize > cpus.len() {
        let n = cpus.len();
        return Err(Failure::Input(format!("--threads {}: accepted: 1 to {n} (the CPUs allowed here)", a.threads)));
    }
    if a.against.is_some() && (a.threads, a.repeat) != (1, 1) {
        return Err(Failure::Input("--against kernel compares one replay: leave --threads and --repeat at 1".into()));
    }
    let touch = match a.touch.as_str() {
        "none" => Touch::None,
        "all" => Touch::All,
        _ => Touch::First,
    };
    // Every file is looked at before any is replayed: a name that is wrong costs no waiting.
    let mut loaded = Vec::new();
    for f in &a.files {
        let (log, trace) = load(f).map_err(Failure::Input)?;
        if let (true, Some(p)) = (a.strict, log.problems.first()) {
            return Err(Failure::Input(format!("--strict: {p}")));
        }
        if let (true, Some((name, n))) = (a.strict, log.not_ported.first_key_value()) {
            let file = &log.file;
            return Err(Failure::Input(format!(
                "--strict: {file}: {name}, {n} times: a memory call that is not ported"
            )));
        }
        for p in &log.problems {
            eprintln!("faultline: {p}");
        }
        loaded.push((log, trace));
    }
    let rules = if a.against.is_some() { host_rules().map_err(Failure::Input)? } else { MmRules::default() };
    let own: Vec<OsCpu> = cpus.iter().take(a.threads as usize).map(|&cpu| OsCpu { cpu, node: 0 }).collect();
    let machine = NativeMachine::new(&own, BYTES_PER_WORKER * own.len(), |_, _| 10)
        .map_err(|e| Failure::Input(format!("the machine's memory or threads: {e}")))?;
    let mut failed = Vec::new();
    let mut reports = Vec::new();
    for (log, trace) in loaded {
        let plan = |v: &Variant| {
            let kernel = v.configure(KernelConfig { rules, ..KernelConfig::default() });
            Plan { threads: a.threads, repeat: a.repeat, touch, keep: a.against.is_some(), kernel }
        };
        let mut runs = Vec::new();
        for v in &variants {
            let r = with_variant!(v, Native, K => port::run::<K>(&machine, &trace, &plan(v)));
            runs.push((v.clone(), r));
        }
        let kernel =
            if a.against.is_some() { Some(on_kernel(&trace, touch, &runs).map_err(Failure::Input)?) } else { None };
        let compression = std::fs::read(&log.file).map_or("none", |b| open::compression(&b));
        let r = Report { log, trace, compression, touch, runs, kernel };
        failed.extend(verdict(&r, a.strict));
        if !a.json {
            print!("{}", text(&r));
        }
        reports.push(r);
    }
    if a.json {
        let all: Vec<Value> = reports.iter().map(as_json).collect();
        println!("{:#}", json!({"schema": 1, "kind": "trace", "threads": a.threads, "repeat": a.repeat, "files": all}));
    }
    match failed.first() {
        None => Ok(()),
        Some(first) if failed.len() == 1 => Err(Failure::Check(first.clone())),
        Some(first) => Err(Failure::Check(format!("{first} (and {} more)", failed.len() - 1))),
    }
}

/// The rules that the running kernel was seen to follow.
fn host_rules() -> Result<MmRules, String> {
    observed_rules(&mut KernelBackend::new(&Trace::default())?)
}

fn on_kernel(trace: &Trace, touch: Touch, runs: &[(Variant, Replayed)]) -> Result<Kernel, String> {
    let mut b = KernelBackend::new(trace)?;
    let outcome = replay(trace, &mut b, Options { touch, keep: true });
    let comparisons = runs.iter().map(|(v, r)| compare(trace, [&v.name, "the kernel"], &r.outcome, &outcome)).collect();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string();
    Ok(Kernel { release, outcome, mapped_breaks: b.mapped_breaks(), comparisons })
}

/// What did not hold, a sentence each.
fn verdict(r: &Report, strict: bool) -> Vec<String> {
    let file = &r.trace.file;
    let mut bad = Vec::new();
    for (v, run) in &r.runs {
        bad.extend(run.errors.iter().map(|e| format!("{file}: {}: {e}", v.name)));
        bad.extend(run.outcome.stopped.iter().map(|e| format!("{file}: {} stopped at {e}", v.name)));
        let unsupported: u64 = run.outcome.kinds.values().map(|k| k.unsupported).sum();
        if strict && unsupported > 0 {
            bad.push(format!("{file}: {}: {unsupported} calls are not known to the port", v.name));
        }
        if let (true, Some(d)) = (strict, run.outcome.differences.first()) {
            let n = run.outcome.differences.len();
            bad.push(format!("{file}:{}: {}: {} (of {n} differences from the log)", d.line, v.name, d.what));
        }
    }
    if let Some(k) = &r.kernel {
        bad.extend(k.outcome.stopped.iter().map(|e| format!("{file}: the kernel's replay stopped at {e}")));
        for ((v, _), c) in r.runs.iter().zip(&k.comparisons) {
            if let Some(first) = c.results.first().or(c.first.as_ref()).or(c.maps.first()) {
                bad.push(format!("{}: {first}", v.name));
            }
        }
    }
    bad
}

fn table(head: &[String], left: usize) -> Table {
    let mut t = Table::new();
    t.load_preset(presets::NOTHING).set_header(head);
    for (i, column) in t.column_iter_mut().enumerate() {
        column.set_cell_alignment(if i < left { CellAlignment::Left } else { CellAlignment::Right });
        column.set_padding(if i == 0 { (0, 1) } else { (1, 1) });
    }
    t
}

fn lines(t: &Table) -> String {
    t.to_string().lines().map(|l| format!("  {}\n", l.trim_end())).collect()
}

fn per(ns: u64, calls: u64) -> String {
    ns.checked_div(calls).map_or_else(|| "-".to_string(), |n| n.to_string())
}

/// Columns of the table of variants: their heads, and where each comes from.
const COLUMNS: [(&str, &str); 8] = [
    ("VMAs +", "vma_alloc"),
    ("VMAs -", "vma_free"),
    ("nodes +", "maple_node_alloc"),
    ("nodes dead", "maple_node_dead"),
    ("call_rcu", "rcu_callbacks_queued"),
    ("kfree_rcu", "kvfree_rcu.queued"),
    ("retries", "vma_lock_retry"),
    ("faults", "pgfault"),
];

fn text(r: &Report) -> String {
    let (t, log) = (&r.trace, &r.log);
    let forks = t.spaces.iter().filter(|s| matches!(s.born, Born::Fork(_))).count();
    let execs = t.spaces.iter().filter(|s| s.born == Born::Exec).count();
    let mut out = format!(
        "{} ({}, {} lines, hash {:016x}): {} threads, {} address spaces ({execs} by execve, {forks} by fork), {} files\n",
        t.file,
        r.compression,
        log.lines,
        t.hash,
        t.threads,
        t.spaces.len(),
        t.files.len()
    );
    out += &format!("  touched: {}; places that the kernel chose are given as fixed ones\n", r.touch.policy());
    if t.foreign + t.moved > 0 || t.open_at_end > 0 {
        out += &format!(
            "  made up: {} mappings that a call needs and no log has; moved before a mapping: {} releases; open at the \
             end: {} address spaces\n",
            t.foreign, t.moved, t.open_at_end
        );
    }
    for (name, l) in &t.left_out {
        out += &format!("  left out: {} x {name}: {}\n", l.count, l.why);
    }
    if !log.unknown.is_empty() {
        let names: Vec<String> = log.unknown.iter().map(|(n, c)| format!("{n} {c}")).collect();
        out += &format!("  no memory calls, counted only: {}\n", names.join(", "));
    }
    if !log.not_ported.is_empty() {
        let names: Vec<String> = log.not_ported.iter().map(|(n, c)| format!("{n} {c}")).collect();
        out += &format!("  memory calls that are not ported; what they did is missing below: {}\n", names.join(", "));
    }
    if !log.problems.is_empty() {
        out += &format!("  lines that could not be read: {}; what they did is missing below\n", log.problems.len());
    }
    out += "\n";
    let mut head = vec!["variant".to_string(), "calls".into()];
    head.extend(COLUMNS.iter().map(|c| c.0.to_string()));
    head.extend(["peak VMAs".into(), "ns/call".into()]);
    let mut tab = table(&head, 1);
    for (v, run) in &r.runs {
        let (calls, ns) = run.outcome.kinds.values().fold((0, 0), |(c, n), k| (c + k.calls, n + k.meter.ns));
        let mut row = vec![v.name.clone(), calls.to_string()];
        row.extend(COLUMNS.iter().map(|c| run.counters.get(c.1).copied().unwrap_or(0).to_string()));
        row.extend([run.outcome.peak_map_count.to_string(), per(ns, calls)]);
        tab.add_row(row);
    }
    out += &lines(&tab);
    out += "\n";
    let mut head: Vec<String> =
        ["call", "calls", "errors in log", "errors here", "not known"].map(String::from).to_vec();
    head.extend(["VMAs +", "VMAs -", "nodes +", "nodes dead"].map(String::from));
    head.extend(r.runs.iter().map(|(v, _)| format!("ns {}", v.name)));
    let mut tab = table(&head, 1);
    if let Some((_, first)) = r.runs.first() {
        for (name, k) in &first.outcome.kinds {
            let mut row = vec![name.to_string()];
            row.extend([k.calls, k.errors_expected, k.errors_got, k.unsupported].map(|n| n.to_string()));
            row.extend(k.meter.events[..4].iter().map(|n| n.to_string()));
            for (_, run) in &r.runs {
                row.push(run.outcome.kinds.get(name).map_or("-".into(), |k| per(k.meter.ns, k.calls)));
            }
            tab.add_row(row);
        }
        out += &lines(&tab);
        out += &format!("  counts by call: {}\n", r.runs[0].0.name);
    }
    for (v, run) in &r.runs {
        let d = &run.outcome.differences;
        if !d.is_empty() {
            out += &format!("\n  {}: {} calls came out differently from the log\n", v.name, d.len());
        }
        for d in d.iter().take(SPELT) {
            out += &format!("    {}:{}: thread {}: {}\n", t.file, d.line, d.tid, d.what);
        }
        if run.outcome.bad_touches > 0 {
            out += &format!("  {}: {} writes ended in a signal\n", v.name, run.outcome.bad_touches);
        }
    }
    if let Some(k) = &r.kernel {
        out += &against(r, k);
    }
    out + "\n"
}

fn against(r: &Report, k: &Kernel) -> String {
    let mut out = String::new();
    for ((v, _), c) in r.runs.iter().zip(&k.comparisons) {
        out += &format!(
            "\n  {} against Linux {}: results and maps compared after {} steps, maps line by line at {} ends of address \
             spaces: {}\n",
            v.name,
            k.release,
            c.steps,
            c.ends,
            if c.agrees() { "no difference" } else { "DIFFERENT" }
        );
        out += &c
            .first
            .iter()
            .chain(&c.results)
            .chain(c.maps.iter().take(SPELT))
            .map(|l| format!("    {l}\n"))
            .collect::<String>();
        if c.results_differ > c.results.len() as u64 {
            out += &format!("    {} more results differ\n", c.results_differ - c.results.len() as u64);
        }
    }
    if !k.outcome.differences.is_empty() {
        out +=
            &format!("  the kernel itself: {} calls came out differently from the log\n", k.outcome.differences.len());
        for d in k.outcome.differences.iter().take(SPELT) {
            out += &format!("    {}:{}: thread {}: {}\n", r.trace.file, d.line, d.tid, d.what);
        }
    }
    if k.mapped_breaks > 0 {
        out += &format!(
            "  {} breaks were moved by mmap and munmap: the kernel does not let their start be set (PR_SET_MM_MAP)\n",
            k.mapped_breaks
        );
    }
    out
}

fn outcome_json(o: &Outcome) -> Value {
    let kinds: serde_json::Map<String, Value> = o
        .kinds
        .iter()
        .map(|(name, k)| {
            let events: serde_json::Map<String, Value> =
                METERS.iter().zip(k.meter.events).map(|(m, n)| (m.to_string(), n.into())).collect();
            let v = json!({
                "calls": k.calls, "errors_expected": k.errors_expected, "errors_got": k.errors_got,
                "not_known": k.unsupported, "ns": k.meter.ns, "events": events,
            });
            (name.to_string(), v)
        })
        .collect();
    let differences: Vec<Value> =
        o.differences.iter().map(|d| json!({"line": d.line, "thread": d.tid, "what": d.what})).collect();
    json!({
        "kinds": kinds, "differences": differences, "peak_map_count": o.peak_map_count,
        "bad_touches": o.bad_touches, "stopped": o.stopped,
    })
}

fn as_json(r: &Report) -> Value {
    let (t, log) = (&r.trace, &r.log);
    let left: serde_json::Map<String, Value> =
        t.left_out.iter().map(|(n, l)| (n.to_string(), json!({"count": l.count, "why": l.why}))).collect();
    let runs: Vec<Value> = r
        .runs
        .iter()
        .enumerate()
        .map(|(i, (v, run))| {
            let mut o = outcome_json(&run.outcome);
            o["variant"] = v.name.clone().into();
            o["counters"] = json!(run.counters);
            o["wall_ns"] = run.wall_ns.into();
            o["errors"] = json!(run.errors);
            if let Some(c) = r.kernel.as_ref().map(|k| &k.comparisons[i]) {
                o["against_kernel"] = json!({
                    "agrees": c.agrees(), "steps": c.steps, "ends": c.ends, "first": c.first, "maps": c.maps,
                    "results": c.results, "results_differ": c.results_differ,
                });
            }
            o
        })
        .collect();
    let kernel = r.kernel.as_ref().map(|k| {
        let mut o = outcome_json(&k.outcome);
        o["release"] = k.release.clone().into();
        o["mapped_breaks"] = k.mapped_breaks.into();
        o
    });
    json!({
        "file": t.file, "hash": format!("{:016x}", t.hash), "compression": r.compression, "lines": log.lines,
        "problems": log.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "not_memory_calls": log.unknown, "not_ported": log.not_ported, "signals": log.signals, "threads": t.threads, "address_spaces": t.spaces.len(),
        "files": t.files.len(), "calls": t.calls, "left_out": left, "foreign": t.foreign, "moved": t.moved,
        "open_at_end": t.open_at_end, "touch": r.touch.name(), "touch_policy": r.touch.policy(), "variants": runs,
        "kernel": kernel,
    })
}
