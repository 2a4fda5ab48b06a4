//! The synthetic hospital: an SQLite database with one table for each FHIR
//! resource type, filled from `testdata/clinosim-150`, and the application,
//! the doctors and the two insiders who work on it.

use crate::outcome::Failure;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Columns of every table, after the primary key `id`.
const COLUMNS: &str =
    "patient TEXT, status TEXT, code TEXT, recorded TEXT, value TEXT, resource TEXT NOT NULL";

macro_rules! snapshot {
    ($($kind:literal),* $(,)?) => {
        &[$(($kind, include_bytes!(concat!(
            "../../../../testdata/clinosim-150/until-2025-03-31/", $kind, ".ndjson.gz"
        )))),*]
    };
}

/// The hospital as of 31 March, one compressed file for each resource type.
const SNAPSHOT: &[(&str, &[u8])] = snapshot![
    "AllergyIntolerance",
    "CareTeam",
    "Composition",
    "Condition",
    "Coverage",
    "Device",
    "DiagnosticReport",
    "Encounter",
    "FamilyMemberHistory",
    "Immunization",
    "Location",
    "MedicationAdministration",
    "MedicationRequest",
    "Observation",
    "Organization",
    "Patient",
    "Practitioner",
    "PractitionerRole",
    "Procedure",
    "ServiceRequest",
    "Specimen",
];

/// What happened in April, as one FHIR transaction bundle.
const APRIL: &[u8] =
    include_bytes!("../../../../testdata/clinosim-150/diff-transaction-bundle.json.gz");

/// Resource types that first occur in April.
const NEW_IN_APRIL: &[&str] = &[
    "ClinicalImpression",
    "DeviceUseStatement",
    "DocumentReference",
    "Endpoint",
    "ImagingStudy",
];

/// Resource types that belong to the hospital, not to a patient.
const WITHOUT_PATIENT: &[&str] = &[
    "Location",
    "Organization",
    "Practitioner",
    "PractitionerRole",
    "Endpoint",
    "Device",
];

/// The guarded database.
pub(super) struct Hospital {
    path: PathBuf,
    db: Connection,
}

/// A record that an insider picked.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) table: String,
    pub(super) id: String,
    pub(super) patient: String,
    pub(super) value: String,
}

/// One change of the bundle.
pub(super) struct Change {
    kind: String,
    resource: Value,
    is_update: bool,
    actor: String,
}

impl Hospital {
    /// Makes the database and fills it with the first snapshot.
    pub(super) fn create(path: &Path, mut progress: impl FnMut(u64)) -> Result<Self, Failure> {
        let mut db = Connection::open(path).map_err(Failure::service)?;
        db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
            .map_err(Failure::service)?;
        for kind in Self::kinds() {
            let sql = format!(
                "CREATE TABLE {} (id TEXT PRIMARY KEY NOT NULL, {COLUMNS})",
                table_of(kind)
            );
            db.execute_batch(&sql).map_err(Failure::service)?;
        }
        let tx = db.transaction().map_err(Failure::service)?;
        let mut loaded = 0;
        for (kind, compressed) in SNAPSHOT {
            for line in unpack(compressed)?.lines() {
                let resource: Value = serde_json::from_str(line).map_err(Failure::input)?;
                upsert(&tx, kind, &resource)?;
                loaded += 1;
                progress(loaded);
            }
        }
        tx.commit().map_err(Failure::service)?;
        Ok(Self {
            path: path.to_owned(),
            db,
        })
    }

