// SPDX-License-Identifier: GPL-2.0-only
//! What carries calls out, and what of the result is compared.
//!
//! A backend answers a call with a [`Step`]: the result and a hash of what user mode can see of the window. Equal steps
//! are agreement; only where two differ are the VMAs themselves fetched. That keeps the usual call cheap even where the
//! backend is another process.

use crate::cpu::{Errno, splitmix64};
use crate::maple_tree::MapleRules;
use crate::mm::mm_types::{VM_EXEC, VM_MAYSHARE, VM_READ, VM_SHARED, VM_WRITE};
use crate::mm::task_mmu::smaps_flags;
use crate::mm::{Call, MmRules, VmaInfo};

/// A page.
pub const PAGE: u64 = 4096;
/// First address of the window: between the program and the libraries of any process, with room of terabytes on both
/// sides.
pub const WINDOW: u64 = 0x6000_0000_0000;
/// Where a crowd stands on both sides of the window.
const CROWDS: [u64; 2] = [0x5000_0000_0000, 0x6800_0000_0000];
/// Most pages of a window.
pub const MAX_PAGES: u32 = 256;
/// Files that a round may map: memory files of so many pages each. What lies behind the end of the second is reached
/// often.
pub const FILES: [u64; 2] = [64, 5];
/// Bytes of a page that are compared.
pub const OFFSETS: [u64; 2] = [0, PAGE - 1];
/// Most processes of a round, the first included.
pub const MAX_DEPTH: usize = 4;

/// Byte that a file holds everywhere in page `page` when a round begins.
pub fn file_byte(file: usize, page: u64) -> u8 {
    (0x90 + file as u64 * 0x37 + page * 5) as u8 | 1
}

/// How a round begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Rules of the kernel.
    pub rules: MmRules,
    /// Pages of the window.
    pub pages: u32,
    /// VMAs that the round may have before limits bite; `None`: the usual 65530.
    pub room: Option<u32>,
    /// Whether the heap begins inside the window, at three quarters of it.
    pub heap: bool,
    /// Which of [`COUNTED`] are counted for each call, a bit each.
    pub counted: u16,
    /// What the process is short of.
    pub limit: Option<Limit>,
    /// Whether single bytes are touched by the processor (a fault is a signal) or by system calls (a fault is EFAULT).
    pub touch: bool,
    /// The window is the whole address space, the rest of the process included: a round about placement.
    pub everywhere: bool,
    /// The process has nothing but the window and a page of code, so that what the tree takes can be compared; and whose
    /// rules its tree follows.
    pub bare: Option<MapleRules>,
    /// Of a bare process: so many pages are mapped on both sides of the window, far from it, that its tree has levels.
    pub crowd: u32,
}

/// A resource that a process may be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `RLIMIT_AS`
    AddressSpace,
    /// `RLIMIT_DATA`, never 0.
    Data,
    /// `RLIMIT_MEMLOCK`, without `CAP_IPC_LOCK`
    Memlock,
    /// `RLIMIT_DATA` of 0, which does not mean "nothing": the hard limit counts in its place.
    DataHard,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 4] = [Resource::AddressSpace, Resource::Data, Resource::Memlock, Resource::DataHard];
}

/// A lowered limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub of: Resource,
    /// Pages that the process may still have when the round begins.
    pub pages: u32,
}

/// What is mapped where a round about placement begins, and what bounds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Start, end, and whether it grows down.
    pub mapped: Vec<(u64, u64, bool)>,
    /// Where the search from the top begins.
    pub mmap_base: u64,
    /// Addresses are drawn anew for each mapping below 2 GiB, and where the search from below begins is not known.
    pub randomised: bool,
    /// What the kernel promises.
    pub promise: Promise,
}

/// What a kernel promises a single mapping, by `vm.overcommit_memory`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promise {
    /// So many pages at most: its memory and swap.
    Pages(u64),
    /// Anything.
    Always,
    /// What the rest of the machine leaves: nobody can foretell it.
    #[default]
    Shared,
}

impl Space {
    /// Whether `[start, end)` is free of what was mapped before the round.
    pub fn is_foreign(&self, start: u64, end: u64) -> bool {
        self.mapped.iter().any(|m| m.0 < end && start < m.1)
    }
}

