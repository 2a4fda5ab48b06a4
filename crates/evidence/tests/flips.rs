//! Every byte of an evidence file means something: whichever bit is flipped,
//! the file is no longer found intact. Once as it is, and once after the
//! operator has signed the flipped file anew.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use pitser_evidence::{Evidence, Verdict, verify};
use pitser_ksi::signature::Signature;
use world::{JUDGED, World};

/// One bit of every byte, all eight of every 16th.
fn bits(len: usize) -> impl Iterator<Item = usize> {
    (0..len * 8).filter(|bit| bit / 8 % 16 == 0 || bit % 8 == bit / 8 % 8)
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let mut world = World::new();
    let anchors = world.anchors();
    let bytes = world.evidence("pt-2").encode();
    let sound = Evidence::decode(&bytes).unwrap();
    assert_eq!(
        verify(&sound, Some(&anchors), JUDGED).verdict,
        Verdict::Intact
    );
    for bit in bits(bytes.len()) {
        if let Ok(evidence) = Evidence::decode(&flipped(&bytes, bit)) {
            let verdict = verify(&evidence, Some(&anchors), JUDGED).verdict;
            assert_ne!(
                verdict,
                Verdict::Intact,
                "bit {bit} went unnoticed in {:?}",
                around(&bytes, bit)
            );
        }
    }
}

#[test]
fn no_bit_can_be_flipped_by_who_can_sign() {
    let mut world = World::new();
    let anchors = world.anchors();
    let sound = world.evidence("pt-2");
    let bytes = sound.encode();
    let mut judged = 0;
    for bit in bits(bytes.len()) {
        let Ok(mut evidence) = Evidence::decode(&flipped(&bytes, bit)) else {
            continue;
        };
        world.sign(&mut evidence);
        if evidence == sound {
            // The flip was in the signature, which is now made good.
            continue;
        }
        judged += 1;
        let report = verify(&evidence, Some(&anchors), JUDGED);
        let unnoticed = report.verdict == Verdict::Intact;
        assert!(
            !unnoticed || same_seals(&evidence, &sound),
            "bit {bit} went unnoticed in {:?}",
            around(&bytes, bit)
        );
    }
    assert!(
        judged > 3000,
        "only {judged} flips could be read and signed"
    );
}

/// The one exemption: in a seal, "noncritical" on an element that every reader
/// knows changes nothing that is hashed or compared (KSI-compatible TLV), so
/// the two seals are of one block, second and publication.
fn same_seals(a: &Evidence, b: &Evidence) -> bool {
    let said = |evidence: &Evidence| {
        let seals = evidence
            .blocks
            .iter()
            .map(|b| Signature::decode(&b.seal.as_ref().unwrap().0).unwrap());
        let parts = |s: Signature| {
            (
                s.aggregation_chains().to_vec(),
                s.calendar().cloned(),
                s.anchor().cloned(),
            )
        };
        seals.map(parts).collect::<Vec<_>>()
    };
    a.blocks
        .iter()
        .zip(&b.blocks)
        .any(|(a, b)| a.seal != b.seal)
        && said(a) == said(b)
}

fn around(bytes: &[u8], bit: usize) -> String {
    let at = bit / 8;
    String::from_utf8_lossy(&bytes[at.saturating_sub(60)..bytes.len().min(at + 20)]).into_owned()
}

#[test]
fn a_cut_file_is_unreadable() {
    let bytes = World::new().evidence("pt-2").encode();
    for len in 0..bytes.len() {
        assert!(
            Evidence::decode(&bytes[..len]).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
    assert!(Evidence::decode(&[&bytes[..], b"\n"].concat()).is_err());
}
