//! Reading the outbox: positions without holes, brackets, images.
//!
//! `id` is the position. `AUTOINCREMENT` gives each committed row the next
//! number and a transaction that is rolled back takes its numbers with it, so
//! committed ids have no holes: a missing one was deleted behind our back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};

use super::{SqliteError, value};
use crate::event::{self, Actor, Binding, Captured, Change, Key, Op, Person, Position, Row};

/// The highest id ever given.
pub(super) fn position(db: &Connection) -> Result<u64, SqliteError> {
    let highest: i64 = db.query_row(
        "SELECT max(coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'pitser_outbox'), 0), \
         coalesce((SELECT max(id) FROM pitser_outbox), 0))",
        [],
        |row| row.get(0),
    )?;
    Ok(u64::try_from(highest).unwrap_or(0))
}

/// Steps after `after`, from one read transaction. Rows up to `acked` are
/// known to be gone.
pub(super) fn read(
    db: &Connection,
    after: u64,
    acked: u64,
    max: usize,
) -> Result<Vec<Captured>, SqliteError> {
    let position = position(db)?;
    if position < after {
        return Ok(vec![Captured::Rewound {
            expected: Position::Outbox(after),
            found: Position::Outbox(position.saturating_sub(1)),
        }]);
    }
    if let Some(found) = risen(db, acked)? {
        return Ok(vec![Captured::Rewound {
            expected: Position::Outbox(acked),
            found: Position::Outbox(found.saturating_sub(1)),
        }]);
    }
    let mut steps = Reader::new(db, after)?.read(max)?;
    let reached = steps.last().and_then(reached).unwrap_or(after);
    if steps.len() < max && reached < position {
        steps.push(gap(reached, position));
    }
    Ok(steps)
}

/// The outbox id that a step reaches.
fn reached(step: &Captured) -> Option<u64> {
    match step.reached()? {
        Position::Outbox(id) => Some(id),
        Position::Log { .. } => None,
    }
}

/// Rows `after + 1 ..= upto` are not there.
fn gap(after: u64, upto: u64) -> Captured {
    Captured::Gap {
        after: Position::Outbox(after),
        upto: Position::Outbox(upto),
        what: format!("{} changes are missing from the outbox", upto - after),
    }
}

/// An id that stands in the outbox although it was acknowledged: the counter
/// was turned back.
fn risen(db: &Connection, acked: u64) -> Result<Option<u64>, SqliteError> {
    let lowest: Option<i64> = db.query_row(
        "SELECT min(id) FROM pitser_outbox WHERE id <= ?1",
        [signed(acked)],
        |row| row.get(0),
    )?;
    Ok(lowest.map(|id| u64::try_from(id).unwrap_or(0)))
}

/// Where to begin to read, if what is durable reaches to `after`: a transaction of which
/// that is a part, or the last change, is told anew as long as it is there, since what is
/// wrong with it follows from all of it.
pub(super) fn beginning(db: &Connection, after: u64) -> Result<u64, SqliteError> {
    let bracket = Bracket::over(db, after)?;
    let start = match bracket {
        Some(bracket) => bracket.begin,
        None => after.saturating_sub(1),
    };
    let (there, marks): (u64, u64) = db.query_row(
        "SELECT count(*), count(*) FILTER (WHERE kind IN ('begin', 'end')) FROM pitser_outbox \
         WHERE id > ?1 AND id <= ?2",
        [signed(start), signed(after)],
        |row| {
            Ok((
                row.get::<_, i64>(0)?.unsigned_abs(),
                row.get::<_, i64>(1)?.unsigned_abs(),
            ))
        },
    )?;
    Ok(match there == after - start && marks == 0 {
        true => start,
        false => after,
    })
}

/// Deletes up to `upto`, or up to the bracket that ends later; gives where it ended.
pub(super) fn delete(db: &Connection, upto: u64) -> Result<u64, SqliteError> {
    let position = position(db)?;
    if upto > position {
        return Err(SqliteError::AckAhead { upto, position });
    }
    let bracket = Bracket::over(db, upto)?;
    let upto = bracket.map_or(upto, |bracket| bracket.begin.saturating_sub(1));
    db.execute("DELETE FROM pitser_outbox WHERE id <= ?1", [signed(upto)])?;
    Ok(upto)
}

/// What a touched record was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Was {
    /// It did not exist.
    Absent,
    /// It was this row.
    Row(Row),
}

/// The records that changes in a range of positions touched, as they were
/// before the range.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    first: HashMap<String, HashMap<Key, Was>>,
    complete: bool,
}

impl Pending {
    /// The record as it was; `None` if the range does not touch it.
    pub fn was(&self, table: &str, key: &Key) -> Option<&Was> {
        self.first.get(table)?.get(key)
    }

