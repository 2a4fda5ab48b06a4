//! Whom a verifier expects as the signer (spec §4).

use std::fmt;
use std::str::FromStr;

use der::asn1::ObjectIdentifier;

use super::certificate::Certificate;
use super::{PkiError, oid};

/// A subject attribute and the exact value it must have, e.g.
/// `email=publications@example.org`.
///
/// Written `NAME=value`, where NAME is a dotted OID or one of `E`, `email`,
/// `CN`, `O`, `org`, `OU`, `C`, in any letter case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    attribute: ObjectIdentifier,
    value: String,
}

impl Constraint {
    /// The subject's e-mail address must be `address`.
    pub fn email(address: impl Into<String>) -> Self {
        Self {
            attribute: oid::EMAIL,
            value: address.into(),
        }
    }

    /// Whether `certificate`'s subject has the attribute, and with no other
    /// value. Letter case and spaces count.
    pub fn is_met_by(&self, certificate: &Certificate) -> bool {
        let mut values = certificate.subject_values(self.attribute).peekable();
        values.peek().is_some() && values.all(|value| value.as_ref() == Some(&self.value))
    }
}

impl FromStr for Constraint {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let syntax = || PkiError::ConstraintSyntax(text.chars().take(128).collect());
        let (name, value) = text.split_once('=').ok_or_else(syntax)?;
        if value.is_empty() {
            return Err(syntax());
        }
        let named = SHORT_NAMES
            .iter()
            .find(|(short, _)| short.eq_ignore_ascii_case(name.trim()));
        let attribute = match named {
            Some((_, attribute)) => *attribute,
            None => oid::parse(name.trim()).ok_or_else(syntax)?,
        };
        Ok(Self {
            attribute,
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SHORT_NAMES
            .iter()
            .find(|(_, attribute)| *attribute == self.attribute)
        {
            Some((short, _)) => write!(f, "{short}={}", self.value),
            None => write!(f, "{}={}", self.attribute, self.value),
        }
    }
}

/// The first name of an attribute is the one that is displayed.
const SHORT_NAMES: [(&str, ObjectIdentifier); 8] = [
    ("email", oid::EMAIL),
    ("E", oid::EMAIL),
    ("emailAddress", oid::EMAIL),
    ("CN", oid::COMMON_NAME),
    ("O", oid::ORGANIZATION),
    ("org", oid::ORGANIZATION),
    ("OU", oid::ORGANIZATIONAL_UNIT),
    ("C", oid::COUNTRY),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, displayed: Option<&str>) {
        let got = text
            .parse::<Constraint>()
            .ok()
            .map(|constraint| constraint.to_string());
        assert_eq!(got.as_deref(), displayed, "{text}");
    }

    #[test]
    fn reads_short_names_and_oids() {
        check("email=a@example.org", Some("email=a@example.org"));
        check("E=a@example.org", Some("email=a@example.org"));
        check(
            "1.2.840.113549.1.9.1=a@example.org",
            Some("email=a@example.org"),
        );
        check("cn=A=B", Some("CN=A=B"));
        check("org=Example", Some("O=Example"));
        check("2.5.4.97=VATEE-1", Some("2.5.4.97=VATEE-1"));
        check("C=EE", Some("C=EE"));
        check("C=", None);
        check("=EE", None);
        check("country=EE", None);
        check("email", None);
        check("2.5.4.097=x", None);
        // 2^32 + 97: once the same as 97, or a panic in a debug build.
        check("2.5.4.4294967393=x", None);
        // Five base-128 digits, which were read but could not be displayed.
        check("1.0.1154351391=x", None);
        // Taken for 2.5.0.75.
        check("2.5.16459=x", None);
    }
}