    /// All resource types, in order.
    pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
        SNAPSHOT
            .iter()
            .map(|(kind, _)| *kind)
            .chain(NEW_IN_APRIL.iter().copied())
    }

    /// `[source.patient]`: whose record a row is.
    pub(super) fn patient_paths() -> BTreeMap<String, String> {
        let with_patient = Self::kinds().filter(|kind| !WITHOUT_PATIENT.contains(kind));
        with_patient
            .map(|kind| {
                (
                    table_of(kind),
                    if kind == "Patient" {
                        "id".into()
                    } else {
                        "patient".into()
                    },
                )
            })
            .collect()
    }

    /// `[source.resources]`: which table holds which resources.
    pub(super) fn resources() -> BTreeMap<String, String> {
        Self::kinds()
            .map(|kind| (kind.to_owned(), table_of(kind)))
            .collect()
    }

    /// The month's changes.
    pub(super) fn april() -> Result<Vec<Change>, Failure> {
        let mut bundle: Value = serde_json::from_str(&unpack(APRIL)?).map_err(Failure::input)?;
        let Value::Array(entries) = bundle["entry"].take() else {
            return Ok(Vec::new());
        };
        Ok(entries
            .into_iter()
            .map(|mut entry| {
                let resource = entry["resource"].take();
                Change {
                    kind: text(&resource["resourceType"]),
                    is_update: entry["request"]["method"] == "PUT",
                    actor: actor_of(&resource),
                    resource,
                }
            })
            .collect())
    }

    /// Applies changes as the hospital's application does: one transaction
    /// for each run of changes by one person, in a bracket that names them.
    pub(super) fn apply(
        &mut self,
        changes: &[Change],
        mut progress: impl FnMut(u64),
    ) -> Result<(u64, u64), Failure> {
        let (mut created, mut updated) = (0, 0);
        for run in changes.chunk_by(|a, b| a.actor == b.actor) {
            for part in run.chunks(25) {
                let tx = self.db.transaction().map_err(Failure::service)?;
                tx.execute(
                    "INSERT INTO pitser_begin (actor, app, purpose) VALUES (?1, 'clinic-ehr', 'TREAT')",
                    [&part[0].actor],
                )
                .map_err(Failure::service)?;
                for change in part {
                    upsert(&tx, &change.kind, &change.resource)?;
                    *if change.is_update {
                        &mut updated
                    } else {
                        &mut created
                    } += 1;
                }
                tx.execute("INSERT INTO pitser_end DEFAULT VALUES", [])
                    .map_err(Failure::service)?;
                tx.commit().map_err(Failure::service)?;
                progress(created + updated);
            }
        }
        Ok((created, updated))
    }

    /// `AuditEvent`s for the application's reads: a doctor looks at the
    /// observations of each of the first `patients` patients, and one search
    /// goes over many. They are reported as of `now` (RFC 3339).
    pub(super) fn reads(&self, patients: usize, now: &str) -> Result<Vec<String>, Failure> {
        let mut query = self
            .db
            .prepare(
                "SELECT patient, min(id), max(id) FROM observation WHERE patient IS NOT NULL \
                 GROUP BY patient ORDER BY patient LIMIT ?1",
            )
            .map_err(Failure::service)?;
        let rows: Vec<(String, String, String)> = query
            .query_map([patients], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .and_then(Iterator::collect)
            .map_err(Failure::service)?;
        let doctors = ["DR-IM-006", "DR-ON-002", "DR-EM-004"];
        let mut events = Vec::new();
        for (number, (patient, first, last)) in rows.iter().enumerate() {
            let doctor = doctors[number % doctors.len()];
            events.push(read_event(
                number,
                now,
                doctor,
                &[patient.as_str()],
                &[first, last],
            ));
        }
        let all: Vec<&str> = rows
            .iter()
            .map(|(patient, _, _)| patient.as_str())
            .collect();
        events.push(read_event(rows.len(), now, "DR-IM-006", &all, &[]));
        Ok(events)
    }

    /// The record that the first insider will edit: a measured value whose
    /// digits stand in the file.
    pub(super) fn value_to_edit(&self) -> Result<Target, Failure> {
        self.pick(
            "SELECT id, patient, value FROM observation WHERE value GLOB '[1-8]*[0-9] [a-zA-Z%]*' \
             AND patient IN (SELECT patient FROM observation GROUP BY patient HAVING count(*) BETWEEN 20 AND 60) \
             ORDER BY recorded DESC, id LIMIT 1",
        )
    }

    /// The record that the second insider will delete: of another patient.
    pub(super) fn row_to_delete(&self, other: &Target) -> Result<Target, Failure> {
        let sql = format!(
            "SELECT id, patient, coalesce(value, '') FROM observation WHERE patient <> '{}' ORDER BY id LIMIT 1",
            other.patient.replace('\'', "''")
        );
        self.pick(&sql)
    }

    fn pick(&self, sql: &str) -> Result<Target, Failure> {
        let target = self
            .db
            .query_row(sql, [], |row| {
                Ok(Target {
                    table: "observation".into(),
                    id: row.get(0)?,
                    patient: row.get(1)?,
                    value: row.get(2)?,
                })
            })
            .optional()
            .map_err(Failure::service)?;
        target.ok_or_else(|| Failure::Service("the demo's data has no fitting observation".into()))
    }

    /// Edits one digit of a stored value in the database file itself. No SQL
    /// statement runs, so no trigger can notice.
    pub(super) fn edit_file(&self, target: &Target) -> Result<(u64, String), Failure> {
        self.checkpoint()?;
        let mut bytes = std::fs::read(&self.path).map_err(Failure::service)?;
        let (recorded, code, status): (String, String, String) = self
            .db
            .query_row(
                "SELECT recorded, coalesce(code, ''), coalesce(status, '') FROM observation WHERE id = ?1",
                [&target.id],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .map_err(Failure::service)?;
        // A record's text columns stand in the file one after the other.
        let stored = [
            target.id.as_str(),
            &target.patient,
            &status,
            &code,
            &recorded,
            &target.value,
        ]
        .concat()
        .into_bytes();
        let at = bytes
            .windows(stored.len())
            .position(|window| window == stored)
            .ok_or_else(|| {
                Failure::Service("the record was not found in the database file".into())
            })?
            + stored.len()
            - target.value.len();
        bytes[at] += 1;
        let edited = String::from_utf8_lossy(&bytes[at..at + target.value.len()]).into_owned();
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options()
            .write(true)
            .open(&self.path)
            .map_err(Failure::service)?;
        file.write_all_at(&bytes[at..=at], at as u64)
            .map_err(Failure::service)?;
        file.sync_all().map_err(Failure::service)?;
        Ok((at as u64, edited))
    }

    /// Moves everything from SQLite's write-ahead log into the file.
    fn checkpoint(&self) -> Result<(), Failure> {
        for _ in 0..100 {
            let busy: i64 = self
                .db
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
                .map_err(Failure::service)?;
            if busy == 0 {
                return Ok(());
            }
        }
        Err(Failure::Service(
            "the database is too busy to be checkpointed".into(),
        ))
    }

    /// Deletes a record with plain SQL, naming nobody.
    pub(super) fn delete_row(&self, target: &Target) -> Result<(), Failure> {
        self.db
            .execute("DELETE FROM observation WHERE id = ?1", [&target.id])
            .map_err(Failure::service)?;
        Ok(())
    }
}

fn upsert(db: &Connection, kind: &str, resource: &Value) -> Result<(), Failure> {
    let sql = format!(
        "INSERT INTO {} (id, patient, status, code, recorded, value, resource) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
         ON CONFLICT (id) DO UPDATE SET patient = excluded.patient, status = excluded.status, code = excluded.code, \
         recorded = excluded.recorded, value = excluded.value, resource = excluded.resource",
        table_of(kind)
    );
    let row = params![
        text(&resource["id"]),
        patient_of(kind, resource),
        known(&resource["status"])
            .or_else(|| known(&resource["clinicalStatus"]["coding"][0]["code"])),
        known(&resource["code"]["text"])
            .or_else(|| known(&resource["code"]["coding"][0]["display"])),
        known(&resource["effectiveDateTime"])
            .or_else(|| known(&resource["meta"]["lastUpdated"]))
            .unwrap_or_default(),
        value_of(resource),
        resource.to_string(),
    ];
    db.prepare_cached(&sql)
        .and_then(|mut q| q.execute(row))
        .map_err(Failure::service)?;
    Ok(())
}

fn table_of(kind: &str) -> String {
    let mut table = String::new();
    for (index, letter) in kind.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            table.push('_');
        }
        table.push(letter.to_ascii_lowercase());
    }
    table
}

