//! What an operator can try who holds the trail's keys: to sign the evidence
//! file anew, to sign other heads, to have other blocks sealed. He holds
//! neither the witnesses' nor the auditor's key, and has not written the
//! verifier's anchors. Nothing that he tries may ever be found intact.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use pitser_evidence::Evidence;
use pitser_evidence::anchors::{Anchors, KeyAnchor, PublicationAnchor, TrailAnchor};
use pitser_evidence::apart::is_file_name;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Blob, Bytes32, Digest, MAX_INTEGER};
use pitser_evidence::commit::{column_leaf, patient_alpha};
use pitser_evidence::file::{LineProof, ListLengths, MAX_PROOFS, OpenColumn, OpenRaw, TooLarge};
use pitser_evidence::line::{
    Acceptance, Actor, Binding, Erasure, Line, Op, Patient, Prev, RULES, Release,
};
use pitser_evidence::map::OtherLeaf;
use pitser_evidence::vrf;
use pitser_evidence::{LeftOut, Report, StepState, verify, verify_since};
use pitser_ksi::time::Second;
use pitser_tlog::note::{CosigningKey, Note, SigningKey};
use std::collections::{BTreeMap, BTreeSet};
use world::authority::{CONSTRAINT, Calendar, certificate_pem};
use world::{
    AUDITED, COSIGNED, JUDGED, ORIGIN, PUBLISHED, SEALED, World, auditor, cosigned, judge, outcome,
    witnesses,
};

/// Spoils the evidence about pt-1, has it signed again, and judges it.
#[track_caller]
fn attack(spoil: impl FnOnce(&mut World, &mut Evidence), expected: &str) {
    let mut world = World::new();
    let anchors = world.anchors();
    let mut evidence = world.evidence("pt-1");
    spoil(&mut world, &mut evidence);
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), expected);
}

/// Judges sound evidence about pt-1 by other anchors.
#[track_caller]
fn judged_by(change: impl FnOnce(&mut Anchors), expected: &str) {
    let mut world = World::new();
    let mut anchors = world.anchors();
    change(&mut anchors);
    assert_eq!(judge(&world.evidence("pt-1"), Some(&anchors)), expected);
}

#[track_caller]
fn line_of(evidence: &mut Evidence, op: Op) -> usize {
    evidence.lines.iter().position(|l| l.line.op == op).unwrap()
}

fn column(evidence: &mut Evidence) -> &mut OpenColumn {
    let update = line_of(evidence, Op::Update);
    &mut evidence.lines[update]
        .open
        .as_mut()
        .unwrap()
        .columns
        .as_mut()
        .unwrap()[3]
}

// What is true is found intact.

#[test]
fn sound_evidence_is_intact() {
    for id in ["pt-1", "pt-2"] {
        let mut world = World::new();
        let evidence = world.evidence(id);
        let evidence = Evidence::decode(&evidence.encode()).unwrap();
        let report = verify(&evidence, Some(&world.anchors()), JUDGED);
        assert_eq!(outcome(&report), "intact", "{report:#?}");
        let steps: Vec<_> = report.steps.iter().map(|s| s.name).collect();
        let expected = [
            "file", "genesis", "head", "log", "seals", "lines", "subject", "complete", "audit",
            "values",
        ];
        assert_eq!(steps, expected);
        assert_eq!(report.as_of, Some(Second(SEALED[2])));
        assert_eq!(report.witnessed_at, Some(Second(COSIGNED[1])));
    }
}

#[test]
fn a_stranger_is_proved_to_have_no_line() {
    let mut world = World::new();
    let evidence = world.evidence("pt-3");
    let report = verify(&evidence, Some(&world.anchors()), JUDGED);
    assert_eq!(outcome(&report), "intact", "{report:#?}");
    let complete = &report.steps[7];
    assert_eq!(
        (complete.name, complete.state),
        ("complete", StepState::Matches)
    );
    assert!(
        complete
            .text
            .contains("0 lines of the subject, 1 of *many and 1 of *unknown"),
        "{}",
        complete.text
    );
}

// What is left out of the shared lists is said, and asked for or not by the verifier alone.

/// Judges evidence about pt-1, without the first line of `*unknown` of four, as somebody
/// does who asks of the shared lists what was sealed after `since`.
#[track_caller]
fn partial(
    since: Option<u64>,
    spoil: impl FnOnce(&World, &mut Evidence),
    expected: &str,
) -> Report {
    let mut world = World::with_strangers();
    let anchors = world.anchors();
    let mut evidence = world.partial("pt-1", 1);
    spoil(&world, &mut evidence);
    world.sign(&mut evidence);
    let evidence = Evidence::decode(&evidence.encode()).unwrap();
    let report = match since {
        Some(since) => verify_since(&evidence, Some(&anchors), JUDGED, Second(since)),
        None => verify(&evidence, Some(&anchors), JUDGED),
    };
    assert_eq!(outcome(&report), expected, "{report:#?}");
    report
}

#[test]
fn a_shared_list_may_begin_later_for_whoever_does_not_ask_for_the_rest() {
    let waiting = "unconfirmed at complete";
    let report = partial(None, |_, _| {}, waiting);
    let unknown: Vec<u64> = World::with_strangers().seqs(Patient::Unknown);
    let left_out = LeftOut {
        list: Patient::Unknown,
        lines: 1,
        up_to: unknown[0],
        sealed_by: Some(Second(SEALED[1])),
    };
    assert_eq!(report.left_out, [left_out]);
    partial(Some(SEALED[1] - 1), |_, _| {}, waiting);
    let report = partial(Some(SEALED[1]), |_, _| {}, "intact");
    let complete = &report.steps[7].text;
    let said = format!("the first 1 lines of *unknown, up to line {}, ", unknown[0]);
    assert!(complete.contains(&said), "{complete}");
    assert!(!complete.contains("*unknown: all are here"), "{complete}");
    // A seal that nothing confirms shows no time.
    let without_seal = |_: &World, e: &mut Evidence| e.blocks[1].seal = None;
    let report = partial(
        Some(SEALED[2]),
        without_seal,
        "unconfirmed at seals, complete",
    );
    assert_eq!(report.left_out[0].sealed_by, None);
}

#[test]
fn whole_lists_are_intact_since_whenever() {
    let mut world = World::new();
    let evidence = world.evidence("pt-1");
    let report = verify_since(&evidence, Some(&world.anchors()), JUDGED, Second(0));
    assert_eq!(
        (outcome(&report).as_str(), report.left_out),
        ("intact", Vec::new())
    );
}

