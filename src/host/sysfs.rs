// SPDX-License-Identifier: GPL-2.0-only
//! The topology as Linux shows it in sysfs; always built, the only reader without the feature `hwloc`.
//!
//! Read are `devices/system/cpu/online`, `cpu*/topology`, `cpu*/cache`, `devices/system/node/node*`, and for kinds of
//! CPUs `devices/cpu_core`, `devices/cpu_atom` or `cpu*/cpu_capacity`. The root may be a gathered copy of another
//! machine (`hwloc-gather-topology`). A group is known by the lowest CPU of its list file, not by its id file: ids
//! repeat between packages.

use super::topology::{CpuKind, Raw, RawPu, Source, Topology};
use super::{HostError, cpulist};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads the machine whose file tree starts at `root` (`/` for this one).
///
/// # Errors
/// If the list of online CPUs is missing or unreadable; everything else may be absent.
pub fn read(root: &Path) -> Result<Topology, HostError> {
    let cpu_dir = root.join("sys/devices/system/cpu");
    let online = cpu_dir.join("online");
    let remedy = "mount sysfs, or name a host file with --host";
    let cpus = match std::fs::read_to_string(&online) {
        Ok(text) => cpulist::parse(&text).map_err(|e| HostError::new(online.display(), e, remedy))?,
        Err(e) => numbered(&cpu_dir, "cpu").map_err(|_| HostError::new(online.display(), e, remedy))?,
    };
    let node_dir = root.join("sys/devices/system/node");
    let mut node_of: BTreeMap<u32, u32> = BTreeMap::new();
    let mut nodes = Vec::new();
    let mut rows = Vec::new();
    for id in numbered(&node_dir, "node").unwrap_or_default() {
        let dir = node_dir.join(format!("node{id}"));
        for cpu in list(&dir.join("cpulist")).unwrap_or_default() {
            node_of.insert(cpu, id);
        }
        nodes.push((id, memory(&dir.join("meminfo"))));
        if let Some(text) = text(&dir.join("distance")) {
            rows.push(text.split_whitespace().filter_map(|d| d.parse().ok()).collect::<Vec<u32>>());
        }
    }
    let ids: Vec<u32> = nodes.iter().map(|n| n.0).collect();
    let distance = (!rows.is_empty() && rows.len() == ids.len()).then_some((ids, rows));
    let pus = cpus
        .iter()
        .map(|&cpu| {
            let dir = cpu_dir.join(format!("cpu{cpu}"));
            // The second names are those of kernels before 5.3.
            let group = |new: &str, old: &str| {
                let lowest = |name: &str| list(&dir.join("topology").join(name)).and_then(|l| l.first().copied());
                lowest(new).or_else(|| lowest(old)).map(u64::from)
            };
            RawPu {
                cpu,
                core: group("core_cpus_list", "thread_siblings_list"),
                package: group("package_cpus_list", "core_siblings_list"),
                l3: l3(&dir.join("cache")),
                node: node_of.get(&cpu).copied(),
            }
        })
        .collect();
    Topology::build(Raw { source: Source::Sysfs(root.to_path_buf()), pus, nodes, distance, kinds: kinds(root, &cpus) })
}

/// Numbers N of the entries `PREFIXN` in a directory, ascending.
fn numbered(dir: &Path, prefix: &str) -> std::io::Result<Vec<u32>> {
    let mut found: Vec<u32> = std::fs::read_dir(dir)?
        .filter_map(|e| e.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
}

fn list(path: &Path) -> Option<Vec<u32>> {
    cpulist::parse(&text(path)?).ok()
}

/// Lowest CPU that shares the third-level cache.
fn l3(cache: &Path) -> Option<u64> {
    numbered(cache, "index").ok()?.into_iter().map(|i| cache.join(format!("index{i}"))).find_map(|dir| {
        let is_l3 = text(&dir.join("level"))? == "3" && text(&dir.join("type")).is_none_or(|t| t != "Instruction");
        if is_l3 { list(&dir.join("shared_cpu_list"))?.first().map(|&c| u64::from(c)) } else { None }
    })
}

/// `Node 0 MemTotal:  12543776 kB` in bytes.
fn memory(meminfo: &Path) -> Option<u64> {
    let text = text(meminfo)?;
    let line = text.lines().find(|l| l.contains("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn kinds(root: &Path, online: &[u32]) -> Vec<CpuKind> {
    let of_pmu = |pmu: &str| {
        let cpus = list(&root.join("sys/devices").join(pmu).join("cpus"))?;
        Some(CpuKind { name: pmu.to_string(), cpus: cpus.into_iter().filter(|c| online.contains(c)).collect() })
    };
    let hybrid: Vec<CpuKind> = ["cpu_core", "cpu_atom", "cpu_lowpower"].into_iter().filter_map(of_pmu).collect();
    if !hybrid.is_empty() {
        return hybrid;
    }
    let mut by_capacity: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for &cpu in online {
        if let Some(c) = text(&root.join(format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"))) {
            by_capacity.entry(c).or_default().push(cpu);
        }
    }
    by_capacity.into_iter().map(|(c, cpus)| CpuKind { name: format!("capacity {c}"), cpus }).collect()
}
