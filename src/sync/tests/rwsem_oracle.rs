// SPDX-License-Identifier: GPL-2.0-only
//! L2 of the reference: random operations by 1 to 8 CPUs against a model of who may hold what.
//!
//! The model knows no bits. It is a book: what each CPU is sure to hold, and who is on the way in or out. A hold is entered
//! after the operation that got it and struck out before the one that gives it up, so that what the book says is held
//! is held. From this follow what an operation may return, and between which bounds the words of the lock may lie at any
//! moment; where nobody is on the way they must be one number.
//!
//! Twice: on simulated CPUs, where a seed is an interleaving and a CPU can be stopped between any two accesses, and on
//! threads, in both ways of waiting. That the model would notice is tested by lying to it.

use super::on_cpus_of;
use super::starvation::work;
use crate::arch::arena::KRef;
use crate::arch::sim::{Jitter, SimConfig, SimMachine};
use crate::arch::{Arch, Atomic, Job, Machine, Native, Sim};
use crate::cpu::sched::{Wait, flush_signals, send_sigkill};
use crate::cpu::smp::CpuRemote;
use crate::cpu::testing::{CpuSet, for_test_set, for_test_set_waiting};
use crate::cpu::tick::TickDevice;
use crate::cpu::{Cpu, Errno, LockNodes, PerCpu, Task};
use crate::sync::{
    LockEvent, RwSemaphore, down_read, down_read_killable, down_read_trylock, down_write, down_write_killable,
    down_write_trylock, downgrade_write, up_read, up_write,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

/// What a CPU is sure to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// So many times: it may take it again by trying.
    Reads(u32),
    Writes,
}

/// What a CPU is on the way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Rest,
    /// Asking, or leaving: as a reader.
    Read,
    /// As a writer; a downgrade is one until it is over.
    Write,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    holds: Holds,
    way: Way,
    /// Whether it may sleep in the queue.
    waits: bool,
    /// When it last could have kept a reader or a writer out, and when a reader's trying only.
    excluded: u64,
    queued: u64,
    /// Writers that have come in before this hold.
    writes: u64,
}

/// The model.
struct Book {
    now: u64,
    cpus: Vec<Entry>,
    /// Writers that have come in.
    writes: u64,
}

impl Book {
    fn new(n: u32) -> Mutex<Book> {
        let e = Entry { holds: Holds::Nothing, way: Way::Rest, waits: false, excluded: 0, queued: 0, writes: 0 };
        Mutex::new(Book { now: 1, cpus: vec![e; n as usize], writes: 0 })
    }

    /// Notes, of every CPU, what it stands in the way of at this moment: before and after each change.
    fn tick(&mut self) {
        self.now += 1;
        for e in &mut self.cpus {
            if e.way != Way::Rest || e.holds != Holds::Nothing {
                e.excluded = self.now;
            }
            if e.way == Way::Write || e.holds == Holds::Writes || e.waits {
                e.queued = self.now;
            }
        }
    }

    /// `id` sets out; since when, and after how many writers.
    fn begin(&mut self, id: u32, way: Way, waits: bool, leaves: bool) -> (u64, u64) {
        self.tick();
        let began = self.now;
        let e = &mut self.cpus[id as usize];
        (e.way, e.waits) = (way, waits);
        if leaves {
            assert_eq!(e.writes, self.writes - u64::from(e.holds == Holds::Writes), "a writer came in meanwhile");
            e.holds = match e.holds {
                Holds::Reads(n) if n > 1 => Holds::Reads(n - 1),
                _ => Holds::Nothing,
            };
        }
        self.tick();
        (began, self.writes)
    }

    /// `id` has arrived, and has `got` this in place of what it had, if anything.
    fn end(&mut self, id: u32, got: Option<Holds>) {
        self.tick();
        let others = self.others(id);
        if let Some(got) = got {
            let (readers, writer) = others;
            match got {
                Holds::Nothing => {}
                Holds::Reads(_) => assert!(!writer, "CPU {id} reads beside a writer"),
                Holds::Writes => {
                    assert!(!writer && readers == 0, "CPU {id} writes beside {readers} readers, writer {writer}")
                }
            }
            let e = &mut self.cpus[id as usize];
            if !matches!((e.holds, got), (Holds::Reads(_), Holds::Reads(_))) {
                e.writes = self.writes;
                self.writes += u64::from(got == Holds::Writes);
            }
            e.holds = got;
        }
        let e = &mut self.cpus[id as usize];
        (e.way, e.waits) = (Way::Rest, false);
        self.tick();
    }

