//! Keys of logs and witnesses, public and private.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::Signer as _;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

#[cfg(feature = "ml-dsa")]
use super::ml_dsa_44;
use super::{SignatureError, SignatureLine};
use crate::checkpoint::Checkpoint;
use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::text::{self, Line};

/// The short name of a key; it finds a key and vouches for nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(super) [u8; 4]);

impl KeyId {
    /// The id of the key with this name, type and public key.
    fn of(name: &str, algorithm: Algorithm, public: &[u8]) -> Self {
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
    /// 0x06: ML-DSA-44 over names, a time and the head, `subtree/v1`; witnesses cosign so.
    /// Keys of this kind need the feature `ml-dsa`.
    MlDsa44,
}

impl Algorithm {
    /// The signature type byte.
    pub fn id(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::CosignatureV1 => 0x04,
            Self::MlDsa44 => 0x06,
        }
    }

    /// Whether its keys cosign, stating a time, as witnesses do; other keys sign.
    pub fn cosigns(self) -> bool {
        match self {
            Self::Ed25519 => false,
            Self::CosignatureV1 | Self::MlDsa44 => true,
        }
    }

    /// Length of a public key, in bytes. A seed always has [`SEED_BYTES`].
    fn public_bytes(self) -> usize {
        match self {
            Self::Ed25519 | Self::CosignatureV1 => 32,
            Self::MlDsa44 => ML_DSA_44_PUBLIC_BYTES,
        }
    }

    fn from_id(id: u8) -> Option<Self> {
        match id {
            0x01 => Some(Self::Ed25519),
            0x04 => Some(Self::CosignatureV1),
            0x06 => Some(Self::MlDsa44),
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
    key: PublicKey,
}

impl VerifierKey {
    /// A key from its parts.
    ///
    /// # Errors
    /// A name that cannot stand in a signature line, or a public key of another length
    /// than its algorithm's or that is not a point of full order; for
    /// [`Algorithm::MlDsa44`] a name of more than 255 bytes, and any key in a build
    /// without the feature `ml-dsa`.
    pub fn new(name: &str, algorithm: Algorithm, public: &[u8]) -> Result<Self, DecodeError> {
        check_name(name)?;
        if algorithm == Algorithm::MlDsa44 && name.len() > MAX_SIGNED_NAME_BYTES {
            return Err(DecodeError::new(NAME_TOO_LONG, MAX_SIGNED_NAME_BYTES));
        }
        let key = PublicKey::from_bytes(algorithm, public)
            .map_err(|kind| DecodeError::new(kind, name.len()))?;
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

    /// Whether the key signs or cosigns, and how.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bare public key: 32 bytes of Ed25519, or 1,312 of ML-DSA-44.
    pub fn public_key(&self) -> &[u8] {
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
                .key
                .verifies(text.as_bytes(), &line.signature)
                .then_some(Signed::Plain),
            Algorithm::CosignatureV1 | Algorithm::MlDsa44 => self.cosigned(text, &line.signature),
        };
        signed.ok_or(SignatureError::Invalid)
    }

    /// What a `timestamped_signature` states of the text, if it verifies.
    fn cosigned(&self, text: &str, signature: &[u8]) -> Option<Signed> {
        let (time, signature) = signature.split_first_chunk()?;
        let at = u64::from_be_bytes(*time);
        let message = cosigned_bytes(&self.name, self.algorithm, text, at).ok()?;
        let verifies = self.key.verifies(&message, signature);
        verifies.then_some(match (self.algorithm, at) {
            (Algorithm::MlDsa44, 0) => Signed::Consistent,
            _ => Signed::At(at),
        })
    }
}

impl FromStr for VerifierKey {
    type Err = DecodeError;

    fn from_str(vkey: &str) -> Result<Self, DecodeError> {
        let encoded = EncodedKey::parse(vkey)?;
        let length = encoded.algorithm.public_bytes();
        let key = Self::new(encoded.name, encoded.algorithm, encoded.material(length)?)?;
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

/// The bytes of a public key, usable.
#[derive(Clone, PartialEq, Eq, Hash)]
enum PublicKey {
    Ed25519(ed25519_dalek::VerifyingKey),
    #[cfg(feature = "ml-dsa")]
    MlDsa44(ml_dsa_44::PublicKey),
}

impl PublicKey {
    fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, Kind> {
        match algorithm {
            Algorithm::Ed25519 | Algorithm::CosignatureV1 => bytes
                .try_into()
                .ok()
                .and_then(|bytes| ed25519_dalek::VerifyingKey::from_bytes(bytes).ok())
                .filter(|key| !key.is_weak())
                .map(Self::Ed25519)
                .ok_or(Kind::BadPublicKey),
            #[cfg(feature = "ml-dsa")]
            Algorithm::MlDsa44 => ml_dsa_44::PublicKey::from_bytes(bytes)
                .map(Self::MlDsa44)
                .ok_or(Kind::BadPublicKey),
            #[cfg(not(feature = "ml-dsa"))]
            Algorithm::MlDsa44 => Err(WITHOUT_ML_DSA),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Ed25519(key) => key.as_bytes(),
            #[cfg(feature = "ml-dsa")]
            Self::MlDsa44(key) => key.as_bytes(),
        }
    }

    /// Strict: no malleable signatures, no points of small order.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            #[cfg(feature = "ml-dsa")]
            Self::MlDsa44(key) => key.verifies(message, signature),
        }
    }
}

/// What a valid signature line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signed {
    /// The key signed the text.
    Plain,
    /// The key cosigned the head as consistent with all others that it saw, and states no
    /// time and no newest size: an ML-DSA-44 cosignature of time 0. No witness's word.
    Consistent,
    /// The key cosigned the text at this time, in Unix seconds.
    At(u64),
}

impl Signed {
    /// The time that it states, in Unix seconds.
    pub fn at(self) -> Option<u64> {
        match self {
            Self::Plain | Self::Consistent => None,
            Self::At(at) => Some(at),
        }
    }
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
        PrivateKey::parse(encoded, |algorithm| !algorithm.cosigns()).map(Self)
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
        self.0.line(self.0.sign(text.as_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.0.verifier)
    }
}

/// A witness's private key (type 0x04 or 0x06). Wiped from memory when dropped.
pub struct CosigningKey(PrivateKey);

impl CosigningKey {
    /// The Ed25519 key of an RFC 8032 seed, which the caller has drawn at random.
    ///
    /// # Errors
    /// A name that cannot stand in a signature line.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, DecodeError> {
        Self::with_algorithm(name, Algorithm::CosignatureV1, seed)
    }

