//! Reading blocks, one at a time.
//!
//! The reader is stricter than TLV demands: elements of a block carry no flags,
//! since nothing else would notice that one was set, and stored hashes come for
//! all records or for none. Unknown elements are ignored if marked noncritical.

use super::{Format, MAGIC_LEN, signed::signed_root, tag};
use crate::{
    error::{DecodeError, DecodeErrorKind, EncodeError},
    hash::{Algorithm, Imprint},
    signature::Signature,
    tlv::{self, Element, Reader, Writer},
};

/// Iterates over the blocks of a log signature, or of the `LOG12BLK` part of
/// one; ends after the first error. Memory does not depend on the file.
#[derive(Clone, Debug)]
pub struct BlockReader<'a> {
    format: Format,
    file: &'a [u8],
    at: usize,
}

impl<'a> BlockReader<'a> {
    /// Reads `file` from its magic on.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Magic`] unless it starts as `LOGSIG12`, `LOGSIG11`
    /// or `LOG12BLK`.
    pub fn new(file: &'a [u8]) -> Result<Self, DecodeError> {
        let known = [Format::LogSignature, Format::LogSignature11, Format::Blocks];
        let format = Format::of(file)
            .filter(|format| known.contains(format))
            .ok_or(DecodeError::new(DecodeErrorKind::Magic, 0))?;
        Ok(Self {
            format,
            file,
            at: MAGIC_LEN,
        })
    }

    /// What the magic says.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Position of the next block, in bytes.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    fn block(&mut self) -> Result<Block<'a>, DecodeError> {
        let truncated = || DecodeError::new(DecodeErrorKind::Truncated, self.file.len());
        let block = read_block(&self.file[self.at..], self.at)?.ok_or_else(truncated)?;
        self.at += block.bytes.len();
        Ok(block)
    }
}

impl<'a> Iterator for BlockReader<'a> {
    type Item = Result<Block<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.file.len() {
            return None;
        }
        let block = self.block();
        if block.is_err() {
            self.at = self.file.len();
        }
        Some(block)
    }
}

impl core::iter::FusedIterator for BlockReader<'_> {}

/// Reads the block that `bytes` starts with, or returns `None` if more bytes
/// are needed. `at` is the position of `bytes` in the file, for error messages.
///
/// # Errors
/// What is malformed, and where.
pub fn read_block(bytes: &[u8], at: usize) -> Result<Option<Block<'_>>, DecodeError> {
    let mut elements = Whole { rest: bytes, at };
    let Some(first) = elements.next() else {
        return Ok(None);
    };
    let header = Header::decode(&first)?;
    let mut stored = Stored::default();
    loop {
        let Some(element) = elements.next() else {
            return Ok(None);
        };
        if element.tag == tag::SEAL {
            let seal = SealRecord::decode(&element)?;
            stored.check(seal.count, &element)?;
            let length = element.at + element.raw.len() - at;
            return Ok(Some(Block {
                header,
                seal,
                at,
                bytes: &bytes[..length],
                elements: &bytes[first.raw.len()..element.at - at],
                stored,
            }));
        }
        stored.take_in(&element)?;
    }
}

/// A block as it stands in the file.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// What its leaves start from.
    pub header: Header<'a>,
    /// Its record count and signature.
    pub seal: SealRecord<'a>,
    /// Position of its header in the file, in bytes.
    pub at: usize,
    /// The whole block, 0901 to 0904.
    pub bytes: &'a [u8],
    /// What stands between header and seal.
    elements: &'a [u8],
    stored: Stored,
}

impl<'a> Block<'a> {
    /// Number of log lines the block covers.
    #[must_use]
    pub fn line_count(&self) -> u64 {
        self.seal.count - self.stored.metarecords
    }

    /// Whether record hashes are stored, so that an altered line can be named.
    #[must_use]
    pub fn has_record_hashes(&self) -> bool {
        self.stored.records > 0
    }

    /// Whether tree hashes are stored.
    #[must_use]
    pub fn has_tree_hashes(&self) -> bool {
        self.stored.nodes > 0
    }

    /// The block without its seal: 0901 up to but without the 0904.
    #[must_use]
    pub fn unsealed_bytes(&self) -> &'a [u8] {
        &self.bytes[..self.bytes.len() - self.seal.bytes.len()]
    }

    /// The metarecords, in the order of their index.
    pub fn metarecords(&self) -> impl Iterator<Item = Metarecord<'a>> {
        self.elements()
            .filter(|element| element.tag == tag::METARECORD)
            .filter_map(|element| Metarecord::decode(&element).ok())
    }

    /// Metarecords and stored hashes, in order.
    pub(super) fn elements(&self) -> Elements<'a> {
        let at = self.seal.at - self.elements.len();
        Elements(Reader::at(self.elements, at))
    }
}

