//! Who the authority is, in three files.
//!
//! | file              | content                                               |
//! |-------------------|-------------------------------------------------------|
//! | `signing-key.pem` | RSA key, PKCS#8, readable by the owner alone; none if |
//! |                   | a program signs ([`crate::SignerCommand`])            |
//! | `certificate.pem` | its certificate                                       |
//! | `constraint`      | one line, what verifiers demand of the subject, e.g.  |
//! |                   | `email=publications@example.org`                      |

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use pitser_disk::{Access, replace};
use pitser_ksi::pki::{
    self, Certificate, Constraint, PkiError, RsaSigner, SignError, Signer, Subject, Validity,
};
use pitser_ksi::time::Second;
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use crate::signer::{Checked, External, SignerCommand};

const KEY_FILE: &str = "signing-key.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
const CONSTRAINT_FILE: &str = "constraint";
const KEY_BITS: usize = 2048;
/// Validity of a new certificate. A publication outlives it by design.
const VALIDITY_S: u64 = 10 * 365 * 86_400;

pub(crate) struct Identity {
    pub(crate) signer: Checked,
    pub(crate) certificate: Certificate,
}

impl Identity {
    /// Makes a key and a certificate valid from `from` on; takes about a second.
    pub(crate) fn create(dir: &Path, subject: &Subject, from: Second) -> Result<(), IdentityError> {
        Self::refuse_existing(dir)?;
        let signer = RsaSigner::generate(&mut OsRng, KEY_BITS)?;
        let validity = Validity {
            from,
            until: from.plus(VALIDITY_S),
        };
        let der = pki::self_signed(subject, validity, &new_serial(), &signer)?;
        let key = dir.join(KEY_FILE);
        replace(&key, signer.to_pkcs8_pem()?.as_bytes(), Access::Owner)
            .map_err(io_error("write", &key))?;
        let certificate = dir.join(CERTIFICATE_FILE);
        replace(&certificate, to_pem(&der).as_bytes(), Access::Everybody)
            .map_err(io_error("write", &certificate))?;
        let constraint = dir.join(CONSTRAINT_FILE);
        replace(
            &constraint,
            format!("{}\n", constraint_on(subject)).as_bytes(),
            Access::Everybody,
        )
        .map_err(io_error("write", &constraint))
    }

    /// Stores what was made elsewhere; the caller checked it.
    pub(crate) fn import(dir: &Path, brought: &Brought<'_>) -> Result<(), IdentityError> {
        Self::refuse_existing(dir)?;
        if let BroughtKey::Pem(pem) = &brought.key {
            let key = dir.join(KEY_FILE);
            replace(&key, pem.as_bytes(), Access::Owner).map_err(io_error("write", &key))?;
        }
        for (name, text) in [
            (CERTIFICATE_FILE, brought.certificate_pem.to_owned()),
            (CONSTRAINT_FILE, format!("{}\n", brought.constraint)),
        ] {
            let path = dir.join(name);
            replace(&path, text.as_bytes(), Access::Everybody).map_err(io_error("write", &path))?;
        }
        Ok(())
    }

    /// The certificate in PEM, and the constraint: what anybody may know.
    pub(crate) const PUBLIC_FILES: [&str; 2] = [CERTIFICATE_FILE, CONSTRAINT_FILE];

    /// The certificate alone.
    pub(crate) fn certificate(dir: &Path) -> Result<Certificate, IdentityError> {
        Ok(Certificate::from_pem(&read(&dir.join(CERTIFICATE_FILE))?)?)
    }

    /// Fails if there is a key or a certificate: they are never overwritten.
    pub(crate) fn refuse_existing(dir: &Path) -> Result<(), IdentityError> {
        let present = [KEY_FILE, CERTIFICATE_FILE].map(|name| dir.join(name));
        match present.into_iter().find(|path| path.exists()) {
            Some(path) => Err(IdentityError::Exists { path }),
            None => Ok(()),
        }
    }

    /// Reads certificate and key, or asks `signer` whether it has that key.
    pub(crate) fn open(dir: &Path, signer: Option<&SignerCommand>) -> Result<Self, IdentityError> {
        let certificate = Self::certificate(dir)?;
        let constraint = read(&dir.join(CONSTRAINT_FILE))?.trim().to_owned();
        if !constraint.parse::<Constraint>()?.is_met_by(&certificate) {
            return Err(IdentityError::OtherSubject { constraint });
        }
        let key: Box<dyn Signer + Send + Sync> = match signer {
            Some(command) => Box::new(External::new(command.clone(), &certificate)?),
            None => Box::new(RsaSigner::from_pkcs8_pem(&read_key(dir)?)?),
        };
        let signer = Checked::new(key, certificate.clone());
        signer.probe().map_err(IdentityError::CannotSign)?;
        Ok(Self {
            signer,
            certificate,
        })
    }

    /// SHA-256 of the certificate, in hexadecimal digits.
    #[cfg(feature = "cluster")]
    pub(crate) fn certificate_digest(&self) -> String {
        use sha2::{Digest, Sha256};
        data_encoding::HEXLOWER.encode(&Sha256::digest(self.certificate.der()))
    }

