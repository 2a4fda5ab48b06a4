//! The rows that were there when guarding began.

use super::{BASELINE_CHUNK, Command, Ended, SECOND_US, Session, StartError, Worker};
use crate::status::{BaselineStatus, SourceState};
use crate::translate;
use pitser_capture::source::Rows;
use pitser_capture::{Key, Row, Snapshot, SourceError};
use pitser_evidence::Code;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Op, Timestamp};
use pitser_ksi::hash::Imprint;
use pitser_monitor::{Finding, key_cells};
use pitser_trail::{Draft, TrailError};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// How far it is, is told so often.
const PROGRESS_US: u64 = 10 * SECOND_US;

/// How often each row of a table without a key was met so far, by the hash of
/// the row: there may be more of them than fit into memory.
#[derive(Default)]
pub(super) struct Copies(HashMap<Imprint, u64>);

impl Copies {
    pub(super) fn number(&mut self, rows: &mut Rows) {
        for (key, _) in rows {
            let nth = self
                .0
                .entry(Digest::of(&[&key.expose_bytes()]).0)
                .or_default();
            *nth += 1;
            *key = key.copy(*nth);
        }
    }
}

impl Session {
    /// Writes the rows that were there when guarding began, unless that is done:
    /// of all tables, or of those that were guarded later or have another key now.
    /// After a crash it goes on where it was.
    pub(super) fn baseline(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        if self.unbaselined.is_empty() && !self.is_rekeying() {
            return Ok(());
        }
        let mut snapshot = self.source.snapshot()?()?;
        if snapshot.past().is_none() {
            // The rows show what happened since: it has to stand in the trail
            // first, and whatever it touched needs no baseline any more.
            while self.position < snapshot.position() {
                self.capture(worker)?;
                self.attend(worker)?;
                self.regular(worker)?;
            }
        }
        let rekeyed = match self.is_rekeying() {
            true => self.carry(worker, &mut *snapshot),
            false => Ok(()),
        };
        let done = rekeyed.and_then(|()| match self.unbaselined.is_empty() {
            true => Ok(()),
            false => self.baseline_of(worker, &mut *snapshot, &mut |_| {}),
        });
        match (done, self.reading.take()) {
            // All others have their turn, in another snapshot: this one may have ended.
            (Err(Ended::Failed(StartError::Database(error))), Some(table))
                if error.is_refused() || error.is_damage() =>
            {
                self.set_aside(worker, table, &error)?;
            }
            (done, _) => done?,
        }
        self.resume_postponed(worker);
        Ok(())
    }

    /// Goes on without a table that cannot be read, until somebody does something.
    fn set_aside(
        &mut self,
        worker: &Worker,
        table: String,
        error: &SourceError,
    ) -> Result<(), Ended> {
        let text = format!(
            "the rows of table {table} cannot be read, and are not compared with the trail; changes of them are \
             captured: {error}. It is tried again after each scan"
        );
        let finding = Finding {
            table: Some(table.clone()),
            ..Finding::general(Code::CaptureWeakened, text)
        };
        self.finding(worker, finding)?;
        self.aside.insert(table);
        self.baselined = None;
        self.unbaselined = self.lacking();
        self.trail.commit()?;
        self.show(worker);
        Ok(())
    }

    /// Tables that could not be read may be readable now.
    pub(super) fn try_again(&mut self) {
        if !self.aside.is_empty() {
            self.aside.clear();
            self.unbaselined = self.lacking();
        }
    }

    /// Does what had to wait.
    pub(super) fn resume_postponed(&mut self, worker: &Worker) {
        for command in self.postponed.drain(..) {
            // To ourselves: the inbox outlives the session.
            let _ = worker.commands.send(command);
        }
    }

