// SPDX-License-Identifier: GPL-2.0-only
//! Threads that fault against threads that map and unmap, on every variant: balances hold and nothing is left.
//! On x86 a pass says little about orderings (that is what `src/check` is for); it says that locks, counts and
//! memory are handed over whole (L14: two address spaces that live off the same few slots).

use super::*;
use crate::cpu::Counter;
use crate::cpu::stat::SLOTS;
use crate::cpu::tick::exit_to_user_mode;
use crate::init::run_on_cpus;
use crate::mm::file::{FileSpec, file_open, fput};
use crate::mm::mmap::{MAP_FIXED, MAP_SHARED};
use crate::mm::syscall::{Call, Process, syscall};
use crate::mm::{FaultError, dup_mm, madvise_dontneed, sys_brk, vm_mmap, vm_munmap};

on_every_variant! {
    fn one_address_space_shared_by_two_threads = shared_mm;
    fn two_address_spaces_that_recycle_each_others_vmas = two_mms;
    fn forks_against_faults = forks;
    fn two_threads_fault_on_one_file = one_file;
}

/// Checks the balances over all CPUs of a run.
fn balances(all: &[[u64; SLOTS]]) {
    let n = |e: VmEvent| all.iter().map(|c| c[e.slot()]).sum::<u64>();
    eprintln!(
        "  faults {} success {} retry {} abort {} miss {}; VMAs {}",
        n(VmEvent::Pgfault),
        n(VmEvent::VmaLockSuccess),
        n(VmEvent::VmaLockRetry),
        n(VmEvent::VmaLockAbort),
        n(VmEvent::VmaLockMiss),
        n(VmEvent::VmaAlloc),
    );
    assert_eq!(n(VmEvent::Warn), 0);
    assert_eq!(n(VmEvent::Pgfault), n(VmEvent::VmaLockSuccess) + n(VmEvent::VmaLockRetry) + n(VmEvent::VmaLockAbort));
    assert_eq!(n(VmEvent::VmaLockRetry), n(VmEvent::RetryAnonVma) + n(VmEvent::RetryIo));
    assert_eq!(
        n(VmEvent::VmaLockAbort),
        n(VmEvent::AbortNone)
            + n(VmEvent::AbortSeqEarly)
            + n(VmEvent::AbortWriter)
            + n(VmEvent::AbortSeqLate)
            + n(VmEvent::AbortOtherMm)
            + n(VmEvent::AbortRange)
    );
    assert_eq!(n(VmEvent::VmaAlloc), n(VmEvent::VmaFree));
    assert_eq!(n(VmEvent::VmaAlloc), n(VmEvent::VmaReclaim));
    assert_eq!(n(VmEvent::AnonVmaAlloc), n(VmEvent::AnonVmaFree));
    assert_eq!(n(VmEvent::AnonVmaChainAlloc), n(VmEvent::AnonVmaChainFree));
}

/// Maps, touches, checks and unmaps in `[at, at + 8)` pages; touches the other thread's place now and then.
fn churn<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, at: u64, other: u64, rounds: u64) {
    for round in 0..rounds {
        vm_mmap(cpu, k, mm, Some(BASE + at * P), 8 * P, RW).unwrap();
        for p in at..at + 8 {
            write(cpu, k, mm, p);
            bytes::<K>(mm, p).expect("just written")[8] = round as u8;
            // The other thread's place may not be there, or may be read-only.
            match do_user_addr_fault(cpu, k, mm, BASE + (other + p - at) * P, cpu.random() & 1 == 0) {
                Ok(()) | Err(FaultError::Maperr | FaultError::Accerr) => {}
                Err(e) => panic!("{e:?}"),
            }
            exit_to_user_mode(cpu);
        }
        for p in at..at + 8 {
            assert_eq!(bytes::<K>(mm, p).expect("still there")[8], round as u8, "page {p} changed hands");
        }
        match cpu.random() % 4 {
            0 => vm_munmap(cpu, k, mm, BASE + (at + 2) * P, 3 * P).unwrap(),
            1 => madvise_dontneed(cpu, k, mm, BASE + at * P, 8 * P).unwrap(),
            2 => drop(vm_mmap(cpu, k, mm, Some(BASE + (at + 1) * P), 4 * P, VM_READ).unwrap()),
            _ => {}
        }
        vm_munmap(cpu, k, mm, BASE + at * P, 8 * P).unwrap();
        exit_to_user_mode(cpu);
    }
}

fn shared_mm<K: Kconfig<A = Native>>(boot: Boot) {
    let m = machine(2);
    let k = start_kernel::<K>(&m, &config(boot).hz(1000));
    let mm = mm_alloc(&k.cpu(0), &k);
    let all = run_on_cpus(&m, &k, 2, |cpu| {
        // Next to each other, so that they merge and split each other's VMAs.
        let (at, other) = if cpu.id == 0 { (0, 8) } else { (8, 0) };
        churn(cpu, &k, mm, at, other, 2000);
        if cpu.id == 0 {
            let start = sys_brk(cpu, &k, mm, 0);
            for i in 1..200 {
                assert_eq!(sys_brk(cpu, &k, mm, start + (i % 7) * P), start + (i % 7) * P);
                exit_to_user_mode(cpu);
            }
            sys_brk(cpu, &k, mm, start);
        }
    });
    assert_eq!(mm.map_count.get(), 0);
    let boot = k.cpu(0);
    mmput(&boot, &k, mm);
    assert!(shutdown(&boot, &k).is_clean());
    balances(&all);
    assert_eq!(boot.counters.get(VmEvent::Warn), 0);
}

