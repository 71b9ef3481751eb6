// SPDX-License-Identifier: GPL-2.0-only
//! The block of plain text for a cover letter: at most [`WIDTH`] columns, baseline first, nothing that mail would wrap.
//!
//! Order: what was compared; per workload and thread count the figures; how faults ended; waits for mmap_lock;
//! counters of RCU and slab; cache effects; then host, runs, confidence, seed, commit and every warning. Worlds have a block each.
//!
//! Stars stand for this tool's verdict (significant after correction, and beyond the noise), not for mmtests' mark; the
//! text says so. A protocol that does not hold has the word beside each of its figures.

use crate::measure::stat::mmtests::Better;
use crate::report::blocks::{CAUSES, RetryRow, SIDES, WaitRow, is_cause_of, is_headline};
use crate::report::compare::{Block, Comparison, Options, Row, Side, Verdict, compare};
use crate::report::record::Sample;
use crate::report::render::{no_pmu, number};
use std::fmt::Write;

/// No line is longer.
pub const WIDTH: usize = 75;

/// Rows of a list of counters beyond which the rest is only counted.
const LIST_MAX: usize = 24;

/// The letter.
///
/// # Errors
/// As [`compare`].
pub fn letter(samples: &[Sample], options: &Options) -> Result<String, String> {
    let c = compare(samples, options)?;
    let mut out = Letter(String::new());
    for block in &c.blocks {
        for patched in block.variants.iter().filter(|v| **v != c.baseline) {
            section(&mut out, &c, block, patched);
        }
        footer(&mut out, &c, block);
    }
    for w in &c.warnings {
        out.item(&format!("warning: {w}"));
    }
    Ok(out.0)
}

/// Text that never grows wider than [`WIDTH`].
struct Letter(String);

impl Letter {
    fn line(&mut self, text: &str) {
        let text = text.trim_end();
        if text.chars().count() <= WIDTH {
            self.0.push_str(text);
            self.0.push('\n');
        } else {
            self.fold(text, "");
        }
    }

    /// A paragraph whose further lines are set in.
    fn item(&mut self, text: &str) {
        self.fold(text, "  ");
    }

    /// Breaks at blanks, and inside words that are longer than a line.
    fn fold(&mut self, text: &str, indent: &str) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            let mut rest: Vec<char> = word.chars().collect();
            if !line.trim().is_empty() && line.chars().count() + 1 + rest.len() > WIDTH {
                let _ = writeln!(self.0, "{line}");
                line = indent.into();
            }
            if !line.trim().is_empty() {
                line.push(' ');
            }
            while line.chars().count() + rest.len() > WIDTH {
                let room = WIDTH - line.chars().count();
                line.extend(rest.drain(..room));
                let _ = writeln!(self.0, "{line}");
                line = indent.into();
            }
            line.extend(rest);
        }
        let _ = writeln!(self.0, "{line}");
    }

    fn blank(&mut self) {
        if !self.0.is_empty() && !self.0.ends_with("\n\n") {
            self.0.push('\n');
        }
    }
}

fn with_verdict(block: &Block, variant: &str) -> String {
    let busted = if block.busted.iter().any(|b| b == variant) { " (busted: the protocol does not hold)" } else { "" };
    format!("{variant}{busted}")
}

fn section(out: &mut Letter, c: &Comparison, block: &Block, patched: &str) {
    out.blank();
    out.item(&format!("{} in {}, world {}, mode {}", c.metric, c.unit, block.world, block.mode));
    out.item(&format!("baseline: {}", with_verdict(block, &c.baseline)));
    out.item(&format!("patched: {}", with_verdict(block, patched)));
    figures(out, c, block, patched);
    retries(out, c, block, patched);
    waits(out, c, block, patched);
    counters(out, c, block, patched);
    cache(out, c, block, patched);
}

fn find<'a>(row: &'a Row, variant: &str) -> Option<&'a Side> {
    row.sides.iter().find(|s| s.variant == variant && !s.values.is_empty())
}