    /// Writes the rows of a snapshot that the trail does not know yet.
    pub(super) fn baseline_of(
        &mut self,
        worker: &mut Worker,
        snapshot: &mut dyn Snapshot,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Ended> {
        worker
            .publish
            .send_modify(|s| s.state = SourceState::Baseline);
        let at: Timestamp = snapshot.at().parse().unwrap_or_else(|_| self.now(worker));
        let from = self.position;
        // Rows are numbered here in another way.
        self.copies.clear();
        let mut written = 0;
        let tables = self.unbaselined.clone();
        let mut about = 0;
        for table in &tables {
            about += snapshot.about(table)?.unwrap_or(0);
        }
        self.baselined = Some(BaselineStatus {
            rows: 0,
            about: Some(about).filter(|about| *about > 0),
        });
        // They are read again in another snapshot, when all others are done.
        let mut hidden = Vec::new();
        for table in &tables {
            self.reading = Some(table.clone());
            let mut failed = None;
            let mut copies = self.is_keyless(table).then(Copies::default);
            let mut each = |mut rows: Rows| {
                if let Some(copies) = &mut copies {
                    copies.number(&mut rows);
                }
                match self.baseline_rows(worker, table, rows, at) {
                    Ok(count) => {
                        written += count;
                        progress(written);
                        ControlFlow::Continue(())
                    }
                    Err(ended) => {
                        failed = Some(ended);
                        ControlFlow::Break(())
                    }
                }
            };
            let complete = match snapshot.past() {
                Some(past) => past.scan_at(from, table, BASELINE_CHUNK, &mut each)?,
                None => {
                    snapshot.scan(table, BASELINE_CHUNK, &mut each)?;
                    if let Some(why) = snapshot.hidden(table)? {
                        tracing::warn!(source = %worker.parts.source.name, "{why}");
                        hidden.push(table.clone());
                    }
                    true
                }
            };
            if let Some(ended) = failed {
                return Err(ended);
            }
            if !complete {
                let text = "changes since the genesis are missing from the outbox: the baseline is incomplete";
                self.finding(worker, Finding::general(Code::CaptureGap, text))?;
            }
        }
        self.reading = None;
        let is_whole = self.is_new && self.aside.is_empty() && hidden.is_empty();
        self.unbaselined.retain(|table| !hidden.contains(table));
        let lines = match is_whole {
            true => vec![None],
            false => self.unbaselined.iter().cloned().map(Some).collect(),
        };
        for table in lines {
            let at = self.now(worker);
            let (source, pos) = (&worker.parts.source.name, self.position.to_string());
            let live = Draft {
                table,
                ..Draft::new(Op::Live, at, source, &pos)
            };
            self.append(worker, vec![live])?;
        }
        self.is_new &= !is_whole;
        self.baselined = None;
        self.live.extend(self.unbaselined.drain(..));
        self.unbaselined = hidden;
        self.gone.clear();
        self.close(worker)
    }

    /// All tables, those first through which others find patients and people.
    pub(super) fn baseline_order(&self) -> Vec<String> {
        let mut tables = self.patients.order();
        tables.sort_by_key(|table| !self.actors.is_lookup(table));
        tables
    }

    fn baseline_rows(
        &mut self,
        worker: &mut Worker,
        table: &str,
        rows: Rows,
        at: Timestamp,
    ) -> Result<u64, Ended> {
        if let Some(baselined) = &mut self.baselined {
            baselined.rows += rows.len() as u64;
        }
        let mut written = 0;
        for (key, row) in rows {
            written += u64::from(self.baseline_row(worker, table, &key, row, at)?);
        }
        self.flush(worker)?;
        self.unshown = true;
        if (worker.parts.clock)() >= self.next.commit {
            self.commit(worker)?;
        }
        self.meanwhile(worker)?;
        self.tell_progress(worker);
        Ok(written)
    }

    /// Says now and then how far it is.
    fn tell_progress(&mut self, worker: &Worker) {
        let now = (worker.parts.clock)();
        if let Some(BaselineStatus { rows, about }) = self.baselined
            && now >= self.next.progress
        {
            self.next.progress = now + PROGRESS_US;
            let source = &worker.parts.source.name;
            tracing::info!(
                source,
                rows,
                about,
                "writing down the rows that were there before"
            );
        }
    }

    /// Does what cannot wait while all rows of a table are read, and tells the
    /// source each second that we are still here.
    pub(super) fn meanwhile(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        self.end_outage(worker)?;
        self.attend(worker)?;
        let now = (worker.parts.clock)();
        worker.pulse.beat(now);
        self.look_at_clock(now);
        if now >= self.next.fingerprint {
            self.next.fingerprint = now + SECOND_US;
            self.ack_due = Some(self.kept);
            self.acknowledge()?;
        }
        self.show(worker);
        Ok(())
    }

    /// Does what cannot wait for the last row of the baseline. Nothing is taken
    /// from the source meanwhile.
    fn attend(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        while let Ok(command) = worker.inbox.try_recv() {
            match command {
                Command::Stop { reply, .. } => {
                    return Err(Ended::Stopped(Some(reply)));
                }
                Command::Seal(outcome) => self.seal(worker, outcome)?,
                Command::Cosigned { witness, answer } => self.heard(worker, witness, answer)?,
                // It becomes a finding when the baseline is there.
                Command::Fleet(told) => worker.told(told),
                Command::Accused(code, text) => worker.accuse(code, text),
                Command::Scan { reply } => self.scan_replies.push(reply),
                Command::Submit { .. }
                | Command::Settle { .. }
                | Command::Erasure { .. }
                | Command::Accept { .. }
                | Command::AcceptOf { .. } => self.postponed.push(command),
                // A pass does not wait for the last row: it is given up, and begun anew.
                Command::Expect { .. } | Command::Suspects { .. } => {}
                Command::Looked { pass, .. } => self.scan_anew(pass),
            }
        }
        Ok(())
    }

    fn baseline_row(
        &mut self,
        worker: &Worker,
        table: &str,
        key: &Key,
        row: Row,
        at: Timestamp,
    ) -> Result<bool, Ended> {
        let record = self.trail.record_key(Some(table), &key_cells(key));
        if self.queue.is_about(&record) {
            self.flush(worker)?;
        }
        let known = self.trail.state().record_leaf(table, &record);
        let known = known.map_err(TrailError::from)?;
        let known = known.is_some_and(|leaf| leaf.row.is_some());
        if known || self.gone.contains(&(table.to_owned(), record)) {
            return Ok(false);
        }
        self.learn(table, key, Some(&row));
        let patient = self.patients.of(table, &row).list();
        let draft = translate::baseline(
            (table, key, row),
            patient,
            self.keeps_image(worker, table),
            at,
            &worker.parts.source.name,
            self.position,
        );
        self.queue(worker, vec![draft], table, record, None)?;
        Ok(true)
    }
}
