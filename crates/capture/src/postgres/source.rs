//! A guarded PostgreSQL database as any other source.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::encoding::Encoding;
use super::install;
use super::questions::Questions;
use super::reader::Reader;
use super::slot::{self, State, text};
use super::snapshot::unseen_by;
use super::stream::{boundary, lsn};
use super::{
    Config, Connection, Field, Fingerprint, Lsn, Name, PgError, Snapshot, Stream, Table, cell, word,
};
use crate::event::{Captured, Cell, Key, Position};
use crate::source::{
    self, Backlog, Drift, Identity, OpenSnapshot, Rows, Shape, Source, SourceError, Unseen, Word,
};

/// Where a guarded database is, and under which names it is captured.
#[derive(Clone, Debug)]
pub struct Place {
    /// The database, and as whom.
    pub config: Config,
    /// What is guarded.
    pub publication: Name,
    /// What keeps the log for us.
    pub slot: Name,
    /// Whether changes are to say who makes them; if not, that is part of the
    /// fingerprint.
    pub attribution: bool,
}

/// A guarded PostgreSQL database: one session for questions, one that streams.
#[derive(Debug)]
pub struct PgSource {
    place: Place,
    sql: Connection,
    stream: Option<Reader>,
    shapes: Vec<Shape>,
    /// A transaction that is not to be told, and what to say of that.
    left_out: Option<(Lsn, String)>,
}

impl PgSource {
    /// Connects, and reads which tables the publication guards.
    ///
    /// # Errors
    /// Those of [`Connection::open`], and [`PgError::Version`].
    pub fn open(place: &Place) -> Result<Self, PgError> {
        let mut sql = Connection::open(&place.config)?.answering_within(Connection::PATIENCE)?;
        let shapes = shapes(&Snapshot::tables_of(&mut sql, &place.publication)?);
        Ok(Self {
            place: place.clone(),
            sql,
            stream: None,
            shapes,
            left_out: None,
        })
    }

    /// The session for questions.
    pub fn sql(&mut self) -> &mut Connection {
        &mut self.sql
    }

    /// Begins to stream after what is durable. A log that is shorter, and a slot
    /// that was moved or is gone, is told: never a silent new beginning.
    fn begin(&mut self, after: Position) -> Result<Option<Captured>, PgError> {
        let Place {
            config,
            publication,
            slot,
            ..
        } = &self.place;
        // A transaction of which the beginning is durable is told from there.
        let durable = lsn(after)?;
        let after = boundary(durable);
        // What we have was flushed before we had it: no crash takes it away.
        let is_rewound = end_of_log(&mut self.sql)? < durable;
        let (start, what) = match slot::state(&mut self.sql, slot, durable)? {
            State::Sound { confirmed } if is_rewound => (Some(confirmed), String::new()),
            State::Sound { .. } => match &self.left_out {
                // The server leaves out what was committed before it is to begin.
                Some((commit, why)) if durable <= *commit => (Some(Lsn(commit.0 + 1)), why.clone()),
                _ => (None, String::new()),
            },
            State::Moved { confirmed } => (
                Some(confirmed),
                format!(
                    "slot {slot} stands at {confirmed}, past {durable}: it was moved or made anew, and what was \
                     committed between is missing"
                ),
            ),
            State::Missing => (
                Some(self.new_slot()?),
                format!(
                    "slot {slot} was missing: what was committed after {durable} until it was made anew is missing"
                ),
            ),
            State::Lost => {
                slot::drop(&mut self.sql, slot)?;
                (
                    Some(self.new_slot()?),
                    format!(
                        "the server dropped the log that slot {slot} needs (max_slot_wal_keep_size): what was \
                         committed after {durable} until the slot was made anew is missing"
                    ),
                )
            }
        };
        let from = start.map_or(after, boundary);
        let connection = Connection::open_replication(config)?.silent_for(Connection::PATIENCE);
        let mut catalogue = Questions::open(config)?;
        let encoding = catalogue.ask(Encoding::ask)?;
        let stream = Stream::start_in(connection, slot, publication, from, encoding)?;
        // From here on nobody else can move it. Whoever did so a moment ago is told as
        // before: of that the server would say nothing, and leave out what lies between.
        if let State::Moved { .. } = slot::state(&mut self.sql, slot, lsn(from)?)? {
            drop(stream);
            return self.begin(after);
        }
        self.stream = Some(Reader::start(stream.asking(catalogue))?);
        Ok(start.map(|_| match is_rewound {
            true => Captured::Rewound {
                expected: after,
                found: from,
            },
            false => Captured::Gap {
                after,
                upto: from,
                what,
            },
        }))
    }

