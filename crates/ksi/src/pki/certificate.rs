//! X.509 certificates: read, identified, used to check RSA signatures, made.
//!
//! ```text
//! Certificate ::= SEQUENCE { tbs SEQUENCE, algorithm SEQUENCE, signature BIT STRING }
//! ```
//! The bytes are kept as they came, so that what is checked is what was signed.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use der::asn1::{Any, ObjectIdentifier, OctetString, OctetStringRef, SetOfVec};
use der::{Decode, Encode, Tag, Tagged};
use rsa::{Pkcs1v15Sign, RsaPublicKey};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;
use x509_cert::{TbsCertificate, Version};

use super::asn1::{self, Reader};
use super::{MAX_RSA_BITS, MIN_RSA_BITS, PkiError, Signer, oid};
use crate::time::Second;

/// The certificate id of the KSI formats (spec §3.6): CRC-32 (IEEE) of the
/// DER, big-endian.
///
/// It finds a certificate; it proves nothing about it.
pub fn certificate_id(der: &[u8]) -> [u8; 4] {
    crc32fast::hash(der).to_be_bytes()
}

/// Checks an RSASSA-PKCS1-v1_5 signature with the key of a DER certificate.
///
/// See [`Certificate::verify_rsa`], which this calls.
///
/// # Errors
/// As [`Certificate::from_der`] and [`Certificate::verify_rsa`].
pub fn verify_rsa(
    certificate_der: &[u8],
    oid: &str,
    message: &[u8],
    signature: &[u8],
) -> Result<(), PkiError> {
    Certificate::from_der(certificate_der)?.verify_rsa(oid, message, signature)
}

/// An X.509 certificate and the exact bytes it came in.
#[derive(Clone)]
pub struct Certificate {
    der: Vec<u8>,
    /// Where in `der` the signed part lies.
    signed: Range<usize>,
    tbs: TbsCertificate,
    algorithm: ObjectIdentifier,
    signature: Vec<u8>,
}

