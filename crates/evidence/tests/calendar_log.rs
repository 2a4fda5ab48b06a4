//! Seconds that were witnessed, and everything that could be passed off as one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use data_encoding::BASE64;
use pitser_evidence::anchors::{Anchors, CalendarLogAnchor, KeyAnchor};
use pitser_evidence::calendar_log::{
    NotWitnessed, Proofs, Witnessed, check_publication, check_second,
};
use pitser_evidence::{Evidence, StepState, verify};
use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::{CosigningKey, Note, SigningKey};
use pitser_tlog::proof::LogProof;
use world::calendar_log::{GENESIS, Log, anchor, key, notary};
use world::{JUDGED, PUBLISHED, SEALED, World, judge, outcome};

/// The newest second of the log.
const NEWEST: u64 = 25;

fn log() -> Log {
    Log::new(&World::new().calendar(), NEWEST)
}

fn chain() -> CalendarChain {
    World::new().calendar().chain(SEALED[1], PUBLISHED)
}

/// The sound proof, spoilt; or the sound chain and anchors.
#[track_caller]
fn refused(
    spoil: impl FnOnce(&mut CalendarChain, &mut String, &mut CalendarLogAnchor),
    expected: &str,
) {
    let (mut chain, mut anchor) = (chain(), anchor());
    let mut text = log().proof(SEALED[1]).to_string();
    spoil(&mut chain, &mut text, &mut anchor);
    let proof = LogProof::parse(text.as_bytes()).unwrap();
    let error = check_second(&chain, &proof, &anchor).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_second_under_a_cosigned_head_is_witnessed() {
    let expected = Witnessed {
        second: Second(SEALED[1]),
        cosigned_at: Second(NEWEST + 2),
        witnesses: (0..3).map(|n| format!("notary.example/{n}")).collect(),
    };
    let calendar = World::new().calendar();
    let proof = log().proof(SEALED[1]);
    // To whatever second the chain leads, and whichever head covers it.
    for to in SEALED[1]..NEWEST + 9 {
        let chain = calendar.chain(SEALED[1], to);
        assert_eq!(
            check_second(&chain, &proof, &anchor()),
            Ok(expected.clone())
        );
    }
    for newest in SEALED[1]..NEWEST {
        let proof = Log::new(&calendar, newest).proof(SEALED[1]);
        let seen = check_second(&chain(), &proof, &anchor()).unwrap();
        assert_eq!(seen.cosigned_at, Second(newest + 2));
    }
}

#[test]
fn every_flipped_bit_of_a_proof_is_noticed() {
    let sound = log().proof(SEALED[1]);
    let (anchor, chain) = (anchor(), chain());
    // Two of three suffice: with the third one's line spoilt it must not pass.
    let text = sound.to_string();
    let extra = text.find("index ").unwrap();
    let mut judged = 0;
    for bit in 0..text.len() * 8 {
        let mut bytes = text.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(proof) = LogProof::parse(&bytes) else {
            continue;
        };
        judged += 1;
        let verdict = check_second(&chain, &proof, &anchor);
        // The entry beside the proof helps with publications alone, and a line by
        // an unknown key means nothing: the line is not the witness's any more.
        let is_strange = proof.head().signatures().iter().any(|line| {
            let known = anchor.witnesses.iter().any(|w| w.key.made(line));
            !known && !anchor.key.made(line)
        });
        match verdict {
            Err(_) => assert!(bit / 8 >= extra, "bit {bit}"),
            Ok(_) => assert!(bit / 8 < extra || is_strange, "bit {bit} went unnoticed"),
        }
    }
    assert!(judged > 3_000, "only {judged} flips could be read");
}

#[test]
fn a_chain_of_another_second_or_round_is_not_proved() {
    refused(
        |chain, _, _| chain.input = hash(Algorithm::Sha256, &[b"forged"]),
        "says something else",
    );
    refused(
        |chain, _, _| chain.links[0].1 = hash(Algorithm::Sha256, &[b"forged"]),
        "says something else",
    );
    refused(
        |chain, _, _| *chain = World::new().calendar().chain(SEALED[0], PUBLISHED),
        "another second",
    );
    refused(
        |chain, _, _| chain.aggregation_time = Some(Second(SEALED[0])),
        "its own second",
    );
    refused(
        |chain, _, _| *chain = World::new().calendar().chain(1, PUBLISHED),
        "before the calendar's log begins",
    );
}

#[test]
fn a_proof_of_another_second_or_log_is_not_taken() {
    refused(
        |_, text, _| *text = log().proof(SEALED[1] + 1).to_string(),
        "another second",
    );
    refused(
        |_, text, _| *text = text.replace(&format!("index {}", SEALED[1] - GENESIS), "index 0"),
        "another second",
    );
    refused(
        |_, _, anchor| anchor.genesis = Second(GENESIS - 1),
        "another second",
    );
    let other = |name: &str, seed| SigningKey::from_seed(name, &[seed; 32]).unwrap().verifier();
    let same = key().name().to_owned();
    refused(|_, _, anchor| anchor.key = other(&same, 9), "another log");
    refused(
        |_, _, anchor| anchor.key = other("other.example/calendar", 41),
        "another log",
    );
}

/// What an authority can do alone: sign another history with its own key.
#[test]
fn another_history_finds_no_witnesses() {
    let forged = |seconds: u64| {
        let calendar = World::meddled(8, &|_| {}).calendar();
        let log = Log::new(&calendar, seconds);
        let proof = log.proof(SEALED[1]);
        let head = Checkpoint::parse(log.head.text())
            .unwrap()
            .sign(&key())
            .unwrap();
        (
            calendar,
            LogProof::new(proof.index(), proof.path().to_vec(), head).unwrap(),
        )
    };
    let (calendar, proof) = forged(NEWEST);
    let chain = calendar.chain(SEALED[1], PUBLISHED);
    let found = check_second(&chain, &proof, &anchor());
    assert_eq!(
        found,
        Err(NotWitnessed::TooFew {
            found: 0,
            required: 2
        })
    );
    // With cosignatures from the true history they are no cosignatures of it.
    let mut head = proof.head().clone();
    for line in &log().head.signatures()[1..] {
        head.add(line.clone()).unwrap();
    }
    let grafted = LogProof::new(proof.index(), proof.path().to_vec(), head).unwrap();
    let found = check_second(&chain, &grafted, &anchor()).unwrap_err();
    assert!(found.to_string().contains("does not verify"), "{found}");
}

#[test]
fn a_quorum_is_of_distinct_witnesses_in_their_time() {
    refused(
        |_, _, anchor| anchor.witnesses.truncate(1),
        "1 of 2 required",
    );
    refused(
        |_, _, anchor| {
            let again = CosigningKey::from_seed("notary.example/again", &[50; 32]).unwrap();
            anchor.witnesses.truncate(1);
            anchor.witnesses.push(KeyAnchor::new(again.verifier()));
        },
        "1 of 2 required",
    );
    refused(
        |_, _, anchor| {
            for witness in &mut anchor.witnesses[1..] {
                witness.valid_until = Some(Second(NEWEST));
            }
        },
        "1 of 2 required",
    );
    refused(|_, _, anchor| anchor.quorum = 0, "at least one witness");
}

#[test]
fn the_log_is_not_its_own_witness() {
    let own = CosigningKey::from_seed(key().name(), &[41; 32]).unwrap();
    let sound = log().proof(SEALED[1]);
    let checkpoint = Checkpoint::parse(sound.head().text()).unwrap();
    let mut head = checkpoint.sign(&key()).unwrap();
    head.add(own.cosign(head.text(), NEWEST)).unwrap();
    let proof = LogProof::new(sound.index(), sound.path().to_vec(), head).unwrap();
    let anchor = CalendarLogAnchor {
        quorum: 1,
        witnesses: vec![KeyAnchor::new(own.verifier())],
        ..anchor()
    };
    let found = check_second(&chain(), &proof, &anchor);
    assert_eq!(
        found,
        Err(NotWitnessed::TooFew {
            found: 0,
            required: 1
        })
    );
}

#[test]
fn nobody_has_seen_a_head_long_before_its_newest_second() {
    let sound = log().proof(SEALED[1]);
    let checkpoint = Checkpoint::parse(sound.head().text()).unwrap();
    let mut head = checkpoint.sign(&key()).unwrap();
    for number in 0..2 {
        head.add(notary(number).cosign(head.text(), 0)).unwrap();
    }
    let proof = LogProof::new(sound.index(), sound.path().to_vec(), head.clone()).unwrap();
    // Half a minute is a clock that is slow.
    assert!(check_second(&chain(), &proof, &anchor()).is_ok());
    let calendar = World::new().calendar();
    let later = Log::new(&calendar, 90);
    let sound = later.proof(SEALED[1]);
    let checkpoint = Checkpoint::parse(later.head.text()).unwrap();
    let mut head = checkpoint.sign(&key()).unwrap();
    for number in 0..2 {
        head.add(notary(number).cosign(head.text(), 29)).unwrap();
    }
    let proof = LogProof::new(sound.index(), sound.path().to_vec(), head).unwrap();
    let found = check_second(&chain(), &proof, &anchor()).unwrap_err();
    assert!(
        found.to_string().contains("before its newest second"),
        "{found}"
    );
}

#[test]
fn a_publication_counts_by_the_entry_of_its_own_second() {
    let calendar = World::new().calendar();
    let publication = calendar.publication(PUBLISHED);
    let proof = log().proof(PUBLISHED);
    let seen = check_publication(&publication, &proof, &anchor()).unwrap();
    assert_eq!(seen.second, Second(PUBLISHED));

    // Of another calendar, or of another second of this one.
    let other = World::meddled(8, &|_| {}).calendar().publication(PUBLISHED);
    let error = check_publication(&other, &proof, &anchor()).unwrap_err();
    assert!(
        error.to_string().contains("not that of the publication"),
        "{error}"
    );
    let error = check_publication(&publication, &log().proof(PUBLISHED - 1), &anchor());
    let error = error.unwrap_err();
    assert!(
        error.to_string().contains("not that of the publication"),
        "{error}"
    );

    // The entry is not believed because it is there.
    let with = |extra: Vec<u8>| {
        let bare = LogProof::new(proof.index(), proof.path().to_vec(), proof.head().clone());
        bare.unwrap().with_extra(extra).unwrap()
    };
    let forged = CalendarEntry::new(Second(PUBLISHED), other.imprint, other.imprint).unwrap();
    let error = check_publication(&other, &with(forged.encode().to_vec()), &anchor());
    let error = error.unwrap_err();
    assert!(error.to_string().contains("says something else"), "{error}");
    let error = check_publication(&publication, &with(b"no entry".to_vec()), &anchor());
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("no entry beside it")
    );
}

