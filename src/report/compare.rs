// SPDX-License-Identifier: GPL-2.0-only
//! From samples to a comparison: which rows may stand in one table, what each says, and what must travel with it.
//!
//! Samples are averaged only within one variant, workload, mode, world and thread count, and only where nothing hidden
//! differs: host, kernel below the port, tool, commit, or a kconfig key that varies within a variant open a block of
//! their own. Rows with errors are counted and left out. Copies of one deterministic run count once.
//!
//! A verdict needs three things at once: the test (Mann-Whitney, adjusted by Holm over the block) below alpha, the
//! interval of the ratio outside the noise, and the noise being the larger of the stated floor and what the baseline
//! shows against itself, its odd against its even trials. "Same" is claimed only inside the stated floor, which a noisy
//! machine does not widen. Where samples were taken waiting in both ways (kconfig `wait`), which bracket what a sleep
//! costs a kernel, and the two ways name different winners, the verdict of both is "undecided".
//!
//! What it cannot tell: whether samples of one process stand for other processes, boots or machines. See
//! `docs/statistics.md`.

use crate::measure::stat::descriptive::{coeff_var, hcoeff_var, outliers};
use crate::measure::stat::drift;
use crate::measure::stat::many::holm;
use crate::measure::stat::mmtests::Better;
use crate::measure::stat::normal::{Estimate, log_paired, log_welch};
use crate::measure::stat::nothing::{cliffs_delta, mann_whitney, smallest_p};
use crate::report::blocks::{CounterRow, LineRow, PmuRow, RetryRow, WaitRow, WakeRow};
use crate::report::metric::Metric;
use crate::report::record::{HostId, Sample};
use crate::report::reuse::{self, ReuseRow};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

/// What to compare and how strictly.
#[derive(Clone, Debug)]
pub struct Options {
    /// Variant that all others are held against.
    pub baseline: String,
    /// Variants held against it, in the order of columns; empty: all others, by name.
    pub patched: Vec<String>,
    /// What about.
    pub metric: Metric,
    /// Chance of any false claim in a block.
    pub alpha: f64,
    /// Confidence of intervals.
    pub confidence: f64,
    /// Least change that matters, as a share.
    pub floor: f64,
}

impl Options {
    /// 5 %, 95 %, 1 %, throughput, all other variants.
    pub fn new(baseline: &str) -> Self {
        Self {
            baseline: baseline.into(),
            patched: Vec::new(),
            metric: Metric::Throughput,
            alpha: 0.05,
            confidence: 0.95,
            floor: 0.01,
        }
    }
}

/// What may be claimed of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Significant, and beyond the noise in the better direction.
    Better,
    /// The same in the worse direction.
    Worse,
    /// Significant and beyond the noise, of a metric that has no better side.
    Differs,
    /// The whole interval is inside the stated floor.
    Same,
    /// Nothing may be claimed.
    Unclear,
    /// Waiting by futex and waiting by polling name different winners: not to be decided on this machine.
    Undecided,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Differs => "differs",
            Self::Same => "same",
            Self::Unclear => "unclear",
            Self::Undecided => "undecided",
        })
    }
}

/// A variant held against the baseline in one row.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// Change of the point estimate, percent; positive is more, not better.
    pub percent: f64,
    /// Ratio of geometric means with its interval; absent without spread or with values that are not positive.
    #[serde(serialize_with = "ratio")]
    pub ratio: Option<Estimate>,
    /// Whether the interval is of pairs (samples of one trial).
    pub paired: bool,
    /// Mann-Whitney's p-value.
    pub p: Option<f64>,
    /// The same, adjusted over the block.
    pub p_adjusted: Option<f64>,
    /// Cliff's delta.
    pub delta: f64,
    /// What may be claimed.
    pub verdict: Verdict,
}

fn ratio<S: serde::Serializer>(r: &Option<Estimate>, s: S) -> Result<S::Ok, S::Error> {
    r.map(|r| BTreeMap::from([("point", r.point), ("low", r.low), ("high", r.high)])).serialize(s)
}

/// One variant's values in one row.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Variant.
    pub variant: String,
    /// One value a sample, in the order taken.
    pub values: Vec<f64>,
    /// Trial of each value.
    #[serde(skip)]
    pub(crate) trials: Vec<(String, u64, u32)>,
    /// Samples left out because of errors, or without a value.
    pub excluded: usize,
    /// Hmean or median.
    pub point: f64,
    /// Coefficient of variation, percent, of the mean that goes with the metric.
    pub cv: f64,
    /// Against the baseline; absent for the baseline itself and where that is missing.
    pub change: Option<Change>,
}

