// SPDX-License-Identifier: GPL-2.0-only
//! A case as a short text: rules, sides, window and calls. `faultline replay` takes it back.
//!
//! The form: `fz1.` and base64 (the URL alphabet) of a checksum and numbers of seven bits a byte. Addresses are distances
//! from the window.

use super::backend::{Limit, MAX_PAGES, Resource, Setup, WINDOW};
use super::wire::{ARGS, Record, WORDS, decode, encode};
use crate::maple_tree::MapleRules;
use crate::mm::{Call, MmRules};

/// What every token begins with.
pub const PREFIX: &str = "fz1.";

/// What is compared with what, and the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// `port` or `model`.
    pub subject: Side,
    /// `kernel` or `model`.
    pub against: Side,
    /// Variant of the port, by name.
    pub variant: String,
    /// How it begins.
    pub setup: Setup,
    /// The calls.
    pub calls: Vec<Call>,
}

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The port.
    Port,
    /// The running kernel.
    Kernel,
    /// The reference model.
    Model,
}

impl Side {
    /// All, by name.
    pub const ALL: [(&'static str, Side); 3] = [("port", Side::Port), ("kernel", Side::Kernel), ("model", Side::Model)];

    fn number(self) -> u64 {
        Side::ALL.iter().position(|(_, s)| *s == self).unwrap_or(0) as u64
    }
}

const RULES: usize = 14;
/// Rules of a tree, by number.
const MAPLE: [MapleRules; 3] = [MapleRules::V6_12, MapleRules::V6_18, MapleRules::V7_3];

fn rule_bits(r: &MmRules) -> [bool; RULES] {
    let MmRules {
        merge_faulted_with_unfaulted,
        guard_regions,
        maybe_guard_flag,
        anon_pgoff,
        mremap_multi_vma,
        dontunmap_merges_source,
        dontunmap_keeps_pgoff,
        mremap_limit_at_entry,
        dontneed_vma_lock,
        dontunmap_splits_locked,
        dontunmap_counts_locked_twice,
        guard_vma_lock,
        retry_merge,
    } = *r;
    [
        merge_faulted_with_unfaulted,
        guard_regions,
        maybe_guard_flag,
        anon_pgoff,
        mremap_multi_vma,
        dontunmap_merges_source,
        dontunmap_keeps_pgoff,
        mremap_limit_at_entry,
        dontneed_vma_lock,
        // A rule that is no more; its bit stays free, so that old tokens keep their meaning.
        false,
        dontunmap_splits_locked,
        dontunmap_counts_locked_twice,
        guard_vma_lock,
        retry_merge,
    ]
}

fn rules_of(b: [bool; RULES]) -> MmRules {
    MmRules {
        merge_faulted_with_unfaulted: b[0],
        guard_regions: b[1],
        maybe_guard_flag: b[2],
        anon_pgoff: b[3],
        mremap_multi_vma: b[4],
        dontunmap_merges_source: b[5],
        dontunmap_keeps_pgoff: b[6],
        mremap_limit_at_entry: b[7],
        dontneed_vma_lock: b[8],
        dontunmap_splits_locked: b[10],
        dontunmap_counts_locked_twice: b[11],
        guard_vma_lock: b[12],
        retry_merge: b[13],
    }
}

/// Words of a call that are addresses.
fn is_address(kind: u64, word: usize) -> bool {
    match (kind, word) {
        (8 | 9 | 13..=16, _) => false,
        (4, 5) => true,
        (_, w) => w == 1,
    }
}

fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn get(from: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut v, mut shift) = (0u64, 0);
    loop {
        let b = from.next()?;
        if shift > 63 {
            return None;
        }
        v |= u64::from(b & 0x7f).checked_shl(shift)?;
        if b < 0x80 {
            return Some(v);
        }
        shift += 7;
    }
}

fn zigzag(v: u64) -> u64 {
    v << 1 ^ ((v as i64) >> 63) as u64
}
fn unzigzag(v: u64) -> u64 {
    v >> 1 ^ (v & 1).wrapping_neg()
}

fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0x1d0f, |c: u16, b| (c.rotate_left(5) ^ u16::from(*b)).wrapping_mul(0x6255))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn to_text(bytes: &[u8]) -> String {
    let mut out = String::new();
    for c in bytes.chunks(3) {
        let v = (0..3).fold(0u32, |v, i| v << 8 | u32::from(c.get(i).copied().unwrap_or(0)));
        for i in 0..=c.len() {
            out.push(ALPHABET[(v >> (18 - 6 * i) & 63) as usize] as char);
        }
    }
    out
}

