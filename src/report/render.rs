// SPDX-License-Identifier: GPL-2.0-only
//! A comparison as text, markdown, CSV or JSON; the mmtests layout is in [`super::mmtests`].
//!
//! Every format carries the word "busted" beside figures of a protocol that does not hold, and the warnings. Positive
//! percents mean "more" here (mmtests: "better"), and the footer says so.

use crate::report::blocks::{CAUSES, CounterRow, Lines, WAIT_BINS, WAKES};
use crate::report::compare::{Block, Change, Comparison, Row, Side};
use crate::report::metric::Metric;
use crate::report::reuse::{ReuseRow, is_headline};
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::Write;
use std::str::FromStr;

/// How a comparison is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Text,
    /// The layout of mmtests' comparison.
    Mmtests,
    /// Pipes.
    Markdown,
    /// One line a variant and row.
    Csv,
    /// Everything, samples included.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "text" => Ok(Self::Text),
            "mmtests" => Ok(Self::Mmtests),
            "markdown" => Ok(Self::Markdown),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            _ => Err(format!("format \"{s}\" is not known; there are text, mmtests, markdown, csv and json")),
        }
    }
}

impl Comparison {
    /// The comparison in `format`, ending in a newline.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Text => page(self, presets::NOTHING, "", ""),
            Format::Markdown => page(self, presets::ASCII_MARKDOWN, "## ", "### "),
            Format::Mmtests => super::mmtests::render(self),
            Format::Csv => csv(self),
            // Only finite numbers, strings and maps with string keys are inside.
            Format::Json => {
                serde_json::to_string_pretty(self).unwrap_or_else(|e| format!("{{\"error\": \"{e}\"}}")) + "\n"
            }
        }
    }
}

/// A number in about four figures: no digit is shown that the measurement does not carry.
pub fn number(v: f64) -> String {
    match v.abs() {
        _ if !v.is_finite() => "n/a".into(),
        0.0 => "0".into(),
        1000.0.. => format!("{v:.0}"),
        100.0.. => format!("{v:.1}"),
        10.0.. => format!("{v:.2}"),
        0.001.. => format!("{v:.3}"),
        _ => format!("{v:.1e}"),
    }
}

fn number_or_na(v: Option<f64>) -> String {
    v.map_or("n/a".into(), number)
}

/// Percent with a sign.
pub fn signed(percent: f64) -> String {
    if percent.is_finite() { format!("{percent:+.2}%") } else { "n/a".into() }
}

/// A p-value as papers print it.
pub fn p_value(p: Option<f64>) -> String {
    match p {
        None => "n/a".into(),
        Some(p) if p < 0.0001 => "<0.0001".into(),
        Some(p) => format!("{p:.4}"),
    }
}

/// The interval of a ratio as percents; `p` marks an interval of pairs.
pub fn interval(c: &Change) -> String {
    let Some(r) = c.ratio else { return "n/a".into() };
    let percent = |r: f64| format!("{:+.2}", 100.0 * (r - 1.0));
    format!("{} .. {}{}", percent(r.low), percent(r.high), if c.paired { " p" } else { "" })
}

fn table(preset: &str, head: &[&str], left: usize) -> Table {
    let mut t = Table::new();
    t.load_preset(preset).set_header(head.iter().map(|h| h.to_string()));
    for (i, column) in t.column_iter_mut().enumerate() {
        column.set_cell_alignment(if i < left { CellAlignment::Left } else { CellAlignment::Right });
        if preset == presets::NOTHING {
            column.set_padding(if i == 0 { (0, 1) } else { (1, 1) });
        }
    }
    t
}

