//! Cosignatures by ML-DSA-44: known answers, another implementation, and every bit.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use fips204::traits::{KeyGen, SerDes, Signer as _, Verifier as _};
use ml_dsa::signature::{Keypair as _, SignatureEncoding as _, Signer as _};
use pitser_tlog::checkpoint::{Checkpoint, QuorumError, verify_quorum};
use pitser_tlog::error::DecodeErrorKind as Kind;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{
    Algorithm, CosigningKey, MAX_NOTE_BYTES, Note, SignatureError, SignatureLine, Signed,
    SigningKey, VerifierKey,
};
use sha3::digest::{ExtendableOutput as _, Update as _, XofReader as _};

const HEAD: &str = include_str!("../../../testdata/tlog/head-ml-dsa-44.note");
const KEYGEN: &str = include_str!("../../../testdata/tlog/ml-dsa-44-keygen.txt");
const AT: u64 = 1_735_689_600;

/// The accumulated vectors of C2SP's CCTV (CC0): 100 seeds out of one stream; the hash of
/// their public keys and of their deterministic signatures of nothing.
#[test]
fn keys_and_signatures_are_the_published_ones() {
    let mut seeds = sha3::Shake128::default().finalize_xof();
    let mut all = sha3::Shake128::default();
    for _ in 0..100 {
        let mut seed = [0; 32];
        seeds.read(&mut seed);
        let key = ml_dsa::SigningKey::<ml_dsa::MlDsa44>::from_seed(&seed.into());
        all.update(&key.verifying_key().encode());
        all.update(&key.sign(b"").to_bytes());
    }
    let mut hash = [0; 32];
    all.finalize_xof().read(&mut hash);
    assert_eq!(
        HEXLOWER.encode(&hash),
        "d51148e1f9f4fa1a723a6cf42e25f2a99eb5c1b378b3d2dbbd561b1203beeae4"
    );
}

#[test]
fn public_keys_are_those_of_the_standards_body() {
    for line in KEYGEN.lines() {
        let (seed, public) = line.split_once(' ').unwrap();
        let bytes = |hex: &str| HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).unwrap();
        let seed = bytes(seed).try_into().unwrap();
        let key = CosigningKey::with_algorithm("w", Algorithm::MlDsa44, &seed).unwrap();
        assert_eq!(key.verifier().public_key(), bytes(public));
    }
    assert_eq!(KEYGEN.lines().count(), 5);
}

/// Key, signed bytes and signature, computed by other code from what the specification says.
#[test]
fn another_implementation_cosigns_alike() {
    let (log, witness) = (log(), witness(4));
    let text = head(3, "extension").to_string();
    let root = *Checkpoint::parse(&text).unwrap().root();
    let mut message = b"subtree/v1\n\0".to_vec();
    message.push(24);
    message.extend(b"university.example/pq/04");
    message.extend(AT.to_be_bytes());
    message.push(20);
    message.extend(b"hospital.example/ehr");
    message.extend([0; 8]);
    message.extend([0, 0, 0, 0, 0, 0, 0, 3]);
    message.extend(root);

    let (public, secret) = fips204::ml_dsa_44::KG::keygen_from_seed(&[4; 32]);
    assert_eq!(witness.verifier().public_key(), public.clone().into_bytes());
    let line = witness.cosign_head(&text, AT).unwrap();
    let theirs = secret.try_sign_with_seed(&[0; 32], &message, b"").unwrap();
    let (time, ours) = line.signature().split_at(8);
    assert_eq!((time, ours), (&AT.to_be_bytes()[..], &theirs[..]));
    assert!(public.verify(&message, ours.try_into().unwrap(), b""));

    // A hedged signature of theirs verifies here, too.
    let hedged = secret.try_sign_with_seed(&[9; 32], &message, b"").unwrap();
    assert_ne!(hedged, theirs);
    let hedged = line_of(&witness.verifier(), &[time, &hedged].concat());
    let mut note = Note::sign(&text, &log).unwrap();
    note.add(hedged).unwrap();
    assert_eq!(note.cosigned_at(&witness.verifier()), Ok(AT));
}

