// SPDX-License-Identifier: GPL-2.0-only
//! `start_kernel()`: boots a small kernel on a machine, in the kernel's order [init/main.c, kernel/fork.c, 6.12].
//!
//! There are no globals: what a kernel keeps in statics is a field of [`Kernel`]. A machine runs one kernel at a time;
//! starting the next one forgets the last ([`Machine::reset`]), so [`shutdown`] must have been called.
//!
//! Order: per-CPU areas, page allocator, RCU, slab, maple tree, the caches of mm.
//!
//! [`Machine::reset`]: crate::arch::Machine::reset

use crate::arch::arena::{Arena, KRef};
use crate::arch::{Acquire, Atomic, Hardware, Job, Machine, Release};
use crate::cpu::sched::Wait;
use crate::cpu::smp::CpuRemote;
use crate::cpu::stat::SLOTS;
use crate::cpu::tick::{TickDevice, idle_loop, start_tick_signal};
use crate::cpu::workqueue::kworker;
use crate::cpu::{AllLockNodes, Cpu, LockNodes, PerCpu, Task, nr_kthreads, sched};
use crate::maple_tree::{MapleRules, MapleState, maple_tree_init_with};
use crate::mm::file::{FileState, files_init};
use crate::mm::kconfig::{Kconfig, Mm};
use crate::mm::mm_types::{DEFAULT_MAX_MAP_COUNT, MMAP_LOCK_OFFSET, mm_shift};
use crate::mm::pgtable::alloc_zeroed_page;
use crate::mm::rmap::{anon_vma_args, anon_vma_chain_args};
use crate::mm::rules::MmRules;
use crate::mm::util::VmCommitted;
use crate::mm::vma_cache::{VmaCache, VmaState, vma_state_init};
use crate::rcu::{QsPolicy, RcuConfig, RcuState, rcu_barrier, rcu_gp_kthread};
use crate::slab::{KmemCache, KmemCacheArgs, PageAllocator, SLAB_ACCOUNT, SLAB_HWCACHE_ALIGN, SLAB_PANIC, SlabState};
use crate::slab::{
    SlabOptions, build_zonelists, drain_page_caches, flush_rcu_sheaves, free_pages, kmem_cache_create,
    kmem_cache_destroy, kmem_cache_init, kvfree_rcu_barrier, memblock_free_all, page_alloc_init_with,
};
use crate::sync::PercpuCounters;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

/// What a kernel is built and booted with; part of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// RCU's options, HZ and the quiescent-state policy among them.
    pub rcu: RcuConfig,
    /// The clock is read at each this many operation boundaries: 1 where that is free.
    pub tick_every: u32,
    /// Seed of the CPUs' random sequences.
    pub seed: u64,
    /// `vm.max_map_count`
    pub max_map_count: i32,
    /// How slab caches are built.
    pub slab: SlabOptions,
    /// CPUs for which slab orders are computed; 0: the machine's.
    pub geometry_cpus: u32,
    /// How workers wait once they sleep.
    pub wait: Wait,
    /// Rules of the VMA operations.
    pub rules: MmRules,
    /// How VMAs are allocated and freed.
    pub vma_cache: VmaCache,
    /// `CONFIG_DETECT_HUNG_TASK_BLOCKER` of 7.3: each read unlock of an rwsem takes its task out of `owner` by one more
    /// locked exchange. 6.12 has it with lock debugging only.
    pub hung_task_blocker: bool,
    /// Rules of the maple tree; none: those of the version that the allocator is of.
    pub maple_rules: Option<MapleRules>,
    /// Where in its line every `mmap_lock` lies, bytes: a multiple of 8 below 64.
    pub mmap_lock_offset: u32,
}

