//! From the server's messages to events, in commit order.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::encoding::Encoding;
use super::error::{Doing, is_of_data};
use super::pgoutput::{self, DecodeError, DecodeErrorKind, Message, Old, Relation, Tuple, Value};
use super::questions::Questions;
use super::slot::{self, State, text};
use super::snapshot::unseen_by;
use super::wire::Streamed;
use super::{Connection, Lsn, Name, PgError, spelled};
use crate::event::{Actor, Binding, Captured, Change, Key, Op, Person, Position, Row, is_instant};

/// A slot being read.
///
/// Every event's [`Position`] is its transaction's commit record and its place
/// in the transaction. Decoding is deterministic: after a restart from a durable
/// position, the events after it come with the same positions, each once.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    /// For questions about tables as they come.
    catalogue: Option<Questions>,
    slot: Name,
    publication: Name,
    assembler: Assembler,
    /// Up to here everything is durable already.
    after: Position,
    /// The farthest place in the log that was handed out.
    handed: Lsn,
    /// What the server may forget.
    acked: Lsn,
    /// Messages since the server last heard from us.
    unheard: u32,
    /// Reports that the server has not answered.
    unanswered: u32,
    /// After so many we ask whether it is frozen.
    doubted: u32,
}

impl Stream {
    /// Begins to read a slot after what is durable here.
    ///
    /// # Errors
    /// [`PgError::SlotGone`], [`PgError::SlotMoved`] (start again from where it
    /// stands, once the gap is in the trail), [`PgError::SlotBusy`].
    pub fn start(
        mut connection: Connection,
        slot: &Name,
        publication: &Name,
        after: Position,
    ) -> Result<Self, PgError> {
        let encoding = Encoding::ask(&mut connection)?;
        Self::start_in(connection, slot, publication, after, encoding)
    }

    /// The same, where the encoding was asked for in another session: before version 15
    /// one for replication does not take all that it takes to ask.
    pub(super) fn start_in(
        mut connection: Connection,
        slot: &Name,
        publication: &Name,
        after: Position,
        encoding: Encoding,
    ) -> Result<Self, PgError> {
        let from = lsn(after)?;
        refuse_unsound(slot, from, slot::state(&mut connection, slot, from)?)?;
        connection.set_names(encoding.clone());
        let keys = primary_keys(&mut connection, None)?;
        let near_xid = unseen_by(&mut connection)?.next();
        if let Some(setting) = encoding.setting() {
            connection.query(&setting)?;
        }
        let command = format!(
            "START_REPLICATION SLOT {slot} LOGICAL {from} \
             (proto_version '1', publication_names '{publication}', messages 'true')"
        );
        let doing = Doing::Streaming {
            slot: slot.as_str(),
            publication: publication.as_str(),
        };
        connection.copy_both(&command, doing)?;
        Ok(Self {
            connection,
            catalogue: None,
            slot: slot.clone(),
            publication: publication.clone(),
            assembler: Assembler::new(keys, near_xid, encoding),
            after,
            handed: from,
            acked: from,
            unheard: 0,
            unanswered: 0,
            doubted: UNANSWERED,
        })
    }

    /// Asks this session, whenever a table is described anew, for its primary key, since
    /// under `REPLICA IDENTITY FULL` the stream does not say which columns it is, and for
    /// its name, since the stream says what it was called when the change was made. Without
    /// one the key stays what it was when the stream was started, and the name what the
    /// stream says.
    #[must_use]
    pub(super) fn asking(mut self, catalogue: Questions) -> Self {
        self.catalogue = Some(catalogue);
        self
    }

