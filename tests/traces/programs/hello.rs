// SPDX-License-Identifier: GPL-2.0-only
use std::collections::HashMap;
fn main() {
    let mut m: HashMap<String, Vec<u64>> = HashMap::new();
    for i in 0..1000u64 { m.entry((i % 7).to_string()).or_default().push(i); }
    println!("{:?}", m.values().map(|v| v.iter().sum::<u64>()).collect::<Vec<_>>());
}
