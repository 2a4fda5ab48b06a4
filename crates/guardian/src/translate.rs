//! From what was captured to lines: one change or audit event becomes one
//! event of one or several drafts.

use crate::patients::Patients;
use pitser_capture::event::{Actor, Binding, Change, Op as Changed, Row};
use pitser_capture::fhir::{AuditEvent, Patient as FhirPatient};
use pitser_capture::{Key, sqlite};
use pitser_evidence::line::{Binding as LineBinding, Op, Timestamp};
use pitser_monitor::key_cells;
use pitser_trail::{Draft, DraftActor, PatientId};

/// The lines of one change. A record that moves to another patient is named
/// in both lists.
pub(crate) fn change(change: &Change, source: &str, patients: &Patients) -> Vec<Draft> {
    let Ok(at) = change.at.parse::<Timestamp>() else {
        return Vec::new();
    };
    let pos = change.pos.to_string();
    let row = change.new.as_ref().or(change.old.as_ref());
    let patient = row.and_then(|row| patients.of(&change.table, row));
    let before = change
        .old
        .as_ref()
        .and_then(|row| patients.of(&change.table, row));
    let draft = |op: Op, patient: Option<String>| Draft {
        tx: Some(change.tx),
        table: Some(change.table.clone()),
        key: Some(key_cells(&change.key)),
        patient: patient.map(PatientId::Id),
        actor: change.actor.as_ref().map(actor),
        purpose: change.purpose.clone(),
        ..Draft::new(op, at.clone(), source, &pos)
    };
    let mut drafts = Vec::new();
    if change.op == Changed::Update && before != patient {
        drafts.extend(before.map(|p| draft(Op::Relink, Some(p))));
        drafts.extend(patient.clone().map(|p| draft(Op::Relink, Some(p))));
    }
    let op = match change.op {
        Changed::Create => Op::Create,
        Changed::Update => Op::Update,
        Changed::Delete | Changed::Truncate => Op::Delete,
        Changed::Baseline => Op::Baseline,
    };
    let mut line = draft(op, patient);
    line.columns = Some(changed_columns(change));
    line.row = change.new.as_ref().map(cells);
    drafts.push(line);
    drafts
}

/// The line of a row that was there when capture began.
pub(crate) fn baseline(
    table: &str,
    key: &Key,
    row: &Row,
    at: &Timestamp,
    pos: u64,
    source: &str,
    patients: &Patients,
) -> Draft {
    Draft {
        table: Some(table.to_owned()),
        key: Some(key_cells(key)),
        patient: patients.of(table, row).map(PatientId::Id),
        row: Some(cells(row)),
        ..Draft::new(Op::Baseline, at.clone(), source, &pos.to_string())
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

/// The lines of one audit event. Each record that it names, and each patient
/// whom no record stands for, gets a line; what names nobody goes to `*unknown`.
pub(crate) fn audit_event(
    event: &AuditEvent,
    raw: &[u8],
    id: &str,
    source: &str,
    many: usize,
    records: Vec<Resolved>,
) -> Vec<Draft> {
    let Ok(at) = event.recorded.parse::<Timestamp>() else {
        return Vec::new();
    };
    let named: Vec<PatientId> = event.patients.iter().filter_map(patient_id).collect();
    let sole = match named.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    };
    let draft = || Draft {
        actor: Some(DraftActor {
            app: event.app.clone(),
            binding: LineBinding::C,
            client: event.client.clone(),
            person: event.person.as_ref().map(|p| p.expose().to_owned()),
            role: None,
        }),
        purpose: event.purpose.first().cloned(),
        raw: Some(raw.to_vec()),
        ..Draft::new(Op::Read, at.clone(), source, id)
    };
    let concerned = named.len().max(records.len());
    if named.len() > many || concerned > many.saturating_mul(20) {
        return vec![Draft {
            patient: Some(PatientId::Many),
            ..draft()
        }];
    }
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
    if drafts.is_empty() || (event.patient_unknown && event.patients.is_empty()) {
        drafts.push(Draft {
            patient: Some(PatientId::Unknown),
            ..draft()
        });
    }
    drafts
}

/// The canonical key of a resource id in a guarded table with a text key.
pub(crate) fn text_key(id: &str) -> Vec<Vec<u8>> {
    vec![sqlite::text(id).expose().unwrap_or_default().to_vec()]
}

/// The identifier by which the database knows a patient of an audit event.
fn patient_id(patient: &FhirPatient) -> Option<PatientId> {
    Some(PatientId::Id(match patient {
        FhirPatient::Id { id, .. } => id.clone(),
        FhirPatient::Urn(urn) => urn.clone(),
        FhirPatient::Identifier { value, .. } => value.clone(),
    }))
}

/// The identifier in a one-column key, for tables that others point at.
pub(crate) fn key_value(key: &Key) -> Option<&[u8]> {
    match key.cells() {
        [cell] => cell.expose(),
        _ => None,
    }
}

fn changed_columns(change: &Change) -> Vec<String> {
    let Some(row) = change.new.as_ref().or(change.old.as_ref()) else {
        return Vec::new();
    };
    let differs = |name: &str| match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.get(name) != new.get(name),
        _ => true,
    };
    row.iter()
        .map(|(name, _)| name)
        .filter(|name| differs(name))
        .map(str::to_owned)
        .collect()
}

fn cells(row: &Row) -> Vec<(String, Option<Vec<u8>>)> {
    row.iter()
        .map(|(name, cell)| (name.to_owned(), cell.expose().map(<[u8]>::to_vec)))
        .collect()
}

fn actor(actor: &Actor) -> DraftActor {
    DraftActor {
        app: actor.app.clone(),
        binding: match actor.binding {
            Binding::A => LineBinding::A,
            Binding::B => LineBinding::B,
            Binding::C => LineBinding::C,
            Binding::D => LineBinding::D,
            Binding::E => LineBinding::E,
        },
        client: actor.client.clone(),
        person: actor.person.as_ref().map(|p| p.expose().to_owned()),
        role: actor.role.clone(),
    }
}