fn print(out: &mut String, t: &Table) {
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn page(c: &Comparison, preset: &str, h2: &str, h3: &str) -> String {
    let mut out = String::new();
    for block in &c.blocks {
        let _ = writeln!(out, "{h2}{}\n", title(c, block));
        main_table(&mut out, c, block, preset);
        let _ = writeln!(out, "\n{}", legend(c, block));
        again_table(&mut out, c, block, preset, h3);
        retries_table(&mut out, block, preset, h3);
        wait_tables(&mut out, block, preset, h3);
        counter_tables(&mut out, block, preset, h3);
        pmu_table(&mut out, block, preset, h3);
        lines_table(&mut out, block, preset, h3);
        reuse_table(&mut out, block, preset, h3);
        list(&mut out, &format!("\n{h3}Warnings"), &block.warnings);
        let _ = writeln!(out);
    }
    if !c.beside.is_empty() {
        let _ = writeln!(out, "{h2}The host's kernel beside the port: object reuse\n");
        reuse_rows(&mut out, &c.beside, preset, true);
        let _ = writeln!(out);
    }
    list(&mut out, &format!("{h3}Warnings for all blocks"), &c.warnings);
    out
}

fn list(out: &mut String, head: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = writeln!(out, "{head}\n");
        for w in lines {
            let _ = writeln!(out, "- {w}");
        }
    }
}

/// One line: metric, world, mode, host, and what else sets this block apart.
pub fn title(c: &Comparison, b: &Block) -> String {
    let hidden: String = b.hidden.iter().map(|(k, v)| format!(", {k}={v}")).collect();
    // Two tables never carry one title: whatever parts them is named.
    let twins = || c.blocks.iter().filter(|o| (&o.world, &o.mode, &o.host.name) == (&b.world, &b.mode, &b.host.name));
    let mut apart = String::new();
    if twins().any(|o| o.tool != b.tool) {
        apart += &format!(", faultline {}", b.tool);
    }
    if twins().any(|o| o.host.fingerprint != b.host.fingerprint) {
        apart += &format!(", fingerprint {}", b.host.fingerprint);
    }
    if twins().any(|o| o.host.kernel != b.host.kernel) {
        apart += &format!(", kernel {}", b.host.kernel);
    }
    format!("{} ({}), world {}, mode {}, host {}{hidden}{apart}", c.metric, c.unit, b.world, b.mode, b.host.name)
}

fn side_value(block: &Block, side: &Side) -> String {
    let busted = if block.busted.contains(&side.variant) { " busted" } else { "" };
    format!("{}{busted}", number(side.point))
}

fn main_table(out: &mut String, c: &Comparison, block: &Block, preset: &str) {
    let ci = format!("{:.0}% CI of ratio", 100.0 * c.confidence);
    let head =
        ["workload", "thr", "variant", "n", "err", c.point, "CV%", "change", &ci, "p", "p adj", "noise%", "verdict"];
    let mut t = table(preset, &head, 1);
    t.column_mut(2).expect("has 13 columns").set_cell_alignment(CellAlignment::Left);
    for row in &block.rows {
        for side in &row.sides {
            let mut cells = vec![
                row.workload.clone(),
                row.threads.to_string(),
                side.variant.clone(),
                side.values.len().to_string(),
                side.excluded.to_string(),
                side_value(block, side),
                if side.cv.is_finite() { format!("{:.2}", side.cv) } else { "n/a".into() },
            ];
            match &side.change {
                Some(ch) => cells.extend([
                    signed(ch.percent),
                    interval(ch),
                    p_value(ch.p),
                    p_value(ch.p_adjusted),
                    format!("{:.2}", 100.0 * row.noise),
                    ch.verdict.to_string(),
                ]),
                None if side.variant == c.baseline => cells.extend(["baseline"].map(String::from)),
                None => {}
            }
            cells.resize(head.len(), String::new());
            t.add_row(cells);
        }
    }
    print(out, &t);
}

