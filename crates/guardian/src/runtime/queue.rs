//! Changes on their way into the trail: written together, since their rows are then
//! committed to together.
//!
//! What is decided about a change depends on what the trail says of its record, so
//! what waits is written before a record that it is about is looked at again, and
//! before anything else is written.

use super::{Ended, Session};
use pitser_evidence::codec::Bytes32;
use pitser_evidence::line::Op;
use pitser_trail::Draft;
use std::collections::HashSet;

/// Lines that wait at most: enough to fill the processor's hashing lanes many times, and
/// few enough for what is known of them to stay in its caches.
const LINES: usize = 128;

/// Events that are not in the trail yet, each about one record.
#[derive(Default)]
pub(super) struct Queue {
    events: Vec<Vec<Draft>>,
    records: HashSet<Bytes32>,
    lines: usize,
}

impl Queue {
    /// Lines that wait.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// Whether something about a record waits.
    pub(super) fn is_about(&self, record: &Bytes32) -> bool {
        self.records.contains(record)
    }
}

impl Session {
    /// Has an event written, soon: its drafts are about `record` of `table`.
    pub(super) fn queue(
        &mut self,
        mut drafts: Vec<Draft>,
        table: &str,
        record: Bytes32,
    ) -> Result<(), Ended> {
        for draft in &mut drafts {
            draft.record = Some(record);
        }
        let last = drafts.last().map(|draft| draft.op);
        self.note(drafts.len(), last, table, record);
        self.queue.lines += drafts.len();
        self.queue.events.push(drafts);
        self.queue.records.insert(record);
        match self.queue.lines >= LINES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<(), Ended> {
        if self.queue.lines > 0 {
            let Queue { events, .. } = std::mem::take(&mut self.queue);
            self.trail.append_all(events)?;
        }
        Ok(())
    }

    /// Writes an event now, and gives the number of its first line.
    pub(super) fn append(&mut self, drafts: Vec<Draft>) -> Result<u64, Ended> {
        self.flush()?;
        for draft in &drafts {
            match (&draft.table, &draft.key) {
                (Some(table), Some(key)) if draft.op.needs_key() => {
                    let record = self.trail.record_key(Some(table), key);
                    self.note(1, Some(draft.op), table, record);
                }
                _ => self.events += 1,
            }
        }
        Ok(self.trail.append(drafts)?)
    }

    /// Notes so many lines about a record, of which the last does `op`.
    fn note(&mut self, lines: usize, op: Option<Op>, table: &str, record: Bytes32) {
        self.events += lines as u64;
        if op == Some(Op::Delete) && !self.live.contains(table) {
            self.gone.insert((table.to_owned(), record));
        }
        if let Some(pass) = &mut self.scanning {
            pass.touched.insert(table, &record);
        }
    }
}
