// SPDX-License-Identifier: GPL-2.0-only
//! What a comparison must and must not claim.

use super::compare::{Comparison, Options, Verdict, compare};
use super::metric::Metric;
use super::record::{PerfCell, Sample};
use super::render::Format;
use super::synthetic::{Noise, matrix, sample};

const A: [f64; 8] = [498.1, 501.3, 499.7, 500.9, 502.4, 497.8, 500.2, 499.5];
const B: [f64; 8] = [507.2, 505.9, 509.1, 506.4, 508.8, 504.7, 507.7, 506.1];
const C: [f64; 8] = [507.2, 505.9, 509.1, 250.0, 508.8, 504.7, 507.7, 506.1];

fn side(variant: &str, values: &[f64]) -> Vec<Sample> {
    (0..).zip(values).map(|(t, v)| sample(variant, "brk1", 1, t, v * 1000.0)).collect()
}

fn versus(a: &[f64], b: &[f64]) -> Comparison {
    compare(&[side("base", a), side("new", b)].concat(), &Options::new("base")).expect("both are there")
}

fn verdict(c: &Comparison) -> Verdict {
    c.blocks[0].rows[0].sides[1].change.as_ref().expect("is compared").verdict
}

fn warned(c: &Comparison, what: &str) -> bool {
    c.blocks.iter().flat_map(|b| &b.warnings).chain(&c.warnings).any(|w| w.contains(what))
}

#[test]
fn the_worked_example() {
    let c = versus(&A, &B);
    let row = &c.blocks[0].rows[0];
    let change = row.sides[1].change.as_ref().expect("is compared");
    assert!((change.percent - 1.400120).abs() < 1e-5, "{}", change.percent);
    assert!(change.paired && (change.p.expect("tested") - 0.0001554002).abs() < 1e-9);
    // Odd against even trials of A: the noise is the stated floor, and the interval reaches below +1 %? It does not.
    assert_eq!(row.noise, 0.01);
    assert_eq!(verdict(&c), Verdict::Better);
    assert_eq!(verdict(&versus(&B, &A)), Verdict::Worse);
}

#[test]
fn an_outlier_is_shown_and_makes_the_row_unclear() {
    let c = versus(&A, &C);
    assert_eq!(verdict(&c), Verdict::Unclear);
    assert!(warned(&c, "new brk1-1: 1 of 8 values beyond 3 robust sigma, kept: 250000"), "{:?}", c.blocks[0].warnings);
}

#[test]
fn a_variant_against_itself_comes_out_no_different_at_the_stated_rate() {
    let mut noise = Noise(42);
    let mut draw = |scale: f64| (0..8).map(|_| 500.0 * (1.0 + scale * noise.draw())).collect::<Vec<_>>();
    let mut claims = [0; 2];
    for (claim, scale) in claims.iter_mut().zip([0.01, 0.2]) {
        for _ in 0..400 {
            let v = verdict(&versus(&draw(scale), &draw(scale)));
            *claim += u32::from(matches!(v, Verdict::Better | Verdict::Worse));
        }
    }
    // 5 % of 400 is 20; the noise floor makes it rarer still.
    assert!(claims[0] == 0 && claims[1] <= 20, "{claims:?}");
}

#[test]
fn a_table_of_a_as_rows_cries_wolf_less_often_than_alpha() {
    let mut noise = Noise(4242);
    let mut tables = 0;
    for _ in 0..60 {
        let mut samples = Vec::new();
        for workload in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            for (trial, variant) in (0..8).flat_map(|t| [(t, "base"), (t, "new")]) {
                samples.push(sample(variant, workload, 1, trial, 1e6 * (1.0 + 0.2 * noise.draw())));
            }
        }
        let c = compare(&samples, &Options::new("base")).expect("both are there");
        let claims = |s: &super::compare::Side| s.change.as_ref().is_some_and(|c| c.verdict != Verdict::Unclear);
        tables += u32::from(c.blocks[0].rows.iter().flat_map(|r| &r.sides).any(claims));
    }
    assert!(tables <= 6, "{tables} of 60 tables claim something");
}

