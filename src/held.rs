// SPDX-License-Identifier: GPL-2.0-only
//! Lists that say which test holds what (invariants of the locks, of RCU and of the slab, allocation sites), held to the
//! tests that there are: a test that is gone, renamed, ignored or left out of the build is missed by its list.
//!
//! A row names tests as the test program lists them; the program is asked. What this program does not contain is named
//! by its file: `tests/codegen.rs::name` for a test there, `scripts/miri` for a file in which the row's word stands.
//! That a test does hold what its row says is for whoever reads it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What is held, and by which tests.
pub(crate) type Held = (&'static str, &'static [&'static str]);

/// The tests of this program by name, but for the ignored ones.
fn listed() -> BTreeSet<String> {
    let ask = |more: &[&str]| -> BTreeSet<String> {
        let exe = std::env::current_exe().expect("the test program has a name");
        let out = Command::new(exe).args(["--list", "--format", "terse"]).args(more).output().expect("it runs");
        assert!(out.status.success(), "the test program does not list its tests");
        let text = String::from_utf8(out.stdout).expect("names are text");
        text.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_string).collect()
    };
    let all = ask(&[]);
    assert!(!all.is_empty());
    all.difference(&ask(&["--ignored"])).cloned().collect()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == word)
}

/// What is wrong with `rows`, a line each.
fn missed(rows: &[Held], tests: &BTreeSet<String>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |f: &str| std::fs::read_to_string(root.join(f)).unwrap_or_default();
    let mut bad = Vec::new();
    for (what, by) in rows {
        if by.is_empty() {
            bad.push(format!("{what}: no test"));
        }
        for test in *by {
            let there = match test.split_once(".rs::") {
                Some((file, name)) => {
                    let text = read(&format!("{file}.rs"));
                    text.split("#[test]").skip(1).any(|t| t.trim_start().starts_with(&format!("fn {name}()")))
                }
                None if test.contains('/') => has_word(&read(test), what),
                None => tests.contains(*test),
            };
            if !there {
                bad.push(format!("{what}: there is no {test}"));
            }
        }
    }
    bad
}

/// Every test of `rows` is there, and their first words are `names`, in order.
pub(crate) fn assert_held(rows: &[Held], names: impl Iterator<Item = String>) {
    // The interpreter starts no processes.
    if cfg!(miri) {
        return;
    }
    assert_eq!(rows.iter().map(|r| r.0.to_string()).collect::<Vec<_>>(), names.collect::<Vec<_>>());
    let bad = missed(rows, &listed());
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
#[cfg_attr(miri, ignore = "starts a process")]
fn what_is_gone_is_missed() {
    let tests = listed();
    assert_eq!(
        missed(&[("L1", &["held::what_is_gone_is_missed", "scripts/miri"])], &tests),
        ["L1: there is no scripts/miri"]
    );
    let rows: [Held; 6] = [
        ("L17", &["scripts/miri", "tests/codegen.rs::names_are_what_they_were"]),
        ("L1", &[]),
        ("L1", &["held::what_is_gone"]),
        ("L1", &["held::an_ignored_one"]),
        ("L1", &["held::missed"]),
        ("L1", &["scripts/gone"]),
    ];
    assert_eq!(missed(&rows, &tests).len(), 6);
}

#[test]
#[ignore = "only there to be left out of the lists"]
fn an_ignored_one() {}
