//! The map: a sparse Merkle tree from record or patient to its latest line.
//!
//! ```text
//! key    record: H("pitser/v1/map/record" 00 ‖ table 00 ‖ record key:32)
//!        patient: H("pitser/v1/map/patient" 00 ‖ text of `patient`)
//! value  record: 01 ‖ 00 ‖ count:8 ‖ last seq:8 ‖ last hash:imprint
//!                ‖ present:1 [‖ row:imprint ‖ timeline:4 ‖ row seq:8]
//!        patient: 01 ‖ 01 ‖ count:8 ‖ last seq:8 ‖ last hash:imprint
//! empty  32 zero bytes
//! leaf   H(00 ‖ key:32 ‖ H(value))
//! inner  H(01 ‖ left ‖ right), bit i of the key (most significant first)
//!        choosing the side at depth i
//! ```
//! A subtree that holds a single leaf *is* that leaf, at whatever depth; a
//! subtree that holds none is empty. The root is thus a function of the set of
//! leaves alone. `H` is SHA-256.

use crate::codec::{Bytes32, CodecError, Digest};
use crate::line::Patient;
use data_encoding::HEXLOWER;
use pitser_ksi::hash::{Algorithm, Imprint};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Position in the map.
pub type MapKey = [u8; 32];

pub(crate) const EMPTY: [u8; 32] = [0; 32];
pub(crate) const MAX_DEPTH: usize = 256;

/// The key under which a record stands.
pub fn record_map_key(table: &str, key: &Bytes32) -> MapKey {
    digest(&record_key_text(table, key))
}

/// The key under which a patient's list stands.
pub fn patient_map_key(patient: &Patient) -> MapKey {
    let mut hex = [0; 64];
    digest(&patient_key_text(patient, &mut hex))
}

/// What is hashed to a record's key.
pub(crate) fn record_key_text<'t>(table: &'t str, key: &'t Bytes32) -> [&'t [u8]; 4] {
    [b"pitser/v1/map/record\0", table.as_bytes(), b"\0", &key.0]
}

/// What is hashed to a patient's key; `hex` is where a pseudonym's text goes.
pub(crate) fn patient_key_text<'t>(patient: &Patient, hex: &'t mut [u8; 64]) -> [&'t [u8]; 2] {
    let text: &[u8] = match patient {
        Patient::Pseudonym(pseudonym) => {
            HEXLOWER.encode_mut(&pseudonym.0, hex);
            hex
        }
        Patient::Many => b"*many",
        Patient::Unknown => b"*unknown",
    };
    [b"pitser/v1/map/patient\0", text]
}

/// What the map knows of a record or patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Lines about it.
    pub count: u64,
    /// The last of them.
    pub last_seq: u64,
    /// Hash of that line.
    pub last_hash: Digest,
    /// Records: the row as last committed. `None` for a deleted row.
    pub row: Option<RowRef>,
    /// Which of the two kinds this is.
    pub kind: LeafKind,
}

/// Record or patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafKind {
    /// A row or resource.
    Record,
    /// A patient or pseudo-patient.
    Patient,
}

/// A row commitment and what its nonces are derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRef {
    /// The commitment.
    pub row: Digest,
    /// Timeline of the line that committed it.
    pub timeline: u32,
    /// That line.
    pub seq: u64,
}

