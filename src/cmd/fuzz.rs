// SPDX-License-Identifier: GPL-2.0-only
//! `faultline fuzz`: holds the port (or the reference model) against the running kernel or against the model, with the
//! same random calls, until a difference or the end.
//!
//! Exit code 1 at a difference, with a small script and a token for `faultline replay`; 2 where the other side cannot be
//! had, with the reason.

use super::Failure;
use crate::fuzz::Setup;
use crate::fuzz::backend::{Backend, COUNTED, Look, MAX_PAGES, NODES_TAKEN, TREE_WRITES};
use crate::fuzz::driver::{self, Difference, Outcome, Tally, Trail};
use crate::fuzz::kernel::Kernel;
use crate::fuzz::model::Model;
use crate::fuzz::model::merge::Mutation;
use crate::fuzz::probe::{self, Feature, Features, Host};
use crate::fuzz::shrink::{shrink, shrink_by};
use crate::fuzz::token::{Case, Side};
use crate::fuzz::{Options, port, text};
use crate::maple_tree::MapleRules;
use crate::mm::{Call, MmRules, variant};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The variant that is most like a kernel of 6.18.
const LIKE_6_18: &str = "refcnt+typesafe@sheaves";

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline fuzz --ops 1000000 --seed 1 --against kernel\n\
                        A difference is shrunk and printed with a token: faultline replay TOKEN")]
pub struct Args {
    /// Calls to make, in all
    #[arg(long, default_value_t = 100_000, allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| super::run::whole::<u64>(s, 1, 1_000_000_000_000))]
    ops: u64,
    /// Seed of everything random
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| super::run::whole::<u64>(s, 0, u64::MAX))]
    seed: u64,
    /// kernel (the running one), model (the reference model: needs no system calls)
    #[arg(long)]
    against: String,
    /// What is held against it: port, or model
    #[arg(long, default_value = "port")]
    subject: String,
    /// Variant of the port: a named kernel or PROTOCOL+CACHE@ALLOCATOR; if not given v6.12, with --objects
    /// refcnt+typesafe@sheaves, whose tree takes single nodes as a kernel's of 6.18 does
    #[arg(long)]
    variant: Option<String>,
    /// Rules that differ between kernels: auto (seen on the host; against the model 6.12), 6.12, 6.18, 7.3
    #[arg(long, default_value = "auto")]
    rules: String,
    /// Pages of the window [default: 24 to 64, drawn for each round]
    #[arg(long, allow_negative_numbers = true, value_parser = |s: &str| super::run::whole::<u32>(s, 8, MAX_PAGES))]
    pages: Option<u32>,
    /// Leave out: mprotect, madvise, mremap, brk, populate, mlock, mlockall, mseal, files, stacks, droppable, guard,
    /// fork, limit, rlimit, touch, mdwe
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    without: Vec<String>,
    /// Look at VmFlags and at the bytes of all pages after every so many calls; at the rest after each
    #[arg(long, default_value_t = 1, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| super::run::whole::<u32>(s, 1, 1_000_000))]
    every: u32,
    /// At VmFlags [default: as --every]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| super::run::whole::<u32>(s, 1, 1_000_000))]
    flags_every: Option<u32>,
    /// At bytes [default: as --every]; to look at a page is to read it, so that it is there when it is written
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| super::run::whole::<u32>(s, 1, 1_000_000))]
    bytes_every: Option<u32>,
    /// Only placement: which address the kernel gives, in the helper's whole address space (against the kernel)
    #[arg(long)]
    placement: bool,
    /// Count for each call the objects that the kernel really allocates and frees, too (root; slow)
    #[arg(long)]
    objects: bool,
    /// A rule of the model that is broken on purpose, to see it found: its name in src/fuzz/model/merge.rs
    #[arg(long, value_name = "RULE")]
    broken: Option<String>,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

fn side(option: &str, name: &str, accepted: &[Side]) -> Result<Side, Failure> {
    let found = Side::ALL.iter().find(|(n, s)| *n == name && accepted.contains(s)).map(|(_, s)| *s);
    let names: Vec<_> = Side::ALL.iter().filter(|(_, s)| accepted.contains(s)).map(|(n, _)| *n).collect();
    found.ok_or_else(|| Failure::Input(format!("{option} {name}: accepted: {}", names.join(", "))))
}

/// The rule of the model that is to be broken.
pub(super) fn broken(name: Option<&str>) -> Result<Option<Mutation>, Failure> {
    let names = || Mutation::ALL.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(", ");
    let find =
        |n: &str| Mutation::named(n).ok_or_else(|| Failure::Input(format!("--broken {n}: accepted: {}", names())));
    name.map(find).transpose()
}

