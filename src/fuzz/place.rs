// SPDX-License-Identifier: GPL-2.0-only
//! Rounds about placement: calls whose address the kernel chooses, in the helper's real address space.
//!
//! The port begins with what the helper's process has mapped, so that both choose among the same gaps. Drawn are mmap
//! without an address, with hints near what is mapped, and with MAP_FIXED_NOREPLACE; below 2 GiB (`MAP_32BIT`) and above
//! 4 GiB; stacks, that keep a gap below them; sizes of whole huge pages, which are aligned; sizes that fit nowhere; munmap;
//! mremap that moves. Some rounds begin by filling nearly all gaps: then the search from the top fails, and the one from
//! the bottom begins.
//!
//! INVARIANT: nothing is overwritten and only what the round mapped is unmapped ([`may`]); no byte is touched.
//!
//! It cannot tell: hints below the lowest address as another user, and what an address space with five levels or an
//! unlimited stack (searched from the bottom up) does.

use super::backend::{FILES, PAGE, Promise, Setup, Space};
use super::r#gen::Rng;
use crate::mm::mm_types::{TASK_SIZE, VM_GROWSDOWN};
use crate::mm::mmap::MAP_32BIT;
use crate::mm::{Call, VmaInfo};

const HUGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// Guard gap of stacks.
const GAP: u64 = 256 * PAGE;
/// More VMAs of its own than this a round does not have.
const MANY: usize = 60;
/// The lowest address that is asked for with MAP_FIXED_NOREPLACE.
const LOWEST: u64 = 0x1_0000;

/// What a host lets be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placing {
    /// Sizes of whole huge pages are aligned. Where they are not, none is asked for.
    pub huge: bool,
    /// Shared memory is placed as any other. Where it is not (its huge pages are on), none is mapped.
    pub shared: bool,
}

/// Draws the calls of a round about placement.
#[derive(Clone, Debug)]
pub struct Place {
    space: Space,
    with: Placing,
    /// Calls that fill gaps, from the last to the first.
    fill: Vec<Call>,
}

impl Place {
    /// A round in `space`.
    pub fn new(rng: &mut Rng, space: &Space, with: Placing) -> Self {
        let mut p = Place { space: space.clone(), with, fill: Vec::new() };
        // A process that is not randomised has its lowest place at a known address; the other's search is not drawn.
        if !space.randomised && rng.percent(25) {
            p.fill(rng);
        }
        p
    }

