//! The examples of docs/spec/50-log.md are what this crate writes and verifies.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, SigningKey};

const CHAPTER: &str = include_str!("../../../docs/spec/50-log.md");

#[test]
fn the_example_is_reproduced() {
    let log = SigningKey::from_seed("hospital.example/ehr", &[1; 32]).unwrap();
    let witnesses = [
        ("ministry.example/witness", 2),
        ("university.example/witness", 3),
    ]
    .map(|(name, seed)| CosigningKey::from_seed(name, &[seed; 32]).unwrap());
    let tree: LogTree = (0..3)
        .map(|i| leaf_hash(format!("entry {i}").as_bytes()))
        .collect();
    let head = Checkpoint::new(log.name(), tree.size(), tree.root()).unwrap();
    let mut note = head.sign(&log).unwrap();
    for (witness, at) in witnesses.iter().zip([1_735_689_600, 1_735_689_601]) {
        note.add(witness.cosign(note.text(), at)).unwrap();
    }
    assert!(CHAPTER.contains(&format!("```\n{note}```")), "{note}");

    let keys = witnesses.each_ref().map(CosigningKey::verifier);
    for key in [&log.verifier(), &keys[0], &keys[1]] {
        assert!(CHAPTER.contains(&format!("\n{key}\n")), "{key}");
    }
    let read = Note::parse(note.to_string().as_bytes()).unwrap();
    let quorum = verify_quorum(&read, &log.verifier(), &keys, 2).unwrap();
    assert_eq!(quorum.cosigned_at, 1_735_689_601);
}
