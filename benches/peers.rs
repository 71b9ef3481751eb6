// SPDX-License-Identifier: GPL-2.0-only
//! What the benches of primitives share: contenders that do the same work, measured in turn in one run.
//!
//! One CPU ([`Bench::solo`]): short batches of each contender, one after the other, in an order that rotates; a
//! contender's figure is its fastest batch. Two CPUs ([`Bench::duo`]): two pinned threads begin a batch together and keep
//! the load on until both are done; a contender's figure is the median over the batches in which the operating system
//! took neither CPU away and which began together; the quartiles are printed beside it. A row is one line: ours, the
//! best of the peers that count, the ratio, the ratio aimed at, whether it was met. A shape is a bare model of a fast
//! path with nothing behind it: attainable, not a peer. No row is compared with a figure of another run.
//!
//! `--test`: one pass, no verdicts. `FAULTLINE_QUICK=1` or `--quick`: fewer batches. A word without dashes: only groups
//! whose name contains it. `--callgrind FILE`: no clock at all; each contender of one CPU runs inside
//! [`faultline_counted`], one call after the other, and FILE says in the same order who it was (`scripts/instructions`).
//! `--markdown`: at the end all figures as one table ([`Bench::sizes`]); `--write FILE`: puts that table into FILE,
//! between the comments `<!-- NAME begins -->` and `<!-- NAME ends -->` (NAME: the bench).
//! `FAULTLINE_OUT`: directory of `primitives.jsonl`, to which the rows are appended (default: `faultline` in the target
//! directory).
//!
//! It cannot tell what a hit of the cache costs under load, nor anything about more CPUs than two. On a loaded machine
//! the minima hold and the medians do not; the load is printed and in every row.

use faultline::host::{Host, PinKind, affinity};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::hint::{black_box, spin_loop};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Ends the freedom of the compiler to keep memory that escaped in registers; no instruction.
#[inline(always)]
pub fn clobber() {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) }
}

/// Somebody who does the work: `n` operations at a call.
pub struct Contender<'a> {
    /// Name within its group.
    pub name: String,
    /// `n` operations.
    pub run: Box<dyn FnMut(u64) + 'a>,
    /// What has to follow a batch and is not part of the work.
    pub after: Option<Box<dyn FnMut() + 'a>>,
    /// Instructions an operation that were measured elsewhere, to be printed beside those counted here.
    pub listed: Option<f64>,
    /// Of two CPUs the second does nothing.
    pub idle_side: bool,
    /// Two CPUs do different halves of the work: the time is from the first one's begin to the last one's end.
    pub span: bool,
}

impl<'a> Contender<'a> {
    /// Runs `run(n)` for `n` operations.
    pub fn new(name: impl Into<String>, run: impl FnMut(u64) + 'a) -> Self {
        let (name, run) = (name.into(), Box::new(run));
        Contender { name, run, after: None, listed: None, idle_side: false, span: false }
    }
}

/// A comparison within a group.
pub struct Row {
    /// Whose figure it is.
    pub ours: &'static str,
    /// Against the fastest of these; nobody: the figure alone.
    pub against: &'static [&'static str],
    /// Time aimed at, as a multiple of that; `None`: only reported.
    pub target: Option<f64>,
    /// Instructions aimed at, as a multiple of the fewest of these.
    pub instructions: Option<f64>,
    /// Instructions aimed at, as a number.
    pub at_most: Option<f64>,
    /// Not only an aim: `scripts/instructions --check` fails where these instructions are exceeded.
    pub gate: bool,
    /// What the port does there that the peers do not: printed where a target was not met.
    pub why: &'static str,
}

/// A comparison without targets.
pub const ROW: Row =
    Row { ours: "", against: &[], target: None, instructions: None, at_most: None, gate: false, why: "" };

/// A comparison as it was reported.
struct Told {
    group: String,
    cpus: u32,
    ours: Figure,
    figures: Vec<Figure>,
    best: Option<String>,
    ratio: Option<f64>,
    target: Option<f64>,
    verdict: &'static str,
    why: &'static str,
}

/// A contender's figure, ns per operation.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Contender.
    pub name: String,
    /// Minimum or median.
    pub ns: f64,
    /// What is printed as spread: minimum and median, or the quartiles.
    pub spread: (f64, f64),
    /// Batches that counted, of how many.
    pub samples: (usize, usize),
}

