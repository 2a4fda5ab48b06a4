//! The trail line: one event on one record or patient (docs/spec/30-trail.md).
//!
//! A line is one canonical JSON object (RFC 8785) and a line feed. Its bytes
//! without the line feed are what is hashed, so this module never "repairs":
//! it reads exactly what it would write.
//!
//! No member holds a column value or an identifier in clear. Table and column
//! names, database role, application and client stand in clear.

use crate::codec::{Bytes32, CodecError, Digest, bounded, from_canonical, to_canonical};
use crate::finding::Code;
use pitser_ksi::Second;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The newest version of lines that this module reads and writes. A line carries the
/// version that all of it came with: those of version 1 stay what they were.
pub const VERSION: u8 = 6;

/// The last rule of docs/spec/30-trail.md §3 that a trail begun now keeps.
pub const RULES: u8 = 17;

/// The first rule that a genesis promises: all trails keep those before.
const FIRST_RULE: u8 = 15;

/// Longest line read or written, in bytes without the line feed.
pub const MAX_LINE: usize = 1 << 20;

/// One trail line. Members stand in canonical order; do not reorder them. What most
/// lines lack has memory of its own: lines are made and moved by the hundred thousand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Body of [`Op::Accept`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<Box<Acceptance>>,
    /// Who did it, and how far that is proved; absent if nobody is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// When, by the engine's clock: RFC 3339, UTC, six fractional digits.
    pub at: Timestamp,
    /// Body of [`Op::Checkpoint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Box<Checkpoint>>,
    /// Names of the columns that changed; for a finding, those that differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Arc<[String]>>,
    /// Body of [`Op::Ddl`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ddl: Option<Box<Ddl>>,
    /// Body of [`Op::Erase`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase: Option<Box<Erasure>>,
    /// The `seq` of the first line of this event.
    pub event: u64,
    /// Body of [`Op::Finding`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Box<Finding>>,
    /// Body of [`Op::Gap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Box<Gap>>,
    /// Body of [`Op::Genesis`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis: Option<Box<Genesis>>,
    /// HMAC of the record's key under its table's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Bytes32>,
    /// `true` on every line of an event but its last: recovery after a crash
    /// keeps whole events only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<bool>,
    /// What happened.
    pub op: Op,
    /// Whose record it is, as a pseudonym.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient: Option<Patient>,
    /// The previous line of this patient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient_prev: Option<Prev>,
    /// Place in the source: outbox id, commit LSN and ordinal, or event hash.
    pub pos: String,
    /// The previous line of this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Prev>,
    /// Purpose of use, as the application stated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Salted commitment to the raw message that this line was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Digest>,
    /// Body of [`Op::Release`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<Release>>,
    /// Commitment to the whole row after the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<Digest>,
    /// Position in the trail, from 0 without gaps.
    pub seq: u64,
    /// The configured input that reported the event.
    pub source: String,
    /// Table or resource type, in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The engine's transaction number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx: Option<u64>,
    /// Format version: see [`Line::version`].
    pub v: u8,
}

impl Line {
    /// A line with only what every line has.
    pub fn new(
        op: Op,
        seq: u64,
        at: Timestamp,
        source: impl Into<String>,
        pos: impl Into<String>,
    ) -> Self {
        Self {
            accept: None,
            actor: None,
            at,
            checkpoint: None,
            columns: None,
            ddl: None,
            erase: None,
            event: seq,
            finding: None,
            gap: None,
            genesis: None,
            key: None,
            more: None,
            op,
            patient: None,
            patient_prev: None,
            pos: pos.into(),
            prev: None,
            purpose: None,
            raw: None,
            release: None,
            row: None,
            seq,
            source: source.into(),
            table: None,
            tx: None,
            v: op.version(),
        }
    }

    /// The first line of a trail.
    pub fn genesis(
        genesis: Genesis,
        at: Timestamp,
        source: impl Into<String>,
        pos: impl Into<String>,
    ) -> Self {
        let mut line = Self::new(Op::Genesis, 0, at, source, pos);
        line.genesis = Some(Box::new(genesis));
        line.v = line.version();
        line
    }

