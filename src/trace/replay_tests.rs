// SPDX-License-Identifier: GPL-2.0-only
//! The recorded programs on the port, and on the running kernel beside it.

use super::*;
use crate::arch::Native;
use crate::arch::native::{NativeMachine, OsCpu};
use crate::init::KernelConfig;
use crate::mm::{MmRules, variant};
use crate::trace::kernel::{KernelBackend, observed_rules};
use crate::trace::normalise::normalise;
use crate::trace::parse::parse;
use crate::trace::port::{self, Plan};
use crate::trace::{Trace, load};
use crate::with_variant;
use std::path::PathBuf;

fn recorded() -> Vec<PathBuf> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.to_string_lossy().contains(".log."))
        .collect();
    all.sort();
    assert!(all.len() >= 5, "{all:?}");
    all
}

fn of(text: &str) -> Trace {
    let log = parse("t.log", text.as_bytes());
    assert_eq!(log.problems, []);
    normalise(&log, 0)
}

fn on_port(trace: &Trace, variant: &str, touch: Touch, rules: MmRules, keep: bool) -> port::Replayed {
    let cpu = crate::host::affinity::allowed()[0];
    let machine = NativeMachine::new(&[OsCpu { cpu, node: 0 }], 256 << 20, |_, _| 10).unwrap();
    let v = variant::parse(variant).unwrap();
    let kernel = v.configure(KernelConfig { rules, ..KernelConfig::default() });
    let plan = Plan { threads: 1, repeat: 1, touch, keep, kernel };
    with_variant!(&v, Native, K => port::run::<K>(&machine, trace, &plan))
}

#[test]
fn every_recorded_program_is_read_without_a_problem() {
    for path in recorded() {
        let (log, trace) = load(&path).unwrap();
        assert_eq!(log.problems, [], "{}", path.display());
        assert!(log.unknown.is_empty(), "only memory calls were recorded: {:?}", log.unknown);
        let why = [&trace.left_out.values().map(|l| l.why).collect::<Vec<_>>()];
        assert!(trace.left_out.keys().all(|k| *k == "prctl"), "{}: {:?} {why:?}", path.display(), trace.left_out);
        assert_eq!(trace.open_at_end, 0, "{}", path.display());
        assert!(trace.steps.len() > 100);
    }
}

#[test]
fn every_recorded_program_replays_on_the_port_as_it_ran() {
    for path in recorded() {
        let (_, trace) = load(&path).unwrap();
        for touch in [Touch::None, Touch::First] {
            let r = on_port(&trace, "v6.15", touch, MmRules::V6_12, false);
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert_eq!(r.errors, [] as [String; 0], "{name}");
            assert_eq!(r.outcome.stopped, None, "{name}");
            assert_eq!(r.outcome.bad_touches, 0, "{name}");
            let unsupported: u64 = r.outcome.kinds.values().map(|k| k.unsupported).sum();
            assert_eq!(unsupported, 0, "{name}: {:?}", r.outcome.kinds);
            assert_eq!(r.outcome.differences, [], "{name}");
        }
    }
}

#[test]
fn a_log_that_cannot_be_true_is_told_with_its_line() {
    let t = of("1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x70000000\n\
                1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x70001000\n\
                1 munmap(0x70000001, 4096) = 0\n\
                1 munmap(0x70000000, 4096) = -1 EINVAL (x)\n");
    let r = on_port(&t, "v6.12", Touch::First, MmRules::V6_12, false);
    let lines: Vec<_> = r.outcome.differences.iter().map(|d| d.line).collect();
    assert_eq!(lines, [2, 3, 4]);
    let what = &r.outcome.differences[0].what;
    assert!(what.contains("the log says 0x70001000, here EEXIST"), "{what}");
    assert_eq!(r.outcome.kinds["mmap"].errors_got, 1);
    assert_eq!(r.outcome.kinds["munmap"].errors_expected, 1);
    assert_eq!(r.errors, [] as [String; 0]);
}

