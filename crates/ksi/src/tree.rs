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
//!
//! Insertion pairs up the nodes of a level in the order in which they get there,
//! so a tree is kept as rows, one for each level, of nothing but digests:
//!
//! ```text
//! row 2   | 0123 |      |           node 2i and node 2i+1 of a row have a parent in the row
//! row 1   | 01 | 23 | 45 |          above: number i, unless leaves have entered there too.
//! row 0   | 0 | 1 | 2 | 3 | 4 | 5 | 6 |      A row's last node may be left over: see close.
//! ```
//!
//! Neighbours in a row lie as the hash function wants them, and their parents are
//! written side by side: whole pieces of a row are hashed where they are.

use crate::{
    chain::{Link, MAX_SHAPE_LINKS, Sibling, Side},
    hash::{Algorithm, Batch, Imprint, Kernel, LANES, node},
};
use core::ops::Range;
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
    max_level: u8,
    /// The sum of `2^level` over all leaves, at most `2^max_level`. A row's nodes are
    /// added like the digits of a binary number, so the closed tree's root is at the
    /// logarithm of this, rounded up.
    weight: u64,
    /// In the rows below this level every pair has a place for its parent.
    placed_below: u8,
    /// Leaves since the last hashing.
    fresh: usize,
    kernel: Kernel,
    /// Nodes of leaves with metadata, and where they belong.
    below_metadata: (Batch, Vec<Place>),
}

impl TreeBuilder {
    /// Leaves after which rows are hashed: what they touch fits into the fastest cache.
    const PIECE: usize = 512;

    /// An empty tree that may grow to [`MAX_LEVEL`].
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self::with_max_level(algorithm, MAX_LEVEL)
    }

    /// An empty tree whose root may reach `max_level`, at most [`MAX_LEVEL`].
    #[must_use]
    pub fn with_max_level(algorithm: Algorithm, max_level: u8) -> Self {
        let mut builder = Tree::empty(algorithm).recycle();
        builder.max_level = max_level.min(MAX_LEVEL);
        builder
    }

    /// The same, hashed by `kernel` instead of the fastest one: for comparisons.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.hash_rows(false);
        let batch = Batch::with_kernel(self.tree.algorithm, kernel);
        Self {
            kernel,
            below_metadata: (batch, Vec::new()),
            ..self
        }
    }

    /// Makes room for `leaves` more leaves at `level`, one level up with metadata:
    /// 64 bytes for each, if the algorithm is SHA-256.
    ///
    /// # Panics
    /// If that is more than the memory's addresses.
    pub fn reserve(&mut self, leaves: usize, level: u8) {
        let width = self.tree.width();
        let mut nodes = leaves.min(MAX_LEAVES);
        for level in level..=MAX_LEVEL {
            self.tree
                .row(level)
                .digests
                .reserve(nodes.saturating_mul(width));
            if nodes <= 1 {
                break;
            }
            nodes = nodes.div_ceil(2);
        }
    }

    /// Appends a leaf at `level` and returns its number, counted from 0.
    /// Amortised O(1) hashes, done by the hundred.
    ///
    /// # Errors
    /// [`TreeFull`] if the root would then pass the highest level, or the tree two
    /// billion leaves. The tree is unchanged.
    #[inline]
    pub fn push(&mut self, leaf: Imprint, level: u8) -> Result<usize, TreeFull> {
        self.weigh(level)?;
        self.enter(level);
        let tree = &mut self.tree;
        tree.rows[usize::from(level)].push(&leaf, tree.algorithm);
        Ok(self.added())
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
        metadata: impl AsRef<[u8]>,
    ) -> Result<usize, TreeFull> {
        let (metadata, level) = (metadata.as_ref(), level.checked_add(1).ok_or(TreeFull)?);
        self.weigh(level)?;
        let (number, index) = (self.tree.leaves.count, self.enter(level));
        self.tree.metadata.push(number, metadata);
        let (batch, places) = &mut self.below_metadata;
        batch.push_node(metadata, leaf.as_bytes(), level);
        places.push(Place { level, index });
        self.tree.make_places(level, 1);
        Ok(self.added())
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
        // At most 64: the logarithm of a 64 bit number, and one.
        match self.weight.checked_ilog2() {
            None => 0,
            Some(highest) => highest as u8 + u8::from(!self.weight.is_power_of_two()),
        }
    }

    /// Joins what is left, low to high. `None` if there is no leaf.
    #[must_use]
    pub fn finish(mut self) -> Option<Tree> {
        self.hash_rows(true);
        (!self.is_empty()).then(|| self.tree.close())
    }

    /// Makes sure that a node may enter at `level`, and counts it.
    #[inline]
    fn weigh(&mut self, level: u8) -> Result<(), TreeFull> {
        if level > self.max_level || self.len() >= MAX_LEAVES {
            return Err(TreeFull);
        }
        let weight = self.weight.checked_add(1 << level).ok_or(TreeFull)?;
        if weight > 1 << self.max_level {
            return Err(TreeFull);
        }
        self.weight = weight;
        Ok(())
    }

    /// Gives the next leaf its place, at the end of the row of `level`.
    #[inline]
    fn enter(&mut self, level: u8) -> u32 {
        self.tree.row(level);
        if level > self.placed_below {
            // What is below got here earlier.
            (self.placed_below..level).for_each(|level| self.tree.place_parents(level));
        }
        self.placed_below = level;
        let index = self.tree.row(level).len;
        self.tree.leaves.push(Place { level, index });
        index
    }

    /// The number of the leaf that has just got its digest; hashes now and then.
    #[inline]
    fn added(&mut self) -> usize {
        self.fresh += 1;
        if self.fresh == Self::PIECE {
            self.hash_rows(false);
        }
        self.tree.len() - 1
    }

    /// Hashes what is new, `all` of it or only what fills the lanes.
    #[inline(never)]
    fn hash_rows(&mut self, all: bool) {
        let (batch, places) = &mut self.below_metadata;
        for (place, node) in places.drain(..).zip(batch.drain()) {
            self.tree.set(place, &node);
        }
        let mut level = 0;
        while usize::from(level) < self.tree.rows.len() {
            self.tree.place_parents(level);
            self.tree.hash_row(level, all, self.kernel);
            level += 1;
        }
        self.placed_below = level;
        self.fresh = 0;
    }
}

