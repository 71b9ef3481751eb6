// SPDX-License-Identifier: GPL-2.0-only
//! Tests over several files of this floor.

use super::plan::{auto_ladder, mmtests_ladder};
use super::*;

fn cpus(host: &Host, kind: &str, threads: usize) -> Vec<u32> {
    host.plan(kind, threads).unwrap().iter().map(|s| s.cpu).collect()
}

#[test]
fn ladders_are_those_of_mmtests() {
    assert_eq!(mmtests_ladder(56), [1, 4, 7, 12, 21, 30, 48, 56]);
    assert_eq!(mmtests_ladder(1), [1]);
    assert_eq!(mmtests_ladder(2), [1, 2]);
    assert_eq!(mmtests_ladder(8), [1, 3, 5, 7, 8]);
    assert_eq!(mmtests_ladder(7), [1, 3, 5, 7]);
    assert_eq!(mmtests_ladder(9), [1, 3, 5, 7, 9]);
    assert_eq!(mmtests_ladder(32), [1, 3, 5, 7, 12, 18, 24, 30, 32]);
    assert_eq!(mmtests_ladder(33), [1, 4, 7, 12, 21, 30, 33]);
    assert_eq!(mmtests_ladder(128), [1, 4, 7, 12, 21, 30, 48, 79, 110, 128]);
    assert_eq!(mmtests_ladder(141), [1, 4, 7, 12, 21, 30, 48, 79, 110, 141]);
    assert_eq!(mmtests_ladder(0), [0u32; 0]);
    assert_eq!(auto_ladder(56), [1, 2, 4, 7, 12, 21, 30, 48, 56]);
    assert_eq!(auto_ladder(1), [1]);
    assert_eq!(auto_ladder(2), [1, 2]);
    assert_eq!(auto_ladder(8), [1, 2, 3, 5, 7, 8]);
}

#[test]
fn plans_of_the_two_socket_example() {
    let host = Host::load("example-2x14x2").unwrap();
    assert_eq!(cpus(&host, "compact", 6), [0, 28, 1, 29, 2, 30]);
    assert_eq!(cpus(&host, "compact", 56)[28..30], [14, 42]);
    assert_eq!(cpus(&host, "scatter", 5), [0, 14, 1, 15, 2]);
    assert_eq!(cpus(&host, "scatter", 56)[26..31], [13, 27, 28, 42, 29]);
    assert_eq!(cpus(&host, "per-node", 56)[12..16], [12, 13, 28, 29]);
    assert_eq!(cpus(&host, "per-node", 56)[27..30], [41, 14, 15]);
    assert_eq!(cpus(&host, "no-smt", 28), (0..28).collect::<Vec<_>>());
    assert_eq!(cpus(&host, "7,40,3", 2), [7, 40]);
    assert_eq!(host.plan("scatter", 4).unwrap().iter().map(|s| s.node).collect::<Vec<_>>(), [0, 1, 0, 1]);
}

#[test]
fn scatter_goes_as_far_apart_as_the_shape_allows() {
    let host = Host::load("example-8n-64").unwrap();
    // Packages in turn, then nodes in turn, then the second L3 of each node.
    assert_eq!(cpus(&host, "scatter", 10), [0, 32, 8, 40, 16, 48, 24, 56, 4, 36]);
    let big = Host::load("example-16n-512").unwrap();
    let nodes: std::collections::BTreeSet<u32> = big.plan("scatter", 16).unwrap().iter().map(|s| s.node).collect();
    assert_eq!(nodes.len(), 16);
}

#[test]
fn every_plan_names_each_cpu_once_and_grows_by_its_end() {
    for name in ["example-2x14x2", "example-8n-64", "example-16n-512"] {
        let host = Host::load(name).unwrap();
        let cores = host.topology.cores().len();
        for kind in PinKind::NAMED {
            let most = if kind == PinKind::NoSmt { cores } else { host.topology.pus.len() };
            let kind = kind.to_string();
            let all = cpus(&host, &kind, most);
            assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), most, "{name} {kind}");
            assert_eq!(cpus(&host, &kind, most / 3), all[..most / 3]);
            let e = host.plan(&kind, most + 1).unwrap_err().to_string();
            assert!(e.contains(&format!("{} threads", most + 1)) && e.contains(&format!("on {most} ")), "{e}");
        }
        assert!(host.plan("compact", 0).is_err());
    }
}

#[test]
fn plans_keep_to_the_allowed_cpus() {
    let mut host = Host::load("example-2x14x2").unwrap();
    // Of core 0 only the second thread, of cores 14 and 15 both, as a cpuset might leave.
    host.topology.restrict(&[28, 14, 15, 42, 43, 99]).unwrap();
    assert_eq!(host.topology.allowed, [14, 15, 28, 42, 43]);
    assert_eq!(cpus(&host, "compact", 5), [28, 14, 42, 15, 43]);
    assert_eq!(cpus(&host, "scatter", 5), [28, 14, 15, 42, 43]);
    assert_eq!(cpus(&host, "no-smt", 3), [28, 14, 15]);
    assert!(host.plan("no-smt", 4).unwrap_err().to_string().contains("4 threads do not fit on 3 allowed cores"));
    assert!(host.plan("compact", 6).unwrap_err().to_string().contains("6 threads do not fit on 5 allowed CPUs"));
    assert!(host.plan("0", 1).unwrap_err().to_string().contains("CPU 0 is not allowed"));
    assert!(host.plan("77", 1).unwrap_err().to_string().contains("no CPU 77"));
    assert!(host.plan("fast", 1).unwrap_err().to_string().contains("compact, scatter"));
    assert!(host.topology.restrict(&[99]).is_err());
}

#[test]
fn this_machine_is_read_and_planned() {
    let host = Host::load("this").unwrap();
    assert!(host.is_this && !host.invented);
    assert_eq!(host.topology.allowed, affinity::allowed());
    assert!(!host.id.kernel.is_empty() && host.id.fingerprint.len() == 16);
    assert_eq!(host.plan("compact", host.topology.allowed.len()).unwrap().len(), host.topology.allowed.len());
    let text = host.show();
    assert!(text.contains(&host.id.fingerprint) && text.contains("scatter"), "{text}");
    assert_eq!(host.to_json()["id"]["fingerprint"], host.id.fingerprint.as_str());
    assert!(!host.warnings.iter().any(|w| w.contains("differ")), "{:?}", host.warnings);
}

#[test]
fn examples_are_marked_and_shaped_as_they_say() {
    for (name, shape) in [
        ("example-2x14x2", [2, 2, 2, 28, 56]),
        ("example-8n-64", [2, 8, 16, 64, 64]),
        ("example-16n-512", [16, 16, 16, 256, 512]),
    ] {
        let host = Host::load(name).unwrap();
        let t = &host.topology;
        let found = [t.packages().len(), t.nodes.len(), t.l3_groups().len(), t.cores().len(), t.pus.len()];
        assert_eq!(found, shape, "{name}");
        assert!(host.invented && host.note.starts_with("invented, not a real machine"));
        assert!(host.show().contains("INVENTED"));
        assert!(!t.distance.assumed && t.notes.is_empty());
        assert!(Host::list().iter().any(|l| l.name == name));
    }
}
