//! Checking the lines of one block against what the block says.
//!
//! A line that differs from its stored record hash is a fault; the check then
//! goes on from the stored hash, so that all altered lines are named and the
//! root still tells whether the other lines are what was signed.

use super::{
    hashing::{Forest, Kind, Leaves},
    reader::{Block, Elements, Metarecord, Seal},
    signed::signed_root,
    tag,
};
use crate::{
    error::DecodeError,
    hash::{Algorithm, Batch, Imprint, hash},
    tlv::{Element, Tag},
};

/// How many altered lines and metarecords a report names; there may be more in
/// the block. All other faults occur once and are always named.
pub const MAX_FAULTS: usize = 1000;

/// Lines, and then leaves, that are hashed together.
const AT_ONCE: usize = 512;

/// Something that does not fit. `line` counts the block's lines, `record` its
/// leaves, metarecords included; both from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The line is not the one whose hash the block stores.
    Line {
        /// The line in the block.
        line: u64,
        /// Its leaf in the block.
        record: u64,
    },
    /// The log ends before this line.
    LineMissing {
        /// The first line that is missing.
        line: u64,
    },
    /// The metarecord is not the one whose hash the block stores.
    Metarecord {
        /// Its leaf in the block.
        record: u64,
    },
    /// A stored tree hash is not that of the tree. Reported once: from the first
    /// such leaf on, none of the leaves that follow can agree.
    TreeHash {
        /// The leaf that the hash is of, or that completed the subtree it is of.
        record: u64,
        /// Its line in the block; `None` for a metarecord and the final merge.
        line: Option<u64>,
    },
    /// A stored hash stands where it does not belong.
    Order {
        /// Position in the file, in bytes.
        at: usize,
    },
    /// The tree over the lines has another root than the one sealed.
    Root,
}

/// What the lines of a block amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockReport {
    /// Root of the tree. A signature is still to be verified over it.
    pub root: Imprint,
    /// The level at which LOGSIG12 signs the root.
    pub level: u8,
    /// The leaf that the next block's header must name.
    pub last_leaf: Imprint,
    /// What does not fit, in the order of the block; see [`MAX_FAULTS`].
    pub faults: Vec<Fault>,
}

impl BlockReport {
    /// Whether every line, every stored hash and the root agree. That the root
    /// itself is genuine is for the seal's signature to prove: an unsigned block
    /// agrees with a marker that anybody could write, and with an RFC 3161
    /// token no root is compared.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.faults.is_empty()
    }

    /// The first line, counted in the block, that does not fit. `None` although
    /// the report is not intact: without stored hashes it is some line of the
    /// block, and nobody can say which; or only stored hashes were altered.
    #[must_use]
    pub fn first_wrong_line(&self) -> Option<u64> {
        let root_differs = self.faults.contains(&Fault::Root);
        self.faults.iter().find_map(|fault| match *fault {
            Fault::Line { line, .. } | Fault::LineMissing { line } => Some(line),
            // With the sealed root, the stored hash is the one to blame.
            Fault::TreeHash { line, .. } if root_differs => line,
            _ => None,
        })
    }

    /// Whether `next` goes on from this block's last leaf.
    #[must_use]
    pub fn is_followed_by(&self, next: &Block<'_>) -> bool {
        self.last_leaf == next.header.previous_leaf
    }
}

/// Checks `block` against its lines, of which [`Block::line_count`] are taken
/// from `lines`. Blocks can be checked at the same time: each header says from
/// which leaf its block goes on, and [`BlockReport::is_followed_by`] settles
/// whether that is so.
///
/// # Errors
/// If the seal's signature cannot be decoded.
pub fn verify_block<'l>(
    block: &Block<'_>,
    lines: &mut impl Iterator<Item = &'l [u8]>,
) -> Result<BlockReport, DecodeError> {
    let mut verifier = BlockVerifier::new(block);
    verifier.lines(lines);
    verifier.finish()
}

/// Checks a block against lines that arrive piece by piece. Memory does not
/// depend on their number.
#[derive(Debug)]
pub struct BlockVerifier<'a> {
    block: Block<'a>,
    leaves: Leaves,
    forest: Forest,
    /// Leaves that are not in the forest yet; none if tree hashes are stored,
    /// since those are compared leaf by leaf.
    new_leaves: Vec<Imprint>,
    batch: Batch,
    stored: StoredElements<'a>,
    lines: u64,
    /// Whether a tree hash was found to differ.
    tree_differs: bool,
    faults: Vec<Fault>,
}

