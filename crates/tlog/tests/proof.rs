//! Self-contained proofs: the whole way from an entry to a quorum, and every
//! bit of the file turned over.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use pitser_tlog::checkpoint::{Checkpoint, QuorumError};
use pitser_tlog::error::DecodeErrorKind as Kind;
use pitser_tlog::merkle::{LogTree, ProofError, leaf_hash};
use pitser_tlog::note::{CosigningKey, SigningKey, VerifierKey};
use pitser_tlog::proof::{LogProof, LogProofError, MAX_EXTRA_BYTES, MAX_PROOF_BYTES};
use proptest::prelude::*;

const COSIGNED_AT: u64 = 1_735_689_600;

#[test]
fn proves_an_entry() {
    let proof = proof(11, 4);
    let quorum = verify(&proof, b"entry 4").unwrap();
    assert_eq!(quorum.cosigned_at, COSIGNED_AT);
    assert_eq!(quorum.checkpoint.size(), 11);
    assert_eq!(LogProof::parse(proof.to_string().as_bytes()), Ok(proof));
}

#[test]
fn proves_a_single_entry_without_hashes() {
    let proof = proof(1, 0);
    assert_eq!(proof.path().len(), 0);
    assert!(
        proof
            .to_string()
            .starts_with("c2sp.org/tlog-proof@v1\nindex 0\n\nlog.example\n1\n")
    );
    assert!(verify(&proof, b"entry 0").is_ok());
}

#[test]
fn every_bit_of_a_proof_counts() {
    let bytes = proof(5, 2).to_string().into_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let intact =
            LogProof::parse(&altered).is_ok_and(|proof| verify(&proof, b"entry 2").is_ok());
        assert!(!intact, "bit {bit} went unnoticed");
    }
}

#[test]
fn another_entry_is_refused() {
    let result = verify(&proof(11, 4), b"entry 5");
    assert_eq!(
        result,
        Err(LogProofError::Inclusion(ProofError::RootMismatch))
    );
}

#[test]
fn an_unwitnessed_head_is_refused() {
    let proof = proof(11, 4);
    let result = proof.verify(leaf_hash(b"entry 4"), &keys().0.verifier(), &[], 1);
    let too_few = QuorumError::TooFew {
        found: 0,
        required: 1,
    };
    assert_eq!(result, Err(LogProofError::Quorum(too_few)));
}

/// No signature covers extra data, and the documentation says so.
#[test]
fn extra_data_is_carried_and_not_authenticated() {
    let proof = proof(3, 1).with_extra(b"hint".to_vec()).unwrap();
    let text = proof.to_string();
    assert!(text.starts_with("c2sp.org/tlog-proof@v1\nextra aGludA==\nindex 1\n"));
    let read = LogProof::parse(text.as_bytes()).unwrap();
    assert_eq!(read.extra(), b"hint");
    assert!(verify(&read, b"entry 1").is_ok());
    let forged = text
        .replace("aGludA==", "aGludB==")
        .replace("aGludB==", "bGllcw==");
    let forged = LogProof::parse(forged.as_bytes()).unwrap();
    assert!(verify(&forged, b"entry 1").is_ok());
}

#[test]
fn malformed_proofs_say_what_and_where() {
    let good = proof(3, 1).to_string();
    let check = |text: String, kind: Kind, at: usize| {
        let error = LogProof::parse(text.as_bytes()).unwrap_err();
        assert_eq!((error.kind, error.at), (kind, at), "{text}");
    };
    check(String::new(), Kind::Truncated, 0);
    check(
        good.replace("@v1", "@v2"),
        Kind::Expected("c2sp.org/tlog-proof@v1"),
        0,
    );
    check(good.replace("index 1", "index 01"), Kind::BadDecimal, 29);
    check(
        good.replace("index", "extra aGludA==\nextra"),
        Kind::Expected("index <number>"),
        38,
    );
    check(
        good.replace("index", "extra \nindex"),
        Kind::Expected("extra data"),
        29,
    );
    check(
        good.replace("index 1\n", "index 1\nAAAA\n"),
        Kind::BadHashLength,
        31,
    );
    let (header, note) = good.split_once("\n\n").unwrap();
    check(
        format!("{header}\n\n{note}x"),
        Kind::Truncated,
        good.len() + 1,
    );
    check(header.to_owned(), Kind::Truncated, header.len());
    check(format!("{header}\n"), Kind::Truncated, header.len() + 1);
    let line = format!("{}\n", header.lines().last().unwrap());
    let long = format!(
        "c2sp.org/tlog-proof@v1\nindex 1\n{}\n{note}",
        line.repeat(64)
    );
    let too_many = Kind::TooMany {
        what: "proof lines",
        max: 63,
    };
    check(long, too_many, 31 + 63 * 45);
}

#[test]
fn caps_what_it_carries() {
    let proof = proof(3, 1);
    assert!(
        proof
            .clone()
            .with_extra(vec![0; MAX_EXTRA_BYTES + 1])
            .is_err()
    );
    let full = proof.with_extra(vec![0; MAX_EXTRA_BYTES]).unwrap();
    assert_eq!(
        LogProof::parse(full.to_string().as_bytes()),
        Ok(full.clone())
    );
    assert!(LogProof::parse(&vec![b'a'; MAX_PROOF_BYTES + 1]).is_err());
    let head = full.head();
    assert!(LogProof::new(1 << 63, Vec::new(), head.clone()).is_err());
    assert!(LogProof::new(1, vec![[0; 32]; 64], head.clone()).is_err());
}

proptest! {
    #[test]
    fn any_entry_of_any_log_is_provable(size in 1u64..200, pick: u64, other: u64) {
        let (index, other) = (pick % size, other % size);
        let proof = proof(size, index);
        let proves = |index| verify(&proof, format!("entry {index}").as_bytes()).is_ok();
        prop_assert!(proves(index));
        prop_assert_eq!(proves(other), index == other);
    }

    #[test]
    fn hostile_bytes_never_panic(
        body in "(index [0-9]{1,3}\n|extra [A-Za-z0-9=]{0,5}\n|[A-Za-z0-9+/]{43}=\n|\n|a){0,9}",
    ) {
        let text = format!("c2sp.org/tlog-proof@v1\n{body}");
        if let Ok(proof) = LogProof::parse(text.as_bytes()) {
            prop_assert_eq!(proof.to_string(), text);
        }
    }
}

fn verify(
    proof: &LogProof,
    entry: &[u8],
) -> Result<pitser_tlog::checkpoint::Quorum, LogProofError> {
    let (log, witness) = keys();
    let witnesses: [VerifierKey; 1] = [witness.verifier()];
    proof.verify(leaf_hash(entry), &log.verifier(), &witnesses, 1)
}

fn proof(size: u64, index: u64) -> LogProof {
    let (log, witness) = keys();
    let tree: LogTree = (0..size)
        .map(|i| leaf_hash(format!("entry {i}").as_bytes()))
        .collect();
    let head = Checkpoint::new(log.name(), size, tree.root()).unwrap();
    let mut note = head.sign(&log).unwrap();
    note.add(witness.cosign(note.text(), COSIGNED_AT)).unwrap();
    LogProof::new(index, tree.inclusion_proof(index, size).unwrap(), note).unwrap()
}

fn keys() -> (SigningKey, CosigningKey) {
    let log = SigningKey::from_seed("log.example", &[1; 32]).unwrap();
    let witness = CosigningKey::from_seed("witness.example", &[2; 32]).unwrap();
    (log, witness)
}