impl Setup {
    /// A plain round: no limits, bytes by system calls.
    pub fn plain(rules: MmRules, pages: u32) -> Self {
        Setup {
            rules,
            pages,
            room: None,
            heap: false,
            counted: 0,
            limit: None,
            touch: false,
            everywhere: false,
            bare: None,
            crowd: 0,
        }
    }
    /// Which of [`COUNTED`] must be equal, a bit each.
    pub fn judged(&self) -> u16 {
        let always = COUNTED.iter().enumerate().fold(0, |m, (i, c)| m | u16::from(c.1) << i);
        self.counted & if self.bare.is_some() { u16::MAX } else { always }
    }
    /// The calls that map [`Setup::crowd`]: single pages that may only be read, half of them below the window and half above
    /// it, in an order that leaves the leaves of a tree half full.
    pub fn crowd(&self) -> impl Iterator<Item = Call> {
        let mut order: Vec<u64> = (0..self.crowd.into()).collect();
        order.sort_by_key(|&i| splitmix64(i));
        order.into_iter().map(|i| {
            let addr = CROWDS[i as usize % 2] + i * PAGE;
            Call::Mmap { addr, len: PAGE, prot: 1, flags: 0x32, fd: None, offset: 0 }
        })
    }
    /// First address behind the window.
    pub fn end(&self) -> u64 {
        WINDOW + u64::from(self.pages) * PAGE
    }
    /// Where the heap begins.
    pub fn start_brk(&self) -> u64 {
        WINDOW + u64::from(self.pages) * 3 / 4 * PAGE
    }
}

/// What to look at after a call. Counted from the beginning of the round, so that every backend looks at the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// `VmFlags` after every so many calls.
    pub flags_every: u32,
    /// Bytes of all pages after every so many calls.
    pub bytes_every: u32,
}

impl Look {
    /// The usual one.
    pub const USUAL: Look = Look { flags_every: 8, bytes_every: 32 };
    /// Everything after every call.
    pub const ALWAYS: Look = Look { flags_every: 1, bytes_every: 1 };

    /// Whether to look at `VmFlags` after call `i`.
    pub fn flags(&self, i: u64) -> bool {
        (i + 1).is_multiple_of(u64::from(self.flags_every))
    }
    /// Whether to look at bytes after call `i`.
    pub fn bytes(&self, i: u64) -> bool {
        (i + 1).is_multiple_of(u64::from(self.bytes_every))
    }
}

/// What both a kernel's tracepoints and the port's counters count, and whether the two must be equal in any process.
///
/// What need not be is reported, call by call where it differs, and does not end a run. What the tree takes must be equal
/// only in a process that has nothing but the window ([`Setup::bare`]): how many nodes a store takes depends on the shape
/// of the leaves around the window, which hold the program's own mappings in an order that exec and the dynamic linker
/// made, and no process can see; a store that crosses from one leaf to the next is another kind of write.
pub const COUNTED: [(&str, bool); 9] = [
    ("VMAs allocated", true),
    ("VMAs freed", true),
    ("anon_vmas allocated", true),
    ("anon_vmas freed", true),
    ("chain links allocated", true),
    ("chain links freed", true),
    ("tree nodes allocated", false),
    ("tree writes", false),
    ("mmap_lock acquisitions", true),
];
/// The place of nodes in [`COUNTED`].
pub const NODES_TAKEN: usize = 6;
/// The place of the tree's writes in it.
pub const TREE_WRITES: usize = 7;
/// The place of chain links that are allocated in it.
pub const CHAIN_LINKS: usize = 4;
/// Numbers, in the order of [`COUNTED`].
pub type Counts = [u16; COUNTED.len()];

/// What counts of what a call was seen to take. At a fork the host's tracepoint is hit by every VMA that is put into the
/// copied tree, which the port does not count as writes. Of an exit nothing counts: a kernel may take a task's counters
/// away before its address space (6.18 does).
pub fn counts_of(c: &Call, mut seen: Counts) -> Counts {
    match c {
        Call::Fork => seen[TREE_WRITES] = 0,
        Call::Exit => seen = Counts::default(),
        _ => {}
    }
    seen
}

/// The answer to a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// What the system call returned: negative is an errno.
    pub result: i64,
    /// Hash of what was looked at.
    pub hash: u64,
    /// What the call cost, where it is counted; of a fork only in a bare process, and not all ([`counts_of`]).
    pub counts: Counts,
}

