// SPDX-License-Identifier: GPL-2.0-only
//! What an access costs: state of the line x distance x operation, in picoseconds.
//!
//! First form: one small table with the shape of a generic two-level machine (CPUs of a node share a last-level cache,
//! nodes are joined by links). **No figure here is calibrated**, so absolute times of the simulator mean nothing; what
//! means something is which line moved, how often, and who queued behind whom. Ratios are only as good as the table:
//! a conclusion that changes with [`Price::flat`] or with a doubled far price is a conclusion about the table.
//!
//! Not priced: instructions between accesses, bandwidth of links and memory, prefetchers, TLBs, store buffers (a store
//! that misses is paid in full at once, real processors hide part of it).

/// Distance of a node to itself in firmware tables.
const LOCAL: u32 = 10;

/// The table. All figures in ps unless named otherwise; uncalibrated defaults in [`Price::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The line is in this CPU's cache in a state that allows the access.
    pub hit: u64,
    /// Any access outside the arena (stack, heap): private by assumption.
    pub unmapped: u64,
    /// A line from, or invalidated in, the cache of another CPU of the same node.
    pub near: u64,
    /// The same across nodes at distance [`Price::far_distance`]; scaled linearly with the distance.
    pub far: u64,
    /// The distance that `far` and `memory_far` are given for.
    pub far_distance: u32,
    /// A line that no cache holds, from memory of this CPU's node.
    pub memory: u64,
    /// The same from a node at distance [`Price::far_distance`].
    pub memory_far: u64,
    /// Added to every locked read-modify-write.
    pub rmw: u64,
    /// A full fence. Read and write fences order nothing that x86 reorders and are free.
    pub fence: u64,
    /// One turn of `cpu_relax()`.
    pub relax: u64,
    /// Clearing a page of 4096 bytes.
    pub clear_page: u64,
    /// Entering and leaving the exception or system call handler.
    pub kernel_entry: u64,
    /// Going to sleep: the context switch to the idle task.
    pub sleep: u64,
    /// Waking a sleeper, paid by the waker.
    pub wake: u64,
    /// From the wake-up until the sleeper runs again.
    pub wake_latency: u64,
    /// Lines that a CPU's private cache holds before the oldest falls out (first in, first out); 0 = without bound.
    /// Applies to lines one CPU holds alone.
    pub cache_lines: u32,
    /// A line that had fallen out of this CPU's cache, from the last-level cache of its node.
    pub refill: u64,
}

impl Default for Price {
    fn default() -> Self {
        Price {
            hit: 1_000,
            unmapped: 1_000,
            near: 50_000,
            far: 130_000,
            far_distance: 20,
            memory: 90_000,
            memory_far: 150_000,
            rmw: 6_000,
            fence: 8_000,
            relax: 10_000,
            clear_page: 250_000,
            kernel_entry: 300_000,
            sleep: 1_000_000,
            wake: 800_000,
            wake_latency: 2_500_000,
            cache_lines: 32_768,
            refill: 20_000,
        }
    }
}

impl Price {
    /// Every access costs `ps`, wherever its line is; moves are still counted. Separates "more accesses" from "more
    /// distant accesses".
    pub fn flat(ps: u64) -> Price {
        Price {
            hit: ps,
            unmapped: ps,
            near: ps,
            far: ps,
            memory: ps,
            memory_far: ps,
            rmw: 0,
            refill: ps,
            ..Price::default()
        }
    }

    /// A line from the cache of a CPU at `distance`.
    pub(super) fn cache(&self, distance: u32) -> u64 {
        self.scaled(self.near, self.far, distance)
    }

    /// A line from memory at `distance`.
    pub(super) fn memory(&self, distance: u32) -> u64 {
        self.scaled(self.memory, self.memory_far, distance)
    }

    /// `near` at distance 10, `far` at `far_distance`, on the line through both elsewhere.
    fn scaled(&self, near: u64, far: u64, distance: u32) -> u64 {
        if distance <= LOCAL || self.far_distance <= LOCAL {
            return near;
        }
        let step = far.saturating_sub(near) * u64::from(distance - LOCAL);
        near + step / u64::from(self.far_distance - LOCAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_scales_between_the_two_given_points_and_beyond() {
        let p = Price::default();
        assert_eq!(p.cache(10), p.near);
        assert_eq!(p.cache(20), p.far);
        assert_eq!(p.cache(30), p.near + 2 * (p.far - p.near));
        assert_eq!(p.memory(15), p.memory + (p.memory_far - p.memory) / 2);
        let f = Price::flat(1_000);
        assert_eq!([f.cache(10), f.cache(32), f.memory(10), f.memory(32)], [1_000; 4]);
    }
}
