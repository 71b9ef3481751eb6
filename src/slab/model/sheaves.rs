// SPDX-License-Identifier: GPL-2.0-only
//! The model of 7.3: sheaves for each CPU, a barn and a list of partial slabs for each node.

use super::*;

/// Soft limits of a barn.
const MAX_FULL: usize = 10;
const MAX_EMPTY: usize = 10;

pub(super) struct MPcs {
    pub main: Vec<Obj>,
    pub spare: Option<Vec<Obj>>,
    pub rcu_free: Option<Vec<Obj>>,
}

pub(super) struct Sheaves {
    pub b: Base,
    pub cpus: Vec<MPcs>,
    /// By CPU: sheaves of freed objects that wait for a grace period; the node whose barn gets them, if any.
    pub waiting: Vec<Vec<(Option<usize>, Vec<Obj>)>>,
}

impl Sheaves {
    pub fn new(p: Params) -> Sheaves {
        let mut b = Base::new(p);
        // Each CPU's main sheaf comes with the cache.
        (0..p.nr_cpus).for_each(|c| b.count(c, C::sheaf_alloc));
        let cpus = (0..p.nr_cpus).map(|_| MPcs { main: Vec::new(), spare: None, rcu_free: None }).collect();
        Sheaves { b, cpus, waiting: vec![Vec::new(); p.nr_cpus] }
    }

    fn capacity(&self) -> usize {
        self.b.p.capacity
    }

    /// An empty sheaf of the barn, where a look without its lock says that there is one.
    fn barn_get_empty(&mut self, cpu: usize) -> bool {
        let node = self.b.node_of(cpu);
        let n = &mut self.b.nodes[node];
        if n.empty == 0 {
            return false;
        }
        n.empty -= 1;
        self.b.count(cpu, C::barn_lock);
        true
    }

    fn put_empty(&mut self, cpu: usize) {
        let node = self.b.node_of(cpu);
        self.b.count(cpu, C::barn_lock);
        self.b.nodes[node].empty += 1;
    }

    /// A full sheaf of the barn for the empty main.
    fn barn_replace_empty(&mut self, cpu: usize) -> bool {
        let node = self.b.node_of(cpu);
        let Some(full) = self.b.nodes[node].full.pop() else {
            return false;
        };
        self.b.count(cpu, C::barn_lock);
        self.b.nodes[node].empty += 1;
        self.b.count(cpu, C::barn_get);
        self.cpus[cpu].main = full;
        true
    }

    /// Sees to it that main holds something; false where no sheaf can.
    fn replace_empty_main(&mut self, cpu: usize) {
        let c = &mut self.cpus[cpu];
        if let Some(spare) = &mut c.spare
            && !spare.is_empty()
        {
            std::mem::swap(&mut c.main, spare);
            return;
        }
        if self.barn_replace_empty(cpu) {
            return;
        }
        self.b.count(cpu, C::barn_get_fail);
        if self.cpus[cpu].spare.take().is_none() && !self.barn_get_empty(cpu) {
            self.b.count(cpu, C::sheaf_alloc);
        }
        let filled = self.refill(cpu, self.capacity());
        self.b.add(cpu, C::sheaf_refill, filled.len());
        let c = &mut self.cpus[cpu];
        let old = std::mem::replace(&mut c.main, filled);
        if c.spare.is_none() {
            c.spare = Some(old);
        } else {
            self.put_empty(cpu);
        }
    }

    /// `want` objects: of the CPU's node's partial slabs, of other nodes', of new slabs.
    fn refill(&mut self, cpu: usize, want: usize) -> Vec<Obj> {
        let home = self.b.node_of(cpu);
        let mut got = Vec::new();
        self.refill_from_node(cpu, home, want, &mut got);
        if self.b.p.defrag {
            for n in (0..self.b.p.nr_nodes).filter(|&n| n != home) {
                if got.len() < want && self.b.nodes[n].partial.len() > self.b.p.min_partial {
                    self.refill_from_node(cpu, n, want, &mut got);
                }
            }
        }
        while got.len() < want {
            let slab = self.b.new_slab(cpu, home);
            let mut list = self.b.take_freelist(slab);
            let n = list.len().min(want - got.len());
            got.extend(list.drain(..n).map(|o| (slab, o)));
            if !list.is_empty() {
                self.b.put_chain(slab, list.make_contiguous());
                self.b.count(cpu, C::list_lock);
                self.b.list_add(slab, false);
            }
        }
        got
    }

