//! RFC 6962 hash trees over SHA-256: roots, inclusion and consistency proofs.
//!
//! ```text
//! leaf = SHA-256(0x00 ‖ entry)
//! node = SHA-256(0x01 ‖ left ‖ right)
//! empty tree = SHA-256("")
//! ```
//!
//! A tree of `n > 1` leaves splits at the largest power of two below `n`. A
//! node is *complete* when it covers `2^level` leaves; complete nodes never
//! change as the log grows, which is why they alone are stored.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A SHA-256 digest: leaf, node or root.
pub type Hash = [u8; 32];

/// Root of the tree without leaves, SHA-256 of nothing.
pub const EMPTY_ROOT: Hash = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// Most hashes that any accepted proof holds (c2sp.org/tlog-witness).
pub const MAX_PROOF_HASHES: usize = 63;

/// Hash of a log entry: `SHA-256(0x00 ‖ entry)`.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0x00])
        .chain_update(entry)
        .finalize()
        .into()
}

/// Hash of an inner node: `SHA-256(0x01 ‖ left ‖ right)`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([0x01])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// Where the complete nodes of a tree come from: memory, tiles, a file.
///
/// [`root`], [`inclusion_proof`] and [`consistency_proof`] work on any source.
pub trait Nodes {
    /// Why a node cannot be had; ranges outside the tree are reported through it too.
    type Error: From<OutOfRange>;

    /// The node over leaves `index * 2^level .. (index + 1) * 2^level`.
    ///
    /// Called only for nodes that are complete in the tree being asked about.
    ///
    /// # Errors
    /// When the source does not hold that node.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// An index or size lies outside the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("outside the tree")]
pub struct OutOfRange;

/// The root of the first `size` leaves.
///
/// # Errors
/// When `nodes` lacks a node of that tree.
pub fn root<N: Nodes + ?Sized>(nodes: &N, size: u64) -> Result<Hash, N::Error> {
    match size {
        0 => Ok(EMPTY_ROOT),
        _ => subtree(nodes, 0, size),
    }
}

/// Proves that leaf `index` is in the tree of `size` leaves (RFC 6962 §2.1.1).
///
/// The hashes run from the leaf's sibling up to the root's child.
///
/// # Errors
/// [`OutOfRange`] unless `index < size`, or when `nodes` lacks a node.
pub fn inclusion_proof<N: Nodes + ?Sized>(
    nodes: &N,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, N::Error> {
    if index >= size {
        return Err(OutOfRange.into());
    }
    let (mut low, mut high) = (0, size);
    let mut proof = Vec::new();
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            proof.push(subtree(nodes, middle, high)?);
            high = middle;
        } else {
            proof.push(subtree(nodes, low, middle)?);
            low = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proves that the first `old_size` leaves are a prefix of the tree of `new_size`
/// (RFC 6962 §2.1.2). Empty when `old_size` is 0 or equals `new_size`.
///
/// # Errors
/// [`OutOfRange`] unless `old_size <= new_size`, or when `nodes` lacks a node.
pub fn consistency_proof<N: Nodes + ?Sized>(
    nodes: &N,
    old_size: u64,
    new_size: u64,
) -> Result<Vec<Hash>, N::Error> {
    if old_size > new_size {
        return Err(OutOfRange.into());
    }
    if old_size == 0 || old_size == new_size {
        return Ok(Vec::new());
    }
    let (mut low, mut high) = (0, new_size);
    let mut proof = Vec::new();
    while high != old_size {
        let middle = low + split(high - low);
        if old_size <= middle {
            proof.push(subtree(nodes, middle, high)?);
            high = middle;
        } else {
            proof.push(subtree(nodes, low, middle)?);
            low = middle;
        }
    }
    // The verifier knows the old root; any other last node it must be told.
    if low != 0 {
        proof.push(subtree(nodes, low, high)?);
    }
    proof.reverse();
    Ok(proof)
}

/// The root that `proof` leads to from `leaf`, at `index` of `size` leaves.
///
/// # Errors
/// [`ProofError::OutOfRange`] or [`ProofError::WrongLength`].
pub fn root_from_inclusion(
    leaf: Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
) -> Result<Hash, ProofError> {
    if index >= size {
        return Err(ProofError::OutOfRange);
    }
    let mut position = index;
    let mut last = size - 1;
    let mut hash = leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::WrongLength);
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            // A right edge skips the levels on which it has no sibling.
            let skipped = position.trailing_zeros();
            position >>= skipped;
            last >>= skipped;
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    match last {
        0 => Ok(hash),
        _ => Err(ProofError::WrongLength),
    }
}

/// Checks that `leaf` stands at `index` of the tree of `size` leaves with `root`.
///
/// # Errors
/// [`ProofError`], which says whether the proof has the wrong shape or leads elsewhere.
pub fn verify_inclusion(
    leaf: Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if root_from_inclusion(leaf, index, size, proof)? == *root {
        Ok(())
    } else {
        Err(ProofError::RootMismatch)
    }
}

/// Checks that the tree `(new_size, new_root)` begins with `(old_size, old_root)`.
///
/// Every tree begins with the empty one, whose root must be [`EMPTY_ROOT`].
///
/// # Errors
/// [`ProofError`], which says whether the proof has the wrong shape or leads elsewhere.
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old_size > new_size {
        return Err(ProofError::OutOfRange);
    }
    if old_size == 0 && *old_root != EMPTY_ROOT {
        return Err(ProofError::RootMismatch);
    }
    if old_size == 0 || old_size == new_size {
        let same = old_size != new_size || old_root == new_root;
        return match (proof.is_empty(), same) {
            (false, _) => Err(ProofError::WrongLength),
            (true, false) => Err(ProofError::RootMismatch),
            (true, true) => Ok(()),
        };
    }
    let (old, new) = roots_from_consistency(old_size, old_root, new_size, proof)?;
    if old == *old_root && new == *new_root {
        Ok(())
    } else {
        Err(ProofError::RootMismatch)
    }
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The index is not in the tree, or the old tree is larger than the new one.
    #[error("index or size outside the tree")]
    OutOfRange,
    /// A proof between these sizes has another number of hashes.
    #[error("wrong number of hashes in the proof")]
    WrongLength,
    /// The proof leads to another root.
    #[error("proof leads to another root")]
    RootMismatch,
}

/// An append-only tree of leaf hashes in memory, 64 bytes a leaf.
///
/// Any past size stays provable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTree {
    /// `levels[k][i]` covers leaves `i * 2^k .. (i + 1) * 2^k`; complete nodes only.
    levels: Vec<Vec<Hash>>,
}