/// Iterates over the elements between header and seal that have a meaning.
/// None of them can fail: [`read_block`] has seen them all.
#[derive(Clone, Debug)]
pub(super) struct Elements<'a>(Reader<'a>);

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let known = [tag::RECORD_HASH, tag::TREE_HASH, tag::METARECORD];
        self.0
            .by_ref()
            .map_while(Result::ok)
            .find(|element| known.contains(&element.tag))
    }
}

/// A block's header, 0901.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The algorithm of all hashes in the block.
    pub algorithm: Algorithm,
    /// The random seed of the masks; secret from whoever must not guess lines.
    pub iv: &'a [u8],
    /// The last leaf of the previous block, a zero imprint in the first one.
    pub previous_leaf: Imprint,
}

impl<'a> Header<'a> {
    fn decode(element: &Element<'a>) -> Result<Self, DecodeError> {
        expect(element, tag::HEADER)?;
        let (mut algorithm, mut iv, mut previous_leaf) = (None, None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut algorithm, algorithm_id(&child)?)?,
                2 => child.fill(&mut iv, child.value)?,
                3 => child.fill(&mut previous_leaf, child.imprint()?)?,
                _ => child.ignore()?,
            }
            unflagged(&child, &[1, 2, 3])?;
        }
        Ok(Self {
            algorithm: element.require(algorithm, 1)?,
            iv: element.require(iv, 2)?,
            previous_leaf: element.require(previous_leaf, 3)?,
        })
    }
}

/// A leaf without a line, 0911: `{ 01 index  02 { 01 key  02 value } }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metarecord<'a> {
    /// Position of the leaf in the block, from 0.
    pub index: u64,
    /// What the metarecord is about, such as [`super::BLOCK_CLOSE_REASON`].
    pub key: &'a str,
    /// What it says.
    pub value: &'a str,
    /// The whole element: what the record hash is taken of.
    pub bytes: &'a [u8],
}

impl<'a> Metarecord<'a> {
    pub(super) fn decode(element: &Element<'a>) -> Result<Self, DecodeError> {
        expect(element, tag::METARECORD)?;
        let (mut index, mut text) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut index, child.integer()?)?,
                2 => child.fill(&mut text, Self::decode_text(&child)?)?,
                _ => child.ignore()?,
            }
        }
        let (key, value) = element.require(text, 2)?;
        Ok(Self {
            index: element.require(index, 1)?,
            key,
            value,
            bytes: element.raw,
        })
    }

    fn decode_text(element: &Element<'a>) -> Result<(&'a str, &'a str), DecodeError> {
        let (mut key, mut value) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut key, child.string()?)?,
                2 => child.fill(&mut value, child.string()?)?,
                _ => child.ignore()?,
            }
        }
        Ok((element.require(key, 1)?, element.require(value, 2)?))
    }
}

pub(super) fn encode_metarecord(
    index: u64,
    key: &str,
    value: &str,
) -> Result<Vec<u8>, EncodeError> {
    let mut writer = Writer::new();
    writer.nested(tag::METARECORD, |w| {
        w.integer(1, index)
            .nested(2, |w| w.string(1, key).string(2, value))
    });
    writer.finish()
}

/// The end of a block, 0904.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealRecord<'a> {
    /// Number of records in the block, metarecords included; at least 1.
    pub count: u64,
    /// What seals it.
    pub seal: Seal<'a>,
    /// The whole element.
    pub bytes: &'a [u8],
    /// Its position in the file, in bytes.
    pub at: usize,
}

impl SealRecord<'_> {
    /// The root that is sealed; `None` for a token that is not read here.
    ///
    /// # Errors
    /// If the signature cannot be decoded; positions count from its first byte.
    pub fn root(&self) -> Result<Option<Imprint>, DecodeError> {
        match self.seal {
            Seal::Unsigned { root, .. } => Ok(Some(root)),
            Seal::Signature(signature) => signed_root(signature).map(Some),
            Seal::Rfc3161(_) => Ok(None),
        }
    }
}

/// Reads the seal, an 0904, that `bytes` of a `LOG12SIG` start with, or returns
/// `None` if more bytes are needed. `at` is the position of `bytes` in the file.
///
/// # Errors
/// What is malformed, and where.
pub fn read_seal(bytes: &[u8], at: usize) -> Result<Option<SealRecord<'_>>, DecodeError> {
    let mut elements = Whole { rest: bytes, at };
    let element = elements.next();
    element.as_ref().map(SealRecord::decode).transpose()
}

