// SPDX-License-Identifier: GPL-2.0-only
//! Variants: `PROTOCOL+CACHE@ALLOCATOR`, the kernels that have names, and the way from a name to a monomorphised
//! function, once a run.
//!
//! Protocols are types, one copy of the kernel each ([`protocols!`](crate::protocols)); caches and allocators are said at
//! boot ([`Variant::configure`]). Every combination can be run but those that a protocol cannot bear, which are refused by
//! name with the reason.

use super::vma_cache::{CACHES, Footprint, VmaCache, refusal};
use super::vma_lock::{PROTOCOLS, Verdict};
use crate::init::KernelConfig;
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
    /// The way itself.
    pub vma_cache: VmaCache,
    /// Slug of the allocator.
    pub allocator: &'static str,
    /// The allocator itself.
    pub slab: Allocator,
    /// Whether the protocol is right.
    pub verdict: Verdict,
}

/// What the benches measure unless told otherwise: the kernels that have names, and between them one step at a time: the lock
/// protocol, the free policy, the allocator.
pub const MAIN: &[&str] =
    &["v6.12", "refcnt+call_rcu@slub", "v6.15", "refcnt+call_rcu@sheaves", "refcnt+typesafe@sheaves"];

impl Variant {
    /// Puts what is said at boot into `config`: the allocator, and how VMAs are freed.
    pub fn configure(&self, mut config: KernelConfig) -> KernelConfig {
        config.slab.allocator = self.slab;
        config.vma_cache = self.vma_cache;
        config
    }

    /// What a VMA takes in a kernel of `nr_cpus` CPUs.
    pub fn footprint(&self, nr_cpus: u32) -> Footprint {
        let p = PROTOCOLS.iter().find(|p| p.name == self.protocol).expect("a variant has a protocol of the list");
        (p.footprint)(self.vma_cache.kind(), self.slab, nr_cpus)
    }
}

/// Runs `$body` with `$K` standing for the build of a [`Variant`] in world `$A`: from a name to a monomorphised function,
/// once a run. The kernel's configuration must come from [`Variant::configure`].
///
/// Tests inside the library have the protocols of [`NAMED`] kernels only ([`named`]): each type is one more copy of the
/// kernel to compile. `tests/protocols.rs` has all.
#[cfg(not(test))]
#[macro_export]
macro_rules! with_variant {
    ($variant:expr, $A:ty, $K:ident => $body:expr) => {
        $crate::protocols!(__with_variant ($variant, $A, $K => $body))
    };
}

/// See there.
#[cfg(test)]
#[macro_export]
macro_rules! with_variant {
    ($variant:expr, $A:ty, $K:ident => $body:expr) => {
        $crate::__with_variant! { ($variant, $A, $K => $body)
            $crate::mm::vma_lock::rwsem_separate::RwsemSeparate,
            $crate::mm::vma_lock::refcnt::Refcnt,
            $crate::mm::vma_lock::refcnt_exclude::RefcntExclude,
        }
    };
}

/// [`with_variant!`](crate::with_variant) with the list of protocols.
#[doc(hidden)]
#[macro_export]
macro_rules! __with_variant {
    (($variant:expr, $A:ty, $K:ident => $body:expr) $($L:ty,)*) => {{
        let v: &$crate::mm::variant::Variant = $variant;
        match v.protocol {
            $(name if name == <$L as $crate::mm::vma_lock::VmaLock>::NAME => {
                type $K = $crate::mm::kconfig::Config<$A, $L>;
                $body
            })*
            _ => unreachable!("variant '{}' is not in this list", v.name),
        }
    }};
}

/// All variants that can be run, named kernels under their names.
pub fn all() -> Vec<Variant> {
    let mut out = Vec::new();
    for (a, _, _) in ALLOCATORS {
        for p in PROTOCOLS {
            for c in CACHES.iter().filter(|c| refusal(p.reuse, p.separate_lock, c).is_none()) {
                out.push(parse(&format!("{}+{}@{a}", p.name, c.name)).expect("what is not refused parses"));
            }
        }
    }
    out
}

