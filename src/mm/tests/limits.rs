// SPDX-License-Identifier: GPL-2.0-only
//! Limits and what an operation that fails leaves (vma-ops.md 15): the number of mappings, the address space, locked
//! memory, what was promised, seals.

use super::*;
use crate::mm::file::{FMODE_READ, FMODE_WRITE, FileSpec, file_open, fput};
use crate::mm::mm_types::{
    CAP_IPC_LOCK, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, START_BRK, VM_DONTDUMP, VM_OPS, VM_OPS_CLOSE, VM_SEALED,
};
use crate::mm::mmap::*;
use crate::mm::prctl::*;
use crate::mm::util::{OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER, set_overcommit_memory, vm_memory_committed};
use crate::mm::{dup_mm, mmput, sys_brk, sys_mprotect, vm_mmap, vm_munmap, vma_infos};

on_every_variant! {
    fn the_number_of_mappings = map_count;
    fn a_second_split_that_fails_leaves_the_first = splits_stay;
    fn sealed_memory_stays = sealed;
    fn a_close_hook_keeps_a_vma = close_hook;
    fn the_address_space_and_data = space;
    fn locked_memory = locked;
    fn promises = committed;
    fn kinds_of_mappings = kinds;
    fn files_are_asked_first = files;
    fn what_may_be_read_may_be_executed = read_implies_exec;
    fn nothing_becomes_executable = mdwe;
}

const ANON: u32 = MAP_PRIVATE | MAP_ANONYMOUS;

fn map_count<K: Kconfig<A = Native>>(boot: Boot) {
    let c = KernelConfig { max_map_count: 6, ..config(boot) };
    with_config::<K>(&c, |cpu, k, mm| {
        let map = |p: u64, n: u64, flags| vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).map(|_| ());
        let dump = |p: u64, n: u64| modify(cpu, k, mm, (p, n), |f| f ^ VM_DONTDUMP);
        for i in 0..4 {
            map(i * 8, 4, RW).unwrap();
        }
        assert_eq!(dump(1, 2), Ok(()), "4, two splits: 6");
        assert_eq!(mm.map_count.get(), 6);
        assert_eq!(dump(8, 1), Err(Errno::ENOMEM), "one split at the limit");
        assert_eq!(dump(8, 4), Ok(()), "none");
        assert_eq!(vm_munmap(cpu, k, mm, BASE + 9 * P, P), Err(Errno::ENOMEM), "two splits at the limit");
        assert_eq!(map(9, 1, VM_READ), Err(Errno::ENOMEM), "as many");
        assert_eq!(map(8, 1, VM_READ), Ok(()), "one split, new: 7");
        assert_eq!(mm.map_count.get(), 7);
        assert_eq!(map(40, 1, RW), Err(Errno::ENOMEM), "above the limit");
        assert_eq!(map(9, 1, RW), Err(Errno::ENOMEM), "even to merge");
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + P), START_BRK);
        assert_eq!(vm_munmap(cpu, k, mm, BASE + 16 * P, P), Ok(()), "a head never fails");
        assert_eq!(mm.map_count.get(), 7);
        vm_munmap(cpu, k, mm, BASE + 16 * P, 4 * P).unwrap();
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + P), START_BRK + P);
    });
}

fn splits_stay<K: Kconfig<A = Native>>(boot: Boot) {
    let c = KernelConfig { max_map_count: 2, ..config(boot) };
    with_config::<K>(&c, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(BASE), 10 * P, RW).unwrap();
        assert_eq!(modify(cpu, k, mm, (4, 2), |f| f | VM_DONTDUMP), Err(Errno::ENOMEM));
        assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 10)]);
    });
}

