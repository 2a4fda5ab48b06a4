//! What is wrong: findings into the trail, and the schema that capture relies on.

use super::accept::{accepted, patient_id};
use super::{Ended, SECOND_US, Session, Worker};
use crate::collected::{Collected, finding_of};
use pitser_capture::{Drift, Position, SourceError};
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::{Ddl, Finding as LineFinding, Line, Op, Patient};
use pitser_monitor::{Finding, Incidents, Newest, Noted, key_cells, key_of};
use pitser_trail::{Body, Draft, PatientId, Trail, TrailError};

impl Session {
    pub(super) fn finding(&mut self, worker: &Worker, finding: Finding) -> Result<(), Ended> {
        self.finding_of(worker, finding, None)
    }

    /// Notes a finding, and writes it into the trail if it is new. `patient` is whose record
    /// it is about, where the trail does not know.
    pub(super) fn finding_of(
        &mut self,
        worker: &Worker,
        finding: Finding,
        patient: Option<PatientId>,
    ) -> Result<(), Ended> {
        if self.is_known(&finding)? {
            return Ok(());
        }
        let finding = bounded(finding);
        let draft = self.finding_draft(worker, &finding, patient, self.position)?;
        let line = self.append(worker, vec![draft])?;
        self.found_now(worker, finding, line);
        Ok(())
    }

    /// Writes an event that ends with findings, which are there for the first time, at this
    /// position: all of it is durable, or nothing. They are about the event's first line
    /// unless they say otherwise. Gives that line's number.
    pub(super) fn event_findings(
        &mut self,
        worker: &Worker,
        mut event: Vec<Draft>,
        pos: Position,
        findings: impl IntoIterator<Item = Finding>,
    ) -> Result<u64, Ended> {
        let findings: Vec<Finding> = findings.into_iter().map(bounded).collect();
        let before = event.len() as u64;
        for finding in &findings {
            let mut draft = self.finding_draft(worker, finding, None, pos)?;
            if finding.about.is_none() {
                draft.body = Some(Box::new(Body::EventFinding {
                    code: finding.code,
                    text: finding.text.clone(),
                }));
            }
            event.push(draft);
        }
        let first = self.append(worker, event)?;
        for (mut finding, line) in findings.into_iter().zip(first + before..) {
            finding.about.get_or_insert(first);
            self.found_now(worker, finding, line);
        }
        Ok(first)
    }

    /// Writes a change of a record with the finding that it replaced what was not sealed.
    /// Whose the record is then, the change says. Gives its last line before the finding.
    pub(super) fn event_replaced(
        &mut self,
        worker: &Worker,
        mut change: Vec<Draft>,
        pos: Position,
        (finding, patient): (Finding, Option<PatientId>),
    ) -> Result<u64, Ended> {
        let finding = bounded(finding);
        let about = change.len() as u64;
        let body = Body::EventFinding {
            code: finding.code,
            text: finding.text.clone(),
        };
        change.push(Draft {
            patient,
            body: Some(Box::new(body)),
            ..self.finding_draft(worker, &finding, None, pos)?
        });
        let first = self.append(worker, change)?;
        let finding = Finding {
            about: Some(first),
            ..finding
        };
        self.found_now(worker, finding, first + about);
        Ok(first + about - 1)
    }

    fn finding_draft(
        &mut self,
        worker: &Worker,
        finding: &Finding,
        patient: Option<PatientId>,
        pos: Position,
    ) -> Result<Draft, TrailError> {
        Ok(Draft {
            table: finding.table.clone(),
            key: finding.key.as_ref().map(key_cells),
            // A record may have moved since: its list is the one where it stands now.
            patient: self.patient_of(finding)?.or(patient),
            columns: (!finding.columns.is_empty()).then(|| finding.columns.clone().into()),
            body: Some(Box::new(Body::Finding(LineFinding {
                about: finding.about,
                code: finding.code,
                text: finding.text.clone(),
            }))),
            ..Draft::new(Op::Finding, self.now(worker), "guardian", pos.to_string())
        })
    }

