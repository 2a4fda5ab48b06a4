//! A witness as a notary runs it: its folder, its process that is killed at
//! any moment, and a guardian whose heads it cosigns, up to evidence that an
//! outsider verifies.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;
#[path = "common/hospital.rs"]
mod hospital;

use common::copy_folder::copy_folder;
use common::run;
use hospital::{Hospital, ORIGIN, init, witness, witnessed};
#[cfg(feature = "ml-dsa")]
use hospital::{witness_in, word_after};
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{Note, SignatureLine, Signed, SigningKey};
use pitser_tlog::witness_protocol::{AddCheckpoint, Refusal};
use pitser_witness::{Cosign, HttpWitness, SqliteStore, Store};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn tree(altered: Option<u32>) -> LogTree {
    let leaf = |index: u32| match Some(index) == altered {
        true => leaf_hash(b"altered"),
        false => leaf_hash(&index.to_be_bytes()),
    };
    (0..200).map(leaf).collect()
}

fn key() -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[1; 32]).unwrap()
}

fn head(tree: &LogTree, size: u64) -> Note {
    let head = Checkpoint::new(ORIGIN, size, tree.root_at(size).unwrap()).unwrap();
    head.sign(&key()).unwrap()
}

fn ask(url: &str, tree: &LogTree, old: u64, size: u64) -> Result<Vec<SignatureLine>, Refusal> {
    let request = AddCheckpoint {
        old_size: old,
        proof: tree.consistency_proof(old, size).unwrap_or_default(),
        head: head(tree, size),
    };
    HttpWitness::new(url.parse().unwrap()).add_checkpoint(request.to_string().as_bytes())
}

#[test]
fn the_folder_of_a_witness() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, "witness run --dir w")
        .exits(3)
        .says("pitser witness init");
    run(dir, "witness init --dir w --name a+b")
        .exits(3)
        .says("--name");
    init(dir);
    let mode = |path: &str| fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("w"), mode("w/key")), (0o700, 0o600));
    run(dir, "witness init --dir w --name b.example")
        .exits(3)
        .says("another folder");
    let secret = fs::read_to_string(dir.join("w/key")).unwrap();
    assert!(secret.starts_with("PRIVATE+KEY+notary.example/witness+"));

    let log = key().verifier();
    let add = format!("witness add-log --dir w {log}");
    run(dir, &add)
        .exits(0)
        .says("watching hospital.example/ehr");
    run(dir, &add).exits(0);
    let calendar = format!("{add} --genesis 2026-01-01T00:00:00Z --tolerance 3");
    run(dir, &calendar).exits(3).says("--replace");
    run(dir, &format!("{calendar} --replace"))
        .exits(0)
        .says("one entry a second since 2026-01-01T00:00:00Z");
    run(dir, "witness add-log --dir w not+a+key").exits(3);
    let cosigner = "witness add-log --dir w \
        ministry.example/witness+8b24a322+BIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU";
    run(dir, &cosigner.replace("  ", ""))
        .exits(3)
        .says("of a witness");
    let list = run(dir, "witness list --dir w --json").exits(0).json();
    assert_eq!(list["logs"][0]["key"], log.to_string());
    assert_eq!(list["logs"][0]["genesis"], "2026-01-01T00:00:00Z");
    assert!(!list.to_string().contains("PRIVATE"));

    fs::write(dir.join("w/key"), secret.replace("+witness", "x")).unwrap();
    let said = run(dir, "witness list --dir w");
    fs::write(dir.join("w/key"), &secret[..secret.len() - 9]).unwrap();
    let cut = run(dir, "witness list --dir w").exits(3);
    assert!(
        !format!("{said:?}{cut:?}").contains(&secret[60..80]),
        "a key is never shown"
    );
    fs::write(dir.join("w/key"), &secret).unwrap();
    fs::remove_file(dir.join("w/witness.db")).unwrap();
    run(dir, "witness run --dir w")
        .exits(3)
        .says("must not cosign again");
    assert!(!dir.join("w/witness.db").exists(), "no memory is made up");
    // As a copy leaves it that found the disk full.
    fs::write(dir.join("w/witness.db"), "").unwrap();
    for command in ["run", "list"] {
        run(dir, &format!("witness {command} --dir w"))
            .exits(3)
            .says("witness.db is empty. Without its memory");
    }
}