#[test]
fn what_is_left_out_is_what_is_said_to_be() {
    let missing = "broken TRL-02 at complete";
    let all = Some(u64::MAX);
    for before in [None, Some(2), Some(3), Some(MAX_INTEGER)] {
        partial(
            all,
            |_, e| {
                e.map.unknown.before = before;
                e.format = e.oldest_format().into();
            },
            missing,
        );
    }
    // Lines of the list in the middle and at the end, with a count to match.
    for gone in [1, 2, 3] {
        partial(
            all,
            |w, e| {
                let seq = w.seqs(Patient::Unknown)[gone];
                e.lines.retain(|line| line.line.seq != seq);
                e.map.unknown.before = Some(2);
            },
            // The second line is at the beginning of what is shown.
            if gone == 1 { "intact" } else { missing },
        );
    }
    // All of them, of this list, and of one that says so and begins at its beginning.
    let unknown = |line: &LineProof| line.line.patient == Some(Patient::Unknown);
    partial(
        all,
        |_, e| {
            e.lines.retain(|line| !unknown(line));
            e.map.unknown.before = Some(4);
        },
        missing,
    );
    partial(all, |_, e| e.map.many.before = Some(1), missing);
}

#[test]
fn of_the_patients_own_list_nothing_may_be_left_out() {
    let mut world = World::new();
    let evidence = world.evidence("pt-1");
    let unreadable = |change: &dyn Fn(&mut Evidence)| {
        let mut evidence = evidence.clone();
        change(&mut evidence);
        evidence.format = evidence.oldest_format().into();
        world.sign(&mut evidence);
        assert_eq!(judge(&evidence, Some(&world.anchors())), "unreadable");
    };
    unreadable(&|e| {
        e.map.patient.before = Some(1);
        e.lines.remove(0);
    });
    unreadable(&|e| e.map.many.before = Some(0));
    unreadable(&|e| e.map.unknown.before = Some(u64::MAX));
}

#[test]
fn a_file_says_by_its_format_that_something_is_left_out() {
    let mut world = World::with_strangers();
    let anchors = world.anchors();
    for format in [
        "pitser-evidence/1",
        "pitser-evidence/2",
        "pitser-evidence/4",
    ] {
        let mut evidence = world.partial("pt-1", 1);
        evidence.format = format.into();
        world.sign(&mut evidence);
        assert_eq!(judge(&evidence, Some(&anchors)), "unreadable", "{format}");
    }
    let mut whole = world.evidence("pt-1");
    whole.format = "pitser-evidence/3".into();
    world.sign(&mut whole);
    assert_eq!(judge(&whole, Some(&anchors)), "unreadable");
}

#[test]
fn a_file_that_nobody_reads_is_not_written() {
    let mut world = World::new();
    let mut evidence = world.evidence("pt-1");
    assert_eq!(evidence.encode_readable(), Ok(evidence.encode()));
    evidence.set_calendar(vec![String::new(); MAX_PROOFS]);
    assert!(Evidence::decode(&evidence.encode()).is_err());
    let lists = ListLengths {
        patient: evidence.lines.len() as u64 - 2,
        many: 1,
        unknown: 1,
    };
    assert_eq!(evidence.encode_readable(), Err(TooLarge { lists }));
    // What is known before there is a file.
    let lists = ListLengths {
        unknown: MAX_PROOFS as u64 - lists.patient - 1,
        ..lists
    };
    assert_eq!(lists.check(), Ok(()));
    let lists = ListLengths { many: 2, ..lists };
    let error = lists.check().unwrap_err();
    assert_eq!(error, TooLarge { lists });
    assert!(error.to_string().contains("--shared-since"), "{error}");
}

#[test]
fn a_column_that_is_kept_back_stays_a_hash() {
    let hide = |evidence: &mut Evidence| {
        let column = column(evidence);
        let leaf = column_leaf(&column.nonce.unwrap(), &column.name, column.bytes());
        *column = OpenColumn {
            bytes: None,
            hidden: Some(Bytes32(leaf)),
            name: column.name.clone(),
            nonce: None,
            value: None,
        };
    };
    attack(|_, e| hide(e), "intact");
    attack(
        |_, e| {
            hide(e);
            column(e).name = "comment".into();
        },
        "broken EVD-02 at values",
    );
}

/// All bytes that a line commits to, by the name of the file that they would stand in.
fn values(evidence: &Evidence) -> Vec<(String, Vec<u8>)> {
    let mut values = Vec::new();
    for proof in &evidence.lines {
        let Some(open) = &proof.open else { continue };
        let columns = open.columns.iter().flatten().zip(1..);
        for (column, place) in columns {
            let value = column.bytes().unwrap_or_default().to_vec();
            values.push((format!("{}.{place}", proof.line.seq), value));
        }
        if let Some(Blob(bytes)) = open.raw.as_ref().and_then(|raw| raw.bytes.as_ref()) {
            values.push((format!("{}.message", proof.line.seq), bytes.clone()));
        }
    }
    values
}

#[test]
fn values_may_stand_in_files_of_their_own() {
    let long = "ü".repeat(2000);
    let mut world = World::with_result(long.clone().leak());
    let anchors = world.anchors();
    let whole = world.evidence("pt-1");
    let known: BTreeMap<_, _> = values(&whole).into_iter().collect();
    // Those of the newest lines first, and no more than it takes.
    let mut least = whole.clone();
    let length = whole.encode().len();
    least.put_apart(length - 2);
    let names: Vec<_> = least.apart().map(|part| part.file_name()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let mut evidence = whole.clone();
    evidence.put_apart(length);
    assert_eq!(evidence, whole);
    evidence.put_apart(0);
    assert!(evidence.encode().len() + long.len() < length);
    let names: Vec<_> = evidence.apart().map(|part| part.file_name()).collect();
    let newest = line_of(&mut evidence, Op::Create);
    let newest = evidence.lines[newest].line.seq;
    let [first, .., last] = &*world.seqs_with_messages() else {
        panic!("two messages")
    };
    let expected = [
        format!("{first}.message"),
        format!("{newest}.4"),
        format!("{last}.message"),
    ];
    assert_eq!(names, expected);
    assert!(names.iter().all(|name| is_file_name(name)));
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "unreadable", "its format");
    evidence.format = "pitser-evidence/4".into();
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "intact");
    let matches = |evidence: &Evidence, value: &dyn Fn(&str) -> Vec<u8>| {
        let all = evidence.apart().map(|part| {
            let mut check = part.check();
            for bytes in value(&part.file_name()).chunks(1000) {
                check.update(bytes);
            }
            check.matches()
        });
        all.collect::<BTreeSet<_>>()
    };
    let true_values = |name: &str| known[name].clone();
    assert_eq!(matches(&evidence, &true_values), BTreeSet::from([true]));
    let others = |name: &str| [&known[name][1..], b"!"].concat();
    assert_eq!(matches(&evidence, &others), BTreeSet::from([false]));
    assert_eq!(matches(&evidence, &|_| vec![]), BTreeSet::from([false]));

    // Another leaf is not the one that was sealed; another nonce opens nothing.
    let apart = |evidence: &mut Evidence, change: &dyn Fn(&mut OpenColumn)| {
        let lines = evidence.lines.iter_mut();
        let open = lines.filter_map(|proof| proof.open.as_mut()?.columns.as_mut());
        open.flatten().filter(|c| c.is_apart()).for_each(change);
    };
    for (change, expected) in [
        (
            (|c| c.hidden.as_mut().unwrap().0[0] ^= 1) as fn(&mut OpenColumn),
            "broken EVD-02 at values",
        ),
        (|c| c.nonce.as_mut().unwrap().0[0] ^= 1, "intact"),
    ] {
        let mut changed = evidence.clone();
        apart(&mut changed, &change);
        world.sign(&mut changed);
        assert_eq!(judge(&changed, Some(&anchors)), expected);
        if expected == "intact" {
            assert!(matches(&changed, &true_values).contains(&false));
        }
    }
    // A message that no line commits to.
    let mut changed = evidence.clone();
    let nonce = Bytes32([7; 32]);
    let update = line_of(&mut changed, Op::Update);
    changed.lines[update].open.as_mut().unwrap().raw = Some(OpenRaw { bytes: None, nonce });
    world.sign(&mut changed);
    assert_eq!(judge(&changed, Some(&anchors)), "broken EVD-02 at values");
}

