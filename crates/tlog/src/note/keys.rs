//! Keys of logs and witnesses, public and private.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::Signer as _;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{SignatureError, SignatureLine};
use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::text::{self, Line};

/// The short name of a key; it finds a key and vouches for nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(super) [u8; 4]);

impl KeyId {
    /// The id of the key with this name, type and public key.
    fn of(name: &str, algorithm: Algorithm, public: &[u8; 32]) -> Self {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(name)
            .chain_update([b'\n', algorithm.id()])
            .chain_update(public)
            .finalize()
            .into();
        let [a, b, c, d, ..] = digest;
        Self([a, b, c, d])
    }

    /// The four bytes as they stand in a signature line.
    pub fn as_bytes(&self) -> &[u8; 4] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a key signs, and how; part of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// 0x01: Ed25519 over the note's text; logs sign so.
    Ed25519,
    /// 0x04: Ed25519 over a time and the text; witnesses cosign so.
    CosignatureV1,
}

impl Algorithm {
    /// The signature type byte.
    pub fn id(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::CosignatureV1 => 0x04,
        }
    }

    fn from_id(id: u8) -> Option<Self> {
        match id {
            0x01 => Some(Self::Ed25519),
            0x04 => Some(Self::CosignatureV1),
            _ => None,
        }
    }
}

/// A public key with a name: what a verifier trusts.
///
/// Parses from and displays as `name+hexid+base64`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VerifierKey {
    name: String,
    id: KeyId,
    algorithm: Algorithm,
    key: ed25519_dalek::VerifyingKey,
}

impl VerifierKey {
    /// A key from its parts.
    ///
    /// # Errors
    /// A name that cannot stand in a signature line, or a public key that is
    /// not a point of full order.
    pub fn new(name: &str, algorithm: Algorithm, public: &[u8; 32]) -> Result<Self, DecodeError> {
        check_name(name)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(public)
            .ok()
            .filter(|key| !key.is_weak())
            .ok_or(DecodeError::new(Kind::BadPublicKey, name.len()))?;
        Ok(Self {
            name: name.to_owned(),
            id: KeyId::of(name, algorithm, public),
            algorithm,
            key,
        })
    }

    /// The name that stands in the key's signature lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that stands in the key's signature lines.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether the key signs or cosigns.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bare Ed25519 key.
    pub fn public_key(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether a line bears this key's name and id.
    pub fn made(&self, line: &SignatureLine) -> bool {
        line.id == self.id && line.name == self.name
    }

    /// Checks one line against a note's text.
    ///
    /// # Errors
    /// [`SignatureError::Missing`] if the line is another key's,
    /// [`SignatureError::Invalid`] if it does not verify.
    pub fn verify(&self, text: &str, line: &SignatureLine) -> Result<Signed, SignatureError> {
        if !self.made(line) {
            return Err(SignatureError::Missing);
        }
        let signed = match self.algorithm {
            Algorithm::Ed25519 => self
                .verifies(text.as_bytes(), &line.signature)
                .then_some(Signed::Plain),
            Algorithm::CosignatureV1 => line
                .signature
                .split_first_chunk()
                .map(|(time, signature)| (u64::from_be_bytes(*time), signature))
                .filter(|(at, signature)| self.verifies(&cosigned_bytes(text, *at), signature))
                .map(|(at, _)| Signed::At(at)),
        };
        signed.ok_or(SignatureError::Invalid)
    }

    /// Strict: no malleable signatures, no points of small order.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

impl FromStr for VerifierKey {
    type Err = DecodeError;

    fn from_str(vkey: &str) -> Result<Self, DecodeError> {
        let encoded = EncodedKey::parse(vkey)?;
        let key = Self::new(encoded.name, encoded.algorithm, &encoded.material)?;
        encoded.check_id(key.id)?;
        Ok(key)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_key(
            &self.name,
            self.id,
            self.algorithm,
            self.key.as_bytes(),
        ))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

/// What a valid signature line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signed {
    /// The key signed the text.
    Plain,
    /// The key cosigned the text at this time, in Unix seconds.
    At(u64),
}

/// A log's private key (type 0x01). Wiped from memory when dropped.
pub struct SigningKey(PrivateKey);

impl SigningKey {
    /// The key of an RFC 8032 seed, which the caller has drawn at random.
    ///
    /// # Errors
    /// A name that cannot stand in a signature line.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, DecodeError> {
        PrivateKey::new(name, Algorithm::Ed25519, seed).map(Self)
    }

    /// Reads `PRIVATE+KEY+name+hexid+base64`.
    ///
    /// # Errors
    /// A malformed key, or one of another type.
    pub fn parse(encoded: &str) -> Result<Self, DecodeError> {
        PrivateKey::parse(encoded, Algorithm::Ed25519).map(Self)
    }

    /// Writes `PRIVATE+KEY+name+hexid+base64`: the secret itself.
    pub fn expose(&self) -> Zeroizing<String> {
        self.0.expose()
    }

    /// The name that stands in the key's signature lines.
    pub fn name(&self) -> &str {
        &self.0.verifier.name
    }

    /// The public half.
    pub fn verifier(&self) -> VerifierKey {
        self.0.verifier.clone()
    }

    /// Signs a note's text.
    pub fn sign(&self, text: &str) -> SignatureLine {
        self.0.line(self.0.sign(text.as_bytes()).to_vec())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.0.verifier)
    }
}