impl Certificate {
    /// Reads one DER certificate of at most 65 535 bytes.
    ///
    /// # Errors
    /// [`PkiError::TooLarge`], or [`PkiError::Malformed`] for anything that is
    /// not strict DER of an X.509 certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        const WHAT: &str = "X.509 certificate";
        if der.len() > asn1::MAX_LEN {
            return Err(PkiError::TooLarge(WHAT));
        }
        let whole = Reader::single(der, asn1::SEQUENCE, WHAT)?;
        let header = der.len() - whole.value.len();
        let mut fields = whole.children();
        let tbs = fields.expect(asn1::SEQUENCE, WHAT)?.raw;
        let algorithm = fields.expect(asn1::SEQUENCE, WHAT)?.raw;
        let signature = fields.expect(asn1::BIT_STRING, WHAT)?.value;
        fields.finish(WHAT)?;
        if !asn1::is_sound(der) {
            return Err(PkiError::Malformed(WHAT));
        }
        let malformed = |_| PkiError::Malformed(WHAT);
        let parsed = TbsCertificate::from_der(tbs).map_err(malformed)?;
        let algorithm = AlgorithmIdentifierOwned::from_der(algorithm).map_err(malformed)?;
        if algorithm != parsed.signature {
            return Err(PkiError::Malformed(WHAT));
        }
        let (&0, signature) = signature.split_first().ok_or(PkiError::Malformed(WHAT))? else {
            return Err(PkiError::Malformed(WHAT));
        };
        Ok(Self {
            signed: header..header + tbs.len(),
            der: der.to_vec(),
            tbs: parsed,
            algorithm: algorithm.oid,
            signature: signature.to_vec(),
        })
    }

    /// Reads the first `-----BEGIN CERTIFICATE-----` of `pem`.
    ///
    /// # Errors
    /// As [`Self::many_from_pem`].
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let mut all = Self::many_from_pem(pem)?;
        Ok(all.swap_remove(0))
    }

    /// Reads every `-----BEGIN CERTIFICATE-----` of `pem`, one at least, 1 024
    /// at most; text around them is skipped.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] when there is none or one of them is unsound.
    pub fn many_from_pem(pem: &str) -> Result<Vec<Self>, PkiError> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        const END: &str = "-----END CERTIFICATE-----";
        const WHAT: &str = "PEM certificate";
        let mut certificates = Vec::new();
        let mut rest = pem;
        while let Some(begin) = rest.find(BEGIN) {
            let (body, after) = rest[begin + BEGIN.len()..]
                .split_once(END)
                .ok_or(PkiError::Malformed(WHAT))?;
            if certificates.len() == 1024 {
                return Err(PkiError::TooLarge("list of PEM certificates"));
            }
            let body: String = body.split_whitespace().collect();
            let der = data_encoding::BASE64
                .decode(body.as_bytes())
                .map_err(|_| PkiError::Malformed(WHAT))?;
            certificates.push(Self::from_der(&der)?);
            rest = after;
        }
        if certificates.is_empty() {
            Err(PkiError::Malformed(WHAT))
        } else {
            Ok(certificates)
        }
    }

    /// The certificate as it came.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The id under which publications files list it; see [`certificate_id`].
    pub fn id(&self) -> [u8; 4] {
        certificate_id(&self.der)
    }

    /// The subject, in the notation of RFC 4514.
    pub fn subject(&self) -> String {
        self.tbs.subject.to_string()
    }

    /// First second at which it is valid.
    pub fn valid_from(&self) -> Second {
        seconds(self.tbs.validity.not_before)
    }

    /// Last second at which it is valid.
    pub fn valid_until(&self) -> Second {
        seconds(self.tbs.validity.not_after)
    }

    /// Whether `at` lies within the validity window, both ends included.
    pub fn is_valid_at(&self, at: Second) -> bool {
        (self.valid_from()..=self.valid_until()).contains(&at)
    }

    /// Whether [`Self::verify_rsa`] can use its key at all: RSA of an accepted size.
    pub fn has_supported_key(&self) -> bool {
        self.rsa_key().is_ok()
    }

    /// Checks an RSASSA-PKCS1-v1_5 signature over `message` with this
    /// certificate's key, whatever the certificate's validity.
    ///
    /// `oid` is one of sha1/sha256/sha384/sha512WithRSAEncryption, dotted. SHA-1
    /// is accepted because published files use it; whether that is trusted is
    /// the caller's matter.
    ///
    /// # Errors
    /// [`PkiError::Algorithm`] for other OIDs and for keys that are not RSA,
    /// [`PkiError::KeySize`] outside `1024..=8192` bits, [`PkiError::Signature`]
    /// if it does not match.
    pub fn verify_rsa(&self, oid: &str, message: &[u8], signature: &[u8]) -> Result<(), PkiError> {
        let hash = oid::parse(oid)
            .and_then(|oid| RsaHash::from_signature_oid(&oid))
            .ok_or_else(|| PkiError::Algorithm(oid.chars().take(64).collect()))?;
        self.verify_with(hash, message, signature)
    }

    /// Whether the subject's key made `signature` over `message`.
    pub(super) fn verify_with(
        &self,
        hash: RsaHash,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), PkiError> {
        let (padding, digest) = hash.padding_and_digest(message);
        self.rsa_key()?
            .verify(padding, &digest, signature)
            .map_err(|_| PkiError::Signature)
    }

    /// Whether this certificate names `issuer` as its issuer.
    pub(super) fn names_as_issuer(&self, issuer: &Self) -> bool {
        self.tbs.issuer == issuer.tbs.subject
    }

    /// Checks that `issuer`'s key signed this certificate.
    pub(super) fn verify_signed_by(&self, issuer: &Self) -> Result<(), PkiError> {
        let signed = &self.der[self.signed.clone()];
        let hash = RsaHash::from_signature_oid(&self.algorithm)
            .ok_or_else(|| PkiError::Algorithm(self.algorithm.to_string()))?;
        issuer.verify_with(hash, signed, &self.signature)
    }

    /// Issuer and serial number as DER, the way PKCS#7 points at a signer.
    pub(super) fn issuer_and_serial(&self) -> Result<Vec<u8>, PkiError> {
        let malformed = |_| PkiError::Malformed("certificate issuer");
        let issuer = self.tbs.issuer.to_der().map_err(malformed)?;
        let serial = self.tbs.serial_number.to_der().map_err(malformed)?;
        Ok(asn1::element(asn1::SEQUENCE, &[&issuer, &serial]))
    }

    /// The subject key identifier, if it has one.
    pub(super) fn subject_key_id(&self) -> Option<Vec<u8>> {
        let value = self.extension(&oid::SUBJECT_KEY_IDENTIFIER)?;
        let id = SubjectKeyIdentifier::from_der(value).ok()?;
        Some(id.0.as_bytes().to_vec())
    }

    /// Every value of the subject attribute `attribute`.
    pub(super) fn subject_values(
        &self,
        attribute: ObjectIdentifier,
    ) -> impl Iterator<Item = Option<String>> {
        let attributes = self.tbs.subject.0.iter().flat_map(|rdn| rdn.0.iter());
        attributes
            .filter(move |pair| pair.oid == attribute)
            .map(|pair| text(&pair.value))
    }

    /// The subject's key as DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] if the key cannot be written back.
    pub fn public_key_der(&self) -> Result<Vec<u8>, PkiError> {
        let key = &self.tbs.subject_public_key_info;
        key.to_der()
            .map_err(|_| PkiError::Malformed("certificate key"))
    }

    /// May it issue certificates with `below` more issuers between it and the
    /// signer (RFC 5280 §4.2.1.3, §4.2.1.9)?
    ///
    /// A version 1 certificate has no extensions that could say so; `trusted`
    /// tells that the verifier chose it as an anchor, which then is enough.
    pub(super) fn may_issue(&self, below: usize, trusted: bool) -> bool {
        if self.tbs.version == Version::V1 {
            return trusted;
        }
        let Some(basic) = self
            .extension(&oid::BASIC_CONSTRAINTS)
            .and_then(|value| BasicConstraints::from_der(value).ok())
        else {
            return false;
        };
        let usage_allows = self.usage_allows(|usage| usage.key_cert_sign());
        let length_allows = basic
            .path_len_constraint
            .is_none_or(|limit| below <= usize::from(limit));
        basic.ca && length_allows && usage_allows
    }

    /// May its key sign what is neither a certificate nor a revocation list
    /// (RFC 5280 §4.2.1.3)?
    pub(super) fn may_sign(&self) -> bool {
        self.usage_allows(|usage| usage.digital_signature() || usage.non_repudiation())
    }

    /// Whether the key usage, if it is limited at all, allows something.
    fn usage_allows(&self, allows: impl FnOnce(KeyUsage) -> bool) -> bool {
        self.extension(&oid::KEY_USAGE)
            .is_none_or(|value| KeyUsage::from_der(value).is_ok_and(allows))
    }

    /// A critical extension that the path validator does not know.
    pub(super) fn unknown_critical_extension(&self) -> Option<String> {
        self.extensions()
            .find(|found| found.critical && !oid::UNDERSTOOD_EXTENSIONS.contains(&found.extn_id))
            .map(|found| found.extn_id.to_string())
    }

    /// The value of an extension; one that is unsound DER is treated as an empty one.
    fn extension(&self, id: &ObjectIdentifier) -> Option<&[u8]> {
        let found = self.extensions().find(|found| found.extn_id == *id)?;
        let value = found.extn_value.as_bytes();
        Some(if asn1::is_sound(value) { value } else { &[] })
    }

    fn extensions(&self) -> impl Iterator<Item = &Extension> {
        self.tbs.extensions.iter().flatten()
    }

    fn rsa_key(&self) -> Result<RsaPublicKey, PkiError> {
        let info = &self.tbs.subject_public_key_info;
        if info.algorithm.oid != oid::RSA_ENCRYPTION {
            return Err(PkiError::Algorithm(info.algorithm.oid.to_string()));
        }
        let malformed = PkiError::Malformed("RSA public key");
        let Some(bytes) = info.subject_public_key.as_bytes() else {
            return Err(malformed);
        };
        let Ok(key) = rsa::pkcs1::RsaPublicKey::from_der(bytes) else {
            return Err(malformed);
        };
        let part = |bytes: &[u8]| rsa::BigUint::from_bytes_be(bytes);
        let (n, e) = (
            part(key.modulus.as_bytes()),
            part(key.public_exponent.as_bytes()),
        );
        if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&n.bits()) {
            return Err(PkiError::KeySize { bits: n.bits() });
        }
        RsaPublicKey::new_with_max_size(n, e, MAX_RSA_BITS).map_err(|_| malformed)
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Certificate({}, {} bytes)",
            self.subject(),
            self.der.len()
        )
    }
}