    fn is_published(&mut self) -> Result<bool, PgError> {
        let publication = &self.place.publication;
        let found = self.sql.query(&format!(
            "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = '{publication}'"
        ))?;
        Ok(!found.is_empty())
    }

    /// Goes on after a time without our publication, which is there again. What was
    /// committed meanwhile no server before version 18 decodes, however often it is
    /// asked (later ones leave it out by themselves): the slot has to be moved past it.
    fn pass_over(&mut self, after: Position) -> Result<Option<Captured>, PgError> {
        // The slot is free once its reader has ended.
        self.stream = None;
        let Place {
            publication, slot, ..
        } = &self.place;
        let upto = barrier(&mut self.sql)?;
        slot::advance(&mut self.sql, slot, publication, upto)?;
        let what = format!(
            "publication {publication} was missing for a while, and of that time nothing can be decoded: slot {slot} \
             was moved on to {upto}, and what was committed before is missing"
        );
        Ok(self.begin(after)?.map(|told| match told {
            Captured::Gap { after, upto, .. } => Captured::Gap { after, upto, what },
            other => other,
        }))
    }

    fn new_slot(&self) -> Result<Lsn, PgError> {
        let connection = Connection::open_replication(&self.place.config)?;
        let mut connection = connection.silent_for(MAKING);
        slot::create_soon(&mut connection, &self.place.slot)
    }

    fn shape(&self, table: &str) -> Result<&Shape, PgError> {
        let known = self.shapes.iter().find(|shape| shape.name == table);
        known.ok_or_else(|| PgError::NotGuarded {
            table: table.to_owned(),
        })
    }
}

/// How long making a slot may take: it waits for one transaction after the other.
const MAKING: Duration = Duration::from_secs(300);

impl Source for PgSource {
    fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    fn refresh(&mut self) -> Result<bool, SourceError> {
        let tables = Snapshot::tables_of(&mut self.sql, &self.place.publication)?;
        let shapes = shapes(&tables);
        let is_other = shapes != self.shapes;
        self.shapes = shapes;
        Ok(is_other)
    }

    fn unguarded(&mut self) -> Result<Vec<String>, SourceError> {
        Ok(install::unguarded(&mut self.sql, &self.place.publication)?)
    }

    fn free(&mut self) -> Result<(), SourceError> {
        let slot = &self.place.slot;
        match slot::is_read(&mut self.sql, slot)? {
            false => Ok(()),
            true => Err(PgError::SlotBusy {
                slot: slot.as_str().to_owned(),
            }
            .into()),
        }
    }

    fn word(&mut self) -> Result<Word, SourceError> {
        Ok(word::read(&mut self.sql, &self.place.publication)?)
    }

    fn set_word(&mut self, word: &str) -> Result<bool, SourceError> {
        Ok(word::write(&mut self.sql, &self.place.publication, word)?)
    }

    fn next_transaction(&mut self) -> Result<Option<u64>, SourceError> {
        Ok(Some(unseen_by(&mut self.sql)?.next()))
    }