/// One workload at one thread count.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Workload.
    pub workload: String,
    /// Threads.
    pub threads: u32,
    /// Baseline first where it exists; then the variants in the block's order that have samples here.
    pub sides: Vec<Side>,
    /// The baseline against itself.
    pub aa: Option<Aa>,
    /// Share beyond which a change counts as more than noise.
    pub noise: f64,
}

/// The baseline's odd trials against its even ones.
#[derive(Clone, Debug, Serialize)]
pub struct Aa {
    /// Samples of the halves.
    pub n: (usize, usize),
    /// Change of the point estimate, percent.
    pub percent: f64,
    /// Mann-Whitney's p-value, not adjusted.
    pub p: Option<f64>,
}

/// Samples that may stand in one table.
#[derive(Clone, Debug, Serialize)]
pub struct Block {
    /// World.
    pub world: String,
    /// `thread` or `process`.
    pub mode: String,
    /// Host.
    pub host: HostId,
    /// Version and commit of the tool.
    pub tool: String,
    /// kconfig keys that vary within a variant elsewhere, and their values here.
    pub hidden: BTreeMap<String, String>,
    /// Variants with samples here, baseline first.
    pub variants: Vec<String>,
    /// Those whose protocol does not hold.
    pub busted: Vec<String>,
    /// The table.
    pub rows: Vec<Row>,
    /// How faults ended.
    pub retries: Vec<RetryRow>,
    /// Waits for mmap_lock.
    pub waits: Vec<WaitRow>,
    /// Waits of VMAs' writers, sleeps and wake-ups.
    pub wakes: Vec<WakeRow>,
    /// Counters of RCU and slab that moved.
    pub rcu_slab: Vec<CounterRow>,
    /// All other counters that moved.
    pub counters: Vec<CounterRow>,
    /// Cache effects counted by the PMU.
    pub pmu: Vec<PmuRow>,
    /// Why events were not counted, each once.
    pub pmu_absent: Vec<String>,
    /// Cache effects in the simulator.
    pub lines: Vec<LineRow>,
    /// Object reuse.
    pub reuse: Vec<ReuseRow>,
    /// Smallest and largest number of samples a side.
    pub n: (usize, usize),
    /// Seeds of the samples, distinct.
    pub seeds: usize,
    /// One of the seeds, the smallest.
    pub seed: u64,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

/// All blocks and what holds for all of them.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Metric.
    pub metric: String,
    /// Its unit.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Option<Better>,
    /// Name of the point estimate.
    pub point: &'static str,
    /// Baseline.
    pub baseline: String,
    /// Variants held against it.
    pub patched: Vec<String>,
    /// Chance of any false claim in a block.
    pub alpha: f64,
    /// Confidence of intervals.
    pub confidence: f64,
    /// The stated floor.
    pub floor: f64,
    /// Blocks, never mixed.
    pub blocks: Vec<Block>,
    /// Object reuse of the host's kernel and of the port, side by side, where there are records of both.
    pub beside: Vec<ReuseRow>,
    /// What concerns no block alone.
    pub warnings: Vec<String>,
}

/// Compares.
///
/// # Errors
/// No sample of the baseline, or of a variant asked for: names what there is.
pub fn compare(samples: &[Sample], options: &Options) -> Result<Comparison, String> {
    let have: BTreeSet<&str> = samples.iter().map(|s| s.variant.as_str()).collect();
    for name in std::iter::once(&options.baseline).chain(&options.patched) {
        if !have.contains(name.as_str()) {
            let have: Vec<_> = have.into_iter().collect();
            return Err(format!("no sample of variant \"{name}\"; the files hold: {}", have.join(", ")));
        }
    }
    let mut patched = options.patched.clone();
    if patched.is_empty() {
        patched = have.iter().filter(|v| **v != options.baseline).map(|v| v.to_string()).collect();
    }
    patched.retain(|v| *v != options.baseline);
    let order: Vec<String> = std::iter::once(options.baseline.clone()).chain(patched.iter().cloned()).collect();

    let mut warnings = Vec::new();
    let kept = without_copies(samples, &order, &mut warnings);
    let varying = varying_kconfig(&kept);
    let mut groups: BTreeMap<BlockKey, Vec<&Sample>> = BTreeMap::new();
    for s in kept {
        groups.entry(BlockKey::of(s, &varying)).or_default().push(s);
    }
    let mut blocks: Vec<Block> =
        groups.into_iter().map(|(key, samples)| block(key, &samples, &order, options)).collect();
    against_other_wait(&mut blocks);
    if blocks.iter().map(|b| (&b.world, &b.mode)).collect::<BTreeSet<_>>().len() < blocks.len() {
        warnings.push(
            "samples differ in host, kernel, tool, commit or kconfig: they stand in separate blocks and are not averaged"
                .into(),
        );
    }
    Ok(Comparison {
        metric: options.metric.to_string(),
        unit: options.metric.unit(),
        better: options.metric.better(),
        point: options.metric.point_name(),
        baseline: options.baseline.clone(),
        patched,
        alpha: options.alpha,
        confidence: options.confidence,
        floor: options.floor,
        beside: reuse::beside(blocks.iter().map(|b| &b.reuse)),
        blocks,
        warnings,
    })
}