fn patient_of(kind: &str, resource: &Value) -> Option<String> {
    if WITHOUT_PATIENT.contains(&kind) {
        return None;
    }
    if kind == "Patient" {
        return known(&resource["id"]);
    }
    ["subject", "patient", "beneficiary"]
        .iter()
        .find_map(|member| known(&resource[*member]["reference"]))
        .and_then(|reference| reference.strip_prefix("Patient/").map(str::to_owned))
}

fn value_of(resource: &Value) -> Option<String> {
    let quantity = &resource["valueQuantity"];
    if quantity["value"].is_number() {
        return Some(format!("{} {}", quantity["value"], text(&quantity["unit"])));
    }
    known(&resource["valueCodeableConcept"]["text"]).or_else(|| known(&resource["valueString"]))
}

/// The person whom a resource names as its author.
fn actor_of(resource: &Value) -> String {
    [
        "performer",
        "recorder",
        "requester",
        "author",
        "asserter",
        "participant",
    ]
    .iter()
    .map(|member| &resource[*member])
    .map(|value| if value.is_array() { &value[0] } else { value })
    .find_map(|value| {
        known(&value["reference"])
            .or_else(|| known(&value["actor"]["reference"]))
            .or_else(|| known(&value["individual"]["reference"]))
    })
    .and_then(|reference| reference.strip_prefix("Practitioner/").map(str::to_owned))
    .unwrap_or_else(|| "ward-clerk-1".into())
}