    /// The key of a seed (RFC 8032, FIPS 204), which the caller has drawn at random.
    ///
    /// # Errors
    /// A name that cannot stand in a signature line, an algorithm that does not cosign, and
    /// [`Algorithm::MlDsa44`] in a build without the feature `ml-dsa`.
    pub fn with_algorithm(
        name: &str,
        algorithm: Algorithm,
        seed: &[u8; 32],
    ) -> Result<Self, DecodeError> {
        match algorithm.cosigns() {
            true => PrivateKey::new(name, algorithm, seed).map(Self),
            false => Err(DecodeError::new(Kind::UnknownAlgorithm(algorithm.id()), 0)),
        }
    }

    /// Reads `PRIVATE+KEY+name+hexid+base64`.
    ///
    /// # Errors
    /// A malformed key, one that does not cosign, or one of an algorithm that this build
    /// lacks.
    pub fn parse(encoded: &str) -> Result<Self, DecodeError> {
        PrivateKey::parse(encoded, Algorithm::cosigns).map(Self)
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

    /// States that a head, a checkpoint's text, was seen at `now`, in Unix seconds.
    ///
    /// Whether that is true is the caller's business: a witness has checked the
    /// log's signature and consistency, and has stored the new head.
    ///
    /// # Errors
    /// Only of an ML-DSA-44 key, which signs the head's parts instead of its text: a text
    /// that is no checkpoint, an origin of more than 255 bytes, a time of 2^63 or more.
    pub fn cosign_head(&self, text: &str, now: u64) -> Result<SignatureLine, DecodeError> {
        let VerifierKey {
            name, algorithm, ..
        } = &self.0.verifier;
        let mut signature = now.to_be_bytes().to_vec();
        let message = cosigned_bytes(name, *algorithm, text, now)?;
        signature.extend(self.0.sign(&message));
        Ok(self.0.line(signature))
    }

    /// As [`cosign_head`](Self::cosign_head), of a text that is known to be such a head.
    ///
    /// # Panics
    /// Where that one has an error: never with an Ed25519 key, which cosigns any text.
    pub fn cosign(&self, text: &str, now: u64) -> SignatureLine {
        self.cosign_head(text, now)
            .expect("an ML-DSA-44 key is given heads alone")
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
    key: Secret,
}

impl PrivateKey {
    fn new(name: &str, algorithm: Algorithm, seed: &[u8; 32]) -> Result<Self, DecodeError> {
        let key = Secret::from_seed(algorithm, seed).map_err(|kind| DecodeError::new(kind, 0))?;
        Ok(Self {
            verifier: VerifierKey::new(name, algorithm, &key.public_bytes())?,
            key,
        })
    }

    fn parse(encoded: &str, wanted: fn(Algorithm) -> bool) -> Result<Self, DecodeError> {
        let Some(rest) = encoded.strip_prefix(PRIVATE_PREFIX) else {
            return Err(DecodeError::new(Kind::Expected("PRIVATE+KEY"), 0));
        };
        let encoded =
            EncodedKey::parse(rest).map_err(|error| error.shifted(PRIVATE_PREFIX.len()))?;
        if !wanted(encoded.algorithm) {
            let kind = Kind::UnknownAlgorithm(encoded.algorithm.id());
            return Err(DecodeError::new(kind, PRIVATE_PREFIX.len()));
        }
        let key = Self::new(encoded.name, encoded.algorithm, encoded.seed()?)?;
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
        let encoded = Zeroizing::new(encode_key(name, *id, *algorithm, &*self.key.seed()));
        Zeroizing::new(format!("{PRIVATE_PREFIX}{}", *encoded))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.key.sign(message)
    }

    fn line(&self, signature: Vec<u8>) -> SignatureLine {
        SignatureLine {
            name: self.verifier.name.clone(),
            id: self.verifier.id,
            signature,
        }
    }
}

/// What signs; made from a seed, which is all that is ever written down.
enum Secret {
    Ed25519(ed25519_dalek::SigningKey),
    #[cfg(feature = "ml-dsa")]
    MlDsa44(ml_dsa_44::PrivateKey),
}

impl Secret {
    fn from_seed(algorithm: Algorithm, seed: &[u8; SEED_BYTES]) -> Result<Self, Kind> {
        match algorithm {
            Algorithm::Ed25519 | Algorithm::CosignatureV1 => {
                Ok(Self::Ed25519(ed25519_dalek::SigningKey::from_bytes(seed)))
            }
            #[cfg(feature = "ml-dsa")]
            Algorithm::MlDsa44 => Ok(Self::MlDsa44(ml_dsa_44::PrivateKey::from_seed(seed))),
            #[cfg(not(feature = "ml-dsa"))]
            Algorithm::MlDsa44 => Err(WITHOUT_ML_DSA),
        }
    }

    fn seed(&self) -> Zeroizing<[u8; SEED_BYTES]> {
        match self {
            Self::Ed25519(key) => Zeroizing::new(key.to_bytes()),
            #[cfg(feature = "ml-dsa")]
            Self::MlDsa44(key) => key.seed(),
        }
    }

    fn public_bytes(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.verifying_key().to_bytes().to_vec(),
            #[cfg(feature = "ml-dsa")]
            Self::MlDsa44(key) => key.public_bytes().to_vec(),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
            #[cfg(feature = "ml-dsa")]
            Self::MlDsa44(key) => key.sign(message),
        }
    }
}

/// `name+hexid+base64(type ‖ public key or seed)`, the form of public and private keys.
struct EncodedKey<'a> {
    name: &'a str,
    id: [u8; 4],
    algorithm: Algorithm,
    /// Offset of the base64.
    material_at: usize,
    material: Zeroizing<Vec<u8>>,
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
        let material_at = id_at + 9;
        let (algorithm, material) = decode_material(Line {
            text: material,
            at: material_at,
        })?;
        Ok(Self {
            name,
            id,
            algorithm,
            material_at,
            material,
        })
    }

    /// The key's bytes, of which there must be so many.
    fn material(&self, length: usize) -> Result<&[u8], DecodeError> {
        match self.material.len() == length {
            true => Ok(&self.material),
            false => Err(DecodeError::new(OTHER_LENGTH, self.material_at)),
        }
    }

    fn seed(&self) -> Result<&[u8; SEED_BYTES], DecodeError> {
        let other_length = || DecodeError::new(OTHER_LENGTH, self.material_at);
        self.material
            .as_slice()
            .try_into()
            .map_err(|_| other_length())
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
fn decode_material(encoded: Line<'_>) -> Result<(Algorithm, Zeroizing<Vec<u8>>), DecodeError> {
    let lengths = [SEED_BYTES, ML_DSA_44_PUBLIC_BYTES].map(|bytes| BASE64.encode_len(1 + bytes));
    if !lengths.contains(&encoded.text.len()) {
        return Err(encoded.error(OTHER_LENGTH));
    }
    let bytes = Zeroizing::new(encoded.base64()?);
    let Some((&id, material)) = bytes.split_first() else {
        return Err(encoded.error(OTHER_LENGTH));
    };
    let algorithm =
        Algorithm::from_id(id).ok_or_else(|| encoded.error(Kind::UnknownAlgorithm(id)))?;
    Ok((algorithm, Zeroizing::new(material.to_vec())))
}

fn encode_key(name: &str, id: KeyId, algorithm: Algorithm, material: &[u8]) -> String {
    // Of its final size at once: a buffer that grows would leave copies of a seed behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1 + material.len()));
    bytes.push(algorithm.id());
    bytes.extend_from_slice(material);
    let material = Zeroizing::new(text::base64(&bytes));
    format!("{name}+{id}+{}", *material)
}

/// What a cosignature signs (c2sp.org/tlog-cosignature).
fn cosigned_bytes(
    name: &str,
    algorithm: Algorithm,
    text: &str,
    at: u64,
) -> Result<Vec<u8>, DecodeError> {
    match algorithm {
        Algorithm::MlDsa44 => cosigned_message(name, text, at),
        Algorithm::Ed25519 | Algorithm::CosignatureV1 => {
            Ok(format!("cosignature/v1\ntime {at}\n{text}").into_bytes())
        }
    }
}

/// The `cosigned_message` of a head (c2sp.org/tlog-cosignature, "ML-DSA-44 signed message").
///
/// ```text
/// "subtree/v1" 0a 00
/// length:1 cosigner's name   time:8
/// length:1 origin            start:8 = 0   end:8 = size   root:32
/// ```
///
/// Extension lines are not in it. A name was checked with its key.
fn cosigned_message(name: &str, text: &str, at: u64) -> Result<Vec<u8>, DecodeError> {
    let head = Checkpoint::parse(text)?;
    let length = |name: &str| {
        u8::try_from(name.len()).map_err(|_| DecodeError::new(NAME_TOO_LONG, MAX_SIGNED_NAME_BYTES))
    };
    if i64::try_from(at).is_err() {
        return Err(DecodeError::new(Kind::BadTime, text.len()));
    }
    let mut message = b"subtree/v1\n\0".to_vec();
    message.push(length(name)?);
    message.extend_from_slice(name.as_bytes());
    message.extend_from_slice(&at.to_be_bytes());
    message.push(length(head.origin())?);
    message.extend_from_slice(head.origin().as_bytes());
    message.extend_from_slice(&0_u64.to_be_bytes());
    message.extend_from_slice(&head.size().to_be_bytes());
    message.extend_from_slice(head.root());
    Ok(message)
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

/// Length of a seed, and of an Ed25519 public key.
const SEED_BYTES: usize = 32;
/// FIPS 204, table 2.
const ML_DSA_44_PUBLIC_BYTES: usize = 1312;
/// Of a cosigner or a log in a `cosigned_message`.
const MAX_SIGNED_NAME_BYTES: usize = 255;

const OTHER_LENGTH: Kind = Kind::Expected("base64 of a type and a key of its length");
const NAME_TOO_LONG: Kind = Kind::TooLong {
    max_bytes: MAX_SIGNED_NAME_BYTES,
};
#[cfg(not(feature = "ml-dsa"))]
const WITHOUT_ML_DSA: Kind = Kind::NotBuiltIn {
    what: "ML-DSA-44 keys",
    feature: "ml-dsa",
};
