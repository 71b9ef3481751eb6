// SPDX-License-Identifier: GPL-2.0-only
//! The calls of one address space of a trace as a loop that any number of threads can run side by side: what
//! `--workload trace:FILE` repeats.
//!
//! Taken is the address space with most calls, with those of its parents before it was forked. Its addresses are moved
//! close together: what lies between two used places shrinks to less than 4 MiB, keeping the place within 2 MiB, so
//! that neighbours stay neighbours, what is apart stays apart, and a thread's copy of everything fits beside the others'.
//!
//! What a loop cannot have: a break of its own for each thread (it becomes mmap and munmap of the same range, with the
//! same flags), files and shared memory (they become private anonymous memory of the same length and rights), locked
//! memory and huge pages (a limit, a machine may refuse them), calls that failed. All of it is counted.
//!
//! Which pages are written is worked out here, so that every write is one fault: the first page of a range that becomes
//! writable, unless it was written before and is still there.

use super::normalise::{Born, Expect, Op, PAGE, Ranges, Step, Trace};
use crate::mm::Call;
use std::collections::BTreeSet;

/// One call. Addresses are bytes from the beginning of a thread's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Private anonymous memory over whatever is there.
    Map {
        /// First address.
        at: u64,
        /// Pages.
        pages: u64,
        /// `PROT_*`
        prot: u32,
        /// `MAP_NORESERVE`
        noreserve: bool,
    },
    /// munmap(2)
    Unmap {
        /// First address.
        at: u64,
        /// Pages.
        pages: u64,
    },
    /// mprotect(2)
    Protect {
        /// First address.
        at: u64,
        /// Pages.
        pages: u64,
        /// `PROT_*`
        prot: u32,
    },
    /// madvise(2)
    Advise {
        /// First address.
        at: u64,
        /// Pages.
        pages: u64,
        /// `MADV_*`, one of [`ADVICE`].
        advice: i32,
    },
    /// mremap(2): in place where `to` is `at`, else moved there.
    Remap {
        /// First address.
        at: u64,
        /// Pages there.
        pages: u64,
        /// First address afterwards.
        to: u64,
        /// Pages afterwards.
        new_pages: u64,
    },
}

/// A call, and the page that is written after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The call.
    pub act: Act,
    /// Address of the write; [`NO_TOUCH`] for none.
    pub touch: u64,
}

/// No page is written.
pub const NO_TOUCH: u64 = u64::MAX;

/// Advice that a loop repeats: splits and merges VMAs, or zaps, and no machine refuses it. `MADV_NORMAL`, `RANDOM`,
/// `SEQUENTIAL`, `DONTNEED`, `FREE`, `DONTFORK`, `DOFORK`, `DONTDUMP`, `DODUMP`.
pub const ADVICE: [i32; 9] = [0, 1, 2, 4, 8, 10, 11, 16, 17];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Calls of a pass, in order.
    pub beats: Vec<Beat>,
    /// Bytes that a thread's place takes.
    pub span: u64,
    /// Faults of a pass.
    pub faults: u64,
    /// Calls of the address space that are not in the loop.
    pub skipped: u64,
    /// File mappings that became anonymous ones.
    pub files: u64,
    /// Moves of the break that became mmap or munmap.
    pub breaks: u64,
    /// Calls of the trace in other address spaces.
    pub elsewhere: u64,
}

const PROT_WRITE: u32 = 2;
const PROT_ALL: u32 = 7;
const MAP_NORESERVE: u32 = 0x4000;
const MADV_DONTNEED: i32 = 4;
const ALIGN: u64 = 2 << 20;
/// Most that a thread's place may take: a sixteenth of what user mode has.
const MOST: u64 = 1 << 43;

/// The steps of `mm`, with those of its parents before it was forked.
fn lineage(trace: &Trace, mm: u32) -> Vec<&Step> {
    // (address space, steps before this index)
    let mut parts = vec![(mm, trace.steps.len())];
    while let Some(&(child, _)) = parts.last() {
        let Born::Fork(parent) = trace.spaces[child as usize].born else { break };
        let at = trace.steps.iter().position(|s| s.op == Op::Fork { child }).unwrap_or(0);
        parts.push((parent, at));
    }
    let mut all = Vec::new();
    for (mm, before) in parts.into_iter().rev() {
        all.extend(trace.steps[..before].iter().filter(|s| s.mm == mm));
    }
    all
}

