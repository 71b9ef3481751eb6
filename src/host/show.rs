// SPDX-License-Identifier: GPL-2.0-only
//! A host as text and as JSON.

use super::plan::{self, PinKind};
use super::{Host, cpulist};
use serde_json::{Value, json};
use std::fmt::Write;

/// Columns of the text.
const WIDTH: usize = 100;

impl Host {
    /// Topology, plans and thread counts, for reading.
    pub fn show(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (t, id) = (&self.topology, &self.id);
        writeln!(
            out,
            "host         {}{}",
            id.name,
            if self.invented { " (INVENTED, not a real machine)" } else { "" }
        )?;
        writeln!(out, "source       {}", t.source)?;
        let guest = if id.virtualised { " (under a hypervisor)" } else { "" };
        writeln!(out, "cpu          {}{guest}", id.cpu_model)?;
        if !id.kernel.is_empty() {
            writeln!(out, "kernel       {}", id.kernel)?;
        }
        writeln!(out, "fingerprint  {}", id.fingerprint)?;
        let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
        let shape = [
            count(t.packages().len(), "package"),
            count(t.nodes.len(), "node"),
            count(t.l3_groups().len(), "L3 group"),
            count(t.cores().len(), "core"),
            count(t.pus.len(), "CPU"),
        ];
        writeln!(out, "shape        {}", shape.join(", "))?;
        writeln!(out, "allowed      {} ({})", cpulist::format(&t.allowed), t.allowed.len())?;
        for (i, cpus) in t.packages().iter().enumerate() {
            writeln!(out, "package {i:<4} CPUs {}", cpulist::format(cpus))?;
        }
        for node in &t.nodes {
            let memory = node.memory.map_or("memory unknown".to_string(), |m| format!("{} MiB", m >> 20));
            let cpus = if node.cpus.is_empty() { "none".to_string() } else { cpulist::format(&node.cpus) };
            writeln!(out, "node {:<7} CPUs {cpus}, {memory}", node.id)?;
        }
        for (i, cpus) in t.l3_groups().iter().enumerate() {
            writeln!(out, "L3 {i:<9} CPUs {}", cpulist::format(cpus))?;
        }
        for kind in &t.kinds {
            writeln!(out, "kind         {}: CPUs {}", kind.name, cpulist::format(&kind.cpus))?;
        }
        if t.nodes.len() > 1 {
            writeln!(out, "distances{}", if t.distance.assumed { " (ASSUMED: nobody reports them)" } else { "" })?;
            let ids: String = t.nodes.iter().map(|n| format!("{:>5}", n.id)).collect();
            writeln!(out, "     {ids}")?;
            for (node, row) in t.nodes.iter().zip(&t.distance.rows) {
                let row: String = row.iter().map(|d| format!("{d:>5}")).collect();
                writeln!(out, "{:>5}{row}", node.id)?;
            }
        }
        if let Some(cpuset) = &self.limits.cpuset {
            writeln!(out, "cpuset       {}", cpulist::format(cpuset))?;
        }
        if let Some(quota) = self.limits.quota_cpus {
            writeln!(out, "CPU quota    {quota:.2} CPUs")?;
        }
        writeln!(out, "plans (CPU of worker 0, 1, 2, ...)")?;
        for kind in PinKind::NAMED {
            let order = plan::order(t, &kind).map(|o| o.iter().map(|p| p.cpu).collect::<Vec<_>>());
            let text = order.map_or_else(|e| e.to_string(), |o| in_order(&o));
            writeln!(out, "  {:<10} {}", kind.to_string(), cut(&text, WIDTH - 13))?;
        }
        let n = t.allowed.len() as u32;
        let list = |l: Vec<u32>| l.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        writeln!(out, "thread counts")?;
        writeln!(out, "  auto       {}", list(plan::auto_ladder(n)))?;
        writeln!(out, "  mmtests    {}", list(plan::mmtests_ladder(n)))?;
        if !self.price_ns.is_empty() {
            writeln!(out, "prices for the simulator, ns")?;
            for (name, ns) in &self.price_ns {
                writeln!(out, "  {name} {ns}")?;
            }
        }
        for note in &t.notes {
            writeln!(out, "note: {note}")?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        Ok(())
    }

    /// The same as one JSON object; plans are complete CPU lists in worker order.
    pub fn to_json(&self) -> Value {
        let t = &self.topology;
        let plans: serde_json::Map<String, Value> = PinKind::NAMED
            .iter()
            .filter_map(|k| Some((k.to_string(), plan::order(t, k).ok()?.iter().map(|p| p.cpu).collect())))
            .collect();
        let pus: Vec<Value> = t
            .pus
            .iter()
            .map(|p| {
                json!({"cpu": p.cpu, "core": p.core, "package": p.package, "node": p.node, "l3": p.l3, "smt": p.smt})
            })
            .collect();
        let nodes: Vec<Value> =
            t.nodes.iter().map(|n| json!({"id": n.id, "cpus": n.cpus, "memory": n.memory})).collect();
        let kinds: Vec<Value> = t.kinds.iter().map(|k| json!({"name": k.name, "cpus": k.cpus})).collect();
        let n = t.allowed.len() as u32;
        json!({
            "id": self.id,
            "source": t.source.to_string(),
            "is_this": self.is_this,
            "invented": self.invented,
            "note": self.note,
            "packages": t.packages(),
            "l3_groups": t.l3_groups(),
            "cores": t.cores(),
            "cpus": pus,
            "nodes": nodes,
            "distance": t.distance.rows,
            "distance_assumed": t.distance.assumed,
            "kinds": kinds,
            "allowed": t.allowed,
            "limits": self.limits,
            "plans": plans,
            "threads_auto": plan::auto_ladder(n),
            "threads_mmtests": plan::mmtests_ladder(n),
            "price_ns": self.price_ns,
            "notes": t.notes,
            "warnings": self.warnings,
        })
    }
}

/// A CPU order with runs drawn together: `0-13,28,29` would be a set, `0..13 28 29` is an order.
fn in_order(cpus: &[u32]) -> String {
    let mut parts = Vec::new();
    let mut i = 0;
    while i < cpus.len() {
        let mut j = i;
        while j + 1 < cpus.len() && cpus[j + 1] == cpus[j] + 1 {
            j += 1;
        }
        match j - i {
            0 => parts.push(cpus[i].to_string()),
            1 => parts.extend([cpus[i].to_string(), cpus[j].to_string()]),
            _ => parts.push(format!("{}..{}", cpus[i], cpus[j])),
        }
        i = j + 1;
    }
    parts.join(" ")
}

/// Cuts at a space and says so.
fn cut(text: &str, width: usize) -> String {
    if text.len() <= width {
        return text.to_string();
    }
    let end = text[..width - 4].rfind(' ').unwrap_or(width - 4);
    format!("{} ...", &text[..end])
}