/// What must be equal within a block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct BlockKey {
    world: String,
    mode: String,
    fingerprint: String,
    host: String,
    /// Kernel below the port; in the kernel world it is what is compared.
    kernel: String,
    tool: String,
    hidden: BTreeMap<String, String>,
}

impl BlockKey {
    fn of(s: &Sample, varying: &BTreeSet<String>) -> Self {
        let hidden = varying.iter().map(|k| (k.clone(), s.kconfig.get(k).cloned().unwrap_or_else(|| "not set".into())));
        Self {
            world: s.world.clone(),
            mode: s.mode.clone(),
            fingerprint: s.host.fingerprint.clone(),
            host: s.host.name.clone(),
            kernel: if s.world == "native" { s.host.kernel.clone() } else { String::new() },
            tool: format!("{} {}", s.tool, s.commit),
            hidden: hidden.collect(),
        }
    }
}

/// Keys of kconfig that take several values within one variant of one world: averaging would hide them. A key that
/// differs only between variants is part of what is compared.
fn varying_kconfig(samples: &[&Sample]) -> BTreeSet<String> {
    let keys: BTreeSet<&String> = samples.iter().flat_map(|s| s.kconfig.keys()).collect();
    let varies = |key: &&String| {
        let mut first: BTreeMap<(&str, &str), Option<&String>> = BTreeMap::new();
        samples.iter().any(|s| {
            let value = s.kconfig.get(*key);
            *first.entry((&s.world, &s.variant)).or_insert(value) != value
        })
    };
    keys.into_iter().filter(varies).cloned().collect()
}

/// Samples of the variants in `order`, each cell of a deterministic world and each cell of one run once.
fn without_copies<'a>(samples: &'a [Sample], order: &[String], warnings: &mut Vec<String>) -> Vec<&'a Sample> {
    let mut seen = HashSet::new();
    let mut copies = 0;
    let mut kept = Vec::new();
    for s in samples.iter().filter(|s| order.contains(&s.variant)) {
        // An error row may be followed by its second try.
        let run = if s.world == "sim" { "" } else { &s.run.id };
        let key = (crate::report::store::Key::of(s), run, &s.host.kernel, &s.tool, &s.commit, &s.kconfig);
        if s.errors.is_empty() && !seen.insert(key) {
            copies += 1;
        } else {
            kept.push(s);
        }
    }
    if copies > 0 {
        warnings.push(format!("{copies} samples repeat a cell of the same run or the same simulation: counted once"));
    }
    kept
}

