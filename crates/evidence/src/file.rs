//! The evidence file: everything an outsider needs about one patient
//! (docs/spec/35-evidence.md).
//!
//! One canonical JSON object and a line feed. Trail lines stand in it as
//! objects; since both are canonical, their bytes are those of the trail.
//! Nothing in the file is trusted: each statement either follows from the
//! verifier's anchors or is checked against one that does, and the whole is
//! signed with the trail's own key, so that no byte is without meaning.

use crate::codec::{
    Blob, Bytes32, CodecError, bounded, digest_of, elements, from_canonical, to_canonical,
};
use crate::commit::column_leaf;
use crate::line::{Line, Patient};
use crate::map::Path;
use serde::{Deserialize, Serialize};

/// The format of a file without proofs from a calendar's log.
pub const FORMAT: &str = "pitser-evidence/1";

/// The same with such proofs, and nothing else that is new.
pub const FORMAT_WITNESSED: &str = "pitser-evidence/2";

/// With or without such proofs, a file that has a shared list not from its beginning.
pub const FORMAT_PARTIAL: &str = "pitser-evidence/3";

/// With or without any of that, a file of which values stand in files of their own.
pub const FORMAT_APART: &str = "pitser-evidence/4";

/// Longest evidence file read, in bytes: 256 MiB.
pub const MAX_FILE: usize = 256 << 20;

/// Most elements of the lists `blocks`, `calendar` and `lines` together. A line comes
/// with some 550 bytes at least, so that a file of [`MAX_FILE`] has fewer.
pub const MAX_PROOFS: usize = 1 << 19;

/// Most elements of all lists in a file, however deep. Each comes with some 100 bytes, on
/// the average of files that somebody means to be read.
pub const MAX_ELEMENTS: usize = 1 << 22;

/// A whole evidence file. Members stand in canonical order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The auditor's signed statement on the head, as a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
    /// The blocks that the lines and the map's root stand in, by number.
    pub blocks: Vec<BlockProof>,
    /// Proofs that seconds were witnessed, of seals and of the publications that
    /// they lead to, as `tlog-proof` texts in the order of their seconds; set with
    /// [`Evidence::set_calendar`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calendar: Vec<String>,
    /// The oldest that has all that is there: [`Evidence::oldest_format`].
    pub format: String,
    /// Line 0 of the trail.
    pub genesis: Line,
    /// The cosigned head, as a note.
    pub head: String,
    /// The patient's lines and those of the pseudo-patients, by `seq`.
    pub lines: Vec<LineProof>,
    /// That these are all.
    pub map: MapProof,
    /// Name of the trail.
    pub origin: String,
    /// A publications file, to be checked against the verifier's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publications: Option<Blob>,
    /// Signature line of the trail's key over all the rest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
    /// Whom the evidence is about.
    pub subject: Subject,
}

/// One block: its log entry, the entry's place in the log, and its seal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockProof {
    /// Block number.
    pub block: u64,
    /// The log entry.
    pub leaf: Blob,
    /// Inclusion proof under the head, bottom-up.
    pub path: Vec<Bytes32>,
    /// The KSI-compatible signature, if it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Blob>,
}

/// One line with its place in its block and what of it is disclosed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineProof {
    /// Block number.
    pub block: u64,
    /// Record chain (RECSIG12 element 0907).
    pub chain: Blob,
    /// The line.
    pub line: Line,
    /// What the line's commitments hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<Opening>,
}

/// Disclosed contents of a line's commitments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// All columns of the row, in the table's order; hidden ones as a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<OpenColumn>>,
    /// The person behind the actor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<OpenPerson>,
    /// The raw message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<OpenRaw>,
}

/// One column: hidden (only its leaf), open with nonce and value, or apart, with nonce and
/// leaf: then its value stands in a file of its own ([`Evidence::apart`]).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenColumn {
    /// The value where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Blob>,
    /// Leaf of a column whose value is not in this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Bytes32>,
    /// Column name.
    pub name: String,
    /// Its nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Bytes32>,
    /// The engine's canonical value; absent with `bytes` absent is NULL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl OpenColumn {
    /// A disclosed column.
    pub fn open(name: &str, nonce: Bytes32, value: Option<&[u8]>) -> Self {
        let text = value
            .and_then(|v| std::str::from_utf8(v).ok())
            .map(str::to_owned);
        let bytes = if text.is_none() {
            value.map(|v| Blob(v.to_vec()))
        } else {
            None
        };
        Self {
            bytes,
            hidden: None,
            name: name.to_owned(),
            nonce: Some(nonce),
            value: text,
        }
    }

    /// A disclosed column whose value, which is not NULL, stands in a file of its own.
    pub fn apart(name: &str, nonce: Bytes32, value: &[u8]) -> Self {
        Self {
            bytes: None,
            hidden: Some(Bytes32(column_leaf(&nonce, name, Some(value)))),
            name: name.to_owned(),
            nonce: Some(nonce),
            value: None,
        }
    }

    /// True if its value stands in a file of its own.
    pub fn is_apart(&self) -> bool {
        self.hidden.is_some() && self.nonce.is_some() && self.bytes().is_none()
    }

    /// The bytes that are disclosed here, `None` for NULL and what is not here.
    pub fn bytes(&self) -> Option<&[u8]> {
        match (&self.value, &self.bytes) {
            (Some(text), _) => Some(text.as_bytes()),
            (None, Some(bytes)) => Some(&bytes.0),
            (None, None) => None,
        }
    }
}

