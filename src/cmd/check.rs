// SPDX-License-Identifier: GPL-2.0-only
//! `faultline check`: every lock protocol through every scenario, a table of verdicts, and for each that is busted the
//! interleaving that shows it.
//!
//! Each cell of the table runs in a process of its own, as many at a time as there are CPUs: an execution that fails ends its
//! process, having told what it did. Exit code 1 if a verdict is not the declared one.

use super::Failure;
use crate::check::audit::{self, Row};
use crate::check::whole::{ABOUT, WHOLE};
use crate::check::{Bound, Request, Shown, Wrong, failed, log, nothing_yet, show, text};
use crate::mm::vma_lock::{Claim, PROTOCOLS, SCENARIOS};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::{IsTerminal, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline check --protocol rwsem_keep_seq --scenario T3,T4\n\
                        holds: no execution looked at violates an invariant; busted: one does, and is shown;\n\
                        impossible: memory waits for a grace period, so that it cannot come to that")]
pub struct Args {
    /// Protocols [default: all]
    #[arg(long, value_delimiter = ',', value_name = "P")]
    protocol: Vec<String>,
    /// Scenarios: T0 to T9, and W for the whole port in the simulator [default: all]
    #[arg(long, value_delimiter = ',', value_name = "S")]
    scenario: Vec<String>,
    /// Of W, run the one interleaving of this seed (twenty from it on where the protocol is busted)
    #[arg(long, value_name = "N", conflicts_with = "deep")]
    seed: Option<u64>,
    /// Go further: five preemptions instead of three, or as far as 30 s for each number of them take a case; the scripts before the
    /// model checker too; more of W. Twenty minutes and more on two CPUs; at the end it says which cases did not come as far
    #[arg(long)]
    deep: bool,
    /// Take away the order of one line at a time, and say which scenario notices
    #[arg(long)]
    audit: bool,
    /// The interleaving of each busted cell is left out
    #[arg(long)]
    brief: bool,
    /// The result as JSON
    #[arg(long)]
    json: bool,
    /// One piece of work, as JSON: what this command starts for each cell
    #[arg(long, hide = true)]
    one: Option<String>,
}

/// Does one piece of work and prints what it showed, in the middle of it if an execution fails.
fn one(request: &str) -> Result<(), Failure> {
    let request: Request = serde_json::from_str(request).map_err(|e| Failure::Input(format!("--one: {e}")))?;
    let so_far = Arc::new(Mutex::new(nothing_yet(&request)));
    let begun = Instant::now();
    let state = so_far.clone();
    std::panic::set_hook(Box::new(move |info| {
        let (message, steps, state) = (text(info.payload()), log::current(), state.clone());
        // The threads of the model checker have stacks of 32 KiB: too small to put an execution into words.
        let teller = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
            log::set_current(steps);
            let mut s = state.lock().unwrap_or_else(|e| e.into_inner());
            s.ms = begun.elapsed().as_millis() as u64;
            failed(&mut s, message);
            print(&s);
            std::process::exit(0);
        });
        if let Err(e) = teller {
            eprintln!("faultline: no thread to tell of a failure: {e}");
            std::process::exit(1);
        }
        loop {
            std::thread::park();
        }
    }));
    show(&request, &so_far);
    print(&so_far.lock().unwrap_or_else(|e| e.into_inner()));
    Ok(())
}

fn print(s: &Shown) {
    let line = serde_json::to_string(s).expect("plain data");
    let mut out = std::io::stdout().lock();
    // Nobody to tell if the pipe is closed.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Runs requests in processes of their own.
struct Pool {
    jobs: usize,
    bar: ProgressBar,
}

impl Pool {
    fn run(&self, requests: &[Request]) -> Result<Vec<Shown>, String> {
        let next = Mutex::new(0usize);
        let results: Vec<Mutex<Option<Result<Shown, String>>>> = requests.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|s| {
            for _ in 0..self.jobs.min(requests.len()) {
                s.spawn(|| {
                    loop {
                        let i = {
                            let mut n = next.lock().expect("nobody panics with it");
                            *n += 1;
                            *n - 1
                        };
                        let Some(r) = requests.get(i) else { return };
                        *results[i].lock().expect("nobody panics with it") = Some(child(r));
                        self.bar.inc(1);
                        self.bar.set_message(format!("{} {}", r.scenario, r.protocol));
                    }
                });
            }
        });
        results.into_iter().map(|r| r.into_inner().expect("nobody panics with it").expect("each was run")).collect()
    }
}

