//! Writing blocks.

use super::{
    hashing::{Forest, Kind, Leaves},
    reader::encode_metarecord,
    tag,
};
use crate::{
    error::EncodeError,
    hash::{Algorithm, Batch, Imprint, hash},
    signature::Signature,
    tlv::{Element, Tag, Writer},
};
use thiserror::Error;

/// Why a block cannot be built; nothing was added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The IV must be as long as the digest, so that a mask cannot be guessed.
    #[error("an IV of {found} bytes instead of {expected}")]
    IvLength {
        /// The length wanted, in bytes.
        expected: usize,
        /// The length given, in bytes.
        found: usize,
    },
    /// A record hash was made with another algorithm than the block's.
    #[error("a record hash by {found} in a block of {expected}")]
    Algorithm {
        /// The block's.
        expected: Algorithm,
        /// The record's.
        found: Algorithm,
    },
    /// A block without any record has no root to sign.
    #[error("no record in the block")]
    Empty,
    /// A metarecord's key or value is too long.
    #[error(transparent)]
    TooLong(#[from] EncodeError),
}

impl BuildError {
    pub(super) fn unless_by(expected: Algorithm, record: &Imprint) -> Result<(), Self> {
        let found = record.algorithm();
        if found == expected {
            Ok(())
        } else {
            Err(Self::Algorithm { expected, found })
        }
    }
}

/// The optional hashes that a block carries beside its metarecords. They are
/// redundant: without them an alteration is noticed, but only the block named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredHashes {
    /// Each record's hash (0902): names an altered line. 37 bytes per record
    /// with SHA-256.
    pub records: bool,
    /// All nodes of the tree (0903). 74 bytes per record with SHA-256.
    pub tree: bool,
}

/// A block being written.
///
/// ```
/// use pitser_ksi::{hash::{Algorithm, Imprint}, logsig::BlockBuilder};
/// let first = Imprint::zero(Algorithm::Sha256);
/// let mut block = BlockBuilder::new(Algorithm::Sha256, &[0xaa; 32], first).unwrap();
/// block.record_line(b"Log record 001");
/// block.metarecord("com.guardtime.blockCloseReason", "Block closed due to file closure.").unwrap();
/// let closed = block.close().unwrap();
/// assert_eq!((closed.count, closed.level), (2, 2));
/// ```
#[derive(Clone, Debug)]
pub struct BlockBuilder {
    leaves: Leaves,
    forest: Forest,
    stored: StoredHashes,
    bytes: Vec<u8>,
}

impl BlockBuilder {
    /// An empty block without stored hashes; see [`BlockBuilder::storing`].
    ///
    /// # Errors
    /// [`BuildError::IvLength`].
    pub fn new(
        algorithm: Algorithm,
        iv: &[u8],
        previous_leaf: Imprint,
    ) -> Result<Self, BuildError> {
        Self::storing(StoredHashes::default(), algorithm, iv, previous_leaf)
    }

    /// An empty block that follows the leaf `previous_leaf`, which is
    /// [`Imprint::zero`] for the first block of all. `iv` is random, as long as
    /// the digest, and new for each block.
    ///
    /// # Errors
    /// [`BuildError::IvLength`].
    pub fn storing(
        stored: StoredHashes,
        algorithm: Algorithm,
        iv: &[u8],
        previous_leaf: Imprint,
    ) -> Result<Self, BuildError> {
        let (expected, found) = (algorithm.digest_len(), iv.len());
        if found != expected {
            return Err(BuildError::IvLength { expected, found });
        }
        let bytes = bounded(|w| {
            w.nested(tag::HEADER, |w| {
                w.element(1, &[algorithm.id()])
                    .element(2, iv)
                    .imprint(3, &previous_leaf)
            })
        });
        Ok(Self {
            leaves: Leaves::new(algorithm, iv, previous_leaf),
            forest: Forest::new(algorithm),
            stored,
            bytes,
        })
    }

    /// Adds a line, given without its line end.
    pub fn record_line(&mut self, line: &[u8]) {
        let record = hash(self.algorithm(), &[line]);
        self.insert(Kind::Line, &record);
    }

