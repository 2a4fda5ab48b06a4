//! From what was captured to lines: one change or audit event becomes one
//! event of one or several drafts.

use crate::config::RECORDS_PER_PATIENT;
use pitser_capture::event::{Actor, Binding, Change, Op as Changed, Person, Row};
use pitser_capture::fhir::{AuditEvent, Patient as FhirPatient};
use pitser_capture::{Cell, Key, Position, sqlite};
use pitser_evidence::line::{Binding as LineBinding, Op, Timestamp};
use pitser_monitor::key_cells;
use pitser_trail::{Draft, DraftActor, PatientId};
use std::sync::Arc;

/// Whose record a change is about.
#[derive(Debug, Default)]
pub(crate) struct Whose {
    /// By the trail, before the change.
    pub(crate) before: Option<PatientId>,
    /// By the row, after it: the list that it belongs to.
    pub(crate) after: Option<PatientId>,
}

/// What is known of a change besides what its source tells.
pub(crate) struct About {
    pub(crate) whose: Whose,
    /// Who did it, by everything that is known.
    pub(crate) actor: Option<Actor>,
    /// Names of the columns that changed.
    pub(crate) columns: Arc<[String]>,
    /// Whether the vault keeps the row itself.
    pub(crate) image: bool,
}

/// The lines of one change. A record that moves to another patient is named
/// in both lists. `now` stands in for a time that no line can hold, or that is yet to come.
pub(crate) fn change(change: Change, source: &str, about: About, now: Timestamp) -> Vec<Draft> {
    let at: Option<Timestamp> = change.at.parse().ok();
    let at = at.filter(|at| at.micros() <= now.micros() + CLOCKS_DIFFER_US);
    let at = at.unwrap_or(now);
    let Whose { before, after } = about.whose;
    let patient = match change.new {
        Some(_) => after,
        None => before.clone().or(after),
    };
    let moved_from = before.filter(|before| patient.as_ref() != Some(before));
    let op = match change.op {
        Changed::Create => Op::Create,
        Changed::Update => Op::Update,
        Changed::Delete | Changed::Truncate => Op::Delete,
        Changed::Baseline => Op::Baseline,
    };
    let mut line = Draft {
        tx: Some(change.tx),
        table: Some(change.table),
        key: Some(key_cells(&change.key)),
        patient,
        actor: about.actor.map(actor),
        purpose: change.purpose,
        image: about.image,
        ..Draft::new(op, at, source, change.pos.to_string())
    };
    let mut drafts = Vec::with_capacity(1);
    if let Some(before) = moved_from {
        for patient in [Some(before), line.patient.clone()] {
            drafts.extend(patient.map(|patient| Draft {
                op: Op::Relink,
                patient: Some(patient),
                ..line.clone()
            }));
        }
    }
    line.columns = Some(about.columns);
    line.row = change.new.map(row);
    drafts.push(line);
    drafts
}

/// So far the database's clock and ours may be apart, in microseconds.
pub(crate) const CLOCKS_DIFFER_US: u64 = 600 * 1_000_000;

/// Names of the columns that differ between two versions of a row.
pub(crate) fn changed_columns(old: &Row, new: &Row) -> Vec<String> {
    new.iter()
        .filter(|(name, cell)| old.get(name) != Some(*cell))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The line of a row that was there when capture began.
pub(crate) fn baseline(
    (table, key, row): (&str, &Key, Row),
    patient: Option<PatientId>,
    image: bool,
    at: Timestamp,
    source: &str,
    pos: Position,
) -> Draft {
    Draft {
        table: Some(table.to_owned()),
        key: Some(key_cells(key)),
        patient,
        row: Some(self::row(row)),
        image,
        ..Draft::new(Op::Baseline, at, source, pos.to_string())
    }
}

/// Which table and patient the guardian knows for a resource of an audit event.
pub(crate) struct Resolved {
    /// Guarded table and key, or the resource type and its id as text.
    pub(crate) table: String,
    pub(crate) key: Vec<Vec<u8>>,
    /// Whose it is, by the guardian's own state.
    pub(crate) patient: Option<PatientId>,
}

/// An audit event as it came.
pub(crate) struct Message<'a> {
    pub(crate) event: &'a AuditEvent,
    pub(crate) raw: &'a [u8],
    /// Its opaque id, for `pos`.
    pub(crate) id: &'a str,
    pub(crate) source: &'a str,
    /// Stands in for a time that no line can hold.
    pub(crate) now: Timestamp,
}

