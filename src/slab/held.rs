// SPDX-License-Identifier: GPL-2.0-only
//! Which tests hold which invariant of the allocators (slab.md 7.1, S1 to S14), and the eleventh's own.

use super::sheaf_tests::SHEAVES;
use super::tests::*;
use super::*;
use crate::cpu::Cpu;
use crate::held::{Held, assert_held};
use crate::rcu::{RcuHead, call_rcu, rcu_barrier};
use std::collections::BTreeSet;

const HELD: [Held; 14] = [
    // No object is handed out twice.
    (
        "S1",
        &[
            "slab::invariants::two_cpus_never_get_the_same_object",
            "slab::invariants::four_cpus_never_get_the_same_object",
            "slab::invariants::four_cpus_never_get_the_same_type_stable_object",
            "slab::sheaf_invariants::four_cpus_never_get_the_same_object",
            "slab::sheaf_invariants::four_cpus_of_two_nodes_never_get_the_same_object",
            "slab::sim_torture::both_allocators_bear_4_cpus",
            "slab::sim_torture::both_allocators_bear_16_cpus",
            "slab::sim_torture::both_allocators_bear_64_cpus",
            "slab::sim_torture::an_exchange_that_is_not_atomic_is_caught",
            "model::slab_record::each_object_is_got_once_and_the_slab_has_one_owner",
        ],
    ),
    // Objects lie where they should.
    (
        "S2",
        &[
            "slab::invariants::random_calls_on_two_cpus_keep_every_invariant",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
            "slab::tests::free_pointer_and_alignment_are_the_kernels",
        ],
    ),
    // Last in, first out.
    ("S3", &["slab::invariants::random_calls_on_two_cpus_keep_every_invariant", "slab::sheaf_tests::barns_and_limits"]),
    // Objects and order by the number of CPUs.
    ("S4", &["slab::tests::geometry_by_cpu_count_is_the_kernels"]),
    // The count in use, exclusive states, lengths of lists: `check()` of both files walks everything.
    (
        "S5",
        &[
            "slab::invariants::random_calls_on_two_cpus_keep_every_invariant",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
        ],
    ),
    (
        "S6",
        &[
            "slab::invariants::random_calls_on_two_cpus_keep_every_invariant",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
        ],
    ),
    (
        "S7",
        &[
            "slab::invariants::random_calls_on_two_cpus_keep_every_invariant",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
            "slab::tests::limits_and_tails_are_the_kernels",
        ],
    ),
    // Barns and sheaves.
    (
        "S8",
        &[
            "slab::sheaf_tests::barns_and_limits",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
        ],
    ),
    // Constructors.
    (
        "S9",
        &[
            "slab::invariants::a_constructor_runs_once_per_object_and_slab",
            "slab::sheaf_invariants::a_constructor_runs_once_per_object_and_slab",
        ],
    ),
    // Type-stable memory.
    (
        "S10",
        &[
            "slab::invariants::type_stable_pages_stay_until_the_grace_period_is_over",
            "slab::sheaf_invariants::type_stable_objects_keep_their_bytes",
        ],
    ),
    // Memory that is not: no object before its grace period.
    (
        "S11",
        &[
            "slab::held::what_call_rcu_frees_comes_back_after_the_grace_period_and_not_before",
            "slab::held::what_is_given_back_at_once_is_caught",
            "slab::kvfree_tests::no_object_changes_under_a_reader",
            "slab::kvfree_tests::an_engine_that_does_not_wait_is_caught",
        ],
    ),
    // Nodes.
    (
        "S12",
        &[
            "slab::invariants::a_remote_slab_on_a_cpu_stack_is_used_without_a_look",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
            "slab::sheaf_invariants::a_wish_for_the_own_node_refuses_a_remote_object_in_the_sheaf",
            "slab::page_alloc::tests::pages_return_to_their_node_and_neighbours_help_out",
        ],
    ),
    // Accounting.
    (
        "S13",
        &[
            "slab::invariants::random_calls_on_two_cpus_keep_every_invariant",
            "slab::invariants::type_stable_pages_stay_until_the_grace_period_is_over",
            "slab::sheaf_invariants::random_calls_on_four_cpus_keep_every_invariant",
        ],
    ),
    // Destruction of a cache in use.
    (
        "S14",
        &[
            "slab::invariants::a_cache_with_live_objects_is_not_destroyed",
            "slab::sheaf_invariants::a_cache_with_live_objects_is_not_destroyed",
        ],
    ),
];

#[test]
fn each_invariant_has_its_tests() {
    assert_held(&HELD, (1..=14).map(|s| format!("S{s}")));
}

/// An object of the test.
#[repr(C)]
struct Given {
    head: RcuHead<Native>,
    cache: *const KmemCache<Native>,
}

/// # Safety
/// `head` is a [`Given`]'s.
unsafe fn give_back(cpu: &Cpu<Native>, head: *mut RcuHead<Native>) {
    const { assert!(std::mem::offset_of!(Given, head) == 0) };
    let p = head.cast::<Given>();
    // SAFETY: the caller's; the cache outlives its objects, and a callback is called once.
    unsafe { kmem_cache_free(cpu, &*(*p).cache, p.cast()) };
}

/// Gives objects back, by `call_rcu()` or (`early`) at once, and looks at what is handed out before the grace period is
/// over and after.
fn handed_out_again(early: bool) {
    for options in [EXACT, SHEAVES] {
        let k = boot(1, 1, 32, options);
        let cpu = Cpu::for_test(0);
        let s = k.cache(vma_args(0));
        let take = |n: usize| (0..n).map(|_| get(&cpu, &s)).collect::<Vec<_>>();
        let given = take(210);
        for &p in &given {
            let o = p.cast::<Given>();
            // SAFETY: an object of ours, large enough; given away here.
            unsafe {
                o.write(Given { head: RcuHead::new(), cache: std::ptr::from_ref(&*s) });
                if early {
                    give_back(&cpu, o.cast());
                } else {
                    call_rcu(&cpu, &k.slab.rcu, o.cast(), give_back);
                }
            }
        }
        let given: BTreeSet<usize> = given.into_iter().map(|p| p as usize).collect();
        // No grace period passes on this thread but where it waits for one.
        let before = take(500);
        assert!(before.iter().all(|p| !given.contains(&(*p as usize))), "handed out before its grace period");
        rcu_barrier(&cpu, &k.slab.rcu);
        assert_eq!(k.slab.rcu.pending(), 0);
        let late = take(500);
        let back = late.iter().filter(|p| given.contains(&(**p as usize))).count();
        assert!(back > 0, "nothing came back");
        before.into_iter().chain(late).for_each(|p| free(&cpu, &s, p));
        assert_eq!(s.live_objects(), 0);
        // SAFETY: one thread.
        unsafe { kmem_cache_destroy(&cpu, &s).unwrap() };
        assert_eq!(k.outstanding(), 0);
    }
}

#[test]
fn what_call_rcu_frees_comes_back_after_the_grace_period_and_not_before() {
    handed_out_again(false);
}

#[test]
#[should_panic(expected = "handed out before its grace period")]
fn what_is_given_back_at_once_is_caught() {
    handed_out_again(true);
}
