// SPDX-License-Identifier: GPL-2.0-only
//! `faultline fuzz` and `faultline replay` as their user meets them, and the port against the kernel that runs here.

use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_faultline")).args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run that needs the host to be so and so: its exit code, with what it printed. `None` where the host refuses (2, with
/// one line, that says why this is left out), which it must not where `FAULTLINE_HOST=must`.
fn on_host(args: &[&str]) -> Option<(Option<i32>, String, String)> {
    let o = run(args);
    let (out, err) = (text(&o.stdout), text(&o.stderr));
    if o.status.code() != Some(2) {
        return Some((o.status.code(), out, err));
    }
    assert!(
        err.lines().count() == 1 && ["--against kernel", "--objects", "--placement"].iter().any(|o| err.contains(o)),
        "{err}"
    );
    let must = std::env::var("FAULTLINE_HOST").is_ok_and(|v| v == "must");
    assert!(!must, "FAULTLINE_HOST=must, and the host refuses: {err}");
    eprintln!("left out, the host refuses (FAULTLINE_HOST=must makes it an error): {args:?}: {err}");
    None
}

#[test]
fn against_the_model_is_green_and_counts_what_it_did() {
    let o = run(&["fuzz", "--ops", "3000", "--seed", "4", "--against", "model", "--json"]);
    assert_eq!(o.status.code(), Some(0), "{}", text(&o.stderr));
    let v: Value = serde_json::from_slice(&o.stdout).expect("one line of JSON");
    assert_eq!((v["kind"].as_str(), v["operations"].as_u64()), (Some("fuzz"), Some(3000)));
    assert!(v["difference"].is_null() && v["calls"]["mmap"]["done"].as_u64() > Some(100));
    let o = run(&["fuzz", "--ops", "500", "--against", "model", "--variant", "v6.15", "--rules", "7.3"]);
    assert!(o.status.success() && text(&o.stdout).contains("500 calls in"), "{}", text(&o.stdout));
}

/// Some thousand calls; a host that refuses (no memfd, no shared memory) must say why in one line.
#[test]
fn against_the_kernel_is_green_or_says_why_not() {
    for subject in ["model", "port"] {
        let args = ["fuzz", "--ops", "8000", "--seed", "12", "--against", "kernel", "--subject", subject];
        let Some((code, out, err)) = on_host(&args) else { continue };
        assert_eq!(code, Some(0), "{subject}: {out}\n{err}");
        assert!(out.contains("host: ") && out.contains("8000 calls in"), "{out}");
    }
}

/// A rule of the model that is broken is found by the running kernel too, shrunk, and shown again by its token: what is
/// compared with the kernel is not nothing. Rules of all kinds: results, page offsets, flags, bytes.
#[test]
fn broken_rules_are_found_by_the_running_kernel() {
    for rule in ["UnmapSealed", "SplitKeepsOffset", "DontneedKeepsBytes", "ForkKeepsLocks"] {
        let args = ["fuzz", "--ops", "100000", "--seed", "7", "--against", "kernel", "--subject", "model"];
        let Some((code, out, err)) = on_host(&[&args[..], &["--broken", rule]].concat()) else { return };
        assert_eq!(code, Some(1), "{rule} was not found: {out}\n{err}");
        let token = err.split_whitespace().last().unwrap_or("");
        assert!(err.contains("the model and the kernel differ") && token.starts_with("fz1."), "{rule}: {err}");
        assert_eq!(run(&["replay", token, "--broken", rule]).status.code(), Some(1), "{rule}, again");
        assert_eq!(run(&["replay", token]).status.code(), Some(0), "{rule}: without what is broken");
    }
}

/// The addresses that the kernel chooses.
#[test]
fn placement_is_the_kernels_or_the_host_refuses() {
    let args = ["fuzz", "--placement", "--ops", "4000", "--seed", "3", "--against", "kernel"];
    let Some((code, out, err)) = on_host(&args) else { return };
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert!(out.contains("the search begins at") && out.contains("4000 calls in"), "{out}");
}

/// What calls cost, where this user may count it. Rounds that fork, guard and run at limits are among so many. The third
/// variant's tree is held against the host's, node by node, if one of the known rules is the host's.
#[test]
fn objects_and_locks_are_the_kernels_or_the_host_refuses() {
    for variant in ["v6.12", "v6.15", "refcnt+typesafe@sheaves"] {
        let args = ["fuzz", "--objects", "--ops", "5000", "--seed", "6", "--against", "kernel", "--variant", variant];
        let Some((code, out, err)) = on_host(&args) else { continue };
        assert_eq!(code, Some(0), "{variant}: {out}\n{err}");
        assert!(out.contains("5000 calls in"), "{out}");
        let bare = !out.contains("a bare process");
        assert!(!bare || out.contains("fork         VMAs allocated"), "{out}");
        let known = variant.ends_with("sheaves") && out.contains(": 0 calls of an experiment differ");
        assert!(!known || out.contains("objects: tree nodes allocated: compared"), "{out}");
        // The experiment tells at least two sets of rules apart.
        let agree = out.matches(": 0 calls of an experiment differ").count();
        assert!(!known || agree < 3, "{out}");
    }
}

