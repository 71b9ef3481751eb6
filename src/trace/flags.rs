// SPDX-License-Identifier: GPL-2.0-only
//! Names and numbers in a log: what strace prints for the arguments of the memory calls, with `-X raw` (numbers),
//! `abbrev` (names) and `verbose` (a number and its names as a comment).
//!
//! The numbers are the port's own where it has them.
//!
//! A name that no table holds is an error that says so: a flag dropped without a word would be a different call.

use crate::mm::{madvise, mlock, mmap, mremap, prctl};

/// A table of names.
pub type Names = &'static [(&'static str, u64)];

/// `PROT_*`
pub const PROT: Names = &[
    ("PROT_NONE", 0),
    ("PROT_READ", 1),
    ("PROT_WRITE", 2),
    ("PROT_EXEC", 4),
    ("PROT_SEM", 8),
    ("PROT_GROWSDOWN", 0x0100_0000),
    ("PROT_GROWSUP", 0x0200_0000),
];

/// `MAP_*` of x86-64.
pub const MAP: Names = &[
    ("MAP_FILE", 0),
    ("MAP_SHARED", mmap::MAP_SHARED as u64),
    ("MAP_PRIVATE", mmap::MAP_PRIVATE as u64),
    ("MAP_SHARED_VALIDATE", mmap::MAP_SHARED_VALIDATE as u64),
    ("MAP_DROPPABLE", mmap::MAP_DROPPABLE as u64),
    ("MAP_FIXED", mmap::MAP_FIXED as u64),
    ("MAP_ANONYMOUS", mmap::MAP_ANONYMOUS as u64),
    ("MAP_ANON", 0x20),
    ("MAP_32BIT", mmap::MAP_32BIT as u64),
    ("MAP_ABOVE4G", mmap::MAP_ABOVE4G as u64),
    ("MAP_GROWSDOWN", mmap::MAP_GROWSDOWN as u64),
    ("MAP_DENYWRITE", 0x800),
    ("MAP_EXECUTABLE", 0x1000),
    ("MAP_LOCKED", mmap::MAP_LOCKED as u64),
    ("MAP_NORESERVE", mmap::MAP_NORESERVE as u64),
    ("MAP_POPULATE", mmap::MAP_POPULATE as u64),
    ("MAP_NONBLOCK", mmap::MAP_NONBLOCK as u64),
    ("MAP_STACK", mmap::MAP_STACK as u64),
    ("MAP_HUGETLB", mmap::MAP_HUGETLB as u64),
    ("MAP_SYNC", 0x8_0000),
    ("MAP_FIXED_NOREPLACE", mmap::MAP_FIXED_NOREPLACE as u64),
    ("MAP_UNINITIALIZED", 0x400_0000),
    ("MAP_HUGE_2MB", 21 << 26),
    ("MAP_HUGE_1GB", 30 << 26),
];

