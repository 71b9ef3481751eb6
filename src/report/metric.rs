// SPDX-License-Identifier: GPL-2.0-only
//! What a table can be about: how a sample turns into one number, its unit, and which way is better.
//!
//! Decided once, here. Rates add up the rates of the threads, each over its own span, because the load of all others is
//! kept on until the last span has ended; time spent on refilling a workload is in no span.
//!
//! Counters are kept from boot to shutdown of the sample's kernel, so that their balances close; their share per fault
//! therefore takes the faults of the same counters, not those of the span.

use crate::measure::stat::descriptive::{hmean, median};
use crate::measure::stat::mmtests::Better;
use crate::report::record::{PerfCell, Sample};
use std::fmt;
use std::str::FromStr;

/// What is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Metric {
    /// Operations per second.
    #[default]
    Throughput,
    /// User faults per second.
    Faults,
    /// User faults per second of CPU time: steady under steal, unlike the rates by the clock.
    FaultsPerCpu,
    /// Time of an operation on its thread, ns.
    NsPerOp,
    /// Faults that ended under mmap_lock, per million faults.
    Retries,
    /// Time waited for mmap_lock by readers and writers, ns per fault.
    MmapLockWait,
    /// Median distance of reuse of a cache, in its allocator events on a CPU; 1 is the next event.
    Reuse(String),
    /// A counter of the lock path (`vma_...`) per million faults, any other per thousand operations.
    Counter(String),
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "throughput" => Ok(Self::Throughput),
            "faults" => Ok(Self::Faults),
            "faults_per_cpu" => Ok(Self::FaultsPerCpu),
            "ns_per_op" => Ok(Self::NsPerOp),
            "retries" => Ok(Self::Retries),
            "mmap_lock_wait" => Ok(Self::MmapLockWait),
            _ => match s.split_once(':') {
                Some(("counter", name)) if !name.is_empty() => Ok(Self::Counter(name.into())),
                Some(("reuse", name)) if !name.is_empty() => Ok(Self::Reuse(name.into())),
                _ => Err(format!(
                    "metric \"{s}\" is not known; there are throughput, faults, faults_per_cpu, ns_per_op, retries, \
                     mmap_lock_wait, reuse:CACHE and counter:NAME"
                )),
            },
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throughput => f.write_str("throughput"),
            Self::Faults => f.write_str("faults"),
            Self::FaultsPerCpu => f.write_str("faults_per_cpu"),
            Self::NsPerOp => f.write_str("ns_per_op"),
            Self::Retries => f.write_str("retries"),
            Self::MmapLockWait => f.write_str("mmap_lock_wait"),
            Self::Reuse(name) => write!(f, "reuse:{name}"),
            Self::Counter(name) => write!(f, "counter:{name}"),
        }
    }
}