    /// The lowest version that knows everything in the line, which it carries.
    pub fn version(&self) -> u8 {
        let has_rules = self.genesis.as_ref().is_some_and(|it| it.rules.is_some());
        let rules = if has_rules { 4 } else { 1 };
        let found = self
            .finding
            .as_ref()
            .map_or(1, |found| found.code.version());
        self.op.version().max(rules).max(found)
    }

    /// Reads one line, without its line feed.
    ///
    /// # Errors
    /// Anything that [`Line::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MAX_LINE {
            return Err(CodecError::Rule(format!(
                "line longer than {MAX_LINE} bytes"
            )));
        }
        let line: Self = from_canonical(bytes).map_err(|error| newer(bytes).unwrap_or(error))?;
        line.check()?;
        Ok(line)
    }

    /// The bytes that are hashed: canonical JSON without a line feed.
    pub fn encode(&self) -> Vec<u8> {
        to_canonical(self)
    }

    /// The record hash of `line_bytes`: SHA-256 of the bytes without line feed.
    pub fn hash(line_bytes: &[u8]) -> Digest {
        Digest::of(&[line_bytes])
    }

    /// Checks the rules between members (docs/spec/30-trail.md §3).
    ///
    /// # Errors
    /// [`CodecError::Rule`] naming the first rule broken.
    pub fn check(&self) -> Result<(), CodecError> {
        let rule = |ok: bool, text: &str| {
            if ok {
                Ok(())
            } else {
                Err(CodecError::Rule(text.to_owned()))
            }
        };
        rule(
            self.v == self.version(),
            "line version is not that of its content: a newer Pitser wrote it",
        )?;
        let rules = self.genesis.as_ref().and_then(|genesis| genesis.rules);
        rule(
            rules.is_none_or(|rules| (FIRST_RULE..=RULES).contains(&rules)),
            "its trail keeps rules that are not known here: a newer Pitser wrote it",
        )?;
        for (name, value) in self.integers() {
            bounded(name, value)?;
        }
        rule(self.event <= self.seq, "event is later than seq")?;
        rule(self.more != Some(false), "more is true or absent")?;
        rule(
            self.genesis.is_some() == (self.op == Op::Genesis),
            "genesis body and op disagree",
        )?;
        rule(
            (self.seq == 0) == (self.op == Op::Genesis),
            "genesis is line 0, and only that",
        )?;
        rule(
            self.checkpoint.is_some() == (self.op == Op::Checkpoint),
            "checkpoint body and op disagree",
        )?;
        rule(
            self.finding.is_some() == (self.op == Op::Finding),
            "finding body and op disagree",
        )?;
        rule(
            self.gap.is_some() == (self.op == Op::Gap),
            "gap body and op disagree",
        )?;
        rule(
            self.ddl.is_some() == (self.op == Op::Ddl),
            "ddl body and op disagree",
        )?;
        rule(
            self.erase.is_some() == (self.op == Op::Erase),
            "erase body and op disagree",
        )?;
        rule(
            self.accept.is_some() == (self.op == Op::Accept),
            "accept body and op disagree",
        )?;
        rule(
            self.release.is_some() == (self.op == Op::Release),
            "release body and op disagree",
        )?;
        let finding = self.accept.as_ref().map(|accept| accept.finding);
        rule(
            finding.is_none_or(|finding| finding.seq < self.seq),
            "accept does not point back to a finding",
        )?;
        let hold = self.release.as_ref().map(|release| release.hold);
        rule(
            hold.is_none_or(|hold| hold.seq < self.seq),
            "release does not point back to a hold",
        )?;
        let person = self.actor.as_ref().and_then(|actor| actor.person);
        rule(
            !self.op.is_answered_for() || (person.is_some() && self.raw.is_some()),
            "accept, hold and release say who decides and why",
        )?;
        let of_somebody = matches!(self.patient, Some(Patient::Pseudonym(_)));
        rule(
            !self.op.is_about_a_patient() || (of_somebody && self.table.is_none()),
            "erase, hold and release name a patient and no record",
        )?;
        rule(
            self.key.is_none() || self.table.is_some(),
            "key without table",
        )?;
        rule(
            self.prev.is_none() || self.key.is_some(),
            "prev without key",
        )?;
        rule(
            self.patient_prev.is_none() || self.patient.is_some(),
            "patient_prev without patient",
        )?;
        rule(
            self.row.is_some() == self.op.commits_row(),
            "row commitment and op disagree",
        )?;
        rule(!self.op.needs_key() || self.key.is_some(), "op needs a key")?;
        let names_nobody = self.table.is_none() && self.patient.is_none();
        rule(
            !self.op.is_about_the_trail() || names_nobody,
            "genesis and checkpoint name no record and no patient",
        )?;
        let alone = self.event == self.seq && self.more.is_none();
        rule(
            !self.op.is_alone() || alone,
            "genesis, checkpoint, erase, accept, hold and release are events of their own",
        )?;
        for prev in [self.prev, self.patient_prev].into_iter().flatten() {
            rule(prev.seq < self.seq, "prev does not point back")?;
        }
        Ok(())
    }

    /// All integers that are wider than 32 bits, by name.
    fn integers(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let checkpoint = self.checkpoint.as_ref().map(|c| {
            let seal = c.seal.map(|s| s.block).unwrap_or_default();
            [
                ("block", c.block),
                ("count", c.count),
                ("first", c.first),
                ("map_seq", c.map_seq),
                ("seal block", seal),
            ]
        });
        let about = self
            .finding
            .as_ref()
            .and_then(|f| f.about)
            .unwrap_or_default();
        [
            ("seq", self.seq),
            ("event", self.event),
            ("tx", self.tx.unwrap_or_default()),
            ("about", about),
        ]
        .into_iter()
        .chain(checkpoint.into_iter().flatten())
    }
}

