// SPDX-License-Identifier: GPL-2.0-only
//! What a machine looks like: packages, nodes, L3 groups, cores, CPUs, and how far nodes are apart.
//!
//! One form for all sources: hwloc on this machine, sysfs, an hwloc XML file, an hwloc synthetic string, our own host
//! file. Groups are numbered densely by their lowest CPU, so that two readers of the same machine give equal values;
//! CPU and node numbers stay those of the operating system, since these are what one pins to.
//!
//! A source may be silent. No distance matrix (one node in hwloc, every synthetic string) becomes 10 on the diagonal
//! and 20 elsewhere, marked as assumed; no L3 makes the package the L3 group, no core makes every CPU a core, no
//! package makes one package; each of these leaves a note that is printed and recorded.
//!
//! INVARIANT: `pus` ascends by CPU and is never empty; every node named by a PU is in `nodes`; the matrix is square
//! over `nodes`; `allowed` is a subset of the CPUs.
//!
//! What it cannot tell: whether the distances mean anything. Firmware writes them, some of it carelessly.

use super::HostError;
use std::collections::BTreeMap;
use std::fmt;

/// Distance of a node to itself in the kernel's scale.
pub const LOCAL_DISTANCE: u32 = 10;
/// Distance assumed between two nodes when nobody says.
pub const REMOTE_DISTANCE: u32 = 20;

/// Where a topology was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This machine through hwloc.
    Hwloc,
    /// This machine, or a gathered copy of its file tree, through sysfs.
    Sysfs(std::path::PathBuf),
    /// An XML file as hwloc writes it.
    Xml(std::path::PathBuf),
    /// An hwloc synthetic string.
    Synthetic(String),
    /// A host file of ours; the name is that of the file or of the built-in example.
    File(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Hwloc => write!(f, "this machine (hwloc)"),
            Source::Sysfs(root) if root.as_os_str() == "/" => write!(f, "this machine (sysfs)"),
            Source::Sysfs(root) => write!(f, "sysfs tree {}", root.display()),
            Source::Xml(path) => write!(f, "hwloc XML {}", path.display()),
            Source::Synthetic(text) => write!(f, "synthetic:{text}"),
            Source::File(name) => write!(f, "host file {name}"),
        }
    }
}

/// One CPU as the operating system counts them (a hardware thread).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pu {
    /// CPU number of the operating system.
    pub cpu: u32,
    /// Core, dense, by lowest CPU.
    pub core: u32,
    /// Package (socket), dense, by lowest CPU.
    pub package: u32,
    /// NUMA node number of the operating system.
    pub node: u32,
    /// Group of CPUs that share a last-level cache, dense, by lowest CPU.
    pub l3: u32,
    /// Position among the CPUs of its core, from 0, by CPU number.
    pub smt: u32,
}

/// One NUMA node; nodes without CPUs (memory expanders, HBM) are there too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Node number of the operating system.
    pub id: u32,
    /// CPUs, ascending.
    pub cpus: Vec<u32>,
    /// Memory in bytes, where known. Not the module size: kernels report what they manage.
    pub memory: Option<u64>,
}

/// CPUs of one kind, on machines that have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuKind {
    /// Name or rank as the source gives it.
    pub name: String,
    /// CPUs, ascending.
    pub cpus: Vec<u32>,
}

/// Distances between nodes, in the order of [`Topology::nodes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distance {
    /// Square matrix; 10 is local.
    pub rows: Vec<Vec<u32>>,
    /// Nobody told: 10 and 20 were put in.
    pub assumed: bool,
}

/// A machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Where this was read.
    pub source: Source,
    /// CPUs, ascending by number.
    pub pus: Vec<Pu>,
    /// NUMA nodes, ascending by number.
    pub nodes: Vec<Node>,
    /// Distances between nodes.
    pub distance: Distance,
    /// Kinds of CPUs; empty where all are alike or nobody says.
    pub kinds: Vec<CpuKind>,
    /// CPUs that plans may use, ascending: all, or what affinity mask and cpuset leave of this machine.
    pub allowed: Vec<u32>,
    /// What was assumed because the source was silent.
    pub notes: Vec<String>,
}

/// A CPU as a reader found it: groups carry any key that is equal for CPUs of the same group.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawPu {
    pub cpu: u32,
    pub core: Option<u64>,
    pub package: Option<u64>,
    pub l3: Option<u64>,
    pub node: Option<u32>,
}

/// What a reader found, before it is numbered and checked.
#[derive(Debug)]
pub(super) struct Raw {
    pub source: Source,
    pub pus: Vec<RawPu>,
    /// Node numbers with memory in bytes.
    pub nodes: Vec<(u32, Option<u64>)>,
    /// Node numbers of rows and columns, then the rows.
    pub distance: Option<(Vec<u32>, Vec<Vec<u32>>)>,
    pub kinds: Vec<CpuKind>,
}

