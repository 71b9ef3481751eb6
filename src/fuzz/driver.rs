// SPDX-License-Identifier: GPL-2.0-only
//! The run: rounds of random calls, carried out by both sides and compared call by call.
//!
//! The first side leads: the generator sees its maps. The other side gets the same calls in batches, so that a process
//! switch is paid once in hundreds of calls; the comparison is by call all the same.

use super::backend::{Backend, COUNTED, Counts, Look, Setup, Step, Stop, WINDOW, file_name};
use super::r#gen::{Gen, allowed};
use super::port::PANICKED;
use super::probe::Features;
use super::text;
use super::wire::{NAMES, encode};
use crate::cpu::splitmix64;
use crate::mm::{Call, MmRules, VmaInfo};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Calls of a round that are drawn before the other side gets them.
const BATCH: u64 = 512;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Calls.
    pub ops: u64,
    /// Seed.
    pub seed: u64,
    /// Rules that both sides are to follow.
    pub rules: MmRules,
    /// What may be drawn.
    pub features: Features,
    /// When to look closer.
    pub look: Look,
    /// Pages of the window; `None`: 24 to 64, drawn for each round.
    pub pages: Option<u32>,
    /// The calls of the running round, for whoever must tell of them when this program cannot go on.
    pub trail: Arc<Mutex<Trail>>,
}

/// A round as far as it has got.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// How it began.
    pub setup: Option<Setup>,
    /// Its calls, the one that is being made last.
    pub calls: Vec<Call>,
}

/// How often a call was made and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By name of the call: successes, and failures by errno.
    pub calls: BTreeMap<&'static str, (u64, BTreeMap<i64, u64>)>,
    /// Calls in all.
    pub ops: u64,
    /// Rounds.
    pub rounds: u64,
    /// Nanoseconds.
    pub ns: u64,
    /// By name of the call and of what is counted: sums of both sides, and calls in which they differ.
    pub counts: BTreeMap<(&'static str, &'static str), (u64, u64, u64)>,
}

impl Tally {
    fn add(&mut self, c: &Call, result: i64) {
        let t = self.calls.entry(NAMES[encode(c)[0] as usize]).or_default();
        if result < 0 {
            *t.1.entry(-result).or_default() += 1;
        } else {
            t.0 += 1;
        }
        self.ops += 1;
    }
    fn add_counts(&mut self, c: &Call, mine: &Counts, theirs: &Counts) {
        for (i, (what, _)) in COUNTED.iter().enumerate() {
            if mine[i] != 0 || theirs[i] != 0 {
                let t = self.counts.entry((NAMES[encode(c)[0] as usize], what)).or_default();
                t.0 += u64::from(mine[i]);
                t.1 += u64::from(theirs[i]);
                t.2 += u64::from(mine[i] != theirs[i]);
            }
        }
    }
    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.ops as f64 * 1e9 / self.ns.max(1) as f64
    }
}

/// Where two sides part.
#[derive(Clone, Debug)]
pub struct Difference {
    /// How the round began.
    pub setup: Setup,
    /// The calls up to the one whose answers differ.
    pub calls: Vec<Call>,
    /// What the leading side found wrong with itself at the end of the round, where that is the difference.
    pub at_end: Option<String>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// No difference.
    Same,
    /// A difference.
    Differs(Box<Difference>),
    /// Interrupted.
    Interrupted,
}

/// Runs. `pulse` hears how many calls are done, and says whether to stop.
///
/// # Errors
/// Where a side cannot go on.
pub fn fuzz(
    o: &Options,
    lead: &mut dyn Backend,
    other: &mut dyn Backend,
    pulse: &mut dyn FnMut(u64) -> bool,
) -> Result<(Outcome, Tally), Stop> {
    let mut t = Tally::default();
    let begin = Instant::now();
    let mut outcome = Outcome::Same;
    if let Some((space, _)) = &o.features.place {
        lead.load(space);
    }
    while t.ops < o.ops {
        if pulse(t.ops) {
            outcome = Outcome::Interrupted;
            break;
        }
        let seed = splitmix64(o.seed ^ t.rounds.wrapping_mul(0xd6e8_feb8_6659_fd93));
        if let Some(d) = round(o, seed, lead, other, &mut t)? {
            outcome = Outcome::Differs(Box::new(d));
            break;
        }
        t.rounds += 1;
    }
    t.ns = begin.elapsed().as_nanos() as u64;
    Ok((outcome, t))
}

fn trail(o: &Options) -> MutexGuard<'_, Trail> {
    o.trail.lock().unwrap_or_else(PoisonError::into_inner)
}

