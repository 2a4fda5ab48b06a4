//! The path from one record to the sealed root of its block (0907).
//!
//! ```text
//! 0907  01 record hash
//!       0911 metarecord             if the record is one
//!       then step by step, from the leaf to the root:
//!       02 { 01 correction  02 sibling }   the running hash is the left child
//!       03 { 01 correction  02 sibling }   it is the right child
//! ```
//!
//! A step takes the level from `l` to `l + correction + 1`, which goes into the
//! hash; a correction of 0 is left out. The first sibling is the mask.

use super::{
    builder::BuildError,
    hashing::{Kind, Leaves},
    levels::Levels,
    lines::Lines,
    reader::{Block, Metarecord, encode_metarecord, expect, unflagged},
    tag,
};
use crate::{
    chain::{self, LevelOverflow, Link, Sibling, Side},
    error::{DecodeError, DecodeErrorKind, EncodeError},
    hash::{Algorithm, Batch, Imprint, hash},
    tlv::{Element, Tag, Writer},
    tree::level_for,
};
use std::collections::BTreeMap;
use thiserror::Error;

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which child of the parent the running hash is.
    pub side: Side,
    /// How many levels are skipped.
    pub correction: u8,
    /// The other child.
    pub sibling: Imprint,
}

/// The path from a record to the root of its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChain {
    record: Imprint,
    metarecord: Option<Vec<u8>>,
    steps: Vec<Step>,
    root: Imprint,
    level: u8,
}

/// Why steps make no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The first step does not join the record with its mask, at level 1 and
    /// on the side that tells lines from metarecords. Without this rule, an
    /// inner node could be passed off as a line.
    #[error("the first step does not make a leaf")]
    NoLeaf,
    /// The levels pass 255.
    #[error(transparent)]
    LevelOverflow(#[from] LevelOverflow),
}

impl RecordChain {
    /// Whether this record stands before the other one in a block that both are of: seen
    /// from the root, it turns to the left first.
    #[must_use]
    pub fn comes_before(&self, other: &Self) -> bool {
        let turns = |chain: &Self| -> Vec<bool> {
            let steps = chain.steps.iter().rev();
            steps.map(|step| step.side == Side::Right).collect()
        };
        turns(self) < turns(other)
    }

    /// The longest path accepted: levels rise with each step and end at 255.
    pub const MAX_STEPS: usize = 255;

