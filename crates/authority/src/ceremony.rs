//! Making a publications file where its key is, away from the authority.
//!
//! In: the newest file (or none yet), publication codes that somebody carried here,
//! certificates of calendars. Out: the next file. There is no calendar here, so that
//! a code is the authority's root is checked when the file is handed in; that it
//! contradicts nothing that was published is checked here, by whoever signs it.

use std::fmt;

use pitser_ksi::pki::{
    Certificate, Constraint, PkiError, RsaSigner, SignError, Signer, TrustAnchors,
};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::{BuildError, Contents, PublicationsFile};
use pitser_ksi::time::Second;

use crate::identity::BroughtKey;
use crate::signer::{Checked, External};

/// What the next publications file is made of.
#[derive(Debug)]
pub struct Composition<'a> {
    /// The newest file; `None`: there is none yet.
    pub old: Option<Old<'a>>,
    /// What to publish.
    pub publications: &'a [PublicationData],
    /// The certificates of calendars' keys, DER, besides those that the file has.
    pub certificates: Vec<Vec<u8>>,
    /// What verifiers demand of the subject of the certificate that signs.
    pub constraint: &'a str,
    /// The time by the clock here.
    pub now: Second,
}

/// A publications file, and who must have signed it.
#[derive(Debug, Clone, Copy)]
pub struct Old<'a> {
    /// The file.
    pub file: &'a PublicationsFile,
    /// The certificate, in PEM.
    pub certificate_pem: &'a str,
    /// What verifiers demand of its subject.
    pub constraint: &'a str,
}

/// A key and its certificate.
pub struct PublicationsKey {
    signer: Checked,
    certificate: Certificate,
}

impl PublicationsKey {
    /// Reads the key, or asks the program that has it for a signature of nothing.
    ///
    /// # Errors
    /// [`ComposeError::NoPair`], [`ComposeError::Pki`].
    pub fn open(key: &BroughtKey<'_>, certificate_pem: &str) -> Result<Self, ComposeError> {
        let certificate = Certificate::from_pem(certificate_pem)?;
        let key: Box<dyn Signer + Send + Sync> = match key {
            BroughtKey::Pem(pem) => Box::new(RsaSigner::from_pkcs8_pem(pem)?),
            BroughtKey::Behind(command) => {
                Box::new(External::new((*command).clone(), &certificate)?)
            }
        };
        let signer = Checked::new(key, certificate.clone());
        signer.probe().map_err(ComposeError::NoPair)?;
        Ok(Self {
            signer,
            certificate,
        })
    }
}

impl fmt::Debug for PublicationsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicationsKey({})", self.certificate.subject())
    }
}