impl Leaf {
    /// The value bytes that the map commits to.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(100);
        self.encode_to(&mut out);
        out
    }

    /// Appends the value bytes.
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend([1, u8::from(self.kind == LeafKind::Patient)]);
        out.extend(self.count.to_be_bytes());
        out.extend(self.last_seq.to_be_bytes());
        out.extend(self.last_hash.0.as_bytes());
        if self.kind == LeafKind::Record {
            out.push(u8::from(self.row.is_some()));
            if let Some(row) = &self.row {
                out.extend(row.row.0.as_bytes());
                out.extend(row.timeline.to_be_bytes());
                out.extend(row.seq.to_be_bytes());
            }
        }
    }

    /// Reads value bytes.
    ///
    /// # Errors
    /// [`CodecError::Rule`] unless they are exactly what [`Leaf::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let wrong = || CodecError::Rule("not a map leaf of version 1".into());
        let mut rest = bytes;
        let [1, kind] = take::<2>(&mut rest).ok_or_else(wrong)? else {
            return Err(wrong());
        };
        let kind = match kind {
            0 => LeafKind::Record,
            1 => LeafKind::Patient,
            _ => return Err(wrong()),
        };
        let count = u64::from_be_bytes(take(&mut rest).ok_or_else(wrong)?);
        let last_seq = u64::from_be_bytes(take(&mut rest).ok_or_else(wrong)?);
        let last_hash = take_imprint(&mut rest).ok_or_else(wrong)?;
        let mut row = None;
        if kind == LeafKind::Record {
            let [present] = take(&mut rest).ok_or_else(wrong)?;
            if present == 1 {
                row = Some(RowRef {
                    row: take_imprint(&mut rest).ok_or_else(wrong)?,
                    timeline: u32::from_be_bytes(take(&mut rest).ok_or_else(wrong)?),
                    seq: u64::from_be_bytes(take(&mut rest).ok_or_else(wrong)?),
                });
            } else if present != 0 {
                return Err(wrong());
            }
        }
        if rest.is_empty() {
            Ok(Self {
                count,
                last_seq,
                last_hash,
                row,
                kind,
            })
        } else {
            Err(wrong())
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_imprint(rest: &mut &[u8]) -> Option<Digest> {
    let algorithm = Algorithm::from_id(*rest.first()?)?;
    let (head, tail) = rest.split_at_checked(1 + algorithm.digest_len())?;
    *rest = tail;
    Imprint::from_bytes(head).ok().map(Digest)
}

/// A map of arbitrary values in memory, as the definition has it: every node by
/// itself. The reference that storage of trails ([`crate::store`]) is compared
/// with. Updates are cheap; hashes are brought up to date when the root or a
/// proof is asked for.
#[derive(Debug, Default)]
pub struct SparseMap {
    nodes: Vec<Node>,
    root: Option<u32>,
    leaves: u64,
}

#[derive(Debug)]
enum Node {
    Leaf {
        key: MapKey,
        value: [u8; 32],
    },
    Inner {
        children: [Option<u32>; 2],
        hash: Option<[u8; 32]>,
    },
}

impl SparseMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    pub fn len(&self) -> u64 {
        self.leaves
    }

    /// True if there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.leaves == 0
    }

    /// Sets the value under `key`. Amortised O(depth), no hashing of nodes.
    pub fn insert(&mut self, key: &MapKey, value: &[u8]) {
        let value = digest(&[value]);
        let Some(mut at) = self.root else {
            self.leaves += 1;
            self.root = Some(self.push(Node::Leaf { key: *key, value }));
            return;
        };
        let mut parent: Option<(u32, usize)> = None;
        for depth in 0..=MAX_DEPTH {
            match &mut self.nodes[at as usize] {
                Node::Inner { children, hash } => {
                    *hash = None;
                    let side = bit(key, depth);
                    if let Some(next) = children[side] {
                        parent = Some((at, side));
                        at = next;
                    } else {
                        self.leaves += 1;
                        let leaf = self.push(Node::Leaf { key: *key, value });
                        self.set_child(at, side, leaf);
                        return;
                    }
                }
                Node::Leaf {
                    key: there,
                    value: old,
                } => {
                    if there == key {
                        *old = value;
                        return;
                    }
                    let there = *there;
                    self.leaves += 1;
                    let leaf = self.push(Node::Leaf { key: *key, value });
                    let fork = self.fork(depth, (at, there), (leaf, *key));
                    match parent {
                        Some((node, side)) => self.set_child(node, side, fork),
                        None => self.root = Some(fork),
                    }
                    return;
                }
            }
        }
        unreachable!("two keys differ within 256 bits")
    }

    /// The root: 32 zero bytes for an empty map.
    pub fn root(&mut self) -> [u8; 32] {
        match self.root {
            Some(root) => self.hash(root),
            None => EMPTY,
        }
    }

    /// The path of `key`: proves its value, or that it has none.
    pub fn prove(&mut self, key: &MapKey) -> Path {
        let mut siblings = Vec::new();
        let mut at = self.root;
        while let Some(node) = at {
            match &self.nodes[node as usize] {
                Node::Inner { children, .. } => {
                    let side = bit(key, siblings.len());
                    let (next, sibling) = (children[side], children[1 - side]);
                    siblings.push(Bytes32(sibling.map_or(EMPTY, |s| self.hash(s))));
                    at = next;
                }
                Node::Leaf { key: there, value } => {
                    let other = (there != key).then_some(OtherLeaf {
                        key: Bytes32(*there),
                        value: Bytes32(*value),
                    });
                    return Path { other, siblings };
                }
            }
        }
        Path {
            other: None,
            siblings,
        }
    }

    fn push(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("an in-memory map holds fewer than 2^32 nodes")
    }

    fn set_child(&mut self, at: u32, side: usize, child: u32) {
        if let Node::Inner { children, hash } = &mut self.nodes[at as usize] {
            children[side] = Some(child);
            *hash = None;
        }
    }

    /// Inner nodes from `depth` down to where two keys part.
    fn fork(&mut self, depth: usize, a: (u32, MapKey), b: (u32, MapKey)) -> u32 {
        let parting = (depth..MAX_DEPTH)
            .find(|&d| bit(&a.1, d) != bit(&b.1, d))
            .expect("two keys differ within 256 bits");
        let mut children = [None; 2];
        children[bit(&a.1, parting)] = Some(a.0);
        children[bit(&b.1, parting)] = Some(b.0);
        let mut node = self.push(Node::Inner {
            children,
            hash: None,
        });
        for above in (depth..parting).rev() {
            let mut children = [None; 2];
            children[bit(&a.1, above)] = Some(node);
            node = self.push(Node::Inner {
                children,
                hash: None,
            });
        }
        node
    }

    fn hash(&mut self, at: u32) -> [u8; 32] {
        match &self.nodes[at as usize] {
            Node::Leaf { key, value } => leaf_hash(key, value),
            Node::Inner {
                hash: Some(hash), ..
            } => *hash,
            Node::Inner {
                children,
                hash: None,
            } => {
                let [left, right] = *children;
                let left = left.map_or(EMPTY, |n| self.hash(n));
                let right = right.map_or(EMPTY, |n| self.hash(n));
                let fresh = inner_hash(&left, &right);
                if let Node::Inner { hash, .. } = &mut self.nodes[at as usize] {
                    *hash = Some(fresh);
                }
                fresh
            }
        }
    }
}