impl Default for KernelConfig {
    fn default() -> Self {
        KernelConfig {
            rcu: RcuConfig::default(),
            tick_every: 8,
            seed: 1,
            max_map_count: DEFAULT_MAX_MAP_COUNT,
            slab: SlabOptions::default(),
            geometry_cpus: 0,
            wait: Wait::Futex,
            rules: MmRules::V6_12,
            vma_cache: VmaCache::CallRcu,
            hung_task_blocker: false,
            maple_rules: None,
            mmap_lock_offset: MMAP_LOCK_OFFSET,
        }
    }
}

impl KernelConfig {
    /// With `hz` ticks a second.
    pub fn hz(mut self, hz: u32) -> Self {
        self.rcu.hz = hz;
        self
    }
    /// With another quiescent-state policy.
    pub fn qs_policy(mut self, policy: QsPolicy) -> Self {
        self.rcu.qs_policy = policy;
        self
    }
    /// With another way to wait.
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }
}

/// A running kernel of build `K`. All it keeps is the same for every lock protocol: code that needs no VMA takes the
/// [`KernelState`] that this derefs to, and is compiled once a world instead of once a protocol.
pub struct Kernel<K: Kconfig> {
    state: KernelState<K::A>,
    _build: PhantomData<fn() -> K>,
}

impl<K: Kconfig> Deref for Kernel<K> {
    type Target = KernelState<K::A>;

    #[inline(always)]
    fn deref(&self) -> &KernelState<K::A> {
        &self.state
    }
}

/// What a running kernel keeps.
pub struct KernelState<A: Hardware> {
    /// Pages.
    pub pages: KRef<PageAllocator<A>>,
    /// RCU.
    pub rcu: KRef<RcuState<A>>,
    /// Caches' common state.
    pub slab: KRef<SlabState<A>>,
    /// Tree nodes.
    pub maple: KRef<MapleState<A>>,
    /// VMAs and their locks.
    pub vma_state: KRef<VmaState<A>>,
    /// mm_structs.
    pub mm_cachep: KRef<KmemCache<A>>,
    /// anon_vmas.
    pub anon_vma_cachep: KRef<KmemCache<A>>,
    /// Chain links.
    pub anon_vma_chain_cachep: KRef<KmemCache<A>>,
    /// Files.
    pub files: KRef<FileState<A>>,
    /// The shared page of zeros.
    pub zero_page: NonNull<u8>,
    /// Per-CPU counters: the resident pages of every mm.
    pub percpu_counters: PercpuCounters<A>,
    /// What processes were promised.
    pub vm_committed: KRef<VmCommitted<A>>,
    /// `vm.max_map_count`
    pub max_map_count: i32,
    /// Rules of the VMA operations.
    pub rules: MmRules,
    end: KRef<EndLine<A>>,
    tasks: PerCpu<A, Task<A>>,
    remotes: PerCpu<A, CpuRemote<A>>,
    lock_nodes: AllLockNodes<A>,
    nodes: Vec<u32>,
    nr_cpus: u32,
    config: KernelConfig,
}

// SAFETY: everything inside is arena memory made of words, or constant after boot.
unsafe impl<A: Hardware> Sync for KernelState<A> {}
// SAFETY: as above.
unsafe impl<A: Hardware> Send for KernelState<A> {}

/// Boots. The calling thread is CPU 0 for the time of the call.
pub fn start_kernel<K: Kconfig>(machine: &<K::A as Hardware>::Machine, config: &KernelConfig) -> Kernel<K> {
    let mm = size_of::<Mm<K>>();
    let state = boot(machine, config, mm, vma_state_init::<K::A, K::Lock>);
    Kernel { state, _build: PhantomData }
}

/// Makes what depends on the lock protocol: [`vma_state_init`].
type VmaStateInit<A> = fn(&Arena, KRef<SlabState<A>>, VmaCache) -> KRef<VmaState<A>>;

