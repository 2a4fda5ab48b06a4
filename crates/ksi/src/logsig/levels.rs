//! The nodes of a block's tree that are known, level by level, and the steps that
//! lead from them to the root.

use super::{hashing::parent_level, proof::Step};
use crate::{
    chain::Side,
    hash::{Algorithm, Batch, Imprint, node},
};

/// A tree over leaves, or what is left of one whose lower levels were dropped.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    algorithm: Algorithm,
    /// `levels[j]` holds the roots of all complete subtrees over `2^j` leaves; below a
    /// level at which all was dropped, of those alone that have no parent.
    levels: Vec<Vec<Imprint>>,
}

impl Levels {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            levels: vec![Vec::new()],
        }
    }

    /// The roots of the subtrees over `2^slot` leaves.
    pub(super) fn nodes(&self, slot: usize) -> &[Imprint] {
        self.levels.get(slot).map_or(&[], Vec::as_slice)
    }

    /// Adds the next node at a level.
    pub(super) fn push(&mut self, slot: usize, node: Imprint) {
        self.level(slot).push(node);
    }

    /// Adds the parents that the leaf added last completes.
    pub(super) fn grow_by_one(&mut self) {
        for slot in 0..self.levels[0].len().trailing_zeros() as usize {
            let [.., left, right] = self.levels[slot].as_slice() else {
                return;
            };
            let parent = self.parent(slot, left, right);
            self.push(slot + 1, parent);
        }
    }

    /// Adds all parents that are missing above level `from`, level by level.
    pub(super) fn grow(&mut self, from: usize, batch: &mut Batch) {
        for slot in from.. {
            let grown = self.nodes(slot + 1).len();
            let pairs = &self.nodes(slot).as_chunks::<2>().0[grown..];
            if pairs.is_empty() {
                return;
            }
            for [left, right] in pairs {
                batch.push_node(left.as_bytes(), right.as_bytes(), parent_level(slot));
            }
            self.level(slot + 1).extend(batch.drain());
        }
    }

    fn level(&mut self, slot: usize) -> &mut Vec<Imprint> {
        if self.levels.len() <= slot {
            self.levels.resize_with(slot + 1, Vec::new);
        }
        &mut self.levels[slot]
    }

    /// Climbs from node `index` of level `slot` to the root of the complete subtree
    /// that holds it; returns its slot.
    pub(super) fn steps_within_subtree(
        &self,
        mut slot: usize,
        mut index: usize,
        steps: &mut Vec<Step>,
    ) -> usize {
        while let Some(&sibling) = self.nodes(slot).get(index ^ 1) {
            let side = match index & 1 {
                0 => Side::Left,
                _ => Side::Right,
            };
            steps.push(Step {
                side,
                correction: 0,
                sibling,
            });
            index >>= 1;
            slot += 1;
        }
        slot
    }

    /// Climbs from the subtree in `slot` to the root of the block: first the
    /// smaller subtrees join it on the right, then each larger one on the left.
    pub(super) fn steps_across_subtrees(&self, slot: usize, steps: &mut Vec<Step>) {
        let mut level = slot + 1;
        if let Some(sibling) = self.merged_below(slot) {
            steps.push(Step {
                side: Side::Left,
                correction: 0,
                sibling,
            });
            level += 1;
        }
        for larger in slot + 1..self.levels.len() {
            if let Some(&sibling) = self.subtree(larger) {
                let parent = usize::from(parent_level(larger));
                // Levels stay below 67.
                let correction = (parent - level - 1) as u8;
                steps.push(Step {
                    side: Side::Right,
                    correction,
                    sibling,
                });
                level = parent;
            }
        }
    }

    /// The root over all leaves; `None` without any.
    pub(super) fn root(&self) -> Option<Imprint> {
        self.merged_below(self.levels.len())
    }

    /// The subtrees in slots below `slot`, merged; `None` if there are none.
    fn merged_below(&self, slot: usize) -> Option<Imprint> {
        (0..slot)
            .filter_map(|slot| Some((slot, self.subtree(slot)?)))
            .fold(None, |smaller, (slot, subtree)| match smaller {
                None => Some(*subtree),
                Some(smaller) => Some(self.parent(slot, subtree, &smaller)),
            })
    }

    /// The subtree in `slot` that has no parent yet.
    pub(super) fn subtree(&self, slot: usize) -> Option<&Imprint> {
        let nodes = self.nodes(slot);
        nodes.last().filter(|_| nodes.len() % 2 == 1)
    }

    fn parent(&self, slot: usize, left: &Imprint, right: &Imprint) -> Imprint {
        node(
            self.algorithm,
            left.as_bytes(),
            right.as_bytes(),
            parent_level(slot),
        )
    }
}
