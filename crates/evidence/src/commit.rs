//! Commitments: a record's key, a row's columns, a person, a raw message.
//!
//! ```text
//! line nonce   = HMAC(K, "pitser/v1/line" 00 ‖ origin 00 ‖ timeline:4 ‖ seq:8)
//! column nonce = HMAC(line nonce, "column" 00 ‖ name)
//! other nonce  = HMAC(line nonce, "person" 00)  |  HMAC(line nonce, "raw" 00)
//!              | HMAC(line nonce, "decider" 00 ‖ which:1)
//! column leaf  = H(00 ‖ column nonce:32 ‖ len(name):2 ‖ name ‖ null:1 ‖ value)
//! node         = H(01 ‖ left ‖ right)                  RFC 6962 tree shape
//! row          = H("pitser/v1/row" 00 ‖ columns:2 ‖ (len(name):2 ‖ name) ... ‖ root)
//! person, raw  = H("pitser/v1/person" 00 ‖ nonce ‖ bytes), likewise "raw"
//! record key   = HMAC(T, len(cell):4 ‖ cell ...)       cells of the primary key
//! table key    = H("pitser/v1/table-key" 00 ‖ table 00 ‖ T)
//! ```
//! `K` is the random key of the patient, or of the table for rows without a
//! patient, or that of all erasures for the people who decided one; `T` the
//! table's HMAC key. `H` is SHA-256, HMAC is HMAC-SHA-256,
//! integers are big-endian. Nonces are secret until a column is opened, so a
//! value cannot be confirmed by guessing; destroying `K` closes all its rows.
//! The names stand in the row commitment itself, since they are shown even
//! where a column is kept back and only its leaf is given. A row has at most
//! 65535 columns, a name at most 65535 bytes.

use crate::codec::{Bytes32, Digest};
use hmac::{Hmac, Mac};
use pitser_ksi::hash::{Algorithm, Batch, Imprint};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::ops::Range;
use zeroize::{Zeroize, ZeroizeOnDrop};

const COLUMN: &[u8] = b"column\0";
const ROW: &[u8] = b"pitser/v1/row\0";

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
        Bytes32(self.0.derive(&[COLUMN, name.as_bytes()]))
    }

    /// The nonce of the person behind the actor.
    pub fn person(&self) -> Bytes32 {
        Bytes32(self.0.derive(&[b"person\0"]))
    }

    /// The nonce of the first (0) or the second (1) of those who decided an erasure.
    pub fn decider(&self, which: u8) -> Bytes32 {
        Bytes32(self.0.derive(&[b"decider\0", &[which]]))
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
    column_hasher(&nonce.0, name, value.is_none())
        .chain_update(value.unwrap_or_default())
        .finalize()
        .into()
}

/// What is to take the value of a column, for its leaf.
pub(crate) fn column_hasher(nonce: &[u8; 32], name: &str, is_null: bool) -> Sha256 {
    Sha256::new()
        .chain_update([0x00])
        .chain_update(nonce)
        .chain_update(short_length(name.len()))
        .chain_update(name)
        .chain_update([u8::from(is_null)])
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
        ROW,
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
    let keyed = keyed(&nonce.0.0);
    let leaf = |(name, value)| {
        let nonce = keyed.clone().chain_update(COLUMN).chain_update(name);
        let nonce = Bytes32(nonce.finalize().into_bytes().into());
        (name, column_leaf(&nonce, name, value))
    };
    let columns: Vec<_> = columns.into_iter().map(leaf).collect();
    let root = row_root(columns.iter().copied());
    (columns.into_iter().map(|(_, leaf)| leaf).collect(), root)
}

/// Commits to many rows together: what comes out is [`commit_row`] of each, in a
/// fraction of the time, since their hashes are computed side by side.
///
/// Meant to be kept and filled again. Values are overwritten once they are hashed.
pub struct Rows {
    batch: Batch,
    /// The message of each leaf; its nonce is filled in when it is known.
    messages: Vec<u8>,
    columns: Vec<Column>,
    /// The names of each row, as they are hashed.
    names: Vec<u8>,
    rows: Vec<RowBounds>,
}