/// A side by its name.
pub(super) fn backend(side: Side, variant: &str, broken: Option<Mutation>) -> Result<Box<dyn Backend>, Failure> {
    Ok(match side {
        Side::Model => Box::new(broken.map_or_else(Model::default, Model::broken)),
        Side::Kernel => Box::new(Kernel::start().map_err(|e| Failure::Input(format!("--against kernel: {e}")))?),
        Side::Port => {
            let v = variant::parse(variant).map_err(|e| Failure::Input(format!("--variant {variant}: {e}")))?;
            port::start(&v).map_err(|e| Failure::Input(format!("--variant {variant}: {e}")))?
        }
    })
}

/// The running kernel in a process that has nothing but the window.
pub(super) fn bare() -> Result<Box<dyn Backend>, crate::fuzz::Stop> {
    #[cfg(target_arch = "x86_64")]
    return Ok(Box::new(crate::fuzz::bare::Bare::start()?));
    #[cfg(not(target_arch = "x86_64"))]
    Err(crate::fuzz::Stop("the code of the bare process is written for x86-64".into()))
}

/// Whose rules the host's tree follows is seen in an experiment: those by which the fewest calls differ, and what differs
/// then is a difference like any other. Where even they differ in one call of five the host has rules of its own, and nodes
/// and writes are left out; so are nodes where the port's allocator takes more than are used.
fn bare_tree(
    lead: &mut dyn Backend,
    other: &mut dyn Backend,
    variant: &str,
    features: &mut Features,
    quiet: bool,
) -> Result<(), Failure> {
    let sheaves = variant::parse(variant).is_ok_and(|v| v.allocator == "sheaves");
    if !sheaves {
        features.counted &= !(1 << NODES_TAKEN);
    }
    let seen = probe::probe_tree(lead, other, features.counted)
        .map_err(|e| Failure::Input(format!("--objects: the tree of a bare process: {e}")))?;
    if !quiet {
        for (rules, n) in &seen {
            println!("host: tree as by the rules of {rules:?}: {n} calls of an experiment differ");
        }
    }
    match seen.iter().min_by_key(|(_, n)| *n) {
        Some((rules, n)) if n * 5 <= probe::TREE_CALLS => features.bare = Some(*rules),
        _ => features.counted &= !(1 << NODES_TAKEN | 1 << TREE_WRITES),
    }
    Ok(())
}

/// Sets on Ctrl-C.
pub(super) fn interrupt() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let f = Arc::clone(&flag);
    // A handler of another run in this process stays; there the flag is never set.
    let _ = ctrlc::set_handler(move || f.store(true, Ordering::Relaxed));
    flag
}

