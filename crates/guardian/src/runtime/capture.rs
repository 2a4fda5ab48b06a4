//! What happened, in the order in which the source tells it; and the rows that
//! were there before.

use super::{BASELINE_CHUNK, BATCH, BLOCK_LINES, Ended, Receipt, Session, SubmitError, Worker};
use crate::status::SourceState;
use crate::translate::{self, Message, Resolved, Whose, text_key};
use pitser_capture::event::{Captured, Change};
use pitser_capture::fhir;
use pitser_capture::sqlite::SqliteError;
use pitser_evidence::Code;
use pitser_evidence::commit::{LineNonce, commit_row};
use pitser_evidence::line::{Gap, Op, Patient, Timestamp};
use pitser_monitor::{Finding, key_cells};
use pitser_trail::{Body, Draft, PatientId, TrailError};

impl Session {
    /// Takes the next batch of what was committed, and makes it durable.
    pub(super) fn capture(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let version = match self.source.data_version() {
            Err(SqliteError::Locked) => return Ok(()),
            other => other?,
        };
        if version == self.data_version && !self.more {
            return Ok(());
        }
        let steps = match self.source.poll(self.position, BATCH) {
            Err(SqliteError::Locked) => return Ok(()),
            other => other?,
        };
        self.data_version = version;
        self.more = !steps.is_empty();
        for step in steps {
            self.step(worker, step)?;
        }
        self.trail.commit()?;
        self.show(worker);
        Ok(())
    }

    pub(super) fn step(&mut self, worker: &Worker, step: Captured) -> Result<(), Ended> {
        let reached = step.reached();
        let name = &worker.parts.source.name;
        match step {
            Captured::Change(change) => self.change(worker, &change)?,
            Captured::Mark { .. } => {}
            Captured::Gap { expected, found } => {
                self.gap(worker, expected.saturating_sub(1), found)?;
                let text = format!(
                    "{} changes are missing from the outbox",
                    found.saturating_sub(expected)
                );
                self.finding(worker, Finding::general(Code::CaptureGap, text))?;
            }
            Captured::Rewound { expected, found } => {
                self.gap(worker, expected, found)?;
                let text = "the database counts its changes from an earlier position: it was rewound or replaced";
                self.finding(worker, Finding::general(Code::DatabaseRewound, text))?;
                self.position = found.saturating_sub(1);
            }
            Captured::Unreadable { pos, why } => {
                self.gap(worker, pos.saturating_sub(1), pos)?;
                self.finding(
                    worker,
                    Finding::general(
                        Code::CaptureGap,
                        format!("an outbox row is unreadable: {why}"),
                    ),
                )?;
            }
            other => {
                tracing::warn!(source = %name, step = ?other, "a step of a kind that this version does not know")
            }
        }
        if let Some(reached) = reached {
            self.position = reached;
        }
        Ok(())
    }

    pub(super) fn change(&mut self, worker: &Worker, change: &Change) -> Result<(), Ended> {
        let source = &worker.parts.source.name;
        self.compare_old(worker, change)?;
        let whose = self.whose(change)?;
        let drafts = translate::change(change, source, whose, &self.now(worker));
        if self.patients.is_target(&change.table)
            && let Some(key) = translate::key_value(&change.key)
        {
            let row = change.new.as_ref();
            let owner = row.and_then(|row| self.patients.of(&change.table, row));
            self.patients.learn(&change.table, key, owner);
        }
        let Some(line) = drafts.last().cloned() else {
            return Ok(());
        };
        let seq = self.append(drafts)?;
        self.open_times.push(line.at.micros());
        if change.actor.is_none() {
            let about = self.trail.state().next_seq() - 1;
            let finding = Finding {
                code: Code::Unattributed,
                table: Some(change.table.clone()),
                record: Some(
                    self.trail
                        .record_key(Some(&change.table), &key_cells(&change.key)),
                ),
                key: Some(change.key.clone()),
                columns: line.columns.unwrap_or_default(),
                about: Some(about),
                text: format!("{} without an attributed actor", line.op.as_str()),
            };
            self.finding_of(worker, finding, line.patient)?;
        }
        tracing::debug!(seq, table = %change.table, op = line.op.as_str(), "captured");
        Ok(())
    }

