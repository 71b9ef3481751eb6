// SPDX-License-Identifier: GPL-2.0-only
//! Order, address spaces, and arguments.

use super::*;
use crate::trace::parse::parse;
use proptest::prelude::*;

fn trace(text: &str) -> Trace {
    let log = parse("t.log", format!("{}\n", text.trim_end()).as_bytes());
    assert_eq!(log.problems, []);
    normalise(&log, 0)
}

/// (line, address space, what) of each step.
fn steps(t: &Trace) -> Vec<(u64, u32, String)> {
    let word = |s: &Step| match &s.op {
        Op::Call(Call::Mmap { addr, .. }) => format!("mmap {addr:#x}"),
        Op::Call(Call::Munmap { addr, .. }) => format!("munmap {addr:#x}"),
        Op::Call(Call::Brk { to }) => format!("brk {to:#x}"),
        Op::Call(Call::Mremap { addr, new_addr, flags, .. }) => format!("mremap {addr:#x} {new_addr:#x} {flags}"),
        Op::Call(Call::Mprotect { addr, .. }) => format!("mprotect {addr:#x}"),
        Op::Call(c) => format!("{c:?}"),
        Op::New => "new".into(),
        Op::BrkStart { at } => format!("start {at:#x}"),
        Op::Foreign { addr, len } => format!("foreign {addr:#x} {len:#x}"),
        Op::Fork { child } => format!("fork {child}"),
        Op::End => "end".into(),
    };
    t.steps.iter().map(|s| (s.line, s.mm, word(s))).collect()
}

fn words(t: &Trace) -> Vec<String> {
    steps(t).into_iter().map(|s| s.2).collect()
}

#[test]
fn a_place_that_the_kernel_chose_becomes_fixed() {
    let t = trace(
        "1 execve(\"/x\", [\"x\"], 0x7f) = 0\n\
         1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 mmap(0x7000, 4096, 0x1, 0x32, -1, 0) = 0x7000\n\
         1 mremap(0x7000, 4096, 8192, 0x1) = 0x9000\n\
         1 mremap(0x9000, 8192, 16384, 0x1) = 0x9000\n\
         1 mmap(NULL, 99999999999999999, 0x3, 0x22, -1, 0) = -1 ENOMEM (x)\n",
    );
    assert_eq!(
        words(&t),
        ["new", "mmap 0x7000", "mmap 0x7000", "mremap 0x7000 0x9000 3", "mremap 0x9000 0x0 0", "mmap 0x0", "end"]
    );
    let flags: Vec<u32> = t
        .steps
        .iter()
        .filter_map(|s| if let Op::Call(Call::Mmap { flags, .. }) = s.op { Some(flags) } else { None })
        .collect();
    assert_eq!(flags, [0x10_0022, 0x32, 0x22]);
    assert_eq!(t.steps[5].expect, Expect::Error("ENOMEM".into()));
    assert_eq!((t.open_at_end, t.spaces.len()), (1, 1));
    assert_eq!(t.spaces[0].born, Born::Exec);
}

#[test]
fn exec_keeps_what_must_not_become_executable_and_forgets_what_is_by_itself() {
    let t = trace(
        "1 personality(0xffffffff) = 0\n\
         1 personality(PER_LINUX|ADDR_NO_RANDOMIZE|READ_IMPLIES_EXEC) = 0\n\
         1 execve(\"/x\", [\"x\"], 0x7f) = 0\n\
         1 prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) = 0\n\
         1 prctl(PR_SET_MDWE, 0, 0, 0, 0) = -1 EPERM (Operation not permitted)\n\
         1 personality(PER_LINUX) = 0x40000 (PER_LINUX|ADDR_NO_RANDOMIZE)\n\
         1 execve(\"/y\", [\"y\"], 0x7f) = 0\n\
         2 execve(\"/z\", [\"z\"], 0x7f) = 0\n\
         2 prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN|PR_MDWE_NO_INHERIT, 0, 0, 0) = 0\n\
         2 execve(\"/z\", [\"z\"], 0x7f) = 0\n",
    );
    let on = |on: bool| format!("Personality {{ read_implies_exec: {on} }}");
    let mdwe = |bits: u32| format!("Mdwe {{ bits: {bits} }}");
    let first = ["new".into(), on(true), "end".into(), "new".into(), mdwe(1), mdwe(0), on(false)];
    assert_eq!(words(&t)[..7], first);
    assert_eq!(words(&t)[7..10], ["end".into(), "new".into(), mdwe(1)], "the next program has it, too");
    assert_eq!(words(&t)[10..14], ["new".into(), mdwe(3), "end".into(), "new".into()], "not where that was asked for");
    assert!(words(&t)[14..].iter().all(|w| w == "end"));
    assert_eq!(t.left_out["personality"].count, 1);
    assert_eq!(t.steps[5].expect, Expect::Error("EPERM".into()));
}

