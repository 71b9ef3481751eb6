// SPDX-License-Identifier: GPL-2.0-only
//! Which CPU each worker is pinned to, and how many workers a series of measurements has.
//!
//! A plan is an order over the allowed CPUs; T threads take the first T. So the CPUs of a smaller thread count are a
//! prefix of those of a larger one, and a curve over threads adds CPUs without moving those it has. The orders:
//!
//! | plan | order |
//! |---|---|
//! | `compact` | package, node, L3, core, then its hardware threads: neighbours share as much as they can |
//! | `scatter` | in turn over packages, nodes, L3 groups, cores; second hardware threads only when cores run out |
//! | `per-node` | one node filled after another, cores before second hardware threads: steps at a node's size |
//! | `no-smt` | as `compact`, but only the first allowed hardware thread of each core |
//! | `0,2,4-7` | these CPUs in this order |
//!
//! The thread counts are those of the mmtests "large stride" series, so that tables can be held against published
//! ones; `auto` adds 1 and 2, without which no scaling can be stated.

use super::HostError;
use super::cpulist;
use super::topology::{Pu, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// The order in which CPUs are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinKind {
    /// Neighbouring workers share as much as they can.
    Compact,
    /// Neighbouring workers are as far apart as they can be.
    Scatter,
    /// Node after node, whole cores first.
    PerNode,
    /// One hardware thread of each core.
    NoSmt,
    /// These CPUs, in this order.
    List(Vec<u32>),
}

impl PinKind {
    /// The plans that have a name.
    pub const NAMED: [PinKind; 4] = [PinKind::Compact, PinKind::Scatter, PinKind::PerNode, PinKind::NoSmt];
}

impl fmt::Display for PinKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinKind::Compact => f.write_str("compact"),
            PinKind::Scatter => f.write_str("scatter"),
            PinKind::PerNode => f.write_str("per-node"),
            PinKind::NoSmt => f.write_str("no-smt"),
            PinKind::List(cpus) => {
                let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
                f.write_str(&cpus.join(","))
            }
        }
    }
}

impl FromStr for PinKind {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Some(kind) = Self::NAMED.into_iter().find(|k| k.to_string() == text.trim()) {
            return Ok(kind);
        }
        let remedy = "use compact, scatter, per-node, no-smt, or a CPU list such as 0,2,4-7";
        match cpulist::parse_ordered(text) {
            Ok(cpus) if !cpus.is_empty() => Ok(PinKind::List(cpus)),
            Ok(_) => Err(HostError::new("pin plan", "it is empty", remedy)),
            Err(e) => Err(HostError::new(format!("pin plan `{text}`"), e, remedy)),
        }
    }
}

/// Where one worker goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// CPU number of the operating system.
    pub cpu: u32,
    /// NUMA node of that CPU.
    pub node: u32,
}

/// The CPUs of `threads` workers, by worker index.
///
/// # Errors
/// If the plan has fewer CPUs than threads (both numbers are named), or lists a CPU that is absent or not allowed.
pub fn plan(topology: &Topology, kind: &PinKind, threads: usize) -> Result<Vec<Slot>, HostError> {
    let order = order(topology, kind)?;
    if threads == 0 || threads > order.len() {
        let of = match kind {
            PinKind::NoSmt => "allowed cores",
            PinKind::List(_) => "listed CPUs",
            _ => "allowed CPUs",
        };
        return Err(HostError::new(
            format!("pin plan {kind} on {}", topology.source),
            format!("{threads} threads do not fit on {} {of}", order.len()),
            format!("ask for 1 to {} threads, or for another plan or host", order.len()),
        ));
    }
    Ok(order.into_iter().take(threads).map(|p| Slot { cpu: p.cpu, node: p.node }).collect())
}