/// What to say of a line that cannot be read, if it is of a version yet unknown.
fn newer(bytes: &[u8]) -> Option<CodecError> {
    #[derive(Deserialize)]
    struct Version {
        v: u64,
    }
    let Version { v } = serde_json::from_slice(bytes).ok()?;
    (v > u64::from(VERSION)).then(|| {
        CodecError::Rule(format!(
            "it is of version {v}, and this Pitser reads lines up to version {VERSION}: a newer Pitser wrote it"
        ))
    })
}

/// What a line reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// First line of a trail.
    Genesis,
    /// A row that was there when capture began.
    Baseline,
    /// All rows that were there have their baseline line.
    Live,
    /// A new row.
    Create,
    /// A row or its data was read.
    Read,
    /// A changed row.
    Update,
    /// A deleted row.
    Delete,
    /// A record moved to or from this patient.
    Relink,
    /// The schema changed.
    Ddl,
    /// Capture did not see everything.
    Gap,
    /// Something is wrong.
    Finding,
    /// The key of this patient was destroyed; since version 2.
    Erase,
    /// Somebody answers for a finding; since version 3.
    Accept,
    /// This patient is not to be erased; since version 5.
    Hold,
    /// A hold ends; since version 5.
    Release,
    /// Last line of a block.
    Checkpoint,
}

impl Op {
    /// The version of lines that has it first.
    fn version(self) -> u8 {
        match self {
            Self::Erase => 2,
            Self::Accept => 3,
            Self::Hold | Self::Release => 5,
            _ => 1,
        }
    }

    /// Lines of this kind carry the commitment of the row as it now is.
    pub fn commits_row(self) -> bool {
        matches!(self, Self::Baseline | Self::Create | Self::Update)
    }

    /// Lines of this kind are always about one record.
    pub fn needs_key(self) -> bool {
        self.commits_row() || matches!(self, Self::Delete | Self::Relink)
    }

    /// Lines of this kind are about the trail itself.
    fn is_about_the_trail(self) -> bool {
        matches!(self, Self::Genesis | Self::Checkpoint)
    }

    /// Lines of this kind are events of their own.
    fn is_alone(self) -> bool {
        self.is_about_the_trail() || self.is_about_a_patient() || self == Self::Accept
    }

    /// Lines of this kind are about a patient, and no record.
    fn is_about_a_patient(self) -> bool {
        self == Self::Erase || self.is_about_a_hold()
    }

    /// Lines of this kind say who decided, and why: their `raw` is a text.
    pub fn is_answered_for(self) -> bool {
        self == Self::Accept || self.is_about_a_hold()
    }

    /// Lines of this kind set or lift a legal hold.
    pub fn is_about_a_hold(self) -> bool {
        matches!(self, Self::Hold | Self::Release)
    }