/// Killed between requests and within them, it never forgets a head that it
/// has cosigned, and never states an earlier time.
#[test]
fn a_killed_witness_cosigns_no_rollback_and_no_fork() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let verifier = init(dir);
    let (whole, altered) = (tree(None), tree(Some(2)));
    let (mut process, mut url) = witness(dir);
    assert_eq!(ask(&url, &whole, 0, 5), Err(Refusal::UnknownOrigin));
    run(
        dir,
        &format!("witness add-log --dir w {}", key().verifier()),
    )
    .exits(0);
    let (mut cosigned, mut stated_at) = (0, 0);
    for round in 1..=12 {
        // The size that it holds may be one for which no answer came.
        let held = match ask(&url, &whole, cosigned, cosigned + 5) {
            Err(Refusal::Conflict { size }) => size,
            answer => {
                answer.unwrap();
                cosigned + 5
            }
        };
        assert!(held >= cosigned, "{held} is less than {cosigned}");
        let line = ask(&url, &whole, held, held).unwrap().remove(0);
        let Ok(Signed::At(at)) = verifier.verify(head(&whole, held).text(), &line) else {
            panic!("no cosignature: {line}");
        };
        assert!(at >= stated_at);
        (cosigned, stated_at) = (held, at);
        // Some rounds die with a request on its way.
        let late = std::thread::spawn({
            let (url, whole) = (url.clone(), tree(None));
            move || round % 2 == 0 && ask(&url, &whole, held, held + 3).is_ok()
        });
        if round % 4 == 0 {
            assert!(late.join().unwrap());
            cosigned += 3;
            process.kill();
        } else {
            process.kill();
            cosigned += 3 * u64::from(late.join().unwrap());
        }
        (process, url) = witness(dir);
        let refused = ask(&url, &whole, 0, cosigned - 1);
        assert!(
            matches!(refused, Err(Refusal::Conflict { size }) if size >= cosigned),
            "{refused:?}"
        );
        let refused = ask(&url, &whole, cosigned - 1, cosigned - 1);
        assert!(
            matches!(refused, Err(Refusal::Conflict { .. })),
            "{refused:?}"
        );
    }
    let store = SqliteStore::open(dir.join("w/witness.db")).unwrap();
    let held = store.head(ORIGIN).unwrap().unwrap().size;
    assert_eq!(
        ask(&url, &altered, held, held + 1),
        Err(Refusal::Inconsistent)
    );
    assert_eq!(run(dir, "witness list --dir w").exits(0).code, 0);
    let refused = ask(&url, &altered, held, held);
    assert_eq!(refused, Err(Refusal::Conflict { size: held }));
    process.kill();
    let list = run(dir, "witness list --dir w --json").exits(1).json();
    let fork = &list["logs"][0]["fork"];
    for (note, tree) in [("held", &whole), ("refused", &altered)] {
        assert_eq!(
            fork[note],
            head(tree, held).to_string(),
            "both heads are proof"
        );
    }
    run(dir, "witness list --dir w").exits(1).says("FORKED");
    let (process, url) = witness(dir);
    assert!(ask(&url, &whole, held, held + 1).is_ok());
    process.stop();
}

