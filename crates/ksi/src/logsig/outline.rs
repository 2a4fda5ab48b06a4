//! A block's tree with its lower levels left out: a byte a line or so, from which the
//! path of any line is had with the 64 records around it.
//!
//! ```text
//! | algorithm:1 | IV length:4 | IV | previous leaf: imprint | records:8 |
//! | metarecords:4 | for each: record:8 | length:4 | bytes |
//! | for each 64 records: the node over them, the last leaf of them: digests |
//! | for each bit of the rest, lowest first: the subtree of so many records: digest |
//! ```
//! It is this software's own, and in no log signature: whoever keeps outlines makes
//! them of those. What they lead to is compared with what was signed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{
    hashing::Kind,
    levels::Levels,
    proof::{BlockTree, RecordChain, record_of_line},
    reader::Block,
};
use crate::{
    hash::{Algorithm, Batch, Imprint},
    tree::level_for,
};

/// Records whose tree is left out but for its root.
const GROUP: usize = 1 << SLOT;
const SLOT: usize = 6;

/// What is kept of one block's tree.
#[derive(Clone, Debug)]
pub struct Outline {
    algorithm: Algorithm,
    iv: Box<[u8]>,
    previous_leaf: Imprint,
    records: usize,
    /// By the number of their record.
    metarecords: BTreeMap<usize, Vec<u8>>,
    /// That of each whole group.
    last_leaves: Vec<Imprint>,
    /// From [`SLOT`] on whole; below it, the subtrees of the last group, if that is not.
    levels: Levels,
}

impl Outline {
    /// That of a block which stores hashes of its records or of its tree. `None` if it
    /// stores neither, or one that does not stand where it belongs.
    #[must_use]
    pub fn of_stored(block: &Block<'_>) -> Option<Self> {
        let tree = BlockTree::of_stored(block)?;
        let header = &block.header;
        let mut levels = Levels::new(header.algorithm);
        for slot in 0..SLOT {
            if let Some(node) = tree.levels().subtree(slot) {
                levels.push(slot, *node);
            }
        }
        for node in tree.levels().nodes(SLOT) {
            levels.push(SLOT, *node);
        }
        let (groups, _) = tree.leaves().as_chunks::<GROUP>();
        let mut outline = Self {
            algorithm: header.algorithm,
            iv: header.iv.into(),
            previous_leaf: header.previous_leaf,
            records: tree.leaves().len(),
            metarecords: tree.metarecords().clone(),
            last_leaves: groups.iter().map(|group| group[GROUP - 1]).collect(),
            levels,
        };
        outline.grow();
        Some(outline)
    }

    fn grow(&mut self) {
        self.levels.grow(SLOT, &mut Batch::new(self.algorithm));
    }

    /// The root and its level, or `None` without any record.
    #[must_use]
    pub fn root(&self) -> Option<(Imprint, u8)> {
        Some((self.levels.root()?, level_for(self.records as u64)))
    }

    /// Which lines of the block, counted from 0, [`Outline::chain`] needs for `line`;
    /// at most 64. `None` if the block has no such line.
    #[must_use]
    pub fn lines_around(&self, line: u64) -> Option<Range<u64>> {
        let group = self.group(self.record(line)?);
        let lines_before = |record| (record - self.metarecords.range(..record).count()) as u64;
        Some(lines_before(group.start)..lines_before(group.end))
    }