/// The verb.
pub fn main(a: &Args) -> Result<(), Failure> {
    let against = side("--against", &a.against, &[Side::Kernel, Side::Model])?;
    let subject = side("--subject", &a.subject, &[Side::Port, Side::Model])?;
    let rules = match a.rules.as_str() {
        "auto" => None,
        "6.12" => Some(MmRules::V6_12),
        "6.18" => Some(MmRules::V6_18),
        "7.3" => Some(MmRules::V7_3),
        r => return Err(Failure::Input(format!("--rules {r}: accepted: auto, 6.12, 6.18, 7.3"))),
    };
    if rules.is_some() && against == Side::Kernel {
        return Err(Failure::Input(
            "--rules: against the kernel only auto: the rules are those seen on the host".into(),
        ));
    }
    let mut without = Vec::new();
    for w in &a.without {
        let f = Feature::ALL.iter().find(|(_, n)| n == w).map(|(f, _)| *f);
        let names: Vec<_> = Feature::ALL.iter().map(|(_, n)| *n).collect();
        without.push(f.ok_or_else(|| Failure::Input(format!("--without {w}: accepted: {}", names.join(", "))))?);
    }
    let variant = a.variant.clone().unwrap_or_else(|| (if a.objects { LIKE_6_18 } else { "v6.12" }).to_string());
    let stop = interrupt();
    let mutation = broken(a.broken.as_deref())?;
    if mutation.is_some() && subject != Side::Model && against != Side::Model {
        return Err(Failure::Input("--broken: neither side is the model".into()));
    }
    if a.placement && (against != Side::Kernel || subject != Side::Port) {
        return Err(Failure::Input(
            "--placement: only the port against the kernel: the model chooses no address".into(),
        ));
    }
    // Where both sides are the model, the subject is the broken one.
    let mut lead = backend(subject, &variant, mutation)?;
    let mut other = backend(against, &variant, mutation.filter(|_| subject != Side::Model))?;
    let mut host = if against == Side::Kernel {
        probe::probe(&mut *other).map_err(|e| Failure::Input(format!("--against kernel: {e}")))?
    } else {
        let rules = rules.unwrap_or(MmRules::V6_12);
        Host { rules, features: Features::all().under(&rules), seen: Vec::new() }
    };
    let mut features = host.features.clone();
    if a.placement {
        let seen = &mut host.seen;
        let place =
            probe::probe_placement(&mut *other, seen).map_err(|e| Failure::Input(format!("--placement: {e}")))?;
        features.place = Some(place);
    }
    if subject == Side::Model {
        // It has no limits of memory and no signals.
        features.remove(Feature::Rlimit);
        features.remove(Feature::Touch);
        features.remove(Feature::Mdwe);
    }
    if subject == Side::Port {
        port::limit(&mut *lead, &host.rules, &mut features).map_err(|e| Failure::Check(e.to_string()))?;
    }
    for f in without {
        features.remove(f);
    }
    if !a.json {
        for (name, value) in &host.seen {
            println!("host: {name}: {value}");
        }
    }
    if a.objects {
        if against != Side::Kernel || subject != Side::Port {
            return Err(Failure::Input("--objects: only the port against the kernel has objects on both sides".into()));
        }
        match bare() {
            Ok(b) => {
                other = b;
                features.bare = Some(MapleRules::V6_18);
            }
            Err(e) => host.seen.push(("a bare process".into(), format!("{e}: nodes of the tree are only counted"))),
        }
        let seen = probe::probe_objects(&mut *other, &mut host.rules)
            .map_err(|e| Failure::Input(format!("--objects: {e}")))?;
        features.counted = seen;
        features.remove(Feature::Room);
        if features.bare.is_none() {
            // It would reach what the helper has outside the window.
            features.remove(Feature::Mlockall);
        }
        if features.bare.is_some() {
            bare_tree(&mut *lead, &mut *other, &variant, &mut features, a.json)?;
        }
        if !a.json {
            let judged =
                Setup { counted: features.counted, bare: features.bare, ..Setup::plain(host.rules, 8) }.judged();
            for (i, (what, _)) in COUNTED.iter().enumerate() {
                let how = match (features.counted >> i & 1 == 1, judged >> i & 1 == 1) {
                    (false, _) if seen >> i & 1 == 1 => "not compared with this variant",
                    (false, _) => "cannot be seen here",
                    (true, true) => "compared",
                    (true, false) => "counted",
                };
                println!("objects: {what}: {how}");
            }
        }
    }
    let look = Look { flags_every: a.flags_every.unwrap_or(a.every), bytes_every: a.bytes_every.unwrap_or(a.every) };
    let trail = Arc::new(Mutex::new(Trail::default()));
    let o = Options {
        ops: a.ops,
        seed: a.seed,
        rules: host.rules,
        features,
        look,
        pages: a.pages,
        trail: Arc::clone(&trail),
    };
    // The port's panics are caught where that is possible.
    if subject == Side::Model || cfg!(panic = "abort") {
        tell_of_panics(trail, Case { subject, against, variant: variant.clone(), ..Case::empty() }, a.broken.clone());
    }
    let bar = progress(a.ops);
    let mut pulse = |done: u64| {
        bar.set_position(done);
        stop.load(Ordering::Relaxed)
    };
    let cannot = |e: crate::fuzz::Stop| Failure::Check(format!("the run ended early: {e}"));
    let (outcome, tally) = driver::fuzz(&o, &mut *lead, &mut *other, &mut pulse).map_err(cannot)?;
    bar.finish_and_clear();
    let (mut found, mut begins) = (None, None);
    if let Outcome::Differs(d) = &outcome {
        let (small, look) =
            shrink(d, &o.look, &mut *lead, &mut *other, &mut || stop.load(Ordering::Relaxed)).map_err(cannot)?;
        let account = driver::account(&small.setup, &small.calls, &look, &mut *lead, &mut *other).map_err(cannot)?;
        let variant = if subject == Side::Port { variant.clone() } else { String::new() };
        begins = Some(small.setup);
        let case = Case { subject, against, variant, setup: small.setup, calls: small.calls };
        found = Some((case.token(), account));
    }
    let script = found.as_ref().map(|(_, a)| a);
    if a.json {
        let difference = found.as_ref().map(|(t, a)| {
            let after: serde_json::Map<String, Value> = a.after.iter().map(|(n, l)| (n.clone(), json!(l))).collect();
            json!({"token": t, "script": a.script, "after": after})
        });
        let seen: serde_json::Map<String, Value> = host.seen.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        let line = json!({
            "kind": "fuzz", "against": a.against, "subject": a.subject, "variant": variant, "seed": a.seed,
            "operations": tally.ops, "rounds": tally.rounds, "per_second": tally.rate().round(),
            "calls": calls_json(&tally), "objects": objects_json(&tally), "host": seen, "difference": difference,
        });
        println!("{line}");
    } else {
        if let (Some(s), Some(setup)) = (script, &begins) {
            if let Some(b) = text::setup(setup) {
                println!("the round begins with: {b}");
            }
            print_account(s);
        }
        print_tally(&tally);
    }
    match (outcome, found) {
        (Outcome::Interrupted, _) => Err(Failure::Interrupted(format!(
            "interrupted after {} calls without a difference; the same command begins anew",
            tally.ops
        ))),
        (_, Some((token, _))) => Err(Failure::Check(format!(
            "the {} and the {} differ (seed {}, call {}); again: faultline replay {token}",
            a.subject, a.against, a.seed, tally.ops
        ))),
        _ => Ok(()),
    }
}