fn figures(out: &mut Letter, c: &Comparison, block: &Block, patched: &str) {
    out.blank();
    let ci = format!("{:.0}% CI", 100.0 * c.confidence);
    let mut workload = "";
    for row in &block.rows {
        let (Some(base), Some(new)) = (find(row, &c.baseline), find(row, patched)) else { continue };
        let Some(change) = &new.change else { continue };
        if row.workload != workload {
            workload = &row.workload;
            out.item(&format!("{workload} ({})", c.point));
            out.line(&format!("{:>5}{:>6}{:>12}{:>12}{:>11}{ci:>17}", "thr", "n", "baseline", "patched", "change"));
        }
        let (open, close) = match change.verdict {
            Verdict::Better | Verdict::Worse | Verdict::Differs => ('*', '*'),
            Verdict::Same | Verdict::Unclear | Verdict::Undecided => ('(', ')'),
        };
        let ci = change
            .ratio
            .map_or("n/a".into(), |r| format!("{:+.2}..{:+.2}", 100.0 * (r.low - 1.0), 100.0 * (r.high - 1.0)));
        let busted = |v: &str| block.busted.iter().any(|b| b == v);
        let word = match (busted(&c.baseline), busted(patched)) {
            (true, true) => " both busted",
            (true, false) => " base busted",
            (false, true) => " busted",
            (false, false) => "",
        };
        out.line(&format!(
            "{:>5}{:>6}{:>12}{:>12} {open}{:>7.2}%{close}{ci:>17}{word}",
            row.threads,
            format!("{}+{}", base.values.len(), new.values.len()),
            number(base.point),
            number(new.point),
            change.percent,
        ));
    }
    if workload.is_empty() {
        out.item("no row has samples of both");
        return;
    }
    out.blank();
    let better = match c.better {
        Some(Better::Higher) => "more is better",
        Some(Better::Lower) => "less is better",
        None => "neither side is better",
    };
    out.item(&format!(
        "Positive = more; {better}. Stars: significant (Mann-Whitney, p < {} after Holm over this world's rows) and the whole \
         interval beyond the noise (the larger of {:.1}% and the baseline against itself). Parentheses: no such claim.",
        c.alpha,
        100.0 * c.floor
    ));
}

/// A figure in at most six characters.
fn short(v: Option<f64>) -> String {
    match v {
        None => "n/a".into(),
        Some(v) if v >= 1e6 => format!("{v:.1e}"),
        Some(v) if v != 0.0 && v < 0.01 => format!("{v:.0e}"),
        Some(v) if v < 10.0 => format!("{v:.2}"),
        Some(v) => number(v),
    }
}

fn retries(out: &mut Letter, c: &Comparison, block: &Block, patched: &str) {
    out.blank();
    out.item("How faults ended, per million:");
    let mut rows: Vec<&RetryRow> =
        block.retries.iter().filter(|r| r.variant == c.baseline || r.variant == patched).collect();
    if rows.is_empty() {
        out.item("not counted, or no fault was taken");
        return;
    }
    rows.sort_by_key(|r| (&r.workload, r.threads, r.variant != c.baseline));
    // Two tables: all in one would be too wide.
    let is_abort = |name: &str| is_cause_of(name, "vma_lock_abort");
    let causes = |r: &RetryRow, aborts: bool| -> Vec<(&'static str, Option<f64>)> {
        let mine = |name: &str| name != "vma_lock_abort" && is_abort(name) == aborts;
        CAUSES.iter().zip(&r.causes).filter(|((name, _), _)| mine(name)).map(|((_, head), v)| (*head, *v)).collect()
    };
    ends(out, c, &rows, |r| {
        let mut all = vec![("success", r.success), ("mmap_lock", r.under_mmap_lock)];
        all.extend(causes(r, false));
        all
    });
    out.item("mmap_lock = retry (anon-vma + io) + aborts; a miss walks again and ends elsewhere.");
    out.item("Aborts, per million faults:");
    ends(out, c, &rows, |r| causes(r, true));
}