/// One more leaf would raise the root above the highest level, or pass two
/// billion leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the tree is full")]
pub struct TreeFull;

/// A closed tree: its root, and the way there from any leaf.
///
/// Two nodes per leaf, each as long as its digest: 64 bytes per leaf by SHA-256,
/// besides metadata. A leaf by another algorithm than the tree's takes 72 bytes
/// more, one at another level than the leaf before it up to 20.
#[derive(Clone, Debug)]
pub struct Tree {
    algorithm: Algorithm,
    /// By level.
    rows: Vec<Row>,
    leaves: Leaves,
    metadata: MetadataOfLeaves,
    /// How the nodes left over were joined, from the lowest upwards.
    joins: Vec<Join>,
    root: Imprint,
    level: u8,
}

impl Tree {
    /// The root's hash.
    #[must_use]
    pub fn root(&self) -> Imprint {
        self.root
    }

    /// The root's level.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The algorithm of all inner nodes.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The number of leaves.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leaves.count as usize
    }

    /// Whether there is no leaf; never true for a tree from [`TreeBuilder::finish`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.count == 0
    }

    /// The links from leaf number `leaf` to the root, at most
    /// [`MAX_SHAPE_LINKS`]: none if the leaf is the root, and as first link the
    /// metadata, if any. Corrections count from the level of the leaf.
    ///
    /// # Panics
    /// If there is no such leaf.
    #[must_use]
    pub fn links(&self, leaf: usize) -> Vec<Link> {
        let mut links = Vec::with_capacity(usize::from(self.level) + 1);
        links.extend(self.path(leaf));
        links
    }

    /// As [`Tree::links`], one after the other. Only the link that holds the
    /// metadata allocates.
    ///
    /// # Panics
    /// If there is no such leaf.
    pub fn path(&self, leaf: usize) -> impl Iterator<Item = Link> {
        assert!(leaf < self.len(), "no leaf {leaf} among {}", self.len());
        let metadata = self.metadata.get(leaf as u32).map(|metadata| Link {
            side: Side::Right,
            correction: 0,
            sibling: Sibling::Metadata(metadata.into()),
        });
        let way = Way {
            tree: self,
            at: At::Row(self.leaves.place(leaf as u32)),
        };
        metadata.into_iter().chain(way)
    }

    /// An empty tree to be built, of the same algorithm, in the memory of this one.
    /// It may grow to [`MAX_LEVEL`].
    ///
    /// ```
    /// use pitser_ksi::{Algorithm, hash::hash, tree::TreeBuilder};
    /// let mut builder = TreeBuilder::new(Algorithm::Sha256);
    /// for round in [b"first", b"other"] {
    ///     builder.push(hash(Algorithm::Sha256, &[round]), 0).unwrap();
    ///     let tree = builder.finish().unwrap();
    ///     assert_eq!(tree.root(), hash(Algorithm::Sha256, &[round]));
    ///     builder = tree.recycle();
    /// }
    /// ```
    #[must_use]
    pub fn recycle(mut self) -> TreeBuilder {
        self.rows.iter_mut().for_each(Row::clear);
        self.leaves.count = 0;
        self.leaves.runs.clear();
        self.metadata.clear();
        self.joins.clear();
        TreeBuilder {
            max_level: MAX_LEVEL,
            weight: 0,
            placed_below: 0,
            fresh: 0,
            kernel: Kernel::best(),
            below_metadata: (Batch::new(self.algorithm), Vec::new()),
            tree: self,
        }
    }

    fn empty(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            rows: Vec::new(),
            leaves: Leaves::default(),
            metadata: MetadataOfLeaves::default(),
            joins: Vec::new(),
            root: Imprint::zero(algorithm),
            level: 0,
        }
    }

    /// Length of a node, in bytes.
    fn width(&self) -> usize {
        self.algorithm.digest_len()
    }

    #[inline]
    fn row(&mut self, level: u8) -> &mut Row {
        let level = usize::from(level);
        if self.rows.len() <= level {
            self.rows.resize_with(level + 1, Row::default);
        }
        &mut self.rows[level]
    }

    /// Adds nodes without digest to a row.
    fn make_places(&mut self, level: u8, count: u32) {
        let bytes = count as usize * self.width();
        let row = self.row(level);
        row.digests.resize(row.digests.len() + bytes, 0);
        row.len += count;
    }

    /// Gives the new pairs of a row places for their parents.
    fn place_parents(&mut self, level: u8) {
        let row = &self.rows[usize::from(level)];
        let (placed, new) = (row.placed, row.len / 2 - row.placed);
        if new > 0 {
            let index = self.row(level + 1).len;
            self.make_places(level + 1, new);
            let row = self.row(level);
            row.parents.push(placed, index);
            row.placed += new;
        }
    }

    fn set(&mut self, place: Place, node: &Imprint) {
        let width = self.width();
        let digests = &mut self.row(place.level).digests;
        digests[place.index as usize * width..][..width].copy_from_slice(node.digest());
    }

    /// Hashes the pairs of a row that have digests and places but no parents yet,
    /// `all` or as many as fill the lanes.
    fn hash_row(&mut self, level: u8, all: bool, kernel: Kernel) {
        let pairs = self.ready(usize::from(level), all);
        let (lower, upper) = self.rows.split_at_mut(usize::from(level) + 1);
        let (Some(row), Some(above)) = (lower.last_mut(), upper.first_mut()) else {
            return;
        };
        for (pairs, first) in row.parents.pieces(pairs.clone()) {
            row.hash(self.algorithm, kernel, level + 1, pairs, above, first);
        }
        row.hashed = pairs.end;
    }

    /// Those pairs. A node whose own children are not hashed yet has no digest.
    fn ready(&self, level: usize, all: bool) -> Range<u32> {
        let row = &self.rows[level];
        let waiting = level.checked_sub(1).and_then(|below| {
            let below = &self.rows[below];
            (below.hashed < below.placed).then(|| below.parents.at(below.hashed))
        });
        let first = row.hashed;
        let mut count = waiting.unwrap_or(row.len) / 2 - first;
        if !all {
            count -= count % LANES;
        }
        first..first + count
    }

    /// Joins the nodes that are left over, one of each row at most. There is a leaf.
    fn close(mut self) -> Self {
        let left_over = (0..).zip(&self.rows).filter(|(_, row)| row.len % 2 == 1);
        let mut left_over = left_over
            .map(|(level, _)| level)
            .collect::<Vec<u8>>()
            .into_iter();
        let lowest = left_over.next().expect("leaves cannot all have parents");
        (self.root, self.level) = (self.last(lowest), lowest);
        for level in left_over {
            let (left, right) = (self.last(level), self.root);
            self.joins.push(Join { level, right });
            self.level = level + 1;
            self.root = node(
                self.algorithm,
                left.as_bytes(),
                right.as_bytes(),
                self.level,
            );
        }
        self
    }

    /// The last node of a row that is not empty.
    fn last(&self, level: u8) -> Imprint {
        let row = &self.rows[usize::from(level)];
        row.imprint(row.len - 1, self.algorithm)
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

/// Keeps every number of a leaf or node within 32 bits: no row has more nodes than
/// the tree leaves.
const MAX_LEAVES: usize = 1 << 31;

/// A node: a row, and its number there.
#[derive(Clone, Copy, Debug)]
struct Place {
    level: u8,
    index: u32,
}

/// The nodes of one level, in the order in which they got there.
#[derive(Clone, Debug, Default)]
struct Row {
    /// One after the other. Zeros stand for what is not hashed yet, and for `others`.
    digests: Vec<u8>,
    /// Leaves by another algorithm than the tree's, by their number in the row.
    others: Vec<(u32, Imprint)>,
    /// The number of nodes.
    len: u32,
    /// Pairs whose parent has a place in the row above.
    placed: u32,
    /// Pairs whose parent stands there.
    hashed: u32,
    /// From the number of a pair to that of its parent.
    parents: Runs,
}

impl Row {
    #[inline]
    fn push(&mut self, leaf: &Imprint, algorithm: Algorithm) {
        if leaf.algorithm() != algorithm {
            self.others.push((self.len, *leaf));
            let end = self.digests.len() + algorithm.digest_len();
            self.digests.resize(end, 0);
        } else if let Ok(digest) = <&[u8; 32]>::try_from(leaf.digest()) {
            // The usual length: known beforehand, it is copied much faster.
            self.digests.extend_from_slice(digest);
        } else {
            self.digests.extend_from_slice(leaf.digest());
        }
        self.len += 1;
    }

    /// Hashes `pairs` into the row above, from node number `first` on.
    fn hash(
        &self,
        algorithm: Algorithm,
        kernel: Kernel,
        level: u8,
        pairs: Range<u32>,
        above: &mut Row,
        first: u32,
    ) {
        let width = algorithm.digest_len();
        let nodes = 2 * pairs.start..2 * pairs.end;
        let bytes = |nodes: Range<u32>| nodes.start as usize * width..nodes.end as usize * width;
        let parents = &mut above.digests[bytes(first..first + pairs.end - pairs.start)];
        if algorithm == Algorithm::Sha256 && !self.has_others(&nodes) {
            let children = self.digests[bytes(nodes)].as_chunks().0.as_chunks().0;
            kernel.nodes(children, level, parents.as_chunks_mut().0);
            return;
        }
        for (parent, left) in parents.chunks_mut(width).zip(nodes.step_by(2)) {
            let [left, right] = [left, left + 1].map(|child| self.imprint(child, algorithm));
            let hashed = node(algorithm, left.as_bytes(), right.as_bytes(), level);
            parent.copy_from_slice(hashed.digest());
        }
    }

    fn has_others(&self, nodes: &Range<u32>) -> bool {
        let from = self
            .others
            .partition_point(|(index, _)| *index < nodes.start);
        self.others
            .get(from)
            .is_some_and(|(index, _)| *index < nodes.end)
    }

    fn imprint(&self, index: u32, algorithm: Algorithm) -> Imprint {
        if !self.others.is_empty()
            && let Ok(at) = self
                .others
                .binary_search_by_key(&index, |(index, _)| *index)
        {
            return self.others[at].1;
        }
        let width = algorithm.digest_len();
        let digest = &self.digests[index as usize * width..][..width];
        Imprint::new(algorithm, digest).expect("a node is as long as its digest")
    }

    /// Empties the row, but keeps its memory.
    fn clear(&mut self) {
        let Self {
            mut digests,
            mut others,
            mut parents,
            ..
        } = core::mem::take(self);
        digests.clear();
        others.clear();
        parents.0.clear();
        *self = Self {
            digests,
            others,
            parents,
            ..Self::default()
        };
    }
}

/// A rising map from numbers to numbers, as the runs along which both sides rise
/// by one: a single run, unless leaves enter at different levels.
#[derive(Clone, Debug, Default)]
struct Runs(Vec<Run>);

#[derive(Clone, Copy, Debug)]
struct Run {
    from: u32,
    to: u32,
}

impl Runs {
    /// Maps `from`, and what follows it up to the next call, to `to` and what follows.
    fn push(&mut self, from: u32, to: u32) {
        if self
            .0
            .last()
            .is_none_or(|run| run.to + (from - run.from) != to)
        {
            self.0.push(Run { from, to });
        }
    }

    /// The run that `from` belongs to. There is one.
    fn run(&self, from: u32) -> usize {
        self.0.partition_point(|run| run.from <= from) - 1
    }

    /// What `from` is mapped to. It belongs to a run.
    fn at(&self, from: u32) -> u32 {
        let run = self.0[self.run(from)];
        run.to + (from - run.from)
    }

    /// Cuts a range where runs end, and tells what each piece is mapped to.
    fn pieces(&self, mut range: Range<u32>) -> impl Iterator<Item = (Range<u32>, u32)> {
        let mut run = if range.is_empty() {
            0
        } else {
            self.run(range.start)
        };
        core::iter::from_fn(move || {
            let Run { from, to } = *self.0.get(run).filter(|_| !range.is_empty())?;
            run += 1;
            let end = self
                .0
                .get(run)
                .map_or(range.end, |next| next.from.min(range.end));
            let piece = range.start..end;
            range.start = end;
            let first = to + (piece.start - from);
            Some((piece, first))
        })
    }
}

/// Where each leaf stands.
#[derive(Clone, Debug, Default)]
struct Leaves {
    count: u32,
    /// Leaves from `.0` on stand side by side from `.1` on.
    runs: Vec<(u32, Place)>,
}

impl Leaves {
    #[inline]
    fn push(&mut self, place: Place) {
        let continues = self.runs.last().is_some_and(|(first, start)| {
            start.level == place.level && start.index + (self.count - first) == place.index
        });
        if !continues {
            self.runs.push((self.count, place));
        }
        self.count += 1;
    }

    /// The leaf itself, or its parent if there is metadata.
    fn place(&self, leaf: u32) -> Place {
        let run = self.runs.partition_point(|(first, _)| *first <= leaf) - 1;
        let (first, Place { level, index }) = self.runs[run];
        Place {
            level,
            index: index + (leaf - first),
        }
    }
}

/// Encoded metadata, one after the other.
#[derive(Clone, Debug, Default)]
struct MetadataOfLeaves {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// From the number of a leaf to that in `ends`. Leaves without metadata lie
    /// between the runs: beyond a run's last end.
    runs: Runs,
}

impl MetadataOfLeaves {
    fn push(&mut self, leaf: u32, metadata: &[u8]) {
        self.runs.push(leaf, self.ends.len() as u32);
        self.bytes.extend_from_slice(metadata);
        self.ends.push(self.bytes.len());
    }

    fn get(&self, leaf: u32) -> Option<&[u8]> {
        let next = self.runs.0.partition_point(|run| run.from <= leaf);
        let run = self.runs.0[next.checked_sub(1)?];
        let end = self
            .runs
            .0
            .get(next)
            .map_or(self.ends.len(), |next| next.to as usize);
        let number = (run.to + (leaf - run.from)) as usize;
        (number < end).then(|| {
            let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.bytes[start..self.ends[number]]
        })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.runs.0.clear();
    }
}

/// The last node of the row of `level` and `right`, what was left over below it.
#[derive(Clone, Debug)]
struct Join {
    level: u8,
    right: Imprint,
}

/// The links from a node upwards.
struct Way<'t> {
    tree: &'t Tree,
    at: At,
}

