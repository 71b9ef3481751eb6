// SPDX-License-Identifier: GPL-2.0-only
//! The host file: `hosts/NAME/host.toml`, with the hwloc XML of the machine beside it.
//!
//! `docs/hosts.md` describes each field. The file alone is enough, so that a build without hwloc reads every host; if
//! it has no `[topology]`, `topology.xml` in the same directory is read in its place. Fields that this build does not
//! know are refused: a misspelt price must not silently become the default.
//!
//! The three built-in examples are compiled in, so that their names work from any directory. They are invented.

use super::topology::{CpuKind, Raw, RawPu, Source, Topology};
use super::{HostError, cpulist};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the file's layout.
pub const SCHEMA: u32 = 1;

/// Where to read how a host file is written.
const HELP: &str = "see docs/hosts.md";

/// Built-in hosts: name and file.
pub const EXAMPLES: [(&str, &str); 3] = [
    ("example-2x14x2", include_str!("../../hosts/example-2x14x2/host.toml")),
    ("example-8n-64", include_str!("../../hosts/example-8n-64/host.toml")),
    ("example-16n-512", include_str!("../../hosts/example-16n-512/host.toml")),
];

/// A host file as it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// Layout version.
    pub schema: u32,
    /// Name of the host; that of its directory.
    pub name: String,
    /// No such machine exists: figures are for the simulator only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub invented: bool,
    /// One sentence on the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// CPU model as the operating system prints it.
    pub cpu_model: String,
    /// Kernel release at the time of the capture.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// Whether the CPU says it runs under a hypervisor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub virtualised: bool,
    /// The machine; absent if `topology.xml` beside this file is to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Shape>,
    /// Prices for the simulator in ns, by its names; what is absent has the simulator's default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub price_ns: BTreeMap<String, f64>,
}

/// The table `[topology]`. Groups are CPU lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// All CPUs.
    pub cpus: String,
    /// CPUs of each package.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// CPUs of each L3 group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub l3: Vec<String>,
    /// CPUs of each core. Without it and without `smt_stride` every CPU is a core.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cores: Vec<String>,
    /// In place of `cores`: CPUs c, c + stride, c + 2 * stride ... are one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt_stride: Option<u32>,
    /// Distances in the order of the nodes; absent if nobody knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distance: Vec<Vec<u32>>,
    /// Kinds of CPUs, name to CPU list, on machines with several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, String>,
    /// NUMA nodes.
    pub node: Vec<NodeShape>,
}

/// One `[[topology.node]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeShape {
    /// Node number.
    pub id: u32,
    /// CPUs; empty for a node that is memory only.
    pub cpus: String,
    /// Memory in MiB, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

impl HostFile {
    /// Reads the text of a host file; `place` names it in messages.
    ///
    /// # Errors
    /// One line with file, line, field and remedy.
    pub fn parse(text: &str, place: &str) -> Result<Self, HostError> {
        let text = text.replace('\r', "");
        let file: HostFile = toml::from_str(&text).map_err(|e| {
            let line = e.span().map(|s| text[..s.start.min(text.len())].lines().count().max(1));
            // Errors about a value name no field: it is the key of that line.
            let key = line.and_then(|l| text.lines().nth(l - 1)?.split_once('=').map(|(k, _)| k.trim().to_string()));
            let message = e.message();
            let named =
                ["missing field `", "unknown field `"].iter().find_map(|m| message.strip_prefix(m)?.split('`').next());
            let field = named.map(str::to_string).or(key).unwrap_or_default();
            let place = line.map_or_else(|| place.to_string(), |l| format!("{place}:{l}"));
            HostError::field(place, field, e.message(), HELP)
        })?;
        let wrong = |field: &str, problem: String| Err(HostError::field(place, field, problem, HELP));
        if file.schema != SCHEMA {
            return wrong("schema", format!("{} is not a layout this build reads (it reads {SCHEMA})", file.schema));
        }
        if file.name.trim().is_empty() {
            return wrong("name", "it is empty".into());
        }
        if let Some((key, ns)) = file.price_ns.iter().find(|(_, ns)| !(ns.is_finite() && **ns >= 0.0)) {
            return wrong(&format!("price_ns.{key}"), format!("{ns} is not a time in ns"));
        }
        Ok(file)
    }

