// SPDX-License-Identifier: GPL-2.0-only
//! The second opinion: the protocols reduced to litmus tests in the kernel's own memory model (`tests/litmus/`), answered by
//! herd7 (`scripts/litmus`, which compares each answer with the one committed in `answers.tsv`).
//!
//! herd7 is on few machines, so what runs everywhere is this: that a protocol which is reduced is reduced in every
//! scenario about order, that no test is without an answer, and that the answers say what the protocols declare
//! (`VmaLock::CLAIMS`), which the model checker holds against their code. `docs/litmus.md` has the table, and it is
//! this one.
//!
//! It cannot tell: whether a litmus test is a fair reduction of the code. Those are read side by side.

use crate::mm::vma_lock::{Claim, PROTOCOLS, Protocol, SCENARIOS};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Scenarios that are about order, in the order of the table's columns.
const COLUMNS: [&str; 5] = ["T0", "T1", "T2", "T7", "T8"];

/// The others, and why they have no litmus test.
const NOT_HERE: [(&str, &str); 5] = [
    ("T3", "fails where every load returns the newest value; the steps of three lives are too many for an enumeration"),
    ("T4", "as T3"),
    ("T5", "as T3"),
    ("T6", "memory used after its free; the model has no freeing"),
    ("T9", "numbers that come again; the model has no loops"),
];

/// Where the two engines differ: protocol, scenario, why. Nowhere, so far.
const DIFFERS: [(&str, &str, &str); 0] = [];

#[derive(Debug)]
struct Row {
    /// Without `.litmus`.
    name: String,
    kind: String,
    protocols: Vec<String>,
    scenario: String,
    answer: String,
    /// Of the file that was answered.
    crc32: String,
    note: String,
}

fn dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/litmus"))
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(dir().join("answers.tsv")).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("file\tkind\tprotocols\tscenario\tanswer\tcrc32\tnote"));
    let row = |l: &str| {
        let f: Vec<_> = l.split('\t').collect();
        let [file, kind, protocols, scenario, answer, crc32, note] = f[..] else { panic!("seven fields: {l}") };
        Row {
            name: file.strip_suffix(".litmus").unwrap_or_else(|| panic!("{file}")).into(),
            kind: kind.into(),
            protocols: protocols.split(',').filter(|p| *p != "-").map(str::to_string).collect(),
            scenario: scenario.into(),
            answer: answer.into(),
            crc32: crc32.into(),
            note: note.into(),
        }
    };
    lines.map(row).collect()
}

/// The test that stands for a protocol in a scenario.
fn standing_for<'a>(rows: &'a [Row], p: &Protocol, scenario: &str) -> Option<&'a Row> {
    let mut of = rows.iter().filter(|r| {
        matches!(r.kind.as_str(), "claim" | "impossible")
            && r.scenario == scenario
            && r.protocols.iter().any(|n| n == p.name)
    });
    let first = of.next();
    assert!(of.next().is_none(), "{} {scenario}: two tests", p.name);
    first
}

/// Protocols of the list that are reduced, at least: one that is lost would be no longer looked at. A new one is added to the
/// list first and may be reduced later; `docs/litmus.md` then lacks its line.
const REDUCED: usize = 14;

fn reduced(rows: &[Row]) -> Vec<&'static Protocol> {
    let (reduced, not): (Vec<&Protocol>, Vec<&Protocol>) = PROTOCOLS
        .iter()
        .partition(|p| rows.iter().any(|r| r.kind != "twin" && r.protocols.iter().any(|n| n == p.name)));
    not.iter().for_each(|p| println!("{}: not reduced to litmus tests yet", p.name));
    assert!(reduced.len() >= REDUCED, "{} protocols are reduced, and were {REDUCED}", reduced.len());
    reduced
}

fn claim(p: &Protocol, scenario: &str) -> Claim {
    p.claims[SCENARIOS.iter().position(|s| s.0 == scenario).expect("a scenario")]
}

