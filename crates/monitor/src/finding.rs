//! Findings in clear, and the incidents that they open.

use pitser_capture::{Cell, Key};
use pitser_evidence::Code;
use pitser_evidence::codec::Bytes32;
use std::collections::BTreeMap;

/// Something that is wrong, with names in clear for those who may see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub code: Code,
    /// The table.
    pub table: Option<String>,
    /// The record's key in clear.
    pub key: Option<Key>,
    /// The record's opaque key, as in the trail.
    pub record: Option<Bytes32>,
    /// Columns that differ or changed.
    pub columns: Vec<String>,
    /// The trail line that is concerned.
    pub about: Option<u64>,
    /// One sentence without keys and values.
    pub text: String,
}

impl Finding {
    /// A finding about no record in particular.
    pub fn general(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            table: None,
            key: None,
            record: None,
            columns: Vec::new(),
            about: None,
            text: text.into(),
        }
    }

    fn identity(&self) -> Identity {
        // What happened once is an event of its own; a wrong row stays
        // the same incident however often it is looked at.
        let event = match self.code {
            Code::Unattributed
            | Code::OutsideApplication
            | Code::CaptureGap
            | Code::DatabaseRewound
            | Code::CaptureWeakened
            | Code::Truncated
            | Code::SchemaChanged => self.about,
            _ => None,
        };
        (
            self.code,
            self.table.clone(),
            self.record,
            event,
            self.columns.clone(),
        )
    }
}

type Identity = (
    Code,
    Option<String>,
    Option<Bytes32>,
    Option<u64>,
    Vec<String>,
);

/// An incident: a finding and its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// What was found.
    pub finding: Finding,
    /// When it was first found, in microseconds since 1970.
    pub found_at: u64,
    /// The finding's own trail line.
    pub line: Option<u64>,
    /// False once a later check no longer finds it.
    pub open: bool,
}

/// All incidents of a source.
#[derive(Debug, Default)]
pub struct Incidents(BTreeMap<Identity, Incident>);

impl Incidents {
    /// Notes a finding; `true` if it is new and belongs into the trail.
    pub fn note(&mut self, finding: Finding, found_at: u64) -> bool {
        let known = self.0.get_mut(&finding.identity());
        match known {
            Some(incident) if incident.open => {
                incident.finding.key = incident.finding.key.take().or(finding.key);
                false
            }
            _ => {
                let incident = Incident {
                    found_at,
                    line: None,
                    open: true,
                    finding,
                };
                self.0.insert(incident.finding.identity(), incident);
                true
            }
        }
    }

    /// Says in which trail line a finding was written.
    pub fn written(&mut self, finding: &Finding, line: u64) {
        if let Some(incident) = self.0.get_mut(&finding.identity()) {
            incident.line = Some(line);
        }
    }

    /// After a whole scan: whatever it did not find again is closed.
    pub fn settle(&mut self, scanned: &[Finding]) {
        for incident in self.0.values_mut() {
            if can_close(incident.finding.code)
                && !scanned
                    .iter()
                    .any(|f| f.identity() == incident.finding.identity())
            {
                incident.open = false;
            }
        }
    }

    /// All incidents, open and closed, in the order in which they were found.
    pub fn all(&self) -> Vec<&Incident> {
        let mut all: Vec<_> = self.0.values().collect();
        all.sort_by_key(|incident| (incident.found_at, incident.line));
        all
    }
}

/// True if a later scan can find that it is so no longer; other findings are
/// events, and stay.
pub fn can_close(code: Code) -> bool {
    matches!(code, Code::RowDiffers | Code::RowMissing | Code::RowUnknown)
}

/// A key's cells as trail drafts carry them; NULL as no bytes, which no value has.
pub fn key_cells(key: &Key) -> Vec<Vec<u8>> {
    key.cells()
        .iter()
        .map(|cell| cell.expose().unwrap_or_default().to_vec())
        .collect()
}

/// The key that [`key_cells`] gave these cells for.
pub fn key_of(cells: impl IntoIterator<Item = Vec<u8>>) -> Key {
    let cell = |bytes: Vec<u8>| {
        if bytes.is_empty() {
            Cell::NULL
        } else {
            Cell::new(bytes)
        }
    };
    Key::new(cells.into_iter().map(cell).collect())
}

/// A key as a person reads it: the values without their type letters, joined
/// by commas. In clear: for those who run the guardian, never for logs.
pub fn show_key(key: &Key) -> String {
    let shown = key.cells().iter().map(|cell| match cell.expose() {
        None => "NULL".to_owned(),
        Some(bytes) => String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned(),
    });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(code: Code, about: u64) -> Finding {
        Finding {
            about: Some(about),
            record: Some(Bytes32([1; 32])),
            ..Finding::general(code, "x")
        }
    }

    #[test]
    fn a_wrong_row_is_one_incident_until_it_is_mended() {
        let mut incidents = Incidents::default();
        let wrong = finding(Code::RowDiffers, 4);
        assert!(incidents.note(wrong.clone(), 1));
        assert!(!incidents.note(wrong.clone(), 2));
        incidents.settle(std::slice::from_ref(&wrong));
        assert!(incidents.all()[0].open);
        incidents.settle(&[]);
        assert!(!incidents.all()[0].open);
        assert!(
            incidents.note(wrong, 3),
            "a mended row that is wrong again is a new incident"
        );
    }

    #[test]
    fn each_unattributed_change_is_an_incident_that_scans_do_not_close() {
        let mut incidents = Incidents::default();
        assert!(incidents.note(finding(Code::Unattributed, 4), 1));
        assert!(incidents.note(finding(Code::Unattributed, 5), 1));
        incidents.settle(&[]);
        assert!(incidents.all().iter().all(|i| i.open));
    }
}