enum At {
    Row(Place),
    /// The right child of that join, at this level.
    Join(usize, u8),
}

impl Way<'_> {
    /// From a node with a neighbour to their parent.
    fn in_row(&mut self, row: &Row, Place { level, index }: Place) -> Link {
        let side = if index % 2 == 0 {
            Side::Left
        } else {
            Side::Right
        };
        self.at = At::Row(Place {
            level: level + 1,
            index: row.parents.at(index / 2),
        });
        link(side, 0, row.imprint(index ^ 1, self.tree.algorithm))
    }

    /// From the node that is left over in a row, if others below it are, too.
    fn left_over(&mut self, level: u8) -> Option<Link> {
        let joins = &self.tree.joins;
        let own = joins.iter().position(|join| join.level == level);
        let (next, level) = own.map_or((0, level), |own| (own + 1, level + 1));
        self.at = At::Join(next, level);
        own.map(|own| link(Side::Left, 0, joins[own].right))
    }

    /// From what is left over below to the parent of that and a row's last node.
    fn in_join(&mut self, number: usize, level: u8) -> Option<Link> {
        let join = self.tree.joins.get(number)?;
        self.at = At::Join(number + 1, join.level + 1);
        let sibling = self.tree.last(join.level);
        Some(link(Side::Right, join.level - level, sibling))
    }
}

