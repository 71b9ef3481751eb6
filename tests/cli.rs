// SPDX-License-Identifier: GPL-2.0-only
//! The program as its user meets it: every world once, what it says to bad input, and what is left of a run that is
//! interrupted, killed, or out of disk.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn faultline(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_faultline"));
    c.args(args).stdin(Stdio::null());
    c
}

fn run(args: &[&str]) -> Output {
    faultline(args).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(args: &[&str]) -> String {
    let o = run(args);
    assert!(o.status.success(), "{args:?}: {:?}\n{}", o.status.code(), text(&o.stderr));
    text(&o.stdout)
}

fn records(path: &Path) -> Vec<Value> {
    let all = std::fs::read_to_string(path).expect("readable");
    all.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

fn without_run(mut v: Value) -> Value {
    v.as_object_mut().expect("an object").remove("run").expect("has a run object");
    v
}

/// A run that takes many short samples.
fn long_run(out: &str) -> Vec<&str> {
    vec![
        "run",
        "--variant",
        "v6.12,v6.15",
        "--workload",
        "brk1",
        "--threads",
        "1",
        "--trials",
        "10",
        "--seconds",
        "0.05",
        "--warm-up",
        "0.01",
        "--out",
        out,
    ]
}

#[test]
fn bad_input_is_one_line_that_names_it_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n).to_string_lossy().into_owned();
    let (foreign, xml, nothing) = (at("foreign.jsonl"), at("not-hwloc.xml"), at("absent.jsonl"));
    std::fs::write(&foreign, "{\"hello\": 1}\n").unwrap();
    std::fs::write(&xml, "<?xml version=\"1.0\"?>\n<svg/>\n").unwrap();
    let (out, good) = (at("o.jsonl"), at("good.jsonl"));
    let quick = ["--threads", "1", "--trials", "1", "--seconds", "0.001", "--warm-up", "0.001", "--out", &good];
    // Names given twice are measured once.
    ok(&[&["run", "--variant", "v6.12,v6.15,v6.12", "--workload", "brk1,brk1"], &quick[..]].concat());
    assert_eq!(records(Path::new(&good)).len(), 2);
    let base = ["run", "--variant", "v6.12", "--workload", "brk1", "--out", &out];
    let with = |more: &[&str]| -> Vec<String> { base.iter().chain(more).map(|s| s.to_string()).collect() };
    let v = |a: &[&str]| -> Vec<String> { a.iter().map(|s| s.to_string()).collect() };
    let cases: Vec<(Vec<String>, &[&str])> = vec![
        (v(&["run", "--variant", "v9.9", "--workload", "brk1"]), &["--variant", "v9.9", "v6.12"]),
        (
            v(&["run", "--variant", "rwsem_separate+typesafe@slub", "--workload", "brk1"]),
            &["typesafe", "rwsem_separate"],
        ),
        (v(&["run", "--variant", "v6.12", "--workload", "pft"]), &["--workload", "pft", "anon_fault"]),
        (v(&["run", "--workload", "brk1"]), &["--variant", "v6.12"]),
        (v(&["run", "--variant", "v6.12", "--workload", "brk1", "--rcu", "lazy"]), &["--rcu", "nocb,lazy"]),
        (v(&["run", "--variant", "v6.12", "--workload", "brk1", "--rcu", "boost"]), &["--rcu", "expedited"]),
        (with(&["--slab-debug", "FZ"]), &["--slab-debug", "FZ", "Z", "not built", "accepted: F"]),
        (with(&["--slab-debug", "u"]), &["--slab-debug", "U", "not built", "accepted: F"]),
        (with(&["--slab-debug", "Q"]), &["--slab-debug", "'Q'", "accepted: F"]),
        (with(&["--slab-debug", ""]), &["--slab-debug", "no letter", "accepted: F"]),
        (with(&["--host", "no-such-host"]), &["--host", "no-such-host"]),
        (with(&["--host", &xml, "--world", "sim"]), &["--host", "not-hwloc.xml"]),
        (with(&["--threads", "100000"]), &["--threads", "100000"]),
        (with(&["--threads", "0"]), &["--threads", "0"]),
        (with(&["--seconds", "0"]), &["--seconds", "0", "accepted"]),
        (with(&["--seconds", "-1"]), &["--seconds", "-1", "accepted"]),
        (with(&["--seconds", "NaN"]), &["--seconds", "NaN", "accepted"]),
        (with(&["--seconds", "1e300"]), &["--seconds", "1e300", "accepted"]),
        (with(&["--seconds", "1e-12"]), &["--seconds", "1e-12", "accepted"]),
        (with(&["--seconds", "soon"]), &["--seconds", "soon", "accepted"]),
        (with(&["--warm-up", "-1"]), &["--warm-up", "-1", "accepted"]),
        (with(&["--trials", "0"]), &["--trials", "0", "accepted"]),
        (with(&["--trials", "-1"]), &["--trials", "-1", "accepted"]),
        (with(&["--trials", "4294967295"]), &["--trials", "4294967295", "accepted"]),
        (with(&["--threads", "-1"]), &["--threads", "-1", "accepted"]),
        (with(&["--seed", "x"]), &["--seed", "x", "accepted"]),
        (with(&["--pin", "9999"]), &["--pin", "9999"]),
        (with(&["--out", ""]), &["--out"]),
        (with(&["--world", "real"]), &["--world", "real", "native, sim, kernel"]),
        (with(&["--world", "kernel"]), &["--variant", "kernel"]),
        (
            v(&["run", "--world", "kernel", "--workload", "cross_mm_reuse"]),
            &["--workload", "cross_mm_reuse", "kernel", "native or sim"],
        ),
        (with(&["--mode", "fiber"]), &["--mode", "fiber", "thread"]),
        (with(&["--pin", "left"]), &["--pin", "left", "compact"]),
        (with(&["--hz", "0"]), &["--hz", "0", "accepted"]),
        (with(&["--mmap-lock-offset", "12"]), &["--mmap-lock-offset", "12", "accepted", "multiple of 8"]),
        (with(&["--mmap-lock-offset", "64"]), &["--mmap-lock-offset", "64", "0 to 56"]),
        (with(&["--mmap-lock-offset", "-8"]), &["--mmap-lock-offset", "-8", "accepted"]),
        (with(&["--maple-rules", "x"]), &["--maple-rules x", "accepted: 6.12, 6.18, 7.3"]),
        (v(&["fuzz", "--against", "model", "--every", "0"]), &["--every 0", "accepted", "1 to 1000000"]),
        (with(&["--qs-policy", "never"]), &["--qs-policy", "never", "always"]),
        (v(&["run", "--variant", "v6.12", "--workload", "brk1", "--out", &foreign]), &["foreign.jsonl"]),
        (v(&["run", "--variant", "v6.12", "--workload", "brk1", "--out", &at("")]), &["--out"]),
        (with(&["--seed", "1", "--seed", "2"]), &["--seed"]),
        (with(&["--frobnicate"]), &["--frobnicate"]),
        (v(&["compare", &nothing, "--baseline", "v6.12"]), &["absent.jsonl"]),
        (v(&["compare", &foreign, "--baseline", "v6.12"]), &["foreign.jsonl"]),
        (v(&["letter", &foreign, "--baseline", "v6.12", "--patched", "v6.15"]), &["foreign.jsonl"]),
        (v(&["compare", "/dev/zero", "--baseline", "v6.12"]), &["/dev/zero", "not a record"]),
        (v(&["compare", &good, "--baseline", "v6.11"]), &["--baseline", "v6.11", "v6.12"]),
        (v(&["compare", &good, "--baseline", "v6.12", "--patched", "v6.13"]), &["--patched", "v6.13", "v6.15"]),
        (v(&["letter", &good, "--baseline", "v6.12", "--patched", "v6.12"]), &["--patched", "v6.12", "baseline"]),
        (v(&["compare", &good, "--baseline", "v6.12", "--metric", "speed"]), &["--metric", "speed", "ns_per_op"]),
        (v(&["compare", &good, "--baseline", "v6.12", "--metric", "counter:x"]), &["--metric", "counter:x", "pgfault"]),
        (v(&["compare", &good, "--baseline", "v6.12", "--format", "pdf"]), &["--format", "pdf", "mmtests"]),
        (v(&["compare", &good]), &["--baseline"]),
        (v(&["letter"]), &["--baseline", "--patched", "FILES"]),
        (v(&["frob"]), &["frob"]),
        (v(&[]), &["command"]),
        (v(&["list", "frob"]), &["frob", "workloads"]),
        (v(&["host"]), &["show", "capture", "ready"]),
        (v(&["host", "show", "--host", "nowhere"]), &["nowhere"]),
        (v(&["host", "ready", "--host", "example-8n-64"]), &["--host", "example-8n-64"]),
        (v(&["host", "capture", "--out", &good]), &["--out", "good.jsonl"]),
    ];
    for (args, names) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let o = run(&args);
        let err = text(&o.stderr);
        assert_eq!(o.status.code(), Some(2), "{args:?}: {err}");
        assert_eq!(err.trim_end().lines().count(), 1, "{args:?} says one line:\n{err}");
        for n in names {
            assert!(err.contains(n), "{args:?} does not say {n}: {err}");
        }
        assert!(!err.contains("accepted: \n") && !err.contains(":;"), "{args:?}: {err}");
    }
    assert_eq!(records(Path::new(&good)).len(), 2, "bad input touches no record");
    assert!(!Path::new(&out).exists(), "bad input makes no file");
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "{\"hello\": 1}\n", "a foreign file is left alone");
}