impl std::fmt::Debug for OpenColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "OpenColumn({}, {} bytes)",
            self.name,
            self.bytes().map_or(0, <[u8]>::len)
        )
    }
}

/// The person behind an actor, disclosed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenPerson {
    /// Nonce of the commitment.
    pub nonce: Bytes32,
    /// Name or personal code, as it was reported.
    pub value: String,
}

impl std::fmt::Debug for OpenPerson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenPerson({} bytes)", self.value.len())
    }
}

/// A raw message, disclosed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRaw {
    /// The message; absent if it stands in a file of its own ([`Evidence::apart`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Blob>,
    /// Nonce of the commitment.
    pub nonce: Bytes32,
}

/// The lists of the patient and of the two pseudo-patients in the map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapProof {
    /// Block whose log entry holds the map's root: the last one under the head.
    pub block: u64,
    /// The list `*many`.
    pub many: MapEntry,
    /// The subject's list.
    pub patient: MapEntry,
    /// The list `*unknown`.
    pub unknown: MapEntry,
}

/// A leaf of the map, or its absence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapEntry {
    /// How many lines at the beginning of a shared list are not in the file: one at
    /// least. What follows is all there, and is not nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// The leaf's value; absent if the map has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf: Option<Blob>,
    /// Its path under the root.
    pub path: Path,
}

/// The subject, opened: identifier and proof of the pseudonym.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The patient's identifier in the database.
    pub id: String,
    /// VRF proof that the pseudonym belongs to it, 80 bytes.
    pub proof: Blob,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subject(private)")
    }
}

impl Evidence {
    /// Reads a file.
    ///
    /// # Errors
    /// Anything that [`Evidence::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MAX_FILE {
            return Err(CodecError::Rule(format!(
                "evidence file longer than {MAX_FILE} bytes"
            )));
        }
        let body = bytes.strip_suffix(b"\n").ok_or_else(|| {
            CodecError::Rule("the file does not end in a line feed: it is truncated".into())
        })?;
        within_limits(body)?;
        let evidence: Self = from_canonical(body)?;
        if !FORMATS.contains(&evidence.format.as_str()) {
            return Err(CodecError::Rule(format!(
                "format {:?} is none of {}: a newer Pitser wrote it",
                evidence.format,
                FORMATS.join(", ")
            )));
        }
        if evidence.format != evidence.oldest_format() {
            return Err(CodecError::Rule(format!(
                "what is in it makes a file {}, and not {}",
                evidence.oldest_format(),
                evidence.format
            )));
        }
        evidence.map.check()?;
        evidence.genesis.check()?;
        for proof in &evidence.lines {
            proof.line.check()?;
            bounded("block", proof.block)?;
        }
        for number in evidence
            .blocks
            .iter()
            .map(|b| b.block)
            .chain([evidence.map.block])
        {
            bounded("block", number)?;
        }
        Ok(evidence)
    }

    /// Puts in proofs from the calendar's log, in the order of their seconds. The
    /// file is to be signed afterwards.
    pub fn set_calendar(&mut self, proofs: Vec<String>) {
        self.calendar = proofs;
        self.format = self.oldest_format().to_owned();
    }

    /// The oldest format that has all that is there.
    pub fn oldest_format(&self) -> &'static str {
        if self.apart().next().is_some() {
            FORMAT_APART
        } else if self.map.is_partial() {
            FORMAT_PARTIAL
        } else if self.calendar.is_empty() {
            FORMAT
        } else {
            FORMAT_WITNESSED
        }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = to_canonical(self);
        bytes.push(b'\n');
        bytes
    }

    /// The file's bytes, if [`Evidence::decode`] takes so many.
    ///
    /// # Errors
    /// [`TooLarge`], with the lines of each list.
    pub fn encode_readable(&self) -> Result<Vec<u8>, TooLarge> {
        let bytes = self.encode();
        let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if bytes.len() <= MAX_FILE && within_limits(body).is_ok() {
            return Ok(bytes);
        }
        let mut lists = ListLengths::default();
        for proof in &self.lines {
            *lists.of(proof.line.patient) += 1;
        }
        Err(TooLarge { lists })
    }

    /// The note text that the trail's key signs: the digest of everything
    /// but the signature.
    pub fn signed_text(&self) -> String {
        let digest = digest_of(&Unsigned::of(self));
        format!("{}\n{}\n{digest}\n", self.format, self.origin)
    }
}