    /// Holds that are sure, but for those of `id`: readers, writer.
    fn others(&self, id: u32) -> (i64, bool) {
        let all = self.cpus.iter().enumerate().filter(|(i, _)| *i != id as usize).map(|(_, e)| e.holds);
        all.fold((0, false), |(r, w), h| match h {
            Holds::Nothing => (r, w),
            Holds::Reads(n) => (r + i64::from(n), w),
            Holds::Writes => (r, true),
        })
    }

    /// Whether `id` may have failed to get the lock by trying since `began`.
    fn may_fail(&self, id: u32, write: bool, began: u64) -> bool {
        let me = self.cpus[id as usize].holds;
        let own = me == Holds::Writes || write && me != Holds::Nothing;
        let others = self.cpus.iter().enumerate().filter(|(i, _)| *i != id as usize).map(|(_, e)| e);
        own || others.map(|e| if write { e.excluded } else { e.queued }).any(|at| at >= began)
    }

    /// The words of the lock at this moment.
    fn check<A: Arch>(&self, sem: &RwSemaphore<A>) {
        let ((readers, writer), owner) = (sem.holders(), sem.owner_cpu());
        let queued = sem.is_contended();
        let (sure, sure_writer) = self.others(u32::MAX);
        let on_way = self.cpus.iter().filter(|e| e.way != Way::Rest).count() as i64;
        let say = || format!("{readers} readers, writer {writer}, queued {queued}, owner {owner:?}: {:?}", self.cpus);
        // Of those on the way each may count for one reader: itself, or one that it is about to let in.
        assert!((sure..=sure + on_way).contains(&readers), "readers are miscounted: {}", say());
        assert!(writer || !sure_writer, "a writer is missing: {}", say());
        let on_way = |w: Way| self.cpus.iter().any(|e| e.way == w);
        assert!(!writer || sure_writer || on_way(Way::Write), "nobody is this writer: {}", say());
        // A waiter that is let in counts itself out only when it runs, never the other way round.
        assert!(!queued || self.cpus.iter().any(|e| e.waits), "nobody is in this queue: {}", say());
        if let Some(w) = self.cpus.iter().position(|e| e.holds == Holds::Writes) {
            assert_eq!(owner, Some(w as u32), "the owner is another: {}", say());
        }
    }
}

/// What a world adds to [`play`].
trait Stage<A: Arch> {
    /// Runs `f` at a moment of its own: no CPU goes on meanwhile, if the world can have that.
    fn look(&self, f: impl FnOnce());
    fn kill(&self, id: u32);
    /// Lets time pass.
    fn pause(&self, r: u64);
}