/// `MADV_*`
pub const MADV: Names = &[
    ("MADV_NORMAL", madvise::MADV_NORMAL as u64),
    ("MADV_RANDOM", madvise::MADV_RANDOM as u64),
    ("MADV_SEQUENTIAL", madvise::MADV_SEQUENTIAL as u64),
    ("MADV_WILLNEED", madvise::MADV_WILLNEED as u64),
    ("MADV_DONTNEED", madvise::MADV_DONTNEED as u64),
    ("MADV_FREE", madvise::MADV_FREE as u64),
    ("MADV_REMOVE", madvise::MADV_REMOVE as u64),
    ("MADV_DONTFORK", madvise::MADV_DONTFORK as u64),
    ("MADV_DOFORK", madvise::MADV_DOFORK as u64),
    ("MADV_MERGEABLE", madvise::MADV_MERGEABLE as u64),
    ("MADV_UNMERGEABLE", madvise::MADV_UNMERGEABLE as u64),
    ("MADV_HUGEPAGE", madvise::MADV_HUGEPAGE as u64),
    ("MADV_NOHUGEPAGE", madvise::MADV_NOHUGEPAGE as u64),
    ("MADV_DONTDUMP", madvise::MADV_DONTDUMP as u64),
    ("MADV_DODUMP", madvise::MADV_DODUMP as u64),
    ("MADV_WIPEONFORK", madvise::MADV_WIPEONFORK as u64),
    ("MADV_KEEPONFORK", madvise::MADV_KEEPONFORK as u64),
    ("MADV_COLD", madvise::MADV_COLD as u64),
    ("MADV_PAGEOUT", madvise::MADV_PAGEOUT as u64),
    ("MADV_POPULATE_READ", madvise::MADV_POPULATE_READ as u64),
    ("MADV_POPULATE_WRITE", madvise::MADV_POPULATE_WRITE as u64),
    ("MADV_DONTNEED_LOCKED", madvise::MADV_DONTNEED_LOCKED as u64),
    ("MADV_COLLAPSE", madvise::MADV_COLLAPSE as u64),
    ("MADV_HWPOISON", madvise::MADV_HWPOISON as u64),
    ("MADV_SOFT_OFFLINE", madvise::MADV_SOFT_OFFLINE as u64),
    ("MADV_GUARD_INSTALL", madvise::MADV_GUARD_INSTALL as u64),
    ("MADV_GUARD_REMOVE", madvise::MADV_GUARD_REMOVE as u64),
];

/// `MREMAP_*`
pub const MREMAP: Names = &[
    ("MREMAP_MAYMOVE", mremap::MREMAP_MAYMOVE as u64),
    ("MREMAP_FIXED", mremap::MREMAP_FIXED as u64),
    ("MREMAP_DONTUNMAP", mremap::MREMAP_DONTUNMAP as u64),
];

/// `MLOCK_*`
pub const MLOCK: Names = &[("MLOCK_ONFAULT", mlock::MLOCK_ONFAULT as u64)];

/// `MCL_*`
pub const MCL: Names = &[
    ("MCL_CURRENT", mlock::MCL_CURRENT as u64),
    ("MCL_FUTURE", mlock::MCL_FUTURE as u64),
    ("MCL_ONFAULT", mlock::MCL_ONFAULT as u64),
];

/// `CLONE_*`
pub const CLONE: Names = &[
    ("CLONE_NEWTIME", 0x80),
    ("CLONE_VM", 0x100),
    ("CLONE_FS", 0x200),
    ("CLONE_FILES", 0x400),
    ("CLONE_SIGHAND", 0x800),
    ("CLONE_PIDFD", 0x1000),
    ("CLONE_PTRACE", 0x2000),
    ("CLONE_VFORK", 0x4000),
    ("CLONE_PARENT", 0x8000),
    ("CLONE_THREAD", 0x1_0000),
    ("CLONE_NEWNS", 0x2_0000),
    ("CLONE_SYSVSEM", 0x4_0000),
    ("CLONE_SETTLS", 0x8_0000),
    ("CLONE_PARENT_SETTID", 0x10_0000),
    ("CLONE_CHILD_CLEARTID", 0x20_0000),
    ("CLONE_DETACHED", 0x40_0000),
    ("CLONE_UNTRACED", 0x80_0000),
    ("CLONE_CHILD_SETTID", 0x100_0000),
    ("CLONE_NEWCGROUP", 0x200_0000),
    ("CLONE_NEWUTS", 0x400_0000),
    ("CLONE_NEWIPC", 0x800_0000),
    ("CLONE_NEWUSER", 0x1000_0000),
    ("CLONE_NEWPID", 0x2000_0000),
    ("CLONE_NEWNET", 0x4000_0000),
    ("CLONE_IO", 0x8000_0000),
    ("CLONE_CLEAR_SIGHAND", 0x1_0000_0000),
    ("CLONE_INTO_CGROUP", 0x2_0000_0000),
];

