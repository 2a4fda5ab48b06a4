//! After an erasure somebody has the whole folder, all keys in it, the patient's true
//! identifier and the true values, and guesses. Nothing of the patient's content may
//! be confirmed, and every proof must still hold.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

mod common;

use common::{at, genesis};
use pitser_evidence::Verdict;
use pitser_evidence::codec::Digest;
use pitser_evidence::commit::{Key, LineNonce, commit_person, commit_raw, commit_row};
use pitser_evidence::line::{Binding, Line, Op, Patient};
use pitser_ksi::time::Second;
use pitser_trail::erasure::{ErasureError, VALID_US};
use pitser_trail::export::Exporter;
use pitser_trail::hold::Lifted;
use pitser_trail::{Draft, DraftActor, Keys, Layout, PatientId, Recovery, Row, Trail, Vault, read};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

const ORIGIN: &str = "test.example/hospital";
const BASIS: &str = "GDPR art. 17(1)(d), decision 14/2026";

fn row(value: &str) -> Row {
    Row {
        names: ["id".to_owned(), "value".to_owned()].into(),
        values: vec![Some(b"tobs-1"[..].into()), Some(value.as_bytes().into())],
    }
}

/// One change by a person, told in a message.
fn change(op: Op, pos: u64, id: &str, patient: &str, value: &str) -> Draft {
    Draft {
        table: Some("observation".into()),
        key: Some(vec![format!("t{id}").into_bytes()]),
        patient: Some(PatientId::Id(patient.into())),
        row: op.commits_row().then(|| row(value)),
        raw: Some(
            format!("message about {patient}: {value}")
                .into_bytes()
                .into(),
        ),
        actor: Some(DraftActor {
            app: None,
            binding: Binding::C,
            client: None,
            person: Some("Dr Tamm".into()),
            role: None,
        }),
        ..Draft::new(op, at(pos), "ehr", pos.to_string())
    }
}

/// A trail of three patients, whose block is closed and whose head is kept.
fn populated(dir: &Path) -> Trail {
    let mut trail = Trail::create(Layout::new(dir), ORIGIN, &genesis()).unwrap();
    for event in [
        change(Op::Create, 1, "obs-1", "pt-1", "t120"),
        change(Op::Create, 2, "obs-2", "pt-2", "t80"),
        change(Op::Update, 3, "obs-1", "pt-1", "t121"),
        change(Op::Create, 4, "obs-3", "pt-1", "t60"),
        change(Op::Delete, 5, "obs-3", "pt-1", ""),
        change(Op::Create, 6, "obs-4", "pt-3", "t90"),
    ] {
        trail.append(vec![event]).unwrap();
    }
    close(&mut trail);
    trail
}

fn close(trail: &mut Trail) {
    let mapping = Digest::of(&[b"mapping"]);
    trail
        .close_block(at(9), "6", mapping, "Block closed.")
        .unwrap();
    let head = trail.sign_head();
    trail.store_head(&head).unwrap();
}

fn reopened(dir: &Path) -> (Trail, Recovery) {
    let (trail, (), recovery) = Trail::open::<()>(Layout::new(dir)).unwrap();
    (trail, recovery)
}

fn erase(trail: &mut Trail, patient: &str) -> u64 {
    let (code, _) = trail
        .request_erasure(patient, BASIS, "Mari", at(20))
        .unwrap();
    trail
        .confirm_erasure(&code, "Jaan", at(21), "6")
        .unwrap()
        .seq
}

/// An older vault was put back, and the next line named the patient by pseudonym alone:
/// whoever asks for the erasure has the identifier.
#[test]
fn a_patient_whose_identifier_the_vault_lost_is_erased() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let Patient::Pseudonym(pseudonym) = trail.keys().pseudonym("pt-9") else {
        panic!("a patient has a pseudonym");
    };
    let unnamed = Draft {
        patient: Some(PatientId::Pseudonym(pseudonym)),
        ..change(Op::Create, 10, "obs-9", "pt-9", "t50")
    };
    trail.append(vec![unnamed]).unwrap();
    trail.commit().unwrap();
    let id = Patient::Pseudonym(pseudonym).to_string();
    assert!(trail.vault().identifier(&id).unwrap().is_none());
    erase(&mut trail, "pt-9");
    assert!(!trail.vault().has_key(&id).unwrap());
}

