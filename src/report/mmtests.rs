// SPDX-License-Identifier: GPL-2.0-only
//! The table that mm reviewers know by heart: mmtests' comparison, baseline column first.
//!
//! Layout, percents and stars follow that tool's rules (`measure::stat::mmtests`); its star is no test of significance,
//! and the verdicts of the text format do not use it. Departures: a row that a variant lacks leaves its cell empty
//! instead of ending the report; numbers and names too wide for a column widen all columns; a name without a dash splits
//! before its plus sign; "(busted)" stands under the name of a
//! protocol that does not hold.

use crate::measure::stat::descriptive::range;
use crate::measure::stat::mmtests::{Better, best_mean, starred};
use crate::report::compare::{Block, Comparison, Row, Side};
use crate::report::render::title;
use std::fmt::Write;

/// Name of a statistic, its direction (spreads: always down), and its value.
type Statistic = (&'static str, Better, fn(Better, &[f64]) -> f64);

fn statistics(better: Better) -> Vec<Statistic> {
    let (mean, deviation, cv, best) = match better {
        Better::Higher => ("Hmean", "HStddev", "HCoeffVar", ["BHmean-50", "BHmean-95", "BHmean-99"]),
        Better::Lower => ("Amean", "Stddev", "CoeffVar", ["BAmean-50", "BAmean-95", "BAmean-99"]),
    };
    vec![
        ("Min", better, |_, x| range(x).0),
        (mean, better, |b, x| b.mean(x)),
        (deviation, Better::Lower, |b, x| or_zero(b.deviation(x))),
        (cv, Better::Lower, |b, x| or_zero(100.0 * b.deviation(x) / b.mean(x))),
        ("Max", better, |_, x| range(x).1),
        (best[0], better, |b, x| best_mean(b, x, 50)),
        (best[1], better, |b, x| best_mean(b, x, 95)),
        (best[2], better, |b, x| best_mean(b, x, 99)),
    ]
}

/// One run has no deviation; the original prints zero there.
fn or_zero(v: f64) -> f64 {
    if v.is_nan() { 0.0 } else { v }
}

/// The two header rows of a kernel name: split at the first dash, but for a release candidate's.
pub fn split_name(name: &str) -> (String, String) {
    let from = name.find("-rc").filter(|at| name[at + 3..].starts_with(|c: char| c.is_ascii_digit()));
    let from = from.filter(|at| !name[..*at].contains('-')).map_or(0, |at| at + 1);
    match name[from..].find('-') {
        Some(at) => (name[..from + at].into(), name[from + at + 1..].into()),
        // A variant's slug has no dash; PROTOCOL+CACHE@ALLOCATOR would not fit one column.
        None => name.find('+').map_or((name.into(), String::new()), |at| (name[..at].into(), name[at..].into())),
    }
}

/// Name of an operation: with one workload the metric's, as PFT has it; else the workload's.
fn operation(c: &Comparison, block: &Block, row: &Row) -> String {
    let one = block.rows.iter().all(|r| r.workload == row.workload);
    match c.metric.as_str() {
        "faults_per_cpu" if one => format!("faults/cpu-{}", row.threads),
        "faults" if one => format!("faults/sec-{}", row.threads),
        _ => format!("{}-{}", row.workload, row.threads),
    }
}

/// All blocks, each under a line that says what it is.
pub(super) fn render(c: &Comparison) -> String {
    let mut out = String::new();
    for block in &c.blocks {
        let _ = writeln!(out, "{}", title(c, block));
        table(&mut out, c, block);
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "Positive = better. A star is mmtests' mark: mean +- 1.96 standard deviations of both sides do not overlap."
    );
    for w in c.blocks.iter().flat_map(|b| &b.warnings).chain(&c.warnings) {
        let _ = writeln!(out, "warning: {w}");
    }
    out
}

fn table(out: &mut String, c: &Comparison, block: &Block) {
    let better = c.better.unwrap_or(Better::Lower);
    let (mut field, places) = if c.metric.starts_with("faults") { (14, 4) } else { (12, 2) };
    let rows: Vec<&Row> = block.rows.iter().filter(|r| r.sides.iter().any(|s| !s.values.is_empty())).collect();
    let widest = rows.iter().flat_map(|r| &r.sides).map(|s| format!("{:.places$}", range(&s.values).1).len()).max();
    field = field.max(widest.unwrap_or(0) + 1);
    let heads: Vec<[String; 2]> = block.variants.iter().map(|v| heads(v, block.busted.contains(v))).collect();
    let longest = heads.iter().flatten().map(String::len).max().unwrap_or(0);
    // One blank between names: a cell is the field and eleven more.
    field = field.max((longest + 1).saturating_sub(11));
    let statistics = statistics(better);
    let w1 = statistics.iter().map(|s| s.0.len()).max().unwrap_or(0);
    let operations: Vec<String> = rows.iter().map(|r| operation(c, block, r)).collect();
    let w2 = operations.iter().map(String::len).max().unwrap_or(0);

    for line in [0, 1] {
        let mut head = " ".repeat(w1 + 1 + w2);
        for parts in &heads {
            let _ = write!(head, "{:>width$}", parts[line], width = field + 11);
        }
        let _ = writeln!(out, "{}", head.trim_end());
    }
    for (name, direction, value) in &statistics {
        for (row, operation) in rows.iter().zip(&operations) {
            let mut line = format!("{name:<w1$} {operation:<w2$}");
            let base = row.sides.first().filter(|s| s.variant == c.baseline && !s.values.is_empty());
            for variant in &block.variants {
                match row.sides.iter().find(|s| s.variant == *variant && !s.values.is_empty()) {
                    Some(side) => line += &cell(base, side, better, *direction, *value, is_mean(name), field, places),
                    None => line += &" ".repeat(field + 11),
                }
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

/// Both header rows of a variant.
fn heads(variant: &str, busted: bool) -> [String; 2] {
    let (first, mut second) = split_name(variant);
    if busted {
        second = if second.is_empty() { "(busted)".into() } else { format!("{second} (busted)") };
    }
    [first, second]
}

fn is_mean(name: &str) -> bool {
    matches!(name, "Hmean" | "Amean")
}

#[expect(clippy::too_many_arguments, reason = "one cell of a table is all of this")]
fn cell(
    base: Option<&Side>,
    side: &Side,
    better: Better,
    direction: Better,
    value: fn(Better, &[f64]) -> f64,
    mean: bool,
    field: usize,
    places: usize,
) -> String {
    let mine = value(better, &side.values);
    let shown = format!("{mine:>field$.places$}");
    let Some(base) = base else { return format!("{shown} {:10}", "") };
    let percent = direction.percent(value(better, &base.values), mine);
    let star = mean && base.variant != side.variant && starred(better, &base.values, &side.values);
    let (open, close) = if star { ('*', '*') } else { ('(', ')') };
    format!("{shown} {open}{percent:7.2}%{close}")
}
