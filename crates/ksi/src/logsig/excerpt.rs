//! Integrity proofs, `RECSIG12`: some lines of a log, each provable alone.
//!
//! ```text
//! magic
//! 0905 { 0800 }    the signature of a block
//!   0907 …         the path of each line taken from it, in the order of the lines
//! 0905 …           the next block
//! ```
//!
//! The lines themselves stand in a file of their own, one after the other;
//! metarecords stand in the proof only.

use super::{
    Format, MAGIC_LEN,
    lines::Lines,
    proof::{BlockTree, RecordChain},
    reader::{Block, Seal, expect, signature},
    signed::signed_root,
    tag,
};
use crate::{
    error::{DecodeError, DecodeErrorKind, EncodeError},
    hash::{Imprint, hash},
    tlv::{Reader, Writer},
};
use std::collections::HashSet;
use thiserror::Error;

/// An integrity proof.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// The blocks that lines were taken from.
    pub blocks: Vec<ExcerptBlock>,
    /// Whether the log was signed as `LOGSIG11`, at level 0.
    pub is_legacy: bool,
}

/// What was taken from one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcerptBlock {
    /// The bytes of the 0800 over the block's root.
    pub signature: Vec<u8>,
    /// The paths of the records taken.
    pub records: Vec<RecordChain>,
}

/// Lines taken out of one block, with their proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted<'l> {
    /// The proof.
    pub block: ExcerptBlock,
    /// The lines, in order, without their line ends.
    pub lines: Vec<&'l [u8]>,
}

/// Why no line can be taken out of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The block has no signature yet, or only a legacy token.
    #[error("the block is not signed")]
    Unsigned,
    /// The lines are not those that were signed: a proof would not hold.
    #[error("the lines are not those that were signed")]
    Altered,
    /// The block's signature is malformed.
    #[error("signature: {0}")]
    Signature(DecodeError),
}

/// Takes lines out of `block`: those of whose number in the block, from 0,
/// `wanted` approves. All lines of the block are taken from `lines`. `None`, and
/// nothing is hashed, if no line is wanted.
///
/// Hashes that the block stores are not computed again: with tree hashes the cost
/// is that of the wanted paths. If they do not lead from the lines to what was
/// signed, all is computed from the lines.
///
/// # Errors
/// [`ExtractError::Altered`] if the block's lines are not there; if lines are
/// wanted, any [`ExtractError`].
pub fn extract<'l>(
    block: &Block<'_>,
    lines: &mut Lines<'l>,
    wanted: impl FnMut(&u64) -> bool,
) -> Result<Option<Extracted<'l>>, ExtractError> {
    let stretch = lines
        .take_lines(block.line_count())
        .ok_or(ExtractError::Altered)?;
    let numbers: Vec<u64> = (0..block.line_count()).filter(wanted).collect();
    if numbers.is_empty() {
        return Ok(None);
    }
    let Seal::Signature(signature) = block.seal.seal else {
        return Err(ExtractError::Unsigned);
    };
    let signed = signed_root(signature).map_err(ExtractError::Signature)?;
    let mut left = numbers.iter().copied().peekable();
    let lines: Vec<(u64, &[u8])> = (0..)
        .zip(Lines::new(stretch))
        .filter(|(number, _)| left.next_if_eq(number).is_some())
        .collect();
    let paths = |tree: BlockTree| paths(&tree, &lines, signed);
    let records = BlockTree::of_stored(block)
        .and_then(paths)
        .or_else(|| BlockTree::of_block(block, &mut Lines::new(stretch)).and_then(paths))
        .ok_or(ExtractError::Altered)?;
    let block = ExcerptBlock {
        signature: signature.to_vec(),
        records,
    };
    let lines = lines.into_iter().map(|(_, line)| line).collect();
    Ok(Some(Extracted { block, lines }))
}

/// The paths from `lines`, each with its number, to `signed`; `None` if one leads
/// elsewhere.
fn paths(tree: &BlockTree, lines: &[(u64, &[u8])], signed: Imprint) -> Option<Vec<RecordChain>> {
    let mut lines = lines.iter().peekable();
    (0..)
        .zip(tree.records_of_lines())
        .filter_map(|(number, record)| {
            let (_, line) = lines.next_if(|(wanted, _)| *wanted == number)?;
            let path = tree.chain_from(record, hash(tree.algorithm(), &[line]));
            Some(path.filter(|path| path.root().0 == signed))
        })
        .collect()
}

