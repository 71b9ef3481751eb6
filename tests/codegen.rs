// SPDX-License-Identifier: GPL-2.0-only
//! The fast paths, disassembled: none may hold more locked instructions than the kernel's (invariant L18).
//!
//! Each fast path is instantiated here once, under a name of its own, and read back out of this executable by objdump.
//! A slow path is a function of its own and does not count. The test profile optimises less than a release; the number
//! of locked instructions does not depend on it, since the compiler neither merges nor doubles them.
//!
//! Where there is no objdump, or on another processor than x86-64, nothing is checked, and the test says so.

#![cfg(target_arch = "x86_64")]

use faultline::arch::Native;
use faultline::cpu::Cpu;
use faultline::sync::{
    Mutex, PercpuCounter, PercpuCounters, RawSpinLock, Refcount, RwSemaphore, Seqcount, down_read, down_read_killable,
    down_read_trylock, down_write, down_write_killable, down_write_trylock, downgrade_write, mutex_lock, mutex_unlock,
    percpu_counter_add, raw_spin_lock, raw_spin_unlock, rwsem_clear_reader_owned, up_read, up_write,
};
use std::collections::BTreeMap;
use std::process::Command;

type C = Cpu<Native>;
type S = RwSemaphore<Native>;
type R = Refcount<Native>;

macro_rules! paths {
    ($($name:ident($($a:ident: $t:ty),*) = $locked:literal => $body:expr;)*) => {
        $(
            // SAFETY: no other symbol has this name.
            #[unsafe(no_mangle)]
            #[inline(never)]
            fn $name($($a: &$t),*) {
                let _ = std::hint::black_box($body);
            }
        )*
        /// Name, address, locked instructions allowed.
        fn table() -> Vec<(&'static str, usize, usize)> {
            vec![$((stringify!($name), $name as *const () as usize, $locked)),*]
        }
    };
}

paths! {
    codegen_raw_spin_lock(c: C, l: RawSpinLock<Native>) = 1 => raw_spin_lock(c, l);
    codegen_raw_spin_unlock(c: C, l: RawSpinLock<Native>) = 0 => raw_spin_unlock(c, l);
    codegen_down_read(c: C, s: S) = 1 => down_read(c, s);
    codegen_down_read_killable(c: C, s: S) = 1 => down_read_killable(c, s);
    codegen_down_read_trylock(c: C, s: S) = 1 => down_read_trylock(c, s);
    codegen_rwsem_clear_reader_owned(c: C, s: S) = 1 => rwsem_clear_reader_owned(c, s);
    // One, and the one above where the kernel is built with 7.3's hung task detector.
    codegen_up_read(c: C, s: S) = 2 => up_read(c, s);
    codegen_down_write(c: C, s: S) = 1 => down_write(c, s);
    codegen_down_write_killable(c: C, s: S) = 1 => down_write_killable(c, s);
    codegen_down_write_trylock(c: C, s: S) = 1 => down_write_trylock(c, s);
    codegen_up_write(c: C, s: S) = 1 => up_write(c, s);
    codegen_downgrade_write(c: C, s: S) = 1 => downgrade_write(c, s);
    codegen_mutex_lock(c: C, m: Mutex<Native>) = 1 => mutex_lock(c, m);
    codegen_mutex_unlock(c: C, m: Mutex<Native>) = 1 => mutex_unlock(c, m);
    codegen_refcount_inc(c: C, r: R) = 1 => r.inc(c);
    codegen_refcount_inc_not_zero(c: C, r: R) = 1 => r.inc_not_zero(c);
    codegen_refcount_inc_limited(c: C, r: R) = 1 => r.inc_not_zero_limited_acquire(c, (1 << 30) - 1);
    codegen_refcount_dec_and_test(c: C, r: R) = 1 => r.dec_and_test(c);
    codegen_seqcount_read(q: Seqcount<Native>) = 0 => q.read_retry(q.read_begin());
    codegen_seqcount_write(q: Seqcount<Native>) = 0 => { q.write_begin(); q.write_end() };
    codegen_percpu_counter_add(c: C, k: PercpuCounters<Native>, f: PercpuCounter<Native>) = 0
        => percpu_counter_add(c, k, f, 1);
}

/// Whether a line of objdump holds a locked instruction: a prefix, or an exchange with memory, which locks by itself.
/// A fence counts as one.
fn is_locked(line: &str) -> bool {
    let text = line.split('\t').next_back().unwrap_or("").trim();
    text.starts_with("lock ") || text.starts_with("xchg ") && text.contains('(') || text.starts_with("mfence")
}

/// Locked instructions by function.
fn disassemble(names: &[&str]) -> Option<BTreeMap<String, (usize, usize)>> {
    let exe = std::env::current_exe().ok()?;
    let mut out = BTreeMap::new();
    for name in names {
        let only = format!("--disassemble={name}");
        let o = Command::new("objdump").args(["-d", "--no-show-raw-insn", &only]).arg(&exe).output().ok()?;
        let text = String::from_utf8_lossy(&o.stdout);
        let body = text.lines().skip_while(|l| !l.ends_with(&format!("<{name}>:"))).skip(1);
        let body: Vec<&str> = body.take_while(|l| !l.is_empty()).collect();
        out.insert((*name).to_string(), (body.len(), body.iter().filter(|l| is_locked(l)).count()));
    }
    Some(out)
}

#[test]
fn the_fast_paths_hold_no_more_locked_instructions_than_the_kernels() {
    let table = table();
    assert!(table.iter().all(|(_, at, _)| *at != 0));
    let names: Vec<&str> = table.iter().map(|t| t.0).collect();
    let Some(found) = disassemble(&names) else {
        println!("skipped: no objdump (binutils)");
        return;
    };
    let mut bad = Vec::new();
    for (name, _, allowed) in table {
        let (instructions, locked) = found[name];
        println!("{name}: {instructions} instructions, {locked} locked, {allowed} in the kernel");
        if instructions == 0 {
            bad.push(format!("{name}: objdump does not find it"));
        } else if locked != allowed {
            // Fewer is as wrong: the path that was meant is not there.
            bad.push(format!("{name}: {locked} locked instructions, the kernel's has {allowed}"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn locked_instructions_are_told_from_others() {
    for (line, locked) in [
        ("   2af10:\tlock xadd %rax,(%rsi)", true),
        ("   2af10:\tlock cmpxchg %rcx,(%rsi)", true),
        ("   2af10:\txchg   %eax,(%rdi)", true),
        ("   2af10:\txchg   %ax,%ax", false),
        ("   2af10:\tmfence", true),
        ("   2af10:\tmov    %rax,(%rsi)", false),
    ] {
        assert_eq!(is_locked(line), locked, "{line}");
    }
}
