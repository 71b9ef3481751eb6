// SPDX-License-Identifier: GPL-2.0-only
//! Locks under real threads, after the kernel's locktorture: holders check that they are alone, briefly most of the
//! time, longer now and then. What these cannot show (orderings on this machine's strong memory) is in `model/`.
//!
//! Which test holds which invariant (locking.md 11; a file without a directory is one of this):
//!
//! | | invariant | held by |
//! |---|---|---|
//! | L1 | an rwsem that all have left is as new | `assert_quiet()` at the end of every test of `rwsem`, `rwsem_queue`, `killable`, `sleeps`, `starvation` and of `model/rwsem.rs` |
//! | L2 | what operations return and what the words say, against a model of who may hold what | `rwsem_oracle`, 1 to 8 CPUs, simulated and threads; `rwsem::the_count_is_the_sum_of_its_holders`, one CPU |
//! | L3 | downgrade | `rwsem_queue::a_downgrade_*`, `rwsem::readers_and_writers_*`, `model/rwsem.rs` |
//! | L4 | starvation | `starvation`, exactly, in virtual time; `rwsem::a_*_gets_in_*` roughly, in real time; `mutex::a_waiter_among_*` |
//! | L5 | handoff and waiters bit, who asked | `assert_flags()` in `killable::a_storm_*`; `rwsem_queue::an_impatient_*`, `killable::the_handoff_*` |
//! | L6 | batches of readers | `rwsem_queue::all_readers_*`, `one_pass_*` |
//! | L7 | fast path and stealing | `rwsem_queue::the_fast_path_*`, every state of the bits |
//! | L8 | no lost wake-up | `sleeps`, with delays around each full barrier; that a missing one is noticed: `model/rcuwait.rs`, `model/rwsem.rs` |
//! | L9 | queued spinlock | `qspinlock`, `model/spinlock.rs` |
//! | L10 | OSQ cancelled | `osq_lock`, real threads; `model/osq_lock.rs`, each step of leaving with a twin |
//! | L11 | seqcount | `sync/seqlock.rs`, `model/seqcount.rs` |
//! | L12 | refcount | `sync/refcount.rs`, `model/refcount.rs` |
//! | L13, L14 | `vm_refcnt`, reuse | `model/vm_refcnt.rs`: each value, each step, each reason to fall back; `check`, `mm/tests/stress.rs` |
//! | L15 | `mm_lock_seq` wraps | `sync/seqlock.rs` for the count; `mm/tests/mmap.rs` for faults across it and the hole of 2^31 sections |
//! | L16 | model checking | `model/`: rcuwait, refcount, vma_lock, vm_refcnt, osq_lock, rwsem, mutex, spinlock, grace_period, rcu_barrier |
//! | L17 | interpreter, thread sanitizer | `scripts/miri`: the lock tests of this directory and of `sync/`, with the full-word spinlock, and every [`Plain`] word ordinary memory, `Inside::protected` among them. Not under it: what looks into a queue without its lock (`killable`, `rwsem_queue`), what needs the simulator (`starvation`, `rwsem_oracle`). Thread sanitizer: `scripts/tsan`, the same tests and those of slab, RCU and tree; races of readers in the exclusion test of the rwsem are not seen there (`scripts/tsan.supp`). The models check every [`Plain`] word of what they run, mm's locks among them |
//! | L18 | locked instructions of the fast paths | `tests/codegen.rs` |
//! | L19 | cost | `benches/primitives.rs`: each lock beside its parts written out by hand; `scripts/instructions --check` fails above 1.2 times their instructions; times, and two CPUs on one lock, are reported |
//! | L20 | layout | const assertions beside each struct |

mod killable;
mod mutex;
mod osq_lock;
mod qspinlock;
mod rwsem;
mod rwsem_oracle;
mod rwsem_queue;
mod sleeps;
mod starvation;

use crate::arch::{Arch, Native, Plain};
use crate::cpu::Cpu;
use crate::cpu::testing::{CpuSet, for_test_set};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// How long a torture goes on.
const SPAN: Duration = Duration::from_millis(300);

/// Runs `f` on `n` CPUs of one set, all at once.
fn on_cpus<A: Arch>(n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    on_cpus_of(for_test_set(n), n, f)
}

/// [`on_cpus`] on a set of the caller's.
fn on_cpus_of<A: Arch>(set: CpuSet<A>, n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    std::thread::scope(|s| {
        for id in 0..n {
            let (set, f) = (&set, &f);
            s.spawn(move || f(&set.cpu(id)));
        }
    });
    set
}

/// Runs `f` again and again on `n` CPUs until the span is over.
fn torture<A: Arch>(n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    torture_set(for_test_set(n), n, f)
}

/// [`torture`] on a set of the caller's.
fn torture_set<A: Arch>(set: CpuSet<A>, n: u32, f: impl Fn(&Cpu<A>) + Sync) -> CpuSet<A> {
    let end = Instant::now() + SPAN;
    on_cpus_of(set, n, |cpu| {
        while Instant::now() < end {
            for _ in 0..10 {
                f(cpu);
            }
        }
    })
}