fn block(key: BlockKey, samples: &[&Sample], order: &[String], options: &Options) -> Block {
    let mut warnings = Vec::new();
    let variants: Vec<String> = order.iter().filter(|v| samples.iter().any(|s| s.variant == **v)).cloned().collect();
    let busted = |v: &&String| samples.iter().any(|s| s.variant == **v && s.verdict.as_deref() == Some("busted"));
    let busted = variants.iter().filter(busted).cloned().collect();
    let mut rows = rows(samples, &variants, options, &mut warnings);
    adjust(&mut rows, options);
    if !variants.contains(&options.baseline) {
        warnings.push(format!("this block has no sample of the baseline {}: nothing is compared", options.baseline));
    }
    let counts = || rows.iter().flat_map(|r| r.sides.iter().map(|s| s.values.len()));
    let n = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
    few_samples(&rows, n, options, &mut warnings);
    sample_warnings(samples, &mut warnings);
    let runs: BTreeSet<&str> = samples.iter().map(|s| s.run.id.as_str()).collect();
    if key.world != "sim" && runs.len() == 1 && n.1 > 1 {
        warnings.push(
            "all samples come from one start of the tool: intervals cover what varies within it, not what varies between \
             starts (layout, placement, boot)"
                .into(),
        );
    }
    let clean: Vec<&Sample> = samples.iter().copied().filter(|s| s.errors.is_empty()).collect();
    let (rcu_slab, counters) = crate::report::blocks::counters(&clean, &variants, options);
    let (pmu, pmu_absent) = crate::report::blocks::pmu(&clean, &variants);
    let seeds: BTreeSet<u64> = samples.iter().map(|s| s.seed).collect();
    Block {
        retries: crate::report::blocks::retries(&clean, &variants),
        waits: crate::report::blocks::waits(&clean, &variants),
        wakes: crate::report::blocks::wakes(&clean, &variants),
        rcu_slab,
        counters,
        pmu,
        pmu_absent,
        lines: crate::report::blocks::lines(&clean, &variants),
        reuse: reuse::rows(&clean, &variants),
        host: samples[0].host.clone(),
        world: key.world,
        mode: key.mode,
        tool: key.tool,
        hidden: key.hidden,
        variants,
        busted,
        rows,
        n,
        seeds: seeds.len(),
        seed: seeds.first().copied().unwrap_or(0),
        warnings,
    }
}

fn rows(samples: &[&Sample], variants: &[String], options: &Options, warnings: &mut Vec<String>) -> Vec<Row> {
    let cells: BTreeSet<(&str, u32)> = samples.iter().map(|s| (s.workload.as_str(), s.threads)).collect();
    let mut rows = Vec::new();
    for (workload, threads) in cells {
        let here: Vec<&Sample> =
            samples.iter().copied().filter(|s| s.workload == workload && s.threads == threads).collect();
        let mut sides = Vec::new();
        for variant in variants {
            let mine: Vec<&Sample> = here.iter().copied().filter(|s| s.variant == *variant).collect();
            if !mine.is_empty() {
                sides.push(side(variant, &mine, options, &format!("{variant} {workload}-{threads}"), warnings));
            }
        }
        let (base, others) = match sides.split_first_mut() {
            Some((base, others)) if base.variant == options.baseline && !base.values.is_empty() => (&*base, others),
            _ => {
                warnings.push(format!("{workload}-{threads}: no usable sample of the baseline"));
                rows.push(Row { workload: workload.into(), threads, sides, aa: None, noise: options.floor });
                continue;
            }
        };
        let aa = against_itself(base, &options.metric);
        let noise = aa.as_ref().map_or(options.floor, |aa| options.floor.max(aa.percent.abs() / 100.0));
        for other in others.iter_mut().filter(|o| !o.values.is_empty()) {
            other.change = Some(change(base, other, options));
        }
        rows.push(Row { workload: workload.into(), threads, sides, aa, noise });
    }
    rows
}

fn side(variant: &str, samples: &[&Sample], options: &Options, at: &str, warnings: &mut Vec<String>) -> Side {
    let mut in_order: Vec<&Sample> = samples.to_vec();
    in_order.sort_by(|a, b| (a.run.started_ms, &a.run.id, a.order).cmp(&(b.run.started_ms, &b.run.id, b.order)));
    let (mut values, mut trials, mut excluded) = (Vec::new(), Vec::new(), 0);
    let mut reasons = BTreeMap::<&str, usize>::new();
    let mut without = BTreeMap::<String, usize>::new();
    for s in &in_order {
        if let Some(e) = s.errors.first() {
            excluded += 1;
            *reasons.entry(e).or_default() += 1;
            continue;
        }
        match options.metric.value(s) {
            Ok(v) => {
                values.push(v);
                trials.push((s.run.id.clone(), s.seed, s.trial));
            }
            Err(why) => {
                excluded += 1;
                *without.entry(why).or_default() += 1;
            }
        }
    }
    let of = in_order.len();
    warnings.extend(reasons.iter().map(|(why, n)| format!("{at}: {n} of {of} samples left out, in error: {why}")));
    warnings.extend(without.iter().map(|(why, n)| format!("{at}: {n} of {of} samples left out: {why}")));
    if let Some(what) = drift::warning(&values, options.alpha).filter(|_| values.len() >= 6) {
        warnings.push(format!("{at}: {what}"));
    }
    let far: Vec<String> = outliers(&values).iter().map(|&i| format!("{:.6}", Short(values[i]))).collect();
    if !far.is_empty() {
        warnings.push(format!(
            "{at}: {} of {} values beyond 3 robust sigma, kept: {}",
            far.len(),
            values.len(),
            far.join(", ")
        ));
    }
    let spans = || in_order.iter().map(|s| s.duration_ns);
    if samples[0].world != "sim" && spans().max().unwrap_or(0) > 2 * spans().min().unwrap_or(0) {
        warnings.push(format!("{at}: spans of very different length are averaged"));
    }
    let cv = if options.metric.is_rate() { hcoeff_var(&values) } else { coeff_var(&values) };
    let point = options.metric.point(&values);
    Side { variant: variant.into(), values, trials, excluded, point, cv, change: None }
}