#[test]
fn options_of_the_kernel_are_recorded_and_balances_hold_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("o.jsonl");
    let out = path.to_string_lossy();
    let base = ["run", "--variant", "main", "--workload", "brk1,mmap_churn", "--threads", "1", "--trials", "1"];
    let rest = ["--seconds", "0.02", "--warm-up", "0.002", "--out", &out];
    for (args, key, value) in [
        (&["--rcu", "nocb"][..], "rcu_nocbs", "all"),
        (&["--rcu", "nocb,lazy", "--qs-policy", "always"], "rcu_lazy", "true"),
        (&["--rcu", "expedited,normal-wake-from-gp"], "rcu_expedited", "true"),
        (&["--memcg", "--init-on-alloc", "--wait", "spin"], "init_on_alloc", "true"),
        (&["--qs-policy", "timer", "--hz", "1000"], "hz", "1000"),
        (&["--slab-debug", "F"], "slab_debug", "F"),
        (&["--maple-rules", "6.18"], "maple_rules", "6.18"),
        (&["--mmap-lock-offset", "56"], "mmap_lock_offset", "56"),
        (&["--mmap-lock-offset", "0", "--memcg"], "mmap_lock_offset", "0"),
    ] {
        let _ = std::fs::remove_file(&path);
        ok(&[&base[..], args, &rest].concat());
        let rows = records(&path);
        assert_eq!(rows.len(), 10, "{args:?}");
        for r in &rows {
            assert!(r.get("errors").is_none(), "{args:?}: {r}");
            assert_eq!(r["kconfig"][key], value, "{args:?}");
        }
    }
}

