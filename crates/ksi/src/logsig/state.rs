//! State files, `KSISTAT10`: where the next log goes on from (spec §7).
//!
//! ```text
//! | "KSISTAT10":9 | algorithm id:1 | digest length:1 | digest of the last leaf |
//! ```
//!
//! A signer keeps one beside a log that is rotated, so that the first block of
//! the next file names the last leaf of the file before.

use crate::{
    error::{DecodeError, DecodeErrorKind},
    hash::{Algorithm, Imprint},
};

/// What a state file starts with.
pub const STATE_MAGIC: &[u8; 9] = b"KSISTAT10";

/// The bytes of a state file: `last_leaf` is that of the newest block.
#[must_use]
pub fn encode_state(last_leaf: &Imprint) -> Vec<u8> {
    let digest = last_leaf.digest();
    let mut file = STATE_MAGIC.to_vec();
    // A digest has at most 64 bytes.
    file.extend([last_leaf.algorithm().id(), digest.len() as u8]);
    file.extend(digest);
    file
}

/// The last leaf that a state file names.
///
/// # Errors
/// What is malformed, and where: the magic, an algorithm that is not known, a
/// length that is not its, bytes that are missing or left over.
pub fn decode_state(file: &[u8]) -> Result<Imprint, DecodeError> {
    let error = |kind, at| Err(DecodeError::new(kind, at));
    let Some(rest) = file.strip_prefix(STATE_MAGIC) else {
        return error(DecodeErrorKind::Magic, 0);
    };
    let at = STATE_MAGIC.len();
    let [id, length, digest @ ..] = rest else {
        return error(DecodeErrorKind::Truncated, file.len());
    };
    let Some(algorithm) = Algorithm::from_id(*id) else {
        return error(DecodeErrorKind::Algorithm(*id), at);
    };
    if usize::from(*length) != algorithm.digest_len() {
        return error(DecodeErrorKind::Range, at + 1);
    }
    match digest.len().cmp(&algorithm.digest_len()) {
        core::cmp::Ordering::Less => error(DecodeErrorKind::Truncated, file.len()),
        core::cmp::Ordering::Greater => error(
            DecodeErrorKind::TrailingBytes,
            at + 2 + algorithm.digest_len(),
        ),
        core::cmp::Ordering::Equal => {
            Ok(Imprint::new(algorithm, digest)
                .expect("the length was compared with the algorithm's"))
        }
    }
}
