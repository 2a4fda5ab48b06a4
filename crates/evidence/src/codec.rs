//! Canonical JSON (RFC 8785) and the text forms of bytes inside it.
//!
//! Everything Pitser hashes or signs as JSON is read strictly: a document is
//! accepted only if writing it again gives the very same bytes. Duplicate and
//! unknown members, other orders, other escapes, white space, fractions and
//! integers beyond 2^53 - 1 are therefore all refused.

use data_encoding::{BASE64, HEXLOWER};
use pitser_ksi::hash::{Algorithm, Hasher, Imprint};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::{self, Write as _};

/// The largest integer that every JSON reader keeps exactly (RFC 8785 §3.2.2.3).
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Why bytes are not a canonical document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not JSON, or not of the expected shape; says where.
    #[error("{0}")]
    Syntax(String),
    /// Well-formed, but not written canonically: first difference at this byte.
    #[error("not canonical JSON (RFC 8785): differs at byte {at}")]
    NotCanonical {
        /// Offset of the first byte that canonical writing would change.
        at: usize,
    },
    /// A member breaks a rule of the format.
    #[error("{0}")]
    Rule(String),
}

/// Writes `value` as canonical JSON.
///
/// Types in this crate declare their members in RFC 8785 order and hold only
/// strings, integers, booleans, arrays and objects, for which compact
/// `serde_json` output *is* the canonical form; tests compare it with an
/// independent canonicaliser.
pub fn to_canonical<T: Serialize>(value: &T) -> Vec<u8> {
    // A trail line has some 600 bytes.
    let mut bytes = Vec::with_capacity(1024);
    serde_json::to_writer(&mut bytes, value)
        .expect("our types have string keys and no failing serialisers");
    bytes
}

/// The hash of [`to_canonical`] of `value`, which is nowhere kept as a whole.
pub(crate) fn digest_of<T: Serialize>(value: &T) -> Digest {
    let hashed = Hashed(Hasher::new(Algorithm::Sha256));
    // A serialiser writes a few bytes at a time.
    let mut gathered = io::BufWriter::with_capacity(GATHERED, hashed);
    serde_json::to_writer(&mut gathered, value)
        .expect("our types have string keys and no failing serialisers");
    gathered.flush().expect("hashing does not fail");
    let (Hashed(hasher), _) = gathered.into_parts();
    Digest(hasher.finish())
}

/// The length of [`to_canonical`] of `value`, in bytes.
pub(crate) fn length_of<T: Serialize>(value: &T) -> usize {
    let mut counted = Counted(0);
    serde_json::to_writer(&mut counted, value)
        .expect("our types have string keys and no failing serialisers");
    counted.0
}

/// Takes all, and counts it.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes all, and keeps its hash.
struct Hashed(Hasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hexadecimal digits, without an allocation.
fn hex<'b>(bytes: &[u8], buffer: &'b mut [u8; 2 * Imprint::MAX_LEN]) -> &'b str {
    let digits = &mut buffer[..2 * bytes.len()];
    HEXLOWER.encode_mut(bytes, digits);
    std::str::from_utf8(digits).expect("digits are ASCII")
}

/// Reads a canonical document.
///
/// # Errors
/// [`CodecError::Syntax`] or [`CodecError::NotCanonical`], with the place.
pub fn from_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let value: T = serde_json::from_slice(bytes).map_err(|e| CodecError::Syntax(e.to_string()))?;
    let mut compared = Compared { bytes, at: 0 };
    // A serialiser writes a few bytes at a time.
    let gathered = bytes.len().min(GATHERED);
    let mut again = io::BufWriter::with_capacity(gathered, &mut compared);
    let written = serde_json::to_writer(&mut again, &value);
    let is_written = written.is_ok() && again.flush().is_ok();
    // What was refused is not tried again.
    let _ = again.into_parts();
    match is_written && compared.at == bytes.len() {
        true => Ok(value),
        false => Err(CodecError::NotCanonical { at: compared.at }),
    }
}

/// Bytes that are compared at a time.
const GATHERED: usize = 64 << 10;

/// Takes only what is written already, and keeps nothing.
struct Compared<'a> {
    bytes: &'a [u8],
    /// So much of it was written again.
    at: usize,
}

impl io::Write for Compared<'_> {
    fn write(&mut self, again: &[u8]) -> io::Result<usize> {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(again) {
            self.at += again.len();
            return Ok(again.len());
        }
        self.at += again.iter().zip(rest).take_while(|(a, b)| a == b).count();
        Err(io::ErrorKind::InvalidData.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many elements the lists of a JSON document have, in all and in the lists that are
/// members of the document itself. It is counted without reading anything else of it:
/// an element may take many times the memory of its bytes.
pub(crate) fn elements(document: &[u8]) -> (usize, usize) {
    let (mut all, mut own) = (0, 0);
    // Whether each value that is open is a list, the innermost one last. What is deeper
    // than that is not read.
    let (mut lists, mut depth) = (0_u128, 0_usize);
    let mut bytes = document.iter().peekable();
    while let Some(byte) = bytes.next() {
        let begins = match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
                false
            }
            b'[' | b'{' => {
                let is_list = *byte == b'[';
                lists = lists << 1 | u128::from(is_list);
                depth += 1;
                is_list && bytes.peek() != Some(&&b']')
            }
            b']' | b'}' => {
                lists >>= 1;
                depth = depth.saturating_sub(1);
                false
            }
            b',' => lists & 1 == 1,
            _ => false,
        };
        all += usize::from(begins);
        own += usize::from(begins && depth == 2);
    }
    (all, own)
}

