// SPDX-License-Identifier: GPL-2.0-only
//! What does a whole operation on an address space cost? Each call of the port at 10 to 10,000 VMAs, beside the running
//! kernel's call of the same name, with the same arguments, in the same run.
//!
//! Both go through `mm::Call`: the port by `mm::syscall`, the kernel by the system call itself. The kernel also pays
//! for entering and leaving it, for TLB flushes and, in a guest, for nested page tables; the port for neither. So a
//! ratio of the two is context and no claim. A pair of calls that undo each other is one operation here. Instructions
//! (docs/instructions.md) are the port's alone, without ticks: what waits for a grace period is called between the batches.
//!
//! The field: VMAs of four pages with holes of four between them, readable and writable, never touched except where a
//! row says so; before the two rows of forks it is unmapped and mapped anew, since what the rows before them touched keeps
//! its page tables and its anon_vmas, which a fork copies. Places are drawn at random, as a repeated walk would train the
//! predictors.
//!
//! A port's memory is gone before the kernel's turn, else fork would copy its page tables too; the child of the kernel's
//! fork does get the rest of this process, a few dozen VMAs, and the time to wait for its end is counted.

#[expect(dead_code, reason = "no two CPUs here")]
mod peers;

use faultline::arch::native::{NativeMachine, OsCpu};
use faultline::arch::{Native, Relaxed};
use faultline::cpu::{Cpu, splitmix64, tick};
use faultline::init::{Kernel, KernelConfig, run_on_cpus, shutdown, start_kernel};
use faultline::mm::kconfig::{Config, Kconfig};
use faultline::mm::syscall::{Process, syscall};
use faultline::mm::variant;
use faultline::mm::vma_lock::{refcnt::Refcnt, rwsem_separate::RwsemSeparate};
use faultline::mm::{Call, mm_alloc, mmput};
use faultline::rcu::rcu_barrier;
use faultline::slab::kvfree_rcu_barrier;
use peers::{Bench, Contender, Figure, ROW, Row};
use std::cell::RefCell;
use std::sync::Mutex;

const PAGE: u64 = 4096;
/// Pages of a VMA and of the hole behind it.
const PAGES: u64 = 4;
/// First VMA of the field.
const FIELD: u64 = 0x2000_0000_0000;
/// Where a VMA is moved to and back from.
const ASIDE: u64 = 0x3000_0000_0000;
const RW: u32 = 3;
const FIXED: u32 = 0x32;
const MREMAP: u32 = 3;

/// Somebody who carries calls out.
trait Calls {
    fn call(&mut self, c: Call) -> u64;
    /// A child of the field's address space, and its end.
    fn fork_exit(&mut self);
    /// No page table is left, where that can be seen.
    fn is_untouched(&self) -> bool;
}

/// The port: one mm on one CPU.
struct Port<'a, K: Kconfig<A = Native>> {
    cpu: &'a Cpu<Native>,
    k: &'a Kernel<K>,
    p: Process<K>,
}

impl<K: Kconfig<A = Native>> Calls for Port<'_, K> {
    #[inline]
    fn call(&mut self, c: Call) -> u64 {
        let r = syscall(self.cpu, self.k, &mut self.p, &c).unwrap_or_else(|e| failed(&c, e));
        tick::exit_to_user_mode(self.cpu);
        r
    }
    fn fork_exit(&mut self) {
        self.call(Call::Fork);
        self.call(Call::Exit);
    }
    fn is_untouched(&self) -> bool {
        self.p.mm.pgtables_bytes.load(Relaxed) == 0
    }
}

impl<K: Kconfig<A = Native>> Drop for Port<'_, K> {
    fn drop(&mut self) {
        mmput(self.cpu, self.k, self.p.mm);
    }
}

fn failed(c: &Call, e: impl std::fmt::Display) -> ! {
    panic!("{c:x?}: {e}")
}

/// The kernel under this process.
struct Host;

