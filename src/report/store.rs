// SPDX-License-Identifier: GPL-2.0-only
//! Files of records: appended to, never rewritten; one JSON object a line.
//!
//! The writer puts each line down with a single `write(2)` on an `O_APPEND` descriptor and syncs it before the next
//! sample starts, so that a run killed at any moment costs the sample it was taking and nothing else. A line torn by
//! such an end stays where it is: the writer starts on a fresh line and the reader reports it and goes on.
//!
//! Before a file is written to for the first time its first line must be a record of this tool; a file that is
//! something else is refused untouched.
//!
//! Two runs may append to one file at the same time; whether their samples belong together is for the reader of the
//! table to judge, and `run.id` tells them apart.

use crate::report::record::{SCHEMA, Sample};
use serde_json::Value;
use std::collections::HashSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What went wrong with a file of records; `Display` is one line that names the file.
#[derive(Debug)]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// Line in it, from 1, where one is to blame.
    pub line: Option<usize>,
    /// The sentence.
    pub what: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.what),
            None => write!(f, "{}: {}", self.path.display(), self.what),
        }
    }
}

impl std::error::Error for StoreError {}

/// What makes a sample the one that was asked for: a run that is resumed skips the cells whose key is on file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Variant.
    pub variant: String,
    /// Workload.
    pub workload: String,
    /// `thread` or `process`.
    pub mode: String,
    /// World.
    pub world: String,
    /// Threads.
    pub threads: u32,
    /// Trial.
    pub trial: u32,
    /// Seed of the run.
    pub seed: u64,
    /// Fingerprint of the host.
    pub host: String,
}

impl Key {
    /// Key of a sample on file.
    pub fn of(s: &Sample) -> Self {
        Self {
            variant: s.variant.clone(),
            workload: s.workload.clone(),
            mode: s.mode.clone(),
            world: s.world.clone(),
            threads: s.threads,
            trial: s.trial,
            seed: s.seed,
            host: s.host.fingerprint.clone(),
        }
    }
}

/// What a set of files held.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Samples, in the order of files and lines.
    pub samples: Vec<Sample>,
    /// What was passed over, one sentence each.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Keys of the samples that stand: an error row is not one, so that a resumed run measures it again.
    pub fn keys(&self) -> HashSet<Key> {
        self.samples.iter().filter(|s| s.errors.is_empty()).map(Key::of).collect()
    }
}

/// Reads all samples of all files.
///
/// # Errors
/// A file that cannot be read, a line that is no record, a field that is missing or of the wrong type, a schema newer
/// than this build. A line cut short by a killed run is a warning.
pub fn read_files<P: AsRef<Path>>(paths: &[P]) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded::default();
    for path in paths {
        read_file(path.as_ref(), &mut loaded)?;
    }
    Ok(loaded)
}

/// Some kilobytes a CPU are usual. Without a bound, a device that never ends a line would take all memory.
const LONGEST_LINE: u64 = 64 << 20;

