// SPDX-License-Identifier: GPL-2.0-only
//! What must hold of a tree at rest [lib/maple_tree.c, 6.12: mt_validate and what it calls], and some more: leaves do
//! not end in a hole, all leaves are on one level, the height flag is true. For tests and for the fuzzer.

use super::gap::{leaf_max_gap, max_gap};
use super::node::{Enode, MapleType, Parent, is_child, mte_node_type, mte_safe_root, mte_to_node, xa_is_node};
use super::state::MapleTree;
use crate::arch::{Hardware, Relaxed};

/// What a validation counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeShape {
    /// Nodes.
    pub nodes: usize,
    /// Levels.
    pub height: usize,
    /// Slots of leaves that hold an entry.
    pub entries: usize,
}

struct Check<'t, A: Hardware> {
    tree: &'t MapleTree<A>,
    shape: TreeShape,
    last_null: bool,
}

/// `mt_validate()`: walks the whole tree. The lock is held.
///
/// # Errors
/// What does not hold, and where.
pub fn mt_validate<A: Hardware>(mt: &MapleTree<A>) -> Result<TreeShape, String> {
    let root = mt.ma_root.load(Relaxed);
    let mut c = Check { tree: mt, shape: TreeShape::default(), last_null: false };
    if !xa_is_node(root) {
        if mt.height() != 0 {
            return Err(format!("height flag {} of a tree without nodes", mt.height()));
        }
        c.shape.entries = usize::from(!root.is_null());
        return Ok(c.shape);
    }
    let root = mte_safe_root(root);
    if !mte_to_node::<A>(root).is_root() {
        return Err("the root's parent word does not say root".into());
    }
    c.node(root, 0, u64::MAX, 1)?;
    if c.shape.height != mt.height() {
        return Err(format!("height flag {}, height {}", mt.height(), c.shape.height));
    }
    Ok(c.shape)
}

impl<A: Hardware> Check<'_, A> {
    /// Checks a node and all below; returns its largest gap.
    fn node(&mut self, enode: Enode, min: u64, max: u64, depth: usize) -> Result<u64, String> {
        let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
        let fail = |what: String| Err(format!("{node:?} {kind:?} {min:#x}..={max:#x} depth {depth}: {what}"));
        self.shape.nodes += 1;
        if node.is_dead() {
            return fail("dead".into());
        }
        if !kind.is_leaf() && kind != self.tree.inner_kind() {
            return fail("wrong kind for this tree".into());
        }
        let end = node.data_end(kind, max);
        if end < kind.min_end() && depth > 1 {
            return fail(format!("end {end} below the minimum"));
        }
        if end >= kind.slots() || (!kind.is_leaf() && end == 0) {
            return fail(format!("end {end}"));
        }
        let mut start = min;
        for i in 0..=end {
            if i < kind.pivots() {
                let p = node.pivot(i).load(Relaxed);
                if p == 0 && i > 0 || p < start || p > max || (p == max) != (i == end) {
                    return fail(format!("pivot {i} is {p:#x}, end {end}, slot starts at {start:#x}"));
                }
            }
            let last = node.safe_pivot(i, end, max);
            let word = node.slot(kind, i).load(Relaxed);
            if kind.is_leaf() {
                if word.is_null() && self.last_null {
                    return fail(format!("slot {i}: two holes in a row"));
                }
                self.last_null = word.is_null();
                self.shape.entries += usize::from(!word.is_null());
                if word.is_null() && i == end && max != u64::MAX {
                    return fail("ends in a hole".into());
                }
            } else {
                self.child(enode, i, word, start, last, depth).map_err(|e| format!("slot {i} of {node:?}: {e}"))?;
            }
            start = last.wrapping_add(1);
        }
        for i in end + 1..kind.slots() {
            if i < kind.pivots() && node.pivot(i).load(Relaxed) != 0 {
                return fail(format!("pivot {i} after end {end}"));
            }
            let meta = kind != MapleType::Arange64 && i == kind.slots() - 1;
            let word = node.slot(kind, i).load(Relaxed);
            if !word.is_null() && (!meta || is_child(word)) {
                return fail(format!("slot {i} after end {end}"));
            }
            if kind == MapleType::Arange64 && node.gap(i).load(Relaxed) != 0 {
                return fail(format!("gap {i} after end {end}"));
            }
        }
        if kind.is_leaf() {
            if self.shape.height == 0 {
                self.shape.height = depth;
            }
            if self.shape.height != depth {
                return fail(format!("leaf on level {depth}, others on {}", self.shape.height));
            }
            return Ok(leaf_max_gap(node, min, max, end));
        }
        if kind != MapleType::Arange64 {
            return Ok(0);
        }
        let (_, gap) = max_gap(node, end);
        let meta = node.meta_gap();
        if meta > end || node.gap(meta).load(Relaxed) != gap {
            return fail(format!("meta gap {meta} does not name the largest"));
        }
        Ok(gap)
    }

    fn child(
        &mut self,
        enode: Enode,
        i: usize,
        word: *mut (),
        start: u64,
        last: u64,
        depth: usize,
    ) -> Result<(), String> {
        let (node, kind) = (mte_to_node::<A>(enode), mte_node_type(enode));
        if !is_child(word) {
            return Err("no child".into());
        }
        let child = mte_to_node::<A>(word);
        match child.parent() {
            Parent::Node(p, s) if p == node && s == i => {}
            other => return Err(format!("child's parent word says {other:?}")),
        }
        for k in 0..i {
            if node.slot(kind, k).load(Relaxed) == word {
                return Err(format!("also in slot {k}"));
            }
        }
        let gap = self.node(word, start, last, depth + 1)?;
        if kind == MapleType::Arange64 {
            let said = node.gap(i).load(Relaxed);
            if said != gap || gap > (last - start).saturating_add(1) {
                return Err(format!("gap {said:#x}, in the child {gap:#x}"));
            }
        }
        Ok(())
    }
}
