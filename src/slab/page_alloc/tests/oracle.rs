// SPDX-License-Identifier: GPL-2.0-only
//! A slow model of the page allocator in deques of page numbers, after mm/page_alloc.c of 6.12, and random sequences on
//! both: each block handed out must be the same, and now and then all lists and marks.
//!
//! Cannot tell: anything about concurrency; CPUs take turns between calls.

use super::*;
use crate::cpu::splitmix64;
use std::collections::{BTreeMap, VecDeque};

#[derive(Default)]
struct Lists {
    /// By order, head first.
    free: Vec<VecDeque<usize>>,
}

#[derive(Default)]
struct Pcp {
    lists: Lists,
    count: u32,
    high: u32,
    factor: u32,
    prev_high_order: bool,
    free_count: u32,
}

struct Node {
    pages: std::ops::Range<usize>,
    buddy: Lists,
    free_pages: u64,
    high_wmark: u64,
    below_high: bool,
    high_min: u32,
    high_max: u32,
    pcp: Vec<Pcp>,
}

struct Model {
    nodes: Vec<Node>,
    /// Page and order of every block handed out.
    out: BTreeMap<usize, u32>,
}

const BATCH: u32 = 63;

impl Node {
    fn new(pages: std::ops::Range<usize>, nodes: u64, cpus_here: u64, nr_pcp: usize) -> Node {
        let managed = pages.len() as u64;
        // KiB: 4 a page; then a quarter of it is pages.
        let min = (((managed * nodes * 4 * 16) as f64).sqrt() as u64).clamp(128, 262_144) / 4 / nodes;
        let step = (min / 4).max(managed / 1000);
        let lists = |n: usize| Lists { free: vec![VecDeque::new(); n] };
        let mut node = Node {
            high_wmark: min + 2 * step,
            high_min: ((min + step) / cpus_here).max(252) as u32,
            high_max: (managed / 8 / cpus_here).max(252) as u32,
            below_high: false,
            free_pages: 0,
            buddy: lists(11),
            pcp: Vec::new(),
            pages: pages.clone(),
        };
        node.high_max = node.high_max.max(node.high_min);
        node.pcp = (0..nr_pcp).map(|_| Pcp { lists: lists(4), high: node.high_min, ..Pcp::default() }).collect();
        let mut at = pages.start;
        while at < pages.end {
            let order = (0..=10u32).rev().find(|o| at.is_multiple_of(1 << o) && at + (1 << o) <= pages.end).unwrap();
            node.free_one(at, order, true);
            at += 1 << order;
        }
        node
    }

    fn free_one(&mut self, page: usize, order: u32, to_tail: bool) {
        self.free_pages += 1 << order;
        let (mut page, mut order) = (page, order);
        while order < 10 {
            let buddy = page ^ (1 << order);
            let list = &mut self.buddy.free[order as usize];
            let Some(i) = list.iter().position(|&p| p == buddy) else { break };
            list.remove(i);
            page = page.min(buddy);
            order += 1;
        }
        // With its other half it would at once join the block beside the two.
        let pair = page & !(1 << order);
        let likely = order < 9 && self.buddy.free[order as usize + 1].contains(&(pair ^ (2 << order)));
        let list = &mut self.buddy.free[order as usize];
        if to_tail || likely { list.push_back(page) } else { list.push_front(page) }
    }

    fn take(&mut self, order: u32) -> Option<usize> {
        let have = (order..=10).find(|&o| !self.buddy.free[o as usize].is_empty())?;
        let page = self.buddy.free[have as usize].pop_front()?;
        for half in (order..have).rev() {
            self.buddy.free[half as usize].push_front(page + (1 << half));
        }
        self.free_pages -= 1 << order;
        Some(page)
    }

    fn refill(&mut self, cpu: usize, order: u32) {
        let c = &mut self.pcp[cpu];
        let mut batch = if order == 0 { BATCH << c.factor } else { BATCH };
        if self.high_min != self.high_max && !self.below_high {
            c.high = (c.high + batch).min(self.high_max);
        }
        if order == 0 {
            let most = c.high.saturating_sub(c.count + BATCH).max(BATCH);
            if batch <= most && c.factor < 5 {
                c.factor += 1;
            }
            batch = batch.min(most);
        }
        for _ in 0..(batch >> order).max(2) {
            let Some(page) = self.take(order) else { break };
            let c = &mut self.pcp[cpu];
            c.lists.free[order as usize].push_back(page);
            c.count += 1 << order;
        }
    }