impl Metric {
    /// Unit of [`Metric::value`].
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Throughput => "ops/s",
            Self::Faults => "faults/s",
            Self::FaultsPerCpu => "faults/cpu-s",
            Self::NsPerOp => "ns/op",
            Self::Retries => "per million faults",
            Self::MmapLockWait => "ns per fault",
            Self::Reuse(_) => "events",
            Self::Counter(name) if name.starts_with("vma_lock_") => "per million faults",
            Self::Counter(name) if is_level(name) => "absolute",
            Self::Counter(_) => "per 1000 ops",
        }
    }

    /// Which way is better. A counter other than the lock path's has no better side, only more and less of it.
    pub fn better(&self) -> Option<Better> {
        match self {
            Self::Throughput | Self::Faults | Self::FaultsPerCpu => Some(Better::Higher),
            Self::NsPerOp | Self::Retries | Self::MmapLockWait => Some(Better::Lower),
            Self::Counter(name) if name.starts_with("vma_abort") || name.starts_with("vma_lock_abort") => {
                Some(Better::Lower)
            }
            Self::Counter(name) if name.starts_with("vma_lock_retry") || name == "vma_lock_miss" => Some(Better::Lower),
            Self::Reuse(_) | Self::Counter(_) => None,
        }
    }

    /// Whether it is a rate at fixed work, which the harmonic mean averages.
    pub fn is_rate(&self) -> bool {
        self.better() == Some(Better::Higher)
    }

    /// Name of the point estimate.
    pub fn point_name(&self) -> &'static str {
        if self.is_rate() { "Hmean" } else { "median" }
    }

    /// The point estimate: harmonic mean of rates, median of all else.
    pub fn point(&self, values: &[f64]) -> f64 {
        if self.is_rate() { hmean(values) } else { median(values) }
    }

    /// The number of one sample.
    ///
    /// # Errors
    /// Why it has none.
    pub fn value(&self, s: &Sample) -> Result<f64, String> {
        match self {
            Self::Throughput => per_second(s, s.operations, |t| t.operations),
            Self::Faults => per_second(s, s.faults, |t| t.faults),
            Self::FaultsPerCpu if s.cpu_ns == 0 => Err("no CPU time was measured".into()),
            Self::FaultsPerCpu => Ok(s.faults as f64 * 1e9 / s.cpu_ns as f64),
            Self::NsPerOp if s.operations == 0 => Err("no operation was done".into()),
            Self::NsPerOp => {
                let spans: u64 = s.per_thread.iter().map(|t| t.duration_ns).sum();
                let spans = if spans > 0 { spans } else { s.duration_ns * u64::from(s.threads) };
                Ok(spans as f64 / s.operations as f64)
            }
            Self::Retries => {
                let ended = counter(s, "vma_lock_retry")? + counter(s, "vma_lock_abort")?;
                Ok(ended as f64 * 1e6 / lock_path_faults(s)? as f64)
            }
            Self::MmapLockWait => {
                let ns = counter(s, "mmap_lock_read_wait_ns")? + counter(s, "mmap_lock_write_wait_ns")?;
                Ok(ns as f64 / lock_path_faults(s)? as f64)
            }
            Self::Reuse(name) => {
                let c = s.reuse.caches.get(name).ok_or_else(|| format!("no event of cache {name} was watched"))?;
                if s.reuse.lost.is_some_and(|n| n > 0) {
                    return Err("records of the tracepoints were lost".into());
                }
                quantile(&c.bins, 0.5).ok_or_else(|| format!("no object of {name} was seen to come back to its CPU"))
            }
            Self::Counter(name) if name.starts_with("vma_lock_") => {
                Ok(counter(s, name)? as f64 * 1e6 / lock_path_faults(s)? as f64)
            }
            Self::Counter(name) if is_level(name) => Ok(counter(s, name)? as f64),
            Self::Counter(_) if whole_run_operations(s) == 0 => Err("no operation was done".into()),
            Self::Counter(name) => Ok(counter(s, name)? as f64 * 1e3 / whole_run_operations(s) as f64),
        }
    }
}

/// Quantile `q` of distances in bins of powers of two, as if those of a bin lay evenly in it. Bin 0 is exactly 1.
pub fn quantile(bins: &[u64], q: f64) -> Option<f64> {
    let target = q * bins.iter().sum::<u64>() as f64;
    let mut below = 0.0;
    for (k, n) in bins.iter().enumerate().filter(|(_, n)| **n > 0) {
        let n = *n as f64;
        if below + n >= target {
            let low = (1u64 << k) as f64;
            return Some(low + (target - below) / n * (low - 1.0));
        }
        below += n;
    }
    None
}

fn per_second(s: &Sample, total: u64, of: impl Fn(&crate::report::record::PerThread) -> u64) -> Result<f64, String> {
    // Only where the threads' figures are all there; imported rows carry totals.
    let whole = s.per_thread.len() == s.threads as usize
        && s.per_thread.iter().all(|t| t.duration_ns > 0)
        && s.per_thread.iter().map(&of).sum::<u64>() == total;
    if whole {
        return Ok(s.per_thread.iter().map(|t| of(t) as f64 * 1e9 / t.duration_ns as f64).sum());
    }
    if s.duration_ns == 0 {
        return Err("the span has no length".into());
    }
    Ok(total as f64 * 1e9 / s.duration_ns as f64)
}

fn counter(s: &Sample, name: &str) -> Result<u64, String> {
    s.counters.get(name).copied().ok_or_else(|| format!("{name} was not counted"))
}

/// Whether a counter is a level (a peak, or what is left), not a count of events: shown as it is.
pub fn is_level(name: &str) -> bool {
    let level = ["_high_water", ".nr_slabs", ".slab_pages", ".live_objects", ".typesafe_pending_slabs"];
    name == "rcu_pending" || level.iter().any(|l| name.ends_with(l))
}

/// Operations over the whole run, which is what counters count over; those of the span where that was not recorded.
pub fn whole_run_operations(s: &Sample) -> u64 {
    s.counters.get("workload_operations").copied().unwrap_or(s.operations)
}

/// All faults that the lock path's counters saw the end of: success, retry or abort; the faults of the span where that
/// is not counted.
///
/// # Errors
/// There were none.
pub fn lock_path_faults(s: &Sample) -> Result<u64, String> {
    let ended = ["vma_lock_success", "vma_lock_retry", "vma_lock_abort"].map(|name| s.counters.get(name).copied());
    let faults = match ended {
        [Some(success), retry, abort] => success + retry.unwrap_or(0) + abort.unwrap_or(0),
        _ => s.faults,
    };
    if faults == 0 { Err("no fault was taken".into()) } else { Ok(faults) }
}

