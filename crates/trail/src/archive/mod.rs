//! Closed segments that live on an object store instead of the trail's folder.
//!
//! | where       | what                                                                  |
//! |-------------|-----------------------------------------------------------------------|
//! | the store   | `<origin>/<genesis>/NNNNNN.jsonl.zst`, `…NNNNNN.jsonl.logsig.zst`: the segment's two files, each zstd-compressed; with the feature, `…NNNNNN.parquet` |
//! | the store   | `…NNNNNN.jsonl.archived`: the receipt, again                          |
//! | the trail   | `NNNNNN.jsonl.archived`: the receipt, in place of the two files       |
//! | `archive-cache/` | objects that were fetched, at most so many bytes                 |
//!
//! A **receipt** names the objects with their sizes and digests (docs/spec, chapter 30
//! §7). It is what the trail believes; the store is believed nothing: what comes from it
//! is compared with the receipt each time it is read, and then recomputed as any other
//! segment is.
//!
//! Moving a segment ([`move_segments`]), with what a crash after each step leaves:
//!
//! | step                                        | a crash afterwards leaves              |
//! |---------------------------------------------|----------------------------------------|
//! | objects are put, each read back, compared   | both files here, objects that nothing names; the next run finds them and compares them |
//! | the receipt is put beside them              | as above                               |
//! | the receipt is written here, durably        | both files here, and a receipt: the files are read; the next run compares and removes them |
//! | the lines are removed, then the signatures  | a receipt, which stands for what is gone |
//!
//! This crate opens no socket: whoever uses a trail hands in an [`Archive`].

mod check;
#[cfg(feature = "parquet")]
mod events;
mod moving;
mod shelf;

use std::fmt;
use std::sync::Arc;

use pitser_evidence::codec::Digest;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::read::ReadError;

pub use moving::{MoveError, MoveOptions, Moved, move_segments};
pub(crate) use shelf::Shelf;

/// The lines of an archived segment; `None` if it is none.
pub(crate) fn lines(layout: &Layout, number: u32) -> Result<Option<Arc<Vec<u8>>>, ReadError> {
    kept(layout, number, |receipt| &receipt.lines)
}

/// The signatures of an archived segment's blocks; `None` if it is none.
pub(crate) fn signatures(layout: &Layout, number: u32) -> Result<Option<Arc<Vec<u8>>>, ReadError> {
    kept(layout, number, |receipt| &receipt.signatures)
}

/// How long both are; `None` if the segment is not archived.
pub(crate) fn sizes(layout: &Layout, number: u32) -> Result<Option<(u64, u64)>, ReadError> {
    let receipt = shelf::receipt(&layout.receipt(number), number)?;
    Ok(receipt.map(|receipt| (receipt.lines.size, receipt.signatures.size)))
}

fn kept(
    layout: &Layout,
    number: u32,
    which: fn(&Receipt) -> &Kept,
) -> Result<Option<Arc<Vec<u8>>>, ReadError> {
    let path = layout.receipt(number);
    let Some(receipt) = shelf::receipt(&path, number)? else {
        return Ok(None);
    };
    let shelf = layout.shelf().ok_or(ReadError::Elsewhere(path.clone()))?;
    shelf.fetch(which(&receipt), &path).map(Some)
}

/// Where objects are kept: a folder on another disk, or a store elsewhere.
pub trait Archive: fmt::Debug + Send + Sync {
    /// Stores an object unless there is one of that name, durably. What is there after
    /// an error is not known.
    ///
    /// # Errors
    /// [`ArchiveError::Failed`].
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArchiveError>;

    /// Reads an object of at most `max` bytes.
    ///
    /// # Errors
    /// [`ArchiveError`].
    fn get(&self, name: &str, max: usize) -> Result<Vec<u8>, ArchiveError>;

    /// What it is called in messages; holds no secret.
    fn name(&self) -> String;
}

/// Why an archive did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// It answers, and has no object of that name.
    #[error("{0}")]
    Missing(String),
    /// The object is longer than was allowed.
    #[error("{0}")]
    TooLong(String),
    /// It does not answer, or refuses. The text names it and says what to do.
    #[error("{0}")]
    Failed(String),
}

/// What stands in a trail's folder in place of an archived segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Receipt {
    /// What the archive was called when the segment went there.
    archive: String,
    /// The same events as Parquet, if they were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    events: Option<Kept>,
    format: String,
    pub(crate) lines: Kept,
    segment: u32,
    pub(crate) signatures: Kept,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// Of the file as it was here.
    hash: Digest,
    /// Name in the archive.
    pub(crate) object: String,
    /// Bytes of the file as it was here.
    pub(crate) size: u64,
    /// Of the object as it lies there.
    stored_hash: Digest,
    /// Bytes of the object as it lies there.
    stored_size: u64,
}

impl Receipt {
    /// Accepts exactly what [`Receipt::encode`] writes, for segment `number`.
    fn decode(bytes: &[u8], number: u32) -> Result<Self, String> {
        let receipt: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if receipt.format != FORMAT || receipt.segment != number || receipt.encode() != bytes {
            return Err(format!(
                "it is no receipt of segment {number} as this version writes it"
            ));
        }
        let sizes =
            [&receipt.lines, &receipt.signatures].map(|kept| kept.size.max(kept.stored_size));
        match sizes.iter().all(|size| *size <= MAX_SIZE) {
            true => Ok(receipt),
            false => Err(format!("it names a file beyond {MAX_SIZE} bytes")),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("names and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }
}

const FORMAT: &str = "pitser-archived-segment/1";
/// Bytes that a file of a segment may have: segments are read whole.
const MAX_SIZE: u64 = 4 << 30;
/// Bytes that a receipt may have.
const MAX_RECEIPT: usize = 16 << 10;
/// Bytes of fetched objects that are kept, unless the caller says otherwise.
pub const CACHE_BYTES: u64 = 1 << 30;
