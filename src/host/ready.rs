// SPDX-License-Identifier: GPL-2.0-only
//! Is this machine fit to be measured on? Looks at every knob that is known to move page-fault figures; sets none.
//!
//! Each row says what was found, what is wanted, and one of three states: `ok` (as wanted, or only to be recorded),
//! `warn` (figures are affected, and why), `unknown` (not readable here, and why that matters). A row is never left
//! out, so that reports of two machines have the same lines.
//!
//! What it cannot tell: what happens during the run (interrupts, steal, throttling are deltas that the caller takes
//! around it), and anything below a hypervisor.

use super::cgroup::Limits;
use super::{Host, HostError, cpulist, fingerprint};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// How a row came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As wanted, or recorded only.
    Ok,
    /// Figures are affected.
    Warn,
    /// Not readable here.
    Unknown,
}

/// One knob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Group of the knob.
    pub topic: &'static str,
    /// The knob.
    pub name: &'static str,
    /// What was found; empty if nothing was.
    pub found: String,
    /// What a measurement wants.
    pub wanted: &'static str,
    /// How it came out.
    pub state: State,
    /// Why it matters, or why it is unknown; empty for `ok`.
    pub reason: String,
}

/// All knobs of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// In a fixed order.
    pub rows: Vec<Row>,
}

impl Ready {
    /// Number of rows in a state.
    pub fn count(&self, state: State) -> usize {
        self.rows.iter().filter(|r| r.state == state).count()
    }

    /// Found values by `topic.name`, for the environment of a record.
    pub fn found(&self) -> BTreeMap<String, String> {
        self.rows.iter().map(|r| (format!("{}.{}", r.topic, r.name), r.found.clone())).collect()
    }

    /// For reading.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for r in &self.rows {
            let state = match r.state {
                State::Ok => "ok",
                State::Warn => "WARN",
                State::Unknown => "?",
            };
            let name = format!("{} {}", r.topic, r.name);
            let found = if r.found.is_empty() { "-" } else { r.found.as_str() };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{state:<5}{name:<30} {found}  (wanted: {})", r.wanted);
            if !r.reason.is_empty() {
                let _ = writeln!(out, "{:35} {}", "", r.reason);
            }
        }
        let (ok, warn) = (self.count(State::Ok), self.count(State::Warn));
        let _ = writeln!(out, "{ok} ok, {warn} to look at, {} unknown", self.count(State::Unknown));
        out
    }
}

impl Host {
    /// The hygiene report of this machine.
    ///
    /// # Errors
    /// If this host is not the machine we run on.
    pub fn ready(&self) -> Result<Ready, HostError> {
        if !self.is_this {
            let remedy = "run it on that machine";
            return Err(HostError::new(&self.id.name, "only the machine we run on can be inspected", remedy));
        }
        Ok(inspect(Path::new("/"), &self.topology.allowed, &self.limits))
    }
}

/// Inspects the machine whose file tree starts at `root`, for a run on `cpus`.
pub fn inspect(root: &Path, cpus: &[u32], limits: &Limits) -> Ready {
    let mut look = Look { root, cpus, rows: Vec::new() };
    look.frequency();
    look.scheduling();
    look.memory();
    look.kernel();
    look.platform();
    look.noise();
    look.limits(limits);
    Ready { rows: look.rows }
}

struct Look<'a> {
    root: &'a Path,
    cpus: &'a [u32],
    rows: Vec<Row>,
}

const RECORD: &str = "recorded";
const CPU: &str = "sys/devices/system/cpu";