/// The hash of an RSASSA-PKCS1-v1_5 signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RsaHash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl RsaHash {
    pub(super) fn from_signature_oid(oid: &ObjectIdentifier) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.oids().1 == *oid)
    }

    pub(super) fn from_digest_oid(oid: &ObjectIdentifier) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.oids().0 == *oid)
    }

    pub(super) fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(message).to_vec(),
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        }
    }

    const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// OIDs of the bare digest and of the signature with RSA.
    fn oids(self) -> (ObjectIdentifier, ObjectIdentifier) {
        match self {
            Self::Sha1 => (oid::SHA1, oid::SHA1_WITH_RSA),
            Self::Sha256 => (oid::SHA256, oid::SHA256_WITH_RSA),
            Self::Sha384 => (oid::SHA384, oid::SHA384_WITH_RSA),
            Self::Sha512 => (oid::SHA512, oid::SHA512_WITH_RSA),
        }
    }

    fn padding_and_digest(self, message: &[u8]) -> (Pkcs1v15Sign, Vec<u8>) {
        let padding = match self {
            Self::Sha1 => Pkcs1v15Sign::new::<Sha1>(),
            Self::Sha256 => Pkcs1v15Sign::new::<Sha256>(),
            Self::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
            Self::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
        };
        (padding, self.digest(message))
    }
}