/// A program that cannot go on still says which calls led there, and few of them.
#[test]
fn a_panic_is_shrunk_and_told() {
    let o = run(&["fuzz", "--ops", "100000", "--against", "model", "--subject", "model", "--broken", "panics"]);
    let (out, err) = (text(&o.stdout), text(&o.stderr));
    assert_eq!(o.status.code(), Some(1), "{out}\n{err}");
    let last = err.lines().last().unwrap_or("");
    assert!(last.starts_with("faultline: a panic in the last of these calls"), "{err}");
    // A mapping, a seal, a seal.
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.lines().last().is_some_and(|l| l.starts_with("3. mseal")), "{out}");
    let token = last.split_whitespace().last().unwrap_or("");
    let o = run(&["replay", token, "--broken", "panics"]);
    assert_eq!(o.status.code().or(o.status.signal()).map(|c| c == 101 || c == libc::SIGABRT), Some(true), "{o:?}");
    assert_eq!(run(&["replay", token]).status.code(), Some(0), "without what is broken");
}

#[test]
fn bad_input_is_one_line_and_exit_code_2() {
    let token = "fz1.AAAA";
    let cases: &[(&[&str], &[&str])] = &[
        (&["fuzz"], &["--against"]),
        (&["fuzz", "--against", "moon"], &["--against moon", "kernel, model"]),
        (&["fuzz", "--against", "model", "--ops", "0"], &["--ops 0"]),
        (&["fuzz", "--against", "model", "--variant", "v9"], &["--variant v9", "v6.12"]),
        (&["fuzz", "--against", "model", "--rules", "5.4"], &["--rules 5.4", "6.18"]),
        (&["fuzz", "--against", "kernel", "--rules", "6.12"], &["--rules", "seen on the host"]),
        (&["fuzz", "--against", "model", "--pages", "3"], &["--pages 3"]),
        (&["fuzz", "--against", "model", "--without", "gravity"], &["--without gravity", "mremap"]),
        (&["fuzz", "--against", "model", "--subject", "kernel"], &["--subject kernel", "port"]),
        (&["fuzz", "--against", "model", "--placement"], &["--placement", "the kernel"]),
        (&["fuzz", "--against", "model", "--broken", "wheel"], &["--broken wheel", "UnmapSealed"]),
        (&["fuzz", "--against", "kernel", "--broken", "unmapsealed"], &["--broken", "neither"]),
        (&["replay"], &["TOKEN"]),
        (&["replay", "nonsense"], &["TOKEN", "fz1."]),
        (&["replay", token], &["TOKEN", "checksum"]),
        (&["replay", "fz1.a"], &["TOKEN"]),
    ];
    for (args, words) in cases {
        let o = run(args);
        let e = text(&o.stderr);
        assert_eq!(o.status.code(), Some(2), "{args:?}: {e}");
        assert_eq!(e.trim_end().lines().count(), 1, "{args:?}: {e}");
        for w in *words {
            assert!(e.contains(w), "{args:?}: no '{w}' in: {e}");
        }
    }
}

/// Processes of this program that have `id` as their parent or process group, zombies left out.
fn helpers_of(id: u32) -> Vec<String> {
    let mut out = Vec::new();
    for e in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(line) = std::fs::read_to_string(e.path().join("cmdline")) else { continue };
        let Ok(stat) = std::fs::read_to_string(e.path().join("stat")) else { continue };
        let after: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let group = after.get(2).and_then(|g| g.parse::<u32>().ok());
        if line.contains("__fuzz-helper") && group == Some(id) && after.first() != Some(&"Z") {
            out.push(line.replace('\0', " "));
        }
    }
    out
}

#[test]
fn an_interrupted_run_ends_soon_and_leaves_no_process_behind() {
    use std::os::unix::process::CommandExt;
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let mut c = Command::new(env!("CARGO_BIN_EXE_faultline"));
        c.args(["fuzz", "--ops", "1000000000", "--against", "kernel", "--subject", "model"]);
        // A group of its own, as a shell would give it: its processes are known by it.
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = c.spawn().expect("the binary starts");
        let begin = Instant::now();
        while helpers_of(child.id()).is_empty() && begin.elapsed() < Duration::from_secs(20) {
            if child.try_wait().expect("a child").is_some() {
                let must = std::env::var("FAULTLINE_HOST").is_ok_and(|v| v == "must");
                assert!(!must, "FAULTLINE_HOST=must, and the host refuses; see the other tests");
                eprintln!("left out, the host refuses; see the other tests");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        // SAFETY: our own child.
        unsafe { libc::kill(child.id() as i32, signal) };
        let id = child.id();
        let o = child.wait_with_output().expect("it ends");
        if signal == libc::SIGINT {
            assert_eq!(o.status.code(), Some(130), "{}", text(&o.stderr));
            assert!(text(&o.stderr).contains("interrupted after"), "{}", text(&o.stderr));
        }
        let begin = Instant::now();
        while !helpers_of(id).is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(10), "left behind: {:?}", helpers_of(id));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
