// SPDX-License-Identifier: GPL-2.0-only
//! The MESI directory: who holds each line of the arena, in which state, busy until when; and what moved, per struct.
//!
//! A line is in one of the four states of the textbook protocol, tracked exactly for all CPUs (no imprecise sharer
//! sets). A line being moved is busy until it arrives: the next request for it starts then, so queues form by
//! themselves. Readers of a line that is already shared are served side by side.
//!
//! Pages get an entry when first touched. A page cleared as a whole (`clear_page`) is held by one CPU in one word; it
//! gets its 64 entries when somebody touches a single line.
//!
//! Misses are also counted per word of an object where the size of the objects of a label is known
//! ([`Directory::layout`]): a label then names an array of such objects that starts where the labelled range starts.
//!
//! Simplifications: a private cache evicts first in, first out, counted in lines fetched, and only lines held by one
//! CPU alone ever fall out of it (`price.rs`, `cache_lines`); the last-level cache has no bound; a shared line comes
//! from the nearest CPU that has it; there is no false sharing wider than a line (adjacent-line prefetch).

use super::price::Price;
use crate::arch::Arena;
use crate::arch::arena::{ARENA_SIZE, PAGE_SHIFT, PAGE_SIZE, RECORD_SIZE};
use std::collections::BTreeMap;

/// log2 of a line.
const LINE_SHIFT: u32 = 6;
/// Lines of a page.
const LINES: usize = PAGE_SIZE >> LINE_SHIFT;
/// Bytes of a word in counts per field.
const WORD: usize = 8;
/// No CPU.
const NOBODY: u16 = u16::MAX;

/// What an access does to its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Load = 0,
    /// Writes.
    Store = 1,
    /// Locked read-modify-write, stored or not: a failed exchange takes the line all the same.
    Rmw = 2,
}

/// What happened to the lines of one struct; the fields are those of the record's `lines`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Accesses.
    pub accesses: u64,
    /// Lines that came from the cache of another CPU of the same node.
    pub moved_near: u64,
    /// The same from another node.
    pub moved_far: u64,
    /// Upgrades: a line held shared had to be taken from the others before a store.
    pub upgrades: u64,
    /// Lines that no other CPU's cache held: first touches, and lines that had fallen out.
    pub memory: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In no cache.
    Invalid,
    /// In the caches of `sharers`, as memory has it.
    Shared,
    /// In the cache of `owner` alone (E or M: a store by the owner is silent either way).
    Owned,
}

#[derive(Clone, Copy)]
struct Line {
    /// Until when the line travels, ps.
    busy: u64,
    /// How many lines the owner had fetched when it got this one: its place in the owner's cache.
    fill: u32,
    owner: u16,
    label: u16,
    /// First CPU asleep on this line (`wait_changed`); the rest is chained through the CPUs.
    waiter: u16,
    state: State,
}

struct Page {
    lines: [Line; LINES],
    /// `words` per line.
    sharers: Box<[u64]>,
}

/// A page's word in the table: 0 = untouched, odd = one [`Uniform`], else a pointer to a [`Page`].
#[derive(Clone, Copy)]
struct Uniform {
    label: u16,
    /// The CPU that cleared it, or [`NOBODY`].
    owner: u16,
    fill: u32,
}

impl Uniform {
    fn pack(self) -> u64 {
        1 | u64::from(self.label & 0x7fff) << 1 | u64::from(self.owner) << 16 | u64::from(self.fill) << 32
    }
    fn unpack(w: u64) -> Uniform {
        if w == 0 {
            return Uniform { label: 0, owner: NOBODY, fill: 0 };
        }
        Uniform { label: (w >> 1 & 0x7fff) as u16, owner: (w >> 16) as u16, fill: (w >> 32) as u32 }
    }
}

/// Result of an access.
pub(super) struct Done {
    /// When it is done, ps.
    pub at: u64,
    /// First CPU asleep on the line, taken off it (stores only); follow with [`Directory::next_waiter`].
    pub woken: u16,
}

/// See the module.
pub(super) struct Directory {
    base: usize,
    /// One word a page of the arena; see [`Uniform`].
    table: Box<[u64]>,
    /// Pages with an entry, for [`Directory::reset`].
    touched: Vec<u32>,
    #[expect(clippy::vec_box, reason = "pages keep their address: the table points at them")]
    spare: Vec<Box<Page>>,
    words: usize,
    cpu_node: Vec<u16>,
    /// CPUs of each node, `words` a node.
    node_mask: Vec<u64>,
    nr_nodes: usize,
    /// First arena offset of each node's memory.
    node_start: Vec<usize>,
    /// ps from cache to CPU, by node of the CPU and node of the cache.
    cache_ps: Vec<u64>,
    memory_ps: Vec<u64>,
    price: Price,
    fills: Vec<u32>,
    next_waiter: Vec<u16>,
    /// Per page: how far back the labelled range starts that the page lies in, in pages.
    run_start: Box<[u8]>,
    labels: Labels,
}

