// SPDX-License-Identifier: GPL-2.0-only
//! At the side of all floors: the host. Imports std (and the libraries for topology, pinning and files) only.
//!
//! A host is a topology with an identity: this machine, a machine described by a file (for the simulator, and for
//! planning a run elsewhere), or a shape given as a string. [`Host::load`] takes the text of `--host`.
//!
//! This machine is read by hwloc where it is built in, and by sysfs always; if the two differ, or if the environment
//! gives hwloc another machine, the host carries a warning. Plans use the CPUs that affinity mask and cpuset leave.
//! Load this machine before the first pin: [`affinity::allowed`] is the calling thread's mask.
//!
//! Nothing here changes a machine; `ready` only looks.

pub mod affinity;
pub mod cgroup;
pub mod cpulist;
mod error;
pub mod file;
pub mod fingerprint;
#[cfg(feature = "hwloc")]
mod hwloc;
pub mod plan;
pub mod ready;
mod show;
pub mod sysfs;
pub mod topology;

#[cfg(test)]
mod tests;

pub use error::HostError;
pub use fingerprint::HostId;
pub use plan::{PinKind, Slot};
pub use topology::Topology;

use file::HostFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Directory of the host files, below the working directory.
pub const HOSTS_DIR: &str = "hosts";

/// A machine to run on, to plan for, or to simulate.
#[derive(Clone, Debug)]
pub struct Host {
    /// What tells it apart; goes into every record.
    pub id: HostId,
    /// Its shape.
    pub topology: Topology,
    /// Whether this is the machine we run on, so that pinning to its CPUs means something.
    pub is_this: bool,
    /// No such machine exists (built-in examples).
    pub invented: bool,
    /// One sentence of the host file.
    pub note: String,
    /// Prices for the simulator in ns, by its names; what is absent has the simulator's default.
    pub price_ns: BTreeMap<String, f64>,
    /// What the control groups allow (this machine only).
    pub limits: cgroup::Limits,
    /// What a reader of figures from this host must know.
    pub warnings: Vec<String>,
}

/// A host that can be named.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// Name for `--host`.
    pub name: String,
    /// One sentence.
    pub sentence: String,
    /// `built in`, or the directory.
    pub origin: String,
}

impl Host {
    /// Loads a host by `this`, `synthetic:STRING`, a path (host.toml, hwloc XML, directory), or the name of a
    /// directory under `hosts/` or of a built-in example.
    ///
    /// # Errors
    /// One line naming file, field and remedy.
    pub fn load(spec: &str) -> Result<Host, HostError> {
        let path = Path::new(spec);
        if spec == "this" {
            return Self::this();
        }
        if let Some(text) = spec.strip_prefix("synthetic:") {
            return Self::synthetic(text.trim());
        }
        if spec.contains('/') || path.extension().is_some_and(|e| e == "toml" || e == "xml") {
            return Self::from_path(path);
        }
        let named = Path::new(HOSTS_DIR).join(spec);
        if !spec.is_empty() && named.is_dir() {
            return Self::from_path(&named);
        }
        if let Some((name, text)) = file::EXAMPLES.iter().find(|(name, _)| *name == spec) {
            return Self::from_file(HostFile::parse(text, name)?, name, None);
        }
        let names: Vec<String> = Self::list().into_iter().map(|l| l.name).collect();
        Err(HostError::new(
            format!("host `{spec}`"),
            format!("there is no {} and no built-in host of this name", named.join("host.toml").display()),
            format!("use one of {}, a path, or synthetic:STRING", names.join(", ")),
        ))
    }

    /// This machine.
    fn this() -> Result<Host, HostError> {
        let root = Path::new("/");
        let mut warnings = Vec::new();
        let mut topology = this_topology(&mut warnings)?;
        let id = HostId::of_machine(root, &topology);
        let allowed = affinity::allowed();
        if allowed.is_empty() {
            warnings.push("the affinity mask cannot be read: all CPUs are taken as allowed".to_string());
        } else {
            topology.restrict(&allowed)?;
        }
        let limits = cgroup::read(root);
        if let Some(cpuset) = &limits.cpuset {
            let outside: Vec<u32> = topology.allowed.iter().copied().filter(|c| !cpuset.contains(c)).collect();
            if !outside.is_empty() && outside.len() < topology.allowed.len() {
                warnings.push(format!("the cpuset forbids CPUs {}, which the mask allows", cpulist::format(&outside)));
                topology.restrict(cpuset)?;
            }
        }
        warnings.extend(limits.warning(topology.allowed.len()));
        if topology.allowed.len() < topology.pus.len() {
            let (allowed, all) = (topology.allowed.len(), topology.pus.len());
            warnings.push(format!("{allowed} of {all} CPUs are allowed: {}", cpulist::format(&topology.allowed)));
        }
        let (price_ns, note) = (BTreeMap::new(), String::new());
        Ok(Host { id, topology, is_this: true, invented: false, note, price_ns, limits, warnings })
    }

