//! A site throws its trail away and begins another under the same name.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

use std::path::Path;

use pitser_evidence::codec::Digest;
use pitser_evidence::line::Timestamp;
use pitser_evidence::{Anchors, Code};
use pitser_guardian::audit::{AuditError, Audited, Auditor, Judge};
use pitser_ksi::time::Second;
use pitser_tlog::note::CosigningKey;
use pitser_trail::{GenesisDraft, Layout, Trail};
use zeroize::Zeroizing;

const ORIGIN: &str = "hospital.example/ehr";
const NOW: u64 = 1_773_480_413;

/// A trail of one block in `dir`, cosigned; returns its genesis.
fn begin(dir: &Path, witness: &CosigningKey) -> Digest {
    let at = Timestamp::from_micros(NOW * 1_000_000).unwrap();
    let genesis = GenesisDraft {
        at,
        system: "5e55".into(),
        timeline: 1,
        pos: "0".into(),
        source: "ehr".into(),
        tables: vec![],
        uncovered: vec![],
    };
    let mut trail = Trail::create(Layout::new(dir), ORIGIN, &genesis).unwrap();
    let mapping = Digest::of(&[b""]);
    trail.close_block(at, "1", mapping, "test").unwrap();
    let mut head = trail.sign_head();
    let line = witness.cosign(head.text(), NOW);
    head.add(line).unwrap();
    trail.store_head(&head).unwrap();
    trail.genesis_hash()
}

fn anchors(genesis: &[Digest], witness: &CosigningKey) -> Anchors {
    let trails = genesis
        .iter()
        .map(|genesis| format!("[[trail]]\norigin = \"{ORIGIN}\"\ngenesis = \"{genesis}\"\n"));
    let text = format!(
        "version = 1\nwitness_quorum = 1\n{}[[witness]]\nkey = \"{}\"\n",
        trails.collect::<String>(),
        witness.verifier()
    );
    Anchors::from_toml(&text).unwrap()
}

/// Who has followed the one that is gone signs nothing of the other on his own, and is
/// told of both for as long as he follows either.
#[test]
fn a_trail_that_was_begun_anew_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let witness = CosigningKey::from_seed("witness.example", &[9; 32]).unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let (first, second) = (begin(&old, &witness), begin(&new, &witness));
    assert_ne!(first, second);
    let home = dir.path().join("auditor");
    std::fs::create_dir(&home).unwrap();
    Auditor::create(&home, "auditor.example", &Zeroizing::new([7; 32])).unwrap();
    let mut auditor = Auditor::open(&home, None).unwrap();
    let mut follow = |trail: &Path, known: &[Digest], at| -> Result<Audited, AuditError> {
        let anchors = anchors(known, &witness);
        let judge = Judge {
            anchors: &anchors,
            publications: None,
            anew: false,
            clock: &|| Second(at),
        };
        auditor.follow(&Layout::new(trail), judge, &mut |_| {})
    };
    let audited = follow(&old, &[first], NOW).unwrap();
    assert!(audited.is_new);
    assert_eq!(audited.namesake, None);

    let refused = follow(&new, &[first], NOW + 1).unwrap_err();
    assert_eq!(refused.code(), Some(Code::TrailForked), "{refused}");
    assert!(refused.to_string().contains(&second.to_string()));

    // He was told of the new one's genesis elsewhere, and trusts it.
    let audited = follow(&new, &[first, second], NOW + 2).unwrap();
    assert!(audited.is_new);
    let namesake = audited.namesake.unwrap();
    assert_eq!((namesake.genesis, namesake.size), (first, 1));
    // Each time, also after what he knows was read from his disk.
    drop(auditor);
    let mut auditor = Auditor::open(&home, None).unwrap();
    let anchors = anchors(&[second], &witness);
    let judge = Judge {
        anchors: &anchors,
        publications: None,
        anew: false,
        clock: &|| Second(NOW + 3),
    };
    let audited = auditor.follow(&Layout::new(&new), judge, &mut |_| {});
    let audited = audited.unwrap();
    assert!(!audited.is_new);
    assert_eq!(audited.namesake.map(|of| of.genesis), Some(first));
}
