//! Tables that were given another key: their records go on under it.
//!
//! A record is named by its key, so that another key makes another record of each
//! row. A row that opens the commitment under its old key gets a `delete` line
//! there, unless that is another row's key now, and a `baseline` line under the new
//! one, in one event. Whatever does not is left to the scan: missing under the old
//! key, never sealed under the new one. So are, after a crash in the middle, rows
//! whose old key had become another row's by then.

use super::{BASELINE_CHUNK, BLOCK_LINES, Ended, Session, Worker};
use crate::translate;
use pitser_capture::source::Rows;
use pitser_capture::{Cell, Key, Row, Shape, Snapshot};
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::commit_row;
use pitser_evidence::line::{Op, Timestamp};
use pitser_monitor::{Expected, Sealed, expected, key_cells};
use pitser_trail::{Draft, PatientId, TrailError};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The file beside the trail: tables whose records are yet to go on under another
/// key, and the columns of the key that they had.
const FILE: &str = "rekey.json";

/// Columns of former keys, by table.
pub(super) type Rekeyed = BTreeMap<String, Vec<String>>;

/// The records of a table by its new key.
#[derive(Default)]
struct Named {
    /// All of them.
    now: HashSet<Bytes32>,
    /// Those whose row is not as it was sealed.
    unfit: HashSet<Bytes32>,
}

/// The key that a row had, if it still has the columns.
fn former(columns: &[String], row: &Row) -> Option<Key> {
    let cells = columns.iter().map(|column| row.get(column).cloned());
    cells.collect::<Option<Vec<Cell>>>().map(Key::new)
}

impl Session {
    /// Remembers which tables have another key than in `before`.
    pub(super) fn note_keys(&mut self, before: &[Shape]) -> Result<(), Ended> {
        for was in before.iter().filter(|was| !was.keyless) {
            let shapes = self.source.shapes();
            let now = shapes.iter().find(|shape| shape.name == was.name);
            if now.is_some_and(|now| !now.keyless && now.key != was.key) {
                // A key that was there for a moment named nothing yet.
                self.rekeyed
                    .entry(was.name.clone())
                    .or_insert_with(|| was.key.clone());
            }
        }
        match self.rekeyed.is_empty() {
            true => Ok(()),
            false => {
                let text = serde_json::to_vec(&self.rekeyed).expect("strings");
                let path = self.rekey_file();
                Ok(pitser_trail::disk::replace(&path, &text).map_err(TrailError::from)?)
            }
        }
    }

