// SPDX-License-Identifier: GPL-2.0-only
//! Which tests hold what is promised of RCU (rcu.md 16, R1 to R16).

use crate::held::{Held, assert_held};

const HELD: [Held; 16] = [
    // No reader sees two grace periods, whatever the tree: threads, steps in one thread, simulated CPUs.
    (
        "R1",
        &[
            "rcu::torture::r1_no_reader_sees_two_grace_periods",
            "rcu::script::r1_r9_r15_thousands_of_grace_periods_keep_every_promise",
            "rcu::sim_torture::rcu_holds_on_16_simulated_cpus",
            "rcu::sim_torture::rcu_holds_on_64_simulated_cpus",
        ],
    ),
    // Deliberate faults are noticed.
    (
        "R2",
        &[
            "rcu::torture::r2_busted_flavours_are_noticed",
            "rcu::script::r2_each_deliberate_fault_is_noticed",
            "rcu::sim_torture::rcu_that_is_busted_is_noticed_on_many_simulated_cpus",
        ],
    ),
    // Poison: `Pipe::age()` overwrites, `Pipe::judge()` looks.
    ("R3", &["rcu::torture::torture", "rcu::torture::r2_busted_flavours_are_noticed"]),
    // Callbacks: once, where they were queued, outside of readers.
    ("R4", &["rcu::sim_limits::r4_callbacks_are_called_at_boundaries_and_by_sleepers_only", "rcu::torture::torture"]),
    // In order: `Pipe::age()` compares numbers.
    ("R5", &["rcu::torture::torture", "rcu::sim_tests::offloaded_callbacks_are_called_elsewhere_in_order_and_on_time"]),
    // The segmented list: its lengths, its labels, a reference model.
    (
        "R6",
        &[
            "rcu::rcu_segcblist::tests::the_list_equals_vectors_over_random_operations",
            "rcu::script::r1_r9_r15_thousands_of_grace_periods_keep_every_promise",
        ],
    ),
    ("R7", &["rcu::rcu_segcblist::tests::the_list_equals_vectors_over_random_operations"]),
    ("R8", &["rcu::rcu_segcblist::tests::the_list_equals_vectors_over_random_operations"]),
    // Reports.
    ("R9", &["rcu::script::r1_r9_r15_thousands_of_grace_periods_keep_every_promise"]),
    // rcu_barrier().
    (
        "R10",
        &[
            "rcu::torture::r10_rcu_barrier_waits_for_all_that_was_queued",
            "model::rcu_barrier::a_barrier_that_runs_already_does_not_do",
        ],
    ),
    // Floods.
    (
        "R11",
        &[
            "rcu::torture::r11_a_flood_lifts_the_limit_and_its_end_restores_it",
            "rcu::sim_limits::a_flood_begins_one_past_qhimark_and_ends_at_qlowmark",
            "rcu::sim_limits::overload_thirds_the_wait_for_scans_and_marks_at_once",
        ],
    ),
    // Sleepers.
    ("R12", &["rcu::torture::r12_a_sleeper_delays_nobody_and_calls_its_own"]),
    // Latency: from both sides in virtual time, from below in real time.
    (
        "R13",
        &[
            "rcu::sim_tests::r13_grace_periods_and_latencies_are_the_chapters_within_a_tenth",
            "rcu::sim_tests::r13_where_ticks_are_not_all_quiescent_states",
            "rcu::torture::r13_grace_periods_last_two_ticks_and_callbacks_wait_for_a_whole_one",
        ],
    ),
    // Orderings.
    (
        "R14",
        &[
            "rcu::torture::r14_litmus_shapes_across_grace_periods",
            "model::grace_period::an_idle_cpu_is_credited_only_when_its_readers_are_over_or_see_the_update",
            "model::grace_period::a_barrier_overlooks_no_callback_and_outruns_none",
        ],
    ),
    // The wrap of the sequence.
    (
        "R15",
        &[
            "rcu::script::r1_r9_r15_thousands_of_grace_periods_keep_every_promise",
            "rcu::rcu_seq::tests::sequence_arithmetic_holds_at_every_distance_from_the_wrap",
        ],
    ),
    // A grace-period thread that stands still.
    (
        "R16",
        &[
            "rcu::script::r16_nothing_is_called_while_the_thread_stands_still",
            "rcu::sim_tests::a_grace_period_thread_that_does_not_run_is_reported_and_nothing_is_called",
        ],
    ),
];

#[test]
fn each_promise_has_its_tests() {
    assert_held(&HELD, (1..=16).map(|r| format!("R{r}")));
}
