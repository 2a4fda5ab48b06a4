//! Hash trees over leaves of any level (spec §3.9, §7).
//!
//! ```text
//! insert:  while some root has the node's level: node := H( root ‖ node ‖ level+1 ), one level up
//! close:   from the lowest root upwards:         node := H( root ‖ node ‖ level(root)+1 )
//! ```
//!
//! A leaf with metadata enters one level up, as `H( metadata ‖ leaf ‖ level+1 )`.
//! Aggregation rounds and log signature blocks are built this way; for the
//! latter all leaves have level 1.

use crate::{
    chain::{Link, MAX_SHAPE_LINKS, Sibling, Side},
    hash::{Algorithm, Batch, Imprint},
};
use thiserror::Error;

/// A tree that still takes leaves.
///
/// ```
/// use pitser_ksi::{Algorithm, chain::climb, hash::hash, tree::TreeBuilder};
/// let documents = ["a", "b", "c"].map(|text| hash(Algorithm::Sha256, &[text.as_bytes()]));
/// let mut builder = TreeBuilder::new(Algorithm::Sha256);
/// for document in documents {
///     builder.push(document, 0).unwrap();
/// }
/// let tree = builder.finish().unwrap();
/// assert_eq!(tree.level(), 2);
/// let links = tree.links(2);
/// assert_eq!(climb(Algorithm::Sha256, documents[2], 0, &links), Ok((tree.root(), 2)));
/// ```
#[derive(Clone, Debug)]
pub struct TreeBuilder {
    tree: Tree,
    /// The roots of finished subtrees, by strictly falling level.
    roots: Vec<Root>,
    max_level: u8,
    pending: Pending,
}

impl TreeBuilder {
    /// An empty tree that may grow to [`MAX_LEVEL`].
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self::with_max_level(algorithm, MAX_LEVEL)
    }

    /// An empty tree whose root may reach `max_level`, at most [`MAX_LEVEL`].
    #[must_use]
    pub fn with_max_level(algorithm: Algorithm, max_level: u8) -> Self {
        let tree = Tree {
            algorithm,
            nodes: Vec::new(),
            leaves: Vec::new(),
        };
        Self {
            tree,
            roots: Vec::new(),
            max_level: max_level.min(MAX_LEVEL),
            pending: Pending::new(algorithm),
        }
    }

    /// Appends a leaf at `level` and returns its number, counted from 0.
    /// Amortised O(1) hashes, done by the thousand.
    ///
    /// # Errors
    /// [`TreeFull`] if the root would then pass the highest level, or the tree two
    /// billion leaves. The tree is unchanged.
    pub fn push(&mut self, leaf: Imprint, level: u8) -> Result<usize, TreeFull> {
        self.check_room(level)?;
        Ok(self.add(leaf, level, None))
    }

    /// Appends a leaf below a metadata link: `metadata` is the encoded value
    /// ([`crate::chain::Metadata::encode`]).
    ///
    /// # Errors
    /// As [`TreeBuilder::push`], for a leaf one level higher.
    pub fn push_with_metadata(
        &mut self,
        leaf: Imprint,
        level: u8,
        metadata: Vec<u8>,
    ) -> Result<usize, TreeFull> {
        let above = level.checked_add(1).ok_or(TreeFull)?;
        self.check_room(above)?;
        Ok(self.add(leaf, above, Some(metadata)))
    }

    /// The number of leaves.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there is no leaf yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// The level that the root would have if the tree were closed now; 0 if empty.
    #[must_use]
    pub fn level(&self) -> u8 {
        match self.roots.as_slice() {
            [] => 0,
            [only] => only.level,
            [highest, ..] => highest.level + 1,
        }
    }

    /// Joins what is left, low to high. `None` if there is no leaf.
    #[must_use]
    pub fn finish(mut self) -> Option<Tree> {
        let mut running = self.roots.pop()?;
        while let Some(higher) = self.roots.pop() {
            running = self.join(higher, running);
        }
        self.pending.flush(&mut self.tree);
        Some(self.tree)
    }

    /// The root's level after one more node at `level` must be allowed.
    ///
    /// A root at level n stands for the n-th bit of a binary number, to which the
    /// node adds; the closed tree is one level above its highest bit, unless that
    /// is the only one.
    fn check_room(&self, level: u8) -> Result<(), TreeFull> {
        if self.tree.nodes.len() > MAX_NODES {
            return Err(TreeFull);
        }
        let highest = self.roots.first().map_or(0, |root| root.level).max(level);
        if u16::from(highest) + 2 <= u16::from(self.max_level) {
            // Room enough to carry, and to close.
            return Ok(());
        }
        let mut carried = level;
        let mut kept = self.roots.len();
        for root in self.roots.iter().rev() {
            if root.level == carried {
                carried = carried.checked_add(1).ok_or(TreeFull)?;
                kept -= 1;
            }
        }
        let highest = highest.max(carried);
        let closed = if kept == 0 {
            Some(highest)
        } else {
            highest.checked_add(1)
        };
        match closed {
            Some(closed) if closed <= self.max_level => Ok(()),
            _ => Err(TreeFull),
        }
    }

    /// `check_room` has made sure that the levels stay in range.
    fn add(&mut self, hash: Imprint, level: u8, metadata: Option<Vec<u8>>) -> usize {
        let node = self.tree.add_node(hash, level);
        if metadata.is_some() {
            self.pending.leaves.push(self.tree.leaves.len());
        }
        self.tree.leaves.push(Leaf { node, metadata });
        let mut root = Root { node, level };
        let mut at = self.roots.partition_point(|root| root.level >= level);
        while at > 0 && self.roots[at - 1].level == root.level {
            at -= 1;
            let left = self.roots.remove(at);
            root = self.join(left, root);
        }
        self.roots.insert(at, root);
        if self.pending.is_full() {
            self.pending.flush(&mut self.tree);
        }
        self.tree.leaves.len() - 1
    }

    fn join(&mut self, left: Root, right: Root) -> Root {
        let level = left.level.max(right.level) + 1;
        let (left, right) = (left.node, right.node);
        let node = self.tree.join(left, right, level);
        let join = Join {
            left,
            right,
            parent: node,
        };
        self.pending.add(level, join);
        Root { node, level }
    }
}