// Without anchors, or with others, it is not.

#[test]
fn nobody_but_the_verifier_can_bring_trust() {
    let mut world = World::new();
    let everything = "unconfirmed at genesis, head, seals, audit";
    let evidence = world.evidence("pt-1");
    assert_eq!(judge(&evidence, None), everything);
    let none = Anchors {
        trails: vec![],
        publications: vec![],
        witnesses: vec![],
        auditors: vec![],
        witness_quorum: 0,
        ..world.anchors()
    };
    assert_eq!(judge(&evidence, Some(&none)), everything);
}

#[test]
fn each_missing_anchor_is_named() {
    judged_by(|a| a.trails.clear(), "unconfirmed at genesis");
    judged_by(|a| a.witness_quorum = 0, "unconfirmed at head");
    judged_by(|a| a.witness_quorum = 3, "unconfirmed at head");
    judged_by(|a| a.witnesses.truncate(1), "unconfirmed at head");
    judged_by(|a| a.publications.clear(), "unconfirmed at seals");
    judged_by(|a| a.auditors.clear(), "unconfirmed at audit");
}

#[test]
fn another_beginning_is_a_fork() {
    judged_by(
        |a| a.trails[0].genesis = Digest::of(&[b"another"]),
        "broken TRL-04 at genesis",
    );
    judged_by(
        |a| a.trails[0].origin = "other.example/hospital".into(),
        "unconfirmed at genesis",
    );
    // Two trails by one name may be known: one that ended, one that goes on.
    let other = TrailAnchor {
        origin: ORIGIN.into(),
        genesis: Digest::of(&[b"another"]),
    };
    judged_by(|a| a.trails.insert(0, other), "intact");
}

#[test]
fn another_root_for_the_published_second_breaks_the_seals() {
    let other = Calendar::new([]).publication(PUBLISHED);
    judged_by(
        |a| a.publications[0].code = other,
        "broken SEAL-02 at seals",
    );
}

#[test]
fn a_witness_counts_once_and_never_is_the_trail() {
    let same_key = CosigningKey::from_seed("ministry.example/other", &[4; 32]).unwrap();
    judged_by(
        |a| a.witnesses[1] = KeyAnchor::new(same_key.verifier()),
        "unconfirmed at head",
    );
    let log_as_witness = CosigningKey::from_seed("ministry.example/witness", &[1; 32]).unwrap();
    let mut world = World::new();
    let mut anchors = world.anchors();
    anchors.witnesses[0] = KeyAnchor::new(log_as_witness.verifier());
    let mut evidence = world.evidence("pt-1");
    let mut head = world.head(3);
    for (key, at) in [(&log_as_witness, 15), (&witnesses()[1], 16)] {
        head.add(key.cosign(head.text(), at)).unwrap();
    }
    evidence.head = head.to_string();
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at head");
}

#[test]
fn keys_count_within_their_time_alone() {
    let at = |s| Some(Second(s));
    let [first, second] = COSIGNED;
    judged_by(|a| a.witnesses[0].valid_from = at(first), "intact");
    judged_by(
        |a| a.witnesses[0].valid_from = at(first + 1),
        "unconfirmed at head",
    );
    judged_by(|a| a.witnesses[1].valid_until = at(second + 1), "intact");
    judged_by(
        |a| a.witnesses[1].valid_until = at(second),
        "unconfirmed at head",
    );
    judged_by(|a| a.auditors[0].valid_from = at(AUDITED), "intact");
    judged_by(
        |a| a.auditors[0].valid_from = at(AUDITED + 1),
        "unconfirmed at audit",
    );
    judged_by(|a| a.auditors[0].valid_until = at(AUDITED + 1), "intact");
    judged_by(
        |a| a.auditors[0].valid_until = at(AUDITED),
        "unconfirmed at audit",
    );
}

#[test]
fn an_expired_auditor_key_cannot_reach_a_later_head() {
    let mut world = World::new();
    let mut anchors = world.anchors();
    anchors.auditors[0].valid_until = Some(Second(10));
    let mut evidence = world.evidence("pt-1");
    evidence.audit = Some(world.audit(|s| s.made_at = Second(9)).to_string());
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at audit");
}

#[test]
fn the_authoritys_key_is_enough_until_a_publication() {
    let mut world = World::new();
    let calendar = world.calendar();
    let mut evidence = world.evidence("pt-1");
    let before = SEALED[2] - 1;
    for (block, second) in [(0, SEALED[0]), (1, SEALED[1])] {
        evidence.blocks[block].seal = Some(Blob(calendar.published(second, before)));
    }
    evidence.blocks[2].seal = Some(Blob(calendar.keyed(SEALED[2])));
    evidence.publications = Some(Blob(calendar.file(before)));
    world.sign(&mut evidence);
    let mut anchors = world.anchors();
    let code = |second| PublicationAnchor {
        code: calendar.publication(second),
    };
    anchors.publications = vec![code(before)];
    assert_eq!(
        judge(&evidence, Some(&anchors)),
        "unconfirmed at seals",
        "no authority in the anchors"
    );
    anchors.authorities = vec![pitser_evidence::anchors::AuthorityAnchor {
        certificate: certificate_pem(),
        constraints: vec![CONSTRAINT.into()],
    }];
    assert_eq!(judge(&evidence, Some(&anchors)), "intact");
    // Then the key is no longer needed, and whoever has it proves nothing by it.
    anchors.publications.push(code(SEALED[2]));
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at seals");
    evidence.publications = Some(Blob(calendar.file(PUBLISHED)));
    anchors.publications = vec![code(before)];
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at seals");
    evidence.publications = Some(Blob(calendar.file(before)));
    world.sign(&mut evidence);
    anchors.publications.clear();
    assert_eq!(
        judge(&evidence, Some(&anchors)),
        "intact",
        "the file has the publication"
    );
    anchors.authorities[0].constraints = vec!["email=somebody@example.org".into()];
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at seals");
}

// The file.