/// An integer no larger than [`MAX_INTEGER`].
///
/// # Errors
/// [`CodecError::Rule`] naming the member.
pub fn bounded(member: &str, value: u64) -> Result<(), CodecError> {
    if value > MAX_INTEGER {
        return Err(CodecError::Rule(format!(
            "{member} is larger than 2^53 - 1"
        )));
    }
    Ok(())
}

/// 32 bytes, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes32(pub [u8; 32]);

impl fmt::Display for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex(&self.0, &mut [0; _]))
    }
}

impl fmt::Debug for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Bytes32 {
    type Err = CodecError;
    fn from_str(text: &str) -> Result<Self, CodecError> {
        let bytes = HEXLOWER
            .decode(text.as_bytes())
            .map_err(|e| CodecError::Rule(format!("not lower-case hexadecimal: {e}")))?;
        let array = bytes
            .try_into()
            .map_err(|_| CodecError::Rule("not 32 bytes of hexadecimal".into()))?;
        Ok(Self(array))
    }
}

impl Serialize for Bytes32 {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(hex(&self.0, &mut [0; _]))
    }
}

impl<'de> Deserialize<'de> for Bytes32 {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// An imprint, written as hexadecimal of algorithm id and digest (`01…`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub Imprint);

impl Digest {
    /// The default hash of `parts`, joined: SHA-256.
    pub fn of(parts: &[&[u8]]) -> Self {
        Self(pitser_ksi::hash::hash(Algorithm::Sha256, parts))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex(self.0.as_bytes(), &mut [0; _]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = CodecError;
    fn from_str(text: &str) -> Result<Self, CodecError> {
        let bytes = HEXLOWER
            .decode(text.as_bytes())
            .map_err(|e| CodecError::Rule(format!("not lower-case hexadecimal: {e}")))?;
        Imprint::from_bytes(&bytes)
            .map(Self)
            .map_err(|e| CodecError::Rule(format!("not an imprint: {e}")))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(hex(self.0.as_bytes(), &mut [0; _]))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Any bytes, written as padded standard base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        BASE64
            .decode(text.as_bytes())
            .map(Self)
            .map_err(|e| D::Error::custom(format!("not base64: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Doc {
        a: String,
        b: u64,
    }

    #[track_caller]
    fn refused(text: &str) {
        assert!(from_canonical::<Doc>(text.as_bytes()).is_err(), "{text}");
    }

    #[test]
    fn reads_only_what_it_writes() {
        let doc = Doc {
            a: "õ\n\u{7f}/".into(),
            b: 7,
        };
        let bytes = to_canonical(&doc);
        assert_eq!(bytes, "{\"a\":\"õ\\n\u{7f}/\",\"b\":7}".as_bytes());
        assert_eq!(from_canonical::<Doc>(&bytes), Ok(doc));
        refused(r#"{"b":7,"a":""}"#);
        refused(r#"{"a":"","b":7} "#);
        refused(r#"{"a":"","b":7.0}"#);
        refused(r#"{"a":"","a":"","b":7}"#);
        refused(r#"{"a":"","b":7,"c":1}"#);
        refused(r#"{"a":"\u0041","b":7}"#);
    }

    #[test]
    fn what_differs_is_named_by_its_place() {
        let at = |text: &str| match from_canonical::<Doc>(text.as_bytes()) {
            Err(CodecError::NotCanonical { at }) => at,
            other => panic!("{other:?}"),
        };
        assert_eq!(at(r#"{"b":7,"a":""}"#), 2);
        assert_eq!(at(r#"{"a":"","b":7 }"#), 13);
        assert_eq!(at(r#"{"a":"","b":7} "#), 14);
    }

    #[test]
    fn elements_are_counted_by_what_is_open() {
        for (text, all, own) in [
            ("{}", 0, 0),
            (r#"{"a":[],"b":[[]]}"#, 1, 1),
            (r#"{"a":[1,2,3],"b":[{"c":[4,5],"d":6},7]}"#, 7, 5),
            (r#"{"a":["[,",",\",",",","\\"],"b":","}"#, 4, 4),
            (r#"[1,[2,{"a":[3,4]}]]"#, 6, 2),
            ("]]]", 0, 0),
            (r#"{"a":["#, 1, 1),
            (r#"{"a":["\"#, 1, 1),
        ] {
            assert_eq!(elements(text.as_bytes()), (all, own), "{text}");
        }
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        assert_eq!(elements(deep.as_bytes()).0, 999);
    }

    #[test]
    fn hexadecimal_is_strict() {
        let text = "00".repeat(32);
        assert!(text.parse::<Bytes32>().is_ok());
        assert!(text.to_uppercase().parse::<Bytes32>().is_ok());
        assert!("AA".repeat(32).parse::<Bytes32>().is_err());
        assert!("00".repeat(31).parse::<Bytes32>().is_err());
        assert!("0100".parse::<Digest>().is_err());
    }
}