    /// A path from `record` along `steps`; for a metarecord also its bytes.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn new(
        record: Imprint,
        metarecord: Option<Vec<u8>>,
        steps: Vec<Step>,
    ) -> Result<Self, ProofError> {
        let mask_side = if metarecord.is_some() {
            Side::Left
        } else {
            Side::Right
        };
        if !steps
            .first()
            .is_some_and(|step| step.correction == 0 && step.side == mask_side)
        {
            return Err(ProofError::NoLeaf);
        }
        let (root, level) = chain::climb(record.algorithm(), record, 0, &links(&steps))?;
        Ok(Self {
            record,
            metarecord,
            steps,
            root,
            level,
        })
    }

    /// Hash of the line, or of the metarecord.
    #[must_use]
    pub fn record(&self) -> Imprint {
        self.record
    }

    /// The metarecord's bytes, an 0911, if the record is one.
    #[must_use]
    pub fn metarecord(&self) -> Option<&[u8]> {
        self.metarecord.as_deref()
    }

    /// The steps, from the leaf to the root.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The steps as links of an aggregation chain that starts at level 0.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        links(&self.steps)
    }

    /// The root that the steps lead to, and its level. All of them hash by the
    /// algorithm of the record hash.
    #[must_use]
    pub fn root(&self) -> (Imprint, u8) {
        (self.root, self.level)
    }

    /// Whether this is the path of a line with these bytes.
    #[must_use]
    pub fn is_of_line(&self, line: &[u8]) -> bool {
        self.metarecord.is_none() && hash(self.record.algorithm(), &[line]) == self.record
    }

    /// The bytes of the 0907.
    ///
    /// # Errors
    /// If the path does not fit into an element.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::new();
        writer.nested(tag::RECORD_CHAIN, |w| {
            w.imprint(1, &self.record)
                .raw(self.metarecord().unwrap_or_default())
                .each(&self.steps, |w, step| {
                    w.nested(tag_of(step.side), |w| {
                        let correction = (step.correction > 0).then_some(step.correction.into());
                        w.optional_integer(1, correction).imprint(2, &step.sibling)
                    });
                })
        });
        writer.finish()
    }

    /// Reads an 0907.
    ///
    /// # Errors
    /// What is malformed, and where. A metarecord that does not have the hash
    /// stored with it is a [`DecodeErrorKind::Conflict`].
    pub fn decode(element: &Element<'_>) -> Result<Self, DecodeError> {
        expect(element, tag::RECORD_CHAIN)?;
        let (mut record, mut metarecord) = (None, None);
        let mut steps = Vec::new();
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut record, child.imprint()?)?,
                2 | 3 if steps.len() == Self::MAX_STEPS => {
                    return Err(child.error(DecodeErrorKind::TooMany(child.tag)));
                }
                2 | 3 => steps.push(Step::decode(&child)?),
                tag::METARECORD => {
                    Metarecord::decode(&child)?;
                    child.fill(&mut metarecord, child)?;
                }
                _ => child.ignore()?,
            }
            unflagged(&child, &[1, 2, 3])?;
        }
        let record: Imprint = element.require(record, 1)?;
        if let Some(metarecord) = metarecord
            && hash(record.algorithm(), &[metarecord.raw]) != record
        {
            return Err(metarecord.error(DecodeErrorKind::Conflict(tag::METARECORD)));
        }
        Self::new(
            record,
            metarecord.map(|element| element.raw.to_vec()),
            steps,
        )
        .map_err(|error| match error {
            ProofError::NoLeaf => element.error(DecodeErrorKind::Malformed(
                "path: its first step makes no leaf",
            )),
            ProofError::LevelOverflow(_) => element.error(DecodeErrorKind::Range),
        })
    }
}

impl Step {
    fn decode(element: &Element<'_>) -> Result<Self, DecodeError> {
        let (mut correction, mut sibling) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut correction, child.byte()?)?,
                2 => child.fill(&mut sibling, child.imprint()?)?,
                _ => child.ignore()?,
            }
            unflagged(&child, &[1, 2])?;
        }
        Ok(Self {
            side: if element.tag == tag_of(Side::Left) {
                Side::Left
            } else {
                Side::Right
            },
            correction: correction.unwrap_or(0),
            sibling: element.require(sibling, 2)?,
        })
    }
}

fn links(steps: &[Step]) -> Vec<Link> {
    let link = |step: &Step| Link {
        side: step.side,
        correction: step.correction,
        sibling: Sibling::Imprint(step.sibling),
    };
    steps.iter().map(link).collect()
}

fn tag_of(side: Side) -> Tag {
    match side {
        Side::Left => 2,
        Side::Right => 3,
    }
}

/// One block's whole tree, to take the paths of many records from it: O(log n)
/// each. Keeps about three imprints per record.
#[derive(Clone, Debug)]
pub struct BlockTree {
    /// Makes masks and leaves.
    masks: Leaves,
    previous_leaf: Imprint,
    /// None if only the tree over them is known.
    records: Vec<Imprint>,
    metarecords: BTreeMap<usize, Vec<u8>>,
    levels: Levels,
}

impl BlockTree {
    /// An empty tree that starts as the block with this header does.
    #[must_use]
    pub fn new(algorithm: Algorithm, iv: &[u8], previous_leaf: Imprint) -> Self {
        Self {
            masks: Leaves::new(algorithm, iv, previous_leaf),
            previous_leaf,
            records: Vec::new(),
            metarecords: BTreeMap::new(),
            levels: Levels::new(algorithm),
        }
    }

