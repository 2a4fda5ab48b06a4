//! Detached PKCS#7 / CMS signatures (RFC 5652), as publications files carry
//! them (spec §4).
//!
//! ```text
//! ContentInfo ::= SEQUENCE { signedData, [0] SEQUENCE {
//!     version 1,
//!     SET { digest algorithm },
//!     SEQUENCE { data },                    -- no content: it is detached
//!     [0] { certificates, the signer's among them },
//!     [1] { revocation lists }              -- ignored
//!     SET { SEQUENCE {                      -- exactly one signer
//!         version, issuer and serial number | [0] subject key id,
//!         digest algorithm,
//!         [0] { contentType, messageDigest, .. },   -- signed as SET, tag 31
//!         signature algorithm, OCTET STRING signature,
//!         [1] unsigned attributes           -- ignored
//! } } } }
//! ```

use der::Decode;
use der::asn1::ObjectIdentifier;

use super::asn1::{self, Node, Reader, element};
use super::certificate::{Certificate, RsaHash};
use super::{Constraint, PkiError, Signer, TrustAnchors, oid};
use crate::time::Second;

/// Signs `content` and returns a detached PKCS#7 SignedData as DER.
///
/// SHA-256 with RSA PKCS#1 v1.5 over signed attributes (content type, message
/// digest); the certificate is embedded, the content is not. There is no
/// signing time: verifiers do not trust it, and equal input gives equal bytes.
///
/// # Errors
/// [`PkiError::Malformed`] for an unreadable certificate, [`PkiError::KeyMismatch`]
/// if it is not the signer's, [`PkiError::Sign`] if the key fails.
pub fn sign_detached(
    content: &[u8],
    certificate_der: &[u8],
    signer: &dyn Signer,
) -> Result<Vec<u8>, PkiError> {
    let certificate = Certificate::from_der(certificate_der)?;
    if certificate.public_key_der()? != signer.public_key_der() {
        return Err(PkiError::KeyMismatch);
    }
    let attributes = signed_attributes(&RsaHash::Sha256.digest(content));
    let signature = signer.sign_sha256_rsa(&element(asn1::SET, &[&attributes]))?;

    let sha256 = element(asn1::SEQUENCE, &[&encoded(oid::SHA256)]);
    let rsa = element(
        asn1::SEQUENCE,
        &[&encoded(oid::RSA_ENCRYPTION), &element(asn1::NULL, &[])],
    );
    let version = element(asn1::INTEGER, &[&[1]]);
    let signer_info = element(
        asn1::SEQUENCE,
        &[
            &version,
            &certificate.issuer_and_serial()?,
            &sha256,
            &element(asn1::CONTEXT_0, &[&attributes]),
            &rsa,
            &element(asn1::OCTET_STRING, &[&signature]),
        ],
    );
    let signed_data = element(
        asn1::SEQUENCE,
        &[
            &version,
            &element(asn1::SET, &[&sha256]),
            &element(asn1::SEQUENCE, &[&encoded(oid::PKCS7_DATA)]),
            &element(asn1::CONTEXT_0, &[certificate.der()]),
            &element(asn1::SET, &[&signer_info]),
        ],
    );
    let content_info = [
        encoded(oid::PKCS7_SIGNED_DATA),
        element(asn1::CONTEXT_0, &[&signed_data]),
    ];
    Ok(element(
        asn1::SEQUENCE,
        &[&content_info[0], &content_info[1]],
    ))
}

/// Verifies a detached PKCS#7 signature (DER or BER) over `content`.
///
/// There must be exactly one signer with its certificate embedded; its signed
/// attributes must name the content; its RSA signature (SHA-1, 256, 384 or 512)
/// must match; its subject must meet every one of `constraints`, of which there
/// must be one at least; and a chain of issuers valid at `at` must lead to one
/// of `anchors`. Revocation is not looked at.
///
/// # Errors
/// The first of these that does not hold, as [`PkiError`].
pub fn verify_detached(
    content: &[u8],
    pkcs7: &[u8],
    anchors: &TrustAnchors,
    constraints: &[Constraint],
    at: Second,
) -> Result<(), PkiError> {
    if constraints.is_empty() {
        return Err(PkiError::NoConstraint);
    }
    let der = asn1::normalise(pkcs7)?;
    let signed = SignedData::from_der(&der)?;
    let signer = signed.signer_certificate()?;
    signed.signer.verify(content, signer)?;
    if let Some(unmet) = constraints
        .iter()
        .find(|constraint| !constraint.is_met_by(signer))
    {
        return Err(PkiError::Constraint(unmet.clone()));
    }
    anchors.verify(signer, &signed.certificates, at)
}

/// Most certificates that may be embedded.
const MAX_CERTIFICATES: usize = 32;
/// Most signed attributes that a signer may have.
const MAX_ATTRIBUTES: usize = 64;

const SIGNED_DATA: &str = "PKCS#7 SignedData";
const SIGNER_INFO: &str = "PKCS#7 SignerInfo";

