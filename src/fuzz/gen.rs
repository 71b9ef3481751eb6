// SPDX-License-Identifier: GPL-2.0-only
//! Random calls that get into each other's way.
//!
//! Most addresses are borders of VMAs that are there, most ranges end at another border, and a round uses few
//! combinations of rights and flags: so ranges meet that may merge. Each round has its own mix: some fork, some lock, some
//! run at the limit of VMAs, some use files. A few arguments in a hundred are unaligned, empty, overflowing or unknown.
//!
//! INVARIANT: nothing is asked that the kernel may answer with a place of its own choice ([`allowed`]), and nothing that
//! reaches outside the window.

use super::backend::{FILES, Limit, MAX_DEPTH, MAX_PAGES, OFFSETS, PAGE, Resource, Setup, WINDOW};
use super::place::{self, Place};
use super::probe::{Feature, Features};
use crate::cpu::splitmix64;
use crate::mm::madvise::{MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE};
use crate::mm::mm_types::{TASK_SIZE, VM_GROWSDOWN, VM_WRITE};
use crate::mm::{Call, MmRules, VmaInfo};

const MAYMOVE: u32 = 1;
const FIXED: u32 = 2;
const DONTUNMAP: u32 = 4;
/// Guard gap of stacks.
const GAP: u64 = 256 * PAGE;

/// A random sequence.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }
    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix64(self.0)
    }
    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(n)) >> 64) as u64
    }
    /// True `n` times in a hundred.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
    /// One of `of`.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What a round is made of: weights by kind of call, in the order of [`Kind`].
type Weights = [u32; 14];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mmap,
    Munmap,
    Mprotect,
    Madvise,
    Mremap,
    Brk,
    Mlock,
    Munlock,
    Mlockall,
    Mseal,
    Read,
    Write,
    Fork,
    Exit,
}

const KINDS: [Kind; 14] = [
    Kind::Mmap,
    Kind::Munmap,
    Kind::Mprotect,
    Kind::Madvise,
    Kind::Mremap,
    Kind::Brk,
    Kind::Mlock,
    Kind::Munlock,
    Kind::Mlockall,
    Kind::Mseal,
    Kind::Read,
    Kind::Write,
    Kind::Fork,
    Kind::Exit,
];

/// Plain, faults and protections, moves, locks, forks, moves by children, advice.
const PROFILES: [Weights; 7] = [
    [300, 150, 200, 100, 80, 30, 30, 20, 0, 0, 40, 200, 0, 0],
    [250, 80, 350, 40, 30, 20, 0, 0, 0, 0, 50, 350, 0, 0],
    [250, 80, 60, 30, 400, 10, 10, 5, 0, 0, 50, 250, 0, 0],
    [250, 80, 150, 60, 80, 30, 150, 120, 4, 4, 50, 200, 0, 0],
    [250, 80, 150, 100, 120, 20, 20, 10, 0, 1, 80, 250, 40, 30],
    [200, 40, 60, 20, 400, 10, 10, 5, 0, 0, 30, 250, 60, 40],
    [250, 60, 80, 400, 40, 10, 20, 20, 0, 4, 100, 200, 4, 4],
];

/// Draws the calls of a round.
#[derive(Clone, Debug)]
pub struct Gen {
    rng: Rng,
    setup: Setup,
    weights: Weights,
    prots: Vec<u32>,
    extras: Vec<u32>,
    advice: Vec<i32>,
    /// Of a hundred mappings, how many map a file or shared memory.
    files: u64,
    stacks: bool,
    droppable: bool,
    /// Whether the process says what may be executed.
    mdwe: bool,
    depth: usize,
    /// Moves made: from, bytes, to. Some are made back, because what comes home may merge again.
    moves: Vec<(u64, u64, u64)>,
    /// A round about placement.
    place: Option<Place>,
}