/// A number in few digits, for sentences.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::report::render::number(self.0))
    }
}

/// Odd against even samples of one side, in the order of their trials.
fn against_itself(base: &Side, metric: &Metric) -> Option<Aa> {
    if base.values.len() < 4 {
        return None;
    }
    let mut order: Vec<usize> = (0..base.values.len()).collect();
    order.sort_by_key(|&i| &base.trials[i]);
    let half = |odd: usize| order.iter().skip(odd).step_by(2).map(|&i| base.values[i]).collect::<Vec<_>>();
    let (even, odd) = (half(0), half(1));
    let percent = percent(metric.point(&even), metric.point(&odd));
    Some(Aa { n: (even.len(), odd.len()), percent, p: mann_whitney(&even, &odd).map(|t| t.p) })
}

fn percent(base: f64, new: f64) -> f64 {
    if base == new { 0.0 } else { 100.0 * (new / base - 1.0) }
}

/// Values of both sides by trial, when every trial is on both sides exactly once.
fn pairs(a: &Side, b: &Side) -> Option<(Vec<f64>, Vec<f64>)> {
    let by_trial = |s: &Side| s.trials.iter().cloned().zip(s.values.iter().copied()).collect::<BTreeMap<_, _>>();
    let (x, y) = (by_trial(a), by_trial(b));
    let once = x.len() == a.values.len() && y.len() == b.values.len();
    (once && x.keys().eq(y.keys())).then(|| (x.into_values().collect(), y.into_values().collect()))
}

/// All but the verdict, which needs the whole block.
fn change(base: &Side, new: &Side, options: &Options) -> Change {
    let paired = pairs(base, new).and_then(|(a, b)| log_paired(&a, &b, options.confidence));
    Change {
        percent: percent(base.point, new.point),
        ratio: paired.or_else(|| log_welch(&base.values, &new.values, options.confidence)),
        paired: paired.is_some(),
        p: mann_whitney(&base.values, &new.values).map(|t| t.p),
        p_adjusted: None,
        delta: cliffs_delta(&base.values, &new.values),
        verdict: Verdict::Unclear,
    }
}

/// Adjusts p over the block and gives the verdicts.
fn adjust(rows: &mut [Row], options: &Options) {
    let changes =
        |rows: &[Row]| rows.iter().flat_map(|r| &r.sides).filter_map(|s| s.change.as_ref()?.p).collect::<Vec<f64>>();
    let mut adjusted = holm(&changes(rows)).into_iter();
    for row in rows {
        let noise = row.noise;
        for change in row.sides.iter_mut().filter_map(|s| s.change.as_mut()) {
            change.p_adjusted = change.p.and_then(|_| adjusted.next());
            change.verdict = verdict(change, noise, options);
        }
    }
}

fn verdict(c: &Change, noise: f64, options: &Options) -> Verdict {
    let Some(r) = c.ratio else {
        // No spread at all on either side, as a simulation without randomness has it, and no difference.
        return if c.percent == 0.0 && c.p == Some(1.0) { Verdict::Same } else { Verdict::Unclear };
    };
    let significant = c.p_adjusted.is_some_and(|p| p < options.alpha);
    let side = match (significant, r.low > 1.0 + noise, r.high < 1.0 / (1.0 + noise)) {
        (true, true, _) => Some(Better::Higher),
        (true, _, true) => Some(Better::Lower),
        _ => None,
    };
    match (side, options.metric.better()) {
        (Some(_), None) => Verdict::Differs,
        (Some(side), Some(better)) if side == better => Verdict::Better,
        (Some(_), Some(_)) => Verdict::Worse,
        (None, _) if r.low >= 1.0 / (1.0 + options.floor) && r.high <= 1.0 + options.floor => Verdict::Same,
        (None, _) => Verdict::Unclear,
    }
}

/// kconfig key of how sleepers waited.
const WAIT: &str = "wait";