/// Sleeps and polls until `cond` holds; fails after a time in which it must.
fn eventually(what: &str, cond: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !cond() {
        assert!(Instant::now() < end, "{what} never happened");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The witness: who is inside. Its words are not the lock's, and std's on purpose.
struct Inside {
    writer: AtomicBool,
    readers: AtomicI64,
    /// Written by writers only, in two halves that agree outside.
    halves: [AtomicI64; 2],
    /// Written by writers, read by readers: nothing but the lock orders it, which Miri and the thread sanitizer check.
    protected: Plain<Native, u64>,
}

impl Default for Inside {
    fn default() -> Self {
        Inside {
            writer: AtomicBool::new(false),
            readers: AtomicI64::new(0),
            halves: Default::default(),
            protected: Plain::new(0),
        }
    }
}

impl Inside {
    fn write<A: Arch>(&self, cpu: &Cpu<A>) {
        assert!(!self.writer.swap(true, Ordering::Relaxed), "two writers");
        assert_eq!(self.readers.load(Ordering::Relaxed), 0, "a writer among readers");
        let v = self.halves[0].load(Ordering::Relaxed);
        assert_eq!(v, self.halves[1].load(Ordering::Relaxed), "a writer saw half of another's work");
        self.halves[0].store(v + 1, Ordering::Relaxed);
        self.protected.set(self.protected.get() + 1);
        hold(cpu);
        self.halves[1].store(v + 1, Ordering::Relaxed);
        assert!(self.writer.swap(false, Ordering::Relaxed));
    }
    fn read<A: Arch>(&self, cpu: &Cpu<A>) {
        self.readers.fetch_add(1, Ordering::Relaxed);
        assert!(!self.writer.load(Ordering::Relaxed), "a reader beside a writer");
        let v = self.halves[0].load(Ordering::Relaxed);
        let protected = self.protected.get();
        hold(cpu);
        assert_eq!(protected, self.protected.get(), "a writer beside a reader");
        assert_eq!(v, self.halves[1].load(Ordering::Relaxed), "a reader saw half of a writer's work");
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }
    fn writes(&self) -> i64 {
        self.halves[0].load(Ordering::Relaxed)
    }
}

/// A short hold, rarely a long one, rarely one that sleeps.
fn hold<A: Arch>(cpu: &Cpu<A>) {
    match cpu.random() % 512 {
        0 => std::thread::sleep(Duration::from_micros(100)),
        1..8 => (0..200).for_each(|_| std::hint::spin_loop()),
        _ => (),
    }
}

/// L20, of the words themselves; structs have const assertions beside them. The facade adds nothing to a word; that it adds no instruction either is measured by `benches/primitives.rs`.
#[test]
fn native_words_are_the_words_themselves() {
    use crate::arch::Atomic;
    use crate::sync::{RawSpinLock, Rcuwait, Refcount, RwSemaphore, Seqcount};
    use std::mem::{align_of, size_of};
    use std::sync::atomic::{AtomicU32, AtomicU64};
    fn same<T, U>() -> bool {
        (size_of::<T>(), align_of::<T>()) == (size_of::<U>(), align_of::<U>())
    }
    assert!(same::<Atomic<Native, u32>, AtomicU32>() && same::<Atomic<Native, u64>, AtomicU64>());
    assert!(same::<Plain<Native, u64>, u64>());
    assert!(same::<RawSpinLock<Native>, u32>() && same::<Refcount<Native>, u32>() && same::<Seqcount<Native>, u32>());
    assert!(same::<Rcuwait<Native>, *const ()>());
    assert!(same::<RwSemaphore<Native>, [u64; 5]>());
}

/// Which files must name which invariant where they hold it: the table above is for readers, this for whoever moves a test.
#[test]
fn each_invariant_is_named_where_it_is_held() {
    const HELD: [(u32, &[&str]); 20] = [
        (1, &["src/sync/rwsem_probe.rs", "src/sync/tests/rwsem.rs"]),
        (2, &["src/sync/tests/rwsem_oracle.rs"]),
        (3, &["src/sync/tests/rwsem_queue.rs"]),
        (4, &["src/sync/tests/starvation.rs"]),
        (5, &["src/sync/rwsem_probe.rs", "src/sync/tests/rwsem_queue.rs"]),
        (6, &["src/sync/tests/rwsem_queue.rs"]),
        (7, &["src/sync/tests/rwsem_queue.rs"]),
        (8, &["src/sync/tests/sleeps.rs", "src/model/rwsem.rs"]),
        (9, &["src/sync/tests/qspinlock.rs"]),
        (10, &["src/sync/tests/osq_lock.rs", "src/model/osq_lock.rs"]),
        (11, &["src/sync/seqlock.rs", "src/model/seqcount.rs"]),
        (12, &["src/sync/refcount.rs", "src/model/refcount.rs"]),
        (13, &["src/model/vm_refcnt.rs"]),
        (14, &["src/mm/tests/stress.rs"]),
        (15, &["src/mm/tests/mmap.rs", "src/sync/seqlock.rs"]),
        (16, &["src/model/mod.rs"]),
        (17, &["scripts/miri"]),
        (18, &["tests/codegen.rs"]),
        (19, &["benches/primitives.rs"]),
        (20, &["src/sync/tests/mod.rs"]),
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = include_str!("mod.rs");
    for (i, (l, files)) in HELD.into_iter().enumerate() {
        assert_eq!(l, i as u32 + 1);
        let name = format!("L{l}");
        let named = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == name);
        assert!(
            table.lines().any(|t| t.starts_with("//! |") && named(t.split('|').nth(1).unwrap_or(""))),
            "{name}: no row"
        );
        for f in files {
            let text = std::fs::read_to_string(root.join(f)).unwrap_or_else(|e| panic!("{f}: {e}"));
            assert!(named(&text), "{f} does not name {name}");
        }
    }
}