impl Message<'_> {
    /// Whether it is about so many that it goes to the list `*many`: more patients than
    /// this, or more records than that many have.
    pub(crate) fn is_about_many(&self, many: usize) -> bool {
        self.event.patients.len() > many
            || self.event.data.len() > many.saturating_mul(RECORDS_PER_PATIENT)
    }

    /// What all its lines say.
    fn draft(&self) -> Draft {
        let event = self.event;
        let at = event.recorded.parse().unwrap_or(self.now);
        Draft {
            actor: Some(DraftActor {
                app: event.app.clone(),
                binding: LineBinding::C,
                client: event.client.clone(),
                person: event.person.as_ref().map(|p| p.expose().to_owned()),
                role: None,
            }),
            purpose: event.purpose.first().cloned(),
            raw: Some(Arc::from(self.raw)),
            ..Draft::new(Op::Read, at, self.source, self.id)
        }
    }
}

/// The line of an audit event that is about many.
pub(crate) fn about_many(message: &Message<'_>) -> Vec<Draft> {
    vec![Draft {
        patient: Some(PatientId::Many),
        ..message.draft()
    }]
}

/// The lines of any other audit event. Each record that it names, and each patient
/// whom no record stands for, gets a line; what names nobody, or somebody who cannot be
/// told, goes to `*unknown`.
///
/// `is_patient` says whether the trail knows a patient by an identifier.
pub(crate) fn audit_event(
    message: &Message<'_>,
    records: Vec<Resolved>,
    is_patient: impl Fn(&str) -> bool,
) -> Vec<Draft> {
    let event = message.event;
    let every = message.draft();
    let draft = || every.clone();
    let mut named: Vec<PatientId> = Vec::new();
    for patient in &event.patients {
        let patient = patient_id(patient, &is_patient);
        if !named.contains(&patient) {
            named.push(patient);
        }
    }
    if event.patient_unknown && !named.contains(&PatientId::Unknown) {
        named.push(PatientId::Unknown);
    }
    let sole = match named.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    };
    let mut drafts: Vec<Draft> = records
        .into_iter()
        .map(|record| Draft {
            table: Some(record.table),
            key: Some(record.key),
            patient: Some(
                record
                    .patient
                    .or_else(|| sole.clone())
                    .unwrap_or(PatientId::Unknown),
            ),
            ..draft()
        })
        .collect();
    for patient in named {
        if !drafts.iter().any(|d| d.patient.as_ref() == Some(&patient)) {
            drafts.push(Draft {
                patient: Some(patient),
                ..draft()
            });
        }
    }
    if drafts.is_empty() {
        drafts.push(Draft {
            patient: Some(PatientId::Unknown),
            ..draft()
        });
    }
    drafts
}

/// A resource of another server.
pub(crate) fn elsewhere(base: &str, kind: &str, id: &str) -> Resolved {
    Resolved {
        table: kind.to_owned(),
        key: text_key(&format!("{base}/{kind}/{id}")),
        patient: None,
    }
}

/// The canonical key of a resource id in a guarded table with a text key.
pub(crate) fn text_key(id: &str) -> Vec<Vec<u8>> {
    vec![sqlite::text(id).expose().unwrap_or_default().to_vec()]
}

/// The identifier by which the database knows a patient of an audit event.
/// Whoever is named otherwise, or is not known, cannot be determined: guessing
/// would put the read on a list that nobody looks at.
fn patient_id(patient: &FhirPatient, is_patient: impl Fn(&str) -> bool) -> PatientId {
    match patient {
        FhirPatient::Id { id, .. } if is_patient(id) => PatientId::Id(id.clone()),
        _ => PatientId::Unknown,
    }
}

/// The identifier in a one-column key, for tables that others point at.
pub(crate) fn key_value(key: &Key) -> Option<&[u8]> {
    match key.cells() {
        [cell] => cell.expose(),
        _ => None,
    }
}

fn row(row: Row) -> pitser_trail::Row {
    pitser_trail::Row {
        names: row.columns,
        values: row.cells.into_iter().map(Cell::into_exposed).collect(),
    }
}

