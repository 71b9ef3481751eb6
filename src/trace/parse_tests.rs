// SPDX-License-Identifier: GPL-2.0-only
//! Every form of a line, and lines that are none.

use super::*;
use proptest::prelude::*;

/// A log of lines that are whole.
fn read(text: &str) -> Log {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    cut(&format!("{text}{end}"))
}

/// A log as it stands, whole or not.
fn cut(text: &str) -> Log {
    parse("t.log", text.as_bytes())
}

/// The calls of a log that has no problem.
fn calls(text: &str) -> Vec<(Sys, Ret)> {
    let log = read(text);
    assert_eq!(log.problems, []);
    log.events
        .into_iter()
        .filter_map(|e| match e.what {
            What::Call(s, r) => Some((s, r)),
            _ => None,
        })
        .collect()
}

fn one(text: &str) -> (Sys, Ret) {
    let mut c = calls(text);
    assert_eq!(c.len(), 1, "{text}");
    c.remove(0)
}

fn mmap(addr: u64, len: u64, prot: u32, flags: u32, fd: Option<(i32, Option<&str>)>, offset: u64) -> Sys {
    let fd = fd.map(|(fd, p)| Fd { fd, path: p.map(str::to_string) });
    Sys::Memory { call: Call::Mmap { addr, len, prot, flags, fd: None, offset }, fd }
}

#[test]
fn a_tid_and_a_time_in_every_form() {
    let want = (Call::Brk { to: 0 }.into(), Ret::Value(0x5000));
    let forms = [
        ("brk(NULL) = 0x5000", 0, None),
        ("brk(NULL)                               = 0x5000", 0, None),
        ("123 brk(NULL) = 0x5000", 123, None),
        ("123   brk(NULL) = 0x5000", 123, None),
        ("[pid   123] brk(NULL) = 0x5000", 123, None),
        ("[pid 123<python3>] brk(NULL) = 0x5000", 123, None),
        ("123<my prog> brk(NULL) = 0x5000", 123, None),
        ("10:11:12 brk(NULL) = 0x5000", 0, Some(36_672_000_000)),
        ("123 10:11:12 brk(NULL) = 0x5000", 123, Some(36_672_000_000)),
        ("[pid 123] 10:11:12.000345 brk(NULL) = 0x5000", 123, Some(36_672_000_345)),
        ("123 1795364795.960856 brk(NULL) = 0x5000", 123, Some(1_795_364_795_960_856)),
        ("123      0.000123 brk(NULL) = 0x5000", 123, Some(123)),
        ("     0.000123 brk(NULL) = 0x5000", 0, Some(123)),
        ("123 1795364795.960856 (+     0.000123) brk(NULL) = 0x5000", 123, Some(1_795_364_795_960_856)),
        ("123 [00007f72b5f5d000] brk(NULL) = 0x5000", 123, None),
        ("123 10:11:12 [  12] brk(NULL) = 0x5000 <0.000021>", 123, Some(36_672_000_000)),
    ];
    for (text, tid, time) in forms {
        let log = read(text);
        assert_eq!(log.problems, [], "{text}");
        assert_eq!((log.events[0].tid, log.events[0].time_us), (tid, time), "{text}");
        assert_eq!(one(text), want, "{text}");
    }
    let log = read("1 0.000100 brk(NULL) = 0\n1 0.000250 brk(NULL) = 0\n");
    assert_eq!(log.events[1].time_us, Some(350), "-r counts from the line before");
}

