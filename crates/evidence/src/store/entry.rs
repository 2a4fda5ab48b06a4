//! A leaf as a bucket holds it: everything that is not a hash of something
//! else there.
//!
//! ```text
//! entry    length:1 (of all that follows) ‖ flags:1 ‖ key:32 ‖ rest
//! flags    bits 0-1  0 record, 1 patient, 2 mark
//!          bit 2     record: the row is present
//!          bit 3     hashes are imprints, not plain SHA-256 digests
//!          bit 4     patient: holds stand
//! key      of the record; pseudonym of the patient, zero for *many and *unknown; the mark
//! record   table ‖ count ‖ last seq ‖ last hash ‖ patient ‖ row's patient
//!          [‖ row ‖ timeline ‖ last seq − row seq]
//! patient  number ‖ count ‖ last seq ‖ last hash [‖ holds]
//! ```
//! Numbers are LEB128. A patient's number is 1 for `*many`, 2 for `*unknown`,
//! and from 3 on in the order in which they came; 0 is nobody.

use crate::codec::{Bytes32, Digest};
use crate::line::Patient;
use crate::map::{Leaf, LeafKind, RowRef};
use pitser_ksi::hash::{Algorithm, Imprint};
use std::ops::Range;

const RECORD: u8 = 0;
const PATIENT: u8 = 1;
const MARK: u8 = 2;
const KIND: u8 = 0b11;
const ROW: u8 = 1 << 2;
const IMPRINTS: u8 = 1 << 3;
const HOLDS: u8 = 1 << 4;

/// Number of a patient; 0 is nobody.
pub(super) type PatientNumber = u32;
pub(super) const MANY: PatientNumber = 1;
pub(super) const UNKNOWN: PatientNumber = 2;
pub(super) const FIRST_PSEUDONYM: PatientNumber = 3;

/// A bucket's bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bucket of the map is malformed")]
pub struct Malformed;

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Record { table: u32, key: Bytes32 },
    Patient(Patient),
    Mark(Bytes32),
}

impl Subject {
    /// The first bytes of the digest in it.
    pub(super) fn first_bytes(&self) -> [u8; 2] {
        match self {
            Self::Record {
                key: Bytes32(d), ..
            }
            | Self::Patient(Patient::Pseudonym(Bytes32(d)))
            | Self::Mark(Bytes32(d)) => [d[0], d[1]],
            Self::Patient(Patient::Many | Patient::Unknown) => [0; 2],
        }
    }
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Record {
        table: u32,
        key: Bytes32,
        leaf: Leaf,
        patient: PatientNumber,
        row_patient: PatientNumber,
    },
    Patient {
        patient: Patient,
        number: PatientNumber,
        leaf: Leaf,
        /// How many stand.
        holds: u64,
    },
    /// Something that was noted beside the leaves; not in the map.
    Mark(Bytes32),
}

