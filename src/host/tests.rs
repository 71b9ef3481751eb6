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

/// A directory for thousands of small files: in memory where there is such a place.
fn many_files() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Writes the file tree that Linux would show for a topology.
fn write_sysfs(t: &Topology, root: &Path) {
    let write = |path: String, text: String| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text + "\n").unwrap();
    };
    let map = |cpus: &[u32]| {
        let words = cpus.iter().max().map_or(1, |m| *m as usize / 32 + 1);
        let mut mask = vec![0u32; words];
        cpus.iter().for_each(|c| mask[*c as usize / 32] |= 1 << (c % 32));
        mask.iter().rev().map(|w| format!("{w:08x}")).collect::<Vec<_>>().join(",")
    };
    let all: Vec<u32> = t.pus.iter().map(|p| p.cpu).collect();
    let cpu_dir = "sys/devices/system/cpu";
    for name in ["online", "possible", "present"] {
        write(format!("{cpu_dir}/{name}"), cpulist::format(&all));
    }
    let cpuinfo: Vec<String> = all.iter().map(|c| format!("processor : {c}\nmodel name : test")).collect();
    write("proc/cpuinfo".into(), cpuinfo.join("\n\n"));
    write("proc/meminfo".into(), "MemTotal: 1048576 kB".into());
    for p in &t.pus {
        let dir = format!("{cpu_dir}/cpu{}", p.cpu);
        write(format!("{dir}/topology/physical_package_id"), p.package.to_string());
        // As on real machines, core numbers begin anew in each package.
        write(format!("{dir}/topology/core_id"), (p.core % 4).to_string());
        for (list, bits, cpus) in [
            ("core_cpus_list", "core_cpus", &t.cores()[p.core as usize]),
            ("thread_siblings_list", "thread_siblings", &t.cores()[p.core as usize]),
            ("package_cpus_list", "package_cpus", &t.packages()[p.package as usize]),
            ("core_siblings_list", "core_siblings", &t.packages()[p.package as usize]),
        ] {
            write(format!("{dir}/topology/{list}"), cpulist::format(cpus));
            write(format!("{dir}/topology/{bits}"), map(cpus));
        }
        for (index, level, kind, cpus) in [
            (0, 1, "Data", &t.cores()[p.core as usize]),
            (1, 1, "Instruction", &t.cores()[p.core as usize]),
            (3, 3, "Unified", &t.l3_groups()[p.l3 as usize]),
        ] {
            let dir = format!("{dir}/cache/index{index}");
            write(format!("{dir}/level"), level.to_string());
            write(format!("{dir}/type"), kind.to_string());
            write(format!("{dir}/size"), "1024K".to_string());
            write(format!("{dir}/coherency_line_size"), "64".to_string());
            write(format!("{dir}/number_of_sets"), "1024".to_string());
            write(format!("{dir}/physical_line_partition"), "1".to_string());
            write(format!("{dir}/shared_cpu_list"), cpulist::format(cpus));
            write(format!("{dir}/shared_cpu_map"), map(cpus));
        }
    }
    let nodes: Vec<u32> = t.nodes.iter().map(|n| n.id).collect();
    for name in ["online", "possible", "has_cpu", "has_memory"] {
        write(format!("sys/devices/system/node/{name}"), cpulist::format(&nodes));
    }
    for (node, row) in t.nodes.iter().zip(&t.distance.rows) {
        let dir = format!("sys/devices/system/node/node{}", node.id);
        write(format!("{dir}/cpulist"), cpulist::format(&node.cpus));
        write(format!("{dir}/cpumap"), map(&node.cpus));
        write(format!("{dir}/distance"), row.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
        write(format!("{dir}/meminfo"), format!("Node {} MemTotal:  2097152 kB", node.id));
    }
}

/// A machine in which every number differs: hardware threads, two L3 groups a node, two nodes a package, a gap in the
/// node numbers, CPUs dealt out in turn.
fn crooked() -> Topology {
    let text = r#"
        schema = 1
        name = "crooked"
        cpu_model = "test"
        [topology]
        cpus = "0-31"
        packages = ["0-7,16-23", "8-15,24-31"]
        l3 = ["0-1,16-17", "2-3,18-19", "4-5,20-21", "6-7,22-23", "8-9,24-25", "10-11,26-27", "12-13,28-29", "14-15,30-31"]
        smt_stride = 16
        distance = [[10, 12, 30, 32], [12, 10, 32, 30], [30, 32, 10, 12], [32, 30, 12, 10]]
        node = [{ id = 0, cpus = "0-3,16-19" }, { id = 1, cpus = "4-7,20-23" },
                { id = 4, cpus = "8-11,24-27" }, { id = 5, cpus = "12-15,28-31" }]
    "#;
    HostFile::parse(text, "crooked").unwrap().topology("crooked").unwrap().unwrap()
}

