//! Findings in clear, and the incidents that they open.

use pitser_capture::{Cell, Key};
use pitser_evidence::Code;
use pitser_evidence::codec::Bytes32;
use std::collections::{BTreeMap, BTreeSet};

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
        (
            self.code,
            self.table.clone(),
            self.record,
            self.event(),
            self.columns.clone(),
        )
    }

    /// What happened once is an event of its own; a wrong row stays the same incident
    /// however often it is looked at.
    fn event(&self) -> Option<u64> {
        match self.code {
            Code::Unattributed
            | Code::OutsideApplication
            | Code::CaptureGap
            | Code::DatabaseRewound
            | Code::CaptureWeakened
            | Code::Truncated
            | Code::SchemaChanged
            | Code::ClockDisagrees => self.about,
            _ => None,
        }
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
    /// False once a later check no longer finds it, or somebody answers for it.
    pub open: bool,
    /// Who answers for it, if somebody does.
    pub accepted: Option<Accepted>,
}

/// Somebody has looked into a finding and answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The acceptance's own trail line.
    pub line: u64,
    /// When, in microseconds since 1970.
    pub at: u64,
    /// Who; `None` if that cannot be opened any more.
    pub by: Option<String>,
    /// Why; `None` if that cannot be opened any more.
    pub reason: Option<String>,
}

/// Why a finding cannot be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// No line of that number is a finding.
    #[error("it is no finding; `pitser guard status` lists them with their lines")]
    NoFinding,
    /// A scan no longer finds it.
    #[error("it is closed: the last scan found the row as it was sealed")]
    Closed,
    /// It was.
    #[error("it was accepted before, by line {0}")]
    Before(u64),
    /// The row is not as it was sealed.
    #[error(
        "the row is not as it was sealed, and no word of anybody changes that. Restore the sealed values, or have the right ones entered through the application; the next scan closes the finding"
    )]
    RowDiffers,
    /// The trail itself, or a seal, is wrong.
    #[error(
        "it says that the trail itself or a seal is wrong, and that is not for its guardian's people to wave through: keep the folder, compare it with the witnesses' heads and an earlier copy"
    )]
    Trail,
}

/// Whether people can answer for a finding of that code: it tells of something that
/// happened, not of what is still wrong.
///
/// # Errors
/// [`NotAccepted`] says why not.
pub fn can_accept(code: Code) -> Result<(), NotAccepted> {
    match code {
        Code::CaptureGap
        | Code::DatabaseRewound
        | Code::CaptureWeakened
        | Code::Truncated
        | Code::SchemaChanged
        | Code::Unattributed
        | Code::OutsideApplication
        | Code::ReadOutsideRules
        | Code::Unsealed
        | Code::ClockDisagrees => Ok(()),
        Code::RowDiffers | Code::RowMissing | Code::RowUnknown => Err(NotAccepted::RowDiffers),
        Code::LineAltered
        | Code::BlockMissing
        | Code::TrailShort
        | Code::TrailForked
        | Code::SealInvalid
        | Code::EvidenceAltered
        | Code::OpeningInvalid
        | Code::SubjectMismatch => Err(NotAccepted::Trail),
    }
}

/// All incidents of a source.
#[derive(Debug, Default)]
pub struct Incidents {
    all: BTreeMap<Identity, Incident>,
    /// By the finding's line; one that was found anew since has another there.
    by_line: BTreeMap<u64, Identity>,
}

impl Incidents {
    /// Notes a finding; `true` if it is new and belongs into the trail.
    pub fn note(&mut self, finding: Finding, found_at: u64) -> bool {
        let known = self.all.get_mut(&finding.identity());
        match known {
            // The same event is not found anew because somebody answered for it.
            Some(incident)
                if incident.open
                    || (incident.accepted.is_some() && incident.finding.event().is_some()) =>
            {
                incident.finding.key = incident.finding.key.take().or(finding.key);
                false
            }
            _ => {
                let incident = Incident {
                    found_at,
                    line: None,
                    open: true,
                    accepted: None,
                    finding,
                };
                self.all.insert(incident.finding.identity(), incident);
                true
            }
        }
    }