    /// The next step, waiting up to `wait` for the server to say something;
    /// `None` if it said nothing, or only asks how far we are.
    ///
    /// A transaction's events are followed by a [`Captured::Mark`]; another one
    /// tells, while nothing of ours is committed, how far the log was read.
    /// Acknowledge both once they are durable, or the server keeps its log for
    /// ever.
    ///
    /// Call it more often than the server's `wal_sender_timeout` (60 s unless
    /// set): this is what answers the server's questions.
    ///
    /// With a `wait` of zero, what has arrived already: who looks now and then
    /// instead of waiting for each message is not woken by each of them.
    ///
    /// # Errors
    /// [`PgError::is_passing`] ones: start again from the last durable
    /// position. [`PgError::Decode`]: nothing more can be read from here.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Captured>, PgError> {
        loop {
            while let Some(step) = self.assembler.told.pop_front() {
                let Some(reached) = step.reached() else {
                    return Ok(Some(step));
                };
                self.handed = self.handed.max(lsn(reached)?);
                if reached > self.after {
                    return Ok(Some(step));
                }
            }
            let doing = Doing::Streaming {
                slot: self.slot.as_str(),
                publication: self.publication.as_str(),
            };
            let said = self.connection.streamed(wait, doing);
            let said = said.map_err(|error| self.assembler.explain(error))?;
            if !matches!(said, Streamed::Quiet) {
                (self.unanswered, self.doubted) = (0, UNANSWERED);
            }
            match said {
                Streamed::Data { message } => {
                    let message = pgoutput::decode_in(&message, &self.assembler.encoding)?;
                    if let Message::Relation(relation) = &message
                        && let Some(sql) = &mut self.catalogue
                    {
                        if relation.full {
                            let keys = &mut self.assembler.keys;
                            keys.remove(&relation.id);
                            keys.extend(sql.ask(|sql| primary_keys(sql, Some(relation.id)))?);
                        }
                        self.assembler.name = sql.ask(|sql| name_of(sql, relation.id))?;
                    }
                    self.assembler.take(message)?;
                    self.unheard += 1;
                    if self.unheard >= LONGEST_SILENCE {
                        self.report()?;
                    }
                }
                Streamed::Keepalive { end, reply } => {
                    if reply {
                        self.report()?;
                    }
                    if self.assembler.open.is_none() && end > self.handed {
                        self.handed = end;
                        let pos = boundary(end);
                        return Ok(Some(Captured::Mark { pos }));
                    }
                    // A server that is stopping asks again at once until we have
                    // acknowledged everything: only our caller can.
                    if reply {
                        return Ok(None);
                    }
                }
                // It is connected, and frozen: nothing would ever come.
                Streamed::Quiet if self.is_frozen()? => {
                    return Err(PgError::Lost(ErrorKind::TimedOut));
                }
                Streamed::Quiet => return Ok(None),
            }
        }
    }

    /// Whether the server's process has nothing to do, and leaves our reports unanswered. One
    /// that decodes a large transaction of which nothing is for us looks at them after half
    /// of its `wal_sender_timeout`, or at its end.
    fn is_frozen(&mut self) -> Result<bool, PgError> {
        if self.unanswered <= self.doubted {
            return Ok(false);
        }
        self.doubted = self.unanswered + UNANSWERED;
        let slot = &self.slot;
        Ok(match &mut self.catalogue {
            Some(sql) if self.unanswered <= MOST_UNANSWERED => {
                !sql.ask(|sql| slot::is_at_work(sql, slot))?
            }
            _ => true,
        })
    }

    /// Lets the server forget what was committed before `upto`: a position
    /// that is durable with everything before it. Also tells the server that
    /// we are still here; a peer that vanished is noticed by it in the end.
    ///
    /// # Errors
    /// [`PgError::AckAhead`] for more than was handed out.
    pub fn ack(&mut self, upto: Position) -> Result<(), PgError> {
        let upto = lsn(upto)?;
        if upto > self.handed {
            return Err(PgError::AckAhead {
                upto,
                position: self.handed,
            });
        }
        self.acked = self.acked.max(upto);
        self.report()
    }

    /// Tells the server what it may forget, and that we are still here.
    ///
    /// # Errors
    /// A lost connection.
    pub fn report(&mut self) -> Result<(), PgError> {
        self.unheard = 0;
        self.unanswered += 1;
        self.connection.status(self.acked)
    }
}

