//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), for the short messages of a
//! vault: the subkey by `chacha20`, the rest by ring, which is several times as fast
//! at a few hundred bytes as a pure implementation.

use chacha20::cipher::consts::U10;
use pitser_evidence::commit::Key;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

/// Bytes of a nonce. Random ones never meet.
pub(super) const NONCE_LEN: usize = 24;
/// Bytes of what is appended to a message.
pub(super) const TAG_LEN: usize = 16;

/// Encrypts `message` in place and gives the tag that belongs behind it; `label` is
/// authenticated with it.
pub(super) fn seal(
    key: &Key,
    nonce: &[u8; NONCE_LEN],
    label: &[u8],
    message: &mut [u8],
) -> [u8; TAG_LEN] {
    let (key, nonce) = keyed(key, nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(label), message)
        .expect("a message in memory is below the cipher's limit of 256 GiB");
    tag.as_ref().try_into().expect("Poly1305 has 16 bytes")
}

/// What was sealed; `None` unless key, nonce, label and message are those.
pub(super) fn open(
    key: &Key,
    nonce: &[u8; NONCE_LEN],
    label: &[u8],
    mut sealed: Vec<u8>,
) -> Option<Vec<u8>> {
    let (key, nonce) = keyed(key, nonce);
    let clear = key.open_in_place(nonce, Aad::from(label), &mut sealed);
    let length = clear.ok()?.len();
    sealed.truncate(length);
    Some(sealed)
}

/// The subkey that the first 16 bytes of the nonce select, and the nonce for it.
fn keyed(key: &Key, nonce: &[u8; NONCE_LEN]) -> (LessSafeKey, Nonce) {
    let mut subkey = chacha20::hchacha::<U10>(key.expose().into(), nonce[..16].into());
    let unbound = UnboundKey::new(&CHACHA20_POLY1305, &subkey).expect("it has 32 bytes");
    subkey.as_mut_slice().zeroize();
    let mut rest = [0; 12];
    rest[4..].copy_from_slice(&nonce[16..]);
    (
        LessSafeKey::new(unbound),
        Nonce::assume_unique_for_key(rest),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::aead::{Aead, Payload};
    use chacha20poly1305::{KeyInit, XChaCha20Poly1305};

    #[test]
    fn is_what_another_implementation_makes() {
        for length in (0..300).chain([1000, 4096, 100_001]) {
            let bytes = |n: usize| (0..n).map(|i| (i * 7 + length) as u8).collect::<Vec<_>>();
            let key = Key::new(bytes(32).try_into().unwrap());
            let nonce: [u8; NONCE_LEN] = bytes(24).try_into().unwrap();
            let (label, message) = (bytes(length % 40), bytes(length));
            let payload = Payload {
                msg: &message,
                aad: &label,
            };
            let other = XChaCha20Poly1305::new(key.expose().into());
            let expected = other.encrypt((&nonce).into(), payload).unwrap();
            let mut ours = message.clone();
            let tag = seal(&key, &nonce, &label, &mut ours);
            ours.extend(tag);
            assert_eq!(ours, expected, "{length} bytes");
            assert_eq!(open(&key, &nonce, &label, ours.clone()), Some(message));
            ours[length / 2] ^= 1;
            assert_eq!(open(&key, &nonce, &label, ours), None);
        }
        let key = Key::new([1; 32]);
        assert_eq!(open(&key, &[0; 24], b"", vec![0; 15]), None);
    }
}