#[test]
fn proofs_stand_in_the_order_of_their_seconds() {
    let log = log();
    let text = |second: u64| log.proof(second).to_string();
    let anchor = anchor();
    assert!(Proofs::read(&anchor, &[text(5), text(9), text(20)]).is_ok());
    for wrong in [
        vec![text(9), text(5)],
        vec![text(5), text(5)],
        vec!["x".to_owned()],
    ] {
        assert!(Proofs::read(&anchor, &wrong).is_err());
    }
}

// Evidence files.

/// Evidence about pt-1 with the proofs of these seconds, and anchors that name
/// the calendar's log.
fn evidence(seconds: &[u64]) -> (World, Evidence, Anchors) {
    let mut world = World::new();
    let mut evidence = world.evidence("pt-1");
    let log = log();
    let proofs = seconds.iter().map(|at| log.proof(*at).to_string());
    evidence.set_calendar(proofs.collect());
    world.sign(&mut evidence);
    let anchors = Anchors {
        calendar_log: Some(anchor()),
        ..world.anchors()
    };
    (world, evidence, anchors)
}

fn all() -> Vec<u64> {
    [&SEALED[..], &[PUBLISHED]].concat()
}

#[test]
fn evidence_whose_seconds_are_witnessed_says_so() {
    let (_, evidence, anchors) = evidence(&all());
    let bytes = evidence.encode();
    assert!(String::from_utf8_lossy(&bytes).contains("\"format\":\"pitser-evidence/2\""));
    let evidence = Evidence::decode(&bytes).unwrap();
    let report = verify(&evidence, Some(&anchors), JUDGED);
    assert_eq!(outcome(&report), "intact", "{report:#?}");
    let step = report
        .steps
        .iter()
        .find(|step| step.name == "witnessed")
        .unwrap();
    assert_eq!(step.state, StepState::Matches);
    // Block 0 was sealed in second 5, and a second notary saw second 25 in 27.
    assert_eq!(
        step.text,
        "3 seconds of seals stand in the calendar's log, cosigned at most 22 s later"
    );
    // Who does not name the log does not ask for it.
    let anchors = Anchors {
        calendar_log: None,
        ..anchors
    };
    let report = verify(&evidence, Some(&anchors), JUDGED);
    assert_eq!(outcome(&report), "intact");
    assert!(report.steps.iter().all(|step| step.name != "witnessed"));
}