    fn rmqueue(&mut self, cpu: usize, order: u32) -> Option<usize> {
        if order <= 3 {
            self.pcp[cpu].free_count /= 2;
            if self.pcp[cpu].lists.free[order as usize].is_empty() {
                self.refill(cpu, order);
            }
            let c = &mut self.pcp[cpu];
            if let Some(page) = c.lists.free[order as usize].pop_front() {
                c.count -= 1 << order;
                return Some(page);
            }
        }
        self.take(order)
    }

    fn drain(&mut self, cpu: usize, pages: u32, first: u32) {
        let mut left = i64::from(pages.min(self.pcp[cpu].count));
        let mut order = first;
        while left > 0 {
            let c = &mut self.pcp[cpu];
            let Some(page) = c.lists.free[order as usize].pop_back() else {
                order = (order + 1) % 4;
                continue;
            };
            c.count -= 1 << order;
            left -= 1 << order;
            self.free_one(page, order, false);
        }
    }

    fn free(&mut self, cpu: usize, page: usize, order: u32) {
        if order > 3 {
            return self.free_one(page, order, false);
        }
        let c = &mut self.pcp[cpu];
        c.factor /= 2;
        c.lists.free[order as usize].push_front(page);
        c.count += 1 << order;
        let free_high = order != 0 && c.free_count >= BATCH && c.prev_high_order && c.count >= BATCH;
        c.prev_high_order = order != 0;
        if c.free_count < BATCH * 32 {
            c.free_count += 1 << order;
        }
        let mut high = c.high;
        if free_high {
            c.high = high.saturating_sub(BATCH * 32).max(self.high_min);
            high = 0;
        } else if self.high_min != self.high_max {
            if self.below_high {
                c.high = high.saturating_sub(c.free_count.max(BATCH)).max(self.high_min);
                high = c.count.max(self.high_min);
            } else if c.count >= high && c.high < c.free_count + BATCH {
                c.high = (c.free_count + BATCH).clamp(self.high_min, self.high_max);
            }
        }
        if c.count >= high {
            let n = if free_high { c.count.min(BATCH * 32) } else { c.free_count.clamp(BATCH, high - BATCH) };
            self.drain(cpu, n, order);
            if self.below_high && self.free_pages > self.high_wmark {
                self.below_high = false;
            }
        }
    }
}

impl Model {
    fn alloc(&mut self, cpu: usize, nid: usize, order: u32, thisnode: bool) -> Option<usize> {
        let n = &mut self.nodes[nid];
        n.below_high |= n.free_pages <= n.high_wmark;
        let mut got = n.rmqueue(cpu, order);
        let zonelist: Vec<usize> =
            std::iter::once(nid).chain((0..self.nodes.len()).filter(|&x| x != nid && !thisnode)).collect();
        for drained in [false, true] {
            if got.is_none() && drained {
                for n in &mut self.nodes {
                    (0..n.pcp.len()).for_each(|c| n.drain(c, u32::MAX, 0));
                }
            }
            for &z in &zonelist {
                got = got.or_else(|| self.nodes[z].rmqueue(cpu, order));
            }
        }
        self.out.insert(got?, order);
        got
    }

    fn free(&mut self, cpu: usize, page: usize) -> u32 {
        let order = self.out.remove(&page).expect("handed out");
        let n = self.nodes.iter_mut().find(|n| n.pages.contains(&page)).expect("of some node");
        n.free(cpu, page, order);
        order
    }
}

fn list(l: &PageList<Native>) -> VecDeque<usize> {
    let (mut v, mut p, mut prev) = (VecDeque::new(), l.first.get(), null_mut());
    while !p.is_null() {
        v.push_back(record_page(p as usize) >> PAGE_SHIFT);
        // SAFETY: a record.
        let page = unsafe { &*p };
        assert_eq!(page.prev.load(Relaxed), prev);
        prev = p;
        p = page.next.load(Relaxed);
    }
    assert_eq!(l.last.get(), prev);
    v
}