/// Where a column's leaf message is, and its key on the way to its nonce.
struct Column {
    message: Range<usize>,
    row: usize,
    /// Of a large value: hashed where it lies, so that nothing is copied.
    leaf: Option<[u8; 32]>,
}

/// Bytes from which on a value is large: beside it, others gain nothing.
const LARGE: usize = 64 << 10;

/// Which columns and names are a row's, and its nonce's two HMAC blocks.
struct RowBounds {
    columns: Range<usize>,
    names: Range<usize>,
    outer: [u8; 64],
}

/// A row's leaves and its commitment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// One for each column, in their order.
    pub leaves: Vec<[u8; 32]>,
    /// The commitment.
    pub row: Digest,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            batch: Batch::new(Algorithm::Sha256),
            messages: Vec::new(),
            columns: Vec::new(),
            names: Vec::new(),
            rows: Vec::new(),
        }
    }
}

impl Rows {
    /// Adds a row.
    pub fn push<'a>(
        &mut self,
        nonce: &LineNonce,
        columns: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) {
        let (first, names) = (self.columns.len(), self.names.len());
        let inner = block(nonce.0.expose(), 0x36);
        for (name, value) in columns {
            let large = value.filter(|value| value.len() >= LARGE);
            let leaf = large.map(|value| column_leaf(&nonce.column(name), name, Some(value)));
            let value = value.filter(|_| leaf.is_none());
            self.batch.push(&[&inner, COLUMN, name.as_bytes()]);
            let start = self.messages.len();
            self.messages.push(0x00);
            self.messages.extend([0; 32]);
            self.messages.extend(short_length(name.len()));
            self.messages.extend_from_slice(name.as_bytes());
            self.messages.push(u8::from(value.is_none()));
            self.messages.extend_from_slice(value.unwrap_or_default());
            self.columns.push(Column {
                message: start..self.messages.len(),
                row: self.rows.len(),
                leaf,
            });
            self.names.extend(short_length(name.len()));
            self.names.extend_from_slice(name.as_bytes());
        }
        self.rows.push(RowBounds {
            columns: first..self.columns.len(),
            names: names..self.names.len(),
            outer: block(nonce.0.expose(), 0x5c),
        });
    }

    /// Takes out the commitments, in the order of their rows.
    pub fn drain(&mut self) -> Vec<Committed> {
        let mut hashes = self.hashes();
        for (column, inner) in self.columns.iter().zip(&hashes) {
            self.batch.push(&[&self.rows[column.row].outer, inner]);
        }
        hashes = self.hashes();
        for (column, nonce) in self.columns.iter().zip(&hashes) {
            let message = &mut self.messages[column.message.clone()];
            message[1..33].copy_from_slice(nonce);
            self.batch.push(&[message]);
        }
        let mut leaves = self.hashes();
        for (leaf, column) in leaves.iter_mut().zip(&self.columns) {
            *leaf = column.leaf.unwrap_or(*leaf);
        }
        let roots = self.roots(&leaves);
        for (row, root) in self.rows.iter().zip(&roots) {
            let names = &self.names[row.names.clone()];
            let count = short_length(row.columns.len());
            self.batch.push(&[ROW, &count, names, root]);
        }
        let rows = self.rows.iter().zip(self.batch.drain());
        let committed = rows.map(|(row, imprint)| Committed {
            leaves: leaves[row.columns.clone()].to_vec(),
            row: Digest(imprint),
        });
        let committed = committed.collect();
        self.clear();
        committed
    }

    /// The roots of all rows' trees, level by level: an odd node goes up as it is,
    /// which gives the shape of RFC 6962.
    fn roots(&mut self, leaves: &[[u8; 32]]) -> Vec<[u8; 32]> {
        let rows = self.rows.iter().map(|row| row.columns.clone());
        let mut trees: Vec<Vec<[u8; 32]>> = rows.map(|row| leaves[row].to_vec()).collect();
        while trees.iter().any(|tree| tree.len() > 1) {
            for pair in trees.iter().flat_map(|tree| tree.chunks_exact(2)) {
                self.batch.push(&[&[0x01], &pair[0], &pair[1]]);
            }
            let mut nodes = self.batch.drain().map(|node| array(&node));
            for tree in &mut trees {
                let odd = tree.chunks_exact(2).remainder().first().copied();
                let above = nodes.by_ref().take(tree.len() / 2).chain(odd);
                *tree = above.collect();
            }
        }
        let root = |tree: Vec<[u8; 32]>| tree.first().copied().unwrap_or_default();
        trees.into_iter().map(root).collect()
    }

    fn hashes(&mut self) -> Vec<[u8; 32]> {
        self.batch.drain().map(|imprint| array(&imprint)).collect()
    }

    fn clear(&mut self) {
        self.messages.zeroize();
        self.names.clear();
        self.columns.clear();
        for row in &mut self.rows {
            row.outer.zeroize();
        }
        self.rows.clear();
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({})", self.rows.len())
    }
}