/// A record of an excerpt that does not fit. `line` counts the lines of the
/// excerpt, `block` and `record` the parts of the proof; all from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordFault {
    /// The line is not the one the path is of.
    Line {
        /// The line in the excerpt.
        line: u64,
    },
    /// The excerpt ends before this line.
    LineMissing {
        /// The first line that is missing.
        line: u64,
    },
    /// Lines follow that have no path.
    LineUnproven {
        /// The first such line.
        line: u64,
    },
    /// The path does not lead to what the block's signature signs.
    Root {
        /// The block in the proof.
        block: usize,
        /// The record in the block's list.
        record: usize,
    },
    /// The record does not come after the one before it in its block, or is that one again.
    Order {
        /// The block in the proof.
        block: usize,
        /// The record in the block's list.
        record: usize,
    },
    /// The block is one before it again.
    Repeated {
        /// The block in the proof.
        block: usize,
    },
}

impl Excerpt {
    /// Reads an integrity proof from its magic on. Unknown noncritical elements
    /// are ignored, and not written again.
    ///
    /// # Errors
    /// What is malformed, and where.
    pub fn decode(file: &[u8]) -> Result<Self, DecodeError> {
        let is_legacy = match Format::of(file) {
            Some(Format::Proof) => false,
            Some(Format::Proof11) => true,
            _ => return Err(DecodeError::new(DecodeErrorKind::Magic, 0)),
        };
        let mut blocks: Vec<ExcerptBlock> = Vec::new();
        for element in Reader::at(&file[MAGIC_LEN..], MAGIC_LEN) {
            let element = element?;
            match (element.tag, blocks.last_mut()) {
                (tag::KSI_SIGNATURE, _) => {
                    expect(&element, tag::KSI_SIGNATURE)?;
                    let signature = signature(&element)?.to_vec();
                    blocks.push(ExcerptBlock {
                        signature,
                        records: Vec::new(),
                    });
                }
                (tag::RECORD_CHAIN, Some(block)) => {
                    block.records.push(RecordChain::decode(&element)?);
                }
                (tag::RECORD_CHAIN, None) => {
                    return Err(element.error(DecodeErrorKind::Misplaced(tag::RECORD_CHAIN)));
                }
                _ => element.ignore()?,
            }
        }
        Ok(Self { blocks, is_legacy })
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// If a signature does not fit into an element.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let format = if self.is_legacy {
            Format::Proof11
        } else {
            Format::Proof
        };
        let mut file = format.magic().to_vec();
        for block in &self.blocks {
            let mut writer = Writer::new();
            writer.nested(tag::KSI_SIGNATURE, |w| w.raw(&block.signature));
            file.extend(writer.finish()?);
            for record in &block.records {
                file.extend(record.encode()?);
            }
        }
        Ok(file)
    }

    /// The level at which the signature of one of the blocks is to be verified:
    /// where its paths end, the highest of them should they disagree.
    #[must_use]
    pub fn signing_level(&self, block: &ExcerptBlock) -> u8 {
        let levels = block.records.iter().map(|record| record.root().1);
        if self.is_legacy {
            0
        } else {
            levels.max().unwrap_or(0)
        }
    }

    /// Compares the proof with the lines of its excerpt. What is left to do is
    /// to verify each block's signature, at [`Excerpt::signing_level`].
    ///
    /// # Errors
    /// If a signature cannot be decoded.
    pub fn check<'l>(
        &self,
        lines: impl IntoIterator<Item = &'l [u8]>,
    ) -> Result<Vec<RecordFault>, DecodeError> {
        let mut lines = lines.into_iter();
        let mut line = 0;
        let mut faults = Vec::new();
        let mut roots = HashSet::new();
        for (block_index, block) in self.blocks.iter().enumerate() {
            let signed = signed_root(&block.signature)?;
            if !roots.insert(signed) {
                faults.push(RecordFault::Repeated { block: block_index });
            }
            for (record, chain) in block.records.iter().enumerate() {
                let before = record.checked_sub(1).map(|before| &block.records[before]);
                if before.is_some_and(|before| !before.comes_before(chain)) {
                    faults.push(RecordFault::Order {
                        block: block_index,
                        record,
                    });
                }
                if chain.root().0 != signed {
                    faults.push(RecordFault::Root {
                        block: block_index,
                        record,
                    });
                }
                if chain.metarecord().is_some() {
                    continue;
                }
                match lines.next() {
                    None => {
                        faults.push(RecordFault::LineMissing { line });
                        return Ok(faults);
                    }
                    Some(text) if !chain.is_of_line(text) => {
                        faults.push(RecordFault::Line { line });
                    }
                    Some(_) => {}
                }
                line += 1;
            }
        }
        if lines.next().is_some() {
            faults.push(RecordFault::LineUnproven { line });
        }
        Ok(faults)
    }
}