#[test]
fn the_file_is_the_trails() {
    let mut world = World::new();
    let anchors = world.anchors();
    let sound = world.evidence("pt-1");
    let check = |change: &dyn Fn(&mut Evidence), expected: &str| {
        let mut evidence = sound.clone();
        change(&mut evidence);
        assert_eq!(judge(&evidence, Some(&anchors)), expected);
    };
    check(&|e| e.signature.clear(), "broken EVD-01 at file");
    check(&|e| e.subject.id = "pt-2".into(), "broken EVD-01 at file");
    check(&|e| drop(e.lines.pop()), "broken EVD-01 at file");
    let other = SigningKey::from_seed(ORIGIN, &[0x55; 32]).unwrap();
    check(
        &|e| e.signature = other.sign(&e.signed_text()).to_string(),
        "broken EVD-01 at file",
    );
    let renamed = SigningKey::from_seed("other.example/hospital", &[1; 32]).unwrap();
    check(
        &|e| e.signature = renamed.sign(&e.signed_text()).to_string(),
        "broken EVD-01 at file",
    );
}

#[test]
fn the_files_own_claims_agree_with_its_genesis() {
    attack(
        |_, e| e.origin = "other.example/hospital".into(),
        "broken EVD-01 at file",
    );
    attack(
        |_, e| e.genesis.genesis.as_mut().unwrap().origin = "other.example/hospital".into(),
        "broken EVD-01 at file",
    );
    attack(
        |_, e| e.genesis.genesis.as_mut().unwrap().salt = Bytes32([1; 32]),
        "broken TRL-04 at genesis",
    );
    attack(
        |_, e| e.genesis.pos = "1".into(),
        "broken TRL-04 at genesis",
    );
    attack(|_, e| e.format = "pitser-evidence/2".into(), "unreadable");
    attack(|_, e| e.map.block = u64::MAX, "unreadable");
    // A pseudonym key of the operator's choice would name another list.
    attack(
        |_, e| {
            let key = vrf::SecretKey::from_seed(&[0x66; 32]);
            e.genesis.genesis.as_mut().unwrap().vrf_key = Bytes32(key.public().0);
            e.subject.proof = Blob(key.prove(&patient_alpha(ORIGIN, "pt-1")).1.to_vec());
        },
        "broken TRL-04 at genesis",
    );
}

#[test]
fn numbers_at_the_end_of_their_range_are_no_way_around() {
    let mut world = World::new();
    let anchors = world.anchors();
    let mut evidence = world.evidence("pt-1");
    evidence.map.block = u64::MAX;
    world.sign(&mut evidence);
    let report = verify(&evidence, Some(&anchors), JUDGED);
    assert_eq!(outcome(&report), "broken TRL-02 at complete");
}

// Lines.

#[test]
fn no_line_can_be_left_out() {
    let left_out = "broken TRL-02 at complete";
    let count = World::new().evidence("pt-1").lines.len();
    assert_eq!(
        count, 10,
        "3 baselines, update, read, relink, create, read; *many; *unknown"
    );
    for index in 0..count {
        attack(|_, e| drop(e.lines.remove(index)), left_out);
    }
    attack(|_, e| e.lines.clear(), left_out);
    for patient in [Patient::Many, Patient::Unknown] {
        attack(
            |_, e| e.lines.retain(|l| l.line.patient != Some(patient)),
            left_out,
        );
    }
}

#[test]
fn no_line_can_be_moved_or_repeated() {
    attack(|_, e| e.lines.swap(0, 1), "broken TRL-01 at lines");
    attack(
        |_, e| e.lines.insert(1, e.lines[1].clone()),
        "broken TRL-01 at lines",
    );
    attack(|_, e| e.lines[0].block = 1, "broken TRL-01 at lines");
    attack(|_, e| e.lines[0].block = 3, "broken TRL-01 at lines");
    let swapped_chains = |e: &mut Evidence| {
        let chain = e.lines[0].chain.clone();
        e.lines[0].chain = std::mem::replace(&mut e.lines[1].chain, chain);
    };
    attack(|_, e| swapped_chains(e), "broken TRL-01 at lines");
    // Moved to another block with the path of a line that is there.
    attack(
        |w, e| {
            e.lines[0].block = 1;
            e.lines[0].line.seq = w.blocks[1].leaf.first_seq;
        },
        "broken TRL-01 at lines",
    );
}

#[test]
fn no_line_can_be_changed() {
    let altered = "broken TRL-01 at lines";
    let update = |e: &mut Evidence| line_of(e, Op::Update);
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].line.actor.as_mut().unwrap().app = Some("other".into())
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].line.at = world::instant(1)
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].line.columns = None
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].line.patient_prev = e.lines[0].line.patient_prev
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].line.row = Some(Digest::of(&[b"another row"]))
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].line.patient = Some(Patient::Many)
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].chain.0[40] ^= 1
        },
        altered,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].chain.0.clear()
        },
        altered,
    );
}

#[test]
fn a_neighbours_line_cannot_stand_in() {
    let neighbours = |w: &World| {
        w.lines
            .iter()
            .find(|l| l.patient == Some(w.pseudonym("pt-2")))
            .unwrap()
            .seq
    };
    let stranger = "broken EVD-03 at subject";
    attack(
        |w, e| {
            let proof = w.line_proof(neighbours(w), false);
            let at = e
                .lines
                .iter()
                .position(|l| l.line.seq > proof.line.seq)
                .unwrap();
            e.lines[at] = proof;
        },
        stranger,
    );
    attack(
        |w, e| {
            let proof = w.line_proof(neighbours(w), false);
            let at = e
                .lines
                .iter()
                .position(|l| l.line.seq > proof.line.seq)
                .unwrap();
            e.lines.insert(at, proof);
        },
        stranger,
    );
    // A line about nobody, such as a checkpoint, has no place either.
    attack(|w, e| e.lines.insert(0, w.line_proof(0, false)), stranger);
}

#[test]
fn a_metarecord_is_no_line() {
    attack(
        |w, e| {
            let last = w.blocks[2].tree.count() - 1;
            let proof = e.lines.last_mut().unwrap();
            proof.chain = Blob(w.blocks[2].tree.chain(last).unwrap().encode().unwrap());
        },
        "broken TRL-01 at lines",
    );
}

// Values.

#[test]
fn no_value_can_be_changed() {
    let other = "broken EVD-02 at values";
    let update = |e: &mut Evidence| line_of(e, Op::Update);
    attack(|_, e| column(e).value = Some("120 mmHg".into()), other);
    attack(|_, e| column(e).value = None, other);
    attack(|_, e| column(e).nonce = Some(Bytes32([0; 32])), other);
    attack(|_, e| column(e).nonce = None, other);
    attack(|_, e| column(e).name = "status".into(), other);
    attack(|_, e| column(e).name = "x".repeat(1 << 16), other);
    attack(
        |_, e| column(e).bytes = Some(Blob(b"140 mmHg".to_vec())),
        other,
    );
    attack(|_, e| column(e).hidden = Some(Bytes32([0; 32])), other);
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i]
                .open
                .as_mut()
                .unwrap()
                .columns
                .as_mut()
                .unwrap()
                .swap(0, 1)
        },
        other,
    );
    attack(
        |_, e| {
            let i = update(e);
            drop(
                e.lines[i]
                    .open
                    .as_mut()
                    .unwrap()
                    .columns
                    .as_mut()
                    .unwrap()
                    .pop(),
            )
        },
        other,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i].open.as_mut().unwrap().columns = Some(vec![])
        },
        other,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i]
                .open
                .as_mut()
                .unwrap()
                .person
                .as_mut()
                .unwrap()
                .value = "EE".into()
        },
        other,
    );
    attack(
        |_, e| {
            let i = update(e);
            e.lines[i]
                .open
                .as_mut()
                .unwrap()
                .person
                .as_mut()
                .unwrap()
                .nonce
                .0[0] ^= 1
        },
        other,
    );
    attack(
        |_, e| {
            e.lines
                .last_mut()
                .unwrap()
                .open
                .as_mut()
                .unwrap()
                .raw
                .as_mut()
                .unwrap()
                .bytes
                .as_mut()
                .unwrap()
                .0
                .push(b' ')
        },
        other,
    );
}