    /// Says in which trail line a finding was written.
    pub fn written(&mut self, finding: &Finding, line: u64) {
        let identity = finding.identity();
        if let Some(incident) = self.all.get_mut(&identity) {
            incident.line = Some(line);
            self.by_line.insert(line, identity);
        }
    }

    /// Whether the finding of trail line `line` may be accepted now.
    ///
    /// # Errors
    /// [`NotAccepted`].
    pub fn may_accept(&self, line: u64) -> Result<(), NotAccepted> {
        let identity = self.by_line.get(&line);
        let incident = identity.and_then(|identity| self.all.get(identity));
        let incident = incident.filter(|it| it.line == Some(line));
        let incident = incident.ok_or(NotAccepted::NoFinding)?;
        match &incident.accepted {
            Some(accepted) => Err(NotAccepted::Before(accepted.line)),
            None if !incident.open => Err(NotAccepted::Closed),
            None => can_accept(incident.finding.code),
        }
    }

    /// The finding of trail line `line` is accepted by a line of the trail: it is open
    /// no more. Nothing happens to one that may not be.
    pub fn accept(&mut self, line: u64, accepted: Accepted) {
        if self.may_accept(line).is_err() {
            return;
        }
        let identity = self.by_line.get(&line);
        if let Some(incident) = identity.and_then(|identity| self.all.get_mut(identity)) {
            incident.open = false;
            incident.accepted = Some(accepted);
        }
    }

    /// After a whole scan: whatever it did not find again is closed.
    pub fn settle(&mut self, scanned: &[Finding]) {
        let again: BTreeSet<Identity> = scanned.iter().map(Finding::identity).collect();
        for (identity, incident) in &mut self.all {
            if can_close(incident.finding.code) && !again.contains(identity) {
                incident.open = false;
            }
        }
    }

    /// All incidents, open and closed, in the order in which they were found.
    pub fn all(&self) -> Vec<&Incident> {
        let mut all: Vec<_> = self.all.values().collect();
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

    fn accepted(line: u64) -> Accepted {
        Accepted {
            line,
            at: 9,
            by: Some("Mari Maasikas".into()),
            reason: Some("the nightly import".into()),
        }
    }

    #[test]
    fn an_accepted_event_stays_accepted_and_the_next_one_is_new() {
        let mut incidents = Incidents::default();
        let first = finding(Code::Unattributed, 4);
        incidents.note(first.clone(), 1);
        assert_eq!(incidents.may_accept(5), Err(NotAccepted::NoFinding));
        incidents.written(&first, 5);
        assert_eq!(incidents.may_accept(5), Ok(()));
        incidents.accept(5, accepted(6));
        assert!(!incidents.all()[0].open);
        assert_eq!(incidents.may_accept(5), Err(NotAccepted::Before(6)));
        incidents.accept(5, accepted(7));
        let by = incidents.all()[0].accepted.as_ref().map(|it| it.line);
        assert_eq!(by, Some(6));
        assert!(!incidents.note(first, 2), "it is the same event");
        assert!(incidents.note(finding(Code::Unattributed, 8), 3));
        let clocks = Finding::general(Code::ClockDisagrees, "x");
        incidents.note(clocks.clone(), 4);
        incidents.written(&clocks, 10);
        incidents.accept(10, accepted(11));
        assert!(
            incidents.note(clocks, 5),
            "what has no event of its own is found again"
        );
    }

    #[test]
    fn nobody_answers_for_a_row_that_is_wrong_or_for_the_trail() {
        for code in Code::ALL {
            let mut incidents = Incidents::default();
            let finding = finding(*code, 4);
            incidents.note(finding.clone(), 1);
            incidents.written(&finding, 5);
            incidents.accept(5, accepted(6));
            let code = code.as_str();
            let is_event = ["ACT-", "CAP-"].iter().any(|area| code.starts_with(area))
                || ["SEAL-01", "CLK-01"].contains(&code);
            assert_eq!(incidents.all()[0].open, !is_event, "{code}");
        }
        let mut incidents = Incidents::default();
        let mended = finding(Code::RowDiffers, 4);
        incidents.note(mended.clone(), 1);
        incidents.written(&mended, 5);
        incidents.settle(&[]);
        assert_eq!(incidents.may_accept(5), Err(NotAccepted::Closed));
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