/// What the columns of the main table mean.
pub fn legend(c: &Comparison, block: &Block) -> String {
    let method = if block.rows.iter().flat_map(|r| &r.sides).any(|s| s.change.as_ref().is_some_and(|c| c.paired)) {
        "paired t on logarithms where marked p (samples of one trial), else Welch on logarithms"
    } else {
        "Welch on logarithms"
    };
    let better = match c.better {
        Some(crate::measure::stat::mmtests::Better::Higher) => "more is better",
        Some(crate::measure::stat::mmtests::Better::Lower) => "less is better",
        None => "neither side is better",
    };
    format!(
        "change: of the {}, positive = more, {better}. CI: ratio of geometric means, percent, {method}.\np: Mann-Whitney, \
         two-sided, exact where small; adj: Holm over this table. noise: the larger of {:.1}% and A/A.\nverdict: \
         better/worse when p adj < {} and the CI lies beyond the noise; same when the CI lies within {:.1}%; else unclear; \
         undecided when the two ways to wait (kconfig wait) name different winners.",
        c.point,
        100.0 * c.floor,
        c.alpha,
        100.0 * c.floor,
    )
}

fn again_table(out: &mut String, c: &Comparison, block: &Block, preset: &str, h3: &str) {
    let rows: Vec<&Row> = block.rows.iter().filter(|r| r.aa.is_some()).collect();
    let _ = writeln!(out, "\n{h3}A/A: {} against itself, odd against even trials\n", c.baseline);
    if rows.is_empty() {
        let _ = writeln!(out, "not available: fewer than 4 samples of the baseline in every row");
        return;
    }
    let mut t = table(preset, &["workload", "thr", "n", "change", "p"], 1);
    for row in rows {
        if let Some(aa) = &row.aa {
            let n = format!("{}+{}", aa.n.0, aa.n.1);
            t.add_row([row.workload.clone(), row.threads.to_string(), n, signed(aa.percent), p_value(aa.p)]);
        }
    }
    print(out, &t);
}

fn retries_table(out: &mut String, block: &Block, preset: &str, h3: &str) {
    let _ = writeln!(out, "\n{h3}How faults ended, per million\n");
    if block.retries.is_empty() {
        let _ = writeln!(out, "not counted, or no fault was taken");
        return;
    }
    let mut head = vec!["workload", "thr", "variant", "n", "success", "mmap_lock"];
    head.extend(CAUSES.map(|(_, name)| name));
    let mut t = table(preset, &head, 1);
    t.column_mut(2).expect("has 17 columns").set_cell_alignment(CellAlignment::Left);
    for r in &block.retries {
        let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.variant.clone(), r.n.to_string()];
        cells.extend([r.success, r.under_mmap_lock].map(number_or_na));
        cells.extend(r.causes.iter().map(|v| number_or_na(*v)));
        t.add_row(cells);
    }
    print(out, &t);
    let _ = writeln!(
        out,
        "\nsuccess: under the VMA's lock; mmap_lock = retry + abort; retry splits into anon-vma and io, abort into none to \
         range. A miss\nwalks again and ends elsewhere. Only miss, other-mm and range can differ between ways of freeing."
    );
}

fn wait_tables(out: &mut String, block: &Block, preset: &str, h3: &str) {
    let _ = writeln!(out, "\n{h3}Waits for mmap_lock, per million faults\n");
    if block.waits.is_empty() {
        let _ = writeln!(out, "nobody waited, or it was not counted, or no fault was taken");
    } else {
        let mut head = vec!["workload", "thr", "variant", "side", "n", "taken", "waits", "us"];
        head.extend(WAIT_BINS.map(|(_, name)| name));
        let mut t = table(preset, &head, 1);
        for i in [2, 3] {
            t.column_mut(i).expect("has 17 columns").set_cell_alignment(CellAlignment::Left);
        }
        for r in &block.waits {
            let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.variant.clone(), r.side.into()];
            cells.extend([r.n.to_string(), number_or_na(r.taken), number(r.waits), number(r.us)]);
            cells.extend(r.bins.iter().map(|v| number(*v)));
            t.add_row(cells);
        }
        print(out, &t);
        let _ =
            writeln!(out, "\nus: all waits together; then how many took so long, each column without those before it.");
    }
    if block.wakes.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{h3}Waits for the readers of a VMA, sleeps and wake-ups, per million faults\n");
    let mut head = vec!["workload", "thr", "variant"];
    head.extend(WAKES.map(|(_, name)| name));
    let mut t = table(preset, &head, 1);
    t.column_mut(2).expect("has 10 columns").set_cell_alignment(CellAlignment::Left);
    for r in &block.wakes {
        let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.variant.clone()];
        cells.extend(r.values.iter().map(|v| number_or_na(*v)));
        t.add_row(cells);
    }
    print(out, &t);
    let _ =
        writeln!(out, "\nSleeps and wake-ups are those of every rwsem: mmap_lock, and the locks of VMAs that are one.");
}