fn read_file(path: &Path, loaded: &mut Loaded) -> Result<(), StoreError> {
    let fail = |line, what: String| StoreError { path: path.into(), line, what };
    let file = File::open(path).map_err(|e| fail(None, sentence("cannot open", &e)))?;
    let before = loaded.samples.len();
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let got = (&mut reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
            .map_err(|e| fail(Some(number), sentence("cannot read", &e)))?;
        if got == 0 {
            break;
        }
        if got as u64 == LONGEST_LINE {
            return Err(fail(Some(number), format!("not a record: a line of {} MiB or more", LONGEST_LINE >> 20)));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match parse(bytes.trim_ascii_end()) {
            Ok(Line::Sample(s)) => loaded.samples.push(*s),
            Ok(Line::Torn) => loaded
                .warnings
                .push(format!("{}:{number}: line cut short, as a killed run leaves it; passed over", path.display())),
            Ok(Line::Other(kind)) => {
                loaded.warnings.push(format!("{}:{number}: kind \"{kind}\" is not known; passed over", path.display()));
            }
            Err(what) => return Err(fail(Some(number), what)),
        }
    }
    if loaded.samples.len() == before {
        loaded.warnings.push(format!("{}: holds no sample", path.display()));
    }
    Ok(())
}

enum Line {
    Sample(Box<Sample>),
    Torn,
    Other(String),
}

fn parse(bytes: &[u8]) -> Result<Line, String> {
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        // Only an end in the middle of an object is the trace of a killed run; anything else is another file.
        Err(e) if e.is_eof() && looks_like_record(bytes) => return Ok(Line::Torn),
        Err(e) => return Err(format!("not a record: {e}")),
    };
    let Some(schema) = value.get("schema").and_then(Value::as_u64) else {
        return Err("not a record: field \"schema\" is missing or no number".into());
    };
    let Some(kind) = value.get("kind").and_then(Value::as_str) else {
        return Err("not a record: field \"kind\" is missing or no text".into());
    };
    check_schema(schema)?;
    if kind != "sample" {
        return Ok(Line::Other(kind.into()));
    }
    // From the text and not from the value, so that the error carries a column.
    serde_json::from_slice(bytes).map(Line::Sample).map_err(|e| blame(bytes, &e))
}

fn check_schema(schema: u64) -> Result<(), String> {
    if schema == 0 || schema > u64::from(SCHEMA) {
        return Err(format!(
            "schema {schema} is not known to this build (it reads 1 to {SCHEMA}): use a newer faultline"
        ));
    }
    Ok(())
}

/// serde names a missing field but not the field of a wrong type; that is the last key before the column.
fn blame(bytes: &[u8], e: &serde_json::Error) -> String {
    let text = e.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    if text.starts_with("missing field") {
        return text.into();
    }
    let seen = String::from_utf8_lossy(&bytes[..e.column().min(bytes.len())]);
    let key = seen.rfind("\":").and_then(|end| seen[..end].rfind('"').map(|start| seen[start + 1..end].to_string()));
    match key {
        Some(key) => format!("field \"{key}\": {text}"),
        None => text.into(),
    }
}

fn looks_like_record(bytes: &[u8]) -> bool {
    let trimmed = bytes.trim_ascii_start();
    let head = b"{\"schema\":";
    trimmed.starts_with(&head[..head.len().min(trimmed.len())])
}

/// Appends samples to one file.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: PathBuf,
    /// Whether the file ends in the middle of a line.
    torn: bool,
}

impl Appender {
    /// Opens `path` for appending, makes it (and its directories) where missing.
    ///
    /// # Errors
    /// A file whose first line is not a record of this tool, and what the system refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |line, what: String| StoreError { path: path.into(), line, what };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| fail(None, sentence("cannot make its directory", &e)))?;
        }
        let torn = match File::open(path) {
            Ok(file) if file.metadata().is_ok_and(|m| m.is_file()) => {
                inspect(file).map_err(|(l, what)| fail(l, what))?
            }
            // A pipe or a device is not read: it holds nothing that could be spoilt.
            Ok(_) => false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(fail(None, sentence("cannot open", &e))),
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|e| fail(None, sentence("cannot open for appending", &e)))?;
        Ok(Self { file, path: path.into(), torn })
    }

    /// Writes one sample and returns when it is on the disk.
    ///
    /// # Errors
    /// A full disk above all. The file may then end in a torn line; the next sample starts on a fresh one.
    pub fn append(&mut self, sample: &Sample) -> Result<(), StoreError> {
        let fail = |what: String| StoreError { path: self.path.clone(), line: None, what };
        let mut line = if self.torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut line, sample).map_err(|e| fail(format!("cannot put the sample in words: {e}")))?;
        line.push(b'\n');
        let written = loop {
            match self.file.write(&line) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match written {
            Ok(n) if n == line.len() => self.torn = false,
            Ok(n) => {
                self.torn = n > 0 || self.torn;
                let what =
                    format!("disk full? only {n} of {} bytes of the sample were written; it is lost", line.len());
                return Err(fail(what));
            }
            Err(e) => return Err(fail(sentence("the sample is lost, cannot write", &e))),
        }
        match self.file.sync_data() {
            Ok(()) => Ok(()),
            // Pipes and devices have nothing to sync.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Err(e) => Err(fail(sentence("cannot sync, the sample may be lost", &e))),
        }
    }
}