/// `mm`: size of an mm_struct.
fn boot<A: Hardware>(
    machine: &A::Machine,
    config: &KernelConfig,
    mm: usize,
    vma_state_init: VmaStateInit<A>,
) -> KernelState<A> {
    machine.reset();
    let arena = machine.arena();
    let nr_cpus = machine.nr_cpus();
    let kthreads = nr_kthreads(nr_cpus, config.rcu.nocb);
    let total = nr_cpus + kthreads;
    let node_of = |cpu: u32| if cpu < nr_cpus { machine.node_of(cpu) } else { 0 };
    // setup_per_cpu_areas()
    let tasks = PerCpu::new(arena, total, node_of, "task_struct", |id| {
        // A kernel thread has no CPU of its own that it could poll on.
        Task::new_waiting(id, if id < nr_cpus { config.wait } else { Wait::Futex })
    });
    let remotes = PerCpu::new(arena, total, node_of, "cpu_remote", |_| CpuRemote::new());
    let lock_nodes = PerCpu::new(arena, total, node_of, "lock_nodes", |_| LockNodes::new());
    let percpu_counters = PercpuCounters::new(arena, nr_cpus, total, node_of);
    let end = arena.boot_new(0, EndLine { left: Atomic::new(0), over: Atomic::new(0) });
    A::label(end.as_ptr().cast(), size_of::<EndLine<A>>(), "harness");
    // mm_core_init()
    let pages = page_alloc_init_with::<A>(arena, nr_cpus, kthreads, &node_of);
    build_zonelists(&pages, &|from, to| machine.distance(from, to));
    let rcu = RcuState::new(arena, nr_cpus, node_of, &config.rcu);
    let geometry = if config.geometry_cpus == 0 { nr_cpus } else { config.geometry_cpus };
    let slab = kmem_cache_init(arena, pages, rcu, geometry, config.slab);
    // maple_tree_init(), then the caches of proc_caches_init() and anon_vma_init()
    let maple = maple_tree_init_with(arena, slab, config.maple_rules);
    let anon_vma_cachep = kmem_cache_create(arena, slab, anon_vma_args::<A>());
    let anon_vma_chain_cachep = kmem_cache_create(arena, slab, anon_vma_chain_args::<A>());
    let mm_cachep = kmem_cache_create(
        arena,
        slab,
        KmemCacheArgs {
            name: "mm_struct",
            size: mm + mm_shift(config.mmap_lock_offset),
            align: 64,
            flags: SLAB_HWCACHE_ALIGN | SLAB_PANIC | SLAB_ACCOUNT,
            ..KmemCacheArgs::default()
        },
    );
    let vm_committed = arena.boot_new(0, VmCommitted::new());
    A::label(vm_committed.as_ptr().cast(), size_of::<VmCommitted<A>>(), "vm_committed_as");
    let vma_state = vma_state_init(arena, slab, config.vma_cache);
    let files = files_init(arena, slab);
    let mut k = KernelState {
        pages,
        rcu,
        slab,
        maple,
        vma_state,
        mm_cachep,
        anon_vma_cachep,
        anon_vma_chain_cachep,
        files,
        zero_page: NonNull::dangling(),
        percpu_counters,
        vm_committed,
        max_map_count: config.max_map_count,
        rules: config.rules,
        end,
        tasks,
        remotes,
        lock_nodes,
        nodes: (0..total).map(node_of).collect(),
        nr_cpus,
        config: *config,
    };
    let boot = k.cpu(0);
    memblock_free_all(&boot, &k.pages);
    k.vm_committed.init(&boot, &k.percpu_counters, nr_cpus);
    k.zero_page = NonNull::new(alloc_zeroed_page(&boot, &k, "zero page")).expect("memory for the zero page");
    k
}

/// What was left when a kernel was shut down; all zero in a right run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeakReport {
    /// Caches with objects that nobody freed.
    pub busy: Vec<&'static str>,
    /// Pages that nobody freed.
    pub pages: u64,
    /// Groups of per-CPU counters in use: address spaces that nobody put.
    pub mms: u32,
    /// Pages promised that nobody gave back.
    pub committed: i64,
}

impl LeakReport {
    /// Whether nothing was left.
    pub fn is_clean(&self) -> bool {
        self.busy.is_empty() && self.pages == 0 && self.mms == 0 && self.committed == 0
    }
}