#[test]
fn the_published_head_stays_as_it_is() {
    let (log, ed25519) = (log(), ed25519());
    let mut note = head(3, "").sign(&log).unwrap();
    note.add(ed25519.cosign_head(note.text(), AT).unwrap())
        .unwrap();
    note.add(witness(4).cosign_head(note.text(), AT + 1).unwrap())
        .unwrap();
    assert_eq!(note.to_string(), HEAD);
    let keys = [ed25519.verifier(), witness(4).verifier()];
    let quorum = verify_quorum(
        &Note::parse(HEAD.as_bytes()).unwrap(),
        &log.verifier(),
        &keys,
        2,
    );
    assert_eq!(quorum.unwrap().cosigned_at, AT + 1);
}

#[test]
fn keys_survive_writing() {
    let key = witness(4);
    let read = CosigningKey::parse(&key.expose()).unwrap();
    assert_eq!(read.expose(), key.expose());
    let text = head(3, "").to_string();
    assert_eq!(read.cosign_head(&text, 5), key.cosign_head(&text, 5));
    let public: VerifierKey = key.verifier().to_string().parse().unwrap();
    assert_eq!(public, key.verifier());
    assert_eq!(public.public_key().len(), 1312);
    assert!(SigningKey::parse(&key.expose()).is_err());
    let secret = key.expose();
    let secret = secret.rsplit('+').next().unwrap();
    assert!(!format!("{key:?}").contains(secret));
    // One seed under another type is another key of another id.
    let twin = CosigningKey::from_seed(key.name(), &[4; 32]).unwrap();
    assert_ne!(twin.verifier().id(), public.id());
}

#[test]
fn malformed_keys_are_refused() {
    let check = |key: &str, expected: Kind| {
        assert_eq!(key.parse::<VerifierKey>().unwrap_err().kind, expected);
    };
    let other_length = || Kind::Expected("base64 of a type and a key of its length");
    let public = witness(4).verifier().to_string();
    check(&public[..public.len() - 4], other_length());
    check(&format!("{public}AAAA"), other_length());
    check(&public.replace("/pq/04", "/pq/05"), Kind::KeyIdMismatch);
    // Bytes of one type's length under the other type.
    let encoded = |id: u8, length| BASE64.encode(&[vec![id], vec![7; length]].concat());
    check(&format!("w+00000000+{}", encoded(6, 32)), other_length());
    check(&format!("w+00000000+{}", encoded(4, 1312)), other_length());
    let private = format!("PRIVATE+KEY+w+00000000+{}", encoded(6, 1312));
    assert_eq!(
        CosigningKey::parse(&private).unwrap_err().kind,
        other_length()
    );
    let error = CosigningKey::with_algorithm("w", Algorithm::Ed25519, &[1; 32]).unwrap_err();
    assert_eq!(error.kind, Kind::UnknownAlgorithm(1));
    for length in [0, 32, 1311, 1313] {
        let key = VerifierKey::new("w", Algorithm::MlDsa44, &vec![7; length]);
        assert_eq!(key.unwrap_err().kind, Kind::BadPublicKey);
    }
    let named =
        |length| CosigningKey::with_algorithm(&"n".repeat(length), Algorithm::MlDsa44, &[1; 32]);
    assert!(named(255).is_ok());
    assert_eq!(
        named(256).unwrap_err().kind,
        Kind::TooLong { max_bytes: 255 }
    );
}