/// A key of the configuration that the record's documentation does not name is one that nobody can read.
#[test]
fn every_key_of_the_configuration_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("o.jsonl");
    let out = path.to_string_lossy();
    ok(&[
        "run",
        "--variant",
        "v6.12",
        "--workload",
        "brk1",
        "--threads",
        "1",
        "--trials",
        "1",
        "--seconds",
        "0.001",
        "--warm-up",
        "0.001",
        "--out",
        &out,
    ]);
    let doc = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/record.md")).unwrap();
    let (_, section) = doc.split_once("### `kconfig`").expect("a section of its own");
    let section = section.split("\n##").next().unwrap();
    let documented: Vec<&str> = section
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split_once("` |"))
        .flat_map(|(keys, _)| keys.split("`, `"))
        .collect();
    let rows = records(&path);
    let taken: Vec<&String> = rows[0]["kconfig"].as_object().unwrap().keys().collect();
    for key in &taken {
        assert!(documented.contains(&key.as_str()), "{key} is not in docs/record.md");
    }
    for key in &documented {
        assert!(taken.iter().any(|k| k == key), "docs/record.md has {key}, which no record has");
    }
}

#[test]
fn every_world_gives_records_whose_balances_hold() {
    let dir = tempfile::tempdir().unwrap();
    for (world, args) in [
        ("native", &["--variant", "v6.12,v6.15", "--threads", "1", "--trials", "2", "--seconds", "0.03"][..]),
        ("sim", &["--variant", "v6.12,v6.15", "--threads", "4", "--trials", "1", "--seconds", "0.002"][..]),
        ("kernel", &["--threads", "1", "--trials", "2", "--seconds", "0.03"][..]),
    ] {
        let path = dir.path().join(format!("{world}.jsonl"));
        let out = path.to_string_lossy();
        let mut all = vec!["run", "--workload", "all", "--world", world, "--warm-up", "0.002", "--out", &out];
        all.extend(args);
        ok(&all);
        let rows = records(&path);
        let fits =
            |w: &&faultline::workload::About| world != "kernel" || faultline::workload::not_on_host(w.name).is_none();
        let workloads = faultline::workload::LIST.iter().filter(fits).count();
        let samples = workloads * if world == "native" { 4 } else { 2 };
        assert_eq!(rows.len(), samples, "{world}");
        for r in &rows {
            assert_eq!(r["schema"], 1);
            assert!(r.get("errors").is_none(), "{world}: {r}");
            assert!(r["operations"].as_u64().unwrap() > 0, "{world}: {r}");
            assert_eq!(r["per_thread"].as_array().unwrap().len() as u64, r["threads"].as_u64().unwrap());
            if world != "kernel" {
                let c = |n: &str| r["counters"][n].as_u64().unwrap_or_else(|| panic!("{n} missing: {r}"));
                let ended = c("vma_lock_success") + c("vma_lock_retry") + c("vma_lock_abort");
                assert_eq!(c("pgfault"), ended, "{r}");
                assert_eq!(c("rcu_callbacks_queued"), c("rcu_callbacks_invoked"), "{r}");
                assert_eq!(c("vma_alloc"), c("vma_free"), "{r}");
                assert!(c("vma_alloc") > 0);
            }
            if world == "sim" {
                assert!(r["lines"].as_object().is_some_and(|l| !l.is_empty()), "{r}");
            }
        }
    }
}