/// The root of a subtree.
#[derive(Clone, Copy, Debug)]
struct Root {
    node: NodeId,
    level: u8,
}

/// What is to be hashed: enough at a time to fill a [`Batch`], and not more than
/// the processor's cache holds.
#[derive(Clone, Debug)]
struct Pending {
    batch: Batch,
    /// Leaves whose node does not cover their metadata yet.
    leaves: Vec<usize>,
    /// Parents without a hash, by their level: none depends on one of its own level.
    joins: Vec<Vec<Join>>,
    /// Number of such parents.
    count: usize,
}

impl Pending {
    const FULL: usize = 1024;

    fn new(algorithm: Algorithm) -> Self {
        Self {
            batch: Batch::new(algorithm),
            leaves: Vec::new(),
            joins: Vec::new(),
            count: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.count.max(self.leaves.len()) >= Self::FULL
    }

    fn add(&mut self, level: u8, join: Join) {
        let level = usize::from(level);
        if self.joins.len() <= level {
            self.joins.resize_with(level + 1, Vec::new);
        }
        self.joins[level].push(join);
        self.count += 1;
    }

    fn flush(&mut self, tree: &mut Tree) {
        for &leaf in &self.leaves {
            let leaf = &tree.leaves[leaf];
            let node = tree.node(leaf.node);
            let metadata = leaf.metadata.as_deref().unwrap_or_default();
            self.batch
                .push_node(metadata, node.hash.as_bytes(), node.level);
        }
        for (leaf, hash) in self.leaves.drain(..).zip(self.batch.drain()) {
            let node = tree.leaves[leaf].node;
            tree.node_mut(node).hash = hash;
        }
        for (level, joins) in (0..).zip(&mut self.joins) {
            for join in &*joins {
                let (left, right) = (tree.node(join.left), tree.node(join.right));
                self.batch
                    .push_node(left.hash.as_bytes(), right.hash.as_bytes(), level);
            }
            for (join, hash) in joins.drain(..).zip(self.batch.drain()) {
                tree.node_mut(join.parent).hash = hash;
            }
        }
        self.count = 0;
    }
}

#[derive(Clone, Copy, Debug)]
struct Join {
    left: NodeId,
    right: NodeId,
    parent: NodeId,
}

/// One more leaf would raise the root above the highest level, or pass two
/// billion leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the tree is full")]
pub struct TreeFull;

/// A closed tree: its root, and the way there from any leaf.
///
/// About 80 bytes per node, two nodes per leaf.
#[derive(Clone, Debug)]
pub struct Tree {
    algorithm: Algorithm,
    /// Children stand before their parent; the root is last.
    nodes: Vec<Node>,
    leaves: Vec<Leaf>,
}

impl Tree {
    /// The root's hash.
    #[must_use]
    pub fn root(&self) -> Imprint {
        self.top().hash
    }