    /// The tree of `block` over its lines, of which [`Block::line_count`] are
    /// taken. Whether its root is the sealed one is for the caller to compare,
    /// or for [`super::verify_block`]. `None` if there are too few lines.
    pub fn of_block(block: &Block<'_>, lines: &mut Lines<'_>) -> Option<Self> {
        let header = &block.header;
        let mut tree = Self::new(header.algorithm, header.iv, header.previous_leaf);
        let mut batch = Batch::new(header.algorithm);
        for line in (0..block.line_count()).map_while(|_| lines.next()) {
            batch.push(&[line]);
        }
        let mut metarecords = block.metarecords().peekable();
        let mut records = batch.drain();
        for index in 0..block.seal.count {
            match metarecords.next_if(|metarecord| metarecord.index == index) {
                Some(metarecord) => tree.insert_metarecord(metarecord.bytes.to_vec()),
                None => tree.insert(Kind::Line, records.next()?),
            }
        }
        drop(records);
        tree.grow();
        Some(tree)
    }

    /// The tree of `block` as far as its stored hashes tell it: from its tree hashes
    /// nothing is computed, from its record hashes the leaves and all above. Whether
    /// they are what was signed, each path shows. `None` without stored hashes, or
    /// if one does not stand where it belongs.
    pub(super) fn of_stored(block: &Block<'_>) -> Option<Self> {
        let header = &block.header;
        let mut tree = Self::new(header.algorithm, header.iv, header.previous_leaf);
        let mut stored = block.elements().peekable();
        for index in 0..block.seal.count {
            let metarecord = stored.next_if(|element| element.tag == tag::METARECORD);
            if let Some(element) = metarecord {
                let metarecord = Metarecord::decode(&element).ok()?;
                if metarecord.index != index {
                    return None;
                }
                let at = usize::try_from(index).ok()?;
                tree.metarecords.insert(at, metarecord.bytes.to_vec());
            }
            let mut take = |wanted| {
                let element = stored.next_if(|element| element.tag == wanted)?;
                element
                    .imprint()
                    .ok()
                    .filter(|imprint| imprint.algorithm() == header.algorithm)
            };
            let record = if block.has_record_hashes() {
                Some(take(tag::RECORD_HASH)?)
            } else {
                None
            };
            if block.has_tree_hashes() {
                tree.levels.push(0, take(tag::TREE_HASH)?);
                for slot in 1..=tree.count().trailing_zeros() as usize {
                    tree.levels.push(slot, take(tag::TREE_HASH)?);
                }
            } else {
                let kind = match metarecord {
                    Some(_) => Kind::Metarecord,
                    None => Kind::Line,
                };
                tree.insert(kind, record?);
            }
        }
        tree.grow();
        Some(tree)
    }

    /// Adds a line, given without its line end.
    pub fn record_line(&mut self, line: &[u8]) {
        let record = hash(self.masks.algorithm(), &[line]);
        self.insert(Kind::Line, record);
        self.levels.grow_by_one();
    }

    /// Adds a line by its hash.
    ///
    /// # Errors
    /// [`BuildError::Algorithm`] if it is not by the block's algorithm.
    pub fn record(&mut self, record: Imprint) -> Result<(), BuildError> {
        BuildError::unless_by(self.masks.algorithm(), &record)?;
        self.insert(Kind::Line, record);
        self.levels.grow_by_one();
        Ok(())
    }

    /// Adds a metarecord.
    ///
    /// # Errors
    /// If it does not fit into an element.
    pub fn metarecord(&mut self, key: &str, value: &str) -> Result<(), EncodeError> {
        let encoded = encode_metarecord(self.count(), key, value)?;
        self.insert_metarecord(encoded);
        self.levels.grow_by_one();
        Ok(())
    }

