// SPDX-License-Identifier: GPL-2.0-only
//! Floor 7: what the threads do.
//!
//! A workload is one file: a name, why it exists, what it can and cannot show, `setup` (once an address space),
//! `attach` (each thread), `step` (one operation, untimed bookkeeping kept out), `refill` (when `step` has used up what
//! it faults on; its time is excluded), and `finish`. It knows neither protocol nor world: everything it does to memory
//! goes through [`Space`], behind which stands the port (one thread's CPU token and mm) or the host's own kernel.
//! Randomness comes from the plan's seed through [`Space::random`].
//!
//! `trace:FILE` is a workload too: one for each file ([`trace`]).
//!
//! A new workload: write its file, add its line to [`with_workload!`](crate::with_workload) and [`LIST`].

pub mod anon_fault;
pub mod brk1;
pub mod cross_mm_reuse;
pub mod fault_vs_unmap;
pub mod mmap_churn;
pub mod munmap_storm;
pub mod shared_vma;
pub mod trace;

use crate::cpu::Errno;
use crate::trace::Program;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// One thread's hold on an address space. Addresses and lengths are page-aligned; lengths are in pages.
pub trait Space {
    /// Maps private anonymous memory, readable and writable: at `at` (over whatever is there), or where the kernel
    /// likes.
    ///
    /// # Errors
    /// Those of mmap(2).
    fn map(&self, at: Option<u64>, pages: u64) -> Result<u64, Errno>;
    /// munmap(2).
    ///
    /// # Errors
    /// Those of munmap(2).
    fn unmap(&self, addr: u64, pages: u64) -> Result<(), Errno>;
    /// brk(2) as the system call: the break after it, whether moved or not. `0` only reports.
    fn brk(&self, to: u64) -> u64;
    /// Writes one byte of the page at `addr` from user mode: a page fault if the page is not there.
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped, `ENOMEM`.
    fn touch(&self, addr: u64) -> Result<(), Errno>;
    /// madvise(`MADV_DONTNEED`): the pages go, the VMA stays.
    ///
    /// # Errors
    /// Those of madvise(2).
    fn zap(&self, addr: u64, pages: u64) -> Result<(), Errno>;
    /// Maps private anonymous memory with rights `prot` (`PROT_*`) at `at`, over whatever is there; `noreserve`: not
    /// counted against the commit limit.
    ///
    /// # Errors
    /// Those of mmap(2).
    fn map_as(&self, at: u64, pages: u64, prot: u32, noreserve: bool) -> Result<(), Errno>;
    /// mprotect(2)
    ///
    /// # Errors
    /// Those of mprotect(2).
    fn protect(&self, addr: u64, pages: u64, prot: u32) -> Result<(), Errno>;
    /// madvise(2)
    ///
    /// # Errors
    /// Those of madvise(2).
    fn advise(&self, addr: u64, pages: u64, advice: i32) -> Result<(), Errno>;
    /// mremap(2): in place where `to` is `addr`, else to `to`, over whatever is there.
    ///
    /// # Errors
    /// Those of mremap(2).
    fn remap(&self, addr: u64, pages: u64, to: u64, new_pages: u64) -> Result<(), Errno>;
    /// Runs `f` in a second address space, this thread's own and made when first asked for, as if its CPU had gone over to
    /// another process. `None`: there is none in this world, or no memory for one.
    fn in_other<R>(&self, f: impl FnOnce(&Self) -> R) -> Option<R>;
    /// Ends the second address space, if there is one.
    fn end_other(&self);
    /// The recorded program of `trace:FILE`; `None` in a run of anything else.
    fn program(&self) -> Option<&Program>;
    /// Next random number of this thread.
    fn random(&self) -> u64;
    /// A large part of the address space where nothing else maps: its first address.
    fn window(&self) -> u64;
}

/// One mm for all threads, or one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One mm.
    Thread,
    /// An mm per CPU.
    Process,
}

impl Mode {
    /// Slug in commands and records.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Thread => "thread",
            Mode::Process => "process",
        }
    }
}

/// What a thread knows of its place in the run.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// This thread among those of its address space.
    pub index: u32,
    /// Threads in this address space (1 in process mode).
    pub threads: u32,
}

/// What one [`Workload::step`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Operations, as [`About::operation`] defines one.
    pub operations: u64,
    /// User faults.
    pub faults: u64,
    /// Nothing is left to fault on: call [`Workload::refill`] before the next step.
    pub exhausted: bool,
}

/// What a reader should know of a workload.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Slug.
    pub name: &'static str,
    /// What one operation is.
    pub operation: &'static str,
    /// Why it exists: a thread, a paper, a tool.
    pub why: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// What it cannot show.
    pub cannot: &'static str,
    /// Mode where none is asked for.
    pub mode: Mode,
}