/// All CPUs of a plan in its order.
pub(super) fn order(topology: &Topology, kind: &PinKind) -> Result<Vec<Pu>, HostError> {
    let allowed: BTreeSet<u32> = topology.allowed.iter().copied().collect();
    let ranked = rank_in_core(topology.pus.iter().filter(|p| allowed.contains(&p.cpu)));
    let compact = |p: &(u32, Pu)| (p.1.package, p.1.node, p.1.l3, p.1.core, p.0);
    let mut pus = ranked;
    match kind {
        PinKind::Compact => pus.sort_by_key(compact),
        PinKind::PerNode => pus.sort_by_key(|p| (p.1.package, p.1.node, p.0, p.1.l3, p.1.core)),
        PinKind::NoSmt => {
            pus.retain(|p| p.0 == 0);
            pus.sort_by_key(compact);
        }
        PinKind::Scatter => {
            let ranks: BTreeSet<u32> = pus.iter().map(|p| p.0).collect();
            let of_rank = |rank| pus.iter().filter(|p| p.0 == rank).map(|p| p.1).collect::<Vec<_>>();
            return Ok(ranks.into_iter().flat_map(|rank| in_turn(&of_rank(rank), &LEVELS)).collect());
        }
        PinKind::List(cpus) => {
            let remedy = format!("choose from {}", cpulist::format(&topology.allowed));
            return cpus
                .iter()
                .map(|&cpu| match topology.pu(cpu) {
                    Some(p) if allowed.contains(&cpu) => Ok(*p),
                    Some(_) => Err(HostError::new("pin plan", format!("CPU {cpu} is not allowed here"), &remedy)),
                    None => Err(HostError::new("pin plan", format!("there is no CPU {cpu}"), &remedy)),
                })
                .collect();
        }
    }
    Ok(pus.into_iter().map(|p| p.1).collect())
}

/// Position of each CPU among the *allowed* ones of its core: with the first sibling forbidden, the second counts as
/// the first.
fn rank_in_core<'a>(pus: impl Iterator<Item = &'a Pu>) -> Vec<(u32, Pu)> {
    let mut used: BTreeMap<u32, u32> = BTreeMap::new();
    pus.map(|p| {
        let rank = used.entry(p.core).or_insert(0);
        *rank += 1;
        (*rank - 1, *p)
    })
    .collect()
}

type Level = fn(&Pu) -> u32;
const LEVELS: [Level; 4] = [|p| p.package, |p| p.node, |p| p.l3, |p| p.core];

/// Takes CPUs from the groups of the outermost level in turn, and within each group likewise.
fn in_turn(pus: &[Pu], levels: &[Level]) -> Vec<Pu> {
    let Some((level, inner)) = levels.split_first() else { return pus.to_vec() };
    let mut groups: BTreeMap<u32, Vec<Pu>> = BTreeMap::new();
    for p in pus {
        groups.entry(level(p)).or_default().push(*p);
    }
    let groups: Vec<Vec<Pu>> = groups.values().map(|g| in_turn(g, inner)).collect();
    let longest = groups.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|i| groups.iter().filter_map(move |g| g.get(i).copied())).collect()
}

/// Client counts that mmtests' page fault driver chooses for a machine of `max` CPUs; `max` itself is always among
/// them.
pub fn mmtests_ladder(max: u32) -> Vec<u32> {
    let steps: Vec<u32> = match max {
        0 => Vec::new(),
        1..=8 => vec![1, 3, 5, 7],
        9..=32 => vec![1, 3, 5, 7, 12, 18, 24, 30],
        _ => [1, 4, 7, 12, 21, 30, 48].into_iter().chain((79..max).step_by(31)).collect(),
    };
    let mut steps: Vec<u32> = steps.into_iter().filter(|&n| n < max).collect();
    steps.extend((max > 0).then_some(max));
    steps
}

/// Thread counts of `--threads auto`: those of mmtests, with 1 and 2 added.
pub fn auto_ladder(max: u32) -> Vec<u32> {
    let mut steps: BTreeSet<u32> = mmtests_ladder(max).into_iter().collect();
    steps.extend([1, 2].into_iter().filter(|&n| n <= max));
    steps.into_iter().collect()
}