fn lines(dir: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    let collect = |line: &Line, _| lines.push(line.clone());
    read(&Layout::new(dir), None, collect).unwrap();
    lines
}

/// Every key of 32 bytes that the folder gives away: the master key, the VRF's and all
/// tables' keys, what the vault still opens, and any 32 bytes of its key files.
fn keys_in(dir: &Path) -> Vec<Key> {
    let layout = Layout::new(dir);
    let keys = Keys::open(&layout).unwrap();
    let mut found = vec![keys.master().clone(), keys.table("observation")];
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.keys()).unwrap()).unwrap();
    let texts =
        ["log_seed", "vrf_seed", "inputs"].map(|name| json[name].as_str().unwrap().to_owned());
    for text in texts {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        found.push(Key::new(bytes.try_into().unwrap()));
    }
    let mut vault = Vault::open_read_only(&layout.vault(), keys.master()).unwrap();
    let db = Connection::open_with_flags(
        layout.vault().join("keys.db"),
        OpenFlags::SQLITE_OPEN_READ_ONLY,
    )
    .unwrap();
    let mut query = db.prepare("SELECT id FROM compartment").unwrap();
    let ids = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    for id in ids {
        found.extend(vault.key(&id.unwrap(), u64::MAX >> 1).unwrap());
    }
    for file in files(&layout.vault()) {
        let bytes = std::fs::read(file).unwrap();
        let windows = bytes
            .windows(32)
            .filter(|w| w.iter().any(|byte| *byte != 0));
        found.extend(windows.map(|w| Key::new(w.try_into().unwrap())));
    }
    found
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => all.push(path),
        }
    }
    all
}

/// True if one of the keys confirms a true value in one of the patient's lines.
fn confirms(keys: &[Key], line: &Line) -> bool {
    keys.iter().any(|key| {
        let nonce = LineNonce::new(key, ORIGIN, 1, line.seq);
        let row = ["t120", "t121", "t60"].into_iter().any(|value| {
            let (_, root) = commit_row(&nonce, row(value).iter());
            line.row == Some(root)
        });
        let person = line.actor.as_ref().and_then(|actor| actor.person);
        let raw = ["t120", "t121", "t60", ""].into_iter().any(|value| {
            let message = format!("message about pt-1: {value}");
            line.raw == Some(commit_raw(&nonce.raw(), message.as_bytes()))
        });
        row || raw || person == Some(commit_person(&nonce.person(), "Dr Tamm"))
    })
}

fn lines_of(dir: &Path, patient: Patient, up_to: u64) -> Vec<Line> {
    let mut lines = lines(dir);
    lines.retain(|line| line.patient == Some(patient) && line.seq < up_to);
    lines
}

#[test]
fn nothing_can_be_confirmed_by_guessing() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let patient = trail.keys().pseudonym("pt-1");
    let up_to = trail.state().next_seq();
    trail.commit().unwrap();
    let before = keys_in(dir.path());
    let known = lines_of(dir.path(), patient, up_to);
    assert_eq!(known.len(), 4);
    assert!(
        known.iter().all(|line| confirms(&before, line)),
        "the guesses are the true ones"
    );

    erase(&mut trail, "pt-1");
    close(&mut trail);
    drop(trail);
    let after = keys_in(dir.path());
    assert!(after.len() > 1000, "all that could be a key was tried");
    for line in &known {
        assert!(!confirms(&after, line), "line {}", line.seq);
    }
    // And no file has the identifier or a value in clear, before or after.
    for file in files(dir.path()) {
        let bytes = std::fs::read(&file).unwrap();
        for secret in [&b"pt-1"[..], b"Dr Tamm", b"Mari", b"Jaan", b"message about"] {
            let stands = bytes.windows(secret.len()).any(|part| part == secret);
            assert!(!stands, "{}", file.display());
        }
    }

    // What remains, and the documentation says so: who holds `keys.json` recognises
    // the pseudonym of an identifier that he guesses, and the key of a record.
    let keys = Keys::open(&Layout::new(dir.path())).unwrap();
    assert_eq!(keys.pseudonym("pt-1"), patient);
    let record = pitser_evidence::commit::record_key(&keys.table("observation"), [&b"tobs-1"[..]]);
    assert!(known.iter().any(|line| line.key == Some(record)));
}