    /// The path of `line`, given the lines around it. What it leads to is for the caller
    /// to compare with [`Outline::root`], and that with what was signed. `None` if the
    /// block has no such line, or there are too few around it.
    #[must_use]
    pub fn chain<'l>(
        &self,
        line: u64,
        around: impl IntoIterator<Item = &'l [u8]>,
    ) -> Option<RecordChain> {
        let record = self.record(line)?;
        let group = self.group(record);
        let mut batch = Batch::new(self.algorithm);
        for line in around {
            batch.push(&[line]);
        }
        let hashes: Vec<Imprint> = batch.drain().collect();
        let before = match group.start.checked_sub(1) {
            Some(before) => &self.last_leaves[before / GROUP],
            None => &self.previous_leaf,
        };
        let tree = self.tree(&group, *before, hashes)?;
        let index = record - group.start;
        let mut steps = Vec::new();
        let mut slot = tree.steps_from(index, &mut steps);
        if slot == SLOT {
            let group = group.start / GROUP;
            slot = self.levels.steps_within_subtree(SLOT, group, &mut steps);
        }
        self.levels.steps_across_subtrees(slot, &mut steps);
        RecordChain::new(tree.record_hash(index), None, steps).ok()
    }

    /// The tree over a group alone, whose lines have these hashes.
    fn tree(
        &self,
        group: &Range<usize>,
        before: Imprint,
        hashes: Vec<Imprint>,
    ) -> Option<BlockTree> {
        let mut tree = BlockTree::new(self.algorithm, &self.iv, before);
        let mut hashes = hashes.into_iter();
        for record in group.clone() {
            match self.metarecords.get(&record) {
                Some(bytes) => tree.insert_metarecord(bytes.clone()),
                None => tree.insert(Kind::Line, hashes.next()?),
            }
        }
        tree.grow();
        Some(tree)
    }

    fn record(&self, line: u64) -> Option<usize> {
        let record = record_of_line(self.metarecords.keys(), line);
        let record = usize::try_from(record).ok()?;
        (record < self.records).then_some(record)
    }

    /// The records that are a group with this one.
    fn group(&self, record: usize) -> Range<usize> {
        let start = record / GROUP * GROUP;
        start..self.records.min(start + GROUP)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.algorithm.id()];
        put_long(&mut bytes, &self.iv);
        bytes.extend(self.previous_leaf.as_bytes());
        bytes.extend((self.records as u64).to_be_bytes());
        // Each takes a record, and those fit into a file.
        bytes.extend((self.metarecords.len() as u32).to_be_bytes());
        for (record, metarecord) in &self.metarecords {
            bytes.extend((*record as u64).to_be_bytes());
            put_long(&mut bytes, metarecord);
        }
        for (node, last_leaf) in self.levels.nodes(SLOT).iter().zip(&self.last_leaves) {
            bytes.extend(node.digest());
            bytes.extend(last_leaf.digest());
        }
        for node in (0..SLOT).filter_map(|slot| self.levels.subtree(slot)) {
            bytes.extend(node.digest());
        }
        bytes
    }

    /// Reads what [`Outline::encode`] has written; `None` if it is anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&id, mut rest) = bytes.split_first()?;
        let rest = &mut rest;
        let algorithm = Algorithm::from_id(id)?;
        let iv = take_long(rest)?.into();
        let previous = Algorithm::from_id(*rest.first()?)?;
        let previous_leaf = Imprint::from_bytes(take(rest, 1 + previous.digest_len())?).ok()?;
        let records = take_number(rest)?;
        let mut metarecords = BTreeMap::new();
        for _ in 0..u32::from_be_bytes(take(rest, 4)?.try_into().ok()?) {
            let record = take_number(rest)?;
            let last = metarecords
                .last_key_value()
                .map(|(last, _): (&usize, &Vec<u8>)| *last);
            if record >= records || last >= Some(record) {
                return None;
            }
            metarecords.insert(record, take_long(rest)?.to_vec());
        }
        let (mut levels, mut last_leaves) = (Levels::new(algorithm), Vec::new());
        let mut digest = || Imprint::new(algorithm, take(rest, algorithm.digest_len())?);
        for _ in 0..records / GROUP {
            levels.push(SLOT, digest()?);
            last_leaves.push(digest()?);
        }
        for slot in (0..SLOT).filter(|slot| records >> slot & 1 == 1) {
            levels.push(slot, digest()?);
        }
        let mut outline = Self {
            algorithm,
            iv,
            previous_leaf,
            records,
            metarecords,
            last_leaves,
            levels,
        };
        outline.grow();
        rest.is_empty().then_some(outline)
    }
}

fn put_long(bytes: &mut Vec<u8>, part: &[u8]) {
    // Elements of a log signature are far shorter than 4 GiB.
    bytes.extend((part.len() as u32).to_be_bytes());
    bytes.extend(part);
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (part, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(part)
}

fn take_number(rest: &mut &[u8]) -> Option<usize> {
    let number = u64::from_be_bytes(take(rest, 8)?.try_into().ok()?);
    usize::try_from(number).ok()
}

fn take_long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(take(rest, 4)?.try_into().ok()?);
    take(rest, usize::try_from(length).ok()?)
}
