// SPDX-License-Identifier: GPL-2.0-only
//! The scenarios of `vma_lock::SCENARIOS` as data: what the reader does, what the writers do, who looks at it, and, where
//! that is a script, at which named places each of the two gives way.
//!
//! A case is written once for every protocol and world. Which engine runs it is chosen by what breaks it: stores seen out of
//! order need the model checker, two mms that take turns at one object need no more than the right moment.

use super::slot::{A, ADDRESS, B, C, Seen, Slot, TURN};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::mm::vma_lock::{AbortCause, Reuse, VmaLock, point};

/// Who looks at a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The model checker: every interleaving within a bound on preemptions, and every stale value.
    Exhaustive,
    /// One script, every load the newest value.
    Stepped,
}

/// What one CPU does.
pub type Part<W, L> = fn(&Cpu<W>, &Slot<W, L>);

/// One case.
pub struct Case<W: Arch, L: VmaLock> {
    /// Which of `vma_lock::SCENARIOS`.
    pub id: &'static str,
    /// Which case of it, where there are several.
    pub what: &'static str,
    /// Who looks.
    pub engine: Engine,
    /// Address spaces.
    pub mms: usize,
    /// The writers, on one CPU.
    pub writer: Part<W, L>,
    /// Where they give way, in this order, and then at the last each time.
    pub writer_stops: &'static [&'static str],
    /// The reader.
    pub reader: Part<W, L>,
    /// Where it gives way.
    pub reader_stops: &'static [&'static str],
    /// A third CPU.
    pub third: Option<Part<W, L>>,
}

/// Scenarios in which memory is handed out again. Where it waits for a grace period first they cannot come to what they
/// are about, and a reader must be seen never to meet another life.
pub const REUSES: [&str; 6] = ["T1", "T2", "T3", "T4", "T5", "T6"];

/// Every case of protocol `L`, in the order of the scenarios.
pub fn cases<W: Arch, L: VmaLock>() -> Vec<Case<W, L>> {
    use Engine::{Exhaustive, Stepped};
    let row = |id, what, engine, mms, writer, writer_stops, reader, reader_stops| Case {
        id,
        what,
        engine,
        mms,
        writer,
        writer_stops,
        reader,
        reader_stops,
        third: None,
    };
    let turn: &[&str] = &[TURN];
    let mut rows = vec![
        row("T0", "", Exhaustive, 1, t0::<W, L>, &[], fault, &[]),
        row("T1", "", Exhaustive, 2, t1, &[], fault, &[]),
        row("T1", "while A's section lasts", Exhaustive, 2, t1_inside, &[], fault, &[]),
        row("T2", "", Exhaustive, 1, t2, &[], fault, &[]),
        row("T2", "at another address", Exhaustive, 1, t2_elsewhere, &[], fault, &[]),
        row("T2", "put back", Exhaustive, 1, t2_put_back, &[], fault, &[]),
        row("T3", "", Stepped, 2, t3, turn, fault, &[point::VM_MM]),
        row("T4", "", Stepped, 2, t4, turn, fault, &[point::DETACHED]),
        row("T5", "a fork", Stepped, 3, t5, turn, fault, &[point::VM_MM]),
        row("T5", "an exit", Stepped, 2, t5_exit, turn, fault, &[point::VM_MM]),
        row("T6", "", Stepped, 2, t6, &[TURN, point::WAIT], fault, &[point::VM_MM, point::WAKE]),
        row("T7", "", Exhaustive, 1, t7, &[], fault_and_set, &[]),
        row("T8", "first look in time", Stepped, 1, t8_early, turn, not_in_vain, &[]),
        row("T9", "the end of the numbers", Stepped, 1, t9, turn, fault_each_turn, turn),
        row("T9", "numbers of four bits", Stepped, 1, t9_narrow, turn, false_locked, turn),
    ];
    // Where memory waits for a grace period nobody looks at a VMA before it is mapped.
    if matches!(L::REUSE, Reuse::Tolerates) {
        let stops: &[&str] = &[point::LOCK_WORD];
        rows.push(row("T8", "first look too early", Stepped, 1, t8_late, turn, not_in_vain, stops));
    }
    rows
}

/// The reader's fault.
fn fault<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.fault(cpu, || ());
}

