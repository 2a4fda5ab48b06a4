//! Keys, certificates and detached PKCS#7 signatures: the part of KSI-compatible
//! verification that rests on a public-key infrastructure (spec §3.6, §4).
//!
//! In scope: RSA PKCS#1 v1.5 signatures, X.509 certificates as far as they
//! carry such keys, detached SignedData, a small path validator.
//! Elsewhere: what is signed (`publications_file`, `publication`), clocks and
//! randomness (arguments), revocation (not part of the KSI formats), elliptic
//! curves (the SDKs do not agree on them, spec §3.6).
//!
//! ```no_run
//! # use pitser_ksi::pki::{Constraint, TrustAnchors, verify_detached};
//! # use pitser_ksi::time::Second;
//! # fn example(content: &[u8], pkcs7: &[u8], pem: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let anchors = TrustAnchors::from_pem(pem)?;
//! let signer = ["email=publications@example.org".parse::<Constraint>()?];
//! verify_detached(content, pkcs7, &anchors, &signer, Second(1_717_200_000))?;
//! # Ok(()) }
//! ```

mod asn1;
mod certificate;
mod cms;
mod constraint;
mod path;
mod signer;

pub use certificate::{Certificate, Subject, Validity, certificate_id, self_signed, verify_rsa};
pub use cms::{sign_detached, verify_detached};
pub use constraint::Constraint;
pub use path::TrustAnchors;
/// The traits of the random source that [`RsaSigner::generate`] takes.
pub use rsa::rand_core;
pub use signer::{RsaSigner, SignError, Signer};

use crate::time::Second;

/// Smallest RSA modulus that is accepted, in bits.
pub const MIN_RSA_BITS: usize = 1024;
/// Largest RSA modulus that is accepted, in bits.
pub const MAX_RSA_BITS: usize = 8192;
/// The signature type that we write (spec §3.6): sha256WithRSAEncryption.
pub const SHA256_WITH_RSA: &str = "1.2.840.113549.1.1.11";

