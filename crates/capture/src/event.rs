//! What a source reports: changes to records, and the holes in its own account.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A column value in its source's canonical form: null, or bytes.
///
/// The bytes mean what the source's chapter says (`docs/spec/60-sqlite-capture.md`
/// for SQLite); equal values have equal bytes. `Debug` shows the length;
/// reading takes [`Cell::expose`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell(Option<Box<[u8]>>);

impl Cell {
    /// The null value.
    pub const NULL: Self = Self(None);

    /// A value that is not null.
    pub fn new(canonical: impl Into<Box<[u8]>>) -> Self {
        Self(Some(canonical.into()))
    }

    /// Whether this is the null value.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The canonical bytes, `None` for null. Never for logs or messages.
    pub fn expose(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// The characters of a value whose type letter is `t`, if they are UTF-8.
    /// Never for logs or messages.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(self.expose()?.strip_prefix(b"t")?).ok()
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expose() {
            None => f.write_str("null"),
            Some(bytes) => write!(f, "[{}]", bytes.len()),
        }
    }
}

/// One version of a row: its stored columns, in the table's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Column names, shared by all rows of one table version.
    pub columns: Arc<[String]>,
    /// One cell per column.
    pub cells: Vec<Cell>,
}

impl Row {
    /// The cell of the column that is named exactly so.
    pub fn get(&self, column: &str) -> Option<&Cell> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.cells.get(at)
    }

    /// Names with their cells, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Cell)> {
        self.columns.iter().map(String::as_str).zip(&self.cells)
    }
}

/// The primary key of a record: the key columns' cells, in key order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<Cell>);

impl Key {
    /// A key of these cells, which stand in key order.
    pub fn new(cells: Vec<Cell>) -> Self {
        Self(cells)
    }

    /// The key columns' cells, in key order.
    pub fn cells(&self) -> &[Cell] {
        &self.0
    }

    /// One byte string per key, injective: for each cell `0x00` for null, or
    /// `0x01 ‖ length:32 big-endian ‖ bytes`. Input for a keyed hash, never
    /// for logs.
    pub fn expose_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for cell in &self.0 {
            match cell.expose() {
                None => out.push(0),
                Some(bytes) => {
                    let length =
                        u32::try_from(bytes.len()).expect("engines cap a value below 2^31 bytes");
                    out.push(1);
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(bytes);
                }
            }
        }
        out
    }
}

/// What happened to a record or, for `Truncate`, to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// The record came to be.
    Create,
    /// The record has a new version under the same key.
    Update,
    /// The record is gone.
    Delete,
    /// All records of the table are gone.
    Truncate,
    /// The record as it was found when guarding began.
    Baseline,
}

/// How firmly an actor is tied to an event; stored, shown, never upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Binding {
    /// Signed by the person.
    A,
    /// The person's certificate or token, verified by the engine or by us.
    B,
    /// Asserted by the application.
    C,
    /// A database role, no person.
    D,
    /// Unknown.
    E,
}

/// A natural person as the source names them: a personal code, a user name.
///
/// `Debug` says only that there is one; reading takes [`Person::expose`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Person(String);

impl Person {
    /// A person under the source's name for them.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The source's name for the person. Never for logs or messages.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Person(..)")
    }
}

/// Who did it, as far as the source knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The database role.
    pub role: Option<String>,
    /// The application.
    pub app: Option<String>,
    /// The client's address or host name.
    pub client: Option<String>,
    /// The natural person.
    pub person: Option<Person>,
    /// How firmly all this is tied to the event.
    pub binding: Binding,
}

/// One change of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Position in the source's order; rises by one from event to event.
    pub pos: u64,
    /// The transaction: equal for the changes that the source says belong together.
    pub tx: u64,
    /// The engine's time: RFC 3339, UTC, exactly six fractional digits.
    pub at: String,
    /// The table, spelled as the engine spells it.
    pub table: String,
    /// What happened.
    pub op: Op,
    /// The record.
    pub key: Key,
    /// The version before, where the source keeps it.
    pub old: Option<Row>,
    /// The version after; `None` if the record is gone.
    pub new: Option<Row>,
    /// `None`: the change is unattributed (`ACT-01`).
    pub actor: Option<Actor>,
    /// Why, in the application's words or codes.
    pub purpose: Option<String>,
}

/// One step of a source's account, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every step is a change")]
#[non_exhaustive]
pub enum Captured {
    /// A record changed.
    Change(Change),
    /// A step that concerns no record (the bounds of an attributed transaction).
    Mark {
        /// Its position.
        pos: u64,
    },
    /// Positions `expected..found` are missing (`CAP-01`): `found` is the next one there is.
    Gap {
        /// The first missing position.
        expected: u64,
        /// The position after the last missing one.
        found: u64,
    },
    /// The source counts from an earlier position than it had reached (`CAP-02`).
    Rewound {
        /// The position that it had reached.
        expected: u64,
        /// A position that it counts from now.
        found: u64,
    },
    /// The step at `pos` was not written by our triggers (`CAP-01`): it cannot be read.
    Unreadable {
        /// Its position.
        pos: u64,
        /// What is wrong with it; names no value.
        why: &'static str,
    },
}

impl Captured {
    /// The position to continue after, once this step is durable. `None` for
    /// [`Captured::Rewound`]: where to continue is then a decision, not a fact.
    pub fn reached(&self) -> Option<u64> {
        match self {
            Self::Change(change) => Some(change.pos),
            Self::Mark { pos } | Self::Unreadable { pos, .. } => Some(*pos),
            Self::Gap { found, .. } => Some(found.saturating_sub(1)),
            Self::Rewound { .. } => None,
        }
    }
}

/// Whether this looks like `2026-03-14T09:26:53.589000Z`.
pub(crate) fn is_instant(at: &str) -> bool {
    const PATTERN: &[u8] = b"0000-00-00T00:00:00.000000Z";
    at.len() == PATTERN.len()
        && at.bytes().zip(PATTERN).all(|(byte, want)| match want {
            b'0' => byte.is_ascii_digit(),
            _ => byte == *want,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_value() {
        let row = Row {
            columns: vec!["code".to_owned(), "note".to_owned()].into(),
            cells: vec![Cell::new(*b"t38001085718"), Cell::NULL],
        };
        let change = Change {
            pos: 1,
            tx: 1,
            at: "2026-03-14T09:26:53.000000Z".to_owned(),
            table: "patient".to_owned(),
            op: Op::Create,
            key: Key::new(vec![Cell::new(*b"t38001085718")]),
            old: None,
            new: Some(row),
            actor: Some(Actor {
                role: None,
                app: Some("ward".to_owned()),
                client: None,
                person: Some(Person::new("EE38001085718")),
                binding: Binding::C,
            }),
            purpose: None,
        };
        let shown = format!("{change:?}");
        assert!(!shown.contains("38001085718"), "{shown}");
        assert!(shown.contains("[12]") && shown.contains("null"), "{shown}");
    }

    #[test]
    fn keys_that_differ_have_different_bytes() {
        let keys = [
            vec![],
            vec![Cell::NULL],
            vec![Cell::new(*b"")],
            vec![Cell::new(*b"ta"), Cell::new(*b"tb")],
            vec![Cell::new(*b"tatb")],
            vec![Cell::NULL, Cell::NULL],
        ];
        let bytes: std::collections::HashSet<_> = keys
            .iter()
            .map(|cells| Key::new(cells.clone()).expose_bytes())
            .collect();
        assert_eq!(bytes.len(), keys.len());
    }
}
