// SPDX-License-Identifier: GPL-2.0-only
//! Gaps: keeping the largest hole of each child in its parent, and finding a hole [lib/maple_tree.c, 6.12:
//! mas_leaf_max_gap, mas_update_gap, mas_parent_gap, mas_empty_area, mas_empty_area_rev].
//!
//! Only arange64 nodes hold gaps; a tree of one leaf has none. Only the lock's holder reads or writes them, so all
//! accesses are relaxed and a search needs no test for death.
//!
//! custom: the search descends by recursion instead of climbing by parent words; it visits the same nodes.

use super::memory::MapleMemory;
use super::node::{Enode, MapleNode, MapleType, Parent, mte_node_type, mte_safe_root, mte_to_node, xa_is_node};
use super::state::{MaState, MaStatus, MapleTree, mas_reset};
use crate::arch::Relaxed;
use crate::cpu::Errno;
use std::ops::ControlFlow;

/// `mas_leaf_max_gap()`: length of the largest hole in a leaf.
pub(crate) fn leaf_max_gap<A: MapleMemory>(node: MapleNode<A>, min: u64, max: u64, end: usize) -> u64 {
    let (mut start, mut gap) = (min, 0);
    for i in 0..=end {
        let last = node.safe_pivot(i, end, max);
        if node.slot(MapleType::Leaf64, i).load(Relaxed).is_null() {
            gap = gap.max((last - start).saturating_add(1));
        }
        start = last.wrapping_add(1);
    }
    gap
}

/// `ma_max_gap()`: index and length of the largest gap of an inner node.
pub(crate) fn max_gap<A: MapleMemory>(node: MapleNode<A>, end: usize) -> (usize, u64) {
    let mut best = (0, node.gap(0).load(Relaxed));
    for i in 1..=end {
        let g = node.gap(i).load(Relaxed);
        if g > best.1 {
            best = (i, g);
        }
    }
    best
}

/// `mas_update_gap()`: the cursor's leaf has changed.
pub(crate) fn mas_update_gap<A: MapleMemory>(mas: &MaState<'_, A>) {
    if !mas.tree.is_alloc() {
        return;
    }
    let node = mte_to_node::<A>(mas.node);
    if let Parent::Node(parent, slot) = node.parent() {
        mas_parent_gap(parent, slot, leaf_max_gap(node, mas.min, mas.max, mas.end));
    }
}

/// `mas_parent_gap()`: child `slot` of `node` now has largest gap `new`; goes up as long as a maximum changes.
pub(crate) fn mas_parent_gap<A: MapleMemory>(mut node: MapleNode<A>, mut slot: usize, mut new: u64) {
    let kind = MapleType::Arange64;
    loop {
        let old = node.gap(slot).load(Relaxed);
        if old == new {
            return;
        }
        let meta = node.meta_gap();
        let end = node.data_end(kind, 0);
        let before = if meta == slot { old } else { node.gap(meta).load(Relaxed) };
        node.gap(slot).store(new, Relaxed);
        let after = if meta == slot && new < old {
            let (i, g) = max_gap(node, end);
            node.set_meta(kind, end, i);
            g
        } else if meta == slot {
            new
        } else if new > before {
            node.set_meta(kind, end, slot);
            new
        } else {
            return;
        };
        if after == before {
            return;
        }
        let Parent::Node(up, up_slot) = node.parent() else {
            return;
        };
        (node, slot, new) = (up, up_slot, after);
    }
}

struct Search {
    lo: u64,
    hi: u64,
    size: u64,
}

/// What a search found: leaf, its bounds, slot, end, and the bounds of the slot.
struct Hit {
    node: Enode,
    min: u64,
    max: u64,
    offset: usize,
    end: usize,
    slot_min: u64,
    slot_max: u64,
}

impl Search {
    /// Whether `size` keys fit between slot bounds and window.
    fn fits(&self, slot_min: u64, slot_max: u64) -> bool {
        let (a, b) = (slot_min.max(self.lo), slot_max.min(self.hi));
        a <= b && b - a >= self.size - 1
    }