fn child(r: &Request) -> Result<Shown, String> {
    let wrong = |what: String| format!("{} {}: {what}", r.scenario, r.protocol);
    let exe = std::env::current_exe().map_err(|e| wrong(format!("this program cannot be found: {e}")))?;
    let request = serde_json::to_string(r).expect("plain data");
    let out = Command::new(exe).args(["check", "--one", &request]).stdin(Stdio::null()).output();
    let out = out.map_err(|e| wrong(format!("its process could not be started: {e}")))?;
    if let (Some(signal), Some(_)) = (out.status.signal(), &r.weaken) {
        // A stale pointer was followed: nothing is left that could tell how.
        let message = format!("its process ended by signal {signal}: a pointer that was not one");
        let noticed = Wrong { case: String::new(), message, preemptions: None, steps: Vec::new() };
        return Ok(Shown { shown: Some(Claim::Busted), wrong: Some(noticed), ..nothing_yet(r) });
    }
    let text = String::from_utf8_lossy(&out.stdout);
    // What was said first: after a failure others may fail too.
    let line = text.lines().find(|l| l.starts_with('{'));
    line.and_then(|l| serde_json::from_str(l).ok()).ok_or_else(|| {
        wrong(format!("its process ended ({}) without a result: {}", out.status, last_line(&out.stderr)))
    })
}

fn last_line(b: &[u8]) -> String {
    String::from_utf8_lossy(b).lines().last().unwrap_or("no message").into()
}

fn names(given: &[String], all: &[&str], option: &str) -> Result<Vec<String>, Failure> {
    if let Some(bad) = given.iter().find(|g| !all.contains(&g.as_str())) {
        return Err(Failure::Input(format!("{option} {bad}: accepted: {}", all.join(", "))));
    }
    Ok(all.iter().filter(|n| given.is_empty() || given.iter().any(|g| g == *n)).map(|n| (*n).to_string()).collect())
}

/// Runs the verb.
pub fn main(args: &Args) -> Result<(), Failure> {
    if let Some(request) = &args.one {
        return one(request);
    }
    let all: Vec<_> = PROTOCOLS.iter().map(|p| p.name).collect();
    let protocols = names(&args.protocol, &all, "--protocol")?;
    let known: Vec<_> = SCENARIOS.into_iter().chain([(WHOLE, ABOUT)]).collect();
    let all: Vec<_> = known.iter().map(|s| s.0).collect();
    let scenarios = names(&args.scenario, &all, "--scenario")?;
    let bound = match args.seed {
        Some(first) => Bound { first, seeds: 1, ..Bound::USUAL },
        None if args.deep => Bound::DEEP,
        None => Bound::USUAL,
    };
    let target = if std::io::stderr().is_terminal() && !args.json {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::with_template("{elapsed} {pos}/{len} {msg}").expect("a constant"));
    bar.enable_steady_tick(Duration::from_millis(500));
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pool = Pool { jobs, bar };
    if args.audit {
        return run_audit(args, &protocols, &pool);
    }
    let mut requests = Vec::new();
    for s in &scenarios {
        for p in &protocols {
            let (protocol, scenario) = (p.clone(), s.clone());
            requests.push(Request::new(&protocol, &scenario, bound));
        }
    }
    pool.bar.set_length(requests.len() as u64);
    let begun = Instant::now();
    let mut shown = pool.run(&requests).map_err(Failure::Check)?;
    steps_for_the_whole(&mut shown, &pool, bound)?;
    pool.bar.finish_and_clear();
    if args.json {
        let leaves = bound.leaves();
        println!("{}", json!({"schema": 1, "kind": "check", "bound": bound, "leaves": leaves, "cells": shown}));
    } else {
        if !args.brief {
            shown.iter().filter(|s| s.wrong.is_some()).for_each(tell);
        }
        println!("{}", table(&protocols, &scenarios, &shown));
        for (id, what) in known.iter().filter(|s| scenarios.iter().any(|n| n == s.0)) {
            println!("{id:2}  {what}");
        }
        let executions: u64 = shown.iter().map(|s| s.executions).sum();
        println!(
            "{} cells, {executions} executions, {:.1} s; within its bound, which leaves unchecked: {}",
            shown.len(),
            begun.elapsed().as_secs_f64(),
            bound.leaves()
        );
        unfinished(&shown);
    }
    judge(&shown)
}

/// What a time limit left of the bound.
fn unfinished(shown: &[Shown]) {
    for s in shown {
        for u in &s.unfinished {
            let case = if u.case.is_empty() { String::new() } else { format!(" ({})", u.case) };
            let at = u.preemptions.map_or("no bound".into(), |n| how(Some(n)));
            println!(
                "not to its bound: {} {}{case}: {at} in part, {} executions",
                s.scenario, s.protocol, u.executions
            );
        }
    }
}

