//! Checkpoints and quorums: who counts, when, and who does not.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use pitser_tlog::checkpoint::{Checkpoint, CheckpointError, QuorumError, verify_quorum};
use pitser_tlog::error::DecodeErrorKind as Kind;
use pitser_tlog::merkle::leaf_hash;
use pitser_tlog::note::{CosigningKey, Note, SignatureError, SigningKey};
use proptest::prelude::*;

const ORIGIN: &str = "hospital.example/ehr";
const GOOD: &str = "example.com/origin\n123\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n";

#[test]
fn reads_and_writes_the_same_text() {
    let plain = Checkpoint::parse(GOOD).unwrap();
    assert_eq!((plain.origin(), plain.size()), ("example.com/origin", 123));
    assert_eq!(
        plain.root(),
        &tlog_tiles::tlog::record_hash(b"hello world").0
    );
    assert_eq!(plain.to_string(), GOOD);

    let extended = plain.with_extension("abc").unwrap();
    assert_eq!(extended.to_string(), format!("{GOOD}abc\n"));
    assert_eq!(Checkpoint::parse(&extended.to_string()), Ok(extended));
}

#[test]
fn malformed_texts_say_what_and_where() {
    let check = |text: &str, kind: Kind, at: usize| {
        let error = Checkpoint::parse(text).unwrap_err();
        assert_eq!((error.kind, error.at), (kind, at), "{text:?}");
    };
    check("", Kind::Truncated, 0);
    check("a\n1\n", Kind::Truncated, 4);
    check("\n1\n", Kind::Expected("an origin"), 0);
    check(&GOOD.replace("123", "0123"), Kind::BadDecimal, 19);
    check(&GOOD.replace("123", "+123"), Kind::BadDecimal, 19);
    check(&GOOD.replace("123", ""), Kind::BadDecimal, 19);
    check(
        &GOOD.replace("123", "9223372036854775808"),
        Kind::BadDecimal,
        19,
    );
    check(&GOOD.replace("Tszz", ""), Kind::BadHashLength, 23);
    check(&GOOD.replace("Tszz", "Ts!z"), Kind::BadBase64, 25);
    check(&GOOD.replace("b0=", "b1="), Kind::BadBase64, 65);
    check(
        &format!("{GOOD}\n"),
        Kind::Expected("an extension line"),
        68,
    );
    check(&format!("{GOOD}x"), Kind::Truncated, 69);
    check(&GOOD.replace("com", "\r"), Kind::ControlCharacter, 8);
}

#[test]
fn constructors_refuse_what_could_not_be_read_back() {
    let root = leaf_hash(b"");
    assert!(Checkpoint::new("", 1, root).is_err());
    assert!(Checkpoint::new("two\nlines", 1, root).is_err());
    assert!(Checkpoint::new("a", 1 << 63, root).is_err());
    assert!(Checkpoint::new("a", i64::MAX as u64, root).is_ok());
    let head = Checkpoint::new("a", 1, root).unwrap();
    assert!(head.clone().with_extension("").is_err());
    assert!(head.with_extension("x\ny").is_err());
}

#[test]
fn opens_only_its_own_logs_heads() {
    let (ours, other) = (log(1), log(2));
    let note = head(&ours);
    let open = |note: &Note, origin, key: &SigningKey| {
        Checkpoint::open(note, origin, &key.verifier()).map(|head| head.size())
    };
    assert_eq!(open(&note, ORIGIN, &ours), Ok(7));
    let missing = Err(CheckpointError::Signature(SignatureError::Missing));
    assert_eq!(open(&note, ORIGIN, &other), missing);
    assert_eq!(
        open(&note, "elsewhere", &ours),
        Err(CheckpointError::OtherOrigin)
    );
    let poem = Note::sign("no checkpoint\n", &ours).unwrap();
    assert!(matches!(
        open(&poem, ORIGIN, &ours),
        Err(CheckpointError::Malformed(_))
    ));
}

#[test]
fn the_kth_earliest_witness_sets_the_time() {
    let note = cosigned(&[(1, 500), (2, 300), (3, 400), (2, 350)]);
    let witnesses = [1, 2, 3, 4].map(|seed| witness(seed).verifier());
    let check = |k, cosigned_at| {
        let quorum = verify_quorum(&note, &log(1).verifier(), &witnesses, k).unwrap();
        assert_eq!(quorum.cosigned_at, cosigned_at, "k = {k}");
        assert_eq!(quorum.witnesses, ["w/2", "w/3", "w/1"]);
        assert_eq!(quorum.checkpoint.size(), 7);
    };
    check(1, 300);
    check(2, 400);
    check(3, 500);
    let result = verify_quorum(&note, &log(1).verifier(), &witnesses, 4);
    assert_eq!(result, Err(too_few(3, 4)));
}