impl Step {
    /// Equal in all that must be equal, of the counts in those of `judged` ([`Setup::judged`]).
    pub fn agrees(&self, other: &Step, judged: u16) -> bool {
        let counts = (0..COUNTED.len()).all(|i| judged >> i & 1 == 0 || self.counts[i] == other.counts[i]);
        self.result == other.result && self.hash == other.hash && counts
    }
}

/// Why a backend cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop(pub String);

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Carries calls out in a window of its own.
pub trait Backend {
    /// What it is called in messages.
    fn name(&self) -> String;
    /// A fresh address space with an empty window.
    ///
    /// # Errors
    /// Why there is none.
    fn begin(&mut self, setup: &Setup) -> Result<(), Stop>;
    /// Carries out `calls`, which are numbers `first..` of the round, and appends the answers.
    ///
    /// # Errors
    /// Why it could not; answers given so far are appended.
    fn run(&mut self, first: u64, calls: &[Call], look: &Look, out: &mut Vec<Step>) -> Result<(), Stop>;
    /// The VMAs in the window as they are now, `VmFlags` included.
    ///
    /// # Errors
    /// As [`Backend::run`].
    fn maps(&mut self) -> Result<Vec<VmaInfo>, Stop>;
    /// What is mapped in a fresh address space of its own, outside the window.
    ///
    /// # Errors
    /// Why it cannot be seen.
    fn space(&mut self) -> Result<Option<Space>, Stop> {
        Ok(None)
    }
    /// What a round about placement is to begin with.
    fn load(&mut self, _: &Space) {}
    /// What else it knows that user mode cannot see, one line a VMA, for messages.
    fn hidden(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// The end of the round: all its processes exit, and what they had must be gone.
    ///
    /// # Errors
    /// What was not right at the end.
    fn end(&mut self) -> Result<(), Stop>;
}

/// `-errno` or the value.
pub fn result_of(r: Result<u64, Errno>) -> i64 {
    match r {
        Ok(v) => v as i64,
        Err(e) => -(e as i64),
    }
}

/// Results from here to [`signal_result`]'s lowest are signals.
const SIGNALS: i64 = -2000;

/// The result of an access that ended in a signal with its `si_code`.
pub fn signal_result(signal: i32, code: i32) -> i64 {
    SIGNALS - i64::from(signal) * 16 - i64::from(code & 15)
}

/// Signal and code of a result, if that is what it is.
pub fn signal_of(result: i64) -> Option<(i32, i32)> {
    let n = SIGNALS - result;
    (16..64 * 16).contains(&n).then_some(((n / 16) as i32, (n % 16) as i32))
}

/// Flags that a comparison of `VmFlags` looks at.
pub fn compared_flags() -> u64 {
    smaps_flags()
}

/// The four characters of a line of maps as bits: rights, and whether changes are shared.
pub fn line_bits(flags: u64) -> u64 {
    flags & (VM_READ | VM_WRITE | VM_EXEC) | if flags & VM_MAYSHARE != 0 { VM_SHARED } else { 0 }
}

/// A running hash.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Hash {
    /// Of nothing.
    pub fn new() -> Self {
        Hash(0x9e37_79b9_7f4a_7c15)
    }
    /// With one more word.
    #[inline]
    pub fn add(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 = x ^ x >> 32;
    }
    /// The value.
    pub fn value(self) -> u64 {
        self.0
    }
}
impl Default for Hash {
    fn default() -> Self {
        Self::new()
    }
}

/// The file of VMA `i` in a form that does not depend on how a backend numbers shared anonymous objects: those are named
/// by the first VMA that maps them. 0: none.
pub fn file_name(files: impl Fn(usize) -> Option<u32>, i: usize) -> u64 {
    match files(i) {
        None => 0,
        Some(f) if (f as usize) < FILES.len() => u64::from(f) + 1,
        Some(f) => 0x100 + (0..=i).find(|&j| files(j) == Some(f)).unwrap_or(i) as u64,
    }
}

/// Adds what is compared of the VMAs.
pub fn hash_vmas(h: &mut Hash, vmas: &[VmaInfo], flags: bool) {
    let all = compared_flags();
    for (i, v) in vmas.iter().enumerate() {
        h.add(v.start);
        h.add(v.end);
        h.add(line_bits(v.flags));
        h.add(file_name(|j| vmas[j].file, i));
        h.add(v.offset);
        if flags {
            h.add(v.flags & all);
        }
    }
}