/// A verdict in tables and messages.
fn word(claim: Option<Claim>) -> &'static str {
    claim.map_or("nothing", Claim::name)
}

/// Whether every cell is as its protocol declares, in either direction.
fn judge(shown: &[Shown]) -> Result<(), Failure> {
    let bad: Vec<_> = shown
        .iter()
        .filter(|s| !s.as_declared())
        .map(|s| {
            let ended = s.wrong.as_ref().filter(|_| s.shown.is_none());
            let mut ended =
                ended.map_or(String::new(), |w| format!(", for it ended by what is no invariant: {}", w.message));
            if let Some(w) = s.wrong.as_ref().filter(|_| s.shown.is_some() && !s.by_what_it_is_about()) {
                ended = format!(", by what this scenario is not about: {}", w.message);
            }
            format!("{} {}: declared {}, shown {}{ended}", s.scenario, s.protocol, word(s.declared), word(s.shown))
        })
        .collect();
    if bad.is_empty() { Ok(()) } else { Err(Failure::Check(bad.join("\n"))) }
}

/// A run of W is not told access by access: it has millions. The steps of the smallest scenario that is busted stand beside it, and
/// are said to be that one's: whether they are why the run failed nobody has looked.
fn steps_for_the_whole(shown: &mut [Shown], pool: &Pool, bound: Bound) -> Result<(), Failure> {
    let told = |s: &Shown| s.wrong.as_ref().is_some_and(|w| !w.steps.is_empty());
    for i in 0..shown.len() {
        if shown[i].scenario != WHOLE || shown[i].wrong.is_none() || told(&shown[i]) {
            continue;
        }
        let name = shown[i].protocol.clone();
        let p = PROTOCOLS.iter().find(|p| p.name == name).expect("from the list");
        let small = |s: &str| matches!(p.claims[SCENARIOS.iter().position(|x| x.0 == s).expect("one")], Claim::Busted);
        // T3 needs no order to fail, as nothing in W does.
        let Some(id) = ["T3", "T4", "T5", "T0", "T1", "T2"].into_iter().find(|s| small(s)) else { continue };
        let known = shown.iter().find(|s| s.protocol == name && s.scenario == id && told(s)).cloned();
        let least = match known {
            Some(s) => Some(s),
            None => pool.run(&[Request::new(&name, id, bound)]).map_err(Failure::Check)?.pop(),
        };
        if let (Some(w), Some(least)) = (&mut shown[i].wrong, least.and_then(|s| s.wrong)) {
            w.case = format!("{}; the steps are not its own but those of {id}: {}", w.case, least.message);
            w.steps = least.steps;
        }
    }
    Ok(())
}

fn how(preemptions: Option<usize>) -> String {
    match preemptions {
        Some(1) => "1 preemption".into(),
        Some(n) => format!("{n} preemptions"),
        None => "a script, every load the newest value".into(),
    }
}

/// The interleaving of a busted cell.
fn tell(s: &Shown) {
    let Some(w) = &s.wrong else { return };
    let case = if w.case.is_empty() { String::new() } else { format!(" ({})", w.case) };
    let how = if s.scenario == WHOLE { "a seed repeats it: --scenario W --seed N".into() } else { how(w.preemptions) };
    println!("{} {}{case}: {} [{how}]", s.scenario, s.protocol, w.message);
    w.steps.iter().for_each(|step| println!("{step}"));
    println!();
}

/// Protocol by scenario; a verdict that is not the declared one is marked.
fn table(protocols: &[String], scenarios: &[String], shown: &[Shown]) -> Table {
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    let mut head = vec!["protocol".to_string()];
    head.extend(scenarios.iter().cloned());
    head.extend(["executions".into(), "s".into()]);
    t.set_header(head);
    for p in protocols {
        let of = |s: &String| shown.iter().find(|x| x.protocol == *p && x.scenario == *s).expect("each was run");
        let mut row = vec![p.clone()];
        row.extend(scenarios.iter().map(|s| {
            let x = of(s);
            let shown = word(x.shown);
            if x.as_declared() { shown.into() } else { format!("{shown} (declared {})", word(x.declared)) }
        }));
        let (mut executions, mut ms) = (0, 0);
        for x in scenarios.iter().map(of) {
            executions += x.executions;
            ms += x.ms;
        }
        row.extend([executions.to_string(), format!("{:.1}", ms as f64 / 1000.0)]);
        t.add_row(row);
    }
    t
}