#[test]
fn a_real_change_is_found_and_a_small_one_is_the_same() {
    let mut noise = Noise(1);
    let mut draw = |mean: f64| (0..10).map(|_| mean * (1.0 + 0.01 * noise.draw())).collect::<Vec<_>>();
    assert_eq!(verdict(&versus(&draw(500.0), &draw(525.0))), Verdict::Better);
    assert_eq!(verdict(&versus(&draw(500.0), &draw(475.0))), Verdict::Worse);
    assert_eq!(verdict(&versus(&draw(500.0), &draw(500.5))), Verdict::Same);
}

#[test]
fn a_noisy_machine_widens_the_noise_but_not_what_counts_as_the_same() {
    // Odd trials 3 % above even ones on both sides.
    let wave: Vec<f64> = (0..10).map(|i| 500.0 + 15.0 * f64::from(i % 2) + 0.1 * f64::from(i)).collect();
    let c = versus(&wave, &wave.iter().map(|v| v * 1.02).collect::<Vec<_>>());
    assert!(c.blocks[0].rows[0].noise > 0.029);
    assert_eq!(verdict(&c), Verdict::Unclear);
}

#[test]
fn worlds_hosts_and_commits_never_share_a_block() {
    let mut samples = [side("base", &A), side("new", &B)].concat();
    let edits: [fn(&mut Sample); 5] = [
        |s| s.world = "sim".into(),
        |s| s.mode = "process".into(),
        |s| s.commit = "other".into(),
        |s| s.host.fingerprint = "other".into(),
        |s| s.host.kernel = "6.19".into(),
    ];
    for (n, edit) in edits.iter().enumerate() {
        let mut more = [side("base", &A), side("new", &B)].concat();
        more.iter_mut().for_each(edit);
        samples.extend(more);
        let c = compare(&samples, &Options::new("base")).expect("both are there");
        assert_eq!(c.blocks.len(), n + 2);
        assert!(c.blocks.iter().all(|b| b.n == (8, 8)));
    }
}

#[test]
fn a_block_without_the_baseline_says_so_and_compares_nothing() {
    let mut new = side("new", &B);
    new.iter_mut().for_each(|s| s.commit = "other".into());
    let c = compare(&[side("base", &A), new].concat(), &Options::new("base")).expect("both are there");
    assert_eq!(c.blocks.len(), 2);
    assert!(warned(&c, "no sample of the baseline base") && warned(&c, "separate blocks"));
    assert!(c.blocks.iter().flat_map(|b| &b.rows).flat_map(|r| &r.sides).all(|s| s.change.is_none()));
}

#[test]
fn kconfig_splits_within_a_variant_and_not_between_variants() {
    let mut new = side("new", &B);
    new.iter_mut().for_each(|s| drop(s.kconfig.insert("HZ".into(), "1000".into())));
    let both = [side("base", &A), new.clone()].concat();
    assert_eq!(compare(&both, &Options::new("base")).expect("both are there").blocks.len(), 1);
    let mixed = [both, side("new", &B)].concat();
    let c = compare(&mixed, &Options::new("base")).expect("both are there");
    assert_eq!(c.blocks.len(), 2);
    assert!(c.render(Format::Text).contains("HZ=1000"));
}

#[test]
fn the_kernel_is_the_variant_of_the_kernel_world() {
    let mut samples = [side("6.12.0", &A), side("6.15.0", &B)].concat();
    for s in &mut samples {
        s.world = "kernel".into();
        s.host.kernel = s.variant.clone();
    }
    let c = compare(&samples, &Options::new("6.12.0")).expect("both are there");
    assert_eq!((c.blocks.len(), verdict(&c)), (1, Verdict::Better));
}

#[test]
fn error_rows_are_counted_and_left_out() {
    let mut samples = [side("base", &A), side("new", &B)].concat();
    samples[9].errors.push("faults != success + retry + abort".into());
    let c = compare(&samples, &Options::new("base")).expect("both are there");
    let new = &c.blocks[0].rows[0].sides[1];
    assert_eq!((new.values.len(), new.excluded), (7, 1));
    assert!(!new.change.as_ref().expect("is compared").paired, "a pair lost its half");
    assert!(warned(&c, "1 of 8 samples left out, in error: faults != success"));
}