    /// The root's level.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.top().level
    }

    /// The algorithm of all inner nodes.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The number of leaves.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Whether there is no leaf; never true for a tree from [`TreeBuilder::finish`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The links from leaf number `leaf` to the root, at most
    /// [`MAX_SHAPE_LINKS`]: none if the leaf is the root, and as first link the
    /// metadata, if any. Corrections count from the level of the leaf.
    ///
    /// # Panics
    /// If there is no such leaf.
    #[must_use]
    pub fn links(&self, leaf: usize) -> Vec<Link> {
        let leaf = &self.leaves[leaf];
        let mut node = self.node(leaf.node);
        let mut links = Vec::with_capacity(usize::from(self.level()) + 1);
        if let Some(metadata) = &leaf.metadata {
            let sibling = Sibling::Metadata(metadata.clone());
            links.push(Link {
                side: Side::Right,
                correction: 0,
                sibling,
            });
        }
        while let Some(up) = node.up {
            let parent = self.node(up.parent);
            links.push(Link {
                side: up.side,
                correction: parent.level - node.level - 1,
                sibling: Sibling::Imprint(self.node(up.sibling).hash),
            });
            node = parent;
        }
        links
    }

    fn top(&self) -> &Node {
        self.nodes.last().expect("a closed tree has a leaf")
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    fn add_node(&mut self, hash: Imprint, level: u8) -> NodeId {
        let id =
            u32::try_from(self.nodes.len()).expect("push keeps the number of nodes within 32 bits");
        self.nodes.push(Node {
            hash,
            level,
            up: None,
        });
        NodeId(id)
    }

    /// The parent of two nodes, still without its hash.
    fn join(&mut self, left: NodeId, right: NodeId, level: u8) -> NodeId {
        let parent = self.add_node(Imprint::zero(self.algorithm), level);
        self.nodes[left.0 as usize].up = Some(Up {
            parent,
            sibling: right,
            side: Side::Left,
        });
        self.nodes[right.0 as usize].up = Some(Up {
            parent,
            sibling: left,
            side: Side::Right,
        });
        parent
    }
}

/// The level of the root of a tree over `count` leaves of level 1, as log
/// signatures ask for: `1 + ceil(log2(count))`; 0 without leaves.
#[must_use]
pub fn level_for(count: u64) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        // At most 65: the highest bit of a 64 bit number, and one.
        _ => 2 + (count - 1).ilog2() as u8,
    }
}

/// The highest root: no path in such a tree has more links than a chain's shape
/// can describe.
pub const MAX_LEVEL: u8 = MAX_SHAPE_LINKS as u8;

/// Leaves room in [`NodeId`] for a leaf, the joins it causes, and those of the end.
const MAX_NODES: usize = u32::MAX as usize - 4 * MAX_SHAPE_LINKS;

#[derive(Clone, Copy, Debug)]
struct NodeId(u32);

#[derive(Clone, Debug)]
struct Leaf {
    /// The leaf itself, or its parent if there is metadata.
    node: NodeId,
    metadata: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Node {
    hash: Imprint,
    level: u8,
    up: Option<Up>,
}

#[derive(Clone, Copy, Debug)]
struct Up {
    parent: NodeId,
    sibling: NodeId,
    /// Where the node itself stands.
    side: Side,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::{Metadata, climb, shape},
        hash,
    };
    use std::collections::HashSet;

    const SHA256: Algorithm = Algorithm::Sha256;

    fn leaf(number: usize) -> Imprint {
        hash::hash(SHA256, &[&number.to_be_bytes()])
    }

