//! The hashing of a block: leaves in sequence, and the tree that grows over them.

use crate::{
    hash::{Algorithm, Batch, Imprint, hash, node},
    tree::level_for,
};

/// What a leaf stands for; decides on which side the mask goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Line,
    Metarecord,
}

/// Turns record hashes into leaves; the strictly sequential part of a block.
#[derive(Clone, Debug)]
pub(super) struct Leaves {
    algorithm: Algorithm,
    iv: Box<[u8]>,
    last: Imprint,
}

impl Leaves {
    pub(super) fn new(algorithm: Algorithm, iv: &[u8], previous_leaf: Imprint) -> Self {
        Self {
            algorithm,
            iv: iv.into(),
            last: previous_leaf,
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The leaf made last; at first that of the previous block.
    pub(super) fn last(&self) -> Imprint {
        self.last
    }

    /// The leaf that follows, for a record with hash `record`.
    pub(super) fn push(&mut self, kind: Kind, record: &Imprint) -> Imprint {
        let mask = self.mask_after(&self.last);
        let (left, right) = match kind {
            Kind::Line => (&mask, record),
            Kind::Metarecord => (record, &mask),
        };
        self.last = node(self.algorithm, left.as_bytes(), right.as_bytes(), 1);
        self.last
    }

    /// The mask of the record that follows the leaf `previous`.
    pub(super) fn mask_after(&self, previous: &Imprint) -> Imprint {
        hash(self.algorithm, &[previous.as_bytes(), &self.iv])
    }
}

/// The complete subtrees over the leaves so far: slot `j` holds the root over
/// `2^j` leaves, at level `j + 1`, if bit `j` of the count is set.
#[derive(Clone, Debug)]
pub(super) struct Forest {
    algorithm: Algorithm,
    count: u64,
    slots: Vec<Imprint>,
}

impl Forest {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            count: 0,
            slots: Vec::new(),
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Adds a leaf; `completed` sees it and then every parent it completes.
    pub(super) fn push(&mut self, leaf: Imprint, mut completed: impl FnMut(&Imprint)) {
        let mut top = leaf;
        completed(&top);
        let merges = self.count.trailing_ones() as usize;
        for slot in 0..merges {
            top = self.parent(&self.slots[slot], &top, slot);
            completed(&top);
        }
        match self.slots.get_mut(merges) {
            Some(slot) => *slot = top,
            None => self.slots.push(top),
        }
        self.count += 1;
    }

    /// Takes all `leaves` out and adds them, hashing each level as a whole.
    pub(super) fn extend(&mut self, batch: &mut Batch, leaves: &mut Vec<Imprint>) {
        let added = leaves.len() as u64;
        for slot in 0.. {
            if leaves.is_empty() {
                break;
            }
            self.extend_slot(slot, leaves, batch);
            leaves.clear();
            leaves.extend(batch.drain());
        }
        self.count += added;
    }

    /// Adds to `batch` the parents that `nodes`, all that is new at a level,
    /// complete together with what waits in `slot`; what is left over waits next.
    fn extend_slot(&mut self, slot: usize, nodes: &[Imprint], batch: &mut Batch) {
        let mut push = |left: &Imprint, right: &Imprint| {
            batch.push_node(left.as_bytes(), right.as_bytes(), parent_level(slot));
        };
        let mut nodes = nodes;
        if self.count >> slot & 1 == 1
            && let Some((first, others)) = nodes.split_first()
        {
            push(&self.slots[slot], first);
            nodes = others;
        }
        let (pairs, left_over) = nodes.as_chunks::<2>();
        pairs.iter().for_each(|[left, right]| push(left, right));
        match (self.slots.get_mut(slot), left_over) {
            (Some(waiting), [node]) => *waiting = *node,
            // Without a bit in the count it holds the place of one to come.
            (None, _) => self.slots.push(
                left_over
                    .first()
                    .copied()
                    .unwrap_or(Imprint::zero(self.algorithm)),
            ),
            (Some(_), _) => {}
        }
    }

    /// Merges the subtrees, smallest first; `merged` sees each parent. `None`
    /// if there is no leaf. Else the root, at level [`level_for`] of the count.
    pub(super) fn close(&self, mut merged: impl FnMut(&Imprint)) -> Option<(Imprint, u8)> {
        let mut root: Option<Imprint> = None;
        for (slot, subtree) in self.slots.iter().enumerate() {
            if self.count >> slot & 1 == 0 {
                continue;
            }
            root = Some(match root {
                None => *subtree,
                Some(smaller) => {
                    let parent = self.parent(subtree, &smaller, slot);
                    merged(&parent);
                    parent
                }
            });
        }
        root.map(|root| (root, level_for(self.count)))
    }

    /// The parent of a subtree in `slot`, at level `slot + 1`, and its right neighbour.
    fn parent(&self, left: &Imprint, right: &Imprint, slot: usize) -> Imprint {
        node(
            self.algorithm,
            left.as_bytes(),
            right.as_bytes(),
            parent_level(slot),
        )
    }
}

/// Level of a node whose left child is a complete subtree over `2^slot` leaves.
/// A count has 64 bits, hence slots stay below 64 and levels below 66.
pub(super) fn parent_level(slot: usize) -> u8 {
    slot as u8 + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_may_come_by_the_piece() {
        let algorithm = Algorithm::Sha256;
        let mut batch = Batch::new(algorithm);
        let leaves: Vec<_> = (0..100_u8)
            .map(|leaf| hash(algorithm, &[&[leaf]]))
            .collect();
        for count in 1..=leaves.len() {
            let leaves = &leaves[..count];
            let mut one_by_one = Forest::new(algorithm);
            for leaf in leaves {
                one_by_one.push(*leaf, |_| {});
            }
            for piece in 1..=count {
                let mut forest = Forest::new(algorithm);
                for leaves in leaves.chunks(piece) {
                    forest.extend(&mut batch, &mut leaves.to_vec());
                }
                assert_eq!(forest.count(), one_by_one.count());
                let roots = [&forest, &one_by_one].map(|forest| forest.close(|_| {}));
                assert_eq!(roots[0], roots[1], "{count} in pieces of {piece}");
            }
        }
    }
}
