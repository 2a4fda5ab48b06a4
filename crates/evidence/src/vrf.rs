//! ECVRF-EDWARDS25519-SHA512-TAI (RFC 9381 §5.5, suite 0x03): pseudonyms that
//! are unique, provable and not guessable without the key.
//!
//! ```text
//! proof  = gamma:32 ‖ c:16 ‖ s:32                      80 bytes
//! output = SHA-512(03 ‖ 03 ‖ 8·gamma ‖ 00)             64 bytes
//! ```

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT as BASE;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use curve25519_dalek::traits::IsIdentity;
use sha2::{Digest, Sha512};
use std::fmt;
use zeroize::Zeroizing;

const SUITE: u8 = 0x03;

/// Bytes of a proof.
pub const PROOF_LEN: usize = 80;

/// The first 32 bytes of a VRF output; what lines carry as `patient`.
pub type Pseudonym = [u8; 32];

/// The key that makes pseudonyms. Its holder can link identifiers to lines.
pub struct SecretKey {
    scalar: Zeroizing<Scalar>,
    nonce_key: Zeroizing<[u8; 32]>,
    public: PublicKey,
}

impl SecretKey {
    /// Derives the key pair from a 32-byte seed as Ed25519 does (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let expanded = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(seed)));
        let (low, high) = expanded.split_at(32);
        let low: [u8; 32] = low.try_into().expect("half of 64");
        let scalar = Scalar::from_bytes_mod_order(clamp_integer(low));
        let public = PublicKey((scalar * BASE).compress().to_bytes());
        Self {
            scalar: Zeroizing::new(scalar),
            nonce_key: Zeroizing::new(high.try_into().expect("half of 64")),
            public,
        }
    }

    /// The public key, fixed in a trail's genesis.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The pseudonym of `alpha`: that of [`SecretKey::prove`], in less than half the
    /// time.
    pub fn pseudonym(&self, alpha: &[u8]) -> Pseudonym {
        pseudonym(&(*self.scalar * hash_to_curve(&self.public.0, alpha)))
    }

    /// The pseudonym of `alpha` and the proof that it is the only one.
    pub fn prove(&self, alpha: &[u8]) -> (Pseudonym, [u8; PROOF_LEN]) {
        let h = hash_to_curve(&self.public.0, alpha);
        let h_bytes = h.compress().to_bytes();
        let gamma = *self.scalar * h;
        let k = Zeroizing::new(Scalar::from_bytes_mod_order_wide(
            &Sha512::new()
                .chain_update(*self.nonce_key)
                .chain_update(h_bytes)
                .finalize()
                .into(),
        ));
        let c = challenge([
            self.public.0,
            h_bytes,
            gamma.compress().to_bytes(),
            (*k * BASE).compress().to_bytes(),
            (*k * h).compress().to_bytes(),
        ]);
        let s = *k + challenge_scalar(&c) * *self.scalar;
        let mut proof = [0; PROOF_LEN];
        proof[..32].copy_from_slice(gamma.compress().as_bytes());
        proof[32..48].copy_from_slice(&c);
        proof[48..].copy_from_slice(s.as_bytes());
        (pseudonym(&gamma), proof)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SecretKey(of {})",
            data_encoding::HEXLOWER.encode(&self.public.0)
        )
    }
}

/// The key that checks pseudonyms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The pseudonym that `proof` shows for `alpha`; `None` if it shows none
    /// (RFC 9381 §5.3, with validation of the key).
    pub fn verify(&self, alpha: &[u8], proof: &[u8; PROOF_LEN]) -> Option<Pseudonym> {
        let public = decompress(&self.0)?;
        if public.mul_by_cofactor().is_identity() {
            return None;
        }
        let gamma_bytes: [u8; 32] = proof[..32].try_into().ok()?;
        let gamma = decompress(&gamma_bytes)?;
        let c: [u8; 16] = proof[32..48].try_into().ok()?;
        let s = Option::<Scalar>::from(Scalar::from_canonical_bytes(proof[48..].try_into().ok()?))?;
        let c_scalar = challenge_scalar(&c);
        let h = hash_to_curve(&self.0, alpha);
        let u = s * BASE - c_scalar * public;
        let v = s * h - c_scalar * gamma;
        let expected = challenge([
            self.0,
            h.compress().to_bytes(),
            gamma_bytes,
            u.compress().to_bytes(),
            v.compress().to_bytes(),
        ]);
        (c == expected).then(|| pseudonym(&gamma))
    }
}

