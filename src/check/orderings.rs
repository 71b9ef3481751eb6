// SPDX-License-Identifier: GPL-2.0-only
//! Whether docs/orderings.md is whole: each access stronger than relaxed, and each fence, of the protocols and of the locks
//! below them is a row there, or is passed by no case and named here; and each row is such an access still.
//!
//! Found in the text of the source, so that a line which no case passes is found too.

use super::audit::NOT_SHOWN;
use std::collections::BTreeMap;
use std::path::Path;

/// A line that no case of the audit passes.
struct NotPassed {
    file: &'static str,
    /// The line, or so much of it that there is no other.
    text: &'static str,
    why: &'static str,
    /// The test that stands for it: file below `src/`, name.
    test: (&'static str, &'static str),
}

const NOT_PASSED: &[NotPassed] = &[NotPassed {
    file: "sync/rwsem.rs",
    text: "owner | RWSEM_NONSPINNABLE, &mut owner, Full",
    why: "a hint among spinners that nothing relies on, set after more looks at the clock than a model has turns",
    test: ("model/rwsem.rs", "spinning_writers_exclude_each_other"),
}];

/// Files that the reference's table of orderings is about, or directories of them. Below `src/`.
const WHOLE: [&str; 8] = [
    "mm/vma_lock",
    "mm/mmap_lock.rs",
    "sync/rcuwait.rs",
    "sync/refcount.rs",
    "sync/rwsem.rs",
    "sync/rwsem_spin.rs",
    "sync/seqlock.rs",
    "slab/record.rs",
];

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What `call`, a method of an atomic word with these arguments, is called in the table; none: it is relaxed. An order that
/// is a parameter (`o`) is that of the strongest caller.
fn of_call(call: &str, arguments: &str) -> Option<&'static str> {
    let order = arguments.trim().trim_end_matches(',').rsplit([',', '(']).next().unwrap_or("").trim();
    Some(match (call, order) {
        ("load", "Acquire") => "load acquire",
        ("store", "Release") => "store release",
        ("load" | "store", _) => return None,
        (_, "Acquire" | "o") => "rmw acquire",
        (_, "Release") => "rmw release",
        (_, "Full") => "rmw full",
        _ => return None,
    })
}

const CALLS: [&str; 9] =
    ["load", "store", "swap", "cmpxchg", "try_cmpxchg", "fetch_add", "fetch_sub", "fetch_or", "fetch_and"];

/// Functions that order by their name.
const NAMED: [(&str, &str); 6] = [
    ("smp_mb::<", "smp_mb"),
    ("smp_rmb::<", "smp_rmb"),
    ("smp_wmb::<", "smp_wmb"),
    ("smp_cond_load_acquire(", "load acquire"),
    ("store_low_byte_release(", "rmw release"),
    // Of a slab's record.
    ("r.update(", "rmw full"),
];

/// The lines of a file's text with an order, without its tests: what each does.
fn ordered(text: &str) -> BTreeMap<u32, &'static str> {
    let text = text.split("\n#[cfg(test)]").next().unwrap_or("");
    let code: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect();
    let code = code.join("\n");
    let line = |at: usize| 1 + code[..at].matches('\n').count() as u32;
    let mut out = BTreeMap::new();
    for (what, op) in NAMED {
        out.extend(code.match_indices(what).map(|(at, _)| (line(at), op)));
    }
    for call in CALLS {
        for (at, found) in code.match_indices(&format!(".{call}(")) {
            let rest = &code[at + found.len()..];
            let mut depth = 1;
            let end = rest.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            if let Some(op) = end.and_then(|end| of_call(call, &rest[..end])) {
                out.insert(line(at), op);
            }
        }
    }
    out
}