impl Calls for Host {
    #[inline]
    fn call(&mut self, c: Call) -> u64 {
        // SAFETY: only the field and the place aside are changed, which are nobody's but ours.
        let r = unsafe {
            match c {
                Call::Mmap { addr, len, prot, flags, .. } => {
                    libc::syscall(libc::SYS_mmap, addr, len, prot, flags, -1, 0)
                }
                Call::Munmap { addr, len } => libc::syscall(libc::SYS_munmap, addr, len),
                Call::Mprotect { addr, len, prot } => libc::syscall(libc::SYS_mprotect, addr, len, prot),
                Call::Madvise { addr, len, advice } => libc::syscall(libc::SYS_madvise, addr, len, advice),
                Call::Mremap { addr, old_len, new_len, flags, new_addr } => {
                    libc::syscall(libc::SYS_mremap, addr, old_len, new_len, flags, new_addr)
                }
                // Nobody allocates between the two.
                Call::Brk { to } => libc::syscall(libc::SYS_brk, to),
                Call::Mlock { addr, len, flags } => libc::syscall(libc::SYS_mlock2, addr, len, flags),
                Call::Munlock { addr, len } => libc::syscall(libc::SYS_munlock, addr, len),
                Call::Write { addr, value } => {
                    (addr as *mut u8).write_volatile(value);
                    0
                }
                _ => unreachable!("not one of the rows"),
            }
        };
        if r < 0 && r > -4096 {
            failed(&c, std::io::Error::last_os_error());
        }
        r as u64
    }
    fn fork_exit(&mut self) {
        // SAFETY: the child only ends.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(0);
            }
            assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    fn is_untouched(&self) -> bool {
        // The rest of this process has its page tables, and nobody shows whose they are.
        true
    }
}

/// Random places of a field.
struct Places {
    order: Vec<u32>,
    next: usize,
}

impl Places {
    fn new(vmas: u64) -> Self {
        let mut x = vmas;
        let order = (0..65_536).map(|_| {
            x = splitmix64(x);
            (x % vmas) as u32
        });
        Places { order: order.collect(), next: 0 }
    }
    /// Address of a VMA.
    #[inline]
    fn draw(&mut self) -> u64 {
        self.next = (self.next + 1) % self.order.len();
        FIELD + u64::from(self.order[self.next]) * 2 * PAGES * PAGE
    }
}

fn mmap(addr: u64, pages: u64) -> Call {
    Call::Mmap { addr, len: pages * PAGE, prot: RW, flags: FIXED, fd: None, offset: 0 }
}
fn munmap(addr: u64, pages: u64) -> Call {
    Call::Munmap { addr, len: pages * PAGE }
}