#[test]
fn nothing_can_be_disclosed_that_was_not_committed_to() {
    let other = "broken EVD-02 at values";
    attack(
        |_, e| {
            let columns = e.lines[0].open.clone();
            let read = line_of(e, Op::Read);
            e.lines[read].open = columns;
        },
        other,
    );
    attack(
        |_, e| {
            let update = line_of(e, Op::Update);
            let person = e.lines[update].open.as_ref().unwrap().person.clone();
            e.lines[0].open.as_mut().unwrap().person = person;
        },
        other,
    );
}

#[test]
fn what_an_opening_leaves_out_is_only_not_shown() {
    attack(|_, e| e.lines[0].open = None, "intact");
}

// Subject.

#[test]
fn nobody_elses_list_can_be_shown() {
    let mismatch = "broken EVD-03 at subject";
    attack(|_, e| e.subject.id = "pt-2".into(), mismatch);
    attack(
        |w, e| e.subject.proof = Blob(w.vrf.prove(&patient_alpha(ORIGIN, "pt-2")).1.to_vec()),
        mismatch,
    );
    attack(|_, e| e.subject.proof.0[0] ^= 1, mismatch);
    attack(|_, e| e.subject.proof.0.push(0), mismatch);
    let other = vrf::SecretKey::from_seed(&[0x66; 32]);
    attack(
        |_, e| e.subject.proof = Blob(other.prove(&patient_alpha(ORIGIN, "pt-1")).1.to_vec()),
        mismatch,
    );
    // Another person's evidence under this person's name.
    attack(
        |w, e| {
            let subject = e.subject.clone();
            *e = w.evidence("pt-2");
            e.subject = subject;
        },
        mismatch,
    );
    // A stranger's empty list under this person's name.
    attack(
        |w, e| {
            let subject = e.subject.clone();
            *e = w.evidence("pt-3");
            e.subject = subject;
        },
        "broken TRL-02 at complete",
    );
}

// Map.

#[test]
fn no_list_can_be_denied_or_shortened() {
    let denied = "broken TRL-02 at complete";
    attack(
        |_, e| {
            e.map.many.leaf = None;
            e.lines.retain(|l| l.line.patient != Some(Patient::Many));
        },
        denied,
    );
    attack(
        |w, e| {
            // The absent stranger's path, or its neighbour, for the list of *many.
            e.map.many = w.map_entry(&w.pseudonym("pt-3"));
            e.lines.retain(|l| l.line.patient != Some(Patient::Many));
        },
        denied,
    );
    attack(
        |_, e| {
            e.map.unknown.leaf = None;
            e.map.unknown.path.other = Some(OtherLeaf {
                key: Bytes32([9; 32]),
                value: Bytes32([9; 32]),
            });
            e.lines.retain(|l| l.line.patient != Some(Patient::Unknown));
        },
        denied,
    );
    attack(|_, e| e.map.many.path.siblings.clear(), denied);
    attack(
        |_, e| e.map.many.path.siblings.resize(257, Bytes32([0; 32])),
        denied,
    );
    attack(
        |_, e| std::mem::swap(&mut e.map.many, &mut e.map.unknown),
        denied,
    );
    attack(
        |_, e| e.map.patient.leaf.as_mut().unwrap().0[9] ^= 1,
        denied,
    );
}

#[test]
fn a_list_ends_where_the_map_ends_it() {
    let denied = "broken TRL-02 at complete";
    // The lines and the map of an earlier head under the later one.
    let earlier = |w: &World| {
        let mut state = pitser_evidence::state::State::new();
        for line in &w.lines[..w.blocks[1].leaf.first_seq as usize] {
            state
                .apply(line, pitser_evidence::Line::hash(&line.encode()))
                .unwrap();
        }
        state
    };
    attack(
        |w, e| {
            let mut state = earlier(w);
            let subject = w.pseudonym("pt-1");
            e.map.patient.leaf = state
                .patient(&subject)
                .unwrap()
                .map(|leaf| Blob(leaf.encode()));
            e.map.patient.path = state.prove_patient(&subject).unwrap();
            e.lines
                .retain(|l| l.block == 0 || l.line.patient != Some(subject));
        },
        denied,
    );
    attack(|_, e| e.map.block = 1, denied);
    attack(|_, e| e.map.block = 3, denied);
}

// Head and log.

#[test]
fn only_the_cosigned_head_counts() {
    attack(|w, e| e.head = w.head(3).to_string(), "unconfirmed at head");
    attack(
        |w, e| e.head = cosigned(w.head(2)).to_string(),
        "broken TRL-02 at log",
    );
    attack(|_, e| e.head.clear(), "broken TRL-04 at head");
    attack(
        |w, e| e.head = cosigned(w.head(0)).to_string(),
        "broken TRL-04 at head",
    );
    attack(
        |w, e| {
            let [first, _] = witnesses();
            let mut head = w.head(3);
            head.add(first.cosign(head.text(), 15)).unwrap();
            e.head = head.to_string();
        },
        "unconfirmed at head",
    );
    // A witness's line from another head.
    attack(
        |w, e| {
            let mut head = w.head(3);
            let other = cosigned(w.head(2));
            other.signatures()[1..]
                .iter()
                .for_each(|line| head.add(line.clone()).unwrap());
            e.head = head.to_string();
        },
        "broken TRL-04 at head",
    );
    // A head of another log, cosigned, under this trail's name.
    attack(
        |w, e| {
            let other = SigningKey::from_seed("other.example/hospital", &[1; 32]).unwrap();
            let head =
                pitser_tlog::Checkpoint::new("other.example/hospital", 3, w.log.root()).unwrap();
            e.head = cosigned(head.sign(&other).unwrap()).to_string();
        },
        "broken TRL-04 at head",
    );
}