fn sealed<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        vm_mmap(cpu, k, mm, Some(BASE), 30 * P, RW).unwrap();
        modify(cpu, k, mm, (10, 10), |f| f | VM_SEALED).unwrap();
        let map = |p: u64, n: u64| vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, VM_READ);
        assert_eq!(vm_munmap(cpu, k, mm, BASE + 12 * P, P), Err(Errno::EPERM));
        assert_eq!(map(12, 1), Err(Errno::EPERM));
        assert_eq!(layout(cpu, k, mm), [(0, 10), (10, 20), (20, 30)], "not even split");
        assert_eq!(vm_munmap(cpu, k, mm, BASE + 5 * P, 20 * P), Err(Errno::EPERM));
        assert_eq!(layout(cpu, k, mm), [(0, 5), (5, 10), (10, 20), (20, 30)], "the first split stays");
        check_tree(cpu, k, mm);
        write(cpu, k, mm, 7);
        assert_eq!(map(7, 23), Err(Errno::EPERM));
        assert!(bytes::<K>(mm, 7).is_some(), "nothing was zapped");
        let fixed = MAP_FIXED_NOREPLACE | ANON;
        assert_eq!(map_args(cpu, k, mm, (BASE + 12 * P, P), 3, fixed, None), Err(Errno::EEXIST));
        vm_munmap(cpu, k, mm, BASE, 5 * P).unwrap();
    });
}

fn close_hook<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let map = |p: u64, n: u64| vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, RW).unwrap();
        let hook = |p: u64| vma_at(cpu, k, mm, p).vm_ops().store(VM_OPS | VM_OPS_CLOSE, Relaxed);
        map(0, 2);
        map(4, 2);
        hook(4);
        map(2, 2);
        assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 6)], "would disappear: left only");
        let set = |p: u64, n: u64, on: bool| {
            modify(cpu, k, mm, (p, n), |f| if on { f | VM_DONTDUMP } else { f & !VM_DONTDUMP }).unwrap();
        };
        set(4, 2, true);
        set(4, 2, false);
        assert_eq!(layout(cpu, k, mm), [(0, 4), (4, 6)], "nor does it when its flags become the left one's");
        set(0, 4, true);
        set(0, 4, false);
        assert_eq!(layout(cpu, k, mm), [(0, 6)], "but others may go up in it");
    });
}

fn space<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let map = |p: u64, n: u64, flags| vm_mmap(cpu, k, mm, Some(BASE + p * P), n * P, flags).map(|_| ());
        let limit = |which: usize, pages: u64| mm.rlim[which].0.set(pages * P);
        map(0, 10, RW).unwrap();
        limit(RLIMIT_AS, 12);
        assert_eq!(map(20, 3, VM_READ), Err(Errno::ENOMEM));
        assert_eq!(map(0, 12, VM_READ), Ok(()), "what it replaces does not count");
        assert_eq!(map(5, 8, RW), Err(Errno::ENOMEM));
        assert_eq!(layout(cpu, k, mm), [(0, 5), (5, 12)], "the split stays, the old mapping too");
        check_tree(cpu, k, mm);
        limit(RLIMIT_AS, 1 << 40);
        limit(RLIMIT_DATA, 3);
        assert_eq!(map(20, 4, RW), Err(Errno::ENOMEM));
        assert_eq!(map(20, 4, VM_READ), Ok(()), "is no data");
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + 3 * P), START_BRK + 3 * P);
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + 4 * P), START_BRK + 3 * P);
        limit(RLIMIT_DATA, 0);
        assert_eq!(map(40, 4, RW), Ok(()), "no limit but the hard one");
        limit(RLIMIT_DATA, 1 << 40);
    });
}

fn locked<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let flags = MAP_LOCKED | MAP_FIXED | ANON;
        let map = |p: u64, n: u64| map_args(cpu, k, mm, (BASE + p * P, n * P), 3, flags, None).map(|_| ());
        mm.rlim[RLIMIT_MEMLOCK].0.set(4 * P);
        assert_eq!(map(0, 3), Ok(()));
        assert_eq!(map(3, 2), Err(Errno::EAGAIN));
        assert_eq!(map(3, 1), Ok(()));
        assert_eq!(mm.locked_vm.get(), 4);
        mm.rlim[RLIMIT_MEMLOCK].0.set(0);
        assert_eq!(map(9, 1), Err(Errno::EPERM));
        mm.def_flags.set(VM_LOCKED);
        assert_eq!(map_args(cpu, k, mm, (BASE + 9 * P, P), 3, MAP_FIXED | ANON, None), Err(Errno::EAGAIN));
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + P), START_BRK);
        mm.caps.set(CAP_IPC_LOCK);
        assert_eq!(map(9, 1), Ok(()));
        assert_eq!(sys_brk(cpu, k, mm, START_BRK + P), START_BRK + P);
        assert_eq!(mm.locked_vm.get(), 6);
        check_tree(cpu, k, mm);
        mm.def_flags.set(0);
        vm_munmap(cpu, k, mm, BASE + P, 20 * P).unwrap();
        assert_eq!(mm.locked_vm.get(), 2);
    });
}