#[test]
fn the_touch_policy_makes_the_faults_it_says() {
    let t = of("1 brk(NULL) = 0x55550000\n\
                1 brk(0x55558000) = 0x55558000\n\
                1 mmap(NULL, 16384, 0x3, 0x22, -1, 0) = 0x70000000\n\
                1 mmap(NULL, 16384, 0x1, 0x22, -1, 0) = 0x71000000\n");
    for (touch, faults) in [(Touch::None, 0), (Touch::First, 2), (Touch::All, 12)] {
        let r = on_port(&t, "v6.15", touch, MmRules::V6_12, false);
        assert_eq!(r.counters["pgfault"], faults, "{touch:?}");
        assert_eq!(r.outcome.kinds.get("touch").map_or(0, |k| k.calls), faults);
        assert_eq!(r.outcome.peak_map_count, 3);
    }
}

#[test]
fn maps_are_compared_by_what_they_show() {
    let v = VmaInfo { start: 0x1000, end: 0x3000, flags: 0x73, file: None, offset: 0 };
    // VmFlags count where they are known: at the end of an address space. Between ends only what maps shows is hashed.
    let hidden = VmaInfo { flags: 0x10_0073, ..v };
    assert_eq!(maps_differ(&[v], &[v]), None);
    let (a, b) = maps_differ(&[v], &[hidden]).unwrap();
    assert_eq!(
        (a, b),
        (vec!["1000-3000 rw-p {rd wr mr mw me}".into()], vec!["1000-3000 rw-p {rd wr mr mw me ac}".into()])
    );
    assert_eq!(hash_of(&[v]), hash_of(&[hidden]));
    for w in [
        VmaInfo { end: 0x2000, ..v },
        VmaInfo { flags: 0x71, ..v },
        VmaInfo { flags: 0xf3, ..v },
        VmaInfo { file: Some(0), ..v },
        VmaInfo { offset: 0x1000, ..v },
    ] {
        let (a, b) = maps_differ(&[v], &[w]).unwrap();
        assert_eq!((a.len(), b.len()), (1, 1), "{w:?}");
        assert_ne!(hash_of(&[v]), hash_of(&[w]));
    }
    assert_eq!(
        line_of(&VmaInfo { file: Some(2), flags: 0x85, offset: 0x3000, ..v }),
        "1000-3000 r-xs file 2 at 0x3000 {rd ex ms}"
    );
}

/// The running kernel, or `None` where ptrace is not allowed, which it must be where `FAULTLINE_HOST=must`.
fn kernel(trace: &Trace) -> Option<KernelBackend> {
    match KernelBackend::new(trace) {
        Ok(b) => Some(b),
        Err(e) => {
            let must = std::env::var("FAULTLINE_HOST").is_ok_and(|v| v == "must");
            assert!(!must, "FAULTLINE_HOST=must, and the host refuses: {e}");
            eprintln!("left out, not compared with the kernel (FAULTLINE_HOST=must makes it an error): {e}");
            None
        }
    }
}

fn on_kernel(trace: &Trace, touch: Touch) -> Option<Outcome> {
    kernel(trace).map(|mut b| replay(trace, &mut b, Options { touch, keep: true }))
}

#[test]
fn the_running_kernel_repeats_every_recorded_program() {
    for path in recorded() {
        let (_, trace) = load(&path).unwrap();
        let Some(o) = on_kernel(&trace, Touch::First) else { return };
        assert_eq!(o.stopped, None, "{}", path.display());
        assert_eq!(o.differences, [], "{}", path.display());
        assert_eq!(o.bad_touches, 0, "{}", path.display());
    }
}

