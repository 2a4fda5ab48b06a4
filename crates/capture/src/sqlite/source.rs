//! A guarded SQLite database as any other source.

use std::ops::ControlFlow;

use super::{Drift as Weakness, Fingerprint, Snapshot, SqliteError, SqliteSource};
use crate::event::{Captured, Key, Position};
use crate::source::{self, Drift, Identity, OpenSnapshot, Past, Rows, Shape, Source, SourceError};

impl Source for SqliteSource {
    fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn identity(&mut self) -> Result<Identity, SourceError> {
        Ok(Identity {
            system: format!("sqlite:{}", self.system()?.unwrap_or_default()),
            timeline: 1,
        })
    }

    fn key(&self, table: &str, words: &[&str]) -> Result<Key, SourceError> {
        Ok(Self::key(self, table, words)?)
    }

    fn poll(&mut self, after: Position, max: usize) -> Result<Vec<Captured>, SourceError> {
        let version = self.data_version()?;
        if self.polled == Some(version) {
            return Ok(Vec::new());
        }
        let steps = Self::poll(self, outbox_id(after), max)?;
        // Until a poll comes back empty, there may be more.
        self.polled = steps.is_empty().then_some(version);
        Ok(steps)
    }

    fn newest(&mut self) -> Result<Position, SourceError> {
        Ok(Position::Outbox(self.position()?))
    }

    fn ack(&mut self, upto: Position) -> Result<(), SourceError> {
        match outbox_id(upto) {
            upto if upto <= self.acked => Ok(()),
            upto => Ok(Self::ack(self, upto)?),
        }
    }

    fn snapshot(&mut self) -> Result<OpenSnapshot, SourceError> {
        let snapshot = Self::snapshot(self)?;
        Ok(Box::new(move || Ok(Box::new(snapshot))))
    }

    fn fingerprint(&mut self) -> Result<Vec<u8>, SourceError> {
        let fingerprint = Self::fingerprint(self)?;
        Ok(serde_json::to_vec(&fingerprint).expect("strings and lists"))
    }

    fn drifts(&self, before: &[u8], now: &[u8]) -> Vec<Drift> {
        let read = |bytes| serde_json::from_slice::<Fingerprint>(bytes).ok();
        match (read(before), read(now)) {
            (Some(before), Some(now)) => before.compare(&now).iter().map(drift).collect(),
            _ => vec![Drift::unknown()],
        }
    }
}

impl source::Snapshot for Snapshot {
    fn position(&self) -> Position {
        Position::Outbox(Self::position(self))
    }

    fn at(&self) -> &str {
        Self::at(self)
    }

    fn scan(
        &mut self,
        table: &str,
        chunk: usize,
        each: &mut dyn FnMut(Rows) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        Ok(Self::scan(self, table, chunk, each)?)
    }

    fn goes_on(&self) -> bool {
        Self::goes_on(self)
    }

    fn past(&mut self) -> Option<&mut dyn Past> {
        Some(self)
    }
}

impl Past for Snapshot {
    fn scan_at(
        &mut self,
        after: Position,
        table: &str,
        chunk: usize,
        each: &mut dyn FnMut(Rows) -> ControlFlow<()>,
    ) -> Result<bool, SourceError> {
        Ok(Self::scan_at(self, outbox_id(after), table, chunk, each)?)
    }
}

/// The outbox id of a position; positions of other engines are before them all.
fn outbox_id(position: Position) -> u64 {
    match position {
        Position::Outbox(id) => id,
        Position::Log { .. } => 0,
    }
}

/// An untouched-looking schema with a new version: another table's DDL, or a
/// trigger dropped and put back. Only the rows can tell.
fn drift(weakness: &Weakness) -> Drift {
    let touched = matches!(weakness, Weakness::Touched { .. });
    Drift {
        code: if touched { "" } else { weakness.code() },
        table: None,
        text: weakness.to_string(),
    }
}

/// The guarded tables' shapes, for a source that was just opened.
pub(super) fn shapes(source: &SqliteSource) -> Result<Vec<Shape>, SqliteError> {
    source
        .tables()
        .map(|table| {
            Ok(Shape {
                name: table.to_owned(),
                columns: source.columns(table)?.to_vec(),
                key: source.key_columns(table)?,
                keyless: false,
            })
        })
        .collect()
}