    fn backlog(&mut self) -> Result<Backlog, SourceError> {
        let kept = slot::kept(&mut self.sql, &self.place.slot)?;
        let danger = kept.as_ref().and_then(|kept| kept.danger(&self.place.slot));
        Ok(Backlog {
            kept_bytes: kept.map(|kept| kept.bytes),
            danger,
        })
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn identity(&mut self) -> Result<Identity, SourceError> {
        let found = install::identity(&mut self.sql)?;
        Ok(Identity {
            system: format!("postgres:{}/{}", found.system, found.database),
            timeline: found.timeline,
        })
    }

    fn key(&self, table: &str, words: &[&str]) -> Result<Key, SourceError> {
        let wanted = self.shape(table)?.key.len();
        if wanted != words.len() {
            return Err(PgError::KeyLength {
                table: table.to_owned(),
                wanted,
                given: words.len(),
            }
            .into());
        }
        let cells: Vec<Cell> = words.iter().map(|w| cell(Some(w.as_bytes()))).collect();
        Ok(Key::new(cells))
    }

    fn poll(&mut self, after: Position, max: usize) -> Result<Vec<Captured>, SourceError> {
        let mut steps = Vec::new();
        if self.stream.is_none() {
            steps.extend(self.begin(after)?);
        }
        if let Some(stream) = &mut self.stream
            && steps.is_empty()
        {
            match stream.take(&mut steps, max) {
                Err(PgError::NoPublication { .. }) if self.is_published()? => {
                    steps.extend(self.pass_over(after)?);
                }
                taken => taken?,
            }
        }
        Ok(steps)
    }

    fn leave_out(&mut self, commit: Position, why: String) {
        if let Ok(commit) = lsn(commit) {
            self.left_out = Some((commit, why));
        }
    }

    fn newest(&mut self) -> Result<Position, SourceError> {
        Ok(boundary(barrier(&mut self.sql)?))
    }

    fn ack(&mut self, upto: Position) -> Result<(), SourceError> {
        match &mut self.stream {
            Some(stream) => Ok(stream.ack(upto)?),
            None => Ok(()),
        }
    }

    fn snapshot(&mut self) -> Result<OpenSnapshot, SourceError> {
        let place = self.place.clone();
        Ok(Box::new(move || {
            Ok(Box::new(Moment::now(&place)?) as Box<dyn source::Snapshot>)
        }))
    }

    fn fingerprint(&mut self) -> Result<Vec<u8>, SourceError> {
        let Place {
            publication,
            slot,
            attribution,
            ..
        } = &self.place;
        let mut fingerprint = Fingerprint::take(&mut self.sql, publication, slot)?;
        if !attribution {
            fingerprint.note_unattributed(publication);
        }
        Ok(serde_json::to_vec(&fingerprint).expect("strings"))
    }

    fn shapes_in(&self, fingerprint: &[u8]) -> Option<Vec<Shape>> {
        let fingerprint: Fingerprint = serde_json::from_slice(fingerprint).ok()?;
        Some(fingerprint.shapes())
    }

    fn drifts(&self, before: &[u8], now: &[u8]) -> Vec<Drift> {
        let read = |bytes| serde_json::from_slice::<Fingerprint>(bytes).ok();
        match (read(before), read(now)) {
            (Some(before), Some(now)) => before.compare(&now),
            _ => vec![Drift::unknown()],
        }
    }
}

/// One moment of the guarded tables.
#[derive(Debug)]
pub struct Moment {
    snapshot: Snapshot,
    tables: HashMap<String, Table>,
    position: Position,
    at: String,
    unseen: Unseen,
}

impl Moment {
    /// The present moment.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn now(place: &Place) -> Result<Self, PgError> {
        let mut snapshot = Snapshot::open(&place.config)?;
        // The first question takes the snapshot; the barrier comes after it, so
        // that every transaction that the rows show was committed before.
        let at = snapshot.at()?;
        let asking = Connection::open(&place.config)?;
        let upto = barrier(&mut asking.answering_within(Connection::PATIENCE)?)?;
        Self::of(snapshot, &place.publication, boundary(upto), at)
    }

    /// The moment at which a slot was made.
    ///
    /// # Errors
    /// Those of [`Snapshot::open_exported`].
    pub fn exported(place: &Place, created: &slot::Created<'_>) -> Result<Self, PgError> {
        let mut snapshot = Snapshot::open_exported(&place.config, created.snapshot())?;
        let at = snapshot.at()?;
        let upto = boundary(created.consistent_point());
        Self::of(snapshot, &place.publication, upto, at)
    }