impl LogTree {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a leaf hash and returns its index. O(1) hashes on average.
    pub fn push(&mut self, leaf: Hash) -> u64 {
        let index = self.size();
        let mut node = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let nodes = &mut self.levels[level];
            nodes.push(node);
            match nodes.as_chunks().0.last() {
                Some([left, right]) if nodes.len().is_multiple_of(2) => {
                    node = node_hash(left, right)
                }
                _ => break,
            }
        }
        index
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The root of all leaves.
    pub fn root(&self) -> Hash {
        self.root_at(self.size())
            .expect("a tree holds the nodes of its own size")
    }

    /// The root of the first `size` leaves.
    ///
    /// # Errors
    /// [`OutOfRange`] when the tree is smaller.
    pub fn root_at(&self, size: u64) -> Result<Hash, OutOfRange> {
        root(self, size)
    }

    /// The hash of leaf `index`, if there is one.
    pub fn leaf(&self, index: u64) -> Option<Hash> {
        self.node(0, index).ok()
    }

    /// Proves that leaf `index` is among the first `size`; see [`inclusion_proof`].
    ///
    /// # Errors
    /// [`OutOfRange`] unless `index < size <= self.size()`.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Hash>, OutOfRange> {
        inclusion_proof(self, index, size)
    }

    /// Proves that `old_size` is a prefix of `new_size`; see [`consistency_proof`].
    ///
    /// # Errors
    /// [`OutOfRange`] unless `old_size <= new_size <= self.size()`.
    pub fn consistency_proof(&self, old_size: u64, new_size: u64) -> Result<Vec<Hash>, OutOfRange> {
        if new_size > self.size() {
            return Err(OutOfRange);
        }
        consistency_proof(self, old_size, new_size)
    }

    /// What is needed to go on from `size` leaves without keeping them.
    ///
    /// # Errors
    /// [`OutOfRange`] when the tree is smaller.
    pub fn frontier_at(&self, size: u64) -> Result<Frontier, OutOfRange> {
        Frontier::of(self, size)
    }
}

impl Nodes for LogTree {
    type Error = OutOfRange;

    fn node(&self, level: u8, index: u64) -> Result<Hash, OutOfRange> {
        let index = usize::try_from(index).map_err(|_| OutOfRange)?;
        let nodes = self.levels.get(usize::from(level)).ok_or(OutOfRange)?;
        nodes.get(index).copied().ok_or(OutOfRange)
    }
}