/// Decodes a point and refuses any but its one canonical encoding.
fn decompress(bytes: &[u8; 32]) -> Option<EdwardsPoint> {
    let point = CompressedEdwardsY(*bytes).decompress()?;
    (point.compress().as_bytes() == bytes).then_some(point)
}

/// Try-and-increment (RFC 9381 §5.4.1.1), salted with the public key.
fn hash_to_curve(public: &[u8; 32], alpha: &[u8]) -> EdwardsPoint {
    for counter in 0..=u8::MAX {
        let digest = Sha512::new()
            .chain_update([SUITE, 0x01])
            .chain_update(public)
            .chain_update(alpha)
            .chain_update([counter, 0x00])
            .finalize();
        let candidate = digest[..32].try_into().expect("32 of 64 bytes");
        if let Some(point) = CompressedEdwardsY(candidate).decompress() {
            let point = point.mul_by_cofactor();
            if !point.is_identity() {
                return point;
            }
        }
    }
    unreachable!("each of 256 tries fails with probability one half")
}

fn challenge(points: [[u8; 32]; 5]) -> [u8; 16] {
    let mut hash = Sha512::new().chain_update([SUITE, 0x02]);
    for point in points {
        hash.update(point);
    }
    hash.chain_update([0x00]).finalize()[..16]
        .try_into()
        .expect("16 of 64 bytes")
}

fn challenge_scalar(c: &[u8; 16]) -> Scalar {
    let mut wide = [0; 32];
    wide[..16].copy_from_slice(c);
    Scalar::from_bytes_mod_order(wide)
}

fn pseudonym(gamma: &EdwardsPoint) -> Pseudonym {
    output(gamma)[..32].try_into().expect("32 of 64 bytes")
}

fn output(gamma: &EdwardsPoint) -> [u8; 64] {
    Sha512::new()
        .chain_update([SUITE, 0x03])
        .chain_update(gamma.mul_by_cofactor().compress().as_bytes())
        .chain_update([0x00])
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    /// RFC 9381 appendix B.3: key seed, alpha, proof, output.
    const RFC: [[&str; 4]; 2] = [
        [
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "",
            "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f26f8a57ccaed74ee1b190bed1f479d9727d2d0f9b005a6e456a35d4fb0daab1268a1b0db10836d9826a528ca76567805",
            "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff66b71dda49d2de59d03450451af026798e8f81cd2e333de5cdf4f3e140fdd8ae",
        ],
        [
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "72",
            "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed5933bf0864a62558b3ed7f2fea45c92a465301b3bbf5e3e54ddf2d935be3b67926da3ef39226bbc355bdc9850112c8f4b02",
            "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb5e33821bc613efb94db5e5b54c70a848a0bef4553a41befc57663b56373a5031",
        ],
    ];

    #[test]
    fn published_vectors() {
        for case in RFC {
            let [seed, alpha, proof, beta] =
                case.map(|hex| HEXLOWER.decode(hex.as_bytes()).unwrap());
            let key = SecretKey::from_seed(&seed.try_into().unwrap());
            let (pseudonym, made) = key.prove(&alpha);
            assert_eq!(made.as_slice(), proof);
            assert_eq!(pseudonym, beta[..32]);
            assert_eq!(key.pseudonym(&alpha), pseudonym);
            assert_eq!(key.public().verify(&alpha, &made), Some(pseudonym));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_proof_is_noticed() {
        let key = SecretKey::from_seed(&[5; 32]);
        let (_, proof) = key.prove(b"patient");
        for bit in 0..PROOF_LEN * 8 {
            let mut forged = proof;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                key.public().verify(b"patient", &forged),
                None,
                "bit {bit} went unnoticed"
            );
        }
        assert_eq!(key.public().verify(b"patienu", &proof), None);
        assert_eq!(
            SecretKey::from_seed(&[6; 32])
                .public()
                .verify(b"patient", &proof),
            None
        );
    }
}