    /// What a guardian before this one did not finish.
    pub(super) fn remembered_keys(&self) -> Rekeyed {
        let text = std::fs::read(self.rekey_file()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn rekey_file(&self) -> PathBuf {
        self.trail.layout().dir().join(FILE)
    }

    /// Has the records of these tables go on under their new keys.
    pub(super) fn carry(
        &mut self,
        worker: &mut Worker,
        snapshot: &mut dyn Snapshot,
    ) -> Result<(), Ended> {
        let at: Timestamp = snapshot.at().parse().unwrap_or_else(|_| self.now(worker));
        let shapes = self.source.shapes();
        let mut rekeyed = self.rekeyed.clone();
        // One that was dropped meanwhile has no rows to carry.
        rekeyed.retain(|table, _| shapes.iter().any(|shape| shape.name == *table));
        for (table, key) in rekeyed {
            // All are compared before one is written: what was one row's key may be
            // another's now.
            let mut named = Named::default();
            self.each(snapshot, &table, |session, rows| {
                for (now, row) in rows {
                    session.compare_named(&table, (former(&key, &row), now), &row, &mut named)?;
                }
                session.meanwhile(worker)
            })?;
            self.each(snapshot, &table, |session, rows| {
                for (now, row) in rows {
                    let keys = (former(&key, &row), now);
                    session.carry_row(worker, &table, keys, row, at, &named)?;
                }
                session.trail.commit()?;
                if session.trail.open_lines() >= BLOCK_LINES {
                    session.close(worker)?;
                }
                session.meanwhile(worker)
            })?;
        }
        self.rekeyed.clear();
        // It may never have been written.
        let _ = std::fs::remove_file(self.rekey_file());
        self.show(worker);
        Ok(())
    }

    /// Reads a table's rows.
    fn each(
        &mut self,
        snapshot: &mut dyn Snapshot,
        table: &str,
        mut take: impl FnMut(&mut Self, Rows) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        let mut failed = None;
        snapshot.scan(table, BASELINE_CHUNK, &mut |rows| match take(self, rows) {
            Ok(()) => ControlFlow::Continue(()),
            Err(ended) => {
                failed = Some(ended);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn compare_named(
        &mut self,
        table: &str,
        (was, now): (Option<Key>, Key),
        row: &Row,
        named: &mut Named,
    ) -> Result<(), Ended> {
        let record = self.record_under(table, &now);
        // Under the new key, if it was written since, or by a guardian that was killed.
        let fits = self.is_sealed_as(table, &now, row)?
            || match &was {
                Some(was) => self.is_sealed_as(table, was, row)?,
                // A column of the old key is gone: nothing leads to the old record.
                None => false,
            };
        if !fits {
            named.unfit.insert(record);
        }
        named.now.insert(record);
        Ok(())
    }

    fn carry_row(
        &mut self,
        worker: &Worker,
        table: &str,
        (was, now): (Option<Key>, Key),
        row: Row,
        at: Timestamp,
        named: &Named,
    ) -> Result<(), Ended> {
        let record = self.record_under(table, &now);
        if named.unfit.contains(&record) {
            return Ok(());
        }
        let mut event = Vec::new();
        if let Some(was) = &was
            && !named.now.contains(&self.record_under(table, was))
            && self.is_standing(table, was)?
        {
            event.push(self.gone_from(worker, table, was, at)?);
        }
        if !self.is_sealed_as(table, &now, &row)? {
            // Another row's until now.
            if self.is_standing(table, &now)? {
                event.push(self.gone_from(worker, table, &now, at)?);
            }
            self.learn(table, &now, Some(&row));
            let patient = self.patients.of(table, &row);
            event.push(translate::baseline(
                (table, &now, row),
                patient,
                self.keeps_image(worker, table),
                at,
                &worker.parts.source.name,
                self.position,
            ));
        }
        if !event.is_empty() {
            self.append(event)?;
        }
        Ok(())
    }

    fn record_under(&self, table: &str, key: &Key) -> Bytes32 {
        self.trail.record_key(Some(table), &key_cells(key))
    }

    /// Whether the trail has a row under this key.
    fn is_standing(&self, table: &str, key: &Key) -> Result<bool, TrailError> {
        let record = self.record_under(table, key);
        let known = self.trail.state().record_leaf(table, &record)?;
        Ok(known.is_some_and(|leaf| leaf.row.is_some()))
    }

    /// Whether the row is the one that was sealed under this key.
    fn is_sealed_as(&mut self, table: &str, key: &Key, row: &Row) -> Result<bool, Ended> {
        let record = self.record_under(table, key);
        let sealed = expected(&mut self.trail, table, &record)?;
        let (nonce, commitment) = match sealed {
            // What cannot be compared is not carried along.
            Expected::Unknown | Expected::Erased => return Ok(false),
            Expected::Row { nonce, row } => (nonce, row),
        };
        let cells = row.iter().map(|(name, cell)| (name, cell.expose()));
        if commit_row(&nonce, cells).1 == commitment {
            return Ok(true);
        }
        // By the columns that both have: others may have come and gone.
        let sealed = Sealed::of(&mut self.trail, table, &record)?;
        Ok(sealed.is_some_and(|sealed| sealed.altered(row).is_none()))
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
            patient: patient.map(PatientId::Id),
            ..Draft::new(Op::Delete, at, source, pos)
        })
    }
}