/// Ends a kernel: calls what RCU still has, destroys the caches, reports what was left. On worker 0's token, while no
/// worker is up.
pub fn shutdown<A: Hardware>(cpu: &Cpu<A>, k: &KernelState<A>) -> LeakReport {
    rcu_barrier(cpu, &k.rcu);
    kvfree_rcu_barrier(cpu, &k.slab);
    drain_page_caches(cpu, &k.slab);
    // SAFETY: the page of zeros, which no entry maps any more.
    unsafe { free_pages(cpu, &k.pages, k.zero_page.as_ptr(), 0) };
    let mut caches = vec![
        ("mm_struct", k.mm_cachep),
        ("anon_vma", k.anon_vma_cachep),
        ("anon_vma_chain", k.anon_vma_chain_cachep),
        ("vm_area_struct", k.vma_state.vm_area_cachep),
        ("maple_node", k.maple.node_cache),
        ("filp", k.files.filp_cachep),
        ("inode_cache", k.files.inode_cachep),
        ("radix_tree_node", k.files.radix_tree_node_cachep),
    ];
    caches.extend(k.vma_state.vma_lock_cachep.map(|c| ("vma_lock", c)));
    let mut busy = Vec::new();
    for (name, c) in caches {
        // SAFETY: no CPU is up and nothing is pending: this thread is alone.
        if unsafe { kmem_cache_destroy(cpu, &c) }.is_err() {
            busy.push(name);
        }
    }
    rcu_barrier(cpu, &k.rcu);
    let committed = k.vm_committed.end(cpu, &k.percpu_counters);
    LeakReport { busy, pages: k.pages.outstanding(), mms: k.percpu_counters.in_use(), committed }
}

/// Where the workers of [`run_on_cpus`] meet at the end.
struct EndLine<A: Hardware> {
    left: Atomic<A, u32>,
    over: Atomic<A, u32>,
}

/// Runs `body` on workers `0..n` with the grace-period thread and the kworker beside them, and ends as a kernel does: a
/// worker that is done idles (its callbacks still run there) until `kvfree_rcu_barrier()` and `rcu_barrier()` found
/// everybody's called. Returns each worker's counters and, last, the grace-period thread's, the kworker's and, where
/// callbacks are offloaded, those of the two threads for that.
pub fn run_on_cpus<A: Hardware>(
    machine: &A::Machine,
    k: &KernelState<A>,
    n: u32,
    body: impl Fn(&Cpu<A>) + Sync,
) -> Vec<[u64; SLOTS]> {
    run_bodies(machine, k, n, &body)
}