/// One CPU's part: `steps` random operations, and then what it takes to hold nothing.
fn play<A: Arch>(cpu: &Cpu<A>, sem: &RwSemaphore<A>, book: &Mutex<Book>, steps: u32, stage: &impl Stage<A>) {
    let id = cpu.id;
    let n = book.lock().unwrap().cpus.len() as u64;
    let mut holds = Holds::Nothing;
    let mut step = 0;
    while step < steps || holds != Holds::Nothing {
        step += 1;
        let r = cpu.random();
        let dice = r >> 8 & 15;
        let (way, waits, leaves) = match holds {
            Holds::Nothing if dice < 6 => (Way::Read, true, false),
            Holds::Nothing if dice < 12 => (Way::Write, true, false),
            Holds::Nothing if dice < 14 => (Way::Read, false, false),
            Holds::Nothing => (Way::Write, false, false),
            Holds::Reads(n) if dice < 3 && n < 3 && step < steps => (Way::Read, false, false),
            Holds::Reads(_) if dice < 4 => (Way::Write, false, false),
            Holds::Reads(_) => (Way::Read, false, true),
            Holds::Writes if dice < 2 => (Way::Read, false, false),
            Holds::Writes if dice < 3 => (Way::Write, false, false),
            Holds::Writes => (Way::Write, false, true),
        };
        let (began, writes) = book.lock().unwrap().begin(id, way, waits, leaves);
        let killable = r >> 16 & 3 == 0;
        let got = match (holds, way, leaves) {
            (Holds::Nothing, Way::Read, _) if waits && !killable => {
                down_read(cpu, sem);
                Some(Holds::Reads(1))
            }
            (Holds::Nothing, _, _) if waits && !killable => {
                down_write(cpu, sem);
                Some(Holds::Writes)
            }
            (Holds::Nothing, _, _) if waits => {
                let read = way == Way::Read;
                let got = if read { down_read_killable(cpu, sem) } else { down_write_killable(cpu, sem) };
                assert!(matches!(got, Ok(()) | Err(Errno::EINTR)));
                flush_signals(cpu);
                got.is_ok().then_some(if read { Holds::Reads(1) } else { Holds::Writes })
            }
            (_, Way::Read, false) => {
                let had = if let Holds::Reads(n) = holds { n } else { 0 };
                down_read_trylock(cpu, sem).then_some(Holds::Reads(had + 1))
            }
            (_, Way::Write, false) => down_write_trylock(cpu, sem).then_some(Holds::Writes),
            (Holds::Reads(n), _, true) => {
                up_read(cpu, sem);
                Some(if n > 1 { Holds::Reads(n - 1) } else { Holds::Nothing })
            }
            (Holds::Writes, _, true) if r >> 24 & 3 == 0 => {
                downgrade_write(cpu, sem);
                Some(Holds::Reads(1))
            }
            (Holds::Writes, _, true) => {
                up_write(cpu, sem);
                Some(Holds::Nothing)
            }
            (h, w, l) => unreachable!("{h:?} {w:?} {l}"),
        };
        {
            let mut b = book.lock().unwrap();
            b.end(id, got);
            let downgraded = holds == Holds::Writes && matches!(got, Some(Holds::Reads(_)));
            assert!(!downgraded || b.writes == writes, "CPU {id}: a writer came in during its downgrade");
            if got.is_none() && !waits {
                assert!(b.may_fail(id, way == Way::Write, began), "CPU {id}, {way:?}: refused, with nobody in the way");
            }
        }
        holds = got.unwrap_or(holds);
        stage.look(|| book.lock().unwrap().check(sem));
        if r >> 32 & 31 == 0 {
            stage.kill((r.rotate_left(20) % n) as u32);
        }
        if r >> 48 & 1 == 0 {
            stage.pause(r);
        }
    }
}

/// What a run met.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    sleeps: u64,
    spun: u64,
    stolen: u64,
    handoffs: u64,
    killed: u64,
}

impl Met {
    fn of<A: Arch>(cpu: &Cpu<A>) -> Met {
        let n = |events: &[LockEvent]| events.iter().map(|e| cpu.counters.get(*e)).sum();
        Met {
            sleeps: n(&[LockEvent::RwsemSleepReader, LockEvent::RwsemSleepWriter]),
            spun: n(&[LockEvent::RwsemOptLock]),
            stolen: n(&[LockEvent::RwsemRlockSteal]),
            handoffs: n(&[LockEvent::RwsemRlockHandoff, LockEvent::RwsemWlockHandoff]),
            killed: n(&[LockEvent::RwsemRlockFail, LockEvent::RwsemWlockFail]),
        }
    }

    fn add(&mut self, o: Met) {
        self.sleeps += o.sleeps;
        self.spun += o.spun;
        self.stolen += o.stolen;
        self.handoffs += o.handoffs;
        self.killed += o.killed;
    }

    fn assert_all(&self) {
        let Met { sleeps, spun, stolen, handoffs, killed } = *self;
        assert!([sleeps, spun, stolen, handoffs, killed].iter().all(|n| *n > 0), "too quiet: {self:?}");
    }
}

struct Simulated {
    tasks: Vec<KRef<Task<Sim>>>,
    never: KRef<Atomic<Sim, u32>>,
}

