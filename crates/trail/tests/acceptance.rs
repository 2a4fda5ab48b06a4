//! Findings are accepted once, by lines that any reader checks, also one that goes on
//! from the map's commit.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

mod common;

use common::{at, genesis};
use pitser_evidence::Code;
use pitser_evidence::line::{Acceptance, Binding, Finding, Line, Op, Patient, Prev};
use pitser_trail::draft::DraftActor;
use pitser_trail::export::Exporter;
use pitser_trail::{Body, Draft, Layout, PatientId, ReadError, Trail, read};
use std::path::Path;

const REASON: &[u8] = b"the nightly import";

fn finding(pos: u64) -> Draft {
    Draft {
        table: Some("observation".into()),
        key: Some(vec![b"tobs-1".to_vec()]),
        patient: Some(PatientId::Id("pt-1".into())),
        body: Some(Box::new(Body::Finding(Finding {
            about: None,
            code: Code::Unattributed,
            text: "update without an attributed actor".into(),
        }))),
        ..Draft::new(Op::Finding, at(pos), "guardian", pos.to_string())
    }
}

fn acceptance(trail: &Trail, seq: u64) -> Draft {
    let line = trail.line(seq).unwrap().unwrap();
    Draft {
        table: line.table.clone(),
        record: line.key,
        patient: Some(PatientId::Id("pt-1".into())),
        actor: Some(DraftActor {
            app: None,
            binding: Binding::B,
            client: None,
            person: Some("Mari Maasikas".into()),
            role: None,
        }),
        raw: Some(REASON.into()),
        body: Some(Box::new(Body::Accept(Acceptance {
            finding: Prev {
                hash: Line::hash(&line.encode()),
                seq,
            },
        }))),
        ..Draft::new(Op::Accept, at(9), "guardian", "9")
    }
}

/// A trail with two findings, lines 1 and 2, of which the first was accepted, by
/// line 3; closed with a block, so that the map is committed.
fn accepted(dir: &Path) {
    let layout = Layout::new(dir);
    let mut trail = Trail::create(layout, "test.example/hospital", &genesis()).unwrap();
    assert_eq!(trail.append(vec![finding(1)]).unwrap(), 1);
    trail.append(vec![finding(2)]).unwrap();
    trail.commit().unwrap();
    let draft = acceptance(&trail, 1);
    trail.append(vec![draft]).unwrap();
    trail.commit().unwrap();
    let mapping = pitser_evidence::codec::Digest::of(&[]);
    trail.close_block(at(10), "9", mapping, "test").unwrap();
}

fn open(dir: &Path) -> Trail {
    Trail::open::<()>(Layout::new(dir)).unwrap().0
}

#[test]
fn who_and_why_are_in_the_vault_and_not_in_the_trail() {
    let dir = tempfile::tempdir().unwrap();
    accepted(dir.path());
    let mut lines = Vec::new();
    read(&Layout::new(dir.path()), None, |line, _| {
        lines.push(line.clone());
    })
    .unwrap();
    assert_eq!(
        (lines[3].op, lines[3].v, lines[3].patient),
        (Op::Accept, 3, lines[1].patient)
    );
    let text = std::fs::read(Layout::new(dir.path()).segment(0)).unwrap();
    for secret in [REASON, b"Mari"] {
        assert!(!text.windows(secret.len()).any(|part| part == secret));
    }
    let mut exporter = Exporter::open(Layout::new(dir.path())).unwrap();
    let history = exporter
        .patient_history("pt-1")
        .unwrap()
        .map(Result::unwrap)
        .collect::<Vec<_>>();
    let content = history[2].content.as_ref().unwrap();
    assert_eq!(content.person.as_deref(), Some("Mari Maasikas"));
    assert_eq!(content.raw.as_deref(), Some(REASON));
}

/// A gap is in no table and nobody's.
#[test]
fn a_finding_about_nothing_in_particular_is_accepted_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let mut trail = Trail::create(layout, "test.example/hospital", &genesis()).unwrap();
    let nobodys = |draft: Draft| Draft {
        table: None,
        key: None,
        record: None,
        patient: None,
        ..draft
    };
    trail.append(vec![nobodys(finding(1))]).unwrap();
    trail.commit().unwrap();
    let draft = nobodys(acceptance(&trail, 1));
    trail.append(vec![draft]).unwrap();
    trail.commit().unwrap();
    drop(trail);
    let (_, content) = open(dir.path()).vault().get(2).unwrap().unwrap();
    assert_eq!(content.person.as_deref(), Some("Mari Maasikas"));
    assert_eq!(content.raw.as_deref(), Some(REASON));
}