/// `PR_*` that have to do with memory.
pub const PRCTL: Names = &[
    ("PR_SET_NAME", 15),
    ("PR_SET_MM", 35),
    ("PR_SET_THP_DISABLE", 41),
    ("PR_SET_MDWE", PR_SET_MDWE),
    ("PR_SET_VMA", PR_SET_VMA),
];

/// `PR_SET_MDWE`: nothing becomes executable.
pub const PR_SET_MDWE: u64 = 65;

/// `PR_MDWE_*`
pub const MDWE: Names = &[
    ("PR_MDWE_REFUSE_EXEC_GAIN", prctl::PR_MDWE_REFUSE_EXEC_GAIN as u64),
    ("PR_MDWE_NO_INHERIT", prctl::PR_MDWE_NO_INHERIT as u64),
];

/// Bits of a personality. None but `READ_IMPLIES_EXEC` is replayed.
pub const PERSONALITY: Names = &[
    ("PER_LINUX", 0),
    ("PER_LINUX32", 8),
    ("UNAME26", 0x2_0000),
    ("ADDR_NO_RANDOMIZE", 0x4_0000),
    ("FDPIC_FUNCPTRS", 0x8_0000),
    ("MMAP_PAGE_ZERO", 0x10_0000),
    ("ADDR_COMPAT_LAYOUT", 0x20_0000),
    ("READ_IMPLIES_EXEC", prctl::READ_IMPLIES_EXEC as u64),
    ("ADDR_LIMIT_32BIT", 0x80_0000),
    ("SHORT_INODE", 0x100_0000),
    ("WHOLE_SECONDS", 0x200_0000),
    ("STICKY_TIMEOUTS", 0x400_0000),
    ("ADDR_LIMIT_3GB", 0x800_0000),
];

/// `PR_SET_VMA`: names anonymous memory.
pub const PR_SET_VMA: u64 = 0x5356_4d41;

/// `CLONE_VM`
pub const CLONE_VM: u64 = 0x100;
/// `CLONE_THREAD`
pub const CLONE_THREAD: u64 = 0x1_0000;

const ERRNO: &[(&str, i32)] = &[
    ("EPERM", libc::EPERM),
    ("ENOENT", libc::ENOENT),
    ("EINTR", libc::EINTR),
    ("EIO", libc::EIO),
    ("EBADF", libc::EBADF),
    ("EAGAIN", libc::EAGAIN),
    ("ENOMEM", libc::ENOMEM),
    ("EACCES", libc::EACCES),
    ("EFAULT", libc::EFAULT),
    ("EBUSY", libc::EBUSY),
    ("EEXIST", libc::EEXIST),
    ("ENODEV", libc::ENODEV),
    ("EINVAL", libc::EINVAL),
    ("ENFILE", libc::ENFILE),
    ("ETXTBSY", libc::ETXTBSY),
    ("ENOSYS", libc::ENOSYS),
    ("EOVERFLOW", libc::EOVERFLOW),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
];

/// Name of an error number.
pub fn errno_name(e: i32) -> String {
    ERRNO.iter().find(|(_, n)| *n == e).map_or_else(|| format!("errno {e}"), |(name, _)| (*name).to_string())
}

/// A number: decimal (with a sign), hex, octal, or NULL. What stands behind it in a comment does not count.
pub fn number(text: &str) -> Option<u64> {
    let t = without_comments(text);
    if t == "NULL" {
        return Some(0);
    }
    if let Some(h) = t.strip_prefix("0x") {
        return u64::from_str_radix(h, 16).ok();
    }
    if let Some(d) = t.strip_prefix('-') {
        return d.parse::<u64>().ok().map(u64::wrapping_neg);
    }
    if t.len() > 1 && t.starts_with('0') {
        return u64::from_str_radix(&t[1..], 8).ok();
    }
    t.parse().ok()
}

