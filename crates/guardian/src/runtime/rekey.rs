//! Tables that were given another key: their records go on under it.
//!
//! A record is named by its key, so that another key makes another record of each
//! row. So does having none, where the whole row is the key then. A row that opens the
//! commitment under its old key gets a `delete` line there, unless that is another row's
//! key now, and a `baseline` line under the new one, in one event. What was deleted under
//! its new key already is deleted under the old one. Whatever does not fit is left to the
//! scan: missing under the old key, never sealed under the new one. So are, after a crash
//! in the middle, rows whose old key had become another row's by then.
//!
//! Where a row is its own key and has lost a column, nothing in it leads to the old record:
//! the old records are looked through for one that has what is left of the key.
//!
//! A table whose rows have no key at all waits here until it has one.

use super::baseline::Copies;
use super::{BASELINE_CHUNK, Ended, Session, Worker};
use crate::translate;
use pitser_capture::source::{Rows, Unseen};
use pitser_capture::{Cell, Key, Position, Row, Shape, Snapshot};
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::{Line, Op, Timestamp};
use pitser_ksi::hash::Imprint;
use pitser_monitor::{Expected, Sealed, expected, key_cells, key_of};
use pitser_trail::{Draft, TrailError};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The file beside the trail: tables whose records are yet to go on under another
/// key, and the columns of the key that they had.
const FILE: &str = "rekey.json";

/// Columns of former keys, by table.
pub(super) type Rekeyed = BTreeMap<String, Vec<String>>;

/// A table on its way from one key to another.
struct Move {
    table: String,
    /// Columns of the key that it had.
    former: Vec<String>,
    /// When its rows were read.
    at: Timestamp,
    /// What the rows that were read do not show.
    shown: Shown,
    /// Its records by the new key.
    now: HashSet<Bytes32>,
    /// Those whose row is not as it was sealed.
    unfit: HashSet<Bytes32>,
    /// How many rows each old record vouches for, or an equal one beside it: each for one.
    vouched: HashMap<Bytes32, u64>,
    /// Which of several equal old records vouches for a row, where it is not the first.
    nth: HashMap<Bytes32, u64>,
    /// Keys of old records by what is left of them, where a column is gone: each vouches
    /// for one row.
    shortened: HashMap<Imprint, Vec<Key>>,
    /// The old key of each row that one of those vouched for.
    led: HashMap<Bytes32, Key>,
}

/// What a snapshot shows.
struct Shown {
    until: Position,
    unseen: Unseen,
}

impl Shown {
    fn of(snapshot: &dyn Snapshot) -> Self {
        Self {
            until: snapshot.position(),
            unseen: snapshot.unseen(),
        }
    }

    /// Whether the line is of something that is not shown.
    fn lacks(&self, line: &Line) -> bool {
        let is_later = line.pos.parse().is_ok_and(|pos: Position| pos > self.until);
        is_later || line.tx.is_some_and(|tx| self.unseen.contains(tx))
    }
}

impl Move {
    /// The key that a row had, if it still has the columns.
    fn former(&self, row: &Row) -> Option<Key> {
        let cells = self.former.iter().map(|column| row.get(column).cloned());
        cells.collect::<Option<Vec<Cell>>>().map(Key::new)
    }

    /// The old key of some record that has what is left of the key of this row.
    fn shortened(&mut self, row: &Row) -> Option<Key> {
        let left = self.former.iter().filter_map(|column| row.get(column));
        let left = fingerprint(left.cloned().collect());
        self.shortened.get_mut(&left)?.pop()
    }
}

/// Stands for a key in memory, of which there may be very many.
fn fingerprint(cells: Vec<Cell>) -> Imprint {
    Digest::of(&[&Key::new(cells).expose_bytes()]).0
}

impl Session {
    /// Remembers which tables have another key than in `before`, or none.
    pub(super) fn note_keys(&mut self, before: &[Shape]) -> Result<(), Ended> {
        let shapes = self.source.shapes();
        for was in before {
            let Some(now) = shapes.iter().find(|shape| shape.name == was.name) else {
                continue;
            };
            // As rows that are read have them.
            let called_now = |key: &[String]| -> Vec<String> {
                let names = key.iter();
                let names = names.map(|name| now.name_of(name, was).unwrap_or(name).to_owned());
                names.collect()
            };
            if let Some(waiting) = self.rekeyed.get_mut(&was.name) {
                // A key that was there for a moment named nothing yet.
                *waiting = called_now(waiting);
                if now.key != was.key {
                    self.rekeyed_again.insert(was.name.clone());
                }
                continue;
            }
            let former = called_now(&was.key);
            // Columns that are only called otherwise name the same records.
            if !former.is_empty() && now.key != was.key && now.key != former {
                self.rekeyed.insert(was.name.clone(), former);
            }
        }
        self.remember_keys()
    }