impl Stage<Sim> for Simulated {
    fn look(&self, f: impl FnOnce()) {
        Sim::frozen(f)
    }
    fn kill(&self, id: u32) {
        send_sigkill(self.tasks[id as usize]);
    }
    fn pause(&self, r: u64) {
        // Rarely for longer than a waiter is patient.
        work(&self.never, if r >> 52 & 127 == 0 { 9_000_000 } else { r >> 20 & 0x3fff });
    }
}

/// Random operations of `n` simulated CPUs in interleaving `seed`.
fn simulated(n: u32, steps: u32, seed: u64) -> Met {
    let m = SimMachine::new(SimConfig { bytes_per_node: 16 << 20, ..SimConfig::nodes(1, n) }).unwrap();
    m.reset();
    // Short delays everywhere, so that CPUs stop inside the paths.
    let (every, max_ns) = [(20, 2_000), (4, 300), (100, 20_000)][seed as usize % 3];
    m.set_jitter(Some(Jitter { seed, every, max_ns, at_names: false }));
    let a = m.arena();
    let nodes = PerCpu::new(a, n, |_| 0, "lock_nodes", |_| LockNodes::<Sim>::new());
    let sem = a.boot_new(0, RwSemaphore::<Sim>::new());
    let tasks: Vec<_> = (0..n).map(|id| a.boot_new(0, Task::new(id))).collect();
    let stage = &Simulated { tasks: tasks.clone(), never: a.boot_new(0, Atomic::new(0)) };
    let (book, met) = (Book::new(n), Mutex::new(Met::default()));
    let jobs = (0..n)
        .map(|id| {
            let (task, remote) = (tasks[id as usize], a.boot_new(0, CpuRemote::new()));
            let (book, met) = (&book, &met);
            Job {
                cpu: Some(id),
                f: Box::new(move || {
                    let cpu = Cpu::<Sim>::new(id, 0, task, remote, nodes, TickDevice::new(250, 1), seed + 1);
                    // Some spin, some queue at once; 7.3's readers take their names out.
                    cpu.softirq.ksoftirqd.set((seed + u64::from(id)).is_multiple_of(3));
                    cpu.clear_reader_owned.set(seed.is_multiple_of(2));
                    play(&cpu, &sem, book, steps, stage);
                    met.lock().unwrap().add(Met::of(&cpu));
                }),
            }
        })
        .collect();
    m.run(jobs);
    sem.assert_quiet();
    assert!(book.lock().unwrap().cpus.iter().all(|e| e.holds == Holds::Nothing && e.way == Way::Rest));
    met.into_inner().unwrap()
}

#[test]
fn random_operations_of_simulated_cpus_do_what_the_model_allows() {
    let mut met = Met::default();
    for n in [1, 2, 3, 5, 8] {
        for seed in 0..15 {
            met.add(simulated(n, 600, seed));
        }
    }
    println!("{met:?}");
    met.assert_all();
}