impl Gen {
    /// The round that `seed` stands for. `rules` are those of the kernel.
    pub fn new(seed: u64, rules: MmRules, features: &Features) -> Self {
        let mut rng = Rng::new(seed);
        let has = |f: Feature| features.has(f);
        let room = (has(Feature::Room) && rng.percent(features.at_limit)).then(|| 8 + rng.below(16) as u32);
        let mut heap = has(Feature::Heap) && rng.percent(60);
        let mut pages = 24 + rng.below(41) as u32;
        if features.bare.is_some() && rng.percent(50) {
            // So many ranges that a tree has several levels.
            pages = 65 + rng.below(u64::from(MAX_PAGES) - 64) as u32;
        }
        let limited = has(Feature::Rlimit) && room.is_none() && rng.percent(15);
        let limit = limited.then(|| Limit { of: rng.pick(&Resource::ALL), pages: rng.below(u64::from(pages)) as u32 });
        let short_of = |r: Resource| limit.is_some_and(|l| l.of == r);
        // brk(2) also compares with the limit what the program's own data are, and the helper's are not the port's.
        heap &= !short_of(Resource::Data) && !short_of(Resource::DataHard);
        // A system call's access faults under mmap_lock, the processor's mostly not: only one of them is what is counted.
        let touch = has(Feature::Touch) && (rng.percent(50) || features.counted != 0);
        let mut setup = Setup {
            room,
            heap,
            limit,
            touch,
            counted: features.counted,
            bare: features.bare,
            ..Setup::plain(rules, pages)
        };
        if setup.bare.is_some() {
            setup.crowd = rng.pick(&[0, 30, 120, 400]);
        }
        let place = features.place.as_ref().map(|(space, with)| Place::new(&mut rng, space, *with));
        if place.is_some() {
            setup = place::setup(rules);
        }
        let mut weights = PROFILES[rng.below(PROFILES.len() as u64) as usize];
        let mut off = |kinds: &[Kind]| {
            for k in kinds {
                weights[*k as usize] = 0;
            }
        };
        if !heap {
            off(&[Kind::Brk]);
        }
        let whole =
            [(Feature::Mprotect, Kind::Mprotect), (Feature::Madvise, Kind::Madvise), (Feature::Mremap, Kind::Mremap)];
        for (f, kind) in whole {
            if !has(f) {
                off(&[kind]);
            }
        }
        let mlock = has(Feature::Mlock) || short_of(Resource::Memlock);
        if !mlock {
            off(&[Kind::Mlock, Kind::Munlock, Kind::Mlockall]);
        }
        // It reaches what the helper has outside the window: a limit would meet that first.
        if !has(Feature::Mlockall) || room.is_some() || limit.is_some() {
            off(&[Kind::Mlockall]);
        }
        if !has(Feature::Mseal) || rng.percent(50) {
            off(&[Kind::Mseal]);
        }
        // A fork at the limit would copy all that fills the address space.
        if !has(Feature::Fork) || room.is_some() {
            off(&[Kind::Fork, Kind::Exit]);
        }
        // Few combinations, so that ranges meet their like.
        let all_prots = [3, 3, 3, 1, 1, 0, 0, 5, 7, 2];
        let mut prots: Vec<u32> = (0..2 + rng.below(3)).map(|_| rng.pick(&all_prots)).collect();
        let mdwe = has(Feature::Mdwe) && rng.percent(15);
        if mdwe {
            prots.extend([5, 7]);
        }
        let all_extras =
            [0, 0, 0, 0, libc::MAP_NORESERVE, libc::MAP_STACK, libc::MAP_LOCKED, libc::MAP_POPULATE].map(|f| f as u32);
        let mut extras: Vec<u32> = (0..2 + rng.below(4)).map(|_| rng.pick(&all_extras)).collect();
        if short_of(Resource::Memlock) {
            extras.push(libc::MAP_LOCKED as u32);
            for k in [Kind::Mlock, Kind::Munlock] {
                weights[k as usize] = weights[k as usize].max(60);
            }
        }
        for (has, flag) in [(mlock, libc::MAP_LOCKED), (has(Feature::Populate), libc::MAP_POPULATE)] {
            if !has {
                extras.retain(|e| *e != flag as u32);
                extras.push(0);
            }
        }
        let known = features.advice();
        let mut advice: Vec<i32> = (0..2 + rng.below(6)).map(|_| rng.pick(&known)).collect();
        let files = if has(Feature::Files) { rng.pick(&[0, 0, 10, 30, 60]) } else { 0 };
        let stacks = has(Feature::Stacks) && rng.percent(20);
        let droppable = has(Feature::Droppable) && rng.percent(10);
        if droppable {
            // Whether what later mappings get by mlockall() reaches droppable memory moved between versions.
            weights[Kind::Mlockall as usize] = 0;
        }
        // Reclaim drops what may be dropped: when, is nobody's rule.
        if droppable || advice.contains(&libc::MADV_FREE) {
            advice.retain(|a| *a != libc::MADV_PAGEOUT);
            advice.push(libc::MADV_DONTNEED);
        }
        Gen {
            rng,
            setup,
            weights,
            prots,
            extras,
            advice,
            files,
            stacks,
            droppable,
            mdwe,
            depth: 1,
            moves: Vec::new(),
            place,
        }
    }

