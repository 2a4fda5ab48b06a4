//! Line-oriented reading with byte positions, shared by all text formats.

use data_encoding::BASE64;

use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::merkle::Hash;

/// Characters that standard base64 needs for 32 bytes.
const HASH_BASE64_LEN: usize = 44;

/// Reads newline-terminated lines and remembers where it stands.
pub(crate) struct Lines<'a> {
    text: &'a str,
    at: usize,
}

/// One line without its newline, and the byte at which it starts.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) text: &'a str,
    pub(crate) at: usize,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Reads `bytes` as text of at most `max_bytes`, without control characters.
    pub(crate) fn from_bytes(bytes: &'a [u8], max_bytes: usize) -> Result<Self, DecodeError> {
        plain_text(bytes, max_bytes).map(Self::new)
    }

    /// The next line; an input that ends before its newline is truncated.
    pub(crate) fn next_line(&mut self) -> Result<Line<'a>, DecodeError> {
        let at = self.at;
        let rest = self.rest();
        let Some(length) = rest.find('\n') else {
            return Err(DecodeError::new(Kind::Truncated, self.text.len()));
        };
        self.at = at + length + 1;
        Ok(Line {
            text: &rest[..length],
            at,
        })
    }

    /// Lines of base64 hashes up to and including the empty line that ends them.
    pub(crate) fn hashes_until_blank(&mut self, max: usize) -> Result<Vec<Hash>, DecodeError> {
        let mut hashes = Vec::new();
        loop {
            let line = self.next_line()?;
            if line.text.is_empty() {
                return Ok(hashes);
            }
            if hashes.len() == max {
                let what = "proof lines";
                return Err(DecodeError::new(Kind::TooMany { what, max }, line.at));
            }
            hashes.push(line.hash()?);
        }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Offset of the next unread byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }
}

impl<'a> Line<'a> {
    /// The rest of a line that starts with `prefix`; `None` if it does not.
    pub(crate) fn after(self, prefix: &str) -> Option<Line<'a>> {
        self.text.strip_prefix(prefix).map(|text| Line {
            text,
            at: self.at + prefix.len(),
        })
    }

    /// ASCII decimal without leading zeroes, below 2^63 so that it fits every store.
    pub(crate) fn decimal(self) -> Result<u64, DecodeError> {
        parse_decimal(self.text).ok_or_else(|| self.error(Kind::BadDecimal))
    }

    /// 32 bytes in standard base64.
    pub(crate) fn hash(self) -> Result<Hash, DecodeError> {
        if self.text.len() != HASH_BASE64_LEN {
            return Err(self.error(Kind::BadHashLength));
        }
        let bytes = self.base64()?;
        Hash::try_from(bytes).map_err(|_| self.error(Kind::BadHashLength))
    }

    /// Standard base64: padded, canonical, nothing skipped.
    pub(crate) fn base64(self) -> Result<Vec<u8>, DecodeError> {
        let bad = |position| DecodeError::new(Kind::BadBase64, self.at + position);
        // The library takes padding within the text too, as where two texts meet.
        match self.text.trim_end_matches('=').find('=') {
            Some(position) => Err(bad(position)),
            None => BASE64
                .decode(self.text.as_bytes())
                .map_err(|error| bad(error.position)),
        }
    }

    pub(crate) fn error(self, kind: Kind) -> DecodeError {
        DecodeError::new(kind, self.at)
    }
}

/// UTF-8 without control characters other than newline.
pub(crate) fn plain_text(bytes: &[u8], max_bytes: usize) -> Result<&str, DecodeError> {
    if bytes.len() > max_bytes {
        return Err(DecodeError::new(Kind::TooLong { max_bytes }, max_bytes));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| DecodeError::new(Kind::NotUtf8, error.valid_up_to()))?;
    match bytes.iter().position(|&byte| byte < 0x20 && byte != b'\n') {
        Some(at) => Err(DecodeError::new(Kind::ControlCharacter, at)),
        None => Ok(text),
    }
}

/// A single non-empty line of plain text, as origins and extension lines are.
pub(crate) fn plain_line(line: &str, expected: &'static str) -> Result<(), DecodeError> {
    if line.is_empty() {
        return Err(DecodeError::new(Kind::Expected(expected), 0));
    }
    match line.bytes().position(|byte| byte < 0x20) {
        Some(at) => Err(DecodeError::new(Kind::ControlCharacter, at)),
        None => Ok(()),
    }
}

pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    if !canonical || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&n| i64::try_from(n).is_ok())
}

/// Standard base64 of a hash, as every format here writes it.
pub(crate) fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}
