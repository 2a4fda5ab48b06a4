//! The publications file: what the calendar's operator vouches for (spec §4).
//!
//! ```text
//! KSIPUBLF                      8 bytes
//! 0701       header             01 version, written as 1, 02 creation time, 03 repository 0..1
//! 0702 × n   certificate        01 id (CRC-32 of the DER), 02 X.509 DER
//! 0703 × n   publication record 10 publication data, 09 references, 0A repositories
//! 0704       signature          detached PKCS#7 over every byte before it
//! ```
//! In this order, with nothing after 0704. Unknown elements are kept if they
//! are marked non-critical, and refused otherwise.

use thiserror::Error;

use crate::error::{DecodeError, DecodeErrorKind, EncodeError};
use crate::pki::{self, Certificate, Constraint, PkiError, Signer, TrustAnchors};
use crate::publication::{PublicationRecord, write_text};
use crate::time::Second;
use crate::tlv::{Element, Reader, Tag, Writer};

/// The first bytes of a publications file.
pub const MAGIC: &[u8; 8] = b"KSIPUBLF";

/// The longest publications file that is read, in bytes.
///
/// A publication takes about 60 bytes: this is a publication an hour for 30 years.
pub const MAX_LEN: usize = 16 << 20;

/// A publications file. It is believed only after [`PublicationsFile::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationsFile {
    /// The whole file.
    bytes: Vec<u8>,
    /// How many of `bytes`, from the first, are signed.
    signed_len: usize,
    signature: Vec<u8>,
    header: Header,
    certificates: Vec<CertificateRecord>,
    publications: Vec<PublicationRecord>,
}

impl PublicationsFile {
    /// Reads a publications file; its signature is not looked at.
    ///
    /// # Errors
    /// `Magic`, `TooLong` beyond [`MAX_LEN`], `Misplaced` for an element out of
    /// order, and what the elements themselves demand.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_LEN {
            let kind = DecodeErrorKind::TooLong { max: MAX_LEN };
            return Err(DecodeError::new(kind, 0));
        }
        let body = bytes
            .strip_prefix(MAGIC)
            .ok_or(DecodeError::new(DecodeErrorKind::Magic, 0))?;
        let mut reader = Reader::at(body, MAGIC.len());
        let first = reader.element()?;
        if first.tag != HEADER {
            let kind = DecodeErrorKind::UnexpectedTag {
                expected: HEADER,
                found: first.tag,
            };
            return Err(first.error(kind));
        }
        let header = Header::decode(&first)?;
        let (mut certificates, mut publications) = (Vec::new(), Vec::new());
        loop {
            let element = match reader.rest() {
                [] => return Err(first.error(DecodeErrorKind::Missing(SIGNATURE))),
                _ => reader.element()?,
            };
            match element.tag {
                CERTIFICATE if publications.is_empty() => {
                    certificates.push(CertificateRecord::decode(&element)?);
                }
                PUBLICATION => publications.push(PublicationRecord::decode(&element)?),
                SIGNATURE => {
                    reader.end()?;
                    return Ok(Self {
                        bytes: bytes.to_vec(),
                        signed_len: element.at,
                        signature: element.value.to_vec(),
                        header,
                        certificates,
                        publications,
                    });
                }
                HEADER => return Err(element.error(DecodeErrorKind::Repeated(HEADER))),
                CERTIFICATE => return Err(element.error(DecodeErrorKind::Misplaced(CERTIFICATE))),
                _ => element.ignore()?,
            }
        }
    }

    /// Writes and signs a publications file, publications in order of time.
    ///
    /// # Errors
    /// [`BuildError`]; nothing was signed for `Encode` and `SameTime`.
    pub fn build(
        contents: &Contents,
        certificate_der: &[u8],
        signer: &dyn Signer,
    ) -> Result<Self, BuildError> {
        let mut bytes = contents.encode()?;
        let signature = pki::sign_detached(&bytes, certificate_der, signer)?;
        let mut writer = Writer::new();
        writer.element(SIGNATURE, &signature);
        bytes.extend(writer.finish()?);
        Ok(Self::decode(&bytes)?)
    }

    /// The file, byte for byte as it was read or built.
    #[must_use]
    pub fn encode(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the signature is by someone the verifier trusts and expects;
    /// see [`pki::verify_detached`].
    ///
    /// # Errors
    /// Whatever speaks against it, as [`PkiError`].
    pub fn verify(
        &self,
        anchors: &TrustAnchors,
        constraints: &[Constraint],
        at: Second,
    ) -> Result<(), PkiError> {
        let signed = &self.bytes[..self.signed_len];
        pki::verify_detached(signed, &self.signature, anchors, constraints, at)
    }

    /// When the file was made, by its maker's word.
    #[must_use]
    pub fn created_at(&self) -> Second {
        self.header.created_at
    }

    /// Where newer files are to be had.
    #[must_use]
    pub fn repository(&self) -> Option<&str> {
        self.header.repository.as_deref()
    }

    /// The certificates, in the file's order.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateRecord] {
        &self.certificates
    }

    /// The publications, in the file's order.
    #[must_use]
    pub fn publications(&self) -> &[PublicationRecord] {
        &self.publications
    }

    /// The DER of the certificate listed under `id`.
    #[must_use]
    pub fn certificate(&self, id: &[u8]) -> Option<&[u8]> {
        let found = self.certificates.iter().find(|record| record.id == id)?;
        Some(&found.der)
    }

    /// The earliest publication at or after `at`: the first that covers it.
    #[must_use]
    pub fn nearest(&self, at: Second) -> Option<&PublicationRecord> {
        let later = self
            .publications
            .iter()
            .filter(|record| record.data.time >= at);
        later.min_by_key(|record| record.data.time)
    }

    /// The publication of exactly that second.
    #[must_use]
    pub fn at_time(&self, at: Second) -> Option<&PublicationRecord> {
        self.publications
            .iter()
            .find(|record| record.data.time == at)
    }

    /// The latest publication.
    #[must_use]
    pub fn latest(&self) -> Option<&PublicationRecord> {
        self.publications
            .iter()
            .max_by_key(|record| record.data.time)
    }
}