fn actor(actor: Actor) -> DraftActor {
    DraftActor {
        app: actor.app,
        binding: match actor.binding {
            Binding::A => LineBinding::A,
            Binding::B => LineBinding::B,
            Binding::C => LineBinding::C,
            Binding::D => LineBinding::D,
            Binding::E => LineBinding::E,
        },
        client: actor.client,
        person: actor.person.map(Person::into_exposed),
        role: actor.role,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MANY_PATIENTS_MAX;
    use crate::runtime::BLOCK_LINES;
    use pitser_capture::fhir::parse_audit_event;

    /// Lines of an event that names so many patients and records, if so many records of
    /// somebody else are found; `None` if it is about many.
    fn lines(patients: usize, named: usize, records: usize) -> Option<usize> {
        let patient = |at: usize| {
            format!(
                r#"{{"what":{{"reference":"Patient/{at}"}},"type":{{"code":"1"}},"role":{{"code":"1"}}}}"#
            )
        };
        let record = |at: usize| format!(r#"{{"what":{{"reference":"E/{at}"}}}}"#);
        let patients = (0..patients).map(patient);
        let entities: Vec<String> = patients.chain((0..named).map(record)).collect();
        let raw = format!(
            r#"{{"resourceType":"AuditEvent","type":{{"code":"rest"}},"action":"R","recorded":"2026-03-14T09:26:53Z",
                "agent":[{{"requestor":true}}],"source":{{"observer":{{"display":"ehr"}}}},"entity":[{}]}}"#,
            entities.join(",")
        );
        let event = parse_audit_event(raw.as_bytes()).unwrap();
        assert_eq!(event.data.len(), named);
        let record = |at: usize| Resolved {
            table: "entry".into(),
            key: text_key(&at.to_string()),
            patient: Some(PatientId::Id("another".into())),
        };
        let message = Message {
            event: &event,
            raw: raw.as_bytes(),
            id: "id",
            source: "h/fhir",
            now: Timestamp::from_micros(1).unwrap(),
        };
        let records = (0..records).map(record).collect();
        let lines = || audit_event(&message, records, |_| true).len();
        (!message.is_about_many(MANY_PATIENTS_MAX)).then(lines)
    }

    #[test]
    fn who_cannot_be_told_has_a_line_beside_who_can() {
        let raw = r#"{"resourceType":"AuditEvent","type":{"code":"rest"},"action":"R",
            "recorded":"2026-03-14T09:26:53Z","agent":[{"requestor":true}],
            "source":{"observer":{"display":"ehr"}},"entity":[
            {"what":{"reference":"Patient/1"},"role":{"code":"1"}},
            {"what":{"display":"Mari"},"role":{"code":"1"}},
            {"what":{"reference":"E/7"}}]}"#;
        let event = parse_audit_event(raw.as_bytes()).unwrap();
        let message = Message {
            event: &event,
            raw: raw.as_bytes(),
            id: "id",
            source: "h/fhir",
            now: Timestamp::from_micros(1).unwrap(),
        };
        let record = || Resolved {
            table: "entry".into(),
            key: text_key("7"),
            patient: None,
        };
        let whose = |records| {
            let drafts = audit_event(&message, records, |_| true).into_iter();
            drafts.map(|draft| draft.patient).collect::<Vec<_>>()
        };
        let (known, unknown) = (Some(PatientId::Id("1".into())), Some(PatientId::Unknown));
        assert_eq!(whose(Vec::new()), [known.clone(), unknown.clone()]);
        // The record is whose it is: nobody knows.
        assert_eq!(whose(vec![record()]), [unknown, known]);
    }

    #[test]
    fn no_audit_event_has_more_lines_than_a_block() {
        let (patients, records) = (MANY_PATIENTS_MAX, RECORDS_PER_PATIENT * MANY_PATIENTS_MAX);
        // An event that names all of them is longer than one may be.
        assert_eq!(lines(patients, 0, records), Some(patients + records));
        assert_eq!(lines(1, records, records), Some(1 + records));
        // One more is about somebody who cannot be told.
        assert!(patients + records + 1 < BLOCK_LINES);
        assert_eq!(lines(patients + 1, 0, 0), None, "they are many");
        assert_eq!(lines(0, records + 1, 0), None);
    }
}