fn committed<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let policy = |v: u32| set_overcommit_memory(cpu, k, v);
        k.vm_committed.totalram_pages.store(100_000, Relaxed);
        let map = |pages: u64, flags: u32| {
            map_args(cpu, k, mm, (BASE, pages * P), 3, MAP_FIXED | ANON | flags, None)
                .map(|_| vm_memory_committed(cpu, k))
        };
        assert_eq!(map(100_001, 0), Err(Errno::ENOMEM), "could never be");
        assert_eq!(map(100_001, MAP_NORESERVE), Ok(0));
        assert_eq!(map(100_000, 0), Ok(100_000));
        assert_eq!(map(100_000, 0), Ok(100_000), "what it replaces counts once");
        assert_eq!(vm_mmap(cpu, k, mm, None, P, RW).map(|_| vm_memory_committed(cpu, k)), Ok(100_001));
        assert_eq!(vm_mmap(cpu, k, mm, None, P, VM_READ).map(|_| vm_memory_committed(cpu, k)), Ok(100_001));
        vm_munmap(cpu, k, mm, BASE, 200_000 * P).unwrap();
        assert_eq!(vm_memory_committed(cpu, k), 1);
        policy(OVERCOMMIT_ALWAYS);
        assert_eq!(map(1 << 30, 0), Ok((1 << 30) + 1));
        vm_munmap(cpu, k, mm, BASE, 1 << 42).unwrap();
        policy(OVERCOMMIT_NEVER);
        assert_eq!(map(60_000, MAP_NORESERVE), Err(Errno::ENOMEM), "half of memory, whatever is asked");
        sys_brk(cpu, k, mm, START_BRK + 10 * P);
        sys_brk(cpu, k, mm, START_BRK + 4 * P);
        assert_eq!(vm_memory_committed(cpu, k), 5);
        policy(0);
    });
}

fn kinds<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let map = |flags: u32| map_args(cpu, k, mm, (BASE, P), 3, flags, None).map(|_| ());
        assert_eq!(map(MAP_ANONYMOUS), Err(Errno::EINVAL), "neither shared nor private");
        assert_eq!(map(MAP_ANONYMOUS | MAP_SHARED_VALIDATE), Err(Errno::EINVAL));
        assert_eq!(map(MAP_ANONYMOUS | 7), Err(Errno::EINVAL));
        assert_eq!(map(MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN), Err(Errno::EINVAL));
        assert_eq!(map(MAP_DROPPABLE | MAP_ANONYMOUS | MAP_GROWSDOWN), Err(Errno::EINVAL));
        assert_eq!(map(MAP_DROPPABLE | MAP_ANONYMOUS | MAP_LOCKED), Err(Errno::EINVAL));
        assert_eq!(map(MAP_PRIVATE), Err(Errno::EBADF));
        let flags = |f: u32| {
            map(f | MAP_FIXED | MAP_ANONYMOUS).unwrap();
            crate::mm::vma_infos(cpu, k, mm, &[])[0].flags
        };
        // rd wr mr mw me and, in this order, ac; nr wf dd dp; gd ac; nh ac; sh ms.
        assert_eq!(flags(MAP_PRIVATE), 0x10_0073);
        assert_eq!(flags(MAP_DROPPABLE), 0x100_0620_0073);
        assert_eq!(flags(MAP_PRIVATE | MAP_GROWSDOWN), 0x10_0173);
        assert_eq!(flags(MAP_PRIVATE | MAP_STACK), 0x4010_0073);
        assert_eq!(flags(MAP_SHARED), 0xfb);
        let r = map_args(cpu, k, mm, (BASE, P), 3, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, None);
        assert_eq!(r, Ok(BASE));
        let offset = MmapArgs { addr: 0, len: P, prot: 1, flags: ANON, file: None, offset: 5 };
        assert_eq!(do_mmap(cpu, k, mm, &offset), Err(Errno::EINVAL));
        let offset = MmapArgs { offset: !0xfff, len: 2 * P, ..offset };
        assert!(do_mmap(cpu, k, mm, &offset).is_ok(), "far from an overflow: offsets are pages by then");
    });
}

