//! Tables that were given another key: their records go on under it.
//!
//! A record is named by its key, so that another key makes another record of each
//! row. A row that opens the commitment under its old key gets a `delete` line
//! there and a `baseline` line under the new one, in one event. Whatever does not
//! is left to the scan: missing under the old key, never sealed under the new one.

use super::{BASELINE_CHUNK, BLOCK_LINES, Ended, Session, Worker};
use crate::translate;
use pitser_capture::source::Rows;
use pitser_capture::{Cell, Key, Row, Shape, Snapshot};
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::commit_row;
use pitser_evidence::line::{Op, Timestamp};
use pitser_monitor::{Expected, Sealed, expected, key_cells};
use pitser_trail::{Draft, PatientId, TrailError};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The file beside the trail: tables whose records are yet to go on under another
/// key, and the columns of the key that they had.
const FILE: &str = "rekey.json";

/// Columns of former keys, by table.
pub(super) type Rekeyed = BTreeMap<String, Vec<String>>;

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
        for (table, key) in self.rekeyed.clone() {
            let mut failed = None;
            let mut changed = Vec::new();
            let mut each = |rows: Rows| {
                let carried = self.carry_rows(worker, (&table, &key), rows, &at, &mut changed);
                match carried {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(ended) => {
                        failed = Some(ended);
                        ControlFlow::Break(())
                    }
                }
            };
            snapshot.scan(&table, BASELINE_CHUNK, &mut each)?;
            if let Some(ended) = failed {
                return Err(ended);
            }
            // Rows that were written since have their lines; last, for by now what
            // was one record's key may be part of several rows.
            for old in changed {
                if self.is_standing(&table, &old) {
                    let gone = self.gone_from(worker, &table, &old, &at)?;
                    self.append(vec![gone])?;
                }
            }
            self.trail.commit()?;
        }
        self.rekeyed.clear();
        // It may never have been written.
        let _ = std::fs::remove_file(self.rekey_file());
        self.show(worker);
        Ok(())
    }

    fn carry_rows(
        &mut self,
        worker: &mut Worker,
        (table, old_key): (&str, &[String]),
        rows: Rows,
        at: &Timestamp,
        changed: &mut Vec<Key>,
    ) -> Result<(), Ended> {
        for (key, row) in rows {
            let cells = old_key.iter().map(|column| row.get(column).cloned());
            let Some(old) = cells.collect::<Option<Vec<Cell>>>().map(Key::new) else {
                // A column of the old key is gone: nothing leads to the old record.
                continue;
            };
            if self.is_standing(table, &key) {
                changed.push(old);
                continue;
            }
            if self.is_sealed_as(table, &old, &row)? {
                let gone = self.gone_from(worker, table, &old, at)?;
                let begun = translate::baseline(
                    (table, &key, &row),
                    self.patients.of(table, &row),
                    self.keeps_image(worker, table),
                    at,
                    &worker.parts.source.name,
                    self.position,
                );
                self.append(vec![gone, begun])?;
                self.learn(table, &key, Some(&row));
            }
        }
        self.trail.commit()?;
        if self.trail.open_lines() >= BLOCK_LINES {
            self.close(worker)?;
        }
        self.attend(worker)
    }

    fn record_under(&self, table: &str, key: &Key) -> Bytes32 {
        self.trail.record_key(Some(table), &key_cells(key))
    }

    /// Whether the trail has a row under this key.
    fn is_standing(&self, table: &str, key: &Key) -> bool {
        let record = self.record_under(table, key);
        let known = self.trail.state().record(table, &record);
        known.is_some_and(|known| known.leaf.row.is_some())
    }

    /// Whether the row is the one that was sealed under this key, or its key was
    /// destroyed and nothing can be compared any more.
    fn is_sealed_as(&mut self, table: &str, key: &Key, row: &Row) -> Result<bool, Ended> {
        let record = self.record_under(table, key);
        let sealed = expected(&mut self.trail, table, &record).map_err(TrailError::from)?;
        let (nonce, commitment) = match sealed {
            Expected::Unknown => return Ok(false),
            Expected::Erased => return Ok(true),
            Expected::Row { nonce, row } => (nonce, row),
        };
        let cells = row.iter().map(|(name, cell)| (name, cell.expose()));
        if commit_row(&nonce, cells).1 == commitment {
            return Ok(true);
        }
        // By the columns that both have: others may have come and gone.
        let sealed = Sealed::of(&mut self.trail, table, &record).map_err(TrailError::from)?;
        Ok(sealed.is_some_and(|sealed| sealed.altered(row).is_none()))
    }

    /// The line that ends a record under its old key.
    fn gone_from(
        &mut self,
        worker: &Worker,
        table: &str,
        key: &Key,
        at: &Timestamp,
    ) -> Result<Draft, Ended> {
        let record = self.record_under(table, key);
        let patient = self.known_patient(table, &record)?;
        let (source, pos) = (&worker.parts.source.name, self.position.to_string());
        Ok(Draft {
            table: Some(table.to_owned()),
            key: Some(key_cells(key)),
            patient: patient.map(PatientId::Id),
            ..Draft::new(Op::Delete, at.clone(), source, &pos)
        })
    }
}
