// SPDX-License-Identifier: GPL-2.0-only
//! Variants: `PROTOCOL+CACHE@ALLOCATOR`, the kernels that have names, and the way from a name to a monomorphised
//! function, once a run.
//!
//! [`BUILT`] is the one list of what is compiled; design.md 2 says what there is besides. What a protocol
//! cannot bear is refused by name with the reason, what is not built says so.

use super::vma_cache::CACHES;
use super::vma_lock::{PROTOCOLS, Reuse, Verdict};
use crate::slab::Allocator;

/// Allocators. Which one serves a kernel's caches is said at boot, so every protocol and cache has them all.
pub const ALLOCATORS: &[(&str, &str, Allocator)] = &[
    ("slub", "per-CPU slabs, 6.12", Allocator::Slub),
    ("sheaves", "per-CPU arrays of objects, 7.x", Allocator::Sheaves),
];

/// Kernels that have names, and what they stand for.
pub const NAMED: &[(&str, &str)] = &[
    ("v6.12", "rwsem_separate+call_rcu@slub"),
    ("v6.15", "refcnt+typesafe@slub"),
    ("v7.3", "refcnt_exclude+typesafe@sheaves"),
];

/// One variant that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The kernel's name where it has one, else `PROTOCOL+CACHE@ALLOCATOR`.
    pub name: String,
    /// Slug of the protocol.
    pub protocol: &'static str,
    /// Slug of the way VMAs are freed.
    pub cache: &'static str,
    /// Slug of the allocator.
    pub allocator: &'static str,
    /// The allocator itself.
    pub slab: Allocator,
    /// Whether the protocol is right.
    pub verdict: Verdict,
}

/// What is compiled: protocol and cache. [`with_variant!`](crate::with_variant) has an arm for each.
pub const BUILT: &[(&str, &str)] = &[
    ("rwsem_separate", "call_rcu"),
    ("rwsem_separate", "kmalloc_call_rcu"),
    ("refcnt", "typesafe"),
    ("refcnt", "call_rcu"),
    ("refcnt", "kmalloc_call_rcu"),
    ("refcnt", "kfree_rcu"),
];

/// What the benches measure unless told otherwise: the kernels that have names, and between them one step at a time: the lock
/// protocol, the free policy, the allocator.
pub const MAIN: &[&str] =
    &["v6.12", "refcnt+call_rcu@slub", "v6.15", "refcnt+call_rcu@sheaves", "refcnt+typesafe@sheaves"];

/// Runs `$body` with `$K` standing for the build of a [`Variant`] in world `$A`: from a
/// name to a monomorphised function, once a run.
#[macro_export]
macro_rules! with_variant {
    ($variant:expr, $A:ty, $K:ident => $body:expr) => {{
        use $crate::mm::kconfig::Config;
        use $crate::mm::vma_cache::{kfree_rcu, kmalloc_call_rcu, kmem_cache_call_rcu, typesafe_by_rcu};
        use $crate::mm::vma_lock::{refcnt, rwsem_separate};
        let v: &$crate::mm::variant::Variant = $variant;
        match (v.protocol, v.cache) {
            ("rwsem_separate", "call_rcu") => {
                type $K = Config<$A, rwsem_separate::RwsemSeparate, kmem_cache_call_rcu::CallRcu>;
                $body
            }
            ("rwsem_separate", "kmalloc_call_rcu") => {
                type $K = Config<$A, rwsem_separate::RwsemSeparate, kmalloc_call_rcu::KmallocCallRcu>;
                $body
            }
            ("refcnt", "typesafe") => {
                type $K = Config<$A, refcnt::Refcnt, typesafe_by_rcu::Typesafe>;
                $body
            }
            ("refcnt", "call_rcu") => {
                type $K = Config<$A, refcnt::Refcnt, kmem_cache_call_rcu::CallRcu>;
                $body
            }
            ("refcnt", "kmalloc_call_rcu") => {
                type $K = Config<$A, refcnt::Refcnt, kmalloc_call_rcu::KmallocCallRcu>;
                $body
            }
            ("refcnt", "kfree_rcu") => {
                type $K = Config<$A, refcnt::Refcnt, kfree_rcu::KfreeRcu>;
                $body
            }
            _ => unreachable!("variant '{}' did not come from parse()", v.name),
        }
    }};
}

/// All variants that can be run, named kernels under their names.
pub fn all() -> Vec<Variant> {
    let mut out = Vec::new();
    for (a, _, _) in ALLOCATORS {
        for (p, c) in BUILT {
            out.push(parse(&format!("{p}+{c}@{a}")).expect("what is built parses"));
        }
    }
    out
}

/// Those of [`MAIN`].
pub fn main() -> Vec<Variant> {
    MAIN.iter().map(|v| parse(v).expect("what is built parses")).collect()
}