fn run_bodies<A: Hardware>(
    machine: &A::Machine,
    k: &KernelState<A>,
    n: u32,
    body: &(dyn Fn(&Cpu<A>) + Sync),
) -> Vec<[u64; SLOTS]> {
    assert!(n >= 1 && n <= k.nr_cpus, "between 1 and {} workers", k.nr_cpus);
    let end = k.end;
    // ORDER: release; nothing runs yet.
    end.left.store(n, Release);
    end.over.store(0, Release);
    let mut counters = vec![[0u64; SLOTS]; n as usize + 2 + k.rcu.nocb_threads() as usize];
    let (workers, threads) = counters.split_at_mut(n as usize);
    let (gp_thread, threads) = threads.split_at_mut(1);
    let (kworker_thread, nocb_threads) = threads.split_at_mut(1);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for (id, out) in workers.iter_mut().enumerate() {
        jobs.push(Job {
            cpu: Some(id as u32),
            f: Box::new(move || {
                let cpu = k.cpu(id as u32);
                k.rcu.install_hooks(&cpu);
                k.slab.kvfree.install_timer(&cpu);
                let by_signal = k.rcu.config().qs_policy == QsPolicy::Timer;
                // SAFETY: the token stays in its place; the signal, declared after it, ends before it.
                let signal = if by_signal { unsafe { start_tick_signal(&cpu) } } else { None };
                body(&cpu);
                cpu.tick.by_signal.set(false);
                drop(signal);
                flush_rcu_sheaves(&cpu, &k.slab);
                // ORDER: full; the last one's body is over before rcu_barrier() begins.
                end.left.fetch_sub(1, crate::arch::Full);
                if id == 0 {
                    // ORDER: acquire; meets the others' decrements: their bodies are over.
                    idle_loop(&cpu, || end.left.load(Acquire) == 0);
                    kvfree_rcu_barrier(&cpu, &k.slab);
                    rcu_barrier(&cpu, &k.rcu);
                    // ORDER: release; meets the acquire of the others below.
                    end.over.store(1, Release);
                    for t in k.tasks.iter().take(n as usize) {
                        // SAFETY: boot memory.
                        sched::wake_up_process(unsafe { KRef::from_ref(t) });
                    }
                    k.slab.kvfree.wq.stop();
                    k.rcu.stop();
                } else {
                    // ORDER: acquire; meets worker 0's store.
                    idle_loop(&cpu, || end.over.load(Acquire) != 0);
                }
                k.rcu.remove_hooks(&cpu);
                *out = cpu.counters.snapshot();
            }),
        });
    }
    jobs.push(Job {
        cpu: None,
        f: Box::new(|| {
            let cpu = k.gp_kthread_cpu();
            rcu_gp_kthread(&cpu, &k.rcu);
            gp_thread[0] = cpu.counters.snapshot();
        }),
    });
    jobs.push(Job {
        cpu: None,
        f: Box::new(|| {
            let cpu = k.kworker_cpu();
            k.rcu.install_hooks(&cpu);
            k.slab.kvfree.install_timer(&cpu);
            kworker(&cpu, &k.slab.kvfree.wq);
            k.rcu.remove_hooks(&cpu);
            kworker_thread[0] = cpu.counters.snapshot();
        }),
    });
    for (i, out) in nocb_threads.iter_mut().enumerate() {
        jobs.push(Job {
            cpu: None,
            f: Box::new(move || {
                let cpu = k.token(k.nr_cpus + 2 + i as u32, TickDevice::off());
                k.rcu.nocb_thread(&cpu, i as u32);
                *out = cpu.counters.snapshot();
            }),
        });
    }
    machine.run(jobs);
    counters
}

impl<A: Hardware> KernelState<A> {
    fn token(&self, id: u32, tick: TickDevice) -> Cpu<A> {
        // SAFETY: boot memory lives as long as the kernel.
        let (task, remote) = unsafe { (KRef::from_ref(self.tasks.of(id)), KRef::from_ref(self.remotes.of(id))) };
        let cpu = Cpu::new(id, self.nodes[id as usize], task, remote, self.lock_nodes, tick, self.config.seed);
        cpu.clear_reader_owned.set(self.config.hung_task_blocker);
        cpu
    }

    /// The token of worker `id`, to be made on the thread that runs it, one at a time. Where other workers run too,
    /// `rcu.install_hooks()` comes first and `rcu.remove_hooks()` last ([`run_on_cpus`] does all of it).
    pub fn cpu(&self, id: u32) -> Cpu<A> {
        assert!(id < self.nr_cpus, "worker {id} of {}", self.nr_cpus);
        self.token(id, self.rcu.tick_device(self.config.tick_every))
    }

    /// The token of the grace-period thread.
    pub fn gp_kthread_cpu(&self) -> Cpu<A> {
        self.token(self.nr_cpus, TickDevice::off())
    }

    /// The token of the kworker, which frees what `kfree_rcu()` batched.
    pub fn kworker_cpu(&self) -> Cpu<A> {
        self.token(self.nr_cpus + 1, self.rcu.tick_device(1))
    }

    /// Worker CPUs.
    pub fn nr_cpus(&self) -> u32 {
        self.nr_cpus
    }

    /// What it was booted with.
    pub fn config(&self) -> &KernelConfig {
        &self.config
    }
}