/// Counters of a row of the main table that are printed; the rest is only counted.
const COUNTERS_SHOWN: usize = 16;

fn counter_tables(out: &mut String, block: &Block, preset: &str, h3: &str) {
    let _ = writeln!(
        out,
        "\n{h3}RCU and slab, counters that moved, largest change first, per 1000 operations; levels last, absolute\n"
    );
    let mut left = 0;
    if block.rcu_slab.is_empty() {
        let _ = writeln!(out, "none");
    } else {
        let mut head = vec!["workload", "thr", "counter"];
        head.extend(block.variants.iter().map(String::as_str));
        let mut t = table(preset, &head, 1);
        t.column_mut(2).expect("has 3 columns").set_cell_alignment(CellAlignment::Left);
        for rows in block.rcu_slab.chunk_by(|a, b| (&a.workload, a.threads) == (&b.workload, b.threads)) {
            left += rows.len().saturating_sub(COUNTERS_SHOWN);
            for r in rows.iter().take(COUNTERS_SHOWN) {
                let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.name.clone()];
                cells.extend(r.values.iter().map(|v| number_or_na(*v)));
                t.add_row(cells);
            }
        }
        print(out, &t);
    }
    if left > 0 {
        let _ = writeln!(out, "\n{left} smaller changes are not shown; --format json and csv have them");
    }
    if !block.counters.is_empty() {
        let _ = writeln!(out, "\n{} other counters moved; --format json and csv have them", block.counters.len());
    }
}

fn reuse_table(out: &mut String, block: &Block, preset: &str, h3: &str) {
    let _ =
        writeln!(out, "\n{h3}Object reuse: allocator events of the CPU from an object's free to its next hand-out\n");
    let rows: Vec<ReuseRow> = block.reuse.iter().filter(|r| is_headline(&r.cache)).cloned().collect();
    if rows.is_empty() {
        let _ = writeln!(out, "not watched");
        return;
    }
    reuse_rows(out, &rows, preset, false);
    let _ = writeln!(
        out,
        "\nnext: share of hand-outs that return what the event before freed. again: hand-outs from an object's hand-out to\n\
         its next, median. remote: freed on another CPU. first: no free was seen. objects: distinct ones in a sample."
    );
}

fn reuse_rows(out: &mut String, rows: &[ReuseRow], preset: &str, worlds: bool) {
    let mut head = vec!["workload", "thr", "cache", "variant"];
    if worlds {
        head.push("world");
    }
    let left = head.len();
    head.extend(["n", "allocs/op", "frees/op", "next", "median", "p90", "again", "remote", "first", "objects"]);
    let mut t = table(preset, &head, left);
    t.column_mut(1).expect("has columns").set_cell_alignment(CellAlignment::Right);
    let share = |v: Option<f64>| v.map_or("n/a".into(), |v| format!("{:.1}%", 100.0 * v));
    for r in rows {
        let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.cache.clone(), r.variant.clone()];
        if worlds {
            cells.push(r.world.clone());
        }
        cells.push(if r.lost > 0 { format!("{} ({} lost records)", r.n, r.lost) } else { r.n.to_string() });
        cells.extend([r.allocs_per_op, r.frees_per_op].map(number_or_na));
        cells.push(share(r.next));
        cells.extend([r.median, r.p90, r.again].map(number_or_na));
        cells.extend([r.remote, r.first].map(share));
        cells.push(number_or_na(r.distinct));
        t.add_row(cells);
    }
    print(out, &t);
}