/// Whom a self-signed certificate names. Empty fields are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `C`: two letters of ISO 3166.
    pub country: String,
    /// `O`.
    pub organization: String,
    /// `CN`.
    pub common_name: String,
    /// `emailAddress`: what KSI clients usually pin.
    pub email: String,
}

impl Subject {
    fn to_name(&self) -> Result<Name, PkiError> {
        if !matches!(self.country.as_bytes(), [] | [b'A'..=b'Z', b'A'..=b'Z']) {
            return Err(PkiError::Subject("country is two capital letters"));
        }
        if !self.email.is_ascii() {
            return Err(PkiError::Subject("email is ASCII"));
        }
        let fields = [
            (oid::COUNTRY, Tag::PrintableString, &self.country),
            (oid::ORGANIZATION, Tag::Utf8String, &self.organization),
            (oid::COMMON_NAME, Tag::Utf8String, &self.common_name),
            (oid::EMAIL, Tag::Ia5String, &self.email),
        ];
        let present = fields.into_iter().filter(|(_, _, value)| !value.is_empty());
        let names = present.map(|(oid, tag, value)| rdn(oid, tag, value));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(PkiError::Subject("it names nobody"));
        }
        Ok(RdnSequence(names))
    }
}

/// One attribute of a name; at most 256 bytes (X.520 allows 64 to 255 characters).
fn rdn(
    oid: ObjectIdentifier,
    tag: Tag,
    value: &str,
) -> Result<RelativeDistinguishedName, PkiError> {
    if value.len() > 256 || value.chars().any(char::is_control) {
        return Err(PkiError::Subject(
            "a field is too long or holds control characters",
        ));
    }
    let encode = || {
        let value = Any::new(tag, value.as_bytes())?;
        SetOfVec::try_from(vec![AttributeTypeAndValue { oid, value }])
    };
    encode()
        .map(RelativeDistinguishedName)
        .map_err(|_| PkiError::Subject("cannot be encoded"))
}

/// Seconds between which a certificate is valid, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First valid second.
    pub from: Second,
    /// Last valid second.
    pub until: Second,
}