/// Two blocks that differ in nothing but how sleepers waited bracket a kernel's cost of a sleep: where they name
/// different winners nobody has won, and where only one names any, that is said.
fn against_other_wait(blocks: &mut [Block]) {
    let but_wait = |b: &Block| {
        let mut hidden = b.hidden.clone();
        hidden
            .remove(WAIT)
            .map(|wait| (wait, (b.world.clone(), b.mode.clone(), b.tool.clone(), b.host.clone(), hidden)))
    };
    for i in 0..blocks.len() {
        for j in i + 1..blocks.len() {
            let (Some((wait_a, a)), Some((wait_b, b))) = (but_wait(&blocks[i]), but_wait(&blocks[j])) else { continue };
            if a != b {
                continue;
            }
            let (left, right) = blocks.split_at_mut(j);
            bracket(&mut left[i], &wait_a, &mut right[0], &wait_b);
        }
    }
}

/// [`against_other_wait`], of one pair of blocks.
fn bracket(a: &mut Block, wait_a: &str, b: &mut Block, wait_b: &str) {
    fn claims(v: Verdict) -> bool {
        matches!(v, Verdict::Better | Verdict::Worse | Verdict::Differs)
    }
    for row_a in &mut a.rows {
        let at = (row_a.workload.clone(), row_a.threads);
        let Some(row_b) = b.rows.iter_mut().find(|r| (&r.workload, r.threads) == (&at.0, at.1)) else { continue };
        for side_a in &mut row_a.sides {
            let Some(side_b) = row_b.sides.iter_mut().find(|s| s.variant == side_a.variant) else { continue };
            let (Some(x), Some(y)) = (&mut side_a.change, &mut side_b.change) else { continue };
            let what = format!("{} {}-{}", side_a.variant, at.0, at.1);
            match (claims(x.verdict), claims(y.verdict)) {
                (true, true) if (x.percent > 0.0) != (y.percent > 0.0) => {
                    let said = format!(
                        "{what}: {:+.1} % with wait={wait_a}, {:+.1} % with wait={wait_b}: undecided on this machine",
                        x.percent, y.percent
                    );
                    (x.verdict, y.verdict) = (Verdict::Undecided, Verdict::Undecided);
                    a.warnings.push(said.clone());
                    b.warnings.push(said);
                }
                (true, false) => a.warnings.push(format!("{what}: claimed with wait={wait_a} only, not with {wait_b}")),
                (false, true) => b.warnings.push(format!("{what}: claimed with wait={wait_b} only, not with {wait_a}")),
                _ => {}
            }
        }
    }
}

fn few_samples(rows: &[Row], n: (usize, usize), options: &Options, warnings: &mut Vec<String>) {
    if rows.is_empty() {
        return;
    }
    if n.0 < 4 {
        warnings.push(format!("n={} on a side: below 4 the test cannot reach 0.05, whatever the values", n.0));
    } else if n.0 < 6 {
        warnings.push(format!("n={} on a side: below 6 a median has no 95 % interval", n.0));
    }
    let tests: Vec<f64> = rows
        .iter()
        .filter_map(|r| r.sides.split_first())
        .flat_map(|(base, others)| {
            others.iter().filter(|o| o.change.is_some()).map(|o| smallest_p(base.values.len(), o.values.len()))
        })
        .collect();
    // Holm multiplies the smallest p by the number of rows.
    let best = tests.iter().fold(f64::INFINITY, |a, &b| a.min(b)) * tests.len() as f64;
    if n.0 >= 4 && best >= options.alpha {
        warnings.push(format!(
            "{} rows at this n: no adjusted p can fall below {:.2}; take more trials or compare fewer rows",
            tests.len(),
            best.min(1.0)
        ));
    }
}

/// Warnings of samples, each sentence once, with how many samples said it.
fn sample_warnings(samples: &[&Sample], warnings: &mut Vec<String>) {
    let mut said: BTreeMap<&str, usize> = BTreeMap::new();
    samples.iter().flat_map(|s| &s.warnings).for_each(|w| *said.entry(w).or_default() += 1);
    let of = samples.len();
    warnings.extend(said.into_iter().map(|(w, n)| format!("{n} of {of} samples: {w}")));
    let moved = samples.iter().filter(|s| s.placement.iter().any(|p| !p.verified)).count();
    if moved > 0 && samples[0].world != "sim" {
        warnings.push(format!("{moved} of {of} samples: a thread was not seen on its CPU at the end"));
    }
}
