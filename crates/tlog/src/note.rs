//! Signed notes and cosignatures (c2sp.org/signed-note, c2sp.org/tlog-cosignature).
//!
//! ```text
//! note       = text "\n" line+           text ends in a newline
//! line       = "— " name " " base64(key id:4 ‖ signature) "\n"
//! key id     = SHA-256(name ‖ 0x0a ‖ type:1 ‖ public key)[..4]
//! type 0x01  = Ed25519 over the text, 64 bytes
//! type 0x04  = time:8 ‖ Ed25519:64, signed over
//!              "cosignature/v1\ntime " seconds "\n" text
//! type 0x06  = time:8 ‖ ML-DSA-44:2420, signed over a `cosigned_message` of
//!              names, time, size and root; needs the feature `ml-dsa`
//! vkey       = name "+" hex(key id) "+" base64(type ‖ public key)
//! private    = "PRIVATE+KEY+" name "+" hex(key id) "+" base64(type ‖ seed)
//! ```
//!
//! Names have neither white space nor "+". Times are Unix seconds, big-endian.
//! Only this text form exists: a parsed note is written back byte for byte.

mod keys;
#[cfg(feature = "ml-dsa")]
mod ml_dsa_44;

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::text::{self, Line, Lines};
pub use keys::{Algorithm, CosigningKey, KeyId, Signed, SigningKey, VerifierKey};

/// Longest accepted note, in bytes: a head with the 16 cosignatures that c2sp.org/signed-note
/// asks for, also when each is an ML-DSA-44 one, a line of some 3,300.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;

/// Most signature lines in an accepted note.
pub const MAX_SIGNATURES: usize = 100;

/// A text and the signatures that claim to cover it.
///
/// Nothing in a note is to be believed before [`Note::verify`] or
/// [`Note::cosigned_at`] has succeeded with a key that the caller trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<SignatureLine>,
}

impl Note {
    /// A note of `text` with its first signature.
    ///
    /// # Errors
    /// When `text` does not end in a newline, has other control characters, or
    /// is too long.
    pub fn sign(text: &str, key: &SigningKey) -> Result<Self, DecodeError> {
        let mut note = Self {
            text: check_text(text)?.to_owned(),
            signatures: Vec::new(),
        };
        note.add(key.sign(text))?;
        Ok(note)
    }

    /// Reads a note; its signatures are not verified yet.
    ///
    /// # Errors
    /// Any byte that [`Note`]'s `Display` would not have written.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let note = text::plain_text(bytes, MAX_NOTE_BYTES)?;
        // The text may have empty lines of its own; the last one ends it.
        let Some(end) = note.rfind("\n\n") else {
            return Err(DecodeError::new(Kind::NoSignatures, note.len()));
        };
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        let signatures = parse_signature_lines(lines).map_err(|error| error.shifted(end + 2))?;
        Ok(Self {
            text: text.to_owned(),
            signatures,
        })
    }

    /// What is signed, with its final newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All signature lines in their order, known or not, true or not.
    pub fn signatures(&self) -> &[SignatureLine] {
        &self.signatures
    }

    /// Appends a signature line without verifying it; one that is already
    /// there is not repeated.
    ///
    /// # Errors
    /// When the note would become too long to be read back.
    pub fn add(&mut self, line: SignatureLine) -> Result<(), DecodeError> {
        if self.signatures.contains(&line) {
            return Ok(());
        }
        let bytes = self.to_string().len();
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(DecodeError::new(TOO_MANY_SIGNATURES, bytes));
        }
        if bytes + line.to_string().len() > MAX_NOTE_BYTES {
            return Err(DecodeError::new(TOO_LONG, bytes));
        }
        self.signatures.push(line);
        Ok(())
    }

    /// Checks that `key` signed the text with a plain signature.
    ///
    /// # Errors
    /// [`SignatureError::Missing`] without a line by `key`,
    /// [`SignatureError::Invalid`] if any of its lines does not verify.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), SignatureError> {
        match self.statements(key)?.contains(&Signed::Plain) {
            true => Ok(()),
            false => Err(SignatureError::Missing),
        }
    }

    /// The earliest time, in Unix seconds, at which witness `key` cosigned the text.
    ///
    /// # Errors
    /// [`SignatureError::Missing`] without a cosignature by `key`,
    /// [`SignatureError::Invalid`] if any of its lines does not verify.
    pub fn cosigned_at(&self, key: &VerifierKey) -> Result<u64, SignatureError> {
        let mut times = self.statements(key)?.into_iter().filter_map(Signed::at);
        times.next().ok_or(SignatureError::Missing)
    }

    /// All that `key` says of the text, times in their order.
    fn statements(&self, key: &VerifierKey) -> Result<BTreeSet<Signed>, SignatureError> {
        let by_key = self.signatures.iter().filter(|line| key.made(line));
        by_key.map(|line| key.verify(&self.text, line)).collect()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| line.fmt(f))
    }
}