#[test]
fn every_bit_of_a_cosignature_counts() {
    let key = witness(4).verifier();
    let text = head(3, "").to_string();
    let line = witness(4).cosign_head(&text, AT).unwrap();
    let mut bytes = line.signature().to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let said = key.verify(&text, &line_of(&key, &bytes));
        assert_eq!(
            said,
            Err(SignatureError::Invalid),
            "bit {bit} went unnoticed"
        );
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(
        key.verify(&text, &line_of(&key, &bytes)),
        Ok(Signed::At(AT))
    );
    for other in [
        &bytes[..bytes.len() - 1],
        &[&bytes[..], &[0]].concat(),
        &bytes[..8],
        &[0],
    ] {
        let said = key.verify(&text, &line_of(&key, other));
        assert_eq!(said, Err(SignatureError::Invalid));
    }
}

#[test]
fn every_bit_of_the_key_counts() {
    let text = head(3, "").to_string();
    let (key, line) = (
        witness(4).verifier(),
        witness(4).cosign_head(&text, AT).unwrap(),
    );
    let mut public = key.public_key().to_vec();
    for bit in 0..public.len() * 8 {
        public[bit / 8] ^= 1 << (bit % 8);
        let other = VerifierKey::new(key.name(), Algorithm::MlDsa44, &public).unwrap();
        assert_eq!(other.verify(&text, &line), Err(SignatureError::Missing));
        let said = other.verify(&text, &line_of(&other, line.signature()));
        assert_eq!(
            said,
            Err(SignatureError::Invalid),
            "bit {bit} went unnoticed"
        );
        public[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_bit_of_the_head_and_of_the_names_counts() {
    let head = head(3, "");
    let text = head.to_string();
    let (key, line) = (
        witness(4).verifier(),
        witness(4).cosign_head(&text, AT).unwrap(),
    );
    for bit in 0..text.len() * 8 {
        let mut altered = text.clone().into_bytes();
        altered[bit / 8] ^= 1 << (bit % 8);
        let Ok(altered) = String::from_utf8(altered) else {
            continue;
        };
        assert_eq!(
            key.verify(&altered, &line),
            Err(SignatureError::Invalid),
            "{altered:?}"
        );
    }
    let mut root = *head.root();
    for bit in 0..root.len() * 8 {
        root[bit / 8] ^= 1 << (bit % 8);
        let altered = Checkpoint::new(head.origin(), 3, root).unwrap().to_string();
        assert_eq!(key.verify(&altered, &line), Err(SignatureError::Invalid));
        root[bit / 8] ^= 1 << (bit % 8);
    }
    for size in (0..63).map(|bit| 3 ^ (1 << bit)) {
        let altered = Checkpoint::new(head.origin(), size, root)
            .unwrap()
            .to_string();
        assert_eq!(key.verify(&altered, &line), Err(SignatureError::Invalid));
    }
    // The cosigner's name is signed: unlike an Ed25519 cosignature, it cannot be renamed.
    let renamed = VerifierKey::new("another", Algorithm::MlDsa44, key.public_key()).unwrap();
    let said = renamed.verify(&text, &line_of(&renamed, line.signature()));
    assert_eq!(said, Err(SignatureError::Invalid));
}

#[test]
fn counts_once_in_a_quorum_as_any_other() {
    let (log, a, b) = (log(), ed25519(), witness(4));
    let mut note = head(3, "").sign(&log).unwrap();
    for (key, at) in [(&b, 300), (&b, 100), (&a, 200)] {
        note.add(key.cosign_head(note.text(), at).unwrap()).unwrap();
    }
    let trusted = [a.verifier(), b.verifier(), b.verifier()];
    let quorum = verify_quorum(&note, &log.verifier(), &trusted, 2).unwrap();
    assert_eq!(quorum.cosigned_at, 200);
    assert_eq!(quorum.witnesses, [b.name(), a.name()]);
    let too_few = QuorumError::TooFew {
        found: 2,
        required: 3,
    };
    let found = verify_quorum(&note, &log.verifier(), &trusted, 3);
    assert_eq!(found, Err(too_few));
    // A false line of a trusted key spoils the note.
    let other = head(4, "").to_string();
    note.add(b.cosign_head(&other, 400).unwrap()).unwrap();
    let name = b.name().to_owned();
    let found = verify_quorum(&note, &log.verifier(), &trusted, 1);
    assert_eq!(found, Err(QuorumError::BadCosignature { name }));
}

/// Time 0 says of a tree that it is consistent, and nothing of when: it dates no quorum.
#[test]
fn a_cosignature_without_a_time_is_no_witness() {
    let (log, key) = (log(), witness(4));
    let mut note = head(3, "").sign(&log).unwrap();
    let untimed = key.cosign_head(note.text(), 0).unwrap();
    let said = key.verifier().verify(note.text(), &untimed);
    assert_eq!(said, Ok(Signed::Consistent));
    note.add(untimed).unwrap();
    assert_eq!(
        note.cosigned_at(&key.verifier()),
        Err(SignatureError::Missing)
    );
    note.add(key.cosign_head(note.text(), AT).unwrap()).unwrap();
    assert_eq!(note.cosigned_at(&key.verifier()), Ok(AT));
}

#[test]
fn cosigns_heads_alone() {
    let key = witness(4);
    let kind = |text: &str, at| key.cosign_head(text, at).unwrap_err().kind;
    assert_eq!(kind("no head\n", AT), Kind::Truncated);
    let text = head(3, "").to_string();
    assert_eq!(kind(&text, 1 << 63), Kind::BadTime);
    assert!(key.cosign_head(&text, (1 << 63) - 1).is_ok());
    let with = |origin: usize| Checkpoint::new(&"o".repeat(origin), 0, [0; 32]).unwrap();
    assert_eq!(
        kind(&with(256).to_string(), AT),
        Kind::TooLong { max_bytes: 255 }
    );
    assert!(key.cosign_head(&with(255).to_string(), AT).is_ok());
    // Extension lines are under the log's signature alone.
    let line = key.cosign_head(&text, AT).unwrap();
    let extended = head(3, "extension").to_string();
    assert_eq!(key.verifier().verify(&extended, &line), Ok(Signed::At(AT)));
}

#[test]
fn a_note_has_room_for_sixteen() {
    let mut note = head(3, "").sign(&log()).unwrap();
    for seed in 0..16 {
        let line = witness(seed).cosign_head(note.text(), AT).unwrap();
        note.add(line).unwrap();
    }
    let written = note.to_string();
    assert!(written.len() <= MAX_NOTE_BYTES);
    let read = Note::parse(written.as_bytes()).unwrap();
    let keys: Vec<_> = (0..16).map(|seed| witness(seed).verifier()).collect();
    let quorum = verify_quorum(&read, &log().verifier(), &keys, 16).unwrap();
    assert_eq!(quorum.witnesses.len(), 16);
}

fn head(size: u64, extension: &str) -> Checkpoint {
    let tree: LogTree = (0..size)
        .map(|index| leaf_hash(format!("entry {index}").as_bytes()))
        .collect();
    let head = Checkpoint::new("hospital.example/ehr", size, tree.root()).unwrap();
    match extension {
        "" => head,
        line => head.with_extension(line).unwrap(),
    }
}

fn log() -> SigningKey {
    SigningKey::from_seed("hospital.example/ehr", &[1; 32]).unwrap()
}

fn ed25519() -> CosigningKey {
    CosigningKey::from_seed("ministry.example/witness", &[2; 32]).unwrap()
}

fn witness(seed: u8) -> CosigningKey {
    let name = format!("university.example/pq/{seed:02}");
    CosigningKey::with_algorithm(&name, Algorithm::MlDsa44, &[seed; 32]).unwrap()
}

/// A line that claims to be `key`'s.
fn line_of(key: &VerifierKey, signature: &[u8]) -> SignatureLine {
    let bytes = [key.id().as_bytes(), signature].concat();
    let line = format!("— {} {}\n", key.name(), BASE64.encode(&bytes));
    SignatureLine::parse(&line).unwrap()
}
