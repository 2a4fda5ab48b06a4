//! The anchors file: what a verifier already trusts (docs/spec/36-anchors.md).
//!
//! It comes to the verifier on another way than the evidence: printed
//! publication codes, a genesis hash from a register, keys of witnesses and
//! auditors from their own sites. TOML, written and read by people.

use crate::codec::Digest;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::time::Second;
use pitser_tlog::note::{Algorithm, Note, VerifierKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Everything one verifier trusts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchors {
    /// Format version, 1.
    pub version: u8,
    /// How many distinct witnesses must have cosigned a head.
    #[serde(default)]
    pub witness_quorum: u32,
    /// Known trails.
    #[serde(default, rename = "trail")]
    pub trails: Vec<TrailAnchor>,
    /// Publication codes, as printed.
    #[serde(default, rename = "publication")]
    pub publications: Vec<PublicationAnchor>,
    /// Who may sign publications files.
    #[serde(default, rename = "authority")]
    pub authorities: Vec<AuthorityAnchor>,
    /// Witnesses.
    #[serde(default, rename = "witness")]
    pub witnesses: Vec<KeyAnchor>,
    /// Auditors.
    #[serde(default, rename = "auditor")]
    pub auditors: Vec<KeyAnchor>,
    /// The log of the calendar that seals lead to. If it is named, seals and
    /// publications count only with a proof that their seconds were witnessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calendar_log: Option<CalendarLogAnchor>,
}

/// The log of an authority's calendar, and who must have seen it
/// (docs/spec/51-calendar-log.md).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalendarLogAnchor {
    /// The log's key; its name is the log's origin.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub key: VerifierKey,
    /// The calendar's first second, which entry 0 is about (RFC 3339).
    #[serde(serialize_with = "write_second", deserialize_with = "read_second")]
    pub genesis: Second,
    /// How many distinct witnesses must have cosigned a head of it.
    pub quorum: u32,
    /// Its witnesses.
    #[serde(default, rename = "witness")]
    pub witnesses: Vec<KeyAnchor>,
}

impl CalendarLogAnchor {
    fn check(&self) -> Result<(), String> {
        if self.key.algorithm() != Algorithm::Ed25519 {
            return Err(format!(
                "calendar_log: {}: this key is of a type that no log signs with",
                self.key.name()
            ));
        }
        if !(1..=self.witnesses.len()).contains(&(self.quorum as usize)) {
            return Err(format!(
                "calendar_log: quorum is {}, and {} witnesses are listed: it is at least 1, and no more than there are",
                self.quorum,
                self.witnesses.len()
            ));
        }
        let check = |key: &KeyAnchor| key.check("witness", Algorithm::cosigns);
        self.witnesses
            .iter()
            .try_for_each(check)
            .map_err(|e| format!("calendar_log: {e}"))
    }
}

/// Those of `keys` whose validity covers what they cosigned on `note`. One with a
/// bad signature stays in, so that the check of a quorum reports it.
pub fn trusted(keys: &[KeyAnchor], note: &Note) -> Vec<VerifierKey> {
    let covers = |anchor: &&KeyAnchor| {
        note.cosigned_at(&anchor.key)
            .map_or(true, |time| anchor.covers(Second(time)))
    };
    keys.iter().filter(covers).map(|k| k.key.clone()).collect()
}

/// A trail and the hash of its first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrailAnchor {
    /// Name of the trail.
    pub origin: String,
    /// Hash of its genesis line.
    pub genesis: Digest,
}

/// A publication as printed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicationAnchor {
    /// The publication code.
    #[serde(serialize_with = "write_code", deserialize_with = "read_code")]
    pub code: PublicationData,
}

/// A signer of publications files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityAnchor {
    /// Trusted certificate, PEM.
    pub certificate: String,
    /// What the signer's subject must say, such as `email=publications@…`.
    pub constraints: Vec<String>,
}

