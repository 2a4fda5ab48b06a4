//! People who decide, by a secret token each, of which the configuration knows the
//! SHA-256: erasures and holds (docs/erasure.md), and who answers for a finding
//! (docs/findings.md).

use pitser_evidence::codec::{Bytes32, Digest};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// Somebody who may decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approver {
    /// The name that the trail's vault keeps.
    pub name: String,
    /// SHA-256 of the person's token, which is at least 32 random bytes as text.
    pub token_sha256: Bytes32,
    /// What; erasures alone, unless it is said.
    #[serde(default = "Power::default_list")]
    pub may: Vec<Power>,
}

/// What an approver may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Erasures of patients, and legal holds against them.
    Erase,
    /// That a finding is explained.
    Accept,
}

impl Power {
    fn default_list() -> Vec<Self> {
        vec![Self::Erase]
    }

    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erase => "erase",
            Self::Accept => "accept",
        }
    }
}

/// Why an approver's wish was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nobody has that token.
    #[error(
        "this token is no approver's. Approvers are the [[approver]] blocks of the configuration; `pitser erase --new-token` makes a token"
    )]
    Unknown,
    /// It is somebody else's to decide.
    #[error(
        "{name} may not decide this: add {:?} to `may` in that [[approver]] block of the configuration, and restart the guardian",
        .power.as_str()
    )]
    Powerless {
        /// Whose token it is.
        name: String,
        /// What it would take.
        power: Power,
    },
    /// The rules speak against it.
    #[error("{0}")]
    Rule(String),
    /// It could not be looked at, or not be finished: ask again later.
    #[error("{0}")]
    Unavailable(String),
}

/// The SHA-256 of a token, as the configuration has it.
pub fn token_hash(token: &str) -> Bytes32 {
    let hash = Digest::of(&[token.trim().as_bytes()]);
    let bytes = hash.0.digest().try_into();
    Bytes32(bytes.expect("SHA-256 has 32 bytes"))
}

/// Whose token it is, if that person has the power. All are compared, each in
/// constant time.
pub(crate) fn who<'a>(
    approvers: &'a [Approver],
    token: &str,
    power: Power,
) -> Result<&'a str, Refused> {
    let hash = token_hash(token);
    let mut found = None;
    for approver in approvers {
        if bool::from(approver.token_sha256.0.ct_eq(&hash.0)) {
            found = Some(approver);
        }
    }
    let found = found.ok_or(Refused::Unknown)?;
    match found.may.contains(&power) {
        true => Ok(&found.name),
        false => Err(Refused::Powerless {
            name: found.name.clone(),
            power,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_the_powers_that_are_named_and_no_other() {
        let text = |name: &str, may: &str| {
            let hash = token_hash(name);
            let text = format!(r#"{{"name":"{name}","token_sha256":"{hash}"{may}}}"#);
            serde_json::from_str::<Approver>(&text).unwrap()
        };
        let approvers = [
            text("old", ""),
            text("night", r#","may":["accept"]"#),
            text("both", r#","may":["accept","erase"]"#),
            text("none", r#","may":[]"#),
        ];
        let may = |name, power| match who(&approvers, name, power) {
            Ok(by) => by == name,
            Err(Refused::Powerless { .. }) => false,
            Err(other) => panic!("{other}"),
        };
        let powers = |name| [Power::Erase, Power::Accept].map(|power| may(name, power));
        assert_eq!(powers("old"), [true, false]);
        assert_eq!(powers("night"), [false, true]);
        assert_eq!(powers("both"), [true, true]);
        assert_eq!(powers("none"), [false, false]);
        let stranger = who(&approvers, "stranger", Power::Accept);
        assert!(matches!(stranger, Err(Refused::Unknown)));
        let unknown = r#"{"name":"a","token_sha256":"00","may":["rule"]}"#;
        assert!(serde_json::from_str::<Approver>(unknown).is_err());
    }
}
