//! What is wrong: findings into the trail, and the schema that capture relies on.

use super::accept::accepted;
use super::{Ended, Session, StartError, Worker};
use pitser_capture::Drift;
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::{Ddl, Finding as LineFinding, Line, Op, Patient};
use pitser_monitor::{Finding, Incidents, key_cells};
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
        self.finding_with(worker, Vec::new(), finding, patient)
    }

    /// The same, as the last line of an event: all of it is durable, or nothing.
    pub(super) fn finding_with(
        &mut self,
        worker: &Worker,
        mut event: Vec<Draft>,
        finding: Finding,
        patient: Option<PatientId>,
    ) -> Result<(), Ended> {
        let found_at = (worker.parts.clock)();
        let finding = Finding {
            text: bounded(finding.text),
            ..finding
        };
        if !self.incidents.note(finding.clone(), found_at) {
            if !event.is_empty() {
                self.append(event)?;
            }
            return Ok(());
        }
        tracing::warn!(code = %finding.code, table = ?finding.table, columns = ?finding.columns, "{}", finding.text);
        let draft = Draft {
            table: finding.table.clone(),
            key: finding.key.as_ref().map(key_cells),
            // A record may have moved since: its list is the one where it stands now.
            patient: self.patient_of(&finding)?.or(patient),
            columns: (!finding.columns.is_empty()).then(|| finding.columns.clone().into()),
            body: Some(Box::new(Body::Finding(LineFinding {
                about: finding.about,
                code: finding.code,
                text: finding.text.clone(),
            }))),
            ..Draft::new(
                Op::Finding,
                self.now(worker),
                "guardian",
                self.position.to_string(),
            )
        };
        let before = event.len() as u64;
        event.push(draft);
        let seq = self.append(event)? + before;
        self.incidents.written(&finding, seq);
        self.open_times.push(found_at);
        Ok(())
    }

    pub(super) fn patient_of(
        &mut self,
        finding: &Finding,
    ) -> Result<Option<PatientId>, TrailError> {
        let (Some(table), Some(record)) = (&finding.table, &finding.record) else {
            return Ok(None);
        };
        let patient = self.known_patient(table, record)?;
        Ok(patient.map(PatientId::Id))
    }

    /// Whose record the trail says this is.
    pub(super) fn known_patient(
        &mut self,
        table: &str,
        record: &Bytes32,
    ) -> Result<Option<String>, TrailError> {
        let known = self.trail.state().record(table, record)?;
        match known.and_then(|record| record.patient) {
            Some(patient @ Patient::Pseudonym(_)) => {
                let identifier = self.trail.vault().identifier(&patient.to_string())?;
                Ok(identifier.map(|identifier| String::from(&*identifier)))
            }
            _ => Ok(None),
        }
    }

    /// Notices when capture was weakened, or the schema changed. `sealed` is
    /// what the trail says the fingerprint was, after a restart.
    pub(super) fn compare_fingerprint(
        &mut self,
        worker: &Worker,
        sealed: Option<Digest>,
    ) -> Result<(), Ended> {
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
        let about = self.append(vec![draft])?;
        self.scan_due |= !drifts.is_empty();
        for drift in together(drifts) {
            let Some(code) = drift_code(drift.code) else {
                continue;
            };
            let finding = Finding {
                table: drift.table,
                about: Some(about),
                ..Finding::general(code, drift.text)
            };
            self.finding(worker, finding)?;
        }
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

/// Incidents that the trail already tells of, with keys from the vault. `lines` are
/// those of findings, and those that accept them.
pub(super) fn incidents(trail: &mut Trail, lines: &[Line]) -> Result<Incidents, StartError> {
    let mut incidents = Incidents::default();
    for line in lines {
        if let Some((finding, accepted)) = accepted(trail, line).map_err(StartError::from)? {
            incidents.accept(finding, accepted);
        }
        let Some(body) = &line.finding else { continue };
        let content = trail
            .vault()
            .get(line.seq)
            .map_err(TrailError::from)?
            .map(|(_, c)| c);
        let finding = Finding {
            code: body.code,
            table: line.table.clone(),
            key: content.and_then(|c| c.key).map(pitser_monitor::key_of),
            record: line.key,
            columns: line.columns.as_deref().unwrap_or_default().to_vec(),
            about: body.about,
            text: body.text.clone(),
        };
        incidents.note(finding.clone(), line.at.micros());
        incidents.written(&finding, line.seq);
    }
    Ok(incidents)
}

/// A text that fits into a line, whatever somebody has made it of: thousands of triggers,
/// say, with long names.
fn bounded(mut text: String) -> String {
    let length = text.len();
    if length > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text += &format!("… and {} bytes more", length - text.len());
    }
    text
}

/// Bytes of a finding's text: of a line of 1 MiB a part, each byte of which may be written
/// as six.
const TEXT_MAX: usize = 64 << 10;

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
        assert_eq!(bounded("a trigger".into()), "a trigger");
        let long = bounded("\u{1}õ".repeat(100_000));
        assert!(
            long.ends_with("… and 234464 bytes more"),
            "{:?}",
            long.get(65_000..)
        );
        let escaped = serde_json::to_string(&long).unwrap();
        assert!(escaped.len() < pitser_evidence::line::MAX_LINE / 2);
    }
}
