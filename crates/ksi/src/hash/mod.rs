//! Hash algorithms and imprints (spec §2).
//!
//! ```text
//! | algorithm id:1 | digest |      imprint, 21 to 65 bytes
//! ```
//!
//! Every [`Algorithm`] can be computed, so hashing is total. SM3 (0B) has an id
//! but is built neither here nor in the common clients; 03 and 06 are withdrawn.
//! All three are refused by decoders.

mod batch;
mod lanes;

pub use batch::Batch;
pub use lanes::Kernel;

use crate::{error::DecodeErrorKind, time::Second};
use core::{fmt, str::FromStr};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hmac::{
    Hmac, Mac, SimpleHmac,
    digest::{DynDigest, core_api::BlockSizeUser},
};
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use sha3::{Sha3_224, Sha3_256, Sha3_384, Sha3_512};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// As many messages as this fill every kernel's lanes.
pub(crate) const LANES: u32 = lanes::WIDTH as u32;

/// A hash algorithm that has an id and is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Algorithm {
    /// Deprecated from 2016-07-01T00:00:00Z.
    Sha1 = 0,
    /// The usual one.
    #[default]
    Sha256 = 1,
    /// RIPEMD-160.
    Ripemd160 = 2,
    /// SHA-384.
    Sha384 = 4,
    /// SHA-512.
    Sha512 = 5,
    /// SHA3-224.
    Sha3_224 = 7,
    /// SHA3-256.
    Sha3_256 = 8,
    /// SHA3-384.
    Sha3_384 = 9,
    /// SHA3-512.
    Sha3_512 = 10,
}

impl Algorithm {
    /// All algorithms, by ascending id.
    pub const ALL: [Algorithm; 9] = [
        Self::Sha1,
        Self::Sha256,
        Self::Ripemd160,
        Self::Sha384,
        Self::Sha512,
        Self::Sha3_224,
        Self::Sha3_256,
        Self::Sha3_384,
        Self::Sha3_512,
    ];

    /// The algorithm with this id, if it is supported.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.id() == id)
    }

    /// The algorithm with this name: letter case does not matter, nor does `_`
    /// for `-`, and "SHA2-256", "SHA256" and "default" stand for SHA-256.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let canonical = |name: &str| {
            let name = name.to_ascii_uppercase().replace(['-', '_'], "");
            match name.strip_prefix("SHA2") {
                Some(bits) if bits.len() == 3 => format!("SHA{bits}"),
                _ => name,
            }
        };
        let wanted = canonical(name);
        if wanted == "DEFAULT" {
            return Some(Self::default());
        }
        Self::ALL
            .into_iter()
            .find(|algorithm| canonical(algorithm.name()) == wanted)
    }

    /// The id, the first byte of an imprint.
    #[must_use]
    pub fn id(self) -> u8 {
        self as u8
    }

    /// Its usual name, such as "SHA-256".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Ripemd160 => "RIPEMD-160",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
            Self::Sha3_224 => "SHA3-224",
            Self::Sha3_256 => "SHA3-256",
            Self::Sha3_384 => "SHA3-384",
            Self::Sha3_512 => "SHA3-512",
        }
    }

    /// Length of the digest, in bytes.
    #[must_use]
    pub fn digest_len(self) -> usize {
        match self {
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha3_224 => 28,
            Self::Sha256 | Self::Sha3_256 => 32,
            Self::Sha384 | Self::Sha3_384 => 48,
            Self::Sha512 | Self::Sha3_512 => 64,
        }
    }

    /// From this instant on nothing new may rely on the algorithm; what is
    /// older stays good.
    #[must_use]
    pub fn deprecated_from(self) -> Option<Second> {
        match self {
            Self::Sha1 => Some(Second(1_467_331_200)),
            _ => None,
        }
    }

    /// From this instant on even older data cannot rely on the algorithm.
    /// No algorithm has reached that state yet.
    #[must_use]
    pub fn obsolete_from(self) -> Option<Second> {
        None
    }

    /// Whether nothing new may rely on the algorithm at `at`.
    #[must_use]
    pub fn is_deprecated(self, at: Second) -> bool {
        self.deprecated_from().is_some_and(|from| at >= from) || self.is_obsolete(at)
    }

    /// Whether not even older data may rely on the algorithm at `at`.
    #[must_use]
    pub fn is_obsolete(self, at: Second) -> bool {
        self.obsolete_from().is_some_and(|from| at >= from)
    }

    /// Whether new signatures and MACs may use it: no end date is set.
    #[must_use]
    pub fn is_trusted(self) -> bool {
        self.deprecated_from().is_none() && self.obsolete_from().is_none()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest together with its algorithm; stored inline, cheap to copy.
///
/// Displays as hex of the whole imprint; parses that form and "SHA-256:hex".
///
/// ```
/// use pitser_ksi::hash::{Algorithm, Imprint, hash};
/// let imprint = hash(Algorithm::Sha256, &[b"abc"]);
/// assert_eq!(imprint.to_string().parse(), Ok(imprint));
/// assert_eq!(format!("SHA-256:{}", &imprint.to_string()[2..]).parse(), Ok(imprint));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Imprint {
    /// Zero beyond the digest, so that equality is equality of the bytes.
    bytes: [u8; Imprint::MAX_LEN],
    algorithm: Algorithm,
}