#[test]
fn one_key_under_many_names_is_one_witness() {
    let twin = CosigningKey::from_seed("w/twin", &[101; 32]).unwrap();
    let mut note = cosigned(&[(1, 500)]);
    note.add(twin.cosign(note.text(), 400)).unwrap();
    let witnesses = [
        witness(1).verifier(),
        twin.verifier(),
        witness(1).verifier(),
    ];
    let result = verify_quorum(&note, &log(1).verifier(), &witnesses, 2);
    assert_eq!(result, Err(too_few(1, 2)));
    let quorum = verify_quorum(&note, &log(1).verifier(), &witnesses, 1).unwrap();
    assert_eq!((quorum.cosigned_at, quorum.witnesses.len()), (400, 1));
}

#[test]
fn a_log_is_not_its_own_witness() {
    let itself = CosigningKey::from_seed("w/itself", &[1; 32]).unwrap();
    let mut note = head(&log(1));
    note.add(itself.cosign(note.text(), 1)).unwrap();
    let result = verify_quorum(&note, &log(1).verifier(), &[itself.verifier()], 1);
    assert_eq!(result, Err(too_few(0, 1)));
}

#[test]
fn strangers_do_not_count_and_do_not_disturb() {
    let note = cosigned(&[(1, 1), (2, 2), (3, 3)]);
    let result = verify_quorum(&note, &log(1).verifier(), &[witness(3).verifier()], 1);
    assert_eq!(result.unwrap().witnesses, ["w/3"]);
}

#[test]
fn a_false_line_of_a_trusted_witness_spoils_the_note() {
    let mut note = cosigned(&[(1, 1), (2, 2)]);
    note.add(witness(3).cosign("another head\n", 3)).unwrap();
    let witnesses = [1, 2, 3].map(|seed| witness(seed).verifier());
    let result = verify_quorum(&note, &log(1).verifier(), &witnesses, 2);
    assert_eq!(
        result,
        Err(QuorumError::BadCosignature { name: "w/3".into() })
    );
}

#[test]
fn a_witness_cannot_vouch_with_a_plain_signature() {
    let plain = SigningKey::from_seed("w/plain", &[9; 32]).unwrap();
    let mut note = head(&log(1));
    note.add(plain.sign(note.text())).unwrap();
    let result = verify_quorum(&note, &log(1).verifier(), &[plain.verifier()], 1);
    assert_eq!(result, Err(too_few(0, 1)));
}

#[test]
fn a_quorum_needs_somebody() {
    let result = verify_quorum(&cosigned(&[]), &log(1).verifier(), &[], 0);
    assert_eq!(result, Err(QuorumError::NoneRequired));
}

#[test]
fn witnesses_alone_are_no_head() {
    let other = SigningKey::from_seed(ORIGIN, &[77; 32]).unwrap();
    let mut note = head(&other);
    note.add(witness(1).cosign(note.text(), 1)).unwrap();
    let result = verify_quorum(&note, &log(1).verifier(), &[witness(1).verifier()], 1);
    assert!(matches!(result, Err(QuorumError::Checkpoint(_))));
}

proptest! {
    #[test]
    fn agrees_with_tlog_tiles(
        origin in "[a-z/. é]{0,12}",
        size in 0..=i64::MAX as u64,
        extensions in prop::collection::vec("[a-z ]{1,8}", 0..3),
    ) {
        use tlog_tiles::{Checkpoint as Other, tlog::Hash};
        let root = leaf_hash(origin.as_bytes());
        let Ok(mut ours) = Checkpoint::new(&origin, size, root) else {
            prop_assert!(origin.is_empty());
            return Ok(());
        };
        for line in &extensions {
            ours = ours.with_extension(line).unwrap();
        }
        let extension: String = extensions.iter().map(|line| format!("{line}\n")).collect();
        let theirs = Other::new(&origin, size, Hash(root), &extension).unwrap();
        prop_assert_eq!(ours.to_string().into_bytes(), theirs.to_bytes());
    }

    #[test]
    fn hostile_text_never_panics(text in "(a|\n|[0-9]|[A-Za-z0-9+/]{43}=|\n){0,8}") {
        if let Ok(checkpoint) = Checkpoint::parse(&text) {
            prop_assert_eq!(checkpoint.to_string(), text);
        }
    }
}

fn log(seed: u8) -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[seed; 32]).unwrap()
}

/// Witness keys never coincide with log keys.
fn witness(seed: u8) -> CosigningKey {
    CosigningKey::from_seed(&format!("w/{seed}"), &[100 + seed; 32]).unwrap()
}

fn head(key: &SigningKey) -> Note {
    let head = Checkpoint::new(ORIGIN, 7, leaf_hash(b"root")).unwrap();
    head.sign(key).unwrap()
}

fn cosigned(by: &[(u8, u64)]) -> Note {
    let mut note = head(&log(1));
    for &(seed, at) in by {
        note.add(witness(seed).cosign(note.text(), at)).unwrap();
    }
    note
}

fn too_few(found: usize, required: usize) -> QuorumError {
    QuorumError::TooFew { found, required }
}
