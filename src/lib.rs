// SPDX-License-Identifier: GPL-2.0-only
//! faultline: what does a change in how VMAs are allocated, freed and locked do to page-fault-heavy multithreaded
//! work, and is the protocol right at all?
//!
//! The floors, bottom to top (a file imports its own floor and those below; `floors.rs` tests it):
//!
//! | floor | directory | what |
//! |---|---|---|
//! | 0 | `arch` | the machine: words, fences, CPUs, memory; one file a world |
//! | 1 | `cpu` | the running CPU, per-CPU data, tick, softirq, sleeping |
//! | 2 | `sync` | spinlock, rwsem, seqcount, refcount, rcuwait |
//! | 3 | `rcu` | Tree RCU |
//! | 4 | `slab` | pages, SLUB |
//! | 5 | `maple_tree` | the range tree |
//! | 6 | `mm`, `init` | VMAs, their locks and caches, page tables, faults; boot |
//! | 7 | `workload`, `trace` | what the threads do; what real programs did |
//! | 8 | `measure` | the timed loop, plans, counters, statistics |
//! | 8 | `check` | the lock protocols before a model checker |
//! | 8 | `fuzz` | the port held against the running kernel and a reference model |
//! | 9 | `report`, `plot` | records, tables, letters, figures |
//! | 10 | `cmd` | one verb of the command line a file |
//!
//! `host` stands at the side: anyone may import it. `model` holds the model checks; nobody imports it.

pub mod arch;
pub mod check;
pub mod cmd;
pub mod cpu;
pub mod floors;
pub mod fuzz;
#[cfg(test)]
mod held;
pub mod host;
pub mod init;
pub mod maple_tree;
pub mod measure;
pub mod mm;
#[cfg(test)]
pub mod model;
#[cfg(feature = "plot")]
#[deny(unsafe_code)]
pub mod plot;
pub mod rcu;
#[deny(unsafe_code)]
pub mod report;
pub mod slab;
pub mod sync;
pub mod trace;
#[deny(unsafe_code)]
pub mod workload;