/// The rows of the table: file, line, what it does, what is said.
fn rows() -> Vec<(String, u32, String, String)> {
    let table = include_str!("../../docs/orderings.md");
    let cells = table.lines().filter_map(|l| {
        let mut cells = l.strip_prefix("| ")?.strip_suffix(" |")?.splitn(3, " | ");
        let (file, line) = cells.next()?.split_once(':')?;
        Some((file.to_string(), line.parse().ok()?, cells.next()?.to_string(), cells.next()?.to_string()))
    });
    cells.collect()
}

fn files() -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    for name in WHOLE {
        if name.ends_with(".rs") {
            out.push(name.to_string());
            continue;
        }
        for f in std::fs::read_dir(src.join(name)).expect("a directory of the source") {
            out.push(format!("{name}/{}", f.expect("it can be read").file_name().to_string_lossy()));
        }
    }
    out
}

#[test]
fn every_order_has_a_row_or_a_test_of_its_own() {
    let rows = rows();
    let mut bad = Vec::new();
    let mut lines = 0;
    for file in files() {
        let text = source(&file);
        let of_file: Vec<_> = text.lines().collect();
        for (line, op) in ordered(&text) {
            lines += 1;
            let row = rows.iter().any(|r| r.0 == file && r.1 == line);
            let named = NOT_PASSED.iter().any(|n| n.file == file && of_file[line as usize - 1].contains(n.text));
            match (row, named) {
                (false, false) => bad.push(format!("{file}:{line}: {op}: neither in the table nor in NOT_PASSED")),
                (true, true) => bad.push(format!("{file}:{line}: {op}: in the table and in NOT_PASSED")),
                _ => {}
            }
        }
    }
    assert!(lines > 30, "{lines} lines with an order: they are not found");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn every_row_is_an_order() {
    let rows = rows();
    assert!(!rows.is_empty(), "no table");
    let bad: Vec<_> = rows
        .iter()
        .filter(|(file, line, op, _)| ordered(&source(file)).get(line) != Some(&op.as_str()))
        .map(|(file, line, op, _)| format!("{file}:{line} is no {op}"))
        .collect();
    assert!(bad.is_empty(), "faultline check --audit is to be run again:\n{}", bad.join("\n"));
}

/// What the table says of a line that nothing notices is what `NOT_SHOWN` says, which says it of no line that is noticed.
#[test]
fn every_reason_is_in_the_table() {
    let rows = rows();
    for r in NOT_SHOWN {
        let of = |row: &&(String, u32, String, String)| row.0 == r.file && row.2 == r.op && row.3.ends_with(r.why);
        assert_eq!(rows.iter().filter(of).count(), r.lines, "{} {}: {}", r.file, r.op, r.why);
    }
    let not_shown = rows.iter().filter(|r| r.3.starts_with("not shown to be needed")).count();
    assert_eq!(not_shown, NOT_SHOWN.iter().map(|r| r.lines).sum::<usize>());
}

#[test]
fn what_is_not_passed_is_there_and_has_a_test() {
    for n in NOT_PASSED {
        let text = source(n.file);
        let lines = ordered(&text);
        let found = lines.keys().filter(|l| text.lines().nth(**l as usize - 1).is_some_and(|t| t.contains(n.text)));
        assert_eq!(found.count(), 1, "{}: {}", n.file, n.text);
        assert!(source(n.test.0).contains(&format!("fn {}()", n.test.1)), "{}: {}: no such test", n.why, n.test.1);
    }
}

#[test]
fn orders_are_found_in_text() {
    let text = "a.load(Relaxed);\nsmp_wmb::<A>(); // smp_mb::<A>()\nif x.try_cmpxchg(f(1, 2), &mut old, Acquire) {\n\
                x.swap(\n  state,\n  Full,\n);\nx.fetch_sub(1, Release).wrapping_sub(1);\ny.store(0, Relaxed);\n\
                self.add(cpu, n, Acquire);\n#[cfg(test)]\nz.load(Acquire)";
    let found: Vec<_> = ordered(text).into_iter().collect();
    assert_eq!(found, [(2, "smp_wmb"), (3, "rmw acquire"), (4, "rmw full"), (8, "rmw release")]);
}