#[test]
fn a_stale_head_is_shown_as_what_it_is() {
    // All of an earlier moment, consistently: sound evidence, as of then.
    let mut world = World::new();
    let anchors = world.anchors();
    let mut evidence = world.evidence("pt-1");
    evidence.head = cosigned(world.head(2)).to_string();
    evidence.map.block = 1;
    evidence.blocks = (0..2)
        .map(|b| {
            world.block_proof(
                b,
                2,
                world.calendar().published(SEALED[b as usize], PUBLISHED),
            )
        })
        .collect();
    evidence.lines.retain(|l| l.block < 2);
    world.sign(&mut evidence);
    // The map's paths are still those of block 2.
    assert_eq!(
        judge(&evidence, Some(&anchors)),
        "broken TRL-02 at complete"
    );
    let mut state = pitser_evidence::state::State::new();
    for line in &world.lines[..world.blocks[2].leaf.first_seq as usize - 1] {
        state
            .apply(line, pitser_evidence::Line::hash(&line.encode()))
            .unwrap();
    }
    let subject = world.pseudonym("pt-1");
    for (patient, entry) in [
        (subject, &mut evidence.map.patient),
        (Patient::Many, &mut evidence.map.many),
        (Patient::Unknown, &mut evidence.map.unknown),
    ] {
        entry.leaf = state
            .patient(&patient)
            .unwrap()
            .map(|leaf| Blob(leaf.encode()));
        entry.path = state.prove_patient(&patient).unwrap();
    }
    world.sign(&mut evidence);
    assert_eq!(
        judge(&evidence, Some(&anchors)),
        "unconfirmed at audit",
        "the auditor has seen more"
    );
    evidence.audit = Some(
        world
            .audit(|s| {
                (s.block, s.size) = (1, 2);
                s.log_root = world.log.root_at(2).unwrap();
                s.map_root = world.blocks[1].leaf.map;
            })
            .to_string(),
    );
    world.sign(&mut evidence);
    // Witnesses cosign a head again whenever they are asked: that proves nothing about
    // what came after its last block.
    let report = verify(&evidence, Some(&anchors), JUDGED);
    assert_eq!(outcome(&report), "intact");
    assert_eq!(report.as_of, Some(Second(SEALED[1])));
    assert_eq!(report.witnessed_at, Some(Second(COSIGNED[1])));
}

#[test]
fn a_block_stands_where_the_log_says() {
    let missing = "broken TRL-02 at log";
    attack(|_, e| e.blocks.insert(1, e.blocks[1].clone()), missing);
    attack(|_, e| e.blocks.swap(0, 1), missing);
    attack(|_, e| e.blocks[0].block = 7, missing);
    attack(|_, e| e.blocks[0].leaf.0[30] ^= 1, missing);
    attack(|_, e| e.blocks[0].leaf.0.clear(), missing);
    attack(|_, e| e.blocks[0].path[0].0[0] ^= 1, missing);
    attack(|_, e| e.blocks[0].path.push(Bytes32([0; 32])), missing);
    attack(|_, e| e.blocks[0].path.truncate(1), missing);
    attack(|_, e| e.blocks[1].leaf = e.blocks[0].leaf.clone(), missing);
    attack(|_, e| drop(e.blocks.remove(0)), "broken TRL-01 at lines");
    attack(|_, e| drop(e.blocks.pop()), "broken TRL-01 at lines");
    attack(
        |_, e| {
            let mut leaf = LogLeaf::decode(&e.blocks[2].leaf.0).unwrap();
            leaf.map = Digest::of(&[b"another map"]);
            e.blocks[2].leaf = Blob(leaf.encode());
        },
        missing,
    );
}

// Seals.

#[test]
fn only_a_blocks_own_seal_holds() {
    let invalid = "broken SEAL-02 at seals";
    attack(|_, e| e.blocks[0].seal = e.blocks[1].seal.clone(), invalid);
    attack(|_, e| e.blocks[0].seal = None, "unconfirmed at seals");
    attack(|_, e| e.blocks[0].seal = Some(Blob(vec![])), invalid);
    attack(
        |_, e| e.blocks[0].seal.as_mut().unwrap().0[60] ^= 1,
        invalid,
    );
    // A genuine seal of another root, and of this root at a level too low.
    attack(
        |w, e| {
            let other = Calendar::new([(
                SEALED[0],
                (Digest::of(&[b"another root"]).0, w.blocks[0].leaf.level),
            )]);
            e.blocks[0].seal = Some(Blob(other.published(SEALED[0], PUBLISHED)));
        },
        invalid,
    );
    attack(
        |w, e| {
            let lower = Calendar::new([(SEALED[0], (w.blocks[0].leaf.root.0, 0))]);
            e.blocks[0].seal = Some(Blob(lower.published(SEALED[0], PUBLISHED)));
        },
        invalid,
    );
}

#[test]
fn a_seal_of_another_calendar_does_not_count() {
    // A calendar of the operator's own, with the very roots, and any times.
    let own = |w: &World, at: u64| {
        Calendar::new([(at, (w.blocks[0].leaf.root.0, w.blocks[0].leaf.level))])
    };
    attack(
        |w, e| e.blocks[0].seal = Some(Blob(own(w, 5).published(5, PUBLISHED))),
        "broken SEAL-02 at seals",
    );
    attack(
        |w, e| e.blocks[0].seal = Some(Blob(own(w, 5).published(5, PUBLISHED + 1))),
        "unconfirmed at seals",
    );
    attack(
        |w, e| e.blocks[0].seal = Some(Blob(own(w, 5).keyed(5))),
        "unconfirmed at seals",
    );
    // The true calendar, extended to a publication that the anchors do not have.
    attack(
        |w, e| e.blocks[0].seal = Some(Blob(w.calendar().published(5, PUBLISHED + 1))),
        "unconfirmed at seals",
    );
    // A publications file does not vouch for itself.
    attack(
        |w, e| {
            e.blocks[0].seal = Some(Blob(w.calendar().published(5, PUBLISHED + 1)));
            e.publications = Some(Blob(w.calendar().file(PUBLISHED + 1)));
        },
        "unconfirmed at seals",
    );
}

#[test]
fn seals_follow_one_another_in_time() {
    let mut world = World::new();
    let mut anchors = world.anchors();
    let mut evidence = world.evidence("pt-1");
    let roots = world.blocks.iter().map(|b| (b.leaf.root.0, b.leaf.level));
    let late_first = Calendar::new([10, 9, 14].into_iter().zip(roots));
    for (proof, at) in evidence.blocks.iter_mut().zip([10, 9, 14]) {
        proof.seal = Some(Blob(late_first.published(at, PUBLISHED)));
    }
    anchors.publications[0].code = late_first.publication(PUBLISHED);
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "broken SEAL-02 at seals");
}

// Audit.

