//! What is wrong with bytes that should be a note, a checkpoint, a proof, and where.

use thiserror::Error;

/// Why bytes were refused, and at which byte of the input the reader stood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} at byte {at}")]
pub struct DecodeError {
    /// What is wrong.
    pub kind: DecodeErrorKind,
    /// Offset in bytes from the start of the input, `0..=input.len()`.
    pub at: usize,
}

impl DecodeError {
    pub(crate) fn new(kind: DecodeErrorKind, at: usize) -> Self {
        Self { kind, at }
    }

    /// The same error seen from an input in which this one starts at `base`.
    pub(crate) fn shifted(self, base: usize) -> Self {
        Self {
            at: self.at + base,
            ..self
        }
    }
}

/// The ways in which an input can be malformed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The input is longer than its format may be.
    #[error("more than {max_bytes} bytes")]
    TooLong {
        /// The longest accepted input.
        max_bytes: usize,
    },
    /// A list has more lines than its format allows.
    #[error("more than {max} {what}")]
    TooMany {
        /// What is being counted, in the plural.
        what: &'static str,
        /// The most that is accepted.
        max: usize,
    },
    /// The input ends in the middle of something.
    #[error("input ends early")]
    Truncated,
    /// Bytes follow where the input should end.
    #[error("unexpected bytes after the end")]
    TrailingBytes,
    /// The input is not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// A character below U+0020 that is not a newline.
    #[error("control character")]
    ControlCharacter,
    /// No empty line separates a note's text from its signatures.
    #[error("no empty line before the signatures")]
    NoSignatures,
    /// A line is something else than the format has there.
    #[error("expected {0}")]
    Expected(&'static str),
    /// A key name is empty, or has white space or a plus sign.
    #[error("invalid key name")]
    BadKeyName,
    /// Not standard, padded, canonical base64.
    #[error("invalid base64")]
    BadBase64,
    /// Not a decimal number below 2^63 without leading zeroes.
    #[error("invalid decimal number")]
    BadDecimal,
    /// A hash is not 32 bytes long.
    #[error("hash is not 32 bytes")]
    BadHashLength,
    /// A key uses a signature type that this crate does not verify.
    #[error("unknown signature type {0:#04x}")]
    UnknownAlgorithm(u8),
    /// The key's stated id is not that of its name and public key.
    #[error("key id does not match the key")]
    KeyIdMismatch,
    /// The public key is no usable Ed25519 point, or of the wrong length.
    #[error("unusable public key")]
    BadPublicKey,
    /// A time is 2^63 or more.
    #[error("time beyond 2^63 seconds")]
    BadTime,
    /// The program was built without what this takes.
    #[error("{what} are not in this build: build with the feature {feature}")]
    NotBuiltIn {
        /// What was asked for, in the plural.
        what: &'static str,
        /// The cargo feature that it takes.
        feature: &'static str,
    },
}