    fn remember_keys(&self) -> Result<(), Ended> {
        let path = self.rekey_file();
        if self.rekeyed.is_empty() {
            // It may never have been written.
            let _ = std::fs::remove_file(path);
            return Ok(());
        }
        let text = serde_json::to_vec(&self.rekeyed).expect("strings");
        Ok(pitser_trail::disk::replace(&path, &text).map_err(TrailError::from)?)
    }

    /// What a guardian before this one did not finish.
    pub(super) fn remembered_keys(&self) -> Rekeyed {
        let text = std::fs::read(self.rekey_file()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn rekey_file(&self) -> PathBuf {
        self.trail.layout().dir().join(FILE)
    }

    /// Whether the records of some table can go on under another key now.
    pub(super) fn is_rekeying(&self) -> bool {
        let mut tables = self.rekeyed.keys();
        tables.any(|table| self.can_carry(table))
    }

    fn can_carry(&self, table: &str) -> bool {
        !self.aside.contains(table) && self.key_of(table).is_some_and(|key| !key.is_empty())
    }

    /// The columns of a table's key, of which there may be none; `None` if the table is
    /// not guarded.
    pub(super) fn key_of(&self, table: &str) -> Option<&[String]> {
        let shapes = self.source.shapes();
        let shape = shapes.iter().find(|shape| shape.name == table)?;
        Some(&shape.key)
    }

    /// Has the records of these tables go on under their new keys.
    pub(super) fn carry(
        &mut self,
        worker: &mut Worker,
        snapshot: &mut dyn Snapshot,
    ) -> Result<(), Ended> {
        let at: Timestamp = snapshot.at().parse().unwrap_or_else(|_| self.now(worker));
        // Rows are numbered here in another way.
        self.copies.clear();
        // Lines are looked at that say what happened meanwhile.
        self.flush(worker)?;
        self.trail.commit()?;
        for (table, former) in self.rekeyed.clone() {
            match self.key_of(&table) {
                // One that was dropped meanwhile has no rows to carry.
                None => {}
                Some(_) if !self.can_carry(&table) => continue,
                Some(_) => {
                    self.reading = Some(table.clone());
                    let moved = Move {
                        table: table.clone(),
                        former,
                        at,
                        shown: Shown::of(snapshot),
                        now: HashSet::new(),
                        unfit: HashSet::new(),
                        vouched: HashMap::new(),
                        nth: HashMap::new(),
                        shortened: HashMap::new(),
                        led: HashMap::new(),
                    };
                    self.carry_table(worker, snapshot, moved)?;
                    self.reading = None;
                }
            }
            self.rekeyed.remove(&table);
            self.rekeyed_again.remove(&table);
            self.trail.commit()?;
            self.remember_keys()?;
        }
        self.show(worker);
        Ok(())
    }

    fn carry_table(
        &mut self,
        worker: &mut Worker,
        snapshot: &mut dyn Snapshot,
        mut moved: Move,
    ) -> Result<(), Ended> {
        let table = moved.table.clone();
        moved.shortened = self.shortened_keys(&moved)?;
        // All are compared before one is written: what was one row's key may be
        // another's now.
        self.each(snapshot, &table, |session, rows| {
            for (now, row) in rows {
                session.compare_named(&mut moved, &now, &row)?;
            }
            session.meanwhile(worker)
        })?;
        self.each(snapshot, &table, |session, rows| {
            for (now, row) in rows {
                session.carry_row(worker, &moved, &now, row)?;
            }
            session.trail.commit()?;
            session.meanwhile(worker)
        })?;
        self.carry_deleted(worker, &moved)
    }

    /// The old records of a table whose rows are their own keys and have lost a column, by
    /// what is left of their keys; none of another table.
    fn shortened_keys(&mut self, moved: &Move) -> Result<HashMap<Imprint, Vec<Key>>, Ended> {
        let Move { table, former, .. } = moved;
        let mut found: HashMap<Imprint, Vec<Key>> = HashMap::new();
        let columns = self.key_of(table).unwrap_or_default();
        let left: Vec<bool> = former.iter().map(|it| columns.contains(it)).collect();
        let is_shortened = left.contains(&false) && left.contains(&true);
        if !is_shortened || !self.is_keyless(table) {
            return Ok(found);
        }
        let standing = self
            .trail
            .state()
            .records(table, |record, leaf| leaf.row.is_some().then_some(*record));
        for record in standing.map_err(TrailError::from)? {
            let Some(sealed) = Sealed::of(&mut self.trail, table, &record)? else {
                continue;
            };
            // What was written since lacks the column.
            let names = sealed.content.names().map_or(&[][..], |names| names);
            let is_former = former.iter().all(|column| names.contains(column));
            if let Some(was) = sealed.content.key.clone().filter(|_| is_former) {
                let was = key_of(was);
                let kept = was
                    .cells()
                    .iter()
                    .zip(&left)
                    .filter(|(_, is_left)| **is_left);
                let kept = kept.map(|(cell, _)| cell.clone()).collect();
                found.entry(fingerprint(kept)).or_default().push(was);
            }
        }
        Ok(found)
    }

    /// Reads a table's rows, equal ones with their numbers.
    fn each(
        &mut self,
        snapshot: &mut dyn Snapshot,
        table: &str,
        mut take: impl FnMut(&mut Self, Rows) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        let mut copies = self.is_keyless(table).then(Copies::default);
        let mut failed = None;
        snapshot.scan(table, BASELINE_CHUNK, &mut |mut rows| {
            if let Some(copies) = &mut copies {
                copies.number(&mut rows);
            }
            match take(self, rows) {
                Ok(()) => ControlFlow::Continue(()),
                Err(ended) => {
                    failed = Some(ended);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(()), Err)?;
        // One that may not have shown all its rows has to be read in another snapshot.
        Ok(snapshot.hidden(table)?.map_or(Ok(()), Err)?)
    }

    fn compare_named(&mut self, moved: &mut Move, now: &Key, row: &Row) -> Result<(), Ended> {
        let record = self.record_under(&moved.table, now);
        let fits = self.is_carried(moved, now, row)?
            || match moved.former(row) {
                Some(was) => {
                    let first = self.record_under(&moved.table, &was);
                    let nth = moved.vouched.entry(first).or_default();
                    *nth += 1;
                    let nth = *nth;
                    if nth > 1 {
                        moved.nth.insert(record, nth);
                    }
                    self.is_sealed_as(&moved.table, &was.copy(nth), row)?
                }
                // A column of the old key is gone.
                None => match moved.shortened(row) {
                    Some(was) => {
                        let fits = self.is_sealed_as(&moved.table, &was, row)?;
                        moved.led.insert(record, was);
                        fits
                    }
                    None => false,
                },
            };
        if !fits {
            moved.unfit.insert(record);
        }
        moved.now.insert(record);
        Ok(())
    }

    fn carry_row(
        &mut self,
        worker: &Worker,
        moved: &Move,
        now: &Key,
        row: Row,
    ) -> Result<(), Ended> {
        let Move { table, at, .. } = moved;
        let record = self.record_under(table, now);
        if moved.unfit.contains(&record) {
            return Ok(());
        }
        let is_carried = self.is_carried(moved, now, &row)?;
        let mut event = Vec::new();
        if let Some(was) = moved.led.get(&record) {
            let is_anothers = moved.now.contains(&self.record_under(table, was));
            if !is_anothers && self.is_standing(table, was)? {
                event.push(self.gone_from(worker, table, was, *at)?);
            }
        } else if let Some(was) = moved.former(&row) {
            let first = self.record_under(table, &was);
            let nth = moved.nth.get(&record).copied().unwrap_or(1);
            let was = was.copy(nth);
            let is_anothers = moved.now.contains(&self.record_under(table, &was))
                || (is_carried && moved.vouched.contains_key(&first));
            if !is_anothers && self.is_standing(table, &was)? {
                event.push(self.gone_from(worker, table, &was, *at)?);
            }
        }
        if !is_carried {
            // Another row's until now.
            if self.is_standing(table, now)? {
                event.push(self.gone_from(worker, table, now, *at)?);
            }
            self.learn(table, now, Some(&row));
            let patient = self.patients.of(table, &row).list();
            event.push(translate::baseline(
                (table, now, row),
                patient,
                self.keeps_image(worker, table),
                *at,
                &worker.parts.source.name,
                self.position,
            ));
        }
        if !event.is_empty() {
            self.append(worker, event)?;
        }
        Ok(())
    }

    /// Ends old records whose rows are no more, and were seen to be deleted under the new
    /// key: as the vault keeps them, they lead there.
    fn carry_deleted(&mut self, worker: &mut Worker, moved: &Move) -> Result<(), Ended> {
        let table = &moved.table;
        let left = self.trail.state().records(table, |record, leaf| {
            let is_left = leaf.row.is_some() && !moved.now.contains(record);
            is_left.then_some(*record)
        });
        let left: Vec<Bytes32> = left.map_err(TrailError::from)?;
        let columns = self.key_of(table).unwrap_or_default().to_vec();
        for record in left {
            let Some(sealed) = Sealed::of(&mut self.trail, table, &record)? else {
                continue;
            };
            let (content, seq) = (sealed.content, sealed.seq);
            let (Some(was), Some(row)) = (content.key, content.row) else {
                continue;
            };
            let cell = |column: &String| {
                let (_, value) = row.iter().find(|(name, _)| name == column)?;
                Some(Cell::from(value))
            };
            let now = columns.iter().map(cell).collect::<Option<Vec<Cell>>>();
            if let Some(now) = now.map(Key::new)
                && self.was_deleted_since(table, &now, seq)?
            {
                let gone = self.gone_from(worker, table, &key_of(was), moved.at)?;
                self.append(worker, vec![gone])?;
            }
            self.meanwhile(worker)?;
        }
        Ok(())
    }

    /// Whether the trail has seen somebody delete the row of this key, after line `seq`.
    fn was_deleted_since(&self, table: &str, key: &Key, seq: u64) -> Result<bool, TrailError> {
        let last = self.last_change(table, &self.record_under(table, key))?;
        // Not a line that we wrote ourselves.
        let is_seen = |line: Line| line.op == Op::Delete && line.tx.is_some() && line.seq > seq;
        Ok(last.is_some_and(is_seen))
    }

    /// The last line of a record that says what became of its row.
    fn last_change(&self, table: &str, record: &Bytes32) -> Result<Option<Line>, TrailError> {
        for line in self.trail.record_lines(table, record)? {
            let line = line?;
            if matches!(line.op, Op::Baseline | Op::Create | Op::Update | Op::Delete) {
                return Ok(Some(line));
            }
            // A read, or a finding.
        }
        Ok(None)
    }

    pub(super) fn record_under(&self, table: &str, key: &Key) -> Bytes32 {
        self.trail.record_key(Some(table), &key_cells(key))
    }

    /// Whether the trail has a row under this key.
    fn is_standing(&self, table: &str, key: &Key) -> Result<bool, TrailError> {
        let record = self.record_under(table, key);
        let known = self.trail.state().record_leaf(table, &record)?;
        Ok(known.is_some_and(|leaf| leaf.row.is_some()))
    }

    /// Whether a row has its line under the new key: it was written since, or by a
    /// guardian that was killed; or something happened to it that the rows do not show.
    fn is_carried(&mut self, moved: &Move, now: &Key, row: &Row) -> Result<bool, Ended> {
        if self.is_sealed_as(&moved.table, now, row)? {
            return Ok(true);
        }
        let last = self.last_change(&moved.table, &self.record_under(&moved.table, now))?;
        Ok(last.is_some_and(|line| moved.shown.lacks(&line)))
    }

    /// Whether the row is the one that was sealed under this key.
    pub(super) fn is_sealed_as(
        &mut self,
        table: &str,
        key: &Key,
        row: &Row,
    ) -> Result<bool, Ended> {
        let record = self.record_under(table, key);
        let sealed = expected(&mut self.trail, table, &record)?;
        let (nonce, commitment) = match sealed {
            // What cannot be compared is not carried along.
            Expected::Unknown | Expected::Erased => return Ok(false),
            Expected::Row { nonce, row } => (nonce, row),
        };
        if self.columns.of(table).open(&nonce, &commitment, row) {
            return Ok(true);
        }
        // By the columns that both have: others may have come and gone.
        let sealed = Sealed::of(&mut self.trail, table, &record)?;
        let columns = self.columns.of(table);
        Ok(sealed.is_some_and(|sealed| sealed.altered(row, columns).is_none()))
    }

    /// The line that ends a record under its old key.
    fn gone_from(
        &mut self,
        worker: &Worker,
        table: &str,
        key: &Key,
        at: Timestamp,
    ) -> Result<Draft, Ended> {
        let record = self.record_under(table, key);
        let patient = self.known_patient(table, &record)?;
        let (source, pos) = (&worker.parts.source.name, self.position.to_string());
        Ok(Draft {
            table: Some(table.to_owned()),
            key: Some(key_cells(key)),
            patient,
            ..Draft::new(Op::Delete, at, source, pos)
        })
    }
}