    /// Adds lines until the block has `full` records or there are no more; tells
    /// how many. Faster than [`BlockBuilder::record_line`] one by one.
    pub fn record_lines<'l>(
        &mut self,
        lines: &mut impl Iterator<Item = &'l [u8]>,
        full: u64,
    ) -> u64 {
        let before = self.count();
        let mut batch = Batch::new(self.algorithm());
        loop {
            let room = full.saturating_sub(self.count()).min(AT_ONCE);
            for line in (0..room).map_while(|_| lines.next()) {
                batch.push(&[line]);
            }
            if batch.is_empty() {
                return self.count() - before;
            }
            for record in batch.drain() {
                self.insert(Kind::Line, &record);
            }
        }
    }

    /// Adds a line by its hash.
    ///
    /// # Errors
    /// [`BuildError::Algorithm`] if it is not by the block's algorithm.
    pub fn record(&mut self, record: Imprint) -> Result<(), BuildError> {
        BuildError::unless_by(self.algorithm(), &record)?;
        self.insert(Kind::Line, &record);
        Ok(())
    }

    /// Adds a metarecord: a leaf that is stored in the block and has no line.
    ///
    /// # Errors
    /// [`BuildError::TooLong`] beyond 65535 bytes.
    pub fn metarecord(&mut self, key: &str, value: &str) -> Result<(), BuildError> {
        let encoded = encode_metarecord(self.count(), key, value)?;
        self.bytes.extend(&encoded);
        let record = hash(self.algorithm(), &[&encoded]);
        self.insert(Kind::Metarecord, &record);
        Ok(())
    }

    /// Number of records so far, metarecords included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.forest.count()
    }

    /// The leaf made last; before the first record that of the previous block.
    #[must_use]
    pub fn last_leaf(&self) -> Imprint {
        self.leaves.last()
    }

    /// The block's algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.leaves.algorithm()
    }

    /// Ends the block.
    ///
    /// # Errors
    /// [`BuildError::Empty`] without any record.
    pub fn close(self) -> Result<ClosedBlock, BuildError> {
        let Self {
            leaves,
            forest,
            stored,
            mut bytes,
        } = self;
        let (root, level) = forest
            .close(|parent| {
                if stored.tree {
                    push_imprint(&mut bytes, tag::TREE_HASH, parent);
                }
            })
            .ok_or(BuildError::Empty)?;
        Ok(ClosedBlock {
            bytes,
            count: forest.count(),
            root,
            level,
            last_leaf: leaves.last(),
        })
    }

    fn insert(&mut self, kind: Kind, record: &Imprint) {
        if self.stored.records {
            push_imprint(&mut self.bytes, tag::RECORD_HASH, record);
        }
        let leaf = self.leaves.push(kind, record);
        let (bytes, tree_hashes) = (&mut self.bytes, self.stored.tree);
        self.forest.push(leaf, |node| {
            if tree_hashes {
                push_imprint(bytes, tag::TREE_HASH, node);
            }
        });
    }
}

/// Lines that are hashed together.
const AT_ONCE: u64 = 512;

/// A block that is complete but for its seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedBlock {
    /// The block from its 0901 on, up to but without the 0904.
    pub bytes: Vec<u8>,
    /// Number of records, metarecords included; at least 1.
    pub count: u64,
    /// Root of the tree: what is signed.
    pub root: Imprint,
    /// Level at which the root is signed.
    pub level: u8,
    /// What the next block's header refers to.
    pub last_leaf: Imprint,
}

impl ClosedBlock {
    /// The 0904 that says the block is not signed, and why if an error is given.
    ///
    /// # Errors
    /// If the text does not fit into an element.
    pub fn unsigned(&self, error: Option<&str>) -> Result<Vec<u8>, EncodeError> {
        encode_unsigned(self.count, &self.root, error)
    }

    /// The 0904 that holds `signature`, the bytes of an 0800 over the root.
    ///
    /// # Errors
    /// If the signature does not fit into an element.
    pub fn signed(&self, signature: &[u8]) -> Result<Vec<u8>, EncodeError> {
        encode_signed(self.count, signature)
    }
}

/// The 0904 of a block of `count` records with `root` that is not signed.
///
/// # Errors
/// If the text does not fit into an element.
pub fn encode_unsigned(
    count: u64,
    root: &Imprint,
    error: Option<&str>,
) -> Result<Vec<u8>, EncodeError> {
    let mut writer = Writer::new();
    writer.nested(tag::SEAL, |w| {
        w.integer(1, count).nested(2, |w| {
            w.imprint(1, root).each(error, |w, text| {
                w.string(2, text);
            })
        })
    });
    writer.finish()
}

/// The 0904 of a block of `count` records that is sealed by `signature`, the
/// bytes of an 0800 over its root.
///
/// # Errors
/// If the signature does not fit into an element.
pub fn encode_signed(count: u64, signature: &[u8]) -> Result<Vec<u8>, EncodeError> {
    debug_assert!(
        Element::expect(signature, Signature::TAG).is_ok(),
        "not an 0800"
    );
    let mut writer = Writer::new();
    writer.nested(tag::SEAL, |w| {
        w.integer(1, count)
            .nested(tag::KSI_SIGNATURE, |w| w.raw(signature))
    });
    writer.finish()
}

/// What `write` writes, all of it of a small bounded length.
pub(super) fn bounded(write: impl FnOnce(&mut Writer) -> &mut Writer) -> Vec<u8> {
    let mut writer = Writer::new();
    write(&mut writer);
    writer
        .finish()
        .expect("imprints, seeds and integers fit into an element")
}

/// Appends a 0902 or 0903; the tags of blocks always take the long header.
fn push_imprint(bytes: &mut Vec<u8>, tag: Tag, imprint: &Imprint) {
    let value = imprint.as_bytes();
    let [tag_high, tag_low] = tag.to_be_bytes();
    // An imprint has at most 65 bytes.
    bytes.extend([0x80 | tag_high, tag_low, 0, value.len() as u8]);
    bytes.extend(value);
}