    fn synthetic(text: &str) -> Result<Host, HostError> {
        let topology = hwloc_only::synthetic(text)?;
        let id = HostId::new(&format!("synthetic:{text}"), "synthetic", "", false, &topology);
        Ok(Self::described(id, topology, true, "invented: a synthetic string".to_string(), BTreeMap::new()))
    }

    fn from_path(path: &Path) -> Result<Host, HostError> {
        if path.is_dir() {
            let toml = path.join("host.toml");
            let xml = path.join("topology.xml");
            if toml.exists() || !xml.exists() {
                return Self::from_toml(&toml);
            }
            return Self::from_xml(&xml);
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => Self::from_toml(path),
            Some("xml") => Self::from_xml(path),
            _ if !path.exists() => Err(HostError::new(
                path.display(),
                "no such file or directory",
                "name a host.toml, an hwloc XML file, or a directory with one of them",
            )),
            _ => Err(HostError::new(path.display(), "neither .toml nor .xml", "rename it to what it is")),
        }
    }

    fn from_toml(path: &Path) -> Result<Host, HostError> {
        let place = path.display().to_string();
        Self::from_file(HostFile::read(path)?, &place, path.parent())
    }

    fn from_file(file: HostFile, place: &str, dir: Option<&Path>) -> Result<Host, HostError> {
        let topology = match (file.topology(place)?, dir.map(|d| d.join("topology.xml")).filter(|x| x.exists())) {
            (Some(topology), _) => topology,
            (None, Some(xml)) => hwloc_only::xml(&xml)?.0,
            (None, None) => {
                return Err(HostError::field(
                    place,
                    "topology",
                    "it is missing, and there is no topology.xml beside the file",
                    "add the table (docs/hosts.md), or the XML of lstopo-no-graphics",
                ));
            }
        };
        let id = HostId::new(&file.name, &file.cpu_model, &file.kernel, file.virtualised, &topology);
        Ok(Self::described(id, topology, file.invented, file.note, file.price_ns))
    }

    fn from_xml(path: &Path) -> Result<Host, HostError> {
        let (topology, infos) = hwloc_only::xml(path)?;
        let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
        let name = match stem(path) {
            Some(s) if s != "topology" => s,
            _ => path.parent().and_then(stem).unwrap_or_else(|| "unnamed".to_string()),
        };
        let info = |key: &str| infos.get(key).map_or("", String::as_str);
        let model = match info("CPUModel") {
            "" => "unknown",
            model => model,
        };
        let id = HostId::new(&name, model, info("OSRelease"), false, &topology);
        let mut host = Self::described(id, topology, false, "read from hwloc XML".to_string(), BTreeMap::new());
        host.warnings.push("hwloc XML does not say whether the machine is virtual".to_string());
        Ok(host)
    }

    fn described(
        id: HostId,
        topology: Topology,
        invented: bool,
        note: String,
        price_ns: BTreeMap<String, f64>,
    ) -> Host {
        let warnings =
            if invented { vec!["this host is invented, not a real machine".to_string()] } else { Vec::new() };
        let limits = cgroup::Limits::default();
        Host { id, topology, is_this: false, invented, note, price_ns, limits, warnings }
    }

    /// The CPUs of `threads` workers under a pin plan (`compact`, `scatter`, `per-node`, `no-smt`, `0,2,4-7`).
    ///
    /// # Errors
    /// As [`plan::plan`], and for a text that is no plan.
    pub fn plan(&self, kind: &str, threads: usize) -> Result<Vec<Slot>, HostError> {
        plan::plan(&self.topology, &kind.parse()?, threads)
    }

    /// Hosts that can be named: this one, those under `hosts/`, the built-in examples.
    pub fn list() -> Vec<Listed> {
        let mut all = vec![Listed {
            name: "this".into(),
            sentence: "the machine this runs on".into(),
            origin: "built in".into(),
        }];
        let mut dirs: Vec<PathBuf> = std::fs::read_dir(HOSTS_DIR)
            .map(|d| d.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect())
            .unwrap_or_default();
        dirs.sort();
        for dir in dirs {
            let Some(name) = dir.file_name().map(|n| n.to_string_lossy().into_owned()) else { continue };
            let toml = dir.join("host.toml");
            let sentence = match HostFile::read(&toml) {
                _ if !toml.exists() && !dir.join("topology.xml").exists() => continue,
                _ if !toml.exists() => "hwloc XML only".to_string(),
                Ok(file) if file.note.is_empty() => file.cpu_model,
                Ok(file) => file.note,
                Err(e) => format!("unreadable: {e}"),
            };
            all.push(Listed { name, sentence, origin: dir.display().to_string() });
        }
        for (name, text) in file::EXAMPLES {
            if all.iter().all(|l| l.name != name) {
                let sentence = HostFile::parse(text, name).map(|f| f.note).unwrap_or_default();
                all.push(Listed { name: name.to_string(), sentence, origin: "built in".to_string() });
            }
        }
        all
    }

