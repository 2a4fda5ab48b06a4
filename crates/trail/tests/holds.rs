//! While a hold stands by the lines of a trail, nobody is erased, whatever became of the
//! vault; and what comes of a hold is on record.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

mod common;

use common::{at, genesis};
use pitser_evidence::Code;
use pitser_evidence::codec::Digest;
use pitser_evidence::commit::{commit_person, commit_raw};
use pitser_evidence::line::{Binding, Erasure, Line, Op, Prev};
use pitser_trail::erasure::ErasureError;
use pitser_trail::hold::{Hold, Lifted};
use pitser_trail::{Draft, Layout, PatientId, ReadError, Trail, read};
use std::path::Path;

const ORIGIN: &str = "test.example/hospital";
const CASE: &str = "court case 2-26-117";

/// A trail with lines about `pt-1` and `pt-2`.
fn populated(dir: &Path) -> Trail {
    let mut trail = Trail::create(Layout::new(dir), ORIGIN, &genesis()).unwrap();
    for patient in ["pt-1", "pt-2"] {
        trail.append(vec![read_of(patient)]).unwrap();
    }
    trail.commit().unwrap();
    trail
}

fn read_of(patient: &str) -> Draft {
    Draft {
        patient: Some(PatientId::Id(patient.into())),
        raw: Some(b"a message"[..].into()),
        ..Draft::new(Op::Read, at(1), "ehr", patient)
    }
}

fn open(dir: &Path) -> Trail {
    Trail::open::<()>(Layout::new(dir)).unwrap().0
}

fn close(trail: &mut Trail) {
    let mapping = Digest::of(&[b"mapping"]);
    trail.close_block(at(9), "6", mapping, "closed").unwrap();
}

fn hold(trail: &mut Trail, patient: &str, reason: &str) -> Hold {
    let hold = trail.add_hold(patient, reason, "Jaan", (at(5), "6"));
    hold.unwrap()
}

fn lift(trail: &mut Trail, patient: &str, line: Option<u64>) -> Result<Hold, ErasureError> {
    let lifted = Lifted {
        patient,
        line,
        reason: Some("the case is closed"),
    };
    trail.remove_hold(lifted, "Mari", (at(6), "6"))
}

fn erase(trail: &mut Trail, patient: &str) -> Result<u64, ErasureError> {
    let basis = "GDPR art. 17(1)(d)";
    let (code, _) = trail.request_erasure(patient, basis, "Mari", at(20))?;
    let erased = trail.confirm_erasure(&code, "Jaan", at(21), "6")?;
    Ok(erased.seq)
}

#[track_caller]
fn is_held(trail: &mut Trail, patient: &str) {
    let next = trail.state().next_seq();
    let refused = erase(trail, patient);
    assert!(matches!(refused, Err(ErasureError::Held(_))), "{refused:?}");
    assert_eq!(trail.state().next_seq(), next, "nothing was written");
}

#[test]
fn a_hold_and_its_end_are_lines_that_outlive_the_patients_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let patient = trail.keys().pseudonym("pt-1");
    let set = hold(&mut trail, "pt-1", CASE);
    assert_eq!((set.line, set.by.as_str()), (Some(3), "Jaan"));
    is_held(&mut trail, "pt-1");
    assert_eq!(trail.plan_erasure("pt-1").unwrap().hold, Some(set.clone()));
    assert_eq!(lift(&mut trail, "pt-1", None).unwrap(), set);
    assert!(matches!(
        lift(&mut trail, "pt-1", None),
        Err(ErasureError::NoHold)
    ));
    assert_eq!(trail.plan_erasure("pt-1").unwrap().hold, None);
    assert_eq!(erase(&mut trail, "pt-1").unwrap(), 5);
    assert!(
        trail.vault().get(1).unwrap().is_none(),
        "the read is closed"
    );
    let said = [
        (Op::Hold, "Jaan", CASE),
        (Op::Release, "Mari", "the case is closed"),
    ];
    for (seq, (op, by, why)) in (3..).zip(said) {
        let line = trail.line(seq).unwrap().unwrap();
        assert_eq!((line.op, line.v, line.patient), (op, 5, Some(patient)));
        let (key, content) = trail.vault().get(seq).unwrap().unwrap();
        assert_eq!(content.person.as_deref(), Some(by));
        assert_eq!(content.raw.as_deref(), Some(why.as_bytes()));
        let nonce = trail.nonce(&key, seq);
        let actor = line.actor.unwrap();
        assert_eq!(actor.binding, Binding::B);
        assert_eq!(actor.person, Some(commit_person(&nonce.person(), by)));
        assert_eq!(line.raw, Some(commit_raw(&nonce.raw(), why.as_bytes())));
    }
    let release = trail.line(4).unwrap().unwrap().release.unwrap();
    let set = trail.line(3).unwrap().unwrap();
    let hash = Line::hash(&set.encode());
    assert_eq!(release.hold, Prev { hash, seq: 3 });
    close(&mut trail);
    drop(trail);
    read(&Layout::new(dir.path()), None, |_, _| {}).unwrap();
}

