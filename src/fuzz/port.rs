// SPDX-License-Identifier: GPL-2.0-only
//! The port as a backend: a kernel with one CPU in this process, booted anew for every round with the rules that it is to
//! follow, and shut down at its end. So every round also checks that nothing was left: objects, pages, address spaces,
//! charged memory, and that no warning was counted. The tree is validated after every call.
//!
//! It drives [`syscall`](crate::mm::syscall::syscall), as user mode does, on the calling thread; memory of the modelled
//! machine is real memory, so bytes are real bytes.

use super::backend::{
    Backend, COUNTED, FILES, Hash, Limit, Look, OFFSETS, PAGE, Promise, Resource, Setup, Space, Step, Stop, WINDOW,
    byte_word, counts_of, file_byte, hash_coverage, hash_vmas, result_of, signal_result,
};
use super::probe::{Feature, Features};
use crate::arch::native::{NativeMachine, OsCpu};
use crate::arch::{Native, Relaxed};
use crate::cpu::tick::exit_to_user_mode;
use crate::cpu::{Cpu, Errno};
use crate::host::affinity;
use crate::init::{Kernel, KernelConfig, shutdown, start_kernel};
use crate::maple_tree::{MapleEvent, mt_validate};
use crate::mm::mm_types::{CAP_IPC_LOCK, DEFAULT_MAX_MAP_COUNT, RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK};
use crate::mm::util::OVERCOMMIT_ALWAYS;
use crate::mm::{
    Call, FaultError, FileSpec, Kconfig, MmRules, Process, Variant, VmEvent, VmaInfo, file_open, fput, mm_alloc, mmput,
    syscall, user_access, vma_infos,
};
use crate::with_variant;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Result of a call in which the port panicked.
pub const PANICKED: i64 = -5000;
/// Memory of the modelled machine, bytes.
const MEMORY: usize = 64 << 20;
/// Where files are written before a round: far from the window, and unmapped again.
const SCRATCH: u64 = 0x1000_0000_0000;
/// Where a bare process has its page of code: as far below the window as nothing else is.
pub const CODE: u64 = 0x2000_0000_0000;
/// Where the page of data is that a process short of memory has: as far on the other side.
pub const OWN: u64 = 0x7000_0000_0000;

/// Takes out what the port cannot do yet, seen by asking it.
///
/// # Errors
/// Where the port cannot begin.
pub fn limit(port: &mut dyn Backend, rules: &MmRules, features: &mut Features) -> Result<(), Stop> {
    let at = WINDOW;
    let len = PAGE;
    let mut answer = |c: Call| -> Result<i64, Stop> {
        let mut steps = Vec::new();
        port.begin(&Setup::plain(*rules, 8))?;
        port.run(0, &[c], &Look { flags_every: 1000, bytes_every: 1000 }, &mut steps)?;
        port.end()?;
        Ok(steps[0].result)
    };
    let asked = [
        (Feature::Mprotect, Call::Mprotect { addr: at, len, prot: 0 }),
        (Feature::Madvise, Call::Madvise { addr: at, len, advice: libc::MADV_RANDOM }),
        (Feature::Mremap, Call::Mremap { addr: at, old_len: len, new_len: len, flags: 0, new_addr: 0 }),
        (Feature::Mlock, Call::Mlock { addr: at, len, flags: 0 }),
        (Feature::Mlockall, Call::Mlockall { flags: 1 }),
        (Feature::Mseal, Call::Mseal { addr: at, len }),
        (Feature::Fork, Call::Fork),
    ];
    for (f, c) in asked {
        if answer(c)? == -(Errno::ENOSYS as i64) {
            features.remove(f);
        }
    }
    let file = Call::Mmap { addr: at, len, prot: 1, flags: 0x11, fd: Some(0), offset: 0 };
    if answer(file)? < 0 {
        features.remove(Feature::Files);
    }
    Ok(())
}

/// A port of `variant`.
///
/// # Errors
/// Why there is none.
pub fn start(variant: &Variant) -> Result<Box<dyn Backend>, String> {
    with_variant!(variant, Native, K => Ok(Box::new(Port::<K>::new(variant)?)))
}

