//! What a source reports: changes to records, and the holes in its own account.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// A value's bytes. Most are short, and a row has many: those take no memory of their
/// own.
type Value = SmallVec<[u8; 24]>;

/// A column value in its source's canonical form: null, or bytes.
///
/// The bytes mean what the source's chapter says (`docs/spec/60-sqlite-capture.md`
/// for SQLite); equal values have equal bytes. `Debug` shows the length;
/// reading takes [`Cell::expose`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell(Option<Value>);

/// The canonical bytes of a value; `None` is null.
impl From<Option<&[u8]>> for Cell {
    fn from(canonical: Option<&[u8]>) -> Self {
        canonical.map_or(Self::NULL, Self::new)
    }
}

impl Cell {
    /// The null value.
    pub const NULL: Self = Self(None);

    /// A value that is not null.
    pub fn new(canonical: impl AsRef<[u8]>) -> Self {
        Self(Some(Value::from_slice(canonical.as_ref())))
    }

    /// A value that is a type letter and what follows it.
    pub fn lettered(letter: u8, rest: &[u8]) -> Self {
        let mut value = Value::with_capacity(1 + rest.len());
        value.push(letter);
        value.extend_from_slice(rest);
        Self(Some(value))
    }

    /// Whether this is the null value.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The canonical bytes, `None` for null. Never for logs or messages.
    pub fn expose(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// The canonical bytes, given away. Never for logs or messages.
    pub fn into_exposed(self) -> Option<Value> {
        self.0
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

    /// Bytes of its values, in canonical form.
    pub fn size(&self) -> usize {
        let cells = self.cells.iter();
        cells.filter_map(Cell::expose).map(<[u8]>::len).sum()
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

    /// The key of the `nth` of several equal rows, counted from 1: beyond the
    /// first, one more cell `n` ‖ decimal.
    pub fn copy(&self, nth: u64) -> Self {
        let mut cells = self.0.clone();
        if nth > 1 {
            cells.push(Cell::new(format!("n{nth}").into_bytes()));
        }
        Self(cells)
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

/// A place in a source's order. Places of one source compare; each is written
/// so that it reads back.
///
/// ```
/// use pitser_capture::Position;
///
/// let third: Position = "16/B374D848:3".parse()?;
/// assert_eq!(third, Position::Log { lsn: 0x16_B374_D848, nth: 3 });
/// assert!(third > "16/B374D848".parse()?);
/// assert_eq!(Position::Outbox(17).to_string(), "17");
/// # Ok::<(), pitser_capture::NoPosition>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Position {
    /// An outbox row's number, counted from 1 without holes; 0 is before the first.
    Outbox(u64),
    /// A place in a write-ahead log.
    Log {
        /// Bytes from the log's beginning: for an event, where its
        /// transaction's commit record begins; for a boundary (`nth` 0),
        /// everything that was committed before here has been told.
        lsn: u64,
        /// The event's place in its transaction, from 1; 0 for a boundary.
        nth: u64,
    },
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbox(id) => write!(f, "{id}"),
            Self::Log { lsn, nth } => {
                write!(f, "{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)?;
                match nth {
                    0 => Ok(()),
                    nth => write!(f, ":{nth}"),
                }
            }
        }
    }
}

/// Text that is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no position in a source")]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let plain = |digits: &str| digits.bytes().all(|b| b.is_ascii_alphanumeric());
        let half = |part: &str| {
            let sound = (1..=8).contains(&part.len()) && plain(part);
            u64::from_str_radix(part, 16).ok().filter(|_| sound)
        };
        let number = |part: &str| part.parse().ok().filter(|_| plain(part));
        let position = match text.split_once('/') {
            None => number(text).map(Self::Outbox),
            Some((high, rest)) => {
                let (low, nth) = match rest.split_once(':') {
                    None => (rest, Some(0)),
                    Some((low, nth)) => (low, number(nth).filter(|nth| *nth > 0)),
                };
                let lsn = half(high)
                    .zip(half(low))
                    .map(|(high, low)| high << 32 | low);
                lsn.zip(nth).map(|(lsn, nth)| Self::Log { lsn, nth })
            }
        };
        position.ok_or(NoPosition)
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

    /// The source's name for the person, given away. Never for logs or messages.
    pub fn into_exposed(self) -> String {
        self.0
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
    /// Its place in the source's order.
    pub pos: Position,
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
    /// The key is the whole row, and rows may be equal ([`Key::copy`]).
    pub keyless: bool,
    /// The version before, where the source keeps it.
    pub old: Option<Row>,
    /// The version after; `None` if the record is gone.
    pub new: Option<Row>,
    /// Places in `new` of large values that the change left alone and the
    /// engine did not send; their cells are null until they are filled in.
    pub unsent: Vec<usize>,
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
    /// A step that concerns no record: the bounds of a transaction, or the
    /// news that nothing of ours stands before `pos`.
    Mark {
        /// Its position.
        pos: Position,
    },
    /// What happened after `after`, up to and including `upto`, may be missing (`CAP-01`).
    Gap {
        /// The last position before the hole.
        after: Position,
        /// The last position in it.
        upto: Position,
        /// What happened, in one sentence; names no value.
        what: String,
    },
    /// The source counts from an earlier position than it had reached (`CAP-02`).
    Rewound {
        /// The position that it had reached.
        expected: Position,
        /// Where to go on after.
        found: Position,
    },
    /// The step at `pos` cannot be read (`CAP-01`).
    Unreadable {
        /// Its position.
        pos: Position,
        /// The table that it is about, if that can be read.
        table: Option<String>,
        /// What is wrong with it; names no value.
        why: &'static str,
    },
    /// The changes that follow were made to `table` while it had another name (`CAP-05`).
    Renamed {
        /// What it is called now, also by those changes.
        table: String,
        /// What it was called.
        was: String,
    },
}

impl Captured {
    /// The position to continue after, once this step is durable. `None` for
    /// [`Captured::Rewound`]: where to continue is then a decision, not a fact; and for
    /// [`Captured::Renamed`], which comes again with the changes that it is about.
    pub fn reached(&self) -> Option<Position> {
        match self {
            Self::Change(change) => Some(change.pos),
            Self::Mark { pos } | Self::Unreadable { pos, .. } => Some(*pos),
            Self::Gap { upto, .. } => Some(*upto),
            Self::Rewound { .. } | Self::Renamed { .. } => None,
        }
    }
}

impl Change {
    /// Bytes of the values that it carries, in canonical form.
    pub fn size(&self) -> usize {
        let rows = [&self.old, &self.new];
        rows.into_iter().flatten().map(Row::size).sum()
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
            pos: Position::Outbox(1),
            tx: 1,
            at: "2026-03-14T09:26:53.000000Z".to_owned(),
            table: "patient".to_owned(),
            op: Op::Create,
            key: Key::new(vec![Cell::new(*b"t38001085718")]),
            keyless: false,
            old: None,
            new: Some(row),
            unsent: Vec::new(),
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
    fn positions_read_back_and_keep_their_order() {
        let log = |lsn, nth| Position::Log { lsn, nth };
        let rising = [log(0, 0), log(5, 0), log(5, 1), log(5, 2), log(u64::MAX, 0)];
        assert!(rising.is_sorted());
        for position in rising.into_iter().chain([Position::Outbox(u64::MAX)]) {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for wrong in [
            "", "-1", "+1", "1/", "/1", "0/1:0", "0/1:", "0/+1", "0/1:+1", "1/2/3",
        ] {
            assert_eq!(wrong.parse::<Position>(), Err(NoPosition), "{wrong:?}");
        }
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