    /// Reads a host file from disk.
    ///
    /// # Errors
    /// As [`HostFile::parse`], and if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, HostError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            HostError::new(path.display(), e, "check path and rights, or write it with `faultline host capture`")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The topology that `[topology]` describes; `None` without that table.
    ///
    /// # Errors
    /// One line naming the field that contradicts another or is no CPU list.
    pub fn topology(&self, place: &str) -> Result<Option<Topology>, HostError> {
        let Some(shape) = &self.topology else { return Ok(None) };
        let bad = |field: &str, problem: String| HostError::field(place, format!("topology.{field}"), problem, HELP);
        let list = |field: &str, text: &str| cpulist::parse(text).map_err(|e| bad(field, e));
        let cpus = list("cpus", &shape.cpus)?;
        let groups = |field: &str, lists: &[String]| -> Result<BTreeMap<u32, u64>, HostError> {
            let mut of = BTreeMap::new();
            for (i, text) in lists.iter().enumerate() {
                for cpu in list(field, text)? {
                    if cpus.binary_search(&cpu).is_err() {
                        return Err(bad(field, format!("CPU {cpu} is not among `cpus`")));
                    }
                    if of.insert(cpu, i as u64).is_some() {
                        return Err(bad(field, format!("CPU {cpu} is in two groups")));
                    }
                }
            }
            match cpus.iter().find(|c| !of.is_empty() && !of.contains_key(c)) {
                Some(c) => Err(bad(field, format!("CPU {c} is in no group"))),
                None => Ok(of),
            }
        };
        let packages = groups("packages", &shape.packages)?;
        let l3 = groups("l3", &shape.l3)?;
        let cores = match (shape.smt_stride, shape.cores.is_empty()) {
            (Some(_), false) => return Err(bad("smt_stride", "`cores` is given too".into())),
            (Some(0), true) => return Err(bad("smt_stride", "0 is no stride".into())),
            (Some(stride), true) => cpus.iter().map(|&c| (c, u64::from(c % stride))).collect(),
            (None, false) => groups("cores", &shape.cores)?,
            (None, true) => cpus.iter().map(|&c| (c, u64::from(c))).collect(),
        };
        let node_lists: Vec<String> = shape.node.iter().map(|n| n.cpus.clone()).collect();
        let nodes = groups("node.cpus", &node_lists)?;
        let ids: Vec<u32> = shape.node.iter().map(|n| n.id).collect();
        if let Some(i) = (1..ids.len()).find(|&i| ids[..i].contains(&ids[i])) {
            return Err(bad("node.id", format!("node {} appears twice", ids[i])));
        }
        let kinds: Result<Vec<CpuKind>, HostError> =
            shape.kinds.iter().map(|(n, t)| Ok(CpuKind { name: n.clone(), cpus: list("kinds", t)? })).collect();
        let raw = Raw {
            source: Source::File(place.to_string()),
            pus: cpus
                .iter()
                .map(|cpu| RawPu {
                    cpu: *cpu,
                    core: cores.get(cpu).copied(),
                    package: packages.get(cpu).copied(),
                    l3: l3.get(cpu).copied(),
                    node: nodes.get(cpu).map(|&i| ids[i as usize]),
                })
                .collect(),
            nodes: shape.node.iter().map(|n| (n.id, n.memory_mib.map(|m| m << 20))).collect(),
            distance: (!shape.distance.is_empty()).then(|| (ids.clone(), shape.distance.clone())),
            kinds: kinds?,
        };
        Topology::build(raw).map(Some)
    }

    /// The table for a topology; it reads back to an equal one.
    pub fn shape(topology: &Topology) -> Shape {
        let lists = |groups: Vec<Vec<u32>>| groups.iter().map(|g| cpulist::format(g)).collect::<Vec<_>>();
        let cpus: Vec<u32> = topology.pus.iter().map(|p| p.cpu).collect();
        let cores = topology.cores();
        let smt_stride = stride(&cores);
        let plain = cores.iter().all(|c| c.len() == 1);
        let list_cores = smt_stride.is_none() && !plain;
        Shape {
            cpus: cpulist::format(&cpus),
            packages: lists(topology.packages()),
            l3: lists(topology.l3_groups()),
            cores: if list_cores { lists(cores) } else { Vec::new() },
            smt_stride,
            distance: if topology.distance.assumed { Vec::new() } else { topology.distance.rows.clone() },
            kinds: topology.kinds.iter().map(|k| (k.name.clone(), cpulist::format(&k.cpus))).collect(),
            node: topology
                .nodes
                .iter()
                .map(|n| NodeShape { id: n.id, cpus: cpulist::format(&n.cpus), memory_mib: n.memory.map(|m| m >> 20) })
                .collect(),
        }
    }

    /// The file's text.
    ///
    /// # Errors
    /// If it cannot be written as TOML.
    pub fn to_text(&self) -> Result<String, HostError> {
        let body = toml::to_string(self).map_err(|e| HostError::new(&self.name, e, "report this as a bug"))?;
        Ok(format!("# A host of faultline; docs/hosts.md describes the fields.\n{body}"))
    }
}

/// The stride, if cores are exactly the CPUs that are equal modulo it (and there are hardware threads at all).
fn stride(cores: &[Vec<u32>]) -> Option<u32> {
    let first = cores.iter().find(|c| c.len() > 1)?;
    let stride = first[1] - first[0];
    let mut seen = std::collections::BTreeSet::new();
    let fits =
        cores.iter().all(|core| core.iter().all(|c| c % stride == core[0] % stride) && seen.insert(core[0] % stride));
    fits.then_some(stride)
}