/// A witness's private key (type 0x04). Wiped from memory when dropped.
pub struct CosigningKey(PrivateKey);

impl CosigningKey {
    /// The key of an RFC 8032 seed, which the caller has drawn at random.
    ///
    /// # Errors
    /// A name that cannot stand in a signature line.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, DecodeError> {
        PrivateKey::new(name, Algorithm::CosignatureV1, seed).map(Self)
    }

    /// Reads `PRIVATE+KEY+name+hexid+base64`.
    ///
    /// # Errors
    /// A malformed key, or one of another type.
    pub fn parse(encoded: &str) -> Result<Self, DecodeError> {
        PrivateKey::parse(encoded, Algorithm::CosignatureV1).map(Self)
    }

    /// Writes `PRIVATE+KEY+name+hexid+base64`: the secret itself.
    pub fn expose(&self) -> Zeroizing<String> {
        self.0.expose()
    }

    /// The name that stands in the key's signature lines.
    pub fn name(&self) -> &str {
        &self.0.verifier.name
    }

    /// The public half.
    pub fn verifier(&self) -> VerifierKey {
        self.0.verifier.clone()
    }

    /// States that the text was seen at `now`, in Unix seconds.
    ///
    /// Whether that is true is the caller's business: a witness has checked the
    /// log's signature and consistency, and has stored the new head.
    pub fn cosign(&self, text: &str, now: u64) -> SignatureLine {
        let mut signature = now.to_be_bytes().to_vec();
        signature.extend_from_slice(&self.0.sign(&cosigned_bytes(text, now)));
        self.0.line(signature)
    }
}

impl fmt::Debug for CosigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CosigningKey({})", self.0.verifier)
    }
}

/// What both kinds of private key have in common.
struct PrivateKey {
    verifier: VerifierKey,
    key: ed25519_dalek::SigningKey,
}

impl PrivateKey {
    fn new(name: &str, algorithm: Algorithm, seed: &[u8; 32]) -> Result<Self, DecodeError> {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = key.verifying_key().to_bytes();
        Ok(Self {
            verifier: VerifierKey::new(name, algorithm, &public)?,
            key,
        })
    }

    fn parse(encoded: &str, algorithm: Algorithm) -> Result<Self, DecodeError> {
        let Some(rest) = encoded.strip_prefix(PRIVATE_PREFIX) else {
            return Err(DecodeError::new(Kind::Expected("PRIVATE+KEY"), 0));
        };
        let encoded =
            EncodedKey::parse(rest).map_err(|error| error.shifted(PRIVATE_PREFIX.len()))?;
        if encoded.algorithm != algorithm {
            let kind = Kind::UnknownAlgorithm(encoded.algorithm.id());
            return Err(DecodeError::new(kind, PRIVATE_PREFIX.len()));
        }
        let key = Self::new(encoded.name, algorithm, &encoded.material)?;
        encoded.check_id(key.verifier.id)?;
        Ok(key)
    }