/// The place in the log of a position; an event's is that of its transaction's
/// commit record, from which the whole transaction would come again.
pub(super) fn lsn(position: Position) -> Result<Lsn, PgError> {
    match position {
        Position::Log { lsn, .. } => Ok(Lsn(lsn)),
        Position::Outbox(_) => Err(PgError::Protocol("a position of another engine")),
    }
}

/// Everything that was committed before `end` has been told.
pub(super) fn boundary(end: Lsn) -> Position {
    Position::Log { lsn: end.0, nth: 0 }
}

fn refuse_unsound(slot: &Name, durable: Lsn, state: State) -> Result<(), PgError> {
    let slot = slot.as_str().to_owned();
    match state {
        State::Sound { .. } => Ok(()),
        State::Moved { confirmed } => Err(PgError::SlotMoved {
            slot,
            confirmed,
            durable,
        }),
        State::Missing => Err(PgError::SlotGone {
            slot,
            what: "missing",
        }),
        State::Lost => Err(PgError::SlotGone {
            slot,
            what: "no longer valid",
        }),
    }
}

/// The primary key of a table, as the catalogue has it.
#[derive(Debug, Default)]
struct Primary {
    columns: Vec<String>,
    /// Whether the table has partitions, which decide themselves what is logged.
    is_partitioned: bool,
}

/// Primary keys by table number, of all tables or of one. A deferrable one, which rows may
/// share until the commit, is none.
fn primary_keys(
    sql: &mut Connection,
    table: Option<u32>,
) -> Result<HashMap<u32, Primary>, PgError> {
    let which = table.map_or_else(String::new, |table| format!("AND i.indrelid = {table}"));
    let question = format!(
        "SELECT i.indrelid, a.attname, c.relkind FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_class c ON c.oid = i.indrelid \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid \
         AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
         WHERE i.indisprimary AND i.indimmediate {which}"
    );
    let rows = Encoding::names(sql, &question)?;
    let mut keys: HashMap<u32, Primary> = HashMap::new();
    for row in &rows {
        if let [table, column, kind] = &row[..]
            && let Some(table) = text(table).and_then(|oid| oid.parse().ok())
            && let Some(column) = text(column)
        {
            let key = keys.entry(table).or_default();
            key.columns.push(column.to_owned());
            key.is_partitioned = text(kind) == Some("p");
        }
    }
    Ok(keys)
}

/// What a table is called now; `None` if it is no more.
fn name_of(sql: &mut Connection, table: u32) -> Result<Option<String>, PgError> {
    let question = format!(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {table}"
    );
    let rows = Encoding::names(sql, &question)?;
    let Some([schema, table]) = rows.first().map(|row| &row[..]) else {
        return Ok(None);
    };
    Ok(text(schema)
        .zip(text(table))
        .map(|(schema, table)| spelled(schema, table)))
}

/// Turns messages into steps; does no input or output.
#[derive(Debug)]
struct Assembler {
    encoding: Encoding,
    keys: HashMap<u32, Primary>,
    /// What the table is called now that is described next.
    name: Option<String>,
    tables: HashMap<u32, Table>,
    open: Option<Transaction>,
    /// Steps that are told but not yet handed out.
    told: VecDeque<Captured>,
    /// A transaction number with its epoch, near those that come.
    near_xid: u64,
}

/// A table as the changes after its description have it.
#[derive(Debug)]
struct Table {
    name: String,
    columns: Arc<[String]>,
    /// Places of the key's columns, in the table's order.
    key: Result<Vec<usize>, &'static str>,
    /// Those are all of them, for want of a better key.
    keyless: bool,
    /// Whatever the stream calls an old row is one, with all of its columns. A partition's
    /// holds what that one's replica identity had logged, while the stream says of it what
    /// the root's promises; the columns that are missing are null.
    is_whole: bool,
    encoding: Encoding,
}