impl<'a> BlockVerifier<'a> {
    /// Starts from what the block's header says.
    #[must_use]
    pub fn new(block: &Block<'a>) -> Self {
        let header = &block.header;
        Self {
            leaves: Leaves::new(header.algorithm, header.iv, header.previous_leaf),
            forest: Forest::new(header.algorithm),
            new_leaves: Vec::new(),
            batch: Batch::new(header.algorithm),
            stored: StoredElements::new(block),
            block: *block,
            lines: 0,
            tree_differs: false,
            faults: Vec::new(),
        }
    }

    /// Number of lines the block still waits for.
    #[must_use]
    pub fn lines_left(&self) -> u64 {
        self.block.line_count() - self.lines
    }

    /// Takes the lines of the block that are left, without their line ends, or as
    /// many as there are. Faster than [`BlockVerifier::line`] one by one.
    pub fn lines<'l>(&mut self, lines: &mut impl Iterator<Item = &'l [u8]>) {
        let mut records = Vec::new();
        loop {
            let wanted = self.lines_left().min(AT_ONCE as u64);
            for line in (0..wanted).map_while(|_| lines.next()) {
                self.batch.push(&[line]);
            }
            records.extend(self.batch.drain());
            if records.is_empty() {
                return;
            }
            for record in records.drain(..) {
                self.record_of_line(&record);
            }
        }
    }

    /// Takes the next line, without its line end. A line beyond the block's
    /// last one is not looked at.
    pub fn line(&mut self, line: &[u8]) {
        if self.lines_left() > 0 {
            self.record_of_line(&hash(self.algorithm(), &[line]));
        }
    }

    /// Ends the block.
    ///
    /// # Errors
    /// If the seal's signature cannot be decoded.
    pub fn finish(mut self) -> Result<BlockReport, DecodeError> {
        if self.lines_left() > 0 {
            self.faults.push(Fault::LineMissing { line: self.lines });
            self.stored.stop();
        }
        self.metarecords();
        let (root, level) = self.close();
        if root != self.sealed_root(root)? {
            self.faults.push(Fault::Root);
        }
        if let Some(at) = self.stored.misplaced() {
            self.faults.push(Fault::Order { at });
        }
        let last_leaf = self.leaves.last();
        Ok(BlockReport {
            root,
            level,
            last_leaf,
            faults: self.faults,
        })
    }

    fn algorithm(&self) -> Algorithm {
        self.block.header.algorithm
    }

    /// Number of leaves so far.
    fn count(&self) -> u64 {
        self.forest.count() + self.new_leaves.len() as u64
    }

    fn record_of_line(&mut self, record: &Imprint) {
        self.metarecords();
        let fault = Fault::Line {
            line: self.lines,
            record: self.count(),
        };
        let trusted = self.compare_record(record, fault);
        self.insert(Kind::Line, &trusted);
        self.lines += 1;
    }

    /// Takes the metarecords that come before the next line.
    fn metarecords(&mut self) {
        while let Some(metarecord) = self.stored.metarecord(self.count()) {
            let record = hash(self.algorithm(), &[metarecord.bytes]);
            let fault = Fault::Metarecord {
                record: self.count(),
            };
            let trusted = self.compare_record(&record, fault);
            self.insert(Kind::Metarecord, &trusted);
        }
    }

    /// The stored record hash where there is one, else the computed one.
    fn compare_record(&mut self, computed: &Imprint, fault: Fault) -> Imprint {
        let Some(stored) = self.stored.record_hash() else {
            return *computed;
        };
        if stored == computed.as_bytes() {
            return *computed;
        }
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
        Imprint::from_bytes(stored)
            .ok()
            .filter(|stored| stored.algorithm() == computed.algorithm())
            .unwrap_or(*computed)
    }

    fn insert(&mut self, kind: Kind, record: &Imprint) {
        let leaf = self.leaves.push(kind, record);
        if self.block.has_tree_hashes() {
            self.compare_tree(kind, leaf);
            return;
        }
        self.new_leaves.push(leaf);
        if self.new_leaves.len() == AT_ONCE {
            self.forest.extend(&mut self.batch, &mut self.new_leaves);
        }
    }

    fn compare_tree(&mut self, kind: Kind, leaf: Imprint) {
        let line = (kind == Kind::Line).then_some(self.lines);
        let fault = Fault::TreeHash {
            record: self.forest.count(),
            line,
        };
        let Self { forest, stored, .. } = self;
        let mut fits = true;
        forest.push(leaf, |node| fits &= stored.tree_hash_is(node));
        self.tree_fault_unless(fits, fault);
    }

    /// The root over what has come, which may be nothing if all lines are missing.
    fn close(&mut self) -> (Imprint, u8) {
        self.forest.extend(&mut self.batch, &mut self.new_leaves);
        let Self { forest, stored, .. } = self;
        let mut fits = true;
        let root = forest.close(|node| {
            // The oldest writers leave out the final merge.
            fits &= stored.is_exhausted() || stored.tree_hash_is(node);
        });
        let last = self.forest.count().saturating_sub(1);
        self.tree_fault_unless(
            fits,
            Fault::TreeHash {
                record: last,
                line: None,
            },
        );
        root.unwrap_or_else(|| (Imprint::zero(self.algorithm()), 0))
    }

    fn tree_fault_unless(&mut self, fits: bool, fault: Fault) {
        if !fits && !self.tree_differs {
            self.tree_differs = true;
            self.faults.push(fault);
        }
    }

    fn sealed_root(&self, computed: Imprint) -> Result<Imprint, DecodeError> {
        match self.block.seal.seal {
            Seal::Signature(signature) => signed_root(signature),
            Seal::Unsigned { root, .. } => Ok(root),
            // Nothing is compared with a token that nothing here can verify.
            Seal::Rfc3161(_) => Ok(computed),
        }
    }
}

