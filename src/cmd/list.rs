// SPDX-License-Identifier: GPL-2.0-only
//! `faultline list`: what there is, with a sentence each.

use super::Failure;
use crate::measure::perf::event_names;
use crate::measure::port::counter_slots;
use crate::mm::variant;
use crate::mm::vma_cache::CACHES;
use crate::mm::vma_lock::{Claim, PROTOCOLS, SCENARIOS};
use crate::workload::{self, Workload};
use serde_json::{Value, json};

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Example: faultline list workloads")]
pub struct Args {
    /// What to list: variants, protocols, caches, allocators, workloads, hosts, events; all without it
    #[arg(value_parser = ["variants", "protocols", "caches", "allocators", "workloads", "hosts", "events"])]
    what: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A row: name, sentences.
type Rows = Vec<(String, Vec<String>)>;

fn rows(what: &str) -> Rows {
    match what {
        "variants" => {
            let cpus = crate::host::affinity::allowed().len() as u32;
            variant::all()
                .into_iter()
                .map(|v| {
                    let f = v.footprint(cpus);
                    let about = format!("{}+{}@{}, {}", v.protocol, v.cache, v.allocator, v.verdict.name());
                    let bytes = format!("{} bytes a VMA, {:.0} of slab ({cpus} CPUs)", f.objects, f.slab);
                    (v.name, vec![about, bytes])
                })
                .collect()
        }
        "protocols" => PROTOCOLS
            .iter()
            .map(|p| {
                let claims = SCENARIOS.iter().zip(p.claims);
                let busted: Vec<_> = claims.filter(|(_, c)| *c == Claim::Busted).map(|((id, _), _)| *id).collect();
                let mut about = vec![format!("{} ({}; {})", p.about, p.origin, p.verdict.name())];
                if !busted.is_empty() {
                    about.push(format!("busted in {}", busted.join(", ")));
                }
                (p.name.into(), about)
            })
            .collect(),
        "caches" => CACHES.iter().map(|c| (c.name.into(), vec![c.about.into()])).collect(),
        "allocators" => {
            variant::ALLOCATORS.iter().map(|(name, about, _)| ((*name).into(), vec![(*about).into()])).collect()
        }
        "workloads" => workload::LIST
            .iter()
            .chain([&workload::trace::TraceLoop::ABOUT])
            .map(|a| {
                let mut about = vec![
                    format!("operation: {}; default mode: {}", a.operation, a.mode.name()),
                    format!("why: {}", a.why),
                    format!("shows: {}", a.shows),
                    format!("cannot show: {}", a.cannot),
                ];
                if a.name == "trace" {
                    return ("trace:FILE".into(), about);
                }
                about.extend(workload::not_on_host(a.name).map(|why| format!("not in the kernel world: {why}")));
                (a.name.into(), about)
            })
            .collect(),
        "hosts" => {
            crate::host::Host::list().into_iter().map(|h| (h.name, vec![h.sentence + " (" + &h.origin + ")"])).collect()
        }
        _ => counter_slots()
            .map(|(n, _)| (n.into(), vec!["counter of a record, summed over CPUs".into()]))
            .chain(event_names().into_iter().map(|n| (n.into(), vec!["perf event of a thread's span".into()])))
            .collect(),
    }
}

/// Runs the verb.
///
/// # Errors
/// None so far.
pub fn main(a: &Args) -> Result<(), Failure> {
    let all = ["variants", "protocols", "caches", "allocators", "workloads", "hosts", "events"];
    let wanted: Vec<&str> = all.into_iter().filter(|w| a.what.as_deref().is_none_or(|x| x == *w)).collect();
    if a.json {
        let mut out = serde_json::Map::new();
        for w in wanted {
            let list = rows(w).into_iter().map(|(n, s)| json!({"name": n, "about": s})).collect();
            out.insert(w.into(), Value::Array(list));
        }
        println!("{}", Value::Object(out));
        return Ok(());
    }
    for (i, w) in wanted.iter().enumerate() {
        if wanted.len() > 1 {
            println!("{}{w}", if i == 0 { "" } else { "\n" });
        }
        for (name, sentences) in rows(w) {
            println!("{name}");
            for s in sentences {
                println!("    {s}");
            }
        }
    }
    Ok(())
}
