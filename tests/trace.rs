// SPDX-License-Identifier: GPL-2.0-only
//! `faultline trace` as its user meets it: what it says to bad files and bad lines, and what its exit code means.

use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_faultline"));
    c.arg("trace").args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn recorded(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(name).to_string_lossy().into_owned()
}

/// A log in a directory that lives as long as the first of the pair.
fn log(name: &str, bytes: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    (dir, path.to_string_lossy().into_owned())
}

const GOOD: &str = "7 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7f0000000000\n\
                    7 munmap(0x7f0000000000, 4096) = 0\n\
                    7 exit_group(0) = ?\n\
                    7 +++ exited with 0 +++\n";

#[test]
fn a_log_in_a_table_and_as_json() {
    let (_d, path) = log("x.log", GOOD.as_bytes());
    let o = run(&[&path, "--variant", "v6.12"]);
    assert_eq!(o.status.code(), Some(0), "{}", text(&o.stderr));
    let out = text(&o.stdout);
    assert!(out.contains("1 threads, 1 address spaces") && out.contains("the caller writes the first page"), "{out}");
    assert!(out.contains("v6.12") && out.contains("munmap"), "{out}");
    let o = run(&[&path, "--variant", "v6.12,v6.15", "--touch", "all", "--repeat", "3", "--json"]);
    let v: Value = serde_json::from_slice(&o.stdout).expect("JSON");
    let f = &v["files"][0];
    assert_eq!(f["lines"], 4);
    assert_eq!(f["touch"], "all");
    for (i, name) in ["v6.12", "v6.15"].iter().enumerate() {
        let r = &f["variants"][i];
        assert_eq!(r["variant"], *name);
        assert_eq!(r["kinds"]["munmap"]["calls"], 3, "three replays");
        assert_eq!(r["kinds"]["mmap"]["events"]["vma_alloc"], 3);
        assert_eq!(r["counters"]["pgfault"], 6, "two pages, three times");
        assert_eq!(r["differences"].as_array().map(Vec::len), Some(0));
        assert_eq!(r["errors"].as_array().map(Vec::len), Some(0));
    }
}

#[test]
fn a_bad_line_is_named_and_the_rest_replayed_unless_strict() {
    let bad = format!("7 munmap(0x1000, what) = 0\n{GOOD}");
    let (_d, path) = log("x.log", bad.as_bytes());
    let o = run(&[&path, "--variant", "v6.12"]);
    assert_eq!(o.status.code(), Some(0));
    let err = text(&o.stderr);
    let want = format!("faultline: {path}:1: argument 2 of munmap: 'what' is no number: 7 munmap(0x1000, what) = 0\n");
    assert_eq!(err, want);
    assert!(text(&o.stdout).contains("lines that could not be read: 1"));
    let o = run(&[&path, "--variant", "v6.12", "--strict"]);
    assert_eq!(o.status.code(), Some(2));
    let err = text(&o.stderr);
    assert!(err.starts_with(&format!("faultline: --strict: {path}:1: ")) && err.lines().count() == 1, "{err}");
}

#[test]
fn a_call_that_came_out_differently_is_listed_and_an_error_when_strict() {
    let (_d, path) = log("x.log", format!("{GOOD}8 munmap(0x1001, 4096) = 0\n").as_bytes());
    let o = run(&[&path, "--variant", "v6.12"]);
    assert_eq!(o.status.code(), Some(0), "{}", text(&o.stderr));
    let line = format!("{path}:5: thread 8: munmap(0x1001, 0x1000): the log says 0x0, here EINVAL");
    assert!(text(&o.stdout).contains(&line), "{}", text(&o.stdout));
    let o = run(&[&path, "--variant", "v6.12", "--strict"]);
    assert_eq!(o.status.code(), Some(1));
    assert!(text(&o.stderr).contains(&format!("{path}:5: v6.12: munmap(0x1001")), "{}", text(&o.stderr));
}

#[test]
fn calls_that_are_no_memory_calls_are_counted_and_listed() {
    let (_d, path) = log("x.log", format!("7 openat(3, \"x\", 0) = 4\n7 openat(3, \"y\", 0) = 4\n{GOOD}").as_bytes());
    let o = run(&[&path, "--variant", "v6.12", "--strict"]);
    assert_eq!(o.status.code(), Some(0), "{}", text(&o.stderr));
    assert!(text(&o.stdout).contains("no memory calls, counted only: openat 2"), "{}", text(&o.stdout));
}

#[test]
fn a_truncated_archive_is_replayed_as_far_as_it_goes() {
    let whole = std::fs::read(recorded("python-threads.log.xz")).expect("recorded");
    let (_d, path) = log("cut.log.xz", &whole[..whole.len() / 2]);
    let o = run(&[&path, "--variant", "v6.12"]);
    let err = text(&o.stderr);
    assert!(err.contains(&format!("{path}:")) && err.contains("cannot be read on from here"), "{err}");
    assert!(text(&o.stdout).contains("lines that could not be read"), "{}", text(&o.stdout));
    assert_eq!(o.status.code(), Some(0), "{err}");
    let o = run(&[&path, "--strict"]);
    assert_eq!(o.status.code(), Some(2));
    // Nothing of it can be read.
    let (_d, path) = log("cut.log.xz", &whole[..40]);
    let o = run(&[&path]);
    assert_eq!(o.status.code(), Some(2));
    assert!(text(&o.stderr).contains("no memory call in this file"), "{}", text(&o.stderr));
}