/// All of a file but its signature, and in the same order.
#[derive(Serialize)]
struct Unsigned<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: &'a Option<String>,
    blocks: &'a [BlockProof],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    calendar: &'a [String],
    format: &'a str,
    genesis: &'a Line,
    head: &'a str,
    lines: &'a [LineProof],
    map: &'a MapProof,
    origin: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    publications: &'a Option<Blob>,
    subject: &'a Subject,
}

impl<'a> Unsigned<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let Evidence {
            audit,
            blocks,
            calendar,
            format,
            genesis,
            head,
            lines,
            map,
            origin,
            publications,
            signature: _,
            subject,
        } = evidence;
        Self {
            audit,
            blocks,
            calendar,
            format,
            genesis,
            head,
            lines,
            map,
            origin,
            publications,
            subject,
        }
    }
}

impl MapProof {
    /// Whether a list is not here from its beginning.
    fn is_partial(&self) -> bool {
        [&self.many, &self.patient, &self.unknown]
            .iter()
            .any(|entry| entry.before.is_some())
    }

    fn check(&self) -> Result<(), CodecError> {
        if self.patient.before.is_some() {
            return Err(CodecError::Rule(
                "the patient's own list begins with its first line, or proves nothing".into(),
            ));
        }
        for entry in [&self.many, &self.unknown] {
            if entry.before == Some(0) {
                return Err(CodecError::Rule(
                    "it leaves out no line, and says so".into(),
                ));
            }
            bounded("before", entry.before.unwrap_or_default())?;
        }
        Ok(())
    }
}

/// How many lines of each list a file has, or would have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ListLengths {
    /// The patient's own.
    pub patient: u64,
    /// `*many`.
    pub many: u64,
    /// `*unknown`.
    pub unknown: u64,
}

impl ListLengths {
    /// That of the list which lines of this `patient` stand in.
    pub fn of(&mut self, patient: Option<Patient>) -> &mut u64 {
        match patient {
            Some(Patient::Many) => &mut self.many,
            Some(Patient::Unknown) => &mut self.unknown,
            _ => &mut self.patient,
        }
    }

    /// Whether a file may have so many lines.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn check(self) -> Result<(), TooLarge> {
        let all = [self.patient, self.many, self.unknown]
            .into_iter()
            .fold(0, u64::saturating_add);
        match all <= MAX_PROOFS as u64 {
            true => Ok(()),
            false => Err(TooLarge { lists: self }),
        }
    }
}

/// Nobody could verify the file: [`Evidence::decode`] refuses what is so large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// What makes it so.
    pub lists: ListLengths,
}

impl std::error::Error for TooLarge {}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ListLengths {
            patient,
            many,
            unknown,
        } = self.lists;
        write!(
            f,
            "the file would be too large for anybody to verify: {patient} lines of the patient, {many} of *many and \
             {unknown} of *unknown, where {MAX_PROOFS} lines, blocks and proofs and {} MiB are read at most. ",
            MAX_FILE >> 20
        )?;
        match patient > many.saturating_add(unknown) {
            true => f.write_str("Most are the patient's own, of which none may be left out"),
            false => f.write_str(
                "Name a later time with --shared-since, before which lines of *many and *unknown may be left out",
            ),
        }
    }
}

/// Refuses what would take many times the memory of its bytes.
fn within_limits(body: &[u8]) -> Result<(), CodecError> {
    let (all, own) = elements(body);
    if all > MAX_ELEMENTS || own > MAX_PROOFS {
        return Err(CodecError::Rule(format!(
            "evidence file with {own} blocks, lines and proofs and {all} elements in all its lists: \
             {MAX_PROOFS} and {MAX_ELEMENTS} are read at most"
        )));
    }
    Ok(())
}

/// Those that are read.
const FORMATS: [&str; 4] = [FORMAT, FORMAT_WITNESSED, FORMAT_PARTIAL, FORMAT_APART];