struct SignedData<'a> {
    certificates: Vec<Certificate>,
    signer: SignerInfo<'a>,
}

impl<'a> SignedData<'a> {
    fn from_der(der: &'a [u8]) -> Result<Self, PkiError> {
        let mut content_info = Reader::single(der, asn1::SEQUENCE, SIGNED_DATA)?.children();
        expect_oid(&mut content_info, oid::PKCS7_SIGNED_DATA, SIGNED_DATA)?;
        let explicit = content_info.expect(asn1::CONTEXT_0, SIGNED_DATA)?;
        content_info.finish(SIGNED_DATA)?;
        let mut fields = Reader::single(explicit.value, asn1::SEQUENCE, SIGNED_DATA)?.children();
        let version = fields.expect(asn1::INTEGER, SIGNED_DATA)?;
        if !matches!(version.value, [1 | 3..=5]) {
            return Err(PkiError::Malformed("PKCS#7 SignedData version"));
        }
        let digests = fields.expect(asn1::SET, SIGNED_DATA)?;
        let mut content = fields.expect(asn1::SEQUENCE, SIGNED_DATA)?.children();
        expect_oid(&mut content, oid::PKCS7_DATA, SIGNED_DATA)?;
        content.finish("PKCS#7 SignedData: the content is not detached")?;
        let certificates = match fields.optional(asn1::CONTEXT_0, SIGNED_DATA)? {
            Some(set) => read_certificates(set)?,
            None => Vec::new(),
        };
        fields.optional(asn1::CONTEXT_1, SIGNED_DATA)?;
        let signer = only_signer(fields.expect(asn1::SET, SIGNED_DATA)?)?;
        fields.finish(SIGNED_DATA)?;
        announces(digests, signer.hash)?;
        Ok(Self {
            certificates,
            signer,
        })
    }

    fn signer_certificate(&self) -> Result<&Certificate, PkiError> {
        self.certificates
            .iter()
            .find(|certificate| self.signer.is_identified_by(certificate))
            .ok_or(PkiError::SignerMissing)
    }
}

/// Refuses a signer whose digest algorithm is not in the announced set.
fn announces(digests: Node<'_>, hash: RsaHash) -> Result<(), PkiError> {
    let (mut members, mut found) = (digests.children(), false);
    while !members.is_empty() {
        let algorithm = read_algorithm(members.expect(asn1::SEQUENCE, SIGNED_DATA)?)?;
        found |= RsaHash::from_digest_oid(&algorithm) == Some(hash);
    }
    if found {
        Ok(())
    } else {
        Err(PkiError::Malformed("PKCS#7 SignedData digest algorithms"))
    }
}

/// X.509 certificates of the set; other kinds (attribute certificates) are skipped.
fn read_certificates(set: Node<'_>) -> Result<Vec<Certificate>, PkiError> {
    let mut certificates = Vec::new();
    let mut members = set.children();
    while !members.is_empty() {
        let member = members.next(SIGNED_DATA)?;
        if certificates.len() == MAX_CERTIFICATES {
            return Err(PkiError::TooLarge("list of embedded certificates"));
        }
        if member.tag == asn1::SEQUENCE {
            certificates.push(Certificate::from_der(member.raw)?);
        }
    }
    Ok(certificates)
}

fn only_signer(set: Node<'_>) -> Result<SignerInfo<'_>, PkiError> {
    let mut members = set.children();
    let mut found = Vec::new();
    while !members.is_empty() {
        found.push(members.expect(asn1::SEQUENCE, SIGNER_INFO)?);
    }
    match found[..] {
        [only] => SignerInfo::read(only),
        _ => Err(PkiError::SignerCount(found.len())),
    }
}

struct SignerInfo<'a> {
    /// Issuer and serial number, or a subject key identifier.
    identifier: Node<'a>,
    hash: RsaHash,
    /// The attributes under their implicit tag.
    attributes: Node<'a>,
    signature: &'a [u8],
}

impl<'a> SignerInfo<'a> {
    fn read(node: Node<'a>) -> Result<Self, PkiError> {
        let mut fields = node.children();
        let version = fields.expect(asn1::INTEGER, SIGNER_INFO)?;
        let identifier = fields.next(SIGNER_INFO)?;
        if !matches!(
            (version.value, identifier.tag),
            ([1], asn1::SEQUENCE) | ([3], asn1::CONTEXT_0_PRIMITIVE)
        ) {
            return Err(PkiError::Malformed("PKCS#7 SignerInfo version"));
        }
        let digest = read_algorithm(fields.expect(asn1::SEQUENCE, SIGNER_INFO)?)?;
        let attributes = fields
            .optional(asn1::CONTEXT_0, SIGNER_INFO)?
            .ok_or(PkiError::SignedAttribute("there are none"))?;
        let algorithm = read_algorithm(fields.expect(asn1::SEQUENCE, SIGNER_INFO)?)?;
        let signature = fields.expect(asn1::OCTET_STRING, SIGNER_INFO)?.value;
        fields.optional(asn1::CONTEXT_1, SIGNER_INFO)?;
        fields.finish(SIGNER_INFO)?;
        let hash = RsaHash::from_digest_oid(&digest)
            .ok_or_else(|| PkiError::Algorithm(digest.to_string()))?;
        if algorithm != oid::RSA_ENCRYPTION && RsaHash::from_signature_oid(&algorithm) != Some(hash)
        {
            return Err(PkiError::Algorithm(algorithm.to_string()));
        }
        Ok(Self {
            identifier,
            hash,
            attributes,
            signature,
        })
    }

