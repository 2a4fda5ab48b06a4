//! Who publishes, as readers know them.

use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::pki::{Certificate, PkiError};

/// Who publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// A name for people: common name, organisation, or what the constraint says.
    pub name: String,
    /// What verifiers demand of the certificate, e.g. `email=publications@example.org`.
    pub constraint: String,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub fingerprint: String,
}

impl Issuer {
    /// From the certificate that verifiers trust.
    ///
    /// # Errors
    /// [`PkiError`] for what is no certificate.
    pub fn new(certificate_pem: &str, constraint: &str) -> Result<Self, PkiError> {
        let certificate = Certificate::from_pem(certificate_pem)?;
        let subject = certificate.subject();
        let value = constraint.split_once('=').map_or(constraint, |it| it.1);
        let name = attribute(&subject, "CN").or_else(|| attribute(&subject, "O"));
        let digest = hash(Algorithm::Sha256, &[certificate.der()]);
        let fingerprint = digest.digest().iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            name: name.unwrap_or_else(|| value.to_owned()),
            constraint: constraint.to_owned(),
            fingerprint: fingerprint.collect(),
        })
    }

    /// The address that the constraint names, if it names one.
    pub(super) fn email(&self) -> Option<&str> {
        let email = self.constraint.strip_prefix("email=")?;
        let (user, host) = email.split_once('@')?;
        (!user.is_empty() && !host.is_empty()).then_some(email)
    }
}

/// One attribute of a subject as RFC 4514 writes it.
fn attribute(subject: &str, wanted: &str) -> Option<String> {
    let (mut pairs, mut pair, mut is_escaped) = (Vec::new(), String::new(), false);
    for letter in subject.chars() {
        match letter {
            _ if is_escaped => {
                pair.push(letter);
                is_escaped = false;
            }
            '\\' => is_escaped = true,
            ',' | '+' => pairs.push(std::mem::take(&mut pair)),
            letter => pair.push(letter),
        }
    }
    pairs.push(pair);
    let values = pairs.iter().filter_map(|pair| pair.split_once('='));
    let mut found = values.filter(|(name, value)| *name == wanted && !value.trim().is_empty());
    found.next().map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_name_in_a_subject() {
        let subject = r"EMAIL=time@example.org,CN=Time\, Places + Ltd,O=Example";
        let subject = subject.replace(" + ", r" \+ ");
        assert_eq!(
            attribute(&subject, "CN").as_deref(),
            Some("Time, Places + Ltd")
        );
        assert_eq!(attribute(&subject, "O").as_deref(), Some("Example"));
        assert_eq!(attribute(&subject, "OU"), None);
    }
}