    /// All touched records of a table.
    pub fn of_table(&self, table: &str) -> impl Iterator<Item = (&Key, &Was)> {
        self.first.get(table).into_iter().flatten()
    }

    /// False if the range has a hole or an unreadable row: then a record may
    /// have been touched without being listed.
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

pub(super) fn pending(db: &Connection, after: u64, upto: u64) -> Result<Pending, SqliteError> {
    const CHUNK: usize = 1000;
    let mut pending = Pending {
        complete: true,
        ..Pending::default()
    };
    let mut at = after;
    while at < upto {
        for step in read(db, at, 0, CHUNK)? {
            match reached(&step) {
                Some(id) => at = id,
                None => {
                    return Ok(Pending {
                        complete: false,
                        ..pending
                    });
                }
            }
            match step {
                Captured::Change(change) if change.pos <= Position::Outbox(upto) => {
                    pending.note(change)
                }
                Captured::Change(_) | Captured::Mark { .. } => {}
                _ => pending.complete = false,
            }
        }
    }
    Ok(pending)
}

impl Pending {
    fn note(&mut self, change: Change) {
        let of_table = self.first.entry(change.table).or_default();
        if let Entry::Vacant(slot) = of_table.entry(change.key) {
            slot.insert(change.old.map_or(Was::Absent, Was::Row));
        }
    }
}

/// A begin row that has an end row: what lies between them is attributed.
struct Bracket {
    begin: u64,
    actor: Actor,
    purpose: Option<String>,
}

impl Bracket {
    /// The bracket that is open after position `at`.
    fn over(db: &Connection, at: u64) -> Result<Option<Self>, SqliteError> {
        let mut query = db.prepare(
            "SELECT id, kind, actor, app, role, client, purpose FROM pitser_outbox \
             WHERE id <= ?1 AND kind IN ('begin', 'end') ORDER BY id DESC LIMIT 1",
        )?;
        let mut rows = query.query([signed(at)])?;
        match rows.next()? {
            Some(row) if row.get_ref(1)? == ValueRef::Text(b"begin") => {
                let Ok(begin) = u64::try_from(row.get::<_, i64>(0)?) else {
                    return Ok(None);
                };
                let [actor, app, role, client, purpose] =
                    [2, 3, 4, 5, 6].map(|column| said(row, column));
                Ok(Self::is_closed(db, begin)?.then(|| Self {
                    begin,
                    actor: asserted(actor, app, role, client),
                    purpose,
                }))
            }
            _ => Ok(None),
        }
    }

    /// All rows of a transaction appear at once, so a begin row whose next
    /// mark is not an end row was committed without one, and vouches for
    /// nothing.
    fn is_closed(db: &Connection, begin: u64) -> Result<bool, SqliteError> {
        let next: Option<String> = db
            .query_row(
                "SELECT kind FROM pitser_outbox WHERE id > ?1 AND kind IN ('begin', 'end') ORDER BY id LIMIT 1",
                [signed(begin)],
                |row| row.get(0),
            )
            .optional()?;
        Ok(next.is_some_and(|kind| kind == "end"))
    }
}

/// Everything in a bracket is the application's word: binding C at best.
fn asserted(
    person: Option<String>,
    app: Option<String>,
    role: Option<String>,
    client: Option<String>,
) -> Actor {
    let binding = match (&person, &app, &role) {
        (Some(_), _, _) => Binding::C,
        (None, None, None) => Binding::E,
        _ => Binding::D,
    };
    Actor {
        role,
        app,
        client,
        person: person.map(Person::new),
        binding,
    }
}

/// Characters of what an application says of a transaction, at most: it stands in each of
/// its lines, which have a longest.
const SAID: usize = 1000;

fn said(row: &rusqlite::Row<'_>, column: usize) -> Option<String> {
    let text = row.get_ref(column).ok()?.as_str().ok()?;
    Some(text.chars().take(SAID).collect())
}

fn optional_text(row: &rusqlite::Row<'_>, column: usize) -> Option<String> {
    row.get_ref(column).ok()?.as_str().ok().map(str::to_owned)
}

/// A column list that outbox rows refer to.
struct Shape {
    table: String,
    columns: Arc<[String]>,
    key: Vec<usize>,
}

impl Shape {
    fn all(db: &Connection) -> Result<HashMap<i64, Self>, SqliteError> {
        let mut query = db.prepare("SELECT id, tbl, columns, key FROM pitser_shape")?;
        let mut rows = query.query([])?;
        let mut shapes = HashMap::new();
        while let Some(row) = rows.next()? {
            if let Some(shape) = Self::parse(row) {
                shapes.insert(row.get(0)?, shape);
            }
        }
        Ok(shapes)
    }