impl Imprint {
    /// The longest imprint, in bytes.
    pub const MAX_LEN: usize = 65;

    /// The imprint made of `algorithm` and `digest`, or `None` if the length of
    /// the digest does not fit.
    #[must_use]
    pub fn new(algorithm: Algorithm, digest: &[u8]) -> Option<Self> {
        (digest.len() == algorithm.digest_len()).then(|| Self::from_digest(algorithm, digest))
    }

    /// Reads an imprint: algorithm id, then a digest of its length.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Algorithm`] for an unsupported one,
    /// [`DecodeErrorKind::Imprint`] if the length does not fit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeErrorKind> {
        let (&id, digest) = bytes.split_first().ok_or(DecodeErrorKind::Imprint)?;
        let algorithm = Algorithm::from_id(id).ok_or(DecodeErrorKind::Algorithm(id))?;
        Self::new(algorithm, digest).ok_or(DecodeErrorKind::Imprint)
    }

    /// A digest of zeros: no preimage is known, it marks "nothing here".
    #[must_use]
    pub fn zero(algorithm: Algorithm) -> Self {
        Self::from_digest(algorithm, &[])
    }

    /// Algorithm id and digest, as hashed and transmitted.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..=self.algorithm.digest_len()]
    }

    /// The digest without the algorithm id.
    #[must_use]
    pub fn digest(&self) -> &[u8] {
        &self.as_bytes()[1..]
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Compares without revealing by its duration where the two differ.
    #[must_use]
    pub fn ct_eq(&self, other: &Imprint) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }

    /// `digest` is zero beyond the algorithm's digest.
    #[inline]
    fn from_longest(algorithm: Algorithm, digest: &[u8; Self::MAX_LEN - 1]) -> Self {
        let mut bytes = [0; Self::MAX_LEN];
        bytes[0] = algorithm.id();
        bytes[1..].copy_from_slice(digest);
        Self { bytes, algorithm }
    }

    /// `digest` is at most as long as the algorithm's; zeros fill it up.
    fn from_digest(algorithm: Algorithm, digest: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX_LEN];
        bytes[0] = algorithm.id();
        bytes[1..][..digest.len()].copy_from_slice(digest);
        Self { bytes, algorithm }
    }
}

impl AsRef<[u8]> for Imprint {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for Imprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(self.as_bytes()))
    }
}

impl fmt::Debug for Imprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Imprint({self})")
    }
}

/// A text is neither the hex of an imprint nor "algorithm:hex of the digest".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an imprint: expected hex such as 01ab… or SHA-256:ab…")]
pub struct ParseImprintError;

impl FromStr for Imprint {
    type Err = ParseImprintError;