/// The names of a value's bits, without their common prefix, joined by `|`; what no table holds in hex. Of a field of
/// several bits (the type of a mapping) the whole value has to fit.
pub fn named(value: u64, names: Names) -> String {
    let mut left = value;
    let mut out: Vec<(u64, &str)> = Vec::new();
    // The widest first: MAP_SHARED_VALIDATE holds the bits of two others.
    let mut by_width: Vec<_> = names.iter().filter(|(_, v)| *v != 0).collect();
    by_width.sort_by_key(|(_, v)| std::cmp::Reverse(v.count_ones()));
    for (n, v) in by_width {
        if left & v == *v && (v.count_ones() == 1 || value & 0xf == *v) {
            left &= !v;
            out.push((*v, n.split_once('_').map_or(*n, |(_, rest)| rest)));
        }
    }
    out.sort_by_key(|(v, _)| *v);
    let mut out: Vec<String> = out.into_iter().map(|(_, n)| n.to_string()).collect();
    if left != 0 {
        out.push(format!("{left:#x}"));
    }
    out.join("|")
}

/// The text without comments.
fn without_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        out.push_str(before);
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    (out + rest).trim().to_string()
}

/// Flags or-ed together, as numbers, names, or both.
///
/// # Errors
/// The part that is neither.
pub fn flags(text: &str, names: Names) -> Result<u64, String> {
    let mut all = 0;
    for part in without_comments(text).split('|') {
        let part = part.trim();
        all |= match names.iter().find(|(n, _)| *n == part) {
            Some((_, v)) => *v,
            None => match part.split_once("<<") {
                Some((n, _)) => {
                    // MAP_HUGE_SHIFT is the only shift in these arguments.
                    number(n).map(|n| n << 26).ok_or_else(|| format!("'{part}' is no number"))?
                }
                None => number(part).ok_or_else(|| format!("no flag is named '{part}'"))?,
            },
        };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_in_every_form_that_strace_prints() {
        assert_eq!(number("NULL"), Some(0));
        assert_eq!(number("0x7f00"), Some(0x7f00));
        assert_eq!(number("4096"), Some(4096));
        assert_eq!(number("-1"), Some(u64::MAX));
        assert_eq!(number("0644"), Some(0o644));
        assert_eq!(number("0x3 /* PROT_READ|PROT_WRITE */"), Some(3));
        assert_eq!(number("four"), None);
        assert_eq!(flags("PROT_NONE", PROT), Ok(0));
        assert_eq!(flags("PROT_READ|PROT_WRITE", PROT), Ok(3));
        assert_eq!(flags("0x22", MAP), Ok(0x22));
        assert_eq!(flags("0x22 /* MAP_PRIVATE|MAP_ANONYMOUS */", MAP), Ok(0x22));
        assert_eq!(flags("MAP_PRIVATE|MAP_ANONYMOUS|0x1000000", MAP), Ok(0x100_0022));
        assert_eq!(flags("MAP_PRIVATE|MAP_HUGETLB|21<<MAP_HUGE_SHIFT", MAP), Ok(0x4_0002 | 21 << 26));
        assert_eq!(flags("0x1200000|17", CLONE), Ok(0x120_0011));
        assert!(flags("MAP_PRIVATE|MAP_SIDEWAYS", MAP).unwrap_err().contains("MAP_SIDEWAYS"));
        assert_eq!(errno_name(12), "ENOMEM");
        assert_eq!(errno_name(4242), "errno 4242");
    }

    #[test]
    fn a_value_is_named_by_its_bits() {
        assert_eq!(named(0x22, MAP), "PRIVATE|ANONYMOUS");
        assert_eq!(named(0x10_0003, MAP), "SHARED_VALIDATE|FIXED_NOREPLACE");
        assert_eq!(named(0x100_0001, MAP), "SHARED|0x1000000");
        assert_eq!((named(7, MREMAP).as_str(), named(0, MCL).as_str()), ("MAYMOVE|FIXED|DONTUNMAP", ""));
    }
}
