//! A table in a snapshot, which no database has to have.

use pitser_capture::event::Row;
use pitser_capture::source::Rows;
use pitser_capture::{Cell, Key, Position, Snapshot, SourceError};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A table of so many rows with the values that these numbers have.
pub(crate) struct Table<V> {
    pub(crate) rows: u64,
    pub(crate) value: V,
}

impl<V: Fn(u64) -> Vec<u8>> Snapshot for Table<V> {
    fn position(&self) -> Position {
        Position::Outbox(7)
    }

    fn at(&self) -> &str {
        "2026-03-14T09:26:53.000000Z"
    }

    fn scan(
        &mut self,
        _: &str,
        chunk: usize,
        each: &mut dyn FnMut(Rows) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let columns: Arc<[String]> = Arc::new(["note".to_owned()]);
        let row = |number: u64| {
            let row = Row {
                columns: Arc::clone(&columns),
                cells: vec![Cell::new((self.value)(number))],
            };
            (Key::new(vec![Cell::new(number.to_be_bytes())]), row)
        };
        for first in (0..self.rows).step_by(chunk) {
            let rows = (first..self.rows).take(chunk).map(row).collect();
            if each(rows).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        true
    }
}