    /// The block's algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.masks.algorithm()
    }

    /// Number of records, metarecords included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.leaves().len() as u64
    }

    pub(super) fn leaves(&self) -> &[Imprint] {
        self.levels.nodes(0)
    }

    /// The record that line `line` is, both counted from 0: metarecords are
    /// records without a line.
    #[must_use]
    pub fn record_of_line(&self, line: u64) -> u64 {
        record_of_line(self.metarecords.keys(), line)
    }

    /// The record that each line is, in order; see [`BlockTree::record_of_line`].
    pub(super) fn records_of_lines(&self) -> impl Iterator<Item = u64> {
        let of_line = |record: &usize| !self.metarecords.contains_key(record);
        (0..self.leaves().len())
            .filter(of_line)
            .map(|record| record as u64)
    }

    /// The root and its level, or `None` without any record.
    #[must_use]
    pub fn root(&self) -> Option<(Imprint, u8)> {
        Some((self.levels.root()?, level_for(self.count())))
    }

    /// The path of record `index`, counted from 0, metarecords included.
    #[must_use]
    pub fn chain(&self, index: u64) -> Option<RecordChain> {
        let record = *self.records.get(usize::try_from(index).ok()?)?;
        self.chain_from(index, record)
    }

    /// The path that starts from `record` where record `index` stands. It leads to
    /// the root only if that is the record's hash.
    pub(super) fn chain_from(&self, index: u64, record: Imprint) -> Option<RecordChain> {
        let index = usize::try_from(index)
            .ok()
            .filter(|&index| index < self.leaves().len())?;
        let mut steps = Vec::new();
        let slot = self.steps_from(index, &mut steps);
        self.levels.steps_across_subtrees(slot, &mut steps);
        let metarecord = self.metarecords.get(&index).cloned();
        Some(
            RecordChain::new(record, metarecord, steps)
                .expect("a tree over at most 2^64 records is less than 67 levels high"),
        )
    }

    pub(super) fn insert_metarecord(&mut self, encoded: Vec<u8>) {
        let record = hash(self.masks.algorithm(), &[&encoded]);
        self.metarecords.insert(self.records.len(), encoded);
        self.insert(Kind::Metarecord, record);
    }

    /// Adds the leaf alone: the subtrees that it completes are still to be grown.
    pub(super) fn insert(&mut self, kind: Kind, record: Imprint) {
        self.records.push(record);
        let leaf = self.masks.push(kind, &record);
        self.levels.push(0, leaf);
    }

    fn mask_step(&self, index: usize) -> Step {
        let previous = match index {
            0 => &self.previous_leaf,
            _ => &self.leaves()[index - 1],
        };
        let side = if self.metarecords.contains_key(&index) {
            Side::Left
        } else {
            Side::Right
        };
        Step {
            side,
            correction: 0,
            sibling: self.masks.mask_after(previous),
        }
    }

    /// The steps from record `index` to the root of the complete subtree with it;
    /// returns its slot.
    pub(super) fn steps_from(&self, index: usize, steps: &mut Vec<Step>) -> usize {
        steps.push(self.mask_step(index));
        self.levels.steps_within_subtree(0, index, steps)
    }

    /// Adds all parents that are missing.
    pub(super) fn grow(&mut self) {
        self.levels.grow(0, &mut Batch::new(self.masks.algorithm()));
    }

    /// The hash of record `index`, which was added as one.
    pub(super) fn record_hash(&self, index: usize) -> Imprint {
        self.records[index]
    }

    /// The nodes over the leaves.
    pub(super) fn levels(&self) -> &Levels {
        &self.levels
    }

    /// The metarecords, by the number of their record.
    pub(super) fn metarecords(&self) -> &BTreeMap<usize, Vec<u8>> {
        &self.metarecords
    }
}

/// The record that line `line` is, both counted from 0, given the numbers of the
/// records that are metarecords, ascending.
pub(super) fn record_of_line<'n>(metarecords: impl Iterator<Item = &'n usize>, line: u64) -> u64 {
    metarecords.fold(line, |record, &metarecord| {
        // Once one lies beyond the record, so do all others.
        record + u64::from(metarecord as u64 <= record)
    })
}
