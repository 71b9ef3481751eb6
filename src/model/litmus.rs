// SPDX-License-Identifier: GPL-2.0-only
//! What each world can show: the classic shapes over the facade itself, and what of them a world is able to produce.
//!
//! | shape | the weak outcome |
//! |---|---|
//! | MP | the flag is seen, the message is not |
//! | SB | two CPUs store, and neither sees the other's store |
//! | LB | two CPUs load each other's later store |
//! | WRC | the flag passed on by a second CPU is seen, the first one's message is not |
//! | IRIW | two CPUs see two independent stores in opposite order |
//!
//! [`CONFESSION`] is what is claimed. A world that cannot produce an outcome cannot show that the port withstands it:
//! if a claim changes, this file changes, and the docs of that world with it. A new world adds a column.

use crate::arch::atomic::{LoadOrder, StoreOrder};
use crate::arch::loom::Loom;
use crate::arch::sim::{Jitter, SimConfig, SimMachine};
use crate::arch::{Acquire, Arch, Atomic, Job, Machine, Native, Relaxed, Release, Sim, smp_mb};
use std::collections::BTreeSet;
use std::sync::{Arc, Barrier, Mutex};

/// The words of a shape.
struct Words<A: Arch> {
    x: Atomic<A, u32>,
    y: Atomic<A, u32>,
}

impl<A: Arch> Words<A> {
    fn new() -> Self {
        Words { x: Atomic::new(0), y: Atomic::new(0) }
    }
}

/// What one CPU does; up to two registers.
type Part<A> = fn(&Words<A>) -> [u32; 2];

/// A shape with its orderings.
struct Shape<A: Arch> {
    name: &'static str,
    parts: Vec<Part<A>>,
    /// The registers of all parts, one after the other, in the weak outcome.
    weak: Vec<[u32; 2]>,
}

const NONE: [u32; 2] = [0, 0];

fn put<A: Arch, O: StoreOrder>(w: &Atomic<A, u32>, o: O) {
    w.store(1, o);
}

fn mp<A: Arch, S: StoreOrder + Default, L: LoadOrder + Default>(name: &'static str) -> Shape<A> {
    Shape {
        name,
        parts: vec![
            |w| {
                put(&w.x, Relaxed);
                put(&w.y, S::default());
                NONE
            },
            |w| [w.y.load(L::default()), w.x.load(Relaxed)],
        ],
        weak: vec![NONE, [1, 0]],
    }
}

fn sb<A: Arch, const FULL: bool>(name: &'static str) -> Shape<A> {
    Shape {
        name,
        parts: vec![
            |w| {
                put(&w.x, Relaxed);
                if FULL {
                    smp_mb::<A>();
                }
                [w.y.load(Relaxed), 0]
            },
            |w| {
                put(&w.y, Relaxed);
                if FULL {
                    smp_mb::<A>();
                }
                [w.x.load(Relaxed), 0]
            },
        ],
        weak: vec![[0, 0], [0, 0]],
    }
}

fn lb<A: Arch>(name: &'static str) -> Shape<A> {
    Shape {
        name,
        parts: vec![
            |w| {
                let r = w.x.load(Relaxed);
                put(&w.y, Relaxed);
                [r, 0]
            },
            |w| {
                let r = w.y.load(Relaxed);
                put(&w.x, Relaxed);
                [r, 0]
            },
        ],
        weak: vec![[1, 0], [1, 0]],
    }
}

fn wrc<A: Arch, S: StoreOrder + Default, L: LoadOrder + Default>(name: &'static str) -> Shape<A> {
    Shape {
        name,
        parts: vec![
            |w| {
                put(&w.x, S::default());
                NONE
            },
            |w| {
                let r = w.x.load(L::default());
                put(&w.y, S::default());
                [r, 0]
            },
            |w| [w.y.load(L::default()), w.x.load(Relaxed)],
        ],
        weak: vec![NONE, [1, 0], [1, 0]],
    }
}

fn iriw<A: Arch, const FULL: bool>(name: &'static str) -> Shape<A> {
    Shape {
        name,
        parts: vec![
            |w| {
                put(&w.x, Release);
                NONE
            },
            |w| {
                put(&w.y, Release);
                NONE
            },
            |w| {
                let r = w.x.load(Acquire);
                if FULL {
                    smp_mb::<A>();
                }
                [r, w.y.load(Acquire)]
            },
            |w| {
                let r = w.y.load(Acquire);
                if FULL {
                    smp_mb::<A>();
                }
                [r, w.x.load(Acquire)]
            },
        ],
        weak: vec![NONE, NONE, [1, 0], [1, 0]],
    }
}

fn shapes<A: Arch>() -> Vec<Shape<A>> {
    vec![
        mp::<A, Relaxed, Relaxed>("MP relaxed"),
        mp::<A, Release, Relaxed>("MP release, relaxed"),
        mp::<A, Relaxed, Acquire>("MP relaxed, acquire"),
        mp::<A, Release, Acquire>("MP release, acquire"),
        sb::<A, false>("SB relaxed"),
        sb::<A, true>("SB full fences"),
        lb::<A>("LB relaxed"),
        wrc::<A, Relaxed, Relaxed>("WRC relaxed"),
        wrc::<A, Release, Acquire>("WRC release, acquire"),
        iriw::<A, false>("IRIW release, acquire"),
        iriw::<A, true>("IRIW full fences"),
    ]
}

/// What is claimed of a world and a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It produces the weak outcome, always.
    Shows,
    /// It may; not asserted.
    May,
    /// It never does, and the model forbids it.
    Forbidden,
    /// It never does, although the model allows it: this world is blind here.
    Blind,
}
use Claim::{Blind, Forbidden, May, Shows};