fn pmu_table(out: &mut String, block: &Block, preset: &str, h3: &str) {
    let _ = writeln!(out, "\n{h3}Cache effects: PMU, per operation\n");
    if !block.pmu.is_empty() {
        let mut head = vec!["workload", "thr", "event"];
        head.extend(block.variants.iter().map(String::as_str));
        head.push("running");
        let mut t = table(preset, &head, 1);
        t.column_mut(2).expect("has 4 columns").set_cell_alignment(CellAlignment::Left);
        for r in &block.pmu {
            let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.event.clone()];
            cells.extend(r.values.iter().map(|v| number_or_na(*v)));
            cells.push(format!("{:.0}%", 100.0 * r.running_share));
            t.add_row(cells);
        }
        print(out, &t);
    }
    for why in &block.pmu_absent {
        let _ = writeln!(out, "not counted: {why}");
    }
    if block.pmu.is_empty() && block.pmu_absent.is_empty() {
        let _ = writeln!(out, "not counted: {}", no_pmu(block));
    }
}

/// Why a block has no PMU figures where its samples do not say.
pub fn no_pmu(block: &Block) -> &'static str {
    if block.world == "sim" { "a simulated machine has no PMU" } else { "the samples name no event" }
}

/// Transfers in one cell: moved, of which far, and upgrades.
fn lines_cell(l: Option<Lines>) -> String {
    l.map_or("n/a".into(), |l| format!("{} / {} / {}", number(l.moved), number(l.far), number(l.upgrades)))
}

fn lines_table(out: &mut String, block: &Block, preset: &str, h3: &str) {
    if block.world != "sim" {
        return;
    }
    let _ = writeln!(out, "\n{h3}Cache effects: simulator (lines moved per operation by struct)\n");
    if block.lines.is_empty() {
        let _ = writeln!(out, "the samples carry no line transfers");
        return;
    }
    let mut head = vec!["workload", "thr", "struct"];
    head.extend(block.variants.iter().map(String::as_str));
    let mut t = table(preset, &head, 1);
    t.column_mut(2).expect("has 3 columns").set_cell_alignment(CellAlignment::Left);
    for r in &block.lines {
        let mut cells = vec![r.workload.clone(), r.threads.to_string(), r.name.clone()];
        cells.extend(r.values.iter().map(|l| lines_cell(*l)));
        t.add_row(cells);
    }
    print(out, &t);
    let _ = writeln!(out, "\nmoved / of which from another node / upgrades of a shared line before a store");
}