#[test]
fn the_port_and_the_running_kernel_have_the_same_maps_after_every_call() {
    for path in recorded() {
        let (_, trace) = load(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(kernel) = on_kernel(&trace, Touch::First) else { return };
        let rules = observed_rules(&mut KernelBackend::new(&trace).unwrap()).unwrap();
        let port = on_port(&trace, "v6.15", Touch::First, rules, true).outcome;
        let c = compare(&trace, ["the port", "the kernel"], &port, &kernel);
        assert!(c.agrees(), "{name}: {c:#?}");
        assert_eq!((c.steps, c.ends), (trace.steps.len(), trace.spaces.len()), "{name}");
    }
}

/// The comparison is not empty: with one rule of the other kernel's the port's maps differ from the host's.
#[test]
fn a_wrong_rule_is_found_by_a_recorded_program() {
    let mut found = Vec::new();
    for path in recorded() {
        let (_, trace) = load(&path).unwrap();
        let Some(kernel) = on_kernel(&trace, Touch::First) else { return };
        let mut rules = observed_rules(&mut KernelBackend::new(&trace).unwrap()).unwrap();
        rules.merge_faulted_with_unfaulted ^= true;
        let port = on_port(&trace, "v6.15", Touch::First, rules, true).outcome;
        let c = compare(&trace, ["the port", "the kernel"], &port, &kernel);
        found.extend((!c.agrees()).then_some(c.first).flatten());
    }
    assert!(!found.is_empty(), "no program's maps depend on when faulted ranges merge");
}

/// Flags that maps does not show are compared at the end of an address space.
#[test]
fn hidden_flags_are_compared_with_the_kernel_at_the_end() {
    let t = of("1 mmap(NULL, 16384, 0x3, 0x22, -1, 0) = 0x70000000\n\
                1 madvise(0x70001000, 4096, 0x10) = 0\n\
                1 mprotect(0x70002000, 4096, 0x1) = 0\n\
                1 mmap(NULL, 16384, 0x0, 0x4022, -1, 0) = 0x71000000\n\
                1 exit(0) = ?\n");
    let Some(kernel) = on_kernel(&t, Touch::First) else { return };
    let rules = observed_rules(&mut KernelBackend::new(&t).unwrap()).unwrap();
    let port = on_port(&t, "v6.15", Touch::First, rules, true).outcome;
    assert!(compare(&t, ["the port", "the kernel"], &port, &kernel).agrees());
    let flags: Vec<_> = kernel.ends[0].1.iter().map(|v| crate::mm::task_mmu::vm_flags_line(v.flags)).collect();
    assert!(flags.iter().any(|f| f.contains("dd")) && flags.iter().any(|f| f.contains("nr")), "{flags:?}");
    // And they would be missed.
    let mut other = kernel.clone();
    other.ends[0].1[0].flags ^= crate::mm::mm_types::VM_ACCOUNT;
    assert!(!compare(&t, ["the port", "the kernel"], &port, &other).agrees());
}

#[test]
fn breaks_are_moved_by_the_call_itself() {
    let t = of(
        "1 brk(NULL) = 0x655555559000\n1 brk(0x65555555b000) = 0x65555555b000\n1 brk(0x65555555a000) = 0x65555555a000\n",
    );
    let Some(mut b) = kernel(&t) else { return };
    let o = replay(&t, &mut b, Options { touch: Touch::First, keep: true });
    assert_eq!((o.stopped.clone(), o.differences.as_slice()), (None, [].as_slice()));
    assert_eq!(o.ends[0].1.len(), 1);
    if b.mapped_breaks() > 0 {
        eprintln!("PR_SET_MM_MAP is not there: breaks are mapped");
    }
}

#[test]
fn a_different_map_is_found() {
    let a = of("1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x70000000\n1 munmap(0x70000000, 4096) = 0\n1 exit(0) = ?\n");
    let b = of("1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x70000000\n1 munmap(0x70001000, 4096) = 0\n1 exit(0) = ?\n");
    let x = on_port(&a, "v6.12", Touch::None, MmRules::V6_12, true).outcome;
    let y = on_port(&b, "v6.12", Touch::None, MmRules::V6_12, true).outcome;
    assert!(compare(&a, ["port", "port"], &x, &x).agrees());
    let c = compare(&a, ["port", "kernel"], &x, &y);
    assert!(!c.agrees());
    assert_eq!((c.ends, c.maps.len()), (1, 1));
    assert!(c.first.as_ref().unwrap().starts_with("t.log:2: after munmap(0x70000000, 0x1000)"), "{c:?}");
    assert!(c.maps[0].contains("port alone has [70001000-70002000 rw-p {rd wr mr mw me ac}]"), "{}", c.maps[0]);
    assert!(c.maps[0].contains("kernel alone has [70000000-70001000 rw-p {rd wr mr mw me ac}]"), "{}", c.maps[0]);
}