fn run_audit(args: &Args, protocols: &[String], pool: &Pool) -> Result<(), Failure> {
    let bound = if args.deep { Bound::DEEP } else { Bound::USUAL };
    let begun = Instant::now();
    let mut left = 0;
    let rows = audit::audit(protocols, bound, &mut |r| pool.run(r), &mut |all, n| {
        left = n;
        pool.bar.set_prefix(format!("{n} of {all} lines left"));
    })
    .map_err(Failure::Check)?;
    pool.bar.finish_and_clear();
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|r| {
                json!({"site": place(r), "op": r.op, "caught": r.caught, "tried": r.tried,
            "reason": if r.caught.is_some() { None } else { r.reason(&rows) }})
            })
            .collect();
        println!("{}", json!({"schema": 1, "kind": "audit", "bound": bound, "lines": rows}));
    } else {
        print!("{}", audit_table(&rows));
        println!();
        println!("{} lines, {} not shown to be needed; {:.0} s", rows.len(), left, begun.elapsed().as_secs_f64());
    }
    let unknown: Vec<_> = rows.iter().filter(|r| r.caught.is_none() && r.reason(&rows).is_none()).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let places: Vec<_> = unknown.iter().map(|r| place(r)).collect();
    Err(Failure::Check(format!(
        "nothing notices if these lose their order, and no reason is known: {}",
        places.join(", ")
    )))
}

fn place(r: &Row) -> String {
    let file = r.site.file.split_once("src/").map_or(r.site.file.as_str(), |(_, f)| f);
    format!("{file}:{}", r.site.line)
}

/// As Markdown.
fn audit_table(rows: &[Row]) -> String {
    let mut out = String::from("| line | order | without it |\n|---|---|---|\n");
    for r in rows {
        let what = match &r.caught {
            Some(c) => format!("{}: {}", format!("{} {}", c.scenario, c.protocol).trim(), c.message),
            None => {
                format!("not shown to be needed ({} runs): {}", r.tried.len(), r.reason(rows).unwrap_or("not known"))
            }
        };
        out.push_str(&format!("| {} | {} | {what} |\n", place(r), r.op));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use Claim::*;

    fn cell(declared: Option<Claim>, shown: Option<Claim>) -> Shown {
        Shown { declared, shown, ..nothing_yet(&Request::new("refcnt", "T0", Bound::QUICK)) }
    }

    /// A busted protocol that passes is as much of a failure as a sound one that does not.
    #[test]
    fn a_verdict_that_is_not_the_declared_one_fails_in_both_directions() {
        for (declared, shown, fails) in [
            (Some(Holds), Some(Holds), false),
            (Some(Busted), Some(Busted), false),
            (Some(Impossible), Some(Impossible), false),
            (None, Some(Holds), false),
            (None, Some(Busted), false),
            (Some(Holds), Some(Busted), true),
            (Some(Busted), Some(Holds), true),
            (Some(Impossible), Some(Holds), true),
            (Some(Impossible), Some(Busted), true),
            (Some(Holds), Some(Impossible), true),
            (Some(Holds), None, true),
            (None, None, true),
        ] {
            let fine = |claim| cell(Some(claim), Some(claim));
            let all = [fine(Holds), cell(declared, shown), fine(Busted)];
            match judge(&all) {
                Ok(()) => assert!(!fails, "declared {declared:?}, shown {shown:?}"),
                Err(Failure::Check(m)) => {
                    assert!(fails, "{m}");
                    assert_eq!(m, format!("T0 refcnt: declared {}, shown {}", word(declared), word(shown)));
                }
                Err(e) => panic!("{e:?}"),
            }
        }
    }

    /// What is no invariant is no verdict, whatever was declared, and is told.
    #[test]
    fn what_ends_by_anything_else_is_busted_in_nobodys_favour() {
        for message in ["null pointer dereference occurred", "index out of bounds", "I am no invariant"] {
            let mut s = cell(Some(Busted), Some(Holds));
            s.wrong = Some(Wrong { case: String::new(), message: String::new(), preemptions: None, steps: Vec::new() });
            failed(&mut s, message.into());
            assert_eq!(s.shown, None, "{message}");
            let Err(Failure::Check(m)) = judge(&[s]) else { panic!("{message}: a verdict") };
            assert!(m.starts_with("T0 refcnt: declared busted, shown nothing") && m.ends_with(message), "{m}");
        }
        let mut s = cell(Some(Busted), None);
        failed(&mut s, "I3: write-locked by A".into());
        assert_eq!(s.shown, Some(Busted));
    }
}