/// A panic that nothing catches ends this program: before it does, says which calls led there, and makes them few by
/// making them again in processes of their own, as long as those still end by a panic.
fn tell_of_panics(trail: Arc<Mutex<Trail>>, case: Case, broken: Option<String>) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        let Ok(t) = trail.try_lock() else { return };
        let Some(setup) = t.setup else { return };
        let whole = Case { setup, calls: t.calls.clone(), ..case.clone() };
        eprintln!("the calls of the round up to the panic: {}", whole.token());
        let Ok(exe) = std::env::current_exe() else { return };
        let mut panics = |calls: &[Call], setup: &Setup| {
            // The other side has no part in it, but where its address space is the port's.
            let against = if setup.everywhere { case.against } else { Side::Model };
            let c = Case { setup: *setup, calls: calls.to_vec(), against, ..case.clone() };
            let mut again = Command::new(&exe);
            again.arg("replay").arg(c.token()).args(broken.iter().flat_map(|b| ["--broken", b]));
            again.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let ended = again.status().map_err(|e| crate::fuzz::Stop(e.to_string()))?;
            let panicked = ended.signal() == Some(libc::SIGABRT) || ended.code() == Some(101);
            Ok(panicked.then(|| calls.len().saturating_sub(1)))
        };
        let d = Difference { setup, calls: t.calls.clone(), at_end: None };
        let small =
            shrink_by(d, &mut panics, &mut || false).map(|d| Case { setup: d.setup, calls: d.calls, ..case.clone() });
        let small = small.unwrap_or(whole);
        for (i, c) in small.calls.iter().enumerate() {
            println!("{}. {}", i + 1, text::call(c));
        }
        eprintln!("faultline: a panic in the last of these calls; again: faultline replay {}", small.token());
        std::process::exit(1);
    }));
}

/// The script and what is mapped after it.
pub(super) fn print_account(a: &driver::Account) {
    for l in &a.script {
        println!("{l}");
    }
    if let Some(e) = &a.at_end {
        println!("at the end of the round: {e}");
    }
    for (name, lines) in &a.after {
        println!("mapped after it, {name}:");
        for l in lines {
            println!("    {l}");
        }
    }
}

fn calls_json(t: &Tally) -> Value {
    let one = |(ok, errors): &(u64, std::collections::BTreeMap<i64, u64>)| {
        let errors: serde_json::Map<String, Value> =
            errors.iter().map(|(e, n)| (text::errno_name(*e), json!(n))).collect();
        json!({"done": ok, "errors": errors})
    };
    Value::Object(t.calls.iter().map(|(n, c)| ((*n).to_string(), one(c))).collect())
}

fn objects_json(t: &Tally) -> Value {
    let one = |((call, what), (mine, theirs, differ)): (&(&str, &str), &(u64, u64, u64))| json!({"call": call, "what": what, "here": mine, "there": theirs, "calls_that_differ": differ});
    Value::Array(t.counts.iter().map(one).collect())
}

fn print_tally(t: &Tally) {
    for (name, (ok, errors)) in &t.calls {
        let errors: Vec<_> = errors.iter().map(|(e, n)| format!("{} {n}", text::errno_name(*e))).collect();
        println!("{name:<12} {ok:>9} done   {}", errors.join(", "));
    }
    for ((call, what), (mine, theirs, differ)) in &t.counts {
        let differ = if *differ == 0 { String::new() } else { format!(", not the same in {differ} calls") };
        println!("{call:<12} {what}: {mine} here, {theirs} there{differ}");
    }
    println!("{} calls in {} rounds, {:.1} s, {:.0} calls a second", t.ops, t.rounds, t.ns as f64 / 1e9, t.rate());
}

fn progress(ops: u64) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(ops), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} calls, {per_sec}, {eta} to go");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