    fn is_identified_by(&self, certificate: &Certificate) -> bool {
        match self.identifier.tag {
            asn1::SEQUENCE => certificate
                .issuer_and_serial()
                .is_ok_and(|identifier| identifier == self.identifier.raw),
            asn1::CONTEXT_0_PRIMITIVE => {
                certificate.subject_key_id().as_deref() == Some(self.identifier.value)
            }
            _ => false,
        }
    }

    fn verify(&self, content: &[u8], certificate: &Certificate) -> Result<(), PkiError> {
        let content_type = self.attribute(oid::CONTENT_TYPE)?;
        if content_type.raw != encoded(oid::PKCS7_DATA) {
            return Err(PkiError::SignedAttribute("content type is not data"));
        }
        let digest = self.attribute(oid::MESSAGE_DIGEST)?;
        if digest.tag != asn1::OCTET_STRING {
            return Err(PkiError::SignedAttribute(
                "message digest is no octet string",
            ));
        }
        if self.hash.digest(content) != digest.value {
            return Err(PkiError::Digest);
        }
        let signed = element(asn1::SET, &[self.attributes.value]);
        certificate.verify_with(self.hash, &signed, self.signature)
    }

    /// The single value of a signed attribute that must occur exactly once.
    fn attribute(&self, wanted: ObjectIdentifier) -> Result<Node<'a>, PkiError> {
        const WHAT: &str = "PKCS#7 signed attributes";
        let mut attributes = self.attributes.children();
        let mut found = None;
        for _ in 0..MAX_ATTRIBUTES {
            if attributes.is_empty() {
                return found.ok_or(PkiError::SignedAttribute("one is missing"));
            }
            let mut attribute = attributes.expect(asn1::SEQUENCE, WHAT)?.children();
            let kind = attribute.expect(asn1::OID, WHAT)?;
            let mut values = attribute.expect(asn1::SET, WHAT)?.children();
            attribute.finish(WHAT)?;
            if kind.raw != encoded(wanted) {
                continue;
            }
            let value = values.next(WHAT)?;
            values.finish("PKCS#7 signed attribute with several values")?;
            if found.replace(value).is_some() {
                return Err(PkiError::SignedAttribute("one occurs twice"));
            }
        }
        Err(PkiError::TooLarge(WHAT))
    }
}

/// The contents of the attribute set: DER sorts its members by their bytes.
fn signed_attributes(digest: &[u8]) -> Vec<u8> {
    let attribute = |kind, value: &[u8]| {
        element(
            asn1::SEQUENCE,
            &[&encoded(kind), &element(asn1::SET, &[value])],
        )
    };
    let mut attributes = [
        attribute(oid::CONTENT_TYPE, &encoded(oid::PKCS7_DATA)),
        attribute(oid::MESSAGE_DIGEST, &element(asn1::OCTET_STRING, &[digest])),
    ];
    attributes.sort();
    attributes.concat()
}

/// The OID of an AlgorithmIdentifier whose parameters are absent or NULL.
fn read_algorithm(node: Node<'_>) -> Result<ObjectIdentifier, PkiError> {
    const WHAT: &str = "algorithm identifier";
    let mut fields = node.children();
    let oid = read_oid(fields.expect(asn1::OID, WHAT)?, WHAT)?;
    fields.optional(asn1::NULL, WHAT)?;
    match fields.finish(WHAT) {
        Ok(()) => Ok(oid),
        // Parameters: an algorithm beyond plain RSA and SHA-2, such as PSS.
        Err(_) => Err(PkiError::Algorithm(oid.to_string())),
    }
}

fn read_oid(node: Node<'_>, what: &'static str) -> Result<ObjectIdentifier, PkiError> {
    ObjectIdentifier::from_der(node.raw).map_err(|_| PkiError::Malformed(what))
}

fn expect_oid(
    reader: &mut Reader<'_>,
    wanted: ObjectIdentifier,
    what: &'static str,
) -> Result<(), PkiError> {
    match read_oid(reader.expect(asn1::OID, what)?, what)? {
        found if found == wanted => Ok(()),
        _ => Err(PkiError::Malformed(what)),
    }
}

fn encoded(oid: ObjectIdentifier) -> Vec<u8> {
    element(asn1::OID, &[oid.as_bytes()])
}