/// Makes a certificate for `signer`'s key, signed by that key; returns DER.
///
/// It is an end entity (`CA:FALSE`): given to a verifier as a trust anchor it
/// vouches for this one key and can issue nothing. `serial` is big-endian,
/// 1..=20 bytes, positive, and never to be used twice under one subject.
///
/// # Errors
/// [`PkiError::Subject`], [`PkiError::Malformed`] for an unusable serial or
/// validity, [`PkiError::Sign`] if the key fails.
pub fn self_signed(
    subject: &Subject,
    validity: Validity,
    serial: &[u8],
    signer: &dyn Signer,
) -> Result<Vec<u8>, PkiError> {
    let name = subject.to_name()?;
    let public_key = SubjectPublicKeyInfoOwned::from_der(signer.public_key_der())
        .map_err(|_| PkiError::Malformed("public key of the signer"))?;
    let algorithm = AlgorithmIdentifierOwned {
        oid: oid::SHA256_WITH_RSA,
        parameters: Some(Any::null()),
    };
    let tbs = TbsCertificate {
        version: Version::V3,
        serial_number: serial_number(serial)?,
        signature: algorithm.clone(),
        issuer: name.clone(),
        validity: x509_validity(validity)?,
        subject: name,
        extensions: Some(end_entity_extensions(&public_key)?),
        subject_public_key_info: public_key,
        issuer_unique_id: None,
        subject_unique_id: None,
    };
    let encoding = |_| PkiError::Malformed("new certificate");
    let tbs = tbs.to_der().map_err(encoding)?;
    let algorithm = algorithm.to_der().map_err(encoding)?;
    let signature = signer.sign_sha256_rsa(&tbs)?;
    let signature = asn1::element(asn1::BIT_STRING, &[&[0], &signature]);
    Ok(asn1::element(
        asn1::SEQUENCE,
        &[&tbs, &algorithm, &signature],
    ))
}

fn serial_number(serial: &[u8]) -> Result<SerialNumber, PkiError> {
    let bad = PkiError::Malformed("serial number");
    if serial.len() > 20 || serial.iter().all(|&byte| byte == 0) {
        return Err(bad);
    }
    SerialNumber::new(serial).map_err(|_| bad)
}

fn x509_validity(validity: Validity) -> Result<x509_cert::time::Validity, PkiError> {
    let bad = || PkiError::Malformed("validity of the new certificate");
    if validity.from > validity.until {
        return Err(bad());
    }
    Ok(x509_cert::time::Validity {
        not_before: x509_time(validity.from).ok_or_else(bad)?,
        not_after: x509_time(validity.until).ok_or_else(bad)?,
    })
}

/// UTCTime until 2049, GeneralizedTime from 2050 on (RFC 5280 §4.1.2.5).
fn x509_time(at: Second) -> Option<Time> {
    let since_1970 = Duration::from_secs(at.0);
    match der::asn1::UtcTime::from_unix_duration(since_1970) {
        Ok(time) => Some(Time::UtcTime(time)),
        Err(_) => der::asn1::GeneralizedTime::from_unix_duration(since_1970)
            .ok()
            .map(Time::GeneralTime),
    }
}

/// Not a CA, and a key identifier: 160 bits of SHA-256 (RFC 7093 §2, method 1).
fn end_entity_extensions(key: &SubjectPublicKeyInfoOwned) -> Result<Vec<Extension>, PkiError> {
    let digest = Sha256::digest(key.subject_public_key.raw_bytes());
    let encode = || {
        let basic = BasicConstraints {
            ca: false,
            path_len_constraint: None,
        };
        let id = OctetStringRef::new(&digest[..20])?;
        Ok(vec![
            Extension {
                extn_id: oid::BASIC_CONSTRAINTS,
                critical: true,
                extn_value: OctetString::new(basic.to_der()?)?,
            },
            Extension {
                extn_id: oid::SUBJECT_KEY_IDENTIFIER,
                critical: false,
                extn_value: OctetString::new(id.to_der()?)?,
            },
        ])
    };
    encode().map_err(|_: der::Error| PkiError::Malformed("new certificate"))
}

fn seconds(time: Time) -> Second {
    Second(time.to_unix_duration().as_secs())
}

/// The text of a directory string; `None` for types that are not text.
fn text(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            String::from_utf8(bytes.to_vec()).ok()
        }
        Tag::TeletexString => Some(bytes.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let (units, rest) = bytes.as_chunks::<2>();
            let units = units.iter().map(|&unit| u16::from_be_bytes(unit));
            let text = char::decode_utf16(units)
                .collect::<Result<String, _>>()
                .ok()?;
            rest.is_empty().then_some(text)
        }
        _ => None,
    }
}