fn compare(pa: &PageAllocator<Native>, m: &Model) {
    for (z, n) in pa.zones.iter().zip(&m.nodes) {
        assert_eq!(z.nr_free(), n.free_pages);
        assert_eq!(z.b.0.below_high.load(Relaxed) != 0, n.below_high);
        for (got, want) in z.b.0.free_area.iter().zip(&n.buddy.free) {
            assert_eq!(list(got), *want);
        }
        for (got, want) in z.pcp.iter().zip(&n.pcp) {
            let flags = got.flags.get();
            assert_eq!(
                (got.count.get(), got.high.get(), flags & ALLOC_FACTOR, got.free_count.get()),
                (want.count, want.high, want.factor, want.free_count)
            );
            assert_eq!(flags & PCPF_PREV_FREE_HIGH_ORDER != 0, want.prev_high_order);
            for (got, want) in got.lists.iter().zip(&want.lists.free) {
                assert_eq!(list(got), *want);
            }
        }
    }
}

/// Pages outstanding by node, and no block twice.
fn run(nr_nodes: u32, nr_cpus: u32, mib: usize, seed: u64, steps: u32) -> (u64, u64) {
    let arena = Arena::new(nr_nodes, mib << 20, None, None).unwrap();
    let (_, pa) = boot(&arena, nr_cpus);
    let set = for_test_set::<Native>(nr_cpus);
    let cpus: Vec<_> = (0..nr_cpus).map(|c| set.cpu(c)).collect();
    let nr_pcp = pa.nr_cpu_ids() as usize;
    let mut m = Model { nodes: Vec::new(), out: BTreeMap::new() };
    for (nid, z) in pa.zones.iter().enumerate() {
        let pages = z.start.get() >> PAGE_SHIFT..z.end.get() >> PAGE_SHIFT;
        let here = (0..nr_cpus).filter(|c| c % nr_nodes == nid as u32).count() as u64;
        m.nodes.push(Node::new(pages, u64::from(nr_nodes), if here == 0 { u64::from(nr_cpus) } else { here }, nr_pcp));
    }
    compare(&pa, &m);
    let (mut r, mut mine) = (seed, Vec::<usize>::new());
    let (mut fails, mut short) = (0, 0);
    for step in 0..steps {
        r = splitmix64(r);
        let c = (r >> 60) as usize % cpus.len();
        // Tides of allocating and freeing in a row, of single pages mostly.
        let grow = r >> 8 & 7 < if step / 3000 % 2 == 0 { 7 } else { 1 };
        let order = if r >> 16 & 3 != 0 { 0 } else { (r >> 20) as u32 % if step / 1500 % 3 == 0 { 11 } else { 4 } };
        if grow || mine.is_empty() {
            let nid = (r >> 32) as usize % m.nodes.len();
            let thisnode = r >> 40 & 7 == 0;
            let got = alloc_pages_node(&cpus[c], &pa, nid as u32, order, thisnode);
            let want = m.alloc(c, nid, order, thisnode);
            assert_eq!((!got.is_null()).then_some(got as usize >> PAGE_SHIFT), want, "step {step}, order {order}");
            fails += u64::from(want.is_none());
            mine.extend(want);
        } else {
            // Neighbours in time often go together.
            let at = if r >> 24 & 1 == 0 { mine.len() - 1 } else { (r >> 32) as usize % mine.len() };
            let page = mine.swap_remove(at);
            let order = m.free(c, page);
            // SAFETY: handed out with that order, not freed yet.
            unsafe { free_pages(&cpus[c], &pa, (page << PAGE_SHIFT) as *mut u8, order) };
        }
        short += u64::from(m.nodes.iter().any(|n| n.below_high));
        if step % 16 == 0 {
            for (nid, n) in m.nodes.iter().enumerate() {
                let out: usize = m.out.iter().filter(|(p, _)| n.pages.contains(*p)).map(|(_, o)| 1usize << o).sum();
                assert_eq!(pa.node_outstanding(nid as u32), out as u64);
            }
            compare(&pa, &m);
        }
    }
    for page in mine {
        let order = m.free(0, page);
        // SAFETY: as above.
        unsafe { free_pages(&cpus[0], &pa, (page << PAGE_SHIFT) as *mut u8, order) };
    }
    compare(&pa, &m);
    assert_eq!(pa.outstanding(), 0);
    (fails, short)
}

#[test]
fn every_block_is_the_one_the_model_names() {
    let (mut fails, mut short) = (0, 0);
    for (i, (nodes, cpus, mib)) in
        [(1, 1, 16), (1, 2, 64), (2, 2, 16), (2, 4, 48), (3, 2, 12), (1, 4, 8)].into_iter().enumerate()
    {
        let (f, s) = run(nodes, cpus, mib, i as u64 + 1, 24_000);
        fails += f;
        short += s;
    }
    assert!(fails > 100 && short > 1000, "memory ran out, and was short: {fails} {short}");
}