/// A key of 32 bytes as the block that HMAC hashes first (RFC 2104).
fn block(key: &[u8; 32], pad: u8) -> [u8; 64] {
    let mut block = [pad; 64];
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
    block
}

fn array(imprint: &Imprint) -> [u8; 32] {
    let digest = imprint.digest().try_into();
    digest.expect("a SHA-256 digest has 32 bytes")
}

/// Commitment to the person behind an actor.
pub fn commit_person(nonce: &Bytes32, person: &str) -> Digest {
    Digest::of(&[b"pitser/v1/person\0", &nonce.0, person.as_bytes()])
}

/// Commitment to the raw bytes of a message.
pub fn commit_raw(nonce: &Bytes32, raw: &[u8]) -> Digest {
    Digest::of(&[RAW, &nonce.0, raw])
}

/// What is to take a message, for its commitment.
pub(crate) fn raw_hasher(nonce: &[u8; 32]) -> Sha256 {
    Sha256::new().chain_update(RAW).chain_update(nonce)
}

const RAW: &[u8] = b"pitser/v1/raw\0";

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
    fn many_rows_together_are_each_as_alone() {
        let names: Vec<String> = (0..40).map(|n| "x".repeat(n * 7 % 90)).collect();
        let mut values: Vec<Vec<u8>> = (0..40).map(|n| vec![n as u8; n * n % 700]).collect();
        for (place, length) in [(1, LARGE - 1), (4, LARGE), (7, LARGE + 1)] {
            values[place] = vec![7; length];
        }
        let row = |width: usize| {
            let value = |n: usize| (!n.is_multiple_of(3)).then_some(&values[n][..]);
            (0..width).map(move |n| (n, value(n)))
        };
        let mut rows = Rows::default();
        for _ in 0..2 {
            let widths = [0, 1, 2, 3, 10, 40, 17, 0, 5];
            let nonce = |seq| LineNonce::new(&Key::new([3; 32]), "o/s", 1, seq);
            for (seq, width) in (0..).zip(widths) {
                rows.push(
                    &nonce(seq),
                    row(width).map(|(n, value)| (&*names[n], value)),
                );
            }
            let all = rows.drain();
            assert_eq!(all.len(), widths.len());
            for ((seq, width), together) in (0..).zip(widths).zip(all) {
                let columns = row(width).map(|(n, value)| (&*names[n], value));
                let (leaves, row) = commit_row(&nonce(seq), columns);
                assert_eq!(together, Committed { leaves, row }, "{width} columns");
            }
        }
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
