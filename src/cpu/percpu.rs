// SPDX-License-Identifier: GPL-2.0-only
//! Per-CPU data that other CPUs may look at: one block a CPU, 128-byte aligned, on the CPU's node
//! [include/linux/percpu-defs.h, 6.12]. What nobody else looks at is a field of [`super::Cpu`].

use crate::arch::arena::KRef;
use crate::arch::{Arch, Arena, Hardware};
use crate::cpu::Cpu;
use std::alloc::Layout;
use std::marker::PhantomData;

/// One `T` a CPU.
pub struct PerCpu<A: Arch, T> {
    blocks: KRef<[KRef<T>]>,
    _a: PhantomData<A>,
}

impl<A: Arch, T> Clone for PerCpu<A, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Arch, T> Copy for PerCpu<A, T> {}

impl<A: Arch, T> PerCpu<A, T> {
    /// Allocates and fills a block for each CPU; `node_of` says where. `label` names the blocks to the simulator.
    pub fn new(
        arena: &Arena,
        nr_cpus: u32,
        node_of: impl Fn(u32) -> u32,
        label: &'static str,
        mut init: impl FnMut(u32) -> T,
    ) -> Self
    where
        A: Hardware,
    {
        let table = arena.boot_alloc(0, Layout::array::<KRef<T>>(nr_cpus as usize).expect("few CPUs"));
        let table = std::ptr::slice_from_raw_parts_mut(table.as_ptr().cast::<KRef<T>>(), nr_cpus as usize);
        let layout = Layout::new::<T>().align_to(128).expect("small").pad_to_align();
        for cpu in 0..nr_cpus {
            let p = arena.boot_alloc(node_of(cpu), layout).cast::<T>();
            A::label(p.as_ptr().cast(), layout.size(), label);
            // SAFETY: fresh boot memory, large and aligned enough; the table has nr_cpus slots.
            unsafe {
                p.as_ptr().write(init(cpu));
                table.cast::<KRef<T>>().add(cpu as usize).write(KRef::new(p));
            }
        }
        // SAFETY: the table was just filled and lives in boot memory.
        let blocks = unsafe { KRef::new(std::ptr::NonNull::new_unchecked(table)) };
        PerCpu { blocks, _a: PhantomData }
    }

    /// As [`PerCpu::new`] on the heap and leaked, for tests and for worlds without an arena.
    #[cfg(test)]
    pub fn leak(nr_cpus: u32, init: impl FnMut(u32) -> T) -> Self {
        let v: Vec<KRef<T>> = (0..nr_cpus)
            .map(init)
            // SAFETY: leaked, hence alive for ever.
            .map(|t| unsafe { KRef::from_ref(&*Box::leak(Box::new(t))) })
            .collect();
        // SAFETY: as above.
        let blocks = unsafe { KRef::from_ref(&*Vec::leak(v)) };
        PerCpu { blocks, _a: PhantomData }
    }

    /// Over blocks that exist already.
    pub fn from_table(blocks: KRef<[KRef<T>]>) -> Self {
        PerCpu { blocks, _a: PhantomData }
    }

    /// `this_cpu_ptr()`.
    #[inline(always)]
    pub fn this(&self, cpu: &Cpu<A>) -> &T {
        self.of(cpu.id)
    }

    /// `per_cpu_ptr(cpu)`.
    #[inline(always)]
    pub fn of(&self, cpu: u32) -> &T {
        &self.blocks[cpu as usize]
    }

    /// How many CPUs have a block.
    pub fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Whether there is no CPU.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All blocks in CPU order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().map(|b| &**b)
    }
}