/// Whether the file ends inside a line; an error (with its line) when its first line is no record.
fn inspect(file: File) -> Result<bool, (Option<usize>, String)> {
    let read = |e: io::Error| (None, sentence("cannot read", &e));
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        // A foreign file may be one endless line: a record's own head is all that is needed to refuse it.
        if (&mut reader).take(1 << 20).read_until(b'\n', &mut bytes).map_err(read)? == 0 {
            break;
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let foreign = |why: &str| (Some(number), format!("foreign record file, not touched: {why}"));
        match serde_json::from_slice::<Value>(bytes.trim_ascii_end()) {
            Ok(v) if v.get("schema").is_some_and(Value::is_u64) && v.get("kind").is_some_and(Value::is_string) => {
                // No reader of this build could read back what it would append.
                check_schema(v["schema"].as_u64().unwrap_or(0)).map_err(|e| (Some(number), e + ", or another file"))?;
            }
            Ok(_) => return Err(foreign("its first line has no \"schema\" and \"kind\"")),
            Err(e) if e.is_eof() && looks_like_record(&bytes) => {}
            Err(_) => return Err(foreign("its first line is no record")),
        }
        break;
    }
    let mut file = reader.into_inner();
    if file.seek(SeekFrom::End(0)).map_err(read)? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1)).map_err(read)?;
    let mut last = [0];
    file.read_exact(&mut last).map_err(read)?;
    Ok(last[0] != b'\n')
}