impl Stage<Native> for CpuSet<Native> {
    fn look(&self, f: impl FnOnce()) {
        // The bounds hold at every moment.
        f()
    }
    fn kill(&self, id: u32) {
        send_sigkill(self.task_ref(id));
    }
    fn pause(&self, r: u64) {
        match r >> 52 & 63 {
            0 => std::thread::sleep(Duration::from_micros(300)),
            1..16 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

#[test]
fn random_operations_of_threads_do_what_the_model_allows() {
    let mut met = Met::default();
    for (_, wait) in Wait::ALL {
        for n in [3, 8] {
            let (sem, book, sum) = (RwSemaphore::<Native>::new(), Book::new(n), Mutex::new(Met::default()));
            let set = for_test_set_waiting(n, wait);
            on_cpus_of(set.clone(), n, |cpu| {
                cpu.softirq.ksoftirqd.set(cpu.id % 2 == 1);
                play(cpu, &sem, &book, 200, &set);
                sum.lock().unwrap().add(Met::of(cpu));
            });
            sem.assert_quiet();
            met.add(sum.into_inner().unwrap());
        }
    }
    println!("{met:?}");
    assert!(met.sleeps > 0 && met.stolen > 0, "too quiet: {met:?}");
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// What is not so must be denied.
#[test]
fn the_model_believes_no_lie() {
    // For the reason given and no other.
    let denied = |what: &str, why: &str, f: &dyn Fn()| {
        let said = catch_unwind(AssertUnwindSafe(f)).map_err(|e| message(&*e));
        assert!(said.as_ref().is_err_and(|m| m.contains(why)), "{what}: not denied because {why:?}, but {said:?}");
    };
    let denied_so = |why: &str| catch_unwind(AssertUnwindSafe(|| denied("a panic", why, &|| panic!("this reason"))));
    assert!(denied_so("this reason").is_ok() && denied_so("another").is_err());
    let lock = RwSemaphore::<Native>::in_state;
    // The book of two CPUs at rest, of which the first may hold something.
    let book = |holds| {
        let b = Book::new(2);
        let way = if holds == Holds::Writes { Way::Write } else { Way::Read };
        b.lock().unwrap().begin(0, way, false, false);
        b.lock().unwrap().end(0, Some(holds));
        b.into_inner().unwrap()
    };
    book(Holds::Nothing).check(&lock(0, [false; 3]));
    book(Holds::Reads(2)).check(&lock(2, [false; 3]));
    denied("a reader that nobody is", "readers are miscounted", &|| book(Holds::Nothing).check(&lock(1, [false; 3])));
    denied("a reader that is gone", "readers are miscounted", &|| book(Holds::Reads(2)).check(&lock(1, [false; 3])));
    denied("a writer that nobody is", "nobody is this writer", &|| {
        book(Holds::Nothing).check(&lock(0, [true, false, false]))
    });
    denied("a writer that is gone", "a writer is missing", &|| book(Holds::Writes).check(&lock(0, [false; 3])));
    denied("a writer that is not named", "the owner is another", &|| {
        book(Holds::Writes).check(&lock(0, [true, false, false]))
    });
    denied("a queue of nobody", "nobody is in this queue", &|| {
        book(Holds::Reads(1)).check(&lock(1, [false, true, false]))
    });
    denied("a writer beside a reader", "CPU 1 writes beside 1 readers, writer false", &|| {
        book(Holds::Reads(1)).end(1, Some(Holds::Writes))
    });
    denied("a reader beside a writer", "CPU 1 reads beside a writer", &|| {
        book(Holds::Writes).end(1, Some(Holds::Reads(1)))
    });
    denied("a writer that came in under a reader", "a writer came in meanwhile", &|| {
        let mut b = book(Holds::Reads(1));
        b.writes += 1;
        b.begin(0, Way::Read, false, true);
    });

    // Who may be refused: nobody where nobody is, a writer beside a reader, a reader beside who waits.
    let refused = |holds, write: bool, waiter: bool| {
        let mut b = book(holds);
        if waiter {
            b.begin(0, Way::Read, true, false);
        }
        let (began, _) = b.begin(1, if write { Way::Write } else { Way::Read }, false, false);
        b.end(1, None);
        b.may_fail(1, write, began)
    };
    assert!(!refused(Holds::Nothing, true, false) && !refused(Holds::Nothing, false, false));
    assert!(!refused(Holds::Reads(1), false, false) && refused(Holds::Reads(1), true, false));
    assert!(refused(Holds::Writes, false, false) && refused(Holds::Nothing, false, true));

    // Two locks in place of one: each CPU is alone with its own.
    let set = for_test_set::<Native>(2);
    let (sems, book) = ([0; 2].map(|_| RwSemaphore::new()), Book::new(2));
    // Whichever CPU is the first to contradict the book; the other then finds it poisoned.
    let first = Mutex::new(None);
    on_cpus_of(set.clone(), 2, |cpu| {
        let played = catch_unwind(AssertUnwindSafe(|| play(cpu, &sems[cpu.id as usize], &book, 20_000, &set)));
        if let Err(e) = played {
            let said = message(&*e);
            if !said.contains("PoisonError") {
                first.lock().unwrap().get_or_insert(said);
            }
        }
    });
    let first = first.into_inner().unwrap().expect("believed: two locks");
    let whys = ["beside", "a writer came in", "miscounted", "missing", "nobody is", "the owner is another"];
    assert!(whys.iter().any(|w| first.contains(w)), "two locks: {first}");
}