    /// The word in the line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Genesis => "genesis",
            Self::Baseline => "baseline",
            Self::Live => "live",
            Self::Create => "create",
            Self::Read => "read",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Relink => "relink",
            Self::Ddl => "ddl",
            Self::Gap => "gap",
            Self::Finding => "finding",
            Self::Erase => "erase",
            Self::Accept => "accept",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// Application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// How far the person is proved.
    pub binding: Binding,
    /// Client address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Commitment to the person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<Digest>,
    /// Database role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// How an actor is bound to an event; never upgraded afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Binding {
    /// Signed by the person.
    A,
    /// Personal certificate or token, verified by the engine or by us.
    B,
    /// Asserted by the application.
    C,
    /// Database role only.
    D,
    /// Unknown.
    E,
}

/// A pointer to an earlier line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prev {
    /// Hash of that line.
    pub hash: Digest,
    /// Its `seq`.
    pub seq: u64,
}

/// Body of the first line: what the trail is, and the keys that stay fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// Verifier key of the trail's log, as a C2SP note key.
    pub log_key: String,
    /// Name of the trail, `<organisation>/<source>`.
    pub origin: String,
    /// Head of the trail that this one continues, or `none`.
    pub predecessor: String,
    /// The last rule of docs/spec/30-trail.md §3 that its lines keep, up to [`RULES`];
    /// those of trails without it keep the rules up to 14. Since version 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<u8>,
    /// Random number, so that no two trails share a genesis.
    pub salt: Bytes32,
    /// The database's own identity.
    pub system: String,
    /// Guarded tables, ordered by name.
    pub tables: Vec<TableGenesis>,
    /// The database's timeline.
    pub timeline: u32,
    /// What is known not to be covered, in clear.
    pub uncovered: Vec<String>,
    /// Public key of the pseudonym function (RFC 9381).
    pub vrf_key: Bytes32,
}

/// One guarded table, as the genesis line fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableGenesis {
    /// Columns, in the table's order.
    pub columns: Vec<String>,
    /// Columns of the primary key, in key order.
    pub key: Vec<String>,
    /// Table name.
    pub name: String,
    /// How a row's patient is found, or `none`.
    pub patient: String,
    /// Commitment to the table's HMAC key.
    pub table_key: Digest,
}

/// Body of an erasure: nothing under the patient's key so far can be opened any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasure {
    /// The legal basis, in clear: nothing about the patient.
    pub basis: String,
    /// Commitments to the two people who decided, in the order in which they did.
    pub deciders: [Digest; 2],
}

/// Body of an acceptance: somebody has looked into a finding and answers for it. Who
/// is the line's `actor`, and why is what its `raw` commits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The finding's line.
    pub finding: Prev,
}

/// Body of a hold's end. Who ends it is the line's `actor`, and why is what its `raw`
/// commits to; so it is with the line that set it, which has no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The hold's line.
    pub hold: Prev,
}

/// Body of a block's last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Block number, from 0; also the index of its leaf in the log.
    pub block: u64,
    /// Lines in the block, this one included.
    pub count: u64,
    /// `seq` of the block's first line.
    pub first: u64,
    /// Newest quorum-cosigned head: SHA-256 of its note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Digest>,
    /// Root of the map over all lines before this one.
    pub map: Digest,
    /// The last line that the map's root covers.
    pub map_seq: u64,
    /// SHA-256 of the table-to-patient mapping.
    pub mapping: Digest,
    /// Name of the trail.
    pub origin: String,
    /// The source's position that is covered.
    pub pos: String,
    /// Newest seal that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealRef>,
    /// The database's own identity.
    pub system: String,
    /// The database's timeline.
    pub timeline: u32,
}

/// Names an earlier seal, so that a block cannot have been prepared before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealRef {
    /// Block that it seals.
    pub block: u64,
    /// SHA-256 of the signature's bytes.
    pub hash: Digest,
}

/// Body of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The line that is concerned, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<u64>,
    /// What is wrong.
    pub code: Code,
    /// One sentence without names, keys or values.
    pub text: String,
}

/// Body of a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Last position that was seen.
    pub from: String,
    /// Next position that was seen.
    pub to: String,
}

/// Body of a schema change: hashes of the catalogue fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ddl {
    /// Fingerprint afterwards.
    pub after: Digest,
    /// Fingerprint before; absent when capture begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Digest>,
}