/// Adds which addresses are mapped, without what `foreign` covers: what a round about placement compares. Where VMAs
/// begin and end within them depends on what the rest of the process maps beside them.
pub fn hash_coverage(h: &mut Hash, vmas: impl Iterator<Item = (u64, u64)>, foreign: &[(u64, u64)]) {
    let mut last: Option<(u64, u64)> = None;
    let mut put = |h: &mut Hash, start: u64, end: u64| match &mut last {
        Some(l) if l.1 == start => l.1 = end,
        l => {
            if let Some((s, e)) = l.replace((start, end)) {
                h.add(s);
                h.add(e);
            }
        }
    };
    for (start, end) in vmas {
        let mut at = start;
        // In order, so that each takes the lowest part off.
        for &(s, e) in foreign.iter().filter(|f| f.0 < end && start < f.1) {
            if at < s {
                put(h, at, s);
            }
            at = at.max(e);
        }
        if at < end {
            put(h, at, end);
        }
    }
    put(h, u64::MAX, u64::MAX);
}

/// Bytes of a page as they go into the hash: an access that fails counts as 256.
pub fn byte_word(r: Result<u64, Errno>) -> u64 {
    r.unwrap_or(256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::mm_types::VM_DONTDUMP;

    fn vma(start: u64, file: Option<u32>) -> VmaInfo {
        VmaInfo { start, end: start + PAGE, flags: VM_READ | VM_MAYSHARE, file, offset: 0 }
    }

    fn hash(v: &[VmaInfo], flags: bool) -> u64 {
        let mut h = Hash::new();
        hash_vmas(&mut h, v, flags);
        h.value()
    }

    #[test]
    fn shared_objects_are_compared_by_who_shares_them() {
        let a = [vma(0, Some(100)), vma(PAGE, Some(101)), vma(2 * PAGE, Some(100))];
        let b = [vma(0, Some(7)), vma(PAGE, Some(3)), vma(2 * PAGE, Some(7))];
        let c = [vma(0, Some(7)), vma(PAGE, Some(3)), vma(2 * PAGE, Some(3))];
        assert_eq!(hash(&a, true), hash(&b, true));
        assert_ne!(hash(&a, true), hash(&c, true));
        assert_ne!(hash(&[vma(0, Some(0))], false), hash(&[vma(0, Some(1))], false));
    }

    #[test]
    fn coverage_knows_what_is_mapped_and_not_how_it_is_cut() {
        let cover = |v: &[(u64, u64)], f: &[(u64, u64)]| {
            let mut h = Hash::new();
            hash_coverage(&mut h, v.iter().copied(), f);
            h.value()
        };
        assert_eq!(cover(&[(1, 3), (3, 6), (8, 9)], &[]), cover(&[(1, 6), (8, 9)], &[]));
        assert_ne!(cover(&[(1, 3), (4, 6)], &[]), cover(&[(1, 6)], &[]));
        // A neighbour that was there before is no part of it, merged or not.
        assert_eq!(cover(&[(1, 9)], &[(3, 5)]), cover(&[(1, 3), (3, 5), (5, 9)], &[(3, 5)]));
        assert_eq!(cover(&[(1, 9)], &[(3, 5)]), cover(&[(1, 3), (5, 9)], &[]));
        assert_ne!(cover(&[(1, 9)], &[(3, 5)]), cover(&[(1, 9)], &[]));
        assert_ne!(cover(&[], &[]), cover(&[(1, 2)], &[]));
    }

    #[test]
    fn signals_are_results_of_their_own() {
        assert_eq!(signal_of(signal_result(libc::SIGSEGV, 1)), Some((libc::SIGSEGV, 1)));
        assert_eq!(signal_of(signal_result(libc::SIGBUS, 2)), Some((libc::SIGBUS, 2)));
        assert!([0, -14, -4000, -5000, 255].iter().all(|r| signal_of(*r).is_none()));
    }

    #[test]
    fn hidden_flags_are_compared_only_when_looked_at() {
        let mut w = vma(0, None);
        w.flags |= VM_DONTDUMP;
        assert_eq!(hash(&[w], false), hash(&[vma(0, None)], false));
        assert_ne!(hash(&[w], true), hash(&[vma(0, None)], true));
    }
}