#[test]
fn copies_of_a_simulation_count_once() {
    let sim = |run: &str| {
        let mut s = [side("base", &A), side("new", &B)].concat();
        s.iter_mut().for_each(|s| (s.world, s.run.id) = ("sim".into(), run.into()));
        s
    };
    let c = compare(&[sim("one"), sim("two")].concat(), &Options::new("base")).expect("both are there");
    assert_eq!(c.blocks[0].n, (8, 8));
    assert!(warned(&c, "16 samples repeat"));
    let mut other = side("base", &A);
    other.iter_mut().for_each(|s| s.run.id = "another".into());
    let c = compare(&[side("base", &A), other, side("new", &B)].concat(), &Options::new("base")).expect("is there");
    assert_eq!(c.blocks[0].n, (8, 16), "two native runs are two measurements");
}

#[test]
fn few_samples_are_warned_of() {
    assert!(warned(&versus(&A[..3], &B[..3]), "below 4"));
    assert!(warned(&versus(&A[..5], &B[..5]), "below 6"));
    assert!(!warned(&versus(&A, &B), "below"));
    assert_eq!(verdict(&versus(&A[..1], &B[..1])), Verdict::Unclear);
    let rows: Vec<Sample> = ["a", "b", "c"]
        .iter()
        .flat_map(|w| {
            [side("base", &A[..4]), side("new", &B[..4])]
                .concat()
                .into_iter()
                .map(|s| Sample { workload: w.to_string(), ..s })
        })
        .collect();
    assert!(warned(
        &compare(&rows, &Options::new("base")).expect("both are there"),
        "no adjusted p can fall below 0.09"
    ));
}

#[test]
fn an_unknown_variant_is_refused_with_what_there_is() {
    let samples = side("base", &A);
    let e = compare(&samples, &Options::new("bas")).expect_err("is not there");
    assert_eq!(e, "no sample of variant \"bas\"; the files hold: base");
    let options = Options { patched: vec!["x".into()], ..Options::new("base") };
    assert!(compare(&samples, &options).is_err());
}

#[test]
fn busted_stands_beside_the_figure_in_every_format() {
    let mut samples = [side("base", &A), side("new", &B)].concat();
    samples[8..].iter_mut().for_each(|s| s.verdict = Some("busted".into()));
    let c = compare(&samples, &Options::new("base")).expect("both are there");
    for format in [Format::Text, Format::Markdown, Format::Mmtests, Format::Csv, Format::Json] {
        assert!(c.render(format).contains("busted"), "{format:?}");
    }
    assert!(c.render(Format::Text).contains("506984 busted"));
}

#[test]
fn what_was_not_counted_is_not_zero() {
    let mut samples = [side("base", &A), side("new", &B)].concat();
    for s in &mut samples {
        s.counters.remove("vma_lock_abort_range");
    }
    let text = compare(&samples, &Options::new("base")).expect("both are there").render(Format::Text);
    assert!(text.contains("n/a") && text.contains("not counted: cycles: no PMU: ENOENT"), "{text}");
    let options = Options { metric: Metric::Counter("absent".into()), ..Options::new("base") };
    let c = compare(&samples, &options).expect("both are there");
    assert!(c.blocks[0].rows[0].sides.iter().all(|s| s.values.is_empty() && s.excluded == 8));
    assert!(warned(&c, "absent was not counted"));
}

#[test]
fn pmu_and_simulator_never_share_a_table() {
    let mut native = [side("base", &A), side("new", &B)].concat();
    for s in &mut native {
        s.perf.insert("cycles".into(), PerfCell::Counted { value: s.operations * 300, enabled: 10, running: 5 });
    }
    let text = compare(&native, &Options::new("base")).expect("both are there").render(Format::Text);
    assert!(text.contains("cycles") && text.contains("600.0") && text.contains("50%"), "{text}");
    assert!(!text.contains("simulator"));
    let text = compare(&matrix("sim"), &Options::new("v6.12")).expect("both are there").render(Format::Text);
    assert!(text.contains("Cache effects: simulator (lines moved per operation by struct)"));
    assert!(text.contains("a simulated machine has no PMU") || text.contains("no PMU"));
}