impl Look<'_> {
    fn text(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_string()).filter(|t| !t.is_empty())
    }

    /// Judges a value: `bad` gives the reason for a warning.
    fn judge(
        &mut self,
        (topic, name): (&'static str, &'static str),
        found: Result<String, String>,
        wanted: &'static str,
        bad: impl Fn(&str) -> Option<String>,
    ) {
        let (found, state, reason) = match found {
            Err(reason) => (String::new(), State::Unknown, reason),
            Ok(found) => match bad(&found) {
                None => (found, State::Ok, String::new()),
                Some(reason) => (found, State::Warn, reason),
            },
        };
        self.rows.push(Row { topic, name, found, wanted, state, reason });
    }

    /// A file that must hold one of `good`.
    fn expect(
        &mut self,
        what: (&'static str, &'static str),
        path: &str,
        wanted: &'static str,
        good: &[&str],
        why: &str,
    ) {
        let found = self.text(path).ok_or_else(|| format!("/{path} is absent or unreadable"));
        self.judge(what, found, wanted, |f| (!good.contains(&f)).then(|| why.to_string()));
    }

    fn record(&mut self, what: (&'static str, &'static str), path: &str) {
        let found = self.text(path).map(|t| one_line(&t)).ok_or_else(|| format!("/{path} is absent or unreadable"));
        self.judge(what, found, RECORD, |_| None);
    }

    /// A file of every CPU of the run, as `value` or `value x count, ...`.
    fn per_cpu(&self, file: &str) -> Result<String, String> {
        let mut values: BTreeMap<String, usize> = BTreeMap::new();
        for cpu in self.cpus {
            if let Some(v) = self.text(&format!("{CPU}/cpu{cpu}/{file}")) {
                *values.entry(v).or_default() += 1;
            }
        }
        match values.len() {
            0 => Err(format!("no CPU has {file} (guests and some drivers do not)")),
            1 => Ok(values.into_keys().next().unwrap_or_default()),
            _ => Ok(values.iter().map(|(v, n)| format!("{v} x {n}")).collect::<Vec<_>>().join(", ")),
        }
    }

    fn frequency(&mut self) {
        let unless = |good: &'static str, why: &'static str| move |f: &str| (f != good).then(|| why.to_string());
        let ramp = "frequency follows load and differs between samples";
        let found = self.per_cpu("cpufreq/scaling_driver");
        self.judge(("cpufreq", "driver"), found, RECORD, |_| None);
        let found = self.per_cpu("cpufreq/scaling_governor");
        self.judge(("cpufreq", "governor"), found, "performance", unless("performance", ramp));
        let found = self.per_cpu("cpufreq/energy_performance_preference");
        self.judge(("cpufreq", "energy preference"), found, "performance", unless("performance", ramp));
        let range = self.per_cpu("cpufreq/scaling_min_freq").and_then(|min| {
            let max = self.per_cpu("cpufreq/scaling_max_freq")?;
            Ok(format!("{min} to {max} kHz"))
        });
        self.judge(("cpufreq", "range"), range, "min = max", |f| {
            let (min, max) = f.trim_end_matches(" kHz").split_once(" to ")?;
            (min != max).then(|| ramp.to_string())
        });
        let no_turbo = self.text(&format!("{CPU}/intel_pstate/no_turbo"));
        let boost = self.text(&format!("{CPU}/cpufreq/boost"));
        let found = match (no_turbo.as_deref(), boost.as_deref()) {
            (Some("1"), _) | (None, Some("0")) => Ok("off".to_string()),
            (Some(_), _) | (None, Some(_)) => Ok("on".to_string()),
            (None, None) => Err("neither intel_pstate/no_turbo nor cpufreq/boost is there".to_string()),
        };
        self.judge(
            ("cpufreq", "turbo"),
            found,
            "off, or stated",
            unless("off", "few threads run faster than many: scaling looks worse than it is"),
        );
        let idle = self.idle_states();
        self.judge(("cpuidle", "deepest state"), idle, "exit below 10 us", |f| {
            let us: u64 = f.rsplit_once(", ")?.1.trim_end_matches(" us").parse().ok()?;
            (us >= 10).then(|| "sleeping threads wake late: hold /dev/cpu_dma_latency at 0 while timing".to_string())
        });
    }

    /// Name and exit latency of the slowest idle state that is not disabled.
    fn idle_states(&self) -> Result<String, String> {
        let first = self.cpus.first().ok_or("no CPU")?;
        let dir = format!("{CPU}/cpu{first}/cpuidle");
        let states = (0..16).filter_map(|i| {
            let state = format!("{dir}/state{i}");
            let latency: u64 = self.text(&format!("{state}/latency"))?.parse().ok()?;
            let on = self.text(&format!("{state}/disable")).is_none_or(|d| d == "0");
            on.then(|| (latency, self.text(&format!("{state}/name")).unwrap_or_default()))
        });
        let (latency, name) = states.max().ok_or_else(|| format!("/{dir} has no states (guests do not)"))?;
        Ok(format!("{name}, {latency} us"))
    }

    fn scheduling(&mut self) {
        self.expect(
            ("smt", "active"),
            &format!("{CPU}/smt/active"),
            "0, or plan no-smt",
            &["0"],
            "two workers may share a core: state the pin plan, or use no-smt",
        );
        self.record(("smt", "control"), &format!("{CPU}/smt/control"));
        let cmdline = self.text("proc/cmdline").ok_or_else(|| "/proc/cmdline is unreadable".to_string());
        let option = |key: &'static str| {
            let cmdline = cmdline.clone();
            move || {
                let values = |c: &String| {
                    let hits: Vec<&str> =
                        c.split_whitespace().filter(|w| *w == key || w.starts_with(&format!("{key}="))).collect();
                    if hits.is_empty() { "none".to_string() } else { hits.join(" ") }
                };
                cmdline.as_ref().map(values).map_err(Clone::clone)
            }
        };
        for (name, key) in [("isolcpus", "isolcpus"), ("nohz_full", "nohz_full"), ("irqaffinity", "irqaffinity")] {
            self.judge(("isolation", name), option(key)(), "recorded; pin inside", |_| None);
        }
        self.judge(("isolation", "rcu_nocbs"), option("rcu_nocbs")(), "none", |f| {
            (f != "none").then(|| {
                "RCU callbacks run on other CPUs: hides the very cost that call_rcu variants differ in".to_string()
            })
        });
        self.record(("isolation", "isolated"), &format!("{CPU}/isolated"));
        let zero = "grace periods are not as long as in production";
        self.expect(("rcu", "expedited"), "sys/kernel/rcu_expedited", "0", &["0"], zero);
        self.expect(("rcu", "normal"), "sys/kernel/rcu_normal", "0", &["0"], zero);
        let balance = "proc/sys/kernel/numa_balancing";
        let nodes = self.text("sys/devices/system/node/online").is_none_or(|n| n == "0");
        if nodes && self.text(balance).is_none() {
            self.judge(("numa", "balancing"), Ok("absent, one node".into()), "0", |_| None);
        } else {
            self.expect(("numa", "balancing"), balance, "0", &["0"], "pages and threads move, faults come extra");
        }
        let misses = self.numa_misses();
        self.judge(("numa", "miss since boot"), misses, "recorded; no growth", |_| None);
    }

    fn numa_misses(&self) -> Result<String, String> {
        let mut parts = Vec::new();
        for node in
            self.text("sys/devices/system/node/online").and_then(|n| cpulist::parse(&n).ok()).unwrap_or_default()
        {
            let Some(stat) = self.text(&format!("sys/devices/system/node/node{node}/numastat")) else { continue };
            let value = |key: &str| {
                let line = stat.lines().find_map(|l| l.strip_prefix(key));
                line.map_or("?", str::trim).to_string()
            };
            parts.push(format!("node {node}: miss {}, foreign {}", value("numa_miss"), value("numa_foreign")));
        }
        if parts.is_empty() { Err("no numastat".into()) } else { Ok(parts.join("; ")) }
    }

    fn memory(&mut self) {
        let thp = "sys/kernel/mm/transparent_hugepage";
        let chosen = |t: Option<String>| {
            let t = t.ok_or_else(|| format!("/{thp} is absent: kernel without huge pages, or sysfs hidden"))?;
            let on = t.split_whitespace().find_map(|w| w.strip_prefix('[')?.strip_suffix(']')).map(str::to_string);
            on.ok_or(t)
        };
        let enabled = chosen(self.text(&format!("{thp}/enabled")));
        self.judge(("thp", "enabled"), enabled, "never", |f| match f {
            "never" => None,
            "madvise" => Some("base pages need MADV_NOHUGEPAGE or no advice; the C library may advise".to_string()),
            _ => Some("one huge fault can stand for 512: base-page tests must use MADV_NOHUGEPAGE".to_string()),
        });
        let defrag = chosen(self.text(&format!("{thp}/defrag")));
        self.judge(("thp", "defrag"), defrag, RECORD, |_| None);
        let sizes = self.mthp();
        self.judge(("thp", "other sizes"), sizes, "none enabled", |f| {
            (f != "none enabled").then(|| "one fault maps several pages: faults per page fall".to_string())
        });
        self.aslr();
        let swaps = self.text("proc/swaps").ok_or_else(|| "/proc/swaps is unreadable".to_string());
        let swaps = swaps.map(|t| t.lines().skip(1).count()).map(|n| format!("{n} areas"));
        self.judge(("swap", "areas"), swaps, "0 areas", |f| {
            (f != "0 areas").then(|| "pages may go to disk and come back as major faults".to_string())
        });
        self.record(("swap", "swappiness"), "proc/sys/vm/swappiness");
        self.expect(
            ("memory", "overcommit"),
            "proc/sys/vm/overcommit_memory",
            "0 or 1",
            &["0", "1"],
            "strict accounting refuses large mappings",
        );
        let maps = "proc/sys/vm/max_map_count";
        let found = self.text(maps).ok_or_else(|| format!("/{maps} is unreadable"));
        self.judge(("memory", "max_map_count"), found, ">= VMAs wanted", |f| {
            let low = f.parse::<u64>().is_ok_and(|n| n < 65530);
            low.then(|| "below the kernel's default: runs with many VMAs hit ENOMEM".to_string())
        });
    }

    /// Sizes of transparent huge pages that are on by themselves.
    fn mthp(&self) -> Result<String, String> {
        let dir = self.root.join("sys/kernel/mm/transparent_hugepage");
        let entries = std::fs::read_dir(&dir).map_err(|e| format!("transparent_hugepage: {e}"))?;
        let mut on: Vec<String> = entries
            .filter_map(|e| {
                let name = e.ok()?.file_name().to_string_lossy().into_owned();
                let size = name.strip_prefix("hugepages-")?;
                let text = std::fs::read_to_string(dir.join(&name).join("enabled")).ok()?;
                (text.contains("[always]") || text.contains("[madvise]")).then(|| size.to_string())
            })
            .collect();
        on.sort();
        Ok(if on.is_empty() { "none enabled".to_string() } else { on.join(", ") })
    }

    fn aslr(&mut self) {
        let path = "proc/sys/kernel/randomize_va_space";
        // 0xffffffff asks without setting. Only the live machine has a personality of ours.
        // SAFETY: no pointers.
        let personality = if self.root == Path::new("/") { unsafe { libc::personality(0xffff_ffff) } } else { 0 };
        let off = personality >= 0 && personality & libc::ADDR_NO_RANDOMIZE != 0;
        let found = self.text(path).ok_or_else(|| format!("/{path} is unreadable"));
        let found = found.map(|f| if off { format!("{f}, off for this process") } else { f });
        self.judge(("aslr", "randomize_va_space"), found, "0, or off per process", |f| {
            (f != "0" && !f.ends_with("process"))
                .then(|| "page-table splits differ between runs: use `setarch -R` or compare many runs".to_string())
        });
    }

    fn kernel(&mut self) {
        self.record(("kernel", "release"), "proc/sys/kernel/osrelease");
        self.record(("kernel", "cmdline"), "proc/cmdline");
        let release = self.text("proc/sys/kernel/osrelease").unwrap_or_default();
        let config = self.text(&format!("boot/config-{release}")).ok_or_else(|| {
            let packed =
                if self.root.join("proc/config.gz").exists() { "; /proc/config.gz is not unpacked here" } else { "" };
            format!("/boot/config-{release} is absent{packed}")
        });
        let value = |key: &str| {
            config.clone().map(|c| {
                let set = c.lines().find_map(|l| l.strip_prefix(&format!("CONFIG_{key}="))).map(str::to_string);
                set.unwrap_or_else(|| "n".to_string())
            })
        };
        let heavy = "heavy debugging: do not quote figures from this kernel";
        for (name, key) in [
            ("PROVE_LOCKING", "PROVE_LOCKING"),
            ("KASAN", "KASAN"),
            ("DEBUG_VM", "DEBUG_VM"),
            ("SLUB_DEBUG_ON", "SLUB_DEBUG_ON"),
        ] {
            self.judge(("config", name), value(key), "n", |f| (f != "n").then(|| heavy.to_string()));
        }
        self.judge(("config", "RCU_LAZY"), value("RCU_LAZY"), "n", |f| {
            (f != "n").then(|| "lazy callbacks wait for seconds: the backlog differs".to_string())
        });
        for name in ["PER_VMA_LOCK", "PER_VMA_LOCK_STATS", "RCU_NOCB_CPU", "PREEMPT_DYNAMIC", "HZ"] {
            self.judge(("config", name), value(name), RECORD, |_| None);
        }
        let slab = "sys/kernel/slab/vm_area_struct";
        let scheme = self
            .text(&format!("{slab}/destroy_by_rcu"))
            .ok_or_else(|| format!("/{slab}/destroy_by_rcu is absent (merged cache, or only root may read it)"));
        let scheme = scheme.map(|v| if v == "0" { "call_rcu".to_string() } else { "SLAB_TYPESAFE_BY_RCU".to_string() });
        self.judge(("vma slab", "freed by"), scheme, RECORD, |_| None);
        for (name, file) in
            [("object size", "object_size"), ("slot size", "slab_size"), ("objects a slab", "objs_per_slab")]
        {
            self.record(("vma slab", name), &format!("{slab}/{file}"));
        }
        let zero = &["0"];
        let takes = "it takes a hardware counter: echo 0 > /proc/sys/kernel/nmi_watchdog";
        self.expect(("perf", "nmi_watchdog"), "proc/sys/kernel/nmi_watchdog", "0", zero, takes);
        self.expect(
            ("perf", "watchdog"),
            "proc/sys/kernel/watchdog",
            "0",
            zero,
            "a timer on every CPU interrupts runs",
        );
        self.expect(
            ("perf", "paranoid"),
            "proc/sys/kernel/perf_event_paranoid",
            "1 or less",
            &["-1", "0", "1"],
            "without CAP_PERFMON, no kernel-mode events, context-switches or cpu-migrations; from 3 on none at all",
        );
    }

    fn platform(&mut self) {
        let cpuinfo = self.text("proc/cpuinfo").unwrap_or_default();
        let field = |key: &str| {
            let value = fingerprint::cpuinfo_field(&cpuinfo, key).map(str::to_string);
            value.ok_or_else(|| format!("/proc/cpuinfo has no `{key}`"))
        };
        for (name, key) in
            [("family", "cpu family"), ("model", "model"), ("stepping", "stepping"), ("microcode", "microcode")]
        {
            self.judge(("cpu", name), field(key), RECORD, |_| None);
        }
        let found = if cpuinfo.is_empty() {
            Err("/proc/cpuinfo is unreadable".to_string())
        } else {
            Ok(if fingerprint::is_virtualised(&cpuinfo) { "guest" } else { "no hypervisor seen" }.to_string())
        };
        self.judge(("cpu", "virtualisation"), found, "bare metal", |f| {
            (f == "guest").then(|| "nested paging and steal are in every figure; placement is the host's".to_string())
        });
        self.expect(
            ("clock", "source"),
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "tsc",
            &["tsc", "arch_sys_counter"],
            "reading the time may be slow or leave user space",
        );
        let all = self.mitigations();
        self.judge(("mitigations", "all"), all, "recorded; same on both sides", |_| None);
        let msr = self.prefetchers(&cpuinfo);
        self.judge(("cpu", "prefetchers off"), msr, RECORD, |_| None);
    }

    fn mitigations(&self) -> Result<String, String> {
        let dir = self.root.join(CPU).join("vulnerabilities");
        let mut lines: Vec<String> = std::fs::read_dir(&dir)
            .map_err(|e| format!("vulnerabilities: {e}"))?
            .filter_map(|e| {
                let e = e.ok()?;
                let text = std::fs::read_to_string(e.path()).ok()?;
                let text = text.trim();
                (text != "Not affected").then(|| format!("{}: {text}", e.file_name().to_string_lossy()))
            })
            .collect();
        lines.sort();
        Ok(if lines.is_empty() { "not affected by any".to_string() } else { lines.join("; ") })
    }

    /// Bits 0 to 3 of MSR 0x1a4 on Intel servers: set means that a prefetcher is off (bit 1: adjacent line).
    fn prefetchers(&self, cpuinfo: &str) -> Result<String, String> {
        use std::os::unix::fs::FileExt;
        if fingerprint::cpuinfo_field(cpuinfo, "vendor_id") != Some("GenuineIntel") {
            return Err("only Intel servers show them (MSR 0x1a4)".to_string());
        }
        let cpu = self.cpus.first().ok_or("no CPU")?;
        let path = self.root.join(format!("dev/cpu/{cpu}/msr"));
        let mut word = [0u8; 8];
        let file =
            std::fs::File::open(&path).map_err(|e| format!("/dev/cpu/{cpu}/msr: {e} (modprobe msr, as root)"))?;
        file.read_exact_at(&mut word, 0x1a4).map_err(|e| format!("MSR 0x1a4: {e}"))?;
        Ok(format!("{:#x}", u64::from_le_bytes(word) & 0xf))
    }

    fn noise(&mut self) {
        let cpus = self.cpus.len().max(1) as f64;
        let load = self.text("proc/loadavg").ok_or_else(|| "/proc/loadavg is unreadable".to_string());
        self.judge(("noise", "load average"), load, "below 5% of the CPUs", |f| {
            let one: f64 = f.split(' ').next()?.parse().ok()?;
            (one > 0.05 * cpus).then(|| "something else runs (or ran within the last minute)".to_string())
        });
        for (name, file) in [("pressure cpu", "cpu"), ("pressure memory", "memory"), ("pressure io", "io")] {
            let path = format!("proc/pressure/{file}");
            let found = self.text(&path).and_then(|t| t.lines().next().map(str::to_string));
            let found = found.ok_or_else(|| format!("/{path} is absent (CONFIG_PSI, psi=1)"));
            self.judge(("noise", name), found, "avg10 below 1", |f| {
                let avg10: f64 = f.split("avg10=").nth(1)?.split(' ').next()?.parse().ok()?;
                (avg10 >= 1.0).then(|| "tasks wait for it right now".to_string())
            });
        }
        let steal = self.text("proc/stat").ok_or_else(|| "/proc/stat is unreadable".to_string());
        let steal = steal.and_then(|t| {
            let ticks = t.lines().next().and_then(|l| l.split_whitespace().nth(8)).map(str::to_string);
            ticks.ok_or_else(|| "no steal column".to_string())
        });
        self.judge(("noise", "steal ticks since boot"), steal, "recorded; no growth", |_| None);
        let throttled = self.per_cpu("thermal_throttle/core_throttle_count");
        self.judge(("noise", "thermal throttles"), throttled, "recorded; no growth", |_| None);
        let balance = self.irqbalance();
        self.judge(("irq", "irqbalance"), balance, "not running", |f| {
            (f != "not running").then(|| "interrupts move onto the test CPUs".to_string())
        });
        let irqs = self.irqs_here();
        self.judge(("irq", "may hit the test CPUs"), irqs, "recorded; off them if it can be", |_| None);
    }

    fn irqbalance(&self) -> Result<String, String> {
        let proc = std::fs::read_dir(self.root.join("proc")).map_err(|e| format!("/proc: {e}"))?;
        let running = proc
            .filter_map(Result::ok)
            .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
            .any(|e| std::fs::read_to_string(e.path().join("comm")).is_ok_and(|c| c.trim() == "irqbalance"));
        Ok(if running { "running" } else { "not running" }.to_string())
    }

    fn irqs_here(&self) -> Result<String, String> {
        let irqs = std::fs::read_dir(self.root.join("proc/irq")).map_err(|e| format!("/proc/irq: {e}"))?;
        let lists: Vec<Vec<u32>> = irqs
            .filter_map(|e| {
                let dir = e.ok()?.path();
                let list = std::fs::read_to_string(dir.join("smp_affinity_list")).ok()?;
                cpulist::parse(&list).ok()
            })
            .collect();
        let hits = lists.iter().filter(|l| l.iter().any(|c| self.cpus.contains(c))).count();
        Ok(format!("{hits} of {}", lists.len()))
    }

    fn limits(&mut self, limits: &Limits) {
        let cpus = self.cpus.len();
        let list = cpulist::format(self.cpus);
        self.judge(("limits", "allowed CPUs"), Ok(list), RECORD, |_| None);
        let set = limits.cpuset.as_deref().map_or("none".to_string(), cpulist::format);
        self.judge(("limits", "cpuset"), Ok(set), RECORD, |_| None);
        let quota = limits.quota_cpus.map_or("none".to_string(), |q| format!("{q:.2} CPUs"));
        self.judge(("limits", "CPU quota"), Ok(quota), "none", |_| limits.warning(cpus));
        let memory = limits.memory_max.map_or("none".to_string(), |m| format!("{} MiB", m >> 20));
        self.judge(("limits", "memory"), Ok(memory), RECORD, |_| None);
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    fn row<'a>(ready: &'a Ready, topic: &str, name: &str) -> &'a Row {
        ready.rows.iter().find(|r| r.topic == topic && r.name == name).expect("rows are never left out")
    }

    #[test]
    fn a_noisy_machine_is_warned_about() {
        let dir = tree(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "800000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "3200000\n"),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "2\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/name", "C1\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state3/latency", "133\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state3/name", "C6\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
            ("sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled", "[always] inherit madvise never\n"),
            ("proc/cmdline", "root=/dev/vda rcu_nocbs=0-7 isolcpus=2-3\n"),
            ("proc/loadavg", "1.50 0.20 0.10 2/300 1234\n"),
            ("proc/pressure/cpu", "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\n"),
            ("proc/sys/kernel/osrelease", "6.12.0-test\n"),
            ("boot/config-6.12.0-test", "CONFIG_KASAN=y\nCONFIG_HZ=250\n# CONFIG_DEBUG_VM is not set\n"),
            ("proc/cpuinfo", "model name : x\nflags : fpu hypervisor\n"),
            ("proc/swaps", "Filename Type\n/swap file 1 2\n"),
            ("proc/77/comm", "irqbalance\n"),
            ("proc/sys/kernel/perf_event_paranoid", "3\n"),
        ]);
        let limits = Limits { quota_cpus: Some(1.0), ..Limits::default() };
        let ready = inspect(dir.path(), &[0, 1], &limits);
        for (topic, name, found) in [
            ("cpufreq", "governor", "performance x 1, powersave x 1"),
            ("cpufreq", "range", "800000 to 3200000 kHz"),
            ("cpufreq", "turbo", "on"),
            ("cpuidle", "deepest state", "C6, 133 us"),
            ("smt", "active", "1"),
            ("thp", "enabled", "always"),
            ("thp", "other sizes", "64kB"),
            ("isolation", "rcu_nocbs", "rcu_nocbs=0-7"),
            ("noise", "load average", "1.50 0.20 0.10 2/300 1234"),
            ("noise", "pressure cpu", "some avg10=12.50 avg60=1.00 avg300=0.00 total=1"),
            ("config", "KASAN", "y"),
            ("cpu", "virtualisation", "guest"),
            ("swap", "areas", "1 areas"),
            ("irq", "irqbalance", "running"),
            ("perf", "paranoid", "3"),
            ("limits", "CPU quota", "1.00 CPUs"),
        ] {
            let row = row(&ready, topic, name);
            assert_eq!((row.found.as_str(), row.state), (found, State::Warn), "{topic} {name}");
            assert!(!row.reason.is_empty());
        }
        assert_eq!(row(&ready, "config", "DEBUG_VM").found, "n");
        assert_eq!(row(&ready, "config", "HZ").found, "250");
        assert_eq!(row(&ready, "isolation", "isolcpus").state, State::Ok);
    }

    #[test]
    fn a_quiet_machine_is_ok() {
        let dir = tree(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "2400000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "2400000\n"),
            ("sys/devices/system/cpu/cpufreq/boost", "0\n"),
            ("sys/devices/system/cpu/smt/active", "0\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
            ("proc/cmdline", "root=/dev/vda\n"),
            ("proc/loadavg", "0.01 0.20 0.10 2/300 1234\n"),
            ("proc/sys/kernel/randomize_va_space", "0\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
        ]);
        let ready = inspect(dir.path(), &[0], &Limits::default());
        assert_eq!(ready.count(State::Warn), 0, "{}", ready.text());
        for (topic, name) in [
            ("cpufreq", "governor"),
            ("cpufreq", "range"),
            ("cpufreq", "turbo"),
            ("smt", "active"),
            ("thp", "enabled"),
            ("isolation", "rcu_nocbs"),
            ("aslr", "randomize_va_space"),
            ("clock", "source"),
        ] {
            assert_eq!(row(&ready, topic, name).state, State::Ok, "{topic} {name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_unknown_with_a_reason() {
        let empty = inspect(Path::new("/nonexistent"), &[0], &Limits::default());
        let here = Host::load("this").unwrap().ready().unwrap();
        let names = |r: &Ready| r.rows.iter().map(|r| (r.topic, r.name)).collect::<Vec<_>>();
        assert_eq!(names(&empty), names(&here), "the same lines on every machine");
        let mut unique = names(&here);
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), here.rows.len(), "names are keys");
        assert_eq!(empty.count(State::Warn), 0);
        for r in empty.rows.iter().chain(&here.rows) {
            assert_eq!(r.state == State::Ok, r.reason.is_empty(), "{r:?}");
            assert_eq!(r.state == State::Unknown, r.found.is_empty(), "{r:?}");
        }
        let json = serde_json::to_value(&here).unwrap();
        assert_eq!(json["rows"][0]["topic"], "cpufreq");
        assert!(here.text().contains("kernel release"), "{}", here.text());
        assert!(Host::load("example-8n-64").unwrap().ready().is_err());
    }
}
