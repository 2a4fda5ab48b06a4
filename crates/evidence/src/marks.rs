//! Marks: what a replay remembers of earlier lines beside the leaves, in constant time
//! and without the lines (docs/spec/30-trail.md §3, rules 14 and 15).
//!
//! ```text
//! finding    H("finding\0" ‖ seq:8 ‖ hash:33) line `seq` is a finding
//! accepted   H("accepted\0" ‖ seq:8)          somebody answers for it
//! erased     H("erased\0" ‖ seq:8)            line `seq` is an erasure
//! ```

use crate::codec::{Bytes32, Digest};
use pitser_ksi::hash::{Algorithm, hash};

pub(crate) fn finding(seq: u64, line_hash: Digest) -> Bytes32 {
    let imprint = line_hash.0.as_bytes();
    mark(&[b"finding\0", &seq.to_be_bytes(), imprint])
}

/// The mark of a finding that somebody answers for, by its line.
pub fn accepted(seq: u64) -> Bytes32 {
    mark(&[b"accepted\0", &seq.to_be_bytes()])
}

pub(crate) fn erased(seq: u64) -> Bytes32 {
    mark(&[b"erased\0", &seq.to_be_bytes()])
}

/// The mark of these bytes, by which [`crate::store::Storage::mark`] notes them.
pub fn mark(parts: &[&[u8]]) -> Bytes32 {
    let hash = hash(Algorithm::Sha256, parts);
    let mut mark = [0; 32];
    mark.copy_from_slice(hash.digest());
    Bytes32(mark)
}