impl Topology {
    /// Numbers and checks what a reader found.
    pub(super) fn build(raw: Raw) -> Result<Self, HostError> {
        let Raw { source, mut pus, mut nodes, distance, mut kinds } = raw;
        let wrong = |field: &str, problem: String| {
            HostError::field(&source, field, problem, "correct the file, or capture the machine again")
        };
        let mut notes = Vec::new();
        pus.sort_unstable_by_key(|p| p.cpu);
        if pus.is_empty() {
            return Err(wrong("cpus", "no CPU at all".into()));
        }
        if let Some(w) = pus.windows(2).find(|w| w[0].cpu == w[1].cpu) {
            return Err(wrong("cpus", format!("CPU {} appears twice", w[0].cpu)));
        }
        if pus.iter().any(|p| p.core.is_none()) {
            notes.push("cores unknown: every CPU counts as a core of its own".to_string());
            pus.iter_mut().for_each(|p| p.core = Some(u64::from(p.cpu)));
        }
        if pus.iter().any(|p| p.package.is_none()) {
            notes.push("packages unknown: the machine counts as one package".to_string());
            pus.iter_mut().for_each(|p| p.package = Some(0));
        }
        if pus.iter().any(|p| p.l3.is_none()) {
            notes.push("L3 caches unknown or absent: the CPUs of a package count as one L3 group".to_string());
            pus.iter_mut().for_each(|p| p.l3 = p.package);
        }
        nodes.sort_unstable_by_key(|n| n.0);
        nodes.dedup_by_key(|n| n.0);
        if nodes.is_empty() {
            notes.push("no NUMA nodes reported: node 0 stands for all memory".to_string());
            nodes.push((0, None));
            pus.iter_mut().for_each(|p| p.node = Some(0));
        }
        let homeless: Vec<u32> = pus.iter().filter(|p| p.node.is_none()).map(|p| p.cpu).collect();
        if !homeless.is_empty() {
            let cpus = super::cpulist::format(&homeless);
            return Err(wrong("node", format!("CPUs {cpus} belong to no node")));
        }

        let (core, package) = (dense(&pus, |p| p.core), dense(&pus, |p| p.package));
        let l3 = dense(&pus, |p| p.l3);
        let mut in_core: BTreeMap<u32, u32> = BTreeMap::new();
        let mut built = Vec::with_capacity(pus.len());
        for (i, p) in pus.iter().enumerate() {
            let node = p.node.unwrap_or(0);
            if !nodes.iter().any(|n| n.0 == node) {
                return Err(wrong("node", format!("CPU {} is on node {node}, which is not described", p.cpu)));
            }
            let smt = in_core.entry(core[i]).or_insert(0);
            built.push(Pu { cpu: p.cpu, core: core[i], package: package[i], node, l3: l3[i], smt: *smt });
            *smt += 1;
        }
        for (what, of) in [("package", |p: &Pu| p.package), ("l3", |p: &Pu| p.l3)] as [(&str, fn(&Pu) -> u32); 2] {
            let mut seen = BTreeMap::new();
            if let Some(p) = built.iter().find(|p| *seen.entry(p.core).or_insert(of(p)) != of(p)) {
                return Err(wrong(what, format!("the core of CPU {} lies in two of them", p.cpu)));
            }
        }
        let ids: Vec<u32> = nodes.iter().map(|n| n.0).collect();
        let distance = order_distance(distance, &ids).map_err(|e| wrong("distance", e))?;
        if distance.assumed && ids.len() > 1 {
            notes.push(format!("no distance matrix: {LOCAL_DISTANCE} and {REMOTE_DISTANCE} are assumed"));
        }
        let nodes = nodes
            .iter()
            .map(|&(id, memory)| {
                let cpus = built.iter().filter(|p| p.node == id).map(|p| p.cpu).collect();
                Node { id, cpus, memory }
            })
            .collect();
        kinds.retain(|k| !k.cpus.is_empty());
        if kinds.len() < 2 {
            kinds.clear();
        }
        kinds.sort_by(|a, b| a.cpus.cmp(&b.cpus));
        let allowed = built.iter().map(|p| p.cpu).collect();
        Ok(Topology { source, pus: built, nodes, distance, kinds, allowed, notes })
    }

    /// Limits the CPUs that plans may use to those in `cpus`.
    ///
    /// # Errors
    /// If none of `cpus` is a CPU of this topology.
    pub fn restrict(&mut self, cpus: &[u32]) -> Result<(), HostError> {
        let allowed: Vec<u32> = self.pus.iter().map(|p| p.cpu).filter(|c| cpus.contains(c)).collect();
        if allowed.is_empty() {
            return Err(HostError::new(
                &self.source,
                format!("none of the allowed CPUs {} is in this topology", super::cpulist::format(cpus)),
                "check HWLOC_SYNTHETIC and HWLOC_XMLFILE, the affinity mask and the cpuset",
            ));
        }
        self.allowed = allowed;
        Ok(())
    }

