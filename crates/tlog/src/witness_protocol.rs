//! Bodies of the witness protocol (c2sp.org/tlog-witness), without the HTTP.
//!
//! ```text
//! POST <prefix>/add-checkpoint
//! request  = "old " size "\n" (base64(hash) "\n")* "\n" signed checkpoint
//!            at most 63 hashes: the consistency proof from `size`
//! 200      = signature line+
//! 409      = size "\n", content type text/x.tlog.size: what the witness holds
//! 400, 403, 404, 422, 429, 503 = no body that means anything
//! ```

use std::fmt;

use thiserror::Error;

use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::merkle::{Hash, MAX_PROOF_HASHES};
use crate::note::{MAX_NOTE_BYTES, Note, SignatureLine, parse_signature_lines};
use crate::text::{Lines, base64};

/// Path of the call under a witness's submission prefix.
pub const ADD_CHECKPOINT: &str = "/add-checkpoint";

/// HTTP content type of a size, the body of a 409.
pub const SIZE_CONTENT_TYPE: &str = "text/x.tlog.size";

/// Longest accepted request body, in bytes.
pub const MAX_REQUEST_BYTES: usize = MAX_NOTE_BYTES + 4 * 1024;

/// Longest accepted answer, in bytes.
pub const MAX_ANSWER_BYTES: usize = MAX_NOTE_BYTES;

/// Asks a witness to cosign a head. `Display` gives the request body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// The size that the witness is believed to hold; 0 at first.
    pub old_size: u64,
    /// Consistency proof from `old_size` to the head; see
    /// [`consistency_proof`](crate::merkle::consistency_proof).
    pub proof: Vec<Hash>,
    /// The new head, signed by its log.
    pub head: Note,
}

impl AddCheckpoint {
    /// Reads a request body; nothing is verified yet.
    ///
    /// # Errors
    /// Any byte that `Display` would not have written.
    pub fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let mut lines = Lines::from_bytes(body, MAX_REQUEST_BYTES)?;
        let old = lines.next_line()?;
        let Some(old_size) = old.after(OLD) else {
            return Err(old.error(Kind::Expected("old <size>")));
        };
        let old_size = old_size.decimal()?;
        let proof = lines.hashes_until_blank(MAX_PROOF_HASHES)?;
        let base = lines.at();
        let head = Note::parse(lines.rest().as_bytes()).map_err(|error| error.shifted(base))?;
        Ok(Self {
            old_size,
            proof,
            head,
        })
    }
}

impl fmt::Display for AddCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{OLD}{}", self.old_size)?;
        for hash in &self.proof {
            writeln!(f, "{}", base64(hash))?;
        }
        write!(f, "\n{}", self.head)
    }
}

/// Why a witness did not cosign, and whose move is next.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// 400: not a request. Sending it again will not help.
    #[error("malformed request: {0}")]
    Malformed(#[from] DecodeError),
    /// 400: the old size is larger than the new head's.
    #[error("old size is larger than the checkpoint")]
    OldSizeTooLarge,
    /// 403: the log's key did not sign the head.
    #[error("not signed by the log's key")]
    NotSigned,
    /// 404: the witness was not told to watch this log.
    #[error("unknown origin")]
    UnknownOrigin,
    /// 409: the witness holds another head, of `size` leaves.
    ///
    /// Prove consistency from that size. If it is the old size of the request,
    /// the witness holds another root: the log has forked.
    #[error("witness holds a head of {size} leaves")]
    Conflict {
        /// Leaves of the newest head that the witness cosigned.
        size: u64,
    },
    /// 422: the new head does not extend the one that the witness holds, as
    /// far as the proof shows.
    #[error("consistency proof does not verify")]
    Inconsistent,
    /// 429: this log, or this peer, asks too often. Asking later helps.
    #[error("too many requests")]
    TooManyRequests,
    /// 503: a log of one entry a second has more entries than seconds have
    /// passed on the witness's clock. One of the two clocks is wrong.
    #[error("more entries than seconds since the log's genesis")]
    AheadOfTime,
    /// 503: the witness is unable to answer; nothing was cosigned.
    #[error("witness unavailable: {reason}")]
    Unavailable {
        /// For the witness's operator; never sent.
        reason: String,
    },
}

impl Refusal {
    /// The HTTP status code.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::OldSizeTooLarge => 400,
            Self::NotSigned => 403,
            Self::UnknownOrigin => 404,
            Self::Conflict { .. } => 409,
            Self::Inconsistent => 422,
            Self::TooManyRequests => 429,
            Self::AheadOfTime | Self::Unavailable { .. } => 503,
        }
    }

    /// The HTTP content type of [`body`](Self::body).
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => SIZE_CONTENT_TYPE,
            _ => "text/plain; charset=utf-8",
        }
    }

    /// The HTTP body: the size of a conflict, a sentence otherwise.
    pub fn body(&self) -> String {
        match self {
            Self::Conflict { size } => format!("{size}\n"),
            Self::Unavailable { .. } => "witness unavailable\n".to_owned(),
            _ => format!("{self}\n"),
        }
    }
}

/// Reads a witness's answer. The cosignatures are not verified yet.
///
/// # Errors
/// What the status says; [`Refusal::Unavailable`] for an answer that is not in
/// the protocol.
pub fn parse_answer(status: u16, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
    match status {
        200 => parse_cosignatures(body).map_err(|error| unavailable(&error)),
        400 => Err(Refusal::Malformed(DecodeError::new(
            Kind::Expected("a request that the witness accepts"),
            0,
        ))),
        403 => Err(Refusal::NotSigned),
        404 => Err(Refusal::UnknownOrigin),
        409 => Err(match parse_size(body) {
            Ok(size) => Refusal::Conflict { size },
            Err(error) => unavailable(&error),
        }),
        422 => Err(Refusal::Inconsistent),
        429 => Err(Refusal::TooManyRequests),
        _ => Err(Refusal::Unavailable {
            reason: format!("status {status}"),
        }),
    }
}

fn parse_cosignatures(body: &[u8]) -> Result<Vec<SignatureLine>, DecodeError> {
    parse_signature_lines(crate::text::plain_text(body, MAX_ANSWER_BYTES)?)
}

fn parse_size(body: &[u8]) -> Result<u64, DecodeError> {
    let mut lines = Lines::from_bytes(body, MAX_ANSWER_BYTES)?;
    let size = lines.next_line()?.decimal()?;
    if lines.is_empty() {
        Ok(size)
    } else {
        Err(DecodeError::new(Kind::TrailingBytes, lines.at()))
    }
}

fn unavailable(error: &DecodeError) -> Refusal {
    Refusal::Unavailable {
        reason: format!("unreadable answer: {error}"),
    }
}

const OLD: &str = "old ";