/// T0: one section removes the VMA and frees it, as a merge does.
fn t0<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.remove(cpu, A);
}

/// T1: and another mm maps it, at the same address.
fn t1<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.remove(cpu, A);
    s.map(cpu, B);
}

/// T1: and another mm maps it before A's section has ended: the task that removes it is preempted, and B's is next on this CPU.
fn t1_inside<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.start_write(cpu, A);
    s.change();
    s.detach(cpu);
    s.free(cpu);
    // Numbers that A's are far from.
    s.next_section(B, 101);
    s.map(cpu, B);
    s.end(cpu, A);
}

/// T2: and another section maps it again, at another address.
fn t2_elsewhere<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.remove(cpu, A);
    s.begin(cpu, A);
    s.alloc_at(A, 2 * ADDRESS);
    s.start_write(cpu, A);
    s.attach(cpu, A);
    s.end(cpu, A);
}

/// T2: and the same section maps it again, at the same address.
fn t2<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.start_write(cpu, A);
    s.change();
    s.detach(cpu);
    s.free(cpu);
    s.alloc(A);
    s.start_write(cpu, A);
    s.attach(cpu, A);
    s.end(cpu, A);
}

/// T2: and the same section puts it back, because removing another one failed (`reattach_vmas()`).
fn t2_put_back<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.start_write(cpu, A);
    s.change();
    s.detach(cpu);
    s.attach(cpu, A);
    s.end(cpu, A);
}

/// B's VMA, past W1 of a section that removes it, while the reader takes its lock; and removed, marked detached unless
/// `unmarked`.
fn through_b<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>, unmarked: bool) {
    s.remove(cpu, A);
    // Numbers that A's are far from.
    s.next_section(B, 101);
    s.map(cpu, B);
    s.begin(cpu, B);
    s.start_write(cpu, B);
    // The reader goes up to where it looks at vm_mm.
    W::pause_point(TURN);
    // A protocol that waits for it here is right.
    if !unmarked {
        s.detach(cpu);
    }
    s.free(cpu);
    s.end(cpu, B);
}

/// T3: A, B, A.
fn t3<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    through_b(cpu, s, false);
    back_to_a(cpu, s);
}

/// A maps the VMA again, while the reader takes its other looks.
fn back_to_a<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.alloc(A);
    // vm_mm and the range are A's again. Who waits for the reader here comes too late.
    s.start_write(cpu, A);
    W::pause_point(TURN);
    s.attach(cpu, A);
    W::pause_point(TURN);
    s.end(cpu, A);
}

/// T4: the number of B's section is that of A's next one.
fn t4<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.remove(cpu, A);
    s.next_section(B, s.mm(A).mm_lock_seq.raw_read() + 1);
    s.begin(cpu, B);
    s.alloc(B);
    s.start_write(cpu, B);
    s.attach(cpu, B);
    s.detach(cpu);
    s.free(cpu);
    s.end(cpu, B);
    // The reader takes the lock of a free VMA, up to where it looks whether it is detached.
    W::pause_point(TURN);
    s.begin(cpu, A);
    s.alloc(A);
    s.start_write(cpu, A);
    s.attach(cpu, A);
    W::pause_point(TURN);
    s.end(cpu, A);
}

/// T5: as T3, but A's last step is a fork, whose copy is A's for a moment.
fn t5<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    through_b(cpu, s, false);
    s.begin(cpu, A);
    s.begin(cpu, C);
    s.dup();
    W::pause_point(TURN);
    s.rehome(C);
    s.start_write(cpu, C);
    s.attach(cpu, C);
    s.end(cpu, C);
    s.end(cpu, A);
}

/// T5: as T3, but B's VMA goes because B ends, as in `exit_mmap()`.
fn t5_exit<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    through_b(cpu, s, !L::DETACH_AT_EXIT);
    s.mmdrop(cpu, s.mm(B));
    back_to_a(cpu, s);
}

/// T6: B ends while the reader lets go of B's VMA.
fn t6<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.remove(cpu, A);
    s.next_section(B, 101);
    s.map(cpu, B);
    W::pause_point(TURN);
    s.begin(cpu, B);
    // A counting protocol stops in here, with the readers kept out, until the reader has counted down.
    s.start_write(cpu, B);
    s.detach(cpu);
    s.free(cpu);
    s.end(cpu, B);
    s.mmdrop(cpu, s.mm(B));
}