    fn from_str(text: &str) -> Result<Self, ParseImprintError> {
        let hex = |text: &str| {
            HEXLOWER_PERMISSIVE
                .decode(text.as_bytes())
                .map_err(|_| ParseImprintError)
        };
        match text.split_once(':') {
            None => Self::from_bytes(&hex(text)?).map_err(|_| ParseImprintError),
            Some((name, digest)) => {
                let algorithm = Algorithm::from_name(name).ok_or(ParseImprintError)?;
                Self::new(algorithm, &hex(digest)?).ok_or(ParseImprintError)
            }
        }
    }
}

/// Evaluates `$body` with `$D` standing for the type that computes `$algorithm`.
macro_rules! with_digest {
    ($algorithm:expr, $D:ident => $body:expr) => {
        match $algorithm {
            Algorithm::Sha1 => {
                type $D = Sha1;
                $body
            }
            Algorithm::Sha256 => {
                type $D = Sha256;
                $body
            }
            Algorithm::Ripemd160 => {
                type $D = Ripemd160;
                $body
            }
            Algorithm::Sha384 => {
                type $D = Sha384;
                $body
            }
            Algorithm::Sha512 => {
                type $D = Sha512;
                $body
            }
            Algorithm::Sha3_224 => {
                type $D = Sha3_224;
                $body
            }
            Algorithm::Sha3_256 => {
                type $D = Sha3_256;
                $body
            }
            Algorithm::Sha3_384 => {
                type $D = Sha3_384;
                $body
            }
            Algorithm::Sha3_512 => {
                type $D = Sha3_512;
                $body
            }
        }
    };
}

/// Hashes the concatenation of `parts`. No allocation.
#[must_use]
pub fn hash(algorithm: Algorithm, parts: &[&[u8]]) -> Imprint {
    if algorithm == Algorithm::Sha256
        && let Some(digest) = lanes::short(parts)
    {
        return Imprint::from_digest(algorithm, &digest);
    }
    with_digest!(algorithm, D => {
        let mut hasher = D::new();
        for part in parts {
            Digest::update(&mut hasher, part);
        }
        Imprint::from_digest(algorithm, &hasher.finalize())
    })
}

/// An inner node: `H(left ‖ right ‖ level)` (spec §3.1). Every node of every
/// tree in this crate is computed here.
#[must_use]
pub fn node(algorithm: Algorithm, left: &[u8], right: &[u8], level: u8) -> Imprint {
    type Child<'c> = &'c [u8; lanes::IMPRINT_LEN];
    // The usual one: with lengths known beforehand it is copied much faster.
    if algorithm == Algorithm::Sha256
        && let (Ok(left), Ok(right)) = (Child::try_from(left), Child::try_from(right))
        && let Some(digest) = lanes::short(&[left, right, &[level]])
    {
        return Imprint::from_digest(algorithm, &digest);
    }
    hash(algorithm, &[left, right, &[level]])
}

/// What [`node`] computes an inner node of.
#[derive(Clone, Copy)]
pub(crate) struct Node<'n> {
    pub(crate) algorithm: Algorithm,
    pub(crate) left: &'n [u8],
    pub(crate) right: &'n [u8],
    pub(crate) level: u8,
}

impl Node<'_> {
    pub(crate) fn hash(&self) -> Imprint {
        node(self.algorithm, self.left, self.right, self.level)
    }

    /// The children's digests, if everything is by SHA-256.
    fn digests(&self) -> Option<[&lanes::Digest; 2]> {
        const IMPRINT: u8 = Algorithm::Sha256 as u8;
        match (self.algorithm, self.left, self.right) {
            (Algorithm::Sha256, [IMPRINT, left @ ..], [IMPRINT, right @ ..]) => {
                Some([left.try_into().ok()?, right.try_into().ok()?])
            }
            _ => None,
        }
    }
}