/// The path from a map's root to where a key is, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// The other leaf that stands there instead (proof of absence).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<OtherLeaf>,
    /// Sibling hashes from the root down; zero for an empty sibling.
    pub siblings: Vec<Bytes32>,
}

/// A leaf that proves another key's absence, showing only hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherLeaf {
    /// Its key.
    pub key: Bytes32,
    /// Hash of its value.
    pub value: Bytes32,
}

impl Path {
    /// True if this path shows under `root` that `key` has `value`; with
    /// `None`, that it has none.
    pub fn shows(&self, root: &[u8; 32], key: &MapKey, value: Option<&[u8]>) -> bool {
        if self.siblings.len() > MAX_DEPTH {
            return false;
        }
        let end = match (value, &self.other) {
            (Some(value), None) => leaf_hash(key, &digest(&[value])),
            (None, None) => EMPTY,
            (None, Some(other)) if other.key.0 != *key && self.shares_prefix(&other.key.0, key) => {
                leaf_hash(&other.key.0, &other.value.0)
            }
            _ => return false,
        };
        let computed =
            self.siblings
                .iter()
                .enumerate()
                .rev()
                .fold(end, |hash, (depth, sibling)| {
                    if bit(key, depth) == 0 {
                        inner_hash(&hash, &sibling.0)
                    } else {
                        inner_hash(&sibling.0, &hash)
                    }
                });
        computed == *root
    }