/// The transaction whose changes are coming.
#[derive(Debug)]
struct Transaction {
    commit: Lsn,
    xid: u64,
    at: String,
    events: u64,
    claim: Claim,
}

/// What the transaction's logical messages say about who is acting.
#[derive(Debug)]
enum Claim {
    Nothing,
    One(Attribution),
    /// They contradict each other, or cannot be read: nobody is believed.
    Unclear,
}

/// The content of a logical message with the prefix `pitser`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Attribution {
    person: Option<Claimed>,
    role: Option<String>,
    app: Option<String>,
    client: Option<String>,
    purpose: Option<String>,
}

/// A person's name on its way into [`Person`], which `Debug` does not show.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
struct Claimed(Person);

impl From<String> for Claimed {
    fn from(name: String) -> Self {
        Self(Person::new(name))
    }
}

/// An event that has no place in the order yet.
#[derive(Debug)]
enum Event {
    Change {
        table: String,
        op: Op,
        key: Key,
        keyless: bool,
        old: Option<Row>,
        new: Option<Row>,
        unsent: Vec<usize>,
    },
    Unreadable {
        table: String,
        why: &'static str,
    },
}

/// Messages of one long transaction after which we say that we are still here:
/// the server's own question waits behind everything that it has sent.
const LONGEST_SILENCE: u32 = 1000;
/// Reports in a row that a server may leave unanswered while it has nothing to do, at about
/// one a second.
const UNANSWERED: u32 = 15;
/// The same while it works.
const MOST_UNANSWERED: u32 = 900;
const PREFIX: &str = "pitser";
/// Longest attribution message that is read, bytes.
const LONGEST_CLAIM: usize = 1 << 16;
const NOT_SENT: &str =
    "a large value in the key was not sent: the table needs REPLICA IDENTITY FULL";
const NO_KEY: &str = "the table has no primary key and no REPLICA IDENTITY FULL";
const KEY_NOT_LOGGED: &str = "the row's partition has another replica identity than its root, which says less: run guard init";
const KEY_RENAMED: &str = "the primary key is not the one that the table had when this was written";

impl Assembler {
    fn new(keys: HashMap<u32, Primary>, near_xid: u64, encoding: Encoding) -> Self {
        Self {
            encoding,
            keys,
            name: None,
            tables: HashMap::new(),
            open: None,
            told: VecDeque::new(),
            near_xid,
        }
    }

    /// What a refusal means in the middle of a transaction.
    fn explain(&self, error: PgError) -> PgError {
        match (error, &self.open) {
            (PgError::Server { code, .. }, Some(open)) if is_of_data(&code) => {
                let commit = open.commit;
                PgError::Unsendable { commit, code }
            }
            (error, _) => error,
        }
    }

    fn take(&mut self, message: Message<'_>) -> Result<(), DecodeError> {
        match message {
            Message::Begin { commit, time, xid } => self.begin(commit, time, xid),
            Message::Commit { commit, end } => self.commit(commit, end),
            Message::Relation(relation) => {
                self.describe(relation);
                Ok(())
            }
            Message::Insert { relation, new } => {
                let event = self.table(relation, &[&new])?.created(&new);
                self.tell(event)
            }
            Message::Update { relation, old, new } => {
                let table = self.table(relation, &[old.as_ref().map_or(&new, Old::tuple), &new])?;
                let events = table.updated(old.as_ref(), &new);
                events.into_iter().try_for_each(|event| self.tell(event))
            }
            Message::Delete { relation, old } => {
                let event = self.table(relation, &[old.tuple()])?.deleted(&old);
                self.tell(event)
            }
            // Each that was described is named once.
            Message::Truncate { relations } if relations.len() > self.tables.len() => {
                Err(fault(DecodeErrorKind::Shape))
            }
            Message::Truncate { relations } => relations.into_iter().try_for_each(|relation| {
                let event = self.table(relation, &[])?.emptied();
                self.tell(event)
            }),
            Message::Logical {
                transactional: true,
                prefix: PREFIX,
                content,
            } => self.claim(content.0),
            // Of what is rolled back nothing was told.
            Message::StreamAbort if self.open.is_none() => Ok(()),
            Message::StreamAbort => Err(FAULT_ORDER),
            Message::Logical { .. } | Message::Origin | Message::Type => Ok(()),
        }
    }