fn is_call(s: &Step) -> bool {
    matches!(s.op, Op::Call(_))
}

impl Program {
    /// Makes the loop of `trace`.
    ///
    /// # Errors
    /// One line: why there is none.
    pub fn new(trace: &Trace) -> Result<Program, String> {
        let calls = |mm: u32| lineage(trace, mm).into_iter().filter(|s| is_call(s)).count();
        let most = (0..trace.spaces.len() as u32).max_by_key(|mm| (calls(*mm), u32::MAX - mm));
        let mm = most.ok_or_else(|| format!("{}: no address space in this trace", trace.file))?;
        let steps = lineage(trace, mm);
        let mut b = Builder::default();
        for s in &steps {
            b.step(s);
        }
        let all = trace.steps.iter().filter(|s| is_call(s)).count();
        b.p.elsewhere = (all - steps.iter().filter(|s| is_call(s)).count()) as u64;
        if b.p.beats.is_empty() {
            return Err(format!("{}: no call of this trace can be repeated in a loop", trace.file));
        }
        b.relocate();
        if b.p.span > MOST {
            return Err(format!("{}: its mappings span {:#x} bytes; at most {MOST:#x}", trace.file, b.p.span));
        }
        Ok(b.p)
    }
}

impl Program {
    /// What of its trace the loop has and has not, in a sentence.
    pub fn about(&self) -> String {
        format!(
            "trace: {} calls and {} faults a pass; {} calls of the address space left out, {} in others; {} file mappings \
             made anonymous, {} moves of the break made mmap or munmap",
            self.beats.len(),
            self.faults,
            self.skipped,
            self.elsewhere,
            self.files,
            self.breaks
        )
    }
}

#[derive(Default)]
struct Builder {
    p: Program,
    /// Everything that a call names.
    used: Ranges,
    /// Pages that were written and are there.
    present: BTreeSet<u64>,
    brk: u64,
}

fn pages(len: u64) -> u64 {
    len.div_ceil(PAGE)
}

impl Builder {
    fn push(&mut self, act: Act, touch: Option<u64>) {
        let touch = touch.filter(|t| self.present.insert(*t)).unwrap_or(NO_TOUCH);
        self.p.faults += u64::from(touch != NO_TOUCH);
        let (at, n) = match act {
            Act::Map { at, pages, .. }
            | Act::Unmap { at, pages }
            | Act::Protect { at, pages, .. }
            | Act::Advise { at, pages, .. }
            | Act::Remap { at, pages, .. } => (at, pages),
        };
        self.used.insert(at, at + n * PAGE);
        if let Act::Remap { to, new_pages, .. } = act {
            self.used.insert(to, to + new_pages * PAGE);
        }
        self.p.beats.push(Beat { act, touch });
    }

    fn gone(&mut self, at: u64, n: u64) {
        let gone: Vec<u64> = self.present.range(at..at + n * PAGE).copied().collect();
        for p in gone {
            self.present.remove(&p);
        }
    }

    fn map(&mut self, at: u64, n: u64, prot: u32, noreserve: bool) {
        self.gone(at, n);
        let prot = prot & PROT_ALL;
        self.push(Act::Map { at, pages: n, prot, noreserve }, (prot & PROT_WRITE != 0).then_some(at));
    }

    fn unmap(&mut self, at: u64, n: u64) {
        self.gone(at, n);
        self.push(Act::Unmap { at, pages: n }, None);
    }

    fn step(&mut self, s: &Step) {
        let good = matches!(s.expect, Expect::Value(_)) || s.moved;
        match &s.op {
            Op::BrkStart { at } => self.brk = *at,
            Op::Foreign { addr, len } => self.map(*addr, pages(*len), 3, false),
            Op::Call(_) if !good => self.p.skipped += 1,
            Op::Call(c) => self.call(c, &s.expect),
            Op::New | Op::Fork { .. } | Op::End => {}
        }
    }

