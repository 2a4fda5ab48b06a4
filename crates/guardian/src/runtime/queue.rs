//! Lines on their way into the trail: how they get there, and room for them.
//!
//! Changes are written together, since their rows are then committed to together. What is
//! decided about a change depends on what the trail says of its record, so what waits is
//! written before a record that it is about is looked at again, and before anything else
//! is written.
//!
//! A block never ends within an event. So room is made here, for all that is written
//! together and before any of it has a number; whoever has lines written need not know
//! how full the block is, and learns a line's number once it is written.

use super::{Ended, Session, Worker};
use pitser_capture::Position;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::line::Op;
use pitser_trail::{Draft, MAX_BLOCK_LINES};
use std::collections::HashSet;

/// Lines that wait at most: enough to fill the processor's hashing lanes many times, and
/// few enough for what is known of them to stay in its caches.
const LINES: usize = 128;
/// Lines of a block with which it is full. There is room for some more: whoever erases
/// patients while nobody guards closes no block.
pub(crate) const BLOCK_LINES: usize = MAX_BLOCK_LINES - 1000;
/// Bytes of lines that are not durable yet, at most, while more is coming: making a
/// few durable takes as long as making many.
const WAITING_BYTES: usize = 4 << 20;

/// Events that are not in the trail yet, each about one record.
#[derive(Default)]
pub(super) struct Queue {
    events: Vec<Vec<Draft>>,
    records: HashSet<Bytes32>,
    lines: usize,
    /// When they were committed, where that counts.
    times: Vec<u64>,
    /// Everything up to here was taken when the first of them came.
    after: Option<Position>,
}

impl Queue {
    /// Whether something about a record waits.
    pub(super) fn is_about(&self, record: &Bytes32) -> bool {
        self.records.contains(record)
    }
}

/// Which of the lines that wait one is, until it has its number.
#[derive(Clone, Copy)]
pub(super) struct Waiting(usize);

impl Waiting {
    /// Its number, when that of the first of them is known.
    pub(super) fn seq(self, first: u64) -> u64 {
        first + self.0 as u64
    }
}

impl Session {
    /// Everything up to here is in the trail, though perhaps not durable.
    pub(super) fn written(&self) -> Position {
        self.queue.after.unwrap_or(self.position)
    }

    /// Has an event written, soon: its drafts are about `record` of `table`. Gives its
    /// last line.
    pub(super) fn queue(
        &mut self,
        worker: &Worker,
        mut drafts: Vec<Draft>,
        table: &str,
        record: Bytes32,
        committed_at: Option<u64>,
    ) -> Result<Waiting, Ended> {
        if self.queue.lines + drafts.len() > LINES {
            self.flush(worker)?;
        }
        for draft in &mut drafts {
            draft.record = Some(record);
        }
        let last = drafts.last().map(|draft| draft.op);
        self.note(drafts.len(), last, table, record);
        self.queue.after.get_or_insert(self.position);
        self.queue.lines += drafts.len();
        self.queue.events.push(drafts);
        self.queue.records.insert(record);
        self.queue.times.extend(committed_at);
        Ok(Waiting(self.queue.lines.saturating_sub(1)))
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self, worker: &Worker) -> Result<(), Ended> {
        if self.queue.lines > 0 {
            self.make_room(worker, self.queue.lines)?;
            let Queue { events, times, .. } = std::mem::take(&mut self.queue);
            let first = self.trail.append_all(events)?;
            self.open_times.extend(times);
            self.open.are_written(first);
            self.hurry()?;
        }
        Ok(())
    }

    /// Writes an event now, and gives the number of its first line.
    pub(super) fn append(&mut self, worker: &Worker, drafts: Vec<Draft>) -> Result<u64, Ended> {
        self.flush(worker)?;
        self.make_room(worker, drafts.len())?;
        for draft in &drafts {
            match (&draft.table, &draft.key) {
                (Some(table), Some(key)) if draft.op.needs_key() => {
                    let record = self.trail.record_key(Some(table), key);
                    self.note(1, Some(draft.op), table, record);
                }
                _ => self.events += 1,
            }
        }
        let first = self.trail.append(drafts)?;
        self.hurry()?;
        Ok(first)
    }

    /// Closes the open block if so many lines more are too many for it.
    pub(super) fn make_room(&mut self, worker: &Worker, lines: usize) -> Result<(), Ended> {
        let open = self.trail.open_lines();
        match open > 0 && open + lines > BLOCK_LINES {
            true => self.close(worker),
            false => Ok(()),
        }
    }

    /// Has lines made durable before too many wait for that.
    fn hurry(&mut self) -> Result<(), Ended> {
        if self.trail.waiting_bytes() >= WAITING_BYTES {
            self.trail.commit_behind()?;
        }
        Ok(())
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