/// A workload; see the module.
pub trait Workload {
    /// What it is.
    const ABOUT: About;
    /// Why it cannot run on the host's own kernel, where it cannot.
    const NOT_ON_HOST: Option<&'static str> = None;
    /// What the threads of one address space share: addresses.
    type Shared: Copy + Send + Sync + From<[u64; 2]> + Into<[u64; 2]>;
    /// What one thread keeps.
    type State;

    /// Once an address space, by one thread, before any other attaches.
    ///
    /// # Errors
    /// From the space.
    fn setup<S: Space>(s: &S, seat: Seat) -> Result<Self::Shared, Errno>;
    /// Each thread, before the start line.
    ///
    /// # Errors
    /// From the space.
    fn attach<S: Space>(s: &S, shared: Self::Shared, seat: Seat) -> Result<Self::State, Errno>;
    /// One operation.
    ///
    /// # Errors
    /// From the space; the sample becomes an error row.
    fn step<S: Space>(s: &S, st: &mut Self::State) -> Result<Step, Errno>;
    /// Makes room for more faults; not timed.
    ///
    /// # Errors
    /// From the space.
    fn refill<S: Space>(s: &S, st: &mut Self::State) -> Result<(), Errno>;
    /// Once an address space, after the last thread stopped: unmaps what `setup` mapped.
    ///
    /// # Errors
    /// From the space.
    fn finish<S: Space>(s: &S, shared: Self::Shared, seat: Seat) -> Result<(), Errno>;
}

/// Every workload that needs no file, in the order of `faultline list workloads`; [`trace`] comes last there.
pub const LIST: &[About] = &[
    anon_fault::AnonFault::ABOUT,
    brk1::Brk1::ABOUT,
    mmap_churn::MmapChurn::ABOUT,
    fault_vs_unmap::FaultVsUnmap::ABOUT,
    munmap_storm::MunmapStorm::ABOUT,
    shared_vma::SharedVma::ABOUT,
    cross_mm_reuse::CrossMmReuse::ABOUT,
];

/// Why workload `name`, one of [`LIST`] or a trace, cannot run on the host's own kernel.
pub fn not_on_host(name: &str) -> Option<&'static str> {
    crate::with_workload!(name, W => W::NOT_ON_HOST)
}

/// Looks a workload up by slug.
///
/// # Errors
/// A sentence with what is accepted.
pub fn find(name: &str) -> Result<&'static About, String> {
    LIST.iter().find(|a| a.name == name).ok_or_else(|| {
        let names: Vec<_> = LIST.iter().map(|a| a.name).collect();
        format!("unknown workload '{name}'; accepted: {}, trace:FILE", names.join(", "))
    })
}

/// Runs `$body` with `$W` standing for the workload named `$name`: from a name to a monomorphised function, once a
/// run. The name must be one of [`LIST`].
#[macro_export]
macro_rules! with_workload {
    ($name:expr, $W:ident => $body:expr) => {
        match $name {
            "anon_fault" => {
                type $W = $crate::workload::anon_fault::AnonFault;
                $body
            }
            "brk1" => {
                type $W = $crate::workload::brk1::Brk1;
                $body
            }
            "mmap_churn" => {
                type $W = $crate::workload::mmap_churn::MmapChurn;
                $body
            }
            "fault_vs_unmap" => {
                type $W = $crate::workload::fault_vs_unmap::FaultVsUnmap;
                $body
            }
            "munmap_storm" => {
                type $W = $crate::workload::munmap_storm::MunmapStorm;
                $body
            }
            "shared_vma" => {
                type $W = $crate::workload::shared_vma::SharedVma;
                $body
            }
            "cross_mm_reuse" => {
                type $W = $crate::workload::cross_mm_reuse::CrossMmReuse;
                $body
            }
            // Each recorded program is a workload of its own name.
            other if other.starts_with($crate::workload::trace::PREFIX) => {
                type $W = $crate::workload::trace::TraceLoop;
                $body
            }
            other => unreachable!("workload '{other}' is in no list"),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_directory_is_listed_and_dispatched() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/workload");
        for e in std::fs::read_dir(dir).unwrap().flatten() {
            let name = e.file_name().to_string_lossy().trim_end_matches(".rs").to_string();
            if name == "mod" {
                continue;
            }
            if name == "trace" {
                // It has no list line: its name needs a file.
                assert!(find("trace").unwrap_err().contains("trace:FILE"));
                assert_eq!(with_workload!("trace:x.log", W => W::ABOUT.name), "trace");
                continue;
            }
            let about = find(&name).unwrap();
            let dispatched = with_workload!(name.as_str(), W => W::ABOUT.name);
            assert_eq!(about.name, dispatched);
        }
        assert!(find("pft").unwrap_err().contains("anon_fault, brk1"));
    }
}