#[test]
fn sysfs_is_read_back_as_it_was_written() {
    for name in ["example-2x14x2", "example-8n-64", "example-16n-512"] {
        let dir = many_files();
        let want = Host::load(name).unwrap().topology;
        write_sysfs(&want, dir.path());
        let found = sysfs::read(dir.path()).unwrap();
        assert_eq!(found.difference(&want), None, "{name}");
        assert!(!found.distance.assumed && found.notes.is_empty(), "{:?}", found.notes);
        assert_eq!(found.nodes[0].memory, Some(2 << 30));
    }
    let dir = many_files();
    write_sysfs(&crooked(), dir.path());
    assert_eq!(sysfs::read(dir.path()).unwrap().difference(&crooked()), None);
}

#[test]
fn sysfs_copes_with_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let cpu = dir.path().join("sys/devices/system/cpu");
    let e = sysfs::read(dir.path()).unwrap_err().to_string();
    assert!(e.contains("cpu/online") && e.contains("--host"), "{e}");
    std::fs::create_dir_all(cpu.join("cpu1/topology")).unwrap();
    std::fs::write(cpu.join("online"), "1,3\n").unwrap();
    // Names of kernels before 5.3.
    std::fs::write(cpu.join("cpu1/topology/thread_siblings_list"), "1\n").unwrap();
    let t = sysfs::read(dir.path()).unwrap();
    assert_eq!((t.pus.len(), t.cores().len(), t.packages().len(), t.nodes.len()), (2, 2, 1, 1));
    assert_eq!(t.notes.len(), 4, "{:?}", t.notes);
    assert!(t.distance.assumed);
    assert_eq!(t.difference(&t.clone()), None);
}

#[test]
fn differences_are_seen() {
    let a = crooked();
    let change = |f: fn(&mut Topology)| {
        let mut b = crooked();
        f(&mut b);
        a.difference(&b).expect("a difference")
    };
    assert!(change(|t| t.pus[9].l3 = 0).starts_with("CPU 9"));
    assert!(change(|t| t.distance.rows[1][2] = 99).starts_with("distances"));
    assert!(change(|t| t.pus.truncate(31)).starts_with("CPUs 0-31 against 0-30"));
    assert!(change(|t| t.nodes[3].id = 7).starts_with("nodes"));
}

#[cfg(feature = "hwloc")]
mod with_hwloc {
    use super::*;
    use std::process::Command;

    /// Reads a file tree through hwloc: its command line takes the tree from the environment of a child.
    fn by_hwloc(tree: &Path) -> Option<Topology> {
        let xml = tree.join("out.xml");
        let status = Command::new("lstopo-no-graphics")
            .args(["--no-io", "--disallowed", "--of", "xml", "-f"])
            .arg(&xml)
            .env("HWLOC_FSROOT", tree)
            .env("HWLOC_COMPONENTS", "linux,-x86")
            .env_remove("HWLOC_SYNTHETIC")
            .env_remove("HWLOC_XMLFILE")
            .status();
        match status {
            Ok(s) if s.success() => Some(Host::load(xml.to_str().unwrap()).unwrap().topology),
            other => {
                println!("skipped: lstopo-no-graphics: {other:?}");
                None
            }
        }
    }

    #[test]
    fn hwloc_and_sysfs_agree_on_this_machine() {
        let (by_hwloc, extra) = hwloc::this_machine().unwrap();
        if !extra.is_this_system {
            println!("skipped: the environment replaces the topology");
            return;
        }
        assert_eq!(by_hwloc.difference(&sysfs::read(Path::new("/")).unwrap()), None);
    }

    #[test]
    fn hwloc_and_sysfs_agree_on_written_trees() {
        let examples = ["example-2x14x2", "example-8n-64"];
        let examples = examples.map(|name| Host::load(name).unwrap().topology);
        for want in examples.into_iter().chain([crooked()]) {
            let dir = many_files();
            write_sysfs(&want, dir.path());
            let Some(found) = by_hwloc(dir.path()) else { return };
            assert_eq!(found.difference(&sysfs::read(dir.path()).unwrap()), None);
            assert_eq!(found.difference(&want), None);
            assert_eq!(found.nodes.iter().map(|n| n.memory).collect::<Vec<_>>(), vec![Some(2 << 30); want.nodes.len()]);
        }
    }