/// What `native` may be blind to on this processor: its memory model is stronger than the language's.
const fn on_x86(x86: Claim) -> Claim {
    if cfg!(target_arch = "x86_64") { x86 } else { May }
}

/// Shape; loom; native; sim, which runs one virtual CPU at a time and so is sequentially consistent.
const CONFESSION: [(&str, Claim, Claim, Claim); 11] = [
    ("MP relaxed", Shows, on_x86(Blind), Blind),
    ("MP release, relaxed", Shows, on_x86(Blind), Blind),
    ("MP relaxed, acquire", Shows, on_x86(Blind), Blind),
    ("MP release, acquire", Forbidden, Forbidden, Forbidden),
    ("SB relaxed", Shows, May, Blind),
    ("SB full fences", Forbidden, Forbidden, Forbidden),
    // loom runs each CPU in program order: a load never takes a value that is stored later.
    ("LB relaxed", Blind, on_x86(Blind), Blind),
    ("WRC relaxed", Shows, on_x86(Blind), Blind),
    ("WRC release, acquire", Forbidden, Forbidden, Forbidden),
    ("IRIW release, acquire", Shows, on_x86(Blind), Blind),
    ("IRIW full fences", Forbidden, Forbidden, Forbidden),
];

fn verify<A: Arch>(claim: fn(usize) -> Claim, outcomes: impl Fn(Shape<A>) -> BTreeSet<Vec<[u32; 2]>>) {
    for (i, shape) in shapes::<A>().into_iter().enumerate() {
        let (name, weak) = (shape.name, shape.weak.clone());
        assert_eq!(name, CONFESSION[i].0);
        let seen = outcomes(shape);
        assert!(!seen.is_empty());
        let shown = seen.contains(&weak);
        println!("{}: {name}: {:?}; weak outcome {}", A::NAME, claim(i), if shown { "seen" } else { "not seen" });
        match claim(i) {
            Shows => assert!(shown, "{}: {name}: no longer produces its weak outcome: {seen:?}", A::NAME),
            May => (),
            Forbidden => assert!(!shown, "{}: {name}: a forbidden outcome", A::NAME),
            Blind => assert!(!shown, "{}: {name}: it can show this after all; say so", A::NAME),
        }
    }
}

#[test]
fn loom_confesses() {
    verify::<Loom>(
        |i| CONFESSION[i].1,
        |shape| {
            let seen = Arc::new(Mutex::new(BTreeSet::new()));
            let (s, parts) = (seen.clone(), shape.parts);
            super::explore(3, move || {
                let w = Arc::new(Words::<Loom>::new());
                let others: Vec<_> = parts[1..]
                    .iter()
                    .map(|&p| {
                        let w = w.clone();
                        ::loom::thread::spawn(move || p(&w))
                    })
                    .collect();
                let mut r = vec![parts[0](&w)];
                r.extend(others.into_iter().map(|t| t.join().expect("a panic ends the model")));
                s.lock().expect("no panic while held").insert(r);
            });
            Arc::into_inner(seen).expect("the model is over").into_inner().expect("no panic while held")
        },
    );
}

/// Shows that forbidden outcomes do not turn up; that is all a run on a real processor can show.
#[test]
fn native_confesses() {
    const ROUNDS: usize = 20;
    const BATCH: usize = 500;
    #[repr(align(128))]
    struct Padded(Words<Native>);
    verify::<Native>(
        |i| CONFESSION[i].2,
        |shape| {
            let mut seen = BTreeSet::new();
            for _ in 0..ROUNDS {
                let words: Vec<Padded> = (0..BATCH).map(|_| Padded(Words::new())).collect();
                let start = Barrier::new(shape.parts.len());
                let by_part: Vec<Vec<[u32; 2]>> = std::thread::scope(|s| {
                    let threads: Vec<_> = shape
                        .parts
                        .iter()
                        .map(|&p| {
                            let (words, start) = (&words, &start);
                            s.spawn(move || {
                                start.wait();
                                words.iter().map(|w| p(&w.0)).collect()
                            })
                        })
                        .collect();
                    threads.into_iter().map(|t| t.join().expect("parts do not panic")).collect()
                });
                seen.extend((0..BATCH).map(|i| by_part.iter().map(|p| p[i]).collect::<Vec<_>>()));
            }
            seen
        },
    );
}

/// Every interleaving that 200 jitter seeds make, and nothing weaker: a protocol that is only wrong by its orderings
/// passes in the simulator.
#[test]
fn sim_confesses() {
    let m = SimMachine::new(SimConfig::nodes(2, 2)).expect("address space");
    verify::<Sim>(
        |i| CONFESSION[i].3,
        |shape| {
            let mut seen = BTreeSet::new();
            for seed in 0..200 {
                m.reset();
                m.set_jitter(Some(Jitter { seed, every: 2, max_ns: 400, at_names: false }));
                let words = m.arena().boot_new(0, Words::<Sim>::new());
                let results: Vec<Mutex<[u32; 2]>> = shape.parts.iter().map(|_| Mutex::new(NONE)).collect();
                let job = |(cpu, part): (u32, Part<Sim>)| {
                    let result = &results[cpu as usize];
                    Job { cpu: Some(cpu), f: Box::new(move || *result.lock().expect("not poisoned") = part(&words)) }
                };
                m.run((0..).zip(shape.parts.iter().copied()).map(job).collect());
                seen.insert(results.iter().map(|r| *r.lock().expect("not poisoned")).collect());
            }
            assert!(seen.len() > 1, "one interleaving only");
            seen
        },
    );
}
