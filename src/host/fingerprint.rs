// SPDX-License-Identifier: GPL-2.0-only
//! What tells hosts apart.
//!
//! The hash covers the CPU model and the topology (CPU, core, package, node and L3 of every CPU, the distances), and
//! nothing that changes between two boots of an unchanged machine: no frequencies, no memory sizes, no kernel, no
//! name. A captured host file hashes to the same value as the machine it was captured on. Two machines of one model
//! and shape share it, on purpose; taking a CPU offline changes it, on purpose too.
//!
//! FNV-1a with 64 bits: this separates some hundred hosts, it defends against nobody.

use super::topology::Topology;
use serde::Serialize;
use std::path::Path;

/// Identity of a host as records carry it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostId {
    /// Name of the host file, or the host name.
    pub name: String,
    /// CPU model as the operating system prints it.
    pub cpu_model: String,
    /// Online CPUs.
    pub cpus: u32,
    /// NUMA nodes.
    pub nodes: u32,
    /// Kernel release (`uname -r`); empty where unknown.
    pub kernel: String,
    /// Hash over model and topology, 16 hex digits.
    pub fingerprint: String,
    /// Whether the CPU says it runs under a hypervisor.
    pub virtualised: bool,
}

impl HostId {
    /// The identity of a machine that is known from a file.
    pub fn new(name: &str, cpu_model: &str, kernel: &str, virtualised: bool, topology: &Topology) -> Self {
        HostId {
            name: name.to_string(),
            cpu_model: cpu_model.to_string(),
            cpus: topology.pus.len() as u32,
            nodes: topology.nodes.len() as u32,
            kernel: kernel.to_string(),
            fingerprint: fingerprint(cpu_model, topology),
            virtualised,
        }
    }

    /// The identity of the machine whose file tree starts at `root`.
    pub fn of_machine(root: &Path, topology: &Topology) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default().trim().to_string();
        let cpuinfo = text("proc/cpuinfo");
        let virtualised = is_virtualised(&cpuinfo) || !text("sys/hypervisor/type").is_empty();
        let name = text("proc/sys/kernel/hostname");
        let name = if name.is_empty() { "unnamed" } else { &name };
        Self::new(name, &cpu_model(&cpuinfo), &text("proc/sys/kernel/osrelease"), virtualised, topology)
    }
}

/// The value of the first line `key : value` of a cpuinfo text.
pub(super) fn cpuinfo_field<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (k, v) = line.split_once(':')?;
        (k.trim() == key).then(|| v.trim())
    })
}

fn cpu_model(cpuinfo: &str) -> String {
    // x86 and some others have names; arm64 has numbers only.
    if let Some(name) = cpuinfo_field(cpuinfo, "model name").or_else(|| cpuinfo_field(cpuinfo, "cpu")) {
        return name.to_string();
    }
    match (cpuinfo_field(cpuinfo, "CPU implementer"), cpuinfo_field(cpuinfo, "CPU part")) {
        (Some(who), Some(part)) => {
            let rest = ["CPU variant", "CPU revision"].map(|k| cpuinfo_field(cpuinfo, k).unwrap_or("?"));
            format!("implementer {who} part {part} variant {} revision {}", rest[0], rest[1])
        }
        _ => "unknown".to_string(),
    }
}

pub(super) fn is_virtualised(cpuinfo: &str) -> bool {
    cpuinfo_field(cpuinfo, "flags").is_some_and(|f| f.split_whitespace().any(|f| f == "hypervisor"))
}

fn fingerprint(cpu_model: &str, topology: &Topology) -> String {
    let mut hash = Fnv::new();
    hash.add(cpu_model.as_bytes());
    for p in &topology.pus {
        for n in [p.cpu, p.package, p.node, p.l3, p.core, p.smt] {
            hash.add(&n.to_le_bytes());
        }
    }
    for (node, row) in topology.nodes.iter().zip(&topology.distance.rows) {
        hash.add(&node.id.to_le_bytes());
        row.iter().for_each(|d| hash.add(&d.to_le_bytes()));
    }
    format!("{:016x}", hash.0)
}

/// FNV-1a of `bytes`, 64 bits.
pub fn fnv_1a(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::new();
    hash.add(bytes);
    hash.0
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_1a_gives_the_published_values() {
        for (text, want) in
            [("", 0xcbf2_9ce4_8422_2325u64), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut h = Fnv::new();
            h.add(text.as_bytes());
            assert_eq!(h.0, want, "{text}");
        }
    }

    #[test]
    fn models_without_a_name_get_their_numbers() {
        assert_eq!(cpu_model("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz");
        let arm = "CPU implementer : 0x41\nCPU variant : 0x3\nCPU part : 0xd0c\nCPU revision : 1\n";
        assert_eq!(cpu_model(arm), "implementer 0x41 part 0xd0c variant 0x3 revision 1");
        assert_eq!(cpu_model(""), "unknown");
        assert!(is_virtualised("flags : fpu hypervisor lm\n") && !is_virtualised("flags : fpu lm\n"));
    }

    #[test]
    fn the_hash_sees_model_and_shape_only() {
        let host = super::super::Host::load("example-2x14x2").unwrap();
        let same = |t: &Topology| fingerprint("m", t);
        let mut t = host.topology.clone();
        let before = same(&t);
        t.nodes[0].memory = Some(1);
        t.notes.push("note".into());
        t.allowed = vec![0];
        assert_eq!(same(&t), before);
        assert_ne!(fingerprint("n", &t), before);
        t.distance.rows[0][1] += 1;
        assert_ne!(same(&t), before);
        let mut t = host.topology.clone();
        t.pus[5].l3 = 1;
        assert_ne!(same(&t), before);
    }
}