    /// A finding has its line.
    fn found_now(&mut self, worker: &Worker, finding: Finding, line: u64) {
        let found_at = (worker.parts.clock)();
        if self.logged.tells(finding.kind(), found_at) {
            tracing::warn!(source = %worker.parts.source.name, code = %finding.code, table = ?finding.table, columns = ?finding.columns, "{}", finding.text);
        }
        self.incidents.found(finding, found_at, line);
        self.open_times.push(found_at);
    }

    /// Says how many findings the log was not told one by one.
    pub(super) fn log_counted(&mut self, worker: &Worker, now: u64) {
        for ((code, table), count) in self.logged.over(now) {
            tracing::warn!(source = %worker.parts.source.name, %code, ?table, "{count} more of these within a minute: `pitser guard status` has them");
        }
    }

    /// Whether the trail tells of a finding already.
    fn is_known(&mut self, finding: &Finding) -> Result<bool, TrailError> {
        let told = match self.incidents.note(finding) {
            Noted::New => return Ok(false),
            Noted::Known => return Ok(true),
            Noted::Ask => self.told(finding)?,
        };
        if let Some(line) = told {
            self.incidents.found_again(finding, line);
        }
        Ok(told.is_some())
    }

    /// The line that tells of a finding of a row, if there is one since the row was
    /// written.
    fn told(&self, finding: &Finding) -> Result<Option<u64>, TrailError> {
        let (Some(table), Some(record)) = (&finding.table, &finding.record) else {
            return Ok(None);
        };
        for line in self.trail.record_lines(table, record)? {
            let line = line?;
            match line.op {
                Op::Finding => {
                    let told = finding_of(&line).filter(|told| told.kind() == finding.kind());
                    if told.is_some_and(|told| told.is_same(finding)) {
                        return Ok(Some(line.seq));
                    }
                }
                Op::Read | Op::Accept => {}
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Keeps findings again that were only counted, once there is room for them: the
    /// trail is read backwards for them, some lines at a time. Others can wait if it
    /// cannot be read.
    pub(super) fn show_more(&mut self, worker: &Worker, now: u64) -> Result<(), Ended> {
        let Some((kind, last)) = self.incidents.wanted() else {
            return Ok(());
        };
        // Lines that are not on disk yet would be passed over.
        if !self.trail.is_durable() {
            return Ok(());
        }
        let mut is_shown = false;
        for seq in (0..=last).rev().take(LOOKED_AT) {
            let found = match self.open_finding(seq) {
                Err(error) => {
                    tracing::warn!(%error, "earlier findings are only counted: the trail cannot be read");
                    self.next.more = now + UNREADABLE_US;
                    break;
                }
                Ok(found) => found,
            };
            let found = found.filter(|(it, _)| it.kind() == kind && !self.incidents.is_kept(seq));
            if let Some((finding, found_at)) = found {
                self.incidents.show(finding, found_at, seq);
                is_shown = true;
            }
            self.incidents.passed(&kind, seq);
            if self.incidents.wanted().is_none_or(|(next, _)| next != kind) {
                break;
            }
        }
        if is_shown {
            self.show(worker);
        }
        Ok(())
    }

    /// The finding of a line that nobody answers for, and when it was found.
    pub(super) fn open_finding(&mut self, seq: u64) -> Result<Option<(Finding, u64)>, TrailError> {
        let Some(line) = self.trail.line(seq)?.filter(|it| it.op == Op::Finding) else {
            return Ok(None);
        };
        if self.trail.is_accepted(seq)? {
            return Ok(None);
        }
        let finding = finding_in_clear(&mut self.trail, &line)?;
        Ok(finding.map(|finding| (finding, line.at.micros())))
    }

    pub(super) fn patient_of(
        &mut self,
        finding: &Finding,
    ) -> Result<Option<PatientId>, TrailError> {
        let (Some(table), Some(record)) = (&finding.table, &finding.record) else {
            return Ok(None);
        };
        self.known_patient(table, record)
    }

    /// Whose record the trail says this is; `None` also if the patient was erased.
    pub(super) fn known_patient(
        &mut self,
        table: &str,
        record: &Bytes32,
    ) -> Result<Option<PatientId>, TrailError> {
        let known = self.trail.state().record(table, record)?;
        let patient = known.and_then(|record| record.patient);
        let patient = patient.filter(|it| matches!(it, Patient::Pseudonym(_)));
        patient_id(&mut self.trail, patient)
    }

    /// Another database has the name of the one that was followed: what was done to either
    /// since nobody told.
    fn replaced(&mut self, worker: &Worker, error: SourceError) -> Result<(), Ended> {
        let text =
            "the database's file was replaced by another one, or removed, while it was guarded";
        let finding = Finding::general(Code::DatabaseRewound, text);
        self.gap(worker, (self.position, self.position), None, Some(finding))?;
        self.trail.commit()?;
        self.show(worker);
        Err(error.into())
    }

    /// Notices when capture was weakened, or the schema changed. `sealed` is
    /// what the trail says the fingerprint was, after a restart.
    pub(super) fn compare_fingerprint(
        &mut self,
        worker: &Worker,
        sealed: Option<Digest>,
    ) -> Result<(), Ended> {
        if let Some(error) = self.source.replaced()? {
            return self.replaced(worker, error);
        }
        let now = self.source.fingerprint()?;
        let hash = Digest::of(&[&now]);
        let path = self.trail.layout().dir().join("fingerprint.json");
        // Where it stands while its line is being made durable.
        let next = self.trail.layout().dir().join("fingerprint.next.json");
        let kept = || std::fs::read(&path).unwrap_or_default();
        let before = match sealed {
            Some(sealed) if sealed == hash => {
                // The line was durable before a crash, the file was not.
                if kept() != now {
                    pitser_trail::disk::replace(&path, &now).map_err(TrailError::from)?;
                }
                return Ok(());
            }
            Some(sealed) => {
                // Without the one that was sealed, nobody knows what is different.
                let known = [kept(), std::fs::read(&next).unwrap_or_default()];
                let known = known.into_iter().find(|it| Digest::of(&[it]) == sealed);
                self.fingerprint = known.unwrap_or_default();
                Some(sealed)
            }
            None if path.exists() && self.fingerprint == now => return Ok(()),
            None if path.exists() => Some(Digest::of(&[&self.fingerprint])),
            None => None,
        };
        // Before anything is durable that says how it is now: what the keys were, nobody
        // could say any more.
        let shapes = self.source.shapes_in(&self.fingerprint);
        let shapes = shapes.unwrap_or_else(|| self.source.shapes().to_vec());
        let is_other = self.source.refresh()?;
        self.note_keys(&shapes)?;
        self.note_columns(&shapes)?;
        let drifts = if before.is_some() {
            self.source.drifts(&self.fingerprint, &now)
        } else {
            Vec::new()
        };
        let draft = Draft {
            body: Some(Box::new(Body::Ddl(Ddl {
                after: hash,
                before,
            }))),
            ..Draft::new(
                Op::Ddl,
                self.now(worker),
                &worker.parts.source.name,
                self.position.to_string(),
            )
        };
        pitser_trail::disk::replace(&next, &now).map_err(TrailError::from)?;
        self.scan_due |= !drifts.is_empty();
        let findings = together(drifts).into_iter().filter_map(|drift| {
            Some(Finding {
                table: drift.table,
                ..Finding::general(drift_code(drift.code)?, drift.text)
            })
        });
        // Whoever starts with this fingerprint finds nothing new in it.
        self.event_findings(worker, vec![draft], self.position, findings)?;
        self.trail.commit()?;
        self.show(worker);
        pitser_trail::disk::replace(&path, &now).map_err(TrailError::from)?;
        self.fingerprint = now;
        match is_other {
            true => self.reshape(worker),
            false => Ok(()),
        }
    }
}

/// Incidents that the trail already tells of, with keys from the vault.
pub(super) fn incidents(
    trail: &mut Trail,
    collected: &mut Collected,
) -> Result<Incidents, TrailError> {
    // Of which code and table those are that were accepted while they were only counted.
    for seq in collected.accepted.clone() {
        let kind = match trail.line(seq) {
            Ok(line) => line.as_ref().and_then(finding_of).map(|it| it.kind()),
            Err(error) => {
                tracing::warn!(line = seq, %error, "a finding that was accepted is counted as open: its line cannot be read");
                None
            }
        };
        if let Some(kind) = kind {
            collected.place(seq, &kind);
            if let Some(kept) = trail.gathered_mut::<Collected>() {
                kept.place(seq, &kind);
            }
        }
    }
    let told = &collected.findings;
    let mut newest = Newest::default();
    for (kind, more) in told.more() {
        newest.set_more(kind.clone(), *more);
    }
    let mut incidents = Incidents::new(newest);
    for (_, seq, told) in told.all_earlier() {
        let by = told.accept.as_ref();
        let by = by.map(|line| accepted(trail, line)).transpose()?;
        let finding = finding_in_clear(trail, &told.line)?;
        if let (Some(finding), Some(by)) = (finding, by) {
            incidents.accepted(finding, told.line.at.micros(), seq, by);
        }
    }
    for (_, seq, told) in told.all_open() {
        if let Some(finding) = finding_in_clear(trail, &told.line)? {
            incidents.found(finding, told.line.at.micros(), seq);
        }
    }
    Ok(incidents)
}

/// What a finding's line says, with the record's key, as far as the vault has it.
pub(super) fn finding_in_clear(
    trail: &mut Trail,
    line: &Line,
) -> Result<Option<Finding>, TrailError> {
    let Some(finding) = finding_of(line) else {
        return Ok(None);
    };
    let content = trail.vault().get(line.seq)?.map(|(_, content)| content);
    let key = content.and_then(|content| content.key).map(key_of);
    Ok(Some(Finding { key, ..finding }))
}

/// A finding that fits into a line, whatever somebody has made its text of: thousands of
/// triggers, say, with long names.
fn bounded(mut finding: Finding) -> Finding {
    let text = &mut finding.text;
    let length = text.len();
    if length > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        *text += &format!("… and {} bytes more", length - text.len());
    }
    finding
}

/// Bytes of a finding's text: of a line of 1 MiB a part, each byte of which may be written
/// as six.
const TEXT_MAX: usize = 64 << 10;

/// Lines that are looked at together for findings that were only counted.
const LOOKED_AT: usize = 200;
/// Until they are looked for again, if the trail could not be read.
const UNREADABLE_US: u64 = 60 * SECOND_US;

/// One drift for all of a look that are of one code and table: they are one event.
fn together(drifts: Vec<Drift>) -> Vec<Drift> {
    let mut together: Vec<Drift> = Vec::new();
    for drift in drifts {
        let same = |known: &&mut Drift| (known.code, &known.table) == (drift.code, &drift.table);
        match together.iter_mut().find(same) {
            Some(known) => {
                known.text.push_str(". Also: ");
                known.text.push_str(&drift.text);
            }
            None => together.push(drift),
        }
    }
    together
}

/// The finding that a drift is; `None` if only a scan can tell.
fn drift_code(code: &str) -> Option<Code> {
    match code {
        "" => None,
        "CAP-02" => Some(Code::DatabaseRewound),
        "CAP-05" => Some(Code::SchemaChanged),
        _ => Some(Code::CaptureWeakened),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_any_length_fits_into_a_line() {
        let of = |text: &str| bounded(Finding::general(Code::CaptureWeakened, text)).text;
        assert_eq!(of("a trigger"), "a trigger");
        let long = of(&"\u{1}õ".repeat(100_000));
        assert!(
            long.ends_with("… and 234464 bytes more"),
            "{:?}",
            long.get(65_000..)
        );
        let escaped = serde_json::to_string(&long).unwrap();
        assert!(escaped.len() < pitser_evidence::line::MAX_LINE / 2);
    }
}
