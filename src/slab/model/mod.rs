// SPDX-License-Identifier: GPL-2.0-only
//! A second opinion on the allocators, for tests: slow models of the 6.12 slabs ([`slub`]) and of the 7.3 sheaves
//! ([`sheaves`]), in vectors and deques, and their comparison with the port step by step ([`differential`]).
//!
//! The models were written from the description of the two kernels' algorithms, not from the port, and share nothing
//! with it, geometry included: it is given as numbers. They know no memory. An object is a pair of numbers, a slab is
//! the number of its creation, a lock is the count of its acquisitions.
//!
//! What they cannot tell: anything about concurrency. CPUs take turns between whole calls, so no exchange ever fails
//! and no lock is ever contended. Randomised freelists have no place in them either.

mod differential;
mod sheaves;
pub(super) mod slub;

use std::collections::VecDeque;

/// Slab, by order of creation, and place in it.
type Obj = (usize, u32);

macro_rules! counters {
    ($($name:ident)*) => {
        #[expect(non_camel_case_types, reason = "the kernel's names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum C { $($name),* }
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
counters! {
    alloc_fastpath alloc_slowpath free_fastpath free_slowpath free_add_partial free_remove_partial alloc_slab
    alloc_node_mismatch free_slab free_frozen alloc_from_partial alloc_refill cpuslab_flush deactivate_full
    deactivate_empty deactivate_to_head deactivate_to_tail deactivate_remote_frees deactivate_bypass cpu_partial_alloc
    cpu_partial_free cpu_partial_node cpu_partial_drain free_rcu_sheaf sheaf_flush sheaf_refill sheaf_alloc sheaf_free
    barn_get barn_get_fail barn_put barn_put_fail list_lock barn_lock free_slow_objects slab_updates
}

/// What a cache looks like.
#[derive(Clone, Copy, Debug)]
struct Params {
    nr_cpus: usize,
    /// CPU c is on node c modulo this.
    nr_nodes: usize,
    objects: u32,
    cpu_partial_slabs: usize,
    min_partial: usize,
    /// Objects of a sheaf.
    capacity: usize,
    typesafe: bool,
    /// Whether a node without partial slabs looks at the others: always or never, where the kernel throws dice.
    defrag: bool,
}

/// The cache of the published tables.
const TABLES: Params = Params {
    nr_cpus: 1,
    nr_nodes: 1,
    objects: 21,
    cpu_partial_slabs: 12,
    min_partial: 5,
    capacity: 60,
    typesafe: false,
    defrag: true,
};

#[derive(Debug, Default)]
struct MSlab {
    node: usize,
    /// Head first.
    free: VecDeque<u32>,
    inuse: u32,
    frozen: bool,
    listed: bool,
    dead: bool,
}

#[derive(Debug, Default)]
struct MNode {
    /// Head first.
    partial: VecDeque<usize>,
    nr_slabs: u64,
    hw: u64,
    /// Full sheaves, head last.
    full: Vec<Vec<Obj>>,
    /// Number of empty sheaves.
    empty: usize,
}

/// What both kernels have: slabs, node lists, counters.
struct Base {
    p: Params,
    slabs: Vec<MSlab>,
    nodes: Vec<MNode>,
    counts: Vec<[u64; NAMES.len()]>,
    /// Emptied slabs of a type-stable cache that wait for a grace period.
    pending: Vec<usize>,
}

impl Base {
    fn new(p: Params) -> Base {
        Base {
            p,
            slabs: Vec::new(),
            nodes: (0..p.nr_nodes).map(|_| MNode::default()).collect(),
            counts: vec![[0; NAMES.len()]; p.nr_cpus],
            pending: Vec::new(),
        }
    }

    fn node_of(&self, cpu: usize) -> usize {
        cpu % self.p.nr_nodes
    }

    fn count(&mut self, cpu: usize, c: C) {
        self.add(cpu, c, 1);
    }

    fn add(&mut self, cpu: usize, c: C, n: usize) {
        self.counts[cpu][c as usize] += n as u64;
    }

    fn sum(&self, c: C) -> u64 {
        self.counts.iter().map(|v| v[c as usize]).sum()
    }

    fn nr_slabs(&self) -> u64 {
        self.nodes.iter().map(|n| n.nr_slabs).sum()
    }

    fn hw(&self) -> u64 {
        self.nodes.iter().map(|n| n.hw).sum()
    }

    /// A slab with all objects on its freelist, in order of address.
    fn new_slab(&mut self, cpu: usize, node: usize) -> usize {
        self.count(cpu, C::alloc_slab);
        self.slabs.push(MSlab { node, free: (0..self.p.objects).collect(), ..MSlab::default() });
        let n = &mut self.nodes[node];
        n.nr_slabs += 1;
        n.hw = n.hw.max(n.nr_slabs);
        self.slabs.len() - 1
    }

    /// Gone from the counts at once; the pages of a type-stable cache wait.
    fn discard(&mut self, slab: usize) {
        let s = &mut self.slabs[slab];
        assert!(s.inuse == 0 && !s.listed && !s.dead && s.free.len() == self.p.objects as usize);
        s.dead = true;
        self.nodes[s.node].nr_slabs -= 1;
        if self.p.typesafe {
            self.pending.push(slab);
        }
    }

    /// The whole freelist; all objects count as used from now on.
    fn take_freelist(&mut self, slab: usize) -> VecDeque<u32> {
        let s = &mut self.slabs[slab];
        s.inuse = self.p.objects;
        std::mem::take(&mut s.free)
    }

    /// Puts a chain, head first, in front of the slab's list.
    fn put_chain(&mut self, slab: usize, chain: &[u32]) {
        let s = &mut self.slabs[slab];
        s.inuse = s.inuse.checked_sub(chain.len() as u32).expect("more freed than used");
        for &o in chain.iter().rev() {
            assert!(!s.free.contains(&o), "freed twice");
            s.free.push_front(o);
        }
        assert!(!s.dead);
    }

    fn list_add(&mut self, slab: usize, tail: bool) {
        let s = &mut self.slabs[slab];
        assert!(!std::mem::replace(&mut s.listed, true));
        let l = &mut self.nodes[s.node].partial;
        if tail { l.push_back(slab) } else { l.push_front(slab) }
    }

    fn list_del(&mut self, slab: usize) {
        let s = &mut self.slabs[slab];
        assert!(std::mem::replace(&mut s.listed, false));
        self.nodes[s.node].partial.retain(|&x| x != slab);
    }

    /// Empty slabs go; those with at most 32 free objects to the front, the fullest first, and those alike in
    /// the opposite order of before.
    fn shrink_node(&mut self, cpu: usize, node: usize) {
        self.count(cpu, C::list_lock);
        let mut buckets = vec![Vec::new(); 33];
        let mut rest = VecDeque::new();
        for slab in std::mem::take(&mut self.nodes[node].partial) {
            match self.slabs[slab].free.len() {
                n if n == self.p.objects as usize => {
                    self.slabs[slab].listed = false;
                    self.discard(slab);
                }
                n if n <= 32 => buckets[n].push(slab),
                _ => rest.push_back(slab),
            }
        }
        let list = &mut self.nodes[node].partial;
        list.extend(buckets.into_iter().flat_map(|b| b.into_iter().rev()));
        list.extend(rest);
    }

    /// A bulk free cut into chains of one slab each, head first: from the end of the array, until three objects of other
    /// slabs were seen.
    fn chains(objs: &[Obj]) -> Vec<(usize, Vec<u32>)> {
        let mut p = objs.to_vec();
        let mut chains = Vec::new();
        while let Some((slab, last)) = p.pop() {
            let mut chain = vec![last];
            let (mut i, mut end, mut foreign) = (p.len(), p.len(), 0);
            while i > 0 && foreign < 3 {
                i -= 1;
                if p[i].0 == slab {
                    chain.insert(0, p[i].1);
                    end -= 1;
                    p.swap(i, end);
                } else {
                    foreign += 1;
                }
            }
            p.truncate(end);
            chains.push((slab, chain));
        }
        chains
    }
}

/// A model of an allocator.
trait Model {
    fn base(&self) -> &Base;
    fn alloc(&mut self, cpu: usize, node: Option<usize>) -> Obj;
    fn free(&mut self, cpu: usize, o: Obj);
    fn bulk_alloc(&mut self, cpu: usize, n: usize) -> Vec<Obj>;
    fn bulk_free(&mut self, cpu: usize, objs: &[Obj]);
    /// False: not taken, or the kernel has no such thing.
    fn kfree_rcu(&mut self, _cpu: usize, _o: Obj) -> bool {
        false
    }
    /// What `cpu` holds goes to the slabs; counted by the CPU that asks.
    fn flush(&mut self, cpu: usize, by: usize);
    fn shrink(&mut self, cpu: usize);
    /// Returns the slabs whose pages go back.
    fn grace_period(&mut self) -> Vec<usize>;
    /// Slabs on the CPU's stack.
    fn stack(&self, cpu: usize) -> usize;

    fn sum(&self, c: C) -> u64 {
        self.base().sum(c)
    }
}

/// Row of the table of workload R(L): hot, allocations fast and slow, frees fast and slow, list locks, slabs made,
/// most slabs at once. `batch` 0: freed at once.
fn workload_r(m: &mut dyn Model, live: usize, batch: usize, also: &[C]) -> ([u64; 8], Vec<u64>) {
    let mut slots: Vec<Obj> = (0..live).map(|_| m.alloc(0, None)).collect();
    let base = m.base().counts[0];
    let (mut x, mut hot, mut last) = (88_172_645_463_325_252u64, 0, None);
    let (mut now, mut before): (Vec<Obj>, Vec<Obj>) = Default::default();
    for _ in 0..100_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let victim = (x >> 11) as usize % live;
        let o = m.alloc(0, None);
        hot += u64::from(last == Some(o));
        let old = std::mem::replace(&mut slots[victim], o);
        if batch == 0 {
            m.free(0, old);
            last = Some(old);
            continue;
        }
        now.push(old);
        if now.len() == batch {
            for &o in &before {
                m.free(0, o);
                last = Some(o);
            }
            before = std::mem::take(&mut now);
        }
    }
    let d = |c: C| m.sum(c) - base[c as usize];
    let row = [
        hot,
        d(C::alloc_fastpath),
        d(C::alloc_slowpath),
        d(C::free_fastpath),
        d(C::free_slowpath),
        d(C::list_lock),
        d(C::alloc_slab),
        m.base().hw(),
    ];
    (row, also.iter().map(|&c| d(c)).collect())
}

#[track_caller]
fn expect(m: &dyn Model, want: &[(C, u64)]) {
    for &(c, n) in want {
        assert_eq!(m.sum(c), n, "{c:?}");
    }
}