#[test]
fn arguments_as_numbers_names_and_both() {
    let want = mmap(0, 8192, 3, 0x22, None, 0);
    for text in [
        "mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7f0000000000",
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000",
        "mmap(NULL, 8192, 0x3 /* PROT_READ|PROT_WRITE */, 0x22 /* MAP_PRIVATE|MAP_ANONYMOUS */, -1, 0) = 0x7f0000000000",
        "mmap(0, 0x2000, 3, 34, -1, 0x0) = 0x7f0000000000",
    ] {
        assert_eq!(one(text), (want.clone(), Ret::Value(0x7f00_0000_0000)), "{text}");
    }
    assert_eq!(
        one("mmap(0x7f00, 100, 0x5, 0x812, 3</lib/a, b (1).so>, 0x26000) = 0x7f00").0,
        mmap(0x7f00, 100, 5, 0x812, Some((3, Some("/lib/a, b (1).so"))), 0x26000)
    );
    assert_eq!(
        one("mmap(NULL, 100, PROT_READ, MAP_SHARED, 12</memfd:x (deleted)>, 0) = 0x7f00").0,
        mmap(0, 100, 1, 1, Some((12, Some("/memfd:x (deleted)"))), 0)
    );
    assert_eq!(
        one("mmap(NULL, 100, PROT_READ, MAP_SHARED, 12</memfd:x>(deleted), 0) = 0x7f00").0,
        mmap(0, 100, 1, 1, Some((12, Some("/memfd:x"))), 0),
        "strace 5.19 and later"
    );
    assert_eq!(
        one("mmap(NULL, 100, PROT_READ, 0x4 /* MAP_??? */|MAP_ANONYMOUS|MAP_PRIVATE, -1, 0) = -1 EINVAL (Invalid argument)").0,
        mmap(0, 100, 1, 0x26, None, 0)
    );
    assert_eq!(
        one("mmap(NULL, 1, PROT_NONE, MAP_PRIVATE|MAP_FIXED_NOREPLACE, 3, 0) = 1").0,
        mmap(0, 1, 0, 0x10_0002, Some((3, None)), 0)
    );
}

#[test]
fn every_call_that_is_known() {
    let forms: [(&str, Sys); 32] = [
        ("munmap(0x1000, 8192)", Call::Munmap { addr: 0x1000, len: 8192 }.into()),
        ("mprotect(0x1000, 4096, PROT_NONE)", Call::Mprotect { addr: 0x1000, len: 4096, prot: 0 }.into()),
        (
            "pkey_mprotect(0x1000, 4096, PROT_READ|PROT_EXEC, 1)",
            Call::Mprotect { addr: 0x1000, len: 4096, prot: 5 }.into(),
        ),
        ("madvise(0x1000, 4096, MADV_DONTNEED)", Call::Madvise { addr: 0x1000, len: 4096, advice: 4 }.into()),
        ("madvise(0x1000, 4096, 0x66 /* MADV_??? */)", Call::Madvise { addr: 0x1000, len: 4096, advice: 102 }.into()),
        (
            "mremap(0x1000, 4096, 8192, MREMAP_MAYMOVE)",
            Call::Mremap { addr: 0x1000, old_len: 4096, new_len: 8192, flags: 1, new_addr: 0 }.into(),
        ),
        (
            "mremap(0x1000, 4096, 8192, MREMAP_MAYMOVE|MREMAP_FIXED, 0x9000)",
            Call::Mremap { addr: 0x1000, old_len: 4096, new_len: 8192, flags: 3, new_addr: 0x9000 }.into(),
        ),
        ("brk(0x9000)", Call::Brk { to: 0x9000 }.into()),
        ("mlock(0x1000, 1)", Call::Mlock { addr: 0x1000, len: 1, flags: 0 }.into()),
        ("mlock2(0x1000, 1, MLOCK_ONFAULT)", Call::Mlock { addr: 0x1000, len: 1, flags: 1 }.into()),
        ("munlock(0x1000, 1)", Call::Munlock { addr: 0x1000, len: 1 }.into()),
        ("mlockall(MCL_CURRENT|MCL_FUTURE)", Call::Mlockall { flags: 3 }.into()),
        ("munlockall()", Call::Munlockall.into()),
        ("mseal(0x1000, 4096, 0)", Call::Mseal { addr: 0x1000, len: 4096 }.into()),
        ("shmat(5, NULL, 0)", Sys::Shmat { addr: 0 }),
        ("shmdt(0x7f00)", Sys::Shmdt { addr: 0x7f00 }),
        ("prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, 0x7f00, 4096, \"a(b\")", Sys::Prctl { option: 0x5356_4d41 }),
        ("prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)", Call::Mdwe { bits: 1 }.into()),
        ("prctl(0x41 /* PR_SET_MDWE */, 0x3, 0, 0, 0)", Call::Mdwe { bits: 3 }.into()),
        ("personality(0xffffffff)", Sys::Personality { persona: u32::MAX }),
        ("personality(PER_LINUX|READ_IMPLIES_EXEC)", Sys::Personality { persona: 0x40_0000 }),
        (
            "personality(0x440000 /* PER_LINUX|ADDR_NO_RANDOMIZE|READ_IMPLIES_EXEC */)",
            Sys::Personality { persona: 0x44_0000 },
        ),
        ("prctl(PR_CAPBSET_READ, CAP_MAC_OVERRIDE)", Sys::Prctl { option: u64::MAX }),
        (
            "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f)",
            Sys::Clone { flags: 0x120_0000 },
        ),
        ("clone(child_stack=NULL, flags=0x1200000|17, child_tidptr=0x7fe2c0a31a10)", Sys::Clone { flags: 0x120_0011 }),
        ("clone(child_stack=NULL, flags=SIGCHLD)", Sys::Clone { flags: 0 }),
        (
            "clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f, exit_signal=0, stack=0x7f, stack_size=0x7fff80} => {parent_tid=[20506]}, 88)",
            Sys::Clone { flags: 0x1_0100 },
        ),
        ("clone3({flags=0x3d0f00, exit_signal=0}, 88)", Sys::Clone { flags: 0x3d_0f00 }),
        ("fork()", Sys::Clone { flags: 0 }),
        ("vfork()", Sys::Clone { flags: 0x100 }),
        ("execve(\"/bin/a) = b\", [\"a\", \"\\\"(\"...], 0x7ffc /* 35 vars */)", Sys::Execve),
        ("execveat(AT_FDCWD, \"x\", [\"x\"], [], 0)", Sys::Execve),
    ];
    for (text, want) in forms {
        assert_eq!(one(&format!("7 {text} = 0")), (want, Ret::Value(0)), "{text}");
    }
    assert_eq!(one("7 exit_group(0) = ?"), (Sys::ExitGroup, Ret::Unknown));
    assert_eq!(one("7 exit(0)                                 = ?"), (Sys::Exit, Ret::Unknown));
}

