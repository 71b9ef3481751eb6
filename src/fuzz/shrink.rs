// SPDX-License-Identifier: GPL-2.0-only
//! Makes a difference small: takes out stretches of calls as long as some difference is left, then makes the arguments of
//! what remains plain.
//!
//! Any difference counts, not only the first one seen: a smaller case of another rule is as welcome. Each try is a fresh
//! round on both sides; after some thousand tries or most of a minute the smallest so far is given.

use super::backend::{Backend, Look, PAGE, Setup, Stop, WINDOW};
use super::driver::{Difference, differs};
use crate::mm::Call;
use std::time::{Duration, Instant};

/// Tries in all: enough for a few hundred calls, and a bound where each try is dear.
const TRIES: u32 = 4000;
/// And seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// The smallest case found that still differs.
///
/// # Errors
/// Where a side cannot go on.
pub fn shrink(
    d: &Difference,
    look: &Look,
    lead: &mut dyn Backend,
    other: &mut dyn Backend,
    stop: &mut dyn FnMut() -> bool,
) -> Result<(Difference, Look), Stop> {
    // Looking closer after every call shows a difference as early as it is there; bytes are dear to look at.
    let closer = [Look { flags_every: 1, bytes_every: u32::MAX }, Look::ALWAYS];
    let (mut look, mut best) = (*look, d.clone());
    for l in closer {
        if let Some(i) = differs(&d.setup, &d.calls, &l, lead, other)? {
            best.calls.truncate(i + 1);
            look = l;
            break;
        }
    }
    let mut test = |calls: &[Call], setup: &Setup| differs(setup, calls, &look, lead, other);
    Ok((shrink_by(best, &mut test, stop)?, look))
}

/// Says which of the calls differs, if any does.
pub type Test<'a> = dyn FnMut(&[Call], &Setup) -> Result<Option<usize>, Stop> + 'a;

/// The smallest case found of which `test` still gives the number of the call that differs.
///
/// # Errors
/// Where `test` cannot go on.
pub fn shrink_by(
    mut best: Difference,
    test: &mut Test<'_>,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Difference, Stop> {
    let mut tries = 0;
    let begin = Instant::now();
    let mut setup = best.setup;
    let mut test = |calls: &[Call], setup: &Setup| -> Result<Option<usize>, Stop> {
        tries += 1;
        if tries > TRIES || begin.elapsed() > PATIENCE || stop() { Ok(None) } else { test(calls, setup) }
    };
    let plainer_setups: [fn(Setup) -> Setup; 5] = [
        |s| Setup { crowd: 0, ..s },
        |s| Setup { room: None, ..s },
        |s| Setup { limit: None, ..s },
        |s| Setup { touch: s.touch && s.counted != 0, ..s },
        |s| Setup { heap: false, ..s },
    ];
    for plain in plainer_setups {
        let s = plain(setup);
        if s != setup && test(&best.calls, &s)?.is_some() {
            setup = s;
        }
    }
    loop {
        let round = best.calls.clone();
        // Stretches, from halves down to single calls, until nothing can go.
        loop {
            let before = best.calls.len();
            let mut size = (before / 2).max(1);
            loop {
                let mut at = 0;
                while at < best.calls.len() {
                    let mut c = best.calls.clone();
                    c.drain(at..(at + size).min(c.len()));
                    match test(&c, &setup)? {
                        Some(i) => {
                            c.truncate(i + 1);
                            best.calls = c;
                        }
                        None => at += size,
                    }
                }
                if size == 1 {
                    break;
                }
                size /= 2;
            }
            // A fork and its exit go together.
            let mut at = 0;
            while at < best.calls.len() {
                let exit = best.calls[at..].iter().position(|c| *c == Call::Exit);
                if let (Call::Fork, Some(e)) = (best.calls[at], exit) {
                    let mut c = best.calls.clone();
                    c.remove(at + e);
                    c.remove(at);
                    if let Some(i) = test(&c, &setup)? {
                        c.truncate(i + 1);
                        best.calls = c;
                        continue;
                    }
                }
                at += 1;
            }
            if best.calls.len() == before {
                break;
            }
        }
        // Arguments.
        loop {
            let mut smaller = false;
            for at in 0..best.calls.len() {
                for plain in plainer(&best.calls[at]) {
                    let mut c = best.calls.clone();
                    c[at] = plain;
                    if let Some(i) = test(&c, &setup)? {
                        c.truncate(i + 1);
                        best.calls = c;
                        smaller = true;
                        break;
                    }
                }
                if at + 1 >= best.calls.len() {
                    break;
                }
            }
            if !smaller {
                break;
            }
        }
        if best.calls == round {
            break;
        }
    }
    best.setup = setup;
    Ok(best)
}