#[test]
fn only_an_auditor_of_this_head_counts() {
    let waiting = "unconfirmed at audit";
    attack(|_, e| e.audit = None, waiting);
    attack(|_, e| e.audit = Some(String::new()), waiting);
    attack(|_, e| e.audit = Some(e.head.clone()), waiting);
    let by = |w: &World, name: &str, seed: u8| {
        let note = w.audit(|_| {});
        Note::sign(
            note.text(),
            &SigningKey::from_seed(name, &[seed; 32]).unwrap(),
        )
        .unwrap()
        .to_string()
    };
    attack(
        |w, e| e.audit = Some(by(w, "auditor.example", 0x55)),
        waiting,
    );
    attack(|w, e| e.audit = Some(by(w, "other.example", 6)), waiting);
    attack(
        |w, e| e.audit = Some(w.audit(|s| (s.block, s.size) = (1, 2)).to_string()),
        waiting,
    );
    attack(
        |w, e| {
            e.audit = Some(
                w.audit(|s| s.origin = "other.example/hospital".into())
                    .to_string(),
            )
        },
        waiting,
    );
    // What an auditor of the anchors has signed contradicts the file.
    let fork = "broken TRL-04 at audit";
    attack(
        |w, e| {
            e.audit = Some(
                w.audit(|s| s.genesis = Digest::of(&[b"another"]))
                    .to_string(),
            )
        },
        fork,
    );
    attack(
        |w, e| e.audit = Some(w.audit(|s| s.log_root = [0; 32]).to_string()),
        fork,
    );
    attack(
        |w, e| e.audit = Some(w.audit(|s| s.map_root = Digest::of(&[b"map"])).to_string()),
        fork,
    );
    attack(
        |w, e| e.audit = Some(w.audit(|s| s.block = 1).to_string()),
        fork,
    );
    attack(
        |_, e| e.audit = Some(e.audit.as_ref().unwrap().replace("\n18\n", "\n19\n")),
        fork,
    );
}

#[test]
fn the_trail_is_not_its_own_auditor() {
    let mut world = World::new();
    let mut anchors = world.anchors();
    let own = SigningKey::from_seed("auditor.example", &[1; 32]).unwrap();
    anchors.auditors[0] = KeyAnchor::new(own.verifier());
    let mut evidence = world.evidence("pt-1");
    evidence.audit = Some(
        Note::sign(world.audit(|_| {}).text(), &own)
            .unwrap()
            .to_string(),
    );
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at audit");
}

// Whole trails, made consistently.

/// Judges the evidence of a trail that was made otherwise from the start, by
/// the anchors of the true one. `stolen` decides what of the true trail's
/// cosigned head and audited statement is put in.
#[track_caller]
fn rewritten(
    mut other: World,
    stolen: impl FnOnce(&mut World, &World, &mut Evidence),
    expected: &str,
) {
    let mut truth = World::new();
    let anchors = truth.anchors();
    let sound = truth.evidence("pt-1");
    let mut evidence = other.evidence("pt-1");
    // The authority seals whatever it is asked to; witnesses and auditors do not sign a fork.
    evidence.head = other.head(3).to_string();
    evidence.audit = sound.audit;
    for (proof, at) in evidence.blocks.iter_mut().zip(SEALED) {
        proof.seal = Some(Blob(other.calendar().keyed(at)));
    }
    stolen(&mut other, &truth, &mut evidence);
    other.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), expected);
}

#[test]
fn history_cannot_be_written_anew() {
    let excused = || {
        World::meddled(7, &|line| {
            if line.op == Op::Read {
                line.purpose = Some("TREAT".into());
            }
        })
    };
    rewritten(excused(), |_, _, _| {}, "broken TRL-04 at audit");
    rewritten(
        excused(),
        |_, _, e| e.audit = None,
        "unconfirmed at head, seals, audit",
    );
    let true_head = |_: &mut World, truth: &World, e: &mut Evidence| {
        e.head = cosigned(truth.head(3)).to_string()
    };
    rewritten(excused(), true_head, "broken TRL-02 at log");
}

#[test]
fn a_trail_begun_again_is_a_fork() {
    let begun_again = || World::meddled(9, &|_| {});
    rewritten(begun_again(), |_, _, _| {}, "broken TRL-04 at genesis");
    // With the old genesis line in front of the new lines.
    let in_front =
        |_: &mut World, truth: &World, e: &mut Evidence| e.genesis = truth.lines[0].clone();
    rewritten(begun_again(), in_front, "broken TRL-04 at audit");
}

#[test]
fn a_genesis_is_tied_to_its_log_by_the_auditor() {
    // A trail was begun again under the same name and keys, and witnesses and
    // auditor only ever saw the second one. A verifier who knows the first
    // once found it intact: the line in the file was his, the log was not.
    let truth = World::new();
    let anchors = truth.anchors();
    let mut second = World::meddled(9, &|_| {});
    let mut evidence = second.evidence("pt-1");
    evidence.genesis = truth.lines[0].clone();
    second.sign(&mut evidence);
    let anchors = Anchors {
        publications: second.anchors().publications,
        ..anchors
    };
    assert_eq!(judge(&evidence, Some(&anchors)), "broken TRL-04 at audit");
}

#[test]
fn a_map_that_does_not_follow_from_the_lines_finds_no_auditor() {
    // The operator's map in the last block forgets the last line about pt-1.
    // Witnesses look at no map: they cosign its log.
    let mut world = World::new();
    let subject = world.pseudonym("pt-1");
    let last = world
        .lines
        .iter()
        .rfind(|l| l.patient == Some(subject))
        .unwrap()
        .seq;
    let mut state = pitser_evidence::state::State::new();
    for line in &world.lines[..usize::try_from(last).unwrap()] {
        state
            .apply(line, pitser_evidence::Line::hash(&line.encode()))
            .unwrap();
    }
    let forged = Digest(
        pitser_ksi::Imprint::new(pitser_ksi::Algorithm::Sha256, &state.root().unwrap()).unwrap(),
    );
    world.rewrite_leaf(2, |leaf| leaf.map = forged);
    let anchors = world.anchors();
    let mut evidence = world.evidence("pt-1");
    evidence.audit = None;
    evidence.lines.retain(|l| l.line.seq != last);
    for (patient, entry) in [
        (subject, &mut evidence.map.patient),
        (Patient::Many, &mut evidence.map.many),
        (Patient::Unknown, &mut evidence.map.unknown),
    ] {
        entry.leaf = state
            .patient(&patient)
            .unwrap()
            .map(|leaf| Blob(leaf.encode()));
        entry.path = state.prove_patient(&patient).unwrap();
    }
    world.sign(&mut evidence);
    assert_eq!(
        judge(&evidence, Some(&anchors)),
        "unconfirmed at audit",
        "the operator's map is the operator's word"
    );
    evidence.audit = Some(World::new().audit(|_| {}).to_string());
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "broken TRL-04 at audit");
    // Nor does a statement help that an impostor signs.
    let impostor = SigningKey::from_seed(auditor().name(), &[0x77; 32]).unwrap();
    evidence.audit = Some(
        Note::sign(world.audit(|_| {}).text(), &impostor)
            .unwrap()
            .to_string(),
    );
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), "unconfirmed at audit");
}

#[test]
fn erased_contents_leave_the_proofs_whole() {
    // The vault's key is destroyed: no nonce can be made, nothing is opened.
    attack(
        |_, e| e.lines.iter_mut().for_each(|l| l.open = None),
        "intact",
    );
}