/// A row: its name, and what one operation does at a VMA's address.
type Operation<S> = (&'static str, fn(&mut S, u64));

/// Pairs of calls that leave the field as it was.
fn operations<S: Calls>() -> Vec<Operation<S>> {
    vec![
        ("map and unmap, isolated", |s, a| {
            s.call(mmap(a + 5 * PAGE, 1));
            s.call(munmap(a + 5 * PAGE, 1));
        }),
        ("extend and trim", |s, a| {
            s.call(mmap(a + PAGES * PAGE, 1));
            s.call(munmap(a + PAGES * PAGE, 1));
        }),
        ("unmap and map a whole VMA", |s, a| {
            s.call(munmap(a, PAGES));
            s.call(mmap(a, PAGES));
        }),
        ("punch a hole and fill it", |s, a| {
            s.call(munmap(a + PAGE, 1));
            s.call(mmap(a + PAGE, 1));
        }),
        ("protect the middle and restore", |s, a| {
            s.call(Call::Mprotect { addr: a + PAGE, len: PAGE, prot: 1 });
            s.call(Call::Mprotect { addr: a + PAGE, len: PAGE, prot: RW });
        }),
        ("advise the middle and restore", |s, a| {
            s.call(Call::Madvise { addr: a + PAGE, len: PAGE, advice: libc::MADV_DONTDUMP });
            s.call(Call::Madvise { addr: a + PAGE, len: PAGE, advice: libc::MADV_DODUMP });
        }),
        ("lock the middle and unlock it", |s, a| {
            s.call(Call::Mlock { addr: a + PAGE, len: PAGE, flags: 1 });
            s.call(Call::Munlock { addr: a + PAGE, len: PAGE });
        }),
        ("map over a whole VMA, twice", |s, a| {
            s.call(Call::Mmap { addr: a, len: PAGES * PAGE, prot: 1, flags: FIXED, fd: None, offset: 0 });
            s.call(mmap(a, PAGES));
        }),
        ("grow and shrink by mremap", |s, a| {
            let (short, long) = (PAGES * PAGE, (PAGES + 1) * PAGE);
            s.call(Call::Mremap { addr: a, old_len: short, new_len: long, flags: 0, new_addr: 0 });
            s.call(Call::Mremap { addr: a, old_len: long, new_len: short, flags: 0, new_addr: 0 });
        }),
        ("ask for the break, move it up and down", |s, _| {
            let heap = s.call(Call::Brk { to: 0 });
            s.call(Call::Brk { to: heap + PAGE });
            s.call(Call::Brk { to: heap });
        }),
        ("move away and back", |s, a| {
            let len = PAGES * PAGE;
            s.call(Call::Mremap { addr: a, old_len: len, new_len: len, flags: MREMAP, new_addr: ASIDE });
            s.call(Call::Mremap { addr: ASIDE, old_len: len, new_len: len, flags: MREMAP, new_addr: a });
        }),
        ("touch a page and drop it", |s, a| {
            s.call(Call::Write { addr: a, value: 1 });
            s.call(Call::Madvise { addr: a, len: PAGE, advice: libc::MADV_DONTNEED });
        }),
    ]
}

/// The field anew: nothing in it has ever been touched, whatever the rows before did to it.
fn lay<S: Calls>(s: &mut S, vmas: u64) {
    s.call(munmap(FIELD, vmas * 2 * PAGES));
    for i in 0..vmas {
        s.call(mmap(FIELD + i * 2 * PAGES * PAGE, PAGES));
    }
    assert!(s.is_untouched(), "a fork of the field would copy pages or anon_vmas");
}

/// Writes a page of each VMA.
fn touch<S: Calls>(s: &mut S, vmas: u64) {
    (0..vmas).for_each(|i| _ = s.call(Call::Write { addr: FIELD + i * 2 * PAGES * PAGE, value: 1 }));
}

/// Fastest batches, ns an operation: a list a row, in the order of [`names`].
fn measure<S: Calls>(s: &mut S, b: &Bench, vmas: u64, out: &mut Vec<Vec<f64>>) {
    let rounds = b.pick(1, 5, 30);
    let batch = b.pick(4, 300, 1000);
    lay(s, vmas);
    let mut places = Places::new(vmas);
    let mut row = 0;
    let mut take = |n: u64, f: &mut dyn FnMut()| {
        if out.len() <= row {
            out.push(Vec::new());
        }
        // The first one warms up.
        for round in 0..=rounds {
            let t = std::time::Instant::now();
            f();
            if round != 0 {
                out[row].push(t.elapsed().as_nanos() as f64 / n as f64);
            }
        }
        row += 1;
    };
    for (_, f) in operations::<S>() {
        take(batch, &mut || (0..batch).for_each(|_| f(s, places.draw())));
    }
    let forks = b.pick(1, (3000 / vmas).max(1), (30_000 / vmas).max(1));
    lay(s, vmas);
    take(forks, &mut || (0..forks).for_each(|_| s.fork_exit()));
    // All faulted in: the child needs page tables and anon_vmas too.
    touch(s, vmas);
    take(forks, &mut || (0..forks).for_each(|_| s.fork_exit()));
    s.call(munmap(FIELD, vmas * 2 * PAGES));
}

/// Instructions of a pair of calls of 7.3's own VMA code over its tree, locks, page tables and accounting stubbed, by 10,
/// 100, 1000 and 10,000 VMAs.
const LISTED: [(&str, [u32; 4]); 5] = [
    ("map and unmap, isolated", [2 * 2213, 2 * 2353, 2 * 2430, 2 * 2195]),
    ("extend and trim", [2 * 3073, 2 * 3669, 2 * 3830, 2 * 3830]),
    ("unmap and map a whole VMA", [2 * 2336, 2 * 2776, 2 * 2950, 2 * 3205]),
    ("punch a hole and fill it", [2 * 3330, 2 * 3440, 2 * 3520, 2 * 3576]),
    ("protect the middle and restore", [2 * 2778, 2 * 2884, 2 * 2985, 2 * 3035]),
];

/// Of a row, if it has them.
fn listed(name: &str, vmas: u64) -> Option<f64> {
    let (_, of) = LISTED.iter().find(|l| l.0 == name)?;
    Some(f64::from(of[vmas.ilog10() as usize - 1]))
}

fn names() -> Vec<&'static str> {
    let mut n: Vec<_> = operations::<Host>().iter().map(|o| o.0).collect();
    n.extend(FORKS);
    n
}

/// One pass over the rows in a fresh kernel of build `K`, which is `variant`'s.
fn port<K: Kconfig<A = Native>>(b: &Bench, variant: &str, vmas: u64, out: &mut Vec<Vec<f64>>) {
    let cpus = [OsCpu { cpu: b.cpus[0], node: 0 }];
    let machine = NativeMachine::new(&cpus, 512 << 20, |_, _| 10).unwrap_or_else(|e| peers::die(&e.to_string()));
    let variant = variant::parse(variant).unwrap_or_else(|e| peers::die(&e));
    let k = start_kernel::<K>(&machine, &variant.configure(KernelConfig::default()));
    let rows = Mutex::new(Vec::new());
    run_on_cpus(&machine, &k, 1, |cpu| {
        let mut s = Port { cpu, k: &k, p: Process::new(mm_alloc(cpu, &k)) };
        measure(&mut s, b, vmas, &mut rows.lock().expect("one thread"));
    });
    let cpu = k.cpu(0);
    let left = shutdown(&cpu, &k);
    assert!(left.is_clean(), "{left:?}");
    for (i, row) in rows.into_inner().expect("one thread").into_iter().enumerate() {
        if out.len() <= i {
            out.push(Vec::new());
        }
        out[i].extend(row);
    }
}