/// Reads a variant: the name of a kernel, or `PROTOCOL+CACHE@ALLOCATOR`.
///
/// # Errors
/// One sentence: what is wrong and what is accepted.
pub fn parse(text: &str) -> Result<Variant, String> {
    let named = NAMED.iter().find(|(n, _)| *n == text);
    let full = named.map_or(text, |(_, v)| v);
    let shape = || {
        let names: Vec<_> = NAMED.iter().map(|(n, _)| *n).collect();
        format!("variant '{text}' is neither a named kernel ({}) nor PROTOCOL+CACHE@ALLOCATOR", names.join(", "))
    };
    let (protocol, rest) = full.split_once('+').ok_or_else(shape)?;
    let (cache, allocator) = rest.split_once('@').ok_or_else(shape)?;
    let p = PROTOCOLS.iter().find(|p| p.name == protocol).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|p| p.name).collect();
        format!("variant '{text}': no protocol is named '{protocol}'; accepted: {}", names.join(", "))
    })?;
    let c = CACHES.iter().find(|c| c.name == cache).ok_or_else(|| {
        let names: Vec<_> = CACHES.iter().map(|c| c.name).collect();
        format!("variant '{text}': no cache is named '{cache}'; accepted: {}", names.join(", "))
    })?;
    let a = ALLOCATORS.iter().find(|a| a.0 == allocator).ok_or_else(|| {
        let names: Vec<_> = ALLOCATORS.iter().map(|a| a.0).collect();
        format!("variant '{text}': no allocator is named '{allocator}'; accepted: {}", names.join(", "))
    })?;
    if let (Some(Reuse::Forbids(why)), true) = (p.reuse, c.typesafe) {
        return Err(format!(
            "variant '{text}' is refused: protocol '{}' forbids cache '{}', because {why}; it runs with cache \
             call_rcu or kmalloc_call_rcu",
            p.name, c.name
        ));
    }
    if p.separate_lock && !c.frees_lock {
        return Err(format!(
            "variant '{text}' is refused: cache '{}' frees one object, and a VMA of protocol '{}' has a lock object \
             besides, which only a callback can free; it runs with cache call_rcu or kmalloc_call_rcu",
            c.name, p.name
        ));
    }
    let not_built = |what: &str, name: &str| {
        let built: Vec<_> = BUILT.iter().map(|(p, c)| format!("{p}+{c}")).collect();
        Err(format!("variant '{text}': {what} '{name}' is not built yet; built: {}", built.join(", ")))
    };
    let Some(verdict) = p.verdict else { return not_built("protocol", p.name) };
    if !BUILT.contains(&(p.name, c.name)) {
        return not_built("the combination", &format!("{protocol}+{cache}"));
    }
    let name = NAMED.iter().find(|(_, v)| *v == full).map_or(full, |(n, _)| n).to_string();
    Ok(Variant { name, protocol: p.name, cache: c.name, allocator: a.0, slab: a.2, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;
    use crate::mm::kconfig::Kconfig;
    use crate::mm::vma_cache::VmaCache;
    use crate::mm::vma_lock::VmaLock;

    #[test]
    fn names_and_full_forms_lead_to_the_same_build() {
        assert_eq!(parse("v6.12"), parse("rwsem_separate+call_rcu@slub"));
        assert_eq!(parse("v6.15").unwrap().name, "v6.15");
        assert_eq!(all().len(), BUILT.len() * ALLOCATORS.len());
        for v in all() {
            assert_eq!(parse(&v.name), Ok(v.clone()));
            assert!(main().iter().all(|m| all().contains(m)));
            with_variant!(&v, Native, K => {
                assert_eq!(<K as Kconfig>::Lock::NAME, v.protocol);
                assert_eq!(<K as Kconfig>::Cache::NAME, v.cache);
                assert_eq!(<K as Kconfig>::Lock::VERDICT, v.verdict);
            });
        }
    }

    #[test]
    fn refusals_say_why_and_what_is_accepted() {
        let e = parse("rwsem_separate+typesafe@slub").unwrap_err();
        assert!(e.contains("rwsem_separate") && e.contains("forbids") && e.contains("because"), "{e}");
        let e = parse("v7.3").unwrap_err();
        assert!(e.contains("refcnt_exclude") && e.contains("not built yet"), "{e}");
        let e = parse("rwsem_separate+kfree_rcu@slub").unwrap_err();
        assert!(e.contains("lock object") && e.contains("call_rcu"), "{e}");
        assert_eq!(parse("refcnt+typesafe@sheaves").unwrap().slab, Allocator::Sheaves);
        assert!(parse("v9").unwrap_err().contains("v6.12, v6.15"));
        assert!(parse("mutex+typesafe@slub").unwrap_err().contains("rwsem_separate"));
        assert!(parse("refcnt+arena@slub").unwrap_err().contains("typesafe"));
        assert!(parse("refcnt+typesafe@slob").unwrap_err().contains("slub"));
    }
}