/// The flag that gives its place is one that MAP_SHARED_VALIDATE would have refused.
#[test]
fn a_validated_mapping_that_was_granted_is_a_shared_one() {
    let t = trace(
        "1 mmap(NULL, 4096, 0x1, 0x3, 3</a>, 0) = 0x7000\n1 mmap(NULL, 4096, 0x1, 0x3, 3</a>, 0) = -1 EOPNOTSUPP (x)\n",
    );
    let flags: Vec<u32> = t
        .steps
        .iter()
        .filter_map(|s| match s.op {
            Op::Call(Call::Mmap { flags, .. }) => Some(flags),
            _ => None,
        })
        .collect();
    assert_eq!(flags, [0x10_0001, 0x3]);
}

#[test]
fn an_unfinished_release_goes_before_the_mapping_that_takes_its_place() {
    let t = trace(
        "1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 clone(child_stack=0x1, flags=0x10100) = 2\n\
         1 munmap(0x7000, 8192 <unfinished ...>\n\
         2 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0xa000\n\
         2 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x8000\n\
         1 <... munmap resumed>) = 0\n",
    );
    assert_eq!(words(&t), ["new", "mmap 0x7000", "mmap 0xa000", "munmap 0x7000", "mmap 0x8000", "end"]);
    assert_eq!(t.moved, 1);
    assert!(t.steps[3].moved && t.steps[3].line == 6);
    // One that failed released nothing; one of another address space nothing of this one.
    let t = trace(
        "1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 fork() = 2\n\
         1 munmap(0x7000, 8192 <unfinished ...>\n\
         2 munmap(0x7000, 4096) = 0\n\
         2 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 <... munmap resumed>) = 0\n",
    );
    assert_eq!(t.moved, 0);
    assert_eq!(words(&t)[2..], ["fork 1", "munmap 0x7000", "mmap 0x7000", "munmap 0x7000", "end", "end"]);
}

#[test]
fn a_moving_mremap_and_a_sinking_break_are_releases_too() {
    let t = trace(
        "1 brk(NULL) = 0x10000\n\
         1 brk(0x14000) = 0x14000\n\
         1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x70000\n\
         1 clone(child_stack=0x1, flags=0x10100) = 2\n\
         1 clone(child_stack=0x1, flags=0x10100) = 3\n\
         1 mremap(0x70000, 8192, 12288, 0x1 <unfinished ...>\n\
         2 brk(0x11000 <unfinished ...>\n\
         3 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x71000\n\
         3 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x13000\n\
         1 <... mremap resumed>) = 0x90000\n\
         2 <... brk resumed>) = 0x11000\n",
    );
    assert_eq!(
        words(&t),
        [
            "new",
            "start 0x10000",
            "brk 0x14000",
            "mmap 0x70000",
            "mremap 0x70000 0x90000 3",
            "mmap 0x71000",
            "brk 0x11000",
            "mmap 0x13000",
            "end"
        ]
    );
    assert_eq!(t.moved, 2);
}

