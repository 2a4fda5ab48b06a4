//! What is wrong with some bytes, and where.

use crate::tlv::Tag;
use thiserror::Error;

/// Bytes are not the object they should be: "unknown critical tag 0x1a at byte 214".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{kind} at byte {at}")]
pub struct DecodeError {
    /// What is wrong.
    pub kind: DecodeErrorKind,
    /// Position of the offending element or value, counted from the first byte
    /// of the outermost object given to the decoder.
    pub at: usize,
}

impl DecodeError {
    /// An error of `kind` at byte `at`.
    #[must_use]
    pub fn new(kind: DecodeErrorKind, at: usize) -> Self {
        Self { kind, at }
    }
}

/// The reasons for which a decoder refuses its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// An element's header or value reaches past the end of its container.
    #[error("truncated element")]
    Truncated,
    /// The object is longer than the format allows.
    #[error("more than {max} bytes")]
    TooLong {
        /// The longest that is accepted, in bytes.
        max: usize,
    },
    /// Bytes follow where the object should end.
    #[error("trailing bytes")]
    TrailingBytes,
    /// Another element was expected here.
    #[error("tag {} instead of {}", hex(*found), hex(*expected))]
    UnexpectedTag {
        /// The tag the format puts here.
        expected: Tag,
        /// The tag found.
        found: Tag,
    },
    /// An element nobody told us how to read, without leave to ignore it.
    #[error("unknown critical tag {}", hex(*.0))]
    UnknownCritical(Tag),
    /// A mandatory element is absent; the position is that of its container.
    #[error("missing tag {}", hex(*.0))]
    Missing(Tag),
    /// An element that may occur once occurs again.
    #[error("second tag {}", hex(*.0))]
    Repeated(Tag),
    /// More elements of one kind than the decoder accepts.
    #[error("too many elements of tag {}", hex(*.0))]
    TooMany(Tag),
    /// An element stands where the format does not allow it.
    #[error("misplaced tag {}", hex(*.0))]
    Misplaced(Tag),
    /// An element contradicts another one, or lacks the one it depends on.
    #[error("tag {} beside one that excludes it, or without one that it needs", hex(*.0))]
    Conflict(Tag),
    /// Not a minimal big-endian integer of at most 8 bytes.
    #[error("malformed integer")]
    Integer,
    /// A number outside the range of its field.
    #[error("number out of range")]
    Range,
    /// Not UTF-8 text that ends with exactly one zero byte.
    #[error("malformed string")]
    Text,
    /// The digest does not have the length of its algorithm.
    #[error("malformed imprint")]
    Imprint,
    /// A hash algorithm that is unknown, withdrawn or not built in.
    #[error("unsupported hash algorithm {0:#04x}")]
    Algorithm(u8),
    /// Not the fixed layout of a legacy client identifier.
    #[error("malformed legacy identifier")]
    LegacyId,
    /// The leading bytes name no format, or not the one expected.
    #[error("unknown file format")]
    Magic,
    /// Fixed content of a format differs; the text says what it should be.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// A value does not fit into the format: an element holds at most 65535 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("element {} would hold {length} bytes, more than 65535", hex(*tag))]
pub struct EncodeError {
    /// The element that would be too long.
    pub tag: Tag,
    /// The length of its value, in bytes.
    pub length: usize,
}

/// A tag as the format's tables have it: two digits, or four.
fn hex(tag: Tag) -> String {
    if tag > 0xff {
        format!("{tag:#06x}")
    } else {
        format!("{tag:#04x}")
    }
}