/// A walk along the stored elements of a block, in step with its records. At
/// the first element out of order it stops, and nothing more is compared.
#[derive(Debug)]
struct StoredElements<'a> {
    rest: Elements<'a>,
    next: Option<Element<'a>>,
    /// What `next` says if it is one. Read once: it may be long, and far away.
    next_metarecord: Option<Metarecord<'a>>,
    records: bool,
    tree: bool,
    misplaced: Option<usize>,
}

impl<'a> StoredElements<'a> {
    fn new(block: &Block<'a>) -> Self {
        let mut stored = Self {
            rest: block.elements(),
            next: None,
            next_metarecord: None,
            records: block.has_record_hashes(),
            tree: block.has_tree_hashes(),
            misplaced: None,
        };
        stored.advance();
        stored
    }

    fn advance(&mut self) {
        self.next = self.rest.next();
        let metarecord = self.next.filter(|next| next.tag == tag::METARECORD);
        self.next_metarecord = metarecord.and_then(|next| Metarecord::decode(&next).ok());
    }

    /// The metarecord that is leaf `index`, if that leaf is one.
    fn metarecord(&mut self, index: u64) -> Option<Metarecord<'a>> {
        let metarecord = self.next_metarecord.filter(|it| it.index == index)?;
        self.advance();
        Some(metarecord)
    }

    fn record_hash(&mut self) -> Option<&'a [u8]> {
        if self.records {
            self.take(tag::RECORD_HASH)
        } else {
            None
        }
    }

    fn tree_hash_is(&mut self, node: &Imprint) -> bool {
        let stored = if self.tree {
            self.take(tag::TREE_HASH)
        } else {
            None
        };
        stored.is_none_or(|stored| stored == node.as_bytes())
    }

    fn take(&mut self, tag: Tag) -> Option<&'a [u8]> {
        let next = self.next?;
        if next.tag != tag {
            self.misplaced = Some(next.at);
            self.stop();
            return None;
        }
        self.advance();
        Some(next.value)
    }

    fn is_exhausted(&self) -> bool {
        self.next.is_none()
    }

    /// Compares nothing any more.
    fn stop(&mut self) {
        (self.next, self.next_metarecord) = (None, None);
    }

    /// Position of the first element out of order, or of one left over.
    fn misplaced(&self) -> Option<usize> {
        self.misplaced.or(self.next.map(|left| left.at))
    }
}