    /// Writes `NAME/host.toml` and, with hwloc, `NAME/topology.xml` under `dir` (usually `hosts`); returns the files
    /// written. NAME is `self.id.name`, which the caller may have changed. Nothing is overwritten.
    ///
    /// # Errors
    /// If this is not the machine we run on, if the host file exists, or if a file cannot be written.
    pub fn capture(&self, dir: &Path) -> Result<Vec<PathBuf>, HostError> {
        if !self.is_this {
            let remedy = "run it on that machine, or copy its directory";
            return Err(HostError::new(&self.id.name, "only the machine we run on can be captured", remedy));
        }
        let name: String = self
            .id
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
            .collect();
        let name = name.trim_start_matches('.');
        if name.is_empty() || name == "this" {
            return Err(HostError::new(
                format!("name `{}`", self.id.name),
                "it cannot be a host's name",
                "choose another",
            ));
        }
        let dir = dir.join(name);
        let toml = dir.join("host.toml");
        if toml.exists() {
            let remedy = "remove it, or capture under another name";
            return Err(HostError::new(toml.display(), "it exists and is not overwritten", remedy));
        }
        let file = HostFile {
            schema: file::SCHEMA,
            name: name.to_string(),
            note: self.note.clone(),
            cpu_model: self.id.cpu_model.clone(),
            kernel: self.id.kernel.clone(),
            virtualised: self.id.virtualised,
            topology: Some(HostFile::shape(&self.topology)),
            price_ns: self.price_ns.clone(),
            ..HostFile::default()
        };
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text)
                .map_err(|e| HostError::new(path.display(), e, "choose a directory you may write"))
        };
        std::fs::create_dir_all(&dir)
            .map_err(|e| HostError::new(dir.display(), e, "choose a directory you may write"))?;
        let mut written = vec![toml.clone()];
        write(&toml, &file.to_text()?)?;
        if let Some(xml) = hwloc_only::export()? {
            written.push(dir.join("topology.xml"));
            write(&dir.join("topology.xml"), &xml)?;
        }
        Ok(written)
    }
}

/// This machine by the best reader built in, compared with sysfs.
fn this_topology(warnings: &mut Vec<String>) -> Result<Topology, HostError> {
    let by_sysfs = sysfs::read(Path::new("/"));
    let (by_hwloc, is_this_system) = match hwloc_only::this_machine() {
        None => return by_sysfs,
        Some(Ok(found)) => found,
        Some(Err(e)) => {
            warnings.push(format!("hwloc failed, sysfs is used: {e}"));
            return by_sysfs;
        }
    };
    if !is_this_system {
        warnings.push(
            "the environment (HWLOC_SYNTHETIC, HWLOC_XMLFILE or HWLOC_FSROOT) replaces this machine's topology: \
             nodes and cores are fiction"
                .to_string(),
        );
    } else if let Some(difference) = by_sysfs.ok().and_then(|s| by_hwloc.difference(&s)) {
        warnings.push(format!("hwloc and sysfs differ, hwloc is used: {difference}"));
    }
    Ok(by_hwloc)
}

/// What only hwloc can do, with the refusals of a build without it.
#[cfg(feature = "hwloc")]
mod hwloc_only {
    use super::{BTreeMap, HostError, Path, Topology, hwloc};

    pub fn this_machine() -> Option<Result<(Topology, bool), HostError>> {
        Some(hwloc::this_machine().map(|(t, extra)| (t, extra.is_this_system)))
    }

    pub fn xml(path: &Path) -> Result<(Topology, BTreeMap<String, String>), HostError> {
        hwloc::xml(path).map(|(t, extra)| (t, extra.infos))
    }

    pub fn synthetic(text: &str) -> Result<Topology, HostError> {
        hwloc::synthetic(text).map(|(t, _)| t)
    }

    pub fn export() -> Result<Option<String>, HostError> {
        hwloc::export_this_machine().map(Some)
    }
}

#[cfg(not(feature = "hwloc"))]
mod hwloc_only {
    use super::topology::Source;
    use super::{BTreeMap, HostError, Path, Topology};

    const REMEDY: &str = "build with the feature `hwloc`, or use a host.toml with a [topology] table";

    pub fn this_machine() -> Option<Result<(Topology, bool), HostError>> {
        None
    }

    pub fn xml(path: &Path) -> Result<(Topology, BTreeMap<String, String>), HostError> {
        Err(HostError::new(path.display(), "hwloc XML cannot be read by this build", REMEDY))
    }

    pub fn synthetic(text: &str) -> Result<Topology, HostError> {
        let source = Source::Synthetic(text.to_string());
        Err(HostError::new(source, "synthetic strings cannot be read by this build", REMEDY))
    }

    pub fn export() -> Result<Option<String>, HostError> {
        Ok(None)
    }
}