/// The invariants that a protocol which is busted in scenario `id` violates; by anything else it is not the scenario that shows
/// it. `W`: what is looked at when a reader has the lock, and what a reader that nobody watches leaves behind.
pub fn shown_by(id: &str) -> &'static [&'static str] {
    match id {
        "T0" | "T1" | "T2" | "T3" | "T4" | "T5" => &["I1", "I2", "I3", "I4", "I5"],
        "T6" => &["I9"],
        "T7" => &["I11"],
        "T8" => &["I1", "I3", "I10"],
        "T9" => &["I3", "I10"],
        "W" => &["I1", "I3", "I4", "I5", "I7", "I8"],
        _ => &[],
    }
}

/// T7: the reader writes under the lock ...
fn fault_and_set<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.fault(cpu, || s.anon.set(s.anon.get() + 1));
}

/// ... and a writer that has the VMA to itself takes it away. A reader's store that nothing orders before that is a race on the
/// word, I11; it comes before anybody is told who has the VMA, where the same reader would be I3.
fn t7<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.start_write_and(cpu, A, || s.anon.set(7));
    s.end(cpu, A);
}

/// A reader that looks again when it finds the VMA detached, and must neither get it nor look for ever.
fn not_in_vain<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    let mut missed = 0;
    loop {
        match s.fault(cpu, || ()) {
            Seen::Locked => panic!("I1: not attached, and locked"),
            // Where nothing is reused the next walk finds something else.
            Seen::Missed if matches!(L::REUSE, Reuse::Forbids(_)) => return,
            Seen::Missed => missed += 1,
            Seen::Aborted(AbortCause::SeqEarly | AbortCause::SeqLate) => return,
            Seen::Aborted(cause) => panic!("aborted for another reason: {cause:?}"),
        }
        assert!(missed < 3, "I10: looks for ever");
    }
}

/// T8: in the tree, not yet attached; the reader comes then. Protocols without a flag or count for it take every VMA for
/// attached, and must hold by the section alone.
fn t8_early<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.unfound();
    s.remove(cpu, A);
    s.begin(cpu, A);
    s.alloc(A);
    s.start_write(cpu, A);
    // The store into the tree.
    s.found();
    W::pause_point(TURN);
    s.attach(cpu, A);
    s.end(cpu, A);
}

/// T8: the reader's first look was before the section.
fn t8_late<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    W::pause_point(TURN);
    t8_early(cpu, s);
}

/// Sections that T9 goes through.
const SECTIONS: u32 = 40;

/// T9: sections across the end of the numbers; the VMA is write-locked in some.
fn t9<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.next_section(A, u32::MAX - 20);
    for i in 0..SECTIONS {
        s.begin(cpu, A);
        if i % 3 != 0 {
            s.start_write(cpu, A);
        }
        W::pause_point(TURN);
        s.end(cpu, A);
        W::pause_point(TURN);
    }
}

/// The number of section `i` where a number has four bits: odd, and every eighth section has it again.
fn narrow(i: u32) -> u32 {
    2 * (i % 8) + 1
}
/// Sections from one that write-locks the VMA to the next.
const APART: u32 = 11;

/// T9: sections whose numbers come again while the VMA still has the one that it was last locked with.
fn t9_narrow<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    for i in 0..SECTIONS {
        s.next_section(A, narrow(i));
        s.begin(cpu, A);
        if i % APART == 0 {
            s.start_write(cpu, A);
        }
        W::pause_point(TURN);
        s.end(cpu, A);
        W::pause_point(TURN);
    }
}

/// The reader of it: in each section and behind it, locked or not as the numbers say, which is wrong in three sections,
/// and in all three keeps it out.
fn false_locked<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    let mut in_vain = 0;
    for i in 0..SECTIONS {
        let seen = s.fault(cpu, || ());
        let equal = narrow(i) == narrow(i - i % APART);
        let locked = matches!(seen, Seen::Aborted(AbortCause::SeqEarly | AbortCause::SeqLate));
        assert!(if equal { locked } else { seen == Seen::Locked }, "section {i}: {seen:?}");
        in_vain += u32::from(locked && !i.is_multiple_of(APART));
        W::pause_point(TURN);
        assert_eq!(s.fault(cpu, || ()), Seen::Locked, "behind section {i}");
        W::pause_point(TURN);
    }
    assert_eq!(in_vain, 3, "false locked");
}