#[test]
fn threads_share_forks_copy_execve_begins_anew() {
    let t = trace(
        "1 execve(\"/x\", [\"x\"], 0x7f) = 0\n\
         1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 clone3({flags=0x3d0f00} => {parent_tid=[2]}, 88) = 2\n\
         2 munmap(0x7000, 4096) = 0\n\
         1 vfork( <unfinished ...>\n\
         3 execve(\"/y\", [\"y\"], 0x7f) = 0\n\
         1 <... vfork resumed>) = 3\n\
         3 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 fork( <unfinished ...>\n\
         4 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         4 +++ exited with 0 +++\n\
         1 <... fork resumed>) = 4\n\
         3 exit_group(0) = ?\n\
         3 +++ exited with 0 +++\n\
         1 exit(0) = ?\n\
         1 +++ exited with 0 +++\n\
         2 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         2 +++ exited with 0 +++\n",
    );
    let want = [
        (1, 0, "new"),
        (2, 0, "mmap 0x7000"),
        (4, 0, "munmap 0x7000"),
        (6, 1, "new"),
        (8, 1, "mmap 0x7000"),
        (10, 0, "fork 2"),
        (10, 2, "mmap 0x7000"),
        (11, 2, "end"),
        (13, 1, "end"),
        (17, 0, "mmap 0x7000"),
        (18, 0, "end"),
    ];
    let got = steps(&t);
    assert_eq!(got.iter().map(|(l, m, w)| (*l, *m, w.as_str())).collect::<Vec<_>>(), want);
    assert_eq!((t.threads, t.open_at_end), (4, 0));
    assert_eq!(t.spaces.iter().map(|s| s.born).collect::<Vec<_>>(), [Born::Exec, Born::Exec, Born::Fork(0)]);
}

#[test]
fn an_execve_by_a_thread_and_a_number_used_twice() {
    let t = trace(
        "1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 clone3({flags=0x3d0f00} => {parent_tid=[2]}, 88) = 2\n\
         2 execve(\"/y\", [\"y\"], 0x7f <pid changed to 1 ...>\n\
         1 +++ superseded by execve in pid 2 +++\n\
         1 <... execve resumed>) = 0\n\
         1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x8000\n\
         1 fork() = 2\n\
         2 munmap(0x8000, 4096) = 0\n\
         2 +++ exited with 0 +++\n\
         1 fork() = 2\n\
         2 munmap(0x8000, 4096) = 0\n",
    );
    assert_eq!(
        words(&t),
        [
            "new",
            "mmap 0x7000",
            "end",
            "new",
            "mmap 0x8000",
            "fork 2",
            "munmap 0x8000",
            "end",
            "fork 3",
            "munmap 0x8000",
            "end",
            "end"
        ]
    );
}

#[test]
fn logs_without_exit_lines_end_a_process_at_its_exit_group() {
    let t = trace(
        "1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7000\n\
         1 clone3({flags=0x3d0f00} => {parent_tid=[2]}, 88) = 2\n\
         2 exit_group(0) = ?\n",
    );
    assert_eq!(words(&t), ["new", "mmap 0x7000", "end"]);
    assert_eq!(t.open_at_end, 0);
}

#[test]
fn memory_that_no_log_has_is_put_there_when_a_call_needs_it() {
    let t = trace(
        "1 execve(\"/x\", [\"x\"], 0x7f) = 0\n\
         1 mprotect(0x55000, 4096, 0x1) = 0\n\
         1 mprotect(0x55000, 8192, 0x1) = 0\n\
         1 mprotect(0x99000, 8192, 0x1) = -1 ENOMEM (x)\n\
         1 munmap(0x80000, 4096) = 0\n\
         1 madvise(0x55000, 4096, 0x4) = 0\n",
    );
    assert_eq!(
        words(&t)[..6],
        [
            "new",
            "foreign 0x55000 0x1000",
            "mprotect 0x55000",
            "foreign 0x56000 0x1000",
            "mprotect 0x55000",
            "mprotect 0x99000"
        ]
    );
    assert_eq!(t.foreign, 2);
}

/// What a parent has, its child has too: nothing has to be made up there. What either maps or unmaps later is its own.
#[test]
fn a_child_has_what_its_parent_had() {
    let t = trace(
        "1 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x70000\n\
         1 fork() = 2\n\
         2 mprotect(0x70000, 8192, 0x1) = 0\n\
         2 munmap(0x71000, 4096) = 0\n\
         1 mprotect(0x70000, 8192, 0x1) = 0\n\
         1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x80000\n\
         2 mprotect(0x80000, 4096, 0x1) = 0\n",
    );
    // Only the last: the child never had what its parent mapped after the fork.
    assert_eq!(t.foreign, 1, "{:?}", words(&t));
    let made_up: Vec<_> = steps(&t).into_iter().filter(|s| s.2.starts_with("foreign")).collect();
    assert_eq!(made_up, [(7, 1, "foreign 0x80000 0x1000".to_string())]);
    // A break is inherited too: a lower one is a release, and no new start.
    let t = trace("1 brk(NULL) = 0x10000\n1 brk(0x14000) = 0x14000\n1 fork() = 2\n2 brk(0x12000) = 0x12000\n");
    assert_eq!(words(&t), ["new", "start 0x10000", "brk 0x14000", "fork 1", "brk 0x12000", "end", "end"]);
}