impl Figure {
    /// The fastest of `ns`, which is not empty.
    pub fn fastest(name: &str, mut ns: Vec<f64>) -> Self {
        ns.sort_by(f64::total_cmp);
        let n = ns.len();
        Figure { name: name.into(), ns: ns[0], spread: (ns[0], ns[n / 2]), samples: (n, n) }
    }

    /// The middle of `ns`, which are the good ones `of` all; not a number without any.
    pub fn median(name: &str, mut ns: Vec<f64>, of: usize) -> Self {
        ns.sort_by(f64::total_cmp);
        let at = |q: usize| ns.get((ns.len() * q / 4).min(ns.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
        Figure { name: name.into(), ns: at(2), spread: (at(1), at(3)), samples: (ns.len(), of) }
    }
}

/// A bench target at work.
pub struct Bench {
    target: &'static str,
    quick: bool,
    filter: Option<String>,
    rows: Option<File>,
    cases: Option<File>,
    markdown: bool,
    write: Option<String>,
    /// What was reported: operation, size, figures.
    told: Vec<(String, String, Vec<Figure>)>,
    ratios: Vec<Told>,
    host: String,
    model: String,
    /// It only counts instructions.
    pub counts: bool,
    /// Its table shows all contenders' figures on one CPU, a column for each size; else each comparison: the port, its
    /// peers, the ratio, the ratio aimed at, and why it is dearer where it is.
    pub sizes: bool,
    /// It is one pass to see that it works.
    pub tests: bool,
    /// The CPUs used: one a core, as many as there are.
    pub cpus: Vec<u32>,
}

impl Bench {
    /// Whether it ends in a table.
    pub fn writes(&self) -> bool {
        self.markdown || self.write.is_some()
    }

    /// Reads the arguments, pins the calling thread and says on what it runs.
    pub fn open(target: &'static str) -> Bench {
        faultline::arch::native::check_processor().unwrap_or_else(|e| die(&e));
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |a: &str| args.iter().any(|x| x == a);
        let quick = has("--quick") || std::env::var_os("FAULTLINE_QUICK").is_some_and(|v| v != "0");
        let count = args.iter().position(|a| a == "--callgrind").map(|i| args.get(i + 1).cloned().unwrap_or_default());
        let host = Host::load("this").unwrap_or_else(|e| die(&e.to_string()));
        let cores = host.topology.pus.len().max(1);
        let cpus = (1..=cores).rev().find_map(|n| faultline::host::plan::plan(&host.topology, &PinKind::NoSmt, n).ok());
        let cpus: Vec<u32> = cpus.map_or_else(affinity::allowed, |slots| slots.iter().map(|s| s.cpu).collect());
        if let Err(e) = affinity::pin(cpus[0]) {
            println!("{target}: not pinned: {e}");
        }
        let write = args.iter().position(|a| a == "--write").map(|i| args.get(i + 1).cloned().unwrap_or_default());
        let is_value = |a: &String| Some(a) == count.as_ref() || Some(a) == write.as_ref();
        let filter = args.iter().find(|a| !a.starts_with('-') && !is_value(a)).cloned();
        let mut b = Bench {
            target,
            quick,
            counts: count.is_some(),
            tests: has("--test"),
            filter,
            rows: None,
            markdown: has("--markdown"),
            write,
            sizes: false,
            told: Vec::new(),
            ratios: Vec::new(),
            cases: count.map(|p| File::create(&p).unwrap_or_else(|e| die(&format!("{p}: {e}")))),
            host: host.id.name.clone(),
            model: host.id.cpu_model.clone(),
            cpus,
        };
        if !b.counts {
            let dir = out_dir();
            let path = dir.join("primitives.jsonl");
            let file =
                std::fs::create_dir_all(&dir).and_then(|()| OpenOptions::new().append(true).create(true).open(&path));
            b.rows = Some(file.unwrap_or_else(|e| die(&format!("{}: {e}", path.display()))));
            let load = load();
            println!("{target}: {} ({}), {} CPUs used at most, load {load:.1}", b.host, b.model, b.cpus.len().min(2));
            if load > 0.5 {
                println!("{target}: others use this machine: trust ratios of minima, not medians of two CPUs");
            }
        }
        b
    }

    /// `test`, `quick` or `full`, whichever this run is.
    pub fn pick<T>(&self, test: T, quick: T, full: T) -> T {
        match (self.tests, self.quick) {
            (true, _) => test,
            (_, true) => quick,
            _ => full,
        }
    }

    /// Whether `group` is asked for.
    pub fn wants(&self, group: &str) -> bool {
        self.filter.as_ref().is_none_or(|f| group.contains(f.as_str()))
    }

    /// One CPU: `batch` operations of each contender at a time, in turn.
    pub fn solo(&mut self, group: &str, batch: u64, contenders: &mut [Contender<'_>], rows: &[Row]) {
        if !self.wants(group) {
            return;
        }
        if self.counts {
            return self.count(group, batch, contenders, rows);
        }
        let rounds = self.pick(1, 40, 600);
        let mut ns: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::with_capacity(rounds)).collect();
        // The first round warms up.
        for round in 0..=rounds {
            for i in 0..contenders.len() {
                let i = (i + round) % contenders.len();
                let c = &mut contenders[i];
                let t = Instant::now();
                (c.run)(batch);
                let d = t.elapsed();
                if let Some(f) = &mut c.after {
                    f();
                }
                if round != 0 {
                    ns[i].push(d.as_nanos() as f64 / batch as f64);
                }
            }
        }
        let figures: Vec<Figure> = contenders.iter().zip(ns).map(|(c, v)| Figure::fastest(&c.name, v)).collect();
        self.report(group, 1, &figures, rows);
    }

    /// Two CPUs at once. `make(side)` is called on each side's thread, and makes the same list on both.
    pub fn duo<'a>(
        &mut self,
        group: &str,
        batch: u64,
        make: impl Fn(usize) -> Vec<Contender<'a>> + Sync,
        rows: &[Row],
    ) {
        if !self.wants(group) || self.counts {
            return;
        }
        if self.cpus.len() < 2 {
            println!("{group}: skipped, this machine has one core");
            return;
        }
        let rounds = self.pick(1, 30, 400);
        let line = Line::default();
        let side = |s: usize| {
            let _ = affinity::pin(self.cpus[s]);
            let mut contenders = make(s);
            let mut seen = Vec::new();
            for round in 0..=rounds {
                for i in 0..contenders.len() {
                    let i = (i + round) % contenders.len();
                    let b = half_of_batch(&line, s, &mut contenders[i], batch);
                    if round != 0 {
                        seen.push((i, b));
                    }
                }
            }
            let about: Vec<(String, bool, bool)> =
                contenders.iter().map(|c| (c.name.clone(), c.idle_side, c.span)).collect();
            (about, seen)
        };
        // The calling thread sleeps in join() meanwhile.
        let ((about, one), (_, two)) = std::thread::scope(|scope| {
            let a = scope.spawn(|| side(0));
            let b = scope.spawn(|| side(1));
            let end = |r: std::thread::Result<_>| r.unwrap_or_else(|e| std::panic::resume_unwind(e));
            (end(a.join()), end(b.join()))
        });
        let mut ns: Vec<Vec<f64>> = about.iter().map(|_| Vec::new()).collect();
        for ((i, a), (_, b)) in one.iter().zip(&two) {
            let (_, idle_side, span) = about[*i];
            let took = |h: &Half| (h.end - h.begin).as_nanos() as f64 / batch as f64;
            let apart = if a.begin > b.begin { a.begin - b.begin } else { b.begin - a.begin };
            if a.preempted || b.preempted || apart > (a.end - a.begin).min(b.end - b.begin) / 10 && !idle_side {
                continue;
            }
            ns[*i].push(match () {
                () if span => (a.end.max(b.end) - a.begin.min(b.begin)).as_nanos() as f64 / batch as f64,
                () if idle_side => took(a),
                () => (took(a) + took(b)) / 2.0,
            });
        }
        let figures: Vec<Figure> = about.iter().zip(ns).map(|(c, v)| Figure::median(&c.0, v, rounds)).collect();
        self.report(group, 2, &figures, rows);
    }

    /// Prints a group's rows and appends them to the file.
    pub fn report(&mut self, group: &str, cpus: u32, figures: &[Figure], rows: &[Row]) {
        let find = |name: &str| figures.iter().find(|f| f.name == name);
        if cpus == 1 {
            let (operation, size) = operation_and_size(group);
            self.told.push((operation, size, figures.to_vec()));
        }
        for row in rows {
            let Some(ours) = find(row.ours) else { continue };
            let spread = |f: &Figure| match cpus {
                1 => format!("median {:.2}", f.spread.1),
                _ => format!("{:.1}..{:.1}, {} of {}", f.spread.0, f.spread.1, f.samples.0, f.samples.1),
            };
            let best = row.against.iter().filter_map(|a| find(a)).filter(|f| f.ns.is_finite());
            let best = best.min_by(|a, b| a.ns.total_cmp(&b.ns));
            if best.is_none() && !row.against.is_empty() {
                println!("{group} | {}: nobody to compare with", row.ours);
                continue;
            }
            let ratio = best.map(|b| ours.ns / b.ns);
            let enough = ours.samples.0.min(best.map_or(usize::MAX, |b| b.samples.0)) >= 5;
            let verdict = match row.target {
                _ if self.tests => "one pass",
                _ if !enough => "too few undisturbed samples",
                None => "reported",
                // As it is printed.
                Some(t) if ratio.is_some_and(|r| (r * 100.0).round() / 100.0 <= t) => "met",
                Some(_) => "not met",
            };
            self.ratios.push(Told {
                group: group.into(),
                cpus,
                ours: ours.clone(),
                figures: figures.iter().filter(|f| rows.iter().all(|r| r.ours != f.name)).cloned().collect(),
                best: best.map(|b| b.name.clone()),
                ratio,
                target: row.target,
                verdict,
                why: row.why,
            });
            let target = row.target.map_or("-".into(), |t| format!("<= {t:.2}"));
            print!("{group:<38} {:<26} {:>9.2} ns | ", row.ours, ours.ns);
            match (best, ratio) {
                (Some(best), Some(ratio)) => println!(
                    "{:<30} {:>9.2} ns | ratio {ratio:>5.2} target {target:<7} {verdict} [{}; {}]",
                    best.name,
                    best.ns,
                    spread(ours),
                    spread(best)
                ),
                _ => println!("{verdict} [{}]", spread(ours)),
            }
            let all: serde_json::Map<String, serde_json::Value> = figures
                .iter()
                .map(|f| {
                    let v = json!({"ns": f.ns, "spread_ns": [f.spread.0, f.spread.1], "samples": f.samples.0,
                                   "of": f.samples.1});
                    (f.name.clone(), v)
                })
                .collect();
            let line = json!({"schema": 1, "kind": "primitive", "bench": self.target, "group": group, "cpus": cpus,
                "ours": row.ours, "ours_ns": ours.ns, "anchor": best.map(|b| &b.name), "anchor_ns": best.map(|b| b.ns),
                "ratio": ratio,
                "target": row.target, "verdict": verdict, "statistic": if cpus == 1 { "minimum" } else { "median" },
                "figures": all, "quick": self.quick || self.tests, "host": self.host, "cpu_model": self.model,
                "load": load(), "commit": env!("FAULTLINE_COMMIT")});
            if let Some(f) = &mut self.rows {
                writeln!(f, "{line}").unwrap_or_else(|e| die(&format!("primitives.jsonl: {e}")));
            }
        }
    }

    fn count(&mut self, group: &str, batch: u64, contenders: &mut [Contender<'_>], rows: &[Row]) {
        for c in contenders.iter_mut() {
            for _ in 0..3 {
                (c.run)(batch);
                c.after.iter_mut().for_each(|f| f());
            }
            // What `after` does must not be counted; else the longer the better.
            let (calls, n) = if c.after.is_some() { (20, batch) } else { (1, 20 * batch) };
            for _ in 0..calls {
                faultline_counted(&mut *c.run, n);
                c.after.iter_mut().for_each(|f| f());
            }
            let listed = c.listed.map_or("-".into(), |n| n.to_string());
            self.note(format_args!("case\t{group}\t{}\t{calls}\t{n}\t{listed}", c.name));
        }
        for r in rows {
            let shown = |v: Option<f64>| v.map_or("-".into(), |v| v.to_string());
            let (times, at_most) = (shown(r.instructions), shown(r.at_most));
            let gate = if r.gate { "gate" } else { "-" };
            let against = r.against.join(",");
            self.note(format_args!("row\t{group}\t{}\t{against}\t{times}\t{at_most}\t{gate}", r.ours));
        }
    }

    fn note(&mut self, line: std::fmt::Arguments<'_>) {
        if let Some(f) = &mut self.cases {
            writeln!(f, "{line}").unwrap_or_else(|e| die(&format!("list of cases: {e}")));
        }
    }
}

/// The end: the table, where it is asked for.
impl Drop for Bench {
    fn drop(&mut self) {
        if self.counts || std::thread::panicking() || !self.writes() {
            return;
        }
        let how = if self.tests || self.quick { "few batches: no figures to go by; " } else { "" };
        let what = match self.sizes {
            true => "fastest batch",
            false => "fastest batch, or median and quartiles where two CPUs are at work",
        };
        let head = format!(
            "{how}{what}, ns an operation; {} ({}), commit {}, load {:.1} at the end.",
            self.host,
            self.model,
            env!("FAULTLINE_COMMIT"),
            load()
        );
        let table = if self.sizes { table(&self.told) } else { ratios(&self.ratios) };
        let table = format!("{head}\n\n{table}");
        if self.markdown {
            println!("\n{table}");
        }
        let Some(path) = self.write.take() else { return };
        let (begins, ends) = (format!("<!-- {} begins -->", self.target), format!("<!-- {} ends -->", self.target));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| die(&format!("--write {path}: {e}")));
        let parts = text.split_once(&begins).and_then(|(a, rest)| Some((a, rest.split_once(&ends)?.1)));
        let Some((before, after)) = parts else { die(&format!("--write {path}: no place for it ({begins}, {ends})")) };
        std::fs::write(&path, format!("{before}{begins}\n\n{table}\n{ends}{after}"))
            .unwrap_or_else(|e| die(&format!("--write {path}: {e}")));
    }
}

/// `TARGET/OPERATION, SIZE` or `TARGET/SIZE/OPERATION`, without the target.
fn operation_and_size(group: &str) -> (String, String) {
    let rest = group.split_once('/').map_or(group, |(_, r)| r);
    let (operation, size) = match rest.split_once('/') {
        Some((size, operation)) => (operation, size),
        None => rest.rsplit_once(", ").unwrap_or((rest, "")),
    };
    (operation.into(), size.into())
}

/// A row for each operation and contender, a column for each size.
fn table(told: &[(String, String, Vec<Figure>)]) -> String {
    let mut sizes: Vec<&str> = Vec::new();
    let mut operations: Vec<&str> = Vec::new();
    for (operation, size, _) in told {
        if !sizes.contains(&size.as_str()) {
            sizes.push(size);
        }
        if !operations.contains(&operation.as_str()) {
            operations.push(operation);
        }
    }
    let mut out =
        format!("| operation | who |{}\n|---|---|", sizes.iter().map(|s| format!(" {s} |")).collect::<String>());
    out += &"---:|".repeat(sizes.len());
    out.push('\n');
    for o in operations {
        let mut names: Vec<&str> = Vec::new();
        for f in told.iter().filter(|t| t.0 == o).flat_map(|t| &t.2) {
            if !names.contains(&f.name.as_str()) {
                names.push(&f.name);
            }
        }
        for (i, name) in names.iter().enumerate() {
            out += &format!("| {} | {name} |", if i == 0 { o } else { "" });
            for size in &sizes {
                let cell =
                    told.iter().find(|t| t.0 == o && t.1 == *size).and_then(|t| t.2.iter().find(|f| f.name == *name));
                out += &cell.map_or("  |".into(), |f| match f.ns {
                    n if n < 1000.0 => format!(" {n:.1} |"),
                    n => format!(" {n:.0} |"),
                });
            }
            out.push('\n');
        }
    }
    out
}

/// A figure, with its quartiles where it is a median.
fn shown(f: &Figure, cpus: u32) -> String {
    let n = |v: f64| if v < 1000.0 { format!("{v:.2}") } else { format!("{v:.0}") };
    match cpus {
        _ if !f.ns.is_finite() => "no undisturbed batch".into(),
        1 => n(f.ns),
        _ => format!("{} ({} to {})", n(f.ns), n(f.spread.0), n(f.spread.1)),
    }
}

/// A line for each comparison, the best peer in bold, and below it why those rows are dear that missed their target.
fn ratios(told: &[Told]) -> String {
    let mut out =
        String::from("| case | port | ns | others, ns | ratio | at most | |\n|---|---|---:|---|---:|---:|---|\n");
    let number = |v: f64| if v < 100.0 { format!("{v:.2}") } else { format!("{v:.0}") };
    let mut last = ("", String::new());
    for t in told {
        let others = t.figures.iter().map(|f| {
            let bold = if t.best.as_ref() == Some(&f.name) { "**" } else { "" };
            format!("{bold}{} {}{bold}", f.name, shown(f, t.cpus))
        });
        let others = others.collect::<Vec<_>>().join("; ");
        let ours = &t.ours.name;
        // What the line above says is not said again.
        let (case, who) = (if last.0 == t.group { "" } else { &t.group }, if last.1 == others { "" } else { &others });
        let (ns, ratio) = (shown(&t.ours, t.cpus), t.ratio.map_or(String::new(), number));
        let target = t.target.map_or(String::new(), number);
        out += &format!("| {case} | {ours} | {ns} | {who} | {ratio} | {target} | {} |\n", t.verdict);
        last = (&t.group, others);
    }
    let mut dear: Vec<(&str, Vec<String>)> = Vec::new();
    for t in told.iter().filter(|t| t.verdict == "not met" && !t.why.is_empty()) {
        let row = format!("{}: {}", t.group, t.ours.name);
        match dear.iter_mut().find(|d| d.0 == t.why) {
            Some(d) => d.1.push(row),
            None => dear.push((t.why, vec![row])),
        }
    }
    let dear: String = dear.iter().map(|(why, rows)| format!("- {}. Why: {why}.\n", rows.join("; "))).collect();
    if dear.is_empty() { out } else { format!("{out}\nNot met:\n\n{dear}") }
}

/// What callgrind counts: everything from its beginning to its return.
#[inline(never)]
// SAFETY: no other symbol of the program has this name.
#[unsafe(no_mangle)]
pub fn faultline_counted(run: &mut dyn FnMut(u64), n: u64) {
    run(n);
    // Not the last call, which would be a jump out of here.
    black_box(n);
}

/// Where two threads meet.
#[derive(Default)]
#[repr(align(128))]
struct Line {
    arrived: AtomicU64,
    _apart: [u64; 15],
    done: AtomicU64,
}

/// One side of a batch.
struct Half {
    begin: Instant,
    end: Instant,
    preempted: bool,
}

fn half_of_batch(line: &Line, side: usize, c: &mut Contender<'_>, batch: u64) -> Half {
    let idle = side == 1 && c.idle_side;
    let switches = involuntary_switches();
    // Each meeting adds two to either count, so the next one's number is known.
    let meet = |word: &AtomicU64, mut meanwhile: &mut dyn FnMut()| {
        let all = (word.fetch_add(1, Ordering::AcqRel) / 2 + 1) * 2;
        let turn: &mut dyn FnMut() = &mut meanwhile;
        while word.load(Ordering::Acquire) < all {
            turn();
        }
    };
    meet(&line.arrived, &mut spin_loop);
    let begin = Instant::now();
    if !idle {
        (c.run)(batch);
    }
    let end = Instant::now();
    // The one that is done first keeps the load on, where the work is not a fixed amount for two.
    let span = c.span;
    meet(&line.done, &mut || if idle || span { spin_loop() } else { (c.run)(16) });
    if let Some(f) = &mut c.after {
        f();
    }
    Half { begin, end, preempted: involuntary_switches() != switches }
}

/// Times the operating system took the CPU from this thread.
fn involuntary_switches() -> i64 {
    // SAFETY: a zeroed rusage is one; the call fills it.
    unsafe {
        let mut u: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut u);
        u.ru_nivcsw
    }
}

/// The load of the last minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|w| w.parse().ok()).unwrap_or(0.0)
}

fn out_dir() -> PathBuf {
    if let Some(d) = std::env::var_os("FAULTLINE_OUT") {
        return d.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target")).join("faultline")
}

/// Ends with a message.
pub fn die(e: &str) -> ! {
    eprintln!("faultline bench: {e}");
    std::process::exit(2)
}
