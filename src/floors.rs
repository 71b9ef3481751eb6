// SPDX-License-Identifier: GPL-2.0-only
//! The floors, as data, and the one test that holds every file to them: a file imports its own floor and those below.
//!
//! `host` is at the side: anyone may import it, it imports nothing of the crate. `model` is at the side too: nobody
//! imports it. `held`, for tests, is imported by tests of any floor. What a floor may know is then said by its path.

/// Directories (or single files) below `src/`, bottom to top. `None`: at the side.
pub const FLOORS: &[(&str, Option<u32>)] = &[
    ("host", None),
    ("model", None),
    ("arch", Some(0)),
    ("cpu", Some(1)),
    ("sync", Some(2)),
    ("rcu", Some(3)),
    ("slab", Some(4)),
    ("maple_tree", Some(5)),
    ("mm", Some(6)),
    ("init", Some(6)),
    ("workload", Some(7)),
    ("trace", Some(7)),
    ("measure", Some(8)),
    ("check", Some(8)),
    ("fuzz", Some(8)),
    ("report", Some(9)),
    ("plot", Some(9)),
    ("cmd", Some(10)),
    ("main", Some(11)),
    ("lib", Some(11)),
    ("floors", Some(11)),
    ("held", None),
];

/// Why an import is not allowed, or `None` where it is. `from` and `to` are names of [`FLOORS`]; names that are not
/// modules of the crate's root (macros, re-exports) are nobody's floor.
pub fn crossing(from: &str, to: &str) -> Option<String> {
    let floor = |name: &str| FLOORS.iter().find(|(n, _)| *n == name).map(|(_, f)| *f);
    let from_floor = floor(from)?;
    let to_floor = floor(to)?;
    match (from_floor, to_floor) {
        _ if from == to => None,
        (_, None) if to == "host" && from != "host" => None,
        (_, None) if to == "model" => Some(format!("{from} imports model, which nobody may import")),
        (None, _) if from == "model" => None,
        (None, _) => Some(format!("{from} stands at the side and may import nothing of the crate, but imports {to}")),
        (Some(f), Some(t)) if t > f => Some(format!("{from} (floor {f}) imports {to} (floor {t})")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
        for e in std::fs::read_dir(dir).expect("src is there").flatten() {
            let p = e.path();
            if p.is_dir() {
                sources(&p, out);
            } else if p.extension().is_some_and(|e| e == "rs") {
                out.push(p);
            }
        }
    }

    /// Names after `crate::` in code: one, or those at the top level of a brace list.
    fn imports(code: &str) -> Vec<String> {
        let mut names = Vec::new();
        for rest in code.split("crate::").skip(1) {
            let Some(list) = rest.strip_prefix('{') else {
                names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
                continue;
            };
            let (mut depth, mut name, mut done) = (0, String::new(), false);
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        names.push(std::mem::take(&mut name));
                        done = false;
                    }
                    c if depth == 0 && !done && (c.is_alphanumeric() || c == '_') => name.push(c),
                    c if depth == 0 && !name.is_empty() && !c.is_whitespace() => done = true,
                    _ => {}
                }
            }
            names.push(name);
        }
        names.retain(|n| !n.is_empty());
        names
    }

    /// The statements of a file with their first lines, from 1, comments taken out. What stands under `#[cfg(test)]` is
    /// left out: the world and boot of a test may come from above, the code under test may not.
    fn statements(text: &str) -> Vec<(usize, String)> {
        let mut out: Vec<(usize, String)> = Vec::new();
        let (mut open, mut test_item) = (false, false);
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.trim() == "#[cfg(test)]" {
                test_item = true;
                continue;
            }
            if test_item && line.starts_with("mod ") && code.trim_end().ends_with('{') {
                break;
            }
            match out.last_mut() {
                Some((_, s)) if open => *s += code,
                _ => out.push((i + 1, code.to_string())),
            }
            // A `use` goes on to its semicolon; other code is looked at line by line.
            let last = out.last().map_or("", |(_, s)| s.trim());
            let is_use = last.starts_with("use ") || last.starts_with("pub use ") || last.starts_with("pub(");
            open = is_use && !last.ends_with([';', '{']) || last.contains("crate::{") && !last.ends_with(';');
            if test_item && !open {
                out.pop();
                test_item = code.trim_start().starts_with("#[");
            }
        }
        out
    }

    #[test]
    fn no_file_imports_a_floor_above_its_own() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        sources(&src, &mut files);
        assert!(files.len() > 20, "the walk found {} files only", files.len());
        let mut bad = Vec::new();
        for f in &files {
            let rel = f.strip_prefix(&src).expect("below src");
            let first = rel.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
            let from = first.trim_end_matches(".rs");
            if !FLOORS.iter().any(|(n, _)| *n == from) {
                bad.push(format!("src/{}: no floor is named {from}; give it one in floors.rs", rel.display()));
                continue;
            }
            let text = std::fs::read_to_string(f).expect("readable");
            for (line, code) in statements(&text) {
                for to in imports(&code) {
                    if let Some(why) = crossing(from, &to) {
                        bad.push(format!("src/{}:{line}: {why}", rel.display()));
                    }
                }
            }
        }
        assert!(bad.is_empty(), "imports across floors:\n{}", bad.join("\n"));
    }

    #[test]
    fn the_rule_itself() {
        assert_eq!(crossing("mm", "slab"), None);
        assert_eq!(crossing("slab", "slab"), None);
        assert!(crossing("slab", "mm").unwrap().contains("floor 4"));
        assert_eq!(crossing("arch", "host"), None);
        assert!(crossing("host", "arch").is_some());
        assert!(crossing("mm", "model").is_some());
        assert_eq!(crossing("model", "mm"), None);
        assert_eq!(imports("use crate::{mm::{x, y}, slab};"), ["mm", "slab"]);
        let text = "#[cfg(test)]\npub mod testing;\nuse crate::{\n    rcu,\n    mm::x,\n};\nlet a = crate::slab::b; // crate::init\n\
                    #[cfg(test)]\nuse crate::plot;\nuse crate::cmd;\n#[cfg(test)]\nmod tests {\n    use crate::report;\n}\n";
        let seen: Vec<_> =
            statements(text).into_iter().map(|(l, s)| (l, imports(&s))).filter(|s| !s.1.is_empty()).collect();
        let names = |n: &[&str]| n.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(seen, [(3, names(&["rcu", "mm"])), (7, names(&["slab"])), (10, names(&["cmd"]))]);
    }
}