/// Names and counts.
struct Labels {
    ids: BTreeMap<&'static str, u16>,
    names: Vec<&'static str>,
    counts: Vec<LineCounts>,
    /// Per label: misses by word of the object, empty where the size is not known.
    words: Vec<Vec<LineCounts>>,
    /// Object sizes by name; they outlive a reset.
    layouts: BTreeMap<&'static str, usize>,
}

/// What nobody has labelled.
pub const UNLABELLED: &str = "unlabelled";
/// Accesses outside the arena.
pub const UNMAPPED: &str = "unmapped";
const UNMAPPED_ID: usize = 1;

impl Labels {
    fn new(layouts: BTreeMap<&'static str, usize>) -> Labels {
        let mut l = Labels { ids: BTreeMap::new(), names: Vec::new(), counts: Vec::new(), words: Vec::new(), layouts };
        for what in [UNLABELLED, UNMAPPED] {
            l.id(what);
        }
        l
    }
    fn id(&mut self, what: &'static str) -> u16 {
        if let Some(&id) = self.ids.get(what) {
            return id;
        }
        let id = self.names.len() as u16;
        assert!(id < 0x7fff, "too many labels");
        self.names.push(what);
        self.counts.push(LineCounts::default());
        let words = self.layouts.get(what).map_or(0, |size| size / WORD);
        self.words.push(vec![LineCounts::default(); words]);
        self.ids.insert(what, id);
        id
    }
}

impl Directory {
    /// A directory of `arena` for CPUs on the nodes `cpu_node`; `distance` is square, by node.
    pub(super) fn new(arena: &Arena, cpu_node: &[u32], distance: &[u32], price: &Price) -> Directory {
        let nr_nodes = distance.len().isqrt();
        let words = cpu_node.len().div_ceil(64);
        let mut node_mask = vec![0; words * nr_nodes];
        for (cpu, &node) in cpu_node.iter().enumerate() {
            node_mask[node as usize * words + cpu / 64] |= 1 << (cpu % 64);
        }
        Directory {
            base: arena.base(),
            table: vec![0; ARENA_SIZE >> PAGE_SHIFT].into(),
            touched: Vec::new(),
            spare: Vec::new(),
            words,
            cpu_node: cpu_node.iter().map(|&n| n as u16).collect(),
            node_mask,
            nr_nodes,
            node_start: (0..nr_nodes).map(|n| arena.node_range(n as u32).0 - arena.base()).collect(),
            cache_ps: distance.iter().map(|&d| price.cache(d)).collect(),
            memory_ps: distance.iter().map(|&d| price.memory(d)).collect(),
            price: price.clone(),
            fills: vec![0; cpu_node.len()],
            next_waiter: vec![NOBODY; cpu_node.len()],
            run_start: vec![0; ARENA_SIZE >> PAGE_SHIFT].into(),
            labels: Labels::new(BTreeMap::new()),
        }
    }

    /// Forgets lines, labels and counts.
    pub(super) fn reset(&mut self) {
        while let Some(page) = self.touched.pop() {
            let w = std::mem::take(&mut self.table[page as usize]);
            self.recycle(w);
        }
        self.fills.fill(0);
        self.next_waiter.fill(NOBODY);
        let layouts = std::mem::take(&mut self.labels.layouts);
        self.labels = Labels::new(layouts);
    }

    /// Zeroes the counts.
    pub(super) fn reset_counts(&mut self) {
        self.labels.counts.fill(LineCounts::default());
        self.labels.words.iter_mut().for_each(|w| w.fill(LineCounts::default()));
    }

    /// Says that `what` labels arrays of objects of `size` bytes: misses are counted per word from now on.
    pub(super) fn layout(&mut self, what: &'static str, size: usize) {
        self.labels.layouts.insert(what, size);
        let id = self.labels.id(what);
        self.labels.words[id as usize] = vec![LineCounts::default(); size / WORD];
    }

    /// Misses of the objects labelled `what` by offset of the word that was accessed; `accesses` counts misses only.
    pub(super) fn fields(&self, what: &str) -> BTreeMap<usize, LineCounts> {
        let words = self.labels.ids.get(what).map_or(&[][..], |&id| &self.labels.words[id as usize]);
        words.iter().enumerate().filter(|(_, c)| c.accesses != 0).map(|(i, c)| (i * WORD, *c)).collect()
    }