    #[test]
    fn hwloc_and_sysfs_agree_on_a_gathered_tree() {
        let dir = many_files();
        let gather = Command::new("hwloc-gather-topology").arg(dir.path().join("snap")).output();
        let untar = Command::new("tar").current_dir(dir.path()).args(["xjf", "snap.tar.bz2"]).output();
        if !gather.is_ok_and(|o| o.status.success()) || !untar.is_ok_and(|o| o.status.success()) {
            println!("skipped: hwloc-gather-topology or tar is missing or failed");
            return;
        }
        let tree = dir.path().join("snap");
        let gathered = sysfs::read(&tree).unwrap();
        assert_eq!(gathered.difference(&sysfs::read(Path::new("/")).unwrap()), None);
        let Some(found) = by_hwloc(&tree) else { return };
        assert_eq!(found.difference(&gathered), None);
    }

    #[test]
    fn synthetic_strings_have_no_matrix_and_say_so() {
        let host = Host::load("synthetic:pack:2 [numa] l3:2 core:4 pu:2").unwrap();
        let t = &host.topology;
        let shape = [t.packages().len(), t.nodes.len(), t.l3_groups().len(), t.cores().len(), t.pus.len()];
        assert_eq!(shape, [2, 2, 4, 16, 32]);
        assert_eq!(t.distance.rows, [[10, 20], [20, 10]]);
        assert!(t.distance.assumed && host.invented && !host.is_this);
        assert!(host.show().contains("ASSUMED"), "{}", host.show());
        assert_eq!(Host::load("synthetic:node:16 l3:2 core:8 pu:2").unwrap().topology.pus.len(), 512);
        for bad in ["synthetic:", "synthetic:pack:2 bogus:3", "synthetic:pu:0"] {
            let e = Host::load(bad).unwrap_err().to_string();
            assert!(e.starts_with("synthetic:") && !e.contains('\n') && e.contains("pack:2 [numa]"), "{e}");
        }
    }

    #[test]
    fn xml_is_read_with_carriage_returns_and_matrix() {
        let dir = many_files();
        write_sysfs(&crooked(), dir.path());
        if by_hwloc(dir.path()).is_none() {
            return;
        }
        let text = std::fs::read_to_string(dir.path().join("out.xml")).unwrap();
        let caught = dir.path().join("box.xml");
        std::fs::write(&caught, text.replace('\n', "\r\n")).unwrap();
        let host = Host::load(caught.to_str().unwrap()).unwrap();
        assert_eq!(host.topology.difference(&crooked()), None);
        assert_eq!((host.id.name.as_str(), host.id.cpu_model.as_str()), ("box", "test"));
        // Beside a host.toml without a table it is the topology.
        std::fs::rename(&caught, dir.path().join("topology.xml")).unwrap();
        std::fs::write(dir.path().join("host.toml"), "schema = 1\nname = \"b\"\ncpu_model = \"test\"\n").unwrap();
        let both = Host::load(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(both.id.fingerprint, host.id.fingerprint);
    }

    #[test]
    fn what_is_no_topology_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let xml = dir.path().join("a.xml");
        for text in ["", "<html></html>", "<topology version=\"2.0\"><object", "<topology version=\"9.0\"></topology>"]
        {
            std::fs::write(&xml, text).unwrap();
            let e = Host::load(xml.to_str().unwrap()).unwrap_err().to_string();
            assert!(e.starts_with(xml.to_str().unwrap()) && e.contains("lstopo") && !e.contains('\n'), "{e}");
        }
    }

    #[test]
    fn a_capture_reads_back_as_the_same_host() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::load("this").unwrap();
        host.id.name = "my box".to_string();
        let written = host.capture(dir.path()).unwrap();
        assert_eq!(written.len(), 2);
        let path = dir.path().join("my-box");
        let back = Host::load(path.to_str().unwrap()).unwrap();
        assert_eq!(back.id.fingerprint, host.id.fingerprint);
        assert_eq!(back.topology.difference(&host.topology), None);
        assert_eq!(back.id.kernel, host.id.kernel);
        assert!(!back.is_this && !back.invented);
        let xml = Host::load(path.join("topology.xml").to_str().unwrap()).unwrap();
        assert_eq!((xml.id.fingerprint, xml.id.name), (host.id.fingerprint.clone(), "my-box".to_string()));
        assert!(host.capture(dir.path()).unwrap_err().to_string().contains("not overwritten"));
        assert!(back.capture(dir.path()).unwrap_err().to_string().contains("only the machine we run on"));
    }
}

#[cfg(not(feature = "hwloc"))]
#[test]
fn without_hwloc_its_formats_are_refused_with_the_way_out() {
    for spec in ["synthetic:pack:2", "some.xml"] {
        let e = Host::load(spec).unwrap_err().to_string();
        assert!(e.contains("feature `hwloc`"), "{e}");
    }
}