/// What a damaged archive still gives is replayed, and a call that is cut off is not: both with one line each.
#[test]
fn a_cut_call_and_a_broken_archive_are_told_and_what_came_before_is_replayed() {
    let cut = GOOD.replace("7 exit_group(0) = ?\n7 +++ exited with 0 +++\n", "7 munmap(0x7f0000001000, 4096) = 0");
    let (_d, path) = log("x.log", cut.as_bytes());
    let o = run(&[&path, "--variant", "v6.12", "--json"]);
    let err = text(&o.stderr);
    assert_eq!(o.status.code(), Some(0), "{err}");
    assert!(err.starts_with(&format!("faultline: {path}:3: the last line is cut off")), "{err}");
    assert!(err.contains("record the log anew") && err.lines().count() == 1, "{err}");
    let calls = |o: &Output| {
        let v: Value = serde_json::from_slice(&o.stdout).expect("JSON");
        v["files"][0]["variants"][0]["kinds"]["munmap"]["calls"].as_u64()
    };
    assert_eq!(calls(&o), Some(1), "of two the whole one");
    assert_eq!(run(&[&path, "--strict"]).status.code(), Some(2));
    let many: String = (0..5000u64).map(|i| format!("7 munmap({:#x}, 4096) = 0\n", (i * 7919 % 5000) << 12)).collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(many.as_bytes()).expect("in memory");
    let gz = gz.finish().expect("in memory");
    let (_d, path) = log("x.log.gz", &gz[..gz.len() / 2]);
    let o = run(&[&path, "--variant", "v6.12", "--json"]);
    let err = text(&o.stderr);
    let done = calls(&o).unwrap_or(0);
    assert!(done > 1500, "{done} calls of half an archive: {err}");
    // The line that the damage cut, and the damage.
    let at = err.rsplit_once(&format!("faultline: {path}:{}: the file cannot be read on from here", done + 1));
    assert!(at.is_some_and(|(before, _)| before.contains("cut off")) && err.lines().count() == 2, "{done}: {err}");
}

#[test]
fn files_that_are_none_and_arguments_that_make_no_sense() {
    let (_d, empty) = log("empty.log", b"");
    let (_d2, other) = log("other.log", b"hello\nworld\n");
    let (_d3, good) = log("x.log", GOOD.as_bytes());
    let cases: [(&[&str], &str); 8] = [
        (&["/nonexistent.log"], "/nonexistent.log: No such file"),
        (&["/"], "/: Is a directory"),
        (&[&empty], "it is empty"),
        (&[&other], "other.log:1: neither a call, a signal nor an exit: hello"),
        (&[&good, "--variant", "v9"], "--variant v9"),
        (&[&good, "--threads", "0"], "--threads 0: accepted: 1 to"),
        (&[&good, "--against", "model"], "accepted: kernel"),
        (&[&good, "--against", "kernel", "--repeat", "2"], "leave --threads and --repeat at 1"),
    ];
    for (args, want) in cases {
        let o = run(args);
        let err = text(&o.stderr);
        assert_eq!(o.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains(want) && err.lines().count() == 1, "{args:?}: {err}");
        assert!(o.stdout.is_empty());
    }
}

/// What a run leaves in its record file.
fn samples(extra: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("a.jsonl");
    let path = recorded("python-threads.log.xz");
    let mut c = Command::new(env!("CARGO_BIN_EXE_faultline"));
    c.args(["run", "--workload", &format!("trace:{path}"), "--trials", "1", "--warm-up", "0.01"]);
    let o = c.args(extra).arg("--out").arg(&out).stdin(Stdio::null()).output().expect("the binary starts");
    assert!(o.status.success(), "{extra:?}: {}", text(&o.stderr));
    let all = std::fs::read_to_string(&out).expect("records");
    all.lines().map(|l| serde_json::from_str(l).expect("a record")).collect()
}

#[test]
fn a_trace_is_a_workload_in_every_world() {
    let worlds: [&[&str]; 3] = [
        &["--variant", "v6.12", "--threads", "1", "--seconds", "0.05"],
        &["--variant", "v6.15", "--threads", "2", "--world", "sim", "--seconds", "0.005"],
        &["--world", "kernel", "--threads", "1", "--seconds", "0.05"],
    ];
    for w in worlds {
        let v = samples(w);
        let s = v.iter().find(|s| s["kind"] == "sample").expect("a sample");
        // Without errors the key is left out.
        assert!(s.get("errors").is_none(), "{w:?}: {}", s["errors"]);
        let name = s["workload"].as_str().expect("a name");
        let hash = name.strip_prefix("trace:python-threads.log.xz#").expect("the file's name");
        assert!(hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
        assert!(s["warnings"].to_string().contains("calls and"), "{}", s["warnings"]);
        assert!(s["operations"].as_u64() > Some(0));
    }
    let o = Command::new(env!("CARGO_BIN_EXE_faultline"))
        .args(["run", "--variant", "v6.12", "--workload", "trace:/nonexistent", "--threads", "1"])
        .output()
        .expect("the binary starts");
    assert_eq!(o.status.code(), Some(2));
    assert!(text(&o.stderr).starts_with("faultline: --workload trace:/nonexistent: /nonexistent: No such file"));
    drop(std::io::stderr().flush());
}