/// A patient is erased, and then somebody answers for what was found before: in that
/// patient's list, which stays closed.
#[test]
fn who_answers_for_a_finding_about_an_erased_patient_stands_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    accepted(dir.path());
    let mut trail = open(dir.path());
    let (code, _) = trail
        .request_erasure("pt-1", "GDPR art. 17(1)(d)", "Mari", at(20))
        .unwrap();
    trail.confirm_erasure(&code, "Jaan", at(21), "9").unwrap();
    let of = trail.line(2).unwrap().unwrap();
    // Not in nobody's list.
    drop(trail);
    let mut trail = open(dir.path());
    let nobodys = Draft {
        patient: None,
        ..acceptance(&trail, 2)
    };
    let error = trail.append(vec![nobodys]).unwrap_err().to_string();
    assert!(error.contains("not in the lists"), "{error}");
    drop(trail);

    let mut trail = open(dir.path());
    let Some(Patient::Pseudonym(pseudonym)) = of.patient else {
        panic!("the finding is a patient's");
    };
    let draft = Draft {
        patient: Some(PatientId::Erased(pseudonym)),
        ..acceptance(&trail, 2)
    };
    let seq = trail.append(vec![draft]).unwrap();
    trail.commit().unwrap();
    let mapping = pitser_evidence::codec::Digest::of(&[]);
    trail.close_block(at(22), "9", mapping, "test").unwrap();
    drop(trail);

    // By the map's commit: nobody came back, and nobody knows whose the record is.
    let mut trail = open(dir.path());
    let patient = of.patient.unwrap();
    assert!(trail.state().is_erased(&patient).unwrap());
    assert!(!trail.vault().has_key(&patient.to_string()).unwrap());
    let (_, content) = trail.vault().get(seq).unwrap().unwrap();
    assert_eq!(content.raw.as_deref(), Some(REASON));
    assert!(trail.vault().get(1).unwrap().is_none(), "that is closed");
    let read_by_somebody = Draft {
        table: of.table.clone(),
        record: of.key,
        ..Draft::new(Op::Read, at(23), "ehr", "10")
    };
    trail.append(vec![read_by_somebody]).unwrap();
    trail.commit().unwrap();
    drop(trail);
    let mut accepts = Vec::new();
    read(&Layout::new(dir.path()), None, |line, _| {
        accepts.extend(line.accept.as_ref().map(|_| (line.seq, line.patient)));
    })
    .unwrap();
    assert_eq!(accepts, [(3, of.patient), (seq, of.patient)]);
}

/// After a restart the writer goes on from the map's commit and reads none of the
/// lines before it.
#[test]
fn nothing_is_accepted_twice_or_instead_of_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    accepted(dir.path());
    for (seq, why) in [(1, "accepted before"), (3, "no finding"), (0, "no finding")] {
        let mut trail = open(dir.path());
        let draft = acceptance(&trail, seq);
        let error = trail.append(vec![draft]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let mut trail = open(dir.path());
    let draft = acceptance(&trail, 2);
    trail.append(vec![draft]).unwrap();
    trail.commit().unwrap();
    drop(trail);
    read(&Layout::new(dir.path()), None, |_, _| {}).unwrap();
}

/// What another program could write at the trail's end, in keeping with all else.
#[test]
fn a_reader_refuses_lines_that_accept_what_they_may_not() {
    for (of, why) in [
        (1, "accepted before"),
        (3, "no finding"),
        (2, ""),
        (9, "no finding"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        accepted(dir.path());
        let segment = Layout::new(dir.path()).segment(0);
        let text = std::fs::read_to_string(&segment).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let record = Line::decode(lines[3].as_bytes()).unwrap();
        let pointer = Prev {
            hash: Line::hash(lines[3].as_bytes()),
            seq: 3,
        };
        let mut forged = Line {
            seq: lines.len() as u64,
            event: lines.len() as u64,
            prev: Some(pointer),
            patient_prev: Some(pointer),
            ..record
        };
        let named = lines
            .get(of)
            .map_or(&b"nothing"[..], |line| line.as_bytes());
        forged.accept = Some(Box::new(Acceptance {
            finding: Prev {
                hash: Line::hash(named),
                seq: (of as u64).min(forged.seq - 1),
            },
        }));
        let forged = String::from_utf8(forged.encode()).unwrap();
        std::fs::write(&segment, format!("{text}{forged}\n")).unwrap();
        let outcome = read(&Layout::new(dir.path()), None, |_, _| {});
        match outcome {
            Err(ReadError::Damaged(damage)) => {
                assert_eq!((damage.code, damage.line), (Code::LineAltered, Some(5)));
                assert!(!why.is_empty() && damage.text.contains(why), "{damage:?}");
            }
            other => assert!(other.is_ok() && why.is_empty(), "{of}: {other:?}"),
        }
        // So does a writer, which goes on from its map.
        assert_eq!(
            Trail::open::<()>(Layout::new(dir.path())).is_ok(),
            why.is_empty()
        );
    }
}