/// Share of the enabled time below which a scaled counter is refused.
pub const RUNNING_SHARE_MIN: f64 = 0.25;

/// The count, scaled to the time it was enabled.
///
/// # Errors
/// Why there is none: absent, or running for less than [`RUNNING_SHARE_MIN`] of the time.
pub fn scaled(cell: &PerfCell) -> Result<f64, String> {
    match cell {
        PerfCell::Absent { reason } => Err(reason.clone()),
        PerfCell::Counted { enabled, running, .. } if *enabled == 0 || *running == 0 => Err("never ran".into()),
        PerfCell::Counted { value, enabled, running } => {
            let share = *running as f64 / *enabled as f64;
            if share < RUNNING_SHARE_MIN {
                return Err(format!("ran only {:.0} % of the time", 100.0 * share));
            }
            Ok(*value as f64 / share)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::synthetic::sample;

    #[test]
    fn names_survive_a_round_trip() {
        for name in [
            "throughput",
            "faults",
            "faults_per_cpu",
            "ns_per_op",
            "retries",
            "reuse:maple_node",
            "counter:vma_lock_miss",
        ] {
            assert_eq!(name.parse::<Metric>().expect("is known").to_string(), name);
        }
        for name in ["", "counter:", "reuse:", "speed"] {
            assert!(name.parse::<Metric>().is_err_and(|e| e.contains("throughput")));
        }
    }

    #[test]
    fn rates_are_sums_over_threads_and_leave_refills_out() {
        let mut s = sample("a", "brk1", 2, 0, 1000.0);
        assert_eq!(Metric::Throughput.value(&s), Ok(1000.0));
        s.per_thread[1].duration_ns = 500_000_000;
        assert_eq!(Metric::Throughput.value(&s), Ok(1500.0));
        assert_eq!(Metric::NsPerOp.value(&s), Ok(1.5e6));
        s.per_thread.clear();
        assert_eq!(Metric::Throughput.value(&s), Ok(1000.0));
        assert_eq!(Metric::NsPerOp.value(&s), Ok(2e6));
        s.duration_ns = 0;
        assert!(Metric::Throughput.value(&s).is_err());
    }

    #[test]
    fn shares_take_the_faults_of_the_same_counters() {
        let mut s = sample("a", "brk1", 1, 0, 1000.0);
        s.counters = [("vma_lock_success", 1900), ("vma_lock_retry", 20), ("vma_lock_abort", 80)]
            .map(|(k, v)| (k.to_string(), v))
            .into();
        assert_eq!(Metric::Retries.value(&s), Ok(50_000.0));
        assert_eq!(Metric::Counter("vma_lock_abort".into()).value(&s), Ok(40_000.0));
        s.counters.remove("vma_lock_abort");
        assert!(Metric::Retries.value(&s).is_err_and(|e| e.contains("vma_lock_abort was not counted")));
        s.cpu_ns = 0;
        assert!(Metric::FaultsPerCpu.value(&s).is_err());
    }

    #[test]
    fn quantiles_of_distances_lie_in_their_bin() {
        assert_eq!(quantile(&[10], 0.5), Some(1.0));
        assert_eq!(quantile(&[0, 0, 0, 10], 0.5), Some(11.5), "the middle of 8 to 15");
        assert_eq!(quantile(&[9, 0, 0, 1], 0.5), Some(1.0));
        assert_eq!(quantile(&[1, 0, 0, 9], 1.0), Some(15.0));
        assert_eq!(quantile(&[], 0.5), None);
        let mut s = sample("a", "brk1", 1, 0, 1000.0);
        let metric: Metric = "reuse:maple_node".parse().expect("is known");
        assert!(metric.value(&s).is_err_and(|e| e.contains("maple_node")));
        s.reuse.caches.entry("maple_node".into()).or_default().bins = vec![3];
        assert_eq!(metric.value(&s), Ok(1.0));
        s.reuse.lost = Some(1);
        assert!(metric.value(&s).is_err(), "lost records are never passed over");
    }

    #[test]
    fn scaling_is_by_running_share_and_refuses_below_a_quarter() {
        let cell = |running| PerfCell::Counted { value: 123_456, enabled: 1_000_000, running };
        assert_eq!(scaled(&cell(250_000)), Ok(493_824.0));
        assert!(scaled(&cell(249_999)).is_err_and(|e| e.contains("25 %")));
        assert!(scaled(&cell(0)).is_err());
        assert_eq!(scaled(&PerfCell::Absent { reason: "no PMU".into() }), Err("no PMU".into()));
    }
}