#[test]
fn what_is_not_proved_to_be_witnessed_waits() {
    let judged = |seconds: &[u64]| {
        let (_, evidence, anchors) = evidence(seconds);
        judge(&evidence, Some(&anchors))
    };
    assert_eq!(judged(&[]), "unconfirmed at seals, witnessed");
    assert_eq!(judged(&SEALED), "unconfirmed at seals");
    assert_eq!(
        judged(&[SEALED[0], SEALED[2], PUBLISHED]),
        "unconfirmed at witnessed"
    );
    let (_, evidence, mut anchors) = evidence(&all());
    let log = anchors.calendar_log.as_mut().unwrap();
    log.witnesses.remove(0);
    log.witnesses.remove(0);
    assert_eq!(
        judge(&evidence, Some(&anchors)),
        "unconfirmed at seals, witnessed"
    );
}

#[test]
fn evidence_that_its_calendars_log_contradicts_is_broken() {
    let spoilt = |spoil: &dyn Fn(&mut Vec<String>)| {
        let (world, mut evidence, anchors) = evidence(&all());
        let mut proofs = evidence.calendar.clone();
        spoil(&mut proofs);
        evidence.set_calendar(proofs);
        world.sign(&mut evidence);
        judge(&evidence, Some(&anchors))
    };
    let broken = "broken SEAL-02 at witnessed";
    assert_eq!(spoilt(&|proofs| proofs.swap(0, 1)), broken);
    assert_eq!(spoilt(&|proofs| proofs[1].push('x')), broken);
    // The log that its witnesses saw has other rounds.
    let other = Log::new(&World::meddled(8, &|_| {}).calendar(), NEWEST);
    assert_eq!(
        spoilt(&|proofs| proofs[1] = other.proof(SEALED[1]).to_string()),
        broken
    );
    assert_eq!(
        spoilt(&|proofs| proofs[3] = other.proof(PUBLISHED).to_string()),
        broken
    );
    // A head with a cosignature that is not one.
    assert_eq!(
        spoilt(&|proofs| {
            let proof = LogProof::parse(proofs[0].as_bytes()).unwrap();
            let known = notary(0)
                .cosign(proof.head().text(), NEWEST + 1)
                .to_string();
            let (start, encoded) = known.trim_end().rsplit_once(' ').unwrap();
            let mut bytes = BASE64.decode(encoded.as_bytes()).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            let forged = format!("{start} {}\n", BASE64.encode(&bytes));
            let note = proof.head().to_string().replace(&known, &forged);
            assert_ne!(note, proof.head().to_string());
            let head = Note::parse(note.as_bytes()).unwrap();
            let path = proof.path().to_vec();
            proofs[0] = LogProof::new(proof.index(), path, head)
                .unwrap()
                .to_string();
        }),
        broken
    );
}

#[test]
fn the_format_tells_whether_there_are_proofs() {
    let (world, evidence, _) = evidence(&all());
    for (format, has_proofs) in [("pitser-evidence/1", true), ("pitser-evidence/2", false)] {
        let mut wrong = evidence.clone();
        if !has_proofs {
            wrong.calendar.clear();
        }
        wrong.format = format.into();
        world.sign(&mut wrong);
        let error = Evidence::decode(&wrong.encode()).unwrap_err();
        assert!(
            error.to_string().contains("what is in it makes a file"),
            "{error}"
        );
    }
}
