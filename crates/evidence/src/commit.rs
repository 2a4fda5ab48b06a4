//! Commitments: a record's key, a row's columns, a person, a raw message.
//!
//! ```text
//! line nonce   = HMAC(K, "pitser/v1/line" 00 ‖ origin 00 ‖ timeline:4 ‖ seq:8)
//! column nonce = HMAC(line nonce, "column" 00 ‖ name)
//! other nonce  = HMAC(line nonce, "person" 00)  |  HMAC(line nonce, "raw" 00)
//! column leaf  = H(00 ‖ column nonce:32 ‖ len(name):2 ‖ name ‖ null:1 ‖ value)
//! node         = H(01 ‖ left ‖ right)                  RFC 6962 tree shape
//! row          = H("pitser/v1/row" 00 ‖ columns:2 ‖ (len(name):2 ‖ name) ... ‖ root)
//! person, raw  = H("pitser/v1/person" 00 ‖ nonce ‖ bytes), likewise "raw"
//! record key   = HMAC(T, len(cell):4 ‖ cell ...)       cells of the primary key
//! table key    = H("pitser/v1/table-key" 00 ‖ table 00 ‖ T)
//! ```
//! `K` is the random key of the patient, or of the table for rows without a
//! patient; `T` the table's HMAC key. `H` is SHA-256, HMAC is HMAC-SHA-256,
//! integers are big-endian. Nonces are secret until a column is opened, so a
//! value cannot be confirmed by guessing; destroying `K` closes all its rows.
//! The names stand in the row commitment itself, since they are shown even
//! where a column is kept back and only its leaf is given. A row has at most
//! 65535 columns, a name at most 65535 bytes.

use crate::codec::{Bytes32, Digest};
use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A 32-byte secret key; never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

impl Key {
    /// Takes 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be stored or used as another primitive's key.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives another key or nonce.
    pub fn derive(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// The secret that opens one line's commitments.
#[derive(Clone)]
pub struct LineNonce(Key);

impl LineNonce {
    /// The nonce of line `seq` under the key of its patient or table.
    pub fn new(key: &Key, origin: &str, timeline: u32, seq: u64) -> Self {
        Self(Key(key.derive(&[
            b"pitser/v1/line\0",
            origin.as_bytes(),
            b"\0",
            &timeline.to_be_bytes(),
            &seq.to_be_bytes(),
        ])))
    }

    /// The nonce of one column; disclosing it opens that column alone.
    pub fn column(&self, name: &str) -> Bytes32 {
        Bytes32(self.0.derive(&[b"column\0", name.as_bytes()]))
    }

    /// The nonce of the person behind the actor.
    pub fn person(&self) -> Bytes32 {
        Bytes32(self.0.derive(&[b"person\0"]))
    }

    /// The nonce of the raw message.
    pub fn raw(&self) -> Bytes32 {
        Bytes32(self.0.derive(&[b"raw\0"]))
    }
}

impl fmt::Debug for LineNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LineNonce(secret)")
    }
}

/// The leaf of one column. `value` is the engine's canonical bytes, `None` for NULL.
pub fn column_leaf(nonce: &Bytes32, name: &str, value: Option<&[u8]>) -> [u8; 32] {
    Sha256::new()
        .chain_update([0x00])
        .chain_update(nonce.0)
        .chain_update(short_length(name.len()))
        .chain_update(name)
        .chain_update([u8::from(value.is_none())])
        .chain_update(value.unwrap_or_default())
        .finalize()
        .into()
}

/// The row commitment over names and column leaves, in the table's column order.
pub fn row_root<'a>(columns: impl IntoIterator<Item = (&'a str, [u8; 32])>) -> Digest {
    let mut names = Vec::new();
    let mut leaves = Vec::new();
    for (name, leaf) in columns {
        names.extend(short_length(name.len()));
        names.extend(name.as_bytes());
        leaves.push(leaf);
    }
    Digest::of(&[
        b"pitser/v1/row\0",
        &short_length(leaves.len()),
        &names,
        &merkle_root(&leaves),
    ])
}