    fn of(
        mut snapshot: Snapshot,
        publication: &Name,
        position: Position,
        at: String,
    ) -> Result<Self, PgError> {
        let unseen = snapshot.unseen()?;
        let tables = snapshot.tables(publication)?;
        let tables = tables.into_iter().map(|table| (table.name.clone(), table));
        Ok(Self {
            tables: tables.collect(),
            snapshot,
            position,
            at,
            unseen,
        })
    }
}

impl source::Snapshot for Moment {
    fn position(&self) -> Position {
        self.position
    }

    fn at(&self) -> &str {
        &self.at
    }

    fn unseen(&self) -> Unseen {
        self.unseen.clone()
    }

    fn scan(
        &mut self,
        table: &str,
        chunk: usize,
        each: &mut dyn FnMut(Rows) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let Some(known) = self.tables.get(table) else {
            let table = table.to_owned();
            return Err(PgError::NotGuarded { table }.into());
        };
        Ok(match self.snapshot.scan(known, chunk, each) {
            // lock_timeout; asking how large it is waits for the lock, too.
            Err(PgError::LockTimeout) => {
                let table = table.to_owned();
                Err(PgError::Locked { table })
            }
            Err(PgError::Server { code, message }) if is_unsendable(&code, &message) => {
                let table = table.to_owned();
                Err(PgError::UnsendableRow { table, code })
            }
            read => read,
        }?)
    }

    fn goes_on(&self) -> bool {
        self.snapshot.goes_on()
    }

    fn about(&mut self, table: &str) -> Result<Option<u64>, SourceError> {
        let known = self.tables.get(table);
        Ok(known.map(|it| self.snapshot.about(it)).transpose()?)
    }

    fn hidden(&mut self, table: &str) -> Result<Option<SourceError>, SourceError> {
        let Some(known) = self.tables.get(table) else {
            return Ok(None);
        };
        let table = table.to_owned();
        let rewritten = self.snapshot.is_rewritten(known)?;
        Ok(rewritten.then(|| PgError::Rewritten { table }.into()))
    }
}

/// Whether the server refused to send a row, for its length or for what cannot be converted.
/// What damage is told by has the same code as the former in part; its words are never
/// translated.
fn is_unsendable(code: &str, message: &str) -> bool {
    matches!(code, "22021" | "22P05" | "54000")
        || (code == "XX000" && message.starts_with("invalid memory alloc request size"))
}

fn shapes(tables: &[Table]) -> Vec<Shape> {
    let shape = |table: &Table| Shape {
        name: table.name.clone(),
        columns: table.columns.to_vec(),
        numbers: table.numbers.clone(),
        key: table
            .key
            .iter()
            .map(|at| table.columns[*at].clone())
            .collect(),
        keyless: table.keyless,
    };
    tables.iter().map(shape).collect()
}

/// A place in the log behind everything that was committed by now, and in front
/// of a commit that is on its way to the stream: a message that says nothing.
///
/// A role that may not write it gets the log's present end, which the stream
/// reaches once the server has flushed it. No standby is waited for: it may be
/// away for longer than we can be.
fn barrier(sql: &mut Connection) -> Result<Lsn, PgError> {
    let asked = sql.query(
        "SET LOCAL synchronous_commit = local; \
         SELECT pg_catalog.pg_logical_emit_message(true, 'pitser.mark', '')",
    );
    let rows = match asked {
        Err(PgError::Permission { .. }) => return end_of_log(sql),
        other => other?,
    };
    place(&rows)
}

/// How far the server's log was written.
fn end_of_log(sql: &mut Connection) -> Result<Lsn, PgError> {
    place(&sql.query("SELECT pg_catalog.pg_current_wal_insert_lsn()")?)
}

/// A place in the log that the server was asked for.
fn place(rows: &[Vec<Field>]) -> Result<Lsn, PgError> {
    rows.first()
        .and_then(|row| text(row.first()?))
        .ok_or(PgError::Protocol("no place in the log"))?
        .parse()
}
