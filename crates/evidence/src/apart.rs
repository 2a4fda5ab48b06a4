//! Values that stand in files of their own, beside an evidence file that would be too
//! large with them (docs/spec/35-evidence.md §2.2).

use crate::codec::length_of;
use crate::commit::{column_hasher, raw_hasher};
use crate::file::{Evidence, OpenColumn};
use sha2::{Digest as _, Sha256};

/// A column's value or a message that stands in a file of its own.
#[derive(Clone, Copy)]
pub struct Apart<'e> {
    /// The line that commits to it.
    pub seq: u64,
    /// The column's place in the row, from 1, and its name; `None` for the line's message.
    pub column: Option<(usize, &'e str)>,
    nonce: &'e [u8; 32],
    commitment: &'e [u8],
}

impl Apart<'_> {
    /// The name of its file: `<seq>.<place of the column>` or `<seq>.message`.
    pub fn file_name(&self) -> String {
        match self.column {
            Some((place, _)) => column_file(self.seq, place),
            None => format!("{}.message", self.seq),
        }
    }

    /// Begins to compare the bytes of a file with what was sealed.
    pub fn check(&self) -> Check {
        let hasher = match self.column {
            Some((_, name)) => column_hasher(self.nonce, name, false),
            None => raw_hasher(self.nonce),
        };
        Check {
            hasher,
            commitment: self.commitment.to_vec(),
        }
    }
}

impl std::fmt::Debug for Apart<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Apart({})", self.file_name())
    }
}

/// A value that is compared as it is read: it may be longer than memory.
pub struct Check {
    hasher: Sha256,
    commitment: Vec<u8>,
}

impl Check {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Whether all bytes that were taken are what the line commits to.
    pub fn matches(self) -> bool {
        self.hasher.finalize()[..] == self.commitment[..]
    }
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Check")
    }
}

/// The name of the file in which the value of a line's column stands; `place` counts from 1.
pub fn column_file(seq: u64, place: usize) -> String {
    format!("{seq}.{place}")
}

/// Whether a file name is one that [`Apart::file_name`] gives.
pub fn is_file_name(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once('.')
        .is_some_and(|(seq, part)| is_number(seq) && (part == "message" || is_number(part)))
}

impl Evidence {
    /// What stands in files of its own, by line and column.
    pub fn apart(&self) -> impl Iterator<Item = Apart<'_>> {
        self.lines.iter().flat_map(|proof| {
            let seq = proof.line.seq;
            let open = proof.open.iter();
            let columns = open.clone().flat_map(|open| open.columns.iter().flatten());
            let columns = columns.zip(1..).filter(|(column, _)| column.is_apart());
            let columns = columns.filter_map(move |(column, place)| {
                let (leaf, nonce) = (column.hidden.as_ref()?, column.nonce.as_ref()?);
                Some(Apart {
                    seq,
                    column: Some((place, &*column.name)),
                    nonce: &nonce.0,
                    commitment: &leaf.0,
                })
            });
            let raw = open.filter_map(|open| open.raw.as_ref());
            let raw = raw.filter(|raw| raw.bytes.is_none());
            let messages = raw.filter_map(move |raw| {
                Some(Apart {
                    seq,
                    column: None,
                    nonce: &raw.nonce.0,
                    commitment: proof.line.raw.as_ref()?.0.digest(),
                })
            });
            columns.chain(messages)
        })
    }

    /// Takes values out of a file that is longer than `most` bytes, those of the newest
    /// lines first, until it is not, or nothing is left that would make it shorter. They
    /// are to stand in files of their own. The file is to be signed afterwards.
    pub fn put_apart(&mut self, most: usize) {
        let mut length = length_of(self);
        for proof in self.lines.iter_mut().rev() {
            let Some(open) = &mut proof.open else {
                continue;
            };
            if let Some(raw) = &mut open.raw
                && length > most
            {
                length -= shortened(raw, |raw| raw.bytes = None);
            }
            for column in open.columns.iter_mut().flatten() {
                if length <= most {
                    return;
                }
                length -= shortened(column, |column| {
                    if let (Some(nonce), Some(value)) = (column.nonce, column.bytes())
                        && value.len() > SHORT
                    {
                        *column = OpenColumn::apart(&column.name, nonce, value);
                    }
                });
            }
        }
    }
}

/// A value that is no longer saves nothing.
const SHORT: usize = 256;

/// By how much `change` makes something shorter.
fn shortened<T: serde::Serialize>(part: &mut T, change: impl FnOnce(&mut T)) -> usize {
    let before = length_of(part);
    change(part);
    before.saturating_sub(length_of(part))
}