/// Leaves and commitment of a whole row.
pub fn commit_row<'a>(
    nonce: &LineNonce,
    columns: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> (Vec<[u8; 32]>, Digest) {
    let columns: Vec<_> = columns
        .into_iter()
        .map(|(name, value)| (name, column_leaf(&nonce.column(name), name, value)))
        .collect();
    let root = row_root(columns.iter().copied());
    (columns.into_iter().map(|(_, leaf)| leaf).collect(), root)
}

/// Commitment to the person behind an actor.
pub fn commit_person(nonce: &Bytes32, person: &str) -> Digest {
    Digest::of(&[b"pitser/v1/person\0", &nonce.0, person.as_bytes()])
}

/// Commitment to the raw bytes of a message.
pub fn commit_raw(nonce: &Bytes32, raw: &[u8]) -> Digest {
    Digest::of(&[b"pitser/v1/raw\0", &nonce.0, raw])
}

/// The opaque key of a record: `cells` are the primary key's canonical values.
pub fn record_key<'a>(table_key: &Key, cells: impl IntoIterator<Item = &'a [u8]>) -> Bytes32 {
    let mut mac = keyed(table_key.expose());
    for cell in cells {
        mac.update(&u32::try_from(cell.len()).unwrap_or(u32::MAX).to_be_bytes());
        mac.update(cell);
    }
    Bytes32(mac.finalize().into_bytes().into())
}

/// What the genesis line says of a table's key.
pub fn commit_table_key(table: &str, key: &Key) -> Digest {
    Digest::of(&[
        b"pitser/v1/table-key\0",
        table.as_bytes(),
        b"\0",
        key.expose(),
    ])
}

/// What is given to the pseudonym function for a patient identifier.
pub fn patient_alpha(origin: &str, identifier: &str) -> Vec<u8> {
    [
        b"pitser/v1/patient\0",
        origin.as_bytes(),
        b"\0",
        identifier.as_bytes(),
    ]
    .concat()
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn short_length(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Merkle tree head in the shape of RFC 6962 §2.1, over ready leaf hashes.
fn merkle_root(leaves: &[[u8; 32]]) -> [u8; 32] {
    match leaves {
        [] => [0; 32],
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            Sha256::new()
                .chain_update([0x01])
                .chain_update(merkle_root(left))
                .chain_update(merkle_root(right))
                .finalize()
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64, status: Option<&[u8]>) -> (Vec<[u8; 32]>, Digest) {
        let nonce = LineNonce::new(&Key::new([1; 32]), "o/s", 1, seq);
        commit_row(
            &nonce,
            [
                ("id", Some(&b"tobs-1"[..])),
                ("status", status),
                ("value", Some(b"r1.5")),
            ],
        )
    }

    #[test]
    fn one_changed_column_changes_one_leaf_and_the_root() {
        let (a, root_a) = row(4, Some(b"tfinal"));
        let (b, root_b) = row(4, Some(b"tfinam"));
        assert_ne!(root_a, root_b);
        let differing: Vec<_> = (0..3).filter(|&i| a[i] != b[i]).collect();
        assert_eq!(differing, [1]);
        assert_eq!(
            row_root(["id", "status", "value"].into_iter().zip(a)),
            root_a
        );
    }

    #[test]
    fn a_column_cannot_be_shown_under_another_name() {
        let (leaves, root) = row(4, Some(b"tfinal"));
        assert_ne!(
            row_root(["id", "hidden", "value"].into_iter().zip(leaves)),
            root
        );
    }

    #[test]
    fn null_empty_and_other_lines_differ() {
        assert_ne!(row(4, None).1, row(4, Some(b"")).1);
        assert_ne!(row(4, None).1, row(5, None).1);
    }

    #[test]
    fn names_and_values_cannot_run_into_each_other() {
        let nonce = Bytes32([0; 32]);
        assert_ne!(
            column_leaf(&nonce, "ab", Some(b"c")),
            column_leaf(&nonce, "a", Some(b"bc"))
        );
        let key = Key::new([2; 32]);
        assert_ne!(
            record_key(&key, [&b"ab"[..], b"c"]),
            record_key(&key, [&b"a"[..], b"bc"])
        );
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Key::new([0x41; 32])), "Key(secret)");
    }
}