fn round(
    o: &Options,
    seed: u64,
    lead: &mut dyn Backend,
    other: &mut dyn Backend,
    t: &mut Tally,
) -> Result<Option<Difference>, Stop> {
    let mut g = Gen::new(seed, o.rules, &o.features);
    if let Some(p) = o.pages {
        g.set_pages(p);
    }
    let setup = g.setup();
    let length = g.length().min(o.ops - t.ops);
    *trail(o) = Trail { setup: Some(setup), calls: Vec::new() };
    lead.begin(&setup)?;
    other.begin(&setup)?;
    let (mut calls, mut mine, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let mut sent = 0;
    for i in 0..length {
        let view = lead.maps()?;
        let outside = |v: &&VmaInfo| !setup.everywhere && (v.start < WINDOW || v.end > setup.end());
        if let (Some(v), Some(c)) = (view.iter().find(outside), calls.last()) {
            let why =
                format!("{} put {:#x}..{:#x}, outside the window: {}", lead.name(), v.start, v.end, text::call(c));
            return Err(Stop(why));
        }
        let c = g.next(&view);
        trail(o).calls.push(c);
        lead.run(i, &[c], &o.look, &mut mine)?;
        calls.push(c);
        t.add(&c, mine[i as usize].result);
        if i + 1 == length || (i + 1).is_multiple_of(BATCH) || mine[i as usize].result == PANICKED {
            other.run(sent, &calls[sent as usize..], &o.look, &mut theirs)?;
            if let Some(at) = first_difference(&mine, &theirs, setup.judged()) {
                calls.truncate(at + 1);
                // The sides are left as they are: whoever looks closer begins anew.
                return Ok(Some(Difference { setup, calls, at_end: None }));
            }
            for j in sent as usize..calls.len() {
                t.add_counts(&calls[j], &mine[j].counts, &theirs[j].counts);
            }
            sent = i + 1;
        }
    }
    other.end()?;
    if let Err(e) = lead.end() {
        return Ok(Some(Difference { setup, calls, at_end: Some(e.0) }));
    }
    Ok(None)
}

fn first_difference(a: &[Step], b: &[Step], judged: u16) -> Option<usize> {
    let agree = |i: usize| matches!((a.get(i), b.get(i)), (Some(a), Some(b)) if a.agrees(b, judged));
    (0..a.len().max(b.len())).find(|&i| !agree(i))
}

/// Runs `calls` on both sides and gives the number of the call whose answers differ; `None` also where the calls could
/// not have been drawn ([`allowed`]), as may happen once some have been taken out.
///
/// # Errors
/// Where a side cannot go on.
pub fn differs(
    setup: &Setup,
    calls: &[Call],
    look: &Look,
    lead: &mut dyn Backend,
    other: &mut dyn Backend,
) -> Result<Option<usize>, Stop> {
    lead.begin(setup)?;
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    let mut depth = 1;
    let mut usable = calls.len();
    for (i, c) in calls.iter().enumerate() {
        match c {
            Call::Fork => depth += 1,
            Call::Exit => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth > super::backend::MAX_DEPTH || !allowed(c, &lead.maps()?, setup) {
            usable = i;
            break;
        }
        lead.run(i as u64, std::slice::from_ref(c), look, &mut mine)?;
        if mine[i].result == PANICKED {
            usable = i + 1;
            break;
        }
    }
    let sound = lead.end().is_ok();
    other.begin(setup)?;
    other.run(0, &calls[..usable], look, &mut theirs)?;
    other.end()?;
    let at_end = if sound { None } else { usable.checked_sub(1) };
    Ok(first_difference(&mine, &theirs, setup.judged()).or(at_end))
}

/// What both sides answered and show, in words.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// One line a call, with the answers.
    pub script: Vec<String>,
    /// What is mapped after the last call, by side.
    pub after: Vec<(String, Vec<String>)>,
    /// Whether the last answers differ, or the end was not right.
    pub differs: bool,
    /// What the leading side found wrong with itself at the end.
    pub at_end: Option<String>,
}

/// Replays `calls` on both sides, up to the first difference, and tells.
///
/// # Errors
/// Where a side cannot go on.
pub fn account(
    setup: &Setup,
    calls: &[Call],
    look: &Look,
    lead: &mut dyn Backend,
    other: &mut dyn Backend,
) -> Result<Account, Stop> {
    let mut out = Account::default();
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    let mut at_end = None;
    let mut run = |b: &mut dyn Backend, calls: &[Call], steps: &mut Vec<Step>| -> Result<Vec<String>, Stop> {
        b.begin(setup)?;
        steps.clear();
        b.run(0, calls, look, steps)?;
        let maps = b.maps()?;
        let mut lines: Vec<String> = (0..maps.len()).map(|i| vma_line(&maps, i)).collect();
        for (l, h) in lines.iter_mut().zip(b.hidden()) {
            *l += &format!("   ({h})");
        }
        at_end = at_end.take().or(b.end().err());
        Ok(lines)
    };
    run(lead, calls, &mut mine)?;
    run(other, calls, &mut theirs)?;
    let n = match first_difference(&mine, &theirs, setup.judged()) {
        Some(i) => {
            out.differs = true;
            (i + 1).min(calls.len())
        }
        None => calls.len(),
    };
    let a = run(lead, &calls[..n], &mut mine)?;
    let b = run(other, &calls[..n], &mut theirs)?;
    out.at_end = at_end.map(|e| e.0);
    out.differs |= out.at_end.is_some();
    for (i, c) in calls[..n].iter().enumerate() {
        let (x, y) = (mine[i].result, theirs[i].result);
        let answer = if x == y {
            text::result(c, x)
        } else {
            format!("{} says {}, {} says {}", lead.name(), text::result(c, x), other.name(), text::result(c, y))
        };
        let judged = setup.judged();
        let costs = (0..COUNTED.len()).filter(|&j| judged >> j & 1 == 1 && mine[i].counts[j] != theirs[i].counts[j]);
        let costs: String =
            costs.map(|j| format!("; {}: {} and {}", COUNTED[j].0, mine[i].counts[j], theirs[i].counts[j])).collect();
        out.script.push(format!("{}. {} -> {answer}{costs}", i + 1, text::call(c)));
    }
    if a != b || out.differs {
        out.after = vec![(lead.name(), a), (other.name(), b)];
    } else {
        out.after = vec![("both".into(), a)];
    }
    Ok(out)
}

fn vma_line(maps: &[VmaInfo], i: usize) -> String {
    text::vma(&maps[i], file_name(|j| maps[j].file, i))
}