    fn begin(&mut self, commit: Lsn, time: i64, xid: u32) -> Result<(), DecodeError> {
        if self.open.is_some() {
            return Err(FAULT_ORDER);
        }
        self.near_xid = widen(self.near_xid, xid);
        self.open = Some(Transaction {
            commit,
            xid: self.near_xid,
            at: instant(time),
            events: 0,
            claim: Claim::Nothing,
        });
        Ok(())
    }

    fn commit(&mut self, commit: Lsn, end: Lsn) -> Result<(), DecodeError> {
        match self.open.take() {
            Some(open) if open.commit == commit && end >= commit => {
                let pos = boundary(end);
                self.told.push_back(Captured::Mark { pos });
                Ok(())
            }
            _ => Err(FAULT_ORDER),
        }
    }

    fn describe(&mut self, relation: Relation) {
        let primary = self.keys.get(&relation.id);
        let id = relation.id;
        let mut table = Table::of(relation, primary, self.encoding.clone());
        // Who renames a table for the time of a change does not hide whose rows it has.
        let said = match self.name.take() {
            Some(name) => std::mem::replace(&mut table.name, name),
            None => table.name.clone(),
        };
        let before = self.tables.get(&id).map(|before| before.name.clone());
        let others = [Some(said), before].into_iter().flatten();
        if let Some(was) = others.into_iter().find(|other| *other != table.name) {
            let table = table.name.clone();
            self.told.push_back(Captured::Renamed { table, was });
        }
        self.tables.insert(id, table);
    }

    /// The table, if it was described and these tuples fit it.
    fn table(&self, relation: u32, tuples: &[&Tuple<'_>]) -> Result<&Table, DecodeError> {
        self.tables
            .get(&relation)
            .filter(|table| {
                tuples
                    .iter()
                    .all(|tuple| tuple.len() == table.columns.len())
            })
            .ok_or(fault(DecodeErrorKind::Shape))
    }

    fn claim(&mut self, content: &[u8]) -> Result<(), DecodeError> {
        let open = self.open.as_mut().ok_or(FAULT_ORDER)?;
        let said = match content.len() {
            0..=LONGEST_CLAIM => serde_json::from_slice::<Attribution>(content).ok(),
            _ => None,
        };
        open.claim = match (&open.claim, said) {
            (Claim::Nothing, Some(said)) => Claim::One(said),
            (Claim::One(before), Some(said)) if *before == said => Claim::One(said),
            _ => Claim::Unclear,
        };
        Ok(())
    }

    fn tell(&mut self, event: Event) -> Result<(), DecodeError> {
        let open = self.open.as_mut().ok_or(FAULT_ORDER)?;
        open.events += 1;
        let pos = Position::Log {
            lsn: open.commit.0,
            nth: open.events,
        };
        let captured = match event {
            Event::Unreadable { table, why } => Captured::Unreadable {
                pos,
                table: Some(table),
                why,
            },
            Event::Change {
                table,
                op,
                key,
                keyless,
                old,
                new,
                unsent,
            } => {
                let (actor, purpose) = open.claim.attribute();
                Captured::Change(Change {
                    pos,
                    tx: open.xid,
                    at: open.at.clone(),
                    table,
                    op,
                    key,
                    keyless,
                    old,
                    new,
                    unsent,
                    actor,
                    purpose,
                })
            }
        };
        self.told.push_back(captured);
        Ok(())
    }
}

impl Table {
    fn of(relation: Relation, primary: Option<&Primary>, encoding: Encoding) -> Self {
        let name = spelled(&relation.schema, &relation.table);
        let place = |column: &String| relation.columns.iter().position(|name| name == column);
        let keyless = relation.full && primary.is_none();
        let is_whole = relation.full && !primary.is_some_and(|primary| primary.is_partitioned);
        let key = match primary {
            _ if relation.key.is_empty() => Err(NO_KEY),
            Some(primary) if relation.full => primary
                .columns
                .iter()
                .map(place)
                .collect::<Option<Vec<usize>>>()
                .map(|mut places| {
                    places.sort_unstable();
                    places
                })
                .ok_or(KEY_RENAMED),
            _ => Ok(relation.key),
        };
        Self {
            name,
            columns: relation.columns.into(),
            key,
            keyless,
            is_whole,
            encoding,
        }
    }