    fn refill_from_node(&mut self, cpu: usize, node: usize, want: usize, got: &mut Vec<Obj>) {
        if self.b.nodes[node].partial.is_empty() {
            return;
        }
        self.b.count(cpu, C::list_lock);
        let (mut slabs, mut free) = (Vec::new(), 0);
        while free < want - got.len()
            && let Some(&slab) = self.b.nodes[node].partial.front()
        {
            self.b.list_del(slab);
            free += self.b.slabs[slab].free.len();
            slabs.push(slab);
        }
        for slab in slabs {
            let mut list = self.b.take_freelist(slab);
            let n = list.len().min(want - got.len());
            got.extend(list.drain(..n).map(|o| (slab, o)));
            if !list.is_empty() {
                self.b.put_chain(slab, list.make_contiguous());
                self.b.count(cpu, C::list_lock);
                self.b.list_add(slab, true);
            }
        }
    }

    fn alloc_slow(&mut self, cpu: usize, node: Option<usize>) -> Obj {
        self.b.count(cpu, C::alloc_slowpath);
        let home = node.unwrap_or(self.b.node_of(cpu));
        let mut nodes = vec![home];
        if node.is_none() && self.b.p.defrag {
            let far = |&n: &usize| n != home && self.b.nodes[n].partial.len() > self.b.p.min_partial;
            nodes.extend((0..self.b.p.nr_nodes).filter(far));
        }
        for n in nodes {
            let Some(&slab) = self.b.nodes[n].partial.front() else {
                continue;
            };
            self.b.count(cpu, C::list_lock);
            let s = &mut self.b.slabs[slab];
            let o = s.free.pop_front().expect("a partial slab has a free object");
            s.inuse += 1;
            if s.free.is_empty() {
                self.b.list_del(slab);
            }
            return (slab, o);
        }
        let slab = self.b.new_slab(cpu, home);
        let s = &mut self.b.slabs[slab];
        let o = s.free.pop_front().expect("a new slab");
        s.inuse = 1;
        if !s.free.is_empty() {
            self.b.count(cpu, C::list_lock);
            self.b.list_add(slab, false);
        }
        (slab, o)
    }

    /// Sees to it that main has room.
    fn replace_full_main(&mut self, cpu: usize) {
        let (node, capacity) = (self.b.node_of(cpu), self.capacity());
        let c = &mut self.cpus[cpu];
        match &mut c.spare {
            None => {
                if self.barn_get_empty(cpu) {
                    let c = &mut self.cpus[cpu];
                    c.spare = Some(std::mem::take(&mut c.main));
                    return;
                }
            }
            Some(spare) if spare.len() < capacity => {
                std::mem::swap(&mut c.main, spare);
                return;
            }
            Some(_) => {
                let n = &mut self.b.nodes[node];
                if n.full.len() >= MAX_FULL {
                    let spare = c.spare.replace(std::mem::take(&mut c.main)).expect("matched above");
                    self.b.count(cpu, C::barn_put_fail);
                    self.flush_sheaf(cpu, spare);
                    return;
                }
                if n.empty > 0 {
                    n.empty -= 1;
                    n.full.push(std::mem::take(&mut c.main));
                    self.b.count(cpu, C::barn_lock);
                    self.b.count(cpu, C::barn_put);
                    return;
                }
            }
        }
        self.b.count(cpu, C::sheaf_alloc);
        let c = &mut self.cpus[cpu];
        let main = std::mem::take(&mut c.main);
        if c.spare.is_none() {
            c.spare = Some(main);
        } else {
            self.b.nodes[node].full.push(main);
            self.b.count(cpu, C::barn_lock);
            self.b.count(cpu, C::barn_put);
        }
    }

    fn flush_sheaf(&mut self, cpu: usize, objs: Vec<Obj>) {
        self.b.add(cpu, C::sheaf_flush, objs.len());
        self.free_chains(cpu, &objs);
    }

    fn free_chains(&mut self, cpu: usize, objs: &[Obj]) {
        for (slab, chain) in Base::chains(objs) {
            self.free_to_slab(cpu, slab, &chain);
        }
    }

    fn free_past_sheaves(&mut self, cpu: usize, objs: &[Obj]) {
        self.b.add(cpu, C::free_slowpath, objs.len());
        self.b.add(cpu, C::free_slow_objects, objs.len());
        self.free_chains(cpu, objs);
    }

