// SPDX-License-Identifier: GPL-2.0-only
//! Figures: one a file, drawn from records alone.
//!
//! SVG comes from plotters; PNG is rendered from that SVG with an embedded font, so that no machine's fonts matter. The
//! same records give the same bytes. A figure without data is not drawn, and the reason is handed back.
//!
//! A new figure is one file and one line in `FIGURES`.

mod backlog;
mod common;
mod endings;
mod latency;
mod lines;
mod ratio;
mod retries;
mod reuse;
mod stacked;
mod throughput;
mod wait_lengths;
mod waits;
mod wakes;

use crate::report::compare::{Block, Comparison, Options, compare};
use crate::report::record::Sample;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// File format of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Vector.
    Svg,
    /// Pixels, from the same SVG.
    Png,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "svg" => Ok(Self::Svg),
            "png" => Ok(Self::Png),
            _ => Err(format!("format \"{s}\" is not known; there are svg and png")),
        }
    }
}

/// What a figure is drawn from.
pub(crate) struct Data<'a> {
    comparison: &'a Comparison,
    block: &'a Block,
    /// Samples of the block without errors.
    samples: Vec<&'a Sample>,
    /// All samples, for a figure that sets blocks against each other.
    all: &'a [Sample],
}

/// A figure as SVG, or why there is none.
type Draw = fn(&Data) -> Result<String, String>;

/// Name and maker of every figure.
pub(crate) const FIGURES: &[(&str, Draw)] = &[
    ("throughput", throughput::draw),
    ("ratio", ratio::draw),
    ("endings", endings::draw),
    ("retries", retries::draw),
    ("waits", waits::draw),
    ("wait-lengths", wait_lengths::draw),
    ("wakes", wakes::draw),
    ("lines", lines::draw),
    ("backlog", backlog::draw),
    ("reuse", reuse::draw),
    ("latency", latency::draw),
];

/// What [`render_all`] did.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// Files written.
    pub files: Vec<PathBuf>,
    /// Figures that were not drawn, each with the reason.
    pub skipped: Vec<String>,
}

/// Draws every figure of every block into `out_dir` (made where missing). `baseline`: the variant that ratios are taken
/// against; `None`: `v6.12` where there are samples of it, else the first by name.
///
/// # Errors
/// No samples, an unknown baseline, and what the file system refuses.
pub fn render_all(
    samples: &[Sample],
    baseline: Option<&str>,
    out_dir: &Path,
    formats: &[Format],
) -> Result<Rendered, String> {
    let first = || samples.iter().map(|s| s.variant.as_str()).min();
    let oldest = || samples.iter().map(|s| s.variant.as_str()).find(|v| *v == "v6.12");
    let baseline = baseline.or_else(oldest).or_else(first).ok_or("no samples to draw")?;
    let comparison = compare(samples, &Options::new(baseline))?;
    std::fs::create_dir_all(out_dir).map_err(|e| format!("{}: {e}", out_dir.display()))?;
    let mut done = Rendered::default();
    let mut stems = std::collections::BTreeMap::<String, u32>::new();
    for block in &comparison.blocks {
        let data = Data { comparison: &comparison, block, samples: of_block(samples, block), all: samples };
        let stem = slug(&format!("{}-{}-{}", block.world, block.mode, block.host.name));
        let again = stems.entry(stem.clone()).and_modify(|n| *n += 1).or_insert(1);
        let stem = if *again > 1 { format!("{stem}-{again}") } else { stem };
        for (name, draw) in FIGURES {
            let svg = match draw(&data) {
                Ok(svg) => svg,
                Err(why) => {
                    done.skipped.push(format!("{name}-{stem}: {why}"));
                    continue;
                }
            };
            for format in formats {
                let (ending, bytes) = match format {
                    Format::Svg => ("svg", svg.clone().into_bytes()),
                    Format::Png => ("png", common::png(&svg)?),
                };
                let path = out_dir.join(format!("{name}-{stem}.{ending}"));
                std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
                done.files.push(path);
            }
        }
    }
    Ok(done)
}

fn of_block<'a>(samples: &'a [Sample], block: &Block) -> Vec<&'a Sample> {
    let same = |s: &&Sample| {
        s.errors.is_empty()
            && (&s.world, &s.mode, &s.host.fingerprint) == (&block.world, &block.mode, &block.host.fingerprint)
            && format!("{} {}", s.tool, s.commit) == block.tool
            && block.hidden.iter().all(|(k, v)| s.kconfig.get(k).map_or(v == "not set", |x| x == v))
    };
    samples.iter().filter(same).collect()
}

fn slug(s: &str) -> String {
    s.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::synthetic::{matrix, sample};

    fn both_worlds() -> Vec<Sample> {
        [matrix("native"), matrix("sim")].concat()
    }

    #[test]
    fn every_figure_is_drawn_and_the_same_bytes_come_twice() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let samples = both_worlds();
        let [a, b] =
            ["a", "b"].map(|d| render_all(&samples, None, &dir.path().join(d), &[Format::Svg]).expect("draws"));
        assert_eq!(a.files.len(), 10 + 11, "{:?}", a.skipped);
        assert_eq!(a.skipped.len(), 1);
        assert!(a.skipped[0].starts_with("lines-native-thread-testbox: "), "{:?}", a.skipped);
        for (a, b) in a.files.iter().zip(&b.files) {
            let text = std::fs::read_to_string(a).expect("reads");
            assert_eq!(text, std::fs::read_to_string(b).expect("reads"));
            assert!(text.contains("testbox") && text.contains("0123456789ab"));
            // Of kernels, not of variants.
            assert!(
                text.contains("busted") || a.file_name().is_some_and(|n| n.to_string_lossy().starts_with("latency"))
            );
        }
    }

    #[test]
    fn png_is_an_image_with_letters_in_it() {
        let text = |t: &str| {
            let svg = format!(
                "<svg width=\"200\" height=\"40\" xmlns=\"http://www.w3.org/2000/svg\"><rect width=\"200\" height=\"40\" \
                 fill=\"white\"/><text x=\"5\" y=\"25\" font-family=\"sans-serif\" font-size=\"20\">{t}</text></svg>"
            );
            common::png(&svg).expect("renders")
        };
        assert!(text("").starts_with(b"\x89PNG"));
        assert_ne!(text("faults"), text(""), "the font was not found");
        assert_eq!(text("faults"), text("faults"));
    }

    #[test]
    fn one_sample_and_empty_fields_do_not_panic() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut s = sample("a", "brk1", 1, 0, 1000.0);
        s.counters.clear();
        let done = render_all(&[s.clone()], None, dir.path(), &[Format::Svg]).expect("draws");
        assert_eq!((done.files.len(), done.skipped.len()), (1, 10), "{done:?}");
        s.operations = 0;
        s.per_thread.clear();
        assert!(render_all(&[s], None, dir.path(), &[Format::Svg]).is_ok());
        assert!(render_all(&[], None, dir.path(), &[Format::Svg]).is_err());
    }

    #[test]
    fn show_for_the_eye() {
        if let Ok(path) = std::env::var("FAULTLINE_SHOW") {
            render_all(&both_worlds(), None, Path::new(&path), &[Format::Png]).expect("draws");
        }
    }
}