#[test]
fn results_in_every_form() {
    let forms = [
        ("0", Ret::Value(0)),
        ("0x7f00", Ret::Value(0x7f00)),
        ("0 <0.000123>", Ret::Value(0)),
        ("20506<python3>", Ret::Value(20506)),
        ("5 /* 20506 in strace's PID NS */", Ret::Value(20506)),
        ("-1 ENOMEM (Cannot allocate memory)", Ret::Error("ENOMEM".into())),
        ("-1 EEXIST (File exists) <0.000010>", Ret::Error("EEXIST".into())),
        ("-1 (errno 22)", Ret::Error("EINVAL".into())),
        ("? ERESTARTNOINTR (To be restarted)", Ret::Unknown),
        ("?", Ret::Unknown),
        ("? <unavailable>", Ret::Unknown),
    ];
    for (text, want) in forms {
        assert_eq!(one(&format!("munmap(0x1000, 1) = {text}")).1, want, "{text}");
    }
}

#[test]
fn halves_of_a_call_join_across_other_threads() {
    let log = read(
        "1 0.1 mmap(NULL, 4096, 0x3, 0x22, -1, 0 <unfinished ...>\n\
         2 0.2 munmap(0x1000, 4096 <unfinished ...>\n\
         1 0.3 <... mmap resumed>) = 0x7000\n\
         3 0.4 vfork( <unfinished ...>\n\
         2 0.5 <... munmap resumed> ) = 0\n\
         4 0.6 execve(\"/bin/x\", [\"x\"], 0x7ff /* 3 vars */ <unfinished ...>\n\
         4 0.7 <... execve resumed>) = 0\n\
         3 0.8 <... vfork resumed>) = 4\n\
         1 0.9 clone3({flags=0x3d0f00, stack_size=0x7fff80} <unfinished ...>\n\
         1 1.0 <... clone3 resumed> => {parent_tid=[5]}, 88) = 5\n",
    );
    assert_eq!(log.problems, []);
    let seen: Vec<_> = log.events.iter().map(|e| (e.tid, e.begun, e.line)).collect();
    assert_eq!(seen, [(1, 1, 3), (2, 2, 5), (4, 6, 7), (3, 4, 8), (1, 9, 10)]);
    assert_eq!(log.events[0].what, What::Call(mmap(0, 4096, 3, 0x22, None, 0), Ret::Value(0x7000)));
    assert_eq!(log.events[3].what, What::Call(Sys::Clone { flags: 0x100 }, Ret::Value(4)));
    assert_eq!(log.events[4].what, What::Call(Sys::Clone { flags: 0x3d_0f00 }, Ret::Value(5)));
}

