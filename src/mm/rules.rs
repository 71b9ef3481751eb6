// SPDX-License-Identifier: GPL-2.0-only
//! Rules of the VMA operations that differ between kernel versions (vma-ops.md 18), as data.
//!
//! They are chosen at boot. The named kernels of a benchmark all run with [`MmRules::V6_12`], so that a comparison shows
//! the locks and the frees and not other merges; a comparison with a running kernel takes the rules that this kernel was
//! *seen* to follow, because stable updates move them between versions.

/// What a kernel does where versions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmRules {
    /// A faulted range merges with an unfaulted neighbour (6.18, 7.3). 6.12 asks for the neighbour's own chain to be one
    /// link, and an empty chain is none.
    pub merge_faulted_with_unfaulted: bool,
    /// `VM_MAYBE_GUARD` exists and is sticky, with `MADV_GUARD_INSTALL` (6.18, 7.3).
    pub guard_regions: bool,
    /// The guard advice sets `VM_MAYBE_GUARD` on the VMA, which smaps shows as "gu" (6.18, 7.3; 6.13 to 6.17 do not).
    pub maybe_guard_flag: bool,
    /// Private file mappings merge only where the page numbers at their creation fit as well (7.3).
    pub anon_pgoff: bool,
    /// A pure move may take several VMAs (6.17 on).
    pub mremap_multi_vma: bool,
    /// `MREMAP_DONTUNMAP` of an unfaulted VMA to a place beside it merges the copy with its source (6.18).
    pub dontunmap_merges_source: bool,
    /// What `MREMAP_DONTUNMAP` leaves of a whole faulted VMA keeps its page offset (6.18).
    pub dontunmap_keeps_pgoff: bool,
    /// `MREMAP_DONTUNMAP` of a part of a locked VMA splits the part off first, so that the rest stays locked (6.12, 7.3);
    /// else all of the source VMA is unlocked (6.18).
    pub dontunmap_splits_locked: bool,
    /// What `MREMAP_DONTUNMAP` copies of a locked VMA counts as locked (against `RLIMIT_MEMLOCK`) though the source, which is
    /// not locked any more, goes on counting too (6.18; not known of 7.3).
    pub dontunmap_counts_locked_twice: bool,
    /// Every mremap looks at `max_map_count` first (7.3), not only those that move.
    pub mremap_limit_at_entry: bool,
    /// `MADV_DONTNEED` and `MADV_FREE` of a range within one VMA take that VMA's read lock (6.17 on), not `mmap_lock`.
    pub dontneed_vma_lock: bool,
    /// So do `MADV_GUARD_INSTALL`, where the VMA has its anon_vma, and `MADV_GUARD_REMOVE` (7.3, not 6.18).
    pub guard_vma_lock: bool,
    /// Where a file's own mmap function changed the flags of a new VMA, so that it fits a neighbour now, it is merged after
    /// all (6.12 to 6.16).
    pub retry_merge: bool,
}

impl MmRules {
    /// 6.12.117
    pub const V6_12: MmRules = MmRules {
        merge_faulted_with_unfaulted: false,
        guard_regions: false,
        maybe_guard_flag: false,
        anon_pgoff: false,
        mremap_multi_vma: false,
        dontunmap_merges_source: false,
        dontunmap_keeps_pgoff: false,
        dontunmap_splits_locked: true,
        dontunmap_counts_locked_twice: false,
        mremap_limit_at_entry: false,
        dontneed_vma_lock: false,
        guard_vma_lock: false,
        retry_merge: true,
    };
    /// 6.18.44
    pub const V6_18: MmRules = MmRules {
        merge_faulted_with_unfaulted: true,
        guard_regions: true,
        maybe_guard_flag: true,
        mremap_multi_vma: true,
        dontunmap_merges_source: true,
        dontunmap_keeps_pgoff: true,
        dontunmap_splits_locked: false,
        dontunmap_counts_locked_twice: true,
        dontneed_vma_lock: true,
        retry_merge: false,
        ..MmRules::V6_12
    };
    /// 7.3.4
    pub const V7_3: MmRules = MmRules {
        anon_pgoff: true,
        dontunmap_merges_source: false,
        dontunmap_keeps_pgoff: false,
        dontunmap_splits_locked: true,
        dontunmap_counts_locked_twice: false,
        mremap_limit_at_entry: true,
        guard_vma_lock: true,
        ..MmRules::V6_18
    };
}

impl Default for MmRules {
    fn default() -> Self {
        MmRules::V6_12
    }
}