/// Two nodes that do not depend on each other, at the price of little more than one.
/// No allocation.
pub(crate) fn two_nodes(kernel: Kernel, [first, second]: [Node<'_>; 2]) -> [Imprint; 2] {
    let children = first.digests().zip(second.digests());
    let digests = children.and_then(|(first_children, second_children)| {
        let levels = [first.level, second.level];
        kernel.two_nodes([first_children, second_children], levels)
    });
    match digests {
        Some(digests) => digests.map(|digest| Imprint::from_digest(Algorithm::Sha256, &digest)),
        None => [first.hash(), second.hash()],
    }
}

/// HMAC of the concatenation of `parts`, as an imprint of its algorithm.
#[must_use]
pub fn hmac(algorithm: Algorithm, key: &[u8], parts: &[&[u8]]) -> Imprint {
    with_digest!(algorithm, D => mac::<D>(algorithm, key, parts))
}

fn mac<D: Digest + BlockSizeUser>(algorithm: Algorithm, key: &[u8], parts: &[&[u8]]) -> Imprint {
    let mut mac =
        <SimpleHmac<D> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    Imprint::from_digest(algorithm, &mac.finalize().into_bytes())
}

/// A key for many codes: what HMAC by SHA-256 hashes of the key is hashed once.
///
/// ```
/// use pitser_ksi::hash::{Algorithm, HmacKey, hmac};
/// let key = HmacKey::new(b"secret");
/// let code = key.mac(Algorithm::Sha256, &[b"mess", b"age"]);
/// assert_eq!(code, hmac(Algorithm::Sha256, b"secret", &[b"message"]));
/// ```
#[derive(Clone)]
pub struct HmacKey {
    key: Box<[u8]>,
    sha256: Hmac<Sha256>,
}

impl HmacKey {
    /// Prepares `key`, of any length.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self {
            key: key.into(),
            sha256: <Hmac<Sha256> as Mac>::new_from_slice(key)
                .expect("HMAC takes keys of any length"),
        }
    }

    /// The code of the concatenation of `parts`, as [`hmac()`] makes it.
    #[must_use]
    pub fn mac(&self, algorithm: Algorithm, parts: &[&[u8]]) -> Imprint {
        if algorithm != Algorithm::Sha256 {
            return hmac(algorithm, &self.key, parts);
        }
        let mut mac = self.sha256.clone();
        for part in parts {
            mac.update(part);
        }
        Imprint::from_digest(algorithm, &mac.finalize().into_bytes())
    }
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(..)")
    }
}