    /// How the round begins.
    pub fn setup(&self) -> Setup {
        self.setup
    }

    /// Another window than the one drawn.
    pub fn set_pages(&mut self, pages: u32) {
        self.setup.pages = pages;
    }

    /// How many calls it should have.
    pub fn length(&mut self) -> u64 {
        let most = if self.setup.bare.is_some() { 3 * u64::from(self.setup.pages).max(130) } else { 400 };
        if self.setup.room.is_some() || self.place.is_some() { 400 } else { 60 + self.rng.below(most - 60) }
    }

    /// The next call, given what is mapped.
    pub fn next(&mut self, view: &[VmaInfo]) -> Call {
        if let Some(p) = &mut self.place {
            return p.next(&mut self.rng, view);
        }
        loop {
            let c = self.draw(view);
            if allowed(&c, view, &self.setup) {
                match c {
                    Call::Fork => self.depth += 1,
                    Call::Exit => self.depth -= 1,
                    Call::Mremap { addr, old_len, new_len, flags, new_addr } if flags & FIXED != 0 => {
                        self.moves.push((addr, old_len.min(new_len), new_addr));
                    }
                    _ => {}
                }
                return c;
            }
        }
    }

    fn kind(&mut self) -> Kind {
        let mut at = self.rng.below(self.weights.iter().map(|w| u64::from(*w)).sum());
        for k in KINDS {
            let w = u64::from(self.weights[k as usize]);
            if at < w {
                return k;
            }
            at -= w;
        }
        Kind::Write
    }

    fn draw(&mut self, view: &[VmaInfo]) -> Call {
        let odd = self.rng.percent(3);
        if self.mdwe && self.rng.percent(3) {
            return match self.rng.below(4) {
                0 => Call::Mdwe { bits: self.rng.pick(&[1, 1, 3, 3, 0, 2, 4]) },
                n => Call::Personality { read_implies_exec: n == 1 },
            };
        }
        match self.kind() {
            Kind::Mmap => self.mmap(view, odd),
            Kind::Munmap => {
                let (addr, len) = self.range(view, odd);
                Call::Munmap { addr, len }
            }
            Kind::Mprotect => {
                let (addr, len) = self.mapped(view, odd);
                let mut prot = self.prot();
                if self.rng.percent(1) {
                    prot |= self.rng.pick(&[8, 0x10, 0x100_0000, 0x200_0000, 0x300_0000]);
                }
                Call::Mprotect { addr, len, prot }
            }
            Kind::Madvise => {
                let (addr, len) = self.range(view, odd);
                let advice = if self.rng.percent(1) {
                    self.rng.pick(&[-1, 5, 7, 26, 99, 1000])
                } else {
                    self.rng.pick(&self.advice.clone())
                };
                Call::Madvise { addr, len, advice }
            }
            Kind::Mremap => self.mremap(view, odd),
            Kind::Brk => {
                let from = self.setup.start_brk();
                let room = self.setup.end() - from;
                let to =
                    if self.rng.percent(5) { from - 1 - self.rng.below(PAGE) } else { from + self.rng.below(room + 1) };
                Call::Brk { to: if self.rng.percent(30) { to } else { to & !(PAGE - 1) } }
            }
            Kind::Mlock => {
                let (addr, len) = self.mapped(view, odd);
                let flags = if self.rng.percent(1) { 2 } else { u32::from(self.rng.percent(30)) };
                Call::Mlock { addr, len, flags }
            }
            Kind::Munlock => {
                let (addr, len) = self.mapped(view, odd);
                Call::Munlock { addr, len }
            }
            Kind::Mlockall if self.rng.percent(50) => Call::Munlockall,
            Kind::Mlockall => Call::Mlockall { flags: self.rng.pick(&[1, 1, 2, 3, 5, 6, 7, 0, 4, 8]) },
            Kind::Mseal => {
                let (addr, len) = self.mapped(view, odd);
                let len = if odd { len } else { len.min(4 * PAGE) };
                Call::Mseal { addr, len }
            }
            Kind::Read => Call::Read { addr: self.byte(view) },
            Kind::Write => Call::Write { addr: self.byte(view), value: self.rng.word() as u8 },
            Kind::Fork if self.depth < MAX_DEPTH => Call::Fork,
            Kind::Exit | Kind::Fork if self.depth > 1 => Call::Exit,
            Kind::Exit | Kind::Fork => Call::Fork,
        }
    }

