// SPDX-License-Identifier: GPL-2.0-only
//! The topology through hwloc: this machine, XML files, synthetic strings.
//!
//! Disallowed CPUs are included, as in sysfs; the affinity mask and the cpuset are applied by the caller. Files are
//! read here and handed over as text, because hwloc refuses the carriage returns of a captured console with a bare
//! EINVAL, and because an unreadable file deserves its own message. Nothing here binds: on a topology that is not this
//! system hwloc's own binding calls do nothing and say Ok.

use super::HostError;
use super::topology::{CpuKind, Raw, RawPu, Source, Topology};
use hwlocality::Topology as Hwloc;
use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::distance::DistancesKind;
use hwlocality::object::types::ObjectType;
use hwlocality::topology::builder::{BuildFlags, TypeFilter};
use hwlocality::topology::export::xml::XMLExportFlags;
use std::collections::BTreeMap;
use std::path::Path;

/// What hwloc knows beside the topology.
#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    /// Whether this is the machine we run on (the environment can replace it).
    pub is_this_system: bool,
    /// Texts such as `CPUModel`, `HostName`, `OSRelease`.
    pub infos: BTreeMap<String, String>,
}

/// Reads this machine (or what `HWLOC_SYNTHETIC` and `HWLOC_XMLFILE` put in its place).
pub(super) fn this_machine() -> Result<(Topology, Extra), HostError> {
    let source = Source::Hwloc;
    let remedy = "check HWLOC_* in the environment, or build with --no-default-features for sysfs";
    let hwloc = build(Hwloc::builder()).map_err(|e| HostError::new(&source, e, remedy))?;
    convert(&hwloc, source)
}

/// Reads an hwloc XML file.
pub(super) fn xml(path: &Path) -> Result<(Topology, Extra), HostError> {
    let remedy = "write it with `lstopo-no-graphics --no-io FILE.xml` or `faultline host capture`";
    let text = std::fs::read_to_string(path).map_err(|e| HostError::new(path.display(), e, "check path and rights"))?;
    let hwloc = from_xml(&text).map_err(|e| HostError::new(path.display(), e, remedy))?;
    convert(&hwloc, Source::Xml(path.to_path_buf()))
}

fn from_xml(text: &str) -> Result<Hwloc, String> {
    let text = text.replace('\r', "");
    if !text.contains("<topology") {
        return Err("not an hwloc XML file (no <topology> element)".into());
    }
    let builder =
        Hwloc::builder().from_xml(&text).map_err(|e| format!("not an XML file that hwloc understands ({e})"))?;
    build(builder).map_err(|e| format!("hwloc refuses it ({e})"))
}

/// Reads an hwloc synthetic string.
pub(super) fn synthetic(text: &str) -> Result<(Topology, Extra), HostError> {
    let source = Source::Synthetic(text.to_string());
    let remedy = "write it as in \"pack:2 [numa] l3:1 core:8 pu:2\"";
    let wrong = |e: String| HostError::new(&source, format!("hwloc refuses the string ({e})"), remedy);
    let builder = Hwloc::builder().from_synthetic(text).map_err(|e| wrong(e.to_string()))?;
    let hwloc = build(builder).map_err(wrong)?;
    convert(&hwloc, source.clone())
}

/// This machine as hwloc XML, for `host capture`.
pub(super) fn export_this_machine() -> Result<String, HostError> {
    let wrong = |e: String| HostError::new(Source::Hwloc, e, "use lstopo-no-graphics instead");
    let hwloc = build(Hwloc::builder()).map_err(wrong)?;
    let xml = hwloc.export_xml(XMLExportFlags::empty()).map_err(|e| wrong(e.to_string()))?;
    Ok(xml.as_str().to_string())
}

fn build(builder: hwlocality::topology::builder::TopologyBuilder) -> Result<Hwloc, String> {
    builder
        .with_flags(BuildFlags::INCLUDE_DISALLOWED)
        .map_err(|e| e.to_string())?
        .with_io_type_filter(TypeFilter::KeepNone)
        .map_err(|e| e.to_string())?
        .build()
        .map_err(|e| e.to_string())
}

fn convert(hwloc: &Hwloc, source: Source) -> Result<(Topology, Extra), HostError> {
    let number = |n: Option<usize>| n.and_then(|n| u32::try_from(n).ok());
    let mut pus = Vec::new();
    for pu in hwloc.objects_with_type(ObjectType::PU) {
        let Some(cpu) = number(pu.os_index()) else { continue };
        let group = |ty| pu.first_ancestor_with_type(ty).map(|o: &TopologyObject| o.logical_index() as u64);
        // A CPU can be local to several nodes (DRAM and HBM); the lowest is the one that sysfs puts it in.
        let node = pu.nodeset().and_then(|set| set.first_set()).and_then(|n| number(Some(usize::from(n))));
        pus.push(RawPu {
            cpu,
            core: group(ObjectType::Core),
            package: group(ObjectType::Package),
            l3: group(ObjectType::L3Cache),
            node,
        });
    }
    let mut nodes = Vec::new();
    for node in hwloc.objects_with_type(ObjectType::NUMANode) {
        let Some(id) = number(node.os_index()) else { continue };
        let memory = match node.attributes() {
            Some(ObjectAttributes::NUMANode(n)) => n.local_memory().map(u64::from),
            _ => None,
        };
        nodes.push((id, memory));
    }
    let kinds = match hwloc.cpu_kinds() {
        Err(_) => Vec::new(),
        Ok(kinds) => kinds
            .enumerate()
            .map(|(rank, kind)| CpuKind {
                name: format!("rank {rank}"),
                cpus: kind.cpuset.iter_set().map(|c| usize::from(c) as u32).collect(),
            })
            .collect(),
    };
    let mut infos = BTreeMap::new();
    let with_infos = hwloc.objects_with_type(ObjectType::Package).chain(std::iter::once(hwloc.root_object()));
    for info in with_infos.flat_map(|o| o.infos()) {
        let text = |t: &std::ffi::CStr| t.to_string_lossy().into_owned();
        infos.entry(text(info.name())).or_insert_with(|| text(info.value()));
    }
    let extra = Extra { is_this_system: hwloc.is_this_system(), infos };
    Ok((Topology::build(Raw { source, pus, nodes, distance: distance(hwloc), kinds })?, extra))
}

/// The matrix of latencies between NUMA nodes, if there is one.
fn distance(hwloc: &Hwloc) -> Option<(Vec<u32>, Vec<Vec<u32>>)> {
    let all = hwloc.distances(None).ok()?;
    let matrix = all.iter().find(|d| {
        d.kind().contains(DistancesKind::MEANS_LATENCY)
            && d.objects().all(|o| o.is_some_and(|o| o.object_type() == ObjectType::NUMANode))
    })?;
    let ids: Option<Vec<u32>> = matrix.objects().map(|o| u32::try_from(o?.os_index()?).ok()).collect();
    let ids = ids.filter(|ids| !ids.is_empty())?;
    let rows = matrix.distances().chunks(ids.len());
    let rows = rows.map(|r| r.iter().map(|&d| u32::try_from(d).unwrap_or(u32::MAX)).collect()).collect();
    Some((ids, rows))
}
