//! From a signer's certificate to one the verifier trusts.

use super::certificate::Certificate;
use super::{PkiError, Validity};
use crate::time::Second;

/// The certificates a verifier trusts, chosen by the verifier alone.
///
/// A certificate authority is trusted to issue; any other certificate, a
/// self-signed one in particular, is trusted as a signer itself.
#[derive(Clone, Debug, Default)]
pub struct TrustAnchors(Vec<Certificate>);

impl TrustAnchors {
    /// Trusts nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts every certificate of a PEM file.
    ///
    /// # Errors
    /// As [`Certificate::many_from_pem`].
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        Ok(Self(Certificate::many_from_pem(pem)?))
    }

    /// Trusts one DER certificate.
    ///
    /// # Errors
    /// As [`Certificate::from_der`].
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        Ok(Self(vec![Certificate::from_der(der)?]))
    }

    /// Trusts `certificate` too.
    pub fn add(&mut self, certificate: Certificate) {
        if !self.0.contains(&certificate) {
            self.0.push(certificate);
        }
    }

    /// Trusts the certificates of `bytes` too: PEM or one DER certificate.
    ///
    /// # Errors
    /// As [`Certificate::many_from_pem`] or [`Certificate::from_der`].
    pub fn add_pem_or_der(&mut self, bytes: &[u8]) -> Result<(), PkiError> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN ") => {
                Certificate::many_from_pem(text)?
                    .into_iter()
                    .for_each(|one| self.add(one));
            }
            _ => self.add(Certificate::from_der(bytes)?),
        }
        Ok(())
    }

    /// The trusted certificates.
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    /// Whether a chain of issuers leads from `signer` to one of these anchors,
    /// with every certificate on it valid at `at`.
    ///
    /// `embedded` are certificates that came with the signature; they help to
    /// build the chain and are trusted for nothing.
    pub(super) fn verify(
        &self,
        signer: &Certificate,
        embedded: &[Certificate],
        at: Second,
    ) -> Result<(), PkiError> {
        let mut search = Search {
            anchors: &self.0,
            embedded,
            at,
            checks_left: MAX_SIGNATURE_CHECKS,
            obstacle: PkiError::Untrusted {
                subject: signer.subject(),
                why: "no chain of issuers leads to a trust anchor".to_owned(),
            },
        };
        // Who trusts the very certificate need not be told what it is for; published
        // files have signers that may only issue.
        let may_sign = self.0.contains(signer) || search.may_sign(signer);
        if may_sign && search.acceptable(signer) && search.reaches_anchor(&mut vec![signer]) {
            Ok(())
        } else {
            Err(search.obstacle)
        }
    }
}

/// Longest path, signer and anchor included.
const MAX_PATH: usize = 8;
/// Signature checks spent on one search, so that certificates which all name
/// each other cannot keep the verifier busy.
const MAX_SIGNATURE_CHECKS: usize = 64;

struct Search<'a> {
    anchors: &'a [Certificate],
    embedded: &'a [Certificate],
    at: Second,
    checks_left: usize,
    /// Why the last promising path ended.
    obstacle: PkiError,
}

impl<'a> Search<'a> {
    /// Whether `path`, signer first, can be continued to a trust anchor.
    fn reaches_anchor(&mut self, path: &mut Vec<&'a Certificate>) -> bool {
        let Some(&last) = path.last() else {
            return false;
        };
        if self.anchors.contains(last) {
            return true;
        }
        if path.len() == MAX_PATH {
            return false;
        }
        let (anchors, embedded) = (self.anchors, self.embedded);
        let below = path.len() - 1;
        if anchors
            .iter()
            .any(|anchor| self.issues(anchor, last, below, true))
        {
            return true;
        }
        embedded.iter().any(|issuer| {
            if path.contains(&issuer) || !self.issues(issuer, last, below, false) {
                return false;
            }
            path.push(issuer);
            let reached = self.reaches_anchor(path);
            path.pop();
            reached
        })
    }

    /// Whether `issuer` issued `certificate`, was allowed to, and is acceptable itself.
    fn issues(
        &mut self,
        issuer: &Certificate,
        certificate: &Certificate,
        below: usize,
        trusted: bool,
    ) -> bool {
        if !certificate.names_as_issuer(issuer) || self.checks_left == 0 {
            return false;
        }
        self.checks_left -= 1;
        if let Err(error) = certificate.verify_signed_by(issuer) {
            self.untrusted(
                certificate,
                format!("issued by {}: {error}", issuer.subject()),
            );
            return false;
        }
        if !issuer.may_issue(below, trusted) {
            self.untrusted(
                certificate,
                format!("{} may not issue it", issuer.subject()),
            );
            return false;
        }
        self.acceptable(issuer)
    }

    fn may_sign(&mut self, signer: &Certificate) -> bool {
        let may = signer.may_sign();
        if !may {
            self.untrusted(signer, "its key usage does not allow signatures".to_owned());
        }
        may
    }

    fn acceptable(&mut self, certificate: &Certificate) -> bool {
        if !certificate.is_valid_at(self.at) {
            self.obstacle = PkiError::NotValid {
                subject: certificate.subject(),
                validity: Validity {
                    from: certificate.valid_from(),
                    until: certificate.valid_until(),
                },
                at: self.at,
            };
            return false;
        }
        if let Some(oid) = certificate.unknown_critical_extension() {
            self.untrusted(certificate, format!("unknown critical extension {oid}"));
            return false;
        }
        true
    }

    fn untrusted(&mut self, certificate: &Certificate, why: String) {
        self.obstacle = PkiError::Untrusted {
            subject: certificate.subject(),
            why,
        };
    }
}