fn files<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let open =
            |mode: u32, noexec: bool| file_open(cpu, k, &FileSpec { mode, noexec, ..FileSpec::memfd(4 * P) }).unwrap();
        let (rw, ro, wo, nx) = (
            open(FMODE_READ | FMODE_WRITE, false),
            open(FMODE_READ, false),
            open(FMODE_WRITE, false),
            open(FMODE_READ | FMODE_WRITE, true),
        );
        let map = |f, prot: u32, flags: u32, page: u64| {
            let r = map_args(cpu, k, mm, (BASE, P), prot, flags | MAP_FIXED, Some((f, page)));
            r.map(|_| crate::mm::vma_infos(cpu, k, mm, &[rw, ro, wo, nx])[0])
        };
        let flags = |f, prot, map_flags| map(f, prot, map_flags, 0).map(|v| (v.file, v.flags));
        assert_eq!(flags(rw, 3, MAP_SHARED), Ok((Some(0), 0xfb)));
        assert_eq!(flags(rw, 3, MAP_SHARED_VALIDATE), Ok((Some(0), 0xfb)));
        assert_eq!(flags(rw, 3, MAP_SHARED_VALIDATE | 0x8_0000), Err(Errno::EOPNOTSUPP), "MAP_SYNC");
        assert_eq!(flags(rw, 3, MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE), Err(Errno::EEXIST));
        assert_eq!(flags(ro, 3, MAP_SHARED), Err(Errno::EACCES));
        assert_eq!(flags(ro, 1, MAP_SHARED), Ok((Some(1), 0xd1)), "cannot become writable, nor is it shared");
        assert_eq!(flags(ro, 3, MAP_PRIVATE), Ok((Some(1), 0x10_0073)));
        assert_eq!(flags(wo, 2, MAP_SHARED), Err(Errno::EACCES), "a mapping must be readable");
        assert_eq!(flags(nx, 5, MAP_PRIVATE), Err(Errno::EPERM));
        assert_eq!(flags(nx, 1, MAP_PRIVATE), Ok((Some(3), 0x31)));
        assert_eq!(flags(rw, 3, MAP_PRIVATE | MAP_GROWSDOWN), Err(Errno::EINVAL));
        assert_eq!(flags(rw, 3, MAP_DROPPABLE), Err(Errno::EINVAL));
        assert_eq!(map(rw, 1, MAP_PRIVATE, 3).map(|v| v.offset), Ok(3 * P));
        assert_eq!(map(rw, 1, MAP_PRIVATE, 1 << 51).map(|v| v.offset), Err(Errno::EOVERFLOW));
        vm_munmap(cpu, k, mm, BASE, P).unwrap();
        for f in [rw, ro, wo, nx] {
            assert_eq!((f.f_count.load(Relaxed), f.f_mapping().i_mmap_writable.load(Relaxed)), (1, 0));
            fput(cpu, k, f);
        }
    });
}

/// Rights of the VMA at a page.
fn rights<K: Kconfig<A = Native>>(cpu: &Cpu<Native>, k: &Kernel<K>, mm: MmPtr<K>, p: u64) -> u64 {
    vma_at(cpu, k, mm, p).vm_flags().load(Relaxed) & 7
}

/// Maps a page; gives the rights that it got.
fn map_page<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    p: u64,
    prot: u32,
) -> Result<u64, Errno> {
    map_args(cpu, k, mm, (BASE + p * P, P), prot, ANON | MAP_FIXED, None)?;
    Ok(rights(cpu, k, mm, p))
}

/// Asks for other rights; gives those that it got.
fn protect_page<K: Kconfig<A = Native>>(
    cpu: &Cpu<Native>,
    k: &Kernel<K>,
    mm: MmPtr<K>,
    p: u64,
    prot: u32,
) -> Result<u64, Errno> {
    sys_mprotect(cpu, k, mm, BASE + p * P, P, prot)?;
    Ok(rights(cpu, k, mm, p))
}