#[test]
fn evidence_rests_on_a_witness_across_the_network() {
    let mut hospital = Hospital::new();
    let guardian = hospital.guard();
    let status = hospital.status(witnessed(1));
    assert_eq!(status["witnesses"][0]["name"], "notary");
    let said = hospital.run("guard status").exits(0);
    assert!(said.out.contains("    notary: "), "{said:?}");
    let blocks = status["blocks"].as_u64().unwrap();
    hospital.change("b");
    let is_sealed = |status: &Value| status["unsealed"] == 0;
    let status = hospital.status(|status| witnessed(blocks + 1)(status) && is_sealed(status));
    guardian.stop();

    hospital
        .dev
        .published(status["sealed_up_to"].as_str().unwrap());
    hospital
        .run("evidence export --patient pt-1 -o e.pitser")
        .exits(0)
        .says("seconds of its seals and publications proved to be witnessed");
    hospital.anchors();
    let report = hospital
        .run("verify e.pitser --anchors anchors.toml --json")
        .exits(2)
        .json();
    let step = |name: &str| {
        let steps = report["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["name"] == name);
        let step = step.unwrap_or_else(|| panic!("no step {name} in {report}"));
        (
            step["state"].as_str().unwrap(),
            step["text"].as_str().unwrap().to_owned(),
        )
    };
    let (state, text) = step("head");
    assert_eq!(state, "matches", "{text}");
    assert!(
        text.contains("cosigned by notary.example/witness at "),
        "{text}"
    );
    assert_eq!(step("genesis").0, "matches");
    let (state, text) = step("witnessed");
    assert_eq!(state, "matches", "{text}");
    assert!(text.contains("stand in the calendar's log"), "{text}");
    // What remains is nobody's word but an auditor's, and none is trusted here.
    assert_eq!(step("audit").0, "waiting");
    assert_eq!(report["verdict"], "unconfirmed");
    let waiting = report["steps"].as_array().unwrap().iter();
    let waiting = waiting.filter(|step| step["state"] == "waiting");
    let waiting: Vec<_> = waiting.map(|step| &step["name"]).collect();
    assert_eq!(waiting, ["audit"], "{report}");

    // Without the witness nothing vouches for the head.
    let anchors = fs::read_to_string(hospital.dir.path().join("anchors.toml")).unwrap();
    let other = anchors.replace("witness_quorum = 1", "witness_quorum = 0");
    fs::write(hospital.dir.path().join("anchors.toml"), other).unwrap();
    hospital
        .run("verify e.pitser --anchors anchors.toml")
        .exits(2)
        .says("no witness of yours to confirm it");

    // The trail beside its head, another head, and none.
    let head = hospital.dir.path().join("guard/ehr/head.note");
    hospital
        .run("trail verify")
        .says("is a beginning of this trail");
    let text = fs::read_to_string(&head).unwrap();
    for other in ["", "garbage", &text.replacen("notary", "nobody", 1)[..40]] {
        fs::write(&head, other).unwrap();
        hospital
            .run("trail verify")
            .exits(2)
            .says("head.note is not a head that this trail's key has signed");
    }
    fs::remove_file(&head).unwrap();
    hospital
        .run("trail verify")
        .says("no cosigned head is kept here");
}

/// Evidence can do without the authority, if that is asked for.
#[test]
fn evidence_is_exported_while_the_authority_is_away() {
    let hospital = Hospital::new();
    let guardian = hospital.guard();
    hospital.status(witnessed(1));
    guardian.stop();
    hospital.anchors();
    let Hospital { dir, dev, .. } = hospital;
    dev.kill();
    let dir = dir.path();
    let export = "evidence export --patient pt-1 -o e.pitser";
    run(dir, export).exits(4).says("--offline");
    assert!(!dir.join("e.pitser").exists());
    let said = run(dir, &format!("{export} --offline --json"));
    assert_eq!(said.exits(0).json()["published"], 0);
    let report = run(dir, "verify e.pitser --anchors anchors.toml --json");
    let report = report.exits(2).json();
    let mut steps = report["steps"].as_array().unwrap().iter();
    let seals = steps.find(|step| step["name"] == "seals").unwrap();
    assert_eq!(seals["state"], "waiting", "{report}");
    assert_eq!(report["code"], "GEN-02");
}

/// Two witnesses, one of each algorithm, and a verifier who wants both.
#[cfg(feature = "ml-dsa")]
#[test]
fn a_quorum_of_ed25519_and_ml_dsa() {
    let hospital = Hospital::new();
    let dir = hospital.dir.path();
    let init = "witness init --dir pq --name university.example/pq --algorithm ml-dsa-44";
    let key = word_after(&run(dir, init).exits(0), "key");
    let secret = fs::read_to_string(dir.join("pq/key")).unwrap();
    assert!(secret.len() < 120, "a seed, as of any other key");
    let log = &hospital.log_key;
    run(dir, &format!("witness add-log --dir pq {log}")).exits(0);
    run(dir, &format!("witness add-log --dir pq {key}"))
        .exits(3)
        .says("of a witness");
    let (process, url) = witness_in(dir, "pq");
    let append = |file: &str, more: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        fs::write(dir.join(file), text + more).unwrap();
    };
    let more = format!("[[witness]]\nname = \"pq\"\nurl = \"{url}\"\nkey = \"{key}\"\n");
    append("pitser.toml", &more);

    // More than half of two is both.
    let guardian = hospital.guard();
    hospital.status(witnessed(1));
    guardian.stop();
    process.stop();
    let list = run(dir, "witness list --dir pq --json").exits(0).json();
    assert_eq!(list["key"], key);
    assert!(list["logs"][0]["size"].as_u64().unwrap() >= 1);

    hospital
        .run("evidence export --patient pt-1 -o e.pitser")
        .exits(0);
    hospital.anchors();
    append("anchors.toml", &format!("[[witness]]\nkey = \"{key}\"\n"));
    let anchors = fs::read_to_string(dir.join("anchors.toml")).unwrap();
    let both = anchors.replace("witness_quorum = 1", "witness_quorum = 2");
    fs::write(dir.join("anchors.toml"), both).unwrap();
    let report = hospital.run("verify e.pitser --anchors anchors.toml --json");
    let report = report.exits(2).json();
    let mut steps = report["steps"].as_array().unwrap().iter();
    let head = steps.find(|step| step["name"] == "head").unwrap();
    assert_eq!(head["state"], "matches", "{report}");
    let text = head["text"].as_str().unwrap();
    for name in ["notary.example/witness", "university.example/pq"] {
        assert!(text.contains(name), "{text}");
    }
}