/// For tests that cannot run [`all`]: every cache and allocator with the protocols of the named kernels, and every other
/// protocol as it was proposed.
pub fn each_once() -> Vec<Variant> {
    let named = named();
    let proposed = |v: &Variant| {
        let first = if v.protocol == "rwsem_embedded" { "call_rcu" } else { "typesafe" };
        v.cache == first && v.slab == Allocator::Slub
    };
    all().into_iter().filter(|v| named.contains(v) || proposed(v)).collect()
}

/// Those of [`all`] whose protocol is a named kernel's.
pub fn named() -> Vec<Variant> {
    all().into_iter().filter(|v| NAMED.iter().any(|(_, full)| full.starts_with(&format!("{}+", v.protocol)))).collect()
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
    if let Some(why) = refusal(p.reuse, p.separate_lock, c) {
        let can = CACHES.iter().filter(|c| refusal(p.reuse, p.separate_lock, c).is_none());
        let can: Vec<_> = can.map(|c| c.name).collect();
        return Err(format!(
            "variant '{text}' is refused: protocol '{}' forbids cache '{}', because {why}; it runs with cache {}",
            p.name,
            c.name,
            can.join(" or ")
        ));
    }
    let name = NAMED.iter().find(|(_, v)| *v == full).map_or(full, |(n, _)| n).to_string();
    let (verdict, vma_cache) = (p.verdict, c.cache);
    Ok(Variant { name, protocol: p.name, cache: c.name, vma_cache, allocator: a.0, slab: a.2, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Native;
    use crate::mm::kconfig::Kconfig;
    use crate::mm::vma_lock::VmaLock;

    #[test]
    fn names_and_full_forms_lead_to_the_same_build() {
        assert_eq!(parse("v6.12"), parse("rwsem_separate+call_rcu@slub"));
        assert_eq!(parse("v6.15").unwrap().name, "v6.15");
        assert_eq!(parse("v7.3"), parse("refcnt_exclude+typesafe@sheaves"));
        assert!(main().iter().all(|m| all().contains(m)));
        for v in all() {
            assert_eq!(parse(&v.name), Ok(v.clone()));
        }
        for v in named() {
            with_variant!(&v, Native, K => {
                assert_eq!(<K as Kconfig>::Lock::NAME, v.protocol);
                assert_eq!(<K as Kconfig>::Lock::VERDICT, v.verdict);
            });
            let c = v.configure(KernelConfig::default());
            assert_eq!((c.slab.allocator, c.vma_cache), (v.slab, v.vma_cache));
        }
    }

    #[test]
    fn every_protocol_runs_with_every_cache_that_it_bears() {
        // The separate lock: two caches; the embedded one: not the typesafe; twelve others: all four.
        assert_eq!(all().len(), (2 + 3 + 12 * 4) * ALLOCATORS.len());
        let once = each_once();
        assert!(PROTOCOLS.iter().all(|p| once.iter().any(|v| v.protocol == p.name)));
        assert!(main().iter().all(|m| once.contains(m)));
        let once = once.len();
        assert_eq!(once, (2 + 4 + 4) * ALLOCATORS.len() + 11);
    }

    #[test]
    fn refusals_say_why_and_what_is_accepted() {
        for p in ["rwsem_separate", "rwsem_embedded"] {
            let e = parse(&format!("{p}+typesafe@slub")).unwrap_err();
            assert!(e.contains(p) && e.contains("forbids") && e.contains("because"), "{e}");
            assert!(e.contains("runs with cache kmalloc_call_rcu or call_rcu"), "{e}");
        }
        let e = parse("rwsem_separate+kfree_rcu@slub").unwrap_err();
        assert!(e.contains("lock object") && e.contains("call_rcu"), "{e}");
        assert_eq!(parse("refcnt+typesafe@sheaves").unwrap().slab, Allocator::Sheaves);
        assert!(parse("v9").unwrap_err().contains("v6.12, v6.15"));
        assert!(parse("mutex+typesafe@slub").unwrap_err().contains("rwsem_separate"));
        assert!(parse("refcnt+arena@slub").unwrap_err().contains("typesafe"));
        assert!(parse("refcnt+typesafe@slob").unwrap_err().contains("slub"));
    }
}