fn read_implies_exec<K: Kconfig<A = Native>>(boot: Boot) {
    with_mm::<K>(boot, |cpu, k, mm| {
        let map = |p: u64, prot: u32| map_page(cpu, k, mm, p, prot);
        let protect = |p: u64, prot: u32| protect_page(cpu, k, mm, p, prot);
        set_read_implies_exec::<K>(mm, true);
        assert_eq!([map(0, 1), map(2, 3), map(4, 2), map(6, 0)], [Ok(5), Ok(7), Ok(2), Ok(0)]);
        assert_eq!([protect(4, 1), protect(6, 3), protect(0, 2)], [Ok(5), Ok(7), Ok(2)]);
        // Not a file that nobody may execute.
        let f = file_open(cpu, k, &FileSpec { noexec: true, ..FileSpec::memfd(4 * P) }).unwrap();
        let file = |prot: u32| map_args(cpu, k, mm, (BASE + 8 * P, P), prot, MAP_PRIVATE | MAP_FIXED, Some((f, 0)));
        assert_eq!(file(1).map(|_| rights(cpu, k, mm, 8)), Ok(1));
        assert_eq!(protect(8, 3), Ok(3), "nor later");
        assert_eq!(file(5), Err(Errno::EPERM));
        fput(cpu, k, f);
        // The heap.
        let start = mm.start_brk.get();
        assert_eq!(sys_brk(cpu, k, mm, start + P), start + P);
        let heap = vma_infos(cpu, k, mm, &[]).into_iter().find(|v| v.start == start).expect("a heap");
        assert_eq!(heap.flags & 7, 7);
        let child = dup_mm(cpu, k, mm).unwrap();
        set_read_implies_exec::<K>(mm, false);
        assert_eq!([map(0, 1), protect(2, 1)], [Ok(1), Ok(1)]);
        assert_eq!(map_page(cpu, k, child, 10, 1), Ok(5), "a child has it from its parent");
        mmput(cpu, k, child);
    });
}

fn mdwe<K: Kconfig<A = Native>>(boot: Boot) {
    const REFUSE: u32 = PR_MDWE_REFUSE_EXEC_GAIN;
    const BOTH: u32 = REFUSE | PR_MDWE_NO_INHERIT;
    for (bits, inherited) in [(REFUSE, REFUSE), (BOTH, 0)] {
        with_mm::<K>(boot, |cpu, k, mm| {
            let map = |p: u64, prot: u32| map_page(cpu, k, mm, p, prot);
            let protect = |p: u64, prot: u32| protect_page(cpu, k, mm, p, prot);
            assert_eq!((map(0, 7), map(2, 5), map(4, 3)), (Ok(7), Ok(5), Ok(3)));
            for wrong in [4, 8, PR_MDWE_NO_INHERIT, BOTH | 4] {
                assert_eq!(prctl_set_mdwe::<K>(mm, wrong), Err(Errno::EINVAL), "{wrong}");
            }
            assert_eq!([prctl_set_mdwe::<K>(mm, 0), prctl_set_mdwe::<K>(mm, bits)], [Ok(()); 2]);
            for other in [0, REFUSE ^ BOTH ^ bits] {
                let r = prctl_set_mdwe::<K>(mm, other);
                assert!(matches!(r, Err(Errno::EPERM | Errno::EINVAL)), "{bits} to {other}: {r:?}");
            }
            assert_eq!(prctl_set_mdwe::<K>(mm, bits), Ok(()), "the same again");
            const NO: Result<u64, Errno> = Err(Errno::EACCES);
            // A new mapping may be executed, not also written; one that was neither does not become it.
            assert_eq!((map(6, 7), map(8, 5), map(4, 7)), (NO, Ok(5), NO));
            assert_eq!(rights(cpu, k, mm, 4), 3, "what was there is still there");
            assert_eq!((protect(4, 5), protect(4, 1), protect(4, 3)), (NO, Ok(1), Ok(3)));
            assert_eq!((protect(2, 7), protect(2, 5), protect(2, 1), protect(2, 5)), (NO, Ok(5), Ok(1), NO));
            assert_eq!((protect(0, 5), protect(0, 7), protect(0, 3)), (Ok(5), NO, Ok(3)));
            // By way of READ_IMPLIES_EXEC as well.
            set_read_implies_exec::<K>(mm, true);
            assert_eq!((map(10, 1), map(12, 3), protect(4, 1), protect(4, 2)), (Ok(5), NO, NO, Ok(2)));
            let child = dup_mm(cpu, k, mm).unwrap();
            assert_eq!(child.mdwe.get(), inherited);
            mmput(cpu, k, child);
        });
    }
}