impl Extend<Hash> for LogTree {
    fn extend<I: IntoIterator<Item = Hash>>(&mut self, leaves: I) {
        for leaf in leaves {
            self.push(leaf);
        }
    }
}

impl FromIterator<Hash> for LogTree {
    fn from_iter<I: IntoIterator<Item = Hash>>(leaves: I) -> Self {
        let mut tree = Self::new();
        tree.extend(leaves);
        tree
    }
}

/// The right edge of a tree: enough to append and to know the root, not to prove.
///
/// Holds one hash for each one bit of the size, at most 64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the complete subtrees from left to right, largest first.
    nodes: Vec<Hash>,
}

impl Frontier {
    /// The edge of the tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Restores what [`size`](Self::size) and [`nodes`](Self::nodes) gave.
    ///
    /// # Errors
    /// [`OutOfRange`] unless there is one node for each one bit of `size`.
    pub fn from_parts(size: u64, nodes: Vec<Hash>) -> Result<Self, OutOfRange> {
        if nodes.len() == size.count_ones() as usize {
            Ok(Self { size, nodes })
        } else {
            Err(OutOfRange)
        }
    }

    /// That of the first `size` leaves of a tree; reads one node for each one bit of it.
    ///
    /// # Errors
    /// When `nodes` lacks a node of that tree.
    pub fn of<N: Nodes + ?Sized>(nodes: &N, size: u64) -> Result<Self, N::Error> {
        let nodes = complete_subtrees(size)
            .map(|(level, index)| nodes.node(level, index))
            .collect::<Result<_, _>>()?;
        Ok(Self { size, nodes })
    }

    /// Appends a leaf hash and returns its index.
    pub fn push(&mut self, leaf: Hash) -> u64 {
        let index = self.size;
        let mut node = leaf;
        for _ in 0..index.trailing_ones() {
            let left = self.nodes.pop().expect("one node for each one bit of size");
            node = node_hash(&left, &node);
        }
        self.nodes.push(node);
        self.size += 1;
        index
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the complete subtrees from left to right, largest first.
    pub fn nodes(&self) -> &[Hash] {
        &self.nodes
    }

    /// The root of all leaves.
    pub fn root(&self) -> Hash {
        let right_to_left = self.nodes.iter().rev().copied();
        right_to_left
            .reduce(|right, left| node_hash(&left, &right))
            .unwrap_or(EMPTY_ROOT)
    }
}

/// Both roots that a consistency proof between unequal, non-zero sizes leads to
/// (RFC 9162 §2.1.4.2).
fn roots_from_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    proof: &[Hash],
) -> Result<(Hash, Hash), ProofError> {
    let (start, rest) = if old_size.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(ProofError::WrongLength)?
    };
    let complete_levels = old_size.trailing_zeros();
    let mut position = (old_size - 1) >> complete_levels;
    let mut last = (new_size - 1) >> complete_levels;
    let (mut old, mut new) = (*start, *start);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::WrongLength);
        }
        if position & 1 == 1 || position == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            let skipped = position.trailing_zeros();
            position >>= skipped;
            last >>= skipped;
        } else {
            new = node_hash(&new, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    match last {
        0 => Ok((old, new)),
        _ => Err(ProofError::WrongLength),
    }
}

/// The hash over leaves `low..high`, a non-empty range that the tree has as a subtree.
fn subtree<N: Nodes + ?Sized>(nodes: &N, low: u64, high: u64) -> Result<Hash, N::Error> {
    let mut parts = complete_subtrees_between(low, high)
        .map(|(level, index)| nodes.node(level, index))
        .collect::<Result<Vec<_>, _>>()?;
    let mut hash = parts.pop().ok_or(OutOfRange)?;
    while let Some(left) = parts.pop() {
        hash = node_hash(&left, &hash);
    }
    Ok(hash)
}

/// Levels and indices of the complete subtrees of a tree, left to right.
fn complete_subtrees(size: u64) -> impl Iterator<Item = (u8, u64)> {
    complete_subtrees_between(0, size)
}

/// The same for leaves `low..high`, where `low` is a multiple of the range's
/// largest power of two, as the left end of every subtree is.
fn complete_subtrees_between(low: u64, high: u64) -> impl Iterator<Item = (u8, u64)> {
    let length = high - low;
    (0..64u8).rev().filter_map(move |level| {
        let width = 1 << level;
        // Wider subtrees stand to the left of this one.
        let start = low + (length & !(width | (width - 1)));
        (length & width != 0).then_some((level, start >> level))
    })
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}
