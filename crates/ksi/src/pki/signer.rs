//! Private keys: the [`Signer`] an HSM can implement, and [`RsaSigner`] in memory.

use std::error::Error;
use std::fmt;

use hmac::{Hmac, Mac};
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding, PrivateKeyInfo};
use rsa::rand_core::{CryptoRng, CryptoRngCore, Error as RandError, RngCore};
use rsa::traits::PublicKeyParts;
use rsa::{Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{MAX_RSA_BITS, MIN_RSA_BITS, PkiError};

/// A private RSA key, wherever it lives.
pub trait Signer {
    /// The public key as DER `SubjectPublicKeyInfo`.
    fn public_key_der(&self) -> &[u8];

    /// Signs SHA-256(`message`) with RSASSA-PKCS1-v1_5 (OID 1.2.840.113549.1.1.11).
    ///
    /// The result is as long as the modulus.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now; nothing was signed.
    fn sign_sha256_rsa(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// The key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign: {0}")]
pub struct SignError(#[source] pub Box<dyn Error + Send + Sync>);

/// An RSA private key in memory; wiped when dropped, never printed.
pub struct RsaSigner {
    key: RsaPrivateKey,
    public_key_der: Vec<u8>,
    /// Seeds the blinding of every private operation; as secret as the key.
    blinding: Zeroizing<[u8; 32]>,
}

impl RsaSigner {
    /// A new key of `bits` bits with public exponent 65 537.
    ///
    /// # Errors
    /// [`PkiError::KeySize`] outside `2048..=8192`; [`PkiError::Key`] if `rng` fails.
    pub fn generate(rng: &mut impl CryptoRngCore, bits: usize) -> Result<Self, PkiError> {
        if !(MIN_GENERATED_BITS..=MAX_RSA_BITS).contains(&bits) {
            return Err(PkiError::KeySize { bits });
        }
        Self::new(
            RsaPrivateKey::new(rng, bits).map_err(|_| PkiError::Key("key generation failed"))?,
        )
    }

    /// Reads an unencrypted PKCS#8 `PrivateKeyInfo`.
    ///
    /// # Errors
    /// [`PkiError::Key`] if it is no sound RSA key, [`PkiError::KeySize`] outside
    /// `1024..=8192` bits.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, PkiError> {
        PrivateKeyInfo::try_from(der).map_err(|_| PkiError::Key("not a PKCS#8 private key"))?;
        let key = RsaPrivateKey::from_pkcs8_der(der)
            .map_err(|_| PkiError::Key("not a sound RSA private key"))?;
        Self::new(key)
    }

    /// Reads `-----BEGIN PRIVATE KEY-----`.
    ///
    /// # Errors
    /// As [`Self::from_pkcs8_der`].
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, PkiError> {
        let key = RsaPrivateKey::from_pkcs8_pem(pem.trim())
            .map_err(|_| PkiError::Key("not a PKCS#8 PEM of an RSA private key"))?;
        Self::new(key)
    }

    /// The key as PKCS#8 DER, to be kept secret.
    ///
    /// # Errors
    /// [`PkiError::Key`] if the key cannot be encoded.
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, PkiError> {
        let document = self
            .key
            .to_pkcs8_der()
            .map_err(|_| PkiError::Key("private key cannot be encoded"))?;
        Ok(document.to_bytes())
    }

    /// The key as `-----BEGIN PRIVATE KEY-----`, to be kept secret.
    ///
    /// # Errors
    /// [`PkiError::Key`] if the key cannot be encoded.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, PkiError> {
        self.key
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|_| PkiError::Key("private key cannot be encoded"))
    }

    /// Size of the modulus in bits.
    pub fn bits(&self) -> usize {
        self.key.n().bits()
    }

    fn new(key: RsaPrivateKey) -> Result<Self, PkiError> {
        let bits = key.n().bits();
        if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
            return Err(PkiError::KeySize { bits });
        }
        let public_key_der = RsaPublicKey::from(&key)
            .to_public_key_der()
            .map_err(|_| PkiError::Key("public key cannot be encoded"))?
            .into_vec();
        let secret = key
            .to_pkcs8_der()
            .map_err(|_| PkiError::Key("private key cannot be encoded"))?;
        let blinding = Sha256::new()
            .chain_update(b"pitser rsa blinding v1")
            .chain_update(secret.as_bytes())
            .finalize();
        Ok(Self {
            key,
            public_key_der,
            blinding: Zeroizing::new(blinding.into()),
        })
    }
}

impl Signer for RsaSigner {
    fn public_key_der(&self) -> &[u8] {
        &self.public_key_der
    }

    fn sign_sha256_rsa(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let digest = Sha256::digest(message);
        let mut blinding = Blinding::new(&self.blinding, &digest);
        self.key
            .sign_with_rng(&mut blinding, Pkcs1v15Sign::new::<Sha256>(), &digest)
            .map_err(|error| SignError(error.to_string().into()))
    }
}

impl fmt::Debug for RsaSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaSigner({} bits)", self.bits())
    }
}

/// Smallest key that is made; smaller ones are only read.
const MIN_GENERATED_BITS: usize = 2048;

/// A deterministic random generator for blinding one private operation:
/// block i = HMAC-SHA-256(seed, digest ‖ i).
///
/// Blinding hides the timing of the private exponent from someone who chooses
/// messages. That needs factors the attacker cannot predict, not fresh
/// randomness, so this crate stays free of a random source.
struct Blinding {
    keyed: Hmac<Sha256>,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Blinding {
    fn new(seed: &[u8; 32], digest: &[u8]) -> Self {
        let mut keyed =
            Hmac::<Sha256>::new_from_slice(seed).expect("HMAC takes a key of any length");
        keyed.update(digest);
        Self {
            keyed,
            counter: 0,
            block: [0; 32],
            used: 32,
        }
    }

    fn next_byte(&mut self) -> u8 {
        if self.used == self.block.len() {
            let mut keyed = self.keyed.clone();
            keyed.update(&self.counter.to_be_bytes());
            self.block = keyed.finalize().into_bytes().into();
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }
}

impl Drop for Blinding {
    fn drop(&mut self) {
        self.block.zeroize();
    }
}

impl RngCore for Blinding {
    fn next_u32(&mut self) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|_| self.next_byte()))
    }

    fn next_u64(&mut self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|_| self.next_byte()))
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.iter_mut().for_each(|byte| *byte = self.next_byte());
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), RandError> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for Blinding {}