    /// Every leaf's links lead to the root, by ways that differ.
    fn check(levels: &[u8], metadata: bool, root_level: u8) {
        let mut builder = TreeBuilder::new(SHA256);
        for (i, &level) in levels.iter().enumerate() {
            let number = if metadata {
                let client_id = format!("client {i}");
                let metadata = Metadata {
                    client_id,
                    ..Metadata::default()
                };
                builder.push_with_metadata(leaf(i), level, metadata.encode())
            } else {
                builder.push(leaf(i), level)
            };
            assert_eq!(number, Ok(i));
        }
        assert_eq!(builder.level(), root_level, "{levels:?}");
        let tree = builder.finish().unwrap();
        assert_eq!(
            (tree.level(), tree.len()),
            (root_level, levels.len()),
            "{levels:?}"
        );
        let mut shapes = HashSet::new();
        for (i, &level) in levels.iter().enumerate() {
            let links = tree.links(i);
            assert_eq!(
                climb(SHA256, leaf(i), level, &links),
                Ok((tree.root(), root_level))
            );
            assert!(shapes.insert(shape(&links).unwrap()));
        }
    }

    #[test]
    fn equal_leaves_make_a_balanced_tree() {
        for count in 1..=70 {
            let ceiling = (count as f64).log2().ceil() as u8;
            check(&vec![0; count], false, ceiling);
            check(&vec![1; count], false, level_for(count as u64));
            check(&vec![0; count], true, 1 + ceiling);
        }
    }

    #[test]
    fn large_trees_are_hashed_piece_by_piece() {
        let count = 3 * Pending::FULL + 5;
        check(&vec![0; count], false, 12);
        check(&vec![0; count], true, 13);
    }

    #[test]
    fn leaves_may_start_at_any_level() {
        check(&[5], false, 5);
        check(&[0, 5], false, 6);
        check(&[5, 0], false, 6);
        check(&[3, 3, 4], false, 5);
        check(&[0, 1, 2, 3, 0], false, 4);
        check(&[0, 1, 2, 3, 4, 0, 9, 2, 2], true, 11);
        check(&[61, 61], true, 63);
    }

    #[test]
    fn the_first_leaf_is_left_of_the_second() {
        let mut builder = TreeBuilder::new(SHA256);
        (0..3).for_each(|i| _ = builder.push(leaf(i), 1).unwrap());
        let pair = hash::node(SHA256, leaf(0).as_bytes(), leaf(1).as_bytes(), 2);
        let root = hash::node(SHA256, pair.as_bytes(), leaf(2).as_bytes(), 3);
        let tree = builder.finish().unwrap();
        assert_eq!(tree.root(), root);
        assert_eq!(tree.links(2)[0].correction, 1);
    }

    #[test]
    fn a_full_tree_refuses_and_stays_sound() {
        let mut builder = TreeBuilder::with_max_level(SHA256, 3);
        assert_eq!(builder.push(leaf(9), 4), Err(TreeFull));
        assert_eq!(
            builder.push_with_metadata(leaf(9), 255, Vec::new()),
            Err(TreeFull)
        );
        for i in 0..8 {
            assert_eq!(builder.push(leaf(i), 0), Ok(i));
        }
        assert_eq!(builder.push(leaf(8), 0), Err(TreeFull));
        let tree = builder.finish().unwrap();
        assert_eq!((tree.level(), tree.len()), (3, 8));
    }

    #[test]
    fn the_steepest_tree_still_has_shapes() {
        let mut builder = TreeBuilder::new(SHA256);
        for level in 0..=255 {
            assert_eq!(
                builder.push(leaf(level.into()), level).is_ok(),
                level < MAX_LEVEL
            );
        }
        let tree = builder.finish().unwrap();
        assert_eq!(tree.level(), MAX_LEVEL);
        assert_eq!(shape(&tree.links(0)).map(u64::leading_zeros), Some(1));
    }

    #[test]
    fn no_leaf_no_tree() {
        assert!(TreeBuilder::new(SHA256).finish().is_none());
        assert_eq!(TreeBuilder::new(SHA256).level(), 0);
    }

    #[test]
    fn levels_of_log_blocks() {
        for (count, level) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 3),
            (4, 3),
            (5, 4),
            (8, 4),
            (9, 5),
        ] {
            assert_eq!(level_for(count), level, "{count}");
        }
        assert_eq!(level_for(u64::MAX), 65);
    }
}