    fn created(&self, new: &Tuple<'_>) -> Event {
        self.event(Op::Create, None, Some(new))
    }

    fn deleted(&self, old: &Old<'_>) -> Event {
        self.event(Op::Delete, Some(&self.known(old)), None)
    }

    /// A changed key is another record: delete of the old one, create of the new.
    fn updated(&self, old: Option<&Old<'_>>, new: &Tuple<'_>) -> Vec<Event> {
        let old = old.map(|old| self.known(old));
        let old = old.as_deref();
        let new = self.filled(old, new);
        let (before, after) = (old.map(|old| self.key_before(old)), self.key(&new));
        match (old, before) {
            (_, Some(Err(KEY_NOT_LOGGED))) => vec![self.unreadable(KEY_NOT_LOGGED)],
            (Some(old), Some(before)) if before != after => {
                vec![self.deleted(old), self.created(&new)]
            }
            _ => vec![self.event(Op::Update, old, Some(&new))],
        }
    }

    /// What is known of the row before: its key alone, if all else of it that may not have
    /// been logged is null. That may be a row in which it is.
    fn known<'o, 't>(&self, old: &'o Old<'t>) -> Cow<'o, Old<'t>> {
        let key = self.key.as_deref().unwrap_or_default();
        let mut others = (0..self.columns.len()).filter(|place| !key.contains(place));
        match old {
            Old::Row(row)
                if !self.is_whole
                    && key.len() < row.len()
                    && others.all(|place| row.get(place) == Some(&Value::Null)) =>
            {
                Cow::Owned(Old::Key(row.clone()))
            }
            other => Cow::Borrowed(other),
        }
    }

    fn emptied(&self) -> Event {
        Event::Change {
            table: self.name.clone(),
            op: Op::Truncate,
            key: Key::new(Vec::new()),
            keyless: false,
            old: None,
            new: None,
            unsent: Vec::new(),
        }
    }

    /// The new tuple, with what was not sent taken from the old one where that holds it.
    fn filled<'t>(&self, old: Option<&Old<'t>>, new: &Tuple<'t>) -> Tuple<'t> {
        let key = self.key.as_deref().unwrap_or_default();
        let before = |place: usize| match old? {
            Old::Row(row) => row.get(place).copied(),
            Old::Key(row) if key.contains(&place) => row.get(place).copied(),
            Old::Key(_) => None,
        };
        new.iter()
            .enumerate()
            .map(|(place, value)| match value {
                Value::Unchanged => before(place).unwrap_or(Value::Unchanged),
                known => *known,
            })
            .collect()
    }

    fn event(&self, op: Op, old: Option<&Old<'_>>, new: Option<&Tuple<'_>>) -> Event {
        let read = || {
            let key = match (new, old) {
                (Some(new), _) => self.key(new),
                (None, Some(old)) => self.key_before(old),
                (None, None) => Err(NO_KEY),
            }?;
            let old = match old {
                Some(Old::Row(row)) => Some(self.row(row)),
                Some(Old::Key(_)) | None => None,
            };
            let unsent = new.into_iter().flatten().enumerate();
            let unsent = unsent.filter(|(_, value)| **value == Value::Unchanged);
            Ok(Event::Change {
                table: self.name.clone(),
                op,
                key,
                keyless: self.keyless,
                old,
                new: new.map(|row| self.row(row)),
                unsent: unsent.map(|(place, _)| place).collect(),
            })
        };
        read().unwrap_or_else(|why| self.unreadable(why))
    }