/// What a running round has; all of it stands in the machine's memory.
struct Round<K: Kconfig<A = Native>> {
    process: Process<K>,
    cpu: Cpu<Native>,
    kernel: Box<Kernel<K>>,
    setup: Setup,
    /// A mapping that grows down was asked for.
    stacks: bool,
    /// In a round about placement, what is mapped besides.
    foreign: Vec<(u64, u64)>,
}

/// The port.
pub struct Port<K: Kconfig<A = Native>> {
    variant: Variant,
    space: Space,
    // Before the machine: it is dropped first.
    round: Option<Round<K>>,
    machine: NativeMachine,
}

impl<K: Kconfig<A = Native>> Port<K> {
    /// A machine with one CPU.
    ///
    /// # Errors
    /// Where the host gives no memory for it.
    pub fn new(variant: &Variant) -> Result<Self, String> {
        let cpu = affinity::allowed().first().copied().unwrap_or(0);
        let machine = NativeMachine::new(&[OsCpu { cpu, node: 0 }], MEMORY, |_, _| 10)
            .map_err(|e| format!("memory for the port: {e}"))?;
        Ok(Port { variant: variant.clone(), space: Space::default(), round: None, machine })
    }

    fn round(&mut self) -> Result<&mut Round<K>, Stop> {
        self.round.as_mut().ok_or_else(|| Stop("no round is running".into()))
    }
}

impl<K: Kconfig<A = Native>> Round<K> {
    fn call(&mut self, c: &Call) -> Result<u64, Errno> {
        self.stacks |= matches!(c, Call::Mmap { flags, .. } if flags & libc::MAP_GROWSDOWN as u32 != 0);
        let r = syscall(&self.cpu, &self.kernel, &mut self.process, c);
        let _ = exit_to_user_mode(&self.cpu);
        r
    }

    /// What a call is seen to return: a signal where the access is the processor's.
    fn result(&mut self, c: &Call) -> i64 {
        let access = match *c {
            Call::Read { addr } if self.setup.touch => {
                user_access(&self.cpu, &self.kernel, self.process.mm, addr, None)
            }
            Call::Write { addr, value } if self.setup.touch => {
                user_access(&self.cpu, &self.kernel, self.process.mm, addr, Some(value))
            }
            _ => return result_of(self.call(c)),
        };
        let _ = exit_to_user_mode(&self.cpu);
        const ADRERR: i32 = 2;
        match access {
            Ok(v) => v as i64,
            Err(FaultError::Maperr) => signal_result(libc::SIGSEGV, 1),
            Err(FaultError::Accerr) => signal_result(libc::SIGSEGV, 2),
            Err(FaultError::Sigbus) => signal_result(libc::SIGBUS, ADRERR),
            Err(e @ FaultError::Oom) => result_of(Err(e.into())),
        }
    }

    /// Counters in the order of [`COUNTED`].
    fn counts(&self) -> [u64; COUNTED.len()] {
        let n = |e| self.cpu.counters.get(e);
        let m = |e| self.cpu.counters.get(e);
        let (own, quiet) = (
            [
                MapleEvent::StoreSlot,
                MapleEvent::StoreNode,
                MapleEvent::StoreAppend,
                MapleEvent::Split,
                MapleEvent::Rebalance,
                MapleEvent::Spanning,
            ],
            [MapleEvent::StoreExact, MapleEvent::NewRoot],
        );
        let own: u64 = own.into_iter().map(m).sum();
        // The tracepoint is hit where a store of several slots is done (or, if it spans leaves, seen), and once more by
        // every mas_store_prealloc().
        let prealloc = own + quiet.into_iter().map(m).sum::<u64>() - m(MapleEvent::StoreGfp);
        [
            n(VmEvent::VmaAlloc),
            n(VmEvent::VmaFree),
            n(VmEvent::AnonVmaAlloc),
            n(VmEvent::AnonVmaFree),
            n(VmEvent::AnonVmaChainAlloc),
            n(VmEvent::AnonVmaChainFree),
            m(MapleEvent::NodeAlloc),
            own + prealloc,
            // A downgrade is traced as a lock that was acquired; so is a trylock that failed, as a failure.
            n(VmEvent::MmapLockRead)
                + n(VmEvent::MmapLockWrite)
                + n(VmEvent::MmapLockDowngrade)
                + n(VmEvent::MmapLockReadFail),
        ]
    }

