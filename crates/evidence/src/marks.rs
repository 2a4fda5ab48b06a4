//! Marks: what a replay remembers of earlier lines beside the leaves, in constant time
//! and without the lines (docs/spec/30-trail.md §3, rules 14 to 17).
//!
//! ```text
//! finding    H("finding\0" ‖ seq:8 ‖ hash:33)            line `seq` is a finding
//!            H("finding\0" ‖ seq:8 ‖ hash:33 ‖ place)    in this place, by rule 16
//! accepted   H("accepted\0" ‖ seq:8)                     somebody answers for it
//! erased     H("erased\0" ‖ seq:8)                       line `seq` is an erasure, or
//!                                                        accepts a finding after one
//! hold       H("hold\0" ‖ seq:8 ‖ hash:33 ‖ patient)    line `seq` is a hold of that patient
//! released   H("released\0" ‖ seq:8)                     the hold of that line stands no more
//! place      table ‖ key ‖ patient: 00, or 01 ‖ length:4 ‖ what the line says
//! ```

use crate::codec::Bytes32;
use crate::line::{Line, Patient, Prev};
use pitser_ksi::hash::{Algorithm, hash};

pub(crate) fn finding(Prev { hash, seq }: Prev) -> Bytes32 {
    mark(&[b"finding\0", &seq.to_be_bytes(), hash.0.as_bytes()])
}

/// The mark of a finding that stands in the lists in which `line` does.
pub(crate) fn finding_beside(Prev { hash, seq }: Prev, line: &Line) -> Bytes32 {
    let key = line.key.as_ref().map(|key| &key.0[..]);
    let patient = line.patient.map(|patient| patient.to_string());
    let table = line.table.as_deref().map(str::as_bytes);
    let mut place = Vec::new();
    for part in [table, key, patient.as_deref().map(str::as_bytes)] {
        place.push(u8::from(part.is_some()));
        if let Some(part) = part {
            // A line is shorter than 2^32 bytes.
            place.extend((part.len() as u32).to_be_bytes());
            place.extend(part);
        }
    }
    mark(&[b"finding\0", &seq.to_be_bytes(), hash.0.as_bytes(), &place])
}

/// The mark of a finding that somebody answers for, by its line.
pub fn accepted(seq: u64) -> Bytes32 {
    mark(&[b"accepted\0", &seq.to_be_bytes()])
}

pub(crate) fn erased(seq: u64) -> Bytes32 {
    mark(&[b"erased\0", &seq.to_be_bytes()])
}

/// The mark of a patient's hold.
pub(crate) fn hold(Prev { hash, seq }: Prev, patient: &Patient) -> Bytes32 {
    let patient = patient.to_string();
    let (seq, hash) = (seq.to_be_bytes(), hash.0.as_bytes());
    mark(&[b"hold\0", &seq, hash, patient.as_bytes()])
}

pub(crate) fn released(seq: u64) -> Bytes32 {
    mark(&[b"released\0", &seq.to_be_bytes()])
}

/// The mark of these bytes, by which [`crate::store::Storage::mark`] notes them.
pub fn mark(parts: &[&[u8]]) -> Bytes32 {
    let hash = hash(Algorithm::Sha256, parts);
    let mut mark = [0; 32];
    mark.copy_from_slice(hash.digest());
    Bytes32(mark)
}
