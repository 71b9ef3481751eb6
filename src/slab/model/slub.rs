// SPDX-License-Identifier: GPL-2.0-only
//! The model of 6.12: a slab and a stack of partial slabs for each CPU, a list of partial slabs for each node.

use super::*;

#[derive(Default)]
pub(super) struct MCpu {
    pub slab: Option<usize>,
    /// Head first.
    pub freelist: VecDeque<u32>,
    /// Top last.
    pub stack: Vec<usize>,
}

pub(super) struct Slub {
    pub b: Base,
    pub cpus: Vec<MCpu>,
}

impl Slub {
    pub fn new(p: Params) -> Slub {
        Slub { b: Base::new(p), cpus: (0..p.nr_cpus).map(|_| MCpu::default()).collect() }
    }

    /// Makes `slab` the CPU's, with all that is free in it, and takes the first.
    fn load(&mut self, cpu: usize, slab: usize) -> Obj {
        let list = self.b.take_freelist(slab);
        self.b.slabs[slab].frozen = true;
        let c = &mut self.cpus[cpu];
        (c.slab, c.freelist) = (Some(slab), list);
        (slab, c.freelist.pop_front().expect("a partial slab has a free object"))
    }

    fn alloc_slow(&mut self, cpu: usize, node: Option<usize>) -> Obj {
        self.b.count(cpu, C::alloc_slowpath);
        if let Some(slab) = self.cpus[cpu].slab {
            let s = &mut self.b.slabs[slab];
            if node.is_some_and(|n| n != s.node) {
                self.b.count(cpu, C::alloc_node_mismatch);
                self.deactivate(cpu, cpu);
            } else if !s.free.is_empty() {
                self.b.count(cpu, C::alloc_refill);
                return self.load(cpu, slab);
            } else {
                s.frozen = false;
                self.cpus[cpu].slab = None;
                self.b.count(cpu, C::deactivate_bypass);
            }
        }
        while let Some(slab) = self.cpus[cpu].stack.pop() {
            if node.is_none_or(|n| n == self.b.slabs[slab].node) {
                self.b.count(cpu, C::cpu_partial_alloc);
                return self.load(cpu, slab);
            }
            self.put_partials(cpu, vec![slab]);
        }
        let home = node.unwrap_or(self.b.node_of(cpu));
        let mut slab = self.get_partial_node(cpu, home);
        if slab.is_none() && node.is_none() && self.b.p.defrag {
            for n in (0..self.b.p.nr_nodes).filter(|&n| n != home) {
                if slab.is_none() && self.b.nodes[n].partial.len() > self.b.p.min_partial {
                    slab = self.get_partial_node(cpu, n);
                }
            }
        }
        let slab = slab.unwrap_or_else(|| self.b.new_slab(cpu, home));
        self.load(cpu, slab)
    }

    fn get_partial_node(&mut self, cpu: usize, node: usize) -> Option<usize> {
        let first = *self.b.nodes[node].partial.front()?;
        self.b.count(cpu, C::list_lock);
        self.b.list_del(first);
        self.b.count(cpu, C::alloc_from_partial);
        let mut extras = 0;
        while extras <= self.b.p.cpu_partial_slabs / 2
            && let Some(&slab) = self.b.nodes[node].partial.front()
        {
            self.b.list_del(slab);
            self.cpus[cpu].stack.push(slab);
            self.b.count(cpu, C::cpu_partial_node);
            extras += 1;
        }
        Some(first)
    }

    /// Whether an empty slab is one too many for its node.
    fn surplus(&self, slab: usize) -> bool {
        let s = &self.b.slabs[slab];
        s.inuse == 0 && self.b.nodes[s.node].partial.len() >= self.b.p.min_partial
    }

    /// `slabs`: newest first.
    fn put_partials(&mut self, cpu: usize, slabs: Vec<usize>) {
        let mut discard = Vec::new();
        let mut locked = None;
        for slab in slabs {
            let node = self.b.slabs[slab].node;
            if locked.replace(node) != Some(node) {
                self.b.count(cpu, C::list_lock);
            }
            if self.surplus(slab) {
                discard.push(slab);
            } else {
                self.b.list_add(slab, true);
                self.b.count(cpu, C::free_add_partial);
            }
        }
        for slab in discard {
            self.b.count(cpu, C::deactivate_empty);
            self.b.count(cpu, C::free_slab);
            self.b.discard(slab);
        }
    }

