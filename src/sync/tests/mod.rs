// SPDX-License-Identifier: GPL-2.0-only
//! Locks under real threads, after the kernel's locktorture: holders check that they are alone, briefly most of the
//! time, longer now and then. What these cannot show (orderings on this machine's strong memory) is in `model/`. Which test holds which
//! invariant says [`HELD`].

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
use crate::held::{Held, assert_held};
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

/// L20, of the words themselves; structs have const assertions beside them. The facade adds nothing to a word; that it
/// adds no instruction either is measured by `benches/primitives.rs`.
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

/// Which tests hold which invariant of locking.md 11.
const HELD: [Held; 20] = [
    // An rwsem that all have left is as new: `assert_quiet()` at the end of every test of it.
    ("L1", &["sync::tests::rwsem::readers_and_writers_exclude_each_other_and_leave_nothing_behind"]),
    // What operations return and what the words say, against a model of who may hold what; 1 to 8 CPUs.
    (
        "L2",
        &[
            "sync::tests::rwsem_oracle::random_operations_of_simulated_cpus_do_what_the_model_allows",
            "sync::tests::rwsem_oracle::random_operations_of_threads_do_what_the_model_allows",
            "sync::tests::rwsem_oracle::the_model_believes_no_lie",
            "sync::tests::rwsem::the_count_is_the_sum_of_its_holders",
        ],
    ),
    // Downgrade.
    (
        "L3",
        &[
            "sync::tests::rwsem_queue::a_downgrade_lets_the_readers_in_and_keeps_the_writers_out",
            "sync::tests::rwsem_queue::a_downgrade_in_front_of_a_writer_wakes_nobody",
            "model::rwsem::a_downgrade_lets_readers_in_and_no_writer",
        ],
    ),
    // Starvation: exactly, in virtual time; roughly, in real time.
    (
        "L4",
        &[
            "sync::tests::starvation::one_among_many_waits_two_ticks_and_the_holds_at_most",
            "sync::tests::rwsem::a_writer_gets_in_among_readers",
            "sync::tests::rwsem::a_reader_gets_in_among_writers",
            "sync::tests::mutex::a_waiter_among_greedy_holders_gets_in",
        ],
    ),
    // Handoff and waiters bit, who asked.
    (
        "L5",
        &[
            "sync::tests::killable::a_storm_of_signals_leaves_the_lock_whole",
            "sync::tests::killable::the_handoff_goes_with_the_last_waiter_and_is_left_to_the_next",
            "sync::tests::rwsem_queue::an_impatient_writer_is_handed_the_lock",
        ],
    ),
    // Batches of readers.
    (
        "L6",
        &[
            "sync::tests::rwsem_queue::all_readers_of_the_queue_are_let_in_together_over_the_heads_of_writers",
            "sync::tests::rwsem_queue::one_pass_lets_in_256_readers",
        ],
    ),
    // Fast path and stealing: every state of the bits.
    (
        "L7",
        &["sync::tests::rwsem_queue::the_fast_path_needs_an_empty_queue_and_stealing_needs_no_writer_and_no_handoff"],
    ),
    // No lost wake-up, with delays around each full barrier; that a missing one is noticed.
    (
        "L8",
        &[
            "sync::tests::sleeps::rcuwait_loses_no_wake_up",
            "sync::tests::sleeps::the_rwsem_loses_no_wake_up",
            "model::rcuwait::a_waker_without_its_barrier_loses_one",
            "model::rwsem::a_missing_full_barrier_loses_a_readers_wake_up",
        ],
    ),
    // Queued spinlock.
    (
        "L9",
        &[
            "sync::tests::qspinlock::holders_are_alone_whichever_way_they_got_in",
            "sync::tests::qspinlock::the_queue_is_served_in_its_order",
            "sync::tests::qspinlock::every_nesting_level_queues_and_the_fifth_does_without",
            "model::spinlock::the_lock_is_handed_over_inside_the_queue",
        ],
    ),
    // OSQ cancelled: real threads; each step of leaving with a twin.
    (
        "L10",
        &[
            "sync::tests::osq_lock::a_storm_of_cancellations_leaves_the_queue_whole",
            "model::osq_lock::a_step_of_leaving_that_is_wrong_is_caught",
        ],
    ),
    // Seqcount.
    (
        "L11",
        &[
            "sync::seqlock::tests::a_reader_notices_any_writer_and_only_a_writer",
            "model::seqcount::no_torn_read_goes_through",
        ],
    ),
    // Refcount.
    (
        "L12",
        &[
            "sync::refcount::tests::each_misuse_saturates_warns_and_never_frees",
            "sync::refcount::tests::a_dead_count_stays_dead_to_conditional_increments",
            "model::refcount::the_last_one_out_sees_everything",
        ],
    ),
    // `vm_refcnt`: each value, each step, each reason to fall back.
    (
        "L13",
        &[
            "model::vm_refcnt::each_value_and_each_step_of_the_count_is_legal",
            "model::vm_refcnt::who_breaks_a_rule_is_caught",
        ],
    ),
    // Its reuse; `check`, besides.
    ("L14", &["mm::tests::stress::two_address_spaces_that_recycle_each_others_vmas"]),
    // `mm_lock_seq` wraps: the count; faults across it and the hole of 2^31 sections.
    (
        "L15",
        &[
            "mm::tests::mmap::sequence_numbers_may_wrap_and_the_writers_hole_is_the_kernels",
            "sync::seqlock::tests::a_reader_notices_any_writer_and_only_a_writer",
        ],
    ),
    // Model checking: `model/` has these and more.
    (
        "L16",
        &[
            "model::rcuwait::no_wake_up_is_lost",
            "model::refcount::a_reference_comes_with_the_identity",
            "model::vm_refcnt::each_value_and_each_step_of_the_count_is_legal",
            "model::osq_lock::a_chain_that_cpus_leave_at_any_moment_stays_whole",
            "model::rwsem::spinning_writers_exclude_each_other",
            "model::mutex::two_cpus_exclude_each_other",
            "model::spinlock::two_cpus_exclude_each_other",
            "model::grace_period::a_busy_reader_that_reports_wrongly_is_caught",
            "model::rcu_barrier::who_called_rcu_barrier_owns_what_callbacks_wrote",
        ],
    ),
    // Interpreter: the lock tests of this directory and of `sync/`, with the full-word spinlock, and every [`Plain`] word
    // ordinary memory, `Inside::protected` among them. Not under it: what looks into a queue without its lock (`killable`,
    // `rwsem_queue`), what needs the simulator (`starvation`, `rwsem_oracle`). Thread sanitizer: the same tests and those
    // of slab, RCU and tree; races of readers in the exclusion test of the rwsem are not seen there (`scripts/tsan.supp`).
    // The models check every [`Plain`] word of what they run, mm's locks among them.
    ("L17", &["scripts/miri", "scripts/tsan"]),
    // Locked instructions of the fast paths.
    ("L18", &["tests/codegen.rs::the_fast_paths_hold_no_more_locked_instructions_than_the_kernels"]),
    // Cost: each lock beside its parts written out by hand; `scripts/instructions --check` fails above 1.2 times their
    // instructions; times, and two CPUs on one lock, are reported.
    ("L19", &["benches/primitives.rs", "scripts/instructions"]),
    // Layout: const assertions beside each struct.
    ("L20", &["sync::tests::native_words_are_the_words_themselves"]),
];

#[test]
fn each_invariant_has_its_tests() {
    assert_held(&HELD, (1..=20).map(|l| format!("L{l}")));
}