    /// The CPU with this number.
    pub fn pu(&self, cpu: u32) -> Option<&Pu> {
        self.pus.binary_search_by_key(&cpu, |p| p.cpu).ok().map(|i| &self.pus[i])
    }

    /// NUMA node of a CPU.
    pub fn node_of(&self, cpu: u32) -> Option<u32> {
        self.pu(cpu).map(|p| p.node)
    }

    /// Distance from one node to another, by their numbers; [`REMOTE_DISTANCE`] for unknown nodes.
    pub fn distance(&self, from: u32, to: u32) -> u32 {
        let at = |id: u32| self.nodes.iter().position(|n| n.id == id);
        match (at(from), at(to)) {
            (Some(a), Some(b)) => self.distance.rows[a][b],
            _ if from == to => LOCAL_DISTANCE,
            _ => REMOTE_DISTANCE,
        }
    }

    /// CPUs of each package.
    pub fn packages(&self) -> Vec<Vec<u32>> {
        self.groups(|p| p.package)
    }

    /// CPUs of each L3 group.
    pub fn l3_groups(&self) -> Vec<Vec<u32>> {
        self.groups(|p| p.l3)
    }

    /// CPUs of each core.
    pub fn cores(&self) -> Vec<Vec<u32>> {
        self.groups(|p| p.core)
    }

    fn groups(&self, of: impl Fn(&Pu) -> u32) -> Vec<Vec<u32>> {
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for p in &self.pus {
            groups.entry(of(p)).or_default().push(p.cpu);
        }
        groups.into_values().collect()
    }

    /// The first thing in which two topologies differ, memory sizes, sources and notes aside; `None` when equal.
    pub fn difference(&self, other: &Topology) -> Option<String> {
        let cpus = |t: &Topology| t.pus.iter().map(|p| p.cpu).collect::<Vec<_>>();
        if cpus(self) != cpus(other) {
            let list = |t: &Topology| super::cpulist::format(&cpus(t));
            return Some(format!("CPUs {} against {}", list(self), list(other)));
        }
        if let Some((a, b)) = self.pus.iter().zip(&other.pus).find(|(a, b)| a != b) {
            return Some(format!("CPU {}: {a:?} against {b:?}", a.cpu));
        }
        let ids = |t: &Topology| t.nodes.iter().map(|n| n.id).collect::<Vec<_>>();
        if ids(self) != ids(other) {
            return Some(format!("nodes {:?} against {:?}", ids(self), ids(other)));
        }
        if self.distance.rows != other.distance.rows {
            return Some(format!("distances {:?} against {:?}", self.distance.rows, other.distance.rows));
        }
        None
    }
}

/// Numbers groups from 0 in the order of their lowest CPU (`pus` ascends).
fn dense(pus: &[RawPu], key: impl Fn(&RawPu) -> Option<u64>) -> Vec<u32> {
    let mut numbers: BTreeMap<Option<u64>, u32> = BTreeMap::new();
    pus.iter()
        .map(|p| {
            let next = numbers.len() as u32;
            *numbers.entry(key(p)).or_insert(next)
        })
        .collect()
}

/// Brings a matrix into the order of `ids`, or makes the assumed one.
fn order_distance(given: Option<(Vec<u32>, Vec<Vec<u32>>)>, ids: &[u32]) -> Result<Distance, String> {
    let Some((order, rows)) = given else {
        let rows =
            ids.iter().map(|a| ids.iter().map(|b| if a == b { LOCAL_DISTANCE } else { REMOTE_DISTANCE }).collect());
        return Ok(Distance { rows: rows.collect(), assumed: true });
    };
    if rows.len() != order.len() || rows.iter().any(|r| r.len() != order.len()) {
        let widths: Vec<usize> = rows.iter().map(Vec::len).collect();
        return Err(format!("{} nodes need a {0} x {0} matrix, here are rows of {widths:?}", order.len()));
    }
    let mut out = Vec::with_capacity(ids.len());
    for a in ids {
        let mut row = Vec::with_capacity(ids.len());
        for b in ids {
            match (order.iter().position(|o| o == a), order.iter().position(|o| o == b)) {
                (Some(i), Some(j)) => row.push(rows[i][j]),
                _ => return Err(format!("the matrix does not cover node {a} and node {b}")),
            }
        }
        out.push(row);
    }
    if let Some((i, row)) = out.iter().enumerate().find(|(i, row)| row.iter().any(|&d| d == 0 || d < row[*i])) {
        return Err(format!("row {i}, {row:?}: a node must be nearest to itself and no distance 0"));
    }
    Ok(Distance { rows: out, assumed: false })
}
