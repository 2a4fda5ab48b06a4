//! Where log signatures meet signatures.

use super::proof::RecordChain;
use crate::{
    error::DecodeError,
    hash::Imprint,
    policy::{self, Context, Verdict},
    signature::{HangError, Signature},
};

/// What an 0800 signs; in a seal, the block's root.
///
/// # Errors
/// If `signature` is not an 0800; positions count from its first byte.
pub fn signed_root(signature: &[u8]) -> Result<Imprint, DecodeError> {
    Signature::decode(signature).map(|signature| signature.input())
}

/// Judges the signature in a block's seal: `root` is that of
/// [`super::BlockReport`], `level` that of [`super::Format::signing_level`].
/// The document and level of `context` are not used.
///
/// An intact verdict together with an intact report proves every line.
#[must_use]
pub fn verify_signature_of_block(
    signature: &Signature,
    root: Imprint,
    level: u8,
    context: &Context<'_>,
) -> Verdict {
    policy::verify(
        signature,
        &Context {
            document: Some(root),
            level,
            ..*context
        },
    )
}

/// The signature of one record alone, as a `.ksig` holds it: the signature of
/// its block with the record's path hung in as the lowest chain (spec §3.9).
/// Its document is the line, or the bytes of the metarecord.
///
/// # Errors
/// [`HangError`] if the path does not lead to the signed root, or the root was
/// not signed as that of a tree, as in `LOGSIG11`.
pub fn record_signature(signature: &Signature, path: &RecordChain) -> Result<Signature, HangError> {
    let record = path.record();
    signature.hang(record.algorithm(), record, path.links())
}