#[test]
fn ends_signals_and_an_execve_by_a_thread() {
    let log = read(
        "2 --- SIGSEGV {si_signo=SIGSEGV, si_addr=NULL} ---\n\
         1 munmap(0x1000, 4096 <unfinished ...>\n\
         2 execve(\"/bin/x\", [\"x\"], NULL <pid changed to 1 ...>\n\
         3 +++ exited with 0 +++\n\
         1 +++ superseded by execve in pid 2 +++\n\
         1 <... execve resumed>) = 0\n\
         1 brk(NULL <unfinished ...>\n\
         1 +++ killed by SIGKILL (core dumped) +++\n",
    );
    assert_eq!(log.problems, []);
    assert_eq!(log.signals, 1);
    let what: Vec<_> = log.events.into_iter().map(|e| (e.tid, e.what)).collect();
    assert_eq!(
        what,
        [
            (1, What::Call(Call::Munmap { addr: 0x1000, len: 4096 }.into(), Ret::Unknown)),
            (3, What::Ended),
            (1, What::Superseded(2)),
            (1, What::Call(Sys::Execve, Ret::Value(0))),
            (1, What::Call(Call::Brk { to: 0 }.into(), Ret::Unknown)),
            (1, What::Ended),
        ]
    );
}

/// Another thread's line came between, so that the change of its TID is told by the leader's end alone.
#[test]
fn an_execve_that_was_cut_in_two_before_it_takes_over() {
    let log = read(
        "1 brk(NULL <unfinished ...>\n\
         2 execve(\"/bin/x\", [\"x\"], NULL <unfinished ...>\n\
         3 +++ exited with 0 +++\n\
         1 +++ superseded by execve in pid 2 +++\n\
         1 <... execve resumed>) = 0\n\
         2 munmap(0x1000, 4096) = 0\n",
    );
    assert_eq!(log.problems, []);
    let what: Vec<_> = log.events.into_iter().map(|e| (e.tid, e.what)).collect();
    assert_eq!(
        what,
        [
            (3, What::Ended),
            (1, What::Call(Call::Brk { to: 0 }.into(), Ret::Unknown)),
            (1, What::Superseded(2)),
            (1, What::Call(Sys::Execve, Ret::Value(0))),
            (2, What::Call(Call::Munmap { addr: 0x1000, len: 4096 }.into(), Ret::Value(0))),
        ]
    );
}

/// strace was told to stop: what each thread was in is not known to have ended.
#[test]
fn calls_that_strace_let_go_of() {
    let log = read(
        "1 munmap(0x1000, 4096 <detached ...>\n2 futex(0x7f, FUTEX_WAIT, 2, NULL <unfinished ...>\n\
         2 <... futex resumed> <detached ...>\n3 [ Process PID=3 runs in 32 bit mode. ]\n",
    );
    assert_eq!(log.problems, []);
    let what: Vec<_> = log.events.into_iter().map(|e| (e.tid, e.what)).collect();
    assert_eq!(what, [(1, What::Call(Call::Munmap { addr: 0x1000, len: 4096 }.into(), Ret::Unknown))]);
    assert_eq!(log.unknown.get("futex"), Some(&1));
}

#[test]
fn calls_that_are_no_memory_calls_are_counted_by_name() {
    let log = read(
        "1 openat(AT_FDCWD, \"/etc/x)\", O_RDONLY) = 3\n1 read(3, \"\\\")\"..., 832) = 832\n1 read(3, \"\", 1) = 0\n\
         1 futex(0x7f, FUTEX_WAIT, 2, NULL <unfinished ...>\n1 <... futex resumed>) = 0\n\
         strace: Process 5 attached\nProcess 6 attached\n\n[ Process PID=7 runs in 32 bit mode. ]\n",
    );
    assert_eq!(log.problems, []);
    assert!(log.events.is_empty());
    let seen: Vec<_> = log.unknown.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    assert_eq!(seen, [("futex", 1), ("openat", 1), ("read", 2)]);
}

/// What strace prints of calls that it could not read, and a path behind a descriptor that is a name.
#[test]
fn calls_without_names_or_arguments_are_counted() {
    let log = read(
        "1 clone3(NULL, 0) = -1 EINVAL (Invalid argument)\n1 ????( <unfinished ...>\n1 +++ killed by SIGKILL +++\n\
         2 openat(AT_FDCWD</a)b>, \"c\", O_RDONLY) = 3</a)b/c>\n",
    );
    assert_eq!(log.problems, []);
    let seen: Vec<_> = log.unknown.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    assert_eq!(seen, [("????", 1), ("clone3", 1), ("openat", 1)]);
}