    fn call(&mut self, c: &Call, expect: &Expect) {
        match *c {
            Call::Mmap { addr, len, prot, flags, fd, .. } => {
                self.p.files += u64::from(fd.is_some());
                self.map(addr, pages(len), prot, flags & MAP_NORESERVE != 0);
            }
            Call::Munmap { addr, len } => self.unmap(addr, pages(len)),
            Call::Mprotect { addr, len, prot } if len > 0 => {
                let prot = prot & PROT_ALL;
                let touch = (prot & PROT_WRITE != 0).then_some(addr);
                self.push(Act::Protect { at: addr, pages: pages(len), prot }, touch);
            }
            Call::Madvise { addr, len, advice } if len > 0 && ADVICE.contains(&advice) => {
                if advice == MADV_DONTNEED {
                    self.gone(addr, pages(len));
                }
                self.push(Act::Advise { at: addr, pages: pages(len), advice }, None);
            }
            Call::Mremap { addr, old_len, new_len, flags: 0..=3, .. } if old_len > 0 => {
                let Expect::Value(to) = *expect else { return };
                let (n, new_pages) = (pages(old_len), pages(new_len));
                let moved: Vec<u64> = self.present.range(addr..addr + n.min(new_pages) * PAGE).copied().collect();
                self.gone(addr, n);
                self.gone(to, new_pages);
                self.present.extend(moved.iter().map(|p| p - addr + to));
                self.push(Act::Remap { at: addr, pages: n, to, new_pages }, None);
            }
            Call::Brk { to } => {
                let Expect::Value(now) = *expect else { return };
                let (old, new) = (self.brk.next_multiple_of(PAGE), now.next_multiple_of(PAGE));
                self.brk = now;
                if to == 0 || old == new {
                    self.p.skipped += 1;
                    return;
                }
                self.p.breaks += 1;
                if new > old {
                    self.map(old, (new - old) / PAGE, 3, false);
                } else {
                    self.unmap(new, (old - new) / PAGE);
                }
            }
            _ => self.p.skipped += 1,
        }
    }

