//! Log signatures whose seals arrive later: `LOG12BLK` and `LOG12SIG`.
//!
//! ```text
//! LOG12BLK  blocks as in LOGSIG12, each with an unsigned marker in its 0904
//! LOG12SIG  0904 after 0904, in the order of the blocks they belong to
//! ```
//!
//! Integration copies each block and puts the seal of its count and root in
//! place of the marker. A block without one keeps its marker: it can still be
//! sealed later.

use super::{
    Format, MAGIC_LEN,
    reader::{Block, BlockReader, Seal, SealRecord},
};
use crate::{
    error::{DecodeError, DecodeErrorKind},
    hash::Imprint,
    tlv::Reader,
};
use core::iter::Peekable;
use thiserror::Error;

/// Iterates over the seals of a `LOG12SIG` file; ends after the first error.
#[derive(Clone, Debug)]
pub struct SealReader<'a> {
    elements: Reader<'a>,
}

impl<'a> SealReader<'a> {
    /// Reads `file` from its magic on.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Magic`] unless it starts as `LOG12SIG`.
    pub fn new(file: &'a [u8]) -> Result<Self, DecodeError> {
        match Format::of(file) {
            Some(Format::Seals) => Ok(Self {
                elements: Reader::at(&file[MAGIC_LEN..], MAGIC_LEN),
            }),
            _ => Err(DecodeError::new(DecodeErrorKind::Magic, 0)),
        }
    }
}

impl<'a> Iterator for SealReader<'a> {
    type Item = Result<SealRecord<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let seal = self
            .elements
            .next()?
            .and_then(|element| SealRecord::decode(&element));
        if seal.is_err() {
            self.elements = Reader::new(&[]);
        }
        Some(seal)
    }
}

/// Why the two parts cannot become one log signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IntegrationError {
    /// The part with the blocks is malformed.
    #[error("blocks: {0}")]
    Blocks(DecodeError),
    /// The part with the seals is malformed.
    #[error("seals: {0}")]
    Seals(DecodeError),
    /// A seal is of no block, or not of a block after that of the seal before it.
    #[error("the seal at byte {at} belongs to no block that is left")]
    StraySeal {
        /// Position in the part with the seals, in bytes.
        at: usize,
    },
}

/// Yields the blocks of a `LOG12BLK` with the seals of a `LOG12SIG`, one by one
/// and without copying. Complete only if it ends without an error.
#[derive(Clone, Debug)]
pub struct Integration<'a> {
    blocks: BlockReader<'a>,
    seals: Peekable<Rooted<'a>>,
}

/// Seals with the roots they are of: decoded once, however many blocks pass
/// before the one that a seal belongs to.
#[derive(Clone, Debug)]
struct Rooted<'a>(SealReader<'a>);

impl<'a> Iterator for Rooted<'a> {
    type Item = Result<(SealRecord<'a>, Option<Imprint>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let seal = self.0.next()?;
        Some(seal.and_then(|seal| Ok((seal, seal.root()?))))
    }
}

/// A block, and the 0904 to write after it.
#[derive(Clone, Copy, Debug)]
pub struct IntegratedBlock<'a> {
    /// The block as it stands in the `LOG12BLK`.
    pub block: Block<'a>,
    /// Its seal; what the block had itself where none was found.
    pub seal: SealRecord<'a>,
}

impl IntegratedBlock<'_> {
    /// Whether the block is sealed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !matches!(self.seal.seal, Seal::Unsigned { .. })
    }
}

impl<'a> Integration<'a> {
    /// Reads both files from their magic on.
    ///
    /// # Errors
    /// Unless they start as `LOG12BLK` and `LOG12SIG`.
    pub fn new(blocks: &'a [u8], seals: &'a [u8]) -> Result<Self, IntegrationError> {
        let blocks = BlockReader::new(blocks).map_err(IntegrationError::Blocks)?;
        if blocks.format() != Format::Blocks {
            let error = DecodeError::new(DecodeErrorKind::Magic, 0);
            return Err(IntegrationError::Blocks(error));
        }
        let seals = SealReader::new(seals).map_err(IntegrationError::Seals)?;
        Ok(Self {
            blocks,
            seals: Rooted(seals).peekable(),
        })
    }

    fn seal(&mut self, block: Block<'a>) -> Result<IntegratedBlock<'a>, IntegrationError> {
        let unsealed = IntegratedBlock {
            block,
            seal: block.seal,
        };
        let Some(next) = self.seals.peek() else {
            return Ok(unsealed);
        };
        let (next, next_root) = next.map_err(IntegrationError::Seals)?;
        let root = block.seal.root().map_err(IntegrationError::Blocks)?;
        if next.count == block.seal.count && next_root == root {
            self.seals.next();
            return Ok(IntegratedBlock { block, seal: next });
        }
        Ok(unsealed)
    }

    fn end(&mut self) -> Option<IntegrationError> {
        Some(match self.seals.next()? {
            Ok((stray, _)) => IntegrationError::StraySeal { at: stray.at },
            Err(error) => IntegrationError::Seals(error),
        })
    }
}

impl<'a> Iterator for Integration<'a> {
    type Item = Result<IntegratedBlock<'a>, IntegrationError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.blocks.next() {
            Some(Ok(block)) => Some(self.seal(block)),
            Some(Err(error)) => Some(Err(IntegrationError::Blocks(error))),
            None => self.end().map(Err),
        }
    }
}

/// A `LOGSIG12` made of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Integrated {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// Number of its blocks that are sealed.
    pub signed: u64,
    /// Number of its blocks that are not sealed yet.
    pub unsigned: u64,
}

/// Joins the two parts of a log signature; see [`Integration`] for files that
/// do not fit into memory twice.
///
/// # Errors
/// If a part is malformed, or a seal is left over.
pub fn integrate(blocks: &[u8], seals: &[u8]) -> Result<Integrated, IntegrationError> {
    let mut whole = Integrated {
        bytes: Format::LogSignature.magic().to_vec(),
        signed: 0,
        unsigned: 0,
    };
    for block in Integration::new(blocks, seals)? {
        let block = block?;
        whole.bytes.extend(block.block.unsealed_bytes());
        whole.bytes.extend(block.seal.bytes);
        if block.is_signed() {
            whole.signed += 1;
        } else {
            whole.unsigned += 1;
        }
    }
    Ok(whole)
}