impl Entry {
    /// Appends the entry's bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(0);
        match self {
            Self::Record {
                table,
                key,
                leaf,
                patient,
                row_patient,
            } => {
                let row = leaf.row.as_ref();
                let plain = is_plain(&leaf.last_hash) && row.is_none_or(|row| is_plain(&row.row));
                let flags = if row.is_some() { ROW } else { 0 } | if plain { 0 } else { IMPRINTS };
                out.push(RECORD | flags);
                out.extend(key.0);
                number(out, u64::from(*table));
                number(out, leaf.count);
                number(out, leaf.last_seq);
                hash(out, &leaf.last_hash, plain);
                number(out, u64::from(*patient));
                number(out, u64::from(*row_patient));
                if let Some(row) = row {
                    hash(out, &row.row, plain);
                    number(out, u64::from(row.timeline));
                    number(out, leaf.last_seq.wrapping_sub(row.seq));
                }
            }
            Self::Patient {
                patient,
                number: own,
                leaf,
                holds,
            } => {
                let plain = is_plain(&leaf.last_hash);
                let flags = if *holds > 0 { HOLDS } else { 0 } | if plain { 0 } else { IMPRINTS };
                out.push(PATIENT | flags);
                match patient {
                    Patient::Pseudonym(pseudonym) => out.extend(pseudonym.0),
                    Patient::Many | Patient::Unknown => out.extend([0; 32]),
                }
                number(out, u64::from(*own));
                number(out, leaf.count);
                number(out, leaf.last_seq);
                hash(out, &leaf.last_hash, plain);
                if *holds > 0 {
                    number(out, *holds);
                }
            }
            Self::Mark(mark) => {
                out.push(MARK);
                out.extend(mark.0);
            }
        }
        out[start] =
            u8::try_from(out.len() - start - 1).expect("the longest entry has some 220 bytes");
    }

    /// Reads the entry that `bytes` are, without its length.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&flags, rest) = bytes.split_first()?;
        let (key, mut rest) = rest.split_first_chunk::<32>()?;
        let rest = &mut rest;
        let key = Bytes32(*key);
        let plain = flags & IMPRINTS == 0;
        let entry = match flags & KIND {
            RECORD => {
                let table = small(rest)?;
                let (count, last_seq) = (take_number(rest)?, take_number(rest)?);
                let last_hash = take_hash(rest, plain)?;
                let (patient, row_patient) = (small(rest)?, small(rest)?);
                let mut leaf = Leaf {
                    count,
                    last_seq,
                    last_hash,
                    row: None,
                    kind: LeafKind::Record,
                };
                if flags & ROW != 0 {
                    leaf.row = Some(RowRef {
                        row: take_hash(rest, plain)?,
                        timeline: small(rest)?,
                        seq: last_seq.wrapping_sub(take_number(rest)?),
                    });
                }
                Self::Record {
                    table,
                    key,
                    leaf,
                    patient,
                    row_patient,
                }
            }
            PATIENT => {
                let own = small(rest)?;
                Self::Patient {
                    patient: match own {
                        MANY => Patient::Many,
                        UNKNOWN => Patient::Unknown,
                        _ => Patient::Pseudonym(key),
                    },
                    number: own,
                    leaf: Leaf {
                        count: take_number(rest)?,
                        last_seq: take_number(rest)?,
                        last_hash: take_hash(rest, plain)?,
                        row: None,
                        kind: LeafKind::Patient,
                    },
                    holds: match flags & HOLDS {
                        0 => 0,
                        _ => take_number(rest)?,
                    },
                }
            }
            MARK => Self::Mark(key),
            _ => return None,
        };
        rest.is_empty().then_some(entry)
    }
}

/// Where each entry of a bucket is: its bytes with their length in front.
pub(super) fn spans(bucket: &[u8]) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    let mut rest = bucket;
    std::iter::from_fn(move || {
        let len = 1 + usize::from(*rest.first()?);
        match rest.split_at_checked(len) {
            Some((span, tail)) => {
                rest = tail;
                Some(Ok(span))
            }
            None => {
                rest = &[];
                Some(Err(Malformed))
            }
        }
    })
}

/// All entries of a bucket.
pub(super) fn entries(bucket: &[u8]) -> impl Iterator<Item = Result<Entry, Malformed>> {
    spans(bucket).map(|span| Entry::read(&span?[1..]).ok_or(Malformed))
}

/// Where the entry about `subject` stands in a bucket, and the entry.
///
/// It is looked for from one entry to the next, never where it stood before: whoever
/// writes lines chooses a row's digest, and could have it read as an entry.
pub(super) fn find(
    bucket: &[u8],
    subject: &Subject,
) -> Result<Option<(Range<usize>, Entry)>, Malformed> {
    let key = match subject {
        Subject::Record { key, .. }
        | Subject::Patient(Patient::Pseudonym(key))
        | Subject::Mark(key) => key,
        Subject::Patient(Patient::Many | Patient::Unknown) => &Bytes32([0; 32]),
    };
    let mut at = 0;
    for span in spans(bucket) {
        let span = span?;
        let here = at..at + span.len();
        at = here.end;
        if let Some(entry) = read_if(span, subject, key)? {
            return Ok(Some((here, entry)));
        }
    }
    Ok(None)
}

/// The entry that these bytes are, if it is about `subject`, whose digest `key` is.
fn read_if(span: &[u8], subject: &Subject, key: &Bytes32) -> Result<Option<Entry>, Malformed> {
    let kind = match subject {
        Subject::Record { .. } => RECORD,
        Subject::Patient(_) => PATIENT,
        Subject::Mark(_) => MARK,
    };
    let is_of_kind = span.get(1).is_some_and(|flags| flags & KIND == kind);
    if !is_of_kind || span.get(2..34) != Some(&key.0[..]) {
        return Ok(None);
    }
    let entry = Entry::read(&span[1..]).ok_or(Malformed)?;
    let is_meant = match (&entry, subject) {
        (Entry::Record { table: there, .. }, Subject::Record { table, .. }) => there == table,
        (Entry::Patient { patient: there, .. }, Subject::Patient(patient)) => there == patient,
        _ => true,
    };
    Ok(is_meant.then_some(entry))
}