#[test]
fn somebody_of_whom_there_is_no_line_yet_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let set = hold(&mut trail, "pt-9", CASE);
    drop(trail);
    let mut trail = open(dir.path());
    assert_eq!(trail.holds().unwrap(), [("pt-9".to_owned(), set)]);
    trail.append(vec![read_of("pt-9")]).unwrap();
    trail.commit().unwrap();
    is_held(&mut trail, "pt-9");
    lift(&mut trail, "pt-9", None).unwrap();
    erase(&mut trail, "pt-9").unwrap();
    // Also somebody who was erased, and whose identifier somebody still knows.
    hold(&mut trail, "pt-9", CASE);
    is_held(&mut trail, "pt-9");
}

#[test]
fn each_of_several_holds_stands_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let cases = ["case 1", "case 2"].map(|case| hold(&mut trail, "pt-1", case));
    hold(&mut trail, "pt-2", "case 3");
    let plan = trail.plan_erasure("pt-1").unwrap();
    assert_eq!((plan.hold, plan.more_holds), (Some(cases[0].clone()), 1));
    let next = trail.state().next_seq();
    let refused = lift(&mut trail, "pt-1", None).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("line 3, line 4"), "{text}");
    // Another patient's is none of this one's.
    let refused = lift(&mut trail, "pt-1", Some(5));
    assert!(matches!(refused, Err(ErasureError::NoHold)));
    assert_eq!(trail.state().next_seq(), next, "nothing was written");
    assert_eq!(lift(&mut trail, "pt-1", Some(4)).unwrap(), cases[1]);
    is_held(&mut trail, "pt-1");
    assert_eq!(lift(&mut trail, "pt-1", None).unwrap(), cases[0]);
    erase(&mut trail, "pt-1").unwrap();
    is_held(&mut trail, "pt-2");
}

#[test]
fn what_is_said_of_a_hold_names_nobody_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    for (reason, is_text) in [("", true), ("a\nb", true), ("pt-1 went to court", false)] {
        let refused = trail.add_hold("pt-1", reason, "Jaan", (at(5), "6"));
        match is_text {
            true => assert!(matches!(refused, Err(ErasureError::Text))),
            false => assert!(matches!(refused, Err(ErasureError::Revealing))),
        }
    }
    hold(&mut trail, "pt-1", CASE);
    for reason in [None, Some(" "), Some("pt-1 has settled")] {
        let lifted = Lifted {
            patient: "pt-1",
            line: None,
            reason,
        };
        assert!(trail.remove_hold(lifted, "Mari", (at(6), "6")).is_err());
    }
    assert_eq!(trail.state().next_seq(), 4);
    is_held(&mut trail, "pt-1");
}

/// Whoever may write in the folder puts a vault back from before the hold was set.
#[test]
fn a_vault_that_knows_of_no_hold_lets_nobody_be_erased() {
    let dir = tempfile::tempdir().unwrap();
    drop(populated(dir.path()));
    let (vault, before) = (Layout::new(dir.path()).vault(), dir.path().join("before"));
    copy(&vault, &before);
    let mut trail = open(dir.path());
    hold(&mut trail, "pt-1", CASE);
    hold(&mut trail, "pt-9", CASE);
    drop(trail);
    std::fs::remove_dir_all(&vault).unwrap();
    copy(&before, &vault);
    let mut trail = open(dir.path());
    is_held(&mut trail, "pt-1");
    // Who and why are lost, and whom nobody names.
    let pseudonym = trail.keys().pseudonym("pt-9").to_string();
    let holds = trail.holds().unwrap();
    let patients: Vec<_> = holds.iter().map(|(patient, _)| patient.as_str()).collect();
    assert_eq!(patients, ["pt-1", pseudonym.as_str()]);
    assert!(
        holds
            .iter()
            .all(|(_, it)| it.by.contains("lost") && it.reason.contains("lost"))
    );
    // It is lifted as any.
    lift(&mut trail, "pt-1", None).unwrap();
    erase(&mut trail, "pt-1").unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(std::fs::copy(path, to).unwrap()),
        }
    }
}

/// From a commit of the map, from all lines, and from lines after a commit.
#[test]
fn what_stands_is_known_however_the_trail_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    hold(&mut trail, "pt-1", "case 1");
    hold(&mut trail, "pt-1", "case 2");
    close(&mut trail);
    drop(trail);
    let mut trail = open(dir.path());
    lift(&mut trail, "pt-1", Some(3)).unwrap();
    hold(&mut trail, "pt-2", "case 3");
    let holds = trail.holds().unwrap();
    assert_eq!(holds.len(), 2);
    drop(trail);
    let mut trail = open(dir.path());
    assert_eq!(trail.holds().unwrap(), holds);
    drop(trail);
    std::fs::remove_dir_all(Layout::new(dir.path()).map()).unwrap();
    let mut trail = open(dir.path());
    assert_eq!(trail.holds().unwrap(), holds);
    for patient in ["pt-1", "pt-2"] {
        is_held(&mut trail, patient);
        lift(&mut trail, patient, None).unwrap();
        erase(&mut trail, patient).unwrap();
    }
}