impl Iterator for Way<'_> {
    type Item = Link;

    fn next(&mut self) -> Option<Link> {
        if let At::Row(place) = self.at {
            let row = &self.tree.rows[usize::from(place.level)];
            if place.index / 2 < row.placed {
                return Some(self.in_row(row, place));
            }
            let link = self.left_over(place.level);
            if link.is_some() {
                return link;
            }
        }
        match self.at {
            At::Join(number, level) => self.in_join(number, level),
            At::Row(_) => None,
        }
    }
}

fn link(side: Side, correction: u8, sibling: Imprint) -> Link {
    Link {
        side,
        correction,
        sibling: Sibling::Imprint(sibling),
    }
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

    fn metadata(number: usize) -> Vec<u8> {
        let client_id = format!("client {number}");
        let metadata = Metadata {
            client_id,
            ..Metadata::default()
        };
        metadata.encode()
    }

    /// Every leaf's links lead to the root, by ways that differ.
    #[track_caller]
    fn check(levels: &[u8], with_metadata: bool, root_level: u8) {
        let mut builder = TreeBuilder::new(SHA256);
        for (i, &level) in levels.iter().enumerate() {
            let number = if with_metadata {
                builder.push_with_metadata(leaf(i), level, metadata(i))
            } else {
                builder.push(leaf(i), level)
            };
            assert_eq!(number, Ok(i));
        }
        assert_eq!(builder.level(), root_level);
        let tree = builder.finish().unwrap();
        assert_eq!((tree.level(), tree.len()), (root_level, levels.len()));
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

    /// The tree as the module's first lines have it, one node after the other.
    struct Simple {
        algorithm: Algorithm,
        roots: Vec<(Imprint, u8)>,
    }

    impl Simple {
        fn parent(&self, left: (Imprint, u8), right: (Imprint, u8)) -> (Imprint, u8) {
            let level = left.1.max(right.1) + 1;
            let [left, right] = [left.0, right.0];
            let node = node(self.algorithm, left.as_bytes(), right.as_bytes(), level);
            (node, level)
        }

        fn push(&mut self, mut node: (Imprint, u8)) {
            while let Some(at) = self.roots.iter().position(|root| root.1 == node.1) {
                let root = self.roots.remove(at);
                node = self.parent(root, node);
            }
            self.roots.push(node);
        }

        fn close(mut self) -> (Imprint, u8) {
            self.roots.sort_by_key(|root| root.1);
            let roots = self.roots.clone().into_iter();
            roots.reduce(|node, root| self.parent(root, node)).unwrap()
        }
    }

    /// A tree like no service's: leaves by several algorithms, at levels in no order,
    /// some with metadata.
    fn motley(number: usize, levels: u64) -> (Imprint, u8, Option<Vec<u8>>) {
        let noise = (number as u64 + levels).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let algorithm = match noise % 7 {
            0 => Algorithm::Sha512,
            1 => Algorithm::Ripemd160,
            _ => SHA256,
        };
        let leaf = hash::hash(algorithm, &[&number.to_be_bytes()]);
        let metadata = (noise >> 8 & 3 == 0).then(|| metadata(number));
        (
            leaf,
            (noise >> 16).min(noise >> 24) as u8 % levels as u8,
            metadata,
        )
    }

    #[track_caller]
    fn check_motley(mut builder: TreeBuilder, count: usize, levels: u64) -> TreeBuilder {
        let algorithm = builder.tree.algorithm;
        let mut simple = Simple {
            algorithm,
            roots: Vec::new(),
        };
        for number in 0..count {
            let (leaf, level, metadata) = motley(number, levels);
            if let Some(metadata) = &metadata {
                let above = node(algorithm, metadata, leaf.as_bytes(), level + 1);
                simple.push((above, level + 1));
                builder.push_with_metadata(leaf, level, metadata).unwrap();
            } else {
                simple.push((leaf, level));
                builder.push(leaf, level).unwrap();
            }
        }
        let root = simple.close();
        assert_eq!((builder.len(), builder.level()), (count, root.1));
        let tree = builder.finish().unwrap();
        assert_eq!((tree.root(), tree.level()), root);
        for number in 0..count {
            let (leaf, level, metadata) = motley(number, levels);
            let links = tree.links(number);
            assert_eq!(climb(algorithm, leaf, level, &links), Ok(root), "{number}");
            let first = links.first().map(|link| &link.sibling);
            match metadata {
                Some(metadata) => assert_eq!(first, Some(&Sibling::Metadata(metadata))),
                None => assert!(!matches!(first, Some(Sibling::Metadata(_)))),
            }
        }
        tree.recycle()
    }

    #[test]
    fn rows_make_the_tree_that_insertion_makes() {
        for kernel in Kernel::all() {
            let mut builder = TreeBuilder::new(SHA256);
            for count in (1..70).chain([511, 512, 513, 1500, 3000]) {
                for levels in [1, 2, 3, 9] {
                    builder = check_motley(builder.with_kernel(kernel), count, levels);
                }
            }
        }
    }

    #[test]
    fn every_algorithm_makes_trees() {
        for algorithm in Algorithm::ALL {
            for (count, levels) in [(1, 1), (2, 1), (77, 1), (600, 1), (600, 5)] {
                check_motley(TreeBuilder::new(algorithm), count, levels);
            }
        }
    }

    #[test]
    fn reserved_memory_is_enough() {
        let mut builder = TreeBuilder::new(SHA256);
        builder.reserve(1000, 1);
        let room = |tree: &Tree| -> Vec<_> {
            let rows = tree.rows.iter();
            rows.map(|row| row.digests.capacity()).collect()
        };
        let reserved = room(&builder.tree);
        (0..1000).for_each(|i| _ = builder.push(leaf(i), 1).unwrap());
        let tree = builder.finish().unwrap();
        assert_eq!(room(&tree), reserved);
        assert_eq!(room(&tree.recycle().tree), reserved);
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
        let count = 6 * TreeBuilder::PIECE + 5;
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