    fn deactivate(&mut self, whose: usize, cpu: usize) {
        let c = &mut self.cpus[whose];
        let slab = c.slab.take().expect("a cpu slab");
        let list: Vec<u32> = std::mem::take(&mut c.freelist).into();
        let tail = !self.b.slabs[slab].free.is_empty();
        if tail {
            self.b.count(cpu, C::deactivate_remote_frees);
        }
        self.b.put_chain(slab, &list);
        self.b.slabs[slab].frozen = false;
        if self.surplus(slab) {
            self.b.count(cpu, C::deactivate_empty);
            self.b.count(cpu, C::free_slab);
            self.b.discard(slab);
        } else if self.b.slabs[slab].free.is_empty() {
            self.b.count(cpu, C::deactivate_full);
        } else {
            self.b.count(cpu, C::list_lock);
            self.b.list_add(slab, tail);
            self.b.count(cpu, if tail { C::deactivate_to_tail } else { C::deactivate_to_head });
        }
    }

    fn free_chain(&mut self, cpu: usize, slab: usize, chain: &[u32]) {
        if self.cpus[cpu].slab == Some(slab) {
            for &o in chain.iter().rev() {
                self.cpus[cpu].freelist.push_front(o);
            }
            self.b.add(cpu, C::free_fastpath, chain.len());
            return;
        }
        self.b.count(cpu, C::free_slowpath);
        self.b.add(cpu, C::free_slow_objects, chain.len());
        let s = &self.b.slabs[slab];
        let (was_full, frozen) = (s.free.is_empty(), s.frozen);
        self.b.put_chain(slab, chain);
        let empty = self.b.slabs[slab].inuse == 0;
        if frozen {
            self.b.count(cpu, C::free_frozen);
        } else if was_full {
            let c = &mut self.cpus[cpu];
            let mut old = Vec::new();
            if c.stack.len() >= self.b.p.cpu_partial_slabs {
                old = std::mem::take(&mut c.stack);
            }
            c.stack.push(slab);
            if !old.is_empty() {
                old.reverse();
                self.put_partials(cpu, old);
                self.b.count(cpu, C::cpu_partial_drain);
            }
            self.b.count(cpu, C::cpu_partial_free);
        } else if empty {
            self.b.count(cpu, C::list_lock);
            if self.b.slabs[slab].listed && self.surplus(slab) {
                self.b.list_del(slab);
                self.b.count(cpu, C::free_remove_partial);
                self.b.count(cpu, C::free_slab);
                self.b.discard(slab);
            }
        }
    }
}

impl Model for Slub {
    fn base(&self) -> &Base {
        &self.b
    }

    fn alloc(&mut self, cpu: usize, node: Option<usize>) -> Obj {
        let c = &mut self.cpus[cpu];
        if let Some(slab) = c.slab
            && node.is_none_or(|n| n == self.b.slabs[slab].node)
            && let Some(o) = c.freelist.pop_front()
        {
            self.b.count(cpu, C::alloc_fastpath);
            return (slab, o);
        }
        self.alloc_slow(cpu, node)
    }

    fn free(&mut self, cpu: usize, o: Obj) {
        self.free_chain(cpu, o.0, &[o.1]);
    }

    fn bulk_alloc(&mut self, cpu: usize, n: usize) -> Vec<Obj> {
        (0..n).map(|_| self.alloc(cpu, None)).collect()
    }

    fn bulk_free(&mut self, cpu: usize, objs: &[Obj]) {
        for (slab, chain) in Base::chains(objs) {
            self.free_chain(cpu, slab, &chain);
        }
    }

    fn flush(&mut self, cpu: usize, by: usize) {
        if self.cpus[cpu].slab.is_some() {
            self.b.count(by, C::cpuslab_flush);
            self.deactivate(cpu, by);
        }
        let mut old = std::mem::take(&mut self.cpus[cpu].stack);
        old.reverse();
        self.put_partials(by, old);
    }

    fn shrink(&mut self, cpu: usize) {
        (0..self.b.p.nr_cpus).for_each(|c| self.flush(c, cpu));
        (0..self.b.p.nr_nodes).for_each(|n| self.b.shrink_node(cpu, n));
    }

    fn grace_period(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.b.pending)
    }

    fn stack(&self, cpu: usize) -> usize {
        self.cpus[cpu].stack.len()
    }
}

pub(in crate::slab) mod tables {
    use super::*;

    /// Batch, and the row of one live object: see [`workload_r`].
    pub(in crate::slab) const ONE_OBJECT: [(usize, [u64; 8]); 2] =
        [(0, [99_999, 100_000, 0, 100_000, 0, 0, 0, 1]), (1024, [96, 92_931, 7069, 10, 98_294, 3508, 1841, 98])];

