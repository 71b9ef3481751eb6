// SPDX-License-Identifier: GPL-2.0-only
//! Stacked bars, a panel a workload, a group of bars a thread count, a numbered bar a variant.
//!
//! Drawn as rectangles one by one: the histogram of plotters puts its bars down in hash order, which differs each run.

use super::Data;
use super::common::{Axes, Entry, chart, color, oops, page, si, text};
use plotters::prelude::*;

/// Bars of one workload.
pub struct Panel {
    /// Workload.
    pub title: String,
    /// By thread count: for each variant of the block the height of each layer, or nothing where it was not measured.
    pub groups: Vec<(u32, Vec<Option<Vec<f64>>>)>,
}

/// Panels of rows of (panel, threads, variant, height of each layer), which come sorted by panel and threads; rows of the
/// same bar add up.
pub fn panels<'a>(variants: &[String], rows: impl IntoIterator<Item = (String, u32, &'a str, Vec<f64>)>) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for (title, threads, variant, heights) in rows {
        let Some(v) = variants.iter().position(|x| x == variant) else { continue };
        if panels.last().is_none_or(|p| p.title != title) {
            panels.push(Panel { title, groups: Vec::new() });
        }
        let groups = &mut panels.last_mut().expect("was just pushed").groups;
        if groups.last().is_none_or(|g| g.0 != threads) {
            groups.push((threads, vec![None; variants.len()]));
        }
        let bar = groups.last_mut().expect("was just pushed").1[v].get_or_insert_with(|| vec![0.0; heights.len()]);
        for (sum, h) in bar.iter_mut().zip(heights) {
            *sum += h;
        }
    }
    panels
}

/// Text of a figure.
pub struct Words<'a> {
    /// Title of the page.
    pub title: &'a str,
    /// Name and unit of y.
    pub y: &'a str,
    /// Note under the panels.
    pub note: &'a str,
}

/// The figure; `layers` from the bottom up.
pub fn draw(data: &Data, words: &Words, layers: &[String], panels: &[Panel]) -> Result<String, String> {
    let b = data.block;
    let layer = |(i, name): (usize, &String)| Entry { name: name.clone(), color: layer_color(i), shape: None };
    let entries: Vec<Entry> = layers.iter().enumerate().map(layer).collect();
    let numbers: Vec<String> = (1..)
        .zip(&b.variants)
        .map(|(i, v)| format!("{i} = {v}{}", if b.busted.contains(v) { " (busted)" } else { "" }))
        .collect();
    let note = format!("Bars: {}. {}", numbers.join(", "), words.note);
    page(data, words.title, &note, &entries, panels.len(), |areas, _| {
        for (panel, area) in panels.iter().zip(areas) {
            one(area, words, panel, b.variants.len())?;
        }
        Ok(())
    })
}

/// The palette without black, whose place in a stack would look like a hole.
fn layer_color(i: usize) -> RGBColor {
    match i {
        0..7 => color(i + 1),
        7 => RGBColor(150, 150, 150),
        _ => RGBColor(80, 80, 80),
    }
}

fn one(area: &super::common::Area, words: &Words, panel: &Panel, variants: usize) -> Result<(), String> {
    let bars = || panel.groups.iter().flat_map(|g| &g.1).flatten();
    let top = bars().map(|b| b.iter().sum()).fold(0.0, f64::max);
    let threads: Vec<u32> = panel.groups.iter().map(|g| g.0).collect();
    let tick = |x: f64| threads.get(x.round() as usize).map_or(String::new(), u32::to_string);
    let axes = Axes {
        title: &panel.title,
        x: "threads",
        y: words.y,
        ticks: Some((0..threads.len()).map(|i| i as f64).collect()),
        tick: &tick,
        value: &si,
    };
    let top = if top > 0.0 { top * 1.12 } else { 1.0 };
    let mut chart = chart(area, &axes, (-0.5, threads.len() as f64 - 0.5), (0.0, top))?;
    let wide = 0.84 / variants as f64;
    let base = area.get_base_pixel();
    for (g, (_, bars)) in panel.groups.iter().enumerate() {
        for (v, bar) in bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let left = g as f64 - 0.42 + wide * v as f64;
            let mut foot = 0.0;
            for (i, height) in bar.iter().enumerate().filter(|(_, h)| **h > 0.0) {
                let corners = [(left + 0.06 * wide, foot), (left + 0.94 * wide, foot + height)];
                chart.draw_series([Rectangle::new(corners, layer_color(i).filled())]).map_err(oops)?;
                foot += height;
            }
            let (x, y) = chart.backend_coord(&(left + wide / 2.0, foot));
            let at = (x - base.0 - 3, y - base.1 - 14);
            area.draw(&Text::new((v + 1).to_string(), at, text(11))).map_err(oops)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_bar_add_up_and_what_was_not_measured_has_none() {
        let row =
            |title: &str, threads, variant, heights: [f64; 2]| (title.to_string(), threads, variant, heights.into());
        let rows = [
            row("one", 1, "b", [1.0, 0.0]),
            row("one", 1, "b", [0.0, 2.0]),
            row("one", 2, "a", [3.0, 0.0]),
            row("two", 2, "a", [4.0, 0.0]),
            row("two", 2, "unknown", [9.0, 9.0]),
        ];
        let p = panels(&["a".into(), "b".into()], rows);
        assert_eq!(p.iter().map(|p| p.title.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(p[0].groups, [(1, vec![None, Some(vec![1.0, 2.0])]), (2, vec![Some(vec![3.0, 0.0]), None])]);
        assert_eq!(p[1].groups, [(2, vec![Some(vec![4.0, 0.0]), None])]);
    }
}
