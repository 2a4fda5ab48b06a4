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
        let reading = match self.reading {
            Some(reading) => reading,
            None => Reading {
                at: self.beginning(outbox_id(after))?,
                is_within: false,
            },
        };
        let mut steps = Self::poll(self, reading.at, max)?;
        // Until a poll comes back empty, there may be more.
        self.polled = steps.is_empty().then_some(version);
        if let Some(Captured::Rewound { found, .. }) = steps.last() {
            // What stands behind it is other work than what was acknowledged.
            self.acked = self.acked.min(outbox_id(*found));
        }
        let (reading, has_ended) = reading.through(&steps);
        if has_ended {
            let pos = Position::Outbox(reading.at);
            steps.push(Captured::Mark { pos });
        }
        self.reading = Some(reading);
        Ok(steps)
    }

    fn newest(&mut self) -> Result<Position, SourceError> {
        Ok(Position::Outbox(self.position()?))
    }

    fn ack(&mut self, upto: Position) -> Result<(), SourceError> {
        match outbox_id(upto) {
            // The transaction that ends there is to be told anew.
            _ if self.reading.is_none() => Ok(()),
            upto if upto <= self.acked => Ok(()),
            upto => Ok(Self::ack(self, upto)?),
        }
    }

    fn forgotten(&self) -> Option<Position> {
        Some(Position::Outbox(self.acked))
    }

    fn has_forgotten(&mut self, upto: Position) {
        self.acked = self.acked.max(outbox_id(upto));
    }

    fn replaced(&self) -> Result<Option<SourceError>, SourceError> {
        let error = || SqliteError::Replaced {
            path: self.path.clone(),
        };
        Ok(self.is_replaced()?.then(|| error().into()))
    }

    fn unguarded(&mut self) -> Result<Vec<String>, SourceError> {
        Ok(Self::unguarded(self)?)
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

/// How far the outbox was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    at: u64,
    /// The transaction may go on.
    is_within: bool,
}

impl Reading {
    /// Goes on through these steps; `true` if they end a transaction and do not say so.
    fn through(self, steps: &[Captured]) -> (Self, bool) {
        let at = match steps.last() {
            Some(Captured::Rewound { found, .. }) => Some(*found),
            step => step.and_then(Captured::reached),
        };
        let (is_within, has_ended) = match steps.last() {
            // Without a bracket it is all of its transaction.
            Some(Captured::Change(change)) => {
                let is_alone = change.pos == Position::Outbox(change.tx);
                (!is_alone, is_alone)
            }
            Some(Captured::Unreadable { .. }) => (true, false),
            Some(_) => (false, false),
            // All rows of a transaction come to be there at once.
            None => (false, self.is_within),
        };
        let at = at.map_or(self.at, outbox_id);
        (Self { at, is_within }, has_ended)
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
                numbers: Vec::new(),
                key: source.key_columns(table)?,
                keyless: false,
            })
        })
        .collect()
}
