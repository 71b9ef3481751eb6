// SPDX-License-Identifier: GPL-2.0-only
//! What all figures share: the page, colours and shapes, legend, caption, numbers on axes, PNG.
//!
//! Variants are told apart by colour (Okabe and Ito's palette, safe for the colour-blind) and by the shape of their
//! marks or their number, never by colour alone. Text is placed by estimate, with widths of DejaVu Sans.

use super::Data;
use crate::report::compare::Block;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Okabe and Ito's palette, black first: the baseline's.
pub const PALETTE: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(240, 228, 66),
];

/// Colour of the axes' lines.
const GRID: RGBColor = RGBColor(225, 225, 225);

/// Width of a page, pixels.
pub const WIDTH: u32 = 1200;
const PANEL_HEIGHT: u32 = 340;
const TITLE_HEIGHT: u32 = 46;
const LINE_HEIGHT: u32 = 20;

/// A drawing area of the SVG backend.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A panel with numbers on both axes.
pub type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Any failure of plotters, as text.
pub fn oops(e: impl std::fmt::Display) -> String {
    format!("cannot draw: {e}")
}

/// Text style.
pub fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// Estimated width of text in DejaVu Sans, pixels.
fn text_width(s: &str, size: u32) -> i32 {
    (s.chars().count() as f64 * f64::from(size) * 0.58) as i32
}

/// One entry of a legend.
pub struct Entry {
    /// Text.
    pub name: String,
    /// Colour.
    pub color: RGBColor,
    /// Shape of the mark; `None`: a filled box.
    pub shape: Option<usize>,
}

/// Colour of entry `i`.
pub fn color(i: usize) -> RGBColor {
    PALETTE[i % PALETTE.len()]
}

