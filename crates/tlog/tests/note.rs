//! Notes and keys: real ones, those of the `signed_note` crate, and bad ones.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use pitser_tlog::error::DecodeErrorKind as Kind;
use pitser_tlog::note::{
    Algorithm, CosigningKey, MAX_NOTE_BYTES, MAX_SIGNATURES, Note, SignatureError, SignatureLine,
    SigningKey, VerifierKey,
};
use proptest::prelude::*;

const REAL: &[u8] = include_bytes!("../../../testdata/tlog/checkpoint-arche2025h1.note");
const REAL_LOG: &str =
    "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f";
const REAL_WITNESS: &str = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";

const NEUMANN: &[u8] = include_bytes!("../../../testdata/tlog/note-peterneumann.note");
const NEUMANN_PUBLIC: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const NEUMANN_PRIVATE: &str =
    "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";

#[test]
fn a_published_checkpoint_verifies() {
    let note = Note::parse(REAL).unwrap();
    assert_eq!(note.to_string().as_bytes(), REAL);
    assert_eq!(note.signatures().len(), 6);
    assert_eq!(note.verify(&key(REAL_LOG)), Ok(()));
    assert_eq!(note.cosigned_at(&key(REAL_WITNESS)), Ok(1_779_573_024));
}

#[test]
fn signs_as_others_do() {
    let note = Note::parse(NEUMANN).unwrap();
    assert_eq!(note.verify(&key(NEUMANN_PUBLIC)), Ok(()));
    let signer = SigningKey::parse(NEUMANN_PRIVATE).unwrap();
    assert_eq!(signer.verifier().to_string(), NEUMANN_PUBLIC);
    assert_eq!(signer.expose().as_str(), NEUMANN_PRIVATE);
    assert_eq!(Note::sign(note.text(), &signer).unwrap(), note);
}

#[test]
fn cosigning_keys_survive_writing() {
    let witness = witness(3);
    let read = CosigningKey::parse(&witness.expose()).unwrap();
    assert_eq!(read.cosign("t\n", 5), witness.cosign("t\n", 5));
    assert_eq!(key(&witness.verifier().to_string()), witness.verifier());
    assert!(SigningKey::parse(&witness.expose()).is_err());
    assert!(CosigningKey::parse(NEUMANN_PRIVATE).is_err());
}

#[test]
fn debug_output_hides_private_keys() {
    let signer = SigningKey::parse(NEUMANN_PRIVATE).unwrap();
    let printed = format!("{signer:?}");
    assert!(printed.contains(NEUMANN_PUBLIC));
    assert!(!printed.contains("YEKFALVFGyNhPJEMzD1"));
}

#[test]
fn every_bit_of_a_signed_note_counts() {
    let (log, witness) = (log(1), witness(2));
    let mut note = Note::sign("origin\ntext\n", &log).unwrap();
    note.add(witness.cosign(note.text(), 1_735_689_600))
        .unwrap();
    let bytes = note.to_string().into_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let intact = Note::parse(&altered).is_ok_and(|note| {
            note.verify(&log.verifier()).is_ok() && note.cosigned_at(&witness.verifier()).is_ok()
        });
        assert!(!intact, "bit {bit} went unnoticed");
    }
}

#[test]
fn keys_vouch_only_for_their_own_lines() {
    let (log, witness) = (log(1), witness(1));
    let signed = Note::sign("text\n", &log).unwrap();
    let missing = Err(SignatureError::Missing);
    assert_eq!(signed.verify(&witness.verifier()), missing);
    assert_eq!(
        signed.cosigned_at(&witness.verifier()),
        Err(SignatureError::Missing)
    );
    assert_eq!(
        signed.cosigned_at(&log.verifier()),
        Err(SignatureError::Missing)
    );
    // The same name and seed with another type is another key.
    let twin = SigningKey::from_seed(witness.name(), &[1; 32]).unwrap();
    assert_ne!(twin.verifier().id(), witness.verifier().id());
}

#[test]
fn one_false_line_of_a_trusted_key_spoils_the_note() {
    let log = log(1);
    let mut note = Note::sign("text\n", &log).unwrap();
    note.add(log.sign("another text\n")).unwrap();
    assert_eq!(note.verify(&log.verifier()), Err(SignatureError::Invalid));
}

#[test]
fn false_lines_of_unknown_keys_are_kept_and_ignored() {
    let (ours, theirs) = (log(1), log(2));
    let mut note = Note::sign("text\n", &ours).unwrap();
    note.add(theirs.sign("another text\n")).unwrap();
    assert_eq!(note.verify(&ours.verifier()), Ok(()));
    assert_eq!(Note::parse(note.to_string().as_bytes()), Ok(note));
}