#[test]
fn files_are_told_apart_by_path_or_by_descriptor() {
    let t = trace(
        "1 mmap(NULL, 8192, 0x1, 0x2, 3</lib/a>, 0) = 0x70000\n\
         1 mmap(0x71000, 4096, 0x5, 0x12, 3</lib/a>, 0x9000) = 0x71000\n\
         1 mmap(NULL, 100, 0x1, 0x2, 3</lib/b>, 0) = 0x80000\n\
         1 mmap(NULL, 100, 0x1, 0x2, 4</dev/zero>, 0x1000) = 0x90000\n\
         1 mmap(NULL, 100, 0x1, 0x22, 4</lib/c>, 0) = 0xa0000\n",
    );
    let files: Vec<_> = t.files.iter().map(|f| (f.name.as_str(), f.len)).collect();
    assert_eq!(files, [("/lib/a", 0xa000), ("/lib/b", 0x1000), ("/dev/zero", 0x2000)]);
    let fds: Vec<_> = t
        .steps
        .iter()
        .filter_map(|s| if let Op::Call(Call::Mmap { fd, flags, .. }) = s.op { Some((fd, flags & 0x20)) } else { None })
        .collect();
    assert_eq!(fds, [(Some(0), 0), (Some(0), 0), (Some(1), 0), (None, 0x20), (None, 0x20)]);
    // Without paths: a descriptor that is mapped from its start again is another file.
    let t = trace(
        "1 mmap(NULL, 8192, 0x1, 0x2, 3, 0) = 0x70000\n\
         1 mmap(0x71000, 4096, 0x5, 0x12, 3, 0x1000) = 0x71000\n\
         1 mmap(NULL, 8192, 0x1, 0x2, 3, 0) = 0x80000\n",
    );
    let fds: Vec<_> =
        t.steps.iter().filter_map(|s| if let Op::Call(Call::Mmap { fd, .. }) = s.op { fd } else { None }).collect();
    assert_eq!(fds, [0, 0, 1]);
}

#[test]
fn what_is_not_replayed_is_counted_with_its_reason() {
    let t = trace(
        "1 shmat(5, NULL, 0) = 0x7000\n1 shmdt(0x7000) = 0\n1 prctl(PR_SET_NAME, \"x\") = 0\n\
         1 madvise(0x1000, 4096, MADV_HWPOISON) = 0\n\
         1 munmap(0x1000, 1 <unfinished ...>\n1 +++ killed by SIGKILL +++\n",
    );
    let seen: Vec<_> = t.left_out.iter().map(|(n, l)| (*n, l.count)).collect();
    assert_eq!(seen, [("madvise", 1), ("munmap", 1), ("prctl", 1), ("shmat", 1), ("shmdt", 1)]);
    assert_eq!(t.calls["shmat"], 1);
}

#[test]
fn huge_pages_become_ordinary_ones() {
    let t =
        trace("1 mmap(NULL, 4096, 0x3, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0) = 0x200000\n");
    let Op::Call(Call::Mmap { len, flags, .. }) = t.steps[1].op else { panic!() };
    assert_eq!((len, flags), (2 << 20, 0x10_0022));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The ranges against one bit a page.
    #[test]
    fn ranges_are_sets(ops in prop::collection::vec((any::<bool>(), 0u64..60, 1u64..20), 1..60)) {
        let mut r = Ranges::default();
        let mut bits = [false; 80];
        for (add, s, n) in ops {
            for b in &mut bits[s as usize..(s + n) as usize] {
                *b = add;
            }
            if add { r.insert(s, s + n) } else { r.remove(s, s + n) }
            let mut got = [false; 80];
            for (a, e) in &r.0 {
                got[*a as usize..*e as usize].fill(true);
            }
            prop_assert_eq!(got, bits);
            let ends: Vec<_> = r.0.iter().collect();
            prop_assert!(ends.windows(2).all(|w| w[0].1 < w[1].0), "touching ranges join: {:?}", r);
            let mut gaps = [true; 80];
            for (a, e) in r.gaps(0, 80) {
                gaps[a as usize..e as usize].fill(false);
            }
            prop_assert_eq!(gaps, bits);
        }
    }
}