#[test]
fn the_line_names_basis_and_two_people_and_all_proofs_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let before: Vec<Vec<u8>> = lines(dir.path()).iter().map(Line::encode).collect();
    let of_before = |patient: &str| {
        let mut exporter = Exporter::open_at_head(Layout::new(dir.path())).unwrap();
        exporter
            .evidence(patient, None, None, |_, s| s.to_vec())
            .unwrap()
    };
    let (old_1, old_2) = (of_before("pt-1"), of_before("pt-2"));
    let seq = erase(&mut trail, "pt-1");
    close(&mut trail);
    let nonce = {
        let key = trail.vault().key("*erasures", seq).unwrap().unwrap();
        trail.nonce(&key, seq)
    };
    drop(trail);

    let after = lines(dir.path());
    assert!(
        after
            .iter()
            .map(Line::encode)
            .zip(&before)
            .all(|(a, b)| a == *b)
    );
    let line = &after[usize::try_from(seq).unwrap()];
    let body = line.erase.as_ref().unwrap();
    assert_eq!(
        (line.op, line.v, body.basis.as_str()),
        (Op::Erase, 2, BASIS)
    );
    assert_eq!(body.deciders[0], commit_person(&nonce.decider(0), "Mari"));
    assert_eq!(body.deciders[1], commit_person(&nonce.decider(1), "Jaan"));

    // The erased patient's evidence: the same lines as before and the erasure's, none
    // of them open. Others' evidence opens as before.
    let mut exporter = Exporter::open_at_head(Layout::new(dir.path())).unwrap();
    let new_1 = exporter
        .evidence("pt-1", None, None, |_, s| s.to_vec())
        .unwrap();
    assert!(old_1.lines.iter().all(|proof| proof.open.is_some()));
    assert!(new_1.lines.iter().all(|proof| proof.open.is_none()));
    let told = |e: &pitser_evidence::Evidence| -> Vec<Line> {
        e.lines.iter().map(|proof| proof.line.clone()).collect()
    };
    assert_eq!(told(&new_1)[..4], told(&old_1));
    assert_eq!(told(&new_1)[4..], *std::slice::from_ref(line));
    let new_2 = exporter
        .evidence("pt-2", None, None, |_, s| s.to_vec())
        .unwrap();
    assert_eq!(new_2.lines.len(), 1);
    assert_eq!(new_2.lines[0].open, old_2.lines[0].open);
    for evidence in [&old_1, &new_1, &new_2] {
        let report = pitser_evidence::verify(evidence, None, Second(1_773_500_000));
        assert!(!matches!(report.verdict, Verdict::Broken(_)), "{report:#?}");
    }
    let history = exporter
        .patient_history("pt-1")
        .unwrap()
        .map(Result::unwrap)
        .collect::<Vec<_>>();
    let people = history
        .last()
        .unwrap()
        .content
        .clone()
        .unwrap()
        .deciders
        .unwrap();
    assert_eq!(people, ["Mari", "Jaan"]);
    assert!(history[..4].iter().all(|entry| entry.content.is_none()));
}