#[test]
fn the_earliest_cosignature_counts() {
    let witness = witness(2);
    let mut note = Note::sign("text\n", &log(1)).unwrap();
    for at in [300, 100, 200] {
        note.add(witness.cosign(note.text(), at)).unwrap();
    }
    assert_eq!(note.cosigned_at(&witness.verifier()), Ok(100));
}

#[test]
fn a_cosignature_cannot_be_backdated() {
    let witness = witness(2);
    let line = witness.cosign("text\n", 1_000_000).to_string();
    let (name, encoded) = line.trim_end().rsplit_once(' ').unwrap();
    let mut bytes = data_encoding::BASE64.decode(encoded.as_bytes()).unwrap();
    bytes[11] ^= 1;
    let backdated = format!("{name} {}\n", data_encoding::BASE64.encode(&bytes));
    let backdated = SignatureLine::parse(&backdated).unwrap();
    let verdict = witness.verifier().verify("text\n", &backdated);
    assert_eq!(verdict, Err(SignatureError::Invalid));
}

#[test]
fn text_may_have_empty_lines() {
    let log = log(1);
    let note = Note::sign("a\n\nb\n\n", &log).unwrap();
    let read = Note::parse(note.to_string().as_bytes()).unwrap();
    assert_eq!(read.text(), "a\n\nb\n\n");
    assert_eq!(read.verify(&log.verifier()), Ok(()));
}

#[test]
fn refuses_texts_that_could_not_be_read_back() {
    let check = |text: &str| assert!(Note::sign(text, &log(1)).is_err(), "{text:?}");
    check("");
    check("no newline");
    check("carriage\r\nreturn\n");
    check("nul\0\n");
    check(&"x".repeat(MAX_NOTE_BYTES));
    check(&format!("{}\n", "x".repeat(MAX_NOTE_BYTES - 10)));
}

#[test]
fn caps_signatures_and_length() {
    let log = log(1);
    let mut note = Note::sign("text\n", &log).unwrap();
    for i in 1..MAX_SIGNATURES {
        note.add(log.sign(&format!("{i}\n"))).unwrap();
    }
    note.add(log.sign("text\n"))
        .expect("a repeated line adds nothing");
    assert!(Note::parse(note.to_string().as_bytes()).is_ok());
    let line = log.sign("one more\n");
    let error = note.add(line.clone()).unwrap_err();
    assert!(matches!(error.kind, Kind::TooMany { .. }));
    let error = Note::parse(format!("{note}{line}").as_bytes()).unwrap_err();
    assert!(matches!(error.kind, Kind::TooMany { .. }));
    let error = Note::parse(&vec![b'\n'; MAX_NOTE_BYTES + 1]).unwrap_err();
    assert!(matches!(error.kind, Kind::TooLong { .. }));
}

#[test]
fn malformed_notes_say_what_and_where() {
    let check = |note: &str, kind: Kind, at: usize| {
        let error = Note::parse(note.as_bytes()).unwrap_err();
        assert_eq!((error.kind, error.at), (kind, at), "{note:?}");
    };
    let expected = Kind::Expected("— name base64");
    check("", Kind::NoSignatures, 0);
    check("t\n— a AAAAAAA=\n", Kind::NoSignatures, 17);
    check("t\n\n", Kind::Truncated, 3);
    check("t\n\n— a AAAAAAA=", Kind::Truncated, 17);
    check("t\n\n- a AAAAAAA=\n", expected.clone(), 3);
    check("t\n\n— a\n", expected.clone(), 7);
    check("t\n\n—  AAAAAAA=\n", Kind::BadKeyName, 7);
    check("t\n\n— a+b AAAAAAA=\n", Kind::BadKeyName, 8);
    check("t\n\n— a\u{a0}b AAAAAAA=\n", Kind::BadKeyName, 8);
    check("t\n\n— a AAAA*AA=\n", Kind::BadBase64, 13);
    check("t\n\n— a AAAAAAA\n", Kind::BadBase64, 13);
    check("t\n\n— a AAAAAAB=\n", Kind::BadBase64, 15);
    // Found by the fuzzer: two base64 texts were read as one, and written as another.
    check("t\n\n— a AAAAAA==AAAAAAAA\n", Kind::BadBase64, 15);
    check("t\n\n— a AAAAAA==\n", Kind::Truncated, 9);
    check("t\n\n— a  AAAAAAA=\n", Kind::BadBase64, 17);
    check("t\n\n— a AAAAAAA=\nx\n", expected, 18);
    check("t\t\n\n— a AAAAAAA=\n", Kind::ControlCharacter, 1);
    let error = Note::parse(b"t\xff\n\n").unwrap_err();
    assert_eq!((error.kind, error.at), (Kind::NotUtf8, 1));
}