    /// The window's VMAs; in a round about placement all but those that were there before.
    fn maps(&self) -> Vec<VmaInfo> {
        let mut v = vma_infos(&self.cpu, &self.kernel, self.process.mm, &self.process.files);
        if self.setup.everywhere {
            v.retain(|v| !self.foreign.iter().any(|f| f.0 < v.end && v.start < f.1));
        } else {
            v.retain(|v| v.end > WINDOW && v.start < self.setup.end());
        }
        v
    }

    /// Maps what a round about placement begins with: execute-only, which no call of such a round asks for, so that
    /// nothing merges with it.
    fn load(&mut self, space: &Space) -> Result<(), Errno> {
        self.process.mm.mmap_base.set(space.mmap_base);
        let committed = &*self.kernel.vm_committed;
        match space.promise {
            Promise::Pages(n) => committed.totalram_pages.store(n, Relaxed),
            Promise::Always => committed.overcommit_memory.store(OVERCOMMIT_ALWAYS, Relaxed),
            // Nothing is drawn that comes near a limit.
            Promise::Shared => {}
        }
        for &(start, end, stack) in &space.mapped {
            let flags = 0x32 | if stack { libc::MAP_GROWSDOWN as u32 } else { 0 };
            self.call(&Call::Mmap { addr: start, len: end - start, prot: 4, flags, fd: None, offset: 0 })?;
        }
        self.foreign = space.mapped.iter().map(|m| (m.0, m.1)).collect();
        Ok(())
    }

    fn look(&mut self, i: u64, look: &Look) -> u64 {
        let mut h = Hash::new();
        if self.setup.everywhere {
            let all = vma_infos(&self.cpu, &self.kernel, self.process.mm, &self.process.files);
            hash_coverage(&mut h, all.iter().map(|v| (v.start, v.end)), &self.foreign);
            return h.value();
        }
        let maps = self.maps();
        hash_vmas(&mut h, &maps, look.flags(i));
        if look.bytes(i) {
            for v in &maps {
                for addr in (v.start..v.end).step_by(PAGE as usize) {
                    for o in OFFSETS {
                        h.add(byte_word(self.call(&Call::Read { addr: addr + o })));
                    }
                }
            }
        }
        h.value()
    }

    /// Opens the files of a round and writes into them what they begin with.
    fn open_files(&mut self) -> Result<(), Errno> {
        for (i, &pages) in FILES.iter().enumerate() {
            let file = file_open(&self.cpu, &self.kernel, &FileSpec::memfd(pages * PAGE))?;
            self.process.files.push(file);
            let (addr, len) = (SCRATCH, pages * PAGE);
            self.call(&Call::Mmap { addr, len, prot: 3, flags: 0x11, fd: Some(i as u32), offset: 0 })?;
            for p in 0..pages {
                for o in OFFSETS {
                    self.call(&Call::Write { addr: addr + p * PAGE + o, value: file_byte(i, p) })?;
                }
            }
            self.call(&Call::Munmap { addr, len })?;
        }
        Ok(())
    }

    /// The page of code that a bare process has.
    fn map_code(&mut self) -> Result<(), Errno> {
        let (addr, len) = (CODE, PAGE);
        self.call(&Call::Mmap { addr, len, prot: 3, flags: 0x32, fd: None, offset: 0 })?;
        self.call(&Call::Write { addr, value: 0xf })?;
        self.call(&Call::Mprotect { addr, len, prot: 5 })?;
        Ok(())
    }