    /// Moves everything to the beginning of a place.
    fn relocate(&mut self) {
        // (first address, what is taken off)
        let mut shifts: Vec<(u64, u64)> = Vec::new();
        let mut end = 0;
        let mut was = 0;
        for (s, e) in self.used.iter() {
            let off = match shifts.last() {
                None => s - s % ALIGN,
                Some((_, off)) => {
                    let gap = s - was;
                    // The same place within 2 MiB, and 2 MiB at least where there were.
                    off + if gap >= 2 * ALIGN { gap - ALIGN - gap % ALIGN } else { 0 }
                }
            };
            shifts.push((s, off));
            end = e - off;
            was = e;
        }
        let to = |a: u64| {
            let i = shifts.partition_point(|(s, _)| *s <= a);
            a - shifts[i.saturating_sub(1)].1
        };
        for b in &mut self.p.beats {
            if b.touch != NO_TOUCH {
                b.touch = to(b.touch);
            }
            match &mut b.act {
                Act::Map { at, .. } | Act::Unmap { at, .. } | Act::Protect { at, .. } | Act::Advise { at, .. } => {
                    *at = to(*at)
                }
                Act::Remap { at, to: dest, .. } => {
                    *at = to(*at);
                    *dest = to(*dest);
                }
            }
        }
        // Neighbouring places do not touch.
        self.p.span = end.next_multiple_of(ALIGN) + ALIGN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::normalise::normalise;
    use crate::trace::parse::parse;

    fn program(text: &str) -> Program {
        let log = parse("t.log", format!("{}\n", text.trim_end()).as_bytes());
        assert_eq!(log.problems, []);
        Program::new(&normalise(&log, 0)).unwrap()
    }

    fn map(at: u64, pages: u64, prot: u32) -> Act {
        Act::Map { at, pages, prot, noreserve: false }
    }

    #[test]
    fn far_places_come_near_and_neighbours_stay() {
        let p = program(
            "1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x555555555000\n\
             1 mmap(NULL, 4096, 0x1, 0x4022, -1, 0) = 0x7ffff7fff000\n\
             1 mprotect(0x555555556000, 4096, 0x1) = 0\n\
             1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7ffff8000000\n\
             1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7ffff8100000\n",
        );
        let at: Vec<u64> = p
            .beats
            .iter()
            .map(|b| match b.act {
                Act::Map { at, .. } | Act::Protect { at, .. } => at,
                a => panic!("{a:?}"),
            })
            .collect();
        let second = at[1];
        assert_eq!(at[0], 0x15_5000);
        assert_eq!(at[2], 0x15_6000);
        assert_eq!(second % ALIGN, 0x1f_f000, "the place within 2 MiB stays");
        assert!(second - (at[0] + 8192) >= ALIGN && second < 8 << 20, "{second:#x}");
        assert_eq!(at[3], second + PAGE, "neighbours stay");
        assert_eq!(at[4], second + PAGE + (1 << 20), "small holes stay");
        assert_eq!(p.beats[1].act, Act::Map { at: second, pages: 1, prot: 1, noreserve: true });
        assert!(p.span >= at[4] + PAGE + ALIGN && p.span.is_multiple_of(ALIGN));
        assert_eq!(p.faults, 3);
    }

    #[test]
    fn a_page_that_is_there_is_not_written_again() {
        let p = program(
            "1 mmap(NULL, 16384, 0x3, 0x22, -1, 0) = 0x200000\n\
             1 mprotect(0x200000, 16384, 0x1) = 0\n\
             1 mprotect(0x200000, 16384, 0x3) = 0\n\
             1 mprotect(0x201000, 4096, 0x3) = 0\n\
             1 madvise(0x200000, 8192, MADV_DONTNEED) = 0\n\
             1 mprotect(0x200000, 4096, 0x3) = 0\n\
             1 mremap(0x200000, 16384, 8192, 0) = 0x200000\n\
             1 mremap(0x200000, 8192, 16384, MREMAP_MAYMOVE) = 0x900000\n\
             1 mprotect(0x900000, 4096, 0x3) = 0\n\
             1 mprotect(0x901000, 4096, 0x3) = 0\n\
             1 munmap(0x900000, 16384) = 0\n\
             1 mmap(NULL, 16384, 0x3, 0x22, -1, 0) = 0x900000\n",
        );
        let touched: Vec<bool> = p.beats.iter().map(|b| b.touch != NO_TOUCH).collect();
        assert_eq!(touched, [true, false, false, true, false, true, false, false, false, true, false, true]);
        assert_eq!(p.faults, 5);
    }

    #[test]
    fn the_largest_address_space_with_what_it_inherited() {
        let p = program(
            "1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x200000\n\
             1 brk(NULL) = 0x400000\n\
             1 brk(0x402000) = 0x402000\n\
             1 fork() = 2\n\
             1 munmap(0x200000, 4096) = 0\n\
             2 brk(0x401000) = 0x401000\n\
             2 mprotect(0x200000, 4096, 0x1) = 0\n\
             2 munmap(0x999, 4096) = -1 EINVAL (x)\n\
             2 mlock(0x200000, 4096) = 0\n\
             2 mmap(NULL, 4096, 0x1, 0x2, 3</lib/x>, 0) = 0x300000\n",
        );
        let acts: Vec<Act> = p.beats.iter().map(|b| b.act).collect();
        assert_eq!(
            acts,
            [
                map(0, 1, 3),
                map(0x20_0000, 2, 3),
                Act::Unmap { at: 0x20_1000, pages: 1 },
                Act::Protect { at: 0, pages: 1, prot: 1 },
                map(0x10_0000, 1, 1),
            ]
        );
        assert_eq!((p.skipped, p.files, p.breaks, p.elsewhere), (2, 1, 2, 1));
    }

    #[test]
    fn a_trace_without_calls_is_refused() {
        let log = parse("t.log", "1 brk(NULL) = 0x1000\n".as_bytes());
        let e = Program::new(&normalise(&log, 0)).unwrap_err();
        assert!(e.starts_with("t.log: no call"), "{e}");
    }
}
