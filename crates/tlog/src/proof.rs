//! Self-contained proofs that a log has an entry (c2sp.org/tlog-proof).
//!
//! ```text
//! "c2sp.org/tlog-proof@v1\n"
//! ("extra " base64 "\n")?
//! "index " decimal "\n"
//! (base64(hash) "\n")*            sibling of the leaf first, at most 63
//! "\n"
//! signed checkpoint               with its cosignatures
//! ```

use std::fmt;

use thiserror::Error;

use crate::checkpoint::{Quorum, QuorumError, verify_quorum};
use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::merkle::{Hash, MAX_PROOF_HASHES, ProofError, verify_inclusion};
use crate::note::{MAX_NOTE_BYTES, Note, VerifierKey};
use crate::text::{Lines, base64};

/// Longest accepted extra data, in bytes.
pub const MAX_EXTRA_BYTES: usize = 64 * 1024;

/// Longest accepted proof, in bytes.
pub const MAX_PROOF_BYTES: usize = MAX_EXTRA_BYTES / 3 * 4 + MAX_NOTE_BYTES + 4 * 1024;

/// An entry's place in a log, provable offline. `Display` gives the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogProof {
    extra: Vec<u8>,
    index: u64,
    path: Vec<Hash>,
    head: Note,
}

impl LogProof {
    /// Puts a proof together; nothing is verified.
    ///
    /// # Errors
    /// An index of 2^63 or more, or a path of more than 63 hashes.
    pub fn new(index: u64, path: Vec<Hash>, head: Note) -> Result<Self, DecodeError> {
        if i64::try_from(index).is_err() {
            return Err(DecodeError::new(Kind::BadDecimal, HEADER.len() + 1));
        }
        if path.len() > MAX_PROOF_HASHES {
            return Err(DecodeError::new(TOO_MANY_HASHES, HEADER.len() + 1));
        }
        Ok(Self {
            extra: Vec::new(),
            index,
            path,
            head,
        })
    }

    /// Adds data that helps the reader and that no signature covers.
    ///
    /// # Errors
    /// More than [`MAX_EXTRA_BYTES`].
    pub fn with_extra(mut self, extra: Vec<u8>) -> Result<Self, DecodeError> {
        check_extra(&extra, HEADER.len() + 1)?;
        self.extra = extra;
        Ok(self)
    }

    /// Reads a proof; nothing is verified yet.
    ///
    /// # Errors
    /// Any byte that `Display` would not have written.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut lines = Lines::from_bytes(bytes, MAX_PROOF_BYTES)?;
        let header = lines.next_line()?;
        if header.text != HEADER {
            return Err(header.error(Kind::Expected(HEADER)));
        }
        let mut line = lines.next_line()?;
        let mut extra = Vec::new();
        if let Some(encoded) = line.after(EXTRA) {
            extra = encoded.base64()?;
            if extra.is_empty() {
                return Err(encoded.error(Kind::Expected("extra data")));
            }
            check_extra(&extra, encoded.at)?;
            line = lines.next_line()?;
        }
        let Some(index) = line.after(INDEX) else {
            return Err(line.error(Kind::Expected("index <number>")));
        };
        let index = index.decimal()?;
        let path = lines.hashes_until_blank(MAX_PROOF_HASHES)?;
        let base = lines.at();
        let head = Note::parse(lines.rest().as_bytes()).map_err(|error| error.shifted(base))?;
        Ok(Self {
            extra,
            index,
            path,
            head,
        })
    }

    /// Checks that the log has `leaf`, under a head that `k` witnesses cosigned.
    ///
    /// `leaf` is the entry's [`leaf_hash`](crate::merkle::leaf_hash), computed
    /// by the caller from the entry at hand.
    ///
    /// # Errors
    /// [`LogProofError`]: a verdict on the proof, not a failure to look.
    pub fn verify(
        &self,
        leaf: Hash,
        log_key: &VerifierKey,
        witnesses: &[VerifierKey],
        k: usize,
    ) -> Result<Quorum, LogProofError> {
        let quorum = verify_quorum(&self.head, log_key, witnesses, k)?;
        let head = &quorum.checkpoint;
        verify_inclusion(leaf, self.index, head.size(), &self.path, head.root())?;
        Ok(quorum)
    }

    /// The entry's index in the log, from 0. Not to be trusted before verifying.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Siblings from the leaf to the root.
    pub fn path(&self) -> &[Hash] {
        &self.path
    }

    /// The head under which the entry is proved.
    pub fn head(&self) -> &Note {
        &self.head
    }

    /// Unauthenticated data; empty if the proof has none.
    pub fn extra(&self) -> &[u8] {
        &self.extra
    }
}

impl fmt::Display for LogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if !self.extra.is_empty() {
            writeln!(f, "{EXTRA}{}", base64(&self.extra))?;
        }
        writeln!(f, "{INDEX}{}", self.index)?;
        for hash in &self.path {
            writeln!(f, "{}", base64(hash))?;
        }
        write!(f, "\n{}", self.head)
    }
}

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LogProofError {
    /// The head is not signed and cosigned as required.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// The entry is not in the tree at that index.
    #[error(transparent)]
    Inclusion(#[from] ProofError),
}

fn check_extra(extra: &[u8], at: usize) -> Result<(), DecodeError> {
    let max_bytes = MAX_EXTRA_BYTES;
    if extra.len() > max_bytes {
        Err(DecodeError::new(Kind::TooLong { max_bytes }, at))
    } else {
        Ok(())
    }
}

const HEADER: &str = "c2sp.org/tlog-proof@v1";
const EXTRA: &str = "extra ";
const INDEX: &str = "index ";
const TOO_MANY_HASHES: Kind = Kind::TooMany {
    what: "proof lines",
    max: MAX_PROOF_HASHES,
};
