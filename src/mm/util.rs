// SPDX-License-Identifier: GPL-2.0-only
//! The commit limit [mm/util.c, include/linux/mman.h, 6.12].

use super::kconfig::Kconfig;
use crate::cpu::Cpu;
use crate::init::Kernel;

/// `vm_unacct_memory()`
#[inline(always)]
pub fn vm_unacct_memory<K: Kconfig>(_cpu: &Cpu<K::A>, _k: &Kernel<K>, _pages: u64) {}