    fn unreadable(&self, why: &'static str) -> Event {
        Event::Unreadable {
            table: self.name.clone(),
            why,
        }
    }

    /// The key that a row had. No column of it can be null, but where a partition did not
    /// log it.
    fn key_before(&self, old: &Old<'_>) -> Result<Key, &'static str> {
        let places = self.key.as_ref().map_err(|why| *why)?;
        let is_null = |place: &usize| old.tuple()[*place] == Value::Null;
        match !self.is_whole && !self.keyless && places.iter().any(is_null) {
            true => Err(KEY_NOT_LOGGED),
            false => self.key(old.tuple()),
        }
    }

    fn key(&self, tuple: &Tuple<'_>) -> Result<Key, &'static str> {
        let places = self.key.as_ref().map_err(|why| *why)?;
        if places.iter().any(|place| tuple[*place] == Value::Unchanged) {
            return Err(NOT_SENT);
        }
        let sent = places.iter().map(|place| sent(&tuple[*place]));
        Ok(Key::new(self.encoding.cells(sent)))
    }

    fn row(&self, tuple: &Tuple<'_>) -> Row {
        Row {
            columns: Arc::clone(&self.columns),
            cells: self.encoding.cells(tuple.iter().map(sent)),
        }
    }
}

impl Claim {
    /// Who is acting and why, as far as one voice says so.
    fn attribute(&self) -> (Option<Actor>, Option<String>) {
        let Self::One(said) = self else {
            return (None, None);
        };
        let binding = match said {
            Attribution {
                person: Some(_), ..
            } => Binding::C,
            Attribution {
                role: None,
                app: None,
                ..
            } => Binding::E,
            _ => Binding::D,
        };
        let actor = Actor {
            role: said.role.clone(),
            app: said.app.clone(),
            client: said.client.clone(),
            person: said.person.clone().map(|Claimed(person)| person),
            binding,
        };
        (Some(actor), said.purpose.clone())
    }
}

impl<'a> Old<'a> {
    fn tuple(&self) -> &Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Row(tuple) => tuple,
        }
    }
}

const FAULT_ORDER: DecodeError = fault(DecodeErrorKind::Order);

const fn fault(kind: DecodeErrorKind) -> DecodeError {
    DecodeError { kind, at: 0 }
}

/// A value that was not sent stands as null, until the guardian fills it in.
fn sent<'a>(value: &Value<'a>) -> Option<&'a [u8]> {
    match value {
        Value::Null | Value::Unchanged => None,
        Value::Text(text) => Some(text),
    }
}

/// The 64-bit number that ends in `xid` and is nearest to `near`: living
/// transactions are never 2^31 apart.
fn widen(near: u64, xid: u32) -> u64 {
    let ahead = xid.wrapping_sub(near as u32).cast_signed();
    near.checked_add_signed(i64::from(ahead))
        .unwrap_or_else(|| u64::from(xid))
}

/// A transaction's time, in PostgreSQL's microseconds since 2000, as that of its events.
/// Its session may have set it to anything: one that cannot be written is the farthest
/// that can.
fn instant(since_2000: i64) -> String {
    const FROM_1970_TO_2000: i64 = 946_684_800_000_000;
    let since_1970 = since_2000.checked_add(FROM_1970_TO_2000);
    let time = since_1970.and_then(|it| Timestamp::from_microsecond(it).ok());
    let shown = time.map(|time| format!("{time:.6}"));
    shown.filter(|it| is_instant(it)).unwrap_or_else(|| {
        let farthest = match since_2000 < 0 {
            true => "0001-01-01T00:00:00.000000Z",
            false => "9999-12-31T23:59:59.999999Z",
        };
        farthest.to_owned()
    })
}

#[cfg(test)]
mod tests;