fn csv(c: &Comparison) -> String {
    let mut out = String::from(
        "world,mode,host,fingerprint,tool,hidden,workload,threads,metric,unit,variant,busted,n,excluded,point,cv_percent,\
         change_percent,ratio_low,ratio_high,paired,p,p_adjusted,noise_percent,verdict,warnings\n",
    );
    let optional = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
    for b in &c.blocks {
        let hidden: Vec<String> = b.hidden.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let all: Vec<&str> = b.warnings.iter().chain(&c.warnings).map(String::as_str).collect();
        let row_of = |w: &str| about(w, &b.rows);
        for (i, (row, side)) in b.rows.iter().flat_map(|r| r.sides.iter().map(move |s| (r, s))).enumerate() {
            // Those of no row stand in the first: once a block.
            let mine = |w: &&&str| row_of(w).map_or(i == 0, |of| std::ptr::eq(of, side));
            let warnings: Vec<&str> = all.iter().filter(mine).copied().collect();
            let ch = side.change.as_ref();
            let ratio = ch.and_then(|c| c.ratio);
            let fields = [
                b.world.clone(),
                b.mode.clone(),
                b.host.name.clone(),
                b.host.fingerprint.clone(),
                b.tool.clone(),
                hidden.join(" "),
                row.workload.clone(),
                row.threads.to_string(),
                c.metric.clone(),
                c.unit.into(),
                side.variant.clone(),
                if b.busted.contains(&side.variant) { "busted".into() } else { String::new() },
                side.values.len().to_string(),
                side.excluded.to_string(),
                optional(Some(side.point).filter(|v| v.is_finite())),
                optional(Some(side.cv).filter(|v| v.is_finite())),
                optional(ch.map(|c| c.percent)),
                optional(ratio.map(|r| r.low)),
                optional(ratio.map(|r| r.high)),
                ch.map_or(String::new(), |c| c.paired.to_string()),
                optional(ch.and_then(|c| c.p)),
                optional(ch.and_then(|c| c.p_adjusted)),
                ch.map_or(String::new(), |_| (100.0 * row.noise).to_string()),
                ch.map_or(String::new(), |c| c.verdict.to_string()),
                warnings.join("; "),
            ];
            let line: Vec<String> = fields.iter().map(|f| quoted(f)).collect();
            let _ = writeln!(out, "{}", line.join(","));
        }
        let counters = || b.rcu_slab.iter().chain(&b.counters);
        counters().for_each(|r| counter_lines(&mut out, b, r));
        let reuse = b.reuse.iter().filter_map(|r| Some((r, r.median?)));
        for (r, median) in reuse {
            let metric = Metric::Reuse(r.cache.clone());
            let at = Plain { workload: &r.workload, threads: r.threads, metric: &metric, variant: &r.variant };
            plain_line(&mut out, b, &at, Some(r.n), median, None);
        }
    }
    out
}

/// The side that a warning names at its beginning (`v6.15 brk1-4: ...`, or `brk1-4: ...` for a row's first), if it does.
fn about<'a>(warning: &str, rows: &'a [Row]) -> Option<&'a Side> {
    let (at, _) = warning.split_once(": ")?;
    rows.iter().find_map(|r| {
        let place = format!("{}-{}", r.workload, r.threads);
        if at == place { r.sides.first() } else { r.sides.iter().find(|s| at == format!("{} {place}", s.variant)) }
    })
}

/// What a line of CSV without a test is about.
struct Plain<'a> {
    workload: &'a str,
    threads: u32,
    metric: &'a Metric,
    variant: &'a str,
}

/// A counter that moved, one line a variant, in the columns of the main table; without a verdict, for it is no claim.
fn counter_lines(out: &mut String, b: &Block, r: &CounterRow) {
    let metric = Metric::Counter(r.name.clone());
    let base = r.values.first().copied().flatten();
    for (i, (variant, value)) in b.variants.iter().zip(&r.values).enumerate() {
        let Some(value) = *value else { continue };
        let change = base.filter(|base| i > 0 && *base != 0.0).map(|base| 100.0 * (value / base - 1.0));
        let at = Plain { workload: &r.workload, threads: r.threads, metric: &metric, variant };
        plain_line(out, b, &at, None, value, change);
    }
}

fn plain_line(out: &mut String, b: &Block, at: &Plain, n: Option<usize>, value: f64, change: Option<f64>) {
    let hidden: Vec<String> = b.hidden.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut fields = vec![
        b.world.clone(),
        b.mode.clone(),
        b.host.name.clone(),
        b.host.fingerprint.clone(),
        b.tool.clone(),
        hidden.join(" "),
        at.workload.into(),
        at.threads.to_string(),
        at.metric.to_string(),
        at.metric.unit().into(),
        at.variant.into(),
        if b.busted.iter().any(|v| v == at.variant) { "busted".into() } else { String::new() },
        n.map_or(String::new(), |n| n.to_string()),
        String::new(),
        value.to_string(),
        String::new(),
        change.map_or(String::new(), |c| c.to_string()),
    ];
    fields.resize(25, String::new());
    let line: Vec<String> = fields.iter().map(|f| quoted(f)).collect();
    let _ = writeln!(out, "{}", line.join(","));
}

/// A CSV field as RFC 4180 has it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}
