//! Checkpoints, the signed heads of logs, and quorums of witnesses
//! (c2sp.org/tlog-checkpoint).
//!
//! ```text
//! text = origin "\n" size "\n" base64(root) "\n" (extension "\n")*
//! ```
//!
//! `origin` names the log and is not empty; `size` is a decimal below 2^63
//! without leading zeroes; extension lines are not empty and mean nothing here.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::merkle::Hash;
use crate::note::{Note, SignatureError, SigningKey, VerifierKey};
use crate::text::{Lines, base64, plain_line};

/// The size and root of a log at one moment. `Display` gives the note text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    extensions: Vec<String>,
}

impl Checkpoint {
    /// The head of log `origin` at `size` leaves.
    ///
    /// # Errors
    /// An origin that is empty or not a single line, or a size of 2^63 or more.
    pub fn new(origin: &str, size: u64, root: Hash) -> Result<Self, DecodeError> {
        plain_line(origin, "an origin")?;
        if i64::try_from(size).is_err() {
            return Err(DecodeError::new(Kind::BadDecimal, origin.len() + 1));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            extensions: Vec::new(),
        })
    }

    /// Adds an extension line; signed with the rest, and not audited by anyone.
    ///
    /// # Errors
    /// A line that is empty or not a single line.
    pub fn with_extension(mut self, line: &str) -> Result<Self, DecodeError> {
        plain_line(line, "an extension line")?;
        self.extensions.push(line.to_owned());
        Ok(self)
    }

    /// Reads a note's text; says nothing about who signed it.
    ///
    /// # Errors
    /// Any byte that `Display` would not have written.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        let mut lines = Lines::from_bytes(text.as_bytes(), crate::note::MAX_NOTE_BYTES)?;
        let origin = lines.next_line()?;
        if origin.text.is_empty() {
            return Err(origin.error(Kind::Expected("an origin")));
        }
        let size = lines.next_line()?.decimal()?;
        let root = lines.next_line()?.hash()?;
        let mut extensions = Vec::new();
        while !lines.is_empty() {
            let line = lines.next_line()?;
            if line.text.is_empty() {
                return Err(line.error(Kind::Expected("an extension line")));
            }
            extensions.push(line.text.to_owned());
        }
        Ok(Self {
            origin: origin.text.to_owned(),
            size,
            root,
            extensions,
        })
    }

    /// The checkpoint in a note that `key` signed for log `origin`.
    ///
    /// # Errors
    /// [`CheckpointError`]; the signature is checked before the text is read.
    pub fn open(note: &Note, origin: &str, key: &VerifierKey) -> Result<Self, CheckpointError> {
        note.verify(key)?;
        let checkpoint = Self::parse(note.text())?;
        if checkpoint.origin == origin {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::OtherOrigin)
        }
    }

    /// The signed note of this checkpoint.
    ///
    /// # Errors
    /// When the text is too long for a note.
    pub fn sign(&self, key: &SigningKey) -> Result<Note, DecodeError> {
        Note::sign(&self.to_string(), key)
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root over these leaves.
    pub fn root(&self) -> &Hash {
        &self.root
    }

    /// Extension lines, without newlines.
    pub fn extensions(&self) -> &[String] {
        &self.extensions
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, base64(&self.root))?;
        self.extensions
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Why a note is not a checkpoint of the expected log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The log's key did not sign it.
    #[error("log: {0}")]
    Signature(#[from] SignatureError),
    /// It is signed, and is no checkpoint.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// It is a checkpoint of another log.
    #[error("checkpoint of another log")]
    OtherOrigin,
}

/// A checkpoint that enough witnesses have cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// What they cosigned.
    pub checkpoint: Checkpoint,
    /// Unix seconds by which the required number of witnesses had cosigned:
    /// the log had this head by then, if one of them is honest.
    pub cosigned_at: u64,
    /// Names of all trusted witnesses that cosigned, in the order of their times.
    pub witnesses: Vec<String>,
}

/// Checks a head against its log's key and at least `k` of the trusted witnesses.
///
/// The log's origin must be the name of its key, as c2sp.org/tlog-checkpoint
/// recommends. A public key counts once, whatever names it goes by, and the
/// log's own key never counts. Lines by unknown keys are ignored; a line by a
/// trusted key that does not verify spoils the note.
///
/// # Errors
/// [`QuorumError`]: a verdict on the note, not a failure to look.
pub fn verify_quorum(
    note: &Note,
    log_key: &VerifierKey,
    witnesses: &[VerifierKey],
    k: usize,
) -> Result<Quorum, QuorumError> {
    let Some(last) = k.checked_sub(1) else {
        return Err(QuorumError::NoneRequired);
    };
    let checkpoint = Checkpoint::open(note, log_key.name(), log_key)?;
    let mut earliest = BTreeMap::new();
    for witness in witnesses {
        let name = witness.name();
        let at = match note.cosigned_at(witness) {
            Ok(at) => at,
            Err(SignatureError::Missing) => continue,
            Err(SignatureError::Invalid) => {
                return Err(QuorumError::BadCosignature { name: name.into() });
            }
        };
        if witness.public_key() != log_key.public_key() {
            let first = earliest.entry(witness.public_key()).or_insert((at, name));
            *first = (at, name).min(*first);
        }
    }
    let mut by_time: Vec<(u64, &str)> = earliest.into_values().collect();
    by_time.sort_unstable();
    match by_time.get(last) {
        Some(&(cosigned_at, _)) => Ok(Quorum {
            checkpoint,
            cosigned_at,
            witnesses: by_time.iter().map(|(_, name)| name.to_string()).collect(),
        }),
        None => Err(QuorumError::TooFew {
            found: by_time.len(),
            required: k,
        }),
    }
}

/// Why a head has no quorum.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum QuorumError {
    /// Not a checkpoint that this log signed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A line of a trusted witness does not verify.
    #[error("cosignature of {name} does not verify")]
    BadCosignature {
        /// The witness's key name.
        name: String,
    },
    /// Fewer witnesses than required.
    #[error("{found} of {required} required witnesses")]
    TooFew {
        /// Distinct trusted witnesses that cosigned.
        found: usize,
        /// How many must.
        required: usize,
    },
    /// A quorum of nobody proves nothing.
    #[error("a quorum needs at least one witness")]
    NoneRequired,
}