    fn prot(&mut self) -> u32 {
        if self.rng.percent(5) { self.rng.pick(&[0, 1, 2, 3, 5, 6, 7]) } else { self.rng.pick(&self.prots.clone()) }
    }

    /// A page of the window.
    fn page(&mut self, view: &[VmaInfo]) -> u64 {
        let last = u64::from(self.setup.pages) - 1;
        if view.is_empty() || self.rng.percent(35) {
            return self.rng.below(last + 1);
        }
        let v = &view[self.rng.below(view.len() as u64) as usize];
        let at = if self.rng.percent(50) { v.start } else { v.end };
        let mut p = at.saturating_sub(WINDOW) / PAGE;
        if self.rng.percent(25) {
            p = (p + self.rng.below(3)).saturating_sub(1);
        }
        p.min(last)
    }

    /// First address and bytes of a range in the window.
    fn range(&mut self, view: &[VmaInfo], odd: bool) -> (u64, u64) {
        let pages = u64::from(self.setup.pages);
        let (first, n) = match self.rng.below(10) {
            // One VMA, or two neighbours.
            0..=2 if !view.is_empty() => {
                let i = self.rng.below(view.len() as u64) as usize;
                let j = if self.rng.percent(30) { (i + 1).min(view.len() - 1) } else { i };
                let first = view[i].start.saturating_sub(WINDOW) / PAGE;
                (first, view[j].end.saturating_sub(WINDOW) / PAGE - first)
            }
            // From border to border.
            3..=4 => {
                let (a, b) = (self.page(view), self.page(view));
                (a.min(b), a.abs_diff(b).max(1))
            }
            _ => {
                let first = self.page(view);
                let mut n = 1;
                while n < 12 && self.rng.percent(60) {
                    n += 1;
                }
                (first, n)
            }
        };
        let first = first.min(pages - 1);
        let n = n.clamp(1, pages - first);
        let (mut addr, mut len) = (WINDOW + first * PAGE, n * PAGE);
        if odd {
            match self.rng.below(8) {
                0 => addr += 1 + self.rng.below(PAGE - 1),
                1 => len = 0,
                2 => len = u64::MAX - self.rng.below(2 * PAGE),
                3 => len = TASK_SIZE - self.rng.below(2) * addr,
                4 => len = 1 << 63,
                5 => len = TASK_SIZE + PAGE,
                _ => len -= 1 + self.rng.below(PAGE - 1),
            }
        }
        (addr, len)
    }

    /// As [`Gen::range`], for calls that end at holes: mostly cut at the first one.
    fn mapped(&mut self, view: &[VmaInfo], odd: bool) -> (u64, u64) {
        let (addr, len) = self.range(view, odd);
        if odd || self.rng.percent(20) {
            return (addr, len);
        }
        let Some(i) = view.iter().position(|v| v.end > addr) else { return (addr, len) };
        let addr = addr.max(view[i].start);
        let mut end = addr;
        for v in view[i..].iter().take_while(|v| v.start < addr + len) {
            if v.start > end {
                break;
            }
            end = v.end;
        }
        if end <= addr || end > self.setup.end() { (addr, len.min(PAGE)) } else { (addr, len.min(end - addr)) }
    }

