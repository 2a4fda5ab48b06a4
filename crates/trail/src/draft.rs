//! A line before it is committed: what happened, in clear, on its way into the
//! vault and, as commitments and pseudonyms, into the trail.

use pitser_evidence::Code;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::line::{Acceptance, Binding, Ddl, Finding, Gap, Op, Release, Timestamp};
use smallvec::SmallVec;
use std::fmt;
use std::sync::Arc;

/// One line to be. Everything in clear here; `Debug` shows none of it.
#[derive(Clone)]
pub struct Draft {
    /// What happened.
    pub op: Op,
    /// When, by the engine's clock.
    pub at: Timestamp,
    /// The input that reports it.
    pub source: String,
    /// Place in that input.
    pub pos: String,
    /// The engine's transaction number.
    pub tx: Option<u64>,
    /// Table or resource type.
    pub table: Option<String>,
    /// Canonical values of the record's key columns.
    pub key: Option<Vec<Vec<u8>>>,
    /// The record's opaque key, where it was already made of `table` and `key`
    /// ([`Trail::record_key`](crate::Trail::record_key)); made of them where not.
    pub record: Option<Bytes32>,
    /// Whose record it is.
    pub patient: Option<PatientId>,
    /// Who did it.
    pub actor: Option<DraftActor>,
    /// Purpose of use.
    pub purpose: Option<String>,
    /// Names of the columns that changed.
    pub columns: Option<Arc<[String]>>,
    /// The whole row afterwards.
    pub row: Option<Row>,
    /// Whether the vault keeps the row itself, or only its columns' marks.
    pub image: bool,
    /// The raw message, which all lines of an event have.
    pub raw: Option<Arc<[u8]>>,
    /// What else the operation needs.
    pub body: Option<Box<Body>>,
}

impl Draft {
    /// A draft with only what every line has.
    pub fn new(op: Op, at: Timestamp, source: &str, pos: impl Into<String>) -> Self {
        Self {
            op,
            at,
            source: source.to_owned(),
            pos: pos.into(),
            tx: None,
            table: None,
            key: None,
            record: None,
            patient: None,
            actor: None,
            purpose: None,
            columns: None,
            row: None,
            image: true,
            raw: None,
            body: None,
        }
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Draft({} of {:?} from {})",
            self.op.as_str(),
            self.table,
            self.source
        )
    }
}

/// A row in clear. `Debug` shows no value.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// Column names in the table's order, shared by all rows of one shape.
    pub names: Arc<[String]>,
    /// Canonical values, one for each name; `None` for NULL.
    pub values: Vec<Option<Value>>,
}

/// A value in canonical form. Most are short, and a row has many: those take no memory
/// of their own.
pub type Value = SmallVec<[u8; 24]>;

impl Row {
    /// Names with their values, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let values = self.values.iter().map(Option::as_deref);
        self.names.iter().map(String::as_str).zip(values)
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} columns)", self.names.len())
    }
}

/// What some operations carry besides.
#[derive(Clone)]
pub enum Body {
    /// Something is wrong.
    Finding(Finding),
    /// Something is wrong with this event: a finding about its first line, which has no
    /// number before it is written.
    EventFinding {
        /// What is wrong.
        code: Code,
        /// As a finding has it.
        text: String,
    },
    /// Capture did not see everything.
    Gap(Gap),
    /// The schema changed.
    Ddl(Ddl),
    /// A finding is accepted, by the draft's actor and for the reason in its `raw`.
    Accept(Acceptance),
    /// A hold ends, by the draft's actor and for the reason in its `raw`.
    Release(Release),
    /// A patient's key is to be destroyed: on what basis, and who decided.
    Erase {
        /// Stands in the line in clear.
        basis: String,
        /// Two names; they go to the vault.
        deciders: [String; 2],
    },
}

/// Whose record a line is about, in clear.
#[derive(Clone, PartialEq, Eq)]
pub enum PatientId {
    /// The patient's identifier in the database.
    Id(String),
    /// Only the pseudonym is known: the vault has lost the identifier, as one does that was
    /// put back from a backup.
    Pseudonym(Bytes32),
    /// Only the pseudonym is known, and has no key: the patient was erased. What the line
    /// commits to is under its table's.
    Erased(Bytes32),
    /// More patients than are listed one by one.
    Many,
    /// Cannot be determined.
    Unknown,
}

impl fmt::Debug for PatientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id(_) => "Id(private)",
            Self::Pseudonym(_) => "Pseudonym",
            Self::Erased(_) => "Erased",
            Self::Many => "Many",
            Self::Unknown => "Unknown",
        })
    }
}

/// Who did it, in clear.
#[derive(Clone)]
pub struct DraftActor {
    /// Application.
    pub app: Option<String>,
    /// How far the person is proved.
    pub binding: Binding,
    /// Client address.
    pub client: Option<String>,
    /// The person; goes to the vault.
    pub person: Option<String>,
    /// Database role.
    pub role: Option<String>,
}

impl DraftActor {
    /// An approver whose token was checked (binding B).
    pub fn approver(name: &str) -> Self {
        Self {
            app: None,
            binding: Binding::B,
            client: None,
            person: Some(name.to_owned()),
            role: None,
        }
    }
}

impl fmt::Debug for DraftActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "DraftActor(app {:?}, role {:?}, binding {:?})",
            self.app, self.role, self.binding
        )
    }
}