    /// Refuses to sign what no verifier would accept.
    pub(crate) fn check_valid(&self, now: Second) -> Result<(), IdentityError> {
        if self.certificate.is_valid_at(now) {
            return Ok(());
        }
        Err(IdentityError::NotValid {
            now,
            from: self.certificate.valid_from(),
            until: self.certificate.valid_until(),
        })
    }
}

/// A signing key and a certificate that were made elsewhere.
pub struct Brought<'a> {
    /// The RSA key.
    pub key: BroughtKey<'a>,
    /// Its certificate in PEM: what verifiers trust.
    pub certificate_pem: &'a str,
    /// What verifiers are to demand of the certificate's subject, e.g.
    /// `email=publications@example.org`.
    pub constraint: &'a str,
}

/// Where a key is that was made elsewhere.
pub enum BroughtKey<'a> {
    /// PKCS#8 in PEM: it is copied into the data folder.
    Pem(&'a str),
    /// Behind a program, where it stays. The authority is to be started with the
    /// same command ([`crate::Config::signer`]).
    Behind(&'a SignerCommand),
}

impl fmt::Debug for BroughtKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(_) => f.write_str("Pem(..)"),
            Self::Behind(command) => f.debug_tuple("Behind").field(command).finish(),
        }
    }
}

impl fmt::Debug for Brought<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brought")
            .field("constraint", &self.constraint)
            .finish_non_exhaustive()
    }
}

impl Brought<'_> {
    /// Refuses what would not verify at `now`.
    pub(crate) fn check(&self, now: Second) -> Result<(), IdentityError> {
        let certificate = Certificate::from_pem(self.certificate_pem)?;
        match &self.key {
            BroughtKey::Pem(pem) => {
                let key = Box::new(RsaSigner::from_pkcs8_pem(pem)?);
                let signer = Checked::new(key, certificate.clone());
                signer.probe().map_err(|_| IdentityError::NoPair)?;
            }
            BroughtKey::Behind(command) => {
                let key = Box::new(External::new((*command).clone(), &certificate)?);
                let signer = Checked::new(key, certificate.clone());
                signer.probe().map_err(IdentityError::CannotSign)?;
            }
        }
        if !self
            .constraint
            .parse::<Constraint>()?
            .is_met_by(&certificate)
        {
            return Err(IdentityError::OtherSubject {
                constraint: self.constraint.to_owned(),
            });
        }
        if !certificate.is_valid_at(now) {
            return Err(IdentityError::NotValid {
                now,
                from: certificate.valid_from(),
                until: certificate.valid_until(),
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("subject", &self.certificate.subject())
            .finish()
    }
}

/// Why the key or certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// `create` found a key, and does not throw keys away.
    #[error("{} exists; choose another folder, or move it away first", path.display())]
    Exists {
        /// The key file.
        path: PathBuf,
    },
    /// Others than the owner can read the key.
    #[error("{} can be read by others; chmod 600 it, and consider the key known", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
    },
    /// The certificate is for a time that is not now.
    #[error("the certificate is valid from {from} to {until}, and it is {now}")]
    NotValid {
        /// What the clock shows.
        now: Second,
        /// The certificate's first second.
        from: Second,
        /// Its last second.
        until: Second,
    },
    /// The key does not sign, or not what the certificate verifies.
    #[error(transparent)]
    CannotSign(SignError),
    /// Key and certificate are of two pairs.
    #[error("this certificate is for another key; bring the one that was made for it")]
    NoPair,
    /// Somebody exchanged one of the files, or the constraint is for another one.
    #[error(
        "the certificate's subject does not match {constraint}; are key, certificate and constraint of one set?"
    )]
    OtherSubject {
        /// What was demanded.
        constraint: String,
    },
    /// The pinned certificate is of the calendar's own key.
    #[error(
        "the pinned publications certificate is of the key that signs the calendar here: pin the \
         certificate of a key that is kept elsewhere"
    )]
    SameKey,
    /// Key or certificate is malformed, or could not be made.
    #[error("signing key or certificate: {0}")]
    Pki(#[from] PkiError),
}

/// The field of the subject that verifiers are to pin.
fn constraint_on(subject: &Subject) -> String {
    let fields = [
        ("email", &subject.email),
        ("CN", &subject.common_name),
        ("O", &subject.organization),
        ("C", &subject.country),
    ];
    let field = fields.into_iter().find(|(_, value)| !value.is_empty());
    field
        .map(|(name, value)| format!("{name}={value}"))
        .unwrap_or_default()
}

/// The key in PEM, if nobody else could read it.
fn read_key(dir: &Path) -> Result<Zeroizing<String>, IdentityError> {
    let path = dir.join(KEY_FILE);
    let mode = fs::metadata(&path)
        .map_err(io_error("read", &path))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path });
    }
    read(&path).map(Zeroizing::new)
}

pub(crate) fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(io_error("read", path))
}

/// 16 random bytes, positive.
fn new_serial() -> [u8; 16] {
    let mut serial = [0; 16];
    OsRng.fill_bytes(&mut serial);
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

fn to_pem(der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

pub(crate) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io {
        action,
        path,
        source,
    }
}
