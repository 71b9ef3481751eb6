// SPDX-License-Identifier: GPL-2.0-only
//! Floor 8: the differential fuzzer. It draws memory system calls that get into each other's way, lets two backends carry
//! them out, and compares after every call: return value or errno, each VMA's range, rights, file and offset; and,
//! after as many calls as asked, `VmFlags` and the bytes of every page.
//!
//! Backends: the port ([`port`]), the running kernel through a process of its own ([`kernel`]; where objects are counted
//! through one that has nothing but the window, `bare.rs`), and a reference model written from the rules alone
//! ([`model`]), which needs no system calls. What differs between kernels is *seen* on the
//! host ([`probe`]), never taken from a version number.
//!
//! A run is many rounds. A usual round has a fresh address space, one seed, and a window of a few dozen pages with nothing
//! around it: everything meets everything. A difference is shrunk ([`shrink`]) to a script and a token ([`token`]).
//!
//! INVARIANT: a call never reaches memory outside the window: the generator does not draw such calls, and the helper
//! process refuses them once more on its own. Only its beginning maps elsewhere: in rounds at the limit of VMAs it fills up a
//! range of its own far from the window (`helper/begin.rs`, `crowd`), which no call reaches.
//!
//! Rounds about placement ([`place`]) are another kind: there the kernel chooses addresses, among those that the helper's
//! process has free, and what was mapped before the round stays as it is.
//!
//! It cannot tell: what a kernel does with several threads in one address space, under memory pressure, or with huge
//! pages (the window is smaller than one); what is not visible from outside (page offsets of anonymous memory,
//! anon_vmas) it sees only where a later merge depends on it.

pub mod backend;
#[cfg(target_arch = "x86_64")]
pub mod bare;
pub mod driver;
pub mod r#gen;
pub mod helper;
pub mod kernel;
pub mod model;
pub mod place;
pub mod port;
pub mod probe;
pub mod shrink;
pub mod text;
pub mod token;
pub mod wire;

pub use backend::{Backend, Look, Setup, Step, Stop};
pub use driver::{Difference, Options, Outcome, Tally, fuzz};
pub use probe::{Feature, Features, Host};

#[cfg(test)]
mod tests;
