//! Certificates as tests need them, sound and otherwise. The unit tests of
//! `src/postgres/tls.rs` use this file too.

use std::net::IpAddr;
use std::time::Duration;

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair,
};
use x509_cert::der::asn1::{BitString, Ia5String, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::oid::db::{rfc5912, rfc8410};
use x509_cert::der::pem::{LineEnding, encode_string};
use x509_cert::der::{Any, Encode};
use x509_cert::ext::AsExtension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, TbsCertificate, Version};

/// What an authority signs with.
#[derive(Clone, Copy)]
pub(crate) enum Signing {
    P256,
    P384,
    Ed25519,
}

/// When a certificate is good for.
#[derive(Clone, Copy)]
pub(crate) enum Life {
    Now,
    Past,
    Future,
}

/// Somebody who issues certificates.
pub(crate) struct Authority {
    name: Name,
    key: Key,
    certificate: Vec<u8>,
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

enum Key {
    Ecdsa(EcdsaKeyPair, Signing),
    Ed25519(Ed25519KeyPair),
}

impl Authority {
    pub(crate) fn new(name: &str, signing: Signing) -> Self {
        let (key, _) = Key::new(signing);
        let name: Name = format!("CN={name}").parse().unwrap();
        let tbs = tbs(&name, &name, &key, &key, Life::Now, &[], true);
        let certificate = key.certify(tbs);
        Self {
            name,
            key,
            certificate,
        }
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// A certificate for these names or addresses, whose common name is the first.
    pub(crate) fn issue(&self, names: &[&str], life: Life) -> Issued {
        let (key, pkcs8) = Key::new(Signing::P256);
        let subject = common_name(names);
        let tbs = tbs(&self.name, &subject, &self.key, &key, life, names, false);
        Issued {
            certificate: self.key.certify(tbs),
            key: pkcs8,
        }
    }

    /// As [`Authority::issue`], with the common name alone and of version 1.
    pub(crate) fn issue_version_1(&self, name: &str) -> Issued {
        let (key, pkcs8) = Key::new(Signing::P256);
        let subject = common_name(&[name]);
        let mut tbs = tbs(&self.name, &subject, &self.key, &key, Life::Now, &[], false);
        (tbs.version, tbs.extensions) = (Version::V1, None);
        Issued {
            certificate: self.key.certify(tbs),
            key: pkcs8,
        }
    }
}

impl Issued {
    /// What `openssl req -x509` makes: its own authority.
    pub(crate) fn self_signed(names: &[&str], life: Life) -> Self {
        let (key, pkcs8) = Key::new(Signing::P256);
        let subject = common_name(names);
        let tbs = tbs(&subject, &subject, &key, &key, life, names, true);
        Self {
            certificate: key.certify(tbs),
            key: pkcs8,
        }
    }

    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }
}

impl Key {
    /// A new key, and the same in PKCS #8.
    fn new(signing: Signing) -> (Self, Vec<u8>) {
        let random = SystemRandom::new();
        let ecdsa = |algorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
            (Self::Ecdsa(key, signing), pkcs8.as_ref().to_vec())
        };
        match signing {
            Signing::P256 => ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
            Signing::P384 => ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
            Signing::Ed25519 => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
                (Self::Ed25519(key), pkcs8.as_ref().to_vec())
            }
        }
    }

    fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        let oid = match self {
            Self::Ecdsa(_, Signing::P384) => rfc5912::ECDSA_WITH_SHA_384,
            Self::Ecdsa(..) => rfc5912::ECDSA_WITH_SHA_256,
            Self::Ed25519(_) => rfc8410::ID_ED_25519,
        };
        AlgorithmIdentifierOwned {
            oid,
            parameters: None,
        }
    }

    fn public(&self) -> SubjectPublicKeyInfoOwned {
        let on = |curve: ObjectIdentifier| AlgorithmIdentifierOwned {
            oid: rfc5912::ID_EC_PUBLIC_KEY,
            parameters: Some(Any::encode_from(&curve).unwrap()),
        };
        let (algorithm, bytes) = match self {
            Self::Ecdsa(key, Signing::P384) => {
                (on(rfc5912::SECP_384_R_1), key.public_key().as_ref())
            }
            Self::Ecdsa(key, _) => (on(rfc5912::SECP_256_R_1), key.public_key().as_ref()),
            Self::Ed25519(key) => (self.signature_algorithm(), key.public_key().as_ref()),
        };
        SubjectPublicKeyInfoOwned {
            algorithm,
            subject_public_key: BitString::from_bytes(bytes).unwrap(),
        }
    }

    fn certify(&self, tbs: TbsCertificate) -> Vec<u8> {
        let message = tbs.to_der().unwrap();
        let signature = match self {
            Self::Ecdsa(key, _) => {
                let signature = key.sign(&SystemRandom::new(), &message).unwrap();
                signature.as_ref().to_vec()
            }
            Self::Ed25519(key) => key.sign(&message).as_ref().to_vec(),
        };
        let certificate = Certificate {
            tbs_certificate: tbs,
            signature_algorithm: self.signature_algorithm(),
            signature: BitString::from_bytes(&signature).unwrap(),
        };
        certificate.to_der().unwrap()
    }
}

fn tbs(
    issuer: &Name,
    subject: &Name,
    issuing: &Key,
    certified: &Key,
    life: Life,
    names: &[&str],
    is_authority: bool,
) -> TbsCertificate {
    let mut extensions = Vec::new();
    let basic = BasicConstraints {
        ca: is_authority,
        path_len_constraint: None,
    };
    extensions.push(basic.to_extension(subject, &extensions).unwrap());
    if !names.is_empty() {
        let names = SubjectAltName(names.iter().map(|name| general_name(name)).collect());
        extensions.push(names.to_extension(subject, &extensions).unwrap());
    }
    TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::from(1_u32),
        signature: issuing.signature_algorithm(),
        issuer: issuer.clone(),
        validity: validity(life),
        subject: subject.clone(),
        subject_public_key_info: certified.public(),
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    }
}

fn common_name(names: &[&str]) -> Name {
    format!("CN={}", names[0]).parse().unwrap()
}

fn general_name(name: &str) -> GeneralName {
    match name.parse() {
        Ok(IpAddr::V4(address)) => {
            GeneralName::IpAddress(OctetString::new(address.octets()).unwrap())
        }
        Ok(IpAddr::V6(address)) => {
            GeneralName::IpAddress(OctetString::new(address.octets()).unwrap())
        }
        Err(_) => GeneralName::DnsName(Ia5String::new(name).unwrap()),
    }
}

/// Far enough from today on either side to need no clock.
fn validity(life: Life) -> Validity {
    let year = |year: u64| {
        let since_1970 = Duration::from_secs((year - 1970) * 31_556_952);
        Time::UtcTime(UtcTime::from_unix_duration(since_1970).unwrap())
    };
    let (from, to) = match life {
        Life::Now => (2020, 2049),
        Life::Past => (2020, 2021),
        Life::Future => (2048, 2049),
    };
    Validity {
        not_before: year(from),
        not_after: year(to),
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    encode_string(label, LineEnding::LF, der).unwrap()
}
