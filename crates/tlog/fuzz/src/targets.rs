//! What must hold of every parser, whatever bytes it is given: what it accepts it
//! writes back, its error lies inside the input, memory is bounded by the input.

use super::memory::bounded;
use pitser_tlog::{
    Checkpoint, DecodeError, LogProof, LogTree, Note, SignatureLine, SigningKey, VerifierKey,
    merkle::{self, Hash, leaf_hash},
    note::{Algorithm, CosigningKey, parse_signature_lines},
    tiles::{Tile, decode_bundle, encode_bundle},
    verify_quorum,
    witness_protocol::{AddCheckpoint, parse_answer},
};
use std::{fmt::Display, sync::LazyLock};

/// Notes, and all that is made of notes: heads, proofs, requests, answers, keys.
pub fn note(bytes: &[u8]) {
    if let Some(note) = checked(bytes, || Note::parse(bytes)) {
        signed(&note);
    }
    if let Some(proof) = checked(bytes, || LogProof::parse(bytes)) {
        let verified = proof.verify(leaf_hash(b"x"), &LOG.verifier(), &verifiers(), 1);
        assert!(verified.is_err(), "an entry that is in no log");
        signed(proof.head());
    }
    if let Some(request) = checked(bytes, || AddCheckpoint::parse(bytes)) {
        signed(&request.head);
        if let Ok(head) = Checkpoint::parse(request.head.text()) {
            let old = leaf_hash(b"the old root");
            let sizes = (request.old_size, head.size());
            let grown =
                merkle::verify_consistency(sizes.0, &old, sizes.1, head.root(), &request.proof);
            assert!(
                grown.is_err() || sizes.0 == sizes.1,
                "a history that nobody wrote"
            );
        }
    }
    for status in [200, 400, 409, 500] {
        let answer = bounded(bytes, || parse_answer(status, bytes));
        assert_eq!(answer, parse_answer(status, bytes));
    }
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    checked(bytes, || Checkpoint::parse(text));
    checked(bytes, || SignatureLine::parse(text));
    if let Ok(lines) = bounded(bytes, || parse_signature_lines(text)) {
        let again: String = lines.iter().map(ToString::to_string).collect();
        assert_eq!(again, text);
    }
    checked(bytes, || text.parse::<VerifierKey>());
    if let Ok(key) = bounded(bytes, || SigningKey::parse(text)) {
        assert_eq!(*key.expose(), text);
        let note = Note::sign("text\n", &key).expect("a short text");
        assert_eq!(note.verify(&key.verifier()), Ok(()));
    }
    let _ = bounded(bytes, || CosigningKey::parse(text));
}

/// Nobody signed these but those who did.
fn signed(note: &Note) {
    let quorum = verify_quorum(note, &LOG.verifier(), &verifiers(), 1);
    if let Ok(head) = Checkpoint::open(note, LOG.name(), &LOG.verifier()) {
        assert_eq!(head.to_string(), note.text());
        assert_eq!(note.text(), HEAD.text(), "a forged head");
    } else {
        assert!(quorum.is_err());
    }
    let mut more = note.clone();
    for witness in WITNESSES.iter() {
        if let Ok(line) = witness.cosign_head(note.text(), 7)
            && more.add(line).is_ok()
        {
            assert_eq!(Note::parse(more.to_string().as_bytes()).as_ref(), Ok(&more));
        }
    }
}

fn verifiers() -> Vec<VerifierKey> {
    WITNESSES.iter().map(CosigningKey::verifier).collect()
}

/// Paths of tiles, bundles of entries, hashes as proofs.
pub fn tiles(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Some(tile) = checked(bytes, || Tile::parse(text))
    {
        assert!((1..=256).contains(&tile.width()));
        assert_eq!(tile.is_partial(), tile.width() < 256);
    }
    match bounded(bytes, || decode_bundle(bytes)) {
        Ok(entries) => assert_eq!(encode_bundle(entries), Ok(bytes.to_vec())),
        Err(error) => inside(&error, bytes),
    }
    // Two numbers and hashes: a proof for a tree that has others.
    let Some((&[first, second], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let proof: Vec<Hash> = rest.as_chunks().0.to_vec();
    let (first, second) = (u64::from(first), u64::from(second));
    let root = TREE.root();
    let leaf = leaf_hash(b"not in the tree");
    assert!(merkle::verify_inclusion(leaf, first, TREE.size(), &proof, &root).is_err());
    if let Ok(old) = TREE.root_at(second) {
        let grown = merkle::verify_consistency(second, &old, TREE.size(), &root, &proof);
        let real = TREE.consistency_proof(second, TREE.size());
        assert_eq!(grown.is_ok(), real == Ok(proof), "proofs are unique");
    }
}

/// What `parse` says of `input`: written back, or an error inside the input.
#[track_caller]
fn checked<T: Display>(input: &[u8], parse: impl FnOnce() -> Result<T, DecodeError>) -> Option<T> {
    match bounded(input, parse) {
        Ok(parsed) => {
            assert_eq!(parsed.to_string().as_bytes(), input);
            Some(parsed)
        }
        Err(error) => {
            inside(&error, input);
            None
        }
    }
}

#[track_caller]
fn inside(error: &DecodeError, input: &[u8]) {
    assert!(error.at <= input.len(), "{error}, of {}", input.len());
}

static LOG: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_seed("log.example/fuzz", &[1; 32]).expect("a sound name"));
/// One of each algorithm that is built in.
static WITNESSES: LazyLock<Vec<CosigningKey>> = LazyLock::new(|| {
    let key = |algorithm| CosigningKey::with_algorithm("witness.example", algorithm, &[2; 32]).ok();
    let algorithms = [Algorithm::CosignatureV1, Algorithm::MlDsa44];
    algorithms.into_iter().filter_map(key).collect()
});
static TREE: LazyLock<LogTree> =
    LazyLock::new(|| (0u8..13).map(|number| leaf_hash(&[number])).collect());
/// The only head that the log has signed.
static HEAD: LazyLock<Note> = LazyLock::new(|| {
    let head = Checkpoint::new(LOG.name(), TREE.size(), TREE.root()).expect("a sound origin");
    head.sign(&LOG).expect("a short note")
});