#[test]
fn a_memory_call_that_is_not_ported_is_counted_apart() {
    let log = read(
        "1 remap_file_pages(0x7f0000000000, 4096, 0, 1, 0) = 0\n1 mbind(0x7f0000000000, 4096, MPOL_BIND, [0x1], 2, 0) = 0\n\
         2 process_madvise(3, [{iov_base=0x7f0000000000, iov_len=4096}], 1, MADV_COLD, 0) = 4096\n1 getpid() = 1\n\
         1 process_madvise(3, <unfinished ...>\n2 futex(0x7f, FUTEX_WAIT, 2, NULL <unfinished ...>\n\
         1 +++ exited with 0 +++\n2 +++ killed by SIGKILL +++\n",
    );
    assert_eq!(log.problems, []);
    let seen = |m: &BTreeMap<String, u64>| m.iter().map(|(n, c)| format!("{n} {c}")).collect::<Vec<_>>().join(", ");
    assert_eq!(seen(&log.not_ported), "mbind 1, process_madvise 2, remap_file_pages 1");
    // A call that its thread never came back from counts, too.
    assert_eq!(seen(&log.unknown), "futex 1, getpid 1");
}

#[test]
fn a_bad_line_is_named_with_file_line_and_text_and_the_rest_is_read() {
    let bad = [
        ("hello world", "neither a call"),
        ("1 munmap(0x1000, 4096) =", "no result"),
        ("1 munmap(0x1000, 4096)", "the call has no result"),
        ("1 munmap(0x1000, 4096", "closing parenthesis"),
        ("1 munmap(0x1000) = 0", "lacks argument 2"),
        ("1 munmap(0x1000, many) = 0", "'many' is no number"),
        ("1 mmap(NULL, 4096, PROT_FLY, 0x22, -1, 0) = 0", "PROT_FLY"),
        ("1 mmap(NULL, 4096, 0x3, 0x22, x, 0) = 0", "no descriptor"),
        ("1 munmap(0x1000, 4096) = maybe", "'maybe' is no result"),
        ("1 munmap(0x1000, 4096) = -1 (strange)", "names no error"),
        ("1 <... munmap resumed>) = 0", "never begun"),
        ("1 +++ gone fishing +++", "neither an exit nor a kill"),
        ("1 +++ exited with", "without its end"),
        ("1 --- SIGSEGV {", "without its end"),
        ("1 10:xx:12 brk(NULL) = 0", "is no time"),
        ("[pid one] brk(NULL) = 0", "is no process"),
        ("1 clone(child_stack=NULL) = 5", "lacks its flags"),
        ("1 br k(NULL) = 0", "is no name of a call"),
        ("1 mmap(NULL, 4096, 0x3 /* PROT_READ, 0x22, -1, 0) = 0", "closing parenthesis"),
        ("1 mmap(NULL, 4096, 0x3, 0x22, 3</lib, 0) = 0", "closing parenthesis"),
    ];
    for (text, why) in bad {
        let log = read(&format!("9 brk(NULL) = 0x1000\n{text}\n9 brk(NULL) = 0x2000\n"));
        assert_eq!(log.problems.len(), 1, "{text}");
        let message = log.problems[0].to_string();
        assert!(message.starts_with("t.log:2: ") && message.ends_with(text), "{message}");
        assert!(message.contains(why) && message.lines().count() == 1, "{message}");
        assert_eq!(log.events.len(), 2, "{text}");
    }
    let long = format!("x{}", "y".repeat(5000));
    let log = read(&long);
    assert!(log.problems[0].text.len() < 300 && log.problems[0].text.ends_with("..."));
}

/// Wherever a file ends within its last call, what is left of that call is a problem and nothing else: half a result would
/// be another address.
#[test]
fn a_call_that_no_newline_ends_is_a_problem_and_left_out() {
    for (whole, name) in [
        ("1 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7f0012345000", "a call"),
        ("2 <... munmap resumed>) = -1 EINVAL (Invalid argument)", "the rest of one"),
        ("1 getpid() = 12345", "no memory call"),
    ] {
        let before = "2 munmap(0x1000, 4096 <unfinished ...>\n1 brk(NULL) = 0x1000\n";
        for end in 3..=whole.len() {
            let log = cut(&format!("{before}{}", &whole[..end]));
            assert_eq!(log.problems.len(), 1, "{name}: {}", &whole[..end]);
            let m = log.problems[0].to_string();
            assert!(m.starts_with("t.log:3: the last line is cut off") && m.ends_with(whole[..end].trim_end()), "{m}");
            assert!(m.contains("record the log anew") && m.lines().count() == 1, "{m}");
            assert_eq!(log.lines, 3);
            let calls = log.events.iter().filter(|e| matches!(e.what, What::Call(_, Ret::Value(_)))).count();
            assert_eq!((calls, log.unknown.len()), (1, 0), "{name}: {:?}", log.events);
        }
        assert_eq!(cut(&format!("{before}{whole}\n")).problems, [], "{name}");
    }
    // Lines that say themselves where they end.
    for whole in ["1 +++ exited with 0 +++", "1 --- SIGCHLD {si_signo=SIGCHLD} ---", "1 brk(NULL <unfinished ...>"] {
        assert_eq!(cut(&format!("1 brk(NULL) = 0x1000\n{whole}")).problems, [], "{whole}");
    }
}