#[cfg(not(feature = "ml-dsa"))]
#[test]
fn a_build_without_ml_dsa_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let init = "witness init --dir w --name notary.example --algorithm ml-dsa-44";
    run(dir.path(), init)
        .exits(3)
        .says("build with the feature ml-dsa");
    assert!(!dir.path().join("w").exists(), "nothing was made");
}

/// Somebody puts an older copy of the trail in its place: it verifies by
/// itself, and the witness holds more.
#[test]
fn a_trail_that_was_put_back_is_noticed_by_its_witness() {
    let hospital = Hospital::new();
    let guard = hospital.dir.path().join("guard");
    let guardian = hospital.guard();
    hospital.status(witnessed(1));
    guardian.stop();
    let copy = hospital.dir.path().join("copy");
    copy_folder(&guard, &copy);

    let guardian = hospital.guard();
    let blocks = hospital.status(witnessed(1))["witnessed"].as_u64().unwrap();
    hospital.change("b");
    hospital.status(witnessed(blocks + 1));
    guardian.stop();

    fs::remove_dir_all(&guard).unwrap();
    copy_folder(&copy, &guard);
    let _guardian = hospital.guard();
    let has = |status: &Value, code: &str| {
        let findings = status["findings"].as_array().unwrap();
        findings.iter().any(|finding| finding["code"] == code)
    };
    let status = hospital.status(|status| has(status, "TRL-03") || has(status, "TRL-04"));
    let trouble = &status["witnesses"][0]["trouble"];
    assert!(
        trouble.as_str().is_some_and(|it| it.contains("leaves")),
        "{status}"
    );
    hospital.run("guard status").exits(1).says("TRL-0");
}