impl Composition<'_> {
    /// Signs the next file.
    ///
    /// # Errors
    /// [`ComposeError`], and nothing was signed.
    pub fn sign(&self, key: &PublicationsKey) -> Result<PublicationsFile, ComposeError> {
        let constraint: Constraint = self.constraint.parse()?;
        if !constraint.is_met_by(&key.certificate) {
            return Err(ComposeError::OtherSubject {
                constraint: self.constraint.to_owned(),
            });
        }
        if !key.certificate.is_valid_at(self.now) {
            return Err(ComposeError::NotValid {
                now: self.now,
                from: key.certificate.valid_from(),
                until: key.certificate.valid_until(),
            });
        }
        if let Some(old) = &self.old {
            self.check_old(old)?;
        }
        let contents = self.contents()?;
        let der = key.certificate.der();
        Ok(PublicationsFile::build(&contents, der, &key.signer)?)
    }

    fn check_old(&self, old: &Old<'_>) -> Result<(), ComposeError> {
        let anchors = TrustAnchors::from_pem(old.certificate_pem)?;
        let made_at = old.file.created_at();
        old.file
            .verify(&anchors, &[old.constraint.parse()?], made_at)
            .map_err(ComposeError::OldUnsigned)?;
        if made_at > self.now {
            let now = self.now;
            return Err(ComposeError::ClockBehind { now, made_at });
        }
        Ok(())
    }

    /// All that the old file says, and what is new.
    fn contents(&self) -> Result<Contents, ComposeError> {
        let old = self.old.map(|old| old.file);
        let mut contents = Contents {
            created_at: self.now,
            ..Contents::default()
        };
        if let Some(old) = old {
            contents.repository = old.repository().map(str::to_owned);
            contents.certificates = old.certificates().iter().map(|it| it.der.clone()).collect();
            contents.publications = old.publications().to_vec();
        }
        for der in &self.certificates {
            if !contents.certificates.contains(der) {
                contents.certificates.push(der.clone());
            }
        }
        if contents.certificates.is_empty() {
            return Err(ComposeError::NoCertificate);
        }
        let latest = old.and_then(PublicationsFile::latest).map(|it| it.data);
        for data in self.publications {
            self.check_new(data, old, latest.as_ref())?;
            contents.publications.push((*data).into());
        }
        Ok(contents)
    }

    /// Whether `data` may follow what the old file publishes.
    fn check_new(
        &self,
        data: &PublicationData,
        old: Option<&PublicationsFile>,
        latest: Option<&PublicationData>,
    ) -> Result<(), ComposeError> {
        let at = data.time;
        if at > self.now {
            let now = self.now;
            return Err(ComposeError::NotEnded { at, now });
        }
        let known = old.and_then(|old| old.at_time(at));
        match (known, latest) {
            (Some(known), _) if known.data == *data => Err(ComposeError::Known { at }),
            (Some(_), _) => Err(ComposeError::Contradiction { at }),
            (None, Some(latest)) if at < latest.time => Err(ComposeError::Backdated {
                at,
                latest: latest.time,
            }),
            _ => Ok(()),
        }
    }
}

/// Why there is no next publications file. Says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// Key and certificate do not belong together, or the key does not sign.
    #[error("the key does not sign for this certificate: {0}")]
    NoPair(#[source] SignError),
    /// The certificate is another one than verifiers expect.
    #[error(
        "the certificate's subject does not match {constraint}; is it the publications certificate?"
    )]
    OtherSubject {
        /// What was demanded.
        constraint: String,
    },
    /// The certificate is for a time that is not now.
    #[error("the certificate is valid from {from} to {until}, and it is {now} by the clock here")]
    NotValid {
        /// What the clock shows.
        now: Second,
        /// The certificate's first second.
        from: Second,
        /// Its last second.
        until: Second,
    },
    /// The old file is by somebody else, or was altered.
    #[error(
        "the old file is not signed with that certificate: {0}. Get the authority's newest \
         publications.bin; if it is signed with an earlier certificate, name that as well"
    )]
    OldUnsigned(#[source] PkiError),
    /// The clock here is behind.
    #[error("the old file was made at {made_at}, and it is {now} by the clock here: set it right")]
    ClockBehind {
        /// What the clock shows.
        now: Second,
        /// When the old file was made.
        made_at: Second,
    },
    /// Nobody could verify a signature by the file.
    #[error(
        "the first file needs the certificate of the calendar's key: certificate.pem of the authority"
    )]
    NoCertificate,
    /// The publication is in the old file.
    #[error("the publication of {at} is in the old file already; leave its code out")]
    Known {
        /// The second of the publication.
        at: Second,
    },
    /// The old file has another root for that second.
    #[error(
        "the old file says something else about {at} than this code: one of the two is false. Sign \
         neither; compare them with what was printed, and ask who carried the code"
    )]
    Contradiction {
        /// The second of the publication.
        at: Second,
    },
    /// The publication is before one that is known.
    #[error(
        "the code is of {at}, before the old file's newest publication of {latest}: publications \
         come in order. Is the code an old one?"
    )]
    Backdated {
        /// The second of the publication.
        at: Second,
        /// The newest one.
        latest: Second,
    },
    /// The publication is of a time to come.
    #[error(
        "the code is of {at}, and it is {now} by the clock here: is the code or the clock wrong?"
    )]
    NotEnded {
        /// The second of the publication.
        at: Second,
        /// What the clock shows.
        now: Second,
    },
    /// The file cannot be made.
    #[error("cannot make the publications file: {0}")]
    Build(#[from] BuildError),
    /// A certificate or the constraint is malformed.
    #[error("key or certificate: {0}")]
    Pki(#[from] PkiError),
}