/// A patient's pseudonym, or one of the two pseudo-patients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Patient {
    /// First half of the VRF output over the patient's identifier.
    Pseudonym(Bytes32),
    /// Reads of more patients than the configured number.
    Many,
    /// Reads and changes whose patients cannot be determined.
    Unknown,
}

impl std::fmt::Display for Patient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pseudonym(bytes) => bytes.fmt(f),
            Self::Many => f.write_str("*many"),
            Self::Unknown => f.write_str("*unknown"),
        }
    }
}

impl std::str::FromStr for Patient {
    type Err = CodecError;
    fn from_str(text: &str) -> Result<Self, CodecError> {
        match text {
            "*many" => Ok(Self::Many),
            "*unknown" => Ok(Self::Unknown),
            hex => hex.parse().map(Self::Pseudonym),
        }
    }
}

impl Serialize for Patient {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Pseudonym(pseudonym) => pseudonym.serialize(s),
            Self::Many | Self::Unknown => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Patient {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An instant, in the one spelling that lines use: `2026-03-14T09:26:53.589793Z`.
///
/// Every line has one, and it is made, read and written in a fraction of a general
/// calendar's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

/// Length of an instant's spelling.
const SPELLING: usize = "2026-03-14T09:26:53.589793Z".len();
const DAY_US: u64 = 86_400_000_000;

impl Timestamp {
    /// The last microsecond of the year 9999.
    const LAST: u64 = 253_402_300_800_000_000 - 1;

    /// From microseconds since 1970.
    ///
    /// # Errors
    /// Instants outside the years 1970 to 9999.
    pub fn from_micros(micros: u64) -> Result<Self, CodecError> {
        (micros <= Self::LAST)
            .then_some(Self(micros))
            .ok_or_else(|| CodecError::Rule("instant outside the years 1970 to 9999".into()))
    }

    /// Microseconds since 1970.
    pub fn micros(&self) -> u64 {
        self.0
    }

    /// The instant's spelling.
    fn spell(self, buffer: &mut [u8; SPELLING]) -> &str {
        *buffer = *b"0000-00-00T00:00:00.000000Z";
        let (year, month, day) = Second(self.0 / 1_000_000).date();
        let us = self.0 % DAY_US;
        let parts = [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, us / 3_600_000_000),
            (14..16, us / 60_000_000 % 60),
            (17..19, us / 1_000_000 % 60),
            (20..26, us % 1_000_000),
        ];
        for (place, mut number) in parts {
            for digit in buffer[place].iter_mut().rev() {
                *digit += (number % 10) as u8;
                number /= 10;
            }
        }
        std::str::from_utf8(buffer).expect("digits are ASCII")
    }
}

/// The day since 1970 of a date in the years 1970 to 9999: the inverse of
/// [`Second::date`].
fn day(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.spell(&mut [0; _]))
    }
}