fn from_text(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let digits: Vec<u32> =
        text.bytes().map(|b| ALPHABET.iter().position(|a| *a == b).map(|p| p as u32)).collect::<Option<_>>()?;
    for c in digits.chunks(4) {
        if c.len() == 1 {
            return None;
        }
        let v = (0..4).fold(0u32, |v, i| v << 6 | c.get(i).copied().unwrap_or(0));
        out.extend(&v.to_be_bytes()[1..c.len()]);
    }
    Some(out)
}

impl Case {
    /// No calls.
    pub fn empty() -> Self {
        let setup = Setup::plain(MmRules::V6_12, 24);
        Case { subject: Side::Port, against: Side::Model, variant: String::new(), setup, calls: Vec::new() }
    }

    /// As a token.
    pub fn token(&self) -> String {
        let mut b = Vec::new();
        put(&mut b, self.subject.number());
        put(&mut b, self.against.number());
        let rules = rule_bits(&self.setup.rules).iter().enumerate().fold(0, |v, (i, on)| v | u64::from(*on) << i);
        put(&mut b, rules);
        put(&mut b, self.setup.pages.into());
        put(&mut b, self.setup.room.map_or(0, |r| u64::from(r) + 1));
        let Setup { heap, touch, everywhere, limit, bare, .. } = self.setup;
        let bare = bare.map_or(0, |r| MAPLE.iter().position(|m| *m == r).unwrap_or(0) + 1);
        let bits = [heap, touch, everywhere, limit.is_some(), bare & 1 == 1, bare & 2 == 2];
        put(&mut b, bits.iter().enumerate().fold(0, |v, (i, on)| v | u64::from(*on) << i));
        if let Some(l) = limit {
            put(&mut b, Resource::ALL.iter().position(|r| *r == l.of).unwrap_or(0) as u64);
            put(&mut b, l.pages.into());
        }
        if bare != 0 {
            put(&mut b, self.setup.crowd.into());
        }
        put(&mut b, self.setup.counted.into());
        put(&mut b, self.variant.len() as u64);
        b.extend(self.variant.bytes());
        put(&mut b, self.calls.len() as u64);
        for c in &self.calls {
            let r = encode(c);
            put(&mut b, r[0]);
            for (i, w) in r.iter().enumerate().skip(1).take(ARGS[r[0] as usize]) {
                // No file stands as -1.
                let v = if is_address(r[0], i) { w.wrapping_sub(WINDOW) } else { *w };
                put(&mut b, zigzag(v));
            }
        }
        let mut all = checksum(&b).to_le_bytes().to_vec();
        all.extend(b);
        format!("{PREFIX}{}", to_text(&all))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// One sentence: what is wrong with it.
    pub fn parse(text: &str) -> Result<Case, String> {
        let body = text.strip_prefix(PREFIX).ok_or_else(|| format!("a token of the fuzzer begins with {PREFIX}"))?;
        let bytes = from_text(body).ok_or("has characters that no token has, or lacks some")?;
        let (sum, rest) = bytes.split_at_checked(2).ok_or("is too short")?;
        if checksum(rest).to_le_bytes() != *sum {
            return Err("its checksum is wrong: a part is missing or changed".into());
        }
        let mut from = rest.iter().copied();
        let read = Self::read(&mut from).ok_or("ends early, or holds what no token of this version holds")?;
        if from.next().is_some() {
            return Err("goes on behind its end".into());
        }
        Ok(read)
    }

    fn read(from: &mut impl Iterator<Item = u8>) -> Option<Case> {
        let side = |n: u64| Side::ALL.get(n as usize).map(|(_, s)| *s);
        let subject = side(get(from)?)?;
        let against = side(get(from)?)?;
        let bits = get(from)?;
        if bits >> RULES != 0 {
            return None;
        }
        let rules = rules_of(std::array::from_fn(|i| bits >> i & 1 == 1));
        let pages = u32::try_from(get(from)?).ok().filter(|p| (1..=MAX_PAGES).contains(p))?;
        let room = u32::try_from(get(from)?).ok()?.checked_sub(1);
        let bits = get(from)?;
        if bits >> 6 != 0 {
            return None;
        }
        let [heap, touch, everywhere, limited] = std::array::from_fn(|i| bits >> i & 1 == 1);
        let bare = (bits as usize >> 4).checked_sub(1).map(|i| MAPLE[i]);
        let limit = if limited {
            let of = *Resource::ALL.get(get(from)? as usize)?;
            Some(Limit { of, pages: u32::try_from(get(from)?).ok()? })
        } else {
            None
        };
        let crowd = if bare.is_some() { u32::try_from(get(from)?).ok().filter(|c| *c <= 10_000)? } else { 0 };
        let counted = u16::try_from(get(from)?).ok()?;
        let len = get(from)?;
        let variant = (0..len.min(200)).map(|_| from.next()).collect::<Option<Vec<u8>>>()?;
        let variant = String::from_utf8(variant).ok()?;
        let n = get(from)?;
        let mut calls = Vec::new();
        for _ in 0..n {
            let mut r: Record = [0; WORDS];
            r[0] = get(from)?;
            let args = *ARGS.get(r[0] as usize)?;
            for i in 1..=args {
                let v = unzigzag(get(from)?);
                r[i] = if is_address(r[0], i) { v.wrapping_add(WINDOW) } else { v };
            }
            calls.push(decode(&r)?);
        }
        let setup = Setup { rules, pages, room, heap, counted, limit, touch, everywhere, bare, crowd };
        Some(Case { subject, against, variant, setup, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        Case {
            subject: Side::Port,
            against: Side::Kernel,
            variant: "v6.12".into(),
            setup: Setup { room: Some(9), heap: true, counted: 3, ..Setup::plain(MmRules::V6_18, 40) },
            calls: vec![
                Call::Mmap { addr: WINDOW, len: 4096, prot: 3, flags: 0x32, fd: None, offset: 0 },
                Call::Mmap { addr: WINDOW + 4096, len: u64::MAX, prot: 3, flags: 0x12, fd: Some(1), offset: 8192 },
                Call::Madvise { addr: WINDOW, len: 1, advice: -1 },
                Call::Mremap { addr: WINDOW + 1, old_len: 2, new_len: 3, flags: 7, new_addr: 0 },
                Call::Fork,
                Call::Write { addr: 5, value: 9 },
                Call::Munlockall,
                Call::Personality { read_implies_exec: true },
                Call::Mdwe { bits: 1 },
            ],
        }
    }

    #[test]
    fn a_case_survives_its_token() {
        let c = case();
        let t = c.token();
        assert_eq!(Case::parse(&t), Ok(c), "{t}");
        for r in [MmRules::V6_12, MmRules::V6_18, MmRules::V7_3] {
            let c = Case { setup: Setup { rules: r, room: None, ..case().setup }, ..case() };
            assert_eq!(Case::parse(&c.token()).unwrap().setup, c.setup);
        }
        for m in MAPLE {
            let setup = Setup { bare: Some(m), crowd: 300, ..case().setup };
            assert_eq!(Case::parse(&Case { setup, ..case() }.token()).unwrap().setup, setup);
        }
        for of in Resource::ALL {
            let limit = Some(Limit { of, pages: 300 });
            let setup = Setup { limit, touch: true, everywhere: of == Resource::Data, heap: false, ..case().setup };
            assert_eq!(Case::parse(&Case { setup, ..case() }.token()).unwrap().setup, setup);
        }
    }

    #[test]
    fn every_damage_is_noticed() {
        let t = case().token();
        assert!(Case::parse("sim.abc").unwrap_err().contains(PREFIX));
        assert!(Case::parse(PREFIX).unwrap_err().contains("short"));
        assert!(Case::parse(&format!("{t}!")).unwrap_err().contains("characters"));
        let mut missed = 0;
        for i in PREFIX.len()..t.len() {
            assert!(Case::parse(&t[..i]).is_err(), "cut at {i}");
            let mut b = t.clone().into_bytes();
            b[i] = if b[i] == b'A' { b'B' } else { b'A' };
            missed += u32::from(Case::parse(&String::from_utf8(b).unwrap()).is_ok());
        }
        // The last character has bits that stand for nothing.
        assert!(missed <= 1, "{missed} changed characters were not noticed");
    }
}