/// The first lines of pt-1 are sealed at second 5.
#[test]
fn a_line_that_was_sealed_before_the_time_it_states_is_not_confirmed() {
    for (ahead_s, expected) in [
        (0, "intact"),
        (600, "intact"),
        (601, "unconfirmed at lines"),
        (10_000_000, "unconfirmed at lines"),
    ] {
        let mut world = World::meddled(7, &|line| {
            if line.seq == 1 {
                line.at = world::instant(world::SEALED[0] + ahead_s);
            }
        });
        let anchors = world.anchors();
        let evidence = world.evidence("pt-1");
        assert_eq!(judge(&evidence, Some(&anchors)), expected, "{ahead_s} s");
    }
}

/// Has lines of a trail accept its finding, which is about patient pt-2, and judges the
/// evidence about that patient. `accepting` says which lines do.
#[track_caller]
fn accepted(accepting: &[u64], change: impl Fn(&mut Line), expected: &str) {
    let sound = World::new();
    let found = sound.lines.iter().find(|line| line.op == Op::Finding);
    let found = found.unwrap().clone();
    let mut world = World::meddled(7, &|line| {
        if !accepting.contains(&line.seq) {
            return;
        }
        line.op = Op::Accept;
        line.v = line.version();
        line.table.clone_from(&found.table);
        (line.key, line.patient) = (found.key, found.patient);
        line.accept = Some(Box::new(Acceptance {
            finding: Prev {
                hash: Line::hash(&found.encode()),
                seq: found.seq,
            },
        }));
        line.actor = Some(Actor {
            app: None,
            binding: Binding::B,
            client: None,
            person: Some(Digest::of(&[b"person"])),
            role: None,
        });
        line.raw = Some(Digest::of(&[b"reason"]));
        change(line);
    });
    let anchors = world.anchors();
    let mut evidence = world.evidence("pt-2");
    evidence.lines.iter_mut().for_each(|line| line.open = None);
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), expected);
}

/// Lines 21 and 22 are others': a `delete` of the finding's record, and a `read`.
#[test]
fn a_finding_of_the_list_is_accepted_once() {
    accepted(&[], |_| {}, "intact");
    accepted(&[21], |_| {}, "intact");
    let broken = "broken TRL-01 at complete";
    accepted(&[21, 22], |_| {}, broken);
    let finding = |line: &mut Line, hash: Digest, seq: u64| {
        line.accept = Some(Box::new(Acceptance {
            finding: Prev { hash, seq },
        }));
    };
    accepted(
        &[21],
        |line| finding(line, Digest::of(&[b"other"]), 13),
        broken,
    );
    // Lines that are no findings: of the list, of others' and of nobody's.
    let sound = World::new().lines;
    for seq in [5, 8, 14] {
        let hash = Line::hash(&sound[usize::try_from(seq).unwrap()].encode());
        accepted(&[21], |line| finding(line, hash, seq), broken);
    }
    // The finding stands in another's list, or is about another record.
    let sample = sound[8].clone();
    accepted(&[22], |line| line.key = sample.key, broken);
}

/// What a line does about patient pt-2: its number, its op, and what it lifts.
type Done = (u64, Op, Option<Lifts>);

/// A line, by its hash or by another one.
#[derive(Debug, Clone, Copy)]
enum Lifts {
    Line(u64),
    Other(u64, Digest),
}

/// The usual blocks of a trail with these rules, whose lines do as `done` says. `lines` are
/// those of the same trail as far as they are lifted.
fn decided(rules: u8, done: &[Done], lines: &[Line]) -> World {
    let of = World::new().pseudonym("pt-2");
    World::meddled(7, &|line| {
        if let Some(genesis) = &mut line.genesis {
            genesis.rules = Some(rules);
            line.v = line.version();
        }
        let Some((seq, op, lifts)) = done.iter().find(|(seq, ..)| *seq == line.seq) else {
            return;
        };
        let mut decided = Line::new(*op, *seq, line.at, "guardian", "841");
        decided.patient = Some(of);
        if op.is_answered_for() {
            decided.actor = Some(Actor {
                app: None,
                binding: Binding::B,
                client: None,
                person: Some(Digest::of(&[b"person"])),
                role: None,
            });
            decided.raw = Some(Digest::of(&[b"reason"]));
        }
        decided.erase = (*op == Op::Erase).then(|| {
            Box::new(Erasure {
                basis: "GDPR art. 17(1)(d)".into(),
                deciders: [Digest::of(&[b"one"]), Digest::of(&[b"two"])],
            })
        });
        decided.release = lifts.map(|lifts| {
            let (seq, hash) = match lifts {
                Lifts::Line(seq) => (seq, Line::hash(&lines[seq as usize].encode())),
                Lifts::Other(seq, hash) => (seq, hash),
            };
            let hold = Prev { hash, seq };
            Box::new(Release { hold })
        });
        *line = decided;
    })
}

/// Judges the evidence about patient pt-2 of that trail.
#[track_caller]
fn held(rules: u8, done: &[Done], expected: &str) {
    // A line's hash depends on those before it alone: each step knows what it lifts.
    let mut lines = Vec::new();
    for steps in 0..done.len() {
        lines = decided(rules, &done[..steps], &lines).lines;
    }
    let mut world = decided(rules, done, &lines);
    let anchors = world.anchors();
    let mut evidence = world.evidence("pt-2");
    evidence.lines.iter_mut().for_each(|line| line.open = None);
    world.sign(&mut evidence);
    assert_eq!(judge(&evidence, Some(&anchors)), expected, "{done:?}");
}

/// Lines 10, 13, 14 and 15 are events of their own; no later line is about their records.
#[test]
fn whom_a_hold_keeps_was_not_erased() {
    use Op::{Erase, Hold, Release};
    let broken = "broken TRL-01 at complete";
    let of = |seq| Some(Lifts::Line(seq));
    held(RULES, &[(10, Hold, None)], "intact");
    held(RULES, &[(13, Erase, None)], "intact");
    held(
        RULES,
        &[(10, Hold, None), (13, Release, of(10)), (14, Erase, None)],
        "intact",
    );
    held(RULES, &[(10, Hold, None), (13, Erase, None)], broken);
    held(
        RULES,
        &[(10, Hold, None), (13, Erase, None), (14, Release, of(10))],
        broken,
    );
    let one_of_two = [
        (10, Hold, None),
        (13, Hold, None),
        (14, Release, of(13)),
        (15, Erase, None),
    ];
    held(RULES, &one_of_two, broken);
    // What is lifted is a hold of the list, once, and by its hash.
    held(RULES, &[(13, Release, of(10))], broken);
    held(RULES, &[(13, Release, of(9))], broken);
    let other = Some(Lifts::Other(10, Digest::of(&[b"other"])));
    held(RULES, &[(10, Hold, None), (13, Release, other)], broken);
    let twice = [
        (10, Hold, None),
        (13, Release, of(10)),
        (14, Release, of(10)),
    ];
    held(RULES, &twice, broken);
    // Trails of before have none.
    held(16, &[(10, Hold, None)], broken);
    held(16, &[(13, Erase, None)], "intact");
}