fn two_mms<K: Kconfig<A = Native>>(boot: Boot) {
    two_mms_for::<K>(boot, 20);
}

/// Two CPUs, `lives` address spaces one after the other on each.
pub fn two_mms_for<K: Kconfig<A = Native>>(boot: Boot, lives: u32) {
    let m = machine(2);
    let k = start_kernel::<K>(&m, &config(boot).hz(1000));
    let all = run_on_cpus(&m, &k, 2, |cpu| {
        for _ in 0..lives {
            let mm = mm_alloc(cpu, &k);
            churn(cpu, &k, mm, 0, 0, 60);
            vm_mmap(cpu, &k, mm, Some(BASE), 8 * P, RW).unwrap();
            write(cpu, &k, mm, 3);
            mmput(cpu, &k, mm);
            exit_to_user_mode(cpu);
        }
    });
    assert!(shutdown(&k.cpu(0), &k).is_clean());
    balances(&all);
}

/// One thread forks, writes in parent and child and ends the child; the other faults, writes and unmaps in the parent.
/// Each looks at bytes of its own only: there is no TLB, and so none that fork could flush.
fn forks<K: Kconfig<A = Native>>(boot: Boot) {
    let m = machine(2);
    let k = start_kernel::<K>(&m, &config(boot).hz(1000));
    let mm = mm_alloc(&k.cpu(0), &k);
    let all = run_on_cpus(&m, &k, 2, |cpu| {
        if cpu.id == 1 {
            return churn(cpu, &k, mm, 16, 16, 1500);
        }
        vm_mmap(cpu, &k, mm, Some(BASE), 8 * P, RW).unwrap();
        for round in 0..300 {
            let value = |p: u64| (round + p) as u8;
            for p in 0..8 {
                write(cpu, &k, mm, p);
                bytes::<K>(mm, p).expect("just written")[3] = value(p);
            }
            let child = dup_mm(cpu, &k, mm).unwrap();
            for p in 0..8 {
                assert_eq!(bytes::<K>(child, p).expect("copied")[3], value(p));
                if p % 2 == 0 {
                    write(cpu, &k, child, p);
                    bytes::<K>(child, p).expect("just written")[3] = 0;
                } else {
                    write(cpu, &k, mm, p);
                    bytes::<K>(mm, p).expect("just written")[3] = 1;
                    assert_eq!(bytes::<K>(child, p).expect("copied")[3], value(p));
                }
            }
            assert!((0..8).step_by(2).all(|p| bytes::<K>(mm, p).expect("still there")[3] == value(p)));
            mmput(cpu, &k, child);
            exit_to_user_mode(cpu);
        }
        vm_munmap(cpu, &k, mm, BASE, 8 * P).unwrap();
    });
    assert_eq!(mm.map_count.get(), 0);
    mmput(&k.cpu(0), &k, mm);
    assert!(shutdown(&k.cpu(0), &k).is_clean());
    balances(&all);
}

/// Two address spaces map one file; each thread counts in bytes of its own, on pages that both write to and drop.
fn one_file<K: Kconfig<A = Native>>(boot: Boot) {
    for spec in [FileSpec::memfd(32 * P), FileSpec::regular(32 * P, 0)] {
        let m = machine(2);
        let k = start_kernel::<K>(&m, &config(boot).hz(1000));
        let boot = k.cpu(0);
        let file = file_open(&boot, &k, &spec).unwrap();
        let all = run_on_cpus(&m, &k, 2, |cpu| {
            let mm = mm_alloc(cpu, &k);
            let args = MmapArgs {
                addr: BASE,
                len: 32 * P,
                prot: 3,
                flags: MAP_SHARED | MAP_FIXED,
                file: Some(file),
                offset: 0,
            };
            do_mmap(cpu, &k, mm, &args).unwrap();
            let mut p = Process::new(mm);
            for round in 0..60u8 {
                for page in 0..32 {
                    let addr = BASE + page * P + u64::from(cpu.id);
                    let seen = syscall(cpu, &k, &mut p, &Call::Read { addr }).unwrap();
                    assert_eq!(seen, u64::from(round), "page {page}");
                    syscall(cpu, &k, &mut p, &Call::Write { addr, value: round + 1 }).unwrap();
                    exit_to_user_mode(cpu);
                }
                madvise_dontneed(cpu, &k, mm, BASE, 32 * P).unwrap();
            }
            mmput(cpu, &k, mm);
        });
        fput(&boot, &k, file);
        assert!(shutdown(&boot, &k).is_clean());
        balances(&all);
    }
}