fn is_plain(digest: &Digest) -> bool {
    digest.0.algorithm() == Algorithm::Sha256
}

fn hash(out: &mut Vec<u8>, digest: &Digest, plain: bool) {
    out.extend(if plain {
        digest.0.digest()
    } else {
        digest.0.as_bytes()
    });
}

fn take_hash(rest: &mut &[u8], plain: bool) -> Option<Digest> {
    let (algorithm, skip) = if plain {
        (Algorithm::Sha256, 0)
    } else {
        (Algorithm::from_id(*rest.first()?)?, 1)
    };
    let (head, tail) = rest.split_at_checked(skip + algorithm.digest_len())?;
    *rest = tail;
    Imprint::new(algorithm, &head[skip..]).map(Digest)
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn small(rest: &mut &[u8]) -> Option<u32> {
    take_number(rest)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(kind: LeafKind, row: Option<RowRef>, hash: Digest) -> Leaf {
        Leaf {
            count: 300,
            last_seq: u64::MAX,
            last_hash: hash,
            row,
            kind,
        }
    }

    #[test]
    fn entries_read_back_and_are_found() {
        let plain = Digest::of(&[b"line"]);
        let long = Digest(pitser_ksi::hash::hash(Algorithm::Sha512, &[b"line"]));
        let row = |row| RowRef {
            row,
            timeline: 7,
            seq: 9,
        };
        let record = |table, leaf| Entry::Record {
            table,
            key: Bytes32([4; 32]),
            leaf,
            patient: MANY,
            row_patient: u32::MAX,
        };
        let all = [
            record(0, leaf(LeafKind::Record, None, plain)),
            record(1, leaf(LeafKind::Record, Some(row(plain)), plain)),
            record(2, leaf(LeafKind::Record, Some(row(long)), plain)),
            record(3, leaf(LeafKind::Record, Some(row(long)), long)),
            Entry::Patient {
                patient: Patient::Many,
                number: MANY,
                leaf: leaf(LeafKind::Patient, None, plain),
                holds: 0,
            },
            Entry::Patient {
                patient: Patient::Unknown,
                number: UNKNOWN,
                leaf: leaf(LeafKind::Patient, None, long),
                holds: u64::MAX,
            },
            Entry::Patient {
                patient: Patient::Pseudonym(Bytes32([4; 32])),
                number: FIRST_PSEUDONYM,
                leaf: leaf(LeafKind::Patient, None, plain),
                holds: 1,
            },
            Entry::Mark(Bytes32([4; 32])),
        ];
        let mut bucket = Vec::new();
        all.iter().for_each(|entry| entry.write(&mut bucket));
        let back: Result<Vec<_>, _> = entries(&bucket).collect();
        assert_eq!(back.unwrap(), all);
        for entry in &all {
            let subject = match entry {
                Entry::Record { table, key, .. } => Subject::Record {
                    table: *table,
                    key: *key,
                },
                Entry::Patient { patient, .. } => Subject::Patient(*patient),
                Entry::Mark(mark) => Subject::Mark(*mark),
            };
            let (span, found) = find(&bucket, &subject).unwrap().unwrap();
            assert_eq!(found, *entry);
            let mut bytes = Vec::new();
            entry.write(&mut bytes);
            assert_eq!(bucket[span], bytes);
        }
        let absent = Subject::Record {
            table: 9,
            key: Bytes32([4; 32]),
        };
        assert_eq!(find(&bucket, &absent), Ok(None));
        // Cut anywhere but between two entries, it is no bucket.
        let ends: Vec<usize> = spans(&bucket)
            .scan(0, |at, span| {
                *at += span.unwrap().len();
                Some(*at)
            })
            .collect();
        for cut in 1..bucket.len() {
            let whole = entries(&bucket[..cut]).all(|entry| entry.is_ok());
            assert_eq!(whole, ends.contains(&cut), "{cut}");
        }
    }
}