fn sentence(what: &str, e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::StorageFull => format!("{what}: the disk is full"),
        _ => format!("{what}: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::synthetic::sample;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn refused(path: &Path) -> String {
        read_files(&[path]).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_is_appended_is_read_back() {
        let dir = dir();
        let path = dir.path().join("deep/er/records.jsonl");
        let mut out = Appender::open(&path).expect("makes the directories");
        let samples: Vec<_> = (0..3).map(|t| sample("v6.12", "brk1", 2, t, 1000.0)).collect();
        samples.iter().for_each(|s| out.append(s).expect("appends"));
        drop(out);
        Appender::open(&path).expect("is its own file").append(&samples[0]).expect("appends");
        let loaded = read_files(&[&path]).expect("reads");
        assert_eq!(loaded.samples[..3], samples[..]);
        assert_eq!(loaded.samples.len(), 4);
        assert!(loaded.warnings.is_empty());
        assert_eq!(loaded.keys().len(), 3);
    }

    #[test]
    fn an_error_row_is_measured_again() {
        let mut s = sample("v6.12", "brk1", 2, 0, 1000.0);
        s.errors.push("allocations != frees + live".into());
        let loaded = Loaded { samples: vec![s], warnings: vec![] };
        assert!(loaded.keys().is_empty());
    }

    #[test]
    fn a_torn_line_is_passed_over_and_the_next_starts_fresh() {
        let dir = dir();
        let path = dir.path().join("r.jsonl");
        let s = sample("v6.12", "brk1", 2, 0, 1000.0);
        let whole = serde_json::to_string(&s).expect("serialises");
        for cut in [1, 5, 12, 40, whole.len() - 1] {
            std::fs::write(&path, format!("{whole}\n{}", &whole[..cut])).expect("writes");
            let loaded = read_files(&[&path]).expect("a torn end is no error");
            assert_eq!((loaded.samples.len(), loaded.warnings.len()), (1, 1), "cut at {cut}");
            assert!(loaded.warnings[0].contains("r.jsonl:2: line cut short"));
            Appender::open(&path).expect("opens").append(&s).expect("appends");
            let loaded = read_files(&[&path]).expect("a torn middle is no error");
            assert_eq!((loaded.samples.len(), loaded.warnings.len()), (2, 1), "cut at {cut}");
        }
        // The very first line torn, and a whole line that only lacks its end.
        std::fs::write(&path, &whole[..30]).expect("writes");
        Appender::open(&path).expect("opens").append(&s).expect("appends");
        assert_eq!(read_files(&[&path]).expect("reads").samples.len(), 1);
        std::fs::write(&path, &whole).expect("writes");
        Appender::open(&path).expect("opens").append(&s).expect("appends");
        assert_eq!(read_files(&[&path]).expect("reads").samples.len(), 2);
    }

    #[test]
    fn a_foreign_file_is_refused_and_untouched() {
        let dir = dir();
        let path = dir.path().join("notes");
        for text in
            ["\n\nshopping list\n", "{\"a\":1}\n", "[1,2]\n", "{\"schema\":\"x\",\"kind\":\"sample\"}\n", "{", "7"]
        {
            std::fs::write(&path, text).expect("writes");
            let got = Appender::open(&path).map(|_| ()).map_err(|e| e.to_string());
            let foreign = got.as_ref().is_err_and(|e| e.contains("foreign record file"));
            // A lone brace is how a record starts; it may be the first byte of a killed run.
            assert!(foreign || (text == "{" && got.is_ok()), "{text:?}: {got:?}");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), text);
        }
        std::fs::write(&path, "\n").expect("writes");
        assert!(Appender::open(&path).is_ok(), "an empty file is anybody's");
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let dir = dir();
        let path = dir.path().join("r.jsonl");
        let s = serde_json::to_value(sample("v6.12", "brk1", 2, 0, 1000.0)).expect("serialises");
        let with = |edit: &dyn Fn(&mut Value)| {
            let mut bad = s.clone();
            edit(&mut bad);
            std::fs::write(&path, format!("{s}\n{bad}\n")).expect("writes");
            refused(&path)
        };
        let got = with(&|v| drop(v.as_object_mut().expect("an object").remove("trial")));
        assert!(got.contains("r.jsonl:2: missing field `trial`"), "{got}");
        let got = with(&|v| v["threads"] = "two".into());
        assert!(got.contains("r.jsonl:2: field \"threads\": invalid type"), "{got}");
        let got = with(&|v| v["schema"] = 99.into());
        assert!(got.contains("r.jsonl:2: schema 99 is not known"), "{got}");
        let got = with(&|v| v["schema"] = 0.into());
        assert!(got.contains("schema 0 is not known"), "{got}");
        std::fs::write(&path, format!("{s}\nnoise\n")).expect("writes");
        assert!(refused(&path).contains("r.jsonl:2: not a record"));
        // Never ends a line; without a bound this takes all memory.
        assert_eq!(refused(Path::new("/dev/zero")), "/dev/zero:1: not a record: a line of 64 MiB or more");
        std::fs::write(&path, "{\"schema\":99,\"kind\":\"sample\"}\n").expect("writes");
        let got = Appender::open(&path).map(|_| ()).expect_err("could not be read back").to_string();
        assert!(got.contains("r.jsonl:1: schema 99 is not known"), "{got}");
        assert!(refused(&dir.path().join("absent")).contains("absent: cannot open"));
    }

    #[test]
    fn other_kinds_are_named_and_passed_over() {
        let dir = dir();
        let path = dir.path().join("r.jsonl");
        std::fs::write(&path, "{\"schema\":1,\"kind\":\"verdict\"}\n").expect("writes");
        let loaded = read_files(&[&path]).expect("reads");
        assert!(loaded.samples.is_empty() && loaded.warnings[0].contains("kind \"verdict\""));
        assert!(Appender::open(&path).is_ok());
    }

    #[test]
    fn a_full_disk_is_one_clear_line() {
        let mut out = Appender::open(Path::new("/dev/full")).expect("opens");
        let got = out.append(&sample("v6.12", "brk1", 2, 0, 1000.0)).expect_err("is full").to_string();
        assert_eq!(got, "/dev/full: the sample is lost, cannot write: the disk is full");
        assert!(Appender::open(Path::new("/dev/null")).expect("opens").append(&sample("a", "b", 1, 0, 1.0)).is_ok());
    }
}