/// A key of a witness or auditor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyAnchor {
    /// C2SP verifier key.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub key: VerifierKey,
    /// Signatures before this instant do not count (RFC 3339).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_time",
        deserialize_with = "read_time"
    )]
    pub valid_from: Option<Second>,
    /// Signatures from this instant on do not count (RFC 3339).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_time",
        deserialize_with = "read_time"
    )]
    pub valid_until: Option<Second>,
}

impl KeyAnchor {
    /// An anchor without an end.
    pub fn new(key: VerifierKey) -> Self {
        Self {
            key,
            valid_from: None,
            valid_until: None,
        }
    }

    fn check(&self, kind: &str, may: fn(Algorithm) -> bool) -> Result<(), String> {
        let name = self.key.name();
        if !may(self.key.algorithm()) {
            return Err(format!(
                "{name}: this key is of a type that no {kind} signs with"
            ));
        }
        match (self.valid_from, self.valid_until) {
            (Some(from), Some(until)) if from >= until => Err(format!(
                "{name}: valid_from {from} is not before valid_until {until}"
            )),
            _ => Ok(()),
        }
    }

    /// True if a signature made at `at` counts.
    pub fn covers(&self, at: Second) -> bool {
        self.valid_from.is_none_or(|from| at >= from)
            && self.valid_until.is_none_or(|until| at < until)
    }
}

impl Anchors {
    /// Reads an anchors file.
    ///
    /// # Errors
    /// A sentence with line and column, for the person who wrote the file.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let anchors: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        if anchors.version != 1 {
            return Err(format!(
                "version {} is not 1: a newer Pitser wrote it",
                anchors.version
            ));
        }
        if anchors.witness_quorum as usize > anchors.witnesses.len() {
            return Err(format!(
                "witness_quorum is {}, but only {} witnesses are listed: no head could ever reach it",
                anchors.witness_quorum,
                anchors.witnesses.len()
            ));
        }
        let signs: fn(Algorithm) -> bool = |algorithm| !algorithm.cosigns();
        for (kind, keys, may) in [
            ("witness", &anchors.witnesses, Algorithm::cosigns as _),
            ("auditor", &anchors.auditors, signs),
        ] {
            keys.iter().try_for_each(|key| key.check(kind, may))?;
        }
        if let Some(log) = &anchors.calendar_log {
            log.check()?;
        }
        Ok(anchors)
    }

    /// Writes an anchors file.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string_pretty(self).expect("our types have a TOML form");
        format!(
            "# What this verifier trusts. Keep it apart from the evidence that it judges.\n{body}"
        )
    }
}

fn write_code<S: Serializer>(data: &PublicationData, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&data.to_code())
}

fn read_code<'de, D: Deserializer<'de>>(d: D) -> Result<PublicationData, D::Error> {
    let text = String::deserialize(d)?;
    PublicationData::from_code(&text)
        .map_err(|e| D::Error::custom(format!("publication code: {e}")))
}

fn write_key<S: Serializer>(key: &VerifierKey, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(key)
}

fn read_key<'de, D: Deserializer<'de>>(d: D) -> Result<VerifierKey, D::Error> {
    let text = String::deserialize(d)?;
    text.parse()
        .map_err(|e| D::Error::custom(format!("verifier key: {e}")))
}

fn write_time<S: Serializer>(time: &Option<Second>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&time.unwrap_or_default())
}

fn read_time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Second>, D::Error> {
    read_second(d).map(Some)
}

fn write_second<S: Serializer>(time: &Second, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(time)
}

fn read_second<'de, D: Deserializer<'de>>(d: D) -> Result<Second, D::Error> {
    let text = String::deserialize(d)?;
    let instant: jiff::Timestamp = text
        .parse()
        .map_err(|e| D::Error::custom(format!("instant {text:?}: {e}")))?;
    u64::try_from(instant.as_second())
        .map(Second)
        .map_err(|_| D::Error::custom(format!("instant {text:?} is before 1970")))
}
