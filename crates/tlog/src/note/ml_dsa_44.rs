//! ML-DSA-44 (FIPS 204): pure, with an empty context, signed deterministically.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ml_dsa::signature::{Keypair as _, SignatureEncoding as _, Signer as _, Verifier as _};
use ml_dsa::{EncodedVerifyingKey, MlDsa44, Seed, Signature};
use zeroize::Zeroizing;

/// A public key, with what it is expanded to: some 20 KiB, shared by its copies.
#[derive(Clone)]
pub(super) struct PublicKey(Arc<Expanded>);

struct Expanded {
    bytes: EncodedVerifyingKey<MlDsa44>,
    key: ml_dsa::VerifyingKey<MlDsa44>,
}

impl PublicKey {
    /// `None` unless there are 1,312 bytes; any such bytes are a key.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = EncodedVerifyingKey::<MlDsa44>::try_from(bytes).ok()?;
        let key = ml_dsa::VerifyingKey::decode(&bytes);
        Some(Self(Arc::new(Expanded { bytes, key })))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// False too for a signature of another length, or in another encoding than the one
    /// that signing gives.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::try_from(signature)
            .is_ok_and(|signature| self.0.key.verify(message, &signature).is_ok())
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(ML-DSA-44)")
    }
}

/// A private key. Wiped from memory when dropped, as is what it was expanded to.
pub(super) struct PrivateKey(ml_dsa::SigningKey<MlDsa44>);

impl PrivateKey {
    pub(super) fn from_seed(seed: &[u8; 32]) -> Self {
        let seed = Zeroizing::new(Seed::from(*seed));
        Self(ml_dsa::SigningKey::from_seed(&seed))
    }

    pub(super) fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new((*self.0.as_seed()).into())
    }

    pub(super) fn public_bytes(&self) -> EncodedVerifyingKey<MlDsa44> {
        self.0.verifying_key().encode()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature<MlDsa44> = self.0.sign(message);
        signature.to_bytes().to_vec()
    }
}
