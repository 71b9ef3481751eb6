// SPDX-License-Identifier: GPL-2.0-only
//! `Kconfig`: what `.config` is to a kernel build. One parameter `K` bundles the world and the per-VMA lock protocol;
//! everything from mm upwards is generic over it, nothing below mentions it. How VMAs are allocated and freed, and by which
//! allocator, is said at boot.

use super::mm_types::{MmStruct, VmaOf};
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
}

/// The bundle of two parts.
#[derive(Clone, Copy, Debug)]
pub struct Config<A, L>(PhantomData<(A, L)>);

impl<A: Hardware, L: VmaLock> Kconfig for Config<A, L> {
    type A = A;
    type Lock = L;
}

/// `struct mm_struct` of build `K`.
pub type Mm<K> = MmStruct<<K as Kconfig>::A, <K as Kconfig>::Lock>;
/// A pointer to an mm of build `K`.
pub type MmPtr<K> = KRef<Mm<K>>;
/// A pointer to a VMA of build `K`.
pub type VmaPtr<K> = KRef<VmaOf<<K as Kconfig>::A, <K as Kconfig>::Lock>>;