fn read_event(
    number: usize,
    now: &str,
    doctor: &str,
    patients: &[&str],
    observations: &[&str],
) -> String {
    let entity = |reference: String, kind: &str, role: &str| serde_json::json!({ "what": { "reference": reference }, "type": { "code": kind }, "role": { "code": role } });
    let entities: Vec<Value> = patients
        .iter()
        .map(|patient| entity(format!("Patient/{patient}"), "1", "1"))
        .chain(
            observations
                .iter()
                .map(|id| entity(format!("Observation/{id}"), "2", "4")),
        )
        .collect();
    let (action, subtype) = if observations.is_empty() {
        ("E", "search")
    } else {
        ("R", "read")
    };
    serde_json::json!({
        "resourceType": "AuditEvent",
        "id": format!("demo-read-{number}"),
        "type": { "system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest" },
        "subtype": [{ "system": "http://hl7.org/fhir/restful-interaction", "code": subtype }],
        "action": action,
        "recorded": now,
        "outcome": "0",
        "purposeOfEvent": [{ "coding": [{ "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREAT" }] }],
        "agent": [
            { "type": { "coding": [{ "system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP" }] },
              "who": { "identifier": { "system": "http://hospital.example.org/staff", "value": doctor } }, "requestor": true },
            { "type": { "coding": [{ "system": "http://dicom.nema.org/resources/ontology/DCM", "code": "110152" }] },
              "who": { "display": "clinic-ehr" }, "requestor": false, "network": { "address": "10.0.8.14", "type": "2" } },
            { "type": { "coding": [{ "system": "http://dicom.nema.org/resources/ontology/DCM", "code": "110153" }] },
              "who": { "display": "fhir.hospital.example.org" }, "requestor": false, "network": { "address": "10.0.8.2", "type": "2" } }
        ],
        "source": { "observer": { "display": "fhir.hospital.example.org" } },
        "entity": entities,
    })
    .to_string()
}

fn unpack(compressed: &[u8]) -> Result<String, Failure> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(compressed)
        .read_to_string(&mut text)
        .map_err(Failure::input)?;
    Ok(text)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn known(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