/// Why a key, a certificate or a signature was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// It is not what it should be.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// It is longer, or there are more, than any sound one has.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// An algorithm that is not supported; the OID, shortened to 64 characters.
    #[error("unsupported algorithm {0}")]
    Algorithm(String),
    /// An RSA modulus outside the accepted sizes.
    #[error("RSA key of {bits} bits, outside {MIN_RSA_BITS} to {MAX_RSA_BITS}")]
    KeySize {
        /// Bits of the modulus.
        bits: usize,
    },
    /// A private key cannot be read, made or written.
    #[error("{0}")]
    Key(&'static str),
    /// The signing key failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The certificate is for another key than the one that is to sign.
    #[error("the certificate belongs to another key")]
    KeyMismatch,
    /// A subject that cannot be put into a certificate.
    #[error("certificate subject: {0}")]
    Subject(&'static str),
    /// A constraint that cannot be understood.
    #[error("constraint {0:?}: write OID=value, or email, CN, O, OU or C for the OID")]
    ConstraintSyntax(String),
    /// The signature carries another number of signers than one.
    #[error("{0} signers instead of one")]
    SignerCount(usize),
    /// The signer's certificate is not embedded.
    #[error("the signer's certificate is missing")]
    SignerMissing,
    /// A signed attribute is missing, doubled, or says something else.
    #[error("signed attribute: {0}")]
    SignedAttribute(&'static str),
    /// The content is not what was signed.
    #[error("the content differs from what was signed")]
    Digest,
    /// The signature was not made by this key over this message.
    #[error("the signature does not match")]
    Signature,
    /// Nobody may be trusted without saying whom.
    #[error("no constraint on the signer was given")]
    NoConstraint,
    /// The signer is somebody else; the constraint that was not met.
    #[error("the signer's certificate does not match {0}")]
    Constraint(Constraint),
    /// No chain of issuers leads to a trust anchor.
    #[error("{subject} is not trusted: {why}")]
    Untrusted {
        /// Subject of the signer's certificate.
        subject: String,
        /// The obstacle nearest to a trusted path.
        why: String,
    },
    /// A certificate on the path is not valid at the given time.
    #[error("{}", not_valid(subject, *validity, *at))]
    NotValid {
        /// Subject of that certificate.
        subject: String,
        /// When it is valid.
        validity: Validity,
        /// The time that was asked about.
        at: Second,
    },
}

/// What is wrong, since when, and what helps.
fn not_valid(subject: &str, validity: Validity, at: Second) -> String {
    let Validity { from, until } = validity;
    if at > until {
        format!(
            "the certificate of {subject} expired at {until}, and {at} is later: get what was \
             signed with a newer certificate, or judge as of a time before it expired"
        )
    } else {
        format!(
            "the certificate of {subject} is valid from {from} on, and {at} is earlier: look at \
             the clock, or judge as of a later time"
        )
    }
}

/// Object identifiers.
mod oid {
    use der::asn1::ObjectIdentifier;

    const fn oid(dotted: &str) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(dotted)
    }

    /// Reads an identifier that reads as it is written. Left to itself, the library
    /// recurses for each digit, lets numbers overflow (several spellings, or a
    /// panic), takes some that it panics over when they are displayed, and takes
    /// others for something else (16459 for 0.75).
    pub(super) fn parse(dotted: &str) -> Option<ObjectIdentifier> {
        let is_number = |arc: &str| arc.parse::<u32>().is_ok();
        if dotted.len() > MAX_DOTTED_LEN || !dotted.split('.').all(is_number) {
            return None;
        }
        let identifier = ObjectIdentifier::new(dotted).ok()?;
        ObjectIdentifier::from_bytes(identifier.as_bytes())
            .ok()
            .filter(|sound| sound.to_string() == dotted)
    }

    /// The library holds 39 bytes; a digit takes more than a quarter of one.
    const MAX_DOTTED_LEN: usize = 200;

    pub(super) const RSA_ENCRYPTION: ObjectIdentifier = oid("1.2.840.113549.1.1.1");
    pub(super) const SHA1_WITH_RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.5");
    pub(super) const SHA256_WITH_RSA: ObjectIdentifier = oid(super::SHA256_WITH_RSA);
    pub(super) const SHA384_WITH_RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.12");
    pub(super) const SHA512_WITH_RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.13");
    pub(super) const SHA1: ObjectIdentifier = oid("1.3.14.3.2.26");
    pub(super) const SHA256: ObjectIdentifier = oid("2.16.840.1.101.3.4.2.1");
    pub(super) const SHA384: ObjectIdentifier = oid("2.16.840.1.101.3.4.2.2");
    pub(super) const SHA512: ObjectIdentifier = oid("2.16.840.1.101.3.4.2.3");

    pub(super) const PKCS7_DATA: ObjectIdentifier = oid("1.2.840.113549.1.7.1");
    pub(super) const PKCS7_SIGNED_DATA: ObjectIdentifier = oid("1.2.840.113549.1.7.2");
    pub(super) const CONTENT_TYPE: ObjectIdentifier = oid("1.2.840.113549.1.9.3");
    pub(super) const MESSAGE_DIGEST: ObjectIdentifier = oid("1.2.840.113549.1.9.4");

    pub(super) const EMAIL: ObjectIdentifier = oid("1.2.840.113549.1.9.1");
    pub(super) const COMMON_NAME: ObjectIdentifier = oid("2.5.4.3");
    pub(super) const COUNTRY: ObjectIdentifier = oid("2.5.4.6");
    pub(super) const ORGANIZATION: ObjectIdentifier = oid("2.5.4.10");
    pub(super) const ORGANIZATIONAL_UNIT: ObjectIdentifier = oid("2.5.4.11");

    pub(super) const SUBJECT_KEY_IDENTIFIER: ObjectIdentifier = oid("2.5.29.14");
    pub(super) const KEY_USAGE: ObjectIdentifier = oid("2.5.29.15");
    pub(super) const BASIC_CONSTRAINTS: ObjectIdentifier = oid("2.5.29.19");
    const SUBJECT_ALT_NAME: ObjectIdentifier = oid("2.5.29.17");
    const CERTIFICATE_POLICIES: ObjectIdentifier = oid("2.5.29.32");
    const EXTENDED_KEY_USAGE: ObjectIdentifier = oid("2.5.29.37");

    /// Extensions that may be critical: they are applied, or cannot widen trust
    /// in a signer that is pinned by anchor and constraint.
    pub(super) const UNDERSTOOD_EXTENSIONS: [ObjectIdentifier; 6] = [
        SUBJECT_KEY_IDENTIFIER,
        KEY_USAGE,
        BASIC_CONSTRAINTS,
        SUBJECT_ALT_NAME,
        CERTIFICATE_POLICIES,
        EXTENDED_KEY_USAGE,
    ];
}