/// Text, and then an error.
struct Damaged<'a>(&'a [u8]);

impl std::io::Read for Damaged<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::Error::other("a broken block"));
        }
        self.0.read(out)
    }
}

#[test]
fn what_came_before_damage_is_read_and_the_damage_told() {
    let damaged = |text: &str| parse("t.log.gz", std::io::BufReader::new(Damaged(text.as_bytes())));
    let told = |log: &Log| log.problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    const DAMAGE: &str = "the file cannot be read on from here, copy or record it anew: a broken block: ";
    let log = damaged("1 brk(NULL) = 0x1000\n1 brk(0x2000) = 0x20");
    assert_eq!((log.events.len(), log.lines), (1, 2));
    assert_eq!(told(&log), [format!("t.log.gz:2: {CUT}: 1 brk(0x2000) = 0x20"), format!("t.log.gz:2: {DAMAGE}")]);
    // At the end of a line; and behind a line that is whole without its newline.
    let log = damaged("1 brk(NULL) = 0x1000\n");
    assert_eq!((log.events.len(), told(&log)), (1, vec![format!("t.log.gz:2: {DAMAGE}")]));
    let log = damaged("1 brk(NULL) = 0x1000\n1 +++ exited with 0 +++");
    assert_eq!((log.events.len(), told(&log)), (2, vec![format!("t.log.gz:2: {DAMAGE}")]));
}

/// A call cut in two at a place where strace may cut it: anywhere before the closing parenthesis.
fn halves(line: &str, at: usize, name: &str) -> Option<(String, String)> {
    let close = line.rfind(')')?;
    let open = line.find('(')? + 1;
    let at = open + at % (close - open + 1);
    Some((format!("{} <unfinished ...>", &line[..at]), format!("<... {name} resumed>{}", &line[at..])))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever calls threads make and however their lines are cut and woven, each thread's calls come out as if they had
    /// been whole.
    #[test]
    fn cut_lines_join(
        plan in prop::collection::vec((0u32..4, 1u64..1000, any::<bool>(), 0usize..60), 1..60),
        order in prop::collection::vec(0u32..4, 0..200),
    ) {
        // One queue of lines a thread.
        let mut queues: Vec<std::collections::VecDeque<String>> = vec![Default::default(); 4];
        let mut want: Vec<Vec<(Sys, Ret)>> = vec![Vec::new(); 4];
        for (t, n, cut, at) in plan {
            let line = format!("munmap({:#x}, {n}) = 0", n * 4096);
            want[t as usize].push((Call::Munmap { addr: n * 4096, len: n }.into(), Ret::Value(0)));
            let q = &mut queues[t as usize];
            // No blank may be lost where strace prints none.
            match halves(&line, at, "munmap").filter(|h| cut && !h.0.contains(", <")) {
                Some((a, b)) => {
                    q.push_back(a);
                    q.push_back(b);
                }
                None => q.push_back(line),
            }
        }
        let mut text = String::new();
        for t in order.into_iter().chain((0..4).flat_map(|t| std::iter::repeat_n(t, 200))) {
            if let Some(line) = queues[t as usize].pop_front() {
                text += &format!("{} {line}\n", t + 100);
            }
        }
        let log = read(&text);
        prop_assert_eq!(&log.problems, &[]);
        for t in 0..4u32 {
            let got: Vec<_> = log.events.iter().filter(|e| e.tid == t + 100).map(|e| match &e.what {
                What::Call(s, r) => (s.clone(), r.clone()),
                w => panic!("{w:?}"),
            }).collect();
            prop_assert_eq!(&got, &want[t as usize]);
        }
        prop_assert!(log.events.windows(2).all(|w| w[0].line < w[1].line));
    }

    /// No text makes the parser panic.
    #[test]
    fn any_text_is_read_or_refused(text in "[0-9a-z(){}<>=?+. ,|\"\\\\/*x\\[\\]-]{0,80}") {
        let log = read(&text);
        prop_assert!(log.problems.len() <= log.lines as usize + 4);
    }
}