    /// Fills the gaps but for a few hundred pages here and there.
    fn fill(&mut self, rng: &mut Rng) {
        let mut at = LOWEST;
        let top = self.space.mmap_base;
        let mut ends: Vec<(u64, u64)> = self.space.mapped.iter().map(|m| (m.0, m.1)).collect();
        ends.push((top, TASK_SIZE));
        for (start, end) in ends {
            let mut room = start.min(top).saturating_sub(at);
            while room > 64 * PAGE {
                let pages = match rng.below(3) {
                    0 => 0,
                    1 => rng.below(8),
                    _ => rng.below(1200),
                };
                let left = pages * PAGE;
                let len = match rng.below(3) {
                    0 => (room / 2) & !(PAGE - 1),
                    _ => room.saturating_sub(left),
                };
                if len == 0 {
                    break;
                }
                let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE)
                    as u32
                    | if rng.percent(10) { libc::MAP_GROWSDOWN as u32 } else { 0 };
                self.fill.push(Call::Mmap { addr: at, len, prot: 0, flags, fd: None, offset: 0 });
                at += len + left;
                room = start.min(top).saturating_sub(at);
            }
            at = at.max(end);
        }
        self.fill.reverse();
    }

    /// The next call, given what the round has mapped.
    pub fn next(&mut self, rng: &mut Rng, own: &[VmaInfo]) -> Call {
        if let Some(c) = self.fill.pop() {
            return c;
        }
        loop {
            let c = match rng.below(100) {
                n if own.is_empty() || n < 55 && own.len() < MANY => self.mmap(rng, own),
                n if n < 85 || own.len() >= MANY => {
                    let (addr, len) = part(rng, own);
                    Call::Munmap { addr, len }
                }
                _ => self.mremap(rng, own),
            };
            if may(&c, own) {
                return c;
            }
        }
    }

    fn len(&self, rng: &mut Rng) -> u64 {
        let len = match rng.below(20) {
            0..=6 => PAGE * (1 + rng.below(16)),
            7..=9 => PAGE * (1 + rng.below(700)),
            10..=13 => HUGE * (1 + rng.below(4)),
            14..=15 => (HUGE * (1 + rng.below(4))).wrapping_add_signed(PAGE as i64 * (rng.below(5) as i64 - 2)),
            16..=17 => PAGE * (1 + rng.below(GIB * 3 / PAGE)),
            18 => HUGE * (1 + rng.below(GIB * 64 / HUGE)),
            _ => PAGE * (1 + rng.below(TASK_SIZE / PAGE)),
        };
        let len = if !self.with.huge && len.is_multiple_of(HUGE) { len + PAGE } else { len };
        if rng.percent(2) { len - 1 - rng.below(PAGE - 1) } else { len }
    }

    /// An address near the borders of something, for `len` bytes.
    fn near(&self, rng: &mut Rng, own: &[VmaInfo], len: u64) -> u64 {
        let fixed = [1 << 30, 2 << 30, 4 << 30, self.space.mmap_base, TASK_SIZE, 1 << 45, LOWEST];
        let border = match rng.below(10) {
            0..=4 if !own.is_empty() => {
                let v = rng.pick(own);
                if rng.percent(50) { v.start } else { v.end }
            }
            0..=7 if !self.space.mapped.is_empty() => {
                let m = rng.pick(&self.space.mapped);
                if rng.percent(50) { m.0 } else { m.1 }
            }
            8 => rng.below(TASK_SIZE / PAGE) * PAGE,
            _ => rng.pick(&fixed),
        };
        let page = PAGE as i64;
        let near = rng.pick(&[0, 0, page, -page, 2 * page, -(GAP as i64), -(GAP as i64) - page, page - (GAP as i64)]);
        let below = if rng.percent(60) { len } else { 0 };
        let addr = border.wrapping_add_signed(near).wrapping_sub(below) & !(PAGE - 1);
        let addr = if addr >= 1 << 63 { 0 } else { addr };
        if rng.percent(10) { addr + rng.below(PAGE) } else { addr }
    }

    fn mmap(&self, rng: &mut Rng, own: &[VmaInfo]) -> Call {
        let len = self.len(rng);
        let (mut addr, mut flags) = match rng.below(10) {
            0..=4 => (0, 0),
            5..=7 => (self.near(rng, own, len), 0),
            _ => (self.near(rng, own, len) & !(PAGE - 1), libc::MAP_FIXED_NOREPLACE as u32),
        };
        if flags != 0 {
            addr = addr.max(LOWEST);
        }
        let mut prot = rng.pick(&[0, 1, 3, 3]);
        let (mut fd, mut offset) = (None, 0);
        let kind = rng.below(100);
        if self.with.shared && kind < 15 && len < 8 * HUGE {
            flags |= (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32;
        } else if self.with.shared && kind < 30 {
            fd = Some(rng.below(FILES.len() as u64) as u32);
            offset = rng.pick(&[0, PAGE, 16 * PAGE, HUGE, HUGE + PAGE]);
            flags |= if len < 8 * HUGE { rng.pick(&[1, 2]) } else { 1 };
            prot = rng.pick(&[0, 1]);
        } else {
            flags |= (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
            if rng.percent(12) {
                flags |= libc::MAP_GROWSDOWN as u32;
            }
            if rng.percent(10) {
                flags |= libc::MAP_STACK as u32;
            }
        }
        if len >= 8 * HUGE {
            // Nothing that memory would have to be there for.
            prot = 0;
            flags |= libc::MAP_NORESERVE as u32;
        }
        // A process that is randomised has another arena for each call. Other processors' kernels have no such flag.
        if cfg!(target_arch = "x86_64") && !self.space.randomised && rng.percent(15) {
            flags |= MAP_32BIT;
        }
        if rng.percent(4) {
            flags |= MAP_ABOVE4G;
        }
        Call::Mmap { addr, len, prot, flags, fd, offset }
    }

    fn mremap(&self, rng: &mut Rng, own: &[VmaInfo]) -> Call {
        const MAYMOVE: u32 = 1;
        const DONTUNMAP: u32 = 4;
        let (addr, old_len) = part(rng, own);
        if rng.percent(25) {
            // Not rounded up as mmap's hint is: below the lowest it is a question of rights.
            let near = (self.near(rng, own, old_len) & !(PAGE - 1)).max(LOWEST);
            let new_addr = if rng.percent(60) { near } else { 0 };
            return Call::Mremap { addr, old_len, new_len: old_len, flags: MAYMOVE | DONTUNMAP, new_addr };
        }
        let new_len = if rng.percent(50) { old_len + PAGE * (1 + rng.below(64)) } else { self.len(rng) };
        // It may be of memory that is promised.
        let new_len = if self.space.promise == Promise::Shared { new_len.min(8 * HUGE) } else { new_len };
        Call::Mremap { addr, old_len, new_len, flags: if rng.percent(90) { MAYMOVE } else { 0 }, new_addr: 0 }
    }
}

/// `MAP_ABOVE4G`
const MAP_ABOVE4G: u32 = 0x80;

/// A VMA of the round, or a part of one.
fn part(rng: &mut Rng, own: &[VmaInfo]) -> (u64, u64) {
    let v = rng.pick(own);
    let pages = (v.end - v.start) / PAGE;
    if rng.percent(60) {
        return (v.start, v.end - v.start);
    }
    let first = if rng.percent(40) { 0 } else { rng.below(pages) };
    let n = if rng.percent(40) { pages - first } else { 1 + rng.below(pages - first) };
    (v.start + first * PAGE, n * PAGE)
}

/// Whether `c` may be asked in a round about placement that has `own` mapped: what it unmaps or moves is the round's.
pub fn may(c: &Call, own: &[VmaInfo]) -> bool {
    let inside = |addr: u64, len: u64| {
        let Some(end) = len.checked_add(PAGE - 1).and_then(|l| addr.checked_add(l)).map(|e| e & !(PAGE - 1)) else {
            return false;
        };
        let mut at = addr;
        for v in own {
            if v.start <= at && at < v.end {
                at = v.end;
            }
        }
        len != 0 && at >= end
    };
    match *c {
        Call::Mmap { flags, .. } => flags & libc::MAP_FIXED as u32 == 0,
        Call::Munmap { addr, len } => inside(addr, len),
        // How much a stack may keep below itself when it moves is no rule of placement.
        Call::Mremap { addr, old_len, flags, .. } => {
            flags & libc::MREMAP_FIXED as u32 == 0
                && inside(addr, old_len)
                && own.iter().any(|v| v.start <= addr && addr < v.end && v.flags & VM_GROWSDOWN == 0)
        }
        _ => false,
    }
}

/// How a round about placement begins.
pub fn setup(rules: crate::mm::MmRules) -> Setup {
    Setup { everywhere: true, ..Setup::plain(rules, 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Space {
        let mapped = vec![(0x5555_5555_4000, 0x5555_5555_8000, false), (0x7fff_ffff_0000, 0x7fff_ffff_f000, true)];
        Space { mapped, mmap_base: 0x7fff_f7ff_f000, randomised: false, promise: Promise::Always }
    }

    #[test]
    fn only_what_the_round_mapped_is_unmapped() {
        let v = |start: u64, end: u64| VmaInfo { start, end, flags: 0, file: None, offset: 0 };
        let own = [v(10 * PAGE, 12 * PAGE), v(12 * PAGE, 14 * PAGE), v(20 * PAGE, 21 * PAGE)];
        let unmap = |a: u64, b: u64| Call::Munmap { addr: a * PAGE, len: (b - a) * PAGE };
        assert!(may(&unmap(10, 14), &own) && may(&unmap(11, 13), &own) && may(&unmap(20, 21), &own));
        assert!(!may(&unmap(9, 11), &own) && !may(&unmap(13, 15), &own) && !may(&unmap(13, 21), &own));
        assert!(!may(&Call::Munmap { addr: 10 * PAGE, len: u64::MAX }, &own));
        assert!(!may(&Call::Mmap { addr: 0, len: 1, prot: 0, flags: 0x32, fd: None, offset: 0 }, &own));
    }

    #[test]
    fn filling_leaves_little() {
        let space = space();
        let mut rng = Rng::new(3);
        let mut p = Place { space: space.clone(), with: Placing { huge: true, shared: true }, fill: Vec::new() };
        p.fill(&mut rng);
        let mut covered = 0;
        for c in p.fill.iter().rev() {
            let Call::Mmap { addr, len, .. } = *c else { panic!("{c:?}") };
            assert!(!space.is_foreign(addr, addr + len) && addr + len <= space.mmap_base, "{c:?}");
            covered += len;
        }
        assert!(space.mmap_base - covered < 256 << 20, "{} calls, {covered:#x}", p.fill.len());
    }
}