/// Hashes data that arrives piece by piece.
///
/// ```
/// use pitser_ksi::hash::{Algorithm, Hasher, hash};
/// let mut hasher = Hasher::new(Algorithm::Sha512);
/// hasher.update(b"a");
/// hasher.update(b"bc");
/// assert_eq!(hasher.finish(), hash(Algorithm::Sha512, &[b"abc"]));
/// ```
pub struct Hasher {
    algorithm: Algorithm,
    state: Box<dyn DynDigest + Send + Sync>,
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        with_digest!(algorithm, D => Self { algorithm, state: Box::new(D::new()) })
    }

    /// Takes in more data.
    pub fn update(&mut self, data: &[u8]) {
        self.state.update(data);
    }

    /// The imprint of all data taken in.
    #[must_use]
    pub fn finish(mut self) -> Imprint {
        let mut imprint = Imprint::zero(self.algorithm);
        let digest = &mut imprint.bytes[1..][..self.algorithm.digest_len()];
        self.state
            .finalize_into_reset(digest)
            .expect("the buffer has the digest's length");
        imprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(algorithm: Algorithm, message: &[u8], digest: &str) {
        let expected = Imprint::from_str(&format!("{algorithm}:{digest}")).unwrap();
        assert_eq!(hash(algorithm, &[message]), expected);
        let mut hasher = Hasher::new(algorithm);
        message.iter().for_each(|&byte| hasher.update(&[byte]));
        assert_eq!(hasher.finish(), expected);
    }

    #[test]
    fn known_digests() {
        check(
            Algorithm::Sha1,
            b"abc",
            "a9993e364706816aba3e25717850c26c9cd0d89d",
        );
        check(
            Algorithm::Ripemd160,
            b"abc",
            "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc",
        );
        check(
            Algorithm::Sha256,
            b"abc",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        );
        check(
            Algorithm::Sha3_256,
            b"abc",
            "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
        );
        check(
            Algorithm::Sha512,
            b"",
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
             47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        );
    }

    #[test]
    fn short_messages_are_hashed_like_long_ones() {
        let bytes: Vec<u8> = (0..=255).collect();
        for message in (0..=200).map(|length| &bytes[..length]) {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(message);
            let expected = hasher.finish();
            for middle in [0, message.len() / 3, message.len()] {
                let (start, end) = message.split_at(middle);
                assert_eq!(hash(Algorithm::Sha256, &[start, end]), expected);
            }
        }
    }

    #[test]
    fn nodes_are_hashes_of_what_they_join() {
        for algorithm in Algorithm::ALL {
            let [left, right] = [b"left", b"rite"].map(|text| hash(algorithm, &[text]));
            for (left, right) in [(left.as_bytes(), right.as_bytes()), (b"metadata", b"leaf")] {
                let mut hasher = Hasher::new(algorithm);
                [left, right, &[9]]
                    .iter()
                    .for_each(|part| hasher.update(part));
                assert_eq!(node(algorithm, left, right, 9), hasher.finish());
            }
        }
    }

    #[test]
    fn known_mac() {
        // RFC 4231, test case 2.
        let mac = hmac(
            Algorithm::Sha256,
            b"Jefe",
            &[b"what do ya want ", b"for nothing?"],
        );
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(mac.to_string(), format!("01{expected}"));
        assert!(mac.ct_eq(&mac));
        assert!(!mac.ct_eq(&Imprint::zero(Algorithm::Sha256)));
    }

    #[test]
    fn ids_and_names_lead_back() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_id(algorithm.id()), Some(algorithm));
            assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
            assert_eq!(hash(algorithm, &[]).digest().len(), algorithm.digest_len());
            assert!(hmac(algorithm, b"", &[]).ct_eq(&hmac(algorithm, b"", &[])));
        }
        for id in [3, 6, 11, 255] {
            assert_eq!(Algorithm::from_id(id), None);
        }
    }

    #[test]
    fn names_have_aliases() {
        for name in ["sha-256", "SHA2-256", "SHA256", "sha_256", "DEFAULT"] {
            assert_eq!(
                Algorithm::from_name(name),
                Some(Algorithm::Sha256),
                "{name}"
            );
        }
        assert_eq!(Algorithm::from_name("sha3_512"), Some(Algorithm::Sha3_512));
        for name in ["", "SHA-224", "SM3", "RIPEMD-256"] {
            assert_eq!(Algorithm::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn imprints_fit_their_algorithm() {
        assert_eq!(Imprint::from_bytes(&[]), Err(DecodeErrorKind::Imprint));
        assert_eq!(
            Imprint::from_bytes(&[11; 33]),
            Err(DecodeErrorKind::Algorithm(11))
        );
        assert_eq!(Imprint::from_bytes(&[1; 32]), Err(DecodeErrorKind::Imprint));
        assert_eq!(Imprint::from_bytes(&[1; 34]), Err(DecodeErrorKind::Imprint));
        assert_eq!(Imprint::from_bytes(&[1; 33]).unwrap().as_bytes(), [1; 33]);
        assert_eq!(Imprint::zero(Algorithm::Sha512).as_bytes().len(), 65);
    }

    #[test]
    fn sha1_ends_in_2016() {
        assert!(!Algorithm::Sha1.is_deprecated(Second(1_467_331_199)));
        assert!(Algorithm::Sha1.is_deprecated(Second(1_467_331_200)));
        assert!(!Algorithm::Sha1.is_obsolete(Second(u64::MAX)));
        assert!(!Algorithm::Sha1.is_trusted() && Algorithm::Ripemd160.is_trusted());
    }

    #[test]
    fn refuses_what_is_no_imprint() {
        for text in [
            "", "01", "xx", "SHA-256", "SHA-256:", "SM3:00", "01:02", ":",
        ] {
            assert_eq!(text.parse::<Imprint>(), Err(ParseImprintError), "{text}");
        }
    }
}
