// SPDX-License-Identifier: GPL-2.0-only
//! Cache lines that moved between CPUs, per operation, by struct: the simulator's, never a PMU's.

use super::Data;
use super::stacked::{self, Panel, Words};
use crate::report::blocks::LineRow;
use std::collections::BTreeMap;

/// Structs that get a layer of their own; what the others move is added up.
const OWN_LAYERS: usize = 6;

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    if b.world != "sim" {
        return Err(format!("lines moved are known in the simulator only, not in world {}", b.world));
    }
    // A struct gets a layer for its largest share in any bar, so that a busy workload does not hide what dominates a
    // quiet one.
    let mut bars: BTreeMap<(&str, u32, usize), f64> = BTreeMap::new();
    let moves = |r: &LineRow| {
        let m: Vec<(usize, f64)> =
            r.values.iter().enumerate().filter_map(|(v, l)| Some((v, l.as_ref()?.moved))).collect();
        m
    };
    for r in &b.lines {
        for (v, m) in moves(r) {
            *bars.entry((&r.workload, r.threads, v)).or_default() += m;
        }
    }
    let mut total: BTreeMap<&str, f64> = BTreeMap::new();
    for r in &b.lines {
        for (v, m) in moves(r).into_iter().filter(|(_, m)| *m > 0.0) {
            let share = m / bars[&(r.workload.as_str(), r.threads, v)];
            let most = total.entry(&r.name).or_default();
            *most = most.max(share);
        }
    }
    let mut names: Vec<&str> = total.keys().copied().collect();
    if names.is_empty() {
        return Err("no line moved, or the samples carry no line transfers".into());
    }
    names.sort_by(|a, b| total[b].total_cmp(&total[a]).then(a.cmp(b)));
    let own: Vec<&str> = names.iter().take(OWN_LAYERS).copied().collect();
    let mut layers: Vec<String> = own.iter().map(|s| s.to_string()).collect();
    if names.len() > OWN_LAYERS {
        layers.push("other".into());
    }
    let layer = |name: &str| own.iter().position(|n| *n == name).or((names.contains(&name)).then_some(OWN_LAYERS));
    let mut panels: Vec<Panel> = Vec::new();
    let mut put = |r: &LineRow| {
        if panels.last().is_none_or(|p| p.title != r.workload) {
            panels.push(Panel { title: r.workload.clone(), groups: Vec::new() });
        }
        let panel = panels.last_mut().expect("was just pushed");
        if panel.groups.last().is_none_or(|g| g.0 != r.threads) {
            panel.groups.push((r.threads, vec![None; b.variants.len()]));
        }
        let Some(group) = panel.groups.last_mut() else { return };
        for (cell, l) in group.1.iter_mut().zip(&r.values) {
            if let (Some(l), Some(i)) = (l, layer(&r.name)) {
                cell.get_or_insert_with(|| vec![0.0; layers.len()])[i] += l.moved;
            }
        }
    };
    b.lines.iter().for_each(&mut put);
    let words = Words {
        title: "Cache lines moved between CPUs, by struct (simulator)",
        y: "lines per operation",
        note: "Mean over samples; near and far transfers together, upgrades not counted.",
    };
    stacked::draw(data, &words, &layers, &panels)
}