/// One signature line. Its `Display` is the line with its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLine {
    name: String,
    id: KeyId,
    signature: Vec<u8>,
}

impl SignatureLine {
    /// Reads one line, newline included.
    ///
    /// # Errors
    /// Any byte that `Display` would not have written.
    pub fn parse(line: &str) -> Result<Self, DecodeError> {
        let mut lines = Lines::from_bytes(line.as_bytes(), MAX_NOTE_BYTES)?;
        let parsed = parse_signature_line(lines.next_line()?)?;
        if lines.is_empty() {
            Ok(parsed)
        } else {
            Err(DecodeError::new(Kind::TrailingBytes, lines.at()))
        }
    }

    /// The name of the key that is claimed to have signed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the key that is claimed to have signed.
    pub fn key_id(&self) -> KeyId {
        self.id
    }

    /// The signature without the key id; its form depends on the key's type.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }
}

impl fmt::Display for SignatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.id.0.to_vec();
        bytes.extend_from_slice(&self.signature);
        writeln!(f, "{DASH}{} {}", self.name, text::base64(&bytes))
    }
}

/// The lines of a signature block, at least one.
///
/// # Errors
/// No line, too many, or one that is malformed.
pub fn parse_signature_lines(block: &str) -> Result<Vec<SignatureLine>, DecodeError> {
    let mut lines = Lines::from_bytes(block.as_bytes(), MAX_NOTE_BYTES)?;
    let mut signatures = Vec::new();
    while signatures.is_empty() || !lines.is_empty() {
        if signatures.len() == MAX_SIGNATURES {
            return Err(DecodeError::new(TOO_MANY_SIGNATURES, lines.at()));
        }
        signatures.push(parse_signature_line(lines.next_line()?)?);
    }
    Ok(signatures)
}

/// Why a trusted key does not vouch for a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The note has no signature of that kind by this key.
    #[error("not signed by this key")]
    Missing,
    /// A line bears the key's name and id, and does not verify.
    #[error("signature does not verify")]
    Invalid,
}

fn parse_signature_line(line: Line<'_>) -> Result<SignatureLine, DecodeError> {
    let expected = Kind::Expected("— name base64");
    let Some(rest) = line.after(DASH) else {
        return Err(line.error(expected));
    };
    let Some((name, signature)) = rest.text.split_once(' ') else {
        return Err(rest.error(expected));
    };
    keys::check_name(name).map_err(|error| error.shifted(rest.at))?;
    let signature = Line {
        text: signature,
        at: rest.at + name.len() + 1,
    };
    match signature.base64()?.split_first_chunk() {
        Some((id, bytes)) if !bytes.is_empty() => Ok(SignatureLine {
            name: name.to_owned(),
            id: KeyId(*id),
            signature: bytes.to_vec(),
        }),
        _ => Err(signature.error(Kind::Truncated)),
    }
}

fn check_text(note: &str) -> Result<&str, DecodeError> {
    let note = text::plain_text(note.as_bytes(), MAX_NOTE_BYTES)?;
    if note.ends_with('\n') {
        Ok(note)
    } else {
        Err(DecodeError::new(Kind::Truncated, note.len()))
    }
}

const DASH: &str = "\u{2014} ";
const TOO_LONG: Kind = Kind::TooLong {
    max_bytes: MAX_NOTE_BYTES,
};
const TOO_MANY_SIGNATURES: Kind = Kind::TooMany {
    what: "signatures",
    max: MAX_SIGNATURES,
};