    /// The address of a byte: mostly one that is mapped, mostly writable.
    fn byte(&mut self, view: &[VmaInfo]) -> u64 {
        let offset = self.rng.pick(&OFFSETS);
        if !view.is_empty() && self.rng.percent(90) {
            for _ in 0..12 {
                let v = &view[self.rng.below(view.len() as u64) as usize];
                let page = self.rng.below((v.end - v.start) / PAGE);
                let addr = v.start + page * PAGE;
                if (v.flags & VM_WRITE != 0 || self.rng.percent(3)) && (WINDOW..self.setup.end()).contains(&addr) {
                    return addr + offset;
                }
            }
        }
        WINDOW + self.page(view) * PAGE + offset
    }

    fn mmap(&mut self, view: &[VmaInfo], odd: bool) -> Call {
        let (addr, len) = self.range(view, odd);
        let prot = self.prot();
        let mut flags = self.rng.pick(&self.extras.clone());
        let place = match self.rng.below(100) {
            0..84 => libc::MAP_FIXED,
            84..92 => libc::MAP_FIXED_NOREPLACE,
            _ => 0,
        };
        flags |= place as u32;
        let (mut fd, mut offset) = (None, 0);
        if self.rng.percent(self.files) {
            if self.rng.percent(30) {
                flags |= (libc::MAP_ANONYMOUS | libc::MAP_SHARED) as u32;
            } else {
                fd = Some(self.rng.below(FILES.len() as u64) as u32);
                flags |= self.rng.pick(&[1, 1, 2, 2, 2, 3]);
                // Mostly where it continues what is before it, as if the window were the file.
                let linear = (addr - WINDOW) / PAGE;
                let page = if self.rng.percent(60) { linear } else { self.rng.below(8) };
                offset = page * PAGE;
            }
        } else if self.droppable && self.rng.percent(40) {
            flags |= libc::MAP_ANONYMOUS as u32 | 8;
        } else {
            flags |= (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u32;
        }
        if self.stacks && self.rng.percent(30) {
            flags |= libc::MAP_GROWSDOWN as u32;
        }
        if odd {
            match self.rng.below(6) {
                0 => flags &= !0xf,
                1 => flags |= 0xf,
                2 => flags &= !(libc::MAP_ANONYMOUS as u32),
                3 => offset += 1 + self.rng.below(PAGE - 1),
                4 => offset = 0u64.wrapping_sub(PAGE * (1 + self.rng.below(4))),
                _ => {}
            }
        }
        Call::Mmap { addr, len, prot, flags, fd, offset }
    }

    fn mremap(&mut self, view: &[VmaInfo], odd: bool) -> Call {
        if !odd && !self.moves.is_empty() && self.rng.percent(25) {
            let last = self.moves.len() - 1;
            let back = last - (self.rng.below(4) as usize).min(last);
            let (from, len, to) = self.moves[back];
            return Call::Mremap { addr: to, old_len: len, new_len: len, flags: MAYMOVE | FIXED, new_addr: from };
        }
        let (addr, old_len) = self.range(view, odd);
        let (mut new_addr, other) = self.range(view, false);
        let room = self.setup.end().saturating_sub(addr);
        let (mut old_len, mut new_len) = (old_len, old_len);
        let mut flags = match self.rng.below(20) {
            // Grow or shrink in place.
            0..=4 => {
                new_len = if self.rng.percent(50) { other } else { old_len.saturating_add(self.rng.below(4) * PAGE) };
                new_len = new_len.min(room);
                self.rng.pick(&[0, MAYMOVE])
            }
            5..=6 => self.rng.pick(&[0, MAYMOVE]),
            // Move, as it is or resized.
            7..=12 => MAYMOVE | FIXED,
            13..=14 => {
                new_len = other;
                MAYMOVE | FIXED
            }
            15 => {
                old_len = 0;
                new_len = other;
                MAYMOVE | FIXED
            }
            16..=17 => MAYMOVE | FIXED | DONTUNMAP,
            18 => MAYMOVE | DONTUNMAP,
            _ => FIXED,
        };
        new_addr = new_addr.min(self.setup.end().saturating_sub(new_len));
        if odd {
            match self.rng.below(5) {
                0 => flags |= 8 << self.rng.below(8),
                1 => new_addr = new_addr.wrapping_add(1 + self.rng.below(PAGE - 1)),
                2 => new_len = 0,
                3 => new_len = TASK_SIZE + PAGE * (1 + self.rng.below(2)),
                _ => flags &= !MAYMOVE,
            }
        }
        Call::Mremap { addr, old_len, new_len, flags, new_addr }
    }
}

/// Whether `[start, end)` is free, the guard gap of a stack above it included.
fn free(view: &[VmaInfo], start: u64, end: u64, gap: bool) -> bool {
    let floor = |v: &VmaInfo| if gap && v.flags & VM_GROWSDOWN != 0 { v.start.saturating_sub(GAP) } else { v.start };
    view.iter().all(|v| v.end <= start || floor(v) >= end)
}

/// Whether `c` may be asked where `view` is mapped: its answer is the rules' and not the kernel's free choice, it stays in
/// the window, and nothing that protection keys would change is in it.
pub fn allowed(c: &Call, view: &[VmaInfo], setup: &Setup) -> bool {
    if setup.everywhere {
        return place::may(c, view);
    }
    let end = setup.end();
    let align = |len: u64| len.checked_add(PAGE - 1).map(|l| l & !(PAGE - 1));
    let fits = |addr: u64, len: u64| align(len).and_then(|l| addr.checked_add(l)).is_some_and(|e| e <= end);
    // Execute alone takes a key where the processor has keys.
    let keyed = |prot: u32| prot & 7 == 4;
    if !super::helper::safe(c, end) {
        return false;
    }
    match *c {
        Call::Brk { .. } => setup.heap,
        Call::Mmap { prot, .. } | Call::Mprotect { prot, .. } if keyed(prot) => false,
        Call::Mmap { addr, len, flags, .. } => {
            let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u32 != 0;
            let at = addr & !(PAGE - 1);
            fixed
                || len == 0
                || len > TASK_SIZE
                || addr >= WINDOW && fits(at, len) && free(view, at, at + align(len).unwrap_or(0), true)
        }
        Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let (Some(old), Some(new)) = (align(old_len), align(new_len)) else { return flags & MAYMOVE == 0 };
            if flags & (FIXED | DONTUNMAP) == DONTUNMAP {
                return fits(new_addr & !(PAGE - 1), new)
                    && free(view, new_addr & !(PAGE - 1), (new_addr & !(PAGE - 1)) + new, true);
            }
            if flags & FIXED != 0 || new <= old || new == 0 {
                return true;
            }
            if !fits(addr, new) {
                return new > TASK_SIZE;
            }
            let ends = view.iter().any(|v| v.start <= addr && v.end == addr.wrapping_add(old));
            flags & MAYMOVE == 0 || ends && free(view, addr + old, addr + new, false)
        }
        _ => true,
    }
}

/// Advice that changes nothing but how the kernel treats pages, advice that changes VMAs, advice that discards: what a
/// round picks from where the host knows it.
pub const ADVICE: &[i32] = &[
    libc::MADV_NORMAL,
    libc::MADV_RANDOM,
    libc::MADV_SEQUENTIAL,
    libc::MADV_WILLNEED,
    libc::MADV_DONTNEED,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_REMOVE,
    libc::MADV_DONTFORK,
    libc::MADV_DOFORK,
    libc::MADV_MERGEABLE,
    libc::MADV_UNMERGEABLE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    libc::MADV_DODUMP,
    libc::MADV_WIPEONFORK,
    libc::MADV_KEEPONFORK,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_POPULATE_READ,
    libc::MADV_POPULATE_WRITE,
    MADV_DONTNEED_LOCKED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
];