    /// Whose record a change is about: by the trail before, by the row after.
    fn whose(&mut self, change: &Change) -> Result<Whose, TrailError> {
        let key = key_cells(&change.key);
        let record = self.trail.record_key(Some(&change.table), &key);
        let row = change.new.as_ref().or(change.old.as_ref());
        let after = row.and_then(|row| self.patients.of(&change.table, row));
        let known = self.trail.state().record(&change.table, &record);
        let before = match known.and_then(|record| record.patient) {
            Some(patient @ Patient::Pseudonym(_)) => {
                self.trail.vault().identifier(&patient.to_string())?
            }
            _ => None,
        };
        Ok(Whose { before, after })
    }

    /// The row that a change replaces must be the one that was sealed last:
    /// an edit past the triggers cannot be hidden by a later update.
    pub(super) fn compare_old(&mut self, worker: &Worker, change: &Change) -> Result<(), Ended> {
        let Some(old) = &change.old else {
            return Ok(());
        };
        let record = self
            .trail
            .record_key(Some(&change.table), &key_cells(&change.key));
        let Some(known) = self.trail.state().record(&change.table, &record).copied() else {
            return Ok(());
        };
        let Some(sealed) = known.leaf.row else {
            return Ok(());
        };
        let compartment = known
            .row_patient
            .map_or_else(|| format!("table:{}", change.table), |p| p.to_string());
        let Some(key) = self
            .trail
            .vault()
            .key(&compartment)
            .map_err(TrailError::from)?
        else {
            return Ok(());
        };
        let nonce = LineNonce::new(
            &key,
            &self.trail.genesis().origin,
            sealed.timeline,
            sealed.seq,
        );
        let cells = old.iter().map(|(name, cell)| (name, cell.expose()));
        if commit_row(&nonce, cells).1 == sealed.row {
            return Ok(());
        }
        let content = self
            .trail
            .vault()
            .get(sealed.seq)
            .map_err(TrailError::from)?
            .map(|(_, c)| c);
        let finding = Finding {
            code: Code::RowDiffers,
            table: Some(change.table.clone()),
            record: Some(record),
            key: Some(change.key.clone()),
            columns: pitser_monitor::differing(content.as_ref(), old),
            about: Some(sealed.seq),
            text: "the row that was changed was not the one that was sealed".into(),
        };
        self.finding(worker, finding)
    }

    pub(super) fn gap(&mut self, worker: &Worker, from: u64, to: u64) -> Result<(), Ended> {
        let at = self.now(worker);
        let draft = Draft {
            body: Body::Gap(Gap {
                from: from.to_string(),
                to: to.to_string(),
            }),
            ..Draft::new(
                Op::Gap,
                at,
                &worker.parts.source.name,
                &to.saturating_sub(1).max(from).to_string(),
            )
        };
        self.scan_due = true;
        self.append(vec![draft])?;
        Ok(())
    }

    pub(super) fn append(&mut self, drafts: Vec<Draft>) -> Result<u64, Ended> {
        self.events += drafts.len() as u64;
        if let Some(pass) = &mut self.scanning {
            for draft in drafts.iter().filter(|d| d.op.needs_key()) {
                if let (Some(table), Some(key)) = (&draft.table, &draft.key) {
                    pass.touched
                        .insert(table, self.trail.record_key(Some(table), key));
                }
            }
        }
        Ok(self.trail.append(drafts)?)
    }