/// What another program could write at the trail's end, in keeping with all else.
#[test]
fn a_reader_refuses_to_erase_whom_a_hold_keeps() {
    for is_held in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut trail = populated(dir.path());
        hold(&mut trail, "pt-1", CASE);
        if !is_held {
            lift(&mut trail, "pt-1", None).unwrap();
        }
        close(&mut trail);
        let patient = trail.keys().pseudonym("pt-1");
        drop(trail);
        let segment = Layout::new(dir.path()).segment(0);
        let text = std::fs::read_to_string(&segment).unwrap();
        let lines: Vec<_> = text.lines().collect();
        // The list ends with the hold, or what lifted it; then comes the checkpoint.
        let seq = lines.len() as u64;
        let last = lines[lines.len() - 2].as_bytes();
        let forged = Line {
            patient: Some(patient),
            patient_prev: Some(Prev {
                hash: Line::hash(last),
                seq: seq - 2,
            }),
            erase: Some(Box::new(Erasure {
                basis: "none".into(),
                deciders: [Digest::of(&[b"one"]), Digest::of(&[b"two"])],
            })),
            ..Line::new(Op::Erase, seq, at(30), "guardian", "6")
        };
        let forged = String::from_utf8(forged.encode()).unwrap();
        std::fs::write(&segment, format!("{text}{forged}\n")).unwrap();
        match read(&Layout::new(dir.path()), None, |_, _| {}) {
            Err(ReadError::Damaged(damage)) => {
                assert_eq!(damage.code, Code::LineAltered);
                assert!(
                    is_held && damage.text.contains("a hold stands"),
                    "{damage:?}"
                );
            }
            other => assert!(other.is_ok() && !is_held, "{other:?}"),
        }
        // So does a writer, which goes on from its map.
        let opened = Trail::open::<()>(Layout::new(dir.path()));
        assert_eq!(opened.is_ok(), !is_held);
    }
}

/// A trail that was begun before there were such lines goes on as it did.
#[test]
fn in_a_trail_of_before_a_hold_is_in_the_vault_alone() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    drop(Trail::create(layout.clone(), ORIGIN, &genesis()).unwrap());
    let segment = layout.segment(0);
    let text = std::fs::read_to_string(&segment).unwrap();
    let mut line = Line::decode(text.trim_end().as_bytes()).unwrap();
    line.genesis.as_mut().unwrap().rules = Some(16);
    let text = String::from_utf8(line.encode()).unwrap();
    std::fs::write(&segment, format!("{text}\n")).unwrap();
    std::fs::remove_dir_all(layout.map()).unwrap();
    let mut trail = open(dir.path());
    assert!(!trail.records_holds());
    trail.append(vec![read_of("pt-1")]).unwrap();
    trail.commit().unwrap();
    let set = hold(&mut trail, "pt-1", CASE);
    assert_eq!((set.line, trail.state().next_seq()), (None, 2));
    drop(trail);
    let mut trail = open(dir.path());
    assert_eq!(trail.holds().unwrap(), [("pt-1".to_owned(), set.clone())]);
    is_held(&mut trail, "pt-1");
    let lifted = Lifted {
        patient: "pt-1",
        line: None,
        reason: None,
    };
    let was = trail.remove_hold(lifted, "Mari", (at(6), "6")).unwrap();
    assert_eq!((was, trail.state().next_seq()), (set, 2));
    assert_eq!(erase(&mut trail, "pt-1").unwrap(), 2);
}

/// In the vault of a trail whose holds are lines, a note is another trail's, or older. It
/// keeps the patient all the same, until somebody lifts it.
#[test]
fn a_note_in_the_vault_keeps_the_patient_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let patient = trail.keys().pseudonym("pt-1").to_string();
    for note in [
        &br#"{"reason":"r","by":"b","at":"2026-03-14T09:26:53.589793Z"}"#[..],
        b"?",
    ] {
        trail
            .vault()
            .set_note("hold", &patient, Some(note))
            .unwrap();
        is_held(&mut trail, "pt-1");
        let holds = trail.holds().unwrap();
        assert_eq!((holds.len(), holds[0].1.line), (1, None));
        lift(&mut trail, "pt-1", None).unwrap();
        assert!(trail.holds().unwrap().is_empty());
    }
    assert_eq!(trail.state().next_seq(), 3, "nothing was written");
    erase(&mut trail, "pt-1").unwrap();
}
