//! Who signs the publications file: the authority's own key, or one that is kept
//! elsewhere and of which the data folder has the certificate alone.
//!
//! | file                           | content                                         |
//! |--------------------------------|-------------------------------------------------|
//! | `publications-certificate.pem` | the certificate of the key that is elsewhere    |
//! | `publications-constraint`      | one line, what verifiers demand of its subject  |
//!
//! Both or none. With them nothing here can sign a publications file: the schedule
//! says what is due, and a file that was made elsewhere is handed in.

use std::path::Path;

use pitser_disk::{Access, replace};
use pitser_ksi::pki::{Certificate, Constraint, PkiError, Signer as _, TrustAnchors};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;

use crate::identity::{Identity, IdentityError, io_error, read};

/// The certificate of a publications key that is not on the authority's machines.
#[derive(Debug, Clone, Copy)]
pub struct Pinned<'a> {
    /// In PEM: what verifiers trust.
    pub certificate_pem: &'a str,
    /// What verifiers are to demand of its subject, e.g. `email=publications@example.org`.
    pub constraint: &'a str,
}

/// Who signs the publications file, as verifiers know them.
#[derive(Debug, Clone)]
pub(crate) struct Signatory {
    pub(crate) certificate_pem: String,
    pub(crate) constraint: String,
    /// The key is not this authority's own.
    pub(crate) is_elsewhere: bool,
}

impl Signatory {
    /// The pinned one, else the authority itself. Looks at no key.
    pub(crate) fn open(dir: &Path) -> Result<Self, IdentityError> {
        let is_elsewhere = PINNED.iter().any(|name| dir.join(name).exists());
        let [certificate, constraint] = match is_elsewhere {
            true => PINNED,
            false => Identity::PUBLIC_FILES,
        };
        Ok(Self {
            certificate_pem: read(&dir.join(certificate))?,
            constraint: read(&dir.join(constraint))?.trim().to_owned(),
            is_elsewhere,
        })
    }

    /// The same, for an authority that is to run: a pinned certificate must meet its
    /// constraint and be of another key than `identity`'s.
    pub(crate) fn beside(dir: &Path, identity: &Identity) -> Result<Self, IdentityError> {
        let signatory = Self::open(dir)?;
        if signatory.is_elsewhere {
            let pinned = Pinned {
                certificate_pem: &signatory.certificate_pem,
                constraint: &signatory.constraint,
            };
            let certificate = pinned.certificate()?;
            if certificate.public_key_der()? == identity.signer.public_key_der() {
                return Err(IdentityError::SameKey);
            }
        }
        Ok(signatory)
    }

    /// Whether the signatory signed `file`, as of when it was made.
    pub(crate) fn verify(&self, file: &PublicationsFile) -> Result<(), PkiError> {
        let anchors = TrustAnchors::from_pem(&self.certificate_pem)?;
        let constraint: Constraint = self.constraint.parse()?;
        file.verify(&anchors, &[constraint], file.created_at())
    }
}

impl Pinned<'_> {
    /// Stores it; from then on the authority in `dir` publishes nothing by itself.
    pub(crate) fn store(&self, dir: &Path, now: Second) -> Result<(), IdentityError> {
        let present = PINNED.map(|name| dir.join(name));
        if let Some(path) = present.into_iter().find(|path| path.exists()) {
            return Err(IdentityError::Exists { path });
        }
        let certificate = self.certificate()?;
        if !certificate.is_valid_at(now) {
            return Err(IdentityError::NotValid {
                now,
                from: certificate.valid_from(),
                until: certificate.valid_until(),
            });
        }
        let [certificate, constraint] = PINNED.map(|name| dir.join(name));
        replace(
            &constraint,
            format!("{}\n", self.constraint).as_bytes(),
            Access::Everybody,
        )
        .map_err(io_error("write", &constraint))?;
        replace(
            &certificate,
            self.certificate_pem.as_bytes(),
            Access::Everybody,
        )
        .map_err(io_error("write", &certificate))
    }

    /// The certificate, if it is what the constraint demands.
    fn certificate(&self) -> Result<Certificate, IdentityError> {
        let certificate = Certificate::from_pem(self.certificate_pem)?;
        match self.constraint.parse::<Constraint>()? {
            constraint if constraint.is_met_by(&certificate) => Ok(certificate),
            _ => Err(IdentityError::OtherSubject {
                constraint: self.constraint.to_owned(),
            }),
        }
    }
}

/// Certificate and constraint.
const PINNED: [&str; 2] = ["publications-certificate.pem", "publications-constraint"];