#[test]
fn counters_that_moved_are_listed_and_others_are_not() {
    let mut new = side("new", &A);
    for s in &mut new {
        s.counters.insert("rcu_callbacks_queued".into(), 0);
    }
    let c = compare(&[side("base", &A), new].concat(), &Options::new("base")).expect("both are there");
    let names: Vec<&str> = c.blocks[0].rcu_slab.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["rcu_callbacks_queued"]);
    assert!(c.blocks[0].counters.is_empty());
    let csv = c.render(Format::Csv);
    let line = csv.lines().find(|l| l.contains("counter:rcu_callbacks_queued,") && l.contains(",new,"));
    assert!(line.is_some_and(|l| l.ends_with(",0,,-100,,,,,,,,")), "{csv}");
}

#[test]
fn what_moved_most_comes_first_and_levels_last() {
    let with = |variant, slow: u64, slabs: u64, locks: u64| {
        let mut s = side(variant, &A);
        for s in &mut s {
            let ops = s.operations;
            s.counters.insert("vm_area_struct.slabs_high_water".into(), slabs);
            s.counters.insert("vm_area_struct.free_slowpath".into(), slow * ops);
            s.counters.insert("maple_node.list_lock".into(), locks * ops);
        }
        s
    };
    let c = compare(&[with("base", 0, 10, 3), with("new", 2, 900_000, 2)].concat(), &Options::new("base"));
    let c = c.expect("both are there");
    let names: Vec<&str> = c.blocks[0].rcu_slab.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["vm_area_struct.free_slowpath", "maple_node.list_lock", "vm_area_struct.slabs_high_water"]);
}

#[test]
fn mmtests_layout_is_exact() {
    let pft = |variant: &'static str, threads: u32, values: [u64; 4]| {
        (0..).zip(values).map(move |(t, v)| {
            let mut s = sample(variant, "anon_fault", threads, t, v as f64);
            (s.faults, s.cpu_ns) = (v, 1_000_000_000);
            s
        })
    };
    let samples: Vec<Sample> = pft("6.14-vanilla", 1, [500_000, 500_100, 499_900, 500_000])
        .chain(pft("6.14-typesafe", 1, [450_000, 450_100, 449_900, 450_000]))
        .chain(pft("6.14-vanilla", 12, [342_300, 352_300, 332_300, 342_300]))
        .chain(pft("6.14-typesafe", 12, [347_900, 357_900, 337_900, 347_900]))
        .collect();
    let options = Options { metric: Metric::FaultsPerCpu, ..Options::new("6.14-vanilla") };
    let text = compare(&samples, &options).expect("both are there").render(Format::Mmtests);
    let want = "
                                            6.14                     6.14
                                         vanilla                 typesafe
Min       faults/cpu-1    499900.0000 (   0.00%)   449900.0000 ( -10.00%)
Min       faults/cpu-12   332300.0000 (   0.00%)   337900.0000 (   1.69%)
Hmean     faults/cpu-1    499999.9900 (   0.00%)   449999.9889 * -10.00%*
Hmean     faults/cpu-12   342153.8669 (   0.00%)   347756.2211 (   1.64%)
";
    let table: String = text.lines().skip(1).take(6).map(|l| format!("{l}\n")).collect();
    assert_eq!(table, want[1..]);
    assert!(text.contains("\nHStddev   faults/cpu-1        70.7107 (   0.00%)       70.7107"), "{text}");
    assert!(text.contains("\nBHmean-50 faults/cpu-12 "));
}

#[test]
fn kernel_names_split_at_the_first_dash_but_for_candidates() {
    use super::mmtests::split_name;
    let split = |name| split_name(name);
    assert_eq!(split("6.14-vanilla"), ("6.14".into(), "vanilla".into()));
    assert_eq!(split("6.14-rc3-typesafe-v2"), ("6.14-rc3".into(), "typesafe-v2".into()));
    assert_eq!(split("6.14-rc3"), ("6.14-rc3".into(), String::new()));
    assert_eq!(split("6.14-rcu-fix"), ("6.14".into(), "rcu-fix".into()));
    assert_eq!(split("refcnt+typesafe@slub"), ("refcnt".into(), "+typesafe@slub".into()));
    assert_eq!(split("v6.12"), ("v6.12".into(), String::new()));
}

