//! The hashing of a block: leaves in sequence, and the tree that grows over them.

use crate::{
    hash::{Algorithm, Imprint, hash, node},
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