    fn shares_prefix(&self, a: &MapKey, b: &MapKey) -> bool {
        (0..self.siblings.len()).all(|depth| bit(a, depth) == bit(b, depth))
    }
}

pub(crate) fn bit(key: &MapKey, depth: usize) -> usize {
    usize::from(key[depth / 8] >> (7 - depth % 8) & 1)
}

fn leaf_hash(key: &MapKey, value: &[u8; 32]) -> [u8; 32] {
    digest(&[&[0x00], key, value])
}

pub(crate) fn inner_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    digest(&[&[0x01], left, right])
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The definition, word for word, over a sorted set of leaves.
    fn defined_root(leaves: &[(MapKey, [u8; 32])], depth: usize) -> [u8; 32] {
        match leaves {
            [] => EMPTY,
            [(key, value)] => leaf_hash(key, value),
            _ => {
                let split = leaves.partition_point(|(key, _)| bit(key, depth) == 0);
                inner_hash(
                    &defined_root(&leaves[..split], depth + 1),
                    &defined_root(&leaves[split..], depth + 1),
                )
            }
        }
    }

    fn keys() -> impl Strategy<Value = Vec<(MapKey, u8)>> {
        // Few distinct bytes, so that keys share long prefixes.
        let key = (0u8..4, 0u8..4, any::<bool>()).prop_map(|(a, b, end)| short_key(a, b, end));
        prop::collection::vec((key, any::<u8>()), 0..40)
    }

    fn short_key(a: u8, b: u8, end: bool) -> MapKey {
        let mut key = [0; 32];
        (key[0], key[1], key[31]) = (a << 6, b, u8::from(end));
        key
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_its_definition_and_proves_every_key(entries in keys()) {
            let mut map = SparseMap::new();
            let mut model = BTreeMap::new();
            for (key, value) in &entries {
                map.insert(key, &[*value]);
                model.insert(*key, *value);
                let sorted: Vec<_> = model.iter().map(|(k, v)| (*k, digest(&[&[*v]]))).collect();
                prop_assert_eq!(map.root(), defined_root(&sorted, 0));
            }
            prop_assert_eq!(map.len(), model.len() as u64);
            let root = map.root();
            for probe in 0..32u8 {
                let key = short_key(probe / 8, probe / 2 % 4, probe % 2 == 1);
                let value = model.get(&key).map(|v| [*v]);
                let path = map.prove(&key);
                prop_assert!(path.shows(&root, &key, value.as_ref().map(|v| &v[..])));
                prop_assert!(!path.shows(&root, &key, Some(b"another value")));
                if value.is_some() {
                    prop_assert!(!path.shows(&root, &key, None));
                }
            }
        }
    }

    #[test]
    fn another_leaf_cannot_hide_a_key() {
        let mut map = SparseMap::new();
        map.insert(&[0x00; 32], b"a");
        map.insert(&[0xff; 32], b"b");
        let root = map.root();
        let path = map.prove(&[0x00; 32]);
        let other = OtherLeaf {
            key: Bytes32([0xff; 32]),
            value: Bytes32(digest(&[b"b"])),
        };
        let forged = Path {
            other: Some(other),
            siblings: path.siblings,
        };
        assert!(!forged.shows(&root, &[0x00; 32], None));
    }

    #[test]
    fn leaves_read_back() {
        let row = RowRef {
            row: Digest::of(&[b"r"]),
            timeline: 1,
            seq: 9,
        };
        for (kind, row) in [
            (LeafKind::Record, Some(row)),
            (LeafKind::Record, None),
            (LeafKind::Patient, None),
        ] {
            let leaf = Leaf {
                count: 3,
                last_seq: 11,
                last_hash: Digest::of(&[b"l"]),
                row,
                kind,
            };
            let bytes = leaf.encode();
            assert_eq!(Leaf::decode(&bytes), Ok(leaf));
            for cut in 0..bytes.len() {
                assert!(Leaf::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