/// Outline of shape `i` around the origin: circle, square, triangles, diamond, hourglass; then again.
pub fn shape(i: usize) -> Vec<(i32, i32)> {
    match i % 6 {
        0 => vec![
            (5, 0),
            (4, 3),
            (3, 4),
            (0, 5),
            (-3, 4),
            (-4, 3),
            (-5, 0),
            (-4, -3),
            (-3, -4),
            (0, -5),
            (3, -4),
            (4, -3),
        ],
        1 => vec![(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2 => vec![(0, -6), (6, 5), (-6, 5)],
        3 => vec![(0, -6), (6, 0), (0, 6), (-6, 0)],
        4 => vec![(0, 6), (6, -5), (-6, -5)],
        _ => vec![(-5, -5), (5, -5), (-5, 5), (5, 5)],
    }
}

/// Entries for the variants of a block, busted ones named so.
pub fn variants(block: &Block) -> Vec<Entry> {
    let name = |v: &String| if block.busted.contains(v) { format!("{v} (busted)") } else { v.clone() };
    (0..).zip(&block.variants).map(|(i, v)| Entry { name: name(v), color: color(i), shape: Some(i) }).collect()
}

/// Host, samples, world, commit: under every figure.
fn caption(data: &Data) -> String {
    let b = data.block;
    let n = if b.n.0 == b.n.1 { b.n.0.to_string() } else { format!("{} to {}", b.n.0, b.n.1) };
    let hidden: String = b.hidden.iter().map(|(k, v)| format!(", {k}={v}")).collect();
    format!(
        "host {} ({}, {} CPUs, nodes: {}); world {}, mode {}; n={n} a point; faultline {}{hidden}",
        b.host.name, b.host.cpu_model, b.host.cpus, b.host.nodes, b.world, b.mode, b.tool
    )
}

/// Rows of legend entries that fit the page.
fn legend_rows(entries: &[Entry]) -> Vec<Vec<(i32, &Entry)>> {
    let (mut rows, mut x) = (vec![Vec::new()], 20);
    for e in entries {
        let wide = 30 + text_width(&e.name, 14) + 18;
        if x + wide > WIDTH as i32 && x > 20 {
            rows.push(Vec::new());
            x = 20;
        }
        rows.last_mut().expect("starts with one").push((x, e));
        x += wide;
    }
    rows
}

/// Breaks text to the page's width.
fn fold(s: &str, size: u32) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in s.split(' ') {
        let last = lines.last_mut().expect("starts with one");
        if !last.is_empty() && text_width(last, size) + text_width(word, size) > WIDTH as i32 - 50 {
            lines.push(word.into());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// A page of `panels` panels in two columns (one when there is one) with title, legend, a note and the caption; `draw`
/// gets the areas of the panels in reading order.
pub fn page(
    data: &Data,
    title: &str,
    note: &str,
    entries: &[Entry],
    panels: usize,
    draw: impl FnOnce(&[Area], &Area) -> Result<(), String>,
) -> Result<String, String> {
    let columns = panels.clamp(1, 2);
    let rows = panels.div_ceil(columns);
    let legend = legend_rows(entries);
    let mut foot = fold(note, 13);
    foot.extend(fold(&caption(data), 13));
    let top = TITLE_HEIGHT + legend.len() as u32 * LINE_HEIGHT + 8;
    let body = rows as u32 * PANEL_HEIGHT;
    let height = top + body + foot.len() as u32 * LINE_HEIGHT + 14;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(oops)?;
        root.draw(&Text::new(title.to_string(), (20, 14), text(20))).map_err(oops)?;
        for (row, y) in legend.iter().zip((TITLE_HEIGHT as i32..).step_by(LINE_HEIGHT as usize)) {
            for (x, e) in row {
                let fill = e.color.filled();
                let outline = e.shape.map_or(vec![(-8, -6), (8, -6), (8, 6), (-8, 6)], shape);
                root.draw(&(EmptyElement::at((x + 12, y + 8)) + Polygon::new(outline, fill))).map_err(oops)?;
                root.draw(&Text::new(e.name.clone(), (x + 26, y + 1), text(14))).map_err(oops)?;
            }
        }
        for (line, y) in foot.iter().zip(((top + body + 4) as i32..).step_by(LINE_HEIGHT as usize)) {
            root.draw(&Text::new(line.clone(), (20, y), text(13))).map_err(oops)?;
        }
        let (_, rest) = root.split_vertically(top);
        let (middle, _) = rest.split_vertically(body);
        draw(&middle.split_evenly((rows, columns))[..panels], &root)?;
        root.present().map_err(oops)?;
    }
    Ok(svg)
}

/// Names of the axes and what is written at their ticks.
pub struct Axes<'a> {
    /// Heading of the panel.
    pub title: &'a str,
    /// Name and unit of x.
    pub x: &'a str,
    /// Name and unit of y.
    pub y: &'a str,
    /// Positions of ticks on x; `None`: chosen by range.
    pub ticks: Option<Vec<f64>>,
    /// Text at a tick of x.
    pub tick: &'a dyn Fn(f64) -> String,
    /// Text at a tick of y.
    pub value: &'a dyn Fn(f64) -> String,
}

/// A panel with its mesh drawn; returns the chart to draw into.
pub fn chart<'a, 'b>(area: &'a Area<'b>, axes: &Axes, x: (f64, f64), y: (f64, f64)) -> Result<Chart<'a, 'b>, String> {
    let mut chart = ChartBuilder::on(area)
        .caption(axes.title, text(16))
        .margin(8)
        .margin_right(22)
        .x_label_area_size(46)
        .y_label_area_size(74)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)
        .map_err(oops)?;
    let mut mesh = chart.configure_mesh();
    let (tick, value) = (|v: &f64| (axes.tick)(*v), |v: &f64| (axes.value)(*v));
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(BLACK)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .y_desc(axes.y)
        .y_labels(6)
        .y_label_formatter(&value)
        .x_label_formatter(&tick);
    match axes.ticks {
        // Ticks of our own are written below, at their exact places.
        Some(_) => mesh.x_labels(0).disable_x_mesh(),
        None => mesh.x_labels(7).x_desc(axes.x),
    };
    mesh.draw().map_err(oops)?;
    if let Some(ticks) = &axes.ticks {
        let base = area.get_base_pixel();
        let local = |c: (i32, i32)| (c.0 - base.0, c.1 - base.1);
        for t in ticks {
            let (px, py) = local(chart.backend_coord(&(*t, y.0)));
            let label = (axes.tick)(*t);
            let at = (px - text_width(&label, 13) / 2, py + 7);
            area.draw(&PathElement::new(vec![(px, py), (px, py + 4)], BLACK)).map_err(oops)?;
            area.draw(&Text::new(label, at, text(13))).map_err(oops)?;
        }
        let (left, bottom) = local(chart.backend_coord(&(x.0, y.0)));
        let (right, _) = local(chart.backend_coord(&(x.1, y.0)));
        let at = ((left + right - text_width(axes.x, 14)) / 2, bottom + 27);
        area.draw(&Text::new(axes.x.to_string(), at, text(14))).map_err(oops)?;
    }
    Ok(chart)
}

/// An interval with caps, `half` of an axis unit to each side; no mark in the middle, where the variant's own stands.
pub fn bar(x: f64, low: f64, high: f64, half: f64, color: RGBColor) -> PathElement<(f64, f64)> {
    let (l, r) = (x - half, x + half);
    PathElement::new(vec![(l, low), (r, low), (x, low), (x, high), (l, high), (r, high)], color.stroke_width(1))
}

/// A number with its power of a thousand.
pub fn si(v: f64) -> String {
    let short = |v: f64| {
        let s = format!("{v:.2}");
        s.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match v.abs() {
        a if a >= 1e9 => format!("{} G", short(v / 1e9)),
        a if a >= 1e6 => format!("{} M", short(v / 1e6)),
        a if a >= 1e3 => format!("{} k", short(v / 1e3)),
        a if a >= 0.01 || a == 0.0 => short(v),
        _ => format!("{v:.0e}"),
    }
}

/// Workloads of a block in the order of its rows.
pub fn workloads(block: &Block) -> Vec<&str> {
    let mut names: Vec<&str> = block.rows.iter().map(|r| r.workload.as_str()).collect();
    names.dedup();
    names
}

/// Place of a thread count on a logarithmic axis.
pub fn log2(threads: u32) -> f64 {
    f64::from(threads.max(1)).log2()
}

/// Ticks of a logarithmic axis of threads: those measured, less those that would overlap.
pub fn thread_ticks(threads: &[u32]) -> Vec<f64> {
    let mut ticks: Vec<f64> = threads.iter().map(|t| log2(*t)).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let wide = ticks.last().copied().unwrap_or(0.0) - ticks.first().copied().unwrap_or(0.0);
    // From the right, so that the largest count keeps its label.
    let mut kept: Vec<f64> = Vec::new();
    for t in ticks.into_iter().rev() {
        if kept.last().is_none_or(|k| k - t > wide * 0.06) {
            kept.push(t);
        }
    }
    kept
}

/// Range of the x axis that holds all thread counts with a margin.
pub fn thread_range(threads: &[u32]) -> (f64, f64) {
    let all = threads.iter().map(|t| log2(*t));
    (all.clone().fold(f64::INFINITY, f64::min) - 0.3, all.fold(f64::NEG_INFINITY, f64::max) + 0.3)
}

/// The SVG as PNG, one and a half times its size, with the embedded font.
pub fn png(svg: &str) -> Result<Vec<u8>, String> {
    use resvg::{tiny_skia, usvg};
    const SCALE: f32 = 1.5;
    let mut options = usvg::Options { font_family: "DejaVu Sans".into(), ..usvg::Options::default() };
    let fonts = options.fontdb_mut();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    let tree = usvg::Tree::from_str(svg, &options).map_err(oops)?;
    let size = tree.size();
    let (w, h) = ((size.width() * SCALE).ceil() as u32, (size.height() * SCALE).ceil() as u32);
    let mut pixels = tiny_skia::Pixmap::new(w, h).ok_or("cannot draw: the page has no size")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(oops)
}