#[test]
fn malformed_keys_are_refused() {
    let check = |key: &str, expected: Kind| {
        assert_eq!(
            key.parse::<VerifierKey>().unwrap_err().kind,
            expected,
            "{key}"
        );
    };
    check("", Kind::Expected("name+id+key"));
    check("bananas+12344556", Kind::Expected("name+id+key"));
    check(
        "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        Kind::BadKeyName,
    );
    check(
        &NEUMANN_PUBLIC.replace("c74f", "C74F"),
        Kind::Expected("8 lower-case hexadecimal digits"),
    );
    check(
        &NEUMANN_PUBLIC.replace("c74f20a3", "c74f20"),
        Kind::Expected("8 lower-case hexadecimal digits"),
    );
    check(&NEUMANN_PUBLIC.replace("c74f", "c74e"), Kind::KeyIdMismatch);
    check(
        &NEUMANN_PUBLIC.replace("Peter", "Paul"),
        Kind::KeyIdMismatch,
    );
    check(
        &NEUMANN_PUBLIC.replace("+AR", "+BR"),
        Kind::UnknownAlgorithm(5),
    );
    check(&NEUMANN_PUBLIC.replace("+ARpc", "+AR*c"), Kind::BadBase64);
    check(
        &NEUMANN_PUBLIC.replace("TW", ""),
        Kind::Expected("base64 of a type and a key of its length"),
    );
    // Points of small order verify signatures that nobody made.
    let mut identity = [0; 32];
    identity[0] = 1;
    for weak in [[0; 32], identity] {
        let error = VerifierKey::new("weak", Algorithm::Ed25519, &weak).unwrap_err();
        assert_eq!(error.kind, Kind::BadPublicKey);
    }
}

#[cfg(not(feature = "ml-dsa"))]
#[test]
fn a_build_without_ml_dsa_says_so() {
    let says_so = |error: pitser_tlog::DecodeError| {
        let text = error.to_string();
        assert!(text.contains("build with the feature ml-dsa"), "{text}");
    };
    let material = data_encoding::BASE64.encode(&[vec![6], vec![7; 1312]].concat());
    says_so(
        format!("w+00000000+{material}")
            .parse::<VerifierKey>()
            .unwrap_err(),
    );
    let seed = data_encoding::BASE64.encode(&[vec![6], vec![7; 32]].concat());
    says_so(CosigningKey::parse(&format!("PRIVATE+KEY+w+00000000+{seed}")).unwrap_err());
    says_so(CosigningKey::with_algorithm("w", Algorithm::MlDsa44, &[7; 32]).unwrap_err());
}

proptest! {
    #[test]
    fn agrees_with_signed_note(seed: [u8; 32], text in "[a-z \n—é]{0,60}") {
        use signed_note::{Note as OtherNote, StandardSigner, StandardVerifier, VerifierList};
        let text = format!("{text}\n");
        let ours = SigningKey::from_seed("log.example/one", &seed).unwrap();
        let theirs = StandardSigner::new(&ours.expose()).unwrap();
        let note = Note::sign(&text, &ours).unwrap();

        let other = OtherNote::from_bytes(note.to_string().as_bytes()).unwrap();
        let verifier = StandardVerifier::new(&ours.verifier().to_string()).unwrap();
        let known = VerifierList::new(vec![Box::new(verifier)]);
        prop_assert_eq!(other.verify(&known).unwrap().0.len(), 1);

        let mut other = OtherNote::new(text.as_bytes(), &[]).unwrap();
        other.add_sigs(&[&theirs]).unwrap();
        prop_assert_eq!(Note::parse(&other.to_bytes()).unwrap(), note);
    }

    #[test]
    fn accepts_what_signed_note_accepts(
        bytes in "(a|\n|é|\t){0,4}\n?\n(— (a|é| |\\+){1,2} AAAAA(AA=|A==|AB=)\n?){0,3}",
    ) {
        let theirs = signed_note::Note::from_bytes(bytes.as_bytes());
        match Note::parse(bytes.as_bytes()) {
            Ok(note) => {
                prop_assert!(theirs.is_ok());
                prop_assert_eq!(note.to_string(), bytes);
            }
            Err(_) => prop_assert!(theirs.is_err()),
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(note) = Note::parse(&bytes) {
            prop_assert_eq!(note.to_string().into_bytes(), bytes);
        }
    }

    #[test]
    fn hostile_keys_never_panic(key in "(PRIVATE\\+KEY\\+)?[a-z+é]{0,6}\\+[0-9a-f]{8}\\+[A-Za-z0-9+/=]{0,50}") {
        let _ = key.parse::<VerifierKey>();
        let _ = SigningKey::parse(&key);
    }
}

fn log(seed: u8) -> SigningKey {
    SigningKey::from_seed(&format!("log.example/{seed}"), &[seed; 32]).unwrap()
}

fn witness(seed: u8) -> CosigningKey {
    CosigningKey::from_seed(&format!("witness.example/{seed}"), &[seed; 32]).unwrap()
}

fn key(vkey: &str) -> VerifierKey {
    vkey.parse().unwrap()
}