#[test]
fn a_killed_erasure_is_finished_when_the_trail_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let patient = trail.keys().pseudonym("pt-1").to_string();
    // As it was before: the vault of an erasure whose line is durable, and no more.
    let vault = Layout::new(dir.path()).vault();
    let old = tempfile::tempdir().unwrap();
    for file in files(&vault) {
        let to = old.path().join(file.strip_prefix(&vault).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
    let seq = erase(&mut trail, "pt-1");
    drop(trail);
    for file in files(&vault) {
        // Contents only grow; they have the two names.
        if file.parent() == Some(&vault) {
            std::fs::remove_file(file).unwrap();
        }
    }
    for file in files(old.path()) {
        if file.parent() == Some(old.path()) {
            std::fs::copy(&file, vault.join(file.file_name().unwrap())).unwrap();
        }
    }
    let (mut trail, recovery) = reopened(dir.path());
    assert!(recovery.finished_erasure);
    assert!(!trail.vault().has_key(&patient).unwrap());
    assert!(trail.vault().get(1).unwrap().is_none());
    assert!(trail.vault().get(2).unwrap().is_some());
    // Who comes back is not erased again by the old line.
    trail
        .append(vec![change(Op::Update, 30, "obs-1", "pt-1", "t122")])
        .unwrap();
    trail.commit().unwrap();
    drop(trail);
    let (mut trail, recovery) = reopened(dir.path());
    assert!(!recovery.finished_erasure);
    assert!(trail.vault().has_key(&patient).unwrap());
    assert!(trail.vault().get(seq + 1).unwrap().is_some());
    assert_eq!(trail.plan_erasure("pt-1").unwrap().live_rows, 1);
}

/// Whoever is in it would come back with an old copy of the vault.
#[test]
fn notes_that_cannot_be_read_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    erase(&mut trail, "pt-1");
    let path = Layout::new(dir.path()).erasures();
    let mut noted = std::fs::read(&path).unwrap();
    noted.push(0xff);
    std::fs::write(&path, &noted).unwrap();
    let (code, _) = trail
        .request_erasure("pt-2", BASIS, "Mari", at(20))
        .unwrap();
    let refused = trail.confirm_erasure(&code, "Jaan", at(21), "6");
    assert!(refused.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), noted);
    drop(trail);
    let Err(error) = Trail::open::<()>(Layout::new(dir.path())) else {
        panic!("nobody knows whom to erase");
    };
    assert!(error.to_string().contains("erasures"), "{error}");
}

#[test]
fn a_note_without_its_line_erases_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let patient = trail.keys().pseudonym("pt-1");
    let (next, before) = (trail.state().next_seq(), trail.state().next_seq() - 1);
    trail.vault().commit().unwrap();
    drop(trail);
    // The line never came to be, or another stands in its place.
    let note = format!("{next} {patient}\n{before} {patient}\nrubbish\n");
    std::fs::write(Layout::new(dir.path()).erasures(), note).unwrap();
    let (mut trail, recovery) = reopened(dir.path());
    assert!(!recovery.finished_erasure);
    assert!(trail.vault().get(1).unwrap().is_some());
    // Another line will have that number.
    let noted = std::fs::read_to_string(Layout::new(dir.path()).erasures()).unwrap();
    assert_eq!(noted, format!("{before} {patient}\n"));
    let seq = erase(&mut trail, "pt-1");
    assert_eq!(seq, next);
    assert!(trail.vault().get(1).unwrap().is_none());
}

/// However many lines the patient has since.
#[test]
fn the_line_that_erased_somebody_who_came_back_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let patient = trail.keys().pseudonym("pt-1");
    let seq = erase(&mut trail, "pt-1");
    let read = || Draft {
        patient: Some(PatientId::Id("pt-1".into())),
        ..Draft::new(Op::Read, at(30), "ehr", "7")
    };
    for _ in 0..11 {
        trail.append((0..1000).map(|_| read()).collect()).unwrap();
    }
    close(&mut trail);
    let exporter = Exporter::open(Layout::new(dir.path())).unwrap();
    assert_eq!(exporter.erased_by(&patient, 1).unwrap(), Some(seq));
    assert_eq!(exporter.erased_by(&patient, seq).unwrap(), None);
    let other = trail.keys().pseudonym("pt-2");
    assert_eq!(exporter.erased_by(&other, 1).unwrap(), None);
}