impl std::str::FromStr for Timestamp {
    type Err = CodecError;
    fn from_str(text: &str) -> Result<Self, CodecError> {
        let wrong = || CodecError::Rule("instant is not like 2026-03-14T09:26:53.589793Z".into());
        let bytes: &[u8; SPELLING] = text.as_bytes().try_into().map_err(|_| wrong())?;
        let number = |place: std::ops::Range<usize>| {
            let digits = bytes[place].iter();
            digits.fold(0, |number, digit| {
                number * 10 + u64::from(digit.wrapping_sub(b'0') % 10)
            })
        };
        let (year, month) = (number(0..4), number(5..7));
        if year < 1970 || !(1..=12).contains(&month) {
            return Err(wrong());
        }
        let days = day(year, month, number(8..10).max(1));
        let seconds = (number(11..13) * 60 + number(14..16)) * 60 + number(17..19);
        let read = Self::from_micros(days * DAY_US + seconds * 1_000_000 + number(20..26))?;
        // Whatever is no digit, or no such day or hour, is spelled otherwise.
        match read.spell(&mut [0; _]) == text {
            true => Ok(read),
            false => Err(wrong()),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.spell(&mut [0; _]))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Line {
        let at = "2026-03-14T09:26:53.589793Z".parse().unwrap();
        let mut line = Line::new(Op::Update, 12, at, "ehr", "841");
        line.table = Some("observation".into());
        line.key = Some(Bytes32([7; 32]));
        line.row = Some(Digest::of(&[b"row"]));
        line.columns = Some(["status".to_owned(), "väärtus\u{1}".to_owned()].into());
        line.patient = Some(Patient::Pseudonym(Bytes32([9; 32])));
        line.actor = Some(Actor {
            app: Some("ehr \"7\"".into()),
            binding: Binding::C,
            client: None,
            person: Some(Digest::of(&[b"p"])),
            role: None,
        });
        line.prev = Some(Prev {
            hash: Digest::of(&[b"x"]),
            seq: 3,
        });
        line.tx = Some(840);
        line
    }

    #[test]
    fn is_canonical_by_an_independent_canonicaliser() {
        let bytes = sample().encode();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json_canonicalizer::to_vec(&value).unwrap(), bytes);
        assert_eq!(Line::decode(&bytes), Ok(sample()));
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Line), part: &str) {
        let mut line = sample();
        change(&mut line);
        let error = Line::decode(&line.encode()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn rules_between_members() {
        refused(|l| l.v = 2, "version");
        refused(|l| l.event = 13, "event");
        refused(|l| l.table = None, "key without table");
        refused(|l| l.row = None, "row commitment");
        refused(|l| l.op = Op::Read, "row commitment");
        refused(|l| l.op = Op::Gap, "gap body");
        refused(
            |l| {
                l.prev = Some(Prev {
                    hash: Digest::of(&[]),
                    seq: 12,
                })
            },
            "point back",
        );
        refused(|l| l.tx = Some(1 << 53), "2^53");
        refused(|l| *l = finding(1 << 53), "2^53");
        assert_eq!(Line::decode(&finding(4).encode()), Ok(finding(4)));
        refused(|l| *l = checkpoint(|c| c.map_seq = 1 << 53), "2^53");
        assert_eq!(Line::decode(&erasure(|_| {}).encode()), Ok(erasure(|_| {})));
        refused(|l| *l = erasure(|e| e.v = 1), "version");
        refused(|l| *l = erasure(|e| e.erase = None), "erase body");
        refused(|l| l.erase = erasure(|_| {}).erase, "erase body");
        refused(|l| *l = erasure(|e| e.patient = None), "name a patient");
        refused(
            |l| *l = erasure(|e| e.patient = Some(Patient::Unknown)),
            "name a patient",
        );
        refused(
            |l| *l = erasure(|e| e.table = Some("observation".into())),
            "no record",
        );
        refused(
            |l| *l = erasure(|e| e.more = Some(true)),
            "events of their own",
        );
        let kept = acceptance(|_| {});
        assert_eq!(Line::decode(&kept.encode()), Ok(kept));
        refused(|l| *l = acceptance(|a| a.v = 2), "version");
        refused(|l| *l = acceptance(|a| a.accept = None), "accept body");
        refused(|l| l.accept = acceptance(|_| {}).accept, "accept body");
        refused(|l| *l = acceptance(|a| a.raw = None), "who decides and why");
        refused(|l| *l = acceptance(|a| a.actor = None), "who decides");
        let nameless = |a: &mut Line| a.actor.as_mut().unwrap().person = None;
        refused(|l| *l = acceptance(nameless), "who decides");
        for seq in [12, 13, u64::MAX] {
            let ahead = |a: &mut Line| a.accept.as_mut().unwrap().finding.seq = seq;
            refused(|l| *l = acceptance(ahead), "point back");
        }
        refused(
            |l| *l = acceptance(|a| a.more = Some(true)),
            "events of their own",
        );
        refused(|l| *l = acceptance(|a| a.event = 11), "events of their own");
        for of in [hold as fn(fn(&mut Line)) -> Line, release] {
            let kept = of(|_| {});
            assert_eq!((kept.v, Line::decode(&kept.encode())), (5, Ok(kept)));
            refused(|l| *l = of(|h| h.v = 4), "version");
            refused(|l| *l = of(|h| h.raw = None), "who decides and why");
            refused(|l| *l = of(|h| h.actor = None), "who decides");
            refused(|l| *l = of(nameless), "who decides");
            refused(|l| *l = of(|h| h.patient = None), "name a patient");
            refused(
                |l| *l = of(|h| h.patient = Some(Patient::Many)),
                "name a patient",
            );
            refused(
                |l| *l = of(|h| h.table = Some("observation".into())),
                "no record",
            );
            refused(|l| *l = of(|h| h.more = Some(true)), "events of their own");
            refused(|l| *l = of(|h| h.event = 11), "events of their own");
        }
        refused(|l| *l = release(|r| r.release = None), "release body");
        refused(|l| l.release = release(|_| {}).release, "release body");
        refused(
            |l| *l = hold(|h| h.release = release(|_| {}).release),
            "release body",
        );
        for ahead in [
            |r: &mut Line| r.release.as_mut().unwrap().hold.seq = 12,
            |r: &mut Line| r.release.as_mut().unwrap().hold.seq = u64::MAX,
        ] {
            refused(|l| *l = release(ahead), "point back");
        }
        let about_somebody = || Line {
            patient: Some(Patient::Many),
            ..checkpoint(|_| {})
        };
        refused(|l| *l = about_somebody(), "no patient");
        refused(
            |l| {
                *l = Line {
                    event: 11,
                    ..checkpoint(|_| {})
                }
            },
            "events of their own",
        );
        refused(
            |l| {
                *l = Line {
                    more: Some(true),
                    ..checkpoint(|_| {})
                }
            },
            "events of their own",
        );
        assert_eq!(
            Line::decode(&checkpoint(|_| {}).encode()),
            Ok(checkpoint(|_| {}))
        );
    }

    fn erasure(change: impl FnOnce(&mut Line)) -> Line {
        let mut line = Line::new(Op::Erase, 12, sample().at, "guardian", "841");
        line.patient = sample().patient;
        line.erase = Some(Box::new(Erasure {
            basis: "GDPR art. 17(1)(d)".into(),
            deciders: [Digest::of(&[b"one"]), Digest::of(&[b"two"])],
        }));
        change(&mut line);
        line
    }

    fn acceptance(change: impl FnOnce(&mut Line)) -> Line {
        let mut line = Line::new(Op::Accept, 12, sample().at, "guardian", "841");
        line.accept = Some(Box::new(Acceptance {
            finding: Prev {
                hash: Digest::of(&[b"finding"]),
                seq: 7,
            },
        }));
        line.actor = Some(Actor {
            app: None,
            binding: Binding::B,
            client: None,
            person: Some(Digest::of(&[b"p"])),
            role: None,
        });
        line.raw = Some(Digest::of(&[b"why"]));
        change(&mut line);
        line
    }

    fn hold(change: fn(&mut Line)) -> Line {
        let accept = acceptance(|_| {});
        let mut line = Line::new(Op::Hold, 12, sample().at, "guardian", "841");
        line.patient = sample().patient;
        (line.actor, line.raw) = (accept.actor, accept.raw);
        change(&mut line);
        line
    }

    fn release(change: fn(&mut Line)) -> Line {
        let mut line = hold(|_| {});
        (line.op, line.v) = (Op::Release, Op::Release.version());
        line.release = Some(Box::new(Release {
            hold: Prev {
                hash: Digest::of(&[b"hold"]),
                seq: 7,
            },
        }));
        change(&mut line);
        line
    }

    #[test]
    fn what_a_newer_version_wrote_is_said_to_be_that() {
        let text = String::from_utf8(erasure(|_| {}).encode()).unwrap();
        let newer = text
            .replace("\"v\":2", "\"v\":7")
            .replace("\"erase\"", "\"merge\"");
        let error = Line::decode(newer.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("version 7") && error.contains("newer Pitser"),
            "{error}"
        );
        // Rules that came later, in a line whose form is known.
        let later = Genesis {
            rules: Some(RULES + 1),
            ..genesis()
        };
        let later = Line::genesis(later, sample().at, "ehr", "841").encode();
        let error = Line::decode(&later).unwrap_err().to_string();
        assert!(error.contains("newer Pitser"), "{error}");
    }

    fn genesis() -> Genesis {
        Genesis {
            log_key: "haigla.example/hospital+00000000+AA".into(),
            origin: "haigla.example/hospital".into(),
            predecessor: "none".into(),
            rules: Some(RULES),
            salt: Bytes32([7; 32]),
            system: "sqlite:test".into(),
            tables: Vec::new(),
            timeline: 1,
            uncovered: Vec::new(),
            vrf_key: Bytes32([8; 32]),
        }
    }

    #[test]
    fn a_genesis_with_rules_is_of_version_4_and_one_without_of_version_1() {
        let line = Line::genesis(genesis(), sample().at, "ehr", "841");
        assert_eq!(line.v, 4);
        assert_eq!(Line::decode(&line.encode()), Ok(line.clone()));
        let with = |rules| {
            let genesis = Genesis { rules, ..genesis() };
            Line::genesis(genesis, sample().at, "ehr", "841")
        };
        for rules in FIRST_RULE..=RULES {
            let line = with(Some(rules));
            assert_eq!((line.v, Line::decode(&line.encode())), (4, Ok(line)));
        }
        assert!(Line::decode(&with(Some(FIRST_RULE - 1)).encode()).is_err());
        let old = with(None);
        assert_eq!(old.v, 1);
        assert_eq!(Line::decode(&old.encode()), Ok(old.clone()));
        for mut line in [line, old] {
            line.v = 5 - line.v;
            assert!(Line::decode(&line.encode()).is_err());
        }
    }

    fn finding(about: u64) -> Line {
        let mut line = Line::new(Op::Finding, 12, sample().at, "ehr", "841");
        line.finding = Some(Box::new(Finding {
            about: Some(about),
            code: Code::RowDiffers,
            text: "it differs".into(),
        }));
        line
    }

    #[test]
    fn a_code_that_came_later_is_of_its_version() {
        for code in Code::ALL {
            let mut line = finding(3);
            line.finding.as_mut().unwrap().code = *code;
            line.v = code.version();
            assert_eq!(Line::decode(&line.encode()), Ok(line.clone()));
            line.v = 7 - line.v;
            assert!(Line::decode(&line.encode()).is_err(), "{code}");
        }
    }

    fn checkpoint(change: impl FnOnce(&mut Checkpoint)) -> Line {
        let mut body = Checkpoint {
            block: 0,
            count: 13,
            first: 0,
            head: None,
            map: Digest::of(&[b"map"]),
            map_seq: 11,
            mapping: Digest::of(&[b"mapping"]),
            origin: "haigla.example/hospital".into(),
            pos: "841".into(),
            seal: None,
            system: "sqlite".into(),
            timeline: 1,
        };
        change(&mut body);
        let mut line = Line::new(Op::Checkpoint, 12, sample().at, "ehr", "841");
        line.checkpoint = Some(Box::new(body));
        line
    }

    #[test]
    fn instants_have_one_spelling() {
        assert!("2026-03-14T09:26:53.589793Z".parse::<Timestamp>().is_ok());
        for wrong in [
            "2026-03-14T09:26:53Z",
            "2026-03-14T09:26:53.589Z",
            "2026-03-14t09:26:53.589793Z",
            "2026-03-14T09:26:53.589793+00:00",
            "2026-02-30T00:00:00.000000Z",
            "2026-00-01T00:00:00.000000Z",
            "2026-13-01T00:00:00.000000Z",
            "2026-03-00T00:00:00.000000Z",
            "2026-03-14T24:00:00.000000Z",
            "2026-03-14T09:26:60.000000Z",
            "2026-03-14T09:2::53.000000Z",
            "1969-12-31T23:59:59.999999Z",
            "9999-99-99T99:99:99.999999Z",
            "2026-03-14T09:26:53.58979õ",
            "",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
        let t = Timestamp::from_micros(1_773_480_413_589_793).unwrap();
        assert_eq!(t.to_string(), "2026-03-14T09:26:53.589793Z");
        assert_eq!(t.micros(), 1_773_480_413_589_793);
        let last = Timestamp::from_micros(Timestamp::LAST).unwrap();
        assert_eq!(last.to_string(), "9999-12-31T23:59:59.999999Z");
        assert!(Timestamp::from_micros(Timestamp::LAST + 1).is_err());
    }

    #[test]
    fn instants_are_those_of_another_calendar() {
        // Every day that the other one knows, at changing times of the day.
        for day in 0..Timestamp::LAST / DAY_US {
            let micros = day * DAY_US + day * 1_234_567_891_011 % DAY_US;
            let ours = Timestamp::from_micros(micros).unwrap();
            let Ok(other) = jiff::Timestamp::from_microsecond(micros.cast_signed()) else {
                assert_eq!(ours.to_string().parse(), Ok(ours));
                continue;
            };
            let text = format!("{other:.6}");
            assert_eq!(ours.to_string(), text);
            assert_eq!(text.parse(), Ok(ours));
        }
    }
}