/// Counts the instructions of the rows of build `K`, which is `variant`'s.
fn count<K: Kconfig<A = Native>>(b: &mut Bench, variant: &'static str, vmas: u64) {
    let cpus = [OsCpu { cpu: b.cpus[0], node: 0 }];
    let machine = NativeMachine::new(&cpus, 512 << 20, |_, _| 10).unwrap_or_else(|e| peers::die(&e.to_string()));
    let config = variant::parse(variant).unwrap_or_else(|e| peers::die(&e)).configure(KernelConfig::default());
    let k = start_kernel::<K>(&machine, &config);
    let cpu = &k.cpu(0);
    let settle = || {
        kvfree_rcu_barrier(cpu, &k.slab);
        rcu_barrier(cpu, &k.rcu);
    };
    {
        let s = RefCell::new(Port { cpu, k: &k, p: Process::new(mm_alloc(cpu, &k)) });
        lay(&mut *s.borrow_mut(), vmas);
        let places = RefCell::new(Places::new(vmas));
        let mut row = |name: &str, batch: u64, turn: &dyn Fn()| {
            let run = |n| (0..n).for_each(|_| turn());
            let listed = listed(name, vmas);
            let mut c = [Contender { after: Some(Box::new(settle)), listed, ..Contender::new(variant, run) }];
            // With real locks, page tables and accounting in place.
            let rows = [Row { ours: variant, at_most: listed.map(|l| 1.1 * l), ..ROW }];
            b.solo(&format!("vma_ops/{vmas} VMAs/{name}"), batch, &mut c, &rows);
        };
        settle();
        for (name, f) in operations::<Port<'_, K>>() {
            row(name, 100, &|| f(&mut s.borrow_mut(), places.borrow_mut().draw()));
        }
        let [fork, touched] = FORKS;
        lay(&mut *s.borrow_mut(), vmas);
        settle();
        row(fork, 1, &|| s.borrow_mut().fork_exit());
        touch(&mut *s.borrow_mut(), vmas);
        row(touched, 1, &|| s.borrow_mut().fork_exit());
    }
    settle();
    let left = shutdown(cpu, &k);
    assert!(left.is_clean(), "{left:?}");
}

/// The rows behind [`operations`].
const FORKS: [&str; 2] = ["fork and exit, untouched", "fork and exit, a page of each touched"];

const CONTENDERS: [&str; 3] = ["v6.12", "refcnt+typesafe@sheaves", "this kernel"];

fn main() {
    let mut b = Bench::open("vma_ops");
    b.sizes = true;
    for vmas in [10, 100, 1000, 10_000] {
        if b.counts {
            count::<Config<Native, RwsemSeparate>>(&mut b, CONTENDERS[0], vmas);
            count::<Config<Native, Refcnt>>(&mut b, CONTENDERS[1], vmas);
            continue;
        }
        if !b.wants(&format!("vma_ops/{vmas} VMAs")) || b.tests && vmas > 100 {
            continue;
        }
        let mut ns: [Vec<Vec<f64>>; 3] = Default::default();
        // In turn, as one after the other would leave each to another hour of the machine.
        for _ in 0..b.pick(1, 3, 5) {
            port::<Config<Native, RwsemSeparate>>(&b, CONTENDERS[0], vmas, &mut ns[0]);
            port::<Config<Native, Refcnt>>(&b, CONTENDERS[1], vmas, &mut ns[1]);
            measure(&mut Host, &b, vmas, &mut ns[2]);
        }
        for (i, name) in names().iter().enumerate() {
            let figures: Vec<_> = CONTENDERS.iter().zip(&ns).map(|(c, n)| Figure::fastest(c, n[i].clone())).collect();
            let rows = ["v6.12", "refcnt+typesafe@sheaves"].map(|ours| Row { ours, against: &["this kernel"], ..ROW });
            b.report(&format!("vma_ops/{vmas} VMAs/{name}"), 1, &figures, &rows);
        }
    }
}
