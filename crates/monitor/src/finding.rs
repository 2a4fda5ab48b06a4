//! Findings in clear.

use crate::newest::Kind;
use pitser_capture::{Cell, Key};
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};

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

    /// Under what it is counted.
    pub fn kind(&self) -> Kind {
        (self.code, self.table.clone())
    }

    /// Whether both are the same incident, if they are of one kind.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.record, self.event()) == (other.record, other.event())
            && self.columns == other.columns
    }

    /// What it is besides its kind, in brief: the same for the same incident.
    pub(crate) fn brief(&self) -> u128 {
        let record = self.record.map_or([0; 32], |record| record.0);
        let columns = self.columns.iter().flat_map(|it| [it.as_bytes(), &[0xff]]);
        let parts: Vec<&[u8]> = std::iter::once(record.as_slice()).chain(columns).collect();
        let digest = Digest::of(&parts);
        let half = digest.0.digest().first_chunk();
        let half = half.expect("32 bytes are more than 16");
        u128::from_be_bytes(*half)
    }

    /// Whether it tells of something that happened once.
    pub fn is_event(&self) -> bool {
        // Blocks wait until they are sealed, whoever answers for it.
        self.event().is_some() && self.code != Code::Unsealed
    }

    /// Whether a scan can say of one row that it is so no longer.
    pub(crate) fn is_of_row(&self) -> bool {
        can_close(self.code) && self.record.is_some()
    }

    /// Whether it may be one of many, and is known again without being kept: it tells
    /// of one event, or its record's list in the trail has it.
    pub fn may_be_counted(&self) -> bool {
        self.is_event() || self.is_of_row()
    }

    /// What happened once is an event of its own; a wrong row stays the same incident
    /// however often it is looked at.
    fn event(&self) -> Option<u64> {
        match self.code {
            Code::Unattributed
            | Code::OutsideApplication
            | Code::RowReplaced
            | Code::CaptureGap
            | Code::DatabaseRewound
            | Code::CaptureWeakened
            | Code::Truncated
            | Code::SchemaChanged
            | Code::Unsealed
            | Code::ClockDisagrees => self.about,
            _ => None,
        }
    }
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
    /// It was, by that line, if it is still known.
    #[error("it was accepted before{}", .0.map_or(String::new(), |line| format!(", by line {line}")))]
    Before(Option<u64>),
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
        Code::RowReplaced
        | Code::CaptureGap
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

/// What can be wrong with a row as it is now.
pub const OF_LIVE_ROWS: [Code; 3] = [Code::RowDiffers, Code::RowMissing, Code::RowUnknown];

/// True if a later scan can find that it is so no longer; other findings are
/// events, and stay.
pub fn can_close(code: Code) -> bool {
    OF_LIVE_ROWS.contains(&code)
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