    /// Lowers a limit. As any process the port's has data of its own, one page: a limit on data that leaves none is not
    /// a limit of 0, which the kernel takes for something else.
    fn lower_limit(&mut self, l: Limit) -> Result<(), Errno> {
        let has = match l.of {
            Resource::AddressSpace | Resource::Data | Resource::DataHard => {
                self.call(&Call::Mmap { addr: OWN, len: PAGE, prot: 3, flags: 0x32, fd: None, offset: 0 })?;
                let beside = 1 + u64::from(self.setup.crowd);
                1 + if self.setup.bare.is_some() && l.of == Resource::AddressSpace { beside } else { 0 }
            }
            Resource::Memlock => 0,
        };
        let mm = self.process.mm;
        let lowered = (has + u64::from(l.pages)) * PAGE;
        match l.of {
            Resource::AddressSpace => mm.rlim[RLIMIT_AS].0.set(lowered),
            Resource::Data => mm.rlim[RLIMIT_DATA].0.set(lowered),
            Resource::DataHard => {
                mm.rlim[RLIMIT_DATA].0.set(0);
                mm.rlim[RLIMIT_DATA].1.set(lowered);
            }
            Resource::Memlock => {
                mm.caps.set(mm.caps.get() & !CAP_IPC_LOCK);
                mm.rlim[RLIMIT_MEMLOCK].0.set(lowered);
            }
        }
        Ok(())
    }

    /// Ends the round; what was left.
    fn end(mut self) -> Result<(), Stop> {
        while !self.process.parents.is_empty() {
            self.call(&Call::Exit).map_err(|e| Stop(format!("exit: {e}")))?;
        }
        let Round { process, cpu, kernel, stacks, .. } = self;
        mmput(&cpu, &kernel, process.mm);
        for f in process.files {
            fput(&cpu, &kernel, f);
        }
        let mut left = shutdown(&cpu, &kernel);
        if stacks {
            // A stack is charged for what it grows whether its pages are accounted or not, and gives back only what is:
            // the kernel's own arithmetic does not balance there.
            left.committed = 0;
        }
        let n = |e| cpu.counters.get(e);
        let balances = [
            ("VMAs", n(VmEvent::VmaAlloc), n(VmEvent::VmaReclaim)),
            ("anon_vmas", n(VmEvent::AnonVmaAlloc), n(VmEvent::AnonVmaFree)),
            ("chain links", n(VmEvent::AnonVmaChainAlloc), n(VmEvent::AnonVmaChainFree)),
        ];
        let mut wrong: Vec<String> =
            balances.iter().filter(|b| b.1 != b.2).map(|b| format!("{} {} made, {} freed", b.0, b.1, b.2)).collect();
        if !left.is_clean() {
            wrong.push(format!("left: {left:?}"));
        }
        if n(VmEvent::Warn) != 0 {
            wrong.push(format!("{} warnings", n(VmEvent::Warn)));
        }
        if wrong.is_empty() { Ok(()) } else { Err(Stop(wrong.join("; "))) }
    }
}

impl<K: Kconfig<A = Native>> Backend for Port<K> {
    fn name(&self) -> String {
        format!("the port ({})", self.variant.name)
    }

    fn begin(&mut self, setup: &Setup) -> Result<(), Stop> {
        // A round that ended at a difference is not looked at once more.
        self.round = None;
        let own = KernelConfig { rules: setup.rules, maple_rules: setup.bare, ..KernelConfig::default() };
        let mut config = self.variant.configure(own);
        config.max_map_count = setup.room.map_or(DEFAULT_MAX_MAP_COUNT, |r| r as i32);
        let kernel = Box::new(start_kernel::<K>(&self.machine, &config));
        let cpu = kernel.cpu(0);
        let mm = mm_alloc(&cpu, &kernel);
        mm.caps.set(CAP_IPC_LOCK);
        mm.rlim[RLIMIT_MEMLOCK].0.set(RLIM_INFINITY);
        // Without a heap in the window there is none in its way either.
        if setup.heap {
            mm.start_brk.set(setup.start_brk());
            mm.brk.set(setup.start_brk());
        }
        let process = Process::new(mm);
        let mut round = Round { process, cpu, kernel, setup: *setup, stacks: false, foreign: Vec::new() };
        round.open_files().map_err(|e| Stop(format!("the port's files: {e}")))?;
        if setup.everywhere {
            round
                .load(&self.space)
                .map_err(|e| Stop(format!("what the host's process has mapped, in the port: {e}")))?;
        }
        if setup.bare.is_some() {
            round.map_code().map_err(|e| Stop(format!("the port's page of code: {e}")))?;
            for c in setup.crowd() {
                round.call(&c).map_err(|e| Stop(format!("the port's crowd: {e}")))?;
            }
        }
        if let Some(l) = setup.limit {
            round.lower_limit(l).map_err(|e| Stop(format!("the port's own page: {e}")))?;
        }
        self.round = Some(round);
        Ok(())
    }