    /// `None` if it is not as we write it; rows that refer to it are unreadable.
    fn parse(row: &rusqlite::Row<'_>) -> Option<Self> {
        let columns: Vec<String> = serde_json::from_str(&optional_text(row, 2)?).ok()?;
        let key: Vec<usize> = serde_json::from_str(&optional_text(row, 3)?).ok()?;
        let sound =
            !columns.is_empty() && !key.is_empty() && key.iter().all(|&at| at < columns.len());
        sound.then_some(Self {
            table: optional_text(row, 1)?,
            columns: columns.into(),
            key,
        })
    }

    /// `Ok(None)` for SQL null.
    fn image(&self, transit: ValueRef<'_>) -> Result<Option<Row>, &'static str> {
        match transit {
            ValueRef::Null => Ok(None),
            ValueRef::Text(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|transit| value::decode(transit, self.columns.len()))
                .map(|cells| {
                    Some(Row {
                        columns: self.columns.clone(),
                        cells,
                    })
                })
                .ok_or("an image that no trigger of ours wrote"),
            _ => Err("an image that is not text"),
        }
    }

    fn key(&self, row: &Row) -> Key {
        Key::new(self.key.iter().map(|&at| row.cells[at].clone()).collect())
    }
}

struct Reader<'a> {
    db: &'a Connection,
    after: u64,
    bracket: Option<Bracket>,
    shapes: HashMap<i64, Shape>,
}

impl<'a> Reader<'a> {
    fn new(db: &'a Connection, after: u64) -> Result<Self, SqliteError> {
        Ok(Self {
            db,
            after,
            bracket: Bracket::over(db, after)?,
            shapes: Shape::all(db)?,
        })
    }

    fn read(mut self, max: usize) -> Result<Vec<Captured>, SqliteError> {
        let mut query = self.db.prepare(
            "SELECT id, kind, at, shape, old, new FROM pitser_outbox WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let mut rows = query.query([signed(self.after), i64::try_from(max).unwrap_or(i64::MAX)])?;
        let mut steps = Vec::new();
        let mut expected = self.after + 1;
        while let Some(row) = rows.next()? {
            let pos = u64::try_from(row.get::<_, i64>(0)?)
                .expect("ids above an unsigned bound are positive");
            if pos != expected {
                steps.push(gap(expected - 1, pos - 1));
            }
            steps.push(self.step(row, pos)?);
            expected = pos.saturating_add(1);
        }
        Ok(steps)
    }

    fn step(&mut self, row: &rusqlite::Row<'_>, pos: u64) -> Result<Captured, SqliteError> {
        let kind = row.get_ref(1)?;
        if kind == ValueRef::Text(b"begin") || kind == ValueRef::Text(b"end") {
            self.bracket = Bracket::over(self.db, pos)?;
            let pos = Position::Outbox(pos);
            return Ok(Captured::Mark { pos });
        }
        Ok(match self.change(row, pos) {
            Ok(change) => Captured::Change(change),
            Err(why) => Captured::Unreadable {
                pos: Position::Outbox(pos),
                table: None,
                why,
            },
        })
    }

    fn change(&self, row: &rusqlite::Row<'_>, pos: u64) -> Result<Change, &'static str> {
        let column = |at| row.get_ref(at).map_err(|_| "a column is missing");
        let shape = column(3)?
            .as_i64()
            .ok()
            .and_then(|id| self.shapes.get(&id))
            .ok_or("an unknown column list")?;
        let at = optional_text(row, 2)
            .filter(|at| event::is_instant(at))
            .ok_or("a time that no trigger of ours wrote")?;
        let (old, new) = (shape.image(column(4)?)?, shape.image(column(5)?)?);
        let op = match (column(1)?.as_str().unwrap_or_default(), &old, &new) {
            ("insert", None, Some(_)) => Op::Create,
            ("insert" | "update", Some(_), Some(_)) => Op::Update,
            ("delete", Some(_), None) => Op::Delete,
            _ => return Err("a kind of event that no trigger of ours writes"),
        };
        let image = new.as_ref().or(old.as_ref()).ok_or("no image")?;
        let bracket = self.bracket.as_ref();
        Ok(Change {
            pos: Position::Outbox(pos),
            tx: bracket.map_or(pos, |bracket| bracket.begin),
            at,
            table: shape.table.clone(),
            op,
            key: shape.key(image),
            keyless: false,
            actor: bracket.map(|bracket| bracket.actor.clone()),
            purpose: bracket.and_then(|bracket| bracket.purpose.clone()),
            old,
            new,
            unsent: Vec::new(),
        })
    }
}

/// Positions are SQLite integers: beyond them there is nothing to find.
fn signed(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