#[test]
fn a_simulated_run_repeats_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<Vec<Value>> = ["a", "b"]
        .iter()
        .map(|n| {
            let path = dir.path().join(n);
            ok(&[
                "run",
                "--variant",
                "v6.12,v6.15",
                "--workload",
                "brk1,fault_vs_unmap",
                "--world",
                "sim",
                "--threads",
                "8",
                "--seconds",
                "0.002",
                "--warm-up",
                "0.001",
                "--out",
                &path.to_string_lossy(),
            ]);
            records(&path).into_iter().map(without_run).collect()
        })
        .collect();
    assert_eq!(rows[0].len(), 4);
    assert_eq!(rows[0], rows[1]);
    let path = dir.path().join("c");
    ok(&[
        "run",
        "--variant",
        "v6.12,v6.15",
        "--workload",
        "fault_vs_unmap",
        "--world",
        "sim",
        "--threads",
        "8",
        "--seed",
        "2",
        "--seconds",
        "0.002",
        "--warm-up",
        "0.001",
        "--out",
        &path.to_string_lossy(),
    ]);
    let other = records(&path).into_iter().map(without_run).find(|r| r["variant"] == "v6.15").unwrap();
    let first = rows[0].iter().find(|r| r["variant"] == "v6.15" && r["workload"] == "fault_vs_unmap").unwrap();
    assert_ne!(first["counters"], other["counters"], "another seed is another run");
}

#[test]
fn what_parts_two_tables_is_in_their_titles_and_error_rows_alone_are_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let file = path.to_string_lossy().into_owned();
    let quick = ["--threads", "1", "--trials", "2", "--seconds", "0.001", "--warm-up", "0.001", "--out", &file];
    ok(&[&["run", "--variant", "v6.12,v6.15", "--workload", "brk1"], &quick[..]].concat());
    let write = |edit: &dyn Fn(&mut Value)| {
        let rows = records(&path).into_iter().map(|mut r| {
            edit(&mut r);
            format!("{r}\n")
        });
        let text: String = rows.collect();
        std::fs::write(&path, text).unwrap();
    };
    write(&|r| {
        if r["trial"] == 1 {
            r["commit"] = "another".into();
        }
    });
    let table = ok(&["compare", &file, "--baseline", "v6.12"]);
    let titles: Vec<&str> = table.lines().filter(|l| l.starts_with("throughput (")).collect();
    assert!(titles.len() == 2 && titles[0] != titles[1], "{titles:?}");
    assert!(titles.iter().any(|t| t.contains("another")), "{titles:?}");
    write(&|r| r["errors"] = serde_json::json!(["books do not close"]));
    for args in [&["compare", &file][..], &["letter", &file, "--patched", "v6.15"][..]] {
        let o = run(&[args, &["--baseline", "v6.12"]].concat());
        assert_eq!(o.status.code(), Some(1), "{args:?}");
        assert!(text(&o.stderr).contains("all 4 samples are error rows"), "{args:?}: {}", text(&o.stderr));
    }
}