    /// Adds what a miss at `off` did to the counts of its word.
    fn count_word(&mut self, label: u16, off: usize, before: LineCounts) {
        let words = &mut self.labels.words[label as usize];
        if words.is_empty() {
            return;
        }
        let page = off >> PAGE_SHIFT;
        let in_run = off - ((page - self.run_start[page] as usize) << PAGE_SHIFT);
        let (after, n) = (self.labels.counts[label as usize], words.len());
        let w = &mut words[in_run / WORD % n];
        w.accesses += 1;
        w.moved_near += after.moved_near - before.moved_near;
        w.moved_far += after.moved_far - before.moved_far;
        w.upgrades += after.upgrades - before.upgrades;
        w.memory += after.memory - before.memory;
    }

    /// The counts by label; labels without an access are left out.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, LineCounts> {
        let all = self.labels.names.iter().zip(&self.labels.counts);
        all.filter(|(_, c)| c.accesses != 0 || c.memory != 0).map(|(n, c)| (*n, *c)).collect()
    }

    /// Counts an access outside the arena.
    #[inline(always)]
    pub(super) fn count_unmapped(&mut self) {
        self.labels.counts[UNMAPPED_ID].accesses += 1;
    }

    fn recycle(&mut self, w: u64) {
        if w != 0 && w & 1 == 0 {
            // SAFETY: even words are pages that page() leaked; the word was just taken out of the table.
            self.spare.push(unsafe { Box::from_raw(w as *mut Page) });
        }
    }

    /// The entries of the page at `index`, made if need be.
    #[inline(always)]
    fn page(&mut self, index: usize) -> *mut Page {
        let w = self.table[index];
        if w != 0 && w & 1 == 0 { w as *mut Page } else { self.make_page(index, w) }
    }

    #[cold]
    #[inline(never)]
    fn make_page(&mut self, index: usize, w: u64) -> *mut Page {
        let u = Uniform::unpack(w);
        let state = if u.owner == NOBODY { State::Invalid } else { State::Owned };
        let line = Line { busy: 0, fill: u.fill, owner: u.owner, label: u.label, waiter: NOBODY, state };
        let mut p = match self.spare.pop() {
            Some(mut p) => {
                p.lines.fill(line);
                p.sharers.fill(0);
                p
            }
            None => Box::new(Page { lines: [line; LINES], sharers: vec![0; LINES * self.words].into() }),
        };
        if u.owner != NOBODY {
            for s in p.sharers.chunks_exact_mut(self.words) {
                s[u.owner as usize / 64] |= 1 << (u.owner % 64);
            }
        }
        if w == 0 {
            self.touched.push(index as u32);
        }
        let p = Box::into_raw(p);
        self.table[index] = p as u64;
        p
    }

    /// Whether CPU `me` has the line of arena offset `off` in a state that allows the access, and nobody sleeps on it:
    /// then the access is counted. Otherwise nothing happened.
    #[inline(always)]
    pub(super) fn hit(&mut self, me: u32, off: usize, kind: Kind) -> bool {
        let w = self.table[off >> PAGE_SHIFT];
        if w == 0 || w & 1 == 1 {
            return false;
        }
        let li = off >> LINE_SHIFT & (LINES - 1);
        // SAFETY: a live page; see page().
        let p = unsafe { &*(w as *const Page) };
        let l = &p.lines[li];
        let here = match l.state {
            // The owner still has it unless it fetched a whole cache of lines since.
            State::Owned => l.owner == me as u16 && !self.price.fell_out(l.fill, self.fills[me as usize]),
            State::Shared => kind == Kind::Load && p.sharers[li * self.words + me as usize / 64] >> (me % 64) & 1 == 1,
            State::Invalid => false,
        };
        if !here || (l.waiter != NOBODY && kind != Kind::Load) {
            return false;
        }
        self.labels.counts[l.label as usize].accesses += 1;
        true
    }

    /// CPU `me` accesses the line of arena offset `off` at `now`, which [`Directory::hit`] has refused.
    pub(super) fn access(&mut self, me: u32, now: u64, off: usize, kind: Kind) -> Done {
        let page = self.page(off >> PAGE_SHIFT);
        let li = off >> LINE_SHIFT & (LINES - 1);
        let words = self.words;
        // SAFETY: pages live until reset(), and this is the only reference into this one.
        let (l, sharers) = unsafe {
            let p = &mut *page;
            (&mut p.lines[li], &mut p.sharers[li * words..(li + 1) * words])
        };
        self.labels.counts[l.label as usize].accesses += 1;
        let mine = l.state == State::Owned && l.owner == me as u16;
        let at = if mine && !self.price.fell_out(l.fill, self.fills[me as usize]) {
            // Its page was cleared as a whole, or somebody sleeps on the line.
            now + self.price.hit
        } else {
            let (label, before) = (l.label, self.labels.counts[l.label as usize]);
            let at = self.miss(me, now, off, kind, l, sharers);
            self.count_word(label, off, before);
            at
        };
        let woken = if kind == Kind::Load { NOBODY } else { std::mem::replace(&mut l.waiter, NOBODY) };
        Done { at: at + self.price.extra(kind), woken }
    }

    /// The line is not here, or not in the state that the access needs. Returns when it is.
    #[inline(never)]
    fn miss(&mut self, me: u32, now: u64, off: usize, kind: Kind, l: &mut Line, sharers: &mut [u64]) -> u64 {
        let start = now.max(l.busy);
        let my_node = self.cpu_node[me as usize] as usize;
        let (w, bit) = (me as usize / 64, 1u64 << (me % 64));
        let home = my_node * self.nr_nodes + self.home(off);
        let c = &mut self.labels.counts[l.label as usize];
        let mut alone = kind != Kind::Load;
        let mut occupies = true;
        let held = l.state == State::Shared && sharers[w] & bit != 0;
        let ps = match l.state {
            State::Invalid => {
                c.memory += 1;
                alone = true;
                self.memory_ps[home]
            }
            State::Owned if l.owner == me as u16 => {
                c.memory += 1;
                alone = true;
                self.price.refill
            }
            State::Owned => {
                let from = self.cpu_node[l.owner as usize] as usize;
                if self.price.fell_out(l.fill, self.fills[l.owner as usize]) {
                    // It fell out of the owner's cache: the last-level cache of the owner's node has it.
                    c.memory += 1;
                    alone = true;
                    if from == my_node { self.price.refill } else { self.memory_ps[home] }
                } else {
                    if from == my_node {
                        c.moved_near += 1;
                    } else {
                        c.moved_far += 1;
                    }
                    self.cache_ps[my_node * self.nr_nodes + from]
                }
            }
            State::Shared => {
                sharers[w] &= !bit;
                let (mut nearest, mut farthest) = (None, 0);
                for n in 0..self.nr_nodes {
                    let mask = &self.node_mask[n * self.words..(n + 1) * self.words];
                    if sharers.iter().zip(mask).any(|(s, m)| s & m != 0) {
                        let ps = self.cache_ps[my_node * self.nr_nodes + n];
                        farthest = ps.max(farthest);
                        nearest = Some(nearest.map_or((ps, n), |best: (u64, usize)| best.min((ps, n))));
                    }
                }
                match nearest {
                    // Nobody else shares it after all: the store is silent.
                    None => self.price.hit,
                    Some((ps, from)) => {
                        if held {
                            c.upgrades += 1;
                        } else if from == my_node {
                            c.moved_near += 1;
                        } else {
                            c.moved_far += 1;
                        }
                        if kind == Kind::Load {
                            occupies = false;
                            ps
                        } else {
                            farthest
                        }
                    }
                }
            }
        };
        let fills = &mut self.fills[me as usize];
        *fills = fills.wrapping_add(u32::from(!held));
        if alone {
            sharers.fill(0);
            (l.state, l.owner, l.fill) = (State::Owned, me as u16, *fills);
        } else {
            (l.state, l.owner) = (State::Shared, NOBODY);
        }
        sharers[w] |= bit;
        let at = start + ps;
        if occupies {
            l.busy = at;
        }
        at
    }

    /// Node of the memory at arena offset `off`; a page record is on its page's node.
    fn home(&self, off: usize) -> usize {
        let records = (ARENA_SIZE >> PAGE_SHIFT) * RECORD_SIZE;
        let off = if off < records { (off / RECORD_SIZE) << PAGE_SHIFT } else { off };
        self.node_start.iter().rposition(|&s| s <= off).unwrap_or(0)
    }

    /// The whole pages of `[off, off + len)` now belong to `me` alone.
    pub(super) fn own_pages(&mut self, me: u32, off: usize, len: usize) {
        for index in off >> PAGE_SHIFT..(off + len) >> PAGE_SHIFT {
            let w = self.table[index];
            let label = if w != 0 && w & 1 == 0 {
                // SAFETY: a live page; see page().
                let p = unsafe { &*(w as *const Page) };
                if p.lines.iter().any(|l| l.waiter != NOBODY || l.label != p.lines[0].label) {
                    self.own_lines(me, index);
                    continue;
                }
                p.lines[0].label
            } else {
                Uniform::unpack(w).label
            };
            if w == 0 {
                self.touched.push(index as u32);
            }
            self.recycle(w);
            let f = &mut self.fills[me as usize];
            *f = f.wrapping_add(LINES as u32);
            self.table[index] = Uniform { label, owner: me as u16, fill: *f }.pack();
        }
    }

    /// [`Directory::own_pages`] where the entries must stay.
    fn own_lines(&mut self, me: u32, index: usize) {
        let f = &mut self.fills[me as usize];
        *f = f.wrapping_add(LINES as u32);
        let fill = *f;
        // SAFETY: a live page; see page().
        let p = unsafe { &mut *self.page(index) };
        p.sharers.fill(0);
        for (l, s) in p.lines.iter_mut().zip(p.sharers.chunks_exact_mut(self.words)) {
            (l.state, l.owner, l.fill) = (State::Owned, me as u16, fill);
            s[me as usize / 64] |= 1 << (me % 64);
        }
    }

    /// Names the lines of `[off, off + len)`.
    pub(super) fn label(&mut self, off: usize, len: usize, what: &'static str) {
        let id = self.labels.id(what);
        let (mut at, end) = (off, (off + len).min(ARENA_SIZE));
        // Longer ranges than a page's word can tell start afresh: no array of objects is that long.
        let start = off >> PAGE_SHIFT;
        while at < end {
            let (index, next) = (at >> PAGE_SHIFT, ((at >> PAGE_SHIFT) + 1) << PAGE_SHIFT);
            let w = self.table[index];
            let whole = at & (PAGE_SIZE - 1) == 0 && end >= next;
            if whole {
                self.run_start[index] = ((index - start) % 256) as u8;
            }
            if whole && (w == 0 || w & 1 == 1) {
                if w == 0 {
                    self.touched.push(index as u32);
                }
                self.table[index] = Uniform { label: id, ..Uniform::unpack(w) }.pack();
            } else {
                // SAFETY: pages live until reset(), and this is the only reference into this one.
                let p = unsafe { &mut *self.page(index) };
                let first = at >> LINE_SHIFT & (LINES - 1);
                let last = (end.min(next) - 1) >> LINE_SHIFT & (LINES - 1);
                p.lines[first..=last].iter_mut().for_each(|l| l.label = id);
            }
            at = next;
        }
    }

    /// The name of what lives at `off`.
    pub(super) fn name(&self, off: usize) -> &'static str {
        let w = self.table[off >> PAGE_SHIFT];
        let id = if w != 0 && w & 1 == 0 {
            // SAFETY: a live page; see page().
            unsafe { (*(w as *const Page)).lines[off >> LINE_SHIFT & (LINES - 1)].label }
        } else {
            Uniform::unpack(w).label
        };
        self.labels.names[id as usize]
    }

    /// Puts `me` to sleep on the line of `off`.
    pub(super) fn add_waiter(&mut self, me: u32, off: usize) {
        let page = self.page(off >> PAGE_SHIFT);
        // SAFETY: pages live until reset(), and this is the only reference into this one.
        let l = unsafe { &mut (*page).lines[off >> LINE_SHIFT & (LINES - 1)] };
        self.next_waiter[me as usize] = std::mem::replace(&mut l.waiter, me as u16);
    }

    /// The CPU after `cpu` in a chain of [`Done::woken`], taken off it.
    #[inline(always)]
    pub(super) fn next_waiter(&mut self, cpu: u16) -> u16 {
        std::mem::replace(&mut self.next_waiter[cpu as usize], NOBODY)
    }

    /// The shortest time in which a line can change its place, ps.
    pub(super) fn shortest_move(&self) -> u64 {
        self.cache_ps.iter().copied().min().unwrap_or(0)
    }

    /// Offset of `addr` in the arena, if it lies there.
    #[inline(always)]
    pub(super) fn offset(&self, addr: usize) -> Option<usize> {
        let off = addr.wrapping_sub(self.base);
        if off < ARENA_SIZE { Some(off) } else { None }
    }
}

/// Whether `cpu` of a chain is none.
#[inline(always)]
pub(super) fn is_cpu(cpu: u16) -> bool {
    cpu != NOBODY
}

impl Price {
    /// What `kind` costs besides having the line.
    #[inline(always)]
    pub(super) fn extra(&self, kind: Kind) -> u64 {
        if kind == Kind::Rmw { self.rmw } else { 0 }
    }

    #[inline(always)]
    fn fell_out(&self, fill: u32, fills: u32) -> bool {
        self.cache_lines != 0 && fills.wrapping_sub(fill) >= self.cache_lines
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.reset();
    }
}
