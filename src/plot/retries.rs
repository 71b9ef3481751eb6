// SPDX-License-Identifier: GPL-2.0-only
//! Faults that ended under mmap_lock, per million, by cause.
//!
//! Misses are not in the stack: after one the fault walks again and ends elsewhere.

use super::Data;
use super::stacked::{self, Words};
use crate::report::blocks::{CAUSES, RetryRow, is_cause_of};

/// The height of the layer of cause `i`. A sum stands for its parts where they were not counted, as in old records.
fn height(r: &RetryRow, i: usize) -> Option<f64> {
    let split = || CAUSES.iter().zip(&r.causes).any(|((part, _), v)| v.is_some() && is_cause_of(part, CAUSES[i].0));
    if CAUSES[i].0 == "vma_lock_miss" || split() { None } else { r.causes[i] }
}

/// The figure.
pub fn draw(data: &Data) -> Result<String, String> {
    let b = data.block;
    let layers: Vec<usize> = (0..CAUSES.len()).filter(|&i| b.retries.iter().any(|r| height(r, i).is_some())).collect();
    if layers.is_empty() {
        return Err("the lock path was not counted, or no fault was taken".into());
    }
    let bar = |r: &RetryRow| layers.iter().map(|&i| height(r, i).unwrap_or(0.0)).collect();
    let rows = b.retries.iter().map(|r| (r.workload.clone(), r.threads, r.variant.as_str(), bar(r)));
    let names: Vec<String> = layers.iter().map(|&i| CAUSES[i].1.to_string()).collect();
    let words = Words {
        title: "Faults retried under mmap_lock, by cause",
        y: "per million faults",
        note: "Mean over samples; misses walk again and are not in the stack.",
    };
    stacked::draw(data, &words, &names, &stacked::panels(&b.variants, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::blocks::retries;
    use crate::report::synthetic::sample;

    /// The names and the sum of the stack of `counters`, where all else was not counted.
    fn stack(counters: &[(&str, u64)]) -> (Vec<&'static str>, f64) {
        let mut s = sample("a", "brk1", 1, 0, 1000.0);
        s.counters = counters.iter().map(|(n, v)| (n.to_string(), *v)).collect();
        let r = &retries(&[&s], &["a".into()])[0];
        let layers: Vec<_> = (0..CAUSES.len()).filter_map(|i| Some((CAUSES[i].1, height(r, i)?))).collect();
        (layers.iter().map(|l| l.0).collect(), layers.iter().map(|l| l.1).sum())
    }

    #[test]
    fn sums_stand_for_parts_that_were_not_counted_and_for_no_others() {
        let old = [("vma_lock_success", 900), ("vma_lock_retry", 60), ("vma_lock_abort", 40), ("vma_lock_miss", 7)];
        assert_eq!(stack(&old), (vec!["retry", "abort"], 100_000.0));
        let half = [&old[..], &[("vma_lock_abort_none", 30), ("vma_lock_abort_writer", 10)]].concat();
        assert_eq!(stack(&half), (vec!["retry", "none", "writer"], 100_000.0));
        let all = [&half[..], &[("vma_lock_retry_anon_vma", 60), ("vma_lock_retry_io", 0)]].concat();
        assert_eq!(stack(&all), (vec!["anon-vma", "io", "none", "writer"], 100_000.0));
    }
}
