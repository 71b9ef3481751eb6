// SPDX-License-Identifier: GPL-2.0-only
//! CPU lists in the kernel's notation: `0,2,4-7`.
//!
//! Also read: `0-31:2/8`, the grouped ranges some sysfs files and command lines use (of every 8, the first 2). What is
//! written is always the plain form.

/// The largest CPU number accepted: a typing error must not allocate gigabytes.
const MAX_CPU: u32 = 1 << 20;

/// Reads a CPU list; the result ascends and holds every CPU once. An empty text is an empty list.
///
/// # Errors
/// A sentence naming the part that is not a CPU or a range.
pub fn parse(text: &str) -> Result<Vec<u32>, String> {
    let mut cpus = parse_in_order(text)?;
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Reads a CPU list and keeps its order (a pin list is an order); a CPU named twice is an error.
///
/// # Errors
/// As [`parse`], and for repetitions.
pub fn parse_ordered(text: &str) -> Result<Vec<u32>, String> {
    let cpus = parse_in_order(text)?;
    let mut seen = std::collections::BTreeSet::new();
    match cpus.iter().find(|&&c| !seen.insert(c)) {
        Some(c) => Err(format!("CPU {c} is named twice")),
        None => Ok(cpus),
    }
}

fn parse_in_order(text: &str) -> Result<Vec<u32>, String> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let bad = || format!("`{part}` is not a CPU number or a range such as 4-7");
        let number = |t: &str| t.trim().parse::<u32>().ok().filter(|&n| n <= MAX_CPU).ok_or_else(bad);
        let (range, group) = match part.split_once(':') {
            Some((range, group)) => (range, Some(group)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        let (used, size) = match group {
            Some(group) => group.split_once('/').ok_or_else(bad).and_then(|(u, s)| Ok((number(u)?, number(s)?)))?,
            None => (1, 1),
        };
        if first > last || size == 0 || used == 0 || used > size {
            return Err(bad());
        }
        cpus.extend((first..=last).filter(|c| (c - first) % size < used));
    }
    Ok(cpus)
}

/// Writes CPUs in the kernel's notation, ascending (`0-3,8`).
pub fn format(cpus: &[u32]) -> String {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    let mut out = String::new();
    let mut i = 0;
    while i < cpus.len() {
        let mut j = i;
        while j + 1 < cpus.len() && cpus[j + 1] == cpus[j] + 1 {
            j += 1;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&cpus[i].to_string());
        if j > i {
            out.push('-');
            out.push_str(&cpus[j].to_string());
        }
        i = j + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse("0,2,4-7\n").unwrap(), [0, 2, 4, 5, 6, 7]);
        assert_eq!(parse("7,1-2,2").unwrap(), [1, 2, 7]);
        assert_eq!(parse("\n").unwrap(), [0u32; 0]);
        assert_eq!(parse("0-7:2/4").unwrap(), [0, 1, 4, 5]);
        assert_eq!(parse_ordered("6,0-2").unwrap(), [6, 0, 1, 2]);
        assert_eq!(format(&[5, 0, 1, 2, 8, 5]), "0-2,5,8");
        assert_eq!(format(&[]), "");
    }

    #[test]
    fn what_is_no_list_is_named() {
        for bad in ["0-", "a", "3-1", "1-2-3", "-1", "0-7:0/4", "0-7:5/4", "0-4000000000", "0x3"] {
            let e = parse(bad).unwrap_err();
            assert!(e.contains(bad), "{bad}: {e}");
        }
        assert_eq!(parse_ordered("1,0-1").unwrap_err(), "CPU 1 is named twice");
    }

    proptest::proptest! {
        #[test]
        fn written_and_read_again(cpus in proptest::collection::btree_set(0u32..2000, 0..60)) {
            let cpus: Vec<u32> = cpus.into_iter().collect();
            proptest::prop_assert_eq!(parse(&format(&cpus)).unwrap(), cpus);
        }
    }
}