/// What seals a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal<'a> {
    /// The bytes of an 0800 over the block's root.
    Signature(&'a [u8]),
    /// An RFC 3161 token over the root: a legacy that is named, not verified.
    Rfc3161(&'a [u8]),
    /// The block is not signed yet.
    Unsigned {
        /// The root to be signed.
        root: Imprint,
        /// Why signing failed.
        error: Option<&'a str>,
    },
}

impl<'a> SealRecord<'a> {
    pub(super) fn decode(element: &Element<'a>) -> Result<Self, DecodeError> {
        expect(element, tag::SEAL)?;
        let (mut count, mut seal) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut count, child.integer()?)?,
                2 => child.fill(&mut seal, Seal::decode_unsigned(&child)?)?,
                tag::KSI_SIGNATURE => child.fill(&mut seal, Seal::Signature(signature(&child)?))?,
                tag::RFC3161 => child.fill(&mut seal, Seal::Rfc3161(child.value))?,
                _ => child.ignore()?,
            }
            unflagged(&child, &[1, 2, tag::KSI_SIGNATURE, tag::RFC3161])?;
        }
        let count = element.require(count, 1)?;
        if count == 0 {
            return Err(element.error(DecodeErrorKind::Range));
        }
        let seal = element.require(seal, tag::KSI_SIGNATURE)?;
        Ok(Self {
            count,
            seal,
            bytes: element.raw,
            at: element.at,
        })
    }
}

impl<'a> Seal<'a> {
    fn decode_unsigned(element: &Element<'a>) -> Result<Self, DecodeError> {
        let (mut root, mut error) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                1 => child.fill(&mut root, child.imprint()?)?,
                2 => child.fill(&mut error, child.string()?)?,
                _ => child.ignore()?,
            }
            unflagged(&child, &[1, 2])?;
        }
        Ok(Self::Unsigned {
            root: element.require(root, 1)?,
            error,
        })
    }
}

/// The 0800 that is all of a 0905.
pub(super) fn signature<'a>(element: &Element<'a>) -> Result<&'a [u8], DecodeError> {
    let mut children = element.children();
    let signature = children.element()?;
    expect(&signature, Signature::TAG)?;
    children.end()?;
    Ok(signature.raw)
}

/// Asserts that `element` is a `tag` without flags.
pub(super) fn expect(element: &Element<'_>, tag: tlv::Tag) -> Result<(), DecodeError> {
    if element.tag == tag {
        return unflagged(element, &[tag]);
    }
    Err(element.error(DecodeErrorKind::UnexpectedTag {
        expected: tag,
        found: element.tag,
    }))
}

/// Asserts that an element of a known tag has no flags.
pub(super) fn unflagged(element: &Element<'_>, known: &[tlv::Tag]) -> Result<(), DecodeError> {
    if known.contains(&element.tag) && (element.noncritical || element.forward) {
        return Err(element.error(DecodeErrorKind::Malformed("flags: none are allowed here")));
    }
    Ok(())
}

/// An algorithm id as log signatures write it: one octet, also for id 0.
fn algorithm_id(element: &Element<'_>) -> Result<Algorithm, DecodeError> {
    let id = match element.value {
        [] => 0,
        [id] => *id,
        _ => return Err(element.error(DecodeErrorKind::Range)),
    };
    Algorithm::from_id(id).ok_or_else(|| element.error(DecodeErrorKind::Algorithm(id)))
}

/// How many elements of each kind a block stores.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    records: u64,
    nodes: u64,
    metarecords: u64,
    /// One more than the index of the last metarecord.
    beyond_metarecords: u64,
}

impl Stored {
    fn take_in(&mut self, element: &Element<'_>) -> Result<(), DecodeError> {
        match element.tag {
            tag::RECORD_HASH => self.records += 1,
            tag::TREE_HASH => self.nodes += 1,
            tag::METARECORD => {
                let index = Metarecord::decode(element)?.index;
                if index < self.beyond_metarecords || index == u64::MAX {
                    return Err(element.error(DecodeErrorKind::Misplaced(tag::METARECORD)));
                }
                self.metarecords += 1;
                self.beyond_metarecords = index + 1;
            }
            _ => element.ignore()?,
        }
        unflagged(element, &[tag::RECORD_HASH, tag::TREE_HASH])
    }

    /// Asserts that `count` records can have stored this much.
    fn check(&self, count: u64, seal: &Element<'_>) -> Result<(), DecodeError> {
        let conflict = |tag| Err(seal.error(DecodeErrorKind::Conflict(tag)));
        // Complete subtrees over n leaves have 2n - 1 nodes each, and merging
        // the subtrees makes one less than there are of them.
        let subtrees = u64::from(count.count_ones());
        let merged = count.saturating_mul(2) - 1;
        let unmerged = merged - (subtrees - 1);
        if self.beyond_metarecords > count {
            return conflict(tag::METARECORD);
        }
        if self.records != 0 && self.records != count {
            return conflict(tag::RECORD_HASH);
        }
        if ![0, unmerged, merged].contains(&self.nodes) {
            return conflict(tag::TREE_HASH);
        }
        Ok(())
    }
}

/// Iterates over the elements of a buffer that may end in the middle of one.
struct Whole<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Whole<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let mut reader = Reader::at(self.rest, self.at);
        // The only way to fail is a lack of bytes.
        let element = reader.element().ok()?;
        self.rest = &self.rest[element.raw.len()..];
        self.at = reader.position();
        Some(element)
    }
}