/// A reader that comes at each turn: it may find the VMA locked though nobody has it, never the other way round.
fn fault_each_turn<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    for _ in 0..2 * SECTIONS {
        s.fault(cpu, || ());
        W::pause_point(TURN);
    }
}

/// Cases for the audit of orderings, which need no verdict of their own: every sound protocol holds in them.
///
/// `hand-over`: T1 with B's writer on a CPU of its own, so that the place goes from CPU to CPU, by the record of a
/// slab. `two writers`: two CPUs in sections of one mm. `two readers`: both under the lock while a writer wants it.
/// `speculation`: words that only `mm_lock_seq` protects. What needs no VMA is in `locks.rs`.
pub fn audit_cases<W: Arch, L: VmaLock>() -> Vec<Case<W, L>> {
    let row = |what, mms, writer, reader, third| Case {
        id: "X",
        what,
        engine: Engine::Exhaustive,
        mms,
        writer,
        writer_stops: &[],
        reader,
        reader_stops: &[],
        third,
    };
    let mut rows = vec![
        row("two writers", 1, count_one::<W, L>, count_one, None),
        row("two readers", 1, t7, fault_and_hold_on, Some(fault_and_hold_on)),
        row("speculation", 1, move_sibling, speculate, None),
    ];
    if matches!(L::REUSE, Reuse::Tolerates) {
        rows.push(row("hand-over", 2, give_back, fault, Some(take_over)));
    }
    rows
}

/// A section that changes what the lock protects.
fn count_one<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.start_write(cpu, A);
    s.anon.set(s.anon.get() + 1);
    s.end(cpu, A);
}

fn move_sibling<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.move_sibling(cpu);
}

fn speculate<W: Arch, L: VmaLock>(_cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.speculate();
}

/// T0, and the memory goes to another CPU's slab.
fn give_back<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.begin(cpu, A);
    s.start_write(cpu, A);
    s.change();
    s.detach(cpu);
    s.free(cpu);
    s.give_back();
    s.end(cpu, A);
}

fn take_over<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.taken_over();
    s.map(cpu, B);
}

/// Reads what a writer changes; two readers may be at it.
fn fault_and_hold_on<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.fault(cpu, || _ = s.anon.get());
}

/// Beyond the scenarios: what a number costs that comes again after 2^31 sections. These are no verdicts (no machine lives
/// to see it inside one reader), but they are known, and must not change unnoticed.
pub fn doubts<W: Arch, L: VmaLock>() -> [Case<W, L>; 2] {
    let of = |what, writer, reader, reader_stops| Case {
        id: "wrap",
        what,
        engine: Engine::Stepped,
        mms: 1,
        writer,
        writer_stops: &[TURN],
        reader,
        reader_stops,
        third: None,
    };
    [
        of("the writer takes an old mark for its own", old_mark::<W, L>, fault_and_hold, &[TURN]),
        of("the writer takes a fresh VMA's mark for its own", fresh_mark, fault, &[point::DETACHED]),
    ]
}

fn fault_and_hold<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.fault(cpu, || W::pause_point(TURN));
}

/// The section has the number that the VMA was last marked with; a reader has it.
fn old_mark<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    W::pause_point(TURN);
    s.next_section(A, 1);
    s.begin(cpu, A);
    s.start_write(cpu, A);
    W::pause_point(TURN);
    s.end(cpu, A);
}

/// The section has the number that a fresh VMA is marked with; a reader took the lock while it was free.
fn fresh_mark<W: Arch, L: VmaLock>(cpu: &Cpu<W>, s: &Slot<W, L>) {
    s.remove(cpu, A);
    s.next_section(A, u32::MAX);
    W::pause_point(TURN);
    if matches!(L::REUSE, Reuse::Forbids(_)) {
        return;
    }
    s.begin(cpu, A);
    s.alloc(A);
    s.start_write(cpu, A);
    s.attach(cpu, A);
    W::pause_point(TURN);
    s.end(cpu, A);
}