    fn free_to_slab(&mut self, cpu: usize, slab: usize, chain: &[u32]) {
        self.b.count(cpu, C::slab_updates);
        let was_full = self.b.slabs[slab].free.is_empty();
        self.b.put_chain(slab, chain);
        let s = &self.b.slabs[slab];
        let (empty, listed, node) = (s.inuse == 0, s.listed, s.node);
        if !was_full && !empty {
            return;
        }
        self.b.count(cpu, C::list_lock);
        if !was_full && !listed {
            return;
        }
        if empty && self.b.nodes[node].partial.len() >= self.b.p.min_partial {
            if listed {
                self.b.list_del(slab);
                self.b.count(cpu, C::free_remove_partial);
            }
            self.b.count(cpu, C::free_slab);
            self.b.discard(slab);
        } else if was_full {
            self.b.list_add(slab, true);
            self.b.count(cpu, C::free_add_partial);
        }
    }

    fn local(&self, cpu: usize, o: Obj) -> bool {
        self.b.slabs[o.0].node == self.b.node_of(cpu)
    }

    /// As [`Self::replace_full_main`], but makes no sheaf and flushes none.
    fn make_room(&mut self, cpu: usize) -> bool {
        let (node, capacity) = (self.b.node_of(cpu), self.capacity());
        match &mut self.cpus[cpu].spare {
            None => {
                if !self.barn_get_empty(cpu) {
                    return false;
                }
                let c = &mut self.cpus[cpu];
                c.spare = Some(std::mem::take(&mut c.main));
                return true;
            }
            Some(spare) if spare.len() < capacity => {}
            Some(_) => {
                let n = &mut self.b.nodes[node];
                if n.full.len() >= MAX_FULL || n.empty == 0 {
                    self.b.count(cpu, C::barn_put_fail);
                    return false;
                }
                n.empty -= 1;
                n.full.push(std::mem::take(&mut self.cpus[cpu].main));
                self.b.count(cpu, C::barn_lock);
                self.b.count(cpu, C::barn_put);
                return true;
            }
        }
        let c = &mut self.cpus[cpu];
        std::mem::swap(&mut c.main, c.spare.as_mut().expect("matched above"));
        true
    }
}

impl Model for Sheaves {
    fn base(&self) -> &Base {
        &self.b
    }

    fn alloc(&mut self, cpu: usize, node: Option<usize>) -> Obj {
        if node.is_some_and(|n| n != self.b.node_of(cpu)) {
            self.b.count(cpu, C::alloc_node_mismatch);
            return self.alloc_slow(cpu, node);
        }
        if self.cpus[cpu].main.is_empty() {
            self.replace_empty_main(cpu);
        }
        let &o = self.cpus[cpu].main.last().expect("filled");
        if node.is_some_and(|n| n != self.b.slabs[o.0].node) {
            // The description counts a mismatch for another node than the CPU's only; the port for this one too.
            self.b.count(cpu, C::alloc_node_mismatch);
            return self.alloc_slow(cpu, node);
        }
        self.cpus[cpu].main.pop();
        self.b.count(cpu, C::alloc_fastpath);
        o
    }

    fn free(&mut self, cpu: usize, o: Obj) {
        if !self.local(cpu, o) {
            return self.free_past_sheaves(cpu, &[o]);
        }
        if self.cpus[cpu].main.len() == self.capacity() {
            self.replace_full_main(cpu);
        }
        self.cpus[cpu].main.push(o);
        self.b.count(cpu, C::free_fastpath);
    }

    fn kfree_rcu(&mut self, cpu: usize, o: Obj) -> bool {
        if !self.local(cpu, o) {
            return false;
        }
        if self.cpus[cpu].rcu_free.is_none() {
            if self.cpus[cpu].spare.as_ref().is_some_and(Vec::is_empty) {
                self.cpus[cpu].spare = None;
            } else if !self.barn_get_empty(cpu) {
                self.b.count(cpu, C::sheaf_alloc);
            }
            self.cpus[cpu].rcu_free = Some(Vec::new());
        }
        let node = self.b.node_of(cpu);
        let capacity = self.capacity();
        self.b.count(cpu, C::free_rcu_sheaf);
        let c = &mut self.cpus[cpu];
        let mut sheaf = c.rcu_free.take().expect("made above");
        sheaf.push(o);
        if sheaf.len() == capacity {
            self.waiting[cpu].push((Some(node), sheaf));
        } else {
            c.rcu_free = Some(sheaf);
        }
        true
    }