/// Rows of figures with their headings, by workload.
fn ends(
    out: &mut Letter,
    c: &Comparison,
    rows: &[&RetryRow],
    of: impl Fn(&RetryRow) -> Vec<(&'static str, Option<f64>)>,
) {
    let mut workload = "";
    for r in rows {
        if r.workload != workload {
            workload = &r.workload;
            out.item(workload);
            let mut head = format!("{:>4} {:<4}", "thr", "");
            for (name, _) in of(r) {
                let _ = write!(head, "{name:>10}");
            }
            out.line(&head);
        }
        let side = if r.variant == c.baseline { "base" } else { "new" };
        let mut line = format!("{:>4} {side:<4}", r.threads);
        for (_, v) in of(r) {
            let _ = write!(line, "{:>10}", short(v));
        }
        out.line(&line);
    }
}

fn waits(out: &mut Letter, c: &Comparison, block: &Block, patched: &str) {
    out.blank();
    out.item("Waits for mmap_lock, per million faults (how many, and us in all):");
    let shown = |r: &&WaitRow| r.variant == c.baseline || r.variant == patched;
    let mut rows: Vec<&WaitRow> = block.waits.iter().filter(shown).collect();
    if rows.is_empty() {
        out.item("nobody waited, or it was not counted, or no fault was taken");
        return;
    }
    rows.sort_by_key(|r| (&r.workload, r.threads, r.variant != c.baseline, r.side));
    let mut workload = "";
    for pair in rows.chunk_by(|a, b| (&a.workload, a.threads, &a.variant) == (&b.workload, b.threads, &b.variant)) {
        let r = pair[0];
        if r.workload != workload {
            workload = &r.workload;
            out.item(workload);
            let mut head = format!("{:>4} {:<4}", "thr", "");
            for side in SIDES {
                let _ = write!(head, "{:>12}{:>12}", format!("{side} waits"), format!("{side} us"));
            }
            out.line(&head);
        }
        let name = if r.variant == c.baseline { "base" } else { "new" };
        let mut line = format!("{:>4} {name:<4}", r.threads);
        for side in SIDES {
            let of = pair.iter().find(|r| r.side == side);
            let _ = write!(line, "{:>12}{:>12}", short(of.map(|r| r.waits)), short(of.map(|r| r.us)));
        }
        out.line(&line);
    }
}

/// Rows of one list: workload-threads, name, baseline, patched; grouped by the first.
fn list(out: &mut Letter, rows: &[(String, String, Option<f64>, Option<f64>)]) {
    const NAME: usize = WIDTH - 4 - 12 - 12 - 10;
    out.line(&format!("    {:NAME$}{:>12}{:>12}{:>10}", "", "baseline", "patched", "change"));
    let mut group = "";
    for (at, what, base, new) in rows.iter().take(LIST_MAX) {
        if group != at {
            out.item(&format!("  {at}"));
            group = at;
        }
        let number = |v: &Option<f64>| v.map_or("n/a".into(), number);
        // A name too long for its column stands on a line of its own: two counters must not look alike.
        let name = if what.chars().count() < NAME {
            what.as_str()
        } else {
            out.item(&format!("    {what}"));
            ""
        };
        let change = change(*base, *new);
        out.line(&format!("    {name:NAME$}{:>12}{:>12}{change:>10}", number(base), number(new)));
    }
    if rows.len() > LIST_MAX {
        out.item(&format!("  and {} rows more (faultline compare shows all)", rows.len() - LIST_MAX));
    }
}

/// A change in percent, or as a factor where percents would be long; nothing where there is no base.
fn change(base: Option<f64>, new: Option<f64>) -> String {
    match (base, new) {
        (Some(a), Some(b)) if a > 0.0 && b / a < 10.0 => format!("{:+.1}%", 100.0 * (b / a - 1.0)),
        (Some(a), Some(b)) if a > 0.0 => format!("x{}", number(b / a)),
        _ => String::new(),
    }
}

fn counters(out: &mut Letter, c: &Comparison, block: &Block, patched: &str) {
    out.blank();
    out.item("RCU and slab, per 1000 operations, counters that moved:");
    let at = |v: &str| block.variants.iter().position(|x| x == v);
    let (Some(b), Some(p)) = (at(&c.baseline), at(patched)) else { return };
    let rows: Vec<_> = block
        .rcu_slab
        .iter()
        .filter(|r| r.values[b] != r.values[p] && is_headline(&r.name))
        .map(|r| (format!("{}-{}", r.workload, r.threads), r.name.clone(), r.values[b], r.values[p]))
        .collect();
    if rows.is_empty() { out.item("none") } else { list(out, &rows) }
}

fn cache(out: &mut Letter, c: &Comparison, block: &Block, patched: &str) {
    let at = |v: &str| block.variants.iter().position(|x| x == v);
    let (Some(b), Some(p)) = (at(&c.baseline), at(patched)) else { return };
    if block.world == "sim" {
        out.blank();
        out.item("Cache effects: simulator, lines moved per operation by struct:");
        let rows: Vec<_> = block
            .lines
            .iter()
            .map(|r| (format!("{}-{}", r.workload, r.threads), r.name.clone(), r.values[b], r.values[p]))
            .map(|(at, name, b, p)| (at, name, b.map(|l| l.moved), p.map(|l| l.moved)))
            .filter(|(_, _, b, p)| b.unwrap_or(0.0) > 0.0 || p.unwrap_or(0.0) > 0.0)
            .collect();
        if rows.is_empty() {
            out.item("none moved, or not recorded")
        } else {
            list(out, &rows)
        }
        return;
    }
    out.blank();
    out.item("Cache effects: PMU, events per operation:");
    let rows: Vec<_> = block
        .pmu
        .iter()
        .map(|r| (format!("{}-{}", r.workload, r.threads), r.event.clone(), r.values[b], r.values[p]))
        .collect();
    if !rows.is_empty() {
        list(out, &rows);
    }
    for why in &block.pmu_absent {
        out.item(&format!("not counted: {why}"));
    }
    if rows.is_empty() && block.pmu_absent.is_empty() {
        out.item(&format!("not counted: {}", no_pmu(block)));
    }
}

fn footer(out: &mut Letter, c: &Comparison, block: &Block) {
    out.blank();
    let h = &block.host;
    let guest = if h.virtualised { ", virtualised" } else { "" };
    out.item(&format!(
        "host: {} ({}, {} CPUs, {} nodes{guest}), kernel {}",
        h.name, h.cpu_model, h.cpus, h.nodes, h.kernel
    ));
    let hidden: String = block.hidden.iter().map(|(k, v)| format!(", {k}={v}")).collect();
    let seeds = if block.seeds > 1 { format!(" and {} more", block.seeds - 1) } else { String::new() };
    let n = if block.n.0 == block.n.1 { block.n.0.to_string() } else { format!("{} to {}", block.n.0, block.n.1) };
    out.item(&format!(
        "runs: {n} samples a side and row; confidence {:.0}%; seed {}{seeds}; faultline {}{hidden}",
        100.0 * c.confidence,
        block.seed,
        block.tool
    ));
    let aa: Vec<f64> = block.rows.iter().filter_map(|r| r.aa.as_ref()).map(|aa| aa.percent).collect();
    match aa.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())) {
        Some(most) => out.item(&format!(
            "A/A: baseline against itself, odd against even trials, differs by {most:+.2}% at most over {} rows",
            aa.len()
        )),
        None => out.item("A/A: not available, fewer than 4 baseline samples in every row"),
    }
    for w in &block.warnings {
        out.item(&format!("warning: {w}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::synthetic::{matrix, sample};

    fn widest(text: &str) -> usize {
        text.lines().map(|l| l.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn no_line_is_wider_than_a_mail() {
        let long = "protocol_with_a_name_that_nobody_would_ever_choose+cache_of_the_same_kind@allocator_alike";
        let word = "w".repeat(200);
        for scale in [1.0, 1e6, 1e9] {
            let mut samples: Vec<Sample> = matrix("sim");
            samples.extend(matrix("native"));
            for s in &mut samples {
                s.operations = (s.operations as f64 * scale) as u64;
                s.per_thread.clear();
                s.workload += &word;
                s.host.cpu_model = word.clone();
                s.commit = word.clone();
                s.warnings.push(format!("a warning without end {word} {word}"));
                s.verdict = Some("busted".into());
                for n in s.counters.values_mut() {
                    *n = (*n as f64 * scale) as u64;
                }
                s.counters.insert(format!("rcu_{word}"), u64::from(s.variant == "v6.12") * 1_000_000_000);
                s.lines = s.lines.iter().map(|(k, v)| (format!("{k}{word}"), v.clone())).collect();
                if s.variant == "v7.3" {
                    s.variant = long.into();
                }
            }
            let text = letter(&samples, &Options::new("v6.12")).expect("compares");
            assert!(widest(&text) <= WIDTH, "{}: {text}", widest(&text));
            assert!(text.contains("both busted") && text.contains("protocol_with_a_name"));
        }
    }

    #[test]
    fn the_letter_says_all_it_must_and_keeps_worlds_apart() {
        let mut samples = matrix("native");
        samples.extend(matrix("sim"));
        let options = Options { patched: vec!["v7.3".into()], ..Options::new("v6.12") };
        let text = letter(&samples, &options).expect("compares");
        for what in [
            "baseline: v6.12",
            "patched: v7.3",
            "Stars: significant",
            "How faults ended, per million:",
            "success mmap_lock retry anon-vma io miss",
            "Aborts, per million faults:",
            "RCU and slab, per 1000 operations",
            "Cache effects: PMU",
            "Cache effects: simulator",
            "host: testbox (Imaginary 9000, 16 CPUs, 1 nodes), kernel 6.18.0",
            "8 samples a side and row; confidence 95%; seed 1; faultline 0.1.0 0123456789ab",
            "A/A: baseline against itself",
            "warning: all samples come from one start",
        ] {
            let unfolded = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(unfolded.contains(what), "lacks \"{what}\":\n{text}");
        }
        assert_eq!(text.matches("world native").count(), 1);
        assert_eq!(text.matches("world sim").count(), 1);
        let (native, sim) =
            text.split_once("world sim").or_else(|| text.split_once("world native")).expect("two worlds");
        assert!(native.contains("simulator") != sim.contains("simulator"));
        if let Ok(path) = std::env::var("FAULTLINE_SHOW") {
            std::fs::write(format!("{path}/letter"), text).expect("writes");
        }
    }

    #[test]
    fn stars_follow_the_verdict() {
        let side = |variant: &'static str, gain: f64| {
            (0..8).map(move |t| sample(variant, "brk1", 1, t, 1e6 * gain * (1.0 + 0.001 * f64::from(t % 3))))
        };
        let of = |gain| {
            let samples: Vec<Sample> = side("base", 1.0).chain(side("new", gain)).collect();
            letter(&samples, &Options::new("base")).expect("compares")
        };
        assert!(of(1.10).contains("*  10.00%*") && of(0.90).contains("* -10.00%*"), "{}", of(1.10));
        assert!(of(1.001).contains("(   0.10%)"), "{}", of(1.001));
    }
}