    pub(super) fn submit(
        &mut self,
        worker: &mut Worker,
        raw: &[u8],
    ) -> Result<Result<Receipt, SubmitError>, TrailError> {
        let event = match fhir::parse_audit_event(raw) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.into())),
        };
        let source = format!("{}/fhir", worker.parts.source.name);
        let id = self.trail.keys().message_id(&source, raw).to_string();
        let receipt = |known, lines| Receipt {
            id: id.clone(),
            known,
            lines,
            profile_violations: event.profile_violations.clone(),
        };
        if self.messages.contains(&id) {
            return Ok(Ok(receipt(true, 0)));
        }
        let mut records = Vec::new();
        for resource in &event.data {
            records.push(self.resolve(worker, &resource.kind, &resource.id)?);
        }
        let message = Message {
            event: &event,
            raw,
            id: &id,
            source: &source,
            now: self.now(worker),
        };
        let trail = &self.trail;
        let is_patient = |id: &str| trail.state().patient(&trail.keys().pseudonym(id)).is_some();
        let many = worker.parts.tuning.many_patients;
        let drafts = translate::audit_event(&message, many, records, is_patient);
        let lines = drafts.len();
        self.events += lines as u64;
        self.trail.append(drafts)?;
        self.trail.commit()?;
        self.messages.insert(id.clone());
        self.open_times.push((worker.parts.clock)());
        self.show(worker);
        Ok(Ok(receipt(false, lines)))
    }

    /// What the guardian knows of a resource that an audit event names.
    pub(super) fn resolve(
        &mut self,
        worker: &Worker,
        kind: &str,
        id: &str,
    ) -> Result<Resolved, TrailError> {
        let guarded = worker.parts.source.resources.get(kind);
        let table = guarded.cloned().unwrap_or_else(|| kind.to_owned());
        let key = match guarded.and_then(|t| self.source.key(t, &[id]).ok()) {
            Some(key) => key_cells(&key),
            None => text_key(id),
        };
        let record = self.trail.record_key(Some(&table), &key);
        let patient = self
            .trail
            .state()
            .record(&table, &record)
            .and_then(|r| r.patient);
        let patient = match patient {
            Some(p @ Patient::Pseudonym(_)) => self
                .trail
                .vault()
                .identifier(&p.to_string())?
                .map(PatientId::Id),
            _ => None,
        };
        Ok(Resolved {
            table,
            key,
            patient,
        })
    }

    /// Writes the rows that were there at the genesis. After a crash it goes
    /// on where it was: later changes are undone by their first old images.
    pub(super) fn baseline(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        if self.live {
            return Ok(());
        }
        worker
            .publish
            .send_modify(|s| s.state = SourceState::Baseline);
        let snapshot = self.source.snapshot()?;
        let at: Timestamp = snapshot.at().parse().unwrap_or_else(|_| self.now(worker));
        for table in self.patients.order() {
            let mut failed = None;
            let from = self.genesis_position;
            let complete = snapshot.scan_at(from, &table, BASELINE_CHUNK, |rows| {
                match self.baseline_rows(worker, &table, rows, &at) {
                    Ok(()) => std::ops::ControlFlow::Continue(()),
                    Err(ended) => {
                        failed = Some(ended);
                        std::ops::ControlFlow::Break(())
                    }
                }
            })?;
            if let Some(ended) = failed {
                return Err(ended);
            }
            if !complete {
                let text = "changes since the genesis are missing from the outbox: the baseline is incomplete";
                self.finding(worker, Finding::general(Code::CaptureGap, text))?;
            }
        }
        drop(snapshot);
        let live = Draft::new(
            Op::Live,
            self.now(worker),
            &worker.parts.source.name,
            &self.genesis_position.to_string(),
        );
        self.append(vec![live])?;
        self.live = true;
        self.close(worker)
    }

    pub(super) fn baseline_rows(
        &mut self,
        worker: &mut Worker,
        table: &str,
        rows: Vec<(pitser_capture::Key, pitser_capture::Row)>,
        at: &Timestamp,
    ) -> Result<(), Ended> {
        let name = worker.parts.source.name.clone();
        for (key, row) in rows {
            if self.patients.is_target(table)
                && let Some(value) = translate::key_value(&key)
            {
                let owner = self.patients.of(table, &row);
                self.patients.learn(table, value, owner);
            }
            let record = self.trail.record_key(Some(table), &key_cells(&key));
            if self
                .trail
                .state()
                .record(table, &record)
                .is_some_and(|r| r.leaf.row.is_some())
            {
                continue;
            }
            let draft = translate::baseline(
                table,
                &key,
                &row,
                at,
                self.genesis_position,
                &name,
                &self.patients,
            );
            self.append(vec![draft])?;
        }
        self.trail.commit()?;
        if self.trail.open_lines() >= BLOCK_LINES {
            self.close(worker)?;
        }
        self.show(worker);
        Ok(())
    }
}
