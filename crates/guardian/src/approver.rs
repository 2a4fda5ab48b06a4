//! People who decide, by a secret token each, of which the configuration knows the
//! SHA-256: erasures and holds (docs/erasure.md), and who answers for a finding
//! (docs/findings.md).

use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::ZeroizeOnDrop;

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
    /// The last day on which the token is good; without one, it is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Day>,
}

/// What shows who somebody is. Hidden where it is printed, and wiped from memory.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The token that a file or an answer has; space around it is none of it.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Its SHA-256, as the configuration has it.
    pub fn hash(&self) -> Bytes32 {
        let hash = Digest::of(&[self.0.trim().as_bytes()]);
        let bytes = hash.0.digest().try_into();
        Bytes32(bytes.expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(private)")
    }
}

/// A day of UTC, written as in `2027-01-31`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(Timestamp);

impl Day {
    /// Whether it had ended by `now`.
    fn is_over(self, now: Timestamp) -> bool {
        const LENGTH_US: u64 = 86_400_000_000;
        now.micros().saturating_sub(self.0.micros()) >= LENGTH_US
    }
}

impl TryFrom<String> for Day {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let first = format!("{text}T00:00:00.000000Z").parse();
        first
            .map(Self)
            .map_err(|_| "a day is written like 2027-01-31, between 1970 and 9999")
    }
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.to_string();
        f.write_str(first.split('T').next().unwrap_or_default())
    }
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
    /// The token is too old.
    #[error(
        "the token of {name} was good until {until}: make a new one with `pitser erase --new-token`, have its \
         token_sha256 and another `until` put into that [[approver]] block of the configuration, and restart the \
         guardian"
    )]
    Expired {
        /// Whose token it is.
        name: String,
        /// Its last day.
        until: Day,
    },
    /// The rules speak against it.
    #[error("{0}")]
    Rule(String),
    /// It could not be looked at, or not be finished: ask again later.
    #[error("{0}")]
    Unavailable(String),
}

/// Whose token it is, if it is good at `now` and that person has the power. All are
/// compared, each in constant time.
pub(crate) fn who<'a>(
    approvers: &'a [Approver],
    token: &Token,
    power: Power,
    now: Timestamp,
) -> Result<&'a str, Refused> {
    let hash = token.hash();
    let mut found = None;
    for approver in approvers {
        if bool::from(approver.token_sha256.0.ct_eq(&hash.0)) {
            found = Some(approver);
        }
    }
    let found = found.ok_or(Refused::Unknown)?;
    if let Some(until) = found.until.filter(|day| day.is_over(now)) {
        let name = found.name.clone();
        return Err(Refused::Expired { name, until });
    }
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
            let hash = Token::new(name).hash();
            let text = format!(r#"{{"name":"{name}","token_sha256":"{hash}"{may}}}"#);
            serde_json::from_str::<Approver>(&text).unwrap()
        };
        let approvers = [
            text("old", ""),
            text("night", r#","may":["accept"]"#),
            text("both", r#","may":["accept","erase"]"#),
            text("none", r#","may":[]"#),
        ];
        let now: Timestamp = "2026-11-26T12:00:00.000000Z".parse().unwrap();
        let may = |name, power| match who(&approvers, &Token::new(name), power, now) {
            Ok(by) => by == name,
            Err(Refused::Powerless { .. }) => false,
            Err(other) => panic!("{other}"),
        };
        let powers = |name| [Power::Erase, Power::Accept].map(|power| may(name, power));
        assert_eq!(powers("old"), [true, false]);
        assert_eq!(powers("night"), [false, true]);
        assert_eq!(powers("both"), [true, true]);
        assert_eq!(powers("none"), [false, false]);
        let stranger = who(&approvers, &Token::new("stranger"), Power::Accept, now);
        assert!(matches!(stranger, Err(Refused::Unknown)));
        let unknown = r#"{"name":"a","token_sha256":"00","may":["rule"]}"#;
        assert!(serde_json::from_str::<Approver>(unknown).is_err());
    }

    #[test]
    fn a_token_is_good_through_its_last_day() {
        let hash = Token::new("mari").hash();
        let until = |day: &str| {
            let text = format!(r#"{{"name":"Mari","token_sha256":"{hash}","until":"{day}"}}"#);
            serde_json::from_str::<Approver>(&text)
        };
        let approvers = [until("2027-02-28").unwrap()];
        let at = |now: &str| {
            let now = now.parse().unwrap();
            let told = who(&approvers, &Token::new(" mari\n"), Power::Erase, now);
            told.map_err(|refused| refused.to_string())
        };
        assert_eq!(at("2026-01-01T00:00:00.000000Z"), Ok("Mari"));
        assert_eq!(at("2027-02-28T23:59:59.999999Z"), Ok("Mari"));
        let told = at("2027-03-01T00:00:00.000000Z").unwrap_err();
        assert!(told.contains("Mari was good until 2027-02-28"), "{told}");
        for wrong in [
            "2027-02-29",
            "2027-2-28",
            "28.02.2027",
            "2027-02-28T00:00:00Z",
            "",
        ] {
            let error = until(wrong).unwrap_err().to_string();
            assert!(error.contains("like 2027-01-31"), "{wrong}: {error}");
        }
        let back = serde_json::to_value(&approvers[0]).unwrap();
        assert_eq!(back["until"], "2027-02-28");
        assert_eq!(format!("{:?}", Token::new("mari")), "Token(private)");
    }
}