    /// Sheaves arrive at their barns, type-stable pages go back: also those that the sheaves empty, since a barrier on
    /// one thread goes on until nothing waits.
    fn grace_period(&mut self) -> Vec<usize> {
        for cpu in 0..self.b.p.nr_cpus {
            for (node, sheaf) in std::mem::take(&mut self.waiting[cpu]) {
                let Some(node) = node else {
                    self.flush_sheaf(cpu, sheaf);
                    self.b.count(cpu, C::sheaf_free);
                    continue;
                };
                if self.b.nodes[node].full.len() < MAX_FULL {
                    self.b.count(cpu, C::barn_lock);
                    self.b.count(cpu, C::barn_put);
                    self.b.nodes[node].full.push(sheaf);
                    continue;
                }
                self.b.count(cpu, C::barn_put_fail);
                self.flush_sheaf(cpu, sheaf);
                if self.b.nodes[node].empty < MAX_EMPTY {
                    self.b.count(cpu, C::barn_lock);
                    self.b.nodes[node].empty += 1;
                } else {
                    self.b.count(cpu, C::sheaf_free);
                }
            }
        }
        std::mem::take(&mut self.b.pending)
    }

    fn bulk_alloc(&mut self, cpu: usize, n: usize) -> Vec<Obj> {
        let mut got = Vec::new();
        while got.len() < n {
            if self.cpus[cpu].main.is_empty() {
                let c = &mut self.cpus[cpu];
                if let Some(spare) = &mut c.spare
                    && !spare.is_empty()
                {
                    std::mem::swap(&mut c.main, spare);
                } else if !self.barn_replace_empty(cpu) {
                    self.b.count(cpu, C::barn_get_fail);
                    break;
                }
            }
            // A run keeps the order it has in the sheaf.
            let main = &mut self.cpus[cpu].main;
            let run = main.split_off(main.len() - main.len().min(n - got.len()));
            self.b.add(cpu, C::alloc_fastpath, run.len());
            got.extend(run);
        }
        if got.len() < n {
            let rest = self.refill(cpu, n - got.len());
            self.b.add(cpu, C::alloc_slowpath, rest.len());
            got.extend(rest);
        }
        got
    }

    fn bulk_free(&mut self, cpu: usize, objs: &[Obj]) {
        let (mut local, mut remote) = (objs.to_vec(), Vec::new());
        let mut i = 0;
        while i < local.len() {
            if self.local(cpu, local[i]) {
                i += 1;
                continue;
            }
            remote.push(local.swap_remove(i));
            if remote.len() == 32 {
                self.free_past_sheaves(cpu, &std::mem::take(&mut remote));
            }
        }
        let mut left = &local[..];
        while !left.is_empty() {
            if self.cpus[cpu].main.len() == self.capacity() && !self.make_room(cpu) {
                break;
            }
            let main = &mut self.cpus[cpu].main;
            let n = left.len().min(self.b.p.capacity - main.len());
            main.extend(&left[..n]);
            self.b.add(cpu, C::free_fastpath, n);
            left = &left[n..];
        }
        self.free_past_sheaves(cpu, left);
        self.free_past_sheaves(cpu, &remote);
    }

    /// The spare first, rcu_free on its way, then main in batches from its end.
    fn flush(&mut self, cpu: usize, by: usize) {
        let spare = self.cpus[cpu].spare.take();
        let rcu_free = self.cpus[cpu].rcu_free.take();
        if let Some(spare) = spare {
            self.flush_sheaf(by, spare);
            self.b.count(by, C::sheaf_free);
        }
        if let Some(sheaf) = rcu_free {
            self.waiting[by].push((None, sheaf));
        }
        let mut main = std::mem::take(&mut self.cpus[cpu].main);
        while !main.is_empty() {
            let batch = main.split_off(main.len().saturating_sub(32));
            self.flush_sheaf(by, batch);
        }
    }

    fn shrink(&mut self, cpu: usize) {
        (0..self.b.p.nr_cpus).for_each(|c| self.flush(c, cpu));
        for node in 0..self.b.p.nr_nodes {
            self.b.count(cpu, C::barn_lock);
            let full = std::mem::take(&mut self.b.nodes[node].full);
            let empty = std::mem::take(&mut self.b.nodes[node].empty);
            self.b.add(cpu, C::sheaf_free, full.len() + empty);
            full.into_iter().rev().for_each(|s| self.flush_sheaf(cpu, s));
        }
        (0..self.b.p.nr_nodes).for_each(|n| self.b.shrink_node(cpu, n));
    }

    fn stack(&self, _cpu: usize) -> usize {
        0
    }
}

mod tables {
    use super::*;

    fn alloc(m: &mut Sheaves, n: usize) -> Vec<Obj> {
        (0..n).map(|_| m.alloc(0, None)).collect()
    }