    fn run(&mut self, first: u64, calls: &[Call], look: &Look, out: &mut Vec<Step>) -> Result<(), Stop> {
        let round = self.round()?;
        for (i, c) in calls.iter().enumerate() {
            let before = round.counts();
            // A BUG_ON() or a failed assertion is a difference like any other: it is shrunk and told.
            let call = || {
                let result = round.result(c);
                if !matches!(c, Call::Read { .. } | Call::Write { .. }) {
                    mt_validate(round.process.mm.mm_mt()).unwrap_or_else(|e| panic!("the tree: {e}"));
                }
                result
            };
            let Ok(result) = catch_unwind(AssertUnwindSafe(call)) else {
                out.push(Step { result: PANICKED, ..Step::default() });
                // What it holds is not to be touched any more.
                std::mem::forget(self.round.take());
                return Ok(());
            };
            let after = round.counts();
            // In another process than a bare one a fork is the helper's too, and not counted there.
            let helpers = round.setup.bare.is_none() && matches!(c, Call::Fork);
            let counted = |i: usize| round.setup.counted >> i & 1 == 1 && !helpers;
            let counts = std::array::from_fn(|i| if counted(i) { (after[i] - before[i]) as u16 } else { 0 });
            let counts = counts_of(c, counts);
            let hash = round.look(first + i as u64, look);
            out.push(Step { result, hash, counts });
        }
        Ok(())
    }

    fn maps(&mut self) -> Result<Vec<VmaInfo>, Stop> {
        Ok(self.round.as_ref().map_or(Vec::new(), Round::maps))
    }

    fn load(&mut self, space: &Space) {
        self.space = space.clone();
    }

    fn end(&mut self) -> Result<(), Stop> {
        let Some(round) = self.round.take() else { return Ok(()) };
        catch_unwind(AssertUnwindSafe(|| round.end())).unwrap_or_else(|_| Err(Stop("it panicked".into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::{MmRules, variant};

    /// What mappings of so many pages of data get in a process that is short of it.
    fn answers(limit: Limit, pages: [u64; 3]) -> Vec<i64> {
        let mut port = start(&variant::parse("v6.12").unwrap()).unwrap();
        port.begin(&Setup { limit: Some(limit), ..Setup::plain(MmRules::V6_12, 32) }).unwrap();
        let at = |i: usize| WINDOW + i as u64 * 8 * PAGE;
        let map =
            |i: usize| Call::Mmap { addr: at(i), len: pages[i] * PAGE, prot: 3, flags: 0x32, fd: None, offset: 0 };
        let mut steps = Vec::new();
        port.run(0, &[map(0), map(1), map(2)], &Look::USUAL, &mut steps).unwrap();
        port.end().unwrap();
        steps.iter().enumerate().map(|(i, s)| if s.result == at(i) as i64 { 0 } else { s.result }).collect()
    }

    #[test]
    fn a_limit_that_leaves_nothing_leaves_nothing() {
        const NO: i64 = -(Errno::ENOMEM as i64);
        // What a kernel answers a process that has data already.
        for of in [Resource::AddressSpace, Resource::Data, Resource::DataHard] {
            assert_eq!(answers(Limit { of, pages: 0 }, [1, 1, 1]), [NO; 3], "{of:?}");
            assert_eq!(answers(Limit { of, pages: 3 }, [4, 2, 2]), [NO, 0, NO], "{of:?}");
        }
    }
}