#[test]
fn a_shape_survives_its_file() {
    let examples = ["example-2x14x2", "example-8n-64", "example-16n-512"];
    let examples = examples.map(|name| Host::load(name).unwrap().topology);
    for want in examples.into_iter().chain([crooked(), sysfs::read(Path::new("/")).unwrap()]) {
        let file = HostFile {
            schema: file::SCHEMA,
            name: "x".into(),
            cpu_model: "y".into(),
            topology: Some(HostFile::shape(&want)),
            price_ns: BTreeMap::from([("l1".to_string(), 1.25)]),
            ..HostFile::default()
        };
        let text = file.to_text().unwrap();
        let back = HostFile::parse(&text, "x").unwrap();
        assert_eq!(back, file, "{text}");
        let back = back.topology("x").unwrap().unwrap();
        assert_eq!(back.difference(&want), None);
        assert_eq!(back.distance.assumed, want.distance.assumed);
    }
}

#[test]
fn bad_host_files_name_file_field_and_remedy() {
    let good = "schema = 1\nname = \"x\"\ncpu_model = \"y\"\n[topology]\ncpus = \"0-3\"\n";
    let node = "[[topology.node]]\nid = 0\ncpus = \"0-3\"\n";
    let load = |text: String| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        std::fs::write(&path, text).unwrap();
        Host::load(path.to_str().unwrap()).map_err(|e| e.to_string())
    };
    load(format!("{good}{node}")).unwrap();
    for (text, field) in [
        (String::new(), "schema"),
        (format!("{good}{node}").replace("name = \"x\"\n", ""), "name"),
        (format!("{good}{node}").replace("name = \"x\"", "name = 7"), "name"),
        (format!("{good}{node}").replace("\"x\"", "\"\""), "name"),
        (format!("{good}{node}").replace("schema = 1", "schema = 2"), "schema"),
        (format!("{good}{node}").replace("cpus = \"0-3\"\n[[", "[["), "cpus"),
        (format!("{good}{node}").replace("cpu_model", "cpu_modle"), "cpu_modle"),
        (good.to_string(), "node"),
        (format!("{good}packages = [\"0-1\"]\n{node}"), "topology.packages"),
        (format!("{good}packages = [\"0-2\", \"2-3\"]\n{node}"), "topology.packages"),
        (format!("{good}l3 = [\"0-4\"]\n{node}"), "topology.l3"),
        (format!("{good}cores = [\"0-a\"]\n{node}"), "topology.cores"),
        (format!("{good}cores = [\"0-3\"]\nsmt_stride = 2\n{node}"), "topology.smt_stride"),
        (format!("{good}smt_stride = 0\n{node}"), "topology.smt_stride"),
        (format!("{good}packages = [\"0-1\", \"2-3\"]\ncores = [\"0-3\"]\n{node}"), "package"),
        (format!("{good}distance = [[10, 20]]\n{node}"), "distance"),
        (format!("{good}distance = [[0]]\n{node}"), "distance"),
        (format!("{good}{node}").replace("\"0-3\"\n[[", "\"0-4\"\n[["), "topology.node.cpus"),
        (
            format!("{good}{node}{node}").replacen(
                "cpus = \"0-3\"\n[[topology.node]]",
                "cpus = \"\"\n[[topology.node]]",
                2,
            ),
            "topology",
        ),
        (format!("{good}{node}[price_ns]\nl1 = -1.0\n"), "price_ns.l1"),
        (format!("{good}{node}[price_ns]\nl1 = \"1\"\n"), "l1"),
        ("schema = 1\nname = \"x\"\ncpu_model = \"y\"\n".to_string(), "topology"),
        ("schema = = 1".to_string(), ""),
    ] {
        let e = load(text.clone()).expect_err(&text);
        println!("{e}");
        assert!(e.contains("host.toml") && e.contains(field) && e.contains("; ") && !e.contains('\n'), "{text}: {e}");
    }
}

#[test]
fn hosts_that_are_not_there_are_named() {
    for (spec, text) in [
        ("nosuch", "hosts/nosuch/host.toml"),
        ("nosuch", "example-8n-64"),
        ("", "built-in"),
        ("./nosuch/dir", "no such file or directory"),
        ("/nonexistent/host.toml", "No such file"),
        ("src/lib.rs", "neither .toml nor .xml"),
    ] {
        let e = Host::load(spec).unwrap_err().to_string();
        assert!(e.contains(text) && !e.contains('\n'), "{spec}: {e}");
    }
}