    fn expose(&self) -> Zeroizing<String> {
        let VerifierKey {
            name,
            id,
            algorithm,
            ..
        } = &self.verifier;
        let seed = Zeroizing::new(self.key.to_bytes());
        let encoded = Zeroizing::new(encode_key(name, *id, *algorithm, &seed));
        Zeroizing::new(format!("{PRIVATE_PREFIX}{}", *encoded))
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    fn line(&self, signature: Vec<u8>) -> SignatureLine {
        SignatureLine {
            name: self.verifier.name.clone(),
            id: self.verifier.id,
            signature,
        }
    }
}

/// `name+hexid+base64(type ‖ 32 bytes)`, the form of public and private keys.
struct EncodedKey<'a> {
    name: &'a str,
    id: [u8; 4],
    algorithm: Algorithm,
    material: Zeroizing<[u8; 32]>,
}

impl<'a> EncodedKey<'a> {
    fn parse(encoded: &'a str) -> Result<Self, DecodeError> {
        // Base64 has plus signs too, names have none.
        let mut parts = encoded.splitn(3, '+');
        let (Some(name), Some(id), Some(material)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(DecodeError::new(Kind::Expected("name+id+key"), 0));
        };
        check_name(name)?;
        let id_at = name.len() + 1;
        let id = HEXLOWER
            .decode(id.as_bytes())
            .ok()
            .and_then(|id| id.try_into().ok())
            .ok_or(DecodeError::new(
                Kind::Expected("8 lower-case hexadecimal digits"),
                id_at,
            ))?;
        let (algorithm, material) = decode_material(Line {
            text: material,
            at: id_at + 9,
        })?;
        Ok(Self {
            name,
            id,
            algorithm,
            material,
        })
    }

    fn check_id(&self, id: KeyId) -> Result<(), DecodeError> {
        if self.id == id.0 {
            Ok(())
        } else {
            Err(DecodeError::new(Kind::KeyIdMismatch, self.name.len() + 1))
        }
    }
}

/// Type and key bytes; the length is checked before anything is decoded.
fn decode_material(encoded: Line<'_>) -> Result<(Algorithm, Zeroizing<[u8; 32]>), DecodeError> {
    let expected = || encoded.error(Kind::Expected("base64 of a type and 32 bytes"));
    if encoded.text.len() != BASE64.encode_len(33) {
        return Err(expected());
    }
    let bytes = Zeroizing::new(encoded.base64()?);
    let Some((&id, material)) = bytes.split_first() else {
        return Err(expected());
    };
    let algorithm =
        Algorithm::from_id(id).ok_or_else(|| encoded.error(Kind::UnknownAlgorithm(id)))?;
    let material = material.try_into().map_err(|_| expected())?;
    Ok((algorithm, Zeroizing::new(material)))
}

fn encode_key(name: &str, id: KeyId, algorithm: Algorithm, material: &[u8; 32]) -> String {
    let mut bytes = Zeroizing::new([0; 33]);
    bytes[0] = algorithm.id();
    bytes[1..].copy_from_slice(material);
    let material = Zeroizing::new(text::base64(bytes.as_slice()));
    format!("{name}+{id}+{}", *material)
}

/// What a cosignature signs (c2sp.org/tlog-cosignature).
fn cosigned_bytes(text: &str, seconds: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {seconds}\n{text}").into_bytes()
}

/// Names stand between spaces in a line and between plus signs in a key.
pub(super) fn check_name(name: &str) -> Result<(), DecodeError> {
    let refused = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if name.is_empty() {
        return Err(DecodeError::new(Kind::BadKeyName, 0));
    }
    match name.find(refused) {
        Some(at) => Err(DecodeError::new(Kind::BadKeyName, at)),
        None => Ok(()),
    }
}

const PRIVATE_PREFIX: &str = "PRIVATE+KEY+";
