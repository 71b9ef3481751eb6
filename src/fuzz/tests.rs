// SPDX-License-Identifier: GPL-2.0-only
//! The port against the reference model, under every set of rules; and whether the fuzzer would notice: each rule of the
//! model is broken in turn and must be found. The running kernel's turn is in `tests/fuzz.rs`, which has a program to
//! start as the helper.

use super::backend::{Backend, Look};
use super::driver::{Difference, Options, Outcome, account, differs, fuzz};
use super::model::Model;
use super::model::merge::Mutation;
use super::port;
use super::probe::Features;
use super::shrink::shrink;
use super::token::{Case, Side};
use crate::mm::{MmRules, variant};
use std::sync::Arc;

fn options(rules: MmRules, ops: u64, seed: u64) -> Options {
    Options {
        ops,
        seed,
        rules,
        features: Features::all().under(&rules),
        look: Look::USUAL,
        pages: None,
        trail: Arc::default(),
    }
}

fn the_port(name: &str, rules: &MmRules, features: &mut Features) -> Box<dyn Backend> {
    let mut p = port::start(&variant::parse(name).unwrap()).unwrap();
    port::limit(&mut *p, rules, features).unwrap();
    p
}

fn run(o: &Options, lead: &mut dyn Backend, other: &mut dyn Backend) -> Option<Difference> {
    match fuzz(o, lead, other, &mut |_| false).unwrap().0 {
        Outcome::Same => None,
        Outcome::Differs(d) => Some(*d),
        Outcome::Interrupted => panic!("nobody interrupted it"),
    }
}

/// What the difference is, for the message of a failed test.
fn tell(d: &Difference, lead: &mut dyn Backend, other: &mut dyn Backend) -> String {
    let (small, look) = shrink(d, &Look::USUAL, lead, other, &mut || false).unwrap();
    let a = account(&small.setup, &small.calls, &look, lead, other).unwrap();
    format!("{}\n{:#?}\n{:?}", a.script.join("\n"), a.after, a.at_end)
}

fn hold(variant: &str, rules: MmRules, seed: u64) {
    let mut o = options(rules, 40_000, seed);
    let mut port = the_port(variant, &rules, &mut o.features);
    let mut model = Model::default();
    if let Some(d) = run(&o, &mut *port, &mut model) {
        panic!("{variant}: {}", tell(&d, &mut *port, &mut model));
    }
}

#[test]
fn the_port_follows_the_rules_of_6_12() {
    hold("v6.12", MmRules::V6_12, 1);
}

#[test]
fn the_port_follows_the_rules_of_6_18() {
    hold("v6.15", MmRules::V6_18, 2);
}

#[test]
fn the_port_follows_the_rules_of_7_3() {
    hold("refcnt+typesafe@sheaves", MmRules::V7_3, 3);
}

#[test]
fn every_broken_rule_is_found_within_a_hundred_thousand_calls() {
    let mut missed = Vec::new();
    for &m in Mutation::ALL {
        let mut o = options(MmRules::V6_12, 100_000, 7);
        let mut port = the_port("v6.15", &MmRules::V6_12, &mut o.features);
        if run(&o, &mut *port, &mut Model::broken(m)).is_none() {
            missed.push(m);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn a_difference_shrinks_to_a_few_calls_and_its_token_shows_it_again() {
    let o = options(MmRules::V6_12, 100_000, 5);
    let (mut whole, mut broken) = (Model::default(), Model::broken(Mutation::SplitKeepsOffset));
    let d = run(&o, &mut whole, &mut broken).expect("it is found");
    let (small, look) = shrink(&d, &o.look, &mut whole, &mut broken, &mut || false).unwrap();
    assert!(small.calls.len() <= 6 && small.calls.len() < d.calls.len(), "{:#?}", small.calls);
    let case = Case {
        subject: Side::Model,
        against: Side::Model,
        variant: String::new(),
        setup: small.setup,
        calls: small.calls,
    };
    let again = Case::parse(&case.token()).unwrap();
    assert_eq!(again, case);
    let at = differs(&again.setup, &again.calls, &look, &mut whole, &mut broken).unwrap();
    assert_eq!(at, Some(again.calls.len() - 1));
    let same = differs(&again.setup, &again.calls, &look, &mut whole, &mut Model::default()).unwrap();
    assert_eq!(same, None);
    let a = account(&again.setup, &again.calls, &look, &mut whole, &mut broken).unwrap();
    assert!(a.differs && a.script.len() == again.calls.len() && a.after.len() == 2);
}

#[test]
fn the_same_seed_draws_the_same_calls() {
    let o = options(MmRules::V6_18, 5000, 9);
    let tally = |o: &Options| fuzz(o, &mut Model::default(), &mut Model::default(), &mut |_| false).unwrap().1;
    let (a, b) = (tally(&o), tally(&o));
    assert_eq!((a.calls.clone(), a.rounds), (b.calls, b.rounds));
    let c = tally(&Options { seed: 10, ..o });
    assert_ne!(a.calls, c.calls);
    // All kinds occur, and most calls do something.
    let done: u64 = a.calls.values().map(|c| c.0).sum();
    assert!(a.calls.len() >= 12 && done * 10 > a.ops * 6, "{} kinds, {done} of {}", a.calls.len(), a.ops);
}

#[test]
fn an_interrupted_run_says_so() {
    let o = options(MmRules::V6_12, 1_000_000, 1);
    let (end, t) = fuzz(&o, &mut Model::default(), &mut Model::default(), &mut |n| n > 1000).unwrap();
    assert!(matches!(end, Outcome::Interrupted) && t.ops > 1000 && t.ops < 3000);
}