#[test]
fn who_may_be_erased_and_by_whom() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = populated(dir.path());
    let request = |trail: &mut Trail, patient: &str, basis: &str| {
        trail
            .request_erasure(patient, basis, "Mari", at(20))
            .map(|(code, _)| code)
    };
    let plan = trail.plan_erasure("pt-1").unwrap();
    assert_eq!((plan.lines, plan.live_rows, plan.has_key), (4, 1, true));
    let nobody = request(&mut trail, "pt-9", BASIS);
    assert!(matches!(nobody, Err(ErasureError::UnknownPatient)));
    for basis in ["", " ", "a\nb", &"x".repeat(501)] {
        assert!(matches!(
            request(&mut trail, "pt-1", basis),
            Err(ErasureError::Text)
        ));
    }
    let revealing = request(&mut trail, "pt-1", "pt-1 asked for it");
    assert!(matches!(revealing, Err(ErasureError::Revealing)));

    // The same person twice; a code that is none, or too old.
    let code = request(&mut trail, "pt-1", BASIS).unwrap();
    let confirm = |trail: &mut Trail, code: &str, by: &str, second: u64| {
        trail.confirm_erasure(code, by, at(second), "6")
    };
    let alone = confirm(&mut trail, &code, "Mari", 21);
    assert!(matches!(alone, Err(ErasureError::SamePerson(_))));
    let wrong = confirm(&mut trail, "AAAAAAAAAAAAAAAA", "Jaan", 21);
    assert!(matches!(wrong, Err(ErasureError::NoRequest)));
    let late = confirm(&mut trail, &code, "Jaan", 21 + VALID_US / 1_000_000);
    assert!(matches!(late, Err(ErasureError::NoRequest)));
    let gone = confirm(&mut trail, &code, "Jaan", 21);
    assert!(
        matches!(gone, Err(ErasureError::NoRequest)),
        "it was removed"
    );

    // A hold that is set after the request counts too.
    let code = request(&mut trail, "pt-1", BASIS).unwrap();
    trail
        .add_hold("pt-1", "court case 2-26-117", "Jaan", (at(22), "6"))
        .unwrap();
    let held = confirm(&mut trail, &code, "Jaan", 23);
    assert!(matches!(held, Err(ErasureError::Held(_))));
    drop(trail);
    let (mut trail, _) = reopened(dir.path());
    assert!(matches!(
        request(&mut trail, "pt-1", BASIS),
        Err(ErasureError::Held(_))
    ));
    let holds = trail.holds().unwrap();
    assert_eq!((holds.len(), holds[0].0.as_str()), (1, "pt-1"));
    let lifted = Lifted {
        patient: "pt-1",
        line: None,
        reason: Some("the case is closed"),
    };
    trail.remove_hold(lifted, "Jaan", (at(23), "6")).unwrap();

    // The request has survived; a code may be typed in small letters.
    let before = trail.state().next_seq();
    let (waiting, identifier) = trail.requested_erasure(&code, at(24)).unwrap();
    assert_eq!((waiting.by.as_str(), identifier.as_str()), ("Mari", "pt-1"));
    let erased = confirm(&mut trail, &code.to_lowercase(), "Jaan", 24).unwrap();
    assert_eq!(erased.seq, before);
    assert_eq!(erased.deciders, ["Mari", "Jaan"]);
    let again = confirm(&mut trail, &code, "Jaan", 24);
    assert!(matches!(again, Err(ErasureError::NoRequest)));
    let again = request(&mut trail, "pt-1", BASIS);
    assert!(matches!(again, Err(ErasureError::Nothing)));
    assert!(!trail.plan_erasure("pt-1").unwrap().has_key);
}
