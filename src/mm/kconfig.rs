// SPDX-License-Identifier: GPL-2.0-only
//! `Kconfig`: what `.config` is to a kernel build. One parameter `K` bundles the world, the per-VMA lock protocol and
//! the way VMAs are allocated and freed; everything from mm upwards is generic over it, nothing below mentions it.

use super::mm_types::{MmStruct, VmaOf};
use super::vma_cache::VmaCache;
use super::vma_lock::VmaLock;
use crate::arch::Hardware;
use crate::arch::arena::KRef;
use std::fmt::Debug;
use std::marker::PhantomData;

/// A build of the kernel.
pub trait Kconfig: Copy + Send + Sync + Debug + 'static {
    /// The world.
    type A: Hardware;
    /// The per-VMA lock protocol.
    type Lock: VmaLock;
    /// How VMAs are allocated and freed.
    type Cache: VmaCache;
}

/// The bundle of three parts.
#[derive(Clone, Copy, Debug)]
pub struct Config<A, L, C>(PhantomData<(A, L, C)>);

impl<A: Hardware, L: VmaLock, C: VmaCache> Kconfig for Config<A, L, C> {
    type A = A;
    type Lock = L;
    type Cache = C;
}

/// `struct mm_struct` of build `K`.
pub type Mm<K> = MmStruct<<K as Kconfig>::A, <K as Kconfig>::Lock>;
/// A pointer to an mm of build `K`.
pub type MmPtr<K> = KRef<Mm<K>>;
/// A pointer to a VMA of build `K`.
pub type VmaPtr<K> = KRef<VmaOf<<K as Kconfig>::A, <K as Kconfig>::Lock>>;