/// A certificate and the id by which authentication records name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// The id, 4 bytes in all known files.
    pub id: Vec<u8>,
    /// The X.509 certificate.
    pub der: Vec<u8>,
}

impl CertificateRecord {
    fn decode(element: &Element<'_>) -> Result<Self, DecodeError> {
        let (mut id, mut der) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut id, child.value.to_vec())?,
                0x02 => child.fill(&mut der, child.value.to_vec())?,
                _ => child.ignore()?,
            }
        }
        Ok(Self {
            id: element.require(id, 0x01)?,
            der: element.require(der, 0x02)?,
        })
    }
}

/// What a publications file is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Now.
    pub created_at: Second,
    /// Where newer files are to be had.
    pub repository: Option<String>,
    /// The certificates, DER, of all keys that signed calendar roots.
    pub certificates: Vec<Vec<u8>>,
    /// The publications, in any order.
    pub publications: Vec<PublicationRecord>,
}

impl Contents {
    /// Everything before the signature.
    fn encode(&self) -> Result<Vec<u8>, BuildError> {
        let mut publications: Vec<_> = self.publications.iter().collect();
        publications.sort_by_key(|record| record.data.time);
        if let Some(pair) = publications
            .windows(2)
            .find(|pair| pair[0].data.time == pair[1].data.time)
        {
            return Err(BuildError::SameTime(pair[0].data.time));
        }
        let mut writer = Writer::new();
        writer.raw(MAGIC).nested(HEADER, |w| {
            w.integer(0x01, VERSION)
                .integer(0x02, self.created_at.0)
                .each(&self.repository, |w, text| write_text(w, 0x03, text))
        });
        for der in &self.certificates {
            let certificate = Certificate::from_der(der)?;
            writer.nested(CERTIFICATE, |w| {
                w.element(0x01, &certificate.id()).element(0x02, der)
            });
        }
        publications
            .iter()
            .for_each(|record| record.write(&mut writer, PUBLICATION));
        Ok(writer.finish()?)
    }
}

/// A publications file cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two publications claim the same second.
    #[error("two publications at {0}")]
    SameTime(Second),
    /// A certificate is unreadable, or signing failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A part is longer than the format allows.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The file is longer than [`MAX_LEN`], or could not be read back.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    created_at: Second,
    repository: Option<String>,
}

impl Header {
    fn decode(element: &Element<'_>) -> Result<Self, DecodeError> {
        let (mut version, mut created_at, mut repository) = (None, None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut version, child.integer()?)?,
                0x02 => child.fill(&mut created_at, child.second()?)?,
                0x03 => child.fill(&mut repository, child.non_empty_string()?.to_owned())?,
                _ => child.ignore()?,
            }
        }
        // What a reader of another version had to know would be marked critical.
        element.require(version, 0x01)?;
        Ok(Self {
            created_at: element.require(created_at, 0x02)?,
            repository,
        })
    }
}

const HEADER: Tag = 0x0701;
const CERTIFICATE: Tag = 0x0702;
const PUBLICATION: Tag = 0x0703;
const SIGNATURE: Tag = 0x0704;
const VERSION: u64 = 1;