    /// One slot: `Break` with a hit, or go on.
    fn slot<A: MapleMemory>(
        &self,
        at: (Enode, u64, u64, usize),
        i: usize,
        slot_min: u64,
        slot_max: u64,
        rev: bool,
    ) -> ControlFlow<Hit> {
        let (enode, min, max, end) = at;
        let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
        if !self.fits(slot_min, slot_max) {
            return ControlFlow::Continue(());
        }
        let word = node.slot(kind, i).load(Relaxed);
        if kind.is_leaf() {
            if word.is_null() {
                return ControlFlow::Break(Hit { node: enode, min, max, offset: i, end, slot_min, slot_max });
            }
            return ControlFlow::Continue(());
        }
        if kind == MapleType::Arange64 && node.gap(i).load(Relaxed) < self.size {
            return ControlFlow::Continue(());
        }
        self.node::<A>(word, slot_min, slot_max, rev)
    }

    fn node<A: MapleMemory>(&self, enode: Enode, min: u64, max: u64, rev: bool) -> ControlFlow<Hit> {
        let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
        let end = node.data_end(kind, max);
        let at = (enode, min, max, end);
        if rev {
            let mut slot_max = max;
            for i in (0..=end).rev() {
                let slot_min = node.safe_min(i, min);
                self.slot::<A>(at, i, slot_min, slot_max, rev)?;
                if slot_min <= self.lo {
                    break;
                }
                slot_max = slot_min - 1;
            }
        } else {
            let mut slot_min = min;
            for i in 0..=end {
                let slot_max = node.safe_pivot(i, end, max);
                self.slot::<A>(at, i, slot_min, slot_max, rev)?;
                if slot_max >= self.hi {
                    break;
                }
                slot_min = slot_max + 1;
            }
        }
        ControlFlow::Continue(())
    }
}

fn empty_area<A: MapleMemory>(mas: &mut MaState<'_, A>, min: u64, max: u64, size: u64, rev: bool) -> Result<(), Errno> {
    if min > max || size == 0 || max - min < size - 1 {
        return Err(Errno::EINVAL);
    }
    mas_reset(mas);
    let tree: &MapleTree<A> = mas.tree;
    let root = tree.ma_root.load(Relaxed);
    let s = Search { lo: min, hi: max, size };
    let (slot_min, slot_max) = if xa_is_node(root) {
        let ControlFlow::Break(hit) = s.node::<A>(mte_safe_root(root), 0, u64::MAX, rev) else {
            return Err(Errno::EBUSY);
        };
        mas.node = hit.node;
        (mas.min, mas.max) = (hit.min, hit.max);
        (mas.offset, mas.end) = (hit.offset, hit.end);
        mas.status = MaStatus::Active;
        (hit.slot_min, hit.slot_max)
    } else {
        let first = u64::from(!root.is_null());
        if !s.fits(first, u64::MAX) {
            return Err(Errno::EBUSY);
        }
        (first, u64::MAX)
    };
    if rev {
        mas.last = slot_max.min(max);
        mas.index = mas.last - (size - 1);
    } else {
        mas.index = slot_min.max(min);
        mas.last = mas.index + (size - 1);
    }
    Ok(())
}

/// `mas_empty_area_rev()`: the highest hole of `size` keys within `min ..= max`, as `index ..= last`. Writer's lock.
///
/// # Errors
/// `EBUSY` (no such hole), `EINVAL`.
pub fn mas_empty_area_rev<A: MapleMemory>(
    mas: &mut MaState<'_, A>,
    min: u64,
    max: u64,
    size: u64,
) -> Result<(), Errno> {
    empty_area(mas, min, max, size, true)
}
/// `mas_empty_area()`: the lowest hole of `size` keys within `min ..= max`, as `index ..= last`. Writer's lock.
///
/// # Errors
/// `EBUSY` (no such hole), `EINVAL`.
pub fn mas_empty_area<A: MapleMemory>(mas: &mut MaState<'_, A>, min: u64, max: u64, size: u64) -> Result<(), Errno> {
    empty_area(mas, min, max, size, false)
}