    #[test]
    fn traces_are_the_published_ones() {
        let mut m = Sheaves::new(TABLES);
        let p = alloc(&mut m, 210);
        expect(&m, &[(C::alloc_fastpath, 210), (C::alloc_slab, 12), (C::sheaf_refill, 240)]);
        expect(&m, &[(C::barn_get_fail, 4), (C::sheaf_alloc, 2)]);
        p.into_iter().for_each(|o| m.free(0, o));
        expect(&m, &[(C::free_fastpath, 210), (C::sheaf_alloc, 4), (C::barn_put, 2)]);
        assert_eq!((m.b.nr_slabs(), m.b.nodes[0].full.len()), (12, 2));
        assert_eq!((m.cpus[0].main.len(), m.cpus[0].spare.as_ref().map(Vec::len)), (60, Some(60)));
        m.shrink(0);
        assert_eq!(m.b.nr_slabs(), 0);

        let mut m = Sheaves::new(TABLES);
        alloc(&mut m, 420).into_iter().for_each(|o| m.free(0, o));
        expect(&m, &[(C::alloc_slab, 20), (C::sheaf_refill, 420), (C::barn_get_fail, 7)]);
        expect(&m, &[(C::barn_put, 5), (C::sheaf_alloc, 7)]);
        assert_eq!((m.b.nr_slabs(), m.b.nodes[0].full.len()), (20, 5));

        let mut m = Sheaves::new(TABLES);
        (0..10_000).for_each(|_| {
            let o = m.alloc(0, None);
            m.free(0, o);
        });
        expect(
            &m,
            &[(C::alloc_fastpath, 10_000), (C::free_fastpath, 10_000), (C::alloc_slab, 3), (C::sheaf_refill, 60)],
        );

        let mut m = Sheaves::new(TABLES);
        (0..100).for_each(|_| alloc(&mut m, 1024).into_iter().for_each(|o| m.free(0, o)));
        expect(&m, &[(C::alloc_slab, 1044), (C::sheaf_refill, 36_720), (C::sheaf_flush, 36_000)]);
        expect(&m, &[(C::barn_put, 1000), (C::barn_put_fail, 600), (C::free_slab, 1002)]);
        assert_eq!((m.b.hw(), m.b.nr_slabs()), (52, 42));

        let mut m = Sheaves::new(Params { nr_cpus: 2, ..TABLES });
        (0..100).for_each(|_| alloc(&mut m, 210).into_iter().for_each(|o| m.free(1, o)));
        expect(&m, &[(C::alloc_slab, 18), (C::sheaf_refill, 360), (C::barn_put, 348), (C::barn_get, 344)]);
        expect(&m, &[(C::free_fastpath, 21_000), (C::free_slab, 0)]);

        let mut m = Sheaves::new(TABLES);
        alloc(&mut m, 840).into_iter().for_each(|o| m.free(0, o));
        expect(&m, &[(C::barn_put, 10), (C::barn_put_fail, 2), (C::sheaf_flush, 120)]);
        expect(&m, &[(C::free_add_partial, 6), (C::free_slab, 1)]);
        assert_eq!(m.b.nr_slabs(), 39);

        let mut m = Sheaves::new(TABLES);
        for _ in 0..100 {
            for o in alloc(&mut m, 1200) {
                assert!(m.kfree_rcu(0, o));
            }
            m.grace_period();
        }
        expect(&m, &[(C::free_rcu_sheaf, 120_000), (C::barn_put, 1000), (C::barn_put_fail, 1000)]);
        expect(&m, &[(C::sheaf_flush, 60_000), (C::alloc_slab, 2632), (C::free_slab, 2600), (C::sheaf_alloc, 21)]);
        assert_eq!(m.b.nodes[0].empty, 10);
    }

    #[test]
    fn workload_r_is_the_published_one() {
        let also = [C::barn_lock, C::sheaf_refill, C::sheaf_flush, C::slab_updates];
        for (batch, want, more) in [
            (0, [99_999, 100_000, 0, 100_000, 0, 0, 0, 49], [None, None, None, None]),
            (256, [389, 100_000, 0, 99_584, 0, 16, 26, 75], [Some(3110), None, None, None]),
            (
                1024,
                [96, 100_000, 0, 98_304, 0, 13_506, 97, 146],
                [Some(1920), Some(36_240), Some(34_560), Some(33_279)],
            ),
        ] {
            let (row, got) = workload_r(&mut Sheaves::new(TABLES), 1000, batch, &also);
            assert_eq!(row, want, "rcu {batch}");
            for (got, want) in got.into_iter().zip(more) {
                assert_eq!(got, want.unwrap_or(got), "rcu {batch}");
            }
        }
    }
}