#[test]
fn every_test_has_an_answer_and_every_answer_a_test() {
    let mut left: BTreeSet<String> = fs::read_dir(dir())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter_map(|n| n.strip_suffix(".litmus").map(str::to_string))
        .collect();
    let rows = rows();
    for r in &rows {
        assert!(left.remove(&r.name), "{}: no such file, or named twice", r.name);
        let text = fs::read_to_string(dir().join(format!("{}.litmus", r.name))).unwrap();
        assert!(text.starts_with(&format!("C {}\n", r.name)), "{}: has another name inside", r.name);
        assert!(text.contains(&format!("\n * Answer: {}\n", r.answer)), "{}: says another answer", r.name);
        let mut crc = flate2::Crc::new();
        crc.update(text.as_bytes());
        assert_eq!(
            format!("{:08x}", crc.sum()),
            r.crc32,
            "{0}: changed since herd7 answered: scripts/litmus {0}",
            r.name
        );
        assert!(matches!(r.answer.as_str(), "Never" | "Sometimes"), "{r:?}");
        assert!(matches!(r.kind.as_str(), "claim" | "impossible" | "edge" | "twin" | "port"), "{r:?}");
        for p in &r.protocols {
            assert!(PROTOCOLS.iter().any(|q| q.name == p), "{}: there is no protocol {p}", r.name);
        }
        if r.kind == "twin" {
            let whole = r.name.split_once('+').unwrap_or_else(|| panic!("{}: a twin of what?", r.name)).0;
            let whole = rows.iter().find(|w| w.name == whole).unwrap_or_else(|| panic!("no {whole}"));
            assert_eq!(whole.answer, "Never", "{}: a twin of what is broken already", r.name);
            assert!(!r.note.is_empty(), "{}: what is missing?", r.name);
            // An order whose absence changes nothing says why.
            assert!(r.answer == "Sometimes" || r.note.contains("not needed"), "{}: {}", r.name, r.note);
        }
    }
    assert_eq!(left, BTreeSet::new(), "without an answer");
}

#[test]
fn the_answers_are_what_the_protocols_declare() {
    let rows = rows();
    for (id, _) in SCENARIOS {
        assert!(COLUMNS.contains(&id) != NOT_HERE.iter().any(|n| n.0 == id), "{id}: a column or a reason");
    }
    for p in reduced(&rows) {
        for id in COLUMNS {
            let claim = claim(p, id);
            if claim == Claim::Impossible {
                // Once for all scenarios of reuse.
                let r = standing_for(&rows, p, "T1").unwrap_or_else(|| panic!("{} {id}: no test", p.name));
                assert_eq!((r.kind.as_str(), r.answer.as_str()), ("impossible", "Never"), "{} {id}", p.name);
                continue;
            }
            let r = standing_for(&rows, p, id).unwrap_or_else(|| panic!("{} {id}: no test", p.name));
            assert_eq!(r.kind, "claim", "{} {id}", p.name);
            let differs = DIFFERS.iter().any(|d| (d.0, d.1) == (p.name, id));
            assert_eq!((r.answer == "Never") == (claim == Claim::Holds), !differs, "{} {id}: {r:?}", p.name);
        }
    }
}

/// The line of `docs/litmus.md` for a protocol.
fn line(rows: &[Row], p: &Protocol) -> String {
    let cells: Vec<String> = COLUMNS
        .iter()
        .map(|id| match claim(p, id) {
            Claim::Impossible => "- / impossible".into(),
            c => {
                let r = standing_for(rows, p, id).expect("checked in another test");
                format!("{} / {}", r.answer, c.name())
            }
        })
        .collect();
    format!("| `{}` | {} |", p.name, cells.join(" | "))
}

#[test]
fn the_document_is_the_table() {
    let doc = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/litmus.md")).unwrap();
    let rows = rows();
    for p in reduced(&rows) {
        let line = line(&rows, p);
        println!("{line}");
        assert!(doc.contains(&line), "docs/litmus.md lacks: {line}");
    }
    for r in &rows {
        assert!(doc.contains(&format!("`{}`", r.name)), "docs/litmus.md does not name {}", r.name);
        if r.kind == "twin" || r.kind == "port" {
            let line = format!("| `{}` | {} |", r.name, r.answer);
            assert!(doc.contains(&line), "docs/litmus.md lacks: {line}");
        }
    }
    for (id, _) in NOT_HERE {
        assert!(doc.contains(&format!("{id}:")), "docs/litmus.md does not say why {id} has no test");
    }
}