/// Calls that are plainer than `c`, the plainest first; each is nearer to its end, so that this ends.
fn plainer(c: &Call) -> Vec<Call> {
    let lens = |len: u64| {
        let mut v = vec![];
        if len > PAGE && len < 1 << 32 {
            v.push(PAGE);
            v.push((len / 2).next_multiple_of(PAGE).min(len - 1));
            if len > 2 * PAGE {
                v.push((len - 1) & !(PAGE - 1));
            }
        }
        v.retain(|l| *l != 0 && *l < len);
        v
    };
    let starts = |addr: u64, len: u64| {
        if addr.is_multiple_of(PAGE) && len > PAGE && len < 1 << 32 { Some((addr + PAGE, len - PAGE)) } else { None }
    };
    let byte = |addr: u64| addr & !(PAGE - 1);
    let mut out = Vec::new();
    match *c {
        Call::Mmap { addr, len, prot, flags, fd, offset } => {
            for len in lens(len) {
                out.push(Call::Mmap { addr, len, prot, flags, fd, offset });
            }
            if let Some((addr, len)) = starts(addr, len) {
                let offset = if fd.is_some() { offset + PAGE } else { offset };
                out.push(Call::Mmap { addr, len, prot, flags, fd, offset });
            }
            for bit in (4..32).rev().map(|b| 1u32 << b) {
                if flags & bit != 0 && bit != libc::MAP_ANONYMOUS as u32 && bit != libc::MAP_FIXED as u32 {
                    let fixed = if bit == libc::MAP_FIXED_NOREPLACE as u32 { libc::MAP_FIXED as u32 } else { 0 };
                    out.push(Call::Mmap { addr, len, prot, flags: flags & !bit | fixed, fd, offset });
                }
            }
        }
        Call::Munmap { addr, len } => {
            out.extend(lens(len).into_iter().map(|len| Call::Munmap { addr, len }));
            out.extend(starts(addr, len).map(|(addr, len)| Call::Munmap { addr, len }));
        }
        Call::Mprotect { addr, len, prot } => {
            out.extend(lens(len).into_iter().map(|len| Call::Mprotect { addr, len, prot }));
            out.extend(starts(addr, len).map(|(addr, len)| Call::Mprotect { addr, len, prot }));
        }
        Call::Madvise { addr, len, advice } => {
            out.extend(lens(len).into_iter().map(|len| Call::Madvise { addr, len, advice }));
            out.extend(starts(addr, len).map(|(addr, len)| Call::Madvise { addr, len, advice }));
        }
        Call::Mlock { addr, len, flags } => {
            out.extend(lens(len).into_iter().map(|len| Call::Mlock { addr, len, flags }));
        }
        Call::Munlock { addr, len } => {
            out.extend(lens(len).into_iter().map(|len| Call::Munlock { addr, len }));
        }
        Call::Mseal { addr, len } => {
            out.extend(lens(len).into_iter().map(|len| Call::Mseal { addr, len }));
        }
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            for l in lens(old_len) {
                let new_len = if new_len == old_len { l } else { new_len };
                out.push(Call::Mremap { addr, old_len: l, new_len, flags, new_addr });
            }
            for new_len in lens(new_len) {
                out.push(Call::Mremap { addr, old_len, new_len, flags, new_addr });
            }
        }
        Call::Read { addr } if addr != byte(addr) => out.push(Call::Read { addr: byte(addr) }),
        Call::Write { addr, value } => {
            if addr != byte(addr) {
                out.push(Call::Write { addr: byte(addr), value });
            }
            if value != 1 {
                out.push(Call::Write { addr, value: 1 });
            }
        }
        Call::Brk { to } if to > WINDOW && !to.is_multiple_of(PAGE) => out.push(Call::Brk { to: byte(to) }),
        _ => {}
    }
    out
}