/// In CSV a warning stands once: in the row that it names, else in the first of its block.
#[test]
fn csv_says_each_warning_once() {
    let mut all = matrix("native");
    let failed = all.iter_mut().find(|s| s.variant == "v6.15" && s.workload == "brk1").expect("is there");
    failed.errors = vec!["refused".into()];
    let c = compare(&all, &Options::new("v6.12")).expect("both are there");
    let csv = c.render(Format::Csv);
    for w in c.blocks[0].warnings.iter().chain(&c.warnings) {
        let w = w.replace('"', "\"\"");
        assert_eq!(csv.lines().filter(|l| l.contains(&w)).count(), 1, "{w}");
    }
    let line = csv.lines().find(|l| l.contains("in error: refused")).expect("is said");
    assert!(line.contains(",v6.15,") && line.contains(",brk1,"), "{line}");
}

#[test]
fn csv_has_one_line_a_side_and_json_parses() {
    let c = compare(&matrix("native"), &Options::new("v6.12")).expect("both are there");
    let csv = c.render(Format::Csv);
    let columns = |l: &str| l.split(',').nth(8).map(str::to_string);
    let lines = |metric: &str| csv.lines().filter(|l| columns(l).as_deref() == Some(metric)).count();
    assert_eq!(lines("throughput"), 4 * 6 * 4);
    assert_eq!(lines("reuse:maple_node"), 4 * 6 * 4);
    let width = |l: &str| l.matches(',').count();
    let header = csv.lines().next().map_or(0, width);
    assert!(csv.lines().filter(|l| l.contains("reuse:")).all(|l| width(l) == header), "{csv}");
    let json: serde_json::Value = serde_json::from_str(&c.render(Format::Json)).expect("is JSON");
    assert_eq!(json["blocks"][0]["rows"].as_array().map(Vec::len), Some(24));
}

#[test]
fn print_for_the_eye() {
    if let Ok(path) = std::env::var("FAULTLINE_SHOW") {
        let mut all = matrix("native");
        all.extend(matrix("sim"));
        let c = compare(&all, &Options::new("v6.12")).expect("both are there");
        for (name, format) in [("text", Format::Text), ("mmtests", Format::Mmtests), ("markdown", Format::Markdown)] {
            std::fs::write(format!("{path}/{name}"), c.render(format)).expect("writes");
        }
    }
}

/// `values` of `variant`, all waiting as said.
fn waiting(variant: &str, values: &[f64], wait: &str) -> Vec<Sample> {
    let mut s = side(variant, values);
    for x in &mut s {
        x.kconfig.insert("wait".into(), wait.into());
        x.run.id = format!("run-{wait}");
    }
    s
}

#[test]
fn two_ways_to_wait_that_name_different_winners_decide_nothing() {
    let both = |spin: &[f64]| {
        let samples = [
            waiting("base", &A, "futex"),
            waiting("new", &B, "futex"),
            waiting("base", &A, "spin"),
            waiting("new", spin, "spin"),
        ];
        compare(&samples.concat(), &Options::new("base")).expect("both are there")
    };
    let verdicts = |c: &Comparison| -> Vec<Verdict> {
        c.blocks.iter().map(|b| b.rows[0].sides[1].change.as_ref().expect("is compared").verdict).collect()
    };
    // Up by 1.4 % with a futex, down by 3.7 % when polling.
    let c = both(&B.map(|x| 0.95 * x));
    assert_eq!(verdicts(&c), [Verdict::Undecided; 2]);
    assert!(c.blocks.iter().all(|b| b.warnings.iter().any(|w| w.contains("undecided on this machine"))), "{c:?}");
    assert!(c.render(Format::Text).contains("undecided"));
    // The same winner: each keeps its verdict.
    assert_eq!(verdicts(&both(&B)), [Verdict::Better; 2]);
    // A winner in one of them only: kept, and said.
    let c = both(&A);
    assert!(verdicts(&c).contains(&Verdict::Better) && !verdicts(&c).contains(&Verdict::Undecided));
    assert!(warned(&c, "claimed with wait=futex only"));
}