#[test]
fn a_second_ctrl_c_does_not_wait_for_the_sample() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let out = path.to_string_lossy().into_owned();
    let args = ["run", "--variant", "v6.12", "--workload", "brk1", "--threads", "1", "--seconds", "600", "--out", &out];
    let child = faultline(&args).stderr(Stdio::piped()).spawn().unwrap();
    let t = Instant::now();
    while !path.exists() {
        assert!(t.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(200));
        // SAFETY: our own child.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    }
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(130), "{}", text(&o.stderr));
    assert!(text(&o.stderr).contains("--resume"));
    assert!(t.elapsed() < Duration::from_secs(30));
    assert!(records(&path).is_empty());
}

fn wait_for_lines(path: &Path, n: usize) {
    let t = Instant::now();
    while std::fs::read_to_string(path).map_or(0, |s| s.lines().count()) < n {
        assert!(t.elapsed() < Duration::from_secs(60), "no records came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_run_loses_the_sample_in_flight_at_most_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let out = path.to_string_lossy().into_owned();
    let mut child = faultline(&long_run(&out)).stderr(Stdio::null()).spawn().unwrap();
    wait_for_lines(&path, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = records(&path);
    assert!(before.len() >= 3 && before.len() < 20, "{} records", before.len());
    // What a kill in the middle of a write would leave.
    use std::io::Write;
    let mut f = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    f.write_all(b"{\"schema\":1,\"kind\":\"sam").unwrap();
    drop(f);
    let mut args = long_run(&out);
    args.push("--resume");
    ok(&args);
    let all = std::fs::read_to_string(&path).unwrap();
    let whole: Vec<Value> = all.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert_eq!(whole.len(), 20);
    assert_eq!(&whole[..before.len()], &before[..], "what was measured is still there");
    let mut keys: Vec<String> = whole.iter().map(|r| format!("{} {}", r["variant"], r["trial"])).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 20, "no sample twice");
    ok(&args);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), all, "nothing left to do");
    let table = ok(&["compare", &out, "--baseline", "v6.12"]);
    assert!(table.contains("brk1"), "{table}");
}

#[test]
fn ctrl_c_ends_the_sample_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let out = path.to_string_lossy().into_owned();
    let child = faultline(&long_run(&out)).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_lines(&path, 2);
    // SAFETY: our own child.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let o = child.wait_with_output().unwrap();
    let err = text(&o.stderr);
    assert_eq!(o.status.code(), Some(130), "{err}");
    assert!(err.contains("--resume"), "{err}");
    let n = records(&path).len();
    assert!((2..20).contains(&n), "{n} records");
}

#[test]
fn a_full_disk_is_one_line() {
    let o = run(&[
        "run",
        "--variant",
        "v6.15",
        "--workload",
        "brk1",
        "--threads",
        "1",
        "--trials",
        "1",
        "--seconds",
        "0.01",
        "--out",
        "/dev/full",
    ]);
    let err = text(&o.stderr);
    assert_eq!(o.status.code(), Some(2), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(err.contains("/dev/full"), "{err}");
}

#[test]
fn lists_help_and_tables_are_there_in_text_and_json() {
    let help = ok(&["--help"]);
    assert!(help.contains("Example"), "{help}");
    for verb in ["list", "run", "compare", "letter", "host"] {
        assert!(ok(&[verb, "--help"]).contains("Example"), "{verb} --help has an example");
    }
    let list: Value = serde_json::from_str(&ok(&["list", "--json"])).unwrap();
    for (what, name) in [("variants", "v6.12"), ("workloads", "brk1"), ("hosts", "this"), ("events", "vma_lock_miss")] {
        let rows = list[what].as_array().unwrap_or_else(|| panic!("{what}"));
        assert!(rows.iter().any(|r| r["name"] == name), "{what} has {name}");
    }
    let words = ok(&["list", "workloads"]);
    assert!(words.contains("never allocates or frees a VMA"), "{words}");
}