    fn alloc(m: &mut Slub, n: usize) -> Vec<Obj> {
        (0..n).map(|_| m.alloc(0, None)).collect()
    }

    #[test]
    fn traces_are_the_published_ones() {
        let mut m = Slub::new(TABLES);
        let p = alloc(&mut m, 210);
        expect(
            &m,
            &[(C::alloc_fastpath, 200), (C::alloc_slowpath, 10), (C::alloc_slab, 10), (C::deactivate_bypass, 9)],
        );
        p.into_iter().for_each(|o| m.free(0, o));
        let want = [(C::free_fastpath, 21), (C::free_slowpath, 189), (C::cpu_partial_free, 9), (C::list_lock, 9)];
        expect(&m, &want);
        assert_eq!((m.b.nr_slabs(), m.cpus[0].stack.len()), (10, 9));
        m.flush(0, 0);
        expect(&m, &[(C::cpuslab_flush, 1), (C::deactivate_to_head, 1), (C::free_add_partial, 4)]);
        expect(&m, &[(C::deactivate_empty, 5), (C::free_slab, 5)]);
        assert_eq!(m.b.nodes[0].partial.len(), 5);
        m.shrink(0);
        assert_eq!((m.b.nr_slabs(), m.b.nodes[0].partial.len()), (0, 0));

        let mut m = Slub::new(TABLES);
        alloc(&mut m, 420).into_iter().for_each(|o| m.free(0, o));
        expect(&m, &[(C::alloc_slab, 20), (C::free_slowpath, 399), (C::cpu_partial_free, 19)]);
        expect(&m, &[(C::cpu_partial_drain, 1), (C::free_add_partial, 5), (C::deactivate_empty, 7), (C::free_slab, 7)]);
        assert_eq!((m.b.nr_slabs(), m.b.nodes[0].partial.len(), m.cpus[0].stack.len()), (13, 5, 7));

        let mut m = Slub::new(TABLES);
        (0..10_000).for_each(|_| {
            let o = m.alloc(0, None);
            m.free(0, o);
        });
        expect(&m, &[(C::alloc_fastpath, 9999), (C::alloc_slowpath, 1), (C::free_fastpath, 10_000)]);

        let mut m = Slub::new(TABLES);
        (0..100).for_each(|_| alloc(&mut m, 1024).into_iter().for_each(|o| m.free(0, o)));
        expect(&m, &[(C::alloc_slab, 3118), (C::alloc_slowpath, 4801), (C::free_fastpath, 1600)]);
        expect(&m, &[(C::free_slowpath, 100_800), (C::cpu_partial_drain, 300), (C::free_slab, 3100)]);
        assert_eq!((m.b.hw(), m.b.nr_slabs()), (49, 18));

        let mut m = Slub::new(Params { nr_cpus: 2, ..TABLES });
        (0..100).for_each(|_| alloc(&mut m, 210).into_iter().for_each(|o| m.free(1, o)));
        expect(&m, &[(C::alloc_slab, 531), (C::free_slowpath, 21_000), (C::free_frozen, 2100), (C::alloc_refill, 99)]);
        expect(&m, &[(C::cpu_partial_drain, 74), (C::free_slab, 518)]);
        assert_eq!(m.cpus[1].stack.len(), 12);
    }

    #[test]
    fn workload_r_is_the_published_one() {
        for (batch, want) in [
            (0, [91_983, 6991, 93_009, 1996, 98_004, 0, 0, 48]),
            (32, [2888, 32_900, 67_100, 1915, 98_053, 14_085, 3, 51]),
            (256, [388, 72_931, 27_069, 1419, 98_165, 5051, 24, 72]),
            (1024, [94, 86_403, 13_597, 691, 97_613, 2809, 98, 146]),
        ] {
            assert_eq!(workload_r(&mut Slub::new(TABLES), 1000, batch, &[]).0, want, "rcu {batch}");
        }
    }

    /// One live object: published are that all is fast, and of batches the slow frees, the slabs made and the most there
    /// were. The rest is this model's, which the port's test repeats.
    #[test]
    fn workload_r_of_one_object_is_the_published_one() {
        for (batch, want) in ONE_OBJECT {
            let row = workload_r(&mut Slub::new(TABLES), 1, batch, &[]).0;
            println!("{batch}: {row:?}");
            assert_eq!(row, want, "rcu {batch}");
        }
    }
}
